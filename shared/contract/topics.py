"""The topics, each declared once: Kafka topics, rights, AsyncAPI document and checks at start all come from here."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from datetime import timedelta
from typing import Any, Literal, NamedTuple

from ..policy import policy
from . import events as e
from .base import Event

AfterErasure = Literal["drop", "book", "control"]

HOLDERS: tuple[str, ...] = ("metering", "billing", "security", "retention", "notifications", "insights")
"""The services that keep personal data: an erasure is done when each of them has proved it."""

_DAY = timedelta(days=1)


class Pace(NamedTuple):
    """How fast a compacted topic forgets: an active segment's life, the compaction lag, the life of a record without a
    value (which must exceed the longest absence of a reader)."""

    segment: timedelta
    compaction: timedelta
    forgetting: timedelta

    @property
    def whole(self) -> timedelta:
        """The longest that a key can stay readable after its record without a value."""
        return self.segment + self.compaction + self.forgetting


_CALM = Pace(timedelta(hours=6), _DAY, 7 * _DAY)
_HURRIED = Pace(timedelta(seconds=5), timedelta(seconds=3), timedelta(seconds=5))


def pace(*, hurried: bool) -> Pace:
    """How fast compacted topics forget."""
    return _HURRIED if hurried else _CALM


@dataclass(frozen=True, slots=True)
class Topic:
    """One topic of the contract.

    `ordered`: order per key matters, a record that fails parks its key. `fixed_partitions`: the count is part of the
    contract for the topic's life. `after_erasure`: what each reader does with a unit of an erased subject.
    """

    name: str
    title: str
    events: tuple[type[Event], ...]
    key: str
    partitions: int
    writers: tuple[str, ...]
    readers: tuple[str, ...]
    retention: timedelta
    segment: timedelta = timedelta(hours=6)
    compacted: bool = False
    ordered: bool = False
    fixed_partitions: bool = False
    personal: bool = True
    after_erasure: Mapping[str, AfterErasure] = field(default_factory=dict)
    # The record key of an event, for whoever writes from outside; None = the writer gives a partition.
    key_of: Callable[[Any], str] | None = None

    def __post_init__(self) -> None:
        if self.personal and not self.compacted and self.retention + self.segment > policy().topic_max:
            raise ValueError(f"{self.name}: a topic that holds personal data may not outlive the policy's bound")

    def config(self, *, hurried: bool = False) -> dict[str, str]:
        """The topic's Kafka settings. `hurried`: a compacted topic forgets within seconds, not days (a developer's
        machine, a test): then an erasure can be certified while somebody watches."""
        speed = _HURRIED if hurried and self.compacted else _CALM
        settings = {
            "message.timestamp.type": "LogAppendTime",
            "segment.ms": str(int((self.segment if speed is _CALM else speed.segment).total_seconds() * 1000)),
        }
        if self.compacted:
            return settings | {
                "cleanup.policy": "compact",
                "max.compaction.lag.ms": str(int(speed.compaction.total_seconds() * 1000)),
                "delete.retention.ms": str(int(speed.forgetting.total_seconds() * 1000)),
            }
        return settings | {
            "cleanup.policy": "delete",
            "retention.ms": str(int(self.retention.total_seconds() * 1000)),
        }


_TRANSIT = timedelta(days=6)


def settings_key(data: Any) -> str:
    """The record key of settings in force. No id has a slash in it: a key or a member is never taken for a workspace."""
    for kind in ("key", "member"):
        if (name := getattr(data, kind, None)) is not None:
            return f"{kind}/{name}"
    workspace: str = data.workspace
    return workspace


GENERATIONS = Topic(
    name="gateway.generations",
    title="What was generated: one event for each generation, and corrections of earlier ones.",
    events=(e.GenerationCompleted, e.UsageCorrected),
    key="event id (a correction: the id it corrects)",
    partitions=12,
    writers=("gateway",),
    readers=("metering",),
    retention=_TRANSIT,
    after_erasure={"metering": "drop"},
    key_of=lambda event: getattr(event.data, "original", event.id),
)
PAYMENTS = Topic(
    name="gateway.payments",
    title="Money and credit: purchases, refunds, disputes, grants, opening balances, notes, payment methods.",
    events=(
        e.PaymentSettled,
        e.PaymentRefunded,
        e.PaymentDisputed,
        e.DisputeClosed,
        e.CreditGranted,
        e.BalanceOpened,
        e.NoteAdded,
        e.PaymentMethodSaved,
    ),
    key="workspace",
    partitions=6,
    writers=("gateway",),
    readers=("billing",),
    retention=_TRANSIT,
    ordered=True,
    fixed_partitions=True,
    after_erasure={"billing": "book"},
    key_of=lambda event: event.data.workspace,
)
PRICES = Topic(
    name="gateway.prices",
    title="Prices, as they become known.",
    events=(e.PricePublished, e.PricesImported),
    key="provider/model",
    partitions=1,
    writers=("gateway", "operator"),
    readers=("metering",),
    retention=_TRANSIT,
    ordered=True,
    fixed_partitions=True,
    personal=False,
    key_of=lambda event: (
        f"{event.data.lists[0].provider}/*"
        if event.type == e.PricesImported.TYPE
        else f"{event.data.provider}/{event.data.model}"
    ),
)
USAGE_RATED = Topic(
    name="mesh.usage-rated",
    title="Rated usage, packed by target partition and workspace.",
    events=(e.UsageRated,),
    key="none; partition = hash(workspace)",
    partitions=6,
    writers=("metering",),
    readers=("billing",),
    retention=_TRANSIT,
    fixed_partitions=True,
    after_erasure={"billing": "book"},
)
BALANCES = Topic(
    name="mesh.balances",
    title="The credit of each workspace, as the gateway needs it to answer 402.",
    events=(e.BalanceChanged,),
    key="workspace",
    partitions=6,
    writers=("billing",),
    readers=("gateway", "retention"),
    retention=_TRANSIT,
    compacted=True,
    ordered=True,
    fixed_partitions=True,
    after_erasure={"retention": "drop"},
)

COMMANDS = Topic(
    name="mesh.commands",
    title="Operators' commands to services; each names a person and a ticket.",
    events=(e.OperatorCommand,),
    key="service",
    partitions=1,
    writers=("operator",),
    readers=HOLDERS,
    retention=_TRANSIT,
    ordered=True,
    fixed_partitions=True,
    key_of=lambda event: event.data.service,
)

ACCOUNTS = Topic(
    name="gateway.accounts",
    title="Who is who: accounts, workspaces, members, API keys, settings, what members restrict for themselves.",
    events=(
        e.AccountOpened,
        e.AccountClosed,
        e.WorkspaceCreated,
        e.SettingsStated,
        e.MemberRestricted,
        e.MemberAdded,
        e.MemberRemoved,
        e.KeyCreated,
        e.KeyRevoked,
    ),
    key="account; a member's restriction: the member",
    partitions=6,
    writers=("gateway",),
    readers=("retention", "notifications"),
    retention=_TRANSIT,
    ordered=True,
    fixed_partitions=True,
    after_erasure={"retention": "drop", "notifications": "drop"},
    key_of=lambda event: event.data.member if event.type == e.MemberRestricted.TYPE else event.data.account,
)
ACCESS = Topic(
    name="gateway.access",
    title="Connections and sign-ins: for security, and for nothing else.",
    events=(e.AccessRecorded,),
    key="the envelope's subject",
    partitions=6,
    writers=("gateway",),
    readers=("security",),
    retention=_TRANSIT,
    after_erasure={"security": "drop"},
    key_of=lambda event: event.subject,
)
ACTIVITY = Topic(
    name="gateway.activity",
    title="Use of the dashboard and the playground, unless opted out.",
    events=(e.ActivityRecorded,),
    key="workspace",
    partitions=6,
    writers=("gateway",),
    readers=("insights",),
    retention=_TRANSIT,
    after_erasure={"insights": "drop"},
    key_of=lambda event: event.data.workspace,
)
PRIVACY_REQUESTS = Topic(
    name="gateway.privacy-requests",
    title="What people ask for under the privacy policy, and confirm.",
    events=(e.PrivacyRequested, e.PrivacyConfirmed, e.PrivacyWithdrawn, e.SupportMailReceived),
    key="account; a mail to support: the mail",
    partitions=3,
    writers=("gateway", "operator"),
    readers=("retention", "notifications"),
    retention=_TRANSIT,
    ordered=True,
    fixed_partitions=True,
    after_erasure={"retention": "control", "notifications": "control"},
    key_of=lambda event: event.data.mail if event.type == e.SupportMailReceived.TYPE else event.data.account,
)
TOMBSTONES = Topic(
    name="mesh.tombstones",
    title="Who is erased, as keyed hashes: read to the end before anything else.",
    events=(e.SubjectErased,),
    key="hash",
    partitions=1,
    writers=("retention",),
    readers=HOLDERS,
    retention=_TRANSIT,
    compacted=True,
    fixed_partitions=True,
    after_erasure=dict.fromkeys(HOLDERS, "control"),
    key_of=lambda event: event.data.hash,
)
PRIVACY_COMMANDS = Topic(
    name="mesh.privacy-commands",
    title="What holders of personal data have to do for a case.",
    events=(e.PrivacyOrdered,),
    key="case",
    partitions=1,
    writers=("retention",),
    readers=(*HOLDERS, "audit"),
    retention=_TRANSIT,
    fixed_partitions=True,
    after_erasure=dict.fromkeys((*HOLDERS, "audit"), "control"),
    key_of=lambda event: event.data.case,
)
PRIVACY_RECEIPTS = Topic(
    name="mesh.privacy-receipts",
    title="What holders did for a case, and what the auditor saw.",
    events=(e.PrivacyDone, e.PrivacyScanned),
    key="case",
    partitions=1,
    writers=(*HOLDERS, "audit"),
    readers=("retention",),
    retention=_TRANSIT,
    fixed_partitions=True,
    after_erasure={"retention": "control"},
    key_of=lambda event: event.data.case,
)
SETTINGS = Topic(
    name="mesh.workspace-settings",
    title="The settings in force: each workspace's, and what members have restricted for themselves.",
    events=(e.SettingsChanged, e.KeySettingsChanged, e.MemberSettingsChanged),
    key="workspace; key/ and a key; member/ and a member",
    partitions=1,
    writers=("retention",),
    readers=("metering", "insights"),
    retention=_TRANSIT,
    compacted=True,
    ordered=True,
    fixed_partitions=True,
    after_erasure={"metering": "drop", "insights": "drop"},
    key_of=lambda event: settings_key(event.data),
)
KEY_REFUSALS = Topic(
    name="mesh.key-refusals",
    title="API keys that the gateway must refuse.",
    events=(e.KeyRefused,),
    key="key",
    partitions=1,
    writers=("retention",),
    readers=("gateway",),
    retention=_TRANSIT,
    compacted=True,
    ordered=True,
    fixed_partitions=True,
    key_of=lambda event: event.data.key,
)
MESSAGES = Topic(
    name="mesh.messages",
    title="Mails that somebody is owed.",
    events=(e.MessageRequested,),
    key="case, or account",
    partitions=1,
    writers=("retention",),
    readers=("notifications",),
    retention=_TRANSIT,
    fixed_partitions=True,
    after_erasure={"notifications": "control"},
    key_of=lambda event: event.data.case or event.data.account,
)
MESSAGE_OUTCOMES = Topic(
    name="mesh.message-outcomes",
    title="What became of each mail, and of the codes that came back.",
    events=(e.MessageSettled, e.ProofJudged, e.AccountBarred),
    key="case, or cause, or account",
    partitions=1,
    writers=("notifications",),
    readers=("retention",),
    retention=_TRANSIT,
    fixed_partitions=True,
    after_erasure={"retention": "control"},
    key_of=lambda event: (
        event.data.account if event.type == e.AccountBarred.TYPE else event.data.case or event.data.cause
    ),
)
PRIVACY_CASES = Topic(
    name="mesh.privacy-cases",
    title="How each privacy request stands.",
    events=(e.CaseChanged,),
    key="case",
    partitions=1,
    writers=("retention",),
    readers=("gateway",),
    retention=_TRANSIT,
    ordered=True,
    fixed_partitions=True,
    key_of=lambda event: event.data.subject_request_id,
)

TOPICS: tuple[Topic, ...] = (
    GENERATIONS,
    PAYMENTS,
    PRICES,
    ACCOUNTS,
    ACCESS,
    ACTIVITY,
    PRIVACY_REQUESTS,
    USAGE_RATED,
    BALANCES,
    COMMANDS,
    TOMBSTONES,
    PRIVACY_COMMANDS,
    PRIVACY_RECEIPTS,
    SETTINGS,
    KEY_REFUSALS,
    MESSAGES,
    MESSAGE_OUTCOMES,
    PRIVACY_CASES,
)
BY_NAME: Mapping[str, Topic] = {topic.name: topic for topic in TOPICS}
