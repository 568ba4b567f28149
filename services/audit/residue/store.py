"""What a scan reads: the catalogue of each database, rows that hold an id, and topics from their first record on."""

from __future__ import annotations

import re
from collections.abc import AsyncIterator, Collection, Mapping, Sequence
from datetime import datetime
from typing import Any, NamedTuple

from aiokafka import AIOKafkaConsumer

from services.audit.residue.verdicts import Mapped
from shared.mesh.admin import end_offsets
from shared.mesh.settings import KafkaSettings
from shared.mesh.store import Connection

_NAME = re.compile(r"[a-z_][a-z0-9_]*")


class Table(NamedTuple):
    """A table and its columns, as the catalogue has them."""

    name: str
    texts: tuple[str, ...]
    arrays: tuple[str, ...]
    bytes: tuple[str, ...]


async def tables(db: Connection) -> list[Table]:
    """Every table of the database with the columns in which an id can stand."""
    rows = await db.fetch(
        """SELECT c.relname AS name, a.attname AS column, t.typname AS type
           FROM pg_class c JOIN pg_attribute a ON a.attrelid = c.oid JOIN pg_type t ON t.oid = a.atttypid
           WHERE c.relnamespace = 'public'::regnamespace AND c.relkind IN ('r', 'p') AND NOT c.relispartition
             AND a.attnum > 0 AND NOT a.attisdropped
           ORDER BY c.relname, a.attnum"""
    )
    found: dict[str, dict[str, list[str]]] = {}
    for row in rows:
        kinds = found.setdefault(row["name"], {"text": [], "array": [], "bytea": []})
        kind = {"text": "text", "varchar": "text", "_text": "array", "bytea": "bytea"}.get(row["type"])
        if kind is not None:
            kinds[kind].append(row["column"])
    return [Table(name, tuple(k["text"]), tuple(k["array"]), tuple(k["bytea"])) for name, k in found.items()]


async def data_map(db: Connection) -> dict[tuple[str, str], Mapped]:
    """What the holder declares of its columns; empty for a database that is no holder's."""
    if await db.fetchval("SELECT to_regclass('mesh_data_map') IS NULL"):
        return {}
    rows = await db.fetch("SELECT table_name, column_name, on_erasure, ground, period_days FROM mesh_data_map")
    return {(r["table_name"], r["column_name"]): Mapped(r["on_erasure"], r["ground"], r["period_days"]) for r in rows}


async def has_copies(db: Connection) -> bool:
    """Whether a holder knows of copies that it has made for people."""
    if await db.fetchval("SELECT to_regclass('mesh_export') IS NULL"):
        return False
    return bool(await db.fetchval("SELECT EXISTS (SELECT FROM mesh_export)"))


async def hits(db: Connection, table: Table, ids: Sequence[str]) -> dict[str, dict[str, int]]:
    """column -> id -> rows, of the columns whose whole value is one of the ids."""
    found: dict[str, dict[str, int]] = {}
    columns = table.texts + table.arrays
    if not columns or not _NAME.fullmatch(table.name):
        return found
    # Not `= ANY`: that is weighed id by id for each column of each partition, which takes seconds before anything is read.
    sought = "(SELECT value FROM sought)"
    terms = [f't."{c}" IN {sought}' for c in table.texts] + [f't."{c}" && $1' for c in table.arrays]
    values = [f'({n}, t."{c}"::text)' for n, c in enumerate(table.texts)]
    each = [f"SELECT n, value FROM (VALUES {', '.join(values)}) AS v (n, value)"] if values else []  # noqa: S608
    each += [f'SELECT {n}, unnest(t."{c}")::text' for n, c in enumerate(table.arrays, len(table.texts))]
    # Counted there: a limit on rows would let one case with many of them hide another's.
    statement = f"""
        WITH sought AS MATERIALIZED (SELECT unnest($1::text[]) AS value)
        SELECT h.n, h.value, count(*) AS rows
        FROM "{table.name}" t CROSS JOIN LATERAL ({" UNION ALL ".join(each)}) AS h (n, value)
        WHERE ({" OR ".join(terms)}) AND h.value IN {sought} GROUP BY h.n, h.value"""  # noqa: S608 -- of the catalogue
    for row in await db.fetch(statement, list(ids)):
        found.setdefault(columns[row["n"]], {})[row["value"]] = row["rows"]
    return found


async def payloads(db: Connection, table: Table) -> AsyncIterator[tuple[str, bytes]]:
    """(column, value) of every value of bytes in a table that is small by nature: outbox, dead letters, parked records."""
    for column in table.bytes:
        statement = f'SELECT "{column}" AS value FROM "{table.name}" WHERE "{column}" IS NOT NULL'  # noqa: S608
        async with db.transaction(readonly=True):
            async for row in db.cursor(statement, prefetch=1000):
                yield column, row["value"]


