"""From rated usage to charge lines and journals: which lines are new, and what they cost whom. Pure."""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Collection, Iterable, Iterator
from dataclasses import dataclass, field
from datetime import UTC, date, datetime, timedelta
from itertools import chain, count, repeat
from typing import Any, NamedTuple, TypeAlias

import msgspec

from services.billing.books import Books
from services.billing.ledger import (
    BillingConfig,
    byok_fee,
    charge,
    hour_start,
    lines_digest,
    period_of_hour,
    period_start,
)

_encode_lines = msgspec.json.Encoder().encode_lines
_fromhex = bytes.fromhex
_EPOCH_ORDINAL = date(1970, 1, 1).toordinal()
_DAY_MS = 86_400_000
# A prime below 2**16. The digest of a rated amount is its remainder, as a smallint: enough to notice another amount,
# too little to lead from a line's id to its charge.
_DIGEST_MODULUS = 65_521


# A rated line: (record, number in the record, its unit, hour, rated amount, price version, tier, terms, quantities as
# JSON text). A plain tuple, since there are thousands in a batch and naming their fields would cost more than all else
# that is done with them.
Item: TypeAlias = tuple[str, int, Any, int, int, str, str, str, str]


@dataclass(slots=True)
class Gathered:
    """The lines of a batch by line id, each once, and what was left out."""

    fresh: dict[bytes, Item] = field(default_factory=dict)
    repeats: list[tuple[bytes, int]] = field(default_factory=list)
    """(line id, amount) of further lines of the batch with an id that it has already."""
    booked: dict[bytes, int] = field(default_factory=dict)
    """Digests of those that billing has."""
    conflicts: int = 0
    _rows: list[tuple[bytes, int]] = field(default_factory=list)

    def seen_rows(self) -> list[tuple[bytes, int]]:
        """(line id, digest) of every line, in key order: the index likes it, and so do two writers at once."""
        if len(self._rows) != len(self.fresh):
            digests = [item[4] % _DIGEST_MODULUS - 32_768 for item in self.fresh.values()]
            self._rows = sorted(zip(self.fresh, digests, strict=True))
        return self._rows

    def line_ids(self) -> list[bytes]:
        """The ids of what is left, in order."""
        return [row[0] for row in self.seen_rows()]

    def drop_seen(self, seen: Iterable[tuple[bytes, int]]) -> None:
        """Leaves out what billing has already; the same line with another amount is a conflict, and ours stays."""
        for line_id, digest in seen:
            item = self.fresh.pop(line_id, None)
            if item is not None:
                self.booked[line_id] = digest
                self.conflicts += digest != item[4] % _DIGEST_MODULUS - 32_768

    def settle_repeats(self) -> None:
        """Compares the repeats within the batch with what is booked in the end."""
        for line_id, amount in self.repeats:
            item = self.fresh.get(line_id)
            if item is None:
                self.conflicts += self.booked[line_id] != amount % _DIGEST_MODULUS - 32_768
            else:
                self.conflicts += item[4] != amount

    @property
    def duplicates(self) -> int:
        """Lines that are not booked because they are already."""
        return len(self.repeats) + len(self.booked)


def _record_id(event: Any) -> str:
    found: str = event.id
    return found


def gather(events: Iterable[Any]) -> Gathered:
    """All lines of `usage.rated` events, each once. A line's number counts through its record's units, from 0."""
    found = Gathered()
    fresh, repeats = found.fresh, found.repeats
    # By record id, so that a journal's lines lie as its digest wants them.
    for event in sorted(events, key=_record_id):
        units = event.data.units
        lines = [line for unit in units for line in unit.lines]
        if not lines:
            continue
        # By columns: what runs in C costs a third of a loop over the lines.
        texts, hours, versions, tiers, terms, quantities, amounts = zip(*lines, strict=True)
        line_ids = list(map(_fromhex, texts))
        items: Iterator[Item] = zip(
            repeat(event.id),
            count(),
            chain.from_iterable(repeat(unit, len(unit.lines)) for unit in units),
            hours,
            map(int, amounts),
            versions,
            tiers,
            terms,
            _encode_lines(quantities).decode().split("\n"),
            strict=False,
        )
        if len(set(line_ids)) == len(line_ids) and fresh.keys().isdisjoint(line_ids):
            fresh.update(zip(line_ids, items, strict=False))
            continue
        for line_id, item in zip(line_ids, items, strict=False):
            if fresh.setdefault(line_id, item) is not item:
                repeats.append((line_id, item[4]))
    return found


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
    items: list[Item]


