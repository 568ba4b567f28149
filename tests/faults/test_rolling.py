"""Roll-outs and scaling under load, as Kubernetes does them: SIGTERM, the end within the grace, a new process, the next.

What the sizing page says of the seconds that a rebalance stands still is printed here.
"""

from __future__ import annotations

import asyncio
import os
import sys
import time
from collections.abc import Iterable, Sequence
from typing import Any, NamedTuple

import pytest

from deploy.k8s.workload import DRAIN_SECONDS, GRACE_SECONDS, footprint
from deploy.rooms import ROOMS, load
from shared.contract import topics
from tests.bench.processes import Machine, cpu_seconds
from tests.bench.report import percentile
from tests.support.processes import Processes, Served, processes
from tests.support.traffic import Age, Traffic, traffic
from tests.support.watch import Stand, Watch
from tests.support.world import Mesh, make

# As in a pod, and as in a pod the usual session: who does not leave its group is missed for this long.
POD = {"STEWARD_DRAIN_SECONDS": str(DRAIN_SECONDS), "STEWARD_SESSION_TIMEOUT_MS": "15000"}
SESSION_SECONDS = 15
# The rule: how old an event may be when its effect is there.
AGE_SECONDS = 10.0
WATCHED = {"metering": topics.GENERATIONS, "billing": topics.USAGE_RATED}


class Form(NamedTuple):
    """How much of it: generations a second, rounds, and which services are there and restarted."""

    rate: int
    rounds: int
    rooms: tuple[str, ...]


SHORT = Form(rate=200, rounds=1, rooms=("metering", "billing", "security"))
FULL = Form(rate=1_000, rounds=3, rooms=ROOMS)


@pytest.fixture
def form(request: pytest.FixtureRequest) -> Form:
    return FULL if request.config.getoption("--all-seeds") else SHORT


class Restart(NamedTuple):
    """One process exchanged: when it was told to stop, when it had ended, when its successor was ready; and the CPU time
    that this took the successor."""

    room: str
    told: float
    ended: float
    ready: float
    cpu: float = 0.0


async def _replicas(run: Processes, rooms: Iterable[str]) -> list[Served]:
    """Every service's processes, as many as it declares."""
    names = [room for room in rooms for _ in range(footprint(load(room)).replicas)]
    return list(await asyncio.gather(*(run.start(name, POD) for name in names)))


async def _stop(served: Served) -> float:
    """As a pod is stopped: fails if it does not end by itself within its grace, or cuts its work; returns when it was told."""
    told = time.monotonic()
    served.terminate()
    try:
        code = await served.ended(within=GRACE_SECONDS)
    except TimeoutError:
        pytest.fail(f"{served.name} did not end within its grace of {GRACE_SECONDS} s")
    said = served.process.tail(500)
    assert code == 0, f"{served.name} ended with {code}: {said}"
    loud = [line for line in said.splitlines() if " is cut" in line or " ERROR " in line or " CRITICAL " in line]
    assert loud == [], f"{served.name}: {loud}"
    return told


async def _restart(served: Served) -> Restart:
    told = await _stop(served)
    ended = time.monotonic()
    await served.start()
    return Restart(served.name, told, ended, time.monotonic(), cpu_seconds(served.pid))


