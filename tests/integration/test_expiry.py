"""Data ends when its time is over: partitions are dropped without anybody waiting, rows go, readers see it at once."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from datetime import UTC, date, datetime, timedelta
from pathlib import Path
from typing import Any

import asyncpg
import pytest

from shared.mesh import partitions
from shared.mesh.clock import FileClock
from shared.mesh.runtime import Runtime
from tests.support.world import Faults, Mesh

DAY = timedelta(days=1)


@asynccontextmanager
async def session(mesh: Mesh, room: str = "metering", *, owner: bool = False) -> AsyncIterator[Any]:
    """A connection of its own to a room's database."""
    db = await asyncpg.connect(mesh.env[f"STEWARD_{room.upper()}_{'OWNER_' if owner else ''}DATABASE_URL"])
    try:
        yield db
    finally:
        await db.close()


async def names(mesh: Mesh, table: str, room: str = "metering") -> dict[str, bool]:
    """Partitions of a table, and whether they are attached."""
    async with session(mesh, room, owner=True) as db:
        return {piece.name: piece.attached for piece in await partitions.pieces(db, table)}


def name_of(table: str, day: date) -> str:
    return f"{table}_{day:%Y%m%d}"


class Time:
    """A test's clock."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self.at = datetime.now(UTC).replace(hour=12, minute=0, second=0, microsecond=0)
        self.set(self.at)
        self.clock = FileClock(path)

    def set(self, at: datetime) -> None:
        self.at = at
        FileClock.write(self._path, at, rate=0)

    @property
    def today(self) -> date:
        return self.at.date()


@pytest.fixture
def clock(tmp_path: Path) -> Time:
    return Time(tmp_path / "clock")


async def started(mesh: Mesh, clock: Time, **options: Any) -> Runtime:
    runtime = await mesh.start("metering", clock=clock.clock, **options)
    await mesh.owned()
    return runtime


async def test_a_day_that_is_over_is_dropped_and_leaves_a_receipt(mesh: Mesh, clock: Time) -> None:
    runtime = await started(mesh, clock)
    oldest = clock.today - 10 * DAY
    before = await names(mesh, "seen")
    assert name_of("seen", oldest) in before and name_of("seen", oldest - DAY) not in before
    clock.set(datetime.combine(clock.today + DAY, datetime.min.time(), UTC) - timedelta.resolution)
    await runtime.drop_partitions()
    assert name_of("seen", oldest) in await names(mesh, "seen"), "the window is not over yet"
    clock.set(clock.at + timedelta.resolution)
    # The job itself finds out, whoever runs it.
    await runtime.worker.run_job("mesh-partitions", force=True)

    async def gone() -> bool:
        return name_of("seen", oldest) not in await names(mesh, "seen")

    await mesh.until(gone, 10, "the partition is dropped")
    receipts = await mesh.fetch("metering", "SELECT * FROM mesh_expiry WHERE partition = $1", name_of("seen", oldest))
    assert len(receipts) == 1
    assert receipts[0]["table_name"] == "seen" and receipts[0]["dropped_at"] == clock.at == receipts[0]["bound"]
    # It is not made again.
    await runtime.make_partitions()
    assert await gone()


async def test_a_reader_is_not_blocked_and_blocks_nobody(mesh: Mesh, clock: Time) -> None:
    runtime = await started(mesh, clock)
    over = name_of("request_log", clock.today)
    clock.set(clock.at + DAY)
    longest = 0.0
    async with session(mesh) as reader, session(mesh) as other:
        await reader.execute("BEGIN ISOLATION LEVEL REPEATABLE READ")
        await reader.fetch("SELECT count(*) FROM request_log")
        dropping = asyncio.create_task(runtime.drop_partitions())
        while not dropping.done():
            began = time.monotonic()
            await reader.fetch("SELECT count(*) FROM request_log")
            await other.fetch("SELECT count(*) FROM request_log")
            longest = max(longest, time.monotonic() - began)
        assert over in await dropping, "somebody reads it: it has to wait"
        assert longest < 1
        # A table that is being swept takes new partitions, and rows.
        await asyncio.wait_for(runtime.make_partitions(), 5)
        await reader.execute("COMMIT")
    assert over not in await runtime.drop_partitions()
    assert over not in await names(mesh, "request_log")


async def test_what_a_crash_left_in_the_middle_is_finished(mesh: Mesh, clock: Time) -> None:
    fault = Faults("partition_detached")
    runtime = await started(mesh, clock)
    over = name_of("request_log", clock.today)
    await mesh.stop(runtime)
    clock.set(clock.at + DAY)
    crashed = await mesh.start("metering", clock=clock.clock, fault=fault)
    await asyncio.wait_for(fault.hit.wait(), 20)
    lying = [
        name
        for table in ("mesh_dead_letter", "seen", "request_log")
        for name, attached in (await names(mesh, table)).items()
        if not attached
    ]
    assert lying, "detached, and not dropped"
    await mesh.abandon(crashed)
    # And one that somebody began to detach and did not finish.
    async with session(mesh) as reader, session(mesh, owner=True) as owner:
        await reader.execute("BEGIN ISOLATION LEVEL REPEATABLE READ")
        await reader.fetch("SELECT count(*) FROM request_log")
        await owner.execute("SET lock_timeout = '200ms'")
        with pytest.raises(asyncpg.LockNotAvailableError):
            await owner.execute(f"ALTER TABLE request_log DETACH PARTITION {over} CONCURRENTLY")
        await reader.execute("COMMIT")
    again = await started(mesh, clock)

    async def clean() -> bool:
        for table in ("mesh_dead_letter", "seen", "request_log"):
            found = await names(mesh, table)
            if not all(found.values()) or (name_of(table, clock.today - DAY) in found and table != "seen"):
                return False
        return True

    await mesh.until(clean, 20, "nothing is left lying")
    for name in (*lying, over):
        assert await mesh.value("metering", "SELECT count(*) FROM mesh_expiry WHERE partition = $1", name) == 1
        assert await mesh.value("metering", "SELECT to_regclass($1::text) IS NULL", name)
    assert again.troubles() == []
