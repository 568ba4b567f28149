"""How a deletion fails, at a holder: each scenario by its name in the catalogue, and with its guard switched off.

Elsewhere, under the same names: late-event, replay-from-zero, new-consumer and restore in test_erasure.py; no-row-subject,
holder-down, holder-gone and own-record in test_retention_room.py; half-created in test_erasure_crashes.py; holder-skipped in
test_residue.py; hold-mid-fan-out and hold-released in test_holds.py; sign-in in test_sessions.py; aggregate-state, and
payments and disputes after an erasure, in test_billing_erasure.py; erase-vs-export and export-outlives in test_errands.py;
clock in test_deadlines.py. The mail provider's lists come with the provider.
"""

from __future__ import annotations

import asyncio
import contextlib
import time
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from importlib import import_module
from typing import Any

import asyncpg
import pytest
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter
from prometheus_client import generate_latest

from deploy.rooms import ROOMS
from services.metering.app import make_service
from shared.contract import events, topics
from shared.contract.sealing import seal
from shared.contract.units import Subject
from shared.mesh import Service, Transaction, metrics, tracing
from shared.mesh.http import NotFound, NotKept
from shared.mesh.runtime import Runtime
from shared.mesh.service import Consumer
from shared.mesh.transaction import Caller
from shared.privacy import holder
from shared.privacy.data_map import Holding
from shared.privacy.erasure import Letters
from shared.privacy.holder import treatment_of
from tests.support.books import assert_balances
from tests.support.coordinator import Coordinator, new_case
from tests.support.gateway import Gateway, Sent, body
from tests.support.platform import arrived
from tests.support.rewind import rewind
from tests.support.world import Mesh, make

GONE: list[Subject] = [("account", "acc-ws-0"), ("workspace", "ws-0"), ("key", "key-ws-0")]
LOGGED = "SELECT count(*) FROM request_log WHERE workspace = 'ws-0'"
guards = pytest.mark.parametrize("guarded", [True, False], ids=["guarded", "unguarded"])


async def one_room(mesh: Mesh, gateway: Gateway, name: str = "metering", **options: Any) -> Coordinator:
    """A room with a price that is known, and who orders it to erase."""
    await gateway.send(mesh.env, [gateway.price()])
    runtime = await mesh.start(name, **options)
    await mesh.owned()
    await mesh.idle()
    return Coordinator(mesh, gateway, runtime)


async def erase(retention: Coordinator, *holders: str, epoch: int = 1, case: str | None = None, **more: Any) -> Any:
    """Tombstones and the order; the first holder's receipt."""
    case = case or new_case()
    order = await retention.order(case, GONE, holders or ["metering"], epoch=epoch, **more)
    await retention.gateway.send(retention.mesh.env, [*retention.tombstones(case, GONE), order])
    return (await retention.receipts(case, epoch))[-1]


class Held:
    """Holds a service at a point, the first time that it passes there, until it is let go."""

    def __init__(self, point: str) -> None:
        self._point = point
        self.armed = False
        self.there, self.go = asyncio.Event(), asyncio.Event()

    async def __call__(self, point: str) -> None:
        if self.armed and point == self._point:
            self.armed = False
            self.there.set()
            await self.go.wait()


@guards
@pytest.mark.promise(44)
async def test_batch_in_flight(mesh: Mesh, seed: int, guarded: bool) -> None:
    """A transaction looked, saw no tombstone, and commits after the erasure went over its table."""
    gateway, held = Gateway(seed), Held("before_commit")
    service = make_service()
    if not guarded:
        service.guard = None
    retention = await one_room(mesh, gateway, service=service, fault=held)
    held.armed = True
    await gateway.send(mesh.env, [gateway.generation("ws-0", counted=False)])
    await held.there.wait()
    case = new_case()
    order = await retention.order(case, GONE, ["metering"])
    await gateway.send(mesh.env, [*retention.tombstones(case, GONE), order])

    async def settled() -> bool:
        """With the guard: whoever would add tombstones waits. Without it: the erasure is over."""
        if guarded:
            waiting = "SELECT count(*) FROM pg_locks WHERE locktype = 'advisory' AND NOT granted"
            return bool(await mesh.value("metering", waiting))
        return bool(await mesh.value("metering", "SELECT count(*) FROM mesh_erasure WHERE done_at IS NOT NULL"))

    await mesh.until(settled, 9, "the erasure waits, or is over")
    held.go.set()
    await retention.receipts(case, 1)
    await mesh.idle()
    left = await mesh.value("metering", LOGGED)
    assert left == 0 if guarded else left > 0, f"{left} rows are left"


