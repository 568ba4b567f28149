"""The SQL of a holder: tombstones, orders, and what the data map says about tables. Names come from the maps alone."""

from __future__ import annotations

from collections.abc import AsyncIterator, Collection, Mapping, MutableMapping, Sequence
from datetime import datetime
from string import Formatter
from typing import Any, NamedTuple, TypeAlias

from asyncpg import UndefinedTableError

from shared.mesh.store import Connection
from shared.privacy.data_map import Rows

# Effect transactions hold it shared, and whoever adds tombstones holds it alone: so no transaction that looked before a
# tombstone was there commits after the erasure went over its rows.
_LOCK = (1867, 4)

BLOCKS = 512
"""Pages of a table that one chunk of an erasure goes over: 4 MB, some thousands of rows."""


async def share(db: Connection) -> None:
    """Keeps tombstones from being added until this transaction ends."""
    await db.execute("SELECT pg_advisory_xact_lock_shared($1, $2)", *_LOCK)


async def alone(db: Connection) -> None:
    """Waits until every open effect transaction has ended; none begins before this one has."""
    await db.execute("SELECT pg_advisory_xact_lock($1, $2)", *_LOCK)


Stone: TypeAlias = tuple[bytes, str, str, datetime]
"""(hash, kind, case, at)"""


async def add_tombstones(db: Connection, stones: Collection[Stone]) -> int:
    """Adds (hash, kind, case, at), after every open transaction has ended; returns how many are new."""
    await alone(db)
    hashes, kinds, cases, ats = (list(column) for column in zip(*stones, strict=True))
    rows = await db.fetch(
        """INSERT INTO mesh_tombstone (hash, kind, case_id, at)
           SELECT * FROM unnest($1::bytea[], $2::text[], $3::uuid[], $4::timestamptz[]) ORDER BY 1
           ON CONFLICT (hash) DO NOTHING RETURNING hash""",
        hashes, kinds, cases, ats,
    )  # fmt: skip
    return len(rows)


async def erased(db: Connection, hashes: Sequence[bytes]) -> set[bytes]:
    """Which of these subjects are erased."""
    return {r["hash"] for r in await db.fetch("SELECT hash FROM mesh_tombstone WHERE hash = ANY($1)", hashes)}


async def unapplied(db: Connection) -> dict[bytes, str]:
    """Tombstones whose rows in this database have not been treated yet, each with its case."""
    rows = await db.fetch("SELECT hash, case_id::text AS case_id FROM mesh_tombstone WHERE NOT applied")
    return {row["hash"]: row["case_id"] for row in rows}


async def set_applied(db: Connection, hashes: Collection[bytes]) -> None:
    """These subjects' rows have been treated."""
    await db.execute("UPDATE mesh_tombstone SET applied = true WHERE hash = ANY($1) AND NOT applied", list(hashes))


async def forget_tombstones(db: Connection, before: datetime, limit: int) -> int:
    """Ends tombstones of erasures that were confirmed before `before`: no copy can bring their subjects back any more."""
    rows = await db.fetch(
        """DELETE FROM mesh_tombstone WHERE hash IN (SELECT hash FROM mesh_tombstone WHERE at < $1 AND applied LIMIT $2)
           RETURNING hash""",
        before, limit,
    )  # fmt: skip
    return len(rows)


async def declare(db: Connection, columns: Sequence[tuple[Any, ...]], map_version: str) -> None:
    """Writes down what the code declares of every column; replicas do it one after the other."""
    await db.execute("SELECT pg_advisory_xact_lock(1867, 6)")
    if await db.fetchval("SELECT EXISTS (SELECT FROM mesh_data_map WHERE map_version = $1)", map_version):
        return
    await db.execute("DELETE FROM mesh_data_map")
    await db.executemany(
        """INSERT INTO mesh_data_map (table_name, column_name, category, use, on_erasure, ground, period_days, map_version)
           VALUES ($1, $2, $3, $4, $5, $6, $7, $8)""",
        [(*column, map_version) for column in columns],
    )


# --- orders ------------------------------------------------------------------------------------------------------


