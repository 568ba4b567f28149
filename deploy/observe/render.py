"""The monitoring component of the cluster: rules, dashboards, and the kustomization that takes them up."""

from __future__ import annotations

from deploy.observe.alerts import GROUPS
from deploy.observe.dashboards import dashboards
from deploy.observe.rules import prometheus_rule, to_yaml

FOLDER = "components/monitoring"


def documents() -> dict[str, str]:
    """Every file of the component but the PodMonitors: its path below `k8s/`, and its text."""
    made = {f"dashboards/{dashboard.uid}.json": dashboard.text() for dashboard in dashboards()}
    kustomization = {
        "apiVersion": "kustomize.config.k8s.io/v1alpha1",
        "kind": "Component",
        "resources": ["rules.yaml", "podmonitors.yaml"],
        "configMapGenerator": [
            {
                "name": f"dashboard-{path.removeprefix('dashboards/').removesuffix('.json')}",
                "namespace": "steward",
                "files": [path],
                "options": {"labels": {"grafana_dashboard": "1"}},
            }
            for path in made
        ],
        # Grafana's sidecar finds them by their label, and nothing refers to them by name.
        "generatorOptions": {"disableNameSuffixHash": True},
    }
    made["rules.yaml"] = to_yaml(prometheus_rule(GROUPS))
    made["kustomization.yaml"] = to_yaml(kustomization)
    return {f"{FOLDER}/{path}": text for path, text in made.items()}
