"""Rights, from the first word to the answer, with every holder at work and real mail."""

from __future__ import annotations

from collections.abc import AsyncIterator
from datetime import timedelta
from pathlib import Path

import pytest

from tests.support.town import PASSPHRASE, Town, code_in, in_town, lines, link_in
from tests.support.world import Mesh


@pytest.fixture
async def town(mesh: Mesh, seed: int, tmp_path: Path) -> AsyncIterator[Town]:
    async with in_town(mesh, seed, tmp_path / "mail") as found:
        yield found


@pytest.mark.promise(39)
@pytest.mark.promise(40)
async def test_a_copy_from_the_settings(town: Town) -> None:
    """Asked for, signed in: acknowledged, packed from every holder, fetched by the link, opened; 410 when its time is over."""
    await town.used(60)
    case = await town.wish("access", passphrase=PASSPHRASE)
    row = await town.until_case(case, "fulfilled")
    assert row["status"] == "fulfilled" and row["verified_at"] and row["answered_at"]
    assert {clock["name"]: clock["open"] for clock in row["clocks"]} == {
        "acknowledgement": False, "answer": False, "ccpa": False, "copy": False,
    }  # fmt: skip
    assert [mail["template"] for mail in row["mails"]] == ["acknowledgement", "copy_ready"]
    manifest, archive = await town.package(case)
    rows = await town.mesh.fetch("metering", "SELECT * FROM request_log WHERE workspace = $1", town.workspace)
    logged = lines(archive, "data/metering/request_log.jsonl")
    assert len(logged) == len(rows) == 60
    assert {one["generation_id"] for one in logged} == {str(row["generation_id"]) for row in rows}
    (account,) = lines(archive, "data/retention/account.jsonl")
    assert account["account"] == town.account
    (address,) = lines(archive, "data/notifications/address.jsonl")
    assert address["sealed"] == "kim@example.org"
    assert {source["holder"] for source in manifest["sources"]} == {*town.others, "retention"}
    status, _ = await town.fetch(link_in(await town.mail(case, "")))
    assert status == 200
    assert (await town.case(case))["package"]["fetched"] == 2
    link = link_in(await town.mail(case, ""))
    town.clock.ahead = timedelta(days=7)
    assert (await town.fetch(link))[0] == 410
    assert (await town.fetch(link[:-1] + ("0" if link[-1] != "0" else "1")))[0] == 404
    history = [(one["what"], one["actor"]) for one in (await town.case(case))["history"]]
    assert history[0] == ("received", "person") and ("state:packing", "retention") in history


@pytest.mark.promise(54)
async def test_a_copy_by_mail_waits_for_the_proof(town: Town) -> None:
    await town.used(5)
    case = await town.wish("access", channel="support")
    row = await town.case(case)
    assert (row["status"], row["reason"]) == ("open", "need_user_verification") and row["proofs_needed"] == ["account"]
    code = code_in(await town.mail(case, ""))
    await town.give(case, "2" * 8, passphrase=PASSPHRASE)
    assert (await town.case(case))["attempts"] == 1
    await town.give(case, code, passphrase=PASSPHRASE)
    await town.until_case(case, "fulfilled")
    _, archive = await town.package(case)
    assert len(lines(archive, "data/metering/request_log.jsonl")) == 5
