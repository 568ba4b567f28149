"""Bytes to events and back, for one topic at a time."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from typing import Any

import msgspec

from .base import Event, NewerVersion, Refused, declared_part, explain_refusal, twin, without_none
from .topics import Topic

_NAME = re.compile(r"([a-z_]+(?:\.[a-z_]+)+)\.v([0-9]{1,6})")

encode_json = msgspec.json.Encoder().encode


class _Head(msgspec.Struct):
    type: str


class Codec:
    """Decoder of one topic. Decoded events are the fast twins of the contract's models: same attributes."""

    def __init__(self, topic: Topic) -> None:
        self.topic = topic
        self._models = {model.TYPE: model for model in topic.events}
        self._decoders: dict[str, Callable[[bytes], Any]] = {
            model.TYPE: msgspec.json.Decoder(twin(model)).decode for model in topic.events
        }
        self._versions = {name: int(version) for name, version in map(_split, self._models)}
        self._first = topic.events[0].TYPE
        self._decode_first = self._decoders[self._first]
        self._head = msgspec.json.Decoder(_Head).decode

    def decode(self, raw: bytes | None) -> Any:
        """The event in `raw`.

        Raises `Refused` (reason `empty`, `malformed`, `unknown_type`, `undeclared_field` or `invalid`) for what can
        never be read, and `NewerVersion` for a version that only a later reader knows.
        """
        try:
            # The topic's first type is by far its most frequent one: try it before looking.
            return self._decode_first(raw)  # type: ignore[arg-type]
        except (msgspec.DecodeError, TypeError, ValueError):
            return self._decode_other(raw)

    def _decode_other(self, raw: bytes | None) -> Any:
        if raw is None:
            raise Refused("empty", "a record without a value")
        try:
            kind = self._head(raw).type
        except msgspec.ValidationError:
            raise Refused("unknown_type", "no CloudEvents `type` in the record") from None
        except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
            raise Refused("malformed", "not a JSON document") from None
        decode = self._decoders.get(kind)
        if decode is None:
            name, version = _split(kind)
            if name in self._versions and version > self._versions[name]:
                raise NewerVersion(f"{name} in version {version}; this reader knows {self._versions[name]}")
            raise Refused("unknown_type", "this topic does not carry that event type")
        try:
            return decode(raw)
        except (msgspec.DecodeError, ValueError, RecursionError) as error:
            fallback = "refused by the decoder" if "`$" not in str(error) else "at " + str(error).rsplit("`", 2)[1]
            raise explain_refusal(self._models[kind], raw, fallback) from None

    def declared(self, raw: bytes) -> tuple[bytes, str]:
        """A record that was refused for undeclared fields: its declared part, and names and lengths of the rest."""
        return declared_part(self._models[self._head(raw).type], raw)


def _split(kind: str) -> tuple[str, int]:
    match = _NAME.fullmatch(kind)
    return (match[1], int(match[2])) if match else (kind, 0)


def build(
    model: type[Event],
    *,
    id: str,
    source: str,
    subject: str,
    time: str,
    data: Any,
    sequence: int | None = None,
) -> bytes:
    """One event as bytes. `data` is a mapping or a twin; `time` is RFC 3339. Nothing is validated: see `validated`."""
    envelope: dict[str, Any] = {
        "specversion": "1.0",
        "id": id,
        "source": source,
        "type": model.TYPE,
        "subject": subject,
        "time": time,
        "data": without_none(data) if isinstance(data, Mapping) else data,
    }
    if sequence is not None:
        envelope["sequence"] = str(sequence)
    return encode_json(envelope)


def validated(model: type[Event], raw: bytes) -> bytes:
    """`raw`, if it is a `model`. Raises `Refused` otherwise: what leaves a service obeys the contract."""
    try:
        msgspec.json.decode(raw, type=twin(model))
    except (msgspec.DecodeError, ValueError) as error:
        raise explain_refusal(model, raw, str(error)) from None
    return raw
