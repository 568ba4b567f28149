"""`steward check | explain | balance`: questions to the books."""

from __future__ import annotations

import asyncio
import json
import sys
from collections.abc import Iterator, Mapping, Sequence
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any

import click

from deploy.cli.ask import ask, settings
from deploy.cli.errors import Refused

if TYPE_CHECKING:
    from rich.console import Console, RenderableType
    from rich.table import Table

_CLASSES = ("rated", "duplicates", "quarantined", "dead_lettered", "erased")


async def prove(known: Mapping[str, str]) -> dict[str, Any]:
    """The proof of `steward check` on the stack with these settings, as its JSON."""
    from services.audit.app import Sources
    from services.audit.app import prove as prove_from

    verdict, _ = await prove_from(Sources.from_env(known), datetime.now(UTC))
    return verdict.as_dict()


@click.command(epilog="Example: steward wait --idle && steward check --json")
@click.option("--json", "as_json", is_flag=True, help="For programs; money as decimal strings of pico-dollars.")
def check(as_json: bool) -> None:
    """Prove that the books are right, now, on the running mesh.

    Every event is in exactly one class, every rated line is booked or on its way, every charge is recomputed
    by other code, every journal balances, balances are the replay of their entries, the hash chain is whole.
    Needs the databases, not the services.

    Exit code 0 when all of that holds, 1 when the books are wrong, 2 when it could not be determined.
    """
    said = asyncio.run(prove(settings()))
    if as_json:
        click.echo(json.dumps(said, indent=2))
    else:
        console = _console()
        for part in _verdict(said):
            console.print(part)
    sys.exit(0 if said["ok"] else 1 if said["errors"] else 2)


@click.command(epilog="Example: steward explain 019ab7d4-1e5a-7f00-8a1b-2c3d4e5f6a7b")
@click.argument("generation", metavar="ID")
@click.option("--json", "as_json", is_flag=True, help="For programs; money as decimal strings of pico-dollars.")
def explain(generation: str, as_json: bool) -> None:
    """Show how a generation came to its charge, from its tokens to the ledger.

    ID is the event's id, or the gateway's own id of the generation (generation_ref).

    Exit code 1 when no such generation is known, 4 when it is not kept: log retention 0, or its time is over.
    """
    known = settings()
    said = ask(known, "metering", "explain", id=generation)
    if "quarantined" not in said:
        try:
            said["booked"] = ask(known, "billing", "journal", record=said["record"], line=said["line"])
        except Refused:
            said["booked"] = None  # on its way to billing
    if as_json:
        click.echo(json.dumps(said, indent=2))
        return
    console = _console()
    for part in _explanation(said):
        console.print(part)


@click.command(epilog="Example: steward balance ws-204")
@click.argument("workspace")
@click.option("--json", "as_json", is_flag=True, help="For programs; money as decimal strings of pico-dollars.")
def balance(workspace: str, as_json: bool) -> None:
    """Show what a workspace has: credit bought, credit granted, and what it owes.

    Exit code 1 when no such workspace is known.
    """
    said = ask(settings(), "billing", "balance", workspace=workspace)
    if as_json:
        click.echo(json.dumps(said, indent=2))
        return
    console = _console()
    for part in _standing(said):
        console.print(part)


# --- for people --------------------------------------------------------------------------------------------------


def _console() -> Console:
    from rich.console import Console

    return Console(highlight=False)


def _dollars(pico: str | int) -> str:
    """Exact: all twelve places, without the zeros at the end beyond the cent."""
    from shared.contract.money import usd

    exact = usd(int(pico), 12)
    whole, _, places = exact.partition(".")
    return f"{whole}.{places.rstrip('0').ljust(2, '0')}"


def _verdict(said: Mapping[str, Any]) -> Iterator[RenderableType]:
    from rich.table import Table
    from rich.text import Text

    if "emitted" in said:
        table = Table.grid(padding=(0, 2, 0, 0))
        table.add_column(justify="left")
        table.add_column(justify="right")
        for name in ("emitted", *_CLASSES, "missing"):
            table.add_row(name.replace("_", "-"), f"{said[name]:,}", _reasons(said["by_reason"].get(name)))
        table.add_row()
        table.add_row(
            "rated lines",
            f"{said['rated_lines']:,}",
            f"{said['reversed_lines']:,} of them take back a charge, {said['rerated_lines']:,} are of a second rating",
        )
        table.add_row("booked lines", f"{said['booked_lines']:,}", f"{said['in_flight']:,} in flight")
        table.add_row("charged", _dollars(said["charges_pico"]))
        table.add_row("recomputed", _dollars(said["recomputed_pico"]), "by other code, from each line's quantities")
        table.add_row("sum of the ledger", said["ledger_sum_pico"], f"{said['journals']:,} journals")
        table.add_row(
            "balances", "equal" if said["balances_equal_replay"] else "NOT equal", "to the replay of all entries"
        )
        blocks = ", ".join(f"{name} {n:,}" for name, n in said["blocks"].items() if n)
        if dropped := said.get("dropped_through_year"):
            years = ", ".join(f"{name} {year}" for name, year in dropped.items())
            table.add_row("starts from", "checkpoints", f"their time was over, and they were dropped, through: {years}")
        table.add_row("hash chain", "whole" if said["chain_ok"] else "BROKEN", f"blocks: {blocks}" if blocks else "")
        yield table
    for kind, colour in (("errors", "red"), ("undetermined", "yellow"), ("warnings", "yellow")):
        for sentence in said[kind]:
            yield Text.assemble((f"{kind.removesuffix('s')}: ", colour), sentence)
    if said["ok"]:
        yield Text("The books are right.", style="bold green")
    elif said["errors"]:
        yield Text("The books are WRONG.", style="bold red")
    else:
        yield Text("Whether the books are right could not be determined.", style="bold yellow")


