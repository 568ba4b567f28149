"""All SQL of retention. Time comes in as a parameter.

Every transaction locks cases by id, then holds by id. The directory's statements stand in `directory/store.py`.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from datetime import datetime
from typing import Any, NamedTuple

import asyncpg

from services.retention.case import AUDITOR, Asked, Case, Progress
from services.retention.hold import Hold
from services.retention.subjects import Circle
from shared.mesh.store import Connection

# --- cases --------------------------------------------------------------------------------------------------------


async def case_of_request(db: Connection, request: str) -> str | None:
    """The case that a request began or joined."""
    found: str | None = await db.fetchval("SELECT case_id FROM case_request WHERE id = $1", request)
    return found


async def open_case_of(db: Connection, wish: bytes) -> str | None:
    """The open case of a wish."""
    found: str | None = await db.fetchval("SELECT id FROM privacy_case WHERE wish = $1 AND ended_at IS NULL", wish)
    return found


class Marks(NamedTuple):
    """Keyed hashes by which a case is found: of whom it is about, of the account, and of the wish."""

    subject: bytes
    owner: bytes
    wish: bytes


async def add_case(
    db: Connection, case: Case, marks: Marks, account: str | None, target: str | None, *, regime: str = "voluntary",
    details: str | None = None,
) -> bool:  # fmt: skip
    """A new case; `account` and `target` are plain for as long as somebody has to be found. False if another transaction
    was quicker to open one for the same wish."""
    added = await db.fetchval(
        """INSERT INTO privacy_case (id, kind, scope, channel, state, account, target, subject_pseudonym, owner, wish, attempts,
                                     requested_at, regime, details, needed)
           VALUES ($1, $2, $3, $4, $5, $6, $7, $8, $9, $10, 0, $11, $12, $13, $14)
           ON CONFLICT (wish) WHERE ended_at IS NULL DO NOTHING RETURNING id""",
        case.id, case.kind, case.scope, case.channel, case.state, account, target, marks.subject, marks.owner, marks.wish,
        case.requested_at, regime, details, sorted(case.needed),
    )  # fmt: skip
    return added is not None


async def add_request(db: Connection, request: str, case_id: str, channel: str, received_at: datetime) -> None:
    """Somebody asked."""
    await db.execute(
        """INSERT INTO case_request (id, case_id, channel, received_at) VALUES ($1, $2, $3, $4)
           ON CONFLICT (id) DO NOTHING""",
        request, case_id, channel, received_at,
    )  # fmt: skip


async def coded(db: Connection, case_id: str, templates: Sequence[str]) -> int:
    """How many mails with a code went out for a case."""
    found: int = await db.fetchval(
        "SELECT count(*) FROM case_mail WHERE case_id = $1 AND template = ANY($2) AND request IS NOT NULL",
        case_id,
        templates,
    )
    return found


async def acknowledge(db: Connection, request: str, at: datetime) -> None:
    """The mail that says that we know of a request was accepted; the first one counts."""
    await db.execute(
        "UPDATE case_request SET acknowledged_at = $2 WHERE id = $1 AND acknowledged_at IS NULL", request, at
    )


class Row:
    """A locked case, and what stands beside the machine's part of it."""

    __slots__ = (
        "account",
        "before",
        "case",
        "channel",
        "circle",
        "details",
        "entries",
        "known",
        "link",
        "link_until",
        "marks",
        "needs_person",
        "news",
        "regime",
        "request",
        "risks",
        "sealed",
        "sealed_account",
        "subjects",
        "target",
        "told",
        "unheard",
        "version",
    )

    def __init__(
        self, row: asyncpg.Record, holders: Iterable[asyncpg.Record], requests: Iterable[asyncpg.Record]
    ) -> None:
        self.account: str | None = row["account"]
        self.target: str | None = row["target"]
        self.sealed: str | None = row["sealed"]
        self.sealed_account: str | None = row["sealed_account"]
        self.needs_person: tuple[str, ...] = tuple(row["needs_person"])
        self.subjects: int = row["subjects"]
        self.marks = Marks(row["subject_pseudonym"], row["owner"], row["wish"])
        self.regime: str = row["regime"]
        self.risks: tuple[str, ...] = tuple(row["risks"])
        self.details: str | None = row["details"]
        self.version: int = row["version"]
        self.told: str = row["told"]
        self.entries: int = row["entries"]
        self.case = _case(row, holders, requests)
        # As the database has it: what took it from there to where it is now has taken so long.
        self.before = self.case
        # What happened to it in this transaction: (what, actor, role, reason).
        self.news: list[tuple[str, str, str, str]] = []
        # Everybody's progress as the database has it.
        self.known: dict[str, Progress] = {one.holder: one for one in _everybody(self.case)}
        # For the transaction that takes it: whom a confirmation concerns; the request that is at hand and its channel; the
        # link that an answer carries, and until when; whether there was nobody to answer to.
        self.circle: Circle | None = None
        self.request: str | None = None
        self.channel: str = self.case.channel
        self.link: str | None = None
        self.link_until: datetime | None = None
        self.unheard = False


