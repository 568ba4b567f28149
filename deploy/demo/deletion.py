"""The demo's deletion: an account asks for its data, then to be forgotten, in the middle of its traffic.

Nothing here is a short cut: a wish is an event, code and link come by mail, and what became of it is read where operators
read it.
"""

from __future__ import annotations

import asyncio
import email
import json
import re
import time
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from email import policy as mail_policy
from pathlib import Path
from typing import Any

import aiohttp
import asyncpg

from deploy.demo.copy import PASSPHRASE, Copy, fetch, link_in, look_into
from deploy.demo.emit import Emitter
from deploy.demo.gateway import Gateway
from deploy.demo.mesh import Reads
from deploy.demo.people import People
from deploy.demo.progress import until
from deploy.local.errors import LocalError
from deploy.local.stack import Stack
from shared.contract.topics import HOLDERS
from shared.mesh.clock import Clock
from shared.mesh.store import open_pool
from shared.privacy import certificate as certificates
from shared.privacy.age import CannotOpen
from shared.privacy.vault import MasterKeys, Shredded, Vault

_ROOM = "retention"
_WAIT_SECONDS = 90.0
_CERTIFIED_SECONDS = 45.0
"""How long a demo waits for the certificate: Kafka forgets a key for good some 15 s after its last record."""

# How far the traffic is, as a share of the generations, when something has to have happened; in between it goes slower,
# so that there is traffic at every stage.
ASK_AT, CONFIRMED_AT, EFFECTIVE_AT = 0.5, 0.75, 0.88
_SLOWER = 0.01
_CODE = re.compile(r"^ {4}([0-9A-Z]{8})\s*$", re.MULTILINE)


@dataclass(slots=True)
class Story:
    """What is to be told of a deletion. `case`: as `steward privacy status` has it; None if it never opened."""

    account: str
    workspaces: Sequence[str]
    case: Mapping[str, Any] | None = None
    copy: Copy | None = None
    trouble: str | None = None
    mails: Sequence[str] = ()
    """Subjects of the mails that came to its holder."""
    sums_before: Mapping[str, int] = field(default_factory=dict)
    sums_after: Mapping[str, int] = field(default_factory=dict)
    """What the entries of each legal class sum to, pico-dollars."""
    credit_pico: int = 0
    ended_pico: int = 0
    sent: int = 0
    late: int = 0
    erased: int = 0
    dropped: Mapping[str, int] = field(default_factory=dict)
    """Late events of other topics that were dropped, by service."""
    certificate: Path | None = None
    key: Path | None = None
    verdict: str | None = None

    @property
    def completed(self) -> bool:
        """Whether every holder has answered and the auditor found nothing."""
        return self.case is not None and self.case["completed_at"] is not None

    @property
    def certified(self) -> bool:
        """Whether there is a certificate."""
        return self.case is not None and self.case["state"] == "certified"

    @property
    def books_stand(self) -> bool:
        """Whether every legal class sums to zero before and after, and none has gone."""
        sums = (*self.sums_before.values(), *self.sums_after.values())
        return bool(self.sums_before) and set(self.sums_before) <= set(self.sums_after) and not any(sums)

    @property
    def late_is_dropped(self) -> bool:
        """Whether all that was sent when it was gone is counted as erased, and nothing that was not sent."""
        return self.late <= self.erased <= self.sent

    @property
    def holds(self) -> bool:
        """Whether it was done, and a certificate that is there is good."""
        taken = self.copy is not None and self.copy.holds
        good = taken and self.completed and self.books_stand and self.late_is_dropped and self.trouble is None
        return good and (not self.certified or self.verdict == "valid")


