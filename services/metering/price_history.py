"""A public price history, sent through the guard as if it happened now: what would have been held, and was it right?

The history is LiteLLM's price file as a list of changes, one `{version, known_at, model, field, old, new}` a row; the
rows of a version are one import. Nothing is used that was not known at `known_at`, and there is no second source. A
held price never comes into force, so what follows it is judged against what was in force before it; a value whose
birth lies before the history (its first row has an `old`) was in force then.

Words of the summary, all over rows whose values are numbers:

- *first price*: the first row of a model and field, from nothing. *Born wrong*: the next recorded value differs by
  100x or more; *born far off*: by 10x to 100x (real cuts are among them); *born free*: from 0, or to it, at the next
  value; *ordinary first*: all others, those that never change included.
- *ordinary change*: 0.2 < new/old < 5. *Large change*: any other between two prices above 0. *Freed or charged*: from
  or to 0. *Vanished*: to nothing. *Returned*: from nothing, not for the first time.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from datetime import datetime, timedelta
from decimal import Decimal, InvalidOperation
from statistics import median_low
from typing import Any, NamedTuple

from services.metering.guard import Change, Verdict, judge
from services.metering.guard_parameters import PARAMETERS, Parameters
from services.metering.litellm_fields import FieldMeaning, parse_field
from services.metering.market import Market, PriceKey

SOURCE = "litellm"
BORN_WRONG = 100
FAR_OFF = 10
_FIELDS = ("version", "known_at", "model", "field", "old", "new")
_SAMPLE = "sample_spec"
_DAY = timedelta(days=1)


class Row(NamedTuple):
    """A change as the history has it: `old` and `new` are whatever the file says there, null included."""

    version: int
    known_at: datetime
    model: str
    field: str
    old: Any
    new: Any


def parse_row(document: object) -> Row:
    """A row from its JSON document. Raises ValueError with what is wrong."""
    if not isinstance(document, Mapping):
        raise ValueError("expected an object with " + ", ".join(_FIELDS))
    if missing := [name for name in _FIELDS if name not in document]:
        raise ValueError(f"{missing[0]} is missing")
    version, known_at = document["version"], document["known_at"]
    if type(version) is not int:
        raise ValueError("version is no whole number")
    try:
        at = datetime.fromisoformat(known_at)
    except (TypeError, ValueError):
        raise ValueError("known_at is no ISO 8601 time") from None
    if at.tzinfo is None:
        raise ValueError("known_at has no zone")
    for name in ("model", "field"):
        if not isinstance(document[name], str):
            raise ValueError(f"{name} is no text")
    return Row(version, at, document["model"], document["field"], document["old"], document["new"])


class Judged(NamedTuple):
    """A row and its verdict: "accepted", "held" or "ignored"."""

    row: Row
    verdict: str
    reason: str


@dataclass(slots=True)
class Share:
    """So many held of so many."""

    held: int = 0
    of: int = 0

    def add(self, held: bool) -> None:
        """One more."""
        self.held += held
        self.of += 1


@dataclass(slots=True)
class Delay:
    """Held prices until a value of the same model and field was accepted, in whole days; `never`: none was, until
    the end of the history."""

    held: int = 0
    never: int = 0
    days_median: int | None = None
    days_max: int | None = None
    _days: list[int] = field(default_factory=list)

    def add(self, waited: timedelta | None) -> None:
        """One held price; None = never."""
        self.held += 1
        if waited is None:
            self.never += 1
        else:
            self._days.append((waited + _DAY // 2) // _DAY)
            self.days_median, self.days_max = median_low(self._days), max(self._days)


KINDS = (
    "born_wrong", "born_far_off", "born_free", "ordinary_first", "ordinary_change", "large_change",
    "freed_or_charged", "returned", "vanished",
)  # fmt: skip
_DELAYED = ("corrections", "ordinary_first", "ordinary_change", "large_change")


@dataclass(slots=True)
class Summary:
    """What the guard did to the history; see the module for the words.

    `imports`: one provider's part of a version; of those with such prices, how many had all of them held, and each
    one with prices born wrong. `corrections`: the values that follow those born wrong. `delays`: of what was held
    though it was probably right.
    """

    rows: int
    verdicts: dict[str, int]
    held_reasons: dict[str, int]
    prices: dict[str, Share]
    imports: dict[str, Share]
    imports_born_wrong: list[dict[str, Any]]
    corrections: Share
    delays: dict[str, Delay]
    parameters: dict[str, int]

    def as_dict(self) -> dict[str, Any]:
        """For programs."""
        plain = asdict(self)
        for delay in plain["delays"].values():
            del delay["_days"]
        return plain


class Replayed(NamedTuple):
    """Every row in its order, its kind (one of `KINDS`, or "" for what is no price), and the sum."""

    changes: list[Judged]
    kinds: list[str]
    summary: Summary


def replay(rows: Sequence[Row], parameters: Parameters = PARAMETERS) -> Replayed:
    """Sends a history through the guard, version by version."""
    verdicts = _Replay(rows, parameters).verdicts()
    changes = []
    for row, verdict in zip(rows, verdicts, strict=True):
        if isinstance(verdict, str):
            changes.append(Judged(row, "ignored", verdict))
        else:
            reason = f"{verdict.reason}: {verdict.detail}" if verdict.detail else verdict.reason
            changes.append(Judged(row, "held" if verdict.held else "accepted", reason))
    kinds = _kinds(rows, changes)
    return Replayed(changes, kinds, _summary(changes, kinds, _providers(rows), parameters))


class _Replay:
    def __init__(self, rows: Sequence[Row], parameters: Parameters) -> None:
        self._rows = rows
        self._parameters = parameters
        self._market = Market()
        self._provider: dict[str, str] = {}
        self._keys: dict[tuple[str, str], PriceKey] = {}
        self._fields: dict[PriceKey, str] = {}

    def verdicts(self) -> list[Verdict | str]:
        """Of each row; a text says why it is ignored."""
        found: list[Verdict | str] = [""] * len(self._rows)
        versions: dict[int, list[int]] = defaultdict(list)
        for place, row in enumerate(self._rows):
            versions[row.version].append(place)
        for version in sorted(versions):
            self._learn_providers(versions[version])
            changes: dict[int, Change] = {}
            named: set[PriceKey] = set()
            for place in versions[version]:
                change = self._change(self._rows[place])
                if isinstance(change, str):
                    found[place] = change
                elif change.key in named:
                    found[place] = "the version names this price twice"
                else:
                    named.add(change.key)
                    changes[place] = change
            judged = judge(self._market, list(changes.values()), SOURCE, self._parameters)
            for place, change, verdict in zip(changes, changes.values(), judged, strict=True):
                found[place] = verdict
                if not verdict.held:
                    self._market.put(change.key, change.new)
        return found

    def _learn_providers(self, places: Iterable[int]) -> None:
        for place in places:
            _, _, model, name, _, new = self._rows[place]
            if name == "litellm_provider" and isinstance(new, str):
                self._provider.setdefault(model, new)

    def _change(self, row: Row) -> Change | str:
        """The change against what is in force, or why the row is ignored."""
        meaning = parse_field(row.field)
        if meaning is None:
            return "no price"
        if row.model == _SAMPLE:
            return "the file's own example"
        old, new = price_of(row.old, meaning), price_of(row.new, meaning)
        if new is None and row.new is not None:
            return "no number"
        known = (row.model, row.field)
        if known not in self._keys:
            self._keys[known] = key = self._key(row, meaning)
            if old is not None and old >= 0:
                self._market.put(key, old)
        key = self._keys[known]
        return Change(key, self._market.price(key), new)

    def _key(self, row: Row, meaning: FieldMeaning) -> PriceKey:
        """Two fields of one meaning (a new name beside the old one) are two prices here."""
        provider = provider_of(row.model, self._provider.get(row.model))
        key = PriceKey(provider, row.model, meaning.tier, meaning.unit, meaning.above)
        if self._fields.setdefault(key, row.field) != row.field:
            key = key._replace(unit=row.field)
        return key


def price_of(value: object, meaning: FieldMeaning) -> Decimal | None:
    """Dollars per one unit, exactly as written; a text that is a number is one. None = no number."""
    if isinstance(value, bool) or not isinstance(value, int | float | Decimal | str):
        return None
    try:
        price = Decimal(value if isinstance(value, str | Decimal) else repr(value))
    except InvalidOperation:
        return None
    return meaning.per_unit(price) if price.is_finite() else None


def provider_of(model: str, named: str | None) -> str:
    """Who sells the model: LiteLLM's `litellm_provider` without the service's kind ("vertex_ai-llama_models",
    "bedrock_converse"), else the first part of the name."""
    if named is None:
        return model.partition("/")[0] if "/" in model else "unknown"
    return named.removeprefix("text-completion-").partition("-")[0].removesuffix("_converse")


# ---- what the rows turned out to be


def _providers(rows: Sequence[Row]) -> dict[str, str]:
    named = {row.model: row.new for row in rows if row.field == "litellm_provider" and isinstance(row.new, str)}
    return {row.model: provider_of(row.model, named.get(row.model)) for row in rows}


def _kinds(rows: Sequence[Row], changes: Sequence[Judged]) -> list[str]:
    kinds = [""] * len(rows)
    series: dict[tuple[str, str], list[int]] = defaultdict(list)
    for place, (row, verdict, _) in enumerate(changes):
        if verdict != "ignored":
            series[row.model, row.field].append(place)
    for places in series.values():
        for nth, place in enumerate(places):
            following = rows[places[nth + 1]].new if nth + 1 < len(places) else None
            kinds[place] = _kind(rows[place], nth == 0, following)
    return kinds


def _kind(row: Row, first: bool, following: object) -> str:
    meaning = parse_field(row.field)
    assert meaning is not None, "a price has a meaning"
    old, new, after = price_of(row.old, meaning), price_of(row.new, meaning), price_of(following, meaning)
    if new is None:
        return "vanished"
    if old is None and not first:
        return "returned"
    if old is None:
        if after is None or after == new:
            return "ordinary_first"
        if not after or not new:
            return "born_free"
        low, high = sorted((after, new))
        return (
            "born_wrong" if high >= BORN_WRONG * low else "born_far_off" if high >= FAR_OFF * low else "ordinary_first"
        )
    if not old or not new:
        return "freed_or_charged" if old != new else "ordinary_change"
    return "ordinary_change" if old < 5 * new and new < 5 * old else "large_change"


def _summary(
    changes: Sequence[Judged], kinds: Sequence[str], providers: Mapping[str, str], parameters: Parameters
) -> Summary:
    prices = {kind: Share() for kind in KINDS}
    imports: dict[str, dict[tuple[int, str], Share]] = {kind: defaultdict(Share) for kind in KINDS}
    corrections, delays = Share(), {kind: Delay() for kind in _DELAYED}
    accepted_at: dict[tuple[str, str], datetime] = {}
    born_wrong = _corrections(changes, kinds)
    # Backwards, so that the next accepted value is known.
    for place in reversed(range(len(changes))):
        (row, verdict, _), kind = changes[place], kinds[place]
        if not kind:
            continue
        held, known = verdict == "held", (row.model, row.field)
        prices[kind].add(held)
        imports[kind][row.version, providers[row.model]].add(held)
        if place in born_wrong:
            corrections.add(held)
            kind = "corrections"
        if held and kind in delays:
            delays[kind].add(accepted_at[known] - row.known_at if known in accepted_at else None)
        if not held and row.new is not None:
            accepted_at[known] = row.known_at
    return Summary(
        rows=len(changes),
        verdicts={name: sum(item.verdict == name for item in changes) for name in ("accepted", "held", "ignored")},
        held_reasons=dict(
            Counter(item.reason.partition(":")[0] for item in changes if item.verdict == "held").most_common()
        ),
        prices=prices,
        imports={
            kind: Share(sum(share.held == share.of for share in own.values()), len(own))
            for kind, own in imports.items()
        },
        imports_born_wrong=[
            {"version": version, "provider": provider, **asdict(share)}
            for (version, provider), share in sorted(imports["born_wrong"].items())
        ],
        corrections=corrections,
        delays=delays,
        parameters=asdict(parameters),
    )


def _corrections(changes: Sequence[Judged], kinds: Sequence[str]) -> set[int]:
    """The places of the values that follow those born wrong."""
    waiting: set[tuple[str, str]] = set()
    found: set[int] = set()
    for place, ((row, _, _), kind) in enumerate(zip(changes, kinds, strict=True)):
        known = (row.model, row.field)
        if kind == "born_wrong":
            waiting.add(known)
        elif kind and known in waiting:
            waiting.remove(known)
            found.add(place)
    return found
