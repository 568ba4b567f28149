"""A drill's outcome for a person's eye."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence

from rich.console import Console
from rich.table import Table

from deploy.drill.found import COMES_BACK, Result


def show(console: Console, results: Sequence[Result]) -> None:
    """A row for each service, what is not as before, and what a restore does not bring back."""
    table = Table(box=None, pad_edge=False)
    for name in (
        "service", "age of the copy", "rows of the erased", "erased again", "at ready", "auditor", "books", "ready after",
        "settled after", "",
    ):  # fmt: skip
        table.add_column(name, justify="left" if name in ("service", "auditor", "books", "") else "right")
    for one in results:
        verdicts = Counter(one.verdicts.values())
        said = ", ".join(f"{n} {verdict}" for verdict, n in verdicts.most_common())
        table.add_row(
            one.service, f"{one.copy_age_seconds:.1f} s", f"{one.in_copy:,}", f"{one.reapplied:,}", f"{one.at_ready:,} left",
            said, "[green]right[/]" if one.books_ok else "[bold red]WRONG[/]", f"{one.ready_seconds:.1f} s",
            f"{one.settled_seconds:.1f} s", "[green]as before[/]" if one.as_before else "[bold red]NOT as before[/]",
        )  # fmt: skip
    console.print(table)
    for one in results:
        for sentence in one.differences:
            console.print(f"[red]{one.service}:[/] {sentence}", soft_wrap=True)
    console.print("\n[bold]What a restore brings back, and what not[/]")
    for one in results:
        console.print(f"[bold]{one.service}[/]: {COMES_BACK[one.service]}", soft_wrap=True)
    good = all(one.as_before for one in results)
    console.print(
        "\n[bold green]Nobody came back, and the books are as before.[/]" if good
        else "\n[bold red]Not everything is as before.[/]"
    )  # fmt: skip
