"""What every holder of personal data has to do, whoever wrote it: nothing here knows one from another.

A holder is a process that reads topics of the contract and has a database. The kit makes it hold something of people,
erases some of them in every order in which orders, tombstones and events can come, and looks into the database itself.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Awaitable, Callable, Collection, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Any

import asyncpg

from services.audit.app import make_service as make_audit
from shared.contract import topics
from shared.contract.sealing import seal
from shared.contract.units import Subject
from shared.privacy.vault import Vault
from tests.support.coordinator import Coordinator, new_case, own_vault
from tests.support.gateway import Gateway, Sent
from tests.support.life import life, prices, subjects_of
from tests.support.platform import Arrived, arrived
from tests.support.world import Mesh

WITHIN = 30.0
"""A receipt comes within this (seconds), on a machine that has other things to do."""
GOOD = {"clean", "shredded", "retained", "held", "expiring"}
_ERASES = {"delete_row", "clear", "pseudonymise", "shred", "expire"}


@dataclass(slots=True)
class Participant:
    """A holder, as far as the kit needs to know it.

    `database_url`: its database, as its owner. `auditor_url`: the same, as the auditor reads it. `reads`: what the
    contract lets it read of people. `settled` returns when it has handled everything that is in its topics.
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
        running.append(await mesh.start(name))
        await mesh.owned()

    async def stop() -> None:
        await mesh.stop(running.pop())

    upper = name.upper()
    return Participant(
        name, mesh.env[f"STEWARD_{upper}_OWNER_DATABASE_URL"], mesh.env[f"STEWARD_AUDITOR_{upper}_DATABASE_URL"],
        [topic.name for topic in topics.TOPICS if name in topic.readers], start, stop, mesh.idle,
    )  # fmt: skip


