"""A service's HTTP port: /metrics, /livez, /readyz and its reads; and on a port of their own, which may be shown to the world,
files for whoever has their token. State changes have no place here."""

from __future__ import annotations

import logging
import re
from collections.abc import Awaitable, Callable, Collection, Mapping
from contextlib import aclosing
from datetime import UTC, date, datetime
from decimal import Decimal
from typing import Any, TypeVar

import msgspec
from aiohttp import web
from prometheus_client.exposition import CONTENT_TYPE_LATEST, generate_latest

from shared.mesh import metrics
from shared.mesh.errors import where
from shared.mesh.service import Served

log = logging.getLogger("steward.mesh")


class NotFound(Exception):
    """A read that has no answer: 404, with the text."""


class NotAllowed(Exception):
    """A read that needs another role or a better reason: 403, with what is missing."""


class NotKept(Exception):
    """A read whose answer is not kept, by a promise: 410, with the reason."""


def encode(value: Any) -> bytes:
    """JSON for people and programs: instants with a Z, money and numerics as plain decimal strings."""
    return _ENCODER.encode(_plain(value))


_ENCODER = msgspec.json.Encoder(enc_hook=str)


def _plain(value: Any) -> Any:
    # Before the encoder: it writes decimals by itself, and in E notation.
    if isinstance(value, Mapping):
        return {str(key): _plain(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [_plain(item) for item in value]
    if isinstance(value, datetime):
        return value.astimezone(UTC).isoformat().replace("+00:00", "Z")
    if isinstance(value, date):
        return value.isoformat()
    if isinstance(value, Decimal):
        return format(value, "f")
    return value


Answer = Callable[[str, Mapping[str, str], str, str, str], Awaitable[Any]]
Serve = Callable[[str, str], Awaitable[Served]]
# One range; what asks for several gets the whole.
_RANGE = re.compile(r"bytes=([0-9]{0,18})-([0-9]{0,18})")
_TOKEN = re.compile(r"[A-Za-z0-9_-]{1,200}")
_FILE_NAME = re.compile(r"[A-Za-z0-9_-][A-Za-z0-9._-]{0,99}")


class Port:
    """Serves one process's ports until closed. `public_port` is that of the files (0: any that is free)."""

    def __init__(
        self,
        host: str,
        port: int,
        *,
        alive: Callable[[], list[str]],
        ready: Callable[[], list[str]],
        observe: Callable[[], Awaitable[None]],
        answer: Answer,
        serve: Serve,
        files: Collection[str] = (),
        public_port: int = 0,
    ) -> None:
        self._host, self._port = host, port
        self._alive, self._ready, self._observe, self._answer = alive, ready, observe, answer
        self._serve, self._files = serve, files
        self.public_port = public_port
        self._runner: web.AppRunner | None = None
        self._public: web.AppRunner | None = None

    async def open(self) -> None:
        """Listens."""
        app = web.Application()
        app.add_routes(
            [
                web.get("/livez", self._livez),
                web.get("/readyz", self._readyz),
                web.get("/metrics", self._metrics),
                web.get("/reads/{name}", self._read),
            ]
        )
        self._runner = await self._listen(app, self._port)
        if self._files:
            # Apart: whoever can reach a link is not to reach the reads.
            files = web.Application()
            files.add_routes([web.get(f"/{name}/{{token}}", self._file_of(name)) for name in self._files])
            self._public = await self._listen(files, self.public_port)
            self.public_port = self._public.addresses[0][1]

    async def _listen(self, app: web.Application, port: int) -> web.AppRunner:
        runner = web.AppRunner(app, access_log=None)
        await runner.setup()
        try:
            await web.TCPSite(runner, self._host, port).start()
        except OSError:
            await runner.cleanup()
            raise
        return runner

    async def close(self) -> None:
        """Stops listening."""
        for runner in (self._public, self._runner):
            if runner is not None:
                await runner.cleanup()

    async def _livez(self, _: web.Request) -> web.Response:
        troubles = self._alive()
        if troubles:  # whoever restarts this process for it does not read the answer
            log.error("this process should be restarted: %s", "; ".join(troubles))
        return _verdict(troubles)

    async def _readyz(self, _: web.Request) -> web.Response:
        return _verdict(self._ready())

    async def _metrics(self, _: web.Request) -> web.Response:
        await self._observe()
        return web.Response(body=generate_latest(metrics.REGISTRY), headers={"Content-Type": CONTENT_TYPE_LATEST})

    async def _read(self, request: web.Request) -> web.Response:
        name = request.match_info["name"]
        headers = request.headers
        try:
            found = await self._answer(
                name,
                dict(request.query),
                headers.get("x-steward-actor", "unknown")[:100],
                headers.get("x-steward-role", "operator")[:100],
                headers.get("x-steward-reason", "")[:300],
            )
        except KeyError:
            return _json({"error": "this service has no such read"}, 404)
        except NotAllowed as error:
            return _json({"error": str(error)}, 403)
        except NotFound as error:
            return _json({"error": str(error)}, 404)
        except NotKept as error:
            return _json({"error": str(error)}, 410)
        except ValueError as error:
            return _json({"error": str(error)}, 400)
        except Exception as error:
            log.error("read %s failed: %s", name, where(error))
            return _json({"error": "the read failed; the service's log says why"}, 500)
        return _json(found, 200)

    def _file_of(self, name: str) -> Callable[[web.Request], Awaitable[web.StreamResponse]]:
        async def answer(request: web.Request) -> web.StreamResponse:
            return await self._file(name, request)

        return answer

    async def _file(self, name: str, request: web.Request) -> web.StreamResponse:
        """Streams a file, from the place where an earlier download broke off if that is asked for."""
        try:
            if _TOKEN.fullmatch(request.match_info["token"]) is None:
                raise NotFound("there is no such file")
            served = await self._serve(name, request.match_info["token"])
            if _FILE_NAME.fullmatch(served.name) is None:
                raise ValueError("a file's name has a character that it must not have")
        except NotFound as error:
            return _safe(_json({"error": str(error)}, 404))
        except NotKept as error:
            return _safe(_json({"error": str(error)}, 410))
        except Exception as error:
            # The path is left out: whoever reads the log must not get the file.
            log.error("a file of %s could not be given: %s", name, where(error))
            return _safe(_json({"error": "the file cannot be given now: try again later"}, 503))
        asked = None if "If-Range" in request.headers else request.headers.get("Range")
        span = _span(asked, served.size)
        if span is None:
            refused = _safe(web.Response(status=416))
            refused.headers["Content-Range"] = f"bytes */{served.size}"
            return refused
        start, end = span
        whole = (start, end) == (0, served.size)
        response = _safe(web.StreamResponse(status=200 if whole else 206))
        response.content_type, response.content_length = "application/octet-stream", end - start
        response.headers["Accept-Ranges"] = "bytes"
        response.headers["Content-Disposition"] = f'attachment; filename="{served.name}"'
        if not whole:
            response.headers["Content-Range"] = f"bytes {start}-{end - 1}/{served.size}"
        await response.prepare(request)
        if request.method == "HEAD":
            return response
        left = end - start
        try:
            async with aclosing(served.read(start)) as pieces:
                async for piece in pieces:
                    await response.write(piece[:left])
                    left -= len(piece)
                    if left <= 0:
                        break
            if left > 0:
                raise EOFError("the file is shorter than was said")
        except ConnectionError:
            # Whoever fetches went away, and can go on where they were.
            return response
        except Exception as error:
            # Too late for a status: only a connection that breaks says that this is not all.
            log.error("a file of %s broke off: %s", name, where(error))
            if request.transport is not None:
                request.transport.abort()
            return response
        await response.write_eof()
        return response


def _span(asked: str | None, size: int) -> tuple[int, int] | None:
    """(first byte, the one after the last) of a request for a file; None when the file has none of that range."""
    match = None if asked is None else _RANGE.fullmatch(asked.strip())
    if match is None or match[0] == "bytes=-":
        return 0, size
    if not match[1]:
        wanted = min(int(match[2]), size)
        return (size - wanted, size) if wanted else None
    start = int(match[1])
    end = min(int(match[2]) + 1, size) if match[2] else size
    return (start, end) if start < end else None


_Response = TypeVar("_Response", bound=web.StreamResponse)


def _safe(response: _Response) -> _Response:
    """Kept by no cache, taken by no browser for something else, and its address told to nobody."""
    response.headers["Cache-Control"] = "no-store"
    response.headers["X-Content-Type-Options"] = "nosniff"
    response.headers["Referrer-Policy"] = "no-referrer"
    return response


def _json(value: Any, status: int) -> web.Response:
    return web.Response(body=encode(value), status=status, content_type="application/json")


def _verdict(troubles: list[str]) -> web.Response:
    return _json({"ok": not troubles, "why": troubles}, 503 if troubles else 200)
