"""Prices and rating: arithmetic against fractions, the rules row by row, the book against brute force."""

from __future__ import annotations

import hashlib
import json
import random
from collections.abc import Mapping, Sequence
from dataclasses import replace
from datetime import UTC, datetime, timedelta, timezone
from decimal import Decimal
from fractions import Fraction
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from services.metering.price_book import PriceBook, Resolved
from services.metering.price_version import (
    BEGINNING,
    BUCKETS,
    COMPLETION_BUCKETS,
    COUNTS,
    INPUT_BUCKETS,
    UNITS,
    ContextTier,
    DailyWindow,
    Hold,
    PriceVersion,
    event_version_id,
    from_event,
    from_json,
    held_from,
    released_at,
    to_json,
)
from services.metering.pricing import (
    TOOL_UNITS,
    Card,
    Rated,
    Rules,
    Unpriced,
    exact_text,
    explain,
    rate,
    round_half_even,
)

NOON = datetime(2026, 11, 24, 12, tzinfo=UTC)
DAY = timedelta(days=1)
MICRO = 10**6  # pico-dollars in a micro-dollar
MANY = settings(max_examples=max(500, settings().max_examples))


def version(**changes: Any) -> PriceVersion:
    """A chat model: 2 micro-dollars in, 8 out, searches at 10 milli-dollars, long requests twice as dear."""
    plain = PriceVersion(
        version="pv_test",
        provider="acme",
        model="talker-1",
        tier="standard",
        prices={
            "input": Decimal("0.000002"),
            "cache_read": Decimal("0.0000005"),
            "output": Decimal("0.000008"),
            "reasoning": Decimal("0.000008"),
            "web_search": Decimal("0.01"),
            "request": Decimal("0.001"),
        },
        source="test",
        not_billed=frozenset({"page"}),
    )
    return replace(plain, **changes)


def rated(result: Rated | Unpriced) -> Rated:
    assert isinstance(result, Rated), result
    return result


# --- Arithmetic -------------------------------------------------------------------------------------------


@given(st.integers(-(10**30), 10**30), st.integers(1, 10**12))
def test_rounding_is_that_of_fractions(numerator: int, denominator: int) -> None:
    assert round_half_even(numerator, denominator) == round(Fraction(numerator, denominator))


@pytest.mark.parametrize(
    ("numerator", "denominator", "expected"),
    [
        (1, 2, 0),
        (3, 2, 2),
        (5, 2, 2),
        (-1, 2, 0),
        (-3, 2, -2),
        (-5, 2, -2),
        (7, 4, 2),
        (-7, 4, -2),
        (0, 9, 0),
    ],
)
def test_a_half_goes_to_the_even_neighbour(numerator: int, denominator: int, expected: int) -> None:
    assert round_half_even(numerator, denominator) == expected


PRICES = st.builds(
    lambda digits, places: Decimal((0, tuple(map(int, str(digits))), -places)),
    st.integers(0, 10**6),
    st.integers(0, 20),
)
QUANTITIES = st.integers(0, 10**7)


@st.composite
def versions(draw: st.DrawFn) -> PriceVersion:
    units = draw(st.lists(st.sampled_from(UNITS), unique=True, min_size=1))
    borders = sorted(draw(st.sets(st.integers(0, 300_000), max_size=3)))
    part = st.dictionaries(st.sampled_from(units), PRICES)
    return version(
        prices={unit: draw(PRICES) for unit in units},
        not_billed=frozenset(draw(st.sets(st.sampled_from(UNITS)))) - set(units),
        context_tiers=tuple(ContextTier(border, draw(part)) for border in borders),
        per=draw(st.dictionaries(st.sampled_from(units), st.sampled_from([3, 60, 1000, 3600]), max_size=2)),
        minimum=draw(st.dictionaries(st.sampled_from(units), st.integers(1, 100), max_size=1)),
    )


TOKENS = st.dictionaries(st.sampled_from(BUCKETS), QUANTITIES)
OTHERS = st.dictionaries(st.sampled_from(COUNTS), st.integers(0, 1000))
FINISH = st.sampled_from(["stop", "length", "error", "", " ", None, "tool_calls", "something_new"])
FLAGS = st.tuples(st.booleans(), st.booleans(), st.booleans(), st.booleans())
RULES = st.builds(Rules, st.sampled_from([Decimal("0.01"), Decimal(0), Decimal("0.333333333"), Decimal(1)]))


