"""A TCP proxy that can stop: connections stay open and nothing passes, as behind a firewall that forgot them."""

from __future__ import annotations

import asyncio
import contextlib
import re
import struct
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Self

# A Parse message of PostgreSQL's protocol: type, length, the name that asyncpg gives the statement, its text.
_PARSE = re.compile(rb"P.{4}(__asyncpg_stmt_\w+__)\0([^\0]+)", re.DOTALL)


@dataclass(slots=True)
class Link:
    """One connection through the proxy. `prepared`: the client's prepared statements by name."""

    server: asyncio.StreamWriter
    flows: asyncio.Event
    ways: list[asyncio.Task[None]] = field(default_factory=list)
    prepared: dict[bytes, bytes] = field(default_factory=dict)
    fenced: bool = False

    def learn(self, data: bytes) -> None:
        """Notes the statements that the client's `data` prepares."""
        self.prepared |= dict(_PARSE.findall(data))

    def runs(self, data: bytes, text: bytes) -> bool:
        """Whether the client's `data` runs (or prepares) a statement that contains `text`."""
        return any(name + b"\0" in data and text in statement for name, statement in self.prepared.items())


# Sees what a client sends on one connection before the server does.
Match = Callable[[Link, bytes], bool]


def at_the_fence(link: Link, data: bytes) -> bool:
    """The first statement of a batch's transaction: nothing of the batch is in the database yet."""
    return link.runs(data, b"UPDATE mesh_cursor c SET next_offset")


def at_the_commit(link: Link, data: bytes) -> bool:
    """The COMMIT of a batch: all its effects are in the database, and none of them counts yet."""
    link.fenced |= at_the_fence(link, data)
    if b"COMMIT" not in data and b"ROLLBACK" not in data:
        return False
    fenced, link.fenced = link.fenced, False
    return fenced and b"COMMIT" in data


class HalfOpen:
    """Stands between clients and `host:port`.

    `hold` stops it in both directions, not even an end of a connection passes; then `release` lets everything pass
    again, `cut` breaks the connections, and `forget` leaves the clients without an answer for good. `kafka`: the
    broker's own address in its answers is replaced by the proxy's, or clients would go round it.
    """

    def __init__(self, host: str, port: int, *, kafka: bool = False) -> None:
        self._target = (host, port)
        self._kafka = kafka
        self._server: asyncio.Server | None = None
        self._match: Match | None = None
        self._flows = asyncio.Event()
        self._flows.set()
        self._links: dict[asyncio.Task[None], Link] = {}
        self.held = asyncio.Event()
        self.port = 0

    async def __aenter__(self) -> Self:
        """Listens on `port`."""
        self._server = await asyncio.start_server(self._serve, "127.0.0.1", 0)
        self.port = int(self._server.sockets[0].getsockname()[1])
        return self

    async def __aexit__(self, *_: object) -> None:
        """Breaks everything off and ends."""
        if self._server is not None:
            self._server.close()
        self.cut()
        await asyncio.gather(*self._links, return_exceptions=True)

    def hold(self) -> None:
        """From here on nothing passes."""
        self._match = None
        self._flows.clear()
        self.held.set()

    def hold_at(self, match: Match) -> None:
        """Holds once a client sends what `match` waits for, before the server gets it; `held` tells."""
        self.held.clear()
        self._match = match

    def release(self) -> None:
        """Everything passes again, what was held first."""
        self._match = None
        self.held.clear()
        self._flows.set()

    def forget(self) -> None:
        """The server has found out that today's connections are dead, the clients never hear of it; new ones work."""
        self.hold()
        for link in self._links.values():
            link.server.transport.abort()
        self._flows = asyncio.Event()
        self.release()

    def cut(self) -> None:
        """Breaks every connection; what was held is lost. New ones work."""
        for link in self._links.values():
            for way in link.ways:
                way.cancel()
        self.release()

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            up_reader, up_writer = await asyncio.open_connection(*self._target)
        except OSError:
            writer.transport.abort()
            return
        link = Link(up_writer, self._flows)
        link.ways = [
            asyncio.create_task(self._pass(reader, up_writer, link, requests=True)),
            asyncio.create_task(self._pass(up_reader, writer, link, requests=False)),
        ]
        mine = asyncio.current_task()
        assert mine is not None
        self._links[mine] = link
        try:
            await asyncio.wait(link.ways, return_when=asyncio.FIRST_COMPLETED)
        finally:
            for way in link.ways:
                way.cancel()
            await asyncio.gather(*link.ways, return_exceptions=True)
            writer.transport.abort()
            up_writer.transport.abort()
            del self._links[mine]

    async def _pass(
        self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, link: Link, *, requests: bool
    ) -> None:
        """One direction of a connection."""
        # One side breaking it off is no error: so does the proxy with the other.
        with contextlib.suppress(OSError):
            while data := await reader.read(256 * 1024):
                if requests:
                    link.learn(data)
                    if self._match is not None and self._match(link, data):
                        self.hold()
                elif self._kafka:
                    data = data.replace(self._address(self._target[1]), self._address(self.port))
                await link.flows.wait()
                writer.write(data)
                await writer.drain()
        await link.flows.wait()

    def _address(self, port: int) -> bytes:
        """Host and port as Kafka's protocol has them in its answers."""
        return self._target[0].encode() + struct.pack(">i", port)
