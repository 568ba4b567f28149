"""What a correction leaves in the request log and in the sums: what it says, for as long as the row was to be kept."""

from __future__ import annotations

import random
from collections import Counter
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest

from services.audit.app import Sources, prove
from shared.contract import events, topics
from shared.mesh.transaction import rfc3339
from tests.support.gateway import Gateway, Sent, body
from tests.support.retention import MovedClock
from tests.support.world import Mesh

KEEPS, NONE = "ws-keeps", "ws-none"
NAMED = (
    "SELECT count(*) FROM {} t WHERE EXISTS (SELECT FROM unnest($1::text[]) AS n (x) WHERE strpos(t::text, n.x) > 0)"
)
TABLES = """SELECT c.relname AS name FROM pg_class c
            WHERE c.relnamespace = 'public'::regnamespace AND c.relkind IN ('r', 'p') AND NOT c.relispartition"""


async def test_the_row_and_the_sums_say_what_the_correction_says(mesh: Mesh, seed: int) -> None:
    gateway = Gateway(seed)
    await gateway.send(mesh.env, [gateway.price()])
    await mesh.start("metering")
    await mesh.owned()
    await mesh.idle()
    tokens = {"input": 100, "output": 7}
    wrong, other = (
        gateway.generation(
            "ws-1", counted=False, log_retention_days=9, tokens=tokens, input_tokens=100, output_tokens=7
        )
        for _ in range(2)
    )
    await gateway.send(mesh.env, [wrong, other])
    await mesh.idle()
    (before,) = await mesh.fetch("metering", f"SELECT * FROM request_log WHERE generation_id = '{body(wrong)['id']}'")
    said = body(wrong)["data"]
    # Meanwhile the workspace has chosen to keep no log: what is kept already goes when it was to go.
    data = said | {
        "original": body(wrong)["id"], "tokens": {"input": 3}, "input_tokens": 3, "output_tokens": 0,
        "finish_reason": "length", "log_retention_days": 0,
    }  # fmt: skip
    at = datetime.fromisoformat(body(wrong)["time"])
    at_ms = int(at.timestamp() * 1000)
    await gateway.send(
        mesh.env,
        [gateway.event(topics.GENERATIONS, events.UsageCorrected, data, key=body(wrong)["id"], at_ms=at_ms)],
    )
    await mesh.idle()
    rows = await mesh.fetch("metering", "SELECT * FROM request_log ORDER BY input_tokens")
    assert [row["input_tokens"] for row in rows] == [3, 100]
    after = rows[0]
    for kept in (
        "expires_on",
        "occurred_at",
        "retention_days",
        "generation_id",
        "generation_ref",
        "workspace",
        "key_id",
    ):
        assert after[kept] == before[kept], kept
    assert before["expires_on"] == (at + timedelta(days=9)).date()
    assert (after["quantities"], after["ended"], after["output_tokens"]) == ('{"input":3}', "completed/length", 0)
    per_token, rest = divmod(before["amount_pico"] - 100 * (after["amount_pico"] // 3), 7)
    assert per_token > 0 and rest == 0 and after["amount_pico"] % 3 == 0
    assert (after["record"], after["line"]) != (before["record"], before["line"])
    hourly = await mesh.fetch(
        "metering",
        """SELECT sum(generations) AS generations, sum(input_tokens) AS read, sum(output_tokens) AS generated,
                  sum(amount_pico) AS amount FROM rollup_hourly""",
    )
    assert dict(hourly[0]) == {
        "generations": 2, "read": 103, "generated": 7, "amount": before["amount_pico"] + after["amount_pico"],
    }  # fmt: skip
    assert not await mesh.fetch("metering", "SELECT * FROM rollup_daily")


# --- without a log --------------------------------------------------------------------------------------------------


class Pair:
    """Two workspaces with the same traffic: one keeps its log, the other does not."""

    def __init__(self, mesh: Mesh, seed: int) -> None:
        self.mesh, self.gateway, self.clock = mesh, Gateway(seed), MovedClock()
        self.random = random.Random(seed)

    async def open(self, *rooms: str) -> None:
        await self.gateway.send(self.mesh.env, [self.gateway.price()])
        for room in rooms:
            await self.mesh.start(room, clock=self.clock)
        await self.mesh.owned()
        await self.mesh.idle()

    async def send(self, *records: Sent) -> None:
        await self.gateway.send(self.mesh.env, records)
        await self.mesh.idle()

    def use(self, days: int, **changes: Any) -> dict[str, Sent]:
        """A generation of each; the one keeps its log for 90 days, the other for `days`."""
        read, generated = self.random.randrange(1, 5000), self.random.randrange(1, 500)
        data: dict[str, Any] = {
            "input_tokens": read,
            "output_tokens": generated,
            "tokens": {"input": read, "output": generated},
        } | changes
        return {
            who: self.gateway.generation(
                who, counted=False, log_retention_days=kept, generation_ref=f"ref-{who}", **data
            )
            for who, kept in ((KEEPS, 90), (NONE, days))
        }

    def correct(self, originals: dict[str, Sent], **changes: Any) -> dict[str, Sent]:
        """What each should have said."""
        read = self.random.randrange(1, 5000)
        corrected = {}
        for who, original in originals.items():
            said = body(original)
            data = said["data"] | {
                "original": said["id"], "input_tokens": read, "output_tokens": 0, "tokens": {"input": read},
            } | changes  # fmt: skip
            at_ms = int(datetime.fromisoformat(said["time"]).timestamp() * 1000)
            corrected[who] = self.gateway.event(
                topics.GENERATIONS, events.UsageCorrected, data, key=said["id"], at_ms=at_ms
            )
        return corrected

    async def off(self) -> None:
        """The one chooses to keep no log from now on."""
        data = {
            "workspace": NONE, "account": f"acc-{NONE}", "version": 1, "log_retention_days": 0,
            "changed_at": rfc3339(self.clock.now()),
        }  # fmt: skip
        await self.send(self.gateway.event(topics.SETTINGS, events.SettingsChanged, data, key=NONE))

    async def lines(self, who: str) -> Counter[tuple[Any, ...]]:
        rows = await self.mesh.fetch(
            "billing",
            """SELECT hour, price_version, tier, terms, quantities::text AS quantities, amount_pico, list_pico
               FROM charge_line l JOIN workspace_ref r ON r.id = l.workspace_id WHERE r.workspace = $1""",
            who,
        )
        return Counter(map(tuple, rows))

    async def balance(self, who: str) -> int:
        return int(
            await self.mesh.value(
                "billing",
                """SELECT b.purchased_pico + b.granted_pico - b.receivable_pico
                   FROM balance b JOIN workspace_ref r ON r.id = b.workspace_id WHERE r.workspace = $1""",
                who,
            )
        )

    async def waiting(self) -> Counter[tuple[str, str]]:
        rows = await self.mesh.fetch("metering", "SELECT reason, usage->>'workspace' AS workspace FROM quarantine")
        return Counter((row["workspace"], row["reason"]) for row in rows)

    async def alike(self) -> None:
        """Both paid the same, line by line, the proof of the books holds, and nothing that waits is left."""
        lines = await self.lines(NONE)
        assert lines == await self.lines(KEEPS) and lines
        assert await self.balance(NONE) == await self.balance(KEEPS)
        verdict, _ = await prove(Sources.from_env(self.mesh.env), datetime(2026, 1, 1, tzinfo=UTC))
        assert verdict.ok, verdict

    async def names_nobody(self, *records: Sent) -> None:
        """No table of metering has a generation, key or reference of who keeps no log; no charge names its workspace."""
        charged = str([tuple(row) for row in await self.mesh.fetch("metering", "SELECT * FROM charged")])
        assert NONE not in charged
        tables = await self.mesh.fetch("metering", TABLES)
        texts = [f"key-{NONE}", f"ref-{NONE}", *(body(record)["id"] for record in records)]
        for row in tables:
            found = await self.mesh.value("metering", NAMED.format(row["name"]), texts)
            assert found == 0, row["name"]


@pytest.mark.promise(5, 7, 49, 52)
@pytest.mark.parametrize("ended", ["never kept", "switched off", "expired"])
async def test_a_correction_without_a_log_comes_to_the_same_as_with_one(mesh: Mesh, seed: int, ended: str) -> None:
    pair = Pair(mesh, seed)
    await pair.open("metering", "billing")
    days = {"never kept": 0, "switched off": 30, "expired": 1}[ended]
    plain, free, own, shared = (
        pair.use(days, **changes) for changes in ({}, {"outcome": "cache_hit"}, {"byok": True}, {"data_sharing": True})
    )
    originals = [plain, free, own, shared]
    await pair.send(*(record for both in originals for record in both.values()))
    if ended == "switched off":
        await pair.off()
    elif ended == "expired":
        pair.clock.ahead = timedelta(hours=25)
    first = [pair.correct(plain), pair.correct(free, outcome="completed"), pair.correct(own), pair.correct(shared)]
    # The same one comes twice; another one is of the same generation; one is of what was itself a correction.
    again, of_correction = pair.correct(plain), pair.correct(first[0])
    records = [record for both in (*first, first[0], again) for record in both.values()]
    await pair.send(*records)
    await pair.send(*of_correction.values())
    if ended != "expired":  # what waits says what its own event says
        await pair.names_nobody(*(both[NONE] for both in originals))
    # Whose generation it is, is known as well.
    await pair.send(*pair.correct(plain, workspace="ws-other", account="acc-other").values())
    assert (await pair.lines(NONE)).total() == 4 + 2 * 5
    await pair.alike()
    assert await pair.waiting() == {
        (KEEPS, "original_unknown"): 1, (NONE, "original_unknown"): 1, ("ws-other", "original_of_other_workspace"): 2,
    }  # fmt: skip
    assert not await mesh.fetch("metering", "SELECT FROM mesh_dead_letter")


@pytest.mark.promise(49, 52)
async def test_a_correction_waits_for_an_original_without_a_price_and_follows_it(mesh: Mesh, seed: int) -> None:
    """Also if the log is switched off meanwhile, and if only its own event knows of that."""
    pair = Pair(mesh, seed)
    await pair.open("metering", "billing")
    zero, meanwhile, unheard = pair.use(0, model="later"), pair.use(30, model="later"), pair.use(30, model="later")
    await pair.send(*(record for both in (zero, meanwhile) for record in both.values()))
    corrections = [pair.correct(zero), pair.correct(meanwhile)]
    await pair.send(*(record for both in corrections for record in both.values()))
    await pair.send(*unheard.values())
    corrections.append(pair.correct(unheard, log_retention_days=0))
    await pair.send(*corrections[-1].values())
    assert await pair.waiting() == {
        (who, why): 3 for who in (KEEPS, NONE) for why in ("unknown_model", "original_unknown")
    }
    await pair.send(pair.gateway.price("later"))
    # The one whose own event alone speaks of 0 finds the row that there is.
    await released(pair)
    await pair.off()
    await pair.alike()
    await pair.names_nobody(*(both[NONE] for both in (zero, meanwhile, unheard, *corrections)))


async def released(pair: Pair) -> None:
    """Nothing waits any more; what follows an original does so by itself, but not at once."""
    left = await pair.mesh.fetch("metering", "SELECT id FROM quarantine ORDER BY id")
    await pair.send(*(pair.gateway.command("metering", "release_quarantine", str(row["id"])) for row in left))
    assert not await pair.waiting()
