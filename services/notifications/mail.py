"""The mails: who may be told what, and in which words. Pure: a mail is a function of its cause and its facts.

Only what serves the account has a class here (promise 22). There is no marketing class, and none can be made: a kind that
is not in `KINDS` is refused when its template is built. A mail is plain text: no image that a reader's machine fetches, and
no link but the one to what was asked for.
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
from typing import Any, Literal, get_args

from services.notifications.proofs import NEW, OLD, SETTLE

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
    """One mail. `facts`: what its text may say of the case; whatever else is asked for stays here. `text`: of the facts,
    and of the code or the link that the mail needs."""

    kind: str
    subject: str
    facts: frozenset[str]
    text: Callable[[Facts, str | None], str]
    needs_code: bool = False
    needs_link: bool = False

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


# --- orders -------------------------------------------------------------------------------------------------------

_LINK = re.compile(r"https?://[!-~]{1,900}")


def linkable(text: str) -> bool:
    """Whether a mail can say `text` as what it leads to: an address of the web, on a line of its own."""
    return _LINK.fullmatch(text) is not None


def unfit(order: Any) -> tuple[str, str] | None:
    """Why an order for a mail (the contract's `Message`) cannot be taken: a word, and a sentence. None: it can."""
    template = TEMPLATES[order.template]
    if template.kind != order.kind:
        return "kind", "the mail is of another class than its template"
    if template.needs_code and (order.proof is None or order.account is None or order.case is None):
        return "code", "the mail needs a code, an account and a case"
    if template.needs_link and (order.link is None or order.account is None):
        return "link", "the mail needs a link, and an account whose it is"
    if order.account is None and order.case is None and order.address is None:
        return "recipient", "neither an account, nor a case, nor an address: nobody to write to"
    if (order.template == NEW and order.address is None) or (order.template == OLD and order.address is not None):
        return "recipient", "a change is proved by the account's address and by the new one"
    return None


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
    template: str,
    *,
    cause: str,
    sender: str,
    recipient: str,
    facts: Facts,
    code: str | None,
    requested_at: datetime,
    link: str | None = None,
) -> Outbound:
    """The mail, the same for every attempt. Raises KeyError for a template that is not here, ValueError without a code, or
    a link, that the text needs."""
    chosen = TEMPLATES[template]
    if chosen.needs_code and not code:
        raise ValueError("the mail needs a code and has none")
    if chosen.needs_link and not link:
        raise ValueError("the mail needs a link and has none")
    return Outbound(
        sender=sender,
        recipient=recipient,
        subject=chosen.subject,
        text=chosen.text(allowed(template, facts), link if chosen.needs_link else code),
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


def _until(facts: Facts) -> str:
    return (
        f"It works once, until {_when(facts['until'])}."
        if facts.get("until")
        else "It works once, and for a short time only."
    )


def _code(introduction: str, facts: Facts, code: str | None) -> tuple[str, str, str]:
    return _fold(introduction), f"    {code}", _fold(_until(facts))


def _confirmation(opening: str, facts: Facts, code: str | None) -> str:
    return _wrapped(
        "Hello,",
        _fold(opening),
        *_code("If this is what you want, give us this code, where you asked for it:", facts, code),
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
    by = _ASKED_BY.get(facts.get("asked_by", ""), "You asked in your settings")
    return _confirmation(f"{by} to delete {_what(facts)}.", facts, code)


_ASKED_BY = {
    "api": "We were asked, with an API key of yours,",
    "agent": "Somebody who says that they act for you has asked us",
}


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
            "This is our last mail to you about your deletion. This address is not kept either: we destroy it now that this mail "
            "is sent, unless a law makes us keep it for a while. Then the certificate says so."
        )
        if facts.get("scope", "account") == "account"
        else "",
        _reference(facts),
    )


