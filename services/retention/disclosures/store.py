"""All SQL of the register of disclosures. Time comes in as a parameter.

A transaction locks an entry by its course, after all cases and holds.
"""

from __future__ import annotations

from collections.abc import Sequence
from datetime import datetime
from typing import Any, NamedTuple

import asyncpg

from services.retention.disclosure import Disclosure, Errand, Scope
from shared.mesh.store import Connection


class Said(NamedTuple):
    """What is said with an entry; the names are the columns'."""

    kind: str
    subject_pseudonym: bytes
    owner: bytes
    basis: str
    instrument: str | None
    reference: str | None
    protects: str | None
    decided_by: str | None
    authority: str
    tables: Any
    since: datetime | None
    until: datetime | None
    gag_until: datetime | None
    entered_at: datetime
    actor: str
    role: str
    ticket: str

    @property
    def scope(self) -> Scope:
        """What may be extracted."""
        return scope(self.tables, self.since, self.until)


class Row:
    """A locked entry: what was said, how far it is, and what is new in its history."""

    __slots__ = ("known", "needs_person", "news", "one", "said", "sealed", "sealed_owner")

    def __init__(self, row: asyncpg.Record, said: asyncpg.Record, errands: Sequence[asyncpg.Record]) -> None:
        self.said = Said(**{name: said[name] for name in Said._fields})
        self.sealed: str | None = row["sealed"]
        self.sealed_owner: str | None = row["sealed_owner"]
        self.needs_person: tuple[str, ...] = tuple(row["needs_person"])
        found = tuple(
            Errand(each["epoch"], each["holder"], each["due_at"], each["sends"], each["first_sent_at"], each["done_at"])
            for each in errands
        )
        self.one = Disclosure(
            row["id"], said["entered_at"], row["state"], row["gag_until"], row["epoch"], row["kept"], row["sends"],
            row["first_sent_at"], row["order_at"], row["asked_at"], row["told_at"], row["copies_until"],
            row["key_destroyed"], found,
        )  # fmt: skip
        self.known = frozenset(found)
        # (what, detail, actor, role, reason)
        self.news: list[tuple[str, str, str, str, str]] = []


def scope(tables: Any, since: datetime | None, until: datetime | None) -> Scope:
    """A scope as its columns have it."""
    return Scope({holder: tuple(names) for holder, names in tables.items()}, since, until)


async def owner_of(db: Connection, kind: str, target: str) -> str | None:
    """The account of a subject that the directory knows."""
    sql = {
        "account": "SELECT account FROM account WHERE account = $1",
        "workspace": "SELECT account FROM workspace WHERE workspace = $1",
    }
    found: str | None = await db.fetchval(sql[kind], target)
    return found


async def add(db: Connection, one: Disclosure, said: Said, sealed: str, sealed_owner: str) -> bool:
    """A new entry; False if it is known."""
    new = await db.fetchval(
        """INSERT INTO disclosure_course (id, state, sealed, sealed_owner, gag_until, epoch, kept, sends, order_at)
           VALUES ($1, $2, $3, $4, $5, $6, 0, 0, $7) ON CONFLICT DO NOTHING RETURNING id""",
        one.id, one.state, sealed, sealed_owner, one.gag_until, one.epoch, one.order_at,
    )  # fmt: skip
    if new is not None:
        await db.execute(
            """INSERT INTO disclosure (id, kind, subject_pseudonym, owner, basis, instrument, reference, protects, decided_by,
                                       authority, tables, since, until, gag_until, entered_at, actor, role, ticket)
               VALUES ($1, $2, $3, $4, $5, $6, $7, $8, $9, $10, $11, $12, $13, $14, $15, $16, $17, $18)""",
            one.id, *said,
        )  # fmt: skip
    return new is not None


async def lock(db: Connection, id: str) -> Row | None:
    """One entry, locked."""
    found = await db.fetch("SELECT * FROM disclosure_course WHERE id = $1 FOR UPDATE", id)
    return next(iter(await _rows(db, found)), None)


