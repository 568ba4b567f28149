"""The runtime's own rules, with a service made for it: halving, parking, limits, jobs, tasks, traces, clocks."""

from __future__ import annotations

import asyncio
import json
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import pytest
from aiokafka import AIOKafkaConsumer
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter

from shared.contract import topics
from shared.mesh import Batch, Done, Service, Task, Transaction, metrics, tracing
from shared.mesh.clock import FileClock, SystemClock, clock_from
from shared.mesh.consumer import Limit
from shared.mesh.logs import JsonFormatter
from tests.support.gateway import Gateway
from tests.support.proxy import Proxy, through
from tests.support.rewind import rewind
from tests.support.world import Faults, Mesh, consumer_of


class Poisoned(Exception):
    """What the handler cannot take."""


class Sample:
    """A service on billing's database that notes payments, and fails where it is told to."""

    def __init__(self, tmp_path: Path) -> None:
        self.taken: list[tuple[str, str]] = []
        self.poison: set[str] = set()
        self.calls = 0
        self.service = Service("billing", migrations=tmp_path)

        @self.service.consumes(topics.PAYMENTS)
        async def take(batch: Batch, tx: Transaction) -> None:
            self.calls += 1
            noted = []
            for received in batch.events:
                data = received.event.data
                if data.payment in self.poison:
                    raise Poisoned
                noted.append((data.workspace, data.payment))
            tx.count("taken", len(noted))
            tx.after_commit(lambda: self.taken.extend(noted))


@pytest.fixture
def sample(tmp_path: Path) -> Sample:
    return Sample(tmp_path)


async def counted(mesh: Mesh, name: str) -> int:
    return int(await mesh.value("billing", "SELECT coalesce(sum(value), 0) FROM mesh_counter WHERE name = $1", name))


async def test_a_failing_record_parks_its_key_and_nobody_else(
    mesh: Mesh, sample: Sample, seed: int, caplog: pytest.LogCaptureFixture, request: pytest.FixtureRequest
) -> None:
    gateway = Gateway(seed)
    caplog.handler.setFormatter(JsonFormatter("billing"))
    tracing.use_provider(TracerProvider())
    request.addfinalizer(tracing.stop)
    sample.poison = {"b2"}
    sent = [gateway.payment(w, 1, f"{w}{n}") for n in range(1, 5) for w in "abc"]
    await gateway.send(mesh.env, sent)
    running = await mesh.start("billing", service=sample.service)
    await mesh.owned()
    await mesh.idle()
    # Order per key: what came after the failed one waits behind it; the others went through.
    assert sorted(sample.taken) == sorted([(w, f"{w}{n}") for n in range(1, 5) for w in "ac"] + [("b", "b1")])
    # It is said once why, with the trace in which it was tried.
    (said,) = [json.loads(line) for line in caplog.text.splitlines() if "fails in the handler: Poisoned" in line]
    assert said["level"] == "error" and len(said["trace_id"]) == 32
    parked = await mesh.fetch("billing", "SELECT key, payload FROM mesh_parked ORDER BY id")
    assert [bytes(row["key"]) for row in parked] == [b"b"] * 3
    assert [next(f"b{n}" for n in (2, 3, 4) if f'"b{n}"'.encode() in row["payload"]) for row in parked] == [
        "b2",
        "b3",
        "b4",
    ]
    await gateway.send(mesh.env, [gateway.payment("b", 1, "b5")])
    await mesh.idle()
    assert await mesh.value("billing", "SELECT count(*) FROM mesh_parked") == 4
    await running.observe()
    assert metrics.PARKED_RECORDS.labels(topics.PAYMENTS.name)._value.get() == 4
    # The bug is mended, the key released: in order, each once, and the key is free again.
    sample.poison.clear()
    await gateway.send(mesh.env, [gateway.command("billing", "release_parked", topics.PAYMENTS.name)])

    async def released() -> bool:
        return not await mesh.value("billing", "SELECT count(*) FROM mesh_parked")

    await mesh.until(released, 20, "the key is released")
    await gateway.send(mesh.env, [gateway.payment("b", 1, "b6")])
    await mesh.idle()
    assert [p for w, p in sample.taken if w == "b"] == ["b1", "b2", "b3", "b4", "b5", "b6"]
    assert await counted(mesh, f"parked:{topics.PAYMENTS.name}") == 0
    assert await counted(mesh, "taken") == len(sent) + 2


