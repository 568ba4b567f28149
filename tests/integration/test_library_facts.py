"""What our libraries really do, on real Kafka: exactly-once rests on it, so an upgrade that changes a fact fails here.

Each docstring states the fact as FastStream 0.7 and aiokafka 0.14 have it, where it stands in their source, and what
the runtime does about it. When one of these tests fails, read that part of the runtime before adapting the test.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable, Sequence
from typing import Any
from uuid import uuid4

import pytest
from aiokafka import AIOKafkaConsumer, AIOKafkaProducer, ConsumerRebalanceListener, TopicPartition
from aiokafka.admin import AIOKafkaAdminClient, NewTopic
from faststream import AckPolicy
from faststream.kafka import KafkaBroker, KafkaPublishMessage

from shared.contract import topics
from shared.mesh.runtime import _decode, _parse
from tests.faults.test_fence import Gate
from tests.support.gateway import Gateway
from tests.support.world import Mesh, World, consumer_of

LOG = logging.getLogger("test.faststream")
KEYS = [f"workspace-{n}".encode() for n in range(12)]


class Topic:
    """A topic of one test."""

    def __init__(self, servers: str, partitions: int) -> None:
        self.servers, self.partitions = servers, partitions
        self.name = f"fact-{uuid4().hex[:12]}"
        self.first = TopicPartition(self.name, 0)

    async def send(self, *values: bytes, headers: dict[bytes, list[tuple[str, bytes | None]]] | None = None) -> None:
        """Sends `values` to partition 0, as one batch of the producer."""
        async with self.producer() as producer:
            waiting = [
                await producer.send(self.name, value, partition=0, headers=(headers or {}).get(value))
                for value in values
            ]
            for outcome in waiting:
                await outcome

    @contextlib.asynccontextmanager
    async def producer(self) -> AsyncIterator[AIOKafkaProducer]:
        producer = AIOKafkaProducer(bootstrap_servers=self.servers, enable_idempotence=True, linger_ms=5)
        await producer.start()
        try:
            yield producer
        finally:
            await producer.stop()

    @contextlib.asynccontextmanager
    async def consumer(self, *, listener: Slow | None = None, **settings: Any) -> AsyncIterator[AIOKafkaConsumer]:
        """A bare consumer: in a group if `settings` name one, else with every partition."""
        consumer = AIOKafkaConsumer(
            bootstrap_servers=self.servers, enable_auto_commit=False, auto_offset_reset="earliest", **settings
        )
        if listener is not None:
            listener.client = consumer
        if "group_id" in settings:
            consumer.subscribe([self.name], listener=listener)
        else:
            consumer.assign([TopicPartition(self.name, part) for part in range(self.partitions)])
        await consumer.start()
        try:
            yield consumer
        finally:
            await consumer.stop()

    async def partitions_of(self, records: int) -> dict[bytes, list[int]]:
        """Reads `records` records: the partitions in which each key lies."""
        found: dict[bytes, list[int]] = {}
        async with self.consumer() as consumer, asyncio.timeout(20):
            while sum(map(len, found.values())) < records:
                for tp, batch in (await consumer.getmany(timeout_ms=200)).items():
                    for record in batch:
                        found.setdefault(record.key, []).append(tp.partition)
        return found


@pytest.fixture
async def topic(world: World, request: pytest.FixtureRequest) -> AsyncIterator[Topic]:
    """A topic with one partition, or as many as the test is parametrized with."""
    made = Topic(world.env["STEWARD_KAFKA_BOOTSTRAP_SERVERS"], getattr(request, "param", 1))
    admin = AIOKafkaAdminClient(bootstrap_servers=made.servers)
    await admin.start()
    try:
        await admin.create_topics([NewTopic(made.name, made.partitions, 1)])
        await _until(lambda: _exists(admin, made.name), "the topic is known")
        yield made
        await admin.delete_topics([made.name])
    finally:
        await admin.close()


async def _exists(admin: AIOKafkaAdminClient, name: str) -> bool:
    (described,) = await admin.describe_topics([name])
    return not described["error_code"] and all(part["leader"] >= 0 for part in described["partitions"])


async def _until(condition: Callable[[], Awaitable[bool]], what: str, within: float = 20.0) -> None:
    try:
        async with asyncio.timeout(within):
            while not await condition():
                await asyncio.sleep(0.05)  # lint: allow sleep-in-test -- polls for what no event announces
    except TimeoutError:
        pytest.fail(f"not within {within:.0f} s: {what}")


class Batches:
    """A FastStream subscriber as the runtime makes them, and the batches that reached its handler."""

    def __init__(self, topic: Topic, **options: Any) -> None:
        self._topic = topic
        self.broker = KafkaBroker(topic.servers, logger=LOG, allow_auto_create_topics=False)
        self.seen: list[list[bytes]] = []
        self.came = asyncio.Event()
        self.fails: set[bytes] = set()
        self._subscriber = self.broker.subscriber(
            topic.name, batch=True, group_id=f"{topic.name}-group", ack_policy=AckPolicy.MANUAL,
            auto_offset_reset="earliest", no_reply=True, batch_timeout_ms=100, fetch_max_wait_ms=100, **options,
        )  # fmt: skip

        async def handle(records: Any) -> None:
            values = [getattr(record, "value", record) for record in records]
            self.seen.append(values)
            self.came.set()
            if self.fails & set(values):
                raise ValueError("the handler fails")

        self._subscriber(handle)

    @property
    def consumer(self) -> AIOKafkaConsumer:
        """The client behind it."""
        found = self._subscriber.consumer
        assert found is not None
        return found

    async def until_came(self) -> None:
        """Waits for the next batch."""
        async with asyncio.timeout(20):
            await self.came.wait()
        self.came.clear()

    async def position(self) -> int:
        """What would be fetched next from partition 0."""
        return int(await self.consumer.position(self._topic.first))


@contextlib.asynccontextmanager
async def _consuming(topic: Topic, **options: Any) -> AsyncIterator[Batches]:
    batches = Batches(topic, **options)
    await batches.broker.start()
    try:
        yield batches
    finally:
        await batches.broker.stop()


BAD_HEADERS = pytest.mark.parametrize("value", [None, b"\xff\xfe"], ids=["null", "not UTF-8"])


@BAD_HEADERS
async def test_fact_1_one_bad_header_loses_the_batch_to_the_default_parser(
    topic: Topic, value: bytes | None, caplog: pytest.LogCaptureFixture
) -> None:
    """Fact 1: `AioKafkaBatchParser.parse_batch` decodes every header of every record (faststream/kafka/parser.py).

    One that is null or not UTF-8 makes it throw, `SubscriberUsecase.consume` swallows that, and the whole batch is
    passed over. So: no subscriber of ours without `parser=`.
    """
    await topic.send(b"a", b"bad", b"c", headers={b"bad": [("x", value)]})
    with caplog.at_level(logging.ERROR, LOG.name):
        async with _consuming(topic) as batches:
            await _until(lambda: _is(batches.position, 3), "the batch is passed over")
            await topic.send(b"later")
            await batches.until_came()
            assert batches.seen == [[b"later"]], "neighbours of a bad header reach the handler now"
    expected = AttributeError if value is None else UnicodeDecodeError
    assert [type(r.exc_info[1]) for r in caplog.records if r.exc_info] == [expected]


@BAD_HEADERS
async def test_fact_1_our_parser_takes_it(topic: Topic, value: bytes | None) -> None:
    """Fact 1, the cure: with the runtime's parser and decoder the handler gets the raw records, the bad one too."""
    await topic.send(b"a", b"bad", b"c", headers={b"bad": [("x", value)]})
    async with _consuming(topic, parser=_parse, decoder=_decode) as batches:
        await batches.until_came()
        assert batches.seen == [[b"a", b"bad", b"c"]]


