"""Notifications on real Kafka, PostgreSQL and SMTP: each mail once per cause, and never a blind second one."""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import AsyncIterator
from datetime import timedelta
from pathlib import Path

import pytest

from services.notifications import mail
from services.notifications.data_map import BAR_LIFE, ENVELOPE_LIFE, ROWS
from shared.mesh.transaction import rfc3339
from tests.support.desk import ADDRESS, AGENT, CASE, CASE_2, DAY, LINK, NEW, SENDER, Desk, codes_in, opened_desk
from tests.support.post import Trouble
from tests.support.raw_files import holding, raw_folders
from tests.support.world import Mesh


@pytest.fixture
async def desk(mesh: Mesh, tmp_path: Path) -> AsyncIterator[Desk]:
    async with opened_desk(mesh, tmp_path) as made:
        yield made


# --- once per cause ----------------------------------------------------------------------------------------------


@pytest.mark.promise(22)
async def test_each_mail_is_sent_once_per_cause_whatever_is_repeated(desk: Desk) -> None:
    causes = [f"cause-{n}" for n in range(5)]
    runtime, _ = await desk.know("acc-1", "acc-1", batch_records=4)
    await desk.send(*(desk.asked(cause) for cause in causes * 3))
    await desk.mesh.idle()
    await desk.mesh.stop(runtime)
    await desk.mesh.fetch("notifications", "UPDATE mesh_cursor SET next_offset = 0, epoch = epoch + 1")
    await desk.send(*(desk.asked(cause) for cause in causes), desk.opened(address="other@example.org"))
    await desk.start()
    await desk.mesh.idle()
    assert len(desk.post.mails()) == 5
    assert {m["Message-ID"] for m in desk.post.mails()} == {mail.message_id(cause, SENDER) for cause in causes}
    assert {m["To"] for m in desk.post.mails()} == {ADDRESS}
    assert await desk.outcomes() == Counter({(cause, "accepted"): 1 for cause in causes})
    assert await desk.count("mails_accepted") == 5
    assert all(len(codes_in(m.get_content())) == 1 for m in desk.post.mails())


async def test_a_burst_of_mails_shares_a_connection(desk: Desk) -> None:
    desk.post.troubles += ["refuse recipient"]
    await desk.know()
    await desk.send(*(desk.asked(f"cause-{n}") for n in range(6)))
    await desk.mesh.idle()
    assert (len(desk.post.mails()), desk.post.conversations) == (5, 1)


async def test_a_mail_waits_for_an_address_that_is_still_on_its_way(desk: Desk) -> None:
    await desk.send(desk.asked())
    await desk.start()

    async def tried() -> bool:
        row = await desk.row()
        return row is not None and row["state"] == "waiting" and row["reason"] == "no_address"

    await desk.mesh.until(tried, 30, "it was tried without an address")
    await desk.send(desk.opened())

    async def known() -> bool:
        return await desk.count("addresses") == 1

    # Before the time for the next attempt: one that comes too early is put off for longer.
    await desk.mesh.until(known, 30, "the address has arrived")
    desk.clock.by = timedelta(minutes=1)
    await desk.in_state("accepted")
    assert len(desk.post.mails()) == 1


# --- killed in the middle ----------------------------------------------------------------------------------------

POINTS = {
    # point: (state at the next start, mails at the server)
    "before_commit": ("accepted", 1),  # the order is read again
    "committed": ("accepted", 1),
    "unmarked": ("accepted", 1),  # sender and recipient were taken, the text did not go
    "marked": ("unknown", 0),  # it was said that the text goes out: nobody can know that it did not
    "answered": ("unknown", 1),  # the server took it, and nobody wrote that down
    "task_before_commit": ("unknown", 1),
    "relay_read": ("accepted", 1),  # the outcome is published later
    "relay_acknowledged": ("accepted", 1),  # ... or twice, under one id
}


