"""Business days and local midnights of the operator's zone. Pure; every instant is aware and half-open."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from datetime import UTC, date, datetime, time, timedelta
from functools import lru_cache
from zoneinfo import ZoneInfo

_DAY = timedelta(days=1)
_SECOND = timedelta(seconds=1)


def start_of_day(day: date, zone: ZoneInfo) -> datetime:
    """The first instant (UTC) at which it is `day`, or later, in `zone`.

    A midnight that occurs twice counts the first time. One that a clock jumps over is the instant of the jump, so that a
    day which a zone left out (Samoa, 2011-12-30) starts when the next one does.
    """
    midnight = datetime.combine(day, time(), zone)
    first = midnight.replace(fold=0).astimezone(UTC)
    second = midnight.replace(fold=1).astimezone(UTC)
    if first <= second:
        return first
    # The clock jumps somewhere between the two: before the jump it is an earlier day, after it is `day` or later.
    before, after = second - _SECOND, first
    while after - before > _SECOND:
        middle = before + (after - before) // _SECOND // 2 * _SECOND
        if middle.astimezone(zone).date() < day:
            before = middle
        else:
            after = middle
    return after


@dataclass(frozen=True, slots=True)
class BusinessCalendar:
    """Which days count. `weekend`: days of the week, Monday = 0; `holidays`: local dates of the operator."""

    zone: str
    weekend: frozenset[int]
    holidays: frozenset[date]

    def is_business_day(self, day: date) -> bool:
        """Neither a weekend nor a holiday, and a day that exists in the zone."""
        if day.weekday() in self.weekend or day in self.holidays:
            return False
        zone = _zone(self.zone)
        return start_of_day(day, zone) < start_of_day(day + _DAY, zone)

    def local_date(self, instant: datetime) -> date:
        """The operator's date at `instant`. Raises ValueError when it has no zone."""
        return aware(instant).astimezone(_zone(self.zone)).date()

    def after(self, instant: datetime, days: int) -> datetime:
        """The end (UTC, outside) of `days` business days from `instant`.

        The day of `instant` does not count, however early it is; the last day ends at local midnight (promises.md,
        section 3). Raises ValueError when `days` is not positive or `instant` has no zone.
        """
        if days < 1:
            raise ValueError("a deadline has at least one business day")
        for day in self._following(self.local_date(instant)):
            days -= 1
            if not days:
                return start_of_day(day + _DAY, _zone(self.zone))
        raise AssertionError("a calendar does not end")

    def _following(self, day: date) -> Iterator[date]:
        """The business days after `day`."""
        while True:
            day += _DAY
            if self.is_business_day(day):
                yield day


def aware(instant: datetime) -> datetime:
    """`instant` itself. Raises ValueError when it has no zone: it would mean another instant on each machine."""
    if instant.tzinfo is None:
        raise ValueError("an instant needs a zone")
    return instant


@lru_cache(maxsize=64)
def _zone(name: str) -> ZoneInfo:
    return ZoneInfo(name)
