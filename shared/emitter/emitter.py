"""The client: `emit` checks an event, numbers it, writes it to the journal and returns; a thread sends it.

An event is *acknowledged to the caller* when `emit` has returned its id: it is in the journal then, and reaches the
broker under that id whatever becomes of the process. A call that raises has changed nothing and used no number.
"""

from __future__ import annotations

import asyncio
import atexit
import contextlib
import os
import re
import threading
import time
import weakref
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from operator import attrgetter
from pathlib import Path
from typing import Any, Literal, get_args

import msgspec
from pydantic import BaseModel, TypeAdapter

from ..contract.base import (
    CostPico,
    Event,
    EventId,
    Pico,
    PositivePico,
    Refused,
    Sealed,
    UnitPrice,
    explain_refusal,
    text_pattern,
    twin,
    without_none,
)
from ..contract.cards import holds_card, may_hold_card
from ..contract.codec import encode_json
from ..contract.events import PricesImported
from ..contract.ids import UUID7
from ..contract.sealing import seal_to
from ..contract.topics import TOPICS, Topic
from .journal import create, framed
from .sender import DEFAULTS, GUARANTEES, Sender

__all__ = ["Closed", "Emitter", "Full", "Refused", "Stats"]

Fsync = Literal["never", "interval", "always"]
WhenFull = Literal["refuse", "wait"]

EVENT_BYTES_MAX = 512 * 1024
_SEGMENT_BYTES = 16 * 1024 * 1024
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.-]{0,47}")
_TRACEPARENT = re.compile(r"00-[0-9a-f]{32}-[0-9a-f]{16}-[0-9a-f]{2}")
_IDS_REMEMBERED = 16_384
_DRAWN = 256
# While the disk itself is full nothing announces room.
_LOOK_AGAIN_SECONDS = 0.25


class Full(Exception):
    """There is no room in the spool (its bound, or the disk): the event was not taken and used no number."""


class Closed(Exception):
    """The emitter was closed, or belongs to the process that this one was forked from."""


def seal(text: str, key: str) -> str:
    """`text` for a field of the kind `Sealed`: only the mesh can read it, and nobody once the key's day is over.

    `key` is the public key of the day (UTC) as `steward keys ingress` prints it, `ID:BASE64URL`. Raises ValueError for another
    text there, and for more than 8,191 bytes; the error never holds the text.
    """
    return seal_to(text, key)


@dataclass(frozen=True, slots=True)
class Stats:
    """Counted since the start of this emitter. Calls of emit = accepted + repeated + refused + full (+ in progress)."""

    source: str
    accepted: int
    """Events that emit() has returned the id of: journalled, numbered without gaps."""
    repeated: int
    """Calls with the id of an event accepted before: nothing was done."""
    refused: int
    """Calls that raised Refused."""
    full: int
    """Calls that raised Full."""
    sent: int
    """Accepted events that the broker has."""
    replayed: int
    """Events of dead processes, sent under their old ids, sources and numbers."""
    torn: int
    """Records that a dead process was killed in the middle of writing; none of them had been acknowledged."""
    damaged_bytes: int
    """Unreadable bytes in journals of dead processes. Anything but 0 is loss, and shows as `missing` in the mesh."""
    spool_bytes: int
    leftover_bytes: int
    """Part of `spool_bytes` that dead processes left and that is still to be sent."""
    last_error: str | None
    """Why nothing goes out, as the Kafka client names it; None once the broker answers."""

    @property
    def pending(self) -> int:
        """Accepted events on their way."""
        return self.accepted - self.sent


class _Kind:
    """What is known about one event type."""

    __slots__ = ("model", "topic", "name", "decode", "key_of", "texts", "fields")

    def __init__(self, model: type[Event], topic: Topic) -> None:
        assert topic.key_of is not None, "what the gateway writes has keys"
        self.model, self.topic, self.key_of = model, topic.name, topic.key_of
        self.name = topic.name.encode()
        self.decode: Callable[[bytes], Any] = msgspec.json.Decoder(twin(model)).decode
        self.fields = free_texts(model)
        self.texts: Callable[[Any], tuple[str | None, ...]] = attrgetter(*self.fields)


# Texts that are long numbers by right, or random: exact amounts and prices, ids of events, ciphertext.
_NEVER_CARDS = frozenset(
    TypeAdapter(kind).json_schema()["pattern"] for kind in (CostPico, Pico, PositivePico, UnitPrice, EventId, Sealed)
)


def free_texts(model: type[Event]) -> tuple[str, ...]:
    """The fields of an event in which a card number could stand: names and ids that somebody else gave.

    The others cannot hold one (counts end below 13 digits, words are from a list) or hold long numbers by right.
    """
    data = model.model_fields["data"].annotation
    assert isinstance(data, type) and issubclass(data, BaseModel)
    free = (
        name
        for name, info in data.model_fields.items()
        if (pattern := text_pattern(info)) is not None and pattern not in _NEVER_CARDS
    )
    return ("subject", *(f"data.{name}" for name in free))


