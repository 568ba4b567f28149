"""Day keys: made two days ahead, kept in a database of their own, destroyed with the day that they protect."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from datetime import date, datetime
from pathlib import Path

from shared.mesh.store import Pool

MIGRATIONS = Path(__file__).parent / "migrations"


class DayKeys:
    """The keys of one purpose, by day (UTC). Reading is from memory; `ensure` goes to the key database.

    A day without a key is either too far away or over: `key` answers None, and what would need it is refused.
    """

    def __init__(self, pool: Pool, purpose: str, make: Callable[[int], bytes]) -> None:
        self._pool, self._purpose, self._make = pool, purpose, make
        self._keys: dict[int, bytes] = {}

    @property
    def by_ordinal(self) -> dict[int, bytes]:
        """Keys by `date.toordinal()`; for look-ups in a loop."""
        return self._keys

    async def ensure(self, days: Iterable[date], now: datetime) -> None:
        """Makes the keys that are not there yet and loads all of `days`; whoever comes first makes a day's key."""
        wanted = sorted(set(days))
        async with self._pool.acquire() as db:
            await db.executemany(
                """INSERT INTO day_key (purpose, day, key, created_at) VALUES ($1, $2, $3, $4)
                   ON CONFLICT (purpose, day) DO NOTHING""",
                [(self._purpose, day, self._make(32), now) for day in wanted if day.toordinal() not in self._keys],
            )
            rows = await db.fetch(
                "SELECT day, key FROM day_key WHERE purpose = $1 AND day = ANY($2)", self._purpose, wanted
            )
        self._keys = {row["day"].toordinal(): row["key"] for row in rows}