Order: TypeAlias = tuple[str, int, str, str, Any, datetime]
"""(case, epoch, scope, sealed subjects, offsets to wait for, confirmed at)"""


async def add_orders(db: Connection, orders: Sequence[Order], now: datetime) -> set[tuple[str, int]]:
    """Notes orders to erase; returns (case, epoch) of those that were not known."""
    columns = [list(column) for column in zip(*orders, strict=True)]
    rows = await db.fetch(
        """INSERT INTO mesh_erasure (case_id, epoch, scope, sealed, after, confirmed_at, ordered_at)
           SELECT *, $7 FROM unnest($1::uuid[], $2::int[], $3::text[], $4::text[], $5::jsonb[], $6::timestamptz[])
           ON CONFLICT DO NOTHING RETURNING case_id::text AS case_id, epoch""",
        *columns, now,
    )  # fmt: skip
    return {(row["case_id"], row["epoch"]) for row in rows}


async def receipts(db: Connection, keys: Sequence[tuple[str, int]]) -> dict[tuple[str, int], Any]:
    """What was answered to the named orders, as far as it was."""
    rows = await db.fetch(
        """SELECT case_id::text AS case_id, epoch, receipt
           FROM mesh_erasure JOIN unnest($1::uuid[], $2::int[]) AS k (c, e) ON case_id = c AND epoch = e
           WHERE receipt IS NOT NULL""",
        [case for case, _ in keys], [epoch for _, epoch in keys],
    )  # fmt: skip
    return {(row["case_id"], row["epoch"]): row["receipt"] for row in rows}


async def waiting_orders(db: Connection, limit: int) -> list[Mapping[str, Any]]:
    """Orders that are not carried out yet, oldest first."""
    return list(
        await db.fetch(
            """SELECT case_id::text AS case_id, epoch, scope, sealed, after, confirmed_at FROM mesh_erasure
               WHERE done_at IS NULL ORDER BY ordered_at, case_id, epoch LIMIT $1""",
            limit,
        )
    )


async def orders(db: Connection, keys: Sequence[tuple[str, int]]) -> list[Mapping[str, Any]]:
    """The named orders that are still to be carried out."""
    return list(
        await db.fetch(
            """SELECT case_id::text AS case_id, epoch, scope, sealed, after, confirmed_at
               FROM mesh_erasure JOIN unnest($1::uuid[], $2::int[]) AS k (c, e) ON case_id = c AND epoch = e
               WHERE done_at IS NULL ORDER BY ordered_at, case_id, epoch""",
            [case for case, _ in keys], [epoch for _, epoch in keys],
        )
    )  # fmt: skip


async def forget_orders(db: Connection, before: datetime) -> None:
    """Ends what is known of orders whose erasure was confirmed before `before`."""
    await db.execute("DELETE FROM mesh_erasure WHERE confirmed_at < $1 AND done_at IS NOT NULL", before)


async def finish_orders(db: Connection, receipts: Sequence[tuple[str, int, Any]], now: datetime) -> None:
    """Keeps each receipt, (case, epoch, receipt), and forgets who it was about."""
    await db.executemany(
        """UPDATE mesh_erasure SET receipt = $3, done_at = $4, sealed = NULL WHERE case_id = $1 AND epoch = $2""",
        [(case, epoch, receipt, now) for case, epoch, receipt in receipts],
    )


async def any_waiting(db: Connection) -> bool:
    """Whether an order is to be carried out."""
    return bool(await db.fetchval("SELECT EXISTS (SELECT FROM mesh_erasure WHERE done_at IS NULL)"))


# --- what the maps say about tables ------------------------------------------------------------------------------


class Extent(NamedTuple):
    """One physical table (a partition, or a table without any) and its size in pages."""

    table: str
    relation: str
    blocks: int


