"""Looks into the bytes of the servers' files: what a text search of tables and records does not see."""

from __future__ import annotations

import base64
from pathlib import Path

from tests.support.world import Mesh


async def raw_folders(mesh: Mesh) -> dict[str, Path]:
    """The folders of PostgreSQL (its write-ahead log, too), Kafka and the logs, as they are on disk now."""
    async with mesh.world.admin() as admin:
        await admin.execute("CHECKPOINT")
    stack = mesh.world.stack
    assert stack.postgres is not None and stack.kafka is not None
    return {"postgres": stack.postgres.data, "kafka": stack.kafka.folder / "data", "logs": stack.home / "logs"}


def holding(folder: Path, needle: str) -> list[Path]:
    """Files below `folder` with the text in them, as it is or in base64."""
    wanted = [needle.encode(), base64.b64encode(needle.encode())[:-4]]
    return [
        path for path in folder.rglob("*")
        if path.is_file() and any(text in content for content in [path.read_bytes()] for text in wanted)
    ]  # fmt: skip
