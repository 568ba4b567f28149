"""What the demo asks of the running mesh: reads over HTTP, and the newest balances from their topic."""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import Iterable, Mapping
from typing import Any
from urllib.parse import urlencode

from aiokafka import AIOKafkaConsumer, TopicPartition

from deploy.demo.account import ModelUse
from deploy.local.probe import get_json
from shared.contract.codec import Codec
from shared.contract.topics import BALANCES
from shared.mesh.settings import KafkaSettings

_PAGE = 1_000
_AT_ONCE = 8


class Reads:
    """The read API of a stack's services."""

    def __init__(self, settings: Mapping[str, str]) -> None:
        self._settings = settings
        self._gate = asyncio.Semaphore(_AT_ONCE)

    async def __call__(self, room: str, name: str, **query: object) -> Any:
        """The answer of `GET /reads/<name>`. Raises OSError when there is none, TimeoutError."""
        path = f"/reads/{name}" + (f"?{urlencode(query)}" if query else "")
        async with self._gate:
            return await get_json(int(self._settings[f"STEWARD_{room.upper()}_PORT"]), path, timeout=30.0)

    async def try_(self, room: str, name: str, **query: object) -> Any:
        """The same, or None while the service cannot be asked."""
        try:
            return await self(room, name, **query)
        except (OSError, TimeoutError):
            return None

    async def dead_letters(self, room: str, topic: str) -> list[dict[str, Any]]:
        """All waiting dead letters of a topic, oldest first."""
        found: list[dict[str, Any]] = []
        while True:
            after = found[-1]["id"] if found else 0
            page = await self(room, "dead-letters", topic=topic, after=after, limit=_PAGE)
            found += page
            if len(page) < _PAGE:
                return found

    async def ledger_sums(self) -> dict[str, int]:
        """What all entries of each legal class sum to, in pico-dollars: 0, or the books are wrong."""
        return {name: int(of_class["sum_pico"]) for name, of_class in (await self("billing", "ledger")).items()}

    async def ledger(self) -> dict[str, int]:
        """Sums by kind of ledger account over all legal classes, in pico-dollars."""
        sums: Counter[str] = Counter()
        for of_class in (await self("billing", "ledger")).values():
            for kind, amount in of_class["kinds"].items():
                sums[kind] += int(amount)
        return dict(sums)

    async def balances(self, workspaces: Iterable[str]) -> dict[str, int]:
        """Billing's own balance of each workspace that it knows."""

        async def one(workspace: str) -> tuple[str, int] | None:
            said = await self.try_("billing", "balance", workspace=workspace)
            return None if said is None else (workspace, int(said["balance_pico"]))

        return dict(filter(None, await asyncio.gather(*map(one, workspaces))))


def use_by_model(rows: Iterable[Mapping[str, Any]]) -> dict[str, ModelUse]:
    """The rollup's rows in the words of the account."""
    return {row["model"]: ModelUse(row["generations"], row["input_tokens"], row["output_tokens"]) for row in rows}


def by_reason(rows: Iterable[Mapping[str, Any]], count: str | None = None) -> dict[str, int]:
    """How many by reason; `count` names the column that has the number, else each row counts one."""
    found: Counter[str] = Counter()
    for row in rows:
        found[row["reason"]] += row[count] if count else 1
    return dict(found)


async def published_balances(settings: Mapping[str, str]) -> dict[str, int]:
    """The newest balance of each workspace on the balances topic, in pico-dollars: what a gateway would know.

    Of who is erased it knows nothing any more.
    """
    places = [TopicPartition(BALANCES.name, n) for n in range(BALANCES.partitions)]
    consumer: Any = AIOKafkaConsumer(**KafkaSettings.from_env(settings).client(), auto_offset_reset="earliest")
    await consumer.start()
    try:
        consumer.assign(places)
        await consumer.seek_to_beginning(*places)
        ends = await consumer.end_offsets(places)
        decode = Codec(BALANCES).decode
        newest: dict[str, tuple[int, int | None]] = {}
        while any([await consumer.position(place) < ends[place] for place in places]):
            for records in (await consumer.getmany(timeout_ms=500)).values():
                for record in records:
                    if record.value is None:
                        continue  # the key of somebody erased ends, or Kafka is reminded to compact
                    data = decode(record.value).data
                    if data.version >= newest.get(data.workspace, (0, 0))[0]:
                        newest[data.workspace] = (data.version, None if data.erased else int(data.balance_pico))
        return {workspace: balance for workspace, (_, balance) in newest.items() if balance is not None}
    finally:
        await consumer.stop()
