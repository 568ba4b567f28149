"""`steward drill restore`: whether an older copy of a database may be put back without anybody coming back with it."""

from __future__ import annotations

import asyncio
import json
import logging
import os
import signal
import sys
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import click

from deploy.cli.errors import NO

if TYPE_CHECKING:
    from rich.console import Console

    from deploy.drill.found import Result


@click.group(context_settings={"help_option_names": ["-h", "--help"]})
def drill() -> None:
    """Rehearse what must go well on a bad day, on a mesh of its own."""


@drill.command(epilog="Example: steward drill restore --service metering --service security")
@click.option(
    "--service", "services", multiple=True, help="Whose database is put back; may be repeated  [default: each]."
)
@click.option("--seed", type=int, default=1, show_default=True, help="The same seed makes the same traffic.")
@click.option("--json", "as_json", is_flag=True, help="For programs.")
def restore(services: tuple[str, ...], seed: int, as_json: bool) -> None:
    """Put older copies of databases back after a deletion, and see that nobody comes back.

    Starts Kafka, PostgreSQL and every service in a folder of its own, lets two customers use it, copies the databases,
    deletes one customer by the real protocol, puts each copy back in turn, and compares with before: the auditor's scan,
    the proof of the books, the ledger, what there is of the customer who stays. Leaves nothing behind.

    Exit code 0 only if all is as before, 1 if not, 3 when the mesh does not start.
    """
    from shared.contract.topics import HOLDERS

    for name in services:
        if name not in HOLDERS:
            raise click.UsageError(f"--service: one of {', '.join(HOLDERS)}")
    results = asyncio.run(_run(tuple(dict.fromkeys(services)) or HOLDERS, seed, as_json))
    if as_json:
        click.echo(json.dumps([result.as_dict() for result in results], indent=2))
    if not results or not all(result.as_before for result in results):
        sys.exit(NO)


async def _run(services: tuple[str, ...], seed: int, as_json: bool) -> list[Result]:
    """One drill, with everything stopped at its end, also after a signal."""
    from rich.console import Console

    from deploy.drill.run import Drill
    from deploy.drill.show import show
    from deploy.drill.site import StackSite
    from deploy.local.stack import Stack
    from shared.mesh.clock import clock_from

    console = Console(highlight=False, stderr=as_json)
    logging.getLogger("aiokafka").setLevel(logging.CRITICAL)
    # A copy is worth what topics still have: they are kept as long as in production, and not cut within seconds.
    kept = {"STEWARD_KAFKA_HURRIED": "0"}
    stack = Stack.throw_away(settings=kept, say=lambda text: None, console=console)
    clock = clock_from(os.environ.get("STEWARD_CLOCK"), os.environ.get("STEWARD_ENV", "local"))

    async def play() -> list[Result]:
        with console.status("starting Kafka, PostgreSQL and the mail sink") as status:
            await stack.start_servers()

            def say(text: str) -> None:
                status.update(text)
                if not console.is_terminal or ":" in text:
                    console.print(f"[dim]{text}[/]", soft_wrap=True)

            return await Drill(StackSite(stack), clock, _prove, say, services=services, seed=seed).run()

    # A task of its own: a signal cancels it, and never the stopping of what it has started.
    playing = asyncio.create_task(play())
    loop = asyncio.get_running_loop()
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        loop.add_signal_handler(number, lambda: stack.hurry() if not playing.cancel() else None)
    try:
        await asyncio.wait((playing,))
    finally:
        await stack.stop(grace=5.0)
    if playing.cancelled():
        return []
    results = playing.result()  # raises what went wrong
    if not as_json:
        _show(console, results, show)
    return results


def _show(console: Console, results: list[Result], show: Any) -> None:
    console.print()
    show(console, results)


async def _prove(settings: Mapping[str, str]) -> dict[str, Any]:
    """The proof of `steward check`, on this stack."""
    from deploy.cli.books import prove

    return await prove(settings)
