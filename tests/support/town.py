"""Everybody who holds data, at work together on real servers, with real mail; the test plays the gateway and the people."""

from __future__ import annotations

import asyncio
import json
import re
import zipfile
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from email.message import EmailMessage
from io import BytesIO
from pathlib import Path
from typing import Any

import aiohttp

from deploy.local.ports import free_port
from services.retention.app import make_service
from shared.contract import events, topics
from shared.mesh.runtime import Runtime
from shared.privacy.blobs import Blobs, open_blobs
from shared.privacy.package import manifest_of, opened
from tests.support.gateway import body
from tests.support.post import Post, post
from tests.support.retention import Stage

PASSPHRASE = "correct horse battery staple"
_CODE = re.compile(r"^    ([0-9A-Z]{8})\s*$", re.MULTILINE)
_LINK = re.compile(r"^\s*(http://\S+/packages/[0-9a-f]+)\s*$", re.MULTILINE)
HOLDERS = ("metering", "billing", "security", "insights", "notifications")


@dataclass
class Town(Stage):
    """Retention and all other holders; mails lie in `sink`."""

    sink: Post = field(kw_only=True)

    async def open(self, *rooms: str) -> Town:
        """Starts everybody (or these rooms beside retention), with a customer."""
        port = free_port()
        self.runtime = Runtime(
            make_service(timing=self.timing, trims=False), self.mesh.settings("retention", port=port), clock=self.clock
        )
        self.mesh.running.append(self.runtime)
        names = rooms or HOLDERS
        _, *others = await asyncio.gather(self.runtime.start(), *map(self.room, names))
        self.others: dict[str, Runtime] = {
            name: room for name, room in zip(names, others, strict=True) if room is not None
        }
        await self.mesh.owned()
        await self.a_customer()
        return self

    async def room(self, name: str) -> Runtime:
        """Starts another holder."""
        mail = {"smtp_url": self.sink.url, "mail_from": "privacy@steward.example"} if name == "notifications" else {}
        return await self.mesh.start(name, settings=mail, clock=self.clock)

    async def used(self, generations: int = 50) -> None:
        """The customer uses the gateway, its dashboard and its playground."""
        voice = self.voices.setdefault("gateway-1", self._voice())
        at_ms = int(self.clock.now().timestamp() * 1000)
        usage = [
            voice.generation(self.workspace, account=self.account, key=f"key-{self.tag}", at_ms=at_ms)
            for _ in range(generations)
        ]
        activity = {
            "account": self.account, "workspace": self.workspace, "member": self.member, "surface": "playground",
            "action": "chat.sent", "model": "test-model",
        }  # fmt: skip
        access = {
            "account": self.account,
            "kind": "dashboard",
            "agent": "browser",
            "ip": await self.sealed("192.0.2.17"),
        }
        bought = {
            "account": self.account, "workspace": self.workspace, "payment": f"pay-{self.tag}", "credit_pico": "5000000000000",
        }  # fmt: skip
        await self.send(
            voice.price(), *usage,
            self.event("gateway-1", topics.PAYMENTS, events.PaymentSettled, self.workspace, bought),
            self.event("gateway-1", topics.ACTIVITY, events.ActivityRecorded, self.workspace, activity),
            self.event("gateway-1", topics.ACCESS, events.AccessRecorded, self.account, access),
        )  # fmt: skip

    def _voice(self) -> Any:
        from tests.support.gateway import Gateway

        return Gateway(self.seed, source="gateway-1")

    @property
    def blobs(self) -> Blobs:
        """Where copies and packages lie."""
        return open_blobs(self.mesh.env["STEWARD_BLOBS"])

    # --- people ------------------------------------------------------------------------------------------------------

    async def wish(
        self, kind: str, scope: str = "account", target: str | None = None, *, settle: bool = True, **data: Any
    ) -> str:
        """Somebody asks for something; returns the case, when all is quiet again (`settle`) or when it is open. Plain texts of
        sealed fields are sealed here."""
        for name in ("passphrase", "value", "reply_to"):
            if name in data:
                data[name] = await self.sealed(data[name])
        data.setdefault("account", self.account)
        asked = self.asked(events.PrivacyRequested, kind=kind, scope=scope, target=target or data["account"], **data)
        if settle:
            await self.send(asked)
            return str((await self.case(body(asked)["id"]))["id"])
        await self.voices["gateway-1"].send(self.mesh.env, [asked])
        case = str(body(asked)["id"])

        async def there() -> bool:
            return bool(await self.mesh.value("retention", "SELECT count(*) FROM case_request WHERE id = $1", case))

        await self.mesh.until(there, 20, "the case is open")
        return case

    async def give(self, case: str, code: str, *, settle: bool = True, **data: Any) -> None:
        """Somebody gives a code back; returns when all is quiet again (`settle`)."""
        if "passphrase" in data:
            data["passphrase"] = await self.sealed(data["passphrase"])
        said = self.asked(events.PrivacyConfirmed, case=case, code=code, **data)
        await (self.send(said) if settle else self.voices["gateway-1"].send(self.mesh.env, [said]))

    async def mail(self, case: str, subject: str, to: str = "kim@example.org") -> EmailMessage:
        """The latest mail of a case to somebody, by words of its subject, when it has come."""
        found: list[EmailMessage] = []

        async def there() -> bool:
            found[:] = [
                mail for mail in self.sink.mails()
                if mail["To"] == to and subject in str(mail["Subject"]) and case in mail.get_content()
            ]  # fmt: skip
            return bool(found)

        await self.mesh.until(there, 20, f"a mail with {subject!r} to {to}")
        return found[-1]

    async def until_case(self, case: str, state: str, within: float = 30) -> dict[str, Any]:
        """The case, when it has come to a state."""
        await self.until_state(case, state, within)
        return await self.case(case)

    async def fetch(self, link: str) -> tuple[int, bytes]:
        """What a link answers."""
        async with aiohttp.ClientSession() as session, session.get(link) as answer:
            return answer.status, await answer.read()

    async def package(self, case: str) -> tuple[dict[str, Any], zipfile.ZipFile]:
        """The package of a case, as its person gets it: by the link in the mail, opened with the passphrase."""
        status, raw = await self.fetch(link_in(await self.mail(case, "")))
        assert status == 200, status
        return await asyncio.to_thread(unpacked, raw)


