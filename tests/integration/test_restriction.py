"""Restriction: an administrator's switches reach every holder in time, what is in flight leaves nothing, answers say what is
missing and why, and nobody pays another price, or is served otherwise, for having used a right."""

from __future__ import annotations

import random
import time
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import timedelta
from typing import Any

import asyncpg
import pytest

from shared.contract import events, topics
from shared.contract.ids import uuid7
from shared.mesh.http import NotFound, NotKept
from shared.mesh.runtime import Runtime
from shared.policy import policy
from tests.support.gateway import MODEL, PROVIDER, Gateway, Sent, body
from tests.support.retention import Stage
from tests.support.world import Mesh

BOUND = 10.0
"""Seconds from a stated setting to its being in force with every holder, while they run: the READMEs publish it."""
TABLES = """SELECT c.relname AS name FROM pg_class c
            WHERE c.relnamespace = 'public'::regnamespace AND c.relkind IN ('r', 'p') AND NOT c.relispartition"""
SETTINGS_OF = {
    "metering": "SELECT version FROM workspace_setting WHERE workspace = $1",
    "insights": "SELECT version FROM workspace_setting WHERE workspace = $1",
}
LATER = "later-model"


class Town:
    """Workspaces with an account, an administrator and a key each, and the rooms that keep something of them."""

    def __init__(self, mesh: Mesh, stage: Stage, seed: int) -> None:
        self.mesh, self.stage = mesh, stage
        self.gateway = Gateway(seed)
        self.rooms: dict[str, Runtime] = {}
        self._versions: Counter[str] = Counter()

    def name(self, who: str) -> str:
        """A workspace's name: with a tag, since what a compacted topic says of others outlives their tests."""
        return f"ws-{who}-{self.stage.tag}"

    def who(self, who: str) -> dict[str, str]:
        return {"account": f"acc-{self.name(who)}", "workspace": self.name(who)}

    async def open(self, *rooms: str) -> None:
        """Starts rooms, on the stage's clock."""
        for room in rooms:
            self.rooms[room] = await self.mesh.start(room, clock=self.stage.clock)
        await self.mesh.owned()

    async def close(self, *rooms: str) -> None:
        for room in rooms:
            await self.mesh.stop(self.rooms.pop(room))

    async def settle(self, *people: str) -> None:
        """Everybody moves in, and there is a price."""
        self.stage.account = ""  # nobody is here by default
        records = [self.gateway.price()]
        for who in people:
            mine, member = self.who(who), f"mem-{self.name(who)}"
            address = await self.stage.sealed(f"{who}@example.org")
            records += [
                self.stage.said(events.AccountOpened, account=mine["account"], address=address),
                self.stage.said(events.WorkspaceCreated, **mine, administrator=member),
                self.stage.said(events.KeyCreated, **mine, key=f"key-{self.name(who)}", member=member),
            ]
        await self.send(*records)

    async def send(self, *records: Sent) -> None:
        await self.gateway.send(self.mesh.env, records)
        await self.mesh.idle()

    def now_ms(self) -> int:
        return int(self.stage.clock.now().timestamp() * 1000)

    def use(self, who: str, **changes: Any) -> Sent:
        """A generation, now, of which the gateway says what it knows: by default the default."""
        changes.setdefault("at_ms", self.now_ms())
        return self.gateway.generation(self.name(who), **changes)

    def click(self, who: str, **changes: Any) -> Sent:
        data = self.who(who) | {"member": f"mem-{self.name(who)}", "surface": "playground", "action": "chat.sent"}
        return self.gateway.event(
            topics.ACTIVITY, events.ActivityRecorded, data | changes, key=self.name(who), at_ms=self.now_ms()
        )

    def sets(self, who: str, days: int = 30, opt_out: bool = False) -> Sent:
        """Its administrator states the settings."""
        self._versions[who] += 1
        return self.stage.said(
            events.SettingsStated, **self.who(who), version=self._versions[who], log_retention_days=days,
            activity_opt_out=opt_out, actor=f"mem-{self.name(who)}", role="administrator",
        )  # fmt: skip

    async def obeyed(self, *people: str) -> float:
        """Waits until every holder has the latest settings in force; returns how long that took."""
        began = time.monotonic()

        async def in_force() -> bool:
            for room, sql in SETTINGS_OF.items():
                for who in people:
                    rows = await self.mesh.fetch(room, sql, self.name(who))
                    if [row["version"] for row in rows] != [self._versions[who]]:
                        return False
            return True

        await self.mesh.until(in_force, BOUND, "the settings are in force with every holder")
        return time.monotonic() - began

    async def logged(self, who: str) -> int:
        """Rows of the request log, on disk."""
        return int(
            await self.mesh.value("metering", "SELECT count(*) FROM request_log WHERE workspace = $1", self.name(who))
        )

    async def acted(self, who: str) -> int:
        """Rows of activity, on disk."""
        return int(
            await self.mesh.value("insights", "SELECT count(*) FROM activity WHERE workspace = $1", self.name(who))
        )

    async def read(self, room: str, name: str, **query: str) -> Any:
        return await self.rooms[room].answer(name, query, "ann", "support", "SUP-1")

    async def explained(self, record: Sent) -> str:
        """How `explain` answers for a generation: told, not kept, not found."""
        try:
            await self.read("metering", "explain", id=body(record)["id"])
        except NotKept:
            return "not kept"
        except NotFound:
            return "not found"
        return "told"

    async def places(self, room: str, *texts: str) -> set[str]:
        """The tables of a room in which one of these texts stands."""
        return {
            row["name"]
            for row in await self.mesh.fetch(room, TABLES)
            if await self.mesh.value(
                room,
                f"""SELECT count(*) FROM {row["name"]} t
                    WHERE EXISTS (SELECT FROM unnest($1::text[]) AS n (x) WHERE strpos(t::text, n.x) > 0)""",
                list(texts),
            )
        }