async def test_fact_2_a_batch_whose_handler_raises_never_comes_again(topic: Topic) -> None:
    """Fact 2: under MANUAL an exception of the handler is logged and swallowed; the fetch position has moved on.

    (`SubscriberUsecase.consume` in faststream/_internal/endpoint/subscriber/usecase.py.) Nothing is redelivered, and a
    `commit()` without offsets would commit past it. So: nothing is raised into FastStream; the runtime seeks back.
    """
    await topic.send(b"a", b"b", b"c")
    async with _consuming(topic, parser=_parse, decoder=_decode) as batches:
        batches.fails = {b"b"}
        await batches.until_came()
        await _until(lambda: _is(batches.position, 3), "the position moved on")
        await topic.send(b"later")
        await batches.until_came()
        assert batches.seen == [[b"a", b"b", b"c"], [b"later"]]
        assert await batches.consumer.committed(topic.first) is None
        # The cure: `seek` brings the batch again.
        batches.fails = set()
        batches.consumer.seek(topic.first, 0)
        await batches.until_came()
        assert b"a" in batches.seen[2]
        await batches.consumer.commit()
        assert await batches.consumer.committed(topic.first) == 4, "commit() commits what was fetched, handled or not"


class Slow(ConsumerRebalanceListener):  # type: ignore[misc]
    """A listener that works on its assignment until told to end; `pauses` first, as ours does."""

    def __init__(self, *, pauses: bool) -> None:
        self._pauses = pauses
        self.client: AIOKafkaConsumer
        self.entered, self.may_end, self.ended = asyncio.Event(), asyncio.Event(), asyncio.Event()

    async def on_partitions_revoked(self, revoked: Iterable[TopicPartition]) -> None:
        """Nothing to do."""

    async def on_partitions_assigned(self, assigned: Sequence[TopicPartition]) -> None:
        """Waits, as a claim does for the database."""
        if self._pauses:
            self.client.pause(*assigned)
        self.entered.set()
        await self.may_end.wait()
        if self._pauses:
            for tp in assigned:
                self.client.seek(tp, 2)
            self.client.resume(*assigned)
        self.ended.set()


