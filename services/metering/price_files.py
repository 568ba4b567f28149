"""Price files of others, as statements in the contract's form (`PriceList`): LiteLLM's model file, models.dev's
`api.json`, genai-prices' `data.json`.

A file is taken apart as far as it is understood: what it prices in units that we count becomes statements, the rest
is counted by reason and left out. Statements of LiteLLM and models.dev are not complete: what they are silent about
keeps its price (`price_desk.merged`).
"""

from __future__ import annotations

import re
from collections import Counter, defaultdict
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from decimal import Decimal
from typing import Any, NamedTuple

from services.metering.litellm_fields import parse_field
from services.metering.price_version import BEGINNING, UNITS, to_json
from services.metering.seed import GenaiPrices
from shared.contract.exact_json import exact_json

_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.:~+/@-]{0,127}")
_PLACES_MAX = 24  # of the contract's UnitPrice
_PER_MILLION = -6

# Names of providers that are not genai-prices' ids, by which gateways and the seed name them.
_LITELLM_PROVIDERS: Mapping[str, str] = {
    "azure_ai": "azure", "azure_text": "azure", "bedrock": "aws", "bedrock_converse": "aws", "cohere_chat": "cohere",
    "fireworks_ai": "fireworks", "fireworks_ai-embedding-models": "fireworks", "gemini": "google",
    "text-completion-openai": "openai", "together_ai": "together", "xai": "x-ai", "moonshot": "moonshotai",
}  # fmt: skip
_MODELS_DEV_PROVIDERS: Mapping[str, str] = {
    "amazon-bedrock": "aws", "fireworks-ai": "fireworks", "google-vertex": "google", "google-vertex-anthropic": "google",
    "togetherai": "together", "xai": "x-ai", "huggingface": "huggingface",
}  # fmt: skip
_MODELS_DEV_UNITS: Mapping[str, str] = {
    "input": "input", "output": "output", "reasoning": "reasoning", "cache_read": "cache_read",
    "cache_write": "cache_write_5m", "input_audio": "input_audio", "output_audio": "output_audio",
}  # fmt: skip


class Rate(NamedTuple):
    """One price of a file: US dollars for one unit, for requests of more than `above` input tokens."""

    tier: str
    unit: str
    above: int
    price: Decimal


@dataclass(slots=True)
class PriceFile:
    """What a file says. `lists`: data of `PriceList`s without `source` and, but for dated prices, `valid_from`;
    `left_out`: how many models or prices were not taken, by reason."""

    format: str
    lists: list[dict[str, Any]] = field(default_factory=list)
    left_out: Counter[str] = field(default_factory=Counter)


def read_price_file(raw: bytes) -> PriceFile:
    """A file of any known format. Raises ValueError, with what is wrong and where."""
    document = exact_json(raw)
    for name, is_it, read in _FORMATS:
        if is_it(document):
            found = PriceFile(name)
            read(document, found)
            if not found.lists:
                raise ValueError(f"a file of {name}, but no price in it that could be taken")
            return found
    raise ValueError("not a price file that is known here: LiteLLM's, models.dev's api.json or genai-prices' data.json")


def _objects(document: Any, member: str) -> bool:
    return isinstance(document, dict) and any(isinstance(v, dict) and member in v for v in document.values())


# --- LiteLLM -----------------------------------------------------------------------------------------------------


def _litellm(document: Mapping[str, Any], found: PriceFile) -> None:
    # A provider's own listing before another one that is mapped to it (gemini before vertex_ai).
    taken: dict[tuple[str, str, str], dict[str, Any]] = {}
    for key, entry in document.items():
        if not isinstance(entry, dict) or key in ("sample_spec", "fallback_generalizations"):
            continue
        theirs = str(entry.get("litellm_provider", ""))
        provider = _LITELLM_PROVIDERS.get(theirs, "google" if theirs.startswith("vertex_ai") else theirs)
        head, _, rest = key.partition("/")
        model = rest if rest and head in (theirs, provider, "vertex_ai", "gemini") else key
        _state(found, taken, provider, model, _litellm_rates(entry, found))


def _litellm_rates(entry: Mapping[str, Any], found: PriceFile) -> Iterator[Rate]:
    for name, value in entry.items():
        meaning = parse_field(name)
        if meaning is None or value is None:
            continue
        if not meaning.counted:
            found.left_out["a price in a unit that is not counted here"] += 1
        elif (price := _number(value)) is None:
            found.left_out["a price that is no number"] += 1
        else:
            yield Rate(meaning.tier, meaning.unit, meaning.above, meaning.per_unit(price))


# --- models.dev --------------------------------------------------------------------------------------------------


