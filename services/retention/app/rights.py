"""What a right's case does: asks for proofs, orders holders about, answers, ends."""

from __future__ import annotations

from typing import Any

from services.retention import case as machine
from services.retention import clocks, right, store, subjects, wish
from services.retention.app.mails import mail, ms
from services.retention.app.room import Room
from services.retention.directory import store as directory_store
from services.retention.wish import FIELDS, Details
from shared.contract import events, topics
from shared.contract.ids import derived_id
from shared.mesh import Transaction
from shared.mesh.transaction import rfc3339
from shared.policy import policy
from shared.privacy.errands import CONTENTS

PACK = "package"
ADDRESSES = "notifications"
"""Who keeps the addresses, and judges the proofs."""
ANSWERS = (
    "erasure_completed", "copy_ready", "categories_ready", "corrected", "opted_out", "answered", "denied",
)  # fmt: skip
"""Mails that answer a request in substance."""
CODES = ("verify", "erasure_requested", "verify_identity", "address_old")
"""Mails that bring the account's address a code."""
MAILS = 3
"""Mails with a code for one case; whoever asks more often joins it without another one."""


def begin(kind: str, details: Details) -> right.Begin:
    """The step that sets a case going whose wish is clear."""
    place = FIELDS.get(details.field or "")
    return right.Begin(not wish.waits_for_opener(kind, details), None if place is None else place.holder)


async def do(room: Room, tx: Transaction, row: store.Row, deed: right.RightDeed) -> None:
    """What follows from a step of a right's case."""
    match deed:
        case right.AskProofs(of):
            await ask(room, tx, row, of)
        case right.OrderErrand(action, holders, epoch):
            await _order(room, tx, row, action, holders, epoch)
        case right.Pack():
            await tx.enqueue(PACK, row.case.id, {"case": row.case.id})
        case right.OptOut():
            assert row.account is not None
            await directory_store.opt_out_of_sale(tx.db, row.account, tx.now)
        case right.Drop():
            await store.close_packages(tx.db, [row.case.id], tx.now)
            if row.case.kind == "rectification" and "other" in row.case.needed:
                _end_proofs(tx, row)
        case machine.Answer(template):
            await _answer(room, tx, row, template)
        case _:
            raise AssertionError("a deed of another machine")


async def may_send_code(tx: Transaction, row: store.Row) -> bool:
    """Whether another mail with a code may go out for a case."""
    return await store.coded(tx.db, row.case.id, CODES) < MAILS


async def acknowledge(
    room: Room, tx: Transaction, row: store.Row, request: str, details: Details | None = None
) -> None:
    """The mail that says that a request is here, and by when it is answered; nobody's, when there is nobody to write to.
    `details`: what this request said, if it is not for the case's first one alone."""
    details = details or await room.open_details(row.case.id, row.details)
    whose, address = await recipient(room, row, details, tx)
    if whose is None and address is None:
        await store.acknowledge(tx.db, request, tx.now)
        return
    due = clocks.answer_by(row.case, request, policy())
    facts = {
        "kind": row.case.kind, "received": rfc3339(clocks.received(row.case, request)), "answer_by": rfc3339(due),
    }  # fmt: skip
    await mail(
        tx, row, f"received-{request}", "acknowledgement", facts=facts, account=whose, address=address, request=request
    )


async def recipient(room: Room, row: store.Row, details: Details, tx: Transaction) -> tuple[str | None, str | None]:
    """(account, sealed address) of whom a case is answered. A report about a child is answered to who reports it: the account
    may be the child's."""
    if row.account is not None and row.case.kind != "child_report":
        return row.account, None
    return None, None if details.reply_to is None else await room.seal_out(details.reply_to, tx.now)


async def ask(room: Room, tx: Transaction, row: store.Row, of: tuple[str, ...]) -> None:
    """Mails with codes: to the account's address, to a new one."""
    case, request = row.case, row.request or row.case.id
    if not await may_send_code(tx, row):
        await acknowledge(room, tx, row, request)
        return
    details = await room.open_details(case.id, row.details)
    assert row.account is not None and case.lapses_at is not None
    facts = {"kind": case.kind, "received": rfc3339(case.requested_at), "until": rfc3339(case.lapses_at)}
    facts |= {} if details.representative is None else {"asked_by": "agent"}
    moves = case.kind == "rectification" and details.field == "address"
    if "account" in of:
        await mail(
            tx, row, f"requested-{request}", "address_old" if moves else "verify_identity", account=row.account, facts=facts,
            request=request, code_until=case.lapses_at,
        )  # fmt: skip
    if "other" in of:
        assert details.value is not None
        await mail(
            tx, row, f"address-{request}", "address_new", account=row.account,
            address=await room.seal_out(details.value, tx.now), facts=facts, request=request, code_until=case.lapses_at,
        )  # fmt: skip


