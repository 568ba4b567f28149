"""policy.toml read: a closed schema, a digest that ties the content to its date, and no surprises."""

from __future__ import annotations

import hashlib
import json
import tomllib
from collections.abc import Mapping
from datetime import date, datetime, timedelta
from types import MappingProxyType
from typing import Any, TypeVar

from .calendar import BusinessCalendar
from .deadlines import Deadline
from .roles import ROLES, Roles
from .rules import DEADLINES, LEGAL_CLASSES, STORES, Policy, PolicyError, Promised, Recipient, Uses

_T = TypeVar("_T")
_WEEK = ("monday", "tuesday", "wednesday", "thursday", "friday", "saturday", "sunday")
# What a new version changes without being another policy.
_NOT_CONTENT = ("version", "effective_date", "digest")


def digest_of(text: str) -> str:
    """What `digest` in a policy file has to be: the effective date, and SHA-256 over the content without its version.

    Comments, order and spacing do not matter. The date is part of it so that the tool sees a changed content that kept
    its date. Raises PolicyError when `text` is no TOML, or has no effective date.
    """
    raw = _parsed(text)
    when = raw.get("effective_date")
    if type(when) is not date:
        raise PolicyError(
            "policy: effective_date is missing, or no date: give it one, as in effective_date = 2026-11-28."
        )
    content = {name: value for name, value in raw.items() if name not in _NOT_CONTENT}
    canonical = json.dumps(content, sort_keys=True, separators=(",", ":"), default=_plain)
    return f"{when.isoformat()}:{hashlib.sha256(canonical.encode()).hexdigest()}"


def renewed(text: str) -> str:
    """The digest for an edited policy. Raises PolicyError when the content changed and the effective date did not."""
    wanted, stored = digest_of(text), _parsed(text).get("digest", "")
    if wanted != stored and str(stored).partition(":")[0] == wanted.partition(":")[0]:
        raise PolicyError(
            "policy: the content has changed and effective_date has not (promise 66): give effective_date and version the "
            "day from which the change holds, then ask again."
        )
    return wanted


def load_policy(text: str) -> Policy:
    """The policy in `text` (TOML). Raises PolicyError, with a sentence, when it may not be used."""
    found, stored = checked(text)
    if stored != digest_of(text):
        raise PolicyError(
            "policy: the content is not the one of its digest: it was changed without a new effective date (promise 66). "
            "Give it a new effective_date and version, then take the digest that `python -m shared.policy FILE` prints."
        )
    return found


def checked(text: str) -> tuple[Policy, str]:
    """The policy in `text` without a look at its digest, and the digest that stands there. Raises PolicyError."""
    top = _Table(_parsed(text), "")
    values, stored = _numbers(top), top.text("digest")
    top.done()
    return Policy(digest=digest_of(text).partition(":")[2], **values), stored


def _numbers(top: _Table) -> dict[str, Any]:
    log, window, topics = top.table("request_log"), top.table("deduplication"), top.table("topics")
    requests, uses = top.table("requests"), top.table("uses")
    values: dict[str, Any] = {
        "version": top.text("version"),
        "effective_date": top.day("effective_date"),
        "region": top.text("region"),
        "stores": _by_name(top.table("stores"), STORES, _Table.text),
        "promised": _promised(top.table("promised")),
        "window": timedelta(days=window.number("window_days")),
        "future": timedelta(minutes=window.number("future_minutes")),
        "request_log_default_days": log.number("default_days", least=0),
        "request_log_max_days": log.number("max_days", least=0),
        "ip_max_days": top.only("ip", "max_days"),
        "security_max_days": top.only("security", "max_days"),
        "activity_days": top.only("activity", "days"),
        "rollup_months": top.only("rollup", "months"),
        "closure_cap_days": top.only("closure", "cap_days"),
        "erasure_cap_days": top.only("erasure", "cap_days"),
        "confirmation_days": requests.number("confirmation_days"),
        "request_records_months": requests.number("records_months"),
        "code_attempts": requests.number("code_attempts"),
        "address_settle_days": requests.number("address_settle_days"),
        "package_days": requests.number("package_days"),
        "dead_letter_days": top.only("dead_letters", "days"),
        "topic_max": timedelta(days=topics.number("max_days")),
        "trim_hold": timedelta(hours=topics.number("trim_hold_hours")),
        "sweep_bound": timedelta(hours=top.only("sweep", "bound_hours")),
        "backup_days": top.only("backup", "days"),
        "tombstone_margin_days": top.only("tombstones", "margin_days"),
        "allow_plain_sealed": _flag(top.table("sealed"), "allow_plain"),
        "deadlines": _by_name(top.table("deadlines"), DEADLINES, _deadline),
        "calendar": _calendar(top.table("calendar")),
        "billing_years": _by_name(_inner(top.table("billing"), "years"), LEGAL_CLASSES, _Table.number),
        "uses": Uses(uses.texts("allowed"), uses.texts("forbidden"), _open(top.table("readers"), _Table.texts)),
        "recipients": _open(top.table("recipients"), _recipient),
        "roles": Roles(_by_name(top.table("roles"), ROLES, _Table.texts)),
    }
    for table in (log, window, topics, requests, uses):
        table.done()
    return values


