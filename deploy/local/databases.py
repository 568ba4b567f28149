"""One database for each service and one for the keys: owner and app role each, and a role that only reads.

`steward_<name>_owner` owns the database and runs the migrations. `steward_<name>_app` runs the service: it
reads and writes rows of the owner's tables, and cannot make, change or drop a table. `steward_auditor` may
SELECT in the services' databases; in the keys' database it may connect and sees what the owner of the keys
grants it, no more: ids and dates of all keys, and the wrapped keys of cases. All services share one app role
there. Other roles of the server cannot connect. Rights on tables are the owner's default
privileges, so they hold for tables that are yet to come, and a migration can take some away again (the
ledger's UPDATE and DELETE) for good.

All of this is safe to repeat, and needs an administrator with CREATEDB and CREATEROLE, not a superuser.
"""

from __future__ import annotations

import base64
import hashlib
import hmac
import secrets
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from urllib.parse import quote, unquote, urlsplit, urlunsplit

import asyncpg

from deploy.local.errors import LocalError, LocalRefusal

KEYS = "keys"
AUDITOR = "steward_auditor"
# As PostgreSQL itself does; our passwords are random, so more would only cost time.
_SCRAM_ITERATIONS = 4096
# One provisioning at a time on one server.
_LOCK = 0x5374_6577_6172_6421


@dataclass(frozen=True, slots=True)
class Names:
    """What belongs to one service, or to the keys."""

    name: str

    @property
    def database(self) -> str:
        return f"steward_{self.name}"

    @property
    def owner(self) -> str:
        return f"steward_{self.name}_owner"

    @property
    def app(self) -> str:
        return f"steward_{self.name}_app"

    @property
    def owner_variable(self) -> str:
        return f"STEWARD_{self.name.upper()}_OWNER_DATABASE_URL"

    @property
    def app_variable(self) -> str:
        return f"STEWARD_{self.name.upper()}_DATABASE_URL"

    @property
    def auditor_variable(self) -> str:
        return f"STEWARD_AUDITOR_{self.name.upper()}_DATABASE_URL"


def role_settings(role: str) -> tuple[str, ...]:
    """What holds for every session of `role`, on every server. Its name is one of `Names`, or the auditor's."""
    return (
        # A frozen process must not hold a partition's row for ever.
        f"ALTER ROLE {role} SET idle_in_transaction_session_timeout = '10s'",
        f"ALTER ROLE {role} SET timezone = 'UTC'",
        f"ALTER ROLE {role} SET jit = 'off'",
    )


def rights(room: Names) -> tuple[str, ...]:
    """Who may do what in the room's database, as statements for its owner or a superuser in that database."""
    default = f"ALTER DEFAULT PRIVILEGES FOR ROLE {room.owner} IN SCHEMA public GRANT"
    statements = (
        f"REVOKE ALL ON DATABASE {room.database} FROM PUBLIC",
        f"GRANT CONNECT, TEMPORARY ON DATABASE {room.database} TO {room.app}",
        f"GRANT CONNECT ON DATABASE {room.database} TO {AUDITOR}",
        "REVOKE ALL ON SCHEMA public FROM PUBLIC",
        f"GRANT USAGE ON SCHEMA public TO {room.app}, {AUDITOR}",
        f"{default} SELECT, INSERT, UPDATE, DELETE ON TABLES TO {room.app}",
        f"{default} USAGE ON SEQUENCES TO {room.app}",
    )
    return statements if room.name == KEYS else (*statements, f"{default} SELECT ON TABLES TO {AUDITOR}")


async def provision(
    admin_url: str,
    services: Iterable[str],
    known: Mapping[str, str],
    *,
    take_over: bool = False,
    remember: Callable[[Mapping[str, str]], object] | None = None,
) -> dict[str, str]:
    """Makes what is missing and returns every database URL by the name of its variable.

    `remember` is given the URLs before the first change, so that no password is lost when a later step fails.
    `known` are the settings of the env file: passwords there are kept. A role that exists on the server
    while its password is not in `known` belongs to somebody: LocalRefusal, unless `take_over` gives it a new
    password. Raises LocalError when the server cannot be reached or refuses.
    """
    rooms = [Names(name) for name in (*services, KEYS)]
    passwords = _passwords(rooms, known)
    urls = _urls(admin_url, rooms, passwords)
    admin = await connect(admin_url)
    try:
        await admin.execute("SELECT pg_advisory_lock($1)", _LOCK)
        if not take_over:
            await _refuse_strangers(admin, passwords, known)
        if remember is not None:
            remember(urls)
        for role, password in passwords.items():
            await _role(admin, role, password)
        for room in rooms:
            await _database(admin, room)
        for room in rooms:
            await _rights(with_login(admin_url, room.database, room.owner, passwords[room.owner]), room)
    except asyncpg.PostgresError as error:
        raise LocalError(
            f"PostgreSQL refused to make the databases ({error}): the user in STEWARD_POSTGRES_URL needs "
            "CREATEDB and CREATEROLE; `steward doctor` shows its rights"
        ) from error
    finally:
        await admin.close()
    return urls