async def lock_due(db: Connection, now: datetime, limit: int) -> list[Row]:
    """Entries for which something is due, locked; those that somebody works on are left out."""
    found = await db.fetch(
        "SELECT * FROM disclosure_course WHERE next_at <= $1 ORDER BY next_at LIMIT $2 FOR UPDATE SKIP LOCKED",
        now,
        limit,
    )
    return await _rows(db, found)


async def _rows(db: Connection, found: Sequence[asyncpg.Record]) -> list[Row]:
    if not found:
        return []
    ids = [row["id"] for row in found]
    said = {row["id"]: row for row in await db.fetch("SELECT * FROM disclosure WHERE id = ANY($1)", ids)}
    errands: dict[str, list[asyncpg.Record]] = {}
    for row in await db.fetch("SELECT * FROM disclosure_errand WHERE id = ANY($1) ORDER BY id, epoch, holder", ids):
        errands.setdefault(row["id"], []).append(row)
    return [Row(row, said[row["id"]], errands.get(row["id"], ())) for row in found]


async def put(
    db: Connection, row: Row, next_at: datetime | None, expires_at: datetime | None, now: datetime
) -> None:  # fmt: skip
    """Writes back how far an entry is, and what is new in its history."""
    one = row.one
    await db.execute(
        """UPDATE disclosure_course
           SET state = $2, sealed = $3, sealed_owner = $4, gag_until = $5, epoch = $6, kept = $7, sends = $8,
               first_sent_at = $9, order_at = $10, asked_at = $11, told_at = $12, copies_until = $13, next_at = $14,
               needs_person = $15, expires_at = $16, key_destroyed = $17
           WHERE id = $1""",
        one.id, one.state, row.sealed, row.sealed_owner, one.gag_until, one.epoch, one.kept, one.sends, one.first_sent_at,
        one.order_at, one.asked_at, one.told_at, one.copies_until, next_at, list(row.needs_person), expires_at,
        one.key_destroyed,
    )  # fmt: skip
    await db.executemany(
        """INSERT INTO disclosure_errand (id, epoch, holder, due_at, sends, first_sent_at, done_at)
           VALUES ($1, $2, $3, $4, $5, $6, $7)
           ON CONFLICT (id, epoch, holder) DO UPDATE
             SET due_at = excluded.due_at, sends = excluded.sends, first_sent_at = excluded.first_sent_at,
                 done_at = excluded.done_at""",
        [
            (one.id, each.epoch, each.holder, each.due_at, each.sends, each.first_sent_at, each.done_at)
            for each in one.errands
            if each not in row.known
        ],
    )
    row.known = frozenset(one.errands)
    for news in row.news:
        await add_event(db, one.id, *news, now)
    row.news.clear()


async def add_event(
    db: Connection, id: str, what: str, detail: str, actor: str, role: str, reason: str, at: datetime
) -> None:
    """Something happened to an entry."""
    await db.execute(
        "INSERT INTO disclosure_event (id, at, what, detail, actor, role, reason) VALUES ($1, $2, $3, $4, $5, $6, $7)",
        id, at, what, detail, actor, role, reason,
    )  # fmt: skip


async def add_extract(db: Connection, command: str, id: str, epoch: int, scope: Scope, now: datetime) -> None:
    """What an extract is to hold."""
    tables = {holder: list(names) for holder, names in scope.tables.items()}
    await db.execute(
        """INSERT INTO disclosure_extract (command, id, epoch, tables, since, until, ordered_at)
           VALUES ($1, $2, $3, $4, $5, $6, $7)""",
        command, id, epoch, tables, scope.since, scope.until, now,
    )  # fmt: skip


async def is_extract(db: Connection, command: str) -> bool:
    """Whether a command has ordered its extract already."""
    found: bool = await db.fetchval("SELECT EXISTS (SELECT FROM disclosure_extract WHERE command = $1)", command)
    return found


