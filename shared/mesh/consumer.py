"""The consume loop: batches in, one fenced PostgreSQL transaction each, nothing ever raised into FastStream.

Before COMMIT everything may be redone; after it nothing may be lost. Offsets live in the cursor rows; what Kafka is
told is a hint for lag tools. One object owns the state of one consumed topic; the rebalance callbacks only report.
"""

from __future__ import annotations

import asyncio
import logging
import random
import re
import time
from bisect import bisect_left
from collections import Counter
from collections.abc import Awaitable, Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import timedelta
from functools import partial
from itertools import groupby
from operator import attrgetter
from typing import Any, TypeAlias

import asyncpg
from aiokafka import AIOKafkaConsumer, ConsumerRebalanceListener, TopicPartition
from aiokafka.errors import IllegalStateError, KafkaError

from shared.contract.base import NewerVersion, Refused
from shared.contract.cards import masked
from shared.contract.codec import Codec
from shared.mesh import metrics, store, tracing
from shared.mesh.clock import Clock
from shared.mesh.errors import where
from shared.mesh.partitions import last_day
from shared.mesh.safe import locked
from shared.mesh.service import Batch, Consumer, Filter, Guard, Received, Record
from shared.mesh.store import Connection, Cursor, DeadLetter, Pool
from shared.mesh.transaction import Transaction

log = logging.getLogger("steward.mesh")

REDRIVE = "steward_redrive"
DEAD_LETTER_LIFE = timedelta(days=7)


class NoPartitionYet(OSError):
    """The table of dead letters has no partition for the day on which today's end."""


# What goes away by itself: the same batch again, in order. Everything else is a bug in the record or in us.
TRANSIENT = (
    asyncpg.PostgresConnectionError,
    asyncpg.InterfaceError,
    asyncpg.InternalClientError,  # what a statement in flight may say when its connection breaks
    asyncpg.OperatorInterventionError,
    asyncpg.InsufficientResourcesError,
    asyncpg.SerializationError,
    asyncpg.DeadlockDetectedError,
    asyncpg.LockNotAvailableError,
    asyncpg.IdleInTransactionSessionTimeoutError,
    asyncpg.ReadOnlySQLTransactionError,
    OSError,
    asyncio.TimeoutError,
)


# Records of one topic by partition; in order within each.
Groups: TypeAlias = list[tuple[TopicPartition, list[Record]]]
# A record that is no event, or that no handler can handle: (record, stage, reason, detail).
Refusal: TypeAlias = tuple[Record, str, str, str]
_received = partial(tuple.__new__, Received)  # as Received(*each), without a call of Python's
_place = attrgetter("topic", "partition")
_timestamp = attrgetter("timestamp")


def grouped(records: Iterable[Record]) -> Groups:
    """`records` by partition; those of one partition follow each other."""
    return [(TopicPartition(topic, part), list(rs)) for (topic, part), rs in groupby(records, key=_place)]


class Fenced(Exception):
    """Somebody else owns one of the batch's partitions, or its cursor was moved under us."""


# A fetch is answered at once, or when it has waited for records: after so long without an answer there is no connection.
UNHEARD_SECONDS = 60.0
# Why a partition stands still until somebody acts.
STOPS = ("limit", "newer_version", "offset_reset")
_BULK_BYTES = 100_000
# So many records in one lingering fetch are thousands a second: then fewer batches do, and a good part of the CPU
# goes with them.
_BUSY_RECORDS, _BUSY_SECONDS = 64, 0.04


def _heard(hint: asyncio.Future[None]) -> None:
    """A hint that fails is a metric and no more."""
    if not hint.cancelled():
        hint.exception()


def _mean_size(records: Sequence[Record]) -> int:
    return sum(len(r.value or b"") for r in records) // len(records)


@dataclass(frozen=True, slots=True)
class Limit:
    """When failures of *our* making stop a partition: a bad release must not empty a topic into the dead letters.

    Counted per partition over handler failures only; a sender's invalid records alert and stop nobody.
    """

    consecutive: int = 20
    share: float = 0.2
    window: int = 500


@dataclass(slots=True)
class Partition:
    """What this process knows of a partition it has claimed."""

    cursor: Cursor
    last_ms: int = 0
    failures: int = 0
    run: int = 0
    seen: int = 0
    stopped: str | None = None
    polled_ms: int | None = None
    heard_at: float = field(default_factory=time.monotonic)


@dataclass(slots=True)
class Progress:
    """For liveness: when the loop last turned and which partitions stand still without a reason."""

    ticked_at: float = field(default_factory=time.monotonic)
    paused_since: dict[TopicPartition, float] = field(default_factory=dict)
    working_since: float | None = None


_ID = re.compile(rb"[A-Za-z0-9_.:/*-]{1,64}")
# Why a record is refused of which only what is declared is kept.
_DECLARED = ("undeclared_field", "invalid")


def _kept_key(key: bytes | None) -> bytes | None:
    """A record's key, if it is an id: anything else nobody has declared, and a re-drive names its partition."""
    return masked(key) if key is not None and _ID.fullmatch(key) else None


