"""Looks into the bytes of the servers' files: what a text search of tables and records does not see."""

from __future__ import annotations

import base64
from pathlib import Path

from aiokafka import AIOKafkaConsumer, TopicPartition

from shared.contract.topics import Topic
from tests.support.world import Mesh


async def raw_folders(mesh: Mesh) -> dict[str, Path]:
    """The folders of PostgreSQL (its write-ahead log, too), Kafka and the logs, as they are on disk now."""
    async with mesh.world.admin() as admin:
        await admin.execute("CHECKPOINT")
    stack = mesh.world.stack
    assert stack.postgres is not None and stack.kafka is not None
    return {"postgres": stack.postgres.data, "kafka": stack.kafka.folder / "data", "logs": stack.home / "logs"}


def holding(folder: Path, needle: str) -> list[Path]:
    """Files below `folder` with the text in them, as it is or in base64."""
    wanted = [needle.encode(), base64.b64encode(needle.encode())[:-4]]
    return [
        path for path in folder.rglob("*")
        if path.is_file() and any(text in content for content in [path.read_bytes()] for text in wanted)
    ]  # fmt: skip


async def records_with(mesh: Mesh, among: list[Topic], needle: str) -> set[str]:
    """Topics with the text in a record, its key or headers: in segments it may stand compressed."""
    consumer = AIOKafkaConsumer(bootstrap_servers=mesh.env["STEWARD_KAFKA_BOOTSTRAP_SERVERS"], group_id=None)
    await consumer.start()
    try:
        tps = [TopicPartition(topic.name, part) for topic in among for part in range(topic.partitions)]
        consumer.assign(tps)
        await consumer.seek_to_beginning(*tps)
        ends = await consumer.end_offsets(tps)
        found = set()
        while any([await consumer.position(tp) < ends[tp] for tp in tps]):
            for tp, records in (await consumer.getmany(timeout_ms=200)).items():
                if any(needle in str((r.key, r.value, r.headers)) for r in records):
                    found.add(tp.topic)
        return found
    finally:
        await consumer.stop()
