"""The seeded prices against the package that they come from."""

from __future__ import annotations

import hashlib
import itertools
import random
from collections.abc import Iterator, Mapping
from datetime import UTC, datetime, timedelta
from fractions import Fraction

import pytest
from genai_prices.data import providers as genai_providers
from genai_prices.types import ModelInfo, Provider, Usage

from services.metering.price_book import PriceBook, Resolved
from services.metering.price_version import (
    BUCKETS,
    COMPLETION_BUCKETS,
    COUNTS,
    INPUT_BUCKETS,
    seed_version_id,
    to_json,
)
from services.metering.pricing import Card, Rated, Unpriced, explain, rate
from services.metering.seed import GenaiPrices

NOON = datetime(2026, 11, 24, 12, tzinfo=UTC)


def rated(result: Rated | Unpriced) -> Rated:
    assert isinstance(result, Rated), result
    return result


@pytest.fixture(scope="module")
def catalogue() -> GenaiPrices:
    return GenaiPrices()


@pytest.fixture(scope="module")
def book(catalogue: GenaiPrices) -> PriceBook:
    return PriceBook(catalogue=catalogue)


def test_seeded_versions_keep_their_ids(catalogue: GenaiPrices) -> None:
    """Rated records pin them: a change of how they are made would orphan what is stored."""
    versions = list(catalogue.all_versions())
    ids = sorted(v.version for v in versions)
    assert (len(ids), len(set(ids))) == (2805, 2805)
    assert hashlib.sha256(" ".join(ids).encode()).hexdigest()[:16] == "bb8054d726d79c17"
    sample = versions[0]
    assert seed_version_id({**to_json(sample), "a member added later": []}) == sample.version
    assert catalogue.version(sample.version) == sample
    assert catalogue.version("pv_000000000000") is None
    assert {v.source for v in versions} == {"genai-prices 0.2.3"}


@pytest.mark.parametrize(
    ("name", "resolved"),
    [
        (("openai", "gpt-4o-2024-08-06"), Resolved("openai", "gpt-4o")),
        (("OpenAI", "GPT-4o"), Resolved("openai", "gpt-4o")),
        (("anthropic", "claude-sonnet-4-5-20250929"), Resolved("anthropic", "claude-sonnet-4-5")),
        (("bedrock", "amazon.titan-embed-text-v2:0"), Resolved("aws", "amazon.titan-embed-text-v2:0")),
        (("azure", "gpt-4o-2024-08-06"), Resolved("openai", "gpt-4o", borrowed=True)),
        (("fireworks", "glm-5p3"), Resolved("fireworks", "glm-5p3")),  # forgotten by the package's clauses
        (("openai", "gpt-99-imaginary"), None),
        (("nobody", "gpt-4o"), None),
    ],
)
def test_names_on_the_wire(catalogue: GenaiPrices, name: tuple[str, str], resolved: Resolved | None) -> None:
    assert catalogue.resolve(*name) == resolved


def test_a_borrowed_price_serves_the_standard_tier_only(book: PriceBook) -> None:
    assert isinstance(book.card("azure", "gpt-4o", "standard", NOON, NOON), Card)
    assert isinstance(book.card("openai", "gpt-4o", "priority", NOON, NOON), Card)
    missing = Unpriced("unknown_price", "tier:priority")
    assert book.card("azure", "gpt-4o", "priority", NOON, NOON) == missing


def test_what_is_free_and_what_is_only_unknown(book: PriceBook) -> None:
    free = book.card("openrouter", "allenai/molmo-7b-d:free", "standard", NOON, NOON)
    assert isinstance(free, Card)
    assert rated(rate(free, {"input": 9, "output": 9}, {"request": 1})).amount_pico == 0
    assert rate(free, {"input": 9}, {"web_search": 1}) == Unpriced("unknown_price", "web_search")
    assert book.card("cerebras", "qwen-3-coder-480b", "standard", NOON, NOON) == Unpriced("unknown_model")
    chat = book.card("openai", "gpt-4.1-nano", "standard", NOON, NOON)
    assert isinstance(chat, Card)
    assert rate(chat, {"input": 9}, {"web_search": 1}) == Unpriced("unknown_price", "web_search")
    assert rated(rate(chat, {"input": 9}, {"request": 1})).amount_pico == 900_000


