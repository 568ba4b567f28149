"""Billing's handlers in real transactions on a real PostgreSQL. Kafka is not needed: batches are handed over."""

from __future__ import annotations

import asyncio
import hashlib
import io
import json
import os
import random
from collections import Counter
from collections.abc import AsyncIterator, Iterable, Iterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from decimal import Decimal
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit, urlunsplit

import asyncpg
import pytest

from deploy.local.databases import provision
from deploy.local.postgres import PostgresServer
from services.billing import app, charges, ledger
from services.billing.data_map import DATA_MAP
from shared.contract import events as e
from shared.contract import topics
from shared.contract.base import Event
from shared.contract.codec import Codec, build, validated
from shared.contract.ids import derived_id
from shared.contract.money import PICO, pico
from shared.mesh import partitions
from shared.mesh import store as mesh_store
from shared.mesh.http import NotFound, encode
from shared.mesh.migrate import migrate
from shared.mesh.service import Batch, Received
from shared.mesh.store import Connection, Pool
from shared.mesh.transaction import Transaction, rfc3339

NOW = datetime(2026, 11, 24, 12, tzinfo=UTC)
HOUR = int(NOW.timestamp()) // 3600
USAGE, PAYMENTS = Codec(topics.USAGE_RATED), Codec(topics.PAYMENTS)
TEMPLATE = "steward_billing"


@dataclass
class Server:
    """A running server with a migrated database to copy."""

    admin_url: str
    app_url: str
    copies: int = 0


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    folder = tmp_path_factory.mktemp("billing")
    postgres = PostgresServer(
        folder / "postgres",
        log=folder / "postgres.log",
        settings={"shared_buffers": "128MB", "fsync": "off"},
        lasting=False,
        die_with_parent=True,
    )

    async def start() -> dict[str, str]:
        await postgres.start()
        urls = await provision(postgres.admin_url, ["billing"], {})
        owner_url = urls["STEWARD_BILLING_OWNER_DATABASE_URL"]
        await migrate(owner_url, "billing", app.service.migrations)
        owner = await mesh_store.connect(owner_url, "test")
        for table in app.service.partitioned:
            for day in (NOW, NOW + timedelta(days=14)):
                await partitions.supply(owner, table, day)
        await owner.close()
        return urls

    try:
        urls = asyncio.run(start())
        yield Server(postgres.admin_url, urls["STEWARD_BILLING_DATABASE_URL"])
    finally:
        asyncio.run(postgres.stop("immediate"))
        postgres.remove()


class Room:
    """Billing on a database of its own; each call is one effect transaction."""

    def __init__(self, pool: Pool, admin: Connection) -> None:
        self.pool, self.admin = pool, admin
        self.now = NOW

    @asynccontextmanager
    async def transaction(self) -> AsyncIterator[Transaction]:
        async with self.pool.acquire() as db, db.transaction():
            tx = Transaction("billing", db, self.now)
            yield tx
            await tx.flush()

    async def usage(self, *records: bytes) -> None:
        """Hands over one batch of rated records."""
        async with self.transaction() as tx:
            await app.post_charges(batch(topics.USAGE_RATED, USAGE, records), tx)

    async def pay(self, *records: bytes) -> None:
        """Hands over one batch of payment events."""
        async with self.transaction() as tx:
            await app.post_payments(batch(topics.PAYMENTS, PAYMENTS, records), tx)

    async def run(self, job: str) -> None:
        """Runs a job."""
        async with self.transaction() as tx:
            await app.service.jobs[job][1](self.now, tx)

    async def read(self, name: str, **query: str) -> Any:
        """Answers a read as its HTTP port would."""
        async with self.transaction() as tx:
            return json.loads(encode(await app.service.read_handlers[name](query, tx)))

    async def counters(self) -> dict[str, int]:
        async with self.pool.acquire() as db:
            return await mesh_store.counters(db)

    async def balance(self, workspace: str) -> tuple[int, int, int]:
        """(purchased, granted, receivable)."""
        found = await self.read("balance", workspace=workspace)
        return int(found["purchased_pico"]), int(found["granted_pico"]), int(found["receivable_pico"])

    async def published(self) -> list[Any]:
        """Balance records in the outbox, in order, each held against the contract."""
        rows = await self.admin.fetch("SELECT key, value FROM mesh_outbox ORDER BY id")
        found = []
        for row in rows:
            event = json.loads(validated(e.BalanceChanged, bytes(row["value"])))
            assert bytes(row["key"]).decode() == event["data"]["workspace"] == event["subject"]
            found.append(event)
        return found

    async def check(self) -> None:
        """What must hold at any time: sums, replay, chain."""
        assert (
            await self.admin.fetchval(
                "SELECT count(*) FROM (SELECT FROM entry GROUP BY journal HAVING sum(amount_pico) <> 0)"
            )
            == 0
        )
        differing = await self.admin.fetch(
            """SELECT b.workspace_id FROM balance b
               LEFT JOIN (SELECT a.workspace_id, -sum(amount_pico) FILTER (WHERE kind = 'purchased') AS purchased,
                                 -sum(amount_pico) FILTER (WHERE kind = 'granted') AS granted,
                                 sum(amount_pico) FILTER (WHERE kind = 'receivable') AS receivable
                          FROM entry e JOIN ledger_account a ON a.id = e.account GROUP BY a.workspace_id) r
                      ON r.workspace_id = b.workspace_id
               LEFT JOIN (SELECT workspace_id, sum(remaining_pico) AS open FROM credit_grant GROUP BY workspace_id) g
                      ON g.workspace_id = b.workspace_id
               WHERE purchased_pico <> coalesce(purchased, 0) OR granted_pico <> coalesce(granted, 0)
                  OR receivable_pico <> coalesce(receivable, 0) OR granted_pico <> coalesce(open, 0)"""
        )
        assert differing == []
        assert await broken_blocks(self.admin) == []
        latest: dict[str, Any] = {}
        for event in await self.published():
            before = latest.get(event["subject"])
            assert before is None or before["data"]["version"] <= event["data"]["version"]
            latest[event["subject"]] = event
        for workspace, event in latest.items():
            found = await self.read("balance", workspace=workspace)
            assert {k: found[k] for k in event["data"]} == event["data"]


