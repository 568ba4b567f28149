"""The ledger replayed: every journal, entry and charge line is taken in once and leaves sums and findings behind.

Pure: rows come in, in order; a row is any mapping with the table's columns. Memory grows with the number of workspaces
and price versions, never with the number of lines or journals.
"""

from __future__ import annotations

from array import array
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from itertools import groupby
from typing import Any, NamedTuple

import msgspec

from services.audit.chain import GENESIS, block_hash, journal_form, lines_digest
from services.audit.recompute import ByokMonth, Tariff, Unprovable

_SHOWN = 5
_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
_HOUR = timedelta(hours=1)
_decode = msgspec.json.Decoder(dict[str, int]).decode

CREDIT_KINDS = ("purchased", "granted", "held", "receivable")
"""Accounts of a workspace, in the order of `Chart.standing`; the others are the house's."""


class Findings:
    """What is wrong, by kind: the first few of a kind in words, all of them counted."""

    def __init__(self) -> None:
        self.counts: Counter[str] = Counter()
        self._texts: dict[str, list[str]] = {}

    def add(self, kind: str, text: str) -> None:
        """One more finding."""
        self.counts[kind] += 1
        texts = self._texts.setdefault(kind, [])
        if len(texts) < _SHOWN:
            texts.append(text)

    def sentences(self) -> list[str]:
        """All that was found, for people and programs."""
        said = []
        for kind, texts in self._texts.items():
            said += texts
            if (more := self.counts[kind] - len(texts)) > 0:
                said.append(f"... and {more} more like it ({kind})")
        return said


class Chart:
    """The ledger's accounts, and what each workspace has by its entries."""

    def __init__(self) -> None:
        # By account number, which the database gives out densely: a few bytes for each account.
        self._kinds: list[str] = []
        self._classes: list[str] = []
        self._owners = array("q")
        self._standing: dict[int, list[int]] = {}

    @property
    def known(self) -> int:
        """The highest account number that was learned."""
        return len(self._kinds) - 1

    def learn(self, rows: Iterable[Mapping[str, Any]]) -> None:
        """Accounts (id, class, kind, workspace_id), by id."""
        for row in rows:
            gap = row["id"] + 1 - len(self._kinds)
            if gap > 0:
                self._kinds += [""] * gap
                self._classes += [""] * gap
                self._owners.extend([0] * gap)
            self._kinds[row["id"]] = row["kind"]
            self._classes[row["id"]] = row["class"]
            self._owners[row["id"]] = row["workspace_id"] or 0

    def book(self, legal_class: str, account: int, amount_pico: int) -> bool:
        """Takes an entry; False if the class has no such account."""
        if not 0 <= account < len(self._kinds) or self._classes[account] != legal_class:
            return False
        kind = self._kinds[account]
        if kind in CREDIT_KINDS:
            standing = self._standing.setdefault(self._owners[account], [0, 0, 0, 0])
            # What is owed to a workspace is a credit, so negative in the entries; what it owes is a debit.
            standing[CREDIT_KINDS.index(kind)] += amount_pico if kind == "receivable" else -amount_pico
        return True

    def standing(self, number: int) -> tuple[int, int, int, int]:
        """Purchased, granted, held and owed, of the workspace with this number."""
        purchased, granted, held, receivable = self._standing.get(number, (0, 0, 0, 0))
        return purchased, granted, held, receivable

    def numbers(self) -> set[int]:
        """The workspaces that have entries."""
        return set(self._standing)


@dataclass(slots=True)
class Chain:
    """One class's chain of blocks, as far as it is proved."""

    legal_class: str
    block: int = 0
    hash: bytes = GENESIS
    journals: int = 0
    entries: int = 0
    sum_pico: int = 0
    newest_journal: int = 0
    ok: bool = True
    _open: list[Mapping[str, Any]] = field(default_factory=list)

    def take(self, rows: Sequence[Mapping[str, Any]], chart: Chart, findings: Findings) -> None:
        """Journals with their entries, and their block's columns (prev, hash, ...), by (block, id)."""
        for block, group in groupby(rows, key=lambda row: row["block"]):
            if self._open and self._open[0]["block"] != block:
                self._close(chart, findings)
            self._open += group

    def finish(self, newest_block: int, head: tuple[int, bytes] | None, chart: Chart, findings: Findings) -> None:
        """No journal is left. `newest_block` and `head` are what the tables call the chain's end."""
        if self._open:
            self._close(chart, findings)
        if newest_block < self.block:
            self._broken(findings, f"ends at block {newest_block}, but was proved up to {self.block}: an older copy?")
        elif self.block != newest_block:
            self._broken(findings, f"block {newest_block} exists, but journals only up to block {self.block}")
        elif head is not None and head != (self.block, self.hash):
            self._broken(findings, f"the head names block {head[0]}, which is not the proved block {self.block}")

    def _close(self, chart: Chart, findings: Findings) -> None:
        rows, self._open = self._open, []
        block = rows[0]["block"]
        sealed = rows[0]["hash"]
        if block != self.block + 1:
            self._broken(findings, f"block {block} follows block {self.block}")
        if sealed is None:
            self._broken(findings, f"block {block} has journals and no row in the chain")
        elif rows[0]["prev"] != self.hash:
            self._broken(findings, f"block {block} does not name the hash of the block before it")
        elif rows[0]["journals"] != len(rows):
            self._broken(findings, f"block {block} has {len(rows)} journals, {rows[0]['journals']} were sealed in it")
        else:
            forms = [journal_form(row) for row in rows]
            if block_hash(self.legal_class, block, self.hash, rows[0]["sealed_at"], forms) != sealed:
                self._broken(findings, f"block {block} does not have the content that was sealed in it")
        for row in rows:
            self._journal(row, chart, findings)
        self.block, self.hash = block, sealed or GENESIS

    def _journal(self, row: Mapping[str, Any], chart: Chart, findings: Findings) -> None:
        total = 0
        for account, text in zip(row["accounts"], row["amounts"], strict=True):
            amount = int(text)
            total += amount
            if not chart.book(self.legal_class, account, amount):
                findings.add("account", f"journal {row['id']}: class {self.legal_class} has no account {account}")
        if total:
            findings.add("journal", f"journal {row['id']} of class {self.legal_class} sums to {total}, not to 0")
        self.sum_pico += total
        self.journals += 1
        self.entries += len(row["accounts"])
        self.newest_journal = max(self.newest_journal, row["id"])

    def _broken(self, findings: Findings, text: str) -> None:
        self.ok = False
        findings.add("chain", f"chain of class {self.legal_class}: {text}")


