"""Audit's own arithmetic comes to what metering and billing charge, and to nothing else when a line is touched."""

from __future__ import annotations

import json
import tomllib
from fractions import Fraction
from pathlib import Path
from typing import Any

import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from services.audit.app import Sources
from services.audit.recompute import ByokMonth, ByokTerms, Tariff, Unprovable, byok_fees, half_even
from services.billing.ledger import BillingConfig, byok_fee, byok_total
from services.metering.price_version import PriceVersion, to_json
from services.metering.pricing import Card, Rated, billed_quantities, rate
from tests.unit.test_pricing import FINISH, FLAGS, MANY, OTHERS, TOKENS, version, versions

TERMS = {"byok": "byok", "data_sharing": "sharing"}
BILLING = BillingConfig.parse(
    (Path(__file__).parents[2] / "services" / "billing" / "billing.toml").read_text(encoding="utf-8")
)
BYOK = ByokTerms(Fraction(1, 20), 25_000 * 10**12)
BODY = to_json(version())


def line(
    v: PriceVersion, tokens: dict[str, int], counts: dict[str, int], finish: str | None, flags: tuple[bool, ...]
) -> tuple[str, str, dict[str, int], int]:
    """A line as metering publishes it: tier, terms, quantities, amount."""
    cancelled, cache_hit, byok, sharing = flags
    rated = rate(Card(v), tokens, counts, finish, cancelled, cache_hit, byok, sharing)
    assume(isinstance(rated, Rated))
    assert isinstance(rated, Rated)
    terms = TERMS.get(rated.rule, "list")
    amount = rated.list_amount_pico if terms == "byok" else rated.amount_pico
    return rated.tier, terms, billed_quantities(v, tokens, counts, rated.rule), amount


@given(versions(), TOKENS, OTHERS, FINISH, FLAGS)
@MANY
def test_a_line_is_recomputed_to_the_pico_dollar(
    v: PriceVersion, tokens: dict[str, int], counts: dict[str, int], finish: str | None, flags: tuple[bool, ...]
) -> None:
    tier, terms, quantities, amount = line(v, tokens, counts, finish, flags)
    body = json.loads(json.dumps(to_json(v)))
    tariff = Tariff(body, tier, terms)
    assert tariff.amount(quantities) == amount
    assert tariff.amount({unit: -n for unit, n in quantities.items()}) == -amount, "a reversal takes back just that"


@given(st.integers(-(10**30), 10**30), st.integers(1, 10**12))
def test_rounding_is_half_even(numerator: int, denominator: int) -> None:
    exact = Fraction(numerator, denominator)
    assert half_even(exact) == round(exact)


@pytest.mark.parametrize(
    ("tier", "terms", "quantities", "amount"),
    [
        ("standard", "list", {"input": 3, "cache_read": 1, "output": 2}, 3 * 2_000_000 + 500_000 + 2 * 8_000_000),
        ("standard", "list", {"page": 1_000}, 0),
        ("standard", "list", {}, 0),
        ("standard", "sharing", {"input": 100, "web_search": 1}, 99 * 2_000_000 + 10**10),
        ("standard", "byok", {"request": 2}, 2 * 10**9),
        ("standard", "list", {"output": -2}, -16_000_000),
    ],
)
def test_examples(tier: str, terms: str, quantities: dict[str, int], amount: int) -> None:
    assert Tariff(BODY, tier, terms).amount(quantities) == amount


def test_context_tiers_replace_what_they_name_and_leave_the_rest() -> None:
    body = {
        **BODY,
        "context_tiers": [
            {"above_input_tokens": 1000, "prices": {"input": "0.000004"}},
            {"above_input_tokens": 2000, "prices": {"output": "0.00002"}},
        ],
    }
    used = {"input": 1, "output": 1, "cache_read": 1}
    for label, amount in (
        ("standard", 2_000_000 + 8_000_000 + 500_000),
        ("standard>1000", 4_000_000 + 8_000_000 + 500_000),
        ("standard>2000", 4_000_000 + 20_000_000 + 500_000),
    ):
        assert Tariff(body, label, "list").amount(used) == amount


@pytest.mark.parametrize(
    ("tier", "terms", "quantities", "words"),
    [
        ("batch", "list", {}, "tier 'batch'"),
        ("standard>200000", "list", {}, "context tier '200000'"),
        ("standard>x", "list", {}, "context tier 'x'"),
        ("standard", "gift", {}, "terms 'gift'"),
        ("standard", "list", {"input_audio": 1}, "'input_audio'"),
    ],
)
def test_what_cannot_be_recomputed_says_why(tier: str, terms: str, quantities: dict[str, int], words: str) -> None:
    with pytest.raises(Unprovable, match=words):
        Tariff(BODY, tier, terms).amount(quantities)


