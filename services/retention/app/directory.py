"""Accounts, workspaces, members, keys and settings, as the gateway says them."""

from __future__ import annotations

from typing import Any

from services.retention.app.room import Room
from services.retention.directory import store as directory_store
from services.retention.subjects import ADMINISTRATOR
from shared.contract import events, topics
from shared.contract.ids import derived_id
from shared.mesh import Batch, Received, Transaction
from shared.mesh.store import OutboxRow
from shared.mesh.transaction import rfc3339, shard_of


async def learn(room: Room, batch: Batch, tx: Transaction) -> None:
    """Takes in who is who. Rows lead to each other by ids alone, so that no event waits for another one."""
    db = tx.db
    for received in batch.events:
        event = received.event
        data, at = event.data, event.time
        match event.type:
            case events.AccountOpened.TYPE:
                name = await room.reseal_name(data.account, data.name, tx, where="account.name")
                await directory_store.open_account(db, data.account, data.identity, data.jurisdiction, at, name)
            case events.AccountClosed.TYPE:
                await directory_store.close_account(db, data.account, at)
            case events.WorkspaceCreated.TYPE:
                await directory_store.create_workspace(db, data.account, data.workspace, data.administrator, at)
            case events.SettingsStated.TYPE:
                await _settings(received, tx)
            case events.MemberAdded.TYPE:
                await directory_store.put_member(db, data.account, data.workspace, data.member, data.role)
            case events.MemberRemoved.TYPE:
                await directory_store.remove_member(db, data.workspace, data.member)
            case events.KeyCreated.TYPE:
                name = await room.reseal_name(data.account, data.name, tx, where="api_key.name")
                await directory_store.put_key(db, data.account, data.workspace, data.key, data.member, name, at)
            case events.KeyRevoked.TYPE:
                await directory_store.revoke_key(db, data.account, data.workspace, data.key, data.member, at)


async def _settings(received: Received, tx: Transaction) -> None:
    """An administrator's settings come into force. Where the directory knows who is in the workspace, it decides who is
    an administrator; where it does not yet, the gateway's word does."""
    event = received.event
    data = event.data
    known, role = await directory_store.role_of(tx.db, data.workspace, data.actor)
    if data.role != ADMINISTRATOR or (known and role != ADMINISTRATOR):
        tx.refuse(received.record, "not_administrator", "only an administrator's change of settings counts")
        return
    days, opt_out = data.log_retention_days, data.activity_opt_out
    if await directory_store.put_settings(tx.db, data.account, data.workspace, data.version, days, opt_out, event.time):
        for row in await directory_store.settings_of(tx.db, [data.workspace]):
            publish_settings(tx, row)
        tx.count("settings_in_force")
    else:
        tx.count("settings_stale")


def publish_settings(tx: Transaction, row: Any, *, erased: bool = False) -> None:
    """Says the settings of a workspace: as they are, under the id that they had, or that they are over."""
    version = row["version"] + 1 if erased else row["version"]
    at = tx.now if erased else row["changed_at"]
    tx.publish(
        topics.SETTINGS, events.SettingsChanged,
        id=derived_id(int(at.timestamp() * 1000), "settings", row["workspace"], str(version)),
        subject=row["workspace"], key=row["workspace"], time=at,
        data={
            "workspace": row["workspace"], "account": row["account"], "version": version,
            "log_retention_days": 0 if erased else row["log_retention_days"],
            "activity_opt_out": True if erased else row["activity_opt_out"],
            "changed_at": rfc3339(at), "erased": erased,
        },
    )  # fmt: skip


def publish_null(tx: Transaction, topic: topics.Topic, name: str) -> None:
    """Ends a key of a compacted topic: after the next compaction nothing of it is left there."""
    key = name.encode()
    tx.publish_raw(OutboxRow(shard_of(key, None), topic.name, None, key, None))


async def credit(batch: Batch, tx: Transaction) -> None:
    """Notes what each workspace has, for the warning before a deletion."""
    latest: dict[str, Any] = {}
    for received in batch.events:
        data = received.event.data
        if data.workspace not in latest or latest[data.workspace].version < data.version:
            latest[data.workspace] = data
    gone = [name for name, data in latest.items() if data.erased]
    rows = [(name, data.version, int(data.balance_pico)) for name, data in sorted(latest.items()) if not data.erased]
    if gone:
        await directory_store.forget_credit(tx.db, gone)
    if rows:
        await directory_store.put_credit(tx.db, rows)
