"""A holder of personal data: what its data map says is done by these few tasks, the same in every service.

`attach(service, HOLDING)` plugs it in: tombstones before everything else, the commands of cases, erasure in chunks,
receipts. A service writes code only where a declaration cannot say it (the hooks).
"""

from __future__ import annotations

import logging
from collections.abc import Awaitable, Callable, Iterable, Mapping, Sequence
from dataclasses import replace
from datetime import datetime, timedelta
from importlib.metadata import version
from pathlib import Path
from typing import Any, TypeAlias, get_args

from shared.contract import events, topics
from shared.contract.events import SubjectKind
from shared.contract.ids import derived_id
from shared.contract.units import ERASED, Subject
from shared.mesh import Batch, Done, Later, Service, Task, Transaction
from shared.mesh import store as mesh_store
from shared.mesh.admin import end_offsets
from shared.mesh.http import NotAllowed
from shared.mesh.transaction import rfc3339
from shared.policy import policy
from shared.privacy import store
from shared.privacy.data_map import Column, Holding, Rows, longest
from shared.privacy.erasure import Letters, Pass, Treatment, by_kind
from shared.privacy.errands import ERRAND, Errands
from shared.privacy.expiry import attach_expiry
from shared.privacy.letters import LetterSafe
from shared.privacy.mesh_map import HOLDER_MAP, MESH_MAP, MESH_ROWS
from shared.privacy.reasons import names_a_case
from shared.privacy.tombstones import Tombstones
from shared.privacy.unread import unread
from shared.privacy.vault import CASE, Shredded, open_vault, vault_of

log = logging.getLogger("steward.privacy")

SCHEMA = Path(__file__).parent / "schema"
ERASE = "mesh-erase"
CODE_VERSION = version("steward")

# Cases that one pass over the tables erases together.
_TOGETHER = 500
_LOOK_AGAIN = 0.25
_HELD_ROWS = 10_000
# Rows of a table that the read `held` gives: without a wish, and at most.
_HELD_LIMIT, _HELD_MOST = 1_000, 10_000
_FORGOTTEN = 10_000
_SHREDDED: Mapping[str, Any] = {"treated": [], "shredded": True}
_CHANGES = ("clear", "pseudonymise")

Subjects: TypeAlias = frozenset[Subject]
# Called in the transaction that begins an erasure, before any row goes: (case -> subjects, transaction).
Before: TypeAlias = Callable[[Mapping[str, Subjects], Transaction], Awaitable[None]]
# What the law keeps of these subjects, and until when: tables of a receipt.
Keeps: TypeAlias = Callable[[Subjects, Transaction], Awaitable[list[dict[str, Any]]]]
# An order that only this service knows how to carry out, and the transaction in which it has to.
Also: TypeAlias = Callable[[Any, Transaction], Awaitable[None]]


