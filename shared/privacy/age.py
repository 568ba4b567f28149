"""Files in the public format *age* (age-encryption.org/v1), written and read piece by piece: any age tool opens them.

For one person: a passphrase (scrypt), or an X25519 recipient. Here and not from a library, because none writes a file under
a passphrase without having all of it in memory; the tests hold this against one that was written by others (rage).
"""

from __future__ import annotations

import base64
import hashlib
import hmac
import io
import os
import re
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import BinaryIO

from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey, X25519PublicKey
from cryptography.hazmat.primitives.ciphers.aead import ChaCha20Poly1305
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.kdf.hkdf import HKDF

from shared.privacy.blobs import Sink

SHORTEST_PASSPHRASE = 12
"""Characters. Whoever has the file can try as many as they like, for as long as they like."""
_VERSION = b"age-encryption.org/v1"
_CHUNK, _TAG, _NONCE = 64 * 1024, 16, 16
# 2^17 blocks of 1 KB: 128 MB and some tenths of a second for each try. The tools' usual 2^18 would be more memory than
# all the rest of a package takes. Of files of others no more than this is tried (as age does).
_WORK, _MOST_WORK = 17, 22
_MOST_HEADER = 16 * 1024
_LETTERS = "qpzry9x8gf2tvdw0s3jn54khce6mua7l"
_SCRYPT = re.compile(rb"-> scrypt ([A-Za-z0-9+/]{22}) ([1-9][0-9]?)")
_X25519 = re.compile(rb"-> X25519 ([A-Za-z0-9+/]{43})")


class CannotOpen(ValueError):
    """A passphrase or a key is not the one of this file, or the file is damaged. The text says which, and no more."""


@dataclass(frozen=True, slots=True)
class Opener:
    """What opens a file: a passphrase, or the identity of `recipient` (`age1...`). Exactly one of them.

    Raises ValueError, whose text can be shown to whoever chose it.
    """

    passphrase: str | None = field(default=None, repr=False)
    recipient: str | None = None

    def __post_init__(self) -> None:
        if (self.passphrase is None) == (self.recipient is None):
            raise ValueError("a package is opened by a passphrase or by an age recipient: give one of them")
        if self.passphrase is not None and len(self.passphrase) < SHORTEST_PASSPHRASE:
            raise ValueError(f"the passphrase is too short: {SHORTEST_PASSPHRASE} characters at least")
        if self.recipient is not None:
            _bech32("age", self.recipient, "an age recipient is age1 and 58 letters and digits")


class Encrypting:
    """Enciphers what is written to it into `out`, for one `opener`. `close` writes the end: without it nothing opens."""

    def __init__(self, out: Sink, opener: Opener) -> None:
        file_key, nonce = os.urandom(16), os.urandom(_NONCE)
        head = _VERSION + b"\n" + _stanza(opener, file_key) + b"---"
        out.write(head + b" " + _encoded(_mac(file_key, head)) + b"\n" + nonce)
        self._out, self._cipher = out, ChaCha20Poly1305(_derived(file_key, nonce, b"payload"))
        self._waiting, self._number = bytearray(), 0

    def write(self, data: bytes, /) -> int:
        """Takes the next bytes. A chunk goes out when it is sure that it is not the last one."""
        self._waiting += data
        while len(self._waiting) > _CHUNK:
            self._put(bytes(self._waiting[:_CHUNK]), last=False)
            del self._waiting[:_CHUNK]
        return len(data)

    def flush(self) -> None:
        """Does nothing: what waits is no whole chunk."""

    def close(self) -> None:
        """Writes the last chunk, which says that it is the last one."""
        self._put(bytes(self._waiting), last=True)

    def _put(self, chunk: bytes, *, last: bool) -> None:
        self._out.write(self._cipher.encrypt(_chunk_nonce(self._number, last), chunk, None))
        self._number += 1