def _everybody(case: Case) -> list[Progress]:
    return [*case.holders.values(), *([case.auditor] if case.auditor.epoch else [])]


def _case(row: asyncpg.Record, holders: Iterable[asyncpg.Record], requests: Iterable[asyncpg.Record]) -> Case:
    found = {
        one["holder"]: Progress(
            one["holder"], one["epoch"], one["done"], one["sends"], one["first_sent_at"], one["due_at"], one["faults"],
            one["offsets"], one["waived_by"], one["ticket"], one["waived_at"],
        )
        for one in holders
    }  # fmt: skip
    auditor = found.pop(AUDITOR, None) or Progress(AUDITOR)
    return Case(
        id=row["id"], scope=row["scope"], requested_at=row["requested_at"], kind=row["kind"], channel=row["channel"],
        state=row["state"], attempts=row["attempts"], confirmed_at=row["confirmed_at"],
        completed_at=row["completed_at"], answered_at=row["answered_at"], ended_at=row["ended_at"],
        moved_at=row["moved_at"], key_destroyed=row["key_destroyed"], holders=found, auditor=auditor,
        state_at=row["state_at"], needed=frozenset(row["needed"]), proofs=frozenset(row["proofs"]),
        verified_at=row["verified_at"], lapses_at=row["lapses_at"], outcome=row["outcome"], reason=row["reason"],
        extended_at=row["extended_at"], escalated_to=row["escalated_to"], unanswerable=row["unanswerable"],
        requests=tuple(Asked(one["id"], one["received_at"], one["acknowledged_at"]) for one in requests),
    )  # fmt: skip


async def lock_cases(db: Connection, ids: Iterable[str]) -> dict[str, Row]:
    """Cases by id, locked in that order."""
    rows = await db.fetch("SELECT * FROM privacy_case WHERE id = ANY($1) ORDER BY id FOR UPDATE", sorted(set(ids)))
    return await _with_holders(db, rows)


async def lock_due(db: Connection, now: datetime, limit: int) -> dict[str, Row]:
    """Cases for which something is due, locked; those that somebody works on are left out."""
    rows = await db.fetch(
        """SELECT * FROM privacy_case WHERE next_at <= $1 ORDER BY next_at LIMIT $2 FOR UPDATE SKIP LOCKED""",
        now,
        limit,
    )
    return await _with_holders(db, rows)


async def cases(db: Connection, *, open_only: bool, limit: int) -> dict[str, Row]:
    """Cases, the newest first."""
    rows = await db.fetch(
        """SELECT * FROM privacy_case WHERE ended_at IS NULL OR NOT $1 ORDER BY requested_at DESC, id DESC LIMIT $2""",
        open_only, limit,
    )  # fmt: skip
    return await _with_holders(db, rows)


async def case(db: Connection, case_id: str) -> Row | None:
    """One case."""
    rows = await db.fetch("SELECT * FROM privacy_case WHERE id = $1", case_id)
    return (await _with_holders(db, rows)).get(case_id)


async def _with_holders(db: Connection, rows: Sequence[asyncpg.Record]) -> dict[str, Row]:
    if not rows:
        return {}
    ids = [row["id"] for row in rows]
    holders: dict[str, list[asyncpg.Record]] = {}
    requests: dict[str, list[asyncpg.Record]] = {}
    for one in await db.fetch("SELECT * FROM case_holder WHERE case_id = ANY($1)", ids):
        holders.setdefault(one["case_id"], []).append(one)
    for one in await db.fetch(
        """SELECT id, case_id, received_at, acknowledged_at FROM case_request WHERE case_id = ANY($1)
           ORDER BY received_at, id""",
        ids,
    ):
        requests.setdefault(one["case_id"], []).append(one)
    return {row["id"]: Row(row, holders.get(row["id"], ()), requests.get(row["id"], ())) for row in rows}


