"""Rules and dashboards ask for metrics that the services have, and lead to pages that are there."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping, Set
from functools import cache
from pathlib import Path
from typing import Any

from deploy.k8s.checks.objects import Overlay
from deploy.k8s.checks.references import values_of
from deploy.rooms import ROOMS, load
from shared.mesh import metrics

RUNBOOKS = Path(__file__).parents[2] / "observe" / "runbooks"
# What a query says beside metrics: texts, selectors, ranges, by what it groups and matches; then functions, words and numbers.
_CLAUSES = re.compile(
    r"""'[^']*'|"[^"]*"|\{[^}]*\}|\[[^]]*\]|\b(?:by|without|on|ignoring|group_left|group_right)\b\s*(?:\([^)]*\))?"""
)
_WORDS = re.compile(r"\b[A-Za-z_]\w*\s*(?=\()|\b(?:and|or|unless|bool|offset|inf|nan)\b|\b[0-9][\w.]*", re.IGNORECASE)
_METRIC = re.compile(r"[A-Za-z_:][A-Za-z0-9_:]*")
_NAMED = re.compile(r"""\b(job|topic)\s*=\s*["']([^"']+)["']""")
# Grafana's question for the values of a label.
_VARIABLE = re.compile(r"label_values\((.*),\s*\w+\)")
# What Prometheus itself knows.
_OWN = frozenset({"up", "ALERTS"})


# What Prometheus adds to each series; a label of ours that is called like one of them gets a prefix.
_ADDED = frozenset({"namespace", "job", "pod", "instance"})
_SELECTOR = re.compile(r"([A-Za-z_:][\w:]*)\s*\{([^}]*)\}")
_LABEL = re.compile(r"""(\w+)\s*(?:=~|!=|!~|=)\s*(?:"[^"]*"|'[^']*')""")


@cache
def labels() -> Mapping[str, frozenset[str]]:
    """The labels of each family of ours, as Prometheus has them."""
    for room in ROOMS:
        load(room)
    return {
        name: frozenset(
            f"exported_{label}" if label in _ADDED else label for label in getattr(collector, "_labelnames", ())
        )
        for name, collector in metrics.REGISTRY._names_to_collectors.items()
    }


@cache
def exposed() -> frozenset[str]:
    """The name of every series that some service exposes."""
    for room in ROOMS:
        load(room)
    found = set()
    for family in metrics.REGISTRY.collect():
        suffixes = {"counter": ("_total",), "histogram": ("_bucket", "_sum", "_count")}.get(family.type, ("",))
        found |= {family.name + suffix for suffix in suffixes}
    return frozenset(found)


def check(overlay: Overlay) -> list[str]:
    """A sentence for each metric that nobody exposes, each job and topic that is none, and each alert whose page is missing."""
    said = []
    rules = [rule for doc in overlay.of("PrometheusRule") for group in doc["spec"]["groups"] for rule in group["rules"]]
    known = exposed() | _OWN | {rule["record"] for rule in rules if "record" in rule}
    jobs = {f"{doc['metadata']['namespace']}/{doc['metadata']['name']}" for doc in overlay.of("PodMonitor")}
    values = {"job": jobs, "topic": overlay.named("KafkaTopic").keys()}
    for rule in rules:
        name = rule.get("alert", rule.get("record", ""))
        said += [f"{name} {each}" for each in _wrong(rule["expr"], known, values)]
        if "alert" in rule and not (RUNBOOKS / f"{name}.md").exists():
            said.append(f"{name} has no runbook")
        elif "alert" in rule and not rule["annotations"]["runbook_url"].endswith(f"/{name}.md"):
            said.append(f"{name} leads to another's runbook")
    for doc in overlay.of("ConfigMap"):
        if doc["metadata"].get("labels", {}).get("grafana_dashboard") != "1":
            continue
        for name, text in doc.get("data", {}).items():
            said += sorted(
                {f"{name} {each}" for query in _queries(json.loads(text)) for each in _wrong(query, known, values)}
            )
    return said


def _queries(dashboard: Any) -> Iterator[str]:
    """Of panels, and of variables."""
    yield from values_of("expr", dashboard)
    for query in values_of("query", dashboard):
        yield from _VARIABLE.findall(query)


def _wrong(query: str, known: Set[str], values: Mapping[str, Set[str]]) -> Iterator[str]:
    metrics = _METRIC.findall(_WORDS.sub(" ", _CLAUSES.sub(" ", query)))
    yield from (f"asks for {metric}, which nobody exposes" for metric in sorted(set(metrics) - known))
    for metric, selector in _SELECTOR.findall(query):
        having = labels().get(metric, frozenset(_LABEL.findall(selector))) | _ADDED | {"le"}
        yield from (
            f"asks for {metric} by {label}, which it has not"
            for label in _LABEL.findall(selector)
            if label not in having
        )
    for label, value in sorted(set(_NAMED.findall(query))):
        if value not in values[label]:
            yield f"asks for the {label} {value}, which is none"
