"""Erasure and the books: they say the same afterwards, of nobody; and what still comes makes nobody known again."""

from __future__ import annotations

import asyncio
import json
from collections import Counter
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
from aiokafka import AIOKafkaConsumer, TopicPartition

from services.audit.app import Sources, prove
from services.billing import app, ledger
from services.metering import app as metering
from shared.contract import events, topics
from shared.contract.base import Event
from shared.contract.units import Subject
from shared.mesh.clock import SystemClock
from shared.mesh.runtime import Runtime
from shared.mesh.transaction import Transaction
from tests.support.coordinator import Coordinator, new_case
from tests.support.gateway import DOLLAR, INPUT_PICO, OUTPUT_PICO, Gateway, Sent
from tests.support.world import Mesh

SEALED = "sealed:v1:k1:" + "A" * 43 + ":" + "B" * 60
TOKENS: dict[str, Any] = {"tokens": {"input": 7, "output": 3}, "input_tokens": 7, "output_tokens": 3}
USED = 7 * INPUT_PICO + 3 * OUTPUT_PICO


@dataclass
class Balances:
    """Listens to the balances topic from now on: compaction may take what was said."""

    mesh: Mesh
    consumer: AIOKafkaConsumer
    heard: dict[str, list[dict[str, Any] | None]] = field(default_factory=dict)
    tps: list[TopicPartition] = field(
        default_factory=lambda: [TopicPartition(topics.BALANCES.name, n) for n in range(topics.BALANCES.partitions)]
    )

    async def listen(self) -> None:
        self.consumer.assign(self.tps)
        await self.consumer.seek_to_end(*self.tps)
        while True:
            for records in (await self.consumer.getmany(timeout_ms=100)).values():
                for record in records:
                    said = None if record.value is None else json.loads(record.value)["data"]
                    self.heard.setdefault((record.key or b"").decode(), []).append(said)

    async def of(self, workspace: str) -> list[dict[str, Any] | None]:
        """What has been said of a workspace, in order; None ends its key."""
        ends = await self.consumer.end_offsets(self.tps)

        async def passed() -> bool:
            return all([await self.consumer.position(tp) >= end for tp, end in ends.items()])

        await self.mesh.until(passed, 10, "all balances heard")
        return self.heard.get(workspace, [])


@dataclass
class Holder:
    """Billing, and whoever orders erasures of it. Metering rates on, whoever is erased: its records can come late."""

    mesh: Mesh
    gateway: Gateway
    runtime: Runtime
    retention: Coordinator
    balances: Balances
    case: str = field(default_factory=new_case)

    @asynccontextmanager
    async def transaction(self, at: datetime | None = None) -> AsyncIterator[Transaction]:
        async with self.runtime.pool.acquire() as db, db.transaction():
            tx = Transaction("billing", db, at or SystemClock().now())
            yield tx
            await tx.flush()
        self.runtime.relay.wake()

    async def bury(self, *subjects: Subject) -> None:
        """The tombstones come; nothing is erased yet."""
        await self.gateway.send(self.mesh.env, self.retention.tombstones(self.case, subjects))
        await self.mesh.idle()

    async def erase(self, *subjects: Subject) -> dict[str, Any]:
        """Orders the erasure; what the receipt says of each table."""
        await self.bury(*subjects)
        await self.gateway.send(self.mesh.env, [await self.retention.order(self.case, subjects, ["billing"])])
        (receipt,) = await self.retention.receipts(self.case, 1)
        await self.mesh.idle()
        return {each.table: each for each in receipt.treated}

    async def send(self, *records: Sent) -> None:
        await self.gateway.send(self.mesh.env, records)
        await self.mesh.idle()

    async def ledger(self) -> dict[str, int]:
        """The sum of each kind of account, over all classes."""
        rows = await self.mesh.fetch(
            "billing",
            """SELECT a.kind, coalesce(sum(e.amount_pico), 0)::text AS pico FROM ledger_account a
               LEFT JOIN entry e ON e.account = a.id GROUP BY a.kind""",
        )
        return {row["kind"]: int(row["pico"]) for row in rows}

    async def proved(self) -> dict[str, Any]:
        """The whole proof, which must hold."""
        verdict, _ = await prove(Sources.from_env(self.mesh.env), SystemClock().now())
        assert verdict.ok, verdict
        return verdict.as_dict()

    async def counters(self) -> dict[str, int]:
        rows = await self.mesh.fetch("billing", "SELECT name, sum(value)::bigint AS n FROM mesh_counter GROUP BY name")
        return {row["name"]: row["n"] for row in rows}

    async def names(self) -> list[str]:
        return [r["workspace"] for r in await self.mesh.fetch("billing", "SELECT workspace FROM workspace_ref")]

    def money(self, model: type[Event], workspace: str, **data: Any) -> Sent:
        """An event of the payments topic."""
        data = {"account": f"acc-{workspace}", "workspace": workspace, **data}
        return self.gateway.event(topics.PAYMENTS, model, data, key=workspace, subject=workspace)

    def usage(self, workspace: str, **changes: Any) -> Sent:
        """Usage that costs `USED`."""
        return self.gateway.generation(workspace, **{**TOKENS, **changes})

    def own_key(self, workspace: str, dollars: int) -> list[Sent]:
        """Usage with the customer's own key, at this list price."""
        tokens = dollars * 10**6 // 4
        used: dict[str, Any] = {"tokens": {"input": tokens}, "input_tokens": tokens, "output_tokens": 0}
        return [self.gateway.generation(workspace, counted=False, byok=True, **used) for _ in range(4)]


