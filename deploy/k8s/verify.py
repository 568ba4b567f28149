"""All checks over an overlay as Kustomize renders it."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path

from deploy.k8s import kubectl
from deploy.k8s.checks import keda, privilege, reach, references, runs, seeing
from deploy.k8s.checks.objects import Overlay
from deploy.k8s.render import FOLDER

CHECKS: Mapping[str, Callable[[Overlay], list[str]]] = {
    "names that lead nowhere": references.check,
    "scalers": keda.check,
    "paths": reach.check,
    "rights in Kafka": privilege.check,
    "pods": runs.check,
    "rules and dashboards": seeing.check,
}
"""What each check is about."""


def overlays(folder: Path = FOLDER) -> list[str]:
    """The overlays that there are."""
    return sorted(path.parent.name for path in (folder / "overlays").glob("*/kustomization.yaml"))


def verify(overlay: str, folder: Path = FOLDER) -> dict[str, list[str]]:
    """What each check finds wrong in an overlay, by what it is about. Raises LocalError when it cannot be rendered."""
    rendered = Overlay(kubectl.rendered(folder / "overlays" / overlay))
    return {about: check(rendered) for about, check in CHECKS.items()}