class Decrypting(io.RawIOBase):
    """What was enciphered, to be read from any place. `identity`: `AGE-SECRET-KEY-1...`.

    Raises `CannotOpen`, at once for a wrong key and for a file that was cut off, while reading for what was changed.
    """

    def __init__(self, file: BinaryIO, *, passphrase: str | None = None, identity: str | None = None) -> None:
        head = _Head.read(file)
        file_key = head.file_key(passphrase, identity)
        if not hmac.compare_digest(_mac(file_key, head.signed), head.mac):
            raise CannotOpen("the file is damaged: its head was changed")
        self._file, self._cipher = file, ChaCha20Poly1305(_derived(file_key, head.nonce, b"payload"))
        self._start = file.tell()
        sealed = file.seek(0, io.SEEK_END) - self._start
        self._last = max(0, -(-sealed // (_CHUNK + _TAG)) - 1)
        self._length = sealed - (self._last + 1) * _TAG
        self._place, self._held = 0, (-1, b"")
        if len(self._chunk(self._last)) == 0 and self._last:
            raise CannotOpen(_CUT)

    def readable(self) -> bool:
        """It is."""
        return True

    def seekable(self) -> bool:
        """It is."""
        return True

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        """Goes to a place."""
        base = {io.SEEK_SET: 0, io.SEEK_CUR: self._place, io.SEEK_END: self._length}[whence]
        self._place = max(0, base + offset)
        return self._place

    def readinto(self, buffer: memoryview, /) -> int:  # type: ignore[override]
        """The next bytes, up to the end of a chunk."""
        if self._place >= self._length:
            return 0
        number, inside = divmod(self._place, _CHUNK)
        piece = self._chunk(number)[inside : inside + len(buffer)]
        buffer[: len(piece)] = piece
        self._place += len(piece)
        return len(piece)

    def _chunk(self, number: int) -> bytes:
        if self._held[0] != number:
            self._file.seek(self._start + number * (_CHUNK + _TAG))
            sealed = self._file.read(_CHUNK + _TAG)
            try:
                opened = self._cipher.decrypt(_chunk_nonce(number, number == self._last), sealed, None)
            except (InvalidTag, ValueError):
                raise CannotOpen(_CUT if number == self._last else "the file is damaged") from None
            self._held = (number, opened)
        return self._held[1]


_CUT = "the file is damaged: it was cut off or changed at its end"


@dataclass(frozen=True, slots=True)
class _Head:
    """The head of a file: who can open it."""

    stanzas: tuple[tuple[bytes, bytes], ...]
    signed: bytes
    mac: bytes
    nonce: bytes

    @classmethod
    def read(cls, file: BinaryIO) -> _Head:
        """Raises `CannotOpen` for what is no age file."""
        lines = _lines(file)
        if next(lines) != _VERSION:
            raise CannotOpen("this is no age file (a text file of age, in armor, is not read here)")
        signed, stanzas, said, body = _VERSION + b"\n", [], b"", b""
        for line in lines:
            if line.startswith(b"--- "):
                stanzas += [(said, _decoded(body))] if said else []
                nonce = file.read(_NONCE)
                return cls(tuple(stanzas), signed + b"---", _decoded(line[4:]), nonce)
            signed += line + b"\n"
            if line.startswith(b"-> "):
                stanzas += [(said, _decoded(body))] if said else []
                said, body = line, b""
            else:
                body += line
        raise CannotOpen("the file is damaged: its head does not end")

    def file_key(self, passphrase: str | None, identity: str | None) -> bytes:
        """Raises `CannotOpen`."""
        if passphrase is not None:
            for said, body in self.stanzas:
                if (match := _SCRYPT.fullmatch(said)) and int(match[2]) <= _MOST_WORK:
                    found = _unwrapped(_stretched(passphrase, _decoded(match[1]), int(match[2])), body)
                    if found is None:
                        raise CannotOpen("this passphrase does not open the file")
                    return found
            raise CannotOpen("this file is not opened by a passphrase")
        secret = X25519PrivateKey.from_private_bytes(
            _bech32("age-secret-key-", (identity or "").strip().lower(), "this is no identity of age")
        )
        own = secret.public_key().public_bytes_raw()
        # A file can be for several, and does not say for whom.
        for said, body in self.stanzas:
            if match := _X25519.fullmatch(said):
                share = _decoded(match[1])
                if (found := _unwrapped(_agreed(secret, share, share + own), body)) is not None:
                    return found
        raise CannotOpen("this identity does not open the file")


def _lines(file: BinaryIO) -> Iterator[bytes]:
    left = _MOST_HEADER
    while left > 0:
        line = file.readline(left)
        left -= len(line)
        if not line.endswith(b"\n"):
            break
        yield line[:-1]
    raise CannotOpen("this is no age file, or it is damaged")


def _stanza(opener: Opener, file_key: bytes) -> bytes:
    """Who opens the file, and its key, wrapped for them."""
    if opener.passphrase is not None:
        salt = os.urandom(16)
        said, key = b"scrypt %s %d" % (_encoded(salt), _WORK), _stretched(opener.passphrase, salt, _WORK)
    else:
        recipient = _bech32("age", opener.recipient or "", "no recipient")
        once = X25519PrivateKey.generate()
        share = once.public_key().public_bytes_raw()
        said, key = b"X25519 " + _encoded(share), _agreed(once, recipient, share + recipient)
    body = ChaCha20Poly1305(key).encrypt(bytes(12), file_key, None)
    return b"-> " + said + b"\n" + _encoded(body) + b"\n"


def _unwrapped(key: bytes, body: bytes) -> bytes | None:
    """The key of a file; None when this key does not open it."""
    try:
        found = ChaCha20Poly1305(key).decrypt(bytes(12), body, None)
    except (InvalidTag, ValueError):
        return None
    return found if len(found) == 16 else None


def _stretched(passphrase: str, salt: bytes, work: int) -> bytes:
    """128 * 8 * 2**work bytes of memory; other threads go on meanwhile."""
    salt, memory = _VERSION + b"/scrypt" + salt, 1024 << work
    return hashlib.scrypt(passphrase.encode(), salt=salt, n=1 << work, r=8, p=1, maxmem=memory + 2**20, dklen=32)


def _agreed(secret: X25519PrivateKey, public: bytes, salt: bytes) -> bytes:
    try:
        shared = secret.exchange(X25519PublicKey.from_public_bytes(public))
    except ValueError:
        raise CannotOpen("the file, or the recipient, names a point that no key has") from None
    return _derived(shared, salt, _VERSION + b"/X25519")


def _derived(secret: bytes, salt: bytes, info: bytes) -> bytes:
    return HKDF(SHA256(), 32, salt, info).derive(secret)


def _mac(file_key: bytes, signed: bytes) -> bytes:
    return hmac.digest(_derived(file_key, b"", b"header"), signed, "sha256")


def _chunk_nonce(number: int, last: bool) -> bytes:
    return number.to_bytes(11, "big") + bytes([last])


def _encoded(raw: bytes) -> bytes:
    return base64.b64encode(raw).rstrip(b"=")


def _decoded(text: bytes) -> bytes:
    try:
        return base64.b64decode(text + b"=" * (-len(text) % 4), validate=True)
    except ValueError:
        raise CannotOpen("the file is damaged: its head was changed") from None


def _bech32(kind: str, text: str, otherwise: str) -> bytes:
    """The 32 bytes that stand in `text` (bech32, BIP 173). Raises ValueError with `otherwise`: it never repeats the text."""
    human, _, data = text.rpartition("1")
    try:
        values = [_LETTERS.index(letter) for letter in data]
        bits = 0
        for value in values[:-6]:
            bits = bits << 5 | value
        # 52 letters hold 260 bits: 32 bytes and four zeros.
        if human != kind or len(values) != 58 or bits & 15 or _checksum(kind, values) != 1:
            raise ValueError
        return (bits >> 4).to_bytes(32, "big")
    except ValueError:
        raise ValueError(otherwise) from None


def _checksum(human: str, values: list[int]) -> int:
    check = 1
    for value in [*(ord(c) >> 5 for c in human), 0, *(ord(c) & 31 for c in human), *values]:
        top, check = check >> 25, (check & 0x1FFFFFF) << 5 ^ value
        for n, generator in enumerate((0x3B6A57B2, 0x26508E6D, 0x1EA119FA, 0x3D4233DD, 0x2A1462B3)):
            check ^= generator if top >> n & 1 else 0
    return check