@pytest.fixture
async def room(mesh: Mesh, seed: int) -> AsyncIterator[Holder]:
    """Metering and billing, with a price that is known."""
    gateway = Gateway(seed)
    await gateway.send(mesh.env, [gateway.price()])
    await mesh.start("metering", service=metering.make_service(suppress=False))
    await mesh.owned()
    await mesh.idle()
    runtime = await mesh.start("billing", settings={"kafka": replace(mesh.settings("billing").kafka, hurried=False)})
    await mesh.owned()
    consumer = AIOKafkaConsumer(bootstrap_servers=mesh.env["STEWARD_KAFKA_BOOTSTRAP_SERVERS"], group_id=None)
    await consumer.start()
    balances = Balances(mesh, consumer)
    listening = asyncio.create_task(balances.listen())
    try:
        yield Holder(mesh, gateway, runtime, Coordinator(mesh, gateway, runtime), balances)
    finally:
        listening.cancel()
        await asyncio.gather(listening, return_exceptions=True)
        await consumer.stop()


async def a_life(room: Holder, gone: str) -> None:
    """Two workspaces that used, bought and were granted things, disputed one of them, and wrote a note."""
    money = room.money
    for n, workspace in enumerate((gone, "stays")):
        await room.send(
            money(events.PaymentSettled, workspace, payment=f"p{n}", credit_pico=str(20 * DOLLAR)),
            money(events.PaymentSettled, workspace, payment=f"p{n}-disputed", credit_pico=str(5 * DOLLAR)),
            money(events.PaymentSettled, workspace, payment=f"p{n}-paid", credit_pico=str(DOLLAR)),
            money(events.CreditGranted, workspace, grant=f"g{n}", credit_pico=str(2 * DOLLAR)),
            money(events.PaymentDisputed, workspace, dispute=f"d{n}", payment=f"p{n}-disputed", credit_pico=str(5 * DOLLAR)),
            money(events.NoteAdded, workspace, note=f"n{n}", text=SEALED),
            *(room.usage(workspace) for _ in range(20)),
            *room.own_key(workspace, 30_000),
        )  # fmt: skip


async def traces(mesh: Mesh, *values: str) -> Counter[str]:
    """Rows of billing's database that hold one of these values anywhere in a column, by table."""
    columns = await mesh.fetch(
        "billing",
        """SELECT c.relname, a.attname, t.typname FROM pg_class c JOIN pg_attribute a ON a.attrelid = c.oid
           JOIN pg_type t ON t.oid = a.atttypid
           WHERE c.relnamespace = 'public'::regnamespace AND c.relkind IN ('r', 'p') AND NOT c.relispartition
             AND a.attnum > 0 AND NOT a.attisdropped AND t.typname IN ('text', 'json', 'jsonb', 'bytea', 'varchar')""",
    )
    assert {"workspace_ref", "journal", "charge_line", "mesh_outbox", "mesh_task"} <= {
        row["relname"] for row in columns
    }
    found = Counter[str]()
    for table, column, kind in columns:
        has = f"position($1::text::bytea IN {column}) > 0" if kind == "bytea" else f"strpos({column}::text, $1) > 0"
        for value in values:
            n = await mesh.value("billing", f"SELECT count(*) FROM {table} WHERE {has}", value)
            if n:
                found[table] += n
    return found


