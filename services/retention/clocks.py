"""The clocks of a case: when it is due, and whether it will be late if things go on as they do."""

from __future__ import annotations

from datetime import datetime, timedelta

from services.retention.case import DELETIONS, Case, Timing
from services.retention.right import PACKAGED
from services.retention.speed import Speeds
from shared.policy import Clock, Policy, due, forecast
from shared.policy.deadlines import clock

CLOSURE_LEAD = timedelta(days=2)
"""A closed account's case opens so long before the cap: time for every holder to be found and asked again."""

# What a step takes until it was measured. The sweep waits for compacted topics: a day until they are compacted, seven more
# until the null records are gone (settings of the topics). What waits for the person takes nothing of ours.
_HOUR = timedelta(hours=1)
_COMPACTION = timedelta(days=8)
_START: dict[str, timedelta] = {
    "triage": timedelta(hours=24), "decide": timedelta(hours=24), "working": _HOUR, "packing": _HOUR,
    "answering": timedelta(minutes=10), "acknowledging": timedelta(minutes=10), "wave_1": _HOUR, "wave_2": _HOUR,
    "probing": _HOUR,
}  # fmt: skip
_CLOSURE = 33


def closes_at(closed_at: datetime, policy: Policy) -> datetime:
    """When a closed account's case opens by itself."""
    return closed_at + timedelta(days=policy.closure_cap_days) - CLOSURE_LEAD


def clocks(case: Case, policy: Policy) -> tuple[Clock, ...]:
    """All clocks of the case: each request has its own, and none of them ever pauses. One that is taken back, or lapses, is
    owed nothing more."""
    dropped = case.ended_at if case.state in ("withdrawn", "lapsed") else None
    calendar, deadlines = policy.calendar, policy.deadlines
    found = []
    if case.kind == "closure":
        end = case.requested_at + timedelta(days=policy.closure_cap_days)
        found.append(Clock("closure", case.requested_at, end, _CLOSURE, dropped or case.completed_at))
    else:
        for at, acknowledged_at in _received(case):
            for name, met_at in (
                ("acknowledgement", acknowledged_at or case.answered_at),
                ("answer", case.answered_at),
                ("ccpa", case.answered_at),
            ):
                extended_at = case.extended_at if name == "ccpa" else None
                one = clock(deadlines[name], at, calendar, extended_at)
                found.append(Clock(one.name, one.starts_at, one.ends_at, one.promise, dropped or met_at))
    if case.kind == "child_report":
        report = clock(deadlines["child_erasure"], case.requested_at, calendar)
        found.append(
            Clock(report.name, report.starts_at, report.ends_at, report.promise, case.completed_at or case.ended_at)
        )
    if case.kind in PACKAGED and case.verified_at is not None:
        copy = clock(deadlines["copy"], case.verified_at, calendar)
        found.append(Clock(copy.name, copy.starts_at, copy.ends_at, copy.promise, dropped or case.answered_at))
    if case.confirmed_at is not None:
        erasure = clock(deadlines["erasure"], case.confirmed_at, calendar)
        found.append(Clock(erasure.name, erasure.starts_at, erasure.ends_at, erasure.promise, case.ended_at))
    return tuple(found)


def _received(case: Case) -> list[tuple[datetime, datetime | None]]:
    """When each request was received and acknowledged."""
    return [(one.received_at, one.acknowledged_at) for one in case.requests] or [(case.requested_at, None)]


def received(case: Case, request: str) -> datetime:
    """When a request of a case was received."""
    return next((one.received_at for one in case.requests if one.id == request), case.requested_at)


def answer_by(case: Case, request: str, policy: Policy) -> datetime:
    """By when a request of a case is to be answered in substance."""
    return clock(policy.deadlines["answer"], received(case, request), policy.calendar).ends_at


def due_at(case: Case, policy: Policy) -> datetime | None:
    """The earliest open clock's end; None when nothing is owed any more."""
    first = due(clocks(case, policy))
    return None if first is None else first.ends_at


def needs(case: Case, now: datetime, timing: Timing, speeds: Speeds) -> dict[str, timedelta]:
    """What each clock's work still takes, by what the steps of the last cases took. Whoever has kept us waiting for a time is
    expected to do so for as long again."""
    if not case.open:
        return {}
    since = case.state_at or case.requested_at
    waits = {
        "acknowledgement": speeds.remaining("mail", [("acknowledging", _START["acknowledging"])], _oldest(case), now)
    }
    answer = speeds.remaining(case.kind, _left(case), since, now)
    waits |= {"answer": answer, "ccpa": answer, "copy": answer}
    if case.kind not in DELETIONS:
        return waits
    done = case.completed_at is not None
    stuck = now - (case.moved_at or now) if done and case.missing else timedelta(0)
    waited = now - case.completed_at if case.completed_at is not None else timedelta(0)
    sweep = max(timing.sweep_after, _COMPACTION - waited, timedelta(0))
    return waits | {"closure": answer, "child_erasure": answer, "erasure": (stuck if done else answer) + sweep}


def _oldest(case: Case) -> datetime:
    """Since when a request waits for its acknowledgement."""
    return min((at for at, acknowledged_at in _received(case) if acknowledged_at is None), default=case.requested_at)


def _left(case: Case) -> list[tuple[str, timedelta]]:
    """The steps until the answer, first the one that the case is in; those that wait for the person take nothing of ours."""
    if case.kind in DELETIONS and case.state != "answering":
        steps = ["wave_1", "wave_2", "probing"]
        ahead = ["decide", *steps] if case.kind == "child_report" and case.state == "requested" else steps
    else:
        ahead = ["triage", "working", *(["packing"] if case.kind in PACKAGED else []), "answering"]
        if case.kind == "sale:opt-out":
            ahead = ["answering"]
    state = "decide" if ahead[0] == "decide" else case.state
    if state == "requested":
        return []
    if state not in ahead:
        return []
    return [(step, _START[step]) for step in ahead[ahead.index(state) :]]


def at_risk(case: Case, now: datetime, timing: Timing, policy: Policy, speeds: Speeds) -> tuple[str, ...]:
    """The open clocks that are missed, or will be if what keeps the case waiting goes on for as long as it already has."""
    waits = needs(case, now, timing, speeds)
    if not waits:
        return ()
    return tuple(one.clock.name for one in forecast(clocks(case, policy), now, policy.deadlines, waits))
