"""The machine of everything that is no deletion: who proves what, when it goes on, and that it ends in one answer."""

from __future__ import annotations

from dataclasses import replace
from datetime import UTC, datetime, timedelta

import pytest
from hypothesis import given
from hypothesis import strategies as st

from services.retention import case as cases
from services.retention import right, wish
from services.retention.case import Case, Timing, World
from services.retention.steps import next_at, step
from services.retention.wish import Details

START = datetime(2026, 3, 2, 9, tzinfo=UTC)
HOLDERS = ("billing", "metering")
DAY = timedelta(days=1)


def world(after: timedelta = timedelta(0)) -> World:
    return World(START + after, HOLDERS)


def a_case(kind: str, *needed: str, state: str = "requested") -> Case:
    return Case("c", "account", START, kind=kind, state=state, needed=frozenset(needed))  # type: ignore[arg-type]


def run(
    case: Case, *happenings: right.Happening, after: timedelta = timedelta(0)
) -> tuple[Case, list[right.RightDeed]]:
    """A case after all of these, and all that was to be done."""
    done: list[right.RightDeed] = []
    for what in happenings:
        case, deeds = step(case, what, world(after))
        done += deeds
    return case, done


def receipts(case: Case, rows: int = 1) -> list[cases.Receipt]:
    return [cases.Receipt(name, one.epoch, rows=rows) for name, one in case.holders.items()]


def test_a_copy_from_the_settings_goes_straight_to_its_package() -> None:
    case, deeds = run(a_case("access"), right.Begin())
    assert deeds == [right.OrderErrand("export", HOLDERS, 1)] and case.verified_at == START
    case, deeds = run(case, *receipts(case))
    assert (case.state, deeds) == ("packing", [right.Pack()])
    case, deeds = run(case, right.Packed())
    assert (case.state, case.outcome, deeds) == ("answering", "fulfilled", [cases.Answer("copy_ready")])
    case, deeds = run(case, cases.Answered(True))
    assert (case.state, deeds) == ("fulfilled", [cases.Forget()]) and case.answered_at == START
    assert run(case, cases.Tick())[1] == [cases.DestroyKey()]


@pytest.mark.promise(54)
def test_nothing_is_ordered_before_the_address_has_proved_itself() -> None:
    case, deeds = run(a_case("access", "account"), right.Begin())
    assert deeds == [right.AskProofs(("account",))] and case.state == "requested"
    case, deeds = run(case, right.Proved(None), right.Proved(None), cases.Tick(), cases.Retry())
    assert deeds == [] and case.attempts == 2 and not case.holders
    case, deeds = run(case, right.Proved("account"))
    assert deeds == [right.OrderErrand("export", HOLDERS, 1)]
    # The code that comes once more does nothing.
    assert run(case, right.Proved("account"), right.Proved(None))[1] == []


@pytest.mark.promise(54)
@pytest.mark.parametrize("how", ["exhausted", "late"])
def test_wrong_or_late_codes_end_in_a_denial(how: str) -> None:
    case, _ = run(a_case("access", "account"), right.Begin())
    if how == "exhausted":
        case, deeds = run(case, *[right.Proved(None)] * Timing().attempts)
    else:
        assert next_at(case, Timing()) == START + 7 * DAY
        case, deeds = run(case, cases.Tick(), after=7 * DAY - timedelta(seconds=1))
        assert case.state == "requested"
        case, deeds = run(case, cases.Tick(), after=7 * DAY)
    assert (case.state, case.outcome, case.reason) == ("answering", "denied", "insuf_verification")
    assert deeds == [right.Drop(), cases.Answer("denied")]
    # The right code, afterwards.
    after, deeds = run(case, right.Proved("account"))
    assert after == case and deeds == []
    assert run(case, cases.Answered(True))[0].state == "denied"
    assert wish.status(case) == ("denied", "insuf_verification")


