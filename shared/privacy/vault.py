"""The vault: keys that end, so that what they protect ends with them, in every copy.

Each key is wrapped by a master key that comes from the configuration and that PostgreSQL never sees. Rotating the master
wraps the keys anew and leaves every row of every service alone.
"""

from __future__ import annotations

import base64
import hashlib
import hmac
import json
import os
import time
from collections import OrderedDict
from collections.abc import Collection, Iterable, Mapping, Sequence
from datetime import date, datetime
from pathlib import Path
from typing import Any, Protocol

from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey
from cryptography.hazmat.primitives.ciphers.aead import AESGCM

from shared.contract.sealing import decoded, encoded, new_private_key, padded, unpadded, unseal
from shared.contract.units import Subject
from shared.mesh.migrate import migrate
from shared.mesh.settings import Misconfigured, ServiceSettings
from shared.mesh.store import Pool, open_pool
from shared.privacy import keys as store

_NONCE = 12
# A destroyed key is forgotten by every process within this (seconds).
_REMEMBERED = 2.0
_MOST = 20_000
_HASHES = 100_000  # of subjects that are active: some 25 MB
INGRESS, SUBJECT, CASE, HOLD, TOMBSTONE = "ingress", "subject", "case", "hold", "tombstone"


class Shredded(LookupError):
    """The key is destroyed, or never was: what it protected cannot be read any more."""


class Tampered(ValueError):
    """A value was changed, or stands where it was not sealed for."""


class KeySource(Protocol):
    """Wraps and unwraps keys: a file or the environment now; a key management service fits here as well."""

    @property
    def current(self) -> str:
        """Id of the master key that wraps new keys."""
        ...

    async def wrap(self, key: bytes, bound: bytes) -> bytes: ...

    async def unwrap(self, wrapped: bytes, master: str, bound: bytes) -> bytes: ...


class MasterKeys:
    """Master keys by id, from text: a line `ID:BASE64` each, 32 bytes; the first one wraps, the others only unwrap."""

    def __init__(self, text: str) -> None:
        self._keys: dict[str, AESGCM] = {}
        for line in filter(None, map(str.strip, text.splitlines())):
            name, _, value = line.partition(":")
            try:
                raw = base64.b64decode(value, validate=True)
            except ValueError:
                raw = b""
            if not name or len(raw) != 32:
                raise Misconfigured("a master key is a line ID:BASE64 of 32 bytes; `steward keys new` prints one")
            self._keys[name] = AESGCM(raw)
        if not self._keys:
            raise Misconfigured("no master key: set STEWARD_MASTER_KEY_FILE (`steward up` makes one in its folder)")

    @classmethod
    def from_settings(cls, settings: ServiceSettings) -> MasterKeys:
        """From the file or the text that the settings name. Raises `Misconfigured`."""
        if settings.master_key_file:
            try:
                return cls(Path(settings.master_key_file).read_text(encoding="ascii"))
            except OSError as error:
                raise Misconfigured(f"the master key file cannot be read: {type(error).__name__}") from None
        return cls(settings.master_key or "")

    @staticmethod
    def new(name: str) -> str:
        """A new key, as a line of the file."""
        return f"{name}:{base64.b64encode(os.urandom(32)).decode()}"

    @property
    def current(self) -> str:
        return next(iter(self._keys))

    async def wrap(self, key: bytes, bound: bytes) -> bytes:
        nonce = os.urandom(_NONCE)
        return nonce + self._keys[self.current].encrypt(nonce, key, bound)

    async def unwrap(self, wrapped: bytes, master: str, bound: bytes) -> bytes:
        if master not in self._keys:
            raise Misconfigured("a key is wrapped by a master key that is not configured here")
        return self._keys[master].decrypt(wrapped[:_NONCE], wrapped[_NONCE:], bound)


class SubjectHasher:
    """The keyed hash under which a subject stands in tombstones and receipts; remembers what it has computed."""

    def __init__(self, key: bytes) -> None:
        self._key = key
        self._known: dict[Subject, bytes] = {}

    def hashes(self, subjects: Sequence[Subject]) -> list[bytes]:
        """16 bytes each: BLAKE2b with the mesh's own key, over kind and id."""
        known, key = self._known, self._key
        found = []
        for subject in subjects:
            digest = known.get(subject)
            if digest is None:
                text = f"{subject[0]}:{subject[1]}".encode()
                digest = known[subject] = hashlib.blake2b(text, digest_size=16, key=key).digest()
            found.append(digest)
        if len(known) > _HASHES:
            known.clear()
        return found


