"""Disclosures from end to end: retention on real servers; holders and mail are played, or real where that is the point."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Awaitable, Callable
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any

import asyncpg
import pytest

from services.notifications.app import make_service as make_notifications
from services.retention.app.disclosed import disclosures_of
from services.retention.disclosure import COPY_LIFE, ENVELOPE_AFTER, EXTRACTABLE
from services.security.app import make_service as make_security
from shared.contract import events, topics
from shared.mesh.http import NotAllowed, NotFound, NotKept
from shared.mesh.runtime import Runtime
from shared.mesh.store import open_pool
from shared.privacy.blobs import open_blobs
from shared.privacy.errands import Errands
from shared.privacy.holder import Holder
from shared.privacy.package_contents import Disclosed
from shared.privacy.vault import CASE
from tests.support.gateway import Gateway, Sent, body
from tests.support.post import post
from tests.support.retention import OTHERS, Stage, instant
from tests.support.world import Faults, Mesh

DAY = timedelta(days=1)
PROCESS = {"basis": "legal_process", "instrument": "court_order", "reference": "22-cv-117"}
PROTECTION = {"basis": "protection", "protects": "safety", "decided_by": "jo"}


@pytest.fixture
async def stage(mesh: Mesh, seed: int) -> Stage:
    """Retention at work, and a customer who is known."""
    made = await Stage(mesh, seed).start()
    await made.a_customer()
    return made


def entering(stage: Stage, **changes: str | None) -> tuple[str, Sent]:
    """(the entry, the command that makes it): connections of an account, of ten days around now."""
    now = stage.clock.now()
    told: dict[str, str | None] = {
        "kind": "account", "authority": "us-doj", "from_security": "access_row", "since": instant(now - 5 * DAY),
        "until": instant(now + 5 * DAY), **PROCESS,
    }  # fmt: skip
    told |= changes
    role, subject = told.pop("role", None) or "legal", told.pop("subject", None) or stage.account
    arguments = {name: value for name, value in told.items() if value is not None}
    sent = stage.command("enter_disclosure", subject, role=role, **arguments)
    return str(body(sent)["id"]), sent


async def entered(stage: Stage, **changes: str | None) -> str:
    """An entry."""
    entry, sent = entering(stage, **changes)
    await stage.send(sent)
    return entry


async def gagged(stage: Stage, days: int = 100) -> str:
    """An entry that may not be told of yet."""
    return await entered(stage, gag_until=instant(stage.clock.now() + days * DAY))


async def ask(stage: Stage, read: str, *, role: str = "legal", reason: str = "LEGAL-7", **query: str) -> Any:
    """A read of the register."""
    return await stage.runtime.answer(read, query, "kim", role, reason)


async def whole(stage: Stage, entry: str) -> dict[str, Any]:
    found: dict[str, Any] = await ask(stage, "disclosure", id=entry)
    return found


async def history(stage: Stage, entry: str) -> list[str]:
    return [each["what"] for each in (await whole(stage, entry))["history"]]


def is_(stage: Stage, entry: str, state: str) -> Callable[[], Awaitable[bool]]:
    async def there() -> bool:
        try:
            return bool((await whole(stage, entry))["state"] == state)
        except NotFound:
            return False

    return there


async def notices(stage: Stage, entry: str) -> list[dict[str, Any]]:
    """What notifications are asked to send; each as often as it is asked."""
    return await stage.published(topics.MESSAGES, case=entry)


async def ahead(stage: Stage, by: timedelta) -> None:
    """Moves the clock, and makes what a service makes by the hour: places for the dead letters of that day."""
    stage.clock.ahead = by
    await stage.runtime.make_partitions()


async def reasons(stage: Stage) -> list[str]:
    """Why commands were refused, in order."""
    found = await stage.mesh.fetch("retention", "SELECT reason FROM mesh_dead_letter ORDER BY id")
    return [row["reason"] for row in found]


async def known_of(stage: Stage, account: str) -> list[Disclosed]:
    """What the account may know was disclosed of it."""
    digest = stage.vault.hasher.hashes([("account", account)])[0]
    async with stage.runtime.pool.acquire() as db:
        return await disclosures_of(db, [digest], stage.clock.now())


def enveloped(stage: Stage, entry: str, epoch: int = 1) -> Sent:
    """Notifications have kept the address, played."""
    return stage.receipt("notifications", entry, epoch, "envelope", treated=[])


# --- the notice ---------------------------------------------------------------------------------------------------


@pytest.mark.promise(31)
async def test_without_a_gag_the_person_is_told_at_once_and_once(stage: Stage) -> None:
    entry, sent = entering(stage)
    await stage.send(sent, sent)
    (mail,) = await notices(stage, entry)
    assert (mail["cause"], mail["template"], mail["account"]) == (f"disclosed-{entry}", "disclosure", stage.account)
    facts = mail["facts"]
    assert (facts["instrument"], facts["reference"], facts["basis"]) == ("court order", "22-cv-117", "legal process")
    assert facts["recipient"] == "us-doj" and facts["scope"].startswith("security.access_row, from ") and facts["date"]
    await stage.send(stage.accepted(entry, mail["cause"], "unknown"))
    row = await whole(stage, entry)
    assert (row["state"], row["needs_person"]) == ("unheard", ["notice"])
    await stage.send(*[stage.accepted(entry, mail["cause"])] * 2, stage.accepted(entry, mail["cause"], "refused"), sent)
    row = await whole(stage, entry)
    assert (row["state"], row["needs_person"]) == ("told", [])
    assert len(await notices(stage, entry)) == 1 and await reasons(stage) == []
    assert [each.recipient for each in await known_of(stage, stage.account)] == ["us-doj"]
    assert await stage.published(topics.PRIVACY_COMMANDS, case=entry) == []
    # Nobody's id is in the register, and when nothing more is to be read the key ends, and the hash alone stays.
    assert stage.tag not in json.dumps(row, default=str)
    stage.clock.ahead = EXTRACTABLE
    await stage.mesh.until(lambda: _keyless(stage, entry), 20, "its key is destroyed")
    rows = await stage.mesh.fetch("retention", "SELECT c.*, d.* FROM disclosure_course c JOIN disclosure d USING (id)")
    assert stage.tag not in repr(rows) and rows[0]["sealed"] is None


async def _completed(stage: Stage, case: str) -> bool:
    return (await stage.case(case))["completed_at"] is not None


async def _keyless(stage: Stage, entry: str) -> bool:
    return not await stage.vault.there(CASE, [entry])


@pytest.mark.promise(31)
@pytest.mark.promise(50)
async def test_a_gag_says_nothing_until_its_end_even_if_the_account_is_erased(stage: Stage) -> None:
    """The deletion waits for the envelope; its receipts and mails say nothing; then the notice goes out, unprompted."""
    entry = await gagged(stage)
    order = await stage.until_ordered(entry, "envelope", holder="notifications")
    ends = stage.clock.now() + 100 * DAY + ENVELOPE_AFTER
    assert abs((_at(order["arguments"]["not_after"]) - ends).total_seconds()) < 60
    assert await stage.vault.open_subjects(entry, order["sealed"]) == [("account", stage.account)]
    case = await stage.confirmed()
    await stage.until_ordered(case, "erase", holder="metering")
    assert not [o for o in await stage.published(topics.PRIVACY_COMMANDS, case=case) if "notifications" in o["holders"]]
    await stage.send(enveloped(stage, entry), enveloped(stage, entry))
    await stage.until_ordered(case, "erase", holder="notifications")
    await stage.to_completed(case)
    await stage.mesh.until(lambda: _completed(stage, case), 20, "completed")
    assert await known_of(stage, stage.account) == [] and await notices(stage, entry) == []
    assert entry not in json.dumps(await stage.case(case), default=str)
    # An order that is sent again is the same event, and after its receipt none comes.
    assert (
        len({e["id"] for _, e in await stage.records(topics.PRIVACY_COMMANDS) if e and e["data"]["case"] == entry}) == 1
    )
    stage.clock.ahead = 100 * DAY - timedelta(minutes=5)
    await stage.mesh.until(lambda: stage.runtime.worker.run_job("cases", force=True), 20, "the job has run")
    await stage.mesh.idle()
    assert await notices(stage, entry) == [] and (await whole(stage, entry))["state"] == "gagged"
    stage.clock.ahead = 100 * DAY
    await stage.mesh.until(is_(stage, entry, "asked"), 20, "the notice is asked for")
    await stage.mesh.idle()
    (mail,) = await notices(stage, entry)
    assert (mail.get("account"), mail.get("address"), mail["case"]) == (None, None, entry)
    assert [each.recipient for each in await known_of(stage, stage.account)] == ["us-doj"]
    await stage.send(stage.accepted(entry, mail["cause"]))
    await stage.mesh.until(lambda: _keyless(stage, entry), 20, "its key is destroyed")
    assert await history(stage, entry) == [
        "entered", "envelope_kept", "gag_ended", "notice_asked", "notice", "key_destroyed",
    ]  # fmt: skip
    # The records end 24 months after the notice.
    assert await stage.mesh.value("retention", "SELECT expires_at - told_at FROM disclosure_course") == 731 * DAY


def _at(text: str) -> datetime:
    return datetime.fromisoformat(text)


@pytest.mark.promise(31)
async def test_a_person_ends_a_gag_or_says_until_when_it_lasts(stage: Stage) -> None:
    longer, over = await gagged(stage), await gagged(stage)
    await stage.send(enveloped(stage, longer), enveloped(stage, over))
    until = instant(stage.clock.now() + 200 * DAY)
    extend = stage.command("end_gag", longer, role="legal", until=until)
    await stage.send(extend, extend, stage.command("end_gag", longer, role="legal", until=until))
    assert (await stage.until_ordered(longer, "envelope", 2))["arguments"]["not_after"] > until
    await stage.send(enveloped(stage, longer, 2), *[stage.command("end_gag", over, role="legal")] * 2)
    assert len(await notices(stage, over)) == 1
    assert (await history(stage, over)).count("gag_ended") == 1
    assert (await history(stage, longer)).count("gag_extended") == 1
    await ahead(stage, 101 * DAY)
    await stage.mesh.until(lambda: stage.runtime.worker.run_job("cases", force=True), 20, "the job has run")
    assert (await whole(stage, longer))["state"] == "gagged" and await reasons(stage) == []
    shorter = instant(stage.clock.now() + DAY)
    for entry, told in ((longer, shorter), (over, until), (longer, "never"), (longer, instant(stage.clock.now()))):
        await stage.send(stage.command("end_gag", entry, role="legal", until=told))
    await stage.send(stage.command("end_gag", await entered(stage), role="legal"))
    assert await reasons(stage) == ["refused", "refused", "invalid", "invalid", "refused"]
    stage.clock.ahead = 201 * DAY
    await stage.mesh.until(is_(stage, longer, "asked"), 20, "a review that passes without an extension ends the gag")


async def test_a_notice_that_no_mail_brings_is_settled_by_a_named_person(stage: Stage) -> None:
    entry = await entered(stage)
    await stage.send(stage.command("settle_notice", entry, role="legal"))
    await stage.send(stage.accepted(entry, f"disclosed-{entry}", "refused"))
    assert (await whole(stage, entry))["needs_person"] == ["notice"]
    await stage.send(stage.command("settle_notice", entry, role="legal"))
    assert (await whole(stage, entry))["state"] == "told" and await reasons(stage) == ["refused"]
    (last,) = [each for each in (await whole(stage, entry))["history"] if each["what"] == "settled"]
    assert (last["actor"], last["role"], last["reason"]) == ("kim", "legal", "T-1")


@pytest.mark.promise(31)
@pytest.mark.parametrize("point", ["before_commit", "committed", "relay_read", "relay_acknowledged"])
async def test_killed_while_it_is_entered(mesh: Mesh, seed: int, point: str) -> None:
    """Whatever dies: one entry, one notice."""
    faults = Faults("nowhere")
    stage = await Stage(mesh, seed).start(fault=faults)
    await stage.a_customer()
    entry, sent = entering(stage)
    faults.point = point
    await Gateway(seed).send(mesh.env, [sent])
    await asyncio.wait_for(faults.hit.wait(), 30)
    await mesh.abandon(stage.runtime)
    await stage.start()
    await mesh.until(is_(stage, entry, "asked"), 30, "asked")
    await mesh.idle()
    ids = {event["id"] for _, event in await stage.records(topics.MESSAGES) if event and event["data"]["case"] == entry}
    assert len(ids) == 1 and (await history(stage, entry)).count("notice_asked") == 1


# --- what is no entry ---------------------------------------------------------------------------------------------

NO_ENTRIES: dict[str, tuple[dict[str, str | None], str]] = {
    "no role": ({"role": "support"}, "role"),
    "operations": ({"role": "operations"}, "role"),
    "no basis": ({"basis": None}, "invalid"),
    "process without an instrument": ({"instrument": None}, "invalid"),
    "an instrument that is none": ({"instrument": "a_friend"}, "invalid"),
    "process without a reference": ({"reference": None}, "invalid"),
    "two bases": ({"protects": "safety"}, "invalid"),
    "no authority": ({"authority": None}, "invalid"),
    "no tables": ({"from_security": None}, "invalid"),
    "tables of nobody": ({"from_nobody": "access_row"}, "invalid"),
    "no names of tables": ({"from_security": ".."}, "invalid"),
    "half a range": ({"since": None}, "invalid"),
    "an empty range": ({"until": "2020-01-01T00:00:00Z"}, "invalid"),
    "no instant": ({"until": "later"}, "invalid"),
    "a gag without an end": ({"gag_until": "open"}, "invalid"),
    "a gag of the past": ({"gag_until": "2020-01-01T00:00:00Z"}, "invalid"),
    "a gag that nobody reviews": ({"gag_until": "2999-01-01T00:00:00Z"}, "invalid"),
    "an unknown argument": ({"because": "x"}, "invalid"),
    "a member": ({"kind": "member"}, "invalid"),
    "nobody": ({"subject": "acc-nobody"}, "unknown_subject"),
}


@pytest.mark.promise(30)
async def test_what_is_no_entry_is_refused_with_the_reason(stage: Stage) -> None:
    for changes, _ in NO_ENTRIES.values():
        await stage.send(entering(stage, **changes)[1])
    assert await reasons(stage) == [reason for _, reason in NO_ENTRIES.values()]
    assert await ask(stage, "disclosures") == [] and await stage.records(topics.MESSAGES) == []


@pytest.mark.promise(32)
async def test_protection_needs_what_it_protects_and_who_decided(stage: Stage) -> None:
    process = dict.fromkeys(("instrument", "reference"))
    for lacks in ("protects", "decided_by"):
        await stage.send(entering(stage, **process, **(PROTECTION | {lacks: None}))[1])
    await stage.send(entering(stage, **process, **(PROTECTION | {"protects": "reputation"}))[1])
    await stage.send(entering(stage, **PROTECTION)[1])
    assert await reasons(stage) == ["invalid"] * 4 and await ask(stage, "disclosures") == []
    entry = await entered(stage, **process, **PROTECTION)
    row = await whole(stage, entry)
    assert (row["basis"], row["protects"], row["decided_by"], row["instrument"]) == ("protection", "safety", "jo", None)
    (mail,) = await notices(stage, entry)
    assert mail["facts"]["basis"] == "protection of safety" and "instrument" not in mail["facts"]


@pytest.mark.promise(30)
async def test_the_register_only_grows(stage: Stage) -> None:
    """Not even its own service can change or take away what was said."""
    entry = await entered(stage)
    settings = stage.mesh.settings("retention")
    pool = await open_pool(settings.database_url, size=1, application="test")
    try:
        for table in ("disclosure", "disclosure_event", "disclosure_extract"):
            for sql in (f"UPDATE {table} SET id = id", f"DELETE FROM {table}", f"TRUNCATE {table}"):
                with pytest.raises(asyncpg.InsufficientPrivilegeError):
                    await pool.execute(sql)
        with pytest.raises(asyncpg.CheckViolationError):
            await pool.execute("DELETE FROM disclosure_course")
    finally:
        await pool.close()
    assert (await whole(stage, entry))["reference"] == "22-cv-117"


# --- extracts -----------------------------------------------------------------------------------------------------


def extracting(stage: Stage, entry: str, *, role: str = "legal", **told: str) -> Sent:
    return stage.command("extract_disclosure", entry, role=role, **told)


async def copied(stage: Stage, entry: str, number: int = 1) -> dict[str, Any]:
    """Waits until every holder has copied its part of an extract."""
    found: list[dict[str, Any]] = []

    async def done() -> bool:
        found[:] = [one for one in (await whole(stage, entry))["extracts"] if one["epoch"] == number]
        return bool(found) and all(one["done_at"] is not None for one in found)

    await stage.mesh.until(done, 20, "copied")
    return found[0]


@pytest.mark.promise(30)
async def test_nothing_is_extracted_without_an_entry_or_beyond_it(stage: Stage) -> None:
    now = stage.clock.now()
    entry = await entered(stage)
    missing = "019ab7d4-1e5a-7f00-8a1b-2c3d4e5f6a7b"
    refused = [
        (extracting(stage, missing), "no_entry"),
        (extracting(stage, stage.account), "no_entry"),
        (extracting(stage, entry, role="support"), "role"),
        (extracting(stage, entry, role="privacy"), "role"),
        (extracting(stage, entry, from_security="finding"), "beyond_scope"),
        (extracting(stage, entry, from_security="access_row.finding"), "beyond_scope"),
        (extracting(stage, entry, from_metering="request_log"), "beyond_scope"),
        (extracting(stage, entry, since=instant(now - 6 * DAY)), "beyond_scope"),
        (extracting(stage, entry, until=instant(now + 6 * DAY)), "beyond_scope"),
        (extracting(stage, entry, subject="acc-other"), "invalid"),
    ]
    await stage.send(*(sent for sent, _ in refused))
    assert await reasons(stage) == [reason for _, reason in refused]
    await stage.confirmed()
    await stage.send(extracting(stage, entry), entering(stage)[1])
    assert (await reasons(stage))[-2:] == ["erased", "erased"]
    await ahead(stage, EXTRACTABLE)
    await stage.send(extracting(stage, entry))
    assert (await reasons(stage))[-1] == "over"
    assert await stage.published(topics.PRIVACY_COMMANDS, action="export") == []


@pytest.mark.promise(30)
@pytest.mark.parametrize("narrow", [True, False], ids=["guarded", "unguarded"])
async def test_an_extract_is_what_its_entry_names_and_each_read_leaves_a_row(
    stage: Stage, narrow: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A real holder copies: rows of this person, of these tables, of this time, and no more."""
    if not narrow:
        asked = Errands._asked
        monkeypatch.setattr(Errands, "_asked", lambda self, order: asked(self, {**order, "arguments": {}}))
    await stage.mesh.start("security", service=make_security(), clock=stage.clock)
    await stage.mesh.owned()
    ip = await stage.sealed("198.51.100.7")
    now = stage.clock.now()
    for account, at in ((stage.account, now), (stage.account, now - 6 * DAY), ("acc-other", now)):
        data = {"account": account, "kind": "sign_in", "ip": ip}
        at_ms = int(at.timestamp() * 1000)
        await stage.send(
            stage.event("gateway-1", topics.ACCESS, events.AccessRecorded, account, data, at_ms=at_ms)
        )  # fmt: skip
    entry = await entered(stage)
    sent = extracting(stage, entry)
    await stage.send(sent, sent)
    one = await copied(stage, entry)
    blobs = open_blobs(stage.mesh.env["STEWARD_BLOBS"])
    tables = {name.split("/")[3] for name in await blobs.names(entry)} - {"_map"}
    assert (tables == {"access_row"}) is narrow, "an extract that copies more than it should proves nothing"
    if not narrow:
        # Even then nobody reads what the entry does not name.
        page = await ask(stage, "disclosure_extract", id=entry)
        assert (page["part"], page["parts"]) == ("security.access_row", 1)
        return
    assert one["missing"] == [] and [each["rows"] for each in one["receipt"]["treated"]] == [1]
    for role, reason in (("support", "LEGAL-7"), ("operator", "LEGAL-7"), ("legal", " ")):
        with pytest.raises(NotAllowed):
            await ask(stage, "disclosure_extract", role=role, reason=reason, id=entry)
    for query in ({"id": "none"}, {"id": entry, "extract": "2"}, {"id": entry, "part": "7"}):
        with pytest.raises(NotFound):
            await ask(stage, "disclosure_extract", **query)
    assert "read" not in await history(stage, entry)
    page = await ask(stage, "disclosure_extract", id=entry)
    (line,) = page["lines"].splitlines()
    assert json.loads(line)["account"] == stage.account and page["parts"] == 1
    await ask(stage, "disclosure_extract", reason="LEGAL-8", id=entry)
    reads = [each for each in (await whole(stage, entry))["history"] if each["what"] == "read"]
    assert [(each["actor"], each["reason"], each["detail"]) for each in reads] == [
        ("kim", "LEGAL-7", "1 security.access_row 0"), ("kim", "LEGAL-8", "1 security.access_row 0"),
    ]  # fmt: skip
    # A second extract, and a narrower one.
    await stage.send(extracting(stage, entry, until=instant(now - DAY)))
    one = await copied(stage, entry, 2)
    assert (await ask(stage, "disclosure_extract", id=entry))["parts"] == 0
    assert (await ask(stage, "disclosure_extract", id=entry, extract="1"))["parts"] == 1
    # When it is over nobody reads it, whatever is left; and when its person knows, the key goes.
    await ahead(stage, COPY_LIFE + timedelta(minutes=1))
    with pytest.raises(NotKept):
        await ask(stage, "disclosure_extract", id=entry)
    await stage.send(stage.accepted(entry, f"disclosed-{entry}"))
    await stage.mesh.until(lambda: _keyless(stage, entry), 20, "its key is destroyed")

    async def gone() -> bool:
        return await blobs.names(entry) == []

    await stage.mesh.until(gone, 20, "what nobody can open goes")
    await stage.send(extracting(stage, entry))
    assert await reasons(stage) == ["over"]


