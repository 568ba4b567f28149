"""Real Kafka and PostgreSQL, started once per run; each test gets empty databases and empty topics."""

from __future__ import annotations

import asyncio
import contextlib
import importlib
import os
import shutil
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from dataclasses import dataclass, field, replace
from email.message import EmailMessage
from pathlib import Path
from typing import Any

import asyncpg
from aiokafka.admin import AIOKafkaAdminClient
from aiokafka.admin.records_to_delete import RecordsToDelete

from deploy.local.stack import Stack
from deploy.rooms import ROOMS, load
from shared.contract.topics import BALANCES, TOPICS, Topic
from shared.mesh.admin import end_offsets, ensure_topics
from shared.mesh.consumer import TopicConsumer
from shared.mesh.runtime import Runtime
from shared.mesh.service import Service
from shared.mesh.settings import KafkaSettings, ServiceSettings
from tests.support.post import parsed

SESSION_TIMEOUT_MS = 6_000
# Two workers' databases and topics, at their largest.
_MEMORY_BYTES = 6_000_000_000


def make(room: str) -> Service:
    """A room's declaration of its own, so that two of them in one process share nothing."""
    module = importlib.import_module(f"services.{room}.app")
    # Tests look at topics from their first record on: the trimmer runs in its own test alone.
    options = {"trims": False} if room == "retention" else {}
    service: Service = module.make_service(**options) if hasattr(module, "make_service") else module.service
    return service


def _memory() -> Path | None:
    """A folder in memory, where there is enough of it: to copy a database there, file by file, costs a seventh of the CPU."""
    folder = Path("/dev/shm")
    try:
        if os.statvfs(folder).f_flag & os.ST_NOEXEC:  # Kafka's libraries are unpacked beside its data
            return None
        return folder if shutil.disk_usage(folder).free >= _MEMORY_BYTES else None
    except OSError:
        return None


class World:
    """The servers of one test run, and the databases as the migrations leave them, to copy from."""

    def __init__(self) -> None:
        # fsync guards against a machine that loses power, which no test here does; processes are killed all the time.
        # WAL is a file as well, and must not fill the memory.
        settings = {"fsync": "off", "shared_buffers": "256MB", "max_wal_size": "1GB"}
        self.stack = Stack.throw_away(postgres_settings=settings, within=_memory())
        self._names = [*ROOMS, "keys"]

    @property
    def env(self) -> dict[str, str]:
        """Settings as `.steward/env` has them."""
        return {**self.stack.settings, "STEWARD_SESSION_TIMEOUT_MS": str(SESSION_TIMEOUT_MS), "STEWARD_ENV": "test"}

    async def start(self) -> None:
        """Starts the servers, migrates every database and keeps a copy of each."""
        await self.stack.start_servers()
        await asyncio.gather(
            *(Runtime(load(room), ServiceSettings.from_env(room, self.env), http=False).prepare() for room in ROOMS)
        )
        async with self.admin() as admin:
            for name in self._names:
                await admin.execute(f"CREATE DATABASE template_{name} TEMPLATE steward_{name}")

    async def stop(self) -> None:
        """Ends the servers and deletes everything."""
        await self.stack.stop()

    async def reset(self) -> None:
        """Empty databases (as after the migrations) and empty topics."""
        await asyncio.gather(*(self._renew(name) for name in await self._changed()))
        assert self.stack.mail is not None
        for mail in self.stack.mail.mails():
            mail.unlink()
        for copy in Path(self.env["STEWARD_BLOBS"]).iterdir():
            shutil.rmtree(copy)
        kafka = KafkaSettings.from_env(self.env)
        ends = await end_offsets(kafka, [topic.name for topic in TOPICS if not topic.compacted])
        client = AIOKafkaAdminClient(**kafka.client())
        await client.start()
        try:
            await client.delete_records({tp: RecordsToDelete(end) for tp, (begin, end) in ends.items() if end > begin})
            # Kafka does not cut a compacted topic. Of these the next test would believe what this one said; the mesh's
            # balances nobody here reads.
            told = [topic for topic in TOPICS if topic.compacted and topic is not BALANCES]
            ends = await end_offsets(kafka, [topic.name for topic in told])
            full = {tp.topic for tp, (begin, end) in ends.items() if end > begin}
            if full:
                await client.delete_topics(sorted(full))
                async with asyncio.timeout(30):
                    while full & set(await client.list_topics()):
                        await asyncio.sleep(0.02)  # lint: allow sleep-in-test -- polls for what no event announces
        finally:
            await client.close()
        if full:
            await ensure_topics(kafka)

    async def _changed(self) -> list[str]:
        """The databases in which anything was written since they were made: most tests leave most of them alone."""
        async with self.admin() as admin:
            # A backend tells what it has done when it ends.
            await admin.execute(
                "SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE datname LIKE 'steward\\_%'"
            )
            async with asyncio.timeout(30):
                while await admin.fetchval(
                    "SELECT EXISTS (SELECT FROM pg_stat_activity WHERE datname LIKE 'steward\\_%')"
                ):
                    await asyncio.sleep(0.01)  # lint: allow sleep-in-test -- polls for what no event announces
            rows = await admin.fetch(
                """SELECT datname FROM pg_stat_database
                   WHERE datname LIKE 'steward\\_%' AND tup_inserted + tup_updated + tup_deleted = 0"""
            )
        clean = {row["datname"].removeprefix("steward_") for row in rows}
        return [name for name in self._names if name not in clean]

    async def _renew(self, name: str) -> None:
        async with self.admin() as admin:
            await admin.execute(f"DROP DATABASE IF EXISTS steward_{name} WITH (FORCE)")
            # Files as they are: page by page through the log is a quarter dearer, and every drop is a checkpoint anyway.
            await admin.execute(
                f"CREATE DATABASE steward_{name} TEMPLATE template_{name} OWNER steward_{name}_owner STRATEGY FILE_COPY"
            )

    @contextlib.asynccontextmanager
    async def admin(self) -> AsyncIterator[Any]:
        connection = await asyncpg.connect(self.env["STEWARD_POSTGRES_URL"])
        try:
            yield connection
        finally:
            await connection.close()


