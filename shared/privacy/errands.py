"""What a holder is asked about somebody without erasing: what it has (`discover`), a copy of it (`export`), a correction
(`rectify`). From the data map alone, in chunks; each answered with a receipt, once.

A copy is JSON Lines, a line for each row: the table and its personal columns, with what is sealed opened. It goes to the
blob store in parts, each under the case's key, named `case/epoch/holder/part`: destroying the key ends every copy of it.
"""

from __future__ import annotations

import contextlib
import json
import logging
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from datetime import datetime, timedelta
from decimal import Decimal
from typing import Any

from shared.contract.units import Subject
from shared.mesh import Done, Task, Transaction
from shared.privacy import store
from shared.privacy.blobs import Blobs, BlobsAway, open_blobs
from shared.privacy.data_map import Holding, Rows
from shared.privacy.erasure import by_kind
from shared.privacy.tombstones import Tombstones
from shared.privacy.vault import Key, Shredded, Tampered, key_id_of, open_value, seal_value, vault_of

log = logging.getLogger("steward.privacy")

ERRAND = "mesh-errand"
WHERE = "case.export"
VALUE = "case.value"
"""Where parts of a copy, and the value of a correction, are sealed for."""
EXPORT_LIFE = timedelta(days=7)
"""A copy that nobody has fetched by then is gone."""
_FORGOTTEN = timedelta(days=30)
_DID: Mapping[str, str] = {"discover": "found", "export": "exported", "rectify": "corrected"}
# Sealed, and not declared to be opened for anybody: codes, tokens.
_SEALED = ("v1:", "sealed:v1:")