async def test_an_extract_waits_for_its_holders_and_nobody_answers_for_another(stage: Stage) -> None:
    entry = await entered(stage, from_billing="note.payment")
    await stage.send(extracting(stage, entry))
    order = await stage.until_ordered(entry, "export", holder="billing")
    assert order["holders"] == ["billing"] and order["arguments"]["tables"] == "note.payment"
    assert (await stage.until_ordered(entry, "export", holder="security"))["arguments"]["tables"] == "access_row"
    treated = [{"table": "note", "action": "exported", "columns": ["text"], "rows": 2}]
    await stage.send(
        stage.receipt("billing", entry, 1, "export", treated=treated), stage.receipt("metering", entry, 1, "export"),
        stage.receipt("security", entry, 2, "export"), stage.receipt("security", entry, 1, "export", source="billing"),
        stage.receipt("metering", entry, 1, "envelope"),
    )  # fmt: skip
    assert await reasons(stage) == ["unknown_case", "unknown_case", "wrong_source", "unknown_case"]
    with pytest.raises(NotFound, match="security"):
        await ask(stage, "disclosure_extract", id=entry)
    await stage.send(stage.receipt("security", entry, 1, "export"))
    assert (await copied(stage, entry))["missing"] == ["payment"], "what a holder does not know is said"


