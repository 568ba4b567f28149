"""What only a platform has: the emitter's wheel in an environment of its own, and a look at what Kafka got from it."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from aiokafka import AIOKafkaConsumer, TopicPartition

from shared.contract.codec import Codec
from shared.contract.topics import Topic

ROOT = Path(__file__).resolve().parents[2]
EMITTER = ROOT / "shared" / "emitter"
_UV = Path(sys.executable).with_name("uv")


def _run(*command: str | Path, cwd: Path = ROOT) -> None:
    done = subprocess.run([str(part) for part in command], cwd=cwd, capture_output=True, text=True, check=False)
    assert done.returncode == 0, f"{command[0]}: {done.stdout[-2000:]}{done.stderr[-2000:]}"


def bare_environment(folder: Path) -> Path:
    """Builds the wheel and installs it, and nothing else of this tree, into a new environment; returns its Python."""
    python = folder / "env" / "bin" / "python"
    _run(_UV, "build", "--quiet", "--wheel", "--no-build-isolation", "--python", sys.executable, "--out-dir",
         folder / "dist", EMITTER)  # fmt: skip
    (wheel,) = (folder / "dist").glob("*.whl")
    _run(_UV, "venv", "--quiet", "--python", sys.executable, folder / "env")
    # The versions of this tree, so that nothing is asked of a registry that is not in uv's cache already.
    pins = folder / "pins.txt"
    pins.write_text(_pins(), encoding="utf-8")
    _run(_UV, "pip", "install", "--quiet", "--python", python, "--constraint", pins, wheel)
    return python


def _pins() -> str:
    lines = (ROOT / "requirements.lock").read_text(encoding="utf-8").splitlines()
    return "\n".join(line.removesuffix("\\").strip() for line in lines if not line.startswith(" "))


class Arrived(NamedTuple):
    """One record of a topic, decoded as the mesh decodes it."""

    partition: int
    key: bytes
    headers: Mapping[str, bytes]
    event: Any


async def arrived(servers: str, topic: Topic) -> list[Arrived]:
    """Everything that is in a topic now, partition by partition. Raises Refused for what is no event."""
    codec = Codec(topic)
    consumer = AIOKafkaConsumer(bootstrap_servers=servers, auto_offset_reset="earliest", enable_auto_commit=False)
    await consumer.start()
    try:
        places = [TopicPartition(topic.name, n) for n in range(topic.partitions)]
        consumer.assign(places)
        ends = await consumer.end_offsets(places)
        found: list[Arrived] = []
        for place in places:
            while await consumer.position(place) < ends[place]:
                for record in (await consumer.getmany(place, timeout_ms=1000)).get(place, ()):
                    headers = dict(record.headers)
                    found.append(Arrived(place.partition, record.key, headers, codec.decode(record.value)))
        return found
    finally:
        await consumer.stop()


def numbers(records: Sequence[Arrived], source: str) -> list[int]:
    """The sequence numbers of one source, each once, rising."""
    return sorted({int(record.event.sequence) for record in records if record.event.source == source})
