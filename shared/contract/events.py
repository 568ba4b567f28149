"""Every event of the contract, in its current version.

Token counts are *exclusive* buckets: a token is in one bucket only, and the buckets sum to the provider's input and
output figure (checked). Everything that is not a token is a count. Amounts are pico-US-dollars as strings.
"""

from __future__ import annotations

import re
from typing import Annotated, Any, ClassVar, Literal, NamedTuple, get_args

from pydantic import BeforeValidator, Field, StringConstraints

from .base import (
    IN_BULK,
    Closed,
    CostPico,
    Event,
    EventId,
    Id,
    Instant,
    Name,
    Pico,
    PositivePico,
    Quantity,
    Sealed,
    UnitPrice,
    as_array,
)

INPUT_BUCKETS = (
    "input",
    "cache_read",
    "cache_write_5m",
    "cache_write_1h",
    "input_audio",
    "cache_read_audio",
    "input_image",
    "input_video",
)
OUTPUT_BUCKETS = ("output", "reasoning", "output_audio", "output_image")
BUCKETS = INPUT_BUCKETS + OUTPUT_BUCKETS
COUNTS = ("request", "web_search", "image", "second", "character", "page")
UNITS = BUCKETS + COUNTS
_OUTPUT = frozenset(OUTPUT_BUCKETS)

Bucket = Literal[
    "input",
    "cache_read",
    "cache_write_5m",
    "cache_write_1h",
    "input_audio",
    "cache_read_audio",
    "input_image",
    "input_video",
    "output",
    "reasoning",
    "output_audio",
    "output_image",
]
Count = Literal["request", "web_search", "image", "second", "character", "page"]
Unit = Literal[
    "input",
    "cache_read",
    "cache_write_5m",
    "cache_write_1h",
    "input_audio",
    "cache_read_audio",
    "input_image",
    "input_video",
    "output",
    "reasoning",
    "output_audio",
    "output_image",
    "request",
    "web_search",
    "image",
    "second",
    "character",
    "page",
]
Tier = Literal["standard", "flex", "priority", "batch"]
# What they mean: `MEANINGS` of the adapters, which raise them.
Flag = Literal[
    "sum_mismatch",
    "total_mismatch",
    "negative_bucket",
    "figures_differ",
    "figure_missing",
    "nested_iterations",
    "nested_model",
    "billed_units_differ",
    "unplaced_tokens",
    "rounded_count",
    "unknown_tier",
    "price_modifier",
]
FLAGS: tuple[str, ...] = get_args(Flag)


def _check_sums(data: Any) -> None:
    read = generated = 0
    for bucket, quantity in data.tokens.items():
        if bucket in _OUTPUT:
            generated += quantity
        else:
            read += quantity
    if read != data.input_tokens:
        raise ValueError("the input buckets do not sum to input_tokens")
    if generated != data.output_tokens:
        raise ValueError("the output buckets do not sum to output_tokens")


class Usage(Closed):
    """What one generation used, where, and how it ended."""

    account: Id = Field(description="The account that owns the workspace.")
    workspace: Id = Field(description="The workspace that pays.")
    key: Id = Field(description="Id of the API key (never the key).")
    generation_ref: Id | None = Field(
        default=None, description="The gateway's own id of the generation, if it has one."
    )
    model: Name = Field(description="Model id as the provider names it.")
    provider: Name = Field(description="The provider that served it.")
    tier: Tier = Field(default="standard", description="The service tier actually served.")
    outcome: Literal["completed", "failed", "cancelled", "cache_hit"] = Field(
        default="completed",
        description="How it ended. A cancelled one carries what the provider bills; a response-cache hit costs nothing.",
    )
    finish_reason: Annotated[str, Field(max_length=64, pattern=r"^[A-Za-z0-9_.-]*$")] | None = Field(
        default=None, description="The provider's finish reason; null or empty if none came."
    )
    byok: bool = Field(default=False, description="Served with the customer's own provider key.")
    data_sharing: bool = Field(default=False, description="The account shares data, for the discount.")
    log_retention_days: Annotated[int, Field(ge=0, le=90)] = Field(
        default=30, description="The workspace's request-log retention in force at the gateway; 0 keeps no row."
    )
    input_tokens: Quantity = Field(description="Sum of the input buckets.")
    output_tokens: Quantity = Field(description="Sum of the output buckets.")
    tokens: dict[Bucket, Quantity] = Field(description="Exclusive token buckets; what is absent is 0.")
    counts: dict[Count, Quantity] = Field(default={}, description="Other units; what is absent is 0.")
    flags: list[Flag] = Field(
        default=[],
        description="What did not add up in the provider's answer. Billed by its buckets all the same, but for a bucket "
        "that came out negative (send 0 for it): that waits for a person.",
    )
    cost_reported_pico: CostPico | None = Field(
        default=None,
        description="What the provider says it charged, in pico-US-dollars. Compared with our own rating, never added.",
    )

    check: ClassVar[Any] = staticmethod(_check_sums)


