"""One service in one process: wires declaration, database, Kafka, relay, jobs, tasks and HTTP, and drains in order."""

from __future__ import annotations

import asyncio
import contextlib
import gc
import logging
import os
import signal
import socket
from collections.abc import Awaitable, Callable, Mapping, Sequence
from datetime import datetime, timedelta
from typing import Any

import asyncpg
from aiokafka import TopicPartition
from aiokafka.errors import KafkaError
from faststream import AckPolicy
from faststream.kafka import KafkaBroker
from faststream.kafka.message import KafkaMessage

from shared.contract.topics import COMMANDS, TOPICS, pace
from shared.mesh import metrics, partitions, store
from shared.mesh.admin import Spans, ensure_topics
from shared.mesh.clock import Clock, clock_from
from shared.mesh.commands import RELEASE_PARKED, command_consumer, release_parked_task
from shared.mesh.consumer import TRANSIENT, Limit, TopicConsumer
from shared.mesh.errors import where
from shared.mesh.http import Port
from shared.mesh.migrate import migrate
from shared.mesh.relay import Relay
from shared.mesh.safe import unlocked
from shared.mesh.service import Consumer, Partitioned, Served, Service
from shared.mesh.settings import ServiceSettings
from shared.mesh.store import OutboxRow, Pool
from shared.mesh.transaction import HEARTBEAT, Caller, Transaction, shard_of
from shared.mesh.work import Worker

log = logging.getLogger("steward.mesh")

_HINT_SECONDS = 3.0
# By its heartbeat a member of a group hears that another came or went; until all have, partitions stand still.
_HEARTBEAT_MS = 1_000
# What saying goodbye to Kafka may take beyond the drain.
_LEAVE_SECONDS = 5.0
_LINGER_BYTES = 64 * 1024
# How long Kafka may keep a fetch of nothing (a record is answered at once). A seek waits for the fetch that is out, so not long.
_FETCH_WAIT_MS = 100
_LOOK_SECONDS = 0.05
MESH_PARTITIONED = (Partitioned("mesh_dead_letter", ahead=9, keeps=timedelta(0)),)
"""The runtime's own partitioned tables, in every service's database."""
_SWEEP_RETRY_SECONDS = 1.0
_SWEEP_RETRY_MAX_SECONDS = 60.0

Fault = Callable[[str], Awaitable[None]]


