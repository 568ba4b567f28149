"""`steward up | down | status | wait | doctor`: the local stack from a terminal."""

from __future__ import annotations

import asyncio
import json
import logging
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from deploy.cli.errors import NO, UNAVAILABLE, Refused, Unavailable
from deploy.local import env, state
from deploy.local.state import PartState, StackState

if TYPE_CHECKING:
    from rich.console import Console

_START_SECONDS = 300.0
_POLL_SECONDS = 0.1
_NUMBERS = ("pid", "restarts")


@click.command(epilog="Example: steward up --detach && steward status")
@click.option("--detach", is_flag=True, help="Return when everything is ready and leave it running.")
@click.option("--observe", is_flag=True, help="With a Prometheus, and a receiver of traces (`steward trace`).")
@click.option("--take-over", is_flag=True, help="On your PostgreSQL: new passwords for another stack's roles.")
def up(detach: bool, observe: bool, take_over: bool) -> None:
    """Start Kafka, PostgreSQL, a mail sink and every service on this machine.

    Returns when everything is ready and then keeps it running: a service that dies is started again. Ctrl-C
    drains and stops. STEWARD_KAFKA_BOOTSTRAP_SERVERS, STEWARD_POSTGRES_URL and STEWARD_SMTP_URL use servers
    that you have instead. The sink keeps mails as files in .steward/mail.
    """
    _quiet()
    console = _console()
    home = env.home()
    running = state.read(home)
    if running is not None and running.running:
        console.print(f"A stack already runs in {home}.")
        _show(console, home, asyncio.run(_look(running)))
        if observe and not any(part.name == "traces" for part in running.parts):
            raise Refused("it runs without observers: `steward down`, then `steward up --observe`")
        return
    if detach:
        _detach(console, home, observe=observe, take_over=take_over)
        return
    from deploy.local.stack import Stack
    from deploy.local.supervisor import run_until_signal

    say = _sayer(console)
    stack = Stack(home, take_over=take_over, observe=observe, console=console)

    def ready() -> None:
        known = state.read(home)
        if known is not None:
            _show(console, home, [_row(part, ready=True) for part in known.parts])
        console.print("Ctrl-C stops it.")

    asyncio.run(run_until_signal(stack, say, ready))


@click.command(epilog="Example: steward down")
def down() -> None:
    """Stop the stack: services first, then the servers.

    The services finish the batch in hand; that may take up to 40 seconds. The data stay.
    """
    console = _console()
    home = env.home()
    known = state.read(home)
    left = state.leftovers(known)
    if known is None or not (known.supervisor.alive() or left):
        console.print(f"Nothing runs in {home}.")
        state.clear(home)
        return
    if known.supervisor.alive():
        console.print("Stopping: the services finish their batches first.")
        known.supervisor.send(signal.SIGTERM)
        asyncio.run(known.supervisor.gone(120.0))
        left = state.leftovers(known)
    if left:
        console.print(f"Stopping what was left running: {', '.join(part.name for part in left)}.")
        asyncio.run(state.end_leftovers(left))
    if state.leftovers(known) or known.supervisor.alive():
        raise Refused(f"something in {home} does not stop: see `steward status` for its pid")
    state.clear(home)
    console.print("Stopped.")


@click.command(epilog="Example: steward status --json")
@click.option("--json", "as_json", is_flag=True, help="For programs.")
def status(as_json: bool) -> None:
    """Show what runs, where, and whether it is ready.

    Exit code 0 when everything is ready, 1 when something is not, 3 when no stack runs here.
    """
    home = env.home()
    known = state.read(home)
    rows = asyncio.run(_look(known)) if known is not None else []
    phase = _phase(known)
    if as_json:
        click.echo(json.dumps({"home": str(home), "phase": phase, "parts": rows}, indent=2))
    elif known is not None and phase != "stopped":
        console = _console()
        if phase != "running":
            console.print(f"The stack is {phase}{': ' if known.detail else ''}{known.detail}", soft_wrap=True)
        _show(console, home, rows)
    if phase == "stopped":
        if not as_json:
            click.echo(f"No stack runs in {home}: start one with `steward up`.")
        sys.exit(UNAVAILABLE)
    if phase != "running" or not all(row["ready"] for row in rows):
        sys.exit(NO)


