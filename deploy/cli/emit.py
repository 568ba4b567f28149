"""`steward emit FILE`: events from a file to the mesh, each checked against the contract first."""

from __future__ import annotations

import asyncio
import json
import sys
import tempfile
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import IO, Any, NamedTuple

import click

from deploy.cli.ask import settings
from deploy.cli.errors import NO, Unavailable

_SHOWN = 20
_IN_FLIGHT = 2_000


class Bad(NamedTuple):
    """A line that is no event of the gateway's: its number, from 1, and why in words that repeat no value."""

    line: int
    reason: str
    detail: str


class Good(NamedTuple):
    """A line as a Kafka record."""

    topic: str
    key: bytes
    value: bytes
    headers: list[tuple[str, bytes]]


@dataclass(slots=True)
class Outcome:
    """What became of a file."""

    sent: Counter[str] = field(default_factory=Counter)
    bad: list[Bad] = field(default_factory=list)
    held_back: int = 0

    def as_dict(self) -> dict[str, Any]:
        """For programs."""
        return {
            "sent": self.sent.total(),
            "topics": dict(self.sent),
            "held_back": self.held_back,
            "bad": [bad._asdict() for bad in self.bad],
        }

    def text(self) -> str:
        """For people."""
        where = ", ".join(f"{n:,} to {topic}" for topic, n in sorted(self.sent.items()))
        said = [f"{self.sent.total():,} events sent{f' ({where})' if where else ''}"]
        if self.bad:
            said.append(f"{len(self.bad):,} bad lines")
        if self.held_back:
            said.append(f"{self.held_back:,} good ones held back (--all-or-nothing)")
        return ", ".join(said)


class Reader:
    """Turns lines into records. `lines` may be read once more by making another one."""

    def __init__(self) -> None:
        from shared.contract.codec import Codec
        from shared.contract.topics import TOPICS

        self._topics = {model.TYPE: topic for topic in TOPICS for model in topic.events}
        self._codecs = {topic.name: Codec(topic) for topic in TOPICS}
        self._names = {kind.rpartition(".v")[0]: kind for kind in self._topics}

    def read(self, lines: Iterable[bytes]) -> Iterator[Good | Bad]:
        """Each line's record, or what is wrong with it. Blank lines are no lines."""
        for number, line in enumerate(lines, start=1):
            # Some editors begin a file with a byte order mark.
            raw = (line.removeprefix(b"\xef\xbb\xbf") if number == 1 else line).strip()
            if raw:
                yield self._one(number, raw)

    def _one(self, number: int, raw: bytes) -> Good | Bad:
        import msgspec

        from shared.contract.base import NewerVersion, Refused
        from shared.mesh.relay import MAX_RECORD_BYTES
        from shared.mesh.tracing import traceparent_of

        if len(raw) > MAX_RECORD_BYTES:
            return Bad(number, "too_large", f"{len(raw)} bytes; a record has at most {MAX_RECORD_BYTES}")
        try:
            document = msgspec.json.decode(raw)
        except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
            return Bad(number, "malformed", f"not a JSON document ({_where(error)})")
        kind = document.get("type") if isinstance(document, dict) else None
        if not isinstance(kind, str):
            return Bad(number, "unknown_type", "no CloudEvents `type`")
        topic = self._topics.get(kind)
        if topic is None:
            known = self._names.get(kind.rpartition(".v")[0])
            return Bad(
                number, "unknown_type", f"this contract knows {known}" if known else "no topic carries this event type"
            )
        if "gateway" not in topic.writers:
            return Bad(number, "not_the_gateways", f"only {' and '.join(topic.writers)} may write {topic.name}")
        try:
            event = self._codecs[topic.name].decode(raw)
        except Refused as error:
            return Bad(number, error.reason, error.detail)
        except NewerVersion as error:
            return Bad(number, "newer_version", str(error))
        assert topic.key_of is not None, "the gateway's topics have keys"
        headers = [("content-type", b"application/cloudevents+json"), ("ce_source", event.source.encode())]
        # As a gateway does that traces its requests: `steward trace --event` finds the event by it.
        headers.append(("traceparent", traceparent_of(event.id).encode()))
        if event.sequence is not None:
            headers.append(("ce_sequence", event.sequence.encode()))
        return Good(topic.name, topic.key_of(event).encode(), raw, headers)


def _where(error: Exception) -> str:
    text = str(error)
    return text if "byte" in text and len(text) < 120 else type(error).__name__


