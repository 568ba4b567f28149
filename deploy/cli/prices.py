"""`steward prices`: the price book's doors; `replay`: what its guard would have done to a public price history."""

from __future__ import annotations

import gzip
import json
import sys
from collections import Counter
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from deploy.cli.price_desk import held, import_, reject, release, rerate

if TYPE_CHECKING:
    from services.metering.price_history import Replayed, Row

_SHOWN = 8
_LINES = (
    ("born_wrong", "first prices born wrong (100x)"),
    ("born_far_off", "born far off (10x to 100x)"),
    ("born_free", "born free, or made free next"),
    ("ordinary_first", "ordinary first prices"),
    ("ordinary_change", "ordinary changes (below 5x)"),
    ("large_change", "large changes"),
    ("freed_or_charged", "to or from zero"),
    ("returned", "returned"),
    ("vanished", "vanished"),
)


@click.group(context_settings={"help_option_names": ["-h", "--help"]})
def prices() -> None:
    """Take prices in, see which ones the guard holds, and decide."""


for _command in (import_, held, release, reject, rerate):
    prices.add_command(_command)


@prices.command(epilog="Example: steward prices replay changes.jsonl.gz")
@click.argument("file", type=click.Path(exists=True, dir_okay=False, allow_dash=True))
@click.option("--json", "as_json", is_flag=True, help="For programs: every change with its verdict, and the summary.")
def replay(file: str, as_json: bool) -> None:
    """Send a price history through the guard, as it was known then.

    FILE holds one change a line, {version, known_at, model, field, old, new} as JSON, gzip or not; - is the standard
    input. Fields are those of LiteLLM's price file.

    Exit code 2 when a line is no change; its number is told.
    """
    from services.metering.price_history import replay as send

    replayed = send(list(_rows(file)))
    if as_json:
        _write_json(replayed)
    else:
        _show(replayed)


def _rows(file: str) -> Iterator[Row]:
    from services.metering.price_history import parse_row

    raw = sys.stdin.buffer.read() if file == "-" else Path(file).read_bytes()
    if raw.startswith(b"\x1f\x8b"):
        try:
            raw = gzip.decompress(raw)
        except (OSError, EOFError) as error:
            raise click.UsageError(f"{file} is no whole gzip file: {error}") from None
    for number, line in enumerate(raw.removeprefix(b"\xef\xbb\xbf").splitlines(), start=1):
        if line.strip():
            try:
                yield parse_row(json.loads(line, parse_constant=_no_number))
            except (ValueError, RecursionError) as error:
                raise click.UsageError(f"line {number} of {file} is no price change: {error}") from None


def _no_number(word: str) -> None:
    raise ValueError(f"{word} is no number of JSON's")


def _write_json(replayed: Replayed) -> None:
    """One change a line: the document may have 100,000 of them."""
    click.echo('{"changes":[')
    last = len(replayed.changes) - 1
    for place, (row, verdict, reason) in enumerate(replayed.changes):
        change = {**row._asdict(), "known_at": row.known_at.isoformat(), "verdict": verdict, "reason": reason}
        click.echo(json.dumps(change) + ("," if place < last else ""))
    click.echo('],"summary":' + json.dumps(_with_percent(replayed.summary.as_dict()), indent=2) + "}")


def _with_percent(document: dict[str, Any]) -> dict[str, Any]:
    """A percent beside every "held of"; null where there was nothing."""
    if document.keys() == {"held", "of"}:
        held, of = document["held"], document["of"]
        return {**document, "percent": round(100 * held / of, 2) if of else None}
    return {key: _with_percent(value) if isinstance(value, dict) else value for key, value in document.items()}


def _show(replayed: Replayed) -> None:
    from rich import box
    from rich.console import Console
    from rich.table import Table

    console = Console(highlight=False)
    summary = replayed.summary
    console.print(
        f"{summary.rows:,} changes: " + ", ".join(f"{n:,} {verdict}" for verdict, n in summary.verdicts.items()) + "\n"
    )
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False)
    table.add_column("prices")
    for name in ("held", "of", "%", "imports, whole", "of"):
        table.add_column(name, justify="right")
    for kind, said in _LINES:
        share, imports = summary.prices[kind], summary.imports[kind]
        percent = f"{100 * share.held / share.of:.1f}" if share.of else ""
        table.add_row(said, *map(str, (share.held, share.of, percent, imports.held, imports.of)))
    console.print(table)
    write = partial(console.print, soft_wrap=True)
    write("An import is one provider's part of a version. Ordinary first prices that are held are false alarms, or")
    write("mistakes that the history never corrects. Prices born far off may be real cuts.\n")
    right = summary.corrections.of - summary.corrections.held
    write(f"Corrections of prices born wrong: {right} of {summary.corrections.of} accepted at once.")
    for kind, delay in summary.delays.items():
        if delay.held:
            later = f"; after {delay.days_median} days (at most {delay.days_max}) the others" if delay.days_max else ""
            write(f"Held, {kind.replace('_', ' ')}: {delay.held}, of which {delay.never} had no value accepted{later}.")
    write("\nHeld for: " + ", ".join(f"{name} {n}" for name, n in summary.held_reasons.items()) + "\n")
    _examples(write, replayed, "born_wrong", "accepted", "Missed: born wrong, and accepted")
    _examples(write, replayed, "born_wrong", "held", "Caught at birth")
    _examples(write, replayed, "ordinary_change", "held", "Ordinary changes held")
    _examples(write, replayed, "ordinary_first", "held", "Ordinary first prices held")


def _examples(write: Callable[[str], object], replayed: Replayed, kind: str, verdict: str, title: str) -> None:
    """One line for each model and version, those with most prices first."""
    found = [
        change
        for change, its_kind in zip(replayed.changes, replayed.kinds, strict=True)
        if its_kind == kind and change.verdict == verdict
    ]
    count = Counter((change.row.version, change.row.model) for change in found)
    if not count:
        return
    shown = [next(c for c in found if (c.row.version, c.row.model) == each) for each, _ in count.most_common(_SHOWN)]
    more = f", {len(shown)} of {len(count)} models" if len(count) > len(shown) else ""
    write(f"[bold]{title}[/bold] ({len(found)} prices{more})")
    for row, _, reason in shown:
        write(_line(row, reason))
    write("")


def _line(row: Row, reason: str) -> str:
    from rich.markup import escape

    value = row.new if row.old is None else f"{row.old} -> {row.new}"
    return escape(f"  {row.known_at:%Y-%m-%d}  {row.model}  {row.field}  {value}  ({reason})")
