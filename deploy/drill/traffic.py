"""What a small gateway says in a drill: two customers, one who will leave and one who stays."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from datetime import datetime
from random import Random
from typing import Any, NamedTuple

from shared.contract import events, topics
from shared.contract.base import Event
from shared.contract.codec import build, validated
from shared.contract.ids import uuid7
from shared.contract.sealing import seal
from shared.contract.topics import Topic
from shared.contract.units import Subject
from shared.mesh.clock import Clock
from shared.mesh.transaction import rfc3339

_MODEL, _PROVIDER = "drill-model", "drill-provider"
_DOLLAR = 10**12


class Said(NamedTuple):
    """One record as it goes out."""

    topic: Topic
    key: bytes
    value: bytes
    headers: list[tuple[str, bytes]]


@dataclass(frozen=True, slots=True)
class Customer:
    """Somebody with an account, a workspace, a key and a sign-in identity."""

    name: str

    @property
    def account(self) -> str:
        return f"acc-{self.name}"

    @property
    def workspace(self) -> str:
        return f"ws-{self.name}"

    @property
    def subjects(self) -> tuple[Subject, ...]:
        """Everything that leads to this customer."""
        kinds: tuple[Any, ...] = ("account", "identity", "member", "workspace", "key")
        return tuple((kind, f"{_SHORT[kind]}-{self.name}") for kind in kinds)

    @property
    def ids(self) -> tuple[str, ...]:
        """The same, without their kinds."""
        return tuple(name for _, name in self.subjects)


_SHORT = {"account": "acc", "identity": "id", "member": "mem", "workspace": "ws", "key": "key"}


@dataclass
class Gateway:
    """One emitting instance. `key_id`, `public`: to whom it seals what is personal."""

    clock: Clock
    random: Random
    key_id: str
    public: bytes
    _sequence: Counter[str] = field(default_factory=Counter)

    def customer(self, name: str) -> Customer:
        """A customer whose ids nobody has had before."""
        return Customer(f"{name}-{self.random.getrandbits(40):010x}")

    def price(self) -> Said:
        """What everybody uses costs a micro-dollar an input token, and three an output token."""
        return self._event(
            topics.PRICES, events.PricePublished, f"{_PROVIDER}/{_MODEL}", "prices",
            provider=_PROVIDER, model=_MODEL, prices={"input": "0.000001", "output": "0.000003"},
            valid_from="2020-01-01T00:00:00Z", source="drill",
        )  # fmt: skip

    def arrival(self, who: Customer) -> Iterator[Said]:
        """A new account with all that belongs to it, and its first credit."""
        account, workspace = who.account, who.workspace
        member, key, identity = (f"{kind}-{who.name}" for kind in ("mem", "key", "id"))

        def told(model: type[Event], /, **data: Any) -> Said:
            return self._event(topics.ACCOUNTS, model, account, account, account=account, **data)

        yield told(events.AccountOpened, address=self._sealed(f"{who.name}@example.org"), identity=identity)
        yield told(events.WorkspaceCreated, workspace=workspace, administrator=member)
        yield told(
            events.SettingsStated, workspace=workspace, version=1, log_retention_days=30, actor=member,
            role="administrator",
        )  # fmt: skip
        yield told(
            events.KeyCreated, workspace=workspace, key=key, member=member, name=self._sealed(f"laptop of {who.name}")
        )
        yield self.payment(who)

    def payment(self, who: Customer) -> Said:
        """Ten dollars of credit."""
        return self._event(
            topics.PAYMENTS, events.PaymentSettled, who.workspace, who.workspace,
            payment=f"pay-{self.random.getrandbits(48):012x}", account=who.account, workspace=who.workspace,
            credit_pico=str(10 * _DOLLAR),
        )  # fmt: skip

    def day(self, who: Customer, generations: int) -> Iterator[Said]:
        """What a customer does: generations, connections, clicks."""
        account, workspace, key = who.account, who.workspace, f"key-{who.name}"
        for _ in range(generations):
            read, written = self.random.randrange(1, 4_000), self.random.randrange(1, 400)
            yield self._event(
                topics.GENERATIONS, events.GenerationCompleted, None, workspace,
                account=account, workspace=workspace, key=key, model=_MODEL, provider=_PROVIDER, finish_reason="stop",
                input_tokens=read, output_tokens=written, tokens={"input": read, "output": written},
            )  # fmt: skip
        yield self._event(
            topics.ACCESS, events.AccessRecorded, account, account, account=account, identity=f"id-{who.name}",
            kind="sign_in", ip=self._sealed("198.51.100.7"),
        )  # fmt: skip
        yield self._event(
            topics.ACCESS, events.AccessRecorded, workspace, workspace, workspace=workspace, account=account, key=key,
            kind="api", ip=self._sealed("198.51.100.7"),
        )  # fmt: skip
        yield self._event(
            topics.ACTIVITY, events.ActivityRecorded, workspace, workspace, account=account, workspace=workspace,
            surface="dashboard", action="usage.viewed",
        )  # fmt: skip

    def request(self, who: Customer) -> tuple[str, Said]:
        """(the case, the wish to be deleted)."""
        said = self._event(
            topics.PRIVACY_REQUESTS, events.PrivacyRequested, who.account, who.account,
            kind="erasure", scope="account", account=who.account, target=who.account, channel="settings",
        )  # fmt: skip
        return self._last_id, said

    def confirmation(self, who: Customer, case: str, code: str) -> Said:
        """The last word."""
        return self._event(
            topics.PRIVACY_REQUESTS, events.PrivacyConfirmed, who.account, who.account,
            case=case, account=who.account, code=code,
        )  # fmt: skip

    def _event(self, topic: Topic, model: type[Event], key: str | None, subject: str, /, **data: Any) -> Said:
        at: datetime = self.clock.now()
        self._last_id = uuid7(int(at.timestamp() * 1000), self.random.getrandbits)
        self._sequence[topic.name] += 1
        number = self._sequence[topic.name]
        raw = build(
            model, id=self._last_id, source=_SOURCE, subject=subject, time=rfc3339(at), data=data, sequence=number
        )
        headers = [("ce_source", _SOURCE.encode()), ("ce_sequence", str(number).encode())]
        return Said(topic, (key or self._last_id).encode(), validated(model, raw), headers)

    def _sealed(self, text: str) -> str:
        return seal(text, self.key_id, self.public)


_SOURCE = "gateway-drill"
