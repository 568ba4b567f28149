"""`steward privacy request | confirm | withdraw | status | list | sweep | retry | waive`: deletions, from outside."""

from __future__ import annotations

import asyncio
import json
import re
import time
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, TypeVar

import click

from deploy.cli.ask import ask, moment, settings
from deploy.cli.command import command_options, new_id, order, publish, until, who
from deploy.cli.errors import Refused

if TYPE_CHECKING:
    from rich.console import RenderableType

_ROOM = "retention"
_ID = r"[A-Za-z0-9][A-Za-z0-9_.:-]{0,63}"
_CASE = r"[0-9a-f]{8}-[0-9a-f]{4}-7[0-9a-f]{3}-[89ab][0-9a-f]{3}-[0-9a-f]{12}"
_PACE = 0.5
_ENDED = ("certified", "withdrawn", "lapsed")
_COLOURS = {
    "done": "green", "certified": "green", "completed": "green", "waived": "yellow", "waiting": "cyan", "later": "dim",
    "silent": "bold red", "residue": "bold red", "not_scanned": "bold red", "clean": "green", "shredded": "green",
    "retained": "yellow", "held": "yellow", "expiring": "cyan",
}  # fmt: skip
_F = TypeVar("_F", bound=Callable[..., Any])
_json = click.option("--json", "as_json", is_flag=True, help="For programs.")
_timeout = click.option(
    "--timeout", type=click.FloatRange(min=0), default=60.0, show_default=True, help="Seconds to wait; 0 does not wait."
)


class _Shaped(click.ParamType):  # type: ignore[type-arg]
    """A text of a shape that the contract demands; what does not fit is never sent."""

    def __init__(self, name: str, pattern: str) -> None:
        self.name, self._pattern = name, re.compile(pattern)

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> str:
        if not self._pattern.fullmatch(str(value)):
            self.fail(f"this is no {self.name} of the contract", param, ctx)
        return str(value)


ID = _Shaped("id", _ID)
CASE = _Shaped("case", _CASE)
CODE = _Shaped("code", r"[0-9A-Z]{8}")
_account = click.option("--account", required=True, type=ID, help="The account that asks, or that owns the workspace.")


@click.group(context_settings={"help_option_names": ["-h", "--help"]})
def privacy() -> None:
    """Ask for a deletion, confirm it, and see how it goes round.

    A request deletes nothing: the code from the mail does. From then on nobody can undo it.
    """


@privacy.command(epilog="Example: steward privacy request --scope workspace --account acc-71 --target ws-204")
@click.option("--scope", type=click.Choice(["account", "workspace", "member"]), required=True, help="What is deleted.")
@_account
@click.option("--target", type=ID, help="The account, workspace or member  [default for an account: the account].")
@click.option("--channel", type=click.Choice(["settings", "support"]), default="support", show_default=True,
              help="Signed in, or by mail to support.")  # fmt: skip
@_timeout
@_json
def request(scope: str, account: str, target: str | None, channel: str, timeout: float, as_json: bool) -> None:
    """Open a case for somebody who asks for a deletion; the account gets a mail with a code."""
    from shared.contract import events

    if target is None and scope != "account":
        raise click.UsageError("--target: which one?")
    known, case = settings(), new_id()
    data = {"kind": "erasure", "scope": scope, "account": account, "target": target or account, "channel": channel}
    _say(known, events.PrivacyRequested, account, data, case)
    joined = case
    if timeout:
        row = _wait(known, case, timeout, lambda row: True, "the case is not open")
        joined = row["id"]
    if as_json:
        click.echo(json.dumps({"case": joined, "request": case}, indent=2))
    else:
        click.echo(joined)
        if joined != case:
            click.echo("The same wish is under way already: this is its case.", err=True)


@privacy.command(epilog="Example: steward privacy confirm 019ab7d4-... --account acc-71 --code 7KQ2M9XA")
@click.argument("case", type=CASE)
@_account
@click.option("--code", required=True, type=CODE, help="From the mail.")
@click.option("--successor", "successors", multiple=True, metavar="WORKSPACE=MEMBER",
              help="Who takes a workspace over that would be without an administrator; may be repeated.")  # fmt: skip