@pytest.fixture
async def room(server: Server) -> AsyncIterator[Room]:
    server.copies += 1
    name = f"billing_{server.copies}"
    admin = await asyncpg.connect(server.admin_url)
    await admin.execute(f"CREATE DATABASE {name} TEMPLATE {TEMPLATE}")
    await admin.close()
    pool = await mesh_store.open_pool(on(server.app_url, name), application="test")
    inside = await asyncpg.connect(on(server.admin_url, name))
    try:
        room = Room(pool, inside)
        yield room
        await room.check()
    finally:
        await inside.close()
        await pool.close()


def on(url: str, database: str) -> str:
    return urlunsplit(urlsplit(url)._replace(path=f"/{database}"))


def batch(topic: topics.Topic, codec: Codec, records: Iterable[bytes]) -> Batch:
    return Batch(topic, [Received(codec.decode(raw), None) for raw in records])


def line_id(at: datetime, n: int) -> str:
    return f"{(ledger.microseconds(at) // 1000 << 80) | n:032x}"


def line(
    n: int, amount: int, *, at: datetime = NOW, terms: str = "list", quantities: dict[str, int] | None = None
) -> list[Any]:
    hour = ledger.microseconds(at) // 3_600_000_000
    return [line_id(at, n), hour, "v1", "standard", terms, quantities or {"input": 10, "output": n + 1}, str(amount)]


