"""What a partition costs by itself, beside the events in it: metering alone, with few partitions of its topic and with many.

CPU of metering, Kafka and PostgreSQL, by their own clocks, so that what else runs on the machine counts little.
The same events come at the same pace, so that with many partitions each batch has fewer records of each.
"""

from __future__ import annotations

import asyncio
import statistics
import time
from dataclasses import dataclass
from typing import Any

from aiokafka import AIOKafkaProducer
from aiokafka.admin import AIOKafkaAdminClient, NewPartitions

from shared.contract.topics import GENERATIONS
from tests.bench.backlog import Plan
from tests.bench.chain import records_passed, until
from tests.bench.lab import Lab
from tests.bench.processes import cpu_seconds, family_cpu_seconds, spent
from tests.bench.report import Line, Report

PROCESSES = ("metering", "kafka", "postgres")
_SETTLE_SECONDS = 3.0
_TICK = 0.005
# There and back, so that a machine that warms up or slows down favours neither.
_ORDER = ("few", "many", "many", "few")


@dataclass(frozen=True, slots=True)
class Cost:
    """One run, by process: CPU seconds a second while nothing happens, CPU seconds for each event; and what a start takes."""

    idle: dict[str, float]
    event: dict[str, float]
    start: float


async def partition_lines(lab: Lab, report: Report, many: int, rate: int, seconds: float) -> None:
    """The difference that `many` partitions make to as many as the contract has."""
    lab.need("metering")
    few = GENERATIONS.partitions
    counts = {"few": few, "many": many}
    costs: dict[str, list[Cost]] = {"few": [], "many": []}
    with lab.progress() as progress:
        task = progress.add_task(f"{few} and {many} partitions", total=len(_ORDER))
        for which in _ORDER:
            costs[which].append(await _run(lab, counts[which], rate, seconds))
            progress.advance(task)
    less, more = (_mean(costs[which]) for which in ("few", "many"))
    for process in PROCESSES:
        idle = (more.idle[process] - less.idle[process]) / (many - few) * 1e6
        note = f"idle; of a core with {few}: {less.idle[process]:.1%}, with {many}: {more.idle[process]:.1%}"
        report.add(Line(f"partition_idle_{process}", idle, "us/s", note=note))
    for process in PROCESSES:
        event, before = more.event[process] * 1e6, less.event[process] * 1e6
        note = f"of an event, {rate:,}/s on {many} partitions"
        report.add(
            Line(f"partition_event_{process}", event, "us", event / before, f"{before:.0f} us with {few}", note=note)
        )
    claim = (more.start - less.start) / (many - few) * 1e3
    note = f"from a start to ready with {few}: {less.start:.1f} s, with {many}: {more.start:.1f} s"
    report.add(Line("partition_claim", claim, "ms", note=note))


def _mean(costs: list[Cost]) -> Cost:
    def each(figures: list[dict[str, float]]) -> dict[str, float]:
        return {process: statistics.mean(one[process] for one in figures) for process in PROCESSES}

    return Cost(
        each([cost.idle for cost in costs]),
        each([cost.event for cost in costs]),
        statistics.mean(c.start for c in costs),
    )


async def _run(lab: Lab, partitions: int, rate: int, seconds: float) -> Cost:
    await lab.reset()
    await _grow(lab, partitions)
    plan = Plan.just_before_now(int(rate * seconds))
    room = lab.room("metering")
    started = time.monotonic()
    await room.start()
    start = time.monotonic() - started
    assert room.child is not None
    await asyncio.sleep(_SETTLE_SECONDS)  # lint: allow sleep-in-test -- idling is what is measured
    at, before = time.monotonic(), _cpu(lab, room.child.pid)
    await asyncio.sleep(seconds)
    took = time.monotonic() - at
    idle = {process: cpu / took for process, cpu in spent(before, _cpu(lab, room.child.pid)).items()}
    before = _cpu(lab, room.child.pid)
    await _emit(lab, plan, partitions, rate)
    async with lab.owner("metering") as db:

        async def through() -> tuple[bool, Any]:
            records, _ = await records_passed(db, GENERATIONS.name)
            return records == plan.events, records

        await until(lab, "metering", through)
    busy = spent(before, _cpu(lab, room.child.pid))
    await lab.end_rooms()
    return Cost(idle, {process: cpu / plan.events for process, cpu in busy.items()}, start)


async def _grow(lab: Lab, partitions: int) -> None:
    if partitions == GENERATIONS.partitions:
        return
    admin = AIOKafkaAdminClient(**lab.kafka.client())
    await admin.start()
    try:
        await admin.create_partitions({GENERATIONS.name: NewPartitions(partitions)})
    finally:
        await admin.close()


def _cpu(lab: Lab, metering: int) -> dict[str, float]:
    kafka, postgres = lab.stack.kafka, lab.stack.postgres
    assert kafka is not None and kafka.child is not None and postgres is not None and postgres.child is not None
    seconds = (cpu_seconds(metering), cpu_seconds(kafka.child.pid), family_cpu_seconds(postgres.child.pid))
    return dict(zip(PROCESSES, seconds, strict=True))


async def _emit(lab: Lab, plan: Plan, partitions: int, rate: int) -> None:
    producer: Any = AIOKafkaProducer(**lab.kafka.client(), acks=1, compression_type="lz4", linger_ms=5)
    await producer.start()
    try:
        messages = (message for number in range(plan.chunks) for message in plan.chunk(number))
        started = time.monotonic()
        for n, message in enumerate(messages):
            if (early := started + n / rate - time.monotonic()) > _TICK:
                await asyncio.sleep(early)
            await producer.send(
                GENERATIONS.name, message.value, key=message.key, partition=n % partitions, headers=message.headers
            )
        await producer.flush()
    finally:
        await producer.stop()
