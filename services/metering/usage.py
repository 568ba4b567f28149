"""What one batch of generations becomes: rated lines, log rows and sums. No I/O, no clock."""

from __future__ import annotations

import zlib
from binascii import hexlify
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from datetime import UTC, date, datetime, timedelta
from operator import attrgetter, itemgetter
from typing import Any, NamedTuple, TypeAlias

import msgspec

from services.metering import charged, log_row
from services.metering.identity import EPOCH_ORDINAL
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
    round_half_even,
)
from services.metering.reconcile import Reported
from shared.contract.ids import derived_id

_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
_MICROSECOND = timedelta(microseconds=1)
HOUR_US = 3_600_000_000
DAY_US = 24 * HOUR_US
# One record stays well below the size that a broker takes.
LINES_PER_RECORD = 4_000
_NUMBERS = [number.to_bytes(4, "big") for number in range(LINES_PER_RECORD)]
_PLACES_MAX, _KINDS_MAX = 50_000, 5_000
_NO_BORDER = 2**63
_NEVER = -(2**63)

_encode = msgspec.json.Encoder().encode
_TERMS = {"byok": "byok", "data_sharing": "sharing"}


def hour_bound(day: date) -> str:
    """The first hour (since 1970) of a day, as an SQL literal."""
    return f"'{(day.toordinal() - EPOCH_ORDINAL) * 24}'"


def ordinal_bound(day: date) -> str:
    """A day's number since 1970, as an SQL literal."""
    return f"'{day.toordinal() - EPOCH_ORDINAL}'"


def target_partition(workspace: str, partitions: int) -> int:
    """Which partition carries a workspace's rated usage: always the same one."""
    return zlib.crc32(workspace.encode()) % partitions


# --- what it costs -----------------------------------------------------------------------------------------------


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
    quantities = billed_quantities(card.version, usage.tokens, usage.counts, rated.rule)
    terms = _TERMS.get(rated.rule, "list")
    # With the customer's own key the line carries the list price: billing's fee is a share of it.
    return Priced(rated, quantities, terms, rated.list_amount_pico if terms == "byok" else rated.amount_pico)


class Place:
    """Where usage is used: what generations of one key have in common in log rows and sums."""

    __slots__ = ("account", "columns", "days", "keep_us", "key", "workspace")

    def __init__(self, usage: Any) -> None:
        self.account, self.workspace, self.key = usage.account, usage.workspace, usage.key
        self.days: int = usage.log_retention_days
        self.keep_us = self.days * DAY_US if self.days else _NEVER
        self.columns = log_row.of_place(usage)


class Way:
    """How usage is rated: integer prices over a denominator, up to a border of input tokens (included), and what
    generations rated by it have in common in lines, log rows and sums."""

    __slots__ = (
        "border", "charge", "columns", "denominator", "hour", "middle", "model", "prices", "terms", "tier", "version",
    )  # fmt: skip

    def __init__(self, usage: Any, version: str, tier: str, rule: str, terms: str, card: Card | None = None) -> None:
        self.model, self.version, self.tier, self.terms = usage.model, version, tier, terms
        self.columns = log_row.of_way(usage, tier, rule, version)
        self.charge = charged.of_way(tier, rule, version)
        self.hour, self.middle = -1, b""
        self.prices: Mapping[str, int] = {} if card is None else card.prices
        self.denominator = 1 if card is None else card.denominator
        self.border = _NO_BORDER if card is None or card.lowest_border is None else card.lowest_border

    def at(self, hour: int) -> bytes:
        """The middle of a line of that hour: all between its id and its quantities."""
        if hour != self.hour:
            self.middle = b'",' + _encode((hour, self.version, self.tier, self.terms))[1:-1] + b","
            self.hour = hour
        return self.middle


