"""The smallest HTTP client that the stack needs: GET on 127.0.0.1, no redirects, no keep-alive."""

from __future__ import annotations

import asyncio
import contextlib
import json
from typing import Any

from deploy.local.ports import HOST


async def get(port: int, path: str, timeout: float = 5.0) -> tuple[int, bytes]:
    """Status and body of `GET path`. Raises OSError (no connection, cut answer) or TimeoutError (seconds)."""
    async with asyncio.timeout(timeout):
        reader, writer = await asyncio.open_connection(HOST, port)
        try:
            writer.write(f"GET {path} HTTP/1.0\r\nHost: {HOST}:{port}\r\nConnection: close\r\n\r\n".encode())
            answer = await reader.read()
        finally:
            writer.close()
            with contextlib.suppress(OSError):  # the answer is in: how the connection ends does not matter
                await writer.wait_closed()
    head, _, body = answer.partition(b"\r\n\r\n")
    words = head.split(b" ", 2)
    if len(words) < 2 or not words[1].isdigit():
        raise ConnectionError(f"port {port} gave no HTTP answer to {path}")
    return int(words[1]), body


async def get_json(port: int, path: str, timeout: float = 5.0) -> Any:
    """The JSON body of a 200 answer. Raises OSError for any other answer, TimeoutError."""
    status, body = await get(port, path, timeout)
    if status != 200:
        said = body[:200].decode(errors="replace")
        raise ConnectionError(f"port {port} answered {status} to {path}: {said}")
    try:
        return json.loads(body)
    except ValueError as error:
        raise ConnectionError(f"port {port} gave no JSON for {path}") from error


async def is_ready(port: int, timeout: float = 3.0) -> bool:
    """Whether `/readyz` answers 200."""
    try:
        status, _ = await get(port, "/readyz", timeout)
    except (OSError, TimeoutError):
        return False
    return status == 200