class Put(NamedTuple):
    """A case as it is to be written back, and its clocks."""

    row: Row
    due_at: datetime | None
    next_at: datetime | None
    expires_at: datetime | None


async def put_cases(db: Connection, puts: Sequence[Put], now: datetime) -> None:
    """Writes cases back, what has changed of their holders, and what is new in their history."""
    await db.executemany(
        """UPDATE privacy_case
           SET state = $2, account = $3, target = $4, sealed = $5, subjects = $6, attempts = $7, confirmed_at = $8,
               completed_at = $9, answered_at = $10, ended_at = $11, moved_at = $12, key_destroyed = $13, due_at = $14,
               next_at = $15, expires_at = $16, needs_person = $17, requested_at = $18, sealed_account = $19, kind = $20,
               state_at = $21, needed = $22, proofs = $23, verified_at = $24, lapses_at = $25, outcome = $26, reason = $27,
               extended_at = $28, escalated_to = $29, unanswerable = $30, version = $31, told = $32, entries = $33, details = $34,
               scope = $35, subject_pseudonym = $36, owner = $37, wish = $38, risks = $39
           WHERE id = $1""",
        [
            (case.id, case.state, row.account, row.target, row.sealed, row.subjects, case.attempts, case.confirmed_at,
             case.completed_at, case.answered_at, case.ended_at, case.moved_at, case.key_destroyed, due_at, next_at,
             expires_at, list(row.needs_person), case.requested_at, row.sealed_account, case.kind, case.state_at,
             sorted(case.needed), sorted(case.proofs), case.verified_at, case.lapses_at, case.outcome, case.reason,
             case.extended_at, case.escalated_to, case.unanswerable, row.version, row.told, row.entries + len(row.news),
             row.details, case.scope, *row.marks, list(row.risks))
            for row, due_at, next_at, expires_at in puts
            for case in (row.case,)
        ],
    )  # fmt: skip
    changed = [
        (put.row, one) for put in puts for one in _everybody(put.row.case) if put.row.known.get(one.holder) != one
    ]
    if changed:
        await db.executemany(
            """INSERT INTO case_holder (case_id, holder, epoch, done, sends, first_sent_at, due_at, faults, offsets,
                                        waived_by, ticket, waived_at)
               VALUES ($1, $2, $3, $4, $5, $6, $7, $8, $9, $10, $11, $12)
               ON CONFLICT (case_id, holder) DO UPDATE
                 SET epoch = excluded.epoch, done = excluded.done, sends = excluded.sends,
                     first_sent_at = excluded.first_sent_at, due_at = excluded.due_at, faults = excluded.faults,
                     offsets = excluded.offsets, waived_by = excluded.waived_by, ticket = excluded.ticket,
                     waived_at = excluded.waived_at""",
            [
                (row.case.id, one.holder, one.epoch, one.done, one.sends, one.first_sent_at, one.due_at, one.faults,
                 one.offsets, one.waived_by, one.ticket, one.waived_at)
                for row, one in changed
            ],
        )  # fmt: skip
    for row, one in changed:
        row.known[one.holder] = one
    entries = [
        (put.row.case.id, put.row.entries + n, now, what, put.row.case.state, actor, role, reason)
        for put in puts
        for n, (what, actor, role, reason) in enumerate(put.row.news, 1)
    ]
    if entries:
        await db.executemany(
            """INSERT INTO case_entry (case_id, number, at, what, state, actor, role, reason)
               VALUES ($1, $2, $3, $4, $5, $6, $7, $8)""",
            entries,
        )
    for put in puts:
        put.row.entries += len(put.row.news)
        put.row.news.clear()
        put.row.before = put.row.case


async def add_receipt(
    db: Connection, case_id: str, holder: str, action: str, epoch: int, hold: str, body: Any, now: datetime
) -> None:
    """Keeps what a holder said; the first word of an epoch stands."""
    await add_receipts(db, [(case_id, holder, action, epoch, hold, body)], now)


