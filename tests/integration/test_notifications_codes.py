"""Codes, changes of address, bars and notices that wait: notifications on real Kafka, PostgreSQL and SMTP."""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import AsyncIterator, Callable
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest

from services.audit.app import make_service as make_audit
from services.notifications.data_map import SECRET_LIFE
from services.notifications.mail import message_id
from services.notifications.proofs import ATTEMPTS, SETTLE
from shared.contract import events, topics
from shared.mesh.runtime import Runtime
from shared.mesh.transaction import rfc3339
from tests.support.coordinator import Coordinator, new_case
from tests.support.desk import (
    ADDRESS,
    AGENT,
    CASE,
    CASE_2,
    CASE_3,
    DAY,
    LINK,
    NEW,
    SENDER,
    Desk,
    codes_in,
    opened_desk,
)
from tests.support.gateway import Sent
from tests.support.post import Trouble
from tests.support.world import Mesh

UNKNOWN = (topics.PRIVACY_REQUESTS.name, "unknown_case")
OTHERS = "other-7be1@example.net"
CASE_4 = "01936b5e-4444-7111-8111-111111111111"


@pytest.fixture
async def desk(mesh: Mesh, tmp_path: Path) -> AsyncIterator[Desk]:
    async with opened_desk(mesh, tmp_path) as made:
        yield made


def wrong(code: str) -> str:
    """Another code."""
    return code[1:] + ("A" if code[-1] != "A" else "B")


async def forget(desk: Desk, runtime: Runtime) -> None:
    """The hourly job, now."""
    await desk.mesh.until(lambda: runtime.worker.run_job("forget", force=True), 20, "the job has run")


# --- codes -------------------------------------------------------------------------------------------------------


async def test_what_a_mail_says_goes_when_it_is_accepted(desk: Desk) -> None:
    """It names the workspaces that are to go: they would stand there when they are gone, as residue."""
    await desk.know()
    await desk.send(desk.asked("cause-1", "erasure_requested", facts={"scope": "workspace", "workspaces": "ws-gone"}))
    await desk.in_state("accepted")
    assert "ws-gone" in desk.mail().get_content()
    assert await desk.rows("mail WHERE facts::text LIKE '%ws-gone%'") == 0


@pytest.mark.promise(54)
async def test_a_code_that_comes_back_is_judged_and_what_was_said_with_it_is_passed_on(desk: Desk) -> None:
    await desk.know()
    await desk.send(desk.asked())
    code = await desk.code()
    recipient = "age1" + "q" * 58
    more: dict[str, Any] = {
        "successors": {"ws-1": "mem-2"},
        "passphrase": desk.sealed("a long passphrase"),
        "recipient": recipient,
    }
    await desk.send(desk.confirmed(wrong(code), **more), desk.confirmed(code, **more))
    assert await desk.judged() == [(False, None), (True, "account")]
    first, second = (await desk.said(events.ProofJudged)).values()
    assert first == {
        "case": CASE, "account": "acc-1", "right": False, "of": None, "successors": {}, "passphrase": None,
        "recipient": None,
    } or first == {"case": CASE, "account": "acc-1", "right": False}  # fmt: skip
    assert {name: second[name] for name in more} == more
    # It was good once, and is no guess: nothing is said of it any more, which somebody could count as an attempt.
    again = desk.confirmed(code)
    await desk.send(again, again, desk.confirmed(code))
    assert await desk.judged() == [(False, None), (True, "account")]
    assert await desk.rows("judgement WHERE verdict = 'wrong'") == 1 and await desk.rows("judgement") == 4
    assert await desk.count("codes_used") == 2 and await desk.letters() == []


@pytest.mark.promise(54)
async def test_after_five_wrong_codes_every_code_of_the_case_is_dead(desk: Desk) -> None:
    await desk.know()
    await desk.send(desk.asked(), desk.asked("cause-2", request=CASE_2), desk.asked("cause-3", case=CASE_3))
    first, second, other = [await desk.code(f"cause-{n}") for n in (1, 2, 3)]
    guesses = [wrong(first), *(f"WRNGCD2{n}" for n in range(2, 1 + ATTEMPTS))]
    await desk.send(*(desk.confirmed(guess) for guess in guesses))
    await desk.send(desk.confirmed(first), desk.confirmed(second), desk.confirmed(second, case=CASE_2))
    assert await desk.judged() == [(False, None)] * (ATTEMPTS + 3)
    # Another case of the same account stands.
    await desk.send(desk.confirmed(other, case=CASE_3))
    assert await desk.judged(CASE_3) == [(True, "account")]


