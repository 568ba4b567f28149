"""A copy under way: retention dies at each of its steps, an erasure comes between; there is one package, or none."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest

from deploy.local.ports import free_port
from services.retention.app import make_service, packages
from shared.mesh.runtime import Runtime
from tests.support.town import PASSPHRASE, Town, code_in, in_town
from tests.support.world import Faults, Mesh


@pytest.fixture
async def town(mesh: Mesh, seed: int, tmp_path: Path) -> AsyncIterator[Town]:
    async with in_town(mesh, seed, tmp_path / "mail", "notifications", "insights") as found:
        yield found


async def restarted(town: Town, fault: Faults | None = None) -> None:
    """Retention ends as a kill ends it, and starts again."""
    await town.mesh.abandon(town.runtime)
    settings = town.mesh.settings("retention", port=free_port())
    town.runtime = Runtime(
        make_service(timing=town.timing, trims=False, holders=("retention", "notifications", "insights")),
        settings, clock=town.clock, fault=fault,
    )  # fmt: skip
    town.mesh.running.append(town.runtime)
    await town.runtime.start()
    await town.mesh.owned()


async def test_one_package_whatever_retention_dies_at(town: Town) -> None:
    """Chunks of its own copy, the packing itself: each is done again by whoever comes after."""
    await restarted(town)
    for nth in (1, 2, 3):
        fault = Faults("nowhere")
        await restarted(town, fault)
        fault.point, fault.nth = "task_before_commit", nth
        case = await asyncio.wait_for(town.wish("access", passphrase=PASSPHRASE, settle=False), 30)
        await asyncio.wait_for(fault.hit.wait(), 30)
        await restarted(town)
        row = await town.until_case(case, "fulfilled")
        assert [one["what"] for one in row["history"]].count("packed") == 1
        manifest, _ = await town.package(case)
        assert manifest["case"] == case
        ready = [
            mail for mail in town.sink.mails() if case in mail.get_content() and "/packages/" in mail.get_content()
        ]
        assert len(ready) == 1


@pytest.mark.promise(44)
async def test_an_erasure_while_the_package_is_made(town: Town, monkeypatch: pytest.MonkeyPatch) -> None:
    """The package lies there, and nobody has said so yet: the last word comes first, and nobody ever gets it."""
    made, go_on = asyncio.Event(), asyncio.Event()
    build = packages._build

    async def slow(*arguments: Any) -> Any:
        built = await build(*arguments)
        made.set()
        await go_on.wait()
        return built

    monkeypatch.setattr(packages, "_build", slow)
    await restarted(town)
    deletion = await town.wish("erasure")
    code = code_in(await town.mail(deletion, ""))
    case = await town.wish("access", passphrase=PASSPHRASE, settle=False)
    await asyncio.wait_for(made.wait(), 30)
    assert [name for name in await town.blobs.names() if name.startswith(f"packages/{case}")]
    await town.give(deletion, code, settle=False)
    await town.until_state(case, "withdrawn")
    go_on.set()

    async def gone() -> bool:
        return not [name for name in await town.blobs.names() if case in name]

    await town.mesh.until(gone, 30, "nothing of it lies there")
    await town.mesh.idle()
    row = await town.case(case)
    assert row["package"] is None and row["state"] == "withdrawn"
    assert not [mail for mail in town.sink.mails() if case in mail.get_content() and "/packages/" in mail.get_content()]