async def test_too_many_failures_stop_the_partition(mesh: Mesh, sample: Sample, seed: int) -> None:
    gateway = Gateway(seed)
    sample.poison = {f"w{n}" for n in range(40)}
    await gateway.send(mesh.env, [gateway.payment(f"k{n}", 1, f"w{n}") for n in range(40)])
    running = await mesh.start("billing", service=sample.service, limit=Limit(consecutive=3))

    async def stopped() -> bool:
        return any(p.stopped == "limit" for c in running.consumers for p in c.partitions.values())

    await mesh.until(stopped, 30, "a partition stops")
    assert await mesh.value("billing", "SELECT count(*) FROM mesh_dead_letter") == 0, (
        "not emptied into the dead letters"
    )
    assert running.troubles() == [] and not (await running.idle())["idle"]
    # Alive, so nothing but the gauge tells: it rises with the stop, and falls when the partition is no longer ours.
    gauge = metrics.PARTITIONS_STOPPED.labels(topics.PAYMENTS.name, "limit")
    await running.observe()
    assert gauge._value.get() >= 1
    consumer = running.consumers[0]
    await consumer.revoked(list(consumer.partitions))
    await running.observe()
    assert gauge._value.get() == 0


async def test_a_job_runs_once_a_slot_whatever_the_replicas(mesh: Mesh, tmp_path: Path) -> None:
    clock = FileClock(tmp_path / "clock")
    start = datetime(2026, 11, 24, 10, 0, 30, tzinfo=UTC)
    FileClock.write(tmp_path / "clock", start, rate=0)
    ran: list[datetime] = []

    def service() -> Service:
        made = Service("billing", migrations=tmp_path)

        @made.job("tick", every=timedelta(minutes=1))
        async def tick(now: datetime, tx: Transaction) -> None:
            tx.count("ticks")
            tx.after_commit(lambda: ran.append(now))

        return made

    replicas = [await mesh.start("billing", service=service(), clock=clock) for _ in range(2)]

    async def both() -> int:
        return sum(await asyncio.gather(*(r.worker.run_job("tick") for r in replicas)))

    await both()  # the first look makes the job known: its first slot is the present one
    await both()
    first = len(ran)
    assert first <= 1 and await both() == 0
    missed = metrics.JOB_MISSED_SLOTS_TOTAL.labels("tick")._value.get()
    FileClock.write(tmp_path / "clock", start + timedelta(minutes=5), rate=0)

    async def again() -> bool:
        await both()
        return len(ran) > first

    await mesh.until(again, 10, "the slot is due")
    assert len(ran) == first + 1 == await counted(mesh, "ticks")
    assert metrics.JOB_MISSED_SLOTS_TOTAL.labels("tick")._value.get() - missed >= 3


class Stopped:
    """A clock that stands still."""

    def __init__(self, at: datetime) -> None:
        self.at = at

    def now(self) -> datetime:
        return self.at


async def test_what_comes_late_is_counted_by_records_and_once(mesh: Mesh, sample: Sample, seed: int) -> None:
    gateway = Gateway(seed)
    await gateway.send(mesh.env, [gateway.payment("w", 1, f"late{n}") for n in range(3)])
    clock = Stopped(SystemClock().now() + timedelta(seconds=metrics.FRESH_SECONDS))
    await gateway.send(mesh.env, [gateway.payment("w", 1, f"fresh{n}") for n in range(2)])
    late = metrics.LATE_RECORDS_TOTAL.labels(topics.PAYMENTS.name)._value
    before = late.get()
    await mesh.start("billing", service=sample.service, clock=clock)
    await mesh.owned()
    await mesh.idle()
    assert late.get() - before == 3
    # What is handled again is older, and was not late for that.
    await rewind(mesh, "billing", topics.PAYMENTS.name)
    await mesh.idle()
    assert sample.taken.count(("w", "fresh1")) == 2 and late.get() - before == 3