@pytest.mark.parametrize("point", POINTS)
async def test_killed_at(desk: Desk, point: str) -> None:
    state, mails = POINTS[point]
    await desk.send(desk.opened())
    first, _ = await desk.start()
    await desk.mesh.idle()
    await desk.mesh.stop(first)
    victim, fault = await desk.start("nowhere")
    # What a service does when it starts passes some of the points, too.
    await desk.mesh.idle()
    fault.point = point
    await desk.send(desk.asked())
    async with asyncio.timeout(30):
        await fault.hit.wait()
    await desk.mesh.abandon(victim)
    await desk.start()
    await desk.in_state(state)
    await desk.mesh.idle()
    assert len(desk.post.mails()) == mails
    assert await desk.outcomes() == Counter({("cause-1", state): 1})
    assert (await desk.row())["attempts"] == 1


async def test_a_process_that_dies_while_the_server_thinks_leaves_an_unknown_outcome(desk: Desk) -> None:
    desk.post.troubles += ["stall"]
    victim, _ = await desk.know()
    await desk.send(desk.asked())
    async with asyncio.timeout(30):
        await desk.post.stalled.wait()
    await desk.mesh.abandon(victim)
    await desk.start()
    assert (await desk.in_state("unknown"))["reason"] == "interrupted"
    assert len(desk.post.mails()) == 1


async def test_an_answer_that_was_heard_outlives_the_transaction_that_lost_it(desk: Desk) -> None:
    runtime, fault = await desk.know(fault="answered")
    await desk.send(desk.asked())
    async with asyncio.timeout(30):
        await fault.hit.wait()
    # The database ends the transaction; the process lives, and knows what the server said.
    async with desk.mesh.world.admin() as admin:
        await admin.execute(
            "SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE usename = 'steward_notifications_app' "
            "AND state = 'idle in transaction'"
        )
    fault.release.set()
    await desk.in_state("accepted")
    await desk.mesh.idle()
    assert len(desk.post.mails()) == 1 and await desk.outcomes() == Counter({("cause-1", "accepted"): 1})
    assert runtime.exit_reason is None


# --- what a server may do ----------------------------------------------------------------------------------------


@pytest.mark.parametrize(("trouble", "kept"), [("hang up", 1), ("lose and hang up", 0)])
async def test_an_unknown_outcome_is_never_sent_again_but_by_a_person(desk: Desk, trouble: Trouble, kept: int) -> None:
    desk.post.troubles += [trouble]
    first, _ = await desk.know()
    await desk.send(desk.asked(), desk.asked("cause-2"))
    await desk.mesh.idle()
    assert (await desk.row())["state"] == "unknown" and (await desk.row())["reason"] == "no_reply"
    desk.clock.by = timedelta(days=5)
    await desk.mesh.stop(first)
    await desk.send(desk.asked())
    await desk.start()
    await desk.mesh.idle()
    theirs = mail.message_id("cause-1", SENDER)
    assert [m["Message-ID"] for m in desk.post.mails()].count(theirs) == kept
    assert await desk.outcomes() == Counter({("cause-1", "unknown"): 1, ("cause-2", "accepted"): 1})

    await desk.send(
        desk.gateway.command("notifications", "resend", "cause-1"),
        desk.gateway.command("notifications", "resend", "cause-2"),
        desk.gateway.command("notifications", "resend", "cause-9"),
    )
    row = await desk.in_state("accepted")
    await desk.mesh.idle()
    assert (row["decided_by"], row["ticket"], row["attempts"]) == ("tester", "T-1", 2)
    assert [m["Message-ID"] for m in desk.post.mails()].count(theirs) == kept + 1
    assert await desk.outcomes() == Counter(
        {("cause-1", "unknown"): 1, ("cause-1", "accepted"): 1, ("cause-2", "accepted"): 1}
    )
    assert await desk.count("resends_refused") == 2


async def test_what_failed_before_the_text_or_was_deferred_is_tried_again_later(desk: Desk) -> None:
    desk.post.troubles += ["defer recipient", "defer text", "refuse sender"]
    await desk.know()
    await desk.send(desk.asked())
    for attempts, reason in ((1, "451"), (2, "451"), (3, "550")):
        row = await desk.in_state("waiting", attempts=attempts)
        assert row["reason"] == reason
        assert row["next_attempt_at"] > desk.clock.now(), "not at once"
        assert await desk.outcomes() == Counter()
        desk.clock.by += row["next_attempt_at"] - desk.clock.now()
    await desk.in_state("accepted", attempts=4)
    assert len(desk.post.mails()) == 1


