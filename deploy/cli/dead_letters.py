"""`steward dead-letters list | show | replay | release`: records that could not be handled."""

from __future__ import annotations

import json
import sys
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import click

from deploy.cli.ask import ask, moment, pages, settings
from deploy.cli.command import command_options, order, until, who
from deploy.cli.errors import NO, Refused
from shared.contract.topics import HOLDERS, TOPICS

if TYPE_CHECKING:
    from rich.table import Table

_service = click.option("--service", type=click.Choice(HOLDERS), help="Whose dead letters  [default: all]")
_json = click.option("--json", "as_json", is_flag=True, help="For programs.")


@click.group("dead-letters", context_settings={"help_option_names": ["-h", "--help"]})
def dead_letters() -> None:
    """See the records that could not be handled, and send them again.

    A letter is kept for 7 days. Numbers are per service: say --service where two have the same.
    """


@dead_letters.command("list", epilog="Example: steward dead-letters list --service metering --json")
@_service
@click.option("--topic", help="Only letters of this topic.")
@click.option(
    "--state", type=click.Choice(["waiting", "replaying", "replayed", "any"]), default="waiting", show_default=True
)
@click.option(
    "--limit", type=click.IntRange(1), default=100, show_default=True, help="At most so many of each service."
)
@_json
def list_(service: str | None, topic: str | None, state: str, limit: int, as_json: bool) -> None:
    """List dead letters, the oldest first."""
    known = settings()
    query = {"state": "" if state == "any" else state} | ({"topic": topic} if topic else {})
    rows = [
        {"service": name, **row}
        for name in _chosen(known, service)
        for row in pages(known, name, "dead-letters", limit, **query)
    ]
    if as_json:
        click.echo(json.dumps(rows, indent=2))
    elif rows:
        _print(_table(rows))
    else:
        click.echo("No dead letters.")


@dead_letters.command("show", epilog="Example: steward dead-letters show 17 --service billing")
@click.argument("letter", type=click.IntRange(1), metavar="ID")
@_service
@_json
def show(letter: int, service: str | None, as_json: bool) -> None:
    """Show one dead letter whole: why, where it came from, and the record itself.

    Exit code 1 when there is no such letter.
    """
    row = _find(settings(), letter, service)
    if as_json:
        click.echo(json.dumps(row, indent=2))
        return
    for name, value in row.items():
        if name not in ("payload", "headers") and value is not None:
            click.echo(f"{name.replace('_', ' ')}: {value}")
    for name, value in row["headers"]:
        click.echo(f"header {name}: {value}")
    click.echo(row["payload"] or "(no value)")


@dead_letters.command("replay", epilog="Example: steward dead-letters replay 17 --service billing --ticket OPS-381")
@click.argument("letter", type=click.IntRange(1), metavar="[ID]", required=False)
@click.option("--all", "everything", is_flag=True, help="All that wait, oldest first.")
@click.option("--topic", help="With --all: only letters of this topic.")
@_service
@command_options
@_json
def replay(
    letter: int | None, everything: bool, topic: str | None, service: str | None, by: str | None, ticket: str,
    timeout: float, as_json: bool,
) -> None:  # fmt: skip
    """Send a dead letter's record to its topic again, and wait for what becomes of it.

    The event keeps its id, so nothing is counted twice. One that fails again goes on waiting.

    Exit code 1 when any of them failed again.
    """
    if (letter is None) != everything:
        raise click.UsageError("say which: an ID, or --all")
    orders = who(by, ticket, timeout)
    known = settings()
    if letter is not None:
        rows = [_find(known, letter, service)]
        if rows[0]["state"] != "waiting":
            raise Refused(f"dead letter {letter} is {rows[0]['state']}: only a waiting one can be sent again")
    else:
        query = {"topic": topic} if topic else {}
        rows = [
            {"service": name, **row}
            for name in _chosen(known, service)
            for row in pages(known, name, "dead-letters", sys.maxsize, **query)
        ]
    for name in HOLDERS:
        ids = [str(row["id"]) for row in rows if row["service"] == name]
        if ids:
            order(known, name, "replay_dead_letter", ids, orders)
    after = [_settled(known, row, timeout) for row in rows] if timeout else rows
    replayed = sum(row["state"] == "replayed" for row in after)
    again = [row for row in after if row["state"] == "waiting"] if timeout else []
    if as_json:
        said = [{"service": r["service"], "id": r["id"], "state": r["state"], "reason": r["reason"]} for r in after]
        click.echo(json.dumps({"ordered": len(rows), "replayed": replayed, "letters": said}, indent=2))
    elif not timeout:
        click.echo(f"{len(rows)} replays are ordered.")
    else:
        click.echo(f"{replayed} of {len(rows)} dead letters are handled now.")
        for row in again:
            click.echo(f"{row['service']} {row['id']} failed again: {row['reason']}: {row['detail']}", err=True)
    if again:
        sys.exit(NO)


