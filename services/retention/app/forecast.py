"""How fast cases go, as measured."""

from __future__ import annotations

from datetime import timedelta

from services.retention import store
from services.retention.speed import LAST, Speeds
from shared.mesh.store import Connection


async def speeds(db: Connection) -> Speeds:
    """How long the steps of the last cases took."""
    found = Speeds()
    for row in await store.speeds(db, LAST):
        found = found.observe(row["kind"], row["step"], timedelta(seconds=row["seconds"]))
    return found
