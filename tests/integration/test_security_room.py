"""Security: a connection's address lives apart from its row, sealed, and ends earlier; each event counts once."""

from __future__ import annotations

import json
from datetime import date, timedelta
from pathlib import Path
from typing import Any

import pytest

from services.security.access import IP_LIFE, ROW_LIFE, place
from services.security.app import IP_KEYS
from shared.contract import topics
from shared.privacy.vault import Shredded, Tampered, Vault, open_value
from tests.support.gateway import body
from tests.support.house import START, House
from tests.support.rewind import rewind
from tests.support.world import Mesh

SECOND, DAY = timedelta(seconds=1), timedelta(days=1)
MIDNIGHT = START.replace(hour=0)
CANARY = "198.51.100.237"


@pytest.fixture
def house(seed: int, tmp_path: Path) -> House:
    return House("security", seed, tmp_path)


async def begin(mesh: Mesh, house: House) -> Vault:
    """The room is started; its vault."""
    running = await house.begin(mesh)
    vault: Vault = running.plugged["vault"]
    await house.keys(vault)
    return vault


async def kept(mesh: Mesh) -> tuple[int, int]:
    """(rows, addresses)"""
    counts = "SELECT (SELECT count(*) FROM access_row), (SELECT count(*) FROM access_ip)"
    (found,) = await mesh.fetch("security", counts)
    return found[0], found[1]


async def opened(mesh: Mesh, vault: Vault, day: date) -> list[str]:
    """The addresses that are there, under the key of `day`."""
    rows = await mesh.fetch("security", "SELECT event_id::text, address FROM access_ip ORDER BY event_id")
    key = await vault.key(IP_KEYS, day.isoformat())
    return [open_value(key, row["address"], where=place(row["event_id"])) for row in rows]


@pytest.mark.promise(15, 60)
async def test_no_address_stands_anywhere_in_the_clear(mesh: Mesh, house: House) -> None:
    vault = await begin(mesh, house)
    # Ids are in time order, so the later one is last.
    early = START - SECOND
    twice = [house.access(CANARY, early, account="acc-1", member="mem-1"), house.access(CANARY, early, account="acc-2")]
    other = house.access("2001:db8::1", account="acc-1")
    ahead = house.access(CANARY, START + timedelta(minutes=6), account="acc-1")
    await house.send(mesh, *twice, other, ahead)
    assert await opened(mesh, vault, START.date()) == [CANARY, CANARY, "2001:db8::1"]
    # Equal addresses of a day are seen to be equal; the cipher texts are not.
    rows = await mesh.fetch("security", "SELECT address, correlate FROM access_ip ORDER BY event_id")
    assert rows[0]["correlate"] == rows[1]["correlate"] != rows[2]["correlate"]
    assert len({row["address"] for row in rows}) == 3
    # It is in no table's text, the dead letter of the event ahead included, and in no file of the database.
    texts = await house.texts(mesh)
    assert "access_ip" in texts and "future" in texts["mesh_dead_letter"]
    assert [table for table, text in texts.items() if CANARY in text] == []
    assert await _files_with(mesh, CANARY) == []
    # The search finds what is there.
    assert "acc-1" in texts["access_row"] and await _files_with(mesh, "acc-1")
    # A value opens where it was sealed for, and nowhere else.
    ids = [row[0] for row in await mesh.fetch("security", "SELECT event_id::text FROM access_ip ORDER BY event_id")]
    with pytest.raises(Tampered):
        open_value(await vault.key(IP_KEYS, START.date().isoformat()), rows[0]["address"], where=place(ids[1]))


async def _files_with(mesh: Mesh, canary: str) -> list[str]:
    """Files of the room's database, and of the log, in whose bytes the canary stands."""
    async with mesh.world.admin() as admin:
        await admin.execute("CHECKPOINT")
    oid = await mesh.value("security", "SELECT oid FROM pg_database WHERE datname = current_database()")
    server = mesh.world.stack.postgres
    assert server is not None
    files = [*(server.data / "base" / str(oid)).iterdir(), *(server.data / "pg_wal").glob("0*")]
    return [file.name for file in files if file.is_file() and canary.encode() in file.read_bytes()]


@pytest.mark.promise(15, 36)
async def test_an_address_ends_after_thirty_days_and_its_row_lives_on(mesh: Mesh, house: House) -> None:
    vault = await begin(mesh, house)
    await house.send(mesh, house.access(CANARY, MIDNIGHT, account="acc-1"), house.access(CANARY, account="acc-1"))
    (running,) = mesh.running
    for instant in (START + 29 * DAY, MIDNIGHT + IP_LIFE - SECOND):
        house.at(instant)
        await running.worker.run_job("ip-keys", force=True)
        assert await opened(mesh, vault, START.date()) == [CANARY, CANARY]
    ends = await mesh.fetch("security", "SELECT DISTINCT expires_on FROM access_ip")
    assert [row[0] for row in ends] == [(MIDNIGHT + IP_LIFE - SECOND).date()]
    # A day's first connection has its thirty days then; the day's last one a day less: a maximum is rounded down.
    house.at(MIDNIGHT + IP_LIFE)

    async def destroyed() -> bool:
        return not await vault.there(IP_KEYS, [START.date().isoformat()])

    await mesh.until(destroyed, 20, "the day's key is destroyed unprompted")
    # Their partition is over at the same instant, and is dropped as soon as a sweep comes by.
    with pytest.raises(Shredded):
        await opened(mesh, vault, START.date())
    assert (await kept(mesh))[0] == 2


