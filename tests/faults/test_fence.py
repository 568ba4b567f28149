"""Two owners of one partition: the fence decides, and without it the same run doubles."""

from __future__ import annotations

import asyncio

import pytest

from services.metering.app import make_service
from shared.contract import topics
from shared.mesh import metrics
from tests.support.gateway import Gateway
from tests.support.world import Mesh


class Gate:
    """Holds a service inside its transaction until opened."""

    def __init__(self, point: str, *, armed: bool = True) -> None:
        self.point, self.reached, self.open = point, asyncio.Event(), asyncio.Event()
        self.armed = armed

    async def __call__(self, point: str) -> None:
        if self.armed and point == self.point and not self.open.is_set():
            self.reached.set()
            await self.open.wait()


async def _two_owners(mesh: Mesh, gateway: Gateway, *, fencing: bool) -> int:
    """How often each generation is logged, in excess of once, when a zombie goes on after a take-over.

    A metering process is held between decoding and its transaction, cut off from its group (as SIGSTOP does), and
    another one takes its partitions over and reads everything. Then the zombie goes on. De-duplication is off in
    both, so that the fence stands alone.
    """
    await gateway.send(mesh.env, [gateway.price()])
    gate = Gate("decoded", armed=False)
    zombie = await mesh.start("metering", service=make_service(dedupe=False), fault=gate, fencing=fencing)
    await mesh.owned()
    await mesh.idle()
    gate.armed = True
    await gateway.send(mesh.env, gateway.some(300, duplicates=0))
    await asyncio.wait_for(gate.reached.wait(), 20)
    for consumer in zombie.consumers:
        client = consumer.consumer
        assert client is not None
        await client._coordinator._stop_heartbeat_task()
        client._coordinator._coordination_task.cancel()
        # The broker hears of the lost member at once instead of after its session timeout.
        await client._coordinator._maybe_leave_group()
    other = await mesh.start("metering", service=make_service(dedupe=False), fencing=fencing)
    await mesh.owned(other)
    logged = "SELECT count(*) FROM request_log"

    async def read_on() -> bool:
        return bool(await mesh.value("metering", logged) >= gateway.generations)

    await mesh.until(read_on, 30, "the new owner has read everything")
    gate.open.set()
    async with asyncio.timeout(20):
        for consumer in zombie.consumers:
            await consumer.drained()
    await mesh.abandon(zombie)
    await mesh.idle()
    return int(await mesh.value("metering", logged)) - gateway.generations


@pytest.mark.unretrieved("the zombie's client is cut off on purpose")
async def test_a_zombie_changes_nothing(mesh: Mesh, seed: int) -> None:
    before = metrics.FENCED_TOTAL.labels(topics.GENERATIONS.name)._value.get()
    assert await _two_owners(mesh, Gateway(seed), fencing=True) == 0
    assert metrics.FENCED_TOTAL.labels(topics.GENERATIONS.name)._value.get() > before


@pytest.mark.unretrieved("the zombie's client is cut off on purpose")
async def test_without_the_fence_the_same_run_doubles(mesh: Mesh, seed: int) -> None:
    assert await _two_owners(mesh, Gateway(seed), fencing=False) > 0


async def test_without_de_duplication_a_repeat_is_rated_twice(mesh: Mesh, seed: int) -> None:
    gateway = Gateway(seed)
    await gateway.send(mesh.env, [gateway.price(), *gateway.some(200, duplicates=0.2)])
    await mesh.start("metering", service=make_service(dedupe=False))
    await mesh.owned()
    await mesh.idle()
    assert await mesh.value("metering", "SELECT count(*) FROM request_log") > gateway.generations
