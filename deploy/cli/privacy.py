"""`steward privacy request | verify | confirm | export | mail | withdraw | status | list ...`: what people may ask for."""

from __future__ import annotations

import asyncio
import json
import os
import re
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import IO, Any, TypeVar

import click

from deploy.cli import staff
from deploy.cli.ask import ask, ask_because, settings
from deploy.cli.case_page import show, shown, table
from deploy.cli.command import new_id, publish, until
from deploy.cli.errors import Refused
from deploy.cli.shapes import CASE, CODE, ID, RECIPIENT, instant

_ROOM = "retention"
_JUDGE = "notifications"
_PACE = 0.5
_OPEN = ("triage", "requested", "working", "packing")
_ENDED = ("certified", "withdrawn", "lapsed", "fulfilled", "denied")
_KINDS = ("erasure", "access", "portability", "access:categories", "rectification", "sale:opt-out", "child_report")
_PACKAGED = ("access", "portability", "access:categories")
_LEAST = 12
_F = TypeVar("_F", bound=Callable[..., Any])
_json = click.option("--json", "as_json", is_flag=True, help="For programs.")
_timeout = click.option(
    "--timeout", type=click.FloatRange(min=0), default=60.0, show_default=True, help="Seconds to wait; 0 does not wait."
)
_account = click.option("--account", required=True, type=ID, help="The account that asks, or that owns the workspace.")


def _opener(function: _F) -> _F:
    """What opens a package: a passphrase, never on the command line, or a public key."""
    for option in (
        click.option("--passphrase-file", type=click.Path(exists=True, dir_okay=False, path_type=Path),
                     help=f"A file with the passphrase, {_LEAST} characters or more  [or: STEWARD_PASSPHRASE]."),
        click.option("--recipient", type=RECIPIENT, help="A public key of the age format (age1...), instead."),
    ):  # fmt: skip
        function = option(function)
    return function


@click.group(context_settings={"help_option_names": ["-h", "--help"]})
def privacy() -> None:
    """What people may ask for: deletion, a copy, a correction.

    A request for a deletion deletes nothing: the code from the mail does. From then on nobody can undo it.
    """


for _command in staff.COMMANDS:
    privacy.add_command(_command)


@privacy.command(epilog="Example: steward privacy request --kind access --account acc-71 --passphrase-file pass.txt")
@click.option("--kind", type=click.Choice(_KINDS), default="erasure", show_default=True, help="What is asked for.")
@click.option("--scope", type=click.Choice(["account", "workspace", "member"]), default="account", show_default=True,
              help="About what.")  # fmt: skip
@_account
@click.option("--target", type=ID, help="The account, workspace or member  [default for an account: the account].")
@click.option("--channel", type=click.Choice(["settings", "api", "support"]), default="support", show_default=True,
              help="Signed in, by the account's key, or by mail to support.")  # fmt: skip
@click.option("--ccpa", is_flag=True, help="The request invokes the CCPA.")
@click.option("--since", help="A copy from this day or instant on (UTC) ...")
@click.option("--until", "end", help="... to this one, excluded.")
@_opener
@click.option("--field", type=click.Choice(["address", "name", "key_name"]), help="What a correction is about.")
@click.option("--key", type=ID, help="The API key whose name is wrong.")
@click.option(
    "--value-file", type=click.File("r", encoding="utf-8"), help="A file with what is right; - reads it from here."
)
@click.option("--agent", type=ID, help="Who asks for somebody else.")
@click.option("--authorisation", type=ID, help="The agent's written authorisation, in your own records.")
@click.option(
    "--reply-to-file",
    type=click.File("r", encoding="utf-8"),
    help="A file with the address of the agent, or of who reports a child.",
)
@_timeout
@_json
def request(
    kind: str, scope: str, account: str, target: str | None, channel: str, ccpa: bool, since: str | None, end: str | None,
    passphrase_file: Path | None, recipient: str | None, field: str | None, key: str | None, value_file: Any,
    agent: str | None, authorisation: str | None, reply_to_file: Any, timeout: float, as_json: bool,
) -> None:  # fmt: skip
    """Open a case for somebody who asks for something."""
    if target is None and scope != "account":
        raise click.UsageError("--target: which one?")
    if kind == "rectification" and (field is None or value_file is None):
        raise click.UsageError("--field and --value-file: a correction says what is wrong, and what is right")
    since, end = _span(since, end)
    known = settings()
    secrets = {
        "passphrase": _passphrase(passphrase_file) if kind in _PACKAGED else None,
        "value": None if value_file is None else _text("--value-file", value_file),
        "reply_to": None if reply_to_file is None else _text("--reply-to-file", reply_to_file),
    }
    data = {
        "kind": kind, "scope": scope, "account": account, "target": target or account, "channel": channel,
        "regime": "ccpa" if ccpa else "voluntary", "since": since, "until": end, "recipient": recipient, "field": field,
        "key": key, "representative": agent, "authorisation": authorisation, **_sealed(known, secrets),
    }  # fmt: skip
    _ask(known, account, data, timeout, as_json)


