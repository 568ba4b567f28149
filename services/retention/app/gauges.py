"""What operations have to see of the cases; no label ever names one."""

from __future__ import annotations

from datetime import datetime
from typing import get_args

from prometheus_client import Gauge

from services.retention import store
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
    """Refreshes the room's gauges, by what stands with the cases: the forecasts are the job's."""
    counts = await store.state_counts(db)
    for state in get_args(State):
        if state not in ENDED:
            OPEN.labels(state).set(counts.get(state, 0))
    summary = await store.summary(db, now)
    AT_RISK.set(summary["at_risk"])
    LATE.set(summary["late"])
    silent = await store.silent_holds(db, now - timing.silence)
    NEED_PERSON.set(summary["needing"] + silent + await register.needing_person(db))
    risks = await store.risk_counts(db)
    for name in ("closure", *policy().deadlines):
        BREACHES.labels(name).set(risks.get(name, 0))
