"""A member's own restriction in others' workspaces: the shorter of its wish and the administrator's counts for what is made with
its keys, nothing of its activity is kept, and nobody is charged otherwise."""

from __future__ import annotations

import asyncio
import random
from collections import Counter
from datetime import timedelta
from typing import Any

import pytest

from shared.contract import events, topics
from shared.contract.ids import uuid7
from shared.policy import policy
from tests.integration.test_restriction import BOUND, Town
from tests.support.gateway import Sent, body
from tests.support.retention import Stage
from tests.support.world import Mesh

FIRM, CLUB = "firm", "club"


class Guests(Town):
    """Members with keys of their own in workspaces of somebody else's."""

    def member(self, who: str) -> str:
        return f"mem-{self.name(who)}"

    def key(self, who: str, place: str = FIRM) -> str:
        return f"key-{who}-{self.name(place)}"

    def made(self, who: str, place: str = FIRM, **changes: Any) -> Sent:
        """The key of a member in a workspace came to be."""
        data = self.who(place) | {"key": self.key(who, place), "member": self.member(who)} | changes
        return self.stage.said(events.KeyCreated, **data)

    def uses(self, who: str, place: str = FIRM, **changes: Any) -> Sent:
        return self.use(place, key=changes.pop("key", self.key(who, place)), **changes)

    def acts(self, who: str, place: str = FIRM) -> Sent:
        return self.click(place, member=self.member(who), opted_out=False)

    def wants(self, who: str, version: int, days: int = 90, opt_out: bool = False) -> Sent:
        """A member says what it wants."""
        data = {
            "member": self.member(who), "version": version, "log_retention_days": days, "activity_opt_out": opt_out,
        }  # fmt: skip
        return self.stage.event("gateway-1", topics.ACCOUNTS, events.MemberRestricted, self.member(who), data)

    async def in_force(self, who: str, version: int, *keys: str) -> None:
        """Waits, as long as is promised, until every holder has it in force."""
        of_key = "SELECT key FROM key_setting WHERE key = ANY($1) AND version = $2"
        of_member = "SELECT member FROM member_setting WHERE member = $1 AND version = $2"

        async def there() -> bool:
            found = await self.mesh.fetch("metering", of_key, list(keys), version)
            return len(found) == len(keys) and bool(
                await self.mesh.fetch("insights", of_member, self.member(who), version)
            )

        await self.mesh.until(there, BOUND, "the restriction is in force with every holder")

    async def days(self, who: str, place: str = FIRM) -> list[int]:
        """For how long each row of the log is kept, on disk, of a member's key."""
        rows = await self.mesh.fetch(
            "metering", "SELECT retention_days FROM request_log WHERE key_id = $1 ORDER BY 1", self.key(who, place)
        )
        return [row["retention_days"] for row in rows]

    async def did(self, who: str) -> int:
        """Rows of activity of a member, on disk."""
        return int(
            await self.mesh.value("insights", "SELECT count(*) FROM activity WHERE member = $1", self.member(who))
        )

    async def move_in(self, *people: str) -> None:
        """Two workspaces of two accounts; everybody has a key in both."""
        await self.settle(FIRM, CLUB)
        places = (FIRM, CLUB)
        await self.send(
            self.sets(FIRM, 30),
            *(
                self.stage.said(events.MemberAdded, **self.who(place), member=self.member(who))
                for who in people
                for place in places
            ),
            *(self.made(who, place) for who in people for place in places),
        )


@pytest.fixture
async def guests(mesh: Mesh, seed: int) -> Guests:
    return Guests(mesh, await Stage(mesh, seed).start(), seed)