@privacy.command(epilog="Example: steward privacy export --account acc-71 --workspace ws-204 --since 2026-11-01T00:00:00Z "
                 "--passphrase-file pass.txt")  # fmt: skip
@_account
@click.option("--workspace", type=ID, help="Only of this one.")
@click.option("--since", help="From this day or instant on (UTC) ...")
@click.option("--until", "end", help="... to this one, excluded.")
@_opener
@_timeout
@_json
def export(
    account: str, workspace: str | None, since: str | None, end: str | None, passphrase_file: Path | None,
    recipient: str | None, timeout: float, as_json: bool,
) -> None:  # fmt: skip
    """Export usage, as the settings do: the link goes to the account's address. Shows how far it is.

    `steward package fetch` and `open` take it from there.
    """
    since, end = _span(since, end)
    known = settings()
    passphrase = _passphrase(passphrase_file)
    if passphrase is None and recipient is None:
        raise click.UsageError("--passphrase-file, STEWARD_PASSPHRASE or --recipient: what is to open it?")
    data = {
        "kind": "portability", "scope": "workspace" if workspace else "account", "account": account,
        "target": workspace or account, "channel": "settings", "since": since, "until": end, "recipient": recipient,
        **_sealed(known, {"passphrase": passphrase}),
    }  # fmt: skip
    case = new_id()
    from shared.contract import events

    _say(known, events.PrivacyRequested, account, data, case)
    if timeout:
        row = _follow(known, case, timeout, quiet=as_json)
        if row["state"] in ("denied", "withdrawn"):
            raise Refused(f"the export is {row['state']}: see `steward privacy status {case}`")
    click.echo(json.dumps({"case": case}) if as_json else f"{case}: the link is in the mail.")


@privacy.command(
    epilog="Example: steward privacy mail --from-file sender.txt --subject 'CCPA Request' --account acc-71"
)
@click.option("--subject", required=True, help="The subject line.")
@click.option(
    "--from-file",
    "sender",
    type=click.File("r", encoding="utf-8"),
    required=True,
    help="A file with the sender's address.",
)
@click.option("--account", type=ID, help="Whose address that is, if it is anybody's.")
@click.option("--reference", type=ID, default="by-hand", show_default=True, help="The mail, in your own records.")
@_timeout
@_json
def mail(subject: str, sender: Any, account: str | None, reference: str, timeout: float, as_json: bool) -> None:
    """Enter a mail to support that has to do with privacy. With the policy's subject line it opens a request; a person says
    what any other is about (`steward privacy triage`)."""
    from shared.contract import events

    known = settings()
    data = {
        "mail": reference, "account": account,
        **_sealed(known, {"subject_line": subject, "sender": _text("--from-file", sender)}),
    }  # fmt: skip
    _ask(known, reference, data, timeout, as_json, model=events.SupportMailReceived)


@privacy.command(epilog="Example: steward privacy confirm 019ab7d4-... --account acc-71 --code 7KQ2M9XA")
@click.argument("case", type=CASE)
@_account
@click.option("--code", required=True, type=CODE, help="From the mail.")
@click.option("--successor", "successors", multiple=True, metavar="WORKSPACE=MEMBER",
              help="Who takes a workspace over that would be without an administrator; may be repeated.")  # fmt: skip
@_timeout
@_json
def confirm(case: str, account: str, code: str, successors: tuple[str, ...], timeout: float, as_json: bool) -> None:
    """Say the last word of a deletion. Nobody can undo it."""
    named = dict(_pair(text) for text in successors)
    if (kind := ask(settings(), _ROOM, "case", id=case)["kind"]) != "erasure":
        raise Refused(f"this is no deletion ({kind}): its code goes to `steward privacy verify`")
    row = _prove(case, {"account": account, "code": code, "successors": named}, timeout)
    if row is None:
        click.echo(json.dumps({"sent": True}) if as_json else "The confirmation is sent.")
    else:
        click.echo(json.dumps({"case": row["id"], "state": row["state"]}) if as_json else "Confirmed: it is under way.")


