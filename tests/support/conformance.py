"""What every holder of personal data has to do, whoever wrote it: nothing here knows one from another.

A holder is a process that reads topics of the contract and has a database. The kit makes it hold something of people,
erases some of them in every order in which orders, tombstones and events can come, and looks into the database itself.
"""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator, Awaitable, Callable, Collection, Mapping, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Any, TypeAlias

import asyncpg

from services.audit.app import make_service as make_audit
from shared.contract import topics
from shared.contract.sealing import seal
from shared.contract.units import Subject
from shared.privacy.blobs import open_blobs
from shared.privacy.errands import WHERE
from shared.privacy.vault import Vault, open_value
from tests.support.coordinator import Coordinator, new_case, own_vault
from tests.support.gateway import Gateway, Sent
from tests.support.life import life, prices, subjects_of
from tests.support.platform import Arrived, arrived
from tests.support.world import Mesh

WITHIN = 30.0
"""A receipt comes within this (seconds), on a machine that has other things to do."""
GOOD = {"clean", "shredded", "retained", "held", "expiring"}
_TREATS = {"delete_row", "clear", "pseudonymise", "shred", "expire"}
_TABLES = """SELECT c.relname FROM pg_class c WHERE c.relnamespace = 'public'::regnamespace
             AND c.relkind IN ('r', 'p') AND NOT c.relispartition"""
# Columns that an erasure leaves to a clock of their own.
_EXPIRING = """SELECT table_name FROM mesh_data_map WHERE category LIKE 'user.%'
               GROUP BY table_name HAVING bool_and(on_erasure = 'expire')"""

Standing: TypeAlias = Mapping[tuple[str, str], list[str]]


@dataclass(slots=True)
class Participant:
    """A holder, as far as the kit needs to know it.

    `database_url`: its database, as its owner. `auditor_url`: the same, as the auditor reads it. `reads`: the topics
    that tell it of people. `settled` returns when it has handled everything that is in its topics.
    """

    name: str
    database_url: str
    auditor_url: str
    reads: Collection[str]
    start: Callable[[], Awaitable[None]]
    stop: Callable[[], Awaitable[None]]
    settled: Callable[[], Awaitable[None]]


def room(mesh: Mesh, name: str) -> Participant:
    """A room of the house as a participant."""
    running: list[Any] = []

    async def start() -> None:
        runtime = await mesh.start(name)
        running.append(runtime)
        await mesh.owned(runtime)

    async def stop() -> None:
        await mesh.stop(running.pop())

    upper = name.upper()
    return Participant(
        name, mesh.env[f"STEWARD_{upper}_OWNER_DATABASE_URL"], mesh.env[f"STEWARD_AUDITOR_{upper}_DATABASE_URL"],
        [topic.name for topic in topics.TOPICS if name in topic.readers], start, stop, mesh.idle,
    )  # fmt: skip


