"""A service's HTTP port: /metrics, /livez, /readyz, and its reads. State changes have no place here."""

from __future__ import annotations

import logging
from collections.abc import Awaitable, Callable, Mapping
from datetime import UTC, date, datetime
from decimal import Decimal
from typing import Any

import msgspec
from aiohttp import web
from prometheus_client.exposition import CONTENT_TYPE_LATEST, generate_latest

from shared.mesh import metrics
from shared.mesh.errors import where

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


class Port:
    """Serves one process's port until closed."""

    def __init__(
        self,
        host: str,
        port: int,
        *,
        alive: Callable[[], list[str]],
        ready: Callable[[], list[str]],
        observe: Callable[[], Awaitable[None]],
        answer: Answer,
    ) -> None:
        self._host, self._port = host, port
        self._alive, self._ready, self._observe, self._answer = alive, ready, observe, answer
        self._runner: web.AppRunner | None = None

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
        self._runner = web.AppRunner(app, access_log=None)
        await self._runner.setup()
        await web.TCPSite(self._runner, self._host, self._port).start()

    async def close(self) -> None:
        """Stops listening."""
        if self._runner is not None:
            await self._runner.cleanup()

    async def _livez(self, _: web.Request) -> web.Response:
        return _verdict(self._alive())

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


def _json(value: Any, status: int) -> web.Response:
    return web.Response(body=encode(value), status=status, content_type="application/json")


def _verdict(troubles: list[str]) -> web.Response:
    return _json({"ok": not troubles, "why": troubles}, 503 if troubles else 200)
