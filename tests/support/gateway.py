"""A gateway that keeps its own account of what it sent: tests compare the books with it, to the pico-dollar."""

from __future__ import annotations

import json
import random
import time
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Any

from aiokafka import AIOKafkaProducer

from shared.contract import events, topics
from shared.contract.base import Event
from shared.contract.codec import build
from shared.contract.ids import uuid7
from shared.contract.topics import Topic
from shared.mesh.transaction import rfc3339

MODEL, PROVIDER = "test-model", "test-provider"
INPUT_PICO, OUTPUT_PICO = 1_000_000, 3_000_000
DOLLAR = 10**12


@dataclass(slots=True)
class Sent:
    """One record as it went out."""

    topic: Topic
    key: bytes
    value: bytes | None
    headers: list[tuple[str, bytes | None]]


@dataclass(slots=True)
class Gateway:
    """One emitting instance with a seed. `charges` is what each workspace owes by its own arithmetic."""

    seed: int
    source: str = "gw-test"
    workspaces: int = 10
    charges: Counter[str] = field(default_factory=Counter)
    credits: Counter[str] = field(default_factory=Counter)
    generations: int = 0
    records: int = 0
    _random: random.Random = field(init=False)
    _sequence: Counter[str] = field(default_factory=Counter)

    def __post_init__(self) -> None:
        self._random = random.Random(self.seed)

    def event(
        self, topic: Topic, model: type[Event], data: dict[str, Any], *, at_ms: int | None = None, key: str | None = None,
        subject: str = "test",
    ) -> Sent:  # fmt: skip
        """One event as a record, with the next sequence of its topic."""
        at = int(time.time() * 1000) if at_ms is None else at_ms
        event_id = uuid7(at, self._random.getrandbits)
        self._sequence[topic.name] += 1
        number = self._sequence[topic.name]
        value = build(
            model, id=event_id, source=self.source, subject=subject,
            time=rfc3339(datetime.fromtimestamp(at / 1000, UTC)), data=data, sequence=number,
        )  # fmt: skip
        headers: list[tuple[str, bytes | None]] = [
            ("ce_source", self.source.encode()), ("ce_sequence", str(number).encode())
        ]  # fmt: skip
        return Sent(topic, (key or event_id).encode(), value, headers)

    def price(self, model: str = MODEL, provider: str = PROVIDER) -> Sent:
        """The price of the test model: 1 micro-dollar an input token, 3 an output token."""
        data = {
            "provider": provider, "model": model, "prices": {"input": "0.000001", "output": "0.000003"},
            "valid_from": "2020-01-01T00:00:00Z", "source": "test",
        }  # fmt: skip
        return self.event(topics.PRICES, events.PricePublished, data, key=f"{provider}/{model}")

    def command(self, service: str, action: str, target: str) -> Sent:
        """An operator's command."""
        data = {"service": service, "action": action, "target": target, "actor": "tester", "ticket": "T-1"}
        return self.event(topics.COMMANDS, events.OperatorCommand, data, key=service, subject=service)

    def payment(self, workspace: str, dollars: int, payment: str | None = None) -> Sent:
        """A purchase of credit."""
        self.credits[workspace] += dollars * DOLLAR
        data = {
            "payment": payment or f"pay-{self._random.getrandbits(48):x}", "account": f"acc-{workspace}",
            "workspace": workspace, "credit_pico": str(dollars * DOLLAR),
        }  # fmt: skip
        return self.event(topics.PAYMENTS, events.PaymentSettled, data, key=workspace, subject=workspace)

    def generation(
        self, workspace: str | None = None, *, counted: bool = True, at_ms: int | None = None, **changes: Any
    ) -> Sent:
        """A generation; `counted`: expected to be charged."""
        workspace = workspace or f"ws-{self._random.randrange(self.workspaces)}"
        read, generated = self._random.randrange(1, 5000), self._random.randrange(1, 500)
        data: dict[str, Any] = {
            "account": f"acc-{workspace}", "workspace": workspace, "key": f"key-{workspace}", "model": MODEL,
            "provider": PROVIDER, "finish_reason": "stop", "input_tokens": read, "output_tokens": generated,
            "tokens": {"input": read, "output": generated},
        } | changes  # fmt: skip
        if counted:
            tokens = data["tokens"]
            self.charges[workspace] += tokens.get("input", 0) * INPUT_PICO + tokens.get("output", 0) * OUTPUT_PICO
            self.generations += 1
        return self.event(topics.GENERATIONS, events.GenerationCompleted, data, subject=workspace, at_ms=at_ms)

    def some(self, n: int, *, duplicates: float = 0.05) -> list[Sent]:
        """`n` generations, some of them sent twice, out of order."""
        records = [self.generation() for _ in range(n)]
        records += [self._random.choice(records) for _ in range(int(n * duplicates))]
        self._random.shuffle(records)
        return records

    async def send(self, env: dict[str, str], records: Sequence[Sent]) -> None:
        """Sends and awaits every acknowledgement."""
        producer = AIOKafkaProducer(
            bootstrap_servers=env["STEWARD_KAFKA_BOOTSTRAP_SERVERS"], linger_ms=2, enable_idempotence=True,
            max_request_size=20_000_000,
        )  # fmt: skip
        await producer.start()
        try:
            waiting = [await producer.send(r.topic.name, r.value, key=r.key, headers=r.headers) for r in records]
            for outcome in waiting:
                await outcome
        finally:
            await producer.stop()
        self.records += sum(1 for r in records if r.topic is topics.GENERATIONS)

    def balance(self, workspace: str) -> int:
        """What the workspace should have left."""
        return self.credits[workspace] - self.charges[workspace]


def body(record: Sent) -> dict[str, Any]:
    """A record's event as JSON."""
    found: dict[str, Any] = json.loads(record.value or b"{}")
    return found