def oracle(
    v: PriceVersion,
    tokens: Mapping[str, int],
    counts: Mapping[str, int],
    finish: str | None,
    flags: tuple[bool, bool, bool, bool],
    discount: Fraction,
) -> tuple[Fraction, Fraction] | str:
    """(amount, list amount) before rounding, or the first unit without a price; shares no code with rate."""
    cancelled, cache_hit, byok, sharing = flags
    if cache_hit:
        return Fraction(0), Fraction(0)
    prices: dict[str, Fraction] = dict.fromkeys(v.not_billed, Fraction(0))
    prices |= {unit: Fraction(price) / v.per.get(unit, 1) for unit, price in v.prices.items()}
    spoken = any(prices.get(unit, 0) > 0 for unit in ("output", "reasoning", "output_audio", "output_image"))
    size = sum(quantity for unit, quantity in tokens.items() if unit in INPUT_BUCKETS)
    for tier in v.context_tiers:
        if size >= tier.above_input_tokens + 1:
            prices |= {unit: Fraction(price) / v.per.get(unit, 1) for unit, price in tier.prices.items()}
    said_nothing = sum(tokens.get(unit, 0) for unit in COMPLETION_BUCKETS) == 0
    blank = finish in (None, "", " ")
    only_tools = finish == "error" or (blank and said_nothing and spoken and not cancelled)
    model = tools = Fraction(0)
    for unit, quantity in [*tokens.items(), *counts.items()]:
        if quantity == 0 or (only_tools and unit not in ("web_search", "page")):
            continue
        if unit not in prices:
            return unit
        part = prices[unit] * max(quantity, v.minimum.get(unit, 0)) * 10**12
        if unit in ("web_search", "page"):
            tools += part
        else:
            model += part
    if only_tools:
        return tools, tools
    if byok:
        return Fraction(0), model + tools
    return (model * (1 - discount) if sharing else model) + tools, model + tools


@MANY
@given(versions(), TOKENS, OTHERS, FINISH, FLAGS, RULES)
def test_rate_and_explain_are_exact_and_round_once(
    v: PriceVersion,
    tokens: dict[str, int],
    counts: dict[str, int],
    finish: str | None,
    flags: tuple[bool, bool, bool, bool],
    rules: Rules,
) -> None:
    expected = oracle(v, tokens, counts, finish, flags, Fraction(rules.data_sharing_discount))
    result = rate(Card(v), tokens, counts, finish, *flags, rules)
    explained = explain(v, tokens, counts, finish, *flags, rules)
    assert explained.rated == result
    if isinstance(expected, str):
        assert result == Unpriced("unknown_price", expected)
    elif round(expected[1]) >= 2**63:
        assert result == Unpriced("amount_out_of_range")
    else:
        assert (rated(result).amount_pico, rated(result).list_amount_pico) == tuple(map(round, expected))
        assert (explained.exact_pico, explained.exact_list_pico) == expected
        assert sum(part.amount_pico for part in explained.units) == explained.exact_list_pico


@given(versions(), TOKENS, st.sampled_from(BUCKETS), st.integers(1, 10**6))
def test_more_tokens_never_cost_less(v: PriceVersion, tokens: dict[str, int], unit: str, more: int) -> None:
    """If a longer context never costs less, which the guard of the price book sees to."""
    prices = {name: min(price, Decimal(1000)) for name, price in v.prices.items()}
    ascending: list[ContextTier] = []
    for tier in v.context_tiers:
        below = {**prices, **(ascending[-1].prices if ascending else {})}
        higher = {name: max(price, below[name]) for name, price in tier.prices.items()}
        ascending.append(ContextTier(tier.above_input_tokens, {**below, **higher}))
    rest = frozenset(UNITS) - prices.keys()
    card = Card(replace(v, prices=prices, context_tiers=tuple(ascending), not_billed=rest))
    fewer, most = rate(card, tokens), rate(card, {**tokens, unit: tokens.get(unit, 0) + more})
    if isinstance(most, Unpriced):
        assert most.reason == "amount_out_of_range"
    else:
        assert 0 <= rated(fewer).amount_pico <= most.amount_pico


