"""What operations have to see of the cases; no label ever names one."""

from __future__ import annotations

from datetime import datetime
from typing import get_args

from prometheus_client import Gauge

from services.retention import clocks, store
from services.retention.app.forecast import speeds
from services.retention.case import ENDED, State, Timing
from services.retention.disclosures import store as register
from shared.mesh import metrics
from shared.mesh.store import Connection
from shared.policy import policy

OPEN = Gauge("steward_cases_open", "Open cases by state.", ["outcome"], registry=metrics.REGISTRY)
AT_RISK = Gauge(
    "steward_cases_at_risk",
    "Open cases that will miss a clock if what keeps them waiting goes on for as long as it already has.",
    registry=metrics.REGISTRY,
)
BREACHES = Gauge(
    "steward_deadline_breaches_forecast",
    "Open deadlines that are missed, or will be at the speed that the steps of the last cases had.",
    ["reason"],
    registry=metrics.REGISTRY,
)
LATE = Gauge("steward_cases_late", "Open cases that have missed a clock.", registry=metrics.REGISTRY)
NEED_PERSON = Gauge(
    "steward_cases_needing_person",
    "Open cases, holds and disclosures that do not get on by themselves.",
    registry=metrics.REGISTRY,
)


async def observe(db: Connection, now: datetime, timing: Timing) -> None:
    """Refreshes the room's gauges."""
    rows = (await store.running(db)).values()
    measured = await speeds(db)
    for state in get_args(State):
        if state not in ENDED:
            OPEN.labels(state).set(sum(row.case.state == state for row in rows))
    risks = [clocks.at_risk(row.case, now, timing, policy(), measured) for row in rows]
    AT_RISK.set(sum(map(bool, risks)))
    for name in ("closure", *policy().deadlines):
        BREACHES.labels(name).set(sum(name in found for found in risks))
    LATE.set(sum(clocks.late(row.case, now, policy()) for row in rows))
    needing = sum(bool(row.case.needs_person(now, timing)) for row in rows)
    needing += await store.silent_holds(db, now - timing.silence)
    NEED_PERSON.set(needing + await register.needing_person(db))
