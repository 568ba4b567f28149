"""The books of one transaction: what the touched workspaces have, and the journals that are about to be written.

The store opens the books under the rows' locks and writes them at the end; everything between is arithmetic.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from datetime import datetime
from typing import NamedTuple

from services.billing.ledger import (
    AccountKind,
    Balances,
    BillingConfig,
    Entry,
    Grant,
    Journal,
    Leg,
    Movement,
    Unbalanced,
    balanced,
    expire,
    leave_class,
    period_of,
)


class State(NamedTuple):
    """A workspace's balance as it is published. `erased`: it is the last word about this workspace."""

    workspace: str
    version: int
    purchased_pico: int
    granted_pico: int
    receivable_pico: int
    changed_at: datetime
    erased: bool = False


_NOBODY = {"US": 0, "EU": -1, "OTHER": -2}
"""Numbers that stand for whoever is erased and cannot be told from others any more, one for each legal class."""


def numbered(workspace_id: int) -> str:
    """What a workspace goes by in the books when its name is gone: no id of the contract looks like it."""
    return f"#{workspace_id}"


@dataclass(slots=True)
class Standing:
    """One workspace within one transaction. `version` is the one before; a change raises it by one, once.

    `accounts`: its ledger accounts for purchased, granted and receivable credit in its legal class.
    `class_stated`: a payment has named the jurisdiction; until then the class is the default. `nameless`: it is erased,
    `workspace` is what `numbered` gives, and nothing of it is published.
    """

    workspace: str
    workspace_id: int
    legal_class: str
    class_stated: bool
    version: int
    balances: Balances
    accounts: tuple[int, int, int]
    granted_pico: int = 0
    """Granted credit as the balance's row has it; `load_grants` brings the grants that it is the sum of."""
    loaded_grants: tuple[Grant, ...] = ()
    changed: bool = False
    newly_stated: bool = False
    moved: bool = False
    nameless: bool = False
    erased: bool = False
    """It is being erased in this transaction."""

    @property
    def nobody(self) -> bool:
        """True for what all share who have no number any more: it has no balance, only the house's suspense."""
        return self.workspace_id <= 0

    def load_grants(self, grants: tuple[Grant, ...]) -> None:
        """The open grants, in the order in which they burn. They are the granted credit, or the books are wrong."""
        self.balances = Balances(self.balances.purchased_pico, self.balances.receivable_pico, grants)
        self.loaded_grants = grants
        if self.balances.granted_pico != self.granted_pico:
            raise Unbalanced("open grants do not sum to the granted credit")

    def state(self, changed_at: datetime) -> State:
        """What there is to publish of it."""
        if self.erased:
            return State(self.workspace, self.version, 0, 0, 0, changed_at, True)
        has = self.balances
        return State(
            self.workspace, self.version, has.purchased_pico, has.granted_pico, has.receivable_pico, changed_at
        )

    def account(self, kind: AccountKind) -> int | None:
        """The workspace's account of that kind; None if the kind is the house's."""
        if kind == "purchased":
            return self.accounts[0]
        if kind == "granted":
            return self.accounts[1]
        if kind == "receivable":
            return self.accounts[2]
        return None


