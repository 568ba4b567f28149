"""Services as processes of their own: `python -m deploy.serve ROOM`, killed, stopped and woken by signals."""

from __future__ import annotations

import asyncio
import os
import shutil
import signal
import sys
import tempfile
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from pathlib import Path

from prometheus_client.parser import text_string_to_metric_families

from deploy.local.ports import free_port
from deploy.local.probe import get, get_json
from deploy.local.process import Child
from deploy.local.room import Room, room_environment
from deploy.rooms import ROOMS
from tests.support.gateway import Gateway
from tests.support.world import Mesh

_LOG_LINES = 60
_LEAVE_SECONDS = 5.0


class Served(Room):
    """One service process."""

    @property
    def process(self) -> Child:
        """The process, running or ended."""
        assert self.child is not None, "it was never started"
        return self.child

    @property
    def pid(self) -> int:
        """Its process id, part of the owner that it writes into the cursors it claims."""
        return self.process.pid

    def terminate(self) -> None:
        """SIGTERM, without waiting."""
        self.process.send(signal.SIGTERM)

    async def ended(self, within: float) -> int:
        """Waits for its end and returns its exit code."""
        async with asyncio.timeout(within):
            return await self.process.wait()

    async def metric(self, name: str) -> float:
        """The sum of a metric over all labels, from its /metrics."""
        _, body = await get(self.port, "/metrics")
        families = text_string_to_metric_families(body.decode())
        return sum(sample.value for family in families for sample in family.samples if sample.name == name)

    async def idle(self) -> bool:
        """Whether it has nothing to do, as far as it knows."""
        try:
            return bool((await get_json(self.port, "/reads/idle"))["idle"])
        except (OSError, TimeoutError):
            return False


class Processes:
    """The service processes of one test."""

    def __init__(self, mesh: Mesh) -> None:
        self._mesh = mesh
        self._folder = Path(tempfile.mkdtemp(prefix="steward-processes-"))
        self._ports: set[int] = set()
        self.served: list[Served] = []

    async def start(self, room: str, settings: Mapping[str, str] | None = None) -> Served:
        """Starts a room and returns when it is ready. `settings` are added to the world's."""
        served = self.make(room, settings)
        await served.start()
        return served

    def make(self, room: str, settings: Mapping[str, str] | None = None) -> Served:
        """A room that is not started yet."""
        port = free_port(self._ports)
        ports = {f"STEWARD_{room.upper()}_PORT": str(port), f"STEWARD_{room.upper()}_PUBLIC_PORT": "0"}
        told = {**self._mesh.env, **ports, **(settings or {})}
        served = Served(
            room,
            port=port,
            log=self._folder / f"{room}-{len(self.served)}.log",
            environment=room_environment(room, ROOMS, told, os.environ),
            die_with_parent=True,
        )
        self.served.append(served)
        return served

    async def idle(self, *served: Served, within: float = 60.0) -> None:
        """Waits until the given processes were idle twice in a row: work moves between rooms."""
        quiet = 0

        async def all_idle() -> bool:
            nonlocal quiet
            quiet = quiet + 1 if all([await one.idle() for one in served]) else 0
            return quiet >= 2

        await self._mesh.until(all_idle, within, "idle")

    async def owns_all(self, served: Served, topic: str, *, within: float) -> None:
        """Waits until every partition of `topic` that anybody claimed belongs to `served`."""
        await self._mesh.until(lambda: self._owned_by(served, topic), within, f"{served.name} owns all")

    async def _owned_by(self, served: Served, topic: str) -> bool:
        rows = await self._mesh.fetch(served.name, "SELECT DISTINCT owner FROM mesh_cursor WHERE topic = $1", topic)
        return len(rows) == 1 and f":{served.pid}:" in rows[0]["owner"]

    async def close(self) -> None:
        """Ends what still runs. It leaves its groups: the next test would wait for it until its session is over."""
        await asyncio.gather(*(served.stop(grace=_LEAVE_SECONDS) for served in self.served))

    def show(self) -> None:
        """Prints the end of every log, for a failed test."""
        for served in self.served:
            if served.child is not None:
                print(f"--- {served.log.name}: code {served.process.returncode}", file=sys.stderr)
                print(served.process.tail(_LOG_LINES), file=sys.stderr)

    def remove(self) -> None:
        """Deletes the logs."""
        shutil.rmtree(self._folder)


@asynccontextmanager
async def processes(mesh: Mesh) -> AsyncIterator[Processes]:
    """Processes that are ended in the end, whatever happens, and whose logs are printed when the test fails."""
    made = Processes(mesh)
    try:
        yield made
    except BaseException:
        made.show()
        raise
    finally:
        await made.close()
        made.remove()


class Load:
    """Generations in small sends, for as long as the block runs; it ends with the last acknowledgement."""

    def __init__(self, gateway: Gateway, env: dict[str, str], *, records: int = 60, pause: float = 0.02) -> None:
        self._gateway, self._env = gateway, env
        self._records, self._pause = records, pause
        self._enough = asyncio.Event()
        self._task: asyncio.Task[None] | None = None

    async def __aenter__(self) -> Load:
        self._task = asyncio.create_task(self._run())
        return self

    async def __aexit__(self, *_: object) -> None:
        self._enough.set()
        assert self._task is not None
        await self._task

    async def _run(self) -> None:
        while not self._enough.is_set():
            await self._gateway.send(self._env, self._gateway.some(self._records))
            try:
                async with asyncio.timeout(self._pause):
                    await self._enough.wait()
            except TimeoutError:
                continue
