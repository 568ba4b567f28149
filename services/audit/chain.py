"""The ledger's hash chain and the digests of its charge lines, computed again from their published form.

The form is stated in README.md (The chain); this is an implementation of that statement, not of billing's code.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime, timedelta
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
    """The digest of one journal's charge lines: all their columns in the table's order, rows by (record, line)."""
    return hashlib.sha256(_compact(lines)).digest()
