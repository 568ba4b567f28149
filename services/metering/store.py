"""All SQL of metering. Time comes in as a parameter."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping, Sequence
from datetime import date, datetime
from struct import Struct
from typing import Any, NamedTuple
from uuid import UUID

import asyncpg
import msgspec

from services.metering import charged, log_row
from shared.mesh import packed
from shared.mesh.store import Connection, copy_packed
from shared.privacy.store import Slice

_FEW = 500
_PENDING = ("workspaces", "keys", "models", "hours", "generations", "input_tokens", "output_tokens", "amounts")
NO_GENERATION = "00000000-0000-7000-8000-000000000000"
"""Stands where a waiting correction's original would, if its workspace keeps no log: no event has this id."""
_SEEN = Struct(">hi16siQ").pack
_ADD_DAYS = """ON CONFLICT (day, workspace) DO UPDATE
               SET generations = r.generations + excluded.generations,
                   input_tokens = r.input_tokens + excluded.input_tokens,
                   output_tokens = r.output_tokens + excluded.output_tokens,
                   amount_pico = r.amount_pico + excluded.amount_pico"""


# --- de-duplication ----------------------------------------------------------------------------------------------


async def known(db: Connection, keys: Collection[bytes]) -> dict[bytes, int]:
    """Digests of those `keys` that were seen before. The range lets PostgreSQL skip the other days' partitions."""
    # One value of many keys: to encode an array costs more than all else here. And without the inner ARRAY the planner
    # would weigh every single key.
    rows = await db.fetch(
        """SELECT key, digest FROM seen
           WHERE key = ANY(ARRAY(SELECT substr($1::bytea, n, 16) FROM generate_series(1, length($1::bytea), 16) AS n))
             AND key BETWEEN $2 AND $3""",
        b"".join(keys), min(keys), max(keys),
    )  # fmt: skip
    return {row["key"]: row["digest"] for row in rows}


async def claim_seen(db: Connection, digests: Mapping[bytes, int]) -> dict[bytes, int]:
    """Notes the keys (16 bytes) that are new, with their digests; returns the digests of those that were seen before.

    Few in one statement; many by look-up and COPY, with the unique key as backstop for what another transaction was
    faster with.
    """
    if len(digests) <= _FEW:
        ours = await _insert_seen(db, digests.items())
    else:
        before = await known(db, digests)
        new = {key: digest for key, digest in digests.items() if key not in before} if before else digests
        try:
            async with db.transaction():
                rows = [_SEEN(2, 16, key, 8, digest) for key, digest in new.items()]
                await copy_packed(db, "seen", ("key", "digest"), rows)
            return before
        except asyncpg.UniqueViolationError:
            ours = await _insert_seen(db, new.items())
    if len(ours) == len(digests):
        return {}
    return await known(db, [key for key in digests if key not in ours])


async def _insert_seen(db: Connection, identities: Iterable[tuple[bytes, int]]) -> set[bytes]:
    # In key order, so that two transactions with the same keys wait for each other and do not deadlock.
    ordered = sorted(identities)
    rows = await db.fetch(
        """INSERT INTO seen (key, digest) SELECT key, digest FROM unnest($1::bytea[], $2::bigint[]) AS v(key, digest)
           ON CONFLICT DO NOTHING RETURNING key""",
        [k for k, _ in ordered], [d for _, d in ordered],
    )  # fmt: skip
    return {row["key"] for row in rows}


# --- request log -------------------------------------------------------------------------------------------------


async def add_log(db: Connection, rows: Sequence[bytes]) -> None:
    """Appends to the request log: rows as `log_row` packs them."""
    await copy_packed(db, "request_log", log_row.COLUMNS, rows)


# A row is over when its own time is, when it is older than its workspace, or who made its key, wants now, or when an
# earlier setting ended it.
_FROM_LIVE = """SELECT r.* FROM request_log r LEFT JOIN workspace_setting s ON s.workspace = r.workspace
                 LEFT JOIN key_setting k ON k.key = r.key_id
               WHERE r.expires_on >= ($1::timestamptz AT TIME ZONE 'UTC')::date
                 AND r.occurred_at + least(r.retention_days, s.log_retention_days, k.log_retention_days)
                     * interval '1 day' > $1
                 AND (s.ended_before IS NULL OR r.occurred_at > s.ended_before)
                 AND (k.ended_before IS NULL OR r.occurred_at > k.ended_before)"""
