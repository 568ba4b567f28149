"""What runs, written down for other commands: `state.json` in the folder of the stack.

Every process is noted with its start time: a pid that was given to somebody else since is not taken for ours.
"""

from __future__ import annotations

import asyncio
import json
import signal
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Literal

from deploy.local.env import write_private
from deploy.local.process import Identity
from deploy.local.room import DRAIN_SECONDS

Phase = Literal["starting", "running", "stopping", "failed"]
# What is no service, in the order in which it is ended, each by the signal that it takes for a wish to end in order.
SERVERS = {
    "kafka": signal.SIGTERM,
    "postgres": signal.SIGINT,
    "mail": signal.SIGTERM,
    "traces": signal.SIGTERM,
    "prometheus": signal.SIGTERM,
}
_SERVER_SECONDS = 30.0


@dataclass(slots=True)
class PartState:
    """One process of the stack. `state`: starting, running, restarting, stopped."""

    name: str
    state: str
    pid: int
    started: str
    port: int
    url: str
    log: str
    restarts: int = 0

    @property
    def identity(self) -> Identity:
        """The process."""
        return Identity(self.pid, self.started)


@dataclass(slots=True)
class StackState:
    """The supervisor, its parts, and how far it is; `detail` says what it does now, or why it failed."""

    phase: Phase
    pid: int
    started: str
    detail: str = ""
    parts: list[PartState] = field(default_factory=list)

    @property
    def supervisor(self) -> Identity:
        """The process that started the parts."""
        return Identity(self.pid, self.started)

    @property
    def running(self) -> bool:
        """Whether the supervisor is alive and not about to end."""
        return self.phase != "failed" and self.supervisor.alive()


def state_file(home: Path) -> Path:
    """Where the state of the stack in `home` is written."""
    return home / "state.json"


def write(home: Path, state: StackState) -> None:
    """Replaces the state in one step."""
    write_private(state_file(home), json.dumps(asdict(state), indent=2) + "\n")


def read(home: Path) -> StackState | None:
    """The state, None when no stack has run here or what is there cannot be read."""
    try:
        raw: dict[str, Any] = json.loads(state_file(home).read_text(encoding="utf-8"))
        return StackState(**{**raw, "parts": [PartState(**part) for part in raw["parts"]]})
    except (OSError, ValueError, TypeError, KeyError):
        return None


def clear(home: Path) -> None:
    """Nothing runs here any more."""
    state_file(home).unlink(missing_ok=True)


def leftovers(state: StackState | None) -> list[PartState]:
    """Parts that still run."""
    return [part for part in state.parts if part.identity.alive()] if state is not None else []


async def end_leftovers(parts: list[PartState]) -> None:
    """Ends parts whose supervisor is gone: services with their grace, then the servers."""
    services = [part for part in parts if part.name not in SERVERS]
    await asyncio.gather(*(_end(part, signal.SIGTERM, DRAIN_SECONDS) for part in services))
    by_name = {part.name: part for part in parts}
    for name, number in SERVERS.items():
        if name in by_name:
            await _end(by_name[name], number, _SERVER_SECONDS)


async def _end(part: PartState, number: signal.Signals, grace: float) -> None:
    part.identity.send(signal.SIGCONT, group=True)
    part.identity.send(number, group=True)
    if not await part.identity.gone(grace):
        part.identity.send(signal.SIGKILL, group=True)
        await part.identity.gone(5.0)
