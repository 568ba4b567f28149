"""The vault: keys that end, so that what they protect ends with them, in every copy.

Each key is wrapped by a master key that comes from the configuration and that PostgreSQL never sees. Rotating the master
wraps the keys anew and leaves every row of every service alone.
"""

from __future__ import annotations

import json
import re
import secrets
import time
from collections import OrderedDict
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from datetime import date, datetime
from itertools import groupby
from operator import itemgetter
from typing import Any, TypeVar

from shared.contract.sealing import key_of, new_private_key, public_key_of, unseal
from shared.contract.units import Subject
from shared.mesh.migrate import migrate
from shared.mesh.settings import Misconfigured, ServiceSettings
from shared.mesh.store import Pool, open_pool
from shared.privacy import keys as store
from shared.privacy.masters import KeySource, MasterKeys
from shared.privacy.values import (
    Key,
    Shredded,
    SubjectHasher,
    Tampered,
    day_hmac,
    key_id_of,
    open_value,
    seal_value,
    subject_hash,
)

# A destroyed key is forgotten by every process within this (seconds).
REMEMBERED_SECONDS = 2.0
_MOST = 20_000
_CHUNK = 1_000
INGRESS, SUBJECT, CASE, HOLD, TOMBSTONE, LETTER = "ingress", "subject", "case", "hold", "tombstone", "letter"
# Their names lead to somebody: an id, which stands in values and which the auditor sees, must not.
_UNSPOKEN = frozenset((SUBJECT, CASE, HOLD))
_SPOKEN = re.compile(r"[A-Za-z0-9_-]{1,40}")

_S = TypeVar("_S", bytes, Subject)


