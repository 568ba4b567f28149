"""What a model's name tells about its price: the family (the same model elsewhere) and the size class.

Every reseller writes a name in its own way: `bedrock/us.anthropic.claude-3-5-sonnet-20241022-v2:0`,
`openrouter/anthropic/claude-3.5-sonnet:beta`, `vertex_ai/claude-3-5-sonnet@20240620`. The family is what is left when
places, vendors, dates, precisions and release words are taken away; it is a statistic's group, never an identity.
"""

from __future__ import annotations

import re
from functools import lru_cache

_VENDORS = re.compile(r"(?:[a-z]+|ai21)\.(?=[a-z])")
_DATE = re.compile(
    r"[-@_](?:20\d\d[-_]?[01]\d[-_]?[0-3]\d|[01]\d-20\d\d|[01]\d-[0-3]\d|20\d\d|[012]\d[0-3]\d)(?=$|[-:@_])"
)
_REVISION = re.compile(r"(?:[-@]v?\d{1,3})?:\d+k?$|@[a-z0-9.]+$|-v\d:\d.*$|-00\d$")
_POINT = re.compile(r"(?<=\d)p(?=\d)")
_NOISE = frozenset(
    (
        *("alibaba", "anthropic", "cohere", "databricks", "meta", "openai"),
        *("awq", "bf16", "fp4", "fp8", "hf", "nvfp4", "tput"),
        *("beta", "chat", "exp", "experimental", "free", "instruct", "it", "latest", "maas", "preview", "reference"),
        *("thinking", "v0", "v1", "versatile"),
    )
)
_SEPARATORS = re.compile(r"[-_ :]+")
_BILLIONS = re.compile(r"(?<![a-z0-9.])(?:(\d+)x)?e?(\d+(?:\.\d+)?)b(?![a-z0-9])")
_SIZE_BORDERS = (2, 5, 10, 20, 45, 100)
_WORKS = (
    ("rerank", "rerank"),
    ("guard", "guard"),
    ("moderation", "guard"),
    ("embed", "embed"),
    ("bge-", "embed"),
    ("gte-", "embed"),
    ("-e5-", "embed"),
    ("e5-", "embed"),
    ("voyage-", "embed"),
    ("whisper", "speech"),
    ("transcribe", "speech"),
    ("tts", "speech"),
    ("image", "image"),
    ("dall-e", "image"),
    ("flux", "image"),
    ("diffusion", "image"),
    ("realtime", "live"),
    ("audio", "live"),
)
_SMALL = frozenset(("nano", "lite", "light", "micro", "mini", "flash", "haiku", "small", "air", "tiny"))
_LARGE = frozenset(("opus", "ultra", "pro", "max", "o1", "o3", "large", "premier", "research"))


@lru_cache(maxsize=8192)
def family(model: str) -> str:
    """The model without whoever resells it, where, as of when and in which precision."""
    name = _own_name(model)
    name = _REVISION.sub("", name)
    name = _DATE.sub("", name)
    words = [word for word in _SEPARATORS.split(_POINT.sub(".", name)) if word and word not in _NOISE]
    return "".join(words).replace(".", "")


@lru_cache(maxsize=8192)
def size_class(model: str) -> str:
    """A coarse class of models that cost about the same: what they do, else how many billion parameters, else
    the words for small and large. "" = nothing in the name tells."""
    name = _own_name(model)
    for word, work in _WORKS:
        if word in name:
            return work
    if found := _BILLIONS.search(name):
        billions = int(found[1] or 1) * int(found[2].split(".")[0])
        return f"b{sum(billions >= border for border in _SIZE_BORDERS)}"
    words = set(_SEPARATORS.split(name))
    if words & _SMALL:
        return "small"
    return "large" if words & _LARGE or name.startswith("gpt-4") else ""


def says_free(model: str) -> bool:
    """Whether the name itself offers the model for nothing: a free variant, or an experiment."""
    return model.endswith(":free") or not {"free", "exp", "experimental"}.isdisjoint(_SEPARATORS.split(model.lower()))


def _own_name(model: str) -> str:
    """The last part of the path, without regions and vendors before dots."""
    name = model.lower().rpartition("/")[2]
    while found := _VENDORS.match(name):
        name = name[found.end() :]
    return name