def _report(title: str, flowing: Traffic, stands: Sequence[Stand], restarts: Sequence[Restart], busy: float) -> None:
    """Prints what was measured."""

    def say(text: str) -> None:
        print(text, file=sys.stderr)

    say(f"--- {title}: {flowing.pace:.0f} generations/s, machine {busy:.0%} busy, load {os.getloadavg()[0]:.0f}")
    say(f"event age over all: {_ages(flowing.ages)}")
    for room in dict.fromkeys(restart.room for restart in restarts):
        theirs = [restart for restart in restarts if restart.room == room]
        ages = [age for r in theirs for age in _within(flowing.ages, r.told, r.ready)]
        drain = _spread([r.ended - r.told for r in theirs])
        start, cpu = _spread([r.ready - r.ended for r in theirs]), _spread([r.cpu for r in theirs])
        say(f"{room}: drain {drain}, start to ready {start}, of it CPU {cpu}; event age {_ages(ages)}")
    for topic in {stand.topic for stand in stands}:
        here = [stand for stand in stands if stand.topic == topic]
        quiet = sorted(stand.seconds for stand in here if not stand.handed_over)
        handed = [stand for stand in here if stand.handed_over]
        leaving = [s for s in handed if any(r.told <= s.ended <= r.ended + 1 for r in restarts)]
        joining = [s for s in handed if s not in leaving]
        say(
            f"{topic} stands still: at work p99 {percentile(quiet, 0.99) if quiet else 0:.2f} s, leave {_stands(leaving)}, "
            f"join {_stands(joining)}; of it claim to first commit {_spread([s.claimed for s in handed] or [0.0])}"
        )


def _spread(seconds: Sequence[float]) -> str:
    return f"{min(seconds):.1f}-{max(seconds):.1f} s"


def _within(ages: Iterable[Age], begin: float, end: float) -> list[Age]:
    return [age for age in ages if begin - 1 <= age.sent_at <= end]


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
async def test_rolling_restart_of_every_service(mesh: Mesh, form: Form) -> None:
    """One process after the other is exchanged while events come: nothing is lost or doubled, and events stay fresh."""
    restarts: list[Restart] = []
    async with processes(mesh) as run:
        served = await _replicas(run, form.rooms)
        async with traffic(mesh, 1, rate=form.rate) as flowing:
            before = Machine.now()
            async with Watch(mesh, WATCHED) as watch:
                for _ in range(form.rounds):
                    for one in served:
                        restarts.append(await _restart(one))
                busy = Machine.now().busy_since(before)
        await run.idle(*served, within=120)
        _report("rolling restart", flowing, watch.stands, restarts, busy)
        await flowing.assert_all_there(*form.rooms)
        _assert_fresh(flowing, watch.stands)


@pytest.mark.timeout(600)
async def test_metering_scaled_up_and_down_again(mesh: Mesh, form: Form) -> None:
    """1 -> 3 -> 1 processes, one at a time: each newcomer gets its share, and who goes hands its own over."""
    restarts: list[Restart] = []
    async with processes(mesh) as run:
        billing, first = await asyncio.gather(run.start("billing", POD), run.start("metering", POD))
        async with traffic(mesh, 1, rate=form.rate) as flowing:
            before = Machine.now()
            async with Watch(mesh, WATCHED) as watch:
                more: list[Served] = []
                for count in (2, 3):
                    more.append(await run.start("metering", POD))
                    await _shared(mesh, count)
                for one in more:
                    told = await _stop(one)
                    restarts.append(Restart("metering", told, time.monotonic(), time.monotonic()))
                await run.owns_all(first, topics.GENERATIONS.name, within=SESSION_SECONDS - 1)
                busy = Machine.now().busy_since(before)
        await run.idle(billing, first, within=120)
        _report("metering 1 -> 3 -> 1", flowing, watch.stands, restarts, busy)
        await flowing.assert_all_there("metering", "billing")
        _assert_fresh(flowing, watch.stands)


async def test_metering_has_its_catalogue_before_it_is_ready(mesh: Mesh) -> None:
    """What the first batch would wait for is there when partitions are claimed: until then others read them."""
    service = make("metering")
    room: Any = service.on_start
    await mesh.start("metering", service=service)
    assert "_all" in vars(room.__self__.catalogue)


async def _shared(mesh: Mesh, count: int) -> None:
    """Waits until so many processes have the same number of partitions each."""
    sql = "SELECT count(*)::int AS n FROM mesh_cursor WHERE topic = $1 GROUP BY owner"

    async def even() -> bool:
        rows = await mesh.fetch("metering", sql, topics.GENERATIONS.name)
        return [row["n"] for row in rows] == [topics.GENERATIONS.partitions // count] * count

    await mesh.until(even, 30, f"{count} processes share the partitions")
