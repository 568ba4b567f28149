"""The local stack for real: rights of the roles, Kafka's groups, faults, what is kept and what is left."""

from __future__ import annotations

import asyncio
import os
import signal
import sys
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Any

import asyncpg
import pytest
import pytest_asyncio
from aiokafka import AIOKafkaConsumer, AIOKafkaProducer
from aiokafka.admin import AIOKafkaAdminClient, NewTopic
from aiosmtplib import SMTP

from deploy.local import doctor, env
from deploy.local.databases import provision, with_login
from deploy.local.errors import LocalError, LocalRefusal
from deploy.local.idle import wait_idle
from deploy.local.kafka import KafkaNode
from deploy.local.ports import answers
from deploy.local.postgres import PostgresServer
from deploy.local.probe import get_json
from deploy.local.process import Identity
from deploy.local.stack import Stack
from deploy.local.supervisor import Supervisor
from deploy.rooms import ROOMS

pytestmark = pytest.mark.asyncio(loop_scope="module")

STUB = (sys.executable, str(Path(__file__).with_name("stub_room.py")))
TOPIC = "local-stack-test"


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def stack() -> AsyncIterator[Stack]:
    """A whole stack with stand-ins for the services, started once."""
    async with Stack.throw_away(serve=STUB, observe=True) as running:
        yield running


async def test_the_app_role_works_with_rows_and_cannot_change_tables(stack: Stack) -> None:
    await _run(stack.settings["STEWARD_BILLING_OWNER_DATABASE_URL"], *_LEDGER)
    app = stack.settings["STEWARD_BILLING_DATABASE_URL"]
    await _run(
        app,
        "INSERT INTO ledger (amount) VALUES (1)",
        "INSERT INTO notes DEFAULT VALUES",
        "UPDATE notes SET text = 'x'",
        "DELETE FROM notes",
        "CREATE TEMP TABLE incoming (LIKE ledger) ON COMMIT DROP",
    )
    for statement in (
        "UPDATE ledger SET amount = 2",
        "DELETE FROM ledger",
        "TRUNCATE notes",
        "CREATE TABLE mine (a int)",
        "ALTER TABLE notes ADD COLUMN b int",
        "DROP TABLE notes",
        "CREATE SCHEMA mine",
        "ALTER DEFAULT PRIVILEGES FOR ROLE steward_billing_owner GRANT DELETE ON TABLES TO PUBLIC",
    ):
        await _is_refused(app, statement)


async def test_the_auditor_reads_and_nothing_else(stack: Stack) -> None:
    await _run(stack.settings["STEWARD_METERING_OWNER_DATABASE_URL"], "CREATE TABLE usage (a int)")
    auditor = stack.settings["STEWARD_AUDITOR_METERING_DATABASE_URL"]
    await _run(auditor, "SELECT * FROM usage")
    for statement in (
        "INSERT INTO usage VALUES (1)",
        "DELETE FROM usage",
        "SELECT * FROM usage FOR UPDATE",
        "CREATE TABLE mine (a int)",
        "CREATE TEMP TABLE mine (a int)",
    ):
        await _is_refused(auditor, statement)


async def test_of_the_keys_the_auditor_sees_what_their_owner_grants(stack: Stack) -> None:
    owner, auditor = (stack.settings[f"STEWARD_{who}_DATABASE_URL"] for who in ("KEYS_OWNER", "AUDITOR_KEYS"))
    await _run(owner, "CREATE TABLE day_keys (day date, key bytea)")
    await _is_refused(auditor, "SELECT day FROM day_keys")
    await _run(owner, "GRANT SELECT (day) ON day_keys TO steward_auditor")
    await _run(auditor, "SELECT day FROM day_keys")
    await _is_refused(auditor, "SELECT key FROM day_keys")
    await _run(stack.settings["STEWARD_KEYS_DATABASE_URL"], "INSERT INTO day_keys VALUES ('2026-01-01', '\\x00')")


@pytest.mark.parametrize("database", ["steward_metering", "steward_audit", "steward_keys"])
async def test_a_room_cannot_connect_to_another_ones_database(stack: Stack, database: str) -> None:
    own = stack.settings["STEWARD_BILLING_DATABASE_URL"]
    with pytest.raises(asyncpg.InsufficientPrivilegeError):
        await asyncpg.connect(f"{own.rpartition('/')[0]}/{database}")


async def test_passwords_are_asked_for_and_not_stored_in_clear(stack: Stack) -> None:
    with pytest.raises(asyncpg.InvalidPasswordError):
        await asyncpg.connect(with_login(stack.settings["STEWARD_POSTGRES_URL"], "postgres", "steward_admin", "x"))
    stored = await _fetch(
        stack.settings["STEWARD_POSTGRES_URL"],
        "SELECT DISTINCT left(rolpassword, 14) FROM pg_authid WHERE rolcanlogin",
    )
    assert stored == ["SCRAM-SHA-256$"]


