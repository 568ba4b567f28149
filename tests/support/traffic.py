"""Steady traffic of every kind at a pace that nobody slows down, and its own account of it.

Of the generations some are probes: how old an event is when its effect is published is measured with them.
"""

from __future__ import annotations

import asyncio
import itertools
import time
from collections import Counter, deque
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Any, NamedTuple, Self

from aiokafka import AIOKafkaProducer

from shared.contract import events, topics
from shared.contract.base import Event
from shared.contract.sealing import seal
from shared.contract.topics import Topic
from shared.mesh.settings import KafkaSettings
from tests.support.books import assert_books
from tests.support.desk import platform_vault
from tests.support.gateway import Gateway, Sent, body
from tests.support.probes import Probes
from tests.support.world import Mesh

_TICK = 0.005
_SEND_SECONDS = 60.0
# One event in so many is sent twice.
_TWICE = 20
# Accounts that ask for something; they must be known before.
_ASKING = 60


class Age(NamedTuple):
    """A probe: when it was sent (monotonic clock) and how old it was when its balance had come (seconds)."""

    sent_at: float
    took: float


@dataclass
class Traffic:
    """`rate` generations a second, every `probe_every`-th of them a probe, and a fiftieth of that of everything else."""

    mesh: Mesh
    rate: int
    probe_every: int
    seal: Callable[[str], str]
    gateway: Gateway
    ages: list[Age] = field(default_factory=list)
    opened: int = 0
    stated: int = 0
    events: Counter[str] = field(default_factory=Counter)
    asked: list[str] = field(default_factory=list)
    pace: float = 0.0
    _producer: Any = None
    _probes: Probes = field(init=False)
    _free: deque[str] = field(default_factory=deque)
    _made: Any = field(default_factory=itertools.count)
    _enough: asyncio.Event = field(default_factory=asyncio.Event)
    _flying: deque[Any] = field(default_factory=deque)
    _task: asyncio.Task[None] | None = None

    def __post_init__(self) -> None:
        self._probes = Probes(KafkaSettings.from_env(self.mesh.env), self._answered)

    # --- running -----------------------------------------------------------------------------------------------------

    async def __aenter__(self) -> Self:
        self._producer = AIOKafkaProducer(
            **KafkaSettings.from_env(self.mesh.env).client(), acks="all", enable_idempotence=True, linger_ms=2,
            compression_type="lz4",
        )  # fmt: skip
        await self._producer.start()
        try:
            for n in range(_ASKING):
                await self._account(f"asking-{n}")
            await self._landed()
            await self._probes.__aenter__()
        except BaseException:
            await self._producer.stop()
            raise
        self._task = asyncio.create_task(self._run())
        return self

    async def __aexit__(self, kind: type[BaseException] | None, *_: object) -> None:
        """Ends with the last acknowledgement, and the last probe's answer."""
        self._enough.set()
        assert self._task is not None
        try:
            (outcome,) = await asyncio.gather(self._task, return_exceptions=True)
            if kind is None:
                if outcome is not None:
                    raise outcome
                await self._landed()
                await self._probes.last(_SEND_SECONDS)
        finally:
            await self._probes.__aexit__(kind, None, None)
            await self._producer.stop()

    async def _run(self) -> None:
        started, sent, said = time.monotonic(), 0, 0
        while not self._enough.is_set():
            due = int((time.monotonic() - started) * self.rate)
            while sent < due:
                sent += 1
                await self._generation(probe=sent % self.probe_every == 0)
            while said < due // 50:
                said += 1
                await self._others(said)
            while self._flying and self._flying[0].done():
                self._flying.popleft().result()
            try:
                async with asyncio.timeout(_TICK):
                    await self._enough.wait()
            except TimeoutError:
                continue
        self.pace = sent / (time.monotonic() - started)

    async def _landed(self) -> None:
        async with asyncio.timeout(_SEND_SECONDS):
            while self._flying:
                await self._flying.popleft()

    async def _send(self, record: Sent, *, twice: bool = False) -> None:
        for _ in range(1 + twice):
            self._flying.append(
                await self._producer.send(record.topic.name, record.value, key=record.key, headers=record.headers)
            )
            self.gateway.records += record.topic is topics.GENERATIONS

    # --- what is sent ------------------------------------------------------------------------------------------------

    async def _generation(self, *, probe: bool) -> None:
        if not probe:
            record = self.gateway.generation()
            await self._send(record, twice=self.gateway.generations % _TWICE == 1)
            return
        workspace = self._free.popleft() if self._free else f"probe-{next(self._made)}"
        record = self.gateway.generation(workspace)
        self._probes.sent(workspace.encode())
        await self._send(record)

    def _answered(self, workspace: bytes, sent_at: float, took: float) -> None:
        self._free.append(workspace.decode())
        self.ages.append(Age(sent_at, took))

    async def _others(self, n: int) -> None:
        who = f"acc-{n % 100}"
        await self._say(
            topics.ACCESS,
            events.AccessRecorded,
            who,
            n,
            account=who,
            kind="api",
            agent="sdk",
            ip=self.seal("192.0.2.17"),
        )
        await self._say(
            topics.ACTIVITY, events.ActivityRecorded, f"ws-{n % 100}", n, account=who, workspace=f"ws-{n % 100}",
            surface="playground", action="chat.sent",
        )  # fmt: skip
        if n % 4 == 0:
            await self._account(f"new-{n}", n)
        if n % 10 == 0 and len(self.asked) < _ASKING:
            account = f"acc-asking-{len(self.asked)}"
            wish = await self._say(
                topics.PRIVACY_REQUESTS, events.PrivacyRequested, account, n, kind="erasure", scope="account",
                account=account, target=account, channel="settings",
            )  # fmt: skip
            self.asked.append(str(body(wish)["id"]))

    async def _account(self, name: str, n: int = 1) -> None:
        account, workspace, member = f"acc-{name}", f"ws-{name}", f"mem-{name}"
        says = topics.ACCOUNTS
        await self._say(
            says, events.AccountOpened, account, n, account=account, address=self.seal(f"{name}@example.org")
        )
        await self._say(
            says, events.WorkspaceCreated, account, n, account=account, workspace=workspace, administrator=member
        )
        await self._say(
            says, events.SettingsStated, account, n, account=account, workspace=workspace, version=1,
            log_retention_days=30, actor=member, role="administrator",
        )  # fmt: skip
        self.opened += 1

    async def _say(self, topic: Topic, model: type[Event], key: str, n: int, /, **data: Any) -> Sent:
        record = self.gateway.event(topic, model, data, key=key, subject=key)
        await self._send(record, twice=n % _TWICE == 0)
        self.events[topic.name] += 1
        return record

    # --- what has become of it ---------------------------------------------------------------------------------------

    async def assert_all_there(self, *rooms: str) -> None:
        """Nothing lost, nothing doubled, in any of the `rooms`; every probe was answered."""
        assert not self._probes.waiting, f"{len(self._probes.waiting)} probes were never answered"
        await assert_books(self.mesh, self.gateway)
        said: dict[str, Any] = {}
        expected: dict[str, Any] = {}
        for name, (room, sql, sent) in {
            "connections": ("security", "SELECT count(*) FROM access_row", self.events[topics.ACCESS.name]),
            "addresses": ("security", "SELECT count(*) FROM access_ip", self.events[topics.ACCESS.name]),
            "activity": ("insights", "SELECT count(*) FROM activity", self.events[topics.ACTIVITY.name]),
            "accounts": ("retention", "SELECT count(*) FROM account", self.opened),
            "workspaces": ("retention", "SELECT count(*) FROM workspace WHERE version = 1", self.opened),
            "requests": ("retention", "SELECT count(*) FROM case_request", len(self.asked)),
            "known": ("notifications", "SELECT count(*) FROM address", self.opened),
            "accepted": ("notifications", "SELECT count(*) FROM mail WHERE state = 'accepted'", len(self.asked)),
        }.items():
            if room in rooms:
                said[name], expected[name] = await self.mesh.value(room, sql), sent
        if {"insights", "retention"} <= set(rooms):
            said["settings"] = await self.mesh.value("insights", "SELECT count(*) FROM workspace_setting")
            expected["settings"] = self.opened
        if {"notifications", "retention"} <= set(rooms):
            texts = [mail.get_content() for mail in self.mesh.mails()]
            said["mails"] = [sum(case in text for text in texts) for case in self.asked]
            expected["mails"] = [1] * len(self.asked)
        for room in rooms:
            said[f"letters of {room}"] = await self.mesh.value(room, "SELECT count(*) FROM mesh_dead_letter")
            expected[f"letters of {room}"] = 0
        assert said == expected, f"there is {said}, sent {expected}"


@asynccontextmanager
async def traffic(mesh: Mesh, seed: int, *, rate: int, probe_every: int = 20) -> AsyncIterator[Traffic]:
    """Traffic that flows for as long as the block runs, from a gateway that has told its prices and its customers' credit.
    Metering has to be there."""
    gateway = Gateway(seed)
    await gateway.send(mesh.env, [gateway.price()])
    await gateway.send(mesh.env, [gateway.payment(f"ws-{n}", 10) for n in range(gateway.workspaces)])

    async def known() -> bool:
        return bool(await mesh.value("metering", "SELECT count(*) FROM price WHERE known_from > '-infinity'"))

    # Usage that comes before its price waits in quarantine, and that is another story.
    await mesh.until(known, 60, "the price is in force")
    async with platform_vault(mesh) as vault:
        key_id, public = await vault.ingress(datetime.now(UTC).date())
        async with Traffic(mesh, rate, probe_every, lambda text: seal(text, key_id, public), gateway) as flowing:
            yield flowing