class Vault:
    """Keys by purpose and name, made when first asked for with `at`, gone when destroyed.

    A key that is made is in the key database before the caller gets it, whatever becomes of the caller's own transaction.
    What is asked for often is remembered for `remembered` seconds, so a destroyed key can still be used that long by
    another process: what it seals then is shredded at once. `auditor`: reads with the auditor's rights, the keys of cases and
    of dead letters.
    """

    def __init__(
        self,
        pool: Pool,
        source: KeySource,
        *,
        auditor: bool = False,
        remembered: float = REMEMBERED_SECONDS,
        most: int = _MOST,
        monotonic: Callable[[], float] = time.monotonic,
    ) -> None:
        self._pool, self._source = pool, source
        self._table = store.AUDITOR_KEYS if auditor else store.KEYS
        self._cache = _Cache(remembered, most, monotonic)
        self.hasher: SubjectHasher

    async def open(self, now: datetime) -> None:
        """Loads what every process needs: the one key of the mesh by which subjects are hashed. It is never changed while
        a tombstone lives; a rotation of the master only wraps it anew."""
        self.hasher = SubjectHasher((await self.key(TOMBSTONE, "v1", at=now)).secret)

    async def keys(self, purpose: str, names: Collection[str], *, at: datetime | None = None) -> dict[str, Key]:
        """The keys of these names; those that are not there are made (`at`), or left out.

        Whoever comes first makes a key: processes that ask at once get the same one.
        """
        found = {name: key for name in names if (key := self._cache.named(purpose, name)) is not None}
        missing = sorted(set(names) - set(found))
        if not missing:
            return found
        async with self._pool.acquire() as db:
            rows = await store.read(db, self._table, purpose, missing)
            absent = sorted(set(missing) - {row["name"] for row in rows})
            if absent and at is not None:
                await store.add(db, await self._made(purpose, absent), at)
                rows += await store.read(db, self._table, purpose, absent)
        return found | {key.name: key for key in await self._unwrapped(rows)}

    async def key(self, purpose: str, name: str, *, at: datetime | None = None) -> Key:
        """One key. Raises `Shredded` when it is not there and not to be made."""
        key = (await self.keys(purpose, [name], at=at)).get(name)
        if key is None:
            raise Shredded("the key is destroyed")
        return key

    async def by_id(self, ids: Iterable[str]) -> dict[str, Key]:
        """The keys of these ids (`key_id_of(value)`); those that are destroyed are left out."""
        wanted = set(ids)
        found = {id: key for id in wanted if (key := self._cache.of_id(id)) is not None}
        missing = sorted(wanted - set(found))
        if missing:
            async with self._pool.acquire() as db:
                rows = await store.read_ids(db, self._table, missing)
            found |= {key.id: key for key in await self._unwrapped(rows)}
        return found

    async def destroy(self, purpose: str, names: Collection[str]) -> int:
        """Destroys keys; returns how many there were. Other processes forget them within `REMEMBERED_SECONDS`."""
        async with self._pool.acquire() as db:
            count = await store.delete(db, purpose, list(names))
        # Afterwards, or a look-up in between would remember it again.
        self._cache.forget((purpose, name) for name in names)
        return count

    async def destroy_days(self, purpose: str, before: date) -> int:
        """Destroys the day keys of days before `before`; returns how many there were."""
        async with self._pool.acquire() as db:
            count = await store.delete_before(db, purpose, before.isoformat())
        self._cache.forget_days(purpose, before.isoformat())
        return count

    async def there(self, purpose: str, names: Collection[str]) -> set[str]:
        """Which keys there are, by name."""
        async with self._pool.acquire() as db:
            return {row["name"] for row in await store.read(db, self._table, purpose, list(names))}

    async def alive(self, ids: Collection[str]) -> set[str]:
        """Which keys there are, by id, whoever asks: a value under any other is shredded."""
        async with self._pool.acquire() as db:
            return await store.alive(db, list(ids))

    # --- values ------------------------------------------------------------------------------------------------------

    async def subject_keys(self, subjects: Collection[_S], *, at: datetime | None = None) -> dict[_S, Key]:
        """The keys of subjects, under which their addresses and texts are sealed. A subject is (kind, id), or its hash.

        With `at` a subject without a key gets one: never ask so for whom an erasure has passed.
        """
        names = self._names(subjects)
        found = await self.keys(SUBJECT, names.values(), at=at)
        return {subject: found[name] for subject, name in names.items() if name in found}

    async def destroy_subjects(self, subjects: Collection[_S]) -> int:
        """The second lock behind an erasure: what was sealed for these subjects is unreadable in every copy."""
        return await self.destroy(SUBJECT, list(self._names(subjects).values()))

    def forget(self, subjects: Collection[_S]) -> None:
        """Forgets the keys of subjects now, e.g. when their tombstones arrive."""
        self._cache.forget((SUBJECT, name) for name in self._names(subjects).values())

    async def make_ingress(self, days: Iterable[date], now: datetime) -> None:
        """Makes the key pairs of days to which platforms seal. Days that are over get none."""
        today = now.date().isoformat()
        names = {day.isoformat() for day in days}
        await self.keys(INGRESS, {name for name in names if name >= today}, at=now)

    async def ingress(self, day: date) -> tuple[str, bytes]:
        """(id, public key) of a day. Raises `Shredded`."""
        key = await self.key(INGRESS, day.isoformat())
        assert key.public is not None
        return key.id, key.public

    async def opener(self, values: Iterable[str | None]) -> Callable[[str], str]:
        """Loads the private keys of `Sealed` values at once; returns what opens them, one by one, in memory.

        What it returns raises `Shredded` or `Tampered`, so that one bad value spoils no batch.
        """
        # A value may name any key: only those of ingress are for opening what arrives.
        found = await self.by_id({key_of(value) for value in values if value is not None})
        private = {id: key.secret for id, key in found.items() if key.purpose == INGRESS}

        def private_key_of(id: str) -> bytes:
            if id not in private:
                raise Shredded("the ingress key is destroyed")
            return private[id]

        def opens(value: str) -> str:
            try:
                return unseal(value, private_key_of)
            except ValueError:
                raise Tampered("a sealed value is damaged") from None

        return opens

    async def unseal(self, values: Sequence[str | None]) -> list[str | None]:
        """The texts of `Sealed` values, in memory. Raises `Shredded` or `Tampered` if one of them cannot be opened."""
        opens = await self.opener(values)
        return [None if value is None else opens(value) for value in values]

    # --- cases and holds ---------------------------------------------------------------------------------------------

    async def case_key(self, case: str, *, at: datetime | None = None) -> Key:
        """A case's own key, made if it is not there (`at`). Raises `Shredded`."""
        return await self.key(CASE, case, at=at)

    async def destroy_case(self, case: str) -> None:
        """Ends a case's key: nobody can tell any more whom the case was about."""
        await self.destroy(CASE, [case])

    async def seal_subjects(self, case: str, subjects: Iterable[Subject], now: datetime) -> str:
        """Whom a case is about, under the case's own key."""
        return seal_value(await self.case_key(case, at=now), json.dumps(sorted(subjects)), where="case.subjects")

    async def open_subjects(self, case: str, sealed: str) -> list[Subject]:
        """Whom a case is about. Raises `Shredded` when the case is over."""
        text = open_value(await self.case_key(case), sealed, where="case.subjects")
        return [(kind, value) for kind, value in json.loads(text)]

    async def open_cases(self, sealed: Collection[tuple[str, str]]) -> dict[str, list[Subject]]:
        """Whom cases are about, from (case, sealed) each; the keys are asked for together. Cases that are over are left
        out."""
        keys = await self.keys(CASE, {case for case, _ in sealed})
        found: dict[str, list[Subject]] = {}
        for case, value in sealed:
            if case in keys:
                try:
                    text = open_value(keys[case], value, where="case.subjects")
                except Shredded:
                    continue
                found[case] = [(kind, name) for kind, name in json.loads(text)]
        return found

    async def seal_held(self, hold: str, table: str, texts: Sequence[str], now: datetime) -> list[str]:
        """Copies of rows, under their hold's own key."""
        key = await self.key(HOLD, hold, at=now)
        return [seal_value(key, text, where=f"hold.{table}") for text in texts]

    async def open_held(self, hold: str, table: str, sealed: Sequence[str]) -> list[str]:
        """The copies of a hold, for its named readers. Raises `Shredded` after its release."""
        key = await self.key(HOLD, hold)
        return [open_value(key, text, where=f"hold.{table}") for text in sealed]

    async def destroy_held(self, hold: str) -> None:
        """Ends a hold's key."""
        await self.destroy(HOLD, [hold])

    # --- the master key ----------------------------------------------------------------------------------------------

    async def rotate(self) -> int:
        """Wraps all keys anew that another master key than the current one wraps; returns how many.

        In chunks, each a transaction: it may be cut off and called again. Needs the owner's rights on the key database. The
        old master key is needed until this has returned 0.
        """
        total, after = 0, ("", "")
        while True:
            async with self._pool.acquire() as db, db.transaction():
                rows = await store.wrapped_by_others(db, self._source.current(), after, _CHUNK)
                if not rows:
                    return total
                keys = await self._unwrapped(rows, remember=False)
                master, wrapped = await self._source.wrap([(key.secret, _belongs(key)) for key in keys])
                await store.rewrap(db, [(key.id, raw, master) for key, raw in zip(keys, wrapped, strict=True)])
            after = (rows[-1]["purpose"], rows[-1]["name"])
            total += len(rows)

    async def wrapped(self) -> Mapping[str, int]:
        """How many keys each master key wraps."""
        async with self._pool.acquire() as db:
            return await store.wrapped(db)

    # --- inside ------------------------------------------------------------------------------------------------------

    def _names(self, subjects: Collection[_S]) -> dict[_S, str]:
        asked: list[Any] = list(subjects)
        pairs = [subject for subject in asked if isinstance(subject, tuple)]
        hashed: dict[Any, bytes] = dict(zip(pairs, self.hasher.hashes(pairs), strict=True)) if pairs else {}
        return {subject: hashed.get(subject, subject).hex() for subject in asked}

    async def _made(self, purpose: str, names: Sequence[str]) -> list[store.NewKey]:
        keys = []
        for name in names:
            secret = new_private_key()
            public = public_key_of(secret) if purpose == INGRESS else None
            keys.append(Key(purpose, name, _new_id(purpose, name), secret, public))
        master, wrapped = await self._source.wrap([(key.secret, _belongs(key)) for key in keys])
        return [
            store.NewKey(purpose, key.name, key.id, raw, master, key.public)
            for key, raw in zip(keys, wrapped, strict=True)
        ]

    async def _unwrapped(self, rows: Sequence[Any], *, remember: bool = True) -> list[Key]:
        """The keys of rows, in order of the master keys that wrap them."""
        keys = []
        for master, group in groupby(sorted(rows, key=itemgetter("wrapped_by")), itemgetter("wrapped_by")):
            of_master = [(row, _bound(row["purpose"], row["name"], row["id"])) for row in group]
            secret = await self._source.unwrap(master, [(row["wrapped"], bound) for row, bound in of_master])
            keys += [
                Key(row["purpose"], row["name"], row["id"], raw, row.get("public"))
                for (row, _), raw in zip(of_master, secret, strict=True)
            ]
        if remember:
            self._cache.remember(keys)
        return keys


