"""The SQL that ends a booking year, as the owner. Time comes in as a parameter."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Sequence
from datetime import UTC, datetime

import msgspec

from services.billing.ledger import Unbalanced
from shared.mesh.store import Connection
from shared.policy import policy

_GENESIS = bytes(32)
_encode = msgspec.json.Encoder().encode


def roots(legal_class: str) -> tuple[str, ...]:
    """The tables of a class that have a partition for each booking year; lines first, what they hang on last."""
    return tuple(f"{table}_{legal_class.lower()}" for table in ("charge_line", "entry", "journal"))


async def take_turn(db: Connection) -> bool:
    """One process at a time, and nobody waits for it for longer than a moment. False: another one is at it."""
    await db.execute("SET lock_timeout = '400ms'")
    return bool(await db.fetchval("SELECT pg_try_advisory_lock(1867, -5)"))


async def end_turn(db: Connection) -> None:
    """Lets the next one."""
    await db.execute("SELECT pg_advisory_unlock(1867, -5)")


async def years(db: Connection, legal_class: str) -> list[int]:
    """The booking years of which partitions exist, attached or not, in order."""
    found = set()
    for root in roots(legal_class):
        rows = await db.fetch(
            """SELECT relname FROM pg_class WHERE relnamespace = 'public'::regnamespace AND relkind = 'r'
               AND starts_with(relname, $1 || '_')""",
            root,
        )
        found |= {int(year[1]) for row in rows if (year := re.fullmatch(rf"{root}_(\d{{4}})", row["relname"]))}
    return sorted(found)


async def latest(db: Connection, legal_class: str) -> int:
    """Through which year the books of a class are gone; 0 if none is."""
    return int(await db.fetchval("SELECT coalesce(max(through_year), 0) FROM checkpoint WHERE class = $1", legal_class))


def digest(
    legal_class: str, year: int, block: int, sealed: bytes, ahead: int, journals: int, lines: int, charged_pico: int,
    carried: Sequence[tuple[int, int]], previous: bytes,
) -> bytes:  # fmt: skip
    """What a checkpoint's digest is of: the SHA-256 of compact JSON. `carried`: (account, pico-dollars), by account."""
    amounts = [[account, str(pico)] for account, pico in carried]
    return hashlib.sha256(
        _encode(
            [legal_class, year, block, sealed.hex(), ahead, journals, lines, str(charged_pico), amounts, previous.hex()]
        )
    ).digest()


async def make_checkpoint(
    db: Connection, legal_class: str, year: int, end: datetime, now: datetime
) -> dict[str, int]:  # fmt: skip
    """Says in one transaction what the year leaves, and deletes what of it stands in no partition; gives rows by table.

    The years before are over already. Raises `Unbalanced`, if what is carried forward does not sum to zero.
    """
    before = await db.fetchrow(
        "SELECT * FROM checkpoint WHERE class = $1 ORDER BY through_year DESC LIMIT 1", legal_class
    )
    block, sealed, journals, lines, charged, previous = (
        (0, _GENESIS, 0, 0, 0, _GENESIS)
        if before is None
        else (
            before["block"], before["hash"], before["journals"], before["lines"], int(before["charged_pico"]),
            before["digest"],
        )
    )  # fmt: skip
    of_year = await db.fetchrow(
        """SELECT count(*) AS journals, coalesce(max(block), 0) AS block FROM journal
           WHERE class = $1 AND booking_year = $2""",
        legal_class, year,
    )  # fmt: skip
    assert of_year is not None
    journals += of_year["journals"]
    if of_year["block"] > block:
        block = of_year["block"]
        sealed = await db.fetchval("SELECT hash FROM chain WHERE class = $1 AND block = $2", legal_class, block)
        if sealed is None:
            raise Unbalanced("the newest block of a year whose time is over is not in the chain: the year stays")
    ahead = await db.fetchval(
        "SELECT count(*) FROM journal WHERE class = $1 AND booking_year > $2 AND block <= $3", legal_class, year, block
    )
    used = await db.fetchrow(
        """SELECT count(*) AS lines, coalesce(sum(amount_pico), 0) AS charged FROM charge_line
           WHERE class = $1 AND booking_year = $2""",
        legal_class, year,
    )  # fmt: skip
    assert used is not None
    lines, charged = lines + used["lines"], charged + int(used["charged"])
    carried = await _carry(db, legal_class, year)
    await db.execute(
        """INSERT INTO checkpoint (class, through_year, block, hash, ahead, journals, lines, charged_pico, prev, digest,
                                   made_at, policy_version)
           VALUES ($1, $2, $3, $4, $5, $6, $7, $8, $9, $10, $11, $12)""",
        legal_class, year, block, sealed, ahead, journals, lines, charged, previous,
        digest(legal_class, year, block, sealed, ahead, journals, lines, charged, carried, previous),
        now, policy().version,
    )  # fmt: skip
    for root in roots(legal_class):
        mark = f"partition of {root}; over at {end.isoformat()}"
        await db.execute(f"COMMENT ON TABLE {root}_{year} IS '{mark}'")
    return await _delete_rest(db, legal_class, year)