async def extract(db: Connection, id: str, epoch: int | None) -> tuple[int, Scope] | None:
    """(number, scope) of an extract, the latest without a number."""
    row = await db.fetchrow(
        """SELECT epoch, tables, since, until FROM disclosure_extract WHERE id = $1 AND epoch = COALESCE($2, epoch)
           ORDER BY epoch DESC LIMIT 1""",
        id, epoch,
    )  # fmt: skip
    return None if row is None else (row["epoch"], scope(row["tables"], row["since"], row["until"]))


async def note_parts(db: Connection, id: str, *, there: bool) -> None:
    """Whether copies that nobody can open any more lie in the blob store."""
    await db.execute("UPDATE disclosure_course SET parts = $2 WHERE id = $1", id, there)


async def over_parts(db: Connection, limit: int) -> list[str]:
    """Entries whose copies are over, and still lie there."""
    rows = await db.fetch("SELECT id FROM disclosure_course WHERE parts ORDER BY id LIMIT $1", limit)
    return [row["id"] for row in rows]


async def keep_receipt(db: Connection, id: str, epoch: int, holder: str, body: Any) -> None:
    """What a holder has copied."""
    await db.execute(
        "UPDATE disclosure_errand SET receipt = $4 WHERE id = $1 AND epoch = $2 AND holder = $3 AND receipt IS NULL",
        id, epoch, holder, body,
    )  # fmt: skip


# --- to be seen ---------------------------------------------------------------------------------------------------


async def visible_to(db: Connection, pseudonyms: Sequence[bytes], now: datetime) -> list[asyncpg.Record]:
    """Entries about these subjects, or their accounts, that they may know of: never one whose gag lasts."""
    return await db.fetch(
        """SELECT d.id, d.entered_at, d.basis, d.instrument, d.reference, d.protects, d.authority, d.tables, d.since, d.until
           FROM disclosure d JOIN disclosure_course c USING (id)
           WHERE (d.subject_pseudonym = ANY($1) OR d.owner = ANY($1)) AND (c.state <> 'gagged' OR c.gag_until <= $2)
           ORDER BY d.entered_at, d.id""",
        list(pseudonyms), now,
    )  # fmt: skip


async def entries(db: Connection, limit: int, id: str | None = None) -> list[dict[str, Any]]:
    """Entries as the register shows them, the newest first; nobody's id is in it."""
    rows = await db.fetch(
        """SELECT d.id, d.kind, d.basis, d.instrument, d.reference, d.protects, d.decided_by, d.authority, d.tables, d.since,
                  d.until, d.entered_at, d.actor, d.role, d.ticket, c.state, c.gag_until, c.asked_at, c.told_at,
                  c.copies_until, c.needs_person, c.key_destroyed
           FROM disclosure d JOIN disclosure_course c USING (id) WHERE d.id = COALESCE($2, d.id)
           ORDER BY d.entered_at DESC, d.id DESC LIMIT $1""",
        limit, id,
    )  # fmt: skip
    return [dict(row) for row in rows]


async def history(db: Connection, id: str) -> list[dict[str, Any]]:
    """All that happened to an entry, in order."""
    rows = await db.fetch(
        "SELECT at, what, detail, actor, role, reason FROM disclosure_event WHERE id = $1 ORDER BY number", id
    )
    return [dict(row) for row in rows]


async def extracts(db: Connection, id: str) -> list[dict[str, Any]]:
    """What was extracted, and how far each holder is, in order."""
    rows = await db.fetch(
        """SELECT x.command, x.epoch, x.tables, x.since, x.until, x.ordered_at, e.holder, e.sends, e.done_at, e.receipt
           FROM disclosure_extract x JOIN disclosure_errand e USING (id, epoch) WHERE x.id = $1 ORDER BY x.epoch, e.holder""",
        id,
    )
    return [dict(row) for row in rows]


async def needing_person(db: Connection) -> int:
    """Entries that do not get on by themselves."""
    found: int = await db.fetchval("SELECT count(*) FROM disclosure_course WHERE needs_person <> '{}'")
    return found
