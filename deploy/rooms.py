"""The rooms of the house that run as services, in the order in which they start."""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from shared.mesh import Service

ROOMS: tuple[str, ...] = ("metering", "billing", "notifications", "audit")


def load(room: str) -> Service:
    """The `service` declared in `services.<room>.app`. Raises KeyError for a name that is not in `ROOMS`."""
    if room not in ROOMS:
        raise KeyError(f"there is no room {room!r}; there are {', '.join(ROOMS)}")
    service: Service = importlib.import_module(f"services.{room}.app").service
    return service
