"""`steward rate BODY --provider P`: what a provider's answer costs, by metering's own code; needs no running mesh."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator, Mapping
from datetime import UTC, date, datetime, time
from fractions import Fraction
from typing import IO, TYPE_CHECKING, Any

import click

from deploy.cli.books import priced_units
from deploy.cli.errors import NO

if TYPE_CHECKING:
    from rich.console import RenderableType

_BODY_BYTES_MAX = 64 * 1024 * 1024


@click.command(epilog="Example: steward rate answer.json --provider anthropic   (or: curl ... | steward rate - ...)")
@click.argument("body", type=click.File("rb"))
@click.option("--provider", required=True, metavar="P", help="Who answered: openai, anthropic, google, aws, azure, ...")
@click.option("--model", metavar="M", help="The model, if the body does not name it or is to be overruled.")
@click.option("--at", metavar="TIME", help="Prices of this day or instant (ISO 8601 with a zone)  [default: now]")
@click.option("--json", "as_json", is_flag=True, help="For programs; money as decimal strings.")
def rate(body: IO[bytes], provider: str, model: str | None, at: str | None, as_json: bool) -> None:
    """Show what a provider's answer costs, by the prices that metering starts with.

    BODY holds one JSON object: the whole answer, the part with its usage (of a stream: the last chunk), or the bare
    usage object; - is the standard input. Nothing of it but names and numbers is shown.

    Exit code 1 when it has no price (an unknown model, or a unit without a price) or a bucket is negative; 2 when BODY
    holds no usage of this provider's.
    """
    from shared.adapters import UnreadableUsage

    instant = _instant(at)
    document = _document(body)
    try:
        said = rated(document, provider, model, instant)
    except UnreadableUsage as error:
        raise click.UsageError(str(error)) from None
    if as_json:
        click.echo(json.dumps(said, indent=2))
    else:
        from rich.console import Console

        console = Console(highlight=False)
        for part in _shown(said):
            console.print(part)
    if said["amount_pico"] is None:
        sys.exit(NO)


def rated(body: Mapping[str, Any], provider: str, model: str | None, at: datetime) -> dict[str, Any]:
    """The command's JSON. Raises UnreadableUsage.

    `unit_prices` are US dollars for one unit of those used: a decimal, or a fraction ("37/1200000") where no decimal is
    exact. `lines` are as those of `steward explain`. `flags` are the reading's, and why there is no amount.
    """
    from services.metering.price_book import UNKNOWN_MODEL, PriceBook
    from services.metering.pricing import Unpriced, explain
    from services.metering.pricing import rate as amount_of
    from services.metering.seed import GenaiPrices
    from shared.adapters import read

    reading = read(body, provider, model)
    # Nothing is known of how it ended: then it ended well. A blank word is the provider's, and metering judges it.
    finish = "stop" if reading.finish_reason is None else reading.finish_reason
    tier = reading.tier or "standard"
    flags = list(reading.flags)
    said: dict[str, Any] = {
        "provider": provider,
        "model": reading.model,
        "family": reading.family,
        "tier": tier,
        "at": at.isoformat(),
        "buckets": reading.buckets,
        "counts": reading.counts,
        "amount_pico": None,
        "price_version": None,
        "unit_prices": {},
        "lines": [],
        "rule": None,
        "missing": None,
        "flags": flags,
        "cost_reported": None if reading.cost_reported is None else format(reading.cost_reported, "f"),
    }
    outcome: Any = UNKNOWN_MODEL
    if reading.model is not None:
        outcome = PriceBook(catalogue=GenaiPrices()).card(provider, reading.model, tier, at, at)
    if not isinstance(outcome, Unpriced):
        card, used = outcome, (reading.buckets, reading.counts, finish)
        how = explain(card.version, *used)
        said["price_version"], said["tier"] = card.price_version, card.choose(reading.buckets)[1]
        said["unit_prices"] = {part.unit: part.unit_price for part in how.units if part.price is not None}
        said["lines"] = [part.shown() for part in how.units]
        outcome = amount_of(card, *used)
    if isinstance(outcome, Unpriced):
        flags.append(outcome.reason)
        said["missing"] = outcome.missing or None
    elif "negative_bucket" not in flags:
        said["amount_pico"], said["rule"] = str(outcome.amount_pico), outcome.rule
    return said


def _document(body: IO[bytes]) -> Mapping[str, Any]:
    """The body, its numbers exact. Raises BadParameter with words that repeat nothing of it."""
    from shared.contract.exact_json import exact_json

    raw = body.read(_BODY_BYTES_MAX + 1)
    if len(raw) > _BODY_BYTES_MAX:
        raise click.BadParameter(f"larger than {_BODY_BYTES_MAX} bytes: pass the usage object alone", param_hint="BODY")
    try:
        document = exact_json(raw)
    except ValueError as error:
        raise click.BadParameter(f"no JSON object ({error}): pass one provider answer", param_hint="BODY") from None
    if not isinstance(document, dict):
        raise click.BadParameter("no JSON object (it is no object): pass one provider answer", param_hint="BODY")
    return document


def _instant(text: str | None) -> datetime:
    """A day is its first instant, UTC."""
    if text is None:
        return datetime.now(UTC)
    try:
        if len(text) == len("2026-11-24"):
            return datetime.combine(date.fromisoformat(text), time(0), UTC)
        at = datetime.fromisoformat(text)
    except ValueError:
        raise click.BadParameter(
            "no day or instant of ISO 8601 (e.g. 2026-11-24, 2026-11-24T21:00:00Z)", param_hint="--at"
        ) from None
    if at.tzinfo is None:
        raise click.BadParameter("an instant needs a zone (e.g. 2026-11-24T21:00:00Z)", param_hint="--at")
    try:
        return at.astimezone(UTC)
    except OverflowError:
        raise click.BadParameter("an instant outside all years", param_hint="--at") from None


# --- for people --------------------------------------------------------------------------------------------------


def _shown(said: Mapping[str, Any]) -> Iterator[RenderableType]:
    from rich.markup import escape
    from rich.table import Table
    from rich.text import Text

    from shared.adapters import MEANINGS
    from shared.contract.money import PICO

    facts = Table.grid(padding=(0, 2, 0, 0))
    for name, value in (
        ("model", f"{said['model'] or 'unknown'} at {said['provider']}"),
        ("read as", said["family"]),
        ("tier, rule", f"{said['tier']}, {said['rule'] or 'none'}"),
        ("price version", f"{said['price_version'] or 'none'} at {said['at']}"),
    ):
        facts.add_row(f"[dim]{name}[/dim]", escape(value))
    yield facts
    amount = said["amount_pico"]
    table = priced_units("how it is priced", said["lines"])
    if not said["lines"]:
        for unit, used in {**said["buckets"], **said["counts"]}.items():
            table.add_row(unit, f"{used:,}", "", "unknown", "")
    table.add_section()
    table.add_row("rounded half-even", "", "", "", "none" if amount is None else amount, style="bold")
    yield table
    if amount is None:
        missing = f" ({said['missing']})" if said["missing"] else ""
        yield Text(f"No amount: {said['flags'][-1]}{missing}. {_ADVICE.get(said['flags'][-1], '')}", "yellow")
    else:
        yield Text(f"It costs {_dollars(Fraction(int(amount), PICO))}.", "bold")
    if said["cost_reported"] is not None:
        yield Text(_compared(Fraction(said["cost_reported"]), amount))
    for flag in said["flags"]:
        if flag in MEANINGS:
            yield Text.assemble((f"{flag}: ", "yellow"), MEANINGS[flag])


_ADVICE = {
    "unknown_model": "Is the provider right? A model that the body does not name is given with --model.",
    "unknown_price": "On the mesh it waits until a price.published event states the price.",
    "negative_bucket": "The provider's figures contradict each other; on the mesh it waits for a person.",
}


def _compared(reported: Fraction, amount: str | None) -> str:
    from shared.contract.money import PICO

    said = f"The provider reports {_dollars(reported)}"
    if amount is None:
        return said + "."
    own = Fraction(int(amount), PICO)
    difference = reported - own
    if abs(difference) * PICO * 2 <= 1:
        return f"{said}: the same."
    share = f" ({float(difference / own):+.2%})" if own else ""
    return f"{said}: {'more' if difference > 0 else 'less'} than this by {_dollars(abs(difference))}{share}."


def _dollars(value: Fraction) -> str:
    from services.metering.pricing import exact_text

    whole, _, places = exact_text(value).partition(".")
    return f"${int(whole):,}.{places.ljust(2, '0')}"
