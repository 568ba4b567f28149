"""Retention on real servers: who is who, and how a deletion goes round. Holders, auditor and mail are played by hand."""

from __future__ import annotations

import json
from dataclasses import replace
from datetime import UTC, datetime, timedelta

import pytest

from services.retention.app import cases, gauges, staff
from services.retention.app import shown as clocks_shown
from services.retention.case import Timing
from services.retention.data_map import RECORDS
from shared.contract import events, topics
from shared.mesh.http import NotFound
from shared.policy import policy
from shared.privacy.certificate import verify
from shared.privacy.vault import CASE, SUBJECT
from tests.support.gateway import Gateway, body
from tests.support.retention import OTHERS, Stage, instant
from tests.support.world import Mesh

# A public key of the age format; nobody has its other half.
RECIPIENT = "age1zvkyg2lqzraa2lnjvqej32nkuu0ues2s82hzrye869xeexvn73equnujwj"
TABLES = """SELECT c.relname AS name FROM pg_class c
            WHERE c.relnamespace = 'public'::regnamespace AND c.relkind IN ('r', 'p') AND NOT c.relispartition"""


@pytest.fixture
async def stage(mesh: Mesh, seed: int) -> Stage:
    return await Stage(mesh, seed).start()


async def refusals(mesh: Mesh) -> list[str]:
    rows = await mesh.fetch("retention", "SELECT reason FROM mesh_dead_letter ORDER BY id")
    return [row["reason"] for row in rows]


async def everything(mesh: Mesh) -> str:
    """All text of all tables of the room, but for what is on its way out."""
    found = []
    for row in await mesh.fetch("retention", TABLES):
        if row["name"] != "mesh_outbox":
            rows = await mesh.fetch("retention", f"SELECT t::text AS text FROM {row['name']} AS t")
            found += [f"{row['name']}: {each['text']}" for each in rows]
    return "\n".join(found)


# --- who is who ---------------------------------------------------------------------------------------------------


@pytest.mark.promise(6)
async def test_an_administrators_settings_come_into_force_and_nobody_elses(stage: Stage) -> None:
    mesh = stage.mesh
    await stage.a_customer()
    await stage.send(stage.settings(2, 90))
    await stage.send(
        stage.settings(3, 0, role="member"),
        stage.settings(3, 0, actor=f"{stage.member}-2"),  # says that it is an administrator; the directory knows better
        stage.settings(3, 0, actor="somebody"),
        stage.settings(3, 91),
        stage.settings(3, -1),
    )
    assert sorted(await refusals(mesh)) == ["invalid"] * 2 + ["not_administrator"] * 3
    await stage.send(stage.settings(4, 0, activity_opt_out=True), stage.settings(3, 60), stage.settings(4, 60))
    said = await stage.published(topics.SETTINGS, workspace=stage.workspace)
    # The topic is compacted: earlier ones may be gone already. And what is in force is said again by the hour.
    known = [(1, 30), (2, 90), (4, 0)]
    different = list(dict.fromkeys((one["version"], one["log_retention_days"]) for one in said))
    assert different in (known, known[1:], known[2:])
    assert said[-1]["activity_opt_out"] is True and said[-1]["account"] == stage.account
    row = (await mesh.fetch("retention", "SELECT version, log_retention_days AS days FROM workspace"))[0]
    assert (row["version"], row["days"]) == (4, 0)


async def test_who_is_who_whatever_comes_first(stage: Stage) -> None:
    mesh = stage.mesh
    # What leads to a workspace before the workspace, its settings before its members, a revocation before its key.
    await stage.send(
        stage.said(events.KeyRevoked, workspace=stage.workspace, key="key-1"),
        stage.settings(1, 7),
        stage.said(events.KeyCreated, workspace=stage.workspace, key="key-1", member="mem-9"),
        stage.said(events.AccountClosed),
        stage.said(events.WorkspaceCreated, workspace=stage.workspace, administrator=stage.member),
        stage.said(events.AccountOpened, address=await stage.sealed("kim@example.org"), identity="id-1"),
    )
    assert await refusals(mesh) == []
    account = (await mesh.fetch("retention", "SELECT * FROM account"))[0]
    assert account["identity"] == "id-1" and account["closed_at"] and account["opened_at"]
    key = (await mesh.fetch("retention", "SELECT * FROM api_key"))[0]
    assert key["member"] == "mem-9" and key["revoked_at"] and key["created_at"]
    assert await mesh.value("retention", "SELECT log_retention_days FROM workspace") == 7
    # From now on the directory knows who may speak for it.
    await stage.send(stage.settings(2, 90, actor="mem-9"))
    assert await refusals(mesh) == ["not_administrator"]


