"""When generations come: from traces, or made from a seed."""

from __future__ import annotations

import heapq
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from random import Random
from typing import NamedTuple

from deploy.demo.trace import Trace

QUIET = timedelta(seconds=60)
"""The latest generation lies this long before the demo's beginning."""

_HOUR_US = 3_600_000_000
_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
_US = timedelta(microseconds=1)


class Arrival(NamedTuple):
    """One generation: when (microseconds since 1970, UTC), and its (input, output) tokens if a trace says so."""

    at_us: int
    tokens: tuple[int, int] | None


@dataclass(frozen=True, slots=True)
class Arrivals:
    """`count` arrivals from `first_us` on; `play` gives them anew each time."""

    count: int
    first_us: int
    play: Callable[[], Iterator[Arrival]]


def seeded(seed: int, count: int, now: datetime) -> Arrivals:
    """`count` arrivals spread over the hour that ends a minute before `now`."""
    last_us = (now - QUIET - _EPOCH) // _US
    first_us = last_us - _HOUR_US

    def play() -> Iterator[Arrival]:
        random = Random(f"arrivals {seed}")
        for n in range(count):
            yield Arrival(first_us + int((n + random.random()) * _HOUR_US / count), None)

    return Arrivals(count, first_us, play)


def traced(traces: Sequence[Trace], now: datetime) -> Arrivals:
    """The rows of all traces by time; the latest row of each lies a minute before `now`."""
    last_at = now - QUIET

    def rows(trace: Trace) -> Iterator[Arrival]:
        for row in trace.played(last_at):
            yield Arrival((row.at - _EPOCH) // _US, (row.context_tokens, row.generated_tokens))

    def play() -> Iterator[Arrival]:
        return heapq.merge(*(rows(trace) for trace in traces), key=lambda arrival: arrival.at_us)

    first_at = last_at - max(trace.span for trace in traces)
    return Arrivals(sum(trace.rows for trace in traces), (first_at - _EPOCH) // _US, play)
