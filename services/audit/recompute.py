"""What a charge line should cost, by arithmetic of its own: nothing here is shared with the code that charged it.

A line says what was billed (quantities by unit), by which price version, in which tier (`standard`, or
`standard>200000` above a context size) and on which terms. The version's body is metering's published form: prices as
decimal strings of US dollars for `per` units. From these alone the amount follows, exactly, and is rounded once, half
to even, to whole pico-dollars.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from fractions import Fraction
from math import lcm
from typing import Any

PICO = 10**12
SHARING_DISCOUNT = Fraction(1, 100)
"""What an account saves that shares its data: a share of the list price of the model's units."""
UNDISCOUNTED = frozenset(("web_search", "page"))
"""Units of tools, not of the model: no discount applies to them."""


class Unprovable(Exception):
    """A line that has no recomputed amount; the text says why."""


def half_even(value: Fraction) -> int:
    """The whole number nearest to `value`; a half goes to the even neighbour."""
    below, rest = divmod(value.numerator, value.denominator)
    above_half = 2 * rest - value.denominator
    if above_half == 0:
        return below + below % 2
    return below + (above_half > 0)


class Tariff:
    """A price version as seen by one tier label and one kind of terms: whole numbers over one denominator.

    `pay[unit] / denominator` pico-dollars is what one unit costs on these terms. Raises `Unprovable` if the label is
    not one of the version's.
    """

    __slots__ = ("denominator", "pay")

    def __init__(self, body: Mapping[str, Any], label: str, terms: str) -> None:
        listed = _list_prices(body, label)
        if terms == "sharing":
            kept = 1 - SHARING_DISCOUNT
            listed = {u: price if u in UNDISCOUNTED else price * kept for u, price in listed.items()}
        elif terms not in ("list", "byok"):
            raise Unprovable(f"terms {terms!r} are not known")
        self.denominator = lcm(*(price.denominator for price in listed.values())) if listed else 1
        self.pay = {u: price.numerator * (self.denominator // price.denominator) for u, price in listed.items()}

    @property
    def whole(self) -> bool:
        """Whether every unit costs whole pico-dollars: then `pay` is all there is to know."""
        return self.denominator == 1

    def amount(self, quantities: Mapping[str, int]) -> int:
        """Pico-dollars for these quantities (negative ones for a reversal). Raises `Unprovable` for an unpriced unit."""
        total = 0
        pay = self.pay
        try:
            for unit, quantity in quantities.items():
                total += pay[unit] * quantity
        except KeyError as error:
            raise Unprovable(f"its price version says nothing about {error.args[0]!r}") from None
        denominator = self.denominator
        if denominator == 1:
            return total
        below, rest = divmod(total, denominator)
        twice = 2 * rest
        return below + (twice > denominator or (twice == denominator and below & 1))


def _list_prices(body: Mapping[str, Any], label: str) -> dict[str, Fraction]:
    """Pico-dollars for one unit at list price, by unit; what is not billed costs 0."""
    tier, _, above = label.partition(">")
    if tier != body["tier"]:
        raise Unprovable(f"tier {tier!r}, but its price version is for {body['tier']!r}")
    per = body.get("per") or {}
    prices = dict(body["prices"])
    borders = [context["above_input_tokens"] for context in body.get("context_tiers") or ()]
    if above and (not above.isdecimal() or int(above) not in borders):
        raise Unprovable(f"context tier {above!r} is none of its price version's")
    for context in body.get("context_tiers") or ():
        # Each border passed replaces what it names and leaves the rest as it was.
        if above and context["above_input_tokens"] <= int(above):
            prices |= context["prices"]
    found = {unit: Fraction(price) / per.get(unit, 1) * PICO for unit, price in prices.items()}
    return found | dict.fromkeys(body.get("not_billed") or (), Fraction(0))


# --- the customer's own key --------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class ByokTerms:
    """The share of the list price that is charged above a monthly allowance."""

    fee_rate: Fraction
    allowance_pico: int

    def fee(self, list_pico: int) -> int:
        """The fee of a month with usage at this list price."""
        return half_even(self.fee_rate * max(0, list_pico - self.allowance_pico))


@dataclass(slots=True)
class ByokMonth:
    """Own-key usage of a workspace or account in a month, as the lines have it: list price, and fees charged."""

    list_pico: int = 0
    fee_pico: int = 0

    def add(self, list_pico: int, fee_pico: int) -> None:
        """Takes a line, or another such sum."""
        self.list_pico += list_pico
        self.fee_pico += fee_pico


def byok_fees(
    terms: ByokTerms,
    lines: Mapping[tuple[int, str], ByokMonth],
    accounts: Mapping[int, str],
    kept: Mapping[tuple[str, str], int],
) -> tuple[int, list[str]]:
    """(fees due, what is wrong) for all own-key usage.

    `lines`: what the lines sum to, by (workspace number, month). `accounts`: whose the workspaces are, where that is
    still known. `kept`: billing's own list totals by (account, month).

    A fee is due on the total of an account's month. The totals themselves are proved by month: the lines' list prices
    must sum to them. The fees of an account are held against its own total where its workspaces' lines make up just
    that total; a workspace that has changed hands, or whose name was erased, leaves only the month to be compared.
    """
    wrong: list[str] = []
    due = {key: terms.fee(total) for key, total in kept.items()}
    by_month: dict[str, ByokMonth] = {}
    by_account: dict[tuple[str, str], ByokMonth] = {}
    for (number, month), found in lines.items():
        by_month.setdefault(month, ByokMonth()).add(found.list_pico, found.fee_pico)
        if (owner := accounts.get(number)) is not None:
            by_account.setdefault((owner, month), ByokMonth()).add(found.list_pico, found.fee_pico)
    for month in sorted(by_month.keys() | {month for _, month in kept}):
        found = by_month.get(month, ByokMonth())
        listed = sum(total for (_, of), total in kept.items() if of == month)
        fees = sum(fee for (_, of), fee in due.items() if of == month)
        if found.list_pico != listed:
            wrong.append(f"own-key usage of {month}: lines {found.list_pico}, kept total {listed} at list price")
        elif found.fee_pico != fees:
            wrong.append(f"own-key fees of {month}: charged {found.fee_pico}, due {fees}")
        else:
            split = _misplaced(month, by_account, kept, due)
            if split:
                wrong.append(f"own-key fees of {month}: {split} accounts were charged what another one owes")
    return sum(due.values()), wrong


def _misplaced(
    month: str,
    by_account: Mapping[tuple[str, str], ByokMonth],
    kept: Mapping[tuple[str, str], int],
    due: Mapping[tuple[str, str], int],
) -> int:
    mine: Iterable[tuple[str, str]] = (key for key in kept if key[1] == month and key in by_account)
    return sum(1 for k in mine if by_account[k].list_pico == kept[k] and by_account[k].fee_pico != due[k])