class Kind:
    """Generations of one model that ended in one way. `fixed`: how they are rated, if it is the same at all times."""

    __slots__ = ("_book", "_usage", "_ways", "fixed", "plain")

    def __init__(self, book: PriceBook, usage: Any) -> None:
        self._book, self._usage = book, usage
        self._ways: dict[Card, Way] = {}
        self.fixed: Way | None = None
        self.plain = (
            usage.finish_reason in PLAIN_FINISH
            and usage.outcome == "completed"
            and not usage.byok
            and not usage.data_sharing
        )

    def at(self, event_at: datetime, known_at: datetime) -> Way | None:
        """How they are rated at a time; None if that takes the long way."""
        usage = self._usage
        card = self._book.card(usage.provider, usage.model, usage.tier, event_at, known_at)
        if isinstance(card, Unpriced) or card.version.minimum:
            return None
        way = self._ways.get(card)
        if way is None:
            way = self._ways[card] = Way(usage, card.price_version, card.label, "list", "list", card)
        if self._book.standing(usage.provider, usage.model, usage.tier) is card:
            self.fixed = way
        return way


_PLACE = attrgetter("account", "workspace", "key", "log_retention_days")
_KIND = attrgetter("provider", "model", "tier", "outcome", "finish_reason", "byok", "data_sharing")


class Known:
    """Places and kinds that this process has met. Names come from outside: it starts again when there are many."""

    def __init__(self, book: PriceBook) -> None:
        self._book = book
        self.places: dict[Any, Place] = {}
        self.kinds: dict[Any, Kind] = {}

    def place(self, usage: Any) -> Place:
        """A place that was not met before."""
        if len(self.places) >= _PLACES_MAX:
            self.places.clear()
        place = self.places[_PLACE(usage)] = Place(usage)
        return place

    def kind(self, usage: Any) -> Kind:
        """A kind that was not met before."""
        if len(self.kinds) >= _KINDS_MAX:
            self.kinds.clear()
        kind = self.kinds[_KIND(usage)] = Kind(self._book, usage)
        return kind


# --- what it leaves behind ---------------------------------------------------------------------------------------


Arrival: TypeAlias = tuple[Any, Any, int, int, bytes]
"""A generation: event, record, event time in microseconds since 1970, digest, UUID. Plain, for there are thousands."""

Line: TypeAlias = tuple[bytes, bytes, bytes | None]
"""The hash in its id (in hex), the line as JSON, its log row but for the end."""


@dataclass(slots=True)
class Unit:
    """Lines of one workspace."""

    account: str
    lines: list[Line] = field(default_factory=list)


