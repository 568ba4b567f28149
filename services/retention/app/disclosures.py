"""Disclosures: entered, extracted and settled by named persons; told to whom they are about, at once or when the gag ends."""

from __future__ import annotations

import logging
import re
from collections.abc import Mapping
from dataclasses import replace
from datetime import datetime
from typing import Any

from services.retention import disclosure as machine
from services.retention import store, subjects
from services.retention.app.holds import instant
from services.retention.app.mails import ms
from services.retention.app.receipts import kept
from services.retention.app.rights import ADDRESSES
from services.retention.app.room import Room
from services.retention.data_map import RECORDS
from services.retention.directory import store as directory_store
from services.retention.disclosure import INSTRUMENTS, PROTECTED, Scope
from services.retention.disclosures import store as register
from services.retention.disclosures.store import Row, Said
from shared.contract import events, topics
from shared.contract.ids import derived_id
from shared.mesh import Received, Transaction
from shared.mesh.transaction import rfc3339

log = logging.getLogger("steward.retention")

_CHUNK = 50
_WORDS = 150
_FROM = "from_"
_TABLES = re.compile(r"[a-z_][a-z0-9_]*(\.[a-z_][a-z0-9_]*)*")
_TABLES_LONGEST = 64  # of an order's argument
_ID = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.:-]{0,63}")
_REFERENCE = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.:+/-]{0,127}")
_ENTRY = frozenset(
    ("kind", "basis", "instrument", "reference", "protects", "decided_by", "authority", "since", "until", "gag_until")
)
_CLOCK = ("retention", "service", "time")


class Refused(Exception):
    """What a command asks for is not to be had: (a word, the reason)."""

    def __init__(self, word: str, why: str) -> None:
        super().__init__(why)
        self.word = word


# --- what persons do ----------------------------------------------------------------------------------------------


async def enter(room: Room, received: Received, tx: Transaction) -> None:
    """A person enters a disclosure. What is wrong with it is told as a dead letter."""
    event = received.event
    try:
        said, owner = await _entry(room, event.data, tx)
        about = await _about(event.data.arguments["kind"], event.data.target, tx)
    except Refused as error:
        tx.refuse(received.record, error.word, str(error))
        return
    sealed = await room.seal_subjects(event.id, about, tx.now)
    sealed_owner = await room.seal_subjects(event.id, (("account", owner),), tx.now)
    if await register.add(tx.db, machine.entered(event.id, tx.now, said.gag_until), said, sealed, sealed_owner):
        tx.count("disclosures_entered")
        row = await _known(event.id, tx)
        row.news.append(("entered", "", *_by(event.data)))
        await _step(room, row, tx)


async def extract(room: Room, received: Received, tx: Transaction) -> None:
    """A person has the rows of an entry copied: all that it names, or less."""
    event = received.event
    if await register.is_extract(tx.db, event.id):
        return
    try:
        row = await _known(event.data.target, tx)
        scope = await _within(room, row, event.data.arguments, tx)
    except Refused as error:
        tx.refuse(received.record, error.word, str(error))
        return
    row.one = machine.extracted(row.one, list(scope.tables), tx.now)
    epoch = row.one.errands[-1].epoch
    await register.add_extract(tx.db, event.id, row.one.id, epoch, scope, tx.now)
    row.news.append(("extract_ordered", str(epoch), *_by(event.data)))
    tx.count("disclosures_extracted")
    await _step(room, row, tx)


async def end_gag(room: Room, received: Received, tx: Transaction) -> None:
    """A person ends a gag, or looks at it and says until when it lasts."""
    command = received.event.data
    try:
        row = await _known(command.target, tx)
        if "until" in command.arguments:
            _extend(row, command, tx.now)
        else:
            if row.one.gag_until is None:
                raise Refused("refused", "nothing bars anybody from telling of this entry")
            if row.one.state == "gagged":
                row.one = machine.gag_ended(row.one, tx.now)
                row.news.append(("gag_ended", "", *_by(command)))
    except Refused as error:
        tx.refuse(received.record, error.word, str(error))
        return
    await _step(room, row, tx)


