"""The clocks of a case: when each ends, which is due first, and which is going to be missed. Pure.

Every clock runs from its own start and none pauses; a request that comes twice adds a second set. The earliest open
clock is the due date of the case. Instants are half-open: what happens at `ends_at` is late.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import Literal

from .calendar import BusinessCalendar, aware

# The instants from which a deadline can run.
STARTS = ("receipt", "identity_verified", "confirmation", "child_report", "last_notice")


@dataclass(frozen=True, slots=True)
class Deadline:
    """A period of the policy. `unit`: days of 24 hours, or business days of the calendar.

    `minimum`: what starts the clock has to be at least so long ago (a policy change), instead of at most. Its clock says
    from when something may happen; it is no clock of a case, and neither due nor forecast. `extension`: by how much the
    law lets it grow once, in the same unit; 0: not at all.
    """

    name: str
    length: int
    unit: Literal["days", "business_days"]
    starts: str
    promised: int
    promise: int
    warn: timedelta = timedelta(0)
    minimum: bool = False
    extension: int = 0

    def end(self, start: datetime, calendar: BusinessCalendar, extended_at: datetime | None = None) -> datetime:
        """The instant (UTC, outside) at which it ends. Raises ValueError when an instant has no zone.

        `extended_at`: when the person was told that it takes longer. What is not allowed (see `no_extension`) moves
        nothing: an end that has passed is not undone, and a policy without the extension takes it back.
        """
        if extended_at is None or self.no_extension(start, extended_at, calendar) is not None:
            return self._after(start, self.length, calendar)
        return self._after(start, self.length + self.extension, calendar)

    def no_extension(self, start: datetime, told_at: datetime, calendar: BusinessCalendar) -> str | None:
        """Why a person who is told at `told_at` cannot be kept waiting longer, a sentence; None when they can."""
        if not self.extension:
            return f"deadlines.{self.name} has no extension: the policy switched it off, or no law knows one"
        end = self._after(start, self.length, calendar)
        if aware(told_at) >= end:
            return f"deadlines.{self.name} ended at {end.isoformat()}: whoever is told of an extension is told before"
        return None

    def _after(self, start: datetime, length: int, calendar: BusinessCalendar) -> datetime:
        if self.unit == "business_days":
            return calendar.after(start, length)
        return aware(start).astimezone(UTC) + timedelta(days=length)


@dataclass(frozen=True, slots=True)
class Clock:
    """One running deadline of a case. `met_at`: when its work was done; None while it is open."""

    name: str
    starts_at: datetime
    ends_at: datetime
    promise: int
    met_at: datetime | None = None

    def __post_init__(self) -> None:
        if aware(self.ends_at) <= aware(self.starts_at):
            raise ValueError(f"clock {self.name}: it ends before it starts")
        if self.met_at is not None:
            aware(self.met_at)

    def missed(self, now: datetime) -> bool:
        """Whether its promise is broken at `now`: still open at its end, or met at its end or later."""
        return (aware(now) if self.met_at is None else self.met_at) >= self.ends_at


def clock(
    deadline: Deadline, start: datetime, calendar: BusinessCalendar, extended_at: datetime | None = None
) -> Clock:
    """The clock of `deadline` that starts at `start`; `extended_at`: see `Deadline.end`.

    Raises ValueError when an instant has no zone.
    """
    return Clock(deadline.name, start, deadline.end(start, calendar, extended_at), deadline.promise)


def due(clocks: Iterable[Clock]) -> Clock | None:
    """The open clock that ends first; None when none is open."""
    return min((one for one in clocks if one.met_at is None), key=lambda one: (one.ends_at, one.name), default=None)


@dataclass(frozen=True, slots=True)
class Forecast:
    """An open clock that is going to be missed, or is. `slack`: what is left less what the work needs; 0 is too late."""

    clock: Clock
    state: Literal["endangered", "missed"]
    slack: timedelta


def forecast(
    clocks: Iterable[Clock],
    now: datetime,
    deadlines: Mapping[str, Deadline],
    needs: Mapping[str, timedelta] | None = None,
) -> tuple[Forecast, ...]:
    """The open clocks to worry about at `now`, the most urgent (least slack) first; empty when all is well.

    `needs`: clock name -> how long its remaining work takes (nothing, if absent). A clock is endangered from the instant
    at which work that starts now would be done too late, or when less than its deadline's `warn` is left, and missed
    from its end. It is told early: a breach is never the first news.
    """
    found = []
    for one in clocks:
        if one.met_at is not None:
            continue
        left = one.ends_at - aware(now)
        slack = left - (needs or {}).get(one.name, timedelta(0))
        if left <= timedelta(0):
            found.append(Forecast(one, "missed", slack))
        elif slack <= timedelta(0) or left <= _warn(one, deadlines):
            found.append(Forecast(one, "endangered", slack))
    return tuple(sorted(found, key=lambda one: (one.slack, one.clock.ends_at, one.clock.name)))


def _warn(one: Clock, deadlines: Mapping[str, Deadline]) -> timedelta:
    deadline = deadlines.get(one.name)
    return deadline.warn if deadline is not None else timedelta(0)
