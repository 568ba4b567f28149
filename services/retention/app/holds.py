"""Legal holds: placed and released by named persons, kept by the holders, ended by their time."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from datetime import UTC, datetime
from typing import Any, get_args

from services.retention import hold as machine
from services.retention import store
from services.retention.app.receipts import kept
from services.retention.app.room import Room
from services.retention.data_map import RECORDS
from shared.contract import events, topics
from shared.contract.ids import derived_id
from shared.mesh import Received, Transaction
from shared.mesh.transaction import rfc3339

_CHUNK = 50
_COPIES = "mesh_held_record"
_TABLE = re.compile(r"[a-z_][a-z0-9_]{0,62}")
_GROUND = re.compile(r"[a-z_]{1,64}")
_KINDS = get_args(events.SubjectKind)


async def place(room: Room, received: Received, tx: Transaction) -> None:
    """An operator holds a subject's records in one table. What is wrong with the command is told as a dead letter."""
    event = received.event
    command = event.data
    told = command.arguments
    until = instant(told.get("until", ""))
    holder, table, kind = told.get("holder", ""), told.get("table", ""), told.get("kind", "")
    ground = told.get("ground", "")
    troubles = {
        "holder": holder in room.holders, "table": bool(_TABLE.fullmatch(table)), "kind": kind in _KINDS,
        "ground": bool(_GROUND.fullmatch(ground)), "until": until is not None and until > tx.now,
    }  # fmt: skip
    wrong = [name for name, right in troubles.items() if not right]
    if wrong:
        tx.refuse(received.record, "invalid", f"a hold's {' and '.join(wrong)} make no sense")
        return
    assert until is not None
    sealed = await room.seal_subjects(event.id, ((kind, command.target),), tx.now)
    placed = await store.add_hold(
        tx.db, machine.Hold(event.id, holder, until), table=table, kind=kind,
        pseudonym=room.pseudonym(kind, command.target), sealed=sealed, ground=ground, actor=command.actor,
        ticket=command.ticket, now=tx.now,
    )  # fmt: skip
    if placed:
        await store.link_cases(tx.db, event.id, room.pseudonym(kind, command.target))
        tx.count("holds_placed")
        await _go_on(room, event.id, tx)


def instant(text: str) -> datetime | None:
    """An instant of a command's arguments, UTC without a zone; None for what is none."""
    try:
        found = datetime.fromisoformat(text)
    except ValueError:
        return None
    return found if found.tzinfo is not None else found.replace(tzinfo=UTC)


async def release(room: Room, received: Received, tx: Transaction) -> None:
    """An operator lets a hold go."""
    command = received.event.data
    row = await store.lock_hold(tx.db, command.target)
    if row is None:
        tx.refuse(received.record, "unknown_hold", "no such hold is known here")
        return
    if row.hold.state in ("placing", "held"):
        await store.note_release(tx.db, row.hold.id, command.actor, command.ticket)
        row.hold = machine.released(row.hold, tx.now)
        tx.count("holds_released")
        await _step(room, row, tx)


async def receive(room: Room, data: Any, tx: Transaction) -> bool:
    """A holder's receipt for a hold. It stands with each case that erased the subject, too. False: no such hold."""
    row = await store.lock_hold(tx.db, data.case)
    if row is None or row.hold.holder != data.holder:
        return False
    before = row.hold
    row.hold = machine.receipt(before, data.action, data.epoch, tx.now)
    if row.hold is not before:
        if data.action == "hold":
            await store.note_held(tx.db, row.hold.id, sum(one.rows for one in data.treated))
        for case_id in await store.cases_of_hold(tx.db, row.hold.id):
            body = kept(data) | {"ground": row.ground, "until": rfc3339(row.hold.until)}
            await store.add_receipt(
                tx.db, case_id, data.holder, data.action, data.epoch, row.hold.id, body, tx.now
            )  # fmt: skip
        await _step(room, row, tx)
    return True


def seen(stores: Sequence[dict[str, Any]], placed: Iterable[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """The auditor's verdicts, with `held` where a hold keeps copies of the case's subjects.

    They are sealed under the hold's key and filed under a keyed hash: the auditor has neither, and can only call them clean.
    """
    held: dict[str, dict[str, Any]] = {}
    for one in sorted(placed, key=lambda one: one["until"]):
        if one["state"] in ("held", "releasing") and one["rows"]:
            before = held.get(one["holder"], {"count": 0})["count"]
            held[one["holder"]] = {
                "holder": one["holder"], "store": _COPIES, "verdict": "held", "count": before + one["rows"],
                "ground": one["ground"], "not_after": rfc3339(one["until"]),
            }  # fmt: skip
    others = [
        one for one in stores
        if not (one["store"] == _COPIES and one["verdict"] == "clean" and one["holder"] in held)
    ]  # fmt: skip
    return others + list(held.values())


async def tick(room: Room, now: datetime, tx: Transaction) -> None:
    """Orders that are due again, holds whose time is over, keys that are over."""
    for row in await store.lock_due_holds(tx.db, now, _CHUNK):
        await _step(room, row, tx)


async def _go_on(room: Room, hold_id: str, tx: Transaction) -> None:
    row = await store.lock_hold(tx.db, hold_id)
    assert row is not None
    await _step(room, row, tx)


async def _step(room: Room, row: store.HoldRow, tx: Transaction) -> None:
    row.hold, action, key_over = machine.tick(row.hold, tx.now, room.timing)
    if action is not None:
        _order(tx, row, action)
    if key_over:
        await room.destroy_case_key(row.hold.id)
        row.sealed = None
    await store.put_hold(tx.db, row, None if row.hold.ended_at is None else row.hold.ended_at + RECORDS)


def _order(tx: Transaction, row: store.HoldRow, action: str) -> None:
    hold = row.hold
    tx.publish(
        topics.PRIVACY_COMMANDS, events.PrivacyOrdered,
        id=derived_id(int(hold.until.timestamp() * 1000), action, hold.id, str(hold.epoch)), subject=hold.id, key=hold.id,
        data={
            "case": hold.id, "epoch": hold.epoch, "action": action, "holders": [hold.holder], "sealed": row.sealed,
            "arguments": {
                "hold": hold.id, "table": row.table, "ground": row.ground, "until": rfc3339(hold.until),
            },
        },
    )  # fmt: skip
    tx.count(f"orders_{action}")
