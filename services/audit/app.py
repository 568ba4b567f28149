"""Audit: proves the books of metering and billing, again and again, and changes nothing of theirs."""

from __future__ import annotations

import asyncio
import logging
import os
import time
import tomllib
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import aclosing
from dataclasses import dataclass
from datetime import datetime, timedelta
from decimal import Decimal
from fractions import Fraction
from pathlib import Path
from typing import Any

import asyncpg
import msgspec
from aiokafka.errors import KafkaError
from prometheus_client import Gauge

from services.audit import conservation, store
from services.audit.conservation import Books, InFlight, Payments, Usage, Verdict
from services.audit.recompute import PICO, ByokTerms, byok_fees
from services.audit.replay import Expected, Findings, Replay
from shared.contract.topics import GENERATIONS, PAYMENTS
from shared.mesh import Service, Transaction, metrics
from shared.mesh.http import NotFound
from shared.mesh.settings import KafkaSettings, Misconfigured
from shared.mesh.store import Connection

log = logging.getLogger("steward.audit")

_EVERY = timedelta(seconds=30)
_FULL_EVERY = timedelta(hours=1)
# Counting what is on its way ends here (seconds): a longer backlog is no state in which books are proved.
_COUNTING_SECONDS = 20.0
# The terms that customers were told: published by billing, read as a file, computed here by code of our own.
_TERMS = Path(__file__).parents[1] / "billing" / "billing.toml"

RECORDS = Gauge(
    "steward_audit_records",
    "Generations by what became of them (emitted, rated, duplicates, ...), as of the latest proof.",
    ["outcome"],
    registry=metrics.REGISTRY,
)
LINES = Gauge("steward_audit_lines", "Rated lines: rated, booked, in flight.", ["outcome"], registry=metrics.REGISTRY)
DIFFERENCE = Gauge(
    "steward_audit_difference",
    "0, or the books are wrong: charged less recomputed (pico-dollars), sum of the ledger (pico-dollars), records in no "
    "class.",
    ["reason"],
    registry=metrics.REGISTRY,
)
OK = Gauge("steward_audit_ok", "1 if the latest proof held.", registry=metrics.REGISTRY)
DETERMINED = Gauge("steward_audit_determined", "1 if the latest proof came to a verdict.", registry=metrics.REGISTRY)
FINDINGS = Gauge("steward_audit_findings", "What the latest proof found wrong.", registry=metrics.REGISTRY)
PROOF_SECONDS = Gauge("steward_audit_proof_seconds", "How long the latest proof took.", registry=metrics.REGISTRY)
SUCCESS_TIME = Gauge(
    "steward_audit_last_success_timestamp_seconds",
    "When a proof last held, in seconds since 1970.",
    registry=metrics.REGISTRY,
)


@dataclass(frozen=True, slots=True)
class Sources:
    """Where the proof reads: both databases as the auditor, Kafka for what is between them, and billing's terms."""

    billing_url: str
    metering_url: str
    kafka: KafkaSettings
    byok: ByokTerms

    @classmethod
    def from_env(cls, env: Mapping[str, str] = os.environ) -> Sources:
        """Reads STEWARD_AUDITOR_* and STEWARD_KAFKA_*. Raises `Misconfigured` for a setting that is missing."""
        urls = []
        for room in ("BILLING", "METERING"):
            url = env.get(f"STEWARD_AUDITOR_{room}_DATABASE_URL")
            if not url:
                raise Misconfigured(
                    f"STEWARD_AUDITOR_{room}_DATABASE_URL is not set: `steward up` writes it to .steward/env"
                )
            urls.append(url)
        terms = tomllib.loads(_TERMS.read_text(encoding="utf-8"))["byok"]
        allowance = Decimal(terms["allowance_usd"]) * PICO
        byok = ByokTerms(Fraction(terms["fee_rate"]), int(allowance))
        return cls(urls[0], urls[1], KafkaSettings.from_env(env), byok)


