"""All SQL of insights. Time comes in as a parameter."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Sequence
from datetime import date, datetime
from typing import Any

from services.insights.activity import Row, Setting
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


async def settings(db: Connection, workspaces: Collection[str]) -> dict[str, Setting]:
    """The settings in force of those of `workspaces` that stated some."""
    rows = await db.fetch(
        """SELECT workspace, account, version, activity_opt_out, kept_since FROM workspace_setting
           WHERE workspace = ANY($1)""",
        list(workspaces),
    )
    return {row["workspace"]: Setting(*row) for row in rows}


async def set_settings(db: Connection, changed: Sequence[Setting]) -> None:
    """Puts `changed` in force."""
    await db.execute(
        """INSERT INTO workspace_setting (workspace, account, version, activity_opt_out, kept_since)
           SELECT * FROM unnest($1::text[], $2::text[], $3::bigint[], $4::boolean[], $5::timestamptz[])
           ON CONFLICT (workspace) DO UPDATE SET account = EXCLUDED.account, version = EXCLUDED.version,
             activity_opt_out = EXCLUDED.activity_opt_out, kept_since = EXCLUDED.kept_since
           WHERE workspace_setting.version < EXCLUDED.version""",
        [s.workspace for s in changed], [s.account for s in changed], [s.version for s in changed],
        [s.opted_out for s in changed], [s.kept_since for s in changed],
    )  # fmt: skip


async def forget(db: Connection, purged: Sequence[Setting]) -> int:
    """Deletes what these workspaces do not want kept; returns how many rows that were."""
    done: str = await db.execute(
        """DELETE FROM activity AS a USING unnest($1::text[], $2::timestamptz[]) AS v(workspace, before)
           WHERE a.workspace = v.workspace AND (v.before IS NULL OR a.occurred_at < v.before)""",
        [s.workspace for s in purged], [None if s.opted_out else s.kept_since for s in purged],
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
