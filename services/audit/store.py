"""All that audit reads of others (SELECT only, as `steward_auditor`; topics without a group), and its own history.

Time comes in as a parameter.
"""

from __future__ import annotations

import contextlib
from collections.abc import AsyncGenerator, AsyncIterator, Collection, Mapping, Sequence
from datetime import datetime
from typing import Any, TypeAlias

import asyncpg
import msgspec
from aiokafka import AIOKafkaConsumer, TopicPartition

from shared.contract.topics import GENERATIONS, PAYMENTS, USAGE_RATED
from shared.mesh.admin import end_offsets
from shared.mesh.settings import KafkaSettings
from shared.mesh.store import Connection

# A row as the driver gives it: columns by name, and in order.
Row: TypeAlias = Any

BATCH = 5_000
# Journals are numbered when a transaction begins to write and sealed when it ends: numbers of one block may lie so far
# below those of an earlier one, at most.
_OVERTAKEN = 500_000
_NEVER_ENDING = 2**62

LINE_COLUMNS = (
    "record", "line", "class", "booking_year", "workspace_id", "hour", "price_version", "tier", "terms", "quantities",
    "amount_pico", "list_pico", "journal",
)  # fmt: skip


@contextlib.asynccontextmanager
async def snapshot(url: str) -> AsyncIterator[Connection]:
    """A connection that sees a database as it is at its first statement, and can change nothing."""
    db: Connection = await asyncpg.connect(
        url,
        timeout=10,
        server_settings={
            "application_name": "steward-audit",
            "timezone": "UTC",
            # The arithmetic between two batches of rows is no idleness, and the other database is read meanwhile.
            "idle_in_transaction_session_timeout": "0",
            "jit": "off",
        },
    )
    try:
        async with db.transaction(isolation="repeatable_read", readonly=True):
            yield db
    finally:
        await db.close()


async def _batches(db: Connection, statement: str, *arguments: Any) -> AsyncIterator[list[Row]]:
    cursor = await db.cursor(statement, *arguments)
    while rows := await cursor.fetch(BATCH):
        yield rows


# --- billing -----------------------------------------------------------------------------------------------------


async def blocks(db: Connection) -> dict[str, int]:
    """The newest block of each class's chain (0 = none). The first statement of the snapshot."""
    rows = await db.fetch(
        """SELECT h.class, coalesce(max(c.block), 0) AS block FROM chain_head h LEFT JOIN chain c ON c.class = h.class
           GROUP BY h.class ORDER BY h.class"""
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


async def journals(db: Connection, legal_class: str, block: int, newest: int) -> AsyncIterator[list[Row]]:
    """Journals above a block, with entries and block, by (block, id). `newest`: the highest number up to that block."""
    statement = """SELECT j.id, j.booking_year, j.cause, j.kind, j.workspace_id, j.period, j.booked_at, j.event_at,
                          j.adjusts_period, j.lines_digest, j.block, c.prev, c.hash, c.journals, c.booked_at AS sealed_at,
                          coalesce(e.accounts, '{}') AS accounts, coalesce(e.amounts, '{}') AS amounts
                   FROM journal j
                   LEFT JOIN chain c ON c.class = j.class AND c.block = j.block
                   LEFT JOIN (SELECT journal, array_agg(account) AS accounts, array_agg(amount_pico::text) AS amounts
                              FROM entry WHERE class = $1 AND journal > $3 GROUP BY journal) e ON e.journal = j.id
                   WHERE j.class = $1 AND j.block > $2 AND j.id > $3
                   ORDER BY j.block, j.id"""
    async for rows in _batches(db, statement, legal_class, block, newest - _OVERTAKEN if block else -1):
        yield rows


async def usage_journals(db: Connection, legal_class: str, block: int, newest: int) -> AsyncIterator[list[Row]]:
    """Journals of usage above a block, by id: their digest, period, and what they took from revenue."""
    statement = """SELECT j.id, j.lines_digest, j.period, coalesce(-e.amount_pico, 0)::text AS charged
                   FROM journal j
                   JOIN ledger_account a ON a.class = $1 AND a.kind = 'revenue' AND a.workspace_id IS NULL
                   LEFT JOIN entry e ON e.class = $1 AND e.booking_year = j.booking_year AND e.journal = j.id
                                    AND e.account = a.id
                   WHERE j.class = $1 AND j.kind = 'usage' AND j.block > $2 AND j.id > $3
                   ORDER BY j.id"""
    async for rows in _batches(db, statement, legal_class, block, newest - _OVERTAKEN if block else -1):
        yield rows


async def lines(db: Connection, legal_class: str, first: int, last: int | None) -> AsyncIterator[list[Row]]:
    """Charge lines of journals `first` to `last` (None = all later ones), by (journal, record, line)."""
    statement = """SELECT record::text, line, class, booking_year, workspace_id, hour, price_version, tier, terms, quantities,
                          amount_pico, list_pico, journal
                   FROM charge_line WHERE class = $1 AND journal BETWEEN $2 AND $3 ORDER BY journal, record, line"""
    async for rows in _batches(db, statement, legal_class, first, _NEVER_ENDING if last is None else last):
        yield rows


async def journal_range(db: Connection, legal_class: str, block: int, newest: int) -> tuple[int, int] | None:
    """(lowest, highest) number of the usage journals above a block; None if there are none."""
    row = await db.fetchrow(
        """SELECT min(id) AS first, max(id) AS last FROM journal
           WHERE class = $1 AND kind = 'usage' AND block > $2 AND id > $3""",
        legal_class, block, newest - _OVERTAKEN if block else -1,
    )  # fmt: skip
    return None if row is None or row["first"] is None else (row["first"], row["last"])


async def totals(db: Connection) -> dict[str, tuple[int, str]]:
    """(entries, their sum) by class, as the tables have them, whether or not a journal belongs to them."""
    rows = await db.fetch("SELECT class, count(*) AS n, sum(amount_pico)::text AS pico FROM entry GROUP BY class")
    return {row["class"]: (row["n"], row["pico"]) for row in rows}


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
    """Own-key usage at list price as billing keeps it, by (account, month)."""
    rows = await db.fetch("SELECT account, month, list_pico::text AS pico FROM byok_month")
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


async def prices(db: Connection) -> dict[str, Mapping[str, Any]]:
    """The body of every price version that was published or has rated something."""
    rows = await db.fetch("SELECT version, body::text AS body FROM price")
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