async def test_names_of_keys_stand_sealed_under_their_accounts_key(stage: Stage) -> None:
    await stage.a_customer()
    name = await stage.mesh.value("retention", "SELECT name FROM api_key WHERE name IS NOT NULL")
    assert name.startswith("v1:") and "laptop" not in await everything(stage.mesh)


# --- the round ----------------------------------------------------------------------------------------------------


async def test_a_deletion_goes_round(stage: Stage) -> None:
    mesh = stage.mesh
    await stage.a_customer()
    asked = stage.request(channel="support")
    case = body(asked)["id"]
    await stage.send(asked)
    (mail,) = await stage.published(topics.MESSAGES, case=case)
    assert (mail["template"], mail["account"]) == ("verify", stage.account)
    assert mail["facts"]["unused_credit"] == "12.50 USD" and mail["facts"]["workspaces"] == stage.workspace
    assert mail["proof"]["request"] == case
    assert await stage.published(topics.TOMBSTONES, case=case) == []

    await stage.send(stage.judged(case))
    subjects = {("account", stage.account), ("identity", f"id-{stage.tag}"), ("workspace", stage.workspace)}
    subjects |= {("key", f"key-{stage.tag}"), ("key", f"key-{stage.tag}-2")}
    hashes = {stage.vault.hasher.hashes([subject])[0].hex() for subject in subjects}
    assert {stone["hash"] for stone in await stage.published(topics.TOMBSTONES, case=case)} == hashes
    refused = {one["key"] for one in await stage.published(topics.KEY_REFUSALS) if stage.tag in one["key"]}
    assert refused == {f"key-{stage.tag}", f"key-{stage.tag}-2"}
    over = (await stage.published(topics.SETTINGS, workspace=stage.workspace))[-1]
    assert over["erased"] and over["version"] == 2
    order = await stage.until_ordered(case, "erase")
    assert order["holders"] == sorted({*OTHERS, "retention"}) and order["scope"] == "account"
    assert set(await stage.vault.open_subjects(case, order["sealed"])) == subjects
    assert stage.tag not in json.dumps(order)

    # What its keys' names are sealed under, there and in every backup.
    own_key = [stage.vault.hasher.hashes([("account", stage.account)])[0].hex()]
    assert await stage.vault.there(SUBJECT, own_key)
    await stage.first_wave(case)
    billing = await stage.until_ordered(case, "erase", holder="billing")
    assert billing["after"] == {topics.USAGE_RATED.name: {"0": 18, "3": 211}}
    await stage.send(stage.receipt("billing", case))
    probe = await stage.until_ordered(case, "probe")
    assert probe["holders"] == ["audit"]
    await stage.send(stage.scan(case, "probe", 1, billing="retained", kafka="expiring"))
    assert not await stage.vault.there(SUBJECT, own_key)
    done = (await stage.published(topics.MESSAGES, case=case))[-1]
    assert done["template"] == "erasure_completed" and "account" not in done and "proof" not in done
    await stage.send(stage.accepted(case, done["cause"]))
    # Compacted topics forget what they said of it by name.
    for topic, key in ((topics.SETTINGS, stage.workspace), (topics.KEY_REFUSALS, f"key-{stage.tag}")):
        assert [event for name, event in await stage.records(topic) if name == key][-1] is None
    await stage.until_ordered(case, "sweep", 2)
    await stage.send(stage.scan(case, "sweep", 2, kafka="expiring"))
    assert await stage.state(case) == "sweeping"
    await stage.until_ordered(case, "sweep", 3)
    await stage.send(stage.scan(case, "sweep", 3, billing="retained"))
    await stage.until_state(case, "certified")
    document = await stage.certificate(case)
    assert verify(json.dumps(document).encode(), [stage.trusted]).verdict == "valid"
    assert document["subject"] == stage.vault.hasher.hashes([("account", stage.account)])[0].hex()
    assert {one["holder"] for one in document["holders"]} == set(topics.HOLDERS) and document["log"]["index"] == 0
    row = await stage.case(case)
    assert row["answered_at"] and not row["missing"] and not row["needs_person"]
    assert not any(clock["open"] for clock in row["clocks"])
    assert {clock["name"] for clock in row["clocks"]} == {"acknowledgement", "answer", "ccpa", "erasure"}

    async def without_key() -> bool:
        return not await stage.vault.there(CASE, [case])

    await mesh.until(without_key, 10, "the case's key is destroyed")
    left = [line for line in (await everything(mesh)).splitlines() if stage.tag in line or "id-" + stage.tag in line]
    assert left == []
    # Nobody who is erased comes back.
    await stage.send(stage.said(events.WorkspaceCreated, workspace=stage.workspace, administrator=stage.member))
    assert await mesh.fetch("retention", "SELECT * FROM workspace") == []
    # Nor do wishes of theirs that a restored database reads as if for the first time: no case, and no letter that names them.
    asked = stage.request()
    of_another = stage.request("member", "mem-of-another")
    await stage.send(asked, of_another, stage.judged(body(asked)["id"]))
    assert await mesh.value("retention", "SELECT count(*) FROM privacy_case") == 1 and await refusals(mesh) == []
    counted = "SELECT sum(value) FROM mesh_counter WHERE name = 'requests_of_erased'"
    assert await mesh.value("retention", counted) == 2
    assert [line for line in (await everything(mesh)).splitlines() if stage.tag in line] == []


