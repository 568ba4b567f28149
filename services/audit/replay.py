"""The ledger replayed: every journal, entry and charge line is taken in once and leaves sums and findings behind.

Pure. Rows come in by slices (`Part`): of one legal class, what has the next journal numbers. Memory grows with the
number of workspaces and price versions, never with the number of lines or journals.

Blocks are sealed one after the other, but journals are numbered before: the numbers of neighbouring blocks interleave.
So journals wait until their block has as many as were sealed in it; then it is hashed.
"""

from __future__ import annotations

from array import array
from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from itertools import compress
from operator import itemgetter
from typing import Any, NamedTuple, TypeAlias
from uuid import UUID

import msgspec

from services.audit.chain import GENESIS, Columns, block_hash, checkpoint_digest, instant
from services.audit.recompute import ByokMonth, Tariff, Unprovable

_SHOWN = 5
_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
_HOUR = timedelta(hours=1)
_decode = msgspec.json.Decoder(dict[str, int]).decode
_decode_all = msgspec.json.Decoder(list[dict[str, int]]).decode
# So many journals of blocks that are not complete are kept, then the first of these is taken as it is: no transactions
# overlap by so many.
_WAITING = 100_000
# Less than any journal's number.
BEFORE_ALL = -(2**62)

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
        """Takes an entry, or several ones' sum; False if the class has no such account."""
        if not 0 <= account < len(self._kinds) or self._classes[account] != legal_class:
            return False
        kind = self._kinds[account]
        if kind in CREDIT_KINDS:
            standing = self._standing.setdefault(self._owners[account], [0, 0, 0, 0])
            # What is owed to a workspace is a credit, so negative in the entries; what it owes is a debit.
            standing[CREDIT_KINDS.index(kind)] += amount_pico if kind == "receivable" else -amount_pico
        return True

    def is_revenue(self, legal_class: str, account: int) -> bool:
        """Whether this is the account that usage of the class is charged to."""
        known = 0 <= account < len(self._kinds)
        return known and self._kinds[account] == "revenue" and self._classes[account] == legal_class

    def standing(self, number: int) -> tuple[int, int, int, int]:
        """Purchased, granted, held and owed, of the workspace with this number."""
        purchased, granted, held, receivable = self._standing.get(number, (0, 0, 0, 0))
        return purchased, granted, held, receivable

    def numbers(self) -> set[int]:
        """The workspaces that have entries."""
        return set(self._standing)


class Part(NamedTuple):
    """A slice of one class, as one snapshot has it: all journals, entries and lines in some range of journal numbers."""

    legal_class: str
    journals: Sequence[Sequence[Any]]
    """`JOURNAL_COLUMNS` (instants in PostgreSQL's binary form), by number."""
    entries: str
    """Journal, account and amount, one after the other with white space between, by (journal, account)."""
    lines: Columns
    sealed: Sequence[Sequence[Any]]
    """The columns of `Sealed`, of blocks not seen before; those of the journals are among them."""


JOURNAL_COLUMNS = (
    "id", "booking_year", "cause", "kind", "workspace_id", "period", "booked_at", "event_at", "adjusts_period",
    "lines_digest", "block",
)  # fmt: skip


class Sealed(NamedTuple):
    """A block's row in the chain."""

    block: int
    prev: bytes
    hash: bytes
    journals: int
    booked_at: bytes


class Checkpoint(NamedTuple):
    """Where a class's books begin whose earlier years were dropped, and what those have left."""

    legal_class: str
    through_year: int
    block: int
    hash: bytes
    ahead: int
    """Journals of later years in blocks up to that one."""
    journals: int
    lines: int
    charged_pico: int
    prev: bytes
    digest: bytes
    before: bytes | None
    """The digest of the checkpoint before; None if there is none."""
    sealed: bytes | None
    """The hash of that block in the chain."""
    carried: Sequence[tuple[int, int]]
    """(account, pico-dollars) of the dropped entries, by account."""
    byok: Sequence[tuple[str, int, int]]
    """(month, list price, fees) of the dropped own-key lines."""

    def troubles(self) -> list[str]:
        """What is wrong about it by itself, in words."""
        found = []
        name = f"checkpoint of class {self.legal_class} through {self.through_year}"
        digest = checkpoint_digest(
            self.legal_class, self.through_year, self.block, self.hash, self.ahead, self.journals, self.lines,
            self.charged_pico, self.carried, self.prev,
        )  # fmt: skip
        if digest != self.digest or self.prev != (self.before or GENESIS):
            found.append(f"{name}: not what was written, or it does not follow the one before")
        if self.hash != (GENESIS if self.block == 0 else self.sealed):
            found.append(f"{name}: names another hash for block {self.block} than the chain")
        return found


