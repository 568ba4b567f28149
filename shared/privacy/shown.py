"""Rows as their person may read them: personal columns alone, opened, without ids of others. For copies and for reads."""

from __future__ import annotations

import contextlib
import re
from collections.abc import Collection, Iterable, Mapping, Sequence
from datetime import timedelta
from decimal import Decimal
from string import Formatter
from typing import Any

import msgspec

from shared.mesh import Transaction
from shared.mesh.store import Connection
from shared.mesh.transaction import rfc3339
from shared.privacy import store
from shared.privacy.data_map import Column, Holding, Rows, longest
from shared.privacy.told import FORMAT, Told, ToldColumn, ToldTable
from shared.privacy.vault import Key, Shredded, Tampered, key_id_of, open_value, vault_of

_TEXTS = re.compile(r"text|character.*")
# Sealed, and not declared to be opened for anybody: codes, tokens.
_CODES = "CASE WHEN NOT starts_with(t.{0}, 'v1:') AND NOT starts_with(t.{0}, 'sealed:v1:') THEN t.{0} END"
# An id of somebody else would outlive *their* erasure in this copy.
_OWN = "CASE WHEN t.{0}::text = ANY({{ids}}) THEN t.{0} END"

_lines = msgspec.json.Decoder(float_hook=Decimal)
# Numbers stay numbers, digit by digit: PostgreSQL's numerics have no end that a float would keep.
_encoder = msgspec.json.Encoder(decimal_format="number")


class Shown:
    """One service's tables, as far as they hold something of somebody."""

    def __init__(self, holding: Holding) -> None:
        self._holding = holding
        self.rows: Mapping[str, Rows] = {rows.table: rows for rows in (*holding.rows, *holding.kept) if rows.owners}
        self.personal: Mapping[str, list[str]] = {
            table: sorted(c.column for c in holding.columns if c.table == table and c.personal) for table in self.rows
        }
        self._types: dict[str, dict[str, store.Typed]] = {}

    async def lines(
        self,
        table: str,
        piece: store.Slice,
        subjects: Mapping[str, Sequence[str]],
        tx: Transaction,
        span: store.Span = (None, None),
        limit: int | None = None,
    ) -> tuple[str, int]:
        """(JSON Lines, how many) of these subjects' rows in a slice of a table.

        A value that cannot be opened is null: its key is destroyed, or it is a code that is for no eyes.
        """
        rows = self.rows[table]
        columns = self._columns(rows, (await self._typed(tx.db))[table])
        text, count = await store.shown_rows(tx.db, rows, piece, subjects, columns, span, limit)
        if not text or not rows.sealed:
            return text, count
        found = _lines.decode_lines(text)
        opened = await self._opened(rows, found, tx)
        return b"\n".join(_encoder.encode(row) for row in opened).decode(), count

    async def described(
        self,
        tx: Transaction,
        counts: Mapping[str, int],
        parts: Mapping[str, int],
        left_out: Collection[str],
        span: store.Span,
    ) -> Told:
        """What a copy says of itself."""
        types = await self._typed(tx.db)
        tables = {
            table: ToldTable(
                counts.get(table, 0),
                parts.get(table, 0),
                "range" if table in left_out else None,
                tuple(self._described(column, types) for column in self._of(table)),
            )
            for table in self.rows
        }
        apart = sorted({c.table for c in self._holding.columns if c.personal} - set(self.rows))
        unlinked: dict[str, tuple[str, ...]] = {
            table: tuple(sorted({c.category for c in self._of(table)})) for table in apart
        }
        since, until = (None if end is None else rfc3339(end) for end in span)
        return Told(FORMAT, self._holding.holder, self._holding.version, tables, unlinked, since, until)

    # --- inside ------------------------------------------------------------------------------------------------------

    async def _typed(self, db: Connection) -> dict[str, dict[str, store.Typed]]:
        # Migrations come before everything else: what a process has seen once stays so.
        if not self._types:
            self._types = await store.types_of(db, list(self.rows))
        return self._types

    def _of(self, table: str) -> list[Column]:
        columns = (c for c in self._holding.columns if c.table == table and c.personal)
        return sorted(columns, key=lambda column: column.column)

    def _columns(self, rows: Rows, types: Mapping[str, store.Typed]) -> dict[str, str]:
        """name -> expression of each column that is read: the personal ones, and what sealed ones need to be opened."""
        found = {}
        for column in sorted({*self.personal[rows.table], *_needed(rows)}):
            if column in rows.sealed or column not in self.personal[rows.table]:
                found[column] = f"t.{column}"
            elif column in _ids(rows):
                found[column] = _OWN.format(column)
            elif _TEXTS.fullmatch(types[column].type):
                found[column] = _CODES.format(column)
            else:
                # A json that is not jsonb keeps its line breaks.
                found[column] = f"t.{column}::jsonb" if types[column].type == "json" else f"t.{column}"
        return found

    async def _opened(self, rows: Rows, found: Sequence[dict[str, Any]], tx: Transaction) -> list[dict[str, Any]]:
        ours = {v for row in found for c, w in rows.sealed.items() if w and (v := row[c]) is not None}
        theirs = [row[c] for row in found for c, w in rows.sealed.items() if not w and row[c] is not None]
        keys = await keys_of(ours, tx)
        opens = await vault_of(tx).opener(theirs) if theirs else None
        shown = []
        for row in found:
            opened = {}
            for column, where in rows.sealed.items():
                value = row[column]
                if value is not None:
                    try:
                        if where:
                            key = keys.get(value)
                            value = None if key is None else open_value(key, value, where=where.format(**row))
                        else:
                            value = None if opens is None else opens(value)
                    except (Shredded, Tampered):
                        value = None
                opened[column] = value
            whole = row | opened
            shown.append({column: whole[column] for column in self.personal[rows.table]})
        return shown

    def _described(self, column: Column, types: Mapping[str, Mapping[str, store.Typed]]) -> ToldColumn:
        rows, typed = self.rows[column.table], types[column.table][column.column]
        opened, hides = column.column in rows.sealed, column.column in _ids(rows)
        period = longest(column.period)
        return ToldColumn(
            name=column.column,
            type="text" if opened else typed.type,
            # What was opened may not open any more; ids of others and codes are left out.
            nullable=typed.nullable or opened or hides or _TEXTS.fullmatch(typed.type) is not None,
            hides_others=hides,
            category=column.category,
            use=column.use,
            ground=column.ground,
            clock_start=column.clock_start,
            period=column.period if isinstance(column.period, str) else None,
            days=None if period is None else -(-period // timedelta(days=1)),
            note=column.note,
        )


def _ids(rows: Rows) -> set[str]:
    return {column for column in (*rows.owners.values(), *rows.traces.values()) if column.isidentifier()}


def _needed(rows: Rows) -> set[str]:
    """Columns by which sealed values were sealed for their row."""
    return {name for where in rows.sealed.values() for _, name, _, _ in Formatter().parse(where) if name}


async def keys_of(values: Iterable[str], tx: Transaction) -> dict[str, Key]:
    """The keys of sealed values, by value; without those that are destroyed, or that no value names."""
    ids = {}
    for value in values:
        with contextlib.suppress(Tampered):
            ids[value] = key_id_of(value)
    found = await vault_of(tx).by_id(ids.values()) if ids else {}
    return {value: found[id] for value, id in ids.items() if id in found}