class Deletion:
    """One account's deletion, beside the traffic. `emitter`: its own, so that nothing waits for the other one."""

    def __init__(
        self, *, seed: int, gateway: Gateway, emitter: Emitter, reads: Reads, stack: Stack, clock: Clock, unpaced: bool
    ) -> None:
        self._seed, self._gateway, self._emitter, self._reads = seed, gateway, emitter, reads
        self._stack, self._clock, self._unpaced = stack, clock, unpaced
        own = [one.name for one in gateway.workspaces if one.account == gateway.leaver]
        self.story = Story(gateway.leaver, own)
        self._asked, self._confirmed, self._effective = asyncio.Event(), asyncio.Event(), asyncio.Event()
        self._people: People

    def pace(self) -> Awaitable[None] | None:
        """For the traffic: slower while something is under way, and a halt where it must not be over before that."""
        share = self._gateway.played / max(1, self._gateway.count)
        if share >= ASK_AT:
            self._asked.set()
        if self._unpaced or share < ASK_AT or self._effective.is_set():
            return None
        if share >= EFFECTIVE_AT:
            return _wait(self._effective)
        if share >= CONFIRMED_AT and not self._confirmed.is_set():
            return _wait(self._confirmed)
        return asyncio.sleep(_SLOWER)

    async def run(self) -> None:
        """From the first account to the moment from which on nothing of it has effects: metering has answered."""
        try:
            await self._run()
        except LocalError as error:
            self.story.trouble = str(error)
        finally:
            self._asked.set()
            self._confirmed.set()
            self._effective.set()

    async def _run(self) -> None:
        people = self._people = People(
            self._seed, self._clock.now(), self._gateway.workspaces, self._gateway.leaver, await self._ingress()
        )
        await self._emitter.run(people.who())
        await self._emitter.run(people.traces())
        await self._asked.wait()
        await self._is_known()
        copy = await self._take_along()
        wish, case = people.asks(self._clock.now())
        await self._emitter.run([wish])
        code = await self._in_mail(case, lambda text: next(iter(_CODE.findall(text)), None))
        self.story.sums_before = await self._reads.ledger_sums()
        await self._emitter.run([people.confirms(case, code, self._clock.now())])
        await self._see(case, lambda row: row["confirmed_at"] is not None, "it was not confirmed")
        self._confirmed.set()
        copy.link_afterwards, _ = await fetch(copy.link)
        await self._see(
            case, lambda row: any(one["holder"] == "metering" for one in row["receipts"]), "metering gave no receipt"
        )
        self._gateway.leaver_is_gone = True
        self._effective.set()
        await self._emitter.run(people.late())

    async def _take_along(self) -> Copy:
        """It asks for all its data, in its settings, and opens the package with its passphrase."""
        asked_at = time.monotonic()
        wish, case = self._people.wants_copy(self._clock.now(), PASSPHRASE)
        copy = self.story.copy = Copy(case)
        await self._emitter.run([wish])
        link = await self._in_mail(case, link_in)
        try:
            await look_into(copy, link, asked_at)
        except (CannotOpen, aiohttp.ClientError) as error:
            raise LocalError(f"the package cannot be opened: {error}") from None
        return copy

    async def completed(self) -> None:
        """Waits until every holder has answered and the auditor has looked."""
        story = self.story
        if story.case is not None and story.trouble is None:
            try:
                await self._see(story.case["id"], lambda row: row["completed_at"] is not None, "it was not completed")
            except LocalError as error:
                story.trouble = str(error)

    async def certified(self, folder: Path) -> None:
        """Waits a while for the certificate, and puts it into `folder`. Without it the page says what is to come."""
        story = self.story
        if story.case is None or not story.completed:
            return
        case = story.case["id"]
        try:
            await self._see(case, lambda row: row["ended_at"] is not None, "", _CERTIFIED_SECONDS)
        except LocalError:
            return
        certificate = await self._reads(_ROOM, "certificate", case=case)
        try:
            await asyncio.to_thread(self._keep, certificate, folder)
        except OSError as error:
            story.trouble = f"the certificate cannot be written into {folder} ({error.strerror})"

    async def look_back(self) -> None:
        """What is to be told when all is quiet again."""
        story = self.story
        story.sums_after = await self._reads.ledger_sums()
        if story.case is not None:
            story.case = await self._reads(_ROOM, "case", id=story.case["id"])
            mails = [mail for mail in self._mails(self._people.address) if story.case["id"] in mail.get_content()]
            story.mails = [str(mail["Subject"]) for mail in mails]
        for room in ("security", "insights"):
            counters = await self._reads(room, "counters")
            dropped = sum(n for name, n in counters.items() if name.startswith("erased:"))
            story.dropped = {**story.dropped, room: dropped}

    # --- as a platform does it -------------------------------------------------------------------------------------

    async def _ingress(self) -> tuple[str, bytes]:
        """The mesh's key of today, as `steward keys ingress` reads it; the mesh makes it when it starts."""
        found: list[tuple[str, bytes]] = []

        async def there() -> bool:
            try:
                found.append(await _ingress_key(self._stack.settings, self._clock.now()))
            except (OSError, asyncpg.PostgresError, Shredded):
                return False
            return True

        if not await until(there, _WAIT_SECONDS):
            raise LocalError("the mesh has no ingress key of today: see the log of retention")
        return found[0]

    async def _is_known(self) -> None:
        """Returns when metering has rated most of what was sent: who asks has been a customer for a while."""

        async def rated() -> bool:
            counters = await self._reads.try_("metering", "counters")
            return bool(counters) and counters.get("rated", 0) >= self._gateway.count * ASK_AT * 0.8

        await until(rated, _WAIT_SECONDS)

    # --- as its holder does it -------------------------------------------------------------------------------------

    async def _in_mail(self, case: str, find: Callable[[str], str | None]) -> str:
        """What a mail of a case brings: a code, a link."""
        found: list[str] = []

        async def came() -> bool:
            texts = (mail.get_content() for mail in self._mails(self._people.address))
            found.extend(what for text in texts if case in text and (what := find(text)) is not None)
            return bool(found)

        if not await until(came, _WAIT_SECONDS):
            raise LocalError(f"a mail of case {case} did not come: see the log of notifications")
        return found[0]

    def _mails(self, address: str) -> list[Any]:
        if self._stack.mail is None:
            return []
        mails = [
            email.message_from_bytes(file.read_bytes(), policy=mail_policy.default) for file in self._stack.mail.mails()
        ]
        return [mail for mail in mails if mail["To"] == address]

    # --- as an operator does it ------------------------------------------------------------------------------------

    async def _see(self, case: str, condition: Any, trouble: str, seconds: float = _WAIT_SECONDS) -> None:
        async def so() -> bool:
            row = await self._reads.try_(_ROOM, "case", id=case)
            if row is None:
                return False
            self.story.case = row
            return bool(condition(row))

        if not await until(so, seconds):
            raise LocalError(f"the deletion stands still: {trouble}")

    def _keep(self, certificate: Mapping[str, Any], folder: Path) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        raw = json.dumps(certificate, indent=2) + "\n"
        public = (self._stack.home / "certificate.pem").read_bytes()
        story = self.story
        story.certificate, story.key = folder / "certificate.json", folder / "certificate.pem"
        story.certificate.write_text(raw, encoding="utf-8")
        story.key.write_bytes(public)
        story.verdict = certificates.verify(story.certificate.read_bytes(), [certificates.trusted_key(public)]).verdict


async def _wait(event: asyncio.Event) -> None:
    await event.wait()


async def _ingress_key(settings: Mapping[str, str], now: datetime) -> tuple[str, bytes]:
    pool = await open_pool(settings["STEWARD_KEYS_OWNER_DATABASE_URL"], size=1, application="steward-demo")
    try:
        masters = MasterKeys.from_values(settings.get("STEWARD_MASTER_KEY_FILE"), settings.get("STEWARD_MASTER_KEY"))
        return await Vault(pool, masters).ingress(now.date())
    finally:
        await pool.close()


def answered(row: Mapping[str, Any]) -> list[tuple[str, str]]:
    """Who has done what of a case until now, in the order in which it goes round: (name, state)."""
    everybody = {**row["holders"], **({"audit": row["auditor"]} if row["auditor"] else {})}
    order = [name for name in HOLDERS if name != "billing"] + ["billing", "audit"]
    return [(name, everybody[name]["state"]) for name in order if name in everybody]