async def send(known: Mapping[str, str], records: Iterable[Good]) -> Counter[str]:
    """Sends records, each acknowledged by Kafka in the end; returns how many went where."""
    from aiokafka import AIOKafkaProducer

    from shared.mesh.relay import MAX_RECORD_BYTES
    from shared.mesh.settings import KafkaSettings

    sent: Counter[str] = Counter()
    producer = AIOKafkaProducer(
        **KafkaSettings.from_env(known).client(), client_id="steward-emit", enable_idempotence=True, acks="all",
        compression_type="zstd", linger_ms=5, max_batch_size=128 * 1024, max_request_size=MAX_RECORD_BYTES,
    )  # fmt: skip
    try:
        await producer.start()
        await _produce(producer, records, sent)
    finally:
        await producer.stop()
    return sent


async def _produce(producer: Any, records: Iterable[Good], sent: Counter[str]) -> None:
    from aiokafka.errors import KafkaError

    waiting: list[asyncio.Future[Any]] = []
    try:
        for record in records:
            waiting.append(await producer.send(record.topic, record.value, key=record.key, headers=record.headers))
            sent[record.topic] += 1
            if len(waiting) >= _IN_FLIGHT:
                await _acknowledged(waiting)
        await _acknowledged(waiting)
    except KafkaError as error:
        raise Unavailable(
            f"Kafka did not take everything ({type(error).__name__}): send the file again, what arrived counts once"
        ) from error


async def _acknowledged(waiting: list[asyncio.Future[Any]]) -> None:
    """Waits for all, so that none is left behind when one has failed; then that failure is raised."""
    outcomes = await asyncio.gather(*waiting, return_exceptions=True)
    waiting.clear()
    for outcome in outcomes:
        if isinstance(outcome, BaseException):
            raise outcome


@click.command(epilog="Example: steward emit events.jsonl   (or: my-gateway | steward emit -)")
@click.argument("file", type=click.File("rb"))
@click.option("--all-or-nothing", is_flag=True, help="Send nothing if any line is bad.")
@click.option("--dry-run", is_flag=True, help="Check only.")
@click.option("--json", "as_json", is_flag=True, help="For programs.")
def emit(file: IO[bytes], all_or_nothing: bool, dry_run: bool, as_json: bool) -> None:
    """Send events from a file, each checked against the contract.

    FILE holds the gateway's events, one CloudEvents JSON document a line; - is the standard input. The topic follows
    from the event's type. A line that is no event is left out and told, with its number and
    the reason; the others are sent. Send a file twice and nothing happens twice: events keep their ids.

    Exit code 1 when any line was bad, 3 when Kafka cannot be reached.
    """
    outcome = Outcome()
    if all_or_nothing or dry_run:
        with _twice(file) as again:
            good = sum(1 for _ in _sift(Reader().read(again), outcome))
            if dry_run or outcome.bad:
                outcome.held_back = good
            else:
                again.seek(0)
                outcome.sent = asyncio.run(send(settings(), _sift(Reader().read(again), outcome)))
    else:
        outcome.sent = asyncio.run(send(settings(), _sift(Reader().read(file), outcome)))
    if as_json:
        click.echo(json.dumps(outcome.as_dict(), indent=2))
    else:
        for bad in outcome.bad[:_SHOWN]:
            click.echo(f"line {bad.line}: {bad.reason}: {bad.detail}", err=True)
        if len(outcome.bad) > _SHOWN:
            click.echo(f"... and {len(outcome.bad) - _SHOWN:,} more (all of them with --json)", err=True)
        if dry_run:
            click.echo(f"{outcome.held_back:,} events are fine, {len(outcome.bad):,} lines are bad; nothing was sent")
        else:
            click.echo(outcome.text())
    if outcome.bad:
        sys.exit(NO)


def _sift(read: Iterable[Good | Bad], outcome: Outcome) -> Iterator[Good]:
    """The good lines; the bad ones are noted."""
    for line in read:
        if isinstance(line, Bad):
            outcome.bad.append(line)
        else:
            yield line


def _twice(file: IO[bytes]) -> IO[bytes]:
    """A file that can be read again: a pipe is copied to the disk first."""
    if file.seekable():
        return file
    copy = tempfile.TemporaryFile()  # noqa: SIM115 -- the caller closes it
    while block := file.read(1 << 20):
        copy.write(block)
    copy.seek(0)
    return copy
