"""What a price guard knows at a moment: the prices in force, what each source quotes, and what is usual.

Statistics are kept in *levels*: 1000 times the decimal logarithm of a price, as an integer, so that a distance of
1000 is a factor of ten. Prices themselves stay exact decimals. Some 9,000 prices take a few megabytes.
"""

from __future__ import annotations

from bisect import bisect_left, insort
from collections.abc import Iterable, Iterator
from decimal import Context, Decimal
from typing import NamedTuple

from services.metering.model_names import family, size_class

_SHORT = Context(prec=8)


class PriceKey(NamedTuple):
    """One published price: `unit` of the contract or an outside name, `above` = input tokens from which on it
    holds (0 = always)."""

    provider: str
    model: str
    tier: str
    unit: str
    above: int


def level(price: Decimal) -> int:
    """1000 x the decimal logarithm of a price above 0."""
    return int(_SHORT.multiply(_SHORT.log10(price), 1000).to_integral_value())


def median(levels: Iterable[int]) -> int:
    """The middle one, or between the two middle ones; of at least one level."""
    ordered = sorted(levels)
    return (ordered[(len(ordered) - 1) // 2] + ordered[len(ordered) // 2]) // 2


class Market:
    """Prices in force and quotes, with the statistics by which first prices are judged; changed by `put` and
    `quote` alone, each in about the time of a dictionary's change."""

    def __init__(self) -> None:
        self._in_force: dict[PriceKey, Decimal] = {}
        self._quotes: dict[str, dict[PriceKey, tuple[Decimal, bool]]] = {}
        self._kin: dict[tuple[str, str], dict[PriceKey, int]] = {}
        self._classes: dict[tuple[str, str], list[int]] = {}
        self._longer: dict[PriceKey, set[PriceKey]] = {}
        self._models: dict[str, dict[str, int]] = {}
        self._free: dict[str, int] = {}

    def price(self, key: PriceKey) -> Decimal | None:
        """The price in force in US dollars per one unit; None = none."""
        return self._in_force.get(key)

    def put(self, key: PriceKey, price: Decimal | None) -> None:
        """The price is in force from now on; None = nothing is."""
        before = self._in_force.pop(key, None)
        if before is not None:
            self._count(key, before, -1)
        if price is not None:
            self._in_force[key] = price
            self._count(key, price, 1)

    def quote(self, source: str, key: PriceKey, price: Decimal | None, *, held: bool = False) -> None:
        """What a source says now, and whether that is held; None = it says nothing any more."""
        quotes = self._quotes.setdefault(source, {})
        if price is None:
            quotes.pop(key, None)
        else:
            quotes[key] = (price, held)

    def other_quotes(self, key: PriceKey, source: str, *, held: bool = True) -> list[Decimal]:
        """What the other sources say of this price; with what is held, or without."""
        said = [quotes[key] for name, quotes in self._quotes.items() if name != source and key in quotes]
        return [price for price, doubted in said if held or not doubted]

    def kin(self, key: PriceKey) -> Iterator[tuple[PriceKey, int]]:
        """The family's other prices above 0 for this unit, in every tier, with their levels."""
        return (item for item in self._kin.get((family(key.model), key.unit), {}).items() if item[0] != key)

    def longer(self, key: PriceKey) -> Iterable[PriceKey]:
        """The prices in force that replace this one for longer requests."""
        return self._longer.get(key, ())

    def class_levels(self, unit: str, size: str) -> list[int]:
        """The sorted levels of all prices above 0 of this unit and size class. Not to be changed."""
        return self._classes.get((unit, size), [])

    def models(self, provider: str) -> int:
        """How many of the provider's models have a price."""
        return len(self._models.get(provider, {}))

    def free_models(self, provider: str) -> int:
        """How many of the provider's models cost nothing to read."""
        return self._free.get(provider, 0)

    @property
    def model_count(self) -> int:
        """How many models have a price."""
        return sum(map(len, self._models.values()))

    def _count(self, key: PriceKey, price: Decimal, step: int) -> None:
        models = self._models.setdefault(key.provider, {})
        models[key.model] = models.get(key.model, 0) + step
        if not models[key.model]:
            del models[key.model]
        if key.above:
            longer = self._longer.setdefault(key._replace(above=0), set())
            (longer.add if step > 0 else longer.discard)(key)
        if not price:
            if key.unit == "input" and key.tier == "standard" and not key.above:
                self._free[key.provider] = self._free.get(key.provider, 0) + step
            return
        height = level(price)
        kin = self._kin.setdefault((family(key.model), key.unit), {})
        levels = self._classes.setdefault((key.unit, size_class(key.model)), [])
        if step > 0:
            kin[key] = height
            insort(levels, height)
        else:
            del kin[key]
            del levels[bisect_left(levels, height)]
