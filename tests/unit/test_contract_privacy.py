"""What the contract has no place for, and who may read what: connection data is for security, and tells no devices apart."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Literal, get_args, get_origin

import pytest
from pydantic import BaseModel

from deploy.rooms import ROOMS
from shared.contract import topics
from shared.contract.base import Closed, Event, Refused
from shared.contract.codec import Codec
from shared.contract.examples import example
from shared.contract.export import event_types
from shared.contract.topics import HOLDERS
from shared.mesh import Service

# Words of field names that would tell two devices, or two visits, apart; what a password or content would be called.
FORBIDDEN = {
    "advertising", "advertiser", "beacon", "browser", "canvas", "cookie", "device", "fingerprint", "font", "fonts", "gaid",
    "hardware", "headers", "idfa", "imei", "ja3", "ja4", "locale", "mac", "pixel", "platform", "plugins", "referer",
    "referrer", "screen", "serial", "timezone", "tracking", "useragent", "utm", "viewport", "visitor",
    "completion_text", "content", "messages", "password", "passwd", "prompt", "secret", "token",
}  # fmt: skip
# Words that only together say it.
FORBIDDEN_TOGETHER = (
    {"user", "agent"},
    {"os", "version"},
    {"accept", "language"},
    {"card", "number"},
    {"client", "id"},
)
# The processor's token of a payment method signs nobody in, and is always sealed.
SEALED_TOKENS = {"payment.method_saved.v1": ["data.token"]}
# Coarse words may say what connected; a text may not.
CLOSED_LISTS_ONLY = {"agent"}


def fields(model: type[BaseModel], path: str = "") -> Iterator[tuple[str, str, Any]]:
    """(path, name, annotation) of every field of `model`, and of the models in it."""
    for name, info in model.model_fields.items():
        yield f"{path}{name}", name, info.annotation
        for inner in _models(info.annotation):
            yield from fields(inner, f"{path}{name}.")


def _models(annotation: Any) -> Iterator[type[BaseModel]]:
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        yield annotation
    for argument in get_args(annotation):
        yield from _models(argument)


def tracking(model: type[BaseModel]) -> list[str]:
    """The fields of `model` that could tell people or devices apart, or hold what must not come here."""
    found = []
    for path, name, annotation in fields(model):
        words = set(re.split(r"_|(?<=[a-z])(?=[A-Z])", name.lower())) | {name.lower()}
        together = any(all_of <= words for all_of in FORBIDDEN_TOGETHER)
        text = bool(words & CLOSED_LISTS_ONLY) and get_origin(annotation) is not Literal
        if words & FORBIDDEN or together or text:
            found.append(path)
    return found


@pytest.mark.promise(71)
@pytest.mark.parametrize("model", event_types(), ids=lambda model: model.TYPE)
def test_no_event_has_a_field_that_tells_devices_apart(model: type[Event]) -> None:
    found, sealed = tracking(model), SEALED_TOKENS.get(model.TYPE, [])
    assert found == sealed
    for path in sealed:
        event = example(model)
        event["data"][path.removeprefix("data.")] = "pm-plain"
        with pytest.raises(Refused):
            Codec(topics.PAYMENTS).decode(json.dumps(event).encode())


def test_such_a_field_is_found_wherever_it_is() -> None:
    class Inner(Closed):
        device_id: str

    class Planted(Closed):
        user_agent: str
        agent: str
        screen: list[Inner]
        deep: dict[str, Inner | None]
        coarse_agent: Literal["browser", "other"]
        token_count: int = 0

    assert tracking(Planted) == [
        "user_agent", "agent", "screen", "screen.device_id", "deep.device_id", "token_count",
    ]  # fmt: skip


@pytest.mark.promise(14)
def test_connection_data_has_one_reader() -> None:
    assert topics.ACCESS.readers == ("security",)
    assert set(topics.ACCESS.after_erasure) == {"security"}
    for name in {*ROOMS, *HOLDERS, "analytics"} - {"security"}:
        with pytest.raises(ValueError, match="does not let"):
            Service(name, migrations=Path()).consumes(topics.ACCESS)
    Service("security", migrations=Path()).consumes(topics.ACCESS)


@pytest.mark.promise(12)
def test_activity_has_one_reader() -> None:
    assert topics.ACTIVITY.readers == ("insights",)
    for name in {*ROOMS, *HOLDERS, "analytics"} - {"insights"}:
        with pytest.raises(ValueError, match="does not let"):
            Service(name, migrations=Path()).consumes(topics.ACTIVITY)


@pytest.mark.parametrize(
    ("topic", "field"),
    [
        pytest.param(topics.ACCOUNTS, "phone", marks=pytest.mark.promise(2)),
        pytest.param(topics.ACCESS, "user_agent", marks=pytest.mark.promise(71)),
        pytest.param(topics.ACCESS, "device_id", marks=pytest.mark.promise(71)),
        pytest.param(topics.ACTIVITY, "prompt", marks=pytest.mark.promise(13)),
        pytest.param(topics.PAYMENTS, "card_number", marks=pytest.mark.promise(8)),
    ],
    ids=lambda value: getattr(value, "name", value),
)
def test_an_undeclared_field_is_refused_and_not_kept(topic: topics.Topic, field: str) -> None:
    codec = Codec(topic)
    for model in topic.events:
        event = example(model)
        event["data"][field] = "canary-7731"
        raw = json.dumps(event).encode()
        with pytest.raises(Refused) as refused:
            codec.decode(raw)
        assert refused.value.reason == "undeclared_field" and "canary" not in refused.value.detail
        kept, rest = codec.declared(raw)
        assert b"canary" not in kept and field in rest and "canary" not in rest


@pytest.mark.promise(28)
def test_a_name_that_breaks_its_rule_is_kept_as_its_length_and_stays_refused() -> None:
    """In tables of names and values the name is whatever a platform writes: a prompt, by mistake."""
    for topic, table in (
        (topics.GENERATIONS, "tokens"),
        (topics.GENERATIONS, "counts"),
        (topics.PRIVACY_REQUESTS, "successors"),
    ):
        codec = Codec(topic)
        for model in topic.events:
            event = example(model)
            if table not in event["data"]:
                continue
            value = "canary 7731 value" if table == "successors" else 7
            event["data"][table] |= {"canary 7731": value, "canary 7732": value}
            kept, rest = codec.declared(json.dumps(event).encode())
            assert b"canary" not in kept and "canary" not in rest
            with pytest.raises(Refused):
                codec.decode(kept)
            assert len(json.loads(kept)["data"][table]) == len(event["data"][table])