def test_a_package_waits_for_something_to_open_it_with() -> None:
    case, deeds = run(a_case("access"), right.Begin(ready=False))
    assert deeds == [right.AskProofs(("account",))], "the mail that asks who it is asks for that as well"
    assert run(case, right.Proved("account"))[1] == [right.OrderErrand("export", HOLDERS, 1)]


@pytest.mark.promise(42)
def test_a_new_address_needs_both_proofs() -> None:
    case, deeds = run(a_case("rectification", "account", "other"), right.Begin())
    assert deeds == [right.AskProofs(("account", "other"))]
    for first, second in (("account", "other"), ("other", "account")):
        one, deeds = run(case, right.Proved(first), right.Proved(first))
        assert one.state == "requested" and deeds == []
        both, deeds = run(one, right.Proved(second))
        assert both.state == "answering" and deeds == [cases.Answer("corrected")]


def test_a_correction_that_finds_nothing_is_denied() -> None:
    case, deeds = run(a_case("rectification"), right.Begin(corrector="retention"))
    assert deeds == [right.OrderErrand("rectify", ("retention",), 1)]
    assert run(case, *receipts(case, 1))[1] == [cases.Answer("corrected")]
    assert run(case, *receipts(case, 0))[0].reason == "no_match"


@pytest.mark.promise(51)
def test_an_opt_out_of_sale_is_noted_and_answered_at_once() -> None:
    assert wish.needed("sale:opt-out", "support", Details()) == frozenset()
    case, deeds = run(a_case("sale:opt-out"), right.Begin())
    assert deeds == [right.OptOut(), cases.Answer("opted_out")] and case.state == "answering"


@pytest.mark.promise(56)
def test_who_asks_for_somebody_else_needs_the_persons_own_proof() -> None:
    for channel in ("settings", "api", "support"):
        assert wish.needed("access", channel, Details(representative="agent-1")) == {"account"}


def test_a_silent_holder_is_asked_again_and_can_be_waived() -> None:
    case, _ = run(a_case("access"), right.Begin())
    due = next_at(case, Timing())
    assert due is not None
    case, deeds = run(case, cases.Receipt("billing", 1), cases.Tick(), after=due - START)
    assert deeds == [right.OrderErrand("export", ("metering",), 1)]
    assert case.needs_person(START + DAY, Timing()) == ("silent:metering",)
    case, deeds = run(case, cases.Waive("metering", "kim", "T-1"))
    assert deeds == [right.Pack()]


@pytest.mark.parametrize("what", [right.Torn(), cases.Retry()])
def test_copies_that_are_not_whole_are_asked_for_anew(what: right.Happening) -> None:
    """Of all holders, since those that had answered may have deleted theirs; of one epoch, but of no waived holder."""
    case, _ = run(a_case("access"), right.Begin())
    packing, _ = run(case, *receipts(case))
    again, deeds = run(packing, what)
    assert again.state == "working" and deeds == [right.OrderErrand("export", HOLDERS, 2)]
    assert run(again, *receipts(case))[1] == [], "the old receipts are worth nothing"
    assert run(again, *receipts(again))[1] == [right.Pack()]
    waived, _ = run(case, cases.Receipt("billing", 1), cases.Waive("metering", "kim", "T-1"))
    again, deeds = run(waived, what)
    assert deeds == [right.OrderErrand("export", ("billing",), 2)] and again.missing == ("billing",)
    assert run(again, cases.Receipt("billing", 2))[1] == [right.Pack()]
    for state in ("working", "answering"):
        assert run(replace(packing, state=state), right.Torn())[1] == []


