"""The live table while the demo runs: what each service has done, and what waits before it."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from rich.console import Console, Group, RenderableType
from rich.live import Live
from rich.progress_bar import ProgressBar
from rich.table import Table
from rich.text import Text

from deploy.demo.mesh import Reads

_EVERY_SECONDS = 0.4
# What of a room's durable counters a person wants to see, in this order: (counter, word).
_SHOWN: Mapping[str, Sequence[tuple[str, str]]] = {
    "metering": (
        ("rated", "rated"),
        ("duplicates", "repeats"),
        ("dead_lettered", "dead letters"),
        ("quarantined", "waiting"),
    ),
    "billing": (("booked", "booked"), ("payments_created", "payments")),
    "security": (("access_kept", "connections"),),
    "insights": (("activity_kept", "clicks"),),
    "retention": (("cases_opened", "case opened"),),
    "audit": (),
}


@dataclass(slots=True)
class Progress:
    """The state of the run as last seen. `expected`: records that will be sent; None until that is known."""

    rooms: Sequence[str]
    expected: int | None = None
    sent: int = 0
    doing: str = ""
    started: float = field(default_factory=time.monotonic)
    counters: dict[str, dict[str, int]] = field(default_factory=dict)
    idle: dict[str, dict[str, Any]] = field(default_factory=dict)
    most_waiting: int = 0
    deletion: Callable[[], Sequence[tuple[str, str]]] = tuple
    """Who has done what of the deletion: (name, state); the first one is the case's own."""

    async def look(self, reads: Reads) -> None:
        """Asks every service once."""
        answers = await asyncio.gather(
            *(reads.try_(room, "counters") for room in self.rooms), *(reads.try_(room, "idle") for room in self.rooms)
        )
        for room, counters, idle in zip(self.rooms, answers, answers[len(self.rooms) :], strict=False):
            if counters is not None:
                self.counters[room] = counters
            if idle is not None:
                self.idle[room] = idle
        self.most_waiting = max(self.most_waiting, self.counters.get("metering", {}).get("quarantined", 0))

    def line(self) -> str:
        """One line, for an output that is no terminal."""
        parts = [f"sent {self.sent:,}"]
        for room in self.rooms:
            said = ", ".join(f"{word} {number:,}" for number, word in self._done(room))
            parts += [f"{room}: {said}"] if said else []
        steps = self.deletion()
        parts += ["deletion: " + ", ".join(f"{name} {state}" for name, state in steps)] if steps else []
        return "; ".join(parts)

    def _done(self, room: str) -> list[tuple[int, str]]:
        counters = self.counters.get(room, {})
        done = []
        for name, word in _SHOWN.get(room, ()):
            number = sum(n for key, n in counters.items() if key == name or key.startswith(f"{name}:"))
            if number or name in ("rated", "booked"):
                done.append((number, word))
        return done

    def __rich__(self) -> RenderableType:
        table = Table(box=None, pad_edge=False, expand=True, show_header=True, header_style="dim")
        table.add_column("", no_wrap=True, style="bold", width=13)
        table.add_column("done", ratio=1, no_wrap=True, overflow="ellipsis")
        table.add_column("lag", justify="right", no_wrap=True, width=8)
        table.add_column("outbox", justify="right", no_wrap=True, width=7)
        table.add_column("", no_wrap=True, width=9)
        all_sent = self.expected is not None and self.sent >= self.expected
        table.add_row("gateway", self._sent(), "", "", _state("done" if all_sent else "sending"))
        for room in self.rooms:
            table.add_row(room, *self._row(room))
        seconds = time.monotonic() - self.started
        doing = Text(f"{seconds:5.1f} s  {self.doing}", style="dim")
        steps = self.deletion()
        return Group(table, *([_steps(steps)] if steps else []), doing)

    def _sent(self) -> RenderableType:
        said = Text(f"{self.sent:,} sent", no_wrap=True)
        if self.expected is None:
            return said
        grid = Table.grid(padding=(0, 1))
        grid.add_row(
            said,
            ProgressBar(
                total=max(1, self.expected),
                completed=min(self.sent, self.expected),
                width=24,
                complete_style="cyan",
                finished_style="green",
            ),
        )
        return grid

    def _row(self, room: str) -> tuple[RenderableType, str, str, Text]:
        idle = self.idle.get(room)
        if idle is None:
            return Text(""), "", "", _state("starting")
        done = Text(no_wrap=True, overflow="ellipsis")
        for number, word in self._done(room):
            done.append(f"{number:,}", style="bold").append(f" {word}  ", style="dim")
        lag = sum(idle.get("lag", {}).values())
        return (
            done,
            f"{lag:,}" if lag else "",
            f"{idle['outbox']:,}" if idle.get("outbox") else "",
            _state("idle" if idle["idle"] else "working"),
        )


_STAGES = {"wave_1": "erasing", "wave_2": "erasing", "probing": "looking", "sweeping": "looking"}
_COLOURS = {
    "erasing": "yellow",
    "looking": "yellow",
    "working": "yellow",
    "waiting": "yellow",
    "silent": "red",
    "residue": "red",
}
_GOOD = ("done", "idle", "completed", "certified")


def _state(word: str) -> Text:
    return Text(word, style="green" if word in _GOOD else _COLOURS.get(word, "dim"))


def _steps(steps: Sequence[tuple[str, str]]) -> Text:
    """The case, and those who have to answer, each in the colour of its state."""
    (_, stage), *holders = steps
    said = Text("deletion ", style="bold", no_wrap=True, overflow="ellipsis")
    said.append(_STAGES.get(stage, stage), style=_state(_STAGES.get(stage, stage)).style).append(":")
    for name, state in holders:
        said.append(f" {name}", style=_state(state).style)
    return said


class Watch:
    """Shows progress until the block ends: live in a terminal, a line every few seconds elsewhere."""

    def __init__(self, console: Console, progress: Progress, reads: Reads, sent: Callable[[], int]) -> None:
        self._console, self._progress, self._reads, self._sent = console, progress, reads, sent
        self._task: asyncio.Task[None] | None = None
        self._live = Live(
            progress,
            console=console,
            refresh_per_second=8,
            transient=False,
            redirect_stdout=False,
            redirect_stderr=False,
        )

    async def __aenter__(self) -> Watch:
        if self._console.is_terminal:
            self._live.start()
        self._task = asyncio.create_task(self._run())
        return self

    async def __aexit__(self, kind: object, *_: object) -> None:
        assert self._task is not None
        self._task.cancel()
        await asyncio.gather(self._task, return_exceptions=True)
        try:
            self._progress.sent = self._sent()
            if kind is None:
                await self._progress.look(self._reads)
        finally:
            if self._console.is_terminal:
                self._live.stop()

    async def _run(self) -> None:
        said_at = time.monotonic()
        while True:
            self._progress.sent = self._sent()
            await self._progress.look(self._reads)
            if not self._console.is_terminal and time.monotonic() - said_at > 5:
                said_at = time.monotonic()
                self._console.print(self._progress.line(), soft_wrap=True)
            await asyncio.sleep(_EVERY_SECONDS)


async def until(condition: Callable[[], Awaitable[bool]], seconds: float) -> bool:
    """Asks again and again until the answer is yes; False when the time is up."""
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        if await condition():
            return True
        await asyncio.sleep(_EVERY_SECONDS / 2)
    return False
