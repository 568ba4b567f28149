"""The emitter on a real Kafka, mostly as a platform has it: from its wheel, in an environment with nothing else."""

from __future__ import annotations

import asyncio
import json
import subprocess
import threading
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from aiokafka.partitioner import murmur2

from deploy.local.kafka import KafkaNode
from deploy.local.ports import free_port
from shared.contract import events
from shared.contract.examples import example
from shared.contract.topics import GENERATIONS, PAYMENTS
from shared.emitter import Emitter, Full, sender
from shared.mesh.admin import ensure_topics
from shared.mesh.settings import KafkaSettings
from tests.support.platform import arrived, bare_environment, numbers
from tests.support.proxy import Proxy
from tests.support.world import Mesh

GENERATION = events.GenerationCompleted.TYPE
DATA: dict[str, Any] = example(events.GenerationCompleted)["data"]

PRELUDE = """
import json, os, sys, threading
from steward import Emitter
from steward.contract.events import GenerationCompleted
from steward.contract.examples import example
SERVERS, SPOOL = sys.argv[1:3]
GENERATION, DATA = GenerationCompleted.TYPE, example(GenerationCompleted)["data"]
"""


@pytest.fixture(scope="module")
def python(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return bare_environment(tmp_path_factory.mktemp("platform"))


class Platform:
    """A process of the platform, in its own environment: cut off from this tree."""

    def __init__(self, python: Path, code: str, *arguments: object) -> None:
        command = [str(python), "-I", "-c", PRELUDE + code, *map(str, arguments)]
        self.process = subprocess.Popen(command, stdout=subprocess.PIPE, stdin=subprocess.PIPE, text=True, cwd="/")
        assert self.process.stdout is not None
        self.out = self.process.stdout

    def lines(self, n: int) -> list[str]:
        """The next `n` whole lines of its output; fewer if it ended before."""
        return [line.strip() for line in (self.out.readline() for _ in range(n)) if line.endswith("\n")]

    def rest(self) -> list[str]:
        """Its last whole lines, once it has ended well."""
        out, _ = self.process.communicate(timeout=60)
        assert self.process.returncode == 0
        return out.splitlines()


@contextmanager
def platform(python: Path, code: str, *arguments: object) -> Iterator[Platform]:
    running = Platform(python, code, *arguments)
    try:
        yield running
    finally:
        running.process.kill()
        running.process.communicate()


async def test_a_platform_installs_the_wheel_and_emits(mesh: Mesh, python: Path, tmp_path: Path) -> None:
    """Events arrive under the ids that emit returned, where the mesh's own keys would lie, and none is missing."""
    code = """
import importlib.util
from steward.adapters import read
assert not [name for name in ("faststream", "aiokafka", "asyncpg", "shared", "services") if importlib.util.find_spec(name)]
answer = {"usage": {"prompt_tokens": 10, "completion_tokens": 2, "total_tokens": 12, "cost": 1.5e-05,
                    "prompt_tokens_details": {"cached_tokens": 4}}}
DATA |= read(answer, "openrouter").usage()
with Emitter("gateway-eu-1", bootstrap=SERVERS, spool=SPOOL) as emitter:
    ids = [emitter.emit(GENERATION, {**DATA, "workspace": f"ws-{n % 7}"}) for n in range(500)]
print(json.dumps({"ids": ids, "source": emitter.source, "sent": emitter.stats().sent, "left": os.listdir(SPOOL)}))
"""
    servers = mesh.env["STEWARD_KAFKA_BOOTSTRAP_SERVERS"]
    with platform(python, code, servers, tmp_path) as running:
        (said,) = [json.loads(line) for line in await asyncio.to_thread(running.rest)]
    assert said["sent"] == 500 and said["left"] == ["lock"]
    records = await arrived(servers, GENERATIONS)
    assert sorted(record.event.id for record in records) == sorted(said["ids"])
    assert numbers(records, said["source"]) == list(range(1, 501))
    for record in records:
        event = record.event
        assert event.data.tokens == {"input": 6, "cache_read": 4, "output": 2}
        assert event.data.cost_reported_pico == "15000000"
        assert record.key == event.id.encode() and record.partition == (murmur2(record.key) & 0x7FFFFFFF) % 12
        assert record.headers == {
            "content-type": b"application/cloudevents+json",
            "ce_source": event.source.encode(),
            "ce_sequence": event.sequence.encode(),
        }
    await mesh.start("metering")
    await mesh.owned()
    await mesh.idle()
    rows = await mesh.fetch("metering", "SELECT highest, seen FROM mesh_source WHERE source = $1", said["source"])
    assert max(row["highest"] for row in rows) == sum(row["seen"] for row in rows) == 500, "missing is 0"
    assert "dead_lettered:" + GENERATIONS.name not in await mesh.counters()


async def test_a_kill_loses_nothing_that_emit_returned(mesh: Mesh, python: Path, tmp_path: Path) -> None:
    threads = 4
    code = f"""
emitter = Emitter("gw", bootstrap=SERVERS, spool=SPOOL)
def work():
    while True:
        id = emitter.emit(GENERATION, DATA)
        os.write(1, (id + "\\n").encode())
print(emitter.source, flush=True)
for _ in range({threads}):
    threading.Thread(target=work).start()
"""
    servers = mesh.env["STEWARD_KAFKA_BOOTSTRAP_SERVERS"]
    with platform(python, code, servers, tmp_path) as running:
        (source,) = await asyncio.to_thread(running.lines, 1)
        acknowledged = await asyncio.to_thread(running.lines, 8_000)
        running.process.kill()
        acknowledged += [line.strip() for line in running.out if line.endswith("\n")]
    again = """
with Emitter("gw", bootstrap=SERVERS, spool=SPOOL) as emitter:
    emitter.emit(GENERATION, DATA)
    assert emitter.flush(30)
    stats = emitter.stats()
print(json.dumps([stats.replayed, stats.torn, stats.damaged_bytes, stats.leftover_bytes, os.listdir(SPOOL)]))
"""
    with platform(python, again, servers, tmp_path) as running:
        ((replayed, torn, damaged, leftover, left),) = [json.loads(x) for x in await asyncio.to_thread(running.rest)]
    assert replayed > 0 and damaged == leftover == 0 and left == ["lock"]
    records = await arrived(servers, GENERATIONS)
    of_dead = {record.event.id: int(record.event.sequence) for record in records if record.event.source == source}
    assert set(acknowledged) <= of_dead.keys(), "what emit returned is there"
    assert len(acknowledged) <= len(of_dead) <= len(acknowledged) + threads, "the rest is calls in progress"
    assert sorted(of_dead.values()) == list(range(1, len(of_dead) + 1)), "one number each, none left out"
    assert torn <= 1


@contextmanager
def emitting(e: Emitter, made: list[str], rate: float = 2_000) -> Iterator[None]:
    """Emits in another thread, at a rate, until the block ends."""
    over = threading.Event()

    def work() -> None:
        while not over.wait(1 / rate):
            made.append(e.emit(GENERATION, {**DATA, "generation_ref": f"r-{len(made)}"}))

    thread = threading.Thread(target=work)
    thread.start()
    try:
        yield
    finally:
        over.set()
        thread.join()


async def test_an_outage_of_any_length(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The broker hangs for longer than its client is allowed to try, then dies: nothing is lost, no key's order either.

    Librdkafka gives up after `message.timeout.ms` (5 minutes by default, never with us). In the first part it gives up
    after a second, as if 20 minutes had passed; whatever it gives back is read again from the journal.
    """
    node = KafkaNode(tmp_path / "kafka", log=tmp_path / "kafka.log", fast_start=True, die_with_parent=True)
    made: list[str] = []
    try:
        await node.start()
        await ensure_topics(KafkaSettings(node.bootstrap_servers))
        with monkeypatch.context() as patch:
            patch.setitem(sender.GUARANTEES, "message.timeout.ms", 1_000)
            hung = Emitter("gw", bootstrap=node.bootstrap_servers, spool=tmp_path / "spool")
        with hung, emitting(hung, made):
            await _until(lambda: hung.stats().sent > 100)
            node.pause()
            await _until(lambda: hung.stats().last_error is not None and hung.stats().pending > 4_000)
            node.resume()
            await _until(lambda: hung.stats().sent > 4_000)
        assert hung.stats().accepted == hung.stats().sent == len(made) and hung.stats().full == 0
        with (
            Emitter("gw", bootstrap=node.bootstrap_servers, spool=tmp_path / "spool") as killed,
            emitting(killed, made),
        ):
            await _until(lambda: killed.stats().sent > 100)
            await node.kill()
            before = killed.stats().accepted
            await _until(lambda: killed.stats().accepted > before + 2_000)
            await node.start()
            await _until(lambda: killed.stats().sent > before)
        records = await arrived(node.bootstrap_servers, GENERATIONS)
    finally:
        await node.stop()
    assert {record.event.id for record in records} == set(made)
    for e in (hung, killed):
        assert numbers(records, e.source) == list(range(1, e.stats().accepted + 1))
    seen: dict[str, int] = {}
    for record in records:
        if record.event.source == killed.source:
            seen.setdefault(record.event.id, int(record.event.sequence) + 10**9 * record.partition)
    assert list(seen.values()) == sorted(seen.values()), "the first of each id comes in the order of its partition"


async def test_memory_is_bounded_while_the_broker_is_away(python: Path, tmp_path: Path) -> None:
    """50,000 events and no broker: they are on the disk, and their process is no larger for it."""
    code = """
def resident(): return int(open("/proc/self/statm").read().split()[1]) * os.sysconf("SC_PAGESIZE") // 2**20
emitter = Emitter("gw", bootstrap=SERVERS, spool=SPOOL, exit_seconds=0)
def emit(n):
    for _ in range(n): emitter.emit(GENERATION, DATA)
    threading.Event().wait(1)  # the sender takes what it will
emit(12_000)
before = resident()
emit(38_000)
print(json.dumps([before, resident(), emitter.stats().spool_bytes]))
emitter.close()
"""
    with platform(python, code, "127.0.0.1:1", tmp_path) as running:
        ((before, after, spooled),) = [json.loads(line) for line in await asyncio.to_thread(running.rest)]
    assert spooled > 30_000_000 and after - before < 16, f"{before} MB, then {after} MB"


async def test_order_holds_for_each_key(mesh: Mesh, tmp_path: Path) -> None:
    payer = {"account": "acc", "jurisdiction": "US", "credit_pico": "1000000000000"}
    servers = mesh.env["STEWARD_KAFKA_BOOTSTRAP_SERVERS"]
    with Emitter("gw", bootstrap=servers, spool=tmp_path) as e:
        for n in range(3_000):
            span = f"00-{n + 1:032x}-{n + 1:016x}-01" if n % 2 else "4111 1111 1111 1111"
            e.emit(
                events.PaymentSettled.TYPE,
                {**payer, "workspace": f"ws-{n % 11}", "payment": f"p-{n}"},
                traceparent=span,
            )
    records = await arrived(servers, PAYMENTS)
    assert len(records) == 3_000
    spans = {record.headers.get("traceparent") for record in records}
    assert spans == {None, *(f"00-{n + 1:032x}-{n + 1:016x}-01".encode() for n in range(1, 3_000, 2))}
    last: Counter[bytes] = Counter()
    for record in records:
        assert record.key == record.event.data.workspace.encode()
        assert int(record.event.sequence) > last[record.key]
        last[record.key] = int(record.event.sequence)


@pytest.mark.parametrize("asynchronous", [False, True])
async def test_back_pressure(mesh: Mesh, tmp_path: Path, asynchronous: bool) -> None:
    """Ten times what the spool holds goes through it: callers wait for the broker, nobody is refused."""
    servers, n = mesh.env["STEWARD_KAFKA_BOOTSTRAP_SERVERS"], 12_000
    async with Emitter("gw", bootstrap=servers, spool=tmp_path, spool_max_bytes=2**20, when_full="wait") as e:

        async def some(n: int) -> list[str]:
            return [await e.aemit(GENERATION, DATA) for _ in range(n)]

        if asynchronous:
            made = [one for some_ids in await asyncio.gather(*(some(n // 20) for _ in range(20))) for one in some_ids]
        else:
            made = await asyncio.to_thread(lambda: [e.emit(GENERATION, DATA) for _ in range(n)])
    assert e.stats().sent == e.stats().accepted == n and e.stats().full == 0
    records = await arrived(servers, GENERATIONS)
    assert {record.event.id for record in records} == set(made)
    assert numbers(records, e.source) == list(range(1, n + 1))


async def test_refused_for_want_of_room_is_counted_and_leaves_no_gap(mesh: Mesh, tmp_path: Path) -> None:
    servers = mesh.env["STEWARD_KAFKA_BOOTSTRAP_SERVERS"]
    host, _, port = servers.partition(":")
    door, proxy = free_port(), Proxy(host, int(port))
    made: list[str] = []
    refused = 0
    # The broker is there, but the way to it opens late.
    async with Emitter("gw", bootstrap=f"127.0.0.1:{door}", spool=tmp_path, spool_max_bytes=2**20) as e:
        while refused < 10:
            try:
                made.append(e.emit(GENERATION, DATA))
            except Full:
                refused += 1
        await proxy.open(door)
        try:
            assert await e.aflush(60)
            made += [e.emit(GENERATION, DATA) for _ in range(100)]
            assert await e.aflush(60)
        finally:
            await proxy.close()
        assert (e.stats().accepted, e.stats().full) == (len(made), refused)
    records = await arrived(servers, GENERATIONS)
    assert {record.event.id for record in records} == set(made)
    assert numbers(records, e.source) == list(range(1, len(made) + 1))


async def _until(condition: Any, within: float = 30.0) -> None:
    deadline = time.monotonic() + within
    while not condition():
        assert time.monotonic() < deadline, "it did not come about"
        await asyncio.sleep(0.02)  # lint: allow sleep-in-test -- polls counters, which no event announces
