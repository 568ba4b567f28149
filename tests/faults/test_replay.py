"""Cursors moved back, databases restored, retention that ran ahead: effects stay as they are, or the loss is counted."""

from __future__ import annotations

import pytest
from aiokafka.admin import AIOKafkaAdminClient
from aiokafka.admin.records_to_delete import RecordsToDelete

from shared.contract import topics
from shared.mesh import metrics
from shared.mesh.admin import end_offsets
from shared.mesh.settings import KafkaSettings
from tests.support.books import assert_books
from tests.support.gateway import Gateway
from tests.support.rewind import rewind
from tests.support.world import Mesh


@pytest.mark.promise(17)
async def test_a_rewound_cursor_changes_nothing(mesh: Mesh, seed: int) -> None:
    gateway = Gateway(seed)
    await gateway.send(mesh.env, [gateway.price()])
    await gateway.send(mesh.env, [gateway.payment(f"ws-{n}", 5) for n in range(10)])
    await gateway.send(mesh.env, gateway.some(300))
    await mesh.start("metering")
    await mesh.start("billing")
    await mesh.owned()
    await mesh.idle()
    await assert_books(mesh, gateway)
    before = await mesh.counters()
    for room, topic in (
        ("metering", topics.GENERATIONS),
        ("billing", topics.USAGE_RATED),
        ("billing", topics.PAYMENTS),
    ):
        await rewind(mesh, room, topic.name)
    await gateway.send(mesh.env, gateway.some(30, duplicates=0))
    await mesh.idle()
    await assert_books(mesh, gateway)
    after = await mesh.counters()
    assert after["duplicates"] == before["duplicates"], "a replay is no duplicate that anybody sent"


async def test_a_restored_metering_database(mesh: Mesh, seed: int) -> None:
    """An older copy of metering's database comes back: what it had published comes again, and is booked once."""
    gateway = Gateway(seed)
    await gateway.send(mesh.env, [gateway.price(), *gateway.some(150)])
    metering = await mesh.start("metering")
    await mesh.start("billing")
    await mesh.owned()
    await mesh.idle()
    await mesh.stop(metering)
    await mesh.copy_database("metering", "older")
    metering = await mesh.start("metering")
    await mesh.owned()
    await gateway.send(mesh.env, gateway.some(150))
    await mesh.idle()
    await assert_books(mesh, gateway)
    await mesh.stop(metering)
    await mesh.restore_database("metering", "older")
    await mesh.start("metering")
    await mesh.owned()
    await gateway.send(mesh.env, gateway.some(50))
    await mesh.idle()
    await assert_books(mesh, gateway)


async def test_retention_that_passed_the_cursor_is_counted(mesh: Mesh, seed: int) -> None:
    gateway = Gateway(seed)
    await gateway.send(mesh.env, [gateway.price(), *gateway.some(50)])
    metering = await mesh.start("metering")
    await mesh.start("billing")
    await mesh.owned()
    await mesh.idle()
    await mesh.stop(metering)
    lost = [gateway.generation(counted=False) for _ in range(40)]
    await gateway.send(mesh.env, lost)
    gateway.records -= len(lost)
    kafka = KafkaSettings.from_env(mesh.env)
    client = AIOKafkaAdminClient(**kafka.client())
    await client.start()
    try:
        ends = await end_offsets(kafka, [topics.GENERATIONS.name])
        await client.delete_records({tp: RecordsToDelete(end) for tp, (begin, end) in ends.items() if end > begin})
    finally:
        await client.close()
    before = metrics.OFFSET_GAP_RECORDS_TOTAL.labels(topics.GENERATIONS.name)._value.get()
    await mesh.start("metering")
    await mesh.owned()
    # A gap shows with the first record behind it.
    for _ in range(200):
        await gateway.send(mesh.env, [gateway.generation()])
        if metrics.OFFSET_GAP_RECORDS_TOTAL.labels(topics.GENERATIONS.name)._value.get() - before >= len(lost):
            break
    await mesh.idle()
    await assert_books(mesh, gateway)
    missing = "SELECT max(highest) - sum(seen) FROM mesh_source WHERE topic = 'gateway.generations'"
    assert await mesh.value("metering", missing) == len(lost), "what was lost is missed by name of its source"