async def test_what_a_process_says_of_itself(mesh: Mesh, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Counters are there before they count; a job that does not get on is behind; gauges say when they were last true."""
    clock = FileClock(tmp_path / "clock")
    start = datetime(2026, 11, 24, 10, 0, 30, tzinfo=UTC)
    FileClock.write(tmp_path / "clock", start, rate=0)
    service = Service("billing", migrations=tmp_path)

    @service.job("stuck", every=timedelta(minutes=1))
    async def stuck(now: datetime, tx: Transaction) -> None:
        if now > start:
            raise Poisoned

    said = metrics.REGISTRY.get_sample_value
    url = mesh.settings("billing").database_url
    proxy = Proxy(urlsplit(url).hostname or "", urlsplit(url).port or 0)
    port = await proxy.open()
    try:
        running = await mesh.start(
            "billing", service=service, clock=clock, settings={"database_url": through(url, port)}
        )
        await mesh.owned()

        async def known() -> bool:
            await running.observe()
            return said("steward_job_slots_behind", {"job": "stuck"}) == 0

        await mesh.until(known, 10, "the job is known")
        assert said("steward_ready") == 1
        for name, labels in (
            ("steward_offset_gap_records_total", {"topic": topics.COMMANDS.name}),
            ("steward_job_runs_total", {"job": "stuck", "outcome": "failed"}),
        ):
            assert said(name, labels) is not None
        # Of a partition for which Kafka does not answer nothing is said: it is not read, and there is an alert on that.
        (reader,) = running.consumers
        (place,), client = list(reader.partitions), reader.consumer
        assert client is not None

        async def heard() -> bool:
            await running.observe()
            labels = {"topic": place.topic, "partition": str(place.partition)}
            return said("steward_consumer_next_offset", labels) is not None

        async def deaf() -> bool:
            return not await heard()

        await mesh.until(heard, 10, "Kafka answers")
        monkeypatch.setattr("shared.mesh.consumer.UNHEARD_SECONDS", 1.0)
        client.pause(place)
        await mesh.until(deaf, 10, "Kafka is not heard of")
        client.resume(place)
        await mesh.until(heard, 10, "Kafka answers again")
        later = start + timedelta(minutes=5)
        FileClock.write(tmp_path / "clock", later, rate=0)
        await running.observe()
        assert (said("steward_job_slots_behind", {"job": "stuck"}) or 0) >= 4
        assert said("steward_database_seen_timestamp_seconds") == later.timestamp()
        # Without its database the rest is what it was, and says so.
        await proxy.close()
        FileClock.write(tmp_path / "clock", later + timedelta(minutes=5), rate=0)
        await running.observe()
        assert said("steward_database_seen_timestamp_seconds") == later.timestamp()
    finally:
        await mesh.close()
        await proxy.close()


async def test_a_task_goes_on_where_it_was(mesh: Mesh, tmp_path: Path) -> None:
    service = Service("billing", migrations=tmp_path)
    seen: list[Any] = []

    @service.task("walk")
    async def walk(task: Task, tx: Transaction) -> Any:
        seen.append(task.position)
        if task.position == 2 and seen.count(2) == 1:
            raise Poisoned
        tx.count("steps")
        return Done() if task.position == 4 else (task.position or 0) + 1

    running = await mesh.start("billing", service=service)
    async with running.pool.acquire() as db, db.transaction():
        tx = Transaction("billing", db, running.clock.now())
        assert await tx.enqueue("walk", "because", {}) and not await tx.enqueue("walk", "because", {})
    running.worker.wake()

    async def done() -> bool:
        return not await mesh.value("billing", "SELECT count(*) FROM mesh_task")

    await mesh.until(done, 20, "the task is done")
    assert seen == [None, 1, 2, 2, 3, 4] and await counted(mesh, "steps") == 5


async def test_a_newcomer_waits_for_no_group_longer_than_for_that_one(mesh: Mesh, tmp_path: Path, seed: int) -> None:
    """Who has a batch in hand keeps a newcomer waiting in that topic's group, and in no other."""

    def service() -> Service:
        made = Service("billing", migrations=tmp_path)

        @made.consumes(topics.PAYMENTS)
        async def pay(batch: Batch, tx: Transaction) -> None:
            tx.count("paid", len(batch.events))

        @made.consumes(topics.USAGE_RATED)
        async def charge(batch: Batch, tx: Transaction) -> None:
            tx.count("charged", len(batch.events))

        return made

    held = Faults("decoded")  # no transaction is open yet: it may take its time
    await mesh.start("billing", service=service(), fault=held)
    await mesh.owned()
    gateway = Gateway(seed)
    await gateway.send(mesh.env, [gateway.payment("w", 1)])
    await asyncio.wait_for(held.hit.wait(), 20)
    starting = asyncio.create_task(mesh.start("billing", service=service()))
    try:

        async def shares() -> bool:
            theirs = mesh.running[1].consumers if len(mesh.running) == 2 else []
            return any(consumer.topic is topics.USAGE_RATED and consumer.partitions for consumer in theirs)

        await mesh.until(shares, 30, "the newcomer has its share of the other topic")
        assert not consumer_of(mesh.running[1], topics.PAYMENTS).partitions
    finally:
        held.release.set()
        await starting
    await mesh.owned()
    await mesh.idle()
    assert await counted(mesh, "paid") == 1


async def test_one_span_a_batch_and_its_context_travels(mesh: Mesh, seed: int) -> None:
    spans = InMemorySpanExporter()
    provider = TracerProvider()
    provider.add_span_processor(SimpleSpanProcessor(spans))
    tracing.use_provider(provider)
    try:
        gateway = Gateway(seed)
        await gateway.send(mesh.env, [gateway.price()])
        await mesh.start("metering")
        await mesh.owned()
        await mesh.idle()
        records = gateway.some(100, duplicates=0)
        for n, record in enumerate(records):
            record.headers.append(("traceparent", f"00-{n + 1:032x}-{n + 1:016x}-01".encode()))
        await gateway.send(mesh.env, records)
        await mesh.idle()
    finally:
        tracing.stop()
    batches = [s for s in spans.get_finished_spans() if s.name == f"process {topics.GENERATIONS.name}"]
    assert batches and all(0 < len(s.links) <= tracing.MAX_LINKS for s in batches)
    consumer = AIOKafkaConsumer(
        topics.USAGE_RATED.name,
        bootstrap_servers=mesh.env["STEWARD_KAFKA_BOOTSTRAP_SERVERS"],
        auto_offset_reset="earliest",
    )
    await consumer.start()
    try:
        record = await asyncio.wait_for(consumer.getone(), 10)
    finally:
        await consumer.stop()
    sent = tracing.parse_traceparent((dict(record.headers)["traceparent"] or b"").decode())
    sending = [s for s in spans.get_finished_spans() if s.name == f"send {topics.USAGE_RATED.name}"]
    mine = [s for s in sending if sent is not None and s.context is not None and s.context.span_id == sent.span_id]
    assert mine and mine[0].parent is not None
    assert mine[0].parent.span_id in {s.context.span_id for s in batches if s.context is not None}


def test_a_test_clock_is_refused_in_production(tmp_path: Path) -> None:
    FileClock.write(tmp_path / "clock", datetime(2030, 1, 1, tzinfo=UTC), rate=0)
    clock = clock_from(f"file:{tmp_path / 'clock'}", "test")
    assert clock.now() == datetime(2030, 1, 1, tzinfo=UTC)
    FileClock.write(tmp_path / "clock", datetime(2031, 1, 1, tzinfo=UTC), rate=0)
    assert clock.now() == datetime(2031, 1, 1, tzinfo=UTC)
    with pytest.raises(ValueError, match="production"):
        clock_from(f"file:{tmp_path / 'clock'}", "production")


async def test_liveness_is_a_loop_that_turns(mesh: Mesh, sample: Sample) -> None:
    running = await mesh.start("billing", service=sample.service)
    await mesh.owned()
    assert running.troubles() == [] and running.not_ready() == []
    consumer = running.consumers[0]
    client = consumer.consumer
    assert client is not None
    # A partition that stands still while nobody said why looks healthy from outside, and is not.
    (tp, *_) = consumer.partitions
    client.pause(tp)
    assert any("paused without a reason" in t for t in running.troubles())
    client.resume(tp)
    assert running.troubles() == []
    consumer.progress.paused_since[tp] = consumer.progress.ticked_at - 61
    assert any("not claimed" in t for t in running.troubles())
    consumer.progress.paused_since.clear()
    # A loop that no longer turns, as after a fetch that was cancelled.
    subscribers: list[Any] = [s for b in running._brokers for s in b.subscribers]
    for task in next(s for s in subscribers if s.consumer is client).tasks:
        task.cancel()
    consumer.progress.ticked_at -= 31
    assert any("has not turned" in t for t in running.troubles())


async def test_a_claim_that_waits_is_no_trouble(mesh: Mesh, sample: Sample) -> None:
    # Operators' commands are one partition; whatever is claimed third is not the first of its topic.
    waits = Faults("claimed", nth=3)
    running = await mesh.start("billing", service=sample.service, fault=waits)
    async with asyncio.timeout(20):
        await waits.hit.wait()
    # The partitions before it are claimed, and paused until all are.
    assert any(consumer.partitions for consumer in running.consumers)
    assert running.troubles() == []
    waits.release.set()
    await mesh.owned()
    assert running.troubles() == []
