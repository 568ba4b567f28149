"""A stage for notifications: the room runs on real servers, and the test plays gateway, retention and a reader of mails."""

from __future__ import annotations

import json
import re
from collections import Counter
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from pathlib import Path
from types import SimpleNamespace
from typing import Any

from aiokafka import AIOKafkaConsumer, TopicPartition

from services.notifications import mail
from services.notifications.app import make_service
from services.notifications.app.office import Office
from shared.contract import events, topics
from shared.contract.sealing import seal
from shared.mesh.runtime import Runtime
from shared.mesh.transaction import rfc3339
from shared.privacy.vault import Vault, open_vault
from tests.support.gateway import Gateway, Sent
from tests.support.post import Post, post
from tests.support.world import Faults, Mesh

ADDRESS = "canary-7be1@example.org"
NEW = "canary-new-7be1@example.net"
AGENT = "canary-agent-7be1@example.com"
LINK = "https://gateway.example/packages/canary-7be1"
SENDER = "steward@localhost"
CASE, CASE_2, CASE_3 = (f"01936b5e-{n}-7111-8111-111111111111" for n in ("1111", "2222", "3333"))
DAY = timedelta(days=1)
_CODE = re.compile(r"^    ([2-9A-Z]{8})\r?$", re.MULTILINE)


def codes_in(text: str) -> list[str]:
    """The codes that a mail says."""
    return _CODE.findall(text)


class Moved:
    """The machine's clock, moved by hand."""

    def __init__(self) -> None:
        self.by = timedelta()

    def now(self) -> datetime:
        return datetime.now(UTC) + self.by


@dataclass
class Desk:
    """Those around the room: a gateway, retention, a mail server, the room itself."""

    mesh: Mesh
    gateway: Gateway
    post: Post
    vault: Vault
    ingress: tuple[str, bytes]
    clock: Moved = field(default_factory=Moved)

    async def start(self, fault: str | None = None, **settings: Any) -> tuple[Runtime, Faults]:
        faults = Faults(fault or "nowhere")
        runtime = await self.mesh.start(
            "notifications", service=make_service(Office(fault=faults)),
            settings={"smtp_url": self.post.url, **settings}, clock=self.clock, fault=faults,
        )  # fmt: skip
        await self.mesh.owned()
        return runtime, faults

    async def know(self, *accounts: str, fault: str | None = None, **settings: Any) -> tuple[Runtime, Faults]:
        """The room is up and has learned the addresses of these accounts."""
        started = await self.start(fault, **settings)
        await self.send(*(self.opened(account) for account in accounts or ("acc-1",)))
        await self.mesh.idle()
        return started

    async def order(self, action: str, account: str = "acc-1", case: str = CASE, **arguments: str) -> Sent:
        """An order of retention's about an account."""
        subjects = [("account", account), ("identity", "idp-1"), ("workspace", "ws-1")]
        now = self.clock.now()
        data = {
            "case": case, "epoch": 1, "action": action, "holders": ["notifications"], "scope": "account",
            "sealed": await self.vault.seal_subjects(case, subjects, now), "confirmed_at": now, "arguments": arguments,
        }  # fmt: skip
        return self.gateway.event(topics.PRIVACY_COMMANDS, events.PrivacyOrdered, data, key=case, subject=case)

    async def erase(self, account: str = "acc-1") -> None:
        """Retention's order to erase an account, and what the engine makes of it."""
        before = await self.count("erasures")

        async def gone() -> bool:
            return await self.count("erasures") > before

        order = await self.order("erase", account)
        await self.send(order, order)
        await self.mesh.until(gone, 30, "erased")
        assert await self.mesh.value("notifications", "SELECT count(*) FROM address WHERE account = $1", account) == 0

    async def send(self, *records: Sent) -> None:
        await self.gateway.send(self.mesh.env, records)

    def opened(self, account: str = "acc-1", address: str | None = ADDRESS, at: datetime | None = None) -> Sent:
        data = {"account": account, "address": self.sealed(address)}
        at_ms = None if at is None else int(at.timestamp() * 1000)
        return self.gateway.event(
            topics.ACCOUNTS, events.AccountOpened, data, key=account, subject=account, at_ms=at_ms
        )

    def asked(
        self, cause: str = "cause-1", template: str = "verify", account: str | None = "acc-1", case: str | None = CASE,
        facts: dict[str, str] | None = None, address: str | None = None, link: str | None = None,
        request: str | None = None, until: datetime | None = None,
    ) -> Sent:  # fmt: skip
        """An order for a mail; with a proof if its template needs a code."""
        proof = {"request": request or case, "until": rfc3339(until or self.clock.now() + 7 * DAY)}
        data = {
            "cause": cause, "template": template, "account": account, "case": case, "facts": facts or {},
            "address": None if address is None else self.sealed(address),
            "link": None if link is None else self.sealed(link),
            "proof": proof if mail.TEMPLATES[template].needs_code else None,
        }  # fmt: skip
        return self.gateway.event(topics.MESSAGES, events.MessageRequested, data, key=case or account, subject=cause)

    def confirmed(self, code: str, case: str = CASE, account: str = "acc-1", **more: Any) -> Sent:
        """A code given back, as a platform says it."""
        data = {"case": case, "account": account, "code": code, **more}
        return self.gateway.event(topics.PRIVACY_REQUESTS, events.PrivacyConfirmed, data, key=account, subject=account)

    def taken_back(self, case: str = CASE, account: str = "acc-1") -> Sent:
        """A request that is not wanted any more, as a platform says it."""
        data = {"case": case, "account": account}
        return self.gateway.event(topics.PRIVACY_REQUESTS, events.PrivacyWithdrawn, data, key=account, subject=account)

    def ended(self, case: str = CASE) -> Sent:
        """Retention's order that no code of a case is good any more."""
        data = {"case": case, "epoch": 1, "action": "end_proofs", "holders": ["notifications"]}
        return self.gateway.event(topics.PRIVACY_COMMANDS, events.PrivacyOrdered, data, key=case, subject=case)

    def mail(self, cause: str = "cause-1") -> Any:
        """The mail of a cause, as its reader has it."""
        (found,) = [m for m in self.post.mails() if m["Message-ID"] == mail.message_id(cause, SENDER)]
        return found

    async def code(self, cause: str = "cause-1") -> str:
        """The code of a mail, once it has come."""
        await self.in_state("accepted", cause)
        (found,) = codes_in(self.mail(cause).get_content())
        return str(found)

    async def judged(self, case: str = CASE) -> list[tuple[bool, str | None]]:
        """What was said of a case's codes, in order; what was published twice counts once."""
        await self.mesh.idle()
        said = await self.said(events.ProofJudged)
        return [(data["right"], data.get("of")) for data in said.values() if data["case"] == case]

    async def said(self, model: type[Any]) -> dict[str, Any]:
        """id -> data of events of a type among the outcomes."""
        told = [json.loads(record.value) for record in await records(self.mesh, topics.MESSAGE_OUTCOMES.name)]
        return {event["id"]: event["data"] for event in told if event["type"] == model.TYPE}

    async def written_to(self, account: str = "acc-1", template: str = "opted_out") -> str:
        """Where a new mail to an account goes."""
        cause = f"probe-{len(self.post.mails())}"
        await self.send(self.asked(cause, template, account))
        await self.in_state("accepted", cause)
        return str(self.mail(cause)["To"])

    async def letters(self) -> list[tuple[str, str]]:
        """(topic, reason) of all dead letters."""
        rows = await self.mesh.fetch("notifications", "SELECT topic, reason FROM mesh_dead_letter ORDER BY id")
        return [(row["topic"], row["reason"]) for row in rows]

    async def rows(self, table: str) -> int:
        return int(await self.mesh.value("notifications", f"SELECT count(*) FROM {table}"))

    def sealed(self, text: str | None) -> str:
        """As a platform seals it to the day's key; None = damaged on the way."""
        value = seal(text or "x", *self.ingress)
        return value if text is not None else value[:-40] + "A" * 40

    async def row(self, cause: str = "cause-1") -> Any:
        rows = await self.mesh.fetch("notifications", "SELECT * FROM mail WHERE cause = $1", cause)
        return rows[0] if rows else None

    async def in_state(self, state: str, cause: str = "cause-1", attempts: int | None = None) -> Any:
        """Waits for a mail to be in a state, after so many attempts."""

        async def there() -> bool:
            row = await self.row(cause)
            return row is not None and row["state"] == state and attempts in (None, row["attempts"])

        await self.mesh.until(there, 30, f"{cause} is {state}")
        return await self.row(cause)

    async def outcomes(self) -> Counter[tuple[str, str]]:
        """What was said of each mail; what was published twice counts once."""
        said = await self.said(events.MessageSettled)
        return Counter((data["cause"], data["outcome"]) for data in said.values())

    async def count(self, name: str) -> int:
        return int(
            await self.mesh.value(
                "notifications", "SELECT coalesce(sum(value), 0)::bigint FROM mesh_counter WHERE name = $1", name
            )
        )


