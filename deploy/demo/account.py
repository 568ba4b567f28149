"""The emitter's own account: what it sent, and what must have become of it. The mesh's books are held against it."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, fields
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

    One account is deleted meanwhile. Of `rated`, `leaving` is its usage: rated, or dropped as `erased` if it is read when
    the account is erased already. `leaving_late` of it was sent after that was certain. Which is which for the rest only
    the order of arrival decides: their sum is exact.
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
    disputes_won_pico: int = 0
    grants_pico: int = 0
    openings_pico: int = 0
    leaving: int = 0
    leaving_late: int = 0
    credited: Counter[str] = field(default_factory=Counter)
    """By workspace: all credit given and taken back; what it has spent is this less its balance."""

    @property
    def paid_pico(self) -> int:
        """Money of purchases that the platform still has, without fees."""
        return self.purchases_pico - self.refunds_pico - self.disputes_pico + self.disputes_won_pico

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
        """For programs: money as strings, as everywhere."""
        said: dict[str, Any] = {}
        for field_ in fields(self):
            value = getattr(self, field_.name)
            if field_.name == "credited":
                value = {workspace: str(credit) for workspace, credit in value.items()}
            elif field_.name == "by_model":
                value = {model: asdict(use) for model, use in value.items()}
            elif isinstance(value, Counter):
                value = dict(value)
            elif field_.name.endswith("_pico"):
                value = str(value)
            said[field_.name] = value
        return said


class Between(NamedTuple):
    """What the gateway can say where the order of arrival decides: at least `low`, at most `high`."""

    low: int
    high: int


class Comparison(NamedTuple):
    """One figure, as the gateway counted it and as the mesh has it."""

    what: str
    gateway: Any
    mesh: Any

    @property
    def equal(self) -> bool:
        """Exactly, or not at all; where arrival decides, within the bounds."""
        if isinstance(self.gateway, Between):
            return isinstance(self.mesh, int) and self.gateway.low <= self.mesh <= self.gateway.high
        return bool(self.gateway == self.mesh)


@dataclass(frozen=True, slots=True)
class Found:
    """What the mesh says, gathered from its reads and its topics.

    `books`: the JSON of `steward check`. `dead_letters` and `quarantine`: by reason. `ledger`: sums by kind of account
    over all legal classes, pico-dollars. `published`: the newest balance of each workspace on the balances topic;
    `balances`: billing's own.
    """

    books: Mapping[str, Any]
    dead_letters: Mapping[str, int]
    quarantine: Mapping[str, int]
    by_model: Mapping[str, ModelUse]
    ledger: Mapping[str, int]
    published: Mapping[str, int]
    balances: Mapping[str, int]


def compare(account: Account, found: Found) -> list[Comparison]:
    """The mesh against the emitter's account, figure by figure."""
    books = found.books
    payments = books.get("payments") or {}
    ledger = Counter(found.ledger)
    spent = sum(account.credited[workspace] - found.published.get(workspace, 0) for workspace in account.credited)
    spent -= sum(balance for workspace, balance in found.published.items() if workspace not in account.credited)
    # What the account that left had not used ended with it.
    spent -= ended_pico(ledger)
    rated, erased = books.get("rated"), books.get("erased")
    both = None if rated is None or erased is None else rated + erased
    return [
        Comparison("emitted", account.emitted, books.get("emitted")),
        Comparison("missing", 0, books.get("missing")),
        Comparison("rated and erased", account.rated, both),
        Comparison("rated", _but(account, account.rated), rated),
        Comparison("erased", Between(account.leaving_late, account.leaving), erased),
        Comparison("duplicates", account.duplicates, books.get("duplicates")),
        Comparison("of them conflicts", account.conflicts, books.get("conflicts")),
        Comparison("dead-lettered", account.dead_lettered.total(), books.get("dead_lettered")),
        Comparison("dead letters by reason", dict(account.dead_lettered), dict(found.dead_letters)),
        Comparison("quarantined", account.quarantined.total(), books.get("quarantined")),
        Comparison("quarantine by reason", dict(account.quarantined), dict(found.quarantine)),
        Comparison("usage by model", account.by_model, dict(found.by_model)),
        Comparison("payment records", account.payments_sent, payments.get("records")),
        Comparison("of them repeats", account.payments_sent - account.payments, payments.get("repeated")),
        Comparison(
            "credit bought, less refunds and disputes", account.paid_pico, ledger["payment_clearing"] + ledger["fees"]
        ),
        Comparison("credit granted", account.grants_pico, ledger["promotions"]),
        Comparison("opening balances", account.openings_pico, ledger["opening"]),
        Comparison("credit given less balances = charges", spent, _whole(books.get("charges_pico"))),
        Comparison("balances published = billing's", dict(found.balances), dict(found.published)),
    ]


def ended_pico(ledger: Mapping[str, int]) -> int:
    """Unused credit that ended, in pico-dollars: no grant of the demo expires within it, so it is the leaver's."""
    return -(ledger.get("breakage", 0) + ledger.get("suspense_erased", 0))


def _but(account: Account, rated: int) -> Between:
    return Between(rated - account.leaving, rated - account.leaving_late)


def _whole(text: Any) -> int | None:
    """An amount from JSON; None where there is none."""
    return None if text is None else int(text)
