"""The relay: outbox rows to Kafka, in order per key, at least once.

One relay per shard at a time, by a session lock of PostgreSQL; a crash frees the lock, and the next relay may publish
a row again under the same event id. The producer is idempotent and sends record by record.
"""

from __future__ import annotations

import asyncio
import logging
from collections import Counter
from collections.abc import Awaitable, Callable, Sequence
from functools import lru_cache
from typing import Any

import asyncpg
from aiokafka import AIOKafkaProducer
from aiokafka.errors import KafkaError
from aiokafka.partitioner import murmur2

from shared.mesh import metrics, store, tracing
from shared.mesh.consumer import TRANSIENT
from shared.mesh.settings import KafkaSettings
from shared.mesh.store import Connection, Pool
from shared.mesh.transaction import SHARDS

log = logging.getLogger("steward.mesh")

MAX_RECORD_BYTES = 8 * 1024 * 1024
_ROWS, _BYTES = 500, 2_000_000
_IDLE_SECONDS = 0.5
# A statement of the relay takes milliseconds: after this (seconds) the server, or the way to it, is gone.
COMMAND_SECONDS = 30.0
_CONTENT_TYPE = ("content-type", b"application/cloudevents+json")


# The client hashes a key in Python, which takes as long as the rest of sending its record; keys come again and again.
_hash: Callable[[bytes], int] = lru_cache(maxsize=65_536)(murmur2)


def _partition(key: bytes | None, all_partitions: Sequence[int], available: Sequence[int]) -> int:
    """The partition of a key as every Kafka client computes it. A record without a key names its partition itself."""
    assert key is not None, "a record has a key or a partition"
    return all_partitions[(_hash(key) & 0x7FFFFFFF) % len(all_partitions)]


class Relay:
    """Publishes one service's outbox for as long as `run` runs."""

    def __init__(
        self,
        service: str,
        url: str,
        pool: Pool,
        kafka: KafkaSettings,
        *,
        fault: Callable[[str], Awaitable[None]] | None = None,
        locking: bool = True,
    ) -> None:
        self._service, self._url, self._pool, self._kafka = service, url, pool, kafka
        self._fault = fault
        self._locking = locking
        self._wake = asyncio.Event()
        self._fresh = False
        self._stopping = False

    def wake(self) -> None:
        """This process has committed rows."""
        self._fresh = True
        self._wake.set()

    def stop(self) -> None:
        """Finishes the rows in hand, then `run` returns."""
        self._stopping = True
        self._wake.set()

    async def run(self) -> None:
        """Publishes until stopped; a database or broker that is away is waited for."""
        delay = 0.1
        while not self._stopping:
            try:
                await self._session()
                delay = 0.1
            except (*TRANSIENT, asyncpg.PostgresError, KafkaError) as error:
                log.warning("relay waits: %s", type(error).__name__)
                await self._sleep(delay)
                delay = min(delay * 2, 10.0)

    async def _session(self) -> None:
        """One database session (and its locks) with one producer, until something breaks."""
        lock = await store.connect(self._url, f"steward-{self._service}-relay", command_timeout=COMMAND_SECONDS)
        # A producer that has seen an out-of-order or unknown-producer error never recovers: each session has its own.
        producer = AIOKafkaProducer(
            **self._kafka.client(),
            client_id=f"steward-{self._service}-relay",
            enable_idempotence=True,
            acks="all",
            compression_type="zstd",
            linger_ms=2,
            partitioner=_partition,
            max_batch_size=128 * 1024,
            max_request_size=MAX_RECORD_BYTES,
            request_timeout_ms=20_000,
        )
        try:
            await producer.start()
            await store.hear_outbox(lock, self._wake.set)
            shards: set[int] = set() if self._locking else set(range(SHARDS))
            while not self._stopping:
                if len(shards) < SHARDS:
                    shards |= await store.take_shards(lock, set(range(SHARDS)) - shards)
                self._wake.clear()
                if self._fresh and len(shards) < SHARDS:
                    await store.announce_outbox(lock)  # they may be another process's to publish
                self._fresh = False
                # With less than was asked for, all is out: whatever is committed after that look wakes us.
                if not shards or not await self._publish_some(lock, producer, shards):
                    await self._sleep(_IDLE_SECONDS)
        finally:
            try:
                await asyncio.wait_for(producer.stop(), 5)
            finally:
                await lock.close(timeout=3)

    async def _publish_some(self, db: Connection, producer: AIOKafkaProducer, shards: set[int]) -> bool:
        """Publishes the oldest rows of `shards`; True if there may be more."""
        # Read on the connection that holds the locks: without them there are no rows to be had.
        rows = await store.next_outbox(db, sorted(shards), _ROWS, _BYTES)
        if not rows:
            return False
        await self._at("relay_read")
        spans = tracing.Sending(rows)
        failure: BaseException | None = None
        try:
            outcomes = await self._send(producer, rows, spans)
            failure = next((o for o in outcomes if isinstance(o, BaseException)), None)
        except BaseException as error:
            failure = error
            raise
        finally:
            spans.end(failure)
        await self._at("relay_acknowledged")
        # Only rows before the first failure of the batch: a later row of the same key must not overtake an earlier one.
        done = []
        counts: Counter[str] = Counter()
        for row, outcome in zip(rows, outcomes, strict=True):
            if isinstance(outcome, BaseException):
                break
            done.append(row["id"])
            counts[row["topic"]] += 1
        for topic, n in counts.items():
            metrics.OUTBOX_SENT_TOTAL.labels(topic).inc(n)
        if done:
            await store.drop_outbox(db, done)
        if failure is not None:
            raise failure
        return len(rows) == _ROWS or sum(len(row["value"] or b"") for row in rows) >= _BYTES

    async def _send(self, producer: AIOKafkaProducer, rows: Sequence[Any], spans: tracing.Sending) -> list[Any]:
        """What became of each row: what the broker says of its place, or an error."""
        sent = []
        for row in rows:
            headers = store.unpack_headers(row["headers"]) if row["headers"] else [_CONTENT_TYPE]
            if traceparent := spans.traceparent(row):
                headers = [("traceparent", traceparent.encode()), *headers]
            sent.append(
                await producer.send(row["topic"], row["value"], key=row["key"], partition=row["part"], headers=headers)
            )
        return await asyncio.gather(*sent, return_exceptions=True)

    async def _sleep(self, seconds: float) -> None:
        try:
            async with asyncio.timeout(seconds):
                await self._wake.wait()
        except TimeoutError:
            return

    async def _at(self, point: str) -> None:
        if self._fault is not None:
            await self._fault(point)
