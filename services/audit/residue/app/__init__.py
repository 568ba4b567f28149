"""The wiring of scans: databases and keys as the auditor has them, and the verdicts as events."""

from __future__ import annotations

import asyncio
import os
from collections.abc import AsyncIterator, Collection, Iterable, Mapping
from datetime import timedelta
from pathlib import Path
from typing import Any

import asyncpg
from aiokafka.errors import KafkaError

from services.audit.residue import store
from services.audit.residue.app.scan import scan
from services.audit.store import Source, take_time
from shared.contract import events, topics
from shared.contract.ids import derived_id
from shared.mesh import Batch, Done, Service, Task, Transaction
from shared.mesh.settings import KafkaSettings
from shared.privacy.blobs import BlobsAway, open_blobs
from shared.privacy.errands import WHERE
from shared.privacy.letters import LetterSafe
from shared.privacy.package import case_of_package
from shared.privacy.values import Shredded, Tampered, open_bytes
from shared.privacy.vault import CASE, Vault, open_vault

_UNREACHABLE = (OSError, TimeoutError, asyncpg.InterfaceError, asyncpg.PostgresError, KafkaError)
# Cases that one pass over the databases looks for together.
_TOGETHER = 500


class Residue:
    """What a process of audit needs to scan."""

    def __init__(self, env: Mapping[str, str]) -> None:
        self._env = env
        self._vault: Vault
        self._kafka: KafkaSettings
        self._sources: dict[str, Source] = {}

    async def open(self, runtime: Any) -> None:
        """Finds every database that the auditor may read: whatever the settings name, so a new holder's as well."""
        self._kafka = runtime.settings.kafka
        self._vault = await open_vault(runtime)
        prefix, suffix = "STEWARD_AUDITOR_", "_DATABASE_URL"
        for name, url in sorted(self._env.items()):
            holder = name.removeprefix(prefix).removesuffix(suffix).lower()
            if name.startswith(prefix) and name.endswith(suffix) and holder != "keys":
                self._sources[holder] = Source(url)
                runtime.on_close(self._sources[holder].close)

    async def note(self, batch: Batch, tx: Transaction) -> None:
        """Takes orders to scan."""
        orders = [
            (event.id, event.data.case, event.data.epoch, event.data.action, event.data.sealed, tx.now)
            for event, _ in batch.events
            if tx.service in event.data.holders and event.data.action in ("probe", "sweep") and event.data.sealed
        ]
        if orders:
            await store.add_scans(tx.db, orders)
            await tx.enqueue("scan", "pass", {})

    async def run(self, task: Task, tx: Transaction) -> Any:
        """Scans for all cases that wait, of one kind."""
        await take_time(tx.db)
        rows = await store.waiting_scans(tx.db, _TOGETHER)
        if not rows:
            return Done()
        rows = [row for row in rows if row["action"] == rows[0]["action"]]
        opened = await self._vault.open_cases([(row["case_id"], row["sealed"]) for row in rows])
        subjects = {row["attempt"]: opened[row["case_id"]] for row in rows if row["case_id"] in opened}
        # Of the others the certificate was given and the key destroyed: nobody can look for them any more.
        seen: list[tuple[str, Any]] = [(row["attempt"], []) for row in rows if row["attempt"] not in subjects]
        deep = rows[0]["action"] == "sweep"
        placed = deep and bool(self._env.get("STEWARD_BLOBS"))
        attempts: dict[str, list[str]] = {}
        for row in rows:
            if row["attempt"] in subjects:
                attempts.setdefault(row["case_id"], []).append(row["attempt"])

        async def packages() -> AsyncIterator[Collection[str] | None]:
            async for cases in self._packages(attempts):
                yield None if cases is None else [attempt for case in cases for attempt in attempts[case]]

        found = await scan(
            {holder: source.snapshot for holder, source in self._sources.items()}, self._kafka, subjects, tx.now,
            LetterSafe(self._vault).unlock, deep=deep, unreachable=_UNREACHABLE, logs=self._logs if deep else None,
            copies=self._copies if placed else None, packages=packages if placed else None,
        )  # fmt: skip
        for row in rows:
            if row["attempt"] not in subjects:
                continue
            stores = [
                {k: (v.isoformat() if k == "not_after" else v) for k, v in each.items()}
                for each in found[row["attempt"]]
            ]
            seen.append((row["attempt"], stores))
            tx.publish(
                topics.PRIVACY_RECEIPTS,
                events.PrivacyScanned,
                id=derived_id(int(tx.now.timestamp() * 1000), "scan", row["attempt"]),
                subject=row["case_id"],
                key=row["case_id"],
                data={
                    "case": row["case_id"], "epoch": row["epoch"], "action": row["action"], "stores": stores,
                },
            )  # fmt: skip
        await store.finish_scans(tx.db, seen, tx.now)
        return None

    async def _copies(self) -> AsyncIterator[bytes | None]:
        """Copies for people, each opened with its case's key. One whose key is destroyed is nobody's any more."""
        try:
            blobs = open_blobs(self._env.get("STEWARD_BLOBS"))
            for name in await blobs.names():
                if case_of_package(name) is not None:
                    continue  # nobody but its person can open it: whose it is says `_packages`
                case, value = name.partition("/")[0], await blobs.get(name)
                key = (await self._vault.keys(CASE, [case])).get(case)
                if value is None or key is None:
                    continue
                try:
                    yield open_bytes(key, value.decode("ascii", "replace"), where=WHERE)
                except Shredded:
                    continue
                except Tampered:
                    yield None
        except BlobsAway:
            yield None

    async def _packages(self, cases: Collection[str]) -> AsyncIterator[Collection[str] | None]:
        """Of each package those of the cases that erased its person; None for one that retention does not know, or that it
        cannot be asked for."""
        try:
            names = await open_blobs(self._env.get("STEWARD_BLOBS")).names()
        except BlobsAway:
            yield None
            return
        there = {case for name in names if (case := case_of_package(name)) is not None}
        if not there:
            return
        try:
            async with self._sources["retention"].snapshot() as db:
                known = await store.people_of_packages(db, sorted(there), list(cases))
        except (*_UNREACHABLE, KeyError):
            yield None
            return
        for gone_with in known.values():
            yield gone_with
        if there - known.keys():
            yield None

    async def _logs(self) -> Iterable[tuple[str, bytes]]:
        """The log files, where this installation says that it keeps them."""
        folder = self._env.get("STEWARD_LOGS")
        if not folder:
            return []
        return await asyncio.to_thread(lambda: [(f.stem, f.read_bytes()) for f in sorted(Path(folder).glob("*.log"))])


def attach(service: Service, env: Mapping[str, str] = os.environ) -> Residue:
    """Makes audit the one who looks for what is left."""
    residue = Residue(env)
    service.consumes(topics.PRIVACY_COMMANDS)(residue.note)
    service.task("scan")(residue.run)
    started = service.on_start

    async def start(runtime: Any) -> None:
        if started is not None:
            await started(runtime)
        await residue.open(runtime)

    service.on_start = start

    @service.job("scan", every=timedelta(seconds=2))
    async def look(now: Any, tx: Transaction) -> None:
        # The handler's own request can meet a pass that is ending.
        if await store.any_waiting(tx.db):
            await tx.enqueue("scan", "pass", {})

    return residue
