"""Payments, grants, opening balances and notes: each event once, by its cause. Pure.

A refund or dispute whose purchase is not known waits, and so does the end of a dispute that is not known. What
waited too long is booked as suspense, and still matched when its purchase comes after all.

Money of an erased payer is booked too. Where no name leads to a number any more, the payment or dispute does, if it was
known before; what remains of it as credit, and all that leads to no number, is suspense of the erased. What is no money
(a note) or is ours to give (a grant, an opening balance) is dropped.
"""

from __future__ import annotations

import hashlib
from collections.abc import Collection, Iterable
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any, Literal

import msgspec

from services.billing import ledger
from services.billing.books import Books, Standing, numbered
from services.billing.ledger import Grant, Movement
from shared.contract import events as e

Outcome = Literal["created", "exists", "conflict", "waiting", "erased"]
"""What became of an event: `conflict` = another content under a cause that is taken; nothing is booked. `erased` = of
somebody who is erased, and no money: dropped."""
_DROPPED = frozenset((e.NoteAdded.TYPE, e.CreditGranted.TYPE, e.BalanceOpened.TYPE))

_encode = msgspec.json.Encoder(order="sorted").encode


@dataclass(slots=True)
class Purchase:
    """A settled payment. `taken_pico`: what refunds and disputes have taken back of its credit, net."""

    payment: str
    workspace_id: int
    credit_pico: int
    fee_pico: int
    taken_pico: int
    settled_at: datetime

    @property
    def left_pico(self) -> int:
        """What can still be taken back."""
        return self.credit_pico - self.taken_pico


@dataclass(slots=True)
class Dispute:
    """A dispute that is booked, with who bears it."""

    dispute: str
    payment: str
    workspace_id: int
    taken_pico: int
    suspense_pico: int
    state: Literal["open", "won", "lost"]


@dataclass(slots=True)
class Waiting:
    """A refund, a dispute or a dispute's end that came before what it is about."""

    cause: str
    kind: Literal["refund", "dispute", "dispute_closed"]
    payment: str
    dispute: str | None
    workspace_id: int
    credit_pico: int | None
    outcome: str | None
    digest: bytes
    event_at: datetime
    arrived_at: datetime
    position: int
    state: Literal["waiting", "suspense"] = "waiting"


@dataclass(frozen=True, slots=True)
class Note:
    """A sealed note."""

    note: str
    workspace_id: int
    text: str
    added_at: datetime


