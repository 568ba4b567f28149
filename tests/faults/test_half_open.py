"""Connections that stay open while nothing passes, and claims that have to wait: a service goes on by itself."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator, Sequence
from dataclasses import replace
from functools import partial
from typing import Any
from urllib.parse import urlsplit

import asyncpg
import pytest
from aiokafka import AIOKafkaConsumer

from services.metering.app import make_service
from shared.contract import topics
from shared.mesh import relay
from shared.mesh.consumer import TopicConsumer
from shared.mesh.runtime import Runtime
from shared.mesh.service import Record
from tests.faults.test_fence import Gate
from tests.support.books import assert_books
from tests.support.gateway import Gateway
from tests.support.half_open import HalfOpen, at_the_commit
from tests.support.proxy import through
from tests.support.world import Mesh, consumer_of

# After this the server ends a transaction that stands idle (shared/mesh/store.py: open_pool).
IDLE_IN_TRANSACTION_SECONDS = 10


async def _begin(mesh: Mesh, gateway: Gateway) -> None:
    await gateway.send(mesh.env, [gateway.price()])
    await gateway.send(mesh.env, [gateway.payment(f"ws-{n}", 10) for n in range(gateway.workspaces)])
    await gateway.send(mesh.env, gateway.some(200))


def _alive(*runtimes: Runtime) -> None:
    assert [runtime.exit_reason for runtime in runtimes] == [None] * len(runtimes)
    assert [runtime.troubles() for runtime in runtimes] == [[]] * len(runtimes)


@contextlib.asynccontextmanager
async def _proxied(mesh: Mesh, room: str) -> AsyncIterator[tuple[HalfOpen, dict[str, Any]]]:
    """A proxy in front of a room's database, and the setting that leads through it."""
    url = mesh.settings(room).database_url
    async with HalfOpen("127.0.0.1", urlsplit(url).port or 0) as proxy:
        try:
            yield proxy, {"database_url": through(url, proxy.port)}
        finally:
            await mesh.close()


async def _hold_a_batch(mesh: Mesh, gateway: Gateway, *proxies: HalfOpen) -> None:
    """Sends until each proxy holds a batch before its COMMIT."""
    for proxy in proxies:
        proxy.hold_at(at_the_commit)
        await gateway.send(mesh.env, gateway.some(100))
        async with asyncio.timeout(20):
            await proxy.held.wait()


async def test_postgresql_is_half_open_and_then_cut(mesh: Mesh, seed: int) -> None:
    """A batch of each room hangs before its COMMIT until the server has given it up; then the connections break."""
    gateway = Gateway(seed)
    async with (
        _proxied(mesh, "metering") as (at_metering, metering_through),
        _proxied(mesh, "billing") as (at_billing, billing_through),
    ):
        await _begin(mesh, gateway)
        billing = await mesh.start("billing", settings=billing_through)
        metering = await mesh.start("metering", settings=metering_through)
        await mesh.owned()
        # Billing first: it has nothing to do once metering is held.
        await _hold_a_batch(mesh, gateway, at_billing, at_metering)
        assert not await _given_up(mesh)
        within = IDLE_IN_TRANSACTION_SECONDS + 10
        await mesh.until(lambda: _given_up(mesh), within, "the server has ended the transactions")
        _alive(metering, billing)
        at_metering.cut()
        at_billing.cut()
        await gateway.send(mesh.env, gateway.some(100))
        await mesh.idle()
        await assert_books(mesh, gateway)
        _alive(metering, billing)


async def _given_up(mesh: Mesh) -> bool:
    sql = "SELECT count(*) FROM pg_stat_activity WHERE datname LIKE 'steward_%' AND state = 'idle in transaction'"
    return await _activity(mesh, sql) == 0