async def test_events_that_come_twice_change_nothing(stage: Stage) -> None:
    await stage.a_customer()
    asked = stage.request()
    case = body(asked)["id"]
    await stage.send(asked, asked)
    last_word = stage.judged(case)
    await stage.send(last_word, last_word)
    for _ in range(2):
        await stage.first_wave(case)
    await stage.send(stage.receipt("billing", case), stage.receipt("billing", case))
    await stage.until_ordered(case, "probe")
    await stage.send(stage.scan(case, "probe", 1), stage.scan(case, "probe", 1), asked, last_word)
    row = await stage.case(case)
    assert row["completed_at"] and len(await stage.published(topics.MESSAGES, case=case)) == 2
    assert len(await stage.published(topics.TOMBSTONES, case=case)) == 5
    assert await refusals(stage.mesh) == []


async def test_nobody_signs_for_somebody_else(stage: Stage) -> None:
    await stage.a_customer()
    case = await stage.confirmed()
    await stage.first_wave(case, [name for name in OTHERS if name != "security"])
    await stage.send(
        stage.receipt("security", case, source="insights"),
        stage.event(
            "security", topics.PRIVACY_RECEIPTS, events.PrivacyScanned, case,
            {"case": case, "epoch": 1, "action": "probe", "stores": []},
        ),
    )  # fmt: skip
    assert await refusals(stage.mesh) == ["wrong_source"] * 2
    assert (await stage.case(case))["missing"] == ["billing", "security"]


async def test_residue_is_erased_again(stage: Stage) -> None:
    await stage.a_customer()
    case = await stage.confirmed()
    await stage.first_wave(case)
    await stage.until_ordered(case, "erase", holder="billing")
    await stage.send(stage.receipt("billing", case))
    await stage.until_ordered(case, "probe")
    await stage.send(stage.scan(case, "probe", 1, insights="residue"))
    again = await stage.until_ordered(case, "erase", 2)
    assert again["holders"] == ["insights"]
    await stage.send(stage.receipt("insights", case, 1))
    assert (await stage.case(case))["missing"] == ["insights"]
    await stage.send(stage.receipt("insights", case, 2))
    await stage.until_ordered(case, "probe", 2)
    await stage.send(stage.scan(case, "probe", 1), stage.scan(case, "probe", 2))
    assert (await stage.case(case))["completed_at"]


