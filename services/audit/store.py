"""All that audit reads of others (SELECT only, as `steward_auditor`; topics without a group), and its own history.

Time comes in as a parameter.
"""

from __future__ import annotations

import contextlib
from collections.abc import AsyncGenerator, AsyncIterator, Collection, Mapping, Sequence
from datetime import datetime
from typing import Any, Literal, TypeAlias

import asyncpg
import msgspec
from aiokafka import AIOKafkaConsumer, TopicPartition

from services.audit.chain import columns
from services.audit.replay import Chain, Checkpoint, Part
from shared.contract.topics import GENERATIONS, PAYMENTS, USAGE_RATED
from shared.mesh.admin import end_offsets
from shared.mesh.settings import KafkaSettings
from shared.mesh.store import Connection

# A row as the driver gives it: columns by name, and in order.
Row: TypeAlias = Any

BATCH = 5_000
# A slice's lines; of 200 bytes each, so some 150,000 of them.
_MOST_BYTES = 32 * 1024 * 1024


class TooMuch(Exception):
    """A slice has more lines than are read at once: take fewer journals."""


class Source:
    """One database as the auditor sees it: a connection that is kept, and snapshots on it."""

    def __init__(self, url: str) -> None:
        self._url = url
        self._db: Connection | None = None

    @contextlib.asynccontextmanager
    async def snapshot(self) -> AsyncIterator[Connection]:
        """Sees the database as it is at the first statement, and can change nothing. Keep it short: while a snapshot
        is open nobody can clear away the old versions of the rows that the services change all the time."""
        if self._db is None or self._db.is_closed():
            self._db = await _connect(self._url)
        db = self._db
        try:
            async with db.transaction(isolation="repeatable_read", readonly=True):
                yield db
        except BaseException:
            # Whatever it was: the next snapshot is not to stumble over what this one has left on the way.
            self._db = None
            db.terminate()
            raise

    async def close(self) -> None:
        """Ends the connection."""
        db, self._db = self._db, None
        if db is not None:
            await db.close()


async def _connect(url: str) -> Connection:
    db: Connection = await asyncpg.connect(
        url,
        timeout=10,
        server_settings={
            "application_name": "steward-audit",
            "timezone": "UTC",
            # The other database is read meanwhile, which is no idleness.
            "idle_in_transaction_session_timeout": "0",
            "jit": "off",
        },
    )
    return db


async def _batches(db: Connection, statement: str, *arguments: Any) -> AsyncIterator[list[Row]]:
    cursor = await db.cursor(statement, *arguments)
    while rows := await cursor.fetch(BATCH):
        yield rows


# --- billing -----------------------------------------------------------------------------------------------------


async def blocks(db: Connection) -> dict[str, int]:
    """The newest block of each class's chain (0 = none). The first statement of the snapshot."""
    rows = await db.fetch(
        """SELECT h.class, coalesce((SELECT max(block) FROM chain c WHERE c.class = h.class), 0) AS block
           FROM chain_head h ORDER BY h.class"""
    )
    return {row["class"]: row["block"] for row in rows}


async def heads(db: Connection) -> dict[str, tuple[int, bytes]]:
    """What billing takes for the newest block of each chain."""
    return {r["class"]: (r["block"], r["hash"]) for r in await db.fetch("SELECT class, block, hash FROM chain_head")}


async def booked_offsets(db: Connection) -> dict[int, int]:
    """Up to where billing has booked rated usage, by partition."""
    rows = await db.fetch("SELECT part, next_offset FROM mesh_cursor WHERE topic = $1", USAGE_RATED.name)
    return {row["part"]: row["next_offset"] for row in rows}


async def accounts(db: Connection, after: int) -> AsyncIterator[list[Row]]:
    """Ledger accounts with a higher number than `after`, in order."""
    statement = "SELECT id, class, kind, workspace_id FROM ledger_account WHERE id > $1 ORDER BY id"
    async for rows in _batches(db, statement, after):
        yield rows


async def through(db: Connection) -> dict[str, int]:
    """Through which year the books of each class were dropped; classes of which none was are left out."""
    rows = await db.fetch("SELECT class, max(through_year) AS year FROM checkpoint GROUP BY class")
    return {row["class"]: row["year"] for row in rows}


