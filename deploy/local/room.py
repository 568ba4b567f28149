"""One service as a process: `python -m deploy.serve NAME`, with its own settings and nobody else's."""

from __future__ import annotations

import asyncio
import signal
import sys
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

from deploy.local.errors import LocalError
from deploy.local.ports import HOST
from deploy.local.probe import is_ready
from deploy.local.process import Child
from deploy.local.served import Served

SERVE: tuple[str, ...] = (sys.executable, "-m", "deploy.serve")
# A service finishes the batch in hand and empties its outbox; after this (seconds) it is killed, and nothing
# is lost.
DRAIN_SECONDS = 40.0
_POLL_SECONDS = 0.05


class Room(Served):
    """A service process. Its parts: the room's name, its HTTP port, its log, its environment."""

    def __init__(
        self,
        name: str,
        *,
        port: int,
        log: Path,
        environment: Mapping[str, str],
        serve: Sequence[str] = SERVE,
        die_with_parent: bool = False,
    ) -> None:
        super().__init__()
        self.name = name
        self.port = port
        self.log = log
        self._environment = dict(environment)
        self._serve = tuple(serve)
        self._die_with_parent = die_with_parent

    @property
    def url(self) -> str:
        """Its HTTP port, for people."""
        return f"http://{HOST}:{self.port}"

    async def start(self, timeout: float = 90.0) -> None:
        """Starts it and waits until /readyz answers 200. Raises LocalError when it ends, or takes too long."""
        if not self.running:
            self.spawn()
        child = self._child
        assert child is not None
        try:
            async with asyncio.timeout(timeout):
                while not await is_ready(self.port):
                    if child.returncode is not None:
                        ended = f"{self.name} ended while starting (code {child.returncode})"
                        raise LocalError(f"{ended}, {self.log}:\n{child.tail()}")
                    await asyncio.sleep(_POLL_SECONDS)
        except TimeoutError:
            raise LocalError(f"{self.name} was not ready within {timeout:.0f} s: see {self.log}") from None

    def spawn(self) -> None:
        """Starts it without waiting."""
        self.stopping = False
        self._child = Child.start(
            self.name,
            [*self._serve, self.name],
            log=self.log,
            env=self._environment,
            die_with_parent=signal.SIGKILL if self._die_with_parent else None,
        )

    async def stop(self, grace: float = DRAIN_SECONDS) -> None:
        """SIGTERM; SIGKILL after `grace` seconds."""
        self.stopping = True
        if self._child is not None:
            self._child.send(signal.SIGCONT)
            await self._child.stop(signal.SIGTERM, grace)


def room_environment(
    name: str, rooms: Iterable[str], settings: Mapping[str, str], environ: Mapping[str, str]
) -> dict[str, str]:
    """What the process of room `name` is told: the caller's environment, Kafka, and its own databases.

    Left out are the administrator's URL and the other rooms' databases. Only audit reads with the auditor's
    login; of the keys it sees those of cases, and needs the master key to use them. Only notifications is told of the
    mail server, and only retention signs certificates.
    """
    foreign = [f"STEWARD_{other.upper()}_" for other in rooms if other != name]
    foreign += ["STEWARD_POSTGRES_", "STEWARD_KEYS_" if name == "audit" else "STEWARD_AUDITOR_"]
    foreign += ["STEWARD_SMTP_", "STEWARD_MAIL_"] if name != "notifications" else []
    foreign += ["STEWARD_SIGNING_"] if name != "retention" else []
    # How to reach a server is said by the stack alone: what the caller's shell says may be of another one.
    servers = ("STEWARD_KAFKA_", "STEWARD_POSTGRES_", "STEWARD_SMTP_")
    told = {key: value for key, value in environ.items() if not key.startswith(servers)} | dict(settings)
    return {key: value for key, value in told.items() if not key.startswith(tuple(foreign))}
