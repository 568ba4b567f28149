"""The policy's numbers as values, and everything that may not be true of them at once."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from datetime import date, datetime, timedelta
from zoneinfo import ZoneInfo, ZoneInfoNotFoundError

from .calendar import BusinessCalendar
from .deadlines import STARTS, Clock, Deadline
from .deadlines import clock as start_clock
from .roles import Roles

_NAME = re.compile(r"[a-z][a-z0-9_]*")
STORES = ("kafka", "postgres", "keys", "exports")
DEADLINES = ("acknowledgement", "answer", "copy", "ccpa", "erasure", "child_erasure", "policy_change")
LEGAL_CLASSES = ("US", "EU", "OTHER")
# The deadlines that a law lets grow, and by how much at most: 45 days once (CCPA, section 1798.130(a)(2)(A)).
EXTENSIONS = {"ccpa": 45}


_SAID = "that the policy promises (promise"


class PolicyError(ValueError):
    """The policy cannot be used; the text says why and what to do."""


@dataclass(frozen=True, slots=True)
class Promised:
    """What the policy's text says, where it says a number."""

    request_log_default_days: int
    request_log_max_days: int
    ip_days: int
    security_days: int
    closure_days: int
    erasure_days: int
    topic_days: int
    dead_letter_days: int
    sweep_hours: int


@dataclass(frozen=True, slots=True)
class Recipient:
    """Somebody outside who gets something. `fields`: all that may leave for them."""

    name: str
    title: str
    use: str
    fields: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Uses:
    """The closed list of what personal data may be used for, and who uses it for what."""

    allowed: tuple[str, ...]
    forbidden: tuple[str, ...]
    readers: Mapping[str, tuple[str, ...]]

    def trouble(self, who: str, use: str) -> str | None:
        """Why `who` may not use personal data for `use`, a sentence; None when it may."""
        below = next((word for word in self.forbidden if use == word or use.startswith(f"{word}.")), None)
        if below is not None:
            return (
                f"{who} uses personal data for {use!r}; the policy rules {below!r} out (promises 24, 73): take it out"
            )
        if use not in self.allowed:
            return (
                f"{who} uses personal data for {use!r}, which is not in [uses] allowed (promise 73): take one that is"
            )
        return None

    def reader_troubles(self, reader: str, uses: Iterable[str]) -> tuple[str, ...]:
        """Why the service `reader` may not read personal data for `uses`, a sentence each; empty when it may."""
        if reader not in self.readers:
            return (f"{reader} is not among the policy's [readers], so it may read nothing: declare it there",)
        return tuple(filter(None, (self._reader_trouble(reader, use) for use in sorted(set(uses)))))

    def _reader_trouble(self, reader: str, use: str) -> str | None:
        if use in self.readers[reader]:
            return None
        undeclared = f"{reader} uses personal data for {use!r}, for which [readers] do not declare it: declare it there"
        return self.trouble(reader, use) or undeclared


