"""`steward disclosures enter | extract | end-gag | settle | list | show`: what the law has us disclose, and who is told."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, TypeVar

import click

from deploy.cli.ask import ask_as, moment, settings
from deploy.cli.command import command_options, new_id, order, until, who
from deploy.cli.errors import Refused
from deploy.cli.shapes import CASE, ID, Shape, instant

_ROOM = "retention"
_REASON = "steward command"
_F = TypeVar("_F", bound=Callable[..., Any])
_json = click.option("--json", "as_json", is_flag=True, help="For programs.")
_role = click.option("--role", default="legal", show_default=True, help="As what you ask: the policy says who may.")
_REFERENCE = Shape("reference", r"[A-Za-z0-9][A-Za-z0-9_.:+/-]{0,127}")
_TABLES = re.compile(r"([a-z]{1,27})=([a-z_][a-z0-9_]*(?:\.[a-z_][a-z0-9_]*)*)")


def _scope_options(function: _F) -> _F:
    for option in (
        click.option("--until", "end", help="Rows before this day or instant (UTC)."),
        click.option("--since", help="Rows from this day or instant on (UTC)."),
        click.option("--from", "tables", multiple=True, metavar="HOLDER=TABLE.TABLE",
                     help="Tables of a holder, dots between; may be repeated."),
    ):  # fmt: skip
        function = option(function)
    return function


@click.group(context_settings={"help_option_names": ["-h", "--help"]})
def disclosures() -> None:
    """Disclose what the law demands, within its entry, and tell whom it is about.

    Nothing is extracted without an entry, or beyond it. The person is told at once, or unprompted when a gag ends.
    """


@disclosures.command(
    epilog="Example: steward disclosures enter acc-71 --instrument court_order --reference 22-cv-117 --authority us-doj "
    "--from metering=request_log --since 2026-01-01 --until 2026-02-01 --gag-until 2026-09-01 --ticket LEGAL-7"
)
@click.argument("subject", type=ID)
@click.option("--kind", type=click.Choice(["account", "workspace"]), default="account", show_default=True)
@click.option("--instrument", help="Which legal process: court_order, subpoena, warrant, ...")
@click.option("--reference", type=_REFERENCE, help="Which one it is.")
@click.option("--protects", type=click.Choice(["rights", "property", "safety"]),
              help="Without legal process: what it protects.")  # fmt: skip
@click.option("--decided-by", type=ID, help="Without legal process: the person who decided.")
@click.option("--authority", type=ID, required=True, help="Who gets it: a word or an id.")
@_scope_options
@click.option("--gag-until", help="The person is told then, not now: the gag's end, or its review.")
@command_options
@_role
@_json
def enter(
    subject: str, kind: str, authority: str, tables: tuple[str, ...], since: str | None, end: str | None,
    gag_until: str | None, by: str | None, ticket: str, timeout: float, role: str, as_json: bool, **basis: str | None,
) -> None:  # fmt: skip
    """Enter a disclosure: by an instrument and its reference, or to protect something, as a named person decided."""
    _demand(ticket)
    told = {name: value for name, value in basis.items() if value is not None}
    process = bool(told.keys() & {"instrument", "reference"})
    if not tables:
        raise click.UsageError("--from: which tables of which holder?")
    if gag_until is not None:
        told["gag_until"] = instant("--gag-until", gag_until)
    known, entry = settings(), new_id()
    order(
        known, _ROOM, "enter_disclosure", [subject], who(by, ticket, timeout, role), ids=[entry], kind=kind,
        authority=authority, basis="legal_process" if process else "protection", **told, **_scope(tables, since, end),
    )  # fmt: skip
    if timeout and not _is_there(known, entry, role):
        raise Refused("the entry was refused: see `steward dead-letters list --service retention`")
    click.echo(json.dumps({"entry": entry}) if as_json else entry)


@disclosures.command(epilog="Example: steward disclosures extract 019ab7d4-... --out ./for-us-doj --ticket LEGAL-7")
@click.argument("entry", type=CASE)
@click.option("--out", type=click.Path(file_okay=False, path_type=Path), required=True,
              help="A folder: a file of JSON Lines for each table, readable by you alone.")  # fmt: skip
@_scope_options
@command_options
@_role
def extract(
    entry: str, out: Path, tables: tuple[str, ...], since: str | None, end: str | None, by: str | None, ticket: str,
    timeout: float, role: str,
) -> None:  # fmt: skip
    """Have the rows of an entry copied, all or a part of them, and write them to files. Each page leaves a row in the
    entry's history."""
    _demand(ticket)
    known, command = settings(), new_id()
    by_whom = who(by, ticket, timeout, role)
    order(known, _ROOM, "extract_disclosure", [entry], by_whom, ids=[command], **_scope(tables, since, end))
    if not timeout:
        click.echo("The extract is ordered.")
        return

    def parts() -> list[dict[str, Any]]:
        found = [one for one in _whole(known, entry, role)["extracts"] if one["command"] == command]
        if not found:
            raise Refused("the extract was refused: see `steward dead-letters list --service retention`")
        return found

    until(timeout, "holders have not copied everything", lambda: all(one["done_at"] is not None for one in parts()))
    files = _written(known, entry, parts()[0]["epoch"], out, role, ticket)
    click.echo("\n".join(str(file) for file in files) or "There are no such rows.")


