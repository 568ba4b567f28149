"""The servers of one run. Between measurements databases and topics are made anew, so that order does not matter."""

from __future__ import annotations

import contextlib
import importlib.util
import os
from collections.abc import AsyncIterator, Mapping, Sequence
from typing import Any
from urllib.parse import urlsplit

import asyncpg
from aiokafka.admin import AIOKafkaAdminClient
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, SpinnerColumn, TextColumn, TimeElapsedColumn

from deploy.local.ports import free_port
from deploy.local.room import SERVE, Room, room_environment
from deploy.local.stack import Stack
from deploy.rooms import ROOMS, load
from shared.contract.topics import GENERATIONS, TOPICS
from shared.mesh.admin import end_offsets, ensure_topics
from shared.mesh.runtime import Runtime
from shared.mesh.settings import KafkaSettings, ServiceSettings
from tests.bench.backlog import Plan, produce

_SCRATCH = "steward_scratch"


class Unavailable(Exception):
    """What a measurement needs is not in this tree."""


class Lab:
    """Kafka and PostgreSQL as `steward up` starts them, and the services as processes."""

    def __init__(self, console: Console) -> None:
        self.console = console
        self.stack = Stack.throw_away(
            fast_start=False, say=lambda text: console.print(f"[dim]{text}[/dim]"), console=console
        )
        self.rooms = tuple(room for room in ROOMS if importlib.util.find_spec(f"services.{room}.app") is not None)
        self._plan: Plan | None = None
        self._running: list[Room] = []

    @property
    def env(self) -> Mapping[str, str]:
        """Settings as `.steward/env` has them."""
        return self.stack.settings

    @property
    def kafka(self) -> KafkaSettings:
        """How to reach Kafka."""
        return KafkaSettings.from_env(self.env)

    @property
    def absent(self) -> list[str]:
        """Rooms of the house that are not in this tree."""
        return [room for room in ROOMS if room not in self.rooms]

    def need(self, *rooms: str) -> None:
        """Raises Unavailable if one of `rooms` is not in this tree."""
        for room in rooms:
            if room not in self.rooms:
                raise Unavailable(f"services/{room}/app.py is not in this tree")

    async def __aenter__(self) -> Lab:
        """Starts the servers, migrates every database and keeps a copy of each."""
        try:
            await self.stack.start_servers()
            for room in self.rooms:
                await Runtime(load(room), ServiceSettings.from_env(room, self.env), http=False).prepare()
            async with self.admin() as admin:
                for name in self._databases:
                    await admin.execute(f"CREATE DATABASE template_{name} TEMPLATE steward_{name}")
        except BaseException:
            await self.stack.stop()
            raise
        return self

    async def __aexit__(self, *_: object) -> None:
        """Ends everything and deletes it."""
        try:
            await self.end_rooms()
        finally:
            await self.stack.stop()

    @property
    def _databases(self) -> list[str]:
        return [*self.rooms, "keys"]

    @contextlib.asynccontextmanager
    async def admin(self) -> AsyncIterator[Any]:
        """A connection of the server's administrator."""
        connection = await asyncpg.connect(self.env["STEWARD_POSTGRES_URL"])
        try:
            yield connection
        finally:
            await connection.close()

    @contextlib.asynccontextmanager
    async def owner(self, room: str) -> AsyncIterator[Any]:
        """A connection of the owner of a room's database."""
        connection = await asyncpg.connect(self.env[f"STEWARD_{room.upper()}_OWNER_DATABASE_URL"])
        try:
            yield connection
        finally:
            await connection.close()

    # --- state ---------------------------------------------------------------------------------------------------

    async def reset(self, plan: Plan | None = None) -> None:
        """Databases as after the migrations, and empty topics; with `plan`, its backlog waits in the topic.

        No service may run. A backlog that is there already stays: the cursors, which are gone, say what was read.
        """
        await self.end_rooms()
        topics = [topic for topic in TOPICS if not (topic is GENERATIONS and plan is not None and plan == self._plan)]
        await self._empty(topics)
        async with self.admin() as admin:
            for name in self._databases:
                await admin.execute(f"DROP DATABASE IF EXISTS steward_{name} WITH (FORCE)")
                await admin.execute(
                    f"CREATE DATABASE steward_{name} TEMPLATE template_{name} OWNER steward_{name}_owner"
                )
        if GENERATIONS in topics:
            self._plan = None
            if plan is not None:
                await self._produce(plan)
                self._plan = plan
        await self.settle()

    async def stored(self) -> dict[str, int]:
        """Bytes on the disk: of each room's database by its name, and of each topic's segments."""
        async with self.admin() as admin:
            rows = await admin.fetch(
                "SELECT datname, pg_database_size(datname) AS size FROM pg_database WHERE datname LIKE 'steward\\_%'"
            )
        sizes = {str(row["datname"]).removeprefix("steward_"): int(row["size"]) for row in rows}
        for topic in TOPICS:
            segments = (self.stack.home / "kafka").rglob(f"{topic.name}-*/*.log")
            sizes[topic.name] = sum(segment.stat().st_size for segment in segments)
        return sizes

    async def settle(self) -> None:
        """Writes a checkpoint, so that what was before costs nothing while something is measured."""
        async with self.admin() as admin:
            await admin.execute("CHECKPOINT")

    async def _empty(self, topics: list[Any]) -> None:
        admin = AIOKafkaAdminClient(**self.kafka.client())
        await admin.start()
        try:
            await admin.delete_topics([topic.name for topic in topics])
        finally:
            await admin.close()
        await ensure_topics(self.kafka)

    async def _produce(self, plan: Plan) -> None:
        with self.progress() as progress:
            task = progress.add_task("backlog", total=plan.events)
            await produce(self.env, plan, lambda n: progress.advance(task, n))
        there = await self.ends(GENERATIONS.name)
        if there != plan.events:
            raise RuntimeError(f"{there} records are in the topic, not {plan.events}")

    async def ends(self, topic: str) -> int:
        """How many records were ever written to a topic."""
        return sum(end for _, end in (await end_offsets(self.kafka, [topic])).values())

    async def scratch(self, template: str | None = None) -> str:
        """The URL of a fresh database beside those of the services: empty, or as a room's migrations leave it."""
        source = "template0" if template is None else f"template_{template}"
        async with self.admin() as admin:
            await admin.execute(f"DROP DATABASE IF EXISTS {_SCRATCH} WITH (FORCE)")
            await admin.execute(f"CREATE DATABASE {_SCRATCH} TEMPLATE {source} OWNER steward_metering_owner")
        return urlsplit(self.env["STEWARD_METERING_OWNER_DATABASE_URL"])._replace(path=f"/{_SCRATCH}").geturl()

    # --- services ------------------------------------------------------------------------------------------------

    @property
    def running(self) -> list[Room]:
        """The services that were made and not ended."""
        return list(self._running)

    def room(self, name: str, number: int = 0, serve: Sequence[str] | None = None) -> Room:
        """A service process, not started; `number` tells replicas apart, `serve` starts it otherwise than `steward up`."""
        variable = f"STEWARD_{name.upper()}_PORT"
        port = int(self.env[variable]) if number == 0 else free_port()
        environment = room_environment(name, ROOMS, self.env, os.environ) | {variable: str(port)}
        if self._plan is not None:
            # A backlog that the next run reads again is not to be trimmed seconds behind the run before.
            environment["STEWARD_KAFKA_HURRIED"] = "0"
        if number:
            environment[f"STEWARD_{name.upper()}_PUBLIC_PORT"] = "0"
        log = self.stack.home / "logs" / f"{name}-{number}.log"
        room = Room(name, port=port, log=log, environment=environment, serve=serve or SERVE, die_with_parent=True)
        self._running.append(room)
        return room

    async def end_rooms(self) -> None:
        """Ends the services, in the order in which work goes through them."""
        while self._running:
            await self._running.pop(0).stop()

    def complaints(self) -> str:
        """The last lines of what the running services said."""
        told = [f"{room.name}: {room.child.tail(4)}" for room in self._running if room.child is not None]
        return "\n".join(told)

    def dead(self) -> Room | None:
        """A service that has ended by itself."""
        return next((r for r in self._running if r.child is not None and not r.running), None)

    def progress(self) -> Progress:
        """A progress bar for what takes long."""
        return Progress(
            SpinnerColumn(), TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn(),
            console=self.console, transient=True,
        )  # fmt: skip
