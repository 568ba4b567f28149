"""Rows for PostgreSQL's COPY in its binary format, packed by whoever makes them.

asyncpg encodes a row column by column and an array element by element, which for wide rows and long arrays costs more
than everything else that is done with them. A service that writes thousands of rows a batch packs them itself: `struct`
for runs of columns of fixed width, and what does not change from row to row once. The format is described with COPY in
PostgreSQL's manual.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from struct import pack

_HEADER = b"PGCOPY\n\xff\r\n\0" + bytes(8)
NULL = b"\xff\xff\xff\xff"
_TRAILER = b"\xff\xff"
_ROWS_A_MESSAGE = 500
EPOCH_2000_MS = 946_684_800_000
"""PostgreSQL counts time from 2000-01-01 UTC: a timestamptz in microseconds, a date in days."""


def field(value: bytes | None) -> bytes:
    """One column: text (as UTF-8), bytea, or the bytes of a number; None = NULL."""
    return NULL if value is None else len(value).to_bytes(4, "big") + value


def text(value: str | None) -> bytes:
    """One column of text."""
    return field(None if value is None else value.encode())


def texts(values: Sequence[str | None]) -> bytes:
    """One column of text[]."""
    told = [None if value is None else value.encode() for value in values]
    elements = [NULL if raw is None else len(raw).to_bytes(4, "big") + raw for raw in told]
    return _array(25, len(values), b"".join(elements))


def bigints(values: Sequence[int]) -> bytes:
    """One column of bigint[]."""
    sized = [8] * (2 * len(values))
    sized[1::2] = values
    return _array(20, len(values), pack(">" + "iq" * len(values), *sized))


def _array(element_oid: int, length: int, elements: bytes) -> bytes:
    # One dimension that counts from 1; elements may be NULL.
    return field(pack(">iiiii", 1, 1, element_oid, length, 1) + elements)


def messages(rows: Sequence[bytes]) -> Iterator[bytes]:
    """The stream that COPY reads: `rows`, each its 16-bit number of columns (big-endian) and then its columns."""
    yield _HEADER
    for start in range(0, len(rows), _ROWS_A_MESSAGE):
        yield b"".join(rows[start : start + _ROWS_A_MESSAGE])
    yield _TRAILER