class Entries(NamedTuple):
    """The entries of a part by column, by (journal, account)."""

    journals: list[int]
    accounts: list[int]
    amounts: list[int]
    texts: list[str]
    """The amounts as they are sealed."""

    @classmethod
    def of(cls, text: str) -> Entries:
        """From the columns one after the other."""
        fields = text.split()
        return cls(
            list(map(int, fields[::3])), list(map(int, fields[1::3])), list(map(int, fields[2::3])), fields[2::3]
        )  # fmt: skip

    def without(self, journals: set[int]) -> Entries:
        """Those of other journals."""
        rows = [row for row in zip(*self, strict=True) if row[0] not in journals]
        return Entries(*map(list, zip(*rows, strict=True))) if rows else Entries([], [], [], [])


# A journal as its block's bytes have it: the columns, and at the end its entries.
Form = tuple[Any, ...]


@dataclass(slots=True)
class Chain:
    """One class's chain of blocks, as far as it is proved: `block` is the newest block that is."""

    legal_class: str
    block: int = 0
    hash: bytes = GENESIS
    journals: int = 0
    entries: int = 0
    sum_pico: int = 0
    newest_journal: int = BEFORE_ALL
    """All journals up to this number have been taken in, but for those whose transaction had not ended."""
    sealed_to: int = 0
    """The newest block whose row was read."""
    ok: bool = True
    through_year: int = 0
    """Years up to this one were dropped; the chain is proved from the checkpoint on that they left."""
    start: int = 0
    """That checkpoint's block."""
    ahead: int = 0
    """Journals of later years in blocks up to that one, which are still to come."""
    _sealed: dict[int, Sealed] = field(default_factory=dict)
    _waiting: dict[int, list[Form]] = field(default_factory=dict)
    _n_waiting: int = 0

    def waiting(self) -> list[int]:
        """Numbers of the journals that wait until their block is complete."""
        return [form[0] for forms in self._waiting.values() for form in forms]

    def take(self, part: Part, chart: Chart, findings: Findings) -> dict[int, Expected]:
        """Journals with their entries, and blocks. Gives what the usage journals say about their lines."""
        for row in part.sealed:
            self._sealed[row[0]] = Sealed(*row)
            self.sealed_to = max(self.sealed_to, row[0])
        entries = Entries.of(part.entries)
        if lost := set(entries.journals).difference(map(itemgetter(0), part.journals)):
            for number, n in Counter(n for n in entries.journals if n in lost).items():
                findings.add(
                    "entries", f"{n} entries of class {self.legal_class} name journal {number}, which does not exist"
                )
            entries = entries.without(lost)
        if not part.journals:
            return {}
        ids, years, causes, kinds, whos, periods, booked, events, adjusts, digests, blocks = zip(
            *part.journals, strict=True
        )
        forms = zip(
            ids, years, causes, kinds, whos, periods, _instants(booked), _instants(events), adjusts,
            [None if digest is None else digest.hex() for digest in digests],
            self._by_journal(ids, entries, findings), strict=True,
        )  # fmt: skip
        charged = self._book(entries, chart, findings)
        self.journals += len(ids)
        self.newest_journal = max(self.newest_journal, ids[-1])
        for block, form in zip(blocks, forms, strict=True):
            if block > self.block:
                self._waiting.setdefault(block, []).append(form)
                self._n_waiting += 1
            elif block <= self.start:
                # Sealed with the last of a year that was dropped: its hash cannot be computed any more. They are counted.
                self.ahead -= 1
            else:
                self._broken(findings, f"journal {form[0]} names block {block}, which was sealed without it")
        self._close_complete(findings)
        said = zip(digests, periods, [charged.get(number, 0) for number in ids], strict=True)
        return dict(compress(zip(ids, said, strict=True), [kind == "usage" for kind in kinds]))

    def finish(self, newest_block: int, head: tuple[int, bytes] | None, findings: Findings) -> None:
        """No journal is left. `newest_block` and `head` are what the tables call the chain's end."""
        for block in sorted(self._waiting):
            self._close(block, findings)
        self._sealed.clear()
        if self.ahead:
            self._broken(
                findings, f"{self.ahead} journals are missing (or, below 0, too many) in blocks up to {self.start}"
            )
        if newest_block < self.block:
            self._broken(findings, f"ends at block {newest_block}, but was proved up to {self.block}: an older copy?")
        elif self.block != newest_block:
            self._broken(findings, f"block {newest_block} exists, but journals only up to block {self.block}")
        elif head is not None and head != (self.block, self.hash):
            self._broken(findings, f"the head names block {head[0]}, which is not the proved block {self.block}")

    def _by_journal(self, ids: Sequence[int], entries: Entries, findings: Findings) -> list[Sequence[tuple[int, str]]]:
        """Each journal's entries as its block has them; finds those that do not sum to zero."""
        pairs = list(zip(entries.accounts, entries.texts, strict=True))
        amounts = entries.amounts
        found: dict[int, list[tuple[int, str]]] = {}
        start = 0
        for number, n in Counter(entries.journals).items():
            end = start + n
            found[number] = pairs[start:end]
            if total := sum(amounts[start:end]):
                findings.add("journal", f"journal {number} of class {self.legal_class} sums to {total}, not to 0")
            start = end
        return [found.get(number, ()) for number in ids]

    def _book(self, entries: Entries, chart: Chart, findings: Findings) -> dict[int, int]:
        """Brings accounts up to date. Gives what each journal took from revenue."""
        totals: dict[int, int] = defaultdict(int)
        for account, amount in zip(entries.accounts, entries.amounts, strict=True):
            totals[account] += amount
        revenue = None
        for account, total in totals.items():
            if not chart.book(self.legal_class, account, total):
                for number, other in zip(entries.journals, entries.accounts, strict=True):
                    if other == account:
                        findings.add("account", f"journal {number}: class {self.legal_class} has no account {account}")
            elif chart.is_revenue(self.legal_class, account):
                revenue = account
        self.sum_pico += sum(entries.amounts)
        self.entries += len(entries.amounts)
        if revenue is None:
            return {}
        rows = zip(entries.journals, entries.accounts, entries.amounts, strict=True)
        return {number: -amount for number, account, amount in rows if account == revenue}

    def _close_complete(self, findings: Findings) -> None:
        """Closes the blocks that have as many journals as were sealed in them, in order."""
        while self._waiting:
            block = self.block + 1
            sealed, forms = self._sealed.get(block), self._waiting.get(block)
            if sealed is not None and forms is not None and len(forms) >= sealed.journals:
                self._close(block, findings)
            elif self._n_waiting > _WAITING:
                self._close(min(self._waiting), findings)
            else:
                return

    def _close(self, block: int, findings: Findings) -> None:
        forms, sealed = sorted(self._waiting.pop(block), key=itemgetter(0)), self._sealed.pop(block, None)
        self._n_waiting -= len(forms)
        if block != self.block + 1:
            self._broken(findings, f"block {block} follows block {self.block}")
        if sealed is None:
            self._broken(findings, f"block {block} has journals and no row in the chain")
        elif sealed.prev != self.hash:
            self._broken(findings, f"block {block} does not name the hash of the block before it")
        elif sealed.journals != len(forms):
            self._broken(findings, f"block {block} has {len(forms)} journals, {sealed.journals} were sealed in it")
        elif block_hash(self.legal_class, block, self.hash, instant(sealed.booked_at), forms) != sealed.hash:
            self._broken(findings, f"block {block} does not have the content that was sealed in it")
        self.block, self.hash = block, GENESIS if sealed is None else sealed.hash

    def _broken(self, findings: Findings, text: str) -> None:
        self.ok = False
        findings.add("chain", f"chain of class {self.legal_class}: {text}")


