"""What is seen of a running mesh: alerts with their runbooks, dashboards, and the files that a cluster is given of both."""

from __future__ import annotations


def documents() -> dict[str, str]:
    """Every file that is written for the cluster: its path below `k8s/`, and its text."""
    from deploy.observe.render import documents as rendered

    return rendered()
