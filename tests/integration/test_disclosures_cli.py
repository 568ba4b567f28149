"""`steward disclosures`: an entry, its extract in files, its gag, and what a person settles."""

from __future__ import annotations

import json
from datetime import timedelta
from pathlib import Path

from services.retention.app import make_service
from tests.support.gateway import Gateway
from tests.support.hands import Hands
from tests.support.retention import FAST, Stage
from tests.support.world import Mesh


async def test_a_disclosure_from_its_entry_to_its_notice(mesh: Mesh, seed: int, tmp_path: Path) -> None:
    env = {**mesh.env, "STEWARD_HOME": str(tmp_path / "home"), "STEWARD_ACTOR": "tester", "COLUMNS": "200"}
    hands = Hands(mesh, Gateway(seed), tmp_path, env)
    await hands.start("retention", make_service(timing=FAST, trims=False))
    await mesh.owned()
    stage = Stage(mesh, seed)
    stage.runtime = mesh.running[-1]
    await stage.a_customer()
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
