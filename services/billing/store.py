"""All SQL of billing. Time comes in as a parameter.

Every transaction locks in one order: line ids, records, workspaces (by id), months of own-key usage, periods, and at
the very end the heads of the chains. Statements on the ledger name class and year, so that one partition is looked at.
"""

from __future__ import annotations

import struct
from collections.abc import Collection, Iterable, Mapping, Sequence
from datetime import date, datetime
from decimal import Decimal
from typing import Any

import asyncpg

from services.billing.books import Books, Standing, State, numbered
from services.billing.charges import LINE_COLUMNS, Sheet, Sifted, by_day, digests, oldest, seen_rows
from services.billing.ledger import Balances, BillingConfig, Grant, block_hash, closes_at
from services.billing.payments import Dispute, Note, Payments, Purchase, Waiting
from shared.contract.units import ERASED
from shared.mesh import packed
from shared.mesh.store import Connection, copy_packed

# --- lines that are booked ---------------------------------------------------------------------------------------


# Without the range every partition would be searched; without the inner ARRAY the planner would look at every id. The
# ids come as one value, end to end: an array of them takes the driver longer to write than the server to look up.
_SEEN = """SELECT line_id, digest FROM line_seen
           WHERE line_id = ANY(ARRAY(SELECT substr($1::bytea, n, 16) FROM generate_series(1, length($1::bytea), 16) AS n))
             AND line_id BETWEEN $2 AND $3"""


async def _remembered(db: Connection, ids: Sequence[bytes]) -> list[tuple[bytes, int | None]]:
    """(line id, digest) of those of `ids`, which are in order, that `line_seen` has."""
    return [(row[0], row[1]) for row in await db.fetch(_SEEN, b"".join(ids), ids[0], ids[-1])]


async def seen_lines(db: Connection, lines: Sifted, low: bytes) -> list[tuple[bytes, int | None]]:
    """(line id, digest) of those fresh lines that are booked already; None where the digest is forgotten."""
    late, days = by_day(sorted(lines.fresh), low)
    found: list[tuple[bytes, int | None]] = []
    for ids in days:
        found += await _remembered(db, ids)
    if late:
        found += await _seen_late(db, late, lines)
    return found


async def _seen_late(db: Connection, late: list[bytes], lines: Sifted) -> list[tuple[bytes, int | None]]:
    """Lines so old that their day is forgotten: noted when released, or brought again by a record that is booked."""
    found: list[tuple[bytes, int | None]] = []
    found += await db.fetch("SELECT line_id, digest FROM line_late WHERE line_id = ANY($1)", late)
    known = {line_id for line_id, _ in found}
    places = {line_id: lines.position(line_id) for line_id in late if line_id not in known}
    for record in sorted({record for record, _ in places.values()}):
        booked = await _lines(db, record, None)
        if booked is None:
            continue
        of_lines = dict(
            zip([row["line"] for row in booked], digests([row["list_pico"] for row in booked]), strict=True)
        )
        found += [(line_id, of_lines.get(number)) for line_id, (of, number) in places.items() if of == record]
    return found


async def _lines(db: Connection, record: str, number: int | None) -> list[asyncpg.Record] | None:
    """The charge lines of a rated record (or the one with that number); None if the record is not booked."""
    booked = await db.fetchrow(
        "SELECT booking_year, first_journal, last_journal FROM charged_record WHERE record = $1", record
    )
    if booked is None:
        return None
    return await db.fetch(
        """SELECT * FROM charge_line WHERE class IN ('US', 'EU', 'OTHER') AND booking_year = $1
             AND journal BETWEEN $2 AND $3 AND record = $4 AND ($5::int IS NULL OR line = $5)""",
        *booked, record, number,
    )  # fmt: skip


async def add_new(db: Connection, todo: Sequence[Sheet], low: bytes) -> bool:
    """Remembers lines none of which is remembered yet. False if one is, or is too old to tell; nothing is done then."""
    if oldest(todo) < low:
        return False
    try:
        async with db.transaction():
            await copy_packed(db, "line_seen", ("line_id", "digest"), seen_rows(todo))
    except asyncpg.UniqueViolationError:
        return False
    return True


async def add_seen(
    db: Connection, rows: list[tuple[bytes, int]], low: bytes, today: date
) -> list[tuple[bytes, int | None]]:
    """Remembers lines (in order of their ids); returns those that another transaction was quicker to book."""
    late = [row for row in rows if row[0] < low]
    usual = rows[len(late) :]
    lost: list[tuple[bytes, int | None]] = []
    if usual:
        lost += await _add_usual(db, usual)
    if late:
        added = await db.fetch(
            """INSERT INTO line_late (line_id, digest, seen_on) SELECT line_id, digest, $3
               FROM unnest($1::bytea[], $2::smallint[]) AS v(line_id, digest)
               ON CONFLICT DO NOTHING RETURNING line_id""",
            [row[0] for row in late], [row[1] for row in late], today,
        )  # fmt: skip
        ours = {row["line_id"] for row in added}
        lost += [row for row in late if row[0] not in ours]
    return lost


