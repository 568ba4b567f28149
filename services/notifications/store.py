"""All SQL of notifications. Time comes in as a parameter."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any

from services.notifications.proofs import Proof
from shared.mesh.store import Connection, Pool

SETTLED = ("accepted", "refused", "unknown")


@dataclass(frozen=True, slots=True)
class Mail:
    """One mail that somebody is owed, as its row has it. It goes to the account's address, unless to the case's envelope
    (`by_envelope`) or to one of its own (`by_address`)."""

    cause: str
    kind: str
    template: str
    account: str | None
    case_id: str | None
    facts: Mapping[str, str] | None
    requested_at: datetime
    next_attempt_at: datetime
    give_up_at: datetime
    by_envelope: bool = False
    by_address: bool = False
    address_sealed: str | None = None
    code_sealed: str | None = None
    link_sealed: str | None = None
    state: str = "waiting"
    attempts: int = 0


@dataclass(frozen=True, slots=True)
class Address:
    """Where an account is written to, sealed. `previous`: where codes go until the change at `changed_at` has settled."""

    sealed: str
    previous: str | None
    changed_at: datetime | None


@dataclass(frozen=True, slots=True)
class Bar:
    """An address may have no account that is opened in this time."""

    barred_at: datetime
    expires_at: datetime


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


async def address(db: Connection, account: str) -> Address | None:
    """The address of an account."""
    row = await db.fetchrow("SELECT sealed, previous, changed_at FROM address WHERE account = $1", account)
    return None if row is None else Address(**dict(row))


async def lock_address(db: Connection, account: str) -> Address | None:
    """The same, to be changed."""
    row = await db.fetchrow("SELECT sealed, previous, changed_at FROM address WHERE account = $1 FOR UPDATE", account)
    return None if row is None else Address(**dict(row))


async def change_address(db: Connection, account: str, sealed: str, previous: str, now: datetime) -> None:
    """Puts a new address in place of the one that is there."""
    await db.execute(
        "UPDATE address SET sealed = $2, previous = $3, changed_at = $4 WHERE account = $1",
        account, sealed, previous, now,
    )  # fmt: skip


async def forget_previous(db: Connection, changed_before: datetime) -> int:
    """Ends previous addresses whose change has settled."""
    rows = await db.fetch(
        "UPDATE address SET previous = NULL, changed_at = NULL WHERE changed_at <= $1 RETURNING true", changed_before
    )
    return len(rows)


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


async def keep_address(db: Connection, case_id: str, sealed: str, now: datetime, not_after: datetime) -> bool:
    """Keeps an address for one mail of a case, until `not_after`. False if it is there, or that mail was accepted."""
    return bool(
        await db.fetchval(
            """INSERT INTO kept_address (case_id, sealed, created_at, not_after)
               SELECT $1, $2, $3, $4
               WHERE NOT EXISTS (SELECT FROM mail WHERE case_id = $1 AND by_envelope AND state = 'accepted')
               ON CONFLICT (case_id) DO NOTHING RETURNING true""",
            case_id, sealed, now, not_after,
        )
    )  # fmt: skip


async def keep_longer(db: Connection, case_id: str, not_after: datetime) -> bool:
    """Keeps the address of a case until `not_after`, if that is later. False if there is none."""
    return bool(
        await db.fetchval(
            """UPDATE kept_address SET not_after = GREATEST(not_after, $2) WHERE case_id = $1 RETURNING true""",
            case_id, not_after,
        )
    )  # fmt: skip


async def any_barred(db: Connection) -> bool:
    """Whether any address is barred at all: most of the time none is, and nothing has to be opened."""
    found: bool = await db.fetchval("SELECT EXISTS (SELECT FROM barred)")
    return found


async def envelope(db: Connection, case_id: str, now: datetime) -> str | None:
    """The address that is put aside for a case; None when there is none, or its time is over."""
    sealed: str | None = await db.fetchval(
        """SELECT sealed FROM kept_address WHERE case_id = $1 AND not_after > $2
           UNION ALL SELECT sealed FROM envelope WHERE case_id = $1 AND not_after > $2 LIMIT 1""",
        case_id, now,
    )  # fmt: skip
    return sealed


async def destroy_envelope(db: Connection, case_id: str) -> None:
    """The mail that it was for is accepted."""
    await db.execute("DELETE FROM envelope WHERE case_id = $1", case_id)
    await db.execute("DELETE FROM kept_address WHERE case_id = $1", case_id)


# --- addresses that may have no account --------------------------------------------------------------------------


async def bar(db: Connection, hashes: Sequence[bytes], now: datetime, expires_at: datetime) -> None:
    """Bars addresses, as hashes; one that is barred stays so until its first end."""
    await db.execute(
        """INSERT INTO barred (hash, barred_at, expires_at) SELECT h, $2, $3 FROM unnest($1::bytea[]) AS h
           ON CONFLICT (hash) DO NOTHING""",
        list(hashes), now, expires_at,
    )  # fmt: skip


async def barred(db: Connection, hashes: Sequence[bytes], now: datetime) -> dict[bytes, Bar]:
    """Those of the hashes that are barred."""
    rows = await db.fetch(
        "SELECT hash, barred_at, expires_at FROM barred WHERE hash = ANY($1) AND expires_at > $2", list(hashes), now
    )
    return {row["hash"]: Bar(row["barred_at"], row["expires_at"]) for row in rows}


# --- codes -------------------------------------------------------------------------------------------------------


async def add_proof(db: Connection, proof: Proof) -> None:
    """Keeps the hash of a code; its mail is new."""
    await db.execute(
        """INSERT INTO proof (cause, case_id, request, account, template, proves, code_hash, address_sealed, until)
           VALUES ($1, $2, $3, $4, $5, $6, $7, $8, $9)""",
        proof.cause, proof.case_id, proof.request, proof.account, proof.template, proof.proves, proof.code_hash,
        proof.address_sealed, proof.until,
    )  # fmt: skip


async def good_until(db: Connection, cause: str) -> datetime | None:
    """Until when the code of a mail is good."""
    until: datetime | None = await db.fetchval("SELECT until FROM proof WHERE cause = $1", cause)
    return until


async def lock_proofs(db: Connection, named: str, account: str) -> list[Proof]:
    """All codes of a case of this account; `named`: the case's id, or that of one of its requests."""
    rows = await db.fetch(
        """SELECT cause, case_id, request, account, template, proves, code_hash, address_sealed, until, used_at FROM proof
           WHERE account = $2
             AND case_id = (SELECT case_id FROM proof WHERE account = $2 AND (case_id = $1 OR request = $1)
                            ORDER BY case_id <> $1 LIMIT 1)
           ORDER BY cause FOR UPDATE""",
        named, account,
    )  # fmt: skip
    return [Proof(**dict(row)) for row in rows]


