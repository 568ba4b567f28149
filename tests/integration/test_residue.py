"""The auditor finds what is left of an erased subject, wherever it stands, and says so of what it could not see."""

from __future__ import annotations

from typing import Any

import asyncpg
import pytest

from services.audit.app import make_service
from services.audit.residue import store, words
from shared.contract import topics
from shared.contract.units import Subject
from shared.privacy.blobs import open_blobs
from tests.support.coordinator import Coordinator, new_case
from tests.support.gateway import Gateway
from tests.support.world import Mesh

GONE: list[Subject] = [("account", "acc-ws-0"), ("workspace", "ws-0"), ("key", "key-ws-0")]


async def verdicts(
    retention: Coordinator, action: str, expected: int, case: str | None = None
) -> dict[tuple[str, str], Any]:
    """The auditor's verdicts on every store."""
    case = case or new_case()
    order = await retention.order(case, GONE, ["audit"], action=action)
    await retention.gateway.send(retention.mesh.env, [order])
    scans = [r for r in await retention.receipts(case, expected) if hasattr(r, "stores")]
    return {(store.holder, store.store): store for store in scans[-1].stores}


async def test_a_probe_sees_every_column_and_a_sweep_every_text(mesh: Mesh, seed: int) -> None:
    gateway = Gateway(seed, workspaces=4)
    await gateway.send(mesh.env, [gateway.price(), *gateway.some(100), gateway.generation("ws-0")])
    await gateway.send(mesh.env, [gateway.generation("ws-0", model="nobody-knows", counted=False)])
    metering = await mesh.start("metering")
    await mesh.start("billing")
    await mesh.start("audit", service=make_service(mesh.env))
    await mesh.owned()
    await mesh.idle()
    retention = Coordinator(mesh, gateway, metering)
    found = await verdicts(retention, "probe", 1)
    assert found["metering", "request_log"].verdict == "residue" and found["metering", "request_log"].count > 0
    assert found["billing", "workspace_ref"].verdict == "residue"
    assert found["metering", "price"].verdict == "clean"
    assert found["kafka", topics.GENERATIONS.name].verdict == "expiring"
    case = new_case()
    await gateway.send(mesh.env, retention.tombstones(case, GONE))
    await gateway.send(mesh.env, [await retention.order(case, GONE, ["metering", "billing"])])
    await retention.receipts(case, 2)
    found = await verdicts(retention, "probe", 3, case)
    # The name of an erased workspace waits, for a day at most, for the end of its key on the balances topic.
    ending = {place for place, s in found.items() if place[0] != "kafka" and s.verdict != "clean"}
    assert ending == {("billing", "erased_workspace")} and found["billing", "erased_workspace"].verdict == "expiring"
    # What no column says as a whole: the sweep finds it.
    db = await asyncpg.connect(mesh.env["STEWARD_METERING_OWNER_DATABASE_URL"])
    await db.execute(
        """INSERT INTO rerating (id, ordered_at, asked) VALUES (gen_random_uuid(), '2026-01-01Z', '{"who": ["ws-0", "x"]}')"""
    )
    await db.close()
    found = await verdicts(retention, "sweep", 4, case)
    assert found["metering", "rerating"].verdict == "residue"
    assert found["kafka", topics.GENERATIONS.name].verdict == "expiring"
    assert found["kafka", topics.GENERATIONS.name].count > 0
    assert found["metering", "request_log"].verdict == "clean"


@pytest.mark.promise(36)
async def test_what_stands_sealed_in_a_dead_letter_is_seen(mesh: Mesh, seed: int) -> None:
    gateway = Gateway(seed)
    half = gateway.generation("ws-0", counted=False)
    half.value = (half.value or b"")[:-20]
    half.key = b"no-id"
    await gateway.send(mesh.env, [half])
    metering = await mesh.start("metering")
    await mesh.start("audit", service=make_service(mesh.env))
    await mesh.owned()
    await mesh.idle()
    (kept,) = await mesh.fetch("metering", "SELECT payload FROM mesh_dead_letter")
    assert b"ws-0" not in kept["payload"]
    retention = Coordinator(mesh, gateway, metering)
    found = await verdicts(retention, "probe", 1)
    assert (found["metering", "mesh_dead_letter"].verdict, found["metering", "mesh_dead_letter"].count) == (
        "residue",
        3,
    )
    # One that was changed is not taken for one that holds nothing.
    await mesh.fetch(
        "metering", "UPDATE mesh_dead_letter SET payload = substr(payload, 1, length(payload) - 4) || 'AAAA'"
    )
    found = await verdicts(retention, "probe", 1)
    assert found["metering", "mesh_dead_letter"].verdict == "not_scanned"
    # With its key it is nobody's any more.
    await mesh.fetch("keys", "DELETE FROM vault_key WHERE purpose = 'letter'")

    async def over() -> bool:
        verdict: str = (await verdicts(retention, "probe", 1))["metering", "mesh_dead_letter"].verdict
        return verdict == "clean"

    await mesh.until(over, 20, "the auditor has forgotten the key")


