"""An erasure in a holder: what goes, what stays, and that nothing comes back."""

from __future__ import annotations

import asyncio
import importlib
from datetime import UTC, datetime
from typing import Any

import pytest

from shared.contract import events, topics
from shared.contract.base import Event
from shared.contract.sealing import seal
from shared.contract.units import Subject
from shared.privacy.holder import Holder
from tests.support.books import assert_balances
from tests.support.coordinator import Coordinator, new_case
from tests.support.gateway import Gateway, Sent
from tests.support.world import Mesh

GONE: list[Subject] = [("account", "acc-ws-0"), ("workspace", "ws-0"), ("key", "key-ws-0")]


async def rows_of(mesh: Mesh, word: str) -> dict[str, int]:
    """Table -> rows of metering's database in whose text the word stands; tables with none are left out."""
    tables = await mesh.fetch(
        "metering",
        """SELECT relname FROM pg_class WHERE relnamespace = 'public'::regnamespace AND relkind IN ('r', 'p')
           AND NOT relispartition""",
    )
    found = {}
    for (table,) in tables:
        n = await mesh.value("metering", f'SELECT count(*) FROM "{table}" t WHERE t::text ~ $1', rf"\m{word}\M")
        if n:
            found[table] = n
    return found


async def started(mesh: Mesh, gateway: Gateway) -> Coordinator:
    """Metering and billing, with some usage booked."""
    await gateway.send(
        mesh.env, [gateway.price(), *gateway.some(400), gateway.generation("ws-0"), gateway.generation("ws-0")]
    )
    waiting = [gateway.generation("ws-0", model="nobody-knows", counted=False) for _ in range(3)]
    await gateway.send(mesh.env, [*waiting, gateway.generation("ws-1", model="nobody-knows", counted=False)])
    metering = await mesh.start("metering")
    await mesh.start("billing")
    await mesh.owned()
    await mesh.idle()
    return Coordinator(mesh, gateway, metering)


async def test_rows_of_the_erased_go_and_all_others_stay(mesh: Mesh, seed: int) -> None:
    gateway = Gateway(seed, workspaces=4)
    retention = await started(mesh, gateway)
    before = await rows_of(mesh, "ws-1")
    assert (await rows_of(mesh, "ws-0")).keys() >= {"request_log", "rollup_hourly", "quarantine"}
    case = new_case()
    await gateway.send(mesh.env, retention.tombstones(case, GONE))
    await gateway.send(mesh.env, [await retention.order(case, GONE, ["metering"])])
    (receipt,) = await retention.receipts(case, 1)
    assert await rows_of(mesh, "ws-0") == await rows_of(mesh, "key-ws-0") == {}
    assert await rows_of(mesh, "ws-1") == before
    treated = {each.table: each for each in receipt.treated}
    assert treated["quarantine"].rows == 3 and treated["request_log"].rows > 0
    assert sum(receipt.offsets[topics.USAGE_RATED.name].values()) > 0
    await mesh.idle()
    counters = await mesh.counters()
    assert counters["quarantined"] == 1 and counters["erased"] == 3
    await assert_balances(mesh, gateway)


@pytest.mark.parametrize("suppress", [True, False], ids=["guarded", "unguarded"])
async def test_late_event(mesh: Mesh, seed: int, suppress: bool) -> None:
    """An event of the erased arrives after its tombstone: without the guard it would be back."""
    from services.metering.app import make_service

    gateway = Gateway(seed, workspaces=4)
    await gateway.send(mesh.env, [gateway.price(), *gateway.some(50)])
    metering = await mesh.start("metering", service=make_service(suppress=suppress))
    await mesh.owned()
    await mesh.idle()
    retention = Coordinator(mesh, gateway, metering)
    case = new_case()
    await gateway.send(mesh.env, retention.tombstones(case, GONE))
    await gateway.send(mesh.env, [await retention.order(case, GONE, ["metering"])])
    await retention.receipts(case, 1)
    late = [gateway.generation("ws-0", counted=False) for _ in range(5)]
    await gateway.send(mesh.env, [*late, late[0], gateway.generation("ws-1")])
    await mesh.idle()
    found = await rows_of(mesh, "ws-0")
    if not suppress:
        assert found, "without tombstones the events would not come back: this test proves nothing"
        return
    assert found == {}
    counters = await mesh.counters()
    assert counters["erased"] == 5
    classes: Any = [counters.get(name, 0) for name in ("rated", "duplicates", "quarantined", "erased")]
    assert counters["records:gateway.generations"] == sum(classes)