_LOGGED = _FROM_LIVE + " AND r.generation_id = $2"
_LOGGED_LOCKED = _LOGGED + " FOR UPDATE OF r"


async def logged(db: Connection, generation: str, now: datetime, *, lock: bool = False) -> asyncpg.Record | None:
    """A generation's log row, by its id; hidden from the instant on which it expires. `lock`: it is to be replaced."""
    return await db.fetchrow(_LOGGED_LOCKED if lock else _LOGGED, now, generation)


async def logged_made_at(db: Connection, ms: int, now: datetime) -> list[asyncpg.Record]:
    """Log rows of generations whose id was made in one millisecond (since 1970), locked."""
    return await db.fetch(
        _FROM_LIVE + " AND r.generation_id >= $2 AND r.generation_id < $3 FOR UPDATE OF r",
        now, UUID(int=ms << 80), UUID(int=(ms + 1) << 80),
    )  # fmt: skip


async def logged_between(
    db: Connection, start: UUID, end: UUID, limit: int, event_from: datetime, event_to: datetime, provider: str | None,
    model: str | None, now: datetime,
) -> list[asyncpg.Record]:  # fmt: skip
    """Log rows of generations with ids from `start` to before `end` and times from `event_from` to before `event_to`,
    locked, in order of their ids; a provider or model of None is any."""
    return await db.fetch(
        _FROM_LIVE + """
             AND r.generation_id >= $2 AND r.generation_id < $3 AND r.occurred_at >= $5 AND r.occurred_at < $6
             AND ($7::text IS NULL OR r.provider = $7) AND ($8::text IS NULL OR r.model = $8)
           ORDER BY r.generation_id LIMIT $4 FOR UPDATE OF r""",
        now, start, end, limit, event_from, event_to, provider, model,
    )  # fmt: skip


async def logged_by_ref(db: Connection, ref: str, now: datetime) -> asyncpg.Record | None:
    """A generation's log row, by the gateway's own id. Reads the log: there is no index on it."""
    return await db.fetchrow(_FROM_LIVE + " AND r.generation_ref = $2 LIMIT 1", now, ref)


async def forget_logged(db: Connection, rows: Sequence[Any]) -> None:
    """Removes log rows: others take their place."""
    ids = [row["generation_id"] for row in rows]
    # The range is what the index knows.
    await db.execute(
        """DELETE FROM request_log AS r USING unnest($1::uuid[], $2::date[]) AS v(id, expires_on)
           WHERE r.generation_id = v.id AND r.expires_on = v.expires_on AND r.generation_id BETWEEN $3 AND $4""",
        ids, [row["expires_on"] for row in rows], min(ids), max(ids),
    )  # fmt: skip


# --- charges without a name ------------------------------------------------------------------------------------------


async def add_charged(db: Connection, rows: Sequence[bytes]) -> None:
    """Notes what generations were charged: rows as `charged` packs them."""
    await copy_packed(db, "charged", charged.COLUMNS, rows)


async def charge_of(db: Connection, key: bytes) -> asyncpg.Record | None:
    """What a generation was charged, by what it is remembered by; locked: it is to be replaced."""
    return await db.fetchrow("SELECT * FROM charged WHERE key = $1 FOR UPDATE", key)


async def forget_charged(db: Connection, keys: Sequence[bytes]) -> None:
    """Removes charges: others take their place, or none has to."""
    # The range lets PostgreSQL skip the other days' partitions.
    await db.execute(
        "DELETE FROM charged WHERE key = ANY($1::bytea[]) AND key BETWEEN $2 AND $3", list(keys), min(keys), max(keys)
    )


# --- what workspaces, and the makers of keys, want of the log ----------------------------------------------------


class Settings(NamedTuple):
    """A table of settings: whose they are, the column of log and sums that leads there, and what a row of the log (`t`) of
    one of them (`s`) is kept for, in days, with what the other table says."""

    table: str
    name: str
    logged: str
    days: str


OF_WORKSPACES = Settings(
    "workspace_setting", "workspace", "workspace",
    """least(s.log_retention_days, (SELECT o.log_retention_days FROM key_setting o WHERE o.key = t.key_id))""",
)  # fmt: skip
# What a workspace that never stated a setting wants, each of its rows knows: that is never made longer.
OF_KEYS = Settings(
    "key_setting", "key", "key_id",
    """least(s.log_retention_days, coalesce(
         (SELECT o.log_retention_days FROM workspace_setting o WHERE o.workspace = t.workspace), t.retention_days))""",
)  # fmt: skip
ALL_SETTINGS = (OF_WORKSPACES, OF_KEYS)


