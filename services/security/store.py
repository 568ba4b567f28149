"""All SQL of security. Time comes in as a parameter; each table is written by this room alone, and read by nobody yet."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import date, datetime
from typing import Any, NamedTuple

from services.security.access import Row
from shared.mesh.store import Connection


class Address(NamedTuple):
    """One row of `access_ip`, in the order of its columns."""

    expires_on: date
    event_id: str
    address: str
    correlate: bytes


async def add(db: Connection, rows: Sequence[Row]) -> set[str]:
    """Adds the rows that are not there yet; returns the event ids of those that are new."""
    added = await db.fetch(
        """INSERT INTO access_row (expires_on, event_id, occurred_at, account, workspace, member, key_id, identity, session,
                                   kind, outcome, agent)
           SELECT * FROM unnest($1::date[], $2::uuid[], $3::timestamptz[], $4::text[], $5::text[], $6::text[], $7::text[],
                                $8::text[], $9::text[], $10::text[], $11::text[], $12::text[])
           ON CONFLICT DO NOTHING RETURNING event_id""",
        *zip(*sorted(rows, key=lambda row: row[:2]), strict=True),
    )
    return {str(row["event_id"]) for row in added}


async def add_addresses(db: Connection, rows: Sequence[Address]) -> None:
    """Adds the addresses of connections whose rows are new."""
    await db.execute(
        """INSERT INTO access_ip (expires_on, event_id, address, correlate)
           SELECT * FROM unnest($1::date[], $2::uuid[], $3::text[], $4::bytea[])
           ON CONFLICT DO NOTHING""",
        *zip(*sorted(rows, key=lambda row: row[:2]), strict=True),
    )


async def counts(db: Connection, first: date, after: datetime) -> list[dict[str, Any]]:
    """How many connections there were after `after`, by kind and outcome; `first` leaves out partitions before them."""
    rows = await db.fetch(
        """SELECT kind, outcome, count(*) AS connections FROM access_row WHERE expires_on >= $1 AND occurred_at > $2
           GROUP BY kind, outcome ORDER BY kind, outcome""",
        first, after,
    )  # fmt: skip
    return [dict(row) for row in rows]
