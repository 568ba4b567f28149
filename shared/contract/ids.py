"""Identifiers: UUIDv7 for events (made once by the producer), content-derived ids for what the mesh itself says."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Callable

UUID7 = re.compile(r"[0-9a-f]{8}-[0-9a-f]{4}-7[0-9a-f]{3}-[89ab][0-9a-f]{3}-[0-9a-f]{12}")
MAX_MS = (1 << 48) - 1


def uuid7(unix_ms: int, random_bits: Callable[[int], int]) -> str:
    """A UUIDv7 (RFC 9562) of the instant `unix_ms` (milliseconds, UTC) with 74 bits from `random_bits(n)`.

    Clock and randomness are the caller's: pass `random.Random(seed).getrandbits` for a repeatable run.
    """
    if not 0 <= unix_ms <= MAX_MS:
        raise ValueError("unix_ms is outside of what a UUIDv7 can hold")
    return _format((unix_ms << 80) | random_bits(74))


def derived_id(unix_ms: int, *cause: str | bytes) -> str:
    """The id of an event that has a cause: the same cause gives the same id, whoever publishes it again."""
    digest = hashlib.sha256()
    for part in cause:
        raw = part.encode() if isinstance(part, str) else part
        digest.update(len(raw).to_bytes(4, "big") + raw)
    return _format(((unix_ms & MAX_MS) << 80) | (int.from_bytes(digest.digest()[:10], "big") >> 6))


def id_ms(event_id: str) -> int:
    """The instant in a UUIDv7, in milliseconds since 1970 (UTC)."""
    return int(event_id[:8] + event_id[9:13], 16)


def _format(bits: int) -> str:
    # 48 bits time | version 7 | 12 bits | variant 10 | 62 bits; the caller gives 48 + 74 bits without the six fixed ones.
    time, rest = bits >> 80, bits & ((1 << 74) - 1)
    value = (time << 80) | (0x7 << 76) | ((rest >> 62) << 64) | (0b10 << 62) | (rest & ((1 << 62) - 1))
    text = f"{value:032x}"
    return f"{text[:8]}-{text[8:12]}-{text[12:16]}-{text[16:20]}-{text[20:]}"