class GenerationCompleted(Event):
    """One generation ended, however it ended. Keyed by the event id; order does not matter."""

    TYPE: ClassVar[str] = "generation.completed.v1"
    type: Literal["generation.completed.v1"]
    data: Usage


class Correction(Usage):
    """The content that an earlier generation should have had."""

    original: EventId = Field(description="The id of the event that is corrected.")
    reason: Literal["wrong_usage", "wrong_model", "refund", "other"] = Field(default="other")


class UsageCorrected(Event):
    """Replaces what an earlier event said: the recorded charge is reversed and this content is charged.

    `time` is the original's event time. Keyed by `original`, so that it follows the original on its partition. Taken in the
    days in which the original's repeats are told apart, whatever log its workspace keeps; later, while its log row is there.
    """

    TYPE: ClassVar[str] = "usage.corrected.v1"
    type: Literal["usage.corrected.v1"]
    data: Correction


class Prices(Closed):
    """Unit prices above a context size."""

    above_input_tokens: Annotated[int, Field(ge=1, le=10**9)]
    prices: dict[Unit, UnitPrice]


class PriceList(Closed):
    """What one model costs at one provider in one tier, from an instant on."""

    provider: Name
    model: Name
    tier: Tier = "standard"
    prices: dict[Unit, UnitPrice] = Field(description="US dollars for one unit; exact decimals.")
    not_billed: list[Unit] = Field(default=[], description="Units the provider does not bill (free, not unknown).")
    context_tiers: list[Prices] = Field(
        default=[], description="A cliff: the highest passed one rates the whole request."
    )
    daily_window: (
        Annotated[str, Field(pattern=r"^([01][0-9]|2[0-3])[0-5][0-9]-([01][0-9]|2[0-3])[0-5][0-9]$")] | None
    ) = Field(
        default=None, description="Only within this daily window, UTC: `HHMM-HHMM`, end excluded; may wrap midnight."
    )
    per: dict[Unit, Annotated[int, Field(ge=1, le=10**9)]] = Field(
        default={},
        description="Where a price is for more than one unit: for how many (an hour of audio: 3600 seconds).",
    )
    complete: bool = Field(
        default=True,
        description="False: units that are not named here keep the price that is in force; a token bucket without one is "
        "billed as the bucket that it is part of (reasoning as output, cached input as input).",
    )
    valid_from: Instant = Field(description="In force from this instant (event time).")
    valid_to: Instant | None = Field(default=None, description="... to this one, excluded; null = until replaced.")
    source: Id = Field(default="gateway", description="Where the price comes from.")


class PricePublished(Event):
    """A price becomes known. Keyed by `provider/model`; `subject` is the model's family or `prices`."""

    TYPE: ClassVar[str] = "price.published.v1"
    type: Literal["price.published.v1"]
    data: PriceList


class PriceLists(Closed):
    """What one source says about one provider's models at once. They are judged together."""

    batch: Id = Field(description="The import that they belong to.")
    lists: Annotated[list[PriceList], Field(min_length=1, max_length=1000)]

    @staticmethod
    def check(data: Any) -> None:
        if len({(price_list.provider, price_list.source) for price_list in data.lists}) != 1:
            raise ValueError("lists: all of one provider and one source")


class PricesImported(Event):
    """Prices of one provider become known together. Keyed by `provider/*`; `subject` is `prices`."""

    TYPE: ClassVar[str] = "prices.imported.v1"
    type: Literal["prices.imported.v1"]
    data: PriceLists


class Payer(Closed):
    """Who pays: the workspace whose credit it is, and the account that owns it."""

    account: Id
    workspace: Id


class Settlement(Payer):
    """Credit was bought and the processor settled the payment."""

    payment: Id = Field(description="The processor's payment id; one purchase has one.")
    credit_pico: PositivePico = Field(description="Credit bought; the fee comes on top of it.")
    method: Id | None = Field(default=None, description="Id of the payment method (never a number).")
    jurisdiction: Annotated[str, Field(pattern=r"^[A-Z]{2}$")] = Field(
        default="US", description="Legal class of the payer."
    )


class PaymentSettled(Event):
    """Credit was bought. Keyed by workspace."""

    TYPE: ClassVar[str] = "payment.settled.v1"
    type: Literal["payment.settled.v1"]
    data: Settlement


class Refund(Payer):
    """Part or all of a purchase goes back; the fee is kept."""

    refund: Id
    payment: Id
    credit_pico: PositivePico


class PaymentRefunded(Event):
    """A purchase was refunded, in part or in full. May arrive before its purchase. Keyed by workspace."""

    TYPE: ClassVar[str] = "payment.refunded.v1"
    type: Literal["payment.refunded.v1"]
    data: Refund


class Dispute(Payer):
    """The payer's bank took money back, for now."""

    dispute: Id
    payment: Id
    credit_pico: PositivePico


