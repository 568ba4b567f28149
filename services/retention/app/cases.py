"""Cases: what people ask for, what holders and the auditor answer, and what time brings."""

from __future__ import annotations

import hmac
import json
import logging
from collections.abc import Collection, Iterable, Mapping, Sequence
from datetime import datetime, timedelta
from typing import Any

from services.retention import case as machine
from services.retention import clocks, codes, store, subjects
from services.retention.app import holds
from services.retention.app.certify import Untrue, certify
from services.retention.app.directory import publish_null, publish_settings
from services.retention.app.receipts import kept, plain
from services.retention.app.room import Room
from services.retention.case import Case, Deed, Happening, World
from services.retention.data_map import RECORDS
from shared.contract import events, topics
from shared.contract.ids import derived_id
from shared.mesh import Batch, Received, Transaction
from shared.mesh.transaction import rfc3339
from shared.policy import policy

log = logging.getLogger("steward.retention")

_MAILS = 3
"""Mails with a code for one case; whoever asks more often joins it without another one."""
_SEALED_MAX = 380_000
_CHUNK = 200
_PICO_CENT = 10**10


def _ms(instant: datetime) -> int:
    return int(instant.timestamp() * 1000)


# --- what people ask for ------------------------------------------------------------------------------------------


async def requested(room: Room, batch: Batch, tx: Transaction) -> None:
    """Takes requests, confirmations and withdrawals."""
    for received in batch.events:
        match received.event.type:
            case events.PrivacyRequested.TYPE:
                await _request(room, received, tx)
            case events.PrivacyConfirmed.TYPE:
                await _confirm(room, received, tx)
            case events.PrivacyWithdrawn.TYPE:
                row = await _theirs(room, received, tx)
                if row is not None:
                    await happen(room, tx, row, machine.Withdrawn())


async def _request(room: Room, received: Received, tx: Transaction) -> None:
    event = received.event
    data = event.data
    if await store.case_of_request(tx.db, event.id) is not None:
        return
    pseudonym = room.pseudonym(data.scope, data.target)
    gone = await room.tombstones.erased({(data.scope, data.target), ("account", data.account)}, tx)
    of_the_erased = data.scope != "account" and ("account", data.account) in gone
    if gone and (of_the_erased or await store.open_case_of(tx.db, pseudonym) is None):
        # Asked before, and done: this is an old copy, read again after a restore. No row names them once more.
        tx.count("requests_of_erased")
        return
    known = await store.known_around(tx.db, data.scope, data.target)
    if subjects.stranger(data.scope, data.account, data.target, known):
        tx.refuse(received.record, "not_theirs", "the directory knows another owner of what is to be erased")
        return
    at = min(event.time, tx.now)
    wanted = Case(event.id, data.scope, at, channel=data.channel)
    if await store.add_case(tx.db, wanted, pseudonym, data.account, data.target):
        row = (await store.lock_cases(tx.db, [event.id]))[event.id]
        tx.count("cases_opened")
    else:
        (row,) = (await store.lock_cases(tx.db, [await _open_case(tx, pseudonym)])).values()
        tx.count("cases_joined")
        if at < row.case.requested_at:
            # The earliest wish's clocks are the case's.
            row.case = machine.asked_earlier(row.case, at)
    code_hash = None
    sent = await store.codes(tx.db, row.case.id)
    if row.case.state == "requested" and len(sent) < _MAILS:
        code = codes.draw(room.random_bits)
        code_hash = room.code_hash(row.case.id, code)
        await store.add_request(tx.db, event.id, row.case.id, data.channel, at, code_hash)
        await _ask(room, tx, row, event.id, data, code, known)
    else:
        await store.add_request(tx.db, event.id, row.case.id, data.channel, at, None)
    await _keep(room, tx, [row])


async def _open_case(tx: Transaction, pseudonym: bytes) -> str:
    found = await store.open_case_of(tx.db, pseudonym)
    assert found is not None, "an open case that refuses a second one is there"
    return found


async def _ask(
    room: Room, tx: Transaction, row: store.Row, request: str, data: Any, code: str, known: subjects.Known
) -> None:
    """The mail that asks for the last word, and says what would be lost."""
    everybody = subjects.circle(data.scope, data.target, known, {})
    facts = {
        "scope": data.scope,
        "until": rfc3339(row.case.requested_at + room.timing.lapse),
        "unused_credit": dollars(subjects.lost_pico(everybody, known)),
        "workspaces": _listed(everybody.of("workspace")),
        "without_administrator": _listed(subjects.left_alone(data.scope, data.target, known)),
    }
    await _mail(
        tx, row, f"requested-{request}", "verify" if data.channel == "support" else "erasure_requested",
        account=data.account, facts=facts, code=await room.seal_out(code, tx.now),
    )  # fmt: skip


