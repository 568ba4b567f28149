"""The rooms of the house that run as services, in the order in which they start."""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from shared.mesh import Service

ROOMS: tuple[str, ...] = ("metering", "billing", "security", "insights", "retention", "notifications", "audit")


def load(room: str) -> Service:
    """The `service` declared in `services.<room>.app`. Raises KeyError for a name that is not in `ROOMS`."""
    if room not in ROOMS:
        raise KeyError(f"there is no room {room!r}; there are {', '.join(ROOMS)}")
    service: Service = importlib.import_module(f"services.{room}.app").service
    return service


def refusals(room: str) -> tuple[str, ...]:
    """Why the room may not start, a sentence each: what it holds and the policy in force do not go together."""
    from shared.privacy.data_map import contradictions, foreign_uses
    from shared.privacy.mesh_map import KEY_MAP, MESH_MAP

    own = importlib.import_module(f"services.{room}.data_map").DATA_MAP
    every_rooms = (*MESH_MAP, *KEY_MAP)
    return (
        *contradictions(own), *contradictions(MESH_MAP), *contradictions(KEY_MAP),
        *foreign_uses(room, own), *foreign_uses("mesh", every_rooms),
    )  # fmt: skip