@_timeout
@_json
def confirm(case: str, account: str, code: str, successors: tuple[str, ...], timeout: float, as_json: bool) -> None:
    """Say the last word. Nobody can undo it."""
    from shared.contract import events

    named = dict(_pair(text) for text in successors)
    known = settings()
    before = ask(known, _ROOM, "case", id=case)
    _say(known, events.PrivacyConfirmed, account, {"case": case, "account": account, "code": code, "successors": named})
    if not timeout:
        click.echo(json.dumps({"sent": True}) if as_json else "The confirmation is sent.")
        return
    row = _wait(
        known, case, timeout,
        lambda row: row["state"] != "requested" or row["attempts"] > before["attempts"], "the code is not judged",
    )  # fmt: skip
    if row["state"] in ("requested", "lapsed"):
        raise Refused(
            "the code is wrong, and the request has lapsed: ask again"
            if row["state"] == "lapsed"
            else f"the code is wrong ({row['attempts']} of 5 attempts)"
        )
    click.echo(json.dumps({"case": row["id"], "state": row["state"]}) if as_json else "Confirmed: it is under way.")


def _pair(text: str) -> tuple[str, str]:
    workspace, equals, member = text.partition("=")
    if not equals or not re.fullmatch(_ID, workspace) or not re.fullmatch(_ID, member):
        raise click.UsageError("--successor: WORKSPACE=MEMBER, two ids")
    return workspace, member


@privacy.command(epilog="Example: steward privacy withdraw 019ab7d4-... --account acc-71")
@click.argument("case", type=CASE)
@_account
@_timeout
def withdraw(case: str, account: str, timeout: float) -> None:
    """Take a request back, as long as it is not confirmed."""
    from shared.contract import events

    known = settings()
    if (state := ask(known, _ROOM, "case", id=case)["state"]) != "requested":
        raise Refused(f"the case is {state}: there is nothing left to take back")
    _say(known, events.PrivacyWithdrawn, account, {"case": case, "account": account})
    if timeout:
        _wait(known, case, timeout, lambda row: row["state"] != "requested", "the case is not withdrawn")
        click.echo("Withdrawn.")
    else:
        click.echo("The withdrawal is sent.")


@privacy.command(epilog="Example: steward privacy status 019ab7d4-... --watch")
@click.argument("case", type=CASE)
@click.option("--watch", is_flag=True, help="Follow it until it is certified.")
@_json
def status(case: str, watch: bool, as_json: bool) -> None:
    """Show a case: its holders, what they did and kept, what the auditor saw, and its clocks."""
    known = settings()
    row = ask(known, _ROOM, "case", id=case)
    if not watch:
        if as_json:
            click.echo(json.dumps(row, indent=2))
        else:
            _print(shown(row))
        return
    if as_json:
        raise click.UsageError("--watch is for eyes: without --json")
    from rich.console import Console
    from rich.live import Live

    with Live(shown(row), console=Console(highlight=False), refresh_per_second=4) as live:
        while row["state"] not in _ENDED:
            time.sleep(_PACE)
            row = ask(known, _ROOM, "case", id=case)
            live.update(shown(row))


@privacy.command(epilog="Example: steward privacy certificate 019ab7d4-... > certificate.json")
@click.argument("case", type=CASE)
def certificate(case: str) -> None:
    """Print the certificate of a certified case; `steward certificate` shows and verifies it.

    Exit code 1 when the case is not certified.
    """
    click.echo(json.dumps(ask(settings(), _ROOM, "certificate", case=case), indent=2))


@privacy.command("list", epilog="Example: steward privacy list --all --json")
@click.option("--all", "everything", is_flag=True, help="Ended cases, too.")
@click.option("--limit", type=click.IntRange(1, 1000), default=100, show_default=True)
@_json
def list_(everything: bool, limit: int, as_json: bool) -> None:
    """List open cases, the newest first."""
    rows = ask(settings(), _ROOM, "cases", limit=limit, all="yes" if everything else "no")
    if as_json:
        click.echo(json.dumps(rows, indent=2))
    elif not rows:
        click.echo("No case is open." if not everything else "There are no cases.")
    else:
        _print(_table(rows))


@privacy.command(epilog="Example: steward privacy sweep 019ab7d4-...")
@click.argument("case", type=CASE, required=False)
@command_options
def sweep(case: str | None, by: str | None, ticket: str, timeout: float) -> None:
    """Order the deep scan now that certifies a completed case (or all of them)."""
    _command("sweep_case", case or "all", by, ticket, timeout)
    click.echo("The sweep is ordered.")


