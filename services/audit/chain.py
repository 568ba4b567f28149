"""The ledger's hash chain and the digests of its charge lines, computed again from their published form.

The form is stated in README.md (The chain); this is an implementation of that statement, not of billing's code.
Charge lines come as PostgreSQL's COPY writes them in binary, which is the very form that is hashed; they are taken
apart by columns, in C, since a statement of Python for each field would cost more than all that is proved with it.
"""

from __future__ import annotations

import hashlib
import struct
from collections.abc import Mapping, Sequence
from itertools import accumulate
from typing import Any, NamedTuple

import msgspec

GENESIS = bytes(32)
# PostgreSQL counts instants from the year 2000.
_EPOCH_OF_2000 = 946_684_800_000_000
_compact = msgspec.json.Encoder().encode


def instant(sent: bytes) -> int:
    """Microseconds since 1970 (UTC), from a timestamptz in PostgreSQL's binary form."""
    return int.from_bytes(sent, "big", signed=True) + _EPOCH_OF_2000


def block_hash(
    legal_class: str, block: int, previous: bytes, booked_at: int, journals: Sequence[Sequence[Any]]
) -> bytes:
    """The hash of a block (`booked_at` in microseconds since 1970), from its journals by id and the hash before it."""
    return hashlib.sha256(_compact([legal_class, block, previous.hex(), booked_at, journals])).digest()


def checkpoint_digest(
    legal_class: str, year: int, block: int, sealed: bytes, ahead: int, journals: int, lines: int, charged_pico: int,
    carried: Sequence[tuple[int, int]], previous: bytes,
) -> bytes:  # fmt: skip
    """The digest of a checkpoint: of what it says, of what is carried by account, and of the checkpoint before it."""
    amounts = [[account, str(pico)] for account, pico in carried]
    said = [legal_class, year, block, sealed.hex(), ahead, journals, lines, str(charged_pico), amounts, previous.hex()]
    return hashlib.sha256(_compact(said)).digest()


# --- charge lines ------------------------------------------------------------------------------------------------

LINE_COLUMNS = (
    "record", "line", "amount_pico", "list_pico", "quantities", "hour", "price_version", "tier", "terms",
    "workspace_id", "journal", "class", "booking_year",
)  # fmt: skip


class Rated(NamedTuple):
    """What a line was rated by; few lines differ in it. `hour` counts from 1970."""

    hour: int
    version: str
    tier: str
    terms: str


class Columns(NamedTuple):
    """Charge lines by column, by (journal, record, line). Row n of `packed` begins at `starts[n]`."""

    packed: bytes
    starts: Sequence[int]
    """One more than there are rows: the last one is where the rows end."""
    records: Sequence[bytes]
    numbers: Sequence[int]
    amounts: Sequence[int]
    listed: Sequence[int]
    quantities: Sequence[bytes]
    """As JSON."""
    rated: Sequence[bytes]
    """Packed; `kinds` says what it means."""
    workspaces: Sequence[int | None]
    journals: Sequence[int]
    kinds: Mapping[bytes, Rated]

    def digest(self, first: int, end: int) -> bytes:
        """Of the rows from `first` to before `end`."""
        return hashlib.sha256(memoryview(self.packed)[self.starts[first] : self.starts[end]]).digest()


class Malformed(Exception):
    """Rows that are not as COPY writes charge lines."""


_ROW = struct.pack(">hi", len(LINE_COLUMNS), 16)
_head = struct.Struct(">16siiiqiqi")
_tail = struct.Struct(">iqiq")
_length = struct.Struct(">i").unpack_from


def columns(packed: bytes, legal_class: str) -> Columns:
    """Takes rows apart. Raises `Malformed`."""
    if not packed:
        return Columns(packed, (0,), (), (), (), (), (), (), (), (), {})
    return _alike(packed, legal_class) or _one_by_one(packed)