# --- with real mail -----------------------------------------------------------------------------------------------


@pytest.mark.promise(31)
async def test_the_notice_reaches_somebody_who_is_erased(mesh: Mesh, seed: int, tmp_path: Path) -> None:
    """Real notifications, real mail: the gag is extended after the account has gone, ends by its time, and one mail comes."""
    (tmp_path / "post").mkdir()
    async with post(tmp_path / "post") as office:
        stage = Stage(mesh, seed)
        await stage.start()
        await mesh.start(
            "notifications", service=make_notifications(), clock=stage.clock, settings={"smtp_url": office.url}
        )
        await mesh.owned()
        await stage.a_customer()
        entry = await gagged(stage)
        await mesh.until(lambda: _heard(stage, entry, "envelope_kept"), 20, "the address is in safety")
        case = await stage.confirmed()
        await stage.first_wave(case, [name for name in OTHERS if name != "notifications"])
        await stage.until_ordered(case, "erase", holder="billing")
        await stage.send(stage.receipt("billing", case))
        await stage.until_ordered(case, "probe")
        await stage.send(stage.scan(case, "probe", 1))
        await mesh.until(lambda: _completed(stage, case), 20, "completed")
        assert await mesh.value("notifications", "SELECT count(*) FROM address") == 0
        until = instant(stage.clock.now() + 200 * DAY)
        await stage.send(stage.command("end_gag", entry, role="legal", until=until))
        assert (
            await mesh.value("notifications", "SELECT count(*) FROM kept_address WHERE not_after > $1", _at(until)) == 1
        )
        stage.clock.ahead = 150 * DAY
        await mesh.until(lambda: stage.runtime.worker.run_job("cases", force=True), 20, "the job has run")
        await mesh.idle()
        told = [m for m in office.mails() if "disclosed" in str(m["Subject"])]
        assert told == []
        stage.clock.ahead = 201 * DAY
        await mesh.until(is_(stage, entry, "told"), 30, "told")
        (mail,) = [m for m in office.mails() if "disclosed" in str(m["Subject"])]
        assert mail["To"] == "kim@example.org"
        text = mail.get_content()
        assert "22-cv-117" in text and "us-doj" in text and "court order" in text
        assert await mesh.value("notifications", "SELECT count(*) FROM kept_address") == 0
        await mesh.until(lambda: _keyless(stage, entry), 20, "its key is destroyed")


