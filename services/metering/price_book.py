"""The price book: which price version rates a generation.

Bitemporal. A version *speaks* at an event time if that lies in its validity (and in its daily window); it is
*usable* at a LogAppendTime if Steward knew it then and it was not held then. For (provider, model, tier,
event time, LogAppendTime of the record):

1. Of the versions that speak and were usable: a price for the very name on the wire before one for the
   catalogue's name of that model; then the latest known_from; then a windowed one before one for the whole
   day; then the latest valid_from; then the greater version id.
2. If none was usable yet: of those that speak, the one that became usable first (the release of a quarantined
   generation), ties as in 1.

So a record rates alike whenever it is replayed, whatever has been published since. The event time
(CloudEvents `time`), not the time of arrival, chooses validity and the hours of the day.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from datetime import UTC, datetime
from typing import NamedTuple, Protocol

from services.metering.price_version import BEGINNING, PriceVersion
from services.metering.pricing import Card, Unpriced

END = datetime.max.replace(tzinfo=UTC)
_NAMES_MAX = 65_536
"""Names on the wire come from outside: the caches start again when they are full."""

UNKNOWN_MODEL = Unpriced("unknown_model")
NOT_IN_FORCE = Unpriced("unknown_price", "in_force")


class Resolved(NamedTuple):
    """The catalogue's identity of a model. `borrowed`: another provider's price stands in, which is known for
    the standard tier only."""

    provider: str
    model: str
    borrowed: bool = False


class Catalogue(Protocol):
    """Knows models by the names that gateways use, and their first prices. Deterministic; no network."""

    def resolve(self, provider: str, model: str) -> Resolved | None:
        """The model that a name on the wire means."""
        ...

    def versions(self, provider: str, model: str) -> Sequence[PriceVersion]:
        """The first prices of a model, by its catalogue identity, all tiers."""
        ...

    def version(self, version: str) -> PriceVersion | None:
        """One of the first prices, by its version id."""
        ...


class _Candidate(NamedTuple):
    card: Card
    valid_from: datetime
    valid_to: datetime
    known_from: datetime
    simple: bool
    """Neither window nor holds: the three instants say everything."""

    @property
    def always(self) -> bool:
        return self.simple and self.valid_from == self.known_from == BEGINNING and self.valid_to == END


_ModelKey = tuple[str, str]


class PriceBook:
    """All versions that this process knows. `add` is idempotent by version id and replaces (a hold, a
    release)."""

    def __init__(self, versions: Iterable[PriceVersion] = (), catalogue: Catalogue | None = None) -> None:
        self._catalogue = catalogue
        self._by_model: dict[_ModelKey, dict[str, PriceVersion]] = {}
        self._by_version: dict[str, PriceVersion] = {}
        self._cards: dict[str, Card] = {}
        self._seeded: set[_ModelKey] = set()
        self._resolved: dict[_ModelKey, Resolved | None] = {}
        # Per (provider, model, tier) on the wire: one answer for all times, or candidates in order of
        # preference.
        self._answers: dict[tuple[str, str, str], Card | Unpriced] = {}
        self._candidates: dict[tuple[str, str, str], tuple[_Candidate, ...]] = {}
        for version in versions:
            self._put(version)

    def add(self, version: PriceVersion) -> None:
        """Take in a version, or what has since been said about it."""
        self._put(version)
        self._forget()

    def version(self, version: str) -> PriceVersion | None:
        """A version by its id (also one of the catalogue's that rated nothing yet)."""
        found = self._by_version.get(version)
        return found if found is not None or self._catalogue is None else self._catalogue.version(version)

    def card_of(self, version: PriceVersion) -> Card:
        """The compiled version; compiled once."""
        card = self._cards.get(version.version)
        if card is None or card.version != version:
            card = self._cards[version.version] = Card(version)
        return card

    def versions_of(self, provider: str, model: str) -> list[PriceVersion]:
        """Every version that a name on the wire can be rated by, the preferred first."""
        return self._ranked(provider, model, None)

    def card(self, provider: str, model: str, tier: str, event_at: datetime, known_at: datetime) -> Card | Unpriced:
        """The card that rates a generation; see the module for the choice. Both instants are aware; names are
        as on the wire."""
        name = (provider, model, tier)
        answer = self._answers.get(name)
        if answer is not None:
            return answer
        candidates = self._candidates.get(name)
        if candidates is None:
            return self._open(name, event_at, known_at)
        for card, valid_from, valid_to, known_from, simple in candidates:
            if not (valid_from <= event_at < valid_to and known_from <= known_at):
                continue
            if simple or (card.version.valid_at(event_at) and card.version.usable_at(known_at)):
                return card
        return _first_usable(candidates, event_at, known_at)

    def standing(self, provider: str, model: str, tier: str) -> Card | None:
        """The card of a name and tier if it is the same at all times; None if not, or if it is not asked for yet."""
        answer = self._answers.get((provider, model, tier))
        return answer if isinstance(answer, Card) else None

    def _open(self, name: tuple[str, str, str], event_at: datetime, known_at: datetime) -> Card | Unpriced:
        """Work out and keep what the hot path needs for one name and tier, then answer."""
        if len(self._answers) + len(self._candidates) >= _NAMES_MAX:
            self._forget()
        provider, model, tier = name
        candidates = tuple(_candidate(self.card_of(version)) for version in self._ranked(provider, model, tier))
        if not candidates:
            known = bool(self._ranked(provider, model, None))
            self._answers[name] = Unpriced("unknown_price", f"tier:{tier}") if known else UNKNOWN_MODEL
        elif candidates[0].always:
            self._answers[name] = candidates[0].card
        else:
            self._candidates[name] = candidates
        return self.card(provider, model, tier, event_at, known_at)

    def _forget(self) -> None:
        self._answers.clear()
        self._candidates.clear()

    def _ranked(self, provider: str, model: str, tier: str | None) -> list[PriceVersion]:
        """The versions of a name on the wire, the preferred first; of one tier, or of all."""
        ranked: dict[str, tuple[PriceVersion, int]] = {}
        for exactness, (key, borrowed) in enumerate(reversed(self._keys(provider, model))):
            for version in self._models(key).values():
                if (tier is None or version.tier == tier) and not (borrowed and version.tier != "standard"):
                    ranked[version.version] = (version, exactness)
        return [version for version, _ in sorted(ranked.values(), key=_precedence, reverse=True)]

    def _keys(self, provider: str, model: str) -> list[tuple[_ModelKey, bool]]:
        """Where to look for a name, the most exact place first; True = borrowed from another provider."""
        name = (provider.lower(), model.lower())
        keys: dict[_ModelKey, bool] = {name: False}
        resolved = self._resolve(name)
        if resolved is not None:
            keys.setdefault((name[0], resolved.model.lower()), False)
            keys.setdefault((resolved.provider.lower(), resolved.model.lower()), resolved.borrowed)
        return list(keys.items())

    def _resolve(self, name: _ModelKey) -> Resolved | None:
        if self._catalogue is None:
            return None
        if name not in self._resolved:
            if len(self._resolved) >= _NAMES_MAX:
                self._resolved.clear()
            self._resolved[name] = resolved = self._catalogue.resolve(*name)
            if resolved is not None:
                self._seed(resolved)
        return self._resolved[name]

    def _seed(self, resolved: Resolved) -> None:
        """Load a model's first prices when its name is first met: the catalogue holds thousands, a platform
        uses dozens."""
        key = (resolved.provider.lower(), resolved.model.lower())
        if self._catalogue is not None and key not in self._seeded:
            self._seeded.add(key)
            for version in self._catalogue.versions(resolved.provider, resolved.model):
                # What a store remembers of it (a hold) counts more than the catalogue's first word.
                if version.version not in self._by_version:
                    self._put(version)

    def _models(self, key: _ModelKey) -> dict[str, PriceVersion]:
        return self._by_model.get(key, {})

    def _put(self, version: PriceVersion) -> None:
        known = self._by_version.get(version.version)
        key = (version.provider.lower(), version.model.lower())
        if known is not None and (known.provider.lower(), known.model.lower()) != key:
            raise ValueError(f"price version {known.version} names two models: {known.model!r} and {version.model!r}")
        self._by_version[version.version] = version
        self._by_model.setdefault(key, {})[version.version] = version


def _precedence(ranked: tuple[PriceVersion, int]) -> tuple[int, datetime, bool, datetime, str]:
    version, exactness = ranked
    return exactness, version.known_from, version.window is not None, version.valid_from, version.version


def _candidate(card: Card) -> _Candidate:
    version = card.version
    simple = version.window is None and not version.holds
    return _Candidate(card, version.valid_from, version.valid_to or END, version.known_from, simple)


def _first_usable(candidates: Iterable[_Candidate], event_at: datetime, known_at: datetime) -> Card | Unpriced:
    """Nothing was usable yet: whatever became usable first. `min` keeps the first of equals, and they come in
    the order of rule 1."""
    later = [
        (usable_from, candidate.card)
        for candidate in candidates
        if candidate.card.version.valid_at(event_at)
        and (usable_from := candidate.card.version.usable_from(known_at)) is not None
    ]
    return min(later, key=lambda found: found[0])[1] if later else NOT_IN_FORCE