class PaymentDisputed(Event):
    """A purchase is disputed. May arrive before its purchase. Keyed by workspace."""

    TYPE: ClassVar[str] = "payment.disputed.v1"
    type: Literal["payment.disputed.v1"]
    data: Dispute


class DisputeOutcome(Payer):
    """How a dispute ended."""

    dispute: Id
    payment: Id
    outcome: Literal["won", "lost"]


class DisputeClosed(Event):
    """A dispute ended: `won` gives the credit back, `lost` leaves it gone. Keyed by workspace."""

    TYPE: ClassVar[str] = "payment.dispute_closed.v1"
    type: Literal["payment.dispute_closed.v1"]
    data: DisputeOutcome


class Grant(Payer):
    """Promotional credit."""

    grant: Id
    credit_pico: PositivePico
    expires_at: Instant | None = Field(default=None, description="Unused credit expires at this instant.")
    priority: Annotated[int, Field(ge=0, le=1000)] = Field(default=100, description="Lower burns first.")


class CreditGranted(Event):
    """Promotional credit was granted. Keyed by workspace."""

    TYPE: ClassVar[str] = "credit.granted.v1"
    type: Literal["credit.granted.v1"]
    data: Grant


class Opening(Payer):
    """What a workspace had before its gateway moved in."""

    credit_pico: Pico = Field(description="Its credit; negative if it owed.")
    jurisdiction: Annotated[str, Field(pattern=r"^[A-Z]{2}$")] = "US"


class BalanceOpened(Event):
    """The opening balance of a workspace, at most once. Keyed by workspace."""

    TYPE: ClassVar[str] = "balance.opened.v1"
    type: Literal["balance.opened.v1"]
    data: Opening


class Note(Payer):
    """A note of the account holder on the billing profile: free text, so sealed."""

    note: Id
    text: Sealed


class NoteAdded(Event):
    """A note was added. It stands beside the ledger and can be erased. Keyed by workspace."""

    TYPE: ClassVar[str] = "billing.note_added.v1"
    type: Literal["billing.note_added.v1"]
    data: Note


class SavedMethod(Payer):
    """A payment method for later: the processor's token for it, which nobody else can charge."""

    method: Id = Field(description="Id of the payment method (never a number).")
    token: Sealed = Field(description="The processor's token. What opens to the shape of a card number is refused.")


class PaymentMethodSaved(Event):
    """A payment method may be charged again (auto-reload); a later one of the same id replaces it. Keyed by workspace."""

    TYPE: ClassVar[str] = "payment.method_saved.v1"
    type: Literal["payment.method_saved.v1"]
    data: SavedMethod


# --- who is who --------------------------------------------------------------------------------------------------

Role = Literal["administrator", "member"]
Scope = Literal["account", "workspace", "member"]
SubjectKind = Literal["account", "workspace", "member", "key", "identity"]
Hash = Annotated[str, Field(pattern=r"^[0-9a-f]{32}$", description="Keyed hash of a subject: 16 bytes, hex.")]


class Opened(Closed):
    """A new account. Nothing but what signing in and writing to its holder needs."""

    account: Id
    address: Sealed = Field(description="Mail address of the holder.")
    name: Sealed | None = Field(default=None, description="The name on the profile, if one was given.")
    identity: Id | None = Field(
        default=None, description="Keyed hash of the external sign-in identity, if there is one."
    )
    jurisdiction: Annotated[str, Field(pattern=r"^[A-Z]{2}$")] = "US"


class AccountOpened(Event):
    """An account exists. Keyed by account."""

    TYPE: ClassVar[str] = "account.opened.v1"
    type: Literal["account.opened.v1"]
    data: Opened


class Closing(Closed):
    """An account that its holder closed."""

    account: Id


class AccountClosed(Event):
    """An account was closed: no deletion yet, but what it leaves ends within the policy's cap. Keyed by account."""

    TYPE: ClassVar[str] = "account.closed.v1"
    type: Literal["account.closed.v1"]
    data: Closing


class NewWorkspace(Closed):
    """A workspace and the member who administers it."""

    account: Id = Field(description="The account that owns and pays for it.")
    workspace: Id
    administrator: Id = Field(description="The member who made it.")


class WorkspaceCreated(Event):
    """A workspace exists. Keyed by account."""

    TYPE: ClassVar[str] = "workspace.created.v1"
    type: Literal["workspace.created.v1"]
    data: NewWorkspace


class Settings(Closed):
    """What an administrator wants of a workspace; the whole, not the difference."""

    account: Id
    workspace: Id
    version: Annotated[int, Field(ge=1)] = Field(description="Rises with every change; a lower one is ignored.")
    log_retention_days: Annotated[int, Field(ge=0, le=90)]
    activity_opt_out: bool = Field(default=False, description="No dashboard and playground activity is kept.")
    actor: Id = Field(description="The member who changed them.")
    role: Role = Field(description="The actor's role; only an administrator's change counts.")


class SettingsStated(Event):
    """A workspace's settings, as an administrator set them. Keyed by account."""

    TYPE: ClassVar[str] = "workspace.settings_stated.v1"
    type: Literal["workspace.settings_stated.v1"]
    data: Settings


