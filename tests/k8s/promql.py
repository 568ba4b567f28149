"""What a query asks for: the metrics it names, and the labels it goes by."""

from __future__ import annotations

import re
from collections.abc import Iterator
from itertools import product
from typing import NamedTuple

import promql_parser
from prometheus_client import CollectorRegistry, Counter, Histogram

from deploy.observe.alerts import ALERTS, RECORDINGS
from deploy.observe.dashboards import dashboards

# What Prometheus or the scraper adds to every series.
TARGET = frozenset({"namespace", "job", "pod", "instance"})
# Series that Prometheus makes itself.
OWN = frozenset({"up", "ALERTS"})
_THERE = {"=": "=", "!=": "=", "=~": "=~", "!~": "=~"}
_MATCHER = re.compile(r'(\w+)(=~|!~|!=|=)"((?:[^"\\]|\\.)*)"')


class Asked(NamedTuple):
    """One selector: the metric, and the labels by which it is selected. `values`: where a label must equal a text."""

    metric: str
    labels: frozenset[str]
    values: frozenset[tuple[str, str]]


def plain(query: str) -> str:
    """A dashboard's query with what Grafana puts in for its variables."""
    query = query.replace("$__rate_interval", "5m").replace("$__range", "1h").replace("$__interval", "1m")
    return re.sub(r"\$\{?(\w+)(:\w+)?\}?", ".+", query)


def nodes(query: str) -> Iterator[promql_parser.Expr]:
    """Every part of the query. Raises ValueError where it is none."""
    waiting = [promql_parser.parse(plain(query))]
    while waiting:
        node = waiting.pop()
        yield node
        for name in ("expr", "lhs", "rhs", "vector_selector", "param"):
            inner = getattr(node, name, None)
            if inner is not None and not isinstance(inner, str):
                waiting.append(inner)
        waiting.extend(getattr(node, "args", None) or ())


def asked(query: str) -> list[Asked]:
    """Its selectors."""
    found = []
    for node in nodes(query):
        if isinstance(node, promql_parser.VectorSelector):
            matchers = node.matchers.matchers
            found.append(
                Asked(
                    node.name or "",
                    frozenset(matcher.name for matcher in matchers),
                    frozenset((m.name, m.value) for m in matchers if m.op == promql_parser.MatchOp.Equal),
                )
            )
    return found


def each(query: str) -> Iterator[str]:
    """Its selectors as queries; where a label may have one of several values, a query for each."""
    for node in nodes(query):
        if isinstance(node, promql_parser.VectorSelector):
            choices = [
                # What is left out is there, too.
                [
                    f'{label}{_THERE[op] if value else op}"{value}"'
                    for value in (values.split("|") if "~" in op else [values])
                ]
                for label, op, values in _MATCHER.findall(node.prettify())
            ]
            for chosen in product(*choices):
                yield f"{node.name}{{{', '.join(chosen)}}}"


def grouped(query: str) -> set[str]:
    """The labels that it groups or matches by."""
    named: set[str] = set()
    for node in nodes(query):
        modifier = getattr(node, "modifier", None)
        for part in (modifier, getattr(modifier, "matching", None)):
            named.update(getattr(part, "labels", None) or ())
        named.update(getattr(modifier, "group_labels", None) or ())
    return named


def declared(registry: CollectorRegistry) -> dict[str, frozenset[str]]:
    """Every series that the collectors of `registry` may expose, and its labels as Prometheus keeps them."""
    found: dict[str, frozenset[str]] = {}
    for name, collector in registry._names_to_collectors.items():
        if name == getattr(collector, "_name", "") and isinstance(collector, Counter | Histogram):
            continue  # the family's name, which no series has
        labels = {f"exported_{label}" if label in TARGET else label for label in getattr(collector, "_labelnames", ())}
        if name.endswith("_bucket"):
            labels.add("le")
        found[name] = frozenset(labels)
    return found


def queries() -> Iterator[tuple[str, str]]:
    """Every query of rules and dashboards: where it stands, and its text."""
    for recording in RECORDINGS:
        yield recording.name, recording.expr
    for alert in ALERTS:
        yield alert.name, alert.query()
    for dashboard in dashboards():
        for section in dashboard.sections:
            for panel in section.panels:
                for query, _ in panel.queries:
                    yield f"{dashboard.uid}: {panel.title}", query