async def setting_versions(db: Connection, of: Settings, names: Sequence[str]) -> dict[str, int]:
    """The version of each one's settings that is known here; of one whose account is not, none."""
    rows = await db.fetch(
        f"SELECT {of.name} AS name, version FROM {of.table} WHERE {of.name} = ANY($1) AND account IS NOT NULL",  # noqa: S608
        list(names),
    )
    return {row["name"]: row["version"] for row in rows}


async def set_settings(
    db: Connection, of: Settings, settings: Sequence[tuple[str, str, int, int]], now: datetime
) -> None:
    """Takes over (name, account, version, days), each higher than what is known. What has ended by the setting until now
    stays ended, whatever the new one is."""
    revision = await db.fetchval("UPDATE setting_revision SET revision = revision + 1 RETURNING revision")
    await db.executemany(
        f"""INSERT INTO {of.table} AS s ({of.name}, account, version, log_retention_days, revision)
           VALUES ($1, $2, $3, $4, $5)
           ON CONFLICT ({of.name}) DO UPDATE
             SET account = excluded.account, version = excluded.version, log_retention_days = excluded.log_retention_days,
                 revision = excluded.revision,
                 ended_before = greatest(s.ended_before, $6::timestamptz - s.log_retention_days * interval '1 day')
           WHERE s.version < excluded.version OR (s.account IS NULL AND s.version = excluded.version)""",  # noqa: S608
        [(*setting, revision, now) for setting in sorted(settings)],
    )


async def forget_settings(db: Connection, of: Settings, names: Sequence[str]) -> None:
    """Forgets what the erased wanted."""
    await db.execute(f"DELETE FROM {of.table} WHERE {of.name} = ANY($1)", list(names))  # noqa: S608


async def settings_since(db: Connection, of: Settings, revision: int) -> dict[str, int]:
    """name -> days, of what came to be after a revision."""
    rows = await db.fetch(
        f"SELECT {of.name} AS name, log_retention_days FROM {of.table} WHERE revision > $1",  # noqa: S608
        revision,
    )
    return {row["name"]: row["log_retention_days"] for row in rows}


async def kept_days(db: Connection, workspace: str) -> int | None:
    """How long a workspace wants its log kept; None if it has never said so."""
    days: int | None = await db.fetchval(
        "SELECT log_retention_days FROM workspace_setting WHERE workspace = $1", workspace
    )
    return days


async def shorter_than(db: Connection, account: str, days: int) -> tuple[dict[str, int], int]:
    """(workspace -> days, of those workspaces of an account that keep their log for less than `days`; how many keys in them
    have makers who want that)."""
    rows = await db.fetch(
        """SELECT workspace, log_retention_days FROM workspace_setting
           WHERE account = $1 AND log_retention_days < $2 ORDER BY workspace""",
        account, days,
    )  # fmt: skip
    keys = await db.fetchval(
        "SELECT count(*) FROM key_setting WHERE account = $1 AND log_retention_days < $2", account, days
    )
    return {row["workspace"]: row["log_retention_days"] for row in rows}, keys


async def settings_open(db: Connection) -> bool:
    """Whether rows on disk have still to be treated by a setting."""
    return bool(
        await db.fetchval(
            """SELECT EXISTS (SELECT FROM workspace_setting WHERE treated < version)
                      OR EXISTS (SELECT FROM key_setting WHERE treated < version)"""
        )
    )


async def begin_treating(db: Connection) -> None:
    """Marks the settings by which the rows on disk are treated now; what waits unrated, and is not to be logged any more,
    loses what a log would have kept."""
    for of in ALL_SETTINGS:
        await db.execute(f"UPDATE {of.table} SET treating = version WHERE treated < version")  # noqa: S608
        await db.execute(
            f"""UPDATE quarantine q
               SET event_id = NULL, event_at = date_trunc('hour', q.event_at),
                   usage = (q.usage - 'generation_ref') || '{{"key": "not-kept", "log_retention_days": 0}}'
                     || CASE WHEN q.usage ? 'original' THEN jsonb_build_object('original', $1::text) ELSE '{{}}' END
               FROM {of.table} s
               WHERE q.usage->>'{of.name}' = s.{of.name} AND s.log_retention_days = 0 AND s.treated < s.treating""",  # noqa: S608
            NO_GENERATION,
        )


