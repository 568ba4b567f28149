"""The world that the simulated gateway serves: models and their prices, workspaces and their habits. All seeded."""

from __future__ import annotations

from bisect import bisect
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from itertools import accumulate
from random import Random
from typing import Generic, TypeVar

from services.metering.price_book import PriceBook
from services.metering.pricing import Unpriced

_T = TypeVar("_T")


class Draw(Generic[_T]):
    """Draws from weighted choices, quickly."""

    def __init__(self, weighted: Iterable[tuple[_T, float]]) -> None:
        pairs = [(value, weight) for value, weight in weighted if weight > 0]
        if not pairs:
            raise ValueError("there is nothing to draw from")
        self.values = [value for value, _ in pairs]
        self._sums = list(accumulate(weight for _, weight in pairs))

    def __call__(self, random: Random) -> _T:
        """One of the values, by weight."""
        return self.values[bisect(self._sums, random.random() * self._sums[-1])]


@dataclass(frozen=True, slots=True)
class Habits:
    """How a model is used: shares of requests or tokens, 0 to 1, and the median request."""

    share: float
    input_median: int = 900
    output_median: int = 220
    cached: float = 0.3
    cache_writes: bool = False
    reasons: bool = False
    images: float = 0.0
    searches: float = 0.0
    requests_counted: bool = False
    long_context: int = 0
    """Tokens above which the model has another price; a few requests pass it."""


@dataclass(frozen=True, slots=True)
class Model:
    """A model on offer, with the tiers that are priced now (and were, a window ago)."""

    provider: str
    name: str
    habits: Habits
    tiers: tuple[str, ...] = ("standard",)


_OFFERED: Sequence[tuple[str, str, Habits]] = (
    ("openai", "gpt-5-mini", Habits(0.22, 1_100, 260, reasons=True)),
    ("openai", "gpt-4o", Habits(0.12, 900, 240, images=0.06, searches=0.02)),
    ("openai", "gpt-5.2", Habits(0.07, 2_400, 520, reasons=True)),
    ("openai", "text-embedding-3-small", Habits(0.08, 600, 0, cached=0.0)),
    (
        "anthropic",
        "claude-sonnet-4-5",
        Habits(0.15, 3_800, 420, cached=0.6, cache_writes=True, searches=0.01, long_context=200_000),
    ),
    ("anthropic", "claude-haiku-4-5", Habits(0.10, 1_400, 210, cached=0.5, cache_writes=True)),
    ("anthropic", "claude-opus-4-5", Habits(0.03, 5_200, 760, cached=0.6, cache_writes=True)),
    ("google", "gemini-2.5-flash", Habits(0.10, 1_300, 300, reasons=True, images=0.03)),
    ("google", "gemini-2.5-pro", Habits(0.05, 4_000, 600, reasons=True, searches=0.02, long_context=200_000)),
    ("groq", "llama-3.3-70b-versatile", Habits(0.04, 800, 180, cached=0.0)),
    ("deepseek", "deepseek-chat", Habits(0.02, 1_200, 350)),
    ("x-ai", "grok-4", Habits(0.01, 1_500, 400, reasons=True)),
    ("perplexity", "sonar-pro", Habits(0.01, 300, 380, cached=0.0, requests_counted=True)),
)
LATER_PRICED = Model("lumen", "lumen-2-large", Habits(0.0, 1_600, 300, cached=0.0))
"""A new model that customers use before its price is known; the price comes while the demo runs."""

NEVER_PRICED = Model("lumen", "lumen-3-preview", Habits(0.0, 900, 200, cached=0.0))
"""A model whose price nobody tells: its usage waits, and is seen to wait."""

LATER_PRICES: Mapping[str, str] = {"input": "0.0000012", "output": "0.0000048"}
"""US dollars for one token of `LATER_PRICED`."""


def offered(book: PriceBook, since: datetime, until: datetime) -> list[Model]:
    """The models and tiers with a price from `since` to `until`; what is not priced throughout is not offered."""
    models = []
    for provider, name, habits in _OFFERED:
        tiers = tuple(
            tier
            for tier in ("standard", "priority", "flex", "batch")
            if all(not isinstance(book.card(provider, name, tier, at, until), Unpriced) for at in (since, until))
        )
        if "standard" in tiers and _bills(book, provider, name, habits, tiers, since, until):
            models.append(Model(provider, name, habits, tiers))
    for model in (LATER_PRICED, NEVER_PRICED):
        if not isinstance(book.card(model.provider, model.name, "standard", until, until), Unpriced):
            raise ValueError(f"{model.name} has a price already: the demo needs a model without one")
    if len(models) < 3:
        raise ValueError("too few models have a price in this period: is the clock right?")
    return models


