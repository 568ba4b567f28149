"""`steward privacy` and `steward holds`: a person asks for a deletion, follows it, decides where it needs a person."""

from __future__ import annotations

import json
from datetime import timedelta
from pathlib import Path

import pytest

from services.retention.app import make_service
from tests.support.gateway import Gateway
from tests.support.hands import Hands
from tests.support.retention import FAST, OTHERS, Stage
from tests.support.world import Mesh

MISSING = "019ab7d4-1e5a-7f00-8a1b-2c3d4e5f6a7b"


@pytest.fixture
async def desk(mesh: Mesh, seed: int, tmp_path: Path) -> tuple[Hands, Stage]:
    """Retention with its HTTP port, a customer, and a person's hands."""
    env = {**mesh.env, "STEWARD_HOME": str(tmp_path / "home"), "STEWARD_ACTOR": "tester", "COLUMNS": "200"}
    hands = Hands(mesh, Gateway(seed), tmp_path, env)
    await hands.start("retention", make_service(timing=FAST, trims=False))
    await mesh.owned()
    stage = Stage(mesh, seed)
    stage.runtime = mesh.running[-1]
    await stage.a_customer()
    return hands, stage


async def test_a_person_follows_a_deletion_to_its_certificate(desk: tuple[Hands, Stage], tmp_path: Path) -> None:
    hands, stage = desk
    asked = ("privacy", "request", "--scope", "account", "--account", stage.account)
    case = (await hands(*asked)).stdout.strip()
    again = await hands.json(*asked, "--channel", "settings")
    assert again["case"] == case != again["request"]
    confirm = ("privacy", "confirm", again["request"], "--account", stage.account, "--code")
    assert "wrong (1 of 5 attempts)" in (await hands(*confirm, "2" * 8, code=1)).output
    assert "no code of the contract" in (await hands(*confirm, "short", code=2)).output
    assert "is not certified" in (await hands("privacy", "certificate", case, code=1)).output
    await hands(*confirm, await stage.code(case))
    assert "nothing left" in (await hands("privacy", "withdraw", case, "--account", stage.account, code=1)).output
    await stage.first_wave(case, [name for name in OTHERS if name != "insights"])
    (row,) = await hands.json("privacy", "list")
    assert row["id"] == case and row["missing"] == ["billing", "insights"]
    text = (await hands("privacy", "status", case)).output
    assert "wave_1" in text and "some_table" in text and "ccpa due" in text
    waive = ("privacy", "waive", case, "--holder")
    assert "expects" in (await hands(*waive, "nobody", "--ticket", "T-1", code=1)).output
    assert "--ticket" in (await hands(*waive, "insights", code=2)).output
    await hands(*waive, "insights", "--ticket", "OPS-1")
    await stage.until_ordered(case, "erase", holder="billing")
    await stage.send(stage.receipt("billing", case))
    await stage.until_ordered(case, "probe")
    await stage.send(stage.scan(case, "probe", 1, insights="not_scanned"))
    await hands("privacy", "sweep", case)
    await stage.until_ordered(case, "sweep", 2)
    await stage.send(stage.scan(case, "sweep", 2, insights="not_scanned"))
    await stage.until_state(case, "certified")
    assert "certified" in (await hands("privacy", "status", case, "--watch")).output
    file = tmp_path / "certificate.json"
    file.write_text((await hands("privacy", "certificate", case)).stdout)
    public = Path(hands.env["STEWARD_SIGNING_KEY_FILE"]).with_name("certificate.pem")
    await hands("certificate", "verify", str(file), "--trust", str(public))
    waived = (await stage.certificate(case))["waived"]
    assert [(one["holder"], one["by"], one["ticket"]) for one in waived] == [("insights", "tester", "OPS-1")]
    said = "".join(
        [(await hands(*words)).output for words in (("privacy", "list", "--all"), ("privacy", "status", case))]
    )
    assert stage.tag not in said
    assert "No case is open" in (await hands("privacy", "list")).output


async def test_requests_that_cannot_be(desk: tuple[Hands, Stage]) -> None:
    hands, stage = desk
    await hands("privacy", "request", "--scope", "member", "--account", stage.account, code=2)
    await hands("privacy", "request", "--scope", "account", "--account", "not an id", code=2)
    stranger = ("privacy", "request", "--scope", "workspace", "--account", "acc-other", "--target", stage.workspace)
    assert "dead-letters" in (await hands(*stranger, "--timeout", "2", code=1)).output
    assert "no such case" in (await hands("privacy", "status", MISSING, code=1)).output
    asked = ("privacy", "request", "--scope", "workspace", "--account", stage.account, "--target", stage.workspace)
    case = (await hands(*asked)).stdout.strip()
    await hands("privacy", "withdraw", case, "--account", stage.account)
    assert await stage.state(case) == "withdrawn"


