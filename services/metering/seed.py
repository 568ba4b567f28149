"""The first prices: the data of the genai-prices package, as price versions known since ever (`known_from` =
BEGINNING).

Nothing is downloaded, and the package's own updater is never started: the data is what the lock file pins. A
newer package would change what has been rated, so it comes in as price events like any other source, not by
exchanging the seed.

How the package bills, and what becomes of it here (`test_pricing.py` compares amounts):

- It counts inclusively and gives each token to the most specific priced unit; our buckets are exclusive. So
  each bucket gets the price of the most specific priced unit that covers it, spelled out: reasoning without a
  price of its own costs as output, a 1-hour cache write as a 5-minute one (`cache_write`), a cached or audio
  token as the input it is.
- A token bucket, or a request fee, that no unit covers is not billed there, and is stored as *not billed*.
  Any other count without a price (web searches, images, ...) is left unknown: the package's silence about a
  tool is no statement that it is free.
- A model without any price is free in the package. Here it is only where that is known (`_FREE`, and names
  that end in ":free"); the others are known models without a price, and wait.
- Tiers above N input tokens, for the whole request: context tiers. Dates and hours of the day: versions with
  half-open validity (UTC midnight) and daily windows, evaluated by the package's own `get_prices` once for
  each stretch in which it cannot change.
- Variants `processing: batch`, `service_tier: flex` and `priority` are tiers, from the day on which the
  package has them; it bills such usage at standard prices before, or where it has no variant, and we say that
  the price is unknown. Other variants (`fast`, `route`, `search_type`) have no tier in the contract and are
  left out, as are units that the contract does not count (searches in stores, video out, citations, cached
  images, annotated pages, text messages).
- A provider that borrows another's models (azure from openai) does so for the standard tier only, as in the
  package.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from datetime import UTC, date, datetime, time, timedelta
from decimal import Decimal
from functools import cached_property
from typing import TYPE_CHECKING, Any, NamedTuple

from services.metering.price_book import Resolved
from services.metering.price_version import (
    BEGINNING,
    BUCKETS,
    COUNTS,
    ContextTier,
    DailyWindow,
    PriceVersion,
    seed_version_id,
    to_json,
)

if TYPE_CHECKING:
    from genai_prices.types import (
        ModelInfo,
        ModelPrice,
        PriceVariant,
        Provider,
        StartDateConstraint,
        TieredPrices,
        TimeOfDateConstraint,
    )

_TIER_CONTEXTS: Mapping[str, Mapping[str, str]] = {
    "standard": {},
    "flex": {"service_tier": "flex"},
    "priority": {"service_tier": "priority"},
    "batch": {"processing": "batch"},
}

# The package's units that cover a bucket of ours, the most specific first; the first one that is priced bills
# it.
_CACHE_WRITE = ("cache_write_mtok", "input_mtok")
_COVER: Mapping[str, tuple[str, ...]] = {
    "input": ("input_text_mtok", "input_mtok"),
    "cache_read": ("cache_text_read_mtok", "cache_read_mtok", "input_text_mtok", "input_mtok"),
    "cache_write_5m": ("cache_write_5m_mtok", *_CACHE_WRITE),
    "cache_write_1h": ("cache_write_1h_mtok", *_CACHE_WRITE),
    "output": ("output_text_mtok", "output_mtok"),
    "reasoning": ("output_text_reasoning_mtok", "output_reasoning_mtok", "output_text_mtok", "output_mtok"),
    "input_audio": ("input_audio_mtok", "input_mtok"),
    # The package refuses a model that prices cached and audio input but not their meeting, so the order of
    # these two never matters.
    "cache_read_audio": ("cache_audio_read_mtok", "cache_read_mtok", "input_audio_mtok", "input_mtok"),
    "output_audio": ("output_audio_mtok", "output_mtok"),
    "input_image": ("input_image_mtok", "input_mtok"),
    "output_image": ("output_image_mtok", "output_mtok"),
    "input_video": ("input_video_mtok", "input_mtok"),
    "request": ("requests_kcount",),
    "web_search": ("web_searches_kcount",),
    "second": ("input_audio_hours", "audio_hours"),
    "character": ("input_mchars",),
    "page": ("input_document_kpages",),
}
_PER_POWER = {"_mtok": 6, "_kcount": 3, "_mchars": 6, "_kpages": 3, "_hours": 0}
_SECONDS_PER_HOUR = 3600
_ANY_DAY = date(2000, 1, 1)

_FREE = frozenset(
    (
        # "Included in the subscription: the pricing page lists no rate" (the package's comment).
        ("github-copilot", "gpt-3.5-turbo"),
        ("github-copilot", "gpt-4.1"),
        ("github-copilot", "gpt-4o"),
        ("github-copilot", "gpt-4o-mini"),
        # "Free of charge on the Gemini API with no paid tier", for gemma 4 in the package, for gemma 3 on the
        # same pricing page.
        ("google", "gemma-3"),
        ("google", "gemma-3n"),
        ("google", "gemma-4-26b-a4b-it"),
        ("google", "gemma-4-31b-it"),
        ("openai", "moderation"),
    )
)

# Groq bills at least 10 seconds of audio per request; in the package this is code, not data.
_MINIMUM: Mapping[tuple[str, str], Mapping[str, int]] = {
    ("groq", "whisper-large-v3"): {"second": 10},
    ("groq", "whisper-large-v3-turbo"): {"second": 10},
}


class GenaiPrices:
    """The package as a `Catalogue`: names by the package's match clauses, prices as versions. Loads the data
    when first asked."""

    @classmethod
    def from_raw(cls, document: Any) -> GenaiPrices:
        """The same from a newer file of the package's data. Raises ValueError."""
        from genai_prices.types import _providers_from_raw

        catalogue = cls()
        try:
            catalogue._all = _providers_from_raw(document)
        except (TypeError, ValueError) as error:
            raise ValueError(f"not genai-prices' data as version {catalogue.source} reads it") from error
        return catalogue

    def load(self) -> None:
        """Loads the data now: it takes half a second, which whoever asks first would wait for."""
        self.resolve("", "")

    def resolve(self, provider: str, model: str) -> Resolved | None:
        """Whose price rates this name. The catalogue's own ids are answered too where the package's clauses
        forgot them."""
        from genai_prices.data_snapshot import find_provider_by_id

        found = find_provider_by_id(self._all, provider)
        if found is None:
            return None
        info = found.find_model(model, all_providers=self._all)
        if info is None:
            info = next((own for own in found.models if own.id.lower() == model.lower()), None)
        if info is None:
            return None
        if any(info is own for own in found.models):
            return Resolved(found.id, info.id)
        lender = next(other for other in self._all if any(info is lent for lent in other.models))
        return Resolved(lender.id, info.id, borrowed=True)

    def versions(self, provider: str, model: str) -> Sequence[PriceVersion]:
        """All versions of one model, by the package's ids. Empty: no such model, or one without a known
        price."""
        for found in self._all:
            if found.id == provider:
                for info in found.models:
                    if info.id == model:
                        return tuple(_versions(found, info, self.source))
        return ()

    def version(self, version: str) -> PriceVersion | None:
        """Any seeded version by its id. The first call converts the whole package."""
        return self._by_version.get(version)

    def all_versions(self) -> Iterator[PriceVersion]:
        """Every version of every model, in the package's order."""
        for provider in self._all:
            for info in provider.models:
                yield from _versions(provider, info, self.source)

    @cached_property
    def source(self) -> str:
        from genai_prices import __version__

        return f"genai-prices {__version__}"

    @cached_property
    def _all(self) -> list[Provider]:
        # Imported here: 1.6 MB of code that a process may never need. Read from the module, not from the
        # package's snapshot, which somebody could replace.
        from genai_prices.data import providers

        return providers

    @cached_property
    def _by_version(self) -> dict[str, PriceVersion]:
        versions = list(self.all_versions())
        by_version = {version.version: version for version in versions}
        if len(by_version) != len(versions):
            raise ValueError("two seeded price versions have one id")
        return by_version


