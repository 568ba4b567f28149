"""All SQL of the runtime's own tables. Time comes in as a parameter."""

from __future__ import annotations

import base64
import json
import re
from collections.abc import AsyncIterator, Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from datetime import date, datetime
from typing import Any, TypeAlias

import asyncpg
import msgspec

from shared.contract.cards import masked
from shared.mesh import packed

Connection: TypeAlias = "asyncpg.Connection[Any] | asyncpg.pool.PoolConnectionProxy[Any]"
Pool: TypeAlias = "asyncpg.Pool[Any]"
Headers: TypeAlias = Sequence[tuple[str, bytes | None]]


async def _init_connection(connection: Connection) -> None:
    await connection.set_type_codec(
        "jsonb", schema="pg_catalog", encoder=lambda v: msgspec.json.encode(v).decode(), decoder=json.loads
    )


async def _keep_session(connection: Connection) -> None:
    """What a pooled connection is reset by: nothing. The default would be a round trip for every batch, to undo what
    nobody does: session locks, LISTEN and SET without LOCAL have connections of their own."""


async def open_pool(url: str, *, size: int = 8, application: str) -> Pool:
    """A pool on one service's database. A transaction that stands idle for 10 s is ended by the server."""
    return await asyncpg.create_pool(
        url,
        min_size=1,
        max_size=size,
        init=_init_connection,
        reset=_keep_session,
        command_timeout=120,
        max_inactive_connection_lifetime=300,
        server_settings={
            "application_name": application,
            "idle_in_transaction_session_timeout": "10000",
            "timezone": "UTC",
            "tcp_keepalives_idle": "10",
            "tcp_keepalives_interval": "5",
            "tcp_keepalives_count": "3",
        },
    )


async def stay_patient(db: Connection, seconds: int) -> None:
    """This transaction may stand idle for so long, while something outside of the database takes its time."""
    await db.execute("SELECT set_config('idle_in_transaction_session_timeout', $1, true)", f"{seconds}s")


async def connect(url: str, application: str, *, command_timeout: float | None = None) -> Connection:
    """One connection outside of any pool, for locks that belong to a session. `command_timeout`: seconds a statement."""
    connection = await asyncpg.connect(
        url,
        command_timeout=command_timeout,
        server_settings={
            "application_name": application,
            "timezone": "UTC",
            # Its locks end with the connection: the server must find out that nobody is there any more.
            "tcp_keepalives_idle": "10",
            "tcp_keepalives_interval": "5",
            "tcp_keepalives_count": "3",
        },
    )
    await _init_connection(connection)
    return connection


async def copy_packed(db: Connection, table: str, columns: Sequence[str], rows: Sequence[bytes]) -> None:
    """Appends rows that `packed` made. The server checks lengths, not meanings: eight bytes are a bigint or a timestamptz,
    as the table has it."""

    async def stream() -> AsyncIterator[bytes]:
        for message in packed.messages(rows):
            yield message

    await db.copy_to_table(table, columns=columns, format="binary", source=stream())


# --- cursors -----------------------------------------------------------------------------------------------------


@dataclass(slots=True)
class Cursor:
    """A claimed partition: what this process believes of its cursor row."""

    epoch: int
    next_offset: int
    high_offset: int
    created: bool = False


async def claim(db: Connection, grp: str, topic: str, part: int, owner: str, now: datetime) -> Cursor:
    """Takes the partition over: whoever held it before is a zombie from here on.

    Waits for its open transaction, 15 s at most (LockNotAvailableError).
    """
    async with db.transaction():
        await db.execute("SET LOCAL lock_timeout = '15s'")
        row = await db.fetchrow(
            """INSERT INTO mesh_cursor AS c (grp, topic, part, epoch, next_offset, high_offset, owner, claimed_at)
               VALUES ($1, $2, $3, 1, 0, 0, $4, $5)
               ON CONFLICT (grp, topic, part) DO UPDATE
                 SET epoch = c.epoch + 1, owner = excluded.owner, claimed_at = excluded.claimed_at
               RETURNING epoch, next_offset, high_offset""",
            grp, topic, part, owner, now,
        )  # fmt: skip
    assert row is not None
    # Whoever made the row may have died before its first move: until then, the log's start is where it begins.
    return Cursor(row["epoch"], row["next_offset"], row["high_offset"], created=row["high_offset"] == 0)