class _Cache:
    """Keys for a short while, at most `most` of them; the oldest go first."""

    def __init__(self, seconds: float, most: int, monotonic: Callable[[], float]) -> None:
        self._seconds, self._most, self._monotonic = seconds, most, monotonic
        self._named: OrderedDict[tuple[str, str], tuple[float, Key]] = OrderedDict()
        self._ids: dict[str, tuple[str, str]] = {}

    def named(self, purpose: str, name: str) -> Key | None:
        kept = self._named.get((purpose, name))
        return kept[1] if kept is not None and kept[0] > self._monotonic() else None

    def of_id(self, id: str) -> Key | None:
        place = self._ids.get(id)
        return None if place is None else self.named(*place)

    def remember(self, keys: Iterable[Key]) -> None:
        until = self._monotonic() + self._seconds
        for key in keys:
            place = (key.purpose, key.name)
            self.forget((place,))
            self._named[place] = (until, key)
            self._ids[key.id] = place
        while len(self._named) > self._most:
            self.forget((next(iter(self._named)),))

    def forget(self, places: Iterable[tuple[str, str]]) -> None:
        for place in places:
            kept = self._named.pop(place, None)
            if kept is not None:
                self._ids.pop(kept[1].id, None)

    def forget_days(self, purpose: str, before: str) -> None:
        self.forget([place for place in self._named if place[0] == purpose and place[1] < before])


