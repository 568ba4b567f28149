"""What one batch of generations becomes: identities, rated lines, log rows and sums. No I/O, no clock."""

from __future__ import annotations

import hashlib
import zlib
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from datetime import UTC, date, datetime, timedelta
from typing import Any, NamedTuple

import msgspec

from services.metering.price_book import PriceBook
from services.metering.pricing import (
    AMOUNT_PICO_MAX,
    DEFAULT_RULES,
    PLAIN_FINISH,
    Card,
    Rated,
    Rules,
    Unpriced,
    billed_quantities,
    rate,
)
from shared.contract.ids import derived_id

DAY_MS = 86_400_000
HOUR_MS = 3_600_000
EPOCH_ORDINAL = date(1970, 1, 1).toordinal()
_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
# One record stays well below the size that a broker takes.
LINES_PER_RECORD = 4_000

_encode = msgspec.json.Encoder().encode
_blake = hashlib.blake2b
_TERMS = {"byok": "byok", "data_sharing": "sharing"}


def identity(event_id: str, ms: int, day_key: bytes) -> bytes:
    """Who an event is, without saying of whom: 6 bytes of its id's time, and 10 of a hash of the id under its day's key.

    The key stands as a prefix: one block to hash instead of two, and BLAKE2 has no length extension to fear.
    """
    return ms.to_bytes(6, "big") + _blake(day_key + event_id.encode(), digest_size=10).digest()


def digest_of(content: bytes, day_key: bytes) -> int:
    """A short digest of what an event says: tells same from different content, and no more."""
    return zlib.crc32(content, int.from_bytes(day_key[:4], "big"))


def day_bound(day: date) -> str:
    """Where the `seen` keys of a day begin, as an SQL literal."""
    return "'\\x" + ((day.toordinal() - EPOCH_ORDINAL) * DAY_MS).to_bytes(6, "big").hex() + "'"


def hour_bound(day: date) -> str:
    """The first hour (since 1970) of a day, as an SQL literal."""
    return f"'{(day.toordinal() - EPOCH_ORDINAL) * 24}'"


def ordinal_bound(day: date) -> str:
    """A day's number since 1970, as an SQL literal."""
    return f"'{day.toordinal() - EPOCH_ORDINAL}'"


def target_partition(workspace: str, partitions: int) -> int:
    """Which partition carries a workspace's rated usage: always the same one."""
    return zlib.crc32(workspace.encode()) % partitions


class Priced(NamedTuple):
    """A rated usage and what it is billed by."""

    rated: Rated
    quantities: Mapping[str, int]
    terms: str
    amount_pico: int


def price(
    book: PriceBook, usage: Any, event_at: datetime, known_at: datetime, rules: Rules = DEFAULT_RULES
) -> Priced | Unpriced:
    """What `usage` costs by the version that is valid at `event_at` and was known at `known_at`."""
    card = book.card(usage.provider, usage.model, usage.tier, event_at, known_at)
    if isinstance(card, Unpriced):
        return card
    outcome = usage.outcome
    rated = rate(
        card,
        usage.tokens,
        usage.counts,
        "error" if outcome == "failed" else usage.finish_reason,
        outcome == "cancelled",
        outcome == "cache_hit",
        usage.byok,
        usage.data_sharing,
        rules,
    )
    if isinstance(rated, Unpriced):
        return rated
    rule = rated.rule
    if rule == "list" and not card.version.minimum:
        quantities: Mapping[str, int] = {**usage.tokens, **usage.counts} if usage.counts else usage.tokens
        if 0 in quantities.values():
            quantities = {unit: n for unit, n in quantities.items() if n}
        return Priced(rated, quantities, "list", rated.amount_pico)
    quantities = billed_quantities(card.version, usage.tokens, usage.counts, rule)
    terms = _TERMS.get(rule, "list")
    # With the customer's own key the line carries the list price: billing's fee is a share of it.
    return Priced(rated, quantities, terms, rated.list_amount_pico if terms == "byok" else rated.amount_pico)


@dataclass(slots=True)
class Unit:
    """Lines of one workspace that go into one record, each with the log row that will point at it."""

    account: str
    lines: list[tuple[Any, ...]] = field(default_factory=list)
    rows: list[list[Any] | None] = field(default_factory=list)


