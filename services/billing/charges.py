"""From rated usage to charge lines and journals: which lines are new, and what they cost whom. Pure.

There are tens of thousands of lines in a batch. They are handled by columns, in C: a statement of Python for each line
would cost more than all that is done with it here.
"""

from __future__ import annotations

import hashlib
import struct
from bisect import bisect_left
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, date, datetime, timedelta
from itertools import chain, compress, repeat
from typing import Any, NamedTuple, TypeAlias
from uuid import UUID

import msgspec

from services.billing.books import Books
from services.billing.ledger import BillingConfig, byok_fee, charge, hour_start, period_of_hour, period_start
from shared.mesh import packed

_encode_lines = msgspec.json.Encoder().encode_lines
_fromhex = bytes.fromhex
_EPOCH_ORDINAL = date(1970, 1, 1).toordinal()
_DAY_MS = 86_400_000
# A prime below 2**16.
_DIGEST_MODULUS = 65_521


class Sheet(NamedTuple):
    """The lines of one record that were used in one period, by column."""

    record: str
    period: str
    units: Sequence[tuple[str, str, int]]
    """(workspace, its account, how many of the lines are its own); they follow each other."""
    numbers: Sequence[int]
    """A line's place in its record, counted through the record's units from 0."""
    ids: Sequence[str]
    hours: Sequence[int]
    versions: Sequence[str]
    tiers: Sequence[str]
    terms: Sequence[str]
    quantities: Sequence[bytes]
    """As JSON."""
    amounts: Sequence[int]
    """What was rated, in pico-dollars; for own-key usage the list price."""

    def only(self, keep: Sequence[bool | int]) -> Sheet:
        """Those lines for which `keep` is true."""
        units, start = [], 0
        for workspace, account, n in self.units:
            if kept := sum(keep[start : start + n]):
                units.append((workspace, account, kept))
            start += n
        columns: list[Any] = [tuple(compress(column, keep)) for column in self[3:]]
        return Sheet(self.record, self.period, units, *columns)


def sheets(events: Iterable[Any]) -> list[Sheet]:
    """All lines of `usage.rated` events, by record and period: a journal's lines lie as its digest wants them."""
    found = []
    for event in sorted(events, key=_record_id):
        units = event.data.units
        lines = list(chain.from_iterable([unit.lines for unit in units]))
        if not lines:
            continue
        ids, hours, versions, tiers, terms, quantities, amounts = zip(*lines, strict=True)
        periods = sorted({period_of_hour(hour) for hour in set(hours)})
        sheet = Sheet(
            event.id, periods[0], [(unit.workspace, unit.account, len(unit.lines)) for unit in units],
            range(len(lines)), ids, hours, versions, tiers, terms, _encode_lines(quantities).split(b"\n"),
            list(map(int, amounts)),
        )  # fmt: skip
        if len(periods) == 1:
            found.append(sheet)
            continue
        for period in periods:
            of_period = sheet.only([period_of_hour(hour) == period for hour in hours])
            found.append(of_period._replace(period=period))
    return found


def _record_id(event: Any) -> str:
    found: str = event.id
    return found


def digests(amounts: Iterable[int]) -> list[int]:
    """Of rated amounts, each as a smallint: enough to notice another amount, too little to lead from a line's id to its
    charge."""
    return [amount % _DIGEST_MODULUS - 32_768 for amount in amounts]


_seen_row = struct.Struct(">hi16sih").pack


def seen_rows(todo: Iterable[Sheet]) -> list[bytes]:
    """(line id, digest) of every line, packed for COPY and in key order: the index likes it, and so do two writers."""
    ids = chain.from_iterable([sheet.ids for sheet in todo])
    amounts = chain.from_iterable([sheet.amounts for sheet in todo])
    return sorted(map(_seen_row, repeat(2), repeat(16), map(_fromhex, ids), repeat(2), digests(amounts)))