@given(versions(), TOKENS, TOKENS)
def test_the_exact_amount_of_a_sum_is_the_sum(v: PriceVersion, one: dict[str, int], two: dict[str, int]) -> None:
    flat = replace(v, context_tiers=(), minimum={}, not_billed=frozenset(UNITS) - v.prices.keys())
    both = {unit: one.get(unit, 0) + two.get(unit, 0) for unit in {*one, *two}}
    parts = explain(flat, one).exact_pico + explain(flat, two).exact_pico
    assert explain(flat, both).exact_pico == parts
    together = rate(Card(flat), both)
    assert together == Unpriced("amount_out_of_range") or rated(together).amount_pico == round(parts)


def test_one_rounding_over_the_sum_and_not_one_per_unit() -> None:
    half = Decimal("0.0000000000005")  # half a pico-dollar
    card = Card(version(prices={"input": half, "output": half}))
    assert rated(rate(card, {"input": 1})).amount_pico == 0
    assert rated(rate(card, {"input": 3})).amount_pico == 2
    assert rated(rate(card, {"input": 1, "output": 1})).amount_pico == 1  # rounded apart: 0
    assert rated(rate(card, {"input": 3, "output": 3})).amount_pico == 3  # rounded apart: 4


def test_a_price_with_more_digits_than_the_decimal_context_is_kept() -> None:
    price = Decimal("123456.123456789012345678901234567891")
    v = version(prices={"input": price, "output": Decimal("0.10")})
    assert to_json(v)["prices"] == {"input": str(price), "output": "0.1"}
    exact = Fraction(123456123456789012345678901234567891, 10**30) * 10**12
    assert rated(rate(Card(v), {"input": 3})).amount_pico == round(3 * exact)


def test_a_price_by_the_hour_is_exact_though_no_decimal_per_second_is() -> None:
    v = version(prices={"second": Decimal("0.04")}, per={"second": 3600}, minimum={"second": 10})
    assert rated(rate(Card(v), {}, {"second": 9})).amount_pico == round(Fraction(4 * 10**10 * 10, 3600))
    assert rated(rate(Card(v), {}, {"second": 3600})).amount_pico == 4 * 10**10
    assert rated(rate(Card(v), {}, {"second": 0})).amount_pico == 0
    assert explain(v, {}, {"second": 9}).units[0].unit_price == "1/90000"


def test_an_amount_that_no_bigint_holds_has_no_price() -> None:
    card = Card(version(prices={"input": Decimal(3)}))  # per token, where per million was meant
    assert rate(card, {"input": 3_000_000}) == rated(rate(card, {"input": 3_000_000}))
    assert rate(card, {"input": 4_000_000}) == Unpriced("amount_out_of_range")
    assert rate(card, {"input": 4_000_000}, byok=True) == Unpriced("amount_out_of_range")


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (Fraction(5, 2_000_000), "0.0000025"),
        (Fraction(0), "0"),
        (Fraction(12), "12"),
        (Fraction(-5, 2), "-2.5"),
        (Fraction(1, 3), "1/3"),
        (Fraction(1, 1024), "0.0009765625"),
    ],
)
def test_exact_text(value: Fraction, text: str) -> None:
    assert exact_text(value) == text


# --- OpenRouter's rules (the numbers are the rows of the table they come from) ----------------------------


@pytest.mark.parametrize("finish", [None, "", "  "])
def test_row_1_zero_completion_is_free(finish: str | None) -> None:
    result = rated(rate(Card(version()), {"input": 5000, "cache_read": 1}, {"request": 1}, finish))
    assert result == Rated(0, 0, "pv_test", "standard", "zero_completion")


@pytest.mark.parametrize("bucket", sorted(COMPLETION_BUCKETS))
def test_row_1_any_completion_token_ends_the_insurance(bucket: str) -> None:
    v = version(prices={**version().prices, bucket: Decimal("0.000008")})
    assert rated(rate(Card(v), {"input": 1, bucket: 1}, {}, None)).amount_pico == 10 * MICRO


def test_row_1_zero_completion_with_a_finish_reason_is_billed() -> None:
    assert rated(rate(Card(version()), {"input": 5}, {}, "stop")).amount_pico == 10 * MICRO
    assert rated(rate(Card(version()), {"input": 5}, {}, "refusal")).amount_pico == 10 * MICRO