def _models_dev(document: Mapping[str, Any], found: PriceFile) -> None:
    taken: dict[tuple[str, str, str], dict[str, Any]] = {}
    for theirs, entry in document.items():
        if not isinstance(entry, dict) or not isinstance(entry.get("models"), dict):
            continue
        provider = _MODELS_DEV_PROVIDERS.get(theirs, theirs)
        for model, described in entry["models"].items():
            cost = described.get("cost") if isinstance(described, dict) else None
            if not isinstance(cost, dict):
                found.left_out["a model without a price"] += 1
                continue
            _state(found, taken, provider, model, _models_dev_rates(cost, found))


def _models_dev_rates(cost: Mapping[str, Any], found: PriceFile) -> Iterator[Rate]:
    above = [(0, cost)]
    if isinstance(over := cost.get("context_over_200k"), dict):
        above.append((200_000, over))
    for tier in cost.get("tiers") or ():
        kind = tier.get("tier") if isinstance(tier, dict) else None
        if isinstance(kind, dict) and kind.get("type") == "context" and type(kind.get("size")) is int:
            above.append((kind["size"], tier))
        else:
            found.left_out["a tier that is none of context"] += 1
    for border, prices in dict(above).items():
        for name, unit in _MODELS_DEV_UNITS.items():
            if prices.get(name) is None:
                continue
            if (price := _number(prices[name])) is None:
                found.left_out["a price that is no number"] += 1
            else:
                yield Rate("standard", unit, border, price.scaleb(_PER_MILLION))


# --- genai-prices ------------------------------------------------------------------------------------------------


def _genai_prices(document: Any, found: PriceFile) -> None:
    catalogue = GenaiPrices.from_raw(document)
    for version in catalogue.all_versions():
        said = to_json(version)
        wanted = ("provider", "model", "tier", "prices", "not_billed", "context_tiers", "daily_window", "per")
        stated = {name: said[name] for name in wanted if said[name]}
        if version.minimum:
            found.left_out["a model with a least quantity, which the contract does not state"] += 1
            continue
        if version.valid_from != BEGINNING:
            stated["valid_from"] = said["valid_from"]
        if version.valid_to is not None:
            stated["valid_to"] = said["valid_to"]
        found.lists.append(stated)


# --- in common ---------------------------------------------------------------------------------------------------


def _state(
    found: PriceFile,
    taken: dict[tuple[str, str, str], dict[str, Any]],
    provider: str,
    model: str,
    rates: Iterator[Rate],
) -> None:
    """Adds a model's statements, one a tier."""
    if _NAME.fullmatch(provider) is None or _NAME.fullmatch(model) is None:
        found.left_out["a name that the contract does not take"] += 1
        return
    by_tier: defaultdict[str, defaultdict[int, dict[str, Decimal]]] = defaultdict(lambda: defaultdict(dict))
    for tier, unit, above, price in rates:
        if price.is_signed() and price != 0:
            found.left_out["a price below 0"] += 1
        elif -int(price.normalize().as_tuple().exponent) > _PLACES_MAX:
            found.left_out[f"a price with more than {_PLACES_MAX} decimal places"] += 1
        else:
            by_tier[tier][above].setdefault(unit, price)
    if not by_tier:
        found.left_out["a model without a price"] += 1
    for tier, borders in by_tier.items():
        base = borders.pop(0, {})
        tiers = []
        for above, prices in sorted(borders.items()):
            changed = {unit: price for unit, price in prices.items() if unit in base and price != base[unit]}
            if changed:
                tiers.append({"above_input_tokens": above, "prices": _texts(changed)})
        if not base:
            found.left_out["a tier with prices for long requests only"] += 1
            continue
        stated: dict[str, Any] = {
            "provider": provider, "model": model, "tier": tier, "prices": _texts(base), "complete": False
        }  # fmt: skip
        if tiers:
            stated["context_tiers"] = tiers
        before = taken.setdefault((provider, model.lower(), tier), stated)
        if before is stated:
            found.lists.append(stated)
        elif before != stated:
            found.left_out["a second price of one model (the first is taken)"] += 1


def _texts(prices: Mapping[str, Decimal]) -> dict[str, str]:
    return {
        unit: format(prices[unit].normalize() if prices[unit] else Decimal(0), "f") for unit in UNITS if unit in prices
    }


def _number(value: Any) -> Decimal | None:
    if isinstance(value, bool) or not isinstance(value, int | str | Decimal):
        return None
    try:
        price = Decimal(value)
    except ArithmeticError:
        return None
    return price if price.is_finite() else None


_FORMATS: tuple[tuple[str, Callable[[Any], bool], Callable[[Any, PriceFile], None]], ...] = (
    ("LiteLLM", lambda document: _objects(document, "litellm_provider"), _litellm),
    ("models.dev", lambda document: _objects(document, "models"), _models_dev),
    ("genai-prices", lambda document: isinstance(document, list), _genai_prices),
)
