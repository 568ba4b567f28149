"""`steward promises`: what each promise of the privacy policy stands on."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import click

if TYPE_CHECKING:
    from rich.console import RenderableType

    from shared.policy.register import Proof, Register, Row

_STYLES = {"proved": "green", "platform": "cyan", "open": "red", "not_run": "yellow"}


@click.command(epilog="Example: make test && steward promises")
@click.option("--json", "as_json", is_flag=True, help="For programs.")
def promises(as_json: bool) -> None:
    """Show which promises of the privacy policy are proved, by which tests, on which commit.

    \b
    proved     its tests ran on this commit, and every one passed
    platform   the same, but the deciding act is the platform's (printed beside it)
    not_run    its tests did not run on this commit, or not all tests are known yet
    open       no test proves it, or one of its tests failed or was skipped

    Reads build/promises.json of the source tree, which each run of the tests writes (`make test`; `make promises`
    runs the marked tests only). Without that file, or for another commit, everything is not_run.

    Exit code 0 when every promise that is due by now is proved or platform (those first due with the parts named in
    shared/policy/promises.toml, `due`), 1 when one is not. Later ones may be open; they change the exit code when
    their part is due.
    """
    from deploy import checkout
    from shared.policy.register import overdue, register, rows

    tree = checkout.root()
    known, proof, here = register(), _proof(tree / checkout.PROOF), checkout.commit(tree)
    found = rows(known.promises, proof, here)
    late = overdue(known, found)
    if as_json:
        click.echo(json.dumps({"promises": [row.as_dict() for row in found]}, indent=2))
    else:
        from rich.console import Console

        console = Console(highlight=False)
        for part in (_table(known, found), *_summary(known, found, late, proof, here)):
            console.print(part)
    sys.exit(1 if late else 0)


def _proof(path: Path) -> Proof | None:
    from shared.policy.register import loaded

    try:
        return loaded(path.read_text(encoding="utf-8"))
    except OSError:
        return None


def _table(known: Register, found: Sequence[Row]) -> RenderableType:
    from rich.box import SIMPLE_HEAD
    from rich.table import Table
    from rich.text import Text

    table = Table(box=SIMPLE_HEAD, pad_edge=False)
    table.add_column("no", justify="right")
    table.add_column("promise", ratio=1)
    table.add_column("state", no_wrap=True)
    table.add_column("tests", justify="right")
    table.add_column("due", no_wrap=True)
    for row in found:
        promise = Text(row.promise.text)
        if row.promise.platform_share:
            promise.append(f"\nThe platform {row.promise.platform_share}.", style="dim")
        due = Text(row.promise.first_due, style="" if row.promise.first_due in known.due else "dim")
        tests = str(len(row.tests)) if row.tests else ""
        table.add_row(str(row.promise.no), promise, Text(row.state, style=_STYLES[row.state]), tests, due)
    return table


def _summary(
    known: Register, found: Sequence[Row], late: Sequence[Row], proof: Proof | None, here: str | None
) -> Iterator[str]:
    counts = {state: sum(row.state == state for row in found) for state in _STYLES}
    yield ", ".join(f"{count} {state}" for state, count in counts.items() if count) + "."
    if proof is None:
        yield "No run of the tests is on record: `make test` (or `make promises`) makes one."
    elif here is None:
        yield "This is no git work tree, so no run can be tied to its code."
    elif proof.commit != here:
        yield f"The last run was of {_short(proof.commit)}, and this is {_short(here)}: run `make promises`."
    elif not proof.complete:
        yield "Only a part of the tests is known on this commit: run `make promises`."
    parts = ", ".join(name for name in _ordered(known))
    if late:
        numbers = ", ".join(str(row.promise.no) for row in late)
        yield f"Due by now ({parts}) and not proved: {numbers}."
    else:
        yield f"Everything that is due by now ({parts}) is proved, or the platform's."


def _ordered(known: Register) -> Iterator[str]:
    from shared.policy.register import FIRST_DUE

    return (name for name in FIRST_DUE if name in known.due)


def _short(commit: str | None) -> str:
    if commit is None:
        return "no known commit"
    sha, plus, dirty = commit.partition("+")
    return sha[:10] + plus + dirty
