"""How long an erasure takes: of one account with much stored beside traffic of others, and of a long queue of ordinary ones.

Every room is a process of its own; requests, codes, orders, receipts and scans go round as they do for people. Retention
has the patience of a production (see `patient.py`). `completed` is what is timed: every holder has erased, and the auditor
has looked into every database.
"""

from __future__ import annotations

import asyncio
import contextlib
import random
import sys
import time
from collections.abc import AsyncIterator, Collection
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from typing import Any

from aiokafka import AIOKafkaProducer

from deploy.local.idle import wait_idle
from services.retention.clocks import closes_at
from shared.contract.ids import uuid7
from shared.contract.topics import GENERATIONS
from shared.mesh.transaction import rfc3339
from shared.policy import policy
from tests.bench.backlog import MODELS, Writer
from tests.bench.chain import Stalled, Wrong, until
from tests.bench.lab import Lab
from tests.bench.people import People, Person, crowd, of_all, people
from tests.bench.processes import Machine, cpu_seconds, family_cpu_seconds
from tests.bench.report import Limit, Line, Report

PATIENT = (sys.executable, "-m", "tests.bench.patient")
MOST_SECONDS, TRAFFIC = 60.0, 1_000
LEAST_A_SECOND = 50.0
MOST_LAG_SECONDS = 2.0

_IDLE_SECONDS = 400.0
_LOOK = 0.2
_DONE = ("completed", "sweeping", "certified")
_DAYS = 10
_WARM_UP = 5.0

# Half of the rows are the account's, page for page among those of others, over the days before.
_FILL_LOG = f"""
    INSERT INTO request_log (expires_on, occurred_at, retention_days, generation_id, generation_ref, account,
        workspace, key_id, provider, model, tier, ended, rule, quantities, input_tokens, output_tokens, amount_pico,
        price_version, record, line)
    SELECT (at AT TIME ZONE 'UTC')::date + 30, at, 30,
        (lpad(to_hex((extract(epoch FROM at) * 1000)::bigint), 12, '0') || '7' || left(md5(i::text), 3) || '8'
            || right(md5(i::text), 15))::uuid,
        'gen-' || md5(i::text),
        CASE i % 2 WHEN 0 THEN $3 ELSE 'acc-' || left(md5((i % 1000)::text), 16) END,
        CASE i % 2 WHEN 0 THEN $4 ELSE 'ws-' || left(md5((i % 2000)::text), 16) END,
        CASE i % 2 WHEN 0 THEN $5 ELSE 'key-' || left(md5((i % 6000)::text), 16) END,
        'openai', 'gpt-4.1-mini', 'standard', 'completed/stop', 'list',
        '{{"input":' || 1000 + i % 3000 || ',"output":' || 1 + i % 1000 || '}}', 1000 + i % 3000, 1 + i % 1000,
        i % 1000000000, 'pv_000000000000', md5((i / 800)::text)::uuid, i % 800
    FROM generate_series(0, 2 * $2::bigint - 1) AS i,
         LATERAL (SELECT $1::timestamptz + i * interval '{_DAYS} days' / (2 * $2::bigint) AS at) AS v"""
_FILL_ROLLUP = """
    INSERT INTO rollup_hourly (workspace, key_id, model, hour, generations, input_tokens, output_tokens, amount_pico)
    SELECT $1, $2, 'gpt-4.1-mini', h, 1000, 1000000, 100000, 1000000000 FROM generate_series($3::int, $4::int) AS h"""


def against(name: str, value: float, unit: str, limit: Limit, note: str = "") -> Line:
    """A figure beside its limit, as a ratio to it."""
    return Line(name, value, unit, value / limit.bound, "limit", (limit,), note)


async def start_house(lab: Lab) -> None:
    """Starts every room; retention with a production's patience."""
    rooms = [lab.room(name, serve=PATIENT if name == "retention" else None) for name in lab.rooms]
    await asyncio.gather(*(room.start() for room in rooms))


async def settled(lab: Lab, what: str) -> None:
    """Waits until the rooms have nothing left to do."""
    idle = await wait_idle(lab.env, _IDLE_SECONDS, lab.rooms)
    if not idle.idle:
        raise Stalled(f"{what}: {idle.text()}\n{lab.complaints()}")
    await lab.settle()