def test_row_1_an_error_is_free_whatever_was_produced() -> None:
    result = rated(rate(Card(version()), {"input": 5, "output": 7, "reasoning": 3}, {"request": 1}, "error"))
    assert result == Rated(0, 0, "pv_test", "standard", "error")


def test_row_1_what_is_free_needs_no_price() -> None:
    assert rated(rate(Card(version()), {"input_video": 9}, {"image": 1}, "error")).amount_pico == 0
    assert rated(rate(Card(version()), {"input_video": 9}, {}, None)).amount_pico == 0


@pytest.mark.parametrize("finish", [None, "error"])
def test_row_2_work_done_beside_the_model_is_billed_alone(finish: str | None) -> None:
    v = version(prices={**version().prices, "page": Decimal("0.002")}, not_billed=frozenset())
    result = rated(rate(Card(v), {"input": 5000}, {"web_search": 2, "page": 3, "request": 1}, finish))
    assert result.amount_pico == result.list_amount_pico == 26_000 * MICRO


def test_row_2_unpriced_work_still_waits() -> None:
    v = version(prices={"input": Decimal(1), "output": Decimal(1)})
    assert rate(Card(v), {"input": 1}, {"web_search": 1}, None) == Unpriced("unknown_price", "web_search")


SPEECH = {"prices": {"character": Decimal("0.000015")}, "not_billed": frozenset(BUCKETS) | {"request"}}


def test_row_3_speech_cancelled_after_the_first_frame_is_billed_in_full() -> None:
    result = rated(rate(Card(version(**SPEECH)), {}, {"character": 200}, None, cancelled=True))
    assert result.amount_pico == 3000 * MICRO


def test_row_3_broken_speech_is_free() -> None:
    assert rated(rate(Card(version(**SPEECH)), {}, {"character": 200}, "error")).amount_pico == 0


def test_row_4_no_image_is_free() -> None:
    v = version(prices={"image": Decimal("0.04"), "input": Decimal("0.000002")})
    assert rated(rate(Card(v), {"input": 100}, {"image": 1}, "error")).amount_pico == 0


def test_a_model_without_completion_tokens_is_no_failure() -> None:
    """An embedding, a transcription or speech has neither completion tokens nor a finish reason."""
    v = version(prices={"input": Decimal("0.000002")}, not_billed=frozenset(BUCKETS) - {"input"})
    assert rated(rate(Card(v), {"input": 100}, {}, None)).amount_pico == 200 * MICRO
    assert rated(rate(Card(version(**SPEECH)), {}, {"character": 200}, None)).amount_pico == 3000 * MICRO


def test_row_5_a_cache_hit_is_free_with_all_it_reports() -> None:
    result = rated(rate(Card(version()), {"input": 5, "output": 7}, {"web_search": 1}, "stop", cache_hit=True))
    assert result == Rated(0, 0, "pv_test", "standard", "cache_hit")
    assert rated(rate(Card(version()), {}, {}, None, cache_hit=True)).rule == "cache_hit"


@pytest.mark.parametrize("finish", [None, "", "stop", "cancelled"])
def test_row_7_a_cancelled_generation_is_billed_by_what_it_reports(finish: str | None) -> None:
    card = Card(version())
    assert rated(rate(card, {"input": 5, "output": 1}, {}, finish, cancelled=True)).amount_pico == 18 * MICRO
    assert rated(rate(card, {"input": 5}, {}, finish, cancelled=True)).amount_pico == 10 * MICRO


def test_row_8_and_11_the_tier_served_has_prices_of_its_own() -> None:
    half = {unit: price / 2 for unit, price in version().prices.items() if unit not in TOOL_UNITS}
    batch = version(version="pv_b", tier="batch", prices={**half, "web_search": Decimal("0.01")})
    book = PriceBook([version(), batch])
    usage: tuple[dict[str, int], dict[str, int]] = {"input": 100, "output": 10}, {"web_search": 1}
    amounts = {}
    for tier in ("standard", "batch"):
        card = book.card("acme", "talker-1", tier, NOON, NOON)
        assert isinstance(card, Card)
        amounts[tier] = rated(rate(card, *usage)).amount_pico
    assert amounts == {"standard": 10_280 * MICRO, "batch": 10_140 * MICRO}
    assert book.card("acme", "talker-1", "priority", NOON, NOON) == Unpriced("unknown_price", "tier:priority")


