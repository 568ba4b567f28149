"""What somebody wants, beside the case's machine: what of it makes two wishes one, and how it stands in the standards' words."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields
from typing import Any, NamedTuple

from services.retention.case import DELETIONS, ERASING, Case
from services.retention.right import PACKAGED


class Place(NamedTuple):
    """Where a value that can be corrected stands."""

    holder: str
    table: str
    column: str
    subject: str


FIELDS: Mapping[str, Place] = {
    "name": Place("retention", "account", "name", "account"),
    "key_name": Place("retention", "api_key", "name", "key"),
}
"""What a correction changes by an order to its holder. The address is notifications' own: they judge both proofs."""


@dataclass(frozen=True, slots=True)
class Details:
    """What a request says beside whom it is about; kept under the case's own key, which ends with the case."""

    since: str | None = None
    until: str | None = None
    passphrase: str | None = None
    recipient: str | None = None
    field: str | None = None
    key: str | None = None
    value: str | None = None
    representative: str | None = None
    authorisation: str | None = None
    reply_to: str | None = None

    @property
    def opener(self) -> bool:
        """Whether a package can be made that its person can open."""
        return self.passphrase is not None or self.recipient is not None

    def known(self) -> dict[str, str]:
        """What is said, by name."""
        return {name: value for name, value in asdict(self).items() if value is not None}

    @classmethod
    def of(cls, said: Mapping[str, Any]) -> Details:
        """From what `known` gave."""
        names = {each.name for each in fields(cls)}
        return cls(**{name: value for name, value in said.items() if name in names})


def wish(kind: str, scope: str, target: str, details: Details) -> str:
    """A text that is the same for the same wish: whoever asks twice gets one case. It is kept as a keyed hash alone. What
    somebody else asks is a wish of its own: it must not get in the way of the person's."""
    said = (details.since, details.until, details.field, details.key, details.value, details.representative)
    return "|".join((kind, scope, target, *(value or "" for value in said)))


def needed(kind: str, channel: str, details: Details) -> frozenset[str]:
    """Which addresses have to prove themselves first (promises 42, 54, 56). Whoever is signed in has done so; for what
    somebody else asks, or a mail, the account's address must; for a new address, that one as well."""
    if kind == "rectification" and details.field == "address":
        return frozenset(("account", "other"))
    if kind in DELETIONS or kind == "sale:opt-out":
        return frozenset()  # a deletion has its last word; and nobody needs to prove anything to be left alone
    return frozenset(("account",)) if channel == "support" or details.representative is not None else frozenset()


def waits_for_opener(kind: str, details: Details) -> bool:
    """Whether a package cannot be made yet, as nobody has said what opens it."""
    return kind in PACKAGED and not details.opener


def status(case: Case) -> tuple[str, str | None]:
    """(status, reason) of a case in the words of the Data Rights Protocol 1.0."""
    match case.state:
        case "requested" if case.kind != "child_report":
            return "open", "need_user_verification"
        case "requested" | "triage":
            return "open", None
        case "working" | "packing":
            return "in_progress", None
        case "answering":
            return case.outcome or "fulfilled", case.reason
        case "fulfilled" | "certified":
            return "fulfilled", None
        case "denied":
            return "denied", case.reason
        case "withdrawn":
            return "revoked", None
        case "lapsed":
            return "expired", None
        case _:
            done = case.state in ("completed", "sweeping")
            assert case.state in ERASING and case.kind in DELETIONS
            return "fulfilled" if done else "in_progress", None