async def extents(db: Connection, tables: Sequence[str]) -> list[Extent]:
    """The physical tables behind `tables` that hold anything, in the order of `tables`."""
    rows = await db.fetch(
        """SELECT t.name, c.relname, (s.bytes / current_setting('block_size')::bigint)::bigint AS blocks
           FROM unnest($1::text[]) WITH ORDINALITY AS t (name, n)
           CROSS JOIN LATERAL (SELECT t.name::regclass::oid UNION SELECT relid FROM pg_partition_tree(t.name::regclass))
             AS p (oid)
           JOIN pg_class c ON c.oid = p.oid AND c.relkind = 'r'
           CROSS JOIN LATERAL (SELECT pg_relation_size(c.oid) AS bytes) AS s
           WHERE s.bytes > 0 ORDER BY t.n, c.relname""",
        list(tables),
    )
    return [Extent(*row) for row in rows]


class Slice(NamedTuple):
    """Pages of one physical table: from `first` to `after`, excluded; all of it when `after` is None."""

    relation: str
    first: int
    after: int | None

    @property
    def condition(self) -> str:
        """The slice as a condition on the row `t`."""
        if self.after is None:
            return "true"
        return f"t.ctid >= '({self.first},0)'::tid AND t.ctid < '({self.after},0)'::tid"


_MANY = 2**31
"""More pages than a table has: a last slice has no end, so that pages that were added meanwhile are in it."""


async def slices(db: Connection, position: MutableMapping[str, Any]) -> AsyncIterator[tuple[str, Slice]]:
    """(table, slice) of the next pages, as many as one transaction should go over.

    `position`: `rest`, [table, physical table, its pages] still to be gone over, and `block`, where in the first of them;
    both are moved on behind each slice. A partition that was dropped meanwhile, with all that was in it, is passed.
    """
    rest, budget = position["rest"], BLOCKS
    while rest and budget > 0:
        table, relation, blocks = rest[0]
        first, after = position["block"], position["block"] + budget
        last = after >= blocks
        if await still_there(db, relation):
            whole = first == 0 and last
            yield table, Slice(relation, first, None if whole else (_MANY if last else after))
            budget -= max(1, min(blocks - first, budget))
        else:
            last = True
        if last:
            rest.pop(0)
        position["block"] = 0 if last else after


def _owners(rows: Rows, subjects: Mapping[str, Sequence[str]]) -> tuple[list[str], str, list[list[str]]]:
    """(kinds, the condition that a row has one of these owners, its arguments)."""
    kinds = [kind for kind in rows.owners if subjects.get(kind)]
    terms = [f"{rows.owners[kind]} = ANY(${n})" for n, kind in enumerate(kinds, 1)]
    return kinds, " OR ".join(terms), [list(subjects[kind]) for kind in kinds]


async def delete_rows(
    db: Connection, rows: Rows, piece: Slice, subjects: Mapping[str, Sequence[str]]
) -> dict[tuple[str, str], int]:
    """Deletes the rows of these owners from a slice; returns how many went, by one of their owners."""
    kinds, condition, arguments = _owners(rows, subjects)
    if not kinds:
        return {}
    found = ", ".join(f"({rows.owners[kind]})::text AS {kind}" for kind in kinds)
    if rows.through is not None:
        column, other, key = rows.through
        source = (
            f"{piece.relation} t USING {other} o WHERE t.{column} = o.{key} AND ({condition}) AND {piece.condition}"
        )
    else:
        source = f"{piece.relation} t WHERE ({condition}) AND {piece.condition}"
    names = ", ".join(kinds)
    statement = (
        f"WITH gone AS (DELETE FROM {source} RETURNING {found}) "  # noqa: S608 -- names of the maps alone
        f"SELECT {names}, count(*) AS n FROM gone GROUP BY {names}"
    )
    return _by_owner(await db.fetch(statement, *arguments), kinds, subjects)


