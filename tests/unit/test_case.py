"""A deletion case, whatever order its receipts, scans and persons come in."""

from __future__ import annotations

from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from typing import Any, Literal

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from services.retention.case import (
    ENDED,
    ERASING,
    FAULTS,
    Answered,
    Case,
    Certify,
    Confirmed,
    Deed,
    DestroyKey,
    Entomb,
    Finding,
    Forget,
    Happening,
    OrderErasure,
    OrderScan,
    Receipt,
    Retry,
    Scan,
    SweepNow,
    Tell,
    Tick,
    Timing,
    Verdict,
    Waive,
    Withdrawn,
    World,
    closure,
    next_at,
    step,
    unproved,
)

START = datetime(2026, 3, 1, tzinfo=UTC)
HOLDERS = ("metering", "billing", "security", "retention", "notifications", "insights")
FIRST = tuple(sorted(set(HOLDERS) - {"billing"}))
OFFSETS = {"rated": {"0": 18, "3": 211}}


@dataclass
class Course:
    """A case and the time, moved by hand."""

    holders: tuple[str, ...] = HOLDERS
    now: datetime = START
    deferred: frozenset[str] = frozenset()
    deeds: list[Deed] = field(default_factory=list)
    case: Case = field(default_factory=lambda: Case("case-1", "account", START))

    @property
    def world(self) -> World:
        return World(self.now, self.holders, deferred=self.deferred)

    @property
    def state(self) -> str:
        return self.case.state

    def on(self, what: Happening, after: timedelta = timedelta(0)) -> list[Deed]:
        self.now += after
        self.case, deeds = step(self.case, what, self.world)
        self.deeds += deeds
        return deeds

    def until_due(self) -> list[Deed]:
        """Lets the time pass until something is due."""
        at = next_at(self.case, self.world.timing)
        assert at is not None, "nothing is due any more"
        self.now = max(self.now, at)
        return self.on(Tick())

    def receipts(self, *holders: str) -> list[Deed]:
        said: list[Deed] = []
        for name in holders:
            offsets = OFFSETS if name == "metering" else {}
            said += self.on(Receipt(name, self.case.holders[name].epoch, offsets))
        return said

    def scan(self, **other: Verdict) -> list[Deed]:
        """The auditor's answer to what it was asked last: clean, but for `other`."""
        action: Literal["probe", "sweep"] = "probe" if self.case.completed_at is None else "sweep"
        seen = {name: other.get(name, "clean") for name in self.holders} | other
        findings = tuple(Finding(name, verdict) for name, verdict in seen.items())
        return self.on(Scan(action, self.case.auditor.epoch, findings))

    def to_the_probe(self) -> None:
        self.on(Confirmed(True))
        self.receipts(*FIRST)
        self.receipts("billing")

    def to_the_sweep(self) -> None:
        self.to_the_probe()
        self.scan()
        self.until_due()


def test_a_case_goes_round() -> None:
    course = Course()
    assert course.on(Confirmed(True)) == [Entomb(), Forget(), OrderErasure(FIRST, 1)]
    assert course.receipts(*FIRST) == [OrderErasure(("billing",), 1, OFFSETS)]
    assert course.receipts("billing") == [OrderScan("probe", 1)]
    assert course.scan() == [Tell()] and course.state == "completed"
    assert course.until_due() == [OrderScan("sweep", 2)] and course.now == START + Timing().sweep_after
    assert course.scan() == [Certify()] and course.state == "certified"
    assert course.until_due() == [DestroyKey()] and next_at(course.case, Timing()) is None


def test_nothing_is_complete_without_every_receipt() -> None:
    course = Course()
    course.on(Confirmed(True))
    course.receipts("metering", "security", "retention", "notifications")
    # A scan that nobody asked for, and the auditor's own haste, help nothing.
    course.on(Scan("probe", 1, tuple(Finding(name, "clean") for name in HOLDERS)))
    assert course.state == "wave_1" and course.case.missing == ("billing", "insights")


