"""What people ask for: requests of every kind and channel, mails to support, codes that came back."""

from __future__ import annotations

import logging
import re
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

from services.retention import case as machine
from services.retention import intake, right, store, subjects, wish
from services.retention.app import cases, deletions, rights
from services.retention.app.cases import By
from services.retention.app.room import Room
from services.retention.case import DELETIONS, Case
from services.retention.directory import store as directory_store
from services.retention.wish import Details
from shared.contract import events
from shared.mesh import Batch, Received, Transaction
from shared.mesh.transaction import rfc3339
from shared.privacy.age import SHORTEST_PASSPHRASE
from shared.privacy.vault import Shredded, Tampered

log = logging.getLogger("steward.retention")

# Not the whole of a mail address, which notifications judge: but a code that cannot be sent is nothing to wait for.
_ADDRESS = re.compile(r"\s*[^\s@<>]+@[^\s@<>]+\s*")


class Invalid(Exception):
    """A request that cannot be carried out; its text is for whoever sent it."""


async def requested(room: Room, batch: Batch, tx: Transaction) -> None:
    """Takes requests, mails to support and withdrawals. Codes that come back are notifications' to judge."""
    for received in batch.events:
        try:
            match received.event.type:
                case events.PrivacyRequested.TYPE:
                    await _request(room, received, tx)
                case events.SupportMailReceived.TYPE:
                    await _mail(room, received, tx)
                case events.PrivacyWithdrawn.TYPE:
                    row = await _theirs(room, received, tx)
                    if row is not None:
                        await cases.happen(room, tx, row, machine.Withdrawn())
        except Invalid as error:
            tx.refuse(received.record, "invalid", str(error))


async def judged(room: Room, batch: Sequence[Any], tx: Transaction) -> None:
    """Codes that came back, as notifications judge them."""
    for event in batch:
        data = event.data
        row = await store.lock_case(tx.db, data.case)
        if row is None or row.account != data.account:
            tx.count("proofs_of_nobody")
            continue
        if not data.right:
            tx.count("codes_wrong")
        if row.case.kind in DELETIONS:
            if row.case.state != "requested" or row.case.kind != "erasure":
                continue
            if data.right:
                await cases.confirm(room, tx, row, data.successors)
            else:
                await cases.happen(room, tx, row, machine.Confirmed(False))
            continue
        if row.case.state not in ("triage", "requested"):
            continue
        details = await room.open_details(row.case.id, row.details)
        if data.right and not details.opener:
            details = await _with_opener(room, tx, row, details, data)
        if data.right and wish.waits_for_opener(row.case.kind, details):
            # A code is good once: there is another one, for who comes again and says what opens the package.
            row.request = event.id
            row.news.append(("proved_without_opener", "person", "person", ""))
            tx.count("proofs_without_opener")
            await cases.happen(room, tx, row, rights.begin(row.case.kind, details))
            continue
        begin = rights.begin(row.case.kind, details)
        await cases.happen(room, tx, row, right.Proved(data.of if data.right else None, begin.ready, begin.corrector))


async def _with_opener(room: Room, tx: Transaction, row: store.Row, details: Details, said: Any) -> Details:
    """What a request says, with what a confirmation says opens the package."""
    try:
        opened = await _opened(room, {"passphrase": said.passphrase})
    except Invalid:
        opened = {}
    details = replace(details, passphrase=opened.get("passphrase"), recipient=said.recipient)
    row.details = await room.seal_details(row.case.id, details, tx.now)
    return details


async def barred(room: Room, batch: Sequence[Any], tx: Transaction) -> None:
    """Accounts that were opened with a barred address end again, unasked."""
    for event in batch:
        account = event.data.account
        known = await store.case_of_request(tx.db, event.id) is not None
        if known or await room.tombstones.erased([("account", account)], tx):
            continue
        marks = room.marks("account", account, account)
        case = Case(event.id, "account", min(event.time, tx.now), kind="closure")
        if await store.add_case(tx.db, case, marks, account, account):
            await store.add_request(tx.db, event.id, event.id, "settings", case.requested_at)
            tx.count("cases_opened")
        case_id = await store.open_case_of(tx.db, marks.wish)
        row = None if case_id is None else await store.lock_case(tx.db, case_id)
        if row is not None and row.case.state == "requested" and row.target is not None:
            row.case = machine.closing(row.case, case.requested_at)
            await cases.confirm(room, tx, row, {}, by=By("retention", "service", "barred_address"))


