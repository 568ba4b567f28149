"""Rating: what one generation costs, exactly, in pico-dollars (1 USD = 10**12).

A `PriceVersion` is compiled once into a `Card` of integers over one common denominator. An amount is then an
exact integer sum over the units used, rounded once, half to even, to whole pico-dollars. `rate` is the hot
path; `explain` computes the same with fractions from the version itself, says how, and never uses the card.

The rules are OpenRouter's; the first that applies decides:

- `cache_hit`, answered by the gateway's response cache: nothing is billed.
- `error`, finish reason "error": only work done beside the model is billed (`TOOL_UNITS`).
- `zero_completion`, not cancelled, finish reason blank or null, and no completion token from a model whose
  completion tokens have a price: as `error`.
- `byok`, the customer's own provider key: amount 0 here; `list_amount_pico` is what billing's fee is computed
  from.
- `data_sharing`, the account shares its data: list price, model units 1 % cheaper.
- `list`, everything else, cancelled generations included: the reported units at list price.

`list_amount_pico` is what the billed units cost at list price: before the discount and whoever's key it was.
The context tier and the minimum quantities are chosen before any rule. Quantities are not negative (the
contract refuses those). A unit that costs nothing by rule needs no price.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from decimal import Decimal
from fractions import Fraction
from math import lcm
from types import MappingProxyType
from typing import Any, Literal, NamedTuple

from services.metering.price_version import COMPLETION_BUCKETS, INPUT_BUCKETS, PriceVersion

PICO_DIGITS = 12

TOOL_UNITS: frozenset[str] = frozenset(("web_search", "page"))
"""Work done beside the model (searches, pages read by OCR): billed though the model failed, and not subject
to the discount."""

ERROR_FINISH = "error"

AMOUNT_PICO_MAX = 2**63 - 1
"""What a BIGINT holds: 9.2 million dollars. A generation above it has a wrong price, not a high one."""

Rule = Literal["list", "cache_hit", "error", "zero_completion", "byok", "data_sharing"]

# Finish reasons that no rule asks about: the quick way out for almost every generation.
PLAIN_FINISH = frozenset(("stop", "length", "tool_calls", "content_filter"))
_NO_UNITS: Mapping[str, int] = MappingProxyType({})


class Rated(NamedTuple):
    """An amount and everything needed to find out why. `tier` names the context tier too: "standard",
    "standard>200000"."""

    amount_pico: int
    list_amount_pico: int
    price_version: str
    tier: str
    rule: Rule


class Unpriced(NamedTuple):
    """Why there is no amount. The generation is quarantined and visible, never billed at 0.

    `unknown_model`: no price of this provider's model, in any tier. `unknown_price`: `missing` is the unit
    that has neither a price nor "not billed", or "tier:batch" if the model has no price in that tier, or
    "in_force" if none of its versions is valid at the event's time and not held. `amount_out_of_range`: the
    amount does not fit a BIGINT.
    """

    reason: Literal["unknown_model", "unknown_price", "amount_out_of_range"]
    missing: str = ""


@dataclass(frozen=True, slots=True)
class Rules:
    """The numbers of the rules. `data_sharing_discount` is a share of the list price of model units (0.01 = 1
    %)."""

    data_sharing_discount: Decimal = Decimal("0.01")
    kept_numerator: int = field(init=False)
    kept_denominator: int = field(init=False)

    def __post_init__(self) -> None:
        if not 0 <= self.data_sharing_discount <= 1:
            raise ValueError(f"data_sharing_discount must lie between 0 and 1, got {self.data_sharing_discount}")
        kept = 1 - Fraction(self.data_sharing_discount)
        object.__setattr__(self, "kept_numerator", kept.numerator)
        object.__setattr__(self, "kept_denominator", kept.denominator)


DEFAULT_RULES = Rules()


class CardTier(NamedTuple):
    """The integers for requests with more than `above` input tokens."""

    above: int
    prices: dict[str, int]
    label: str


class Card:
    """A price version, compiled: `prices[unit] / denominator` is the exact price of one unit in pico-dollars,
    0 if not billed."""

    __slots__ = (
        "version",
        "price_version",
        "tier",
        "label",
        "denominator",
        "prices",
        "tiers",
        "lowest_border",
        "completes",
        "plain",
    )

    def __init__(self, version: PriceVersion) -> None:
        self.version = version
        self.price_version = version.version
        self.label = version.tier
        tables = [
            (-1, version.prices),
            *((tier.above_input_tokens, tier.prices) for tier in version.context_tiers),
        ]
        # At least 12 decimal places, so that prices of whole pico-dollars (nearly all) need no division at
        # all.
        places = max([PICO_DIGITS, *(_places(price) for _, prices in tables for price in prices.values())])
        common = lcm(*version.per.values())
        self.denominator = 10 ** (places - PICO_DIGITS) * common
        self.prices: dict[str, int] = dict.fromkeys(version.not_billed, 0)
        tiers: list[CardTier] = []
        current = self.prices
        for above, prices in tables:
            current = current if above < 0 else dict(current)
            for unit, price in prices.items():
                current[unit] = _scaled(price, places) * (common // version.per.get(unit, 1))
            if above >= 0:
                tiers.append(CardTier(above, current, f"{version.tier}>{above}"))
        self.tiers = tuple(reversed(tiers))
        self.lowest_border = tiers[0].above if tiers else None
        # One price a unit, whole pico-dollars, nothing else to ask: what nearly every card is.
        self.plain = self.lowest_border is None and self.denominator == 1 and not version.minimum
        self.completes = any(self.prices.get(unit, 0) > 0 for unit in COMPLETION_BUCKETS)

    def choose(self, tokens: Mapping[str, int]) -> tuple[dict[str, int], str]:
        """Prices and tier label for a request: the highest context tier whose border its input tokens
        exceed."""
        input_tokens = input_total(tokens)
        for above, prices, label in self.tiers:
            if input_tokens > above:
                return prices, label
        return self.prices, self.label


def compile_card(version: PriceVersion) -> Card:
    return Card(version)


def round_half_even(numerator: int, denominator: int) -> int:
    """The whole number nearest to numerator / denominator (denominator > 0); a half goes to the even
    neighbour."""
    quotient, remainder = divmod(numerator, denominator)
    twice = 2 * remainder
    if twice > denominator or (twice == denominator and quotient & 1):
        return quotient + 1
    return quotient


def input_total(tokens: Mapping[str, int]) -> int:
    """All tokens that the model read, cached or not."""
    total = 0
    for unit, quantity in tokens.items():
        if unit in INPUT_BUCKETS:
            total += quantity
    return total


def rate(
    card: Card,
    tokens: Mapping[str, int],
    counts: Mapping[str, int] = _NO_UNITS,
    finish_reason: str | None = "stop",
    cancelled: bool = False,
    cache_hit: bool = False,
    byok: bool = False,
    data_sharing: bool = False,
    rules: Rules = DEFAULT_RULES,
) -> Rated | Unpriced:
    """What a generation costs on this card. `tokens`: exclusive buckets; `counts`: the other units; both may
    leave zeros out."""
    if cache_hit or byok or data_sharing or finish_reason not in PLAIN_FINISH or card.version.minimum:
        return _rate_by_rule(card, tokens, counts, finish_reason, cancelled, cache_hit, byok, data_sharing, rules)
    prices = card.prices
    label = card.label
    border = card.lowest_border
    # No bucket is negative, so the sum of all tokens bounds the input: most requests need no closer look.
    if border is not None and sum(tokens.values()) > border:
        prices, label = card.choose(tokens)
    amount = 0
    try:
        for unit, quantity in tokens.items():
            amount += prices[unit] * quantity
        for unit, quantity in counts.items():
            amount += prices[unit] * quantity
    except KeyError:
        return _rate_by_rule(card, tokens, counts, finish_reason, cancelled, False, False, False, rules)
    if card.denominator != 1:
        amount = round_half_even(amount, card.denominator)
    if amount > AMOUNT_PICO_MAX:
        return Unpriced("amount_out_of_range")
    return Rated(amount, amount, card.price_version, label, "list")


def _rate_by_rule(
    card: Card,
    tokens: Mapping[str, int],
    counts: Mapping[str, int],
    finish_reason: str | None,
    cancelled: bool,
    cache_hit: bool,
    byok: bool,
    data_sharing: bool,
    rules: Rules,
) -> Rated | Unpriced:
    """All the rules, one after the other; `rate` is a short cut through this."""
    rule = which_rule(card.completes, tokens, finish_reason, cancelled, cache_hit, byok, data_sharing)
    prices, label = card.choose(tokens)
    model_list = tool_list = 0
    for unit, quantity in billed_quantities(card.version, tokens, counts, rule).items():
        price = prices.get(unit)
        if price is None:
            return Unpriced("unknown_price", unit)
        if unit in TOOL_UNITS:
            tool_list += price * quantity
        else:
            model_list += price * quantity
    list_amount = round_half_even(model_list + tool_list, card.denominator)
    if list_amount > AMOUNT_PICO_MAX:
        return Unpriced("amount_out_of_range")
    if rule == "byok":
        amount = 0
    elif rule == "data_sharing":
        charged = model_list * rules.kept_numerator + tool_list * rules.kept_denominator
        amount = round_half_even(charged, card.denominator * rules.kept_denominator)
    else:
        amount = list_amount
    return Rated(amount, list_amount, card.price_version, label, rule)


def which_rule(
    completes: bool,
    tokens: Mapping[str, int],
    finish_reason: str | None,
    cancelled: bool,
    cache_hit: bool,
    byok: bool,
    data_sharing: bool,
) -> Rule:
    """The rule that decides. `completes`: the model's completion tokens have a price, so that none of them
    means that it failed; an embedding or a transcription has no completion and no finish reason and is
    complete."""
    if cache_hit:
        return "cache_hit"
    if finish_reason == ERROR_FINISH:
        return "error"
    blank = finish_reason is None or not finish_reason.strip()
    if blank and completes and not cancelled and not any(tokens.get(unit) for unit in COMPLETION_BUCKETS):
        return "zero_completion"
    if byok:
        return "byok"
    return "data_sharing" if data_sharing else "list"


def billed_quantities(
    version: PriceVersion, tokens: Mapping[str, int], counts: Mapping[str, int], rule: Rule
) -> dict[str, int]:
    """The units that a rule bills, with their quantities (a used unit counts at least its minimum), without
    zeros."""
    if rule == "cache_hit":
        return {}
    billed = {unit: quantity for unit, quantity in (*tokens.items(), *counts.items()) if quantity}
    if rule in ("error", "zero_completion"):
        billed = {unit: quantity for unit, quantity in billed.items() if unit in TOOL_UNITS}
    for unit, least in version.minimum.items():
        if unit in billed:
            billed[unit] = max(billed[unit], least)
    return billed


class ExplainedUnit(NamedTuple):
    """One unit of a generation: `amount_pico` = `billed` x `price` (US dollars for `per` units) x 10**12,
    exact, at list price."""

    unit: str
    quantity: int
    billed: int
    price: Decimal | None
    per: int
    amount_pico: Fraction

    @property
    def unit_price(self) -> str | None:
        """Dollars for one unit, exact: a decimal, or a fraction where no decimal is; None = unknown."""
        return None if self.price is None else exact_text(Fraction(self.price) / self.per)

    def shown(self) -> dict[str, Any]:
        """For people and programs."""
        return {
            "unit": self.unit, "quantity": self.quantity, "billed": self.billed, "unit_price_usd": self.unit_price,
            "exact_pico": str(self.amount_pico),
        }  # fmt: skip


@dataclass(frozen=True, slots=True)
class Explanation:
    """How an amount came about. `exact_pico` is the amount before its one rounding (half to even)."""

    rated: Rated | Unpriced
    version: PriceVersion
    units: tuple[ExplainedUnit, ...]
    input_tokens: int
    exact_list_pico: Fraction
    exact_pico: Fraction


def explain(
    version: PriceVersion,
    tokens: Mapping[str, int],
    counts: Mapping[str, int] = _NO_UNITS,
    finish_reason: str | None = "stop",
    cancelled: bool = False,
    cache_hit: bool = False,
    byok: bool = False,
    data_sharing: bool = False,
    rules: Rules = DEFAULT_RULES,
) -> Explanation:
    """The same amount as `rate`, by fractions of the version's own decimals, with its parts. Slow; for people
    and for checks."""
    completes = any(version.prices.get(unit, 0) > 0 for unit in COMPLETION_BUCKETS)
    rule = which_rule(completes, tokens, finish_reason, cancelled, cache_hit, byok, data_sharing)
    billed = billed_quantities(version, tokens, counts, rule)
    input_tokens = input_total(tokens)
    units: list[ExplainedUnit] = []
    unknown = ""
    for unit, quantity in (*tokens.items(), *counts.items()):
        price, per, used = (
            version.unit_price(unit, input_tokens),
            version.per.get(unit, 1),
            billed.get(unit, 0),
        )
        unknown = unknown or (unit if price is None and used else "")
        units.append(
            ExplainedUnit(unit, quantity, used, price, per, Fraction(price or 0) / per * used * 10**PICO_DIGITS)
        )
    exact_list = sum((part.amount_pico for part in units), Fraction(0))
    exact = exact_list
    if rule == "byok":
        exact = Fraction(0)
    elif rule == "data_sharing":
        model = sum((part.amount_pico for part in units if part.unit not in TOOL_UNITS), Fraction(0))
        exact = exact_list - model * Fraction(rules.data_sharing_discount)
    borders = [tier.above_input_tokens for tier in version.context_tiers if input_tokens > tier.above_input_tokens]
    label = f"{version.tier}>{borders[-1]}" if borders else version.tier
    # round() of a Fraction is half to even.
    rated: Rated | Unpriced = Rated(round(exact), round(exact_list), version.version, label, rule)
    if unknown:
        rated = Unpriced("unknown_price", unknown)
    elif round(exact_list) > AMOUNT_PICO_MAX:
        rated = Unpriced("amount_out_of_range")
    return Explanation(rated, version, tuple(units), input_tokens, exact_list, exact)


def exact_text(value: Fraction) -> str:
    """A plain decimal if the value has one ("0.0000025"), else "numerator/denominator"."""
    denominator, places = value.denominator, 0
    while denominator % 10 == 0:
        denominator //= 10
        places += 1
    twos = fives = 0
    while denominator % 2 == 0:
        denominator //= 2
        twos += 1
    while denominator % 5 == 0:
        denominator //= 5
        fives += 1
    if denominator != 1:
        return f"{value.numerator}/{value.denominator}"
    places += max(twos, fives)
    digits = str(abs(value.numerator) * 10**places // value.denominator).rjust(places + 1, "0")
    sign = "-" if value < 0 else ""
    whole, part = digits[: len(digits) - places], digits[len(digits) - places :]
    return f"{sign}{whole}.{part}" if part else f"{sign}{whole}"


def _places(price: Decimal) -> int:
    """Decimal places of a price."""
    exponent = price.as_tuple().exponent
    return max(0, -int(exponent))


def _scaled(price: Decimal, places: int) -> int:
    """price x 10**places, a whole number."""
    scaled = Fraction(price) * Fraction(10) ** places
    if scaled.denominator != 1:
        raise ArithmeticError(f"{price} has more than {places} decimal places")
    return scaled.numerator