@pytest.mark.parametrize("pauses", [False, True], ids=["without a pause", "with a pause"])
async def test_fact_4_records_come_while_the_assignment_is_still_worked_on(topic: Topic, pauses: bool) -> None:
    """Fact 4: records are handed out while `on_partitions_assigned` is still awaited.

    `GroupCoordinator._on_join_complete` calls the listener after the assignment is live
    (aiokafka/consumer/group_coordinator.py). Only partitions paused before its first await stay silent; a seek in it
    then says where reading starts.
    """
    await topic.send(b"a", b"b", b"c")
    listener = Slow(pauses=pauses)
    async with topic.consumer(group_id=f"{topic.name}-group", listener=listener) as consumer:
        try:
            async with asyncio.timeout(20):
                await listener.entered.wait()
            early = await consumer.getmany(timeout_ms=500 if pauses else 10_000)
            assert not listener.ended.is_set()
            assert sum(map(len, early.values())) == (0 if pauses else 3)
        finally:
            listener.may_end.set()
        if pauses:
            await listener.ended.wait()
            got = await consumer.getmany(timeout_ms=10_000)
            assert [record.value for record in got[topic.first]] == [b"c"]


@pytest.mark.parametrize("topic", [8], indirect=True, ids=["8 partitions"])
async def test_fact_9_publish_batch_does_not_route_by_key(topic: Topic) -> None:
    """Fact 9: FastStream's batch publisher stores the key of each message and sends all to one partition.

    (`AioKafkaFastProducerImpl.publish_batch` in faststream/kafka/publisher/producer.py: `send_batch` with the
    partition of the call, random if none is given.) So: the relay sends record by record.
    """
    broker = KafkaBroker(topic.servers, logger=LOG)
    await broker.start()
    try:
        messages = [KafkaPublishMessage(b"x", key=key) for key in KEYS]
        await broker.publish_batch(*messages, topic=topic.name)  # lint: allow ack-policy -- shows why it is forbidden
    finally:
        await broker.stop()
    found = await topic.partitions_of(len(KEYS))
    assert sorted(found) == sorted(KEYS), "the keys are stored"
    assert len({part for parts in found.values() for part in parts}) == 1, "and do not route"


