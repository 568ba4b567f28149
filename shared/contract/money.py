"""Money: whole pico-US-dollars (1e-12 USD); a decimal string on the wire, since JSON numbers break at $9,007."""

from __future__ import annotations

from decimal import Decimal

PICO = 10**12


def usd(amount_pico: int, places: int = 6) -> str:
    """`amount_pico` as dollars for a person's eye, e.g. `$1.250000` (rounded half-even to `places`)."""
    sign = "-" if amount_pico < 0 else ""
    value = (Decimal(abs(amount_pico)).scaleb(-12)).quantize(Decimal(1).scaleb(-places))
    return f"{sign}${value:,f}"


def pico(dollars: str | int | Decimal) -> int:
    """Whole pico-dollars of an exact amount in dollars. Raises ValueError when it is finer than a pico-dollar."""
    exact = Decimal(dollars).scaleb(12)
    if exact != exact.to_integral_value():
        raise ValueError("an amount of money is finer than a pico-dollar")
    return int(exact)
