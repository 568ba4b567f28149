"""Business days and the clocks of a case. The oracle walks through time and counts days as a clock on the wall shows."""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Iterator
from dataclasses import dataclass, replace
from datetime import UTC, date, datetime, time, timedelta
from itertools import pairwise
from random import Random
from zoneinfo import ZoneInfo

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from shared.policy import Clock, due, forecast, load_policy, policy
from shared.policy.calendar import BusinessCalendar, start_of_day
from shared.policy.deadlines import clock
from tests.support.policies import changed, sealed

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


# --- ten years, day by day ---------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Wall:
    """Ten years of a zone, by looking at a clock on its wall every quarter of an hour: no code of the calendar's."""

    calendar: BusinessCalendar
    zone: ZoneInfo
    days: list[date]  # in the order in which the clock shows them
    starts: list[datetime]  # when it shows each of them first
    received: list[datetime]  # one second before, at and after each midnight and each change of the clock, in order

    def counts(self, place: int) -> bool:
        day = self.days[place]
        return day.isoweekday() < 6 and day not in self.calendar.holidays

    def on_the_way(self, start: datetime, number: int) -> list[int]:
        """The places of the next business days after the day of `start`, found by walking."""
        place, found = bisect_right(self.starts, start) - 1, list[int]()
        while len(found) < number:
            place += 1
            if self.counts(place):
                found.append(place)
        return found

    def end(self, start: datetime, number: int) -> datetime:
        return self.starts[self.on_the_way(start, number)[-1] + 1]


@pytest.fixture(
    scope="module",
    params=[
        ("America/Los_Angeles", 2024),
        ("Europe/Berlin", 2024),
        ("Pacific/Apia", 2007),
        ("Australia/Lord_Howe", 2024),
    ],
    ids=lambda param: str(param[0]),
)
def wall(request: pytest.FixtureRequest) -> Wall:
    """The operator's zone; one that changes its clocks on other days; one that left a day out; one that changes by half an
    hour. Each with the holidays of the federal offices in all of its ten years."""
    name, year = request.param
    zone, look, last = ZoneInfo(name), datetime(year - 1, 12, 20, tzinfo=UTC), datetime(year + 10, 1, 1, tzinfo=UTC)
    days, starts, changes, offset = list[date](), list[datetime](), set[datetime](), look.astimezone(zone).utcoffset()
    while look < last + 60 * DAY:
        shown = look.astimezone(zone)
        if not days or shown.date() > days[-1]:
            days.append(shown.date())
            starts.append(look)
        if shown.utcoffset() != offset:
            offset = shown.utcoffset()
            changes.add(look)
        look += timedelta(minutes=15)
    edges = {one for one in (*starts[8:], *changes) if one < last}
    holidays = frozenset(day for near in range(year - 1, year + 12) for day in federal(near))
    received = sorted({edge + seconds * SECOND for edge in edges for seconds in (-1, 0, 1)})
    assert len(changes) >= 11 and len(received) > 10_900
    return Wall(BusinessCalendar(name, frozenset({5, 6}), holidays), zone, days, starts, received)


@pytest.mark.parametrize(
    ("name", "number"),
    [
        pytest.param("acknowledgement", 2, marks=pytest.mark.promise(67)),
        pytest.param("answer", 10, marks=pytest.mark.promise(68)),
    ],
)
def test_business_days_end_where_walking_ends(wall: Wall, name: str, number: int) -> None:
    deadline, before = policy().deadlines[name], wall.received[0]
    for start in wall.received:
        end = clock(deadline, start.astimezone(wall.zone), wall.calendar).ends_at
        assert end == wall.end(start, number), start
        # A local midnight, and never earlier for what came later.
        assert end.astimezone(wall.zone).time() == time()
        assert end >= before
        before = end
        # So many whole business days lie between, the day of receipt not being one of them.
        first, last = bisect_right(wall.starts, start), bisect_right(wall.starts, end) - 1
        assert sum(map(wall.counts, range(first, last))) == number


@pytest.mark.parametrize(
    ("name", "number"),
    [
        pytest.param("acknowledgement", 2, marks=pytest.mark.promise(67)),
        pytest.param("answer", 10, marks=pytest.mark.promise(68)),
    ],
)
def test_a_holiday_on_the_way_moves_the_end_by_one_business_day(wall: Wall, name: str, number: int) -> None:
    deadline = policy().deadlines[name]
    for turn, start in enumerate(wall.received[::3]):
        on_the_way = wall.on_the_way(start, number + 1)
        holiday = wall.days[on_the_way[turn % number]]
        more = replace(wall.calendar, holidays=wall.calendar.holidays | {holiday})
        assert deadline.end(start, more) == wall.starts[on_the_way[-1] + 1], (start, holiday)