@pytest.mark.promise(54)
async def test_strangers_learn_nothing_and_do_not_lock_the_owner_out(desk: Desk) -> None:
    await desk.know()
    await desk.send(desk.asked())
    code = await desk.code()
    strangers = [f"acc-9{n}" for n in range(ATTEMPTS + 1)]
    await desk.send(*(desk.confirmed(wrong(code), account=name) for name in strangers))
    await desk.send(desk.confirmed(code, account="acc-90"), desk.confirmed(code, case=CASE_2))
    await desk.mesh.idle()
    assert await desk.letters() == [UNKNOWN] * (ATTEMPTS + 3)
    assert await desk.judged() == [] and await desk.rows("judgement") == 0
    await desk.send(desk.confirmed(code))
    assert await desk.judged() == [(True, "account")]


@pytest.mark.promise(54)
async def test_a_code_that_is_over_is_wrong_and_does_not_go_out(desk: Desk) -> None:
    await desk.know()
    until = desk.clock.now() + timedelta(hours=1)
    desk.post.troubles += ["hang up"]
    await desk.send(desk.asked("cause-2", case=CASE_2, until=until))
    await desk.in_state("unknown", "cause-2")
    await desk.send(desk.asked(until=until))
    code = await desk.code()
    desk.clock.by = timedelta(hours=1)
    await desk.send(desk.confirmed(code))
    assert await desk.judged() == [(False, None)]
    await desk.send(desk.gateway.command("notifications", "resend", "cause-2"))
    assert (await desk.in_state("refused", "cause-2"))["reason"] == "no_code"


@pytest.mark.promise(54)
async def test_codes_of_two_cases_cannot_be_swapped(desk: Desk) -> None:
    await desk.know()
    await desk.send(desk.asked(), desk.asked("cause-2", case=CASE_2))
    first, second = await desk.code(), await desk.code("cause-2")
    await desk.send(desk.confirmed(second), desk.confirmed(first, case=CASE_2))
    assert (await desk.judged(), await desk.judged(CASE_2)) == ([(False, None)], [(False, None)])
    await desk.send(desk.confirmed(first), desk.confirmed(second, case=CASE_2))
    assert ((await desk.judged())[-1], (await desk.judged(CASE_2))[-1]) == ((True, "account"),) * 2


async def test_two_requests_of_one_case_have_a_code_each_and_both_ids_lead_to_it(desk: Desk) -> None:
    await desk.know()
    await desk.send(desk.asked(), desk.asked("cause-2", request=CASE_2))
    first, second = await desk.code(), await desk.code("cause-2")
    assert first != second
    await desk.send(desk.confirmed(first, case=CASE_2), desk.confirmed(second))
    assert await desk.judged() == [(True, "account")] * 2


@pytest.mark.promise(54)
async def test_a_confirmation_that_comes_again_is_told_the_same_and_is_no_second_attempt(desk: Desk) -> None:
    runtime, _ = await desk.know()
    await desk.send(desk.asked())
    code = await desk.code()
    guess, last = desk.confirmed(wrong(code)), desk.confirmed(code)
    await desk.send(*[guess] * (ATTEMPTS + 1), last, last)
    assert await desk.judged() == [(False, None), (True, "account")]
    said = await desk.said(events.ProofJudged)
    await desk.mesh.stop(runtime)
    await desk.mesh.fetch("notifications", "UPDATE mesh_cursor SET next_offset = 0, epoch = epoch + 1")
    await desk.start()
    assert await desk.judged() == [(False, None), (True, "account")]
    assert await desk.said(events.ProofJudged) == said
    assert await desk.rows("judgement") == 2


POINTS = ("before_commit", "committed", "unmarked", "relay_read")


@pytest.mark.parametrize("point", POINTS)
async def test_one_code_per_mail_whoever_dies_in_between(desk: Desk, point: str) -> None:
    await desk.send(desk.opened())
    first, _ = await desk.start()
    await desk.mesh.idle()
    await desk.mesh.stop(first)
    victim, fault = await desk.start()
    await desk.mesh.idle()
    fault.point = point
    await desk.send(desk.asked())
    async with asyncio.timeout(30):
        await fault.hit.wait()
    await desk.mesh.abandon(victim)
    await desk.start()
    code = await desk.code()
    assert await desk.rows("proof") == 1
    await desk.send(desk.confirmed(code))
    assert await desk.judged() == [(True, "account")]


