"""What the database alone can do here and now: the figures that all others are held against.

A: the rows that metering writes, into metering's tables, by COPY on one connection; no Kafka, nothing parsed.
B: one request-log row by COPY into a temporary table, from there INSERT ... ON CONFLICT: the field's usual best.
"""

from __future__ import annotations

import gc
import secrets
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from types import SimpleNamespace
from typing import Any, NamedTuple

import asyncpg

from services.metering.identity import digest_of, identities
from services.metering.log_row import COLUMNS
from services.metering.price_book import PriceBook
from services.metering.pricing import Unpriced
from services.metering.seed import GenaiPrices
from services.metering.store import add_log, add_pending
from services.metering.usage import Effects, Known, microseconds, price
from shared.contract import events
from shared.contract.codec import Codec, build
from shared.contract.topics import GENERATIONS, USAGE_RATED
from shared.mesh.transaction import rfc3339, shard_of
from tests.bench.backlog import Plan
from tests.bench.lab import Lab
from tests.bench.report import Line, Report, mean

_BATCH_A, _BATCH_B = 5_000, 2_000
_OUTBOX = ("shard", "topic", "part", "key", "value", "headers", "traceparent", "created_at")
# The log's columns that any gateway's request log has: not the expiry before them, not the way to the charge behind.
_COLUMNS_B = COLUMNS[1:18]
_TABLE_B = """
    CREATE TABLE request (
        occurred_at timestamptz NOT NULL, generation_id uuid PRIMARY KEY, input_tokens bigint NOT NULL,
        output_tokens bigint NOT NULL, amount_pico bigint NOT NULL, retention_days smallint NOT NULL, account text NOT NULL,
        workspace text NOT NULL, key_id text NOT NULL, provider text NOT NULL, model text NOT NULL, tier text NOT NULL,
        ended text NOT NULL, rule text NOT NULL, price_version text NOT NULL, generation_ref text, quantities text NOT NULL)
"""
_KEEP_SECONDS = 60.0


class Rows(NamedTuple):
    """What one batch of metering writes."""

    seen: list[tuple[bytes, int]]
    log: list[bytes]
    outbox: list[tuple[Any, ...]]
    pending: list[list[Any]]


class Metered:
    """The service's own pure code over the events of a plan, without its transactions."""

    def __init__(self, now: datetime) -> None:
        self._book = PriceBook(catalogue=GenaiPrices())
        self._known = Known(self._book)
        self._codec = Codec(GENERATIONS)
        self._record = SimpleNamespace(timestamp=now.timestamp() * 1000)
        self._now = now
        self._day_keys = {now.toordinal() + n: secrets.token_bytes(32) for n in (-1, 0)}

    def batch(self, values: Sequence[bytes]) -> Rows:
        """The rows of one batch of records. Raises RuntimeError for a model without a price."""
        effects = Effects(USAGE_RATED.partitions)
        seen = []
        generations = [self._codec.decode(value) for value in values]
        found = identities([event.id for event in generations], self._day_keys)
        arrivals = {}
        for event, value, who in zip(generations, values, found, strict=True):
            seen.append((who.key, digest_of(value, who.seed)))
            arrivals[who.key] = (event, self._record, microseconds(event.time), 0, who.uuid)
        others = effects.add_plain(self._known, arrivals.items(), 0)
        for key, (event, _, at_us, _, uuid) in others:
            priced = price(self._book, event.data, event.time, self._now)
            if isinstance(priced, Unpriced):
                raise RuntimeError(f"{event.data.model} has no price: {priced.reason}")
            effects.add(event.data, uuid, key, at_us, priced, 0)
        outbox = [
            (
                shard_of(None, partition),
                USAGE_RATED.name,
                partition,
                None,
                self._published(record, units),
                None,
                None,
                self._now,
            )
            for partition, record, units in effects.records()
        ]
        return Rows(seen, effects.rows, outbox, effects.totals())

    def _published(self, record: str, units: list[dict[str, Any]]) -> bytes:
        return build(
            events.UsageRated, id=record, source="metering", subject="metering", time=rfc3339(self._now),
            data={"units": units},
        )  # fmt: skip


class Pair(NamedTuple):
    """Both ceilings at one moment, rows a second."""

    a: float
    b: float


