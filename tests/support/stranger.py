"""Starts the third party's holder as the process that it is, with a database that is provisioned like any other."""

from __future__ import annotations

import asyncio
import os
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import asyncpg

from deploy.local.databases import provision
from shared.contract import topics
from shared.mesh.admin import end_offsets
from shared.mesh.settings import KafkaSettings
from tests.support.conformance import Participant
from tests.support.platform import ROOT
from tests.support.third_party.__main__ import NAME, READS
from tests.support.world import Mesh


class Stranger:
    """The process, and what the kit has to know of it."""

    def __init__(self, mesh: Mesh, urls: dict[str, str]) -> None:
        self._mesh, self._urls = mesh, urls
        self._process: asyncio.subprocess.Process | None = None

    @property
    def participant(self) -> Participant:
        """As the kit knows it."""
        upper = NAME.upper()
        return Participant(
            NAME, self._urls[f"STEWARD_{upper}_OWNER_DATABASE_URL"], self._urls[f"STEWARD_AUDITOR_{upper}_DATABASE_URL"],
            [topics.PAYMENTS.name], self.start, self.stop, self.settled,
        )  # fmt: skip

    async def start(self) -> None:
        """Starts the process."""
        env = {
            **os.environ, "PYTHONPATH": str(ROOT),
            "SUPPORTNOTES_DATABASE_URL": self._urls[f"STEWARD_{NAME.upper()}_OWNER_DATABASE_URL"],
        }  # fmt: skip
        for name in ("KEYS_DATABASE_URL", "MASTER_KEY_FILE", "KAFKA_BOOTSTRAP_SERVERS", "BLOBS"):
            env[f"STEWARD_{name}"] = self._mesh.env[f"STEWARD_{name}"]
        self._process = await asyncio.create_subprocess_exec(
            sys.executable, "-m", "tests.support.third_party", env=env, cwd=ROOT
        )

    async def stop(self) -> None:
        """Kills it, as nobody should have to: whatever it was at is done again."""
        if self._process is not None:
            self._process.kill()
            await self._process.wait()
            self._process = None

    async def settled(self) -> None:
        """Returns when it has handled all that is in its topics, and has answered."""
        kafka = KafkaSettings.from_env(self._mesh.env)
        ends = await end_offsets(kafka, [topic.name for topic in READS])

        async def handled() -> bool:
            assert self._process is not None and self._process.returncode is None, "the third party's holder ended"
            db = await asyncpg.connect(self._urls[f"STEWARD_{NAME.upper()}_OWNER_DATABASE_URL"])
            try:
                if await db.fetchval("SELECT to_regclass('mesh_data_map') IS NULL"):
                    return False
                found = await db.fetch("SELECT topic, part, next_offset FROM place")
                places = {(row["topic"], row["part"]): row["next_offset"] for row in found}
                unsent = await db.fetchval("SELECT count(*) FROM answer WHERE NOT sent")
            finally:
                await db.close()
            return not unsent and all(
                places.get((tp.topic, tp.partition), 0) >= end for tp, (begin, end) in ends.items() if end > begin
            )

        await self._mesh.until(handled, 30, "the third party's holder has handled everything")


@asynccontextmanager
async def stranger(mesh: Mesh) -> AsyncIterator[Stranger]:
    """The third party's holder, with an empty database of its own."""
    async with mesh.world.admin() as admin:
        await admin.execute(f"DROP DATABASE IF EXISTS steward_{NAME} WITH (FORCE)")
    urls = await provision(mesh.env["STEWARD_POSTGRES_URL"], [NAME], mesh.env, take_over=True)
    made = Stranger(mesh, urls)
    try:
        yield made
    finally:
        await made.stop()
        async with mesh.world.admin() as admin:
            await admin.execute(f"DROP DATABASE steward_{NAME} WITH (FORCE)")
