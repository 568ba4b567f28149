"""The key database: its rows, and the keys of days, which end with the day that they protect."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from datetime import date, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from shared.mesh.store import Connection, connect

if TYPE_CHECKING:
    from shared.privacy.vault import Vault

MIGRATIONS = Path(__file__).parent / "migrations"

# Where keys are read: the services' table, or the part of it that the auditor sees.
KEYS, AUDITOR_KEYS = "vault_key", "auditor_key"
_COLUMNS = "purpose, name, id, wrapped, wrapped_by, public"


class NewKey(NamedTuple):
    """A row to be added, in the order of its columns."""

    purpose: str
    name: str
    id: str
    wrapped: bytes
    wrapped_by: str
    public: bytes | None


async def read(db: Connection, table: str, purpose: str, names: Sequence[str]) -> list[Any]:
    """The keys of these names, as they are stored."""
    return list(
        await db.fetch(f"SELECT {_COLUMNS} FROM {table} WHERE purpose = $1 AND name = ANY($2)", purpose, names)  # noqa: S608 -- one of two constants
    )


async def read_ids(db: Connection, table: str, ids: Sequence[str]) -> list[Any]:
    """The keys of these ids, as they are stored."""
    return list(await db.fetch(f"SELECT {_COLUMNS} FROM {table} WHERE id = ANY($1)", ids))  # noqa: S608 -- likewise


async def alive(db: Connection, ids: Sequence[str]) -> set[str]:
    """Which of these key ids there are; the auditor may ask, too."""
    return {row["id"] for row in await db.fetch("SELECT id FROM vault_key WHERE id = ANY($1)", ids)}


async def add(db: Connection, rows: Sequence[NewKey], now: datetime) -> None:
    """Adds keys; one that is there already stays. `rows` in order of their names, as everybody adds them: no deadlock."""
    purposes, names, ids, wrapped, masters, publics = (list(column) for column in zip(*rows, strict=True))
    await db.execute(
        """INSERT INTO vault_key (purpose, name, id, wrapped, wrapped_by, public, created_at)
           SELECT *, $7::timestamptz FROM unnest($1::text[], $2::text[], $3::text[], $4::bytea[], $5::text[], $6::bytea[])
           ON CONFLICT (purpose, name) DO NOTHING""",
        purposes, names, ids, wrapped, masters, publics, now,
    )  # fmt: skip


async def delete(db: Connection, purpose: str, names: Sequence[str]) -> int:
    """Deletes keys; returns how many there were."""
    rows = await db.fetch("DELETE FROM vault_key WHERE purpose = $1 AND name = ANY($2) RETURNING name", purpose, names)
    return len(rows)


async def delete_before(db: Connection, purpose: str, day: str) -> int:
    """Deletes the keys of days before `day` (ISO, which sorts as days do)."""
    rows = await db.fetch("DELETE FROM vault_key WHERE purpose = $1 AND name < $2 RETURNING name", purpose, day)
    return len(rows)


async def wrapped_by_others(db: Connection, master: str, after: tuple[str, str], limit: int) -> list[Any]:
    """Keys that another master key wraps, behind (purpose, name), in order and locked."""
    return list(
        await db.fetch(
            """SELECT purpose, name, id, wrapped, wrapped_by FROM vault_key
               WHERE (purpose, name) > ($1, $2) AND wrapped_by <> $3
               ORDER BY purpose, name LIMIT $4 FOR UPDATE""",
            *after, master, limit,
        )
    )  # fmt: skip


async def rewrap(db: Connection, rows: Sequence[tuple[str, bytes, str]]) -> None:
    """Stores (id, wrapped, wrapped_by) as keys are wrapped now. Needs the owner's role."""
    await db.executemany("UPDATE vault_key SET wrapped = $2, wrapped_by = $3 WHERE id = $1", rows)


async def wrapped(db: Connection) -> Mapping[str, int]:
    """How many keys each master key wraps."""
    rows = await db.fetch("SELECT wrapped_by, count(*) AS n FROM vault_key GROUP BY wrapped_by ORDER BY wrapped_by")
    return {row["wrapped_by"]: row["n"] for row in rows}


async def purposes(db: Connection) -> list[Any]:
    """Of each purpose: how many keys (`n`), since when (`oldest`, `newest`)."""
    return list(
        await db.fetch(
            """SELECT purpose, count(*) AS n, min(created_at) AS oldest, max(created_at) AS newest
               FROM vault_key GROUP BY purpose ORDER BY purpose"""
        )
    )


async def scrub(owner_url: str) -> None:
    """Writes the table of keys anew, so that no destroyed key, wrapped as it was, is left in its files.

    Keys cannot be read meanwhile: some seconds for a million. What stays is said in README.md.
    """
    db = await connect(owner_url, "steward-keys-scrub")
    try:
        await db.execute("VACUUM (FULL) vault_key")
    finally:
        await db.close()


class DayKeys:
    """The keys of one purpose, by day (UTC). Reading is from memory; `ensure` goes to the key database.

    A day without a key is either too far away or over: it is not in `by_ordinal`, and what would need it is refused.
    """

    def __init__(self, vault: Vault, purpose: str) -> None:
        self._vault, self._purpose = vault, purpose
        self._keys: dict[int, bytes] = {}

    @property
    def by_ordinal(self) -> dict[int, bytes]:
        """Keys by `date.toordinal()`; for look-ups in a loop."""
        return self._keys

    async def ensure(self, days: Iterable[date], now: datetime) -> None:
        """Makes the keys that are not there yet and loads all of `days`; whoever comes first makes a day's key."""
        found = await self._vault.keys(self._purpose, {day.isoformat() for day in days}, at=now)
        self._keys = {date.fromisoformat(name).toordinal(): key.secret for name, key in sorted(found.items())}

    async def destroy_before(self, day: date) -> int:
        """Destroys the keys of all days before `day`: what they protected leads to nobody any more. Returns how many."""
        self._keys = {ordinal: key for ordinal, key in self._keys.items() if ordinal >= day.toordinal()}
        return await self._vault.destroy_days(self._purpose, day)
