"""A holder dies at every point of an erasure; whoever takes over ends it, and the receipt is one."""

from __future__ import annotations

from collections.abc import Awaitable, Callable

import pytest

from shared.contract import topics
from shared.contract.units import Subject
from tests.support.coordinator import Coordinator, new_case
from tests.support.gateway import Gateway
from tests.support.platform import arrived
from tests.support.world import Faults, Mesh

# Those of `Runtime(fault=...)`, from the order's arrival to the receipt on its topic.
POINTS = (
    "decoded",
    "fenced",
    "before_commit",
    "committed",
    "task_before_commit",
    "relay_read",
    "relay_acknowledged",
)


def subjects_of(workspace: str) -> list[Subject]:
    """Everybody that a workspace of the gateway is."""
    return [("account", f"acc-{workspace}"), ("workspace", workspace), ("key", f"key-{workspace}")]


@pytest.mark.promise(44, 45)
async def test_a_holder_dies_at_every_point(mesh: Mesh, seed: int) -> None:
    gateway = Gateway(seed, workspaces=len(POINTS) + 1)
    await gateway.send(mesh.env, [gateway.price(), *gateway.some(300)])
    await gateway.send(mesh.env, [gateway.generation(f"ws-{n}") for n in range(len(POINTS) + 1)])
    faults = Faults("nowhere")
    metering = await mesh.start("metering", fault=faults)
    await mesh.owned()
    await mesh.idle()
    survivor = await mesh.value(
        "metering", "SELECT count(*) FROM request_log WHERE workspace = $1", f"ws-{len(POINTS)}"
    )
    for number, point in enumerate(POINTS):
        retention = Coordinator(mesh, gateway, metering)
        subjects, case = subjects_of(f"ws-{number}"), new_case()
        order = await retention.order(case, subjects, ["metering"])
        faults.point, faults.nth = point, faults.seen + 1 + seed % 2 * (point == "task_before_commit")
        # Twice, and the command before the tombstones: neither order nor number matters.
        await gateway.send(mesh.env, [order, *retention.tombstones(case, subjects), order])
        await mesh.until(faults_hit(faults), 30, f"{point} is reached")
        await mesh.abandon(metering)
        faults = Faults("nowhere")
        metering = await mesh.start("metering", fault=faults)
        retention.runtime = metering
        await mesh.owned()
        await mesh.idle()
        receipts = [r for r in await arrived(_servers(mesh), topics.PRIVACY_RECEIPTS) if r.event.data.case == case]
        assert len({r.event.id for r in receipts}) == 1, f"one receipt, however often it is given: {point}"
        left = await mesh.value("metering", "SELECT count(*) FROM request_log WHERE workspace = $1", f"ws-{number}")
        assert left == 0, f"{left} rows are left after a death at {point}"
    assert survivor == await mesh.value(
        "metering", "SELECT count(*) FROM request_log WHERE workspace = $1", f"ws-{len(POINTS)}"
    )


def faults_hit(faults: Faults) -> Callable[[], Awaitable[bool]]:
    """A condition for `until`."""

    async def hit() -> bool:
        return faults.hit.is_set()

    return hit


def _servers(mesh: Mesh) -> str:
    return mesh.env["STEWARD_KAFKA_BOOTSTRAP_SERVERS"]