@pytest.fixture
async def town(mesh: Mesh, seed: int) -> Town:
    return Town(mesh, await Stage(mesh, seed).start(), seed)


# --- 48: the switches -----------------------------------------------------------------------------------------------


@pytest.mark.promise(48)
async def test_each_switch_is_in_force_within_the_bound_for_what_is_there_and_what_comes(town: Town) -> None:
    people = ("off", "least", "out", "free")
    await town.open("metering", "insights")
    await town.settle(*people)
    old = {who: town.use(who) for who in people}
    waits = town.use("off", model="nobody-knows", counted=False, generation_ref=f"ref-{town.name('off')}")
    # And a correction waits for an original that never came.
    unknown = uuid7(town.now_ms(), random.Random(town.gateway.seed).getrandbits)
    data = body(old["off"])["data"] | {"original": unknown}
    corrects = town.gateway.event(topics.GENERATIONS, events.UsageCorrected, data, key=unknown, at_ms=town.now_ms())
    await town.send(*old.values(), waits, corrects, *(town.click(who) for who in people))
    assert await town.places("metering", unknown) == {"quarantine"}
    assert [await town.logged(who) for who in people] == [await town.acted(who) for who in people] == [1] * 4

    await town.gateway.send(town.mesh.env, [town.sets("off", 0), town.sets("least", 1), town.sets("out", opt_out=True)])
    assert await town.obeyed("off", "least", "out") < BOUND
    # Readers obey from that moment on; activity is gone with it.
    assert await town.explained(old["off"]) == "not kept" and await town.explained(old["free"]) == "told"
    assert [await town.acted(who) for who in people] == [1, 1, 0, 1]
    await town.mesh.idle()
    # And so is the disk, a moment later: rows, sums by key, and the key of what waits for its price.
    assert [await town.logged(who) for who in people] == [0, 1, 1, 1]
    assert await town.places("metering", f"key-{town.name('off')}") == set()
    assert await town.places("metering", f"ref-{town.name('off')}") == set()
    for text in (body(old["off"])["id"], body(corrects)["id"], unknown):
        assert await town.places("metering", text) == set()

    # The gateway does not know yet: its events say what was in force before.
    late = {who: town.use(who) for who in people}
    ninety = town.use("least", log_retention_days=90)
    await town.send(*late.values(), ninety, *(town.click(who, opted_out=False) for who in people))
    assert [await town.logged(who) for who in people] == [0, 3, 2, 2]
    assert [await town.acted(who) for who in people] == [2, 2, 0, 2]
    assert await town.places("metering", f"key-{town.name('off')}") == set()
    assert await town.explained(late["off"]) == "not kept" and await town.explained(ninety) == "told"

    # The least there is: a day, and by the sweep's bound nothing lies on the disk.
    bound = timedelta(days=1)
    town.stage.clock.ahead = bound
    assert await town.explained(late["least"]) == await town.explained(ninety) == "not kept"
    assert await town.explained(late["free"]) == "told"
    town.stage.clock.ahead = bound + policy().sweep_bound

    async def gone() -> bool:
        await town.rooms["metering"].drop_partitions()
        return not await town.logged("least")

    await town.mesh.until(gone, 20, "its partitions are dropped")
    assert await town.logged("free") == 2