@pytest.mark.promise(16, 48)
async def test_a_members_restriction_holds_in_every_workspace_and_costs_nobody_anything(guests: Guests) -> None:
    """Three members of the same workspaces: one who switches logging off, one who keeps the least, one who wants nothing."""
    town, people = guests, ("off", "least", "free")
    await town.open("metering", "insights", "billing")
    await town.move_in(*people)

    def alike(n: int, **more: Any) -> dict[str, list[Sent]]:
        """The same use for everybody."""
        draw = random.Random(n)
        used: dict[str, list[Sent]] = {who: [] for who in people}
        for _ in range(n):
            tokens = {"input": draw.randrange(1, 5000), "output": draw.randrange(1, 500)}
            for who, mine in used.items():
                mine.append(
                    town.uses(who, tokens=tokens, input_tokens=tokens["input"], output_tokens=tokens["output"], **more)
                )
        return used

    def every(used: dict[str, list[Sent]]) -> list[Sent]:
        return [record for mine in used.values() for record in mine]

    old = alike(3)
    abroad = [town.uses(who, CLUB) for who in people]
    waits = town.uses("off", model="nobody-knows", counted=False, generation_ref=f"ref-{town.name(FIRM)}")
    unknown = uuid7(town.now_ms(), random.Random(town.gateway.seed).getrandbits)
    data = body(old["off"][0])["data"] | {"original": unknown}
    corrects = town.gateway.event(topics.GENERATIONS, events.UsageCorrected, data, key=unknown, at_ms=town.now_ms())
    acts = [town.acts(who, place) for who in people for place in (FIRM, CLUB)]
    await town.send(*every(old), *abroad, waits, corrects, *acts)
    assert [await town.days(who) for who in people] == [[30] * 3] * 3
    assert [await town.did(who) for who in people] == [2] * 3

    await town.gateway.send(town.mesh.env, [town.wants("off", 2, 0, opt_out=True), town.wants("least", 2, 1)])
    keys = {who: (town.key(who), town.key(who, CLUB)) for who in people}
    await town.in_force("off", 2, *keys["off"])
    await town.in_force("least", 2, *keys["least"])
    assert await town.explained(old["off"][0]) == "not kept" and await town.explained(old["free"][0]) == "told"
    assert [await town.did(who) for who in people] == [0, 2, 2]
    await town.mesh.idle()
    for place, n in ((FIRM, 3), (CLUB, 1)):
        assert [await town.days(who, place) for who in people] == [[], [1] * n, [30] * n]
    # Nothing leads to the requests any more: not their rows, not the sums by key, not what waits.
    for key in keys["off"]:
        assert await town.places("metering", key) == {"key_setting"}
    for text in (f"ref-{town.name(FIRM)}", unknown, *(body(r)["id"] for r in (waits, corrects, *old["off"]))):
        assert await town.places("metering", text) == set()
    # Who made a key is nothing that metering has to know.
    assert await town.places("metering", town.member("off")) == set()

    # The gateway does not know yet; an older word comes late; a key comes, and one whose maker is told later.
    await town.send(
        town.wants("off", 1, 90), town.made("off", key="key-later"), town.made("off", key="key-told", member=None)
    )
    await town.send(town.made("off", key="key-told"))
    late = alike(2)
    more = [town.uses("off", key="key-later"), town.uses("off", key="key-told")]
    await town.send(*every(late), *more, *(town.acts(who) for who in people))
    assert [await town.days(who) for who in people] == [[], [1] * 5, [30] * 5]
    assert [await town.did(who) for who in people] == [0, 3, 3]
    for key in (*keys["off"], "key-later", "key-told"):
        assert await town.places("metering", key) == {"key_setting"}
    # An administrator may extend: not for whoever wants less.
    await town.send(town.sets(FIRM, 90))
    await town.send(*every(alike(1, log_retention_days=90)))
    assert [await town.days(who) for who in people] == [[], [1] * 6, [90] * 6]
    # And may want less.
    await town.send(town.sets(FIRM, 0))
    assert [await town.days(who) for who in people] == [[]] * 3
    assert await town.days("free", CLUB) == [30]

    # Everybody was charged, and alike: each line of one twin is there for the others.
    lines = Counter(
        (row["quantities"], row["amount_pico"])
        for row in await town.mesh.fetch(
            "billing",
            """SELECT quantities::text AS quantities, amount_pico FROM charge_line l
               JOIN workspace_ref r ON r.id = l.workspace_id WHERE r.workspace = $1""",
            town.name(FIRM),
        )
    )
    alone = Counter({line: n for line, n in lines.items() if n % 3})
    assert lines.total() == 3 * 6 + len(more) == 20 and alone.total() == len(more)
    for place in (FIRM, CLUB):
        said = await town.read("billing", "balance", workspace=town.name(place))
        assert int(said["balance_pico"]) == -town.gateway.charges[town.name(place)]
    # Reads say what is missing, and why.
    told = await town.read("metering", "recipients", account=town.who(CLUB)["account"])
    assert told["providers"] and "2 of the keys" in told["reason"]
    usage = await town.read("metering", "usage", workspace=town.name(CLUB))
    assert sum(int(day["generations"]) for day in usage["days"]) == 1 and "log retention" in usage["reason"]
    activity = await town.read("insights", "activity", workspace=town.name(CLUB))
    assert len(activity["rows"]) == 2 and "opted out for themselves" in activity["reason"]
    assert all(runtime.troubles() == [] for runtime in town.rooms.values())


