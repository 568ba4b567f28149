"""Own rating beside what the provider says it charged: equal, explained, or open.

The reported cost is compared and never used. Of what differs, the first explanation that accounts for it holds:

- `rounding`: the own amount, rounded to the digits that were reported (up to a micro-dollar).
- `byok_fee`: served with the customer's own key: nothing is charged here, and what was reported is nothing, the
  list price (the provider's bill to the customer) or the gateway's fee, a share of the list price.
- `cancelled`: we bill less than the reported units, by a rule (cancelled, failed, zero completion, cache hit), and
  the provider charged for them.
- `discount`: one of the two has the discount for shared data and the other one has not.
- `tier_served`: what the same usage costs in another service tier.
- `open`: nothing of that.
"""

from __future__ import annotations

from collections.abc import Iterable
from datetime import datetime
from fractions import Fraction
from typing import Any, Literal, NamedTuple

from services.metering.price_book import PriceBook
from services.metering.price_version import TIERS
from services.metering.pricing import DEFAULT_RULES, Card, Rated, Rules, rate

Explanation = Literal["equal", "rounding", "byok_fee", "cancelled", "discount", "tier_served", "open"]
EXPLANATIONS: tuple[Explanation, ...] = (
    "equal", "rounding", "byok_fee", "cancelled", "discount", "tier_served", "open",
)  # fmt: skip

BYOK_FEE = Fraction(5, 100)
"""The gateway's share of the list price. Here it only explains; what is charged is billing's."""

_COARSEST_DIGIT = 10**6  # pico-dollars in a micro-dollar: a cost reported in cents explains no difference


class Reported(NamedTuple):
    """A rated generation whose provider says what it charged. `amount_pico` is what we bill, `list_pico` at list price."""

    usage: Any
    event_at: datetime
    known_at: datetime
    amount_pico: int
    list_pico: int
    rule: str


class Sum(NamedTuple):
    """Generations of a day (UTC, days since 1970) that compare alike."""

    day: int
    provider: str
    model: str
    explanation: Explanation
    generations: int
    rated_pico: int
    reported_pico: int


def reconcile(book: PriceBook, reported: Iterable[Reported], rules: Rules = DEFAULT_RULES) -> list[Sum]:
    """The sums of a batch, ordered."""
    sums: dict[tuple[int, str, str, Explanation], list[int]] = {}
    for one in reported:
        cost = int(one.usage.cost_reported_pico)
        day = int(one.event_at.timestamp() // 86_400)
        key = (day, one.usage.provider, one.usage.model, explain_cost(book, one, cost, rules))
        total = sums.setdefault(key, [0, 0, 0])
        for n, more in enumerate((1, one.amount_pico, cost)):
            total[n] += more
    return [Sum(*key, *total) for key, total in sorted(sums.items())]


def explain_cost(book: PriceBook, one: Reported, cost: int, rules: Rules = DEFAULT_RULES) -> Explanation:
    """Why the provider reports `cost` pico-dollars for what we bill `one.amount_pico`; see the module."""
    if cost == one.amount_pico and one.rule != "byok":
        return "equal"
    usage = one.usage
    if one.rule == "byok":
        parts = (0, one.list_pico, one.list_pico * BYOK_FEE)
        return "byok_fee" if any(_rounded(own, cost) for own in parts) else "open"
    if _rounded(one.amount_pico, cost):
        return "rounding"
    as_list = _at_tier(book, one, usage.tier)
    if usage.outcome != "completed" or one.rule in ("error", "zero_completion", "cache_hit"):
        if as_list is not None and one.amount_pico < cost and (cost < as_list or _rounded(as_list, cost)):
            return "cancelled"
        if usage.outcome == "cancelled" and cost < one.amount_pico:
            return "cancelled"
        return "open"
    kept = Fraction(rules.kept_numerator, rules.kept_denominator)
    if _rounded(one.list_pico, cost) or _rounded(one.list_pico * kept, cost):
        return "discount"
    others = (_at_tier(book, one, tier) for tier in TIERS if tier != usage.tier)
    return "tier_served" if any(own is not None and _rounded(own, cost) for own in others) else "open"


def _rounded(own: Fraction | int, cost: int) -> bool:
    """Whether `cost` is `own`, cut or rounded to the digits that `cost` has."""
    digit = 1
    while digit < _COARSEST_DIGIT and cost % (digit * 10) == 0:
        digit *= 10
    return abs(Fraction(own) - cost) < digit


def _at_tier(book: PriceBook, one: Reported, tier: str) -> int | None:
    """The list price of everything that was reported as used, in another tier; None if it has no price there."""
    usage = one.usage
    card = book.card(usage.provider, usage.model, tier, one.event_at, one.known_at)
    if not isinstance(card, Card):
        return None
    rated = rate(card, usage.tokens, usage.counts)
    return rated.amount_pico if isinstance(rated, Rated) else None
