"""Roll-outs and scaling under load, as Kubernetes does them: SIGTERM, the end within the grace, a new process, the next.

What the sizing page says of the seconds that a rebalance stands still is printed here.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import sys
import time
from collections.abc import AsyncIterator, Iterable, Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

import asyncpg
import pytest

from deploy.k8s.workload import DRAIN_SECONDS, GRACE_SECONDS, footprint
from deploy.local.probe import get
from deploy.rooms import ROOMS, load
from services.metering.seed import GenaiPrices
from shared.contract import topics
from tests.bench.processes import Machine, cpu_seconds
from tests.bench.report import percentile
from tests.support.processes import Processes, Served, processes
from tests.support.traffic import Age, Traffic, traffic
from tests.support.watch import Stand, Watch
from tests.support.world import Mesh

# As in a pod, and as in a pod the usual session: who does not leave its group is missed for this long.
POD = {"STEWARD_DRAIN_SECONDS": str(DRAIN_SECONDS), "STEWARD_SESSION_TIMEOUT_MS": "15000"}
SESSION_SECONDS = 15
# The rule: how old an event may be when its effect is there.
AGE_SECONDS = 10.0
# Topics of which each service always has something to do.
BUSY = {
    "metering": topics.GENERATIONS,
    "billing": topics.USAGE_RATED,
    "security": topics.ACCESS,
    "insights": topics.ACTIVITY,
    "retention": topics.BALANCES,
    "notifications": topics.ACCOUNTS,
}
WATCHED = {"metering": topics.GENERATIONS, "billing": topics.USAGE_RATED}


class Form(NamedTuple):
    """How much of it: generations a second, which services are there, and how often each process is exchanged (0: one
    process of each service, once)."""

    rate: int
    rounds: int
    rooms: tuple[str, ...]

    def exchanged(self, served: Sequence[Served]) -> list[Served]:
        """The processes that are exchanged, in turn."""
        return list(served) * self.rounds or list({one.name: one for one in served}.values())


SHORT = Form(rate=200, rounds=0, rooms=("metering", "billing"))
FULL = Form(rate=1_000, rounds=3, rooms=ROOMS)


@pytest.fixture
def form(request: pytest.FixtureRequest) -> Form:
    return FULL if request.config.getoption("--all-seeds") else SHORT


class Stop(NamedTuple):
    """A process that was told to stop, and when it had ended (monotonic clock)."""

    room: str
    told: float
    ended: float


class Start(NamedTuple):
    """A process that was started, when it was ready, and the CPU time that this took it."""

    room: str
    began: float
    ready: float
    cpu: float


@dataclass
class Log:
    """What was done, and how busy the machine was meanwhile."""

    stops: list[Stop] = field(default_factory=list)
    starts: list[Start] = field(default_factory=list)
    machine: Machine = field(default_factory=Machine.now)

    async def stop(self, mesh: Mesh, served: Served) -> None:
        """As a pod is stopped, with a batch in hand: fails if it does not end by itself within its grace, or cuts it."""
        async with _batch_in_hand(mesh, served):
            told = time.monotonic()
            served.terminate()
            # Once it answers, its loop has turned, and the signal has been taken. What hangs up has not waited.
            with contextlib.suppress(OSError, TimeoutError):
                await get(served.port, "/livez")
            assert served.running or served.name not in BUSY, f"{served.name} did not wait for the batch in hand"
        try:
            code = await served.ended(within=GRACE_SECONDS)
        except TimeoutError:
            pytest.fail(f"{served.name} did not end within its grace of {GRACE_SECONDS} s")
        self.stops.append(Stop(served.name, told, time.monotonic()))
        said = served.process.tail(500)
        assert code == 0, f"{served.name} ended with {code}: {said}"
        loud = [line for line in said.splitlines() if " is cut" in line or " ERROR " in line or " CRITICAL " in line]
        assert loud == [], f"{served.name}: {loud}"

    async def start(self, served: Served) -> None:
        """As a pod is started: it is ready when it has claimed its partitions."""
        began = time.monotonic()
        await served.start()
        self.starts.append(Start(served.name, began, time.monotonic(), cpu_seconds(served.pid)))


async def _replicas(run: Processes, rooms: Iterable[str]) -> list[Served]:
    """Every service's processes, as many as it declares; of metering one, which comes first."""
    names = [room for room in rooms for _ in range(1 if room == "metering" else footprint(load(room)).replicas)]
    return list(await asyncio.gather(*(run.start(name, POD) for name in names)))


@contextlib.asynccontextmanager
async def _batch_in_hand(mesh: Mesh, served: Served) -> AsyncIterator[None]:
    """A batch of the process waits at its fence for as long as the block runs: somebody else has locked its cursors."""
    if served.name not in BUSY:
        yield
        return
    db = await asyncpg.connect(mesh.env[f"STEWARD_{served.name.upper()}_OWNER_DATABASE_URL"])
    try:
        async with db.transaction():
            # Those that a batch is moving right now are left out: nobody waits for anybody in a circle.
            theirs = "SELECT FROM mesh_cursor WHERE topic = $1 AND owner LIKE $2 FOR UPDATE SKIP LOCKED"

            async def locked() -> bool:
                return bool(await db.fetch(theirs, BUSY[served.name].name, f"%:{served.pid}:%"))

            # The one that was started before it may be taking its share of the partitions just now.
            await mesh.until(locked, 30, f"{served.name} has a partition that can be locked")

            async def waits() -> bool:
                sql = "SELECT EXISTS (SELECT FROM pg_stat_activity WHERE pg_backend_pid() = ANY(pg_blocking_pids(pid)))"
                return bool(await db.fetchval(sql))

            await mesh.until(waits, 30, f"{served.name} has a batch in hand")
            yield
    finally:
        await db.close()