@pytest.mark.parametrize("reapply", [True, False], ids=["guarded", "unguarded"])
async def test_restore(mesh: Mesh, seed: int, reapply: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    """An older copy of the database is put back: it is erased again before the service takes work."""
    gateway = Gateway(seed, workspaces=4)
    await gateway.send(mesh.env, [gateway.price(), *gateway.some(200), gateway.generation("ws-0")])
    metering = await mesh.start("metering")
    await mesh.owned()
    await mesh.idle()
    retention = Coordinator(mesh, gateway, metering)
    await mesh.stop(metering)
    await mesh.copy_database("metering", "before")
    retention.runtime = metering = await mesh.start("metering")
    case = new_case()
    await gateway.send(mesh.env, retention.tombstones(case, GONE))
    await gateway.send(mesh.env, [await retention.order(case, GONE, ["metering"])])
    await retention.receipts(case, 1)
    await retention.vault.destroy("case", [case])  # the certificate was given: the order cannot be read again
    others = await rows_of(mesh, "ws-1")
    await mesh.stop(metering)
    await mesh.restore_database("metering", "before")
    assert await rows_of(mesh, "ws-0")
    if not reapply:
        monkeypatch.setattr(Holder, "reapply", _nothing)
    await mesh.start("metering")
    if not reapply:
        assert await rows_of(mesh, "ws-0"), "nothing had to be erased again: this test proves nothing"
        return
    assert await rows_of(mesh, "ws-0") == {}, "the service takes work, and the erased subject is back"
    await mesh.owned()
    await mesh.idle()
    assert await rows_of(mesh, "ws-0") == {}
    assert await rows_of(mesh, "ws-1") == others


async def _nothing(self: Holder, runtime: Any) -> None:
    """In place of a guard that is switched off."""


async def test_new_consumer_and_replay_from_zero(mesh: Mesh, seed: int) -> None:
    """A service that is started for the first time after the erasure, and reads everything from the first record on."""
    gateway = Gateway(seed, workspaces=4)
    await gateway.send(mesh.env, [gateway.price(), *gateway.some(200), gateway.generation("ws-0")])
    metering = await mesh.start("metering")
    await mesh.owned()
    await mesh.idle()
    retention = Coordinator(mesh, gateway, metering)
    case = new_case()
    await gateway.send(mesh.env, retention.tombstones(case, GONE))
    await gateway.send(mesh.env, [await retention.order(case, GONE, ["metering"])])
    await retention.receipts(case, 1)
    others = await mesh.value("metering", "SELECT count(*) FROM request_log")
    await mesh.stop(metering)
    async with mesh.world.admin() as admin:
        await admin.execute("DROP DATABASE steward_metering WITH (FORCE)")
        await admin.execute("CREATE DATABASE steward_metering TEMPLATE template_metering OWNER steward_metering_owner")
    await mesh.start("metering")
    await mesh.owned()
    await mesh.idle()
    assert await mesh.value("metering", "SELECT count(*) FROM request_log") == others > 0
    found = await rows_of(mesh, "ws-0")
    assert found == {}
    counters = await mesh.counters()
    assert counters["erased"] > 0


# Where key metadata and workspace settings stand: (service, table) -> what leads to its owner, and what it says.
SETTINGS = {
    ("retention", "api_key"): ("account", {"key", "name", "member", "created_at"}),
    ("retention", "workspace"): ("account", {"log_retention_days", "activity_opt_out"}),
    ("metering", "workspace_setting"): ("workspace", {"log_retention_days"}),
    ("insights", "workspace_setting"): ("account", {"activity_opt_out"}),
}


@pytest.mark.promise(70)
async def test_key_metadata_and_settings_are_personal_have_an_owner_and_go(mesh: Mesh, seed: int) -> None:
    """In every service that knows them: classified as a person's, with an end, and gone after an erasure."""
    gateway = Gateway(seed, workspaces=2)
    runtimes = await asyncio.gather(*(mesh.start(room) for room in ("retention", "metering", "insights")))
    await mesh.owned()
    key_id, public = await runtimes[0].plugged["vault"].ingress(datetime.now(UTC).date())

    def said(event: type[Event], workspace: str, **data: Any) -> Sent:
        account = f"acc-{workspace}"
        return gateway.event(
            topics.ACCOUNTS, event, {"account": account, "workspace": workspace, **data}, key=account, subject=account
        )

    for ws in ("ws-0", "ws-1"):
        name = seal(f"laptop of {ws}", key_id, public)
        settings = {"version": 1, "log_retention_days": 7, "actor": f"mem-{ws}", "role": "administrator"}
        await gateway.send(
            mesh.env,
            [
                said(events.WorkspaceCreated, ws, administrator=f"mem-{ws}"),
                said(events.KeyCreated, ws, key=f"key-{ws}", member=f"mem-{ws}", name=name),
                said(events.SettingsStated, ws, **settings),
            ],
        )
    await mesh.idle()

    async def owners() -> dict[tuple[str, str], set[str]]:
        return {
            (room, table): {row[0] for row in await mesh.fetch(room, f"SELECT {column} FROM {table}")}
            for (room, table), (column, _) in SETTINGS.items()
        }

    names = {"account": ("acc-ws-0", "acc-ws-1"), "workspace": ("ws-0", "ws-1")}
    assert await owners() == {place: set(names[column]) for place, (column, _) in SETTINGS.items()}
    for (room, table), (column, said_of_it) in SETTINGS.items():
        holding = importlib.import_module(f"services.{room}.data_map").HOLDING
        personal = {c.column for c in holding.columns if c.table == table and c.personal and c.period is not None}
        assert said_of_it <= personal, (room, table)
        (rows,) = [rows for rows in holding.rows if rows.table == table]
        assert rows.owners[column] == column
    retention = Coordinator(mesh, gateway, runtimes[0])
    case = new_case()
    await gateway.send(mesh.env, retention.tombstones(case, GONE))
    await gateway.send(mesh.env, [await retention.order(case, GONE, ["retention", "metering", "insights"])])
    await retention.receipts(case, 3)
    await mesh.idle()
    assert await owners() == {place: {names[column][1]} for place, (column, _) in SETTINGS.items()}
