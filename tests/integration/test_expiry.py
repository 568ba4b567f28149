"""Data ends when its time is over: partitions are dropped without anybody waiting, rows go, readers see it at once."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import replace
from datetime import UTC, date, datetime, timedelta
from pathlib import Path
from typing import Any
from uuid import uuid4

import asyncpg
import pytest

from services.metering.data_map import HOLDING
from shared.contract import events, topics
from shared.contract.codec import build, validated
from shared.mesh import Transaction, partitions
from shared.mesh.clock import FileClock
from shared.mesh.http import NotFound, NotKept
from shared.mesh.runtime import Runtime
from shared.mesh.transaction import rfc3339
from shared.policy import policy
from shared.privacy.erasure import Pass
from shared.privacy.expiry import CHUNK
from shared.privacy.holder import treatment_of
from tests.support.gateway import Gateway, body
from tests.support.world import Faults, Mesh, make

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
        """It is `at`, and time goes on."""
        self.at = at
        FileClock.write(self._path, at)

    def freeze(self, at: datetime) -> None:
        """It is `at`, and stays so: jobs with slots do not run by themselves."""
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
    clock.freeze(datetime.combine(clock.today + DAY, datetime.min.time(), UTC) - timedelta.resolution)
    await runtime.drop_partitions()
    assert name_of("seen", oldest) in await names(mesh, "seen"), "the window is not over yet"
    clock.freeze(clock.at + timedelta.resolution)
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


async def exclusive_locks(db: Any, until: asyncio.Task[Any]) -> int:
    """How often somebody had, or waited for, the lock that readers of the log mind: everybody would queue behind."""
    seen = 0
    while not until.done():
        seen += await db.fetchval(
            "SELECT count(*) FROM pg_locks WHERE relation = 'request_log'::regclass AND mode = 'AccessExclusiveLock'"
        )
    return seen


async def test_a_reader_is_not_blocked_and_blocks_nobody(mesh: Mesh, clock: Time) -> None:
    runtime = await started(mesh, clock)
    over = name_of("request_log", clock.today)
    tomorrow = clock.at + DAY
    url = mesh.env["STEWARD_METERING_OWNER_DATABASE_URL"]

    async def drop() -> list[str]:
        # By hand, or the room's own sweep might be the one that is at it.
        return await partitions.drop_over(url, "test", runtime.partitioned, tomorrow)

    longest = 0.0
    async with session(mesh) as reader, session(mesh) as other, session(mesh) as watcher:
        await reader.execute("BEGIN ISOLATION LEVEL REPEATABLE READ")
        await reader.fetch("SELECT count(*) FROM request_log")
        dropping = asyncio.create_task(drop())
        watching = asyncio.create_task(exclusive_locks(watcher, dropping))
        while not dropping.done():
            began = time.monotonic()
            await reader.fetch("SELECT count(*) FROM request_log")
            await other.fetch("SELECT count(*) FROM request_log")
            longest = max(longest, time.monotonic() - began)
        assert over in await dropping, "somebody reads it: it has to wait"
        assert longest < 1 and await watching == 0
        # A table that is being swept takes new partitions, and rows.
        async with session(mesh, owner=True) as owner, asyncio.timeout(5):
            for table in runtime.partitioned:
                await partitions.supply(owner, table, tomorrow)
        await reader.execute("COMMIT")
    assert await drop() == []
    assert over not in await names(mesh, "request_log")


async def test_two_days_that_somebody_reads_wait_and_hold_up_no_other_table(mesh: Mesh, clock: Time) -> None:
    """PostgreSQL detaches one partition of a table at a time: the other is busy as well, and the sweep goes on."""
    runtime = await started(mesh, clock)
    url, later = mesh.env["STEWARD_METERING_OWNER_DATABASE_URL"], clock.at + 2 * DAY
    over = [name_of("request_log", clock.today + n * DAY) for n in range(2)]
    (seen,) = [table for table in runtime.partitioned if table.table == "seen"]
    async with session(mesh) as reader:
        await reader.execute("BEGIN ISOLATION LEVEL REPEATABLE READ")
        await reader.fetch("SELECT count(*) FROM request_log")
        tables = [*(table for table in runtime.partitioned if table is not seen), seen]
        busy = await partitions.drop_over(url, "test", tables, later)
        assert set(over) <= set(busy)
        assert name_of("seen", clock.today - 10 * DAY) not in await names(mesh, "seen"), "the last table was swept"
        await reader.execute("COMMIT")
    assert await partitions.drop_over(url, "test", tables, later) == []
    assert not set(over) & set(await names(mesh, "request_log"))


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


async def test_a_shorter_period_ends_at_once_what_is_older(mesh: Mesh, clock: Time) -> None:
    """A policy that keeps less: marks say so, and what is over by it is dropped; attached partitions stay as they are."""
    runtime = await started(mesh, clock)
    (seen,) = [table for table in runtime.partitioned if table.table == "seen"]
    shorter = replace(seen, keeps=4 * DAY)
    async with session(mesh, owner=True) as owner:
        await partitions.supply(owner, shorter, clock.at)
        marks = {piece.name: piece.over_at for piece in await partitions.pieces(owner, "seen")}
        gone, busy = await partitions.sweep(owner, [shorter], clock.at)
    midnight = datetime.combine(clock.today, datetime.min.time(), UTC)
    assert marks[name_of("seen", clock.today)] == midnight + 5 * DAY
    assert gone == [name_of("seen", clock.today - n * DAY) for n in range(10, 4, -1)] and busy == []
    left = await names(mesh, "seen")
    assert name_of("seen", clock.today - 4 * DAY) in left and name_of("seen", clock.today - 5 * DAY) not in left


@pytest.mark.promise(7)
async def test_the_key_of_a_day_ends_with_its_partition(mesh: Mesh, clock: Time) -> None:
    runtime = await started(mesh, clock)

    async def keys() -> list[str]:
        rows = await mesh.fetch("keys", "SELECT name FROM vault_key WHERE purpose = 'seen' ORDER BY name")
        return [row["name"] for row in rows]

    first = clock.today - 10 * DAY
    assert (await keys())[0] == first.isoformat() and name_of("seen", first) in await names(mesh, "seen")
    clock.freeze(datetime.combine(clock.today + DAY, datetime.min.time(), UTC))
    await mesh.until(lambda: runtime.worker.run_job("day-keys", force=True), 20, "the job has run")
    assert (await keys())[0] == (first + DAY).isoformat()

    async def gone() -> bool:
        await runtime.drop_partitions()
        return name_of("seen", first) not in await names(mesh, "seen")

    await mesh.until(gone, 20, "and so has the partition")


async def test_an_erasure_goes_on_where_a_partition_was_dropped(mesh: Mesh, clock: Time) -> None:
    runtime = await started(mesh, clock)
    (rows,) = [rows for rows in HOLDING.rows if rows.table == "request_log"]
    treatment = {rows.table: treatment_of(HOLDING.columns, rows)}
    gone, there = name_of("request_log", clock.today - DAY), name_of("request_log", clock.today)
    orders = {("case", 0): ({"scope": "account"}, frozenset({("workspace", "ws-gone")}))}
    current = Pass([("case", 0)], [["request_log", gone, 700], ["request_log", there, 1]], 512, {}, 0)
    async with runtime.pool.acquire() as db, db.transaction():
        await current.advance(Transaction("metering", db, clock.at), treatment, orders)
    assert current.rest == [] and current.counts == {}


# --- the request log ------------------------------------------------------------------------------------------------


class Workspace:
    """A workspace with a name of its own (settings are compacted: those of earlier tests are still there)."""

    def __init__(self, mesh: Mesh, gateway: Gateway, clock: Time) -> None:
        self._mesh, self._gateway, self._clock = mesh, gateway, clock
        self.name = f"ws-{uuid4().hex[:12]}"
        self._version = 0

    async def use(self, days: int | None = None) -> str:
        """A generation, now; returns its id."""
        changes: dict[str, Any] = {} if days is None else {"log_retention_days": days}
        sent = self._gateway.generation(self.name, at_ms=int(self._clock.at.timestamp() * 1000), **changes)
        await self._gateway.send(self._mesh.env, [sent])
        await self._mesh.idle()
        return str(body(sent)["id"])

    async def state(self, days: int) -> None:
        """Settings as retention publishes them."""
        self._version += 1
        data = {
            "workspace": self.name, "account": f"acc-{self.name}", "version": self._version,
            "log_retention_days": days, "changed_at": rfc3339(self._clock.at),
        }  # fmt: skip
        sent = self._gateway.event(topics.SETTINGS, events.SettingsChanged, data, key=self.name)
        await self._gateway.send(self._mesh.env, [sent])

    async def wants(self, days: int) -> None:
        """Settings, and waits until they are obeyed on disk."""
        await self.state(days)
        version = self._version

        async def obeyed() -> bool:
            rows = await self._mesh.fetch(
                "metering", "SELECT treated FROM workspace_setting WHERE workspace = $1", self.name
            )
            return bool(rows) and rows[0]["treated"] >= version

        await self._mesh.until(obeyed, 20, "the log is as the workspace wants it")

    async def known(self) -> bool:
        """Whether metering knows the latest settings."""
        rows = await self._mesh.fetch(
            "metering", "SELECT version FROM workspace_setting WHERE workspace = $1", self.name
        )
        return bool(rows) and rows[0]["version"] == self._version

    async def on_disk(self) -> list[tuple[int, date]]:
        """(days, expiry day) of its log rows."""
        rows = await self._mesh.fetch(
            "metering", "SELECT * FROM request_log WHERE workspace = $1 ORDER BY occurred_at", self.name
        )
        return [(row["retention_days"], row["expires_on"]) for row in rows]


async def visible(runtime: Runtime, generation: str) -> bool:
    try:
        await runtime.answer("explain", {"id": generation}, "tester", "operator", "a test")
    except (NotFound, NotKept):
        return False
    return True


@pytest.fixture
async def workspace(mesh: Mesh, clock: Time, seed: int) -> Workspace:
    gateway = Gateway(seed)
    await gateway.send(mesh.env, [gateway.price()])
    return Workspace(mesh, gateway, clock)


@pytest.mark.promise(5)
async def test_a_request_is_seen_for_thirty_days_and_then_gone(mesh: Mesh, clock: Time, workspace: Workspace) -> None:
    runtime = await started(mesh, clock)
    generation = await workspace.use()
    made = clock.at
    clock.freeze(made + 30 * DAY - timedelta(seconds=1))
    await runtime.drop_partitions()
    assert await visible(runtime, generation)
    clock.freeze(made + 30 * DAY)
    assert not await visible(runtime, generation) and len(await workspace.on_disk()) == 1
    # By the sweep's bound it is on no disk either, and nothing tells what it was.
    clock.freeze(made + 30 * DAY + policy().sweep_bound)
    await runtime.worker.run_job("mesh-partitions", force=True)

    async def gone() -> bool:
        return not await workspace.on_disk()

    await mesh.until(gone, 10, "its partition is dropped")
    assert not await mesh.value("metering", "SELECT count(*) FROM seen")
    tables = [r[0] for r in await mesh.fetch("metering", "SELECT relname FROM pg_class WHERE relkind = 'r' "
              "AND relnamespace = 'public'::regnamespace AND relname !~ '^(rollup|mesh_migration)'")]  # fmt: skip
    for table in tables:
        text = str([tuple(row.values()) for row in await mesh.fetch("metering", f"SELECT * FROM {table}")])
        assert generation not in text and f"key-{workspace.name}" not in text, table


@pytest.mark.promise(6, 48)
async def test_administrators_shorten_lengthen_and_switch_off(mesh: Mesh, clock: Time, workspace: Workspace) -> None:
    runtime = await started(mesh, clock)
    await workspace.wants(90)
    old = await workspace.use(90)
    clock.set(clock.at + 40 * DAY)
    await runtime.make_partitions()
    new = await workspace.use(90)
    first = clock.at
    assert await visible(runtime, old) and len(await workspace.on_disk()) == 2
    await workspace.wants(30)
    assert not await visible(runtime, old), "what is older than the new setting is over"
    assert await workspace.on_disk() == [(30, (first + 30 * DAY).date())]
    clock.set(first + 29 * DAY)
    await runtime.make_partitions()
    await workspace.wants(90)
    assert not await visible(runtime, old), "what expired stays so"
    assert await workspace.on_disk() == [(90, (first + 90 * DAY).date())], "live rows follow the setting in force"
    clock.set(first + 31 * DAY)
    await runtime.drop_partitions()
    assert await visible(runtime, new)
    # The gateway does not know yet: the shorter one holds.
    await workspace.wants(1)
    assert not await visible(runtime, new) and await workspace.on_disk() == []
    assert await visible(runtime, await workspace.use(90))
    assert [days for days, _ in await workspace.on_disk()] == [1]
    await workspace.wants(0)
    assert await workspace.on_disk() == []
    last = await workspace.use(90)
    assert not await visible(runtime, last) and await workspace.on_disk() == []
    await workspace.wants(90)
    assert await workspace.on_disk() == [] and not await visible(runtime, last), "0 to 90 restores nothing"
    # What was summed up by hour, key and model before is summed up by day now, like the last one.
    assert await mesh.value("metering", "SELECT sum(generations) FROM rollup_daily") == 4
    assert await mesh.value("metering", "SELECT count(*) FROM rollup_hourly") == 0


@pytest.mark.promise(6)
async def test_readers_obey_before_the_disk_does(mesh: Mesh, clock: Time, workspace: Workspace) -> None:
    service = make("metering")
    # Nobody treats the disk here.
    del service.tasks["log-retention"], service.jobs["log-retention"]
    runtime = await mesh.start("metering", service=service, clock=clock.clock)
    await mesh.owned()
    generation = await workspace.use(90)
    clock.set(clock.at + 40 * DAY)

    seen = []
    for days in (90, 30, 90):
        await workspace.state(days)
        await mesh.until(workspace.known, 20, "the setting is known")
        seen.append(await visible(runtime, generation))
    assert seen == [True, False, False], "no later setting brings back what one has ended"
    assert len(await workspace.on_disk()) == 1


@pytest.mark.promise(6, 7)
async def test_batch_in_flight_when_a_setting_changes(mesh: Mesh, clock: Time, workspace: Workspace) -> None:
    """A transaction that rated by the old setting, and commits late, leaves nothing that the new one does not want."""
    runtime = await started(mesh, clock)
    await workspace.use(90)
    async with session(mesh) as late:
        await late.execute("BEGIN")
        await late.execute("SELECT pg_advisory_xact_lock_shared(1867, 4)")
        await workspace.state(0)

        async def waits() -> bool:
            return bool(await mesh.value(
                "metering", "SELECT count(*) FROM pg_locks WHERE locktype = 'advisory' AND NOT granted"
            ))  # fmt: skip

        await mesh.until(waits, 20, "the setting waits for the open transaction")
        await late.execute(
            "INSERT INTO request_log SELECT * FROM request_log WHERE workspace = $1".replace(
                "$1", f"'{workspace.name}'"
            )
        )
        # Its sums have a key, too, and are on their way.
        await late.execute(
            f"""INSERT INTO pending (workspaces, keys, models, hours, generations, input_tokens, output_tokens, amounts)
                SELECT ARRAY['{workspace.name}'], ARRAY['key-late'], ARRAY['m'], ARRAY[{int(clock.at.timestamp()) // 3600}],
                       ARRAY[1], ARRAY[5], ARRAY[5], ARRAY[7]"""
        )
        await late.execute("COMMIT")

    async def gone() -> bool:
        return not await workspace.on_disk()

    await mesh.until(gone, 20, "nothing is left")
    await mesh.idle()
    by_key = "SELECT count(*) FROM rollup_hourly WHERE workspace = $1"
    by_day = "SELECT sum(generations)::int FROM rollup_daily WHERE workspace = $1"
    assert await mesh.value("metering", by_key, workspace.name) == 0
    assert await mesh.value("metering", by_day, workspace.name) == 2
    assert runtime.troubles() == []


@pytest.mark.promise(6)
def test_more_than_ninety_days_are_refused() -> None:
    data = {"workspace": "w", "account": "a", "version": 1, "changed_at": "2026-11-28T00:00:00Z"}
    head: dict[str, Any] = {"id": "019ab7d4-1e5a-7f00-8a1b-2c3d4e5f6a7b", "source": "retention", "subject": "w",
            "time": "2026-11-28T00:00:00.000Z"}  # fmt: skip
    for days, fine in ((0, True), (90, True), (91, False), (-1, False)):
        raw = build(events.SettingsChanged, data={**data, "log_retention_days": days}, **head)
        if fine:
            validated(events.SettingsChanged, raw)
        else:
            with pytest.raises(Exception, match="log_retention_days"):
                validated(events.SettingsChanged, raw)


# --- rows by the data map -------------------------------------------------------------------------------------------


@pytest.mark.promise(66)
async def test_rows_whose_time_is_over_are_deleted_in_chunks(mesh: Mesh, clock: Time) -> None:
    runtime = await started(mesh, clock)
    many = CHUNK + 17
    async with session(mesh, owner=True) as db:
        await db.execute(
            "INSERT INTO stale_seen SELECT decode(lpad(to_hex(n), 32, '0'), 'hex'), $2::date FROM generate_series(1, $1::int) n",
            many, clock.today,
        )  # fmt: skip
        await db.execute("INSERT INTO mesh_counter VALUES ('quarantined', -1, 2)")
        for days in (0, 5):
            await db.execute(
                """INSERT INTO quarantine (reason, missing, event_type, event_at, known_at, arrived_at, provider, model, usage,
                       line_key) VALUES ('stale', '', 'x', $1, $1, $1, 'p', 'm', '{}', '')""",
                clock.at + days * DAY,
            )
            await db.execute("INSERT INTO mesh_read (name, actor, role, reason, at) VALUES ('r', 'a', 'o', 'y', $1)",
                             clock.at + (60 + days) * DAY)  # fmt: skip
    start = clock.at

    async def expired(at: datetime) -> dict[str, int]:
        """Runs the hourly job at an instant; what is left."""
        clock.set(at)
        await _expire(mesh, runtime)
        return {
            table: await mesh.value("metering", f"SELECT count(*) FROM {table}")
            for table in ("stale_seen", "quarantine", "mesh_read")
        }

    before = (await expired(start))["mesh_read"]
    assert await expired(start + 10 * DAY) == {"stale_seen": many, "quarantine": 2, "mesh_read": before}
    assert await expired(start + 11 * DAY) == {"stale_seen": 0, "quarantine": 2, "mesh_read": before}
    assert await expired(start + 30 * DAY) == {"stale_seen": 0, "quarantine": 1, "mesh_read": before}
    counters = await mesh.counters()
    assert (counters["quarantined"], counters["erased"]) == (1, 1), "it is in another class of the sum now"
    receipts = await mesh.fetch("metering", "SELECT * FROM mesh_expiry WHERE partition IS NULL ORDER BY id")
    assert [(r["table_name"], r["rows_estimate"]) for r in receipts] == [("stale_seen", many), ("quarantine", 1)]
    assert all(r["policy_version"] == policy().version for r in receipts)
    assert (await expired(start + 150 * DAY))["mesh_read"] == 1
    # Receipts end as well.
    await expired(start + 412 * DAY)
    left = await mesh.fetch("metering", "SELECT table_name FROM mesh_expiry WHERE partition IS NULL ORDER BY id")
    assert "stale_seen" not in [r["table_name"] for r in left]


async def _expire(mesh: Mesh, runtime: Runtime) -> None:
    """Runs the hourly job, and waits until the round that it asks for is through."""

    async def through() -> bool:
        return not await mesh.value("metering", "SELECT count(*) FROM mesh_task WHERE name = 'mesh-expire'")

    # A round that is under way (each start begins one) goes by the time at which its chunks began.
    await mesh.until(through, 20, "earlier rounds are through")
    # Its first look only makes the job known; and it may be running by itself.
    await mesh.until(lambda: runtime.worker.run_job("mesh-expire", force=True), 20, "the job has run")
    await mesh.until(through, 20, "the round is through")


async def test_what_was_parked_for_a_week_counts_as_a_dead_letter(mesh: Mesh, clock: Time) -> None:
    runtime = await started(mesh, clock)
    async with session(mesh, owner=True) as db:
        await db.execute("INSERT INTO mesh_counter VALUES ('parked:a', -1, 2), ('parked:b', -1, 1)")
        for n, topic in enumerate((*"aab", topics.PAYMENTS.name)):
            await db.execute(
                """INSERT INTO mesh_parked (grp, topic, key, part, record_offset, record_ms, headers, reason, parked_at)
                   VALUES ('g', $1, '', 0, $2, 0, '', 'r', $3)""",
                topic, n, clock.at,
            )  # fmt: skip
    clock.set(clock.at + 7 * DAY)
    await _expire(mesh, runtime)
    counters = await mesh.counters()
    # What has to be booked waits for a person, however long that takes.
    left = await mesh.fetch("metering", "SELECT topic FROM mesh_parked")
    assert [row["topic"] for row in left] == [topics.PAYMENTS.name]
    assert {name: n for name, n in counters.items() if name.endswith((":a", ":b"))} == {
        "parked:a": 0, "parked:b": 0, "dead_lettered:a": 2, "dead_lettered:b": 1,
    }  # fmt: skip
