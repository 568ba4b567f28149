"""What a price field of LiteLLM's model price file means: "input_cost_per_token_above_200k_tokens_priority" is
the standard's input price in tier priority, for requests of more than 200,000 input tokens.

The file gains names every few weeks, so a name is read by its parts: a thing that is priced, and qualifiers
behind it. A thing that the contract does not count keeps its own name (an *outside* unit): its price can still
be guarded, not billed. Names: `model_prices_and_context_window.schema.json` of BerriAI/litellm, and the page
"Model Cost Map" of its documentation.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from decimal import Context, Decimal
from functools import lru_cache
from typing import NamedTuple

from services.metering.price_version import UNITS


class FieldMeaning(NamedTuple):
    """What a field prices. `unit`: one of `UNITS`, or an outside name. `above`: the price is for requests with
    more input tokens than this (0 = all). `per`: the number in the file is the price of so many units, a power of
    ten."""

    tier: str
    unit: str
    above: int
    per: int

    def per_unit(self, price: Decimal) -> Decimal:
        """The price of one unit, exactly: `per` is a power of ten."""
        return price.scaleb(1 - len(str(self.per)), _EXACT)

    @property
    def counted(self) -> bool:
        """Whether the contract counts this unit."""
        return self.unit in _COUNTED


_COUNTED = frozenset(UNITS)
_EXACT = Context(prec=100)

_UNIT_OF: Mapping[str, str] = {
    "input_cost_per_token": "input",
    "output_cost_per_token": "output",
    "output_cost_per_reasoning_token": "reasoning",
    "cache_read_input_token_cost": "cache_read",
    "input_cost_per_token_cache_hit": "cache_read",
    "cache_creation_input_token_cost": "cache_write_5m",
    "cache_creation_input_token_cost_above_1hr": "cache_write_1h",
    "input_cost_per_audio_token": "input_audio",
    "cache_read_input_audio_token_cost": "cache_read_audio",
    "output_cost_per_audio_token": "output_audio",
    "input_cost_per_image_token": "input_image",
    "output_cost_per_image_token": "output_image",
    "input_cost_per_video_token": "input_video",
    "input_cost_per_request": "request",
    "search_context_cost_per_query": "web_search",
    "output_cost_per_image": "image",
    "input_cost_per_second": "second",
    "input_cost_per_character": "character",
    "ocr_cost_per_page": "page",
}
_TIER = re.compile(r"_(?:(batch)(?:es|_requests)?|(flex)|(priority))(?=_|$)")
_ABOVE = re.compile(r"_above_(\d+)(k|m)?_tokens(?=_|$)")
_PER = re.compile(r"(?<=_per_)(?:(10*)(k|m)?|(thousand|million))_(?=[a-z])")
_THOUSANDS = {None: 1, "": 1, "k": 1_000, "m": 1_000_000, "thousand": 1_000, "million": 1_000_000}


@lru_cache(maxsize=1024)
def parse_field(name: str) -> FieldMeaning | None:
    """The meaning of a field by its name; None if it is no price (limits, modes, abilities)."""
    if "cost" not in name.split("_"):
        return None
    tier, above, per = "standard", 0, 1
    if found := _TIER.search(name):
        tier = next(filter(None, found.groups()))
        name = name[: found.start()] + name[found.end() :]
    if found := _ABOVE.search(name):
        above = int(found[1]) * _THOUSANDS[found[2]]
        name = name[: found.start()] + name[found.end() :]
    if found := _PER.search(name):
        per = int(found[1] or 1) * _THOUSANDS[found[2] or found[3]]
        name = name[: found.start()] + name[found.end() :].removesuffix("s")
    return FieldMeaning(tier, _UNIT_OF.get(name, name), above, per)
