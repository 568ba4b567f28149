"""A real Prometheus beside a test, that scrapes its processes every second as the cluster's does."""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any
from urllib.parse import quote

from deploy.local import observers
from deploy.local.probe import get_json


class Prometheus:
    """The running server."""

    def __init__(self, port: int) -> None:
        self._port = port

    async def query(self, expr: str) -> list[dict[str, Any]]:
        """The instant vector that `expr` is now."""
        answer = await get_json(self._port, f"/api/v1/query?query={quote(expr)}")
        found: list[dict[str, Any]] = answer["data"]["result"]
        return found

    async def rules(self) -> list[dict[str, Any]]:
        """Every rule, with its health, and of alerts what they say."""
        answer = await get_json(self._port, "/api/v1/rules")
        return [rule for group in answer["data"]["groups"] for rule in group["rules"]]


@asynccontextmanager
async def prometheus(jobs: Mapping[str, int], rules: str) -> AsyncIterator[Prometheus]:
    """Starts one that scrapes each job's port and evaluates `rules` (a rule file's text) each second."""
    folder = Path(tempfile.mkdtemp(prefix="steward-prometheus-"))
    server = observers.Prometheus(folder, log=folder / "log", rules=rules, seconds=1)
    server.ports = jobs
    try:
        await server.start()
        yield Prometheus(server.port)
    finally:
        await server.stop()
        shutil.rmtree(folder)