@pytest.mark.parametrize(
    ("trouble", "outcome"), [(None, "accepted"), ("refuse text", "refused"), ("hang up", "unknown")]
)
async def test_what_a_mail_says_in_secret_stays_until_it_is_accepted_or_for_some_days(
    desk: Desk, trouble: Trouble | None, outcome: str
) -> None:
    runtime, _ = await desk.know()
    asked = [
        desk.asked("cause-1"), desk.asked("cause-2", "address_new", address=NEW),
        desk.asked("cause-3", "categories_ready", link=LINK), desk.asked("cause-4", "status", account=None, address=AGENT),
    ]  # fmt: skip
    for number, order in enumerate(asked, 1):
        desk.post.troubles += [trouble] if trouble else []
        await desk.send(order)
        await desk.in_state(outcome, f"cause-{number}")
    left = "mail WHERE coalesce(code_sealed, link_sealed, address_sealed) IS NOT NULL"
    assert await desk.rows(left) == (0 if outcome == "accepted" else 4)
    if outcome == "accepted":
        return
    # A person may have them sent again, for some days.
    desk.clock.by = SECRET_LIFE - timedelta(minutes=1)
    await forget(desk, runtime)
    await desk.send(*(desk.gateway.command("notifications", "resend", f"cause-{n}") for n in (1, 4)))
    for cause, recipient in (("cause-1", ADDRESS), ("cause-4", AGENT)):
        await desk.in_state("accepted", cause)
        assert [m["To"] for m in desk.post.mails() if m["Message-ID"] == message_id(cause, SENDER)][-1] == recipient
    assert len(codes_in(desk.post.mails()[-2].get_content()) + codes_in(desk.post.mails()[-1].get_content())) == 1
    assert await desk.rows(left) == 2
    desk.clock.by = SECRET_LIFE + timedelta(minutes=1)
    await forget(desk, runtime)
    assert await desk.rows(left) == 0
    # Never to the account's own address instead.
    known = len(desk.post.mails())
    await desk.send(*(desk.gateway.command("notifications", "resend", f"cause-{n}") for n in (2, 3)))
    await desk.mesh.idle()
    reasons = [(await desk.row(f"cause-{n}"))["reason"] for n in (2, 3)]
    assert reasons == ["no_address", "no_link"] and len(desk.post.mails()) == known


# --- codes of what is not wanted any more ------------------------------------------------------------------------

END = pytest.mark.parametrize(
    "end", [pytest.param(Desk.taken_back, id="taken_back"), pytest.param(Desk.ended, id="ordered")]
)
End = Callable[[Desk, str], Sent]


@pytest.mark.promise(42)
@END
async def test_a_change_that_is_denied_or_taken_back_does_not_happen(desk: Desk, end: End) -> None:
    await desk.know()
    await desk.send(*both(desk), *both(desk, CASE_2, OTHERS, n=1))
    (old, new), (old_1, new_1) = await codes_of(desk), await codes_of(desk, 1)
    desk.post.troubles += ["hang up"]
    await desk.send(desk.asked())
    await desk.in_state("unknown")
    await desk.send(desk.confirmed(old))
    assert await desk.judged() == [(True, "account")]
    over = end(desk, CASE)
    await desk.send(over, over)
    await desk.mesh.idle()
    await desk.send(
        desk.confirmed(new), desk.confirmed(old), desk.gateway.command("notifications", "resend", "cause-1")
    )
    assert await desk.judged() == [(True, "account"), (False, None)]
    assert not await changed(desk) and await desk.written_to() == ADDRESS
    assert await desk.rows(f"proof WHERE case_id = '{CASE}' AND address_sealed IS NOT NULL") == 0
    assert (await desk.in_state("refused"))["reason"] == "no_code"
    # Another case of the same account stands.
    await desk.send(desk.confirmed(old_1, case=CASE_2), desk.confirmed(new_1, case=CASE_2))
    assert await changed(desk) and await desk.written_to() == OTHERS
    assert await desk.letters() == []


@pytest.mark.promise(42)
@END
async def test_codes_that_are_asked_for_when_their_case_is_over_are_dead(desk: Desk, end: End) -> None:
    await desk.know()
    over = end(desk, CASE)
    await desk.send(over, over)
    await desk.mesh.idle()
    await desk.send(*both(desk), *both(desk, CASE_2, OTHERS, n=1))
    old, _ = await codes_of(desk, 1)
    for cause in ("old-0", "new-0"):
        assert (await desk.in_state("refused", cause))["reason"] == "no_code"
    assert len(desk.post.mails()) == 2
    await desk.send(desk.confirmed(old), desk.confirmed(old, case=CASE_2))
    assert (await desk.judged(), await desk.judged(CASE_2)) == ([(False, None)], [(True, "account")])


