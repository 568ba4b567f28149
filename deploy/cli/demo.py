"""`steward demo`: a throw-away mesh, a seeded gateway, and the proof that the books balance."""

from __future__ import annotations

import asyncio
import logging
import os
import signal
import sys
import time
from collections.abc import Mapping
from datetime import timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from deploy.cli.errors import NO

if TYPE_CHECKING:
    from rich.console import Console

    from deploy.demo.run import Options
    from deploy.demo.trace import Trace

_EVENTS = 20_000


@click.command(epilog="Example: steward demo --seed 7 --report build/demo.json")
@click.option(
    "--events",
    type=click.IntRange(1, 100_000_000),
    help=f"How many generations; with --trace, rows at most.  [default: {_EVENTS:,}, or all rows]",
)
@click.option("--seed", type=int, default=1, show_default=True, help="The same seed makes the same traffic.")
@click.option(
    "--trace",
    "traces",
    type=click.Path(exists=True, dir_okay=False, path_type=Path),
    multiple=True,
    metavar="FILE.csv",
    help="Play the rows of a trace (TIMESTAMP,ContextTokens,GeneratedTokens). May be repeated.",
)
@click.option(
    "--speed",
    type=click.FloatRange(min=0, min_open=True),
    metavar="N",
    help="N times real time.  [default: as fast as the mesh takes it]",
)
@click.option(
    "--report",
    type=click.Path(dir_okay=False, writable=True, path_type=Path),
    metavar="FILE.json",
    help="Write the JSON of `steward check` there.",
)
@click.option(
    "--out",
    type=click.Path(file_okay=False, path_type=Path),
    default=Path("build/demo"),
    show_default=True,
    metavar="FOLDER",
    help="Where the certificate of the deletion is put.",
)
@click.option("--keep", is_flag=True, help="Leave the mesh running after the page, until Ctrl-C, to look around.")
def demo(
    events: int | None,
    seed: int,
    traces: tuple[Path, ...],
    speed: float | None,
    report: Path | None,
    out: Path,
    keep: bool,
) -> None:
    """See the mesh at work, somebody forgotten, and both proved.

    Starts Kafka, PostgreSQL and every service in a folder of its own, plays a gateway with some thousand
    generations and every kind of fault, deletes an account meanwhile, compares the books with the gateway's
    own account, shows what came of it, and leaves nothing behind but the deletion's certificate. Exit code 0
    only if the proof holds against that account and the deletion is done, 1 if not, 2 for a bad trace, 3 when
    the mesh does not start.
    """
    from deploy.demo.run import Options

    if report is not None and not report.absolute().parent.is_dir():
        raise click.BadParameter(f"the folder {report.absolute().parent} does not exist", param_hint="--report")
    looked = _examine(traces, events)
    options = Options(events or _EVENTS, seed, looked, speed, report, keep, out)
    if not asyncio.run(_run(options)):
        sys.exit(NO)


def _examine(paths: tuple[Path, ...], limit: int | None) -> list[Trace]:
    """Looks through every trace before anything starts. A bad one ends the command with exit code 2."""
    from deploy.demo.trace import BadTrace, examine
    from shared.policy import policy

    longest = policy().window - timedelta(days=1)
    left = limit
    traces: list[Trace] = []
    for path in paths:
        if left == 0:
            break
        try:
            trace = examine(path, left)
        except BadTrace as error:
            raise click.UsageError(str(error)) from error
        if trace.span > longest:
            raise click.UsageError(
                f"{path}: the trace spans {trace.span.days} days, and usage older than {longest.days} days is not "
                "taken without a person: cut it with --events N, or play a shorter one"
            )
        left = None if left is None else left - trace.rows
        traces.append(trace)
    return traces


async def _run(options: Options) -> bool:
    """One run, with everything stopped at its end, also after a signal."""
    from rich.console import Console

    from deploy.demo.run import Demo
    from deploy.local.stack import Stack
    from shared.mesh.clock import clock_from

    console = Console(highlight=False)
    # A topic made a moment ago has no leader for some milliseconds: what is not raised, was retried and went well.
    logging.getLogger("aiokafka").setLevel(logging.CRITICAL)
    stack = Stack.throw_away(fast_start=not options.is_long, say=_sayer(console), console=console)
    clock = clock_from(os.environ.get("STEWARD_CLOCK"), os.environ.get("STEWARD_ENV", "local"))

    asked = holds = False

    async def play() -> None:
        nonlocal holds
        holds = await Demo(options, console, clock, stack, _prove).run()
        if options.keep:
            await _keep(console, stack.home)

    # A task of its own: a signal cancels it, and never the stopping of what it has started.
    playing = asyncio.create_task(play())

    def stop() -> None:
        nonlocal asked
        if asked:
            stack.hurry()
        else:
            asked = True
            console.print("\nstopping (a second Ctrl-C does not wait)")
            playing.cancel()

    loop = asyncio.get_running_loop()
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        loop.add_signal_handler(number, stop)
    try:
        await asyncio.wait((playing,))
    finally:
        await stack.stop(grace=5.0)
    if not playing.cancelled():
        playing.result()  # raises what went wrong
    return holds


async def _keep(console: Console, home: Path) -> None:
    """Until a signal: what to do with a mesh that is still there."""
    console.print(
        f"\nThe mesh is still running. In another terminal:\n  export STEWARD_HOME={home}\n"
        "  steward check\n  steward quarantine list\n  steward privacy list --all\nCtrl-C stops it and deletes everything.",
        soft_wrap=True,
    )
    await asyncio.Event().wait()


async def _prove(settings: Mapping[str, str]) -> dict[str, Any]:
    """The proof of `steward check`, on this stack."""
    from deploy.cli.books import prove

    return await prove(settings)


def _sayer(console: Console) -> Any:
    started = time.monotonic()

    def say(text: str) -> None:
        console.print(f"[dim]{time.monotonic() - started:5.1f} s[/dim]  {text}", soft_wrap=True)

    return say