async def test_a_connection_that_breaks_before_the_text_is_made_again_at_once(desk: Desk) -> None:
    await desk.know()
    await desk.send(desk.asked("cause-0"))
    await desk.in_state("accepted", "cause-0")
    desk.post.troubles += ["hang up before text"]
    await desk.send(desk.asked())
    await desk.in_state("accepted", attempts=1)
    assert (len(desk.post.mails()), desk.post.conversations) == (2, 2)


@pytest.mark.parametrize(("trouble", "reason"), [("refuse recipient", "550"), ("refuse text", "554")])
async def test_what_is_refused_is_refused(desk: Desk, trouble: Trouble, reason: str) -> None:
    desk.post.troubles += [trouble]
    await desk.know()
    await desk.send(desk.asked())
    row = await desk.in_state("refused")
    assert (row["reason"], row["attempts"]) == (reason, 1)
    desk.clock.by = timedelta(days=1)
    await desk.mesh.idle()
    assert desk.post.mails() == [] and await desk.outcomes() == Counter({("cause-1", "refused"): 1})
    # By a person only, and then with all that it says.
    await desk.send(desk.gateway.command("notifications", "resend", "cause-1"))
    assert len(await desk.code()) == 8
    await desk.mesh.idle()
    assert (await desk.row())["code_sealed"] is None
    assert await desk.outcomes() == Counter({("cause-1", "refused"): 1, ("cause-1", "accepted"): 1})


async def test_a_server_that_stays_away_is_given_up_after_days_and_the_mail_counts_as_refused(desk: Desk) -> None:
    runtime, _ = await desk.know(smtp_url="smtp://127.0.0.1:1")
    await desk.send(desk.asked())
    assert (await desk.in_state("waiting", attempts=1))["reason"] == "away"
    desk.clock.by = mail.GIVE_UP + timedelta(minutes=1)
    assert (await desk.in_state("refused"))["reason"] == "gave_up"
    # The server is back, and a person has the mail sent: its code is good.
    await desk.mesh.stop(runtime)
    await desk.start()
    await desk.send(desk.gateway.command("notifications", "resend", "cause-1"))
    await desk.send(desk.confirmed(await desk.code()))
    assert await desk.judged() == [(True, "account")]


# --- addresses and envelopes -------------------------------------------------------------------------------------


async def envelopes(desk: Desk) -> int:
    return int(await desk.mesh.value("notifications", "SELECT count(*) FROM envelope"))


@pytest.mark.parametrize(
    ("trouble", "outcome"), [(None, "accepted"), ("refuse recipient", "refused"), ("hang up", "unknown")]
)
async def test_the_last_mail_finds_its_address_in_the_envelope_which_ends_when_it_is_accepted(
    desk: Desk, trouble: Trouble | None, outcome: str
) -> None:
    await desk.know("acc-1", "acc-2")
    await desk.erase()
    assert await envelopes(desk) == 1
    desk.post.troubles += [trouble] if trouble else []
    await desk.send(desk.asked(template="erasure_completed", account=None, facts={"scope": "account"}))
    await desk.in_state(outcome)
    await desk.mesh.idle()
    assert [m["To"] for m in desk.post.mails()] == ([] if outcome == "refused" else [ADDRESS])
    assert await envelopes(desk) == (0 if outcome == "accepted" else 1)
    # What was not accepted a person may have sent again, for as long as the envelope is there.
    known = len(desk.post.mails())
    await desk.send(desk.gateway.command("notifications", "resend", "cause-1"))
    await desk.in_state("accepted")
    await desk.mesh.idle()
    assert len(desk.post.mails()) == known + (0 if outcome == "accepted" else 1)
    assert await envelopes(desk) == 0 and desk.post.mails()[-1]["To"] == ADDRESS