def _instants(sent: Sequence[bytes]) -> list[int]:
    known = {at: instant(at) for at in set(sent)}
    return [known[at] for at in sent]


# What a usage journal says about its lines: their digest, their period, and what it took from revenue (pico-dollars).
Expected: TypeAlias = tuple[bytes, str, int]


@dataclass(slots=True)
class Lines:
    """All charge lines: counted, recomputed, and held against the journals that they belong to."""

    count: int = 0
    charges_pico: int = 0
    recomputed_pico: int = 0
    """Without own-key fees, which are due on a month's total."""
    byok: dict[tuple[int, str], ByokMonth] = field(default_factory=dict)
    prices: dict[str, Mapping[str, Any]] = field(default_factory=dict)
    _tariffs: dict[tuple[str, str, str], Tariff | str] = field(default_factory=dict)
    _periods: dict[int, str] = field(default_factory=dict)

    def carry(self, check: Checkpoint) -> None:
        """What was dropped was proved as long as it stood: it counts as recomputed. Own-key fees are due by the month."""
        self.count += check.lines
        self.charges_pico += check.charged_pico
        self.recomputed_pico += check.charged_pico
        for month, listed, fee in check.byok:
            self.byok.setdefault((0, month), ByokMonth()).add(listed, fee)
            self.recomputed_pico -= fee

    def unknown_versions(self, lines: Columns) -> set[str]:
        """The price versions of lines that `prices` has not."""
        return {kind.version for kind in lines.kinds.values()} - self.prices.keys()

    def take(self, expected: Mapping[int, Expected], lines: Columns, findings: Findings) -> None:
        """The lines of a range of journals; `expected` are the usage journals in it, by number."""
        start = 0
        amounts = lines.amounts
        for journal, n in Counter(lines.journals).items():
            end = start + n
            said = expected.get(journal)
            if said is None:
                findings.add("orphan", f"{n} charge lines name journal {journal}, which does not exist")
            else:
                digest, _, expected_charge = said
                if lines.digest(start, end) != digest:
                    findings.add("digest", f"the lines of journal {journal} are not those that were sealed with it")
                if (charged := sum(amounts[start:end])) != expected_charge:
                    findings.add("charge", f"journal {journal} charges {expected_charge}, its lines sum to {charged}")
            start = end
        for journal in sorted(expected.keys() - set(lines.journals)):
            findings.add("lost", f"usage journal {journal} has no charge lines")
        self.count += len(amounts)
        self.charges_pico += sum(amounts)
        if lines.kinds and not self._all_right(expected, lines):
            self._line_by_line(expected, lines, findings)

    def _all_right(self, expected: Mapping[int, Expected], lines: Columns) -> bool:
        """Takes the lines if each is right by all that `_line` looks at, which is nearly always; else takes nothing."""
        tariffs: dict[bytes, Tariff] = {}
        for key, kind in lines.kinds.items():
            tariff = self._tariff(kind.version, kind.tier, kind.terms)
            if isinstance(tariff, str):
                return False
            tariffs[key] = tariff
        months = {self._period(kind.hour) for kind in lines.kinds.values()}
        if len(months.union([period for _, period, _ in expected.values()])) > 1:
            return False
        try:
            dues = _dues(tariffs, lines)
        except (KeyError, ValueError, Unprovable, msgspec.DecodeError):
            return False
        own = {key for key, kind in lines.kinds.items() if kind.terms == "byok"}
        if not own:
            if dues != list(lines.listed) or lines.amounts != lines.listed:
                return False
        else:
            rows = list(zip(dues, lines.listed, lines.amounts, lines.rated, lines.workspaces, strict=True))
            if any(due != listed or (amount != listed and key not in own) for due, listed, amount, key, _ in rows):
                return False
            month = min(months)
            for n, (due, listed, amount, key, workspace) in enumerate(rows):
                if key in own:
                    self.byok.setdefault((workspace or 0, month), ByokMonth()).add(listed, amount)
                    dues[n] -= due
        self.recomputed_pico += sum(dues)
        return True

    def _line_by_line(self, expected: Mapping[int, Expected], lines: Columns, findings: Findings) -> None:
        kinds = {
            key: (self._tariff(*kind[1:]), self._period(kind.hour), kind.terms) for key, kind in lines.kinds.items()
        }
        for record, number, amount, listed, quantities, key, workspace, journal in zip(*lines[2:-1], strict=True):
            tariff, month, terms = kinds[key]
            if terms == "byok":
                self.byok.setdefault((workspace or 0, month), ByokMonth()).add(listed, amount)
            said = expected.get(journal)
            reason = self._line(tariff, month, terms, quantities, amount, listed, month if said is None else said[1])
            if reason is not None:
                findings.add("line", f"line {number} of record {UUID(bytes=record)}: {reason}")

    def _line(
        self, tariff: Tariff | str, month: str, terms: str, quantities: bytes, amount: int, listed: int, period: str
    ) -> str | None:
        """Recomputes one line; why it is wrong, or None."""
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
        if month != period:
            return f"used in {month}, booked for {period}"
        return None

    def _tariff(self, version: str, tier: str, terms: str) -> Tariff | str:
        found: Tariff | str | None = self._tariffs.get((version, tier, terms))
        if found is not None:
            return found
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
        known = self._periods.get(hour)
        if known is None:
            at = _EPOCH + hour * _HOUR
            known = self._periods[hour] = f"{at.year:04d}-{at.month:02d}"
        return known


