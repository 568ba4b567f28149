"""The life of every case that is no deletion, pure: who asks proves it, holders are asked, the answer goes out.

    triage --a person says what it is--> requested --proofs--> working --receipts--> packing --> answering --> fulfilled
                                             |                    ^--not whole, next epoch--'    (mail) `--> denied
                                             `-- no code in time, or too many wrong ones --> answering (denied)

`withdrawn` ends it from everywhere: by the person's word, or because the person is erased. Nothing pauses a clock.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from datetime import datetime, timedelta
from typing import Literal, TypeAlias

from services.retention import case as cases
from services.retention.case import Case, Deed, Progress, State, Timing, World

PACKAGED: frozenset[str] = frozenset(("access", "portability", "access:categories"))
"""Kinds whose answer is a package."""
ACTIONS: Mapping[str, Literal["export", "rectify"]] = {
    "access": "export",
    "portability": "export",
    "access:categories": "export",
    "rectification": "rectify",
}
"""What holders are told to do for a kind."""
OPEN: frozenset[str] = frozenset(("triage", "requested", "working", "packing"))
"""States in which the answer is not clear."""


# --- what happens -------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Begin:
    """It is clear what is wanted. `ready`: nothing but proofs is missing (a package needs something to open it with);
    `corrector`: the holder that a correction concerns; None if it is made where the proofs are judged."""

    ready: bool = True
    corrector: str | None = None


@dataclass(frozen=True, slots=True)
class Proved:
    """A code came back; `of`: whose, None for a wrong one."""

    of: str | None
    ready: bool = True
    corrector: str | None = None


@dataclass(frozen=True, slots=True)
class Packed:
    """The package lies there."""


@dataclass(frozen=True, slots=True)
class Torn:
    """The copies are not whole: some were over before the last one came."""


@dataclass(frozen=True, slots=True)
class Settled:
    """It was answered by a person, or there is nobody to write to."""


@dataclass(frozen=True, slots=True)
class Gone:
    """Whom it is about is erased."""


Happening: TypeAlias = cases.Happening | Begin | Proved | Packed | Torn | Settled | Gone


# --- what is to be done -------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class AskProofs:
    """Mails with codes, to these addresses."""

    of: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class OrderErrand:
    """Holders are told what to do."""

    action: Literal["export", "rectify"]
    holders: tuple[str, ...]
    epoch: int


@dataclass(frozen=True, slots=True)
class Pack:
    """The package is made out of what the holders wrote."""


@dataclass(frozen=True, slots=True)
class OptOut:
    """That nothing of this account is sold, now or ever, is noted."""


@dataclass(frozen=True, slots=True)
class Drop:
    """What was made for it goes: parts, package."""


RightDeed: TypeAlias = Deed | AskProofs | OrderErrand | Pack | OptOut | Drop


def step(case: Case, what: Happening, world: World) -> tuple[Case, list[RightDeed]]:
    """The case after `what`, and what is to be done about it, in that order."""
    deeds: list[RightDeed] = []
    now = world.now
    match what:
        case Begin() if case.state in ("triage", "requested"):
            case = replace(case, state="requested", lapses_at=now + world.timing.lapse)
            case = _verify(case, what, world, deeds, ask=True)
        case Proved(None) if case.state in ("triage", "requested"):
            case = replace(case, attempts=min(case.attempts + 1, world.timing.attempts))
            if case.attempts >= world.timing.attempts and case.state == "requested":
                case = _deny(case, "insuf_verification", deeds)
        case Proved(of) if (
            of is not None and case.state in ("triage", "requested") and case.attempts < world.timing.attempts
        ):
            case = replace(case, proofs=case.proofs | {of})
            if case.state == "requested":
                case = _verify(case, Begin(what.ready, what.corrector), world, deeds, ask=False)
        case cases.Receipt() if case.state == "working":
            case = _receive(case, what, world, deeds)
        case Packed() if case.state == "packing":
            case = _answer(case, "categories_ready" if case.kind == "access:categories" else "copy_ready", deeds)
        case Torn() | cases.Retry() if case.state == "packing" and any(
            one.waived_by is None for one in case.holders.values()
        ):
            case = _again(case, world, deeds, at_once=isinstance(what, cases.Retry))
        case cases.Answered(accepted) if case.state == "answering":
            case = (
                _end(replace(case, answered_at=now), None, now, deeds) if accepted else replace(case, unanswerable=True)
            )
        case Settled() if case.state in ("triage", "answering"):
            case = _end(replace(case, answered_at=now), None, now, deeds)
        case cases.Denied(reason) if case.state in OPEN:
            case = _deny(case, reason, deeds)
        case cases.Withdrawn() if case.state in OPEN:
            case = _end(case, "withdrawn", now, deeds)
        case Gone() if case.open:
            case = _end(case, "withdrawn", now, deeds)
        case cases.Escalated(role) if case.open:
            case = replace(case, escalated_to=role)
        case cases.Extended() if case.open and case.answered_at is None:
            case = replace(case, extended_at=case.extended_at or now)
        case cases.Tick() if case.state == "requested" and case.lapses_at is not None and now >= case.lapses_at:
            case = _deny(case, "insuf_verification", deeds)
        case cases.Tick() | cases.Retry() if case.state == "working":
            case = _send(case, world, deeds, at_once=isinstance(what, cases.Retry))
        case cases.Waive(holder, actor, ticket) if case.state == "working" and holder in case.holders:
            one = replace(case.holders[holder], waived_by=actor, ticket=ticket, waived_at=now, due_at=None)
            case = _settle(_put(case, one), 0, deeds)
        case cases.Tick() if not case.open and not case.key_destroyed:
            deeds.append(cases.DestroyKey())
            case = replace(case, key_destroyed=True)
    return case, deeds


def next_at(case: Case, timing: Timing) -> datetime | None:
    """When time alone changes something; None = never."""
    if case.state == "requested":
        return case.lapses_at
    if case.state == "working":
        return min((one.due_at for one in case.holders.values() if not one.settled and one.due_at), default=None)
    return case.ended_at if not case.open and not case.key_destroyed else None


# --- the steps ----------------------------------------------------------------------------------------------------


def _verify(case: Case, begin: Begin, world: World, deeds: list[RightDeed], *, ask: bool) -> Case:
    """Goes on when everybody who has to has proved who they are, and asks them otherwise."""
    missing = case.needed - case.proofs
    if not begin.ready and not missing:
        # The mail that asks who it is asks for the rest as well.
        missing = case.needed or frozenset({"account"})
        case = replace(case, needed=missing, proofs=case.proofs - missing)
        ask = True
    if missing:
        if ask:
            deeds.append(AskProofs(tuple(sorted(missing))))
        return case
    case = replace(case, verified_at=case.verified_at or world.now, lapses_at=None, moved_at=world.now)
    if case.kind == "sale:opt-out":
        deeds.append(OptOut())
        return _answer(case, "opted_out", deeds)
    if case.kind == "rectification" and begin.corrector is None:
        return _answer(case, "corrected", deeds)
    holders = world.holders if begin.corrector is None else (begin.corrector,)
    case = replace(case, state="working", holders={name: Progress(name).ordered(world.now) for name in holders})
    return _send(case, world, deeds)


def _receive(case: Case, receipt: cases.Receipt, world: World, deeds: list[RightDeed]) -> Case:
    one = case.holders.get(receipt.holder)
    if one is None or one.sends == 0 or receipt.epoch != one.epoch or one.done == receipt.epoch:
        return case
    one = replace(one, done=receipt.epoch, due_at=None)
    return _settle(replace(_put(case, one), moved_at=world.now), receipt.rows, deeds)


def _settle(case: Case, rows: int, deeds: list[RightDeed]) -> Case:
    """The last holder has answered. A correction has one, and where that has nothing, nothing is wrong."""
    if case.missing:
        return case
    if case.kind in PACKAGED:
        deeds.append(Pack())
        return replace(case, state="packing")
    return _answer(case, "corrected", deeds) if rows else _deny(case, "no_match", deeds)


def _again(case: Case, world: World, deeds: list[RightDeed], *, at_once: bool) -> Case:
    """All copies are asked for anew, of one epoch; at once the first time and by a person, then later and later."""
    case = replace(case, state="working", moved_at=world.now)
    for one in case.holders.values():
        if one.waived_by is None:
            wait = one.epoch > 1 and not at_once
            case = _put(case, one.ordered(world.now + (world.timing.pause(one.epoch - 1) if wait else timedelta(0))))
    return _send(case, world, deeds)


def _send(case: Case, world: World, deeds: list[RightDeed], *, at_once: bool = False) -> Case:
    """Orders that are due."""
    names = [
        name
        for name, one in sorted(case.holders.items())
        if not one.settled and one.due_at is not None and (at_once or one.due_at <= world.now)
    ]
    for name in names:
        case = _put(case, cases.sent(case.holders[name], world))
    if names:
        deeds.append(OrderErrand(ACTIONS[case.kind], tuple(names), case.holders[names[0]].epoch))
    return case


def _answer(case: Case, template: str, deeds: list[RightDeed]) -> Case:
    deeds.append(cases.Answer(template))
    return replace(case, state="answering", outcome="fulfilled")


def _deny(case: Case, reason: str, deeds: list[RightDeed]) -> Case:
    deeds += [Drop(), cases.Answer("denied")]
    return replace(case, state="answering", outcome="denied", reason=reason, lapses_at=None)


def _end(case: Case, state: Literal["withdrawn"] | None, now: datetime, deeds: list[RightDeed]) -> Case:
    deeds.append(cases.Forget())
    if state is not None:
        deeds.append(Drop())
    ended: State = state or case.outcome or "fulfilled"
    return replace(case, state=ended, ended_at=now, unanswerable=False, escalated_to=None, lapses_at=None)


def _put(case: Case, one: Progress) -> Case:
    return replace(case, holders={**case.holders, one.holder: one})
