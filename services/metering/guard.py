"""The price-change guard: which published prices are trusted, and why the others are held.

A held price changes nothing: the old one stays in force until a second source agrees or a named person releases the
new one. A change is judged by what it does to the price in force. A first price has nothing to be compared with, and
is where nearly all mistakes of public price lists are made: it is judged by what such a price costs elsewhere, and by
the model's other prices. All changes of one import are judged together, since the usual mistake is one of units, for
a whole provider at once. The order of changes in an import does not matter.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from decimal import Decimal
from typing import NamedTuple

from services.metering.guard_parameters import PARAMETERS, Parameters
from services.metering.market import Market, PriceKey, level
from services.metering.plausibility import Evidence, is_token, times


class Change(NamedTuple):
    """A price as it is in force (`old`, None = none yet) and as it is published (`new`, None = vanished), in US
    dollars per one unit."""

    key: PriceKey
    old: Decimal | None
    new: Decimal | None


class Verdict(NamedTuple):
    """`reason` is a stable code, `detail` says it to people.

    Held: `negative`; of changes `jump`, `unit_slip`, `to_zero`, `from_zero`, `vanished`, `many_models`; of first
    prices `implausible_first`, `zero_first`, `output_against_input`, `card_slip`, `provider_slip`, `changed_unit`;
    of both `cache_above_input`, `batch_above_standard`, `long_below_base`. Not held: `ordinary`, `plausible` (a first
    price), `correction` (a jump from an implausible price to a plausible one), `agreed` (another source says the
    same), `gone` (what vanished was never in force).
    """

    held: bool
    reason: str
    detail: str = ""


_Held = Mapping[PriceKey, Verdict]


def judge(market: Market, changes: Sequence[Change], source: str, parameters: Parameters = PARAMETERS) -> list[Verdict]:
    """A verdict for each change of one import of a source, in their order. Changes nothing: put the accepted prices,
    and all quotes, into the market afterwards. Raises ValueError when a price is named twice."""
    return _Import(market, changes, source, parameters).verdicts()


class _Import:
    def __init__(self, market: Market, changes: Sequence[Change], source: str, parameters: Parameters) -> None:
        self._market = market
        self._changes = changes
        self._source = source
        self._p = parameters
        self._new = {key: new for key, _, new in changes}
        if len(self._new) < len(changes):
            raise ValueError("price guard: an import names one price twice; keep the one that counts")
        self._firsts = [(key, new) for key, old, new in changes if old is None and new is not None and new >= 0]
        self._longer: dict[PriceKey, list[PriceKey]] = defaultdict(list)
        for key in self._new:
            if key.above:
                self._longer[key._replace(above=0)].append(key)
        self._evidence = Evidence(market, self._firsts, self._new, source, parameters)

    def verdicts(self) -> list[Verdict]:
        held: dict[PriceKey, Verdict] = {}
        passed: dict[PriceKey, Verdict] = {}
        for change in self._changes:
            verdict = self._alone(change)
            (held if verdict.held else passed)[change.key] = verdict
        # Each rule sees what is held so far, and adds to it.
        for rule in (self._ratio, self._card, self._provider, self._unit, self._many, self._crossed):
            held.update({key: verdict for key, verdict in rule(held) if key not in held})
        return [self._agreed(key, held[key]) if key in held else passed[key] for key in self._new]

    def _agreed(self, key: PriceKey, verdict: Verdict) -> Verdict:
        new = self._new[key]
        for other in self._market.other_quotes(key, self._source):
            if new is not None and new >= 0 and abs(new - other) * 100 <= self._p.agree_percent * max(new, other):
                return Verdict(False, "agreed", f"another source says the same (else held: {verdict.reason})")
        return verdict

    def _alone(self, change: Change) -> Verdict:
        """One change by itself."""
        key, old, new = change
        if new is None:
            return Verdict(True, "vanished", "the source has it no more") if old is not None else Verdict(False, "gone")
        if new < 0:
            return Verdict(True, "negative", "a price is 0 or more")
        if old is None:
            return self._first(key, new)
        if old == new:
            return Verdict(False, "ordinary")
        if not new or not old:
            return Verdict(True, "from_zero" if new else "to_zero", "between free and not free")
        apart = level(new) - level(old)
        slip = _near_power_of_ten(apart, self._p.slip)
        if abs(apart) < self._p.jump and not slip:
            return Verdict(False, "ordinary")
        wrong = self._evidence.against(key, old)
        if wrong and not self._evidence.against(key, new):
            return Verdict(False, "correction", f"the price in force was {wrong}")
        return Verdict(True, "unit_slip" if slip else "jump", f"{times(apart)} the price in force")

    def _first(self, key: PriceKey, price: Decimal) -> Verdict:
        if price:
            wrong, reason = self._evidence.contradicted(key, price), "implausible_first"
        else:
            wrong, reason = self._evidence.against_free(key, self._beside(key, "input")), "zero_first"
        return Verdict(True, reason, wrong) if wrong else Verdict(False, "plausible")

    # ---- prices beside each other

    def _beside(self, key: PriceKey, unit: str) -> Decimal | None:
        """The model's price of another unit: as published in this import, else as in force."""
        other = key._replace(unit=unit)
        return self._new[other] if other in self._new else self._market.price(other)

    def _ratio(self, held: _Held) -> Iterator[tuple[PriceKey, Verdict]]:
        """Output against input; the stranger of the two is held."""
        for key, price in self._firsts:
            if key.unit not in ("input", "output") or not price:
                continue
            other = key._replace(unit="output" if key.unit == "input" else "input")
            beside = self._beside(key, other.unit)
            if beside is None or beside <= 0 or other in held:
                continue
            apart = level(price) - level(beside)
            output_over_input = apart if key.unit == "output" else -apart
            if self._p.output_least <= output_over_input <= self._p.output_most:
                continue
            strangeness = self._evidence.strangeness
            if other not in self._new or strangeness(key, price) >= strangeness(other, beside):
                yield key, Verdict(True, "output_against_input", f"output costs {times(output_over_input)} input")

    def _card(self, held: _Held) -> Iterator[tuple[PriceKey, Verdict]]:
        """Whoever slipped with a model's input or output entered its other token prices as well."""
        slipped = {key[:2] for key in held if key.unit in ("input", "output") and held[key].reason in _SLIPS}
        for key, price in self._firsts:
            if key[:2] in slipped and price and is_token(key.unit):
                yield key, Verdict(True, "card_slip", "the model's input or output price is implausible")

    def _provider(self, held: _Held) -> Iterator[tuple[PriceKey, Verdict]]:
        """A provider most of whose new models are implausible."""
        models: dict[str, set[str]] = defaultdict(set)
        wrong: dict[str, set[str]] = defaultdict(set)
        for key, _ in self._firsts:
            models[key.provider].add(key.model)
            if key in held and held[key].reason in _SLIPS:
                wrong[key.provider].add(key.model)
        for key, price in self._firsts:
            n, of = len(wrong[key.provider]), len(models[key.provider])
            doubtful = n >= self._p.provider_models and 100 * n >= self._p.provider_share * of
            if doubtful and price and not self._evidence.confirmed(key, price):
                yield key, Verdict(True, "provider_slip", f"{n} of the provider's {of} new models are implausible")

    def _unit(self, held: _Held) -> Iterator[tuple[PriceKey, Verdict]]:
        """A model whose prices all vanish in one measure (tokens, seconds, ...) and appear in another."""
        gone: dict[tuple[str, ...], set[str]] = defaultdict(set)
        for key, old, new in self._changes:
            if new is None and old:
                gone[key[:2]].add(_measure(key.unit))
        for key, _ in self._firsts:
            if key[:2] in gone and _measure(key.unit) not in gone[key[:2]]:
                was = ", ".join(sorted(gone[key[:2]]))
                yield key, Verdict(True, "changed_unit", f"the model was priced by the {was}")

    def _many(self, held: _Held) -> Iterator[tuple[PriceKey, Verdict]]:
        """Many models at once, of all or of one provider."""
        moved = {
            key: key[:2]
            for key, old, new in self._changes
            if old and new and min(old, new) > 0 and abs(level(new) - level(old)) > self._p.many_change
        }
        models = set(moved.values())
        for key in moved:
            own = sum(provider == key.provider for provider, _ in models)
            for n, of in ((len(models), self._market.model_count), (own, self._market.models(key.provider))):
                if n >= self._p.many_models and 100 * n >= self._p.many_share * of:
                    yield key, Verdict(True, "many_models", f"{n} of {of} models change at once")

    def _crossed(self, held: _Held) -> Iterator[tuple[PriceKey, Verdict]]:
        """Cache read above input, batch above standard, long context below base: by what would be in force."""
        for key, old, new in self._changes:
            if new is None or new == old or key in held:
                continue
            for reason, low, high in self._pairs(key):
                cheap, dear = self._would_be(low, held), self._would_be(high, held)
                if cheap is not None and dear is not None and cheap > dear:
                    yield key, Verdict(True, reason, f"{cheap:f} is more than {dear:f}")

    def _pairs(self, key: PriceKey) -> Iterator[tuple[str, PriceKey, PriceKey]]:
        """(reason, the price that may not be the higher one, the other) in which this price takes part."""
        if key.unit == "cache_read":
            yield "cache_above_input", key, key._replace(unit="input")
        if key.unit == "input":
            yield "cache_above_input", key._replace(unit="cache_read"), key
        if key.tier == "batch":
            yield "batch_above_standard", key, key._replace(tier="standard")
        if key.tier == "standard":
            yield "batch_above_standard", key._replace(tier="batch"), key
        if key.above:
            yield "long_below_base", key._replace(above=0), key
        else:
            for longer in {*self._market.longer(key), *self._longer[key]}:
                yield "long_below_base", key, longer

    def _would_be(self, key: PriceKey, held: _Held) -> Decimal | None:
        return self._new[key] if key in self._new and key not in held else self._market.price(key)


_SLIPS = frozenset(("implausible_first", "output_against_input"))
_MEASURES = ("token", "second", "character", "pixel", "image", "page", "query", "request", "session")


def _measure(unit: str) -> str:
    """What is counted: "token" for all kinds of tokens."""
    return "token" if is_token(unit) else next((measure for measure in _MEASURES if measure in unit), unit)


def _near_power_of_ten(apart: int, slip: int) -> bool:
    rest = abs(apart) % 1000
    return abs(apart) >= 1000 - slip and min(rest, 1000 - rest) <= slip