@dataclass(slots=True)
class Payments:
    """The books, and what is known of payments, disputes and causes that a batch touches."""

    books: Books
    erased: Collection[str] = frozenset()
    """Workspaces that are erased."""
    causes: dict[str, bytes] = field(default_factory=dict)
    purchases: dict[str, Purchase] = field(default_factory=dict)
    disputes: dict[str, Dispute] = field(default_factory=dict)
    waiting: dict[str, Waiting] = field(default_factory=dict)
    notes: dict[str, Note] = field(default_factory=dict)
    # What has to be written at the end.
    touched_purchases: dict[str, Purchase] = field(default_factory=dict)
    touched_disputes: dict[str, Dispute] = field(default_factory=dict)
    touched_waiting: dict[str, Waiting] = field(default_factory=dict)
    gone_waiting: set[str] = field(default_factory=set)
    new_notes: list[Note] = field(default_factory=list)
    jurisdiction_conflicts: int = 0
    suspense: int = 0

    def take(self, event: Any) -> Outcome:
        """Books one event of the payments topic."""
        data = event.data
        if data.workspace in self.erased:
            if event.type in _DROPPED:
                return "erased"
            standing = self.books.standings.get(data.workspace) or self._payer(data)
        else:
            standing = self.books.standings[data.workspace]
        if event.type == e.NoteAdded.TYPE:
            return self._note(data, standing, event.time)
        cause = cause_of(event, standing.workspace_id)
        digest = content_digest(event, standing.workspace_id)
        known = self.causes.get(cause)
        if known is None and cause in self.waiting:
            known = self.waiting[cause].digest
        if known is not None:
            return "exists" if known == digest else "conflict"
        outcome = self._book(event, standing, cause, digest)
        self._hand_over(standing, cause, event.time)
        return outcome

    def _book(self, event: Any, standing: Standing, cause: str, digest: bytes) -> Outcome:
        data = event.data
        match event.type:
            case e.PaymentSettled.TYPE:
                self._settle(data, standing, event.time, cause, digest)
            case e.PaymentRefunded.TYPE:
                return self._arrive(self._waiting("refund", None, data, standing, event.time, cause, digest), standing)
            case e.PaymentDisputed.TYPE:
                return self._arrive(
                    self._waiting("dispute", data.dispute, data, standing, event.time, cause, digest), standing
                )
            case e.DisputeClosed.TYPE:
                return self._arrive(
                    self._waiting("dispute_closed", data.dispute, data, standing, event.time, cause, digest), standing
                )
            case e.CreditGranted.TYPE:
                granted = Grant(data.grant, int(data.credit_pico), data.priority, data.expires_at, event.time)
                movement = ledger.grant(standing.balances, granted, self.books.now)
                self._post(standing, "grant", cause, movement, event.time, digest)
                self.books.granted |= {
                    g.grant: g.remaining_pico for g in movement.balances.grants if g.grant == data.grant
                }
            case e.BalanceOpened.TYPE:
                self._state(standing, data.jurisdiction, event.time)
                movement = ledger.open_balance(standing.balances, int(data.credit_pico))
                self._post(standing, "opening", cause, movement, event.time, digest)
                standing.changed = True  # an opening of 0 is published too: the gateway learns of the workspace
            case _:
                raise ValueError("an event type that the payments topic does not carry")
        return "created"

    # --- payers whose name is gone ---------------------------------------------------------------------------------

    def _payer(self, data: Any) -> Standing:
        """Whom an event of an erased workspace is about: whoever the payment or dispute is booked on, else nobody."""
        waiting = (item for item in self.waiting.values() if item.payment == data.payment)
        known = (self.purchases.get(data.payment), self.disputes.get(getattr(data, "dispute", "")), *waiting)
        for item in known:
            found = None if item is None else self.books.standings.get(numbered(item.workspace_id))
            if found is not None:
                return found
        return self.books.nobody(self.books.config.legal_class(getattr(data, "jurisdiction", None)))

    def _hand_over(self, standing: Standing, cause: str, event_at: datetime) -> None:
        """Credit that came back to somebody who is erased: nobody can use it, and it is visible as suspense."""
        if not standing.nameless or standing.nobody:
            return
        movement = ledger.lapse(standing.balances, to="suspense_erased")
        if movement.legs:
            self._post(standing, "erasure", f"erased:{cause}", movement, event_at, b"")

    # --- what can wait -------------------------------------------------------------------------------------------

    def _waiting(
        self,
        kind: Literal["refund", "dispute", "dispute_closed"],
        dispute: str | None,
        data: Any,
        standing: Standing,
        event_at: datetime,
        cause: str,
        digest: bytes,
    ) -> Waiting:
        amount = None if kind == "dispute_closed" else int(data.credit_pico)
        outcome = data.outcome if kind == "dispute_closed" else None
        return Waiting(
            cause, kind, data.payment, dispute, standing.workspace_id, amount, outcome, digest, event_at,
            self.books.now, len(self.touched_waiting) + len(self.gone_waiting),
        )  # fmt: skip

    def _arrive(self, item: Waiting, standing: Standing) -> Outcome:
        if self._apply(item, standing):
            if item.kind == "dispute":
                self._match(item.payment, standing)
            return "created"
        self.waiting[item.cause] = self.touched_waiting[item.cause] = item
        return "waiting"

    def _apply(self, item: Waiting, standing: Standing) -> bool:
        """Books `item` if what it is about is known and the same workspace's."""
        if item.workspace_id != standing.workspace_id:
            return False
        if item.kind == "dispute_closed":
            dispute = self.disputes.get(item.dispute or "")
            if dispute is None or dispute.workspace_id != item.workspace_id or dispute.state != "open":
                return False
            self._close_dispute(item, dispute, standing)
            return True
        purchase = self.purchases.get(item.payment)
        if purchase is None or purchase.workspace_id != item.workspace_id:
            return False
        return self._take_back(item, purchase, standing)

    def _take_back(self, item: Waiting, purchase: Purchase, standing: Standing) -> bool:
        assert item.credit_pico is not None
        late = item.state == "suspense"
        taken, movement = ledger.take_back(
            standing.balances,
            item.credit_pico,
            purchase.left_pico,
            source="suspense" if late else "payment_clearing",
        )
        if late and not taken:
            return False  # the purchase was taken back by others meanwhile: it stays in suspense
        cause, kind = (f"{item.cause}:matched", "match") if late else (item.cause, item.kind)
        self._post(standing, kind, cause, movement, item.event_at, item.digest)
        purchase.taken_pico += taken
        self.touched_purchases[purchase.payment] = purchase
        if item.dispute is not None:
            dispute = self.disputes.get(item.dispute)
            if dispute is None:
                dispute = Dispute(item.dispute, item.payment, item.workspace_id, 0, item.credit_pico, "open")
            dispute.taken_pico += taken
            dispute.suspense_pico -= taken
            self.disputes[item.dispute] = self.touched_disputes[item.dispute] = dispute
        return True

    def _close_dispute(self, item: Waiting, dispute: Dispute, standing: Standing) -> None:
        if item.outcome == "won":
            movement = ledger.give_back(standing.balances, dispute.taken_pico, dispute.suspense_pico)
            self._post(standing, "dispute_won", item.cause, movement, item.event_at, item.digest)
            purchase = self.purchases.get(dispute.payment)
            if purchase is not None and dispute.taken_pico:
                purchase.taken_pico -= dispute.taken_pico
                self.touched_purchases[purchase.payment] = purchase
            dispute.state = "won"
            self._forget(f"dispute:{dispute.dispute}")
        else:
            # Nothing moves: the money is gone since the dispute came. The journal says that this is final.
            self._post(
                standing, "dispute_lost", item.cause, Movement((), standing.balances), item.event_at, item.digest
            )
            dispute.state = "lost"
        self.touched_disputes[dispute.dispute] = dispute

    def _settle(self, data: Any, standing: Standing, event_at: datetime, cause: str, digest: bytes) -> None:
        if not standing.nameless:
            self._state(standing, data.jurisdiction, event_at)
        amount = int(data.credit_pico)
        fee = ledger.purchase_fee(amount, self.books.config)
        self._post(standing, "purchase", cause, ledger.settle(standing.balances, amount, fee), event_at, digest)
        purchase = Purchase(data.payment, standing.workspace_id, amount, fee, 0, event_at)
        self.purchases[data.payment] = self.touched_purchases[data.payment] = purchase
        self._match(data.payment, standing)

    def _match(self, payment: str, standing: Standing) -> None:
        """Books what has waited for this payment, in order of arrival, until nothing more fits."""
        fits = True
        while fits:
            fits = False
            ready = [w for w in self.waiting.values() if w.payment == payment]
            for item in sorted(ready, key=lambda w: (w.arrived_at, w.position)):
                if item.cause in self.waiting and self._apply(item, standing):
                    self._forget(item.cause)
                    fits = True

    def give_up(self, cause: str, standing: Standing) -> None:
        """`cause` has waited too long: its money is suspense from here on (an end of a dispute moves none)."""
        item = self.waiting[cause]
        self._give_up(item, cause, standing)
        self._hand_over(standing, cause, item.event_at)

    def _give_up(self, item: Waiting, cause: str, standing: Standing) -> None:
        if item.kind == "dispute_closed" and self._apply(item, standing):
            self._forget(cause)
            return
        item.state = "suspense"
        self.touched_waiting[cause] = item
        self.suspense += 1
        if item.credit_pico is None:
            return
        movement = ledger.unmatched(standing.balances, item.credit_pico)
        self._post(standing, "suspense", cause, movement, item.event_at, item.digest)
        if item.dispute is not None and item.dispute not in self.disputes:
            dispute = Dispute(item.dispute, item.payment, item.workspace_id, 0, item.credit_pico, "open")
            self.disputes[item.dispute] = self.touched_disputes[item.dispute] = dispute
            self._match(item.payment, standing)  # its end may have come before it

    def _forget(self, cause: str) -> None:
        if self.waiting.pop(cause, None) is not None:
            self.touched_waiting.pop(cause, None)
            self.gone_waiting.add(cause)

    # --- the rest ------------------------------------------------------------------------------------------------

    def _post(
        self, standing: Standing, kind: str, cause: str, movement: Movement, event_at: datetime, digest: bytes
    ) -> None:
        self.books.post(standing, kind, cause, movement, event_at=event_at, digest=digest)
        self.causes[cause] = digest

    def _state(self, standing: Standing, jurisdiction: str, event_at: datetime) -> None:
        self.jurisdiction_conflicts += not self.books.state_jurisdiction(standing, jurisdiction, event_at)

    def _note(self, data: Any, standing: Standing, added_at: datetime) -> Outcome:
        known = self.notes.get(data.note)
        if known is not None:
            return "exists" if (known.workspace_id, known.text) == (standing.workspace_id, data.text) else "conflict"
        note = Note(data.note, standing.workspace_id, data.text, added_at)
        self.notes[data.note] = note
        self.new_notes.append(note)
        return "created"


