"""Rights, from the first word to the answer, with every holder at work and real mail."""

from __future__ import annotations

import shutil
import threading
from collections.abc import AsyncIterator
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest

from services.retention.app.rights import PACK
from shared.contract import events, topics
from shared.mesh import Transaction
from shared.mesh.http import NotFound
from shared.policy import policy
from tests.support.coordinator import new_case
from tests.support.gateway import Sent, body
from tests.support.retention import instant
from tests.support.town import PASSPHRASE, Town, code_in, in_town, lines, link_in
from tests.support.world import Mesh


async def refusals(mesh: Mesh) -> list[str]:
    rows = await mesh.fetch("retention", "SELECT reason FROM mesh_dead_letter ORDER BY id")
    return [row["reason"] for row in rows]


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
    (purchase,) = lines(archive, "data/billing/purchase.jsonl")
    assert purchase["credit_pico"] == 5 * 10**12 and lines(archive, "data/billing/balance.jsonl")
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
    row = await town.until_case(case, "fulfilled")
    said = [one["what"] for one in row["history"] if one["what"] in ("wrong_code", "proved")]
    assert said == ["wrong_code", "proved"], "what proved nothing must not stand there as a proof"
    _, archive = await town.package(case)
    assert len(lines(archive, "data/metering/request_log.jsonl")) == 5


@pytest.mark.promise(72)
async def test_the_same_wish_twice_is_one_case_with_clocks_of_its_own_each(town: Town) -> None:
    await town.others["metering"].stop()
    town.mesh.running.remove(town.others["metering"])

    def wish(channel: str, passphrase: str) -> Sent:
        return town.asked(
            events.PrivacyRequested, kind="access", scope="account", target=town.account, channel=channel,
            passphrase=passphrase,
        )  # fmt: skip

    sealed = await town.sealed(PASSPHRASE)
    one = wish("settings", sealed)
    await town.send(one, one)
    town.clock.ahead = timedelta(days=1)
    other = wish("api", sealed)
    await town.send(other)
    first, second = (str(body(each)["id"]) for each in (one, other))
    row = await town.case(second)
    assert row["id"] == first and [one["id"] for one in row["requests"]] == [first, second]
    assert sum(clock["name"] == "acknowledgement" for clock in row["clocks"]) == 2
    assert len({clock["due_at"] for clock in row["clocks"] if clock["name"] == "ccpa"}) == 2

    async def both() -> bool:
        return all(one["acknowledged_at"] for one in (await town.case(first))["requests"])

    await town.mesh.until(both, 20, "each request is acknowledged")
    assert [mail["template"] for mail in (await town.case(first))["mails"]] == ["acknowledgement"] * 2
    town.others["metering"] = await town.room("metering")
    await town.until_case(first, "fulfilled")
    assert len((await town.case(first))["mails"]) == 3


async def test_an_export_never_completes_after_an_erasure(town: Town) -> None:
    """Whatever comes first: a holder that answers late, a package that lies there already."""
    await town.used(10)
    ready = await town.wish("access", passphrase=PASSPHRASE)
    await town.until_case(ready, "fulfilled")
    link = link_in(await town.mail(ready, ""))
    assert (await town.fetch(link))[0] == 200
    metering = town.others["metering"]
    await metering.stop()
    town.mesh.running.remove(metering)
    late = await town.wish("portability", passphrase=PASSPHRASE)
    await town.until_case(late, "working")
    deletion = await town.wish("erasure")
    await town.give(deletion, code_in(await town.mail(deletion, "")))
    assert (await town.fetch(link))[0] == 410
    row = await town.case(late)
    assert (row["state"], row["status"]) == ("withdrawn", "revoked")
    await town.room("metering")
    await town.mesh.idle()
    assert (await town.case(late))["package"] is None
    assert [mail["template"] for mail in (await town.case(late))["mails"]] == ["acknowledgement"]

    async def gone() -> bool:
        return (await town.case(ready))["package"]["dropped_at"] is not None

    await town.mesh.until(gone, 20, "the file is gone")
    assert not [name for name in await town.blobs.names() if ready in name or late in name]
    # Nor does one that asks afterwards get anything.
    asked = town.asked(events.PrivacyRequested, kind="access", scope="account", target=town.account,
                       passphrase=await town.sealed(PASSPHRASE))  # fmt: skip
    await town.send(asked)
    with pytest.raises(NotFound):
        await town.case(str(body(asked)["id"]))


