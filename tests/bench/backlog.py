"""A backlog of generations that is the same in every run of a seed: made in chunks, so that several processes share it.

`python -m tests.bench.backlog PLAN PART OF` is one of those processes: it produces every OF-th chunk from PART on.
"""

from __future__ import annotations

import asyncio
import itertools
import os
import random
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from functools import cached_property
from typing import Any, NamedTuple

import msgspec
import uvloop
from aiokafka import AIOKafkaProducer

from shared.contract import events
from shared.contract.codec import build, validated
from shared.contract.ids import uuid7
from shared.contract.topics import GENERATIONS
from shared.mesh.settings import KafkaSettings
from shared.mesh.transaction import rfc3339

CHUNK = 20_000
PRODUCERS = 2
EVENTS_A_SECOND = 10_000
DUPLICATES_PERCENT = 1
KEYS = 3
_BATCH_BYTES = 256 * 1024

Headers = list[tuple[str, bytes]]


class Model(NamedTuple):
    """A model of the price seed, and the buckets in which its usage comes: input first, output last."""

    provider: str
    name: str
    buckets: tuple[str, ...]


# Flat prices, a context tier, and two whose price depends on the time.
MODELS = (
    Model("openai", "gpt-4o", ("input", "cache_read", "output")),
    Model("openai", "gpt-4.1-mini", ("input", "output")),
    Model("openai", "gpt-5", ("input", "cache_read", "reasoning", "output")),
    Model("anthropic", "claude-sonnet-4-5", ("input", "cache_read", "cache_write_5m", "output")),
    Model("anthropic", "claude-haiku-4-5", ("input", "cache_read", "output")),
    Model("google", "gemini-2.5-flash", ("input", "reasoning", "output")),
    Model("deepseek", "deepseek-chat", ("input", "cache_read", "output")),
    Model("mistral", "mistral-small-latest", ("input", "output")),
)
_GENERATED = frozenset(events.OUTPUT_BUCKETS)


class Message(NamedTuple):
    """One record as it goes out."""

    key: bytes
    value: bytes
    partition: int
    headers: Headers


def workspace(number: int) -> str:
    """The id of the n-th workspace."""
    return _id("ws", number)


def _id(kind: str, number: int) -> str:
    # As long as ids are, all over the alphabet, and no two alike (the factor is odd).
    return f"{kind}-{number * 0x9E3779B97F4A7C15 % 2**64:016x}"


