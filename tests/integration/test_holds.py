"""Legal holds from end to end: retention and a holder on real servers; the others are played."""

from __future__ import annotations

import json
from collections.abc import Awaitable, Callable
from datetime import timedelta
from typing import Any

import pytest

from services.security.app import make_service
from shared.contract import events, topics
from shared.mesh.runtime import Runtime
from shared.privacy.certificate import verify
from shared.privacy.holder import Holder
from shared.privacy.vault import HOLD, Shredded
from tests.support.gateway import Sent, body
from tests.support.retention import OTHERS, Stage, instant
from tests.support.world import Mesh

DAY = timedelta(days=1)
PLAYED = [name for name in OTHERS if name != "security"]


@pytest.fixture
async def stage(mesh: Mesh, seed: int) -> Stage:
    """Retention at work, and a customer who is known."""
    made = await Stage(mesh, seed).start()
    await made.a_customer()
    return made


async def security(stage: Stage) -> Runtime:
    """Starts the holder, on the stage's clock."""
    runtime = await stage.mesh.start("security", service=make_service(), clock=stage.clock)
    await stage.mesh.owned()
    return runtime


async def signed_in(stage: Stage, account: str, times: int) -> None:
    """Connections of an account."""
    data = {"account": account, "kind": "sign_in", "ip": await stage.sealed("198.51.100.7")}
    await stage.send(
        *(stage.event("gateway-1", topics.ACCESS, events.AccessRecorded, account, data) for _ in range(times))
    )


def placed(stage: Stage, account: str, days: int = 200) -> tuple[str, Sent]:
    """(the hold, the command that places it) on an account's connections."""
    sent = stage.command(
        "place_hold", account, holder="security", table="access_row", kind="account", ground="court_order",
        until=instant(stage.clock.now() + days * DAY),
    )  # fmt: skip
    return str(body(sent)["id"]), sent


async def rows(stage: Stage, account: str) -> int:
    """Connections of an account that are there in the clear."""
    return int(await stage.mesh.value("security", "SELECT count(*) FROM access_row WHERE account = $1", account))


async def copies(stage: Stage, hold: str) -> list[str]:
    """The sealed copies of a hold."""
    found = await stage.mesh.fetch("security", "SELECT sealed FROM mesh_held_record WHERE hold = $1 ORDER BY id", hold)
    return [row[0] for row in found]


async def state_of(stage: Stage, hold: str) -> dict[str, Any]:
    """A hold as operators see it."""
    found = await stage.runtime.answer("holds", {"all": "yes"}, "tester", "operator", "test")
    (one,) = [row for row in found if row["id"] == hold]
    return dict(one)


def is_(stage: Stage, hold: str, state: str) -> Callable[[], Awaitable[bool]]:
    """Whether a hold has come to a state."""

    async def there() -> bool:
        return bool((await state_of(stage, hold))["state"] == state)

    return there


async def to_certified(stage: Stage, case: str) -> None:
    """Whatever is left of a case whose holder `security` is real."""
    await stage.first_wave(case, PLAYED)
    await stage.until_ordered(case, "erase", holder="billing")
    await stage.send(stage.receipt("billing", case))
    await stage.until_ordered(case, "probe")
    await stage.send(stage.scan(case, "probe", 1))
    await stage.until_ordered(case, "sweep", 2)
    await stage.send(stage.scan(case, "sweep", 2))
    await stage.until_state(case, "certified")