# --- a request ----------------------------------------------------------------------------------------------------


async def _request(room: Room, received: Received, tx: Transaction) -> None:
    event = received.event
    data = event.data
    if await store.case_of_request(tx.db, event.id) is not None:
        return
    details = await _details(room, data)
    deletion = data.kind == "erasure"
    marks = room.marks(
        data.scope, data.target, data.account,
        None if deletion else wish.wish(data.kind, data.scope, data.target, details),
    )  # fmt: skip
    unauthorised = details.representative is not None and details.authorisation is None
    if deletion and unauthorised and await store.open_case_of(tx.db, marks.wish) is None:
        # Denied at once: what the person asks for meanwhile must not join it.
        marks = room.marks(
            data.scope, data.target, data.account, wish.wish(data.kind, data.scope, data.target, details)
        )
    if await _of_the_erased(room, tx, data, marks):
        # Asked before, and done: this is an old copy, read again after a restore. No row names them once more.
        tx.count("requests_of_erased")
        return
    known = await directory_store.known_around(tx.db, data.scope, data.target)
    own = subjects.owns(data.scope, data.account, data.target, known)
    foreign_key = details.key is not None and details.key not in known.keys
    if foreign_key or (subjects.stranger(data.scope, data.account, data.target, known) if deletion else not own):
        tx.refuse(received.record, "not_theirs", "the directory knows another owner of what this is about")
        return
    at = min(event.time, tx.now)
    needed = wish.needed(data.kind, data.channel, details)
    case = Case(event.id, data.scope, at, kind=data.kind, channel=data.channel, needed=needed)
    row, new = await _open(room, tx, case, marks, data.account, data.target, data.regime, details)
    row.request, row.channel = event.id, data.channel
    row.news.append(("received" if new else "joined", "person", data.channel, details.authorisation or ""))
    if data.kind == "child_report":
        # Who reports it, too, is another one, and hears that their report is here.
        await rights.acknowledge(room, tx, row, event.id, details)
        await cases.happen(room, tx, row, None)
    elif unauthorised:
        await rights.acknowledge(room, tx, row, event.id)
        # Of a deletion that the person asked for nothing is denied because somebody else asks as well.
        denied = machine.Denied("insuf_verification") if new else None
        await cases.happen(room, tx, row, denied, by=cases.UNAUTHORISED)
    elif deletion:
        by = data.channel if details.representative is None else "agent"
        await _ask_last_word(room, tx, row, event.id, by, known)
        if not new and row.case.state == "requested" and details.representative is not None:
            await _joined_by_agent(room, tx, row, details)
        await cases.happen(room, tx, row, None)
    else:
        await _begin(room, tx, row, details, new)


async def _joined_by_agent(room: Room, tx: Transaction, row: store.Row, details: Details) -> None:
    """An agent asks for the deletion that its person waits to confirm: it, too, hears how that stands, if nobody does yet."""
    before = await room.open_details(row.case.id, row.details)
    if before.representative is None:
        row.details = await room.seal_details(
            row.case.id,
            replace(
                before, representative=details.representative, authorisation=details.authorisation,
                reply_to=details.reply_to,
            ),
            tx.now,
        )  # fmt: skip
        await rights.tell_representative(room, tx, row, *wish.status(row.case))


async def _ask_last_word(
    room: Room, tx: Transaction, row: store.Row, request: str, channel: str, known: subjects.Known
) -> None:
    if row.case.state == "requested" and await rights.may_send_code(tx, row):
        await deletions.ask_last_word(room, tx, row, request, channel, known)
    else:
        await rights.acknowledge(room, tx, row, request)


