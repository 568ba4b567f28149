"""What a generation was charged, without a name: how it can be corrected when no row of the log says so.

Written for what its log does not outlive de-duplication with (log retention 0, or a few days), under the key that `seen`
has, and gone with the day of the id. Who knows a generation's id finds its charge; from a charge leads no way to
anybody: neither generation nor account, workspace or key stand there.
"""

from __future__ import annotations

from collections.abc import Mapping
from hashlib import blake2b
from struct import Struct

from services.metering.identity import DAY_MS, EPOCH_ORDINAL
from shared.mesh import packed
from shared.policy import policy

COLUMNS = (
    "key", "owner", "occurred_at", "retention_days", "input_tokens", "output_tokens", "amount_pico", "tier", "rule",
    "price_version", "quantities",
)  # fmt: skip
_DAY_US = DAY_MS * 1000
# A day is dropped when all of it is over.
WINDOW_US = policy().window.days * _DAY_US + _DAY_US
"""How long a charge stays at most, in microseconds: a log row that lives longer needs none beside it."""
# Each column is its length and its bytes; in front of all stands their number.
_OWN = Struct(">hi16si8siqihiqiqiq").pack
_US_2000 = packed.EPOCH_2000_MS * 1000


def owner(key: bytes, workspace: str, day_keys: Mapping[int, bytes]) -> bytes | None:
    """Tells whether a charge is a workspace's (8 bytes), with a generation's `key` and its day's (by ordinal) in hand; None
    if its day has no key."""
    day_key = day_keys.get(EPOCH_ORDINAL + int.from_bytes(key[:6], "big") // DAY_MS)
    if day_key is None:
        return None
    return blake2b(workspace.encode(), digest_size=8, key=day_key, salt=key[:16], person=b"charge").digest()


def of_way(tier: str, rule: str, price_version: str) -> bytes:
    """The columns from `tier` to `price_version`, which all share that are rated alike."""
    return b"".join(map(packed.text, (tier, rule, price_version)))


def row(
    key: bytes, owned: bytes, at_us: int, retention_days: int, read: int, generated: int, amount_pico: int, way: bytes,
    quantities: bytes,
) -> bytes:  # fmt: skip
    """A row, packed for COPY. `at_us`: event time, microseconds since 1970. The line's id tells it to the millisecond, and
    an hour alone would not say which price was valid."""
    own = _OWN(
        len(COLUMNS), 16, key, 8, owned, 8, at_us - _US_2000, 2, retention_days, 8, read, 8, generated, 8, amount_pico
    )  # fmt: skip
    return b"%b%b%b%b" % (own, way, len(quantities).to_bytes(4, "big"), quantities)