async def _order(
    room: Room, tx: Transaction, row: store.Row, action: str, holders: tuple[str, ...], epoch: int
) -> None:
    """An order; sent again, it is the same event."""
    case = row.case
    assert row.account is not None and row.target is not None and case.verified_at is not None
    details = await room.open_details(case.id, row.details)
    arguments: dict[str, str] = {}
    value = None
    if action == "rectify":
        place = FIELDS[details.field or ""]
        about = [(place.subject, details.key or row.target)]
        arguments = {"table": place.table, "column": place.column}
        value = await room.seal_right(case.id, details.value or "", tx.now)
    else:
        if row.sealed is None:
            known = await directory_store.known_around(tx.db, case.scope, row.target)
            about = [*subjects.circle(case.scope, row.target, known, {}).subjects]
        else:
            about = await room.open_subjects(case.id, row.sealed)
        arguments = {name: at for name in ("since", "until") if (at := getattr(details, name)) is not None}
        if case.kind == "access:categories":
            arguments["only"] = CONTENTS
    # Whoever was erased since the first order is in no copy any more: with them in it, no holder would write its part.
    gone = await room.tombstones.erased(about, tx) if action == "export" else set()
    if row.sealed is None or gone:
        about = [subject for subject in about if subject not in gone]
        row.sealed = await room.seal_subjects(case.id, tuple(about), tx.now)
        row.subjects = len(about)
    await store.note_parts(tx.db, case.id, there=True)
    data: dict[str, Any] = {
        "case": case.id, "epoch": epoch, "action": action, "holders": list(holders), "scope": case.scope,
        "sealed": row.sealed, "value": value, "arguments": arguments,
    }  # fmt: skip
    tx.publish(
        topics.PRIVACY_COMMANDS, events.PrivacyOrdered,
        id=derived_id(ms(case.verified_at), action, case.id, str(epoch), *holders), subject=case.id, key=case.id, data=data,
    )  # fmt: skip
    tx.count(f"orders_{action}")


def _end_proofs(tx: Transaction, row: store.Row) -> None:
    """The address is not to be changed any more, whatever code still comes back."""
    case = row.case
    tx.publish(
        topics.PRIVACY_COMMANDS, events.PrivacyOrdered,
        id=derived_id(ms(case.requested_at), "end_proofs", case.id), subject=case.id, key=case.id,
        data={"case": case.id, "epoch": 1, "action": "end_proofs", "holders": [ADDRESSES]},
    )  # fmt: skip


async def _answer(room: Room, tx: Transaction, row: store.Row, template: str) -> None:
    """The mail with the answer: its link, if there is one, goes to the person alone."""
    case = row.case
    details = await room.open_details(case.id, row.details)
    whose, address = await recipient(room, row, details, tx)
    if whose is None and address is None:
        row.unheard = True
        return
    facts = {
        "kind": case.kind, "scope": case.scope, "reason": case.reason or "", "field": details.field or "",
        "received": rfc3339(case.requested_at), "until": "" if row.link_until is None else rfc3339(row.link_until),
        "corrected": rfc3339(tx.now), "recorded": rfc3339(tx.now),
    }  # fmt: skip
    link = None if row.link is None else await room.seal_out(row.link, tx.now)
    await mail(tx, row, f"answered-{case.id}", template, account=whose, address=address, link=link, facts=facts)


async def tell_representative(room: Room, tx: Transaction, row: store.Row, status: str, reason: str | None) -> None:
    """How a case stands, to who asked for somebody else: no word of the person."""
    if row.details is None or row.case.key_destroyed:
        return
    details = await room.open_details(row.case.id, row.details)
    if details.representative is None or details.reply_to is None:
        return
    await mail(
        tx, row, f"status-{row.case.id}-{row.version}", "status", address=await room.seal_out(details.reply_to, tx.now),
        facts={
            "state": status, "reason": reason or "", "kind": row.case.kind, "received": rfc3339(row.case.requested_at),
            "answer_by": rfc3339(clocks.answer_by(row.case, row.case.id, policy())),
        },
    )  # fmt: skip