@privacy.command(epilog="Example: steward privacy retry 019ab7d4-... --ticket OPS-381")
@click.argument("case", type=CASE)
@command_options
def retry(case: str, by: str | None, ticket: str, timeout: float) -> None:
    """Go on with a case that needed a person: what is owed is ordered now, and erased again where residue was."""
    _command("retry_case", case, by, ticket, timeout)
    click.echo("It goes on.")


@privacy.command(epilog="Example: steward privacy waive 019ab7d4-... --holder insights --ticket OPS-381")
@click.argument("case", type=CASE)
@click.option("--holder", required=True, help="The holder that is gone.")
@command_options
def waive(case: str, holder: str, by: str | None, ticket: str, timeout: float) -> None:
    """Answer for a holder that is gone for good; the certificate says so, with your name."""
    known = settings()
    row = ask(known, _ROOM, "case", id=case)
    if holder not in row["holders"]:
        raise Refused(f"the case does not expect {holder}: it expects {', '.join(row['holders']) or 'nobody yet'}")
    if ticket == "none":
        raise click.UsageError("--ticket: a waiver needs a reason in your own records")
    _command("waive_holder", case, by, ticket, timeout, holder=holder)
    click.echo(f"{holder} is waived.")


def _command(action: str, target: str, by: str | None, ticket: str, timeout: float, **arguments: str) -> None:
    known = settings()
    if target != "all":
        target = ask(known, _ROOM, "case", id=target)["id"]
    order(known, _ROOM, action, [target], who(by, ticket, timeout), **arguments)


def _say(
    known: Mapping[str, str], model: Any, account: str, data: Mapping[str, Any], event_id: str | None = None
) -> None:
    from shared.contract.topics import PRIVACY_REQUESTS

    ids = [event_id or new_id()]
    asyncio.run(publish(known, PRIVACY_REQUESTS, model, account, [(account, data)], ids=ids))


def _wait(
    known: Mapping[str, str], case: str, timeout: float, condition: Callable[[dict[str, Any]], bool], trouble: str
) -> dict[str, Any]:
    """The case as soon as `condition` holds; of one that never opens, the reason stands in the dead letters."""
    found: dict[str, Any] = {}

    def there() -> bool:
        try:
            found.update(ask(known, _ROOM, "case", id=case))
        except Refused:
            return False
        return condition(found)

    until(timeout, f"{trouble} (see `steward dead-letters list`)", there)
    return found


# --- for eyes -----------------------------------------------------------------------------------------------------


def _print(what: RenderableType) -> None:
    from rich.console import Console

    Console(highlight=False).print(what)


def _coloured(word: str) -> str:
    colour = _COLOURS.get(word)
    return f"[{colour}]{word}[/]" if colour else word


def _table(rows: Sequence[Mapping[str, Any]]) -> RenderableType:
    from rich.table import Table

    table = Table(box=None, pad_edge=False)
    for name in ("case", "scope", "state", "due", "waits for"):
        table.add_column(name, no_wrap=name != "waits for", overflow="fold")
    for row in rows:
        trouble = ", ".join(row["needs_person"]) or ("at risk" if row["at_risk"] else "")
        # The day is enough here, so that 80 columns hold a case; `status` has the instants.
        due = moment(row["due_at"])[:10] if row["due_at"] else ""
        waits = f"[bold red]{trouble}[/]" if trouble else ", ".join(row["missing"])
        table.add_row(row["id"], row["scope"], _coloured(row["state"]), due, waits)
    return table


def shown(row: Mapping[str, Any]) -> RenderableType:
    """A case on a page."""
    from rich.console import Group

    parts: list[RenderableType] = [_head(row)]
    if row["holders"]:
        parts += ["", _holders(row)]
    if row["receipts"]:
        parts += ["", _receipts(row)]
    if row["scans"]:
        parts += ["", _scan(row["scans"][-1])]
    for hold in row["holds"]:
        parts.append(
            f"hold {hold['id']}: {hold['holder']}.{hold['table']}, {_rows_of(hold)}{hold['ground']} until "
            f"{moment(hold['until'])}, {_coloured(hold['state'])}"
        )
    return Group(*parts)


def _rows_of(hold: Mapping[str, Any]) -> str:
    return "" if hold["rows"] is None else f"{hold['rows']:,} rows, "