async def test_the_server_keeps_what_it_commits(stack: Stack) -> None:
    admin = stack.settings["STEWARD_POSTGRES_URL"]
    for setting, value in {
        "fsync": "on",
        "synchronous_commit": "on",
        "full_page_writes": "on",
        "data_checksums": "on",
        "TimeZone": "UTC",
        "listen_addresses": "127.0.0.1",
        "unix_socket_directories": "",
        "idle_in_transaction_session_timeout": "10s",
    }.items():
        assert await _fetch(admin, f"SHOW {setting}") == [value], setting


async def test_a_row_that_is_refused_is_not_in_the_servers_log(stack: Stack) -> None:
    with pytest.raises(asyncpg.CheckViolationError, match="anna@example"):
        await _run(
            stack.settings["STEWARD_BILLING_OWNER_DATABASE_URL"],
            "CREATE TABLE refused (email text CHECK (email = ''))",
            "PREPARE put(text) AS INSERT INTO refused VALUES ($1 || '@example.org')",
            "EXECUTE put('anna')",
        )
    said = (stack.home / "logs" / "postgres.log").read_text()
    assert "violates check constraint" in said and "anna@" not in said


async def test_provisioning_again_changes_nothing_and_strangers_are_refused(stack: Stack) -> None:
    admin = stack.settings["STEWARD_POSTGRES_URL"]
    urls = {name: url for name, url in stack.settings.items() if name.endswith("_DATABASE_URL")}
    assert await provision(admin, ROOMS, stack.settings) == urls
    with pytest.raises(LocalRefusal, match="another stack uses this server"):
        await provision(admin, ROOMS, {})
    with pytest.raises(LocalError, match="cannot be used") as caught:
        await provision(with_login(admin, "postgres", "nobody_here", "secret"), ROOMS, {})
    assert "secret" not in str(caught.value)


async def test_kafka_serves_producers_and_groups_and_makes_no_topic_by_itself(stack: Stack) -> None:
    servers = stack.settings["STEWARD_KAFKA_BOOTSTRAP_SERVERS"]
    await _make_topic(servers, "groups")
    await _produce(servers, "groups", b"one", b"two")
    consumer = AIOKafkaConsumer(
        "groups",
        bootstrap_servers=servers,
        group_id="local-stack",
        auto_offset_reset="earliest",
        enable_auto_commit=False,
        session_timeout_ms=6_000,
    )
    await consumer.start()
    try:
        got = [await consumer.getone() for _ in range(2)]
        await consumer.commit()
    finally:
        await consumer.stop()
    assert [record.value for record in got] == [b"one", b"two"]
    assert {record.timestamp_type for record in got} == {1}, "LogAppendTime"
    admin = AIOKafkaAdminClient(bootstrap_servers=servers)
    await admin.start()
    try:
        described = await admin.describe_topics(["never-made"])
        assert [topic["error_code"] for topic in described] == [3], "UNKNOWN_TOPIC_OR_PARTITION"
    finally:
        await admin.close()


async def test_a_room_is_told_what_it_needs_and_no_more(stack: Stack) -> None:
    told = {name: set(await get_json(room.port, "/environment")) for name, room in stack.rooms.items()}
    for name, names in told.items():
        assert f"STEWARD_{name.upper()}_DATABASE_URL" in names
        assert "STEWARD_KAFKA_BOOTSTRAP_SERVERS" in names
        assert "STEWARD_POSTGRES_URL" not in names
        others = {f"STEWARD_{other.upper()}_DATABASE_URL" for other in ROOMS if other != name}
        assert not names & others
    assert "STEWARD_AUDITOR_BILLING_DATABASE_URL" in told["audit"]
    assert "STEWARD_KEYS_DATABASE_URL" not in told["audit"]
    assert "STEWARD_AUDITOR_KEYS_DATABASE_URL" in told["audit"]
    assert all("STEWARD_MASTER_KEY_FILE" in names and "STEWARD_MASTER_KEY" not in names for names in told.values())
    assert not any("AUDITOR" in name for name in told["billing"])
    assert [name for name, names in told.items() if any("SMTP" in n or "MAIL" in n for n in names)] == ["notifications"]


