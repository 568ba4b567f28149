"""Rules and dashboards ask for metrics that the services have, and lead to pages that are there."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from functools import cache
from pathlib import Path

from deploy.k8s.checks.objects import Overlay
from deploy.k8s.checks.references import names_in
from deploy.rooms import ROOMS, load
from shared.mesh import metrics

RUNBOOKS = Path(__file__).parents[2] / "observe" / "runbooks"
_METRIC = re.compile(r"(?<![A-Za-z0-9_:])steward_[a-z0-9_]+(?![A-Za-z0-9_:])")


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
    """A sentence for each metric that nobody exposes, and each alert whose page is missing."""
    said = []
    for doc in overlay.of("PrometheusRule"):
        rules = [rule for group in doc["spec"]["groups"] for rule in group["rules"]]
        for rule in rules:
            name = rule.get("alert", rule.get("record", ""))
            said += [f"{name} asks for {metric}, which nobody exposes" for metric in _unknown(rule["expr"])]
            if "alert" in rule and not (RUNBOOKS / f"{name}.md").exists():
                said.append(f"{name} has no runbook")
    for doc in overlay.of("ConfigMap"):
        if doc["metadata"].get("labels", {}).get("grafana_dashboard") != "1":
            continue
        for name, text in doc.get("data", {}).items():
            said += [f"{name} asks for {metric}, which nobody exposes" for metric in sorted(set(_asked(text)))]
    return said


def _asked(text: str) -> Iterator[str]:
    for value in names_in(json.loads(text)):
        yield from _unknown(value)


def _unknown(expression: str) -> list[str]:
    return sorted(set(_METRIC.findall(expression)) - exposed())