class Expected(NamedTuple):
    """What a usage journal says about its lines: `charged_pico` is what it took from revenue."""

    journal: int
    lines_digest: bytes
    period: str
    charged_pico: int


@dataclass(slots=True)
class Lines:
    """All charge lines: counted, recomputed, and held against the journals that they belong to."""

    count: int = 0
    charges_pico: int = 0
    recomputed_pico: int = 0
    """Without own-key fees, which are due on a month's total."""
    byok: dict[tuple[int, str], ByokMonth] = field(default_factory=dict)
    wrong: int = 0
    prices: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)
    _tariffs: dict[tuple[str, str, str], Tariff | str] = field(default_factory=dict)
    _periods: dict[int, str] = field(default_factory=dict)

    def take(self, expected: Expected | None, rows: Sequence[tuple[Any, ...]], findings: Findings) -> None:
        """One journal's lines by (record, line), as `store.LINE_COLUMNS` has them; None = there is no such journal."""
        journal = rows[0][12]
        charged = 0
        for row in rows:
            charged += row[10]
            reason = self._line(row, None if expected is None else expected.period)
            if reason is not None:
                self.wrong += 1
                findings.add("line", f"line {row[1]} of record {row[0]}: {reason}")
        self.count += len(rows)
        self.charges_pico += charged
        if expected is None:
            findings.add("orphan", f"{len(rows)} charge lines name journal {journal}, which does not exist")
            return
        if lines_digest(rows) != expected.lines_digest:
            findings.add("digest", f"the lines of journal {journal} are not those that were sealed with it")
        if charged != expected.charged_pico:
            findings.add("charge", f"journal {journal} charges {expected.charged_pico}, its lines sum to {charged}")

    def without_lines(self, expected: Expected, findings: Findings) -> None:
        """A usage journal to which no line belongs."""
        findings.add("lost", f"usage journal {expected.journal} has no charge lines")

    def _line(self, row: tuple[Any, ...], period: str | None) -> str | None:
        """Takes one line; why it is wrong, or None."""
        _, _, _, _, workspace, hour, version, tier, terms, quantities, amount, listed, _ = row
        tariff = self._tariffs.get((version, tier, terms)) or self._tariff(version, tier, terms)
        month = self._periods.get(hour) or self._period(hour)
        if terms == "byok":
            self.byok.setdefault((workspace or 0, month), ByokMonth()).add(listed, amount)
        if isinstance(tariff, str):
            return tariff
        try:
            due = tariff.amount(_decode(quantities))
        except (Unprovable, msgspec.DecodeError) as error:
            return str(error)
        if terms != "byok":
            self.recomputed_pico += due
        if due != listed:
            return f"listed at {listed}, recomputed {due}"
        if terms != "byok" and amount != listed:
            return f"charged {amount}, recomputed {due}"
        if period is not None and month != period:
            return f"used in {month}, booked for {period}"
        return None

    def _tariff(self, version: str, tier: str, terms: str) -> Tariff | str:
        found: Tariff | str
        body = self.prices.get(version)
        if body is None:
            return f"price version {version} is not known to metering"
        try:
            found = Tariff(body, tier, terms)
        except Unprovable as error:
            found = str(error)
        self._tariffs[version, tier, terms] = found
        return found

    def _period(self, hour: int) -> str:
        at = _EPOCH + hour * _HOUR
        month = self._periods[hour] = f"{at.year:04d}-{at.month:02d}"
        return month


@dataclass(slots=True)
class Replay:
    """Everything proved so far; a later run goes on from here."""

    started_at: datetime
    chart: Chart = field(default_factory=Chart)
    chains: dict[str, Chain] = field(default_factory=dict)
    lines: Lines = field(default_factory=Lines)
    findings: Findings = field(default_factory=Findings)

    def chain(self, legal_class: str) -> Chain:
        """The chain of a class."""
        return self.chains.setdefault(legal_class, Chain(legal_class))

    def unequal_balances(self, rows: Iterable[Mapping[str, Any]], known: set[int], findings: Findings) -> int:
        """Compares balance rows with the replay and notes their workspaces in `known`; returns how many differ."""
        unequal = 0
        for row in rows:
            number = row["workspace_id"]
            known.add(number)
            purchased, granted, held, receivable = self.chart.standing(number)
            said = (int(row["purchased_pico"]), int(row["granted_pico"]), int(row["receivable_pico"]))
            if said != (purchased, granted, receivable) or held:
                unequal += 1
                findings.add(
                    "balance", f"ledger workspace {number}: balance {said}, replay {purchased, granted, receivable}"
                )
        return unequal
