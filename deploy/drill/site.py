"""Where a drill takes place: services that can be stopped and started, what they answer, and the mails that came."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping, Sequence
from typing import Any, Protocol

from deploy.demo.mesh import Reads
from deploy.local.errors import LocalError
from deploy.local.idle import wait_idle
from deploy.local.stack import Stack
from deploy.rooms import ROOMS

_IDLE_SECONDS = 120.0


class Site(Protocol):
    """A mesh with every room, which nobody else uses."""

    @property
    def settings(self) -> Mapping[str, str]:
        """What any client is told."""

    async def start(self, rooms: Sequence[str]) -> None:
        """Starts rooms; returns when each of them takes work."""

    async def stop(self, rooms: Sequence[str]) -> None:
        """Ends rooms as SIGTERM does."""

    async def idle(self) -> None:
        """Returns when nothing is on its way."""

    async def ask(self, room: str, name: str, **query: str) -> Any:
        """The answer of a read."""

    def mails(self) -> Sequence[bytes]:
        """The mails that the sink has, oldest first."""


class StackSite:
    """A throw-away stack of processes. It is stopped by whoever made it."""

    def __init__(self, stack: Stack) -> None:
        self._stack = stack

    @property
    def settings(self) -> Mapping[str, str]:
        """Those of the stack, once its servers have started."""
        return self._stack.settings

    async def start(self, rooms: Sequence[str]) -> None:
        """Raises LocalError for a service that does not become ready."""
        await self._stack.start_rooms(rooms)

    async def stop(self, rooms: Sequence[str]) -> None:
        """With the grace that a service has."""
        await asyncio.gather(*(self._stack.rooms[room].stop() for room in rooms))

    async def idle(self) -> None:
        """Raises LocalError when there is still work after two minutes."""
        outcome = await wait_idle(self.settings, _IDLE_SECONDS, ROOMS)
        if not outcome.idle:
            raise LocalError(outcome.text())

    async def ask(self, room: str, name: str, **query: str) -> Any:
        """Raises OSError when there is no answer."""
        return await Reads(self.settings)(room, name, **query)

    def mails(self) -> Sequence[bytes]:
        """Those of the stack's own sink."""
        assert self._stack.mail is not None
        return [path.read_bytes() for path in self._stack.mail.mails()]