@pytest.mark.promise(15, 35)
async def test_what_comes_late_is_kept_for_what_is_left_of_its_time(mesh: Mesh, house: House) -> None:
    vault = await begin(mesh, house)
    young = START - IP_LIFE + DAY  # of a day whose addresses may still be there
    old = START - IP_LIFE
    last = START - ROW_LIFE + DAY
    over = START - ROW_LIFE
    await house.send(mesh, *(house.access(CANARY, at, account="acc-1") for at in (START, young, old, last, over)))
    rows = await mesh.fetch("security", "SELECT occurred_at, expires_on FROM access_row ORDER BY occurred_at")
    assert [row["occurred_at"] for row in rows] == [last, old, young, START]
    # Gone at or before the maximum: the day after the last one begins no later.
    assert all(MIDNIGHT.replace(year=r[1].year, month=r[1].month, day=r[1].day) + DAY <= r[0] + ROW_LIFE for r in rows)
    ids = {row[0] for row in await mesh.fetch("security", "SELECT expires_on FROM access_ip")}
    assert ids == {(at + IP_LIFE - DAY).date() for at in (START, young)}
    assert await house.counter(mesh, "access_expired") == 1
    assert await vault.there(IP_KEYS, [at.date().isoformat() for at in (START, young, old)]) == {
        at.date().isoformat() for at in (START, young)
    }
    letters = await mesh.fetch("security", "SELECT reason FROM mesh_dead_letter")
    assert letters == [], "what is over leaves nothing, no dead letter either"


@pytest.mark.promise(35)
async def test_a_hold_keeps_its_rows_past_their_ninety_days_and_no_others(mesh: Mesh, house: House) -> None:
    vault = await begin(mesh, house)
    (running,) = mesh.running
    await house.send(mesh, *(house.access(CANARY, account=who) for who in ("acc-1", "acc-1", "acc-2")))
    hold = {"hold": "019ab7d4-1e5a-7f00-8a1b-2c3d4e5f6a7b"}
    arguments = hold | {"table": "access_row"}
    await house.send(mesh, await house.order(vault, "hold", "account", [("account", "acc-1")], arguments))
    house.at(START + ROW_LIFE)

    async def over() -> bool:
        await running.drop_partitions()
        return await kept(mesh) == (0, 0)

    await mesh.until(over, 20, "the rows are gone, a hold or not")
    copies = [row[0] for row in await mesh.fetch("security", "SELECT sealed FROM mesh_held_record ORDER BY id")]
    texts = await vault.open_held(hold["hold"], "access_row", copies)
    assert [json.loads(text)["account"] for text in texts] == ["acc-1", "acc-1"]
    await house.send(mesh, await house.order(vault, "release", "account", [("account", "acc-1")], arguments))
    assert await mesh.value("security", "SELECT count(*) FROM mesh_held_record") == 0
    with pytest.raises(Shredded):
        await vault.open_held(hold["hold"], "access_row", copies)


async def test_each_event_once_whatever_comes_again(mesh: Mesh, house: House) -> None:
    await begin(mesh, house)
    once = [house.access(f"203.0.113.{n}", START - n * DAY, account=f"acc-{n}") for n in range(1, 11)]
    await house.send(mesh, *once, *once[:3])
    await house.send(mesh, *once)
    assert await kept(mesh) == (10, 10)
    assert await house.counter(mesh, "access_kept") == 10 and await house.counter(mesh, "access_duplicates") == 13
    await rewind(mesh, "security", topics.ACCESS.name)
    await house.send(mesh, house.access(CANARY, account="acc-11"))
    assert await kept(mesh) == (11, 11)
    assert await house.counter(mesh, "access_kept") == 11 and await house.counter(mesh, "access_duplicates") == 13


async def test_what_cannot_be_kept_is_refused_or_goes_without_its_address(mesh: Mesh, house: House) -> None:
    vault = await begin(mesh, house)
    good, no_address = house.access(CANARY, account="acc-1"), house.access("somebody@example.org", account="acc-2")
    damaged = house.access(CANARY, account="acc-3")
    content = body(damaged)
    content["data"]["ip"] = content["data"]["ip"][:-4] + "AAAA"
    damaged.value = json.dumps(content).encode()
    await house.send(mesh, good, no_address, damaged, house.access(CANARY, START + timedelta(minutes=6)))
    letters = await mesh.fetch("security", "SELECT reason, detail FROM mesh_dead_letter")
    assert sorted(row["reason"] for row in letters) == ["future", "unreadable", "unreadable"]
    assert not any("example.org" in row["detail"] for row in letters)
    assert await kept(mesh) == (1, 1)
    # The ingress key is destroyed: what was sealed to it opens no more, and what else the event says is kept.
    late = house.access(CANARY, account="acc-4")
    await vault.destroy("ingress", [START.date().isoformat()])
    await house.send(mesh, late)
    assert await kept(mesh) == (2, 1) and await house.counter(mesh, "access_without_address") == 1