async def test_an_envelope_is_over_after_its_days_even_if_nobody_cleared_it_away(desk: Desk) -> None:
    await desk.know()
    await desk.erase()
    desk.clock.by = ENVELOPE_LIFE
    await desk.send(desk.asked(template="erasure_completed", account=None))
    assert (await desk.in_state("refused"))["reason"] == "no_address"
    assert desk.post.mails() == []


async def test_the_clocks_of_the_data_map_end_the_rows(desk: Desk) -> None:
    await desk.know("acc-1", "acc-2")
    made = desk.clock.now()
    await desk.send(desk.asked(account="acc-2", until=made + DAY))
    await desk.in_state("accepted")
    await desk.send(
        desk.confirmed("WRONGWRN", account="acc-2"),
        desk.taken_back(CASE_2, "acc-2"),
        await desk.order("bar", "acc-2", CASE_2),
        await desk.order("envelope", "acc-2", CASE_2, not_after=rfc3339(made + 90 * DAY)),
    )
    await desk.mesh.idle()
    await desk.erase()
    ends = {
        "envelope": ENVELOPE_LIFE, "mail": 30 * DAY, "judgement": 30 * DAY, "proof": 8 * DAY, "kept_address": 90 * DAY,
        "barred": BAR_LIFE, "ended": 30 * DAY,
    }  # fmt: skip
    for rows in ROWS:
        if rows.expires is not None:
            sql = f"SELECT count(*) FROM {rows.table} WHERE {rows.expires} <= $1"
            left = [
                await desk.mesh.value("notifications", sql, made + ends[rows.table] + timedelta(seconds=s))
                for s in (-1, 120)
            ]
            assert left == [0, 1], rows.table


async def test_a_mail_to_somebody_who_is_erased_meanwhile_goes_nowhere(desk: Desk) -> None:
    desk.post.troubles += ["defer recipient"]
    await desk.know()
    await desk.send(desk.asked())
    await desk.in_state("waiting", attempts=1)
    await desk.erase()
    desk.clock.by = timedelta(hours=1)
    assert (await desk.in_state("refused"))["reason"] == "erased"
    assert desk.post.mails() == [] and await envelopes(desk) == 1, "the envelope waits for the last mail"
    # What was asked for before, and is read only now, names nobody again.
    await desk.send(desk.asked(cause="cause-2", facts={"workspaces": "ws-1"}))
    await desk.mesh.idle()
    late = "SELECT state, reason, account, code_sealed, facts::text FROM mail WHERE cause = 'cause-2'"
    (row,) = await desk.mesh.fetch("notifications", late)
    assert tuple(row) == ("refused", "erased", None, None, "{}")


@pytest.mark.promise(60)
async def test_an_address_that_was_moved_to_another_account_is_not_written_to(desk: Desk) -> None:
    await desk.know("acc-1", "acc-2")
    await desk.mesh.fetch(
        "notifications",
        "UPDATE address a SET sealed = b.sealed FROM address b WHERE a.account = 'acc-1' AND b.account = 'acc-2'",
    )
    await desk.send(desk.asked())
    assert (await desk.in_state("refused"))["reason"] == "no_address"
    assert desk.post.heard == []


async def test_what_cannot_be_opened_or_is_no_address_stops_nobody(desk: Desk) -> None:
    await desk.send(
        desk.opened("acc-1", None),
        desk.opened("acc-2", "eve@example.org>\r\nRCPT TO:<mallory@example.org"),
        desk.opened("acc-3", "ada@example.org"),
    )
    await desk.start()
    await desk.mesh.idle()
    await desk.send(desk.asked("cause-3", account="acc-3"))
    await desk.in_state("accepted", "cause-3")
    await desk.mesh.idle()
    letters = await desk.mesh.fetch("notifications", "SELECT reason, detail FROM mesh_dead_letter ORDER BY detail")
    assert [tuple(row) for row in letters] == [
        ("address", "the sealed address cannot be opened"),
        ("address", "the sealed address is no mail address"),
    ]
    assert [row["account"] for row in await desk.mesh.fetch("notifications", "SELECT account FROM address")] == [
        "acc-3"
    ]


