"""How fast a backlog is worked off by the services as real processes: metering alone, and all of them together."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass
from typing import Any

import msgspec
from aiokafka import AIOKafkaConsumer, TopicPartition
from rich.progress import Progress, TaskID

from deploy.local.room import Room
from shared.contract.topics import BALANCES, GENERATIONS, USAGE_RATED
from tests.bench.backlog import Plan
from tests.bench.ceilings import Ceilings, around
from tests.bench.lab import Lab
from tests.bench.processes import cpu_seconds, family_cpu_seconds, peak_memory_mb, spent
from tests.bench.report import Limit, Line, Report

_POLL_SECONDS = 0.05
_STALL_SECONDS = 120.0
_MAX_RSS_MB = 250
_MIN_CHAIN_A_SECOND = 25_000


class Stalled(Exception):
    """Nothing moves any more, or a service has ended; the text holds what the services said last."""


class Wrong(Exception):
    """The books do not say what was sent: the figure would be worth nothing."""


@dataclass(slots=True)
class Run:
    """One backlog worked off. The clock starts with the first move of a cursor; what came before it is not counted."""

    generations: float
    seconds: float
    cpu: dict[str, float]
    peak_mb: dict[str, float]
    wal_bytes: int
    note: str = ""

    @property
    def rate(self) -> float:
        """Generations a second; repeats of a generation are no further ones."""
        return self.generations / self.seconds

    @property
    def us_per_event(self) -> float:
        """Microseconds from one generation to the next."""
        return self.seconds / self.generations * 1e6


@dataclass(slots=True)
class Reading:
    """The state of things at one instant."""

    at: float
    cpu: dict[str, float]
    wal: int


@dataclass(slots=True)
class Race:
    """The services of one run, and what is known of their progress."""

    lab: Lab
    plan: Plan
    db: Any
    rooms: dict[str, list[Room]]
    progress: Progress
    task: TaskID
    start: Reading | None = None
    passed_at_start: int = 0

    async def reading(self) -> Reading:
        """Time, CPU time by process and the write-ahead log's length, as of now."""
        at = time.perf_counter()
        cpu = {
            name: sum(cpu_seconds(room.child.pid) for room in rooms if room.child is not None)
            for name, rooms in self.rooms.items()
        }
        kafka, postgres = self.lab.stack.kafka, self.lab.stack.postgres
        assert kafka is not None and kafka.child is not None and postgres is not None and postgres.child is not None
        cpu["kafka"] = cpu_seconds(kafka.child.pid)
        cpu["postgres"] = family_cpu_seconds(postgres.child.pid)
        return Reading(at, cpu, int(await self.db.fetchval("SELECT pg_current_wal_lsn() - '0/0'::pg_lsn")))

    async def metered(self) -> tuple[bool, Any]:
        """Whether metering has passed every record and published what it made of them."""
        replicas = len(self.rooms["metering"])
        passed, owners = await records_passed(self.db, GENERATIONS.name)
        if self.start is None and passed and (owners == replicas or passed == self.plan.events):
            self.start, self.passed_at_start = await self.reading(), passed
        self.progress.update(self.task, completed=passed)
        return passed == self.plan.events and not await _waits(self.db), passed

    def finish(self, end: Reading) -> Run:
        """What it came to."""
        assert self.start is not None, "every record was passed"
        counted = self.plan.events - self.passed_at_start
        if counted < self.plan.events / 5:
            raise Wrong(
                f"only {counted} of {self.plan.events} records were left when every process had its part: take more events"
            )
        note = f"{counted:,} of {self.plan.events:,} records timed"
        return Run(
            counted * self.plan.distinct / self.plan.events,
            end.at - self.start.at,
            spent(self.start.cpu, end.cpu),
            {
                name: max(peak_memory_mb(room.child.pid) for room in rooms if room.child is not None)
                for name, rooms in self.rooms.items()
            },
            end.wal - self.start.wal,
            note,
        )