async def end_treating(db: Connection) -> bool:
    """The rows on disk are as the marked settings want them; True if others came meanwhile."""
    for of in ALL_SETTINGS:
        await db.execute(f"UPDATE {of.table} SET treated = treating WHERE treated < treating")  # noqa: S608
    return await settings_open(db)


async def ending(db: Connection, piece: Slice, made_from: UUID, before: datetime) -> list[asyncpg.Record]:
    """Of a slice of one of the log's partitions: rows, locked, that the marked settings end before an instant, of
    generations with ids from `made_from` on, each once. `kept_days`: as all settings want it now."""
    found: dict[UUID, asyncpg.Record] = {}
    for of in ALL_SETTINGS:
        rows = await db.fetch(
            f"""SELECT t.*, least(t.retention_days, {of.days}) AS kept_days
                FROM {piece.relation} t JOIN {of.table} s ON s.{of.name} = t.{of.logged}
                WHERE s.treated < s.treating AND {piece.condition} AND t.generation_id >= $1
                  AND (t.occurred_at <= s.ended_before
                       OR t.occurred_at + least(t.retention_days, {of.days}) * interval '1 day' < $2)
                FOR UPDATE OF t""",  # noqa: S608 -- names of the catalogue
            made_from, before,
        )  # fmt: skip
        found |= {row["generation_id"]: row for row in rows}
    return list(found.values())


async def treat_logged(db: Connection, piece: Slice, expires_on: date, now: datetime) -> tuple[int, int]:
    """Treats a slice of one of the log's partitions by the marked settings: deletes what is over, moves the rest to the
    day on which it expires now. Returns how many rows it deleted, and moved."""
    deleted = moved = 0
    for of in ALL_SETTINGS:
        deleted += await db.fetchval(
            f"""WITH gone AS (
                    DELETE FROM {piece.relation} t USING {of.table} s
                    WHERE s.{of.name} = t.{of.logged} AND s.treated < s.treating AND {piece.condition}
                      AND (t.occurred_at <= s.ended_before OR {of.days} = 0
                           OR t.occurred_at + least(t.retention_days, {of.days}) * interval '1 day' <= $1)
                    RETURNING 1)
                SELECT count(*) FROM gone""",  # noqa: S608 -- names of the catalogue
            now,
        )
        # By way of the whole table, or a row could not leave its partition.
        moved += await db.fetchval(
            f"""WITH moved AS (
                    UPDATE request_log t
                    SET retention_days = {of.days},
                        expires_on = (t.occurred_at AT TIME ZONE 'UTC' + {of.days} * interval '1 day')::date
                    FROM {of.table} s
                    WHERE s.{of.name} = t.{of.logged} AND s.treated < s.treating
                      AND t.expires_on = '{expires_on:%Y-%m-%d}' AND {piece.condition}
                      AND t.retention_days <> {of.days}
                    RETURNING 1)
                SELECT count(*) FROM moved""",  # noqa: S608 -- names and a date
        )
    return deleted, moved


async def treat_rollups(db: Connection, piece: Slice) -> int:
    """Of a slice of the hourly sums: those that nothing is logged of any more become sums of days, without key and model.
    Returns how many hourly sums that were."""
    folded = 0
    for of in ALL_SETTINGS:
        folded += await db.fetchval(
            f"""WITH taken AS (
                DELETE FROM {piece.relation} t USING {of.table} s
                WHERE s.{of.name} = t.{of.logged} AND s.treated < s.treating AND s.log_retention_days = 0
                  AND {piece.condition}
                RETURNING t.*
            ), by_day AS (
                INSERT INTO rollup_daily AS r (workspace, day, generations, input_tokens, output_tokens, amount_pico)
                SELECT workspace, hour / 24 AS day, sum(generations), sum(input_tokens), sum(output_tokens), sum(amount_pico)
                FROM taken GROUP BY workspace, day ORDER BY day, workspace
                {_ADD_DAYS})
            SELECT count(*) FROM taken""",  # noqa: S608 -- names of the catalogue
        )
    return folded


# --- ratings of a range ------------------------------------------------------------------------------------------


async def order_rerating(db: Connection, order: str, ordered_at: datetime, asked: Mapping[str, Any]) -> bool:
    """Notes an order to rate a range again; False if it was noted before."""
    return bool(
        await db.fetchval(
            """INSERT INTO rerating (id, ordered_at, asked) VALUES ($1, $2, $3) ON CONFLICT DO NOTHING RETURNING true""",
            order, ordered_at, asked,
        )
    )  # fmt: skip