def dollars(pico: int) -> str:
    """An amount for a mail, to the cent, rounded down: US dollars."""
    cents = pico // _PICO_CENT
    return f"{cents // 100}.{cents % 100:02d} USD"


def _listed(names: Collection[str]) -> str:
    """Names for a mail; many are counted."""
    shown = ", ".join(sorted(names))
    return shown if len(shown) <= 200 else f"{len(names)} workspaces"


async def _mail(
    tx: Transaction, row: store.Row, cause: str, template: str, *, account: str | None, facts: Mapping[str, str],
    code: str | None = None,
) -> None:  # fmt: skip
    case = row.case
    await store.ask_mail(tx.db, cause, case.id, template, tx.now)
    tx.publish(
        topics.MESSAGES, events.MessageRequested,
        id=derived_id(_ms(case.requested_at), "message", cause), subject=case.id, key=case.id,
        data={
            "cause": cause, "kind": "privacy", "template": template, "account": account, "case": case.id, "code": code,
            "facts": {name: value for name, value in facts.items() if value},
        },
    )  # fmt: skip


async def _theirs(room: Room, received: Received, tx: Transaction) -> store.Row | None:
    """The locked case that an event of its account is about; refused if there is none that waits for this account."""
    data = received.event.data
    case_id = await store.case_of_request(tx.db, data.case)
    row = None if case_id is None else (await store.lock_cases(tx.db, [case_id])).get(case_id)
    if row is None or (row.case.state == "requested" and row.account != data.account):
        if await room.tombstones.erased([("account", data.account)], tx):
            tx.count("requests_of_erased")
            return None
        # Nobody learns whether a case of somebody else's is there, and no attempt of theirs counts against it.
        tx.refuse(received.record, "unknown_case", "no case of this account waits under that id")
        return None
    return row if row.case.state == "requested" else None


async def _confirm(room: Room, received: Received, tx: Transaction) -> None:
    row = await _theirs(room, received, tx)
    if row is None:
        return
    data = received.event.data
    said = room.code_hash(row.case.id, data.code)
    right = any(hmac.compare_digest(said, one) for one in await store.codes(tx.db, row.case.id))
    if not right:
        tx.count("codes_wrong")
        await happen(room, tx, row, machine.Confirmed(False))
        return
    await confirm(room, tx, row, data.successors, received.record)


async def confirm(
    room: Room, tx: Transaction, row: store.Row, successors: Mapping[str, str], record: Any = None
) -> None:
    """The last word was said: from here on there is no way back."""
    assert row.target is not None, "a case that waits knows for whom"
    known = await store.known_around(tx.db, row.case.scope, row.target)
    circle = subjects.circle(row.case.scope, row.target, known, successors)
    if len(json.dumps(circle.subjects)) * 4 // 3 > _SEALED_MAX and record is not None:
        tx.refuse(record, "too_many_subjects", "an order cannot carry so many; erase workspaces one by one first")
        return
    row.circle = circle
    hashes = [room.pseudonym(kind, name) for kind, name in circle.subjects]
    deferred = await store.being_placed(tx.db, hashes)
    await happen(room, tx, row, machine.Confirmed(True), deferred=deferred)


# --- what the mesh answers ----------------------------------------------------------------------------------------