def _bills(
    book: PriceBook, provider: str, name: str, habits: Habits, tiers: Sequence[str], since: datetime, until: datetime
) -> bool:
    """Whether every unit that the model's habits can produce has a price in every tier offered."""
    units = ["input"]
    units += ["output"] if habits.output_median else []
    units += ["cache_read"] if habits.cached else []
    units += ["cache_write_5m", "cache_write_1h"] if habits.cache_writes else []
    units += ["reasoning"] if habits.reasons else []
    units += ["input_image"] if habits.images else []
    units += ["web_search"] if habits.searches else []
    units += ["request"] if habits.requests_counted else []
    for tier in tiers:
        for at in (since, until):
            card = book.card(provider, name, tier, at, until)
            if isinstance(card, Unpriced) or any(unit not in card.prices for unit in units):
                return False
    return True


# --- workspaces --------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Workspace:
    """Who pays, and how the workspace uses the gateway."""

    name: str
    account: str
    keys: tuple[str, ...]
    jurisdiction: str
    log_retention_days: int
    byok: float
    """Share of its requests that go out with its own provider key."""
    data_sharing: bool
    weight: float
    models: Draw[Model]
    chats: Draw[Model]
    """Of its models those that answer in tokens."""


_COLOURS = (
    "amber", "azure", "blue", "coral", "dune", "ember", "fern", "gold", "green", "hazel", "indigo", "ivory", "jade",
    "lilac", "mint", "moss", "ochre", "olive", "pearl", "plum", "red", "rose", "rust", "sage", "sand", "silver", "slate",
    "teal", "umber", "violet",
)  # fmt: skip
_ANIMALS = (
    "badger", "bison", "crane", "curlew", "egret", "falcon", "finch", "fox", "gecko", "hare", "heron", "ibex", "ibis",
    "kestrel", "lark", "lynx", "marten", "newt", "orca", "osprey", "otter", "owl", "puffin", "raven", "seal", "stoat",
    "swift", "tern", "viper", "wren",
)  # fmt: skip
_JURISDICTIONS = Draw((("US", 0.55), ("DE", 0.15), ("FR", 0.1), ("GB", 0.1), ("JP", 0.06), ("BR", 0.04)))
_RETENTION_DAYS = Draw(((30, 0.62), (0, 0.14), (7, 0.1), (14, 0.06), (90, 0.08)))
_ZIPF = 1.1
WORKSPACES_MAX = len(_COLOURS) * len(_ANIMALS)


def workspaces(random: Random, count: int, models: Sequence[Model]) -> list[Workspace]:
    """`count` workspaces, the busiest first; an account owns one to three of them.

    The first ones are made so that every rule has somebody to show it: one without a request log, one with its own
    provider keys, one that shares its data.
    """
    if not 4 <= count <= WORKSPACES_MAX:
        raise ValueError(f"a demo has 4 to {WORKSPACES_MAX} workspaces, not {count}")
    names = random.sample([f"{colour}-{animal}" for colour in _COLOURS for animal in _ANIMALS], count)
    made: list[Workspace] = []
    account, owned = "", 0
    for rank, name in enumerate(names):
        if owned == 0:
            account, owned = f"acct-{name}", random.choice((1, 1, 1, 2, 3))
        owned -= 1
        favourites = [(model, model.habits.share * random.uniform(0.2, 3.0) ** 2) for model in models]
        made.append(
            Workspace(
                name=name,
                account=account,
                keys=tuple(f"key-{name}-{n}" for n in range(1, random.randint(1, 4) + 1)),
                jurisdiction=_JURISDICTIONS(random),
                log_retention_days=(30, 90, 0)[rank] if rank < 3 else _RETENTION_DAYS(random),
                byok=0.5 if rank == 1 or random.random() < 0.06 else 0.0,
                data_sharing=rank == 3 or random.random() < 0.08,
                weight=1 / (rank + 1) ** _ZIPF,
                models=Draw(favourites),
                chats=Draw((model, weight) for model, weight in favourites if model.habits.output_median),
            )
        )
    return made


# Workspaces up to this rank, and those with an opening balance, have parts of their own in the story.
_BUSY_RANKS = 6
_OPENED = (3, 10)


def leaver(made: Sequence[Workspace]) -> str:
    """The account that will ask for its deletion: the busiest of those that have no other part to play."""
    taken = {workspace.account for rank, workspace in enumerate(made) if rank < _BUSY_RANKS or rank in _OPENED}
    weights: defaultdict[str, float] = defaultdict(float)
    logged: set[str] = set()
    for workspace in made:
        if workspace.account not in taken:
            weights[workspace.account] += workspace.weight
            logged |= {workspace.account} if workspace.log_retention_days else set()
    if not weights:
        raise ValueError("a demo needs an account that nothing else happens to")
    return max(weights, key=lambda account: (account in logged, weights[account], account))
