"""One pass over a holder's tables, in chunks, for many cases at once."""

from __future__ import annotations

import re
import secrets
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, TypeAlias

from shared.contract.topics import BY_NAME, GENERATIONS
from shared.contract.units import Subject
from shared.mesh.safe import unlocked
from shared.mesh.transaction import Transaction
from shared.privacy import store
from shared.privacy.data_map import Rows

# case -> table -> "rows" or "traces" -> how many
Counts: TypeAlias = dict[str, dict[str, dict[str, int]]]
# (case, epoch) -> (order, its subjects)
Orders: TypeAlias = Mapping[tuple[str, int], tuple[Any, frozenset[Subject]]]

_LETTERS = 1_000


def by_kind(subjects: Iterable[Subject]) -> dict[str, list[str]]:
    """Ids by kind."""
    found: dict[str, list[str]] = {}
    for kind, value in subjects:
        found.setdefault(kind, []).append(value)
    return found


def _add(counts: Counts, case: str, table: str, what: str, n: int) -> None:
    of_table = counts.setdefault(case, {}).setdefault(table, {})
    of_table[what] = of_table.get(what, 0) + n


@dataclass(frozen=True, slots=True)
class Treatment:
    """What an erasure does to a table. `values`: what stands in its columns afterwards, where the row stays."""

    rows: Rows
    action: str
    values: Mapping[str, str | None]


@dataclass(slots=True)
class Pass:
    """Where a pass got to.

    `rest`: [table, physical table, its pages] still to be gone over; `block`: where in the first of them; `outbox`: the
    newest row that waited to be published when it began; `kept`: what the law keeps. Holds no id of a subject: it is
    stored.
    """

    orders: list[tuple[str, int]]
    rest: list[list[Any]]
    block: int
    counts: Counts
    outbox: int
    kept: dict[str, list[Any]] = field(default_factory=dict)

    def dump(self) -> dict[str, Any]:
        """As a task's position."""
        return {
            "orders": self.orders, "rest": self.rest, "block": self.block, "counts": self.counts, "outbox": self.outbox,
            "kept": self.kept,
        }  # fmt: skip

    @classmethod
    def load(cls, position: Mapping[str, Any]) -> Pass:
        """From a task's position."""
        orders = [(case, epoch) for case, epoch in position["orders"]]
        return cls(
            orders, position["rest"], position["block"], position["counts"], position["outbox"], position["kept"]
        )

    async def advance(self, tx: Transaction, tables: Mapping[str, Treatment], orders: Orders) -> None:
        """Goes over the next pages, as many as one transaction should."""
        owners = {subject: case for (case, _), (_, subjects) in orders.items() for subject in subjects}
        members = {
            subject: case
            for (case, _), (row, subjects) in orders.items()
            if row["scope"] == "member"
            for subject in subjects
        }
        position: dict[str, Any] = {"rest": self.rest, "block": self.block}
        async for table, piece in store.slices(tx.db, position):
            await self._treat(tx, tables[table], piece, owners, members)
        self.block = position["block"]

    async def _treat(
        self,
        tx: Transaction,
        treatment: Treatment,
        piece: store.Slice,
        owners: Mapping[Subject, str],
        members: Mapping[Subject, str],
    ) -> None:
        rows = treatment.rows
        gone: Mapping[Subject, int] = {}
        if treatment.action == "delete_row":
            gone = await store.delete_rows(tx.db, rows, piece, by_kind(owners))
        elif treatment.values:
            gone = await store.change_rows(tx.db, rows, piece, by_kind(owners), treatment.values)
        for subject, n in gone.items():
            _add(self.counts, owners[subject], rows.table, "rows", n)
        if rows.moves is not None and (n := sum(gone.values())):
            source, target = rows.moves
            tx.count(source, -n)
            tx.count(target, n)
        for kind, column in rows.traces.items():
            traced = {value: case for (of, value), case in members.items() if of == kind}
            if not traced:
                continue
            # Two erased keys stay two: sums by key must not run into each other.
            names = {value: f"erased-{secrets.token_hex(6)}" for value in traced}
            for value, n in (await store.blank_traces(tx.db, column, piece, names)).items():
                _add(self.counts, traced[value], rows.table, "traces", n)


class Letters:
    """Dead letters and parked records: whose they are stands in their payload."""

    @staticmethod
    async def erase(tx: Transaction, orders: Orders) -> Counts:
        """Deletes those that name one of the subjects, and moves them between the classes of the conservation sum.

        Money that waits for a person is not dropped: what is booked whoever it is about stays until it is booked, and
        the scan says so.
        """
        marks = {value.encode(): case for (case, _), (_, subjects) in orders.items() for _, value in subjects}
        counts: Counts = {}
        after = 0
        while letters := await store.waiting_payloads(tx.db, after, _LETTERS):
            after = letters[-1]["id"]
            ours = [x for x in letters if x["stage"] == "decode" or not _booked(x["topic"], tx)]
            named = _naming([{**x, "payload": await unlocked(x["payload"], tx)} for x in ours], marks)
            for letter in await store.delete_letters(tx.db, named):
                _add(counts, named[letter["id"]], "mesh_dead_letter", "rows", 1)
                if letter["counted"] and letter["state"] != "replayed":
                    tx.count(f"dead_lettered:{letter['topic']}", -1)
                    tx.count("erased" if letter["topic"] == GENERATIONS.name else f"erased:{letter['topic']}")
        after = 0
        while parked := await store.parked_payloads(tx.db, after, _LETTERS):
            after = parked[-1]["id"]
            named = _naming([x for x in parked if not _booked(x["topic"], tx)], marks)
            for record in await store.delete_parked(tx.db, named):
                _add(counts, named[record["id"]], "mesh_parked", "rows", 1)
                tx.count(f"parked:{record['topic']}", -1)
                tx.count(f"erased:{record['topic']}")
        return counts


def _booked(topic: str, tx: Transaction) -> bool:
    return BY_NAME[topic].after_erasure.get(tx.service) == "book"


# What may stand in an id: with a neighbour of this kind it is another one.
_WORD = re.compile(rb"[A-Za-z0-9_.:-]+")


def _naming(records: Sequence[Mapping[str, Any]], marks: Mapping[bytes, str]) -> dict[int, str]:
    """(id -> case) of the records that name a subject: in their key, or anywhere in what they hold, event or not."""
    named = {}
    for record in records:
        held = (record["key"] or b"") + b" " + (record["payload"] or b"")
        for mark in marks.keys() & set(_words(held)):
            named[record["id"]] = marks[mark]
    return named


def _words(held: bytes) -> Iterator[bytes]:
    for word in _WORD.findall(held):
        # A sentence's full stop, or a colon behind a name, is no part of an id.
        yield from (word, word.rstrip(b".:-_"), *word.split(b":"))
