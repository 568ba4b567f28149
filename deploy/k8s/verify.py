"""All checks over an overlay as Kustomize renders it."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path

from deploy.k8s import kubectl
from deploy.k8s.checks import drift, keda, privilege, reach, references, runs, seeing
from deploy.k8s.checks.objects import Overlay
from deploy.k8s.render import FOLDER

CHECKS: Mapping[str, Callable[[Overlay], list[str]]] = {
    "what the code says": drift.check,
    "names that lead nowhere": references.check,
    "scalers": keda.check,
    "paths": reach.check,
    "rights": privilege.check,
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
    return {about: judged(check, rendered) for about, check in CHECKS.items()}


def judged(check: Callable[[Overlay], list[str]], overlay: Overlay) -> list[str]:
    """What a check says; that it could not judge at all where an object lacks what it has to have."""
    try:
        return check(overlay)
    except (KeyError, IndexError, TypeError, ValueError, AttributeError) as error:
        return [f"an object is not what its kind has to be, and cannot be judged: {type(error).__name__} {error}"]