def cause_of(event: Any, workspace_id: int) -> str:
    """What makes an event of the payments topic unique. Ids are the processor's or the gateway's, over all workspaces."""
    data = event.data
    match event.type:
        case e.PaymentSettled.TYPE:
            return f"payment:{data.payment}"
        case e.PaymentRefunded.TYPE:
            return f"refund:{data.refund}"
        case e.PaymentDisputed.TYPE:
            return f"dispute:{data.dispute}"
        case e.DisputeClosed.TYPE:
            return f"dispute_closed:{data.dispute}"
        case e.CreditGranted.TYPE:
            return f"grant:{data.grant}"
        case e.BalanceOpened.TYPE:
            return f"opening:{workspace_id}"
        case _:
            raise ValueError("an event type without a cause")


def causes(books: Books, arrived: Iterable[Any]) -> list[str]:
    """The causes of these events; notes stand beside the ledger and have none."""
    numbers = {name: standing.workspace_id for name, standing in books.standings.items()}
    # Who has no number is erased: then none of the causes that would need it is asked for.
    return [
        cause_of(event, numbers.get(event.data.workspace, 0)) for event in arrived if event.type != e.NoteAdded.TYPE
    ]


def named_by(arrived: Iterable[Any], workspaces: Collection[str]) -> tuple[set[str], set[str]]:
    """(payments, disputes) that the events of these workspaces are about."""
    theirs = [event.data for event in arrived if event.data.workspace in workspaces]
    return (
        {data.payment for data in theirs if hasattr(data, "payment")},
        {data.dispute for data in theirs if hasattr(data, "dispute")},
    )


def content_digest(event: Any, workspace_id: int) -> bytes:
    """Digest of what an event says. The workspace is in it by its number in the ledger: names can be erased."""
    content = msgspec.to_builtins(event.data)
    del content["workspace"], content["account"]
    return hashlib.sha256(_encode([event.type, workspace_id, content])).digest()


def stated_jurisdictions(events: Iterable[Any]) -> dict[str, str]:
    """The jurisdiction that these events name for each workspace; the first one counts."""
    stated: dict[str, str] = {}
    for event in events:
        jurisdiction = getattr(event.data, "jurisdiction", None)
        if jurisdiction is not None:
            stated.setdefault(event.data.workspace, jurisdiction)
    return stated


def moves(books: Books, stated: dict[str, str]) -> list[tuple[int, str]]:
    """(workspace, new class) of those whose default class will give way to the one that a payment names."""
    found = set()
    for workspace, jurisdiction in stated.items():
        standing = books.standings.get(workspace)
        legal_class = books.config.legal_class(jurisdiction)
        if standing is not None and not standing.class_stated and standing.legal_class != legal_class:
            found.add((standing.workspace_id, legal_class))
    return sorted(found)
