"""The scale decision, played: against bursts made from a seed, and against an hour of a real service's requests."""

from __future__ import annotations

import csv
import math
from collections import Counter
from dataclasses import replace
from datetime import datetime
from pathlib import Path
from random import Random

import pytest

from deploy.k8s import rights, scaling
from deploy.k8s.lag import Group, Scaler, play
from shared.mesh import runtime

TRACE = Path(__file__).parents[3] / "shared" / "data" / "azure-llm-2023" / "conversation.csv"
GROUP = Group(speed=lambda pods: 20_000.0 * min(pods, 4), standstill=3.0, startup=20.0)


def metering() -> Scaler:
    (scaled,) = (doc for doc in scaling.scaled(rights.services().values()) if doc["metadata"]["name"] == "metering")
    return Scaler.of(scaled, 20_000)


def nervous() -> Scaler:
    """As a first guess would have it: by a small backlog, at once, up and down."""
    ours = metering()
    return replace(ours, threshold=1_000, load=math.inf, up_window=0, up_period=15, down_window=0, down_period=15)


def test_what_two_pods_manage_is_left_alone() -> None:
    course = play([30_000.0] * 1800, metering(), GROUP)
    assert course.steps == 0 and course.stood_still == 0 and max(course.age) <= 1
    assert set(course.pods) == {2}


def test_a_lasting_load_gets_pods_and_gives_them_back_one_by_one() -> None:
    course = play([10_000.0] * 600 + [62_000.0] * 1800 + [5_000.0] * 5400, metering(), GROUP)
    assert max(course.pods) == 4 and course.pods[-1] == 2
    steps = [at for at, (one, other) in enumerate(zip(course.pods, course.pods[1:], strict=False)) if one != other]
    down = [at for at in steps if course.pods[at + 1] < course.pods[at]]
    assert len(down) == 2 and down[1] - down[0] >= 300, "one pod at a time, minutes apart"
    assert course.steps == 4 and course.stood_still == 4 * GROUP.standstill


def test_a_scaler_that_answers_at_once_stands_still_more_than_it_helps() -> None:
    random = Random(11)
    bursts = [55_000.0 if random.random() < 0.3 else 8_000.0 for _ in range(120)]
    arrivals = [rate for rate in bursts for _ in range(30)]
    ours, theirs = play(arrivals, metering(), GROUP), play(arrivals, nervous(), GROUP)
    assert theirs.stood_still > 5 * ours.stood_still
    assert ours.age_at(0.99) <= theirs.age_at(0.99) + scaling.TARGET_SECONDS


def test_without_the_load_pods_would_come_and_go() -> None:
    """Why there are two triggers: a backlog that is worked off says nothing of the load that made it."""
    arrivals = [62_000.0] * 7200
    both, backlog_alone = play(arrivals, metering(), GROUP), play(arrivals, replace(metering(), load=math.inf), GROUP)
    assert both.steps == 2 and both.pods[-1] == 4
    assert backlog_alone.steps >= 6 and max(backlog_alone.age[1800:]) > 2 * max(both.age[1800:])


def test_a_backlog_within_the_tolerance_moves_nothing() -> None:
    scaler = Scaler(100, math.inf, 60, 1, 4, up_window=0, up_period=1, down_window=0, down_period=1)
    # One pod, a steady backlog of 1.05 thresholds.
    course = play([105.0] + [10.0] * 200, scaler, Group(speed=lambda pods: 10.0, standstill=0, startup=0))
    assert course.steps == 0


def test_an_outage_asks_for_pods_when_they_can_work_and_not_before() -> None:
    course = play([20_000.0] * 3600, metering(), GROUP, out=range(600, 900))
    assert set(course.pods[:900]) == {2}, "what stands still is no reason for pods: more would stand still, too"
    assert course.age[900] == 300, "what waits is as old as the outage"
    assert max(course.pods[900:1800]) == 4 and course.age[-1] <= 1 and course.pods[-1] == 2


def test_an_offset_can_move_between_two_looks_of_the_scaler() -> None:
    """`excludePersistentLag` takes for stuck what has not moved since KEDA's last look. Looks that are neither cached nor
    slower than the offsets are told see nothing that waits."""
    for doc in scaling.scaled(rights.services().values()):
        (backlog,) = (trigger for trigger in doc["spec"]["triggers"] if trigger["type"] == "kafka")
        assert backlog["metadata"]["excludePersistentLag"] == "true" and backlog["useCachedMetrics"] is True
        assert doc["spec"]["pollingInterval"] >= 2 * runtime._HINT_SECONDS


@pytest.mark.skipif(not TRACE.exists(), reason="the reference trace is not beside the checkout")
@pytest.mark.parametrize("peak", [15_000, 60_000])
def test_an_hour_of_a_real_service_is_fresh(peak: int) -> None:
    """The shape of the traffic is real, its height is ours: the busiest second gets `peak` events."""
    with TRACE.open(newline="") as file:
        seconds = [datetime.fromisoformat(row["TIMESTAMP"][:19]) for row in csv.DictReader(file)]
    counts = Counter(int((at - seconds[0]).total_seconds()) for at in seconds)
    highest = max(counts.values())
    arrivals = [counts[second] * peak / highest for second in range(max(counts) + 1)]
    course, theirs = play(arrivals, metering(), GROUP), play(arrivals, nervous(), GROUP)
    print(peak, course.steps, course.stood_still, course.age_at(0.99), theirs.steps, theirs.stood_still, theirs.age_at(.99))
    assert course.age_at(0.99) <= scaling.TARGET_SECONDS
    assert course.steps <= 4, "few steps in an hour"
    assert course.stood_still <= course.steps * GROUP.standstill
