"""The proof on real servers: it holds on what was booked, and says what is wrong once somebody has touched it."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from typing import Any

import asyncpg
import pytest

from deploy.local.databases import with_login
from services.audit import app as audit
from services.audit import store
from services.audit.app import Manners, Sources, make_service, prove
from services.audit.conservation import Verdict
from shared.contract import events, topics
from shared.mesh import metrics
from tests.support.gateway import Gateway, Sent, body
from tests.support.world import Mesh

NOW = datetime(2026, 1, 1, tzinfo=UTC)
HUGE = 9 * 10**9  # input tokens: 9,000 dollars in the test model


def correction(gateway: Gateway, original: Sent, **changes: Any) -> Sent:
    """What an earlier generation should have said."""
    said = body(original)
    data = said["data"] | {"original": said["id"], "reason": "wrong_usage"} | changes
    at_ms = int(datetime.fromisoformat(said["time"]).timestamp() * 1000)
    return gateway.event(topics.GENERATIONS, events.UsageCorrected, data, key=said["id"], at_ms=at_ms)


def unlike(gateway: Gateway) -> tuple[list[Sent], list[Sent]]:
    """Generations under every rule, and corrections of some of them."""
    plain = gateway.generation("ws-1", counted=False)
    hit = gateway.generation("ws-1", counted=False, outcome="cache_hit")
    shared = gateway.generation(
        "ws-2", counted=False, data_sharing=True, tokens={"input": 7, "output": 1}, input_tokens=7, output_tokens=1
    )
    failed = gateway.generation("ws-2", counted=False, outcome="failed")
    owns = [
        gateway.generation(f"own-{n}", counted=False, byok=True, account="acc-own", input_tokens=HUGE + n,
                           output_tokens=n, tokens={"input": HUGE + n, "output": n})
        for n in (3, 4, 5, 6)
    ]  # fmt: skip
    unknown = gateway.generation("ws-7", counted=False, model="nobody-knows-it")
    no_log = gateway.generation("ws-8", counted=False, log_retention_days=0)
    less = {"input_tokens": 1, "output_tokens": 0, "tokens": {"input": 1}}
    return (
        [plain, hit, shared, failed, *owns, unknown, no_log, plain],
        [
            correction(gateway, plain, **less),
            correction(gateway, hit, outcome="completed", **less),
            correction(gateway, shared, **less),
            correction(gateway, owns[0], **less),
            correction(gateway, no_log, log_retention_days=0),
        ],
    )


async def priced(mesh: Mesh, seed: int) -> Gateway:
    """A gateway whose price metering knows, and whose workspaces have bought credit."""
    gateway = Gateway(seed)
    await gateway.send(mesh.env, [gateway.price(), *(gateway.payment(f"ws-{n}", 5) for n in range(10))])
    await mesh.start("metering")
    await mesh.owned()
    await mesh.idle()
    return gateway


async def some_books(mesh: Mesh, seed: int) -> Gateway:
    """Books with something of everything, at rest."""
    gateway = await priced(mesh, seed)
    await mesh.start("billing")
    originals, corrections = unlike(gateway)
    broken = Sent(topics.GENERATIONS, b"x", b"not an event", [])
    await gateway.send(mesh.env, [*gateway.some(200), *originals, broken])
    await mesh.owned()
    await mesh.idle()
    await gateway.send(mesh.env, corrections)
    await mesh.idle()
    return gateway


async def check(mesh: Mesh, *, same_words: bool = True) -> dict[str, Any]:
    """The whole proof, as `steward check` prints it; in slices of one journal it must come to the same."""
    verdict, _ = await prove(Sources.from_env(mesh.env), NOW)
    slowly, _ = await prove(Sources.from_env(mesh.env), NOW, manners=Manners(journals=1, most=1))
    assert slowly.ok == verdict.ok
    if same_words:
        assert slowly.figures == verdict.figures and sorted(slowly.errors) == sorted(verdict.errors)
    return verdict.as_dict()


async def test_the_proof_holds_while_the_mesh_works(mesh: Mesh, seed: int) -> None:
    gateway = await priced(mesh, seed)
    await gateway.send(mesh.env, gateway.some(2_000))
    verdict, replay = await prove(Sources.from_env(mesh.env), NOW)
    assert verdict.ok, verdict
    await mesh.idle()
    # All is rated, nothing booked: everything is in flight, in the topic.
    verdict, replay = await prove(Sources.from_env(mesh.env), NOW, replay)
    assert verdict.ok, verdict
    assert (verdict.figures["booked_lines"], verdict.figures["in_flight"]) == (0, 2_000)
    billing = await mesh.start("billing")
    while not (await billing.idle())["idle"]:
        verdict, replay = await prove(Sources.from_env(mesh.env), NOW, replay)
        assert verdict.ok, verdict
    await mesh.idle()
    verdict, _ = await prove(Sources.from_env(mesh.env), NOW, replay)
    said = await check(mesh)
    assert verdict.as_dict() == said, "increments and the whole proof come to the same"
    assert said["ok"], said
    assert (said["emitted"], said["rated"]) == (gateway.records, 2_000)
    assert said["duplicates"] == gateway.records - 2_000
    assert said["booked_lines"] == said["rated_lines"] == 2_000
    assert said["charges_pico"] == said["recomputed_pico"] == str(sum(gateway.charges.values()))
    assert said["ledger_sum_pico"] == "0"
    assert said["balances_equal_replay"] and said["chain_ok"]
    assert (said["missing"], said["in_flight"], said["warnings"]) == (0, 0, [])


async def test_the_proof_holds_for_every_rule_and_for_corrections(mesh: Mesh, seed: int) -> None:
    gateway = await some_books(mesh, seed)
    said = await check(mesh)
    assert said["ok"], said
    assert said["emitted"] == gateway.records
    assert said["by_reason"] == {
        "quarantined": {"unknown_model": 1},
        "dead_lettered": {"malformed": 1},
    }
    assert said["reversed_lines"] == 5
    assert said["booked_lines"] == said["rated"] + 5
    fees = await mesh.value("billing", "SELECT sum(amount_pico) FROM charge_line WHERE terms = 'byok'")
    listed = 3 * HUGE * 10**6 + sum((4 + 5 + 6) * price for price in (10**6, 3 * 10**6)) + 10**6
    assert fees == (listed - 25_000 * 10**12) * 5 // 100 > 0
    # Its source numbered one event more than came as one: the malformed record had no number.
    assert said["missing"] == 0


# What somebody with all rights might do to the books, what undoes it, and what the proof must say.
TAMPERING: dict[str, tuple[str, str, str, str]] = {
    "a line costs more": (
        "billing",
        "UPDATE charge_line SET amount_pico = amount_pico + 1, list_pico = list_pico + 1 WHERE line = 0 AND terms = 'list'",
        "UPDATE charge_line SET amount_pico = amount_pico - 1, list_pico = list_pico - 1 WHERE line = 0 AND terms = 'list'",
        "recomputed",
    ),
    "a line counts other tokens": (
        "billing",
        """UPDATE charge_line SET quantities = replace(quantities::text, '{', '{ ')::json""",
        """UPDATE charge_line SET quantities = replace(quantities::text, '{ ', '{')::json""",
        "are not those that were sealed",
    ),
    "a line is used in another month": (
        "billing",
        "UPDATE charge_line SET hour = hour - 24 * 40",
        "UPDATE charge_line SET hour = hour + 24 * 40",
        "booked for",
    ),
    "a price version nobody knows": (
        "metering",
        "UPDATE price SET version = version || '-x' WHERE model = 'test-model'",
        "UPDATE price SET version = replace(version, '-x', '') WHERE model = 'test-model'",
        "is not known to metering",
    ),
    "a price is changed later": (
        "metering",
        """UPDATE price SET body = jsonb_set(body, '{prices,input}', '"0.000002"') WHERE model = 'test-model'""",
        """UPDATE price SET body = jsonb_set(body, '{prices,input}', '"0.000001"') WHERE model = 'test-model'""",
        "recomputed",
    ),
    "an entry moves money": (
        "billing",
        "UPDATE entry SET amount_pico = amount_pico + sign(amount_pico) WHERE journal = (SELECT min(journal) FROM entry)",
        "UPDATE entry SET amount_pico = amount_pico - sign(amount_pico) WHERE journal = (SELECT min(journal) FROM entry)",
        "does not have the content that was sealed in it",
    ),
    "a journal does not balance": (
        "billing",
        "UPDATE entry SET amount_pico = amount_pico + 5 WHERE journal = (SELECT min(journal) FROM entry) AND amount_pico > 0",
        "UPDATE entry SET amount_pico = amount_pico - 5 WHERE journal = (SELECT min(journal) FROM entry) AND amount_pico > 0",
        "sums to 5, not to 0",
    ),
    "an entry on nobody's account": (
        "billing",
        "UPDATE entry SET account = account + 1000000 WHERE journal = (SELECT max(journal) FROM entry)",
        "UPDATE entry SET account = account - 1000000 WHERE journal = (SELECT max(journal) FROM entry)",
        "has no account",
    ),
    "a journal is of another month": (
        "billing",
        "UPDATE journal SET event_at = event_at + interval '1 microsecond' WHERE id = (SELECT min(id) FROM journal)",
        "UPDATE journal SET event_at = event_at - interval '1 microsecond' WHERE id = (SELECT min(id) FROM journal)",
        "chain is broken",
    ),
    "the head forgets a block": (
        "billing",
        "UPDATE chain_head SET block = block - 1 WHERE class = 'US'",
        "UPDATE chain_head SET block = block + 1 WHERE class = 'US'",
        "the head names block",
    ),
    "a balance grows": (
        "billing",
        "UPDATE balance SET purchased_pico = purchased_pico + 1 WHERE workspace_id = 1",
        "UPDATE balance SET purchased_pico = purchased_pico - 1 WHERE workspace_id = 1",
        "balances are not what the replay",
    ),
    "own-key usage is forgotten": (
        "billing",
        "UPDATE byok_month SET list_pico = list_pico - 1",
        "UPDATE byok_month SET list_pico = list_pico + 1",
        "own-key usage",
    ),
    "an own-key fee is waived": (
        "billing",
        "UPDATE charge_line SET amount_pico = amount_pico - 1 WHERE terms = 'byok' AND amount_pico > 0",
        "UPDATE charge_line SET amount_pico = amount_pico + 1 WHERE terms = 'byok' AND amount_pico > 0",
        "own-key fees",
    ),
    "a counter is wound on": (
        "metering",
        """UPDATE mesh_counter SET value = value + 1 WHERE name = 'duplicates'
           AND part = (SELECT min(part) FROM mesh_counter WHERE name = 'duplicates')""",
        """UPDATE mesh_counter SET value = value - 1 WHERE name = 'duplicates'
           AND part = (SELECT min(part) FROM mesh_counter WHERE name = 'duplicates')""",
        "1 records are in more than one class",
    ),
}  # fmt: skip

# Rows that are taken away, and what the proof must say.
LOSSES: dict[str, tuple[str, str, str, str]] = {
    "lines": ("billing", "charge_line", "journal = (SELECT max(journal) FROM charge_line)", "has no charge lines"),
    "entries": ("billing", "entry", "journal = (SELECT max(journal) FROM entry)", "chain is broken"),
    "a journal": ("billing", "journal", "id = (SELECT max(id) FROM journal WHERE kind = 'usage')", "does not exist"),
    "an early journal": (
        "billing",
        "journal",
        "id = (SELECT min(id) FROM journal WHERE kind = 'usage')",
        "does not exist",
    ),
    "early lines": (
        "billing",
        "charge_line",
        "journal = (SELECT min(journal) FROM charge_line)",
        "has no charge lines",
    ),
    "a block": ("billing", "chain", "block = 2 AND class = 'US'", "no row in the chain"),
    "quarantined usage": ("metering", "quarantine", "true", "rows wait in the quarantine"),
}


@asynccontextmanager
async def almighty(mesh: Mesh, room: str) -> AsyncIterator[Any]:
    """A connection that triggers and rights do not hold back."""
    admin = mesh.env["STEWARD_POSTGRES_URL"]
    login = admin.split("//", 1)[1].rpartition("@")[0]
    user, _, password = login.partition(":")
    db = await asyncpg.connect(with_login(admin, f"steward_{room}", user, password))
    try:
        await db.execute("SET session_replication_role = replica")
        yield db
    finally:
        await db.close()


async def test_the_proof_finds_what_was_touched(mesh: Mesh, seed: int) -> None:
    await some_books(mesh, seed)
    assert (await check(mesh))["ok"]
    for what, (room, deed, undoing, words) in TAMPERING.items():
        async with almighty(mesh, room) as db:
            assert not (await db.execute(deed)).endswith(" 0"), f"{what}: touches nothing"
            said = await check(mesh)
            await db.execute(undoing)
        assert not said["ok"] and any(words in sentence for sentence in said["errors"]), f"{what}: {said['errors']}"
    for what, (room, table, which, words) in LOSSES.items():
        async with almighty(mesh, room) as db:
            await db.execute(f"CREATE TEMP TABLE lost AS SELECT * FROM {table} WHERE {which}")
            assert not (await db.execute(f"DELETE FROM {table} WHERE {which}")).endswith(" 0"), f"{what}: no such rows"
            said = await check(mesh)
            columns = "OVERRIDING SYSTEM VALUE " if table == "quarantine" else ""
            await db.execute(f"INSERT INTO {table} {columns}SELECT * FROM lost")
        assert not said["ok"] and any(words in sentence for sentence in said["errors"]), f"{what}: {said['errors']}"
    said = await check(mesh)
    assert said["ok"], f"everything was put back: {said['errors']}"


# Rows that somebody adds, with the number of a journal that does not exist, and what the proof must say.
STRAYS: dict[str, tuple[str, str, str]] = {
    "charge_line": (
        "journal",
        """INSERT INTO charge_line (record, line, hour, workspace_id, journal, amount_pico, list_pico, booking_year, class,
                                    price_version, tier, terms, quantities)
           SELECT record, line, hour, workspace_id, $1, amount_pico, list_pico, booking_year, class, price_version, tier,
                  terms, quantities FROM charge_line WHERE class = 'US' LIMIT 1""",
        "does not exist",
    ),
    "entry": (
        "journal",
        """INSERT INTO entry (journal, class, booking_year, account, amount_pico)
           SELECT $1, class, booking_year, account, amount_pico FROM entry WHERE class = 'US' LIMIT 1""",
        "does not exist",
    ),
    "journal": (
        "id",
        """INSERT INTO journal (id, class, booking_year, cause, kind, workspace_id, period, booked_at, event_at, block)
           SELECT $1, class, booking_year, 'x', 'purchase', workspace_id, period, booked_at, event_at, block
           FROM journal WHERE class = 'US' AND block = 1 LIMIT 1""",
        "",
    ),
}


async def test_the_proof_finds_rows_that_belong_to_nothing(mesh: Mesh, seed: int) -> None:
    """Numbered below all journals, and above. Between them: what is left of a journal that is gone (`LOSSES`)."""
    await some_books(mesh, seed)
    async with almighty(mesh, "billing") as db:
        highest = await db.fetchval("SELECT max(id) FROM journal")
        for table, (column, deed, words) in STRAYS.items():
            for number in (-7, 0, highest + 7):
                await db.execute(deed, number)
                # What a journal too many does to its block depends on whether that is complete when it comes.
                said = await check(mesh, same_words=table != "journal")
                await db.execute(f"DELETE FROM {table} WHERE {column} = $1", number)
                assert not said["ok"], f"{table} {number}"
                assert any(words in sentence for sentence in said["errors"]), f"{table} {number}: {said['errors']}"
    assert (await check(mesh))["ok"]


@pytest.mark.parametrize("soon", [20_000, 0])
async def test_journals_that_were_numbered_before_what_is_proved_are_taken_in(
    mesh: Mesh, seed: int, soon: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A transaction may take its numbers early and end late. `soon` 0: nothing but the last look finds them."""
    monkeypatch.setattr(audit, "_SOON", soon)
    gateway = await some_books(mesh, seed)
    verdict, replay = await prove(Sources.from_env(mesh.env), NOW)
    assert verdict.ok and replay is not None
    # As if a later transaction had been sealed and proved already.
    replay.chain("US").newest_journal += 1_000
    await gateway.send(mesh.env, gateway.some(100))
    await mesh.idle()
    verdict, replay = await prove(Sources.from_env(mesh.env), NOW, replay)
    assert verdict.as_dict() == await check(mesh)
    assert verdict.ok and verdict.figures["booked_lines"] > 300


