"""Who an event is, without saying of whom: what de-duplication remembers."""

from __future__ import annotations

import zlib
from collections.abc import Iterator, Mapping, Sequence
from datetime import date
from functools import partial
from hashlib import blake2b
from struct import unpack
from typing import NamedTuple

from cryptography.hazmat.primitives.ciphers import Cipher, algorithms, modes

DAY_MS = 86_400_000
EPOCH_ORDINAL = date(1970, 1, 1).toordinal()


class Identity(NamedTuple):
    """Of one event id: the UUID, the instant in it (ms), what the event is remembered by, and the seed of its digest."""

    uuid: bytes
    made_ms: int
    key: bytes
    seed: int


def identities(ids: Sequence[str], day_keys: Mapping[int, bytes]) -> Iterator[Identity]:
    """The identity of each event id, in order; key empty = its day has none.

    A key is 6 bytes of the id's time and 10 of the id enciphered under its day's key: a pseudorandom function of the id
    (AES of single blocks that never repeat), of which nothing is left to compute once the day's key is destroyed. All
    ids of a batch take one call. `day_keys`: 32 bytes by day since year 1 (ordinal).
    """
    uuids = bytes.fromhex("".join(ids).replace("-", ""))
    made = [half >> 16 for half in _halves(uuids)[::2]]
    days = {ms // DAY_MS for ms in made}
    hidden = {day: encipher(uuids, key) for day in days if (key := day_keys.get(EPOCH_ORDINAL + day)) is not None}
    places = range(0, len(uuids), 16)
    if len(days) == len(hidden) == 1:
        (only,) = hidden.values()
        keys = [uuids[n : n + 6] + only[n : n + 10] for n in places]
        seeds = [half & 0xFFFF_FFFF for half in _halves(only)[1::2]]
    else:
        own = [hidden.get(ms // DAY_MS, b"")[n : n + 16] for n, ms in zip(places, made, strict=True)]
        keys = [uuids[n : n + 6] + block[:10] if block else b"" for n, block in zip(places, own, strict=True)]
        seeds = [int.from_bytes(block[12:], "big") for block in own]
    return map(_identity, zip([uuids[n : n + 16] for n in places], made, keys, seeds, strict=True))


_identity = partial(tuple.__new__, Identity)  # as Identity(*each), without a call of Python's


def _halves(blocks: bytes) -> tuple[int, ...]:
    """Blocks of 16 bytes as big-endian numbers of 8."""
    return unpack(f">{len(blocks) // 8}Q", blocks)


def encipher(blocks: bytes, key: bytes) -> bytes:
    """Each block of 16 bytes for itself (ECB), which is what is wanted here: equal ids must look equal."""
    return Cipher(algorithms.AES(key), modes.ECB()).encryptor().update(blocks)  # noqa: S305


def hidden(event_id: str, key: bytes) -> bytes:
    """An event id under a key, without its time: 10 bytes."""
    return encipher(bytes.fromhex(event_id.replace("-", "")), key)[:10]


def reversal_of(line_id: bytes) -> bytes:
    """The id of the line that takes the line `line_id`'s original back."""
    return line_id[:6] + blake2b(line_id, digest_size=10, person=b"reversal").digest()


def digest_of(content: bytes, seed: int) -> int:
    """A short digest of what an event says: tells same from different content, and no more. `seed`: its identity's."""
    return zlib.crc32(content, seed)


def day_bound(day: date) -> str:
    """Where the `seen` keys of a day begin, as an SQL literal."""
    return "'\\x" + ((day.toordinal() - EPOCH_ORDINAL) * DAY_MS).to_bytes(6, "big").hex() + "'"
