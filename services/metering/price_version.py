"""A price version: what one model costs, from when to when, and since when Steward has known it.

A version is a fact and never changes, except that it can be held and released (both are price events). Prices
are exact decimals in US dollars for `per` units (1 unless said otherwise; some providers price by the hour,
and 0.04 USD an hour is no decimal per second).

Words: *priced* = the unit costs that much, 0 included; *not billed* = the provider does not charge for it;
neither = unknown, and a generation that used it waits instead of costing nothing.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime, timedelta
from decimal import Decimal, InvalidOperation
from types import MappingProxyType
from typing import Any, get_args

from shared.contract import events

BUCKETS: tuple[str, ...] = events.BUCKETS
COUNTS: tuple[str, ...] = events.COUNTS
UNITS: tuple[str, ...] = events.UNITS
TIERS: tuple[str, ...] = get_args(events.Tier)

INPUT_BUCKETS: frozenset[str] = frozenset(events.INPUT_BUCKETS)
"""The buckets whose sum chooses a context tier: everything the model read, cached or not."""

COMPLETION_BUCKETS: frozenset[str] = frozenset(BUCKETS) - INPUT_BUCKETS

BEGINNING = datetime.min.replace(tzinfo=UTC)
"""Minus infinity (PostgreSQL's '-infinity' as asyncpg reads and writes it)."""

_UNIT_SET = frozenset(UNITS)
_DECIMAL_PLACES_MAX = 30
_PRICE_MAX = Decimal(1_000_000)
_WINDOW = re.compile(r"([01]\d|2[0-3])([0-5]\d)-([01]\d|2[0-3])([0-5]\d)")
_DAY_MINUTES = 24 * 60


@dataclass(frozen=True, slots=True)
class DailyWindow:
    """Hours of the UTC day in which a price applies: start minute included, end minute excluded; end < start
    wraps midnight."""

    start_minute: int
    end_minute: int

    def __post_init__(self) -> None:
        for minute in (self.start_minute, self.end_minute):
            if not 0 <= minute < _DAY_MINUTES:
                raise ValueError(f"daily window: minute {minute} is not within a day")
        if self.start_minute == self.end_minute:
            raise ValueError("daily window: start equals end (leave the window out for the whole day)")

    @classmethod
    def parse(cls, text: str) -> DailyWindow:
        """From "HHMM-HHMM"."""
        found = _WINDOW.fullmatch(text)
        if found is None:
            raise ValueError(f"daily window: expected HHMM-HHMM in UTC, got {text!r}")
        start_hour, start_minute, end_hour, end_minute = map(int, found.groups())
        return cls(start_hour * 60 + start_minute, end_hour * 60 + end_minute)

    def __str__(self) -> str:
        start, end = divmod(self.start_minute, 60), divmod(self.end_minute, 60)
        return f"{start[0]:02}{start[1]:02}-{end[0]:02}{end[1]:02}"

    def contains(self, at: datetime) -> bool:
        utc = at.astimezone(UTC)
        minute = utc.hour * 60 + utc.minute
        if self.start_minute < self.end_minute:
            return self.start_minute <= minute < self.end_minute
        return minute >= self.start_minute or minute < self.end_minute


@dataclass(frozen=True, slots=True)
class ContextTier:
    """Prices that replace those below for the *whole* request (a cliff, no slice) when its input is larger
    than `above_input_tokens`."""

    above_input_tokens: int
    prices: Mapping[str, Decimal]


@dataclass(frozen=True, slots=True)
class Hold:
    """From `start` (included) until `end` (excluded; None = still held) the version rates nothing. Instants
    are LogAppendTimes."""

    start: datetime
    end: datetime | None = None


@dataclass(frozen=True, slots=True)
class PriceVersion:
    """The price card of one model, provider and service tier; see the module for the words.

    `valid_from`, `valid_to`: half-open range of event times. `known_from`: LogAppendTime at which Steward
    learned it (BEGINNING for the seed). `minimum`: least billed quantity per request of a unit that was used
    at all. Raises ValueError with a reason that a sender can act on.
    """

    version: str
    provider: str
    model: str
    tier: str
    prices: Mapping[str, Decimal]
    source: str
    not_billed: frozenset[str] = frozenset()
    context_tiers: tuple[ContextTier, ...] = ()
    window: DailyWindow | None = None
    per: Mapping[str, int] = field(default_factory=dict)
    minimum: Mapping[str, int] = field(default_factory=dict)
    valid_from: datetime = BEGINNING
    valid_to: datetime | None = None
    known_from: datetime = BEGINNING
    holds: tuple[Hold, ...] = ()

    def __post_init__(self) -> None:
        for name in ("version", "provider", "model", "source"):
            if not getattr(self, name).strip():
                raise ValueError(f"price version: {name} is empty")
        if self.tier not in TIERS:
            raise ValueError(f"price version: tier {self.tier!r} is none of {', '.join(TIERS)}")
        _freeze(self, "prices", {unit: _checked_price(unit, price) for unit, price in self.prices.items()})
        _freeze(self, "per", {unit: _checked_count("per", unit, count) for unit, count in self.per.items()})
        _freeze(self, "minimum", {unit: _checked_count("minimum", unit, n) for unit, n in self.minimum.items()})
        object.__setattr__(self, "context_tiers", _checked_tiers(self.context_tiers))
        self._check_units()
        self._check_times()

    def _check_units(self) -> None:
        priced = set(self.prices).union(*(tier.prices for tier in self.context_tiers))
        for unit in (self.not_billed | self.per.keys() | self.minimum.keys()) - _UNIT_SET:
            raise ValueError(f"price version: unknown unit {unit!r}")
        if both := priced & self.not_billed:
            raise ValueError(f"price version: {min(both)!r} is priced and not billed at once")
        if bare := priced - set(self.prices):
            raise ValueError(f"price version: {min(bare)!r} has a context tier but no base price")

    def _check_times(self) -> None:
        ends = [hold.end for hold in self.holds]
        for at in (
            self.valid_from,
            self.valid_to,
            self.known_from,
            *(hold.start for hold in self.holds),
            *ends,
        ):
            if at is not None and at.tzinfo is None:
                raise ValueError("price version: a time has no zone (UTC is expected)")
        if self.valid_to is not None and self.valid_to <= self.valid_from:
            raise ValueError("price version: valid_to is not after valid_from")
        if None in ends[:-1]:
            raise ValueError("price version: only the last hold can be open")

    @property
    def held(self) -> bool:
        """Held now, with everything said that has been said so far."""
        return bool(self.holds) and self.holds[-1].end is None

    def valid_at(self, event_at: datetime) -> bool:
        """Whether it speaks about this event time (its daily window included)."""
        if event_at < self.valid_from or (self.valid_to is not None and event_at >= self.valid_to):
            return False
        return self.window is None or self.window.contains(event_at)

    def usable_at(self, known_at: datetime) -> bool:
        """Whether it was known, and not held, at this LogAppendTime."""
        return self.usable_from(known_at) == known_at

    def usable_from(self, known_at: datetime) -> datetime | None:
        """The first instant at or after `known_at` at which it is known and not held; None = never, so
        far."""
        at = max(known_at, self.known_from)
        for hold in self.holds:
            if hold.start <= at and (hold.end is None or at < hold.end):
                if hold.end is None:
                    return None
                at = hold.end
        return at

    def unit_price(self, unit: str, input_tokens: int = 0) -> Decimal | None:
        """Dollars for `per` units in a request with that many input tokens; 0 if not billed, None if
        unknown."""
        price = Decimal(0) if unit in self.not_billed else self.prices.get(unit)
        for tier in self.context_tiers:
            if input_tokens > tier.above_input_tokens:
                price = tier.prices.get(unit, price)
        return price


def held_from(version: PriceVersion, at: datetime) -> PriceVersion:
    """The version, held from LogAppendTime `at` on; as it is if it is held already."""
    return version if version.held else replace(version, holds=(*version.holds, Hold(at)))


def released_at(version: PriceVersion, at: datetime) -> PriceVersion:
    """The version, usable again from LogAppendTime `at` on; as it is if it is not held."""
    if not version.held:
        return version
    *earlier, last = version.holds
    return replace(version, holds=(*earlier, replace(last, end=max(at, last.start))))


def event_version_id(event_id: str) -> str:
    """The version made by one price event: same event, same version, however often it is read."""
    return "pv_" + hashlib.sha256(event_id.encode()).hexdigest()[:12]


def seed_version_id(content: Mapping[str, Any]) -> str:
    """The version of a seeded price: from what `to_json` says of it, so that every process names it alike.

    Empty members do not count: a member added to the form later leaves the ids of those who do not use it.
    """
    said = {key: value for key, value in content.items() if value and key != "version"}
    canonical = json.dumps(said, sort_keys=True, separators=(",", ":"), ensure_ascii=True)
    return "pv_" + hashlib.sha256(canonical.encode()).hexdigest()[:12]


def from_event(data: Mapping[str, Any], known_from: datetime, version: str, *, held: bool = False) -> PriceVersion:
    """The version that a `price.published` event states; `held` = the guard holds it from birth.

    `data`: provider, model, tier, prices {unit: decimal string per unit}, source, and optionally not_billed
    [unit], context_tiers [{above_input_tokens, prices}], daily_window "HHMM-HHMM", per {unit: units per
    price}, minimum {unit: units}, valid_from, valid_to (datetime or ISO 8601 text; none = unbounded). A unit
    that is not named stays unknown: nothing is inherited from another unit.
    """
    window = data.get("daily_window")
    return PriceVersion(
        version=version,
        provider=data["provider"],
        model=data["model"],
        tier=data["tier"],
        prices=_prices(data["prices"]),
        source=data["source"],
        not_billed=frozenset(data.get("not_billed") or ()),
        context_tiers=tuple(
            ContextTier(_integer(tier["above_input_tokens"]), _prices(tier["prices"]))
            for tier in data.get("context_tiers") or ()
        ),
        window=None if window is None else DailyWindow.parse(window),
        per=data.get("per") or {},
        minimum=data.get("minimum") or {},
        valid_from=_instant(data.get("valid_from")) or BEGINNING,
        valid_to=_instant(data.get("valid_to")),
        known_from=known_from,
        holds=(Hold(known_from),) if held else (),
    )


def to_json(version: PriceVersion) -> dict[str, Any]:
    """JSON-able, exact (decimals as plain strings), the same for equal versions; None = unbounded.
    `from_json` reads it back."""
    return {
        "version": version.version,
        "provider": version.provider,
        "model": version.model,
        "tier": version.tier,
        "prices": _price_texts(version.prices),
        "source": version.source,
        "not_billed": [unit for unit in UNITS if unit in version.not_billed],
        "context_tiers": [
            {"above_input_tokens": tier.above_input_tokens, "prices": _price_texts(tier.prices)}
            for tier in version.context_tiers
        ],
        "daily_window": None if version.window is None else str(version.window),
        "per": {unit: version.per[unit] for unit in UNITS if unit in version.per},
        "minimum": {unit: version.minimum[unit] for unit in UNITS if unit in version.minimum},
        "valid_from": _instant_text(version.valid_from),
        "valid_to": _instant_text(version.valid_to),
        "known_from": _instant_text(version.known_from),
        "holds": [[_instant_text(hold.start), _instant_text(hold.end)] for hold in version.holds],
    }


def from_json(data: Mapping[str, Any]) -> PriceVersion:
    """What `to_json` wrote."""
    version = from_event(data, _instant(data["known_from"]) or BEGINNING, data["version"])
    holds = tuple(Hold(_instant(start) or BEGINNING, _instant(end)) for start, end in data["holds"])
    return replace(version, holds=holds)


def _freeze(version: PriceVersion, name: str, content: dict[str, Any]) -> None:
    object.__setattr__(version, name, MappingProxyType(content))


def _checked_price(unit: str, price: Decimal) -> Decimal:
    if unit not in _UNIT_SET:
        raise ValueError(f"price version: unknown unit {unit!r}")
    if not price.is_finite() or not 0 <= price <= _PRICE_MAX:
        raise ValueError(f"price of {unit}: expected a decimal from 0 to {_PRICE_MAX} US dollars, got {price!r}")
    # By hand, because every operation of the decimal module rounds to 28 digits.
    _, digits, exponent = price.as_tuple()
    kept = list(digits)
    power = int(exponent)
    while len(kept) > 1 and kept[-1] == 0:
        kept.pop()
        power += 1
    if kept == [0]:
        return Decimal(0)
    if power < -_DECIMAL_PLACES_MAX:
        raise ValueError(f"price of {unit}: more than {_DECIMAL_PLACES_MAX} decimal places")
    return Decimal((0, tuple(kept), power))


def _checked_count(name: str, unit: str, count: int) -> int:
    if type(count) is not int or count < 1:
        raise ValueError(f"{name} of {unit}: expected a whole number of at least 1, got {count!r}")
    return count


def _checked_tiers(tiers: Sequence[ContextTier]) -> tuple[ContextTier, ...]:
    checked = tuple(
        ContextTier(
            tier.above_input_tokens,
            MappingProxyType({unit: _checked_price(unit, price) for unit, price in tier.prices.items()}),
        )
        for tier in tiers
    )
    borders = [tier.above_input_tokens for tier in checked]
    if any(border < 0 for border in borders) or borders != sorted(set(borders)):
        raise ValueError("price version: context tiers must ascend, each border once, none below 0")
    return checked


def _prices(data: Mapping[str, Any]) -> dict[str, Decimal]:
    prices: dict[str, Decimal] = {}
    for unit, price in data.items():
        if not isinstance(price, str | Decimal):
            raise ValueError(f"price of {unit}: expected a decimal string, got {type(price).__name__}")
        try:
            prices[unit] = Decimal(price)
        except InvalidOperation:
            raise ValueError(f"price of {unit}: {price!r} is no decimal number") from None
    return prices


def _price_texts(prices: Mapping[str, Decimal]) -> dict[str, str]:
    return {unit: format(prices[unit], "f") for unit in UNITS if unit in prices}


def _integer(value: Any) -> int:
    if type(value) is not int:
        raise ValueError(f"context tier: above_input_tokens must be a whole number, got {value!r}")
    return value


def _instant(value: Any) -> datetime | None:
    if value is None:
        return None
    at = value if isinstance(value, datetime) else datetime.fromisoformat(value)
    if at.tzinfo is None:
        raise ValueError(f"price version: time {value!r} has no zone (UTC is expected)")
    # The local year 1 of a zone east of Greenwich lies before the first UTC instant that Python can hold.
    return BEGINNING if at - BEGINNING < timedelta(0) else at.astimezone(UTC)


def _instant_text(at: datetime | None) -> str | None:
    return None if at is None or at == BEGINNING else at.astimezone(UTC).isoformat()