async def checkpoints(db: Connection) -> list[Checkpoint]:
    """The newest checkpoint of each class, with what is carried."""
    rows = await db.fetch(
        """SELECT DISTINCT ON (c.class) c.*, s.hash AS sealed,
                  (SELECT b.digest FROM checkpoint b WHERE b.class = c.class AND b.through_year < c.through_year
                   ORDER BY b.through_year DESC LIMIT 1) AS before
           FROM checkpoint c LEFT JOIN chain s ON s.class = c.class AND s.block = c.block
           ORDER BY c.class, c.through_year DESC"""
    )
    found = []
    for row in rows:
        name = row["class"]
        carried = await db.fetch("SELECT account, amount_pico FROM carried WHERE class = $1 ORDER BY account", name)
        byok = await db.fetch("SELECT month, list_pico, fee_pico FROM carried_byok WHERE class = $1", name)
        found.append(
            Checkpoint(
                name, row["through_year"], row["block"], row["hash"], row["ahead"], row["journals"], row["lines"],
                int(row["charged_pico"]), row["prev"], row["digest"], row["before"], row["sealed"],
                [(r["account"], int(r["amount_pico"])) for r in carried],
                [(r["month"], int(r["list_pico"]), int(r["fee_pico"])) for r in byok],
            )
        )  # fmt: skip
    return found


# Instants in binary: they are hashed as numbers, and few differ.
_JOURNALS = """SELECT id, booking_year, cause, kind, workspace_id, period, timestamptz_send(booked_at) AS booked_at,
                      timestamptz_send(event_at) AS event_at, adjusts_period, lines_digest, block
               FROM journal WHERE class = $1 AND booking_year > $2"""


_ENTRIES = """SELECT journal, account, amount_pico FROM entry
              WHERE class = $1 AND booking_year > $2 AND journal BETWEEN $3 AND $4 {} ORDER BY journal, account"""
# In the order of `chain.LINE_COLUMNS`.
_LINES = """SELECT record, line, amount_pico, list_pico, quantities, hour, price_version, tier, terms, workspace_id, journal,
                   class, booking_year
            FROM charge_line WHERE class = $1 AND booking_year > $2 AND journal BETWEEN $3 AND $4 {}
            ORDER BY journal, record, line"""


async def next_part(db: Connection, chain: Chain, limit: int) -> Part:
    """What follows the newest journal that the chain has: up to `limit` journals, and all that bears their numbers.

    Raises `TooMuch`, and the snapshot is lost, if that would not fit in memory; a single journal's lines always do.
    """
    legal_class, after = chain.legal_class, chain.newest_journal
    rows = await db.fetch(
        f"{_JOURNALS} AND id > $3 ORDER BY id LIMIT $4", legal_class, chain.through_year, after, limit
    )
    if not rows:
        return _nothing(legal_class)
    most = _MOST_BYTES if len(rows) > 1 else None
    return await _part(db, chain, rows, "", (after + 1, rows[-1]["id"]), most)


async def late_part(db: Connection, chain: Chain, back: int) -> Part:
    """Journals of blocks that are not complete, numbered less than `back` before the newest that the chain has."""
    legal_class, newest = chain.legal_class, chain.newest_journal
    rows = await db.fetch(
        f"{_JOURNALS} AND id > $3 AND id <= $4 AND block > $5 AND id <> ALL($6) ORDER BY id",
        legal_class, chain.through_year, newest - back, newest, chain.block, chain.waiting(),
    )  # fmt: skip
    if not rows:
        return _nothing(legal_class)
    numbers = [row["id"] for row in rows]
    return await _part(db, chain, rows, "AND journal = ANY($5::bigint[])", (numbers[0], numbers[-1], numbers), None)


def _nothing(legal_class: str) -> Part:
    return Part(legal_class, (), "", columns(b"", legal_class), ())


async def _part(
    db: Connection, chain: Chain, journals: list[Row], only: str, which: tuple[Any, ...], most: int | None
) -> Part:
    entries = await _copy(db, "text", _ENTRIES.format(only), chain.legal_class, chain.through_year, *which)
    packed = await _copy(db, "binary", _LINES.format(only), chain.legal_class, chain.through_year, *which, most=most)
    # Without the header and the trailer of the form.
    lines = columns(packed[19:-2], chain.legal_class)
    sealed = await _sealed(db, chain, max(row["block"] for row in journals))
    return Part(chain.legal_class, journals, entries.decode(), lines, sealed)