def test_a_receipt_counts_for_its_epoch_alone() -> None:
    course = Course()
    course.to_the_probe()
    course.scan(security="residue")
    assert course.case.missing == ("security",)
    course.until_due()
    for other in (1, 3):
        course.on(Receipt("security", other))
        assert course.case.missing == ("security",) and next_at(course.case, Timing()) is not None
    assert course.on(Receipt("security", 2)) == [OrderScan("probe", 2)]
    # What the auditor saw before is no answer to what it was asked since.
    assert course.on(Scan("probe", 1, tuple(Finding(name, "clean") for name in HOLDERS))) == []
    assert course.state == "probing"
    assert course.on(Receipt("security", 2)) == []
    assert course.on(Receipt("stranger", 1)) == [] and "stranger" not in course.case.holders


def test_orders_are_sent_again_less_and_less_often_and_a_person_is_called() -> None:
    course = Course()
    course.on(Confirmed(True))
    course.receipts("metering", "security", "retention", "notifications")
    waits = []
    for _ in range(12):
        before = course.now
        assert course.until_due() == [OrderErasure(("insights",), 1)]
        waits.append(round((course.now - before).total_seconds()))
    assert waits == [30, 60, 120, 240, *[300] * 8]
    assert course.case.needs_person(course.now, Timing()) == ()
    course.on(Tick(), timedelta(hours=24))
    assert course.case.needs_person(course.now, Timing()) == ("silent:insights",)
    course.receipts("insights")
    assert course.case.needs_person(course.now, Timing()) == ()


@pytest.mark.parametrize("verdict", ["residue", "not_scanned"])
def test_residue_is_erased_again_a_few_times_then_a_person_decides(verdict: Verdict) -> None:
    course = Course()
    course.to_the_probe()
    for n in range(FAULTS):
        assert course.scan(insights=verdict) == []
        assert course.until_due() == [OrderErasure(("insights",), n + 2)]
        assert course.receipts("insights") == [OrderScan("probe", n + 2)]
    assert course.scan(insights=verdict) == []
    assert course.case.needs_person(course.now, Timing()) == ("residue:insights",)
    assert next_at(course.case, Timing()) is None and course.case.open
    assert course.on(Tick(), timedelta(days=9)) == []
    assert course.on(Retry()) == [OrderErasure(("insights",), FAULTS + 2)]
    assert course.receipts("insights") == [OrderScan("probe", FAULTS + 2)]
    assert course.scan() == [Tell()]


def test_rows_that_remain_are_erased_again() -> None:
    course = Course()
    course.on(Confirmed(True))
    course.receipts("metering", "insights", "retention", "notifications")
    assert course.on(Receipt("security", 1, remaining=2)) == [] and course.case.missing == ("billing", "security")
    assert course.until_due() == [OrderErasure(("security",), 2)]
    assert course.receipts("security") == [OrderErasure(("billing",), 1, OFFSETS)]


def test_a_store_that_is_nobodys_is_looked_at_again() -> None:
    course = Course()
    course.to_the_probe()
    for n in range(FAULTS):
        assert course.scan(kafka="residue") == []
        assert course.until_due() == [OrderScan("probe", n + 2)]
    course.scan(kafka="residue")
    assert course.case.needs_person(course.now, Timing()) == ("residue:audit",)
    assert course.on(Retry()) == [OrderScan("probe", FAULTS + 2)]
    assert course.scan() == [Tell()]


def test_what_nobody_looked_at_is_not_clean() -> None:
    course = Course()
    course.to_the_probe()
    seen = tuple(Finding(name, "clean") for name in HOLDERS if name != "security")
    assert course.on(Scan("probe", 1, seen)) == [] and course.case.missing == ("security",)


def test_what_expires_is_good_for_completion_only() -> None:
    course = Course()
    course.to_the_probe()
    assert course.scan(kafka="expiring", metering="retained", billing="held") == [Tell()]
    course.until_due()
    assert course.scan(kafka="expiring") == [] and course.state == "sweeping"
    assert course.until_due() == [OrderScan("sweep", 3)]
    assert course.scan(metering="retained", billing="held", insights="shredded") == [Certify()]


def test_residue_in_the_sweep_goes_round_again() -> None:
    course = Course()
    course.to_the_sweep()
    assert course.scan(billing="residue") == []
    assert course.until_due() == [OrderErasure(("billing",), 2, OFFSETS)]
    assert course.receipts("billing") == [OrderScan("sweep", 3)]
    # The probe's words do not stand for the sweep's.
    assert course.on(Scan("probe", 3, tuple(Finding(name, "clean") for name in HOLDERS))) == []
    assert course.scan() == [Certify()]


