"""Cases, and the life of a deletion, pure: a case, what happened, and when, give the next case and what is to be done.

All that people ask for is a `Case`; what is no deletion goes its way in `right.py`.

Duplicates and reordering change nothing: a receipt counts for the epoch that is open, a scan for the one that was asked
for last. Nothing here forgets an expected holder; only its receipt, or a named person's waiver, settles it.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace
from datetime import datetime, timedelta
from typing import Literal, TypeAlias

State = Literal[
    "requested", "wave_1", "wave_2", "probing", "completed", "sweeping", "certified", "withdrawn", "lapsed",
    "triage", "working", "packing", "answering", "fulfilled", "denied",
]  # fmt: skip
Kind = Literal[
    "erasure", "closure", "child_report", "access", "portability", "access:categories", "rectification", "sale:opt-out",
    "inquiry",
]  # fmt: skip
Verdict = Literal["clean", "shredded", "retained", "held", "expiring", "residue", "not_scanned"]
Offsets: TypeAlias = Mapping[str, Mapping[str, int]]

DELETIONS: frozenset[str] = frozenset(("erasure", "closure", "child_report"))
"""What ends in a deletion; a report about a child does when a person says so."""
ENDED: frozenset[str] = frozenset(("certified", "withdrawn", "lapsed", "fulfilled", "denied"))
ERASING: frozenset[str] = frozenset(("wave_1", "wave_2", "probing", "completed", "sweeping"))
LAST_WAVE: frozenset[str] = frozenset(("billing",))
"""Holders that are told when all others are done, and how far they must have read: they still book what is on its way."""
SOURCE_OF_OFFSETS = "metering"
AUDITOR = "audit"
FAULTS = 5
"""Scans with the same holder's residue that are answered by erasing again; after them a person is needed."""
GOOD: frozenset[str] = frozenset(("clean", "shredded", "retained", "held"))


@dataclass(frozen=True, slots=True)
class Timing:
    """How long to wait for what. The production values; tests are quicker."""

    lapse: timedelta = timedelta(days=7)
    attempts: int = 5  # wrong codes that a case stands
    # Kafka loses nothing, and behind a long queue an answer takes minutes: who asks every second only makes it longer.
    resend: timedelta = timedelta(seconds=30)
    resend_ceiling: timedelta = timedelta(minutes=5)
    hold_first: timedelta = timedelta(seconds=1)  # between looks whether a hold is placed by now
    again: timedelta = timedelta(seconds=30)  # before an erasure, or a scan, is repeated; doubles with every fault
    silence: timedelta = timedelta(hours=24)  # a holder without a receipt for that long needs a person
    sweep_after: timedelta = timedelta(hours=1)  # by then topics are trimmed
    sweep_again: timedelta = timedelta(hours=1)  # while something still expires by its own clock

    def backoff(self, sends: int) -> timedelta:
        """How long to wait for an answer to the `sends`-th order."""
        return min(self.resend * (1 << min(sends - 1, 20)), self.resend_ceiling)

    def pause(self, faults: int) -> timedelta:
        """How long to wait before what went wrong `faults` times is tried again."""
        return min(self.again * (1 << min(faults - 1, 20)), max(self.again, self.sweep_again))


QUICK = Timing(
    resend=timedelta(seconds=1),
    resend_ceiling=timedelta(seconds=5),
    again=timedelta(seconds=1),
    sweep_after=timedelta(seconds=5),
    sweep_again=timedelta(seconds=5),
)
"""For a developer's machine and tests."""


@dataclass(frozen=True, slots=True)
class Progress:
    """How far one holder (or the auditor) is. `epoch` is that of the latest order, `done` of the latest answer."""

    holder: str
    epoch: int = 0
    done: int = 0
    sends: int = 0  # of this epoch
    first_sent_at: datetime | None = None  # of this epoch
    due_at: datetime | None = None  # when this epoch's order is sent, or sent again
    faults: int = 0  # scans in a row that found something here
    offsets: Offsets = field(default_factory=dict)
    waived_by: str | None = None
    ticket: str | None = None
    waived_at: datetime | None = None

    @property
    def settled(self) -> bool:
        """Nothing is owed: answered, or waived by a person."""
        return self.waived_by is not None or 0 < self.epoch == self.done

    @property
    def exhausted(self) -> bool:
        """Erasing again does not help."""
        return self.waived_by is None and self.faults > FAULTS

    def silent(self, now: datetime, timing: Timing) -> bool:
        """Whether it owes an answer for too long."""
        return not self.settled and self.first_sent_at is not None and now - self.first_sent_at >= timing.silence

    def ordered(self, due_at: datetime) -> Progress:
        """The next epoch, to be ordered at `due_at`."""
        return replace(self, epoch=self.epoch + 1, sends=0, first_sent_at=None, due_at=due_at)