_WISHES = {
    "erasure": "to delete data",
    "access": "for a copy of your data",
    "portability": "for a copy of your data, to take along",
    "access:categories": "to say which categories of data we hold",
    "rectification": "to correct data",
    "sale:opt-out": "not to sell your data",
    "child_report": "to look at the account of a child",
    "inquiry": "about privacy",
}
_REASONS = {
    "need_user_verification": "nobody proved, by the code that we sent, that it is you who asks.",
    "suspected_fraud": "there are signs that somebody else asks in your name. To protect you we have not done it.",
    "insuf_verification": (
        "what we were shown does not prove that it is you who asks, or that whoever asks may do so for you."
    ),
    "no_match": "we hold nothing that belongs to what you named.",
    "claim_not_covered": "the law gives no right to this, or wants us to keep what it is about.",
    "outside_jurisdiction": "the law that you name does not apply where you are, or to us.",
    "too_many_requests": "we have answered the same request of yours a short time ago.",
    "other": "we could not do it. A person of ours has looked at it.",
}
_STATES = {
    "open": "It is open: we wait for a proof that the person agrees.",
    "in_progress": "We are working on it.",
    "fulfilled": "It is done. What the person is to get went to the person alone.",
    "revoked": "It was taken back.",
    "denied": "It is denied.",
    "expired": "It has expired: no proof came in time.",
}
_FIELDS = {"address": "your mail address", "name": "the name on your profile", "key_name": "the name of an API key"}
_STRANGE = (
    "Do nothing. Do not give the code to anybody who asks you for it, and look at who can sign in to your account."
)


def _request(facts: Facts, whose: str = "your") -> str:
    """The request in words, with its day."""
    wish = _WISHES.get(facts.get("kind", ""), "")
    received = f" of {_when(facts['received'])}" if facts.get("received") else ""
    return f"{whose} request{received}" + (f" {wish}" if wish else "")


def _again(facts: Facts) -> tuple[str, str, str]:
    return (
        "If you do not agree",
        _fold(
            "Write to our support, by the reference below, and say why: a person who has not decided this looks at it again. "
            "You may ask anew at any time. You may also complain to the authority that watches over data protection where "
            "you live; in California that is the Attorney General."
        ),
        _reference(facts),
    )


def _acknowledgement(facts: Facts, code: str | None) -> str:
    by = f" by {_when(facts['answer_by'])} at the latest" if facts.get("answer_by") else " as soon as we can"
    return _wrapped(
        "Hello,",
        _fold(f"We have {_request(facts)}."),
        "What happens next",
        _list(
            "If we have to know that it is you who asks, another mail brings you a code, or has brought it already.",
            f"You get an answer{by}.",
            "There is nothing to pay, and nothing else of yours changes because you have asked.",
        ),
        _reference(facts),
    )


def _verify_identity(facts: Facts, code: str | None) -> str:
    agent = facts.get("asked_by") == "agent"
    opening = (
        f"Somebody who says that they act for you has sent us {_request(facts, 'a')}. Before we answer it we must know that "
        "you want that. They hear how it stands; the answer itself goes to this address alone."
        if agent
        else f"We have {_request(facts)}. Before we answer it we must know that it is you who asks."
    )
    return _wrapped(
        "Hello,",
        _fold(opening),
        *_code(
            "If you do, give us this code:" if agent else "If it is, give us this code, where you asked:", facts, code
        ),
        "If you did not ask for this",
        _fold(f"{_STRANGE} Without the code nobody gets anything."),
        _reference(facts),
    )


def _copy_ready(facts: Facts, link: str | None) -> str:
    until = f" until {_when(facts['until'])}" if facts.get("until") else " for a short time"
    return _wrapped(
        "Hello,",
        _fold("The copy of your data is ready. You find it here:"),
        f"{link}",
        _fold(
            f"It is there{until}. After that the copy is deleted, and the same place answers 410 (gone). You may ask for "
            "another one at any time."
        ),
        "How to open it",
        _list(
            "It is one file in the age format, and sealed: nobody can read it who has only this mail.",
            "Any program for that format opens it, by the passphrase that you gave us or by the private key that belongs to "
            "the public key that you gave us.",
            "So does `steward package open`, which also checks that nothing is missing.",
            "We do not know your passphrase and cannot give it to you. If it is lost, ask for another copy.",
        ),
        _reference(facts),
    )


def _categories_ready(facts: Facts, link: str | None) -> str:
    until = f" until {_when(facts['until'])}" if facts.get("until") else " for a short time"
    return _wrapped(
        "Hello,",
        _fold(
            "You asked which categories of personal data we hold of you, what for, and to whom we disclose them. The answer is "
            "ready. You find it here:"
        ),
        f"{link}",
        _fold(f"It is there{until}. After that it is deleted, and the same place answers 410 (gone)."),
        _fold(
            "It opens as a copy of your data does: with any program for the age format or `steward package open`, by the "
            "passphrase or the key that you gave us. We sell no data: what it says of sales is nothing."
        ),
        _reference(facts),
    )