async def test_postgresql_never_answers_again(mesh: Mesh, seed: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Nobody cuts the connections either, as when a machine is gone: statements run into their limit, here 1.5 s.

    The relay has a connection of its own, which holds its locks: it must find out, too.
    """
    create_pool, limit = asyncpg.create_pool, 1.5
    monkeypatch.setattr(
        asyncpg, "create_pool", lambda *args, **kwargs: create_pool(*args, **{**kwargs, "command_timeout": limit})
    )
    monkeypatch.setattr(relay, "COMMAND_SECONDS", limit)
    gateway = Gateway(seed)
    async with _proxied(mesh, "metering") as (proxy, through_proxy):
        await _begin(mesh, gateway)
        billing = await mesh.start("billing")
        metering = await mesh.start("metering", settings=through_proxy)
        await mesh.owned()
        await _hold_a_batch(mesh, gateway, proxy)
        proxy.forget()
        await gateway.send(mesh.env, gateway.some(100))

        async def all_charged() -> bool:
            return bool(await mesh.value("billing", "SELECT count(*) FROM charge_line") == gateway.generations)

        await mesh.until(all_charged, 45, "everything is charged: batches and relay went on")
        await mesh.idle()
        await assert_books(mesh, gateway)
        _alive(metering, billing)


@pytest.mark.unretrieved("the client forgets its own commit task when the broker goes away in its middle")
async def test_kafka_is_half_open_and_then_cut(mesh: Mesh, seed: int) -> None:
    """The broker expels a member that it does not hear any more; cut off at last, that member joins again by itself."""
    gateway = Gateway(seed)
    kafka = mesh.settings("metering").kafka
    host, port = kafka.bootstrap_servers.split(":")
    async with HalfOpen(host, int(port), kafka=True) as proxy:
        through_proxy = replace(kafka, bootstrap_servers=f"127.0.0.1:{proxy.port}")
        await _begin(mesh, gateway)
        billing = await mesh.start("billing")
        metering = await mesh.start("metering", settings={"kafka": through_proxy})
        await mesh.owned()
        await mesh.idle()
        proxy.hold()
        await gateway.send(mesh.env, gateway.some(100))
        # The broker has expelled it once somebody else is given its partitions.
        other = await mesh.start("metering")
        await mesh.until(lambda: _owns(other, topics.GENERATIONS.partitions), 30, "the other has taken over")
        _alive(metering, billing, other)
        proxy.cut()
        for runtime in (metering, other):
            await mesh.until(partial(_owns, runtime, topics.GENERATIONS.partitions // 2), 30, "it has joined again")
        await gateway.send(mesh.env, gateway.some(100))
        await mesh.owned(within=60)
        await mesh.idle()
        await assert_books(mesh, gateway)
        _alive(metering, billing, other)
        await mesh.close()


async def _owns(runtime: Runtime, partitions: int) -> bool:
    return (
        len(consumer_of(runtime, topics.GENERATIONS).partitions) == partitions
        and consumer_of(runtime, topics.GENERATIONS).ready()
    )


class Handed:
    """What FastStream handed to a topic's consumer: which of it was not claimed at that moment."""

    def __init__(self, consumer: TopicConsumer) -> None:
        self.early: list[tuple[int, int]] = []
        self.records = 0
        self._consumer = consumer
        self._take = consumer.on_batch
        consumer.on_batch = self._on_batch  # type: ignore[method-assign]

    async def _on_batch(self, records: Sequence[Record]) -> None:
        claimed = {tp.partition for tp in self._consumer.partitions}
        self.early += [(r.partition, r.offset) for r in records if r.partition not in claimed]
        self.records += len(records)
        await self._take(records)


async def _claim_that_waits(mesh: Mesh, gateway: Gateway, monkeypatch: pytest.MonkeyPatch) -> tuple[Handed, int]:
    """A zombie holds the cursors' rows in its open transaction while another process claims.

    Returns what was handed to the new owner, and how often each generation is logged in excess of once. With
    de-duplication off: a read from a wrong offset shows.
    """
    await gateway.send(mesh.env, [gateway.price()])
    gate = Gate("before_commit", armed=False)
    zombie = await mesh.start("metering", service=make_service(dedupe=False), fault=gate)
    await mesh.owned()
    await mesh.idle()
    gate.armed = True
    await gateway.send(mesh.env, gateway.some(300, duplicates=0))
    try:
        async with asyncio.timeout(20):
            await gate.reached.wait()
        await _cut_off(zombie)
        handed = _watch_generations(monkeypatch)
        other = await mesh.start("metering", service=make_service(dedupe=False))
        await mesh.until(lambda: _a_claim_waits(mesh), 20, "the claim waits for the zombie's transaction")
        # All of the topic waits in Kafka: what the client hands out while a claim waits comes within one fetch.
        client = consumer_of(other, topics.GENERATIONS).consumer
        assert client is not None
        assert len(client.assignment()) == topics.GENERATIONS.partitions
        await asyncio.sleep(0.5)  # lint: allow sleep-in-test -- nothing announces that no records come
    finally:
        gate.open.set()
    async with asyncio.timeout(20):
        await consumer_of(zombie, topics.GENERATIONS).drained()
    await mesh.abandon(zombie)
    await mesh.owned()
    await mesh.idle()
    logged = await mesh.value("metering", "SELECT count(*) FROM request_log")
    return handed[0], int(logged) - gateway.generations


def _watch_generations(monkeypatch: pytest.MonkeyPatch) -> list[Handed]:
    """Watches the generations of every runtime that starts from here on."""
    handed: list[Handed] = []
    subscribe = Runtime._subscribe

    def observed(self: Runtime, broker: Any, declaration: Any) -> Any:
        consumer = subscribe(self, broker, declaration)
        if declaration.topic is topics.GENERATIONS:
            handed.append(Handed(consumer))
        return consumer

    monkeypatch.setattr(Runtime, "_subscribe", observed)
    return handed


async def _a_claim_waits(mesh: Mesh) -> bool:
    sql = """SELECT count(*) FROM pg_stat_activity
             WHERE wait_event_type = 'Lock' AND query LIKE 'INSERT INTO mesh_cursor%'"""
    return await _activity(mesh, sql) >= 1


async def _activity(mesh: Mesh, sql: str) -> int:
    """A count from pg_stat_activity, which shows states and queries of others only to the administrator."""
    async with mesh.world.admin() as admin:
        return int(await admin.fetchval(sql))


async def _cut_off(runtime: Runtime) -> None:
    """Its group takes it for dead, at once instead of after its session timeout."""
    for consumer in runtime.consumers:
        client = consumer.consumer
        assert client is not None
        await client._coordinator._stop_heartbeat_task()
        client._coordinator._coordination_task.cancel()
        await client._coordinator._maybe_leave_group()


@pytest.mark.unretrieved("the zombie's client is cut off on purpose")
async def test_a_claim_waits_and_reads_from_the_right_offset(
    mesh: Mesh, seed: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Case 3 and 6: what the zombie commits at last is not read again, and nothing comes before the claim is through."""
    handed, doubled = await _claim_that_waits(mesh, Gateway(seed), monkeypatch)
    assert doubled == 0
    assert handed.early == [], "records came before the claim"
    assert handed.records > 0


@pytest.mark.unretrieved("the zombie's client is cut off on purpose")
async def test_without_the_pause_records_come_before_the_claim(
    mesh: Mesh, seed: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The guard off: the same run hands out records of partitions that nobody has claimed."""
    monkeypatch.setattr(AIOKafkaConsumer, "pause", lambda self, *partitions: None)
    handed, _ = await _claim_that_waits(mesh, Gateway(seed), monkeypatch)
    assert handed.early
