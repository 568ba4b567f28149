"""Master keys: what wraps all other keys. PostgreSQL never sees one."""

from __future__ import annotations

import base64
import os
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Protocol

from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.ciphers.aead import AESGCM

from shared.mesh.settings import Misconfigured, ServiceSettings
from shared.privacy.values import Tampered

_NONCE_BYTES = 12
_LINE = re.compile(r"([A-Za-z0-9_.-]{1,64}):([A-Za-z0-9+/]{43}=)")
_WHAT_TO_DO = "a master key is a line ID:BASE64 of 32 bytes, each id once; `steward keys rotate` adds one"


class KeySource(Protocol):
    """Wraps and unwraps keys, a batch at a time: a file now; a key management service fits here as well.

    `bound` is what a wrapped key belongs to: unwrapped for anything else it raises `Tampered`.
    """

    async def wrap(self, keys: Sequence[tuple[bytes, bytes]]) -> tuple[str, list[bytes]]:
        """(key, bound) each -> the id of the master key that wraps now, and the keys as it wraps them."""
        ...

    async def unwrap(self, master: str, keys: Sequence[tuple[bytes, bytes]]) -> list[bytes]:
        """(wrapped, bound) each -> keys. Raises `Misconfigured` for a master key that is not there, or `Tampered`."""
        ...

    def current(self) -> str:
        """The id of the master key that wraps now."""
        ...


class MasterKeys:
    """Master keys from text, a line `ID:BASE64` each, 32 bytes: the first one wraps, the others only unwrap.

    AES-256-GCM with a random nonce: one master key is good for 2^32 keys. From a file they are read again whenever the file
    has changed, so that a rotation needs no restart.
    """

    def __init__(self, text: str, file: Path | None = None) -> None:
        self._file, self._seen = file, None if file is None else _stamp(file)
        self._keys = _parsed(text)

    @classmethod
    def from_settings(cls, settings: ServiceSettings) -> MasterKeys:
        """From STEWARD_MASTER_KEY_FILE, else STEWARD_MASTER_KEY. Raises `Misconfigured`."""
        return cls.from_values(settings.master_key_file, settings.master_key)

    @classmethod
    def from_values(cls, file: str | None, text: str | None) -> MasterKeys:
        """From a file's name, else from a text. Raises `Misconfigured`."""
        if file:
            return cls(_read(Path(file)), Path(file))
        if text:
            return cls(text)
        raise Misconfigured("no master key: set STEWARD_MASTER_KEY_FILE (`steward up` makes one in its folder)")

    @staticmethod
    def new(name: str) -> str:
        """A new key, as a line of the file. A name is never used twice."""
        return f"{name}:{base64.b64encode(os.urandom(32)).decode()}"

    @property
    def ids(self) -> tuple[str, ...]:
        """The ids, the one that wraps first."""
        self._renew()
        return tuple(self._keys)

    def current(self) -> str:
        """The id of the key that wraps."""
        return self.ids[0]

    async def wrap(self, keys: Sequence[tuple[bytes, bytes]]) -> tuple[str, list[bytes]]:
        """See `KeySource`."""
        master = self.current()
        return master, [self._wrapped(master, key, bound) for key, bound in keys]

    async def unwrap(self, master: str, keys: Sequence[tuple[bytes, bytes]]) -> list[bytes]:
        """See `KeySource`."""
        if master not in self._keys:
            self._renew()
        if master not in self._keys:
            raise Misconfigured("a key is wrapped by a master key that is not configured here")
        aes = self._keys[master]
        try:
            return [aes.decrypt(raw[:_NONCE_BYTES], raw[_NONCE_BYTES:], bound) for raw, bound in keys]
        except (InvalidTag, ValueError):
            raise Tampered("a wrapped key is damaged, or was moved, or its master key's id was used twice") from None

    def _wrapped(self, master: str, key: bytes, bound: bytes) -> bytes:
        nonce = os.urandom(_NONCE_BYTES)
        return nonce + self._keys[master].encrypt(nonce, key, bound)

    def _renew(self) -> None:
        # Where it cannot be read just now (a secret is being replaced), what is known goes on.
        if self._file is not None and (stamp := _stamp(self._file)) not in (None, self._seen):
            self._keys, self._seen = _parsed(_read(self._file)), stamp


def _stamp(file: Path) -> tuple[int, int, int] | None:
    try:
        found = file.stat()
    except OSError:
        return None
    return found.st_ino, found.st_mtime_ns, found.st_size


def _read(file: Path) -> str:
    try:
        return file.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise Misconfigured(f"the master key file cannot be read: {type(error).__name__}") from None


def _parsed(text: str) -> dict[str, AESGCM]:
    keys: dict[str, AESGCM] = {}
    for line in filter(None, map(str.strip, text.splitlines())):
        match = _LINE.fullmatch(line)
        if match is None or match[1] in keys:
            raise Misconfigured(_WHAT_TO_DO)
        keys[match[1]] = AESGCM(base64.b64decode(match[2]))
    if not keys:
        raise Misconfigured(_WHAT_TO_DO)
    return keys
