"""Drift, judged: what Kafka and PostgreSQL really do, against what the contract and the policy say. Pure."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from datetime import datetime, timedelta
from typing import NamedTuple

from shared.contract.topics import Topic

PUNCTUAL = timedelta(hours=1)
"""What is over is dropped by an hourly job: so much later is no drift yet."""

# How long the jobs that end data may be silent: they run every hour, and one run may fail.
SILENT = timedelta(hours=3)
JOBS = ("mesh-partitions", "mesh-expire")

_HOUR = timedelta(hours=1)
# A setting of Kafka that is not there, as `describe_configs` says it for times.
_NEVER_MS = 2**63 - 1


class Held(NamedTuple):
    """What a topic has: settings (None = there is no such topic), log starts and ends by partition, the oldest record."""

    settings: Mapping[str, str] | None
    spans: Mapping[int, tuple[int, int]]
    oldest_at: datetime | None


class Part(NamedTuple):
    """A partition as the catalogue has it. `over_at`: by its mark; `marked`: whether it has one; `first_at`: where its
    name says that it begins."""

    table: str
    name: str
    attached: bool
    pending: bool
    default: bool
    marked: bool
    first_at: datetime | None
    over_at: datetime | None


class Database(NamedTuple):
    """What a service's database holds: partitions, when the jobs that end data ran last, and for how many days its map
    says at most that a table holds a value. `trouble`: why it could not be read."""

    service: str
    parts: Sequence[Part] = ()
    ran_at: Mapping[str, datetime | None] = {}
    days: Mapping[str, int] = {}
    trouble: str | None = None


class Store(NamedTuple):
    """One line of the answer. `slack_hours`: until the store breaks its bound, below 0 when it has; None: it holds
    nothing, or has no bound of time."""

    service: str
    name: str
    bound: str
    oldest_at: datetime | None
    slack_hours: float | None


class Seen(NamedTuple):
    """What a look came to: stores with their slack, and findings, a sentence each."""

    stores: list[Store]
    findings: list[str]


def judge_topics(
    topics: Iterable[Topic], held: Mapping[str, Held], now: datetime, topic_max: timedelta, *, hurried: bool
) -> Seen:
    """Every topic: its settings against the contract, its oldest record against the bound of what is on its way."""
    seen = Seen([], [])
    for topic in topics:
        found = held.get(topic.name, Held(None, {}, None))
        if found.settings is None:
            seen.findings.append(f"{topic.name}: there is no such topic")
            continue
        seen.findings.extend(_settings(topic, found.settings, topic_max, hurried=hurried))
        transit = topic.personal and not topic.compacted
        slack = None
        if transit and found.oldest_at is not None:
            slack = topic_max - (now - found.oldest_at)
            if slack < timedelta(0):
                seen.findings.append(
                    f"{topic.name}: its oldest record is {_days(now - found.oldest_at)} days old, {_days(topic_max)} are the "
                    "bound of topics that hold personal data"
                )
        bound = f"{_days(topic_max)} d in all" if transit else "compacted" if topic.compacted else "not personal"
        seen.stores.append(Store("kafka", topic.name, bound, found.oldest_at, _hours(slack)))
    return seen


def _settings(topic: Topic, settings: Mapping[str, str], topic_max: timedelta, *, hurried: bool) -> Iterator[str]:
    for name, wanted in sorted(topic.config(hurried=hurried).items()):
        have = settings.get(name)
        if have != wanted:
            yield f"{topic.name}: {name} is {have}, the contract says {wanted}"
    if topic.compacted and int(settings.get("max.compaction.lag.ms", _NEVER_MS)) >= _NEVER_MS:
        yield f"{topic.name}: without max.compaction.lag.ms what is over may stay for ever"
    if topic.personal and not topic.compacted:
        life = int(settings.get("retention.ms", _NEVER_MS)) + int(settings.get("segment.ms", _NEVER_MS))
        if not 0 <= life <= topic_max // timedelta(milliseconds=1) or settings.get("retention.ms") == "-1":
            yield f"{topic.name}: retention and segment are longer than {_days(topic_max)} days together"


def judge_database(database: Database, now: datetime) -> Seen:
    """Every partitioned table of a service: nothing over is there any more, nothing lies beside."""
    seen = Seen([], [])
    if database.trouble is not None:
        seen.findings.append(f"{database.service}: its database could not be read ({database.trouble})")
        return seen
    tables: dict[str, list[Part]] = {}
    for part in database.parts:
        tables.setdefault(part.table, []).append(part)
    for table, parts in sorted(tables.items()):
        seen.findings.extend(
            f"{database.service}: {said}" for part in parts for said in _part(part, database.days, now)
        )
        ends = [part.over_at for part in parts if part.over_at is not None]
        slack = min(ends) + PUNCTUAL - now if ends else None
        first = min((part.first_at for part in parts if part.first_at is not None), default=None)
        seen.stores.append(Store(database.service, table, "partition over, + 1 h", first, _hours(slack)))
    for job in JOBS:
        ran = database.ran_at.get(job)
        if ran is not None and now - ran > SILENT:
            seen.findings.append(f"{database.service}: {job} has not run for {_hours(now - ran):.0f} hours")
    return seen


def _part(part: Part, days: Mapping[str, int], now: datetime) -> Iterator[str]:
    if part.default:
        yield f"{part.name} is a default partition: what falls into it is never over"
        return
    if not part.marked:
        yield f"{part.name} does not say when it is over: nobody will drop it"
        return
    if not part.attached:
        yield f"{part.name} is detached from {part.table} and still lies there"
    elif part.pending:
        yield f"{part.name} is being detached from {part.table}, and nobody ends that"
    if part.over_at is None:
        return
    late = now - part.over_at
    if late > PUNCTUAL:
        yield f"{part.name} has been over for {_hours(late):.0f} hours and is still there"
    longest = days.get(part.table)
    if (
        longest is not None
        and part.first_at is not None
        and part.over_at - part.first_at > timedelta(days=longest + 32)
    ):
        yield f"{part.name} says that it is over {_days(part.over_at - part.first_at)} days after it begins; its map: {longest}"


def _days(span: timedelta) -> str:
    return f"{span / timedelta(days=1):.3g}"


def _hours(span: timedelta | None) -> float | None:
    return None if span is None else round(span / _HOUR, 2)