def _corrected(facts: Facts, code: str | None) -> str:
    what = _FIELDS.get(facts.get("field", ""), "what you named")
    at = f" on {_when(facts['corrected'])}" if facts.get("corrected") else ""
    return _wrapped(
        "Hello,",
        _fold(f"You asked us to correct {what}. It was corrected{at}, in every place in which we keep it."),
        _fold("We do not repeat here what it says now. You see it in your settings. Past invoices stay as they are."),
        "If you did not ask for this",
        _fold("Write to our support, by the reference below, and look at who can sign in to your account."),
        _reference(facts),
    )


def _address_old(facts: Facts, code: str | None) -> str:
    return _wrapped(
        "Hello,",
        _fold(
            "You asked us to write to another address from now on. Before we do we must know that this address, and the new one, "
            "are both yours. So each of them gets a code."
        ),
        *_code("If this is what you want, give us this code, and the one from the other mail:", facts, code),
        "If you did not ask for this",
        _fold(f"{_STRANGE} Without this code the address stays as it is."),
        _reference(facts),
    )


def _address_new(facts: Facts, code: str | None) -> str:
    return _wrapped(
        "Hello,",
        _fold(
            "Somebody who has an account with us wants us to write to this address from now on. Before we do we must know that "
            "it is theirs."
        ),
        *_code(
            "If that is you, give us this code, and the one that went to the address that we have written to until now:",
            facts,
            code,
        ),
        "If that is not you",
        _fold(
            "Do nothing. Without the code we do not use this address, and we forget it. Do not give the code to anybody who asks "
            "you for it."
        ),
        _reference(facts),
    )


def _address_changed(facts: Facts, code: str | None) -> str:
    at = f"On {_when(facts['changed'])} the" if facts.get("changed") else "The"
    return _wrapped(
        "Hello,",
        _fold(
            f"{at} address of your account was changed, with a code that we had sent to your old address and one that we had "
            "sent to the new one. From now on we write to the new one."
        ),
        _fold(
            f"For {SETTLE.days} days after a change codes that could delete the account, or give a copy of its data away, still "
            "go to the old address. Then we forget it."
        ),
        "If you did not do this",
        _fold(
            "Then somebody else can read your mails and sign in to your account. Write to our support at once, by the reference "
            "below, and change the password of your mailbox."
        ),
        _reference(facts),
    )


def _opted_out(facts: Facts, code: str | None) -> str:
    at = f" on {_when(facts['recorded'])}" if facts.get("recorded") else ""
    return _wrapped(
        "Hello,",
        _fold(f"You asked us not to sell your data. We have recorded it{at}."),
        _fold(
            "We do not sell personal data, and we do not share it for advertising. So nothing had to be stopped. If that were "
            "ever to change, your wish stands, and nobody would have to ask you for it again."
        ),
        _fold("Nothing else changes because of it: neither prices, nor limits, nor service."),
        _reference(facts),
    )


def _answered(facts: Facts, code: str | None) -> str:
    at = f" on {_when(facts['answered'])}" if facts.get("answered") else ""
    return _wrapped(
        "Hello,",
        _fold(f"A person of ours has looked at {_request(facts)}, and has answered it{at}."),
        _fold(
            "The answer itself comes from our support, by the way on which you wrote to us. If it has not come, or if it "
            "leaves something open, tell our support the reference below."
        ),
        _reference(facts),
    )


def _denied(facts: Facts, code: str | None) -> str:
    reason = _REASONS.get(facts.get("reason", ""), _REASONS["other"])
    return _wrapped(
        "Hello,",
        _fold(f"We cannot do what {_request(facts)} wants."),
        _fold(f"The reason: {reason}"),
        *_again(facts),
    )


def _extended(facts: Facts, code: str | None) -> str:
    until = f" You get an answer by {_when(facts['until'])} at the latest." if facts.get("until") else ""
    return _wrapped(
        "Hello,",
        _fold(f"We need more time for {_request(facts)} than we wanted.{until}"),
        _fold("Nothing is lost meanwhile, and there is nothing that you have to do."),
        *_again(facts),
    )