def bills(items: Iterable[Item]) -> list[Bill]:
    """The lines by workspace and period, in order."""
    found: dict[tuple[str, str], list[Item]] = {}
    unit: Any = None
    period, hour = "", -1
    group: list[Item] = []
    for item in items:
        # Lines of a unit follow each other, and most are of one hour: look only where something changes.
        if item[2] is not unit or item[3] != hour:
            unit, hour = item[2], item[3]
            period = period_of_hour(hour)
            group = found.setdefault((unit.workspace, period), [])
        group.append(item)
    return [Bill(workspace, period, group) for (workspace, period), group in sorted(found.items())]


def owners(todo: Collection[Bill]) -> dict[str, str]:
    """Workspaces and the accounts that own them, as the first line of each names them."""
    found: dict[str, str] = {}
    for workspace, _, items in todo:
        found.setdefault(workspace, items[0][2].account)
    return found


def byok_months(items: Iterable[Item]) -> list[tuple[str, str]]:
    """The (account, month) pairs whose fee depends on these lines, in order."""
    return sorted({(i[2].account, period_of_hour(i[3])) for i in items if i[7] == "byok"})


Row: TypeAlias = tuple[Any, ...]


def by_class(books: Books, todo: Iterable[Bill]) -> dict[str, list[Bill]]:
    """The bills by the legal class of their workspace."""
    found: dict[str, list[Bill]] = {}
    for bill in todo:
        found.setdefault(books.standings[bill.workspace].legal_class, []).append(bill)
    return found


def post(
    books: Books,
    todo: Iterable[Bill],
    ids: Iterator[int],
    closed: Collection[tuple[str, str]],
    byok: dict[tuple[str, str], int],
) -> Iterator[list[Row]]:
    """Books one journal for each bill, and gives its charge lines: the table's columns, in order.

    One by one, as the caller takes them: a line is written while it is still in the processor's cache.
    `closed`: the (class, period) pairs that are closed; usage of theirs is an adjustment that names its period.
    `byok` holds each month's list price so far and is brought up to date.
    """
    config, year = books.config, books.now.year
    for workspace, period, items in todo:
        standing = books.standings[workspace]
        journal_id = next(ids)
        legal_class, who = standing.legal_class, standing.workspace_id
        rows: list[Row] = [
            (
                record, number, legal_class, year, who, hour, version, tier, terms, text, listed, listed, journal_id,
            )
            for record, number, _, hour, listed, version, tier, terms, text in items
        ]  # fmt: skip
        if byok:
            rows = _charge_byok(rows, items, period, byok, config)
        digest = lines_digest(rows)
        adjusts = period if (legal_class, period) in closed else None
        books.post(
            standing,
            "usage",
            # A record's lines of one workspace are booked at once or never, so the first record names the journal.
            f"usage:{items[0][0]}:{who}:{period}",
            charge(standing.balances, sum([row[10] for row in rows])),
            event_at=hour_start(max([item[3] for item in items])),
            digest=digest,
            period=period,
            adjusts_period=adjusts,
            lines_digest=digest,
            journal_id=journal_id,
        )
        yield rows


def _charge_byok(
    rows: list[Row], items: list[Item], period: str, byok: dict[tuple[str, str], int], config: BillingConfig
) -> list[Row]:
    """The rows, with the fee where the usage was made with the customer's own key."""
    charged = []
    for row, item in zip(rows, items, strict=True):
        if item[7] == "byok":
            month, listed = (item[2].account, period), item[4]
            before = byok.get(month, 0)
            byok[month] = before + listed
            row = (*row[:10], byok_fee(before, listed, config), *row[11:])
        charged.append(row)
    return charged


def booking_years(period: str, until: datetime) -> list[int]:
    """The booking years in which usage of a period can have been booked up to `until`."""
    first = period_start(period).year - 1  # an event may be minutes ahead of the clock, over a new year's night
    return list(range(first, until.year + 1))
