"""What the relay publishes, read back from Kafka: keys keep to their partition, versions never go back."""

from __future__ import annotations

import asyncio
import json
from collections import Counter
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from dataclasses import replace
from typing import Any

import pytest
from aiokafka import AIOKafkaConsumer, ConsumerRecord, TopicPartition

from shared.contract import topics
from shared.contract.topics import Topic
from shared.mesh import relay
from shared.mesh.admin import end_offsets
from shared.mesh.runtime import Runtime
from shared.mesh.service import Service
from shared.mesh.settings import KafkaSettings
from tests.faults.test_fence import Gate
from tests.support.books import assert_books
from tests.support.gateway import Gateway
from tests.support.world import Faults, Mesh, make


class Tape:
    """The records that a topic gets while it runs, in order per partition; taken down at once, since the topic may be
    compacted before somebody asks."""

    def __init__(self, mesh: Mesh, topic: Topic) -> None:
        self._kafka, self._topic = KafkaSettings.from_env(mesh.env), topic
        self._found: list[ConsumerRecord] = []

    @asynccontextmanager
    async def running(self) -> AsyncIterator[Tape]:
        """From here on: what earlier tests left in the topic is not ours."""
        self._consumer: Any = AIOKafkaConsumer(**self._kafka.client())
        await self._consumer.start()
        self._consumer.assign(list(await self._ends()))
        for tp, end in (await self._ends()).items():
            self._consumer.seek(tp, end)
        listening = asyncio.create_task(self._listen())
        try:
            yield self
        finally:
            listening.cancel()
            await asyncio.gather(listening, return_exceptions=True)
            await self._consumer.stop()

    async def _listen(self) -> None:
        async for record in self._consumer:
            self._found.append(record)

    async def records(self) -> list[ConsumerRecord]:
        """Everything until now."""
        ends = await self._ends()
        async with asyncio.timeout(20):
            while any([await self._consumer.position(tp) < end for tp, end in ends.items()]):
                await asyncio.sleep(0.02)  # lint: allow sleep-in-test -- polls for what no event announces
        return [record for record in self._found if record.value is not None]  # heartbeats say nothing of a balance

    async def _ends(self) -> dict[TopicPartition, int]:
        return {tp: end for tp, (_, end) in (await end_offsets(self._kafka, [self._topic.name])).items()}


def faults_of(records: Sequence[ConsumerRecord]) -> list[str]:
    """What is wrong with balance records: a key in two partitions, a version that comes again or goes back."""
    found: list[str] = []
    newest: dict[bytes, int] = {}
    parts: dict[bytes, int] = {}
    for record in sorted(records, key=lambda r: (r.partition, r.offset)):
        where = f"{record.key.decode()} at {record.partition}/{record.offset}"
        version = json.loads(record.value)["data"]["version"]
        if parts.setdefault(record.key, record.partition) != record.partition:
            found.append(f"{where}: its key lies in partition {parts[record.key]}, too")
        if version == newest.get(record.key):
            found.append(f"{where}: version {version} comes twice")
        elif version < newest.get(record.key, 0):
            found.append(f"{where}: version {version} after {newest[record.key]}")
        newest[record.key] = max(version, newest.get(record.key, 0))
    return found


def _billing() -> Service:
    """Billing without the job that publishes every balance again as it is: what comes twice here comes from a relay."""
    service = make("billing")
    assert "republish-balances" in service.jobs
    return replace(service, jobs={name: job for name, job in service.jobs.items() if name != "republish-balances"})


async def _pay(mesh: Mesh, gateway: Gateway, times: int = 3) -> None:
    for _ in range(times):
        await gateway.send(mesh.env, [gateway.payment(f"ws-{n}", 1) for n in range(gateway.workspaces)])


async def _two_relays(mesh: Mesh, gateway: Gateway, *, locking: bool) -> list[ConsumerRecord]:
    """The balance records of a run in which a relay has read its rows and stands still while others go on.

    Another billing process runs beside it the whole time, and everybody's balance goes on changing. Then it goes on.
    """
    async with Tape(mesh, topics.BALANCES).running() as tape:
        return await _run_of_two_relays(mesh, gateway, tape, locking=locking)


