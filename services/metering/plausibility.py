"""Whether a price is plausible by itself: what other sources say of it, what the same model costs elsewhere, what its
size class costs, what its unit usually costs; the best of these that exists decides."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable
from decimal import Context, Decimal

from services.metering.guard_parameters import USUAL, USUAL_TOKEN, Parameters
from services.metering.market import Market, PriceKey, level, median
from services.metering.model_names import family, says_free, size_class
from services.metering.price_version import BUCKETS

_OFTEN_FREE = frozenset(("embed", "guard", "image", "rerank", "speech"))
_ANYTHING = 10**9
_TWO_DIGITS = Context(prec=2)


def is_token(unit: str) -> bool:
    """Whether the unit is a kind of token, outside units by their name."""
    return unit in BUCKETS or "token" in unit


class Evidence:
    """What speaks about the prices of one import: the market, and the import's own first prices (`firsts`), which
    are evidence too, but weaker: they may be as wrong as the price they speak about. `changing`: every key of the
    import; what is in force for these is in question, and says nothing."""

    def __init__(
        self,
        market: Market,
        firsts: Iterable[tuple[PriceKey, Decimal]],
        changing: Iterable[PriceKey],
        source: str,
        parameters: Parameters,
    ) -> None:
        self._market = market
        self._changing = frozenset(changing)
        self._source = source
        self._p = parameters
        self._kin: dict[tuple[str, str], list[tuple[str, int]]] = defaultdict(list)
        self._classes: dict[tuple[str, str], list[int]] = defaultdict(list)
        self._models: dict[str, set[str]] = defaultdict(set)
        self._free_models: dict[str, set[str]] = defaultdict(set)
        self._medians: dict[tuple[str, str], int | None] = {}
        for key, price in firsts:
            self._models[key.provider].add(key.model)
            if price:
                self._kin[family(key.model), key.unit].append((key.provider, level(price)))
                self._classes[key.unit, size_class(key.model)].append(level(price))
            elif key.unit == "input":
                self._free_models[key.provider].add(key.model)

    def contradicted(self, key: PriceKey, price: Decimal) -> str | None:
        """What other sources say against a first price above 0, else what the market says; None = plausible."""
        # What is held itself speaks for a price that says the same, and against none.
        said = self._market.other_quotes(key, self._source, held=False)
        quotes = [level(quote) for quote in said if quote > 0]
        if not quotes:
            return self.against(key, price)
        apart = level(price) - median(quotes)
        return f"{times(apart)} what other sources say" if abs(apart) >= self._p.jump else None

    def against(self, key: PriceKey, price: Decimal) -> str | None:
        """What the market says against a price above 0, for people; None = plausible."""
        height = level(price)
        elsewhere = self.elsewhere(key)
        if elsewhere is not None:
            apart = height - elsewhere
            if abs(apart) >= self._p.kin_apart:
                return f"{times(apart)} what the model costs elsewhere"
            if abs(apart) <= self._p.kin_agree:
                return None
        what, middle, low, high = self._usual(key)
        apart = height - middle
        return None if -low < apart < high else f"{times(apart)} {what}"

    def _usual(self, key: PriceKey) -> tuple[str, int, int, int]:
        """What prices of this kind cost, with the borders below and above it."""
        p = self._p
        middle = self._class_median(key)
        if middle is not None:
            low, high = (p.class_low, p.class_high) if is_token(key.unit) else (p.class_other, p.class_other)
            return "the median of its class", middle, low, high
        what = "what the unit usually costs"
        if key.unit in USUAL:
            return what, USUAL[key.unit], p.class_other, p.usual_high if is_token(key.unit) else p.class_other
        if is_token(key.unit):
            return what, USUAL_TOKEN, p.outside_apart, p.outside_apart
        return what, 0, _ANYTHING, _ANYTHING

    def against_free(self, key: PriceKey, input_price: Decimal | None) -> str | None:
        """What speaks against a price of 0; None = plausible. Free is what the name or the provider says is free,
        and work that is often not charged by the token. An output may cost nothing beside an input that does."""
        if key.unit not in ("input", "output") or says_free(key.model):
            return None
        if size_class(key.model) in _OFTEN_FREE or self._gives_away(key.provider):
            return None
        elsewhere = self.elsewhere(key)
        if elsewhere is not None:
            return f"free here, and {_dollars(elsewhere)} US dollars elsewhere"
        if key.unit == "output" and input_price:
            return None
        return "free, and neither name nor provider says so"

    def confirmed(self, key: PriceKey, price: Decimal) -> bool:
        """Whether others take about the same for the model."""
        elsewhere = self.elsewhere(key)
        return elsewhere is not None and abs(level(price) - elsewhere) <= self._p.kin_agree

    def strangeness(self, key: PriceKey, price: Decimal) -> int:
        """How far a price is from the best that is known about it."""
        for known in (self.elsewhere(key), self._class_median(key), USUAL.get(key.unit)):
            if known is not None:
                return abs(level(price) - known)
        return 0

    def elsewhere(self, key: PriceKey) -> int | None:
        """The level that the model has elsewhere, in whatever tier: the median over providers, so that one with
        many names counts once. With nothing in force, prices of this import count when two other providers have
        one and they are not as far apart from each other as from a mistake."""
        in_force: dict[str, list[int]] = defaultdict(list)
        for other, height in self._market.kin(key):
            if other not in self._changing:
                in_force[other.provider].append(height)
        fresh: dict[str, list[int]] = defaultdict(list)
        for provider, height in self._kin.get((family(key.model), key.unit), ()):
            if provider != key.provider and provider not in in_force:
                fresh[provider].append(height)
        levels = [median(own) for own in in_force.values()] + [median(own) for own in fresh.values()]
        if not in_force and (len(fresh) < 2 or max(levels) - min(levels) >= self._p.kin_apart):
            return None
        return median(levels)

    def _class_median(self, key: PriceKey) -> int | None:
        """Prices of this import included; None = too few."""
        known = (key.unit, size_class(key.model))
        if known not in self._medians:
            levels = [*self._market.class_levels(*known), *self._classes.get(known, ())]
            self._medians[known] = median(levels) if len(levels) >= self._p.class_least else None
        return self._medians[known]

    def _gives_away(self, provider: str) -> bool:
        """Whether half of the provider's models, and not just one, cost nothing."""
        free = self._market.free_models(provider) + len(self._free_models.get(provider, ()))
        return free >= self._p.free_models and 2 * free >= self._market.models(provider) + len(
            self._models.get(provider, ())
        )


def times(apart: int) -> str:
    """A distance of levels as a factor: 3000 is "1000x", -1000 is "1/10"."""
    return f"{_dollars(apart)}x" if apart >= 0 else f"1/{_dollars(-apart)}"


def _dollars(height: int) -> str:
    """The price of a level, to two digits."""
    price = _TWO_DIGITS.power(10, Decimal(height).scaleb(-3)).normalize()
    return f"{price:f}" if -8 < price.adjusted() < 7 else f"{price:e}"