def _extend(row: Row, command: Any, now: datetime) -> None:
    until = _instant(command.arguments["until"])
    if until is None or not now < until <= now + machine.GAG_MOST:
        raise Refused("invalid", f"a gag's next review is ahead, and within {machine.GAG_MOST.days} days")
    if until == row.one.gag_until:
        return
    before, row.one = row.one, machine.gag_extended(row.one, until, now)
    if row.one is before:
        raise Refused("refused", "this gag is over already, or lasts longer than that: end it without a date")
    row.news.append(("gag_extended", rfc3339(until), *_by(command)))


async def settle(room: Room, received: Received, tx: Transaction) -> None:
    """A person answers for a notice that no mail could bring: given otherwise, or to nobody."""
    command = received.event.data
    try:
        row = await _known(command.target, tx)
        if row.one.state != "unheard":
            raise Refused("refused", f"the notice is {row.one.state}: there is nothing to settle")
    except Refused as error:
        tx.refuse(received.record, error.word, str(error))
        return
    row.one = machine.settled(row.one, tx.now)
    row.news.append(("settled", "", *_by(command)))
    await _step(room, row, tx)


# --- what the mesh answers ----------------------------------------------------------------------------------------


async def receive(room: Room, data: Any, tx: Transaction) -> bool:
    """A receipt for an envelope, or for a part of an extract. False: no such entry, or nothing that was asked for."""
    row = await register.lock(tx.db, data.case)
    if row is None:
        return False
    before = row.one
    if data.action == "envelope":
        if data.holder != ADDRESSES:
            return False
        row.one = machine.enveloped(before, data.epoch)
        what = ("envelope_kept", "")
    else:
        if (data.epoch, data.holder) not in {(each.epoch, each.holder) for each in before.errands}:
            return False
        row.one = machine.copied(before, data.epoch, data.holder, tx.now)
        what = ("copied", f"{data.holder} {data.epoch}")
    if row.one is not before:
        row.news.append((*what, data.holder, "service", ""))
        await _step(room, row, tx)
        if data.action == "export":
            await register.keep_receipt(tx.db, data.case, data.epoch, data.holder, kept(data))
    return True


async def mailed(room: Room, data: Any, tx: Transaction) -> None:
    """What became of a notice; other mails are none of ours."""
    if data.case is None or data.cause != _cause(data.case):
        return
    row = await register.lock(tx.db, data.case)
    if row is None:
        return
    before, row.one = row.one, machine.mailed(row.one, data.outcome, data.at)
    if row.one is not before:
        row.news.append(("notice", data.outcome, ADDRESSES, "service", ""))
        await _step(room, row, tx)


async def tick(room: Room, now: datetime, tx: Transaction) -> None:
    """Gags whose time is over, orders that are due again, keys that are over."""
    for row in await register.lock_due(tx.db, now, _CHUNK):
        await _step(room, row, tx)


# --- what a command says ------------------------------------------------------------------------------------------


async def _entry(room: Room, command: Any, tx: Transaction) -> tuple[Said, str]:
    """What is entered, and the account that it is about. Raises `Refused`."""
    told = command.arguments
    scope = _scope(room, told)
    gag_until = _instant(told["gag_until"]) if "gag_until" in told else None
    kind, basis = told.get("kind", ""), told.get("basis", "")
    _unless(kind in ("account", "workspace"), "kind: account or workspace")
    _unless(_ID.fullmatch(told.get("authority", "")), "authority: a word or an id, of whoever gets it")
    if "gag_until" in told:
        good = gag_until is not None and tx.now < gag_until <= tx.now + machine.GAG_MOST
        _unless(good, f"gag_until: its end or its review, ahead and within {machine.GAG_MOST.days} days")
    process, protection = (
        [told.get(n) for n in ("instrument", "reference")],
        [told.get(n) for n in ("protects", "decided_by")],
    )
    if basis == "legal_process":
        _unless(process[0] in INSTRUMENTS, f"instrument: one of {', '.join(INSTRUMENTS)}")
        _unless(_REFERENCE.fullmatch(process[1] or ""), "reference: which instrument it is")
        _unless(protection == [None, None], "protects, decided_by: legal process needs neither")
    elif basis == "protection":
        _unless(protection[0] in PROTECTED, f"protects: one of {', '.join(PROTECTED)}")
        _unless(_ID.fullmatch(protection[1] or ""), "decided_by: the person who decided")
        _unless(process == [None, None], "instrument, reference: those are of legal process")
    else:
        raise Refused("invalid", "basis: legal_process or protection")
    owner = await register.owner_of(tx.db, kind, command.target)
    hashes = [room.pseudonym(kind, command.target), *([] if owner is None else [room.pseudonym("account", owner)])]
    if await store.entombed(tx.db, hashes):
        raise Refused("erased", "this subject is erased: nothing is left to disclose")
    if owner is None:
        raise Refused("unknown_subject", "the directory knows no such subject")
    tables = {holder: list(names) for holder, names in scope.tables.items()}
    said = Said(
        kind, hashes[0], hashes[1], basis, process[0], process[1], protection[0], protection[1], told["authority"], tables,
        scope.since, scope.until, gag_until, tx.now, command.actor, command.role, command.ticket,
    )  # fmt: skip
    return said, owner


