"""How long partitions stand still while records come: their cursors, looked at from outside all the time."""

from __future__ import annotations

import asyncio
import time
from types import TracebackType
from typing import NamedTuple, Self

import asyncpg

from shared.contract.topics import Topic
from tests.support.world import Mesh

_LOOK_SECONDS = 0.05


class Stand(NamedTuple):
    """A partition's cursor did not move from `began` to `ended` (monotonic clock); `handed_over`: another process moved
    it on. `claimed`: seconds from the other's claim to its first commit."""

    topic: str
    partition: int
    began: float
    ended: float
    handed_over: bool
    claimed: float

    @property
    def seconds(self) -> float:
        """How long it stood still."""
        return self.ended - self.began


class Watch:
    """Looks at the cursors of `rooms`' topics, which are never quiet, for as long as the block runs."""

    def __init__(self, mesh: Mesh, rooms: dict[str, Topic]) -> None:
        self._mesh, self._rooms = mesh, rooms
        self.stands: list[Stand] = []
        self._tasks: list[asyncio.Task[None]] = []

    async def __aenter__(self) -> Self:
        self._tasks = [asyncio.create_task(self._look(room, topic)) for room, topic in self._rooms.items()]
        return self

    async def __aexit__(self, kind: type[BaseException] | None, *_: BaseException | TracebackType | None) -> None:
        for task in self._tasks:
            task.cancel()
        outcomes = await asyncio.gather(*self._tasks, return_exceptions=True)
        failed = [o for o in outcomes if not isinstance(o, asyncio.CancelledError)]
        if failed and kind is None:
            raise RuntimeError(f"cursors were not looked at to the end: {failed}")

    async def _look(self, room: str, topic: Topic) -> None:
        db = await asyncpg.connect(self._mesh.env[f"STEWARD_{room.upper()}_OWNER_DATABASE_URL"])
        moved: dict[int, tuple[int, int, float]] = {}
        claims: dict[int, tuple[int, float]] = {}
        try:
            while True:
                rows = await db.fetch("SELECT part, next_offset, epoch FROM mesh_cursor WHERE topic = $1", topic.name)
                now = time.monotonic()
                for part, offset, epoch in rows:
                    if part not in claims or claims[part][0] != epoch:
                        claims[part] = epoch, now
                    last = moved.get(part)
                    if last is not None and last[0] == offset:
                        continue
                    if last is not None:
                        other = last[1] != epoch
                        since_claim = now - claims[part][1] if other else 0.0
                        self.stands.append(Stand(topic.name, part, last[2], now, other, since_claim))
                    moved[part] = offset, epoch, now
                await asyncio.sleep(_LOOK_SECONDS)  # lint: allow sleep-in-test -- a steady look is the measurement
        finally:
            await db.close()
