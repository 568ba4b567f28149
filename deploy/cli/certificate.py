"""`steward certificate`: show and verify a certificate of erasure, offline."""

from __future__ import annotations

import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import click
from rich.console import Console, Group
from rich.padding import Padding
from rich.table import Table
from rich.text import Text

from shared.privacy import certificate as certificates

_FILE = click.Path(exists=True, dir_okay=False, path_type=Path)
_WORDS = {
    "delete_row": "deleted",
    "clear": "emptied",
    "pseudonymise": "name removed",
    "retain": "kept",
    "expire": "ends by itself",
    "held": "held",
    "shred": "unreadable: its key is destroyed",
}


@click.group()
def certificate() -> None:
    """Show and verify certificates of erasure. Needs no running stack."""


@certificate.command()
@click.argument("file", type=_FILE)
@click.option("--json", "as_json", is_flag=True, help="As JSON.")
def show(file: Path, as_json: bool) -> None:
    """Show what a certificate says. It is not verified by this: see `verify`.

    Exit codes: 0 shown, 2 not a certificate.
    """
    try:
        document, parsed = certificates.parse(file.read_bytes())
    except certificates.NotACertificate as error:
        click.echo(f"this is not a certificate: {error}", err=True)
        sys.exit(2)
    if as_json:
        click.echo(json.dumps(document, indent=2))
        return
    Console().print(shown(parsed))


@certificate.command()
@click.argument("file", type=_FILE)
@click.option(
    "--trust", "trust", type=_FILE, multiple=True, required=True, help="A public key (PEM) that you trust; repeatable."
)
@click.option("--previous", type=_FILE, help="An earlier certificate: check that the log only grew since.")
@click.option("--json", "as_json", is_flag=True, help="As JSON.")
def verify(file: Path, trust: Sequence[Path], previous: Path | None, as_json: bool) -> None:
    """Verify a certificate with the public keys that you trust.

    Exit codes: 0 valid, 1 invalid, 2 cannot tell (not a certificate, or a key that you do not trust).
    """
    keys = []
    for path in trust:
        try:
            keys.append(certificates.trusted_key(path.read_bytes()))
        except ValueError as error:
            raise click.BadParameter(f"{path.name} is no Ed25519 public key in PEM ({type(error).__name__})") from None
    before = None if previous is None else previous.read_bytes()
    judged = certificates.verify(file.read_bytes(), keys, before)
    if as_json:
        click.echo(json.dumps({"verdict": judged.verdict, "reasons": list(judged.reasons)}))
    else:
        click.echo("\n".join([judged.verdict, *(f"  {reason}" for reason in judged.reasons)]))
    sys.exit(judged.exit_code)


def shown(parsed: certificates.Certificate) -> Group:
    """A certificate as a person wants to read it."""
    head = Table.grid(padding=(0, 2))
    for name, value in (
        ("case", parsed.case),
        ("erased", f"{parsed.scope}, known here only as {parsed.subject}"),
        ("asked for", parsed.requested_at),
        ("confirmed", f"{parsed.confirmed_at}   from here on nothing could be undone"),
        ("completed", f"{parsed.completed_at}   gone from every service"),
        ("certified", f"{parsed.certified_at}   gone from every log, topic and queue as well"),
        ("policy", f"version {parsed.policy.version}"),
    ):
        head.add_row(Text(name, style="dim"), value)
    parts: list[Any] = [Text("Certificate of erasure", style="bold"), Padding(head, (0, 0, 1, 2)), _holders(parsed)]
    if kept := _kept(parsed):
        parts += [Text("What stays, and why", style="bold"), kept]
    seen: dict[str, int] = {}
    for store in parsed.scan:
        seen[store.verdict] = seen.get(store.verdict, 0) + 1
    said = ", ".join(f"{n} {verdict}" for verdict, n in sorted(seen.items()))
    parts += [
        Text("What the auditor saw", style="bold"),
        Padding(f"{len(parsed.scan)} stores looked through at {parsed.scanned_at}: {said}.", (0, 0, 1, 2)),
        Text("Its place in the log", style="bold"),
        Padding(
            f"number {parsed.log.index} of {parsed.log.head.size}, root {parsed.log.head.root[:16]}…, signed by the key "
            f"{parsed.signature.key_id}.\nVerify it: steward certificate verify FILE --trust KEY.pem",
            (0, 0, 0, 2),
        ),
    ]
    return Group(*parts)


def _holders(parsed: certificates.Certificate) -> Table:
    table = Table(title="What was done", title_justify="left", title_style="bold", box=None, header_style="dim")
    for name in ("service", "table", "what became of it"):
        table.add_column(name)
    table.add_column("rows", justify="right")
    waived = {waiver.holder: waiver for waiver in parsed.waived}
    for holder in parsed.holders:
        rows = [t for t in holder.tables if t.action not in ("expire", "retain", "held") and t.rows]
        for number, done in enumerate(rows or [None]):
            name = holder.holder if number == 0 else ""
            if done is None:
                table.add_row(name, "-", "held nothing", "0")
            else:
                table.add_row(name, done.table, _WORDS.get(done.action, done.action), f"{done.rows:,}")
    for name, waiver in waived.items():
        table.add_row(name, "-", f"no answer: waived by {waiver.by} ({waiver.ticket}) at {waiver.at}", "")
    return table


def _kept(parsed: certificates.Certificate) -> Table | None:
    """What stays, by service and reason; tables that stay for the same one are one line."""
    table = Table(box=None, header_style="dim")
    for name in ("service", "tables", "why", "until"):
        table.add_column(name)
    groups: dict[tuple[str, str, str], list[str]] = {}
    for holder in parsed.holders:
        for done in holder.tables:
            if done.retained is not None:
                why, until = done.retained.ground.replace("_", " "), done.retained.until
            elif done.action == "expire" and done.not_after:
                why, until = "leads to nobody, ends by itself", done.not_after
            else:
                continue
            groups.setdefault((holder.holder, why, until[:10]), []).append(done.table)
    for (name, why, until), tables in groups.items():
        table.add_row(
            name, ", ".join(tables[:3]) + (f" and {len(tables) - 3} more" if len(tables) > 3 else ""), why, until
        )
    for held in parsed.held:
        table.add_row(
            held.holder, held.table, f"legal hold: {held.ground.replace('_', ' ')}", held.until or "its release"
        )
    return table if table.row_count else None
