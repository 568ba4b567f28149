"""One scan for many cases at once: the probe asks every column, the sweep every text, every topic and the logs."""

from __future__ import annotations

from collections.abc import AsyncIterator, Awaitable, Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from typing import Any, TypeAlias

from services.audit.residue import store, words
from services.audit.residue.verdicts import judge, worst
from shared.contract.topics import TOPICS, Topic, pace
from shared.contract.units import Subject
from shared.mesh.settings import KafkaSettings
from shared.mesh.store import Connection
from shared.privacy.values import Tampered

# Tables in which records stand as bytes, and that are small by nature: a probe reads them, too.
_CARRIERS = ("mesh_outbox", "mesh_dead_letter", "mesh_parked")

Snapshot: TypeAlias = Callable[[], Any]
# What bytes that are kept sealed hold; None when nobody can know any more.
Unlock: TypeAlias = Callable[[bytes], Awaitable[bytes | None]]
# (case, holder, store) -> verdicts
Found: TypeAlias = dict[str, dict[tuple[str, str], list[dict[str, Any]]]]


@dataclass(slots=True)
class Wanted:
    """Whom a scan looks for: id -> the cases that it belongs to."""

    cases: dict[str, list[str]] = field(default_factory=dict)

    @classmethod
    def of(cls, subjects: Mapping[str, Iterable[Subject]]) -> Wanted:
        """From the subjects of each case."""
        wanted = cls()
        for case, of_case in subjects.items():
            for _, value in of_case:
                wanted.cases.setdefault(value, []).append(case)
        return wanted

    @property
    def ids(self) -> list[str]:
        """All ids."""
        return list(self.cases)


class Findings:
    """What a scan saw, by case and store."""

    def __init__(self, cases: Iterable[str]) -> None:
        self._stores: dict[str, dict[tuple[str, str], list[dict[str, Any]]]] = {case: {} for case in cases}

    def looked_at(self, holder: str, name: str) -> None:
        """A store was scanned, for every case."""
        for stores in self._stores.values():
            stores.setdefault((holder, name), [])

    def not_scanned(self, holder: str, name: str) -> None:
        """A store could not be looked at: never as good as clean."""
        for stores in self._stores.values():
            stores.setdefault((holder, name), []).append({"verdict": "not_scanned", "count": 0})

    def add(self, case: str, holder: str, name: str, count: int, verdict: Mapping[str, Any]) -> None:
        """Something of a case was found."""
        self._stores[case].setdefault((holder, name), []).append({**verdict, "count": count})

    def of(self, case: str) -> list[dict[str, Any]]:
        """The verdict on each store, for one case."""
        return [
            {"holder": holder, "store": name, "count": sum(v["count"] for v in verdicts)}
            | {k: v for k, v in worst(verdicts).items() if k != "count"}
            for (holder, name), verdicts in sorted(self._stores[case].items())
        ]


async def scan_database(
    db: Connection, holder: str, wanted: Wanted, findings: Findings, now: datetime, unlock: Unlock, *, deep: bool
) -> None:
    """Looks through one holder's database."""
    declared = await store.data_map(db)
    expression = words.pattern(wanted.ids) if deep else ""
    for table in await store.tables(db):
        findings.looked_at(holder, table.name)
        judged: set[str] = set()
        for column, counts in (await store.hits(db, table, wanted.ids)).items():
            verdict = judge(declared.get((table.name, column)), now)
            for value, count in counts.items():
                judged.add(value)
                for case in wanted.cases[value]:
                    findings.add(case, holder, table.name, count, verdict)
        if table.name in _CARRIERS:
            async for column, payload in store.payloads(db, table):
                try:
                    held = await unlock(payload) or b""
                except Tampered:
                    findings.not_scanned(holder, table.name)
                    continue
                for value in words.found_in(wanted.cases.keys(), held):
                    judged.add(value)
                    for case in wanted.cases[value]:
                        findings.add(case, holder, table.name, 1, judge(declared.get((table.name, column)), now))
        elif deep:
            for value, count in (await store.deep_hits(db, table.name, expression, wanted.ids)).items():
                if value not in judged:
                    for case in wanted.cases[value]:
                        findings.add(case, holder, table.name, count, {"verdict": "residue"})


