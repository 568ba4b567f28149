"""What emitting costs: one process on one core, its caller and its sender together, to a real broker.

`emitter_sustained` is how many events a second the broker has when the process does nothing but emit, `emitter_call_us`
the mean of the calls meanwhile: the sender takes its share of the core and of the interpreter out of them. The note has
them at 10,000 events a second. Run as a program, this is that process.
"""

from __future__ import annotations

import asyncio
import json
import os
import resource
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from shared.contract.events import GenerationCompleted
from shared.contract.examples import example
from shared.emitter import Emitter
from tests.bench.lab import Lab
from tests.bench.report import Limit, Line, Report, mean, percentile

_PACE = 10_000
_DATA: dict[str, Any] = example(GenerationCompleted)["data"]


async def emitter_lines(lab: Lab, report: Report, events: int) -> None:
    """Both figures, and what the process needs for an event."""
    await lab.reset()
    with tempfile.TemporaryDirectory(dir=lab.stack.home) as spool:
        command = ("-m", __name__, lab.env["STEWARD_KAFKA_BOOTSTRAP_SERVERS"], spool, str(events))
        process = await asyncio.create_subprocess_exec(sys.executable, *command, stdout=asyncio.subprocess.PIPE)
        out, _ = await process.communicate()
    if process.returncode:
        raise RuntimeError(f"the emitting process ended with {process.returncode}")
    said = json.loads(out)
    note = "p50 {p50:.1f}, p99 {p99:.1f} us; at 10,000/s mean {paced:.1f}, p50 {paced_p50:.1f}, p99 {paced_p99:.1f} us"
    report.add(
        Line("emitter_call_us", said["mean"], "us", limits=(Limit("<=", 25),), note=note.format(**said)),
        Line("emitter_sustained", said["rate"], "events/s", limits=(Limit(">=", 30_000),), note="one core"),
        Line("emitter_cpu_us", said["cpu"], "us/event"),
        Line("emitter_rss", said["rss"], "MB"),
    )


def _data(n: int) -> dict[str, Any]:
    """Usage as it varies: some keys and workspaces, a reference of its own for each generation."""
    tokens = {"input": 612 + n % 3_000, "cache_read": 1_200, "output": 180, "reasoning": 60}
    own = {"workspace": f"ws-{n % 313}", "key": f"key-{n % 977}", "generation_ref": f"gen-{1_764_018_000 + n}-{n:x}"}
    return {**_DATA, **own, "input_tokens": 1_812 + n % 3_000, "tokens": tokens}


def _run(emitter: Emitter, events: int, pace: int | None) -> list[float]:
    """Emits `events`; how long each call took (seconds)."""
    took, clock, started = [], time.perf_counter, time.perf_counter()
    for n in range(events):
        data = _data(n)
        while pace is not None and clock() < started + n / pace:
            pass  # a caller with other work: a core that slept would be slower for reasons of its own
        before = clock()
        emitter.emit(GenerationCompleted.TYPE, data)
        took.append(clock() - before)
    return took


def _main(servers: str, spool: str, events: int) -> None:
    os.sched_setaffinity(0, {max(os.sched_getaffinity(0))})
    with Emitter("bench", bootstrap=servers, spool=Path(spool)) as emitter:
        _run(emitter, 2_000, None)
        emitter.flush()
        paced = sorted(_run(emitter, min(events, 5 * _PACE), _PACE))
        emitter.flush()
        before, started = time.process_time(), time.perf_counter()
        full = sorted(_run(emitter, events, None))
        emitter.flush()
        seconds, cpu = time.perf_counter() - started, time.process_time() - before
    figures = {
        "mean": mean(full), "p50": percentile(full, 0.5), "p99": percentile(full, 0.99),
        "paced": mean(paced), "paced_p50": percentile(paced, 0.5), "paced_p99": percentile(paced, 0.99),
        "cpu": cpu / events,
    }  # fmt: skip
    figures = {name: value * 1e6 for name, value in figures.items()}
    rss = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024 / 1e6
    print(json.dumps(figures | {"rate": events / seconds, "rss": rss}))


if __name__ == "__main__":
    _main(sys.argv[1], sys.argv[2], int(sys.argv[3]))
