"""What becomes of a price statement, by itself and beside what is in force."""

from __future__ import annotations

from dataclasses import replace
from datetime import UTC, datetime, timedelta
from decimal import Decimal

from hypothesis import given
from hypothesis import strategies as st

from services.metering.market import Market
from services.metering.price_book import PriceBook
from services.metering.price_desk import (
    BILLED_AS,
    Decision,
    Statement,
    agrees,
    changes,
    decide,
    enter,
    market_of,
    merged,
    name_of,
    prices,
    same,
)
from services.metering.price_version import UNITS, ContextTier, DailyWindow, PriceVersion
from services.metering.pricing import Card

AT = datetime(2026, 11, 3, 12, tzinfo=UTC)
STATED = {"input": Decimal("0.000001"), "output": Decimal("0.000004")}


def version(number: int = 1, **more: object) -> PriceVersion:
    content = {"prices": STATED, "source": "desk", "known_from": AT + timedelta(hours=number)} | more
    return PriceVersion(f"pv_{number}", "acme", "m", "standard", **content)  # type: ignore[arg-type]


def dear(factor: str, **units: str) -> dict[str, Decimal]:
    return {unit: price * Decimal(units.get(unit, factor)) for unit, price in STATED.items()}


def judged(statement: Statement, *known: PriceVersion, spoken: dict[str, frozenset[str]] | None = None) -> Decision:
    market = market_of((), known, AT)
    (decision,) = decide(PriceBook(known), market, [statement], AT + timedelta(days=1), spoken or {})
    return decision


def test_a_change_within_bounds_is_in_force_from_its_time_on() -> None:
    decision = judged(Statement(version(2, prices=dear("1.5"))), version())
    assert not decision.reasons and not decision.version.held
    book = PriceBook([version(), decision.version])
    later, before = AT + timedelta(hours=3), AT + timedelta(hours=1, minutes=30)
    cards = [book.card("acme", "m", "standard", AT, known) for known in (before, later)]
    assert [card.price_version for card in cards if isinstance(card, Card)] == ["pv_1", "pv_2"]


def test_a_held_change_rates_nothing_and_says_why() -> None:
    decision = judged(Statement(version(2, prices=dear("1", input="20"))), version())
    assert decision.version.held
    (reason,) = decision.reasons
    assert (reason["unit"], reason["above"], reason["old"], reason["new"]) == ("input", 0, "0.000001", "0.00002")
    card = PriceBook([version(), decision.version]).card("acme", "m", "standard", AT, AT + timedelta(days=2))
    assert isinstance(card, Card) and card.price_version == "pv_1"


def test_what_an_incomplete_statement_is_silent_about_keeps_its_price() -> None:
    tiers = (ContextTier(1000, {"input": Decimal("0.000002"), "output": Decimal("0.000008")}),)
    before = version(
        prices=STATED | {"web_search": Decimal("0.01"), "second": Decimal("0.04")}, per={"second": 3600},
        context_tiers=tiers, not_billed=frozenset({"request"}), minimum={"second": 10},
    )  # fmt: skip
    stated = version(2, prices={"input": Decimal("0.0000015")})
    full = merged(stated, frozenset({"input"}), before)
    for read in (0, 1001):
        assert full.unit_price("input", read) == Decimal("0.0000015")
        for unit in ("output", "web_search", "second", "request"):
            assert full.unit_price(unit, read) == before.unit_price(unit, read), unit
        # Buckets that nobody gave a price of their own are billed as what they are.
        assert full.unit_price("cache_read", read) == Decimal("0.0000015")
        assert full.unit_price("reasoning", read) == before.unit_price("output", read)
    assert full.unit_price("image") is None
    assert (full.per, full.minimum) == ({"second": 3600}, {"second": 10})
    assert not judged(Statement(stated, frozenset({"input"})), before).reasons
    # A complete statement that leaves a price out makes it vanish.
    gone = judged(Statement(version(2, prices={"input": Decimal("0.000001")})), version())
    assert [(why["unit"], why["new"]) for why in gone.reasons] == [("output", None)]


