"""Rating a range of the request log again, in chunks; the differences are booked as lines of their own."""

from __future__ import annotations

from collections.abc import Mapping
from datetime import datetime, timedelta
from typing import Any, NamedTuple
from uuid import UUID

from services.metering import store
from services.metering.app.meter import Metering
from services.metering.app.room import Room
from services.metering.usage import instant, microseconds
from shared.mesh import Done, Received, Task, Transaction
from shared.policy import policy

_CHUNK = 1_000
_SPAN_MS = 60_000
_SPAN_MAX_MS = 86_400_000


class Asked(NamedTuple):
    """Generations with times from `start` to before `end`, of one provider and model or of any; `version`: only those
    that this price version rates now."""

    start: datetime
    end: datetime
    provider: str | None
    model: str | None
    version: str | None
    dry_run: bool

    @classmethod
    def of(cls, arguments: Mapping[str, str]) -> Asked:
        """From an order. Raises ValueError."""
        start, end = (datetime.fromisoformat(arguments[name]) for name in ("start", "end"))
        if start.tzinfo is None or end.tzinfo is None or not start < end:
            raise ValueError("start and end: instants with a zone, start before end")
        provider, model, version = (arguments.get(name) for name in ("provider", "model", "version"))
        return cls(start, end, provider, model, version, "dry_run" in arguments)


async def order(ordered: Received, tx: Transaction) -> None:
    """Takes an order. What is known at its LogAppendTime rates."""
    command, record = ordered.event.data, ordered.record
    try:
        Asked.of(command.arguments)
    except (KeyError, ValueError) as error:
        tx.refuse(record, "invalid_command", f"rerate: {type(error).__name__}")
        return
    await begin(tx, ordered.event.id, instant(record.timestamp), command.arguments)


async def begin(tx: Transaction, order_id: str, known_at: datetime, arguments: Mapping[str, str]) -> None:
    """Asks for a second rating, once per order; `arguments` as `Asked.of` takes them."""
    if await store.order_rerating(tx.db, order_id, known_at, arguments):
        payload = {"order": order_id, "known_at": known_at.isoformat(), **arguments}
        await tx.enqueue("rerate", order_id, payload)


async def work(room: Room, task: Task, tx: Transaction) -> Any:
    """One chunk: rows of a span of ids, which is made longer where there are few and shorter where there are many."""
    asked, order_id = Asked.of(task.payload), task.payload["order"]
    # An id is made up to W before or after the time that its event states, or was released by a person later still.
    first = microseconds(asked.start - 2 * policy().window) // 1000
    at_ms, after, span = task.position or (first, None, _SPAN_MS)
    start = UUID(int=at_ms << 80) if after is None else UUID(int=UUID(after).int + 1)
    end_ms = at_ms + span
    await room.refresh(tx.db)
    rows = await store.logged_between(
        tx.db, start, UUID(int=end_ms << 80), _CHUNK, asked.start, asked.end, asked.provider, asked.model, tx.now
    )
    known_at = datetime.fromisoformat(task.payload["known_at"])
    came_to = await Metering(room, tx).rerate(rows, order_id, known_at, version=asked.version, dry_run=asked.dry_run)
    await store.add_rerated(tx.db, order_id, *came_to)
    if len(rows) == _CHUNK:
        return at_ms, str(rows[-1]["generation_id"]), span
    if end_ms > microseconds(tx.now + policy().future + timedelta(seconds=1)) // 1000:
        await store.end_rerating(tx.db, order_id, tx.now)
        return Done()
    return end_ms, None, min(2 * span, _SPAN_MAX_MS) if len(rows) < _CHUNK // 4 else _SPAN_MS
