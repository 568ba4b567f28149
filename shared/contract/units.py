"""Events as units: whose is which part. Filters, erasure and dead letters work on units, not on whole events."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from .events import UsageRated


def units(event: Any) -> Sequence[tuple[str, Any]]:
    """(subject, part) of each unit of an event: one for most, one per workspace for packed rated usage.

    The subject is the workspace where the event names one, else the envelope's subject.
    """
    if event.type == UsageRated.TYPE:
        return [(unit.workspace, unit) for unit in event.data.units]
    return [(getattr(event.data, "workspace", event.subject), event)]