async def add_receipts(db: Connection, said: Sequence[tuple[str, str, str, int, str, Any]], now: datetime) -> None:
    """Keeps what holders said: (case, holder, action, epoch, hold, body) each."""
    await db.executemany(
        """INSERT INTO case_receipt (case_id, holder, action, epoch, hold, body, arrived_at)
           VALUES ($1, $2, $3, $4, $5, $6, $7) ON CONFLICT DO NOTHING""",
        [(*one, now) for one in said],
    )


async def add_scans(db: Connection, said: Sequence[tuple[str, str, int, Any]], now: datetime) -> None:
    """Keeps what the auditor said: (case, action, epoch, stores) each."""
    await db.executemany(
        """INSERT INTO case_scan (case_id, action, epoch, stores, arrived_at) VALUES ($1, $2, $3, $4, $5)
           ON CONFLICT DO NOTHING""",
        [(*one, now) for one in said],
    )


async def receipts(db: Connection, case_id: str) -> list[asyncpg.Record]:
    """All receipts of a case, in order."""
    return await db.fetch(
        """SELECT holder, action, epoch, hold, body, arrived_at FROM case_receipt WHERE case_id = $1
           ORDER BY arrived_at, holder, epoch""",
        case_id,
    )


async def scans(db: Connection, case_id: str) -> list[asyncpg.Record]:
    """All scans of a case, in order."""
    return await db.fetch(
        "SELECT action, epoch, stores, arrived_at FROM case_scan WHERE case_id = $1 ORDER BY epoch", case_id
    )


async def ask_mail(db: Connection, cause: str, case_id: str, template: str, now: datetime, request: str | None) -> None:
    """A mail is owed; with it `request`, if there is one, is acknowledged."""
    await db.execute(
        """INSERT INTO case_mail (cause, case_id, template, asked_at, request) VALUES ($1, $2, $3, $4, $5)
           ON CONFLICT DO NOTHING""",
        cause, case_id, template, now, request,
    )  # fmt: skip


async def mails(db: Connection, case_id: str) -> list[asyncpg.Record]:
    """What became of a case's mails."""
    return await db.fetch(
        "SELECT cause, template, asked_at, outcome, at FROM case_mail WHERE case_id = $1 ORDER BY asked_at, cause",
        case_id,
    )


async def settle_mail(db: Connection, cause: str, outcome: str, at: datetime) -> asyncpg.Record | None:
    """What became of a mail: its case, template, and the request it acknowledges. An accepted one stays accepted."""
    return await db.fetchrow(
        """UPDATE case_mail SET outcome = $2, at = $3 WHERE cause = $1 AND outcome IS DISTINCT FROM 'accepted'
           RETURNING case_id, template, request, asked_at""",
        cause, outcome, at,
    )  # fmt: skip


async def add_tombstones(
    db: Connection, case_id: str, rows: Sequence[tuple[bytes, str]], at: datetime, expires_at: datetime
) -> None:
    """The graveyard's book, written before anything is destroyed: (hash, kind) each."""
    await db.execute(
        """INSERT INTO tombstone (hash, kind, case_id, at, expires_at)
           SELECT hash, kind, $3, $4, $5 FROM unnest($1::bytea[], $2::text[]) AS v(hash, kind)
           ON CONFLICT DO NOTHING""",
        [row[0] for row in rows], [row[1] for row in rows], case_id, at, expires_at,
    )  # fmt: skip


async def tombstones(db: Connection, case_id: str) -> list[asyncpg.Record]:
    """The tombstones of a case."""
    return await db.fetch("SELECT hash, kind, at FROM tombstone WHERE case_id = $1 ORDER BY hash", case_id)


async def history(db: Connection, case_id: str) -> list[asyncpg.Record]:
    """All that happened to a case, in order."""
    return await db.fetch(
        "SELECT number, at, what, state, actor, role, reason FROM case_entry WHERE case_id = $1 ORDER BY number",
        case_id,
    )


async def rights_of(db: Connection, subjects: Sequence[bytes], owners: Sequence[bytes]) -> list[str]:
    """Cases that are no deletion under way and are open, or have a package that can be fetched: those about these subjects,
    and all of these accounts."""
    rows = await db.fetch(
        """SELECT c.id FROM privacy_case c LEFT JOIN package p ON p.case_id = c.id
           WHERE (c.subject_pseudonym = ANY($1) OR c.owner = ANY($2))
             AND (c.kind NOT IN ('erasure', 'closure', 'child_report') OR c.state = 'answering'
                  OR (c.kind = 'child_report' AND c.state = 'requested'))
             AND (c.ended_at IS NULL OR (p.case_id IS NOT NULL AND p.dropped_at IS NULL))
           ORDER BY c.id""",
        subjects, owners,
    )  # fmt: skip
    return [row["id"] for row in rows]