# --- what leaves, and what lies about ----------------------------------------------------------------------------


@pytest.mark.promise(26)
async def test_what_goes_over_the_wire_is_what_the_list_allows(desk: Desk) -> None:
    facts = {"until": "2099-11-28T15:00:00Z", "note": "canary-fact", "internal": "canary-fact"}
    until = desk.clock.now() + DAY
    await desk.know("acc-canary")
    await desk.send(desk.asked("cause-canary", account="acc-canary", facts=facts, until=until))
    row = await desk.in_state("accepted", "cause-canary")
    expected = mail.compose(
        "verify", cause="cause-canary", sender=SENDER, recipient=ADDRESS, code=await desk.code("cause-canary"),
        requested_at=row["requested_at"], facts={"case": CASE, "until": rfc3339(until)},
    )  # fmt: skip
    assert desk.post.heard == [
        ("EHLO", "localhost"),
        ("MAIL", (expected.sender, [])),
        ("RCPT", (expected.recipient, [])),
        ("DATA", mail.as_bytes(expected)),
    ]
    assert set(desk.post.mails()[0].keys()) == set(mail.HEADERS)
    everything = repr(desk.post.heard)
    assert "canary-fact" not in everything and "acc-canary" not in everything and "cause-canary" not in everything


@pytest.mark.promise(60)
async def test_no_address_no_code_and_no_link_lies_anywhere_in_clear(desk: Desk) -> None:
    desk.post.troubles += ["hang up", "defer recipient", "hang up", "hang up", "hang up"]
    await desk.know("acc-plain", "acc-gone")
    await desk.send(
        await desk.order("bar", "acc-gone"),
        await desk.order("envelope", "acc-gone", CASE_2, not_after=rfc3339(desk.clock.now() + DAY)),
    )
    await desk.mesh.idle()
    await desk.erase("acc-gone")
    assert await envelopes(desk) == 1 and await desk.rows("kept_address") == 1
    asked = [
        desk.asked("cause-0", account="acc-plain"), desk.asked("cause-1", account="acc-plain"),
        desk.asked("cause-2", "address_new", account="acc-plain", address=NEW),
        desk.asked("cause-3", "status", account=None, address=AGENT),
        desk.asked("cause-4", "copy_ready", account="acc-plain", link=LINK),
    ]  # fmt: skip
    for number, (order, state) in enumerate(zip(asked, ("unknown", "waiting", *["unknown"] * 3), strict=True)):
        await desk.send(order)
        await desk.in_state(state, f"cause-{number}", attempts=1)
    codes = [code for m in desk.post.mails() for code in codes_in(m.get_content())]
    assert len(codes) == 2
    await desk.send(desk.confirmed(codes[0], account="acc-plain"))
    assert await desk.judged() == [(True, "account")]
    folders = await raw_folders(desk.mesh)
    # The code that came back is on the topic that the platform writes; nothing of ours repeats it.
    for needle, but in ((ADDRESS, ()), (NEW, ()), (AGENT, ()), (LINK, ()), (codes[0], ("kafka",)), (codes[1], ())):
        for name, folder in folders.items():
            assert name in but or not holding(folder, needle), f"{needle} lies in {name}"
    # The search finds what does lie there.
    assert holding(folders["postgres"], "acc-plain") and holding(folders["kafka"], "acc-plain")


async def test_operators_see_causes_and_outcomes_and_nobody(desk: Desk) -> None:
    desk.post.troubles += ["hang up"]
    runtime, _ = await desk.know()
    await desk.send(desk.asked(), desk.asked("cause-2"))
    await desk.mesh.idle()
    seen = await runtime.answer("mails", {"state": "unknown"}, "tester", "operator", "T-1")
    assert [(row["cause"], row["reason"]) for row in seen] == [("cause-1", "no_reply")]
    assert "acc-1" not in repr(await runtime.answer("mails", {}, "tester", "operator", "T-1"))
