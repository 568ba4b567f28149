"""How long a person waits for a package, and how much memory it takes: metering's copy of one account, and its packing.

The account has `rows` rows in the request log, page for page among as many of others. The copy is made by metering as a
process of its own, from an order on its topic to the receipt; the package by a process with all of retention in it.
"""

from __future__ import annotations

import asyncio
import json
import os
import sys
import time
from datetime import UTC, datetime
from typing import Any

from deploy.local.room import room_environment
from deploy.rooms import ROOMS
from shared.contract import events, topics
from shared.contract.units import Subject
from shared.mesh.settings import ServiceSettings
from shared.mesh.store import open_pool
from shared.privacy.blobs import open_blobs
from shared.privacy.vault import MasterKeys, Vault
from tests.bench.chain import Stalled, Wrong, until
from tests.bench.erasure import against, fill
from tests.bench.lab import Lab
from tests.bench.people import Person
from tests.bench.processes import Machine, cpu_seconds, family_cpu_seconds, peak_memory_mb
from tests.bench.report import Limit, Report
from tests.support.coordinator import new_case
from tests.support.gateway import Gateway

MOST_SECONDS, MOST_MEMORY_MB = 60.0, 250.0


async def package_lines(lab: Lab, report: Report, rows: int) -> None:
    """One account with `rows` rows asks for everything."""
    lab.need("metering", "retention")
    await lab.reset()
    who = Person("copied")
    await fill(lab, who, rows)
    room = lab.room("metering")
    await room.start()
    case = new_case()
    order = await _order(lab, case, [("account", who.account), ("workspace", who.workspace), ("key", who.key)])
    gateway = Gateway(3, source="gw-bench-package")
    server = lab.stack.postgres
    assert server is not None and server.child is not None
    database_before = family_cpu_seconds(server.child.pid)
    machine, started = Machine.now(), time.monotonic()
    await gateway.send(dict(lab.env), [gateway.event(*order, key=case, subject=case)])
    async with lab.owner("metering") as db:

        async def done() -> tuple[bool, Any]:
            receipt = await db.fetchval("SELECT receipt FROM mesh_errand WHERE case_id = $1", case)
            position = await db.fetchval("SELECT position FROM mesh_task WHERE name = 'mesh-errand'")
            return receipt is not None, (receipt is None, position)

        await until(lab, "the copy", done)
        copied, busy = time.monotonic() - started, Machine.now().busy_since(machine)
        receipt = json.loads(await db.fetchval("SELECT receipt FROM mesh_errand WHERE case_id = $1", case))
    counted = {table["table"]: table["rows"] for table in receipt["treated"]}
    if counted["request_log"] != rows:
        raise Wrong(f"{counted['request_log']} of {rows} rows are in the copy")
    assert room.child is not None
    holder_mb, holder_cpu = peak_memory_mb(room.child.pid), cpu_seconds(room.child.pid)
    database_cpu = family_cpu_seconds(server.child.pid) - database_before
    await lab.end_rooms()
    blobs = open_blobs(lab.env["STEWARD_BLOBS"])
    parts = [await blobs.size(name) or 0 for name in await blobs.names(case)]
    await lab.settle()
    packed, all_rows, size, packer_mb, packer_cpu = await _pack(lab, case)
    if all_rows != sum(counted.values()):
        raise Wrong(f"{all_rows} of {sum(counted.values())} rows are in the package")
    await blobs.delete(case)
    of_copy = (
        f"{rows:,} rows of the account, {rows:,} of others; {len(parts)} parts, {sum(parts) / 1e6:,.0f} MB; CPU s: "
        f"{holder_cpu:.1f} (with its start), PostgreSQL {database_cpu:.1f}; {busy:.0%} of the machine busy"
    )
    of_packing = f"{all_rows:,} rows, {size / 1e6:,.0f} MB; {packer_cpu:.1f} s of CPU"
    report.add(
        against("package_holder", copied, "s", Limit("<=", MOST_SECONDS), of_copy),
        against("package_packing", packed, "s", Limit("<=", MOST_SECONDS), of_packing),
        against("package_together", copied + packed, "s", Limit("<=", MOST_SECONDS)),
        against("package_holder_rss", holder_mb, "MB", Limit("<=", MOST_MEMORY_MB)),
        against("package_packing_rss", packer_mb, "MB", Limit("<=", MOST_MEMORY_MB)),
    )


async def _order(lab: Lab, case: str, subjects: list[Subject]) -> tuple[Any, Any, dict[str, Any]]:
    settings = ServiceSettings.from_env("retention", lab.env)
    assert settings.keys_database_url is not None
    pool = await open_pool(settings.keys_database_url, size=2, application="steward-bench-keys")
    now = datetime.now(UTC)
    try:
        sealed = await Vault(pool, MasterKeys.from_settings(settings)).seal_subjects(case, subjects, now)
    finally:
        await pool.close()
    data = {
        "case": case, "epoch": 1, "action": "export", "holders": ["metering"], "scope": "account", "sealed": sealed,
        "confirmed_at": now,
    }  # fmt: skip
    return topics.PRIVACY_COMMANDS, events.PrivacyOrdered, data


async def _pack(lab: Lab, case: str) -> list[Any]:
    process = await asyncio.create_subprocess_exec(
        sys.executable, "-m", "tests.bench.packer", case,
        env=room_environment("retention", ROOMS, lab.env, os.environ),
        stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.PIPE,
    )  # fmt: skip
    said, complained = await process.communicate()
    if process.returncode:
        raise Stalled(f"the packing failed: {complained.decode(errors='replace')[-500:]}")
    found: list[Any] = json.loads(said)
    return found