async def prove(sources: Sources, now: datetime, replay: Replay | None = None) -> tuple[Verdict, Replay | None]:
    """The proof, from the beginning or (given an earlier one's replay) from where that ended.

    The replay that comes back may be continued; None = it may not, since something could not be read to its end.
    """
    try:
        replay = replay or Replay(now)
        books, offsets = await _read_books(sources, replay)
        usage, in_flight = await _read_usage(sources, books, offsets)
    except (OSError, TimeoutError, asyncpg.InterfaceError) as error:
        return conservation.undetermined(f"a database could not be reached: {error or type(error).__name__}"), None
    except asyncpg.PostgresError as error:
        return conservation.undetermined(f"a database could not be read ({type(error).__name__}): {error}"), None
    return conservation.judge(usage, books, in_flight), replay


async def _read_books(sources: Sources, replay: Replay) -> tuple[Books, dict[int, int]]:
    """Billing first: what it has booked by now, metering has rated before."""
    found = Findings()
    async with store.snapshot(sources.billing_url) as db:
        newest = await store.blocks(db)
        async with store.snapshot(sources.metering_url) as metering:
            # After the snapshot of billing, so every version that has rated one of its lines is there.
            replay.lines.prices = await store.prices(metering)
        full = not replay.chains
        async for rows in store.accounts(db, replay.chart.known):
            replay.chart.learn(rows)
        heads = await store.heads(db)
        for legal_class, block in newest.items():
            await _replay_class(db, replay, legal_class, block, heads.get(legal_class))
        if full:
            await _compare_totals(db, replay)
        equal = await _compare_balances(db, replay, found)
        due, wrong = byok_fees(
            sources.byok, replay.lines.byok, await store.owners(db, {number for number, _ in replay.lines.byok}),
            await store.byok_months(db),
        )  # fmt: skip
        for text in wrong:
            found.add("byok", text)
        refused = sum(map(lines_in, await store.refused_usage(db)))
        counters = await store.counters(db)
        payments = Payments.of(counters, PAYMENTS.name, await store.parked_payments(db))
        offsets = await store.booked_offsets(db)
    lines, chains = replay.lines, replay.chains
    books = Books(
        lines=lines.count,
        charges_pico=lines.charges_pico,
        recomputed_pico=lines.recomputed_pico + due,
        ledger_sum_pico={name: chain.sum_pico for name, chain in chains.items()},
        balances_equal_replay=equal,
        chain_ok=all(chain.ok for chain in chains.values()),
        blocks={name: chain.block for name, chain in chains.items()},
        journals=sum(chain.journals for chain in chains.values()),
        findings=[*replay.findings.sentences(), *found.sentences()],
        refused_lines=refused,
        conflicts=counters.get("conflicts", 0),
        payments=payments,
    )
    return books, offsets


async def _replay_class(
    db: Connection, replay: Replay, legal_class: str, newest_block: int, head: tuple[int, bytes] | None
) -> None:
    """Takes in what a class has that the replay has not."""
    chain = replay.chain(legal_class)
    if newest_block > chain.block:
        await _replay_lines(db, replay, legal_class, chain.block, chain.newest_journal)
        async for rows in store.journals(db, legal_class, chain.block, chain.newest_journal):
            chain.take(rows, replay.chart, replay.findings)
    chain.finish(newest_block, head, replay.chart, replay.findings)


async def _replay_lines(db: Connection, replay: Replay, legal_class: str, block: int, newest_journal: int) -> None:
    """Walks the usage journals above `block` and their lines side by side."""
    lines, findings = replay.lines, replay.findings
    first, last = 0, None
    if block:
        span = await store.journal_range(db, legal_class, block, newest_journal)
        if span is None:
            return
        first, last = span
    journals = _expected(store.usage_journals(db, legal_class, block, newest_journal))
    expected = await anext(journals, None)
    async for group in _by_journal(store.lines(db, legal_class, first, last)):
        journal = group[0][12]
        while expected is not None and expected.journal < journal:
            lines.without_lines(expected, findings)
            expected = await anext(journals, None)
        if expected is not None and expected.journal == journal:
            lines.take(expected, group, findings)
            expected = await anext(journals, None)
        elif not block:
            lines.take(None, group, findings)
        # else: of an earlier block, whose numbers lie between ours; taken in before.
    while expected is not None:
        lines.without_lines(expected, findings)
        expected = await anext(journals, None)


