"""A small server beside the stack, as a part of it: one process, one port on loopback, one folder that remembers the port."""

from __future__ import annotations

import asyncio
import json
import signal
from abc import ABC, abstractmethod
from collections.abc import Awaitable, Callable, Sequence
from pathlib import Path

from deploy.local.env import write_private
from deploy.local.errors import LocalError
from deploy.local.ports import HOST, answers, free_port, is_free
from deploy.local.process import Child
from deploy.local.served import Served

NOTE = "server.json"
_STOP_SECONDS = 5.0
_POLL_SECONDS = 0.03


class Listener(Served, ABC):
    """A server with its data in `folder`, which also keeps its port for later objects on it.

    `what` names it in sentences. A subclass says how it is started (`command`) and reached (`url`), and by what it is seen
    to be ready (`answers`; a connection is enough, if it says nothing else).
    """

    name: str
    what: str

    def __init__(self, folder: Path, *, log: Path, port: int | None = None, die_with_parent: bool = False) -> None:
        super().__init__()
        self.folder = folder
        self.log = log
        self._port = port
        self._die_with_parent = die_with_parent

    @abstractmethod
    def command(self) -> Sequence[str]:
        """The program and its arguments; folder and port are there by then."""

    @property
    def answers(self) -> Callable[[int], Awaitable[bool]]:
        """Whether the server at a port is ready."""
        return answers

    @property
    def port(self) -> int:
        """Its port; known once started."""
        if not self._port:
            raise LocalError(f"{self.what} has not been started: it has no port yet")
        return self._port

    @property
    def url(self) -> str:
        """Where it is, as a client is told."""
        return f"http://{HOST}:{self.port}"

    async def start(self, timeout: float = 30.0) -> None:
        """Starts it and waits until it answers. Raises LocalError with the end of its log."""
        if self.running:
            return
        self.stopping = False
        self._choose_port()
        self._child = Child.start(
            self.name,
            list(self.command()),
            log=self.log,
            die_with_parent=signal.SIGKILL if self._die_with_parent else None,
        )
        try:
            async with asyncio.timeout(timeout):
                while not await self.answers(self.port):
                    if self._child.returncode is not None:
                        ended = f"{self.what} ended while starting (code {self._child.returncode})"
                        raise LocalError(f"{ended}, {self.log}:\n{self._child.tail()}")
                    await asyncio.sleep(_POLL_SECONDS)
        except BaseException as error:
            await self._child.stop(signal.SIGKILL)
            if isinstance(error, TimeoutError):
                raise LocalError(f"{self.what} gave no answer within {timeout:.0f} s: see {self.log}") from None
            raise

    async def stop(self, grace: float = _STOP_SECONDS) -> None:
        """A clean stop; killed after `grace` seconds."""
        self.stopping = True
        if self._child is not None:
            self._child.send(signal.SIGCONT)
            await self._child.stop(signal.SIGTERM, grace)

    def _choose_port(self) -> None:
        self.folder.mkdir(parents=True, exist_ok=True, mode=0o700)
        note = self.folder / NOTE
        known = json.loads(note.read_text(encoding="utf-8")) if note.exists() else {}
        port = self._port or known.get("port")
        self._port = port if port and is_free(port) else free_port()
        write_private(note, json.dumps({"port": self._port}))
