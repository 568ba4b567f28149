"""The vault on a real PostgreSQL: keys that end for everybody, a master key that changes under running services, raw files."""

from __future__ import annotations

import asyncio
import json
import mmap
import sys
from collections.abc import AsyncIterator, Iterable
from contextlib import AsyncExitStack
from datetime import UTC, date, datetime, timedelta
from pathlib import Path
from typing import Any

import asyncpg
import pytest

from shared.contract.sealing import seal_to
from shared.emitter import seal
from shared.mesh.migrate import migrate
from shared.mesh.settings import Misconfigured
from shared.mesh.store import open_pool
from shared.mesh.transaction import Transaction
from shared.privacy import keys as store
from shared.privacy.keys import DayKeys
from shared.privacy.letters import LetterSafe
from shared.privacy.vault import (
    CASE,
    INGRESS,
    REMEMBERED_SECONDS,
    SUBJECT,
    Key,
    MasterKeys,
    Shredded,
    Tampered,
    Vault,
    key_id_of,
    open_value,
    seal_value,
)
from tests.support.gateway import Gateway
from tests.support.hands import Hands
from tests.support.world import Mesh

NOW = datetime(2026, 11, 28, 12, tzinfo=UTC)
TODAY = NOW.date()
WHERE = "address.mail"
ADA, BOB = ("account", "acc-ada"), ("account", "acc-bob")
CASE_ID = "019ab7d4-1e5a-7f00-8a1b-2c3d4e5f6a7b"


class Safe:
    """The key database of a test, and vaults on it as processes have them: each with its own pool and memory."""

    def __init__(self, mesh: Mesh, folder: Path) -> None:
        self.mesh, self.clock = mesh, [0.0]
        self.file = folder / "master.key"
        self.file.write_text(MasterKeys.new("first") + "\n")
        self.stack = AsyncExitStack()

    def url(self, who: str) -> str:
        return self.mesh.env[f"STEWARD_{who}_DATABASE_URL"]

    async def vault(self, who: str = "KEYS", **options: Any) -> Vault:
        pool = await open_pool(self.url(who), size=2, application="steward-test-keys")
        self.stack.push_async_callback(pool.close)
        masters = MasterKeys.from_values(str(self.file), None)
        vault = Vault(pool, masters, monotonic=lambda: self.clock[0], **options)
        if who == "KEYS":
            await vault.open(NOW)
        return vault

    def hands(self, folder: Path) -> Hands:
        """Commands on this key database, with this master key."""
        env = {**self.mesh.env, "STEWARD_HOME": str(folder), "STEWARD_MASTER_KEY_FILE": str(self.file)}
        return Hands(self.mesh, Gateway(1), folder, env)

    async def rows(self, sql: str = "SELECT * FROM vault_key ORDER BY purpose, name", who: str = "KEYS_OWNER") -> Any:
        db = await asyncpg.connect(self.url(who))
        try:
            return await db.fetch(sql)
        finally:
            await db.close()


@pytest.fixture
async def safe(mesh: Mesh, tmp_path: Path) -> AsyncIterator[Safe]:
    made = Safe(mesh, tmp_path)
    await migrate(made.url("KEYS_OWNER"), "keys", store.MIGRATIONS, mesh=False)
    async with made.stack:
        yield made


@pytest.mark.promise(60)
async def test_a_destroyed_key_is_shredded_in_every_copy(safe: Safe) -> None:
    mine, theirs = await safe.vault(), await safe.vault()
    keys = await mine.subject_keys([ADA, BOB], at=NOW)
    copies = [seal_value(keys[ADA], f"copy {n}", where=WHERE) for n in range(3)]
    bobs = seal_value(keys[BOB], "bob", where=WHERE)
    assert (await theirs.subject_keys([ADA, BOB])) == keys

    assert await mine.destroy_subjects([ADA]) == 1
    assert ADA not in await mine.subject_keys([ADA, BOB]), "whoever destroys it has forgotten it"
    # Another process knows it for at most as long as is published.
    safe.clock[0] += REMEMBERED_SECONDS
    assert set(await theirs.subject_keys([ADA, BOB])) == {BOB}
    assert await theirs.by_id(map(key_id_of, copies)) == {}
    assert await theirs.alive({key_id_of(copies[0]), key_id_of(bobs)}) == {key_id_of(bobs)}
    assert await mine.destroy_subjects([ADA]) == 0

    # Whoever comes after under the same id is somebody else.
    again = (await theirs.subject_keys([ADA], at=NOW))[ADA]
    for value in copies:
        with pytest.raises(Shredded):
            open_value(again, value, where=WHERE)
    found = await theirs.by_id([key_id_of(bobs)])
    assert open_value(found[key_id_of(bobs)], bobs, where=WHERE) == "bob"


