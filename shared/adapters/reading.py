"""A reading, and the one place in which its buckets are filled and their sums checked.

A bucket is what is left of the provider's own figure once all that lies inside it is taken out, or a figure that the
provider gives apart. So buckets sum to the provider's figures; where its parts contradict them, the parts are billed
and the reading is flagged. A provider's total is compared and nothing is ever derived from it.
"""

from __future__ import annotations

from collections.abc import Mapping
from decimal import Decimal
from types import MappingProxyType
from typing import Any, NamedTuple

INPUT_BUCKETS = (
    "input", "cache_read", "cache_write_5m", "cache_write_1h", "input_audio", "cache_read_audio", "input_image",
    "input_video",
)  # fmt: skip
OUTPUT_BUCKETS = ("output", "reasoning", "output_audio", "output_image")
BUCKETS = INPUT_BUCKETS + OUTPUT_BUCKETS
COUNTS = ("request", "web_search", "image", "second", "character", "page")
TIERS = ("standard", "flex", "priority", "batch")

MEANINGS: Mapping[str, str] = MappingProxyType(
    {
        "sum_mismatch": "the parts of a figure do not sum to it",
        "total_mismatch": "the provider's total is not the sum of what it counts in it",
        "negative_bucket": "a part is larger than what holds it: there is nothing that could be billed",
        "figures_differ": "one figure comes under two names, with two values; the first one is read",
        "figure_missing": "a figure that every answer of the family has is absent, and was read as 0",
        "nested_iterations": "tokens that the provider's own sums leave out are in the buckets",
        "nested_model": "some of those tokens were used by another model than the answer's",
        "billed_units_differ": "the provider bills other figures than it counted; the billed ones are read",
        "unplaced_tokens": "tokens of a kind that has no bucket are counted as text",
        "rounded_count": "a count with a fraction was rounded to the nearest whole, a half upwards",
        "unknown_tier": "it was served in a tier that is none of the contract's",
        "price_modifier": "it was served in a way that has a price of its own, and that no tier stands for",
    }
)
FLAGS = tuple(MEANINGS)
"""Everything that a reading can be flagged with. Only `negative_bucket` forbids an amount."""

FIGURE_MAX = 10**12
"""The contract's largest quantity; what is larger is no count of tokens."""

NONE: Mapping[str, Any] = MappingProxyType({})


class UnreadableUsage(ValueError):
    """No usage in it, or a figure that is no count. The text names fields and says what to do; it repeats no value."""


class Reading(NamedTuple):
    """What an answer used.

    `buckets` are exclusive tokens and `counts` other units, both without zeros; `flags` of `FLAGS`, in its order.
    `tier`: as the contract names it, None if the answer does not say. `finish_reason`: the provider's word, "" if its
    place is there and blank, None if there is no place for it. `cost_reported`: US dollars that the provider says it
    charged; to be compared with, never added to anything.
    """

    family: str
    buckets: dict[str, int]
    counts: dict[str, int]
    flags: tuple[str, ...]
    model: str | None
    tier: str | None
    finish_reason: str | None
    cost_reported: Decimal | None

    @property
    def input_tokens(self) -> int:
        """All that the model read, cached or not."""
        return sum(self.buckets.get(bucket, 0) for bucket in INPUT_BUCKETS)

    @property
    def output_tokens(self) -> int:
        """All that the model generated, reasoning included."""
        return sum(self.buckets.get(bucket, 0) for bucket in OUTPUT_BUCKETS)

    def usage(self) -> dict[str, Any]:
        """What an answer determines of the contract's `Usage`, for an event.

        A bucket below 0 is said to be 0, as the contract wants; the flag says that it waits for a person. A cost finer
        than a pico-dollar is rounded half-even.
        """
        tokens = {bucket: max(0, n) for bucket, n in self.buckets.items()}
        said: dict[str, Any] = {
            "input_tokens": sum(tokens.get(bucket, 0) for bucket in INPUT_BUCKETS),
            "output_tokens": sum(tokens.get(bucket, 0) for bucket in OUTPUT_BUCKETS),
            "tokens": tokens,
            "counts": {unit: max(0, n) for unit, n in self.counts.items()},
            "flags": list(self.flags),
        }
        if self.tier is not None:
            said["tier"] = self.tier
        if self.finish_reason:
            said["finish_reason"] = self.finish_reason
        if self.cost_reported is not None:
            said["cost_reported_pico"] = str(round(self.cost_reported.scaleb(12)))
        return said