@dataclass(slots=True)
class Books:
    """Standings by workspace, and the journals of this transaction."""

    now: datetime
    config: BillingConfig
    system: Mapping[tuple[str, str], int]
    """The house's accounts by (class, kind)."""
    standings: dict[str, Standing] = field(default_factory=dict)
    other_accounts: dict[tuple[int, str], tuple[int, int, int]] = field(default_factory=dict)
    """Accounts of workspaces that are about to change their class, by (workspace, new class)."""
    journals: list[Journal] = field(default_factory=list)
    granted: dict[str, int] = field(default_factory=dict)
    """What new grants are worth, after what they paid of a debt."""

    def post(
        self,
        standing: Standing,
        kind: str,
        cause: str,
        movement: Movement,
        *,
        event_at: datetime,
        digest: bytes,
        period: str | None = None,
        adjusts_period: str | None = None,
        lines_digest: bytes | None = None,
        journal_id: int = 0,
    ) -> None:
        """Books a movement of a workspace."""
        legal_class, system = standing.legal_class, self.system
        entries = []
        for leg_kind, amount in movement.legs:
            account = standing.account(leg_kind)
            entries.append(Entry(system[legal_class, leg_kind] if account is None else account, amount))
        who: int | None = standing.workspace_id
        if standing.nobody:
            entries, who = _merged(entries), None
        if entries:
            standing.balances = movement.balances
            standing.changed = True
        now = self.now
        self.journals.append(
            Journal(
                journal_id, legal_class, now.year, cause, kind, who,
                period_of(event_at) if period is None else period, now, event_at, adjusts_period, lines_digest,
                balanced(entries), digest,
            )
        )  # fmt: skip

    def admit_nobody(self) -> None:
        """Lets the books take what belongs to erased workspaces that no number is known of."""
        for legal_class, number in _NOBODY.items():
            account = self.system[legal_class, "suspense_erased"]
            name = numbered(number)
            self.standings[name] = Standing(
                name, number, legal_class, True, 0, Balances(), (account, account, account), nameless=True
            )

    def nobody(self, legal_class: str) -> Standing:
        """Whoever is erased, in a legal class."""
        return self.standings[numbered(_NOBODY[legal_class])]

    def expire_due(self) -> int:
        """Books the end of every grant that is over by now; returns how many."""
        expired = 0
        for standing in self.standings.values():
            if not standing.balances.grants:
                continue
            while (found := expire(standing.balances, self.now)) is not None:
                due, movement = found
                assert due.expires_at is not None
                cause = f"grant_expired:{due.grant}"
                self.post(standing, "grant_expiry", cause, movement, event_at=due.expires_at, digest=b"")
                expired += 1
        return expired

    def state_jurisdiction(self, standing: Standing, jurisdiction: str, event_at: datetime) -> bool:
        """A payment names the payer's jurisdiction. False if an earlier one named another legal class, which stays."""
        stated = self.config.legal_class(jurisdiction)
        if standing.class_stated:
            return standing.legal_class == stated
        standing.class_stated = standing.newly_stated = standing.changed = True
        if standing.legal_class != stated:
            self._move(standing, stated, event_at)
        return True

    def _move(self, standing: Standing, legal_class: str, event_at: datetime) -> None:
        """What was booked under the default class goes over to the stated one: one journal in each."""
        legs, balances = leave_class(standing.balances), standing.balances
        who = standing.workspace_id
        self.post(standing, "class_left", f"class_left:{who}", Movement(legs, balances), event_at=event_at, digest=b"")
        standing.legal_class, standing.moved = legal_class, True
        standing.accounts = self.other_accounts[who, legal_class]
        back = tuple(Leg(kind, -amount) for kind, amount in legs)
        self.post(
            standing, "class_entered", f"class_entered:{who}", Movement(back, balances), event_at=event_at, digest=b""
        )

    def changed(self) -> list[Standing]:
        """The workspaces whose balances this transaction changes, by id."""
        return sorted((s for s in self.standings.values() if s.changed and not s.nobody), key=lambda s: s.workspace_id)

    def by_class(self) -> Iterator[tuple[str, list[Journal]]]:
        """The journals of each legal class, classes in order; within a class by id."""
        classes: dict[str, list[Journal]] = {}
        for journal in self.journals:
            classes.setdefault(journal.legal_class, []).append(journal)
        for legal_class in sorted(classes):
            yield legal_class, sorted(classes[legal_class])

    def number(self, ids: Iterable[int]) -> None:
        """Gives journals that have no id yet the next one."""
        fresh = iter(ids)
        self.journals = [j if j.id else j._replace(id=next(fresh)) for j in self.journals]

    def unnumbered(self) -> int:
        """How many journals have no id yet."""
        return sum(1 for j in self.journals if not j.id)

    def grant_changes(self) -> tuple[list[tuple[str, int]], list[tuple[Grant, int]]]:
        """(what is left of each grant that changed, by its id), (new grants with their workspace)."""
        updates: list[tuple[str, int]] = []
        fresh: list[tuple[Grant, int]] = []
        for standing in self.standings.values():
            before = standing.loaded_grants
            after = standing.balances.grants
            if before is after or not (before or after):
                continue
            left = {g.grant: g for g in after}
            known = set()
            for grant in before:
                known.add(grant.grant)
                now = left.get(grant.grant)
                remaining = 0 if now is None else now.remaining_pico
                if remaining != grant.remaining_pico:
                    updates.append((grant.grant, remaining))
            fresh += [(g, standing.workspace_id) for g in after if g.grant not in known]
        return sorted(updates), fresh


def _merged(entries: Iterable[Entry]) -> list[Entry]:
    """One entry for each account, where several kinds share one."""
    totals: dict[int, int] = {}
    for account, amount in entries:
        totals[account] = totals.get(account, 0) + amount
    return [Entry(account, amount) for account, amount in totals.items() if amount]
