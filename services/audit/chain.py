"""The ledger's hash chain and the digests of its charge lines, computed again from their published form.

The form is stated in README.md (The chain); this is an implementation of that statement, not of billing's code.
"""

from __future__ import annotations

import hashlib
import struct
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime, timedelta
from functools import lru_cache
from typing import Any

import msgspec

GENESIS = bytes(32)
_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
_MICROSECOND = timedelta(microseconds=1)
_compact = msgspec.json.Encoder().encode


def instant(at: datetime) -> int:
    """Microseconds since 1970 (UTC)."""
    return (at - _EPOCH) // _MICROSECOND


def journal_form(row: Mapping[str, Any]) -> list[Any]:
    """A journal as its block's bytes have it. `row`: its columns, and `accounts` and `amounts` of its entries."""
    digest = row["lines_digest"]
    entries = sorted((account, int(amount)) for account, amount in zip(row["accounts"], row["amounts"], strict=True))
    return [
        row["id"], row["booking_year"], row["cause"], row["kind"], row["workspace_id"], row["period"],
        instant(row["booked_at"]), instant(row["event_at"]), row["adjusts_period"],
        None if digest is None else digest.hex(), [[account, str(amount)] for account, amount in entries],
    ]  # fmt: skip


def block_hash(
    legal_class: str, block: int, previous: bytes, booked_at: datetime, journals: Sequence[list[Any]]
) -> bytes:
    """The hash of a block, from its journals (`journal_form`, by id) and the hash of the block before it."""
    content = _compact([legal_class, block, previous.hex(), instant(booked_at), journals])
    return hashlib.sha256(content).digest()


def lines_digest(lines: Sequence[tuple[Any, ...]]) -> bytes:
    """The digest of one journal's charge lines, as `store.LINE_COLUMNS` has them, by (record, line)."""
    return hashlib.sha256(b"".join([_packed(*line) for line in lines])).digest()


_fixed = struct.Struct(">hi16siiiqiqi").pack
_int = struct.Struct(">ii").pack
_bigint = struct.Struct(">iq").pack
_NULL = b"\xff\xff\xff\xff"


def _packed(
    record: str, line: int, legal_class: str, year: int, workspace: int | None, hour: int, version: str, tier: str,
    terms: str, quantities: str, amount: int, listed: int, journal: int,
) -> bytes:  # fmt: skip
    used = quantities.encode()
    return b"".join(
        (
            _fixed(13, 16, bytes.fromhex(record.replace("-", "")), 4, line, 8, amount, 8, listed, len(used)), used,
            _int(4, hour), _text(version), _text(tier), _text(terms),
            _NULL if workspace is None else _bigint(8, workspace), _bigint(8, journal), _text(legal_class), _int(4, year),
        )
    )  # fmt: skip


@lru_cache(maxsize=4096)
def _text(value: str) -> bytes:
    raw = value.encode()
    return len(raw).to_bytes(4, "big") + raw
