"""Spans: which records are linked, which spans are kept, what the local receiver keeps of them, and the way through them."""

from __future__ import annotations

import io
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from itertools import groupby
from pathlib import Path
from typing import Any

import pytest
from google.protobuf.message import DecodeError
from opentelemetry.context import Context
from opentelemetry.exporter.otlp.proto.common.trace_encoder import encode_spans
from opentelemetry.sdk.resources import Resource
from opentelemetry.sdk.trace import ReadableSpan, TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter
from opentelemetry.sdk.trace.sampling import ALWAYS_OFF, ALWAYS_ON, Decision, Sampler
from opentelemetry.trace import Link as Linked
from rich.console import Console

from deploy.cli.trace import page
from deploy.local import spans as kept
from deploy.local.spans import Link, Span, Ways
from deploy.local.traces_sink import Keeper
from shared.contract.topics import BALANCES, GENERATIONS, USAGE_RATED
from shared.mesh import tracing

GENERATED, RATED, TOLD = GENERATIONS.name, USAGE_RATED.name, BALANCES.name
GATEWAY = Link("4bf92f3577b34da6a3ce929d0e0e4736", "00f067aa0ba902b7")


@dataclass
class Taken:
    """A record as the Kafka client has it."""

    partition: int
    offset: int
    headers: list[tuple[str, bytes | None]] = field(default_factory=list)


def came(offset: int, trace: int | None = None, *, sampled: bool = True, partition: int = 0) -> Taken:
    header = f"00-{trace:032x}-{trace:016x}-{'01' if sampled else '00'}".encode() if trace else b"card 4111 1111"
    return Taken(partition, offset, [("x", None), ("traceparent", header)])


@pytest.fixture
def traced() -> Iterator[Any]:
    """Starts tracing with a sampler for what begins; returns where the spans will be."""
    exporter = InMemorySpanExporter()

    def start(begins: Sampler = ALWAYS_ON) -> InMemorySpanExporter:
        provider = TracerProvider(
            sampler=tracing.FollowsLinks(begins), resource=Resource({"service.name": "steward-metering"})
        )
        provider.add_span_processor(SimpleSpanProcessor(exporter))
        tracing.use_provider(provider)
        return exporter

    yield start
    tracing.stop()


def batch(records: Sequence[Taken]) -> str | None:
    parts = [list(part) for _, part in groupby(records, key=lambda record: record.partition)]
    with tracing.batch_span(GENERATED, "steward.metering.x", parts) as traceparent:
        return traceparent