@asynccontextmanager
async def opened_desk(mesh: Mesh, folder: Path) -> AsyncIterator[Desk]:
    """A desk with a mail server of its own, for as long as the block runs."""
    async with platform_vault(mesh) as vault, post(folder) as server:
        yield Desk(mesh, Gateway(7), server, vault, await vault.ingress(datetime.now(UTC).date()))
        await mesh.close()


@asynccontextmanager
async def platform_vault(mesh: Mesh) -> AsyncIterator[Vault]:
    """A vault that has the keys to which a platform seals today and tomorrow."""
    today = datetime.now(UTC).date()
    closing: list[Any] = []
    platform = SimpleNamespace(
        settings=mesh.settings("notifications"), clock=Moved(), plugged={}, on_close=closing.append
    )
    vault = await open_vault(platform)
    try:
        await vault.make_ingress([today, today + timedelta(days=1)], datetime.now(UTC))
        yield vault
    finally:
        for close in closing:
            await close()


async def records(mesh: Mesh, topic: str) -> list[Any]:
    """All records of a topic."""
    consumer = AIOKafkaConsumer(bootstrap_servers=mesh.env["STEWARD_KAFKA_BOOTSTRAP_SERVERS"])
    await consumer.start()
    try:
        places = [TopicPartition(topic, part) for part in consumer.partitions_for_topic(topic) or {0}]
        consumer.assign(places)
        await consumer.seek_to_beginning(*places)
        ends = await consumer.end_offsets(places)
        found: list[Any] = []
        while any([await consumer.position(place) < ends[place] for place in places]):
            for batch in (await consumer.getmany(timeout_ms=200)).values():
                found += batch
        return found
    finally:
        await consumer.stop()