# --- packages -----------------------------------------------------------------------------------------------------


async def add_package(
    db: Connection, case_id: str, token_hash: bytes, size: int, sha256: str, now: datetime, not_after: datetime
) -> None:
    """A package lies there until `not_after`."""
    await db.execute(
        """INSERT INTO package (case_id, token_hash, size, sha256, made_at, not_after) VALUES ($1, $2, $3, $4, $5, $6)
           ON CONFLICT (case_id) DO NOTHING""",
        case_id, token_hash, size, sha256, now, not_after,
    )  # fmt: skip


async def package(db: Connection, case_id: str) -> asyncpg.Record | None:
    """The package of a case."""
    return await db.fetchrow("SELECT * FROM package WHERE case_id = $1", case_id)


async def package_of(db: Connection, token_hash: bytes) -> asyncpg.Record | None:
    """The package that a link leads to."""
    return await db.fetchrow("SELECT * FROM package WHERE token_hash = $1", token_hash)


async def note_fetch(db: Connection, case_id: str) -> None:
    """Somebody fetched a package."""
    await db.execute("UPDATE package SET fetched = fetched + 1 WHERE case_id = $1", case_id)


async def close_packages(db: Connection, case_ids: Iterable[str], now: datetime) -> None:
    """Nobody gets these packages any more."""
    await db.execute(
        "UPDATE package SET gone_at = $2 WHERE case_id = ANY($1) AND gone_at IS NULL", sorted(case_ids), now
    )


async def wanted_packages(db: Connection, case_ids: Sequence[str]) -> set[str]:
    """Those of these cases that have a package in the blob store, or are about to."""
    rows = await db.fetch(
        """SELECT case_id FROM package WHERE case_id = ANY($1) AND dropped_at IS NULL
           UNION SELECT id FROM privacy_case WHERE id = ANY($1) AND state = 'packing'""",
        case_ids,
    )
    return {row["case_id"] for row in rows}


async def over_packages(db: Connection, now: datetime, limit: int) -> list[str]:
    """Closes packages whose time is over; returns cases whose files are still there."""
    await db.execute("UPDATE package SET gone_at = $1 WHERE gone_at IS NULL AND not_after <= $1", now)
    rows = await db.fetch(
        """SELECT case_id FROM package WHERE gone_at IS NOT NULL AND dropped_at IS NULL
           ORDER BY gone_at, case_id LIMIT $1""",
        limit,
    )
    return [row["case_id"] for row in rows]


async def dropped_package(db: Connection, case_id: str, now: datetime) -> None:
    """The store has a package no more."""
    await db.execute("UPDATE package SET dropped_at = $2 WHERE case_id = $1", case_id, now)


# --- speed --------------------------------------------------------------------------------------------------------


async def speeds(db: Connection, last: int) -> list[asyncpg.Record]:
    """How long the steps of cases took lately: (kind, step, seconds), the `last` ones of each, the oldest first."""
    return await db.fetch(
        """SELECT kind, step, seconds FROM (
             SELECT *, row_number() OVER (PARTITION BY kind, step ORDER BY id DESC) AS n FROM step_taken) AS taken
           WHERE n <= $1 ORDER BY id""",
        last,
    )


async def add_taken(db: Connection, rows: Sequence[tuple[str, str, float]]) -> None:
    """Writes down how long steps took: (kind, step, seconds) each."""
    await db.executemany("INSERT INTO step_taken (kind, step, seconds) VALUES ($1, $2, $3)", rows)


async def forget_taken(db: Connection, last: int) -> None:
    """Takes away what counts no more for the forecast."""
    await db.execute(
        """DELETE FROM step_taken WHERE id IN (
             SELECT id FROM (SELECT id, row_number() OVER (PARTITION BY kind, step ORDER BY id DESC) AS n FROM step_taken) AS t
             WHERE n > $1)""",
        last,
    )


async def note_parts(db: Connection, case_id: str, *, there: bool) -> None:
    """Whether copies for a case lie in the blob store."""
    await db.execute("UPDATE privacy_case SET parts = $2 WHERE id = $1 AND parts <> $2", case_id, there)