def _alike(packed: bytes, legal_class: str) -> Columns | None:
    """The columns of rows that have class and year in common, as nearly always; None if they have not.

    What follows each row then divides the rows. It might stand within one, too, by chance or by design; so every
    length is looked at: rows whose lengths are all right can be divided in no other way.
    """
    end = _length_and(legal_class.encode()) + packed[-8:]
    if not packed.startswith(_ROW) or not packed.endswith(end) or packed[-8:-4] != b"\0\0\0\4":
        return None
    rows = packed[len(_ROW) : -len(end)].split(end + _ROW)
    try:
        records, fours, numbers, eights, amounts, also_eights, listed, sizes = zip(
            *map(_head.unpack_from, rows), strict=True
        )
        far_eights, workspaces, last_eights, journals = zip(
            *map(_tail.unpack, [row[-_tail.size :] for row in rows]), strict=True
        )
    except struct.error:
        return None
    if set(fours) != {4} or {*eights, *also_eights, *far_eights, *last_eights} != {8} or min(sizes) < 0:
        return None
    start = _head.size
    stops = [start + size for size in sizes]
    quantities = [row[start:stop] for row, stop in zip(rows, stops, strict=True)]
    rated = [row[stop : -_tail.size] for row, stop in zip(rows, stops, strict=True)]
    kinds: dict[bytes, Rated] = {}
    for key in set(rated):
        kind = _rated(key)
        if kind is None:
            return None
        kinds[key] = kind
    around = len(_ROW) + len(end)
    starts = list(accumulate([len(row) + around for row in rows], initial=0))
    return Columns(
        packed, starts, records, numbers, amounts, listed, quantities, rated, workspaces, journals, kinds
    )  # fmt: skip


def _rated(packed: bytes) -> Rated | None:
    """Four columns; None if they are not just these."""
    fields, at = _fields(packed, 0, 4)
    if at != len(packed) or any(field is None for field in fields) or len(fields[0] or b"") != 4:
        return None
    hour, *texts = fields
    try:
        return Rated(_int(hour), *((text or b"").decode() for text in texts))
    except UnicodeDecodeError:
        return None


def _fields(packed: bytes, at: int, n: int) -> tuple[list[bytes | None], int]:
    """`n` columns from `at` on, and where they end (beyond the end of `packed` if it ends too early)."""
    found: list[bytes | None] = []
    for _ in range(n):
        if at + 4 > len(packed):
            return found + [None] * (n - len(found)), len(packed) + 1
        (size,) = _length(packed, at)
        at += 4
        found.append(None if size < 0 else packed[at : at + size])
        at += max(0, size)
    return found, at


def _one_by_one(packed: bytes) -> Columns:
    """Any rows, column by column."""
    rows: list[tuple[Any, ...]] = []
    kinds: dict[bytes, Rated] = {}
    starts, at = [0], 0
    while at < len(packed):
        if packed[at : at + 2] != _ROW[:2]:
            raise Malformed(f"a charge line has not {len(LINE_COLUMNS)} columns")
        fields, end = _fields(packed, at + 2, len(LINE_COLUMNS))
        record, line, amount, listed, quantities, *four, workspace, journal, _, _ = fields
        key = b"".join(map(_length_and, four))
        kind = kinds.get(key) or _rated(key)
        sizes = [None if field is None else len(field) for field in (record, line, amount, listed, journal)]
        if end > len(packed) or kind is None or quantities is None or sizes != [16, 4, 8, 8, 8]:
            raise Malformed("a charge line lacks a column")
        kinds[key] = kind
        rows.append((record, _int(line), _int(amount), _int(listed), quantities, key,
                     None if workspace is None else _int(workspace), _int(journal)))  # fmt: skip
        starts.append(end)
        at = end
    records, numbers, amounts, lists, used, rated, workspaces, journals = zip(*rows, strict=True)
    return Columns(
        packed, starts, records, numbers, amounts, lists, list(used), list(rated), workspaces, journals, kinds
    )  # fmt: skip


def _int(field: bytes | None) -> int:
    return int.from_bytes(field or b"", "big", signed=True)


def _length_and(field: bytes | None) -> bytes:
    return b"\xff\xff\xff\xff" if field is None else len(field).to_bytes(4, "big") + field
