"""Insights: topics to handlers, reads."""

from __future__ import annotations

from collections import Counter
from collections.abc import Awaitable, Callable, Mapping
from datetime import UTC, timedelta
from pathlib import Path
from typing import Any

from services.insights import store
from services.insights.activity import LIFE, Kind, Setting, judged, missing, obeyed, row
from services.insights.data_map import HOLDING
from shared.contract import events, topics
from shared.mesh import Batch, Footprint, Partitioned, Service, Transaction
from shared.mesh.http import NotAllowed
from shared.mesh.store import Connection
from shared.privacy.holder import attach
from shared.privacy.reasons import names_a_case

service = Service(
    "insights",
    migrations=Path(__file__).parent / "migrations",
    footprint=Footprint(memory_mb=100, replicas=2, most=3, scales_on=topics.ACTIVITY, per_second=2_000),
    partitioned=(Partitioned("activity", back=0, ahead=LIFE.days + 3, keeps=timedelta(0)),),
)


@service.consumes(topics.SETTINGS, batch=1_000, first=True)
async def obey(batch: Batch, tx: Transaction) -> None:
    """Puts settings in force; what an opt-out does not want kept goes in the same transaction."""
    await store.own_settings(tx.db)
    await _put(batch, "workspace", events.SettingsChanged.TYPE, store.set_workspace_settings, tx)
    await _put(batch, "member", events.MemberSettingsChanged.TYPE, store.set_member_settings, tx)
    over = [e.data.member for e, _ in batch.events if e.type == events.MemberSettingsChanged.TYPE and e.data.erased]
    if over:
        await store.forget_member_settings(tx.db, over)


async def _put(
    batch: Batch, kind: Kind, event_type: str, put: Callable[[Connection, list[Setting]], Awaitable[None]],
    tx: Transaction,
) -> None:  # fmt: skip
    stated = [event.data for event, _ in batch.events if event.type == event_type]
    if not stated:
        return
    known = await store.settings(tx.db, kind, {getattr(data, kind) for data in stated})
    changed, purged = obeyed(known, kind, stated)
    if changed:
        await put(tx.db, changed)
    if purged:
        tx.count("activity_purged", await store.forget(tx.db, kind, purged))


@service.consumes(topics.ACTIVITY, lingers=True)
async def keep(batch: Batch, tx: Transaction) -> None:
    """Keeps what may be kept, each event once. What may not leaves a number and nothing else, no dead letter either."""
    await store.share_settings(tx.db)
    acts = [received.event for received in batch.events]
    known = await store.settings(tx.db, "workspace", {act.data.workspace for act in acts})
    members = await store.settings(tx.db, "member", {act.data.member for act in acts if act.data.member is not None})
    verdicts = [
        judged(act, (known.get(act.data.workspace), members.get(act.data.member or "")), tx.now) for act in acts
    ]
    rows = [row(act) for act, verdict in zip(acts, verdicts, strict=True) if verdict == "kept"]
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
    setting = (await store.settings(tx.db, "workspace", [workspace])).get(workspace)
    rows = await store.activity(tx.db, workspace, today, tx.now - LIFE, limit)
    return {"rows": rows, "reason": missing(setting, tx.now, members_out=await store.members_out(tx.db))}


holder = attach(service, HOLDING)