@privacy.command(epilog="Example: steward privacy verify 019ab7d4-... --account acc-71 --code 7KQ2M9XA")
@click.argument("case", type=CASE)
@_account
@click.option("--code", required=True, type=CODE, help="From the mail.")
@_opener
@_timeout
@_json
def verify(
    case: str,
    account: str,
    code: str,
    passphrase_file: Path | None,
    recipient: str | None,
    timeout: float,
    as_json: bool,
) -> None:
    """Prove who asks, by the code from the mail; say what opens the package, if the request has not."""
    known = settings()
    if ask(known, _ROOM, "case", id=case)["kind"] == "erasure":
        raise Refused("this is a deletion: its last word is `steward privacy confirm`, and nobody can undo it")
    secrets = _sealed(known, {"passphrase": _passphrase(passphrase_file)})
    row = _prove(case, {"account": account, "code": code, "recipient": recipient, **secrets}, timeout)
    if as_json:
        click.echo(json.dumps({"sent": True} if row is None else {"case": row["id"], "state": row["state"]}))
    else:
        click.echo(
            "The code is sent." if row is None else "Proved." if not row["proofs_needed"] else "Proved; one is missing."
        )


@privacy.command(epilog="Example: steward privacy withdraw 019ab7d4-... --account acc-71")
@click.argument("case", type=CASE)
@_account
@_timeout
def withdraw(case: str, account: str, timeout: float) -> None:
    """Take a request back, as long as it is not answered; a deletion, as long as it is not confirmed."""
    from shared.contract import events

    known = settings()
    row = ask(known, _ROOM, "case", id=case)
    if row["kind"] == "child_report":
        raise Refused("a person decides about a report of a child, nobody takes it back: `steward privacy decide`")
    if row["state"] not in _OPEN:
        raise Refused(f"the case is {row['state']}: there is nothing left to take back")
    _say(known, events.PrivacyWithdrawn, account, {"case": case, "account": account})
    if timeout:
        row = _wait(known, case, timeout, lambda row: row["state"] not in _OPEN, "the case is not withdrawn")
        if row["state"] != "withdrawn":
            raise Refused(f"it was too late: the case is {row['state']}")
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
            show(shown(row))
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
        show(table(rows))


def _say(
    known: Mapping[str, str], model: Any, account: str, data: Mapping[str, Any], event_id: str | None = None
) -> None:
    from shared.contract.topics import PRIVACY_REQUESTS

    ids = [event_id or new_id()]
    asyncio.run(publish(known, PRIVACY_REQUESTS, model, account, [(account, data)], ids=ids))


def _wait(
    known: Mapping[str, str], case: str, timeout: float, condition: Callable[[dict[str, Any]], bool], trouble: str, *,
    judge: str = _ROOM,
) -> dict[str, Any]:  # fmt: skip
    """The case as soon as `condition` holds; of one that never opens, the reason stands in the dead letters of `judge`."""
    found: dict[str, Any] = {}

    def there() -> bool:
        try:
            found.update(ask(known, _ROOM, "case", id=case))
        except Refused:
            return False
        return condition(found)

    until(timeout, f"{trouble} (see `steward dead-letters list --service {judge}`)", there)
    return found


@privacy.command(epilog="Example: steward privacy held acc-71 --reason SUP-4711")
@click.argument("subject", type=ID)
@click.option(
    "--kind", type=click.Choice(["account", "workspace", "member", "key"]), default="account", show_default=True
)
@click.option("--reason", required=True, help="The ticket or case for which you look.")
@click.option("--limit", type=click.IntRange(1, 10_000), default=100, show_default=True, help="Rows of a table.")
@_json
def held(subject: str, kind: str, reason: str, limit: int, as_json: bool) -> None:
    """Show what is held of somebody right now, as a copy would have it; every look is logged with its reason.

    Security shows nothing here: its rows are for a flagged case alone, and for the person's own copy.
    """
    from rich.table import Table

    known = settings()
    found = {
        room: ask_because(reason, known, room, "held", kind=kind, id=subject, limit=limit)
        for room in ("retention", "notifications", "metering", "billing", "insights")
    }
    if as_json:
        click.echo(json.dumps(found, indent=2))
        return
    page = Table(box=None, pad_edge=False)
    for name in ("holder", "table", "rows", "what"):
        page.add_column(name, justify="right" if name == "rows" else "left", overflow="fold")
    for room, said in found.items():
        for name, rows in said["tables"].items():
            more = "+" if said["truncated"] and len(rows) == limit else ""
            what = ", ".join(str(key) for key, value in rows[0].items() if value is not None) if rows else ""
            if rows:
                page.add_row(room, name, f"{len(rows):,}{more}", what)
    show(page)


# --- inside -------------------------------------------------------------------------------------------------------