async def deep_hits(db: Connection, table: str, expression: str, ids: Collection[str]) -> dict[str, int]:
    """id -> rows of a table in whose text, or bytes, it stands anywhere."""
    if not _NAME.fullmatch(table):
        return {}
    statement = f'SELECT t::text AS row FROM "{table}" t WHERE t::text ~ $1'  # noqa: S608 -- of the catalogue
    found: dict[str, int] = {}
    # Row by row, and all of them: what is found for one case must not end the look for another.
    async with db.transaction(readonly=True):
        async for row in db.cursor(statement, expression, prefetch=1000):
            text = row["row"]
            for value in ids:
                if value in text or value.encode().hex() in text:
                    found[value] = found.get(value, 0) + 1
    return found


class Seen(NamedTuple):
    """A record in which ids stand."""

    topic: str
    ids: frozenset[str]
    at_ms: int


async def read_topics(kafka: KafkaSettings, topics: Sequence[str]) -> AsyncIterator[tuple[str, int, bytes]]:
    """(topic, LogAppendTime in ms, key and value) of every record that is there, from the log's start."""
    ends = {tp: end for tp, (begin, end) in (await end_offsets(kafka, topics)).items() if end > begin}
    if not ends:
        return
    consumer = AIOKafkaConsumer(**kafka.client(), auto_offset_reset="earliest", enable_auto_commit=False)
    await consumer.start()
    try:
        consumer.assign(list(ends))
        while ends:
            batches = await consumer.getmany(timeout_ms=500, max_records=10_000)
            for tp, records in batches.items():
                for record in records:
                    yield tp.topic, record.timestamp, (record.key or b"") + b" " + (record.value or b"")
            for tp in list(ends):
                if await consumer.position(tp) >= ends[tp]:
                    del ends[tp]
                    consumer.pause(tp)
    finally:
        await consumer.stop()


async def people_of_packages(db: Connection, packages: Sequence[str], swept: Sequence[str]) -> dict[str, list[str]]:
    """Of retention's database: of each package's case that is known there, those of the `swept` cases that erased its person,
    or that took it along (a workspace of the same account, when the package was there)."""
    rows = await db.fetch(
        """SELECT c.id, ARRAY(
                    SELECT t.case_id FROM tombstone t WHERE t.case_id = ANY($2) AND t.hash IN (c.subject_pseudonym, c.owner)
                    UNION
                    SELECT e.id FROM privacy_case e WHERE e.id = ANY($2) AND e.scope = 'workspace' AND e.owner = c.owner
                      AND p.made_at <= e.confirmed_at) AS gone_with
           FROM privacy_case c LEFT JOIN package p ON p.case_id = c.id WHERE c.id = ANY($1)""",
        packages, swept,
    )  # fmt: skip
    return {row["id"]: list(row["gone_with"]) for row in rows}


# --- audit's own -------------------------------------------------------------------------------------------------


async def add_scans(db: Connection, orders: Sequence[tuple[str, str, int, str, str, datetime]]) -> None:
    """Notes orders to scan, (attempt, case, epoch, action, sealed subjects, ordered at) each; known ones stay as they are."""
    await db.executemany(
        """INSERT INTO scan (attempt, case_id, epoch, action, sealed, ordered_at) VALUES ($1, $2, $3, $4, $5, $6)
           ON CONFLICT (attempt) DO NOTHING""",
        orders,
    )


async def waiting_scans(db: Connection, limit: int) -> list[Mapping[str, Any]]:
    """Scans that are still to be done, oldest first."""
    return list(
        await db.fetch(
            """SELECT attempt::text AS attempt, case_id::text AS case_id, epoch, action, sealed FROM scan
               WHERE done_at IS NULL ORDER BY ordered_at, attempt LIMIT $1""",
            limit,
        )
    )


async def finish_scans(db: Connection, seen: Sequence[tuple[str, Any]], now: datetime) -> None:
    """Keeps what was seen, (attempt, stores) each, and forgets who it was about."""
    await db.executemany(
        "UPDATE scan SET stores = $2, done_at = $3, sealed = NULL WHERE attempt = $1",
        [(attempt, stores, now) for attempt, stores in seen],
    )


async def any_waiting(db: Connection) -> bool:
    """Whether a scan is still to be done."""
    return bool(await db.fetchval("SELECT EXISTS (SELECT FROM scan WHERE done_at IS NULL)"))
