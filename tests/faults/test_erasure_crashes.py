"""A holder, and the coordinator, die at every point of an erasure; whoever takes over ends it, and says each thing once."""

from __future__ import annotations

import json
from collections.abc import Awaitable, Callable
from typing import Any

import pytest

from shared.contract import topics
from shared.contract.units import Subject
from shared.privacy.certificate import verify
from tests.support.coordinator import Coordinator, new_case
from tests.support.gateway import Gateway, Sent, body
from tests.support.platform import arrived
from tests.support.retention import OTHERS, Stage
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


TAKING = ("decoded", "fenced", "before_commit", "committed")
SAYING = ("relay_read", "relay_acknowledged")
# A case's steps, and where retention can die in each: in the sweep's nothing is said, and in the confirmation's it erases
# for itself, too.
STEPS = {
    "request": TAKING + SAYING,
    "confirmation": (*TAKING, "task_before_commit", *SAYING),
    "first wave": TAKING + SAYING,
    "second wave": TAKING + SAYING,
    "probe": TAKING + SAYING,
    "sweep": TAKING,
}


@pytest.mark.promise(44, 45)
@pytest.mark.timeout(240)
async def test_half_created_whatever_the_coordinator_dies_at(mesh: Mesh, seed: int) -> None:
    """In each step of a case at another point, by the seed; the case goes its way as if nothing had happened."""
    faults = Faults("nowhere")
    for turn in (seed, seed + 3):
        stage = Stage(mesh, seed)
        await stage.start(fault=faults)
        await stage.a_customer()
        said: dict[str, list[Sent]] = {}
        asked = stage.request()
        case = str(body(asked)["id"])
        for number, (step, points) in enumerate(STEPS.items()):
            match step:
                case "request":
                    said[step] = [asked]
                case "confirmation":
                    said[step] = [stage.judged(case)]
                case "first wave":
                    await mesh.until(erased_itself(stage, case), 20, "retention's own receipt")
                    said[step] = [stage.receipt(name, case) for name in OTHERS]
                case "second wave":
                    await stage.until_ordered(case, "erase", holder="billing")
                    said[step] = [stage.receipt("billing", case)]
                case "probe":
                    await stage.until_ordered(case, "probe")
                    said[step] = [stage.scan(case, "probe", 1)]
                case "sweep":
                    await stage.until_ordered(case, "sweep", 2)
                    said[step] = [stage.scan(case, "sweep", 2)]
            faults.point, faults.nth = points[(turn + number) % len(points)], faults.seen + 1
            await stage.voices["gateway-1"].send(mesh.env, said[step])
            await mesh.until(faults_hit(faults), 30, f"{faults.point} is reached in the {step}")
            await mesh.abandon(stage.runtime)
            faults = Faults("nowhere")
            await stage.start(fault=faults)
            await mesh.idle()
        await stage.until_state(case, "certified")
        document = json.dumps(await stage.certificate(case)).encode()
        assert verify(document, [stage.trusted]).verdict == "valid"
        # Whatever was said twice is one event.
        deeds: dict[tuple[Any, ...], set[str]] = {}
        for topic in (topics.PRIVACY_COMMANDS, topics.MESSAGES, topics.TOMBSTONES):
            for _, event in await stage.records(topic):
                if event is not None and event["data"].get("case") == case:
                    data = event["data"]
                    deed = [str(data.get(name)) for name in ("action", "epoch", "holders", "cause", "hash")]
                    deeds.setdefault((topic.name, *deed), set()).add(event["id"])
        assert [deed for deed, ids in deeds.items() if len(ids) > 1] == []
        assert [sum(name == topic.name for name, *_ in deeds) for topic in (topics.MESSAGES, topics.TOMBSTONES)] == [
            2,
            5,
        ]
        assert await mesh.value("retention", "SELECT count(*) FROM mesh_dead_letter") == 0
        assert set((await stage.case(case))["holders"]) == set(topics.HOLDERS)
        assert stage.runtime.troubles() == []
        await mesh.stop(stage.runtime)
        faults = Faults("nowhere")
    assert await mesh.value("retention", "SELECT count(*) FROM certificate") == 2


def erased_itself(stage: Stage, case: str) -> Callable[[], Awaitable[bool]]:
    """Whether retention, a holder as well, has answered itself."""

    async def done() -> bool:
        return bool((await stage.case(case))["holders"]["retention"]["state"] == "done")

    return done


def faults_hit(faults: Faults) -> Callable[[], Awaitable[bool]]:
    """A condition for `until`."""

    async def hit() -> bool:
        return faults.hit.is_set()

    return hit


def _servers(mesh: Mesh) -> str:
    return mesh.env["STEWARD_KAFKA_BOOTSTRAP_SERVERS"]