async def over_parts(db: Connection, limit: int) -> list[str]:
    """Cases whose copies are needed no more, and still lie there."""
    rows = await db.fetch(
        "SELECT id FROM privacy_case WHERE parts AND state NOT IN ('working', 'packing') ORDER BY id LIMIT $1", limit
    )
    return [row["id"] for row in rows]


async def entombed(db: Connection, hashes: Sequence[bytes]) -> bool:
    """Whether a deletion of one of these was confirmed, even if its tombstone has not come round yet."""
    found: bool = await db.fetchval("SELECT EXISTS (SELECT FROM tombstone WHERE hash = ANY($1))", hashes)
    return found


async def to_sweep(db: Connection) -> list[str]:
    """Cases that wait for their sweep."""
    rows = await db.fetch("SELECT id FROM privacy_case WHERE state IN ('completed', 'sweeping')")
    return [row["id"] for row in rows]


async def running(db: Connection) -> dict[str, Row]:
    """All cases with an open clock, without what they have sealed: for eyes, not to be written back."""
    return await _with_holders(
        db,
        await db.fetch(
            """SELECT id, kind, scope, channel, state, account, target, subject_pseudonym, owner, wish, NULL::text AS sealed,
                      NULL::text AS sealed_account, NULL::text AS details, subjects, attempts, requested_at, confirmed_at,
                      completed_at, answered_at, ended_at, moved_at, needs_person, key_destroyed, regime, risks, state_at,
                      needed, proofs, verified_at, lapses_at, outcome, reason, extended_at, escalated_to, unanswerable, version,
                      told, entries
               FROM privacy_case WHERE ended_at IS NULL"""
        ),
    )


async def state_counts(db: Connection) -> dict[str, int]:
    """How many open cases are in each state."""
    rows = await db.fetch("SELECT state, count(*) AS n FROM privacy_case WHERE ended_at IS NULL GROUP BY state")
    return {row["state"]: row["n"] for row in rows}


async def summary(db: Connection, now: datetime) -> dict[str, int]:
    """Of open cases: how many are forecast to miss a clock, have missed one, need a person."""
    row = await db.fetchrow(
        """SELECT count(*) FILTER (WHERE cardinality(risks) > 0) AS at_risk, count(*) FILTER (WHERE due_at <= $1) AS late,
                  count(*) FILTER (WHERE cardinality(needs_person) > 0) AS needing
           FROM privacy_case WHERE ended_at IS NULL""",
        now,
    )
    return dict(row or {})


async def risk_counts(db: Connection) -> dict[str, int]:
    """How many open cases are forecast to miss a clock, by clock."""
    rows = await db.fetch(
        "SELECT risk, count(*) AS n FROM privacy_case, unnest(risks) AS risk WHERE ended_at IS NULL GROUP BY risk"
    )
    return {row["risk"]: row["n"] for row in rows}


# --- holds --------------------------------------------------------------------------------------------------------


def _hold(row: asyncpg.Record) -> Hold:
    return Hold(
        row["id"], row["holder"], row["until"], row["state"], row["epoch"], row["sends"], row["first_sent_at"],
        row["due_at"], row["released_at"], row["ended_at"], row["key_destroyed"],
    )  # fmt: skip


class HoldRow:
    """A locked hold, and what stands beside the machine's part of it."""

    __slots__ = ("ground", "hold", "sealed", "table")

    def __init__(self, row: asyncpg.Record) -> None:
        self.hold = _hold(row)
        self.sealed: str | None = row["sealed"]
        self.table: str = row["table_name"]
        self.ground: str = row["ground"]


async def add_hold(
    db: Connection, hold: Hold, *, table: str, kind: str, pseudonym: bytes, sealed: str, ground: str, actor: str,
    ticket: str, now: datetime,
) -> bool:  # fmt: skip
    """A new hold; False if it is known."""
    return (
        await db.fetchval(
            """INSERT INTO hold (id, state, holder, table_name, kind, subject_pseudonym, sealed, ground, until, epoch, sends,
                                 due_at, placed_at, placed_by, ticket)
               VALUES ($1, 'placing', $2, $3, $4, $5, $6, $7, $8, 1, 0, $9, $9, $10, $11)
               ON CONFLICT DO NOTHING RETURNING id""",
            hold.id, hold.holder, table, kind, pseudonym, sealed, ground, hold.until, now, actor, ticket,
        )
        is not None
    )  # fmt: skip


