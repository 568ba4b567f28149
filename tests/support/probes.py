"""From just before an event is sent to the receipt of the balance that it changed, seen from outside of the mesh.

A probe's workspace has no other event on its way, so the next balance is its own.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable
from types import TracebackType
from typing import Any, Self

from aiokafka import AIOKafkaConsumer, TopicPartition

from shared.contract.topics import BALANCES
from shared.mesh.settings import KafkaSettings

_LOOK_SECONDS = 0.05


class Probes:
    """Reads balances for as long as the block runs. `answered(workspace, sent_at, took)`: a probe's balance has come
    (`sent_at` by the monotonic clock, `took` in seconds)."""

    def __init__(self, kafka: KafkaSettings, answered: Callable[[bytes, float, float], None]) -> None:
        # The workspaces whose balances are awaited, and when their events were sent.
        self.waiting: dict[bytes, float] = {}
        self._answered = answered
        self._consumer: Any = AIOKafkaConsumer(**kafka.client(), enable_auto_commit=False, fetch_max_wait_ms=100)
        self._reader: asyncio.Task[None] | None = None

    async def __aenter__(self) -> Self:
        """Balances of before do not count."""
        parts = [TopicPartition(BALANCES.name, n) for n in range(BALANCES.partitions)]
        await self._consumer.start()
        self._consumer.assign(parts)
        await self._consumer.seek_to_end(*parts)
        for part in parts:
            await self._consumer.position(part)
        self._reader = asyncio.create_task(self._read())
        return self

    async def __aexit__(self, kind: type[BaseException] | None, *_: BaseException | TracebackType | None) -> None:
        assert self._reader is not None
        self._reader.cancel()
        (outcome,) = await asyncio.gather(self._reader, return_exceptions=True)
        await self._consumer.stop()
        if kind is None and not isinstance(outcome, asyncio.CancelledError):
            raise RuntimeError("balances were not read to the end") from outcome

    def sent(self, workspace: bytes) -> float:
        """The workspace's event goes out now; returns when that is."""
        self.waiting[workspace] = now = time.monotonic()
        return now

    @property
    def ended(self) -> bool:
        """Whether nobody reads any more."""
        return self._reader is None or self._reader.done()

    async def last(self, within: float) -> None:
        """Waits until every probe is answered, or `within` seconds are over."""
        deadline = time.monotonic() + within
        while self.waiting and time.monotonic() < deadline and not self.ended:
            await asyncio.sleep(_LOOK_SECONDS)  # lint: allow sleep-in-test -- polls what the reader empties

    async def _read(self) -> None:
        waiting, answered = self.waiting, self._answered
        while True:
            batches = await self._consumer.getmany(timeout_ms=1_000)
            now = time.monotonic()
            for records in batches.values():
                for record in records:
                    since = waiting.pop(record.key, None)
                    if since is not None:
                        answered(record.key, since, now - since)
