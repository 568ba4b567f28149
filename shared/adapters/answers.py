"""From an answer to its reading: where its usage is, whose it is, and what else the answer says.

The provider narrows the families, the shape decides among them, and the model's name where the shape does not.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from decimal import Decimal
from typing import Any

from .families import ADAPTERS, Asked, Part
from .reading import FLAGS, NONE, Draft, Reading, UnreadableUsage, items, number, text

_OPENAI = ("openai-responses", "openai-chat", "openai-images", "metered")

FAMILIES_OF: Mapping[str, tuple[str, ...]] = {
    "anthropic": ("anthropic", "openai-chat"),
    "aws": ("bedrock-converse", "anthropic", "openai-chat", "openai-responses"),
    "cohere": ("cohere", "openai-chat"),
    "google": ("gemini", "anthropic", "openai-chat", "openai-responses"),
    "openai": _OPENAI,
}
"""The families of a provider (ids of genai-prices). One that is not named speaks like OpenAI, and may like Anthropic."""

_OTHERS = (*_OPENAI, "anthropic")

# Where answers and chunks of streams have their usage, and the object whose model, tier and end go with it. The places
# of chunks: Anthropic's message_start, OpenAI's response.completed and realtime's response.done, Bedrock's metadata,
# Cohere's message-end, Groq's and Moonshot's last ones.
_PLACES: tuple[tuple[tuple[str, ...], str], ...] = (
    ((), "usage"), ((), "usageMetadata"), (("message",), "usage"), (("response",), "usage"),
    (("response",), "usageMetadata"), (("metadata",), "usage"), (("delta",), "usage"), (("result",), "usage"),
    (("x_groq",), "usage"), (("choices",), "usage"), ((), "meta"), ((), "usage_info"), ((), "extra_info"),
    ((), "amazon-bedrock-invocationMetrics"),
)  # fmt: skip

# By which keys a usage object is known. `input_tokens` has two owners, which `_of_input_tokens` tells apart.
_MARKS: tuple[tuple[str, frozenset[str]], ...] = (
    ("gemini", frozenset(("promptTokenCount", "candidatesTokenCount", "totalTokenCount"))),
    ("bedrock-converse", frozenset((
        "inputTokens", "outputTokens", "inputTokenCount", "outputTokenCount", "inputTextTokenCount",
        "prompt_token_count", "generation_token_count",
    ))),
    ("cohere", frozenset(("billed_units", "tokens"))),
    ("openai-chat", frozenset(("prompt_tokens", "completion_tokens"))),
    ("input_tokens", frozenset(("input_tokens", "output_tokens"))),
    ("metered", frozenset(("seconds", "characters", "usage_characters", "pages_processed"))),
)  # fmt: skip

_ANTHROPIC_MARKS = frozenset(("cache_read_input_tokens", "cache_creation_input_tokens", "cache_creation", "iterations"))
_RESPONSES_MARKS = frozenset(("input_tokens_details", "input_token_details"))

_TIERS = {
    "standard": "standard", "default": "standard", "on_demand": "standard", "flex": "flex", "on_demand_flex": "flex",
    "priority": "priority", "on_demand_priority": "priority", "batch": "batch",
}  # fmt: skip
_NO_TIER = frozenset(("auto", "unspecified", "traffic_type_unspecified", "service_tier_unspecified"))

_FINISH = re.compile(r"[A-Za-z0-9_.-]{0,64}")
_ENDED = {"completed": "stop", "failed": "error", "cancelled": "cancelled"}
_TICKS = 10
_COST_MAX = 10**9
_COST_PLACES_MAX = 30


def read(body: Mapping[str, Any], provider: str, model: str | None = None) -> Reading:
    """What an answer used. `provider`: an id of genai-prices; `model`: its name, if the caller knows it better.

    `body` may be the whole answer, an object that holds its usage part, or the bare usage object; JSON numbers may be
    int, float or Decimal. Raises UnreadableUsage when there is no usage of this provider's in it.
    """
    provider = provider.lower()
    families = FAMILIES_OF.get(provider, _OTHERS)
    for holder, usage in _candidates(body):
        name = model or _model(holder) or _model(body) or ""
        family = _family(usage, holder, families, name.lower())
        if family is None:
            continue
        draft = Draft()
        ADAPTERS[family](draft, usage, Asked(holder, provider, name.lower()))
        tier = _tier(draft, usage, holder, body)
        return Reading(
            family,
            draft.buckets if all(draft.buckets.values()) else {k: n for k, n in draft.buckets.items() if n},
            draft.counts,
            tuple(flag for flag in FLAGS if flag in draft.flags) if draft.flags else (),
            name or None,
            tier,
            _finish_reason(holder, body),
            _cost(usage),
        )
    if "openai-images" in families and (images := _images(body)):
        cost = _cost(_part(body, "usage"))
        return Reading("openai-images", {}, {"image": images}, (), model or _model(body), None, None, cost)
    raise UnreadableUsage(
        f"no usage of {provider} in it (known: {', '.join(families)}): pass the provider's answer, or the object that "
        "its usage is in; of a stream its last chunk, with usage switched on; is the provider right?"
    )


def _candidates(body: Part) -> Iterator[tuple[Part, Part]]:
    """(holder, usage) of each object that may be the usage, the whole body last."""
    for way, name in _PLACES:
        holder: Any = body
        for step in way:
            holder = holder.get(step)
            if isinstance(holder, list) and holder:
                holder = holder[0]
            if not isinstance(holder, Mapping):
                break
        else:
            usage = holder.get(name)
            if isinstance(usage, Mapping):
                yield holder, usage
    yield body, body


def _part(holder: Part, name: str) -> Part:
    value = holder.get(name)
    return value if isinstance(value, Mapping) else NONE


def _family(usage: Part, holder: Part, families: tuple[str, ...], model: str) -> str | None:
    keys = usage.keys()
    for family, marks in _MARKS:
        if keys & marks and any(usage[mark] is not None for mark in keys & marks):
            if family == "input_tokens":
                family = _of_input_tokens(usage, holder, families, model)
            if family in families:
                return family
    return None


def _of_input_tokens(usage: Part, holder: Part, families: tuple[str, ...], model: str) -> str:
    """Anthropic counts cached tokens beside `input_tokens`, OpenAI's responses inside: they must not be mistaken."""
    if "openai-responses" not in families:
        return "anthropic"
    if not usage.keys() & _RESPONSES_MARKS:
        if usage.keys() & _ANTHROPIC_MARKS:
            return "anthropic"
        # Without cached tokens both mean the same; the name is still worth having.
        if "anthropic" in families and ("claude" in model or holder.get("type") == "message"):
            return "anthropic"
    inside = _part(usage, "input_tokens_details")
    drawn = ("image_tokens" in inside and "cached_tokens" not in inside) or "gpt-image" in model
    return "openai-images" if drawn and "openai-images" in families else "openai-responses"


