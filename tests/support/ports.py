"""Servers that tests start: when they answer."""

from __future__ import annotations

import socket
import time


def answers(port: int, within: float = 10.0) -> None:
    """Returns when somebody listens on a port of this machine. Raises TimeoutError."""
    end = time.monotonic() + within
    while True:
        try:
            socket.create_connection(("127.0.0.1", port), timeout=1).close()
            return
        except OSError:
            if time.monotonic() > end:
                raise TimeoutError("nobody listens there") from None
            time.sleep(0.02)  # lint: allow sleep-in-test -- polls for what no event announces