@dead_letters.command(
    epilog="Example: steward dead-letters release gateway.payments --service billing --ticket OPS-381"
)
@click.argument("topic")
@click.option("--service", type=click.Choice(HOLDERS), required=True, help="Whose parked records.")
@command_options
def release(topic: str, service: str, by: str | None, ticket: str, timeout: float) -> None:
    """Handle parked records again, in order: those that wait behind a failed one of their key.

    For an ordered topic, once what made them fail is mended. One that fails again stays, with all of its key: the gauge
    steward_parked_records tells how many wait.
    """
    ordered = [known.name for known in TOPICS if known.ordered and service in known.readers]
    if topic not in ordered:
        raise click.UsageError(f"{service} parks records of {', '.join(ordered)} only")
    order(settings(), service, "release_parked", [topic], who(by, ticket, timeout))
    click.echo(f"The parked records of {topic} are handled again.")


def _chosen(known: Mapping[str, str], service: str | None) -> tuple[str, ...]:
    """The services that are asked: the one that is named, or all that run here; where none does, the first one says so."""
    if service is not None:
        return (service,)
    told = (tuple(f"STEWARD_{name.upper()}_{what}" for what in ("PORT", "URL")) for name in HOLDERS)
    return tuple(name for name, either in zip(HOLDERS, told, strict=True) if known.keys() & set(either)) or HOLDERS


def _find(known: Mapping[str, str], letter: int, service: str | None) -> dict[str, Any]:
    """The letter with this number, in the one service that has it."""
    found = []
    for name in _chosen(known, service):
        try:
            found.append({"service": name, **ask(known, name, "dead-letter", id=letter)})
        except Refused:
            continue
    if not found:
        raise Refused(f"there is no dead letter {letter}: see `steward dead-letters list`")
    if len(found) > 1:
        raise click.UsageError(f"several services have a dead letter {letter}: say --service")
    return found[0]


def _settled(known: Mapping[str, str], row: Mapping[str, Any], timeout: float) -> dict[str, Any]:
    """The letter once its replay is over: handled, or waiting again after one more attempt."""
    latest: dict[str, Any] = {}

    def over() -> bool:
        latest.update(ask(known, row["service"], "dead-letter", id=row["id"]))
        if latest["state"] == "waiting":
            return bool(latest["attempts"] > row["attempts"])
        return bool(latest["state"] == "replayed")

    until(timeout, f"the record of dead letter {row['id']} has not come round", over)
    return {"service": row["service"], **latest}


def _table(rows: list[dict[str, Any]]) -> Table:
    from rich.table import Table

    table = Table(box=None, pad_edge=False)
    for name in ("id", "of", "topic, partition/offset", "why", "failed at"):
        table.add_column(
            name, justify="right" if name == "id" else "left", overflow="fold", no_wrap=name in ("id", "of")
        )
    for row in rows:
        table.add_row(
            str(row["id"]), row["service"], f"{row['topic']} {row['part']}/{row['record_offset']}",
            f"{row['reason']}: {row['detail']}" + ("" if row["state"] == "waiting" else f" ({row['state']})"),
            moment(row["first_failed_at"]),
        )  # fmt: skip
    return table


def _print(table: Table) -> None:
    from rich.console import Console

    Console(highlight=False).print(table)
