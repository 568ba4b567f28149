"""The sender: a thread that reads the journals behind the writer and hands their records to the broker, in order.

The Kafka client holds a bounded number of records; while the broker is away nothing more is read. Whatever goes wrong
has one way out: the client is thrown away, and a new one reads again from what is acknowledged. That may send
records twice (the mesh counts them once) and never leaves one out.
"""

from __future__ import annotations

import ctypes
import logging
import threading
import time
from collections import deque
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from confluent_kafka import KafkaException, Producer

from .journal import Journal, Position, take_over

_Header = tuple[str, str | bytes | None]

log = logging.getLogger("steward.emitter")

RECORDS_MAX, BYTES_MAX = 10_000, 16 * 1024 * 1024
"""What is in the Kafka client's hands at most; one block of the journal may come on top."""
_SYNC_SECONDS = 0.2
_TAKE_OVER_SECONDS = 30.0
_BACKOFF_SECONDS = (0.5, 30.0)
# How long to wait for the client when there is nothing else to do: while it answers, and when it has been silent.
_TURN_SECONDS, _SILENT_SECONDS = 0.01, 0.1
# Woken only after a while without events: waking costs the caller of emit() as much as the rest of it.
_AWAKE_SECONDS = 0.05
_CONTENT_TYPE: _Header = ("content-type", b"application/cloudevents+json")

GUARANTEES: dict[str, Any] = {
    "enable.idempotence": True,
    "enable.gapless.guarantee": True,  # a record that fails stops the client before a later one overtakes it
    "acks": "all",
    "message.timeout.ms": 0,  # none: an outage of any length loses nothing
    "partitioner": "murmur2_random",  # the partition of a key as Java's client, and the mesh's relay, choose it
    # Never reached: the sender stops reading before.
    "queue.buffering.max.messages": 4 * RECORDS_MAX,
    "queue.buffering.max.kbytes": 4 * BYTES_MAX // 1024,
}
"""Settings of the Kafka client on which the promises rest: nobody changes them."""

DEFAULTS: dict[str, Any] = {
    "client.id": "steward-emitter",
    "compression.type": "zstd",
    "linger.ms": 2,  # a turn of the sender has gathered already
    "reconnect.backoff.max.ms": 2_000,
    "log.connection.close": False,
    "log_level": 2,  # what goes wrong is told once by us, not by each attempt
}
"""Settings that a platform may change, as it may add others (TLS, SASL)."""


class _Chunk:
    """Records that were read together: when the last is delivered, the journal may forget them."""

    __slots__ = ("stream", "end", "records", "size", "pending")

    def __init__(self, stream: _Stream, end: Position, records: int, size: int) -> None:
        self.stream, self.end, self.records, self.size = stream, end, records, size
        self.pending = records


class _Stream:
    """A journal and the headers that all its records share."""

    __slots__ = ("journal", "own", "source")

    def __init__(self, journal: Journal, own: bool) -> None:
        self.journal, self.own = journal, own
        self.source: _Header = ("ce_source", journal.source.encode())


