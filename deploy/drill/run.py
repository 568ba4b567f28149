"""The drill from its first second to its verdict.

Two customers use the mesh; each named service's database is copied; more is used; one customer is erased by the real
protocol, with the code from the mail. Then each copy in turn is put back, the service starts, and the mesh is compared
with what it was just before.
"""

from __future__ import annotations

import re
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable, Mapping, Sequence
from contextlib import asynccontextmanager
from datetime import datetime, timedelta
from email import message_from_bytes, policy
from random import Random
from typing import Any

import asyncpg
from aiokafka import AIOKafkaProducer
from aiokafka.errors import KafkaError

from deploy.demo.progress import until
from deploy.drill import store
from deploy.drill.found import Result, Seen, differences
from deploy.drill.site import Site
from deploy.drill.traffic import Customer, Gateway, Said
from deploy.local.errors import LocalError
from deploy.rooms import ROOMS
from services.audit.residue.app.scan import scan
from services.audit.store import Source
from services.retention.case import LAST_WAVE
from shared.contract.topics import HOLDERS
from shared.mesh.clock import Clock
from shared.mesh.settings import KafkaSettings
from shared.mesh.store import open_pool
from shared.privacy.letters import LetterSafe
from shared.privacy.masters import MasterKeys
from shared.privacy.vault import Vault

_CODE = re.compile(r"^ {4}([0-9A-Z]{8})\s*$", re.MULTILINE)
_MAIL_SECONDS = 30.0
_CASE_SECONDS = 90.0
_DONE = ("completed", "certified")
_UNREACHABLE = (OSError, TimeoutError, asyncpg.InterfaceError, asyncpg.PostgresError, KafkaError)

Prove = Callable[[Mapping[str, str]], Awaitable[dict[str, Any]]]
Say = Callable[[str], None]