def consumer_of(runtime: Runtime, topic: Topic) -> TopicConsumer:
    """A running service's consumer of a topic."""
    return next(consumer for consumer in runtime.consumers if consumer.topic is topic)


@dataclass(slots=True)
class Faults:
    """Freezes a service at the n-th passing of a point: as good as killed, until it is abandoned (or released)."""

    point: str
    nth: int = 1
    hit: asyncio.Event = field(default_factory=asyncio.Event)
    release: asyncio.Event = field(default_factory=asyncio.Event)
    seen: int = 0

    async def __call__(self, point: str) -> None:
        if point == self.point:
            self.seen += 1
            if self.seen == self.nth:
                self.hit.set()
                await self.release.wait()


class Mesh:
    """Services of one test as tasks of its event loop, on the world's servers."""

    def __init__(self, world: World) -> None:
        self.world = world
        self.env = world.env
        self.running: list[Runtime] = []

    def settings(self, room: str, **changes: Any) -> ServiceSettings:
        """A room's settings; no fixed port, small batches so that there are several."""
        base = replace(ServiceSettings.from_env(room, self.env), port=0, public_port=0, batch_records=200)
        return replace(base, **changes)

    async def start(
        self, room: str, *, service: Service | None = None, settings: dict[str, Any] | None = None, **options: Any
    ) -> Runtime:
        """Starts a room and returns when it owns its partitions."""
        runtime = Runtime(service or make(room), self.settings(room, **(settings or {})), http=False, **options)
        self.running.append(runtime)
        await runtime.start()
        return runtime

    async def owned(self, *runtimes: Runtime, within: float = 30.0) -> None:
        """Waits until the given (all) rooms have claimed what they were assigned."""
        await self.until(lambda: _none(*(r.not_ready() for r in runtimes or self.running)), within, "claimed")

    async def abandon(self, runtime: Runtime) -> None:
        """Ends a room as a kill does."""
        self.running.remove(runtime)
        await _kill(runtime)

    async def stop(self, runtime: Runtime) -> None:
        """Ends a room as SIGTERM does."""
        self.running.remove(runtime)
        await runtime.stop()

    async def idle(self, *, within: float = 60.0) -> None:
        """Waits until nothing is on its way: twice in a row, since work moves from room to room."""
        quiet = 0

        async def all_idle() -> bool:
            nonlocal quiet
            states = await asyncio.gather(*(r.idle() for r in self.running))
            quiet = quiet + 1 if all(s["idle"] for s in states) else 0
            return quiet >= 2

        await self.until(all_idle, within, "idle")

    async def until(self, condition: Callable[[], Awaitable[bool]], within: float, what: str) -> None:
        """Waits for a state of the outside world that nothing announces."""
        async with asyncio.timeout(within):
            while not await condition():
                await asyncio.sleep(0.05)  # lint: allow sleep-in-test -- polls for what no event announces

    async def close(self) -> None:
        """Ends what still runs."""
        for runtime in self.running:
            await runtime.stop()
        self.running.clear()

    async def fetch(self, room: str, sql: str, *arguments: Any) -> list[Any]:
        """Rows from a room's database, as its owner."""
        db = await asyncpg.connect(self.env[f"STEWARD_{room.upper()}_OWNER_DATABASE_URL"])
        try:
            return list(await db.fetch(sql, *arguments))
        finally:
            await db.close()

    async def value(self, room: str, sql: str, *arguments: Any) -> Any:
        """One value from a room's database."""
        return (await self.fetch(room, sql, *arguments))[0][0]

    async def copy_database(self, room: str, name: str) -> None:
        """Keeps a room's database as it is now (nobody may be connected)."""
        async with self.world.admin() as admin:
            await admin.execute(f"DROP DATABASE IF EXISTS copy_{name}")
            await admin.execute(f"CREATE DATABASE copy_{name} TEMPLATE steward_{room}")

    async def restore_database(self, room: str, name: str) -> None:
        """Puts a kept database back in a room's place."""
        async with self.world.admin() as admin:
            await admin.execute(f"DROP DATABASE steward_{room} WITH (FORCE)")
            await admin.execute(f"CREATE DATABASE steward_{room} TEMPLATE copy_{name} OWNER steward_{room}_owner")
            await admin.execute(f"DROP DATABASE copy_{name}")

    def mails(self) -> list[EmailMessage]:
        """The mails that came to the sink, oldest first."""
        assert self.world.stack.mail is not None
        return [parsed(path.read_bytes()) for path in self.world.stack.mail.mails()]

    async def counters(self) -> dict[str, int]:
        """Metering's durable counters."""
        rows = await self.fetch("metering", "SELECT name, sum(value)::bigint AS n FROM mesh_counter GROUP BY name")
        return {row["name"]: row["n"] for row in rows}


async def _kill(runtime: Runtime) -> None:
    """Nothing is finished, nothing is said: connections break, and whatever was frozen stays undone."""
    for consumer in runtime.consumers:
        consumer.stop()
    runtime._exit.set()
    if runtime._pool is not None:
        runtime._pool.terminate()
    for close in runtime._closers:
        await close()
    for subscriber in [s for broker in runtime._brokers for s in broker.subscribers]:
        client = getattr(subscriber, "consumer", None)
        ours = list(getattr(subscriber, "tasks", ()))
        for consumer in runtime.consumers:
            ours += list(consumer._work)
        if client is not None and client._coordinator is not None:
            ours.append(client._coordinator._coordination_task)
        for task in ours:
            task.cancel()
        if ours:
            await asyncio.wait(ours, timeout=5)
        if client is not None:
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(client.stop(), 5)
    left = set(runtime._tasks)
    while left:
        # More than once: leaving a transaction whose connection is gone raises that, in place of the cancellation, and a
        # worker that is not told to stop takes it for one more failure.
        for task in left:
            task.cancel()
        _, left = await asyncio.wait(left, timeout=1)


async def _none(*troubles: Sequence[str]) -> bool:
    return not any(troubles)
