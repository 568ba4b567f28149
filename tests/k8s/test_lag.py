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
from deploy.k8s.sizing import REAL_HOUR, metering_scaler, played
from shared.mesh import runtime

TRACE = Path(__file__).parents[3] / "shared" / "data" / "azure-llm-2023" / "conversation.csv"
GROUP = Group(speed=lambda pods: 20_000.0 * min(pods, 4), standstill=3.0, startup=20.0)


def nervous() -> Scaler:
    """As a first guess would have it: by a small backlog, at once, up and down."""
    ours = metering_scaler()
    return replace(ours, threshold=1_000, load=math.inf, up_window=0, up_period=15, down_window=0, down_period=15)


def test_what_two_pods_manage_is_left_alone() -> None:
    course = play([30_000.0] * 1800, metering_scaler(), GROUP)
    assert course.steps == 0 and course.stood_still == 0 and max(course.age) <= 1
    assert set(course.pods) == {2}


def test_a_lasting_load_gets_pods_and_gives_them_back_one_by_one() -> None:
    course = play([10_000.0] * 600 + [62_000.0] * 1800 + [5_000.0] * 5400, metering_scaler(), GROUP)
    assert max(course.pods) == 4 and course.pods[-1] == 2
    steps = [at + 1 for at, (one, other) in enumerate(zip(course.pods, course.pods[1:], strict=False)) if one != other]
    # Up: wanted at 615, for 30 s at 645, joined 20 s later; the next is asked for 60 s after the first. Down: three pods would
    # do from 2445 on, and that is so for 600 s at 3045; the next goes 300 s after the first.
    assert steps == [665, 725, 3046, 3346]
    assert course.steps == 4 and course.stood_still == 4 * GROUP.standstill


def test_a_scaler_that_answers_at_once_stands_still_more_than_it_helps() -> None:
    random = Random(11)
    bursts = [55_000.0 if random.random() < 0.3 else 8_000.0 for _ in range(120)]
    arrivals = [rate for rate in bursts for _ in range(30)]
    ours, theirs = play(arrivals, metering_scaler(), GROUP), play(arrivals, nervous(), GROUP)
    assert theirs.stood_still > 5 * ours.stood_still
    assert ours.age_at(0.99) <= theirs.age_at(0.99) + scaling.TARGET_SECONDS


def test_without_the_load_pods_would_come_and_go() -> None:
    """Why there are two triggers: a backlog that is worked off says nothing of the load that made it."""
    arrivals = [62_000.0] * 7200
    both, backlog_alone = (
        play(arrivals, metering_scaler(), GROUP),
        play(arrivals, replace(metering_scaler(), load=math.inf), GROUP),
    )
    assert both.steps == 2 and both.pods[-1] == 4
    assert backlog_alone.steps >= 6 and max(backlog_alone.age[1800:]) > 2 * max(both.age[1800:])


def test_a_backlog_within_the_tolerance_moves_nothing() -> None:
    scaler = Scaler(100, math.inf, 60, 1, 4, up_window=0, up_period=1, down_window=0, down_period=1)
    # One pod, a steady backlog of 1.05 thresholds.
    course = play([105.0] + [10.0] * 200, scaler, Group(speed=lambda pods: 10.0, standstill=0, startup=0))
    assert course.steps == 0


def test_an_outage_asks_for_pods_when_they_can_work_and_not_before() -> None:
    course = play([20_000.0] * 3600, metering_scaler(), GROUP, out=range(600, 900))
    assert set(course.pods[:900]) == {2}, "what stands still is no reason for pods: more would stand still, too"
    assert course.age[899] == 299, "what waits is as old as the outage"
    assert max(course.pods[900:1800]) == 4 and course.age[-1] <= 1 and course.pods[-1] == 2


def test_an_offset_can_move_between_two_looks_of_the_scaler() -> None:
    """`excludePersistentLag` takes for stuck what has not moved since KEDA's last look. Looks that are neither cached nor
    slower than the offsets are told see nothing that waits."""
    for doc in scaling.scaled(rights.services().values()):
        (backlog,) = (trigger for trigger in doc["spec"]["triggers"] if trigger["type"] == "kafka")
        assert backlog["metadata"]["excludePersistentLag"] == "true" and backlog["useCachedMetrics"] is True
        assert doc["spec"]["pollingInterval"] >= 2 * runtime._HINT_SECONDS


@pytest.fixture(scope="module")
def hour() -> list[float]:
    """An hour of a real service: of each second, the share of its busiest second. The height of the traffic is ours."""
    if not TRACE.exists():
        pytest.skip("the reference trace is not beside the checkout")
    with TRACE.open(newline="") as file:
        seconds = [datetime.fromisoformat(row["TIMESTAMP"][:19]) for row in csv.DictReader(file)]
    counts = Counter(int((at - seconds[0]).total_seconds()) for at in seconds)
    highest = max(counts.values())
    return [counts[second] / highest for second in range(max(counts) + 1)]


def test_an_hour_of_a_real_service_that_two_pods_manage_makes_no_step(hour: list[float]) -> None:
    course = play([60_000 * share for share in hour], metering_scaler(), GROUP)
    assert course.steps == 0 and course.age_at(0.99) <= 1


def test_an_hour_of_a_real_service_is_fresh_and_stands_still_for_seconds(hour: list[float]) -> None:
    """What two pods cannot do is done with a few steps; a scaler that answers at once stops the group for minutes, and so has
    the older events; one that looks at the backlog alone gives pods back that are missing then."""
    arrivals = [120_000 * share for share in hour]
    ours, theirs = play(arrivals, metering_scaler(), GROUP), play(arrivals, nervous(), GROUP)
    backlog_alone = play(arrivals, replace(metering_scaler(), load=math.inf), GROUP)
    assert max(ours.pods) == 4 and ours.steps <= 4 and ours.stood_still == ours.steps * GROUP.standstill
    assert max(ours.age) <= scaling.TARGET_SECONDS
    assert theirs.stood_still > 300 and theirs.age_at(0.99) > scaling.TARGET_SECONDS
    assert backlog_alone.steps > ours.steps and backlog_alone.age_at(0.99) > scaling.TARGET_SECONDS


def test_the_page_says_of_the_real_hour_what_it_comes_to(hour: list[float]) -> None:
    assert played([120_000 * share for share in hour]) == REAL_HOUR
