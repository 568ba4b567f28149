"""A session's hash leads nobody back: what a live session of an erased account still does has no effect in any room."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest

from shared.contract import events, topics
from shared.contract.sealing import seal
from shared.contract.units import Subject
from tests.support.coordinator import Coordinator, new_case
from tests.support.gateway import Gateway, Sent
from tests.support.world import Mesh

ROOMS = ("security", "insights")
SESSION = "canary-session-5f3a"
JWT = "eyJhbGciOiJIUzI1NiJ9.eyJzdWIiOiI0MiJ9.c2lnbmF0dXJl"
EVERYTHING = """SELECT c.oid::regclass::text FROM pg_class c WHERE c.relkind IN ('r', 'p') AND NOT c.relispartition
                AND c.relnamespace = 'public'::regnamespace"""


async def places(mesh: Mesh, text: str) -> list[str]:
    """Tables of both rooms in whose rows the text stands."""
    return [
        f"{room}.{table}"
        for room in ROOMS
        for (table,) in await mesh.fetch(room, EVERYTHING)
        if await mesh.value(room, f"SELECT count(*) FROM {table} t WHERE strpos(t::text, $1) > 0", text)
    ]


@pytest.mark.promise(37)
async def test_sign_in_of_an_erased_account_brings_nobody_back(mesh: Mesh, seed: int) -> None:
    gateway = Gateway(seed)
    security, _ = await asyncio.gather(*(mesh.start(room) for room in ROOMS))
    await mesh.owned()
    retention = Coordinator(mesh, gateway, security)
    now = security.clock.now()
    await retention.vault.make_ingress([now.date()], now)
    ip = seal("192.0.2.7", *await retention.vault.ingress(now.date()))
    who = {"account": "acc-gone", "workspace": "ws-gone", "member": "mem-gone"}

    def access(**data: Any) -> Sent:
        data = {"session": SESSION, "agent": "browser", "ip": ip} | who | data
        return gateway.event(topics.ACCESS, events.AccessRecorded, data, key="acc-gone", subject="acc-gone")

    def activity() -> Sent:
        data = {"surface": "playground", "action": "run", "model": "m"} | who
        return gateway.event(topics.ACTIVITY, events.ActivityRecorded, data, key="ws-gone", subject="ws-gone")

    def live() -> list[Sent]:
        """All that a browser does that has not noticed yet."""
        kinds = ("sign_in", "dashboard", "sign_out")
        return [
            *(access(kind=kind) for kind in kinds),
            access(kind="dashboard", member=None, workspace=None),
            activity(),
        ]

    await gateway.send(mesh.env, [*live(), access(kind="dashboard", session=JWT)])
    await mesh.idle()
    assert await places(mesh, SESSION) == ["security.access_row"]
    assert {p.partition(".")[0] for p in await places(mesh, "acc-gone")} == set(ROOMS)
    assert await mesh.value("security", "SELECT count(*) FROM access_row") == 4, "the one with a token is refused"
    assert await mesh.value("security", "SELECT count(*) FROM mesh_dead_letter WHERE reason = 'invalid'") == 1
    assert await places(mesh, JWT) == [] == await places(mesh, JWT[-12:])

    case = new_case()
    subjects: list[Subject] = [("account", "acc-gone"), ("workspace", "ws-gone"), ("member", "mem-gone")]
    await gateway.send(mesh.env, retention.tombstones(case, subjects))
    await gateway.send(mesh.env, [await retention.order(case, subjects, ROOMS)])
    await retention.receipts(case, len(ROOMS))
    await mesh.idle()
    clean = [p for text in (SESSION, *(subject for _, subject in subjects)) for p in await places(mesh, text)]
    assert clean == []
    counts = "SELECT coalesce(sum(value), 0)::int FROM mesh_counter WHERE name LIKE 'erased%'"
    before = [await mesh.value(room, counts) for room in ROOMS]
    late = live()
    await gateway.send(mesh.env, [*late, late[0]])
    await mesh.idle()
    assert [p for text in (SESSION, "acc-gone", "ws-gone", "mem-gone") for p in await places(mesh, text)] == []
    dropped = [await mesh.value(room, counts) - n for room, n in zip(ROOMS, before, strict=True)]
    assert dropped == [5, 1], "dropped, and counted"