async def chain(mesh: Mesh) -> list[tuple[Any, ...]]:
    return [tuple(row) for row in await mesh.fetch("billing", "SELECT * FROM chain ORDER BY class, block")]


@pytest.mark.promise(11, 43, 46)
async def test_aggregate_state_stays_and_names_nobody(room: Holder, seed: int) -> None:
    mesh, gone = room.mesh, f"gone-{seed}"
    await a_life(room, gone)
    before, blocks, figures = await room.ledger(), await chain(mesh), await room.proved()
    journals = await mesh.fetch("billing", "SELECT * FROM journal ORDER BY id")
    lines = await mesh.value("billing", "SELECT sum(hashtextextended(l::text, 0)) FROM charge_line l")
    assert {"workspace_ref", "byok_month"} <= (await traces(mesh, gone)).keys()
    (last,) = (await room.balances.of(gone))[-1:]
    assert last is not None

    treated = await room.erase(("workspace", gone), ("account", f"acc-{gone}"))
    assert {t: each.rows for t, each in treated.items() if each.rows} == {"note": 1, "workspace_ref": 1}
    assert treated["erased_workspace"].not_after <= SystemClock().now() + timedelta(days=1)
    until = datetime(SystemClock().now().year + 8, 1, 1, tzinfo=UTC)  # seven years, from the end of this one
    retained = {t: each.retained for t, each in treated.items() if each.action == "retain"}
    assert {(r.ground, r.until) for r in retained.values()} == {("legal_obligation", until)}
    assert {"journal", "entry", "charge_line", "purchase", "balance", "byok_erased"} <= retained.keys()
    after = await room.ledger()
    left = 22 * DOLLAR + DOLLAR - 20 * USED - 250 * DOLLAR  # the fee is 5 % of 5,000 dollars
    assert left < 0
    assert after == before, "it had no credit left, so nothing lapsed, and its debt stays"
    assert await chain(mesh) == blocks
    assert await mesh.fetch("billing", "SELECT * FROM journal ORDER BY id") == journals
    assert await mesh.value("billing", "SELECT sum(hashtextextended(l::text, 0)) FROM charge_line l") == lines
    said = await room.proved()
    assert {k: said[k] for k in figures} == figures

    assert await traces(mesh, gone) == {"erased_workspace": 1}
    final = (await room.balances.of(gone))[-1]
    assert final is not None
    assert (final["version"], final["erased"]) == (last["version"] + 1, True)
    assert {final[key] for key in final if key.endswith("_pico")} == {"0"}
    assert await room.names() == ["stays"]
    for job in ("republish-balances", "expire-grants", "settle-waiting", "close-periods"):
        assert await room.runtime.worker.run_job(job, force=True)
    await mesh.idle()
    assert (await room.balances.of(gone))[-1] == final, "jobs say nothing of it any more"


@pytest.mark.promise(44)
async def test_unused_credit_lapses_and_the_last_word_ends(room: Holder, seed: int) -> None:
    mesh, gone = room.mesh, f"lapsed-{seed}"
    await room.send(
        room.money(events.PaymentSettled, gone, payment="p", credit_pico=str(20 * DOLLAR)),
        room.money(events.CreditGranted, gone, grant="g", credit_pico=str(2 * DOLLAR)),
        room.usage(gone),
    )
    before, blocks = await room.ledger(), await chain(mesh)
    await room.bury(("workspace", gone))
    async with room.transaction() as tx:  # begun, and begun again by the order
        await app.before_erase({room.case: frozenset({("workspace", gone)})}, tx)
    await room.erase(("workspace", gone))
    left = 22 * DOLLAR - USED
    assert (before["purchased"] + before["granted"], before["breakage"]) == (-left, 0)
    after = await room.ledger()
    assert after == before | {"purchased": 0, "granted": 0, "breakage": -left}
    assert (await chain(mesh))[:-1] == blocks
    await room.proved()

    assert await traces(mesh, gone) == {"erased_workspace": 1}
    end = app.service.jobs["end-erased-balances"][1]
    for minutes, left_over in ((59, {"erased_workspace": 1}), (61, {})):
        async with room.transaction() as tx:
            await end(SystemClock().now() + timedelta(minutes=minutes), tx)
        await mesh.idle()
        assert await traces(mesh, gone) == left_over
    final, last = (await room.balances.of(gone))[-2:]
    assert final is not None and final["erased"] and last is None