async def change_rows(
    db: Connection, rows: Rows, piece: Slice, subjects: Mapping[str, Sequence[str]], values: Mapping[str, str | None]
) -> dict[tuple[str, str], int]:
    """Puts `values` into the rows of these owners; returns how many were changed, by one of their owners."""
    kinds, condition, arguments = _owners(rows, subjects)
    if not kinds:
        return {}
    found = ", ".join(f"({rows.owners[kind]})::text AS {kind}" for kind in kinds)
    sets = ", ".join(f"{column} = ${n}" for n, column in enumerate(values, len(arguments) + 1))
    where = f"WHERE ({condition}) AND {piece.condition}"
    # Whose a row is has to be read before: the column that says so may be among those that change.
    statement = (
        f"WITH mine AS (SELECT {found} FROM {piece.relation} t {where} FOR UPDATE) "  # noqa: S608
        f"SELECT {', '.join(kinds)}, count(*) AS n FROM mine GROUP BY {', '.join(kinds)}"
    )
    counts = _by_owner(await db.fetch(statement, *arguments), kinds, subjects)
    if counts:
        await db.execute(f"UPDATE {piece.relation} t SET {sets} {where}", *arguments, *values.values())  # noqa: S608
    return counts


def _by_owner(
    found: Sequence[Any], kinds: Sequence[str], subjects: Mapping[str, Sequence[str]]
) -> dict[tuple[str, str], int]:
    wanted = {kind: set(subjects[kind]) for kind in kinds}
    counts: dict[tuple[str, str], int] = {}
    for row in found:
        owner = next((kind, row[kind]) for kind in kinds if row[kind] in wanted[kind])
        counts[owner] = counts.get(owner, 0) + row["n"]
    return counts


async def blank_traces(db: Connection, column: str, piece: Slice, pseudonyms: Mapping[str, str]) -> dict[str, int]:
    """Replaces ids in a column by pseudonyms; returns how many rows named each pseudonym's id."""
    found = await db.fetch(
        f"""WITH changed AS (
                UPDATE {piece.relation} t SET {column} = m.pseudonym FROM unnest($1::text[], $2::text[]) AS m (id, pseudonym)
                WHERE t.{column} = m.id AND {piece.condition} RETURNING m.id)
            SELECT id, count(*) AS n FROM changed GROUP BY id""",  # noqa: S608 -- names of the maps alone
        list(pseudonyms), list(pseudonyms.values()),
    )  # fmt: skip
    return {row["id"]: row["n"] for row in found}


async def owners_of(db: Connection, rows: Rows, kind: str) -> list[str]:
    """Every id of a kind that owns rows of a table."""
    source = rows.table if rows.through is None else rows.through[1]
    statement = f"SELECT DISTINCT ({rows.owners[kind]})::text FROM {source} t WHERE ({rows.owners[kind]}) IS NOT NULL"  # noqa: S608
    return [row[0] for row in await db.fetch(statement)]


async def traced(db: Connection, table: str, column: str) -> list[str]:
    """Every id that a column of a table names."""
    statement = f"SELECT DISTINCT {column}::text FROM {table} WHERE {column} IS NOT NULL"  # noqa: S608 -- names of the maps
    return [row[0] for row in await db.fetch(statement)]


async def delete_expired(db: Connection, rows: Rows, now: datetime, limit: int) -> list[tuple[Mapping[str, str], int]]:
    """Deletes up to `limit` rows of a table whose time is over; returns how many went, by the values that the names of
    its counters want."""
    wanted = sorted({name for pattern in rows.moves or () for _, name, _, _ in Formatter().parse(pattern) if name})
    found = "".join(f"({name})::text AS {name}, " for name in wanted)
    group = f" GROUP BY {', '.join(wanted)}" if wanted else " HAVING count(*) > 0"
    names = "".join(f"{name}, " for name in wanted)
    statement = (
        f"WITH over AS (SELECT ctid FROM {rows.table} WHERE ({rows.expires}) <= $1::timestamptz LIMIT {limit:d} "  # noqa: S608
        f"FOR UPDATE SKIP LOCKED), gone AS (DELETE FROM {rows.table} WHERE ctid = ANY(ARRAY(SELECT ctid FROM over)) "
        f"RETURNING {found}1) SELECT {names}count(*) AS n FROM gone{group}"
    )
    return [({name: row[name] for name in wanted}, row["n"]) for row in await db.fetch(statement, now)]


async def still_there(db: Connection, relation: str) -> bool:
    """Whether a physical table is there; keeps a partition from being dropped until this transaction ends."""
    if not await db.fetchval("SELECT to_regclass($1) IS NOT NULL", relation):
        return False
    try:
        async with db.transaction():
            await db.execute(f"LOCK TABLE {relation} IN ACCESS SHARE MODE")
    except UndefinedTableError:
        return False
    return True