async def test_what_is_forgotten_is_looked_up_again_and_memory_is_bounded(safe: Safe) -> None:
    mine, theirs = await safe.vault(most=3), await safe.vault()
    key = (await mine.subject_keys([ADA], at=NOW))[ADA]
    await theirs.destroy_subjects([ADA])
    assert (await mine.subject_keys([ADA]))[ADA] == key, "still remembered"
    mine.forget([ADA])
    assert await mine.subject_keys([ADA]) == {}
    assert await mine.by_id([key.id]) == {}
    many = [("account", str(n)) for n in range(20)]
    keys = await mine.subject_keys(many, at=NOW)
    assert await mine.subject_keys(many) == keys
    assert len(mine._cache._named) == len(mine._cache._ids) == 3
    # By hash, as tombstones have subjects after a restore.
    hashes = mine.hasher.hashes(many)
    assert list((await mine.subject_keys(hashes)).values()) == list(keys.values())
    assert await mine.destroy_subjects(hashes) == 20


_MAKES_KEYS = """
import asyncio, sys
from datetime import UTC, datetime
from shared.mesh.store import open_pool
from shared.privacy.vault import MasterKeys, Vault

async def main(url, file):
    pool = await open_pool(url, size=2, application="steward-test-keys")
    vault = Vault(pool, MasterKeys.from_values(file, None))
    await pool.fetchval("SELECT 1")
    print("ready", flush=True)
    sys.stdin.readline()
    await vault.open(datetime(2026, 11, 28, tzinfo=UTC))
    keys = await vault.subject_keys([("account", str(n)) for n in range(2_000)], at=datetime(2026, 11, 28, tzinfo=UTC))
    print(*(key.id + key.secret.hex() for key in keys.values()), flush=True)
    await pool.close()

asyncio.run(main(*sys.argv[1:]))
"""


async def test_two_processes_that_make_a_key_at_once_have_one(safe: Safe) -> None:
    pipe = asyncio.subprocess.PIPE
    processes = [
        await asyncio.create_subprocess_exec(
            sys.executable, "-c", _MAKES_KEYS, safe.url("KEYS"), str(safe.file), stdin=pipe, stdout=pipe, limit=2**20
        )
        for _ in range(2)
    ]
    for process in processes:
        assert process.stdout is not None and await process.stdout.readline() == b"ready\n"
    said = [out.split() for out, _ in await asyncio.gather(*(process.communicate(b"\n") for process in processes))]
    assert len(said[0]) == 2_000 and said[0] == said[1]
    assert len(await safe.rows()) == 2_001


@pytest.mark.promise(60)
async def test_the_master_key_changes_under_running_services_and_leaves_their_rows_alone(
    safe: Safe, tmp_path: Path
) -> None:
    hands = safe.hands(tmp_path)
    running = await safe.vault()
    subjects = [("account", str(n)) for n in range(1_500)]  # more than a chunk
    keys = await running.subject_keys(subjects, at=NOW)
    case = await running.seal_subjects(CASE_ID, [ADA], NOW)
    owner = await asyncpg.connect(safe.url("BILLING_OWNER"))
    try:
        await owner.execute("CREATE TABLE sample (id int, mail text)")
        await owner.copy_records_to_table(
            "sample",
            records=[(n, seal_value(key, f"{n}@x", where="sample.mail")) for n, key in enumerate(keys.values())],
        )
        physical = "SELECT ctid::text, xmin::text, xmax::text, * FROM sample ORDER BY id"
        before = await owner.fetch(physical)

        old = await safe.rows()
        old_master = safe.file.read_text()
        said = await hands.json("keys", "rotate")
        assert said["rewrapped"] == 1_502 and list(said["wrapped"]) == [said["current"]]
        assert "in use" in (await hands("keys", "drop", said["current"], code=1)).output
        assert await owner.fetch(physical) == before
    finally:
        await owner.close()
    new = await safe.rows()
    assert [(r["name"], r["id"], r["created_at"]) for r in new] == [(r["name"], r["id"], r["created_at"]) for r in old]
    assert not {r["wrapped"] for r in new} & {r["wrapped"] for r in old}

    # Nothing was restarted: what runs reads the new master, and wraps by it.
    safe.clock[0] += REMEMBERED_SECONDS
    assert await running.subject_keys(subjects) == keys
    await running.subject_keys([BOB], at=NOW)
    assert "is gone from" in (await hands("keys", "drop", "first")).output
    assert (await hands.json("keys", "status"))["masters"] == [{"id": said["current"], "wraps": 1_503, "known": True}]

    fresh = await safe.vault()
    assert await fresh.subject_keys(subjects) == keys
    assert await fresh.open_subjects(CASE_ID, case) == [ADA]
    for row in before:
        assert open_value(keys["account", str(row["id"])], row["mail"], where="sample.mail") == f"{row['id']}@x"
    # The old master is worth nothing any more, not even beside the destroyed copies of rows.
    safe.file.write_text(old_master)
    with pytest.raises(Misconfigured):
        await safe.vault()
    assert "NOT CONFIGURED HERE" in (await hands("keys", "status", code=1)).output


