"""Metering: topics to handlers, jobs, tasks, reads."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

from services.metering import store
from services.metering.app import desk, keeping, rerate
from services.metering.app.explained import explained
from services.metering.app.gauges import observe
from services.metering.app.meter import (
    FOR_ORIGINALS,
    FOR_PRICES,
    ROLLUP_DAYS,
    ROLLUPS_LIVE,
    Metering,
    rollups_from,
)
from services.metering.app.room import Room
from services.metering.data_map import HOLDING
from services.metering.identity import day_bound
from services.metering.usage import hour_bound, ordinal_bound
from shared.contract import topics
from shared.mesh import Batch, Done, Footprint, Partitioned, Received, Service, Task, Transaction
from shared.mesh.http import NotFound
from shared.policy import policy
from shared.privacy.holder import attach

_CHUNK = 1_000
_ROLLUP_BATCHES = 200
_LOG = Partitioned("request_log", ahead=policy().request_log_max_days + 3, keeps=timedelta(0))
_NO_LOG = "nothing of this account is in the request log: its log retention is 0, its rows are over, or nothing came"
_NO_MODEL = (
    "workspaces, or keys, whose log retention is, or was, 0: of their usage sums by day are kept, without key and model"
)
_NO_HOURS = (
    "log retention is, or was, 0, of the workspace or of one of its keys: usage of that time is kept as sums by day, without "
    "key and model"
)
_HOUR = timedelta(hours=1)
_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)


def make_service(*, dedupe: bool = True, suppress: bool = True) -> Service:
    """The room's declaration. `dedupe` and `suppress` off are for tests that show what de-duplication and tombstones
    prevent."""
    room = Room(dedupe)
    service = Service(
        "metering",
        migrations=Path(__file__).parents[1] / "migrations",
        partitioned=(
            Partitioned("seen", back=policy().window.days + 1, ahead=3, keeps=policy().window, bound=day_bound),
            Partitioned("charged", back=policy().window.days + 1, ahead=3, keeps=policy().window, bound=day_bound),
            _LOG,
            Partitioned(
                "rollup_hourly", back=ROLLUP_DAYS, ahead=40, monthly=True, keeps=ROLLUPS_LIVE, bound=hour_bound
            ),
            Partitioned(
                "rollup_daily", back=ROLLUP_DAYS, ahead=40, monthly=True, keeps=ROLLUPS_LIVE, bound=ordinal_bound
            ),
        ),
        # Measured with `make bench` on two cores: 34,600 generations a second in one process, 53,400 in two on one database.
        footprint=Footprint(
            memory_mb=237, replicas=2, most=4, scales_on=topics.GENERATIONS, per_second=20_000, books=True
        ),
        on_start=room.open,
        on_idle=store.pending_count,
        on_observe=observe,
    )

    @service.consumes(topics.GENERATIONS, parallel=2, lingers=True)
    async def meter(batch: Batch, tx: Transaction) -> None:
        await Metering(room, tx).take(batch.events, batch.erased)

    # One at a time: what is judged has to be in force, or held, before the next one is.
    @service.consumes(topics.PRICES, batch=1)
    async def learn_prices(batch: Batch, tx: Transaction) -> None:
        for received in batch.events:
            await desk.learn(room, received, tx)

    # Guarded by itself: it waits for all who are.
    @service.consumes(topics.SETTINGS, first=True, guarded=False)
    async def learn_settings(batch: Batch, tx: Transaction) -> None:
        await keeping.learn(room, batch, tx)

    @service.task(keeping.TREAT)
    async def treat_log(task: Task, tx: Transaction) -> Any:
        return await keeping.treat(room, _LOG, task, tx)

    @service.job(keeping.TREAT, every=timedelta(seconds=5))
    async def look_at_settings(now: datetime, tx: Transaction) -> None:
        # The request of who learns a setting can meet a pass that is ending.
        if await store.settings_open(tx.db):
            await tx.enqueue(keeping.TREAT, "settings", {})

    @service.job("day-keys", every=timedelta(hours=1))
    async def make_day_keys(now: datetime, tx: Transaction) -> None:
        await room.make_keys(now)

    @service.job("rollups", every=timedelta(seconds=1))
    async def roll_up(now: datetime, tx: Transaction) -> None:
        if room.loaded and now.second % 4:
            return  # under load, sums of more batches together are fewer rows to touch
        await store.roll_up(tx.db, _ROLLUP_BATCHES, rollups_from(now))

    @service.job("fold-costs", every=timedelta(minutes=1))
    async def fold_costs(now: datetime, tx: Transaction) -> None:
        await store.fold_costs(tx.db, (now - _EPOCH).days - ROLLUP_DAYS)

    @service.job("retry-corrections", every=timedelta(seconds=30))
    async def retry_corrections(now: datetime, tx: Transaction) -> None:
        await tx.enqueue("release", f"corrections:{now.isoformat()}", {"reasons": FOR_ORIGINALS})

    @service.task("release")
    async def release(task: Task, tx: Transaction) -> Any:
        after = int(task.position or 0)
        if "row" in task.payload:
            row = await store.quarantined(tx.db, int(task.payload["row"]))
            rows: Sequence[Any] = [] if row is None else [row]
        else:
            rows = await store.waiting(tx.db, after, _CHUNK, task.payload["reasons"])
        await Metering(room, tx).release(rows, by_person="row" in task.payload)
        if "row" in task.payload or len(rows) < _CHUNK:
            return Done()
        return rows[-1]["id"]

    @service.command("release_quarantine")
    async def release_one(ordered: Received, tx: Transaction) -> None:
        command = ordered.event.data
        if command.target.isdigit():
            await tx.enqueue("release", f"row:{command.target}", {"row": int(command.target)})
        else:
            await tx.enqueue("release", f"all:{tx.now.isoformat()}", {"reasons": FOR_PRICES})

    service.command("rerate")(rerate.order)
    service.command("release_price")(desk.release)
    service.command("reject_price")(desk.reject)

    @service.task("rerate")
    async def rate_again(task: Task, tx: Transaction) -> Any:
        return await rerate.work(room, task, tx)

    @service.reads("held-prices")
    async def list_held(query: Mapping[str, str], tx: Transaction) -> Any:
        return [desk.read(row) for row in await store.held_prices(tx.db)]

    @service.reads("prices")
    async def list_prices(query: Mapping[str, str], tx: Transaction) -> Any:
        if "batch" in query:
            return [desk.read(row) for row in await store.imported(tx.db, query["batch"])]
        return [dict(row) for row in await store.stated_prices(tx.db)]

    @service.reads("reratings")
    async def list_reratings(query: Mapping[str, str], tx: Transaction) -> Any:
        return await store.reratings(tx.db, min(int(query.get("limit", 20)), 1000))

    @service.reads("explain")
    async def explain_one(query: Mapping[str, str], tx: Transaction) -> Any:
        return await explained(room, query.get("id", ""), tx)

    @service.reads("quarantine")
    async def list_quarantine(query: Mapping[str, str], tx: Transaction) -> Any:
        return {
            "counts": await store.quarantine_counts(tx.db),
            "rows": await store.quarantine_list(
                tx.db, int(query.get("after", 0)), min(int(query.get("limit", 100)), 1000)
            ),
        }

    @service.reads("usage-by-model")
    async def usage_by_model(query: Mapping[str, str], tx: Transaction) -> Any:
        """Usage of all workspaces by model; apart from it, and with the reason, what cannot be told by model."""
        since = int(query.get("since_hour", 0))
        rest = await store.usage_without_model(tx.db, since // 24)
        return {
            "models": await store.usage_by_model(tx.db, since, int(query.get("limit", 20))),
            "without_model": rest | {"reason": _NO_MODEL if rest["generations"] or rest["amount_pico"] else None},
        }

    @service.reads("usage")
    async def usage(query: Mapping[str, str], tx: Transaction) -> Any:
        """A workspace's usage since an hour (of the last 30 days): by hour, key and model, or by day, and then why."""
        workspace = query.get("workspace", "")
        since = int(query.get("since_hour", (tx.now - _EPOCH) // _HOUR - 24 * 30))
        limit = min(int(query.get("limit", 1000)), 10_000)
        hours, days = await store.usage_of_workspace(tx.db, workspace, since, limit)
        kept = await store.kept_days(tx.db, workspace)
        if kept is None and not hours and not days:
            raise NotFound("nothing is known here of such a workspace: no usage, and no setting")
        reason = _NO_HOURS if kept == 0 or days else None
        return {"workspace": workspace, "log_retention_days": kept, "hours": hours, "days": days, "reason": reason}

    @service.reads("costs")
    async def costs(query: Mapping[str, str], tx: Transaction) -> Any:
        return await store.costs(tx.db, int(query.get("since_day", 0)))

    @service.reads("recipients")
    async def recipients(query: Mapping[str, str], tx: Transaction) -> Any:
        """The providers that served an account, as far as its request log goes back; why some are missing, if they may be."""
        account = query.get("account", "")
        providers = await store.providers_of(tx.db, account, tx.now)
        shorter, keys = await store.shorter_than(tx.db, account, policy().request_log_default_days)
        reason = None if providers else _NO_LOG
        short = []
        if shorter:
            named = ", ".join(f"{workspace} ({days} days)" for workspace, days in shorter.items())
            short.append(f"these workspaces keep their request log for a shorter time: {named}")
        if keys:
            short.append(f"who made {keys} of the keys keeps their request log for a shorter time")
        if providers and short:
            reason = f"not complete: {'; '.join(short)}"
        return {"providers": providers, "reason": reason}

    @service.reads("interesting")
    async def interesting(query: Mapping[str, str], tx: Transaction) -> Any:
        return await store.some_logged(tx.db, tx.now, int(query.get("limit", 20)))

    async def before_erasure(subjects: Mapping[str, Any], tx: Transaction) -> None:
        # Sums on their way name workspaces in arrays: added up, they are rows like all others.
        await store.roll_up_all(tx.db, _ROLLUP_BATCHES, rollups_from(tx.now))

    holder = attach(service, HOLDING, before=before_erasure, reports=topics.USAGE_RATED, suppress=suppress)
    room.tombstones = holder.tombstones
    return service


service = make_service()
