"""The verdict: what each broken equation says, and what is no error."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from services.audit import conservation
from services.audit.conservation import Books, InFlight, Payments, Usage, judge, undetermined

USAGE = Usage(
    emitted=115,
    rated=100,
    reversed=3,
    rerated_lines=0,
    duplicates=7,
    conflicts=1,
    quarantined=5,
    dead_lettered=2,
    erased=1,
    waiting={"unknown_model": 4, "stale": 1},
    letters={"malformed": 2},
)
BOOKS = Books(
    lines=103,
    charges_pico=10**15,
    recomputed_pico=10**15,
    ledger_sum_pico={"US": 0, "EU": 0},
    balances_equal_replay=True,
    chain_ok=True,
    blocks={"US": 12, "EU": 0},
    journals=40,
)
NOTHING = InFlight(0)


def test_books_that_are_right() -> None:
    verdict = judge(USAGE, BOOKS, NOTHING)
    assert verdict.ok and verdict.exit_code == 0
    said = verdict.as_dict()
    assert said["errors"] == said["undetermined"] == []
    assert said["warnings"] == ["1 events came again under their id with another content; the first one counts"]
    assert {name: said[name] for name in ("emitted", "rated", "rated_lines", "booked_lines", "missing")} == {
        "emitted": 115,
        "rated": 100,
        "rated_lines": 103,
        "booked_lines": 103,
        "missing": 0,
    }
    assert (said["charges_pico"], said["recomputed_pico"], said["ledger_sum_pico"]) == (
        "1000000000000000",
        "1000000000000000",
        "0",
    ), "money is a decimal string"


WRONG: dict[str, tuple[dict[str, Any], dict[str, Any], str]] = {
    "a record in no class": ({"emitted": 116}, {}, "1 records are in no class"),
    "a record in two": ({"emitted": 113}, {}, "2 records are in more than one class"),
    "a quarantine that lost a row": ({"waiting": {"stale": 4}}, {}, "quarantined counts 5, but 4 rows wait"),
    "letters nobody counted": ({"letters": {"malformed": 3}}, {}, "dead-lettered counts 2, but there are 3"),
    "less than nothing": ({"erased": -1, "emitted": 113}, {}, "erased is -1"),
    "more conflicts than repeats": ({"conflicts": 8}, {}, "conflicts 8 are more than the duplicates 7"),
    "a line booked twice": ({}, {"lines": 104}, "1 were booked twice or never rated"),
    "a line nowhere": ({}, {"lines": 101}, "2 rated lines are nowhere"),
    "a line refused": ({}, {"lines": 101, "refused_lines": 2}, "nowhere; 2 are in dead letters of billing"),
    "another charge": ({}, {"recomputed_pico": 10**15 - 1}, "a difference of 1"),
    "a ledger that does not balance": ({}, {"ledger_sum_pico": {"US": 5, "EU": -5}}, "class US sums to 5, not to 0"),
    "other balances": ({}, {"balances_equal_replay": False}, "balances are not what the replay"),
    "a broken chain": ({}, {"chain_ok": False}, "hash chain is broken"),
    "a finding of the replay": ({}, {"findings": ["journal 7 sums to 1"]}, "journal 7 sums to 1"),
    "a payment nowhere": ({}, {"payments": Payments(records=3, created=2)}, "3 payments came, but booked 2"),
    "a parked payment lost": (
        {},
        {"payments": Payments(records=1, parked=1)},
        "parked payments count 1, but 0 records are parked",
    ),
}


@pytest.mark.parametrize("what", WRONG)
def test_books_that_are_wrong(what: str) -> None:
    usage, books, words = WRONG[what]
    verdict = judge(replace(USAGE, **usage), replace(BOOKS, **books), NOTHING)
    assert not verdict.ok and verdict.exit_code == 1
    assert any(words in sentence for sentence in verdict.errors), verdict.errors


def test_equal_and_opposite_sums_of_two_classes_are_two_errors() -> None:
    verdict = judge(USAGE, replace(BOOKS, ledger_sum_pico={"US": 5, "EU": -5}), NOTHING)
    assert verdict.figures["ledger_sum_pico"] == "0"
    assert len(verdict.errors) == 2


@pytest.mark.parametrize("lines", [101, 103])
def test_what_is_in_flight_is_not_lost(lines: int) -> None:
    assert judge(USAGE, replace(BOOKS, lines=lines), InFlight(2)).ok


def test_a_letter_that_has_expired_is_no_error() -> None:
    assert judge(replace(USAGE, letters={}), BOOKS, NOTHING).ok


def test_a_difference_that_was_not_counted_to_its_end_is_no_verdict() -> None:
    verdict = judge(USAGE, replace(BOOKS, lines=50), InFlight(20, complete=False))
    assert (verdict.ok, verdict.exit_code, verdict.errors) == (False, 2, ())
    assert "53 rated lines are not booked and only 20" in verdict.undetermined[0]
    # Enough was counted: the rest does not matter.
    assert judge(USAGE, replace(BOOKS, lines=50), InFlight(60, complete=False)).ok
    # An error stays an error, whatever else could not be determined.
    assert judge(USAGE, replace(BOOKS, lines=50, chain_ok=False), InFlight(0, complete=False)).exit_code == 1


def test_no_verdict_without_databases() -> None:
    said = undetermined("billing does not answer").as_dict()
    assert said == {"errors": [], "warnings": [], "undetermined": ["billing does not answer"], "ok": False}


def test_what_is_missing_is_a_warning() -> None:
    verdict = judge(replace(USAGE, missing={"gw-1": 3, "gw-2": 1}, conflicts=0), BOOKS, NOTHING)
    assert verdict.ok
    assert verdict.figures["missing"] == 4
    assert "4 events were numbered by 2 sources" in verdict.warnings[0]


def test_a_source_that_numbers_twice_hides_no_loss_of_another() -> None:
    verdict = judge(replace(USAGE, missing={"gw-1": 3, "gw-2": -3}, conflicts=0), BOOKS, NOTHING)
    assert verdict.ok and verdict.figures["missing"] == 3
    assert verdict.figures["missing_by_source"] == {"gw-1": 3, "gw-2": -3}
    assert "3 events were numbered by 1 source " in verdict.warnings[0]
    assert "given twice by 1 source " in verdict.warnings[1]


def test_payments_outside_of_the_books_are_a_warning() -> None:
    payments = Payments(records=9, created=3, exists=1, conflict=1, waiting=1, dead_lettered=1, parked=2, parked_rows=2)
    verdict = judge(replace(USAGE, conflicts=0), replace(BOOKS, payments=payments), NOTHING)
    assert verdict.ok
    assert [w.split(":")[0].split(";")[0] for w in verdict.warnings] == [
        "2 payments are parked and 1 are dead letters",
        "1 payments came again under their id with another content",
    ]


def test_counters_by_their_names() -> None:
    counters = {
        "records:g": 9, "rated": 4, "reversed": 1, "duplicates": 2, "conflicts": 1, "quarantined": 1,
        "dead_lettered:g": 1, "erased": 1, "dead_lettered:other": 5,
    }  # fmt: skip
    usage = Usage.of(counters, "g", waiting={"stale": 1}, letters={}, missing={}, outbox_lines=3)
    assert (usage.emitted, usage.classes, usage.lines, usage.outbox_lines) == (9, 9, 5, 3)
    assert conservation.unbooked(usage, replace(BOOKS, lines=2)) == 3
    payments = Payments.of(
        {"records:p": 6, "payments_created": 1, "parked:p": 2, "payments_erased": 1, "erased:p": 2, "erased:x": 9},
        "p",
        2,
    )
    assert payments.records == payments.classes == 6
