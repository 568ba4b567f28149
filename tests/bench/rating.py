"""Rating alone, on one core, beside the package that the first prices come from; and reading providers' answers.

Both rate the same usages at the same time, by the same prices, from names as they come on the wire, and must find the
same amounts. No server takes part.
"""

from __future__ import annotations

import random
import time
from collections.abc import Callable, Iterable
from datetime import UTC, datetime
from typing import Any

from genai_prices import Usage, calc_price

from services.metering.price_book import PriceBook
from services.metering.pricing import Rated, Unpriced, rate
from services.metering.seed import GenaiPrices
from shared.adapters import Reading, read
from tests.bench.report import Limit, Line, Report, mean

_SEED = 20_261_124
_AT = datetime(2026, 11, 24, 12, tzinfo=UTC)
_ROUNDS = 3
_OURS_FOR_EACH_OF_THEIRS = 40

Body = tuple[str, dict[str, Any]]

_MODELS = (
    ("openai", "gpt-4.1-mini"), ("openai", "gpt-5"), ("anthropic", "claude-sonnet-4-5"), ("anthropic", "claude-haiku-4-5"),
    ("google", "gemini-2.5-flash"), ("google", "gemini-2.5-pro"), ("mistral", "mistral-small-latest"),
    ("groq", "llama-3.3-70b-versatile"), ("openrouter", "openai/gpt-5-mini"), ("deepseek", "deepseek-chat"),
)  # fmt: skip


def rating_lines(report: Report, usages: int) -> None:
    """Rates `usages` of them by both, in turns, and reads the answers that they were in."""
    bodies = list(_bodies(usages))
    readings = [(provider, read(body, provider)) for provider, body in bodies]
    book = PriceBook(catalogue=GenaiPrices())
    # Built beforehand on both sides: what is measured is how a usage and names become an amount.
    ours = [(provider, str(r.model), r.buckets) for provider, r in readings]
    theirs = [(_usage(r), str(r.model), provider) for provider, r in readings]
    _same(book, ours, theirs)

    def rated() -> None:
        card_of = book.card
        for provider, model, tokens in ours:
            card = card_of(provider, model, "standard", _AT, _AT)
            if not isinstance(card, Unpriced):
                rate(card, tokens)

    def priced() -> None:
        for usage, model, provider in theirs:
            calc_price(usage, model, provider_id=provider, genai_request_timestamp=_AT)

    def adapted() -> None:
        for provider, body in bodies:
            read(body, provider)

    rates, prices, reads = [], [], []
    for _ in range(_ROUNDS):
        rates.append(_per_second(rated, len(ours), _OURS_FOR_EACH_OF_THEIRS))
        prices.append(_per_second(priced, len(ours)))
        reads.append(_per_second(adapted, len(bodies)))
    package = mean(prices)
    note = f"{len(ours):,} usages of {len(_MODELS)} models, {_ROUNDS} turns; equal amounts"
    report.add(
        Line("rating_package", package, "usages/s", note="genai_prices.calc_price, its Usage objects built beforehand"),
        Line(
            "rating",
            mean(rates),
            "usages/s",
            mean(rates) / package,
            "rating_package",
            (Limit(">=", 10, "ratio"),),
            note,
        ),
        Line("adapters", mean(reads), "bodies/s", note=f"{len(bodies):,} whole answers, from objects to readings"),
    )


def _per_second(what: Callable[[], None], each: int, times: int = 1) -> float:
    started = time.perf_counter()
    for _ in range(times):
        what()
    return each * times / (time.perf_counter() - started)


def _same(book: PriceBook, ours: list[tuple[str, str, dict[str, int]]], theirs: list[tuple[Usage, str, str]]) -> None:
    """Raises if one usage has two amounts, or none."""
    for (provider, model, tokens), (usage, _, _) in zip(ours, theirs, strict=True):
        card = book.card(provider, model, "standard", _AT, _AT)
        rated = card if isinstance(card, Unpriced) else rate(card, tokens)
        price = calc_price(usage, model, provider_id=provider, genai_request_timestamp=_AT).total_price
        if not isinstance(rated, Rated) or abs(price.scaleb(12) - rated.amount_pico) * 2 > 1:
            raise ValueError(f"{model} at {provider}: {rated} here, {price} there")


def _usage(reading: Reading) -> Usage:
    """The package counts inclusively."""
    n = reading.buckets.get
    return Usage(
        input_tokens=reading.input_tokens,
        output_tokens=reading.output_tokens,
        cache_read_tokens=n("cache_read", 0),
        cache_write_tokens=n("cache_write_5m", 0) + n("cache_write_1h", 0),
        cache_write_5m_tokens=n("cache_write_5m", 0),
        cache_write_1h_tokens=n("cache_write_1h", 0),
        output_reasoning_tokens=n("reasoning", 0),
    )


def _bodies(count: int) -> Iterable[Body]:
    """Answers as the providers give them, the same ones in every run."""
    draw = random.Random(_SEED)
    for _ in range(count):
        provider, model = draw.choice(_MODELS)
        text, out = draw.randrange(1, 20_000), draw.randrange(1, 2_000)
        cached = draw.choice((0, draw.randrange(20_000)))
        thought = draw.choice((0, draw.randrange(2_000)))
        yield provider, _answer(provider, model, text, cached, out, thought)


def _answer(provider: str, model: str, text: int, cached: int, out: int, thought: int) -> dict[str, Any]:
    if provider == "anthropic":
        return {
            "type": "message", "model": model, "stop_reason": "end_turn",
            "usage": {
                "input_tokens": text, "cache_read_input_tokens": cached, "cache_creation_input_tokens": 100,
                "cache_creation": {"ephemeral_5m_input_tokens": 40, "ephemeral_1h_input_tokens": 60},
                "output_tokens": out + thought, "output_tokens_details": {"thinking_tokens": thought},
                "service_tier": "standard",
            },
        }  # fmt: skip
    if provider == "google":
        return {
            "modelVersion": model, "candidates": [{"finishReason": "STOP"}],
            "usageMetadata": {
                "promptTokenCount": text + cached, "cachedContentTokenCount": cached, "candidatesTokenCount": out,
                "thoughtsTokenCount": thought, "totalTokenCount": text + cached + out + thought,
                "promptTokensDetails": [{"modality": "TEXT", "tokenCount": text + cached}],
            },
        }  # fmt: skip
    return {
        "model": model, "choices": [{"finish_reason": "stop"}],
        "usage": {
            "prompt_tokens": text + cached, "completion_tokens": out + thought,
            "total_tokens": text + cached + out + thought, "prompt_tokens_details": {"cached_tokens": cached},
            "completion_tokens_details": {"reasoning_tokens": thought},
        },
    }  # fmt: skip
