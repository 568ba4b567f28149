"""The clocks of a case: when it is due, and whether it will be late if things go on as they do."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime, timedelta

from services.retention.case import Case, Timing
from shared.policy import policy

ANSWER = timedelta(days=45)
"""From receipt, whatever the confirmation takes (CCPA)."""
CLOSURE_LEAD = timedelta(days=2)
"""A closed account's case opens so long before the cap: time for every holder to be found and asked again."""

# What the rest of a case usually takes. The sweep waits for compacted topics: a day until they are compacted, seven
# more until the null records are gone (settings of the topics).
_WAVES = timedelta(hours=1)
_COMPACTION = timedelta(days=8)


@dataclass(frozen=True, slots=True)
class Clock:
    """One bound. `runs`: it is not met yet."""

    name: str
    due_at: datetime
    runs: bool
    forecast_at: datetime | None = None


def _closure_cap() -> timedelta:
    return timedelta(days=policy().closure_cap_days)


def closes_at(closed_at: datetime) -> datetime:
    """When a closed account's case opens by itself."""
    return closed_at + _closure_cap() - CLOSURE_LEAD


def clocks(case: Case, now: datetime, timing: Timing) -> tuple[Clock, ...]:
    """All clocks of the case, with their forecasts. None of them ever pauses."""
    done = case.completed_at is not None
    waiting = case.open and case.state != "requested"
    # Whoever has kept us waiting for a time is expected to do so for as long again.
    stuck = now - (case.moved_at or now) if waiting and (not done or case.missing) else timedelta(0)
    complete_at = now + stuck + (timedelta(0) if done else _WAVES)
    certified_at = complete_at + timing.sweep_after
    swept_at = max(certified_at, (case.completed_at or complete_at) + _COMPACTION)
    found = []
    if case.kind == "closure":
        found.append(Clock("closure", case.requested_at + _closure_cap(), case.open and not done, complete_at))
    else:
        answered = case.answered_at is not None
        found.append(Clock("answer", case.requested_at + ANSWER, case.open and not answered, complete_at))
    if case.confirmed_at is not None:
        found.append(
            Clock("erasure", case.confirmed_at + timedelta(days=policy().erasure_cap_days), case.open, swept_at)
        )
    return tuple(found)


def due_at(case: Case, now: datetime, timing: Timing) -> datetime | None:
    """The earliest open clock's end; None when nothing is owed any more."""
    return min((clock.due_at for clock in clocks(case, now, timing) if clock.runs), default=None)


def at_risk(case: Case, now: datetime, timing: Timing) -> bool:
    """Whether an open clock will be missed, if what keeps the case waiting goes on for as long as it already has."""
    return any(
        clock.runs and clock.forecast_at is not None and clock.forecast_at >= clock.due_at
        for clock in clocks(case, now, timing)
    )