@pytest.mark.promise(44)
async def test_usage_that_comes_after_an_erasure_is_booked_on_nobody(room: Holder, seed: int) -> None:
    mesh, gone, other = room.mesh, f"late-{seed}", f"late-too-{seed}"
    await room.send(
        room.money(events.PaymentSettled, gone, payment="p", credit_pico=str(20 * DOLLAR)), room.usage(gone)
    )
    # The tombstone is here, the erasure is not: it is still the workspace's.
    subjects = [(kind, who) for w in (gone, other) for kind, who in (("workspace", w), ("account", f"acc-{w}"))]
    await room.bury(*subjects)
    await room.send(room.usage(gone))
    assert await room.names() == [gone]
    assert (await room.ledger())["purchased"] == -(20 * DOLLAR - 2 * USED)
    await room.erase(*subjects)
    before, said = await room.ledger(), len(await room.balances.of(gone))
    await room.send(*(room.usage(w) for w in (gone, other, gone)), room.usage("lives"), *room.own_key(gone, 26_000))
    after = await room.ledger()
    # Nobody knows what the account had used of its allowance: what lies above a fresh one is due.
    assert after["suspense_erased"] == 3 * USED + 50 * DOLLAR
    assert after == before | {
        "suspense_erased": 3 * USED + 50 * DOLLAR,
        "revenue": before["revenue"] - 4 * USED - 50 * DOLLAR,
        "receivable": before["receivable"] + USED,
    }
    assert await mesh.value("billing", "SELECT count(*) FROM charge_line WHERE workspace_id IS NULL") == 7
    assert await mesh.value("billing", "SELECT count(*) FROM journal WHERE workspace_id IS NULL") >= 1
    assert await room.names() == ["lives"]
    assert await traces(mesh, gone, other) == {"erased_workspace": 1}
    assert len(await room.balances.of(gone)) == said and await room.balances.of(other) == []
    await room.proved()

    # The same lines once more are known, and a month that closes counts them.
    lines = await mesh.value("billing", "SELECT count(*) FROM line_seen")
    assert lines == 10 == await mesh.value("billing", "SELECT count(*) FROM charge_line")
    async with room.transaction(SystemClock().now() + timedelta(days=70)) as tx:
        await app.close_periods(tx.now, tx)
    charged = await mesh.value("billing", "SELECT sum(charged_pico)::text FROM period_total")
    assert int(charged) == -after["revenue"]
    await room.proved()