async def use_proof(db: Connection, cause: str, now: datetime) -> None:
    """A code came back right: it is good once."""
    await db.execute("UPDATE proof SET used_at = $2 WHERE cause = $1", cause, now)


async def end_proofs(db: Connection, account: str, templates: Sequence[str], now: datetime) -> None:
    """Codes of these mails are over, and what they would have proved is forgotten."""
    await db.execute(
        """UPDATE proof SET until = least(until, $3), address_sealed = NULL
           WHERE account = $1 AND template = ANY($2)""",
        account, list(templates), now,
    )  # fmt: skip


async def end_case(db: Connection, cases: Sequence[str], account: str | None, now: datetime) -> None:
    """All codes of these cases are over, and what they would have proved is forgotten; with `account` those of that one."""
    await db.execute(
        """UPDATE proof SET until = least(until, $3), address_sealed = NULL
           WHERE case_id = ANY($1) AND ($2::text IS NULL OR account = $2)""",
        list(cases), account, now,
    )  # fmt: skip


async def mark_ended(db: Connection, hashes: Sequence[bytes], now: datetime) -> None:
    """Keeps which cases are over, as hashes: codes can be asked for still."""
    await db.execute(
        """INSERT INTO ended (hash, ended_at) SELECT h, $2 FROM unnest($1::bytea[]) AS h
           ON CONFLICT (hash) DO NOTHING""",
        list(hashes), now,
    )  # fmt: skip