@pytest.mark.promise(48)
async def test_what_was_published_before_a_switch_and_is_handled_after_it_leaves_nothing(town: Town) -> None:
    people = ("off", "least", "out", "free")
    await town.open("metering", "insights")
    await town.settle(*people)
    await town.close("metering", "insights")
    flying = {who: [town.use(who) for _ in range(3)] for who in people}
    # What waits for its price must not wait with what a log would have kept.
    waits = town.use("off", model="nobody-knows", counted=False)
    clicks = [town.click(who) for who in people for _ in range(2)]
    await town.gateway.send(town.mesh.env, [*(r for own in flying.values() for r in own), waits, *clicks])
    await town.send(town.sets("off", 0), town.sets("least", 1), town.sets("out", opt_out=True))
    await town.open("metering", "insights")
    await town.mesh.idle()
    assert [await town.logged(who) for who in people] == [0, 3, 3, 3]
    assert [await town.acted(who) for who in people] == [2, 2, 0, 2]
    days = await town.mesh.fetch("metering", "SELECT DISTINCT retention_days FROM request_log WHERE workspace = $1",
                                 town.name("least"))  # fmt: skip
    assert [row["retention_days"] for row in days] == [1]
    for text in (f"key-{town.name('off')}", *(body(r)["id"] for r in (*flying["off"], waits))):
        assert await town.places("metering", text) == set()
    assert town.name("out") not in str(await town.mesh.fetch("insights", "SELECT * FROM activity"))
    # All of it was charged: the sums of the day have it.
    off = await town.mesh.fetch("metering", "SELECT generations, amount_pico AS pico FROM rollup_daily WHERE workspace = $1",
                                town.name("off"))  # fmt: skip

    async def summed() -> bool:
        off[:] = await town.mesh.fetch(
            "metering",
            "SELECT generations, amount_pico AS pico FROM rollup_daily WHERE workspace = $1",
            town.name("off"),
        )
        return sum(int(row["generations"]) for row in off) == 3

    await town.mesh.until(summed, 20, "the sums are there")
    assert sum(int(row["pico"]) for row in off) == town.gateway.charges[town.name("off")]


# --- 49: answers with a reason --------------------------------------------------------------------------------------