@dataclass(slots=True)
class Traffic:
    """Usage of others, `rate` generations a second."""

    lab: Lab
    rate: int
    sent: int = 0
    _writer: Writer = field(default_factory=lambda: Writer("gw-bench-traffic"))
    _random: random.Random = field(default_factory=lambda: random.Random(11))

    @contextlib.asynccontextmanager
    async def flowing(self) -> AsyncIterator[Traffic]:
        """It flows while the block runs. Raises what ended it, if it ended by itself."""
        producer: Any = AIOKafkaProducer(
            **self.lab.kafka.client(), acks="all", enable_idempotence=True, compression_type="lz4", linger_ms=5
        )
        await producer.start()
        task = asyncio.create_task(self._flow(producer))
        try:
            yield self
            if task.done():
                task.result()
        finally:
            task.cancel()
            await asyncio.gather(task, return_exceptions=True)
            await producer.stop()

    async def _flow(self, producer: Any) -> None:
        started = time.monotonic()
        while True:
            due = int((time.monotonic() - started) * self.rate)
            while self.sent < due:
                ms, place = int(time.time() * 1000), self._random.randrange(2_000)
                event_id = uuid7(ms, self._random.getrandbits)
                at = rfc3339(datetime.fromtimestamp(ms / 1000, UTC)).encode()
                self.sent += 1
                value = self._writer.write(
                    event_id, at, place, place % len(MODELS), self.sent, self._random.getrandbits(48)
                )
                await producer.send(
                    GENERATIONS.name, value, key=event_id.encode(), partition=self.sent % GENERATIONS.partitions,
                    headers=[("ce_source", b"gw-bench-traffic"), ("ce_sequence", b"%d" % self.sent)],
                )  # fmt: skip
            await asyncio.sleep(0.01)  # lint: allow sleep-in-test -- the pace of the traffic


async def booked(billing: Any) -> int:
    """Generations that are in the books."""
    return int(await billing.fetchval("SELECT coalesce(sum(value), 0)::bigint FROM mesh_counter WHERE name = 'booked'"))


async def states(retention: Any, cases: Collection[str] | None = None) -> dict[str, int]:
    """How many cases are in each state."""
    rows = await retention.fetch(
        "SELECT state, count(*) AS n FROM privacy_case WHERE $1::text[] IS NULL OR id = ANY($1) GROUP BY state",
        None if cases is None else list(cases),
    )
    return {row["state"]: row["n"] for row in rows}


async def with_code(lab: Lab, world: People, who: Person) -> None:
    """Waits for the mail with the code."""

    async def there() -> tuple[bool, Any]:
        return world.has_code(who), len(lab.stack.mail.mails()) if lab.stack.mail else 0

    await until(lab, "the mail with the code", there)


# --- one account -------------------------------------------------------------------------------------------------


