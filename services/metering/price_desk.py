"""What becomes of a price statement: whole again where it was not complete, judged, accepted or held."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import UTC, datetime, timedelta
from decimal import Context, Decimal
from typing import Any, NamedTuple

from services.metering.guard import Change, Verdict, judge
from services.metering.guard_parameters import PARAMETERS
from services.metering.market import Market, PriceKey
from services.metering.price_book import PriceBook
from services.metering.price_version import UNITS, ContextTier, PriceVersion, from_event, held_from
from services.metering.pricing import Card

BILLED_AS: Mapping[str, tuple[str, ...]] = {
    "cache_read": ("input",),
    "cache_write_5m": ("input",),
    "cache_write_1h": ("cache_write_5m", "input"),
    "input_audio": ("input",),
    "cache_read_audio": ("cache_read", "input_audio", "input"),
    "input_image": ("input",),
    "input_video": ("input",),
    "reasoning": ("output",),
    "output_audio": ("output",),
    "output_image": ("output",),
}
"""What a token is billed as when its bucket has no price of its own: the first of these that is priced."""

# A price for one unit is judged, never billed: 28 digits are enough.
_ONE = Context(prec=28)


class Statement(NamedTuple):
    """What a source said: a version, and the units it spoke of (None: of all, what it left out is no price)."""

    version: PriceVersion
    units: frozenset[str] | None = None

    @classmethod
    def of(cls, data: Mapping[str, Any], known_from: datetime, version: str) -> Statement:
        """From the data of a `PriceList`. Raises ValueError."""
        stated = from_event(data, known_from, version)
        return cls(stated, None if data.get("complete", True) else frozenset(stated.prices) | stated.not_billed)


@dataclass(frozen=True, slots=True)
class Decision:
    """A statement made whole; held from its birth if there are reasons: `{"unit", "tier", "above", "old", "new",
    "reason", "detail"}`, prices in US dollars for one unit as decimal strings."""

    statement: Statement
    version: PriceVersion
    reasons: tuple[Mapping[str, Any], ...]


def decide(
    book: PriceBook,
    market: Market,
    statements: Sequence[Statement],
    known_from: datetime,
    spoken: Mapping[str, frozenset[str]],
) -> list[Decision]:
    """Judges what one source said at once. Changes nothing: see `enter`.

    `spoken`: by `name_of`, the units that the source spoke of when it last spoke of that price; what it is silent
    about now has vanished.
    """
    whole: list[tuple[PriceVersion, PriceVersion | None, list[Change]]] = []
    for version, units in statements:
        before = in_force(book, version, known_from)
        full = version if units is None else merged(version, units, before)
        gone = frozenset() if units is None else spoken.get(name_of(version), units) - units
        whole.append((full, before, [*changes(full, before), *_vanished(before, gone)]))
    verdicts: dict[Change, Verdict] = {}
    for together in _rounds([found for _, _, found in whole]):
        verdicts.update(zip(together, judge(market, together, statements[0].version.source), strict=True))
    decisions = []
    for statement, (full, _, found) in zip(statements, whole, strict=True):
        reasons = tuple(
            {
                "unit": change.key.unit, "above": change.key.above, "old": _text(change.old), "new": _text(change.new),
                "reason": verdict.reason, "detail": verdict.detail,
            }
            for change in found
            if (verdict := verdicts[change]).held
        )  # fmt: skip
        decisions.append(Decision(statement, held_from(full, known_from) if reasons else full, reasons))
    return decisions


def shown(body: Mapping[str, Any], reasons: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """A judged version for people and programs; `body` as `to_json` writes it."""
    names = ("provider", "model", "tier", "valid_from", "valid_to", "daily_window", "prices", "context_tiers", "source")
    return {"version": body["version"], **{name: body[name] for name in names}, "reasons": list(reasons)}


def market_of(first: Iterable[PriceVersion], stated: Iterable[PriceVersion], now: datetime) -> Market:
    """What is known: first prices, of which those count that are valid `now`, and what has been stated since, in the
    order in which it became known."""
    market = Market()
    for version in first:
        if version.valid_at(now):
            enter(market, version)
    for version in stated:
        enter(market, version)
    return market


def enter(market: Market, version: PriceVersion) -> None:
    """Tells the market what a source says, and, unless it is held, what is in force from now on."""
    for key, price in prices(version):
        market.quote(version.source, key, price, held=version.held)
        if not version.held:
            market.put(key, price)


def agrees(version: PriceVersion, held: PriceVersion, reasons: Iterable[Mapping[str, Any]]) -> bool:
    """Whether `version`, of another source, says what `held` is held for."""
    said = {(key.unit, key.above): price for key, price in prices(version)}
    return version.source != held.source and all(
        reason["new"] is not None
        and (price := said.get((reason["unit"], reason["above"]))) is not None
        and _near(price, Decimal(reason["new"]))
        for reason in reasons
    )


def name_of(version: PriceVersion) -> str:
    """One text for what a price is of."""
    window = "" if version.window is None else str(version.window)
    return f"{version.provider}/{version.model}/{version.tier}/{window}".lower()


def in_force(book: PriceBook, version: PriceVersion, known_at: datetime) -> PriceVersion | None:
    """The version that `version` would follow: the one in force when it becomes valid (in its daily window), by what
    is known at `known_at`."""
    at = max(version.valid_from, known_at)
    if version.window is not None and not version.window.contains(at):
        at = at.astimezone(UTC)
        at += timedelta(minutes=(version.window.start_minute - at.hour * 60 - at.minute) % (24 * 60))
    card = book.card(version.provider, version.model, version.tier, at, known_at)
    return card.version if isinstance(card, Card) else None


def merged(stated: PriceVersion, units: frozenset[str], before: PriceVersion | None) -> PriceVersion:
    """`stated` made whole for the units that it does not speak of: they keep their own price of `before`. A token bucket
    without one is billed as what it is: reasoning as output, a cached or audio token as the input that it is (so say
    the sources that state incompletely); a count without one stays unknown."""
    own: list[tuple[PriceVersion, frozenset[str]]] = [(stated, frozenset(stated.prices))]
    not_billed = stated.not_billed
    if before is not None:
        own.append(
            (before, frozenset(unit for unit in before.prices if unit not in units and not _copied(before, unit)))
        )
        not_billed |= before.not_billed - units
    base = {unit: version.prices[unit] for version, spoken in own for unit in spoken}
    source = {unit: one for unit in UNITS if unit not in not_billed and (one := _billed_as(unit, base)) is not None}
    above: dict[int, dict[str, Decimal]] = {}
    for version, spoken in own:
        for tier in version.context_tiers:
            here = {unit: tier.prices[one] for unit, one in source.items() if one in spoken and one in tier.prices}
            if here:
                above.setdefault(tier.above_input_tokens, {}).update(here)
    return replace(
        stated,
        prices={unit: base[one] for unit, one in source.items()},
        not_billed=not_billed,
        context_tiers=tuple(ContextTier(border, above[border]) for border in sorted(above)),
        per={unit: n for version, spoken in own for unit, n in version.per.items() if unit in spoken},
        minimum={unit: n for version, spoken in own for unit, n in version.minimum.items() if unit in spoken},
    )


def changes(new: PriceVersion, old: PriceVersion | None) -> list[Change]:
    """What `new` changes: prices for one unit; those alone that are no copies of another bucket's price."""
    before = {} if old is None else {(key.unit, key.above): price for key, price in prices(old)}
    after = {(key.unit, key.above): price for key, price in prices(new)}
    found = []
    for unit, above in sorted(before.keys() | after.keys()):
        was, now = before.get((unit, above)), after.get((unit, above))
        if above and now is None and (unit, 0) in after:
            now = after[unit, 0]  # no price of its own for long requests any more
        if above and was is None and (unit, 0) in before:
            was = before[unit, 0]
        if was != now:
            found.append(Change(PriceKey(new.provider.lower(), new.model.lower(), new.tier, unit, above), was, now))
    return found