@dataclass(slots=True)
class Effects:
    """Everything that rated usage leaves behind, gathered in memory for one transaction."""

    partitions: int
    sums_from_hour: int = 0
    day_keys: Mapping[int, bytes] = field(default_factory=dict)
    """The keys of the days of ids, by ordinal: without its day's key a generation leaves no charge to be corrected by."""
    units: dict[str, Unit] = field(default_factory=dict)
    rows: list[bytes] = field(default_factory=list)
    """Packed rows of the request log; complete once `records` is through."""
    charges: list[bytes] = field(default_factory=list)
    """Packed rows of `charged`: of what may still be corrected when its log row is gone, or never was."""
    sums: dict[tuple[Place, Way, int], list[int]] = field(default_factory=dict)
    rated: int = 0
    reported: list[Reported] = field(default_factory=list)
    """Rated generations whose provider says what it charged."""

    def add_plain(
        self, known: Known, arrivals: Iterable[tuple[bytes, Arrival]], now_us: int
    ) -> list[tuple[bytes, Arrival]]:
        """`price` and `add` in one go for what nearly all generations are; returns the others, untouched.

        Plain: completed for an ordinary reason, tokens only, nothing flagged, list price below any context border.
        One long function without calls, since this is where metering spends its time; a property test holds it against
        the long way.
        """
        others = []
        n = 0
        units, sums, places, kinds = self.units, self.sums, known.places, known.kinds
        window_us = now_us + charged.WINDOW_US
        for arrival in arrivals:
            n += 1
            line_id, (event, record, at_us, _, uuid) = arrival
            usage = event.data
            kind = kinds.get(_KIND(usage)) or known.kind(usage)
            way = None
            if kind.plain and not usage.counts and not usage.flags:
                way = kind.fixed or kind.at(event.time, instant(record.timestamp))
            if way is None:
                others.append(arrival)
                continue
            prices, denominator = way.prices, way.denominator
            tokens, read, generated = usage.tokens, usage.input_tokens, usage.output_tokens
            quantities = _encode(tokens)
            amount = 0
            try:
                for bucket, quantity in tokens.items():
                    amount += prices[bucket] * quantity
                if denominator != 1:
                    amount = round_half_even(amount, denominator)
            except KeyError:
                amount = -1
            if not 0 <= amount <= AMOUNT_PICO_MAX or read > way.border or b":0" in quantities:
                others.append(arrival)
                continue
            place = places.get(_PLACE(usage)) or known.place(usage)
            row = None
            if at_us + place.keep_us > now_us:
                row = log_row.row(
                    at_us, place.days, uuid, read, generated, amount, place.columns, way.columns, usage.generation_ref,
                    quantities,
                )  # fmt: skip
            if at_us + place.keep_us < window_us:
                self._charge(line_id, place, way, at_us, read, generated, amount, quantities)
            if usage.cost_reported_pico is not None:
                self.reported.append(Reported(usage, event.time, instant(record.timestamp), amount, amount, "list"))
            hour = at_us // HOUR_US
            hexed = hexlify(line_id)
            line = b'["%b%b%b,"%d"]' % (hexed, way.middle if hour == way.hour else way.at(hour), quantities, amount)
            unit = units.get(place.workspace)
            if unit is None:
                unit = units[place.workspace] = Unit(place.account)
            unit.lines.append((hexed[12:], line, row))
            total = sums.get(sums_of := (place, way, hour))
            if total is None:
                sums[sums_of] = [1, read, generated, amount]
            else:
                total[0] += 1
                total[1] += read
                total[2] += generated
                total[3] += amount
        self.rated += n - len(others)
        return others

    def _charge(
        self, key: bytes, place: Place, way: Way, at_us: int, read: int, generated: int, amount_pico: int, quantities: bytes
    ) -> None:  # fmt: skip
        owned = charged.owner(key, place.workspace, self.day_keys)
        if owned is not None:
            self.charges.append(
                charged.row(key, owned, at_us, place.days, read, generated, amount_pico, way.charge, quantities)
            )

    def add(
        self, usage: Any, uuid: bytes | None, line_id: bytes, at_us: int, priced: Priced, now_us: int,
        key: bytes | None = None,
    ) -> None:  # fmt: skip
        """A rated generation: its line, its share of the sums and, if its workspace keeps one, its log row.

        No row without `uuid`, nor if it has expired at `now_us`. Both instants: microseconds since 1970. `key`: what the
        generation is remembered by, if its line has another id; empty if by nothing.
        """
        rated = priced.rated
        place, way = Place(usage), Way(usage, rated.price_version, rated.tier, rated.rule, priced.terms)
        row, reported = None, _encode({**usage.tokens, **usage.counts})
        if uuid is not None and at_us + place.keep_us > now_us:
            row = log_row.row(
                at_us, place.days, uuid, usage.input_tokens, usage.output_tokens, priced.amount_pico, place.columns,
                way.columns, usage.generation_ref, reported,
            )  # fmt: skip
        key = line_id if key is None else key
        if key and at_us + place.keep_us < now_us + charged.WINDOW_US:
            self._charge(
                key, place, way, at_us, usage.input_tokens, usage.output_tokens, priced.amount_pico, reported
            )  # fmt: skip
        self.add_line(place, way, line_id, at_us // HOUR_US, priced.quantities, priced.amount_pico, row)
        self.sum(place, way, at_us // HOUR_US, 1, usage.input_tokens, usage.output_tokens, rated.amount_pico)
        self.rated += 1

    def add_line(
        self, place: Place, way: Way, line_id: bytes, hour: int, quantities: Mapping[str, int], amount_pico: int,
        row: bytes | None = None,
    ) -> None:  # fmt: skip
        """One line of a rated record."""
        unit = self.units.setdefault(place.workspace, Unit(place.account))
        hexed = hexlify(line_id)
        unit.lines.append(
            (hexed[12:], b'["%b%b%b,"%d"]' % (hexed, way.at(hour), _encode(quantities), amount_pico), row)
        )

    def sum(
        self, place: Place, way: Way, hour: int, generations: int, read: int, generated: int, amount_pico: int
    ) -> None:
        """Adds to the sums that the rollups take."""
        before = self.sums.get((place, way, hour), (0, 0, 0, 0))
        more = (generations, read, generated, amount_pico)
        self.sums[place, way, hour] = [a + b for a, b in zip(before, more, strict=True)]

    @property
    def versions(self) -> set[str]:
        """Price versions that rated something."""
        return {way.version for _, way, _ in self.sums}

    def records(self) -> Iterable[tuple[int, str, list[dict[str, Any]]]]:
        """(partition, record id, units) of each record to publish; `rows` fills with the log rows that point there.

        Lines lie in the order of their hash, not of their time: at retention 0 an hour is all that is told.
        """
        by_partition: dict[int, list[tuple[str, Unit]]] = {}
        for workspace, unit in sorted(self.units.items(), key=itemgetter(0)):
            by_partition.setdefault(target_partition(workspace, self.partitions), []).append((workspace, unit))
        for partition, members in sorted(by_partition.items(), key=itemgetter(0)):
            open_units: list[dict[str, Any]] = []
            open_lines: list[Line] = []
            for workspace, unit in members:
                unit.lines.sort()
                for start in range(0, len(unit.lines), LINES_PER_RECORD):
                    chosen = unit.lines[start : start + LINES_PER_RECORD]
                    if open_lines and len(open_lines) + len(chosen) > LINES_PER_RECORD:
                        yield self._close(partition, open_units, open_lines)
                        open_units, open_lines = [], []
                    text = msgspec.Raw(b"[" + b",".join([line for _, line, _ in chosen]) + b"]")
                    open_units.append({"workspace": workspace, "account": unit.account, "lines": text})
                    open_lines += chosen
            if open_lines:
                yield self._close(partition, open_units, open_lines)

    def _close(
        self, partition: int, units: list[dict[str, Any]], lines: list[Line]
    ) -> tuple[int, str, list[dict[str, Any]]]:
        ids = b"".join([line[2:34] for _, line, _ in lines])
        record = derived_id(int(ids[:12], 16), "usage.rated", ids)
        end = log_row.end(bytes.fromhex(record.replace("-", "")))
        self.rows += [
            row + end + number for (_, _, row), number in zip(lines, _NUMBERS, strict=False) if row is not None
        ]
        return partition, record, units

    def totals(self) -> list[list[Any]]:
        """The sums by column, as the rollups take them: workspace, key, model, hour, generations, input tokens, output
        tokens, pico-dollars. Without key and model where no log is kept; empty columns if there are no sums."""
        rows = [
            (place.workspace, place.key, way.model, hour, *total)
            if place.days
            else (place.workspace, None, None, hour, *total)
            for (place, way, hour), total in self.sums.items()
            if hour >= self.sums_from_hour
            for total in _storable(total)
        ]
        return [list(column) for column in zip(*rows, strict=True)]


def _storable(total: list[int]) -> list[list[int]]:
    """A sum in parts whose amounts each fit a BIGINT: nearly always itself."""
    if -AMOUNT_PICO_MAX <= total[3] <= AMOUNT_PICO_MAX:
        return [total]
    half = total[3] // 2
    return [*_storable([*total[:3], half]), *_storable([0, 0, 0, total[3] - half])]


def instant(ms: int) -> datetime:
    """`ms` since 1970 as a datetime."""
    return _EPOCH + timedelta(milliseconds=ms)


def microseconds(at: datetime) -> int:
    """An instant in microseconds since 1970."""
    return (at - _EPOCH) // _MICROSECOND