@pytest.mark.promise(42)
@END
async def test_codes_that_are_made_in_the_moment_in_which_their_case_ends_are_dead(desk: Desk, end: End) -> None:
    await desk.know()
    await desk.send(*both(desk))
    old, new = await codes_of(desk)
    before = await desk.mesh.fetch("notifications", "SELECT cause, until, address_sealed FROM proof")
    await desk.send(end(desk, CASE))
    await desk.mesh.idle()
    # As if the two transactions had not seen each other.
    for cause, until, address in before:
        await desk.mesh.fetch(
            "notifications", "UPDATE proof SET until = $2, address_sealed = $3 WHERE cause = $1", cause, until, address
        )
    await desk.send(desk.confirmed(old), desk.confirmed(new))
    assert await desk.judged() == [(False, None), (False, None)] and not await changed(desk)


@pytest.mark.promise(54)
async def test_who_takes_a_request_back_ends_their_own_case_by_any_of_its_ids(desk: Desk) -> None:
    await desk.know()
    # Strangers end nothing, neither what is there nor what comes.
    await desk.send(desk.taken_back(CASE, "acc-9"), desk.taken_back(CASE_3, "acc-9"))
    await desk.mesh.idle()
    await desk.send(desk.asked(), desk.asked("cause-2", request=CASE_2), desk.asked("cause-3", case=CASE_3))
    first, second, third = [await desk.code(f"cause-{n}") for n in (1, 2, 3)]
    await desk.send(desk.taken_back(CASE, "acc-9"), desk.taken_back(CASE_2))
    await desk.send(desk.confirmed(first), desk.confirmed(second), desk.confirmed(third, case=CASE_3))
    assert (await desk.judged(), await desk.judged(CASE_3)) == ([(False, None)] * 2, [(True, "account")])
    await desk.send(desk.asked("cause-4"))
    assert (await desk.in_state("refused", "cause-4"))["reason"] == "no_code"
    assert await desk.letters() == []


async def test_an_order_that_ends_codes_has_its_receipt(desk: Desk) -> None:
    await desk.know()
    await desk.send(desk.ended(), desk.ended(CASE_4))
    assert [action for action, _ in await receipts(desk, CASE, 1)] == ["end_proofs"]
    assert await receipts(desk, CASE_4, 1) == [("end_proofs", {})]


# --- other addresses, links --------------------------------------------------------------------------------------


@pytest.mark.promise(56)
async def test_a_mail_with_an_address_goes_there_and_a_link_is_in_the_text_alone(desk: Desk) -> None:
    await desk.know()
    await desk.send(
        desk.asked("cause-1", "status", account=None, address=AGENT, facts={"state": "in_progress"}),
        desk.asked("cause-2", "acknowledgement", account=None, case=None, address=OTHERS),
        desk.asked("cause-3", "copy_ready", link=LINK),
        desk.asked("cause-4", "verify_identity", address=AGENT),
    )
    for number in (1, 2, 3, 4):
        await desk.in_state("accepted", f"cause-{number}")
    assert [desk.mail(f"cause-{n}")["To"] for n in (1, 2, 3, 4)] == [AGENT, OTHERS, ADDRESS, AGENT]
    assert LINK in desk.mail("cause-3").get_content().split()
    await desk.send(desk.confirmed(await desk.code("cause-4")))
    assert await desk.judged() == [(True, "other")]
    # The key of the day ends with the mails of that day.
    today = desk.clock.now().date().isoformat()
    assert await desk.vault.there("mail", [today]) == {today}
    desk.clock.by = 33 * DAY
    await forget(desk, desk.mesh.running[0])
    assert await desk.vault.there("mail", [today]) == set()


async def test_an_order_that_cannot_be_carried_out_is_refused(desk: Desk) -> None:
    await desk.know()
    await desk.send(
        desk.asked("cause-1", account=None, address=AGENT), desk.asked("cause-2", "copy_ready"),
        desk.asked("cause-3", "status", account=None, case=None), desk.asked("cause-4", "address_new"),
    )  # fmt: skip
    await desk.mesh.idle()
    assert [reason for _, reason in await desk.letters()] == ["code", "link", "recipient", "recipient"]
    # What is sealed in it is nobody's fault but its own: the mail is refused, and says so.
    await desk.send(
        desk.asked("cause-5", "status", account=None, address="nobody"), desk.asked("cause-6", "copy_ready", link="x y"),
        desk.asked("cause-7", "address_new", address="a@b\r\nRCPT TO:<c@d>"),
    )  # fmt: skip
    for cause, reason in (("cause-5", "address"), ("cause-6", "no_link"), ("cause-7", "address")):
        assert (await desk.in_state("refused", cause))["reason"] == reason
    await desk.mesh.idle()
    assert await desk.outcomes() == Counter({(f"cause-{n}", "refused"): 1 for n in (5, 6, 7)})
    assert desk.post.mails() == [] and await desk.rows("proof") == 0