async def _add_usual(db: Connection, rows: list[tuple[bytes, int]]) -> list[tuple[bytes, int | None]]:
    added = await db.fetch(
        """INSERT INTO line_seen (line_id, digest) SELECT * FROM unnest($1::bytea[], $2::smallint[])
           ON CONFLICT DO NOTHING RETURNING line_id""",
        [row[0] for row in rows], [row[1] for row in rows],
    )  # fmt: skip
    ours = {row["line_id"] for row in added}
    lost = [row[0] for row in rows if row[0] not in ours]
    if not lost:
        return []
    return await _remembered(db, lost)


async def forget_late(db: Connection, before: date) -> None:
    """Forgets released lines whose window is over."""
    await db.execute("DELETE FROM line_late WHERE seen_on < $1", before)


# --- opening the books -------------------------------------------------------------------------------------------


async def open_books(
    db: Connection,
    now: datetime,
    config: BillingConfig,
    owners: Mapping[str, str],
    classes: Mapping[str, str],
    erased: Collection[str] = (),
    numbers: Collection[int] = (),
) -> Books:
    """The books of `owners` (workspace to account), locked; workspaces never seen before are entered first.

    `classes`: the legal class that new ones start in. Grants that are over are booked as breakage. Of the workspaces
    that are `erased` none is entered: the books have those whose name is still known, and nobody for the rest.
    `numbers`: more workspaces, by their number in the ledger.
    """
    names = list(owners)
    standings = await (_lock_numbered(db, names, numbers) if erased else _lock(db, names))
    unknown = sorted(name for name in names if name not in standings and name not in erased)
    if unknown:
        await _enter(db, unknown, [owners[name] for name in unknown], [classes[name] for name in unknown])
        standings |= await _lock(db, unknown)
    books = await _books(db, now, config, standings)
    if erased:
        books.admit_nobody()
    return books


async def open_books_by_id(
    db: Connection, now: datetime, config: BillingConfig, workspace_ids: Collection[int]
) -> Books:
    """The books of workspaces that are known, locked; those whose names were erased are nameless."""
    books = await _books(db, now, config, await _lock_numbered(db, (), workspace_ids))
    books.admit_nobody()
    return books


# Columns in the order of `_standing`. Where an erasure can be under way, by number: who waits for it to end sees the
# balance as it is then, and the name as it was before. So it is the balance that says whether there is still a name.
_LOCKED = """SELECT r.workspace, b.workspace_id, b.class, b.class_stated, b.version, b.purchased_pico::text,
                    b.receivable_pico::text, b.granted_pico::text, b.purchased_account, b.granted_account,
                    b.receivable_account
             FROM workspace_ref r JOIN balance b ON b.workspace_id = r.id
             WHERE r.workspace = ANY($1) ORDER BY b.workspace_id FOR UPDATE OF b"""
_LOCKED_NUMBERED = """SELECT CASE WHEN NOT b.erased THEN r.workspace END, b.workspace_id, b.class, b.class_stated, b.version,
                             b.purchased_pico::text, b.receivable_pico::text, b.granted_pico::text, b.purchased_account,
                             b.granted_account, b.receivable_account
                      FROM balance b LEFT JOIN workspace_ref r ON r.id = b.workspace_id
                      WHERE b.workspace_id = ANY($1::bigint[] || ARRAY(SELECT id FROM workspace_ref
                                                                       WHERE workspace = ANY($2::text[])))
                      ORDER BY b.workspace_id FOR UPDATE OF b"""


async def _books(db: Connection, now: datetime, config: BillingConfig, standings: dict[str, Standing]) -> Books:
    system = {
        (row["class"], row["kind"]): row["id"]
        for row in await db.fetch("SELECT id, class, kind FROM ledger_account WHERE workspace_id IS NULL")
    }
    await _load_grants(db, standings)
    books = Books(now, config, system, standings)
    books.expire_due()
    return books


async def _lock(db: Connection, workspaces: Sequence[str]) -> dict[str, Standing]:
    return {row[0]: _standing(row) for row in await db.fetch(_LOCKED, workspaces)}


async def _lock_numbered(db: Connection, workspaces: Collection[str], numbers: Collection[int]) -> dict[str, Standing]:
    """Workspaces by name or number; those whose name is gone go by their number."""
    rows = await db.fetch(_LOCKED_NUMBERED, list(numbers), list(workspaces))
    found = [_standing(row) for row in rows]
    return {standing.workspace: standing for standing in found}


def _standing(row: Sequence[Any]) -> Standing:
    """Amounts come as text, which is exact and half the work. Grants are loaded where there is granted credit."""
    name, number, legal_class, stated, version, purchased, receivable, granted, *accounts = row
    standing = Standing(
        name, number, legal_class, stated, version, Balances(int(purchased), int(receivable)),
        (accounts[0], accounts[1], accounts[2]), int(granted),
    )  # fmt: skip
    if name is None:
        standing.workspace, standing.nameless = numbered(number), True
    return standing