def _written(known: Mapping[str, str], entry: str, number: int, out: Path, role: str, ticket: str) -> list[Path]:
    """Writes an extract page by page; returns its files."""
    out.mkdir(parents=True, exist_ok=True, mode=0o700)
    files: dict[str, Path] = {}
    at, parts = 0, 1
    while at < parts:
        page = ask_as(role, ticket, known, _ROOM, "disclosure_extract", id=entry, extract=number, part=at)
        parts = page["parts"]
        if page["part"] is not None:
            file = out / f"{page['part']}.jsonl"
            if page["part"] not in files:
                file.unlink(missing_ok=True)
                file.touch(mode=0o600)
            files[page["part"]] = file
            with file.open("a", encoding="utf-8") as lines:
                lines.write(page["lines"] + "\n")
        at += 1
    return list(files.values())


@disclosures.command(
    "end-gag", epilog="Example: steward disclosures end-gag 019ab7d4-... --extend 2027-01-01 --ticket L-9"
)
@click.argument("entry", type=CASE)
@click.option("--extend", help="It was looked at, and lasts until this day or instant (UTC).")
@command_options
@_role
def end_gag(entry: str, extend: str | None, by: str | None, ticket: str, timeout: float, role: str) -> None:
    """End a gag now, so that the person is told; or, with --extend, say until when it lasts."""
    _demand(ticket)
    known = settings()
    before = _whole(known, entry, role)
    if before["state"] != "gagged":
        raise Refused(f"the gag is over: the notice is {before['state']}")
    told = {} if extend is None else {"until": instant("--extend", extend)}
    order(known, _ROOM, "end_gag", [entry], who(by, ticket, timeout, role), **told)
    if timeout:
        after = _whole(known, entry, role)
        if (after["state"], after["gag_until"]) == (before["state"], before["gag_until"]):
            raise Refused("the command was refused: see `steward dead-letters list --service retention`")
    click.echo("The person is told." if extend is None else f"The gag lasts until {told['until']}.")


@disclosures.command(epilog="Example: steward disclosures settle 019ab7d4-... --ticket LEGAL-12")
@click.argument("entry", type=CASE)
@command_options
@_role
def settle(entry: str, by: str | None, ticket: str, timeout: float, role: str) -> None:
    """Answer for a notice that no mail could bring: the person was told otherwise, or cannot be."""
    _demand(ticket)
    known = settings()
    if (state := _whole(known, entry, role)["state"]) != "unheard":
        raise Refused(f"the notice is {state}: there is nothing to settle")
    order(known, _ROOM, "settle_notice", [entry], who(by, ticket, timeout, role))
    click.echo("Settled.")


@disclosures.command("list", epilog="Example: steward disclosures list --json")
@click.option("--limit", type=click.IntRange(1, 1000), default=100, show_default=True)
@_role
@_json
def list_(limit: int, role: str, as_json: bool) -> None:
    """List entries, the newest first. Nobody's id is in it."""
    rows = ask_as(role, _REASON, settings(), _ROOM, "disclosures", limit=limit)
    if as_json:
        click.echo(json.dumps(rows, indent=2))
    elif not rows:
        click.echo("Nothing is disclosed.")
    else:
        _print_list(rows)


