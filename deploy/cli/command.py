"""An operator's command to a service: it travels over Kafka like every change of state, and names a person."""

from __future__ import annotations

import asyncio
import secrets
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, TypeVar

import click

from deploy.cli.ask import actor, ask
from deploy.cli.errors import Refused, Unavailable

if TYPE_CHECKING:
    from shared.contract.base import Event
    from shared.contract.topics import Topic

_POLL_SECONDS = 0.1
_F = TypeVar("_F", bound=Callable[..., Any])


@dataclass(frozen=True, slots=True)
class Who:
    """Who commands, why, how long to wait (seconds; 0 = not at all), and as what."""

    actor: str
    ticket: str
    timeout: float
    role: str = "operations"


def command_options(function: _F) -> _F:
    """The options of every command that changes something."""
    for option in (
        click.option("--timeout", type=click.FloatRange(min=0), default=60.0, show_default=True,
                     help="Seconds to wait until it is done; 0 does not wait."),
        click.option("--ticket", default="none", show_default=True, help="Why: a reference into your own records."),
        click.option("--actor", "by", help="Who asks  [default: STEWARD_ACTOR, or your user name]"),
    ):  # fmt: skip
        function = option(function)
    return function


def who(by: str | None, ticket: str, timeout: float, role: str = "operations") -> Who:
    """Raises UsageError for a name that is no id of the contract."""
    import re

    for name, value in (("--actor", by), ("--ticket", ticket)):
        if value is not None and re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9_.:-]{0,63}", value) is None:
            raise click.UsageError(f"{name}: letters, digits and _ . : - only, 64 at most, and no blank")
    return Who(by or actor(), ticket, timeout, role)


def order(
    known: Mapping[str, str], service: str, action: str, targets: Sequence[str], by: Who, *,
    ids: Sequence[str] | None = None, **arguments: str,
) -> None:  # fmt: skip
    """Sends one command for each target, and waits until the service has read them all (not: until it is done).

    `ids`: their ids as events, for whoever has to know them.
    """
    from shared.contract.topics import COMMANDS

    offset = asyncio.run(_send(known, service, action, targets, arguments, by, ids))
    if by.timeout:
        until(
            by.timeout,
            f"{service} has not read the command",
            lambda: read_up_to(known, service, COMMANDS.name) > offset,
        )


def until(timeout: float, trouble: str, condition: Callable[[], bool]) -> None:
    """Polls until `condition` holds. Ends the command after `timeout` seconds: what was asked for may still come."""
    end = time.monotonic() + timeout
    while not condition():
        if time.monotonic() >= end:
            raise Refused(f"{trouble} after {timeout:g} s; it stays ordered: see `steward status`")
        time.sleep(_POLL_SECONDS)


async def _send(
    known: Mapping[str, str], service: str, action: str, targets: Sequence[str], arguments: Mapping[str, str], by: Who,
    ids: Sequence[str] | None,
) -> int:  # fmt: skip
    from shared.contract import events, topics

    said = [
        {
            "service": service, "action": action, "target": target, "actor": by.actor, "role": by.role,
            "ticket": by.ticket, "arguments": dict(arguments),
        }
        for target in targets
    ]  # fmt: skip
    rows = [(service, data) for data in said]
    return await publish(known, topics.COMMANDS, events.OperatorCommand, service, rows, ids=ids)


def new_id() -> str:
    """An id for an event that happens now."""
    from shared.contract.ids import uuid7

    return uuid7(int(time.time() * 1000), secrets.randbits)


async def publish(
    known: Mapping[str, str], topic: Topic, model: type[Event], subject: str, said: Sequence[tuple[str, Any]], *,
    ids: Sequence[str] | None = None,
) -> int:  # fmt: skip
    """Sends an operator's events, (key, data) each, with these ids or new ones; returns the offset of the last one. Ends
    the command when the contract or Kafka does not take them: nothing is sent then that the contract does not know."""
    from aiokafka import AIOKafkaProducer
    from aiokafka.errors import KafkaError

    from shared.contract.base import Refused as Unfit
    from shared.contract.codec import build, validated
    from shared.mesh.settings import KafkaSettings

    at = time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime(time.time()))
    events = [
        (key, build(model, id=event_id, source="operator", subject=subject, time=at, data=data))
        for event_id, (key, data) in zip(ids or [new_id() for _ in said], said, strict=True)
    ]
    try:
        records = [(key, validated(model, raw)) for key, raw in events]
    except Unfit as error:
        raise click.UsageError(f"the contract does not know such a thing ({error.detail})") from None
    producer = AIOKafkaProducer(
        **KafkaSettings.from_env(known).client(), client_id="steward-command", enable_idempotence=True, acks="all"
    )
    try:
        await producer.start()
        offset = -1
        headers = [("content-type", b"application/cloudevents+json"), ("ce_source", b"operator")]
        for key, record in records:
            sent = await producer.send_and_wait(topic.name, record, key=key.encode(), headers=headers)
            offset = max(offset, sent.offset)
        return offset
    except KafkaError as error:
        raise Unavailable(f"Kafka did not take it ({type(error).__name__}): see `steward status`") from error
    finally:
        await producer.stop()


def read_up_to(known: Mapping[str, str], service: str, topic: str) -> int:
    """The offset before which the service has read a topic of one partition."""
    rows = ask(known, service, "cursors")
    return max((int(row["next_offset"]) for row in rows if row["topic"] == topic), default=-1)
