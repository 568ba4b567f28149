"""Every holder passes the same kit: the rooms of the house, and one that somebody else could have written."""

from __future__ import annotations

import pytest

from deploy.rooms import ROOMS
from shared.contract.topics import HOLDERS
from tests.support.conformance import kit, room
from tests.support.world import Mesh


@pytest.mark.promise(44, 45)
@pytest.mark.parametrize("name", [holder for holder in HOLDERS if holder in ROOMS])
async def test_a_room_is_a_holder(mesh: Mesh, seed: int, name: str) -> None:
    async with kit(mesh, room(mesh, name), seed) as checks:
        await checks.run()