async def test_holder_down_is_forecast_and_holder_gone_is_waived_by_a_person(stage: Stage) -> None:
    """It is asked again, a person is called, nothing is fulfilled without it, and only a named person can answer for it."""
    mesh = stage.mesh
    await stage.a_customer()
    case = await stage.confirmed()
    await stage.first_wave(case, [name for name in OTHERS if name != "insights"])

    async def twice() -> bool:
        orders = await stage.published(topics.PRIVACY_COMMANDS, case=case)
        return [order["holders"] for order in orders].count(["insights"]) >= 2

    await mesh.until(twice, 20, "asked again")
    stage.clock.ahead = timedelta(days=16)

    async def said() -> bool:
        return bool((await stage.case(case))["needs_person"] == ["silent:insights"])

    await mesh.until(said, 10, "a person is called")
    row = await stage.case(case)
    assert row["at_risk"] and row["state"] == "wave_1"
    stage.clock.ahead = timedelta(days=31)
    await stage.send(stage.scan(case, "probe", 1))
    row = await stage.case(case)
    assert (row["state"], row["completed_at"], row["missing"]) == ("wave_1", None, ["billing", "insights"])
    await stage.send(stage.command("waive_holder", case, holder="insights"))
    await stage.until_ordered(case, "erase", holder="billing")
    row = await stage.case(case)
    assert row["holders"]["insights"]["state"] == "waived"
    assert (row["holders"]["insights"]["waived_by"], row["holders"]["insights"]["ticket"]) == ("kim", "T-1")
    assert row["needs_person"] == []


async def test_no_row_subject_gets_its_tombstone(stage: Stage) -> None:
    case = await stage.confirmed("workspace", stage.workspace)
    (stone,) = await stage.published(topics.TOMBSTONES, case=case)
    assert stone["hash"] == stage.vault.hasher.hashes([("workspace", stage.workspace)])[0].hex()
    await stage.to_completed(case)
    mail = (await stage.published(topics.MESSAGES, case=case))[-1]
    assert mail["template"] == "erasure_completed" and mail["account"] == stage.account


async def test_own_record_names_nobody_and_expires(stage: Stage) -> None:
    """What retention keeps of a case leads to nobody, and ends with the time that the law wants requests kept for."""
    await stage.a_customer()
    case = await stage.confirmed()
    await stage.to_completed(case)
    await stage.until_ordered(case, "sweep", 2)
    await stage.send(stage.scan(case, "sweep", 2))
    await stage.until_state(case, "certified")
    ended = (await stage.case(case))["ended_at"]
    kept = await everything(stage.mesh)
    assert case in kept and stage.tag not in kept and "example.org" not in kept

    async def left(at: datetime) -> set[str]:
        """Tables that know the case once the hourly job has run at that time."""
        stage.clock.ahead = at - datetime.now(UTC)
        await stage.mesh.until(lambda: stage.runtime.worker.run_job("mesh-expire", force=True), 20, "the job has run")

        async def through() -> bool:
            waiting = "SELECT count(*) FROM mesh_task WHERE name = 'mesh-expire'"
            return not await stage.mesh.value("retention", waiting)

        await stage.mesh.until(through, 20, "the round is through")
        tables = (
            "privacy_case",
            "case_request",
            "case_holder",
            "case_receipt",
            "case_scan",
            "case_mail",
            "certificate",
        )
        return {table for table in tables if await stage.mesh.value("retention", f"SELECT count(*) FROM {table}")}

    assert len(await left(ended + RECORDS - timedelta(minutes=5))) == 7
    assert await left(ended + RECORDS + timedelta(minutes=5)) == set()


# --- what is asked for, and by whom --------------------------------------------------------------------------------


async def test_the_same_wish_twice_is_one_case(stage: Stage) -> None:
    await stage.a_customer()
    asked = [stage.request(channel=channel) for channel in ("settings", "support", "support", "support")]
    ids = [body(one)["id"] for one in asked]
    await stage.send(*asked)
    mails = await stage.published(topics.MESSAGES, case=ids[0])
    assert [mail["template"] for mail in mails] == ["erasure_requested", "verify", "verify", "acknowledgement"]
    assert {(await stage.case(each))["id"] for each in ids} == {ids[0]}
    # Either mail's code is good, under either id; who asks for the fourth time is told that it is known.
    assert [mail["proof"]["request"] for mail in mails if "proof" in mail] == ids[:3]
    await stage.send(stage.judged(ids[0]))
    assert await stage.state(ids[3]) == "wave_1"
    await stage.send(stage.request())
    assert len(await stage.runtime.answer("cases", {}, "tester", "operator", "test")) == 1


