"""The key database: its rows, and the keys of days, which end with the day that they protect."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from datetime import date, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

from shared.mesh.store import Connection

if TYPE_CHECKING:
    from shared.privacy.vault import Vault

MIGRATIONS = Path(__file__).parent / "migrations"


async def read(db: Connection, purpose: str, names: Sequence[str]) -> list[Any]:
    """The keys of these names, as they are stored."""
    return list(
        await db.fetch(
            "SELECT name, wrapped, wrapped_by, public FROM vault_key WHERE purpose = $1 AND name = ANY($2)",
            purpose, names,
        )
    )  # fmt: skip


async def add(db: Connection, rows: Sequence[tuple[Any, ...]]) -> None:
    """Adds keys; one that is there already stays."""
    await db.executemany(
        """INSERT INTO vault_key (purpose, name, wrapped, wrapped_by, public, created_at)
           VALUES ($1, $2, $3, $4, $5, $6) ON CONFLICT DO NOTHING""",
        rows,
    )


async def delete(db: Connection, purpose: str, names: Sequence[str]) -> int:
    """Deletes keys; returns how many there were."""
    rows = await db.fetch("DELETE FROM vault_key WHERE purpose = $1 AND name = ANY($2) RETURNING name", purpose, names)
    return len(rows)


async def delete_before(db: Connection, purpose: str, day: str) -> int:
    """Deletes the keys of days before `day` (ISO)."""
    rows = await db.fetch("DELETE FROM vault_key WHERE purpose = $1 AND name < $2 RETURNING name", purpose, day)
    return len(rows)


async def wrapped_by_others(db: Connection, master: str, limit: int) -> list[Any]:
    """Keys that another master key wraps, locked."""
    return list(
        await db.fetch(
            """SELECT purpose, name, wrapped, wrapped_by FROM vault_key WHERE wrapped_by <> $1
               ORDER BY purpose, name LIMIT $2 FOR UPDATE SKIP LOCKED""",
            master, limit,
        )
    )  # fmt: skip


async def rewrap(db: Connection, rows: Sequence[tuple[str, str, bytes, str]]) -> None:
    """Stores keys as they are wrapped now."""
    await db.executemany("UPDATE vault_key SET wrapped = $3, wrapped_by = $4 WHERE purpose = $1 AND name = $2", rows)


async def wrapped(db: Connection) -> Mapping[str, int]:
    """How many keys each master key wraps."""
    rows = await db.fetch("SELECT wrapped_by, count(*) AS n FROM vault_key GROUP BY wrapped_by")
    return {row["wrapped_by"]: row["n"] for row in rows}


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
        found = await self._vault.keys(self._purpose, sorted({day.isoformat() for day in days}), at=now)
        self._keys = {date.fromisoformat(name).toordinal(): key for name, key in found.items()}

    async def destroy_before(self, day: date) -> int:
        """Destroys the keys of all days before `day`: what they protected leads to nobody any more. Returns how many."""
        self._keys = {ordinal: key for ordinal, key in self._keys.items() if ordinal >= day.toordinal()}
        return await self._vault.destroy_days(self._purpose, day)
