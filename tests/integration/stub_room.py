"""Stands in for `python -m deploy.serve NAME` where only the stack is tested: ready at once, always idle."""

from __future__ import annotations

import json
import os
import signal
import sys
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from types import FrameType


class Answers(BaseHTTPRequestHandler):
    """/readyz, /reads/idle, and /environment: the names of the settings that this process was given."""

    def do_GET(self) -> None:
        answers = {
            "/readyz": {"ok": True},
            "/reads/idle": {"idle": True, "lag": {}, "outbox": 0, "tasks": 0},
            "/environment": sorted(name for name in os.environ if name.startswith(("STEWARD_", "OTEL_"))),
        }
        body = json.dumps(answers.get(self.path)).encode()
        self.send_response(200 if self.path in answers else 404)
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, format: str, *args: object) -> None:
        """Says nothing."""


def leave(number: int, frame: FrameType | None) -> None:
    """A drained service ends with 0."""
    print("drained", flush=True)
    sys.exit(0)


if __name__ == "__main__":
    signal.signal(signal.SIGTERM, leave)
    port = int(os.environ[f"STEWARD_{sys.argv[1].upper()}_PORT"])
    ThreadingHTTPServer(("127.0.0.1", port), Answers).serve_forever()