async def add_rerated(
    db: Connection, order: str, examined: int, changed: int, unpriced: int, before_pico: int, after_pico: int
) -> None:
    """Adds what a chunk came to."""
    await db.execute(
        """UPDATE rerating SET examined = examined + $2, changed = changed + $3, unpriced = unpriced + $4,
             before_pico = before_pico + $5, after_pico = after_pico + $6 WHERE id = $1""",
        order, examined, changed, unpriced, before_pico, after_pico,
    )  # fmt: skip


async def end_rerating(db: Connection, order: str, now: datetime) -> None:
    """The range is through."""
    await db.execute("UPDATE rerating SET ended_at = $2 WHERE id = $1", order, now)


async def reratings(db: Connection, limit: int) -> list[dict[str, Any]]:
    """Orders to rate again and what became of them, the latest first."""
    return [dict(row) for row in await db.fetch("SELECT * FROM rerating ORDER BY ordered_at DESC, id LIMIT $1", limit)]


# --- quarantine --------------------------------------------------------------------------------------------------


async def quarantine(db: Connection, rows: Sequence[Sequence[Any]]) -> int:
    """Keeps usage that cannot be rated; returns how many rows that is."""
    if not rows:
        return 0
    columns = [list(column) for column in zip(*rows, strict=True)]
    columns[9] = [msgspec.json.encode(usage).decode() for usage in columns[9]]
    added = await db.fetch(
        """INSERT INTO quarantine (reason, missing, event_type, event_id, event_at, known_at, arrived_at, provider,
               model, usage, line_key, original_key)
           SELECT a, b, c, d, e, f, g, h, i, j::jsonb, k, l
           FROM unnest($1::text[], $2::text[], $3::text[], $4::uuid[], $5::timestamptz[], $6::timestamptz[],
               $7::timestamptz[], $8::text[], $9::text[], $10::text[], $11::bytea[], $12::bytea[])
             AS v(a, b, c, d, e, f, g, h, i, j, k, l) RETURNING id""",
        *columns,
    )  # fmt: skip
    return len(added)


async def stale_known(db: Connection, idents: Sequence[bytes]) -> set[bytes]:
    """Which stale ids came before."""
    rows = await db.fetch("SELECT ident FROM stale_seen WHERE ident = ANY($1)", list(idents))
    return {row["ident"] for row in rows}


async def add_stale(db: Connection, idents: Sequence[bytes], today: date) -> set[bytes]:
    """Remembers stale ids; returns those that nobody else was quicker with."""
    rows = await db.fetch(
        """INSERT INTO stale_seen (ident, seen_on) SELECT ident, $2 FROM unnest($1::bytea[]) AS v(ident)
           ON CONFLICT DO NOTHING RETURNING ident""",
        sorted(idents), today,
    )  # fmt: skip
    return {row["ident"] for row in rows}


async def waiting(db: Connection, after: int, limit: int, reasons: Sequence[str]) -> list[asyncpg.Record]:
    """Quarantined usage from id `after` on, locked, oldest first."""
    return await db.fetch(
        "SELECT * FROM quarantine WHERE id > $1 AND reason = ANY($2) ORDER BY id LIMIT $3 FOR UPDATE",
        after, list(reasons), limit,
    )  # fmt: skip


async def quarantined(db: Connection, row: int) -> asyncpg.Record | None:
    """One quarantined usage, locked."""
    return await db.fetchrow("SELECT * FROM quarantine WHERE id = $1 FOR UPDATE", row)


async def release(db: Connection, rows: Sequence[int]) -> None:
    """Forgets quarantined usage that was rated."""
    await db.execute("DELETE FROM quarantine WHERE id = ANY($1)", list(rows))


async def quarantine_list(db: Connection, after: int, limit: int) -> list[dict[str, Any]]:
    """Quarantined usage for people: why, of what, since when."""
    rows = await db.fetch(
        """SELECT id, reason, missing, provider, model, event_type, event_id, event_at, arrived_at FROM quarantine
           WHERE id > $1 ORDER BY id LIMIT $2""",
        after, limit,
    )  # fmt: skip
    return [dict(row) for row in rows]


async def quarantine_counts(db: Connection) -> list[dict[str, Any]]:
    """How much waits, by reason, provider and model."""
    rows = await db.fetch(
        """SELECT reason, provider, model, count(*) AS n, min(arrived_at) AS oldest FROM quarantine
           GROUP BY reason, provider, model ORDER BY n DESC, provider, model"""
    )
    return [dict(row) for row in rows]