async def test_five_wrong_codes_end_a_request(stage: Stage) -> None:
    await stage.a_customer()
    asked = stage.request()
    case = body(asked)["id"]
    await stage.send(asked)
    # Of another account's codes nothing follows, whatever they are worth.
    stranger = stage.judged(case, account="acc-other")
    await stage.send(stranger, *(stage.judged(case, right=False) for _ in range(4)))
    row = await stage.case(case)
    assert (row["state"], row["attempts"]) == ("requested", 4)
    await stage.send(stage.judged(case, right=False), stage.judged(case))
    assert await stage.state(case) == "lapsed"
    assert await stage.published(topics.TOMBSTONES, case=case) == []
    assert stage.account not in "\n".join(
        line for line in (await everything(stage.mesh)).splitlines() if line.startswith(("privacy_case", "case_"))
    )


async def test_withdrawn_before_the_last_word_and_never_after(stage: Stage) -> None:
    await stage.a_customer()
    asked = stage.request()
    case = body(asked)["id"]
    await stage.send(asked)
    await stage.send(stage.asked(events.PrivacyWithdrawn, case=case))
    await stage.send(stage.judged(case))
    assert await stage.state(case) == "withdrawn" and await stage.published(topics.TOMBSTONES, case=case) == []
    # Whoever wants it after all asks again.
    other = await stage.confirmed()
    await stage.send(stage.asked(events.PrivacyWithdrawn, case=other))
    assert other != case and await stage.state(other) in ("wave_1", "wave_2")


async def test_an_unconfirmed_request_lapses(stage: Stage) -> None:
    await stage.a_customer()
    asked = stage.request()
    case = body(asked)["id"]
    await stage.send(asked)
    stage.clock.ahead = timedelta(days=7) - timedelta(minutes=1)
    await stage.send()
    assert await stage.state(case) == "requested"
    stage.clock.ahead = timedelta(days=7)
    await stage.until_state(case, "lapsed")


async def test_what_the_directory_knows_to_be_somebody_elses_is_not_erased(stage: Stage) -> None:
    await stage.a_customer()
    asked = [
        stage.request("workspace", stage.workspace, account="acc-other"),
        stage.request("account", stage.account, account="acc-other"),
        stage.request("member", stage.member, account="acc-other"),
    ]
    await stage.send(*asked)
    assert await refusals(stage.mesh) == ["not_theirs"] * 3
    for one in asked:
        with pytest.raises(NotFound):
            await stage.case(body(one)["id"])


@pytest.mark.parametrize("handed_over", [True, False])
async def test_a_member_takes_along_what_nobody_else_administers(stage: Stage, handed_over: bool) -> None:
    await stage.a_customer()
    other = f"{stage.workspace}-other"
    await stage.send(
        stage.said(events.WorkspaceCreated, workspace=other, administrator=stage.member),
        stage.said(events.MemberAdded, workspace=other, member=f"{stage.member}-3", role="administrator"),
    )
    asked = stage.request("member", stage.member)
    case = body(asked)["id"]
    await stage.send(asked)
    (mail,) = await stage.published(topics.MESSAGES, case=case)
    assert mail["facts"]["without_administrator"] == stage.workspace
    successors = {stage.workspace: f"{stage.member}-2"} if handed_over else {stage.workspace: "nobody-known"}
    await stage.send(stage.judged(case, successors=successors))
    order = await stage.until_ordered(case, "erase")
    gone = {("member", stage.member), ("key", f"key-{stage.tag}")}
    if not handed_over:
        gone |= {("workspace", stage.workspace), ("key", f"key-{stage.tag}-2")}
    assert set(await stage.vault.open_subjects(case, order["sealed"])) == gone
    await stage.first_wave(case)
    rows = await stage.mesh.fetch("retention", "SELECT workspace, member, role FROM member ORDER BY 1, 2")
    heir = [(stage.workspace, f"{stage.member}-2", "administrator")] if handed_over else []
    assert [tuple(row) for row in rows] == [*heir, (other, f"{stage.member}-3", "administrator")]


