"""What a holder is asked about somebody without erasing: found, copied, corrected; and an erasure comes before all of it."""

from __future__ import annotations

import asyncio
import importlib
import io
import json
from datetime import UTC, datetime, timedelta
from decimal import Decimal
from pathlib import Path
from typing import Any

import pytest
from jsonschema import Draft202012Validator

from deploy.rooms import ROOMS
from services.audit.app import make_service as make_audit
from shared.contract import events, topics
from shared.contract.sealing import seal
from shared.contract.units import Subject
from shared.mesh.http import NotAllowed, encode
from shared.mesh.runtime import Runtime
from shared.mesh.transaction import rfc3339
from shared.privacy import errands, store, told
from shared.privacy.age import Opener
from shared.privacy.blobs import open_blobs
from shared.privacy.data_map import Holding
from shared.privacy.errands import EXPORT_LIFE, VALUE, WHERE
from shared.privacy.package import build, opened, package_name
from shared.privacy.told import MAP
from shared.privacy.vault import open_value, seal_value
from tests.support.coordinator import Coordinator, new_case
from tests.support.gateway import Gateway
from tests.support.life import life, prices, subjects_of
from tests.support.world import Faults, Mesh

WHO: list[Subject] = [("account", "acc-ws-0"), ("workspace", "ws-0"), ("key", "key-ws-0")]


async def used(mesh: Mesh, gateway: Gateway, **options: Any) -> Coordinator:
    """Metering, with some usage of several workspaces."""
    metering = await mesh.start("metering", **options)
    await gateway.send(
        mesh.env, [gateway.price(), *gateway.some(300), gateway.generation("ws-0", model="nobody-knows")]
    )
    await mesh.owned()
    await mesh.idle()
    return Coordinator(mesh, gateway, metering)


async def lines(retention: Coordinator, case: str, holder: str = "metering", epoch: int = 1) -> list[dict[str, Any]]:
    """A holder's part of a copy; each line with its table."""
    blobs, key = open_blobs(retention.mesh.env["STEWARD_BLOBS"]), await retention.vault.case_key(case)
    found: list[dict[str, Any]] = []
    for name in await blobs.names(f"{case}/{epoch}/{holder}"):
        table, raw = name.split("/")[3], await blobs.get(name)
        text = open_value(key, (raw or b"").decode(), where=WHERE)
        found += [{"table": table} | json.loads(line) for line in text.split("\n") if table != MAP]
    return found


async def blob_names(mesh: Mesh, case: str) -> list[str]:
    return await open_blobs(mesh.env["STEWARD_BLOBS"]).names(case)


async def ordered(retention: Coordinator, case: str, action: str, holder: str = "metering", **more: Any) -> None:
    order = await retention.order(case, WHO, [holder], action=action, **more)
    await retention.gateway.send(retention.mesh.env, [order])


