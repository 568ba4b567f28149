"""Cases go on: by what holders and the auditor answer, what becomes of mails, and what time brings."""

from __future__ import annotations

import logging
from collections.abc import Iterable, Mapping, Sequence
from datetime import datetime
from typing import Any, NamedTuple

from services.retention import case as machine
from services.retention import clocks, right, steps, store, wish
from services.retention.app import deletions, disclosures, holds, rights
from services.retention.app.certify import Untrue
from services.retention.app.forecast import speeds
from services.retention.app.mails import mail, ms
from services.retention.app.receipts import kept, plain
from services.retention.app.room import Room
from services.retention.case import Case, World
from services.retention.data_map import RECORDS
from services.retention.directory import store as directory_store
from services.retention.right import Happening
from shared.contract import events, topics
from shared.contract.ids import derived_id
from shared.mesh import Batch, Transaction
from shared.mesh.transaction import rfc3339
from shared.policy import policy

log = logging.getLogger("steward.retention")

_CHUNK = 200
_ANSWERS = frozenset(rights.ANSWERS)


class By(NamedTuple):
    """Who makes a case go on, as what, and why."""

    actor: str
    role: str = ""
    reason: str = ""


PERSON = By("person", "person")
CLOSING = By("retention", "service", "account_closed")
CLOCK = By("retention", "service", "time")


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
            ours = event.type == events.PrivacyDone.TYPE and data.action in ("envelope", "export")
            if not (ours and await disclosures.receive(room, data, tx)):
                tx.refuse(received.record, "unknown_case", "no such case is known here")
            continue
        if event.type == events.PrivacyScanned.TYPE:
            stores = holds.seen(_stores(data), await store.holds_on(tx.db, data.case))
            scans.append((data.case, data.action, data.epoch, stores))
            findings = tuple(machine.Finding(one.holder, _trusted(one)) for one in data.stores)
            steps.append((row, machine.Scan(data.action, data.epoch, findings)))
        else:
            receipts.append((data.case, data.holder, data.action, data.epoch, "", kept(data)))
            if data.action == right.ACTIONS.get(row.case.kind, "erase"):
                left = sum(one.remaining for one in data.treated)
                rows_done = sum(one.rows for one in data.treated)
                steps.append((row, machine.Receipt(data.holder, data.epoch, plain(data.offsets), left, rows_done)))
    if receipts:
        await store.add_receipts(tx.db, receipts, tx.now)
    if scans:
        await store.add_scans(tx.db, scans, tx.now)
        await room.expect([case for case, _, _, _ in scans])
    await happen_each(room, tx, steps)


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


async def mailed(room: Room, batch: Sequence[Any], tx: Transaction) -> None:
    """Notes what became of mails; what is accepted stops its clock."""
    told: list[tuple[str, str, Any]] = []
    took: list[tuple[str, str, float]] = []
    for data in batch:
        mail = await store.settle_mail(tx.db, data.cause, data.outcome, data.at)
        if mail is None:
            await disclosures.mailed(room, data, tx)
            continue
        accepted = data.outcome == "accepted"
        if accepted and mail["request"] is not None:
            await store.acknowledge(tx.db, mail["request"], data.at)
            took.append(("mail", "acknowledging", max(0.0, (data.at - mail["asked_at"]).total_seconds())))
        if mail["template"] in _ANSWERS:
            told.append((mail["case_id"], mail["template"], machine.Answered(accepted)))
        elif mail["request"] is not None:
            told.append((mail["case_id"], mail["template"], None))
    if took:
        await store.add_taken(tx.db, took)
    rows = await store.lock_cases(tx.db, [case for case, _, _ in told]) if told else {}
    for case, template, what in told:
        if case in rows:
            rows[case].news.append(
                (f"mail:{template}", "notifications", "service", "" if what is None or what.accepted else "refused")
            )
    await happen_each(room, tx, [(rows[case], what) for case, _, what in told if case in rows])


# --- what time brings ---------------------------------------------------------------------------------------------


async def tick(room: Room, now: datetime, tx: Transaction) -> None:
    """Orders that are due again, lapsed requests, keys that are over, accounts whose time after closing is over."""
    due = await store.lock_due(tx.db, now, _CHUNK)
    await happen_each(room, tx, [(row, _of_time(row)) for row in due.values()])
    closed = await directory_store.closed_accounts(tx.db, now - (clocks.closes_at(now, policy()) - now), _CHUNK)
    if closed:
        await _close(room, [(one["account"], one["closed_at"]) for one in closed], tx)


