"""One adapter per family of answers: from its usage object into a `Draft`.

Each gets the draft, the usage object, the object that held it (the whole answer, where that was passed), the provider
and the model's name. Field names, and what lies inside what, are the providers' API references; where a provider
departs from its family it says so here.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from decimal import ROUND_HALF_UP
from typing import Any, NamedTuple

from .reading import FIGURE_MAX, Draft, UnreadableUsage, figure, items, number, part, same, text

Part = Mapping[str, Any]


class Asked(NamedTuple):
    """What an adapter may need to know beside the usage object."""

    holder: Part
    provider: str
    model: str


# --- OpenAI and those who speak like it --------------------------------------------------------------------------


class Names(NamedTuple):
    """Where a dialect of OpenAI's has its figures. Cached tokens, cache writes and kinds of token lie inside them."""

    input: str
    output: str
    input_parts: tuple[str, ...]
    output_parts: tuple[str, ...]
    read_at_the_top: tuple[str, ...] = ()
    write_at_the_top: tuple[str, ...] = ()


CHAT = Names(
    "prompt_tokens",
    "completion_tokens",
    ("prompt_tokens_details",),
    ("completion_tokens_details",),
    # Together, Moonshot and Hugging Face; Mistral; DeepSeek; Databricks; xAI's SDK.
    ("cached_tokens", "num_cached_tokens", "prompt_cache_hit_tokens", "cache_read_input_tokens",
     "cached_prompt_text_tokens"),
    ("cache_creation_input_tokens",),
)  # fmt: skip
# The realtime and transcription endpoints write `token` where responses write `tokens`.
RESPONSES = Names(
    "input_tokens",
    "output_tokens",
    ("input_tokens_details", "input_token_details"),
    ("output_tokens_details", "output_token_details"),
)

_KINDS = ("text", "audio", "image", "video")


def openai_chat(draft: Draft, usage: Part, asked: Asked) -> None:
    """Chat completions, embeddings, and the many that copy them.

    Reasoning lies inside `completion_tokens`, but not at xAI (docs.x.ai, consumption and rate limits), nor in
    Perplexity's deep research, whose `reasoning_tokens` lie outside its total, too.
    """
    _openai(draft, usage, asked, CHAT)


def openai_responses(draft: Draft, usage: Part, asked: Asked) -> None:
    """Responses, realtime, speech and transcription by tokens."""
    _openai(draft, usage, asked, RESPONSES)


def openai_images(draft: Draft, usage: Part, asked: Asked) -> None:
    """Image generation: what is not said to be text is image tokens."""
    _openai(draft, usage, asked, RESPONSES, rest="output_image")


def _openai(draft: Draft, usage: Part, asked: Asked, names: Names, rest: str = "output") -> None:
    inside, outside = part(usage, *names.input_parts), part(usage, *names.output_parts)
    total_in = draft.required(figure(usage, names.input))
    total_out = figure(usage, names.output) or 0
    reads = [figure(inside, "cached_tokens", "cache_read_input_tokens")]
    read = same(draft, reads + [figure(usage, name) for name in names.read_at_the_top])
    write = figure(inside, "cache_write_tokens", "cache_creation_input_tokens")
    if write is None:
        write = figure(usage, *names.write_at_the_top)
    if (missed := figure(usage, "prompt_cache_miss_tokens")) is not None:
        draft.compare("sum_mismatch", total_in, missed + read)
    kinds = _kinds(inside)
    if (images := figure(usage, "prompt_image_tokens")) is not None:
        kinds["image"] = images  # xAI's SDK
    read_kinds = _kinds(part(inside, "cached_tokens_details"))
    draft.input(total_in, read, _writes(draft, write, part(usage, "cache_creation")), kinds, read_kinds)

    apart = figure(usage, "reasoning_tokens")
    reasoning = same(draft, [figure(outside, "reasoning_tokens"), apart])
    beside = 0
    if names is CHAT and asked.provider == "x-ai":
        total_out += reasoning
    elif names is CHAT and asked.provider == "perplexity":
        beside = apart or 0
        total_out += beside
    draft.output(total_out, reasoning, _kinds(outside), rest)
    if asked.provider == "perplexity":
        beside += _perplexity(draft, usage, asked, names)
    draft.total(figure(usage, "total_tokens"), beside)
    _tools(draft, usage, asked)


