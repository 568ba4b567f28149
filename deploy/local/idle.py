"""When has the mesh nothing left to do? When every room says so twice in a row: work moves between rooms."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from deploy.local.errors import LocalError
from deploy.local.probe import get_json
from deploy.rooms import ROOMS

_POLL_SECONDS = 0.1
_ROUNDS = 2


@dataclass(slots=True)
class Idle:
    """What a wait came to. `rooms`: the last answer of each; `away`: rooms that gave none."""

    idle: bool
    waited_seconds: float
    rooms: dict[str, Any] = field(default_factory=dict)
    away: list[str] = field(default_factory=list)

    def as_dict(self) -> dict[str, Any]:
        """For programs."""
        return {
            "idle": self.idle,
            "waited_seconds": round(self.waited_seconds, 3),
            "rooms": self.rooms,
            "away": self.away,
        }

    def text(self) -> str:
        """For people."""
        if self.idle:
            return f"idle after {self.waited_seconds:.1f} s"
        if self.away:
            return f"{', '.join(self.away)} cannot be asked: see `steward status`, or start with `steward up`"
        busy = "; ".join(f"{name}: {_why(said)}" for name, said in self.rooms.items() if not said.get("idle"))
        return f"not idle after {self.waited_seconds:.1f} s: {busy or 'work has just come in'}"


async def wait_idle(settings: Mapping[str, str], timeout: float, rooms: Sequence[str] = ROOMS) -> Idle:
    """Asks every room until all were idle in two rounds in a row, or `timeout` seconds are over.

    A room that cannot be asked ends the wait only at its end: it may be starting again. Raises LocalError
    when the settings name no port for it: no stack has been started.
    """
    ports = {room: _port(settings, room) for room in rooms}
    started = time.monotonic()
    in_a_row = 0
    while True:
        answers = await asyncio.gather(*(_ask(port) for port in ports.values()))
        said = dict(zip(ports, answers, strict=True))
        outcome = Idle(
            idle=False,
            waited_seconds=time.monotonic() - started,
            rooms={room: answer for room, answer in said.items() if answer is not None},
            away=[room for room, answer in said.items() if answer is None],
        )
        in_a_row = in_a_row + 1 if all(answer and answer["idle"] for answer in answers) else 0
        if in_a_row == _ROUNDS:
            outcome.idle = True
            return outcome
        if len(outcome.away) == len(rooms) or outcome.waited_seconds >= timeout:
            return outcome
        await asyncio.sleep(_POLL_SECONDS)


def _port(settings: Mapping[str, str], room: str) -> int:
    port = settings.get(f"STEWARD_{room.upper()}_PORT")
    if not port:
        raise LocalError(f"no stack has been started here (no port of {room} is known): start one with `steward up`")
    return int(port)


async def _ask(port: int) -> dict[str, Any] | None:
    try:
        answer: dict[str, Any] = await get_json(port, "/reads/idle")
    except (OSError, TimeoutError):
        return None
    return answer


def _why(said: Mapping[str, Any]) -> str:
    lag = said.get("lag") or {}
    behind = [f"{name} {count} behind" for name, count in lag.items() if count]
    waiting = [f"{said[key]} in {key}" for key in ("outbox", "tasks") if said.get(key)]
    return ", ".join([*said.get("stopped", ()), *behind, *waiting]) or "busy"
