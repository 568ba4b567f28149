"""`steward trace`: what came of an event, service by service, from the spans that `steward up --observe` keeps."""

from __future__ import annotations

import asyncio
import json
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import click

from deploy.cli.ask import settings
from deploy.cli.errors import Refused, Unavailable
from deploy.local import env

if TYPE_CHECKING:
    from rich.console import RenderableType

    from deploy.local.spans import Link, Span, Step

_SEARCH_SECONDS = 60.0
_BAR = 24
_WIDE = 108
_COLOURS = ("cyan", "magenta", "green", "yellow", "blue", "red")


@dataclass(frozen=True, slots=True)
class Found:
    """A record of the event asked for: where it lies, and what its header says of where it came from."""

    topic: str
    partition: int
    offset: int
    before: Link | None


@click.command(epilog="Example: steward trace --event 019ab7d4-1e5a-7f00-8a1b-2c3d4e5f6a7b")
@click.argument("trace_id", metavar="[TRACE_ID]", required=False)
@click.option("--event", metavar="ID", help="What came of the event with this id.")
@click.option("--last", is_flag=True, help="What came of the newest batch of the gateway's  [default].")
@click.option("--json", "as_json", is_flag=True, help="For programs: the spans, in the order of their starts.")
def trace(trace_id: str | None, event: str | None, last: bool, as_json: bool) -> None:
    """Show what came of an event: which service took it when, and what it sent on.

    TRACE_ID is a trace of the gateway's (the middle of the `traceparent` that it sent) or of the mesh's own, as the services'
    logs have it. A service takes events in batches: what is shown of an event is what happened to its batch. Needs a
    stack that was started with --observe.

    Exit code 1 when there is no such trace (any more), 3 when none are kept here.
    """
    if (trace_id is not None) + (event is not None) + last > 1:
        raise click.UsageError("one of TRACE_ID, --event and --last")
    if trace_id is not None and re.fullmatch(r"[0-9a-f]{32}", trace_id) is None:
        raise click.UsageError("TRACE_ID: 32 hexadecimal digits")
    from rich.console import Console

    from deploy.local import spans

    folder = env.home() / "traces"
    if not folder.is_dir():
        raise Unavailable(f"no traces are kept in {env.home()}: start the stack with `steward up --observe`")
    ways = spans.Ways(spans.read(folder))
    title, begins = _asked(ways, trace_id, event)
    steps = ways.steps(begins)
    if as_json:
        import msgspec

        shown = sorted({span.at: span for span in spans.walk(steps)}.values(), key=lambda span: span.start_ns)
        click.echo(json.dumps([msgspec.to_builtins(span) for span in shown], indent=2))
        return
    console = Console(highlight=False)
    for part in page(title, steps, console.width):
        console.print(part)


def _asked(ways: Any, trace_id: str | None, event: str | None) -> tuple[str, list[Span]]:
    """What is shown, and the spans that it begins with. Raises Refused when there are none."""
    from shared.contract.topics import TOPICS
    from shared.mesh.tracing import traceparent_of

    gateways = [topic for topic in TOPICS if "gateway" in topic.writers]
    if trace_id is not None:
        title, begins = f"trace {trace_id}", ways.of_trace(trace_id)
        missing = f"no span of trace {trace_id} is kept here: was it sampled, and is it recent?"
    elif event is not None:
        title, begins = f"event {event}", ways.of_trace(traceparent_of(event).split("-")[1])
        missing = ""
        if not begins:
            # Not sent by `steward emit`, or in a batch that links to others: its record's place tells, while it is there.
            found = asyncio.run(find(settings(), [topic.name for topic in gateways], event))
            if found is None:
                raise Refused(
                    f"no batch links to event {event}, and no record of it lies in the gateway's topics (any more): ask by the "
                    "gateway's trace, or sooner"
                )
            title += f": {found.topic}, partition {found.partition}, offset {found.offset}"
            begins = ways.of_record(found.topic, found.partition, found.offset, found.before)
            missing = f"{title}: no span of its batch is kept here"
    else:
        title, begins = "the newest batch of the gateway's", ways.newest(topic.name for topic in gateways)
        missing = "no batch of the gateway's was traced yet: send an event (`steward emit`)"
    if not begins:
        raise Refused(missing)
    return title, begins


