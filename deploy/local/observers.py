"""What `steward up --observe` runs beside the stack: a Prometheus, and a receiver of spans. Both listen on loopback alone."""

from __future__ import annotations

import asyncio
import json
import sys
from collections.abc import Awaitable, Callable, Mapping, Sequence
from pathlib import Path

from deploy.local.env import write_private
from deploy.local.listener import Listener
from deploy.local.ports import HOST
from deploy.local.probe import get
from deploy.local.prometheus_binaries import find_prometheus

_RETENTION = ("--storage.tsdb.retention.time=2d", "--storage.tsdb.retention.size=512MB")


class TracesSink(Listener):
    """Keeps spans as lines of JSON in `folder`."""

    name = "traces"
    what = "the receiver of traces"

    def command(self) -> Sequence[str]:
        """Ours, as a process."""
        return [sys.executable, "-m", "deploy.local.traces_sink", str(self.folder), str(self.port)]

    def environment(self) -> dict[str, str]:
        """What a service is told so that its spans come here, soon."""
        return {"OTEL_EXPORTER_OTLP_ENDPOINT": self.url, "OTEL_BSP_SCHEDULE_DELAY": "500"}


class Prometheus(Listener):
    """Scrapes the rooms of a stack under the labels that their series have in the cluster, and evaluates `rules`.

    `ports`: of each room; set before the start. `rules`: a rule file's text, empty for none. `seconds`: how often.
    """

    name = "prometheus"
    what = "Prometheus"

    def __init__(
        self, folder: Path, *, log: Path, rules: str = "", seconds: int = 5, die_with_parent: bool = False
    ) -> None:
        super().__init__(folder, log=log, die_with_parent=die_with_parent)
        self.ports: Mapping[str, int] = {}
        self._rules, self._seconds = rules, seconds
        self._program: Path | None = None

    async def start(self, timeout: float = 30.0) -> None:
        """As every part; the first start on a machine without Prometheus fetches it."""
        if self._program is None:
            self._program = (await asyncio.to_thread(find_prometheus)).prometheus
        await super().start(timeout)

    def command(self) -> Sequence[str]:
        """The program, with its files written."""
        config, rules = self.folder / "prometheus.yaml", self.folder / "rules.yaml"
        write_private(rules, self._rules or "groups: []\n")
        write_private(config, json.dumps(configuration(self.ports, rules, self._seconds)))
        return [
            str(self._program),
            f"--config.file={config}",
            f"--storage.tsdb.path={self.folder / 'data'}",
            f"--web.listen-address={HOST}:{self.port}",
            "--log.level=warn",
            *_RETENTION,
        ]

    @property
    def answers(self) -> Callable[[int], Awaitable[bool]]:
        """By its own word."""
        return ready


async def ready(port: int) -> bool:
    """Whether the Prometheus at `port` says that it is."""
    try:
        return (await get(port, "/-/ready"))[0] == 200
    except (OSError, TimeoutError):
        return False


def configuration(ports: Mapping[str, int], rules: Path, seconds: int) -> dict[str, object]:
    """Prometheus's settings: JSON is YAML."""
    every = f"{seconds}s"
    return {
        "global": {"scrape_interval": every, "evaluation_interval": every},
        "rule_files": [str(rules)],
        "scrape_configs": [
            {
                "job_name": f"steward/{room}",
                "static_configs": [
                    {"targets": [f"{HOST}:{port}"], "labels": {"namespace": "steward", "pod": f"{room}-0"}}
                ],
            }
            for room, port in ports.items()
        ],
    }
