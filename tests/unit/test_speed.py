"""What the rest of a case is expected to take, by what the last ones took."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta

from hypothesis import assume, given
from hypothesis import strategies as st

from services.retention.speed import LAST, Speeds
from shared.policy import forecast, policy

START = datetime(2026, 3, 2, 9, tzinfo=UTC)
SECOND, HOUR, DAY = timedelta(seconds=1), timedelta(hours=1), timedelta(days=1)
NONE, MOMENT = timedelta(0), timedelta(microseconds=1)

durations = st.timedeltas(NONE, 60 * DAY)
histories = st.lists(durations, max_size=2 * LAST)
# The step that a case is in, and those after it; each is measured or not.
steps = st.lists(st.tuples(st.sampled_from(["verify", "gather", "answer", "new"]), durations), min_size=1, max_size=4)


def measured(**taken: list[timedelta]) -> Speeds:
    """The speeds of kind `access` after these durations, in this order."""
    speeds = Speeds()
    for step, durations in taken.items():
        for one in durations:
            speeds = speeds.observe("access", step, one)
    return speeds


speeds = st.builds(measured, verify=histories, gather=histories, answer=histories)


def finish(speeds: Speeds, left: list[tuple[str, timedelta]], elapsed: timedelta) -> timedelta:
    """When, after the step's start, the case is expected to be done."""
    return elapsed + speeds.remaining("access", left, START, START + elapsed)


# --- what a step takes -------------------------------------------------------------------------------------------


def test_few_measurements_make_a_guess_worse_never_better() -> None:
    assert Speeds().expected("access", "gather", HOUR) == HOUR
    assert measured(gather=[SECOND] * 4).expected("access", "gather", HOUR) == HOUR
    assert measured(gather=[SECOND, DAY]).expected("access", "gather", HOUR) == DAY
    assert measured(gather=[SECOND] * 5).expected("access", "gather", HOUR) == SECOND


def test_nine_of_ten_were_not_slower() -> None:
    hours = [n * HOUR for n in range(1, 33)]
    assert measured(gather=hours[:10]).expected("access", "gather", NONE) == 9 * HOUR
    assert measured(gather=hours[:19]).expected("access", "gather", NONE) == 18 * HOUR
    assert measured(gather=hours[::-1]).expected("access", "gather", NONE) == 29 * HOUR
    # One that was stuck for a month is no reason to expect that of all.
    assert measured(gather=[*[HOUR] * 9, 30 * DAY]).expected("access", "gather", NONE) == HOUR


def test_old_measurements_are_forgotten_and_others_do_not_count() -> None:
    slow = measured(gather=[DAY] * LAST)
    for _ in range(LAST):
        slow = slow.observe("access", "gather", HOUR).observe("access", "verify", DAY).observe("know", "gather", DAY)
    assert slow.expected("access", "gather", NONE) == HOUR
    assert {len(taken) for taken in slow.taken.values()} == {LAST}


@given(histories.filter(lambda it: len(it) >= 5), durations)
def test_the_percentile_by_counting(taken: list[timedelta], start_value: timedelta) -> None:
    found, last = measured(gather=taken).expected("access", "gather", start_value), taken[-LAST:]
    assert found in last
    assert 10 * sum(one <= found for one in last) >= 9 * len(last)
    assert 10 * sum(one < found for one in last) < 9 * len(last)


@given(histories, durations)
def test_observing_changes_nothing_that_was(taken: list[timedelta], one: timedelta) -> None:
    before = measured(gather=taken)
    then = dict(before.taken)
    before.observe("access", "gather", one)
    assert before.taken == then


# --- what is left ------------------------------------------------------------------------------------------------


def test_by_hand() -> None:
    known = measured(verify=[2 * DAY] * 5, gather=[HOUR] * 5)
    left = [("verify", DAY), ("gather", DAY), ("answer", 3 * HOUR)]
    assert known.remaining("access", left, START, START) == 2 * DAY + 4 * HOUR
    assert known.remaining("access", left, START, START + DAY) == DAY + 4 * HOUR
    assert known.remaining("access", left, START, START + 2 * DAY - SECOND) == SECOND + 4 * HOUR
    assert known.remaining("access", left, START, START + 2 * DAY) == 2 * DAY + 4 * HOUR
    assert known.remaining("access", left, START, START + 5 * DAY) == 5 * DAY + 4 * HOUR
    assert known.remaining("access", [], START, START + DAY) == NONE


@given(speeds, steps, st.timedeltas(-5 * DAY, 200 * DAY))
def test_nothing_is_ever_left_negative(known: Speeds, left: list[tuple[str, timedelta]], passed: timedelta) -> None:
    known = known.observe("access", "gather", min(passed, NONE))
    assert known.expected("access", "gather", NONE) >= NONE
    assert known.remaining("access", left, START, START + passed) >= NONE


@given(speeds, steps, durations, durations)
def test_waiting_never_brings_the_end_nearer(
    known: Speeds, left: list[tuple[str, timedelta]], elapsed: timedelta, more: timedelta
) -> None:
    assert finish(known, left, elapsed + more) >= finish(known, left, elapsed)


@given(speeds, steps, st.timedeltas(SECOND, 60 * DAY))
def test_a_step_that_takes_longer_than_ever_moves_the_forecast(
    known: Speeds, left: list[tuple[str, timedelta]], over: timedelta
) -> None:
    step, start_value = left[0]
    slowest = max((start_value, *known.taken.get(("access", step), ())))
    assert finish(known, left, slowest + over) >= finish(known, left, NONE) + over
    assert finish(known, left, slowest + over + SECOND) == finish(known, left, slowest + over) + 2 * SECOND


@given(speeds, steps, st.sampled_from(["answer", "copy", "ccpa"]), st.timedeltas(NONE, 20 * DAY))
def test_the_forecast_comes_before_the_breach(
    known: Speeds, left: list[tuple[str, timedelta]], name: str, entered: timedelta
) -> None:
    """A case enters a step some time after its receipt and never leaves it. That is told when half of the time left is
    gone, or, where the step was expected to take longer than that, as soon as it takes longer than expected."""
    clock = policy().clock(name, START - entered)
    until = clock.ends_at - START
    assume(until > HOUR)
    expected = known.expected("access", left[0][0], left[0][1])
    told = max(until / 2 + MOMENT, min(expected, until - MOMENT))

    def news(passed: timedelta) -> tuple[str, ...]:
        needs = {name: known.remaining("access", left, START, START + passed)}
        return tuple(one.state for one in forecast([clock], START + passed, {}, needs))

    assert news(told) == ("endangered",)
    # From then on it stays told, until it is missed.
    for part in range(1, 5):
        assert news(told + (until - told) * part // 5) == ("endangered",)
    assert news(until) == ("missed",)
