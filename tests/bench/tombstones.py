"""Tombstones: how soon after a confirmation they stand in every room, and what a million of them cost its consumers."""

from __future__ import annotations

import asyncio
import contextlib
import time
from datetime import UTC, datetime, timedelta
from typing import Any

from aiokafka import AIOKafkaProducer

from shared.contract.topics import USAGE_RATED
from tests.bench.backlog import Plan
from tests.bench.chain import Stalled, Wrong, run_metering, until
from tests.bench.erasure import Traffic, against, settled, start_house, with_code
from tests.bench.lab import Lab
from tests.bench.people import crowd, of_all, people
from tests.bench.processes import peak_memory_mb
from tests.bench.report import Limit, Line, Report, mean, percentile

MOST_SECONDS = 2.0
LEAST_OF_SPEED = 0.9
MOST_MEMORY_MB = 10.0

_EVENTS_A_SECOND = 50
_STONES = 4  # of an account with its identity, one workspace and one key
_LOOK = 0.004
_PATIENCE = 30.0

# As many hashes as there are numbers, no two alike; as if their rows had been treated long ago.
_FILL = """
    INSERT INTO mesh_tombstone (hash, kind, case_id, at, applied)
    SELECT decode(md5('stone ' || i), 'hex'), 'key', md5((i / 5)::text)::uuid, $2, true
    FROM generate_series(1, $1::bigint) AS i"""


async def latency_lines(lab: Lab, report: Report, samples: int) -> None:
    """From just before a confirmation is sent until its tombstones stand in the database of every room that consumes."""
    lab.need("retention", "notifications")
    await lab.reset()
    await start_house(lab)
    everybody = crowd("grave", samples)
    holders = [name for name in lab.rooms if name != "audit"]
    found: dict[str, list[float]] = {name: [] for name in holders}
    last: list[float] = []
    async with contextlib.AsyncExitStack() as stack:
        world = await stack.enter_async_context(people(lab))
        sessions = {name: await stack.enter_async_context(lab.owner(name)) for name in holders}
        producer: Any = AIOKafkaProducer(**lab.kafka.client(), acks="all", enable_idempotence=True, linger_ms=0)
        await producer.start()
        stack.push_async_callback(producer.stop)
        await world.send(of_all(everybody, world.joins))
        await settled(lab, "the accounts' beginning")
        asked = {who: world.asks(who) for who in everybody}
        await world.send([sent for _, sent in asked.values()])
        for who in everybody:
            await with_code(lab, world, who)
        await stack.enter_async_context(Traffic(lab, _EVENTS_A_SECOND).flowing())
        with lab.progress() as progress:
            task = progress.add_task("confirmations", total=samples)
            for who, (case, _) in asked.items():
                record = world.confirms(who, case)
                started = time.monotonic()
                sending = asyncio.create_task(
                    producer.send_and_wait(record.topic.name, record.value, key=record.key, headers=record.headers)
                )
                took = await asyncio.gather(*(_stands(lab, db, case, started) for db in sessions.values()))
                await sending
                for name, seconds in zip(holders, took, strict=True):
                    found[name].append(seconds)
                last.append(max(took))
                progress.advance(task)
        if await sessions["retention"].fetchval(
            "SELECT EXISTS (SELECT FROM privacy_case WHERE subjects <> $1)", _STONES
        ):
            raise Wrong(f"a case has another number of tombstones than {_STONES}")
    await lab.end_rooms()
    ordered = sorted(last)
    slowest = ", ".join(f"{name} {percentile(sorted(values), 0.99) * 1000:.0f}" for name, values in found.items())
    note = f"{samples} confirmations, one after the other, beside {_EVENTS_A_SECOND} events/s; in all of {len(holders)} rooms"
    report.add(
        against("tombstone_latency_p50", percentile(ordered, 0.5), "s", Limit("<=", MOST_SECONDS), note),
        against(
            "tombstone_latency_p99", percentile(ordered, 0.99), "s", Limit("<=", MOST_SECONDS),
            f"p99 of each room, ms: {slowest}",
        ),
    )  # fmt: skip