async def one_at_a_time(db: Connection) -> None:
    """One replica looks at what a restore brought back; the others wait for it."""
    await db.execute("SELECT pg_advisory_xact_lock(1867, 5)")


async def waiting_payloads(db: Connection, after: int, limit: int) -> list[Mapping[str, Any]]:
    """Dead letters from id `after` on, with what they hold."""
    return list(
        await db.fetch(
            "SELECT id, topic, stage, key, payload FROM mesh_dead_letter WHERE id > $1 ORDER BY id LIMIT $2",
            after, limit,
        )
    )  # fmt: skip


async def parked_payloads(db: Connection, after: int, limit: int) -> list[Mapping[str, Any]]:
    """Parked records from id `after` on, with what they hold."""
    return list(
        await db.fetch(
            "SELECT id, topic, key, payload FROM mesh_parked WHERE id > $1 ORDER BY id LIMIT $2", after, limit
        )
    )


async def delete_letters(db: Connection, ids: Collection[int]) -> list[Mapping[str, Any]]:
    """Deletes dead letters; returns what they counted as."""
    return list(
        await db.fetch("DELETE FROM mesh_dead_letter WHERE id = ANY($1) RETURNING id, topic, counted, state", list(ids))
    )


async def delete_parked(db: Connection, ids: Collection[int]) -> list[Mapping[str, Any]]:
    """Deletes parked records."""
    return list(await db.fetch("DELETE FROM mesh_parked WHERE id = ANY($1) RETURNING id, topic", list(ids)))


# --- holds -------------------------------------------------------------------------------------------------------


async def rows_as_json(
    db: Connection, rows: Rows, piece: Slice, subjects: Mapping[str, Sequence[str]], limit: int | None = None
) -> list[str]:
    """The rows of these owners in a slice (all of them without a limit), each as JSON."""
    kinds, condition, arguments = _owners(rows, subjects)
    if not kinds:
        return []
    statement = f"SELECT to_jsonb(t)::text FROM {piece.relation} t WHERE {_mine(rows, condition)} AND {piece.condition}"  # noqa: S608
    if limit is not None:
        statement += f" LIMIT {limit:d}"
    return [row[0] for row in await db.fetch(statement, *arguments)]


class Typed(NamedTuple):
    """A column as PostgreSQL has it."""

    type: str
    nullable: bool


async def types_of(db: Connection, tables: Sequence[str]) -> dict[str, dict[str, Typed]]:
    """The columns of each table, with their types."""
    rows = await db.fetch(
        """SELECT t.name, a.attname, format_type(a.atttypid, NULL) AS type, NOT a.attnotnull AS nullable
           FROM unnest($1::text[]) AS t (name)
           JOIN pg_attribute a ON a.attrelid = t.name::regclass AND a.attnum > 0 AND NOT a.attisdropped
           ORDER BY t.name, a.attname""",
        list(tables),
    )
    found: dict[str, dict[str, Typed]] = {table: {} for table in tables}
    for row in rows:
        found[row["name"]][row["attname"]] = Typed(row["type"], row["nullable"])
    return found


Span: TypeAlias = tuple[datetime | None, datetime | None]
"""From the first instant on, and before the second; None is no end."""


