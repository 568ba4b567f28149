"""What a process of metering keeps in memory: prices, settings and the keys of the days."""

from __future__ import annotations

import asyncio
from datetime import UTC, datetime, timedelta
from typing import Any

from services.metering import store
from services.metering.identity import hidden
from services.metering.market import Market
from services.metering.price_book import PriceBook
from services.metering.price_desk import market_of
from services.metering.price_version import from_json
from services.metering.seed import GenaiPrices
from services.metering.usage import (
    Known,
)
from shared.mesh.store import Connection
from shared.policy import policy
from shared.privacy.keys import DayKeys
from shared.privacy.tombstones import Tombstones
from shared.privacy.vault import open_vault


class Room:
    """What this process keeps in memory: prices and the keys of the days."""

    def __init__(self, dedupe: bool = True) -> None:
        self.catalogue = GenaiPrices()
        self.book = PriceBook(catalogue=self.catalogue)
        self.known = Known(self.book)
        self.revision = -1
        self.settings: dict[str, int] = {}
        self.restricted: dict[str, int] = {}
        self.settings_revision = 0
        self.pinned: set[str] = set()
        self.dedupe = dedupe
        self.tombstones: Tombstones | None = None
        self.loaded = False
        self._market: Market | None = None
        self._market_revision = -1
        self.keys: DayKeys
        self.stale_keys: DayKeys

    async def open(self, runtime: Any) -> None:
        """Opens the key database and loads keys and prices."""
        vault = await open_vault(runtime)
        self.keys = DayKeys(vault, "seen")
        self.stale_keys = DayKeys(vault, "stale")
        await self.make_keys(runtime.clock.now())
        # Now, while others still read: the first batch would wait for it, and with it every partition that is claimed.
        self.catalogue.load()
        async with runtime.pool.acquire() as db:
            await self.refresh(db)

    async def make_keys(self, now: datetime) -> None:
        """Keys from the window's start to two days ahead, so that no midnight waits for the key database. The keys of
        days whose partition of `seen` is over are destroyed with it, and those of months that no stale id is of."""
        today = now.astimezone(UTC).date()
        back = policy().window.days
        await self.keys.ensure([today + timedelta(days=n) for n in range(-back, 3)], now)
        first = today.replace(day=1)
        before = (first - timedelta(days=1)).replace(day=1)
        await self.stale_keys.ensure([before, first], now)
        await self.keys.destroy_before(today - timedelta(days=back))
        await self.stale_keys.destroy_before(before)

    async def refresh(self, db: Connection, *, hold: bool = False) -> None:
        """Reads prices and settings again if one became known.

        `hold`: no price becomes known before this transaction ends, so that whatever it quarantines is there when a
        price that comes next releases what waits for it.
        """
        revision, settings_revision = await store.revisions(db, hold=hold)
        if settings_revision != self.settings_revision:
            self.settings |= await store.settings_since(db, store.OF_WORKSPACES, self.settings_revision)
            keys = self.restricted | await store.settings_since(db, store.OF_KEYS, self.settings_revision)
            # Whoever has taken a restriction back costs nothing any more.
            self.restricted = {key: days for key, days in keys.items() if days < policy().request_log_max_days}
            self.settings_revision = settings_revision
        if revision != self.revision:
            for body in await store.prices(db, self.revision):
                version = from_json(body)
                self.pinned.add(version.version)
                self.book.add(version)
            self.known.kinds.clear()
            self.revision = revision

    def kept_days(self, workspace: str, key: str, days: int) -> int:
        """How long a log row is kept: `days` as its event says, or shorter, if the workspace, or the maker of its key, is
        known to want that."""
        return min(days, self.settings.get(workspace, days), self.restricted.get(key, days))

    async def market(self, db: Connection, now: datetime) -> Market:
        """What the guard judges by: the catalogue's prices and what has been published since."""
        await self.refresh(db)
        if self._market is None or self._market_revision != self.revision:
            stated = [from_json(row["body"]) for row in await store.stated_prices(db) if not row["rejected"]]
            self._market = await asyncio.to_thread(market_of, GenaiPrices().all_versions(), stated, now)
            self._market_revision = self.revision
        return self._market

    def entered(self, revision: int) -> None:
        """The market knows what this revision of the prices brought."""
        self._market_revision = revision

    def stale_idents(self, event_id: str) -> list[bytes]:
        """What a stale id may be remembered by; the newest first."""
        newest_first = [self.stale_keys.by_ordinal[o] for o in sorted(self.stale_keys.by_ordinal, reverse=True)]
        return [bytes(6) + hidden(event_id, key) for key in newest_first]