def same(new: PriceVersion, old: PriceVersion | None) -> bool:
    """Whether `new` says nothing that `old` does not say."""
    return old is not None and all(
        new.unit_price(unit, border) == old.unit_price(unit, border)
        and new.per.get(unit, 1) == old.per.get(unit, 1)
        and new.minimum.get(unit) == old.minimum.get(unit)
        for border in (0, *(tier.above_input_tokens + 1 for version in (new, old) for tier in version.context_tiers))
        for unit in UNITS
    )


def prices(version: PriceVersion) -> Iterator[tuple[PriceKey, Decimal]]:
    """Prices for one unit, those alone that are no copies of another bucket's price."""
    provider, model = version.provider.lower(), version.model.lower()
    for above in (0, *(tier.above_input_tokens for tier in version.context_tiers)):
        read = above + 1 if above else 0
        stated = (
            version.prices
            if not above
            else next(tier.prices for tier in version.context_tiers if tier.above_input_tokens == above)
        )
        for unit in stated:
            price = version.unit_price(unit, read)
            if price is not None and not _copied(version, unit, read):
                yield (
                    PriceKey(provider, model, version.tier, unit, above),
                    _ONE.divide(price, Decimal(version.per.get(unit, 1))),
                )


def _rounds(found: Iterable[Sequence[Change]]) -> list[list[Change]]:
    """All changes together; those of a price that is there once more (at another time of the day) in a round of its
    own."""
    rounds: list[dict[PriceKey, Change]] = []
    for some in found:
        free = next((one for one in rounds if not any(change.key in one for change in some)), None)
        if free is None:
            rounds.append(free := {})
        free.update((change.key, change) for change in some)
    return [list(one.values()) for one in rounds]


def _billed_as(unit: str, base: Mapping[str, Decimal]) -> str | None:
    return next((one for one in (unit, *BILLED_AS.get(unit, ())) if one in base), None)


def _copied(version: PriceVersion, unit: str, read: int = 0) -> bool:
    """Whether a bucket costs what it is billed as: it has no price of its own."""
    price = version.unit_price(unit, read)
    return any(version.unit_price(other, read) == price for other in BILLED_AS.get(unit, ()))


def _vanished(before: PriceVersion | None, units: frozenset[str]) -> Iterator[Change]:
    if before is not None:
        for key, price in prices(before):
            if key.unit in units and not key.above:
                yield Change(key, price, None)


def _near(one: Decimal, other: Decimal) -> bool:
    return abs(one - other) * 100 <= PARAMETERS.agree_percent * max(one, other)


def _text(price: Decimal | None) -> str | None:
    return None if price is None else format(price, "f")