@dataclass(frozen=True, slots=True)
class Asked:
    """One time that somebody asked for it. `acknowledged_at`: the mail that says that we know was accepted."""

    id: str
    received_at: datetime
    acknowledged_at: datetime | None = None


@dataclass(frozen=True, slots=True)
class Case:
    """One case. `id` is that of the event that asked for it.

    `needed`, `proofs`: which addresses have to prove themselves (`account`, and `other` for a new one), and which have.
    `outcome`: what the answer says, once it is clear; `reason` why it is denied, in the words of the Data Rights Protocol.
    """

    id: str
    scope: Literal["account", "workspace", "member"]
    requested_at: datetime
    kind: Kind = "erasure"
    channel: Literal["settings", "api", "support"] = "settings"
    state: State = "requested"
    state_at: datetime | None = None  # since when; None: since it was asked for
    requests: tuple[Asked, ...] = ()
    needed: frozenset[str] = frozenset()
    proofs: frozenset[str] = frozenset()
    verified_at: datetime | None = None
    lapses_at: datetime | None = None  # when its latest code is over
    outcome: Literal["fulfilled", "denied"] | None = None
    reason: str | None = None
    extended_at: datetime | None = None  # the person was told that the law grants more time
    escalated_to: str | None = None
    unanswerable: bool = False  # the mail with the answer was refused
    attempts: int = 0
    confirmed_at: datetime | None = None
    completed_at: datetime | None = None
    answered_at: datetime | None = None  # the mail that says so was accepted
    ended_at: datetime | None = None
    moved_at: datetime | None = None  # the latest progress
    key_destroyed: bool = False
    holders: Mapping[str, Progress] = field(default_factory=dict)
    auditor: Progress = field(default_factory=lambda: Progress(AUDITOR))

    @property
    def open(self) -> bool:
        """Whether somebody still waits for it."""
        return self.state not in ENDED

    @property
    def missing(self) -> tuple[str, ...]:
        """Holders that owe a receipt."""
        return tuple(sorted(name for name, one in self.holders.items() if not one.settled))

    def needs_person(self, now: datetime, timing: Timing) -> tuple[str, ...]:
        """Why it does not get on by itself: `silent:<holder>`, `residue:<holder>`; empty when it does."""
        if not self.open:
            return ()
        copying = self.state in ("working", "packing")
        packing = self.state == "packing" and now - (self.state_at or self.requested_at) >= timing.silence
        everybody = (*self.holders.values(), self.auditor)
        return (
            *(["triage"] if self.state == "triage" else []),
            *(["decide"] if self.kind == "child_report" and self.state == "requested" else []),
            *(["mail"] if self.unanswerable else []),
            *(["packing"] if packing or (copying and any(h.epoch > FAULTS for h in self.holders.values())) else []),
            *([f"escalated:{self.escalated_to}"] if self.escalated_to is not None else []),
            *(f"silent:{one.holder}" for one in everybody if one.silent(now, timing)),
            *(f"residue:{one.holder}" for one in everybody if one.exhausted),
        )


# --- what happens -------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Confirmed:
    """Somebody said the last word; `right`: with the right code."""

    right: bool


@dataclass(frozen=True, slots=True)
class Withdrawn:
    """The request is not wanted any more."""


@dataclass(frozen=True, slots=True)
class Receipt:
    """A holder did what it was told. `remaining` rows lead to an erased subject still, and then it has not; `rows` were
    corrected."""

    holder: str
    epoch: int
    offsets: Offsets = field(default_factory=dict)
    remaining: int = 0
    rows: int = 0


@dataclass(frozen=True, slots=True)
class Finding:
    """What the auditor saw in one store."""

    holder: str
    verdict: Verdict


@dataclass(frozen=True, slots=True)
class Scan:
    """What the auditor saw everywhere."""

    action: Literal["probe", "sweep"]
    epoch: int
    findings: tuple[Finding, ...]


@dataclass(frozen=True, slots=True)
class Answered:
    """What became of the mail that says that it is done."""

    accepted: bool


@dataclass(frozen=True, slots=True)
class Denied:
    """A person says no; `reason` in the words of the Data Rights Protocol."""

    reason: str


@dataclass(frozen=True, slots=True)
class Escalated:
    """A person hands it to somebody of another role."""

    role: str


@dataclass(frozen=True, slots=True)
class Extended:
    """A person takes the longer time that the law grants for an answer."""