class _Table:
    """One table of the file: every key is asked for once, and what nobody asked for is refused."""

    def __init__(self, raw: Mapping[str, Any], where: str) -> None:
        self._left = dict(raw)
        self.where = where

    @property
    def names(self) -> tuple[str, ...]:
        return tuple(self._left)

    def take(self, name: str, kind: type[_T], words: str) -> _T:
        if name not in self._left:
            raise PolicyError(f"policy: {self._path(name)} is missing: add it ({words}).")
        value = self._left.pop(name)
        if type(value) is not kind:
            raise PolicyError(f"policy: {self._path(name)} has to be {words}.")
        return value

    def number(self, name: str, least: int = 1) -> int:
        value = self.take(name, int, "a whole number")
        if value < least:
            raise PolicyError(f"policy: {self._path(name)} is {value}: it has to be at least {least}.")
        return value

    def text(self, name: str) -> str:
        return self.take(name, str, "a text")

    def texts(self, name: str) -> tuple[str, ...]:
        return tuple(self._list(name, str, "a list of texts"))

    def day(self, name: str) -> date:
        return self.take(name, date, "a date, as in 2026-11-28")

    def days(self, name: str) -> tuple[date, ...]:
        return tuple(self._list(name, date, "a list of dates"))

    def table(self, name: str) -> _Table:
        return _Table(self.take(name, dict, "a table"), self._path(name))

    def only(self, name: str, key: str) -> int:
        """The one number of a table that has no other."""
        table = self.table(name)
        value = table.number(key)
        table.done()
        return value

    def done(self) -> None:
        if self._left:
            names = ", ".join(self._path(name) for name in sorted(self._left))
            raise PolicyError(f"policy: nothing reads {names}: it would be a rule that nobody keeps, so take it out.")

    def _list(self, name: str, kind: type[_T], words: str) -> list[_T]:
        values: list[Any] = self.take(name, list, words)
        if any(type(value) is not kind for value in values):
            raise PolicyError(f"policy: {self._path(name)} has to be {words}.")
        if len(set(values)) < len(values):
            raise PolicyError(f"policy: {self._path(name)} says something twice: take one out.")
        return values

    def _path(self, name: str) -> str:
        return f"{self.where}.{name}" if self.where else name


def _promised(table: _Table) -> Promised:
    found = Promised(**{name: table.number(name, least=0) for name in Promised.__slots__})
    table.done()
    return found


def _deadline(parent: _Table, name: str) -> Deadline:
    table = parent.table(name)
    unit: Any = "business_days" if "business_days" in table.names else "days"
    found = Deadline(
        name=name,
        length=table.number(unit),
        unit=unit,
        starts=table.text("starts"),
        promised=table.number("promised"),
        promise=table.number("promise"),
        warn=timedelta(hours=table.number("warn_hours", least=0)),
        minimum=_flag(table, "minimum") if "minimum" in table.names else False,
        extension=table.number("extension", least=0) if "extension" in table.names else 0,
    )
    table.done()
    return found


def _calendar(table: _Table) -> BusinessCalendar:
    weekend = table.texts("weekend")
    if unknown := [day for day in weekend if day not in _WEEK]:
        raise PolicyError(f"policy: calendar.weekend: {', '.join(unknown)} is no day of the week, as in 'saturday'.")
    found = BusinessCalendar(
        table.text("zone"), frozenset(map(_WEEK.index, weekend)), frozenset(table.days("holidays"))
    )
    table.done()
    return found


def _recipient(parent: _Table, name: str) -> Recipient:
    table = parent.table(name)
    found = Recipient(name, table.text("title"), table.text("use"), table.texts("fields"))
    table.done()
    return found


def _flag(table: _Table, name: str) -> bool:
    return table.take(name, bool, "true or false")


def _inner(table: _Table, name: str) -> _Table:
    found = table.table(name)
    table.done()
    return found


def _by_name(table: _Table, names: tuple[str, ...], read: Any) -> Mapping[str, Any]:
    """Exactly these names."""
    found = {name: read(table, name) for name in names}
    table.done()
    return MappingProxyType(found)


def _open(table: _Table, read: Any) -> Mapping[str, Any]:
    """Whatever names there are."""
    return MappingProxyType({name: read(table, name) for name in table.names})


def _parsed(text: str) -> dict[str, Any]:
    try:
        return tomllib.loads(text)
    except tomllib.TOMLDecodeError as error:
        raise PolicyError(f"policy: no TOML: {error}.") from error


def _plain(value: object) -> str:
    if isinstance(value, date | datetime):
        return value.isoformat()
    raise PolicyError(f"policy: a value of type {type(value).__name__} has no place here.")