class Holder:
    """One service as a holder. Its parts: the map, the tombstones, the vault (once the service has started)."""

    def __init__(
        self,
        service: Service,
        holding: Holding,
        *,
        before: Before | None = None,
        keeps: Keeps | None = None,
        also: Also | None = None,
        reports: topics.Topic | None = None,
        last: bool = False,
        suppress: bool = True,
    ) -> None:
        self.holding = holding
        self.tombstones = Tombstones(service.name, enabled=suppress)
        self._service = service
        self._before, self._keeps, self._also, self._reports, self._last = before, keeps, also, reports, last
        self._tables = {rows.table: treatment_of(holding.columns, rows) for rows in holding.rows}
        self.errands = Errands(service.name, holding, self.tombstones, self._publish)

    async def open(self, runtime: Any) -> None:
        """Opens the vault: hashes and the keys of cases and dead letters come from there."""
        runtime.plugged["safe"] = LetterSafe(await open_vault(runtime))
        self.errands.open(runtime.settings.blobs)
        async with runtime.pool.acquire() as db, db.transaction():
            declared = (*self.holding.columns, *MESH_MAP, *HOLDER_MAP)
            await store.declare(db, [_declared(column) for column in declared], self.holding.version)

    # --- commands ------------------------------------------------------------------------------------------------

    async def obey(self, batch: Batch, tx: Transaction) -> None:
        """Takes orders: what is short is done at once, an erasure is noted and becomes a task."""
        orders: dict[tuple[str, int], Any] = {}
        errands = []
        for received in batch.events:
            order = received.event.data
            if self._service.name not in order.holders:
                continue
            if order.action == "erase":
                orders[order.case, order.epoch] = order
            elif order.action == "hold":
                await self._hold(order, tx)
            elif order.action == "release":
                await self._release(order, tx)
            elif order.action in ("discover", "export", "rectify"):
                errands.append(order)
            elif self._also is not None:
                # In its place among the others: what is done before an erasure finds what that will take.
                await self._also(order, tx)
                self._publish(tx, order.case, order.epoch, {"treated": []}, order.action, dict(order.arguments))
        await self.errands.note(errands, tx)
        stones = await self._note(orders, tx) if orders else []
        if stones and self.tombstones.enabled:
            await store.add_tombstones(tx.db, stones)
        if stones:
            await tx.enqueue(ERASE, "pass", {})

    async def _note(self, orders: Mapping[tuple[str, int], Any], tx: Transaction) -> list[store.Stone]:
        """Notes orders, and answers again those that are carried out; the tombstones of what is new."""
        rows = [(o.case, o.epoch, o.scope, o.sealed, o.after, o.confirmed_at) for o in orders.values()]
        new = await store.add_orders(tx.db, rows, tx.now)
        if known := [key for key in orders if key not in new]:
            for (case, epoch), receipt in (await store.receipts(tx.db, known)).items():
                self._publish(tx, case, epoch, receipt)
        stones: dict[bytes, store.Stone] = {}
        opened = await vault_of(tx).open_cases(
            [(case, orders[case, epoch].sealed) for case, epoch in orders if (case, epoch) in new]
        )
        for key, order in orders.items():
            if key not in new:
                continue
            subjects = opened.get(order.case)
            if subjects is None:
                # The case is over: its certificate was given, and this is an old copy of the command.
                log.warning("an order of a case without a key: nothing is left to do")
                await store.finish_orders(tx.db, [(*key, _SHREDDED)], tx.now)
                continue
            hashes = vault_of(tx).hasher.hashes(subjects)
            for (kind, _), digest in zip(subjects, hashes, strict=True):
                stones[digest] = (digest, kind, order.case, order.confirmed_at)
        return list(stones.values())

    async def _hold(self, order: Any, tx: Transaction) -> None:
        """Copies a subject's rows of one table, sealed under the hold's key, so that they outlive expiry and erasure."""
        hold, table = order.arguments["hold"], order.arguments["table"]
        treatment = self._tables.get(table)
        # An order that comes again finds what the first one kept: rows may be gone by now, and no copy is made twice.
        count = (await store.held(tx.db, hold)).get(table, 0)
        if treatment is not None and not count:
            try:
                # Asked of the database: a remembered key would make copies under a new key of a hold that is over.
                if not await vault_of(tx).there(CASE, [order.case]):
                    raise Shredded("the key is destroyed")
                subjects = await vault_of(tx).open_subjects(order.case, order.sealed)
            except Shredded:
                log.warning("an order to hold without a key: the hold is over, and nothing is left to keep")
                return
            whole = store.Slice(treatment.rows.table, 0, None)
            texts = await store.rows_as_json(tx.db, treatment.rows, whole, by_kind(subjects), _HELD_ROWS)
            (digest,) = vault_of(tx).hasher.hashes(subjects[:1])
            sealed = await vault_of(tx).seal_held(hold, table, texts, tx.now)
            await store.hold(tx.db, hold, table, digest, sealed, tx.now)
            count = len(sealed)
        treated = [self._treated(table, "held", self._personal(table), count)]
        self._publish(tx, order.case, order.epoch, {"treated": treated}, "hold", dict(order.arguments))

    async def _release(self, order: Any, tx: Transaction) -> None:
        """Ends a hold: its copies go, which is what the erasure had left."""
        hold = order.arguments["hold"]
        gone = await store.release(tx.db, hold)
        await vault_of(tx).destroy_held(hold)
        treated = [self._treated(table, "delete_row", self._personal(table), n) for table, n in gone.items()]
        self._publish(tx, order.case, order.epoch, {"treated": treated}, "release", dict(order.arguments))

    # --- the erasure ---------------------------------------------------------------------------------------------

    async def look(self, now: datetime, tx: Transaction) -> None:
        """Sees that an order which nobody works at is worked at: the handler's own request can meet a pass that ends."""
        if await store.any_waiting(tx.db):
            await tx.enqueue(ERASE, "pass", {})
        await self.errands.look(tx)

    async def forget(self, now: datetime, tx: Transaction) -> None:
        """Ends tombstones, and what became of their orders, when no copy can bring the subjects back any more; the keys of
        dead letters that are over; copies for people that nobody has fetched."""
        await tx.plugged["safe"].forget(now.date())
        await self.errands.end(now, tx)
        over = now - policy().tombstone_life
        tx.count("tombstones", -await store.forget_tombstones(tx.db, over, _FORGOTTEN))
        await store.forget_orders(tx.db, over)

    async def erase(self, task: Task, tx: Transaction) -> Any:
        """One chunk of a pass over the tables, for all orders that were waiting when it began."""
        if task.position is None:
            return await self._begin(tx)
        current = Pass.load(task.position)
        orders = await self._orders(tx, await store.orders(tx.db, current.orders))
        if current.rest:
            await current.advance(tx, self._tables, orders)
            return current.dump()
        offsets: dict[str, dict[str, int]] = {}
        if self._reports is not None:
            if await mesh_store.outbox_before(tx.db, self._reports.name, current.outbox):
                return Later(current.dump(), _LOOK_AGAIN)
            ends = await end_offsets(tx.plugged["kafka"], [self._reports.name])
            offsets = {self._reports.name: {str(tp.partition): end for tp, (_, end) in ends.items()}}
        await self._finish(tx, orders, current, offsets)
        return None if await store.any_waiting(tx.db) else Done()

    async def _begin(self, tx: Transaction) -> Any:
        waiting = await store.waiting_orders(tx.db, _TOGETHER)
        reached = await self._reached(tx, {topic for row in waiting for topic in row["after"]})
        ready = [row for row in waiting if _passed(row["after"], reached)]
        if not ready:
            return Later(None, _LOOK_AGAIN) if waiting else Done()
        orders = await self._orders(tx, ready)
        if self._before is not None:
            await self._before({case: subjects for (case, _), (_, subjects) in orders.items()}, tx)
        # Asked while the names still lead to what is kept.
        kept = (
            {} if self._keeps is None else {case: await self._keeps(who, tx) for (case, _), (_, who) in orders.items()}
        )
        letters = await Letters.erase(tx, orders)
        everybody = list({subject for _, subjects in orders.values() for subject in subjects})
        await self.errands.forget(vault_of(tx).hasher.hashes(everybody), tx)
        extents = await store.extents(tx.db, [rows.table for rows in self.holding.rows])
        rest = [[e.table, e.relation, e.blocks] for e in extents]
        outbox = await mesh_store.last_outbox(tx.db) if self._reports is not None else 0
        return Pass([(r["case_id"], r["epoch"]) for r in ready], rest, 0, letters, outbox, kept).dump()

    async def _reached(self, tx: Transaction, names: Iterable[str]) -> dict[str, dict[int, int]]:
        """How far this service has handled each partition of these topics."""
        group = f"steward.{self._service.name}"
        return {name: await mesh_store.next_offsets(tx.db, f"{group}.{name}", name) for name in sorted(names)}

    async def _orders(
        self, tx: Transaction, rows: Iterable[Mapping[str, Any]]
    ) -> dict[tuple[str, int], tuple[Any, Subjects]]:
        """The orders with their subjects, opened for this moment."""
        told = list(rows)
        opened = await vault_of(tx).open_cases([(row["case_id"], row["sealed"]) for row in told])
        over = [(row["case_id"], row["epoch"], _SHREDDED) for row in told if row["case_id"] not in opened]
        if over:
            # The cases ended without this holder (somebody has waived it): they must not hold up the others.
            log.warning("%d orders of cases without a key: nothing is left to do", len(over))
            await store.finish_orders(tx.db, over, tx.now)
        return {
            (row["case_id"], row["epoch"]): (row, frozenset(opened[row["case_id"]]))
            for row in told
            if row["case_id"] in opened
        }

    async def _finish(
        self,
        tx: Transaction,
        orders: Mapping[tuple[str, int], tuple[Any, Subjects]],
        current: Pass,
        offsets: Mapping[str, Mapping[str, int]],
    ) -> None:
        receipts = []
        hashes: list[bytes] = []
        for (case, epoch), (row, subjects) in orders.items():
            treated = self._account(row, current.counts.get(case, {})) + current.kept.get(case, [])
            receipt = {"treated": treated, "offsets": offsets}
            receipts.append((case, epoch, receipt))
            hashes += vault_of(tx).hasher.hashes(list(subjects))
            self._publish(tx, case, epoch, receipt)
        await store.finish_orders(tx.db, receipts, tx.now)
        await store.set_applied(tx.db, hashes)
        tx.count("erasures", len(receipts))

    def _account(self, order: Mapping[str, Any], counts: Mapping[str, Mapping[str, int]]) -> list[dict[str, Any]]:
        """What became of every table that can hold something of a subject."""
        treated = []
        for rows in self.holding.rows:
            done = counts.get(rows.table, {})
            action = self._tables[rows.table].action
            if action not in ("retain", "expire"):
                treated.append(self._treated(rows.table, action, self._personal(rows.table), done.get("rows", 0)))
            if rows.traces and done.get("traces"):
                treated.append(self._treated(rows.table, "pseudonymise", sorted(rows.traces.values()), done["traces"]))
        for table in ("mesh_dead_letter", "mesh_parked"):
            treated.append(self._treated(table, "delete_row", ["payload"], counts.get(table, {}).get("rows", 0)))
        for table, columns, end in self._left_to_their_clocks(order["confirmed_at"]):
            treated.append(self._treated(table, "expire", columns, 0) | {"not_after": rfc3339(end)})
        return treated

    def _left_to_their_clocks(self, confirmed_at: datetime) -> list[tuple[str, list[str], datetime]]:
        """(table, columns, the latest end) of what an erasure leaves to expire, because it leads to nobody by itself."""
        ends: dict[str, tuple[list[str], timedelta]] = {}
        for column in self.holding.columns:
            period = longest(column.period)
            if column.personal and column.on_erasure == "expire" and period is not None:
                names, before = ends.get(column.table, ([], timedelta(0)))
                ends[column.table] = ([*names, column.column], max(before, period))
        return [(table, sorted(names), confirmed_at + period) for table, (names, period) in sorted(ends.items())]

    def _personal(self, table: str) -> list[str]:
        return sorted(c.column for c in self.holding.columns if c.table == table and c.personal)

    @staticmethod
    def _treated(table: str, action: str, columns: Sequence[str], rows: int) -> dict[str, Any]:
        return {"table": table, "action": action, "columns": list(columns), "rows": rows}

    def _publish(
        self,
        tx: Transaction,
        case: str,
        epoch: int,
        receipt: Mapping[str, Any],
        action: str = "erase",
        arguments: Mapping[str, str] | None = None,
    ) -> None:
        """Publishes a receipt: the same one, however often it is asked for."""
        name = (arguments or {}).get("hold", "")
        tx.publish(
            topics.PRIVACY_RECEIPTS,
            events.PrivacyDone,
            id=derived_id(_case_ms(case), "receipt", case, str(epoch), tx.service, action, name),
            subject=case,
            key=case,
            data={
                "case": case, "epoch": epoch, "holder": tx.service, "action": action,
                "treated": receipt["treated"], "offsets": receipt.get("offsets", {}),
                "map_version": self.holding.version, "code_version": CODE_VERSION, "arguments": dict(arguments or {}),
            },
        )  # fmt: skip

    # --- reads ---------------------------------------------------------------------------------------------------

    async def held(self, query: Mapping[str, str], tx: Transaction) -> Any:
        """What this service has about one subject (`kind`, `id`), as a copy for its person would have it; up to `limit` rows
        a table. For somebody who has a case in hand, and names it."""
        if tx.caller is None or not names_a_case(tx.caller.reason):
            raise NotAllowed("what is held of somebody is read for a case only: give its ticket or id as the reason")
        kind, name = query.get("kind", ""), query.get("id", "")
        if kind not in get_args(SubjectKind) or not name:
            raise ValueError(f"kind: one of {', '.join(get_args(SubjectKind))}; id: whose")
        limit = int(query.get("limit", _HELD_LIMIT))
        if not 0 < limit <= _HELD_MOST:
            raise ValueError(f"limit: 1 to {_HELD_MOST}")
        return await self.errands.held((kind, name), limit, tx)

    # --- after a restore -----------------------------------------------------------------------------------------

    async def reapply(self, runtime: Any) -> None:
        """Treats rows of subjects that this database did not know to be erased: it is an older copy, or was away.

        Before the service handles a record: every id that stands in the database is held against the tombstones. Whoever
        erases `last` leaves those whose case is still under way: its order says what has to be read before.
        """
        async with runtime.pool.acquire() as db, db.transaction():
            tx = Transaction(self._service.name, db, runtime.clock.now(), plugged=runtime.plugged)
            await store.one_at_a_time(db)
            over = await store.unapplied(db)
            if over and self._last:
                under_way = await vault_of(tx).there(CASE, set(over.values()))
                over = {digest: case for digest, case in over.items() if case not in under_way}
            if not over:
                return
            await self._put_aside(tx)
            asked: set[Subject] = set()
            for rows in self.holding.rows:
                for kind in rows.owners:
                    asked |= {(kind, value) for value in await store.owners_of(db, rows, kind)}
                for kind, column in rows.traces.items():
                    asked |= {(kind, value) for value in await store.traced(db, rows.table, column)}
            everybody = list(asked)
            hashes = vault_of(tx).hasher.hashes(everybody)
            found = {subject for subject, digest in zip(everybody, hashes, strict=True) if digest in over}
            if found:
                case = {"case_id": "", "epoch": 0, "scope": "member"}
                orders = {("", 0): (case, frozenset(found))}
                if self._before is not None:
                    await self._before({"": frozenset(found)}, tx)
                await Letters.erase(tx, orders)
                extents = await store.extents(db, [rows.table for rows in self.holding.rows])
                current = Pass([("", 0)], [[e.table, e.relation, e.blocks] for e in extents], 0, {}, 0)
                while current.rest:
                    await current.advance(tx, self._tables, orders)
                tx.count("reapplied", sum(n for t in current.counts.get("", {}).values() for n in t.values()))
                log.warning("%d erased subjects were found in this database and are erased again", len(found))
            await self.errands.forget(over, tx)
            await store.set_applied(db, over)
            await tx.flush()

    async def _put_aside(self, tx: Transaction) -> None:
        """Obeys the holds and the envelopes that wait among the commands: this service was away when they were ordered, and
        what is erased now would be missing when it comes to read them."""
        topic = topics.PRIVACY_COMMANDS
        passed = await mesh_store.next_offsets(tx.db, f"steward.{self._service.name}.{topic.name}", topic.name)
        for event in await unread(tx.plugged["kafka"], topic, passed):
            if self._service.name not in event.data.holders:
                continue
            if event.data.action == "hold":
                await self._hold(event.data, tx)
            elif event.data.action == "envelope" and self._also is not None:
                await self._also(event.data, tx)


