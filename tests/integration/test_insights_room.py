"""Insights: nothing is kept of who opted out, not even from events in flight; each event counts once; reads need a case."""

from __future__ import annotations

import asyncio
import json
from datetime import timedelta
from pathlib import Path

import aiohttp
import pytest

from services.insights.activity import LIFE
from shared.contract import topics
from shared.mesh.http import NotAllowed
from tests.support.house import START, House
from tests.support.rewind import rewind
from tests.support.world import Mesh

SECOND = timedelta(seconds=1)


@pytest.fixture
def house(seed: int, tmp_path: Path) -> House:
    return House("insights", seed, tmp_path)


async def kept(mesh: Mesh) -> dict[str, int]:
    rows = await mesh.fetch("insights", "SELECT workspace, count(*)::int AS n FROM activity GROUP BY 1")
    return {row["workspace"]: row["n"] for row in rows}


@pytest.mark.promise(12)
async def test_nothing_is_kept_while_opted_out_not_even_from_events_in_flight(mesh: Mesh, house: House) -> None:
    await house.begin(mesh)
    early, late = [house.activity("ins-a", START - n * SECOND) for n in (60, 50)]
    await house.send(mesh, early, house.activity("ins-b"), house.activity("ins-c", opted_out=True))
    # The event's own word counts before any setting is known here.
    assert await kept(mesh) == {"ins-a": 1, "ins-b": 1}
    # The setting deletes what is there, of nobody else, and stops what was on its way when it came.
    await house.send(mesh, house.setting("ins-a", 1, True))
    assert await kept(mesh) == {"ins-b": 1}
    await house.send(mesh, late, early, house.activity("ins-a", START + SECOND))
    assert await kept(mesh) == {"ins-b": 1}
    # Opted in again: what is from before that stays away, whenever it comes.
    house.at(START + 60 * SECOND)
    await house.send(mesh, house.setting("ins-a", 2, False, START + 30 * SECOND))
    await house.send(
        mesh, late, early, house.activity("ins-a", START + 29 * SECOND),
        house.activity("ins-a", START + 31 * SECOND), house.activity("ins-a", START + 32 * SECOND, opted_out=True),
    )  # fmt: skip
    assert await kept(mesh) == {"ins-b": 1, "ins-a": 1}
    # Nothing of it lies anywhere else.
    assert await mesh.value("insights", "SELECT count(*) FROM mesh_dead_letter") == 0
    assert await house.counter(mesh, "activity_purged") == 1


@pytest.mark.promise(12)
async def test_an_opt_out_waits_for_what_was_judged_before_it(mesh: Mesh, house: House) -> None:
    """batch-in-flight: rows that an open transaction has written are not there yet when the opt-out deletes."""
    armed, written, go_on = asyncio.Event(), asyncio.Event(), asyncio.Event()

    async def hold(point: str) -> None:
        if point == "before_commit" and armed.is_set() and not written.is_set():
            written.set()
            await go_on.wait()

    await house.begin(mesh, fault=hold)
    await mesh.idle()  # settings of other tests are still in their topic
    armed.set()
    await house.gateway.send(mesh.env, [house.activity("ins-j")])
    await asyncio.wait_for(written.wait(), 20)
    await house.gateway.send(mesh.env, [house.setting("ins-j", 1, True)])

    async def it_waits_or_is_in_force() -> bool:
        waits = """SELECT count(*) FROM pg_locks WHERE locktype = 'advisory' AND NOT granted
                     AND database = (SELECT oid FROM pg_database WHERE datname = current_database())"""
        known = "SELECT count(*) FROM workspace_setting WHERE workspace = 'ins-j'"
        return bool(await mesh.value("insights", waits) or await mesh.value("insights", known))

    try:
        await mesh.until(it_waits_or_is_in_force, 20, "the opt-out arrives")
    finally:
        go_on.set()
    await mesh.idle()
    assert await kept(mesh) == {} and await house.counter(mesh, "activity_purged") == 1


@pytest.mark.promise(12)
async def test_settings_are_read_before_the_first_activity(mesh: Mesh, house: House) -> None:
    await house.gateway.send(mesh.env, [house.activity("ins-d"), house.setting("ins-d", 3, True)])
    running = await house.begin(mesh)
    await mesh.idle()
    assert await kept(mesh) == {}
    assert await house.counter(mesh, "activity_opted_out") == 1 and running.troubles() == []