async def _heard(stage: Stage, entry: str, what: str) -> bool:
    return what in await history(stage, entry)


@pytest.mark.promise(31)
@pytest.mark.parametrize("looks_ahead", [True, False], ids=["guarded", "unguarded"])
async def test_the_notice_reaches_somebody_who_is_erased_while_notifications_are_away(
    mesh: Mesh, seed: int, tmp_path: Path, looks_ahead: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What is erased at the start, by tombstones that were quicker than the order, is put aside before."""
    (tmp_path / "post").mkdir()
    stage = Stage(mesh, seed)
    async with post(tmp_path / "post") as office:

        async def notifications() -> Runtime:
            smtp = {"smtp_url": office.url}
            runtime = await mesh.start("notifications", service=make_notifications(), clock=stage.clock, settings=smtp)
            await mesh.owned()
            return runtime

        await stage.start()
        room = await notifications()
        await stage.a_customer()
        await mesh.stop(room)
        entry = await gagged(stage)
        await stage.until_ordered(entry, "envelope")
        await stage.confirmed()
        if not looks_ahead:
            monkeypatch.setattr(Holder, "_put_aside", _nothing)
        await notifications()
        await mesh.until(lambda: _heard(stage, entry, "envelope_kept"), 20, "the order is answered")
        await mesh.until(lambda: _no_address(mesh), 20, "erased")
        await stage.send(stage.command("end_gag", entry, role="legal"))
        await mesh.until(is_(stage, entry, "told" if looks_ahead else "unheard"), 30, "the notice is settled")
        told = [m["To"] for m in office.mails() if "disclosed" in str(m["Subject"])]
        assert told == (["kim@example.org"] if looks_ahead else [])


async def _no_address(mesh: Mesh) -> bool:
    return bool(await mesh.value("notifications", "SELECT count(*) FROM address") == 0)


async def _nothing(self: Holder, tx: Any) -> None:
    """In place of a guard that is switched off."""