@pytest.mark.promise(41)
async def test_what_is_wrong_is_corrected_and_no_older_word_undoes_it(town: Town) -> None:
    opened = town.said(
        events.AccountOpened, address=await town.sealed("kim@example.org"), name=await town.sealed("Kin")
    )
    await town.send(opened)
    name = await town.wish("rectification", field="name", value="Kim Possible")
    key = f"key-{town.tag}"
    other = await town.wish("rectification", field="key_name", key=key, value="Kim's desk")
    for case in (name, other):
        await town.until_case(case, "fulfilled")
    # What was said before comes again.
    await town.send(
        opened,
        town.said(events.AccountOpened, address=await town.sealed("kim@example.org"), name=await town.sealed("Old")),
        town.said(
            events.KeyCreated, workspace=town.workspace, key=key, member=town.member, name=await town.sealed("Old")
        ),
    )
    case = await town.wish("access", passphrase=PASSPHRASE)
    await town.until_case(case, "fulfilled")
    _, archive = await town.package(case)
    (account,) = lines(archive, "data/retention/account.jsonl")
    keys = {one["key"]: one["name"] for one in lines(archive, "data/retention/api_key.jsonl")}
    assert account["name"] == "Kim Possible" and keys[key] == "Kim's desk"
    # Somebody else's key is nobody's to name.
    asked = town.asked(events.PrivacyRequested, kind="rectification", scope="account", target=town.account, field="key_name",
                       key="key-of-another", value=await town.sealed("mine"))  # fmt: skip
    await town.send(asked)
    assert await refusals(town.mesh) == ["not_theirs"]


@pytest.mark.promise(42)
async def test_a_new_address_and_who_took_the_account_over(town: Town) -> None:
    """Two codes; the old address is told; a deletion that is asked for minutes later is confirmed through the older one."""
    case = await town.wish("rectification", field="address", value="new@example.org")
    old, new = await town.mail(case, ""), await town.mail(case, "", to="new@example.org")
    await town.give(case, code_in(new))
    assert (await town.case(case))["proofs_needed"] == ["account"]
    # Who keeps the addresses is down when the second one comes back: nothing is lost.
    notifications = town.others["notifications"]
    await notifications.stop()
    town.mesh.running.remove(notifications)
    await town.give(case, code_in(old), settle=False)
    await town.room("notifications")
    await town.until_case(case, "fulfilled")
    told = await town.mail(case, "changed")
    assert told["To"] == "kim@example.org"
    deletion = await town.wish("erasure")
    mail = await town.mail(deletion, "confirm")
    assert mail["To"] == "kim@example.org"
    assert not [m for m in town.sink.mails() if m["To"] == "new@example.org" and deletion in m.get_content()]


@pytest.mark.promise(51)
async def test_an_opt_out_of_sale_is_kept_and_answered(town: Town) -> None:
    asked = town.asked(events.PrivacyRequested, kind="sale:opt-out", scope="account", target=town.account, regime="ccpa",
                       channel="support")  # fmt: skip
    await town.send(asked)
    case = str(body(asked)["id"])
    row = await town.until_case(case, "fulfilled")
    assert row["regulation"] == "ccpa" and {mail["template"] for mail in row["mails"]} == {
        "acknowledgement",
        "opted_out",
    }
    at = await town.mesh.value("retention", "SELECT sale_opt_out_at FROM account WHERE account = $1", town.account)
    await town.send(asked, town.said(events.AccountOpened, address=await town.sealed("kim@example.org")))
    again = await town.mesh.value("retention", "SELECT sale_opt_out_at FROM account WHERE account = $1", town.account)
    assert at is not None and again == at


async def mailed(town: Town, subject: str, account: str | None) -> str:
    """The case of a mail to support, from the address of `account` or of nobody."""
    sent = town.event(
        "gateway-1", topics.PRIVACY_REQUESTS, events.SupportMailReceived, f"mail-{len(town.voices)}-{subject[:4].strip()}",
        {
            "mail": "mail-1", "account": account, "subject_line": await town.sealed(subject),
            "sender": await town.sealed("kim@example.org" if account else "stranger@example.net"),
        },
    )  # fmt: skip
    await town.send(sent)
    return str(body(sent)["id"])