def test_rows_9_10_and_13_own_key_costs_nothing_here_and_keeps_its_list_price() -> None:
    result = rated(rate(Card(version()), {"input": 5, "output": 1}, byok=True, data_sharing=True))
    assert result == Rated(0, 18 * MICRO, "pv_test", "standard", "byok")
    free = rated(rate(Card(version()), {"input": 5}, {}, None, byok=True))
    assert (free.amount_pico, free.list_amount_pico, free.rule) == (0, 0, "zero_completion")
    assert rate(Card(version()), {"input_audio": 1}, byok=True) == Unpriced("unknown_price", "input_audio")


def test_row_12_sharing_data_takes_one_percent_off_the_model_and_nothing_off_tools() -> None:
    card = Card(version())
    result = rated(rate(card, {"input": 50}, {"web_search": 1, "request": 1}, data_sharing=True))
    assert result.list_amount_pico == 11_100 * MICRO
    assert result.amount_pico == 10_000 * MICRO + 1100 * MICRO * 99 // 100
    half = rated(rate(card, {"input": 50}, data_sharing=True, rules=Rules(Decimal("0.5"))))
    assert half.amount_pico == 50 * MICRO


def test_row_12_the_discount_is_taken_before_the_one_rounding() -> None:
    card = Card(version(prices={"input": Decimal("0.0000000000005")}))
    result = rated(rate(card, {"input": 301}, data_sharing=True))
    # 150.5 pico-dollars: 150 at list price, 148.995 with the discount. One percent off the 150 would be 148.
    assert (result.list_amount_pico, result.amount_pico) == (150, 149)


LONG = (ContextTier(200_000, {"input": Decimal("0.000004"), "output": Decimal("0.000012")}),)


@pytest.mark.parametrize(
    ("tokens", "amount_micro", "tier"),
    [
        ({"input": 200_000, "output": 1}, 400_008, "standard"),
        ({"input": 200_001, "output": 1}, 800_016, "standard>200000"),  # the whole request, not a slice
        ({"input": 1, "cache_read": 200_000}, 100_004, "standard>200000"),  # what is cached counts too
        ({"input": 1, "output": 300_000}, 2_400_002, "standard"),  # what is written does not
    ],
)
def test_row_16_context_tiers_are_a_cliff(tokens: dict[str, int], amount_micro: int, tier: str) -> None:
    result = rated(rate(Card(version(context_tiers=LONG)), tokens))
    assert (result.amount_pico, result.tier) == (amount_micro * MICRO, tier)


def test_row_16_of_several_overrides_the_last_that_matches_wins_for_each_unit() -> None:
    v = version(
        context_tiers=(
            ContextTier(10, {"input": Decimal("0.000003"), "output": Decimal("0.000009")}),
            ContextTier(20, {"input": Decimal("0.000005")}),
        )
    )
    assert rated(rate(Card(v), {"input": 20, "output": 1})).amount_pico == 69 * MICRO
    assert rated(rate(Card(v), {"input": 21, "output": 1})).amount_pico == 114 * MICRO


@pytest.mark.parametrize(
    ("window", "clock", "inside"),
    [
        ("0030-1630", "00:29:59.999999", False),
        ("0030-1630", "00:30:00", True),
        ("0030-1630", "16:29:59.999999", True),
        ("0030-1630", "16:30:00", False),
        ("2200-0600", "23:00:00", True),
        ("2200-0600", "00:00:00", True),
        ("2200-0600", "06:00:00", False),
        ("2200-0600", "21:59:59", False),
    ],
)
def test_row_17_hours_of_the_day(window: str, clock: str, inside: bool) -> None:
    at = datetime.fromisoformat(f"2026-11-24T{clock}+00:00")
    assert DailyWindow.parse(window).contains(at) is inside
    assert DailyWindow.parse(window).contains(at.astimezone(timezone(timedelta(hours=9)))) is inside
    night = version(version="pv_window", window=DailyWindow.parse(window))
    card = PriceBook([version(), night]).card("acme", "talker-1", "standard", at, NOON)
    assert isinstance(card, Card)
    assert card.price_version == ("pv_window" if inside else "pv_test")  # no window = the base rate