@disclosures.command(epilog="Example: steward disclosures show 019ab7d4-...")
@click.argument("entry", type=CASE)
@_role
@_json
def show(entry: str, role: str, as_json: bool) -> None:
    """Show an entry: what it allows, what was extracted, and who did what."""
    row = _whole(settings(), entry, role)
    if as_json:
        click.echo(json.dumps(row, indent=2))
    else:
        _print_one(row)


# --- inside -------------------------------------------------------------------------------------------------------


def _demand(ticket: str) -> None:
    if ticket == "none":
        raise click.UsageError("--ticket: this needs a reason in your own records")


def _scope(tables: Sequence[str], since: str | None, end: str | None) -> dict[str, str]:
    """The command's arguments for a scope."""
    from shared.contract.topics import HOLDERS

    told: dict[str, str] = {}
    for text in tables:
        match = _TABLES.fullmatch(text)
        if match is None or match[1] not in HOLDERS:
            raise click.UsageError(f"--from: HOLDER=TABLE.TABLE, with a holder of {', '.join(HOLDERS)}")
        name = f"from_{match[1]}"
        told[name] = f"{told[name]}.{match[2]}" if name in told else match[2]
    for option, name, value in (("--since", "since", since), ("--until", "until", end)):
        if value is not None:
            told[name] = instant(option, value)
    return told


def _whole(known: Mapping[str, str], entry: str, role: str) -> dict[str, Any]:
    found: dict[str, Any] = ask_as(role, _REASON, known, _ROOM, "disclosure", id=entry)
    return found


def _is_there(known: Mapping[str, str], entry: str, role: str) -> bool:
    return any(row["id"] == entry for row in ask_as(role, _REASON, known, _ROOM, "disclosures", limit=1000))


def _why(row: Mapping[str, Any]) -> str:
    if row["basis"] == "legal_process":
        return f"{row['instrument']} {row['reference']}"
    return f"protects {row['protects']}, {row['decided_by']}"


def _what(row: Mapping[str, Any]) -> str:
    said = ", ".join(f"{holder}.{table}" for holder, tables in row["tables"].items() for table in tables)
    return said if row["since"] is None else f"{said}, {moment(row['since'])} to {moment(row['until'])}"


def _print_list(rows: Sequence[Mapping[str, Any]]) -> None:
    from rich.console import Console
    from rich.table import Table

    table = Table(box=None, pad_edge=False)
    for name in ("entry", "notice", "gag until", "basis", "to", "by"):
        table.add_column(name, no_wrap=name == "entry", overflow="fold")
    for row in rows:
        state = f"[bold red]{row['state']}[/]" if row["needs_person"] else row["state"]
        gag = moment(row["gag_until"])[:10] if row["gag_until"] else ""
        table.add_row(row["id"], state, gag, _why(row), row["authority"], f"{row['actor']}, {row['ticket']}")
    Console(highlight=False).print(table)


def _print_one(row: Mapping[str, Any]) -> None:
    from rich.console import Console
    from rich.table import Table

    console = Console(highlight=False)
    head = Table.grid(padding=(0, 2, 0, 0))
    head.add_row("[dim]entry[/]", f"{row['id']} (of a {row['kind']}), {moment(row['entered_at'])}")
    head.add_row("[dim]basis[/]", _why(row))
    head.add_row("[dim]to[/]", row["authority"])
    head.add_row("[dim]scope[/]", _what(row))
    head.add_row(
        "[dim]notice[/]", row["state"] + (f", gag until {moment(row['gag_until'])}" if row["gag_until"] else "")
    )
    if row["needs_person"]:
        head.add_row("[bold red]needs a person[/]", ", ".join(row["needs_person"]))
    console.print(head)
    for one in row["extracts"]:
        done = "waits" if one["done_at"] is None else f"copied {moment(one['done_at'])}"
        lacks = f", no such rows: {', '.join(one['missing'])}" if one["missing"] else ""
        console.print(f"extract {one['epoch']}: {one['holder']}, {done}{lacks}")
    table = Table(box=None, pad_edge=False)
    for name in ("at", "what", "", "by", "as", "why"):
        table.add_column(name, overflow="fold")
    for each in row["history"]:
        table.add_row(
            moment(each["at"]), each["what"], each["detail"], each["actor"], each["role"], each["reason"]
        )  # fmt: skip
    console.print(table)
