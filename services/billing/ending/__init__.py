"""The end of the books: a booking year whose time the law says is over goes as a whole, and a checkpoint takes its place.

By the owner's hand, which the room's own role has not: nothing that books can drop what is booked. First the checkpoint is
committed, and from then on nobody counts the year any more; then its partitions are detached and dropped, each with a
receipt in `mesh_expiry`. Whoever dies between the two leaves what the next sweep finds.
"""

from __future__ import annotations

import logging
from datetime import UTC, datetime, time

import asyncpg

from services.billing.ending import store
from shared.mesh.partitions import add_receipt, end_piece, pieces
from shared.mesh.store import Connection
from shared.policy import policy

log = logging.getLogger("steward.billing")


def over_at(legal_class: str, year: int) -> datetime:
    """From this instant on a booking year's books are kept no longer."""
    return datetime.combine(policy().books_end(legal_class, year), time(), UTC)


async def end_years(db: Connection, now: datetime) -> list[str]:
    """Ends every booking year of every legal class whose time is over at `now`. Needs the owner's role and no transaction.

    Returns the partitions that somebody reads: they are not counted any more, and dropped next time. Raises `Unbalanced`
    for books that do not sum to zero; these stay.
    """
    busy: list[str] = []
    if not await store.take_turn(db):
        return busy  # another process does the same work
    try:
        for legal_class in policy().billing_years:
            for year in await store.years(db, legal_class):
                if (end := over_at(legal_class, year)) <= now:
                    busy += await _end_year(db, legal_class, year, end, now)
    finally:
        await store.end_turn(db)
    return busy


async def _end_year(db: Connection, legal_class: str, year: int, end: datetime, now: datetime) -> list[str]:
    async with db.transaction(isolation="repeatable_read"):
        if await store.latest(db, legal_class) < year:
            for table, rows in (await store.make_checkpoint(db, legal_class, year, end, now)).items():
                if rows:
                    await add_receipt(db, table, None, end, rows, now)
    busy = []
    for root in store.roots(legal_class):
        for piece in await pieces(db, root):
            if piece.name != f"{root}_{year}":
                continue
            try:
                await end_piece(db, root, piece, end, now)
            except (asyncpg.LockNotAvailableError, asyncpg.ObjectInUseError):
                busy.append(piece.name)
    log.info(
        "the books of class %s end before %d; partitions that somebody reads: %d", legal_class, year + 1, len(busy)
    )
    return busy