async def test_a_lower_version_changes_nothing_and_an_erased_workspace_keeps_nothing(mesh: Mesh, house: House) -> None:
    await house.begin(mesh)
    await house.send(mesh, house.setting("ins-e", 5, True), house.setting("ins-f", 1, False), house.activity("ins-f"))
    await house.send(mesh, house.setting("ins-e", 4, False), house.setting("ins-e", 5, False), house.activity("ins-e"))
    assert await kept(mesh) == {"ins-f": 1}
    await house.send(mesh, house.setting("ins-f", 2, False, erased=True))
    await house.send(mesh, house.activity("ins-f"))
    assert await kept(mesh) == {}
    found = await mesh.fetch(
        "insights", "SELECT workspace, version, activity_opt_out FROM workspace_setting WHERE workspace = ANY($1)",
        ["ins-e", "ins-f"],
    )  # fmt: skip
    assert sorted(map(tuple, found)) == [("ins-e", 5, True), ("ins-f", 2, True)]


async def test_an_opt_out_and_its_end_in_one_batch(mesh: Mesh, house: House) -> None:
    await house.begin(mesh)
    before, after = house.activity("ins-g", START - SECOND), house.activity("ins-g", START + 2 * SECOND)
    house.at(START + 60 * SECOND)
    await house.send(mesh, before, after)
    batch = [
        house.setting("ins-g", 1, False), house.setting("ins-g", 2, True),
        house.setting("ins-g", 3, False, START + SECOND),
    ]  # fmt: skip
    await house.send(mesh, *batch)
    await house.send(mesh, before, after)
    assert await kept(mesh) == {"ins-g": 1}


async def test_each_event_once_and_none_that_is_over_or_ahead(mesh: Mesh, house: House) -> None:
    await house.begin(mesh)
    once = [house.activity("ins-h", START - n * SECOND) for n in range(20)]
    over = house.activity("ins-h", START - LIFE)
    last = house.activity("ins-h", START - LIFE + SECOND)
    ahead = house.activity("ins-h", START + timedelta(minutes=5, seconds=1))
    await house.send(mesh, *once, *once[:5], over, last, ahead)
    assert await kept(mesh) == {"ins-h": 21}
    await house.send(mesh, *once)
    assert await kept(mesh) == {"ins-h": 21} and await house.counter(mesh, "activity_duplicates") == 25
    assert await house.counter(mesh, "activity_expired") == 1 and await house.counter(mesh, "activity_future") == 1
    # Everything again from the log's start: the same rows, and no counter moves.
    await rewind(mesh, "insights", topics.ACTIVITY.name)
    await house.send(mesh, house.activity("ins-h"))
    assert await kept(mesh) == {"ins-h": 22} and await house.counter(mesh, "activity_duplicates") == 25


@pytest.mark.promise(12)
async def test_a_read_without_a_case_is_refused_and_noted(mesh: Mesh, house: House) -> None:
    running = await house.begin(mesh)
    await house.send(mesh, house.activity("ins-i"), house.activity("ins-i", START - LIFE + SECOND))
    for reason in ("", "curious", "sup-1", "SUP-1x", "because SUP-1"):
        with pytest.raises(NotAllowed):
            await running.answer("activity", {"workspace": "ins-i"}, "ann", "support", reason)
    case = "01939f6e-0000-7000-8000-000000000000"
    for reason in ("SUP-4711", "SUP-4711: the customer asks", case):
        said = await running.answer("activity", {"workspace": "ins-i"}, "ann", "support", reason)
        assert [row["member"] for row in said["rows"]] == ["mem-ins-i"] * 2 and said["reason"] is None
    noted = await mesh.fetch(
        "insights", "SELECT actor, role, reason FROM mesh_read WHERE name = 'activity' ORDER BY id"
    )
    assert len(noted) == 8 and {(row["actor"], row["role"]) for row in noted} == {("ann", "support")}
    # Hidden at the instant, though the day is not over yet.
    house.at(START + SECOND)
    assert len((await running.answer("activity", {"workspace": "ins-i"}, "ann", "support", case))["rows"]) == 1
    assert await kept(mesh) == {"ins-i": 2}


async def test_a_refused_read_says_what_is_missing(mesh: Mesh, house: House) -> None:
    running = await house.begin(mesh)
    running.port._port = 0
    await running.port.open()
    assert running.port._runner is not None
    host, port = running.port._runner.addresses[0][:2]
    async with aiohttp.ClientSession() as session:
        url = f"http://{host}:{port}/reads/activity?workspace=ins-i"
        async with session.get(url) as answer:
            assert answer.status == 403 and "SUP-4711" in json.loads(await answer.read())["error"]
        async with session.get(url, headers={"x-steward-reason": "SUP-1"}) as answer:
            assert answer.status == 200 and json.loads(await answer.read()) == {"rows": [], "reason": None}