def test_row_18_free_not_billed_and_unknown_are_three_things() -> None:
    prices = {"input": Decimal("0.000001"), "output": Decimal(0)}
    card = Card(version(prices=prices, not_billed=frozenset({"cache_read"})))
    assert rated(rate(card, {"input": 1, "output": 5, "cache_read": 7})).amount_pico == MICRO
    assert rate(card, {"input": 1, "reasoning": 5}) == Unpriced("unknown_price", "reasoning")
    assert rate(card, {"input": 1, "reasoning": 0}) == rate(card, {"input": 1})
    assert rate(card, {"input": 1}, {"image": 1}) == Unpriced("unknown_price", "image")


# --- Versions ---------------------------------------------------------------------------------------------


@given(
    versions(),
    st.none() | st.builds(DailyWindow, st.integers(0, 700), st.integers(701, 1439)),
    st.datetimes(timezones=st.just(UTC)),
    st.booleans(),
)
def test_json_keeps_all_of_a_version(v: PriceVersion, window: DailyWindow | None, at: datetime, held: bool) -> None:
    hold = Hold(at, at + DAY if at < NOON else None)
    full = replace(v, window=window, known_from=at, holds=(hold,) if held else ())
    text = json.dumps(to_json(full))
    assert from_json(json.loads(text)) == full
    assert from_json(to_json(full)) == full


def event(**changes: Any) -> dict[str, Any]:
    return {
        "provider": "acme",
        "model": "talker-1",
        "tier": "standard",
        "prices": {"input": "0.000002", "output": "0.0000080"},
        "not_billed": ["cache_read"],
        "context_tiers": [{"above_input_tokens": 200000, "prices": {"input": "0.000004"}}],
        "valid_from": "2026-11-01T00:00:00Z",
        "valid_to": None,
        "source": "price list of November",
        **changes,
    }


def test_an_event_becomes_a_version() -> None:
    v = from_event(event(), NOON, event_version_id("0192-1"))
    assert v.version == "pv_" + hashlib.sha256(b"0192-1").hexdigest()[:12]
    assert v.prices == {"input": Decimal("0.000002"), "output": Decimal("0.000008")}
    assert v.context_tiers == (ContextTier(200_000, {"input": Decimal("0.000004")}),)
    assert (v.not_billed, v.valid_to, v.known_from, v.held) == (frozenset({"cache_read"}), None, NOON, False)
    assert v.valid_from == datetime(2026, 11, 1, tzinfo=UTC)
    assert from_event(event(valid_from=v.valid_from), NOON, v.version) == v
    assert from_event(event(), NOON, v.version, held=True).held


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"tier": "fast"}, "tier 'fast'"),
        ({"model": " "}, "model is empty"),
        ({"prices": {"inputs": "1"}}, "unknown unit 'inputs'"),
        ({"prices": {"input": "-1"}}, "from 0 to"),
        ({"prices": {"input": "NaN"}}, "from 0 to"),
        ({"prices": {"input": "1000001"}}, "from 0 to"),
        ({"prices": {"input": "1e-999999"}}, "decimal places"),
        ({"prices": {"input": "two"}}, "no decimal number"),
        ({"prices": {"input": 0.000002}}, "expected a decimal string"),
        ({"not_billed": ["input"]}, "'input' is priced and not billed"),
        ({"not_billed": ["tokens"]}, "unknown unit 'tokens'"),
        ({"context_tiers": [{"above_input_tokens": 1, "prices": {"page": "1"}}]}, "no base price"),
        ({"context_tiers": [{"above_input_tokens": -1, "prices": {}}]}, "ascend"),
        ({"context_tiers": [{"above_input_tokens": n, "prices": {}} for n in (2, 1)]}, "ascend"),
        ({"context_tiers": [{"above_input_tokens": 1.5, "prices": {}}]}, "whole number"),
        ({"valid_from": "2026-11-01T00:00:00"}, "no zone"),
        ({"valid_to": "2026-11-01T00:00:00Z"}, "not after valid_from"),
        ({"daily_window": "2500-0100"}, "HHMM-HHMM"),
        ({"daily_window": "0100-0100"}, "start equals end"),
        ({"per": {"input": 0}}, "at least 1"),
    ],
)
def test_an_event_that_cannot_be_meant_is_refused_with_its_reason(changes: dict[str, Any], reason: str) -> None:
    with pytest.raises(ValueError, match=reason):
        from_event(event(**changes), NOON, "pv_x")


