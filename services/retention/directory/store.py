"""The SQL of the directory: accounts, workspaces, members, keys, settings, credit. Time comes in as a parameter.

Its rows have no order among themselves: each statement touches one key.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from datetime import datetime

import asyncpg

from services.retention.subjects import Known
from shared.mesh.store import Connection


async def open_account(
    db: Connection, account: str, identity: str | None, jurisdiction: str, opened_at: datetime, name: str | None
) -> None:
    """Enters an account; what was known of it stays, so that an older word does not undo a correction."""
    await db.execute(
        """INSERT INTO account AS a (account, identity, jurisdiction, opened_at, name) VALUES ($1, $2, $3, $4, $5)
           ON CONFLICT (account) DO UPDATE
             SET identity = COALESCE(a.identity, excluded.identity), jurisdiction = excluded.jurisdiction,
                 opened_at = COALESCE(a.opened_at, excluded.opened_at), name = COALESCE(a.name, excluded.name)""",
        account, identity, jurisdiction, opened_at, name,
    )  # fmt: skip


async def opt_out_of_sale(db: Connection, account: str, at: datetime) -> None:
    """Nothing of this account is ever to be sold; the first time counts."""
    await db.execute(
        """INSERT INTO account AS a (account, sale_opt_out_at) VALUES ($1, $2)
           ON CONFLICT (account) DO UPDATE SET sale_opt_out_at = LEAST(a.sale_opt_out_at, excluded.sale_opt_out_at)""",
        account, at,
    )  # fmt: skip


async def close_account(db: Connection, account: str, closed_at: datetime) -> None:
    """Notes that an account was closed; the first time counts."""
    await db.execute(
        """INSERT INTO account AS a (account, closed_at) VALUES ($1, $2)
           ON CONFLICT (account) DO UPDATE SET closed_at = LEAST(a.closed_at, excluded.closed_at)""",
        account, closed_at,
    )  # fmt: skip


async def create_workspace(
    db: Connection, account: str, workspace: str, administrator: str, created_at: datetime
) -> None:
    """Enters a workspace and its first administrator; a repeat does not bring back one who left."""
    new = await db.fetchval(
        """INSERT INTO workspace AS w (workspace, account, created_at) VALUES ($1, $2, $3)
           ON CONFLICT (workspace) DO UPDATE SET created_at = excluded.created_at WHERE w.created_at IS NULL
           RETURNING workspace""",
        workspace, account, created_at,
    )  # fmt: skip
    if new is not None:
        await put_member(db, account, workspace, administrator, "administrator")


async def put_member(db: Connection, account: str, workspace: str, member: str, role: str) -> None:
    """A person in a workspace, with this role from now on."""
    await db.execute(
        """INSERT INTO member (workspace, member, account, role) VALUES ($1, $2, $3, $4)
           ON CONFLICT (workspace, member) DO UPDATE SET role = excluded.role""",
        workspace, member, account, role,
    )  # fmt: skip


async def remove_member(db: Connection, workspace: str, member: str) -> None:
    """A person left a workspace."""
    await db.execute("DELETE FROM member WHERE workspace = $1 AND member = $2", workspace, member)


async def promote(db: Connection, workspace: str, member: str) -> None:
    """A member takes a workspace over."""
    await db.execute("UPDATE member SET role = 'administrator' WHERE workspace = $1 AND member = $2", workspace, member)


async def put_key(
    db: Connection, account: str, workspace: str, key: str, member: str | None, name: str | None, created_at: datetime
) -> None:
    """Enters an API key; what was known of it, such as that it is revoked, stays."""
    await db.execute(
        """INSERT INTO api_key AS k (key, account, workspace, member, name, created_at) VALUES ($1, $2, $3, $4, $5, $6)
           ON CONFLICT (key) DO UPDATE
             SET member = COALESCE(k.member, excluded.member), name = COALESCE(k.name, excluded.name),
                 created_at = COALESCE(k.created_at, excluded.created_at)""",
        key, account, workspace, member, name, created_at,
    )  # fmt: skip


async def revoke_key(
    db: Connection, account: str, workspace: str, key: str, member: str | None, revoked_at: datetime
) -> None:
    """Notes that an API key is refused."""
    await db.execute(
        """INSERT INTO api_key AS k (key, account, workspace, member, revoked_at) VALUES ($1, $2, $3, $4, $5)
           ON CONFLICT (key) DO UPDATE SET revoked_at = LEAST(k.revoked_at, excluded.revoked_at)""",
        key, account, workspace, member, revoked_at,
    )  # fmt: skip


async def role_of(db: Connection, workspace: str, member: str) -> tuple[bool, str | None]:
    """(whether the directory knows who is in the workspace, the member's role in it)."""
    row = await db.fetchrow(
        """SELECT EXISTS (SELECT FROM workspace WHERE workspace = $1 AND created_at IS NOT NULL)
                  OR EXISTS (SELECT FROM member WHERE workspace = $1) AS known,
                  (SELECT role FROM member WHERE workspace = $1 AND member = $2) AS role""",
        workspace, member,
    )  # fmt: skip
    assert row is not None
    return row["known"], row["role"]


async def put_settings(
    db: Connection, account: str, workspace: str, version: int, days: int, opt_out: bool, changed_at: datetime
) -> bool:
    """Settings of a workspace; False for a version that is not above the one in force."""
    return (
        await db.fetchval(
            """INSERT INTO workspace AS w (workspace, account, version, log_retention_days, activity_opt_out, changed_at)
               VALUES ($1, $2, $3, $4, $5, $6)
               ON CONFLICT (workspace) DO UPDATE
                 SET version = excluded.version, log_retention_days = excluded.log_retention_days,
                     activity_opt_out = excluded.activity_opt_out, changed_at = excluded.changed_at
                 WHERE w.version < excluded.version
               RETURNING workspace""",
            workspace, account, version, days, opt_out, changed_at,
        )
        is not None
    )  # fmt: skip


async def settings_of(db: Connection, workspaces: Sequence[str]) -> list[asyncpg.Record]:
    """Settings in force of those workspaces that have any."""
    return await db.fetch(
        """SELECT workspace, account, version, log_retention_days, activity_opt_out, changed_at FROM workspace
           WHERE workspace = ANY($1) AND version > 0 ORDER BY workspace""",
        workspaces,
    )


async def settings_changed_since(db: Connection, since: datetime, after: str, limit: int) -> list[asyncpg.Record]:
    """Settings that changed since an instant, by workspace, from the one after `after` on."""
    return await db.fetch(
        """SELECT workspace, account, version, log_retention_days, activity_opt_out, changed_at FROM workspace
           WHERE version > 0 AND changed_at >= $1 AND workspace > $2 ORDER BY workspace LIMIT $3""",
        since, after, limit,
    )  # fmt: skip


# Whoever enters keys shares this lock, whoever takes a restriction over has it alone: or each could miss the other's row.
_RESTRICTIONS_LOCK = 0x7265_7374_0001
_KEY_SETTINGS = """SELECT k.key, k.account, r.version, r.log_retention_days, r.changed_at
                   FROM restriction r JOIN api_key k ON k.member = r.member"""


async def share_restrictions(db: Connection) -> None:
    """Until this transaction ends, no restriction changes."""
    await db.execute("SELECT pg_advisory_xact_lock_shared($1)", _RESTRICTIONS_LOCK)


async def own_restrictions(db: Connection) -> None:
    """Waits for all that enter keys; until this transaction ends, nobody else does."""
    await db.execute("SELECT pg_advisory_xact_lock($1)", _RESTRICTIONS_LOCK)


async def put_restriction(
    db: Connection, member: str, version: int, days: int, opt_out: bool, changed_at: datetime
) -> bool:
    """What a member wants kept of itself; False for a version that is not above the one in force."""
    return (
        await db.fetchval(
            """INSERT INTO restriction AS r (member, version, log_retention_days, activity_opt_out, changed_at)
               VALUES ($1, $2, $3, $4, $5)
               ON CONFLICT (member) DO UPDATE
                 SET version = excluded.version, log_retention_days = excluded.log_retention_days,
                     activity_opt_out = excluded.activity_opt_out, changed_at = excluded.changed_at
                 WHERE r.version < excluded.version
               RETURNING member""",
            member, version, days, opt_out, changed_at,
        )
        is not None
    )  # fmt: skip


async def restrictions_of(db: Connection, members: Sequence[str]) -> list[asyncpg.Record]:
    """The restrictions of those members who have stated any."""
    return await db.fetch(
        "SELECT member, version, activity_opt_out, changed_at FROM restriction WHERE member = ANY($1) ORDER BY member",
        list(members),
    )


async def keys_restricted_by(db: Connection, member: str) -> list[asyncpg.Record]:
    """What a member's restriction says of each key that it made."""
    return await db.fetch(_KEY_SETTINGS + " WHERE r.member = $1 ORDER BY k.key", member)


async def restricted_keys(db: Connection, keys: Sequence[str]) -> list[asyncpg.Record]:
    """What their makers' restrictions say of those keys whose makers have stated any."""
    return await db.fetch(_KEY_SETTINGS + " WHERE k.key = ANY($1) ORDER BY k.key", list(keys))


async def restrictions_changed_since(db: Connection, since: datetime, after: str, limit: int) -> list[asyncpg.Record]:
    """Restrictions that changed since an instant, by member, from the one after `after` on."""
    return await db.fetch(
        """SELECT member, version, activity_opt_out, changed_at FROM restriction
           WHERE changed_at >= $1 AND member > $2 ORDER BY member LIMIT $3""",
        since, after, limit,
    )  # fmt: skip


async def restricted_keys_changed_since(
    db: Connection, since: datetime, after: str, limit: int
) -> list[asyncpg.Record]:
    """What is to be said of keys that came, or whose makers' restriction changed, since an instant; from `after` on."""
    return await db.fetch(
        _KEY_SETTINGS + """
           WHERE greatest(r.changed_at, k.created_at, k.revoked_at) >= $1 AND k.key > $2 ORDER BY k.key LIMIT $3""",
        since, after, limit,
    )  # fmt: skip


async def end_restrictions(db: Connection, now: datetime, before: datetime, limit: int) -> list[asyncpg.Record]:
    """Notes whose member is in no workspace any more and has made no key, and removes and returns those of whom that has
    been so since before an instant."""
    await db.execute(
        """UPDATE restriction r SET alone_since = CASE WHEN r.alone_since IS NULL THEN $1::timestamptz END
           WHERE (r.alone_since IS NULL) = (NOT EXISTS (SELECT FROM member m WHERE m.member = r.member)
                                            AND NOT EXISTS (SELECT FROM api_key k WHERE k.member = r.member))""",
        now,
    )
    return await db.fetch(
        """DELETE FROM restriction WHERE member IN (
             SELECT member FROM restriction WHERE alone_since <= $1 ORDER BY alone_since LIMIT $2)
           RETURNING member, version, activity_opt_out, changed_at""",
        before, limit,
    )  # fmt: skip


async def put_credit(db: Connection, rows: Sequence[tuple[str, int, int]]) -> None:
    """Balances as (workspace, version, pico-US-dollars), one for each workspace; lower versions change nothing."""
    await db.execute(
        """INSERT INTO credit_known AS c (workspace, version, balance_pico)
           SELECT * FROM unnest($1::text[], $2::bigint[], $3::numeric[])
           ON CONFLICT (workspace) DO UPDATE SET version = excluded.version, balance_pico = excluded.balance_pico
             WHERE c.version < excluded.version""",
        [row[0] for row in rows], [row[1] for row in rows], [row[2] for row in rows],
    )  # fmt: skip


async def forget_credit(db: Connection, workspaces: Sequence[str]) -> None:
    """Forgets what erased workspaces had."""
    await db.execute("DELETE FROM credit_known WHERE workspace = ANY($1)", workspaces)


async def known_around(db: Connection, scope: str, target: str) -> Known:
    """What the directory knows around a subject: its workspaces, who is in them, and all keys concerned."""
    identity = None
    if scope == "account":
        identity = await db.fetchval("SELECT identity FROM account WHERE account = $1", target)
        named = await db.fetch(
            """SELECT workspace FROM workspace WHERE account = $1 UNION SELECT workspace FROM member WHERE account = $1
               UNION SELECT workspace FROM api_key WHERE account = $1""",
            target,
        )
        workspaces = [row["workspace"] for row in named]
    elif scope == "workspace":
        workspaces = [target]
    else:
        named = await db.fetch("SELECT workspace FROM member WHERE member = $1", target)
        workspaces = [row["workspace"] for row in named]
    # The workspace's own row says whose it is; of one that never came, its members' and keys' rows do.
    owners = await db.fetch(
        """SELECT DISTINCT ON (workspace) workspace, account FROM (
             SELECT workspace, account, 0 AS n FROM workspace WHERE workspace = ANY($1)
             UNION ALL SELECT workspace, account, 1 FROM member WHERE workspace = ANY($1)
             UNION ALL SELECT workspace, account, 2 FROM api_key WHERE workspace = ANY($1)) AS named
           ORDER BY workspace, n, account""",
        workspaces,
    )
    members = await db.fetch("SELECT workspace, member, role FROM member WHERE workspace = ANY($1)", workspaces)
    keys = await db.fetch(
        "SELECT key, workspace, member FROM api_key WHERE workspace = ANY($1) OR ($2 AND member = $3)",
        workspaces, scope == "member", target,
    )  # fmt: skip
    credit = await db.fetch("SELECT workspace, balance_pico FROM credit_known WHERE workspace = ANY($1)", workspaces)
    return Known(
        identity=identity,
        workspaces={row["workspace"]: row["account"] for row in owners},
        roles={(row["workspace"], row["member"]): row["role"] for row in members},
        keys={row["key"]: (row["workspace"], row["member"]) for row in keys},
        credit_pico={row["workspace"]: int(row["balance_pico"]) for row in credit},
    )


async def closed_accounts(db: Connection, before: datetime, limit: int) -> list[asyncpg.Record]:
    """Accounts that were closed before an instant and have no case for it yet."""
    return await db.fetch(
        """SELECT account, closed_at FROM account WHERE closed_at <= $1 AND closure_case IS NULL
           ORDER BY closed_at LIMIT $2 FOR UPDATE SKIP LOCKED""",
        before, limit,
    )  # fmt: skip


async def note_closures(db: Connection, cases: Mapping[str, str]) -> None:
    """The cases of closed accounts, by account, are under way."""
    await db.execute(
        """UPDATE account a SET closure_case = v.case_id FROM unnest($1::text[], $2::text[]) AS v (account, case_id)
           WHERE a.account = v.account""",
        list(cases), list(cases.values()),
    )  # fmt: skip