async def _load_grants(db: Connection, standings: Mapping[str, Standing]) -> None:
    having = {s.workspace_id: s for s in standings.values() if s.granted_pico}
    if not having:
        return
    found: dict[int, list[Grant]] = {}
    for row in await db.fetch(
        """SELECT workspace_id, grant_id, remaining_pico, priority, expires_at, granted_at FROM credit_grant
           WHERE workspace_id = ANY($1) AND remaining_pico > 0""",
        list(having),
    ):
        grant = Grant(row[1], int(row[2]), row[3], row[4], row[5])
        found.setdefault(row[0], []).append(grant)
    for workspace_id, standing in having.items():
        grants = tuple(sorted(found.get(workspace_id, ()), key=lambda g: g.turn))
        standing.load_grants(grants)


async def _enter(db: Connection, workspaces: list[str], accounts: list[str], classes: list[str]) -> None:
    """Gives workspaces (in order) their number, their ledger accounts and an empty balance."""
    # No join of the new rows with each other: a plan made for few of them compares all of many with all.
    await db.execute(
        """WITH ref AS (
             INSERT INTO workspace_ref (workspace, account, class)
             SELECT * FROM unnest($1::text[], $2::text[], $3::text[]) ON CONFLICT DO NOTHING RETURNING id, class),
           acc AS (
             INSERT INTO ledger_account (class, kind, workspace_id)
             SELECT ref.class, kind, ref.id FROM ref, unnest(ARRAY['purchased', 'granted', 'receivable']) AS kind
             ORDER BY ref.id, kind RETURNING id, kind, workspace_id, class)
           INSERT INTO balance (workspace_id, version, purchased_pico, granted_pico, receivable_pico, class, class_stated,
                                purchased_account, granted_account, receivable_account)
           SELECT workspace_id, 0, 0, 0, 0, class, false, max(id) FILTER (WHERE kind = 'purchased'),
                  max(id) FILTER (WHERE kind = 'granted'), max(id) FILTER (WHERE kind = 'receivable')
           FROM acc GROUP BY workspace_id, class""",
        workspaces, accounts, classes,
    )  # fmt: skip


async def enter_class(db: Connection, moves: Sequence[tuple[int, str]]) -> dict[tuple[int, str], tuple[int, int, int]]:
    """Ledger accounts of workspaces (whose rows are locked) in another legal class, made where they are missing."""
    ids, classes = [m[0] for m in moves], [m[1] for m in moves]
    await db.execute(
        """INSERT INTO ledger_account (class, kind, workspace_id)
           SELECT v.class, kind, v.id FROM unnest($1::bigint[], $2::text[]) AS v(id, class),
                  unnest(ARRAY['purchased', 'granted', 'receivable']) AS kind ON CONFLICT DO NOTHING""",
        ids, classes,
    )  # fmt: skip
    rows = await db.fetch(
        """SELECT a.workspace_id, a.class, a.kind, a.id FROM ledger_account a
           JOIN unnest($1::bigint[], $2::text[]) AS v(id, class) ON v.id = a.workspace_id AND v.class = a.class""",
        ids, classes,
    )  # fmt: skip
    found: dict[tuple[int, str], dict[str, int]] = {}
    for row in rows:
        found.setdefault((row["workspace_id"], row["class"]), {})[row["kind"]] = row["id"]
    return {key: (kinds["purchased"], kinds["granted"], kinds["receivable"]) for key, kinds in found.items()}


async def lock_byok(
    db: Connection, months: Sequence[tuple[str, str]], erased: Collection[str] = ()
) -> dict[tuple[str, str], int]:
    """The list price of own-key usage by (account, month) so far, locked. None is begun for `erased` accounts."""
    if not months:
        return {}
    accounts, names = [m[0] for m in months], [m[1] for m in months]
    begun = [m for m in months if m[0] not in erased]
    await db.execute(
        """INSERT INTO byok_month (account, month, list_pico) SELECT *, 0 FROM unnest($1::text[], $2::text[])
           ON CONFLICT DO NOTHING""",
        [m[0] for m in begun], [m[1] for m in begun],
    )  # fmt: skip
    rows = await db.fetch(
        """SELECT b.account, b.month, b.list_pico FROM byok_month b
           JOIN unnest($1::text[], $2::text[]) AS v(account, month) ON v.account = b.account AND v.month = b.month
           ORDER BY b.account, b.month FOR UPDATE OF b""",
        accounts, names,
    )  # fmt: skip
    return {(row["account"], row["month"]): int(row["list_pico"]) for row in rows}


async def set_byok(db: Connection, months: Mapping[tuple[str, str], int]) -> None:
    """Keeps what `lock_byok` gave and the charges have added to."""
    if months:
        await db.execute(
            """UPDATE byok_month b SET list_pico = v.pico::numeric
               FROM unnest($1::text[], $2::text[], $3::text[]) AS v(account, month, pico)
               WHERE b.account = v.account AND b.month = v.month""",
            [k[0] for k in months], [k[1] for k in months], [str(v) for v in months.values()],
        )  # fmt: skip


async def add_erased_byok(db: Connection, months: Collection[tuple[str, int]]) -> None:
    """Keeps own-key usage (month, list price) of accounts that are erased, without them."""
    await db.executemany("INSERT INTO byok_erased (month, list_pico) VALUES ($1, $2::text::numeric)",
                         [(month, str(listed)) for month, listed in sorted(months)])  # fmt: skip


