"""All SQL of notifications. Time comes in as a parameter."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any

from shared.mesh.store import Connection, Pool

SETTLED = ("accepted", "refused", "unknown")


@dataclass(frozen=True, slots=True)
class Mail:
    """One mail that somebody is owed, as its row has it."""

    cause: str
    kind: str
    template: str
    account: str | None
    case_id: str | None
    by_envelope: bool
    code_sealed: str | None
    facts: Mapping[str, str] | None
    state: str
    attempts: int
    requested_at: datetime
    next_attempt_at: datetime
    give_up_at: datetime


# --- addresses ---------------------------------------------------------------------------------------------------


async def add_address(db: Connection, account: str, sealed: str, now: datetime) -> bool:
    """Keeps the address of a new account; what is known stays. True if it is new."""
    return bool(
        await db.fetchval(
            """INSERT INTO address (account, sealed, learned_at) VALUES ($1, $2, $3)
               ON CONFLICT (account) DO NOTHING RETURNING true""",
            account, sealed, now,
        )
    )  # fmt: skip


async def known_accounts(db: Connection, accounts: Sequence[str]) -> set[str]:
    """Those of the accounts whose address is here."""
    rows = await db.fetch("SELECT account FROM address WHERE account = ANY($1)", list(accounts))
    return {row["account"] for row in rows}


async def address(db: Connection, account: str) -> str | None:
    """The sealed address of an account."""
    sealed: str | None = await db.fetchval("SELECT sealed FROM address WHERE account = $1", account)
    return sealed


async def addresses(db: Connection, accounts: Sequence[str]) -> dict[str, str]:
    """The sealed addresses of those accounts that have one here."""
    rows = await db.fetch("SELECT account, sealed FROM address WHERE account = ANY($1)", list(accounts))
    return {row["account"]: row["sealed"] for row in rows}


# --- envelopes ---------------------------------------------------------------------------------------------------


async def add_envelopes(db: Connection, sealed: Mapping[str, str], now: datetime, not_after: datetime) -> None:
    """Keeps addresses for the last mails of cases; the first one of a case stays."""
    await db.execute(
        """INSERT INTO envelope (case_id, sealed, created_at, not_after)
           SELECT *, $3, $4 FROM unnest($1::text[], $2::text[]) ON CONFLICT (case_id) DO NOTHING""",
        list(sealed), list(sealed.values()), now, not_after,
    )  # fmt: skip


async def envelope(db: Connection, case_id: str, now: datetime) -> str | None:
    """What a case's envelope holds; None when there is none, or its time is over."""
    sealed: str | None = await db.fetchval(
        "SELECT sealed FROM envelope WHERE case_id = $1 AND not_after > $2", case_id, now
    )
    return sealed


async def destroy_envelope(db: Connection, case_id: str) -> None:
    """The last mail is settled, or the case is over."""
    await db.execute("DELETE FROM envelope WHERE case_id = $1", case_id)


# --- mails -------------------------------------------------------------------------------------------------------


async def known_causes(db: Connection, causes: Sequence[str]) -> set[str]:
    """Those of the causes that have their mail."""
    rows = await db.fetch("SELECT cause FROM mail WHERE cause = ANY($1)", list(causes))
    return {row["cause"] for row in rows}


async def add_mail(db: Connection, mail: Mail) -> bool:
    """Keeps a mail that is to be sent. False if its cause has one already."""
    return bool(
        await db.fetchval(
            """INSERT INTO mail (cause, kind, template, account, case_id, by_envelope, code_sealed, facts,
                                 requested_at, next_attempt_at, give_up_at)
               VALUES ($1, $2, $3, $4, $5, $6, $7, $8, $9, $10, $11) ON CONFLICT (cause) DO NOTHING RETURNING true""",
            mail.cause, mail.kind, mail.template, mail.account, mail.case_id, mail.by_envelope, mail.code_sealed,
            mail.facts, mail.requested_at, mail.next_attempt_at, mail.give_up_at,
        )
    )  # fmt: skip


async def mail(db: Connection, cause: str) -> Mail | None:
    """A mail. Its task's lock keeps others away from it, not a lock of its own."""
    row = await db.fetchrow(
        """SELECT cause, kind, template, account, case_id, by_envelope, code_sealed, facts, state, attempts,
                  requested_at, next_attempt_at, give_up_at FROM mail WHERE cause = $1""",
        cause,
    )
    return None if row is None else Mail(**dict(row))


async def stay_patient(db: Connection, seconds: int) -> None:
    """This transaction may stand idle as long as a conversation with the mail server takes."""
    await db.execute("SELECT set_config('idle_in_transaction_session_timeout', $1, true)", f"{seconds}s")


async def mark_sending(pool: Pool, cause: str, attempts: int) -> bool:
    """Says, for good, that the text of attempt `attempts` + 1 goes out next. False if the mail is not in that state.

    A transaction of its own, on purpose: what is said must outlive whoever says it.
    """
    return bool(
        await pool.fetchval(
            """UPDATE mail SET state = 'sending', attempts = attempts + 1
               WHERE cause = $1 AND attempts = $2 AND state = 'waiting' RETURNING true""",
            cause, attempts,
        )
    )  # fmt: skip


async def put_back(db: Connection, cause: str, attempts: int, reason: str, next_attempt_at: datetime) -> None:
    """The mail was not taken and is tried again."""
    await db.execute(
        """UPDATE mail SET state = 'waiting', attempts = $2, reason = $3, next_attempt_at = $4
           WHERE cause = $1 AND state IN ('waiting', 'sending')""",
        cause, attempts, reason, next_attempt_at,
    )  # fmt: skip


async def settle(db: Connection, cause: str, outcome: str, reason: str, attempts: int, now: datetime) -> bool:
    """Ends a mail. Its code stays only while a person may have it sent again. False if it was settled before."""
    return bool(
        await db.fetchval(
            """UPDATE mail SET state = $2, reason = $3, attempts = $4, settled_at = $5,
                               code_sealed = CASE WHEN $2 = 'unknown' THEN code_sealed END
               WHERE cause = $1 AND state IN ('waiting', 'sending') RETURNING true""",
            cause, outcome, reason, attempts, now,
        )
    )  # fmt: skip


async def send_again(db: Connection, cause: str, actor: str, ticket: str, now: datetime, give_up_at: datetime) -> bool:
    """A person has decided: a mail of unknown outcome, or a refused one, waits again. False for any other."""
    return bool(
        await db.fetchval(
            """UPDATE mail SET state = 'waiting', settled_at = NULL, next_attempt_at = $4, give_up_at = $5,
                               decided_by = $2, ticket = $3
               WHERE cause = $1 AND state IN ('unknown', 'refused') RETURNING true""",
            cause, actor, ticket, now, give_up_at,
        )
    )  # fmt: skip


async def state_counts(db: Connection) -> dict[str, int]:
    """How many mails are in each state."""
    rows = await db.fetch("SELECT state, count(*) AS n FROM mail GROUP BY state")
    return {row["state"]: row["n"] for row in rows}


async def mails(db: Connection, state: str | None, limit: int) -> list[Mapping[str, Any]]:
    """What operators see of mails: causes and states, nobody's address."""
    return await db.fetch(
        """SELECT cause, kind, template, case_id, state, reason, attempts, requested_at, next_attempt_at, settled_at,
                  decided_by, ticket FROM mail WHERE $1::text IS NULL OR state = $1
           ORDER BY requested_at DESC LIMIT $2""",
        state, limit,
    )  # fmt: skip
