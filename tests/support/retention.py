"""A stage for retention: the room runs on real servers, and the test plays gateway, holders, auditor and mail."""

from __future__ import annotations

import json
import uuid
from collections.abc import Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

from aiokafka import AIOKafkaConsumer, TopicPartition
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey

from services.retention.app import make_service
from services.retention.case import Timing
from shared.contract import events, topics
from shared.contract.base import Event
from shared.contract.sealing import seal
from shared.contract.topics import Topic
from shared.mesh.runtime import Runtime
from shared.mesh.transaction import rfc3339
from shared.privacy.certificate import trusted_key
from shared.privacy.vault import Vault
from tests.support.gateway import Gateway, Sent, body
from tests.support.world import Faults, Mesh

FAST = Timing(
    resend=timedelta(seconds=2), resend_ceiling=timedelta(seconds=4), again=timedelta(milliseconds=200),
    sweep_after=timedelta(milliseconds=200), sweep_again=timedelta(milliseconds=500),
)  # fmt: skip
OTHERS = tuple(sorted(set(topics.HOLDERS) - {"billing", "retention"}))
"""The holders of the first wave that a test plays; retention answers for itself."""


@dataclass
class MovedClock:
    """The machine's clock, moved ahead by a test."""

    ahead: timedelta = timedelta(0)

    def now(self) -> datetime:
        return datetime.now(UTC) + self.ahead