class Draft:
    """A reading in the making."""

    __slots__ = ("buckets", "counts", "flags")

    def __init__(self) -> None:
        self.buckets: dict[str, int] = {}
        self.counts: dict[str, int] = {}
        self.flags: set[str] = set()

    def put(self, bucket: str, tokens: int) -> None:
        """Adds tokens; a part that is too large leaves a negative rest, which is kept and flagged."""
        if tokens:
            self.buckets[bucket] = self.buckets.get(bucket, 0) + tokens
            if tokens < 0:
                self.flags.add("negative_bucket")

    def count(self, unit: str, n: int | None) -> None:
        """Adds to a count; one below 0 is nothing that could be billed either."""
        if n:
            self.counts[unit] = self.counts.get(unit, 0) + n
            if n < 0:
                self.flags.add("negative_bucket")

    def compare(self, flag: str, stated: int | None, found: int) -> None:
        """Flags a figure that the provider states and that is not what was found."""
        if stated is not None and stated != found:
            self.flags.add(flag)

    def total(self, stated: int | None, beside: int = 0) -> None:
        """Compares the provider's total with all buckets, less the tokens that it counts `beside` its total."""
        self.compare("total_mismatch", stated, sum(self.buckets.values()) - beside)

    def required(self, figure: int | None) -> int:
        """A figure that the family always has."""
        if figure is None:
            self.flags.add("figure_missing")
            return 0
        return figure

    def input(
        self,
        figure: int,
        read: int = 0,
        writes: tuple[int, int] = (0, 0),
        kinds: Mapping[str, int] = NONE,
        read_kinds: Mapping[str, int] = NONE,
    ) -> None:
        """An input figure with everything inside it: cache reads and writes (5 minutes, 1 hour), and what is no text.

        `kinds` splits the whole figure by kind (cached tokens included), `read_kinds` the cache reads. The contract
        has a bucket for cached audio only: cached images and video are `cache_read`.
        """
        audio_read = read_kinds.get("audio", 0)
        rest = figure - read - writes[0] - writes[1]
        for kind in ("audio", "image", "video"):
            if tokens := kinds.get(kind):
                tokens -= read_kinds.get(kind, 0)
                self.put(f"input_{kind}", tokens)
                rest -= tokens
        self.put("input", rest)
        self.put("cache_read", read - audio_read)
        self.put("cache_read_audio", audio_read)
        self.put("cache_write_5m", writes[0])
        self.put("cache_write_1h", writes[1])
        self._whole(figure, kinds)
        self._whole(read, read_kinds)

    def output(self, figure: int, reasoning: int = 0, kinds: Mapping[str, int] = NONE, rest: str = "output") -> None:
        """An output figure with everything inside it; what is left is `rest`."""
        audio, image = kinds.get("audio", 0), kinds.get("image", 0)
        # A split that names text says all: reasoning is text, and nothing is left for another kind.
        self.put("output" if "text" in kinds else rest, figure - reasoning - audio - image)
        self.put("reasoning", reasoning)
        self.put("output_audio", audio)
        self.put("output_image", image)
        self._whole(figure, kinds)

    def _whole(self, figure: int, kinds: Mapping[str, int]) -> None:
        """A split that names text is a whole one. Without it, what is not named is text."""
        if "text" in kinds:
            self.compare("sum_mismatch", figure, sum(kinds.values()))


def figure(part: Mapping[str, Any], *names: str) -> int | None:
    """The first of these figures that is there; null is absent, 0 is not."""
    for name in names:
        value = part.get(name)
        if value is not None:
            # bool is an int to isinstance, and no count.
            return value if type(value) is int and -FIGURE_MAX <= value <= FIGURE_MAX else _whole(value, name)
    return None


def same(draft: Draft, found: list[int | None]) -> int:
    """One figure that comes in several places: the first one there; 0 if it is nowhere."""
    stated = [value for value in found if value is not None]
    if not stated:
        return 0
    if any(value != stated[0] for value in stated):
        draft.flags.add("figures_differ")
    return stated[0]


def part(holder: Mapping[str, Any], *names: str) -> Mapping[str, Any]:
    """The first of these objects that is there; an empty one if none is."""
    for name in names:
        value = holder.get(name)
        if value is not None:
            if isinstance(value, Mapping):
                return value
            raise UnreadableUsage(f"{name} is no object: pass the provider's answer as it came")
    return NONE


def items(holder: Mapping[str, Any], *names: str) -> list[Mapping[str, Any]]:
    """The objects in the first of these arrays that is there."""
    for name in names:
        value = holder.get(name)
        if isinstance(value, list | tuple):
            return [item for item in value if isinstance(item, Mapping)]
    return []


def text(holder: Mapping[str, Any], *names: str) -> str | None:
    """The first of these texts that is there and not blank."""
    for name in names:
        value = holder.get(name)
        if isinstance(value, str) and value.strip():
            return value
    return None


def number(value: Any) -> Decimal | None:
    """A finite number, exactly as it was written; None if it is none."""
    if isinstance(value, bool) or not isinstance(value, int | float | Decimal):
        return None
    exact = Decimal(repr(value)) if isinstance(value, float) else Decimal(value)
    return exact if exact.is_finite() else None


def _whole(value: Any, name: str) -> int:
    exact = number(value)
    if exact is None or not -FIGURE_MAX <= exact <= FIGURE_MAX or exact != int(exact):
        raise UnreadableUsage(
            f"{name} is no whole number of at most {FIGURE_MAX}: pass the provider's answer as it came"
        )
    return int(exact)
