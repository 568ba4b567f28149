"""How long a person waits for their data, and how much memory it takes: from the wish to the link, beside traffic of others.

The account has `rows` rows in the request log, page for page among as many of others. Everything is as it is for anybody: a
wish on its topic, every holder as a process of its own, the package made by retention, the mail in the sink.
"""

from __future__ import annotations

import asyncio
import time
from typing import Any

from tests.bench.chain import Wrong, until
from tests.bench.erasure import PATIENT, TRAFFIC, Traffic, against, booked, fill, settled
from tests.bench.lab import Lab
from tests.bench.people import crowd, of_all, people
from tests.bench.processes import Machine, cpu_seconds, peak_memory_mb
from tests.bench.report import Limit, Report

MOST_SECONDS, MOST_MEMORY_MB, MOST_LAG_SECONDS = 60.0, 250.0, 5.0
_WARM_UP = 5.0


async def package_lines(lab: Lab, report: Report, rows: int, rate: int = TRAFFIC) -> None:
    """One account with `rows` rows asks for everything, while `rate` events a second of others go on."""
    lab.need("metering", "billing", "retention", "notifications")
    await lab.reset()
    who, *others = crowd("copied", 50)
    await fill(lab, who, rows)
    rooms = {name: lab.room(name, serve=PATIENT if name == "retention" else None) for name in lab.rooms}
    await asyncio.gather(*(room.start() for room in rooms.values()))
    async with people(lab) as world, lab.owner("retention") as cases, lab.owner("billing") as billing:
        await world.send([*world.joins(who, 100), *of_all(others, world.joins)])
        await settled(lab, "the account's beginning")
        before = await booked(billing)
        traffic = Traffic(lab, rate)
        async with traffic.flowing():
            await asyncio.sleep(_WARM_UP)  # lint: allow sleep-in-test -- the traffic has to be under way
            case, asked = world.wants_copy(who)
            machine, started = Machine.now(), time.monotonic()
            ways: dict[str, float] = {}
            await world.send([asked])

            async def done() -> tuple[bool, Any]:
                state = await cases.fetchval("SELECT state FROM privacy_case WHERE id = $1", case)
                ways.setdefault(str(state), time.monotonic() - started)
                return state in ("answering", "fulfilled"), (state, traffic.sent // (30 * rate))

            await until(lab, "the package", done)
            took, busy = time.monotonic() - started, Machine.now().busy_since(machine)
            behind = max(0, traffic.sent - (await booked(billing) - before)) / rate
        package = await cases.fetchrow("SELECT size, sha256 FROM package WHERE case_id = $1", case)
        copied = await cases.fetchval(
            """SELECT (t ->> 'rows')::int FROM case_receipt r, jsonb_array_elements(r.body -> 'treated') t
               WHERE r.case_id = $1 AND r.holder = 'metering' AND t ->> 'table' = 'request_log'""",
            case,
        )
    if not rows <= copied <= rows + 100:
        raise Wrong(f"{copied} of {rows} rows are in the copy")
    memory, cpu = {}, {}
    for name in ("metering", "retention"):
        child = rooms[name].child
        assert child is not None
        memory[name], cpu[name] = peak_memory_mb(child.pid), cpu_seconds(child.pid)
    await lab.end_rooms()
    way = ", ".join(f"{state} after {at:.1f} s" for state, at in ways.items())
    report.add(
        against(
            "package", took, "s", Limit("<=", MOST_SECONDS),
            f"{copied:,} rows of the account, {rows:,} of others; {rate:,} events/s of others meanwhile; {way}; "
            f"{package['size'] / 1e6:,.0f} MB; CPU s of metering {cpu['metering']:.0f}, retention {cpu['retention']:.0f} with "
            f"their starts; {busy:.0%} of the machine busy",
        ),
        against("package_lag", behind, "s", Limit("<=", MOST_LAG_SECONDS), "traffic that is not booked when it is ready"),
        against("package_rss_metering", memory["metering"], "MB", Limit("<=", MOST_MEMORY_MB)),
        against("package_rss_retention", memory["retention"], "MB", Limit("<=", MOST_MEMORY_MB)),
    )  # fmt: skip