async def _about(kind: str, target: str, tx: Transaction) -> tuple[subjects.Subject, ...]:
    """Whose rows these are. Raises `Refused` for more than one order can carry."""
    found = subjects.circle(kind, target, await directory_store.known_around(tx.db, kind, target), {}).subjects
    if subjects.too_many(found):
        raise Refused("too_many_subjects", "an order cannot carry so many: enter workspaces one by one")
    return found


async def _within(room: Room, row: Row, told: Mapping[str, str], tx: Transaction) -> Scope:
    """What is to be extracted: what the command names, else what the entry does. Raises `Refused`."""
    allowed = row.said.scope
    named = any(name.startswith(_FROM) for name in told)
    asked = _scope(room, told, also=frozenset(("since", "until")), needed=False)
    asked = replace(asked, since=asked.since or allowed.since, until=asked.until or allowed.until)
    scope = asked if named else replace(asked, tables=allowed.tables)
    if machine.over(row.one, tx.now):
        raise Refused("over", "this entry is over: who needs more enters it again")
    if await store.entombed(tx.db, [row.said.subject_pseudonym, row.said.owner]):
        raise Refused("erased", "this subject is erased: nothing is left to disclose")
    if beyond := scope.beyond(allowed):
        raise Refused("beyond_scope", f"the entry does not allow {', '.join(beyond)}")
    return scope


def _scope(
    room: Room, told: Mapping[str, str], *, also: frozenset[str] = _ENTRY, needed: bool = True
) -> Scope:  # fmt: skip
    """Which tables of which holders, and of which time. Raises `Refused`, also for an argument that nobody knows."""
    named = {name.removeprefix(_FROM): value for name, value in told.items() if name.startswith(_FROM)}
    unknown = told.keys() - also - {_FROM + holder for holder in named}
    _unless(not unknown, f"{', '.join(sorted(unknown))}: not known here")
    for holder, value in named.items():
        good = holder in room.holders and _TABLES.fullmatch(value) and len(value) <= _TABLES_LONGEST
        _unless(good, f"{_FROM}{holder}: tables of a holder, with dots between, {_TABLES_LONGEST} characters at most")
    _unless(named or not needed, f"{_FROM}...: which tables of which holder")
    ends = {name: _instant(told[name]) for name in ("since", "until") if name in told}
    since, until = ends.get("since"), ends.get("until")
    _unless(None not in ends.values(), "since, until: instants")
    _unless(not needed or (since is None) == (until is None), "since, until: both, or neither for all of the time")
    _unless(since is None or until is None or since < until, "since is before until")
    return Scope({holder: tuple(sorted(set(value.split(".")))) for holder, value in named.items()}, since, until)


def _unless(good: object, why: str) -> None:
    if not good:
        raise Refused("invalid", why)