async def reclaim(db: Connection, grp: str, topic: str, part: int, epoch: int, now: datetime) -> Cursor | None:
    """Asks the cursor what became of a transaction whose outcome is unknown; None = another process owns it now."""
    row = await db.fetchrow(
        """UPDATE mesh_cursor SET epoch = epoch + 1, claimed_at = $5
           WHERE grp = $1 AND topic = $2 AND part = $3 AND epoch = $4
           RETURNING epoch, next_offset, high_offset""",
        grp, topic, part, epoch, now,
    )  # fmt: skip
    return None if row is None else Cursor(row["epoch"], row["next_offset"], row["high_offset"])


async def epochs(db: Connection, grp: str, topic: str) -> dict[int, int]:
    """The current epoch of each partition's cursor."""
    rows = await db.fetch("SELECT part, epoch FROM mesh_cursor WHERE grp = $1 AND topic = $2", grp, topic)
    return {row["part"]: row["epoch"] for row in rows}


async def next_offsets(db: Connection, grp: str, topic: str) -> dict[int, int]:
    """How far each partition's effects are in."""
    rows = await db.fetch("SELECT part, next_offset FROM mesh_cursor WHERE grp = $1 AND topic = $2", grp, topic)
    return {row["part"]: row["next_offset"] for row in rows}


async def moved_by_hand(db: Connection, grp: str, topic: str, part: int) -> bool:
    """Whether the cursor's latest owner is an operator's command, not a process."""
    owner = await db.fetchval(
        "SELECT owner FROM mesh_cursor WHERE grp = $1 AND topic = $2 AND part = $3", grp, topic, part
    )
    return str(owner).startswith("operator:")


async def fence(db: Connection, grp: str, topic: str, moves: Sequence[tuple[int, int, int, int]]) -> set[int]:
    """First statement of every effect transaction: moves the cursors on, if they are still ours.

    `moves`: (partition, my epoch, offset I expect, new next offset). Returns the partitions that moved; one that is
    missing belongs to somebody else, and the transaction must be rolled back. Rows are locked in order.
    """
    rows = await db.fetch(
        """WITH mine AS (
             SELECT c.part, v.next FROM mesh_cursor c
             JOIN unnest($3::int[], $4::bigint[], $5::bigint[], $6::bigint[]) AS v(part, epoch, expected, next)
               ON v.part = c.part
             WHERE c.grp = $1 AND c.topic = $2 AND c.epoch = v.epoch AND c.next_offset = v.expected
             ORDER BY c.part FOR UPDATE OF c)
           UPDATE mesh_cursor c SET next_offset = mine.next, high_offset = greatest(c.high_offset, mine.next)
           FROM mine WHERE c.grp = $1 AND c.topic = $2 AND c.part = mine.part
           RETURNING c.part""",
        grp, topic, [m[0] for m in moves], [m[1] for m in moves], [m[2] for m in moves], [m[3] for m in moves],
    )  # fmt: skip
    return {row["part"] for row in rows}


async def cursors(db: Connection) -> list[Mapping[str, Any]]:
    """All cursor rows of this service."""
    return [dict(row) for row in await db.fetch("SELECT * FROM mesh_cursor ORDER BY grp, topic, part")]


async def move_cursor(db: Connection, grp: str, topic: str, part: int, offset: int, owner: str, now: datetime) -> bool:
    """Sets a cursor by hand; its new epoch makes the running owner claim again, from there."""
    return bool(
        await db.fetchval(
            """UPDATE mesh_cursor SET epoch = epoch + 1, next_offset = $4, owner = $5, claimed_at = $6
               WHERE grp = $1 AND topic = $2 AND part = $3 RETURNING true""",
            grp, topic, part, offset, owner, now,
        )
    )  # fmt: skip


async def rebase_cursor(
    db: Connection, grp: str, topic: str, part: int, offset: int, owner: str, now: datetime
) -> bool:
    """For a topic made anew (another cluster): offsets start again, and so does what counts as a first pass."""
    return bool(
        await db.fetchval(
            """UPDATE mesh_cursor SET epoch = epoch + 1, next_offset = $4, high_offset = $4, owner = $5, claimed_at = $6
               WHERE grp = $1 AND topic = $2 AND part = $3 RETURNING true""",
            grp, topic, part, offset, owner, now,
        )
    )  # fmt: skip


# --- counters ----------------------------------------------------------------------------------------------------


async def counters(db: Connection) -> dict[str, int]:
    """Durable counters, summed over partitions."""
    rows = await db.fetch("SELECT name, sum(value)::bigint AS value FROM mesh_counter GROUP BY name")
    return {row["name"]: row["value"] for row in rows}