def promise_of_topics(kafka: KafkaSettings, wanted: Wanted, findings: Findings, now: datetime) -> None:
    """A probe does not read topics: what they hold ends by itself, by then at the latest."""
    everybody = {case for cases in wanted.cases.values() for case in cases}
    for topic in TOPICS:
        if topic.personal:
            verdict = {"verdict": "expiring", "not_after": now + life(topic, kafka)}
            for case in everybody:
                findings.add(case, "kafka", topic.name, 0, verdict)


def life(topic: Topic, kafka: KafkaSettings) -> timedelta:
    """The longest that a record, or an erased key of a compacted topic, can stay readable."""
    return pace(hurried=kafka.hurried).whole if topic.compacted else topic.retention + topic.segment


async def scan_topics(kafka: KafkaSettings, wanted: Wanted, findings: Findings) -> None:
    """Reads every topic from its first record on."""
    by_name = {topic.name: topic for topic in TOPICS}
    for name in by_name:
        findings.looked_at("kafka", name)
    async for name, at_ms, text in store.read_topics(kafka, list(by_name)):
        for value in words.found_in(wanted.cases.keys(), text):
            end = datetime.fromtimestamp(at_ms // 1000, UTC) + life(by_name[name], kafka)
            for case in wanted.cases[value]:
                findings.add(case, "kafka", name, 1, {"verdict": "expiring", "not_after": end})


async def scan(
    databases: Mapping[str, Callable[[], Any]],
    kafka: KafkaSettings,
    subjects: Mapping[str, Sequence[Subject]],
    now: datetime,
    unlock: Unlock,
    *,
    deep: bool,
    unreachable: tuple[type[BaseException], ...],
    logs: Callable[[], Awaitable[Iterable[tuple[str, bytes]]]] | None = None,
    copies: Callable[[], AsyncIterator[bytes | None]] | None = None,
    packages: Callable[[], AsyncIterator[Collection[str] | None]] | None = None,
) -> dict[str, list[dict[str, Any]]]:
    """case -> the verdict on every store. `databases`: holder -> a snapshot of its database; what cannot be reached is
    `not_scanned`. `copies`: those that people have asked for, opened; None for one that cannot be. `packages`: of each
    the cases that it is residue of; None for one that nobody knows."""
    wanted, findings = Wanted.of(subjects), Findings(subjects)
    for holder, snapshot in databases.items():
        try:
            async with snapshot() as db:
                await scan_database(db, holder, wanted, findings, now, unlock, deep=deep)
                if deep and copies is None and await store.has_copies(db):
                    # There are some, and nobody has said where.
                    findings.not_scanned("exports", "copies")
        except unreachable:
            findings.not_scanned(holder, "database")
    if not deep:
        promise_of_topics(kafka, wanted, findings, now)
        return {case: findings.of(case) for case in subjects}
    try:
        await scan_topics(kafka, wanted, findings)
    except unreachable:
        findings.not_scanned("kafka", "topics")
    if copies is not None:
        findings.looked_at("exports", "copies")
        async for copy in copies():
            if copy is None:
                findings.not_scanned("exports", "copies")
                continue
            for value in words.found_in(wanted.cases.keys(), copy):
                for case in wanted.cases[value]:
                    findings.add(case, "exports", "copies", 1, {"verdict": "residue"})
    if packages is not None:
        async for whose in packages():
            if whose is None:
                findings.not_scanned("exports", "copies")
            for case in whose or ():
                findings.add(case, "exports", "copies", 1, {"verdict": "residue"})
    if logs is not None:
        for name, text in await logs():
            findings.looked_at("logs", name)
            for value in words.found_in(wanted.cases.keys(), text):
                for case in wanted.cases[value]:
                    findings.add(case, "logs", name, 1, {"verdict": "residue"})
    return {case: findings.of(case) for case in subjects}
