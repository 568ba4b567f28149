"""Spans: one for each batch that is processed, one for what each batch sends; the context travels through the outbox.

A batch comes of many traces. Its span begins one of its own and *links* to a bounded number of its records' spans; what it
sends is its child, and stands in the headers of the records that go out. Names and attributes are OpenTelemetry's for
messaging. No span holds a key, an id or a text: the place of a record in its topic says which one it was.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from itertools import islice
from typing import Any

from opentelemetry import trace
from opentelemetry.context import Context
from opentelemetry.sdk.resources import Resource
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.sampling import Decision, Sampler, SamplingResult
from opentelemetry.trace import Link, NonRecordingSpan, Span, SpanContext, SpanKind, Status, StatusCode, TraceFlags

MAX_LINKS = 32
# So many records of a batch are asked for their context, evenly spread: the price of tracing must not grow with the batch.
_ASKED = 256
# With its retries. A process that ends waits for its last export: a collector that is away must not use up the drain.
_EXPORT_SECONDS = 3.0
OFFSETS = "steward.offsets"
"""Attribute: the records of a batch, `partition:first-last` each. So a record's span is found that is not linked."""

_tracer = trace.get_tracer("steward.mesh")
_enabled = False


class FollowsLinks(Sampler):
    """Keeps what continues a kept trace, by parent or by link; what begins one is for `begins` to decide.

    Without it each batch would be drawn anew, and hardly any way through several services would be whole.
    """

    def __init__(self, begins: Sampler) -> None:
        self._begins = begins

    def should_sample(
        self, parent_context: Context | None, trace_id: int, name: str, kind: SpanKind | None = None,
        attributes: Any = None, links: Sequence[Link] | None = None, trace_state: Any = None,
    ) -> SamplingResult:  # fmt: skip
        """The SDK's hook."""
        parent = trace.get_current_span(parent_context).get_span_context()
        before = [parent] if parent.is_valid else [link.context for link in links or ()]
        if before:
            kept = any(context.trace_flags.sampled for context in before)
            return SamplingResult(Decision.RECORD_AND_SAMPLE if kept else Decision.DROP, attributes)
        return self._begins.should_sample(parent_context, trace_id, name, kind, attributes, links, trace_state)

    def get_description(self) -> str:
        """The SDK's hook."""
        return f"FollowsLinks({self._begins.get_description()})"


def setup(service: str) -> None:
    """Exports spans when OTEL_EXPORTER_OTLP_ENDPOINT is set; otherwise tracing costs nothing.

    Bounded by batches, not by events, and by the SDK's queue. OTEL_TRACES_SAMPLER and its argument decide over traces that
    begin here; what a gateway began is kept or not as its `traceparent` says.
    """
    if not os.environ.get("OTEL_EXPORTER_OTLP_ENDPOINT"):
        return
    from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
    from opentelemetry.sdk.trace.export import BatchSpanProcessor

    provider = TracerProvider(resource=Resource.create({"service.name": f"steward-{service}"}))
    provider.sampler = FollowsLinks(provider.sampler)
    own = None if os.environ.get("OTEL_EXPORTER_OTLP_TIMEOUT") else _EXPORT_SECONDS
    provider.add_span_processor(BatchSpanProcessor(OTLPSpanExporter(timeout=own)))
    trace.set_tracer_provider(provider)
    use_provider(provider)


def use_provider(provider: TracerProvider) -> None:
    """Traces to `provider` from now on."""
    global _enabled, _tracer
    _tracer, _enabled = provider.get_tracer("steward.mesh"), True


def stop() -> None:
    """No more spans."""
    global _enabled
    _enabled = False


def current() -> SpanContext | None:
    """The context of the span that this runs in; None outside of spans, and always while tracing is off."""
    if not _enabled:
        return None
    context = trace.get_current_span().get_span_context()
    return context if context.is_valid else None