async def connect(url: str, timeout: float = 10.0) -> asyncpg.Connection[asyncpg.Record]:
    """A connection. Raises LocalError, with the server but never the password in its text."""
    try:
        return await asyncpg.connect(url, timeout=timeout)
    except (OSError, TimeoutError, asyncpg.PostgresError, asyncpg.InterfaceError) as error:
        raise LocalError(
            f"PostgreSQL at {without_password(url)} cannot be used ({str(error) or type(error).__name__}): "
            "start it, or correct STEWARD_POSTGRES_URL"
        ) from error


def scram_secret(password: str) -> str:
    """What the server stores of a password (SCRAM-SHA-256, RFC 5802), so that no server log can hold it."""
    salt = secrets.token_bytes(16)
    salted = hashlib.pbkdf2_hmac("sha256", password.encode(), salt, _SCRAM_ITERATIONS)
    client = hmac.digest(salted, b"Client Key", "sha256")
    stored, server = hashlib.sha256(client).digest(), hmac.digest(salted, b"Server Key", "sha256")
    parts = (base64.b64encode(part).decode() for part in (salt, stored, server))
    return "SCRAM-SHA-256${}:{}${}:{}".format(_SCRAM_ITERATIONS, *parts)


def with_login(url: str, database: str, user: str, password: str) -> str:
    """The same server, TLS settings included, another database and login."""
    parts = urlsplit(url)
    host = parts.netloc.rpartition("@")[2]
    login = f"{quote(user, safe='')}:{quote(password, safe='')}@{host}"
    return urlunsplit((parts.scheme, login, f"/{quote(database, safe='')}", parts.query, ""))


def without_password(url: str) -> str:
    """The URL as it may be shown."""
    parts = urlsplit(url)
    login, at, host = parts.netloc.rpartition("@")
    return urlunsplit((parts.scheme, f"{login.partition(':')[0]}{at}{host}", parts.path, "", ""))


def _passwords(rooms: Iterable[Names], known: Mapping[str, str]) -> dict[str, str]:
    """The password of each role: from its URL in the env file, else a new one."""
    variables = {AUDITOR: [room.auditor_variable for room in rooms]}
    for room in rooms:
        variables[room.owner] = [room.owner_variable]
        variables[room.app] = [room.app_variable]
    return {role: _known(names, known) or secrets.token_urlsafe(24) for role, names in variables.items()}


def _known(variables: Iterable[str], known: Mapping[str, str]) -> str | None:
    for variable in variables:
        password = urlsplit(known.get(variable, "")).password
        if password:
            return unquote(password)
    return None


def _urls(admin_url: str, rooms: Iterable[Names], passwords: Mapping[str, str]) -> dict[str, str]:
    urls: dict[str, str] = {}
    for room in rooms:
        for variable, role in (
            (room.app_variable, room.app),
            (room.owner_variable, room.owner),
            (room.auditor_variable, AUDITOR),
        ):
            urls[variable] = with_login(admin_url, room.database, role, passwords[role])
    return urls


async def _refuse_strangers(
    admin: asyncpg.Connection[asyncpg.Record],
    passwords: Mapping[str, str],
    known: Mapping[str, str],
) -> None:
    ours = {unquote(urlsplit(url).username or "") for url in known.values() if url.startswith("postgres")}
    there = await admin.fetch("SELECT rolname FROM pg_roles WHERE rolname = ANY($1)", list(passwords))
    strangers = sorted(row["rolname"] for row in there if row["rolname"] not in ours)
    if strangers:
        raise LocalRefusal(
            f"the server has the role {strangers[0]} already and its password is not in this stack's env "
            "file: another stack uses this server. Copy that stack's env file here, or run "
            "`steward up --take-over` to give its roles new passwords"
        )


async def _role(admin: asyncpg.Connection[asyncpg.Record], role: str, password: str) -> None:
    if not await admin.fetchval("SELECT true FROM pg_roles WHERE rolname = $1", role):
        await _ddl(admin, "CREATE ROLE %I LOGIN", role)
    await _ddl(admin, "ALTER ROLE %I LOGIN PASSWORD %L", role, scram_secret(password))
    for statement in role_settings(role):
        await admin.execute(statement)


async def _database(admin: asyncpg.Connection[asyncpg.Record], room: Names) -> None:
    if not await admin.fetchval("SELECT true FROM pg_database WHERE datname = $1", room.database):
        # Who makes a database for another role must be a member of it; an administrator may make itself one.
        await _ddl(admin, "GRANT %I TO CURRENT_USER", room.owner)
        await _ddl(admin, "CREATE DATABASE %I OWNER %I TEMPLATE template0 ENCODING 'UTF8'", room.database, room.owner)


async def _rights(owner_url: str, room: Names) -> None:
    """As the owner, in its own database: it alone can give these rights, without a superuser."""
    owner = await connect(owner_url)
    try:
        async with owner.transaction():
            for statement in rights(room):
                await owner.execute(statement)
    finally:
        await owner.close()


async def _ddl(connection: asyncpg.Connection[asyncpg.Record], statement: str, *arguments: str) -> None:
    """Runs a statement that takes no parameters: the server itself quotes the names (%I) and texts (%L)."""
    text: str = await connection.fetchval("SELECT format($1, VARIADIC $2::text[])", statement, list(arguments))
    await connection.execute(text)