@pytest.mark.promise(33)
async def test_a_closed_account_goes_unasked_within_thirty_days(stage: Stage) -> None:
    await stage.a_customer()
    closing = stage.said(events.AccountClosed)
    await stage.send(closing)
    closed_at = datetime.fromisoformat(body(closing)["time"])
    stage.clock.ahead = timedelta(days=28) - timedelta(minutes=1)
    await stage.send()
    assert await stage.runtime.answer("cases", {}, "tester", "operator", "test") == []
    stage.clock.ahead = timedelta(days=28)
    found: list[str] = []

    async def opened() -> bool:
        found[:] = [row["id"] for row in await stage.runtime.answer("cases", {}, "tester", "operator", "test")]
        return bool(found)

    await stage.mesh.until(opened, 10, "the case of a closed account")
    (case,) = found
    row = await stage.case(case)
    assert (row["kind"], row["subjects"]) == ("closure", 5)
    assert row["mails"] == []
    bounds = {clock["name"]: clock["due_at"] for clock in row["clocks"]}
    assert row["due_at"] == bounds["closure"] == row["requested_at"] + timedelta(days=30)
    assert bounds["closure"] == closed_at + timedelta(days=30)
    await stage.to_completed(case)
    # As late as it can be asked: the last second in which the account may still be there.
    stage.clock.ahead = closed_at + timedelta(days=30, seconds=-1) - datetime.now(UTC)
    row = await stage.case(case)
    assert row["completed_at"] is not None and row["completed_at"] < stage.clock.now() < bounds["closure"]
    assert not row["missing"] and not row["at_risk"]
    for table in ("account", "workspace", "member", "api_key"):
        assert await stage.mesh.fetch("retention", f"SELECT * FROM {table}") == [], table


# --- holds --------------------------------------------------------------------------------------------------------


async def test_a_hold_is_placed_before_its_holder_erases_and_ends_by_itself(stage: Stage) -> None:
    mesh = stage.mesh
    await stage.a_customer()
    until = stage.clock.now() + timedelta(days=90)
    placed = stage.command(
        "place_hold", stage.account, holder="security", table="finding", kind="account", ground="court_order",
        until=instant(until),
    )  # fmt: skip
    hold = body(placed)["id"]
    await stage.send(placed, placed)
    order = await stage.until_ordered(hold, "hold")
    assert order["holders"] == ["security"] and order["arguments"]["table"] == "finding"
    case = await stage.confirmed()
    told = await stage.until_ordered(case, "erase")
    assert "security" not in told["holders"]
    await stage.first_wave(case, [name for name in OTHERS if name != "security"])
    await stage.send(stage.receipt("security", hold, 1, "hold"))
    assert (await stage.until_ordered(case, "erase", holder="security"))["epoch"] == 1
    await stage.send(stage.receipt("security", case))
    await stage.until_ordered(case, "erase", holder="billing")
    await stage.send(stage.receipt("billing", case))
    await stage.until_ordered(case, "probe")
    await stage.send(stage.scan(case, "probe", 1, security="held"))
    await stage.until_ordered(case, "sweep", 2)
    await stage.send(stage.scan(case, "sweep", 2, security="held"))
    await stage.until_state(case, "certified")
    assert [one["state"] for one in (await stage.case(case))["holds"]] == ["held"]
    (held,) = (await stage.certificate(case))["held"]
    assert (held["holder"], held["table"], held["rows"], held["ground"]) == ("security", "finding", 3, "court_order")
    # Another certificate: the log only grew.
    stage.account = "acc-another"
    other = await stage.confirmed("member", "mem-nobody")
    await stage.to_completed(other)
    await stage.until_ordered(other, "sweep", 2)
    await stage.send(stage.scan(other, "sweep", 2))
    await stage.until_state(other, "certified")
    first, second = [json.dumps(await stage.certificate(one)).encode() for one in (case, other)]
    assert verify(second, [stage.trusted], first).verdict == "valid"
    # Its end comes unprompted.
    stage.clock.ahead = timedelta(days=90)
    await stage.until_ordered(hold, "release", 2)
    await stage.send(stage.receipt("security", hold, 2, "release"))
    row = await stage.case(case)
    assert [one["state"] for one in row["holds"]] == ["released"]
    assert [(each["action"], each["hold"]) for each in row["receipts"] if each["hold"]] == [
        ("hold", hold), ("release", hold),
    ]  # fmt: skip

    async def without_key() -> bool:
        return not await stage.vault.there(CASE, [hold])

    await mesh.until(without_key, 10, "the hold's key is destroyed")
    assert await stage.runtime.answer("holds", {}, "tester", "operator", "test") == []