def _dues(tariffs: Mapping[bytes, Tariff], lines: Columns) -> list[int]:
    """What each line should cost at its terms' prices. Raises for lines that cannot be recomputed at once."""
    dues = []
    prices = {key: tariff.pay if tariff.whole else None for key, tariff in tariffs.items()}
    # Each is valid JSON by its column's type, so what lies between two commas is one of them.
    for key, used in zip(lines.rated, _decode_all(b"[%b]" % b",".join(lines.quantities)), strict=True):
        pay = prices[key]
        if pay is None:
            dues.append(tariffs[key].amount(used))
            continue
        due = 0
        for unit, quantity in used.items():
            due += pay[unit] * quantity
        dues.append(due)
    return dues


@dataclass(slots=True)
class Replay:
    """Everything proved so far; a later run goes on from here."""

    started_at: datetime
    chart: Chart = field(default_factory=Chart)
    chains: dict[str, Chain] = field(default_factory=dict)
    lines: Lines = field(default_factory=Lines)
    findings: Findings = field(default_factory=Findings)
    through: dict[str, int] | None = None
    """Through which year each class's books were dropped when it began; None: it has not begun."""

    def begin(self, checkpoints: Iterable[Checkpoint]) -> None:
        """Starts from what dropped years have left (nothing, if none was). The accounts are learned."""
        self.through = {}
        for check in checkpoints:
            self.through[check.legal_class] = check.through_year
            chain = self.chains[check.legal_class] = Chain(
                check.legal_class, check.block, check.hash, check.journals, sealed_to=check.block,
                through_year=check.through_year, start=check.block, ahead=check.ahead,
            )  # fmt: skip
            for trouble in check.troubles():
                chain.ok = False
                self.findings.add("checkpoint", trouble)
            for account, pico in check.carried:
                chain.sum_pico += pico
                if not self.chart.book(check.legal_class, account, pico):
                    self.findings.add("account", f"carried: class {check.legal_class} has no account {account}")
            self.lines.carry(check)

    def chain(self, legal_class: str) -> Chain:
        """The chain of a class."""
        return self.chains.setdefault(legal_class, Chain(legal_class))

    def take(self, part: Part) -> None:
        """Takes in a slice. Its accounts and, where metering has them, its price versions are known."""
        expected = self.chain(part.legal_class).take(part, self.chart, self.findings)
        self.lines.take(expected, part.lines, self.findings)

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
