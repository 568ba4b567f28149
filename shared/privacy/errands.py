"""What a holder is asked about somebody without erasing: what it has (`discover`), a copy of it (`export`), a correction
(`rectify`). From the data map alone, in chunks; each answered with a receipt, once.

A copy is JSON Lines, a line for each row: its personal columns, with what is sealed opened (`shown.py`). It goes to the blob
store in parts of one table each, under the case's key, named `case/epoch/holder/table/000000`: destroying the key ends every
copy of it. The part that is written last, `case/epoch/holder/_map/000000`, says what the others hold (`told.py`): with it
the copy is whole.
"""

from __future__ import annotations

import contextlib
import json
import logging
from collections.abc import Callable, Iterable, Mapping, Sequence
from datetime import datetime, timedelta
from typing import Any

import msgspec

from shared.contract.units import Subject
from shared.mesh import Done, Task, Transaction
from shared.privacy import store
from shared.privacy.blobs import Blobs, BlobsAway, in_time, open_blobs
from shared.privacy.data_map import Holding, Rows
from shared.privacy.erasure import by_kind
from shared.privacy.shown import Shown, keys_of
from shared.privacy.told import MAP
from shared.privacy.tombstones import Tombstones
from shared.privacy.vault import Shredded, Tampered, open_value, seal_value, vault_of

log = logging.getLogger("steward.privacy")

ERRAND = "mesh-errand"
WHERE = "case.export"
CONTENTS = "contents"
"""`only` of an order to copy: no rows, but what each table holds, why and how many."""
VALUE = "case.value"
"""Where parts of a copy, and the value of a correction, are sealed for."""
EXPORT_LIFE = timedelta(days=7)
"""A copy that nobody has fetched by then is gone."""
_FORGOTTEN = timedelta(days=30)
_DID: Mapping[str, str] = {"discover": "found", "export": "exported", "rectify": "corrected"}