def test_copies_that_are_torn_again_and_again_come_later_and_later_and_need_a_person() -> None:
    case, _ = run(a_case("access"), right.Begin())
    for n in range(1, 7):
        assert case.needs_person(START, Timing()) == (("packing",) if n > 5 else ())
        case, deeds = run(case, *receipts(case), right.Torn())
        due = next_at(case, Timing())
        assert due is not None and bool(right.OrderErrand("export", HOLDERS, n + 1) in deeds) is (n == 1)
        case, deeds = run(case, cases.Tick(), after=due - START)
        assert n == 1 or (right.OrderErrand("export", HOLDERS, n + 1) in deeds and due > START)
    case, deeds = run(run(case, *receipts(case))[0], cases.Retry())
    assert right.OrderErrand("export", HOLDERS, 8) in deeds, "at once, by a person's word"


def test_a_package_that_is_not_made_needs_a_person() -> None:
    case, _ = run(a_case("access"), right.Begin())
    case, _ = run(case, *receipts(case), after=timedelta(hours=1))
    assert case.needs_person(START + timedelta(hours=24), Timing()) == ()
    assert case.needs_person(START + timedelta(hours=25), Timing()) == ("packing",)


@pytest.mark.promise(44)
def test_whoever_is_erased_gets_nothing_any_more() -> None:
    case, _ = run(a_case("access"), right.Begin())
    for reached in (case, run(case, *receipts(case))[0], run(case, *receipts(case), right.Packed())[0]):
        gone, deeds = run(reached, right.Gone())
        assert gone.state == "withdrawn" and right.Drop() in deeds
        assert run(gone, *receipts(case), right.Packed(), cases.Answered(True))[1] == []


def test_an_answer_that_nobody_takes_needs_a_person() -> None:
    case, _ = run(a_case("sale:opt-out"), right.Begin(), cases.Answered(False))
    assert case.state == "answering" and case.needs_person(START, Timing()) == ("mail",)
    assert run(case, right.Settled())[0].state == "fulfilled"


def test_a_mail_waits_for_a_person_and_never_ends_by_itself() -> None:
    case = a_case("inquiry", state="triage")
    assert case.needs_person(START, Timing()) == ("triage",) and next_at(case, Timing()) is None
    assert run(case, cases.Tick(), after=400 * DAY) == (case, [])
    assert run(case, right.Settled())[0].state == "fulfilled"


_HAPPENINGS = st.one_of(
    st.builds(right.Begin, ready=st.booleans(), corrector=st.none()),
    st.builds(right.Proved, of=st.sampled_from([None, "account", "other"]), ready=st.booleans()),
    st.builds(
        cases.Receipt, holder=st.sampled_from([*HOLDERS, "nobody"]), epoch=st.integers(0, 3), rows=st.integers(0, 2)
    ),
    st.builds(cases.Answered, accepted=st.booleans()),
    st.sampled_from(
        [
            right.Packed(),
            right.Torn(),
            right.Settled(),
            right.Gone(),
            cases.Tick(),
            cases.Retry(),
            cases.Withdrawn(),
            cases.Denied("other"),
        ]
    ),
)


@given(
    kind=st.sampled_from(["access", "portability", "access:categories", "rectification", "sale:opt-out"]),
    needed=st.sets(st.sampled_from(["account", "other"])),
    happenings=st.lists(_HAPPENINGS, max_size=25),
)
def test_whatever_happens_there_is_one_answer_and_no_order_without_proof(
    kind: str, needed: set[str], happenings: list[right.Happening]
) -> None:
    case, answers, ended = a_case(kind, *needed), 0, False
    for n, what in enumerate(happenings):
        before = case
        case, deeds = step(case, what, world(n * timedelta(hours=9)))
        answers += sum(isinstance(deed, cases.Answer) for deed in deeds)
        if any(isinstance(deed, right.OrderErrand | right.Pack | right.OptOut) for deed in deeds):
            assert case.needed <= case.proofs, "ordered without every proof"
        if ended:
            assert replace(case, key_destroyed=True) == replace(before, key_destroyed=True), "an end is an end"
        ended = ended or not case.open
        assert (case.ended_at is None) == case.open and case.attempts <= Timing().attempts
        assert answers <= 1
        wish.status(case)