async def _begin(room: Room, tx: Transaction, row: store.Row, details: Details, new: bool) -> None:
    """Sets a right's case going. Who asks again, while it waits, may say what was missing, and gets another code."""
    assert row.request is not None
    signed_in = row.channel in ("settings", "api") and details.representative is None
    if not new and row.case.state == "requested" and details.opener and signed_in:
        before = await room.open_details(row.case.id, row.details)
        row.details = await room.seal_details(
            row.case.id, replace(before, passphrase=details.passphrase, recipient=details.recipient), tx.now
        )
    begun = new or row.case.state == "requested"
    asks = begun and (row.case.needed - row.case.proofs or wish.waits_for_opener(row.case.kind, details))
    if not asks:
        await rights.acknowledge(room, tx, row, row.request)
    await cases.happen(room, tx, row, rights.begin(row.case.kind, details) if begun else None)


async def _open(
    room: Room, tx: Transaction, case: Case, marks: store.Marks, account: str | None, target: str | None, regime: str,
    details: Details,
) -> tuple[store.Row, bool]:  # fmt: skip
    """The locked case of a request: a new one, or the open one of the same wish."""
    sealed = await room.seal_details(case.id, details, tx.now)
    for _ in range(2):
        new = await store.add_case(tx.db, case, marks, account, target, regime=regime, details=sealed)
        case_id = case.id if new else await store.open_case_of(tx.db, marks.wish)
        if case_id is not None:
            break  # else the other one ended between the two statements
    assert case_id is not None, "an open case that refuses a second one is there"
    await store.add_request(tx.db, case.id, case_id, case.channel, case.requested_at)
    row = (await store.lock_cases(tx.db, [case_id]))[case_id]
    tx.count("cases_opened" if new else "cases_joined")
    if not new:
        # The earliest wish's clocks are the case's, and each wish has its own.
        row.case = machine.asked_earlier(row.case, case.requested_at)
        if sealed is not None and case.id != case_id:
            await room.destroy_case_key(case.id)
    return row, new


async def _details(room: Room, data: Any) -> Details:
    opened = await _opened(
        room, {"passphrase": data.passphrase, "value": data.value, "reply_to": data.reply_to}
    )  # fmt: skip
    value = opened.get("value")
    if value is not None and not (_ADDRESS.fullmatch(value) if data.field == "address" else value.strip()):
        raise Invalid("what is to be right is empty, or no mail address")
    return Details(
        since=None if data.since is None else rfc3339(data.since),
        until=None if data.until is None else rfc3339(data.until),
        recipient=data.recipient, field=data.field, key=data.key, representative=data.representative,
        authorisation=data.authorisation, **opened,
    )  # fmt: skip


async def _opened(room: Room, values: dict[str, str | None]) -> dict[str, str]:
    """What came sealed, by name. Raises `Invalid`."""
    try:
        opened = await room.arrived(values)
    except (Tampered, Shredded):
        raise Invalid("a sealed value cannot be opened") from None
    if len(opened.get("passphrase", "x" * SHORTEST_PASSPHRASE)) < SHORTEST_PASSPHRASE:
        raise Invalid(f"the passphrase has fewer than {SHORTEST_PASSPHRASE} characters")
    return opened


async def _of_the_erased(room: Room, tx: Transaction, data: Any, marks: store.Marks) -> bool:
    """Whether whom it is about is erased, and no case of that wish is open: who asks once more while it goes round joins it."""
    gone = await room.tombstones.erased({(data.scope, data.target), ("account", data.account)}, tx)
    if not gone and not await store.entombed(tx.db, [marks.subject, marks.owner]):
        return False
    of_the_erased = data.scope != "account" and ("account", data.account) in gone
    return of_the_erased or await store.open_case_of(tx.db, marks.wish) is None


