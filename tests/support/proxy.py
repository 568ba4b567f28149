"""A TCP proxy that can lose a reply: for what happens between a request and its answer."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from urllib.parse import urlsplit, urlunsplit


class Proxy:
    """Stands between clients and `host:port`. `lose_after(match)`: once, when a request matches, the server gets it and
    answers, and the client's connection is cut before the answer reaches it."""

    def __init__(self, host: str, port: int) -> None:
        self._target = (host, port)
        self._server: asyncio.Server | None = None
        self._match: Callable[[bytes], bool] | None = None
        self._pipes: set[asyncio.Task[None]] = set()
        self.lost = asyncio.Event()

    async def open(self, port: int = 0) -> int:
        """Listens, on a free port if none is named; returns the port."""
        self._server = await asyncio.start_server(self._serve, "127.0.0.1", port)
        return int(self._server.sockets[0].getsockname()[1])

    def lose_after(self, match: Callable[[bytes], bool]) -> None:
        """Arms the proxy for one loss."""
        self.lost.clear()
        self._match = match

    async def close(self) -> None:
        """Cuts everything."""
        if self._server is not None:
            self._server.close()
        for pipe in list(self._pipes):
            pipe.cancel()
        await asyncio.gather(*self._pipes, return_exceptions=True)

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        up_reader, up_writer = await asyncio.open_connection(*self._target)
        cut = asyncio.Event()
        tasks = [
            asyncio.ensure_future(self._requests(reader, up_writer, cut)),
            asyncio.ensure_future(self._answers(up_reader, writer, cut)),
        ]
        self._pipes.update(tasks)
        try:
            await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
        finally:
            for task in tasks:
                task.cancel()
                self._pipes.discard(task)
            writer.close()
            up_writer.close()

    async def _requests(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, cut: asyncio.Event) -> None:
        while data := await reader.read(65536):
            if self._match is not None and self._match(data):
                self._match = None
                cut.set()
            writer.write(data)
            await writer.drain()

    async def _answers(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, cut: asyncio.Event) -> None:
        while data := await reader.read(65536):
            if cut.is_set():
                # The server has done it and said so; nobody hears it.
                self.lost.set()
                return
            writer.write(data)
            await writer.drain()


def through(url: str, port: int) -> str:
    """The database `url`, by way of a proxy on `port`."""
    parts = urlsplit(url)
    login = parts.netloc.rsplit("@", 1)[0]
    return urlunsplit(parts._replace(netloc=f"{login}@127.0.0.1:{port}"))