def _of_time(row: store.Row) -> Happening:
    """What time brings. Of a restored case whose person is erased nobody is left to ask, or to write to."""
    nobody = row.account is None and row.case.state in ("requested", "working")
    return right.Gone() if nobody and not steps.is_deletion(row.case) else machine.Tick()


async def foresee(room: Room, now: datetime, tx: Transaction) -> None:
    """Says it of every case, once, when a clock of it is going to be missed at the speed that things have, or when it has stood
    for so long that a person is needed."""
    measured = await speeds(tx.db)
    found = {
        row.case.id: risks
        for row in (await store.running(tx.db)).values()
        if (risks := clocks.at_risk(row.case, now, room.timing, policy(), measured)) != row.risks
        or set(row.case.needs_person(now, room.timing)) != set(row.needs_person)
    }
    changed = list((await store.lock_cases(tx.db, sorted(found)[:_CHUNK])).values()) if found else []
    for row in changed:
        new = sorted(set(found[row.case.id]) - set(row.risks))
        row.risks = found[row.case.id]
        if new:
            log.error("case %s is going to be late: %s", row.case.id, ", ".join(new))
            tx.count("deadlines_forecast", len(new))
            row.news.append((f"forecast:{','.join(new)}", "retention", "service", ""))
    if changed:
        await _keep(room, tx, changed)


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
            await confirm(room, tx, row, {}, by=CLOSING)
    await directory_store.note_closures(tx.db, of_account)


async def _closure(room: Room, account: str, closed_at: datetime, tx: Transaction) -> str:
    """The case that closes an account: a new one, or the one that is open."""
    marks = room.marks("account", account, account)
    case_id = derived_id(ms(closed_at), "closure", marks.subject)
    case = Case(case_id, "account", closed_at, kind="closure")
    if not await store.add_case(tx.db, case, marks, account, account):
        found = await store.open_case_of(tx.db, marks.wish)
        assert found is not None, "an open case that refuses a second one is there"
        return found
    await store.add_request(tx.db, case_id, case_id, "settings", closed_at)
    tx.count("cases_opened")
    return case_id


# --- what is done about it ----------------------------------------------------------------------------------------


async def confirm(
    room: Room, tx: Transaction, row: store.Row, successors: Mapping[str, str], record: Any = None, *, by: By = PERSON
) -> None:
    """The last word was said: from here on there is no way back."""
    deferred = await deletions.concerns(room, tx, row, successors)
    if deferred is None:
        if record is not None:
            tx.refuse(record, "too_many_subjects", "an order cannot carry so many; erase workspaces one by one first")
        else:
            log.error(
                "case %s is about too many subjects: they are to be erased one workspace after the other", row.case.id
            )
            await happen(room, tx, row, machine.Denied("other"), by=CLOCK)
        return
    account = row.account
    await happen(room, tx, row, machine.Confirmed(True), deferred=deferred, by=by)
    if row.circle is not None and row.case.confirmed_at is not None:
        await _end_rights(room, tx, row.circle.subjects, account if row.case.scope == "workspace" else None)


async def _end_rights(room: Room, tx: Transaction, gone: Iterable[tuple[str, str]], owner: str | None) -> None:
    """What somebody still wanted to have, or could still fetch, ends with them; so does what an account has of a workspace of
    its own that goes."""
    hashes = [room.pseudonym(kind, name) for kind, name in gone]
    owners = [] if owner is None else [room.pseudonym("account", owner)]
    ids = await store.rights_of(tx.db, hashes, [*hashes, *owners])
    if not ids:
        return
    await store.close_packages(tx.db, ids, tx.now)
    rows = await store.lock_cases(tx.db, ids)
    for row in rows.values():
        row.news.append(("erased", "retention", "service", ""))
    # A report about a child has nothing left to decide.
    await happen_each(
        room, tx, [(row, machine.Withdrawn() if steps.is_deletion(row.case) else right.Gone()) for row in rows.values()]
    )


async def happen(
    room: Room, tx: Transaction, row: store.Row, what: Happening | None, *, deferred: Iterable[str] | None = None,
    by: By = PERSON,
) -> None:  # fmt: skip
    """One step of a case, with all that follows from it, in this transaction."""
    if deferred is None:
        deferred = (await store.deferring(tx.db, [row.case.id])).get(row.case.id, ())
    if what is not None:
        row.news.append((_named(what), by.actor, by.role, by.reason))
        await _step(room, tx, row, what, deferred)
    await _keep(room, tx, [row])