@pytest.mark.promise(44)
async def test_money_that_comes_after_an_erasure_is_booked_and_makes_nobody_known(room: Holder, seed: int) -> None:
    mesh, gone = room.mesh, f"paid-{seed}"
    money = room.money
    await room.send(
        money(events.PaymentSettled, gone, payment="p", credit_pico=str(20 * DOLLAR), jurisdiction="DE"),
        money(events.PaymentSettled, gone, payment="q", credit_pico=str(5 * DOLLAR)),
        money(events.PaymentDisputed, gone, dispute="d", payment="q", credit_pico=str(5 * DOLLAR)),
        money(events.PaymentRefunded, gone, refund="early", payment="never-comes", credit_pico=str(DOLLAR)),
    )
    number = await mesh.value("billing", "SELECT id FROM workspace_ref")
    await room.erase(("workspace", gone), ("account", f"acc-{gone}"))
    before, rows = await room.ledger(), await room.counters()
    await room.send(
        # About a payment that is known: it is the number's, whoever that is.
        refund := money(events.PaymentRefunded, gone, refund="r", payment="p", credit_pico=str(4 * DOLLAR)),
        money(events.PaymentDisputed, gone, dispute="d2", payment="p", credit_pico=str(6 * DOLLAR)),
        money(events.DisputeClosed, gone, dispute="d", payment="q", outcome="won"),
        # Money for nobody, and part of it goes back.
        new := money(events.PaymentSettled, gone, payment="new", credit_pico=str(10 * DOLLAR), jurisdiction="FR"),
        money(events.PaymentRefunded, gone, refund="r2", payment="new", credit_pico=str(3 * DOLLAR)),
        # No money.
        money(events.CreditGranted, gone, grant="g", credit_pico=str(2 * DOLLAR)),
        money(events.BalanceOpened, gone, credit_pico=str(2 * DOLLAR), jurisdiction="FR"),
        money(events.NoteAdded, gone, note="n", text=SEALED),
        # Known already.
        money(events.PaymentSettled, gone, payment="p", credit_pico=str(20 * DOLLAR), jurisdiction="DE"),
        money(events.PaymentRefunded, gone, refund="r", payment="p", credit_pico=str(4 * DOLLAR)),
        money(events.PaymentRefunded, gone, refund="r2", payment="new", credit_pico=str(3 * DOLLAR)),
        # About nothing that anybody knows.
        money(events.PaymentRefunded, gone, refund="lost", payment="unknown", credit_pico=str(DOLLAR)),
    )  # fmt: skip
    assert refund.key == new.key
    after, counts = await room.ledger(), await room.counters()
    happened = {k: n for k in counts if k.startswith("payments_") and (n := counts[k] - rows.get(k, 0))}
    assert happened == {"payments_created": 5, "payments_erased": 3, "payments_exists": 3, "payments_waiting": 1}
    fee = ledger.purchase_fee(10 * DOLLAR, app.CONFIG)
    changes = {
        # Refund 4 and dispute 6 became a debt of the number; the dispute that it won, 5, pays a part of it.
        "receivable": 10 * DOLLAR - 5 * DOLLAR,
        "payment_clearing": (-4 - 6 + 5 + 10 - 3) * DOLLAR + fee,
        "suspense_erased": -7 * DOLLAR,
        "fees": -fee,
    }
    assert after == {kind: pico + changes.get(kind, 0) for kind, pico in before.items()}
    eu = await mesh.value(
        "billing",
        """SELECT sum(e.amount_pico)::bigint FROM entry e JOIN ledger_account a ON a.id = e.account
           WHERE a.kind = 'suspense_erased' AND e.class = 'EU'""",
    )
    assert eu == -7 * DOLLAR, "in the class that the payment names"
    row = (await mesh.fetch("billing", "SELECT * FROM balance"))[0]
    assert (row["workspace_id"], row["erased"], int(row["receivable_pico"])) == (number, True, 5 * DOLLAR)
    assert await room.names() == [] and await traces(mesh, gone) == {"erased_workspace": 1}
    await room.proved()

    # What waited becomes suspense as ever, of a number and of nobody.
    async with room.transaction(SystemClock().now() + timedelta(days=2)) as tx:
        await app.settle_waiting(tx.now, tx)
    assert (await room.ledger())["suspense"] == before["suspense"] + 2 * DOLLAR
    final = (await room.balances.of(gone))[-1]
    assert final is not None and final["erased"]
    await room.proved()


async def test_a_dispute_won_after_all_is_paid_leaves_no_credit_to_the_erased(room: Holder, seed: int) -> None:
    gone = f"won-{seed}"
    await room.send(
        room.money(events.PaymentSettled, gone, payment="q", credit_pico=str(5 * DOLLAR)),
        room.money(events.PaymentDisputed, gone, dispute="d", payment="q", credit_pico=str(5 * DOLLAR)),
    )
    await room.erase(("workspace", gone))
    await room.send(room.money(events.DisputeClosed, gone, dispute="d", payment="q", outcome="won"))
    after = await room.ledger()
    assert (after["purchased"], after["receivable"], after["suspense_erased"]) == (0, 0, -5 * DOLLAR)
    await room.proved()


