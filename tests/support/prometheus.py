"""A real Prometheus beside a test, that scrapes its processes every second as the cluster's does."""

from __future__ import annotations

import asyncio
import json
import shutil
import tempfile
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any
from urllib.parse import quote

from deploy.local.ports import free_port
from deploy.local.probe import get, get_json
from deploy.local.process import Child
from deploy.local.prometheus_binaries import find_prometheus


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

    async def ready(self) -> bool:
        """Whether it answers."""
        try:
            return (await get(self._port, "/-/ready"))[0] == 200
        except (OSError, TimeoutError):
            return False


@asynccontextmanager
async def prometheus(jobs: Mapping[str, int], rules: Path) -> AsyncIterator[Prometheus]:
    """Starts one that scrapes each job's port and evaluates the file `rules` each second."""
    folder = Path(tempfile.mkdtemp(prefix="steward-prometheus-"))
    config = folder / "prometheus.yaml"
    targets = [
        {
            "job_name": f"steward/{name}",
            "static_configs": [
                {"targets": [f"127.0.0.1:{port}"], "labels": {"namespace": "steward", "pod": f"{name}-0"}}
            ],
        }
        for name, port in jobs.items()
    ]
    every = {"scrape_interval": "1s", "evaluation_interval": "1s"}
    config.write_text(json.dumps({"global": every, "rule_files": [str(rules)], "scrape_configs": targets}))
    port = free_port()
    program = str((await asyncio.to_thread(find_prometheus)).prometheus)
    command = [
        program, f"--config.file={config}", f"--storage.tsdb.path={folder / 'data'}", f"--web.listen-address=127.0.0.1:{port}",
        "--log.level=warn",
    ]  # fmt: skip
    child = Child.start("prometheus", command, log=folder / "log")
    made = Prometheus(port)
    try:
        async with asyncio.timeout(30):
            while not await made.ready():
                if child.returncode is not None:
                    raise AssertionError(f"Prometheus ended: {child.tail()}")
                await asyncio.sleep(0.1)  # lint: allow sleep-in-test -- its readiness is no event
        yield made
    finally:
        await child.stop()
        shutil.rmtree(folder)