async def _stands(lab: Lab, db: Any, case: str, started: float) -> float:
    """How long after `started` all tombstones of a case stand in a database."""
    while await db.fetchval("SELECT count(*) FROM mesh_tombstone WHERE case_id = $1", case) < _STONES:
        if time.monotonic() - started > _PATIENCE or lab.dead() is not None:
            raise Stalled(f"the tombstones of a case do not come\n{lab.complaints()}")
        await asyncio.sleep(_LOOK)  # lint: allow sleep-in-test -- polls for what no event announces
    return time.monotonic() - started


# --- a million of them -------------------------------------------------------------------------------------------


async def million_lines(lab: Lab, report: Report, stones: int, events: int, pairs: int) -> None:
    """The same backlog without a tombstone and with `stones` of them, in turn: metering alone, then billing alone."""
    lab.need("metering", "billing")
    plan = Plan.just_before_now(events)
    speeds: dict[str, tuple[list[float], list[float]]] = {name: ([], []) for name in ("metering", "billing")}
    peaks: dict[str, tuple[list[float], list[float]]] = {name: ([], []) for name in ("metering", "billing")}
    for number in range(2 * pairs):
        # Each comes first as often as the other, so that what drifts with time is not taken for a cost.
        filled = number % 4 in (1, 2)
        await lab.reset(plan)
        if filled:
            await _fill(lab, stones)
        run = await run_metering(lab, plan)
        speeds["metering"][filled].append(run.rate)
        peaks["metering"][filled].append(run.peak_mb["metering"])
        await lab.settle()
        rate, peak = await _run_billing(lab, plan)
        speeds["billing"][filled].append(rate)
        peaks["billing"][filled].append(peak)
    for name, (without, beside) in speeds.items():
        ratio = mean(beside) / mean(without)
        note = f"without: {_listed(without)}; with {stones:,}: {_listed(beside)}"
        report.add(
            Line(f"{name}_no_tombstones", mean(without), "events/s", note=f"{events:,} events, {pairs} pairs"),
            Line(
                f"{name}_tombstones", mean(beside), "events/s", ratio, f"{name}_no_tombstones",
                (Limit(">=", LEAST_OF_SPEED, "ratio"),), note,
            ),
            against(
                f"{name}_tombstones_rss", mean(peaks[name][1]) - mean(peaks[name][0]), "MB", Limit("<=", MOST_MEMORY_MB),
                f"peak without: {_listed(peaks[name][0])}; with: {_listed(peaks[name][1])}",
            ),
        )  # fmt: skip


def _listed(figures: list[float]) -> str:
    return ", ".join(f"{figure:,.0f}" for figure in figures)


async def _fill(lab: Lab, stones: int) -> None:
    with lab.progress() as progress:
        task = progress.add_task(f"{stones:,} tombstones in each of two rooms", total=2)
        for room in ("metering", "billing"):
            async with lab.owner(room) as db:
                await db.execute(_FILL, stones, datetime.now(UTC) - timedelta(days=1))
                await db.execute("VACUUM (ANALYZE) mesh_tombstone")
            progress.advance(task)
    await lab.settle()


async def _run_billing(lab: Lab, plan: Plan) -> tuple[float, float]:
    """(lines a second, peak MB) of billing alone, working off what metering has published."""
    records = await lab.ends(USAGE_RATED.name)
    room = lab.room("billing")
    async with lab.owner("billing") as db:
        begun: list[tuple[float, int]] = []

        async def all_charged() -> tuple[bool, Any]:
            row = await db.fetchrow(
                """SELECT coalesce(sum(next_offset), 0)::bigint AS passed, EXISTS (SELECT FROM mesh_outbox) AS waits
                   FROM mesh_cursor WHERE topic = $1""",
                USAGE_RATED.name,
            )
            if not begun and row["passed"]:
                begun.append((time.perf_counter(), await _lines(db)))
            return row["passed"] == records and not row["waits"], row["passed"]

        room.spawn()
        await until(lab, "billing", all_charged)
        ended, lines = time.perf_counter(), await _lines(db)
        if lines != plan.distinct:
            raise Wrong(f"{lines} charge lines for {plan.distinct} generations")
    assert room.child is not None
    peak = peak_memory_mb(room.child.pid)
    await lab.end_rooms()
    at, before = begun[0]
    if lines - before < lines / 5:
        raise Wrong(
            f"only {lines - before} of {lines} lines were left when billing was first seen at work: take more events"
        )
    return (lines - before) / (ended - at), peak


async def _lines(db: Any) -> int:
    return int(await db.fetchval("SELECT count(*) FROM charge_line WHERE journal > 0"))