@pytest.mark.promise(46)
@pytest.mark.parametrize("looks_ahead", [True, False], ids=["guarded", "unguarded"])
async def test_hold_mid_fan_out_and_hold_released(
    stage: Stage, looks_ahead: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A hold comes while holders erase and its own holder is away: what is held stays, all else goes, the case names both;
    when the time of the hold is over, what it had deferred goes unprompted."""
    mesh = stage.mesh
    holder = await security(stage)
    await signed_in(stage, stage.account, 3)
    await signed_in(stage, "acc-other", 2)
    await mesh.stop(holder)
    case = await stage.confirmed()
    await stage.until_ordered(case, "erase", holder="security")
    hold, command = placed(stage, stage.account)
    await stage.send(command)
    await stage.until_ordered(hold, "hold")
    if not looks_ahead:
        monkeypatch.setattr(Holder, "_put_aside", _nothing)
    holder = await security(stage)
    await mesh.until(is_(stage, hold, "held"), 20, "held")
    await mesh.idle()
    assert await rows(stage, stage.account) == 0 and await rows(stage, "acc-other") == 2
    found = await copies(stage, hold)
    if not looks_ahead:
        assert found == [], "the tombstones were not quicker than the hold: this test proves nothing"
        return
    texts = await holder.plugged["vault"].open_held(hold, "access_row", found)
    assert [json.loads(text)["account"] for text in texts] == [stage.account] * 3
    await to_certified(stage, case)
    row = await stage.case(case)
    assert [(one["id"], one["state"], one["rows"]) for one in row["holds"]] == [(hold, "held", 3)]
    told = {(each["holder"], each["action"]): each["body"]["treated"] for each in row["receipts"]}
    assert [(each["action"], each["rows"]) for each in told["security", "hold"]] == [("held", 3)]
    assert ("access_row", "delete_row") in {(each["table"], each["action"]) for each in told["security", "erase"]}
    for scan in row["scans"]:
        (seen,) = [one for one in scan["stores"] if one["verdict"] == "held"]
        assert (seen["holder"], seen["store"], seen["count"]) == ("security", "mesh_held_record", 3)
    document = await stage.certificate(case)
    assert [(one["holder"], one["rows"]) for one in document["held"]] == [("security", 3)]
    assert "held" in {one["verdict"] for one in document["scan"]}
    assert verify(json.dumps(document).encode(), [stage.trusted]).verdict == "valid"
    # Its end comes by itself, and the case says so.
    stage.clock.ahead = 200 * DAY
    await mesh.until(is_(stage, hold, "released"), 20, "released")
    assert await copies(stage, hold) == [] and not await stage.vault.there(HOLD, [hold])
    row = await stage.case(case)
    assert [one["state"] for one in row["holds"]] == ["released"]
    (gone,) = [each["body"]["treated"] for each in row["receipts"] if each["action"] == "release"]
    assert [(each["action"], each["rows"]) for each in gone] == [("delete_row", 3)]


async def _nothing(self: Holder, tx: Any) -> None:
    """In place of a guard that is switched off."""


async def test_a_hold_is_kept_once_and_released_once_by_a_named_person(stage: Stage) -> None:
    """Orders that come again make no second copy, and none at all when the hold is over; two releases are one."""
    mesh = stage.mesh
    holder = await security(stage)
    await signed_in(stage, stage.account, 2)
    await signed_in(stage, "acc-other", 1)
    hold, command = placed(stage, stage.account)
    await stage.send(command)
    await mesh.until(is_(stage, hold, "held"), 20, "held")
    order = await stage.until_ordered(hold, "hold")
    again = stage.event("retention", topics.PRIVACY_COMMANDS, events.PrivacyOrdered, hold, order)
    await stage.send(again)
    before = await copies(stage, hold)
    assert len(before) == 2
    await stage.send(again)
    assert await copies(stage, hold) == before
    assert len(await holder.plugged["vault"].open_held(hold, "access_row", before)) == 2
    release = stage.command("release_hold", hold)
    nobody = json.loads(release.value or b"")
    del nobody["data"]["ticket"]
    unsigned = Sent(release.topic, release.key, json.dumps(nobody).encode(), release.headers)
    await stage.send(unsigned)
    assert (await state_of(stage, hold))["state"] == "held" and await copies(stage, hold) == before
    await stage.send(release, stage.command("release_hold", hold))
    await mesh.until(is_(stage, hold, "released"), 20, "released")
    await stage.send(stage.command("release_hold", hold))
    one = await state_of(stage, hold)
    assert (one["state"], one["released_by"], one["release_ticket"]) == ("released", "kim", "T-1")
    assert await copies(stage, hold) == []
    with pytest.raises(Shredded):
        await holder.plugged["vault"].open_held(hold, "access_row", before)

    async def without_key() -> bool:
        return not await stage.vault.there("case", [hold])

    # An old copy of the order, after all keys are gone, keeps nothing and stops nobody.
    await mesh.until(without_key, 20, "the key of the hold's orders is destroyed")
    await stage.send(again)
    assert await copies(stage, hold) == []
    # The command that names no ticket is one; the old order is none.
    letters = await mesh.fetch("security", "SELECT topic FROM mesh_dead_letter")
    assert [row["topic"] for row in letters] == [topics.COMMANDS.name]


async def test_a_hold_on_somebody_who_is_erased_keeps_nothing_and_says_so(stage: Stage) -> None:
    await security(stage)
    await signed_in(stage, stage.account, 2)
    case = await stage.confirmed()
    await to_certified(stage, case)
    hold, command = placed(stage, stage.account)
    await stage.send(command)
    await stage.mesh.until(is_(stage, hold, "held"), 20, "held")
    assert (await state_of(stage, hold))["rows"] == 0 and await copies(stage, hold) == []
    assert (await stage.case(case))["holds"] == []