async def test_mails_of_a_local_stack_are_files_one_each(stack: Stack) -> None:
    assert stack.mail is not None and stack.settings["STEWARD_SMTP_URL"] == stack.mail.url
    texts = [f"Subject: {n}\r\n\r\n.a line with a dot\r\n".encode() for n in range(3)]
    for n, text in enumerate(texts):
        if n == 2:  # a crash loses nothing, and the port stays
            await stack.mail.kill()
            assert not await answers(stack.mail.port)
            await stack.mail.start()
        async with SMTP(hostname="127.0.0.1", port=stack.mail.port) as client:
            await client.sendmail("a@localhost", "b@localhost", text)
    assert [path.name for path in stack.mail.mails()] == ["000001.eml", "000002.eml", "000003.eml"]
    assert [path.read_bytes() for path in stack.mail.mails()] == texts
    assert {path.stat().st_mode & 0o777 for path in stack.mail.mails()} == {0o600}


async def test_observers_stand_beside_and_every_room_is_told(stack: Stack) -> None:
    traces, prometheus = stack.traces, stack.prometheus
    assert traces is not None and prometheus is not None and {"traces", "prometheus"} <= {p.name for p in stack.parts}
    told = [set(await get_json(room.port, "/environment")) for room in stack.rooms.values()]
    assert all(set(traces.environment()) <= names for names in told)
    wanted = {
        (f"steward/{name}", f"{name}-0", f"http://127.0.0.1:{room.port}/metrics") for name, room in stack.rooms.items()
    }
    seen: set[tuple[str, str, str]] = set()
    async with asyncio.timeout(20):
        while seen != wanted:  # it is ready a moment before it has read whom to scrape
            targets = (await get_json(prometheus.port, "/api/v1/targets"))["data"]["activeTargets"]
            seen = {(one["labels"]["job"], one["labels"]["pod"], one["scrapeUrl"]) for one in targets}
    port = traces.port
    await traces.kill()
    await traces.start()
    assert traces.port == port, "whoever sends to it finds it again"


async def test_the_master_key_is_in_a_private_file_and_nowhere_else(stack: Stack) -> None:
    file = Path(stack.settings["STEWARD_MASTER_KEY_FILE"])
    (line,) = file.read_text(encoding="utf-8").splitlines()
    assert file.parent == stack.home and file.stat().st_mode & 0o777 == 0o600
    secret = line.partition(":")[2]
    assert len(secret) == 44
    assert secret not in stack.env_file.read_text(encoding="utf-8")
    assert not any(
        secret in log.read_text(encoding="utf-8", errors="replace") for log in (stack.home / "logs").iterdir()
    )
    made = Stack(stack.home, environ={"STEWARD_MASTER_KEY": "given"})._master_key()
    assert made is None and Stack(stack.home, environ={})._master_key() == str(file)
    assert file.read_text(encoding="utf-8").splitlines() == [line], "a key that is there is kept"


async def test_a_room_that_dies_is_started_again_and_one_that_was_stopped_is_not(stack: Stack) -> None:
    said: list[str] = []
    supervisor = Supervisor(stack, said.append)
    supervisor.watch()
    try:
        billing = stack.rooms["billing"]
        assert billing.child is not None
        first = billing.child.identity
        os.kill(first.pid, signal.SIGKILL)
        await _until(lambda: any("is ready again" in text for text in said))
        assert billing.running and billing.child.identity != first
        assert supervisor.restarts("billing") == 1
        assert "SIGKILL" in said[0] and "billing.log" in said[0]
        await stack.rooms["audit"].stop()
        assert not stack.rooms["audit"].running
        assert (await wait_idle(stack.settings, timeout=0.0)).away == ["audit"]
        await stack.rooms["audit"].start()
        assert supervisor.restarts("audit") == 0
    finally:
        await supervisor.rest()
    assert (await wait_idle(stack.settings, timeout=10.0)).idle


async def test_the_doctor_finds_a_running_stack_well_and_says_what_is_wrong(stack: Stack, tmp_path: Path) -> None:
    healthy = await doctor.examine(tmp_path, stack.settings)
    assert {finding.level for finding in healthy} == {"OK"}, healthy
    admin = stack.settings["STEWARD_POSTGRES_URL"]
    await _run(admin, "CREATE ROLE weak LOGIN PASSWORD 'x'")
    weak = {**stack.settings, "STEWARD_POSTGRES_URL": with_login(admin, "postgres", "weak", "x")}
    failed = [finding for finding in await doctor.examine(tmp_path, weak) if finding.level == "FAIL"]
    assert [(f.away, "CREATEROLE" in f.todo) for f in failed] == [(False, True)]
    away = {**stack.settings, "STEWARD_KAFKA_BOOTSTRAP_SERVERS": "127.0.0.1:1"}
    assert [f.away for f in await doctor.examine(tmp_path, away) if f.level == "FAIL"] == [True]
    for url, is_away in (("smtp://127.0.0.1:1", True), ("http://127.0.0.1", False)):
        found = await doctor.examine(tmp_path, {**stack.settings, "STEWARD_SMTP_URL": url})
        assert [f.away for f in found if f.level == "FAIL"] == [is_away]