def _head(row: Mapping[str, Any]) -> RenderableType:
    from rich.table import Table

    table = Table.grid(padding=(0, 2, 0, 0))
    about = f"{row['scope']}, {row['subjects']} subjects" if row["subjects"] else row["scope"]
    table.add_row("[dim]case[/]", f"{row['id']} ({row['kind']} of {about})")
    table.add_row("[dim]state[/]", _coloured(row["state"]))
    for name in ("requested_at", "confirmed_at", "completed_at", "ended_at"):
        if row[name]:
            table.add_row(f"[dim]{name.removesuffix('_at')}[/]", moment(row[name]))
    for clock in row["clocks"]:
        said = f"{clock['name']} due {moment(clock['due_at'])}" + ("" if clock["open"] else ", met")
        if clock["open"] and clock["forecast_at"] and clock["forecast_at"] >= clock["due_at"]:
            said += f", [bold red]forecast {moment(clock['forecast_at'])}[/]"
        table.add_row("[dim]clock[/]", said)
    for mail in row["mails"]:
        table.add_row("[dim]mail[/]", f"{mail['template']}: {mail['outcome'] or 'on its way'}")
    if row["needs_person"]:
        table.add_row("[bold red]needs a person[/]", ", ".join(row["needs_person"]))
    return table


def _holders(row: Mapping[str, Any]) -> RenderableType:
    from rich.table import Table

    table = Table(box=None, pad_edge=False)
    for name in ("holder", "state", "epoch", "orders sent", ""):
        table.add_column(name, justify="right" if name in ("epoch", "orders sent") else "left")
    everybody = {**row["holders"], **({"audit": row["auditor"]} if row["auditor"] else {})}
    for name, one in everybody.items():
        note = f"waived by {one['waived_by']}, {one['ticket']}" if one["waived_by"] else ""
        table.add_row(name, _coloured(one["state"]), str(one["epoch"] or ""), str(one["sends"] or ""), note)
    return table


def _receipts(row: Mapping[str, Any]) -> RenderableType:
    """What each holder did. Tables without a row of the subject are counted; what is kept alike is one line."""
    from rich.table import Table

    table = Table(box=None, pad_edge=False)
    for name in ("receipt", "table", "action", "rows", "left", "kept"):
        table.add_column(name, justify="right" if name in ("rows", "left") else "left", overflow="fold")
    for receipt in row["receipts"]:
        where = f"{receipt['holder']} {receipt['epoch']}"
        done, empty = [], 0
        kept: dict[tuple[str, str], list[str]] = {}
        for treated in receipt["body"]["treated"]:
            if treated["retained"]:
                note = (
                    f"{treated['retained']['ground'].replace('_', ' ')}, until {moment(treated['retained']['until'])}"
                )
                kept.setdefault(("retained", note), []).append(treated["table"])
            elif treated["not_after"]:
                note = f"leads to nobody, ends by itself before {moment(treated['not_after'])}"
                kept.setdefault(("left", note), []).append(treated["table"])
            elif treated["rows"] or treated["remaining"]:
                done.append(treated)
            else:
                empty += 1
        for one in done:
            table.add_row(where, one["table"], one["action"], f"{one['rows']:,}", f"{one['remaining']:,}", "")
            where = ""
        if empty:
            table.add_row(where, f"{empty} others" if done else f"{empty} tables", "held nothing", "0", "0", "")
            where = ""
        for (action, note), tables in kept.items():
            table.add_row(where, tables[0] if len(tables) == 1 else f"{len(tables)} tables", action, "", "", note)
            where = ""
    return table


def _scan(scan: Mapping[str, Any]) -> RenderableType:
    from rich.table import Table

    table = Table(
        title=f"{scan['action']} {scan['epoch']}, {moment(scan['arrived_at'])}", title_justify="left", box=None
    )
    for name in ("holder", "store", "verdict", "hits", ""):
        table.add_column(name, justify="right" if name == "hits" else "left", overflow="fold")
    clean = sum(one["verdict"] == "clean" for one in scan["stores"])
    for one in scan["stores"]:
        if one["verdict"] != "clean":
            note = ", ".join(filter(None, (one["ground"], one["not_after"] and f"until {moment(one['not_after'])}")))
            table.add_row(one["holder"], one["store"], _coloured(one["verdict"]), f"{one['count']:,}", note)
    rest = "all" if clean == len(scan["stores"]) else "the others"
    table.add_row(rest, f"{clean} stores", _coloured("clean"), "0", "")
    return table
