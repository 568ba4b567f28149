"""The monitoring component of the cluster: rules, dashboards, and the kustomization that takes them up."""

from __future__ import annotations

from deploy.observe.alerts import GROUPS
from deploy.observe.rules import prometheus_rule, to_yaml

FOLDER = "components/monitoring"
HEAD = "# Written by `steward k8s render` from deploy/observe; change it there.\n"


def documents() -> dict[str, str]:
    """Every file of the component but the services' PodMonitors: its path below `k8s/`, and its text."""
    return {f"{FOLDER}/rules.yaml": HEAD + to_yaml(prometheus_rule(GROUPS))}
