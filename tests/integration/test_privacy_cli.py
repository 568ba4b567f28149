"""`steward privacy` and `steward holds`: a person asks for a deletion, follows it, decides where it needs a person."""

from __future__ import annotations

from collections.abc import AsyncIterator
from datetime import timedelta
from pathlib import Path

import pytest

from tests.support.gateway import Gateway
from tests.support.hands import Hands
from tests.support.retention import OTHERS
from tests.support.town import PASSPHRASE, Town, code_in, in_town, link_in
from tests.support.world import Mesh

MISSING = "019ab7d4-1e5a-7f00-8a1b-2c3d4e5f6a7b"
PLAYED = [name for name in OTHERS if name != "notifications"]


@pytest.fixture
async def desk(mesh: Mesh, seed: int, tmp_path: Path) -> AsyncIterator[tuple[Hands, Town]]:
    """Retention with its HTTP port, notifications with real mail, a customer, and a person's hands."""
    async with in_town(mesh, seed, tmp_path / "mail", "notifications") as town:
        env = {**mesh.env, "STEWARD_HOME": str(tmp_path / "home"), "STEWARD_ACTOR": "tester", "COLUMNS": "200"}
        env["STEWARD_RETENTION_PORT"] = str(town.runtime.settings.port)
        yield Hands(mesh, Gateway(seed), tmp_path, env), town


async def test_a_person_follows_a_deletion_to_its_certificate(desk: tuple[Hands, Town], tmp_path: Path) -> None:
    hands, stage = desk
    asked = ("privacy", "request", "--scope", "account", "--account", stage.account)
    case = (await hands(*asked)).stdout.strip()
    again = await hands.json(*asked, "--channel", "settings")
    assert again["case"] == case != again["request"]
    confirm = ("privacy", "confirm", again["request"], "--account", stage.account, "--code")
    assert "wrong (1 of 5 attempts)" in (await hands(*confirm, "2" * 8, code=1)).output
    assert "no code of the contract" in (await hands(*confirm, "short", code=2)).output
    assert "is not certified" in (await hands("privacy", "certificate", case, code=1)).output
    await hands(*confirm, code_in(await stage.mail(case, "")))
    assert "nothing left" in (await hands("privacy", "withdraw", case, "--account", stage.account, code=1)).output
    await stage.first_wave(case, [name for name in PLAYED if name != "insights"])
    await stage.mesh.idle()
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


async def test_requests_that_cannot_be(desk: tuple[Hands, Town], tmp_path: Path) -> None:
    hands, stage = desk
    await hands("privacy", "request", "--scope", "member", "--account", stage.account, code=2)
    await hands("privacy", "request", "--scope", "account", "--account", "not an id", code=2)
    stranger = ("privacy", "request", "--scope", "workspace", "--account", "acc-other", "--target", stage.workspace)
    assert "dead-letters" in (await hands(*stranger, "--timeout", "2", code=1)).output
    account = ("privacy", "request", "--account", stage.account, "--kind")
    assert "--since" in (await hands(*account, "access", "--since", "yesterday", code=2)).output
    backwards = ("--since", "2026-11-02", "--until", "2026-11-01")
    assert "since is not before until" in (await hands(*account, "access", *backwards, code=2)).output
    opt_out = (*account, "sale:opt-out", "--scope", "workspace", "--target", stage.workspace)
    assert "about an account" in (await hands(*opt_out, code=2)).output
    assert "no such case" in (await hands("privacy", "status", MISSING, code=1)).output
    export = ("privacy", "export", "--account", stage.account, "--recipient", "age1" + "q" * 58)
    (no_text := tmp_path / "no-text").write_bytes(b"\xff" * 20)
    (empty := tmp_path / "empty").touch()
    assert "UTF-8" in (await hands(*export, "--passphrase-file", str(no_text), code=2)).output
    address = ("privacy", "request", "--kind", "rectification", "--account", stage.account, "--field", "address")
    assert "UTF-8" in (await hands(*address, "--value-file", str(no_text), code=2)).output
    assert "is empty" in (await hands(*address, "--value-file", str(empty), code=2)).output
    asked = ("privacy", "request", "--scope", "workspace", "--account", stage.account, "--target", stage.workspace)
    case = (await hands(*asked)).stdout.strip()
    strange = ("privacy", "confirm", case, "--account", "acc-other", "--code", "2" * 8)
    assert "--service notifications" in (await hands(*strange, "--timeout", "1", code=1)).output
    await hands("privacy", "withdraw", case, "--account", stage.account)
    assert await stage.state(case) == "withdrawn"
    assert "waits for no code" in (await hands(*strange, code=1)).output


async def test_a_hold_from_its_placing_to_its_release(desk: tuple[Hands, Town]) -> None:
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


