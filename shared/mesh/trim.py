"""Topics that hold personal data are cut as soon as everybody who reads them has what they hold.

Never beyond the slowest reader, and never what is younger than the hold: a service that is restored to a moment within
it finds there what it has not read yet.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from datetime import datetime, timedelta
from typing import Any, TypeAlias

from aiokafka import AIOKafkaConsumer, TopicPartition
from aiokafka.admin import AIOKafkaAdminClient
from aiokafka.admin.records_to_delete import RecordsToDelete

from shared.contract.topics import TOPICS, Topic
from shared.mesh.admin import end_offsets
from shared.mesh.settings import KafkaSettings
from shared.policy import policy

# Readers outside of the mesh: the gateway reads compacted topics alone, an operator reads by hand.
_NO_GROUPS = frozenset({"gateway", "operator"})
_HURRIED_HOLD = timedelta(seconds=5)

# topic -> partition -> offset: what lies before it is gone.
Trimmed: TypeAlias = dict[str, dict[int, int]]


def hold_of(settings: KafkaSettings) -> timedelta:
    """How old a record is at least before it is trimmed: by the policy, or seconds on a developer's machine."""
    return _HURRIED_HOLD if settings.hurried else policy().trim_hold


def groups_of(topic: Topic) -> tuple[str, ...]:
    """The consumer groups that must have passed a record of `topic` before it is trimmed."""
    return tuple(f"steward.{reader}.{topic.name}" for reader in topic.readers if reader not in _NO_GROUPS)


def is_trimmed(topic: Topic) -> bool:
    """Whether `topic` is cut at all: compacted topics cannot be, and a topic without groups is left to its retention."""
    return topic.personal and not topic.compacted and bool(groups_of(topic))


def cut(committed: Sequence[int | None], first_young: int | None, start: int, end: int) -> int | None:
    """The offset before which a partition may be cut; None when nothing is to be cut.

    `committed`: of each reader group, None for one that has never committed. `first_young`: the first record that is not
    older than the hold, None when all are. `start`, `end`: of the log now.
    """
    slowest = min((offset or 0 for offset in committed), default=0)
    place = min(slowest, end if first_young is None else first_young, end)
    return place if place > start else None


async def trim(settings: KafkaSettings, now: datetime, hold: timedelta, topics: Iterable[Topic] = TOPICS) -> Trimmed:
    """Cuts the personal topics; returns from where on each partition that was cut goes on. Raises KafkaError.

    Committed offsets are hints that never run ahead of a reader's cursor, so they can only delay a cut.
    """
    wanted = [topic for topic in topics if is_trimmed(topic)]
    spans = {
        tp: span for tp, span in (await end_offsets(settings, [topic.name for topic in wanted])).items()
        if span[1] > span[0]
    }  # fmt: skip
    if not spans:
        return {}
    young = await _first_young(settings, list(spans), now - hold)
    admin = AIOKafkaAdminClient(**settings.client())
    await admin.start()
    try:
        by_topic = {topic.name: groups_of(topic) for topic in wanted}
        busy = {tp.topic for tp in spans}
        committed = {
            group: await _committed(admin, group)
            for name, groups in by_topic.items()
            if name in busy
            for group in groups
        }
        cuts: dict[TopicPartition, int] = {}
        for tp, (start, end) in spans.items():
            place = cut([committed[group].get(tp) for group in by_topic[tp.topic]], young[tp], start, end)
            if place is not None:
                cuts[tp] = place
        if cuts:
            await admin.delete_records({tp: RecordsToDelete(place) for tp, place in cuts.items()}, timeout_ms=30_000)
    finally:
        await admin.close()
    trimmed: Trimmed = {}
    for tp, place in sorted(cuts.items()):
        trimmed.setdefault(tp.topic, {})[tp.partition] = place
    return trimmed


async def _committed(admin: AIOKafkaAdminClient, group: str) -> Mapping[TopicPartition, int]:
    # An offset below 0 is Kafka's way to say that there is none.
    offsets = await admin.list_consumer_group_offsets(group)
    return {tp: committed.offset for tp, committed in offsets.items() if committed.offset >= 0}


async def _first_young(
    settings: KafkaSettings, tps: Sequence[TopicPartition], since: datetime
) -> dict[TopicPartition, int | None]:
    """The first record of each partition that is not older than `since`; None when all are."""
    found = await at_times(settings, dict.fromkeys(tps, int(since.timestamp() * 1000)))
    return {tp: None if place is None else place[0] for tp, place in found.items()}


async def at_times(
    settings: KafkaSettings, times: Mapping[TopicPartition, int]
) -> dict[TopicPartition, tuple[int, int] | None]:
    """(offset, LogAppendTime in ms) of the first record of each partition that is not older than its time (ms)."""
    consumer: Any = AIOKafkaConsumer(**settings.client())
    await consumer.start()
    try:
        for topic in {tp.topic for tp in times}:
            consumer._client.add_topic(topic)
        await consumer._client.force_metadata_update()
        found = await consumer.offsets_for_times(dict(times)) if times else {}
        return {tp: None if (place := found.get(tp)) is None else (place.offset, place.timestamp) for tp in times}
    finally:
        await consumer.stop()