async def share_periods(
    db: Connection, wanted: Collection[tuple[str, str]], config: BillingConfig
) -> set[tuple[str, str]]:
    """Holds the (class, period) rows so that none closes before this transaction ends; returns the closed ones."""
    pairs = sorted(wanted)
    classes, periods = [p[0] for p in pairs], [p[1] for p in pairs]
    while True:
        rows = await db.fetch(
            """SELECT p.class, p.period, p.closed_at IS NOT NULL AS closed FROM period p
               JOIN unnest($1::text[], $2::text[]) AS v(class, period) ON v.class = p.class AND v.period = p.period
               ORDER BY p.class, p.period FOR SHARE OF p""",
            classes, periods,
        )  # fmt: skip
        if len(rows) == len(pairs):
            return {(row["class"], row["period"]) for row in rows if row["closed"]}
        await db.execute(
            """INSERT INTO period (class, period, closes_at) SELECT * FROM unnest($1::text[], $2::text[], $3::timestamptz[])
               ON CONFLICT DO NOTHING""",
            classes, periods, [closes_at(p, config) for p in periods],
        )  # fmt: skip


async def journal_ids(db: Connection, n: int) -> list[int]:
    """The next `n` journal numbers."""
    rows = await db.fetch("SELECT nextval('journal_id') FROM generate_series(1, $1)", n)
    return [row[0] for row in rows]


# --- writing the books -------------------------------------------------------------------------------------------

_JOURNAL_COLUMNS = (
    "id", "class", "booking_year", "cause", "kind", "workspace_id", "period", "booked_at", "event_at", "adjusts_period",
    "lines_digest", "block",
)  # fmt: skip


def _part(table: str, legal_class: str, year: int) -> str:
    """The partition of a class and year: written to directly, since a row finds its own way more slowly."""
    return f"{table}_{legal_class.lower()}_{year}"


async def add_lines(db: Connection, legal_class: str, year: int, journals: Iterable[bytes]) -> None:
    """Charge lines of one class and year, journal by journal, straight."""
    await copy_packed(db, _part("charge_line", legal_class, year), LINE_COLUMNS, list(journals))


async def add_records(db: Connection, records: Collection[str], year: int, journals: Sequence[int]) -> None:
    """Notes that records are booked, by `journals`. Raises UniqueViolationError if one was before: no line twice."""
    await db.execute(
        "INSERT INTO charged_record (record, booking_year, first_journal, last_journal) SELECT unnest($1::uuid[]), $2, $3, $4",
        sorted(records), year, journals[0], journals[-1],
    )  # fmt: skip


async def close_books(db: Connection, books: Books) -> list[State]:
    """Writes everything that the books hold, the chain last; returns what there is to publish."""
    if missing := books.unnumbered():
        books.number(await journal_ids(db, missing))
    changed = books.changed()
    await _write_balances(db, changed, books.now)
    await _write_grants(db, books)
    # Usage is unique by its records.
    if causes := sorted(
        (j.cause, j.id, j.digest, j.legal_class, books.now.year) for j in books.journals if j.kind != "usage"
    ):
        await db.copy_records_to_table(
            "journal_cause", columns=("cause", "journal", "digest", "class", "booking_year"), records=causes
        )
    if books.journals:
        await _write_blocks(db, books)
    return [standing.state(books.now) for standing in changed if not standing.nameless]


async def _write_balances(db: Connection, changed: Sequence[Standing], now: datetime) -> None:
    if not changed:
        return
    for standing in changed:
        standing.version += 1
    moved, erased = [s for s in changed if s.moved], [s.workspace_id for s in changed if s.erased]
    # Amounts go as text: exact at any size, and cheaper than a numeric each.
    await db.execute(
        """UPDATE balance b SET version = v.version, purchased_pico = v.purchased::numeric,
                  granted_pico = v.granted::numeric, receivable_pico = v.receivable::numeric, changed_at = $6
           FROM unnest($1::bigint[], $2::bigint[], $3::text[], $4::text[], $5::text[])
                AS v(id, version, purchased, granted, receivable)
           WHERE b.workspace_id = v.id""",
        [s.workspace_id for s in changed], [s.version for s in changed],
        [str(s.balances.purchased_pico) for s in changed], [str(s.balances.granted_pico) for s in changed],
        [str(s.balances.receivable_pico) for s in changed], now,
    )  # fmt: skip
    stated = [s for s in changed if s.newly_stated]
    if stated:
        await db.execute(
            "UPDATE balance SET class_stated = true WHERE workspace_id = ANY($1)", [s.workspace_id for s in stated]
        )
    if erased:
        await db.execute("UPDATE balance SET erased = true WHERE workspace_id = ANY($1)", erased)
    for s in moved:
        await db.execute(
            """UPDATE balance SET class = $2, purchased_account = $3, granted_account = $4, receivable_account = $5
               WHERE workspace_id = $1""",
            s.workspace_id, s.legal_class, *s.accounts,
        )  # fmt: skip
        await db.execute("UPDATE workspace_ref SET class = $2 WHERE id = $1", s.workspace_id, s.legal_class)


