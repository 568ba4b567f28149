"""The SQL of a drill: copies of databases, and what stands in them. Names are those of the stack and the catalogue."""

from __future__ import annotations

import re
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import asynccontextmanager
from typing import Any

import asyncpg

from deploy.local.databases import connect
from services.audit.residue.store import tables
from services.audit.residue.words import pattern

_ADMIN = "STEWARD_POSTGRES_URL"
_ROOM = re.compile(r"[a-z]{1,32}")


@asynccontextmanager
async def _admin(settings: Mapping[str, str]) -> AsyncIterator[asyncpg.Connection[asyncpg.Record]]:
    admin = await connect(settings[_ADMIN])
    try:
        yield admin
    finally:
        await admin.close()


def _named(room: str) -> str:
    if _ROOM.fullmatch(room) is None:
        raise ValueError("this is no room's name")
    return room


async def dump(settings: Mapping[str, str], room: str) -> None:
    """Keeps a room's database as it is now, its service being stopped. Readers (the auditor) are cut off for a moment."""
    name = _named(room)
    async with _admin(settings) as admin:
        await _alone(admin, name)
        try:
            await admin.execute(f"CREATE DATABASE drill_{name} TEMPLATE steward_{name}")
        finally:
            await admin.execute(f"ALTER DATABASE steward_{name} ALLOW_CONNECTIONS true")


async def restore(settings: Mapping[str, str], room: str) -> None:
    """Puts the kept copy in the place of a room's database, with the rights that a database has of its own."""
    name = _named(room)
    async with _admin(settings) as admin:
        await _alone(admin, name)
        await admin.execute(f"DROP DATABASE steward_{name} WITH (FORCE)")
        await admin.execute(f"CREATE DATABASE steward_{name} TEMPLATE drill_{name} OWNER steward_{name}_owner")
        await admin.execute(f"DROP DATABASE drill_{name}")


async def _alone(admin: asyncpg.Connection[asyncpg.Record], name: str) -> None:
    """Nobody is connected any more, and nobody can be: a database that is read cannot be copied."""
    await admin.execute(f"ALTER DATABASE steward_{name} ALLOW_CONNECTIONS false")
    await admin.fetch(
        "SELECT pg_terminate_backend(pid, 5000) FROM pg_stat_activity WHERE datname = $1", f"steward_{name}"
    )


@asynccontextmanager
async def _owner(settings: Mapping[str, str], room: str) -> AsyncIterator[Any]:
    owner = await connect(settings[f"STEWARD_{_named(room).upper()}_OWNER_DATABASE_URL"])
    try:
        yield owner
    finally:
        await owner.close()


async def naming(settings: Mapping[str, str], room: str, ids: Sequence[str]) -> dict[str, int]:
    """Table -> rows in whose text (or bytes) one of these ids stands."""
    found = {}
    async with _owner(settings, room) as db:
        for table in await tables(db):
            # The name is the catalogue's, and quoted.
            statement = f'SELECT count(*) FROM "{table.name}" t WHERE t::text ~ $1'  # noqa: S608
            rows = await db.fetchval(statement, pattern(ids))
            if rows:
                found[table.name] = int(rows)
    return found


async def counter(settings: Mapping[str, str], room: str, name: str) -> int:
    """One of a room's durable counters."""
    async with _owner(settings, room) as db:
        return int(await db.fetchval("SELECT coalesce(sum(value), 0) FROM mesh_counter WHERE name = $1", name))