async def test_what_waited_for_an_erasure_does_not_bring_the_name_back(room: Holder, seed: int) -> None:
    """Both looked the name up before the erasure's commit, and get the lock after it."""
    mesh, gone = room.mesh, f"raced-{seed}"
    await room.send(room.money(events.PaymentSettled, gone, payment="p", credit_pico=str(20 * DOLLAR)))
    payment = room.money(events.PaymentSettled, gone, payment="p2", credit_pico=str(DOLLAR))
    said = len(await room.balances.of(gone))
    await room.bury(("workspace", gone))

    async def wait() -> bool:
        async with mesh.world.admin() as admin:
            waiting: int = await admin.fetchval(
                """SELECT count(*) FROM pg_stat_activity
                   WHERE wait_event_type = 'Lock' AND datname = 'steward_billing'"""
            )
            return waiting == 2

    async def say_all_again() -> None:
        async with room.transaction() as tx:
            await tx.db.execute("UPDATE balance_round SET position = 0")
            await app.republish_balances(tx.now, tx)

    async with room.transaction() as tx:
        await app.before_erase({room.case: frozenset({("workspace", gone)})}, tx)
        await tx.db.execute("DELETE FROM workspace_ref WHERE workspace = $1", gone)
        await room.gateway.send(mesh.env, [payment])
        again = asyncio.create_task(say_all_again())
        await mesh.until(wait, 10, "a payment and a job wait")
    await again
    await mesh.idle()
    assert (await room.ledger())["suspense_erased"] == -DOLLAR
    assert await room.names() == []
    assert len(await room.balances.of(gone)) == said + 1
    await room.proved()


@pytest.mark.promise(46)
async def test_books_in_two_classes_are_kept_as_long_as_the_longer_one_demands(room: Holder, seed: int) -> None:
    gone = f"kept-{seed}"
    await room.send(room.usage(gone))
    await room.send(room.money(events.PaymentSettled, gone, payment="p", credit_pico="1", jurisdiction="DE"))
    treated = await room.erase(("workspace", gone))
    assert treated["journal"].retained.until == datetime(SystemClock().now().year + 11, 1, 1, tzinfo=UTC)


async def test_of_somebody_unknown_nothing_is_kept_and_nothing_said(room: Holder, seed: int) -> None:
    mesh, nobody = room.mesh, f"never-{seed}"
    treated = await room.erase(("workspace", nobody), ("account", f"acc-{nobody}"))
    assert not [t for t, each in treated.items() if each.action == "retain" or each.rows]
    assert await traces(mesh, nobody) == {} and await room.balances.of(nobody) == []


async def test_a_workspace_that_outlives_its_account_keeps_its_books(room: Holder, seed: int) -> None:
    mesh, kept = room.mesh, f"taken-{seed}"
    await room.send(
        room.money(events.PaymentSettled, kept, payment="p", credit_pico=str(20 * DOLLAR)), *room.own_key(kept, 26_000)
    )
    before, said = await room.ledger(), await room.balances.of(kept)
    (row,) = await mesh.fetch("billing", "SELECT * FROM workspace_ref")
    await room.erase(("account", f"acc-{kept}"))
    assert await traces(mesh, f"acc-{kept}") == {}
    assert (await room.ledger(), await room.balances.of(kept)) == (before, said)
    await room.proved()
    # What still names the old account is the workspace's all the same, and whoever pays has taken it over.
    await room.send(
        room.money(events.CreditGranted, kept, grant="g", credit_pico=str(3 * DOLLAR), account=f"acc-{kept}"),
        room.usage(kept),
    )
    after = await room.ledger()
    assert (after["promotions"] - before["promotions"], after["suspense_erased"]) == (3 * DOLLAR, 0)
    assert after["revenue"] - before["revenue"] == -USED
    assert await traces(mesh, f"acc-{kept}") == {}
    await room.send(room.money(events.PaymentSettled, kept, payment="p2", credit_pico="1", account="acc-new"))
    (now,) = await mesh.fetch("billing", "SELECT * FROM workspace_ref")
    assert (now["id"], now["account"]) == (row["id"], "acc-new")
    await room.proved()
