"""`steward holds place | release | list`: what the law wants kept, of a named record, until a named end."""

from __future__ import annotations

import json
import re

import click

from deploy.cli.ask import ask, moment, settings
from deploy.cli.command import command_options, new_id, order, until, who
from deploy.cli.errors import Refused
from deploy.cli.shapes import CASE, ID, instant

_ROOM = "retention"
_json = click.option("--json", "as_json", is_flag=True, help="For programs.")


@click.group(context_settings={"help_option_names": ["-h", "--help"]})
def holds() -> None:
    """Keep what the law wants kept of somebody, for as long as it does.

    A hold is on a subject's records in one table of one holder. They are copied, sealed, so that expiry and deletion
    stay unconditional; when the hold ends, the copies are destroyed, unprompted.
    """


@holds.command(
    epilog="Example: steward holds place acc-71 --kind account --holder billing --table note --ground court_order "
    "--until 2027-03-01 --ticket LEGAL-7"
)
@click.argument("subject", type=ID)
@click.option("--kind", type=click.Choice(["account", "workspace", "member", "key", "identity"]), required=True)
@click.option("--holder", required=True, help="The service that has the records.")
@click.option("--table", required=True, help="Its table.")
@click.option("--ground", required=True, help="Why, in a word: court_order, dispute, tax_audit.")
@click.option("--until", "end", required=True, help="When it ends by itself (a day or an instant, UTC).")
@command_options
@_json
def place(
    subject: str, kind: str, holder: str, table: str, ground: str, end: str, by: str | None, ticket: str, timeout: float,
    as_json: bool,
) -> None:  # fmt: skip
    """Hold a subject's records in one table."""
    from shared.contract.topics import HOLDERS

    if holder not in HOLDERS:
        raise click.UsageError(f"--holder: one of {', '.join(HOLDERS)}")
    if ticket == "none":
        raise click.UsageError("--ticket: a hold needs a reason in your own records")
    if re.fullmatch(r"[a-z_][a-z0-9_]{0,62}", table) is None or re.fullmatch(r"[a-z_]{1,64}", ground) is None:
        raise click.UsageError("--table and --ground: small letters and _ only")
    known, hold = settings(), new_id()
    order(
        known, _ROOM, "place_hold", [subject], who(by, ticket, timeout, "legal"), ids=[hold],
        kind=kind, holder=holder, table=table, ground=ground, until=instant("--until", end),
    )  # fmt: skip
    if timeout and not any(row["id"] == hold for row in ask(known, _ROOM, "holds", limit=1000, all="yes")):
        raise Refused("the hold was refused: see `steward dead-letters list --service retention`")
    click.echo(json.dumps({"hold": hold}) if as_json else hold)


@holds.command(epilog="Example: steward holds release 019ab7d4-... --ticket LEGAL-9")
@click.argument("hold", type=CASE)
@command_options
def release(hold: str, by: str | None, ticket: str, timeout: float) -> None:
    """Let a hold go: the copies are destroyed, and what was deleted meanwhile is gone for good."""
    known = settings()
    rows = {row["id"]: row for row in ask(known, _ROOM, "holds", limit=1000, all="yes")}
    if hold not in rows:
        raise Refused("no such hold is known: see `steward holds list --all`")
    if rows[hold]["state"] in ("releasing", "released"):
        raise Refused(f"the hold is {rows[hold]['state']} already")
    order(known, _ROOM, "release_hold", [hold], who(by, ticket, timeout, "legal"))
    if timeout:
        until(
            timeout, "the copies are not destroyed",
            lambda: not any(row["id"] == hold for row in ask(known, _ROOM, "holds", limit=1000)),
        )  # fmt: skip
    click.echo("Released." if timeout else "The release is ordered.")


@holds.command("list", epilog="Example: steward holds list --all --json")
@click.option("--all", "everything", is_flag=True, help="Released ones, too.")
@click.option("--limit", type=click.IntRange(1, 1000), default=100, show_default=True)
@_json
def list_(everything: bool, limit: int, as_json: bool) -> None:
    """List holds, the newest first. Nobody's id is in it."""
    rows = ask(settings(), _ROOM, "holds", limit=limit, all="yes" if everything else "no")
    if as_json:
        click.echo(json.dumps(rows, indent=2))
        return
    if not rows:
        click.echo("Nothing is held.")
        return
    from rich.console import Console
    from rich.table import Table

    table = Table(box=None, pad_edge=False)
    for name in ("hold", "state", "where", "of a", "ground", "until", "by"):
        table.add_column(name, no_wrap=name == "hold", overflow="fold")
    for row in rows:
        where = f"{row['holder']}.{row['table']}"
        by = f"{row['placed_by']}, {row['ticket']}"
        table.add_row(row["id"], row["state"], where, row["kind"], row["ground"], moment(row["until"]), by)
    Console(highlight=False).print(table)