def _kinds(details: Part) -> dict[str, int]:
    if not details:
        return {}
    return {kind: tokens for kind in _KINDS if (tokens := figure(details, f"{kind}_tokens")) is not None}


def _perplexity(draft: Draft, usage: Part, asked: Asked, names: Names) -> int:
    """Its fees by request and by search, and the citation tokens beside its total (read, and priced as input is).

    Only deep research bills searches; the others bill the request (docs.perplexity.ai, pricing).
    """
    if names is CHAT and usage.get("completion_tokens") is not None:
        draft.count("request", 1)
    if not asked.model or "deep-research" in asked.model:
        draft.count("web_search", figure(usage, "num_search_queries"))
    citations = figure(usage, "citation_tokens") or 0
    draft.put("input", citations)
    return citations


# Where a usage object tells its web searches; the first group that is there counts. xAI bills searches of X alike.
_SEARCHES: tuple[tuple[tuple[str, ...], ...], ...] = (
    (("server_side_tool_usage_details", "web_search_calls"), ("server_side_tool_usage_details", "x_search_calls")),
    (("num_sources_used",),),  # xAI's earlier live search
    (("server_tool_use", "web_search_requests"),),  # OpenRouter
    (("tool_calls_details", "search_web", "invocation"),),  # Perplexity's responses
)


def _tools(draft: Draft, usage: Part, asked: Asked) -> None:
    """Web searches, and Mistral's seconds of audio in a chat."""
    draft.count("second", figure(usage, "prompt_audio_seconds"))
    for group in _SEARCHES:
        if group[0][0] in usage:
            for *way, name in group:
                holder = usage
                for step in way:
                    holder = part(holder, step)
                draft.count("web_search", figure(holder, name))
            return
    draft.count("web_search", sum(map(_is_search, items(asked.holder, "output"))))


def _is_search(item: Part) -> bool:
    """OpenAI bills the action `search`, not `open_page` nor `find_in_page` (its web search guide)."""
    if item.get("type") != "web_search_call" or item.get("status") == "failed":
        return False
    return bool(part(item, "action").get("type", "search") == "search")


# --- Anthropic ---------------------------------------------------------------------------------------------------

_READ, _WRITTEN = "cache_read_input_tokens", "cache_creation_input_tokens"


def anthropic(draft: Draft, usage: Part, asked: Asked) -> None:
    """Messages: cached tokens are counted beside `input_tokens`; thinking lies inside `output_tokens`.

    The top level sums only the `iterations` of type `message`; those of compaction and of an advisor are nowhere else
    (platform.claude.com, compaction and advisor tool). Should it one day sum them all, nothing is added.
    """
    _message(draft, usage)
    if usage.get("input_tokens") is None or usage.get("output_tokens") is None:
        draft.flags.add("figure_missing")
    draft.count("web_search", figure(part(usage, "server_tool_use"), "web_search_requests"))
    draft.total(figure(usage, "total_tokens"))
    # A modifier, not a tier: fast mode, and inference that is kept in one region.
    if usage.get("speed") == "fast" or usage.get("inference_geo") not in (None, "global", "not_available"):
        draft.flags.add("price_modifier")
    if iterations := items(usage, "iterations"):
        _iterations(draft, usage, iterations, asked.model)