class Restriction(Closed):
    """What a member wants kept of itself, in every workspace; the whole, not the difference. What an administrator wants
    may be less, never more: the shorter counts. No account: it ends with nobody else's."""

    member: Id
    version: Annotated[int, Field(ge=1)] = Field(description="Rises with every change; a lower one is ignored.")
    log_retention_days: Annotated[int, Field(ge=0, le=90)] = Field(
        default=90,
        description="How long requests made with the member's keys are logged, at most: 0 not at all, 1 the least, "
        "90 as long as the workspace wants.",
    )
    activity_opt_out: bool = Field(
        default=False, description="No dashboard and playground activity of the member is kept."
    )


class MemberRestricted(Event):
    """A member restricted what is kept of it, or takes that back. The member itself said so. Keyed by member."""

    TYPE: ClassVar[str] = "member.restricted.v1"
    type: Literal["member.restricted.v1"]
    data: Restriction


class Membership(Closed):
    """A person in a workspace."""

    account: Id = Field(description="The account that owns the workspace.")
    workspace: Id
    member: Id
    role: Role = "member"


class MemberAdded(Event):
    """A member joined a workspace, or has another role now. Keyed by account."""

    TYPE: ClassVar[str] = "member.added.v1"
    type: Literal["member.added.v1"]
    data: Membership


class MemberRemoved(Event):
    """A member left a workspace. Keyed by account."""

    TYPE: ClassVar[str] = "member.removed.v1"
    type: Literal["member.removed.v1"]
    data: Membership


class ApiKey(Closed):
    """An API key's metadata; the key itself, or a hash of it, has no place here."""

    account: Id
    workspace: Id
    key: Id = Field(description="Id of the key.")
    member: Id | None = Field(default=None, description="Who made it.")
    name: Sealed | None = Field(default=None, description="The name that its maker gave it.")


class KeyCreated(Event):
    """An API key exists. Keyed by account."""

    TYPE: ClassVar[str] = "key.created.v1"
    type: Literal["key.created.v1"]
    data: ApiKey


class KeyRevoked(Event):
    """An API key is refused from now on. Keyed by account."""

    TYPE: ClassVar[str] = "key.revoked.v1"
    type: Literal["key.revoked.v1"]
    data: ApiKey


class Access(Closed):
    """One connection or sign-in. Read for security and for nothing else."""

    account: Id | None = Field(default=None, description="The account, if it is known.")
    workspace: Id | None = None
    member: Id | None = None
    key: Id | None = Field(default=None, description="Id of the API key that was used.")
    identity: Id | None = Field(default=None, description="Keyed hash of the external identity that signed in.")
    session: Annotated[str, Field(pattern=r"^[a-z0-9][a-z0-9-]{0,63}$")] | None = Field(
        default=None, description="Keyed hash of the session; never its token, which has no place here."
    )
    kind: Literal["sign_in", "sign_out", "api", "dashboard"]
    outcome: Literal["ok", "refused"] = "ok"
    ip: Sealed = Field(description="IP address of the connection.")
    agent: Literal["browser", "sdk", "cli", "other"] = Field(
        default="other", description="Coarse: no version, no device, nothing that tells two people apart."
    )


class AccessRecorded(Event):
    """Somebody connected or signed in, or tried to. Keyed by the envelope's subject; order does not matter."""

    TYPE: ClassVar[str] = "access.recorded.v1"
    type: Literal["access.recorded.v1"]
    data: Access


class Activity(Closed):
    """What somebody did in the playground or the dashboard; no prompt, no text."""

    account: Id
    workspace: Id
    member: Id | None = None
    surface: Literal["dashboard", "playground"]
    action: Annotated[str, Field(pattern=r"^[a-z][a-z0-9_.]{0,63}$")]
    model: Name | None = None
    opted_out: bool = Field(
        default=False, description="The setting in force at the gateway, the workspace's or the member's: keep nothing."
    )


class ActivityRecorded(Event):
    """One use of the playground or the dashboard. Keyed by workspace; order does not matter."""

    TYPE: ClassVar[str] = "activity.recorded.v1"
    type: Literal["activity.recorded.v1"]
    data: Activity


RequestKind = Literal[
    "erasure", "access", "portability", "access:categories", "rectification", "sale:opt-out", "child_report", "inquiry"
]
"""What people ask for: the words of OpenDSR and of the Data Rights Protocol where they have one."""
Channel = Literal["settings", "api", "support"]
Regime = Literal["ccpa", "gdpr", "voluntary"]
Recipient = Annotated[
    str,
    Field(pattern=r"^age1[02-9ac-hj-np-z]{58}$", description="A public key of the age format, to open a package with."),
]


