"""A receiver of spans that sends them nowhere: OTLP over HTTP in, a line of JSON each out, in a file with a bound.

`python -m deploy.local.traces_sink FOLDER PORT`; reading is `deploy.local.spans`.
"""

from __future__ import annotations

import asyncio
import os
import signal
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import msgspec
from aiohttp import web
from google.protobuf.message import DecodeError
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import (
    ExportTraceServiceRequest,
    ExportTraceServiceResponse,
)

from deploy.local.ports import HOST
from deploy.local.spans import BYTES_MAX, FILE, OLD, Link, Span
from shared.mesh import logs

_REQUEST_BYTES_MAX = 16 * 1024 * 1024
_PROTOBUF = "application/x-protobuf"


class Keeper:
    """Appends spans to a file in `folder`; a full one replaces the one before, so that twice `bytes_max` is the most."""

    def __init__(self, folder: Path, bytes_max: int = BYTES_MAX) -> None:
        self._file, self._old, self._bytes_max = folder / FILE, folder / OLD, bytes_max

    def keep(self, body: bytes) -> int:
        """Writes the spans of one export, and says how many. Raises DecodeError when it is none."""
        request = ExportTraceServiceRequest.FromString(body)
        lines = [msgspec.json.encode(span) + b"\n" for span in spans_of(request)]
        if self._file.exists() and self._file.stat().st_size + sum(map(len, lines)) > self._bytes_max:
            self._file.replace(self._old)
        with open(self._file, "ab", opener=_private) as file:
            file.writelines(lines)
        return len(lines)

    async def export(self, request: web.Request) -> web.Response:
        """POST /v1/traces, as OTLP/HTTP has it."""
        if request.content_type != _PROTOBUF:
            return web.Response(status=415, text=f"only {_PROTOBUF} is understood")
        try:
            self.keep(await request.read())
        except DecodeError:
            return web.Response(status=400, text="no ExportTraceServiceRequest")
        return web.Response(body=ExportTraceServiceResponse().SerializeToString(), content_type=_PROTOBUF)


def spans_of(request: Any) -> Iterator[Span]:
    """The spans of an export, flat, each with the name of its service."""
    for resource in request.resource_spans:
        service = _attributes(resource.resource.attributes).get("service.name", "?")
        for scope in resource.scope_spans:
            for span in scope.spans:
                yield Span(
                    trace_id=span.trace_id.hex(),
                    span_id=span.span_id.hex(),
                    parent_id=span.parent_span_id.hex() or None,
                    service=str(service).removeprefix("steward-"),
                    name=span.name,
                    start_ns=span.start_time_unix_nano,
                    end_ns=span.end_time_unix_nano,
                    failed=span.status.code == span.status.STATUS_CODE_ERROR,
                    attributes=_attributes(span.attributes),
                    links=[Link(link.trace_id.hex(), link.span_id.hex()) for link in span.links],
                    events=[{"name": event.name, **_attributes(event.attributes)} for event in span.events],
                )


def _attributes(pairs: Any) -> dict[str, Any]:
    return {pair.key: _value(pair.value) for pair in pairs}


def _value(value: Any) -> Any:
    kind = value.WhichOneof("value")
    if kind == "array_value":
        return [_value(one) for one in value.array_value.values]
    return str(value) if kind in ("kvlist_value", "bytes_value") else getattr(value, kind) if kind else None


def _private(path: str, flags: int) -> int:
    return os.open(path, flags, 0o600)


def application(keeper: Keeper) -> web.Application:
    """The server's one path."""
    app = web.Application(client_max_size=_REQUEST_BYTES_MAX)
    app.router.add_post("/v1/traces", keeper.export)
    return app


async def _serve(folder: Path, port: int) -> None:
    asked = asyncio.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        asyncio.get_running_loop().add_signal_handler(number, asked.set)
    runner = web.AppRunner(application(Keeper(folder)), access_log=None)
    await runner.setup()
    await web.TCPSite(runner, HOST, port).start()
    await asked.wait()
    await runner.cleanup()


if __name__ == "__main__":
    logs.setup("traces")  # also of a web server's errors, which hold what was asked for
    asyncio.run(_serve(Path(sys.argv[1]), int(sys.argv[2])))