async def test_a_hold_from_its_placing_to_its_release(desk: tuple[Hands, Stage]) -> None:
    hands, stage = desk
    until = (stage.clock.now() + timedelta(days=30)).date().isoformat()
    place = (
        "holds", "place", stage.account, "--kind", "account", "--holder", "security", "--table", "finding", "--ground",
        "court_order",
    )  # fmt: skip
    await hands(*place, "--until", until, code=2)
    assert "refused" in (await hands(*place, "--until", "2020-01-01", "--ticket", "T-7", code=1)).output
    hold = (await hands(*place, "--until", until, "--ticket", "T-7")).stdout.strip()
    await stage.until_ordered(hold, "hold")
    await stage.send(stage.receipt("security", hold, 1, "hold"))
    (row,) = await hands.json("holds", "list")
    assert (row["id"], row["state"], row["placed_by"], row["rows"]) == (hold, "held", "tester", 3)
    assert stage.tag not in (await hands("holds", "list")).output
    await hands("holds", "release", hold, "--ticket", "T-8", "--timeout", "0")
    await stage.until_ordered(hold, "release", 2)
    await stage.send(stage.receipt("security", hold, 2, "release"))
    assert "Nothing is held" in (await hands("holds", "list")).output
    (row,) = await hands.json("holds", "list", "--all")
    assert (row["state"], row["released_by"], row["release_ticket"]) == ("released", "tester", "T-8")
    assert "already" in (await hands("holds", "release", hold, "--ticket", "T-9", code=1)).output


async def test_a_disclosure_from_its_entry_to_its_notice(desk: tuple[Hands, Stage], tmp_path: Path) -> None:
    hands, stage = desk
    day = stage.clock.now().date()
    since, until = (day - timedelta(days=5)).isoformat(), (day + timedelta(days=5)).isoformat()
    assert "Nothing is disclosed" in (await hands("disclosures", "list")).output
    enter = ("disclosures", "enter", stage.account, "--authority", "us-doj", "--since", since, "--until", until)
    process = ("--instrument", "court_order", "--reference", "22-cv-117")
    tables = ("--from", "retention=workspace.account")
    assert "--ticket" in (await hands(*enter, *process, *tables, code=2)).output
    assert "--from" in (await hands(*enter, *process, "--ticket", "L-1", code=2)).output
    assert "--from" in (await hands(*enter, *process, "--from", "nobody=x", "--ticket", "L-1", code=2)).output
    assert "dead-letters" in (await hands(*enter, *tables, "--ticket", "L-1", code=1)).output
    whole = ("disclosures", "enter", stage.account, "--authority", "us-doj", *process, *tables, "--ticket", "L-1")
    gag = (day + timedelta(days=100)).isoformat()
    assert "may" in (await hands(*whole, "--gag-until", gag, "--role", "support", code=1)).output
    entry = (await hands.json(*whole, "--gag-until", gag))["entry"]
    (row,) = await hands.json("disclosures", "list")
    assert (row["id"], row["state"], row["actor"], row["ticket"]) == (entry, "gagged", "tester", "L-1")
    assert "may not" in (await hands("disclosures", "list", "--role", "support", code=1)).output
    out = tmp_path / "out"
    extract = ("disclosures", "extract", entry, "--out", str(out), "--ticket", "L-2")
    assert "dead-letters" in (await hands(*extract, "--from", "retention=api_key", code=1)).output
    written = (await hands(*extract)).stdout.split()
    assert sorted(Path(file).name for file in written) == ["retention.account.jsonl", "retention.workspace.jsonl"]
    (line,) = (out / "retention.workspace.jsonl").read_text().splitlines()
    assert json.loads(line)["workspace"] == stage.workspace
    assert all(file.stat().st_mode & 0o077 == 0 for file in out.iterdir())
    later = (day + timedelta(days=200)).isoformat()
    await hands("disclosures", "end-gag", entry, "--extend", later, "--ticket", "L-3")
    refused = ("disclosures", "end-gag", entry, "--extend", since, "--ticket", "L-4")
    assert "dead-letters" in (await hands(*refused, code=1)).output
    await stage.send(stage.receipt("notifications", entry, 2, "envelope", treated=[]))
    assert "nothing to settle" in (await hands("disclosures", "settle", entry, "--ticket", "L-5", code=1)).output
    await hands("disclosures", "end-gag", entry, "--ticket", "L-5")
    assert "over" in (await hands("disclosures", "end-gag", entry, "--ticket", "L-5", code=1)).output
    await stage.send(stage.accepted(entry, f"disclosed-{entry}", "refused"))
    assert "needs a person" in (await hands("disclosures", "show", entry)).output
    await hands("disclosures", "settle", entry, "--ticket", "L-6")
    shown = (await hands("disclosures", "show", entry)).output
    assert "court_order 22-cv-117" in shown and "gag_extended" in shown and "L-2" in shown and stage.tag not in shown