async def until(lab: Lab, what: str, look: Callable[[], Awaitable[tuple[bool, Any]]]) -> None:
    """Polls `look` until it says done; its second answer must change now and then. Raises Stalled."""
    last: Any = None
    since = time.monotonic()
    while True:
        done, state = await look()
        if done:
            return
        if state != last:
            last, since = state, time.monotonic()
        elif time.monotonic() - since > _STALL_SECONDS:
            raise Stalled(f"{what}: nothing moves, at {state}\n{lab.complaints()}")
        if (ended := lab.dead()) is not None:
            raise Stalled(f"{what}: {ended.name} has ended\n{lab.complaints()}")
        await asyncio.sleep(_POLL_SECONDS)  # lint: allow sleep-in-test -- polls for what no event announces


async def run_metering(lab: Lab, plan: Plan, replicas: int = 1) -> Run:
    """Metering alone: the clock stops when every record is passed and the outbox is empty. Needs a reset before."""
    lab.need("metering")
    return await _run(lab, plan, {"metering": replicas})


async def run_chain(lab: Lab, plan: Plan, rooms: Sequence[str], replicas: int = 1) -> Run:
    """`rooms` together: the clock stops when every generation is charged and the balances are published."""
    lab.need("metering", "billing")
    return await _run(lab, plan, {room: replicas if room == "metering" else 1 for room in rooms})


async def _run(lab: Lab, plan: Plan, replicas: dict[str, int]) -> Run:
    rooms = {name: [lab.room(name, n) for n in range(count)] for name, count in replicas.items()}
    async with lab.owner("metering") as db:
        with lab.progress() as progress:
            race = Race(lab, plan, db, rooms, progress, progress.add_task(", ".join(rooms), total=plan.events))
            for room in (room for each in rooms.values() for room in each):
                room.spawn()
            await until(lab, "metering", race.metered)
            end = await race.reading()
            if "billing" in rooms:
                end = await _billed(race)
        run = race.finish(end)
    await lab.end_rooms()
    return run


async def _billed(race: Race) -> Reading:
    """Waits until the charges are in and the balances out; the reading of that moment. Raises Wrong or Stalled."""
    lab = race.lab
    records = await lab.ends(USAGE_RATED.name)
    async with lab.owner("billing") as db:

        async def all_charged() -> tuple[bool, Any]:
            passed, _ = await records_passed(db, USAGE_RATED.name)
            return passed == records and not await _waits(db), passed

        await until(lab, "billing", all_charged)
        end = await race.reading()
        # Rows that were there before the run have no journal of the books: their numbers are negative.
        lines = int(await db.fetchval("SELECT count(*) FROM charge_line WHERE journal > 0"))
        if lines != race.plan.distinct:
            raise Wrong(f"{lines} charge lines for {race.plan.distinct} generations")

        async def all_published() -> tuple[bool, Any]:
            nonlocal end
            behind = await _behind(lab, db)
            if behind:
                end = await race.reading()  # balances come after the outbox was seen empty: the clock goes on
            return not behind, behind

        await until(lab, "balances", all_published)
    return end


async def records_passed(db: Any, topic: str) -> tuple[int, int]:
    """(records passed, processes that own partitions) of a topic."""
    row = await db.fetchrow(
        "SELECT coalesce(sum(next_offset), 0)::bigint, count(DISTINCT owner) FROM mesh_cursor WHERE topic = $1", topic
    )
    return row[0], row[1]


async def _waits(db: Any) -> bool:
    """Whether something waits in the outbox."""
    return bool(await db.fetchval("SELECT EXISTS (SELECT FROM mesh_outbox)"))


class _Version(msgspec.Struct):
    workspace: str
    version: int


class _Published(msgspec.Struct):
    data: _Version