def _model(holder: Part) -> str | None:
    return text(holder, "model", "modelVersion", "modelId")


def _tier(draft: Draft, usage: Part, *holders: Part) -> str | None:
    for holder in (usage, *holders):
        for name in ("service_tier", "serviceTier", "trafficType"):
            said = holder.get(name)
            if isinstance(said, Mapping):
                said = said.get("type")
            if isinstance(said, str) and said.lower() not in _NO_TIER:
                tier = _TIERS.get(said.lower())
                if tier is None:
                    draft.flags.add("unknown_tier")
                return tier
    return None


def _finish_reason(*holders: Part) -> str | None:
    """The provider's word; "" where its place is blank, and where the word is none that an event could carry."""
    for holder in holders:
        places = [holder, _part(holder, "delta"), *items(holder, "choices"), *items(holder, "candidates")]
        said = [
            place[name]
            for place in places
            for name in ("finish_reason", "stop_reason", "finishReason", "stopReason")
            if name in place
        ]
        if said:
            word = next((word for word in said if isinstance(word, str) and word), "")
            return "error" if word.lower() == "error" else word if _FINISH.fullmatch(word) else ""
        if holder.get("object") == "response" and isinstance(status := holder.get("status"), str):
            return text(_part(holder, "incomplete_details"), "reason") or _ENDED.get(status, "")
    return None


def _cost(usage: Part) -> Decimal | None:
    """What the provider says it charged: OpenRouter's `cost` (credits are dollars), Perplexity's `cost.total_cost`,
    xAI's `cost_in_usd_ticks` (10**10 a dollar)."""
    said = usage.get("cost")
    if isinstance(said, Mapping):
        said = said.get("total_cost")
    cost = number(said)
    if cost is None and (ticks := number(usage.get("cost_in_usd_ticks"))) is not None:
        sign, digits, exponent = ticks.as_tuple()
        cost = Decimal((sign, digits, int(exponent) - _TICKS))
    if cost is None or not 0 <= cost <= _COST_MAX or int(cost.as_tuple().exponent) < -_COST_PLACES_MAX:
        return None
    return cost


def _images(body: Part) -> int:
    """Images that came without a count of tokens."""
    return sum(1 for item in items(body, "data") if "b64_json" in item or "url" in item)