async def _sealed(db: Connection, chain: Chain, block: int) -> list[Row]:
    """The rows of blocks up to this one that were not read before."""
    if block <= chain.sealed_to:
        return []
    rows: list[Row] = await db.fetch(
        """SELECT block, prev, hash, journals, timestamptz_send(booked_at) AS booked_at FROM chain
           WHERE class = $1 AND block > $2 AND block <= $3 ORDER BY block""",
        chain.legal_class, chain.sealed_to, block,
    )  # fmt: skip
    return rows


async def _copy(
    db: Connection, form: Literal["text", "binary"], query: str, *arguments: Any, most: int | None = None
) -> bytes:
    """All rows of a query at once, as COPY writes them. Raises `TooMuch` beyond `most` bytes."""
    pieces: list[bytes] = []
    size = 0

    async def take(piece: bytes) -> None:
        nonlocal size
        size += len(piece)
        if most is None or size <= most:
            pieces.append(piece)

    await db.copy_from_query(query, *arguments, output=take, format=form)
    if most is not None and size > most:
        raise TooMuch
    return b"".join(pieces)


async def beyond(db: Connection, chain: Chain) -> dict[str, int]:
    """How many rows of each kind bear a higher number than the newest journal that the chain has."""
    row = await db.fetchrow(
        """SELECT (SELECT count(*) FROM journal WHERE class = $1 AND booking_year > $3 AND id > $2) AS journals,
                  (SELECT count(*) FROM entry WHERE class = $1 AND booking_year > $3 AND journal > $2) AS entries,
                  (SELECT count(*) FROM charge_line WHERE class = $1 AND booking_year > $3 AND journal > $2) AS lines""",
        chain.legal_class, chain.newest_journal, chain.through_year,
    )  # fmt: skip
    assert row is not None
    return dict(row)


async def balances(db: Connection) -> AsyncIterator[list[Row]]:
    """Every balance."""
    statement = """SELECT workspace_id, purchased_pico::text, granted_pico::text, receivable_pico::text FROM balance
                   ORDER BY workspace_id"""
    async for rows in _batches(db, statement):
        yield rows


async def unequal_grants(db: Connection) -> int:
    """Workspaces whose granted credit is not what is left of their grants."""
    return int(
        await db.fetchval(
            """SELECT count(*) FROM balance b
               FULL JOIN (SELECT workspace_id, sum(remaining_pico) AS left_pico FROM credit_grant
                          WHERE remaining_pico > 0 GROUP BY workspace_id) g ON g.workspace_id = b.workspace_id
               WHERE coalesce(b.granted_pico, 0) <> coalesce(g.left_pico, 0)"""
        )
    )


async def byok_months(db: Connection) -> dict[tuple[str, str], int]:
    """Own-key usage at list price as billing keeps it, by (account, month); months of erased accounts by number."""
    rows = await db.fetch(
        """SELECT account, month, list_pico::text AS pico FROM byok_month
           UNION ALL SELECT '#' || id, month, list_pico::text FROM byok_erased"""
    )
    return {(row["account"], row["month"]): int(row["pico"]) for row in rows}


async def owners(db: Connection, numbers: Collection[int]) -> dict[int, str]:
    """Whose the workspaces with these ledger numbers are, where that is still known."""
    rows = await db.fetch("SELECT id, account FROM workspace_ref WHERE id = ANY($1)", list(numbers))
    return {row["id"]: row["account"] for row in rows}


async def parked_payments(db: Connection) -> int:
    """Payments that wait behind a failed one of their workspace."""
    return int(await db.fetchval("SELECT count(*) FROM mesh_parked WHERE topic = $1", PAYMENTS.name))


async def refused_usage(db: Connection) -> list[bytes]:
    """Records of rated usage that billing could not book and nobody has replayed."""
    rows = await db.fetch(
        "SELECT payload FROM mesh_dead_letter WHERE topic = $1 AND state <> 'replayed' AND payload IS NOT NULL",
        USAGE_RATED.name,
    )
    return [row["payload"] for row in rows]


# --- metering ----------------------------------------------------------------------------------------------------


async def counters(db: Connection) -> dict[str, int]:
    """A service's durable counters."""
    rows = await db.fetch("SELECT name, sum(value)::bigint AS value FROM mesh_counter GROUP BY name")
    return {row["name"]: row["value"] for row in rows}


async def prices(db: Connection, versions: Collection[str]) -> dict[str, Mapping[str, Any]]:
    """The bodies of price versions, of those that metering has."""
    rows = await db.fetch("SELECT version, body::text AS body FROM price WHERE version = ANY($1)", list(versions))
    return {row["version"]: msgspec.json.decode(row["body"]) for row in rows}


