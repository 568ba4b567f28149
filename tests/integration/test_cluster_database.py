"""What CloudNativePG is told to run when it makes a database, run on a real server: a service migrates and works in it."""

from __future__ import annotations

from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import asyncpg
import pytest

from deploy.k8s import database
from deploy.local.databases import AUDITOR, Names, with_login
from deploy.local.postgres import PostgresServer
from deploy.rooms import load
from shared.mesh.migrate import migrate

BILLING = Names("billing")
PASSWORD = "of-a-test"


@pytest.fixture
async def server(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[PostgresServer]:
    """A server of the test's own, where nobody has made a role yet."""
    folder: Path = tmp_path_factory.mktemp("clustered")
    for part in (folder, *folder.parents[:2]):
        part.chmod(0o711)  # as root the database runs under another user, which must get through
    made = PostgresServer(folder / "postgres", log=folder / "postgres.log", settings={"fsync": "off"}, lasting=False)
    await made.start()
    yield made
    await made.stop()
    made.remove()


async def in_database(server: PostgresServer, role: str) -> Any:
    return await asyncpg.connect(with_login(server.admin_url, BILLING.database, role, PASSWORD))


@pytest.mark.promise(43)
async def test_a_service_lives_in_a_database_as_the_cluster_makes_it(server: PostgresServer) -> None:
    """The order is CloudNativePG's: owner and database, then the roles, then rights inside the database, as a superuser; the
    logins come with the roles' own resources. Rights are as on a local stack: billing cannot change its ledger."""
    docs = database.documents("billing", busy=True)
    told = next(doc for doc in docs if doc["kind"] == "Cluster")["spec"]["bootstrap"]["initdb"]
    admin = await asyncpg.connect(server.admin_url)
    await admin.execute(f"CREATE ROLE {told['owner']} LOGIN PASSWORD '{PASSWORD}'")
    await admin.execute(f"CREATE DATABASE {told['database']} OWNER {told['owner']}")
    for statement in told["postInitSQL"]:
        await admin.execute(statement)
    inside = await asyncpg.connect(server.admin_url.rpartition("/")[0] + f"/{told['database']}")
    for statement in told["postInitApplicationSQL"]:
        await inside.execute(statement)
    await inside.close()
    for role in (doc["spec"] for doc in docs if doc["kind"] == "DatabaseRole"):
        assert role["login"]
        await admin.execute(f"ALTER ROLE {role['name']} LOGIN PASSWORD '{PASSWORD}'")
    await admin.close()

    service = load("billing")
    owner_url = with_login(server.admin_url, told["database"], told["owner"], PASSWORD)
    assert await migrate(owner_url, "billing", service.migrations, plugged=service.schemas)

    app = await in_database(server, BILLING.app)
    assert await app.fetchval("SELECT count(*) FROM journal") == 0
    for refused in ("UPDATE journal SET id = id", "DELETE FROM journal", "CREATE TABLE mine (id int)"):
        with pytest.raises(asyncpg.InsufficientPrivilegeError):
            await app.execute(refused)
    assert await app.fetchval("SELECT current_setting('idle_in_transaction_session_timeout')") == "10s"
    assert await app.fetchval("SELECT current_setting('timezone')") == "UTC"
    await app.close()

    auditor = await in_database(server, AUDITOR)
    assert await auditor.fetchval("SELECT count(*) FROM journal") == 0
    with pytest.raises(asyncpg.InsufficientPrivilegeError):
        await auditor.execute("DELETE FROM mesh_cursor")
    await auditor.close()
