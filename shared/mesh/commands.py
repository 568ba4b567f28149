"""Operators' commands: they come over Kafka like every change of state, and each names a person and a ticket."""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING, Any

from shared.contract import topics
from shared.contract.codec import Codec
from shared.contract.topics import BY_NAME
from shared.mesh import store
from shared.mesh.consumer import REDRIVE
from shared.mesh.errors import where
from shared.mesh.safe import unlocked
from shared.mesh.service import Batch, Consumer, Done, Received, Record, Task
from shared.mesh.store import OutboxRow
from shared.mesh.transaction import Transaction, shard_of

if TYPE_CHECKING:
    from shared.mesh.runtime import Runtime

log = logging.getLogger("steward.mesh")

RELEASE_PARKED = "mesh-release-parked"
_CHUNK = 100


def command_consumer(runtime: Runtime) -> Consumer:
    """The consumer of this service's commands."""

    async def handle(batch: Batch, tx: Transaction) -> None:
        for received in batch.events:
            command = received.event.data
            if command.service != tx.service:
                continue
            if command.action == "replay_dead_letter":
                await _replay(int(command.target) if command.target.isdigit() else 0, tx)
            elif command.action == "release_parked":
                await tx.enqueue(RELEASE_PARKED, received.event.id, {"topic": command.target})
            elif (handler := runtime.service.commands.get(command.action)) is not None:
                await handler(received, tx)

    return Consumer(topics.COMMANDS, handle, 100, lingers=False)


async def _replay(letter_id: int, tx: Transaction) -> None:
    """Sends a dead letter's record to its topic again, marked, so that it is counted as the record that it was."""
    letter = await store.set_dead_letter_state(tx.db, letter_id, "waiting", "replaying")
    if letter is None:
        log.warning("dead letter %d is not waiting: nothing to replay", letter_id)
        return
    headers = [h for h in store.unpack_headers(letter["headers"]) if h[0] != REDRIVE]
    value = await unlocked(letter["payload"], tx)
    if value is None and letter["payload"] is not None:
        log.warning("what dead letter %d keeps cannot be read any more: nothing is replayed", letter_id)
        await store.set_dead_letter_state(tx.db, letter_id, "replaying", "waiting")
        return
    tx.publish_raw(
        OutboxRow(
            shard_of(letter["key"], letter["part"]),
            letter["topic"],
            letter["part"],
            letter["key"],
            value,
            store.pack_headers([*headers, (REDRIVE, str(letter_id).encode())]),
        )
    )


def release_parked_task(runtime: Runtime) -> Any:
    """The task that hands parked records to their handler again, in order; one that fails again stays, with its key."""

    async def release(task: Task, tx: Transaction) -> Any:
        topic = BY_NAME[task.payload["topic"]]
        consumer = next(c for c in runtime.service.consumers if c.topic is topic)
        group = f"steward.{tx.service}.{topic.name}"
        rows = await store.parked(tx.db, group, topic.name, int(task.position or 0), _CHUNK)
        if not rows:
            return Done()
        codec = Codec(topic)
        failed: set[bytes] = set()
        for row in rows:
            if row["key"] in failed:
                continue
            record = Record(
                topic.name, row["part"], row["record_offset"], row["record_ms"], 1, row["key"], row["payload"], None,
                0, len(row["payload"] or b""), store.unpack_headers(row["headers"]),
            )  # fmt: skip
            try:
                async with tx.db.transaction():
                    batch = Batch(topic, [Received(codec.decode(record.value), record)])
                    if runtime.service.filter is not None:
                        batch = await runtime.service.filter(batch, tx)
                    if batch.events or batch.erased:
                        await consumer.handler(batch, tx)
                    await store.unpark(tx.db, [row["id"]])
                tx.count(f"parked:{topic.name}", -1)
            except Exception as error:
                log.error("a parked record of %s fails again: %s", topic.name, where(error))
                failed.add(row["key"])
        return rows[-1]["id"]

    return release