# --- a change of address -----------------------------------------------------------------------------------------


def both(desk: Desk, case: str = CASE, new: str = NEW, request: str | None = None, n: int = 0) -> list[Sent]:
    """The orders for the two mails that ask for a change's codes."""
    return [
        desk.asked(f"old-{n}", "address_old", case=case, request=request),
        desk.asked(f"new-{n}", "address_new", case=case, request=request, address=new),
    ]


async def codes_of(desk: Desk, n: int = 0) -> tuple[str, str]:
    """The codes of the old and of the new address."""
    return await desk.code(f"old-{n}"), await desk.code(f"new-{n}")


async def changed(desk: Desk) -> bool:
    await desk.mesh.idle()
    return await desk.count("addresses_changed") > 0


@pytest.mark.promise(42)
@pytest.mark.parametrize("first", ["old", "new"])
async def test_an_address_changes_when_both_have_proved_themselves_and_the_old_one_is_told(
    desk: Desk, first: str
) -> None:
    runtime, _ = await desk.know()
    await desk.send(*both(desk))
    old, new = await codes_of(desk)
    assert (desk.mail("old-0")["To"], desk.mail("new-0")["To"]) == (ADDRESS, NEW)
    said = [desk.confirmed(old), desk.confirmed(new)]
    said = said if first == "old" else said[::-1]
    await desk.send(said[0], said[0])
    assert not await changed(desk) and await desk.written_to() == ADDRESS
    await desk.send(said[1], *said)
    assert await changed(desk)
    proved = [(True, "account"), (True, "other")]
    assert await desk.judged() == (proved if first == "old" else proved[::-1])
    told = f"address-changed-{CASE}"
    await desk.in_state("accepted", told)
    assert desk.mail(told)["To"] == ADDRESS and NEW not in desk.mail(told).get_content()
    assert await desk.written_to() == NEW
    assert await desk.rows("proof WHERE address_sealed IS NOT NULL") == 0
    # All of it once more: the event that opened the account, too.
    await desk.mesh.stop(runtime)
    await desk.mesh.fetch("notifications", "UPDATE mesh_cursor SET next_offset = 0, epoch = epoch + 1")
    await desk.start()
    await desk.send(desk.opened(), *said, desk.confirmed(old), desk.confirmed(new))
    await desk.mesh.idle()
    assert await desk.count("addresses_changed") == 1 and await desk.written_to() == NEW
    assert [cause for cause, _ in await desk.outcomes()].count(told) == 1


@pytest.mark.promise(42)
async def test_one_code_or_two_that_do_not_belong_together_change_nothing(desk: Desk) -> None:
    await desk.know()
    await desk.send(*both(desk), *both(desk, CASE_2, OTHERS, n=1))
    (old, new), (old_1, new_1) = await codes_of(desk), await codes_of(desk, 1)
    # One alone, both of the same address, those of two cases, and a guess.
    await desk.send(desk.confirmed(old), desk.confirmed(old), desk.confirmed(new_1), desk.confirmed(wrong(new)))
    await desk.send(desk.confirmed(new_1, case=CASE_2), desk.confirmed(new, case=CASE_2))
    await desk.send(desk.confirmed(new, account="acc-9"), desk.confirmed(old_1, account="acc-9", case=CASE_2))
    assert not await changed(desk) and await desk.written_to() == ADDRESS
    # The one that is over comes too late.
    desk.clock.by = 7 * DAY
    await desk.send(desk.confirmed(new))
    assert not await changed(desk) and await desk.written_to() == ADDRESS


@pytest.mark.promise(42)
async def test_of_two_changes_under_way_only_one_is_made(desk: Desk) -> None:
    await desk.know()
    await desk.send(*both(desk), *both(desk, CASE_2, OTHERS, n=1))
    (old, new), (old_1, new_1) = await codes_of(desk), await codes_of(desk, 1)
    await desk.send(desk.confirmed(old_1, case=CASE_2), desk.confirmed(old), desk.confirmed(new))
    assert await changed(desk)
    await desk.send(desk.confirmed(new_1, case=CASE_2), desk.confirmed(old_1, case=CASE_2))
    assert await desk.judged(CASE_2) == [(True, "account"), (False, None)]
    assert await desk.count("addresses_changed") == 1 and await desk.written_to() == NEW