def _instant(text: str) -> datetime | None:
    """To the millisecond, as orders carry it."""
    found = instant(text)
    return None if found is None else found.replace(microsecond=found.microsecond // 1000 * 1000)


async def _known(id: str, tx: Transaction) -> Row:
    row = await register.lock(tx.db, id)
    if row is None:
        raise Refused("no_entry", "there is no such entry in the register of disclosures")
    return row


# --- what follows -------------------------------------------------------------------------------------------------


async def _step(room: Room, row: Row, tx: Transaction) -> None:
    """What time brings, and all that follows from it, in this transaction."""
    before = row.one
    row.one, deeds = machine.tick(before, tx.now, room.timing)
    if before.state == "gagged" and row.one.state != "gagged":
        row.news.append(("gag_ended", "", *_CLOCK))
    for deed in deeds:
        match deed:
            case machine.KeepEnvelope(epoch, not_after):
                arguments = {"not_after": rfc3339(not_after)}
                _order(tx, row, "envelope", epoch, ADDRESSES, row.sealed_owner, arguments)
            case machine.Export(epoch, holder):
                await _order_export(tx, row, epoch, holder)
            case machine.Notice(enveloped):
                await _tell(room, tx, row, enveloped)
            case machine.DestroyKey():
                await _destroy(room, row, tx)
    reasons = row.one.needs_person(tx.now, room.timing)
    for reason in set(reasons) - set(row.needs_person):
        log.error("disclosure %s needs a person: %s", row.one.id, reason)
        tx.count("disclosures_escalated")
    row.needs_person = reasons
    expires_at = None if row.one.told_at is None else row.one.told_at + RECORDS
    await register.put(tx.db, row, machine.next_at(row.one, tx.now), expires_at, tx.now)


async def _order_export(tx: Transaction, row: Row, epoch: int, holder: str) -> None:
    found = await register.extract(tx.db, row.one.id, epoch)
    assert found is not None
    _, scope = found
    arguments = {"tables": ".".join(scope.tables[holder])}
    arguments |= {
        name: rfc3339(at) for name, at in (("since", scope.since), ("until", scope.until)) if at is not None
    }  # fmt: skip
    _order(tx, row, "export", epoch, holder, row.sealed, arguments)


def _order(
    tx: Transaction, row: Row, action: str, epoch: int, holder: str, sealed: str | None, arguments: Mapping[str, str]
) -> None:
    """An order; sent again, it is the same event."""
    one = row.one
    tx.publish(
        topics.PRIVACY_COMMANDS, events.PrivacyOrdered,
        id=derived_id(ms(one.entered_at), action, one.id, str(epoch), holder), subject=one.id, key=one.id,
        data={
            "case": one.id, "epoch": epoch, "action": action, "holders": [holder], "scope": row.said.kind,
            "sealed": sealed, "arguments": dict(arguments),
        },
    )  # fmt: skip
    tx.count(f"orders_{action}")


async def _tell(room: Room, tx: Transaction, row: Row, enveloped: bool) -> None:
    """The notice. After a gag it goes to the envelope: its account may be gone by then."""
    one, said = row.one, row.said
    account = None
    if not enveloped:
        assert row.sealed_owner is not None
        ((_, account),) = await room.open_subjects(one.id, row.sealed_owner)
    facts = {
        "recipient": said.authority, "instrument": (said.instrument or "").replace("_", " "),
        "reference": said.reference or "",
        "basis": basis(said.protects),
        "scope": words(said.scope), "date": rfc3339(one.entered_at),
    }  # fmt: skip
    tx.publish(
        topics.MESSAGES, events.MessageRequested,
        id=derived_id(ms(one.entered_at), "message", _cause(one.id)), subject=one.id, key=one.id,
        data={
            "cause": _cause(one.id), "kind": "privacy", "template": "disclosure", "account": account, "case": one.id,
            "address": None, "proof": None, "link": None,
            "facts": {name: value for name, value in facts.items() if value},
        },
    )  # fmt: skip
    row.news.append(("notice_asked", "envelope" if enveloped else "account", *_CLOCK))
    tx.count("disclosures_noticed")


async def _destroy(room: Room, row: Row, tx: Transaction) -> None:
    await room.destroy_case_key(row.one.id)
    row.sealed = row.sealed_owner = None
    row.news.append(("key_destroyed", "", *_CLOCK))
    await register.note_parts(tx.db, row.one.id, there=True)


def words(scope: Scope) -> str:
    """A scope for a mail."""
    places = [f"{holder}.{table}" for holder, tables in sorted(scope.tables.items()) for table in tables]
    said = ", ".join(places)
    if len(said) > _WORDS:
        said = f"{len(places)} tables of {', '.join(sorted(scope.tables))}"
    if scope.since is None or scope.until is None:
        return said
    return f"{said}, from {rfc3339(scope.since)} on and before {rfc3339(scope.until)}"


def basis(protects: str | None) -> str:
    """On what basis, for a person."""
    return "legal process" if protects is None else f"protection of {protects}"


def _cause(id: str) -> str:
    return f"disclosed-{id}"


def _by(command: Any) -> tuple[str, str, str]:
    return command.actor, command.role, command.ticket