async def lock_hold(db: Connection, hold_id: str) -> HoldRow | None:
    """One hold, locked."""
    row = await db.fetchrow("SELECT * FROM hold WHERE id = $1 FOR UPDATE", hold_id)
    return None if row is None else HoldRow(row)


async def lock_due_holds(db: Connection, now: datetime, limit: int) -> list[HoldRow]:
    """Holds for which something is due, locked. The end of one that still waits for its holder counts, too."""
    rows = await db.fetch(
        """SELECT * FROM hold WHERE due_at <= $1 ORDER BY due_at LIMIT $2 FOR UPDATE SKIP LOCKED""", now, limit
    )
    return [HoldRow(row) for row in rows]


async def put_hold(db: Connection, row: HoldRow, expires_at: datetime | None) -> None:
    """Writes a hold back."""
    hold = row.hold
    await db.execute(
        """UPDATE hold SET state = $2, epoch = $3, sends = $4, first_sent_at = $5, due_at = $6, released_at = $7,
                           ended_at = $8, key_destroyed = $9, sealed = $10, expires_at = $11
           WHERE id = $1""",
        hold.id, hold.state, hold.epoch, hold.sends, hold.first_sent_at, hold.due_at, hold.released_at,
        hold.ended_at, hold.key_destroyed, row.sealed, expires_at,
    )  # fmt: skip


async def note_release(db: Connection, hold_id: str, actor: str, ticket: str) -> None:
    """Who let a hold go."""
    await db.execute(
        "UPDATE hold SET released_by = $2, release_ticket = $3 WHERE id = $1 AND released_by IS NULL",
        hold_id, actor, ticket,
    )  # fmt: skip


async def holds(db: Connection, *, all_of_them: bool, limit: int) -> list[asyncpg.Record]:
    """Holds, the newest first; no id of anybody."""
    return await db.fetch(
        """SELECT id, state, holder, table_name AS table, kind, ground, until, rows, placed_at, placed_by, ticket, released_at,
                  released_by, release_ticket, ended_at, first_sent_at FROM hold
           WHERE $1 OR ended_at IS NULL ORDER BY placed_at DESC, id DESC LIMIT $2""",
        all_of_them, limit,
    )  # fmt: skip


async def being_placed(db: Connection, pseudonyms: Sequence[bytes]) -> set[str]:
    """Holders that have not yet put aside what a hold on one of these subjects keeps, or the address for its notice."""
    rows = await db.fetch(
        """SELECT holder FROM hold WHERE subject_pseudonym = ANY($1) AND state = 'placing'
           UNION SELECT 'notifications' FROM disclosure d JOIN disclosure_course c USING (id)
           WHERE d.owner = ANY($1) AND c.epoch > 0 AND c.kept = 0 AND c.asked_at IS NULL""",
        pseudonyms,
    )
    return {row["holder"] for row in rows}


async def deferring(db: Connection, case_ids: Iterable[str]) -> dict[str, set[str]]:
    """The same for cases that are under way; those without such a hold are left out."""
    rows = await db.fetch(
        """SELECT DISTINCT c.case_id, h.holder FROM hold h JOIN case_hold c ON c.hold = h.id
           WHERE h.state = 'placing' AND c.case_id = ANY($1)
           UNION SELECT t.case_id, 'notifications' FROM disclosure_course c JOIN disclosure d USING (id)
           JOIN tombstone t ON t.hash = d.owner
           WHERE c.epoch > 0 AND c.kept = 0 AND c.asked_at IS NULL AND t.case_id = ANY($1)""",
        sorted(set(case_ids)),
    )
    found: dict[str, set[str]] = {}
    for row in rows:
        found.setdefault(row["case_id"], set()).add(row["holder"])
    return found


async def link_holds(db: Connection, case_id: str) -> None:
    """Notes which holds there are on a case's subjects."""
    await db.execute(
        """INSERT INTO case_hold (case_id, hold)
           SELECT $1, id FROM hold
           WHERE ended_at IS NULL AND subject_pseudonym IN (SELECT hash FROM tombstone WHERE case_id = $1)
           ON CONFLICT DO NOTHING""",
        case_id,
    )