@dataclass(slots=True)
class Ceilings:
    """Both ceilings, measured again and again in one run: the machine's speed is not the same all the time."""

    lab: Lab
    plan: Plan
    rows: int
    points: list[Pair] = field(default_factory=list)
    _a: list[tuple[Rows, list[Any]]] = field(default_factory=list)
    _b: list[list[Any]] = field(default_factory=list)
    _measured_at: float = float("-inf")

    async def before(self) -> Pair:
        """The ceilings of now: those of a moment ago will do."""
        if time.monotonic() - self._measured_at < _KEEP_SECONDS:
            return self.points[-1]
        return await self.measure()

    async def measure(self) -> Pair:
        """Measures both."""
        if not self._a:
            await self._prepare()
        pair = Pair(await self._measure_a(), await self._measure_b())
        self.points.append(pair)
        self._measured_at = time.monotonic()
        return pair

    async def _prepare(self) -> None:
        metered = Metered(datetime.now(UTC))
        values: dict[bytes, bytes] = {}
        for number in range(self.plan.chunks):
            values |= {message.key: message.value for message in self.plan.chunk(number)}
            if len(values) >= self.rows:
                break
        chosen = list(values.values())[: self.rows]
        batches = [metered.batch(chosen[n : n + _BATCH_A]) for n in range(0, len(chosen), _BATCH_A)]
        # The client's usual way takes values, not packed rows: the database tells which those are.
        db = await asyncpg.connect(await self.lab.scratch("metering"))
        try:
            for batch in batches:
                await add_log(db, batch.log)
                values_of = await db.fetch(f"SELECT {', '.join(COLUMNS)} FROM request_log ORDER BY generation_id")
                self._a.append((batch, [tuple(row) for row in values_of]))
                await db.execute("TRUNCATE request_log")
        finally:
            await db.close()
        rows = [row[1:18] for _, values_of in self._a for row in values_of]
        self._b = [rows[n : n + _BATCH_B] for n in range(0, len(rows), _BATCH_B)]
        gc.collect()
        gc.freeze()  # millions of objects that live as long as the run: nobody need look at them again

    async def _measure_a(self) -> float:
        db = await asyncpg.connect(await self.lab.scratch("metering"))
        try:
            await self.lab.settle()
            started = time.perf_counter()
            for (seen, _, outbox, pending), log in self._a:
                async with db.transaction():
                    await db.copy_records_to_table("seen", columns=("key", "digest"), records=seen)
                    await db.copy_records_to_table("request_log", columns=COLUMNS, records=log)
                    await db.copy_records_to_table("mesh_outbox", columns=_OUTBOX, records=outbox)
                    await add_pending(db, pending)
            took = time.perf_counter() - started
            await self._all_there(db, "request_log")
        finally:
            await db.close()
        return sum(len(batch.seen) for batch, _ in self._a) / took

    async def _measure_b(self) -> float:
        db = await asyncpg.connect(await self.lab.scratch())
        try:
            await db.execute(_TABLE_B)
            await db.execute("CREATE TEMP TABLE incoming (LIKE request) ON COMMIT DELETE ROWS")
            await self.lab.settle()
            started = time.perf_counter()
            for rows in self._b:
                async with db.transaction():
                    await db.copy_records_to_table("incoming", columns=_COLUMNS_B, records=rows)
                    await db.execute("INSERT INTO request SELECT * FROM incoming ON CONFLICT DO NOTHING")
            took = time.perf_counter() - started
            await self._all_there(db, "request")
        finally:
            await db.close()
        return sum(map(len, self._b)) / took

    async def _all_there(self, db: Any, table: str) -> None:
        wanted = sum(map(len, self._b))
        there = await db.fetchval(f"SELECT count(*) FROM {table}")
        if there != wanted:
            raise RuntimeError(f"{there} rows are in {table}, not {wanted}")

    def report(self, report: Report) -> None:
        """The means of the run, every point in the note."""
        named = {"ceiling_a": [pair.a for pair in self.points], "ceiling_b": [pair.b for pair in self.points]}
        report.lead(
            *(
                Line(name, mean(figures), "rows/s", note=f"{self.rows:,} rows; {_listed(figures)}")
                for name, figures in named.items()
                if figures
            )
        )


def around(report: Report, name: str, before: Pair, after: Pair) -> Pair:
    """The ceilings that a figure is held against: the mean of before and after, both said in the note."""
    pair = Pair(mean((before.a, after.a)), mean((before.b, after.b)))
    for letter, value, points in (("a", pair.a, (before.a, after.a)), ("b", pair.b, (before.b, after.b))):
        report.add(Line(f"ceiling_{letter}_at_{name}", value, "rows/s", note=f"before, after: {_listed(points)}"))
    return pair


def _listed(figures: Sequence[float]) -> str:
    return ", ".join(f"{figure:,.0f}" for figure in figures)
