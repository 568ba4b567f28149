"""The clocks of a case: when it is due, and whether it will be late if things go on as they do."""

from __future__ import annotations

from datetime import datetime, timedelta

from services.retention.case import Case, Timing
from shared.policy import Clock, Policy, due, forecast
from shared.policy.deadlines import clock

CLOSURE_LEAD = timedelta(days=2)
"""A closed account's case opens so long before the cap: time for every holder to be found and asked again."""

# What the rest of a case usually takes. The sweep waits for compacted topics: a day until they are compacted, seven
# more until the null records are gone (settings of the topics).
_WAVES = timedelta(hours=1)
_COMPACTION = timedelta(days=8)
_CLOSURE = 33


def closes_at(closed_at: datetime, policy: Policy) -> datetime:
    """When a closed account's case opens by itself."""
    return closed_at + timedelta(days=policy.closure_cap_days) - CLOSURE_LEAD


def clocks(case: Case, policy: Policy) -> tuple[Clock, ...]:
    """All clocks of the case; none of them ever pauses. One that is taken back, or lapses, is owed nothing more."""
    dropped = case.ended_at if case.state in ("withdrawn", "lapsed") else None
    found = []
    if case.kind == "closure":
        end = case.requested_at + timedelta(days=policy.closure_cap_days)
        found.append(Clock("closure", case.requested_at, end, _CLOSURE, dropped or case.completed_at))
    else:
        answer = clock(policy.deadlines["ccpa"], case.requested_at, policy.calendar)
        found.append(Clock(answer.name, answer.starts_at, answer.ends_at, answer.promise, dropped or case.answered_at))
    if case.confirmed_at is not None:
        erasure = clock(policy.deadlines["erasure"], case.confirmed_at, policy.calendar)
        found.append(Clock(erasure.name, erasure.starts_at, erasure.ends_at, erasure.promise, case.ended_at))
    return tuple(found)


def due_at(case: Case, policy: Policy) -> datetime | None:
    """The earliest open clock's end; None when nothing is owed any more."""
    first = due(clocks(case, policy))
    return None if first is None else first.ends_at


def needs(case: Case, now: datetime, timing: Timing) -> dict[str, timedelta]:
    """What each clock's work still takes. Whoever has kept us waiting for a time is expected to do so for as long again."""
    if not case.open or case.state == "requested":
        return {}
    done = case.completed_at is not None
    stuck = now - (case.moved_at or now) if not done or case.missing else timedelta(0)
    complete = timedelta(0) if done else stuck + _WAVES
    waited = now - case.completed_at if case.completed_at is not None else timedelta(0)
    sweep = max(timing.sweep_after, _COMPACTION - waited, timedelta(0))
    return {"closure": complete, "ccpa": complete, "erasure": complete + (stuck if done else timedelta(0)) + sweep}


def at_risk(case: Case, now: datetime, timing: Timing, policy: Policy) -> bool:
    """Whether an open clock is missed, or will be if what keeps the case waiting goes on for as long as it already has."""
    waits = needs(case, now, timing)
    return bool(waits) and bool(forecast(clocks(case, policy), now, policy.deadlines, waits))


def late(case: Case, now: datetime, policy: Policy) -> bool:
    """Whether a clock is missed."""
    return case.open and any(one.met_at is None and one.missed(now) for one in clocks(case, policy))