def _named(what: Happening) -> str:
    """A happening in the history of its case. A code that was wrong has proved, or confirmed, nothing."""
    match what:
        case machine.Confirmed(False) | right.Proved(None):
            return "wrong_code"
        case _:
            return type(what).__name__.lower()


async def happen_each(room: Room, tx: Transaction, steps_: Sequence[tuple[store.Row, Happening | None]]) -> None:
    """Steps of many cases, one after the other; each case is written once, at the end."""
    if not steps_:
        return
    rows = {row.case.id: row for row, _ in steps_}
    deferred = await store.deferring(tx.db, rows)
    for row, what in steps_:
        if what is not None:
            await _step(room, tx, row, what, deferred.get(row.case.id, ()))
    await _keep(room, tx, list(rows.values()))


async def _step(room: Room, tx: Transaction, row: store.Row, what: Happening, deferred: Iterable[str]) -> None:
    world = World(tx.now, room.holders, room.timing, frozenset(deferred))
    before = row.case
    row.case, deeds = steps.step(before, what, world)
    for deed in deeds:
        try:
            await _do(room, tx, row, deed)
        except Untrue as error:
            log.error("case %s cannot be certified: %s", before.id, error)
            row.case = machine.unproved(before, tx.now)
    if row.unheard:
        # Nobody is there to be written to: what is clear is all there is.
        row.unheard = False
        await _step(room, tx, row, right.Settled(), deferred)


async def _do(room: Room, tx: Transaction, row: store.Row, deed: right.RightDeed) -> None:
    match deed:
        case machine.Forget():
            row.account = row.target = None
            if row.case.state in ("withdrawn", "lapsed") and row.details is not None:
                await room.destroy_case_key(row.case.id)
                row.details = None
            tx.count(f"cases_{row.case.state}")
        case machine.DestroyKey():
            await room.destroy_case_key(row.case.id)
            row.sealed = row.sealed_account = row.details = None
        case machine.Entomb() | machine.OrderErasure() | machine.OrderScan() | machine.Tell() | machine.Certify():
            await deletions.do(room, tx, row, deed)
        case _:
            await rights.do(room, tx, row, deed)


async def _keep(room: Room, tx: Transaction, rows: Sequence[store.Row]) -> None:
    """Writes cases back: with their history, their clocks, how long their steps took, and what the platform is told."""
    puts = []
    took: list[tuple[str, str, float]] = []
    for row in rows:
        case = row.case
        reasons = case.needs_person(tx.now, room.timing)
        for reason in set(reasons) - set(row.needs_person):
            log.error("case %s needs a person: %s", case.id, reason)
            tx.count("cases_escalated")
        row.needs_person = reasons
        if case.state != row.before.state:
            row.news.append((f"state:{case.state}", "retention", "service", case.reason or ""))
            since = row.before.state_at or row.before.requested_at
            took.append((case.kind, row.before.state, max(0.0, (tx.now - since).total_seconds())))
        await _say(room, tx, row)
        expires_at = None if case.ended_at is None else case.ended_at + RECORDS
        puts.append(store.Put(row, clocks.due_at(case, policy()), steps.next_at(case, room.timing), expires_at))
    await store.put_cases(tx.db, puts, tx.now)
    if took:
        await store.add_taken(tx.db, took)


async def tell_extended(room: Room, tx: Transaction, row: store.Row) -> None:
    """The mail that says that it takes longer, and until when."""
    due = next(one for one in clocks.clocks(row.case, policy()) if one.name == "ccpa")
    await mail(
        tx, row, f"extended-{row.case.id}", "extended", account=row.account,
        facts={"kind": row.case.kind, "until": rfc3339(due.ends_at)},
    )  # fmt: skip


async def _say(room: Room, tx: Transaction, row: store.Row) -> None:
    """Tells the platform, and a representative, how a case stands, when that has changed."""
    case = row.case
    status, reason = wish.status(case)
    said = f"{status}:{reason or ''}:{case.kind}"
    if said == row.told or case.kind == "closure":
        return
    row.told, row.version = said, row.version + 1
    due = clocks.due_at(case, policy())
    tx.publish(
        topics.PRIVACY_CASES, events.CaseChanged,
        id=derived_id(ms(case.requested_at), "status", case.id, str(row.version)), subject=case.id, key=case.id,
        data={
            "subject_request_id": case.id, "version": row.version, "subject_request_type": case.kind,
            "regulation": row.regime, "account": row.account, "status": status, "reason": reason,
            "received_time": rfc3339(case.requested_at), "expected_completion_time": None if due is None else rfc3339(due),
        },
    )  # fmt: skip
    await rights.tell_representative(room, tx, row, status, reason)