class PrivacyRequest(Closed):
    """What somebody asks for. The event's id becomes the case's."""

    kind: RequestKind = "erasure"
    scope: Scope
    account: Id = Field(description="The account; for a member: the account that owns the workspace.")
    target: Id = Field(description="Whom or what it is about: the account, a workspace, a member.")
    channel: Channel = Field(
        default="settings",
        description="Signed in, or by the account's own key, or by mail: then the account's address must prove itself first.",
    )
    regime: Regime = Field(
        default="voluntary", description="The law that is invoked; the clocks are the same for everybody."
    )
    since: Instant | None = Field(default=None, description="A copy of what happened from this instant on ...")
    until: Instant | None = Field(default=None, description="... to this one, excluded.")
    passphrase: Sealed | None = Field(default=None, description="Opens the package: 12 characters or more.")
    recipient: Recipient | None = None
    field: Literal["address", "name", "key_name"] | None = Field(
        default=None, description="What a correction is about."
    )
    key: Id | None = Field(default=None, description="The API key whose name is wrong.")
    value: Sealed | None = Field(default=None, description="What is right.")
    representative: Id | None = Field(default=None, description="The authorised agent who asks for somebody else.")
    authorisation: Id | None = Field(
        default=None, description="The agent's written authorisation, in your own records."
    )
    reply_to: Sealed | None = Field(default=None, description="The agent's address, or that of who reports a child.")

    @staticmethod
    def check(data: Any) -> None:
        if data.kind == "rectification" and (data.field is None or data.value is None):
            raise ValueError("a correction says which field, and what is right")
        if (data.field == "key_name") != (data.key is not None):
            raise ValueError("key: for the name of a key, and for nothing else")
        if data.kind == "inquiry":
            raise ValueError("an inquiry comes as a mail to support")
        if data.scope == "member" and data.kind != "erasure":
            raise ValueError("a member has no address of its own: the account that owns the workspace asks")
        if data.scope != "account" and data.kind in ("rectification", "sale:opt-out", "child_report"):
            raise ValueError("scope: this is about an account")
        if data.since is not None and data.until is not None and data.since >= data.until:
            raise ValueError("since is not before until")


class PrivacyRequested(Event):
    """A privacy request arrived. Nothing is erased before it is confirmed. Keyed by account."""

    TYPE: ClassVar[str] = "privacy.requested.v1"
    type: Literal["privacy.requested.v1"]
    data: PrivacyRequest


class Confirmation(Closed):
    """A code from a mail, given back: for an erasure the last word, which nobody can undo; else the proof of who asks."""

    case: EventId
    account: Id
    code: Annotated[str, Field(pattern=r"^[0-9A-Z]{8}$")] = Field(description="From the mail; good once.")
    successors: dict[Id, Id] = Field(
        default={}, description="Workspace -> member who takes it over; what nobody takes over is erased, too."
    )
    passphrase: Sealed | None = Field(default=None, description="Opens the package, if the request did not say it.")
    recipient: Recipient | None = None


class PrivacyConfirmed(Event):
    """A privacy request is confirmed, by the code from the mail. Keyed by account."""

    TYPE: ClassVar[str] = "privacy.confirmed.v1"
    type: Literal["privacy.confirmed.v1"]
    data: Confirmation


class SupportMail(Closed):
    """A mail to support that has to do with privacy. Its text stays with support."""

    mail: Id = Field(description="The mail, in your own records.")
    account: Id | None = Field(default=None, description="Whose address it came from, if it is anybody's.")
    subject_line: Sealed
    sender: Sealed = Field(
        description="The address it came from: receipt and answer go there when no account is known."
    )


class SupportMailReceived(Event):
    """A mail to support about privacy. With the subject line that the policy names it opens a case; any other is looked at
    by a person. Keyed by mail."""

    TYPE: ClassVar[str] = "support.mail_received.v1"
    type: Literal["support.mail_received.v1"]
    data: SupportMail


class Withdrawal(Closed):
    """A request that is not wanted any more."""

    case: EventId
    account: Id


class PrivacyWithdrawn(Event):
    """A privacy request is taken back; after its confirmation that changes nothing. Keyed by account."""

    TYPE: ClassVar[str] = "privacy.withdrawn.v1"
    type: Literal["privacy.withdrawn.v1"]
    data: Withdrawal


# --- what the mesh says ------------------------------------------------------------------------------------------


class RatedLine(NamedTuple):
    """One rated generation, or the reversal of one (`quantities` and amount negative)."""

    line_id: Annotated[str, Field(pattern=r"^[0-9a-f]{32}$"), IN_BULK]
    """48 bits of time and a keyed hash of the generation's id: de-duplicates, names nobody."""
    hour: int
    """Hour of the event, counted from 1970 (UTC)."""
    price_version: str
    tier: str
    """Tier and context tier that rated it, e.g. `standard>200000`."""
    terms: Literal["list", "sharing", "byok"]
    """`list` price; `sharing`: less the discount for shared data; `byok`: list price of the customer's own key."""
    quantities: dict[Unit, int]
    """What is billed (after rules such as zero-completion insurance), by unit; not 0."""
    amount_pico: Annotated[Pico, IN_BULK]
    """Rounded once, half-even. For `byok` the list price, from which billing takes its fee."""