@pytest.mark.promise(42)
async def test_a_new_address_that_is_none_or_barred_is_never_written_to(desk: Desk) -> None:
    await desk.know("acc-1")
    await desk.send(desk.opened("acc-child", NEW))
    await desk.mesh.idle()
    await desk.send(await desk.order("bar", "acc-child", CASE_3))
    await desk.mesh.idle()
    await desk.send(*both(desk), *both(desk, CASE_2, "nobody", n=1))
    assert (await desk.in_state("refused", "new-0"))["reason"] == "barred"
    assert (await desk.in_state("refused", "new-1"))["reason"] == "address"
    await desk.send(desk.confirmed(await desk.code("old-0")))
    assert await desk.judged() == [(True, "account")] and not await changed(desk)
    # Barred when both codes are out already: the second one proves nothing.
    await desk.send(*both(desk, CASE_3, OTHERS, n=2))
    old, new = await codes_of(desk, 2)
    await desk.send(desk.opened("acc-child-2", OTHERS))
    await desk.mesh.idle()
    await desk.send(await desk.order("bar", "acc-child-2", CASE_2))
    await desk.mesh.idle()
    await desk.send(desk.confirmed(old, case=CASE_3), desk.confirmed(new, case=CASE_3))
    assert await desk.judged(CASE_3) == [(True, "account"), (False, None)] and not await changed(desk)


@pytest.mark.promise(54)
async def test_a_takeover_does_not_get_the_codes_of_an_address_that_was_changed_lately(desk: Desk) -> None:
    """takeover 64 / 44: a deletion is confirmed through the address that was there before."""
    runtime, _ = await desk.know()
    await desk.send(*both(desk))
    old, new = await codes_of(desk)
    await desk.send(desk.confirmed(old), desk.confirmed(new))
    assert await changed(desk)
    await desk.send(desk.asked("cause-1", "erasure_requested", case=CASE_2))
    await desk.in_state("accepted")
    assert desk.mail()["To"] == ADDRESS
    assert await desk.written_to() == NEW, "mails without a code go to the new one"
    # A second change needs the first address, too, and does not push it out.
    await desk.send(*both(desk, CASE_3, OTHERS, n=1))
    old, new = await codes_of(desk, 1)
    assert desk.mail("old-1")["To"] == ADDRESS
    await desk.send(desk.confirmed(old, case=CASE_3), desk.confirmed(new, case=CASE_3))
    await desk.in_state("accepted", f"address-changed-{CASE_3}")
    assert desk.mail(f"address-changed-{CASE_3}")["To"] == NEW, "who is replaced is told"
    desk.clock.by = SETTLE - timedelta(minutes=1)
    await forget(desk, runtime)
    await desk.send(desk.asked("cause-2", "erasure_requested", case=CASE_2))
    await desk.in_state("accepted", "cause-2")
    assert desk.mail("cause-2")["To"] == ADDRESS and await desk.written_to() == OTHERS
    # When it has settled, the old address is over, whether somebody has cleared it away or not.
    desk.clock.by = SETTLE + timedelta(minutes=1)
    await desk.send(desk.asked("cause-3", "erasure_requested", case=CASE_2))
    await desk.in_state("accepted", "cause-3")
    assert desk.mail("cause-3")["To"] == OTHERS
    assert await desk.rows("address WHERE previous IS NOT NULL") == 1
    await forget(desk, runtime)
    assert await desk.rows("address WHERE previous IS NOT NULL OR changed_at IS NOT NULL") == 0


# --- orders of a case --------------------------------------------------------------------------------------------


async def receipts(desk: Desk, case: str, n: int) -> list[Any]:
    found = await Coordinator(desk.mesh, desk.gateway, own=desk.vault).receipts(case, n)
    return [(r.action, {t.table: t for t in r.treated}) for r in found]


@pytest.mark.promise(57)
async def test_a_barred_address_has_no_account_any_more_however_it_is_written(desk: Desk) -> None:
    await desk.know("acc-1", "acc-2")
    bar, erase = await desk.order("bar"), await desk.order("erase")
    await desk.send(bar, bar, erase)
    assert [action for action, _ in await receipts(desk, CASE, 3)] == ["bar", "bar", "erase"]
    (_, treated) = (await receipts(desk, CASE, 3))[-1]
    assert treated["barred"].action == "retain" and treated["barred"].retained.ground == "legal_obligation"
    again = desk.opened("acc-3", ADDRESS.upper())
    await desk.send(again, again, desk.opened("acc-4", OTHERS), desk.opened("acc-1"))
    await desk.mesh.idle()
    assert list((await desk.said(events.AccountBarred)).values()) == [{"account": "acc-3"}]
    known = await desk.mesh.fetch("notifications", "SELECT account FROM address ORDER BY account")
    assert [row["account"] for row in known] == ["acc-2", "acc-4"], "who has one already keeps it"
    assert await desk.rows("barred") == 1
    # The order once more, when there is nobody any more.
    await desk.send(bar)
    await desk.mesh.idle()
    assert await desk.count("bars_empty") == 1 and await desk.rows("barred") == 1


