"""The mails: who may be told what, and in which words. Pure: a mail is a function of its cause and its facts.

Only what serves the account has a class here (promise 22). There is no marketing class, and none can be made: a kind that
is not in `KINDS` is refused when its template is built. A mail is plain text: no image that a reader's machine fetches, no
link that somebody counts.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, fields
from datetime import UTC, datetime, timedelta
from email.headerregistry import Address
from email.message import EmailMessage
from email.policy import SMTP
from email.utils import format_datetime
from typing import Literal, get_args

Kind = Literal["privacy", "account"]
KINDS: tuple[str, ...] = get_args(Kind)

Facts = Mapping[str, str]


@dataclass(frozen=True, slots=True)
class Outbound:
    """All that leaves the house with a mail, and nothing else: `as_bytes` is the only way from here to the provider."""

    sender: str
    recipient: str
    subject: str
    text: str
    message_id: str
    date: datetime


MAIL_PROVIDER: Mapping[str, str] = {
    "sender": "none",
    "recipient": "user.contact.email",
    "subject": "none",
    "text": "user.privacy_preferences",
    "message_id": "user.unique_id.pseudonymous",
    "date": "system.operations",
}
"""What the mail provider may be given, field by field, with its data category (promise 26)."""

HEADERS = (
    "From", "To", "Subject", "Date", "Message-ID", "Auto-Submitted", "MIME-Version", "Content-Type",
    "Content-Transfer-Encoding",
)  # fmt: skip
"""The headers of every mail, all of them."""

if {field.name for field in fields(Outbound)} != set(MAIL_PROVIDER):
    raise TypeError("a field leaves with mails that the mail provider's list does not allow")


@dataclass(frozen=True, slots=True)
class Template:
    """One mail. `facts`: what its text may say of the case; whatever else is asked for stays here."""

    kind: str
    subject: str
    facts: frozenset[str]
    text: Callable[[Facts, str | None], str]
    needs_code: bool = False

    def __post_init__(self) -> None:
        if self.kind not in KINDS:
            raise ValueError(f"a mail is of one of the classes {', '.join(KINDS)}: nothing else is ever sent")


# --- addresses ---------------------------------------------------------------------------------------------------

_ATOM = r"[A-Za-z0-9!#$%&'*+/=?^_`{|}~-]+"
_LABEL = r"[A-Za-z0-9](?:[A-Za-z0-9-]{0,61}[A-Za-z0-9])?"
_MAILBOX = re.compile(rf"{_ATOM}(?:\.{_ATOM})*@{_LABEL}(?:\.{_LABEL})*")


def mailbox(text: str) -> str | None:
    """`text` as an address that can stand in an SMTP command, or None. A domain in another script becomes its ASCII form.

    Strict on purpose: what is no plain address could be a second command.
    """
    local, _, domain = text.strip().rpartition("@")
    try:
        address = f"{local}@{domain.encode('idna').decode('ascii')}"
    except UnicodeError:
        return None
    return address if len(local) <= 64 and len(address) <= 254 and _MAILBOX.fullmatch(address) else None


# --- when ---------------------------------------------------------------------------------------------------------

_FIRST_RETRY, _LONGEST_RETRY = timedelta(seconds=15), timedelta(hours=1)
GIVE_UP = timedelta(days=3)
"""How long a mail that nobody takes is tried; then it counts as refused."""


def retry_at(attempts: int, now: datetime) -> datetime:
    """When a mail is tried again after its `attempts`-th failure: 15 s, doubling, never later than in an hour."""
    doublings = min(max(attempts - 1, 0), 16)
    return now + min(_FIRST_RETRY * (1 << doublings), _LONGEST_RETRY)


# --- the mail -----------------------------------------------------------------------------------------------------


def message_id(cause: str, sender: str) -> str:
    """The same cause gives the same Message-ID, so that whoever has the mail twice can see that it is one."""
    digest = hashlib.sha256(b"steward mail\0" + cause.encode()).hexdigest()[:32]
    return f"<{digest}@{sender.rpartition('@')[2]}>"


def compose(
    template: str, *, cause: str, sender: str, recipient: str, facts: Facts, code: str | None, requested_at: datetime
) -> Outbound:
    """The mail, the same for every attempt. Raises KeyError for a template that is not here, ValueError without a code
    that the text needs."""
    chosen = TEMPLATES[template]
    if chosen.needs_code and not code:
        raise ValueError("the mail needs a code and has none")
    return Outbound(
        sender=sender,
        recipient=recipient,
        subject=chosen.subject,
        text=chosen.text(allowed(template, facts), code),
        message_id=message_id(cause, sender),
        date=requested_at,
    )


def allowed(template: str, facts: Facts) -> dict[str, str]:
    """Those of the facts that the template's text may use."""
    return {name: value for name, value in facts.items() if name in TEMPLATES[template].facts}


def as_bytes(mail: Outbound) -> bytes:
    """The mail as it goes over the wire (RFC 5322, ASCII)."""
    message = EmailMessage(policy=SMTP)
    message["From"] = Address("Steward", addr_spec=mail.sender)
    message["To"] = Address(addr_spec=mail.recipient)
    message["Subject"] = mail.subject
    message["Date"] = format_datetime(mail.date.astimezone(UTC).replace(microsecond=0))
    message["Message-ID"] = mail.message_id
    message["Auto-Submitted"] = "auto-generated"
    message.set_content(mail.text, charset="us-ascii", cte="7bit")
    return message.as_bytes()


# --- the texts ----------------------------------------------------------------------------------------------------