async def shown_rows(
    db: Connection,
    rows: Rows,
    piece: Slice,
    subjects: Mapping[str, Sequence[str]],
    columns: Mapping[str, str],
    span: Span = (None, None),
    limit: int | None = None,
) -> tuple[str, int]:
    """(JSON Lines, how many) of the rows of these owners in a slice: `columns` alone, name -> expression over the row `t`.

    In an expression `{ids}` stands for the ids of the subjects. PostgreSQL writes the lines: a row that nothing has to be
    done to costs this process nothing but its bytes.
    """
    kinds, condition, arguments = _owners(rows, subjects)
    if not kinds or not columns:
        return "", 0
    everybody = sorted({value for values in subjects.values() for value in values})
    values = [*arguments, everybody, *span]
    ids, since, until = (f"${n}" for n in range(len(values) - 2, len(values) + 1))
    shown = ", ".join(f"{text.format(ids=f'{ids}::text[]')} AS {name}" for name, text in columns.items())
    # Asked for in any case, or a parameter would have no type.
    within = f"cardinality({ids}::text[]) >= 0 AND ({since}::timestamptz IS NULL OR {{when}} >= {since})"
    within += f" AND ({until}::timestamptz IS NULL OR {{when}} < {until})"
    within = within.format(when=f"({rows.when or 'NULL::timestamptz'})")
    most = "" if limit is None else f" LIMIT {limit:d}"
    statement = (
        "SELECT coalesce(string_agg(line, E'\\n'), '') AS lines, count(*) AS n FROM ("  # noqa: S608 -- names of the maps alone
        f"SELECT row_to_json(x)::text AS line FROM (SELECT {shown} FROM {piece.relation} t "
        f"WHERE {_mine(rows, condition)} AND {piece.condition} AND {within}{most}) AS x) AS y"
    )
    row = await db.fetchrow(statement, *values)
    assert row is not None
    return row["lines"], row["n"]


async def sealed_cells(
    db: Connection, rows: Rows, piece: Slice, subjects: Mapping[str, Sequence[str]], column: str
) -> list[tuple[str, str | None, str]]:
    """(place, value or None, the row as JSON) of a sealed column in the rows of these owners, locked."""
    kinds, condition, arguments = _owners(rows, subjects)
    if not kinds:
        return []
    found = await db.fetch(
        f"SELECT t.ctid::text AS place, t.{column} AS value, to_jsonb(t)::text AS row FROM {piece.relation} t "  # noqa: S608
        f"WHERE {_mine(rows, condition)} AND {piece.condition} FOR UPDATE",
        *arguments,
    )
    return [(row["place"], row["value"], row["row"]) for row in found]


async def put_cells(db: Connection, piece: Slice, column: str, cells: Sequence[tuple[str, str]]) -> None:
    """Puts (place, value) into a column; the rows were locked in this transaction."""
    await db.executemany(f"UPDATE {piece.relation} SET {column} = $2 WHERE ctid = $1::text::tid", cells)  # noqa: S608


def _mine(rows: Rows, condition: str) -> str:
    """The condition that a row `t` has one of the owners that `condition` names, directly or through another table."""
    if rows.through is None:
        return f"({condition})"
    column, other, key = rows.through
    return f"t.{column} IN (SELECT o.{key} FROM {other} o WHERE {condition})"  # noqa: S608 -- names of the maps alone


# --- errands -----------------------------------------------------------------------------------------------------


Errand: TypeAlias = tuple[str, int, str, str, str | None, Any]
"""(case, epoch, action, sealed subjects, sealed value, arguments)"""


async def add_errands(db: Connection, errands: Sequence[Errand], now: datetime) -> set[tuple[str, int]]:
    """Notes errands; returns (case, epoch) of those that were not known."""
    columns = [list(column) for column in zip(*errands, strict=True)]
    rows = await db.fetch(
        """INSERT INTO mesh_errand (case_id, epoch, action, sealed, value, arguments, asked_at)
           SELECT *, $7 FROM unnest($1::uuid[], $2::int[], $3::text[], $4::text[], $5::text[], $6::jsonb[])
           ON CONFLICT DO NOTHING RETURNING case_id::text AS case_id, epoch""",
        *columns, now,
    )  # fmt: skip
    return {(row["case_id"], row["epoch"]) for row in rows}


async def errand(db: Connection, case: str, epoch: int) -> Mapping[str, Any] | None:
    """One errand."""
    return await db.fetchrow(
        """SELECT case_id::text AS case_id, epoch, action, sealed, value, arguments, receipt FROM mesh_errand
           WHERE case_id = $1 AND epoch = $2""",
        case, epoch,
    )  # fmt: skip