def _header(record: Record, name: str) -> bytes | None:
    for key, value in record.headers:
        if key == name:
            found: bytes | None = value
            return found
    return None


class TopicConsumer:
    """One consumed topic of one service in one process."""

    def __init__(
        self,
        service: str,
        declaration: Consumer,
        pool: Pool,
        clock: Clock,
        *,
        owner: str,
        session_timeout_ms: int,
        filter: Filter | None = None,
        guard: Guard | None = None,
        plugged: Mapping[str, Any] | None = None,
        limit: Limit | None = None,
        wake_relay: Callable[[], None] = lambda: None,
        wake_tasks: Callable[[], None] = lambda: None,
        fault: Callable[[str], Awaitable[None]] | None = None,
        give_up: Callable[[str], None] = lambda reason: None,
        fencing: bool = True,
    ) -> None:
        self.declaration = declaration
        self.topic = declaration.topic
        self.group = f"steward.{service}.{self.topic.name}"
        self.progress = Progress()
        self.partitions: dict[TopicPartition, Partition] = {}
        # Set by whoever subscribes: the client exists only once it is started, and its listener is not given it.
        self.attach: Callable[[], AIOKafkaConsumer | None] = lambda: None
        self._service, self._pool, self._clock, self._owner = service, pool, clock, owner
        self._codec = Codec(self.topic)
        self._filter, self._guard, self._plugged = filter, guard, plugged
        self._limit = limit or Limit()
        self._wake_relay, self._wake_tasks = wake_relay, wake_tasks
        self._fault = fault
        self._give_up = give_up
        self._session_timeout = session_timeout_ms / 1000
        self._fencing = fencing
        self._fenced_at: dict[TopicPartition, float] = {}
        self._fenced_before: set[TopicPartition] = set()
        self._parked: set[bytes] = set()
        self._generation = 0
        self._revoking = False
        # Batches under way and their partitions; the client's seeks by partition, and what they were at the last fetch.
        self._work: dict[asyncio.Task[None], set[TopicPartition]] = {}
        self._seeks: Counter[TopicPartition] = Counter()
        self._marks: dict[TopicPartition, int] = {}
        self._sought: dict[TopicPartition, int] = {}  # where a gap of a compacted topic was looked at a second time
        self._hint: asyncio.Future[None] | None = None
        self._stopping = asyncio.Event()
        self._claims: set[asyncio.Task[None]] = set()
        self._random = random.Random(owner + self.group)

    @property
    def consumer(self) -> AIOKafkaConsumer | None:
        """The Kafka client, once it is started."""
        return self.attach()

    # --- assignment ----------------------------------------------------------------------------------------------

    def listener(self) -> ConsumerRebalanceListener:
        """The rebalance listener to subscribe with."""
        outer = self

        class Listener(ConsumerRebalanceListener):  # type: ignore[misc]
            async def on_partitions_assigned(self, assigned: Iterable[TopicPartition]) -> None:
                await outer.assigned(sorted(assigned))

            async def on_partitions_revoked(self, revoked: Iterable[TopicPartition]) -> None:
                await outer.revoked(list(revoked))

        return Listener()

    async def assigned(self, tps: Sequence[TopicPartition]) -> None:
        """Claims what was assigned; paused until the cursor has told where to start."""
        consumer = self._consumer()
        # Before the first await: aiokafka hands out records while this callback is still running.
        consumer.pause(*tps)
        self._generation += 1
        generation = self._generation
        metrics.REBALANCES_TOTAL.labels(self.topic.name).inc()
        now = time.monotonic()
        self.progress.paused_since = dict.fromkeys(tps, now)
        self.partitions = {}
        self._fenced_at.clear()
        self._fenced_before.clear()
        await self._at("assigned")
        for tp in tps:
            if not await self._claim(tp, generation):
                return
        # Together: what is resumed alone is fetched alone, and the others wait until that fetch is answered.
        for tp in tps:
            self._resume(tp, generation)

    async def _claim(self, tp: TopicPartition, generation: int) -> bool:
        """Claims one partition, for as long as the database takes; still paused. False = a newer assignment overtook
        this one."""
        delay = 0.1
        while generation == self._generation and not self._stopping.is_set():
            try:
                async with self._pool.acquire() as db:
                    cursor = await store.claim(db, self.group, tp.topic, tp.partition, self._owner, self._clock.now())
                    self._parked = await store.parked_keys(db, self.group, self.topic.name)
                await self._at("claimed")
                if generation != self._generation:
                    return False
                partition = Partition(cursor, last_ms=int(self._clock.now().timestamp() * 1000))
                await self._begin_at_cursor(tp, partition)
            except (*TRANSIENT, KafkaError) as error:
                self.tick()
                log.warning("claim of %s-%s waits: %s", tp.topic, tp.partition, type(error).__name__)
                await self._pause_for(delay)
                delay = min(delay * 2, 5.0)
                continue
            except IllegalStateError:
                return False  # no longer assigned: the next assignment starts over
            return True
        return False

    async def _begin_at_cursor(self, tp: TopicPartition, partition: Partition) -> None:
        consumer = self._consumer()
        cursor = partition.cursor
        if cursor.created:
            # Offset 0 means the log's start; what retention took before a first claim is no gap.
            begin = (await consumer.beginning_offsets([tp]))[tp]
            async with self._pool.acquire() as db, db.transaction():
                await store.fence(db, self.group, tp.topic, [(tp.partition, cursor.epoch, 0, begin)])
            cursor.next_offset = cursor.high_offset = begin
        self.partitions[tp] = partition
        self._fenced_at.pop(tp, None)  # not before: until now a look at the cursors would fence it once more
        self._seek(tp, cursor.next_offset)

    def _resume(self, tp: TopicPartition, generation: int) -> None:
        if generation != self._generation or tp in self._fenced_at:
            return  # the next assignment, or the claim after the fence, starts over
        try:
            self._consumer().resume(tp)
        except IllegalStateError:
            return  # no longer assigned
        self.progress.paused_since.pop(tp, None)

    async def revoked(self, tps: Sequence[TopicPartition]) -> None:
        """Waits for the batch in hand, then forgets the epochs. Drain first, fence second."""
        if not tps:
            return
        self._revoking = True  # a batch that waits for the database lets go; its cursor tells the next owner
        await self.drained()
        self._revoking = False
        self._generation += 1
        for tp in tps:
            self.partitions.pop(tp, None)
            self.progress.paused_since.pop(tp, None)
            self._fenced_at.pop(tp, None)
            # Whoever owns it next tells its lag; ours would stand for ever.
            self._say_no_more(tp)

    @staticmethod
    def _say_no_more(tp: TopicPartition) -> None:
        for gauge in (metrics.CONSUMER_LAG_RECORDS, metrics.CONSUMER_LAG_SECONDS, metrics.CONSUMER_NEXT_OFFSET):
            gauge.remove(tp.topic, str(tp.partition))

    def stop(self) -> None:
        """No new batch from here on; the one in hand is finished."""
        self._stopping.set()

    @property
    def stopped(self) -> bool:
        """No new batch is begun any more."""
        return self._stopping.is_set()

    async def drained(self) -> None:
        """Returns when no batch is in hand."""
        while self._work:
            await asyncio.wait(list(self._work))

    # --- one batch -----------------------------------------------------------------------------------------------

    def tick(self) -> None:
        """The loop turned."""
        self.progress.ticked_at = time.monotonic()

    def fetched(self) -> None:
        """The client has just handed out records: whatever is sought from here on makes them stale."""
        self._marks = dict(self._seeks)

    async def on_batch(self, records: Sequence[Record]) -> None:
        """Everything FastStream hands over. Whatever happens, nothing is raised.

        A full batch may go on by itself while the next one, of other partitions, is begun: PostgreSQL and this
        process then work at once. Batches of one partition never overlap.
        """
        self.tick()
        marks = self._marks
        groups = grouped(records)
        tps = {tp for tp, _ in groups}
        while waits := [task for task, theirs in self._work.items() if theirs & tps] or (
            list(self._work) if len(self._work) >= self.declaration.parallel else []
        ):
            await asyncio.wait(waits, return_when=asyncio.FIRST_COMPLETED)
        # Records fetched before a seek lie in the wrong place; what is left out is sought again, never skipped.
        stale = {tp for tp in tps if self._seeks[tp] != marks.get(tp, 0)}
        if stale:
            self._seek_back(stale)
            groups = [(tp, rs) for tp, rs in groups if tp not in stale]
        task = asyncio.ensure_future(self._safely(groups))
        self._work[task] = tps
        task.add_done_callback(self._work.pop)
        small = len(records) < self.declaration.batch // 4
        if small or self.declaration.parallel == 1:
            await task
        bulk = self.declaration.bulk_linger_ms / 1000
        if bulk and len(records) < self.declaration.batch * 2 // 3 and _mean_size(records) >= _BULK_BYTES:
            await self._pause_for(bulk)
        elif small and self.declaration.lingers and len(records) >= _BUSY_RECORDS:
            await self._pause_for(_BUSY_SECONDS)

    async def _safely(self, groups: Groups) -> None:
        if self.progress.working_since is None:
            self.progress.working_since = time.monotonic()
        try:
            await self._take(groups)
        except Exception as error:
            # A bug of the runtime itself: the records are read again from the cursors, never skipped.
            log.error("the batch is redone: error in the runtime: %s", where(error))
            metrics.RETRIES_TOTAL.labels(self.topic.name, "runtime").inc()
            self._seek_back(tp for tp, _ in groups)
            await self._pause_for(1.0)
        finally:
            self.progress.working_since = None if len(self._work) <= 1 else time.monotonic()

    async def _take(self, groups: Groups) -> None:
        if self._stopping.is_set():
            return
        for part, replay in self._passes(await self._mine(groups)):
            await self._with_retries(part, replay)

    async def _mine(self, groups: Groups) -> Groups:
        """Leaves out what is not claimed or was passed already; notes gaps."""
        mine: Groups = []
        for tp, rs in groups:
            partition = self.partitions.get(tp)
            if partition is None or partition.stopped or tp in self._fenced_at:
                continue
            expected = partition.cursor.next_offset
            if rs[0].offset < expected:
                end = self._consumer().highwater(tp)
                if end is not None and end < expected:
                    # The log ends before the cursor: the topic was made anew. Dropping its records as old would lose them.
                    log.critical("%s-%s stops: the topic was made anew; see `steward cursors rebase`", *tp)
                    self._stop(tp, partition, "offset_reset")
                    continue
                rs = [r for r in rs if r.offset >= expected]
                if not rs:
                    continue
            if rs[0].offset > expected and self.topic.compacted:
                # Compaction leaves gaps; but what was fetched before a seek has one, too, and is sought again, once.
                if self._sought.get(tp) != expected:
                    self._sought[tp] = expected
                    self._seek_back({tp})
                    continue
            elif rs[0].offset > expected:
                start = (await self._consumer().beginning_offsets([tp]))[tp]
                if start <= expected:
                    # Kafka still has what is missing: the client was somewhere else. Nothing is skipped.
                    self._seek_back({tp})
                    continue
                gap = rs[0].offset - expected
                log.error(
                    "%s-%s: %d records from offset %d on were lost to retention before they were read",
                    *tp,
                    gap,
                    expected,
                )
                metrics.OFFSET_GAP_RECORDS_TOTAL.labels(tp.topic).inc(gap)
            mine.append((tp, rs))
        return mine

    def _passes(self, groups: Groups) -> list[tuple[Groups, bool]]:
        """Splits a batch where a rewound cursor reaches new ground: replays change no counter."""
        old: Groups = []
        new: Groups = []
        for tp, rs in groups:
            high = self.partitions[tp].cursor.high_offset
            if rs[0].offset >= high:
                new.append((tp, rs))
                continue
            old.append((tp, [r for r in rs if r.offset < high]))
            if rs[-1].offset >= high:
                new.append((tp, [r for r in rs if r.offset >= high]))
        return [(part, replay) for part, replay in ((old, True), (new, False)) if part]

    async def _with_retries(self, groups: Groups, replay: bool) -> None:
        tps = {tp for tp, _ in groups}
        try:
            await self._effect(groups, replay)
        except Fenced:
            return
        except TRANSIENT:
            metrics.RETRIES_TOTAL.labels(self.topic.name, "database").inc()
            await self._recover(tps)
        except Exception as error:
            metrics.RETRIES_TOTAL.labels(self.topic.name, "handler").inc()
            await self._recover(tps, seek=False)
            records = self._still_mine(groups)
            if len(records) > 1:
                # One record fails on its own: find it by halving, so that its neighbours go through.
                half = len(records) // 2
                await self._with_retries(grouped(records[:half]), replay)
                rest = self._still_mine(grouped(records[half:]))
                if rest:
                    await self._with_retries(grouped(rest), replay)
            elif records:
                await self._failed(records[0], error, replay)

    def _still_mine(self, groups: Groups) -> list[Record]:
        """What of `groups` is still to be done by this process."""
        left: list[Record] = []
        for tp, rs in groups:
            partition = self.partitions.get(tp)
            if partition is not None and partition.stopped is None and tp not in self._fenced_at:
                left += [r for r in rs if r.offset >= partition.cursor.next_offset]
        return left

    async def _failed(self, record: Record, error: Exception, replay: bool) -> None:
        """A record that fails on its own: a dead letter or a parked key, unless failures have become too many."""
        tp = TopicPartition(record.topic, record.partition)
        partition = self.partitions[tp]
        partition.failures += 1
        partition.run += 1
        limit = self._limit
        if partition.run > limit.consecutive or (
            partition.seen > limit.window and partition.failures > limit.share * partition.seen
        ):
            log.critical("%s-%s stops: too many records fail in the handler", tp.topic, tp.partition)
            self._stop(tp, partition, "limit")
            return
        refusal = (record, "handler", "handler_error", type(error).__name__)
        try:
            await self._effect([(tp, [record])], replay, failed=refusal)
        except Fenced:
            return
        except TRANSIENT:
            await self._recover({tp})

    async def _effect(self, groups: Groups, replay: bool, failed: Refusal | None = None) -> None:
        """Decodes and commits `groups`: cursors, effects, dead letters, outbox and counters in one transaction."""
        topic = self.topic.name
        clock = time.perf_counter
        t0 = clock()
        received: list[Received] = []
        refused: list[Refusal] = [] if failed is None else [failed]
        if failed is None:
            received, refused, groups = self._decode(groups)
        if not groups:
            return
        t1 = clock()
        await self._at("decoded")
        records = [r for _, rs in groups for r in rs]
        moves = {tp: rs[-1].offset + 1 for tp, rs in groups}
        span = tracing.batch_span(topic, self.group, [rs for _, rs in groups])
        with span as traceparent, self._told([] if failed else records):
            async with self._pool.acquire() as db:
                transaction = db.transaction()
                await transaction.start()
                try:
                    await self._fence(db, moves)
                    await self._at("fenced")
                    tx = Transaction(
                        self._service, db, self._clock.now(), part=min(tp.partition for tp in moves), replay=replay,
                        plugged=self._plugged,
                    )  # fmt: skip
                    if self._guard is not None and self.declaration.guarded:
                        await self._guard(tx)
                    redrives = await self._settle_redrives(tx, received, records)
                    tx.count(f"records:{topic}", len(records) - len(redrives))
                    waiting = await self._behind_parked(db, received) if self._parked else []
                    if waiting:
                        received = [r for r in received if r.record not in waiting]
                    batch = Batch(self.topic, received, replay)
                    if self._filter is not None:
                        batch = await self._filter(batch, tx)
                    if batch.events or batch.erased:
                        await self.declaration.handler(batch, tx)
                    t2 = clock()
                    refused += tx.refused
                    if failed is not None and self.topic.ordered and failed[0].key is not None:
                        waiting, refused = [failed[0]], []
                    if waiting:
                        await store.park(db, self.group, topic, waiting, "handler_error", tx.now)
                        tx.count(f"parked:{topic}", len(waiting))
                    dead = await self._write_letters(tx, refused, redrives) if refused else 0
                    publishes = await tx.flush(traceparent)
                    await self._at("before_commit")
                    t3 = clock()
                except BaseException:
                    await self._rollback(transaction)
                    raise
                await transaction.commit()
        await self._at("committed")
        t4 = clock()
        self._moved(groups, succeeded=failed is None)
        if not replay:
            self._aged(groups)
        self._parked.update(r.key or b"" for r in waiting)
        tx.committed()
        if publishes:
            self._wake_relay()
        if tx.enqueued:
            self._wake_tasks()
        for stage, seconds in (("decode", t1 - t0), ("handler", t2 - t1), ("write", t3 - t2), ("commit", t4 - t3)):
            metrics.BATCH_DURATION_SECONDS.labels(topic, stage).observe(seconds)
        metrics.BATCH_SIZE_RECORDS.labels(topic).observe(len(records))
        for outcome, n in (("handled", len(batch.events)), ("parked", len(waiting)), ("dead_lettered", dead)):
            metrics.RECORDS_TOTAL.labels(topic, outcome).inc(n)

    @contextmanager
    def _told(self, records: Sequence[Record]) -> Iterator[None]:
        """Says what a batch fails of while its span is open, so that the line has its trace; of a handler's errors those of a
        record alone."""
        try:
            yield
        except Fenced:
            raise
        except TRANSIENT as error:
            log.warning("%s: batch is redone: %s", self.topic.name, type(error).__name__)
            raise
        except Exception as error:
            if len(records) == 1:
                (r,) = records
                log.error("%s-%s offset %d fails in the handler: %s", r.topic, r.partition, r.offset, where(error))
            raise

    def _moved(self, groups: Groups, *, succeeded: bool) -> None:
        """The commit is known: this process's picture of the cursors follows."""
        for tp, rs in groups:
            last = rs[-1]
            partition = self.partitions.get(tp)
            if partition is None:
                continue
            cursor = partition.cursor
            cursor.next_offset = last.offset + 1
            cursor.high_offset = max(cursor.high_offset, cursor.next_offset)
            partition.last_ms = last.timestamp
            partition.seen += len(rs)
            if succeeded:
                partition.run = 0

    def _aged(self, groups: Groups) -> None:
        """How old the records of a commit had become. Those that are handled again were old before."""
        now = self._clock.now().timestamp()
        late_ms = (now - metrics.FRESH_SECONDS) * 1000
        for tp, rs in groups:
            metrics.EVENT_AGE_SECONDS.labels(tp.topic).observe(max(0.0, now - rs[-1].timestamp / 1000))
            # Within a partition they are in the order of the broker's clock.
            if rs[0].timestamp < late_ms:
                metrics.LATE_RECORDS_TOTAL.labels(tp.topic).inc(bisect_left(rs, late_ms, key=_timestamp))

    async def _behind_parked(self, db: Connection, received: list[Received]) -> list[Record]:
        """Records that must wait behind a failed one of their key. The table is asked: a release may have come."""
        if not any((r.record.key or b"") in self._parked for r in received):
            return []
        self._parked = await store.parked_keys(db, self.group, self.topic.name)
        return [r.record for r in received if (r.record.key or b"") in self._parked]

    async def _rollback(self, transaction: Any) -> None:
        try:
            await transaction.rollback()
        except (*TRANSIENT, asyncpg.PostgresError):
            log.debug("rollback had no connection left; the server rolls back by itself")

    async def _fence(self, db: Connection, moves: dict[TopicPartition, int]) -> None:
        wanted = []
        for tp, offset in moves.items():
            partition = self.partitions.get(tp)
            if partition is None:
                raise Fenced
            wanted.append((tp.partition, partition.cursor.epoch, partition.cursor.next_offset, offset))
        moved = await store.fence(db, self.group, self.topic.name, sorted(wanted))
        lost = [tp for tp in moves if tp.partition not in moved]
        if lost and self._fencing:
            for tp in lost:
                self._on_fenced(tp)
            self._seek_back(set(moves) - set(lost))
            raise Fenced

    def _on_fenced(self, tp: TopicPartition) -> None:
        log.warning("%s-%s: fenced; another process owns it, or its cursor was moved", tp.topic, tp.partition)
        metrics.FENCED_TOTAL.labels(tp.topic).inc()
        self._fenced_at[tp] = time.monotonic()
        try:
            self._consumer().pause(tp)
        except IllegalStateError:
            return
        claim = asyncio.ensure_future(self._claim_after_fence(tp, self._generation))
        self._claims.add(claim)
        claim.add_done_callback(self._claims.discard)

    async def _claim_after_fence(self, tp: TopicPartition, generation: int) -> None:
        """A cursor moved by hand is claimed again at once.

        One that another process claimed shows, within a session timeout, by an assignment that takes the partition
        away from us; still assigned after that, we claim once more, and leave the field at the second time.
        """
        by_hand = False
        try:
            async with self._pool.acquire() as db:
                by_hand = await store.moved_by_hand(db, self.group, tp.topic, tp.partition)
        except TRANSIENT as error:
            log.info("%s-%s: cannot tell who moved the cursor: %s", tp.topic, tp.partition, type(error).__name__)
        if not by_hand:
            await self._pause_for(self._session_timeout)
        if generation != self._generation or self._stopping.is_set():
            return
        if not by_hand and tp in self._fenced_before:
            self._give_up(f"{tp.topic}-{tp.partition} was fenced twice while assigned")
            return
        if not by_hand:
            self._fenced_before.add(tp)
        if await self._claim(tp, generation):
            self._resume(tp, generation)

    def _decode(self, groups: Groups) -> tuple[list[Received], list[Refusal], Groups]:
        """Decodes a batch in one pass; a version nobody here knows yet ends its partition's share of it."""
        decode = self._codec.decode
        received: list[Received] = []
        refused: list[Refusal] = []
        kept: Groups = []
        for tp, rs in groups:
            # On a compacted topic a record without a value says that its key is over; it is no event.
            valued = [r for r in rs if r.value is not None] if self.topic.compacted else rs
            try:
                received += map(_received, zip([decode(r.value) for r in valued], valued, strict=True))
                kept.append((tp, rs))
                continue
            except (Refused, NewerVersion):
                pass  # one by one, then
            for r in valued:
                try:
                    received.append(Received(decode(r.value), r))
                except Refused as error:
                    refused.append((r, "decode", error.reason, error.detail))
                except NewerVersion as error:
                    log.critical("%s-%s stops: %s; deploy the newer reader first", tp.topic, tp.partition, error)
                    self._stop(tp, self.partitions[tp], "newer_version")
                    rs = [before for before in rs if before.offset < r.offset]
                    break
            if rs:
                kept.append((tp, rs))
        return received, refused, kept

    async def _settle_redrives(
        self, tx: Transaction, received: list[Received], records: list[Record]
    ) -> dict[tuple[int, int], Mapping[str, Any]]:
        """Re-driven dead letters (their last header names the letter) are no new records: they change class.

        Returns the letters by partition and offset of the record that brings them again. A letter that is refused
        again goes on waiting.
        """
        marked = [r for r in records if r.headers and r.headers[-1][0] == REDRIVE]
        if not marked:
            return {}
        decoded = {(x.record.partition, x.record.offset) for x in received}
        redriven = {}
        for r in marked:
            raw = r.headers[-1][1] or b""
            place = (r.partition, r.offset)
            letter = await store.set_dead_letter_state(
                tx.db, int(raw) if raw.isdigit() else 0, "replaying", "replayed" if place in decoded else "waiting"
            )
            if letter is not None:
                redriven[place] = letter
                if place in decoded and letter["counted"]:
                    tx.count(f"dead_lettered:{self.topic.name}", -1)
        return redriven

    async def _write_letters(
        self, tx: Transaction, refused: Sequence[Refusal], redriven: Mapping[tuple[int, int], Mapping[str, Any]]
    ) -> int:
        """Keeps what was refused; returns how many letters are new."""
        letters = []
        for record, stage, reason, detail in refused:
            again = redriven.get((record.partition, record.offset))
            if again is not None:
                if await store.set_dead_letter_state(tx.db, again["id"], "replayed", "waiting") and again["counted"]:
                    tx.count(f"dead_lettered:{self.topic.name}", 1)
                continue
            source = _header(record, "ce_source")
            sequence = _header(record, "ce_sequence")
            payload = record.value
            if stage == "decode" and reason in _DECLARED and payload is not None:
                # What nobody declared, or breaks its rule, may be what must not be kept: only names and lengths stay.
                payload, left_out = self._codec.declared(payload)
                detail = left_out or detail
            if stage == "withheld":
                stage, payload = "handler", None
            if stage == "decode" and payload is not None:
                # What is left of it, or what nobody could read, may hold a card number; the latter may hold anything.
                payload = masked(payload)
                if reason not in _DECLARED:
                    payload = await locked(payload, tx)
            letters.append(
                DeadLetter(
                    self.group, record.topic, record.partition, record.offset, stage, reason,
                    masked(detail[:500].encode("latin-1", "replace")).decode("latin-1"),
                    _kept_key(record.key), store.pack_headers(record.headers), payload,
                    masked(source).decode("ascii", "replace")[:64] if source else None,
                    int(sequence) if sequence and sequence.isdigit() and len(sequence) <= 18 else None,
                    None, not tx.replay,
                )
            )  # fmt: skip
        try:
            new = await store.add_dead_letters(tx.db, letters, last_day(tx.now + DEAD_LETTER_LIFE), tx.now)
        except asyncpg.CheckViolationError:
            # After a sleep of days there is no partition for today's letters until the hourly job, which is due, has run.
            raise NoPartitionYet("dead letters have no partition yet") from None
        tx.count(f"dead_lettered:{self.topic.name}", len(new))
        numbered = [(x.source, x.sequence) for x in new if x.source is not None and x.sequence is not None]
        known = await store.repeated_sequences(tx.db, self.topic.name, numbered) if numbered else set()
        for letter in new:
            numbers = (letter.source, letter.sequence)
            if letter.source is not None and letter.sequence is not None and numbers not in known:
                tx.saw(self.topic.name, letter.source, letter.sequence)
            metrics.DEAD_LETTERS_TOTAL.labels(self.topic.name, letter.reason).inc()
        return len(new)

    # --- after a failure -----------------------------------------------------------------------------------------

    async def _recover(self, tps: set[TopicPartition], seek: bool = True) -> None:
        """Asks the cursors what became of the last transaction, for as long as it takes, and goes on from there."""
        delay = 0.1
        while not (self._stopping.is_set() or self._revoking):
            try:
                async with self._pool.acquire() as db:
                    for tp in sorted(tps):
                        partition = self.partitions.get(tp)
                        if partition is None:
                            continue
                        cursor = await store.reclaim(
                            db, self.group, tp.topic, tp.partition, partition.cursor.epoch, self._clock.now()
                        )
                        if cursor is None:
                            self._on_fenced(tp)
                            continue
                        partition.cursor = cursor
                break
            except (*TRANSIENT, asyncpg.PostgresError) as error:
                self.tick()
                log.warning("%s: waiting for the database: %s", self.topic.name, type(error).__name__)
                await self._pause_for(delay * (0.5 + self._random.random() / 2))
                delay = min(delay * 2, 10.0)
        if seek:
            self._seek_back(tps)

    def _seek_back(self, tps: Iterable[TopicPartition] | None = None) -> None:
        for tp in self.partitions if tps is None else tps:
            partition = self.partitions.get(tp)
            if partition is None or tp in self._fenced_at or partition.stopped:
                continue
            try:
                self._seek(tp, partition.cursor.next_offset)
            except IllegalStateError:
                log.info("%s-%s is no longer assigned", tp.topic, tp.partition)

    def _seek(self, tp: TopicPartition, offset: int) -> None:
        self._seeks[tp] += 1
        self._consumer().seek(tp, offset)

    def _stop(self, tp: TopicPartition, partition: Partition, reason: str) -> None:
        partition.stopped = reason
        try:
            self._consumer().pause(tp)
        except IllegalStateError:
            log.info("%s-%s is no longer assigned", tp.topic, tp.partition)

    # --- the rest ------------------------------------------------------------------------------------------------

    async def commit_hints(self) -> None:
        """Tells Kafka where the cursors are, for lag tools. Best effort; never ahead of a cursor."""
        consumer = self.consumer
        offsets = {tp: p.cursor.next_offset for tp, p in self.partitions.items()}
        if consumer is None or not offsets:
            return
        if self._hint is None or self._hint.done():
            self._hint = asyncio.ensure_future(consumer.commit(offsets))
            self._hint.add_done_callback(_heard)
        # Not cancelled when it takes long: the client would leave an error behind that nobody hears of.
        await asyncio.wait({self._hint}, timeout=4)
        if not self._hint.done() or self._hint.cancelled() or self._hint.exception() is not None:
            metrics.KAFKA_COMMIT_FAILURES_TOTAL.labels(self.topic.name).inc()
            log.info("%s: Kafka did not take the offset hint", self.topic.name)

    def lag(self) -> dict[TopicPartition, int | None]:
        """Records behind the end, by claimed partition; None = not known, or no longer."""
        consumer = self.consumer
        result: dict[TopicPartition, int | None] = {}
        for tp, partition in self.partitions.items():
            try:
                high = consumer.highwater(tp) if consumer is not None and self._hears(consumer, tp, partition) else None
            except (IllegalStateError, AssertionError):
                high = None
            result[tp] = None if high is None else max(0, high - partition.cursor.next_offset)
        return result

    def _hears(self, consumer: AIOKafkaConsumer, tp: TopicPartition, partition: Partition) -> bool:
        """Whether Kafka answers for a partition. Where it does not, the end that it last named says nothing."""
        now, polled = time.monotonic(), consumer.last_poll_timestamp(tp)
        # Nothing is asked for while a batch is in hand, or of a partition that stands still.
        if polled != partition.polled_ms or self._work or partition.stopped is not None:
            partition.polled_ms, partition.heard_at = polled, now
        return now - partition.heard_at <= UNHEARD_SECONDS

    async def notice_moved(self) -> bool:
        """Looks whether somebody moved a cursor that is ours, also when no record comes; True if so."""
        before = {tp: p.cursor for tp, p in self.partitions.items()}
        async with self._pool.acquire() as db:
            epochs = await store.epochs(db, self.group, self.topic.name)
        busy = set().union(*self._work.values())
        moved = [
            tp
            for tp, cursor in before.items()
            # A batch in hand finds out by itself, and may just be raising the epoch.
            if tp not in busy and tp not in self._fenced_at
            and (now := self.partitions.get(tp)) is not None and now.cursor is cursor
            and epochs.get(tp.partition) != cursor.epoch
        ]  # fmt: skip
        for tp in moved:
            self._on_fenced(tp)
        return bool(moved or self._fenced_at)

    async def true_lag(self, spans: Mapping[TopicPartition, tuple[int, int]]) -> int:
        """Records of the topic that the group has not passed, whoever owns their partitions: Kafka's `spans` (log start
        and end) against the cursor rows. Not to be known while this process is still claiming: then 1."""
        if not self.ready() or await self.notice_moved():
            return 1
        name = self.topic.name
        async with self._pool.acquire() as db:
            passed = await store.next_offsets(db, self.group, name)
        # What was cut off before a cursor had passed it (an older copy of the database was put back) never comes.
        return sum(
            max(0, end - max(begin, passed.get(tp.partition, 0)))
            for tp, (begin, end) in spans.items()
            if tp.topic == name
        )

    def observe(self) -> None:
        """Sets the gauges of lag and of partitions that stand still."""
        stopped = Counter(p.stopped for p in self.partitions.values())
        for reason in STOPS:
            metrics.PARTITIONS_STOPPED.labels(self.topic.name, reason).set(stopped[reason])
        now_ms = self._clock.now().timestamp() * 1000
        for tp, records in self.lag().items():
            if records is None:
                self._say_no_more(tp)
                continue
            partition = self.partitions[tp]
            labels = (tp.topic, str(tp.partition))
            metrics.CONSUMER_NEXT_OFFSET.labels(*labels).set(partition.cursor.next_offset)
            metrics.CONSUMER_LAG_RECORDS.labels(*labels).set(records)
            metrics.CONSUMER_LAG_SECONDS.labels(*labels).set(
                max(0.0, (now_ms - partition.last_ms) / 1000) if records else 0.0
            )
        metrics.LOOP_TICK_SECONDS.labels(self.topic.name).set(time.monotonic() - self.progress.ticked_at)

    def trouble(self) -> str | None:
        """Why this consumer is not alive; None if it is. Kafka or PostgreSQL being away is no reason."""
        now = time.monotonic()
        busy = self.progress.working_since is not None
        if not busy and now - self.progress.ticked_at > 30:
            return f"{self.topic.name}: the loop has not turned for 30 s"
        if busy and now - self.progress.ticked_at > 90:
            return f"{self.topic.name}: one batch has taken more than 90 s"
        for tp, since in self.progress.paused_since.items():
            if now - since > 60:
                return f"{tp.topic}-{tp.partition}: assigned but not claimed for 60 s"
        consumer = self.consumer
        if consumer is not None:
            for tp in consumer.paused():
                partition = self.partitions.get(tp)
                claiming = tp in self._fenced_at or tp in self.progress.paused_since
                if partition is not None and partition.stopped is None and not claiming:
                    return f"{tp.topic}-{tp.partition}: paused without a reason"
        return None

    def stops(self) -> list[str]:
        """Which partitions of this process stand still until somebody acts, where, and why."""
        return [
            f"{tp.topic}-{tp.partition} stopped at offset {partition.cursor.next_offset}: {partition.stopped}"
            for tp, partition in self.partitions.items()
            if partition.stopped is not None
        ]

    def ready(self) -> bool:
        """Assigned, and everything assigned is claimed."""
        consumer = self.consumer
        if consumer is None:
            return False
        assignment = consumer.assignment()
        return all(tp in self.partitions for tp in assignment) and self._generation > 0

    def _consumer(self) -> AIOKafkaConsumer:
        assert self.consumer is not None, "the consumer is set before it subscribes"
        return self.consumer

    async def _pause_for(self, seconds: float) -> None:
        """Waits, unless the service stops first."""
        if seconds <= 0:
            return
        try:
            async with asyncio.timeout(seconds):
                await self._stopping.wait()
        except TimeoutError:
            return

    async def _at(self, point: str) -> None:
        if self._fault is not None:
            await self._fault(point)