async def any_ended(db: Connection, hashes: Sequence[bytes]) -> bool:
    """Whether one of the hashes is of a case that is over."""
    return bool(await db.fetchval("SELECT EXISTS (SELECT FROM ended WHERE hash = ANY($1))", list(hashes)))


async def verdict(db: Connection, event_id: str) -> tuple[str, str] | None:
    """(case, verdict) of a confirmation that was judged before."""
    row = await db.fetchrow("SELECT case_id, verdict FROM judgement WHERE event_id = $1", event_id)
    return None if row is None else (row["case_id"], row["verdict"])


async def wrong_codes(db: Connection, case_id: str) -> int:
    """How many wrong codes came back for a case."""
    return int(
        await db.fetchval("SELECT count(*) FROM judgement WHERE case_id = $1 AND verdict = 'wrong'", case_id) or 0
    )


async def add_verdict(db: Connection, event_id: str, case_id: str, said: str, now: datetime) -> None:
    """Keeps what a confirmation is told."""
    await db.execute(
        "INSERT INTO judgement (event_id, case_id, verdict, judged_at) VALUES ($1, $2, $3, $4)",
        event_id, case_id, said, now,
    )  # fmt: skip


# --- mails -------------------------------------------------------------------------------------------------------


async def known_causes(db: Connection, causes: Sequence[str]) -> set[str]:
    """Those of the causes that have their mail."""
    rows = await db.fetch("SELECT cause FROM mail WHERE cause = ANY($1)", list(causes))
    return {row["cause"] for row in rows}


async def add_mail(db: Connection, mail: Mail) -> bool:
    """Keeps a mail that is to be sent. False if its cause has one already."""
    return bool(
        await db.fetchval(
            """INSERT INTO mail (cause, kind, template, account, case_id, by_envelope, by_address, address_sealed,
                                 code_sealed, link_sealed, facts, requested_at, next_attempt_at, give_up_at)
               VALUES ($1, $2, $3, $4, $5, $6, $7, $8, $9, $10, $11, $12, $13, $14)
               ON CONFLICT (cause) DO NOTHING RETURNING true""",
            mail.cause, mail.kind, mail.template, mail.account, mail.case_id, mail.by_envelope, mail.by_address,
            mail.address_sealed, mail.code_sealed, mail.link_sealed, mail.facts, mail.requested_at,
            mail.next_attempt_at, mail.give_up_at,
        )
    )  # fmt: skip


async def mail(db: Connection, cause: str) -> Mail | None:
    """A mail. Its task's lock keeps others away from it, not a lock of its own."""
    row = await db.fetchrow(
        """SELECT cause, kind, template, account, case_id, by_envelope, by_address, address_sealed, code_sealed,
                  link_sealed, facts, state, attempts, requested_at, next_attempt_at, give_up_at
           FROM mail WHERE cause = $1""",
        cause,
    )
    return None if row is None else Mail(**dict(row))


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
    """Ends a mail. What it says stays unless it was accepted: a person may have it sent again. Afterwards nobody needs it, and
    it names workspaces, whose end does not reach an account's mails. False if it was settled before."""
    return bool(
        await db.fetchval(
            """UPDATE mail SET state = $2, reason = $3, attempts = $4, settled_at = $5,
                               address_sealed = CASE WHEN $2 <> 'accepted' THEN address_sealed END,
                               code_sealed = CASE WHEN $2 <> 'accepted' THEN code_sealed END,
                               link_sealed = CASE WHEN $2 <> 'accepted' THEN link_sealed END,
                               facts = CASE WHEN $2 <> 'accepted' THEN facts END
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


async def forget_secrets(db: Connection, settled_before: datetime) -> None:
    """Nobody has had these mails sent again: what they say in secret goes."""
    await db.execute(
        """UPDATE mail SET address_sealed = NULL, code_sealed = NULL, link_sealed = NULL
           WHERE state IN ('refused', 'unknown') AND settled_at <= $1
             AND (address_sealed IS NOT NULL OR code_sealed IS NOT NULL OR link_sealed IS NOT NULL)""",
        settled_before,
    )


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
