"""A disclosure of somebody's data, pure: what may be extracted, and when its person is told.

An entry is told at once, or, while a gag lasts, at the gag's end: by its time, or by a person. Until then notifications keep
the address in an envelope, so that there is somebody to tell even if the account is gone by then.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import datetime, timedelta
from typing import Literal, TypeAlias

from services.retention.case import Timing

INSTRUMENTS = ("court_order", "subpoena", "warrant", "summons", "production_order", "mutual_assistance")
"""Valid legal process, and what is comparable."""
PROTECTED = ("rights", "property", "safety")
"""What a disclosure without legal process may protect."""
EXTRACTABLE = timedelta(days=30)
"""So long an entry can be extracted from; who needs more enters it again."""
COPY_LIFE = timedelta(days=7)
"""So long the rows of an extract can be read; holders delete them then, too."""
ENVELOPE_AFTER = timedelta(days=30)
"""So long after the gag's end the address is kept: for a mail that does not go out at once."""
GAG_MOST = timedelta(days=366)
"""A gag is looked at by a person at least once a year."""
PATIENCE = timedelta(days=4)
"""Notifications try a mail for 3 D; who has heard nothing by then asks a person."""

State = Literal["gagged", "owed", "asked", "told", "unheard"]


# --- what may be extracted ----------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Scope:
    """Tables by holder, and the time that their rows are of: half-open, or all of it without both ends."""

    tables: Mapping[str, tuple[str, ...]]
    since: datetime | None = None
    until: datetime | None = None

    def beyond(self, allowed: Scope) -> tuple[str, ...]:
        """What of this lies outside of `allowed`, in words; empty if nothing does."""
        found = [
            holder if holder not in allowed.tables else f"{holder}.{table}"
            for holder, tables in sorted(self.tables.items())
            for table in tables
            if table not in allowed.tables.get(holder, ())
        ]
        if allowed.since is not None and (self.since is None or self.since < allowed.since):
            found.append("since")
        if allowed.until is not None and (self.until is None or self.until > allowed.until):
            found.append("until")
        return tuple(dict.fromkeys(found))


# --- the machine --------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Errand:
    """What one holder owes for the extract number `epoch`."""

    epoch: int
    holder: str
    due_at: datetime | None  # of its next order; None when it is done
    sends: int = 0
    first_sent_at: datetime | None = None
    done_at: datetime | None = None


@dataclass(frozen=True, slots=True)
class Disclosure:
    """One entry, as far as it moves. `epoch` is that of the envelope's latest order (0: there is no envelope), `kept` of the
    latest receipt for it."""

    id: str
    entered_at: datetime
    state: State
    gag_until: datetime | None = None
    epoch: int = 0
    kept: int = 0
    sends: int = 0  # of this epoch
    first_sent_at: datetime | None = None  # of this epoch
    order_at: datetime | None = None  # of its next order
    asked_at: datetime | None = None
    told_at: datetime | None = None
    copies_until: datetime | None = None
    key_destroyed: bool = False
    errands: tuple[Errand, ...] = ()

    @property
    def ends_at(self) -> datetime:
        """No extract is ordered from here on."""
        return self.entered_at + EXTRACTABLE

    @property
    def over_at(self) -> datetime:
        """When nobody can read anything of it any more."""
        return self.copies_until or self.ends_at

    @property
    def enveloping(self) -> bool:
        """Whether its address is not yet in safety: an erasure would take it."""
        return self.epoch > 0 and self.kept == 0 and self.asked_at is None

    def needs_person(self, now: datetime, timing: Timing) -> tuple[str, ...]:
        """What does not get on by itself."""
        envelope = self.order_at is not None and _silent(self.first_sent_at, now, timing)
        notice = self.state == "unheard" or (
            self.state == "asked" and self.asked_at is not None and now - self.asked_at >= PATIENCE
        )
        extract = any(one.done_at is None and _silent(one.first_sent_at, now, timing) for one in self.errands)
        named = (("envelope", envelope), ("notice", notice), ("extract", extract and not self.key_destroyed))
        return tuple(name for name, is_so in named if is_so)


@dataclass(frozen=True, slots=True)
class KeepEnvelope:
    """Notifications are to keep the address until `not_after`."""

    epoch: int
    not_after: datetime


@dataclass(frozen=True, slots=True)
class Export:
    """A holder is to copy what the extract `epoch` says."""

    epoch: int
    holder: str


@dataclass(frozen=True, slots=True)
class Notice:
    """The person is told: at the envelope's address, or at the account's."""

    enveloped: bool


@dataclass(frozen=True, slots=True)
class DestroyKey:
    """Everything that was sealed for the entry ends."""


Deed: TypeAlias = KeepEnvelope | Export | Notice | DestroyKey


def entered(id: str, now: datetime, gag_until: datetime | None) -> Disclosure:
    """A new entry."""
    if gag_until is None:
        return Disclosure(id, now, "owed")
    return Disclosure(id, now, "gagged", gag_until, epoch=1, order_at=now)


def gag_ended(one: Disclosure, now: datetime) -> Disclosure:
    """The gag ends before its time."""
    return replace(one, state="owed", gag_until=now) if one.state == "gagged" else one