def _report(title: str, flowing: Traffic, stands: Sequence[Stand], log: Log) -> None:
    """Prints what was measured."""

    def say(text: str) -> None:
        print(text, file=sys.stderr)

    busy = Machine.now().busy_since(log.machine)
    say(f"--- {title}: {flowing.pace:.0f} generations/s, machine {busy:.0%} busy, load {os.getloadavg()[0]:.0f}")
    say(f"event age over all: {_ages(flowing.ages)}")
    for room in dict.fromkeys(stop.room for stop in log.stops):
        stops, starts = [s for s in log.stops if s.room == room], [s for s in log.starts if s.room == room]
        times = [(s.told, s.ended + 1) for s in stops] + [(s.began, s.ready + 1) for s in starts]
        ages = [age for age in flowing.ages if any(begin - 1 <= age.sent_at <= end for begin, end in times)]
        say(
            f"{room}: drain {_spread([s.ended - s.told for s in stops])}, "
            f"start to ready {_spread([s.ready - s.began for s in starts])}, of it CPU {_spread([s.cpu for s in starts])}; "
            f"event age {_ages(ages)}"
        )
    for topic in dict.fromkeys(stand.topic for stand in stands):
        here = [stand for stand in stands if stand.topic == topic]
        quiet = sorted(stand.seconds for stand in here if not stand.handed_over)
        handed = [stand for stand in here if stand.handed_over]
        leaving = [s for s in handed if any(r.told <= s.ended and s.began <= r.ended for r in log.stops)]
        joining = [s for s in handed if s not in leaving]
        say(
            f"{topic} stands still: at work p99 {percentile(quiet, 0.99) if quiet else 0:.2f} s, leave {_stands(leaving)}, "
            f"join {_stands(joining)}; of it claim to first commit {_spread([s.claimed for s in handed])}"
        )


def _spread(seconds: Sequence[float]) -> str:
    return f"{min(seconds):.1f}-{max(seconds):.1f} s" if seconds else "none"


def _ages(ages: Sequence[Age]) -> str:
    if not ages:
        return "none"
    ordered = sorted(age.took for age in ages)
    return (
        f"p50 {percentile(ordered, 0.5):.2f} s, p99 {percentile(ordered, 0.99):.2f} s, most {ordered[-1]:.2f} s "
        f"({len(ordered)} probes)"
    )


def _stands(stands: Sequence[Stand]) -> str:
    ordered = sorted(stand.seconds for stand in stands)
    return f"p50 {percentile(ordered, 0.5):.2f} s, most {ordered[-1]:.2f} s ({len(ordered)})" if ordered else "none"


def _assert_fresh(flowing: Traffic, stands: Sequence[Stand]) -> None:
    p99 = percentile(sorted(age.took for age in flowing.ages), 0.99)
    assert p99 <= AGE_SECONDS, f"event age p99 {p99:.1f} s"
    longest = max(stands, key=lambda stand: stand.seconds)
    assert longest.seconds < SESSION_SECONDS, f"somebody left without a word: {longest}"


@pytest.mark.timeout(2_400)
async def test_roll_outs_and_scaling_lose_nothing(mesh: Mesh, form: Form) -> None:
    """Metering 1 -> 3 -> 1 processes, one at a time: each newcomer gets its share, and who goes hands its own over. While there
    are three, processes of every service are exchanged one after the other. Events come all the time: nothing is lost or
    doubled, and they stay fresh."""
    async with processes(mesh) as run:
        first, *others = await _replicas(run, form.rooms)
        more = [run.make("metering", POD) for _ in range(2)]
        async with traffic(mesh, 1, rate=form.rate) as flowing:
            log = Log()
            async with Watch(mesh, WATCHED) as watch:
                for count, one in enumerate(more, start=2):
                    await log.start(one)
                    await _shared(mesh, count)
                for one in form.exchanged([first, *more, *others]):
                    await log.stop(mesh, one)
                    await log.start(one)
                for one in more:
                    await log.stop(mesh, one)
                await run.owns_all(first, topics.GENERATIONS.name, within=SESSION_SECONDS - 1)
        await run.idle(first, *others, within=120)
        _report("roll-outs and scaling", flowing, watch.stands, log)
        await flowing.assert_all_there(*form.rooms)
        _assert_fresh(flowing, watch.stands)


async def test_metering_has_its_catalogue_before_it_is_ready(mesh: Mesh, monkeypatch: pytest.MonkeyPatch) -> None:
    """What the first batch would wait for is there when partitions are claimed: until then others read them."""
    read: list[GenaiPrices] = []
    load = GenaiPrices.load

    def noted(self: GenaiPrices) -> None:
        load(self)
        read.append(self)

    monkeypatch.setattr(GenaiPrices, "load", noted)
    await mesh.start("metering")
    assert [vars(catalogue).keys() for catalogue in read] == [{"_all"}]


async def _shared(mesh: Mesh, count: int) -> None:
    """Waits until so many processes have the same number of partitions each."""
    sql = "SELECT count(*)::int AS n FROM mesh_cursor WHERE topic = $1 GROUP BY owner"

    async def even() -> bool:
        rows = await mesh.fetch("metering", sql, topics.GENERATIONS.name)
        return [row["n"] for row in rows] == [topics.GENERATIONS.partitions // count] * count

    await mesh.until(even, 30, f"{count} processes share the partitions")