async def quarantined_event(db: Connection, event: str) -> asyncpg.Record | None:
    """A quarantined event by its id, if its workspace keeps a log."""
    return await db.fetchrow("SELECT reason, missing, provider, model FROM quarantine WHERE event_id = $1", event)


# --- prices ------------------------------------------------------------------------------------------------------


async def prices(db: Connection, after: int) -> list[Any]:
    """The bodies of all versions that came, or were decided about, after a revision of the price book."""
    rows = await db.fetch("SELECT body FROM price WHERE revision > $1 ORDER BY known_from, version", after)
    return [row["body"] for row in rows]


_REVISIONS = "SELECT p.revision AS prices, s.revision AS settings FROM price_revision p, setting_revision s"


async def revisions(db: Connection, *, hold: bool) -> tuple[int, int]:
    """(rises whenever a price becomes known, rises whenever a setting does); `hold` keeps the first from rising until
    this transaction ends."""
    row = await db.fetchrow(_REVISIONS + " FOR SHARE OF p" if hold else _REVISIONS)
    assert row is not None
    return row["prices"], row["settings"]


async def add_prices(db: Connection, rows: Sequence[Mapping[str, Any]], revision: int) -> None:
    """Keeps versions (`body`, as `to_json` writes it, and what is known beside it) that are not kept yet. Versions are
    facts: nothing is overwritten."""
    await db.executemany(
        """INSERT INTO price (version, provider, model, tier, body, known_from, source, name, batch, spoken, reasons,
               held_since, revision)
           VALUES ($1, $2, $3, $4, $5, $6, $7, $8, $9, $10, $11, $12, $13) ON CONFLICT DO NOTHING""",
        [
            (
                body["version"], body["provider"], body["model"], body["tier"], body, row["known_from"], body["source"],
                row["name"], row.get("batch"), row.get("spoken"), row.get("reasons", []), row.get("held_since"),
                revision,
            )
            for row in rows
            for body in [row["body"]]
        ],
    )  # fmt: skip


async def stated_prices(db: Connection) -> list[asyncpg.Record]:
    """Versions that somebody published, in the order in which they became known."""
    return await db.fetch(
        """SELECT body, name, spoken, coalesce(decision IN ('rejected', 'superseded'), false) AS rejected FROM price
           WHERE known_from > '-infinity' ORDER BY known_from, version"""
    )


async def known_prices(db: Connection, versions: Sequence[str]) -> set[str]:
    """Which of these versions are kept."""
    rows = await db.fetch("SELECT version FROM price WHERE version = ANY($1)", list(versions))
    return {row["version"] for row in rows}


async def spoken(db: Connection, source: str, names: Sequence[str]) -> dict[str, frozenset[str]]:
    """The units that a source spoke of when it last spoke, incompletely, of these prices."""
    rows = await db.fetch(
        """SELECT DISTINCT ON (name) name, spoken FROM price
           WHERE name = ANY($1) AND source = $2 AND spoken IS NOT NULL ORDER BY name, known_from DESC""",
        list(names), source,
    )  # fmt: skip
    return {row["name"]: frozenset(row["spoken"]) for row in rows}


async def held_prices(db: Connection, names: Sequence[str] | None = None) -> list[asyncpg.Record]:
    """Versions that the guard holds, the oldest first; of these names or of all."""
    return await db.fetch(
        """SELECT * FROM price WHERE held_since IS NOT NULL AND ($1::text[] IS NULL OR name = ANY($1))
           ORDER BY known_from, version""",
        names,
    )  # fmt: skip


async def held_price(db: Connection, version: str) -> asyncpg.Record | None:
    """One held version, locked."""
    return await db.fetchrow("SELECT * FROM price WHERE version = $1 AND held_since IS NOT NULL FOR UPDATE", version)


async def supersede_held(db: Connection, source: str, names: Sequence[str], at: datetime, revision: int) -> None:
    """What a source said of these prices before, and is held, is out of question once it says something new."""
    await db.execute(
        """UPDATE price SET held_since = NULL, decision = 'superseded', decided_at = $3, revision = $4
           WHERE name = ANY($1) AND source = $2 AND held_since IS NOT NULL""",
        list(names), source, at, revision,
    )  # fmt: skip


async def imported(db: Connection, batch: str) -> list[asyncpg.Record]:
    """The versions that came with an import."""
    return await db.fetch("SELECT * FROM price WHERE batch = $1 ORDER BY version", batch)