@pytest.mark.promise(53)
async def test_mails_to_support_open_cases_and_none_vanishes(town: Town) -> None:
    exact = await mailed(town, "Re: CCPA Request.", town.account)
    near = await mailed(town, "CPPA requst", town.account)
    other = await mailed(town, "Hello", None)
    rows = {case: await town.case(case) for case in (exact, near, other)}
    assert {row["state"] for row in rows.values()} == {"triage"}
    assert all("triage" in row["needs_person"] for row in rows.values())
    assert [rows[case]["regulation"] for case in (exact, near, other)] == ["ccpa", "voluntary", "voluntary"]
    # The policy's subject line asks for a proof at once; everybody is told that the mail is here.
    code = code_in(await town.mail(exact, ""))
    assert "We have" in (await town.mail(other, "", to="stranger@example.net")).get_content()
    await town.give(exact, code, passphrase=PASSPHRASE)
    await town.send(town.command("triage_case", exact, role="support", kind="access"))
    await town.until_case(exact, "fulfilled")
    assert (await town.fetch(link_in(await town.mail(exact, "copy"))))[0] == 200
    # Of an address that is nobody's, a person says whose it is, or no.
    await town.send(town.command("triage_case", other, role="support", kind="access"))
    assert (await town.case(other))["state"] == "triage"
    await town.send(town.command("deny_case", other, role="support", reason="no_match"))
    assert await refusals(town.mesh) == ["refused", "role"] and (await town.case(other))["state"] == "triage"
    await town.send(town.command("deny_case", other, role="privacy", reason="no_match"))
    row = await town.until_case(other, "denied")
    assert (row["status"], row["reason"]) == ("denied", "no_match")
    await town.mail(other, "", to="stranger@example.net")
    last = row["history"][[one["what"] for one in row["history"]].index("denied")]
    assert (last["actor"], last["role"], last["reason"]) == ("kim", "privacy", "T-1")
    await town.send(town.command("answer_case", near, role="privacy"))
    assert (await town.case(near))["state"] == "fulfilled"


@pytest.mark.promise(56)
async def test_an_agent_hears_how_it_stands_and_the_person_gets_the_data(town: Town) -> None:
    agent: dict[str, Any] = {
        "channel": "api",
        "representative": "agent-1",
        "reply_to": "agent@example.net",
        "regime": "ccpa",
    }
    without = await town.wish("access:categories", **agent)
    row = await town.until_case(without, "denied")
    assert row["reason"] == "insuf_verification" and row["mails"][-1]["template"] != "verify_identity"
    (denied,) = [one for one in row["history"] if one["what"] == "denied"]
    assert (denied["actor"], denied["reason"]) == ("retention", "no_authorisation"), "no word of the person's"
    case = await town.wish("access", authorisation="POA-7", **agent)
    assert (await town.case(case))["proofs_needed"] == ["account"]
    asked = await town.mail(case, "")
    assert "says that they act for you" in " ".join(asked.get_content().split())
    await town.give(case, code_in(asked), passphrase=PASSPHRASE)
    await town.until_case(case, "fulfilled")

    async def told() -> bool:
        mails = [
            m.get_content() for m in town.sink.mails() if m["To"] == "agent@example.net" and case in m.get_content()
        ]
        assert not any("/packages/" in text or "kim@" in text for text in mails)
        return any("It is done" in text for text in mails)

    await town.mesh.until(told, 20, "the agent is told that it is done")
    assert "/packages/" in (await town.mail(case, "copy")).get_content()


@pytest.mark.promise(56)
async def test_who_acts_for_a_person_takes_nothing_from_what_the_person_asks(town: Town) -> None:
    """Without an authorisation it is denied, beside the person's own wish; with one it joins that, and hears how it stands."""
    agent: dict[str, Any] = {"channel": "api", "representative": "agent-1", "scope": "account", "target": town.account}
    agent |= {"kind": "erasure", "reply_to": await town.sealed("agent@example.net")}
    without = town.asked(events.PrivacyRequested, **agent)
    own = town.request(channel="settings")
    await town.send(without, own)
    denied, asked = [await town.case(body(one)["id"]) for one in (without, own)]
    assert denied["id"] != asked["id"]
    assert (denied["status"], denied["reason"], asked["state"]) == ("denied", "insuf_verification", "requested")
    assert "in your settings" in (await town.mail(asked["id"], "confirm")).get_content()
    assert not any(asked["id"] in mail.get_content() for mail in town.sink.mails() if mail["To"] == "agent@example.net")
    await town.send(town.asked(events.PrivacyRequested, **agent, authorisation="POA-7"))
    assert len((await town.case(asked["id"]))["requests"]) == 2
    told = (await town.mail(asked["id"], "stands", to="agent@example.net")).get_content()
    assert "It is open" in told and "An answer is due by" in told
    assert "says that they act for you" in (await town.mail(asked["id"], "confirm")).get_content()