@pytest.mark.promise(60)
async def test_a_rotation_that_was_cut_off_goes_on_and_the_old_master_is_kept_as_long(
    safe: Safe, tmp_path: Path
) -> None:
    hands = safe.hands(tmp_path)
    vault = await safe.vault()
    await vault.subject_keys([ADA, BOB], at=NOW)
    safe.file.write_text(f"{MasterKeys.new('second')}\n{safe.file.read_text()}")  # made, and nothing wrapped by it yet
    safe.clock[0] += REMEMBERED_SECONDS
    await vault.subject_keys([ADA, ("account", "acc-eve")], at=NOW)
    assert dict(await vault.wrapped()) == {"first": 3, "second": 1}
    assert "it wraps 3 keys" in (await hands("keys", "drop", "first", code=1)).output
    assert (await hands.json("keys", "rotate", "--rewrap-only"))["rewrapped"] == 3
    assert (await hands.json("keys", "rotate", "--rewrap-only"))["rewrapped"] == 0
    await hands("keys", "drop", "first")


@pytest.mark.promise(60)
async def test_neither_keys_nor_what_they_protect_are_in_raw_files(safe: Safe) -> None:
    vault = await safe.vault()
    canary, beside = "canary-4f1d.ada@example.com", "beside-4f1d"
    key = (await vault.subject_keys([ADA], at=NOW))[ADA]
    await vault.make_ingress([TODAY], NOW)
    case = await vault.seal_subjects(CASE_ID, [("account", canary)], NOW)
    secrets = [key.secret, (await vault.key(INGRESS, TODAY.isoformat())).secret, (await vault.case_key(CASE_ID)).secret]
    secrets += [line.partition(":")[2].encode() for line in safe.file.read_text().splitlines()]
    owner = await asyncpg.connect(safe.url("BILLING_OWNER"))
    try:
        await owner.execute("CREATE TABLE sample (mail text, beside text)")
        await owner.execute("CREATE INDEX ON sample (mail)")
        for sealed in (seal_value(key, canary, where="sample.mail"), case):
            await owner.execute("INSERT INTO sample VALUES ($1, $2)", sealed, beside)
    finally:
        await owner.close()
    (mine,) = [row for row in await safe.rows() if row["id"] == key.id]
    async with safe.mesh.world.admin() as admin:
        await admin.execute("CHECKPOINT")
        databases = [r["oid"] for r in await admin.fetch("SELECT oid FROM pg_database WHERE datname LIKE 'steward_%'")]
    postgres = safe.mesh.world.stack.postgres
    assert postgres is not None
    folders = [postgres.data / "base" / str(oid) for oid in databases]

    def where(text: bytes, *more: Path) -> list[Path]:
        return [file for file in _files((*folders, *more)) if _holds(file, text)]

    assert where(beside.encode()) and where(mine["wrapped"]), "what is there is found"
    for secret in (canary.encode(), *secrets):
        assert not where(secret, postgres.data / "pg_wal", safe.mesh.world.stack.home / "logs")

    # A destroyed key stays in the file, wrapped, until the table is written anew.
    await vault.destroy_subjects([ADA])
    async with safe.mesh.world.admin() as admin:
        await admin.execute("CHECKPOINT")
        assert where(mine["wrapped"])
        await store.scrub(safe.url("KEYS_OWNER"))
        await admin.execute("CHECKPOINT")
    assert not where(mine["wrapped"])


def _files(folders: Iterable[Path]) -> list[Path]:
    return [file for folder in folders for file in folder.rglob("*") if file.is_file() and file.stat().st_size]


def _holds(file: Path, text: bytes) -> bool:
    try:
        with file.open("rb") as opened, mmap.mmap(opened.fileno(), 0, access=mmap.ACCESS_READ) as content:
            return content.find(text) >= 0
    except (FileNotFoundError, ValueError):  # the server has removed or cut it meanwhile
        return False