async def missing(db: Connection, topic: str) -> dict[str, int]:
    """By source: events that it numbered and that never came (or are still on their way)."""
    rows = await db.fetch(
        "SELECT source, max(highest) - sum(seen) AS n FROM mesh_source WHERE topic = $1 GROUP BY source", topic
    )
    return {row["source"]: int(row["n"]) for row in rows}


# --- outbox ------------------------------------------------------------------------------------------------------


@dataclass(slots=True)
class OutboxRow:
    """One record to publish."""

    shard: int
    topic: str
    part: int | None
    key: bytes | None
    value: bytes | None
    headers: bytes | None = None


_READ_HEADERS = frozenset(("content-type", "ce_source", "ce_sequence", "traceparent", "steward_redrive"))
_PLAIN_HEADER = re.compile(rb"[A-Za-z0-9_.:;/+=~, -]{0,128}")


def pack_headers(headers: Headers) -> bytes:
    """The headers that the mesh reads, as JSON. What else came along nobody has declared: it is not kept."""
    kept = [(k, v) for k, v in headers if k in _READ_HEADERS and (v is None or _PLAIN_HEADER.fullmatch(v))]
    return msgspec.json.encode([(k, None if v is None else base64.b64encode(masked(v)).decode()) for k, v in kept])


def unpack_headers(raw: bytes | None) -> list[tuple[str, bytes]]:
    """The inverse of `pack_headers`; a null value becomes an empty one (the client library sends no nulls)."""
    return [(k, b"" if v is None else base64.b64decode(v)) for k, v in json.loads(raw or b"[]")]


_OUTBOX = ("shard", "topic", "part", "key", "value", "headers", "traceparent", "created_at")
_FEW = 64


async def add_ends(
    db: Connection,
    part: int,
    counts: Mapping[str, int],
    sources: Mapping[tuple[str, str], tuple[int, int]],
    outbox: Sequence[OutboxRow],
    traceparent: str | None,
    now: datetime,
) -> None:
    """How every transaction ends, in one round trip: what it adds to durable counters, what came of which source for
    the first time (highest sequence and number by topic and source), and what is published once it is committed."""
    if len(outbox) > _FEW:
        records = [(r.shard, r.topic, r.part, r.key, r.value, r.headers, traceparent, now) for r in outbox]
        await db.copy_records_to_table("mesh_outbox", columns=_OUTBOX, records=records)
        outbox = ()
    # Sorted, so that two transactions take the rows' locks in one order.
    counted = sorted((name, value) for name, value in counts.items() if value)
    seen = sorted((*place, *progress) for place, progress in sources.items())
    if not (counted or seen or outbox):
        return
    await db.execute(
        """WITH counted AS (
             INSERT INTO mesh_counter AS c (name, part, value)
             SELECT name, $1, value FROM unnest($2::text[], $3::bigint[]) AS v(name, value)
             ON CONFLICT (name, part) DO UPDATE SET value = c.value + excluded.value
           ), noted AS (
             INSERT INTO mesh_source AS s (topic, source, part, highest, seen)
             SELECT topic, source, $1, highest, seen
             FROM unnest($4::text[], $5::text[], $6::bigint[], $7::bigint[]) AS v(topic, source, highest, seen)
             ON CONFLICT (topic, source, part) DO UPDATE
               SET highest = greatest(s.highest, excluded.highest), seen = s.seen + excluded.seen
           )
           INSERT INTO mesh_outbox (shard, topic, part, key, value, headers, traceparent, created_at)
           SELECT a, b, c, d, e, f, $14, $15
           FROM unnest($8::int[], $9::text[], $10::int[], $11::bytea[], $12::bytea[], $13::bytea[]) WITH ORDINALITY
             AS v(a, b, c, d, e, f, n) ORDER BY n""",
        part, *_columns(counted, 2), *_columns(seen, 4),
        [r.shard for r in outbox], [r.topic for r in outbox], [r.part for r in outbox], [r.key for r in outbox],
        [r.value for r in outbox], [r.headers for r in outbox], traceparent, now,
    )  # fmt: skip


def _columns(rows: Sequence[tuple[Any, ...]], width: int) -> list[list[Any]]:
    return [[row[n] for row in rows] for n in range(width)]


