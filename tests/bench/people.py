"""People for the measurements of erasure: what a gateway says of them, what they ask for, and the mails that they get."""

from __future__ import annotations

import re
from collections.abc import AsyncIterator, Callable, Collection, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from datetime import UTC, datetime
from email import message_from_bytes, policy
from email.message import EmailMessage
from typing import Any

from services.notifications.codes import ALPHABET, LENGTH
from shared.contract import events, topics
from shared.contract.base import Event
from shared.contract.sealing import seal
from shared.contract.topics import Topic
from shared.mesh.settings import ServiceSettings
from shared.mesh.store import open_pool
from shared.privacy.vault import MasterKeys, Vault
from tests.bench.lab import Lab
from tests.support.gateway import DOLLAR, Gateway, Sent, body

_CODE = re.compile(rf"^ +([{ALPHABET}]{{{LENGTH}}})\r?$", re.MULTILINE)


@dataclass(frozen=True, slots=True)
class Person:
    """An account of its own, with one workspace, one member and one key."""

    name: str

    @property
    def account(self) -> str:
        """Its account."""
        return f"acc-{self.name}"

    @property
    def workspace(self) -> str:
        """Its workspace."""
        return f"ws-{self.name}"

    @property
    def member(self) -> str:
        """The workspace's administrator."""
        return f"mem-{self.name}"

    @property
    def key(self) -> str:
        """The workspace's key."""
        return f"key-{self.name}"

    @property
    def address(self) -> str:
        """Where its mails go."""
        return f"{self.name}@example.org"


@dataclass(slots=True)
class People:
    """Says things of people as their gateway does, and reads their mails in the sink."""

    lab: Lab
    sealed: Callable[[str], str]
    gateway: Gateway = field(default_factory=lambda: Gateway(7, source="gw-bench-people"))
    _codes: dict[str, str] = field(default_factory=dict)
    _read: set[str] = field(default_factory=set)

    def _said(self, topic: Topic, event: type[Event], by: str, data: dict[str, Any], at_ms: int | None = None) -> Sent:
        return self.gateway.event(topic, event, data, key=by, subject=by, at_ms=at_ms)

    def joins(self, who: Person, generations: int = 2) -> list[Sent]:
        """A new customer, of whom every room then holds something."""
        account, workspace, member = who.account, who.workspace, who.member
        mine = {"account": account, "workspace": workspace}
        opened = {
            "account": account, "address": self.sealed(who.address), "identity": f"idn-{who.name}", "jurisdiction": "US"
        }  # fmt: skip
        settings = {"version": 1, "log_retention_days": 30, "actor": member, "role": "administrator"}
        payment = {"payment": f"pay-{who.name}", "credit_pico": str(5 * DOLLAR)}
        access = {"account": account, "kind": "dashboard", "agent": "browser", "ip": self.sealed("192.0.2.7")}
        activity = {"member": member, "surface": "playground", "action": "chat.sent", "model": "gpt-4.1-mini"}
        usage: dict[str, Any] = {
            "account": account, "key": who.key, "model": "gpt-4.1-mini", "provider": "openai", "log_retention_days": 30
        }  # fmt: skip
        return [
            self._said(topics.ACCOUNTS, events.AccountOpened, account, opened),
            self._said(topics.ACCOUNTS, events.WorkspaceCreated, account, mine | {"administrator": member}),
            self._said(topics.ACCOUNTS, events.SettingsStated, account, mine | settings),
            self._said(topics.ACCOUNTS, events.KeyCreated, account, mine | {"key": who.key, "member": member}),
            self._said(topics.PAYMENTS, events.PaymentSettled, workspace, mine | payment),
            self._said(topics.ACCESS, events.AccessRecorded, account, access),
            self._said(topics.ACTIVITY, events.ActivityRecorded, workspace, mine | activity),
            *(self.gateway.generation(workspace, **usage) for _ in range(generations)),
        ]

    def closes(self, who: Person, at: datetime) -> Sent:
        """An account was closed at that time."""
        at_ms = int(at.timestamp() * 1000)
        return self._said(topics.ACCOUNTS, events.AccountClosed, who.account, {"account": who.account}, at_ms)

    def asks(self, who: Person) -> tuple[str, Sent]:
        """(case, its request) of somebody who wants to be erased."""
        data = {"kind": "erasure", "scope": "account", "account": who.account, "target": who.account}
        sent = self._said(topics.PRIVACY_REQUESTS, events.PrivacyRequested, who.account, data)
        return str(body(sent)["id"]), sent

    def wants_copy(self, who: Person) -> tuple[str, Sent]:
        """(case, its request) of somebody who wants all their data."""
        data = {
            "kind": "access", "scope": "account", "account": who.account, "target": who.account,
            "passphrase": self.sealed("a passphrase of a person"),
        }  # fmt: skip
        sent = self._said(topics.PRIVACY_REQUESTS, events.PrivacyRequested, who.account, data)
        return str(body(sent)["id"]), sent

    def confirms(self, who: Person, case: str) -> Sent:
        """The last word, with the code from the mail."""
        data = {"case": case, "account": who.account, "code": self._codes[who.address]}
        return self._said(topics.PRIVACY_REQUESTS, events.PrivacyConfirmed, who.account, data)

    async def send(self, records: Sequence[Sent]) -> None:
        """Sends, and waits until all are there."""
        await self.gateway.send(self.lab.stack.settings, records)

    def has_code(self, who: Person) -> bool:
        """Whether the mail with the code has come."""
        assert self.lab.stack.mail is not None
        for file in self.lab.stack.mail.mails():
            if file.name not in self._read:
                self._read.add(file.name)
                mail = message_from_bytes(file.read_bytes(), _class=EmailMessage, policy=policy.default)
                found = _CODE.search(mail.get_content())
                if found is not None:
                    self._codes[str(mail["To"])] = found[1]
        return who.address in self._codes


@asynccontextmanager
async def people(lab: Lab) -> AsyncIterator[People]:
    """People of today, while retention is at work."""
    settings = ServiceSettings.from_env("retention", lab.env)
    assert settings.keys_database_url is not None
    pool = await open_pool(settings.keys_database_url, size=2, application="steward-bench-keys")
    try:
        key_id, public = await Vault(pool, MasterKeys.from_settings(settings)).ingress(datetime.now(UTC).date())
        yield People(lab, lambda text: seal(text, key_id, public))
    finally:
        await pool.close()


def crowd(names: str, count: int) -> list[Person]:
    """`count` people."""
    return [Person(f"{names}-{number:06d}") for number in range(count)]


def of_all(everybody: Collection[Person], say: Callable[[Person], list[Sent]]) -> list[Sent]:
    """What is said of each, one after the other."""
    return [record for who in everybody for record in say(who)]