@pytest.mark.promise(60)
async def test_a_wrapped_key_in_another_row_does_not_open(safe: Safe) -> None:
    vault = await safe.vault()
    await vault.subject_keys([ADA, BOB], at=NOW)
    ada, bob = (digest.hex() for digest in vault.hasher.hashes([ADA, BOB]))
    # Bob's row gets Ada's key: whoever may read Bob would read Ada.
    await safe.rows(
        f"""UPDATE vault_key SET wrapped = (SELECT wrapped FROM vault_key WHERE name = '{ada}') WHERE name = '{bob}'"""
    )
    with pytest.raises(Tampered):
        await (await safe.vault()).subject_keys([BOB])


async def test_the_auditor_sees_that_keys_are_there_and_opens_cases_alone(safe: Safe) -> None:
    vault, audit = await safe.vault(), await safe.vault("AUDITOR_KEYS", auditor=True)
    key = (await vault.subject_keys([ADA], at=NOW))[ADA]
    sealed = await vault.seal_subjects(CASE_ID, [BOB, ADA], NOW)
    seen = await safe.rows("SELECT purpose, id, wrapped_by, created_at FROM vault_key", who="AUDITOR_KEYS")
    assert {row["purpose"] for row in seen} == {"subject", "case", "tombstone"}
    for statement in (
        "SELECT wrapped FROM vault_key",
        "SELECT name FROM vault_key",
        "DELETE FROM vault_key",
        "INSERT INTO vault_key SELECT * FROM vault_key",
        "DELETE FROM auditor_key",
        "SELECT id FROM vault_key FOR UPDATE",
    ):
        with pytest.raises(asyncpg.InsufficientPrivilegeError):
            await safe.rows(statement, who="AUDITOR_KEYS")
    assert await audit.open_subjects(CASE_ID, sealed) == [ADA, BOB]
    assert await audit.alive([key.id, "none"]) == {key.id}
    assert await audit.by_id([key.id]) == {} and await audit.keys(SUBJECT, [key.name]) == {}
    await vault.destroy_case(CASE_ID)
    safe.clock[0] += REMEMBERED_SECONDS
    with pytest.raises(Shredded):
        await audit.open_subjects(CASE_ID, sealed)


def at(now: datetime) -> Transaction:
    """A transaction of that instant, without a database."""
    nothing: Any = None
    return Transaction("metering", nothing, now)


@pytest.mark.promise(4, 60)
async def test_what_nobody_could_read_is_sealed_until_its_letter_is_over(safe: Safe) -> None:
    vault, audit = await safe.vault(), await safe.vault("AUDITOR_KEYS", auditor=True)
    letters, raw = LetterSafe(vault), b"\xff\x00 my prompt {"
    kept = await letters.lock(raw, at(NOW))
    assert b"prompt" not in kept and kept != await letters.lock(raw, at(NOW))
    for reader in (letters, LetterSafe(audit)):
        assert await reader.unlock(kept) == raw
        assert await reader.unlock(b'{"data":{}}') == b'{"data":{}}'
    with pytest.raises(Tampered):
        await letters.unlock(kept[:-2] + b"AA")
    later = NOW + timedelta(days=6)
    other = await letters.lock(raw, at(later))
    # A letter's partition is over when seven days are, rounded down: so is its key.
    for now, expected in ((later, [raw, raw]), (NOW + timedelta(days=7), [None, raw])):
        await letters.forget(now.date())
        safe.clock[0] += REMEMBERED_SECONDS
        assert [await LetterSafe(audit).unlock(value) for value in (kept, other)] == expected


async def test_a_service_cannot_exchange_a_key(safe: Safe) -> None:
    await (await safe.vault()).subject_keys([ADA], at=NOW)
    for statement in ("UPDATE vault_key SET wrapped = ''", "TRUNCATE vault_key", "DELETE FROM auditor_key"):
        with pytest.raises(asyncpg.InsufficientPrivilegeError):
            await safe.rows(statement, who="KEYS")
    await safe.rows("DELETE FROM vault_key", who="KEYS")


