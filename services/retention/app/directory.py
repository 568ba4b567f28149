"""Accounts, workspaces, members, keys and settings, as the gateway says them."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import datetime, timedelta
from typing import Any

from services.retention.app.room import Room
from services.retention.directory import store as directory_store
from services.retention.subjects import ADMINISTRATOR
from shared.contract import events, topics
from shared.contract.base import Event
from shared.contract.ids import derived_id
from shared.mesh import Batch, Received, Transaction
from shared.mesh.store import OutboxRow
from shared.mesh.transaction import rfc3339, shard_of
from shared.policy import policy

_OF_KEYS = (events.KeyCreated.TYPE, events.KeyRevoked.TYPE)
_REPUBLISHED = 1_000
# What is said of whose settings are over.
_OVER = {"log_retention_days": 0, "activity_opt_out": True}


async def learn(room: Room, batch: Batch, tx: Transaction) -> None:
    """Takes in who is who. Rows lead to each other by ids alone, so that no event waits for another one."""
    db = tx.db
    keys = {received.event.data.key for received in batch.events if received.event.type in _OF_KEYS}
    if any(received.event.type == events.MemberRestricted.TYPE for received in batch.events):
        await directory_store.own_restrictions(db)
    elif keys:
        await directory_store.share_restrictions(db)
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
            case events.MemberRestricted.TYPE:
                await _restrict(data, at, tx)
            case events.MemberAdded.TYPE:
                await directory_store.put_member(db, data.account, data.workspace, data.member, data.role)
            case events.MemberRemoved.TYPE:
                await directory_store.remove_member(db, data.workspace, data.member)
            case events.KeyCreated.TYPE:
                name = await room.reseal_name(data.account, data.name, tx, where="api_key.name")
                await directory_store.put_key(db, data.account, data.workspace, data.key, data.member, name, at)
            case events.KeyRevoked.TYPE:
                await directory_store.revoke_key(db, data.account, data.workspace, data.key, data.member, at)
    if keys:
        # A key that comes after its maker's restriction is under it as well.
        for row in await directory_store.restricted_keys(db, sorted(keys)):
            publish_key_settings(tx, row)


async def _restrict(data: Any, at: datetime, tx: Transaction) -> None:
    """A member's own restriction comes into force: of its activity, and of whatever is logged of its keys, in every
    workspace. No administrator is asked."""
    days, opt_out = data.log_retention_days, data.activity_opt_out
    if not await directory_store.put_restriction(tx.db, data.member, data.version, days, opt_out, at):
        tx.count("settings_stale")
        return
    for row in await directory_store.restrictions_of(tx.db, [data.member]):
        publish_member_settings(tx, row)
    for row in await directory_store.keys_restricted_by(tx.db, data.member):
        publish_key_settings(tx, row)
    tx.count("restrictions_in_force")


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
    fields = ("workspace", "account", "log_retention_days", "activity_opt_out")
    _say(tx, events.SettingsChanged, "settings", row["workspace"], row["workspace"], fields, row, erased)


def publish_key_settings(tx: Transaction, row: Any, *, erased: bool = False) -> None:
    """Says what a key's maker wants of its log: as it is, under the id that it had, or that it is over."""
    fields = ("key", "account", "log_retention_days")
    _say(tx, events.KeySettingsChanged, "key-settings", row["key"], f"key/{row['key']}", fields, row, erased)


def publish_member_settings(tx: Transaction, row: Any, *, erased: bool = False) -> None:
    """Says what a member wants of its activity: as it is, under the id that it had, or that it is over."""
    fields = ("member", "activity_opt_out")
    _say(
        tx,
        events.MemberSettingsChanged,
        "member-settings",
        row["member"],
        f"member/{row['member']}",
        fields,
        row,
        erased,
    )


def _say(
    tx: Transaction,
    model: type[Event],
    kind: str,
    subject: str,
    key: str,
    fields: Sequence[str],
    row: Any,
    erased: bool,
) -> None:
    """Settings on their topic. What is over keeps nothing: the shortest log, no activity, and a version above all others."""
    version = row["version"] + 1 if erased else row["version"]
    at = tx.now if erased else row["changed_at"]
    said = {name: row[name] for name in fields}
    if erased:
        said |= {name: value for name, value in _OVER.items() if name in said}
    tx.publish(
        topics.SETTINGS, model,
        id=derived_id(int(at.timestamp() * 1000), kind, subject, str(version)), subject=subject, key=key, time=at,
        data=said | {"version": version, "changed_at": rfc3339(at), "erased": erased},
    )  # fmt: skip


async def republish(tx: Transaction, since: datetime) -> None:
    """Says all settings again that changed since an instant."""
    for changed, publish, name in (
        (directory_store.settings_changed_since, publish_settings, "workspace"),
        (directory_store.restrictions_changed_since, publish_member_settings, "member"),
        (directory_store.restricted_keys_changed_since, publish_key_settings, "key"),
    ):
        after = ""
        while rows := await changed(tx.db, since, after, _REPUBLISHED):
            for row in rows:
                publish(tx, row)
            after = rows[-1][name]


async def end_restrictions(now: datetime, tx: Transaction) -> None:
    """Restrictions of members who are nowhere any more end when the policy's cap is over, and with them what is said of
    them."""
    await directory_store.own_restrictions(tx.db)
    before = now - timedelta(days=policy().closure_cap_days)
    for row in await directory_store.end_restrictions(tx.db, now, before, _REPUBLISHED):
        publish_member_settings(tx, row, erased=True)
        publish_null(tx, topics.SETTINGS, f"member/{row['member']}")


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
