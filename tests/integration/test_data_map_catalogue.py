"""The data maps against the live catalogue: a column that nobody classified fails, and so does one that is gone."""

from __future__ import annotations

import importlib

import pytest

from deploy.rooms import ROOMS
from shared.contract.topics import HOLDERS
from shared.privacy import by_column, contradictions
from shared.privacy.mesh_map import HOLDER_MAP, KEY_MAP, MESH_MAP
from tests.support.world import Mesh

COLUMNS = """SELECT c.relname, a.attname FROM pg_class c JOIN pg_attribute a ON a.attrelid = c.oid
             WHERE c.relnamespace = 'public'::regnamespace AND c.relkind IN ('r', 'p') AND NOT c.relispartition
               AND a.attnum > 0 AND NOT a.attisdropped AND c.relname <> 'mesh_migration'"""


@pytest.mark.promise(8, 70)
@pytest.mark.parametrize("room", [*ROOMS, "keys"])
async def test_every_column_is_in_the_map(mesh: Mesh, room: str) -> None:
    if room == "keys":
        declared = KEY_MAP
    else:
        declared = MESH_MAP + importlib.import_module(f"services.{room}.data_map").DATA_MAP
        declared += HOLDER_MAP if room in HOLDERS else ()
    assert contradictions(declared) == ()
    if room == "keys":
        await mesh.start("metering")  # the service that uses keys makes their table
    live = {(row["relname"], row["attname"]) for row in await mesh.fetch(room, COLUMNS)}
    assert live == set(by_column(declared))
