"""What was measured: one line a figure, with its limit beside it; as a table for people and as JSON for programs."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from rich.console import Console
from rich.markup import escape
from rich.table import Table


@dataclass(frozen=True, slots=True)
class Limit:
    """What a figure, or its ratio to another one, should keep."""

    relation: Literal[">=", "<="]
    bound: float
    about: Literal["value", "ratio"] = "value"

    def holds(self, line: Line) -> bool:
        """Whether the line keeps it."""
        figure = line.value if self.about == "value" else line.ratio
        if figure is None:
            return False
        return figure >= self.bound if self.relation == ">=" else figure <= self.bound

    def text(self, line: Line) -> str:
        """For people."""
        if self.about == "ratio":
            return f"{self.relation} {self.bound:g} x {line.of}"
        return f"{self.relation} {_figure(self.bound)} {line.unit}"


@dataclass(frozen=True, slots=True)
class Line:
    """One figure. `ratio` is taken to the figure `of`, measured close in time to this one."""

    name: str
    value: float
    unit: str
    ratio: float | None = None
    of: str | None = None
    limits: tuple[Limit, ...] = ()
    note: str = ""

    def as_dict(self) -> dict[str, Any]:
        """For programs."""
        return {
            "name": self.name,
            "value": round(self.value, 4),
            "unit": self.unit,
            "ratio": None if self.ratio is None else round(self.ratio, 4),
            "of": self.of,
        }


@dataclass(slots=True)
class Report:
    """All lines of one run, and the measurements that came to none."""

    console: Console
    lines: list[Line] = field(default_factory=list)
    failures: list[tuple[str, str]] = field(default_factory=list)

    def add(self, *lines: Line) -> None:
        """Takes figures in and says them at once: a run is long."""
        for line in lines:
            self.lines.append(line)
            ratio = "" if line.ratio is None else f" = {line.ratio:.2f} x {line.of}"
            self.console.print(f"  {line.name}: {_figure(line.value)} {line.unit}{ratio}", highlight=False)

    def lead(self, *lines: Line) -> None:
        """Takes in what the others are held against: it stands first."""
        self.lines[:0] = lines

    def failed(self, name: str, why: str) -> None:
        """A measurement ended without a figure; the others go on."""
        self.failures.append((name, why))
        self.console.print(f"[red]{name}: no figure[/red]\n{escape(why)}", highlight=False)

    def value(self, name: str) -> float | None:
        """The figure of that name, if it was measured."""
        return next((line.value for line in self.lines if line.name == name), None)

    def write(self, path: Path) -> None:
        """Writes the lines as JSON."""
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(json.dumps([line.as_dict() for line in self.lines], indent=1) + "\n", encoding="utf-8")

    def show(self, title: str) -> None:
        """Prints the table, and below it what failed."""
        table = Table(title=title, title_justify="left", show_edge=False, pad_edge=False)
        table.add_column("figure", no_wrap=True)
        table.add_column("value", justify="right", no_wrap=True)
        table.add_column("unit", no_wrap=True)
        table.add_column("ratio", no_wrap=True)
        table.add_column("limit")
        for line in self.lines:
            ratio = "" if line.ratio is None else f"{line.ratio:.2f} x {line.of}"
            table.add_row(line.name, _figure(line.value), line.unit, ratio, "\n".join(_verdicts(line)))
        self.console.print()
        self.console.print(table)
        self.console.print()
        for line in self.lines:
            if line.note:
                self.console.print(f"[dim]{line.name}: {escape(line.note)}[/dim]", highlight=False, soft_wrap=True)
        for name, why in self.failures:
            self.console.print(f"[red]no figure:[/red] {name}: {escape(why.splitlines()[0])}", highlight=False)


def _verdicts(line: Line) -> Iterator[str]:
    for limit in line.limits:
        yield f"{escape(limit.text(line))}: " + (
            "[green]holds[/green]" if limit.holds(line) else "[red]does not hold[/red]"
        )


def _figure(value: float) -> str:
    if abs(value) >= 100:
        return f"{value:,.0f}"
    return f"{value:,.1f}" if abs(value) >= 10 else f"{value:,.3g}"


def mean(values: Sequence[float]) -> float:
    """The arithmetic mean."""
    return sum(values) / len(values)


def percentile(ordered: Sequence[float], share: float) -> float:
    """The smallest value that at least `share` of the sorted values do not exceed."""
    rank = -int(-share * len(ordered) // 1)
    return ordered[min(max(rank, 1), len(ordered)) - 1]