def test_the_border_of_the_first_instant_survives_other_zones() -> None:
    v = from_event(event(valid_from="0001-01-01T00:00:00+09:00"), NOON, "pv_x")
    assert v.valid_from == BEGINNING


def test_hold_and_release() -> None:
    v = version(known_from=NOON)
    held = held_from(v, NOON + DAY)
    free = released_at(held, NOON + 3 * DAY)
    assert [at.usable_at(NOON + 2 * DAY) for at in (v, held, free)] == [True, False, False]
    assert [at.usable_at(NOON + 3 * DAY) for at in (v, held, free)] == [True, False, True]
    assert [at.usable_from(NOON - DAY) for at in (v, held, free)] == [NOON] * 3
    assert [at.usable_from(NOON + DAY) for at in (v, held, free)] == [NOON + DAY, None, NOON + 3 * DAY]
    assert held_from(held, NOON + 2 * DAY) == held
    assert released_at(free, NOON + 9 * DAY) == free
    assert (held.held, free.held) == (True, False)


# --- The book ---------------------------------------------------------------------------------------------

HOURS = st.integers(0, 72).map(lambda n: NOON + timedelta(hours=n))
NAMES = ("talker-1", "talker-1-2026")


class OneModel:
    """A catalogue with one model under two names, which `broker` borrows from `acme`."""

    def __init__(self, seeds: Sequence[PriceVersion] = ()) -> None:
        self.seeds = seeds

    def resolve(self, provider: str, model: str) -> Resolved | None:
        if model not in NAMES or provider not in ("acme", "broker"):
            return None
        return Resolved("acme", NAMES[0], borrowed=provider == "broker")

    def versions(self, provider: str, model: str) -> Sequence[PriceVersion]:
        return [v for v in self.seeds if (v.provider, v.model) == (provider, model)]

    def version(self, version: str) -> PriceVersion | None:
        return next((v for v in self.seeds if v.version == version), None)


@st.composite
def stated_versions(draw: st.DrawFn) -> list[PriceVersion]:
    stated = []
    for number in range(draw(st.integers(0, 7))):
        start = draw(st.just(BEGINNING) | HOURS)
        end = draw(st.none() | HOURS)
        known = draw(st.just(BEGINNING) | HOURS)
        v = version(
            version=f"pv_{number}",
            provider=draw(st.sampled_from(["acme", "acme", "broker"])),
            model=draw(st.sampled_from(NAMES)),
            tier=draw(st.sampled_from(["standard", "standard", "batch"])),
            window=draw(st.none() | st.sampled_from(["0600-1800", "2200-0400"]).map(DailyWindow.parse)),
            valid_from=start,
            valid_to=end if end is None or end > start else start + DAY,
            known_from=known,
        )
        for at in sorted(draw(st.lists(HOURS, max_size=3, unique=True))):
            if at >= known:
                v = released_at(v, at) if v.held else held_from(v, at)
        stated.append(v)
    return stated


def brute_force(
    stated: list[PriceVersion], provider: str, model: str, tier: str, event_at: datetime, known_at: datetime
) -> PriceVersion | Unpriced:
    """The choice as house.md and the module's head word it, by looking at everything."""

    def exactness(v: PriceVersion) -> int | None:
        if (v.provider, v.model) == (provider, model):
            return 3
        if (v.provider, v.model) == (provider, NAMES[0]):
            return 2
        if (v.provider, v.model) == ("acme", NAMES[0]):
            return 1 if provider == "acme" or v.tier == "standard" else None
        return None

    def spoken(v: PriceVersion) -> bool:
        minute = event_at.hour * 60 + event_at.minute
        if v.window is not None:
            start, end = v.window.start_minute, v.window.end_minute
            hours = range(start, end) if start < end else [*range(start, 1440), *range(end)]
            if minute not in hours:
                return False
        return v.valid_from <= event_at and (v.valid_to is None or event_at < v.valid_to)

    def usable(v: PriceVersion, at: datetime) -> bool:
        return v.known_from <= at and not any(
            hold.start <= at and (hold.end is None or at < hold.end) for hold in v.holds
        )

    def order(v: PriceVersion) -> tuple[Any, ...]:
        return exactness(v), v.known_from, v.window is not None, v.valid_from, v.version

    named = [v for v in stated if exactness(v) is not None]
    if not named:
        return Unpriced("unknown_model")
    of_tier = [v for v in named if v.tier == tier]
    if not of_tier:
        return Unpriced("unknown_price", f"tier:{tier}")
    speaking = [v for v in of_tier if spoken(v)]
    # Nothing changes between two of these instants.
    instants = {known_at, *(v.known_from for v in stated), *(h.end for v in stated for h in v.holds if h.end)}
    for at in sorted(instants):
        if at >= known_at and (found := [v for v in speaking if usable(v, at)]):
            return max(found, key=order)
    return Unpriced("unknown_price", "in_force")


