"""What waits for a service on a topic: a look ahead of its cursors, which moves nothing."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from aiokafka import AIOKafkaConsumer

from shared.contract.base import Refused
from shared.contract.codec import Codec
from shared.contract.topics import Topic
from shared.mesh.admin import end_offsets
from shared.mesh.settings import KafkaSettings


async def unread(kafka: KafkaSettings, topic: Topic, passed: Mapping[int, int]) -> list[Any]:
    """The events of `topic` that lie at or behind the offsets in `passed` now, in order within each partition. What is no
    event is left out: the consumer deals with it when it comes there."""
    ends = {
        tp: (max(begin, passed.get(tp.partition, 0)), end)
        for tp, (begin, end) in (await end_offsets(kafka, [topic.name])).items()
        if end > max(begin, passed.get(tp.partition, 0))
    }
    found: list[Any] = []
    if not ends:
        return found
    decode = Codec(topic).decode
    consumer: Any = AIOKafkaConsumer(**kafka.client(), auto_offset_reset="earliest", enable_auto_commit=False)
    await consumer.start()
    try:
        consumer.assign(list(ends))
        for tp, (first, _) in ends.items():
            consumer.seek(tp, first)
        while any([await consumer.position(tp) < end for tp, (_, end) in ends.items()]):
            for records in (await consumer.getmany(timeout_ms=500)).values():
                for record in records:
                    try:
                        found.append(decode(record.value))
                    except Refused:
                        continue
    finally:
        await consumer.stop()
    return found
