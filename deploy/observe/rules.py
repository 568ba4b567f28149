"""What an alert and a recording rule are, and how both become Prometheus's files."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

import yaml

RUNBOOKS = "deploy/observe/runbooks"
"""Where the pages are, for `runbook_url`: a folder of this repository. An installation that publishes them elsewhere says
so here."""

LIMIT = "LIMIT"
"""Stands in an alert's expression for its threshold, so that tests can move it."""

Severity = Literal["page", "ticket"]


def target(service: str, **labels: str) -> dict[str, str]:
    """The labels that all series of a service have in the cluster, and more."""
    return {"namespace": "steward", "job": f"steward/{service}"} | labels


def series(where: Mapping[str, str], metric: str, **labels: str) -> str:
    """A series of the first process of that service, as promtool reads it."""
    pod = f"{where['job'].rpartition('/')[2]}-0"
    pairs = {**where, "pod": pod, **labels}.items()
    return metric + "{" + ", ".join(f'{name}="{value}"' for name, value in pairs) + "}"


@dataclass(frozen=True, slots=True)
class Case:
    """What promtool plays to an alert: series and their values (its notation: `start+step x times`), one each `every`
    minutes, and when to look (minutes). `labels`: what tells the alert that fires then from others of its name; `alerts`:
    how many of its name do."""

    series: Mapping[str, str]
    at: int
    labels: Mapping[str, str] = field(default_factory=dict)
    alerts: int = 1
    every: int = 1


@dataclass(frozen=True, slots=True)
class Recording:
    """A series that is computed once for all who ask: `level:metric:operations`."""

    name: str
    expr: str


@dataclass(frozen=True, slots=True)
class Alert:
    """One alert. `expr` holds the word LIMIT where the threshold is.

    `page`: somebody has to act now; `ticket`: on the next working day. `past`: a threshold at which `fires` would stay
    quiet; `near`: one at which `quiet` would fire, so that the quiet case is no empty one (or a part of the expression and
    what to write in its place, where the threshold alone does not decide). `minutes`: how long it must be so.
    `step`: of evaluation in tests, in minutes.
    """

    name: str
    severity: Severity
    expr: str
    limit: str
    minutes: int
    summary: str
    description: str
    fires: Case
    quiet: Case
    past: str
    near: str | tuple[str, str]
    step: int = 1

    def query(self, limit: str | None = None) -> str:
        """The expression with its threshold, or with another one."""
        return self.expr.replace(LIMIT, self.limit if limit is None else limit)

    @property
    def runbook(self) -> str:
        """Where its page is."""
        return f"{RUNBOOKS}/{self.name}.md"


@dataclass(frozen=True, slots=True)
class Group:
    """Rules that are evaluated together, in this order."""

    name: str
    recordings: tuple[Recording, ...] = ()
    alerts: tuple[Alert, ...] = ()


def rule_of(alert: Alert, *, name: str | None = None, limit: str | None = None) -> dict[str, Any]:
    """The alert as Prometheus reads it; under another name, or with another threshold, for tests."""
    rule: dict[str, Any] = {"alert": name or alert.name, "expr": alert.query(limit)}
    if alert.minutes:
        rule["for"] = f"{alert.minutes}m"
    return rule | {
        "labels": {"severity": alert.severity},
        "annotations": {
            "summary": alert.summary,
            "description": alert.description,
            "runbook_url": alert.runbook,
        },
    }


def recorded(recording: Recording) -> dict[str, Any]:
    """The recording rule as Prometheus reads it."""
    return {"record": recording.name, "expr": recording.expr}


def groups_of(groups: Iterable[Group]) -> dict[str, Any]:
    """A plain rule file, as promtool and a Prometheus without the operator read it."""
    return {
        "groups": [
            {
                "name": f"steward-{group.name}",
                "rules": [*map(recorded, group.recordings), *map(rule_of, group.alerts)],
            }
            for group in groups
        ]
    }


def prometheus_rule(groups: Iterable[Group]) -> dict[str, Any]:
    """The same as the operator's resource. The labels are those that its usual installations select rules by."""
    return {
        "apiVersion": "monitoring.coreos.com/v1",
        "kind": "PrometheusRule",
        "metadata": {
            "name": "steward",
            "namespace": "steward",
            "labels": {
                "app.kubernetes.io/name": "steward",
                "app.kubernetes.io/part-of": "steward",
                "prometheus": "k8s",
                "role": "alert-rules",
            },
        },
        "spec": groups_of(groups),
    }


class _Dumper(yaml.SafeDumper):
    """Expressions of several lines as blocks, and nothing abbreviated."""

    def ignore_aliases(self, data: Any) -> bool:
        return True


def _text(dumper: yaml.SafeDumper, text: str) -> yaml.ScalarNode:
    return dumper.represent_scalar("tag:yaml.org,2002:str", text, style="|" if "\n" in text else None)


_Dumper.add_representer(str, _text)


def to_yaml(document: Mapping[str, Any]) -> str:
    """The document as text, the same each time."""
    return yaml.dump(document, Dumper=_Dumper, sort_keys=False, width=120, allow_unicode=True)