@pytest.mark.promise(57)
async def test_an_account_that_was_there_before_the_bar_is_not_ended_by_an_old_copy_of_its_opening(desk: Desk) -> None:
    await desk.know("acc-1", "acc-2")
    before = desk.clock.now()
    await desk.send(await desk.order("bar"))
    assert [action for action, _ in await receipts(desk, CASE, 1)] == ["bar"]
    # As in a database that does not know acc-2 (any more), and reads what opened it; a second copy; and a child.
    await desk.mesh.fetch("notifications", "DELETE FROM address WHERE account = 'acc-2'")
    await desk.send(*(desk.opened(name, at=before) for name in ("acc-2", "acc-3")), desk.opened("acc-4"))
    await desk.mesh.idle()
    assert list((await desk.said(events.AccountBarred)).values()) == [{"account": "acc-4"}]
    assert await desk.count("accounts_before_bar") == 2 and await desk.count("accounts_barred") == 1
    known = await desk.mesh.fetch("notifications", "SELECT account FROM address")
    assert [row["account"] for row in known] == ["acc-1"]


@pytest.mark.promise(31)
@pytest.mark.parametrize(("trouble", "state"), [("refuse recipient", "refused"), ("hang up", "unknown")])
async def test_a_notice_that_was_not_accepted_keeps_its_address_for_a_person_who_sends_it_again(
    desk: Desk, trouble: Trouble, state: str
) -> None:
    await desk.know("acc-1", "acc-2")
    await desk.send(await desk.order("envelope", not_after=rfc3339(desk.clock.now() + 90 * DAY)))
    await desk.mesh.idle()
    await desk.erase()
    desk.post.troubles += [trouble]
    await desk.send(desk.asked("cause-1", "disclosure", account=None))
    await desk.in_state(state)
    assert await desk.rows("kept_address") == 1
    desk.clock.by = 10 * DAY
    await desk.send(desk.gateway.command("notifications", "resend", "cause-1"))
    await desk.in_state("accepted")
    assert desk.post.mails()[-1]["To"] == ADDRESS and await desk.rows("kept_address") == 0


@pytest.mark.promise(31)
async def test_a_notice_finds_its_address_when_a_gag_ends_even_if_the_account_is_erased(desk: Desk) -> None:
    runtime, _ = await desk.know("acc-1", "acc-2")
    until = desk.clock.now() + 90 * DAY
    keep = await desk.order("envelope", case=CASE_2, not_after=rfc3339(until))
    await desk.send(keep, keep)
    assert [action for action, _ in await receipts(desk, CASE_2, 2)] == ["envelope"] * 2
    await desk.erase()
    ((_, treated),) = await receipts(desk, CASE, 1)
    # The receipt, and so the certificate, says what it says of everybody: nothing of a gag, nor of its end.
    assert "kept_address" not in treated and not any(table.retained for table in treated.values())
    assert treated["envelope"].action == "expire" and treated["envelope"].not_after < until - 80 * DAY
    assert await desk.rows("kept_address") == 1
    desk.clock.by = 89 * DAY
    facts = {"instrument": "warrant 7", "scope": "connections"}
    await desk.send(desk.asked("cause-1", "disclosure", account=None, case=CASE_2, facts=facts))
    await desk.in_state("accepted")
    assert desk.mail()["To"] == ADDRESS and "warrant 7" in desk.mail().get_content()
    # Once: neither a second mail, nor the order once more.
    assert await desk.rows("kept_address") == 0
    await desk.send(keep, desk.asked("cause-2", "disclosure", account=None, case=CASE_2))
    assert (await desk.in_state("refused", "cause-2"))["reason"] == "no_address"
    assert await desk.rows("kept_address") == 0
    assert runtime.exit_reason is None


@pytest.mark.promise(45)
async def test_the_auditor_finds_nothing_of_the_erased_although_an_address_is_kept(desk: Desk) -> None:
    await desk.know()
    await desk.mesh.start("audit", service=make_audit(desk.mesh.env))
    await desk.send(*both(desk, CASE_2), desk.asked())
    await desk.send(desk.confirmed(await desk.code()), desk.confirmed(wrong(await desk.code("old-0")), case=CASE_2))
    keep = await desk.order("envelope", case=CASE_3, not_after=rfc3339(desk.clock.now() + 400 * DAY))
    await desk.send(keep, await desk.order("bar"), desk.taken_back(CASE_4))
    await desk.mesh.idle()
    await desk.erase()
    tables = ("judgement", "kept_address", "barred", "ended", "envelope", "mail", "proof")
    assert [await desk.rows(table) for table in tables] == [2, 1, 1, 1, 1, 3, 0]
    retention = Coordinator(desk.mesh, desk.gateway, own=desk.vault)
    case, who = new_case(), [("account", "acc-1"), ("workspace", "ws-1")]
    await desk.send(await retention.order(case, who, ["audit"], action="sweep"))
    (scanned,) = await retention.receipts(case, 1)
    verdicts = {one.store: one.verdict for one in scanned.stores if one.holder == "notifications"}
    assert set(tables) < set(verdicts) and set(verdicts.values()) == {"clean"}


