"""The emitter's own account: what it sent, and what must have become of it. The mesh's books are held against it."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import Any, NamedTuple


@dataclass(slots=True)
class ModelUse:
    """What one model was asked for by workspaces that keep a request log."""

    generations: int = 0
    input_tokens: int = 0
    output_tokens: int = 0


@dataclass(slots=True)
class Account:
    """Counted while sending, in the words of the books.

    `emitted`: records on the generations topic. Each is in exactly one class at the end: `rated` (corrections too),
    `duplicates`, `dead_lettered` by reason, `quarantined` by reason. `conflicts` are those duplicates that say
    something else under the same id. Money in pico-dollars, repeats counted once.
    """

    emitted: int = 0
    rated: int = 0
    duplicates: int = 0
    conflicts: int = 0
    dead_lettered: Counter[str] = field(default_factory=Counter)
    quarantined: Counter[str] = field(default_factory=Counter)
    awaited_price: int = 0
    """Of `rated`: used a model before its price was known."""
    late: int = 0
    corrections: int = 0
    odd_headers: int = 0
    by_model: dict[str, ModelUse] = field(default_factory=dict)
    payments_sent: int = 0
    payments: int = 0
    prices: int = 0
    purchases: int = 0
    purchases_pico: int = 0
    refunds_pico: int = 0
    disputes_pico: int = 0
    grants_pico: int = 0
    openings_pico: int = 0

    @property
    def records(self) -> int:
        """Everything sent, on all topics."""
        return self.emitted + self.payments_sent + self.prices

    def used(self, model: str, input_tokens: int, output_tokens: int, generations: int = 1) -> None:
        """Adds to what the rollup by model must show."""
        use = self.by_model.setdefault(model, ModelUse())
        use.generations += generations
        use.input_tokens += input_tokens
        use.output_tokens += output_tokens

    def as_dict(self) -> dict[str, Any]:
        """For programs: money as strings."""
        said: dict[str, Any] = asdict(self)
        for name, value in said.items():
            if name.endswith("_pico"):
                said[name] = str(value)
        return said


class Comparison(NamedTuple):
    """One figure, as the gateway counted it and as the mesh's books have it."""

    what: str
    gateway: Any
    mesh: Any

    @property
    def equal(self) -> bool:
        """Exactly, or not at all."""
        return bool(self.gateway == self.mesh)


def compare(
    account: Account,
    books: Mapping[str, Any],
    *,
    dead_letters: Mapping[str, int],
    quarantine: Mapping[str, int],
    by_model: Mapping[str, ModelUse],
    purchases_pico: int,
    conflicts: int,
) -> list[Comparison]:
    """The mesh's books, figure by figure, against the emitter's account. `books` is the JSON of `steward check`."""
    return [
        Comparison("emitted", account.emitted, books.get("emitted")),
        Comparison("missing", 0, books.get("missing")),
        Comparison("rated", account.rated, books.get("rated")),
        Comparison("duplicates", account.duplicates, books.get("duplicates")),
        Comparison("conflicts", account.conflicts, conflicts),
        Comparison("quarantined", account.quarantined.total(), books.get("quarantined")),
        Comparison("quarantined, by reason", dict(account.quarantined), dict(quarantine)),
        Comparison("dead_lettered", account.dead_lettered.total(), books.get("dead_lettered")),
        Comparison("dead letters, by reason", dict(account.dead_lettered), dict(dead_letters)),
        Comparison("erased", 0, books.get("erased")),
        Comparison("usage by model", account.by_model, dict(by_model)),
        Comparison("credit bought, pico-dollars", account.purchases_pico, purchases_pico),
    ]
