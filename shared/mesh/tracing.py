"""One span per batch with a bounded number of links; the context travels through the outbox."""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

from opentelemetry import trace
from opentelemetry.sdk.resources import Resource
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.trace import Link, SpanContext, SpanKind, TraceFlags

MAX_LINKS = 16

_tracer = trace.get_tracer("steward.mesh")
_enabled = False


def setup(service: str) -> None:
    """Exports spans when OTEL_EXPORTER_OTLP_ENDPOINT is set; otherwise tracing costs nothing."""
    global _enabled, _tracer
    if not os.environ.get("OTEL_EXPORTER_OTLP_ENDPOINT"):
        return
    from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
    from opentelemetry.sdk.trace.export import BatchSpanProcessor

    provider = TracerProvider(resource=Resource.create({"service.name": f"steward-{service}"}))
    provider.add_span_processor(BatchSpanProcessor(OTLPSpanExporter()))
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


@contextmanager
def batch_span(topic: str, records: Sequence[Any]) -> Iterator[str | None]:
    """A consumer span over one batch, linked to at most `MAX_LINKS` of its records' spans; yields its traceparent."""
    if not _enabled:
        yield None
        return
    step = max(1, len(records) // MAX_LINKS)
    sampled = (parse_traceparent(_header(r.headers, "traceparent")) for r in records[::step][:MAX_LINKS])
    links = [Link(context) for context in sampled if context is not None]
    with _tracer.start_as_current_span(
        f"process {topic}",
        kind=SpanKind.CONSUMER,
        links=links,
        attributes={
            "messaging.system": "kafka",
            "messaging.destination.name": topic,
            "messaging.batch.message_count": len(records),
        },
    ) as span:
        context = span.get_span_context()
        yield f"00-{context.trace_id:032x}-{context.span_id:016x}-{int(context.trace_flags):02x}"


def parse_traceparent(value: str | None) -> SpanContext | None:
    """The span context of a W3C `traceparent`, or None if it is not one."""
    parts = (value or "").split("-")
    if len(parts) != 4 or [len(p) for p in parts] != [2, 32, 16, 2]:
        return None
    try:
        numbers = [int(part, 16) for part in parts]
    except ValueError:
        return None
    return SpanContext(numbers[1], numbers[2], is_remote=True, trace_flags=TraceFlags(numbers[3]))


def _header(headers: Sequence[tuple[str, bytes | None]], name: str) -> str | None:
    for key, value in headers:
        if key == name and value is not None:
            return value.decode("ascii", "replace")
    return None