class RatedUnit(Closed):
    """The lines of one workspace in a record."""

    workspace: Id
    account: Id
    lines: list[Annotated[RatedLine, BeforeValidator(as_array)]]


_HEX = b"0123456789abcdef"
_ID_LENGTH = {32}
_AMOUNTS = re.compile(r"-?(?:0|[1-9][0-9]{0,29})(?:,-?(?:0|[1-9][0-9]{0,29}))*+")


def _check_lines(data: Any) -> None:
    """The patterns of line ids and amounts, for a whole record at once."""
    lines = [line for unit in data.units for line in unit.lines]
    if not lines:
        return
    ids = [line[0] for line in lines]
    if set(map(len, ids)) != _ID_LENGTH or "".join(ids).encode().translate(None, _HEX):
        raise ValueError("a line_id does not match its pattern")
    amounts = ",".join([line[6] for line in lines])
    # An amount with a comma in it would pass for two.
    if _AMOUNTS.fullmatch(amounts) is None or amounts.count(",") != len(lines) - 1:
        raise ValueError("an amount_pico does not match its pattern")


class RatedUsage(Closed):
    """Packed rated usage; lines are in no time order."""

    units: list[RatedUnit]

    check: ClassVar[Any] = staticmethod(_check_lines)


class UsageRated(Event):
    """Rated usage of one batch and one target partition, packed by workspace. No key; partition = hash(workspace)."""

    TYPE: ClassVar[str] = "usage.rated.v1"
    type: Literal["usage.rated.v1"]
    data: RatedUsage


class Command(Closed):
    """What a person in operations asks a service to do."""

    service: Annotated[str, Field(pattern=r"^[a-z]{1,32}$")]
    action: Annotated[str, Field(pattern=r"^[a-z_]{1,64}$")]
    target: Id = Field(description="What it is about: an id, a topic.")
    actor: Id = Field(description="Who asks.")
    role: Literal["support", "privacy", "legal", "operations"] = Field(
        default="operations", description="As what: the policy says which role may do what."
    )
    ticket: Id = Field(description="Why: a reference into the operator's own records.")
    arguments: dict[
        Annotated[str, StringConstraints(pattern=r"^[a-z_]{1,32}$")],
        Annotated[str, StringConstraints(pattern=r"^[A-Za-z0-9_.:~+/@-]{1,128}$")],
    ] = Field(default={}, description="What else the action needs to know.")


class OperatorCommand(Event):
    """An operator's command. Keyed by service; `subject` is the service."""

    TYPE: ClassVar[str] = "operator.command.v1"
    type: Literal["operator.command.v1"]
    data: Command


class Balance(Closed):
    """What a workspace has, as of `version`. The gateway answers 402 when `balance_pico` is not positive."""

    workspace: Id
    version: Annotated[int, Field(ge=1)] = Field(description="Rises with every change; ignore a lower one.")
    balance_pico: Pico = Field(description="purchased + granted - receivable.")
    purchased_pico: Pico
    granted_pico: Pico
    receivable_pico: Pico = Field(description="What the workspace owes beyond its credit.")
    erased: bool = Field(default=False, description="The workspace is erased: nothing more will be said of it.")


class BalanceChanged(Event):
    """The state of a workspace's credit after its latest change. Compacted, keyed by workspace."""

    TYPE: ClassVar[str] = "balance.changed.v1"
    type: Literal["balance.changed.v1"]
    data: Balance


# --- how a deletion goes round -----------------------------------------------------------------------------------

Holder = Annotated[str, Field(pattern=r"^[a-z]{1,32}$")]
Offsets = dict[Annotated[str, StringConstraints(pattern=r"^[a-z.-]{1,64}$")], dict[str, Annotated[int, Field(ge=0)]]]


class Tombstone(Closed):
    """That a subject is erased. Says nothing about who it was."""

    hash: Hash
    kind: SubjectKind
    case: EventId
    at: Instant = Field(description="When the erasure was confirmed.")
    version: Annotated[int, Field(ge=1)] = 1


class SubjectErased(Event):
    """A subject is erased: no event of it may have effects any more. Compacted, keyed by hash."""

    TYPE: ClassVar[str] = "subject.erased.v1"
    type: Literal["subject.erased.v1"]
    data: Tombstone