@pytest.mark.parametrize("topic", [8], indirect=True, ids=["8 partitions"])
async def test_fact_9_send_routes_by_key(topic: Topic) -> None:
    """Fact 9, the cure: `AIOKafkaProducer.send` hashes each key, the same key to the same partition for ever.

    Values of today's hash (murmur2, as the Java client has it) are part of the contract: after a change old and new
    records of a key would lie in two partitions.
    """
    for _ in range(2):
        async with topic.producer() as producer:
            for outcome in [await producer.send(topic.name, b"x", key=key) for key in KEYS]:
                await outcome
    found = await topic.partitions_of(2 * len(KEYS))
    assert {key: set(parts) for key, parts in found.items()} == {
        key: {part} for key, part in zip(KEYS, [1, 2, 6, 1, 6, 4, 2, 3, 3, 3, 4, 2], strict=True)
    }


async def test_fact_12_our_stop_finishes_the_batch_in_hand_before_the_pool_closes(mesh: Mesh, seed: int) -> None:
    """Fact 12: FastStream's hooks run before its consumers stop, and its drain may be switched off by a timeout of 0.

    We use neither: `Runtime.stop` waits for the batch in hand itself, then leaves the group, then closes the pool.
    """
    gateway = Gateway(seed)
    gate = Gate("before_commit")
    await gateway.send(mesh.env, gateway.some(50, duplicates=0))
    metering = await mesh.start("metering", fault=gate)
    async with asyncio.timeout(20):
        await gate.reached.wait()
    stopping = asyncio.create_task(mesh.stop(metering))
    try:
        # Nothing but the gate holds it: give it every chance to go on without the batch.
        done, _ = await asyncio.wait([stopping], timeout=0.5)
        assert not done and not metering.pool.is_closing()
        client = consumer_of(metering, topics.GENERATIONS).consumer
        assert client is not None and client.assignment(), "it left the group with a batch in hand"
    finally:
        gate.open.set()
        await stopping
    assert metering.pool.is_closing()
    counted = await mesh.counters()
    assert counted.get(f"records:{topics.GENERATIONS.name}", 0) > 0, "the batch in hand is not committed"


@pytest.mark.parametrize("cancelled", [False, True], ids=["polled", "a fetch was cancelled"])
async def test_fact_13_a_cancelled_fetch_switches_the_poll_limit_off(topic: Topic, cancelled: bool) -> None:
    """Fact 13: `SubscriptionState.fetch_context` has no try/finally (aiokafka/consumer/subscription_state.py).

    A `getmany` or `getone` that is cancelled counts as one that goes on for ever: the consumer is never idle again, and
    `max_poll_interval_ms`, after which one that no longer polls leaves its group, is off for good. So: nothing of ours
    cancels a fetch of a consumer that lives on, and a stall watch of our own decides on liveness.
    """
    limits: dict[str, Any] = {"session_timeout_ms": 6_000, "heartbeat_interval_ms": 200, "max_poll_interval_ms": 1_000}
    async with topic.consumer(group_id=f"{topic.name}-group", **limits) as consumer:
        coordinator, subscription = consumer._coordinator, consumer._subscription
        await _until(lambda: _true(bool(consumer.assignment()) and coordinator.generation > 0), "assigned")
        fetch = asyncio.create_task(consumer.getmany(timeout_ms=50 if not cancelled else 60_000))
        if cancelled:
            await asyncio.sleep(0)
            fetch.cancel()
        await asyncio.wait([fetch])
        assert fetch.cancelled() is cancelled
        if not cancelled:
            await _until(lambda: _true(coordinator.generation < 0), "it left the group, since nobody polls", 10)
            return
        # Twice the limit, and ten heartbeats: nothing announces that something does not happen.
        await asyncio.sleep(2)  # lint: allow sleep-in-test -- the limit that is shown not to hold
        assert coordinator.generation > 0 and subscription.fetcher_idle_time == 0


async def _is(value: Callable[[], Awaitable[int]], expected: int) -> bool:
    return await value() == expected


async def _true(value: bool) -> bool:
    return value