@dataclass(frozen=True, slots=True)
class Tick:
    """Time has passed."""


@dataclass(frozen=True, slots=True)
class Waive:
    """A named person answers for a holder that is gone."""

    holder: str
    actor: str
    ticket: str


@dataclass(frozen=True, slots=True)
class Retry:
    """A person has seen to what was wrong: faults count anew, whatever is owed is ordered now."""


@dataclass(frozen=True, slots=True)
class SweepNow:
    """A person does not want to wait for the sweep's hour."""


Happening: TypeAlias = (
    Confirmed | Withdrawn | Receipt | Scan | Answered | Denied | Escalated | Extended | Tick | Waive | Retry | SweepNow
)

# --- what is to be done -------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Entomb:
    """Tombstones, key refusals, the sealed list of subjects: before the first order."""


@dataclass(frozen=True, slots=True)
class OrderErasure:
    """Holders are told to erase, once they have read `after`."""

    holders: tuple[str, ...]
    epoch: int
    after: Offsets = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class OrderScan:
    """The auditor is told to look."""

    action: Literal["probe", "sweep"]
    epoch: int


@dataclass(frozen=True, slots=True)
class Tell:
    """The mail that says that it is done; compacted topics forget, too."""


@dataclass(frozen=True, slots=True)
class Certify:
    """The certificate is written and signed."""


@dataclass(frozen=True, slots=True)
class DestroyKey:
    """The case's key goes, and with it every copy of the orders and the envelope."""


@dataclass(frozen=True, slots=True)
class Forget:
    """No plain id stays with the case."""


@dataclass(frozen=True, slots=True)
class Answer:
    """The mail that says what came of it."""

    template: str


Deed: TypeAlias = Entomb | OrderErasure | OrderScan | Tell | Certify | DestroyKey | Forget | Answer


@dataclass(frozen=True, slots=True)
class World:
    """What the machine has to know of the world: the time, who holds data today, and whose order has to wait.

    `deferred`: holders that have not yet put aside what a hold keeps; erasing there first would weaken the hold.
    """

    now: datetime
    holders: tuple[str, ...]
    timing: Timing = field(default_factory=Timing)
    deferred: frozenset[str] = frozenset()


def closure(case_id: str, closed_at: datetime, world: World) -> tuple[Case, list[Deed]]:
    """The case of an account whose time after its closing is over: it confirms itself."""
    return step(Case(case_id, "account", closed_at, kind="closure"), Confirmed(right=True), world)


def asked_earlier(case: Case, at: datetime) -> Case:
    """Somebody had asked for the same before: the earliest wish's clocks are the case's."""
    return replace(case, requested_at=min(case.requested_at, at))


def closing(case: Case, closed_at: datetime) -> Case:
    """A request that still waits, of an account that was closed: it ends with the account's time, confirmed or not."""
    return replace(asked_earlier(case, closed_at), kind="closure")


def unproved(case: Case, now: datetime) -> Case:
    """A case whose certificate would not be true, whatever the scan said: nobody is told that it is certified before a
    person has looked into it."""
    auditor = replace(case.auditor, done=case.auditor.epoch, due_at=None, faults=FAULTS + 1)
    return replace(case, auditor=auditor, moved_at=now)


def step(case: Case, what: Happening, world: World) -> tuple[Case, list[Deed]]:
    """The case after `what`, and what is to be done about it, in that order."""
    deeds: list[Deed] = []
    now = world.now
    match what:
        case Confirmed(right) if case.state == "requested":
            case = _confirm(case, right, world, deeds)
        case Withdrawn() if case.state == "requested":
            case = _end(case, "withdrawn", now, deeds)
        case Receipt() if case.state in ERASING:
            case = _receive(case, what, world)
        case Scan() if case.state in ERASING:
            case = _judge(case, what, world, deeds)
        case Answered(accepted) if accepted and case.completed_at is not None and case.answered_at is None:
            case = replace(case, answered_at=now)
        case Denied(reason) if case.state == "requested":
            deeds.append(Answer("denied"))
            case = replace(case, state="answering", outcome="denied", reason=reason, moved_at=now)
        case Escalated(role) if case.open:
            case = replace(case, escalated_to=role)
        case Extended() if case.open and case.answered_at is None:
            case = replace(case, extended_at=case.extended_at or now)
        case Tick() if _lapses(case) and now >= _over_at(case, world.timing):
            case = _end(case, "lapsed", now, deeds)
        case Tick() if case.state == "certified" and not case.key_destroyed:
            deeds.append(DestroyKey())
            case = replace(case, key_destroyed=True)
        case Waive(holder, actor, ticket) if case.state in ERASING and holder in case.holders:
            case = _put(case, replace(case.holders[holder], waived_by=actor, ticket=ticket, waived_at=now, due_at=None))
        case Retry() if case.state in ERASING:
            case = _retry(case, now)
        case SweepNow() if case.state in ("completed", "sweeping") and not case.auditor.settled:
            case = replace(case, auditor=replace(case.auditor, due_at=now))
        case Tick() if case.state in ERASING:
            pass
        case _:
            return case, deeds
    if case.state in ERASING:
        case = _advance(case, world, deeds)
    return case, deeds