async def _theirs(room: Room, received: Received, tx: Transaction) -> store.Row | None:
    """The locked open case that an event of its account is about; refused if there is none of this account."""
    data = received.event.data
    case_id = await store.case_of_request(tx.db, data.case)
    row = None if case_id is None else await store.lock_case(tx.db, case_id)
    # A report about a child is not its account's to take back: that may be the child's.
    stranger = row is not None and (row.case.kind == "child_report" or row.account not in (None, data.account))
    if row is None or stranger:
        if await room.tombstones.erased([("account", data.account)], tx):
            tx.count("requests_of_erased")
            return None
        # Nobody learns whether a case of somebody else's is there.
        tx.refuse(received.record, "unknown_case", "no case of this account waits under that id")
        return None
    return row if row.account is not None else None


# --- mails to support ---------------------------------------------------------------------------------------------


async def _mail(room: Room, received: Received, tx: Transaction) -> None:
    """A mail to support: with the policy's subject line who wrote it is asked for a proof at once; what it is that they want
    a person says, in any case. Nothing vanishes."""
    event = received.event
    data = event.data
    if await store.case_of_request(tx.db, event.id) is not None:
        return
    opened = await _opened(room, {"subject_line": data.subject_line, "sender": data.sender})
    whose = data.account
    if whose is not None and await room.tombstones.erased([("account", whose)], tx):
        whose = None  # who is erased may still write to us, as anybody may
    queue = intake.classify(opened["subject_line"])
    regime = "ccpa" if queue == "ccpa" else "voluntary"
    account = whose or f"mail-{event.id}"
    details = Details(reply_to=opened["sender"])
    needed = frozenset({"account"}) if queue == "ccpa" and whose is not None else frozenset[str]()
    case = Case(
        event.id, "account", min(event.time, tx.now), kind="inquiry", channel="support", state="triage", needed=needed
    )
    marks = room.marks("account", account, account, f"inquiry|{event.id}")
    row, _ = await _open(room, tx, case, marks, whose, whose, regime, details)
    row.request = event.id
    row.news.append(("received", "person", "support", queue))
    tx.count(f"mails_to_support_{queue}")
    if needed:
        row.case = replace(row.case, lapses_at=tx.now + room.timing.lapse)
        await rights.ask(room, tx, row, ("account",))
    else:
        await rights.acknowledge(room, tx, row, event.id)
    await cases.happen(room, tx, row, None)


async def triage(
    room: Room, tx: Transaction, row: store.Row, kind: Any, account: str | None, scope: Any, target: str | None, by: By
) -> str | None:
    """A person says what a mail is about, and whose it is. Returns why that cannot be, or None."""
    account = account or row.account
    if account is None:
        return "whose is it? the mail came from an address that is nobody's: name the account, or deny it (no_match)"
    target = target or account
    known = await directory_store.known_around(tx.db, scope, target)
    deletion = kind == "erasure"
    if scope != "account" and kind in ("sale:opt-out", "child_report"):
        return "scope: this is about an account"
    if (
        subjects.stranger(scope, account, target, known)
        if deletion
        else not subjects.owns(scope, account, target, known)
    ):
        return "the directory knows another owner of what this is about"
    details = await room.open_details(row.case.id, row.details)
    wanted = None if deletion else wish.wish(kind, scope, target, details)
    marks = room.marks(scope, target, account, wanted)
    if await room.tombstones.erased({(scope, target), ("account", account)}, tx):
        return "whom this is about is erased"
    if (other := await store.open_case_of(tx.db, marks.wish)) is not None and other != row.case.id:
        return f"the same wish is under way: deny this one as too_many_requests, the case is {other}"
    # A proof counts for the account that it came from.
    same = account == row.account
    needed = wish.needed(kind, "support", details)
    row.case = replace(
        row.case, kind=kind, scope=scope, state="requested", state_at=tx.now, needed=needed,
        proofs=row.case.proofs if same else frozenset(), attempts=0,
    )  # fmt: skip
    row.account, row.target, row.marks = account, target, marks
    row.request = row.case.id
    row.news.append((f"triage:{kind}", by.actor, by.role, by.reason))
    if deletion:
        await _ask_last_word(room, tx, row, row.case.id, "support", known)
        await cases.happen(room, tx, row, None)
    elif kind == "child_report":
        await cases.happen(room, tx, row, None)
    else:
        await cases.happen(room, tx, row, rights.begin(kind, details), by=by)
    return None
