"""`python -m tests.bench.packer CASE`: packs metering's copy of a case as retention does, in a process with all of retention.

Prints one JSON line: seconds, rows, size of the package, peak memory in MB, CPU seconds of all of it.
"""

from __future__ import annotations

import asyncio
import json
import os
import sys
import time
from datetime import UTC, datetime

import uvloop

from services.retention import app
from shared.mesh.settings import ServiceSettings
from shared.mesh.store import open_pool
from shared.privacy.age import Opener
from shared.privacy.blobs import open_blobs
from shared.privacy.package import build, package_name
from shared.privacy.vault import MasterKeys, Vault
from tests.bench.processes import peak_memory_mb


async def main(case: str) -> None:
    """Packs, and says what it cost."""
    settings = ServiceSettings.from_env("retention", os.environ)
    assert settings.keys_database_url is not None and app.service is not None
    pool = await open_pool(settings.keys_database_url, size=2, application="steward-bench-packer")
    try:
        key = await Vault(pool, MasterKeys.from_settings(settings)).case_key(case)
    finally:
        await pool.close()
    started = time.monotonic()
    built = await build(
        open_blobs(settings.blobs), case=case, epoch=1, holders=["metering"], key=key,
        opener=Opener(passphrase="correct horse battery staple"), name=package_name(case, 1), made_at=datetime.now(UTC),
    )  # fmt: skip
    took = time.monotonic() - started
    print(json.dumps([took, built.rows, built.size, peak_memory_mb(os.getpid()), time.process_time()]))


if __name__ == "__main__":
    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        runner.run(main(sys.argv[1]))