class Errands:
    """One service's. `publish(tx, case, epoch, receipt, action, arguments)` gives a receipt."""

    def __init__(self, service: str, holding: Holding, tombstones: Tombstones, publish: Callable[..., None]) -> None:
        self._service, self._holding, self._tombstones, self._publish = service, holding, tombstones, publish
        self._rows = {rows.table: rows for rows in holding.rows if rows.owners}
        self._personal = {
            table: {c.column for c in holding.columns if c.table == table and c.personal} for table in self._rows
        }
        self._blobs: Blobs | None = None

    def open(self, where: str | None) -> None:
        """Where copies go. An installation without a blob store makes none: that is said when one is asked for. Raises
        `Misconfigured`."""
        self._blobs = open_blobs(where) if where else None

    async def note(self, orders: Sequence[Any], tx: Transaction) -> None:
        """Takes errands; one that is done is answered again."""
        asked = {(o.case, o.epoch): o for o in orders if o.sealed is not None}
        if not asked:
            return
        rows = [(o.case, o.epoch, o.action, o.sealed, o.value, dict(o.arguments)) for o in asked.values()]
        new = await store.add_errands(tx.db, rows, tx.now)
        if self._blobs is None and any(order.action == "export" for order in asked.values()):
            log.error("a copy is asked for, and there is no place for it: set STEWARD_BLOBS; until then it waits")
        for case, epoch in asked.keys() - new:
            known = await store.errand(tx.db, case, epoch)
            if known is not None and known["receipt"] is not None:
                self._publish(tx, case, epoch, known["receipt"], known["action"], known["arguments"])
        if new:
            await tx.enqueue(ERRAND, "pass", {})

    async def look(self, tx: Transaction) -> None:
        """Sees that an errand that nobody works at is worked at."""
        if await self._next(tx) is not None:
            await tx.enqueue(ERRAND, "pass", {})

    async def run(self, task: Task, tx: Transaction) -> Any:
        """One chunk of the oldest errand."""
        if task.position is None:
            return await self._begin(tx)
        position = dict(task.position)
        case, epoch = position["case"], position["epoch"]
        order = await store.errand(tx.db, case, epoch)
        if order is None:
            return None  # its time was over meanwhile
        who = await self._whom(order, tx)
        if who is None:
            return await self._over(order, tx)
        if position["rest"]:
            await self._advance(position, order, who, tx)
            return position
        treated = [
            {
                "table": table, "action": _DID[order["action"]], "columns": sorted(self._personal[table]),
                "rows": position["counts"].get(table, 0),
            }
            for table in self._rows
        ]  # fmt: skip
        await self._finish(order, {"treated": treated}, tx)
        return None

    async def forget(self, hashes: Iterable[bytes], tx: Transaction, *, before: datetime | None = None) -> None:
        """Copies of what these subjects have here go, with an erasure or (`before`) with their time.

        A store that is away stops no erasure: the copy is tried again by the hour, and until it is gone the sweep finds it.
        """
        for case, epoch in await store.exports(tx.db, list(hashes), before):
            await self._drop(case, epoch, tx)

    async def end(self, now: datetime, tx: Transaction) -> None:
        """Ends copies that nobody has fetched, and what is known of errands that are long done.

        A copy of which this database knows nothing goes as well: it was restored from before, and an erasure would not find
        the copy. So do, with an empty receipt, wishes for copies that wait for a place while their subjects are erased.
        """
        await self.forget([], tx, before=now - EXPORT_LIFE)
        await store.forget_errands(tx.db, now - _FORGOTTEN)
        for case, epoch in await store.waiting_copies(tx.db) if self._blobs is None else ():
            order = await store.errand(tx.db, case, epoch)
            if order is not None and await self._whom(order, tx) is None:
                await self._over(order, tx)
        if self._blobs is not None:
            with contextlib.suppress(BlobsAway):
                # In this order: what has a part was noted before.
                there = {tuple(name.split("/")[:3]) for name in await self._blobs.names()}
                known = {(case, str(epoch), self._service) for case, epoch in await store.all_exports(tx.db)}
                for copy in sorted(there - known):
                    if copy[2:] == (self._service,):
                        await self._delete(*copy[:2])

    # --- inside ------------------------------------------------------------------------------------------------------

    async def _begin(self, tx: Transaction) -> Any:
        found = await self._next(tx)
        if found is None:
            return Done()
        case, epoch = found
        order = await store.errand(tx.db, case, epoch)
        assert order is not None
        who = await self._whom(order, tx)
        if who is None:
            return await self._over(order, tx)
        if order["action"] == "export":
            await store.note_export(tx.db, vault_of(tx).hasher.hashes(who), case, epoch, tx.now)
        extents = await store.extents(tx.db, list(self._rows))
        rest = [[e.table, e.relation, e.blocks] for e in extents]
        return {"case": case, "epoch": epoch, "rest": rest, "block": 0, "counts": {}, "parts": 0}

    async def _next(self, tx: Transaction) -> tuple[str, int] | None:
        """The oldest errand that can be run: a copy without a place for it holds up nobody."""
        return await store.next_errand(tx.db, copies=self._blobs is not None)

    async def _whom(self, order: Mapping[str, Any], tx: Transaction) -> list[Subject] | None:
        """Whom it is about; None when they are erased, or the case is over: nothing is made of them any more."""
        try:
            found = (await vault_of(tx).open_cases([(order["case_id"], order["sealed"])])).get(order["case_id"])
        except (Tampered, ValueError):
            log.warning("an errand names nobody: there is nothing to do")
            return None
        return None if found is None or await self._tombstones.erased(found, tx) else found

    async def _over(self, order: Mapping[str, Any], tx: Transaction) -> None:
        if order["action"] == "export":
            copy = (order["case_id"], order["epoch"])
            if copy in await store.all_exports(tx.db):
                await self._drop(*copy, tx)
        await self._finish(order, {"treated": []}, tx)

    async def _drop(self, case: str, epoch: int, tx: Transaction) -> None:
        try:
            await self._delete(case, epoch)
        except BlobsAway as error:
            log.error("a copy of somebody who is to be forgotten stays for now: %s", error)
        else:
            await store.forget_export(tx.db, case, epoch)

    async def _delete(self, case: str, epoch: int | str) -> None:
        if self._blobs is None:
            raise BlobsAway("STEWARD_BLOBS is not set")
        await self._blobs.delete(f"{case}/{epoch}/{self._service}")

    async def _finish(self, order: Mapping[str, Any], receipt: Mapping[str, Any], tx: Transaction) -> None:
        await store.finish_errand(tx.db, order["case_id"], order["epoch"], receipt, tx.now)
        self._publish(tx, order["case_id"], order["epoch"], receipt, order["action"], order["arguments"])
        tx.count(f"errands_{order['action']}")

    async def _advance(
        self, position: dict[str, Any], order: Mapping[str, Any], who: Sequence[Subject], tx: Transaction
    ) -> None:
        """The next pages, as many as one transaction should."""
        subjects, lines = by_kind(who), []
        async for table, piece in store.slices(tx.db, position):
            told = await self._treat(order, self._rows[table], piece, subjects, tx)
            position["counts"][table] = position["counts"].get(table, 0) + len(told)
            lines += told
        if lines and order["action"] == "export":
            if self._blobs is None:
                raise BlobsAway("STEWARD_BLOBS is not set")
            key = await vault_of(tx).case_key(order["case_id"])
            name = f"{order['case_id']}/{order['epoch']}/{self._service}/{position['parts']:06d}"
            await self._blobs.put(name, seal_value(key, "\n".join(lines), where=WHERE).encode())
            position["parts"] += 1

    async def _treat(
        self,
        order: Mapping[str, Any],
        rows: Rows,
        piece: store.Slice,
        subjects: Mapping[str, Sequence[str]],
        tx: Transaction,
    ) -> list[str]:
        if order["action"] == "rectify":
            arguments = order["arguments"]
            mine = arguments.get("table") == rows.table and arguments.get("column") in rows.corrects
            return await self._correct(order, rows, piece, subjects, tx) if mine else []
        texts = await store.rows_as_json(tx.db, rows, piece, subjects)
        if order["action"] == "discover":
            return texts
        return await self._readable(rows, texts, {value for values in subjects.values() for value in values}, tx)

    async def _readable(self, rows: Rows, texts: Sequence[str], who: Collection[str], tx: Transaction) -> list[str]:
        """Rows as their person may read them: personal columns alone, opened. Ids of others are left out, or a copy would
        outlive *their* erasure."""
        ids = {column for column in (*rows.owners.values(), *rows.traces.values()) if column.isidentifier()}
        found = [json.loads(text, parse_float=Decimal) for text in texts]
        ours = {v for row in found for c, w in rows.sealed.items() if w and (v := row[c]) is not None}
        theirs = [row[c] for row in found for c, w in rows.sealed.items() if not w and row[c] is not None]
        keys = await _keys(ours, tx)
        opens = await vault_of(tx).opener(theirs) if theirs else None
        lines = []
        for row in found:
            shown: dict[str, Any] = {"table": rows.table}
            for column in sorted(self._personal[rows.table]):
                value = row[column]
                if column in ids and value not in who:
                    value = None
                if column in rows.sealed and value is not None:
                    try:
                        where = rows.sealed[column]
                        if where:
                            key = keys.get(value)
                            value = None if key is None else open_value(key, value, where=where.format(**row))
                        elif opens is not None:
                            value = opens(value)
                    except (Shredded, Tampered):
                        value = None
                elif isinstance(value, str) and value.startswith(_SEALED):
                    continue
                shown[column] = value
            lines.append(json.dumps(shown, default=str, ensure_ascii=False))
        return lines

    async def _correct(
        self,
        order: Mapping[str, Any],
        rows: Rows,
        piece: store.Slice,
        subjects: Mapping[str, Sequence[str]],
        tx: Transaction,
    ) -> list[str]:
        """Puts what is right in place of what was there, under the same key. Returns the places, as many as there are."""
        column = order["arguments"]["column"]
        key = await vault_of(tx).case_key(order["case_id"])
        try:
            text = open_value(key, order["value"] or "", where=VALUE)
        except (Shredded, Tampered):
            log.warning("what is right cannot be read: nothing is corrected")
            return []
        cells = await store.sealed_cells(tx.db, rows, piece, subjects, column)
        keys = await _keys([value for _, value, _ in cells], tx)
        right = [
            (place, seal_value(keys[value], text, where=rows.sealed[column].format(**json.loads(row))))
            for place, value, row in cells
            if value in keys
        ]
        await store.put_cells(tx.db, piece, column, right)
        return [place for place, _ in right]


async def _keys(values: Iterable[str], tx: Transaction) -> dict[str, Key]:
    """The keys of sealed values, by value; without those that are destroyed, or that no value names."""
    ids = {}
    for value in values:
        with contextlib.suppress(Tampered):
            ids[value] = key_id_of(value)
    found = await vault_of(tx).by_id(ids.values()) if ids else {}
    return {value: found[id] for value, id in ids.items() if id in found}