def _passed(after: Mapping[str, Mapping[str, int]], reached: Mapping[str, Mapping[int, int]]) -> bool:
    """Whether everything below the offsets that an order waits for is handled."""
    return all(
        reached[topic].get(int(part), 0) >= offset
        for topic, offsets in after.items()
        for part, offset in offsets.items()
    )


def _case_ms(case: str) -> int:
    """The instant in a case's id: what is said of a case has ids that follow from it alone."""
    return int(case.replace("-", "")[:12], 16)


def _declared(column: Column) -> tuple[str, str, str, str, str, str, int | None]:
    period = longest(column.period)
    days = None if period is None else -(-period // timedelta(days=1))
    return (column.table, column.column, column.category, column.use, column.on_erasure, column.ground, days)


def treatment_of(columns: Iterable[Column], rows: Rows) -> Treatment:
    """What an erasure does to a table, from what its columns declare."""
    own = [column for column in columns if column.table == rows.table and column.personal]
    actions = {column.on_erasure for column in own}
    values = {c.column: None if c.on_erasure == "clear" else ERASED for c in own if c.on_erasure in _CHANGES}
    for action in ("delete_row", "clear", "pseudonymise", "shred", "retain"):
        if action in actions:
            return Treatment(rows, action, values)
    return Treatment(rows, "expire", values)


def attach(
    service: Service,
    holding: Holding,
    *,
    before: Before | None = None,
    keeps: Keeps | None = None,
    also: Also | None = None,
    reports: topics.Topic | None = None,
    last: bool = False,
    shows: bool = True,
    suppress: bool = True,
) -> Holder:
    """Makes `service` a holder of what `holding` says. Call it once, when everything else is declared.

    `before` runs in the transaction that begins an erasure; `keeps` says what the law keeps, for the receipt; `also` carries
    out orders of other actions, in their order, and the holder answers them;
    `reports`: a topic whose end offsets the receipt tells, when all that was published before the erasure has been sent.
    `last`: its orders come when the others have answered, and name what it has to read before.
    `shows`: whoever names a case may read what is held of somebody; off, it goes to its person alone, in a copy.
    `suppress` off is for tests that show what tombstones prevent.
    """
    holder = Holder(
        service, holding, before=before, keeps=keeps, also=also, reports=reports, last=last, suppress=suppress
    )
    service.schemas += (("privacy", SCHEMA),)
    service.uses_keys = True
    service.rights = replace(service.rights, blobs=True)
    service.guard, service.filter = holder.tombstones.guard, holder.tombstones.filter
    started, caught_up, idle = service.on_start, service.on_caught_up, service.on_idle

    async def start(runtime: Any) -> None:
        await holder.open(runtime)
        if started is not None:
            await started(runtime)

    async def catch_up(runtime: Any) -> None:
        await holder.reapply(runtime)
        if caught_up is not None:
            await caught_up(runtime)

    async def waiting(db: Any) -> int:
        return int(await store.any_waiting(db)) + (0 if idle is None else await idle(db))

    service.on_start, service.on_caught_up, service.on_idle = start, catch_up, waiting
    service.consumes(topics.TOMBSTONES, first=True, guarded=False)(holder.tombstones.learn)
    service.consumes(topics.PRIVACY_COMMANDS, guarded=False)(holder.obey)
    service.task(ERASE)(holder.erase)
    service.task(ERRAND)(holder.errands.run)
    if shows:
        service.reads("held")(holder.held)
    service.job(ERASE, every=timedelta(seconds=2))(holder.look)
    service.job("mesh-forget", every=timedelta(hours=1))(holder.forget)
    attach_expiry(service, (*MESH_ROWS, *holding.rows))
    return holder


__all__ = ["SCHEMA", "Holder", "attach", "treatment_of"]
