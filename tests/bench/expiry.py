"""A day of the request log ends: how long anybody has to wait for it, while somebody is in the middle of reading it."""

from __future__ import annotations

import asyncio
import time
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from typing import Any

import asyncpg

from services.metering.app import make_service
from shared.mesh.partitions import drop_over
from shared.mesh.service import Partitioned
from tests.bench.erasure import against
from tests.bench.lab import Lab
from tests.bench.report import Limit, Report

MOST_SECONDS = 1.0
_READS_SECONDS = 3.0
_AGAIN = 1.0  # a sweep that met a reader comes again after that (the first time)

_COLUMNS = """expires_on, occurred_at, retention_days, generation_id, account, workspace, key_id, provider, model, tier, ended,
    rule, quantities, input_tokens, output_tokens, amount_pico, price_version, record, line"""
_ROWS = f"""
    INSERT INTO request_log ({_COLUMNS})
    SELECT $1::date, $2, 30, '00000000-0000-7000-8000-000000000000', 'a', 'w' || i % 1000, 'k', 'p', 'm', 's', 'e', 'l', '{{}}',
        1, 1, 1, 'v', '00000000-0000-7000-8000-000000000000', 0
    FROM generate_series(1, $3::bigint) AS i"""
_COUNT = "SELECT count(*) FROM request_log WHERE workspace = 'nobody' AND expires_on = $1"


@dataclass(slots=True)
class Waits:
    """The longest that a statement of each kind took; `of` does it again and again until told to stop."""

    worst: dict[str, float] = field(default_factory=dict)
    times: int = 0
    stop: bool = False

    async def of(self, name: str, db: Any, statement: str, *arguments: Any) -> None:
        """Runs a statement over and over."""
        while not self.stop:
            started = time.perf_counter()
            await db.execute(statement, *arguments) if name == "insert" else await db.fetch(statement, *arguments)
            self.worst[name] = max(self.worst.get(name, 0.0), time.perf_counter() - started)
            self.times += 1
            await asyncio.sleep(0.005)  # lint: allow sleep-in-test -- the pace of what is measured


async def expiry_lines(lab: Lab, report: Report, rows: int) -> None:
    """A day of `rows` rows is dropped as the sweep does it, while others write and read the log, and one reads that day."""
    lab.need("metering")
    await lab.end_rooms()
    url = await lab.scratch("metering")
    now = datetime.now(UTC)
    log = next(table for table in make_service().partitioned if table.table == "request_log")
    today = now.date()
    over = datetime.combine(today, datetime.min.time(), UTC) + timedelta(days=1, seconds=1)
    async with asyncio.timeout(450):
        db = await asyncpg.connect(url)
        try:
            with lab.progress() as progress:
                task = progress.add_task("rows of one day", total=rows)
                for n in range(0, rows, 1_000_000):
                    await db.execute(_ROWS, today, now, min(1_000_000, rows - n))
                    progress.advance(task, min(1_000_000, rows - n))
            await lab.settle()
            took, sweeps, waits, alone = await _swept(url, log, over)
            left = await db.fetchval("SELECT to_regclass($1) IS NOT NULL", f"request_log_{today:%Y%m%d}")
        finally:
            await db.close()
    if left:
        raise RuntimeError("the day's partition is still there")
    worst = max(waits.worst.values())
    each = ", ".join(f"{name} {seconds * 1000:.0f} ms" for name, seconds in waits.worst.items())
    before = ", ".join(f"{name} {seconds * 1000:.0f} ms" for name, seconds in alone.worst.items())
    note = (
        f"{rows:,} rows; the longest: {each} ({before} while nothing was dropped); gone after {took:.1f} s and {sweeps} "
        f"sweeps, its reader stayed for {_READS_SECONDS:.0f} s; {waits.times:,} statements"
    )
    report.add(against("expiry_day", worst, "s", Limit("<=", MOST_SECONDS), note))


async def _swept(url: str, log: Partitioned, over: datetime) -> tuple[float, int, Waits, Waits]:
    """(seconds until the day is gone, sweeps, the waits of others meanwhile, their waits before)."""
    reader, writer, looker = [await asyncpg.connect(url) for _ in range(3)]
    tomorrow = over.date() + timedelta(days=5)
    try:
        alone = Waits()
        await _beside(alone, writer, looker, tomorrow, _a_moment())
        waits = Waits()
        began = time.perf_counter()
        reading = reader.transaction()
        await reading.start()
        await reader.fetch("SELECT FROM request_log LIMIT 1")

        async def sweep() -> int:
            sweeps, open_ = 0, True
            while True:
                sweeps += 1
                if not await drop_over(url, "steward-bench-expiry", [log], over):
                    return sweeps
                if open_ and time.perf_counter() - began > _READS_SECONDS:
                    await reading.rollback()
                    open_ = False
                await asyncio.sleep(_AGAIN)  # lint: allow sleep-in-test -- the pace of the runtime's own sweeps

        sweeps = await _beside(waits, writer, looker, tomorrow, sweep())
        return time.perf_counter() - began, sweeps, waits, alone
    finally:
        for db in (reader, writer, looker):
            await db.close()


async def _a_moment() -> None:
    await asyncio.sleep(1.0)  # lint: allow sleep-in-test -- a span is measured


async def _beside(waits: Waits, writer: Any, looker: Any, day: Any, what: Any) -> Any:
    """Awaits `what`, while one writes to the log and one reads from it."""
    tasks = [
        asyncio.create_task(waits.of("insert", writer, _ROWS, day, datetime.now(UTC), 1)),
        asyncio.create_task(waits.of("select", looker, _COUNT, day)),
    ]
    try:
        return await what
    finally:
        waits.stop = True
        await asyncio.gather(*tasks)