@pytest.mark.promise(71)
async def test_a_field_that_tells_devices_apart_is_refused_and_not_kept(mesh: Mesh, house: House) -> None:
    await begin(mesh, house)
    records = []
    for field in ("user_agent", "device_id", "fingerprint"):
        record = house.access(CANARY, account="acc-1")
        content = body(record)
        content["data"][field] = "canary-5512"
        record.value = json.dumps(content).encode()
        records.append(record)
    versioned = house.access(CANARY, account="acc-1")
    content = body(versioned)
    content["data"]["agent"] = "Mozilla/5.0"
    versioned.value = json.dumps(content).encode()
    await house.send(mesh, *records, versioned, house.access(CANARY, account="acc-1"))
    assert await kept(mesh) == (1, 1)
    letters = await mesh.fetch("security", "SELECT reason, detail FROM mesh_dead_letter ORDER BY id")
    assert sorted(row["reason"] for row in letters) == ["invalid"] + ["undeclared_field"] * 3
    assert [table for table, text in (await house.texts(mesh)).items() if "canary-5512" in text] == []


async def test_an_erased_member_leaves_the_workspaces_rows_and_no_trace(mesh: Mesh, house: House) -> None:
    vault = await begin(mesh, house)
    ours: dict[str, Any] = {"account": "acc-1", "workspace": "ws-1"}
    theirs = ours | {"member": "mem-2", "session": "ses-2"}
    await house.send(
        mesh,
        house.access(CANARY, **ours, member="mem-1", session="ses-1", identity="idn-1", kind="sign_in"),
        house.access(CANARY, **ours, member="mem-1", key="key-1", kind="api", session="ses-1"),
        house.access(CANARY, **ours, key="key-1", kind="api"),
        house.access("203.0.113.9", **theirs),
    )  # fmt: skip
    await house.send(mesh, await house.erasure(vault, "member", ("member", "mem-1"), ("key", "key-1")))
    texts = await house.texts(mesh)
    assert [t for t, text in texts.items() for name in ("mem-1", "key-1", "ses-1", "idn-1") if name in text] == []
    rows = await mesh.fetch(
        "security", "SELECT workspace, member, key_id FROM access_row ORDER BY occurred_at, event_id"
    )
    assert {row["workspace"] for row in rows} == {"ws-1"} and len(rows) == 3
    assert sum((row["key_id"] or "").startswith("erased-") for row in rows) == 2
    # The addresses that were the member's are gone; the other member's stays.
    assert await opened(mesh, vault, START.date()) == ["203.0.113.9"]
    # What comes after it names neither.
    await house.send(
        mesh, house.access(CANARY, **ours, member="mem-1"), house.access(CANARY, **ours, key="key-1", kind="api")
    )
    texts = await house.texts(mesh)
    assert [t for t, text in texts.items() for name in ("mem-1", "key-1") if name in text] == []
    assert (await kept(mesh))[0] == 4


async def test_an_erased_account_leaves_nothing_and_its_identity_no_more(mesh: Mesh, house: House) -> None:
    vault = await begin(mesh, house)
    mine = [
        house.access(CANARY, account="acc-1", workspace="ws-1"),
        house.access(CANARY, identity="idn-1", kind="sign_in"),
    ]
    await house.send(mesh, *mine, house.access("203.0.113.9", account="acc-2", workspace="ws-2"))
    subjects = [("account", "acc-1"), ("workspace", "ws-1"), ("identity", "idn-1")]
    await house.send(mesh, await house.erasure(vault, "account", *subjects))
    # Late events, repeats, and a sign-in with an identity that is nobody's any more.
    late = [house.access(CANARY, account="acc-1"), house.access(CANARY, identity="idn-1", kind="sign_in")]
    await house.send(mesh, *mine, *late)
    assert await kept(mesh) == (1, 1) and await opened(mesh, vault, START.date()) == ["203.0.113.9"]
    texts = await house.texts(mesh)
    assert [t for t, text in texts.items() for name in ("acc-1", "ws-1", "idn-1") if name in text] == []


async def test_staff_see_counts_and_no_rows(mesh: Mesh, house: House) -> None:
    await begin(mesh, house)
    (running,) = mesh.running
    await house.send(
        mesh, *(house.access(CANARY, account="acc-1") for _ in range(3)),
        house.access(CANARY, kind="sign_in", outcome="refused"), house.access(CANARY, START - DAY, account="acc-1"),
    )  # fmt: skip
    found = await running.answer("access", {"hours": "24"}, "ann", "sre", "")
    assert found == [
        {"kind": "dashboard", "outcome": "ok", "connections": 3},
        {"kind": "sign_in", "outcome": "refused", "connections": 1},
    ]
    (longer, _) = await running.answer("access", {"hours": "25"}, "ann", "sre", "")
    assert longer["connections"] == 4
    assert list(running.service.read_handlers) == ["access"], "no read gives rows: those need a finding"