async def decide_price(
    db: Connection, body: Mapping[str, Any], decision: str, at: datetime, by: str, ticket: str | None, revision: int
) -> None:
    """Notes what was decided about a held version, and who decided it. A rejected one stays held, out of sight."""
    await db.execute(
        """UPDATE price SET body = $2, held_since = NULL, decision = $3, decided_at = $4, decided_by = $5, ticket = $6,
             revision = $7
           WHERE version = $1""",
        body["version"], body, decision, at, by, ticket, revision,
    )  # fmt: skip


async def raise_revision(db: Connection) -> int:
    """Tells every process to read the prices again; returns the new revision."""
    return int(await db.fetchval("UPDATE price_revision SET revision = revision + 1 RETURNING revision"))


# --- reported costs ----------------------------------------------------------------------------------------------


async def add_costs(db: Connection, sums: Sequence[Sequence[Any]]) -> None:
    """A batch's comparison of own rating with reported cost: see `reconcile.Sum`."""
    await db.executemany("INSERT INTO cost_pending VALUES ($1, $2, $3, $4, $5, $6, $7)", sums)


async def fold_costs(db: Connection, from_day: int) -> None:
    """Adds up what batches left, and forgets days before `from_day` (since 1970)."""
    await db.execute(
        """WITH taken AS (DELETE FROM cost_pending RETURNING *)
           INSERT INTO cost_comparison AS c
           SELECT day, provider, model, explanation, sum(generations), sum(rated_pico), sum(reported_pico)
           FROM taken GROUP BY day, provider, model, explanation
           ON CONFLICT (day, provider, model, explanation) DO UPDATE
             SET generations = c.generations + excluded.generations, rated_pico = c.rated_pico + excluded.rated_pico,
                 reported_pico = c.reported_pico + excluded.reported_pico"""
    )
    await db.execute("DELETE FROM cost_comparison WHERE day < $1", from_day)


async def costs(db: Connection, from_day: int) -> list[dict[str, Any]]:
    """Own rating and reported cost per day, provider, model and explanation, from a day (since 1970) on."""
    rows = await db.fetch(
        """SELECT day, provider, model, explanation, sum(generations)::bigint AS generations,
                  sum(rated_pico) AS rated_pico, sum(reported_pico) AS reported_pico
           FROM (SELECT * FROM cost_comparison UNION ALL SELECT * FROM cost_pending) AS c
           WHERE day >= $1 GROUP BY day, provider, model, explanation ORDER BY day, provider, model, explanation""",
        from_day,
    )
    return [dict(row) for row in rows]


# --- rollups -----------------------------------------------------------------------------------------------------


async def add_pending(db: Connection, totals: Sequence[Sequence[Any]]) -> None:
    """Sums that the rollups have not taken yet, by column: see `Effects.totals`."""
    columns = [*map(packed.texts, totals[:3]), *map(packed.bigints, totals[3:])]
    row = len(columns).to_bytes(2, "big") + b"".join(columns)
    await copy_packed(db, "pending", _PENDING, [row])


async def roll_up(db: Connection, batches: int, from_hour: int) -> None:
    """Takes sums of up to `batches` batches, the oldest first, and adds them to the rollups, in one statement.

    Sums of hours before `from_hour` (since 1970) have waited too long: the rollups do not reach back so far any more.
    """
    await db.execute(
        f"""WITH taken AS (
             DELETE FROM pending WHERE id IN (SELECT id FROM pending ORDER BY id LIMIT $1) RETURNING *
           ), sums AS (
             SELECT s.workspace, s.key_id, s.model, s.hour::int, sum(s.generations)::bigint AS generations,
                    sum(s.input_tokens)::bigint AS input_tokens, sum(s.output_tokens)::bigint AS output_tokens,
                    sum(s.amount_pico) AS amount_pico
             FROM taken, unnest(workspaces, keys, models, hours, taken.generations, taken.input_tokens,
                    taken.output_tokens, amounts)
                  AS s(workspace, key_id, model, hour, generations, input_tokens, output_tokens, amount_pico)
             WHERE s.hour >= $2
             GROUP BY s.workspace, s.key_id, s.model, s.hour
           ), by_day AS (
             INSERT INTO rollup_daily AS r (workspace, day, generations, input_tokens, output_tokens, amount_pico)
             SELECT workspace, (hour / 24)::int AS day, sum(generations), sum(input_tokens), sum(output_tokens), sum(amount_pico)
             FROM sums WHERE key_id IS NULL GROUP BY workspace, day
             {_ADD_DAYS}
           )
           INSERT INTO rollup_hourly AS r (workspace, key_id, model, hour, generations, input_tokens, output_tokens,
               amount_pico)
           SELECT workspace, key_id, model, hour, generations, input_tokens, output_tokens, amount_pico
           FROM sums WHERE key_id IS NOT NULL ORDER BY hour, workspace, key_id, model  -- as its index lies
           ON CONFLICT (hour, workspace, key_id, model) DO UPDATE
             SET generations = r.generations + excluded.generations, input_tokens = r.input_tokens + excluded.input_tokens,
                 output_tokens = r.output_tokens + excluded.output_tokens, amount_pico = r.amount_pico + excluded.amount_pico""",  # noqa: S608 -- a constant
        batches, from_hour,
    )  # fmt: skip