def _new_id(purpose: str, name: str) -> str:
    # Random, since a key may be destroyed and its name come back: what the first one sealed is then shredded, not damaged.
    if purpose in _UNSPOKEN or _SPOKEN.fullmatch(f"{purpose}-{name}") is None:
        return secrets.token_urlsafe(12)
    return f"{purpose}-{name}-{secrets.token_hex(4)}"


def _bound(purpose: str, name: str, id: str) -> bytes:
    return f"{purpose}:{name}:{id}".encode()


def _belongs(key: Key) -> bytes:
    return _bound(key.purpose, key.name, key.id)


def vault_of(tx: Any) -> Vault:
    """The vault of the service in whose transaction this is."""
    vault: Vault = tx.plugged["vault"]
    return vault


async def open_vault(runtime: Any) -> Vault:
    """The vault of a running service; one for each, however often it is asked for. Raises `Misconfigured`.

    Audit's reads with the auditor's rights: the keys of cases and of dead letters, and no hashes.
    """
    vault: Vault | None = runtime.plugged.get("vault")
    if vault is None:
        settings: ServiceSettings = runtime.settings
        auditor = settings.name == "audit"
        if not settings.keys_database_url:
            raise Misconfigured(f"{settings.name} needs STEWARD_{'AUDITOR_' if auditor else ''}KEYS_DATABASE_URL")
        source = MasterKeys.from_settings(settings)
        if settings.keys_owner_database_url:
            await migrate(settings.keys_owner_database_url, "keys", store.MIGRATIONS, mesh=False)
        pool = await open_pool(settings.keys_database_url, size=2, application=f"steward-{settings.name}-keys")
        runtime.on_close(pool.close)
        vault = Vault(pool, source, auditor=auditor)
        if not auditor:
            await vault.open(runtime.clock.now())
        runtime.plugged["vault"] = vault
    return vault


__all__ = [
    "CASE",
    "HOLD",
    "INGRESS",
    "LETTER",
    "REMEMBERED_SECONDS",
    "SUBJECT",
    "TOMBSTONE",
    "Key",
    "KeySource",
    "MasterKeys",
    "Shredded",
    "SubjectHasher",
    "Tampered",
    "Vault",
    "day_hmac",
    "key_id_of",
    "open_value",
    "open_vault",
    "seal_value",
    "subject_hash",
]