_MONTHS = (
    "January", "February", "March", "April", "May", "June", "July", "August", "September", "October", "November",
    "December",
)  # fmt: skip
_SCOPES = {
    "account": "your account and everything that belongs to it",
    "workspace": "a workspace of yours",
    "member": "what a workspace of others knows of you as its member",
}


def _when(instant: str) -> str:
    """An instant of RFC 3339 for a person; anything else as it is."""
    try:
        at = datetime.fromisoformat(instant)
    except ValueError:
        return instant
    at = at.astimezone(UTC)
    return f"{at.day} {_MONTHS[at.month - 1]} {at.year}, {at:%H:%M} UTC"


def _what(facts: Facts) -> str:
    scope = facts.get("scope", "account")
    if scope == "workspace" and facts.get("workspaces"):
        return f"the workspace {facts['workspaces']}"
    return _SCOPES.get(scope, _SCOPES["account"])


def _wrapped(*paragraphs: str) -> str:
    """Paragraphs with a blank line between them; lines that start with a blank or a dash stay as they are."""
    return "\n\n".join(paragraph.strip("\n") for paragraph in paragraphs if paragraph) + "\n"


def _fold(text: str, first: str = "", then: str = "") -> str:
    """`text` in lines of at most 72 characters."""
    lines: list[str] = []
    line = first
    for word in text.split():
        if line.strip() and len(line) + len(word) + 1 > 72 and line not in (first, then):
            lines.append(line.rstrip())
            line = then
        line += word + " "
    return "\n".join([*lines, line.rstrip()])


def _list(*points: str) -> str:
    return "\n".join(_fold(point, "- ", "  ") for point in points if point)


def _losses(facts: Facts) -> tuple[str, ...]:
    """What goes with it that a person may not have thought of."""
    credit, going, alone = (facts.get(name, "") for name in ("unused_credit", "workspaces", "without_administrator"))
    return (
        f"Unused credit is lost: {credit}." if credit and not credit.startswith("0.00 ") else "",
        f"These workspaces go with it: {going}." if going and facts.get("scope") != "workspace" else "",
        f"These have no other administrator, and go unless you name a successor: {alone}." if alone else "",
    )


def _confirmation(opening: str, facts: Facts, code: str | None) -> str:
    return _wrapped(
        "Hello,",
        _fold(opening),
        _fold("If this is what you want, give us this code, where you asked for it:"),
        f"    {code}",
        _fold(
            f"It works once, until {_when(facts['until'])}."
            if facts.get("until")
            else "It works once, and for a short time only."
        ),
        "What happens then",
        _list(
            "We start at once, and nobody can undo it: you cannot, and we cannot.",
            "API keys that are part of it are refused within seconds.",
            *_losses(facts),
            "Bookkeeping records that the law wants stay as long as it wants them, without your name or address.",
            "Everything else is gone from our systems within 30 days. We write to you once more when it is.",
        ),
        "If you did not ask for this",
        _fold(
            "Do nothing. Without the code nothing is deleted. Do not give the code to anybody who asks you for it, "
            "and look at who can sign in to your account."
        ),
        _reference(facts),
    )


def _reference(facts: Facts) -> str:
    return f"Reference: {facts['case']}" if facts.get("case") else ""


def _verify(facts: Facts, code: str | None) -> str:
    return _confirmation(
        f"We were asked, by a message to our support, to delete {_what(facts)}. Before we do anything we must know that "
        "it is you who asks. That is what this mail is for.",
        facts,
        code,
    )


def _erasure_requested(facts: Facts, code: str | None) -> str:
    return _confirmation(f"You asked in your settings to delete {_what(facts)}.", facts, code)


def _erasure_completed(facts: Facts, code: str | None) -> str:
    asked = f"On {_when(facts['requested'])} you" if facts.get("requested") else "You"
    confirmed = f" and confirmed it on {_when(facts['confirmed'])}" if facts.get("confirmed") else ""
    by = f" by {_when(facts['certified_by'])} at the latest" if facts.get("certified_by") else ""
    return _wrapped(
        "Hello,",
        _fold(f"{asked} asked us to delete {_what(facts)}{confirmed}. It is done, and nobody can bring it back."),
        "What is left",
        _list(
            "Bookkeeping records that the law wants, without your name or address.",
            f"A few copies in logs and backups of our own, which run out{by}. Then we look everywhere once more.",
        ),
        "Your certificate",
        _fold(
            "When that last look finds nothing we sign a certificate that says what was deleted, where we looked, and what "
            "the law made us keep. It holds no name and no address. Ask our support for it, by the reference below."
        ),
        _fold(
            "You need neither us nor a network to check it. It is a text file, which you can read in any editor; "
            "`steward certificate verify` tells, by our public key, whether we signed it and whether anybody has changed it."
        ),
        _fold(
            "This is our last mail to you. This address is not kept either: we destroy it now that this mail is sent."
        )
        if facts.get("scope", "account") == "account"
        else "",
        _reference(facts),
    )


_REQUEST_FACTS = frozenset({"case", "scope", "until", "unused_credit", "workspaces", "without_administrator"})

TEMPLATES: Mapping[str, Template] = {
    "verify": Template(
        "privacy", "Is it you who asks? A deletion needs your word", _REQUEST_FACTS, _verify, needs_code=True
    ),
    "erasure_requested": Template(
        "privacy", "Please confirm your deletion", _REQUEST_FACTS, _erasure_requested, needs_code=True
    ),
    "erasure_completed": Template(
        "privacy",
        "Your deletion is done",
        frozenset({"case", "scope", "requested", "confirmed", "certified_by"}),
        _erasure_completed,
    ),
}