@pytest.mark.promise(49)
async def test_reads_that_need_what_is_not_kept_say_so(town: Town) -> None:
    people = ("off", "out", "free", "new")
    await town.open("metering", "insights", "billing")
    await town.settle(*people)
    await town.send(*(town.use(who) for who in people[:3]), *(town.click(who) for who in people[:3]))
    second = town.who("free") | {"workspace": town.name("half")}
    await town.send(town.sets("off", 0, True), town.sets("out", opt_out=True))
    used = {who: town.use(who) for who in people[:3]}
    beside = town.gateway.generation(second["workspace"], account=second["account"], log_retention_days=0)
    await town.send(*used.values(), beside, *(town.click(who) for who in people[:3]))

    with pytest.raises(NotKept, match="log retention 0"):
        await town.read("metering", "explain", id=body(used["off"])["id"])
    with pytest.raises(NotFound, match="log retention 0"):
        await town.read("metering", "explain", id="a-reference-of-the-gateway")

    async def summed() -> bool:
        said = await town.read("metering", "usage", workspace=town.name("off"))
        return sum(int(day["generations"]) for day in said["days"]) == 2

    await town.mesh.until(summed, 20, "the sums are there")
    off, free = [await town.read("metering", "usage", workspace=town.name(who)) for who in ("off", "free")]
    assert off["hours"] == [] and "log retention" in off["reason"] and off["log_retention_days"] == 0
    assert free["reason"] is None and free["days"] == [] and sum(row["generations"] for row in free["hours"]) == 2
    assert {(row["key_id"], row["model"]) for row in free["hours"]} == {(f"key-{town.name('free')}", MODEL)}
    with pytest.raises(NotFound, match="nothing is known"):
        await town.read("metering", "usage", workspace=town.name("new"))
    # An empty table is no answer either, where a setting is its reason.
    await town.send(town.sets("new", 0))
    new = await town.read("metering", "usage", workspace=town.name("new"))
    assert new["hours"] == new["days"] == [] and "log retention" in new["reason"]

    by_model = await town.read("metering", "usage-by-model")
    assert [row["generations"] for row in by_model["models"]] == [4]
    rest = by_model["without_model"]
    assert rest["generations"] == 3 and "log retention" in rest["reason"]

    def recipients(who: str) -> Any:
        return town.read("metering", "recipients", account=town.who(who)["account"])

    assert (await recipients("free")) == {"providers": [PROVIDER], "reason": None}
    assert "log retention is 0" in (await recipients("off"))["reason"] and not (await recipients("off"))["providers"]
    # A log of one workspace and none of another is not the whole.
    data = second | {"version": 1, "log_retention_days": 0, "actor": "mem-x", "role": "administrator"}
    await town.send(town.stage.said(events.SettingsStated, **data))
    partly = await recipients("free")
    assert partly["providers"] == [PROVIDER] and f"{town.name('half')} (0 days)" in partly["reason"]

    activity = {who: await town.read("insights", "activity", workspace=town.name(who)) for who in people}
    assert [len(activity[who]["rows"]) for who in people] == [0, 0, 2, 0]
    assert ["opted out" in (activity[who]["reason"] or "") for who in people] == [True, True, False, False]
    # What the restriction is not about is told as before.
    for who in people[:3]:
        said = await town.read("billing", "balance", workspace=town.name(who))
        assert int(said["balance_pico"]) == -town.gateway.charges[town.name(who)]
    # Opted in again: from then on, and it is said from when.
    town.stage.clock.ahead = timedelta(seconds=60)
    await town.send(town.sets("out"))
    town.stage.clock.ahead = timedelta(seconds=61)
    await town.send(town.click("out"))
    said = await town.read("insights", "activity", workspace=town.name("out"))
    assert len(said["rows"]) == 1 and "nothing from before" in said["reason"]
    town.stage.clock.ahead = timedelta(days=policy().activity_days, seconds=61)
    assert (await town.read("insights", "activity", workspace=town.name("out"))) == {"rows": [], "reason": None}


# --- 16, 49, 52: twins ----------------------------------------------------------------------------------------------