def gag_extended(one: Disclosure, until: datetime, now: datetime) -> Disclosure:
    """The gag lasts longer, and so does the envelope."""
    if one.state != "gagged" or one.gag_until is None or not now < one.gag_until < until:
        return one
    return replace(one, gag_until=until, epoch=one.epoch + 1, sends=0, first_sent_at=None, order_at=now)


def enveloped(one: Disclosure, epoch: int) -> Disclosure:
    """Notifications have kept the address, or had none to keep."""
    if not one.kept < epoch <= one.epoch or (epoch == one.epoch and one.sends == 0):
        return one
    return replace(one, kept=epoch, order_at=None if epoch == one.epoch else one.order_at)


def mailed(one: Disclosure, outcome: str, now: datetime) -> Disclosure:
    """What became of the notice. One that was accepted stays so, even if an older word comes after it."""
    if one.state not in ("asked", "unheard"):
        return one
    return replace(one, state="told", told_at=now) if outcome == "accepted" else replace(one, state="unheard")


def settled(one: Disclosure, now: datetime) -> Disclosure:
    """A named person has told the person otherwise, or knows that nobody can."""
    return replace(one, state="told", told_at=now) if one.state == "unheard" else one


def over(one: Disclosure, now: datetime) -> bool:
    """Whether an extract comes too late."""
    return one.key_destroyed or now >= one.ends_at or (one.state == "told" and now >= one.over_at)


def extracted(one: Disclosure, holders: Sequence[str], now: datetime) -> Disclosure:
    """An extract is ordered of these holders."""
    epoch = max((each.epoch for each in one.errands), default=0) + 1
    errands = (*one.errands, *(Errand(epoch, holder, now) for holder in sorted(holders)))
    return replace(one, errands=errands, copies_until=now + COPY_LIFE)


def copied(one: Disclosure, epoch: int, holder: str, now: datetime) -> Disclosure:
    """A holder has made its part of an extract."""
    errands = tuple(
        replace(each, done_at=now, due_at=None)
        if (each.epoch, each.holder) == (epoch, holder) and each.sends and each.done_at is None
        else each
        for each in one.errands
    )
    return one if errands == one.errands else replace(one, errands=errands)


def tick(one: Disclosure, now: datetime, timing: Timing) -> tuple[Disclosure, list[Deed]]:
    """The entry after this instant, and what is to be done about it, in that order."""
    deeds: list[Deed] = []
    if one.state == "gagged" and one.gag_until is not None and now >= one.gag_until:
        one = replace(one, state="owed")
    # The envelope is wanted until the notice is asked for; without a receipt nobody knows whether there is one.
    if one.gag_until is not None and one.order_at is not None and one.order_at <= now:
        deeds.append(KeepEnvelope(one.epoch, one.gag_until + ENVELOPE_AFTER))
        again = now + timing.backoff(one.sends + 1)
        one = replace(one, sends=one.sends + 1, first_sent_at=one.first_sent_at or now, order_at=again)
    if one.state == "owed" and (one.epoch == 0 or one.kept > 0):
        deeds.append(Notice(one.epoch > 0))
        one = replace(one, state="asked", asked_at=now, order_at=None)
    if _key_is_over(one, now):
        deeds.append(DestroyKey())
        errands = tuple(replace(each, due_at=None) for each in one.errands)
        return replace(one, key_destroyed=True, errands=errands), deeds
    ordered = []
    for each in one.errands:
        if each.due_at is None or each.due_at > now:
            ordered.append(each)
            continue
        deeds.append(Export(each.epoch, each.holder))
        again = now + timing.backoff(each.sends + 1)
        first = each.first_sent_at or now
        ordered.append(replace(each, sends=each.sends + 1, first_sent_at=first, due_at=again))
    return replace(one, errands=tuple(ordered)), deeds


def next_at(one: Disclosure, now: datetime) -> datetime | None:
    """When, after this instant, time alone changes something; None = never."""
    times = [each.due_at for each in one.errands if each.due_at is not None]
    if one.order_at is not None:
        times.append(one.order_at)
    if one.state == "gagged" and one.gag_until is not None:
        times.append(one.gag_until)
    if one.state == "asked" and one.asked_at is not None:
        times.append(one.asked_at + PATIENCE)
    if one.state == "told" and not one.key_destroyed:
        times.append(one.over_at)
    if one.state == "unheard" and not one.key_destroyed and one.asked_at is not None:
        times.append(max(one.over_at, one.asked_at + ENVELOPE_AFTER))
    return min((at for at in times if at > now), default=None)


def _key_is_over(one: Disclosure, now: datetime) -> bool:
    """The notice is settled, or its envelope's time is over, and nobody can read the extract any more."""
    if one.key_destroyed or now < one.over_at:
        return False
    given_up = one.state == "unheard" and one.asked_at is not None and now >= one.asked_at + ENVELOPE_AFTER
    return one.state == "told" or given_up


def _silent(first_sent_at: datetime | None, now: datetime, timing: Timing) -> bool:
    return first_sent_at is not None and now - first_sent_at >= timing.silence
