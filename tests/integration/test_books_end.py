"""The books of a year end when the law lets them, as a whole; what is left verifies before and after."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from typing import Any

import asyncpg
import pytest

from services.audit.app import Sources, prove
from services.billing.ending import over_at
from shared.contract import events, topics
from shared.contract.base import Event
from shared.mesh.runtime import Runtime
from tests.support.coordinator import Coordinator, new_case
from tests.support.gateway import DOLLAR, INPUT_PICO, OUTPUT_PICO, Gateway, Sent
from tests.support.retention import MovedClock
from tests.support.world import Mesh

TOKENS: dict[str, Any] = {"tokens": {"input": 7, "output": 3}, "input_tokens": 7, "output_tokens": 3}
USED = 7 * INPUT_PICO + 3 * OUTPUT_PICO
ROOTS = ("journal", "entry", "charge_line")
SECOND = timedelta(seconds=1)


@dataclass
class Shop:
    """Billing, whose time a test moves, and a metering that goes on rating."""

    mesh: Mesh
    gateway: Gateway
    clock: MovedClock = field(default_factory=MovedClock)
    runtime: Runtime = field(init=False)

    async def open(self) -> None:
        await self.gateway.send(self.mesh.env, [self.gateway.price()])
        await self.mesh.start("metering")
        self.runtime = await self.mesh.start("billing", clock=self.clock)
        await self.mesh.owned()
        await self.mesh.idle()

    async def send(self, *records: Sent) -> None:
        await self.gateway.send(self.mesh.env, records)
        await self.mesh.idle()

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

    async def sweep_at(self, at: datetime) -> None:
        """The time moves to an instant, months close, and the partitions are swept as they are every hour, by whoever comes
        first. Months first: they close within weeks, and the job that is years late here would write beside the sweep."""
        self.clock.ahead = at - datetime.now(UTC)
        self.clock.now = lambda: at  # type: ignore[method-assign]

        async def closed() -> bool:
            late = "SELECT EXISTS (SELECT FROM period WHERE closed_at IS NULL AND closes_at <= $1)"
            return not await self.mesh.value("billing", late, at)

        await self.mesh.until(closed, 20, "the months are closed")
        turns = """SELECT count(*) FROM pg_locks WHERE locktype = 'advisory' AND classid = 1867 AND objid::bigint > 2147483647
                   AND database = (SELECT oid FROM pg_database WHERE datname = current_database())"""

        async def swept() -> bool:
            busy = await self.runtime.drop_partitions()
            return not busy and not await self.mesh.value("billing", turns)

        await self.mesh.until(swept, 20, "swept")

    async def proved(self) -> dict[str, Any]:
        """The whole proof, which must hold."""
        verdict, _ = await prove(Sources.from_env(self.mesh.env), self.clock.now())
        assert verdict.ok, verdict
        return verdict.as_dict()

    async def there(self, legal_class: str, year: int) -> list[str]:
        """Which of the partitions of a class and year exist, attached or not."""
        names = [f"{root}_{legal_class.lower()}_{year}" for root in ROOTS]
        rows = await self.mesh.fetch("billing", "SELECT relname FROM pg_class WHERE relname = ANY($1)", names)
        return sorted(row["relname"] for row in rows)

    async def balances(self) -> dict[str, tuple[int, ...]]:
        """What each workspace with a name has."""
        rows = await self.mesh.fetch("billing", "SELECT * FROM workspace_ref r JOIN balance b ON b.workspace_id = r.id")
        return {
            r["workspace"]: tuple(int(r[f"{k}_pico"]) for k in ("purchased", "granted", "receivable")) for r in rows
        }

    async def sums(self) -> dict[tuple[str, str], int]:
        """The whole ledger by class and kind of account, as the read says it; a sum of 0 is left out."""
        said = await self.runtime.answer("ledger", {}, "tester", "operator", "test")
        return {
            (name, kind): int(pico)
            for name, of_class in said.items()
            for kind, pico in of_class["kinds"].items()
            if int(pico)
        }

    async def causes(self) -> list[str]:
        return sorted(row["cause"] for row in await self.mesh.fetch("billing", "SELECT cause FROM journal_cause"))


@pytest.fixture
async def shop(mesh: Mesh, seed: int) -> Shop:
    shop = Shop(mesh, Gateway(seed))
    await shop.open()
    return shop


@asynccontextmanager
async def connected(url: str) -> AsyncIterator[Any]:
    db = await asyncpg.connect(url)
    try:
        yield db
    finally:
        await db.close()


async def a_year(shop: Shop) -> dict[str, Any]:
    """Three customers: one of them European, one erased with a debt. What the receipt said of the books that are kept."""
    money = shop.money
    await shop.send(
        money(events.PaymentSettled, "stays", payment="p-us", credit_pico=str(20 * DOLLAR)),
        money(events.CreditGranted, "stays", grant="g-us", credit_pico=str(USED)),
        money(events.PaymentSettled, "stays", payment="p-us-2", credit_pico=str(5 * DOLLAR)),
        money(events.PaymentDisputed, "stays", dispute="d-us", payment="p-us-2", credit_pico=str(5 * DOLLAR)),
        # Before its usage: or that would be booked in the default class first.
        money(events.PaymentSettled, "euro", payment="p-eu", credit_pico=str(9 * DOLLAR), jurisdiction="DE"),
    )
    await shop.send(
        *(shop.usage(w) for w in ("stays", "stays", "euro", "gone")),
        *shop.own_key("stays", 30_000),
    )
    retention = Coordinator(shop.mesh, shop.gateway, shop.runtime)
    case, subjects = new_case(), [("workspace", "gone"), ("account", "acc-gone")]
    await shop.gateway.send(shop.mesh.env, retention.tombstones(case, subjects))
    await shop.mesh.idle()
    await shop.gateway.send(shop.mesh.env, [await retention.order(case, subjects, ["billing"])])
    (receipt,) = await retention.receipts(case, 1)
    await shop.mesh.idle()
    return {each.table: each for each in receipt.treated}


@pytest.mark.promise(34)
@pytest.mark.promise(46)
async def test_a_years_books_end_as_a_whole_and_the_rest_verifies(shop: Shop) -> None:
    mesh = shop.mesh
    year = shop.clock.now().year
    receipt = await a_year(shop)
    ends, european = over_at("US", year), over_at("EU", year)
    assert receipt["journal"].retained.until == ends == receipt["carried"].retained.until

    # The last second in which the law wants them.
    await shop.sweep_at(ends - SECOND)
    assert len(await shop.there("US", year)) == 3
    assert await mesh.value("billing", "SELECT count(*) FROM journal WHERE workspace_id IS NOT NULL AND class = 'US'")
    before, balances, sums = await shop.proved(), await shop.balances(), await shop.sums()
    assert before["dropped_through_year"].get("US", 0) < year and before["booked_lines"] == 8
    debt = await mesh.value("billing", "SELECT sum(receivable_pico)::bigint FROM balance WHERE erased")
    assert debt == USED

    await shop.sweep_at(ends)
    assert await shop.there("US", year) == [] == await shop.there("OTHER", year)
    assert len(await shop.there("EU", year)) == 3, "the law of another class wants them longer"
    assert not await mesh.value("billing", "SELECT count(*) FROM journal WHERE class = 'US'")
    assert await shop.causes() == ["payment:p-eu"]
    for table, left in (
        ("purchase", 1),
        ("dispute", 0),
        ("credit_grant", 0),
        ("waiting_payment", 0),
        ("charged_record", 1),
    ):
        n = await mesh.value("billing", f"SELECT count(*) FROM {table}")
        assert (n >= left) if table == "charged_record" else n == left, table
    assert not await mesh.value("billing", "SELECT count(*) FROM period_total t WHERE class = 'US'")
    # Who was erased is no number any more, either; what was owed is nobody's.
    assert not await mesh.value("billing", "SELECT count(*) FROM balance WHERE erased")
    known = "SELECT count(*) FROM ledger_account a WHERE workspace_id NOT IN (SELECT workspace_id FROM balance)"
    assert not await mesh.value("billing", known)
    after = await shop.proved()
    assert after["dropped_through_year"] == {"US": year, "OTHER": year}
    same = ("charges_pico", "recomputed_pico", "booked_lines", "journals", "blocks", "ledger_sum_by_class_pico")
    assert {name: after[name] for name in same} == {name: before[name] for name in same}
    assert await shop.balances() == balances
    owed = {("US", "receivable"): -debt, ("US", "suspense_erased"): debt}
    expected = {key: pico for key in {*sums, *owed} if (pico := sums.get(key, 0) + owed.get(key, 0))}
    assert await shop.sums() == expected
    gone = await mesh.fetch(
        "billing", "SELECT partition, rows_estimate, bound FROM mesh_expiry WHERE partition IS NOT NULL"
    )
    receipts = {row["partition"]: row for row in gone}
    for root in ROOTS:
        assert receipts[f"{root}_us_{year}"]["bound"] == ends and f"{root}_eu_{year}" not in receipts

    # Business goes on, on the same chain; and what is over stays so.
    await mesh.fetch("billing", "SELECT billing_make_year($1)", ends.year)
    await shop.send(shop.usage("stays"), shop.money(events.PaymentSettled, "stays", payment="p-new", credit_pico="7"))
    await shop.sweep_at(ends + timedelta(hours=1))
    now = await shop.proved()
    assert now["booked_lines"] == after["booked_lines"] + 1 and now["blocks"]["US"] > after["blocks"]["US"]
    assert await shop.causes() == ["payment:p-eu", "payment:p-new"]

    # The other class's time comes, too; then nothing is left that belongs to none.
    await shop.sweep_at(european)
    assert await shop.there("EU", year) == []
    assert await shop.causes() == ["payment:p-new"]
    rows = await mesh.fetch("billing", "SELECT booking_year FROM charged_record")
    assert {row["booking_year"] for row in rows} == {ends.year}
    for table in ("byok_month", "byok_erased", "carried_byok"):
        assert not await mesh.value("billing", f"SELECT count(*) FROM {table}"), table
    end = await shop.proved()
    assert end["dropped_through_year"]["EU"] == year and end["charges_pico"] == now["charges_pico"]


@pytest.mark.promise(34)
@pytest.mark.promise(43)
async def test_only_the_owner_ends_a_year_and_only_by_a_checkpoint(shop: Shop) -> None:
    year = shop.clock.now().year
    await shop.send(
        shop.money(events.PaymentSettled, "stays", payment="p", credit_pico=str(DOLLAR)), shop.usage("stays")
    )
    own, owner = (shop.mesh.env[f"STEWARD_BILLING_{name}DATABASE_URL"] for name in ("", "OWNER_"))
    checkpoint = (
        """INSERT INTO checkpoint SELECT 'US', 2999, 0, prev, 0, 0, 0, 0, prev, prev, booked_at, '' FROM chain"""
    )
    async with connected(own) as db:
        for statement in (
            checkpoint,
            "INSERT INTO carried VALUES ('US', 1, 1)",
            "DELETE FROM carried",
            "DELETE FROM journal_cause",
            "DELETE FROM charged_record",
            f"ALTER TABLE journal_us DETACH PARTITION journal_us_{year}",
            f"DROP TABLE journal_us_{year}",
            f"TRUNCATE journal_us_{year}",
        ):
            with pytest.raises(asyncpg.InsufficientPrivilegeError):
                await db.execute(statement)
    async with connected(owner) as db:
        for table in ("journal_cause", "charged_record", "journal"):
            with pytest.raises(asyncpg.RestrictViolationError):
                await db.execute(f"DELETE FROM {table}")
    await shop.sweep_at(over_at("US", year))
    await shop.proved()
    # A sum that was carried forward is altered, and the altered books still sum to zero.
    async with connected(owner) as db:
        accounts = await db.fetch(
            """SELECT account FROM carried c JOIN ledger_account a ON a.id = c.account
               WHERE a.workspace_id IS NULL ORDER BY account LIMIT 2"""
        )
        for (account,), more in zip(accounts, (1, -1), strict=True):
            await db.execute("UPDATE carried SET amount_pico = amount_pico + $2 WHERE account = $1", account, more)
    verdict, _ = await prove(Sources.from_env(shop.mesh.env), shop.clock.now())
    assert any("checkpoint of class US" in sentence for sentence in verdict.errors), verdict