class Sender:
    """Starts with `start`, ends with `stop`. Its counters are read by other threads and written by its own alone."""

    def __init__(
        self, journal: Journal, settings: Mapping[str, Any], *, sync: bool, moved: Callable[[bool], None]
    ) -> None:
        self.sent = self.replayed = 0
        self.leftover_bytes = 0
        self.torn = self.damaged_bytes = 0
        self.last_error: str | None = None
        self.asleep = False
        self.wake = threading.Event()
        self._settings = dict(settings)
        self._spool: Path = journal.folder.parent
        self._own = _Stream(journal, own=True)
        self._streams = [self._own]
        self._sync, self._moved = sync, moved
        self._stopping = threading.Event()
        self._chunks: deque[_Chunk] = deque()
        self._held_records = self._held_bytes = 0
        self._answered_at = self._synced_at = self._sought_at = self._read_at = self._busy_at = 0.0
        self._failed: str | None = None
        self._topics: dict[bytes, str] = {}
        self._client: list[Producer] = []
        self._thread = threading.Thread(target=self._run, name="steward-emitter", daemon=True)

    def start(self) -> None:
        """Takes over what dead instances left, and starts the thread. Raises ValueError for settings of no client."""
        try:
            self._client.append(self._connected())
        except KafkaException as error:
            raise ValueError(f"kafka: {error.args[0].str()}") from None
        self._seek()
        self._thread.start()

    def stop(self) -> None:
        """Ends the thread; what is not acknowledged stays in its journal for the next start."""
        self._stopping.set()
        self.wake.set()
        self._thread.join()
        for stream in self._streams:
            if not stream.own:
                stream.journal.release()

    def abandon(self) -> None:
        """In the child of a fork: forgets the client without ending it, which would wait for threads that do not exist."""
        for producer in self._client:
            ctypes.pythonapi.Py_IncRef(ctypes.py_object(producer))
        for stream in self._streams:
            stream.journal.close()

    @property
    def idle(self) -> bool:
        """Whether the broker has everything that was written until now, leftovers included."""
        return all(stream.journal.acknowledged >= stream.journal.end for stream in tuple(self._streams))

    # --- the thread ------------------------------------------------------------------------------------------------

    def _run(self) -> None:
        backoff, longest = _BACKOFF_SECONDS
        while not self._stopping.is_set():
            before = self.sent + self.replayed
            try:
                self._session()
            except Exception as error:
                self._complain(_named(error))
                if self.sent + self.replayed > before:
                    backoff = _BACKOFF_SECONDS[0]
                self._stopping.wait(backoff)
                backoff = min(backoff * 2, longest)

    def _session(self) -> None:
        """One client, until it fails or the thread is stopped."""
        self._chunks.clear()
        self._held_records, self._held_bytes, self._failed = 0, 0, None
        for stream in self._streams:
            stream.journal.rewind()
        if not self._client:
            self._client.append(self._connected())
        (producer,) = self._client
        try:
            while not self._stopping.is_set():
                self._turn(producer)
        finally:
            self._client.clear()
            # What the client still holds is in the journal; it must not go out behind its successor's back.
            producer.purge()

    def _connected(self) -> Producer:
        return Producer({**self._settings, "error_cb": lambda error: self._complain(error.name())}, logger=log)

    def _turn(self, producer: Producer) -> None:
        now = time.monotonic()
        room = self._held_records < RECORDS_MAX and self._held_bytes < BYTES_MAX
        read = False
        if room and now >= self._read_at:
            read = self._produce(producer)
            if not read:
                # What is written meanwhile goes out together.
                self._read_at = now + _TURN_SECONDS
        # Giving the interpreter away after every block keeps the callers of emit() from waiting for this thread.
        producer.poll(0 if read else self._patience())
        if self._failed is not None:
            raise _Failed(self._failed)
        self._settle()
        if self._sync and now - self._synced_at >= _SYNC_SECONDS:
            self._synced_at = now
            self._bring_to_disk()
        if now - self._sought_at >= _TAKE_OVER_SECONDS:
            self._seek()
        if read or self._chunks:
            self._busy_at = now
        else:
            self._drop_finished()
            if now - self._busy_at < _AWAKE_SECONDS:
                self._stopping.wait(_TURN_SECONDS)
            else:
                self._sleep()

    def _bring_to_disk(self) -> None:
        try:
            self._own.journal.sync()
        except OSError as error:
            self._complain(_named(error))

    def _patience(self) -> float:
        if not self._chunks:
            return 0
        silent = time.monotonic() - self._answered_at > 1
        return _SILENT_SECONDS if silent else _TURN_SECONDS

    def _sleep(self) -> None:
        """Until something is written."""
        self.asleep = True
        if all(stream.journal.read_all for stream in self._streams) and not self._stopping.is_set():
            self.wake.wait(_SYNC_SECONDS if self._sync and not self._own.journal.synced else _TAKE_OVER_SECONDS)
        self.asleep = False
        self.wake.clear()

    def _produce(self, producer: Producer) -> bool:
        """Hands the next block of records over; False if there is none."""
        for stream in self._streams:
            found = stream.journal.read()
            if found is None:
                continue
            records, end, size = found
            if not self._chunks:
                self._answered_at = time.monotonic()
            chunk = _Chunk(stream, end, len(records), size)
            self._chunks.append(chunk)
            self._held_records += chunk.records
            self._held_bytes += size

            def delivered(error: Any, _: Any, chunk: _Chunk = chunk) -> None:
                chunk.pending -= 1
                if error is not None and self._failed is None:
                    self._failed = error.name()

            source, topics, produce = stream.source, self._topics, producer.produce
            for topic, key, sequence, value, *traceparent in records:
                name = topics.get(topic) or topics.setdefault(topic, topic.decode())
                headers = [_CONTENT_TYPE, source, ("ce_sequence", sequence)]
                if traceparent:
                    headers.append(("traceparent", traceparent[0]))
                produce(name, value, key, headers=headers, on_delivery=delivered)
            return True
        return False

    def _settle(self) -> None:
        """Forgets what the broker has, in the order of the journal."""
        freed = moved = False
        while self._chunks and not self._chunks[0].pending:
            chunk = self._chunks.popleft()
            self._held_records -= chunk.records
            self._held_bytes -= chunk.size
            freed |= chunk.stream.journal.acknowledge(chunk.end)
            if chunk.stream.own:
                self.sent += chunk.records
            else:
                self.replayed += chunk.records
            moved = True
        if not moved:
            return
        self._answered_at = time.monotonic()
        if self.last_error is not None:
            log.warning("events go out again")
            self.last_error = None
        if len(self._streams) > 1:
            self._drop_finished()
        self._moved(freed)

    # --- what dead instances left ------------------------------------------------------------------------------------

    def _seek(self) -> None:
        """Takes over journals of dead instances; they go out ahead of this one's next records."""
        self._sought_at = time.monotonic()
        try:
            found = take_over(self._spool)
        except OSError as error:
            self._complain(_named(error))
            return
        self._streams[-1:] = [*(_Stream(journal, own=False) for journal in found), self._own]
        self._drop_finished()

    def _drop_finished(self) -> None:
        for stream in self._streams[:-1]:
            journal = stream.journal
            if journal.acknowledged >= journal.end or (journal.read_all and not self._waiting(stream)):
                self.torn += journal.torn
                self.damaged_bytes += journal.damaged_bytes
                journal.acknowledge(max(journal.acknowledged, journal.end))
                journal.release()
                self._streams.remove(stream)
        self.leftover_bytes = sum(stream.journal.size for stream in self._streams[:-1])

    def _waiting(self, stream: _Stream) -> bool:
        return any(chunk.stream is stream for chunk in self._chunks)

    def _complain(self, error: str) -> None:
        if self.last_error is None:
            log.warning("events wait in the spool: %s", error)
        self.last_error = error


class _Failed(Exception):
    """The client gave a record back."""


def _named(error: Exception) -> str:
    if isinstance(error, KafkaException):
        return str(error.args[0].name())
    if isinstance(error, OSError):
        return f"{type(error).__name__}: {error.strerror}"
    return str(error) if isinstance(error, _Failed) else type(error).__name__
