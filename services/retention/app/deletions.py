"""What a deletion does: the last word, tombstones, orders, the mail that says that it is done."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from datetime import timedelta
from typing import Any

from services.retention import case as machine
from services.retention import store, subjects
from services.retention.app.certify import certify
from services.retention.app.directory import (
    publish_key_settings,
    publish_member_settings,
    publish_null,
    publish_settings,
)
from services.retention.app.mails import dollars, listed, mail, ms
from services.retention.app.receipts import plain
from services.retention.app.rights import ADDRESSES
from services.retention.app.room import Room
from services.retention.directory import store as directory_store
from shared.contract import events, topics
from shared.contract.ids import derived_id
from shared.mesh import Transaction
from shared.mesh.transaction import rfc3339
from shared.policy import policy


async def ask_last_word(
    room: Room, tx: Transaction, row: store.Row, request: str, channel: str, known: subjects.Known
) -> None:
    """The mail that asks for the last word, and says what would be lost."""
    scope, target, case = row.case.scope, row.target, row.case
    assert target is not None and row.account is not None
    everybody = subjects.circle(scope, target, known, {})
    until = tx.now + room.timing.lapse
    row.case = replace(case, lapses_at=until)
    facts = {
        "scope": scope,
        "asked_by": channel,
        "until": rfc3339(until),
        "unused_credit": dollars(subjects.lost_pico(everybody, known)),
        "workspaces": listed(everybody.of("workspace")),
        "without_administrator": listed(subjects.left_alone(scope, target, known)),
    }
    await mail(
        tx, row, f"requested-{request}", "verify" if channel == "support" else "erasure_requested", account=row.account,
        facts=facts, request=request, code_until=until,
    )  # fmt: skip


async def concerns(room: Room, tx: Transaction, row: store.Row, successors: Mapping[str, str]) -> set[str] | None:
    """Finds out whom a deletion is about, for the step that confirms it. Returns the holders that have not yet put aside
    what a hold keeps; None when one order cannot carry so many."""
    assert row.target is not None, "a case that waits knows for whom"
    known = await directory_store.known_around(tx.db, row.case.scope, row.target)
    circle = subjects.circle(row.case.scope, row.target, known, successors)
    if subjects.too_many(circle.subjects):
        return None
    row.circle = circle
    return await store.being_placed(tx.db, [room.pseudonym(kind, name) for kind, name in circle.subjects])


async def do(room: Room, tx: Transaction, row: store.Row, deed: machine.Deed) -> None:
    """What follows from a step of a deletion. Raises `Untrue` rather than certifying what is not."""
    match deed:
        case machine.Entomb():
            await _entomb(room, tx, row)
        case machine.OrderErasure(holders, epoch, after):
            _order(tx, row, "erase", epoch, holders, after)
        case machine.OrderScan(action, epoch):
            _order(tx, row, action, epoch, (machine.AUDITOR,))
        case machine.Tell():
            await _tell(room, tx, row)
        case machine.Certify():
            await certify(room, tx, row)
            tx.count("cases_certified")


def _order(
    tx: Transaction, row: store.Row, action: str, epoch: int, holders: tuple[str, ...], after: Any = None
) -> None:
    """An order; sent again, it is the same event."""
    case = row.case
    assert case.confirmed_at is not None
    tx.publish(
        topics.PRIVACY_COMMANDS, events.PrivacyOrdered,
        id=derived_id(ms(case.confirmed_at), action, case.id, str(epoch), *holders), subject=case.id, key=case.id,
        data={
            "case": case.id, "epoch": epoch, "action": action, "holders": list(holders), "scope": case.scope,
            "sealed": row.sealed, "confirmed_at": rfc3339(case.confirmed_at), "after": plain(after or {}),
        },
    )  # fmt: skip
    tx.count(f"orders_{action}")


async def _entomb(room: Room, tx: Transaction, row: store.Row) -> None:
    """Written before anything is destroyed: who is erased, as keyed hashes; who it was, under the case's own key."""
    case, circle = row.case, row.circle
    assert circle is not None and row.account is not None
    assert case.confirmed_at is not None
    at = case.confirmed_at
    row.sealed = await room.seal_subjects(case.id, circle.subjects, tx.now)
    row.sealed_account = await room.seal_account(case.id, row.account)
    row.subjects = len(circle.subjects)
    graves = [(room.pseudonym(kind, name), kind) for kind, name in circle.subjects]
    await store.add_tombstones(tx.db, case.id, graves, at, at + policy().tombstone_life)
    await store.link_holds(tx.db, case.id)
    for grave, kind in graves:
        tx.publish(
            topics.TOMBSTONES, events.SubjectErased,
            id=derived_id(ms(at), "tombstone", case.id, grave), subject=grave.hex(), key=grave.hex(), time=at,
            data={"hash": grave.hex(), "kind": kind, "case": case.id, "at": rfc3339(at)},
        )  # fmt: skip
    if case.kind == "child_report":
        # Before the erasure takes the address away.
        _order(tx, row, "bar", 1, (ADDRESSES,))
    for key in circle.of("key"):
        tx.publish(
            topics.KEY_REFUSALS, events.KeyRefused,
            id=derived_id(ms(at), "refused", case.id, key), subject=key, key=key, time=at,
            data={"key": key, "refused": True, "since": rfc3339(at)},
        )  # fmt: skip
    for settings in await directory_store.settings_of(tx.db, circle.of("workspace")):
        publish_settings(tx, settings, erased=True)
    for settings in await directory_store.restricted_keys(tx.db, circle.of("key")):
        publish_key_settings(tx, settings, erased=True)
    for settings in await directory_store.restrictions_of(tx.db, circle.of("member")):
        publish_member_settings(tx, settings, erased=True)
    for workspace, successor in circle.handed_over.items():
        await directory_store.promote(tx.db, workspace, successor)
    tx.count("subjects_erased", len(graves))


async def _tell(room: Room, tx: Transaction, row: store.Row) -> None:
    """The mail that says that it is done, and the end of what compacted topics still say."""
    case = row.case
    assert row.sealed is not None and row.sealed_account is not None and case.confirmed_at is not None
    gone = await room.open_subjects(case.id, row.sealed)
    await room.destroy_subject_keys(gone)
    for kind, name in gone:
        if kind == "workspace":
            publish_null(tx, topics.SETTINGS, name)
        elif kind == "key":
            publish_null(tx, topics.KEY_REFUSALS, name)
            publish_null(tx, topics.SETTINGS, f"key/{name}")
        elif kind == "member":
            publish_null(tx, topics.SETTINGS, f"member/{name}")
    account = await room.open_account(case.id, row.sealed_account)
    facts = {
        "scope": case.scope,
        "requested": rfc3339(case.requested_at),
        "confirmed": rfc3339(case.confirmed_at),
        "certified_by": rfc3339(case.confirmed_at + timedelta(days=policy().erasure_cap_days)),
    }
    # Whoever is erased has no address any more: notifications kept it in the case's envelope.
    whose = None if ("account", account) in gone else account
    await mail(tx, row, f"completed-{case.id}", "erasure_completed", account=whose, facts=facts)
    tx.count("cases_completed")