async def account_lines(lab: Lab, report: Report, rows: int, rate: int = TRAFFIC) -> None:
    """An account with `rows` rows in the request log, and as many of others beside them, is erased while `rate` events a
    second of others go on."""
    lab.need("metering", "billing", "retention", "notifications", "audit")
    await lab.reset()
    victim, *others = crowd("one", 50)
    await fill(lab, victim, rows)
    await start_house(lab)
    async with people(lab) as world, lab.owner("retention") as cases, lab.owner("billing") as billing:
        await world.send([*world.joins(victim, 2_000), *of_all(others, world.joins)])
        await settled(lab, "the account's beginning")
        before = await booked(billing)
        traffic = Traffic(lab, rate)
        lags: list[tuple[float, float]] = []

        async def lag() -> float:
            sent = traffic.sent
            behind = max(0, sent - (await booked(billing) - before)) / rate
            lags.append((time.monotonic(), behind))
            return behind

        async with traffic.flowing():
            warm_until = time.monotonic() + _WARM_UP
            while time.monotonic() < warm_until:
                await lag()
                await asyncio.sleep(0.2)  # lint: allow sleep-in-test -- the pace of a measurement
            case, asked = world.asks(victim)
            await world.send([asked])
            await with_code(lab, world, victim)
            usual = max(behind for _, behind in lags)
            machine, started = Machine.now(), time.monotonic()
            ways: dict[str, float] = {}
            await world.send([world.confirms(victim, case)])

            async def done() -> tuple[bool, Any]:
                state = next(iter(await states(cases, [case])), "")
                ways.setdefault(state, time.monotonic() - started)
                if not lags or time.monotonic() - lags[-1][0] > 0.25:
                    await lag()
                return state in _DONE, (state, traffic.sent // (30 * rate))

            await until(lab, "the erasure", done)
            took, busy = time.monotonic() - started, Machine.now().busy_since(machine)
            at_end = await lag()
        await _gone(lab, victim, rows)
    await lab.end_rooms()
    worst = max(behind for at, behind in lags if at >= started)
    way = ", ".join(f"{state} after {at:.1f} s" for state, at in ways.items())
    report.add(
        against(
            "erasure_account", took, "s", Limit("<=", MOST_SECONDS),
            f"{rows:,} rows of the account, {rows:,} of others; {rate:,} events/s of others meanwhile; {way}; "
            f"{busy:.0%} of the machine busy",
        ),
        against(
            "erasure_account_lag", at_end, "s", Limit("<=", MOST_LAG_SECONDS),
            f"traffic that is not booked when the case is completed; at most {worst:.2f} s meanwhile, "
            f"{usual:.2f} s before",
        ),
    )  # fmt: skip


async def fill(lab: Lab, who: Person, rows: int) -> None:
    """The account's rows of the request log, as many of others among them, and its rollups."""
    since = datetime.now(UTC) - timedelta(days=_DAYS)
    hour = int(since.timestamp()) // 3600
    with lab.progress() as progress:
        progress.add_task(f"{2 * rows:,} rows of the request log", total=None)
        async with lab.owner("metering") as db:
            await db.execute(_FILL_LOG, since, rows, who.account, who.workspace, who.key)
            await db.execute(_FILL_ROLLUP, who.workspace, who.key, hour, hour + 24 * _DAYS - 2)
            await db.execute("VACUUM (ANALYZE) request_log")
    await lab.settle()


async def _gone(lab: Lab, who: Person, rows: int) -> None:
    """Raises Wrong if a row of the account is left, or one of the others is missing."""
    async with lab.owner("metering") as db:
        left = await db.fetchval("SELECT count(*) FROM request_log WHERE account = $1", who.account)
        others = await db.fetchval("SELECT count(*) FROM request_log WHERE price_version = 'pv_000000000000'")
    if left or others != rows:
        raise Wrong(f"{left} rows of the account are left, and {others} of {rows} others")


# --- a queue -----------------------------------------------------------------------------------------------------


async def queue_lines(lab: Lab, report: Report, count: int) -> None:
    """`count` closed accounts whose time is over at once: their erasures need no code, and are else like any other.

    The clock runs from the first closing to the last completed case; a case's mail that says so follows.
    """
    lab.need(*lab.rooms)
    await lab.reset()
    await start_house(lab)
    everybody = crowd("queue", count)
    async with people(lab) as world, lab.owner("retention") as cases, lab.owner("notifications") as mails:
        with lab.progress() as progress:
            progress.add_task(f"{count:,} accounts", total=None)
            for n in range(0, count, 1_000):
                await world.send(of_all(everybody[n : n + 1_000], world.joins))
            await settled(lab, "the accounts' beginning")
        now = datetime.now(UTC)
        over = now - (closes_at(now, policy()) - now) - timedelta(hours=1)
        machine, started, cpu = Machine.now(), time.monotonic(), _cpu(lab)
        await world.send([world.closes(who, over) for who in everybody])
        half: list[float] = []
        with lab.progress() as progress:
            task = progress.add_task("erasures", total=count)

            async def done() -> tuple[bool, Any]:
                found = await states(cases)
                completed = sum(found.get(state, 0) for state in _DONE)
                if completed * 2 >= count and not half:
                    half.append(time.monotonic() - started)
                progress.update(task, completed=completed)
                await asyncio.sleep(_LOOK)  # lint: allow sleep-in-test -- a look costs the database something
                return completed == count, found

            await until(lab, "the queue", done)
        took, busy = time.monotonic() - started, Machine.now().busy_since(machine)
        spent = {name: (seconds - cpu[name]) * 1000 / count for name, seconds in _cpu(lab).items()}
        told = await mails.fetchval("SELECT count(*) FROM mail WHERE state = 'accepted'")
    await lab.end_rooms()
    each = ", ".join(f"{name} {ms:.1f}" for name, ms in spent.items())
    report.add(
        against(
            "erasure_queue", count / took, "cases/s", Limit(">=", LEAST_A_SECOND),
            f"{count:,} closed accounts in {took:.0f} s, half of them after {half[0]:.0f} s; {told:,} mails out by then; "
            f"{busy:.0%} of the machine busy; CPU ms a case: {each}",
        )
    )  # fmt: skip


def _cpu(lab: Lab) -> dict[str, float]:
    found = {room.name: cpu_seconds(room.child.pid) for room in lab.running if room.child is not None}
    kafka, postgres, mail = lab.stack.kafka, lab.stack.postgres, lab.stack.mail
    for part in (kafka, mail):
        if part is not None and part.child is not None:
            found[part.name] = cpu_seconds(part.child.pid)
    if postgres is not None and postgres.child is not None:
        found["postgres"] = family_cpu_seconds(postgres.child.pid)
    return found