async def test_a_second_stack_in_the_same_folder_is_refused(stack: Stack) -> None:
    with pytest.raises(LocalRefusal, match="already runs"):
        await Stack(stack.home, use_existing=False).start_servers()


async def test_data_ports_and_passwords_outlive_faults_and_stops_and_nothing_is_left_running(
    tmp_path: Path,
) -> None:
    home = tmp_path / "home"
    first = Stack(home, environ=_bare(), fast_start=True, rooms=("billing",))
    await first.start_servers()
    kafka, postgres = first.kafka, first.postgres
    assert kafka is not None and postgres is not None
    try:
        settings = dict(first.settings)
        owner = settings["STEWARD_BILLING_OWNER_DATABASE_URL"]
        await _make_topic(kafka.bootstrap_servers, TOPIC)
        await _produce(kafka.bootstrap_servers, TOPIC, b"before the crash")
        await _run(owner, "CREATE TABLE kept (a int)", "INSERT INTO kept VALUES (1)")
        processes = [_identity(kafka), _identity(postgres)]

        await kafka.kill()
        assert not await answers(kafka.port)
        await kafka.start()
        await postgres.stop("immediate")
        await postgres.start()
        await postgres.kill()
        await postgres.start()
        await _run(owner, "INSERT INTO kept VALUES (2)")
        processes += [_identity(kafka), _identity(postgres)]
    finally:
        await first.stop()
    assert not any(process.alive() for process in processes)
    assert not await answers(kafka.port) and not await answers(postgres.port)

    second = Stack(home, environ=_bare(), fast_start=True, rooms=("billing",))
    try:
        await second.start_servers()
        assert second.settings == settings
        assert await _fetch(owner, "SELECT a FROM kept ORDER BY a") == [1, 2]
        assert await _read_one(settings["STEWARD_KAFKA_BOOTSTRAP_SERVERS"], TOPIC) == b"before the crash"
        assert env.env_file(home).stat().st_mode & 0o777 == 0o600
    finally:
        await second.stop()
        assert second.postgres is not None
        second.postgres.remove()


async def test_a_throw_away_stack_leaves_nothing() -> None:
    stack = Stack.throw_away(serve=(sys.executable, "-c", "raise SystemExit('no such table')"))
    with pytest.raises(LocalError, match="no such table"):
        await stack.start()
    assert stack.kafka is not None and stack.postgres is not None
    assert not stack.kafka.running and not stack.postgres.running
    assert not stack.home.exists()


_LEDGER = (
    "CREATE TABLE ledger (id bigint GENERATED ALWAYS AS IDENTITY, amount int)",
    "REVOKE UPDATE, DELETE ON ledger FROM steward_billing_app",
    "CREATE TABLE notes (id bigserial, text text)",
)


def _bare() -> dict[str, str]:
    """The environment without the settings of any stack."""
    return {name: value for name, value in os.environ.items() if not name.startswith("STEWARD_")}


def _identity(part: KafkaNode | PostgresServer) -> Identity:
    assert part.child is not None
    return part.child.identity


async def _until(condition: Callable[[], bool]) -> None:
    async with asyncio.timeout(20):
        while not condition():
            await asyncio.sleep(0.05)  # lint: allow sleep-in-test -- the supervisor says it in a list, not by an event


async def _run(url: str, *statements: str) -> None:
    connection = await asyncpg.connect(url)
    try:
        for statement in statements:
            await connection.execute(statement)
    finally:
        await connection.close()


async def _is_refused(url: str, statement: str) -> None:
    with pytest.raises(asyncpg.InsufficientPrivilegeError):
        await _run(url, statement)


async def _fetch(url: str, query: str) -> list[Any]:
    connection = await asyncpg.connect(url)
    try:
        return [row[0] for row in await connection.fetch(query)]
    finally:
        await connection.close()


async def _make_topic(servers: str, name: str) -> None:
    admin = AIOKafkaAdminClient(bootstrap_servers=servers)
    await admin.start()
    try:
        answer = await admin.create_topics([NewTopic(name, 1, 1)])
        assert [code for _, code, *_ in answer.topic_errors] == [0]
    finally:
        await admin.close()


async def _produce(servers: str, topic: str, *values: bytes) -> None:
    producer = AIOKafkaProducer(bootstrap_servers=servers, enable_idempotence=True)
    await producer.start()
    try:
        for value in values:
            await producer.send_and_wait(topic, value)
    finally:
        await producer.stop()


async def _read_one(servers: str, topic: str) -> bytes | None:
    consumer = AIOKafkaConsumer(topic, bootstrap_servers=servers, auto_offset_reset="earliest")
    await consumer.start()
    try:
        async with asyncio.timeout(20):
            value: bytes | None = (await consumer.getone()).value
            return value
    finally:
        await consumer.stop()