async def test_a_person_asks_for_what_is_kept_and_staff_do_their_part(desk: tuple[Hands, Town], tmp_path: Path) -> None:
    """Every verb: by mail, proved by a code, waived where a holder is gone, packed, opened; mails to support, and no."""
    hands, town = desk
    (tmp_path / "pass.txt").write_text(PASSPHRASE)
    (tmp_path / "from.txt").write_text("kim@example.org")
    (tmp_path / "name.txt").write_text("Kim")
    account = ("--account", town.account)
    case = (await hands("privacy", "request", "--kind", "access", *account, "--ccpa")).stdout.strip()
    assert "this is a deletion" in (
        await hands(
            "privacy", "verify", (await hands("privacy", "request", *account)).stdout.strip(), *account, "--code", "2" * 8,
            code=1,
        )
    ).output  # fmt: skip
    code = code_in(await town.mail(case, ""))
    verify = ("privacy", "verify", case, *account, "--passphrase-file", str(tmp_path / "pass.txt"), "--code")
    assert "wrong (1 of 5 attempts)" in (await hands(*verify, "2" * 8, code=1)).output
    assert "no deletion (access)" in (await hands("privacy", "confirm", case, *account, "--code", code, code=1)).output
    assert "what opens the package" in (await hands(*verify[:5], "--code", code, code=1)).output
    code = code_in(await town.mail(case, ""))
    assert "Proved" in (await hands(*verify, code)).output
    text = (await hands("privacy", "status", case)).output
    assert "in_progress" in text and "copy due" in text
    done = [one["what"] for one in (await town.case(case))["history"]]
    assert [what for what in done if what in ("wrong_code", "proved", "proved_without_opener")] == [
        "wrong_code", "proved_without_opener", "proved",
    ]  # fmt: skip
    for holder in [name for name in (*PLAYED, "billing") if name not in town.others]:
        await hands("privacy", "waive", case, "--holder", holder, "--ticket", "OPS-1")
    await town.until_case(case, "fulfilled")
    link = link_in(await town.mail(case, "copy"))
    await hands("package", "fetch", link, "--out", str(tmp_path / "data.zip.age"))
    await hands("package", "fetch", link[:-1] + "x", "--out", str(tmp_path / "other"), code=2)
    await hands("package", "fetch", link[:-1] + ("0" if link[-1] != "0" else "1"), "--out", str(tmp_path / "o"), code=1)
    hands.env["STEWARD_PASSPHRASE"] = PASSPHRASE
    text = (await hands("package", "open", str(tmp_path / "data.zip.age"), "--out", str(tmp_path / "out"))).output
    assert "retention" in text and (tmp_path / "out" / "index.html").exists()
    assert "gone" in (tmp_path / "out" / "manifest.json").read_text(), "who is waived is named"

    correct = ("privacy", "request", "--kind", "rectification", *account, "--field", "name", "--channel", "settings")
    await hands(*correct, code=2)
    named = (await hands(*correct, "--value-file", str(tmp_path / "name.txt"))).stdout.strip()
    assert (await town.until_case(named, "fulfilled"))["status"] == "fulfilled"

    mail = ("privacy", "mail", "--from-file", str(tmp_path / "from.txt"), "--subject")
    asked = (await hands(*mail, "my data please")).stdout.strip()
    (row,) = [one for one in await hands.json("privacy", "list") if one["id"] == asked]
    assert row["needs_person"] == ["triage"]
    assert "--ticket" in (await hands("privacy", "deny", asked, "--reason", "other", code=2)).output, "why is said"
    deny = ("privacy", "deny", asked, "--reason", "other", "--ticket", "SUP-1")
    assert "refused" in (await hands(*deny, "--role", "support", code=1)).output
    assert "role:" in (await hands("dead-letters", "list", "--service", "retention")).output, (
        "and the reason stands there"
    )
    longer = await hands("privacy", "extend", asked, "--ticket", "SUP-1", code=1)
    assert "refused" in longer.output, "the longer time is off in the policy"
    await hands("privacy", "escalate", asked, "--to", "privacy", "--ticket", "SUP-1")
    await hands("privacy", "triage", asked, "--kind", "sale:opt-out", *account, "--ticket", "SUP-1")
    assert (await town.until_case(asked, "fulfilled"))["kind"] == "sale:opt-out"
    asked = (await hands(*mail, "a question")).stdout.strip()
    await hands("privacy", "answer", asked, "--ticket", "SUP-1")
    denied = (await hands(*mail, "another")).stdout.strip()
    await hands("privacy", "deny", denied, "--reason", "claim_not_covered", "--ticket", "PRIV-1")
    assert (await town.until_case(denied, "denied"))["reason"] == "claim_not_covered"
    report = (await hands("privacy", "request", "--kind", "child_report", *account)).stdout.strip()
    assert "nobody takes it back" in (await hands("privacy", "withdraw", report, *account, code=1)).output
    await hands("privacy", "decide", report, "--dismiss", "--ticket", "PRIV-2")
    assert (await town.case(report))["status"] == "denied"
    said = "".join([(await hands("privacy", "list", "--all")).output, (await hands("privacy", "status", case)).output])
    assert town.tag not in said and "example.org" not in said
