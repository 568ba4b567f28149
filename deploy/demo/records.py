"""Records as a gateway writes them: an id, a source, a number without gaps, a key."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from datetime import UTC, datetime, timedelta
from random import Random
from typing import Any, NamedTuple

from shared.contract.base import Event
from shared.contract.codec import build
from shared.contract.ids import uuid7
from shared.contract.topics import Topic

Headers = tuple[tuple[str, bytes | None], ...]

SOURCES = ("gateway-eu-1", "gateway-us-1")
_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
_US = timedelta(microseconds=1)


class Record(NamedTuple):
    """One record to send. `due`: seconds after the first arrival, for a run at the speed of time."""

    topic: Topic
    key: bytes
    value: bytes | None
    headers: Headers
    due: float


class Recorder:
    """Two instances of a gateway, by turns: each counts its events on each topic from 1."""

    def __init__(self, random: Random) -> None:
        self._random = random
        self._sequences: Counter[tuple[str, str]] = Counter()

    def record(
        self, topic: Topic, model: type[Event], at_us: int, subject: str, data: Mapping[str, Any], *,
        key: str | None = None, headers: Headers = (), made_us: int | None = None, due: float = 0.0,
    ) -> tuple[Record, str]:  # fmt: skip
        """A record with the next number of one of the two instances, and its event's id.

        `at_us`: the event's time; `made_us`: when its id was made, if not then.
        """
        random = self._random
        source = SOURCES[random.random() < 0.4]
        self._sequences[source, topic.name] = sequence = self._sequences[source, topic.name] + 1
        event_id = uuid7((at_us if made_us is None else made_us) // 1000, random.getrandbits)
        value = build(
            model, id=event_id, source=source, subject=subject, time=rfc3339_us(at_us), data=data, sequence=sequence
        )
        numbered = (("ce_source", source.encode()), ("ce_sequence", str(sequence).encode()))
        return Record(topic, (key or event_id).encode(), value, (*numbered, *headers), due), event_id


def microseconds(instant: datetime) -> int:
    """Microseconds since 1970."""
    return (instant - _EPOCH) // _US


_SECONDS: dict[int, str] = {}


def rfc3339_us(at_us: int) -> str:
    """An instant as the contract writes it, to the microsecond."""
    second, rest = divmod(at_us, 1_000_000)
    text = _SECONDS.get(second)
    if text is None:
        if len(_SECONDS) > 50_000:
            _SECONDS.clear()
        text = _SECONDS[second] = datetime.fromtimestamp(second, UTC).strftime("%Y-%m-%dT%H:%M:%S")
    return f"{text}.{rest:06d}Z"