async def test_a_hold_that_makes_no_sense_is_refused(stage: Stage) -> None:
    good = {
        "holder": "security", "table": "finding", "kind": "account", "ground": "court_order",
        "until": instant(stage.clock.now() + timedelta(days=9)),
    }  # fmt: skip
    wrong = {"holder": "nobody", "table": "Finding", "kind": "person", "ground": "9", "until": "2020-01-01T00:00:00Z"}
    for name, value in wrong.items():
        await stage.send(stage.command("place_hold", stage.account, **(good | {name: value})))
    assert await refusals(stage.mesh) == ["invalid"] * 5
    assert await stage.runtime.answer("holds", {"all": "yes"}, "tester", "operator", "test") == []


async def test_two_gateways_do_not_wait_for_each_other(mesh: Mesh, seed: int) -> None:
    """A second process of the room takes over where the first one was killed; nothing is said twice or left out."""
    stage = await Stage(mesh, seed, timing=Timing()).start()
    await stage.a_customer()
    case = await stage.confirmed()
    await mesh.abandon(stage.runtime)
    await stage.start()
    await Gateway(seed).send(mesh.env, [stage.receipt(name, case) for name in OTHERS])
    await stage.first_wave(case)
    await stage.until_ordered(case, "erase", holder="billing")
    assert len(await stage.published(topics.TOMBSTONES, case=case)) >= 5


# --- deadlines of rights -------------------------------------------------------------------------------------------


@pytest.mark.promise(55)
@pytest.mark.promise(67)
@pytest.mark.promise(68)
async def test_deadlines_run_from_receipt_and_a_breach_is_foretold(stage: Stage) -> None:
    """Slow verification moves nothing; the acknowledgement does not stop the answer's clock; it is said before it is late."""
    await stage.a_customer()
    asked = stage.asked(
        events.PrivacyRequested, kind="access", scope="account", target=stage.account, channel="support"
    )
    case = str(body(asked)["id"])
    await stage.send(asked)
    start = (await stage.case(case))["requests"][0]["received_at"]
    ends = {clock["name"]: clock["due_at"] for clock in (await stage.case(case))["clocks"]}
    assert ends == {name: policy().clock(name, start).ends_at for name in ("acknowledgement", "answer", "ccpa")}
    (mail,) = await stage.published(topics.MESSAGES, case=case)
    await stage.send(stage.accepted(case, mail["cause"]))
    row = await stage.case(case)
    assert {clock["name"]: clock["open"] for clock in row["clocks"]} == {
        "acknowledgement": False, "answer": True, "ccpa": True,
    }  # fmt: skip
    assert row["expected_completion_time"] == ends["answer"]
    # Verified five days later: only now does the copy's own clock start.
    stage.clock.ahead = timedelta(days=5)
    await stage.send(stage.judged(case, recipient=RECIPIENT))
    row = await stage.case(case)
    after = {clock["name"]: clock["due_at"] for clock in row["clocks"]}
    assert {name: after[name] for name in ends} == ends
    assert after["copy"] == row["verified_at"] + timedelta(days=30)
    # No holder answers: within the time that the policy warns it is said, and the case is not late yet.
    stage.clock.ahead = ends["answer"] - timedelta(hours=60) - datetime.now(UTC)

    async def foretold() -> bool:
        await stage.runtime.worker.run_job("forecast", force=True)
        return any(
            one["what"].startswith("forecast:") and "answer" in one["what"]
            for one in (await stage.case(case))["history"]
        )

    await stage.mesh.until(foretold, 20, "the breach is foretold")
    assert (await stage.case(case))["at_risk"] and stage.clock.now() < ends["answer"]
    assert stage.clock.now() > start + timedelta(days=5)
    # As an operator's dashboard has it; and late is late only when the instant has come.
    for now, late in ((stage.clock.now(), 0), (ends["answer"], 1)):
        async with stage.runtime.pool.acquire() as db:
            await gauges.observe(db, now, stage.timing)
        seen = (gauges.AT_RISK, gauges.BREACHES.labels("answer"), gauges.OPEN.labels("working"), gauges.LATE)
        assert [gauge._value.get() for gauge in seen] == [1, 1, 1, late]