async def test_an_order_to_keep_an_address_that_comes_again_after_the_mail_keeps_nothing(desk: Desk) -> None:
    await desk.know()
    keep = await desk.order("envelope", not_after=rfc3339(desk.clock.now() + DAY))
    await desk.send(keep)
    await desk.mesh.idle()
    assert await desk.rows("kept_address") == 1
    await desk.send(desk.asked("cause-1", "disclosure", account=None))
    await desk.in_state("accepted")
    await desk.send(keep)
    await desk.mesh.idle()
    assert await desk.rows("kept_address") == 0


async def test_an_order_to_keep_an_address_that_comes_after_a_mail_that_was_refused_helps_it_out(desk: Desk) -> None:
    await desk.know()
    await desk.send(desk.asked("cause-1", "disclosure", account=None))
    assert (await desk.in_state("refused"))["reason"] == "no_address"
    await desk.send(await desk.order("envelope", not_after=rfc3339(desk.clock.now() + DAY)))
    await desk.mesh.idle()
    await desk.send(desk.gateway.command("notifications", "resend", "cause-1"))
    await desk.in_state("accepted")
    assert desk.mail()["To"] == ADDRESS and await desk.rows("kept_address") == 0


async def test_an_address_is_kept_until_its_day_and_not_without_one(desk: Desk) -> None:
    await desk.know()
    now = desk.clock.now()
    await desk.send(
        await desk.order("envelope", case=CASE, not_after=rfc3339(now + DAY)),
        await desk.order("envelope", case=CASE_2, not_after=rfc3339(now - DAY)),
        await desk.order("envelope", case=CASE_3),
        await desk.order("envelope", "acc-nobody", case=CASE_3, not_after=rfc3339(now + DAY)),
    )
    await desk.mesh.idle()
    assert await desk.rows("kept_address") == 1 and await desk.count("envelopes_empty") == 3
    desk.clock.by = DAY + timedelta(minutes=1)
    await desk.send(desk.asked("cause-1", "disclosure", account=None))
    assert (await desk.in_state("refused"))["reason"] == "no_address"


@pytest.mark.promise(45)
async def test_an_erasure_takes_codes_addresses_and_links_along(desk: Desk) -> None:
    await desk.know("acc-1", "acc-2")
    await desk.send(*both(desk))
    old, new = await codes_of(desk)
    await desk.send(desk.confirmed(old), desk.confirmed(new))
    assert await changed(desk)
    desk.post.troubles += ["hang up"]
    await desk.send(desk.asked("cause-1", "copy_ready", case=CASE_2, link=LINK))
    await desk.in_state("unknown")
    desk.post.troubles += ["defer recipient"]
    await desk.send(desk.asked("cause-2", "address_new", case=CASE_2, address=OTHERS))
    await desk.in_state("waiting", "cause-2", attempts=1)
    await desk.erase()
    assert await desk.rows("proof") == 0 and await desk.rows("address WHERE account = 'acc-1'") == 0
    secrets = "mail WHERE coalesce(account, code_sealed, link_sealed, address_sealed, facts::text) IS NOT NULL"
    assert await desk.rows(secrets) == 0
    desk.clock.by = timedelta(hours=1)
    assert (await desk.in_state("refused", "cause-2"))["reason"] == "no_address"
    # What comes late is counted, and neither judged nor a dead letter.
    said = await desk.said(events.ProofJudged)
    await desk.send(desk.confirmed(old), desk.confirmed("AAAAAAAA", case=CASE_3))
    await desk.mesh.idle()
    assert await desk.count("requests_of_erased") == 2
    assert await desk.letters() == [] and await desk.said(events.ProofJudged) == said
    await desk.send(desk.asked("cause-3", "address_new", case=CASE_2, address=OTHERS), desk.asked("cause-4", "verify"))
    for cause, reason in (("cause-3", "no_address"), ("cause-4", "erased")):
        assert (await desk.in_state("refused", cause))["reason"] == reason
    assert await desk.rows("proof") == 0