async def _expected(batches: AsyncIterator[list[store.Row]]) -> AsyncIterator[Expected]:
    async for rows in batches:
        for row in rows:
            yield Expected(row["id"], row["lines_digest"], row["period"], int(row["charged"]))


async def _by_journal(batches: AsyncIterator[list[store.Row]]) -> AsyncIterator[list[tuple[Any, ...]]]:
    group: list[tuple[Any, ...]] = []
    async for rows in batches:
        for row in map(tuple, rows):
            if group and group[0][12] != row[12]:
                yield group
                group = []
            group.append(row)
    if group:
        yield group


async def _compare_totals(db: Connection, replay: Replay) -> None:
    """Entries that belong to no journal would be in no replay."""
    for legal_class, (entries, total) in (await store.totals(db)).items():
        chain = replay.chain(legal_class)
        if (entries, int(total)) != (chain.entries, chain.sum_pico):
            replay.findings.add(
                "entries",
                f"class {legal_class} has {entries} entries that sum to {total}; its journals have {chain.entries} "
                f"that sum to {chain.sum_pico}",
            )


async def _compare_balances(db: Connection, replay: Replay, findings: Findings) -> bool:
    unequal = 0
    known: set[int] = set()
    async for rows in store.balances(db):
        unequal += replay.unequal_balances(rows, known, findings)
    for number in sorted(replay.chart.numbers() - known):
        if any(replay.chart.standing(number)):
            unequal += 1
            findings.add("balance", f"ledger workspace {number} has entries and no balance")
    if grants := await store.unequal_grants(db):
        findings.add("grants", f"{grants} workspaces have granted credit that is not what is left of their grants")
    return not unequal


async def _read_usage(sources: Sources, books: Books, offsets: Mapping[int, int]) -> tuple[Usage, InFlight]:
    """Metering second, and what lies between the two: no more of it than explains the difference."""
    async with store.snapshot(sources.metering_url) as db:
        counters = await store.counters(db)
        waiting, letters = await store.quarantined(db), await store.dead_letters(db)
        missing = await store.missing(db)
        outbox = 0
        if counters.get("rated", 0) + counters.get("reversed", 0) > books.lines:
            async for rows in store.outbox_usage(db):
                outbox += sum(lines_in(row["value"]) for row in rows)
    usage = Usage.of(counters, GENERATIONS.name, waiting=waiting, letters=letters, missing=missing, outbox_lines=outbox)
    wanted = conservation.unbooked(usage, books)
    if wanted <= outbox:
        return usage, InFlight(outbox)
    return usage, await _in_flight(sources.kafka, offsets, wanted, outbox)


async def _in_flight(kafka: KafkaSettings, offsets: Mapping[int, int], wanted: int, found: int) -> InFlight:
    """Counts the lines in the topic on top of those `found`, until `wanted` are explained."""
    try:
        async with asyncio.timeout(_COUNTING_SECONDS):
            spans = await store.records_behind(kafka, offsets)
            if spans:
                async with aclosing(store.usage_records(kafka, spans)) as batches:
                    async for records in batches:
                        found += sum(map(lines_in, records))
                        if found >= wanted:
                            break
    except (KafkaError, OSError, TimeoutError) as error:
        log.warning("what is in flight could not be counted: %s", type(error).__name__)
        return InFlight(found, complete=False)
    return InFlight(found)


class _Unit(msgspec.Struct):
    lines: list[msgspec.Raw]


class _Data(msgspec.Struct):
    units: list[_Unit]


class _Packed(msgspec.Struct):
    data: _Data


_unpack = msgspec.json.Decoder(_Packed).decode


def lines_in(record: bytes | None) -> int:
    """How many lines a record of rated usage carries; 0 for what is no such record."""
    try:
        return sum(len(unit.lines) for unit in _unpack(record or b"").data.units)
    except (msgspec.DecodeError, ValueError):
        return 0


# --- the service -------------------------------------------------------------------------------------------------