class Drill:
    """One drill on a site that nobody else uses. `generations`: of each customer, before the copies and after them."""

    def __init__(
        self, site: Site, clock: Clock, prove: Prove, say: Say, *, services: Sequence[str] = HOLDERS, seed: int = 1,
        generations: int = 50,
    ) -> None:  # fmt: skip
        self._site, self._clock, self._prove, self._say = site, clock, prove, say
        self._services, self._random, self._generations = tuple(services), Random(seed), generations
        self._copied_at: dict[str, datetime] = {}

    async def run(self) -> list[Result]:
        """The outcome for each service, in the order in which they were named. Raises LocalError when the mesh does not do
        what it does on every other day."""
        site = self._site
        self._say("the services start")
        await site.start(ROOMS)
        gateway = await self._gateway()
        leaver, stayer = gateway.customer("leaves"), gateway.customer("stays")
        self._say("two customers use the mesh")
        await self._send([gateway.price()])
        await site.idle()
        await self._send([*gateway.arrival(leaver), *gateway.arrival(stayer)])
        await site.idle()
        await self._use(gateway, (leaver, stayer))
        await self._copy()
        self._say("they use it on")
        await self._use(gateway, (stayer,))
        await self._erase(gateway, leaver)
        results = []
        for service in self._services:
            results.append(await self._restore(service, leaver, stayer))
        return results

    async def _gateway(self) -> Gateway:
        """A gateway that seals to today's ingress key."""
        async with self._vault() as vault:
            key_id, public = await vault.ingress(self._clock.now().date())
        return Gateway(self._clock, self._random, key_id, public)

    @asynccontextmanager
    async def _vault(self) -> AsyncIterator[Vault]:
        settings = self._site.settings
        masters = MasterKeys.from_values(settings.get("STEWARD_MASTER_KEY_FILE"), settings.get("STEWARD_MASTER_KEY"))
        pool = await open_pool(settings["STEWARD_KEYS_OWNER_DATABASE_URL"], size=1, application="steward-drill")
        try:
            yield Vault(pool, masters)
        finally:
            await pool.close()

    async def _use(self, gateway: Gateway, customers: Iterable[Customer]) -> None:
        await self._send([said for who in customers for said in gateway.day(who, self._generations)])
        await self._site.idle()

    async def _send(self, records: Iterable[Said]) -> None:
        producer = AIOKafkaProducer(
            **KafkaSettings.from_env(self._site.settings).client(), client_id="steward-drill", enable_idempotence=True
        )
        await producer.start()
        try:
            for said in records:
                await producer.send(said.topic.name, said.value, key=said.key, headers=said.headers)
            await producer.flush()
        finally:
            await producer.stop()

    async def _copy(self) -> None:
        """Copies the databases, each while its own service is stopped."""
        self._say(f"copying the databases of {', '.join(self._services)}")
        await self._site.stop(self._services)
        for service in self._services:
            await store.dump(self._site.settings, service)
            self._copied_at[service] = self._clock.now()
        await self._site.start(self._services)
        await self._site.idle()

    # --- the erasure ------------------------------------------------------------------------------------------------

    async def _erase(self, gateway: Gateway, who: Customer) -> None:
        """A customer asks, reads the code in the mail, confirms, and is gone."""
        self._say("one of them asks to be deleted")
        before = len(self._site.mails())
        case, asked = gateway.request(who)
        await self._send([asked])
        codes: list[str] = []

        async def mailed() -> bool:
            codes[:] = [code for raw in self._site.mails()[before:] for code in _codes(raw)]
            return bool(codes)

        if not await until(mailed, _MAIL_SECONDS):
            raise LocalError("no mail with a code came: see the logs of retention and notifications")
        await self._send([gateway.confirmation(who, case, codes[-1])])
        self._say("confirmed with the code from the mail: the deletion goes round")

        async def done() -> bool:
            return str((await self._site.ask("retention", "case", id=case))["state"]) in _DONE

        if not await until(done, _CASE_SECONDS):
            raise LocalError("the deletion is not completed: `steward privacy status` would name the holder")
        await self._site.idle()

    # --- one restore ------------------------------------------------------------------------------------------------

    async def _restore(self, service: str, leaver: Customer, stayer: Customer) -> Result:
        site, settings = self._site, self._site.settings
        self._say(f"{service}: the mesh is looked at, and the older copy is put back")
        before = await self._look(service, leaver, stayer)
        # What the map leaves to its own clock was there before, and may be there again.
        left = await store.naming(settings, service, leaver.ids)
        await site.stop([service])
        await store.restore(settings, service)
        age = self._clock.now() - self._copied_at[service]
        in_copy = sum((await store.naming(settings, service, leaver.ids)).values())
        known = await store.counter(settings, service, "reapplied")
        started = time.monotonic()
        await site.start([service])
        ready = time.monotonic() - started
        # That somebody is erased is said of them, too: it waits in the outbox for a moment, and is gone at the end.
        at_ready = _more(await store.naming(settings, service, leaver.ids), left, "mesh_outbox")
        try:
            await site.idle()
            unrest: tuple[str, ...] = ()
        except (LocalError, TimeoutError) as error:
            unrest = (f"it does not come to rest: {error}",)
        settled = time.monotonic() - started
        after = await self._look(service, leaver, stayer)
        at_end = _more(await store.naming(settings, service, leaver.ids), left)
        if service in LAST_WAVE:
            # Its order, which it reads again, says what it has to book before it erases.
            at_ready = at_end
        result = Result(
            service, age / timedelta(seconds=1), in_copy, await store.counter(settings, service, "reapplied") - known,
            at_ready, at_end, ready, settled,
            {name: verdict for name, verdict in after.verdicts.items() if name.startswith(f"{service}.")},
            bool(after.books["ok"]), unrest + differences(before, after),
        )  # fmt: skip
        self._say(f"{service}: {'as before' if result.as_before else 'NOT as before'}")
        for sentence in result.differences:
            self._say(f"{service}: {sentence}")
        return result

    async def _look(self, service: str, leaver: Customer, stayer: Customer) -> Seen:
        """The auditor's scan, the proof of the books, the ledger, and what the service has of the customer who stays."""
        settings = self._site.settings
        sources = {
            holder: Source(settings[f"STEWARD_AUDITOR_{holder.upper()}_DATABASE_URL"])
            for holder in ROOMS
        }  # fmt: skip
        try:
            async with self._vault() as vault:
                found = await scan(
                    {holder: source.snapshot for holder, source in sources.items()}, KafkaSettings.from_env(settings),
                    {"drill": leaver.subjects}, self._clock.now(), LetterSafe(vault).unlock,
                    deep=False, unreachable=_UNREACHABLE,
                )  # fmt: skip
        finally:
            for source in sources.values():
                await source.close()
        verdicts = {f"{one['holder']}.{one['store']}": str(one["verdict"]) for one in found["drill"]}
        ledger: dict[str, int] = {}
        for of_class in (await self._site.ask("billing", "ledger")).values():
            for kind, amount in of_class["kinds"].items():
                ledger[kind] = ledger.get(kind, 0) + int(amount)
        stays = await store.naming(settings, service, stayer.ids)
        return Seen(verdicts, await self._prove(settings), ledger, stays)


def _more(found: Mapping[str, int], before: Mapping[str, int], *passing: str) -> int:
    """Rows beyond those that were there before, table by table."""
    return sum(max(0, n - before.get(table, 0)) for table, n in found.items() if table not in passing)


def _codes(raw: bytes) -> list[str]:
    """The codes in a mail."""
    body = message_from_bytes(raw, policy=policy.default).get_body(("plain",))
    return [] if body is None else _CODE.findall(str(body.get_content()))
