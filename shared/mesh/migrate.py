"""Applies a service's migrations at start: forward only, each once, under an advisory lock."""

from __future__ import annotations

import hashlib
import logging
from collections.abc import Iterable
from pathlib import Path

from shared.mesh import store

log = logging.getLogger("steward.mesh")
_OWN = Path(__file__).parent / "migrations"


class MigrationChanged(Exception):
    """A migration that was applied reads differently now; a mistake is mended by another migration."""


async def migrate(
    owner_url: str, service: str, folder: Path | None, *, mesh: bool = True, plugged: Iterable[tuple[str, Path]] = ()
) -> list[str]:
    """Brings the database to the newest schema and returns what was applied. Runs as the owner's role.

    `mesh`: with the runtime's own tables; `plugged`: (name, folder) of what is plugged into it.
    """
    files = [("mesh/" + f.name, f) for f in sorted(_OWN.glob("*.sql"))] if mesh else []
    for name, schema in plugged:
        files += [(f"{name}/{f.name}", f) for f in sorted(schema.glob("*.sql"))]
    if folder is not None:
        files += [(f"{service}/{f.name}", f) for f in sorted(folder.glob("*.sql"))]  # noqa: ASYNC240 -- small, and nothing is served yet
    db = await store.connect(owner_url, f"steward-{service}-migrate")
    applied = []
    try:
        known = await store.lock_migrations(db)
        for name, file in files:
            text = file.read_text(encoding="utf-8")
            digest = hashlib.sha256(text.encode()).hexdigest()
            if name in known:
                if known[name] != digest:
                    raise MigrationChanged(f"{name} was changed after it was applied")
                continue
            await store.apply_migration(db, name, text, digest)
            applied.append(name)
    finally:
        await db.close()
    if applied:
        log.info("migrations applied: %s", ", ".join(applied))
    return applied