class Writer:
    """Writes generations of one source, from templates: `build` makes each once, later ones fill in its holes."""

    def __init__(self, source: str) -> None:
        self.source = source
        self._templates: dict[tuple[int, int, int], bytes] = {}

    def write(self, event_id: str, at: bytes, place: int, model: int, sequence: int, bits: int) -> bytes:
        """A generation in workspace number `place`; its quantities follow from the 64 `bits`."""
        kind = (place, model, bits % KEYS)
        template = self._templates.get(kind)
        if template is None:
            template = self._templates[kind] = self._template(*kind)
        buckets = MODELS[model].buckets
        read = generated = 0
        fill: dict[bytes, Any] = {b"id": event_id.encode(), b"time": at, b"sequence": sequence}
        for n, bucket in enumerate(buckets):
            if bucket in _GENERATED:
                quantity = 1 + (bits >> 16 * n & 0x3FF)
                generated += quantity
            else:
                quantity = 1 + (bits >> 16 * n & 0xFFF)
                read += quantity
            fill[bucket.encode()] = quantity
        fill[b"input_tokens"], fill[b"output_tokens"] = read, generated
        return template % fill

    def _template(self, place: int, model: int, key: int) -> bytes:
        provider, name, buckets = MODELS[model]
        # Numbers that stand for holes; nothing else in the event has 13 digits.
        holes = {hole: 10**12 + n for n, hole in enumerate(("input_tokens", "output_tokens", *buckets))}
        data = {
            "account": _id("acc", place // 2),
            "workspace": workspace(place),
            "key": _id("key", place * KEYS + key),
            "generation_ref": "gen-%(id)b",
            "model": name,
            "provider": provider,
            "tier": "standard",
            "outcome": "completed",
            "finish_reason": "stop",
            "log_retention_days": 30,
            "input_tokens": holes["input_tokens"],
            "output_tokens": holes["output_tokens"],
            "tokens": {bucket: holes[bucket] for bucket in buckets},
        }
        raw = build(
            events.GenerationCompleted, id="%(id)b", source=self.source, subject=workspace(place), time="%(time)b",
            data=data, sequence=10**13,
        )  # fmt: skip
        for hole, number in holes.items():
            raw = raw.replace(str(number).encode(), b"%%(%b)d" % hole.encode())
        return raw.replace(str(10**13).encode(), b"%(sequence)d")


@dataclass(frozen=True)
class Plan:
    """A backlog: `events` records, duplicates among them, the last one of the instant `end_ms`."""

    events: int
    end_ms: int
    seed: int = 7
    workspaces: int = 2_000

    @classmethod
    def just_before_now(cls, events: int, seed: int = 7) -> Plan:
        """A backlog that ends now."""
        return cls(events, int(time.time() * 1000) - 1_000, seed)

    @property
    def distinct(self) -> int:
        """Generations: records without their repeats."""
        return sum(fresh for fresh, _ in self._sizes)

    @property
    def chunks(self) -> int:
        """How many chunks there are."""
        return len(self._sizes)

    @cached_property
    def _sizes(self) -> list[tuple[int, int]]:
        """(generations, repeats) of each chunk."""
        sizes = []
        for start in range(0, self.events, CHUNK):
            size = min(CHUNK, self.events - start)
            repeats = size * DUPLICATES_PERCENT // 100
            sizes.append((size - repeats, repeats))
        return sizes

    @cached_property
    def _zipf(self) -> list[float]:
        return list(itertools.accumulate(1 / rank for rank in range(1, self.workspaces + 1)))

    @cached_property
    def _writers(self) -> list[Writer]:
        return [Writer(f"gw-bench-{part}") for part in range(PRODUCERS)]

    def chunk(self, number: int) -> Iterator[Message]:
        """The records of one chunk, in order of time; a repeat comes up to a chunk after its original."""
        fresh, repeats = self._sizes[number]
        chance = random.Random(f"{self.seed}:{number}")
        bits = chance.getrandbits
        places = chance.choices(range(self.workspaces), cum_weights=self._zipf, k=fresh)
        part = number % PRODUCERS
        writer = self._writers[part]
        write, source = writer.write, writer.source.encode()
        # A source counts its own chunks' events, which are all full but the last.
        before = sum(self._sizes[n][0] for n in range(part, number, PRODUCERS))
        first_ms = self.end_ms - (self.events - number * CHUNK) * 1000 // EVENTS_A_SECOND
        span_ms = (fresh + repeats) * 1000 // EVENTS_A_SECOND
        repeat_after = sorted(chance.randrange(1, fresh + 1) for _ in range(repeats))
        made: list[Message] = []
        at_ms, at = -1, b""
        for n, place in enumerate(places):
            ms = first_ms + n * span_ms // fresh
            if ms != at_ms:
                at_ms, at = ms, rfc3339(datetime.fromtimestamp(ms / 1000, UTC)).encode()
            event_id = uuid7(ms, bits)
            sequence = before + n + 1
            value = write(event_id, at, place, bits(16) % len(MODELS), sequence, bits(64))
            headers = [("ce_source", source), ("ce_sequence", b"%d" % sequence)]
            message = Message(event_id.encode(), value, n % GENERATIONS.partitions, headers)
            made.append(message)
            yield message
            while repeat_after and repeat_after[0] <= n + 1:
                repeat_after.pop(0)
                yield chance.choice(made)

    def check(self) -> None:
        """Raises Refused if what is made does not obey the contract."""
        for message in itertools.islice(self.chunk(0), 1_000):
            validated(events.GenerationCompleted, message.value)


async def produce(env: Mapping[str, str], plan: Plan, advance: Callable[[int], None]) -> None:
    """Puts the whole backlog into the topic; `advance` is told of records made. Raises RuntimeError on failure."""
    plan.check()
    arguments = (sys.executable, "-m", "tests.bench.backlog", msgspec.json.encode(asdict(plan)).decode())
    children = [
        await asyncio.create_subprocess_exec(
            *arguments, str(part), str(PRODUCERS), env=os.environ | dict(env), stdout=asyncio.subprocess.PIPE
        )
        for part in range(PRODUCERS)
    ]

    async def follow(child: asyncio.subprocess.Process) -> None:
        assert child.stdout is not None
        async for line in child.stdout:
            advance(int(line))
        if code := await child.wait():
            raise RuntimeError(f"a producer of the backlog ended with code {code}")

    try:
        await asyncio.gather(*map(follow, children))
    finally:
        for child in children:
            if child.returncode is None:
                child.terminate()
                await child.wait()


async def _produce_chunks(plan: Plan, numbers: range) -> None:
    """Whole batches, handed to the client ready: no future and no partitioner for each record."""
    producer = AIOKafkaProducer(
        **KafkaSettings.from_env().client(), compression_type="lz4", max_batch_size=_BATCH_BYTES, acks=1, linger_ms=5
    )
    await producer.start()
    try:
        open_batches: dict[int, Any] = {}
        sent = []
        for number in numbers:
            n = 0
            for key, value, partition, headers in plan.chunk(number):
                n += 1
                batch = open_batches.get(partition)
                if batch is not None:
                    if batch.append(timestamp=None, key=key, value=value, headers=headers) is not None:
                        continue
                    sent.append(await producer.send_batch(batch, GENERATIONS.name, partition=partition))
                batch = open_batches[partition] = producer.create_batch()
                batch.append(timestamp=None, key=key, value=value, headers=headers)
            print(n, flush=True)
        for partition, batch in open_batches.items():
            sent.append(await producer.send_batch(batch, GENERATIONS.name, partition=partition))
        await asyncio.gather(*sent)
    finally:
        await producer.stop()


def main(arguments: list[str]) -> int:
    """One producing process."""
    plan = Plan(**msgspec.json.decode(arguments[0]))
    part, of = int(arguments[1]), int(arguments[2])
    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        runner.run(_produce_chunks(plan, range(part, plan.chunks, of)))
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