def test_a_holder_that_joined_meanwhile_is_expected() -> None:
    course = Course()
    course.to_the_probe()
    course.holders = (*HOLDERS, "playground")
    assert course.scan() == [OrderErasure(("playground",), 1)] and course.state == "probing"
    assert course.receipts("playground") == [OrderScan("probe", 2)]
    assert course.scan() == [Tell()]


def test_a_holder_that_is_gone_stays_missing_until_somebody_answers_for_it() -> None:
    course = Course()
    course.on(Confirmed(True))
    course.receipts("metering", "security", "retention", "notifications")
    course.on(Tick(), timedelta(days=40))
    assert course.state == "wave_1"
    assert course.on(Waive("insights", "kim", "T-1")) == [OrderErasure(("billing",), 1, OFFSETS)]
    course.receipts("billing")
    assert course.scan(insights="not_scanned") == [Tell()]
    course.until_due()
    # Nobody can answer for what was seen.
    assert course.scan(insights="residue") == [] and course.state == "sweeping"


def test_codes() -> None:
    course = Course()
    for _ in range(Timing().attempts - 1):
        assert course.on(Confirmed(False)) == [] and course.state == "requested"
    assert course.on(Confirmed(False)) == [Forget()] and course.state == "lapsed"
    assert course.on(Confirmed(True)) == []
    late = Course()
    assert late.on(Confirmed(True), Timing().lapse) == [Forget()] and late.state == "lapsed"
    unconfirmed = Course()
    assert unconfirmed.on(Tick(), Timing().lapse - timedelta(seconds=1)) == []
    assert unconfirmed.until_due() == [Forget()] and unconfirmed.state == "lapsed"


def test_withdrawn_before_it_is_confirmed_and_never_after() -> None:
    course = Course()
    assert course.on(Withdrawn()) == [Forget()] and course.state == "withdrawn"
    assert course.on(Confirmed(True)) == []
    confirmed = Course()
    confirmed.on(Confirmed(True))
    assert confirmed.on(Withdrawn()) == [] and confirmed.state == "wave_1"


def test_a_hold_is_placed_before_its_holder_erases() -> None:
    course = Course(deferred=frozenset({"security"}))
    told = tuple(name for name in FIRST if name != "security")
    assert course.on(Confirmed(True))[-1] == OrderErasure(told, 1)
    course.receipts(*told)
    assert not any("security" in deed.holders for deed in course.deeds if isinstance(deed, OrderErasure))
    course.deferred = frozenset()
    assert course.until_due() == [OrderErasure(("security",), 1)]


def test_a_closed_account_confirms_itself() -> None:
    world = World(START + timedelta(days=28), HOLDERS)
    case, deeds = closure("case-2", START, world)
    assert case.state == "wave_1" and case.requested_at == START
    assert deeds == [Entomb(), Forget(), OrderErasure(FIRST, 1)]


def test_the_answer_counts_when_the_mail_was_taken() -> None:
    course = Course()
    course.on(Answered(True))
    assert course.case.answered_at is None
    course.to_the_probe()
    course.scan()
    course.on(Answered(False))
    assert course.case.answered_at is None
    course.on(Answered(True))
    assert course.case.answered_at == course.now


def test_a_certificate_that_would_not_be_true_is_a_persons_matter() -> None:
    course = Course()
    course.to_the_sweep()
    course.case = unproved(course.case, course.now)
    assert course.case.needs_person(course.now, Timing()) == ("residue:audit",) and course.state == "sweeping"
    assert course.on(Tick()) == [] and course.on(Retry()) == [OrderScan("sweep", 3)]
    assert course.scan() == [Certify()]


def test_a_sweep_may_be_asked_for() -> None:
    course = Course()
    course.to_the_probe()
    assert course.on(SweepNow()) == []
    course.scan()
    assert course.on(SweepNow()) == [OrderScan("sweep", 2)]