async def find(known: Mapping[str, str], topics: Sequence[str], event: str) -> Found | None:
    """The first record with this event id in `topics`, looked for from their start."""
    from aiokafka import AIOKafkaConsumer
    from aiokafka.errors import KafkaError

    from deploy.local.spans import Link
    from shared.mesh.admin import end_offsets
    from shared.mesh.settings import KafkaSettings
    from shared.mesh.tracing import parse_traceparent

    kafka = KafkaSettings.from_env(known)
    wanted = event.encode()
    consumer = AIOKafkaConsumer(**kafka.client(), group_id=None, enable_auto_commit=False)
    try:
        await consumer.start()
    except KafkaError as error:
        raise Unavailable(f"Kafka at {kafka.bootstrap_servers} cannot be reached ({type(error).__name__})") from error
    try:
        left = {tp: end for tp, (begin, end) in (await end_offsets(kafka, topics)).items() if end > begin}
        if not left:
            return None
        consumer.assign(list(left))
        await consumer.seek_to_beginning(*left)
        async with asyncio.timeout(_SEARCH_SECONDS):
            while left:
                for tp, records in (await consumer.getmany(*left, timeout_ms=200)).items():
                    for record in records:
                        if record.value and wanted in record.value and _id(record.value) == event:
                            header = dict(record.headers).get("traceparent") or b""
                            context = parse_traceparent(header.decode("ascii", "replace"))
                            before = context and Link(f"{context.trace_id:032x}", f"{context.span_id:016x}")
                            return Found(tp.topic, tp.partition, record.offset, before)
                for tp in [tp for tp, end in left.items() if await consumer.position(tp) >= end]:
                    del left[tp]
        return None
    except TimeoutError:
        raise Refused(
            f"the topics could not be looked through within {_SEARCH_SECONDS:.0f} s; ask by the TRACE_ID instead"
        ) from None
    finally:
        await consumer.stop()


def _id(value: bytes) -> str | None:
    try:
        document = json.loads(value)
    except ValueError:
        return None
    return document.get("id") if isinstance(document, dict) else None


def page(title: str, steps: Sequence[Step], width: int) -> Iterator[RenderableType]:
    """The tree, a line a span: service, what it did, when after the beginning, for how long; and where there is room, a
    picture of that and the start of its trace's id, by which the services' logs have it."""
    from rich.table import Table
    from rich.text import Text

    from deploy.local.spans import walk

    all_spans = list(walk(steps))
    begin = min(span.start_ns for span in all_spans)
    end = max(span.end_ns for span in all_spans)
    services = list(dict.fromkeys(span.service for span in all_spans))
    colours = {service: _COLOURS[n % len(_COLOURS)] for n, service in enumerate(services)}
    yield Text(title, style="bold")
    wide = width >= _WIDE
    ours = {span.trace_id for span in all_spans}
    outside = list(
        dict.fromkeys(link.trace_id for step in steps for link in step.span.before if link.trace_id not in ours)
    )
    if outside and not title.startswith(("trace", "event")):
        more = f" and {len(outside) - 1} more" if len(outside) > 1 else ""
        yield Text(f"from the gateway's trace {outside[0]}{more}", style="dim")
    table = Table(box=None, pad_edge=False, padding=(0, 2, 0, 0), header_style="dim")
    table.add_column("span", no_wrap=True)
    for column in ("records", "after", "took"):
        table.add_column(column, no_wrap=True, justify="right")
    if wide:
        table.add_column("", no_wrap=True)
        table.add_column("trace", no_wrap=True, style="dim")
    for guide, step in _lines(steps):
        span, colour = step.span, colours[step.span.service]
        name = Text(guide, style="dim")
        name.append(span.service, style=f"bold {colour}").append(f"  {span.name}")
        if span.failed:
            name.append(f"  failed: {span.attributes.get('error.type', 'error')}", style="bold red")
        if step.again:
            name.append("  (and on, as above)", style="dim")
        count = span.attributes.get("messaging.batch.message_count")
        cells: list[RenderableType] = [
            name,
            "" if count is None else f"{count:,}",
            f"+{_duration(span.start_ns - begin)}",
            _duration(span.end_ns - span.start_ns),
        ]
        if wide:
            cells += [Text(_bar(span, begin, end), style="red" if span.failed else colour), span.trace_id[:8]]
        table.add_row(*cells)
    yield table
    followed = sum(1 for guide, _ in _lines(steps) if "┄" in guide)
    legend = "; ┄ a link between batches" if followed else ""
    yield Text(
        f"{len(all_spans)} spans, {len(services)} services, {_duration(end - begin)} in all{legend}", style="dim"
    )


def _lines(steps: Sequence[Step], indent: str = "", before: Span | None = None) -> Iterator[tuple[str, Step]]:
    """Each step with the lines that lead to it."""
    for n, step in enumerate(steps):
        last = n == len(steps) - 1
        if before is None:
            yield "", step
            yield from _lines(step.after, "", step.span)
            continue
        dash = "─" if step.span.parent_id == before.span_id and step.span.trace_id == before.trace_id else "┄"
        yield f"{indent}{'└' if last else '├'}{dash} ", step
        yield from _lines(step.after, indent + ("   " if last else "│  "), step.span)


def _bar(span: Span, begin: int, end: int) -> str:
    """Where the span lies between the first start and the last end."""
    whole = max(1, end - begin)
    first = min(_BAR - 1, (span.start_ns - begin) * _BAR // whole)
    length = max(1, round((span.end_ns - span.start_ns) * _BAR / whole))
    return " " * first + "━" * min(length, _BAR - first)


def _counted(n: int, what: str) -> str:
    return f"{n} {what}{'' if n == 1 else 's'}"


def _duration(ns: int) -> str:
    ms = ns / 1e6
    return f"{ms:.1f} ms" if ms < 1000 else f"{ms / 1000:.2f} s" if ms < 60_000 else f"{ms / 60_000:.1f} min"