class Order(Closed):
    """What holders have to do for a case.

    `sealed` holds the subjects under the case's own key, as JSON `[[kind, id], ...]`: when the key is destroyed, with
    the certificate, every copy of the command is unreadable.
    """

    case: EventId
    epoch: Annotated[int, Field(ge=1)] = Field(description="Rises when the set of holders or subjects changes.")
    action: Literal[
        "envelope", "bar", "end_proofs", "erase", "probe", "sweep", "hold", "release", "discover", "export", "rectify"
    ]  # fmt: skip
    holders: list[Holder]
    scope: Scope | None = None
    sealed: Annotated[str, Field(max_length=400_000, pattern=r"^[A-Za-z0-9_:.=-]+$")] | None = None
    confirmed_at: Instant | None = None
    value: Annotated[str, Field(max_length=20_000, pattern=r"^[A-Za-z0-9_:.=-]+$")] | None = Field(
        default=None, description="What is right, for a correction: a text under the case's own key."
    )
    after: Offsets = Field(default={}, description="Topic -> partition -> offset that a holder must have passed first.")
    arguments: dict[Annotated[str, StringConstraints(pattern=r"^[a-z_]{1,32}$")], Id] = Field(default={})


class PrivacyOrdered(Event):
    """A command to the holders of personal data. Keyed by case."""

    TYPE: ClassVar[str] = "privacy.ordered.v1"
    type: Literal["privacy.ordered.v1"]
    data: Order


class Retained(Closed):
    """What the law keeps, and until when."""

    ground: Annotated[str, Field(pattern=r"^[a-z_]{1,64}$")]
    until: Instant


class Treated(Closed):
    """What became of one table: `rows` were treated, `remaining` lead to the subject still."""

    table: Annotated[str, Field(pattern=r"^[a-z_][a-z0-9_]{0,62}$")]
    action: Literal[
        "delete_row", "clear", "pseudonymise", "retain", "shred", "expire", "held", "found", "exported", "corrected"
    ]  # fmt: skip
    columns: list[Annotated[str, StringConstraints(pattern=r"^[a-z_][a-z0-9_]{0,62}$")]]
    rows: Annotated[int, Field(ge=0)]
    remaining: Annotated[int, Field(ge=0)] = 0
    retained: Retained | None = None
    not_after: Instant | None = Field(default=None, description="Left to its own clock, which ends it before this.")


class Receipt(Closed):
    """What a holder did for a case."""

    case: EventId
    epoch: Annotated[int, Field(ge=1)]
    holder: Holder
    action: Literal["envelope", "bar", "end_proofs", "erase", "hold", "release", "discover", "export", "rectify"]
    treated: list[Treated] = Field(default=[])
    offsets: Offsets = Field(default={}, description="How far this holder had published when it was done.")
    map_version: Annotated[str, Field(pattern=r"^[0-9a-f]{16}$")] = Field(
        description="Digest of the holder's data map."
    )
    code_version: Id
    arguments: dict[Annotated[str, StringConstraints(pattern=r"^[a-z_]{1,32}$")], Id] = Field(default={})


class PrivacyDone(Event):
    """A holder's receipt. Keyed by case."""

    TYPE: ClassVar[str] = "privacy.done.v1"
    type: Literal["privacy.done.v1"]
    data: Receipt


Verdict = Literal["clean", "shredded", "retained", "held", "expiring", "residue", "not_scanned"]


class Scanned(Closed):
    """What the auditor saw in one store."""

    holder: Annotated[str, Field(pattern=r"^[a-z]{1,32}$")]
    store: Annotated[str, Field(pattern=r"^[a-z0-9_.:-]{1,128}$")]
    verdict: Verdict
    count: Annotated[int, Field(ge=0)] = 0
    ground: Annotated[str, Field(pattern=r"^[a-z_]{1,64}$")] | None = None
    not_after: Instant | None = None


class Scan(Closed):
    """What the auditor saw of a case's subjects, everywhere."""

    case: EventId
    epoch: Annotated[int, Field(ge=1)]
    action: Literal["probe", "sweep"]
    stores: list[Scanned]


class PrivacyScanned(Event):
    """The auditor's verdicts. Keyed by case."""

    TYPE: ClassVar[str] = "privacy.scanned.v1"
    type: Literal["privacy.scanned.v1"]
    data: Scan


class EffectiveSettings(Closed):
    """What a workspace's settings are, for every reader."""

    workspace: Id
    account: Id
    version: Annotated[int, Field(ge=1)]
    log_retention_days: Annotated[int, Field(ge=0, le=90)]
    activity_opt_out: bool = False
    changed_at: Instant
    erased: bool = False


class SettingsChanged(Event):
    """A workspace's settings in force. Compacted, keyed by workspace."""

    TYPE: ClassVar[str] = "workspace.settings.v1"
    type: Literal["workspace.settings.v1"]
    data: EffectiveSettings


class KeySettings(Closed):
    """How long requests made with a key are logged at most, because its maker wants that; whose key it is, is not told."""

    key: Id
    account: Id = Field(description="The account that owns the key's workspace.")
    version: Annotated[int, Field(ge=1)]
    log_retention_days: Annotated[int, Field(ge=0, le=90)]
    changed_at: Instant
    erased: bool = False


class KeySettingsChanged(Event):
    """What a key's maker wants of its log, in force. Compacted, keyed by `key/` and the key."""

    TYPE: ClassVar[str] = "key.settings.v1"
    type: Literal["key.settings.v1"]
    data: KeySettings


