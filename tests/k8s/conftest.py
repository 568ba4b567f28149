"""The overlays, each rendered once in a run."""

from __future__ import annotations

import copy
from collections.abc import Callable
from functools import cache
from typing import Any

import pytest

from deploy.k8s.checks.objects import Overlay
from deploy.k8s.kubectl import rendered
from deploy.k8s.render import FOLDER


@cache
def _documents(name: str) -> list[dict[str, Any]]:
    return rendered(FOLDER / "overlays" / name)


@pytest.fixture
def overlay() -> Callable[[str], Overlay]:
    """An overlay by name, the test's own to change."""
    return lambda name: Overlay(copy.deepcopy(_documents(name)))