async def _write_grants(db: Connection, books: Books) -> None:
    updates, fresh = books.grant_changes()
    if updates:
        await db.execute(
            """UPDATE credit_grant g SET remaining_pico = v.remaining::numeric
               FROM unnest($1::text[], $2::text[]) AS v(id, remaining) WHERE g.grant_id = v.id""",
            [u[0] for u in updates], [str(u[1]) for u in updates],
        )  # fmt: skip
    if fresh:
        await db.copy_records_to_table(
            "credit_grant",
            columns=("grant_id", "workspace_id", "credit_pico", "remaining_pico", "priority", "expires_at", "granted_at"),
            records=[
                (g.grant, who, Decimal(books.granted[g.grant]), Decimal(g.remaining_pico), g.priority, g.expires_at, g.granted_at)
                for g, who in fresh
            ],
        )  # fmt: skip


_entry_start = struct.Struct(">hiqiqi").pack


def _entry(journal: int, account: int, pico: int) -> bytes:
    """An entry, packed but for its class and year."""
    amount = _numeric(pico)
    return _entry_start(5, 8, journal, 8, account, len(amount)) + amount


def _numeric(value: int) -> bytes:
    """A whole number as a numeric in binary: digits to the base 10,000, how many, the first one's weight, sign, scale."""
    digits, left = [], abs(value)
    while left:
        left, digit = divmod(left, 10_000)
        digits.append(digit)
    n = len(digits)
    return struct.pack(f">hhHh{n}h", n, n - 1, 0x4000 if value < 0 else 0, 0, *reversed(digits))


async def _write_blocks(db: Connection, books: Books) -> None:
    """One block for each legal class. The heads are locked here, last of all, and until the commit."""
    by_class = dict(books.by_class())
    heads = await db.fetch(
        "SELECT class, block, hash FROM chain_head WHERE class = ANY($1) ORDER BY class FOR UPDATE", list(by_class)
    )
    for head in heads:
        legal_class, block, previous = head["class"], head["block"] + 1, head["hash"]
        journals = by_class[legal_class]
        digest = block_hash(legal_class, block, previous, books.now, journals)
        await db.copy_records_to_table(
            _part("journal", legal_class, books.now.year),
            columns=_JOURNAL_COLUMNS,
            records=[(*j[:11], block) for j in journals],
        )
        common = packed.text(legal_class) + packed.field(books.now.year.to_bytes(4, "big"))
        await copy_packed(
            db,
            _part("entry", legal_class, books.now.year),
            ("journal", "account", "amount_pico", "class", "booking_year"),
            [_entry(j.id, account, pico) + common for j in journals for account, pico in j.entries],
        )
        await db.execute(
            "INSERT INTO chain (class, block, prev, hash, journals, booked_at) VALUES ($1, $2, $3, $4, $5, $6)",
            legal_class, block, previous, digest, len(journals), books.now,
        )  # fmt: skip
        await db.execute("UPDATE chain_head SET block = $2, hash = $3 WHERE class = $1", legal_class, block, digest)


# --- payments ----------------------------------------------------------------------------------------------------


async def open_payments(
    db: Connection, books: Books, causes: Collection[str], payments: Collection[str], disputes: Collection[str],
    notes: Collection[str], erased: Collection[str] = (),
) -> Payments:  # fmt: skip
    """What is known of the given causes, payments, disputes and notes."""
    found = Payments(books, erased)
    found.causes = {
        row["cause"]: row["digest"]
        for row in await db.fetch("SELECT cause, digest FROM journal_cause WHERE cause = ANY($1)", list(causes))
    }
    for row in await db.fetch(
        "SELECT * FROM dispute WHERE dispute = ANY($1) OR payment = ANY($2)", list(disputes), list(payments)
    ):
        found.disputes[row["dispute"]] = Dispute(
            row["dispute"], row["payment"], row["workspace_id"], int(row["taken_pico"]), int(row["suspense_pico"]),
            row["state"],
        )  # fmt: skip
    touched = {*payments, *(d.payment for d in found.disputes.values())}
    for row in await db.fetch("SELECT * FROM purchase WHERE payment = ANY($1)", list(touched)):
        found.purchases[row["payment"]] = Purchase(
            row["payment"], row["workspace_id"], int(row["credit_pico"]), int(row["fee_pico"]), int(row["taken_pico"]),
            row["settled_at"],
        )  # fmt: skip
    for row in await db.fetch(
        "SELECT * FROM waiting_payment WHERE payment = ANY($1) OR cause = ANY($2)", list(touched), list(causes)
    ):
        found.waiting[row["cause"]] = _waiting(row)
    for row in await db.fetch("SELECT note, workspace_id, text, added_at FROM note WHERE note = ANY($1)", list(notes)):
        found.notes[row["note"]] = Note(*row)
    return found


def _waiting(row: Mapping[str, Any]) -> Waiting:
    amount = row["credit_pico"]
    return Waiting(
        row["cause"], row["kind"], row["payment"], row["dispute"], row["workspace_id"],
        None if amount is None else int(amount), row["outcome"], row["digest"], row["event_at"], row["arrived_at"],
        row["position"], row["state"],
    )  # fmt: skip