@pytest.mark.promise(60)
async def test_what_platforms_seal_is_opened_while_the_key_of_its_day_lives(safe: Safe, tmp_path: Path) -> None:
    vault = await safe.vault()
    hands = safe.hands(tmp_path)
    days = [TODAY + timedelta(days=n) for n in range(-2, 3)]
    await vault.make_ingress(days, NOW)
    assert await vault.there(INGRESS, [day.isoformat() for day in days]) == {d.isoformat() for d in days[2:]}
    await vault.make_ingress(days, NOW)
    assert len(await safe.rows("SELECT FROM vault_key WHERE purpose = 'ingress'")) == 3

    printed = (await hands("keys", "ingress", "--day", TODAY.isoformat())).output.strip()
    said = await hands.json("keys", "ingress", "--day", TODAY.isoformat())
    assert f"{said['id']}:{said['public_key']}" == printed
    assert (await vault.ingress(TODAY))[0] == said["id"]
    tomorrow = (await hands("keys", "ingress", "--day", days[3].isoformat())).output
    await hands("keys", "ingress", "--day", days[0].isoformat(), code=1)

    values = [seal("ada@example.com", printed), seal_to("192.0.2.7", tomorrow)]
    damaged = values[0][:-1] + ("A" if values[0][-1] != "A" else "B")
    assert await vault.unseal([values[0], None, values[1]]) == ["ada@example.com", None, "192.0.2.7"]
    # One bad value spoils no batch; a value may not name just any key of the vault.
    subject = (await vault.subject_keys([ADA], at=NOW))[ADA]
    opens = await vault.opener([*values, damaged, None, "no value"])
    assert opens(values[1]) == "192.0.2.7"
    foreign = values[0].replace(said["id"], subject.id)
    for bad, kind in ((damaged, Tampered), ("no value", Tampered), (foreign, Shredded)):
        with pytest.raises(kind) as error:
            (await vault.opener([bad]))(bad)
        assert "ada" not in str(error.value) and bad not in str(error.value)

    assert await vault.destroy_days(INGRESS, days[3]) == 1
    # Even if that day got a key again: it has another id, so what came before is no damage but gone.
    await vault.make_ingress([TODAY], NOW)
    opens = await vault.opener(values)
    with pytest.raises(Shredded):
        opens(values[0])
    assert opens(values[1]) == "192.0.2.7"


async def test_day_keys_end_with_their_day(safe: Safe) -> None:
    vault, other = await safe.vault(), await safe.vault()
    days = [date(2026, 10, 30), date(2026, 10, 31), date(2026, 11, 1)]
    keys, others, ips = DayKeys(vault, "seen"), DayKeys(other, "seen"), DayKeys(vault, "ip")
    for each in (keys, others, ips):
        await each.ensure(days, NOW)
    assert keys.by_ordinal == others.by_ordinal and set(keys.by_ordinal) == {day.toordinal() for day in days}
    assert not set(keys.by_ordinal.values()) & set(ips.by_ordinal.values())
    assert await vault.destroy_days("ip", date(2026, 11, 1)) == 2
    assert await vault.keys("ip", [day.isoformat() for day in days]) == {
        "2026-11-01": await vault.key("ip", "2026-11-01")
    }
    await others.ensure(days, NOW)
    assert keys.by_ordinal == others.by_ordinal, "of this purpose alone"


async def test_ids_lead_to_nobody_and_holds_end(safe: Safe) -> None:
    vault = await safe.vault()
    held = await vault.seal_held("hold-1", "request_log", ['{"a": 1}', '{"a": 2}'], NOW)
    assert await vault.open_held("hold-1", "request_log", held) == ['{"a": 1}', '{"a": 2}']
    with pytest.raises(Tampered):
        await vault.open_held("hold-1", "charge", held)
    await vault.subject_keys([ADA], at=NOW)
    await vault.case_key(CASE_ID, at=NOW)
    for row in await safe.rows():
        if row["purpose"] in (SUBJECT, CASE, "hold"):
            assert row["name"] not in row["id"] and len(row["id"]) == 16
    await vault.destroy_held("hold-1")
    with pytest.raises(Shredded):
        await vault.open_held("hold-1", "request_log", held)
    with pytest.raises(Shredded):
        await vault.case_key("another")
    assert isinstance(await vault.case_key(CASE_ID), Key)


async def test_commands_say_nothing_secret(safe: Safe, tmp_path: Path) -> None:
    hands = safe.hands(tmp_path)
    vault = await safe.vault()
    await vault.make_ingress([TODAY], NOW)
    outputs = [(await hands("keys", *words)).output for words in (
        ["status"], ["status", "--json"], ["rotate"], ["ingress", "--day", TODAY.isoformat()], ["scrub"], ["drop", "first"],
    )]  # fmt: skip
    said = json.dumps(outputs)
    lines = safe.file.read_text().split()
    assert len(lines) == 1 and safe.file.stat().st_mode & 0o777 == 0o600
    secret = (await vault.key(INGRESS, TODAY.isoformat())).secret
    for never in (lines[0].partition(":")[2], secret.hex()):
        assert never not in said