async def next_outbox(db: Connection, shards: Sequence[int], limit: int, size_bytes: int) -> list[asyncpg.Record]:
    """The oldest rows of the given shards, in order: up to `limit` rows or about `size_bytes`, at least one."""
    return await db.fetch(
        """SELECT id, shard, topic, part, key, value, headers, traceparent
           FROM (SELECT *, sum(length(value)) OVER (ORDER BY id) - length(value) AS before
                 FROM (SELECT * FROM mesh_outbox WHERE shard = ANY($1) ORDER BY id LIMIT $2) AS oldest) AS sized
           WHERE before IS NULL OR before < $3 ORDER BY id""",
        list(shards), limit, size_bytes,
    )  # fmt: skip


async def drop_outbox(db: Connection, ids: Sequence[int]) -> None:
    """Forgets acknowledged rows."""
    await db.execute("DELETE FROM mesh_outbox WHERE id = ANY($1)", list(ids))


async def last_outbox(db: Connection) -> int:
    """The number of the newest row that waits to be published; 0 when none does."""
    return int(await db.fetchval("SELECT coalesce(max(id), 0) FROM mesh_outbox"))


async def outbox_before(db: Connection, topic: str, last: int) -> bool:
    """Whether a row for `topic`, of number `last` or lower, still waits to be published."""
    return bool(await db.fetchval("SELECT EXISTS (SELECT FROM mesh_outbox WHERE topic = $1 AND id <= $2)", topic, last))


async def announce_outbox(db: Connection) -> None:
    """Tells the service's other processes that rows are there."""
    await db.execute("NOTIFY steward_outbox")


async def hear_outbox(db: Connection, heard: Callable[[], None]) -> None:
    """Calls `heard` whenever another process announces rows."""
    own = db.get_server_pid()
    await db.add_listener("steward_outbox", lambda _, pid, channel, payload: None if pid == own else heard())


async def take_shards(db: Connection, shards: Iterable[int]) -> set[int]:
    """Session locks on the shards that no other process holds. They end with the connection."""
    taken = set()
    for shard in shards:
        # The key space of advisory locks belongs to the database, and each service has its own.
        if await db.fetchval("SELECT pg_try_advisory_lock(1867, $1)", shard):
            taken.add(shard)
    return taken


async def pending(db: Connection) -> Mapping[str, Any]:
    """What waits: outbox rows (and the oldest one's time), tasks, dead letters, parked records; and each job's next slot."""
    row = await db.fetchrow(
        """SELECT (SELECT count(*) FROM mesh_outbox) AS outbox, (SELECT min(created_at) FROM mesh_outbox) AS oldest,
                  (SELECT min(first_failed_at) FROM mesh_dead_letter WHERE state = 'waiting') AS oldest_dead"""
    )
    assert row is not None
    tasks = await db.fetch("SELECT name, count(*) AS n FROM mesh_task GROUP BY name")
    dead = await db.fetch("SELECT topic, count(*) AS n FROM mesh_dead_letter WHERE state = 'waiting' GROUP BY topic")
    parked = await db.fetch("SELECT topic, count(*) AS n FROM mesh_parked GROUP BY topic")
    jobs = await db.fetch("SELECT name, next_slot FROM mesh_job")
    return dict(row) | {
        "jobs": {j["name"]: j["next_slot"] for j in jobs},
        "parked": {p["topic"]: p["n"] for p in parked},
        "tasks": {t["name"]: t["n"] for t in tasks},
        "dead": {d["topic"]: d["n"] for d in dead},
    }


# --- dead letters and parked records -----------------------------------------------------------------------------


@dataclass(slots=True)
class DeadLetter:
    """A record that could not be handled, and why."""

    grp: str
    topic: str
    part: int
    record_offset: int
    stage: str
    reason: str
    detail: str
    key: bytes | None
    headers: bytes
    payload: bytes | None
    source: str | None
    sequence: int | None
    subject_hash: bytes | None
    counted: bool


async def add_dead_letters(
    db: Connection, letters: Sequence[DeadLetter], expires_on: date, now: datetime
) -> list[DeadLetter]:
    """Keeps the letters; returns those that were not kept before (a replayed offset is not a new letter)."""
    new = []
    for x in letters:
        added = await db.fetchval(
            """INSERT INTO mesh_dead_letter (expires_on, grp, topic, part, record_offset, stage, reason, detail, key,
                   headers, payload, source, sequence, subject_hash, counted, first_failed_at)
               SELECT $1, $2, $3, $4, $5, $6, $7, $8, $9, $10, $11, $12, $13, $14, $15, $16
               WHERE NOT EXISTS (SELECT FROM mesh_dead_letter WHERE topic = $3 AND part = $4 AND record_offset = $5)
               RETURNING true""",
            expires_on, x.grp, x.topic, x.part, x.record_offset, x.stage, x.reason, x.detail, x.key, x.headers,
            x.payload, x.source, x.sequence, x.subject_hash, x.counted, now,
        )  # fmt: skip
        if added:
            new.append(x)
    return new