@pytest.mark.parametrize(
    ("name", "days"),
    [
        pytest.param("copy", 30, marks=pytest.mark.promise(40)),
        pytest.param("ccpa", 45, marks=pytest.mark.promise(55)),
        ("erasure", 30),
        ("child_erasure", 30),
    ],
)
def test_days_are_24_hours_whatever_the_clocks_do(wall: Wall, name: str, days: int) -> None:
    deadline = policy().deadlines[name]
    for start in wall.received:
        end = clock(deadline, start.astimezone(wall.zone), wall.calendar).ends_at
        assert end.timestamp() - start.timestamp() == days * 86_400


def test_ten_years_have_what_is_awkward(wall: Wall) -> None:
    """The walk met it: else the tests above would prove less than they say."""
    name = wall.zone.key
    half_hours = {(after - before) // timedelta(minutes=30) for before, after in pairwise(wall.starts[1:])}
    assert half_hours == ({47, 48, 49} if name == "Australia/Lord_Howe" else {46, 48, 50})
    left_out = {before + DAY for before, after in pairwise(wall.days) if after != before + DAY}
    assert left_out == ({date(2011, 12, 30)} if name == "Pacific/Apia" else set())
    assert sum((day.month, day.day) == (2, 29) for day in wall.days) >= 2


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


OF_A_REQUEST = ("acknowledgement", "answer", "ccpa")


@pytest.mark.promise(67, 68, 55, 40)
@given(st.lists(instants, min_size=1, max_size=4), st.timedeltas(timedelta(0), 60 * DAY), st.randoms())
def test_what_is_met_stops_its_own_clock_and_moves_none(
    receipts: list[datetime], verification: timedelta, random: Random
) -> None:
    """A wish that comes several times has several sets of clocks. As work is done, in any order, what is due is always the
    earliest of the others, where it was from the start; and only the copy waits for a slow verification."""
    ends = {}
    for at_receipt in receipts:
        for name in OF_A_REQUEST:
            ends[name, at_receipt] = policy().clock(name, at_receipt).ends_at
        ends["copy", at_receipt] = at_receipt + verification + 30 * DAY
    done: set[tuple[str, datetime]] = set()
    for one in random.sample(sorted(ends), len(ends)):
        running = [
            replace(
                policy().clock(name, begun + verification if name == "copy" else begun),
                met_at=begun if (name, begun) in done else None,
            )
            for name, begun in ends
        ]
        assert [clock.ends_at for clock in running] == list(ends.values())
        first = due(running)
        assert first is not None and first.ends_at == min(end for key, end in ends.items() if key not in done)
        done.add(one)


@pytest.mark.promise(55)
@given(st.sampled_from(sorted(policy().deadlines)), instants, st.timedeltas(-10 * DAY, 100 * DAY))
def test_no_deadline_grows_while_the_extension_is_off(name: str, start: datetime, told: timedelta) -> None:
    assert policy().clock(name, start, start + told) == policy().clock(name, start)
    assert "has no extension" in (policy().no_extension(name, start, start + told) or "")


def test_an_extension_is_for_whoever_is_told_in_time() -> None:
    longer = load_policy(sealed(changed(("deadlines.ccpa.extension", "45"))))
    last = DAY_0 + 45 * DAY - SECOND
    assert longer.no_extension("ccpa", DAY_0, last) is None
    assert longer.clock("ccpa", DAY_0, last).ends_at == DAY_0 + 90 * DAY
    assert longer.clock("ccpa", DAY_0).ends_at == DAY_0 + 45 * DAY
    # Too late: the breach stays one.
    assert "ended at 2026-12-17T10:00:00+00:00" in (longer.no_extension("ccpa", DAY_0, last + SECOND) or "")
    assert longer.clock("ccpa", DAY_0, last + SECOND).missed(last + SECOND)
    # It is the CCPA's: the house's own answer, and the copy, are due as before.
    for name in ("answer", "copy"):
        assert longer.clock(name, DAY_0, DAY_0 + DAY) == policy().clock(name, DAY_0)
    with pytest.raises(ValueError, match="needs a zone"):
        longer.clock("ccpa", DAY_0, at("2026-11-28T12:00"))


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