async def test_no_snapshot_is_open_while_it_rests(mesh: Mesh, seed: int) -> None:
    await some_books(mesh, seed)
    held: list[int] = []

    class Watched(Manners):
        async def rest(self, worked: float) -> None:
            async with almighty(mesh, "billing") as db:
                held.append(
                    await db.fetchval(
                        """SELECT count(*) FROM pg_stat_activity
                           WHERE application_name = 'steward-audit' AND (backend_xmin IS NOT NULL OR state <> 'idle')"""
                    )
                )

    verdict, _ = await prove(Sources.from_env(mesh.env), NOW, manners=Watched(journals=1, most=1))
    assert verdict.ok and len(held) > 10 and not any(held)


async def test_slices_that_are_too_large_are_read_in_smaller_ones(
    mesh: Mesh, seed: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    await some_books(mesh, seed)
    monkeypatch.setattr(store, "_MOST_BYTES", 5_000)
    manners = Manners(journals=1_000)
    verdict, _ = await prove(Sources.from_env(mesh.env), NOW, manners=manners)
    assert verdict.ok and manners.least == 1
    assert verdict.figures["booked_lines"] > 200


async def test_a_replay_that_has_not_caught_up_is_no_verdict_and_is_continued(mesh: Mesh, seed: int) -> None:
    await some_books(mesh, seed)
    verdict, replay = await prove(Sources.from_env(mesh.env), NOW, manners=Manners(until=0))
    assert (verdict.exit_code, verdict.undetermined) == (
        2, ("the replay has not caught up yet with what was sealed",),
    )  # fmt: skip
    assert replay is not None
    verdict, _ = await prove(Sources.from_env(mesh.env), NOW, replay)
    assert verdict.ok and verdict.as_dict() == await check(mesh)


async def test_an_unreachable_database_is_no_verdict(mesh: Mesh) -> None:
    sources = Sources.from_env(mesh.env)
    nowhere = "postgresql://nobody@127.0.0.1:1/none"
    strange = mesh.env["STEWARD_AUDITOR_AUDIT_DATABASE_URL"]  # there, but without the tables
    for changed in (replace(sources, billing_url=nowhere), replace(sources, metering_url=strange)):
        verdict, replay = await prove(changed, NOW)
        assert (verdict.exit_code, replay) == (2, None)
        assert not verdict.ok and not verdict.errors and len(verdict.undetermined) == 1
    # The name of a database's error, and not its text, which can hold a row: this is logged.
    assert verdict.undetermined == ("a database could not be read (UndefinedTableError)",)


async def test_the_service_proves_by_itself(mesh: Mesh, seed: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Without any topic of its own: it starts, proves, goes on from where it was, and shows it."""
    await some_books(mesh, seed)
    running = await mesh.start("audit", service=make_service(mesh.env))
    await mesh.owned()

    async def verdicts() -> Any:
        return await running.answer("verdicts", {}, "test", "test", "test")

    async def proved() -> bool:
        return bool(await verdicts())

    await mesh.until(proved, 30, "a first proof")
    (first,) = await verdicts()
    assert (first["kind"], first["ok"], first["errors"]) == ("full", True, [])
    assert metrics.REGISTRY.get_sample_value("steward_audit_ok") == 1
    assert metrics.REGISTRY.get_sample_value("steward_audit_records", {"outcome": "dead_lettered"}) == 1
    said = await running.answer("check", {}, "test", "test", "test")
    assert said["ok"] and said["kind"] == "full"
    assert (await running.idle())["idle"]

    async with almighty(mesh, "billing") as db:
        await db.execute("UPDATE balance SET purchased_pico = purchased_pico + 1 WHERE workspace_id = 1")
        assert await running.worker.run_job("prove", force=True)
        await db.execute("UPDATE balance SET purchased_pico = purchased_pico - 1 WHERE workspace_id = 1")
    newest, _ = await verdicts()
    assert (newest["kind"], newest["ok"]) == ("increment", False)
    assert metrics.REGISTRY.get_sample_value("steward_audit_ok") == 0
    assert metrics.REGISTRY.get_sample_value("steward_audit_findings") == 2
    monkeypatch.setattr(audit, "_FULL_EVERY", timedelta(0))
    assert await running.worker.run_job("follow", force=True), "starts over, beside what the proofs go on from"
    assert await running.worker.run_job("prove", force=True)
    newest, *_ = await verdicts()
    assert (newest["kind"], newest["ok"]) == ("full", True)


async def test_a_repair_shows_minutes_later_and_not_at_the_next_regular_full_proof(mesh: Mesh, seed: int) -> None:
    await some_books(mesh, seed)
    room = audit.Room(mesh.env)
    await room.open(None)

    async def verdict(now: datetime) -> Verdict:
        await room.follow(now)
        return (await room.go_on(now))[1]

    async with almighty(mesh, "billing") as db:
        await db.execute("SET session_replication_role = replica")
        change = "UPDATE entry SET amount_pico = amount_pico + $1 WHERE journal = $2 AND account = $3"
        place = await db.fetchrow("SELECT journal, account FROM entry ORDER BY journal, account LIMIT 1")
        await db.execute(change, 1, place["journal"], place["account"])
        assert not (await verdict(NOW)).ok
        await db.execute(change, -1, place["journal"], place["account"])
        assert not (await verdict(NOW + timedelta(minutes=4))).ok
        assert (await verdict(NOW + timedelta(minutes=5))).ok
