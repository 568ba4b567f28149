"""Every holder passes the same kit: the rooms of the house, and one that somebody else could have written."""

from __future__ import annotations

import pytest

from deploy.rooms import ROOMS
from shared.contract.topics import HOLDERS
from tests.support.conformance import kit, room
from tests.support.stranger import stranger
from tests.support.world import Mesh


@pytest.mark.promise(44, 45)
async def test_every_room_is_a_holder(mesh: Mesh, seed: int) -> None:
    """All of them at once, as they run: each is told of everybody, and each answers for itself."""
    says = {
        "security": "192.0.2.7", "notifications": "{who}@example.org", "retention": "A Name", "billing": "a note",
        "metering": "key-{who}", "insights": "mem-{who}",
    }  # fmt: skip
    async with kit(mesh, seed, *(room(mesh, name) for name in HOLDERS if name in ROOMS), says=says) as checks:
        await checks.run()


@pytest.mark.promise(44)
async def test_a_third_partys_program_is_a_holder(mesh: Mesh, seed: int) -> None:
    """It knows the contract, and nothing of the house."""
    async with stranger(mesh) as program, kit(mesh, seed, program.participant) as checks:
        await checks.run()
