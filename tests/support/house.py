"""What tests of rooms share: a gateway that speaks of people, and a clock that a test moves."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from shared.contract import events, topics
from shared.contract.ids import uuid7
from shared.contract.sealing import seal
from shared.mesh.clock import FileClock
from shared.mesh.runtime import Runtime
from shared.mesh.transaction import rfc3339
from shared.privacy.vault import Vault
from tests.support.gateway import Gateway, Sent
from tests.support.world import Mesh

START = datetime(2026, 12, 1, 10, 0, tzinfo=UTC)


class House:
    """A gateway, one room under test, and the time, which stands still until it is set."""

    def __init__(self, room: str, seed: int, folder: Path) -> None:
        self.room = room
        self.gateway = Gateway(seed)
        self._path = folder / "clock"
        self.at(START)
        self.clock = FileClock(self._path)
        self._ingress: tuple[str, bytes] | None = None

    def at(self, instant: datetime) -> None:
        """It is `instant`, and stays so."""
        FileClock.write(self._path, instant, rate=0)

    async def begin(self, mesh: Mesh, **options: Any) -> Runtime:
        """Starts the room."""
        running = await mesh.start(self.room, clock=self.clock, **options)
        await mesh.owned()
        return running

    async def send(self, mesh: Mesh, *records: Sent) -> None:
        """Sends, and returns when nothing is on its way any more."""
        await self.gateway.send(mesh.env, records)
        await mesh.idle()

    async def counter(self, mesh: Mesh, name: str) -> int:
        """One of the room's durable counters."""
        found = "SELECT coalesce(sum(value), 0) FROM mesh_counter WHERE name = $1"
        return int(await mesh.value(self.room, found, name))

    async def texts(self, mesh: Mesh) -> dict[str, str]:
        """Every table of the room's database, as text."""
        tables = """SELECT c.oid::regclass::text FROM pg_class c WHERE c.relkind IN ('r', 'p') AND NOT c.relispartition
                      AND c.relnamespace = 'public'::regnamespace"""
        return {
            table: "\n".join(row[0] for row in await mesh.fetch(self.room, f"SELECT t::text FROM {table} t"))
            for (table,) in await mesh.fetch(self.room, tables)
        }

    # --- what people do ----------------------------------------------------------------------------------------------

    async def keys(self, vault: Vault) -> None:
        """Fetches today's public key, to which addresses are sealed."""
        today = self.clock.now().date()
        await vault.make_ingress([today], self.clock.now())
        self._ingress = await vault.ingress(today)

    def access(self, ip: str, at: datetime = START, **changes: Any) -> Sent:
        """Somebody opened the dashboard."""
        assert self._ingress is not None, "no ingress key was fetched"
        data = {"kind": "dashboard", "agent": "browser", "ip": seal(ip, *self._ingress)} | changes
        return self.gateway.event(
            topics.ACCESS, events.AccessRecorded, data, at_ms=int(at.timestamp() * 1000), key=data.get("account", "nobody"),
            subject=data.get("account", "nobody"),
        )  # fmt: skip

    def activity(self, workspace: str, at: datetime = START, **changes: Any) -> Sent:
        """Somebody asked a model in the playground."""
        data = {
            "account": f"acc-{workspace}", "workspace": workspace, "member": f"mem-{workspace}", "surface": "playground",
            "action": "chat.sent", "model": "test-model",
        } | changes  # fmt: skip
        return self.gateway.event(
            topics.ACTIVITY, events.ActivityRecorded, data, at_ms=int(at.timestamp() * 1000), key=workspace
        )

    def setting(self, workspace: str, version: int, opt_out: bool, at: datetime = START, **changes: Any) -> Sent:
        """The workspace's settings in force, as the mesh states them."""
        data = {
            "workspace": workspace, "account": f"acc-{workspace}", "version": version, "log_retention_days": 30,
            "activity_opt_out": opt_out, "changed_at": rfc3339(at),
        } | changes  # fmt: skip
        return self.gateway.event(topics.SETTINGS, events.SettingsChanged, data, key=workspace, subject=workspace)

    async def erasure(self, vault: Vault, scope: str, *subjects: tuple[str, str]) -> Sent:
        """The order to erase these subjects."""
        return await self.order(vault, "erase", scope, subjects, {})

    async def order(
        self, vault: Vault, action: str, scope: str, subjects: Sequence[tuple[str, str]], arguments: Mapping[str, str]
    ) -> Sent:
        """An order about these subjects."""
        case = uuid7(int(self.clock.now().timestamp() * 1000), self.gateway._random.getrandbits)
        data = {
            "case": case, "epoch": 1, "action": action, "holders": [self.room], "scope": scope,
            "sealed": await vault.seal_subjects(case, subjects, self.clock.now()),
            "confirmed_at": rfc3339(self.clock.now()), "arguments": arguments,
        }  # fmt: skip
        return self.gateway.event(topics.PRIVACY_COMMANDS, events.PrivacyOrdered, data, key=case, subject=case)
