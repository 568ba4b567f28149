"""PostgreSQL and Kafka go away and come back; replies are lost; nobody restarts a service for it."""

from __future__ import annotations

import asyncio
from urllib.parse import urlsplit

import asyncpg
import pytest

from tests.faults.test_fence import Gate
from tests.support.books import assert_books
from tests.support.gateway import Gateway
from tests.support.proxy import Proxy, through
from tests.support.world import Mesh


@pytest.mark.parametrize("room", ["metering", "billing"])
async def test_the_reply_to_commit_is_lost(mesh: Mesh, room: str, seed: int) -> None:
    gateway = Gateway(seed)
    url = mesh.settings(room).database_url
    proxy = Proxy(urlsplit(url).hostname or "", urlsplit(url).port or 0)
    port = await proxy.open()
    try:
        other = "billing" if room == "metering" else "metering"
        await gateway.send(mesh.env, [gateway.price()])
        await mesh.start(other)
        await mesh.start(room, settings={"database_url": through(url, port)})
        await mesh.owned()
        for _ in range(3):
            proxy.lose_after(lambda data: b"COMMIT" in data)
            await gateway.send(mesh.env, gateway.some(100))
            await asyncio.wait_for(proxy.lost.wait(), 20)
        await mesh.idle()
        await assert_books(mesh, gateway)
    finally:
        await mesh.close()
        await proxy.close()


async def test_the_backend_dies_inside_the_transaction(mesh: Mesh, seed: int) -> None:
    gateway = Gateway(seed)
    gate = Gate("fenced", armed=False)
    await gateway.send(mesh.env, [gateway.price()])
    await mesh.start("billing")
    await mesh.start("metering", fault=gate)
    await mesh.owned()
    await mesh.idle()
    gate.armed = True
    await gateway.send(mesh.env, gateway.some(200))
    await asyncio.wait_for(gate.reached.wait(), 20)
    admin = await asyncpg.connect(mesh.env["STEWARD_POSTGRES_URL"])
    try:
        killed = await admin.fetchval(
            """SELECT count(pg_terminate_backend(pid)) FROM pg_stat_activity
               WHERE application_name = 'steward-metering' AND state = 'idle in transaction'"""
        )
    finally:
        await admin.close()
    assert killed >= 1
    gate.open.set()
    await mesh.owned()
    await mesh.idle()
    await assert_books(mesh, gateway)


async def test_postgresql_stops_and_starts(mesh: Mesh, seed: int) -> None:
    gateway = Gateway(seed)
    await gateway.send(mesh.env, [gateway.price(), *gateway.some(200)])
    metering = await mesh.start("metering")
    billing = await mesh.start("billing")
    await mesh.owned()
    server = mesh.world.stack.postgres
    assert server is not None
    await server.stop("immediate")
    try:
        await gateway.send(mesh.env, gateway.some(200))
        # Away is not dead: a restart of every pod would only make it worse.
        assert metering.troubles() == [] and billing.troubles() == []
    finally:
        await server.start()
    await mesh.idle()
    await assert_books(mesh, gateway)
    assert metering.exit_reason is None and billing.exit_reason is None


@pytest.mark.unretrieved("the client forgets its own commit task when the broker goes away in its middle")
async def test_the_broker_stops_and_starts(mesh: Mesh, seed: int) -> None:
    gateway = Gateway(seed)
    await gateway.send(mesh.env, [gateway.price(), *gateway.some(200)])
    metering = await mesh.start("metering")
    billing = await mesh.start("billing")
    await mesh.owned()
    await mesh.idle()
    broker = mesh.world.stack.kafka
    assert broker is not None
    await broker.kill()
    await broker.start()
    await gateway.send(mesh.env, gateway.some(200))
    await mesh.owned(within=60)
    await mesh.idle()
    await assert_books(mesh, gateway)
    assert metering.exit_reason is None and billing.exit_reason is None


@pytest.mark.unretrieved("the client forgets its own commit task when the broker goes away in its middle")
async def test_the_broker_is_away_while_metering_commits(mesh: Mesh, seed: int) -> None:
    """The outbox keeps what cannot be published, in order, until it can."""
    gateway = Gateway(seed)
    gate = Gate("before_commit", armed=False)
    await gateway.send(mesh.env, [gateway.price()])
    await mesh.start("billing")
    await mesh.start("metering", fault=gate)
    await mesh.owned()
    await mesh.idle()
    gate.armed = True
    await gateway.send(mesh.env, gateway.some(100))
    await asyncio.wait_for(gate.reached.wait(), 20)
    broker = mesh.world.stack.kafka
    assert broker is not None
    await broker.kill()
    gate.open.set()

    async def waits() -> bool:
        return bool(await mesh.value("metering", "SELECT count(*) FROM mesh_outbox") > 0)

    try:
        await mesh.until(waits, 20, "rated usage waits in the outbox")
    finally:
        await broker.start()
    await mesh.owned(within=60)
    await mesh.idle()
    await assert_books(mesh, gateway)