async def _behind(lab: Lab, db: Any) -> int:
    """Workspaces whose newest balance is not on the topic."""
    rows = await db.fetch(
        """SELECT r.workspace, b.version FROM balance b JOIN workspace_ref r ON r.id = b.workspace_id
           WHERE b.version > 0"""
    )
    decode = msgspec.json.Decoder(_Published).decode
    newest: dict[str, int] = {}
    consumer: Any = AIOKafkaConsumer(**lab.kafka.client(), enable_auto_commit=False, auto_offset_reset="earliest")
    await consumer.start()
    try:
        parts = [TopicPartition(BALANCES.name, n) for n in range(BALANCES.partitions)]
        consumer.assign(parts)
        ends = await consumer.end_offsets(parts)
        while any([await consumer.position(part) < ends[part] for part in parts]):
            for records in (await consumer.getmany(timeout_ms=1_000)).values():
                for record in (each for each in records if each.value is not None):  # a heartbeat has none
                    data = decode(record.value).data
                    newest[data.workspace] = max(newest.get(data.workspace, 0), data.version)
    finally:
        await consumer.stop()
    return sum(1 for row in rows if newest.get(row["workspace"], 0) < row["version"])


# --- the lines of the report -------------------------------------------------------------------------------------


async def metering_line(lab: Lab, ceilings: Ceilings, plan: Plan, report: Report, replicas: int) -> None:
    """Metering alone, in one process or in two."""
    await lab.reset(plan)
    before = await ceilings.before()
    run = await run_metering(lab, plan, replicas)
    name = "metering_one" if replicas == 1 else "metering_two"
    pair = around(report, name, before, await ceilings.measure())
    least = 0.5 if replicas == 1 else 0.75
    of_b = Limit(">=", least, "ratio")
    report.add(Line(name, run.rate, "events/s", run.rate / pair.b, "ceiling_b", (of_b,), run.note))
    of_a = (Limit(">=", 0.6, "ratio"),) if replicas == 1 else ()
    report.add(
        Line(f"{name}_of_a", run.rate, "events/s", run.rate / pair.a, "ceiling_a", of_a),
        Line(f"{name}_wal", run.wal_bytes / run.generations, "bytes", note="an event, metering's database alone"),
        Line(f"{name}_cpu_us_postgres", run.cpu["postgres"] * 1e6 / run.generations, "us/event", note="likewise"),
    )


async def chain_lines(lab: Lab, ceilings: Ceilings, plan: Plan, report: Report, replicas: int) -> None:
    """All services: speed, CPU by process, peak memory."""
    lab.need("metering", "billing")
    await lab.reset(plan)
    before = await ceilings.before()
    stored = await lab.stored()
    run = await run_chain(lab, plan, lab.rooms, replicas)
    grown = {place: size - stored.get(place, 0) for place, size in (await lab.stored()).items()}
    # The backlog was there before.
    grown[GENERATIONS.name] = stored[GENERATIONS.name]
    pair = around(report, "generations_to_balances", before, await ceilings.measure())
    limits = (Limit(">=", 0.45, "ratio"), Limit(">=", _MIN_CHAIN_A_SECOND))
    note = "; ".join([run.note, f"metering processes: {replicas}", *(f"without {room}" for room in lab.absent)])
    report.add(
        Line("generations_to_balances", run.rate, "events/s", run.rate / pair.b, "ceiling_b", limits, note),
        *(
            Line(f"cpu_us_{process}", seconds * 1e6 / run.generations, "us/event", note="whole chain")
            for process, seconds in run.cpu.items()
        ),
        Line("wal_bytes_per_event", run.wal_bytes / run.generations, "bytes", note="whole chain, all databases"),
        *(
            Line(
                f"stored_bytes_{place}",
                grown[place] / run.generations,
                "bytes/event",
                note="whole chain, indexes included",
            )
            for place in ("metering", "billing", GENERATIONS.name, USAGE_RATED.name, BALANCES.name)
        ),
        *(
            Line(f"rss_{room}", peak, "MB", limits=(Limit("<=", _MAX_RSS_MB),), note="peak, in the whole chain")
            for room, peak in run.peak_mb.items()
        ),
    )