async def save_method(
    db: Connection, workspace: str, method: str, account: str, token: str, saved_at: datetime
) -> bool:
    """Keeps a payment method with its sealed token; False if a newer one, or this one, is there."""
    return bool(
        await db.fetchval(
            """INSERT INTO payment_method AS m (workspace, method, account, token, saved_at) VALUES ($1, $2, $3, $4, $5)
               ON CONFLICT (workspace, method) DO UPDATE
                 SET account = excluded.account, token = excluded.token, saved_at = excluded.saved_at
                 WHERE excluded.saved_at > m.saved_at
               RETURNING true""",
            *(workspace, method, account, token, saved_at),
        )
    )


async def payers(db: Connection, payments: Collection[str], disputes: Collection[str]) -> list[int]:
    """The numbers of those on whom these payments and disputes are booked, or for whom something waits."""
    rows = await db.fetch(
        """SELECT workspace_id FROM purchase WHERE payment = ANY($1)
           UNION SELECT workspace_id FROM dispute WHERE dispute = ANY($2) OR payment = ANY($1)
           UNION SELECT workspace_id FROM waiting_payment WHERE payment = ANY($1)""",
        list(payments), list(disputes),
    )  # fmt: skip
    return [row["workspace_id"] for row in rows]


async def due_waiting(db: Connection, before: datetime, limit: int) -> list[Waiting]:
    """What has waited since before `before`, oldest first."""
    rows = await db.fetch(
        """SELECT * FROM waiting_payment WHERE state = 'waiting' AND arrived_at <= $1
           ORDER BY arrived_at, position LIMIT $2""",
        before, limit,
    )  # fmt: skip
    return [_waiting(row) for row in rows]


async def close_payments(db: Connection, payments: Payments) -> list[State]:
    """Writes what the payments changed, then closes the books."""
    await db.executemany(
        """INSERT INTO purchase (payment, workspace_id, credit_pico, fee_pico, taken_pico, settled_at)
           VALUES ($1, $2, $3, $4, $5, $6) ON CONFLICT (payment) DO UPDATE SET taken_pico = excluded.taken_pico""",
        [
            (p.payment, p.workspace_id, p.credit_pico, p.fee_pico, p.taken_pico, p.settled_at)
            for p in payments.touched_purchases.values()
        ],
    )
    await db.executemany(
        """INSERT INTO dispute (dispute, payment, workspace_id, taken_pico, suspense_pico, state)
           VALUES ($1, $2, $3, $4, $5, $6) ON CONFLICT (dispute) DO UPDATE
             SET taken_pico = excluded.taken_pico, suspense_pico = excluded.suspense_pico, state = excluded.state""",
        [
            (d.dispute, d.payment, d.workspace_id, d.taken_pico, d.suspense_pico, d.state)
            for d in payments.touched_disputes.values()
        ],
    )
    await db.executemany(
        """INSERT INTO waiting_payment (cause, kind, payment, dispute, workspace_id, credit_pico, outcome, digest,
               event_at, arrived_at, position, state)
           VALUES ($1, $2, $3, $4, $5, $6, $7, $8, $9, $10, $11, $12)
           ON CONFLICT (cause) DO UPDATE SET state = excluded.state""",
        [
            (
                w.cause, w.kind, w.payment, w.dispute, w.workspace_id, w.credit_pico, w.outcome, w.digest, w.event_at,
                w.arrived_at, w.position, w.state,
            )
            for w in payments.touched_waiting.values()
        ],
    )  # fmt: skip
    if payments.gone_waiting:
        await db.execute("DELETE FROM waiting_payment WHERE cause = ANY($1)", list(payments.gone_waiting))
    await db.executemany(
        "INSERT INTO note (note, workspace_id, text, added_at) VALUES ($1, $2, $3, $4)",
        [(n.note, n.workspace_id, n.text, n.added_at) for n in payments.new_notes],
    )
    return await close_books(db, payments.books)


# --- jobs --------------------------------------------------------------------------------------------------------


async def due_grants(db: Connection, now: datetime, limit: int) -> list[int]:
    """Workspaces with a grant that is over at `now`, at most `limit`."""
    rows = await db.fetch(
        """SELECT DISTINCT workspace_id FROM (
             SELECT workspace_id FROM credit_grant WHERE remaining_pico > 0 AND expires_at <= $1
             ORDER BY expires_at LIMIT $2) AS due""",
        now, limit,
    )  # fmt: skip
    return [row["workspace_id"] for row in rows]


async def closable_periods(db: Connection, now: datetime) -> list[tuple[str, str]]:
    """(class, period) of what may close at `now`, locked: no usage is being booked into it from here on."""
    rows = await db.fetch(
        """SELECT class, period FROM period WHERE closed_at IS NULL AND closes_at <= $1
           ORDER BY class, period FOR UPDATE""",
        now,
    )
    return [(row["class"], row["period"]) for row in rows]


