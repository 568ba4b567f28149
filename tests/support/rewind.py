"""Reads a topic again from its start, as an operator would."""

from __future__ import annotations

import asyncpg

from shared.mesh import store
from shared.mesh.admin import end_offsets
from shared.mesh.settings import KafkaSettings
from tests.support.world import Mesh


async def rewind(mesh: Mesh, room: str, topic: str) -> None:
    """As `steward cursors rewind` does: every partition back to the log's start."""
    starts = {
        tp.partition: begin for tp, (begin, _) in (await end_offsets(KafkaSettings.from_env(mesh.env), [topic])).items()
    }
    db = await asyncpg.connect(mesh.env[f"STEWARD_{room.upper()}_OWNER_DATABASE_URL"])
    try:
        for row in await store.cursors(db):
            if row["topic"] == topic:
                moved = await store.move_cursor(
                    db, row["grp"], topic, row["part"], starts[row["part"]], "operator:test", row["claimed_at"]
                )
                assert moved
    finally:
        await db.close()