class _Stretch(NamedTuple):
    """Days and hours in which the package's answer is the same."""

    start: datetime
    end: datetime | None
    window: DailyWindow | None
    price: ModelPrice


def _versions(provider: Provider, info: ModelInfo, source: str) -> Iterator[PriceVersion]:
    minimum = _MINIMUM.get((provider.id, info.id), {})
    for tier, context in _TIER_CONTEXTS.items():
        for stretch in _timeline(info, context):
            card = _card(provider.id, info, tier, stretch.price)
            if card is not None:
                version = replace(
                    card,
                    source=source,
                    window=stretch.window,
                    minimum={unit: least for unit, least in minimum.items() if unit in card.prices},
                    valid_from=stretch.start,
                    valid_to=stretch.end,
                )
                yield replace(version, version=seed_version_id(to_json(version)))


def _timeline(info: ModelInfo, context: Mapping[str, str]) -> Iterator[_Stretch]:
    """What the package answers in this context over all time; whole days before the hours that differ."""
    days = _change_days(info, context)
    # (start, end, answers by hours), neighbours that say the same made one.
    merged: list[tuple[datetime, datetime | None, list[tuple[DailyWindow | None, ModelPrice]]]] = []
    for start, end in zip([None, *days], [*days, None], strict=True):
        hours = list(_hours(info, context, start or (days[0] if days else _ANY_DAY) - timedelta(days=1)))
        start_at = BEGINNING if start is None else _midnight(start)
        if merged and merged[-1][2] == hours:
            start_at = merged.pop()[0]
        merged.append((start_at, None if end is None else _midnight(end), hours))
    for start_at, end_at, hours in merged:
        for window, price in hours:
            yield _Stretch(start_at, end_at, window, price)