def oldest(todo: Iterable[Sheet]) -> bytes:
    """The smallest line id; of no lines, one that is larger than any."""
    return _fromhex(min([min(sheet.ids) for sheet in todo], default="ff" * 16))


# Where a line lies: (number of its sheet, position in it).
Place: TypeAlias = tuple[int, int]


@dataclass(slots=True)
class Sifted:
    """The lines of a batch by line id, each once, for a batch in which some have been booked before."""

    sheets: Sequence[Sheet]
    fresh: dict[bytes, Place] = field(default_factory=dict)
    booked: dict[bytes, int] = field(default_factory=dict)
    """Digests of those that billing has."""
    conflicts: int = 0
    _repeats: list[tuple[bytes, Place]] = field(default_factory=list)
    """Further lines of the batch with an id that it has already."""

    @classmethod
    def of(cls, todo: Sequence[Sheet]) -> Sifted:
        """Takes every line as fresh."""
        found = cls(todo)
        for n, sheet in enumerate(todo):
            for position, line_id in enumerate(map(_fromhex, sheet.ids)):
                place = (n, position)
                if found.fresh.setdefault(line_id, place) is not place:
                    found._repeats.append((line_id, place))
        return found

    def seen_rows(self) -> list[tuple[bytes, int]]:
        """(line id, digest) of every fresh line, in key order."""
        return sorted((line_id, self._digest(place)) for line_id, place in self.fresh.items())

    def position(self, line_id: bytes) -> tuple[str, int]:
        """(record, number) of a fresh line."""
        n, position = self.fresh[line_id]
        return self.sheets[n].record, self.sheets[n].numbers[position]

    def _digest(self, place: Place) -> int:
        (digest,) = digests([self.sheets[place[0]].amounts[place[1]]])
        return digest

    def drop_seen(self, seen: Iterable[tuple[bytes, int | None]]) -> None:
        """Leaves out what billing has already; the same line with another amount is a conflict, and ours stays.

        A digest of None: nobody knows any more what its amount was.
        """
        for line_id, digest in seen:
            place = self.fresh.pop(line_id, None)
            if place is not None:
                mine = self._digest(place)
                self.booked[line_id] = mine if digest is None else digest
                self.conflicts += self.booked[line_id] != mine

    def settle_repeats(self) -> None:
        """Compares the repeats within the batch with what is booked in the end."""
        for line_id, place in self._repeats:
            first = self.fresh.get(line_id)
            if first is None:
                self.conflicts += self.booked[line_id] != self._digest(place)
            else:
                mine, other = self.sheets[first[0]].amounts[first[1]], self.sheets[place[0]].amounts[place[1]]
                self.conflicts += mine != other

    @property
    def duplicates(self) -> int:
        """Lines that are not booked because they are already."""
        return len(self._repeats) + len(self.booked)

    def rest(self) -> list[Sheet]:
        """What is fresh, as sheets again."""
        keep = [bytearray(len(sheet.ids)) for sheet in self.sheets]
        for n, position in self.fresh.values():
            keep[n][position] = 1
        return [sheet.only(mask) for sheet, mask in zip(self.sheets, keep, strict=True) if any(mask)]


def day_bound(day: date) -> str:
    """Where the line ids of a day begin, as an SQL literal."""
    return f"'\\x{_day_ms(day).to_bytes(6, 'big').hex()}'"


def low_water(now: datetime, window: timedelta) -> bytes:
    """The smallest line id that `line_seen` is sure to remember; older ones have been released by a person."""
    return _day_ms((now - window).astimezone(UTC).date()).to_bytes(6, "big")


