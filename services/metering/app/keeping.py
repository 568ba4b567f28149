"""How long workspaces want their request log kept: obeyed by writers and readers at once, and on disk by a task."""

from __future__ import annotations

from typing import Any
from uuid import UUID

from services.metering import charged, store
from services.metering.app.meter import rollups_from
from services.metering.app.room import Room
from services.metering.identity import identities
from services.metering.usage import instant, microseconds
from shared.mesh import Batch, Done, Task, Transaction
from shared.mesh.partitions import span_of
from shared.mesh.service import Partitioned
from shared.privacy import store as privacy_store

TREAT = "log-retention"
# Pages of the log that one transaction goes over: 2 MB, some thousands of rows.
_PAGES = 256
_MANY = 2**31
_HOURLY = "rollup_hourly"
_BATCHES = 200


async def learn(room: Room, batch: Batch, tx: Transaction) -> None:
    """Takes over settings that are newer than those known here.

    No transaction that rated by the old ones is open any more when this one commits: what it wrote is on disk before
    the task goes over it, and whoever writes later sees the new ones.
    """
    newest: dict[str, Any] = {}
    for event, _ in batch.events:
        stated = event.data
        if stated.workspace not in newest or newest[stated.workspace].version < stated.version:
            newest[stated.workspace] = stated
    if gone := [workspace for workspace, stated in newest.items() if stated.erased]:
        await store.forget_settings(tx.db, gone)
    known = await store.setting_versions(tx.db, list(newest))
    new = [one for one in newest.values() if not one.erased and one.version > known.get(one.workspace, 0)]
    if not new:
        return
    await privacy_store.alone(tx.db)
    assert room.tombstones is not None, "the room is a holder"
    # Asked again: it may have been erased while this transaction waited.
    erased = await room.tombstones.erased([("workspace", one.workspace) for one in new], tx)
    wanted = [
        (one.workspace, one.account, one.version, one.log_retention_days)
        for one in new
        if ("workspace", one.workspace) not in erased
    ]
    if wanted:
        await store.set_settings(tx.db, wanted, tx.now)
        await tx.enqueue(TREAT, "settings", {})


async def treat(room: Room, log: Partitioned, task: Task, tx: Transaction) -> Any:
    """One chunk of a pass over the log and the hourly sums, for all settings that were waiting when it began."""
    if task.position is None:
        await store.begin_treating(tx.db)
        # Sums that were on their way when a setting came have a key and a model: they have to be where this pass looks.
        await store.roll_up_all(tx.db, _BATCHES, rollups_from(tx.now))
        extents = await privacy_store.extents(tx.db, [log.table, _HOURLY])
        return [[extent.relation, extent.blocks] for extent in extents], 0
    rest, block = task.position
    if not rest:
        return None if await store.end_treating(tx.db) else Done()
    (relation, blocks), after = rest[0], block + _PAGES
    last = after >= blocks
    piece = privacy_store.Slice(relation, block, _MANY if last else after)
    span = span_of(log, relation)
    if relation.startswith(_HOURLY):
        if await privacy_store.still_there(tx.db, relation):
            tx.count("rollups_folded_by_settings", await store.treat_rollups(tx.db, piece))
    elif span is not None and await privacy_store.still_there(tx.db, relation):
        await _keep_charges(room, piece, tx)
        deleted, moved = await store.treat_logged(tx.db, piece, span[0], tx.now)
        tx.count("log_rows_ended_by_settings", deleted)
        tx.count("log_rows_moved_by_settings", moved)
    return (rest[1:], 0) if last else (rest, after)


async def _keep_charges(room: Room, piece: privacy_store.Slice, tx: Transaction) -> None:
    """What this slice's rows say of charges, for corrections that come when the rows are gone."""
    now_us = microseconds(tx.now)
    made_from = UUID(int=(now_us - charged.WINDOW_US) // 1000 << 80)
    rows = await store.ending(tx.db, piece, made_from, instant((now_us + charged.WINDOW_US) // 1000))
    if not rows:
        return
    found = identities([str(row["generation_id"]) for row in rows], room.keys.by_ordinal)
    kept = {who.key: row for who, row in zip(found, rows, strict=True) if who.key}
    if not kept:
        return
    # Rows that were never to live longer have one already, which may say otherwise how its sums are kept.
    await store.forget_charged(tx.db, list(kept))
    await store.add_charged(tx.db, [packed for key, row in kept.items() if (packed := _charge(room, key, row))])


def _charge(room: Room, key: bytes, row: Any) -> bytes | None:
    owned = charged.owner(key, row["workspace"], room.keys.by_ordinal)
    if owned is None:
        return None
    return charged.row(
        key, owned, microseconds(row["occurred_at"]), row["kept_days"], row["input_tokens"], row["output_tokens"],
        row["amount_pico"], charged.of_way(row["tier"], row["rule"], row["price_version"]), row["quantities"].encode(),
    )  # fmt: skip