def _lapses(case: Case) -> bool:
    """A wish that nobody confirms ends; a report about a child waits for a person, however long that takes."""
    return case.state == "requested" and case.kind != "child_report"


def _over_at(case: Case, timing: Timing) -> datetime:
    """When a wish that nobody has confirmed is over: with its latest code."""
    return case.lapses_at or case.requested_at + timing.lapse


def next_at(case: Case, timing: Timing) -> datetime | None:
    """When time alone changes something; None = never."""
    if case.state == "requested":
        return _over_at(case, timing) if _lapses(case) else None
    if case.state == "certified":
        return None if case.key_destroyed else case.ended_at
    if case.state not in ERASING:
        return None
    waiting = [one for one in case.holders.values() if not one.settled] or [case.auditor]
    return min((one.due_at for one in waiting if not one.settled and one.due_at is not None), default=None)


# --- the steps ----------------------------------------------------------------------------------------------------


def _confirm(case: Case, right: bool, world: World, deeds: list[Deed]) -> Case:
    now = world.now
    if case.kind == "erasure" and now >= _over_at(case, world.timing):
        return _end(case, "lapsed", now, deeds)
    if not right:
        case = replace(case, attempts=case.attempts + 1)
        return case if case.attempts < world.timing.attempts else _end(case, "lapsed", now, deeds)
    deeds += [Entomb(), Forget()]
    holders = {name: Progress(name) for name in world.holders}
    return replace(case, state="wave_1", confirmed_at=now, moved_at=now, holders=holders)


def _end(case: Case, state: Literal["withdrawn", "lapsed"], now: datetime, deeds: list[Deed]) -> Case:
    deeds.append(Forget())
    return replace(case, state=state, ended_at=now)


def _receive(case: Case, receipt: Receipt, world: World) -> Case:
    one = case.holders.get(receipt.holder)
    # What nobody ordered, or ordered anew since, settles nothing.
    if one is None or one.sends == 0 or receipt.epoch != one.epoch or one.done == receipt.epoch:
        return case
    one = replace(one, done=receipt.epoch, due_at=None, offsets=receipt.offsets or one.offsets)
    case = replace(_put(case, one), moved_at=world.now)
    return _erase_again(case, [one.holder], world) if receipt.remaining else case


def _judge(case: Case, scan: Scan, world: World, deeds: list[Deed]) -> Case:
    auditor, now = case.auditor, world.now
    asked = "sweep" if case.completed_at is not None else "probe"
    if scan.epoch != auditor.epoch or auditor.settled or auditor.sends == 0 or scan.action != asked:
        return case
    case = replace(_join(case, world), auditor=replace(auditor, done=scan.epoch, due_at=None), moved_at=now)
    if case.missing:
        return case  # it looked before everybody was done
    bad = {name: worst for name, worst in _verdicts(case, scan).items() if worst in ("residue", "not_scanned")}
    if bad:
        return _erase_again(case, bad, world)
    case = _absolve(case)
    if scan.action == "probe":
        deeds.append(Tell())
        case = replace(case, state="completed", completed_at=now)
        return replace(case, auditor=case.auditor.ordered(now + world.timing.sweep_after))
    if any(finding.verdict not in GOOD for finding in scan.findings if not _waived(case, finding)):
        return replace(case, auditor=case.auditor.ordered(now + world.timing.sweep_again))
    deeds.append(Certify())
    return replace(case, state="certified", ended_at=now)


def _waived(case: Case, finding: Finding) -> bool:
    """Of a holder that is gone nobody can see anything: a person has answered for that, never for what was seen."""
    one = case.holders.get(finding.holder)
    return finding.verdict == "not_scanned" and one is not None and one.waived_by is not None


def _verdicts(case: Case, scan: Scan) -> dict[str, Verdict]:
    """The worst of each holder; of one that the scan does not name, that nobody looked."""
    worst: dict[str, Verdict] = {name: "not_scanned" for name, one in case.holders.items() if one.waived_by is None}
    for name in {finding.holder for finding in scan.findings}:
        seen = {finding.verdict for finding in scan.findings if finding.holder == name and not _waived(case, finding)}
        worst[name] = "residue" if "residue" in seen else "not_scanned" if "not_scanned" in seen else "clean"
    return worst