@click.command(epilog="Example: steward wait --idle --timeout 60")
@click.option("--idle", is_flag=True, required=True, help="Until lag is 0, outboxes and tasks are empty.")
@click.option("--timeout", type=click.FloatRange(min=0), default=300.0, show_default=True, help="Seconds.")
@click.option("--json", "as_json", is_flag=True, help="For programs.")
def wait(idle: bool, timeout: float, as_json: bool) -> None:
    """Wait until the mesh has nothing left to do.

    Idle = every service said so in two rounds in a row. Exit code 0 then, 1 when the time is up, 3 when a
    service is not running.
    """
    from deploy.local.idle import wait_idle

    outcome = asyncio.run(wait_idle(env.load(env.home()), timeout))
    if as_json:
        click.echo(json.dumps(outcome.as_dict(), indent=2))
    else:
        click.echo(outcome.text())
    if not outcome.idle:
        sys.exit(UNAVAILABLE if outcome.away else NO)


@click.command(epilog="Example: steward doctor --json")
@click.option("--json", "as_json", is_flag=True, help="For programs.")
def doctor(as_json: bool) -> None:
    """Check servers and machine before anything starts.

    Looks at the servers named by STEWARD_KAFKA_BOOTSTRAP_SERVERS, STEWARD_POSTGRES_URL and STEWARD_SMTP_URL
    (versions, rights, topic settings, clock), or at what this machine needs to run its own. Exit code 0 when all is well or
    could be better, 1 when something must be changed, 3 when a server cannot be reached.
    """
    from deploy.local.doctor import examine

    _quiet()
    findings = asyncio.run(examine(env.home(), os.environ))
    if as_json:
        click.echo(json.dumps([finding.as_dict() for finding in findings], indent=2))
    else:
        colours = {"OK": "green", "WARN": "yellow", "FAIL": "red"}
        for finding in findings:
            click.echo(click.style(f"{finding.level:<4}", fg=colours[finding.level]) + f"  {finding.text}")
            if finding.todo:
                click.echo(f"      -> {finding.todo}")
    if any(finding.away for finding in findings):
        sys.exit(UNAVAILABLE)
    if any(finding.level == "FAIL" for finding in findings):
        sys.exit(NO)


def _quiet() -> None:
    """A client library's complaint about a server that is away says less than our own one line."""
    logging.getLogger("aiokafka").setLevel(logging.CRITICAL)


def _console() -> Console:
    from rich.console import Console

    return Console(highlight=False)


def _sayer(console: Console) -> Callable[[str], None]:
    def say(text: str) -> None:
        console.print(f"[dim]{time.strftime('%H:%M:%S')}[/dim] {text}", soft_wrap=True)

    return say