@dataclass(slots=True)
class Kit:
    """The checks, in the order in which `run` makes them; each leaves the holders fit for the next."""

    mesh: Mesh
    holders: Sequence[Participant]
    gateway: Gateway
    vault: Vault
    seal: Callable[[str], str]
    sent: dict[str, list[Sent]] = field(default_factory=dict)
    # holder -> what its copy says of a person in the clear, although it stands sealed there
    says: Mapping[str, str] = field(default_factory=dict)

    async def run(self) -> None:
        """Everything. Raises AssertionError at the first check that does not hold."""
        scanned = {f"STEWARD_AUDITOR_{h.name.upper()}_DATABASE_URL": h.auditor_url for h in self.holders}
        await self.mesh.start("audit", service=make_audit({**self.mesh.env, **scanned}))
        await asyncio.gather(*(holder.start() for holder in self.holders))
        await self.say([prices(self.gateway)])
        await self.settled()
        await self.hold_something("gone", "away", "stays")
        bystander = await self.standing("stays")
        taken = await self.tell_what_they_have("gone")
        await self.tell_what_they_have("stays")
        await self.erase_whom_nobody_knows()
        await self.erase_before_the_tombstones()
        await self.answer_when_they_are_back()
        await self.let_nothing_back("gone", "unknown", "away")
        await self.make_no_copy_of_the_erased(taken)
        now = await self.standing("stays")
        assert now == bystander, f"rows of a bystander were touched: {_difference(bystander, now)}"
        await self.are_clean("probe", "gone")
        await self.are_clean("sweep", "gone")
        await self.undeclared_places_are_found()

    # --- the checks --------------------------------------------------------------------------------------------------

    async def hold_something(self, *people: str) -> None:
        """They keep something of everybody: what holds nothing erases well."""
        for who in people:
            self.sent[who] = self.life(who)
            await self.say(self.sent[who])
        await self.settled()
        for who in people:
            holding = {holder for holder, _ in await self.standing(who)}
            assert holding == self.names, f"{self.names - holding} hold nothing of {who}: they would prove nothing"

    async def tell_what_they_have(self, who: str) -> str:
        """discover, export: each row is found, and its copy lies in the blob store, sealed for the case and of nobody else.
        Returns the case."""
        case, subjects = new_case(), subjects_of(who)
        for epoch, action in ((1, "discover"), (2, "export")):
            order = await self.retention.order(case, subjects, sorted(self.names), epoch=epoch, action=action)
            await self.say([order, order])
        found: dict[tuple[str, int], dict[str, int]] = {}
        for record in await self.receipts(case, {1, 2}):
            data = record.event.data
            found[data.holder, data.epoch] = {table.table: table.rows for table in data.treated}
        others = {value for kind, value in subjects_of("gone" if who == "stays" else "stays") if kind != "identity"}
        for name in self.names:
            copy = await self.copy(case, name)
            (told,) = copy.pop("_map")
            counted = {table: n for table, n in found[name, 2].items() if n}
            assert counted and {t: len(rows) for t, rows in copy.items()} == counted, f"{name}: copy and receipt differ"
            for table, rows in copy.items():
                assert told["tables"][table]["rows"] == len(rows), f"{name}: the copy and what it says of itself differ"
                columns = {column["name"] for column in told["tables"][table]["columns"]}
                assert {column for row in rows for column in row} <= columns, f"{name}: {table} has undeclared columns"
            lines = [line for rows in copy.values() for line in rows]
            assert found[name, 1] == found[name, 2], f"{name}: what was found, and what was copied"
            ids = {value for _, value in subjects}
            assert ids & {v for line in lines for v in line.values() if isinstance(v, str)}, f"{name}: whose is it?"
            assert self.says.get(name, "").format(who=who) in json.dumps(lines), f"{name}: what is sealed is not opened"
            assert not [line for line in lines if others & set(map(str, line.values()))], f"{name}: somebody else's"
        return case

    async def copy(self, case: str, holder: str) -> dict[str, list[Any]]:
        """A holder's part of a copy, opened with the case's key: table -> its lines."""
        key, blobs = await self.vault.case_key(case), open_blobs(self.mesh.env["STEWARD_BLOBS"])
        found: dict[str, list[Any]] = {}
        for name in await blobs.names(f"{case}/2/{holder}"):
            text = open_value(key, (await blobs.get(name) or b"").decode(), where=WHERE)
            found.setdefault(name.split("/")[3], []).extend(json.loads(line) for line in text.split("\n"))
        return found

    async def make_no_copy_of_the_erased(self, taken: str) -> None:
        """export-outlives, erase-vs-export: a copy that was there went with the erasure, and none is made any more."""
        assert await open_blobs(self.mesh.env["STEWARD_BLOBS"]).names(taken) == []
        case = new_case()
        order = await self.retention.order(case, subjects_of("gone"), sorted(self.names), epoch=2, action="export")
        await self.say([order])
        for record in await self.receipts(case, {2}):
            assert not any(table.rows for table in record.event.data.treated)
        assert await open_blobs(self.mesh.env["STEWARD_BLOBS"]).names(case) == []

    async def erase_whom_nobody_knows(self) -> None:
        """no-row-subject: a receipt of nothing, and a tombstone all the same (`let_nothing_back` shows it)."""
        case, subjects = new_case(), subjects_of("unknown")
        await self.say(self.retention.tombstones(case, subjects))
        await self.say([await self.order(case, subjects)])
        for record in await self.receipts(case, {1}):
            treated = [table for table in record.event.data.treated if table.rows]
            assert treated == [], f"{record.event.data.holder} treated rows of somebody who has none: {treated}"

    async def erase_before_the_tombstones(self) -> None:
        """duplicate-command: epochs out of order, each of them several times, and all before the tombstones."""
        case, subjects = new_case(), subjects_of("gone")
        first, second = await self.order(case, subjects), await self.order(case, subjects, epoch=2)
        late = self.life("gone")
        await self.say([second, first, second])
        await self.say(late)
        await self.say([first, second])
        await self.receipts(case, {1, 2})
        await self.say([*self.retention.tombstones(case, subjects), first, second])
        await self.settled()
        receipts = await self.receipts(case, {1, 2})
        for holder in self.holders:
            of_holder = [r.event for r in receipts if r.event.data.holder == holder.name]
            ids = {(event.data.epoch, event.id) for event in of_holder}
            assert len(ids) == 2, f"{holder.name}: one receipt for each (case, epoch), however often: {sorted(ids)}"
            await self.receipts_are_whole(holder, [event.data for event in of_holder])
        await self.nothing_is_left("gone", "rows of the erased are left")
        self.sent["gone"] += late

    async def receipts_are_whole(self, holder: Participant, receipts: list[Any]) -> None:
        """They say by which map and which code, and every table that an erasure treats stands in them."""
        declared = await _fetch(holder, "SELECT table_name, category, on_erasure, map_version FROM mesh_data_map")
        versions = {row["map_version"] for row in declared}
        own = {
            row["table_name"] for row in declared
            if row["category"].startswith("user.") and row["on_erasure"] in _TREATS
            and not row["table_name"].startswith("mesh_")
        }  # fmt: skip
        assert own, f"the map of {holder.name} names no table with something personal"
        for receipt in receipts:
            assert {receipt.map_version} == versions and receipt.code_version
            missing = own - {table.table for table in receipt.treated}
            assert not missing, f"the receipt of {holder.name} says nothing of {sorted(missing)}"
        assert sum(table.rows for receipt in receipts for table in receipt.treated) > 0

    async def answer_when_they_are_back(self) -> None:
        """A holder that was away when it was ordered erases as soon as it is there."""
        await asyncio.gather(*(holder.stop() for holder in self.holders))
        case, subjects = new_case(), subjects_of("away")
        await self.say([await self.order(case, subjects), *self.retention.tombstones(case, subjects)])
        await asyncio.gather(*(holder.start() for holder in self.holders))
        await self.receipts(case, {1})

    async def let_nothing_back(self, *people: str) -> None:
        """late-event: neither what was sent before, sent again, nor what is new has effects."""
        for who in people:
            await self.say([*self.sent.get(who, []), *self.life(who)])
        await self.settled()
        for who in people:
            await self.nothing_is_left(who, f"late events brought {who} back")

    async def nothing_is_left(self, who: str, otherwise: str) -> None:
        """No row leads to `who`, but where the holder's map promises that a clock ends it."""
        found = await self.standing(who)
        expiring = {(h.name, table) for h in self.holders for (table,) in await _fetch(h, _EXPIRING)}
        left = {place: rows for place, rows in found.items() if place not in expiring}
        assert left == {}, f"{otherwise}: {left}"

    async def are_clean(self, action: str, who: str) -> None:
        """The auditor, who reads each database by the holder's own map, finds nothing that should not be there."""
        bad = {place: verdict for place, verdict in (await self.scan(action, who)).items() if verdict not in GOOD}
        assert bad == {}, f"the {action} finds {bad}"

    async def undeclared_places_are_found(self) -> None:
        """unmapped: a table, and a column, that nobody declared and that hold the id are residue."""
        held = await self.standing("stays")
        places = set()
        for holder in self.holders:
            table = next(table for name, table in held if name == holder.name and not table.startswith("mesh_"))
            await holder.stop()
            await _fetch(holder, "CREATE TABLE stray AS SELECT 'see ws-gone, please' AS about")
            await _fetch(holder, f"ALTER TABLE {table} ADD COLUMN stray text DEFAULT 'ws-gone'")
            places |= {(holder.name, "stray"), (holder.name, table)}
        found = await self.scan("sweep", "gone")
        assert {place for place, verdict in found.items() if verdict == "residue"} == places, f"unmapped: {found}"

    # --- means -------------------------------------------------------------------------------------------------------

    @property
    def names(self) -> set[str]:
        """The holders' names."""
        return {holder.name for holder in self.holders}

    @property
    def retention(self) -> Coordinator:
        """Who orders."""
        return Coordinator(self.mesh, self.gateway, own=self.vault)

    def life(self, who: str) -> list[Sent]:
        """Everything that can be said of `who` to any of them, but for what they say to each other."""
        told = {name for holder in self.holders for name in holder.reads}
        told = {name for name in told if self.names.isdisjoint(topics.BY_NAME[name].writers)}
        return life(self.gateway, who, told, self.seal)

    async def order(self, case: str, subjects: Sequence[Subject], epoch: int = 1) -> Sent:
        """The order to erase, for all of them."""
        return await self.retention.order(case, subjects, sorted(self.names), epoch=epoch)

    async def say(self, records: Sequence[Sent]) -> None:
        """Sends."""
        await self.gateway.send(self.mesh.env, records)

    async def settled(self) -> None:
        """Returns when everything that was said has been handled."""
        for settled in {holder.settled for holder in self.holders}:
            await settled()

    async def receipts(self, case: str, epochs: set[int]) -> list[Arrived]:
        """All receipts of a case, once there is one of each holder for each epoch."""
        servers = self.mesh.env["STEWARD_KAFKA_BOOTSTRAP_SERVERS"]
        wanted = {(name, epoch) for name in self.names for epoch in epochs}
        found: list[Arrived] = []

        async def there() -> bool:
            nonlocal found
            of_topic = await arrived(servers, topics.PRIVACY_RECEIPTS)
            found = [r for r in of_topic if r.event.data.case == case]
            return {(r.event.data.holder, r.event.data.epoch) for r in found} >= wanted

        await self.mesh.until(there, WITHIN, f"receipts {wanted}")
        return found

    async def scan(self, action: str, who: str) -> dict[tuple[str, str], str]:
        """The auditor's verdicts on the stores of these holders."""
        case = new_case()
        await self.say([await self.retention.order(case, subjects_of(who), ["audit"], action=action)])
        (scanned,) = await self.retention.receipts(case, 1, WITHIN)
        found = {(s.holder, s.store): s.verdict for s in scanned.stores if s.holder in self.names}
        assert {holder for holder, _ in found} == self.names, "the auditor did not look at all of them"
        return found

    async def standing(self, who: str) -> Standing:
        """(holder, table) -> its rows in whose text, or bytes, an id of `who` stands; the kit's own look, by no map."""
        ids = [value for _, value in subjects_of(who)] + [f"ses-{who}"]
        expression = "|".join([*ids, *(value.encode().hex() for value in ids)])
        found = {}
        for holder in self.holders:
            async with _connected(holder) as db:
                for (table,) in await db.fetch(_TABLES):
                    rows = await db.fetch(f'SELECT t::text FROM "{table}" t WHERE t::text ~ $1 ORDER BY 1', expression)
                    if rows:
                        found[holder.name, table] = [row[0] for row in rows]
        return found


@asynccontextmanager
async def kit(
    mesh: Mesh, seed: int, *holders: Participant, says: Mapping[str, str] | None = None
) -> AsyncIterator[Kit]:
    """The kit for these holders, with a way of its own to the keys."""
    async with own_vault(mesh) as vault:
        now = datetime.now(UTC)
        await vault.make_ingress([now.date()], now)
        key = await vault.ingress(now.date())
        yield Kit(mesh, holders, Gateway(seed), vault, lambda text: seal(text, *key), says=says or {})


@asynccontextmanager
async def _connected(holder: Participant) -> AsyncIterator[Any]:
    db = await asyncpg.connect(holder.database_url)
    try:
        yield db
    finally:
        await db.close()


async def _fetch(holder: Participant, sql: str) -> list[Any]:
    async with _connected(holder) as db:
        return list(await db.fetch(sql))


def _difference(before: Standing, after: Standing) -> dict[Any, Any]:
    return {
        place: (before.get(place), after.get(place))
        for place in {*before, *after} if before.get(place) != after.get(place)
    }  # fmt: skip