def _erase_again(case: Case, bad: Iterable[str], world: World) -> Case:
    """Holders with residue get a new epoch, a few times; what is nobody's (a topic) is looked at again."""
    for name in sorted(bad):
        one = case.holders.get(name)
        if one is None or one.waived_by is not None:
            auditor = replace(case.auditor, faults=case.auditor.faults + 1)
            case = replace(case, auditor=auditor)
            continue
        one = replace(one, faults=one.faults + 1)
        case = _put(case, one if one.exhausted else one.ordered(world.now + world.timing.pause(one.faults)))
    return case


def _absolve(case: Case) -> Case:
    """A scan found nothing: what was wrong before is right now."""
    for one in case.holders.values():
        if one.faults:
            case = _put(case, replace(one, faults=0))
    return replace(case, auditor=replace(case.auditor, faults=0))


def _retry(case: Case, now: datetime) -> Case:
    for one in case.holders.values():
        if one.exhausted:
            case = _put(case, replace(one, faults=0).ordered(now))
        elif not one.settled and one.epoch:
            case = _put(case, replace(one, due_at=now))
    auditor = replace(case.auditor, faults=0)
    return replace(case, auditor=auditor if auditor.settled or not auditor.epoch else replace(auditor, due_at=now))


def _join(case: Case, world: World) -> Case:
    """A holder that joined meanwhile is as much expected as the others."""
    new = [name for name in world.holders if name not in case.holders]
    if not new:
        return case
    return replace(case, holders={**case.holders, **{name: Progress(name) for name in new}})


def _advance(case: Case, world: World, deeds: list[Deed]) -> Case:
    """Goes on as far as what has been answered allows, and sends what is due."""
    case, now = _join(case, world), world.now
    first = [one for name, one in case.holders.items() if name not in LAST_WAVE]
    if case.state == "wave_1" and all(one.settled for one in first):
        case = replace(case, state="wave_2")
    for one in case.holders.values():
        if one.epoch == 0 and one.waived_by is None and (one.holder not in LAST_WAVE or case.state != "wave_1"):
            case = _put(case, one.ordered(now))
    if case.state == "wave_2" and not case.missing:
        case = replace(case, state="probing")
    stuck = any(one.exhausted for one in (*case.holders.values(), case.auditor))
    done = case.state in ("probing", "completed", "sweeping") and not case.missing and not stuck
    if done and (case.auditor.epoch == 0 or case.auditor.settled):
        faults = case.auditor.faults
        case = replace(case, auditor=case.auditor.ordered(now + world.timing.pause(faults) if faults else now))
    return _send(case, world, deeds)


def _send(case: Case, world: World, deeds: list[Deed]) -> Case:
    """Orders that are due, those of one epoch together."""
    now = world.now
    groups: dict[tuple[int, bool], list[str]] = {}
    for name, one in sorted(case.holders.items()):
        if one.settled or one.due_at is None or one.due_at > now:
            continue
        if name in world.deferred and not one.sends:
            # The hold first: its receipt comes in seconds, or its own escalation does.
            case = _put(case, replace(one, due_at=now + world.timing.hold_first))
            continue
        groups.setdefault((one.epoch, name in LAST_WAVE), []).append(name)
        case = _put(case, sent(one, world))
    source = case.holders.get(SOURCE_OF_OFFSETS)
    for (epoch, last), names in sorted(groups.items()):
        deeds.append(OrderErasure(tuple(names), epoch, source.offsets if last and source is not None else {}))
    auditor = case.auditor
    looking = case.state in ("probing", "completed", "sweeping") and not case.missing and not auditor.settled
    if looking and auditor.due_at is not None and auditor.due_at <= now:
        action: Literal["probe", "sweep"] = "probe" if case.completed_at is None else "sweep"
        deeds.append(OrderScan(action, auditor.epoch))
        state: State = "probing" if action == "probe" else "sweeping"
        case = replace(case, auditor=sent(auditor, world), state=state)
    return case


def sent(one: Progress, world: World) -> Progress:
    """The progress of a holder that is told (again)."""
    sends = one.sends + 1
    return replace(
        one, sends=sends, first_sent_at=one.first_sent_at or world.now, due_at=world.now + world.timing.backoff(sends)
    )


def _put(case: Case, one: Progress) -> Case:
    return replace(case, holders={**case.holders, one.holder: one})
