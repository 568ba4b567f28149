"""`steward doctor`: is everything there, before anything starts? Each finding says what to do about it.

Looks at the servers that the environment names, and at what this machine needs to run the others itself.
"""

from __future__ import annotations

import asyncio
import shutil
import sys
import time
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Literal

import asyncpg

from deploy.local import env, jars, state
from deploy.local.cache import cache_folder
from deploy.local.databases import connect, without_password
from deploy.local.errors import LocalError
from deploy.local.java import find_java
from deploy.local.postgres_binaries import find_binaries, server_account
from deploy.local.stack import KAFKA_SERVERS, LOCAL_SENDER, MAIL_FROM, POSTGRES_URL, SMTP_URL, Stack

Level = Literal["OK", "WARN", "FAIL"]

_OLDEST_POSTGRES = 150_000
_FREE_BYTES = 5 * 1024**3
_SKEW_WARN_SECONDS, _SKEW_FAIL_SECONDS = 1.0, 60.0
# Requests by their number in the protocol: which ones a broker knows tells its release.
_LIST_TRANSACTIONS_SINCE_3, _GROUP_HEARTBEAT_SINCE_4 = 66, 68
_PROBE_TOPIC = "steward-doctor-probe"


@dataclass(frozen=True, slots=True)
class Finding:
    """One line. `away`: the server could not be reached at all."""

    level: Level
    text: str
    todo: str = ""
    away: bool = False

    def as_dict(self) -> dict[str, Any]:
        """For programs."""
        return asdict(self)


async def examine(home: Path, environ: Mapping[str, str]) -> list[Finding]:
    """All findings, the servers' first."""
    stack = Stack(home, environ=environ)
    findings: list[Finding] = [_python()]
    if stack.kafka is None:
        findings += await _kafka(environ)
    else:
        findings += _local_kafka()
    if stack.postgres is None:
        findings += await _postgres(environ[POSTGRES_URL])
    else:
        findings += _local_postgres()
    if stack.mail is None:
        findings.append(await _smtp(environ))
    else:
        findings.append(Finding("OK", f"mails will be files in {stack.mail.folder}"))
    findings += _machine(home)
    return findings


def _python() -> Finding:
    version = ".".join(str(number) for number in sys.version_info[:3])
    if (3, 11) <= sys.version_info[:2] <= (3, 13):
        return Finding("OK", f"Python {version}")
    return Finding("FAIL", f"Python {version}", "Python 3.11 to 3.13 is needed: run `make install` with one of them")


def _local_kafka() -> list[Finding]:
    findings = []
    try:
        java = find_java()
        findings.append(Finding("OK", f"Java {java.version} ({java.path})"))
    except LocalError as error:
        what, _, todo = str(error).partition(": ")
        findings.append(Finding("FAIL", what, todo))
    try:
        there = jars.folder(cache_folder())
    except LocalError as error:
        return [*findings, Finding("FAIL", str(error), "set STEWARD_CACHE")]
    missing = [jar for jar in jars.locked() if not (there / jar.file_name).exists()]
    if missing:
        size = sum(jar.size for jar in missing) / 1e6
        text = f"Apache Kafka {jars.KAFKA_VERSION} is not in the cache yet"
        findings.append(Finding("OK", text, f"the first start downloads {len(missing)} files, {size:.0f} MB"))
    else:
        findings.append(Finding("OK", f"Apache Kafka {jars.KAFKA_VERSION} ({there})"))
    return findings


def _local_postgres() -> list[Finding]:
    try:
        binaries = find_binaries()
        account = server_account()
    except LocalError as error:
        what, _, todo = str(error).partition(": ")
        return [Finding("FAIL", what, todo)]
    under = f", will run under user {account.name}" if account is not None else ""
    return [Finding("OK", f"PostgreSQL {binaries.version} ({binaries.bin}){under}")]


async def _smtp(environ: Mapping[str, str]) -> Finding:
    """Whether the mail server greets us, with TLS and login as its URL asks for them. No mail is sent."""
    from services.notifications.app.postman import Postman
    from shared.mesh.settings import Misconfigured

    production = environ.get("STEWARD_ENV") == "production"
    sender = environ.get(MAIL_FROM) or LOCAL_SENDER
    where = without_password(environ[SMTP_URL])
    try:
        postman = Postman(environ[SMTP_URL], sender=sender, production=production)
    except Misconfigured as error:
        return Finding("FAIL", str(error), f"correct {SMTP_URL}")
    trouble = await postman.knock()
    await postman.close()
    if trouble:
        text = f"the mail server at {where} cannot be used ({trouble})"
        return Finding("FAIL", text, f"start it, or correct {SMTP_URL}", away=trouble == "away")
    return Finding("OK", f"the mail server at {where} answers")