async def roll_up_all(db: Connection, batches: int, from_hour: int) -> None:
    """Adds to the rollups whatever waits now; what another transaction is adding is waited for."""
    last = await db.fetchval("SELECT coalesce(max(id), 0) FROM pending")
    while await db.fetchval("SELECT EXISTS (SELECT FROM pending WHERE id <= $1)", last):
        await roll_up(db, batches, from_hour)


async def pending_count(db: Connection) -> int:
    """Batches whose sums wait."""
    return int(await db.fetchval("SELECT count(*) FROM pending"))


async def usage_by_model(db: Connection, since_hour: int, limit: int) -> list[dict[str, Any]]:
    """Usage by model since an hour, the dearest first."""
    rows = await db.fetch(
        """SELECT model, sum(generations)::bigint AS generations, sum(input_tokens)::bigint AS input_tokens,
                  sum(output_tokens)::bigint AS output_tokens, sum(amount_pico) AS amount_pico
           FROM rollup_hourly WHERE hour >= $1 GROUP BY model ORDER BY amount_pico DESC, model LIMIT $2""",
        since_hour, limit,
    )  # fmt: skip
    return [dict(row) for row in rows]


async def usage_without_model(db: Connection, since_day: int) -> dict[str, Any]:
    """Usage since a day of workspaces that keep no log: of which model it is, is not kept."""
    row = await db.fetchrow(
        """SELECT coalesce(sum(generations), 0)::bigint AS generations, coalesce(sum(input_tokens), 0)::bigint AS input_tokens,
                  coalesce(sum(output_tokens), 0)::bigint AS output_tokens, coalesce(sum(amount_pico), 0) AS amount_pico
           FROM rollup_daily WHERE day >= $1""",
        since_day,
    )
    assert row is not None
    return dict(row)


async def usage_of_workspace(
    db: Connection, workspace: str, since_hour: int, limit: int
) -> tuple[list[dict[str, Any]], list[dict[str, Any]]]:
    """A workspace's usage since an hour, the newest first: by hour, key and model, and by day where that is not kept."""
    hours = await db.fetch(
        """SELECT hour, key_id, model, generations, input_tokens, output_tokens, amount_pico FROM rollup_hourly
           WHERE workspace = $1 AND hour >= $2 ORDER BY hour DESC, key_id, model LIMIT $3""",
        workspace, since_hour, limit,
    )  # fmt: skip
    days = await db.fetch(
        """SELECT day, generations, input_tokens, output_tokens, amount_pico FROM rollup_daily
           WHERE workspace = $1 AND day >= $2 ORDER BY day DESC LIMIT $3""",
        workspace, since_hour // 24, limit,
    )  # fmt: skip
    return [dict(row) for row in hours], [dict(row) for row in days]


async def providers_of(db: Connection, account: str, now: datetime) -> list[str]:
    """The providers that served an account's logged requests, in order. Reads the log: there is no index on accounts."""
    rows = await db.fetch(
        f"SELECT DISTINCT provider FROM ({_FROM_LIVE}) AS live WHERE account = $2 ORDER BY provider",  # noqa: S608
        now, account,
    )  # fmt: skip
    return [row["provider"] for row in rows]


async def some_logged(db: Connection, now: datetime, limit: int) -> list[dict[str, Any]]:
    """Log rows worth a look: the dearest of each rule and context tier."""
    rows = await db.fetch(
        f"""SELECT DISTINCT ON (rule, tier) generation_id, rule, tier, amount_pico, model FROM ({_FROM_LIVE}) AS live
           ORDER BY rule, tier, amount_pico DESC LIMIT $2""",  # noqa: S608
        now, limit,
    )  # fmt: skip
    return [dict(row) for row in rows]
