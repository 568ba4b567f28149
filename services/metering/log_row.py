"""A row of the request log, packed for COPY: what one generation has of its own, between what its kind has in common."""

from __future__ import annotations

from struct import Struct
from typing import Any

from shared.mesh import packed

COLUMNS = (
    "expires_on", "occurred_at", "generation_id", "input_tokens", "output_tokens", "amount_pico", "retention_days",
    "account", "workspace", "key_id", "provider", "model", "tier", "ended", "rule", "price_version", "generation_ref",
    "quantities", "record", "line",
)  # fmt: skip
# Each column is its length and its bytes; in front of all stands their number.
_OWN = Struct(">hiiiqi16siqiqiq").pack
_DAY_US = 86_400_000_000
_US_2000 = packed.EPOCH_2000_MS * 1000
_DAY_2000 = _US_2000 // _DAY_US
_RECORD = len(bytes(16)).to_bytes(4, "big")
_LINE = len(bytes(4)).to_bytes(4, "big")


def of_place(usage: Any) -> bytes:
    """The columns from `retention_days` to `key_id`, which all generations of one key share."""
    retention = packed.field(usage.log_retention_days.to_bytes(2, "big"))
    return retention + b"".join(map(packed.text, (usage.account, usage.workspace, usage.key)))


def of_way(usage: Any, tier: str, rule: str, price_version: str) -> bytes:
    """The columns from `provider` to `price_version`, which all share that are rated alike."""
    ended = f"{usage.outcome}/{usage.finish_reason or ''}"
    return b"".join(map(packed.text, (usage.provider, usage.model, tier, ended, rule, price_version)))


def row(
    at_us: int,
    retention_days: int,
    uuid: bytes,
    read: int,
    generated: int,
    amount_pico: int,
    place: bytes,
    way: bytes,
    ref: str | None,
    quantities: bytes,
) -> bytes:
    """A row without its end. `at_us`: event time, microseconds since 1970; it expires on the day of its last instant."""
    expires_day = at_us // _DAY_US + retention_days - _DAY_2000
    own = _OWN(
        len(COLUMNS), 4, expires_day, 8, at_us - _US_2000, 16, uuid, 8, read, 8, generated, 8, amount_pico
    )  # fmt: skip
    reference = packed.NULL if ref is None else len(told := ref.encode()).to_bytes(4, "big") + told
    return b"%b%b%b%b%b%b" % (own, place, way, reference, len(quantities).to_bytes(4, "big"), quantities)


def end(record: bytes) -> bytes:
    """The end of every row that points into `record` (16 bytes); the line's number, 4 bytes, comes after it."""
    return _RECORD + record + _LINE