def _hours(info: ModelInfo, context: Mapping[str, str], day: date) -> Iterator[tuple[DailyWindow | None, ModelPrice]]:
    """The day's answers: the one outside all windows (else that of midnight), then the hours that differ."""
    windows = _windows(info)
    edges = sorted({time(0)}.union(*windows))
    answers = {edge: _answer(info, context, datetime.combine(day, edge, UTC)) for edge in edges}
    outside = [edge for edge in edges if not any(_within(edge, window) for window in windows)]
    base = answers[(outside or edges)[0]]
    if base is not None:
        yield None, base
    for start, end in zip(edges, [*edges[1:], edges[0]], strict=True):
        answer = answers[start]
        if answer is not None and answer != base:
            yield DailyWindow(_minute(start), _minute(end)), answer


def _answer(info: ModelInfo, context: Mapping[str, str], at: datetime) -> ModelPrice | None:
    """The package's price, or None if it has none for this context and would fall back to the standard
    one."""
    variants = [item for item in _variants(info, context) if item.constraint is None or item.constraint.active(at)]
    return info.get_prices(at, context) if variants or not context else None


def _variants(info: ModelInfo, context: Mapping[str, str]) -> list[PriceVariant]:
    """The model's variants for this context."""
    return [
        variant
        for variant in info.price_variants or ()
        if all(context.get(key) == value for key, value in variant.when.items())
    ]


def _constraints(
    info: ModelInfo, variants: Sequence[PriceVariant]
) -> list[StartDateConstraint | TimeOfDateConstraint | None]:
    """What the validity of the model's prices, and of these variants, depends on."""
    conditional = info.prices if isinstance(info.prices, list) else []
    return [*(item.constraint for item in conditional), *(item.constraint for item in variants)]


def _change_days(info: ModelInfo, context: Mapping[str, str]) -> list[date]:
    from genai_prices.types import StartDateConstraint

    constraints = _constraints(info, _variants(info, context))
    return sorted({limit.start_date for limit in constraints if isinstance(limit, StartDateConstraint)})


def _windows(info: ModelInfo) -> list[tuple[time, time]]:
    from genai_prices.types import TimeOfDateConstraint

    return [
        (_utc_time(constraint.start_time), _utc_time(constraint.end_time))
        for constraint in _constraints(info, info.price_variants or ())
        if isinstance(constraint, TimeOfDateConstraint)
    ]


def _utc_time(value: time) -> time:
    """In UTC, as a zoneless time already is."""
    zoned = value if value.tzinfo else value.replace(tzinfo=UTC)
    return datetime.combine(_ANY_DAY, zoned).astimezone(UTC).time()


def _minute(value: time) -> int:
    if value.second or value.microsecond:
        raise ValueError(f"a daily price begins within a minute: {value}")
    return value.hour * 60 + value.minute


def _within(at: time, window: tuple[time, time]) -> bool:
    start, end = window
    return start <= at < end if start <= end else at >= start or at < end


def _midnight(day: date) -> datetime:
    return datetime.combine(day, time(0), UTC)


def _card(provider: str, info: ModelInfo, tier: str, price: ModelPrice) -> PriceVersion | None:
    """The units' prices of one answer of the package, without times and id; None if it has no price that we
    know to be meant."""
    stated: dict[str, Decimal | TieredPrices] = {
        key: value for key, value in vars(price).items() if value is not None and not key.startswith("_")
    }
    if not stated and not ((provider, info.id) in _FREE or info.id.endswith(":free")):
        return None
    covered: dict[str, str] = {}
    for unit, keys in _COVER.items():
        if key := next((key for key in keys if key in stated), None):
            covered[unit] = key
    if stated and not covered:
        return None
    silent = (set(BUCKETS) | {"request"}) - covered.keys()
    borders = sorted({border for key in covered.values() for border in _borders(stated[key])})
    prices = {unit: _per_unit(key, stated[key], -1) for unit, key in covered.items()}
    tiers: list[ContextTier] = []
    below = prices
    for border in borders:
        above = {unit: _per_unit(key, stated[key], border) for unit, key in covered.items()}
        tiers.append(ContextTier(border, {unit: value for unit, value in above.items() if value != below[unit]}))
        below = above
    return PriceVersion(
        version="pv_unnamed",
        provider=provider,
        model=info.id,
        tier=tier,
        prices=prices,
        source="unnamed",
        not_billed=frozenset(silent),
        context_tiers=tuple(tiers),
        per={unit: _SECONDS_PER_HOUR for unit, key in covered.items() if key.endswith("_hours")},
    )


def _borders(value: Decimal | TieredPrices) -> list[int]:
    return [] if isinstance(value, Decimal) else [tier.start for tier in value.tiers]


def _per_unit(key: str, value: Decimal | TieredPrices, border: int) -> Decimal:
    """The price of one unit (of an hour: of `per` seconds) for requests above a border of input tokens (-1:
    below all)."""
    if not isinstance(value, Decimal):
        passed = [tier.price for tier in value.tiers if tier.start <= border]
        value = passed[-1] if passed else value.base
    power = _PER_POWER[key[key.rindex("_") :]]
    sign, digits, exponent = value.as_tuple()
    return Decimal((sign, digits, int(exponent) - power))


assert _COVER.keys() <= {*BUCKETS, *COUNTS}