class Errands:
    """One service's. `publish(tx, case, epoch, receipt, action, arguments)` gives a receipt."""

    def __init__(self, service: str, holding: Holding, tombstones: Tombstones, publish: Callable[..., None]) -> None:
        self._service, self._holding, self._tombstones, self._publish = service, holding, tombstones, publish
        self._shown = Shown(holding)
        self._rows, self._personal = self._shown.rows, self._shown.personal
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
        tables = self._asked(order)
        if order["action"] == "export":
            await self._describe(position, order, tables, tx)
        # What a span of time leaves out is in no receipt: a copy that has 0 rows of a table says another thing.
        treated = [
            {
                "table": table, "action": _DID[order["action"]], "columns": self._personal[table],
                "rows": position["counts"].get(table, 0),
            }
            for table in tables
        ]  # fmt: skip
        await self._finish(order, {"treated": treated}, tx)
        return None

    async def held(self, subject: Subject, limit: int, tx: Transaction) -> dict[str, Any]:
        """What there is of a subject, as a copy would have it: `{"tables": {table: [row]}, "truncated": bool}`, up to `limit`
        rows a table. Nothing of the erased."""
        if await self._tombstones.erased([subject], tx):
            return {"tables": {}, "truncated": False}
        tables, truncated, subjects = {}, False, by_kind([subject])
        for table in self._rows:
            text, count = await self._shown.lines(table, store.Slice(table, 0, None), subjects, tx, limit=limit + 1)
            if count:
                # As they stand in a copy, to the last digit.
                tables[table] = [msgspec.Raw(line.encode()) for line in text.split("\n")[:limit]]
                truncated |= count > limit
        return {"tables": tables, "truncated": truncated}

    async def forget(self, hashes: Iterable[bytes], tx: Transaction, *, before: datetime | None = None) -> None:
        """Copies of what these subjects have here go, with an erasure or (`before`) with their time.

        A store that is away stops no erasure: the copy is tried again by the hour, and until it is gone the sweep finds it.
        """
        for case, epoch in await store.exports(tx.db, list(hashes), before):
            if not await self._drop(case, epoch, tx):
                return

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
                async with in_time():
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
        if _span(order) is None:
            log.warning("an errand names no span of time that can be read: there is nothing to do")
            return await self._over(order, tx)
        if order["action"] == "export":
            await store.note_export(tx.db, vault_of(tx).hasher.hashes(who), case, epoch, tx.now)
        extents = await store.extents(tx.db, self._asked(order))
        rest = [[e.table, e.relation, e.blocks] for e in extents]
        return {"case": case, "epoch": epoch, "rest": rest, "block": 0, "counts": {}, "parts": {}}

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

    async def _drop(self, case: str, epoch: int, tx: Transaction) -> bool:
        """Whether the copy is gone."""
        try:
            await self._delete(case, epoch)
        except BlobsAway as error:
            log.error("a copy of somebody who is to be forgotten stays for now: %s", error)
            return False
        await store.forget_export(tx.db, case, epoch)
        return True

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
        subjects, copied = by_kind(who), dict[str, list[str]]()
        async for table, piece in store.slices(tx.db, position):
            count = 0
            if order["action"] == "rectify":
                count = await self._correct(order, self._rows[table], piece, subjects, tx)
            elif order["action"] == "discover" or order["arguments"].get("only") == CONTENTS:
                count = len(await store.rows_as_json(tx.db, self._rows[table], piece, subjects))
            else:
                span = _span(order)
                assert span is not None
                text, count = await self._shown.lines(table, piece, subjects, tx, span)
                if count:
                    copied.setdefault(table, []).append(text)
            position["counts"][table] = position["counts"].get(table, 0) + count
        # Together: nothing is asked of the database meanwhile, and it does not wait for long.
        async with in_time():
            for table, texts in copied.items():
                part = position["parts"].get(table, 0)
                await self._put(order, f"{table}/{part:06d}", "\n".join(texts), tx)
                position["parts"][table] = part + 1

    async def _describe(
        self, position: Mapping[str, Any], order: Mapping[str, Any], tables: Sequence[str], tx: Transaction
    ) -> None:
        span = _span(order)
        assert span is not None
        left_out = self._rows.keys() - set(tables)
        told = await self._shown.described(tx, position["counts"], position["parts"], left_out, span)
        await self._put(order, f"{MAP}/000000", msgspec.json.encode(told).decode(), tx)

    async def _put(self, order: Mapping[str, Any], name: str, text: str, tx: Transaction) -> None:
        if self._blobs is None:
            raise BlobsAway("STEWARD_BLOBS is not set")
        key = await vault_of(tx).case_key(order["case_id"])
        where = f"{order['case_id']}/{order['epoch']}/{self._service}/{name}"
        await self._blobs.put(where, seal_value(key, text, where=WHERE).encode())

    def _asked(self, order: Mapping[str, Any]) -> list[str]:
        """The tables that an errand goes over, in the map's order: all, or those of `tables`, names with dots between."""
        named = order["arguments"].get("tables")
        found = [table for table in self._rows if named is None or table in named.split(".")]
        if order["action"] == "export" and _span(order) != (None, None):
            return [table for table in found if self._rows[table].when is not None]
        return found

    async def _correct(
        self,
        order: Mapping[str, Any],
        rows: Rows,
        piece: store.Slice,
        subjects: Mapping[str, Sequence[str]],
        tx: Transaction,
    ) -> int:
        """Puts what is right in place of what was there, under the same key. Returns how many values that were. Tables with
        something to correct belong to an account."""
        column = order["arguments"].get("column")
        if order["arguments"].get("table") != rows.table or column not in rows.corrects:
            return 0
        key = await vault_of(tx).case_key(order["case_id"])
        try:
            text = open_value(key, order["value"] or "", where=VALUE)
        except (Shredded, Tampered):
            log.warning("what is right cannot be read: nothing is corrected")
            return 0
        cells = [(place, value, json.loads(row)) for place, value, row in
                 await store.sealed_cells(tx.db, rows, piece, subjects, column)]  # fmt: skip
        keys = await keys_of([value for _, value, _ in cells if value is not None], tx)
        # What was never said is incomplete: it comes under the key of the account that the row belongs to.
        owner = rows.owners["account"]
        owners = [("account", row[owner]) for _, value, row in cells if value is None]
        own = await vault_of(tx).subject_keys(owners, at=tx.now) if owners else {}
        right = [
            (place, seal_value(found, text, where=rows.sealed[column].format(**row)))
            for place, value, row in cells
            if (found := own[("account", row[owner])] if value is None else keys.get(value)) is not None
        ]
        await store.put_cells(tx.db, piece, column, right)
        return len(right)


def _span(order: Mapping[str, Any]) -> store.Span | None:
    """The span of time that is asked for, half-open; None when it cannot be read."""
    try:
        ends = [order["arguments"].get(name) for name in ("since", "until")]
        since, until = (None if end is None else datetime.fromisoformat(end) for end in ends)
    except ValueError:
        return None
    if any(end is not None and end.tzinfo is None for end in (since, until)):
        return None
    return since, until