class Room:
    """What this process remembers between two proofs."""

    def __init__(self, env: Mapping[str, str]) -> None:
        self._env = env
        self.sources: Sources
        self.replay: Replay | None = None

    async def open(self, runtime: Any) -> None:
        """Finds its sources."""
        self.sources = Sources.from_env(self._env)

    async def go_on(self, now: datetime) -> tuple[str, Verdict]:
        """The next proof: what is new since the last one, or all of it once an hour. Gives its kind, too."""
        replay, self.replay = self.replay, None
        if replay is not None and now - replay.started_at >= _FULL_EVERY:
            replay = None
        kind = "full" if replay is None else "increment"
        verdict, self.replay = await prove(self.sources, now, replay)
        return kind, verdict


def make_service(env: Mapping[str, str] = os.environ) -> Service:
    """The room's declaration; `env` names the databases that it reads."""
    room = Room(env)
    service = Service("audit", migrations=Path(__file__).parent / "migrations", on_start=room.open)

    @service.job("prove", every=_EVERY)
    async def go_on_proving(now: datetime, tx: Transaction) -> None:
        await store.take_time(tx.db)
        started = time.monotonic()
        kind, verdict = await room.go_on(now)
        seconds = time.monotonic() - started
        expose(verdict, now, seconds)
        await _remember(tx.db, kind, verdict, now, seconds)

    @service.reads("check")
    async def check(query: Mapping[str, str], tx: Transaction) -> Any:
        await store.take_time(tx.db)
        verdict, _ = await prove(room.sources, tx.now)
        return verdict.as_dict() | {"proved_at": tx.now, "kind": "full"}

    @service.reads("verdict")
    async def latest_verdict(query: Mapping[str, str], tx: Transaction) -> Any:
        kept = await store.latest(tx.db)
        if kept is None:
            raise NotFound("nothing has been proved yet")
        return kept["body"] | {"proved_at": kept["proved_at"], "kind": kept["kind"]}

    @service.reads("verdicts")
    async def past_verdicts(query: Mapping[str, str], tx: Transaction) -> Any:
        return await store.history(tx.db, min(int(query.get("limit", "100")), 1000))

    return service


async def _remember(db: Connection, kind: str, verdict: Verdict, now: datetime, seconds: float) -> None:
    """Keeps full proofs, and whatever says something else than the verdict before."""
    body = verdict.as_dict()
    before = await store.latest(db)
    said = {name: body[name] for name in ("errors", "undetermined", "ok")}
    if kind == "full" or before is None or any(before["body"][name] != value for name, value in said.items()):
        await store.keep(db, kind, verdict.ok, not verdict.undetermined, int(seconds * 1000), body, now)


def expose(verdict: Verdict, now: datetime, seconds: float) -> None:
    """Metrics and log lines of a proof."""
    figures = verdict.figures
    OK.set(verdict.ok)
    DETERMINED.set(not verdict.undetermined)
    FINDINGS.set(len(verdict.errors))
    PROOF_SECONDS.set(seconds)
    if verdict.ok:
        SUCCESS_TIME.set(now.timestamp())
    if figures:
        classes = ("rated", "duplicates", "quarantined", "dead_lettered", "erased")
        for name in ("emitted", "missing", "conflicts", *classes):
            RECORDS.labels(name).set(figures[name])
        for name in ("rated_lines", "booked_lines", "in_flight", "refused_lines"):
            LINES.labels(name.removesuffix("_lines")).set(figures[name])
        DIFFERENCE.labels("records").set(figures["emitted"] - sum(figures[name] for name in classes))
        DIFFERENCE.labels("charges").set(int(figures["charges_pico"]) - int(figures["recomputed_pico"]))
        DIFFERENCE.labels("ledger").set(sum(abs(int(n)) for n in figures["ledger_sum_by_class_pico"].values()))
    _report(verdict.errors, logging.ERROR)
    _report(verdict.undetermined, logging.WARNING)


def _report(sentences: Sequence[str], level: int) -> None:
    for sentence in sentences:
        log.log(level, "%s", sentence)


service = make_service()