@dataclass(slots=True)
class Effects:
    """Everything that rated usage leaves behind, gathered in memory for one transaction."""

    partitions: int
    sums_from_hour: int = 0
    units: dict[str, Unit] = field(default_factory=dict)
    log: list[list[Any]] = field(default_factory=list)
    hourly: dict[tuple[str, str, str, int], list[int]] = field(default_factory=dict)
    daily: dict[tuple[str, int], list[int]] = field(default_factory=dict)
    versions: set[str] = field(default_factory=set)
    rated: int = 0

    def add_line(
        self,
        usage: Any,
        line_id: bytes,
        hour: int,
        version: str,
        tier: str,
        terms: str,
        quantities: Mapping[str, int],
        amount_pico: int,
        row: list[Any] | None = None,
    ) -> None:
        """One line of a rated record."""
        workspace = usage.workspace
        unit = self.units.get(workspace)
        if unit is None:
            unit = self.units[workspace] = Unit(usage.account)
        unit.lines.append((line_id.hex(), hour, version, tier, terms, quantities, str(amount_pico)))
        unit.rows.append(row)
        self.versions.add(version)

    def add(
        self,
        usage: Any,
        event_id: str | None,
        key: bytes,
        ms: int,
        event_at: datetime,
        priced: Priced,
        now_ms: int | None,
    ) -> None:
        """A rated generation: its line, its log row if its workspace keeps one, its share of the sums.

        `ms`: the event's time. `now_ms`: a row that has expired by then is not written (None = write it).
        """
        rated, quantities, terms, amount = priced
        hour = ms // HOUR_MS
        days = usage.log_retention_days
        row: list[Any] | None = None
        if days and event_id is not None and (now_ms is None or ms + days * DAY_MS > now_ms):
            row = [
                expiry_day(ms, days), event_at, days, event_id, usage.generation_ref, usage.account, usage.workspace,
                usage.key, usage.provider, usage.model, rated.tier, f"{usage.outcome}/{usage.finish_reason or ''}",
                rated.rule, _encode({**usage.tokens, **usage.counts}).decode(), usage.input_tokens,
                usage.output_tokens, amount, rated.price_version, None, None,
            ]  # fmt: skip
            self.log.append(row)
        self.add_line(usage, key, hour, rated.price_version, rated.tier, terms, quantities, amount, row)
        self.sum(usage, hour, 1, usage.input_tokens, usage.output_tokens, rated.amount_pico)
        self.rated += 1

    def add_plain(
        self, card: Card, usage: Any, event_id: str, key: bytes, ms: int, event_at: datetime, now_ms: int
    ) -> bool:
        """`price` and `add` in one go for what nearly all generations are; False (and nothing done) if this is none.

        Plain: completed for an ordinary reason, tokens only, list price of a plain card, in a workspace with a log. A
        property test holds it against the long way.
        """
        tokens = usage.tokens
        if (
            usage.finish_reason not in PLAIN_FINISH
            or not card.plain
            or usage.outcome != "completed"
            or usage.counts
            or usage.byok
            or usage.data_sharing
            or not usage.log_retention_days
            or 0 in tokens.values()
        ):
            return False
        prices = card.prices
        amount = 0
        try:
            for bucket, quantity in tokens.items():
                amount += prices[bucket] * quantity
        except KeyError:
            return False
        if amount > AMOUNT_PICO_MAX:
            return False
        hour = ms // HOUR_MS
        workspace, version, tier = usage.workspace, card.price_version, card.label
        days, read, generated = usage.log_retention_days, usage.input_tokens, usage.output_tokens
        row: list[Any] | None = None
        if ms + days * DAY_MS > now_ms:
            row = [
                expiry_day(ms, days), event_at, days, event_id, usage.generation_ref, usage.account, workspace,
                usage.key, usage.provider, usage.model, tier, "completed/" + usage.finish_reason, "list",
                _encode(tokens).decode(), read, generated, amount, version, None, None,
            ]  # fmt: skip
            self.log.append(row)
        unit = self.units.get(workspace)
        if unit is None:
            unit = self.units[workspace] = Unit(usage.account)
        unit.lines.append((key.hex(), hour, version, tier, "list", tokens, str(amount)))
        unit.rows.append(row)
        self.versions.add(version)
        self.rated += 1
        if hour >= self.sums_from_hour:
            sums = self.hourly.get(place := (workspace, usage.key, usage.model, hour))
            if sums is None:
                self.hourly[place] = [1, read, generated, amount]
            else:
                sums[0] += 1
                sums[1] += read
                sums[2] += generated
                sums[3] += amount
        return True

    def sum(self, usage: Any, hour: int, generations: int, read: int, generated: int, amount_pico: int) -> None:
        """Adds to the sums that the rollups take."""
        if hour < self.sums_from_hour:
            return
        if usage.log_retention_days:
            key = (usage.workspace, usage.key, usage.model, hour)
            sums = self.hourly.get(key)
            if sums is None:
                self.hourly[key] = [generations, read, generated, amount_pico]
                return
        else:
            day_key = (usage.workspace, hour // 24)
            sums = self.daily.get(day_key)
            if sums is None:
                self.daily[day_key] = [generations, read, generated, amount_pico]
                return
        sums[0] += generations
        sums[1] += read
        sums[2] += generated
        sums[3] += amount_pico

    def records(self) -> Iterable[tuple[int, str, list[dict[str, Any]]]]:
        """(partition, record id, units) of each record to publish; log rows learn their record and line.

        Lines lie in the order of their hash, not of their time: at retention 0 an hour is all that is told.
        """
        by_partition: dict[int, list[tuple[str, Unit]]] = {}
        for workspace, unit in self.units.items():
            by_partition.setdefault(target_partition(workspace, self.partitions), []).append((workspace, unit))
        for partition, members in sorted(by_partition.items()):
            open_units: list[dict[str, Any]] = []
            open_rows: list[list[Any] | None] = []
            for workspace, unit in members:
                hashes = [line[0][12:] for line in unit.lines]
                order = sorted(range(len(hashes)), key=hashes.__getitem__)
                for start in range(0, len(order), LINES_PER_RECORD):
                    chosen = order[start : start + LINES_PER_RECORD]
                    if open_rows and len(open_rows) + len(chosen) > LINES_PER_RECORD:
                        yield self._close(partition, open_units, open_rows)
                        open_units, open_rows = [], []
                    open_units.append(
                        {"workspace": workspace, "account": unit.account, "lines": [unit.lines[n] for n in chosen]}
                    )
                    open_rows += [unit.rows[n] for n in chosen]
            if open_rows:
                yield self._close(partition, open_units, open_rows)

    @staticmethod
    def _close(
        partition: int, units: list[dict[str, Any]], rows: list[list[Any] | None]
    ) -> tuple[int, str, list[dict[str, Any]]]:
        ids = [line[0] for unit in units for line in unit["lines"]]
        record = derived_id(int(ids[0][:12], 16), "usage.rated", "".join(ids))
        for number, row in enumerate(rows):
            if row is not None:
                row[-2], row[-1] = record, number
        return partition, record, units

    def pending(self) -> bytes | None:
        """The sums as one row for the rollup worker; None if there are none."""
        if not self.hourly and not self.daily:
            return None
        return msgspec.msgpack.encode(
            ([(*k, *v) for k, v in self.hourly.items()], [(*k, *v) for k, v in self.daily.items()])
        )


def merge_pending(payloads: Iterable[bytes]) -> tuple[list[tuple[Any, ...]], list[tuple[Any, ...]]]:
    """The sums of several batches: (hourly rows, daily rows), sorted by key so that writers do not deadlock."""
    hourly: dict[tuple[Any, ...], list[int]] = {}
    daily: dict[tuple[Any, ...], list[int]] = {}
    for payload in payloads:
        for target, rows in zip((hourly, daily), msgspec.msgpack.decode(payload), strict=True):
            for row in rows:
                key, values = tuple(row[:-4]), row[-4:]
                sums = target.get(key)
                if sums is None:
                    target[key] = values
                else:
                    for n in range(4):
                        sums[n] += values[n]
    return [(*k, *v) for k, v in sorted(hourly.items())], [(*k, *v) for k, v in sorted(daily.items())]


_EXPIRY_DAYS: dict[int, date] = {}


def expiry_day(ms: int, days: int) -> date:
    """The day on which a log row of the instant `ms` expires."""
    number = ms // DAY_MS + days
    found = _EXPIRY_DAYS.get(number)
    if found is None:
        found = _EXPIRY_DAYS[number] = date.fromordinal(EPOCH_ORDINAL + number)
    return found


def instant(ms: int) -> datetime:
    """`ms` since 1970 as a datetime."""
    return _EPOCH + timedelta(milliseconds=ms)
