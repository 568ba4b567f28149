"""Plays retention by hand, with the contract alone: tombstones, orders, and what comes back."""

from __future__ import annotations

import uuid
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any

from shared.contract import events, topics
from shared.contract.ids import uuid7
from shared.contract.units import Subject
from shared.mesh.migrate import migrate
from shared.mesh.runtime import Runtime
from shared.mesh.store import open_pool
from shared.privacy import keys
from shared.privacy.vault import MasterKeys, Vault
from tests.support.gateway import Gateway, Sent
from tests.support.platform import Arrived, arrived
from tests.support.world import Mesh


@dataclass(slots=True)
class Coordinator:
    """Orders erasures. `runtime`: a running service, whose vault is used; or a vault of its own."""

    mesh: Mesh
    gateway: Gateway
    runtime: Runtime | None = None
    own: Vault | None = None

    @property
    def vault(self) -> Vault:
        """The vault."""
        if self.own is not None:
            return self.own
        assert self.runtime is not None
        vault: Vault = self.runtime.plugged["vault"]
        return vault

    def tombstones(self, case: str, subjects: Sequence[Subject]) -> list[Sent]:
        """A tombstone for each subject."""
        at = datetime.now(UTC)
        return [
            self.gateway.event(
                topics.TOMBSTONES, events.SubjectErased,
                {"hash": digest.hex(), "kind": kind, "case": case, "at": at}, key=digest.hex(), subject=digest.hex(),
            )
            for (kind, _), digest in zip(subjects, self.vault.hasher.hashes(subjects), strict=True)
        ]  # fmt: skip

    async def order(
        self, case: str, subjects: Sequence[Subject], holders: Sequence[str], *, epoch: int = 1, **more: Any
    ) -> Sent:
        """The order to erase (or what `action` says)."""
        now = datetime.now(UTC)
        data = {
            "case": case, "epoch": epoch, "action": "erase", "holders": list(holders), "scope": "account",
            "sealed": await self.vault.seal_subjects(case, subjects, now), "confirmed_at": now,
        } | more  # fmt: skip
        return self.gateway.event(topics.PRIVACY_COMMANDS, events.PrivacyOrdered, data, key=case, subject=case)

    async def receipts(self, case: str, n: int, within: float = 30.0) -> list[Any]:
        """The first `n` receipts of a case, once they are there."""
        found: list[Arrived] = []

        async def there() -> bool:
            nonlocal found
            servers = self.mesh.env["STEWARD_KAFKA_BOOTSTRAP_SERVERS"]
            found = [r for r in await arrived(servers, topics.PRIVACY_RECEIPTS) if r.event.data.case == case]
            return len(found) >= n

        await self.mesh.until(there, within, f"{n} receipts")
        return [record.event.data for record in found]


@asynccontextmanager
async def own_vault(mesh: Mesh) -> AsyncIterator[Vault]:
    """The vault, without a service that has opened it."""
    settings = mesh.settings("metering")
    assert settings.keys_database_url is not None and settings.keys_owner_database_url is not None
    await migrate(settings.keys_owner_database_url, "keys", keys.MIGRATIONS, mesh=False)
    pool = await open_pool(settings.keys_database_url, size=2, application="steward-test-keys")
    vault = Vault(pool, MasterKeys.from_settings(settings))
    try:
        await vault.open(datetime.now(UTC))
        yield vault
    finally:
        await pool.close()


def new_case() -> str:
    """A case's id."""
    return uuid7(int(datetime.now(UTC).timestamp() * 1000), lambda n: uuid.uuid4().int >> (128 - n))
