"""The restore drill on the services of a test: nobody comes back, and it says so when somebody does."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from typing import Any

import pytest

from deploy.cli.books import prove
from deploy.drill.found import COMES_BACK, Result, Seen, differences
from deploy.drill.run import Drill
from services.audit.app import make_service as make_audit
from shared.contract.topics import HOLDERS
from shared.mesh import Batch, Transaction
from shared.mesh.runtime import Runtime
from shared.privacy import store
from shared.privacy.holder import Holder
from tests.support.world import Mesh

pytestmark = pytest.mark.timeout(300)


class Rooms:
    """The drill's site: rooms as tasks of the test's event loop."""

    def __init__(self, mesh: Mesh) -> None:
        self._mesh = mesh
        self._rooms: dict[str, Runtime] = {}

    @property
    def settings(self) -> Mapping[str, str]:
        return self._mesh.env

    async def start(self, rooms: Sequence[str]) -> None:
        for room in rooms:
            service = make_audit(self._mesh.env) if room == "audit" else None
            self._rooms[room] = await self._mesh.start(room, service=service)
        await self._mesh.owned()

    async def stop(self, rooms: Sequence[str]) -> None:
        for room in rooms:
            await self._mesh.stop(self._rooms.pop(room))

    async def idle(self) -> None:
        await self._mesh.idle()

    async def ask(self, room: str, name: str, **query: str) -> Any:
        return await self._rooms[room].answer(name, query, "tester", "operator", "SUP-1")

    def mails(self) -> Sequence[bytes]:
        return [bytes(mail) for mail in self._mesh.mails()]


class Now:
    """The machine's clock."""

    def now(self) -> datetime:
        return datetime.now(UTC)


async def drilled(mesh: Mesh, seed: int, services: Sequence[str]) -> list[Result]:
    """The outcome of a drill with these services."""
    found = await Drill(
        Rooms(mesh), Now(), prove, lambda text: None, services=services, seed=seed, generations=20
    ).run()  # fmt: skip
    assert [one.service for one in found] == list(services)
    return found


async def test_restore_drill(mesh: Mesh, seed: int) -> None:
    """The older copy has the erased; the service takes no work before it is rid of them, and all else is as before."""
    (one,) = await drilled(mesh, seed, ["metering"])
    assert one.in_copy > 20 and one.reapplied > 0
    assert (one.at_ready, one.at_end, one.books_ok, one.differences) == (0, 0, True, ())
    assert one.as_before and "not_scanned" not in one.verdicts.values() and one.verdicts


@pytest.mark.exhaustive
async def test_restore_drill_without_its_guard(mesh: Mesh, seed: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """What is not erased again before the service takes work is seen, and the drill says no."""
    deaf: list[bool] = []
    obey = Holder.obey

    async def nothing(self: Holder, runtime: Any) -> None:
        # The order, read again, would come to the rescue in no time.
        async with runtime.pool.acquire() as db:
            deaf.extend([True] if await store.unapplied(db) else [])

    async def listen(self: Holder, batch: Batch, tx: Transaction) -> None:
        if not deaf:
            await obey(self, batch, tx)

    monkeypatch.setattr(Holder, "reapply", nothing)
    monkeypatch.setattr(Holder, "obey", listen)
    (one,) = await drilled(mesh, seed, ["metering"])
    assert one.at_ready > 0 and one.reapplied == 0 and not one.as_before


@pytest.mark.exhaustive
@pytest.mark.parametrize("service", [name for name in HOLDERS if name not in ("metering",)])
async def test_restore_drill_of_every_service(mesh: Mesh, seed: int, service: str) -> None:
    (one,) = await drilled(mesh, seed, [service])
    assert one.at_ready == one.at_end == 0 and one.books_ok, one.differences


def test_what_is_not_as_before_is_said() -> None:
    before = Seen({"billing.entry": "clean"}, {"ok": True, "rated": 3, "in_flight": 0}, {"revenue": 7}, {"line": 2})
    assert differences(before, before) == ()
    moved = Seen(before.verdicts, {**before.books, "in_flight": 4}, before.ledger, before.stays)
    assert differences(before, moved) == ()
    ends = Seen({"billing.entry": "expiring"}, before.books, before.ledger, before.stays)
    assert differences(ends, before) == () != differences(before, ends)
    others = [
        Seen({"billing.entry": "residue"}, before.books, before.ledger, before.stays),
        Seen({}, before.books, before.ledger, before.stays),
        Seen(before.verdicts, {**before.books, "rated": 4}, before.ledger, before.stays),
        Seen(before.verdicts, before.books, {"revenue": 8}, before.stays),
        Seen(before.verdicts, before.books, before.ledger, {"line": 1}),
        Seen(before.verdicts, before.books, before.ledger, {"line": 2, "note": 1}),
    ]
    assert [len(differences(before, other)) for other in others] == [1] * len(others)
    assert set(COMES_BACK) == set(HOLDERS)