class MemberSettings(Closed):
    """Whether a member's activity may be kept, in whichever workspace."""

    member: Id
    version: Annotated[int, Field(ge=1)]
    activity_opt_out: bool
    changed_at: Instant
    erased: bool = False


class MemberSettingsChanged(Event):
    """What a member wants of its activity, in force. Compacted, keyed by `member/` and the member."""

    TYPE: ClassVar[str] = "member.settings.v1"
    type: Literal["member.settings.v1"]
    data: MemberSettings


class Refusal(Closed):
    """A key that the gateway must refuse."""

    key: Id
    refused: bool = True
    since: Instant


class KeyRefused(Event):
    """A key is to be refused. Compacted, keyed by key."""

    TYPE: ClassVar[str] = "key.refused.v1"
    type: Literal["key.refused.v1"]
    data: Refusal


class Proof(Closed):
    """A code that notifications make for a mail, and that has to come back: with it who reads the mail is known."""

    request: EventId = Field(description="The request that the code is good for, beside its case.")
    until: Instant


class Message(Closed):
    """A mail that somebody is owed. `cause` makes it unique: one mail per cause, however often it is asked for."""

    cause: Id
    kind: Literal["privacy", "account"] = "privacy"
    template: Literal[
        "verify", "erasure_requested", "erasure_completed", "acknowledgement", "verify_identity", "copy_ready",
        "categories_ready", "corrected", "address_old", "address_new", "address_changed", "opted_out", "answered", "denied",
        "extended", "status", "disclosure",
    ]  # fmt: skip
    account: Id | None = Field(
        default=None, description="Whose address; null: `address`, or the case's sealed envelope."
    )
    case: EventId | None = None
    address: Sealed | None = Field(
        default=None,
        description="Another address: an agent's, a new one that has to prove itself, that of a mail to support.",
    )
    proof: Proof | None = None
    link: Sealed | None = Field(default=None, description="What the mail leads to; whoever has it may fetch it.")
    facts: dict[
        Annotated[str, StringConstraints(pattern=r"^[a-z_]{1,32}$")],
        Annotated[str, StringConstraints(pattern=r"^[A-Za-z0-9 .,:_+/-]{0,256}$")],
    ] = Field(default={}, description="What the text needs: dates, numbers, ids. No free text.")


class MessageRequested(Event):
    """A mail is to be sent. Keyed by case or account."""

    TYPE: ClassVar[str] = "message.requested.v1"
    type: Literal["message.requested.v1"]
    data: Message


class Outcome(Closed):
    """What became of a mail: `unknown` when the server's answer was lost after the text was sent."""

    cause: Id
    case: EventId | None = None
    outcome: Literal["accepted", "refused", "unknown"]
    at: Instant


class MessageSettled(Event):
    """What became of a mail. Keyed by case or cause."""

    TYPE: ClassVar[str] = "message.settled.v1"
    type: Literal["message.settled.v1"]
    data: Outcome


class Judged(Closed):
    """What a code is worth that came back. `of`: whether the account's address has proved itself, or the other one of the
    mail; null for a code that is wrong."""

    case: EventId
    account: Id
    right: bool
    of: Literal["account", "other"] | None = None
    successors: dict[Id, Id] = Field(default={}, description="As the confirmation says it.")
    passphrase: Sealed | None = None
    recipient: Recipient | None = None


class ProofJudged(Event):
    """A code came back, and notifications say what it is worth. Keyed by case."""

    TYPE: ClassVar[str] = "proof.judged.v1"
    type: Literal["proof.judged.v1"]
    data: Judged


class Barred(Closed):
    """An account whose address may not have one."""

    account: Id


class AccountBarred(Event):
    """An account was opened with the address of a child: it is ended again. Keyed by account."""

    TYPE: ClassVar[str] = "account.barred.v1"
    type: Literal["account.barred.v1"]
    data: Barred


CaseState = Literal["open", "in_progress", "fulfilled", "revoked", "denied", "expired"]
DenialReason = Literal[
    "need_user_verification", "suspected_fraud", "insuf_verification", "no_match", "claim_not_covered",
    "outside_jurisdiction", "too_many_requests", "other",
]  # fmt: skip
"""States and reasons of the Data Rights Protocol 1.0."""


class CaseStatus(Closed):
    """How a request stands, in the words of the Data Rights Protocol (status, reason) and of OpenDSR (the rest)."""

    subject_request_id: EventId = Field(description="The case.")
    version: Annotated[int, Field(ge=1)]
    subject_request_type: RequestKind
    regulation: Regime
    account: Id | None = Field(default=None, description="Whose request; null when that is forgotten.")
    status: CaseState
    reason: DenialReason | None = None
    received_time: Instant
    expected_completion_time: Instant | None = Field(default=None, description="The earliest open deadline.")


class CaseChanged(Event):
    """How a privacy request stands now. Keyed by case."""

    TYPE: ClassVar[str] = "privacy.case_changed.v1"
    type: Literal["privacy.case_changed.v1"]
    data: CaseStatus
