"""Cases as the read API shows them: no plain id of anybody."""

from __future__ import annotations

from datetime import datetime
from typing import Any

from services.retention import clocks, store, wish
from services.retention.app import packages
from services.retention.case import Progress, Timing
from services.retention.speed import Speeds
from shared.mesh.store import Connection
from shared.policy import policy


def line(row: store.Row, now: datetime, timing: Timing, speeds: Speeds) -> dict[str, Any]:
    """A case in a list; `status` and `reason` are the Data Rights Protocol's words, the `subject_request_`s OpenDSR's."""
    case = row.case
    status, reason = wish.status(case)
    risks = clocks.at_risk(case, now, timing, policy(), speeds)
    return {
        "subject_request_id": case.id, "subject_request_type": case.kind, "regulation": row.regime, "status": status,
        "reason": reason, "received_time": case.requested_at, "expected_completion_time": clocks.due_at(case, policy()),
        "id": case.id, "kind": case.kind, "scope": case.scope, "state": case.state, "channel": case.channel,
        "requested_at": case.requested_at, "confirmed_at": case.confirmed_at, "completed_at": case.completed_at,
        "ended_at": case.ended_at, "due_at": clocks.due_at(case, policy()),
        "at_risk": bool(risks), "risks": list(risks), "missing": list(case.missing),
        "needs_person": list(case.needs_person(now, timing)),
    }  # fmt: skip


async def whole(db: Connection, row: store.Row, now: datetime, timing: Timing, speeds: Speeds) -> dict[str, Any]:
    """All that is known of a case."""
    case = row.case
    waits = clocks.needs(case, now, timing, speeds)
    return line(row, now, timing, speeds) | {
        "verified_at": case.verified_at,
        "proofs_needed": sorted(case.needed - case.proofs) if case.state in ("requested", "triage") else [],
        "extended_at": case.extended_at,
        "requests": [
            {"id": one.id, "received_at": one.received_at, "acknowledged_at": one.acknowledged_at} for one in case.requests
        ],
        "package": packages.shown(await store.package(db, case.id)),
        "history": [dict(each) for each in await store.history(db, case.id)],
        "subjects": row.subjects,
        "attempts": case.attempts,
        "answered_at": case.answered_at,
        "key_destroyed": case.key_destroyed,
        "clocks": [
            {
                "name": one.name, "due_at": one.ends_at, "promise": one.promise, "open": one.met_at is None,
                "forecast_at": now + waits[one.name] if one.met_at is None and one.name in waits else None,
            }
            for one in clocks.clocks(case, policy())
        ],
        "holders": {name: _progress(one, now, timing) for name, one in sorted(case.holders.items())},
        "auditor": _progress(case.auditor, now, timing) if case.auditor.epoch else None,
        "receipts": [dict(each) for each in await store.receipts(db, case.id)],
        "scans": [dict(each) for each in await store.scans(db, case.id)],
        "mails": [dict(each) for each in await store.mails(db, case.id)],
        "holds": [dict(each) for each in await store.holds_on(db, case.id)],
    }  # fmt: skip


def _progress(one: Progress, now: datetime, timing: Timing) -> dict[str, Any]:
    state = "waived" if one.waived_by else "residue" if one.exhausted else "done" if one.settled else "waiting"
    if state == "waiting" and one.silent(now, timing):
        state = "silent"
    return {
        "state": state if one.epoch or one.waived_by else "later", "epoch": one.epoch, "sends": one.sends,
        "first_sent_at": one.first_sent_at, "faults": one.faults, "waived_by": one.waived_by, "ticket": one.ticket,
    }  # fmt: skip