@contextmanager
def batch_span(topic: str, group: str, parts: Sequence[Sequence[Any]]) -> Iterator[str | None]:
    """A consumer span over one batch, linked to at most `MAX_LINKS` of its records' spans; yields its traceparent.

    `parts`: the records of each partition, in order. An error leaves its type, never its text.
    """
    if not _enabled:
        yield None
        return
    attributes: dict[str, Any] = {
        "messaging.system": "kafka",
        "messaging.operation.type": "process",
        "messaging.operation.name": "process",
        "messaging.destination.name": topic,
        "messaging.consumer.group.name": group,
        "messaging.batch.message_count": sum(map(len, parts)),
        OFFSETS: [f"{records[0].partition}:{records[0].offset}-{records[-1].offset}" for records in parts],
    }
    if len(parts) == 1:
        attributes["messaging.destination.partition.id"] = str(parts[0][0].partition)
    with _tracer.start_as_current_span(
        f"process {topic}",
        # Nothing around it: a batch that another one waits for would else seem to be its child.
        context=Context(),
        kind=SpanKind.CONSUMER,
        links=[Link(context) for context in _contexts(parts)],
        attributes=attributes,
        # The text of a database's error holds the row.
        record_exception=False,
        set_status_on_exception=False,
    ) as span:
        try:
            yield _traceparent(span)
        except BaseException as error:
            _failed(span, error)
            raise


class Sending:
    """The spans of records on their way to Kafka: one for each batch that they come from and topic that they go to."""

    def __init__(self, rows: Iterable[Any]) -> None:
        self._spans: dict[tuple[str, str], Span] = {}
        counts: dict[tuple[str, str], int] = {}
        for row in rows if _enabled else ():
            if row["traceparent"]:
                key = (row["traceparent"], row["topic"])
                counts[key] = counts.get(key, 0) + 1
        for (traceparent, topic), n in counts.items():
            parent = parse_traceparent(traceparent)
            if parent is not None:
                self._spans[traceparent, topic] = _tracer.start_span(
                    f"send {topic}",
                    context=trace.set_span_in_context(NonRecordingSpan(parent), Context()),
                    kind=SpanKind.PRODUCER,
                    attributes={
                        "messaging.system": "kafka",
                        "messaging.operation.type": "send",
                        "messaging.operation.name": "send",
                        "messaging.destination.name": topic,
                        "messaging.batch.message_count": n,
                    },
                )

    def traceparent(self, row: Any) -> str | None:
        """What the row's record says of where it comes from: its span, or what the outbox kept."""
        kept: str | None = row["traceparent"]
        span = self._spans.get((kept, row["topic"])) if kept and self._spans else None
        return kept if span is None else _traceparent(span)

    def end(self, error: BaseException | None) -> None:
        """All are acknowledged, or one of them is not."""
        for span in self._spans.values():
            if error is not None:
                _failed(span, error)
            span.end()


def traceparent_of(event_id: str) -> str:
    """The `traceparent` of whoever sends an event and records no span of its own: whoever knows the id finds the trace.

    A hash, since no span holds an id.
    """
    digest = hashlib.sha256(b"steward trace of event " + event_id.encode()).hexdigest()
    return f"00-{digest[:32]}-{digest[32:48]}-01"


def parse_traceparent(value: str | None) -> SpanContext | None:
    """The span context of a W3C `traceparent`, or None if it is not one."""
    parts = (value or "").split("-")
    if len(parts) != 4 or [len(p) for p in parts] != [2, 32, 16, 2]:
        return None
    try:
        numbers = [int(part, 16) for part in parts]
    except ValueError:
        return None
    context = SpanContext(numbers[1], numbers[2], is_remote=True, trace_flags=TraceFlags(numbers[3]))
    return context if context.is_valid else None


def _traceparent(span: Span) -> str | None:
    context = span.get_span_context()
    if not context.is_valid:  # the SDK is switched off
        return None
    return f"00-{context.trace_id:032x}-{context.span_id:016x}-{int(context.trace_flags):02x}"


def _failed(span: Span, error: BaseException) -> None:
    span.set_attribute("error.type", type(error).__name__)
    span.set_status(Status(StatusCode.ERROR))


def _contexts(parts: Sequence[Sequence[Any]]) -> list[SpanContext]:
    """The contexts to link: each once, those that are kept before those that are not."""
    step = max(1, sum(map(len, parts)) // _ASKED)
    kept: dict[str, SpanContext] = {}
    others: dict[str, SpanContext] = {}
    for record in islice((record for records in parts for record in records[::step]), _ASKED):
        text = _header(record.headers, "traceparent")
        if text is None or text in kept or text in others or (len(others) == MAX_LINKS and text.endswith("00")):
            continue
        context = parse_traceparent(text)
        if context is not None:
            (kept if context.trace_flags.sampled else others)[text] = context
            if len(kept) == MAX_LINKS:
                break
    return [*kept.values(), *others.values()][:MAX_LINKS]


def _header(headers: Sequence[tuple[str, bytes | None]], name: str) -> str | None:
    for key, value in headers:
        if key == name and value is not None:
            return value.decode("ascii", "replace")
    return None
