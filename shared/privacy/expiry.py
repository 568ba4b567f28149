"""Rows whose time is over, in tables that are not partitioned: deleted by the data map, hourly, in chunks, with receipts."""

from __future__ import annotations

import logging
from collections.abc import Iterable, Iterator, Sequence
from datetime import datetime, timedelta
from itertools import groupby
from typing import Any

from shared.mesh import Done, Partitioned, Service, Task, Transaction
from shared.mesh.partitions import add_receipt
from shared.privacy import store
from shared.privacy.data_map import Column, Rows, longest

log = logging.getLogger("steward.privacy")

EXPIRE = "mesh-expire"
CHUNK = 10_000
"""Rows that one transaction deletes at most."""

# What ends with an event of its own: the erasure of the account, the case's certificate, the law, a release.
_ENDED_BY_AN_EVENT = {
    ("account_closed", "account_closure"),
    ("erasure_confirmed", "account_closure"),
}
_ENDED_BY_LAW = ("billing_record", "legal_hold")


class Expiry:
    """Ends the rows of one service's tables. `rows` with `expires` are looked through in their order."""

    def __init__(self, rows: Iterable[Rows]) -> None:
        self._rows = tuple(each for each in rows if each.expires is not None)

    async def begin(self, now: datetime, tx: Transaction) -> None:
        """Asks for one round over the tables; one that is under way already will do."""
        if self._rows:
            await tx.enqueue(EXPIRE, "round", {})

    async def expire(self, task: Task, tx: Transaction) -> Any:
        """One chunk: up to `CHUNK` rows of one table. A table's receipt comes with the last of its chunks."""
        at, gone = task.position or (0, 0)
        if at >= len(self._rows):
            return Done()
        rows = self._rows[at]
        moved = await store.delete_expired(tx.db, rows, tx.now, CHUNK)
        n = sum(count for _, count in moved)
        if rows.moves is not None:
            for values, count in moved:
                for name, sign in zip(rows.moves, (-1, 1), strict=True):
                    tx.count(name.format(**values), sign * count)
        if n == CHUNK:
            return at, gone + n
        if gone + n:
            await add_receipt(tx.db, rows.table, None, tx.now, gone + n, tx.now)
            log.info("%d rows of %s are over and deleted", gone + n, rows.table)
        return (at + 1, 0) if at + 1 < len(self._rows) else Done()


def attach_expiry(service: Service, rows: Iterable[Rows]) -> Expiry:
    """Makes `service` end the rows of its tables whose time is over: every hour, and once after each start."""
    expiry = Expiry(rows)
    service.job(EXPIRE, every=timedelta(hours=1))(expiry.begin)
    service.task(EXPIRE)(expiry.expire)
    caught_up = service.on_caught_up

    async def start(runtime: Any) -> None:
        if caught_up is not None:
            await caught_up(runtime)
        async with runtime.pool.acquire() as db, db.transaction():
            await expiry.begin(runtime.clock.now(), Transaction(service.name, db, runtime.clock.now()))

    service.on_caught_up = start
    return expiry


def unending(columns: Iterable[Column], rows: Iterable[Rows], partitioned: Sequence[Partitioned]) -> tuple[str, ...]:
    """Tables whose map promises an end that nothing brings about, a sentence each; empty when every promise is kept.

    A table ends by partition (`keeps`), by `expires`, or says in `ends` what else ends its rows.
    """
    return tuple(_unending(list(columns), {each.table: each for each in rows}, {p.table: p for p in partitioned}))


def _unending(columns: Sequence[Column], rows: dict[str, Rows], partitioned: dict[str, Partitioned]) -> Iterator[str]:
    for table, group in groupby(sorted(columns, key=lambda c: c.table), key=lambda c: c.table):
        clocked = [c for c in group if c.personal and not _ended_by_an_event(c)]
        if not clocked:
            continue
        own, parts = rows.get(table), partitioned.get(table)
        keeps = None if parts is None else parts.keeps
        if keeps is None and (own is None or (own.expires is None and not own.ends)):
            yield (
                f"{table}: {clocked[0].column} has a period, yet its rows never end: give its Partitioned `keeps`, or its "
                "Rows `expires`"
            )
        shortest = min((p for c in clocked if (p := longest(c.period)) is not None), default=None)
        if keeps is not None and shortest is not None and keeps > shortest:
            yield f"{table}: its partitions are kept {keeps.days} days, and the map promises {shortest.days}"
    known = {column.table for column in columns}
    for table in sorted(partitioned.keys() - known):
        yield f"{table}: is partitioned, and no column of it is in the map"


def _ended_by_an_event(column: Column) -> bool:
    return column.period in _ENDED_BY_LAW or (column.clock_start, column.period) in _ENDED_BY_AN_EVENT
