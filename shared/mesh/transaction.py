"""What a handler may do: read and write its database, say what to publish. It never commits."""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import Any

from shared.contract.base import Event
from shared.contract.codec import build, validated
from shared.contract.topics import Topic
from shared.mesh import store
from shared.mesh.store import Connection, OutboxRow

SHARDS = 4
HEARTBEAT = b"heartbeat"
"""Key of the records without a value that keep compacted topics compacted; no id looks like it to a reader."""


def rfc3339(instant: datetime) -> str:
    """`instant` as the contract writes it: UTC, with a Z."""
    return instant.astimezone(UTC).replace(tzinfo=None).isoformat(timespec="milliseconds") + "Z"


def shard_of(key: bytes | None, part: int | None) -> int:
    """The relay's shard of a key (or, without one, of a partition): order holds within it."""
    if key is None:
        return (part or 0) % SHARDS
    return hashlib.blake2b(key, digest_size=2).digest()[0] % SHARDS


@dataclass(frozen=True, slots=True)
class Caller:
    """Who asks a read, in which role and why: as the log of reads has it."""

    actor: str
    role: str
    reason: str


class NotGiven(Exception):
    """The contract does not let this service do that."""


class Transaction:
    """One effect transaction. `db` is inside of it; what `publish` and `count` are told becomes true with its commit.

    `caller`: who asks, in the transaction of a read.
    """

    def __init__(
        self,
        service: str,
        db: Connection,
        now: datetime,
        *,
        part: int = -1,
        replay: bool = False,
        plugged: Mapping[str, Any] | None = None,
        caller: Caller | None = None,
    ) -> None:
        self.service = service
        self.db = db
        self.now = now
        self.replay = replay
        # What is plugged into the running service, by name.
        self.plugged: Mapping[str, Any] = plugged or {}
        self.caller = caller
        self._part = part
        self._outbox: list[OutboxRow] = []
        self._counts: Counter[str] = Counter()
        self._sources: dict[tuple[str, str], tuple[int, int]] = {}
        self._after: list[Callable[[], Any]] = []
        self.enqueued = False
        self.refused: list[tuple[Any, str, str, str]] = []

    def publish(
        self,
        topic: Topic,
        model: type[Event],
        *,
        id: str,
        subject: str,
        data: Any,
        key: str | bytes | None = None,
        partition: int | None = None,
        time: datetime | None = None,
        trusted: bool = False,
    ) -> None:
        """Publishes one event after the commit, at least once, in order per key.

        `id` must follow from the event's cause, so that a repeat is recognised. `trusted` skips the check against
        the contract: for packed records whose reader checks them line by line.
        """
        if self.service not in topic.writers:
            raise NotGiven(f"the contract does not let {self.service} write {topic.name}")
        raw = build(model, id=id, source=self.service, subject=subject, time=rfc3339(time or self.now), data=data)
        if not trusted:
            validated(model, raw)
        key_bytes = key.encode() if isinstance(key, str) else key
        self._outbox.append(OutboxRow(shard_of(key_bytes, partition), topic.name, partition, key_bytes, raw))

    def publish_raw(self, row: OutboxRow) -> None:
        """Publishes a record as it is: for replays of what came from outside."""
        self._outbox.append(row)

    def count(self, name: str, n: int = 1) -> None:
        """Adds to a durable counter with this transaction's commit; stands still in a replay."""
        if not self.replay:
            self._counts[name] += n

    async def enqueue(self, name: str, cause: str, payload: Mapping[str, Any]) -> bool:
        """Asks for a task, once per cause; False if it is being done already."""
        self.enqueued = True
        return await store.add_task(self.db, name, cause, payload, self.now)

    def saw(self, topic: str, source: str, highest: int, seen: int = 1) -> None:
        """`seen` events of `source`, up to number `highest`, came for the first time.

        What a source numbered and nobody saw is `missing`.
        """
        before = self._sources.get((topic, source), (0, 0))
        self._sources[topic, source] = (max(before[0], highest), before[1] + seen)

    def refuse(self, record: Any, reason: str, detail: str, *, keep: bool = True) -> None:
        """The record becomes a dead letter, in this transaction; its neighbours go on. `keep` off: the letter has nothing
        of what the record says, which may stand nowhere."""
        self.refused.append((record, "handler" if keep else "withheld", reason, detail))

    def after_commit(self, call: Callable[[], Any]) -> None:
        """Calls `call` once the commit is known to have happened (never, if this process dies first)."""
        self._after.append(call)

    async def flush(self, traceparent: str | None = None) -> bool:
        """Writes outbox and counters; the runtime calls it last. True if there is something to publish."""
        await store.add_ends(self.db, self._part, self._counts, self._sources, self._outbox, traceparent, self.now)
        return bool(self._outbox)

    def committed(self) -> None:
        """Runs what waited for the commit."""
        for call in self._after:
            call()


def slot_of(now: datetime, every: timedelta) -> datetime:
    """The start of the slot of length `every` (counted from 1970, UTC) that `now` lies in."""
    seconds = int(every.total_seconds())
    return datetime.fromtimestamp(int(now.timestamp()) // seconds * seconds, UTC)
