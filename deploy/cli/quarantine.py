"""`steward quarantine list | release`: usage that waits for a price or a person."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import click

from deploy.cli.ask import ask, moment, pages, settings
from deploy.cli.command import command_options, order, until, who
from deploy.cli.errors import NO, Refused

_json = click.option("--json", "as_json", is_flag=True, help="For programs.")


@click.group(context_settings={"help_option_names": ["-h", "--help"]})
def quarantine() -> None:
    """See usage that could not be priced, and release it.

    Usage of an unknown model is never charged 0: it waits, and is priced by itself when the price arrives. What
    came too late (or from the future) waits for a person.
    """


@quarantine.command("list", epilog="Example: steward quarantine list --json")
@click.option("--limit", type=click.IntRange(1), default=20, show_default=True, help="At most so many one by one.")
@_json
def list_(limit: int, as_json: bool) -> None:
    """List what waits: how much by reason and model, then one by one, the oldest first."""
    known = settings()
    counts = ask(known, "metering", "quarantine", limit=1)["counts"]
    rows = list(pages(known, "metering", "quarantine", limit)) if counts else []
    if as_json:
        click.echo(json.dumps({"counts": counts, "rows": rows}, indent=2))
    elif not rows:
        click.echo("Nothing is in the quarantine.")
    else:
        _print(
            ("waiting", "why", "model", "since"),
            [
                (f"{row['n']:,}", row["reason"], f"{row['model']} at {row['provider']}", moment(row["oldest"]))
                for row in counts
            ],
        )
        click.echo()
        _print(
            ("id", "event", "why", "arrived"),
            [(row["id"], row["event_id"] or "not kept", _reason(row), moment(row["arrived_at"])) for row in rows],
        )
        if (more := sum(row["n"] for row in counts) - len(rows)) > 0:
            click.echo(f"... and {more:,} more (--limit)")


@quarantine.command("release", epilog="Example: steward quarantine release 17 --ticket OPS-381")
@click.argument("row", type=click.IntRange(1), metavar="[ID]", required=False)
@click.option("--all", "everything", is_flag=True, help="Everything that waits for a price.")
@command_options
@_json
def release(row: int | None, everything: bool, by: str | None, ticket: str, timeout: float, as_json: bool) -> None:
    """Price waiting usage now, and charge it.

    What has no price still goes on waiting. An ID releases that one usage whatever it waits for, as far as it
    can be priced: you vouch for it.

    Exit code 1 when it waits still.
    """
    if (row is None) != everything:
        raise click.UsageError("say which: an ID, or --all")
    orders = who(by, ticket, timeout)
    known = settings()
    before = ask(known, "metering", "counters").get("quarantined", 0) if everything else 0
    if row is not None and _row(known, row) is None:
        raise Refused(f"nothing in the quarantine has the number {row}: see `steward quarantine list`")
    order(known, "metering", "release_quarantine", ["all" if row is None else str(row)], orders)
    if not timeout:
        click.echo(json.dumps({"ordered": True}) if as_json else "The release is ordered.")
        return
    until(timeout, "the release is not through", lambda: not ask(known, "metering", "idle")["tasks"])
    if row is None:
        left = ask(known, "metering", "counters").get("quarantined", 0)
        said: dict[str, Any] = {"released": before - left, "waiting": left}
        text = f"{before - left} released, {left} still in the quarantine."
    else:
        still = _row(known, row)
        left = 0 if still is None else 1
        said = {"id": row, "released": not left, "waiting": still}
        text = f"{row} is released." if still is None else f"{row} waits still: {_why(still)}."
    click.echo(json.dumps(said, indent=2) if as_json else text)
    if left:
        sys.exit(NO)


def _row(known: Mapping[str, str], number: int) -> dict[str, Any] | None:
    """The row with this number, if it waits."""
    rows = ask(known, "metering", "quarantine", after=number - 1, limit=1)["rows"]
    return rows[0] if rows and rows[0]["id"] == number else None


def _reason(row: Mapping[str, Any]) -> str:
    return f"{row['reason']} ({row['missing']})" if row["missing"] else str(row["reason"])


def _why(row: Mapping[str, Any]) -> str:
    return f"{_reason(row)}, {row['model']} at {row['provider']}"


def _print(columns: Sequence[str], rows: Iterable[Sequence[object]]) -> None:
    from rich.console import Console
    from rich.table import Table

    table = Table(box=None, pad_edge=False)
    for name in columns:
        # An id is there to be copied: it is shown whole.
        whole = name in ("id", "event", "waiting")
        table.add_column(name, justify="right" if name in ("id", "waiting") else "left", overflow="fold", no_wrap=whole)
    for row in rows:
        table.add_row(*map(str, row))
    Console(highlight=False).print(table)