@dataclass(frozen=True, slots=True)
class Policy:
    """The numbers of policy.toml; see the file for what each one means."""

    version: str
    effective_date: date
    digest: str
    region: str
    stores: Mapping[str, str]
    promised: Promised
    window: timedelta
    future: timedelta
    request_log_default_days: int
    request_log_max_days: int
    ip_max_days: int
    security_max_days: int
    activity_days: int
    rollup_months: int
    closure_cap_days: int
    erasure_cap_days: int
    confirmation_days: int
    request_records_months: int
    code_attempts: int
    address_settle_days: int
    package_days: int
    dead_letter_days: int
    topic_max: timedelta
    trim_hold: timedelta
    sweep_bound: timedelta
    backup_days: int
    tombstone_margin_days: int
    allow_plain_sealed: bool
    deadlines: Mapping[str, Deadline]
    calendar: BusinessCalendar
    billing_years: Mapping[str, int]
    uses: Uses
    recipients: Mapping[str, Recipient]
    roles: Roles

    def __post_init__(self) -> None:
        found = tuple(contradictions(self))
        if found:
            raise PolicyError("The policy contradicts itself: " + "; ".join(found) + ".")

    @property
    def tombstone_life(self) -> timedelta:
        """How long a tombstone lives: as long as any copy that could bring its subject back, and a margin.

        The last such copy is a backup taken just before the erasure, restored on its last day, whose services then read
        their topics from the start. Afterwards nothing that named the subject is left, and the tombstone, itself a trace
        of a person, goes as well.
        """
        return timedelta(days=self.backup_days) + self.topic_max + timedelta(days=self.tombstone_margin_days)

    def clock(self, name: str, start: datetime, extended_at: datetime | None = None) -> Clock:
        """The clock of the deadline `name` that starts at `start`. Raises KeyError for a name that is not in `DEADLINES`.

        `extended_at`: when the person was told of the law's extension, if it was taken; see `Deadline.end`.
        """
        return start_clock(self.deadlines[name], start, self.calendar, extended_at)

    def no_extension(self, name: str, start: datetime, told_at: datetime) -> str | None:
        """Why the deadline `name` that started at `start` cannot be extended at `told_at`; None when it can."""
        return self.deadlines[name].no_extension(start, told_at, self.calendar)

    def refusal(self, role: str, action: str) -> str | None:
        """Why the role `role` of staff may not do `action` on a case, a sentence; None when it may."""
        return self.roles.refusal(role, action)

    def books_end(self, legal_class: str, booking_year: int) -> date:
        """The day (UTC) on which a closed booking year is dropped. Raises KeyError for a class that is not listed."""
        return date(booking_year + 1 + self.billing_years[legal_class], 1, 1)


def contradictions(policy: Policy) -> Iterator[str]:
    """Everything in `policy` that cannot be true at once: what, why, and what to do."""
    yield from _version(policy)
    yield from _periods(policy)
    yield from _deadlines(policy)
    yield from _places(policy)
    yield from _uses(policy)
    yield from _requests(policy)
    yield from policy.roles.troubles()


def _version(policy: Policy) -> Iterator[str]:
    day = policy.effective_date.isoformat()
    if re.fullmatch(rf"{re.escape(day)}(\.[0-9]+)?", policy.version) is None:
        yield f"version is {policy.version!r}, yet effective_date is {day} (promise 66): a version starts with its date"