class Rounds(RuleBasedStateMachine):
    """Everything in any order, as often as it likes; what is true of every case is asked after each step."""

    def __init__(self) -> None:
        super().__init__()
        self.course = Course()
        self.orders: dict[str, set[int]] = {}
        self.receipts: set[tuple[str, int]] = set()
        self.failed: set[tuple[str, int]] = set()
        self.looked: list[tuple[Scan, frozenset[tuple[str, int]]]] = []
        self.past: list[Happening] = []
        self.certificates = 0

    def happens(self, what: Happening) -> None:
        course = self.course
        before = course.case
        deeds = course.on(what)
        self.past.append(what)
        if before.state in ENDED:
            assert not any(isinstance(deed, OrderErasure | OrderScan | Tell | Certify | Entomb) for deed in deeds)
        if isinstance(what, Withdrawn | Tick) and before.state in ERASING:
            assert course.case.state not in ("withdrawn", "lapsed")
        for deed in deeds:
            if isinstance(deed, OrderErasure):
                assert before.state in ERASING or Entomb() in deeds[: deeds.index(deed)]
                for name in deed.holders:
                    # A hold is never weakened: no first order before it stands.
                    first = deed.epoch not in self.orders.setdefault(name, set())
                    assert not (first and name in course.deferred)
                    self.orders[name].add(deed.epoch)
            if isinstance(deed, Tell):
                self.proved("probe")
            if isinstance(deed, Certify):
                self.certificates += 1
                self.proved("sweep")

    def proved(self, action: str) -> None:
        """Every holder of today has a receipt for its last epoch, or a named waiver; the last scan asked for was good."""
        case = self.course.case
        for name in self.course.holders:
            one = case.holders[name]
            assert one.waived_by or (name, max(self.orders[name])) in self.receipts, name
        scan, known = self.looked[-1]
        assert scan.action == action and known <= self.receipts
        good = {"clean", "shredded", "retained", "held"} | ({"expiring"} if action == "probe" else set())
        seen = {finding.holder for finding in scan.findings}
        for name in self.course.holders:
            assert name in seen or case.holders[name].waived_by
        for finding in scan.findings:
            gone = finding.verdict == "not_scanned" and case.holders[finding.holder].waived_by
            assert finding.verdict in good or gone, finding

    @initialize(confirmed=st.sampled_from([True, True, True, False]))
    def begins(self, confirmed: bool) -> None:
        """Most of what can go wrong comes after the last word."""
        if confirmed:
            self.happens(Confirmed(True))

    @rule(right=st.sampled_from([True, True, True, False]))
    def confirm(self, right: bool) -> None:
        self.happens(Confirmed(right))

    @rule()
    def withdraw(self) -> None:
        if self.course.case.state != "requested" or self.course.case.attempts:
            self.happens(Withdrawn())

    @rule(holder=st.sampled_from([*HOLDERS, "playground", "stranger"]), epoch=st.integers(0, 4))
    def receipt(self, holder: str, epoch: int) -> None:
        # Only what was ordered can have been done.
        if epoch in self.orders.get(holder, ()):
            if (holder, epoch) not in self.failed:
                self.receipts.add((holder, epoch))
            self.happens(Receipt(holder, epoch))
        elif holder == "stranger":
            self.happens(Receipt(holder, epoch))

    @rule(holder=st.sampled_from(HOLDERS))
    def rows_remain(self, holder: str) -> None:
        one = self.course.case.holders.get(holder)
        if one is not None and one.sends and not one.settled:
            self.failed.add((holder, one.epoch))
            self.happens(Receipt(holder, one.epoch, remaining=1))

    @precondition(lambda self: self.course.case.state in ERASING)
    @rule()
    def all_answer(self) -> None:
        for name, one in self.course.case.holders.items():
            if one.sends and not one.settled:
                self.receipts.add((name, one.epoch))
                self.happens(Receipt(name, one.epoch))

    @precondition(lambda self: self.course.case.auditor.sends > 0)
    @rule(
        data=st.data(),
        verdict=st.sampled_from(["clean", "clean", "held", "expiring", "residue", "not_scanned", "unnamed"]),
        back=st.sampled_from([0, 0, 0, 1]),
        action=st.sampled_from(["", "", "", "probe", "sweep"]),
    )
    def scan(self, data: st.DataObject, verdict: str, back: int, action: str) -> None:
        """The auditor's words: all clean but for one holder, of the last order or the one before."""
        case = self.course.case
        one = data.draw(st.sampled_from(sorted(case.holders)))
        findings: list[Any] = [Finding(name, "clean") for name in case.holders if name != one]
        if verdict != "unnamed":
            findings.append(Finding(one, verdict))  # type: ignore[arg-type]
        asked: Any = action or ("sweep" if case.completed_at else "probe")
        said = Scan(asked, case.auditor.epoch - back, tuple(findings))
        if not back:
            self.looked.append((said, frozenset(self.receipts)))
        self.happens(said)

    @precondition(lambda self: self.course.case.state in ERASING)
    @rule()
    def goes_on(self) -> None:
        """The usual way, as far as the next answer."""
        self.time_comes()
        self.all_answer()
        self.looks()

    def looks(self) -> None:
        """All is clean."""
        case = self.course.case
        if case.auditor.sends and not case.auditor.settled:
            asked: Any = "sweep" if case.completed_at else "probe"
            said = Scan(asked, case.auditor.epoch, tuple(Finding(name, "clean") for name in self.course.holders))
            self.looked.append((said, frozenset(self.receipts)))
            self.happens(said)

    @precondition(lambda self: self.course.case.state in ERASING)
    @rule()
    def time_comes(self) -> None:
        """Until something is due."""
        self.course.now = max(self.course.now, next_at(self.course.case, Timing()) or self.course.now)
        self.happens(Tick())

    @rule(seconds=st.sampled_from([0, 1, 60, 3600, 86400, 864000]))
    def time_passes(self, seconds: int) -> None:
        if self.course.state == "requested":
            seconds = min(seconds, 3600)
        self.course.now += timedelta(seconds=seconds)
        self.happens(Tick())

    @precondition(lambda self: self.past)
    @rule(data=st.data())
    def again(self, data: st.DataObject) -> None:
        """Anything that has been heard may be heard once more. A scan's words are those of its time."""
        what = data.draw(st.sampled_from(self.past))
        if isinstance(what, Scan) and what.epoch == self.course.case.auditor.epoch:
            self.looked.append((what, frozenset(self.receipts)))
        self.happens(what)

    @rule(holder=st.sampled_from([*HOLDERS, "stranger"]))
    def waive(self, holder: str) -> None:
        if self.course.now > START + timedelta(days=1):
            self.happens(Waive(holder, "kim", "T-1"))

    @rule()
    def retry(self) -> None:
        self.happens(Retry())

    @rule()
    def sweep_now(self) -> None:
        self.happens(SweepNow())

    @rule(holders=st.frozensets(st.sampled_from(FIRST), max_size=2))
    def holds(self, holders: frozenset[str]) -> None:
        self.course.deferred = holders

    @precondition(lambda self: "playground" not in self.course.holders)
    @rule()
    def somebody_joins(self) -> None:
        """While the auditor looks, perhaps."""
        self.course.holders = (*HOLDERS, "playground")
        self.looks()

    @invariant()
    def nobody_is_forgotten(self) -> None:
        case = self.course.case
        assert self.certificates <= 1
        if case.state in ERASING:
            assert set(HOLDERS) <= set(case.holders)
        if case.state == "certified":
            assert self.certificates == 1
        # It always goes on by itself, or says that it needs a person.
        if case.open:
            stuck = case.needs_person(self.course.now, Timing())
            assert next_at(case, Timing()) is not None or stuck

    def teardown(self) -> None:
        """Whatever happened: once everybody answers, the case ends, and its key goes."""
        course = self.course
        course.deferred = frozenset()
        if course.state == "requested":
            self.happens(Confirmed(True))
        for _ in range(40):
            if course.case.state in ENDED:
                break
            self.happens(Retry())
            at = next_at(course.case, Timing())
            course.now = max(course.now, at or course.now)
            self.happens(Tick())
            for name, one in course.case.holders.items():
                if one.sends and not one.settled:
                    self.receipts.add((name, one.epoch))
                    self.happens(Receipt(name, one.epoch))
            self.looks()
        assert course.case.state in ENDED, course.case
        self.happens(Tick())
        if course.state == "certified":
            assert course.deeds.count(DestroyKey()) == 1
        super().teardown()


TestRounds = Rounds.TestCase
TestRounds.settings = settings(max_examples=150, stateful_step_count=40)
