"""Metering's gauges."""

from __future__ import annotations

from datetime import UTC, datetime

from prometheus_client import Gauge

from services.metering import store
from services.metering.app.meter import REASONS
from shared.contract import events
from shared.mesh import metrics
from shared.mesh.store import Connection, counters

_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
_DRIFT_DAYS = 2
_DRIFT_PROVIDERS = 50

QUARANTINED = Gauge(
    "steward_metering_quarantined", "Usage that waits for a price or a person.", ["reason"], registry=metrics.REGISTRY
)
FLAGGED = Gauge(
    "steward_metering_flagged",
    "Generations whose provider's answer did not add up.",
    ["reason"],
    registry=metrics.REGISTRY,
)
COST_REPORTED = Gauge(
    "steward_metering_cost_reported_pico",
    "What providers say they charged, yesterday and today (UTC), by how it compares with our own rating.",
    ["provider", "reason"],
    registry=metrics.REGISTRY,
)
COST_DRIFT = Gauge(
    "steward_metering_cost_drift_pico",
    "The same, less what we rated.",
    ["provider", "reason"],
    registry=metrics.REGISTRY,
)
PENDING_ROLLUPS = Gauge(
    "steward_metering_pending_rollups", "Batches whose sums the rollups have not taken.", registry=metrics.REGISTRY
)


async def observe(db: Connection, now: datetime) -> None:
    """Refreshes the room's gauges."""
    counts: dict[str, int] = {}
    for row in await store.quarantine_counts(db):
        counts[row["reason"]] = counts.get(row["reason"], 0) + row["n"]
    for reason in REASONS:
        QUARANTINED.labels(reason).set(counts.get(reason, 0))
    counted = await counters(db)
    for flag in events.FLAGS:
        FLAGGED.labels(flag).set(counted.get(f"flagged:{flag}", 0))
    await _observe_costs(db, now)
    PENDING_ROLLUPS.set(await store.pending_count(db))


async def _observe_costs(db: Connection, now: datetime) -> None:
    COST_REPORTED.clear()
    COST_DRIFT.clear()
    named: set[str] = set()
    for row in await store.costs(db, (now - _EPOCH).days - _DRIFT_DAYS + 1):
        # Names come from outside: a metric takes so many of them, and the table has them all.
        if len(named) < _DRIFT_PROVIDERS:
            named.add(row["provider"])
        provider = row["provider"] if row["provider"] in named else "other"
        COST_REPORTED.labels(provider, row["explanation"]).inc(int(row["reported_pico"]))
        COST_DRIFT.labels(provider, row["explanation"]).inc(int(row["reported_pico"] - row["rated_pico"]))