@pytest.mark.promise(57)
async def test_a_childs_account_goes_when_a_person_says_so_and_its_address_stays_out(town: Town) -> None:
    case = await town.wish("child_report", channel="support", reply_to="teacher@example.edu")
    row = await town.case(case)
    assert row["needs_person"] == ["decide"] and {clock["name"] for clock in row["clocks"]} >= {"child_erasure"}
    await town.mail(case, "", to="teacher@example.edu")
    assert await town.wish("child_report", channel="support", reply_to="nurse@example.edu") == case
    await town.mail(case, "", to="nurse@example.edu")
    town.clock.ahead = timedelta(days=9)
    await town.send()
    assert (await town.case(case))["state"] == "requested" and await town.published(topics.TOMBSTONES, case=case) == []
    await town.send(town.command("decide_child", case, role="support", decision="delete"))
    assert await refusals(town.mesh) == ["role"]
    await town.send(town.command("decide_child", case, role="privacy", decision="delete"))
    assert await town.published(topics.TOMBSTONES, case=case)
    await town.until_ordered(case, "probe")
    # The same address, written another way, opens another account: it ends again.
    back = town.said(events.AccountOpened, account="acc-back", address=await town.sealed("KIM@example.org"))
    await town.send(back)

    async def ended() -> bool:
        rows = await town.mesh.fetch("retention", "SELECT account FROM account WHERE account = 'acc-back'")
        graves = town.vault.hasher.hashes([("account", "acc-back")])[0].hex()
        return not rows and bool(await town.published(topics.TOMBSTONES, hash=graves))

    await town.mesh.until(ended, 30, "the account is erased")


@pytest.mark.promise(57)
async def test_a_mail_about_a_child_waits_for_a_person_and_takes_nobodys_own_wish(town: Town) -> None:
    case = await mailed(town, "Child uses this", town.account)
    await town.send(town.command("triage_case", case, role="support", kind="child_report"))
    row = await town.case(case)
    assert (row["state"], row["needs_person"], row["proofs_needed"]) == ("requested", ["decide"], [])
    assert {clock["name"] for clock in row["clocks"]} >= {"child_erasure"}
    await town.send(town.asked(events.PrivacyWithdrawn, case=case, account=town.account))
    assert await refusals(town.mesh) == ["unknown_case"], "the account may be the child's: it takes nothing back"
    own = await town.wish("erasure")
    assert (
        own != case and (await town.case(own))["state"] != "triage" and (await town.case(case))["state"] == "requested"
    )
    assert await town.published(topics.TOMBSTONES, case=case) == []
    await town.send(town.command("decide_child", case, role="privacy", decision="delete"))
    assert await town.published(topics.TOMBSTONES, case=case)
    assert await refusals(town.mesh) == []


@pytest.mark.promise(39)
async def test_the_usage_of_a_workspace_in_a_span_of_time(town: Town) -> None:
    await town.used(20)
    middle = town.clock.now() + timedelta(hours=1)
    town.clock.ahead = timedelta(hours=2)
    await town.used(30)
    case = await town.wish("portability", "workspace", town.workspace, since=instant(middle), passphrase=PASSPHRASE)
    await town.until_case(case, "fulfilled")
    manifest, archive = await town.package(case)
    assert len(lines(archive, "data/metering/request_log.jsonl")) == 30
    assert "data/retention/workspace.jsonl" not in archive.namelist()
    assert manifest["since"] == instant(middle)


@pytest.mark.promise(50)
@pytest.mark.promise(58)
async def test_anybody_may_know_what_is_held_why_and_who_gets_it(town: Town) -> None:
    """Exactly the categories that there are rows of; recipients as the policy lists them; no row itself."""
    await town.used(5)
    case = await town.wish("access:categories", passphrase=PASSPHRASE, regime="ccpa")
    row = await town.until_case(case, "fulfilled")
    assert row["mails"][-1]["template"] in ("acknowledgement", "categories_ready")
    manifest, archive = await town.package(case)
    assert not [name for name in archive.namelist() if name.startswith(("data/", "schema/"))]
    held = {(one["holder"], one["table"]): one["rows"] for one in manifest["sources"] if one["rows"]}
    assert held["metering", "request_log"] == 5 and held["security", "access_ip"] == 1
    categories = {
        column["category"] for one in manifest["sources"] if one["rows"] for column in one["columns"]
        if column["category"].startswith("user.")
    }  # fmt: skip
    assert {"user.contact.email", "user.device.ip_address", "user.unique_id"} <= categories
    assert not {"user.payment", "user.content.private", "user.childrens"} & categories
    assert {one["title"] for one in manifest["recipients"]} == {one.title for one in policy().recipients.values()}
    page = archive.read("index.html").decode()
    assert "stored and processed in <strong>the United States</strong>" in page and "not sold" in page
    assert manifest["disclosures"] == [] and "that we may" in page
    assert all(row not in page for row in (town.workspace, "192.0.2.17", "kim@example.org"))