class Vault:
    """Keys by purpose and name, made when first asked for with `at`, gone when destroyed."""

    def __init__(self, pool: Pool, source: KeySource) -> None:
        self._pool, self._source = pool, source
        self._cache: OrderedDict[tuple[str, str], tuple[float, bytes]] = OrderedDict()
        self.hasher: SubjectHasher

    async def open(self, now: datetime) -> None:
        """Loads what every process needs."""
        self.hasher = SubjectHasher((await self.keys(TOMBSTONE, ["v1"], at=now))["v1"])

    async def keys(self, purpose: str, names: Collection[str], *, at: datetime | None = None) -> dict[str, bytes]:
        """The keys of these names; those that are not there are made (`at`), or left out."""
        limit = time.monotonic() - _REMEMBERED
        found = {}
        for name in names:
            kept = self._cache.get((purpose, name))
            if kept is not None and kept[0] > limit:
                found[name] = kept[1]
        missing = sorted(set(names) - set(found))
        if not missing:
            return found
        async with self._pool.acquire() as db:
            rows = await store.read(db, purpose, missing)
            absent = sorted(set(missing) - {row["name"] for row in rows})
            if absent and at is not None:
                made = []
                for name in absent:
                    key = new_private_key()
                    public = None
                    if purpose == INGRESS:
                        public = X25519PrivateKey.from_private_bytes(key).public_key().public_bytes_raw()
                    wrapped = await self._source.wrap(key, _bound(purpose, name))
                    made.append((purpose, name, wrapped, self._source.current, public, at))
                await store.add(db, made)
                # Whoever comes first makes a key: it is read again, whoever that was.
                rows += await store.read(db, purpose, absent)
        for row in rows:
            key = await self._source.unwrap(row["wrapped"], row["wrapped_by"], _bound(purpose, row["name"]))
            found[row["name"]] = key
            self._cache[purpose, row["name"]] = (time.monotonic(), key)
        while len(self._cache) > _MOST:
            self._cache.popitem(last=False)
        return found

    async def key(self, purpose: str, name: str, *, at: datetime | None = None) -> bytes:
        """One key. Raises `Shredded` when it is not there and not to be made."""
        key = (await self.keys(purpose, [name], at=at)).get(name)
        if key is None:
            raise Shredded("the key is destroyed")
        return key

    async def destroy(self, purpose: str, names: Collection[str]) -> int:
        """Destroys keys; returns how many there were. Other processes forget them within two seconds."""
        for name in names:
            self._cache.pop((purpose, name), None)
        async with self._pool.acquire() as db:
            return await store.delete(db, purpose, list(names))

    async def destroy_days(self, purpose: str, before: date) -> int:
        """Destroys the day keys of days before `before`."""
        async with self._pool.acquire() as db:
            return await store.delete_before(db, purpose, before.isoformat())

    async def there(self, purpose: str, names: Collection[str]) -> set[str]:
        """Which keys there are."""
        async with self._pool.acquire() as db:
            return {row["name"] for row in await store.read(db, purpose, list(names))}

    # --- values ------------------------------------------------------------------------------------------------------

    async def subject_keys(self, subjects: Collection[Subject], *, at: datetime | None = None) -> dict[Subject, bytes]:
        """The keys of subjects, under which their addresses and texts are sealed."""
        wanted = list(subjects)
        names = [digest.hex() for digest in self.hasher.hashes(wanted)]
        found = await self.keys(SUBJECT, names, at=at)
        return {subject: found[name] for subject, name in zip(wanted, names, strict=True) if name in found}

    async def destroy_subjects(self, subjects: Collection[Subject]) -> int:
        """The second lock behind an erasure: what was sealed for these subjects is unreadable in every copy."""
        return await self.destroy(SUBJECT, [digest.hex() for digest in self.hasher.hashes(list(subjects))])

    async def make_ingress(self, days: Iterable[date], now: datetime) -> None:
        """Makes the key pairs of days to which platforms seal."""
        await self.keys(INGRESS, [day.isoformat() for day in days], at=now)

    async def ingress(self, day: date) -> tuple[str, bytes]:
        """(id, public key) of a day. Raises `Shredded`."""
        async with self._pool.acquire() as db:
            rows = await store.read(db, INGRESS, [day.isoformat()])
        if not rows:
            raise Shredded("there is no ingress key for that day")
        return day.isoformat(), rows[0]["public"]

    async def unseal(self, values: Sequence[str | None]) -> list[str | None]:
        """The texts of `Sealed` values, in memory. Raises `Shredded` or `Tampered`."""
        names = {value.split(":")[2] for value in values if value is not None}
        private = await self.keys(INGRESS, names) if names else {}
        texts: list[str | None] = []
        for value in values:
            try:
                texts.append(None if value is None else unseal(value, private.__getitem__))
            except LookupError:
                raise Shredded("the ingress key is destroyed") from None
            except ValueError:
                raise Tampered("a sealed value is damaged") from None
        return texts

    # --- cases and holds ---------------------------------------------------------------------------------------------

    async def seal_subjects(self, case: str, subjects: Iterable[Subject], now: datetime) -> str:
        """Whom a case is about, under the case's own key."""
        key = await self.key(CASE, case, at=now)
        return seal_value(key, json.dumps(sorted(subjects)), where=f"case:{case}")

    async def open_subjects(self, case: str, sealed: str) -> list[Subject]:
        """Whom a case is about. Raises `Shredded` when the case is over."""
        text = open_value(await self.key(CASE, case), sealed, where=f"case:{case}")
        return [(kind, value) for kind, value in json.loads(text)]

    async def seal_held(self, hold: str, table: str, texts: Sequence[str], now: datetime) -> list[str]:
        """Copies of rows, under their hold's own key."""
        key = await self.key(HOLD, hold, at=now)
        return [seal_value(key, text, where=f"hold:{hold}:{table}") for text in texts]

    async def open_held(self, hold: str, table: str, sealed: Sequence[str]) -> list[str]:
        """The copies of a hold, for its named readers. Raises `Shredded` after its release."""
        key = await self.key(HOLD, hold)
        return [open_value(key, text, where=f"hold:{hold}:{table}") for text in sealed]

    async def destroy_held(self, hold: str) -> None:
        """Ends a hold's key."""
        await self.destroy(HOLD, [hold])

    async def rotate(self, limit: int = 1_000) -> int:
        """Wraps up to `limit` keys anew that another master key than the current one wraps; returns how many."""
        async with self._pool.acquire() as db, db.transaction():
            rows = await store.wrapped_by_others(db, self._source.current, limit)
            changes = []
            for row in rows:
                bound = _bound(row["purpose"], row["name"])
                key = await self._source.unwrap(row["wrapped"], row["wrapped_by"], bound)
                wrapped = await self._source.wrap(key, bound)
                changes.append((row["purpose"], row["name"], wrapped, self._source.current))
            await store.rewrap(db, changes)
        return len(changes)

    async def wrapped(self) -> Mapping[str, int]:
        """How many keys each master key wraps."""
        async with self._pool.acquire() as db:
            return await store.wrapped(db)


