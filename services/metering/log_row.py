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
_RECORD = len(bytes(16)).to_bytes(4, "big")
_LINE = len(bytes(4)).to_bytes(4, "big")


def _texts(*values: str) -> bytes:
    return b"".join([len(told).to_bytes(4, "big") + told for told in map(str.encode, values)])


def of_place(usage: Any) -> bytes:
    """The columns from `retention_days` to `key_id`, which all generations of one key share."""
    retention = packed.field(usage.log_retention_days.to_bytes(2, "big"))
    return retention + _texts(usage.account, usage.workspace, usage.key)


def of_way(usage: Any, tier: str, rule: str, price_version: str) -> bytes:
    """The columns from `provider` to `price_version`, which all share that are rated alike."""
    ended = f"{usage.outcome}/{usage.finish_reason or ''}"
    return _texts(usage.provider, usage.model, tier, ended, rule, price_version)


def row(
    expires_day: int,
    at_us: int,
    uuid: bytes,
    read: int,
    generated: int,
    amount_pico: int,
    place: bytes,
    way: bytes,
    ref: str | None,
    quantities: bytes,
) -> bytes:
    """A row without its end. `expires_day` and `at_us`: days and microseconds since 2000-01-01."""
    reference = b"\xff\xff\xff\xff" if ref is None else len(told := ref.encode()).to_bytes(4, "big") + told
    return b"%b%b%b%b%b%b" % (
        _OWN(
            len(COLUMNS), 4, expires_day, 8, at_us, 16, uuid, 8, read, 8, generated, 8, amount_pico
        ),
        place,
        way,
        reference,
        len(quantities).to_bytes(4, "big"),
        quantities,
    )  # fmt: skip


def end(record: bytes) -> bytes:
    """The end of every row that points into `record` (16 bytes); the line's number, 4 bytes, comes after it."""
    return _RECORD + record + _LINE