def _message(draft: Draft, usage: Part) -> None:
    read = figure(usage, _READ) or 0
    writes = _writes(draft, figure(usage, _WRITTEN), part(usage, "cache_creation"))
    draft.input((figure(usage, "input_tokens") or 0) + read + sum(writes), read, writes)
    thinking = figure(part(usage, "output_tokens_details"), "thinking_tokens") or 0
    draft.output(figure(usage, "output_tokens") or 0, thinking)


def _writes(draft: Draft, total: int | None, split: Part) -> tuple[int, int]:
    """Tokens written into the cache for 5 minutes and for 1 hour; what no split explains is for 5 minutes."""
    short, long = figure(split, "ephemeral_5m_input_tokens"), figure(split, "ephemeral_1h_input_tokens")
    return _by_life(draft, total, short, long)


def _by_life(draft: Draft, total: int | None, short: int | None, long: int | None) -> tuple[int, int]:
    if short is None:
        short = max((total or 0) - (long or 0), 0)
    writes = (short, long or 0)
    draft.compare("sum_mismatch", total, sum(writes))
    return writes if any(writes) or total is None else (total, 0)


def _figures(usages: list[Part]) -> list[int]:
    return [
        sum(figure(usage, name) or 0 for usage in usages) for name in ("input_tokens", "output_tokens", _READ, _WRITTEN)
    ]


def _iterations(draft: Draft, usage: Part, iterations: list[Part], model: str) -> None:
    nested = [one for one in iterations if one.get("type") != "message"]
    top = _figures([usage])
    if top != _figures([one for one in iterations if one not in nested]):
        if top == _figures(iterations):
            return
        draft.flags.add("sum_mismatch")
    for one in nested:
        _message(draft, one)
    if any(_figures(nested)):
        draft.flags.add("nested_iterations")
    if any((text(one, "model") or model).lower() != model for one in nested):
        draft.flags.add("nested_model")


# --- Google ------------------------------------------------------------------------------------------------------

# Pages of documents are read as images (ai.google.dev, document understanding).
_MODALITIES = {"TEXT": "text", "AUDIO": "audio", "IMAGE": "image", "VIDEO": "video", "DOCUMENT": "image"}
_GENERATION = re.compile(r"gemini-(\d+)")


def gemini(draft: Draft, usage: Part, asked: Asked) -> None:
    """generateContent: cached tokens lie inside the prompt; thoughts and tools' prompts are counted beside."""
    prompt = draft.required(figure(usage, "promptTokenCount"))
    tools = figure(usage, "toolUsePromptTokenCount") or 0
    kinds = _modalities(draft, usage, "promptTokensDetails", "promptTokenDetails")
    draft.input(
        prompt, figure(usage, "cachedContentTokenCount") or 0, kinds=kinds,
        read_kinds=_modalities(draft, usage, "cacheTokensDetails"),
    )  # fmt: skip
    draft.input(tools, kinds=_modalities(draft, usage, "toolUsePromptTokensDetails"))
    thoughts = figure(usage, "thoughtsTokenCount") or 0
    generated = _modalities(draft, usage, "candidatesTokensDetails", "responseTokensDetails")
    if generated.get("video"):
        draft.flags.add("unplaced_tokens")
    draft.output(figure(usage, "candidatesTokenCount", "responseTokenCount") or 0, kinds=generated)
    draft.put("reasoning", thoughts)
    draft.total(figure(usage, "totalTokenCount"))
    draft.count("web_search", _grounded(asked))


def _modalities(draft: Draft, usage: Part, *names: str) -> dict[str, int]:
    kinds: dict[str, int] = {}
    for item in items(usage, *names):
        kind = _MODALITIES.get(str(item.get("modality")))
        tokens = figure(item, "tokenCount") or 0  # a zero is left out
        if kind is None:
            if tokens:
                draft.flags.add("unplaced_tokens")
            kind = "text"
        kinds[kind] = kinds.get(kind, 0) + tokens
    return kinds


