"""Codes: how they are drawn, and what they are worth when they come back."""

from __future__ import annotations

import random
from collections import Counter
from dataclasses import replace
from datetime import UTC, datetime, timedelta

import pytest

from services.notifications.codes import ALPHABET, draw
from services.notifications.data_map import BAR_LIFE
from services.notifications.proofs import ATTEMPTS, NEW, OLD, SETTLE, Proof, change_of, judge, settling

NOW = datetime(2026, 11, 28, 14, tzinfo=UTC)
SECOND = timedelta(seconds=1)
RIGHT, OTHER, WRONG = b"r" * 16, b"o" * 16, b"w" * 16


def proof(cause: str = "m-1", template: str = "verify", **changes: object) -> Proof:
    made = Proof(cause, "case-1", "req-1", "acc-1", template, "account", RIGHT, None, NOW + timedelta(days=7))
    return replace(made, **changes)  # type: ignore[arg-type]


def test_codes_have_no_look_alikes_and_no_favourites() -> None:
    bits = random.Random(1).getrandbits
    drawn = [draw(bits) for _ in range(4_000)]
    assert all(len(code) == 8 for code in drawn) and len(set(drawn)) == 4_000
    counts = Counter("".join(drawn))
    assert set(counts) == set(ALPHABET) and not set("01ILO") & set(counts)
    assert max(counts.values()) < 1.15 * min(counts.values())


@pytest.mark.promise(54)
def test_a_code_is_good_once_in_time_and_before_too_many_guesses() -> None:
    one = proof()
    assert judge([one], RIGHT, 0, NOW) == ("account", one)
    assert judge([one], WRONG, 0, NOW) == ("wrong", None)
    assert judge([], RIGHT, 0, NOW) == ("wrong", None)
    assert judge([one], RIGHT, ATTEMPTS - 1, NOW) == ("account", one)
    assert judge([one], RIGHT, ATTEMPTS, NOW) == ("wrong", None)
    assert judge([one], RIGHT, 0, one.until - SECOND)[0] == "account"
    assert judge([one], RIGHT, 0, one.until) == ("wrong", None)
    assert judge([replace(one, used_at=NOW)], RIGHT, 0, NOW) == ("used", None)


def test_every_code_of_a_case_is_good_and_each_says_what_it_proves() -> None:
    one, two = proof(), proof("m-2", proves="other", code_hash=OTHER)
    assert judge([one, two], RIGHT, 0, NOW) == ("account", one)
    assert judge([one, two], OTHER, 0, NOW) == ("other", two)


@pytest.mark.promise(42)
def test_a_change_needs_the_codes_of_both_addresses() -> None:
    old, new = proof("m-old", OLD), proof("m-new", NEW, proves="other", code_hash=OTHER)
    used_old, used_new = replace(old, used_at=NOW), replace(new, used_at=NOW)
    assert change_of([old, new], old) is None and change_of([old, new], new) is None
    assert change_of([used_old, new], new) is new
    assert change_of([old, used_new], old) is used_new
    again = replace(new, cause="m-new-2", request="req-2")
    assert change_of([used_old, new, again], again) is again, "asked for again, it is the same change"
    twice = replace(old, cause="m-old-2", request="req-2")
    assert change_of([used_old, twice, new], twice) is None, "both of the same address"
    verify = proof("m-3", code_hash=WRONG)
    assert change_of([used_old, used_new, verify], verify) is None, "another code of the case changes nothing again"


def test_a_change_settles_after_its_days() -> None:
    assert not settling(None, NOW)
    assert settling(NOW, NOW + SETTLE - SECOND) and not settling(NOW, NOW + SETTLE)


@pytest.mark.promise(57)
def test_a_bar_lasts_until_a_newborn_is_of_age() -> None:
    born = datetime(2026, 2, 28, tzinfo=UTC)
    assert born + BAR_LIFE >= born.replace(year=born.year + 16)
