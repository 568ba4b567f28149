"""Own rating beside the reported cost: every difference is explained or open."""

from __future__ import annotations

from dataclasses import dataclass, field
from datetime import UTC, datetime
from decimal import Decimal
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from services.metering.price_book import PriceBook
from services.metering.price_version import PriceVersion
from services.metering.reconcile import EXPLANATIONS, Reported, Sum, explain_cost, reconcile
from services.metering.usage import Priced, price

AT = datetime(2026, 11, 3, 23, 59, tzinfo=UTC)
DAY = 20760


@dataclass
class Used:
    cost_reported_pico: str
    provider: str = "p"
    model: str = "m"
    tier: str = "standard"
    outcome: str = "completed"
    finish_reason: str | None = "stop"
    byok: bool = False
    data_sharing: bool = False
    tokens: dict[str, int] = field(default_factory=lambda: {"input": 1000, "output": 100})
    counts: dict[str, int] = field(default_factory=dict)


def card(tier: str, price_input: str, price_output: str) -> PriceVersion:
    prices = {"input": Decimal(price_input), "output": Decimal(price_output)}
    return PriceVersion(f"pv_{tier}", "p", "m", tier, prices, "test")


BOOK = PriceBook([card("standard", "0.000003", "0.000015"), card("batch", "0.0000015", "0.0000075")])
LIST = 1000 * 3_000_000 + 100 * 15_000_000


def compare(cost: int, **used: Any) -> str:
    usage = Used(str(cost), **used)
    priced = price(BOOK, usage, AT, AT)
    assert isinstance(priced, Priced)
    rated = priced.rated
    one = Reported(usage, AT, AT, rated.amount_pico, rated.list_amount_pico, rated.rule)
    return explain_cost(BOOK, one, cost)


@pytest.mark.parametrize(
    ("cost", "used", "why"),
    [
        (LIST, {}, "equal"),
        (LIST + 7, {}, "open"),
        # 123 x 3e-06 + 7 x 1.5e-05 = 0.000474 dollars
        (474_000_000, {"tokens": {"input": 123, "output": 7}}, "equal"),
        (475_000_000, {"tokens": {"input": 123, "output": 7}}, "open"),
        (int(LIST * 1.01), {}, "open"),
        (LIST // 2, {}, "tier_served"),
        (LIST * 2, {"tier": "batch"}, "open"),
        (LIST, {"tier": "batch"}, "tier_served"),
        (LIST, {"data_sharing": True}, "discount"),
        (LIST * 99 // 100, {}, "discount"),
        (0, {"byok": True}, "byok_fee"),
        (LIST * 5 // 100, {"byok": True}, "byok_fee"),
        (LIST, {"byok": True}, "byok_fee"),
        (LIST // 3, {"byok": True}, "open"),
        (LIST, {"outcome": "failed"}, "cancelled"),
        (LIST // 2, {"outcome": "cancelled"}, "cancelled"),
        (LIST * 2, {"outcome": "cancelled"}, "open"),
        (LIST, {"outcome": "cache_hit"}, "cancelled"),
        (1000 * 3_000_000, {"finish_reason": None, "tokens": {"input": 1000}}, "cancelled"),
    ],
)
def test_a_difference_has_its_explanation(cost: int, used: dict[str, Any], why: str) -> None:
    assert compare(cost, **used) == why


@given(st.integers(0, 10**6), st.integers(0, 10**6), st.integers(0, 6), st.booleans())
def test_what_is_only_rounded_is_never_open(read: int, generated: int, digits: int, up: bool) -> None:
    tokens = {"input": read, "output": generated}
    own = read * 3_000_000 + generated * 15_000_000
    digit = 10**digits
    told = (own + (digit - 1 if up else 0)) // digit * digit
    assert compare(told, tokens=tokens) in ("equal", "rounding")


@given(st.integers(0, 2 * LIST), st.booleans(), st.booleans(), st.sampled_from(["completed", "failed", "cancelled"]))
def test_there_is_always_one_of_the_known_answers(cost: int, byok: bool, sharing: bool, outcome: str) -> None:
    assert compare(cost, byok=byok, data_sharing=sharing, outcome=outcome) in EXPLANATIONS


def test_sums_are_by_day_provider_model_and_explanation() -> None:
    ones = [
        Reported(Used(str(cost)), AT, AT, LIST, LIST, "list") for cost in (LIST, LIST, LIST // 2, LIST + 1, LIST + 2)
    ]
    assert reconcile(BOOK, ones) == [
        Sum(DAY, "p", "m", "equal", 2, 2 * LIST, 2 * LIST),
        Sum(DAY, "p", "m", "open", 2, 2 * LIST, 2 * LIST + 3),
        Sum(DAY, "p", "m", "tier_served", 1, LIST, LIST // 2),
    ]