async def answered(room: Room, batch: Batch, tx: Transaction) -> None:
    """Takes holders' receipts and the auditor's verdicts. Nobody signs for somebody else.

    What was said is kept first, then cases go on: each is written once, however many receipts of it a batch brings.
    """
    rows = await store.lock_cases(tx.db, [received.event.data.case for received in batch.events])
    receipts: list[tuple[str, str, str, int, str, Any]] = []
    scans: list[tuple[str, str, int, Any]] = []
    steps: list[tuple[store.Row, Happening]] = []
    for received in batch.events:
        event = received.event
        data = event.data
        writer = machine.AUDITOR if event.type == events.PrivacyScanned.TYPE else data.holder
        if event.source != writer:
            tx.refuse(received.record, "wrong_source", "a receipt is written by its holder, a scan by the auditor")
            continue
        row = rows.get(data.case)
        if event.type == events.PrivacyDone.TYPE and data.action in ("hold", "release"):
            if not await holds.receive(room, data, tx):
                tx.refuse(received.record, "unknown_case", "no such hold is known here")
            continue
        if row is None:
            tx.refuse(received.record, "unknown_case", "no such case is known here")
            continue
        if event.type == events.PrivacyScanned.TYPE:
            stores = holds.seen(_stores(data), await store.holds_on(tx.db, data.case))
            scans.append((data.case, data.action, data.epoch, stores))
            findings = tuple(machine.Finding(one.holder, _trusted(one)) for one in data.stores)
            steps.append((row, machine.Scan(data.action, data.epoch, findings)))
        else:
            receipts.append((data.case, data.holder, data.action, data.epoch, "", kept(data)))
            if data.action == "erase":
                left = sum(one.remaining for one in data.treated)
                steps.append((row, machine.Receipt(data.holder, data.epoch, plain(data.offsets), left)))
    if receipts:
        await store.add_receipts(tx.db, receipts, tx.now)
    if scans:
        await store.add_scans(tx.db, scans, tx.now)
        await room.expect([case for case, _, _, _ in scans])
    await _happen_each(room, tx, steps)


def _stores(data: Any) -> list[dict[str, Any]]:
    return [
        {
            "holder": one.holder, "store": one.store, "verdict": one.verdict, "count": one.count, "ground": one.ground,
            "not_after": None if one.not_after is None else rfc3339(one.not_after),
        }
        for one in data.stores
    ]  # fmt: skip


def _trusted(one: Any) -> Any:
    """A verdict, as far as it says enough: what is kept without a ground or an end has not been judged."""
    lacks = one.verdict == "retained" and (one.ground is None or one.not_after is None)
    return "not_scanned" if lacks else one.verdict


async def mailed(room: Room, batch: Batch, tx: Transaction) -> None:
    """Notes what became of mails; the accepted answer stops its clock."""
    told: list[tuple[str, bool]] = []
    for received in batch.events:
        data = received.event.data
        mail = await store.settle_mail(tx.db, data.cause, data.outcome, data.at)
        if mail is not None and mail["template"] == "erasure_completed":
            told.append((mail["case_id"], data.outcome == "accepted"))
    rows = await store.lock_cases(tx.db, [case for case, _ in told]) if told else {}
    await _happen_each(room, tx, [(rows[case], machine.Answered(ok)) for case, ok in told if case in rows])


# --- what time brings ---------------------------------------------------------------------------------------------


async def tick(room: Room, now: datetime, tx: Transaction) -> None:
    """Orders that are due again, lapsed requests, keys that are over, accounts whose time after closing is over."""
    due = await store.lock_due(tx.db, now, _CHUNK)
    await _happen_each(room, tx, [(row, machine.Tick()) for row in due.values()])
    closed = await store.closed_accounts(tx.db, now - (clocks.closes_at(now, policy()) - now), _CHUNK)
    if closed:
        await _close(room, [(one["account"], one["closed_at"]) for one in closed], tx)


async def _close(room: Room, closed: Sequence[tuple[str, datetime]], tx: Transaction) -> None:
    """Closed accounts go unasked. An own unconfirmed request, if there is one, is what closes an account."""
    of_account = {account: await _closure(room, account, closed_at, tx) for account, closed_at in closed}
    rows = await store.lock_cases(tx.db, of_account.values())
    await room.expect([id for id, row in rows.items() if row.case.state == "requested" and row.target], at=tx.now)
    for account, closed_at in closed:
        row = rows.get(of_account[account])
        if row is None or row.case.state != "requested":
            continue
        if row.target is None:
            await happen(room, tx, row, machine.Withdrawn())  # who asked was erased meanwhile, and so is this account
        else:
            row.case = machine.closing(row.case, closed_at)
            await confirm(room, tx, row, {})
    await store.note_closures(tx.db, of_account)


async def _closure(room: Room, account: str, closed_at: datetime, tx: Transaction) -> str:
    """The case that closes an account: a new one, or the one that is open."""
    pseudonym = room.pseudonym("account", account)
    case_id = derived_id(_ms(closed_at), "closure", pseudonym)
    case = Case(case_id, "account", closed_at, kind="closure")
    if not await store.add_case(tx.db, case, pseudonym, account, account):
        return await _open_case(tx, pseudonym)
    await store.add_request(tx.db, case_id, case_id, "settings", closed_at, None)
    tx.count("cases_opened")
    return case_id


# --- what is done about it ----------------------------------------------------------------------------------------


