"""Ports on 127.0.0.1."""

from __future__ import annotations

import asyncio
import contextlib
import fcntl
import os
import secrets
import socket
from functools import cache

from deploy.local.cache import cache_folder

HOST = "127.0.0.1"

# Below the range from which the kernel takes ports for outgoing connections (32768 up on Linux, 49152 up
# elsewhere): a server that is stopped and started again must find its port free.
_FIRST, _LAST = 20_000, 32_000
_given: set[int] = set()


def is_free(port: int) -> bool:
    """Whether a server could listen on the port now."""
    with socket.socket(socket.AF_INET, socket.SOCK_STREAM) as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((HOST, port))
        except OSError:
            return False
    return True


@cache
def _claims() -> int:
    """The file whose bytes are the ports. Opened once: to close it anywhere in a process ends all of its locks."""
    return os.open(cache_folder() / "ports.lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)


def free_port(taken: set[int] | None = None) -> int:
    """A port nobody listens on, not in `taken` (it is added there), that no other call gets while this process lives.

    Not even a call in another process: a server takes seconds from its port being chosen to its listening there. What says
    so is a lock of one byte, which ends with the process, however that ends.
    """
    taken = set() if taken is None else taken
    for _ in range(1_000):
        port = _FIRST + secrets.randbelow(_LAST - _FIRST)
        if port in taken or port in _given or not is_free(port):
            continue
        with contextlib.suppress(BlockingIOError):  # another process was given it
            fcntl.lockf(_claims(), fcntl.LOCK_EX | fcntl.LOCK_NB, 1, port)
            _given.add(port)
            taken.add(port)
            return port
    raise OSError(f"no free port between {_FIRST} and {_LAST}")


async def answers(port: int, timeout: float = 1.0) -> bool:
    """Whether something accepts connections on the port within `timeout` seconds."""
    try:
        async with asyncio.timeout(timeout):
            _, writer = await asyncio.open_connection(HOST, port)
    except (OSError, TimeoutError):
        return False
    writer.close()
    with contextlib.suppress(OSError):  # it was open: how it closes is not asked here
        await writer.wait_closed()
    return True
