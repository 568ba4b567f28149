"""A person's hands: types commands against the services of a test, which run in its event loop."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from click.testing import CliRunner, Result

from deploy.cli import main
from deploy.local.ports import free_port
from services.billing.app import service as billing
from services.metering.app import make_service as metering
from shared.mesh.runtime import Runtime
from shared.mesh.service import Service
from tests.support.gateway import Gateway, Sent
from tests.support.world import Mesh


class Hands:
    """Types commands, in a thread of their own as in a terminal, against the services of this test."""

    def __init__(self, mesh: Mesh, gateway: Gateway, folder: Path, env: dict[str, str]) -> None:
        self.mesh, self.gateway, self.env, self._folder = mesh, gateway, env, folder

    async def start(self, room: str, service: Service) -> None:
        """Starts a room with its HTTP port."""
        port = free_port()
        runtime = Runtime(service, self.mesh.settings(room, port=port))
        self.mesh.running.append(runtime)
        await runtime.start()
        self.env[f"STEWARD_{room.upper()}_PORT"] = str(port)

    @classmethod
    async def at_work(cls, mesh: Mesh, seed: int, folder: Path) -> Hands:
        """With metering and billing running, and nothing else installed, a price and some credit."""
        servers = {name: value for name, value in mesh.env.items() if not name.endswith("_PORT")}
        env = {**servers, "STEWARD_HOME": str(folder / "home"), "STEWARD_ACTOR": "tester", "COLUMNS": "200"}
        made = cls(mesh, Gateway(seed), folder, env)
        await made.start("metering", metering())
        await made.start("billing", billing)
        await mesh.owned()
        await made.emit(made.gateway.price(), *(made.gateway.payment(f"ws-{n}", 5) for n in range(3)))
        return made

    async def restart_metering(self) -> None:
        """Stops metering and starts it again."""
        await self.mesh.stop(next(r for r in self.mesh.running if r.service.name == "metering"))
        await self.start("metering", metering())
        await self.mesh.owned()

    async def __call__(self, *arguments: str, code: int = 0) -> Result:
        """Runs a command, which must end with `code`."""
        answer = await asyncio.to_thread(CliRunner().invoke, main, list(arguments), env=self.env)
        assert answer.exit_code == code, (
            f"{arguments} ended with {answer.exit_code}: {answer.output} {answer.exception!r}"
        )
        return answer

    async def json(self, *arguments: str, code: int = 0) -> Any:
        """What a command says with --json."""
        return json.loads((await self(*arguments, "--json", code=code)).stdout)

    def file(self, records: Sequence[Sent | bytes]) -> str:
        """A file with these events, one a line."""
        path = self._folder / "events.jsonl"
        path.write_bytes(b"\n".join(r if isinstance(r, bytes) else r.value or b"" for r in records))
        return str(path)

    async def emit(self, *records: Sent | bytes, code: int = 0) -> Any:
        """Sends events with the command, and waits until they have had their effects."""
        said = await self.json("emit", self.file(records), code=code)
        await self.mesh.idle()
        return said
