"""Where Prometheus finds what it scrapes."""

from __future__ import annotations

from collections.abc import Iterable

from deploy.k8s import names
from deploy.k8s.names import Doc
from shared.mesh import Service


def pod_monitors(house: Iterable[Service]) -> list[Doc]:
    """Of each service (series carry job="steward/<service>"), and of the databases."""
    found = [_pod_monitor(service.name, names.selector(service.name), "http") for service in house]
    # CloudNativePG's own exporter, on every instance of every cluster.
    return [*found, _pod_monitor("postgres", {"cnpg.io/podRole": "instance"}, "metrics")]


def _pod_monitor(name: str, pods: dict[str, str], port: str) -> Doc:
    return {
        "apiVersion": "monitoring.coreos.com/v1",
        "kind": "PodMonitor",
        "metadata": names.meta(name, name),
        "spec": {
            "selector": {"matchLabels": pods},
            # A service looks at its database before it answers, for 5 seconds at most.
            "podMetricsEndpoints": [{"port": port, "path": "/metrics", "interval": "15s", "scrapeTimeout": "10s"}],
        },
    }