def code_in(mail: EmailMessage) -> str:
    """The code that a mail brings."""
    found = _CODE.search(mail.get_content())
    assert found is not None, mail.get_content()
    return found[1]


def link_in(mail: EmailMessage) -> str:
    """The link that a mail brings."""
    found = _LINK.search(mail.get_content())
    assert found is not None, mail.get_content()
    return found[1]


def unpacked(raw: bytes, passphrase: str = PASSPHRASE) -> tuple[dict[str, Any], zipfile.ZipFile]:
    """(manifest, the ZIP) of a package."""
    with opened(BytesIO(raw), passphrase=passphrase) as archive:
        manifest = manifest_of(archive)
        copy = zipfile.ZipFile(BytesIO(), "w")
        for name in archive.namelist():
            copy.writestr(name, archive.read(name))
    return manifest, copy


def lines(archive: zipfile.ZipFile, name: str) -> list[dict[str, Any]]:
    """The rows of a JSON Lines file of a package; none if it is not there."""
    found = archive.read(name).decode() if name in archive.namelist() else ""
    return [json.loads(line) for line in found.splitlines()]


@asynccontextmanager
async def in_town(mesh: Any, seed: int, folder: Path, *rooms: str) -> AsyncIterator[Town]:
    """A town at work."""
    folder.mkdir()
    async with post(folder) as sink:
        yield await Town(mesh, seed, sink=sink).open(*rooms)
