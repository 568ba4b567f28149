"""From just before an event is sent to the receipt of the balance that it changed, at a steady pace; and how busy the
machine is meanwhile. Emitter and reader are one process: they share the clock, and their share of the CPU counts.

An event that is timed is a probe: its workspace has no other event on its way, so the next balance is its own. When
every event is a probe, each is a journal of its own, which no real traffic is at 10,000 a second; so that pace is
also measured with 500 probes a second among usage of the backlog's 2,000 zipf workspaces.
"""

from __future__ import annotations

import asyncio
import itertools
import os
import random
import time
from collections import deque
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Any

from aiokafka import AIOKafkaProducer

from shared.contract.ids import uuid7
from shared.contract.topics import GENERATIONS
from shared.mesh.transaction import rfc3339
from tests.bench.backlog import KEYS, MODELS, Headers, Writer, workspace
from tests.bench.chain import Stalled
from tests.bench.lab import Lab
from tests.bench.processes import Machine, cpu_seconds
from tests.bench.report import Limit, Line, Report, percentile
from tests.support.probes import Probes

_TICK = 0.001
_LATE_SECONDS = 30.0
_SOURCE = "gw-bench-paced"
_OTHERS = 2_000


@dataclass(slots=True)
class Paced:
    """One paced run of `rate` events a second, every `probe_every`-th of them a probe."""

    lab: Lab
    rate: int
    warm_up: float
    seconds: float
    probe_every: int = 1
    probes: Probes = field(init=False)
    free: deque[int] = field(default_factory=deque)
    places: dict[bytes, int] = field(default_factory=dict)
    latencies: list[float] = field(default_factory=list)
    measured: int = 0
    held_back: int = 0
    sent: int = 0
    started: float = 0.0
    pace: float = 0.0
    busy: float = 0.0
    own_busy: float = 0.0
    _writer: Writer = field(default_factory=lambda: Writer(_SOURCE))
    _random: random.Random = field(default_factory=lambda: random.Random(7))
    _zipf: list[float] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.probes = Probes(self.lab.kafka, self._answered)
        # Enough that some are free while others wait a second or two for their balance.
        probing = max(2_000, 2 * self.rate // self.probe_every)
        for place in range(_OTHERS, _OTHERS + probing):
            self.free.append(place)
            self.places[workspace(place).encode()] = place
        self._zipf = list(itertools.accumulate(1 / rank for rank in range(1, _OTHERS + 1)))
        for place in (*range(_OTHERS), *self.free):
            self._value("", b"", place, 0)  # makes the template now

    def _value(self, event_id: str, at: bytes, place: int, sequence: int) -> bytes:
        # One key and one model for each workspace: as many templates as workspaces.
        bits = self._random.getrandbits(48) * KEYS
        return self._writer.write(event_id, at, place, place % len(MODELS), sequence, bits)

    async def run(self) -> None:
        """Emits and reads. Raises Stalled when a service ends or balances stop coming."""
        producer: Any = AIOKafkaProducer(
            **self.lab.kafka.client(), acks="all", enable_idempotence=True, compression_type="lz4", linger_ms=0
        )
        await producer.start()
        try:
            async with self.probes:
                await self._emit(producer)
                await producer.flush()
                await self.probes.last(_LATE_SECONDS)
        finally:
            await producer.stop()

    @property
    def _measure_from(self) -> float:
        return self.started + self.warm_up

    @property
    def _measure_to(self) -> float:
        return self._measure_from + self.seconds

    async def _emit(self, producer: Any) -> None:
        self.started = time.monotonic()
        machine: Machine | None = None
        measuring_since = own = 0.0
        sent_before = 0
        while (now := time.monotonic()) < self._measure_to:
            if machine is None and now >= self._measure_from:
                machine, measuring_since, own = Machine.now(), now, cpu_seconds(os.getpid())
                sent_before = self.sent
            due = int((now - self.started) * self.rate)
            while self.sent < due:
                if self.sent % self.probe_every:
                    await self._send(producer, self._random.choices(range(_OTHERS), cum_weights=self._zipf)[0], False)
                elif self.free:
                    await self._send(producer, self.free.popleft(), True)
                else:
                    self.held_back += 1
                    break
            if self.probes.ended or self.lab.dead() is not None:
                raise Stalled(f"the paced run at {self.rate}/s\n{self.lab.complaints()}")
            await asyncio.sleep(max(_TICK, self.started + (self.sent + 1) / self.rate - time.monotonic()))
        assert machine is not None, "the measured part comes after the warm-up"
        took = time.monotonic() - measuring_since
        self.busy = Machine.now().busy_since(machine)
        self.own_busy = (cpu_seconds(os.getpid()) - own) / took / (os.cpu_count() or 1)
        self.pace = (self.sent - sent_before) / took

    async def _send(self, producer: Any, place: int, probe: bool) -> None:
        now_ms = int(time.time() * 1000)
        self.sent += 1
        event_id = uuid7(now_ms, self._random.getrandbits)
        at = rfc3339(datetime.fromtimestamp(now_ms / 1000, UTC)).encode()
        value = self._value(event_id, at, place, self.sent)
        headers: Headers = [("ce_source", _SOURCE.encode()), ("ce_sequence", b"%d" % self.sent)]
        if probe:
            self.measured += self._measure_from <= self.probes.sent(workspace(place).encode())
        await producer.send(
            GENERATIONS.name,
            value,
            key=event_id.encode(),
            partition=self.sent % GENERATIONS.partitions,
            headers=headers,
        )

    def _answered(self, key: bytes, since: float, took: float) -> None:
        self.free.append(self.places[key])
        if since >= self._measure_from:
            self.latencies.append(took)

    def lines(self, name: str) -> list[Line]:
        """p50, p99 and the machine's busy share; probes without an answer count as very late."""
        lost = self.measured - len(self.latencies)
        ordered = sorted(self.latencies) + [_LATE_SECONDS] * lost
        note = f"{self.measured:,} probes, {self.pace:,.0f} events/s kept"
        if self.held_back:
            note += f"; held back {self.held_back} times: every workspace waited for its balance"
        if lost:
            note += f"; {lost} were never answered"
        return [
            _line(f"latency_{name}_p50", percentile(ordered, 0.5) * 1000, "ms", note),
            _line(f"latency_{name}_p99", percentile(ordered, 0.99) * 1000, "ms", note),
            _line(
                f"busy_{name}", self.busy, "of the machine",
                f"all cores; {self.own_busy:.2f} of it for emitter and reader",
            ),
        ]  # fmt: skip


LIMITS: dict[str, tuple[Limit, ...]] = {
    "latency_500_p50": (Limit("<=", 60),),
    "latency_500_p99": (Limit("<=", 150),),
    "busy_500": (Limit("<=", 0.5),),
    "latency_10000_p99": (Limit("<=", 400),),
    "latency_10000_zipf_p99": (Limit("<=", 400),),
}


def _line(name: str, value: float, unit: str, note: str) -> Line:
    return Line(name, value, unit, limits=LIMITS.get(name, ()), note=note)


async def latency_lines(
    lab: Lab, report: Report, name: str, rate: int, warm_up: float, seconds: float, probe_every: int = 1
) -> None:
    """Event to balance at `rate` events a second."""
    lab.need("metering", "billing")
    await lab.reset()
    paced = Paced(lab, rate, warm_up, seconds, probe_every)
    rooms = [lab.room(room) for room in lab.rooms]
    await asyncio.gather(*(room.start() for room in rooms))
    with lab.progress() as progress:
        progress.add_task(f"{rate:,} events a second, {warm_up + seconds:.0f} s", total=None)
        await paced.run()
    await lab.end_rooms()
    report.add(*paced.lines(name))