@pytest.mark.promise(48)
async def test_what_was_published_before_and_is_handled_after_leaves_nothing(guests: Guests) -> None:
    town, people = guests, ("off", "least", "free")
    await town.open("metering", "insights")
    await town.move_in(*people)
    await town.close("metering", "insights")
    flying = {who: [town.uses(who, place) for place in (FIRM, CLUB)] for who in people}
    waits = town.uses("off", model="nobody-knows", counted=False)
    acts = [town.acts(who, place) for who in people for place in (FIRM, CLUB)]
    await town.gateway.send(town.mesh.env, [*(r for mine in flying.values() for r in mine), waits, *acts])
    await town.send(town.wants("off", 1, 0, opt_out=True), town.wants("least", 1, 1))
    await town.open("metering", "insights")
    await town.mesh.idle()
    for place in (FIRM, CLUB):
        assert [await town.days(who, place) for who in people] == [[], [1], [30]]
        assert await town.places("metering", town.key("off", place)) == {"key_setting"}
    for record in (*flying["off"], waits):
        assert await town.places("metering", body(record)["id"]) == set()
    assert [await town.did(who) for who in people] == [0, 2, 2]
    # All of it was charged.
    sums = """SELECT sum(amount_pico) FROM (SELECT workspace, amount_pico FROM rollup_hourly
              UNION ALL SELECT workspace, amount_pico FROM rollup_daily) s WHERE workspace = $1"""

    async def summed() -> bool:
        pico = [int(await town.mesh.value("metering", sums, town.name(place)) or 0) for place in (FIRM, CLUB)]
        return pico == [town.gateway.charges[town.name(place)] for place in (FIRM, CLUB)]

    await town.mesh.until(summed, 20, "the sums are there")


@pytest.mark.promise(48)
async def test_a_restriction_that_is_taken_back_moves_live_rows_and_revives_none(guests: Guests) -> None:
    town = guests
    await town.open("metering", "insights")
    await town.move_in("ann", "bob")
    two_days = town.now_ms() - 2 * 86_400_000
    over, live = town.uses("ann", at_ms=two_days), town.uses("ann")
    await town.send(over, live, town.uses("ann", CLUB), town.acts("ann"))
    await town.send(town.wants("ann", 1, 1, opt_out=True))
    assert [await town.days("ann"), await town.did("ann")] == [[1], 0]
    assert [await town.explained(one) for one in (over, live)] == ["not kept", "told"]
    late = [town.acts("ann"), town.uses("ann", at_ms=two_days)]
    # Taken back. What the workspace wants counts again; where it has not said so, only its gateway knows.
    town.stage.clock.ahead = timedelta(seconds=60)
    await town.send(town.wants("ann", 2))
    assert [await town.days("ann"), await town.days("ann", CLUB)] == [[30], [1]]
    assert [await town.explained(one) for one in (over, live)] == ["not kept", "told"]
    assert town.rooms["metering"].troubles() == []
    # What happened before, and comes late, stays out; from then on everything is as with everybody.
    town.stage.clock.ahead = timedelta(seconds=61)
    await town.send(*late, town.acts("ann"), town.uses("ann"), town.uses("ann", CLUB))
    assert await town.explained(late[1]) == "not kept"
    assert await town.did("ann") == 1
    assert await town.days("ann", CLUB) == [1, 30]
    # An earlier word, again: nothing changes.
    before = await town.days("ann")
    await town.send(town.wants("ann", 1, 1, opt_out=True))
    assert await town.days("ann") == before and await town.did("ann") == 1


