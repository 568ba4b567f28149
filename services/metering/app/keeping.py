"""How long the request log is kept, as workspaces want it, and members for their keys: obeyed at once, on disk by a task."""

from __future__ import annotations

from typing import Any
from uuid import UUID

from services.metering import charged, store
from services.metering.app.meter import rollups_from
from services.metering.app.room import Room
from services.metering.identity import identities
from services.metering.usage import instant, microseconds
from shared.contract import events
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
_OF = (
    (store.OF_WORKSPACES, events.SettingsChanged.TYPE),
    (store.OF_KEYS, events.KeySettingsChanged.TYPE),
)


async def learn(room: Room, batch: Batch, tx: Transaction) -> None:
    """Takes over settings that are newer than those known here.

    No transaction that rated by the old ones is open any more when this one commits: what it wrote is on disk before
    the task goes over it, and whoever writes later sees the new ones.
    """
    wanted: list[tuple[store.Settings, list[Any]]] = []
    for of, kind in _OF:
        newest: dict[str, Any] = {}
        for stated in [event.data for event, _ in batch.events if event.type == kind]:
            name = getattr(stated, of.name)
            if name not in newest or newest[name].version < stated.version:
                newest[name] = stated
        if gone := [name for name, stated in newest.items() if stated.erased]:
            await store.forget_settings(tx.db, of, gone)
        known = await store.setting_versions(tx.db, of, list(newest)) if newest else {}
        new = [s for name, s in newest.items() if not s.erased and s.version > known.get(name, 0)]
        if new:
            wanted.append((of, new))
    if not wanted:
        return
    await privacy_store.alone(tx.db)
    assert room.tombstones is not None, "the room is a holder"
    # Asked again: it may have been erased while this transaction waited.
    subjects = {(of.name, getattr(one, of.name)) for of, new in wanted for one in new}
    erased = await room.tombstones.erased(subjects, tx)
    for of, new in wanted:
        rows = [
            (name, one.account, one.version, one.log_retention_days)
            for one in new
            if (of.name, name := getattr(one, of.name)) not in erased
        ]
        if rows:
            await store.set_settings(tx.db, of, rows, tx.now)
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