def test_an_hour_by_the_second_is_exact() -> None:
    body = {**BODY, "prices": {"second": "0.04"}, "per": {"second": 3600}, "not_billed": []}
    assert Tariff(body, "standard", "list").amount({"second": 90}) == 10**9
    assert Tariff(body, "standard", "list").amount({"second": 1}) == round(Fraction(4 * 10**10, 3600))


# --- the customer's own key --------------------------------------------------------------------------------------


def test_the_terms_are_those_that_billing_publishes() -> None:
    env = {
        "STEWARD_AUDITOR_BILLING_DATABASE_URL": "postgresql://b",
        "STEWARD_AUDITOR_METERING_DATABASE_URL": "postgresql://m",
        "STEWARD_KAFKA_BOOTSTRAP_SERVERS": "k:1",
    }
    terms = Sources.from_env(env).byok
    assert (terms.fee_rate, terms.allowance_pico) == (BILLING.byok_fee_rate, BILLING.byok_allowance_pico)
    published: dict[str, Any] = tomllib.loads(
        (Path(__file__).parents[2] / "services/billing/billing.toml").read_text(encoding="utf-8")
    )
    assert set(published["byok"]) == {"fee_rate", "allowance_usd"}, "another term, which audit does not know"


@given(st.integers(0, 10**18))
def test_the_fee_of_a_month_is_billings(listed: int) -> None:
    assert BYOK.fee(listed) == byok_total(listed, BILLING)


AMOUNTS = st.integers(-(10**15), 2 * 10**16)


@given(st.lists(st.tuples(st.sampled_from(["acc-1", "acc-2"]), st.integers(1, 4), AMOUNTS), max_size=30))
def test_own_key_fees_add_up_whatever_the_order(usage: list[tuple[str, int, int]]) -> None:
    kept: dict[tuple[str, str], int] = {}
    lines: dict[tuple[int, str], ByokMonth] = {}
    accounts = {n: "acc-1" if n < 3 else "acc-2" for n in range(1, 5)}
    for _, workspace, listed in usage:
        key = (accounts[workspace], "2026-11")
        fee = byok_fee(kept.get(key, 0), listed, BILLING)
        kept[key] = kept.get(key, 0) + listed
        lines.setdefault((workspace, "2026-11"), ByokMonth()).add(listed, fee)
    due, wrong = byok_fees(BYOK, lines, accounts, kept)
    assert wrong == []
    assert due == sum(found.fee_pico for found in lines.values())


HALF, WHOLE = 20_000 * 10**12, 40_000 * 10**12


def months(*rows: tuple[int, int, int]) -> dict[tuple[int, str], ByokMonth]:
    """(workspace, list price, fee) in one month."""
    return {(workspace, "2026-11"): ByokMonth(listed, fee) for workspace, listed, fee in rows}


def test_own_key_fees_that_are_wrong_are_found() -> None:
    kept = {("acc-1", "2026-11"): WHOLE, ("acc-2", "2026-11"): HALF}
    accounts = {1: "acc-1", 2: "acc-2"}
    fee = BYOK.fee(WHOLE)
    assert fee == 750 * 10**12
    right = months((1, WHOLE, fee), (2, HALF, 0))
    assert byok_fees(BYOK, right, accounts, kept) == (fee, [])
    for lines, words in (
        (months((1, WHOLE, fee - 1), (2, HALF, 0)), "charged 749999999999999, due 750000000000000"),
        (months((1, WHOLE, fee), (2, HALF - 1, 0)), "at list price"),
        (months((1, WHOLE, 0), (2, HALF, fee)), "2 accounts were charged what another one owes"),
        (months((1, WHOLE, fee)), "at list price"),
    ):
        _, wrong = byok_fees(BYOK, lines, accounts, kept)
        assert len(wrong) == 1 and words in wrong[0], wrong


def test_a_workspace_that_changed_hands_leaves_the_month_to_be_compared() -> None:
    """It had used 20,000 dollars under its old account, and its lines say nothing of that."""
    kept = {("acc-1", "2026-11"): HALF, ("acc-2", "2026-11"): WHOLE}
    lines = months((1, HALF + HALF, BYOK.fee(WHOLE)), (2, HALF, 0))
    assert byok_fees(BYOK, lines, {1: "acc-2", 2: "acc-2"}, kept)[1] == []
    assert byok_fees(BYOK, lines, {}, kept)[1] == [], "nor does an erased name"
