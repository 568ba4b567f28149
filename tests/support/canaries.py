"""What must never be kept, put everywhere where a gateway could put it by mistake."""

from __future__ import annotations

import base64
import json
from collections.abc import Iterator, Mapping
from copy import deepcopy
from typing import Any

from shared.contract import topics
from shared.contract.examples import example
from shared.contract.topics import Topic
from tests.support.gateway import Gateway, Sent, body

CANARIES: Mapping[str, str] = {
    "password": "correct horse battery staple!",
    "prompt": "Write a poem about my neighbour Anna, please",
    "card": "4111 1111 1111 1111",
    "key": "sk-or-v1-" + "0f3a9c5d7e1b2468" * 4,
}
DIGITS = "4111111111111111"
# Names of models and providers are whatever providers call them, up to 128 characters: no rule tells a key from one.
OPEN = ("model", "provider")
GATEWAY = [topic for topic in topics.TOPICS if "gateway" in topic.writers]


def everywhere(gateway: Gateway) -> Iterator[Sent]:
    """One record for each canary in each field of each event that a gateway sends, and in fields that nobody declared."""
    for topic in GATEWAY:
        for model in topic.events:
            good = gateway.event(topic, model, example(model)["data"])
            event = body(good)
            # Without its type nobody can say what it is: such a record is kept as it came, until a person has looked.
            places = [way for way in _leaves(event) if way != ("type",)]
            for name, canary in CANARIES.items():
                for way in places:
                    if name == "key" and way[-1] in OPEN:
                        continue
                    yield _changed(topic, event, way, canary)
                yield _changed(topic, event, (name,), canary)
                yield _changed(topic, event, ("data", name), {"text": [canary]})
                yield Sent(
                    topic, canary.encode(), good.value[:-9] if good.value else b"", [(f"x-{name}", canary.encode())]
                )


def cards_in_bytes(topic: Topic) -> list[Sent]:
    """A card's digits in records that are no events, in keys and in headers."""
    digits = DIGITS.encode()
    return [
        Sent(topic, digits, b'{"type": "generation.completed.v1", "card": "' + digits, [("card", digits)]),
        Sent(topic, b"a", b"\xff\x00" + digits + b"\xfe", [("ce_source", digits), (DIGITS, b"1")]),
        Sent(topic, b"b", json.dumps({"type": "nobody.knows.v1", "text": f"card {DIGITS}, thanks"}).encode(), []),
        Sent(topic, b"c", b"4111-1111-1111-1111", []),
    ]  # fmt: skip


def forms(canary: str) -> list[str]:
    """How it could stand in a row's text: as it is, as the hex of bytes, in base64."""
    raw = canary.encode()
    return [canary, raw.hex(), *(base64.b64encode(raw[n:])[:-4].decode() for n in range(3))]


def _leaves(value: Any, way: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    if isinstance(value, dict | list):
        for step, inner in value.items() if isinstance(value, dict) else enumerate(value):
            yield from _leaves(inner, (*way, step))
    else:
        yield way


def _changed(topic: Topic, event: dict[str, Any], way: tuple[Any, ...], value: Any) -> Sent:
    changed = deepcopy(event)
    at = changed
    for step in way[:-1]:
        at = at[step]
    at[way[-1]] = value
    return Sent(topic, b"canary", json.dumps(changed).encode(), [("ce_source", b"gw"), ("x-note", str(value).encode())])