async def test_a_copy_is_whole_whatever_dies_meanwhile(mesh: Mesh, seed: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """In chunks, with a death in one of them: every row of the subject once, field by field, and one receipt."""
    monkeypatch.setattr(store, "BLOCKS", 1)
    gateway = Gateway(seed, workspaces=3)
    faults = Faults("nowhere")
    retention = await used(mesh, gateway, fault=faults)
    rows = await mesh.fetch("metering", "SELECT * FROM request_log WHERE workspace = 'ws-0'")
    case = new_case()
    faults.point, faults.nth = "task_before_commit", 4
    await ordered(retention, case, "export")
    await asyncio.wait_for(faults.hit.wait(), 30)
    assert retention.runtime is not None
    await mesh.abandon(retention.runtime)
    retention.runtime = await mesh.start("metering")
    (receipt,) = await retention.receipts(case, 1)
    await mesh.idle()
    copied = [line for line in await lines(retention, case) if line["table"] == "request_log"]
    assert len(copied) == len(rows) > 50
    assert {table.table: table.rows for table in receipt.treated}["request_log"] == len(rows)
    by_id = {line["generation_id"]: line for line in copied}
    for row in rows:
        line = by_id[str(row["generation_id"])]
        assert (line["model"], line["input_tokens"], line["key_id"]) == (
            row["model"],
            row["input_tokens"],
            row["key_id"],
        )
        assert int(line["amount_pico"]) == row["amount_pico"]
        assert "expires_on" not in line and "price_version" not in line, "what is about nobody is left out"
    assert len(await retention.receipts(case, 1)) == 1
    # Nothing was changed by it, and it does not stay.
    assert await mesh.fetch("metering", "SELECT * FROM request_log WHERE workspace = 'ws-0'") == rows
    assert len(await blob_names(mesh, case)) > 1
    assert await mesh.value("metering", "SELECT count(*) FROM mesh_errand WHERE sealed IS NOT NULL") == 0


@pytest.mark.promise(44)
async def test_erase_vs_export(mesh: Mesh, seed: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """The tombstone comes between two chunks: the copy is not finished, and what there was of it is gone."""
    monkeypatch.setattr(store, "BLOCKS", 1)
    gateway = Gateway(seed, workspaces=3)
    copy, case = new_case(), new_case()
    halfway, on = asyncio.Event(), asyncio.Event()

    async def stand(point: str) -> None:
        """Stands still in the transaction that has made the first part."""
        if point == "task_before_commit" and not on.is_set() and await blob_names(mesh, copy):
            halfway.set()
            await on.wait()

    retention = await used(mesh, gateway, fault=stand)
    await ordered(retention, copy, "export")
    await asyncio.wait_for(halfway.wait(), 30)
    await gateway.send(mesh.env, [await retention.order(case, WHO, ["metering"]), *retention.tombstones(case, WHO)])
    on.set()
    await retention.receipts(case, 1)
    (receipt,) = await retention.receipts(copy, 1)
    assert receipt.action == "export" and receipt.treated == [] and await blob_names(mesh, copy) == []
    await mesh.idle()
    assert await mesh.value("metering", "SELECT count(*) FROM mesh_export") == 0


@pytest.mark.promise(44)
@pytest.mark.parametrize("guarded", [True, False], ids=["guarded", "unguarded"])
async def test_export_outlives(mesh: Mesh, seed: int, guarded: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    """The copy is older than the erasure: it goes with it. One that nobody fetches goes by itself."""
    gateway = Gateway(seed, workspaces=3)
    retention = await used(mesh, gateway)
    copy, case = new_case(), new_case()
    await ordered(retention, copy, "export")
    await retention.receipts(copy, 1)
    assert await lines(retention, copy)
    if not guarded:
        monkeypatch.setattr(errands.Errands, "forget", _nothing)
    await gateway.send(mesh.env, [*retention.tombstones(case, WHO), await retention.order(case, WHO, ["metering"])])
    await retention.receipts(case, 1)
    assert (await blob_names(mesh, copy) == []) is guarded


async def _nothing(self: errands.Errands, hashes: Any, tx: Any, *, before: Any = None) -> None:
    """In place of a guard that is switched off."""


async def test_a_copy_goes_where_an_older_database_is_put_back(mesh: Mesh, seed: int) -> None:
    """The holder was away when its person was erased, and the order can be read no more: the tombstone is enough."""
    gateway = Gateway(seed, workspaces=3)
    retention = await used(mesh, gateway)
    copy, case = new_case(), new_case()
    await ordered(retention, copy, "export")
    await retention.receipts(copy, 1)
    assert retention.runtime is not None
    await mesh.stop(retention.runtime)
    await gateway.send(mesh.env, retention.tombstones(case, WHO))
    await mesh.start("metering")
    assert await blob_names(mesh, copy) == []


async def test_a_copy_that_nobody_fetches_goes_by_itself(mesh: Mesh, seed: int) -> None:
    retention = await used(mesh, Gateway(seed, workspaces=3))
    runtime = retention.runtime
    assert runtime is not None
    copy = new_case()
    await ordered(retention, copy, "export")
    await retention.receipts(copy, 1)
    # Of one the database knows nothing: it is a copy from before. Another holder's is none of its business.
    blobs, lost = open_blobs(mesh.env["STEWARD_BLOBS"]), new_case()
    for holder in ("metering", "billing"):
        await blobs.put(f"{lost}/1/{holder}/x/000000", b"v1:k:x")
    sql = "UPDATE mesh_export SET made_at = made_at - $1::interval"
    for age, there in ((EXPORT_LIFE - timedelta(minutes=5), True), (timedelta(minutes=6), False)):
        await mesh.fetch("metering", sql, age)
        await mesh.until(lambda: runtime.worker.run_job("mesh-forget", force=True), 20, "the job has run")
        assert bool(await blob_names(mesh, copy)) is there
        assert await blob_names(mesh, lost) == [f"{lost}/1/billing/x/000000"]


async def test_rectify_stays_right_whatever_comes_again(mesh: Mesh, seed: int) -> None:
    """A correction takes the place of what was there; the older event, read once more, does not undo it."""
    gateway = Gateway(seed)
    rooms: dict[str, Runtime] = {name: await mesh.start(name) for name in ("notifications", "retention")}
    await mesh.owned()
    retention = Coordinator(mesh, gateway, rooms["retention"])
    now = rooms["retention"].clock.now()
    await retention.vault.make_ingress([now.date()], now)
    ingress = await retention.vault.ingress(now.date())
    account = "acc-ws-0"
    opened = {"account": account, "address": seal("old@example.org", *ingress), "jurisdiction": "US"}
    created = {"account": account, "workspace": "ws-0", "key": "key-ws-0", "name": seal("old name", *ingress)}
    said = [
        gateway.event(topics.ACCOUNTS, events.AccountOpened, opened, key=account, subject=account),
        gateway.event(topics.ACCOUNTS, events.KeyCreated, created, key=account, subject=account),
    ]
    await gateway.send(mesh.env, said)
    await mesh.idle()
    for holder, table, column, right, n in (
        ("retention", "api_key", "name", "new name", 1),
        ("notifications", "address", "sealed", "new@example.org", 0),  # changed by its two codes, and by nobody's order
    ):
        case = new_case()
        key = await retention.vault.case_key(case, at=now)
        value, where = seal_value(key, right, where=VALUE), {"table": table, "column": column}
        await ordered(retention, case, "rectify", holder, value=value, arguments=where)
        (receipt,) = await retention.receipts(case, 1)
        assert {t.table: (t.action, t.rows) for t in receipt.treated}[table] == ("corrected", n)
        assert sum(t.rows for t in receipt.treated) == n, "and nothing else"
    # Both events once more, and under new ids, as a sender repeats what it is not sure of.
    again = [
        gateway.event(topics.ACCOUNTS, events.AccountOpened, opened, key=account, subject=account),
        gateway.event(topics.ACCOUNTS, events.KeyCreated, created, key=account, subject=account),
    ]
    await gateway.send(mesh.env, [*said, *again])
    await mesh.idle()
    for holder, column, right in (("notifications", "sealed", "old@example.org"), ("retention", "name", "new name")):
        case = new_case()
        await ordered(retention, case, "export", holder)
        await retention.receipts(case, 1)
        shown = [line[column] for line in await lines(retention, case, holder) if line.get(column) is not None]
        assert shown == [right]
    # What nobody can read corrects nothing, and what the map does not let anybody correct stays as it is.
    case = new_case()
    where = {"table": "api_key", "column": "name"}
    await ordered(retention, case, "rectify", "retention", value="v1:nobody:AAAA", arguments=where)
    (receipt,) = await retention.receipts(case, 1)
    assert not any(table.rows for table in receipt.treated)
    case = new_case()
    key = await retention.vault.case_key(case, at=now)
    where = {"table": "api_key", "column": "account"}
    await ordered(retention, case, "rectify", "retention", value=seal_value(key, "x", where=VALUE), arguments=where)
    (receipt,) = await retention.receipts(case, 1)
    assert not any(table.rows for table in receipt.treated)
    assert await mesh.value("retention", "SELECT account FROM api_key") == account


async def test_a_store_that_is_away_stops_no_erasure(mesh: Mesh, seed: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """The copy goes when the store is back; until then the auditor says that it could not look."""
    retention = await used(mesh, Gateway(seed, workspaces=3))
    runtime = retention.runtime
    assert runtime is not None
    await mesh.start("audit", service=make_audit(mesh.env))
    copy, case, last = new_case(), new_case(), new_case()
    await ordered(retention, copy, "export")
    await retention.receipts(copy, 1)
    store_of_all, elsewhere = Path(mesh.env["STEWARD_BLOBS"]), Path(mesh.env["STEWARD_BLOBS"]).with_name("away")
    store_of_all.rename(elsewhere)
    store_of_all.write_bytes(b"")
    try:
        order = await retention.order(case, WHO, ["metering"])
        await retention.gateway.send(mesh.env, [*retention.tombstones(case, WHO), order])
        await retention.receipts(case, 1)
        await ordered(retention, last, "sweep", "audit")
        (scanned,) = await retention.receipts(last, 1)
        assert [s.verdict for s in scanned.stores if s.holder == "exports"] == ["not_scanned"]
        assert await mesh.value("metering", "SELECT count(*) FROM mesh_export") > 0
    finally:
        store_of_all.unlink()
        elsewhere.rename(store_of_all)
    await mesh.until(lambda: runtime.worker.run_job("mesh-forget", force=True), 20, "the job has run")
    assert await blob_names(mesh, copy) == []
    assert await mesh.value("metering", "SELECT count(*) FROM mesh_export") == 0


async def test_a_store_that_hangs_stops_no_erasure(mesh: Mesh, seed: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """A server that takes every request and answers none: the copy is tried later and later, everything else goes on."""
    silent = await asyncio.start_server(lambda reader, writer: None, "127.0.0.1", 0)
    url = f"http://127.0.0.1:{silent.sockets[0].getsockname()[1]}"
    for name, value in {
        "ENDPOINT_URL": url, "REGION": "r", "ACCESS_KEY_ID": "a", "SECRET_ACCESS_KEY": "b", "ALLOW_HTTP": "true",
    }.items():  # fmt: skip
        monkeypatch.setenv(f"AWS_{name}", value)
    monkeypatch.setattr("shared.privacy.blobs.PATIENCE", 1.0)
    async with silent:
        retention = await used(mesh, Gateway(seed, workspaces=3), settings={"blobs": "s3://bucket"})
        copy, cases = new_case(), [new_case(), new_case()]
        await ordered(retention, copy, "export")
        tried = "SELECT max(attempts) FROM mesh_task WHERE name = 'mesh-errand'"
        for n, case in enumerate(cases):
            # Of somebody else, and of the person whose copy it is.
            who: list[Subject] = [("workspace", "ws-1")] if n == 0 else WHO

            async def again(at_least: int = n + 1) -> bool:
                return int(await mesh.value("metering", tried) or 0) >= at_least

            await mesh.until(again, 40, "the copy was tried")
            order = await retention.order(case, who, ["metering"])
            await retention.gateway.send(mesh.env, [*retention.tombstones(case, who), order])
            await retention.receipts(case, 1)
        (receipt,) = await retention.receipts(copy, 1)
        assert receipt.treated == []
        assert await mesh.value("metering", "SELECT count(*) FROM mesh_export") > 0, "it is still looked for"


async def test_a_copy_names_nobody_else(mesh: Mesh, seed: int) -> None:
    """What is a workspace's names its members; in a copy for the account they would outlive their own erasure."""
    gateway = Gateway(seed)
    retention = Coordinator(mesh, gateway, await mesh.start("insights"))
    await mesh.owned()
    said = {
        "account": "acc-ws-0", "workspace": "ws-0", "member": "mem-other", "surface": "playground", "action": "chat.sent",
        "model": "m",
    }  # fmt: skip
    await gateway.send(
        mesh.env, [gateway.event(topics.ACTIVITY, events.ActivityRecorded, said, key="ws-0", subject="ws-0")]
    )
    await mesh.idle()
    case = new_case()
    await ordered(retention, case, "export", "insights")
    await retention.receipts(case, 1)
    (line,) = await lines(retention, case, "insights")
    assert (line["workspace"], line["member"], line["model"]) == ("ws-0", None, "m")


async def test_a_copy_of_named_tables_is_of_them_alone(mesh: Mesh, seed: int) -> None:
    retention = await used(mesh, Gateway(seed, workspaces=3))
    copy, nothing = new_case(), new_case()
    await ordered(retention, copy, "export", arguments={"tables": "rollup_daily.request_log.nobodys"})
    await ordered(retention, nothing, "export", arguments={"tables": "nobodys"})
    (receipt,) = await retention.receipts(copy, 1)
    assert {table.table for table in receipt.treated} == {"request_log", "rollup_daily"}
    # The rollup may have no rows yet, and then it has no part.
    parts = {name.split("/")[3] for name in await blob_names(mesh, copy)}
    assert parts - {"rollup_daily"} == {"request_log", "_map"}
    (receipt,) = await retention.receipts(nothing, 1)
    assert receipt.treated == []


async def test_an_order_that_names_nobody_holds_up_nobody(mesh: Mesh, seed: int) -> None:
    retention = await used(mesh, Gateway(seed, workspaces=3))
    bad, case = new_case(), new_case()
    await ordered(retention, bad, "discover", sealed="xx")
    await ordered(retention, case, "discover")
    (receipt,) = await retention.receipts(case, 1)
    assert any(table.rows for table in receipt.treated)
    (nothing,) = await retention.receipts(bad, 1)
    assert nothing.treated == []


async def test_a_copy_without_a_place_waits_and_holds_up_nobody(mesh: Mesh, seed: int) -> None:
    retention = await used(mesh, Gateway(seed, workspaces=3), settings={"blobs": None})
    copy, case = new_case(), new_case()
    await ordered(retention, copy, "export")
    await ordered(retention, case, "discover")
    (receipt,) = await retention.receipts(case, 1)
    assert any(table.rows for table in receipt.treated)
    assert await mesh.value("metering", "SELECT count(*) FROM mesh_errand WHERE done_at IS NULL") == 1
    runtime = retention.runtime
    assert runtime is not None
    # Of somebody who is erased meanwhile it is over, place or not.
    gone = new_case()
    who: list[Subject] = [("workspace", "ws-1")]
    orders = [await retention.order(gone, who, ["metering"], action="export"), *retention.tombstones(new_case(), who)]
    await retention.gateway.send(mesh.env, orders)
    await mesh.idle()
    await mesh.until(lambda: runtime.worker.run_job("mesh-forget", force=True), 20, "the job has run")
    (nothing,) = await retention.receipts(gone, 1)
    assert nothing.treated == []
    await mesh.stop(runtime)
    retention.runtime = await mesh.start("metering")
    await retention.receipts(copy, 1)
    assert await lines(retention, copy)


# --- what a copy holds, and what a read shows --------------------------------------------------------------------


async def held(runtime: Runtime, kind: str, name: str, **query: str) -> Any:
    """The read, as it comes over HTTP."""
    answer = await runtime.answer(
        "held", {"kind": kind, "id": name, **query}, "ada", "support", "SUP-4711 asked by phone"
    )
    return json.loads(encode(answer), parse_float=Decimal)


@pytest.mark.promise(38)
async def test_what_is_read_is_what_is_copied(mesh: Mesh, seed: int) -> None:
    """In three rooms, for each of a person's subjects: the same rows, field by field, and as they stand in the tables."""
    gateway = Gateway(seed)
    names = ("metering", "notifications", "retention")
    rooms = {name: await mesh.start(name) for name in names}
    await mesh.owned()
    retention = Coordinator(mesh, gateway, rooms["retention"])
    now = rooms["retention"].clock.now()
    await retention.vault.make_ingress([now.date()], now)
    key = await retention.vault.ingress(now.date())
    said = {
        topic.name for topic in topics.TOPICS if set(names) & set(topic.readers) and not set(names) & set(topic.writers)
    }
    for who in ("ada", "bob"):
        await gateway.send(mesh.env, [prices(gateway), *life(gateway, who, said, lambda text: seal(text, *key))])
    await mesh.idle()
    seen: set[tuple[str, str]] = set()
    for subject in subjects_of("ada"):
        case = new_case()
        order = await retention.order(case, [subject], names, action="export")
        await gateway.send(mesh.env, [order])
        await retention.receipts(case, len(names))
        for name in names:
            copied: dict[str, list[dict[str, Any]]] = {}
            for line in await lines(retention, case, name):
                copied.setdefault(line.pop("table"), []).append(line)
            read = await held(rooms[name], *subject)
            assert _sorted(read["tables"]) == _sorted(copied) and read["truncated"] is False, (name, subject[0])
            assert "bob" not in json.dumps(read, default=str)
            seen |= {(name, table) for table in copied}
            for table, rows in copied.items():
                await _as_in_the_table(mesh, name, table, rows)
    assert seen >= {
        ("metering", "request_log"), ("metering", "rollup_hourly"), ("metering", "quarantine"), ("notifications", "address"),
        ("retention", "account"), ("retention", "workspace"), ("retention", "api_key"), ("retention", "member"),
    }  # fmt: skip
    assert (await held(rooms["notifications"], "account", "acc-ada"))["tables"]["address"][0]["sealed"].count("@") == 1


def _sorted(tables: dict[str, list[dict[str, Any]]]) -> dict[str, list[str]]:
    return {
        table: sorted(json.dumps(row, sort_keys=True, default=str) for row in rows) for table, rows in tables.items()
    }


async def _as_in_the_table(mesh: Mesh, name: str, table: str, rows: list[dict[str, Any]]) -> None:
    """Each row of a copy stands so in its table: what is shown is the same, to the last digit, and what is not is null."""
    found = await mesh.fetch(name, f"SELECT to_jsonb(t)::text FROM {table} t")
    stored = [json.loads(row[0], parse_float=Decimal) for row in found]
    sealed = {
        ("notifications", "address"): {"sealed"},
        ("retention", "api_key"): {"name"},
        ("retention", "account"): {"name"},
    }
    opened = sealed.get((name, table), set())
    for row in rows:
        shown = {column: value for column, value in row.items() if value is not None and column not in opened}
        assert any(all(one[column] == value for column, value in shown.items()) for one in stored), (table, row)


async def test_a_read_of_what_is_held_needs_a_case_and_knows_its_limits(mesh: Mesh, seed: int) -> None:
    gateway = Gateway(seed, workspaces=2)
    retention = await used(mesh, gateway)
    runtime = retention.runtime
    assert runtime is not None
    for reason in ("", "just looking"):
        with pytest.raises(NotAllowed, match="case"):
            await runtime.answer("held", {"kind": "account", "id": "acc-ws-0"}, "ada", "support", reason)
    for wrong in ({"kind": "price", "id": "x"}, {"kind": "account"}, {"kind": "account", "id": "x", "limit": "0"}):
        with pytest.raises(ValueError):
            await runtime.answer("held", wrong, "ada", "support", "SUP-1")
    everything = await held(runtime, "workspace", "ws-0")
    some = await held(runtime, "workspace", "ws-0", limit="5")
    assert some["truncated"] and len(some["tables"]["request_log"]) == 5 < len(everything["tables"]["request_log"])
    assert await held(runtime, "account", "nobody") == {"tables": {}, "truncated": False}
    assert await mesh.value("metering", "SELECT count(*) FROM mesh_read WHERE name = 'held'") == 8
    # Of the erased nothing is shown, from the tombstone on.
    await gateway.send(mesh.env, retention.tombstones(new_case(), [("workspace", "ws-0")]))
    await mesh.idle()
    assert await held(runtime, "workspace", "ws-0") == {"tables": {}, "truncated": False}


async def test_a_copy_of_a_span_of_time_has_what_happened_in_it(mesh: Mesh, seed: int) -> None:
    """From `since` on and before `until`; how things are is in no such copy, and in no receipt of one."""
    gateway = Gateway(seed, workspaces=1)
    retention = Coordinator(mesh, gateway, await mesh.start("metering"))
    assert retention.runtime is not None
    now = retention.runtime.clock.now().replace(minute=0, second=0, microsecond=0)
    at = [now - timedelta(hours=hours) for hours in (4, 3, 2, 1)]
    said = [gateway.generation("ws-0", at_ms=int(one.timestamp() * 1000)) for one in at]
    setting = {
        "account": "acc-ws-0", "workspace": "ws-0", "version": 1, "log_retention_days": 30, "activity_opt_out": False,
        "changed_at": rfc3339(now),
    }  # fmt: skip
    await mesh.owned()
    stated = gateway.event(topics.SETTINGS, events.SettingsChanged, setting, key="ws-0", subject="ws-0")
    await gateway.send(mesh.env, [gateway.price(), stated, *said])
    await mesh.idle()
    spans = {
        (at[1], at[3]): at[1:3], (at[2], None): at[2:], (None, at[2]): at[:2], (None, None): at,
        (at[0] + timedelta(milliseconds=1), at[0] + timedelta(milliseconds=2)): [],
    }  # fmt: skip
    for (since, until), expected in spans.items():
        case = new_case()
        asked = {name: rfc3339(end) for name, end in (("since", since), ("until", until)) if end is not None}
        await ordered(retention, case, "export", arguments=asked)
        (receipt,) = await retention.receipts(case, 1)
        found = [line for line in await lines(retention, case) if line["table"] == "request_log"]
        assert sorted(datetime.fromisoformat(line["occurred_at"]) for line in found) == expected
        treated = {table.table: table.rows for table in receipt.treated}
        assert treated["request_log"] == len(expected)
        assert treated["rollup_hourly"] == len(expected), "an hour each"
        assert ("workspace_setting" in treated) is (not asked) and receipt.arguments == asked
        about = await described(retention, case)
        assert about.tables["workspace_setting"].left_out == ("range" if asked else None)
        assert {t: about.tables[t].rows for t in treated} == treated
    for wrong in ("yesterday", "2026-11-28T12:00:00", "2026-13-01T00:00:00Z"):
        case = new_case()
        await ordered(retention, case, "export", arguments={"since": wrong})
        (receipt,) = await retention.receipts(case, 1)
        assert receipt.treated == [] and await blob_names(mesh, case) == []


async def test_every_map_says_when_by_an_expression_that_its_table_knows(mesh: Mesh) -> None:
    """Each room's `when` gives an instant: PostgreSQL has to say so."""
    for name in ROOMS:
        module = importlib.import_module(f"services.{name}.data_map")
        for rows in getattr(module, "HOLDING", Holding(name, ())).rows:
            if rows.when is not None:
                kind = f"SELECT pg_typeof({rows.when})::text FROM (SELECT NULL) AS one LEFT JOIN {rows.table} t ON true LIMIT 1"
                assert await mesh.value(name, kind) == "timestamp with time zone", (name, rows.table)


async def described(retention: Coordinator, case: str, holder: str = "metering") -> told.Told:
    """What a copy says of itself."""
    blobs, key = open_blobs(retention.mesh.env["STEWARD_BLOBS"]), await retention.vault.case_key(case)
    raw = await blobs.get(f"{case}/1/{holder}/{MAP}/000000")
    return told.read(open_value(key, (raw or b"").decode(), where=WHERE).encode())


async def test_a_copy_becomes_a_package(mesh: Mesh, seed: int) -> None:
    """From two real holders to what their person opens: every row that the receipts count."""
    gateway = Gateway(seed, workspaces=2)
    retention = await used(mesh, gateway)
    await mesh.start("insights")
    await mesh.owned()
    case = new_case()
    order = await retention.order(case, WHO, ["metering", "insights"], action="export")
    await gateway.send(mesh.env, [order])
    receipts = await retention.receipts(case, 2)
    blobs, name = open_blobs(mesh.env["STEWARD_BLOBS"]), package_name(case)
    built = await build(
        blobs, case=case, epoch=1, holders=["metering", "insights"], key=await retention.vault.case_key(case),
        opener=Opener(passphrase="correct horse battery"), name=name, made_at=datetime(2026, 11, 28, tzinfo=UTC),
    )  # fmt: skip
    counted = {f"{r.holder}.{t.table}": t.rows for r in receipts for t in r.treated}
    assert built.sources == counted and built.rows == sum(counted.values()) > 50
    raw = io.BytesIO(b"".join([piece async for piece in blobs.read(name)]))
    with opened(raw, passphrase="correct horse battery") as archive:
        log = [json.loads(line) for line in archive.read("data/metering/request_log.jsonl").splitlines()]
        assert log == [
            {k: v for k, v in line.items() if k != "table"} for line in await lines(retention, case)
            if line["table"] == "request_log"
        ]  # fmt: skip
        checked = Draft202012Validator(json.loads(archive.read("schema/metering.request_log.json")))
        for line in log:
            checked.validate(line)
