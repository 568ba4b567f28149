"""The spans that the local receiver has kept, and the way through them: from a record to all that came of it.

A batch is no child of what its records come from: it links to it. So what follows a span is its children and whatever links
to it, in whichever trace that is.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import msgspec

from shared.mesh.tracing import OFFSETS

FILE, OLD = "spans.jsonl", "spans.jsonl.old"
BYTES_MAX = 32 * 1024 * 1024
"""Of the file that is written; the one before is kept, too."""
_PLACE = re.compile(r"(\d+):(\d+)-(\d+)")


class Link(NamedTuple):
    """A span, wherever it is recorded."""

    trace_id: str
    span_id: str


class Span(msgspec.Struct, frozen=True):
    """One span as the receiver keeps it. `start_ns`, `end_ns`: since 1970."""

    trace_id: str
    span_id: str
    parent_id: str | None
    service: str
    name: str
    start_ns: int
    end_ns: int
    failed: bool
    attributes: dict[str, Any]
    links: list[Link]
    events: list[dict[str, Any]]

    @property
    def at(self) -> Link:
        """What others link to."""
        return Link(self.trace_id, self.span_id)

    @property
    def before(self) -> list[Link]:
        """What it came of: its parent, and what it links to."""
        parent = [] if self.parent_id is None else [Link(self.trace_id, self.parent_id)]
        return [*parent, *self.links]

    @property
    def topic(self) -> str | None:
        """The topic that it reads or writes."""
        return self.attributes.get("messaging.destination.name")

    @property
    def processes(self) -> bool:
        """Whether it is a batch (else it sends)."""
        return bool(self.attributes.get("messaging.operation.type") == "process")

    def holds(self, topic: str, partition: int, offset: int) -> bool:
        """Whether the record at that place was in its batch."""
        if not self.processes or self.topic != topic:
            return False
        places = (_PLACE.fullmatch(place) for place in self.attributes.get(OFFSETS, ()))
        return any(m is not None and int(m[1]) == partition and int(m[2]) <= offset <= int(m[3]) for m in places)


@dataclass(frozen=True, slots=True)
class Step:
    """A span and what followed it. `again`: it stands elsewhere in the tree already, with what followed."""

    span: Span
    after: tuple[Step, ...] = ()
    again: bool = False


def read(folder: Path) -> list[Span]:
    """All that is kept, in the order of their starts; a line that is not whole (still being written) is left out."""
    found: dict[Link, Span] = {}
    decode = msgspec.json.Decoder(Span).decode
    for name in (OLD, FILE):
        try:
            lines = (folder / name).read_bytes().splitlines()
        except FileNotFoundError:
            continue
        for line in lines:
            try:
                span = decode(line)
            except msgspec.DecodeError:
                continue
            found[span.at] = span
    return sorted(found.values(), key=lambda span: span.start_ns)


class Ways:
    """Which span follows which."""

    def __init__(self, spans: Sequence[Span]) -> None:
        self.spans = spans
        self._known = {span.at for span in spans}
        self._after: dict[Link, list[Span]] = {}
        for span in spans:
            for before in dict.fromkeys(span.before):
                self._after.setdefault(before, []).append(span)

    def after(self, at: Link) -> list[Span]:
        """What came of a span, recorded here or not."""
        return self._after.get(at, [])

    def steps(self, begins: Iterable[Span]) -> tuple[Step, ...]:
        """The trees that begin with these spans. A span that several lead to stands where it is met first."""
        seen: set[Link] = set()
        return tuple(self._step(span, seen) for span in begins if span.at not in seen)

    def of_trace(self, trace_id: str) -> list[Span]:
        """Where a trace begins here: its spans that follow none recorded, and the batches that link to it from outside."""
        inside = [
            span
            for span in self.spans
            if span.trace_id == trace_id and not (span.parent_id and Link(trace_id, span.parent_id) in self._known)
        ]
        known = {span.at for span in inside}
        linked = [
            span
            for span in self.spans
            if span.trace_id != trace_id
            and any(link.trace_id == trace_id and link not in self._known for link in span.links)
        ]
        return [*inside, *(span for span in linked if span.at not in known)]

    def of_record(self, topic: str, partition: int, offset: int, before: Link | None) -> list[Span]:
        """The batches that took a record: by its place, or because they link to where it came from."""
        linked = {span.at for span in self.after(before)} if before is not None else set()
        return [span for span in self.spans if span.at in linked or span.holds(topic, partition, offset)]

    def newest(self, topics: Iterable[str]) -> list[Span]:
        """The newest batch of one of these topics of which anything came; else the newest batch of them."""
        wanted = set(topics)
        batches = [span for span in self.spans if span.processes and span.topic in wanted]
        return ([span for span in batches if self.after(span.at)] or batches)[-1:]

    def _step(self, span: Span, seen: set[Link]) -> Step:
        if span.at in seen:
            return Step(span, again=bool(self.after(span.at)))
        seen.add(span.at)
        return Step(span, tuple(self._step(after, seen) for after in self.after(span.at)))


def walk(steps: Iterable[Step]) -> Iterator[Span]:
    """Every span of the trees."""
    for step in steps:
        yield step.span
        yield from walk(step.after)


def counts(spans: Iterable[Span]) -> Mapping[str, int]:
    """How many spans each service has."""
    found: dict[str, int] = {}
    for span in spans:
        found[span.service] = found.get(span.service, 0) + 1
    return found
