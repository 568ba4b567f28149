"""Applies a service's migrations at start: forward only, each once, under an advisory lock."""

from __future__ import annotations

import hashlib
import logging
from pathlib import Path

from shared.mesh import store

log = logging.getLogger("steward.mesh")
_OWN = Path(__file__).parent / "migrations"


class MigrationChanged(Exception):
    """A migration that was applied reads differently now; a mistake is mended by another migration."""


async def migrate(owner_url: str, service: str, folder: Path | None, *, mesh: bool = True) -> list[str]:
    """Brings the database to the newest schema and returns what was applied. Runs as the owner's role.

    `mesh`: with the runtime's own tables.
    """
    files = [("mesh/" + f.name, f) for f in sorted(_OWN.glob("*.sql"))] if mesh else []
    if folder is not None:
        files += [(f"{service}/{f.name}", f) for f in sorted(folder.glob("*.sql"))]
    db = await store.connect(owner_url, f"steward-{service}-migrate")
    applied = []
    try:
        await db.execute("SELECT pg_advisory_lock(1867, -1)")
        await db.execute("CREATE TABLE IF NOT EXISTS mesh_migration (name text PRIMARY KEY, sha256 text NOT NULL)")
        known = {row["name"]: row["sha256"] for row in await db.fetch("SELECT name, sha256 FROM mesh_migration")}
        for name, file in files:
            text = file.read_text(encoding="utf-8")
            digest = hashlib.sha256(text.encode()).hexdigest()
            if name in known:
                if known[name] != digest:
                    raise MigrationChanged(f"{name} was changed after it was applied")
                continue
            async with db.transaction():
                await db.execute("SET LOCAL lock_timeout = '5s'")
                await db.execute(text)
                await db.execute("INSERT INTO mesh_migration (name, sha256) VALUES ($1, $2)", name, digest)
            applied.append(name)
    finally:
        await db.close()
    if applied:
        log.info("migrations applied: %s", ", ".join(applied))
    return applied