def _ask(
    known: Mapping[str, str], key: str, data: Mapping[str, Any], timeout: float, as_json: bool, *, model: Any = None
) -> None:
    """Sends a request and prints the case that it opened or joined."""
    from shared.contract import events

    case = joined = new_id()
    _say(known, model or events.PrivacyRequested, key, data, case)
    if timeout:
        joined = _wait(known, case, timeout, lambda row: True, "the case is not open")["id"]
    if as_json:
        click.echo(json.dumps({"case": joined, "request": case}, indent=2))
        return
    click.echo(joined)
    if joined != case:
        click.echo("The same wish is under way already: this is its case.", err=True)


def _prove(case: str, data: Mapping[str, Any], timeout: float) -> dict[str, Any] | None:
    """Gives a code back, and waits until it is judged; None without waiting. Ends the command for a wrong one."""
    from shared.contract import events

    known = settings()
    before = ask(known, _ROOM, "case", id=case)
    if before["state"] not in ("triage", "requested"):
        raise Refused(f"the case is {before['state']}: it waits for no code")
    _say(known, events.PrivacyConfirmed, data["account"], {"case": case, **data})
    if not timeout:
        return None
    row = _wait(
        known, case, timeout,
        lambda row: _proofs(row) != _proofs(before),
        "nothing came of the code: it was used before, or the case is not this account's",
        judge=_JUDGE,
    )  # fmt: skip
    if _proofs(row)[:3] == _proofs(before)[:3]:
        raise Refused(
            "the code is right, but nobody has said what opens the package: give --passphrase-file or --recipient "
            "with the code of the next mail"
        )
    if row["attempts"] == before["attempts"] and row["state"] in ("withdrawn", "lapsed", "denied"):
        raise Refused(f"it was too late: the case is {row['state']}")
    if row["attempts"] > before["attempts"]:
        raise Refused(
            f"the code is wrong ({row['attempts']} of 5 attempts)"
            if row["state"] in ("requested", "triage")
            else "the code is wrong, and the request has lapsed: ask again"
        )
    return row


def _proofs(row: Mapping[str, Any]) -> tuple[Any, ...]:
    """What changes when a code is judged."""
    without = sum(one["what"] == "proved_without_opener" for one in row["history"])
    return row["state"], row["attempts"], row["proofs_needed"], without


def _follow(known: Mapping[str, str], case: str, timeout: float, *, quiet: bool) -> dict[str, Any]:
    """Waits for an answer, and shows which holders have given their part."""
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
    with Progress(*columns, console=Console(stderr=True), disable=quiet, transient=True) as progress:
        bar = progress.add_task("waiting", total=None)

        def there(row: dict[str, Any]) -> bool:
            # The holders' parts, the package, and the mail.
            total = len(row["holders"]) + 2 if row["holders"] else None
            done = sum(one["state"] in ("done", "waived") for one in row["holders"].values())
            done += (row["state"] in ("answering", *_ENDED)) + (row["state"] in _ENDED)
            progress.update(bar, total=total, completed=done, description=row["state"])
            return row["state"] in _ENDED

        return _wait(known, case, timeout, there, "it is not answered")


def _sealed(known: Mapping[str, str], secrets: Mapping[str, str | None]) -> dict[str, str]:
    """What only the mesh may read, sealed to today's key; what is not said is left out."""
    from shared.contract.sealing import decoded, seal

    said = {name: value for name, value in secrets.items() if value is not None}
    if not said:
        return {}
    key = ask(known, _ROOM, "ingress")
    return {name: seal(value, key["id"], decoded(key["public_key"])) for name, value in said.items()}


def _text(option: str, file: IO[str]) -> str:
    """What a file says that was named with `option`. Ends the command when that is nothing, or no text."""
    try:
        text = file.read().strip()
    except UnicodeDecodeError:
        raise click.UsageError(f"{option}: the file is no text in UTF-8") from None
    if not text:
        raise click.UsageError(f"{option}: the file is empty")
    return text


def _passphrase(file: Path | None) -> str | None:
    text = os.environ.get("STEWARD_PASSPHRASE")
    if file is not None:
        with file.open(encoding="utf-8") as opened:
            text = _text("--passphrase-file", opened)
    if text is not None and len(text) < _LEAST:
        raise click.UsageError(f"a passphrase has {_LEAST} characters or more")
    return text


def _span(since: str | None, end: str | None) -> tuple[str | None, str | None]:
    return (
        None if since is None else instant("--since", since),
        None if end is None else instant("--until", end),
    )


def _pair(text: str) -> tuple[str, str]:
    workspace, equals, member = text.partition("=")
    if not equals or not re.fullmatch(ID.pattern, workspace) or not re.fullmatch(ID.pattern, member):
        raise click.UsageError("--successor: WORKSPACE=MEMBER, two ids")
    return workspace, member