async def link_cases(db: Connection, hold_id: str, pseudonym: bytes) -> None:
    """Notes which cases a hold is about that comes while they go round."""
    await db.execute(
        """INSERT INTO case_hold (case_id, hold)
           SELECT t.case_id, $1 FROM tombstone t JOIN privacy_case c ON c.id = t.case_id
           WHERE t.hash = $2 AND c.ended_at IS NULL
           ON CONFLICT DO NOTHING""",
        hold_id, pseudonym,
    )  # fmt: skip


async def cases_of_hold(db: Connection, hold_id: str) -> list[str]:
    """The cases that a hold is about."""
    rows = await db.fetch("SELECT case_id FROM case_hold WHERE hold = $1 ORDER BY case_id", hold_id)
    return [row["case_id"] for row in rows]


async def holds_on(db: Connection, case_id: str) -> list[Any]:
    """Holds on the subjects of a case."""
    return await db.fetch(
        """SELECT h.id, h.state, h.holder, h.table_name AS table, h.ground, h.until, h.rows, h.ended_at
           FROM hold h JOIN case_hold c ON c.hold = h.id WHERE c.case_id = $1 ORDER BY h.id""",
        case_id,
    )


async def note_held(db: Connection, hold_id: str, rows: int) -> None:
    """How many rows a hold's holder has put aside."""
    await db.execute("UPDATE hold SET rows = $2 WHERE id = $1", hold_id, rows)


async def silent_holds(db: Connection, before: datetime) -> int:
    """Holds whose holder owes an answer since an instant."""
    found: int = await db.fetchval(
        "SELECT count(*) FROM hold WHERE state IN ('placing', 'releasing') AND first_sent_at <= $1", before
    )
    return found


# --- certificates -------------------------------------------------------------------------------------------------


async def lock_log(db: Connection) -> int:
    """How many certificates there are; nobody adds one before this transaction ends."""
    size: int = await db.fetchval("SELECT size FROM certificate_log WHERE one FOR UPDATE")
    return size


async def nodes(db: Connection, places: Iterable[tuple[int, int]]) -> dict[tuple[int, int], bytes]:
    """Nodes of the log's tree by (level, position)."""
    wanted = list(places)
    rows = await db.fetch(
        """SELECT level, position, hash FROM merkle_node JOIN unnest($1::int[], $2::bigint[]) AS v(level, position)
           USING (level, position)""",
        [level for level, _ in wanted], [position for _, position in wanted],
    )  # fmt: skip
    return {(row["level"], row["position"]): row["hash"] for row in rows}


async def add_certificate(
    db: Connection, case_id: str, number: int, document: Any, made: Sequence[tuple[int, int, bytes]], now: datetime
) -> None:
    """A certificate, and the nodes that it completes."""
    await db.executemany("INSERT INTO merkle_node (level, position, hash) VALUES ($1, $2, $3)", made)
    await db.execute(
        "INSERT INTO certificate (case_id, number, document, signed_at) VALUES ($1, $2, $3, $4)",
        case_id, number, document, now,
    )  # fmt: skip
    await db.execute("UPDATE certificate_log SET size = $1 WHERE one", number + 1)


async def certificate(db: Connection, case_id: str) -> Any:
    """The certificate of a case; None if there is none."""
    return await db.fetchval("SELECT document FROM certificate WHERE case_id = $1", case_id)


async def over_tombstones(db: Connection, now: datetime, limit: int) -> list[bytes]:
    """Forgets tombstones whose time is over, and whose cases have ended; returns those that no other case needs."""
    rows = await db.fetch(
        """WITH gone AS (
             DELETE FROM tombstone WHERE (hash, case_id) IN (
               SELECT t.hash, t.case_id FROM tombstone t LEFT JOIN privacy_case c ON c.id = t.case_id
               WHERE t.expires_at <= $1 AND (c.id IS NULL OR c.ended_at IS NOT NULL) LIMIT $2)
             RETURNING hash, case_id)
           SELECT DISTINCT hash FROM gone g
           WHERE NOT EXISTS (SELECT FROM tombstone t WHERE t.hash = g.hash
                               AND NOT EXISTS (SELECT FROM gone o WHERE o.hash = t.hash AND o.case_id = t.case_id))""",
        now, limit,
    )  # fmt: skip
    return [row["hash"] for row in rows]


async def lock_case(db: Connection, case_id: str) -> Row | None:
    """One case, locked."""
    return (await lock_cases(db, [case_id])).get(case_id)