async def _carry(db: Connection, legal_class: str, year: int) -> list[tuple[int, int]]:
    """Adds a year's entries and own-key lines to what is carried; (account, pico-dollars) by account."""
    # Whose name is erased, and whose last booking is over, is nobody any more: no number is kept for the sake of a debt.
    nobody = await db.fetch(
        "DELETE FROM balance WHERE erased AND class = $1 AND changed_at < $2 RETURNING workspace_id",
        legal_class, datetime(year + 1, 1, 1, tzinfo=UTC),
    )  # fmt: skip
    rows = await db.fetch(
        """WITH entries AS (SELECT account, amount_pico FROM entry WHERE class = $1 AND booking_year = $2
                            UNION ALL SELECT account, amount_pico FROM carried WHERE class = $1)
           SELECT CASE WHEN a.workspace_id = ANY($3) THEN s.id ELSE a.id END AS account, sum(e.amount_pico) AS pico
           FROM entries e JOIN ledger_account a ON a.id = e.account
           JOIN ledger_account s ON s.class = $1 AND s.kind = 'suspense_erased' AND s.workspace_id IS NULL
           GROUP BY 1 HAVING sum(e.amount_pico) <> 0 ORDER BY 1""",
        legal_class, year, [row["workspace_id"] for row in nobody],
    )  # fmt: skip
    carried = [(row["account"], int(row["pico"])) for row in rows]
    if total := sum(pico for _, pico in carried):
        raise Unbalanced(
            f"the books of class {legal_class} through {year} sum to {total} pico-dollars, not to 0: they stay"
        )
    await db.execute("DELETE FROM carried WHERE class = $1", legal_class)
    await db.copy_records_to_table(
        "carried", columns=("class", "account", "amount_pico"), records=[(legal_class, *each) for each in carried]
    )
    # Accounts that no entry names any more, of workspaces that have no balance.
    await db.execute(
        """DELETE FROM ledger_account a WHERE class = $1 AND workspace_id IS NOT NULL
             AND NOT EXISTS (SELECT FROM balance b WHERE b.workspace_id = a.workspace_id)
             AND NOT EXISTS (SELECT FROM carried c WHERE c.class = a.class AND c.account = a.id)
             AND NOT EXISTS (SELECT FROM entry e WHERE e.class = a.class AND e.booking_year > $2 AND e.account = a.id)""",
        legal_class, year,
    )  # fmt: skip
    await db.execute(
        """INSERT INTO carried_byok AS c (class, month, list_pico, fee_pico)
           SELECT $1, to_char(to_timestamp(hour * 3600::bigint) AT TIME ZONE 'UTC', 'YYYY-MM'), sum(list_pico), sum(amount_pico)
           FROM charge_line WHERE class = $1 AND booking_year = $2 AND terms = 'byok' GROUP BY 2
           ON CONFLICT (class, month) DO UPDATE
             SET list_pico = c.list_pico + excluded.list_pico, fee_pico = c.fee_pico + excluded.fee_pico""",
        legal_class, year,
    )  # fmt: skip
    return carried


# What is left without its booking goes with it; a grant that still has something left is no past yet.
_CAUSELESS = (
    ("purchase", "NOT EXISTS (SELECT FROM journal_cause c WHERE c.cause = 'payment:' || payment)"),
    ("dispute", "NOT EXISTS (SELECT FROM journal_cause c WHERE c.cause = 'dispute:' || dispute)"),
    (
        "credit_grant",
        "remaining_pico = 0 AND NOT EXISTS (SELECT FROM journal_cause c WHERE c.cause = 'grant:' || grant_id)",
    ),
    (
        "waiting_payment",
        "state = 'suspense' AND credit_pico IS NOT NULL AND NOT EXISTS "
        "(SELECT FROM journal_cause c WHERE c.cause = waiting_payment.cause)",
    ),
)


async def _delete_rest(db: Connection, legal_class: str, year: int) -> dict[str, int]:
    """Deletes the year's rows that stand in no partition of a class and year."""
    gone = {
        "journal_cause": await _delete(db, "journal_cause", "class = $1 AND booking_year <= $2", legal_class, year),
        "period_total": await _delete(db, "period_total", "class = $1 AND period <= $2", legal_class, f"{year}-12"),
    }
    for table, where in _CAUSELESS:
        gone[table] = await _delete(db, table, where)
    # What belongs to no class goes when the last class's year does.
    every = await db.fetch("SELECT max(through_year) AS year FROM checkpoint GROUP BY class")
    if len(every) == len(policy().billing_years) and (over := min(row["year"] for row in every)):
        gone["charged_record"] = await _delete(db, "charged_record", "booking_year <= $1", over)
        gone["waiting_payment"] += await _delete(
            db, "waiting_payment", "state = 'suspense' AND arrived_at < $1", datetime(over + 1, 1, 1, tzinfo=UTC)
        )
        # A month of which later years have lines still is proved by them, and waits for those.
        late = await db.fetch(
            """SELECT DISTINCT to_char(to_timestamp(hour * 3600::bigint) AT TIME ZONE 'UTC', 'YYYY-MM') AS month
               FROM charge_line WHERE booking_year = $1 + 1 AND terms = 'byok' AND hour < $2""",
            over, int(datetime(over + 1, 1, 1, tzinfo=UTC).timestamp()) // 3600,
        )  # fmt: skip
        for table in ("byok_month", "byok_erased", "carried_byok"):
            gone[table] = await _delete(
                db, table, "month <= $1 AND month <> ALL($2)", f"{over}-12", [row["month"] for row in late]
            )
    return gone


async def _delete(db: Connection, table: str, where: str, *arguments: object) -> int:
    """How many rows went."""
    said = await db.execute(f"DELETE FROM {table} WHERE {where}", *arguments)  # noqa: S608 -- of this module's own words
    return int(said.split()[-1])