async def test_holder_skipped_is_not_scanned_and_never_clean(mesh: Mesh, seed: int) -> None:
    gateway = Gateway(seed)
    metering = await mesh.start("metering")
    await mesh.start("audit", service=make_service(mesh.env))
    async with mesh.world.admin() as admin:
        await admin.execute("DROP DATABASE steward_billing WITH (FORCE)")
    found = await verdicts(Coordinator(mesh, gateway, metering), "probe", 1)
    assert found["billing", "database"].verdict == "not_scanned"
    assert found["metering", "request_log"].verdict == "clean"


async def test_however_many_rows_one_case_has_those_of_another_are_seen(mesh: Mesh) -> None:
    ids = ["acc-many", "ws-many", "acc-one", "ws-one"]
    db = await asyncpg.connect(mesh.env["STEWARD_METERING_OWNER_DATABASE_URL"])
    try:
        await db.execute("CREATE TEMP TABLE found (who text, others text[])")
        await db.execute("INSERT INTO found SELECT 'acc-many', ARRAY['ws-many'] FROM generate_series(1, 20000)")
        await db.execute("INSERT INTO found VALUES ('acc-one', ARRAY['x', 'ws-one'])")
        table = store.Table("found", ("who",), ("others",), ())
        many, one = {"acc-many": 20_000}, {"acc-one": 1}
        assert await store.hits(db, table, ids) == {"who": many | one, "others": {"ws-many": 20_000, "ws-one": 1}}
        deep = await store.deep_hits(db, "found", words.pattern(ids), ids)
        assert deep == many | one | {"ws-many": 20_000, "ws-one": 1}
    finally:
        await db.close()


async def test_a_package_of_the_erased_is_residue_and_one_that_nobody_knows_is_not_judged_clean(
    mesh: Mesh, seed: int
) -> None:
    """Nobody but its person can open a package: retention's database says whose it is."""
    gateway = Gateway(seed)
    metering = await mesh.start("metering")
    await mesh.start("audit", service=make_service(mesh.env))
    await mesh.owned()
    retention, blobs = Coordinator(mesh, gateway, metering), open_blobs(mesh.env["STEWARD_BLOBS"])
    theirs, others, swept, workspace = (new_case() for _ in range(4))
    ours, mine, stranger = b"a" * 16, b"b" * 16, b"c" * 16
    expected = 0

    async def seen(case: str = swept) -> tuple[str, int]:
        nonlocal expected
        expected += 1
        found = (await verdicts(retention, "sweep", expected, case))["exports", "copies"]
        return found.verdict, found.count

    async def told(sql: str, *values: Any) -> None:
        db = await asyncpg.connect(mesh.env["STEWARD_RETENTION_OWNER_DATABASE_URL"])
        await db.execute(sql, *values)
        await db.close()

    async def known(case: str, subject: bytes, owner: bytes, scope: str = "account") -> None:
        await told(
            """INSERT INTO privacy_case (id, scope, kind, channel, state, requested_at, attempts, subject_pseudonym, wish, owner,
                                         confirmed_at)
               VALUES ($1, $4, 'access', 'settings', 'packing', '2026-01-01Z', 0, $2, decode(md5($1::text), 'hex'), $3,
                       '2026-01-03Z')""",
            case, subject, owner, scope,
        )  # fmt: skip

    assert await seen() == ("clean", 0)
    for case in (theirs, others):
        await blobs.put(f"packages/{case}/_package", b"x")
    assert (await seen())[0] == "not_scanned"
    await known(others, stranger, stranger)
    assert (await seen())[0] == "not_scanned", "one of them is unknown still"
    await known(theirs, mine, ours)
    assert await seen() == ("clean", 0), "somebody else's"
    sql = "INSERT INTO tombstone VALUES ($1, 'account', $2, '2026-01-02Z', '2030-01-01Z')"
    await told(sql, ours, swept)
    assert await seen() == ("residue", 1)
    # A package of the whole account goes with the erasure of one of its workspaces; a later one may be there.
    await known(workspace, b"d" * 16, ours, "workspace")
    expected = 0
    assert await seen(workspace) == ("clean", 0)
    await told(
        """INSERT INTO package (case_id, token_hash, size, sha256, made_at, not_after)
           VALUES ($1, $2, 1, '', '2026-01-02Z', '2026-01-09Z')""",
        theirs, b"t" * 16,
    )  # fmt: skip
    assert await seen(workspace) == ("residue", 1)
    await told("UPDATE package SET made_at = '2026-01-04Z'")
    assert await seen(workspace) == ("clean", 0)