async def repeated_sequences(
    db: Connection, topic: str, pairs: Sequence[tuple[str, int]]
) -> set[tuple[str, int | None]]:
    """Which (source, sequence) are dead letters of the topic more than once: a sender's repeat is not a new event."""
    rows = await db.fetch(
        """SELECT d.source, d.sequence FROM mesh_dead_letter d
           JOIN unnest($2::text[], $3::bigint[]) AS v(source, sequence)
             ON v.source = d.source AND v.sequence = d.sequence
           WHERE d.topic = $1 GROUP BY d.source, d.sequence HAVING count(*) > 1""",
        topic, [p[0] for p in pairs], [p[1] for p in pairs],
    )  # fmt: skip
    return {(row["source"], row["sequence"]) for row in rows}


async def dead_letters(
    db: Connection, *, state: str | None, topic: str | None, after: int, limit: int
) -> list[Mapping[str, Any]]:
    """Dead letters without their payload, oldest first, from id `after` on."""
    rows = await db.fetch(
        """SELECT id, topic, part, record_offset, stage, reason, detail, source, sequence, attempts, state,
                  first_failed_at, expires_on, length(payload) AS size_bytes
           FROM mesh_dead_letter
           WHERE id > $1 AND ($2::text IS NULL OR state = $2) AND ($3::text IS NULL OR topic = $3)
           ORDER BY id LIMIT $4""",
        after, state, topic, limit,
    )  # fmt: skip
    return [dict(row) for row in rows]


async def dead_letter(db: Connection, letter: int) -> Mapping[str, Any] | None:
    """One dead letter, whole."""
    row = await db.fetchrow("SELECT * FROM mesh_dead_letter WHERE id = $1", letter)
    return None if row is None else dict(row)


async def set_dead_letter_state(db: Connection, letter: int, before: str, after: str) -> Mapping[str, Any] | None:
    """Moves a letter from one state to another; None if it was in neither (somebody was faster)."""
    row = await db.fetchrow(
        """UPDATE mesh_dead_letter SET state = $3, attempts = attempts + ($3 = 'replaying')::int
           WHERE id = $1 AND state = $2 RETURNING *""",
        letter, before, after,
    )  # fmt: skip
    return None if row is None else dict(row)


async def parked_keys(db: Connection, grp: str, topic: str) -> set[bytes]:
    """Keys whose later records must wait."""
    return {
        r["key"] for r in await db.fetch("SELECT DISTINCT key FROM mesh_parked WHERE grp=$1 AND topic=$2", grp, topic)
    }


async def park(db: Connection, grp: str, topic: str, records: Sequence[Any], reason: str, now: datetime) -> None:
    """Parks records behind a failed one of their key, in order."""
    await db.executemany(
        """INSERT INTO mesh_parked (grp, topic, key, part, record_offset, record_ms, headers, payload, reason, parked_at)
           VALUES ($1, $2, $3, $4, $5, $6, $7, $8, $9, $10) ON CONFLICT DO NOTHING""",
        [
            (
                grp,
                topic,
                r.key or b"",
                r.partition,
                r.offset,
                r.timestamp,
                pack_headers(r.headers),
                r.value,
                reason,
                now,
            )
            for r in records
        ],
    )


async def parked(db: Connection, grp: str, topic: str, after: int, limit: int) -> list[asyncpg.Record]:
    """Parked records from id `after` on, in order, locked."""
    return await db.fetch(
        "SELECT * FROM mesh_parked WHERE grp = $1 AND topic = $2 AND id > $3 ORDER BY id LIMIT $4 FOR UPDATE",
        grp, topic, after, limit,
    )  # fmt: skip


async def unpark(db: Connection, ids: Sequence[int]) -> None:
    """Forgets parked records that were handled."""
    await db.execute("DELETE FROM mesh_parked WHERE id = ANY($1)", list(ids))


# --- jobs and tasks ----------------------------------------------------------------------------------------------