def test_a_source_that_falls_silent_about_a_price_makes_it_vanish() -> None:
    stated = Statement(version(2, prices={"input": Decimal("0.000001")}), frozenset({"input"}))
    spoken = {name_of(stated.version): frozenset({"input", "output"})}
    assert [why["unit"] for why in judged(stated, version(), spoken=spoken).reasons] == ["output"]
    assert not judged(stated, version()).reasons


def test_a_changed_unit_is_no_change_of_price_and_an_hour_is_not_a_second() -> None:
    hour = version(prices={"second": Decimal("0.36")}, per={"second": 3600})
    second = version(2, prices={"second": Decimal("0.0001")})
    assert not changes(second, hour) and not judged(Statement(second), hour).reasons
    slipped = judged(Statement(version(2, prices={"second": Decimal("0.36")})), hour)
    assert [why["unit"] for why in slipped.reasons] == ["second"]


def test_a_price_of_the_night_is_compared_with_the_price_of_the_night() -> None:
    night = version(prices=dear("0.05"), window=DailyWindow(0, 60))
    day = version(0)
    cheaper = replace(night, version="pv_3", prices=dear("0.04"), known_from=AT + timedelta(hours=3))
    assert not judged(Statement(cheaper), night, day).reasons
    assert judged(Statement(replace(cheaper, window=None)), night, day).reasons


def test_buckets_that_are_billed_as_another_one_are_no_prices_of_their_own() -> None:
    spelled = version(prices=STATED | {"reasoning": STATED["output"], "cache_read": STATED["input"]})
    assert [key.unit for key, _ in prices(spelled)] == ["input", "output"]
    assert not changes(spelled, version())


def test_the_second_source_has_to_say_all_of_it() -> None:
    held = judged(Statement(version(2, prices=dear("20"))), version())
    second = version(3, source="other", prices=dear("20.1"))
    assert {why["unit"] for why in held.reasons} == {"input", "output"}
    assert agrees(second, held.version, held.reasons)
    assert not agrees(replace(second, source="desk"), held.version, held.reasons)
    assert not agrees(replace(second, prices=dear("20", output="1")), held.version, held.reasons)
    market = market_of((), [version(), held.version], AT)
    (agreed,) = decide(PriceBook([version()]), market, [Statement(second)], AT + timedelta(days=1), {})
    assert not agreed.reasons


def test_a_held_quote_speaks_against_nobody() -> None:
    born_wrong = judged(Statement(version(1, prices=dear("1000"))))
    assert born_wrong.version.held
    market = Market()
    enter(market, born_wrong.version)
    (right,) = decide(PriceBook(), market, [Statement(version(2, source="other"))], AT + timedelta(days=1), {})
    assert not right.reasons


@given(st.dictionaries(st.sampled_from(UNITS), st.decimals("0.000001", 1, places=6)), st.sets(st.sampled_from(UNITS)))
def test_merged_says_what_is_stated_and_else_what_was_in_force(stated: dict[str, Decimal], units: set[str]) -> None:
    before = version(prices=STATED, not_billed=frozenset({"request"}))
    spoken = frozenset(units | stated.keys())
    full = merged(version(2, prices=stated), spoken, before)
    base = {unit: stated[unit] if unit in stated else STATED[unit] for unit in UNITS if unit in stated or (
        unit in STATED and unit not in spoken)}  # fmt: skip
    for unit in UNITS:
        source = next((one for one in (unit, *BILLED_AS.get(unit, ())) if one in base), None)
        free = Decimal(0) if unit == "request" and "request" not in spoken else None
        assert full.unit_price(unit) == (free if source is None else base[source]), unit
    assert same(full, before) == all(full.unit_price(unit) == before.unit_price(unit) for unit in UNITS)


def test_a_bucket_that_was_billed_as_another_one_follows_it() -> None:
    before = version(prices=STATED | {"reasoning": STATED["output"], "cache_read": Decimal("0.0000001")})
    full = merged(version(2, prices=dear("2")), frozenset(STATED), before)
    assert full.unit_price("reasoning") == full.unit_price("output") == 2 * STATED["output"]
    assert full.unit_price("cache_read") == Decimal("0.0000001")