def _detach(console: Console, home: Path, *, observe: bool, take_over: bool) -> None:
    """Starts a supervisor in a session of its own and waits until it says that all is ready, or why not."""
    from deploy.local import jars
    from deploy.local.cache import cache_folder
    from deploy.local.process import tail

    env.make_home(home)
    if not os.environ.get("STEWARD_KAFKA_BOOTSTRAP_SERVERS"):
        jars.ensure(cache_folder(), console)  # here, where a person can see it progress
    log = home / "logs" / "supervisor.log"
    log.parent.mkdir(exist_ok=True, mode=0o700)
    with log.open("ab") as output:
        options = [option for option, wanted in (("--observe", observe), ("--take-over", take_over)) if wanted]
        command = [sys.executable, "-m", "deploy.cli", "up", *options]
        process = subprocess.Popen(
            command,
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=subprocess.STDOUT,
            env={**os.environ, "STEWARD_HOME": str(home)},
            start_new_session=True,
        )
    end = time.monotonic() + _START_SECONDS
    with console.status("starting") as spinner:
        while time.monotonic() < end:
            known = state.read(home)
            mine = known if known is not None and known.pid == process.pid else None
            if mine is not None and mine.phase == "running":
                break
            if (code := process.poll()) is not None:
                said = mine.detail if mine is not None and mine.detail else tail(log, 5)
                raise (Refused if code == NO else Unavailable)(f"the stack did not start: {said}")
            if mine is not None and mine.detail:
                spinner.update(mine.detail)
            time.sleep(_POLL_SECONDS)
        else:
            raise Unavailable(f"the stack was not ready within {_START_SECONDS:.0f} s: see {log}")
    assert mine is not None
    _show(console, home, asyncio.run(_look(mine)))
    console.print("It runs in the background; `steward down` stops it.")
    process.returncode = 0  # it lives on by intention: nobody waits for it here


async def _look(known: StackState) -> list[dict[str, Any]]:
    ready = await asyncio.gather(*(_ready(part) for part in known.parts))
    return [_row(part, ready=is_ready) for part, is_ready in zip(known.parts, ready, strict=True)]


def _row(part: PartState, *, ready: bool) -> dict[str, Any]:
    alive = part.identity.alive()
    return {
        "name": part.name,
        "state": part.state if alive or part.state == "restarting" else "stopped",
        "pid": part.pid if alive else None,
        "port": part.port,
        "url": part.url,
        "ready": alive and ready,
        "restarts": part.restarts,
        "log": part.log,
    }


async def _ready(part: PartState) -> bool:
    from deploy.local.ports import answers
    from deploy.local.probe import is_ready

    return await answers(part.port) if part.name in state.SERVERS else await is_ready(part.port)


def _phase(known: StackState | None) -> str:
    if known is None:
        return "stopped"
    if known.supervisor.alive():
        return known.phase
    # Without its supervisor nothing is started again: `steward down` ends it, `steward up` replaces it.
    return "unsupervised" if state.leftovers(known) else "stopped"


def _show(console: Console, home: Path, rows: list[dict[str, Any]]) -> None:
    from rich.table import Table

    table = Table(box=None, pad_edge=False)
    for column in ("part", "state", "where", "pid", "restarts"):
        table.add_column(column, no_wrap=True, justify="right" if column in _NUMBERS else "left")
    for name, where in _yours(home, {row["name"] for row in rows}):
        table.add_row(name, "yours", where, "", "")
    for row in rows:
        said = "ready" if row["ready"] else row["state"] if row["state"] != "running" else "not ready"
        colour = "green" if row["ready"] else "yellow"
        pid = "" if row["pid"] is None else str(row["pid"])
        table.add_row(row["name"], f"[{colour}]{said}[/]", row["url"], pid, str(row["restarts"]))
    console.print(table)
    console.print(
        f"settings and passwords: {_short(env.env_file(home))}, logs: {_short(home / 'logs')}", soft_wrap=True
    )


def _yours(home: Path, ours: set[str]) -> list[tuple[str, str]]:
    """Servers that this stack uses and does not run, without passwords."""
    from deploy.local.databases import without_password

    known = env.read(env.env_file(home))
    servers = (
        ("kafka", known.get("STEWARD_KAFKA_BOOTSTRAP_SERVERS", "")),
        ("postgres", without_password(known.get("STEWARD_POSTGRES_URL", ""))),
        ("mail", without_password(known.get("STEWARD_SMTP_URL", ""))),
    )
    return [(name, where) for name, where in servers if where and name not in ours]


def _short(path: Path) -> str:
    """Relative to the current folder where that is shorter."""
    return min(os.path.relpath(path), str(path), key=len)