async def close_period(
    db: Connection, legal_class: str, period: str, start: datetime, end: datetime, years: Sequence[int], now: datetime
) -> None:
    """Writes what each workspace used in a period, and what was booked in it of closed ones; then it is closed."""
    await db.execute(
        """INSERT INTO period_total (class, period, workspace_id, charged_pico, adjusted_pico, journals)
           SELECT $1, $2, coalesce(j.workspace_id, 0),
                  coalesce(sum(-e.amount_pico) FILTER (WHERE j.adjusts_period IS NULL), 0),
                  coalesce(sum(-e.amount_pico) FILTER (WHERE j.adjusts_period IS NOT NULL), 0), count(*)
           FROM journal j
           JOIN ledger_account a ON a.class = $1 AND a.kind = 'revenue' AND a.workspace_id IS NULL
           LEFT JOIN entry e ON e.class = $1 AND e.booking_year = ANY($3) AND e.booking_year = j.booking_year
                            AND e.journal = j.id AND e.account = a.id
           WHERE j.class = $1 AND j.booking_year = ANY($3) AND j.kind = 'usage'
             AND ((j.period = $2 AND j.adjusts_period IS NULL)
                  OR (j.adjusts_period IS NOT NULL AND j.booked_at >= $4 AND j.booked_at < $5))
           GROUP BY j.workspace_id""",
        legal_class, period, list(years), start, end,
    )  # fmt: skip
    await db.execute("UPDATE period SET closed_at = $3 WHERE class = $1 AND period = $2", legal_class, period, now)


async def next_balances(db: Connection, limit: int, now: datetime, round_started_before: datetime) -> list[State]:
    """The next balances of the round of re-publishing, locked.

    A new round starts when the last one is through and began before `round_started_before`.
    """
    await db.execute("INSERT INTO balance_round (position, started_at) VALUES (0, $1) ON CONFLICT DO NOTHING", now)
    state = await db.fetchrow("SELECT position, started_at FROM balance_round FOR UPDATE")
    assert state is not None
    position = state["position"]
    if position < 0:
        if state["started_at"] > round_started_before:
            return []
        position = 0
        await db.execute("UPDATE balance_round SET started_at = $1", now)
    rows = await db.fetch(
        """SELECT r.workspace, b.* FROM balance b JOIN workspace_ref r ON r.id = b.workspace_id
           WHERE b.workspace_id > $1 AND b.version > 0 AND NOT b.erased ORDER BY b.workspace_id LIMIT $2 FOR UPDATE OF b""",
        position, limit,
    )  # fmt: skip
    # -1: through.
    await db.execute("UPDATE balance_round SET position = $1", rows[-1]["workspace_id"] if len(rows) == limit else -1)
    return [
        State(
            row["workspace"], row["version"], int(row["purchased_pico"]), int(row["granted_pico"]),
            int(row["receivable_pico"]), row["changed_at"],
        )
        for row in rows
    ]  # fmt: skip


# --- erasure -----------------------------------------------------------------------------------------------------


async def numbers_of(db: Connection, workspaces: Collection[str]) -> list[int]:
    """The numbers that these names still lead to."""
    rows = await db.fetch("SELECT id FROM workspace_ref WHERE workspace = ANY($1)", list(workspaces))
    return [row["id"] for row in rows]


async def part_with_owners(db: Connection, accounts: Collection[str], workspaces: Collection[str]) -> None:
    """Takes the names of accounts from all workspaces but these, which go as a whole."""
    await db.execute(
        "UPDATE workspace_ref SET account = $3 WHERE account = ANY($1) AND workspace <> ALL($2)",
        list(accounts), list(workspaces), ERASED,
    )  # fmt: skip


async def take_over(db: Connection, owners: Mapping[str, str]) -> None:
    """Names the account of those of these workspaces (to account) whose former one was erased."""
    await db.execute(
        """UPDATE workspace_ref r SET account = v.account FROM unnest($1::text[], $2::text[]) AS v(workspace, account)
           WHERE r.workspace = v.workspace AND r.account = $3""",
        list(owners), list(owners.values()), ERASED,
    )  # fmt: skip


async def part_with_byok(db: Connection, accounts: Collection[str]) -> None:
    """Keeps what accounts used with their own keys, without the accounts."""
    await db.execute(
        """WITH month AS (DELETE FROM byok_month WHERE account = ANY($1) RETURNING month, list_pico)
           INSERT INTO byok_erased (month, list_pico) SELECT month, list_pico FROM month ORDER BY month, list_pico""",
        list(accounts),
    )


async def classes_of(db: Connection, numbers: Collection[int]) -> dict[int, list[str]]:
    """The legal classes in which these workspaces have books."""
    found: dict[int, list[str]] = {}
    for row in await db.fetch(
        "SELECT DISTINCT workspace_id, class FROM ledger_account WHERE workspace_id = ANY($1)", list(numbers)
    ):
        found.setdefault(row["workspace_id"], []).append(row["class"])
    return found


async def add_erased_workspaces(
    db: Connection, workspaces: Collection[tuple[str, bool, datetime]], now: datetime
) -> None:
    """Remembers (workspace, whether there is a balance to end, until when its books are kept) for what is still to say."""
    await db.executemany(
        """INSERT INTO erased_workspace (workspace, published, erased_at, kept_until) VALUES ($1, $2, $4, $3)
           ON CONFLICT DO NOTHING""",
        [(*workspace, now) for workspace in sorted(workspaces)],
    )


async def kept_until(db: Connection, workspaces: Collection[str]) -> datetime | None:
    """Until when the books of workspaces are kept that have just been erased; None if they have none."""
    until: datetime | None = await db.fetchval(
        "SELECT max(kept_until) FROM erased_workspace WHERE workspace = ANY($1)", list(workspaces)
    )
    return until


