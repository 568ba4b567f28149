"""Insights: topics to handlers, reads."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from datetime import UTC, timedelta
from pathlib import Path
from typing import Any

from services.insights import store
from services.insights.activity import LIFE, judged, missing, obeyed, row
from services.insights.data_map import HOLDING
from shared.contract import topics
from shared.mesh import Batch, Footprint, Partitioned, Service, Transaction
from shared.mesh.http import NotAllowed
from shared.privacy.holder import attach
from shared.privacy.reasons import names_a_case

service = Service(
    "insights",
    migrations=Path(__file__).parent / "migrations",
    footprint=Footprint(memory_mb=130, replicas=2, most=3, scales_on=topics.ACTIVITY, per_second=2_000),
    partitioned=(Partitioned("activity", back=0, ahead=LIFE.days + 3, keeps=timedelta(0)),),
)


@service.consumes(topics.SETTINGS, batch=1_000, first=True)
async def obey(batch: Batch, tx: Transaction) -> None:
    """Puts settings in force; what an opt-out does not want kept goes in the same transaction."""
    stated = [received.event.data for received in batch.events]
    await store.own_settings(tx.db)
    changed, purged = obeyed(await store.settings(tx.db, {data.workspace for data in stated}), stated)
    if changed:
        await store.set_settings(tx.db, changed)
    if purged:
        tx.count("activity_purged", await store.forget(tx.db, purged))


@service.consumes(topics.ACTIVITY, lingers=True)
async def keep(batch: Batch, tx: Transaction) -> None:
    """Keeps what may be kept, each event once. What may not leaves a number and nothing else, no dead letter either."""
    await store.share_settings(tx.db)
    events = [received.event for received in batch.events]
    known = await store.settings(tx.db, {event.data.workspace for event in events})
    verdicts = [judged(event, known.get(event.data.workspace), tx.now) for event in events]
    rows = [row(event) for event, verdict in zip(events, verdicts, strict=True) if verdict == "kept"]
    outcomes: Counter[str] = Counter(verdicts)
    if rows:
        outcomes["kept"] = await store.add(tx.db, rows)
        outcomes["duplicates"] = len(rows) - outcomes["kept"]
    for outcome, number in outcomes.items():
        tx.count(f"activity_{outcome}", number)


@service.reads("activity")
async def read_activity(query: Mapping[str, str], tx: Transaction) -> Any:
    """What happened in a workspace, the newest first, and why some of it is missing, if it is: for a support case, which
    has to be named."""
    if tx.caller is None or not names_a_case(tx.caller.reason):
        raise NotAllowed("raw activity is read for a case only: give its ticket or id as the reason (e.g. SUP-4711)")
    limit = min(int(query.get("limit", "100")), 1_000)
    today = tx.now.astimezone(UTC).date()
    workspace = query.get("workspace", "")
    setting = (await store.settings(tx.db, [workspace])).get(workspace)
    rows = await store.activity(tx.db, workspace, today, tx.now - LIFE, limit)
    return {"rows": rows, "reason": missing(setting, tx.now)}


holder = attach(service, HOLDING)