@dataclass
class Twins:
    """The same traffic for several workspaces: what differs is the names, and what they have chosen."""

    town: Town
    people: tuple[str, ...]
    seed: int
    originals: list[tuple[int, dict[str, Sent]]] = field(default_factory=list)
    sent: list[Sent] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.random = random.Random(self.seed)

    def _content(self) -> dict[str, Any]:
        draw = self.random
        read, generated = draw.randrange(1, 5000), draw.randrange(1, 500)
        kind = draw.choices(
            ("plain", "failed", "cancelled", "cache_hit", "byok", "sharing", "nothing", "later"),
            (8, 1, 1, 1, 2, 2, 1, 1),
        )[0]  # fmt: skip
        content: dict[str, Any] = {"finish_reason": "stop"}
        match kind:
            case "failed":
                content = {"outcome": "failed", "finish_reason": None}
            case "cancelled" | "cache_hit":
                content["outcome"] = kind
            case "byok":
                content["byok"] = True
            case "sharing":
                content["data_sharing"] = True
            case "nothing":
                content["finish_reason"], generated = None, 0
            case "later":
                content["model"] = LATER
        return content | {"input_tokens": read, "output_tokens": generated,
                          "tokens": {"input": read, "output": generated}}  # fmt: skip

    def traffic(self, n: int, days: Mapping[str, int]) -> list[Sent]:
        """`n` generations of each twin; `days` is what the gateway believes of who has chosen. Some come twice."""
        records: list[Sent] = []
        for _ in range(n):
            content = self._content()
            at_ms = self.town.now_ms() - self.random.randrange(10 * 3_600_000)
            mine = {
                who: self.town.use(
                    who, at_ms=at_ms, counted=False, log_retention_days=days.get(who, 30), **content
                )
                for who in self.people
            }  # fmt: skip
            self.originals.append((at_ms, mine))
            records += mine.values()
            if self.random.random() < 0.1:
                records += mine.values()
        self.random.shuffle(records)
        return records

    def corrections(self, n: int) -> list[Sent]:
        """Corrections of `n` generations, whatever they are and whether or not they have been corrected before."""
        records: list[Sent] = []
        for at_ms, mine in self.random.sample(self.originals, n):
            read, generated = self.random.randrange(1, 5000), self.random.randrange(1, 500)
            for who in self.people:
                said = body(mine[who])
                data = said["data"] | {
                    "input_tokens": read, "output_tokens": generated, "tokens": {"input": read, "output": generated},
                    "original": said["id"],
                }  # fmt: skip
                records.append(
                    self.town.gateway.event(
                        topics.GENERATIONS, events.UsageCorrected, data, key=said["id"], at_ms=at_ms
                    )
                )
        return records

    def twice(self) -> tuple[list[Sent], list[Sent]]:
        """Corrections, one after the other, of a generation that has no price yet and of one that has; and the first of
        them."""
        waits = next(one for one in reversed(self.originals) if body(one[1][self.people[0]])["data"]["model"] == LATER)
        plain = next(one for one in self.originals if body(one[1][self.people[0]])["data"]["model"] == MODEL)
        self.originals, kept = [waits, plain], self.originals
        first, again = self.corrections(2), self.corrections(2)
        self.originals = kept
        return [*first, *again], first

    async def access(self) -> list[Sent]:
        """A sign-in of each."""
        ip = await self.town.stage.sealed("192.0.2.7")
        return [
            self.town.gateway.event(
                topics.ACCESS, events.AccessRecorded,
                self.town.who(who) | {"kind": kind, "agent": "browser", "ip": ip, "outcome": outcome},
                key=self.town.who(who)["account"], subject=self.town.who(who)["account"], at_ms=self.town.now_ms(),
            )
            for who in self.people
            for kind, outcome in (("sign_in", "refused"), ("sign_in", "ok"), ("dashboard", "ok"))
        ]  # fmt: skip

    # --- what became of it -------------------------------------------------------------------------------------------

    async def lines(self, who: str) -> Counter[tuple[Any, ...]]:
        """Every charge line: hour, version, tier, terms, quantities, amount, list price."""
        rows = await self.town.mesh.fetch(
            "billing",
            """SELECT hour, price_version, tier, terms, quantities::text AS quantities, amount_pico, list_pico
               FROM charge_line l JOIN workspace_ref r ON r.id = l.workspace_id WHERE r.workspace = $1""",
            self.town.name(who),
        )
        # With the customer's own key the month's fee is exact, a single line's share is as the lines came.
        return Counter(
            (*tuple(row)[:5], None if row["terms"] == "byok" else row["amount_pico"], row["list_pico"]) for row in rows
        )

    async def balance(self, who: str) -> dict[str, Any]:
        said = await self.town.read("billing", "balance", workspace=self.town.name(who))
        # Names; and which credit burnt first, bought or granted, follows from the order in which batches came.
        for of_its_own in ("workspace", "account", "version", "changed_at", "purchased_pico", "granted_pico", "grants"):
            del said[of_its_own]
        return dict(said)

    async def daily(self, who: str) -> dict[int, tuple[int, ...]]:
        """Generations, tokens and amount by day, wherever they stand."""
        rows = await self.town.mesh.fetch(
            "metering",
            """SELECT day, sum(generations) AS n, sum(input_tokens) AS read, sum(output_tokens) AS generated,
                      sum(amount_pico) AS pico
               FROM (SELECT workspace, hour / 24 AS day, generations, input_tokens, output_tokens, amount_pico FROM rollup_hourly
                     UNION ALL SELECT workspace, day, generations, input_tokens, output_tokens, amount_pico FROM rollup_daily) t
               WHERE workspace = $1 GROUP BY day""",
            self.town.name(who),
        )
        return {row["day"]: tuple(map(int, tuple(row)[1:])) for row in rows}

    async def hourly(self, who: str) -> set[tuple[Any, ...]]:
        rows = await self.town.mesh.fetch(
            "metering",
            """SELECT hour, model, generations, input_tokens, output_tokens, amount_pico FROM rollup_hourly
               WHERE workspace = $1""",
            self.town.name(who),
        )
        return set(map(tuple, rows))

    async def connections(self, who: str) -> list[tuple[Any, ...]]:
        rows = await self.town.mesh.fetch(
            "security",
            "SELECT kind, outcome, count(*) AS n FROM access_row WHERE workspace = $1 GROUP BY 1, 2 ORDER BY 1, 2",
            self.town.name(who),
        )
        return list(map(tuple, rows))