async def take_erased_workspaces(db: Connection, before: datetime, limit: int) -> list[str]:
    """Forgets workspaces that were erased by `before`; names those whose balance is to be ended."""
    rows = await db.fetch(
        """DELETE FROM erased_workspace WHERE workspace IN (
             SELECT workspace FROM erased_workspace WHERE erased_at <= $1 ORDER BY erased_at LIMIT $2 FOR UPDATE)
           RETURNING workspace, published""",
        before, limit,
    )  # fmt: skip
    return sorted(row["workspace"] for row in rows if row["published"])


# --- reads -------------------------------------------------------------------------------------------------------


async def balance(db: Connection, workspace: str) -> Mapping[str, Any] | None:
    """A workspace's balance row, with its name and account."""
    row = await db.fetchrow(
        """SELECT r.workspace, r.account, b.* FROM workspace_ref r JOIN balance b ON b.workspace_id = r.id
           WHERE r.workspace = $1""",
        workspace,
    )
    return None if row is None else dict(row)


async def open_grants(db: Connection, workspace_id: int) -> list[Grant]:
    """A workspace's open grants in the order in which they burn."""
    rows = await db.fetch(
        """SELECT grant_id, remaining_pico, priority, expires_at, granted_at FROM credit_grant
           WHERE workspace_id = $1 AND remaining_pico > 0""",
        workspace_id,
    )
    return sorted((Grant(row[0], int(row[1]), row[2], row[3], row[4]) for row in rows), key=lambda g: g.turn)


async def byok_list(db: Connection, account: str, month: str) -> int:
    """An account's own-key usage of a month, at list price."""
    return int(
        await db.fetchval("SELECT list_pico FROM byok_month WHERE account = $1 AND month = $2", account, month) or 0
    )


async def line(db: Connection, record: str, number: int) -> Mapping[str, Any] | None:
    """A charge line by its place in a rated record."""
    rows = await _lines(db, record, number)
    return dict(rows[0]) if rows else None


async def journal(db: Connection, journal_id: int, legal_class: str, year: int) -> Mapping[str, Any] | None:
    """A journal with its entries and its block."""
    row = await db.fetchrow(
        """SELECT j.*, c.hash, c.prev FROM journal j JOIN chain c ON c.class = j.class AND c.block = j.block
           WHERE j.id = $1 AND j.class = $2 AND j.booking_year = $3""",
        journal_id, legal_class, year,
    )  # fmt: skip
    if row is None:
        return None
    entries = await db.fetch(
        """SELECT e.account, a.kind, e.amount_pico FROM entry e JOIN ledger_account a ON a.id = e.account
           WHERE e.journal = $1 AND e.class = $2 AND e.booking_year = $3 ORDER BY e.account""",
        journal_id, legal_class, year,
    )  # fmt: skip
    return dict(row) | {"entries": [dict(entry) for entry in entries]}


async def periods(db: Connection) -> list[Mapping[str, Any]]:
    """Every period with what was charged in it, once it is closed."""
    rows = await db.fetch(
        """SELECT p.class, p.period, p.closes_at, p.closed_at, sum(t.charged_pico) AS charged_pico,
                  sum(t.adjusted_pico) AS adjusted_pico, count(nullif(t.workspace_id, 0)) AS workspaces
           FROM period p LEFT JOIN period_total t ON t.class = p.class AND t.period = p.period
           GROUP BY p.class, p.period ORDER BY p.period, p.class"""
    )
    return [dict(row) for row in rows]


async def ledger(db: Connection) -> list[Mapping[str, Any]]:
    """The sum of each account kind by class, over the whole ledger, with what dropped years have left; the entries that
    are there."""
    rows = await db.fetch(
        """SELECT a.class, a.kind, sum(e.amount_pico) AS amount_pico, sum(e.n)::bigint AS entries
           FROM (SELECT account, amount_pico, 1 AS n FROM entry e
                 WHERE booking_year > coalesce((SELECT max(through_year) FROM checkpoint c WHERE c.class = e.class), 0)
                 UNION ALL SELECT account, amount_pico, 0 FROM carried) e
           JOIN ledger_account a ON a.id = e.account GROUP BY a.class, a.kind ORDER BY a.class, a.kind"""
    )
    return [dict(row) for row in rows]


async def heads(db: Connection) -> list[Mapping[str, Any]]:
    """The newest block of each chain."""
    return [dict(row) for row in await db.fetch("SELECT class, block, hash FROM chain_head ORDER BY class")]


async def waiting(db: Connection, limit: int) -> list[Mapping[str, Any]]:
    """Refunds and disputes that wait for what they are about, and those that have become suspense."""
    rows = await db.fetch(
        """SELECT cause, kind, payment, dispute, credit_pico, outcome, event_at, arrived_at, state
           FROM waiting_payment ORDER BY arrived_at, position LIMIT $1""",
        limit,
    )
    return [dict(row) for row in rows]


async def waiting_counts(db: Connection) -> dict[str, int]:
    """How many rows wait, and how many are suspense."""
    rows = await db.fetch("SELECT state, count(*) AS n FROM waiting_payment GROUP BY state")
    return {row["state"]: row["n"] for row in rows}