async def due_jobs(pool: Pool, names: Sequence[str], now: datetime) -> list[str]:
    """Which of the jobs have come to their slot (or are not known yet), in the order of `names`."""
    rows = await pool.fetch(
        """SELECT v.name FROM unnest($1::text[]) WITH ORDINALITY AS v(name, n) LEFT JOIN mesh_job j ON j.name = v.name
           WHERE j.next_slot IS NULL OR j.next_slot <= $2 ORDER BY n""",
        names, now,
    )  # fmt: skip
    return [row["name"] for row in rows]


async def take_job(db: Connection, name: str, now: datetime, first_slot: datetime) -> asyncpg.Record | None:
    """The job's row, locked, if its slot has come and no other replica has it."""
    row = await db.fetchrow(
        """SELECT name, next_slot, missed FROM mesh_job WHERE name = $1 AND next_slot <= $2 FOR UPDATE SKIP LOCKED""",
        name, now,
    )  # fmt: skip
    if row is None:
        await db.execute(
            """INSERT INTO mesh_job (name, next_slot) SELECT $1, $2 WHERE NOT EXISTS (SELECT FROM mesh_job WHERE name = $1)
               ON CONFLICT DO NOTHING""",
            name, first_slot,
        )  # fmt: skip
    return row


async def finish_job(db: Connection, name: str, next_slot: datetime, missed: int, now: datetime) -> None:
    """Sets the job's next slot, in the transaction of its run."""
    await db.execute(
        "UPDATE mesh_job SET next_slot = $2, missed = missed + $3, ran_at = $4 WHERE name = $1",
        name,
        next_slot,
        missed,
        now,
    )


async def add_task(db: Connection, name: str, cause: str, payload: Mapping[str, Any], now: datetime) -> bool:
    """Asks for a task, once per cause. False = it was asked for before and is not done yet."""
    return bool(
        await db.fetchval(
            """INSERT INTO mesh_task (name, cause, payload, next_attempt_at, created_at) VALUES ($1, $2, $3, $4, $4)
               ON CONFLICT (name, cause) DO NOTHING RETURNING true""",
            name, cause, payload, now,
        )
    )  # fmt: skip


async def take_task(db: Connection, names: Sequence[str], now: datetime) -> asyncpg.Record | None:
    """The next due task, locked."""
    return await db.fetchrow(
        """SELECT * FROM mesh_task WHERE name = ANY($1) AND next_attempt_at <= $2
           ORDER BY next_attempt_at, id LIMIT 1 FOR UPDATE SKIP LOCKED""",
        list(names), now,
    )  # fmt: skip


async def continue_task(db: Connection, task: int, position: Any, now: datetime) -> None:
    """Keeps where the task got to."""
    await db.execute(
        "UPDATE mesh_task SET position = $2, attempts = 0, next_attempt_at = $3 WHERE id = $1", task, position, now
    )


async def postpone_task(db: Connection, task: int, until: datetime) -> None:
    """The chunk failed: again at `until`."""
    await db.execute("UPDATE mesh_task SET attempts = attempts + 1, next_attempt_at = $2 WHERE id = $1", task, until)


async def finish_task(db: Connection, task: int) -> None:
    """The last chunk is in."""
    await db.execute("DELETE FROM mesh_task WHERE id = $1", task)


async def log_read(db: Connection, name: str, actor: str, role: str, reason: str, now: datetime) -> None:
    """Who read what, as whom, and why."""
    await db.execute(
        "INSERT INTO mesh_read (name, actor, role, reason, at) VALUES ($1, $2, $3, $4, $5)",
        name,
        actor,
        role,
        reason,
        now,
    )


# --- migrations --------------------------------------------------------------------------------------------------


async def lock_migrations(db: Connection) -> dict[str, str]:
    """Waits until nobody else migrates this database; returns what was applied (name -> sha256)."""
    await db.execute("SELECT pg_advisory_lock(1867, -1)")
    await db.execute("CREATE TABLE IF NOT EXISTS mesh_migration (name text PRIMARY KEY, sha256 text NOT NULL)")
    return {row["name"]: row["sha256"] for row in await db.fetch("SELECT name, sha256 FROM mesh_migration")}


async def apply_migration(db: Connection, name: str, text: str, digest: str) -> None:
    """One migration, whole or not at all; it waits 5 s for a lock, and no longer."""
    async with db.transaction():
        await db.execute("SET LOCAL lock_timeout = '5s'")
        await db.execute(text)
        await db.execute("INSERT INTO mesh_migration (name, sha256) VALUES ($1, $2)", name, digest)
