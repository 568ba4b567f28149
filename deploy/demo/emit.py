"""Sends the gateway's records to Kafka: in batches, in order per key, with a bound on what is on its way."""

from __future__ import annotations

import asyncio
import time
from collections import deque
from collections.abc import Awaitable, Callable, Iterable, Mapping
from types import MappingProxyType
from typing import Any

from aiokafka import AIOKafkaProducer
from aiokafka.partitioner import DefaultPartitioner

from deploy.demo.records import Record
from shared.contract.topics import Topic
from shared.mesh.settings import KafkaSettings

_BATCH_BYTES = 128 * 1024
# Batches on their way or waiting for their partition: some 8 MB.
_OUTSTANDING = 64
# Without a pace the loop is given back this often (records), with one what is due goes out this often (seconds).
_TURN = 500
_TICK = 0.02
_STEP = 25

# Asked every so many records (`_STEP`): nothing, or what has to be awaited before the next one.
Pace = Callable[[], Awaitable[None] | None]
Before = Mapping[str, Callable[[Record], Awaitable[None]]]


class Emitter:
    """An idempotent producer with full batches. Use it as a context manager.

    `acknowledged`: records that Kafka has; it is what was sent once `flush` returns.
    """

    def __init__(self, settings: KafkaSettings) -> None:
        self.sent = 0
        self.acknowledged = 0
        self._producer: Any = AIOKafkaProducer(
            **settings.client(),
            client_id="steward-demo-gateway",
            enable_idempotence=True,
            acks="all",
            compression_type="zstd",
            max_batch_size=_BATCH_BYTES,
            linger_ms=5,
        )
        self._open: dict[tuple[str, int], Any] = {}
        self._partitions: dict[str, list[int]] = {}
        self._outstanding: deque[tuple[asyncio.Future[Any], int]] = deque()

    async def __aenter__(self) -> Emitter:
        await self._producer.start()
        return self

    async def __aexit__(self, kind: object, *_: object) -> None:
        if kind is None:
            await self.flush()
        await self._producer.stop()

    async def run(
        self,
        records: Iterable[Record],
        *,
        speed: float | None = None,
        before: Before = MappingProxyType({}),
        pace: Pace | None = None,
    ) -> None:
        """Sends `records` as fast as Kafka takes them, or at `speed` times real time; returns when it has them all.

        `before`: by topic, what is awaited ahead of its records, once all earlier records are acknowledged; it may
        wait for the mesh. `pace`: asked now and then; what it waits for finds all earlier records on their way.
        """
        started = time.monotonic()
        for record in records:
            if speed is not None:
                await self._until(started + record.due / speed)
            elif self.sent % _TURN == 0:
                await asyncio.sleep(0)
            if pace is not None and self.sent % _STEP == 0 and (slower := pace()) is not None:
                await self._send_all()
                await slower
            wait = before.get(record.topic.name)
            if wait is not None:
                await self.flush()
                await wait(record)
            await self._put(record)
        await self.flush()

    async def _until(self, instant: float) -> None:
        """Waits until a record is due; what is due already goes out first."""
        if instant - time.monotonic() > _TICK:
            await self._send_all()
        while (wait := instant - time.monotonic()) > 0:
            await asyncio.sleep(max(wait, _TICK))

    async def _put(self, record: Record) -> None:
        topic = record.topic.name
        partition = await self._partition(record.topic, record.key)
        place = (topic, partition)
        batch = self._open.get(place)
        if batch is None:
            batch = self._open[place] = self._producer.create_batch()
        headers = list(record.headers)
        if batch.append(timestamp=None, key=record.key, value=record.value, headers=headers) is None:
            await self._send(place)
            batch = self._open[place] = self._producer.create_batch()
            added = batch.append(timestamp=None, key=record.key, value=record.value, headers=headers)
            assert added is not None, "a batch takes at least one record"
        self.sent += 1

    async def _partition(self, topic: Topic, key: bytes) -> int:
        """The partition that every Kafka client would choose for this key."""
        known = self._partitions.get(topic.name)
        if known is None:
            known = self._partitions[topic.name] = sorted(await self._producer.partitions_for(topic.name))
        return int(DefaultPartitioner()(key, known, known))

    async def _send(self, place: tuple[str, int]) -> None:
        batch = self._open.pop(place)
        records = batch.record_count()
        if len(self._outstanding) >= _OUTSTANDING:
            await self._settle()
        # Waits while an earlier batch of this partition has not gone out: order, and a bound.
        future = await self._producer.send_batch(batch, place[0], partition=place[1])
        self._outstanding.append((future, records))

    async def _settle(self) -> None:
        future, records = self._outstanding.popleft()
        await future
        self.acknowledged += records

    async def _send_all(self) -> None:
        for place in list(self._open):
            await self._send(place)

    async def flush(self) -> None:
        """Returns when Kafka has everything."""
        await self._send_all()
        while self._outstanding:
            await self._settle()