def _machine(home: Path) -> list[Finding]:
    findings = []
    there = next(folder for folder in (home, *home.parents) if folder.exists())
    free = shutil.disk_usage(there).free
    text = f"{free / 1024**3:.0f} GiB free in {there}"
    if free < _FREE_BYTES:
        findings.append(Finding("WARN", text, "5 GiB are good to have: free some, or set STEWARD_HOME elsewhere"))
    else:
        findings.append(Finding("OK", text))
    try:
        env.read(env.env_file(home))
    except ValueError as error:
        findings.append(Finding("FAIL", str(error), "correct that line, or remove the file"))
    known = state.read(home)
    left = state.leftovers(known)
    if known is not None and known.supervisor.alive():
        findings.append(Finding("OK", f"a stack runs in {home}"))
    elif left:
        names = ", ".join(part.name for part in left)
        text = f"{names} of an earlier stack still run without a supervisor"
        findings.append(Finding("WARN", text, "`steward down` ends them, `steward up` replaces them"))
    return findings


async def _kafka(environ: Mapping[str, str]) -> list[Finding]:
    from aiokafka.admin import AIOKafkaAdminClient
    from aiokafka.errors import KafkaError

    from shared.mesh.settings import KafkaSettings, Misconfigured

    servers = environ[KAFKA_SERVERS]
    try:
        settings = KafkaSettings.from_env(environ)
        arguments = settings.client()
    except (Misconfigured, OSError, ValueError) as error:
        return [Finding("FAIL", f"Kafka's settings: {error}", "correct STEWARD_KAFKA_*")]
    admin = AIOKafkaAdminClient(**arguments, request_timeout_ms=10_000)
    try:
        async with asyncio.timeout(15):
            await admin.start()
    except (KafkaError, OSError, TimeoutError, ValueError) as error:
        await admin.close()
        text = f"Kafka at {servers} cannot be reached ({str(error) or type(error).__name__})"
        return [Finding("FAIL", text, f"start it, or correct {KAFKA_SERVERS} and STEWARD_KAFKA_*", away=True)]
    try:
        findings = [Finding("OK", f"Kafka at {servers} answers ({settings.security_protocol})")]
        findings.append(await _kafka_version(admin))
        findings.append(await _kafka_groups(admin))
        findings.append(await _kafka_rights(admin, settings.replication))
        findings += await _topics(settings)
    except (KafkaError, OSError, TimeoutError) as error:
        text = f"Kafka stopped answering ({str(error) or type(error).__name__})"
        findings.append(Finding("FAIL", text, "look at the broker's log"))
    finally:
        await admin.close()
    return findings


async def _kafka_version(admin: Any) -> Finding:
    client = admin._client  # the admin client has no public call for this
    connection = await client._get_conn(client.get_random_node())
    versions: Mapping[int, tuple[int, int]] = connection._versions if connection is not None else {}
    if _LIST_TRANSACTIONS_SINCE_3 not in versions:
        return Finding("FAIL", "the broker is older than Kafka 3", "Kafka 3 or newer is needed; 4 is tested")
    release = "4.0 or newer" if _GROUP_HEARTBEAT_SINCE_4 in versions else "3"
    return Finding("OK", f"the broker speaks the protocol of Kafka {release}")


async def _kafka_groups(admin: Any) -> Finding:
    from aiokafka.errors import KafkaError

    try:
        await admin.list_consumer_group_offsets(_PROBE_TOPIC)
    except KafkaError as error:
        todo = "allow READ on groups, and see that the offsets topic can be made (its replication factor)"
        return Finding("FAIL", f"no group request is answered ({type(error).__name__})", todo)
    return Finding("OK", "consumer groups are served")


async def _kafka_rights(admin: Any, replication: int) -> Finding:
    from aiokafka.admin import NewTopic
    from aiokafka.errors import for_code

    probe = NewTopic(_PROBE_TOPIC, 1, replication)
    answer = await admin.create_topics([probe], timeout_ms=10_000, validate_only=True)
    for _, code, *said in answer.topic_errors:
        if code:
            why = f"{for_code(code).__name__} {said[0] if said and said[0] else ''}".strip()
            todo = "allow CREATE on the cluster, and set STEWARD_KAFKA_REPLICATION to what it can hold"
            return Finding("FAIL", f"topics cannot be made ({why})", todo)
    return Finding("OK", f"topics can be made (replication {replication}; nothing was made)")