class Runtime:
    """A running service. `start`, then `stop`; or `serve` for a whole process.

    `fault` is called at each numbered point of the crash table (tests only); `fencing`, `relay_locking` and
    `dedupe` switch guards off, so that tests can show that the guards matter.
    """

    def __init__(
        self,
        service: Service,
        settings: ServiceSettings,
        *,
        clock: Clock | None = None,
        fault: Fault | None = None,
        limit: Limit | None = None,
        fencing: bool = True,
        relay_locking: bool = True,
        http: bool = True,
    ) -> None:
        self.service, self.settings = service, settings
        self.clock = clock or clock_from(settings.clock, settings.environment)
        self.consumers: list[TopicConsumer] = []
        self._fault, self._limit = fault, limit
        self._fencing, self._relay_locking, self._http = fencing, relay_locking, http
        self._brokers: list[KafkaBroker] = []
        self._spans = Spans(settings.kafka)
        self._pool: Pool | None = None
        self._tasks: list[asyncio.Task[Any]] = []
        self._started = False
        self._closers: list[Callable[[], Awaitable[Any]]] = []
        # What plug-ins keep for the life of this process, by name.
        self.plugged: dict[str, Any] = {"kafka": settings.kafka}
        self.exit_reason: str | None = None
        self._exit = asyncio.Event()
        self._sweep = asyncio.Event()
        self._owner = f"{socket.gethostname()}:{os.getpid()}:{id(self) & 0xFFFF:x}"

    def on_close(self, close: Callable[[], Awaitable[Any]]) -> None:
        """`close` is awaited when the service stops, before its own pool closes."""
        self._closers.append(close)

    @property
    def pool(self) -> Pool:
        """The pool on the service's database, with the rights of its app role."""
        assert self._pool is not None, "the runtime is not started"
        return self._pool

    async def prepare(self) -> None:
        """Brings the service's database to the newest schema and supplies its partitions."""
        service = self.service
        await migrate(self.settings.owner_database_url, service.name, service.migrations, plugged=service.schemas)
        await self.make_partitions()

    async def start(self) -> None:
        """Migrates, opens everything and starts to consume. Raises what makes a start impossible."""
        settings, service = self.settings, self.service
        await self.prepare()
        self._pool = await store.open_pool(settings.database_url, application=f"steward-{service.name}")
        if service.on_start is not None:
            await service.on_start(self)
        # Its own alone: in a cluster it has no right to see, and none to make, those of others.
        await ensure_topics(settings.kafka, service.topics)
        self.on_close(self._spans.close)
        await self._spans.open()
        self.relay = Relay(
            service.name, settings.database_url, self._pool, settings.kafka,
            fault=self._fault, locking=self._relay_locking,
        )  # fmt: skip
        jobs = service.jobs | {"mesh-partitions": (timedelta(hours=1), self._partitions_job)}
        if any(topic.compacted and service.name in topic.writers for topic in TOPICS):
            jobs["mesh-heartbeat"] = (pace(hurried=settings.kafka.hurried).segment / 2, self._heartbeat_job)
        tasks = service.tasks | {RELEASE_PARKED: release_parked_task(self)}
        self.worker = Worker(
            service.name, self._pool, self.clock, jobs, tasks,
            guard=service.guard, unguarded=service.unguarded, plugged=self.plugged,
            wake_relay=self.relay.wake, fault=self._fault,
        )  # fmt: skip
        declarations = [*service.consumers]
        if service.name in COMMANDS.readers:
            declarations.append(command_consumer(self))
        metrics.begin_at_zero(
            reads=[declared.topic.name for declared in declarations],
            writes=[topic.name for topic in TOPICS if service.name in topic.writers],
            jobs=jobs,
            tasks=tasks,
        )
        self.port = Port(
            settings.host, settings.port, alive=self.troubles, ready=self.not_ready,
            observe=self.observe, answer=self.answer, serve=self.serve_file, files=self.service.file_handlers,
            public_port=settings.public_port,
        )  # fmt: skip
        if self._http:
            await self.port.open()
        await self._consume([d for d in declarations if d.first])
        await self._catch_up()
        if service.on_caught_up is not None:
            await service.on_caught_up(self)
        await self._consume([d for d in declarations if not d.first])
        for run in (self.relay.run, self.worker.run_jobs, self.worker.run_tasks, self._hints, self._sweep_partitions):
            self._tasks.append(asyncio.create_task(run(), name=run.__qualname__))
        for task in self._tasks:
            task.add_done_callback(self._task_ended)
        self._started = True
        log.info("%s is started", service.name)

    async def _consume(self, declarations: Sequence[Consumer]) -> None:
        """Starts to read the declared topics, all at once: each is a group of its own, and who joins one waits until its
        members look up at their next heartbeat."""
        opening = []
        for declaration in declarations:
            broker = self._broker()
            consumer = self._subscribe(broker, declaration)
            self.consumers.append(consumer)
            self._brokers.append(broker)
            opening.append(self._open(broker, consumer))
        # All of them are waited for: whatever was opened can be closed then, whichever failed.
        failed = [e for e in await asyncio.gather(*opening, return_exceptions=True) if e is not None]
        if failed:
            raise failed[0]

    async def _open(self, broker: KafkaBroker, consumer: TopicConsumer) -> None:
        await broker.start()
        # Nothing was fetched yet: the framework's loop has not had its first turn.
        self._own_fetches(consumer, broker.subscribers[0])

    def _broker(self) -> KafkaBroker:
        """The framework's client of one topic."""
        return KafkaBroker(
            **self._broker_security(),
            client_id=f"steward-{self.service.name}",
            allow_auto_create_topics=False,
            logger=logging.getLogger("steward.faststream"),
            graceful_timeout=self.settings.drain_seconds,
            log_level=logging.DEBUG,
            consumer_only=True,
        )

    async def _catch_up(self) -> None:
        """Waits until the topics that are read first have been read to where they end now, by whichever replica."""
        groups = {c.topic.name: c.group for c in self.consumers}
        if not groups:
            return
        ends = await self._spans.of(groups)
        behind = {tp: end for tp, (begin, end) in ends.items() if end > begin}
        while not self._exit.is_set():
            async with self.pool.acquire() as db:
                for topic, group in groups.items():
                    for part, reached in (await store.next_offsets(db, group, topic)).items():
                        if reached >= behind.get(TopicPartition(topic, part), reached + 1):
                            del behind[TopicPartition(topic, part)]
            if not behind:
                return
            # Another replica may be the one that reads: only the cursors tell.
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(_LOOK_SECONDS):
                    await self._exit.wait()

    def _broker_security(self) -> dict[str, Any]:
        """The same settings as for every client, in the framework's words."""
        from faststream.security import BaseSecurity, SASLPlaintext, SASLScram256, SASLScram512

        kafka = self.settings.kafka
        context = kafka.client().get("ssl_context")
        kinds = {"PLAIN": SASLPlaintext, "SCRAM-SHA-256": SASLScram256, "SCRAM-SHA-512": SASLScram512}
        security: BaseSecurity
        if kafka.sasl_mechanism:
            security = kinds[kafka.sasl_mechanism](
                username=kafka.sasl_username or "", password=kafka.sasl_password or "", ssl_context=context,
                use_ssl=context is not None,
            )  # fmt: skip
        else:
            security = BaseSecurity(ssl_context=context, use_ssl=context is not None)
        return {"bootstrap_servers": kafka.bootstrap_servers, "security": security}

    def _subscribe(self, broker: KafkaBroker, declaration: Consumer) -> TopicConsumer:
        settings = self.settings
        consumer = TopicConsumer(
            self.service.name,
            declaration,
            self.pool,
            self.clock,
            owner=self._owner,
            session_timeout_ms=settings.session_timeout_ms,
            filter=self.service.filter,
            guard=self.service.guard,
            plugged=self.plugged,
            limit=self._limit,
            wake_relay=self.relay.wake,
            wake_tasks=self.worker.wake,
            fault=self._fault,
            give_up=self.give_up,
            fencing=self._fencing,
        )
        listener = consumer.listener()
        subscriber = broker.subscriber(
            declaration.topic.name,
            batch=True,
            group_id=consumer.group,
            ack_policy=AckPolicy.MANUAL,
            auto_offset_reset="earliest",
            isolation_level="read_committed",
            no_reply=True,
            max_records=min(declaration.batch, settings.batch_records),
            batch_timeout_ms=200,
            fetch_max_wait_ms=settings.linger_ms if declaration.lingers else _FETCH_WAIT_MS,
            fetch_min_bytes=_LINGER_BYTES if declaration.lingers else 1,
            max_partition_fetch_bytes=1024 * 1024,
            session_timeout_ms=settings.session_timeout_ms,
            heartbeat_interval_ms=min(_HEARTBEAT_MS, settings.session_timeout_ms // 3),
            rebalance_timeout_ms=60_000,
            max_poll_interval_ms=300_000,
            listener=listener,
            parser=_parse,
            decoder=_decode,
        )
        consumer.attach = lambda: subscriber.consumer

        @subscriber
        async def handle(records: Any) -> None:
            await consumer.on_batch(records)

        return consumer

    @staticmethod
    def _own_fetches(consumer: TopicConsumer, subscriber: Any) -> None:
        """Liveness needs to know that the loop turns, also when there is nothing to read.

        And the framework is never told of an empty fetch: it would sleep as long again, whatever comes meanwhile.
        """
        client = subscriber.consumer
        fetch = client.getmany

        async def getmany(*args: Any, **kwargs: Any) -> Any:
            while True:
                consumer.tick()
                records = await fetch(*args, **kwargs)
                consumer.fetched()
                if records or consumer.stopped:
                    return records

        client.getmany = getmany

    async def stop(self) -> None:
        """Drains: the batch in hand is finished and committed, the group left, the relay's rows sent, then the pool closed.

        After `drain_seconds` nothing is waited for any more: a batch that hangs is cut, and its next owner reads it again.
        """
        self._exit.set()
        self._sweep.set()
        clock = asyncio.get_running_loop()
        deadline = clock.time() + self.settings.drain_seconds
        for consumer in self.consumers:
            consumer.stop()
        try:
            async with asyncio.timeout_at(deadline):
                for consumer in self.consumers:
                    await consumer.drained()
        except TimeoutError:
            log.warning("%s: the batch in hand did not end in time and is cut", self.service.name)
            self.worker.stop()
            self.relay.stop()
            for task in self._tasks:
                task.cancel()
            self.pool.terminate()
        with contextlib.suppress(TimeoutError, KafkaError):
            async with asyncio.timeout_at(deadline + _LEAVE_SECONDS):
                await asyncio.gather(*(consumer.commit_hints() for consumer in self.consumers))
                await asyncio.gather(*(broker.stop() for broker in self._brokers))
        if self._started:
            self.worker.stop()
            self.relay.stop()
            _, late = await asyncio.wait(self._tasks, timeout=max(deadline - clock.time(), 1.0))
            for task in late:
                task.cancel()
            await asyncio.gather(*late, return_exceptions=True)
        if hasattr(self, "port"):
            await self.port.close()
        if self._pool is not None:
            for close in self._closers:
                await close()
            try:
                await asyncio.wait_for(self._pool.close(), 10)
            except TimeoutError:
                self._pool.terminate()
        log.info("%s is stopped", self.service.name)

    async def serve(self) -> int:
        """Runs until SIGTERM or SIGINT; returns the exit code (1 when the service gave up)."""
        loop = asyncio.get_running_loop()
        for number in (signal.SIGTERM, signal.SIGINT):
            loop.add_signal_handler(number, self._exit.set)
        try:
            await self.start()
            gc.collect()
            gc.freeze()
            # Most objects live for one batch; looking at them again and again costs a third of the decoding.
            gc.set_threshold(200_000, 20, 100)
            await self._exit.wait()
        finally:
            await self.stop()
        return 1 if self.exit_reason else 0

    def give_up(self, reason: str) -> None:
        """Ends the process: what is wrong cannot be mended from inside."""
        log.critical("%s gives up: %s", self.service.name, reason)
        self.exit_reason = reason
        self._exit.set()

    def _task_ended(self, task: asyncio.Task[Any]) -> None:
        if not task.cancelled() and (error := task.exception()) is not None:
            self.give_up(f"{task.get_name()} ended: {where(error)}")

    # --- partitions, hints, probes -------------------------------------------------------------------------------

    @property
    def partitioned(self) -> tuple[Partitioned, ...]:
        """Every partitioned table of the service's database."""
        return (*MESH_PARTITIONED, *self.service.partitioned)

    async def make_partitions(self) -> None:
        """Makes the day partitions that the service's tables will need."""
        owner = await store.connect(self.settings.owner_database_url, f"steward-{self.service.name}-partitions")
        try:
            for table in self.partitioned:
                await partitions.supply(owner, table, self.clock.now())
        finally:
            await owner.close()

    async def drop_partitions(self) -> list[str]:
        """Drops the partitions whose time is over; returns those that somebody reads and that have to wait."""
        return await partitions.drop_over(
            self.settings.owner_database_url, f"steward-{self.service.name}-sweep", self.partitioned, self.clock.now(),
            self._fault or _no_fault, self.service.on_sweep,
        )  # fmt: skip

    async def _partitions_job(self, now: datetime, tx: Transaction) -> None:
        await self.make_partitions()
        # Outside of this transaction: what it holds must not wait for readers, nor they for it.
        tx.after_commit(self._sweep.set)

    async def _sweep_partitions(self) -> None:
        """Drops what is over whenever the job says so, and once after the start; comes again soon for what is read."""
        patience = _SWEEP_RETRY_SECONDS
        while not self._exit.is_set():
            self._sweep.clear()
            try:
                busy = await self.drop_partitions()
                if busy:
                    log.info("partitions whose time is over are still read: %s", ", ".join(busy))
            except (*TRANSIENT, asyncpg.PostgresError) as error:
                log.warning("partitions whose time is over wait: %s", type(error).__name__)
                busy = ["?"]
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(patience if busy else None):
                    await self._sweep.wait()
            patience = min(2 * patience, _SWEEP_RETRY_MAX_SECONDS) if busy else _SWEEP_RETRY_SECONDS

    async def _heartbeat_job(self, now: datetime, tx: Transaction) -> None:
        """A record without key's value now and then, so that segments of quiet compacted topics roll and are compacted."""
        for topic in TOPICS:
            if topic.compacted and self.service.name in topic.writers:
                for part in range(topic.partitions):
                    tx.publish_raw(OutboxRow(shard_of(HEARTBEAT, part), topic.name, part, HEARTBEAT, None))

    async def _hints(self) -> None:
        while not self._exit.is_set():
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(_HINT_SECONDS):
                    await self._exit.wait()
                return  # the last hints are `stop`'s, while the clients are still open
            for consumer in self.consumers:
                await consumer.commit_hints()
                with contextlib.suppress(*TRANSIENT, asyncpg.PostgresError):
                    await consumer.notice_moved()

    def troubles(self) -> list[str]:
        """Why this process should be restarted; empty if it should not."""
        found = [t for c in self.consumers if (t := c.trouble()) is not None]
        found += [f"{t.get_name()} has ended" for t in self._tasks if t.done()]
        return found

    def not_ready(self) -> list[str]:
        """Why this process is not (yet) at work."""
        if not self._started:
            return ["starting"]
        return [f"{c.topic.name}: not assigned or not claimed" for c in self.consumers if not c.ready()]

    async def observe(self) -> None:
        """Refreshes the gauges that need a look at the database."""
        for consumer in self.consumers:
            consumer.observe()
        metrics.READY.set(not self.not_ready())
        try:
            # The other metrics are wanted most when the database hangs.
            async with asyncio.timeout(5), self.pool.acquire(timeout=2) as db:
                waiting = await store.pending(db)
                if self.service.on_observe is not None:
                    await self.service.on_observe(db, self.clock.now())
        except (*TRANSIENT, asyncpg.PostgresError) as error:
            log.info("gauges are stale: %s", type(error).__name__)
            return
        now = self.clock.now()
        metrics.DATABASE_SEEN.set(now.timestamp())
        metrics.OUTBOX_PENDING.set(waiting["outbox"])
        metrics.OUTBOX_OLDEST_SECONDS.set(_age(waiting["oldest"], now))
        metrics.DEAD_LETTER_OLDEST_SECONDS.set(_age(waiting["oldest_dead"], now))
        for topic in TOPICS:
            if self.service.name in topic.readers:
                metrics.DEAD_LETTERS_WAITING.labels(topic.name).set(waiting["dead"].get(topic.name, 0))
                metrics.PARKED_RECORDS.labels(topic.name).set(waiting["parked"].get(topic.name, 0))
        for name, slots in self.worker.slots_behind(waiting["jobs"], now).items():
            metrics.JOB_SLOTS_BEHIND.labels(name).set(slots)
        for name in self.service.tasks:
            metrics.TASKS_PENDING.labels(name).set(waiting["tasks"].get(name, 0))

    async def answer(self, name: str, query: Mapping[str, str], actor: str, role: str, reason: str) -> Any:
        """Answers a read and notes who asked, also when the read then refuses (`NotAllowed`).

        Raises KeyError for a read that this service does not have.
        """
        if name == "idle":
            return await self.idle()
        handler = self.service.read_handlers.get(name) or _COMMON_READS[name]
        async with self.pool.acquire() as db:
            now = self.clock.now()
            # Committed first: whoever is refused has asked, too.
            await store.log_read(db, name, actor, role, reason, now)
            async with db.transaction():
                caller = Caller(actor, role, reason)
                return await handler(
                    query, Transaction(self.service.name, db, now, plugged=self.plugged, caller=caller)
                )

    async def serve_file(self, name: str, token: str) -> Served:
        """The file that a token gives a right to. Raises `NotFound`, `NotKept`."""
        async with self.pool.acquire() as db, db.transaction():
            tx = Transaction(self.service.name, db, self.clock.now(), plugged=self.plugged)
            return await self.service.file_handlers[name](token, tx)

    async def idle(self) -> dict[str, Any]:
        """Whether nothing is on its way: lag 0 (asked of Kafka, not of a cache), outbox and tasks empty."""
        lag: dict[str, int] = {}
        stopped: list[str] = []
        spans = await self._spans.of({consumer.topic.name for consumer in self.consumers})
        lags = await asyncio.gather(*(consumer.true_lag(spans) for consumer in self.consumers))
        for consumer, behind in zip(self.consumers, lags, strict=True):
            lag[consumer.topic.name] = behind
            stopped += consumer.stops()
        async with self.pool.acquire() as db:
            waiting = await store.pending(db)
            own = 0 if self.service.on_idle is None else await self.service.on_idle(db)
        tasks = sum(waiting["tasks"].values()) + own
        quiet = not any(lag.values()) and not waiting["outbox"] and not tasks
        return {"idle": quiet, "lag": lag, "stopped": stopped, "outbox": waiting["outbox"], "tasks": tasks}


async def _no_fault(point: str) -> None:
    return


def _age(since: datetime | None, now: datetime) -> float:
    return 0.0 if since is None else max(0.0, (now - since).total_seconds())


async def _parse(message: Any, original: Any) -> KafkaMessage:
    # The framework's parser decodes every header, and one that is null or not UTF-8 would lose the whole batch.
    return KafkaMessage(body=message, headers={}, raw_message=message, message_id="", consumer=None)  # type: ignore[arg-type]


async def _decode(message: Any, original: Any) -> Any:
    return message.body


async def _read_dead_letters(query: Mapping[str, str], tx: Transaction) -> Any:
    return await store.dead_letters(
        tx.db,
        state=query.get("state", "waiting") or None,
        topic=query.get("topic"),
        after=int(query.get("after", "0")),
        limit=min(int(query.get("limit", "100")), 1000),
    )


async def _read_dead_letter(query: Mapping[str, str], tx: Transaction) -> Any:
    from shared.mesh.http import NotFound

    letter = await store.dead_letter(tx.db, int(query.get("id", "0")))
    if letter is None:
        raise NotFound("no such dead letter")
    shown = {**letter, "payload": await unlocked(letter["payload"], tx)}
    for name in ("payload", "key"):
        raw = shown[name]
        shown[name] = None if raw is None else bytes(raw).decode("utf-8", "backslashreplace")
    shown["headers"] = [(k, v.decode("utf-8", "backslashreplace")) for k, v in store.unpack_headers(shown["headers"])]
    shown.pop("subject_hash")
    return shown


async def _read_counters(query: Mapping[str, str], tx: Transaction) -> Any:
    return await store.counters(tx.db)


async def _read_cursors(query: Mapping[str, str], tx: Transaction) -> Any:
    return await store.cursors(tx.db)


_COMMON_READS = {
    "dead-letters": _read_dead_letters,
    "dead-letter": _read_dead_letter,
    "counters": _read_counters,
    "cursors": _read_cursors,
}