async def test_nobody_gets_at_what_is_somebody_elses(town: Town) -> None:
    """What the directory does not know to be the account's own is refused, and who asks for others gets in nobody's way."""
    asked = [
        town.asked(
            events.PrivacyRequested, kind="access", scope="workspace", target="ws-unknown", account=town.account
        ),
        town.asked(
            events.PrivacyRequested, kind="access", scope="workspace", target=town.workspace, account="acc-other"
        ),
        town.asked(events.PrivacyRequested, kind="access", scope="account", target=town.account, account="acc-other"),
    ]
    await town.send(*asked)
    assert await refusals(town.mesh) == ["not_theirs"] * 3
    member = town.asked(events.PrivacyRequested, kind="access", scope="member", target=town.member)
    await town.send(member)
    with pytest.raises(NotFound):
        await town.case(str(body(member)["id"]))
    # An agent without an authorisation, while the person's own wishes wait.
    own = await town.wish("access", channel="support")
    deletion = await town.wish("erasure")
    for kind, case in (("access", own), ("erasure", deletion)):
        other = await town.wish(kind, channel="api", representative="agent-1", reply_to="agent@example.net")
        assert (other == case) == (kind == "erasure")
        assert (await town.case(case))["state"] == "requested"
    # A second correction is a wish of its own.
    first, second = [await town.wish("rectification", field="name", value=value) for value in ("One", "Two")]
    assert first != second
    await town.until_case(second, "fulfilled")


async def test_what_cannot_be_right_is_refused_and_waits_for_no_code(town: Town) -> None:
    at = await town.mesh.value("retention", "SELECT count(*) FROM privacy_case")
    for field, value in (("address", "nobody"), ("address", "a@b c@d"), ("address", " "), ("name", " ")):
        asked = {"kind": "rectification", "scope": "account", "account": town.account, "target": town.account}
        sealed = await town.sealed(value)
        await town.send(town.asked(events.PrivacyRequested, **asked, field=field, value=sealed))
    assert await refusals(town.mesh) == ["invalid"] * 4
    assert await town.mesh.value("retention", "SELECT count(*) FROM privacy_case") == at


@pytest.mark.promise(42)
async def test_a_change_of_address_that_was_asked_for_twice_happens_before_anybody_says_so(town: Town) -> None:
    """One code came back, the other mail is lost, and the person asks again: what it hears is what was done."""
    case = await town.wish("rectification", field="address", value="new@example.org")
    old, lost = code_in(await town.mail(case, "")), code_in(await town.mail(case, "", to="new@example.org"))
    await town.give(case, old)
    assert await town.wish("rectification", field="address", value="new@example.org") == case

    async def again() -> bool:
        return code_in(await town.mail(case, "", to="new@example.org")) != lost

    await town.mesh.until(again, 20, "another code")
    await town.give(case, code_in(await town.mail(case, "", to="new@example.org")))
    await town.until_case(case, "fulfilled")
    assert (await town.mail(case, "changed"))["To"] == "kim@example.org"
    assert (await town.mail(case, "corrected", to="new@example.org"))["To"] == "new@example.org"


async def test_a_change_of_address_that_is_denied_does_not_happen(town: Town) -> None:
    case = await town.wish("rectification", field="address", value="new@example.org")
    old, new = await town.mail(case, ""), await town.mail(case, "", to="new@example.org")
    await town.give(case, code_in(new))
    await town.send(town.command("deny_case", case, role="privacy", reason="suspected_fraud"))
    await town.give(case, code_in(old))
    await town.until_case(case, "denied")
    assert await town.mesh.value("notifications", "SELECT count(*) FROM address WHERE previous IS NOT NULL") == 0