@pytest.mark.timeout(240)
@pytest.mark.promise(16, 49, 52)
async def test_twins_with_and_without_rights_pay_the_same_and_are_served_alike(town: Town, seed: int) -> None:
    """The same traffic for four: one who uses no right, one who asks for erasure and takes that back, one who keeps the
    least and has opted out, one who keeps no log at all and has opted out."""
    people = ("free", "asked", "least", "off")
    twins = Twins(town, people, seed)
    rooms = ("metering", "insights", "billing", "security")
    await town.open(*rooms)
    await town.settle(*people)

    def paid(who: str, dollars: int) -> list[Sent]:
        grant = town.who(who) | {"grant": f"grant-{town.name(who)}-{dollars}", "credit_pico": str(dollars * 10**11)}
        return [
            town.gateway.payment(town.name(who), dollars),
            town.gateway.event(topics.PAYMENTS, events.CreditGranted, grant, key=town.name(who)),
        ]

    await town.send(*(record for who in people for record in paid(who, 7)))
    await town.send(*twins.traffic(25, {}), *await twins.access())
    # What was wrong is put right for everybody, while everybody has a log.
    await town.send(*twins.corrections(6))

    asked = town.stage.request(account=town.who("asked")["account"], target=town.who("asked")["account"])
    await town.send(town.sets("least", 1, True), town.sets("off", 0, True), asked)
    await town.obeyed("least", "off")
    # Half of what comes now knows of it, half does not yet.
    await town.send(*twins.traffic(25, {"least": 1, "off": 0}), *twins.traffic(25, {}), *await twins.access())
    # What was wrong is put right for everybody, log or not; a second time, too, and what has no price yet as well.
    twice, first = twins.twice()
    after = [*twins.corrections(12), *twice]
    await town.send(*after, *first, *(record for who in people for record in paid(who, 2)))
    case = body(asked)["id"]
    assert await town.stage.state(case) == "requested"
    await town.send(town.stage.asked(events.PrivacyWithdrawn, account=town.who("asked")["account"], case=case))
    assert await town.stage.state(case) == "withdrawn"
    waiting = await town.mesh.fetch("metering", "SELECT reason, usage->>'workspace' AS workspace FROM quarantine")
    by_reason = Counter((row["workspace"], row["reason"]) for row in waiting)
    for kept_up in ("unknown_model", "original_unknown"):
        late = {by_reason[town.name(who), kept_up] for who in people}
        assert len(late) == 1 and min(late) > 0, "the same waits with everybody: for its price, or for what has none"
    assert by_reason.keys() == {
        (town.name(who), why) for who in people for why in ("unknown_model", "original_unknown")
    }
    # A row that waits names no request: neither the correction, nor the generation that it is about.
    of_off = [r for r in after if body(r)["data"]["workspace"] == town.name("off")]
    names = [name for r in of_off for name in (body(r)["id"], body(r)["data"]["original"])]
    assert await town.places("metering", f"key-{town.name('off')}", *names) == set()
    # A price comes late for a model of which everybody has used some.
    await town.send(town.gateway.price(LATER))
    await town.send(*twins.traffic(10, {"least": 1, "off": 0}), *await twins.access())

    # What is about a generation that had none follows by itself; or, sooner, by a person.
    left = await town.mesh.fetch("metering", "SELECT id FROM quarantine ORDER BY id")
    await town.send(*(town.gateway.command("metering", "release_quarantine", str(row["id"])) for row in left))
    assert await town.mesh.value("metering", "SELECT count(*) FROM quarantine") == 0

    # 1. Charges. The same lines, by the same versions.
    lines = {who: await twins.lines(who) for who in people}
    assert lines["free"].total() > 85 + 2 * 18 and len({line[3] for line in lines["free"]}) == 3
    assert lines["asked"] == lines["least"] == lines["off"] == lines["free"]
    # 2. Balances, and every part of them.
    balances = {who: await twins.balance(who) for who in people}
    assert balances["asked"] == balances["least"] == balances["off"] == balances["free"]
    assert int(balances["free"]["byok"]["list_pico"]) > 0

    # 3. Sums: by the hour where they are kept, by the day for everybody.
    async def summed() -> bool:
        n = [sum(day[0] for day in (await twins.daily(who)).values()) for who in people]
        return n == [85] * 4

    await town.mesh.until(summed, 20, "the sums are there")
    daily = {who: await twins.daily(who) for who in people}
    hourly = {who: await twins.hourly(who) for who in people}
    assert daily["asked"] == daily["least"] == daily["off"] == daily["free"]
    assert hourly["asked"] == hourly["least"] == hourly["free"] and hourly["off"] == set()
    # 4. Keys, connections: nobody is refused, everybody is counted.
    refused = {one["key"] for one in await town.stage.published(topics.KEY_REFUSALS)}
    assert refused.isdisjoint(f"key-{town.name(who)}" for who in people)
    connections = {who: await twins.connections(who) for who in people}
    assert set(map(str, connections.values())) == {
        str([("dashboard", "ok", 3), ("sign_in", "ok", 3), ("sign_in", "refused", 3)])
    }
    # 5. And the restriction was one: what the twins have left behind is not the same at all.
    assert await town.logged("off") == 0 < await town.logged("least")
    assert all(runtime.troubles() == [] for runtime in town.rooms.values())


async def test_a_setting_from_before_gets_its_account(town: Town) -> None:
    """A database of the schema before, with a setting in it: it is read once more, at the same version."""
    await town.open("metering", "insights")
    await town.settle("old")
    await town.send(town.sets("old", 7))
    await town.obeyed("old")
    await town.close("metering")
    db = await asyncpg.connect(town.mesh.env["STEWARD_METERING_OWNER_DATABASE_URL"])
    try:
        await db.execute("ALTER TABLE workspace_setting DROP COLUMN account")
        await db.execute("DELETE FROM mesh_migration WHERE name = 'metering/0002_setting_account.sql'")
    finally:
        await db.close()
    await town.open("metering")
    await town.mesh.idle()
    sql = "SELECT account, version, log_retention_days FROM workspace_setting WHERE workspace = $1"
    (row,) = await town.mesh.fetch("metering", sql, town.name("old"))
    assert tuple(row) == (town.who("old")["account"], 1, 7)