async def test_keys_and_restrictions_come_in_any_order(guests: Guests) -> None:
    """A member's word and its keys are on different partitions: nothing says which comes first."""
    town = guests
    await town.open("metering", "insights")
    await town.move_in()
    people = [f"p{n}" for n in range(40)]
    said = [record for who in people for record in (town.wants(who, 1, 0), town.made(who), town.made(who, CLUB))]
    random.Random(town.gateway.seed).shuffle(said)
    await asyncio.gather(*(town.gateway.send(town.mesh.env, said[n::4]) for n in range(4)))
    await town.mesh.idle()
    known = await town.mesh.fetch("metering", "SELECT key FROM key_setting WHERE log_retention_days = 0")
    assert {row["key"] for row in known} == {town.key(who, place) for who in people for place in (FIRM, CLUB)}


@pytest.mark.promise(48)
async def test_what_is_said_of_the_erased_member_ends_with_it(mesh: Mesh, seed: int) -> None:
    stage = await Stage(mesh, seed).start()
    await stage.a_customer()
    member, key = f"{stage.member}-2", f"key-{stage.tag}-2"
    data = {"member": member, "version": 1, "log_retention_days": 0, "activity_opt_out": True}
    await stage.send(stage.event("gateway-1", topics.ACCOUNTS, events.MemberRestricted, member, data))
    of_key = (await stage.published(topics.SETTINGS, key=key))[-1]
    of_member = (await stage.published(topics.SETTINGS, member=member))[-1]
    assert (of_key["log_retention_days"], of_member["activity_opt_out"]) == (0, True)
    assert "member" not in of_key and not of_key.get("erased", False)

    case = await stage.confirmed("member", member)
    for name, value in (("key", key), ("member", member)):
        last = (await stage.published(topics.SETTINGS, **{name: value}))[-1]
        assert last["erased"] and last["version"] == 2
    await stage.to_completed(case)
    last_of = dict(await stage.records(topics.SETTINGS))
    assert last_of[f"key/{key}"] is None and last_of[f"member/{member}"] is None
    assert last_of[stage.workspace] is not None
    assert await mesh.value("retention", "SELECT count(*) FROM restriction") == 0
    # A word that comes late is nobody's.
    data["version"] = 7
    await stage.send(stage.event("gateway-1", topics.ACCOUNTS, events.MemberRestricted, member, data))
    assert await mesh.value("retention", "SELECT count(*) FROM restriction") == 0


async def test_a_restriction_outlives_the_last_workspace_by_no_more_than_the_cap(mesh: Mesh, seed: int) -> None:
    stage = await Stage(mesh, seed).start()
    await stage.a_customer()
    guest, stays = f"mem-guest-{stage.tag}", stage.member

    async def looked(ahead: timedelta) -> list[str]:
        stage.clock.ahead = ahead
        await mesh.until(lambda: stage.runtime.worker.run_job("restrictions", force=True), 20, "the job has run")
        rows = await mesh.fetch("retention", "SELECT member FROM restriction ORDER BY member")
        return [row["member"] for row in rows]

    membership = {"workspace": stage.workspace, "member": guest}
    await stage.send(stage.said(events.MemberAdded, **membership))
    for member in (guest, stays):
        data = {"member": member, "version": 1, "activity_opt_out": True}
        await stage.send(stage.event("gateway-1", topics.ACCOUNTS, events.MemberRestricted, member, data))
    cap, hour = timedelta(days=policy().closure_cap_days), timedelta(hours=1)
    both = sorted((guest, stays))
    await stage.send(stage.said(events.MemberRemoved, **membership))
    assert await looked(hour) == both == await looked(cap)
    # Back again, and gone again: from the beginning.
    await stage.send(stage.said(events.MemberAdded, **membership))
    assert await looked(cap + 2 * hour) == both
    await stage.send(stage.said(events.MemberRemoved, **membership))
    assert await looked(cap + 3 * hour) == both == await looked(2 * cap)
    assert await looked(2 * cap + 4 * hour) == [stays]
    await mesh.idle()
    assert dict(await stage.records(topics.SETTINGS))[f"member/{guest}"] is None
