"""Kafka topics from the contract: made when absent, refused when their partition count differs."""

from __future__ import annotations

import asyncio
from collections.abc import Iterable
from typing import Any

from aiokafka import AIOKafkaConsumer, TopicPartition
from aiokafka.admin import AIOKafkaAdminClient, NewTopic
from aiokafka.admin.config_resource import ConfigResource, ConfigResourceType
from aiokafka.errors import KafkaError, TopicAlreadyExistsError, for_code

from shared.contract.topics import TOPICS, Topic
from shared.mesh.relay import MAX_RECORD_BYTES
from shared.mesh.settings import KafkaSettings


class WrongTopic(Exception):
    """A topic exists and is not what the contract says; the text says what to do."""


def created_with(topic: Topic, *, hurried: bool = False) -> dict[str, str]:
    """The settings with which a topic is made, whoever makes it."""
    return topic.config(hurried=hurried) | {"max.message.bytes": str(MAX_RECORD_BYTES)}


async def ensure_topics(settings: KafkaSettings, topics: Iterable[Topic] = TOPICS) -> list[str]:
    """Makes the contract's topics and returns the new ones. Raises `WrongTopic` for a changed partition count.

    The partition count of an ordered topic is part of its order per key: growth is a new topic and a drain.
    """
    wanted = list(topics)
    admin = AIOKafkaAdminClient(**settings.client())
    await admin.start()
    try:
        existing = set(await admin.list_topics())
        new = [
            NewTopic(
                topic.name,
                topic.partitions,
                settings.replication,
                topic_configs=created_with(topic, hurried=settings.hurried),
            )
            for topic in wanted
            if topic.name not in existing
        ]
        if new:
            answer = await admin.create_topics(new, timeout_ms=30_000)
            for name, code, *text in answer.topic_errors:
                if code and not issubclass(for_code(code), TopicAlreadyExistsError):
                    raise KafkaError(f"topic {name} could not be made: {for_code(code).__name__} {text}")
        await _check_partitions(admin, wanted)
        return [topic.name for topic in new]
    finally:
        await admin.close()


async def _check_partitions(admin: AIOKafkaAdminClient, wanted: list[Topic]) -> None:
    by_name: dict[str, int] = {}
    for _ in range(50):
        described = await admin.describe_topics([topic.name for topic in wanted])
        by_name = {d["topic"]: len(d["partitions"]) for d in described if not d["error_code"]}
        if all(topic.name in by_name for topic in wanted):
            break
        # A topic just made takes a moment to reach every broker's metadata.
        await asyncio.sleep(0.1)
    for topic in wanted:
        have = by_name.get(topic.name)
        if have is None:
            raise WrongTopic(f"{topic.name} does not appear in Kafka's metadata")
        if have != topic.partitions and topic.fixed_partitions:
            raise WrongTopic(
                f"{topic.name} has {have} partitions, the contract says {topic.partitions}: its count is fixed for its "
                "life. Make a new topic and drain the old one."
            )


async def topic_settings(settings: KafkaSettings, topics: Iterable[Topic] = TOPICS) -> dict[str, dict[str, str]]:
    """The settings that Kafka really has, by topic and name."""
    admin = AIOKafkaAdminClient(**settings.client())
    await admin.start()
    try:
        resources = [ConfigResource(ConfigResourceType.TOPIC, topic.name) for topic in topics]
        result: dict[str, dict[str, str]] = {}
        for answer in await admin.describe_configs(resources):
            for code, _, _, name, entries in answer.resources:
                if not code:
                    result[name] = {entry[0]: entry[1] for entry in entries}
        return result
    finally:
        await admin.close()


class Spans:
    """Asks Kafka where partitions begin and end, on a connection of its own: the broker answers one question of a
    connection after the other, and a fetch that waits for records is a question, too."""

    def __init__(self, settings: KafkaSettings) -> None:
        self._settings = settings
        self._client: Any = None

    async def open(self) -> None:
        """Connects; to be closed in any case. Raises `KafkaError` when Kafka is away."""
        self._client = AIOKafkaConsumer(**self._settings.client())
        await self._client.start()

    async def close(self) -> None:
        """Disconnects, if it was open."""
        if self._client is not None:
            await self._client.stop()

    async def of(self, topics: Iterable[str]) -> dict[TopicPartition, tuple[int, int]]:
        """(log start, log end) of every partition of `topics`."""
        wanted = list(topics)
        if not wanted:
            return {}  # to the client, no topics are all topics
        await self._client._client.set_topics(wanted)
        tps = [TopicPartition(t, p) for t in wanted for p in sorted(self._client.partitions_for_topic(t) or ())]
        begin, end = await self._client.beginning_offsets(tps), await self._client.end_offsets(tps)
        return {tp: (begin[tp], end[tp]) for tp in tps}


async def end_offsets(settings: KafkaSettings, topics: Iterable[str]) -> dict[TopicPartition, tuple[int, int]]:
    """(log start, log end) of every partition of `topics`, asked once."""
    spans = Spans(settings)
    try:
        await spans.open()
        return await spans.of(topics)
    finally:
        await spans.close()
