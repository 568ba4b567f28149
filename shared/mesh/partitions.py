"""Partitions by day: made ahead, dropped when their time is over, without standing in anybody's way.

Every partition bears a mark, a comment that says of what it is a part and when it is over. The mark stays when it is
detached: so whoever died between detaching and dropping leaves nothing that the next sweep, or an auditor, would not
know. SQL of the catalogue; what a sweep has dropped stands in `mesh_expiry`.
"""

from __future__ import annotations

import logging
import re
from collections.abc import Awaitable, Callable, Iterable
from datetime import UTC, date, datetime, time, timedelta
from typing import Any, NamedTuple

import asyncpg

from shared.mesh import store
from shared.mesh.service import Partitioned
from shared.mesh.store import Connection
from shared.policy import policy

log = logging.getLogger("steward.mesh")

_DAY = timedelta(days=1)
# How long a sweep stands in a queue for a lock, before it lets everybody pass and comes again (ms).
_PATIENCE_MS = 400
_MARK = re.compile(r"partition of (\w+); over at (\S+)")


def day_of(end: datetime) -> date:
    """The partition of what has to be kept until `end`: the day (UTC) in which its time is over. Dropped when the day has
    ended, so up to 24 hours late: for a service ("for thirty days"), which rounds up."""
    return end.astimezone(UTC).date()


def last_day(end: datetime) -> date:
    """The partition of what has to be gone at `end`: the last day (UTC) that ends at or before it. For a maximum ("up to
    thirty days"), which rounds down."""
    return end.astimezone(UTC).date() - _DAY


class Piece(NamedTuple):
    """A partition as the catalogue has it. `over_at`: what its mark says (None: it has none, or is never over)."""

    name: str
    attached: bool
    pending: bool
    over_at: datetime | None
    rows: int


def over_at(table: Partitioned, after: date) -> datetime | None:
    """When the partition whose last day is the one before `after` is over; None = never."""
    if table.keeps is None:
        return None
    return datetime.combine(after, time(), UTC) + table.keeps


def wanted(table: Partitioned, now: datetime) -> list[tuple[date, date]]:
    """The spans of the partitions that there should be: no partition is made whose time is over."""
    return [
        (first, after)
        for first, after in table.spans(now.astimezone(UTC).date())
        if (end := over_at(table, after)) is None or end > now
    ]


def span_of(table: Partitioned, name: str) -> tuple[date, date] | None:
    """The span of a partition of `table`, by its name; None for another's."""
    found = re.fullmatch(rf"{table.table}_(\d{{8}})", name)
    if found is None:
        return None
    first = datetime.strptime(found[1], "%Y%m%d").replace(tzinfo=UTC).date()
    return first, (first + timedelta(days=32)).replace(day=1) if table.monthly else first + _DAY


def mark_of(table: Partitioned, after: date) -> str:
    """The comment on a partition."""
    end = over_at(table, after)
    return f"partition of {table.table}; over at {'never' if end is None else end.isoformat()}"


def read_mark(mark: str | None) -> tuple[str, datetime | None] | None:
    """(table, when it is over) of a partition's comment; None for a comment of another kind, or none."""
    found = _MARK.fullmatch(mark or "")
    if found is None:
        return None
    return found[1], None if found[2] == "never" else datetime.fromisoformat(found[2])


async def supply(db: Connection, table: Partitioned, now: datetime) -> None:
    """Makes the partitions that `table` needs, and sees that each bears the right mark. Needs the owner's role.

    Attaches what it has made: to make a partition in place would lock the whole table, and everybody who comes later
    would wait behind the longest reader.
    """
    have = {row["name"]: row["mark"] for row in await _attached(db, table.table)}
    missing = [(first, after) for first, after in wanted(table, now) if f"{table.table}_{first:%Y%m%d}" not in have]
    marks = {name: mark_of(table, span[1]) for name in have if (span := span_of(table, name)) is not None}
    stale = {name: mark for name, mark in marks.items() if have[name] != mark}
    if not missing and not stale:
        return
    async with db.transaction():
        await db.execute("SET LOCAL lock_timeout = '5s'")
        # Replicas that start together make them one after the other.
        await db.execute("SELECT pg_advisory_xact_lock(1867, -3)")
        have_now = {row["name"] for row in await _attached(db, table.table)}
        for first, after in missing:
            name = f"{table.table}_{first:%Y%m%d}"
            if name in have_now:
                continue
            if await db.fetchval("SELECT to_regclass($1) IS NOT NULL", name):
                continue  # detached, and not over: an auditor says so
            await db.execute(
                f"CREATE TABLE {name} (LIKE {table.table} INCLUDING DEFAULTS INCLUDING CONSTRAINTS INCLUDING STORAGE)"
            )
            await db.execute(f"COMMENT ON TABLE {name} IS '{mark_of(table, after)}'")
            await db.execute(
                f"ALTER TABLE {table.table} ATTACH PARTITION {name} "
                f"FOR VALUES FROM ({table.bound(first)}) TO ({table.bound(after)})"
            )
        for name, mark in stale.items():
            await db.execute(f"COMMENT ON TABLE {name} IS '{mark}'")