def by_day(line_ids: list[bytes], low: bytes) -> tuple[list[bytes], list[list[bytes]]]:
    """(ids older than `low`, the rest by day), given ids in order: each day's ids prune to one partition."""
    start = bisect_left(line_ids, low)
    late, days = line_ids[:start], []
    while start < len(line_ids):
        ms = int.from_bytes(line_ids[start][:6], "big")
        bound = (ms // _DAY_MS + 1) * _DAY_MS
        end = bisect_left(line_ids, bound.to_bytes(6, "big"), start)
        days.append(line_ids[start:end])
        start = end
    return late, days


def _day_ms(day: date) -> int:
    return (day.toordinal() - _EPOCH_ORDINAL) * _DAY_MS


class Bill(NamedTuple):
    """The new lines of one workspace and one period of use: what one journal charges."""

    workspace: str
    period: str
    record: str
    """The first one that has lines of it."""
    runs: list[slice]
    """Where its lines are among all lines of the sheets, in order."""


def bills(todo: Iterable[Sheet]) -> list[Bill]:
    """The lines by workspace and period, in order."""
    found: dict[tuple[str, str], Bill] = {}
    start = 0
    for sheet in todo:
        period = sheet.period
        for workspace, _, size in sheet.units:
            end = start + size
            bill = found.get((workspace, period))
            if bill is None:
                found[workspace, period] = Bill(workspace, period, sheet.record, [slice(start, end)])
            else:
                bill.runs.append(slice(start, end))
            start = end
    return [found[key] for key in sorted(found)]


def owners(todo: Iterable[Sheet]) -> dict[str, str]:
    """Workspaces and the accounts that own them, as the last record names them."""
    return {workspace: account for sheet in todo for workspace, account, _ in sheet.units}


def erased_workspaces(owned: Mapping[str, str], erased: Collection[tuple[str, str]]) -> set[str]:
    """Those of `owned` (workspace to account) that are erased, or whose account is."""
    return {w for w, account in owned.items() if ("workspace", w) in erased or ("account", account) in erased}


def nameless(todo: Iterable[Sheet], gone: Collection[str], name: str) -> list[Sheet]:
    """The same lines, with those of `gone` workspaces under one name."""
    return [
        sheet._replace(units=[(name if who in gone else who, account, n) for who, account, n in sheet.units])
        for sheet in todo
    ]


def _accounts(sheet: Sheet) -> Iterator[str]:
    return chain.from_iterable(repeat(account, n) for _, account, n in sheet.units)


def byok_months(todo: Iterable[Sheet]) -> list[tuple[str, str]]:
    """The (account, month) pairs whose fee depends on these lines, in order."""
    return sorted(
        {
            (account, sheet.period)
            for sheet in todo
            if "byok" in sheet.terms
            for account, terms in zip(_accounts(sheet), sheet.terms, strict=True)
            if terms == "byok"
        }
    )


def charged(sheet: Sheet, byok: dict[tuple[str, str], int], config: BillingConfig) -> Sequence[int]:
    """What each line is charged: what was rated, or with the customer's own key the fee.

    `byok` holds each month's list price so far and is brought up to date.
    """
    if "byok" not in sheet.terms:
        return sheet.amounts
    found = []
    for account, terms, listed in zip(_accounts(sheet), sheet.terms, sheet.amounts, strict=True):
        amount = listed
        if terms == "byok":
            before = byok[account, sheet.period]
            byok[account, sheet.period] = before + listed
            amount = byok_fee(before, listed, config)
        found.append(amount)
    return found


def by_class(books: Books, todo: Iterable[Bill]) -> dict[str, list[Bill]]:
    """The bills by the legal class of their workspace."""
    found: dict[str, list[Bill]] = {}
    for bill in todo:
        found.setdefault(books.standings[bill.workspace].legal_class, []).append(bill)
    return found


# A charge line as COPY's binary format has it. Its columns are in such an order that what repeats lies together: the
# record; what is the line's own; what hardly changes; what a journal's lines have in common.
LINE_COLUMNS = (
    "record", "line", "amount_pico", "list_pico", "quantities", "hour", "price_version", "tier", "terms",
    "workspace_id", "journal", "class", "booking_year",
)  # fmt: skip
_line_start = struct.Struct(">hi16s").pack
_line_own = struct.Struct(">iiiqiqi").pack
_line_end = struct.Struct(">iqiq").pack
_nobodys_line_end = struct.Struct(">iiq").pack


class _Rated(dict[tuple[int, str, str, str], bytes]):
    """(hour, price version, tier, terms), packed; there are few of them in a batch."""

    def __missing__(self, key: tuple[int, str, str, str]) -> bytes:
        hour, version, tier, terms = key
        of_hour = packed.field(hour.to_bytes(4, "big", signed=True))
        columns = self[key] = of_hour + packed.text(version) + packed.text(tier) + packed.text(terms)
        return columns


class Lines(NamedTuple):
    """All lines of the sheets, one after the other, as they are charged."""

    rows: list[bytes]
    """Packed, but for what their journal adds."""
    amounts: list[int]
    hours: list[int]


def priced(todo: Sequence[Sheet], byok: dict[tuple[str, str], int], config: BillingConfig) -> Lines:
    """Charges the lines; see `charged`."""
    rated, found = _Rated(), Lines([], [], [])
    for sheet in todo:
        amounts, quantities = charged(sheet, byok, config), sheet.quantities
        own = map(
            _line_own, repeat(4), sheet.numbers, repeat(8), amounts, repeat(8), sheet.amounts, map(len, quantities)
        )
        common = map(rated.__getitem__, zip(sheet.hours, sheet.versions, sheet.tiers, sheet.terms, strict=False))
        start = repeat(_line_start(len(LINE_COLUMNS), 16, UUID(sheet.record).bytes))
        found.rows.extend(map(b"".join, zip(start, own, quantities, common, strict=False)))
        found.amounts.extend(amounts)
        found.hours.extend(sheet.hours)
    return found


def post(
    books: Books, todo: Iterable[Bill], lines: Lines, ids: Iterator[int], closed: Collection[tuple[str, str]]
) -> Iterator[bytes]:
    """Books one journal for each bill, and gives its charge lines, packed.

    `closed`: the (class, period) pairs that are closed; usage of theirs is an adjustment that names its period.
    """
    booking_year = packed.field(books.now.year.to_bytes(4, "big"))
    all_rows, all_amounts, all_hours = lines
    for workspace, period, record, runs in todo:
        standing = books.standings[workspace]
        journal_id = next(ids)
        legal_class, who = standing.legal_class, standing.workspace_id
        rows: list[bytes] = []
        amounts: list[int] = []
        hours: list[int] = []
        for run in runs:
            rows += all_rows[run]
            amounts += all_amounts[run]
            hours += all_hours[run]
        end = _nobodys_line_end(-1, 8, journal_id) if standing.nobody else _line_end(8, who, 8, journal_id)
        end += packed.text(legal_class) + booking_year
        rows.append(b"")
        whole = end.join(rows)
        digest = lines_digest(whole)
        books.post(
            standing,
            "usage",
            # A record is booked at once or never, so the first record names the journal.
            f"usage:{record}:{who}:{period}",
            charge(standing.balances, sum(amounts)),
            event_at=hour_start(max(hours)),
            digest=digest,
            period=period,
            adjusts_period=period if (legal_class, period) in closed else None,
            lines_digest=digest,
            journal_id=journal_id,
        )
        yield whole


def lines_digest(rows: bytes) -> bytes:
    """Digest of a journal's charge lines: SHA-256 of their rows in COPY's binary format, one after the other.

    Columns as in `LINE_COLUMNS`, rows by (record, line); without COPY's header and trailer.
    """
    return hashlib.sha256(rows).digest()


def booking_years(period: str, until: datetime) -> list[int]:
    """The booking years in which usage of a period can have been booked up to `until`."""
    first = period_start(period).year - 1  # an event may be minutes ahead of the clock, over a new year's night
    return list(range(first, until.year + 1))