def rated(name: str, *units: tuple[str, list[list[Any]]], account: str = "acc", at: datetime = NOW) -> bytes:
    return build(
        e.UsageRated,
        id=derived_id(ledger.microseconds(at) // 1000, "rated", name),
        source="metering",
        subject="metering",
        time=rfc3339(at),
        data={"units": [{"workspace": w, "account": account, "lines": lines} for w, lines in units]},
    )


def paid(model: type[Event], workspace: str, name: str, at: datetime = NOW, **data: Any) -> bytes:
    return validated(
        model,
        build(
            model,
            id=derived_id(ledger.microseconds(at) // 1000, model.TYPE, name),
            source="gateway",
            subject=workspace,
            time=rfc3339(at),
            data={"account": "acc", "workspace": workspace, **data},
        ),
    )


def settled(workspace: str, payment: str, usd: str, **data: Any) -> bytes:
    return paid(e.PaymentSettled, workspace, payment, payment=payment, credit_pico=str(pico(usd)), **data)


def refunded(workspace: str, refund: str, payment: str, usd: str) -> bytes:
    return paid(e.PaymentRefunded, workspace, refund, refund=refund, payment=payment, credit_pico=str(pico(usd)))


async def broken_blocks(db: Connection) -> list[tuple[str, int]]:
    """Recomputes the chains from the tables, with nothing but JSON, COPY and SHA-256."""

    def digest(value: Any) -> bytes:
        return hashlib.sha256(json.dumps(value, separators=(",", ":"), ensure_ascii=False).encode()).digest()

    def micros(at: datetime) -> int:
        return (at - datetime(1970, 1, 1, tzinfo=UTC)) // timedelta(microseconds=1)

    async def lines_digest(journal: int) -> bytes:
        # What COPY writes, but for its header and trailer.
        copied = io.BytesIO()
        await db.copy_from_query(
            """SELECT record, line, amount_pico, list_pico, quantities, hour, price_version, tier, terms, workspace_id,
                      journal, class, booking_year FROM charge_line WHERE journal = $1 ORDER BY record, line""",
            journal, output=copied, format="binary",
        )  # fmt: skip
        return hashlib.sha256(copied.getvalue()[19:-2]).digest()

    entries: dict[int, list[list[Any]]] = {}
    for row in await db.fetch("SELECT journal, account, amount_pico FROM entry ORDER BY journal, account"):
        entries.setdefault(row["journal"], []).append([row["account"], f"{row['amount_pico']:f}"])
    journals: dict[tuple[str, int], list[list[Any]]] = {}
    broken = []
    for j in await db.fetch("SELECT * FROM journal ORDER BY class, id"):
        if j["lines_digest"] is not None and await lines_digest(j["id"]) != j["lines_digest"]:
            broken.append((j["class"], j["block"]))
        journals.setdefault((j["class"], j["block"]), []).append(
            [
                j["id"], j["booking_year"], j["cause"], j["kind"], j["workspace_id"], j["period"], micros(j["booked_at"]),
                micros(j["event_at"]), j["adjusts_period"], j["lines_digest"] and j["lines_digest"].hex(),
                entries.get(j["id"], []),
            ]
        )  # fmt: skip
    previous: dict[str, bytes] = {}
    for block in await db.fetch("SELECT * FROM chain ORDER BY class, block"):
        key = block["class"], block["block"]
        before = previous.get(block["class"], bytes(32))
        found = journals.pop(key, [])
        content = [block["class"], block["block"], before.hex(), micros(block["booked_at"]), found]
        if block["prev"] != before or digest(content) != block["hash"] or len(found) != block["journals"]:
            broken.append(key)
        previous[block["class"]] = block["hash"]
    for head in await db.fetch("SELECT * FROM chain_head"):
        if previous.get(head["class"], bytes(32)) != head["hash"]:
            broken.append((head["class"], head["block"]))
    return broken + list(journals)


# --- usage -------------------------------------------------------------------------------------------------------


async def test_usage_burns_credit_and_is_published(room: Room) -> None:
    await room.pay(settled("w", "p", "10"))
    await room.usage(rated("r", ("w", [line(1, 3 * PICO), line(2, 2 * PICO)]), ("other", [line(3, PICO)])))
    assert await room.balance("w") == (5 * PICO, 0, 0)
    assert await room.balance("other") == (0, 0, PICO)
    data = [event["data"] for event in await room.published()]
    assert [(d["workspace"], d["version"], d["balance_pico"]) for d in data] == [
        ("w", 1, str(10 * PICO)),
        ("w", 2, str(5 * PICO)),
        ("other", 1, str(-PICO)),
    ]
    kinds = (await room.read("ledger"))["US"]
    assert kinds["sum_pico"] == "0"
    assert kinds["kinds"]["fees"] == str(-pico("0.80"))
    assert kinds["kinds"]["payment_clearing"] == str(pico("10.80"))
    assert kinds["kinds"]["revenue"] == str(-6 * PICO)


async def test_repeats_change_nothing_and_another_amount_is_a_conflict(room: Room) -> None:
    first = rated("r1", ("w", [line(1, 100), line(1, 100), line(2, 200)]))
    again = rated("r2", ("w", [line(2, 200), line(1, 101), line(3, 300)]))
    await room.usage(first)
    await room.usage(first)
    await room.usage(again, first)
    assert await room.balance("w") == (0, 0, 600)
    counters = await room.counters()
    assert (counters["booked"], counters["line_duplicates"], counters["conflicts"]) == (3, 9, 1)
    assert len(await room.published()) == 2


async def test_a_charge_that_fails_amid_the_lines_leaves_nothing(room: Room, monkeypatch: pytest.MonkeyPatch) -> None:
    """Journals are made while lines are being written: a failure there ends the COPY, not the connection."""
    batch_of = [rated("r", ("v", [line(1, 5)]), ("w", [line(2, 7)])), rated("s", ("w", [line(3, 9)]))]

    def fail(balances: ledger.Balances, amount_pico: int) -> ledger.Movement:
        if amount_pico == 16:
            raise ledger.Unbalanced("as a bug would")
        return ledger.charge(balances, amount_pico)

    with monkeypatch.context() as patched:
        patched.setattr(charges, "charge", fail)
        with pytest.raises(ledger.Unbalanced, match="as a bug would"):
            await room.usage(*batch_of)
    assert await room.admin.fetchval("SELECT count(*) FROM charge_line") == 0
    await room.usage(*batch_of)
    assert await room.balance("w") == (0, 0, 16)


@pytest.mark.parametrize("order", range(3))
async def test_other_batch_boundaries_give_the_same_balances(room: Room, order: int) -> None:
    rng = random.Random(order)
    records, expected = [], Counter[str]()
    n = 0
    for r in range(12):
        units: dict[str, list[list[Any]]] = {}
        for _ in range(20):
            workspace, amount = f"w{rng.randrange(6)}", rng.randrange(0, PICO)
            expected[workspace] += amount
            units.setdefault(workspace, []).append(line(n, amount, at=NOW - timedelta(hours=rng.randrange(30))))
            n += 1
        records.append(rated(f"r{r}", *units.items()))
    await room.pay(*(settled(f"w{k}", f"p{k}", "7") for k in range(6)))
    for _ in range(3):
        start = 0
        while start < len(records):
            size = rng.randrange(1, 6)
            await room.usage(*rng.sample(records[start : start + size], len(records[start : start + size])))
            start += max(1, size - 1)
    for workspace, used in expected.items():
        left = 7 * PICO - used
        assert await room.balance(workspace) == (max(left, 0), 0, max(-left, 0))
    assert await room.admin.fetchval("SELECT count(*) FROM charge_line") == n
    assert await room.admin.fetchval("SELECT sum(amount_pico) FROM charge_line") == sum(expected.values())


async def test_two_transactions_with_the_same_line_book_it_once(room: Room) -> None:
    one = rated("r1", ("w", [line(1, 100), line(2, 200)]))
    two = rated("r2", ("w", [line(2, 200), line(3, 300)]), ("v", [line(4, 1)]))
    async with room.pool.acquire() as db:
        transaction = db.transaction()
        await transaction.start()
        tx = Transaction("billing", db, NOW)
        await app.post_charges(batch(topics.USAGE_RATED, USAGE, [one]), tx)
        await tx.flush()
        # The second one looks, sees nothing, and has to wait at the key of line 2.
        other = asyncio.create_task(room.usage(two))
        await waits_for_lock(room)
        await transaction.commit()
    await other
    assert await room.balance("w") == (0, 0, 600)
    assert (await room.counters())["line_duplicates"] == 1


async def test_two_transactions_on_one_workspace_lose_nothing(room: Room) -> None:
    await room.pay(settled("w", "p", "10"))
    async with room.pool.acquire() as db:
        transaction = db.transaction()
        await transaction.start()
        tx = Transaction("billing", db, NOW)
        await app.post_charges(batch(topics.USAGE_RATED, USAGE, [rated("r1", ("w", [line(1, PICO)]))]), tx)
        await tx.flush()
        others = [
            asyncio.create_task(room.usage(rated("r2", ("w", [line(2, 2 * PICO)])))),
            asyncio.create_task(room.pay(settled("w", "p2", "5"))),
        ]
        await waits_for_lock(room)
        await transaction.commit()
    await asyncio.gather(*others)
    assert await room.balance("w") == (12 * PICO, 0, 0)


async def waits_for_lock(room: Room) -> None:
    """Until a transaction stands before another one's lock. Raises TimeoutError when none does."""
    async with asyncio.timeout(20):
        while not await room.admin.fetchval("SELECT count(*) FROM pg_stat_activity WHERE wait_event_type = 'Lock'"):
            await asyncio.sleep(0)


async def test_lines_older_than_the_window_are_booked_once_too(room: Room) -> None:
    old = NOW - timedelta(days=40)
    released = rated("r1", ("w", [line(1, 100, at=old), line(2, 200)]))
    await room.usage(released)
    await room.usage(released, rated("r2", ("w", [line(1, 100, at=old)])))
    assert await room.balance("w") == (0, 0, 300)
    # A record that comes again after its lines' day was dropped is known by its place in the books.
    room.now += timedelta(days=11)
    await room.run("forget-late-lines")
    assert await room.admin.fetchval("SELECT count(*) FROM line_late") == 0
    await room.admin.execute("DELETE FROM line_seen")
    await room.usage(released)
    assert await room.balance("w") == (0, 0, 300)
    assert await room.admin.fetchval("SELECT count(*) FROM charge_line") == 2


async def test_a_record_is_booked_once_even_if_its_lines_were_forgotten(room: Room) -> None:
    """The backstop: should de-duplication fail, nothing is booked, and the record becomes a dead letter."""
    await room.usage(rated("r1", ("w", [line(1, 100)]), ("v", [line(2, 200)])))
    await room.admin.execute("DELETE FROM line_seen")
    with pytest.raises(asyncpg.UniqueViolationError, match="charged_record"):
        await room.usage(rated("r2", ("w", [line(3, 1)])), rated("r1", ("w", [line(1, 100)]), ("v", [line(2, 200)])))
    assert await room.admin.fetchval("SELECT count(*) FROM charge_line") == 2
    assert await room.balance("w") == (0, 0, 100)
    assert await room.balance("v") == (0, 0, 200)


async def test_free_usage_has_a_line_and_no_entry(room: Room) -> None:
    await room.usage(rated("r", ("w", [line(1, 0), line(2, 0)])))
    assert await room.balance("w") == (0, 0, 0)
    assert await room.published() == []
    found = await room.read("journal", record=derived_id(ledger.microseconds(NOW) // 1000, "rated", "r"), line="1")
    assert found["journal"]["entries"] == []


async def test_own_key_usage_pays_a_fee_above_the_allowance_whatever_the_workspace(room: Room) -> None:
    await room.usage(rated("r1", ("w", [line(1, 24_999 * PICO, terms="byok")])))
    assert await room.balance("w") == (0, 0, 0)
    await room.usage(
        rated("r2", ("w", [line(2, 2 * PICO, terms="byok")]), ("v", [line(3, 4 * PICO, terms="byok"), line(4, 5)]))
    )
    found = await room.read("balance", workspace="w")
    assert found["byok"]["list_pico"] == str(25_005 * PICO)
    assert found["byok"]["fee_pico"] == str(PICO // 4)
    owed = [await room.balance(workspace) for workspace in ("v", "w")]
    assert sum(b[2] for b in owed) == PICO // 4 + 5


async def test_corrections_are_netted(room: Room) -> None:
    await room.pay(settled("w", "p", "10"))
    await room.usage(rated("r1", ("w", [line(1, 4 * PICO)])))
    await room.usage(rated("r2", ("w", [line(2, -4 * PICO, quantities={"input": -10}), line(3, PICO)])))
    assert await room.balance("w") == (9 * PICO, 0, 0)


async def test_explain_leads_from_a_record_to_the_block(room: Room) -> None:
    await room.usage(rated("r", ("v", [line(1, 5)]), ("w", [line(2, 7, quantities={"input": 3, "cache_read": 4})])))
    record = derived_id(ledger.microseconds(NOW) // 1000, "rated", "r")
    found = await room.read("journal", record=record, line="1")
    assert found["line"]["amount_pico"] == "7"
    assert json.loads(found["line"]["quantities"]) == {"input": 3, "cache_read": 4}
    assert [(x["kind"], x["amount_pico"]) for x in found["journal"]["entries"]] == [
        ("revenue", "-7"),
        ("receivable", "7"),
    ]
    assert found["journal"]["cause"].startswith(f"usage:{record}:")
    head = await room.admin.fetchrow("SELECT * FROM chain_head WHERE class = 'US'")
    assert head is not None
    assert (found["block"]["block"], found["block"]["hash"]) == (head["block"], head["hash"].hex())
    with pytest.raises(NotFound):
        await room.read("journal", record=record, line="2")


# --- periods -----------------------------------------------------------------------------------------------------


async def test_usage_of_a_closed_period_is_an_adjustment_that_names_it(room: Room) -> None:
    november, december = NOW, datetime(2026, 12, 5, tzinfo=UTC)
    await room.usage(rated("r1", ("w", [line(1, 100)]), ("v", [line(2, 10)])))
    room.now = datetime(2026, 12, 3, 23, 59, tzinfo=UTC)
    await room.run("close-periods")
    await room.usage(rated("r2", ("w", [line(3, 200, at=november)])))  # late, but the period is still open
    room.now = datetime(2026, 12, 4, tzinfo=UTC)
    await room.run("close-periods")
    await room.usage(rated("r3", ("w", [line(4, 400, at=november), line(5, 1000, at=december)])))
    journals = await room.admin.fetch("SELECT period, adjusts_period FROM journal ORDER BY id")
    assert [tuple(j) for j in journals][-2:] == [("2026-11", "2026-11"), ("2026-12", None)]
    room.now = datetime(2027, 1, 4, 1, tzinfo=UTC)
    await room.run("close-periods")
    totals = await room.admin.fetch(
        """SELECT t.period, r.workspace, charged_pico::bigint, adjusted_pico::bigint FROM period_total t
           JOIN workspace_ref r ON r.id = t.workspace_id ORDER BY t.period, r.workspace"""
    )
    assert [tuple(t) for t in totals] == [
        ("2026-11", "v", 10, 0),
        ("2026-11", "w", 300, 0),
        ("2026-12", "w", 1000, 400),
    ]
    found = await room.read("periods")
    assert [(p["period"], p["charged_pico"], p["adjusted_pico"]) for p in found] == [
        ("2026-11", "310", "0"),
        ("2026-12", "1000", "400"),
    ]
    assert await room.balance("w") == (0, 0, 1700)


async def test_a_period_does_not_close_under_a_booking(room: Room) -> None:
    async with room.pool.acquire() as db:
        transaction = db.transaction()
        await transaction.start()
        tx = Transaction("billing", db, NOW)
        await app.post_charges(batch(topics.USAGE_RATED, USAGE, [rated("r1", ("w", [line(1, 100)]))]), tx)
        await tx.flush()
        await transaction.commit()
        transaction = db.transaction()
        await transaction.start()
        room.now = tx.now = datetime(2026, 12, 5, tzinfo=UTC)
        tx = Transaction("billing", db, room.now)
        await app.post_charges(batch(topics.USAGE_RATED, USAGE, [rated("r2", ("w", [line(2, 10)]))]), tx)
        await tx.flush()
        closing = asyncio.create_task(room.run("close-periods"))
        await waits_for_lock(room)
        await transaction.commit()
    await closing
    assert await room.admin.fetchval("SELECT sum(charged_pico) FROM period_total") == 110


# --- payments ----------------------------------------------------------------------------------------------------


async def test_payments_are_booked_once(room: Room) -> None:
    events = [
        settled("w", "p1", "20"),
        paid(e.CreditGranted, "w", "g", grant="g", credit_pico=str(PICO), priority=3),
        refunded("w", "r", "p1", "5"),
        paid(e.BalanceOpened, "v", "o", credit_pico=str(-2 * PICO)),
        paid(e.NoteAdded, "w", "n", note="n", text="sealed:v1:k:" + "a" * 43 + ":" + "b" * 30),
    ]
    await room.pay(*events)
    await room.pay(*events, settled("w", "p1", "21"))
    assert await room.balance("w") == (15 * PICO, PICO, 0)
    assert await room.balance("v") == (0, 0, 2 * PICO)
    counters = await room.counters()
    assert {k: v for k, v in counters.items() if k.startswith("payments")} == {
        "payments_created": 5,
        "payments_exists": 5,
        "payments_conflict": 1,
    }
    assert await room.admin.fetchval("SELECT count(*) FROM note") == 1


async def test_a_refund_before_its_purchase_waits_a_day_and_is_then_suspense(room: Room) -> None:
    await room.pay(refunded("w", "r1", "p1", "5"), refunded("w", "r2", "p2", "3"))
    assert [row["state"] for row in await room.read("waiting")] == ["waiting", "waiting"]
    await room.pay(settled("w", "p1", "20"))
    assert await room.balance("w") == (15 * PICO, 0, 0)
    room.now += timedelta(hours=23)
    await room.run("settle-waiting")
    assert [row["state"] for row in await room.read("waiting")] == ["waiting"]
    room.now += timedelta(hours=1)
    await room.run("settle-waiting")
    await room.run("settle-waiting")
    assert [(row["cause"], row["state"]) for row in await room.read("waiting")] == [("refund:r2", "suspense")]
    assert (await room.read("ledger"))["US"]["kinds"]["suspense"] == str(3 * PICO)
    await room.pay(refunded("w", "r2", "p2", "3"))
    await room.pay(settled("w", "p2", "10"))
    assert await room.read("waiting") == []
    assert await room.balance("w") == (22 * PICO, 0, 0)
    assert (await room.read("ledger"))["US"]["kinds"]["suspense"] == "0"


async def test_disputes(room: Room) -> None:
    def disputed(dispute: str, payment: str) -> bytes:
        return paid(e.PaymentDisputed, "w", dispute, dispute=dispute, payment=payment, credit_pico=str(10 * PICO))

    def ended(dispute: str, payment: str, outcome: str) -> bytes:
        return paid(e.DisputeClosed, "w", f"{dispute}-end", dispute=dispute, payment=payment, outcome=outcome)

    await room.pay(settled("w", "p1", "10"), settled("w", "p2", "10"))
    await room.usage(rated("r", ("w", [line(1, 4 * PICO)])))
    await room.pay(disputed("d1", "p1"), disputed("d2", "p2"))
    assert await room.balance("w") == (0, 0, 4 * PICO)
    await room.pay(ended("d1", "p1", "won"))
    await room.pay(ended("d2", "p2", "lost"), ended("d1", "p1", "won"))
    assert await room.balance("w") == (6 * PICO, 0, 0)
    await room.pay(ended("d3", "p3", "won"), disputed("d3", "p3"))
    await room.pay(settled("w", "p3", "10"))
    assert await room.balance("w") == (16 * PICO, 0, 0)
    states = await room.admin.fetch("SELECT dispute, state FROM dispute ORDER BY dispute")
    assert [tuple(s) for s in states] == [("d1", "won"), ("d2", "lost"), ("d3", "won")]


async def test_grants_burn_in_turn_and_expire(room: Room) -> None:
    def granted(name: str, hours: int | None, priority: int) -> bytes:
        until: dict[str, Any] = {} if hours is None else {"expires_at": rfc3339(NOW + timedelta(hours=hours))}
        return paid(e.CreditGranted, "w", name, grant=name, credit_pico=str(PICO), priority=priority, **until)

    await room.pay(settled("w", "p", "10"), granted("a", 5, 100), granted("b", 3, 100), granted("c", None, 1))
    await room.usage(rated("r", ("w", [line(1, 3 * PICO // 2)])))
    found = await room.read("balance", workspace="w")
    assert [(g["grant"], g["remaining_pico"]) for g in found["grants"]] == [("b", str(PICO // 2)), ("a", str(PICO))]
    room.now += timedelta(hours=3)
    await room.run("expire-grants")
    assert await room.balance("w") == (10 * PICO, PICO, 0)
    # A grant that is over is not burned, though its job has not come yet.
    room.now += timedelta(hours=2)
    await room.usage(rated("r2", ("w", [line(2, PICO)])))
    assert await room.balance("w") == (9 * PICO, 0, 0)
    await room.run("expire-grants")
    kinds = (await room.read("ledger"))["US"]["kinds"]
    assert kinds["breakage"] == str(-3 * PICO // 2)


async def test_usage_before_the_first_payment_moves_to_the_stated_class(room: Room) -> None:
    await room.usage(rated("r", ("w", [line(1, 3 * PICO)])))
    await room.pay(settled("w", "p", "10", jurisdiction="FR"))
    assert await room.balance("w") == (7 * PICO, 0, 0)
    await room.usage(rated("r2", ("w", [line(2, PICO)])))
    found = await room.read("ledger")
    assert (found["US"]["kinds"]["opening"], found["EU"]["kinds"]["opening"]) == (str(3 * PICO), str(-3 * PICO))
    assert {c: found[c]["sum_pico"] for c in found} == {"US": "0", "EU": "0", "OTHER": "0"}
    assert found["EU"]["kinds"]["revenue"] == str(-PICO)
    assert (await room.read("balance", workspace="w"))["class"] == "EU"


async def test_balances_are_published_again_as_they_are(room: Room) -> None:
    await room.pay(settled("a", "p1", "10"), settled("b", "p2", "20"))
    before = await room.published()
    room.now += timedelta(hours=1)
    await room.run("republish-balances")
    assert (await room.published())[2:] == before
    await room.run("republish-balances")  # the round is through, and the next one begins an hour after it began
    assert len(await room.published()) == 4
    room.now += timedelta(hours=1)
    await room.run("republish-balances")
    assert len(await room.published()) == 6


# --- lessons -----------------------------------------------------------------------------------------------------

LESSONS = Path(app.__file__).with_name("examples")


async def test_the_lessons_say_what_the_database_answers(room: Room) -> None:
    """`STEWARD_WRITE_LESSONS=1` writes the answers down anew."""

    def granted(name: str, usd: str, priority: int) -> bytes:
        return paid(e.CreditGranted, "acme", name, grant=name, credit_pico=str(pico(usd)), priority=priority)

    await room.pay(settled("acme", "p1", "10"), granted("g1", "2", 100), granted("g2", "1", 1))
    await room.usage(rated("r1", ("acme", [line(1, pico("1.50"))])))
    await room.usage(rated("r2", ("acme", [line(2, pico("3")), line(3, pico("1"))])))
    for lesson in sorted(LESSONS.glob("*.sql")):
        if lesson.name == "03_refund.sql":
            await room.pay(refunded("acme", "f1", "p1", "9"))
        rows = await room.admin.fetch(lesson.read_text(encoding="utf-8"))
        table = [list(rows[0].keys()), *([shown(value) for value in row] for row in rows)]
        widths = [max(len(row[n]) for row in table) for n in range(len(table[0]))]
        answer = "".join(
            " | ".join(value.ljust(width) for value, width in zip(row, widths, strict=True)).rstrip() + "\n"
            for row in table
        )
        written = lesson.with_suffix(".out")
        if os.environ.get("STEWARD_WRITE_LESSONS"):
            written.write_text(answer, encoding="utf-8")
        assert written.read_text(encoding="utf-8") == answer


def shown(value: Any) -> str:
    return f"{value:f}" if isinstance(value, Decimal) else str(value)


# --- what the database itself refuses ----------------------------------------------------------------------------

LEDGER = ("journal", "entry", "charge_line", "charged_record", "journal_cause", "chain")


@pytest.mark.promise(43)
async def test_the_books_only_grow(room: Room) -> None:
    await room.usage(rated("r", ("w", [line(1, 5)])))
    await room.pay(settled("w", "p", "10"))
    for table in LEDGER:
        await only_grows(room, table)


async def only_grows(room: Room, table: str) -> None:
    part = f"{table}_us_2026" if table in LEDGER[:3] else table
    columns = {
        "journal": "kind", "entry": "account", "charge_line": "hour", "charged_record": "record", "chain": "journals",
    }  # fmt: skip
    column = columns.get(table, "journal")
    for statement in (
        f"UPDATE {table} SET {column} = {column}",
        f"UPDATE {part} SET {column} = {column}",
        f"DELETE FROM {table}",
        f"DELETE FROM {part}",
        f"TRUNCATE {table}",
    ):
        with pytest.raises(asyncpg.InsufficientPrivilegeError):
            await refused(room.pool, statement)
        if statement.startswith("TRUNCATE") and part != table:
            continue
        with pytest.raises(asyncpg.RestrictViolationError):
            await room.admin.execute(statement)
    if part != table:
        await room.admin.execute("BEGIN")
        await room.admin.execute(f"DROP TABLE {part}")  # a year whose time is over
        await room.admin.execute("ROLLBACK")


async def refused(pool: Pool, statement: str) -> None:
    async with pool.acquire() as db:
        await db.execute(statement)


async def test_entries_that_do_not_sum_to_zero_are_refused(room: Room) -> None:
    for table in ("entry", "entry_us_2026"):
        with pytest.raises(asyncpg.CheckViolationError):
            await refused(
                room.pool,
                f"INSERT INTO {table} VALUES (1, 'US', 2026, 1, 5), (1, 'US', 2026, 2, -4), (2, 'US', 2026, 1, -1)",
            )


TAMPERING = (
    "UPDATE charge_line SET amount_pico = 4, list_pico = 4 WHERE line = 0",
    "UPDATE charge_line SET quantities = '{\"input\":11}'",
    "UPDATE entry SET amount_pico = amount_pico * 2",
    "UPDATE journal SET workspace_id = 99",
    "UPDATE journal SET event_at = event_at + interval '1 second'",
    "DELETE FROM charge_line WHERE line = 1",
    "DELETE FROM journal WHERE id = 1",
    "DELETE FROM chain WHERE block = 1",
    "INSERT INTO entry VALUES (1, 'US', 2026, 98, 5), (1, 'US', 2026, 99, -5)",
)


@pytest.mark.promise(18)
async def test_an_altered_row_is_seen_in_the_chain(room: Room) -> None:
    await room.usage(rated("r1", ("w", [line(1, 5), line(2, 6)])))
    await room.usage(rated("r2", ("w", [line(3, 7)])))
    assert await broken_blocks(room.admin) == []
    for statement in TAMPERING:
        await room.admin.execute("BEGIN")
        await room.admin.execute("SET LOCAL session_replication_role = replica")
        await room.admin.execute(statement)
        assert await broken_blocks(room.admin) != [], statement
        await room.admin.execute("ROLLBACK")


async def test_the_data_map_is_the_live_catalogue(room: Room) -> None:
    rows = await room.admin.fetch(
        """SELECT c.relname, a.attname FROM pg_class c JOIN pg_attribute a ON a.attrelid = c.oid
           WHERE c.relnamespace = 'public'::regnamespace AND c.relkind IN ('r', 'p') AND NOT c.relispartition
             AND a.attnum > 0 AND NOT a.attisdropped AND c.relname NOT LIKE 'mesh%'"""
    )
    assert {tuple(row) for row in rows} == {(column.table, column.column) for column in DATA_MAP}


def test_numbers_in_the_readme_are_those_of_the_code() -> None:
    text = Path(app.__file__).with_name("README.md").read_text(encoding="utf-8")
    config = app.CONFIG
    for number in (
        f"{config.purchase_fee_rate * 100}".replace("11/2", "5.5") + " %",
        f"${config.purchase_fee_min_pico // 10**10 / 100:.2f}",
        f"${config.byok_allowance_pico // PICO:,}",
        f"{int(config.close_after.total_seconds()) // 3600} h",
        f"{int(config.wait.total_seconds()) // 3600} h",
    ):
        assert number in text
