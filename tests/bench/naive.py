"""The design that one writes first: one record, one transaction, one commit. Same effects, same pure code."""

from __future__ import annotations

import time
from datetime import UTC, datetime
from typing import Any

from aiokafka import AIOKafkaConsumer, TopicPartition

from services.metering.store import add_log, add_pending
from shared.contract.topics import GENERATIONS
from tests.bench.backlog import Plan
from tests.bench.ceilings import Metered
from tests.bench.lab import Lab
from tests.bench.report import Line, Report


async def naive_line(lab: Lab, plan: Plan, report: Report, events: int) -> None:
    """Metering's part of the way, up to the outbox, without relay and billing: the naive design gets that for free."""
    await lab.reset(plan)
    metered = Metered(datetime.now(UTC))
    consumer: Any = AIOKafkaConsumer(
        GENERATIONS.name, **lab.kafka.client(), group_id="bench-naive", enable_auto_commit=False,
        auto_offset_reset="earliest",
    )  # fmt: skip
    await consumer.start()
    try:
        async with lab.owner("metering") as db:
            with lab.progress() as progress:
                task = progress.add_task("naive", total=events)
                await _one(consumer, db, metered)  # joins the group, prepares the statements
                started = time.perf_counter()
                for n in range(events):
                    await _one(consumer, db, metered)
                    if n % 100 == 0:
                        progress.update(task, completed=n)
                took = time.perf_counter() - started
    finally:
        await consumer.stop()
    rate = events / took
    beside = report.value("metering_one")
    report.add(
        Line(
            "naive", rate, "events/s", None if beside is None else rate / beside,
            None if beside is None else "metering_one", note=f"{events:,} events, up to the outbox, nothing published",
        )
    )  # fmt: skip


async def _one(consumer: Any, db: Any, metered: Metered) -> None:
    record = await consumer.getone()
    rows = metered.batch([record.value])
    async with db.transaction():
        (key, digest), *_ = rows.seen
        new = await db.fetchval(
            "INSERT INTO seen (key, digest) VALUES ($1, $2) ON CONFLICT DO NOTHING RETURNING true", key, digest
        )
        if new:
            await add_log(db, rows.log)
            for shard, topic, part, key_bytes, value, headers, traceparent, created_at in rows.outbox:
                await db.execute(
                    """INSERT INTO mesh_outbox (shard, topic, part, key, value, headers, traceparent, created_at)
                       VALUES ($1, $2, $3, $4, $5, $6, $7, $8)""",
                    shard, topic, part, key_bytes, value, headers, traceparent, created_at,
                )  # fmt: skip
            await add_pending(db, rows.pending)
    await consumer.commit({TopicPartition(record.topic, record.partition): record.offset + 1})
