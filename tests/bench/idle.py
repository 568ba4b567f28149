"""What the services cost while nothing happens, with books that are not empty."""

from __future__ import annotations

import asyncio
import time

from deploy.local.idle import wait_idle
from tests.bench.backlog import Plan
from tests.bench.lab import Lab
from tests.bench.processes import Machine, cpu_seconds
from tests.bench.report import Limit, Line, Report

_SETTLE_SECONDS = 5.0
_WORK_SECONDS = 300.0


async def idle_lines(lab: Lab, report: Report, events: int, seconds: float) -> None:
    """CPU of all services together over `seconds`, after they have worked off `events` and gone quiet."""
    await lab.reset(Plan.just_before_now(events))
    rooms = [lab.room(name) for name in lab.rooms]
    await asyncio.gather(*(room.start() for room in rooms))
    idle = await wait_idle(lab.env, _WORK_SECONDS, lab.rooms)
    if not idle.idle:
        raise RuntimeError(f"{idle.text()}\n{lab.complaints()}")
    await asyncio.sleep(max(_SETTLE_SECONDS, seconds / 4))
    pids = {room.name: room.child.pid for room in rooms if room.child is not None}
    before, machine, started = {name: cpu_seconds(pid) for name, pid in pids.items()}, Machine.now(), time.monotonic()
    with lab.progress() as progress:
        progress.add_task(f"idle for {seconds:.0f} s", total=None)
        await asyncio.sleep(max(seconds, 1.0))
    took = time.monotonic() - started
    shares = {name: (cpu_seconds(pid) - before[name]) / took for name, pid in pids.items()}
    busy = Machine.now().busy_since(machine)
    await lab.end_rooms()
    each = ", ".join(f"{name} {share:.1%}" for name, share in shares.items())
    note = "; ".join([each, *(f"without {room}" for room in lab.absent)])
    report.add(
        Line("idle_cpu", sum(shares.values()), "of one core", limits=(Limit("<=", 0.15),), note=note),
        Line("idle_machine", busy, "of the machine", note="all cores, Kafka and PostgreSQL included"),
    )