async def _attached(db: Connection, table: str) -> list[asyncpg.Record]:
    return await db.fetch(
        """SELECT c.relname AS name, i.inhdetachpending AS pending, obj_description(c.oid, 'pg_class') AS mark,
                  greatest(c.reltuples, pg_stat_get_live_tuples(c.oid), 0)::bigint AS rows
           FROM pg_inherits i JOIN pg_class c ON c.oid = i.inhrelid
           WHERE i.inhparent = $1::text::regclass ORDER BY c.relname""",
        table,
    )


async def pieces(db: Connection, table: str) -> list[Piece]:
    """The partitions of `table`, and those that were detached from it and still lie there."""
    found = []
    for row in await _attached(db, table):
        mark = read_mark(row["mark"])
        found.append(Piece(row["name"], True, row["pending"], None if mark is None else mark[1], row["rows"]))
    lying = await db.fetch(
        """SELECT c.relname AS name, obj_description(c.oid, 'pg_class') AS mark,
                  greatest(c.reltuples, pg_stat_get_live_tuples(c.oid), 0)::bigint AS rows
           FROM pg_class c
           WHERE c.relnamespace = 'public'::regnamespace AND c.relkind = 'r' AND NOT c.relispartition
             AND starts_with(obj_description(c.oid, 'pg_class'), 'partition of ' || $1 || ';') ORDER BY c.relname""",
        table,
    )
    for row in lying:
        mark = read_mark(row["mark"])
        if mark is not None:
            found.append(Piece(row["name"], False, False, mark[1], row["rows"]))
    return found


Reached = Callable[[str], Awaitable[Any]]


async def _nothing(point: str) -> None:
    return


async def sweep(
    db: Connection, tables: Iterable[Partitioned], now: datetime, *, reached: Reached = _nothing
) -> tuple[list[str], list[str]]:
    """Drops every partition whose time is over; returns the names of those that went, and of those that somebody reads.

    Needs the owner's role and a connection of its own, outside of any transaction. A reader is never waited for longer
    than a moment, and nobody queues behind: detaching takes no lock that readers and writers mind, and what is detached
    is nobody's way any more. While another process sweeps, every table counts as read: that one may go by an earlier
    time, or die in the middle. `reached` is called at the points between which a process may die (tests).
    """
    gone: list[str] = []
    busy: list[str] = []
    ending = [table for table in tables if table.keeps is not None]
    await db.execute(f"SET lock_timeout = '{_PATIENCE_MS}ms'")
    try:
        await db.execute("SELECT pg_advisory_lock(1867, -4)")
    except asyncpg.LockNotAvailableError:
        return gone, [table.table for table in ending]
    try:
        for table in ending:
            for piece in await pieces(db, table.table):
                span = span_of(table, piece.name)
                if span is None:
                    continue
                end = over_at(table, span[1])
                if end is None or end > now:
                    continue
                try:
                    await end_piece(db, table.table, piece, end, now, reached)
                    gone.append(piece.name)
                except asyncpg.ObjectNotInPrerequisiteStateError:
                    # A lock was not to be had, or another partition of the table waits for its own detaching.
                    busy.append(piece.name)
    finally:
        await db.execute("SELECT pg_advisory_unlock(1867, -4)")
    return gone, busy


async def end_piece(
    db: Connection, table: str, piece: Piece, end: datetime, now: datetime, reached: Reached = _nothing
) -> None:
    """Detaches a partition of `table` whose time was over at `end`, and drops it with a receipt. Needs the owner's role and
    no transaction. Raises LockNotAvailableError or ObjectInUseError while somebody reads it."""
    if piece.pending:
        # Whoever began to detach it died, or ran out of patience, in the middle.
        await db.execute(f"ALTER TABLE {table} DETACH PARTITION {piece.name} FINALIZE")
    elif piece.attached:
        await db.execute(f"ALTER TABLE {table} DETACH PARTITION {piece.name} CONCURRENTLY")
    await reached("partition_detached")
    async with db.transaction():
        await add_receipt(db, table, piece.name, end, piece.rows, now)
        await db.execute(f"DROP TABLE {piece.name}")
    await reached("partition_dropped")
    log.info("%s is over and dropped", piece.name)


async def add_receipt(
    db: Connection, table: str, partition: str | None, bound: datetime, rows: int, now: datetime
) -> None:
    """Notes what has ended: a partition, or rows of a table that is not partitioned (`partition` None). `bound`: the
    instant up to which time is over; `rows`: an estimate for a partition."""
    await db.execute(
        """INSERT INTO mesh_expiry (table_name, partition, bound, rows_estimate, dropped_at, policy_version)
           VALUES ($1, $2, $3, $4, $5, $6)""",
        table, partition, bound, rows, now, policy().version,
    )  # fmt: skip


async def drop_over(
    url: str,
    application: str,
    tables: Iterable[Partitioned],
    now: datetime,
    reached: Reached = _nothing,
    also: Callable[[Connection, datetime], Awaitable[list[str]]] | None = None,
) -> list[str]:
    """One sweep on a connection of its own; returns the partitions that somebody reads and that still wait. `also` ends, on
    the same connection, what has a rule of its own."""
    db = await store.connect(url, application)
    try:
        _, busy = await sweep(db, tables, now, reached=reached)
        return busy if also is None else busy + await also(db, now)
    finally:
        await db.close()