async def test_the_longer_time_is_taken_only_where_the_policy_grants_it(
    stage: Stage, monkeypatch: pytest.MonkeyPatch
) -> None:
    await stage.a_customer()
    asked = stage.asked(
        events.PrivacyRequested, kind="access", scope="account", target=stage.account, channel="support"
    )
    case = str(body(asked)["id"])
    await stage.send(asked)
    await stage.send(stage.command("extend_case", case, role="privacy"))
    assert await refusals(stage.mesh) == ["refused"] and (await stage.case(case))["extended_at"] is None
    granted = dict(policy().deadlines) | {"ccpa": replace(policy().deadlines["ccpa"], extension=45)}
    other = replace(policy(), deadlines=granted)
    for module in (cases, staff, clocks_shown):
        monkeypatch.setattr(module, "policy", lambda: other)
    start = (await stage.case(case))["requests"][0]["received_at"]
    await stage.send(stage.command("extend_case", case, role="privacy"))
    row = await stage.case(case)
    assert next(clock["due_at"] for clock in row["clocks"] if clock["name"] == "ccpa") == start + timedelta(days=90)
    assert (await stage.published(topics.MESSAGES, case=case, template="extended"))[0]["account"] == stage.account
    await stage.send(stage.command("extend_case", case, role="privacy"))
    assert await refusals(stage.mesh) == ["refused"] * 2, "once"
    # Of a report about a child its account hears nothing: that may be the child's.
    for reply_to in (None, await stage.sealed("teacher@example.edu")):
        said = {"kind": "child_report", "scope": "account", "target": stage.account, "channel": "support"}
        report = stage.asked(events.PrivacyRequested, **said, reply_to=reply_to)
        await stage.send(report)
        case = (await stage.case(str(body(report)["id"])))["id"]
        await stage.send(stage.command("extend_case", case, role="privacy"))
        mails = await stage.published(topics.MESSAGES, case=case, template="extended")
        assert [(mail.get("account"), mail.get("address") is None) for mail in mails] == [(None, False)] * (
            reply_to is not None
        )
        await stage.send(stage.command("deny_case", case, role="privacy", reason="no_match"))


async def test_what_is_denied_but_not_yet_told_ends_with_whom_it_is_about(stage: Stage) -> None:
    """No mail is taken: denials wait for theirs, and beyond the last word nobody is left to be told."""
    await stage.a_customer()
    said = {
        "scope": "account",
        "target": stage.account,
        "channel": "api",
        "reply_to": await stage.sealed("a@example.net"),
    }
    agent = stage.asked(events.PrivacyRequested, **said, kind="erasure", representative="agent-1")
    report = stage.asked(events.PrivacyRequested, **said, kind="child_report")
    own = stage.request()
    await stage.send(agent, report, own)
    denied, dismissed, case = [(await stage.case(str(body(one)["id"])))["id"] for one in (agent, report, own)]
    await stage.send(stage.command("decide_child", dismissed, role="privacy", decision="dismiss"))
    assert [(await stage.case(one))["state"] for one in (denied, dismissed, case)] == ["answering"] * 2 + ["requested"]
    await stage.send(stage.judged(case))
    assert (await stage.case(case))["confirmed_at"] is not None
    assert [(await stage.case(one))["state"] for one in (denied, dismissed)] == ["withdrawn"] * 2