async def _run_of_two_relays(mesh: Mesh, gateway: Gateway, tape: Tape, *, locking: bool) -> list[ConsumerRecord]:
    # Heartbeats are hours apart: the gate is for a row that says something of a balance.
    calm = {"kafka": replace(mesh.settings("billing").kafka, hurried=False)}
    gate = Gate("relay_read", armed=False)
    await gateway.send(mesh.env, [gateway.price()])
    slow = await mesh.start("billing", service=_billing(), settings=calm, fault=gate, relay_locking=locking)
    await mesh.until(lambda: _beat(mesh), 20, "the first heartbeat is out")
    gate.armed = True
    try:
        await _pay(mesh, gateway)
        async with asyncio.timeout(20):
            await gate.reached.wait()
        other = await mesh.start("billing", service=_billing(), settings=calm, relay_locking=locking)
        await mesh.owned()
        await _pay(mesh, gateway)

        async def booked() -> bool:
            return bool(await mesh.value("billing", "SELECT count(*) FROM purchase") == len(gateway.credits) * 6)

        await mesh.until(booked, 20, "every payment is booked")
        if locking:
            assert await tape.records() == [], "somebody sends rows of shards that another relay holds"
        else:
            await mesh.until(lambda: _sent_everything(mesh), 20, "the other relay has sent everything")
    finally:
        gate.open.set()
    await mesh.start("metering")
    await gateway.send(mesh.env, gateway.some(200))
    await mesh.owned()
    await mesh.idle()
    await _take_over(mesh, gateway, slow, other)
    await assert_books(mesh, gateway)
    return await tape.records()


async def _beat(mesh: Mesh) -> bool:
    beats = "SELECT count(*) FROM mesh_job WHERE name = 'mesh-heartbeat' AND ran_at IS NOT NULL"
    return bool(await mesh.value("billing", beats)) and await _sent_everything(mesh)


async def _sent_everything(mesh: Mesh) -> bool:
    return bool(await mesh.value("billing", "SELECT count(*) FROM mesh_outbox") == 0)


async def _take_over(mesh: Mesh, gateway: Gateway, first: Runtime, second: Runtime) -> None:
    """The first one leaves in good order, and the second one's relay goes on with its shards."""
    await mesh.stop(first)
    await _pay(mesh, gateway)
    await mesh.until(lambda: _owns_all(second), 20, "the second one owns everything")
    await mesh.idle()


async def _owns_all(runtime: Runtime) -> bool:
    return all(len(consumer.partitions) == consumer.topic.partitions for consumer in runtime.consumers)


async def test_keys_keep_their_partition_and_versions_their_order(mesh: Mesh, seed: int) -> None:
    gateway = Gateway(seed)
    records = await _two_relays(mesh, gateway, locking=True)
    assert faults_of(records) == []
    assert {record.key.decode() for record in records} == set(gateway.credits)
    # Every partition's part in it: 10 workspaces do not all lie in one.
    assert len({record.partition for record in records}) > 1
    newest = Counter({record.key.decode(): 0 for record in records})
    for record in records:
        newest[record.key.decode()] = max(newest[record.key.decode()], json.loads(record.value)["data"]["version"])
    sql = "SELECT r.workspace, b.version FROM balance b JOIN workspace_ref r ON r.id = b.workspace_id"
    assert newest == {row["workspace"]: row["version"] for row in await mesh.fetch("billing", sql)}


async def test_without_the_shard_lock_the_same_run_goes_back(mesh: Mesh, seed: int) -> None:
    found = faults_of(await _two_relays(mesh, Gateway(seed), locking=False))
    assert any(" after " in fault for fault in found), found


async def test_published_twice_and_booked_once(mesh: Mesh, seed: int) -> None:
    """Case 14: the relay dies between the broker's acknowledgement and its own note of it."""
    gateway = Gateway(seed)
    fault = Faults("relay_acknowledged")
    async with Tape(mesh, topics.USAGE_RATED).running() as tape:
        await gateway.send(mesh.env, [gateway.price(), *gateway.some(200)])
        await mesh.start("billing")
        victim = await mesh.start("metering", fault=fault)
        await mesh.until(fault.hit.wait, 30, "something was acknowledged")
        await mesh.abandon(victim)
        await mesh.start("metering")
        await mesh.owned()
        await mesh.idle()
        published = Counter(json.loads(record.value)["id"] for record in await tape.records())
    assert max(published.values()) == 2, "nothing was published twice"
    await assert_books(mesh, gateway)


async def test_rows_of_a_process_without_shards_go_out_at_once(
    mesh: Mesh, seed: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whoever holds the shards is told of another process's rows: it does not find them at its next look."""
    monkeypatch.setattr(relay, "_IDLE_SECONDS", 120.0)
    gateway = Gateway(seed)
    await gateway.send(mesh.env, [gateway.price()])
    holder = await mesh.start("metering")
    await mesh.owned()
    await mesh.idle()
    await mesh.start("metering")
    await mesh.owned()
    for consumer in holder.consumers:
        consumer.stop()  # from here on it relays and rates nothing
    await gateway.send(mesh.env, gateway.some(400))

    async def published() -> bool:
        rated = (await mesh.counters()).get("rated", 0)
        return rated > 0 and await mesh.value("metering", "SELECT count(*) FROM mesh_outbox") == 0

    await mesh.until(published, 30, "rows of the other process were published")