def _bound(purpose: str, name: str) -> bytes:
    return f"{purpose}:{name}".encode()


def seal_value(key: bytes, text: str, *, where: str) -> str:
    """`text` under `key`, readable only where it was sealed for: a table and column, a case."""
    nonce = os.urandom(_NONCE)
    return "v1:" + encoded(nonce + AESGCM(key).encrypt(nonce, padded(text.encode()), where.encode()))


def open_value(key: bytes, value: str, *, where: str) -> str:
    """The text of a sealed value. Raises `Tampered`."""
    try:
        raw = decoded(value.removeprefix("v1:"))
        return unpadded(AESGCM(key).decrypt(raw[:_NONCE], raw[_NONCE:], where.encode())).decode()
    except (InvalidTag, ValueError):
        raise Tampered("a sealed value is damaged, or stands in another place than it was sealed for") from None


def day_hmac(key: bytes, text: str) -> bytes:
    """16 bytes that tell equal values of one day apart from others, and nothing once the day's key is destroyed."""
    return hmac.digest(key, text.encode(), "sha256")[:16]


async def open_vault(runtime: Any) -> Vault:
    """The vault of a running service; one for each, however often it is asked for. Raises `Misconfigured`."""
    vault: Vault | None = runtime.plugged.get("vault")
    if vault is None:
        settings: ServiceSettings = runtime.settings
        if not settings.keys_database_url:
            raise Misconfigured(f"{settings.name} needs STEWARD_KEYS_DATABASE_URL")
        source = MasterKeys.from_settings(settings)
        if settings.keys_owner_database_url:
            await migrate(settings.keys_owner_database_url, "keys", store.MIGRATIONS, mesh=False)
        pool = await open_pool(settings.keys_database_url, size=2, application=f"steward-{settings.name}-keys")
        runtime.on_close(pool.close)
        vault = Vault(pool, source)
        if settings.keys_owner_database_url:
            await vault.open(runtime.clock.now())
        runtime.plugged["vault"] = vault
    return vault