async def happen(
    room: Room, tx: Transaction, row: store.Row, what: Happening, *, deferred: Iterable[str] | None = None
) -> None:
    """One step of a case, with all that follows from it, in this transaction."""
    if deferred is None:
        deferred = (await store.deferring(tx.db, [row.case.id])).get(row.case.id, ())
    await _step(room, tx, row, what, deferred)
    await _keep(room, tx, [row])


async def _happen_each(room: Room, tx: Transaction, steps: Sequence[tuple[store.Row, Happening]]) -> None:
    """Steps of many cases, one after the other; each case is written once, at the end."""
    if not steps:
        return
    rows = {row.case.id: row for row, _ in steps}
    deferred = await store.deferring(tx.db, rows)
    for row, what in steps:
        await _step(room, tx, row, what, deferred.get(row.case.id, ()))
    await _keep(room, tx, list(rows.values()))


async def _step(room: Room, tx: Transaction, row: store.Row, what: Happening, deferred: Iterable[str]) -> None:
    world = World(tx.now, room.holders, room.timing, frozenset(deferred))
    before = row.case
    row.case, deeds = machine.step(before, what, world)
    for deed in deeds:
        try:
            await _do(room, tx, row, deed)
        except Untrue as error:
            log.error("case %s cannot be certified: %s", before.id, error)
            row.case = machine.unproved(before, tx.now)


async def _keep(room: Room, tx: Transaction, rows: Sequence[store.Row]) -> None:
    puts = []
    for row in rows:
        case = row.case
        reasons = case.needs_person(tx.now, room.timing)
        for reason in set(reasons) - set(row.needs_person):
            log.error("case %s needs a person: %s", case.id, reason)
            tx.count("cases_escalated")
        row.needs_person = reasons
        expires_at = None if case.ended_at is None else case.ended_at + RECORDS
        puts.append(store.Put(row, clocks.due_at(case, policy()), machine.next_at(case, room.timing), expires_at))
    await store.put_cases(tx.db, puts)


async def _do(room: Room, tx: Transaction, row: store.Row, deed: Deed) -> None:
    match deed:
        case machine.Entomb():
            await _entomb(room, tx, row)
        case machine.Forget():
            row.account = row.target = None
            await store.forget_codes(tx.db, row.case.id)
            tx.count(f"cases_{row.case.state}")
        case machine.OrderErasure(holders, epoch, after):
            _order(tx, row, "erase", epoch, holders, after)
        case machine.OrderScan(action, epoch):
            _order(tx, row, action, epoch, (machine.AUDITOR,))
        case machine.Tell():
            await _tell(room, tx, row)
        case machine.Certify():
            await certify(room, tx, row)
            tx.count("cases_certified")
        case machine.DestroyKey():
            await room.destroy_case_key(row.case.id)
            row.sealed = row.sealed_account = None


def _order(
    tx: Transaction, row: store.Row, action: str, epoch: int, holders: tuple[str, ...], after: Any = None
) -> None:
    """An order; sent again, it is the same event."""
    case = row.case
    assert case.confirmed_at is not None
    tx.publish(
        topics.PRIVACY_COMMANDS, events.PrivacyOrdered,
        id=derived_id(_ms(case.confirmed_at), action, case.id, str(epoch), *holders), subject=case.id, key=case.id,
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
            id=derived_id(_ms(at), "tombstone", case.id, grave), subject=grave.hex(), key=grave.hex(), time=at,
            data={"hash": grave.hex(), "kind": kind, "case": case.id, "at": rfc3339(at)},
        )  # fmt: skip
    for key in circle.of("key"):
        tx.publish(
            topics.KEY_REFUSALS, events.KeyRefused,
            id=derived_id(_ms(at), "refused", case.id, key), subject=key, key=key, time=at,
            data={"key": key, "refused": True, "since": rfc3339(at)},
        )  # fmt: skip
    for settings in await store.settings_of(tx.db, circle.of("workspace")):
        publish_settings(tx, settings, erased=True)
    for workspace, successor in circle.handed_over.items():
        await store.promote(tx.db, workspace, successor)
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
    account = await room.open_account(case.id, row.sealed_account)
    facts = {
        "scope": case.scope,
        "requested": rfc3339(case.requested_at),
        "confirmed": rfc3339(case.confirmed_at),
        "certified_by": rfc3339(case.confirmed_at + timedelta(days=policy().erasure_cap_days)),
    }
    # Whoever is erased has no address any more: notifications kept it in the case's envelope.
    whose = None if ("account", account) in gone else account
    await _mail(tx, row, f"completed-{case.id}", "erasure_completed", account=whose, facts=facts)
    tx.count("cases_completed")