CONTEXTS: dict[str, dict[str, str] | None] = {
    "standard": None,
    "flex": {"service_tier": "flex"},
    "priority": {"service_tier": "priority"},
    "batch": {"processing": "batch"},
}


def inclusive(tokens: Mapping[str, int], counts: Mapping[str, int]) -> Usage:
    """Our exclusive buckets as the package counts: totals that include their parts, each meeting of parts."""

    def get(*units: str) -> int:
        return sum(tokens.get(unit, 0) for unit in units)

    return Usage(
        input_tokens=get(*INPUT_BUCKETS),
        cache_read_tokens=get("cache_read", "cache_read_audio"),
        cache_write_tokens=get("cache_write_5m", "cache_write_1h"),
        cache_write_5m_tokens=get("cache_write_5m"),
        cache_write_1h_tokens=get("cache_write_1h"),
        input_audio_tokens=get("input_audio", "cache_read_audio"),
        cache_audio_read_tokens=get("cache_read_audio"),
        cache_image_read_tokens=0,
        input_image_tokens=get("input_image"),
        input_video_tokens=get("input_video"),
        output_tokens=get(*COMPLETION_BUCKETS),
        output_reasoning_tokens=get("reasoning"),
        output_audio_tokens=get("output_audio"),
        output_image_tokens=get("output_image"),
        web_searches=counts.get("web_search", 0),
        audio_seconds=counts.get("second", 0),
        input_audio_seconds=counts.get("second", 0),
        input_characters=counts.get("character", 0),
        input_document_pages=counts.get("page", 0),
    )


def random_usage(dice: random.Random, known: frozenset[str]) -> tuple[dict[str, int], dict[str, int]]:
    """Some of each family of units, as far as the card knows them."""
    scale = dice.choice([100, 100_000, 300_000])
    tokens = {unit: dice.randrange(scale) for unit in dice.sample(BUCKETS, 5)}
    return tokens, {"request": 1} | {unit: dice.randrange(20) for unit in COUNTS if unit in known}


def models() -> Iterator[tuple[Provider, ModelInfo]]:
    """Every model that the package finds under its own id."""
    for provider in genai_providers:
        for model in provider.models:
            if provider.find_model(model.id, all_providers=genai_providers) is model:
                yield provider, model


def test_amounts_are_those_of_the_package_wherever_both_know_the_price(book: PriceBook) -> None:
    """Every model, every tier, over months around its changes of price, with random usage."""
    dice = random.Random(20261124)
    compared = dict.fromkeys(CONTEXTS, 0)
    unpriced = 0
    for (provider, model), (tier, context), _ in itertools.product(models(), CONTEXTS.items(), range(4)):
        if tier != "standard" and not model.price_variants:
            continue
        at = datetime(2026, 8, 1, tzinfo=UTC) + timedelta(minutes=30 * dice.randrange(48 * 200))
        card = book.card(provider.id, model.id, tier, at, NOON)
        if isinstance(card, Unpriced):
            unpriced += 1
            continue
        tokens, counts = random_usage(dice, frozenset(card.prices) - {"request"})
        result = rated(rate(card, tokens, counts))
        price = model.calc_price(inclusive(tokens, counts), provider, genai_request_timestamp=at, price_context=context)
        exact = Fraction(price.total_price) * 10**12
        told = f"{provider.id} {model.id} {tier} {at} {tokens} {counts}"
        assert result.amount_pico == round(exact), told
        if not card.version.per:  # by the hour the package itself rounds, to 28 digits
            assert explain(card.version, tokens, counts).exact_pico == exact, told
        compared[tier] += 1
    assert compared["standard"] > 8_000
    assert min(compared.values()) > 20, (compared, unpriced)