@dataclass(slots=True)
class Kit:
    """The checks, in the order in which `run` makes them; each leaves the holder fit for the next."""

    mesh: Mesh
    holder: Participant
    gateway: Gateway
    vault: Vault
    seal: Callable[[str], str]
    sent: dict[str, list[Sent]] = field(default_factory=dict)
    cases: dict[str, str] = field(default_factory=dict)

    @property
    def retention(self) -> Coordinator:
        """Who orders."""
        return Coordinator(self.mesh, self.gateway, own=self.vault)

    async def run(self) -> None:
        """Everything. Raises AssertionError at the first check that does not hold."""
        env = {**self.mesh.env, f"STEWARD_AUDITOR_{self.holder.name.upper()}_DATABASE_URL": self.holder.auditor_url}
        await self.mesh.start("audit", service=make_audit(env))
        await self.holder.start()
        await self.gateway.send(self.mesh.env, [prices(self.gateway)])
        await self.holder.settled()
        await self.holds_something("gone", "away", "stays")
        bystander = await self.standing("stays")
        await self.erases_whom_nobody_knows()
        await self.erases_before_the_tombstones()
        await self.lets_nothing_back("gone", "unknown")
        await self.answers_when_it_is_back()
        await self.lets_nothing_back("away")
        now = await self.standing("stays")
        assert now == bystander, f"rows of a bystander were touched: {_difference(bystander, now)}"
        await self.is_clean("probe", "gone")
        await self.is_clean("sweep", "gone")
        await self.undeclared_places_are_found()

    # --- the checks --------------------------------------------------------------------------------------------------

    async def holds_something(self, *people: str) -> None:
        """It keeps something of everybody: what holds nothing erases well."""
        for who in people:
            self.sent[who] = life(self.gateway, who, self.holder.reads, self.seal)
            await self.gateway.send(self.mesh.env, self.sent[who])
        await self.holder.settled()
        for who in people:
            assert await self.standing(who), f"{self.holder.name} holds nothing of {who}: it proves nothing"

    async def erases_whom_nobody_knows(self) -> None:
        """no-row-subject: a receipt of nothing, and a tombstone all the same (`lets_nothing_back` shows it)."""
        case = self.cases["unknown"] = new_case()
        subjects = subjects_of("unknown")
        await self.say(self.retention.tombstones(case, subjects))
        await self.say([await self.retention.order(case, subjects, [self.holder.name])])
        (receipt,) = await self.retention.receipts(case, 1, WITHIN)
        assert sum(table.rows for table in receipt.treated) == 0, "rows were treated of somebody who has none"

    async def erases_before_the_tombstones(self) -> None:
        """duplicate-command: epochs out of order, each of them several times, and all before the tombstones."""
        case = self.cases["gone"] = new_case()
        subjects = subjects_of("gone")
        second = await self.retention.order(case, subjects, [self.holder.name], epoch=2)
        first = await self.retention.order(case, subjects, [self.holder.name])
        late = life(self.gateway, "gone", self.holder.reads, self.seal)
        await self.say([second, first, second])
        await self.say(late)
        await self.say([first, second])
        receipts = await self.receipts(case, {1, 2})
        await self.say(self.retention.tombstones(case, subjects))
        await self.say([first, second])
        await self.holder.settled()
        receipts = await self.receipts(case, {1, 2})
        ids = {(r.event.data.epoch, r.event.id) for r in receipts}
        assert len(ids) == 2, f"one receipt for each (case, epoch), however often it is given: {sorted(ids)}"
        await self.receipt_is_whole([r.event.data for r in receipts])
        assert await self.standing("gone") == {}, "rows of the erased are left"
        self.sent["gone"] += late

    async def receipt_is_whole(self, receipts: list[Any]) -> None:
        """It says by which map and which code, and every table with personal columns stands in it."""
        db = await asyncpg.connect(self.holder.database_url)
        try:
            declared = await db.fetch("SELECT table_name, category, on_erasure, map_version FROM mesh_data_map")
        finally:
            await db.close()
        versions = {row["map_version"] for row in declared}
        own = {
            row["table_name"] for row in declared
            if row["category"].startswith("user.") and row["on_erasure"] in _ERASES
            and not row["table_name"].startswith("mesh_")
        }  # fmt: skip
        assert own, "the holder's map names no table with something personal"
        for receipt in receipts:
            assert {receipt.map_version} == versions and receipt.code_version
            missing = own - {table.table for table in receipt.treated}
            assert not missing, f"the receipt says nothing of {sorted(missing)}"
        assert sum(table.rows for receipt in receipts for table in receipt.treated) > 0

    async def lets_nothing_back(self, *people: str) -> None:
        """late-event: neither what was sent before, sent again, nor what is new has effects."""
        for who in people:
            again = self.sent.get(who, [])
            await self.say([*again, *life(self.gateway, who, self.holder.reads, self.seal)])
        await self.holder.settled()
        for who in people:
            found = await self.standing(who)
            assert found == {}, f"late events brought {who} back: {found}"

    async def answers_when_it_is_back(self) -> None:
        """A holder that was away when it was ordered erases as soon as it is there."""
        await self.holder.stop()
        case = self.cases["away"] = new_case()
        subjects = subjects_of("away")
        await self.say([await self.retention.order(case, subjects, [self.holder.name])])
        await self.say(self.retention.tombstones(case, subjects))
        await self.holder.start()
        (receipt,) = await self.retention.receipts(case, 1, WITHIN)
        assert sum(table.rows for table in receipt.treated) > 0
        await self.holder.settled()
        assert await self.standing("away") == {}

    async def is_clean(self, action: str, who: str) -> None:
        """The auditor, who reads the database by the holder's own map, finds nothing that should not be there."""
        bad = {store.store: store.verdict for store in await self.scan(action, who) if store.verdict not in GOOD}
        assert bad == {}, f"the {action} finds {bad}"

    async def undeclared_places_are_found(self) -> None:
        """unmapped: a table, and a column, that nobody declared and that hold the id are residue."""
        held = [table for table in await self.standing("stays") if not table.startswith("mesh_")]
        await self.holder.stop()
        db = await asyncpg.connect(self.holder.database_url)
        try:
            await db.execute("CREATE TABLE stray (about text)")
            await db.execute("INSERT INTO stray VALUES ('see ws-gone, please')")
            await db.execute(f"ALTER TABLE {held[0]} ADD COLUMN stray text DEFAULT 'ws-gone'")
        finally:
            await db.close()
        found = {store.store: store.verdict for store in await self.scan("sweep", "gone")}
        assert (found.get("stray"), found.get(held[0])) == ("residue", "residue"), f"unmapped places: {found}"

    # --- means -------------------------------------------------------------------------------------------------------

    async def say(self, records: list[Sent]) -> None:
        """Sends."""
        await self.gateway.send(self.mesh.env, records)

    async def receipts(self, case: str, epochs: set[int]) -> list[Arrived]:
        """All receipts of a case, once there is one for each epoch."""
        servers = self.mesh.env["STEWARD_KAFKA_BOOTSTRAP_SERVERS"]
        found: list[Arrived] = []

        async def there() -> bool:
            nonlocal found
            of_topic = await arrived(servers, topics.PRIVACY_RECEIPTS)
            found = [r for r in of_topic if r.event.data.case == case and r.event.type == "privacy.done.v1"]
            return {r.event.data.epoch for r in found} >= epochs

        await self.mesh.until(there, WITHIN, f"receipts for epochs {epochs}")
        return found

    async def scan(self, action: str, who: str) -> list[Any]:
        """The auditor's verdicts on this holder's stores."""
        case = new_case()
        await self.say([await self.retention.order(case, subjects_of(who), ["audit"], action=action)])
        (scanned,) = await self.retention.receipts(case, 1, WITHIN)
        stores = [store for store in scanned.stores if store.holder == self.holder.name]
        assert stores, "the auditor did not look at this holder"
        return stores

    async def standing(self, who: str) -> Mapping[str, list[str]]:
        """Table -> its rows in whose text, or bytes, an id of `who` stands; the kit's own look, by no map."""
        ids = [value for _, value in subjects_of(who)] + [f"ses-{who}"]
        expression = "|".join([*ids, *(value.encode().hex() for value in ids)])
        db = await asyncpg.connect(self.holder.database_url)
        try:
            tables = await db.fetch(
                """SELECT c.relname FROM pg_class c WHERE c.relnamespace = 'public'::regnamespace
                   AND c.relkind IN ('r', 'p') AND NOT c.relispartition"""
            )
            found = {}
            for (table,) in tables:
                rows = await db.fetch(f'SELECT t::text FROM "{table}" t WHERE t::text ~ $1 ORDER BY 1', expression)
                if rows:
                    found[table] = [row[0] for row in rows]
            return found
        finally:
            await db.close()


@asynccontextmanager
async def kit(mesh: Mesh, holder: Participant, seed: int) -> AsyncIterator[Kit]:
    """The kit for one holder, with keys of its own."""
    async with own_vault(mesh) as vault:
        now = datetime.now(UTC)
        await vault.make_ingress([now.date()], now)
        key = await vault.ingress(now.date())
        yield Kit(mesh, holder, Gateway(seed, source=f"gw-{holder.name}"), vault, lambda text: seal(text, *key))


def _difference(before: Mapping[str, list[str]], after: Mapping[str, list[str]]) -> dict[str, Any]:
    return {
        table: (before.get(table), after.get(table))
        for table in {*before, *after} if before.get(table) != after.get(table)
    }  # fmt: skip


__all__ = ["GOOD", "WITHIN", "Kit", "Participant", "Subject", "kit", "room"]