def _status(facts: Facts, code: str | None) -> str:
    state = _STATES.get(facts.get("state", ""), _STATES["in_progress"])
    reason = _REASONS.get(facts.get("reason", ""), "") if facts.get("state") == "denied" else ""
    waits = facts.get("answer_by") and facts.get("state", "in_progress") in ("open", "in_progress")
    by = f"An answer is due by {_when(facts['answer_by'])}." if waits else ""
    return _wrapped(
        "Hello,",
        _fold(f"You act for somebody who has an account with us. This is how {_request(facts, 'the')} stands."),
        _fold(state),
        _fold(f"The reason: {reason}") if reason else "",
        _fold(by) if by else "",
        _fold(
            "This mail says nothing of the person, and no other mail to you will: answers go to the address that belongs to the "
            "account."
        ),
        _reference(facts),
    )


def _disclosure(facts: Facts, code: str | None) -> str:
    at = f" on {_when(facts['date'])}" if facts.get("date") else ""
    told = (("To whom", "recipient"), ("By which instrument", "instrument"), ("Its reference", "reference"),
            ("On which legal basis", "basis"),
            ("What", "scope"))  # fmt: skip
    return _wrapped(
        "Hello,",
        _fold(f"We have disclosed data of your account{at}. We tell you as soon as we may."),
        _list(*(f"{title}: {facts[name]}." for title, name in told if facts.get(name))),
        _fold(
            "This, and no more. If you want to do something about it, a lawyer can tell you what, and needs to know what stands "
            "above."
        ),
        _reference(facts),
    )


_REQUEST_FACTS = frozenset({"case", "scope", "until", "unused_credit", "workspaces", "without_administrator"})
_ASKED = frozenset({"case", "kind", "received"})
_CODE_FACTS = frozenset({"case", "until", "kind", "received"})

TEMPLATES: Mapping[str, Template] = {
    "verify": Template(
        "privacy", "Is it you who asks? A deletion needs your word", _REQUEST_FACTS, _verify, needs_code=True
    ),
    "erasure_requested": Template(
        "privacy", "Please confirm your deletion", _REQUEST_FACTS | {"asked_by"}, _erasure_requested, needs_code=True
    ),
    "erasure_completed": Template(
        "privacy",
        "Your deletion is done",
        frozenset({"case", "scope", "requested", "confirmed", "certified_by"}),
        _erasure_completed,
    ),
    "acknowledgement": Template("privacy", "We have your request", _ASKED | {"answer_by"}, _acknowledgement),
    "verify_identity": Template(
        "privacy",
        "Is it you who asks? We need your word",
        _ASKED | {"until", "asked_by"},
        _verify_identity,
        needs_code=True,
    ),
    "copy_ready": Template("privacy", "The copy of your data is ready", _CODE_FACTS, _copy_ready, needs_link=True),
    "categories_ready": Template(
        "privacy", "Which data we hold of you: the answer is ready", _CODE_FACTS, _categories_ready, needs_link=True
    ),
    "corrected": Template("privacy", "Your data is corrected", frozenset({"case", "field", "corrected"}), _corrected),
    "address_old": Template(
        "privacy", "Please confirm that your address changes", _CODE_FACTS, _address_old, needs_code=True
    ),
    "address_new": Template(
        "privacy", "Please confirm that this address is yours", _CODE_FACTS, _address_new, needs_code=True
    ),
    "address_changed": Template(
        "privacy", "The address of your account was changed", frozenset({"case", "changed"}), _address_changed
    ),
    "opted_out": Template(
        "privacy", "We do not sell your data: your wish is recorded", frozenset({"case", "recorded"}), _opted_out
    ),
    "answered": Template("privacy", "Your request is answered", _ASKED | {"answered"}, _answered),
    "denied": Template("privacy", "We cannot do what you asked for", _ASKED | {"reason"}, _denied),
    "extended": Template("privacy", "We need more time for your request", _ASKED | {"until"}, _extended),
    "status": Template("privacy", "How the request stands", _ASKED | {"state", "reason", "answer_by"}, _status),
    "disclosure": Template(
        "privacy",
        "Data of your account was disclosed",
        frozenset({"case", "recipient", "instrument", "reference", "basis", "scope", "date"}),
        _disclosure,
    ),
}