async def test_copies_that_were_over_before_the_last_one_came_are_asked_for_anew(town: Town) -> None:
    """A holder is away for longer than the others keep their copies."""
    await town.used(5)
    metering = town.others["metering"]
    await metering.stop()
    town.mesh.running.remove(metering)
    case = await town.wish("access", passphrase=PASSPHRASE, settle=False)

    async def others_have_answered() -> bool:
        sql = "SELECT count(DISTINCT holder) FROM case_receipt WHERE case_id = $1 AND action = 'export'"
        return bool(
            await town.mesh.value("retention", sql, case) == len(town.others)
        )  # and retention, without metering

    await town.mesh.until(others_have_answered, 30, "all others have answered")
    await town.blobs.delete(f"{case}/1/billing")
    town.others["metering"] = await town.room("metering")
    row = await town.until_case(case, "fulfilled")
    assert [one["what"] for one in row["history"]].count("torn") == 1
    manifest, archive = await town.package(case)
    assert {source["holder"] for source in manifest["sources"]} == {*town.others, "retention"}
    assert len(lines(archive, "data/metering/request_log.jsonl")) == 5 and lines(archive, "data/billing/balance.jsonl")


@pytest.mark.promise(39)
async def test_a_copy_comes_although_somebody_whose_keys_it_names_is_erased_meanwhile(town: Town) -> None:
    """A colleague leaves while a holder is away: the owner's copy has nothing of them, and is not held up for ever."""
    await town.used(10)
    metering = town.others["metering"]
    await metering.stop()
    town.mesh.running.remove(metering)
    copy = await town.wish("access", passphrase=PASSPHRASE)
    await town.until_case(copy, "working")
    deletion = await town.wish("erasure", "member", f"{town.member}-2")
    await town.give(deletion, code_in(await town.mail(deletion, "")))
    await town.room("metering")
    await town.until_case(copy, "fulfilled")
    _, archive = await town.package(copy)
    assert len(lines(archive, "data/metering/request_log.jsonl")) == 10
    assert [one["key"] for one in lines(archive, "data/retention/api_key.jsonl")] == [f"key-{town.tag}"]


async def test_a_package_that_nobody_knows_of_goes_and_a_known_one_stays(town: Town) -> None:
    """Of a try that died, whose case went another way; of a database that was restored; half-written, of yesterday."""
    known, gone = await town.wish("access", passphrase=PASSPHRASE), new_case()
    await town.until_case(known, "fulfilled")
    await town.blobs.put(f"packages/{gone}/_package", b"x")
    await town.mesh.until(lambda: town.runtime.worker.run_job("packages-unknown", force=True), 20, "the job has run")
    assert await town.blobs.names("packages") == [f"packages/{known}/_package"]
    # A task that comes again when its case is over.
    for case, there in ((known, True), (gone, False)):
        await town.blobs.put(f"packages/{case}/_package", b"x")
        async with town.runtime.pool.acquire() as db, db.transaction():
            now = town.clock.now()
            tx = Transaction("retention", db, now, plugged=town.runtime.plugged)
            await tx.enqueue(PACK, case, {"case": case})
            await tx.flush()
        town.runtime.worker.wake()
        await town.mesh.idle()
        assert bool(await town.blobs.names(f"packages/{case}")) is there


async def test_a_store_that_hangs_holds_up_no_case(town: Town, monkeypatch: pytest.MonkeyPatch) -> None:
    """What nobody needs any more stays for now; everything that needs no store goes on, and links are closed."""
    case = await town.wish("access", passphrase=PASSPHRASE)
    await town.until_case(case, "fulfilled")
    link, goes_on, remove = link_in(await town.mail(case, "")), threading.Event(), shutil.rmtree

    def held(path: Path) -> None:
        goes_on.wait(120)
        remove(path)

    monkeypatch.setattr(shutil, "rmtree", held)
    monkeypatch.setattr("shared.privacy.blobs.PATIENCE", 1.0)
    deletion = await town.wish("erasure")
    await town.give(deletion, code_in(await town.mail(deletion, "")), settle=False)
    await town.until_case(deletion, "probing", within=60)
    assert (await town.fetch(link))[0] == 410
    assert (await town.case(case))["package"]["dropped_at"] is None
    goes_on.set()
    town.clock.ahead = timedelta(minutes=2)

    async def gone() -> bool:
        return (await town.case(case))["package"]["dropped_at"] is not None

    await town.mesh.until(gone, 30, "the file is gone")
    assert not [name for name in await town.blobs.names() if case in name]
