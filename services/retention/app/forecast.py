"""How fast cases go, as measured."""

from __future__ import annotations

from services.retention import store
from services.retention.speed import LAST, Speeds
from shared.mesh.store import Connection


async def speeds(db: Connection) -> Speeds:
    """How long the steps of the last cases took."""
    taken: dict[str, dict[str, list[float]]] = {}
    for row in await store.speeds(db, LAST):
        taken.setdefault(row["kind"], {}).setdefault(row["step"], []).append(row["seconds"])
    return Speeds.of(taken)
