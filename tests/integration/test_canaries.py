"""What must never be kept is kept nowhere, wherever a platform puts it: all rooms at once, and every place looked into."""

from __future__ import annotations

import asyncio
import re
from collections import Counter

import asyncpg
import pytest
from aiokafka import AIOKafkaConsumer, TopicPartition

from deploy.rooms import ROOMS
from shared.contract import topics
from shared.mesh.logs import JsonFormatter
from tests.support.canaries import CANARIES, DIGITS, GATEWAY, cards_in_bytes, everywhere, forms
from tests.support.gateway import Gateway
from tests.support.world import Mesh

TABLES = """SELECT c.oid::regclass::text FROM pg_class c WHERE c.relkind IN ('r', 'p') AND NOT c.relispartition
            AND c.relnamespace = 'public'::regnamespace"""

_TEXTS = {**{name: [canary] for name, canary in CANARIES.items()}, "digits": [DIGITS, "4111-1111-1111-1111"]}
WANTED = {
    name: re.compile("|".join(re.escape(form) for text in texts for form in forms(text)))
    for name, texts in _TEXTS.items()
}


@pytest.mark.promise(1, 4, 9, 13, 61)
@pytest.mark.timeout(300)
async def test_canaries_are_refused_and_stand_nowhere(mesh: Mesh, seed: int, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level("INFO")
    gateway = Gateway(seed)
    await asyncio.gather(*(mesh.start(name) for name in ROOMS if name in topics.HOLDERS))
    await mesh.owned()
    bad = [*everywhere(gateway), *(record for topic in GATEWAY for record in cards_in_bytes(topic))]
    good = gateway.generation("ws-control")
    good.headers += [(name, canary.encode()) for name, canary in CANARIES.items()]
    await gateway.send(mesh.env, [gateway.price(), *bad, good])
    await mesh.idle(within=200)

    refused = Counter[str]()
    hits = []
    control = 0
    for room in [*ROOMS, "keys"]:
        db = await asyncpg.connect(mesh.env[f"STEWARD_{room.upper()}_OWNER_DATABASE_URL"])
        try:
            tables = [table for (table,) in await db.fetch(TABLES)]
            if "mesh_dead_letter" in tables:
                refused.update(row[0] for row in await db.fetch("SELECT topic FROM mesh_dead_letter"))
            for table in tables:
                text = "\n".join(row[0] for row in await db.fetch(f"SELECT t::text FROM {table} t"))
                control += "ws-control" in text
                hits += [f"{room}.{table}: {name}" for name, found in WANTED.items() if found.search(text)]
        finally:
            await db.close()
    assert control > 0, "the search finds nothing that is there"
    assert hits == []
    expected = Counter(record.topic.name for record in bad for _ in record.topic.readers)
    assert refused == expected, "each of them is refused by each reader, and none is lost"
    said = "\n".join([caplog.text, *(JsonFormatter("all").format(record) for record in caplog.records)])
    assert '"message":"metering is started"' in said, "there is nothing to look through"
    assert [name for name, found in WANTED.items() if found.search(said)] == []
    assert await said_elsewhere(mesh) == []


async def said_elsewhere(mesh: Mesh) -> list[str]:
    """Canaries in topics that the mesh writes."""
    names = [topic for topic in topics.TOPICS if topic not in GATEWAY]
    consumer = AIOKafkaConsumer(bootstrap_servers=mesh.env["STEWARD_KAFKA_BOOTSTRAP_SERVERS"], group_id=None)
    await consumer.start()
    try:
        tps = [TopicPartition(topic.name, part) for topic in names for part in range(topic.partitions)]
        consumer.assign(tps)
        await consumer.seek_to_beginning(*tps)
        ends = await consumer.end_offsets(tps)
        hits = []
        while any([await consumer.position(tp) < ends[tp] for tp in tps]):
            for tp, records in (await consumer.getmany(timeout_ms=500)).items():
                for record in records:
                    text = str((record.key, record.value, record.headers))
                    hits += [f"{tp.topic}: {name}" for name, found in WANTED.items() if found.search(text)]
        return hits
    finally:
        await consumer.stop()