async def quarantined(db: Connection) -> dict[str, int]:
    """Usage that waits, by reason."""
    rows = await db.fetch("SELECT reason, count(*) AS n FROM quarantine GROUP BY reason ORDER BY reason")
    return {row["reason"]: row["n"] for row in rows}


async def dead_letters(db: Connection) -> dict[str, int]:
    """Dead letters of generations that count as such, by reason."""
    rows = await db.fetch(
        """SELECT reason, count(*) AS n FROM mesh_dead_letter
           WHERE topic = $1 AND counted AND state <> 'replayed' GROUP BY reason ORDER BY reason""",
        GENERATIONS.name,
    )
    return {row["reason"]: row["n"] for row in rows}


async def missing(db: Connection) -> dict[str, int]:
    """Events that a source numbered and that did not come, by source; only sources that lack some."""
    rows = await db.fetch(
        """SELECT source, (max(highest) - sum(seen))::bigint AS n FROM mesh_source WHERE topic = $1
           GROUP BY source HAVING max(highest) <> sum(seen) ORDER BY source""",
        GENERATIONS.name,
    )
    return {row["source"]: row["n"] for row in rows}


async def outbox_usage(db: Connection) -> AsyncIterator[list[Row]]:
    """Rated usage that is committed and not published yet."""
    async for rows in _batches(db, "SELECT value FROM mesh_outbox WHERE topic = $1", USAGE_RATED.name):
        yield rows


# --- the topic between them --------------------------------------------------------------------------------------


async def records_behind(kafka: KafkaSettings, offsets: Mapping[int, int]) -> dict[int, tuple[int, int]]:
    """By partition of rated usage: (offset from which billing reads on, end of the log), where something lies between."""
    ends = await end_offsets(kafka, [USAGE_RATED.name])
    spans = {tp.partition: (max(begin, offsets.get(tp.partition, 0)), end) for tp, (begin, end) in ends.items()}
    return {part: span for part, span in spans.items() if span[0] < span[1]}


async def usage_records(
    kafka: KafkaSettings, spans: Mapping[int, tuple[int, int]]
) -> AsyncGenerator[list[bytes], None]:
    """The records of rated usage in `spans` (first offset, end) by partition. Joins no group and commits nothing."""
    consumer = AIOKafkaConsumer(
        **kafka.client(), group_id=None, enable_auto_commit=False, isolation_level="read_committed",
        max_partition_fetch_bytes=2 * 1024 * 1024,
    )  # fmt: skip
    await consumer.start()
    try:
        left = {TopicPartition(USAGE_RATED.name, part): end for part, (_, end) in spans.items()}
        consumer.assign(list(left))
        for part, (first, _) in spans.items():
            consumer.seek(TopicPartition(USAGE_RATED.name, part), first)
        while left:
            found = await consumer.getmany(*left, timeout_ms=2_000, max_records=200)
            yield [r.value or b"" for tp, records in found.items() for r in records if r.offset < left[tp]]
            for tp in list(left):
                if await consumer.position(tp) >= left[tp]:
                    del left[tp]
    finally:
        await consumer.stop()


# --- audit's own -------------------------------------------------------------------------------------------------


async def take_time(db: Connection) -> None:
    """Lets the transaction of a job or read stand while the proof runs: it holds nothing that anybody waits for."""
    await db.execute("SET LOCAL idle_in_transaction_session_timeout = 0")


async def latest(db: Connection) -> Mapping[str, Any] | None:
    """The latest verdict that was kept."""
    row = await db.fetchrow("SELECT proved_at, kind, ok, determined, body FROM verdict ORDER BY id DESC LIMIT 1")
    return None if row is None else dict(row)


async def keep(
    db: Connection, kind: str, ok: bool, determined: bool, duration_ms: int, body: Mapping[str, Any], now: datetime
) -> None:
    """Adds a verdict to the history."""
    await db.execute(
        "INSERT INTO verdict (proved_at, kind, ok, determined, duration_ms, body) VALUES ($1, $2, $3, $4, $5, $6)",
        now, kind, ok, determined, duration_ms, body,
    )  # fmt: skip


async def history(db: Connection, limit: int) -> Sequence[Mapping[str, Any]]:
    """The latest verdicts, the newest first, without their bodies."""
    rows = await db.fetch(
        """SELECT id, proved_at, kind, ok, determined, duration_ms, body -> 'errors' AS errors FROM verdict
           ORDER BY id DESC LIMIT $1""",
        limit,
    )
    return [dict(row) for row in rows]