@guards
@pytest.mark.promise(44)
async def test_retry_and_dlq(mesh: Mesh, seed: int, guarded: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its events sit among the dead letters and the parked records, and are sent again after the erasure."""
    gateway = Gateway(seed)
    broken = {"ws-0"}
    billing = make("billing")
    payments = next(c for c in billing.consumers if c.topic is topics.PAYMENTS)
    handle = payments.handler

    async def failing(batch: Any, tx: Any) -> None:
        if any(received.event.data.workspace in broken for received in batch.events):
            raise RuntimeError("a bug, for now")
        await handle(batch, tx)

    consumers = [replace(c, handler=failing) if c is payments else c for c in billing.consumers]
    await mesh.start("billing", service=replace(billing, consumers=consumers))
    retention = await one_room(mesh, gateway)
    if not guarded:
        monkeypatch.setattr(Letters, "erase", _erases_nothing)
    half = gateway.generation("ws-0", counted=False)
    half.value = (half.value or b"")[:-20]
    keyed = Sent(topics.GENERATIONS, b"ws-0", b"\xff not json", [("about", b"acc-ws-0")])
    wrong = gateway.generation("ws-0", counted=False, input_tokens=1)
    other = gateway.generation("ws-1", counted=False, input_tokens=1)
    await gateway.send(mesh.env, [half, keyed, wrong, other])
    await gateway.send(mesh.env, [gateway.payment("ws-0", 5), gateway.payment("ws-0", 7), gateway.payment("ws-1", 5)])
    await mesh.idle()
    letters = await mesh.fetch("metering", "SELECT id FROM mesh_dead_letter ORDER BY id")
    assert len(letters) == 4 and await mesh.value("billing", "SELECT count(*) FROM mesh_parked") == 2
    # One of them is on its way to its topic again when the erasure begins.
    await gateway.send(mesh.env, [gateway.command("metering", "replay_dead_letter", str(letters[2]["id"]))])
    await erase(retention, "metering", "billing")
    await mesh.idle()
    left = await mesh.value("metering", "SELECT count(*) FROM mesh_dead_letter")
    parked = await mesh.value("billing", "SELECT count(*) FROM mesh_parked")
    if not guarded:
        assert (left, parked) == (4, 2), "nothing had to be deleted: this test proves nothing"
        return
    # Money that waits is booked, whoever it was about, and makes nobody known. What was on its way may have been refused
    # again after the erasure: then it is a late letter.
    later = "SELECT count(*) FROM mesh_dead_letter WHERE id > $1"
    assert left - await mesh.value("metering", later, letters[-1]["id"]) == 1 and parked == 2
    broken.clear()
    again = [gateway.command("metering", "replay_dead_letter", str(row["id"])) for row in letters]
    await gateway.send(mesh.env, [*again, gateway.command("billing", "release_parked", topics.PAYMENTS.name)])
    await mesh.idle()
    assert await mesh.value("metering", LOGGED) == 0
    assert await mesh.value("billing", "SELECT count(*) FROM mesh_parked") == 0
    assert await mesh.value("billing", "SELECT count(*) FROM workspace_ref WHERE workspace = 'ws-0'") == 0
    # A letter that comes after the erasure goes when the scan that found it has it erased again.
    late = gateway.generation("ws-0", counted=False, input_tokens=1)
    await gateway.send(mesh.env, [late])
    await mesh.idle()
    assert await mesh.value("metering", "SELECT count(*) FROM mesh_dead_letter") == left + 1
    await erase(retention, "metering")
    assert await mesh.value("metering", "SELECT count(*) FROM mesh_dead_letter") == 1


async def _erases_nothing(tx: Any, orders: Any) -> Any:
    """In place of a guard that is switched off."""
    return {}


@guards
@pytest.mark.promise(44)
async def test_duplicate_command(mesh: Mesh, seed: int, guarded: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    """The command comes three times, and while a second replica takes over: one receipt, whoever gives it."""
    if not guarded:
        monkeypatch.setattr(holder, "derived_id", lambda *cause: new_case())
    gateway = Gateway(seed)
    retention = await one_room(mesh, gateway)
    first = retention.runtime
    assert first is not None
    await gateway.send(mesh.env, [gateway.generation("ws-0", counted=False) for _ in range(5)])
    await mesh.idle()
    case = new_case()
    order = await retention.order(case, GONE, ["metering"])
    joining = asyncio.create_task(mesh.start("metering"))
    await gateway.send(mesh.env, [order, *retention.tombstones(case, GONE), order])
    await joining
    await mesh.stop(first)
    await gateway.send(mesh.env, [order])
    await mesh.owned()
    await mesh.idle()
    found = await arrived(mesh.env["STEWARD_KAFKA_BOOTSTRAP_SERVERS"], topics.PRIVACY_RECEIPTS)
    ids = {record.event.id for record in found if record.event.data.case == case}
    assert len(ids) == 1 if guarded else len(ids) > 1, f"{len(ids)} receipts"
    assert await mesh.value("metering", LOGGED) == 0
    assert await mesh.value("metering", "SELECT count(*) FROM mesh_erasure") == 1


@guards
@pytest.mark.promise(44)
async def test_rollup_after_erasure_and_future_dated(mesh: Mesh, seed: int, guarded: bool) -> None:
    """After an erasure everything is read again: what is summed up stays as it is, and of the erased nothing comes.

    future-dated: the erased subject's newest event lies after the request, and goes like all others.
    """
    gateway = Gateway(seed, workspaces=4)
    retention = await one_room(mesh, gateway, service=make_service(dedupe=guarded))
    ahead = gateway.generation("ws-0", counted=False, at_ms=int(time.time() * 1000) + 240_000)
    await gateway.send(mesh.env, [*gateway.some(100), ahead])
    await mesh.idle()
    newest = await mesh.value("metering", "SELECT max(occurred_at) FROM request_log WHERE workspace = 'ws-0'")
    assert newest > datetime.now(UTC) + timedelta(minutes=1), "the newest event does not lie after the request"
    receipt = await erase(retention)
    assert await mesh.value("metering", LOGGED) == 0
    before = await summed_up(mesh)
    assert {row["workspace"] for row in before} == {"ws-1", "ws-2", "ws-3"}
    treated = {table.table: table.rows for table in receipt.treated}
    assert treated["rollup_hourly"] > 0, "hours of the erased were summed up"
    await rewind(mesh, "metering", topics.GENERATIONS.name)
    await mesh.idle()
    after = await summed_up(mesh)
    assert (after == before) is guarded, "sums after everything was read once more"
    assert "ws-0" not in {row["workspace"] for row in after}


async def summed_up(mesh: Mesh) -> list[Any]:
    """Metering's sums by workspace, once none is on its way."""

    async def added() -> bool:
        return not await mesh.value("metering", "SELECT count(*) FROM pending")

    await mesh.until(added, 20, "sums are added up")
    return await mesh.fetch(
        "metering",
        "SELECT workspace, sum(generations) AS n, sum(amount_pico) AS pico FROM rollup_hourly GROUP BY 1 ORDER BY 1",
    )


@guards
@pytest.mark.promise(44)
async def test_id_reuse(mesh: Mesh, seed: int, guarded: bool) -> None:
    """sign-in, id-reuse: the old ids and the bare identity make nobody known; a new account of the same person is served."""
    service = make("security")
    if not guarded:
        service.filter = None
    gateway = Gateway(seed)
    retention = Coordinator(mesh, gateway, await mesh.start("security", service=service))
    await mesh.owned()
    now = datetime.now(UTC)
    await retention.vault.make_ingress([now.date()], now)
    address = seal("192.0.2.7", *await retention.vault.ingress(now.date()))

    def access(**who: str) -> Sent:
        data = {"kind": "sign_in", "ip": address} | who
        return gateway.event(topics.ACCESS, events.AccessRecorded, data, subject=who.get("account", "nobody"))

    await gateway.send(mesh.env, [access(account="acc-old", identity="idn-1"), access(identity="idn-1")])
    await mesh.idle()
    case, old = new_case(), [("account", "acc-old"), ("identity", "idn-1")]
    await gateway.send(mesh.env, [*retention.tombstones(case, old), await retention.order(case, old, ["security"])])
    await retention.receipts(case, 1)
    assert await mesh.value("security", "SELECT count(*) FROM access_row") == 0
    await gateway.send(
        mesh.env,
        [
            access(account="acc-old", identity="idn-1"),
            access(identity="idn-1"),
            access(account="acc-new", identity="idn-1"),
        ],
    )
    await mesh.idle()
    rows = await mesh.fetch("security", "SELECT to_jsonb(r)::text AS row FROM access_row r")
    assert any("acc-new" in row["row"] for row in rows), "a new person is kept out by an old tombstone"
    assert len(rows) == (1 if guarded else 3)


@guards
@pytest.mark.promise(44)
async def test_usage_that_was_rated_and_not_yet_booked(mesh: Mesh, seed: int, guarded: bool) -> None:
    """Metering erases while its rated usage still waits for billing, who is to erase behind it: the books are whole."""
    gateway = Gateway(seed, workspaces=3)
    go, case = asyncio.Event(), new_case()
    go.set()
    billing = await mesh.start("billing", service=_slow(make("billing"), go))
    retention = await one_room(mesh, gateway)
    metering = retention.runtime
    assert metering is not None
    await gateway.send(mesh.env, [gateway.payment("ws-0", 50), gateway.payment("ws-1", 50)])
    await mesh.idle()
    # What is rated from here on waits until the order is known; an order that names offsets waits for it.
    go.clear()
    await gateway.send(mesh.env, [*gateway.some(200), gateway.generation("ws-0")])

    async def rated() -> bool:
        return bool((await metering.idle())["idle"])

    await mesh.until(rated, 30, "everything is rated")
    receipt = await erase(retention)
    after = receipt.offsets if guarded else {}
    await gateway.send(mesh.env, [await retention.order(case, GONE, ["billing"], after=after)])
    known = "SELECT count(*) FROM mesh_erasure" + ("" if guarded else " WHERE done_at IS NOT NULL")

    async def reached() -> bool:
        return bool(await mesh.value("billing", known))

    await mesh.until(reached, 30, "the order is known, or carried out")
    if guarded:
        # Whoever starts again meanwhile finds tombstones that it has not obeyed, and waits all the same.
        await mesh.abandon(billing)
        await mesh.start("billing", service=_slow(make("billing"), go))
    go.set()
    await retention.receipts(case, 1)
    await mesh.idle()
    charged = await mesh.value("billing", "SELECT sum(amount_pico) FROM charge_line")
    assert int(charged) == sum(gateway.charges.values()), "what was rated is booked, whoever is erased"
    assert await mesh.value("billing", "SELECT coalesce(sum(amount_pico), 0) FROM entry") == 0
    on_nobody = "SELECT count(*) FROM charge_line WHERE workspace_id IS NULL"
    # Without the offsets the erasure is over first, and money that was owed by somebody is owed by nobody.
    assert (await mesh.value("billing", on_nobody) == 0) is guarded
    del gateway.charges["ws-0"], gateway.credits["ws-0"]
    await assert_balances(mesh, gateway)


def _slow(service: Service, go: asyncio.Event) -> Service:
    """The service, with its usage held back: as long as it may not go on, its database is as good as away."""

    def slowed(consumer: Consumer) -> Consumer:
        async def handler(batch: Any, tx: Any) -> None:
            if not go.is_set():
                raise asyncpg.InterfaceError("not yet")
            await consumer.handler(batch, tx)

        return replace(consumer, handler=handler)

    return replace(service, consumers=[slowed(c) if c.topic is topics.USAGE_RATED else c for c in service.consumers])


@pytest.mark.promise(44)
async def test_logs_and_traces_and_cache_and_view(
    mesh: Mesh, seed: int, caplog: pytest.LogCaptureFixture, request: pytest.FixtureRequest
) -> None:
    """An erasure with all that can go wrong says no id in logs, metrics and spans; and no read finds any afterwards."""
    spans = InMemorySpanExporter()
    provider = TracerProvider()
    provider.add_span_processor(SimpleSpanProcessor(spans))
    tracing.use_provider(provider)
    request.addfinalizer(tracing.stop)
    caplog.set_level("INFO")
    gateway = Gateway(seed, workspaces=3)
    billing = await mesh.start("billing")
    retention = await one_room(mesh, gateway)
    metering = retention.runtime
    assert metering is not None
    wrong = gateway.generation("ws-0", counted=False, input_tokens=1)
    unpriced = gateway.generation("ws-0", counted=False, model="nobody-knows")
    known = gateway.generation("ws-0")
    payments = [gateway.payment(f"ws-{n}", 5) for n in range(3)]
    await gateway.send(mesh.env, [*gateway.some(100), known, wrong, unpriced, *payments])
    await gateway.send(mesh.env, [Sent(topics.GENERATIONS, b"ws-0", b'{"workspace": "ws-0", ', [])])
    await mesh.idle()
    await reads(metering, "explain", id=body(known)["id"])
    await erase(retention, "metering", "billing")
    await gateway.send(mesh.env, [gateway.generation("ws-0", counted=False), gateway.payment("ws-0", 5)])
    await mesh.idle()
    with pytest.raises((NotFound, NotKept)):
        await reads(metering, "explain", id=body(known)["id"])
    said = []
    questions = [(runtime, name) for runtime in (metering, billing) for name in runtime.service.read_handlers]
    for runtime, name in questions:
        for workspace in ("ws-0", "ws-1"):
            with contextlib.suppress(NotFound, KeyError, ValueError):
                said.append(str(await reads(runtime, name, workspace=workspace, kind="workspace", id=workspace)))
    text = {
        "logs": caplog.text, "metrics": generate_latest(metrics.REGISTRY).decode(), "reads": "\n".join(said),
        "spans": "\n".join(span.to_json() for span in spans.get_finished_spans()),
    }  # fmt: skip
    assert all(text.values()) and "ws-1" in text["reads"], "there is nothing to look through"
    ids = [value for _, value in GONE]
    assert {where: [i for i in ids if i in found] for where, found in text.items()} == {where: [] for where in text}


async def reads(runtime: Runtime, name: str, **query: str) -> Any:
    """What the service answers to a read by somebody who has a case in hand. Raises as the read does."""
    caller = Caller("ann", "support", "SUP-1")
    async with runtime.pool.acquire() as db, db.transaction():
        tx = Transaction(runtime.service.name, db, runtime.clock.now(), plugged=runtime.plugged, caller=caller)
        return await runtime.service.read_handlers[name](query, tx)


# --- orphan-fk -------------------------------------------------------------------------------------------------------

FOREIGN_KEYS = """SELECT c.conrelid::regclass::text AS of, c.confrelid::regclass::text AS to, c.confdeltype::text AS rule
                  FROM pg_constraint c WHERE c.contype = 'f' AND c.conparentid = 0
                  AND c.connamespace = 'public'::regnamespace"""


def misfits(holding: Holding, keys: list[tuple[str, str, str]]) -> list[str]:
    """What would make an erasure fail, or leave rows without their owner, a sentence each.

    `keys`: (referring table, table referred to, pg_constraint.confdeltype).
    """
    order = [rows.table for rows in holding.rows]
    deleted = {rows.table for rows in holding.rows if treatment_of(holding.columns, rows).action == "delete_row"}
    found = [
        f"{of} refers to {to} and is erased by nobody" if of not in order else f"{to} is erased before {of}"
        for of, to, rule in keys
        if to in deleted and rule not in ("c", "n") and (of not in order or order.index(of) > order.index(to))
    ]
    for rows in holding.rows:
        if (
            rows.through is not None
            and rows.through[1] in deleted
            and order.index(rows.through[1]) < order.index(rows.table)
        ):
            found.append(f"{rows.table} is found through {rows.through[1]}, which is gone by then")
    return found


async def test_orphan_fk(mesh: Mesh) -> None:
    """The order of every erasure against the live catalogue; and an unlisted table that refers to a row is seen."""
    holdings = {name: import_module(f"services.{name}.data_map").HOLDING for name in topics.HOLDERS if name in ROOMS}
    for name, holding in holdings.items():
        keys = [tuple(row) for row in await mesh.fetch(name, FOREIGN_KEYS)]
        assert misfits(holding, keys) == [], name
    await mesh.fetch("billing", "CREATE TABLE stray (n bigint REFERENCES workspace_ref (id))")
    keys = [tuple(row) for row in await mesh.fetch("billing", FOREIGN_KEYS)]
    assert "stray refers to workspace_ref and is erased by nobody" in misfits(holdings["billing"], keys)
    turned = replace(holdings["billing"], rows=tuple(reversed(holdings["billing"].rows)))
    assert "note is found through workspace_ref, which is gone by then" in misfits(turned, [])