EVENTS: Mapping[type[Event], Topic] = {
    model: topic
    for topic in TOPICS
    if "gateway" in topic.writers
    for model in topic.events
    if model is not PricesImported  # made from files, by the operator's tools
}
"""What a platform emits. No text is nested in it: `free_texts` looks at an event's own fields."""

_KINDS: Mapping[str, _Kind] = {model.TYPE: _Kind(model, topic) for model, topic in EVENTS.items()}


class Emitter:
    """Emits the gateway's events. One for each process and spool folder is enough; safe for threads and for asyncio.

        with Emitter("gateway-eu-1", bootstrap="kafka:9092", spool="/var/spool/steward") as emitter:
            emitter.emit("generation.completed.v1", {"account": ..., "workspace": ..., ...})

    `name` stands in front of the events' `source`, a new one for each start. `kafka`: further settings of librdkafka
    (TLS, SASL). `fsync`: `interval` (five times a second, by the sender), `always` (before `emit` returns) or `never`.
    `when_full`: `refuse` raises Full at once, `wait` after `wait_seconds` (None: never). `exit_seconds` bounds what
    `close`, also at the interpreter's exit, waits for the broker; what it then lacks is sent after the next start.

    Raises ValueError for a setting that cannot be, OSError when the spool cannot be written.
    """

    def __init__(
        self,
        name: str,
        *,
        bootstrap: str,
        spool: str | os.PathLike[str],
        kafka: Mapping[str, Any] | None = None,
        fsync: Fsync = "interval",
        when_full: WhenFull = "refuse",
        wait_seconds: float | None = 30.0,
        spool_max_bytes: int = 1024**3,
        exit_seconds: float = 10.0,
    ) -> None:
        if _NAME.fullmatch(name) is None or holds_card(name):
            raise ValueError("name: 1 to 48 letters, digits, '.', '_' or '-', beginning with a letter or a digit")
        if fsync not in get_args(Fsync) or when_full not in get_args(WhenFull):
            raise ValueError(f"fsync is one of {get_args(Fsync)}, when_full one of {get_args(WhenFull)}")
        if spool_max_bytes < 2 * EVENT_BYTES_MAX:
            raise ValueError(f"spool_max_bytes: at least {2 * EVENT_BYTES_MAX}")
        ours = GUARANTEES.keys() & (kafka or {}).keys()
        if ours:
            raise ValueError(f"kafka: {', '.join(sorted(ours))}: the guarantees rest on these, they are not to be set")
        self._source = f"{name}:{time.time_ns() // 1_000_000:x}{os.urandom(3).hex()}"
        self._wait_seconds = wait_seconds if when_full == "wait" else 0.0
        self._spool_max_bytes, self._exit_seconds = spool_max_bytes, exit_seconds
        self._always_sync = fsync == "always"
        self._journal = create(
            Path(spool),
            self._source,
            segment_bytes=min(_SEGMENT_BYTES, spool_max_bytes // 8),
            always_sync=self._always_sync,
        )
        self._sequences = dict.fromkeys((kind.name for kind in _KINDS.values()), 0)
        self._given: dict[str, None] = {}
        self._accepted = self._repeated = self._refused = self._full = 0
        self._moment = _moment(0)
        self._random = _random_ends()
        self._lock = threading.Lock()
        self._moved = threading.Condition()
        self._waiters: list[tuple[asyncio.AbstractEventLoop, asyncio.Future[None]]] = []
        self._closed: str | None = None
        self._sender = Sender(
            self._journal,
            {**DEFAULTS, **(kafka or {}), **GUARANTEES, "bootstrap.servers": bootstrap},
            sync=fsync == "interval",
            moved=self._on_moved,
        )
        try:
            self._sender.start()
        except ValueError:
            self._journal.release()
            raise
        _LIVE.add(self)

    # --- emitting --------------------------------------------------------------------------------------------------

    @property
    def source(self) -> str:
        """The `source` of this emitter's events."""
        return self._source

    def emit(
        self,
        type: str,
        data: Mapping[str, Any],
        *,
        subject: str | None = None,
        time: datetime | str | None = None,
        id: str | None = None,
        traceparent: str | None = None,
    ) -> str:
        """Takes one event and returns its id; from then on it is not lost.

        `subject`: the workspace in `data`, if not given. `time` (event time, with a zone) and `id` (a UUIDv7) are made
        here if not given; give the same `id` again and nothing happens again. `traceparent` (W3C): the span that it comes
        of, for whoever looks at traces; one that is none is left out. Raises Refused for what is no event of the contract
        or holds a card-shaped number (it names fields, never values), Full, and Closed.
        """
        event = self._prepared(type, data, subject, time, id, traceparent)
        for seconds in self._tries(event, id is not None):
            with self._moved:
                self._moved.wait(seconds)
        return event[1]

    async def aemit(
        self,
        type: str,
        data: Mapping[str, Any],
        *,
        subject: str | None = None,
        time: datetime | str | None = None,
        id: str | None = None,
        traceparent: str | None = None,
    ) -> str:
        """As `emit`; where that would block its thread until there is room, this awaits."""
        event = self._prepared(type, data, subject, time, id, traceparent)
        for seconds in self._tries(event, id is not None):
            await self._room(seconds)
        return event[1]

    def _tries(self, event: tuple[_Kind, str, bytes, bytes, bytes], given: bool) -> Iterator[float]:
        """Takes the event as soon as there is room; yields how long to wait before each further try. Raises Full."""
        deadline = _deadline(self._wait_seconds)
        while not self._take(*event, given):
            left = deadline()
            if left <= 0:
                raise self._is_full()
            yield min(left, _LOOK_AGAIN_SECONDS)

    def _prepared(
        self, type: str, data: Mapping[str, Any], subject: str | None, at: datetime | str | None, event_id: str | None,
        traceparent: str | None,
    ) -> tuple[_Kind, str, bytes, bytes, bytes]:  # fmt: skip
        """The event as bytes, still without its number. Whatever is checked is checked on what will be sent."""
        try:
            kind = _KINDS.get(type)
            if kind is None:
                raise Refused("unknown_type", f"the gateway emits {', '.join(_KINDS)}")
            ms = time.time_ns() // 1_000_000
            if ms != self._moment[0]:
                self._moment = _moment(ms)
            _, id_start, now = self._moment
            if event_id is None:
                event_id = id_start + self._random_end()
            elif UUID7.fullmatch(event_id) is None:
                raise Refused("invalid", "id: not a UUIDv7 in lower case")
            if at is None:
                at = now
            elif isinstance(at, datetime):
                if at.tzinfo is None:
                    raise Refused("invalid", "time: an instant needs a time zone")
                at = _rfc3339(at)
            if subject is None:
                subject = data.get("workspace")
                if subject is None:
                    raise Refused("invalid", "subject: needed, since data names no workspace")
            try:
                raw = encode_json(
                    {
                        "specversion": "1.0",
                        "id": event_id,
                        "source": self._source,
                        "type": type,
                        "subject": subject,
                        "time": at,
                        "data": without_none(data) if None in data.values() else data,
                    }
                )
            except (TypeError, ValueError, RecursionError):
                raise Refused("invalid", "data holds what JSON has no form for") from None
            try:
                event = kind.decode(raw)
            except (msgspec.DecodeError, ValueError, RecursionError):
                raise explain_refusal(kind.model, raw, "refused by the decoder") from None
            texts = "\n".join(filter(None, kind.texts(event)))
            if may_hold_card(texts) is not None:
                self._refuse_cards(kind, event)
            if len(raw) > EVENT_BYTES_MAX:
                raise Refused("too_large", f"{len(raw)} bytes; an event has at most {EVENT_BYTES_MAX}")
        except Refused:
            with self._lock:
                self._refused += 1
            raise
        span = b""
        if traceparent and _TRACEPARENT.fullmatch(traceparent) and not holds_card(traceparent):
            span = traceparent.encode()
        return kind, event_id, raw, kind.key_of(event).encode(), span

    def _random_end(self) -> str:
        while True:
            try:
                return self._random.pop()
            except IndexError:
                self._random.extend(_random_ends())

    @staticmethod
    def _refuse_cards(kind: _Kind, event: Any) -> None:
        found = [name for name, text in zip(kind.fields, kind.texts(event), strict=True) if text and holds_card(text)]
        if found:
            raise Refused("card_number", f"{', '.join(found)}: shaped like a payment card's number")

    def _take(self, kind: _Kind, event_id: str, raw: bytes, key: bytes, span: bytes, given: bool) -> bool:
        """Numbers the event and writes it to the journal; False if there is no room."""
        name = kind.name
        with self._lock:
            if self._closed is not None:
                raise Closed(self._closed)
            if given and event_id in self._given:
                self._repeated += 1
                return True
            number = b"%d" % (self._sequences[name] + 1)
            frame = framed(name, key, number, raw, span)
            if self._journal.size + self._sender.leftover_bytes + len(frame) > self._spool_max_bytes:
                return False
            try:
                self._journal.append(frame)
            except OSError:
                return False
            self._sequences[name] += 1
            self._accepted += 1
            if given:
                self._given[event_id] = None
                if len(self._given) > _IDS_REMEMBERED:
                    del self._given[next(iter(self._given))]
        if self._sender.asleep:
            self._sender.wake.set()
        return True

    def _is_full(self) -> Full:
        with self._lock:
            self._full += 1
        why = self._sender.last_error
        return Full(f"no room in the spool: the broker takes nothing ({why})" if why else "no room in the spool")

    # --- waiting ---------------------------------------------------------------------------------------------------

    def _on_moved(self, freed: bool) -> None:
        """In the sender's thread: the broker has more of the journal."""
        with self._moved:
            self._moved.notify_all()
            waiters, self._waiters = self._waiters, []
        for loop, future in waiters:
            # A loop may have been closed while it waited.
            with contextlib.suppress(RuntimeError):
                loop.call_soon_threadsafe(_resolve, future)

    async def _room(self, seconds: float) -> None:
        loop = asyncio.get_running_loop()
        future: asyncio.Future[None] = loop.create_future()
        with self._moved:
            self._waiters.append((loop, future))
        await asyncio.wait([future], timeout=seconds)

    def flush(self, timeout: float | None = None) -> bool:
        """Waits until the broker has all that was emitted, leftovers included; False if it has not within `timeout`."""
        deadline = _deadline(timeout)
        with self._moved:
            while not self._sender.idle:
                left = deadline()
                if left <= 0 or self._closed == _FORKED:
                    return False
                self._moved.wait(min(left, _LOOK_AGAIN_SECONDS))
        return True

    async def aflush(self, timeout: float | None = None) -> bool:
        """As `flush`."""
        return await asyncio.to_thread(self.flush, timeout)

    # --- the end ---------------------------------------------------------------------------------------------------

    def close(self) -> bool:
        """Takes no more events, waits up to `exit_seconds` for the broker, and lets go of the spool.

        False if the broker does not have everything: the rest stays in the spool and is sent after the next start.
        """
        with self._lock:
            if self._closed is not None:
                return self._sender.idle
            self._closed = "the emitter was closed"
        _LIVE.discard(self)
        done = self.flush(self._exit_seconds)
        self._sender.stop()
        self._journal.release()
        return done

    def __enter__(self) -> Emitter:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    async def __aenter__(self) -> Emitter:
        return self

    async def __aexit__(self, *_: object) -> None:
        await asyncio.to_thread(self.close)

    def stats(self) -> Stats:
        """The counters as of now."""
        with self._lock:
            sender, journal = self._sender, self._journal
            return Stats(
                source=self._source,
                accepted=self._accepted,
                repeated=self._repeated,
                refused=self._refused,
                full=self._full,
                sent=sender.sent,
                replayed=sender.replayed,
                torn=sender.torn,
                damaged_bytes=sender.damaged_bytes,
                spool_bytes=journal.size + sender.leftover_bytes,
                leftover_bytes=sender.leftover_bytes,
                last_error=sender.last_error,
            )

    def _forked(self) -> None:
        """In the child of a fork: no thread runs here, and the journal is the parent's."""
        self._lock, self._moved = threading.Lock(), threading.Condition()
        self._closed = _FORKED
        self._sender.abandon()


_FORKED = "this process was forked after the emitter was made: make one in each process, after the fork"
_LIVE: weakref.WeakSet[Emitter] = weakref.WeakSet()


def _random_ends() -> list[str]:
    """Ends of UUIDv7s (version, variant and 74 random bits), some hundred at a time: a draw for each costs 1 us."""
    drawn = os.urandom(10 * _DRAWN).hex()
    hexes = (drawn[n : n + 20] for n in range(0, len(drawn), 20))
    return [f"-7{h[:3]}-{'89ab'[int(h[3], 16) % 4]}{h[4:7]}-{h[7:19]}" for h in hexes]


def _moment(ms: int) -> tuple[int, str, str]:
    """A millisecond since 1970, the beginning of the UUIDv7s made in it, and its text."""
    start = f"{ms:012x}"
    return ms, f"{start[:8]}-{start[8:]}", _rfc3339(datetime.fromtimestamp(ms / 1000, UTC))


def _rfc3339(instant: datetime) -> str:
    return instant.astimezone(UTC).isoformat(timespec="milliseconds")[:-6] + "Z"


def _resolve(future: asyncio.Future[None]) -> None:
    if not future.done():
        future.set_result(None)


def _deadline(seconds: float | None) -> Callable[[], float]:
    """What is left of `seconds` from now (None: for ever)."""
    if seconds is None:
        return lambda: float("inf")
    end = time.monotonic() + seconds
    return lambda: end - time.monotonic()


def _close_all() -> None:
    for emitter in list(_LIVE):
        emitter.close()


def _forget_all() -> None:
    for emitter in list(_LIVE):
        emitter._forked()
    _LIVE.clear()


atexit.register(_close_all)
os.register_at_fork(after_in_child=_forget_all)
