"""Business days and the clocks of a case. The oracle walks through time and counts days as a clock on the wall shows."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from datetime import UTC, date, datetime, timedelta
from zoneinfo import ZoneInfo

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from shared.policy import Clock, due, forecast, policy
from shared.policy.calendar import BusinessCalendar, start_of_day

DAY = timedelta(days=1)
SECOND = timedelta(seconds=1)
# Clocks that change at midnight, by half an hour, across a date, or never; far east and far west.
ZONES = (
    "America/Los_Angeles", "UTC", "Europe/Berlin", "Asia/Kathmandu", "Africa/Cairo", "Asia/Beirut", "America/Havana",
    "America/Nuuk", "America/Sao_Paulo", "Atlantic/Azores", "Australia/Lord_Howe", "Pacific/Apia", "Pacific/Kiritimati",
    "Pacific/Pago_Pago",
)  # fmt: skip


def at(text: str) -> datetime:
    return datetime.fromisoformat(text)


instants = st.integers(1_262_304_000, 2_082_758_400).map(lambda seconds: datetime.fromtimestamp(seconds, UTC))
calendars = st.builds(
    BusinessCalendar,
    zone=st.sampled_from(ZONES),
    weekend=st.sampled_from([frozenset({5, 6}), frozenset({4, 5}), frozenset({6}), frozenset[int]()]),
    holidays=st.just(frozenset[date]()),
)


@st.composite
def cases(draw: st.DrawFn) -> tuple[BusinessCalendar, datetime, int]:
    """A calendar with holidays near the start, a start, and a number of days."""
    start = draw(instants)
    near = st.integers(-2, 25).map(lambda days: start.date() + days * DAY)
    calendar = replace(draw(calendars), holidays=draw(st.frozensets(near, max_size=8)))
    return calendar, start, draw(st.integers(1, 10))


def wall_days(start: datetime, end: datetime, zone: str) -> list[date]:
    """The dates that a clock on the wall shows from `start` up to, not at, `end`: found by looking at it."""
    shown: dict[date, None] = {}
    look = start
    while look < end:
        shown[look.astimezone(ZoneInfo(zone)).date()] = None
        look += timedelta(minutes=15)
    return list(shown)


@given(cases())
@example((BusinessCalendar("Pacific/Apia", frozenset({5, 6}), frozenset()), at("2011-12-28T20:00+00:00"), 3))
@example((BusinessCalendar("America/Havana", frozenset({5}), frozenset()), at("2026-03-06T12:00+00:00"), 1))
@example((BusinessCalendar("Asia/Beirut", frozenset(), frozenset()), at("2026-03-28T12:00+00:00"), 1))
@example((BusinessCalendar("America/Nuuk", frozenset(), frozenset()), at("2026-10-23T12:00+00:00"), 1))
def test_the_days_between_are_counted_as_the_wall_shows_them(case: tuple[BusinessCalendar, datetime, int]) -> None:
    calendar, start, days = case
    end = calendar.after(start, days)
    first, *later = wall_days(start, end, calendar.zone)
    counted = [day for day in later if day.weekday() not in calendar.weekend and day not in calendar.holidays]
    assert len(counted) == days
    # It ends with the last of them, at the instant at which the wall shows the next day.
    assert counted[-1] == calendar.local_date(end - SECOND)
    assert calendar.local_date(end) > counted[-1]
    assert first == calendar.local_date(start)


@given(cases(), st.integers(0, 86_400))
def test_only_the_day_of_receipt_matters(case: tuple[BusinessCalendar, datetime, int], later: int) -> None:
    calendar, start, days = case
    moved = start + later * SECOND
    if calendar.local_date(moved) == calendar.local_date(start):
        assert calendar.after(moved, days) == calendar.after(start, days)
    else:
        assert calendar.after(moved, days) >= calendar.after(start, days)


@given(cases(), st.integers(0, 20))
def test_a_holiday_more_never_shortens_and_a_day_more_always_lengthens(
    case: tuple[BusinessCalendar, datetime, int], offset: int
) -> None:
    calendar, start, days = case
    more = replace(calendar, holidays=calendar.holidays | {start.date() + offset * DAY})
    assert more.after(start, days) >= calendar.after(start, days)
    assert calendar.after(start, days + 1) > calendar.after(start, days)


@given(st.sampled_from(ZONES), st.dates(date(2005, 1, 1), date(2036, 1, 1)))
@example("Pacific/Apia", date(2011, 12, 30))
@example("America/Sao_Paulo", date(2018, 11, 4))
def test_a_day_starts_where_the_date_changes(zone: str, day: date) -> None:
    start = start_of_day(day, ZoneInfo(zone))
    assert start.astimezone(ZoneInfo(zone)).date() >= day
    assert (start - SECOND).astimezone(ZoneInfo(zone)).date() < day


def test_a_jump_across_midnight_is_found_to_the_second() -> None:
    # Toronto's clocks jumped from 23:30 to 0:30 on the night to 1919-03-31: the day has no midnight.
    zone = ZoneInfo("America/Toronto")
    start = start_of_day(date(1919, 3, 31), zone)
    assert start == at("1919-03-31T04:30+00:00")
    assert start.astimezone(zone).isoformat() == "1919-03-31T00:30:00-04:00"


@pytest.mark.parametrize(
    ("received", "days", "ends"),
    [
        ("2026-11-23T09:00-08:00", 2, "2026-11-26T00:00-08:00"),  # Monday: Tuesday, Wednesday
        ("2026-11-24T02:00+00:00", 2, "2026-11-26T00:00-08:00"),  # the same Monday, in the operator's zone
        ("2026-11-25T23:59-08:00", 2, "2026-12-01T00:00-08:00"),  # Thanksgiving, a weekend
        ("2026-11-28T12:00-08:00", 2, "2026-12-02T00:00-08:00"),  # received on a Saturday
        ("2026-03-05T12:00-08:00", 2, "2026-03-10T00:00-07:00"),  # the clocks go forward meanwhile
        ("2026-10-29T12:00-07:00", 2, "2026-11-03T00:00-08:00"),  # and back
        ("2027-12-22T12:00-08:00", 10, "2028-01-08T00:00-08:00"),  # two observed holidays; New Year's Day is a Saturday
    ],
)
def test_by_hand(received: str, days: int, ends: str) -> None:
    assert policy().calendar.after(at(received), days) == at(ends)


def test_holidays_are_those_of_the_federal_offices() -> None:
    observed = {day for year in range(2025, 2030) for day in federal(year)}
    assert policy().calendar.holidays == {day for day in observed if 2025 <= day.year <= 2028}


def federal(year: int) -> Iterator[date]:
    """5 U.S.C. 6103: fixed days move off a weekend, the others are the nth weekday of a month."""
    for month, day in ((1, 1), (6, 19), (7, 4), (11, 11), (12, 25)):
        fixed = date(year, month, day)
        yield fixed + {5: -1, 6: 1}.get(fixed.weekday(), 0) * DAY
    for month, weekday, nth in ((1, 0, 3), (2, 0, 3), (9, 0, 1), (10, 0, 2), (11, 3, 4)):
        first = date(year, month, 1)
        yield first + ((weekday - first.weekday()) % 7 + 7 * (nth - 1)) * DAY
    memorial = date(year, 5, 31)
    yield memorial - memorial.weekday() * DAY


def test_an_instant_without_a_zone_is_refused() -> None:
    naive = at("2026-11-28T12:00")
    for deadline in policy().deadlines:
        with pytest.raises(ValueError, match="needs a zone"):
            policy().clock(deadline, naive)
    with pytest.raises(ValueError, match="at least one business day"):
        policy().calendar.after(at("2026-11-28T12:00+00:00"), 0)


# --- the clocks of a case ----------------------------------------------------------------------------------------

DAY_0 = at("2026-11-02T10:00+00:00")


def test_a_deletion_confirmed_late_is_due_by_the_earlier_clock() -> None:
    # Received on day 0, confirmed on day 21: erasure says day 51, the CCPA day 45.
    ccpa, erasure = policy().clock("ccpa", DAY_0), policy().clock("erasure", DAY_0 + 21 * DAY)
    assert (ccpa.ends_at, erasure.ends_at) == (DAY_0 + 45 * DAY, DAY_0 + 51 * DAY)
    assert due([erasure, ccpa]) == ccpa
    assert due([erasure, replace(ccpa, met_at=DAY_0 + 40 * DAY)]) == erasure
    assert due([]) is None


def test_an_acknowledgement_does_not_stop_the_answers_clock() -> None:
    acknowledgement, answer = (policy().clock(name, DAY_0) for name in ("acknowledgement", "answer"))
    assert due([answer, acknowledgement]) == acknowledgement
    assert due([answer, replace(acknowledgement, met_at=DAY_0 + DAY)]) == answer


def test_a_duplicate_adds_its_own_clocks() -> None:
    first, second = policy().clock("ccpa", DAY_0), policy().clock("ccpa", DAY_0 + 5 * DAY)
    assert due([second, first]) == first
    assert due([second, replace(first, met_at=DAY_0 + DAY)]) == second


@given(st.lists(st.tuples(st.sampled_from(sorted(policy().deadlines)), instants, st.booleans()), max_size=6))
def test_due_is_the_earliest_open_end(wanted: list[tuple[str, datetime, bool]]) -> None:
    clocks = [replace(policy().clock(name, start), met_at=start if met else None) for name, start, met in wanted]
    found = due(clocks)
    still_open = [one.ends_at for one in clocks if one.met_at is None]
    assert (found.ends_at if found else None) == min(still_open, default=None)


def test_the_end_is_outside() -> None:
    clock = policy().clock("ccpa", DAY_0)
    assert not clock.missed(clock.ends_at - SECOND)
    assert clock.missed(clock.ends_at)
    assert not replace(clock, met_at=clock.ends_at - SECOND).missed(clock.ends_at + 99 * DAY)
    assert replace(clock, met_at=clock.ends_at).missed(DAY_0)


def test_days_are_24_hours() -> None:
    # Across the change of clocks the wall shows another hour.
    start = at("2026-10-20T10:00-07:00")
    assert policy().clock("copy", start).ends_at == at("2026-11-19T09:00-08:00")


def test_a_policy_change_waits_from_the_last_notice() -> None:
    assert policy().clock("policy_change", DAY_0).ends_at == DAY_0 + 30 * DAY
    assert policy().deadlines["policy_change"].minimum


def test_a_clock_has_to_run_forward() -> None:
    with pytest.raises(ValueError, match="ends before it starts"):
        Clock("x", DAY_0, DAY_0, 1)


# --- forecast ----------------------------------------------------------------------------------------------------


@given(
    st.sampled_from(["acknowledgement", "answer", "copy", "ccpa", "erasure", "child_erasure"]),
    st.integers(-2_000_000, 6_000_000),
    st.timedeltas(timedelta(0), 40 * DAY),
)
def test_a_breach_is_never_the_first_news(name: str, seconds: int, needs: timedelta) -> None:
    clock, now = policy().clock(name, DAY_0), DAY_0 + seconds * SECOND
    found = forecast([clock], now, policy().deadlines, {name: needs})
    late = now + needs >= clock.ends_at
    warned = now >= clock.ends_at - policy().deadlines[name].warn
    assert bool(found) == (late or warned)
    if found:
        assert found[0].state == ("missed" if now >= clock.ends_at else "endangered")
        assert found[0].slack == clock.ends_at - now - needs
    assert forecast([replace(clock, met_at=now)], now, policy().deadlines) == ()
    # Whenever it is missed, it was told before.
    assert forecast([clock], clock.ends_at - SECOND, policy().deadlines)


def test_work_that_would_be_done_at_the_end_is_late() -> None:
    clock = policy().clock("ccpa", DAY_0)
    needs = {"ccpa": 20 * DAY}
    (found,) = forecast([clock], DAY_0 + 25 * DAY, policy().deadlines, needs)
    assert (found.state, found.slack) == ("endangered", timedelta(0))
    assert forecast([clock], DAY_0 + 25 * DAY - SECOND, policy().deadlines, needs) == ()


def test_the_most_urgent_comes_first() -> None:
    ccpa, erasure = policy().clock("ccpa", DAY_0), policy().clock("erasure", DAY_0 + 21 * DAY)
    now = DAY_0 + 40 * DAY
    names = [one.clock.name for one in forecast([erasure, ccpa], now, policy().deadlines, {"erasure": 12 * DAY})]
    assert names == ["erasure", "ccpa"]
    assert [one.clock.name for one in forecast([erasure, ccpa], now, policy().deadlines)] == ["ccpa"]