@dataclass
class Stage:
    """Retention at work, and everybody around it."""

    mesh: Mesh
    seed: int
    clock: MovedClock = field(default_factory=MovedClock)
    timing: Timing = FAST
    tag: str = field(default_factory=lambda: uuid.uuid4().hex[:8])
    runtime: Runtime = field(init=False)
    voices: dict[str, Gateway] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.account, self.workspace, self.member = f"acc-{self.tag}", f"ws-{self.tag}", f"mem-{self.tag}"

    async def start(self, *, fault: Faults | None = None, **options: Any) -> Stage:
        """Starts the room."""
        service = make_service(timing=self.timing, trims=False, **options)
        self.runtime = await self.mesh.start("retention", service=service, clock=self.clock, fault=fault)
        await self.mesh.owned()
        return self

    @property
    def vault(self) -> Vault:
        """The room's vault, for eyes that only a test has."""
        vault: Vault = self.runtime.plugged["vault"]
        return vault

    # --- saying -----------------------------------------------------------------------------------------------------

    def event(self, who: str, topic: Topic, model: type[Event], key: str, data: dict[str, Any], **more: Any) -> Sent:
        """An event of somebody's, as of the room's clock."""
        voice = self.voices.setdefault(who, Gateway(self.seed + len(self.voices), source=who))
        more.setdefault("at_ms", int(self.clock.now().timestamp() * 1000))
        return voice.event(topic, model, data, key=key, subject=more.pop("subject", key), **more)

    async def send(self, *records: Sent) -> None:
        """Sends, and waits until everything has had its effects."""
        await Gateway(self.seed).send(self.mesh.env, records)
        await self.mesh.idle()

    def said(self, model: type[Event], **data: Any) -> Sent:
        """What the gateway says about accounts."""
        data.setdefault("account", self.account)
        return self.event("gateway-1", topics.ACCOUNTS, model, data["account"], data)

    def asked(self, model: type[Event], **data: Any) -> Sent:
        """What somebody asks for."""
        data.setdefault("account", self.account)
        return self.event("gateway-1", topics.PRIVACY_REQUESTS, model, data["account"], data)

    def request(self, scope: str = "account", target: str | None = None, **data: Any) -> Sent:
        """A request; its event's id is the case's."""
        data.setdefault("account", self.account)
        return self.asked(events.PrivacyRequested, kind="erasure", scope=scope, target=target or self.account, **data)

    def judged(self, case: str, *, right: bool = True, of: str = "account", **data: Any) -> Sent:
        """What notifications say of a code that came back, played."""
        data.setdefault("account", self.account)
        told = {"case": case, "right": right, "of": of if right else None} | data
        return self.event("notifications", topics.MESSAGE_OUTCOMES, events.ProofJudged, case, told)

    def accepted(self, case: str, cause: str, outcome: str = "accepted") -> Sent:
        """What became of a mail, played."""
        data = {"cause": cause, "case": case, "outcome": outcome, "at": instant(self.clock.now())}
        return self.event("notifications", topics.MESSAGE_OUTCOMES, events.MessageSettled, case, data)

    def receipt(self, holder: str, case: str, epoch: int = 1, action: str = "erase", **more: Any) -> Sent:
        """A holder's receipt, played."""
        treated = [{"table": "some_table", "action": "delete_row", "columns": ["account"], "rows": 3}]
        data: dict[str, Any] = {
            "case": case, "epoch": epoch, "holder": holder, "action": action, "treated": treated,
            "map_version": "0123456789abcdef", "code_version": "0.1.0",
        } | more  # fmt: skip
        return self.event(data.pop("source", holder), topics.PRIVACY_RECEIPTS, events.PrivacyDone, case, data)

    def scan(self, case: str, action: str, epoch: int, **verdicts: str) -> Sent:
        """The auditor's verdicts: clean, but for those that are told."""
        seen = dict.fromkeys(topics.HOLDERS, "clean") | verdicts
        stores = [{"holder": holder, "store": "some_table", "verdict": verdict} for holder, verdict in seen.items()]
        for one in stores:
            if one["verdict"] == "retained":
                one |= {"ground": "legal_obligation", "not_after": "2034-01-01T00:00:00Z"}
        data = {"case": case, "epoch": epoch, "action": action, "stores": stores}
        return self.event("audit", topics.PRIVACY_RECEIPTS, events.PrivacyScanned, case, data)

    def command(self, action: str, target: str, *, role: str | None = None, **arguments: str) -> Sent:
        """An operator's command."""
        role = role or ("legal" if action.endswith("_hold") else "operations")
        data = {
            "service": "retention", "action": action, "target": target, "actor": "kim", "role": role, "ticket": "T-1",
            "arguments": arguments,
        }  # fmt: skip
        return self.event("operator", topics.COMMANDS, events.OperatorCommand, "retention", data)

    async def sealed(self, text: str) -> str:
        """A text as a platform seals it today."""
        return seal(text, *await self.vault.ingress(self.clock.now().date()))

    # --- seeing -----------------------------------------------------------------------------------------------------

    async def case(self, case_id: str) -> dict[str, Any]:
        """A case as the read API shows it."""
        found: dict[str, Any] = await self.runtime.answer("case", {"id": case_id}, "tester", "operator", "test")
        return found

    async def certificate(self, case_id: str) -> dict[str, Any]:
        """A case's certificate."""
        found: dict[str, Any] = await self.runtime.answer(
            "certificate", {"case": case_id}, "tester", "operator", "test"
        )
        return found

    @property
    def trusted(self) -> Ed25519PublicKey:
        """What the stack's certificates are verified by."""
        return trusted_key(Path(self.mesh.env["STEWARD_SIGNING_KEY_FILE"]).with_name("certificate.pem").read_bytes())

    async def state(self, case_id: str) -> str:
        """A case's state."""
        return str((await self.case(case_id))["state"])

    async def until_state(self, case_id: str, state: str, within: float = 20) -> None:
        """Waits for a state of a case."""

        async def there() -> bool:
            return await self.state(case_id) == state

        await self.mesh.until(there, within, state)

    async def records(self, topic: Topic) -> list[tuple[str, Any]]:
        """(key, event or None) of everything on a topic, in order."""
        consumer = AIOKafkaConsumer(bootstrap_servers=self.mesh.env["STEWARD_KAFKA_BOOTSTRAP_SERVERS"])
        await consumer.start()
        try:
            tps = [TopicPartition(topic.name, part) for part in range(topic.partitions)]
            consumer.assign(tps)
            await consumer.seek_to_beginning(*tps)
            ends = await consumer.end_offsets(tps)
            found: list[Any] = []
            while any([await consumer.position(tp) < end for tp, end in ends.items()]):
                for records in (await consumer.getmany(timeout_ms=200)).values():
                    found += records
        finally:
            await consumer.stop()
        return [((r.key or b"").decode(), None if r.value is None else json.loads(r.value)) for r in found]

    async def published(self, topic: Topic, **data: Any) -> list[dict[str, Any]]:
        """The data of the events on a topic that have these values."""
        return [
            event["data"]
            for _, event in await self.records(topic)
            if event is not None and all(event["data"].get(name) == value for name, value in data.items())
        ]

    async def until_ordered(self, case: str, action: str, epoch: int = 1, holder: str | None = None) -> dict[str, Any]:
        """Waits for an order."""
        found: list[dict[str, Any]] = []

        async def there() -> bool:
            orders = await self.published(topics.PRIVACY_COMMANDS, case=case, action=action, epoch=epoch)
            found[:] = [order for order in orders if holder is None or holder in order["holders"]]
            return bool(found)

        await self.mesh.until(there, 20, f"{action} {epoch}")
        return found[0]

    # --- ways -------------------------------------------------------------------------------------------------------

    async def a_customer(self) -> None:
        """An account with a workspace, an administrator, a member and two keys, settings and credit."""
        await self.send(
            self.said(events.AccountOpened, address=await self.sealed("kim@example.org"), identity=f"id-{self.tag}"),
            self.said(events.WorkspaceCreated, workspace=self.workspace, administrator=self.member),
            self.said(events.MemberAdded, workspace=self.workspace, member=f"{self.member}-2"),
            self.said(
                events.KeyCreated, workspace=self.workspace, key=f"key-{self.tag}", member=self.member,
                name=await self.sealed("Kim's laptop"),
            ),
            self.said(events.KeyCreated, workspace=self.workspace, key=f"key-{self.tag}-2", member=f"{self.member}-2"),
            self.settings(1, 30),
            self.event(
                "billing", topics.BALANCES, events.BalanceChanged, self.workspace,
                {
                    "workspace": self.workspace, "version": 3, "balance_pico": "12509999999999",
                    "purchased_pico": "12509999999999", "granted_pico": "0", "receivable_pico": "0",
                },
            ),
        )  # fmt: skip

    def settings(self, version: int, days: int, **more: Any) -> Sent:
        """Settings, as the administrator states them."""
        data = {
            "workspace": self.workspace, "version": version, "log_retention_days": days, "actor": self.member,
            "role": "administrator",
        } | more  # fmt: skip
        return self.said(events.SettingsStated, **data)

    async def confirmed(self, scope: str = "account", target: str | None = None, **data: Any) -> str:
        """A case that somebody asked for and confirmed."""
        asked = self.request(scope, target)
        case = str(body(asked)["id"])
        await self.send(asked)
        await self.send(self.judged(case, **data))
        return case

    async def first_wave(self, case: str, holders: Sequence[str] = OTHERS) -> None:
        """The receipts of the holders that a test plays, and retention's own."""
        offsets = {topics.USAGE_RATED.name: {"0": 18, "3": 211}}
        await self.send(*(self.receipt(name, case, offsets=offsets if name == "metering" else {}) for name in holders))

        async def itself() -> bool:
            return bool((await self.case(case))["holders"]["retention"]["state"] == "done")

        await self.mesh.until(itself, 20, "retention's own receipt")

    async def to_completed(self, case: str) -> None:
        """Both waves and a clean probe."""
        await self.first_wave(case)
        await self.until_ordered(case, "erase", holder="billing")
        await self.send(self.receipt("billing", case))
        await self.until_ordered(case, "probe")
        await self.send(self.scan(case, "probe", 1))


def instant(at: datetime) -> str:
    """As the contract writes it."""
    return rfc3339(at)