async def next_errand(db: Connection, *, copies: bool) -> tuple[str, int] | None:
    """(case, epoch) of the oldest errand that waits, with or without `copies`."""
    row = await db.fetchrow(
        """SELECT case_id::text AS case_id, epoch FROM mesh_errand WHERE done_at IS NULL AND ($1 OR action <> 'export')
           ORDER BY asked_at, case_id, epoch LIMIT 1""",
        copies,
    )
    return None if row is None else (row["case_id"], row["epoch"])


async def finish_errand(db: Connection, case: str, epoch: int, receipt: Any, now: datetime) -> None:
    """Keeps the receipt, and forgets whom it was about."""
    await db.execute(
        """UPDATE mesh_errand SET receipt = $3, done_at = $4, sealed = NULL, value = NULL
           WHERE case_id = $1 AND epoch = $2""",
        case, epoch, receipt, now,
    )  # fmt: skip


async def note_export(db: Connection, hashes: Collection[bytes], case: str, epoch: int, now: datetime) -> None:
    """There is going to be a copy of what these subjects have here."""
    await db.execute(
        """INSERT INTO mesh_export (hash, case_id, epoch, made_at) SELECT h, $2, $3, $4 FROM unnest($1::bytea[]) AS h
           ON CONFLICT DO NOTHING""",
        list(hashes), case, epoch, now,
    )  # fmt: skip


async def exports(db: Connection, hashes: Collection[bytes], before: datetime | None = None) -> set[tuple[str, int]]:
    """(case, epoch) of the copies of these subjects; and with `before` of those that were made before it, or are of anybody
    who is erased."""
    rows = await db.fetch(
        """SELECT DISTINCT case_id::text AS case_id, epoch FROM mesh_export
           WHERE hash = ANY($1) OR made_at < $2 OR ($2 IS NOT NULL AND hash IN (SELECT hash FROM mesh_tombstone))""",
        list(hashes), before,
    )  # fmt: skip
    return {(row["case_id"], row["epoch"]) for row in rows}


async def forget_export(db: Connection, case: str, epoch: int) -> None:
    """A copy is gone."""
    await db.execute("DELETE FROM mesh_export WHERE case_id = $1 AND epoch = $2", case, epoch)


async def all_exports(db: Connection) -> set[tuple[str, int]]:
    """(case, epoch) of every copy that is known."""
    return {tuple(row) for row in await db.fetch("SELECT DISTINCT case_id::text, epoch FROM mesh_export")}


async def waiting_copies(db: Connection) -> set[tuple[str, int]]:
    """(case, epoch) of the copies that are asked for and not made."""
    rows = await db.fetch("SELECT case_id::text, epoch FROM mesh_errand WHERE done_at IS NULL AND action = 'export'")
    return {tuple(row) for row in rows}


async def forget_errands(db: Connection, before: datetime) -> None:
    """Ends what is known of errands that were asked for before `before`, done or not."""
    await db.execute("DELETE FROM mesh_errand WHERE asked_at < $1", before)


async def hold(
    db: Connection, hold: str, table: str, subject_hash: bytes, sealed: Sequence[str], now: datetime
) -> None:
    """Keeps sealed copies of rows."""
    await db.executemany(
        """INSERT INTO mesh_held_record (hold, table_name, subject_hash, sealed, placed_at)
           VALUES ($1, $2, $3, $4, $5) ON CONFLICT DO NOTHING""",
        [(hold, table, subject_hash, text, now) for text in sealed],
    )


async def held(db: Connection, hold: str) -> dict[str, int]:
    """How many records a hold keeps, by table."""
    found = await db.fetch(
        "SELECT table_name, count(*) AS n FROM mesh_held_record WHERE hold = $1 GROUP BY table_name", hold
    )
    return {row["table_name"]: row["n"] for row in found}


async def release(db: Connection, hold: str) -> dict[str, int]:
    """Ends a hold's copies; returns how many went, by table."""
    found = await db.fetch(
        """WITH gone AS (DELETE FROM mesh_held_record WHERE hold = $1 RETURNING table_name)
           SELECT table_name, count(*) AS n FROM gone GROUP BY table_name""",
        hold,
    )
    return {row["table_name"]: row["n"] for row in found}