@MANY
@given(
    stated_versions(),
    st.sampled_from(["acme", "broker"]),
    st.sampled_from(NAMES),
    st.sampled_from(["standard", "batch"]),
    st.lists(st.tuples(HOURS, HOURS), min_size=1, max_size=4),
    st.randoms(use_true_random=False),
    st.integers(0, 7),
)
def test_the_book_chooses_as_brute_force_does(
    stated: list[PriceVersion],
    provider: str,
    model: str,
    tier: str,
    instants: list[tuple[datetime, datetime]],
    shuffle: random.Random,
    seeds: int,
) -> None:
    shuffle.shuffle(stated)
    of_the_catalogue = [v for v in stated[:seeds] if (v.provider, v.model) == ("acme", NAMES[0])]
    later = [v for v in stated if v not in of_the_catalogue]
    book = PriceBook(later[:2], OneModel(of_the_catalogue))
    book.card(provider, model, tier, *instants[0])  # a cached answer must not survive what is added
    for v in later[2:]:
        book.add(v)
    for event_at, known_at in instants:
        found = book.card(provider, model, tier, event_at, known_at)
        expected = brute_force(stated, provider, model, tier, event_at, known_at)
        assert (found.version if isinstance(found, Card) else found) == expected


@given(stated_versions(), HOURS, HOURS)
def test_a_replay_rates_alike_whatever_was_published_since(
    stated: list[PriceVersion], event_at: datetime, known_at: datetime
) -> None:
    before = PriceBook([v for v in stated if v.known_from <= known_at], OneModel())
    after = PriceBook(stated, OneModel())
    first = before.card("acme", "talker-1", "standard", event_at, known_at)
    if isinstance(first, Card) and first.version.usable_at(known_at):
        again = after.card("acme", "talker-1", "standard", event_at, known_at)
        assert isinstance(again, Card)
        assert again.version == first.version


def test_a_held_change_leaves_the_old_price_in_force_until_it_is_released() -> None:
    new = held_from(version(version="pv_new", known_from=NOON, prices={"input": Decimal(1)}), NOON)
    book = PriceBook([version(), new])
    assert book.card("acme", "talker-1", "standard", NOON, NOON + DAY) == book.card_of(version())
    book.add(released_at(new, NOON + DAY))
    chosen = {
        known: getattr(book.card("acme", "talker-1", "standard", NOON, known), "price_version", None)
        for known in (NOON, NOON + DAY - timedelta(milliseconds=1), NOON + DAY)
    }
    assert list(chosen.values()) == ["pv_test", "pv_test", "pv_new"]


def test_a_quarantined_generation_is_released_by_the_first_price_known_afterwards() -> None:
    first = version(version="pv_first", known_from=NOON + DAY)
    second = version(version="pv_second", known_from=NOON + 2 * DAY)
    book = PriceBook()
    assert book.card("acme", "talker-1", "standard", NOON, NOON) == Unpriced("unknown_model")
    book.add(second)
    book.add(first)
    card = book.card("acme", "talker-1", "standard", NOON, NOON)
    assert isinstance(card, Card)
    assert card.price_version == "pv_first"
    held = PriceBook([held_from(first, first.known_from)])
    assert held.card("acme", "talker-1", "standard", NOON, NOON) == Unpriced("unknown_price", "in_force")


def test_one_version_id_cannot_name_two_models() -> None:
    book = PriceBook([version()])
    with pytest.raises(ValueError, match="names two models"):
        book.add(version(model="talker-2"))