def test_links_are_few_each_once_and_those_that_are_kept_come_first(traced: Any) -> None:
    exporter = traced()
    batch([came(n, 1 + n % 3, sampled=False) for n in range(100)] + [came(100 + n, 100 + n // 2) for n in range(80)])
    (span,) = exporter.get_finished_spans()
    assert [link.context.trace_id for link in span.links] == [100 + n for n in range(tracing.MAX_LINKS)]
    batch([came(0), came(1, 7), came(2, 7), came(3, 8, sampled=False)])
    assert [link.context.trace_id for link in exporter.get_finished_spans()[1].links] == [7, 8]


def test_names_and_attributes_are_opentelemetrys_and_say_the_place(traced: Any) -> None:
    exporter = traced()
    batch([came(7, partition=2), came(8, partition=2)])
    batch([came(7, partition=2), came(9, partition=2), came(0, partition=3)])
    one, two = exporter.get_finished_spans()
    assert one.name == f"process {GENERATED}"
    assert dict(one.attributes) == {
        "messaging.system": "kafka", "messaging.operation.type": "process", "messaging.operation.name": "process",
        "messaging.destination.name": GENERATED, "messaging.consumer.group.name": "steward.metering.x",
        "messaging.batch.message_count": 2, "messaging.destination.partition.id": "2", tracing.OFFSETS: ("2:7-8",),
    }  # fmt: skip
    assert two.attributes[tracing.OFFSETS] == ("2:7-9", "3:0-0")
    assert "messaging.destination.partition.id" not in two.attributes


@pytest.mark.parametrize(
    ("begins", "records", "is_kept"),
    [
        (ALWAYS_OFF, [came(0, 1)], True),
        (ALWAYS_OFF, [came(0, 1, sampled=False), came(1, 2)], True),
        (ALWAYS_ON, [came(0, 1, sampled=False)], False),
        (ALWAYS_ON, [came(0)], True),
        (ALWAYS_OFF, [came(0)], False),
    ],
)
def test_what_continues_a_kept_trace_is_kept_and_what_begins_one_is_drawn(
    traced: Any, begins: Sampler, records: list[Taken], is_kept: bool
) -> None:
    exporter = traced(begins)
    traceparent = batch(records)
    sending = tracing.Sending([{"traceparent": traceparent, "topic": RATED}])
    went = tracing.parse_traceparent(sending.traceparent({"traceparent": traceparent, "topic": RATED}))
    sending.end(None)
    assert [span.name for span in exporter.get_finished_spans()] == (
        [f"process {GENERATED}", f"send {RATED}"] if is_kept else []
    )
    assert went is not None and went.trace_flags.sampled is is_kept, "and the next service is told"


def test_one_kept_link_is_enough_wherever_it_stands() -> None:
    contexts = [tracing.parse_traceparent(f"00-{n:032x}-{n:016x}-0{n - 1}") for n in (1, 2)]
    links = [Linked(context) for context in contexts if context is not None]
    assert len(links) == 2
    decided = tracing.FollowsLinks(ALWAYS_OFF).should_sample(Context(), 3, "process", links=links)
    assert decided.decision is Decision.RECORD_AND_SAMPLE


def test_without_tracing_a_row_keeps_what_it_has(traced: Any) -> None:
    old = f"00-{1:032x}-{1:016x}-01"
    assert batch([came(0, 1)]) is None
    assert (
        tracing.Sending([{"traceparent": old, "topic": RATED}]).traceparent({"traceparent": old, "topic": RATED}) == old
    )
    traced()
    assert tracing.Sending([]).traceparent({"traceparent": None, "topic": RATED}) is None


def exported(made: Sequence[ReadableSpan]) -> bytes:
    body: bytes = encode_spans(made).SerializeToString()
    return body


def test_the_receiver_keeps_spans_as_they_are_and_no_more_than_its_bound(traced: Any, tmp_path: Path) -> None:
    exporter = traced()
    traceparent = batch([came(7, 5, partition=2)])
    sending = tracing.Sending([{"traceparent": traceparent, "topic": RATED}])
    sending.end(ConnectionError("203.0.113.7"))
    body = exported(exporter.get_finished_spans())
    keeper = Keeper(tmp_path, bytes_max=20_000)
    assert keeper.keep(body) == 2
    process, send = kept.read(tmp_path)
    assert (process.service, process.name, process.links) == (
        "metering", f"process {GENERATED}", [Link(f"{5:032x}", f"{5:016x}")]
    )  # fmt: skip
    assert process.holds(GENERATED, 2, 7) and not process.holds(GENERATED, 2, 8) and not process.holds(RATED, 2, 7)
    assert send.failed and send.attributes["error.type"] == "ConnectionError" and send.parent_id == process.span_id
    assert process.end_ns >= process.start_ns > 10**18 and not process.failed
    for _ in range(100):
        keeper.keep(body)
    files = sorted(tmp_path.iterdir())
    assert [path.name for path in files] == [kept.FILE, kept.OLD]
    assert all(path.stat().st_size <= 20_000 and path.stat().st_mode & 0o777 == 0o600 for path in files)
    with files[0].open("ab") as file:
        file.write(b'{"trace_id": "half a li')
    assert len(kept.read(tmp_path)) == 2, "the same spans again are the same, and half a line is none"
    with pytest.raises(DecodeError):
        keeper.keep(b"no protobuf")


def span(
    number: int, name: str, *, parent: int | None = None, links: Sequence[Link] = (), trace: int = 1, service: str = "x",
    start: int = 0, took: int = 10, offsets: Sequence[str] = (),
) -> Span:  # fmt: skip
    operation, topic = name.split(" ")
    return Span(
        f"{trace:032x}", f"{number:016x}", None if parent is None else f"{parent:016x}", service, name,
        start * 10**6, (start + took) * 10**6, False,
        {
            "messaging.operation.type": operation, "messaging.destination.name": topic, "messaging.batch.message_count": 1,
            tracing.OFFSETS: list(offsets),
        },
        list(links), [],
    )  # fmt: skip


def chain() -> list[Span]:
    """An event's way: metering, billing by a link; and a second batch of billing's that comes of two."""
    rated = Link(f"{1:032x}", f"{2:016x}")
    return [
        span(1, f"process {GENERATED}", links=[GATEWAY], service="metering", offsets=["4:0-9"]),
        span(2, f"send {RATED}", parent=1, service="metering", start=12),
        span(3, f"process {RATED}", trace=2, links=[rated], service="billing", start=25, took=1500),
        span(4, f"send {TOLD}", parent=3, trace=2, service="billing", start=1530),
        span(5, f"process {GENERATED}", trace=3, service="metering", start=2000),
        span(6, f"process {RATED}", trace=4, links=[rated, Link(f"{3:032x}", f"{5:016x}")], service="audit", start=30),
    ]


def names(steps: Sequence[Any]) -> list[Any]:
    return [[int(step.span.span_id, 16), *names(step.after)] for step in steps]


def test_a_trace_is_followed_over_links_from_wherever_it_is_known() -> None:
    ways = Ways(chain())
    whole = [[1, [2, [3, [4]], [6]]]]
    assert names(ways.steps(ways.of_trace(GATEWAY.trace_id))) == whole
    assert names(ways.steps(ways.of_trace(f"{1:032x}"))) == whole
    assert names(ways.steps(ways.of_trace(f"{2:032x}"))) == [[3, [4]]]
    assert names(ways.steps(ways.of_record(GENERATED, 4, 9, None))) == whole, "by its place, without a link"
    assert names(ways.steps(ways.of_record(GENERATED, 4, 10, GATEWAY))) == whole, "by its link"
    assert ways.of_record(GENERATED, 4, 10, None) == [] and ways.of_trace(f"{9:032x}") == []
    assert names(ways.steps(ways.newest([GENERATED]))) == [[5, [6]]]
    assert ways.newest([TOLD]) == []


def test_what_several_lead_to_stands_once_with_what_followed() -> None:
    sent = [Link(f"{1:032x}", f"{n:016x}") for n in (2, 7)]
    both = [
        *chain()[:2], span(7, f"send {RATED}", parent=1, start=13),
        span(3, f"process {RATED}", trace=2, links=sent, start=25), span(4, f"send {TOLD}", parent=3, trace=2, start=30),
    ]  # fmt: skip
    ways = Ways(both)
    steps = ways.steps(ways.of_trace(GATEWAY.trace_id))
    assert names(steps) == [[1, [2, [3, [4]]], [7, [3]]]]
    assert [step.again for step in steps[0].after[1].after] == [True]


@pytest.mark.parametrize("width", [80, 120])
def test_the_page_is_a_tree_that_a_person_can_read(width: int) -> None:
    ways = Ways(chain())
    console = Console(width=width, file=io.StringIO(), highlight=False)
    for part in page("the newest batch", ways.steps(ways.of_trace(GATEWAY.trace_id)), width):
        console.print(part)
    assert isinstance(console.file, io.StringIO)
    shown = [line.rstrip() for line in console.file.getvalue().splitlines()]
    tree = [re.match(r"\W*\w*", line) for line in shown[3:8]]
    assert [found[0] if found else "" for found in tree] == [
        "metering", "└─ metering", "   ├┄ billing", "   │  └─ billing", "   └┄ audit"
    ]  # fmt: skip
    assert shown[1] == f"from the gateway's trace {GATEWAY.trace_id}" and shown[2].startswith("span")
    assert "+25.0 ms" in shown[5] and "1.50 s" in shown[5]
    assert shown[8].startswith("5 spans, 3 services, 1.54 s in all")
    assert ("━" in "".join(shown)) is (width == 120) and all(len(line) <= width for line in shown)