def _reasons(counts: Mapping[str, int] | None) -> str:
    return ", ".join(f"{n:,} {reason}" for reason, n in (counts or {}).items())


def priced_units(title: str, lines: Sequence[Mapping[str, Any]]) -> Table:
    """A row for each unit of a generation: what was used, what is billed, and what it costs exactly."""
    from rich.table import Table

    table = Table(title=title, title_justify="left")
    for name in ("unit", "used", "billed", "US$ for one", "pico-dollars, exact"):
        table.add_column(name, justify="left" if name == "unit" else "right")
    for line in lines:
        price = "unknown" if line["unit_price_usd"] is None else line["unit_price_usd"]
        table.add_row(line["unit"], f"{line['quantity']:,}", f"{line['billed']:,}", price, line["exact_pico"])
    return table


def _explanation(said: Mapping[str, Any]) -> Iterator[RenderableType]:
    from rich.text import Text

    if "quarantined" in said:
        why = said["quarantined"]
        missing = f" ({why['missing']})" if why.get("missing") else ""
        yield Text.assemble(
            (said["generation_id"], "bold"),
            f" waits in the quarantine: {why['reason']}{missing}, {why['model']} at {why['provider']}",
        )
        return
    yield _facts(
        ("generation", said["generation_id"]),
        ("gateway's id", said["generation_ref"]),
        ("at", said["occurred_at"]),
        ("workspace, key", f"{said['workspace']}, {said['key']}"),
        ("model", f"{said['model']} at {said['provider']}"),
        ("ended", said["outcome"] + (f", finish reason {said['finish_reason']}" if said["finish_reason"] else "")),
        ("tier, rule", f"{said['tier']}, {said['rule']}"),
        (
            "price version",
            f"{said['price_version']}, valid from {said['price_valid_from']}, from {said['price_source']}",
        ),
    )
    table = priced_units("how it was priced", said["lines"])
    table.add_section()
    table.add_row("at list price", "", "", "", said["exact_list_pico"])
    table.add_row(f"by the rule ({said['rule']})", "", "", "", said["exact_pico"])
    table.add_row(f"rounded {said['rounding'].partition(',')[0]}", "", "", "", said["amount_pico"], style="bold")
    yield table
    if said["rule"] == "byok":
        yield Text("With the customer's own key the rated line carries the list price; billing charges its fee on it.")
    yield from _booked(said)


def _booked(said: Mapping[str, Any]) -> Iterator[RenderableType]:
    from rich.table import Table
    from rich.text import Text

    booked = said["booked"]
    if booked is None:
        yield Text(
            f"Not booked yet: line {said['line']} of record {said['record']} is on its way to billing.", "yellow"
        )
        return
    line, journal, block = booked["line"], booked["journal"], booked["block"]
    adjusts = f", adjusts the closed {journal['adjusts_period']}" if journal["adjusts_period"] else ""
    yield _facts(
        ("charge line", f"{line['line']} of record {line['record']}, terms {line['terms']}"),
        ("charged", f"{line['amount_pico']} pico-dollars = {_dollars(line['amount_pico'])}"),
        ("journal", f"{journal['id']} ({journal['kind']}) for {journal['period']}{adjusts}, at {journal['booked_at']}"),
        ("sealed in", f"block {block['block']} of class {block['class']}, {block['hash'][:16]}..."),
    )
    table = Table(title=f"journal {journal['id']}: all its lines together", title_justify="left")
    for name in ("ledger account", "debit", "credit"):
        table.add_column(name, justify="left" if name == "ledger account" else "right")
    for entry in journal["entries"]:
        amount = int(entry["amount_pico"])
        sides = (_dollars(amount), "") if amount > 0 else ("", _dollars(-amount))
        table.add_row(f"{entry['kind']} ({entry['account']})", *sides)
    yield table


def _facts(*rows: tuple[str, str | None]) -> RenderableType:
    from rich.table import Table

    table = Table.grid(padding=(0, 2, 0, 0))
    for name, value in rows:
        if value is not None:
            table.add_row(f"[dim]{name}[/dim]", value)
    return table


def _standing(said: Mapping[str, Any]) -> Iterator[RenderableType]:
    from rich.table import Table

    table = Table.grid(padding=(0, 2, 0, 0))
    table.add_column()
    table.add_column(justify="right")
    for name, key in (("credit bought", "purchased"), ("credit granted", "granted"), ("owed", "receivable")):
        table.add_row(name, _dollars(said[f"{key}_pico"]))
    table.add_row("balance", _dollars(said["balance_pico"]), style="bold")
    yield f"{said['workspace']} of {said['account']} (class {said['class']}), version {said['version']}"
    yield table
    for grant in said["grants"]:
        until = f", until {grant['expires_at']}" if grant["expires_at"] else ""
        yield f"grant {grant['grant']}: {_dollars(grant['remaining_pico'])} left, priority {grant['priority']}{until}"
    byok = said["byok"]
    if int(byok["list_pico"]):
        yield (
            f"own keys in {byok['month']}: {_dollars(byok['list_pico'])} at list price, "
            f"{_dollars(byok['allowance_pico'])} of it free, fee so far {_dollars(byok['fee_pico'])}"
        )
