"""All SQL of insights. Time comes in as a parameter."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Sequence
from datetime import date, datetime
from typing import Any

from services.insights.activity import Kind, Row, Setting
from shared.mesh.store import Connection

# Whoever writes activity shares this lock, whoever changes settings has it alone: so no activity that was looked at
# before an opt-out is committed after what the opt-out deletes.
_SETTINGS_LOCK = 0x696E_7367_0001


async def share_settings(db: Connection) -> None:
    """Until this transaction ends, no setting changes."""
    await db.execute("SELECT pg_advisory_xact_lock_shared($1)", _SETTINGS_LOCK)


async def own_settings(db: Connection) -> None:
    """Waits for all that write activity; until this transaction ends, nobody else does."""
    await db.execute("SELECT pg_advisory_xact_lock($1)", _SETTINGS_LOCK)


async def settings(db: Connection, kind: Kind, names: Collection[str]) -> dict[str, Setting]:
    """The settings in force of those workspaces, or members, that stated some."""
    account = "account" if kind == "workspace" else "NULL"
    rows = await db.fetch(
        f"""SELECT {kind}, {account}, version, activity_opt_out, kept_since FROM {kind}_setting
           WHERE {kind} = ANY($1)""",  # noqa: S608 -- a kind
        list(names),
    )
    return {row[0]: Setting(*row) for row in rows}


async def set_workspace_settings(db: Connection, changed: Sequence[Setting]) -> None:
    """Puts settings of workspaces in force."""
    await db.execute(
        """INSERT INTO workspace_setting (workspace, account, version, activity_opt_out, kept_since)
           SELECT * FROM unnest($1::text[], $2::text[], $3::bigint[], $4::boolean[], $5::timestamptz[])
           ON CONFLICT (workspace) DO UPDATE SET account = EXCLUDED.account, version = EXCLUDED.version,
             activity_opt_out = EXCLUDED.activity_opt_out, kept_since = EXCLUDED.kept_since
           WHERE workspace_setting.version < EXCLUDED.version""",
        [s.name for s in changed], [s.account for s in changed], [s.version for s in changed],
        [s.opted_out for s in changed], [s.kept_since for s in changed],
    )  # fmt: skip


async def set_member_settings(db: Connection, changed: Sequence[Setting]) -> None:
    """Puts settings of members in force."""
    await db.execute(
        """INSERT INTO member_setting (member, version, activity_opt_out, kept_since)
           SELECT * FROM unnest($1::text[], $2::bigint[], $3::boolean[], $4::timestamptz[])
           ON CONFLICT (member) DO UPDATE SET version = EXCLUDED.version, activity_opt_out = EXCLUDED.activity_opt_out,
             kept_since = EXCLUDED.kept_since
           WHERE member_setting.version < EXCLUDED.version""",
        [s.name for s in changed], [s.version for s in changed], [s.opted_out for s in changed],
        [s.kept_since for s in changed],
    )  # fmt: skip


async def forget_member_settings(db: Connection, members: Sequence[str]) -> None:
    """Forgets what members wanted who are erased, or have been nowhere for long."""
    await db.execute("DELETE FROM member_setting WHERE member = ANY($1)", list(members))


async def members_out(db: Connection) -> bool:
    """Whether any member has opted out for itself."""
    return bool(await db.fetchval("SELECT EXISTS (SELECT FROM member_setting WHERE activity_opt_out)"))


async def forget(db: Connection, kind: Kind, purged: Sequence[Setting]) -> int:
    """Deletes what these workspaces, or members, do not want kept; returns how many rows that were."""
    done: str = await db.execute(
        f"""DELETE FROM activity AS a USING unnest($1::text[], $2::timestamptz[]) AS v(name, before)
           WHERE a.{kind} = v.name AND (v.before IS NULL OR a.occurred_at < v.before)""",  # noqa: S608 -- a kind
        [s.name for s in purged], [None if s.opted_out else s.kept_since for s in purged],
    )  # fmt: skip
    return int(done.rpartition(" ")[2])


async def add(db: Connection, rows: Iterable[Row]) -> int:
    """Adds the rows that are not there yet; returns how many those were."""
    columns = list(zip(*sorted(rows, key=lambda row: row[:2]), strict=True))
    done: str = await db.execute(
        """INSERT INTO activity (expires_on, event_id, occurred_at, account, workspace, member, surface, action, model)
           SELECT * FROM unnest($1::date[], $2::uuid[], $3::timestamptz[], $4::text[], $5::text[], $6::text[], $7::text[],
                                $8::text[], $9::text[])
           ON CONFLICT DO NOTHING""",
        *columns,
    )
    return int(done.rpartition(" ")[2])


async def activity(db: Connection, workspace: str, today: date, after: datetime, limit: int) -> list[dict[str, Any]]:
    """What happened in the workspace after `after`, the newest first; `today` leaves out partitions that are over."""
    rows = await db.fetch(
        """SELECT event_id, occurred_at, account, workspace, member, surface, action, model FROM activity
           WHERE workspace = $1 AND expires_on >= $2 AND occurred_at > $3 ORDER BY occurred_at DESC, event_id LIMIT $4""",
        workspace, today, after, limit,
    )  # fmt: skip
    return [dict(row) for row in rows]
