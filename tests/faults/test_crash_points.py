"""Every numbered crash point: the service is frozen there, taken over, and the books come out equal."""

from __future__ import annotations

import asyncio
import contextlib
import random

import pytest

from tests.support.books import assert_books
from tests.support.gateway import Gateway
from tests.support.world import Faults, Mesh

POINTS = ("assigned", "claimed", "decoded", "fenced", "before_commit", "committed", "relay_read", "relay_acknowledged")


@pytest.mark.promise(17)
@pytest.mark.parametrize("room", ["metering", "billing"])
@pytest.mark.parametrize("point", POINTS)
async def test_killed_at(mesh: Mesh, room: str, point: str, seed: int) -> None:
    gateway = Gateway(seed)
    chosen = random.Random(f"{seed}{room}{point}")
    nth = 1 if point in ("assigned", "claimed") else chosen.randint(1, 3)
    await gateway.send(mesh.env, [gateway.price()])
    await gateway.send(mesh.env, [gateway.payment(f"ws-{n}", 10) for n in range(gateway.workspaces)])
    await gateway.send(mesh.env, gateway.some(400))
    fault = Faults(point, nth)
    other = "billing" if room == "metering" else "metering"
    if point not in ("assigned", "claimed"):
        await mesh.start(other)
        victim = await mesh.start(room, fault=fault)
    else:
        victim = await mesh.start(room, fault=fault)
        await mesh.start(other)
    await gateway.send(mesh.env, gateway.some(400))

    async def passed() -> bool:
        # A quick mesh takes all of it in one batch: more, until the point has been passed often enough.
        while not fault.hit.is_set():
            await gateway.send(mesh.env, gateway.some(40))
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(0.5):
                    await fault.hit.wait()
        return True

    await mesh.until(passed, 30, f"{point} was passed {nth} times")
    await mesh.abandon(victim)
    await gateway.send(mesh.env, gateway.some(200))
    await mesh.start(room)
    await mesh.owned()
    await mesh.idle()
    await assert_books(mesh, gateway)