def _grounded(asked: Asked) -> int:
    """Searches that are billed: from Gemini 3 on each query, before that the prompt (ai.google.dev, grounding).

    Queries that are empty or come again are not billed.
    """
    queries = {
        query
        for candidate in items(asked.holder, "candidates")
        for query in part(candidate, "groundingMetadata").get("webSearchQueries") or ()
        if isinstance(query, str) and query.strip()
    }
    generation = _GENERATION.search(asked.model)
    return len(queries) if generation is None or int(generation[1]) >= 3 else min(len(queries), 1)


# --- Amazon Bedrock ----------------------------------------------------------------------------------------------


def bedrock_converse(draft: Draft, usage: Part, asked: Asked) -> None:
    """Converse, and the metrics that InvokeModel adds: cached tokens beside the input, each count under two names."""
    read = same(draft, [figure(usage, "cacheReadInputTokens"), figure(usage, "cacheReadInputTokenCount")])
    names = ("cacheWriteInputTokens", "cacheWriteInputTokenCount")
    written = [figure(usage, name) for name in names]
    lives: dict[str, int] = {}
    for item in items(usage, "cacheDetails"):
        life = str(item.get("ttl"))
        lives[life] = lives.get(life, 0) + (figure(item, "inputTokens") or 0)
    total = None if written == [None, None] else same(draft, written)
    writes = _by_life(draft, total, lives.get("5m"), lives.get("1h"))
    fresh = draft.required(figure(usage, "inputTokens", "inputTokenCount", "inputTextTokenCount", "prompt_token_count"))
    draft.input(fresh + read + sum(writes), read, writes)
    generated = figure(usage, "outputTokens", "outputTokenCount", "generation_token_count") or 0
    generated += sum(figure(result, "tokenCount") or 0 for result in items(usage, "results"))  # Titan
    draft.output(generated)
    draft.total(figure(usage, "totalTokens"))


# --- Cohere, and what is not counted in tokens -------------------------------------------------------------------


def cohere(draft: Draft, usage: Part, asked: Asked) -> None:
    """What it bills, which is less than the tokens it counts. A search unit (one query, up to 100 documents) and a
    classification are a `request` each."""
    counted = part(usage, "tokens")
    billed = part(usage, "billed_units")
    if not billed:
        inside = figure(usage, "cached_tokens") or 0
        draft.input(draft.required(figure(counted, "input_tokens")), inside)
        draft.output(figure(counted, "output_tokens") or 0)
        return
    for name, bucket in (("input_tokens", "input"), ("image_tokens", "input_image"), ("output_tokens", "output")):
        tokens = figure(billed, name)
        draft.put(bucket, tokens or 0)
        draft.compare("billed_units_differ", figure(counted, name), tokens or 0)
    draft.count("request", figure(billed, "search_units"))
    draft.count("request", figure(billed, "classifications"))
    draft.count("image", figure(billed, "images"))


def metered(draft: Draft, usage: Part, asked: Asked) -> None:
    """Seconds of audio (OpenAI's transcription by duration), characters (speech), pages (Mistral's OCR)."""
    if (seconds := usage.get("seconds")) is not None:
        exact = number(seconds)
        if exact is None or not 0 <= exact <= FIGURE_MAX:
            raise UnreadableUsage("seconds is no duration: pass the provider's answer as it came")
        # To the nearest second, as OpenAI bills it.
        nearest = int(exact.to_integral_value(ROUND_HALF_UP))
        draft.count("second", nearest)
        if exact != nearest:
            draft.flags.add("rounded_count")
    draft.count("character", figure(usage, "characters", "usage_characters"))
    draft.count("page", figure(usage, "pages_processed"))


Adapter = Callable[[Draft, Part, Asked], None]

ADAPTERS: Mapping[str, Adapter] = {
    "openai-chat": openai_chat,
    "openai-responses": openai_responses,
    "openai-images": openai_images,
    "anthropic": anthropic,
    "gemini": gemini,
    "bedrock-converse": bedrock_converse,
    "cohere": cohere,
    "metered": metered,
}