def _periods(policy: Policy) -> Iterator[str]:
    text = policy.promised
    for name, kept, limit, number in (
        ("request_log.default_days", policy.request_log_default_days, text.request_log_default_days, 5),
        ("request_log.max_days", policy.request_log_max_days, text.request_log_max_days, 6),
        ("ip.max_days", policy.ip_max_days, text.ip_days, 15),
        ("security.max_days", policy.security_max_days, text.security_days, 35),
        ("closure.cap_days", policy.closure_cap_days, text.closure_days, 33),
        ("erasure.cap_days", policy.erasure_cap_days, text.erasure_days, 45),
        ("topics.max_days", policy.topic_max.days, text.topic_days, 45),
        ("dead_letters.days", policy.dead_letter_days, text.dead_letter_days, 45),
        ("sweep.bound_hours", policy.sweep_bound // timedelta(hours=1), text.sweep_hours, 5),
    ):
        if kept > limit:
            yield f"{name} is {kept}, above the {limit} {_SAID} {number}): lower it (or, with the text, [promised])"
    if policy.request_log_default_days > policy.request_log_max_days:
        yield "request_log.default_days is above request_log.max_days: lower the default"
    if policy.window <= policy.topic_max:
        yield "deduplication.window_days must outlive the topics it protects: raise it, or lower topics.max_days"
    if policy.trim_hold >= policy.topic_max:
        yield "topics.trim_hold_hours is as long as the topics live, so nothing would be trimmed: lower it"
    if policy.tombstone_life <= max(policy.window, timedelta(days=policy.dead_letter_days)):
        yield "a tombstone would go before the ids that it must outlive (deduplication.window_days): raise tombstones.margin_days"


def _deadlines(policy: Policy) -> Iterator[str]:
    for name, deadline in policy.deadlines.items():
        where = f"deadlines.{name}"
        if deadline.starts not in STARTS:
            yield f"{where} starts at {deadline.starts!r}, which nobody sees: take one of {', '.join(STARTS)}"
        if deadline.minimum and deadline.length < deadline.promised:
            yield f"{where} is {deadline.length}, below the {deadline.promised} {_SAID} {deadline.promise}): raise it"
        if not deadline.minimum and deadline.length > deadline.promised:
            yield f"{where} is {deadline.length}, above the {deadline.promised} {_SAID} {deadline.promise}): lower it"
        if deadline.extension > EXTENSIONS.get(name, 0):
            yield f"{where}.extension is {deadline.extension}, above the {EXTENSIONS.get(name, 0)} that a law knows: lower it"
        if deadline.warn >= timedelta(days=deadline.length):
            yield f"{where}.warn_hours is as long as the deadline, so that it would always warn: lower it"
    for name in ("erasure", "child_erasure"):
        if policy.deadlines[name].length > policy.erasure_cap_days:
            yield f"deadlines.{name} is above erasure.cap_days: a case may not end later than what it erases"
    if len(policy.calendar.weekend) > 6:
        yield "calendar.weekend leaves no business day: take a day out"
    if not _known(policy.calendar.zone):
        yield f"calendar.zone is {policy.calendar.zone!r}, which no tz database knows: take one like 'America/Los_Angeles'"


def _requests(policy: Policy) -> Iterator[str]:
    if policy.request_records_months < 24:
        yield "requests.records_months is below the 24 months of the CCPA regulations (section 7101): raise it"
    if policy.confirmation_days >= policy.deadlines["ccpa"].length:
        yield "requests.confirmation_days reaches deadlines.ccpa: a confirmation could come after the answer is due, lower it"
    if policy.code_attempts > 10:
        yield f"requests.code_attempts is {policy.code_attempts}, and a code stands few (promise 54): take 10 or less"
    if policy.package_days > policy.erasure_cap_days:
        yield "requests.package_days is above erasure.cap_days: a package would outlive what it is a copy of, lower it"


def _known(zone: str) -> bool:
    try:
        ZoneInfo(zone)
    except (ZoneInfoNotFoundError, ValueError, OSError):
        return not _has_zones()
    return True


def _has_zones() -> bool:
    """False on a machine without a tz database: a platform that only emits counts no business days."""
    try:
        ZoneInfo("Etc/UTC")
    except ZoneInfoNotFoundError:
        return False
    return True


def _places(policy: Policy) -> Iterator[str]:
    for store, region in policy.stores.items():
        if region != policy.region and not region.startswith(f"{policy.region}-"):
            yield f"stores.{store} is in {region!r}, and data stays in {policy.region!r} (promise 58): move the store"
    if policy.billing_years and min(policy.billing_years.values()) < 1:
        yield "billing.years: books are kept for at least a year; raise it"


def _uses(policy: Policy) -> Iterator[str]:
    uses = policy.uses
    for use in uses.allowed:
        if (found := uses.trouble("[uses] allowed", use)) is not None:
            yield found
    for reader, its in uses.readers.items():
        for use in its:
            if (found := uses.trouble(f"reader {reader}", use)) is not None:
                yield found
    for recipient in policy.recipients.values():
        if (found := uses.trouble(f"recipient {recipient.name}", recipient.use)) is not None:
            yield found
        if not recipient.fields or not all(map(_NAME.fullmatch, recipient.fields)):
            yield f"recipients.{recipient.name}.fields has to list what may leave for it, by name (promise 26)"
        if len(set(recipient.fields)) < len(recipient.fields):
            yield f"recipients.{recipient.name}.fields names a field twice: take one out"