async def _topics(settings: Any) -> list[Finding]:
    """Topics that exist already, compared with the contract."""
    from shared.contract.topics import TOPICS
    from shared.mesh.admin import topic_settings

    have = await topic_settings(settings)
    present = [topic for topic in TOPICS if have.get(topic.name)]
    findings = []
    for topic in present:
        wrong = [
            f"{name} = {have[topic.name].get(name)} (the contract: {value})"
            for name, value in topic.config(hurried=settings.hurried).items()
            if have[topic.name].get(name) != value
        ]
        if wrong:
            todo = "set them with kafka-configs.sh --alter: the contract's bounds on personal data rest on them"
            findings.append(Finding("FAIL", f"topic {topic.name}: {'; '.join(wrong)}", todo))
    if not findings:
        findings.append(Finding("OK", f"{len(present)} of the contract's {len(TOPICS)} topics exist, all as it says"))
    return findings


async def _postgres(url: str) -> list[Finding]:
    try:
        connection = await connect(url)
    except LocalError as error:
        what, _, todo = str(error).rpartition(": ")
        return [Finding("FAIL", what, todo, away=True)]
    try:
        findings = [
            Finding("OK", "PostgreSQL answers"),
            await _version(connection),
            await _rights(connection),
        ]
        findings += [await _clock(connection), await _honesty(connection)]
        return findings
    except (asyncpg.PostgresError, OSError, TimeoutError) as error:
        return [Finding("FAIL", f"PostgreSQL stopped answering ({error})", "look at the server's log")]
    finally:
        await connection.close()


async def _version(connection: asyncpg.Connection[asyncpg.Record]) -> Finding:
    number = int(await connection.fetchval("SHOW server_version_num"))
    shown = await connection.fetchval("SHOW server_version")
    if number < _OLDEST_POSTGRES:
        return Finding("FAIL", f"PostgreSQL {shown}", "PostgreSQL 15 or newer is needed")
    return Finding("OK", f"PostgreSQL {shown}")


async def _rights(connection: asyncpg.Connection[asyncpg.Record]) -> Finding:
    row = await connection.fetchrow(
        "SELECT rolname, rolsuper, rolcreatedb, rolcreaterole FROM pg_roles WHERE rolname = current_user"
    )
    assert row is not None
    if row["rolsuper"] or (row["rolcreatedb"] and row["rolcreaterole"]):
        return Finding("OK", f"{row['rolname']} may make databases and roles")
    todo = f'ALTER ROLE "{row["rolname"]}" CREATEDB CREATEROLE, or another user in {POSTGRES_URL}'
    return Finding("FAIL", f"{row['rolname']} may not make databases and roles", todo)


async def _clock(connection: asyncpg.Connection[asyncpg.Record]) -> Finding:
    """The server's clock against this machine's, in the middle of the question."""
    before = time.monotonic()
    here = datetime.now(UTC)
    there: datetime = await connection.fetchval("SELECT clock_timestamp()")
    middle = (time.monotonic() - before) / 2
    skew = (there - here).total_seconds() - middle
    text = f"clocks of this machine and PostgreSQL differ by {abs(skew):.3f} s (+/- {middle:.3f})"
    if abs(skew) > _SKEW_FAIL_SECONDS:
        return Finding("FAIL", text, "set both by NTP: events would be quarantined as from the future")
    if abs(skew) > _SKEW_WARN_SECONDS:
        return Finding("WARN", text, "set both by NTP")
    return Finding("OK", text)


async def _honesty(connection: asyncpg.Connection[asyncpg.Record]) -> Finding:
    """Whether a COMMIT that was answered is kept through a crash."""
    off = [name for name in ("fsync", "full_page_writes") if await connection.fetchval(f"SHOW {name}") == "off"]
    if await connection.fetchval("SHOW synchronous_commit") in ("off", "local"):
        off.append("synchronous_commit")
    if off:
        todo = "switch it on: the cursor of a batch and its effects must survive together"
        return Finding("WARN", f"PostgreSQL may lose what it has committed: {', '.join(off)} is off", todo)
    return Finding("OK", "what PostgreSQL commits survives a crash")
