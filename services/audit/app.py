"""Audit: proves the books of metering and billing, again and again, and changes nothing of theirs."""

from __future__ import annotations

import asyncio
import logging
import math
import os
import time
import tomllib
from collections.abc import Mapping, Sequence
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
from services.audit.chain import Malformed
from services.audit.conservation import Books, InFlight, Payments, Usage, Verdict
from services.audit.drift import app as drift
from services.audit.recompute import PICO, ByokTerms, byok_fees
from services.audit.replay import Chain, Findings, Part, Replay
from services.audit.residue import app as residue
from shared.contract.topics import GENERATIONS, HOLDERS, PAYMENTS, TOPICS
from shared.mesh import Footprint, Rights, Service, Transaction, metrics
from shared.mesh.http import NotFound
from shared.mesh.settings import KafkaSettings, Misconfigured
from shared.mesh.store import Connection
from shared.privacy.expiry import attach_expiry
from shared.privacy.mesh_map import MESH_ROWS

log = logging.getLogger("steward.audit")

_EVERY = timedelta(seconds=30)
_FOLLOW_EVERY = timedelta(seconds=3)
_FULL_EVERY = timedelta(hours=1)
# What was found wrong is looked at again from the first block this soon: a repair shows.
_RED_AGAIN = timedelta(minutes=5)
# In the background: the share of its time that may be spent working, and for how long at a stretch, rests included
# (seconds). Of every three seconds, so, at most 0.4.
_SHARE = 0.4
_AT_ONCE = 1.0
# A journal is numbered when its transaction begins to write and sealed when it ends: it may lie so far below those of an
# earlier block. Nearly always it is not even the first of these.
_SOON = 20_000
_OVERTAKEN = 500_000
# How often the rest is looked at before it is read in one snapshot, however much it is.
_ATTEMPTS = 5
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


class Eyes:
    """Both databases, as the auditor sees them."""

    def __init__(self, sources: Sources) -> None:
        self.billing, self.metering = store.Source(sources.billing_url), store.Source(sources.metering_url)

    async def close(self) -> None:
        """Ends the connections."""
        await self.billing.close()
        await self.metering.close()


@dataclass(slots=True)
class Manners:
    """How the books are read: in slices, each from a snapshot of its own, with a rest after each of them."""

    share: float = 1.0
    """Of its time that may be spent working; the rest it sleeps."""
    until: float = math.inf
    """When to stop, whatever there is left (as `time.monotonic` counts)."""
    slice_seconds: float = 0.15
    """How long a slice should take, arithmetic included: its snapshot lives for a part of that."""
    journals: int = 2_000
    """How many journals a slice has; follows from the time that the last one took."""
    least: int = 2_000
    """A slice costs some tens of milliseconds however small it is: the newest pages of lines have no index yet."""
    most: int = 20_000

    def fewer(self) -> None:
        """A slice was too much: takes fewer journals."""
        self.journals, self.least = max(1, self.journals // 8), 1

    def full(self, parts: Sequence[Part]) -> bool:
        """Whether one of these has as many journals as it might have: then there are more."""
        return any(len(part.journals) == self.journals for part in parts)

    async def rest(self, worked: float) -> None:
        """After a full slice that took `worked` seconds."""
        fitting = int(self.journals * self.slice_seconds / max(worked, 1e-3))
        # Those that take much longer have many lines a journal: then fewer will do.
        least = self.least if worked < 4 * self.slice_seconds else 1
        self.journals = min(max(least, min(fitting, 2 * self.journals)), self.most)
        await asyncio.sleep(worked * (1 / self.share - 1))


class Moved(Exception):
    """A booking year was dropped since the replay began: it has to begin again, from the checkpoint."""


async def prove(
    sources: Sources, now: datetime, replay: Replay | None = None, *,
    eyes: Eyes | None = None, manners: Manners | None = None,
) -> tuple[Verdict, Replay | None]:  # fmt: skip
    """The proof, from the beginning or (given an earlier one's replay) from where that ended.

    The replay that comes back may be continued; None = it may not, since something could not be read to its end.
    `eyes` stay open, if given. Without `manners` it reads as fast as it can.
    """
    sight = eyes or Eyes(sources)
    try:
        replay = replay or Replay(now)
        manners = manners or Manners()
        read = await _read_books(sight, sources.byok, replay, manners)
        if read is None:
            log.info(
                "the replay has not caught up yet: %s", {name: chain.block for name, chain in replay.chains.items()}
            )
            return conservation.undetermined("the replay has not caught up yet with what was sealed"), replay
        books, offsets = read
        usage, in_flight = await _read_usage(sight, sources.kafka, books, offsets)
    except (OSError, TimeoutError) as error:
        return conservation.undetermined(f"a database could not be reached: {error or type(error).__name__}"), None
    except (asyncpg.InterfaceError, asyncpg.PostgresError) as error:
        # By its name alone: its text may hold a row, and this goes into the log.
        return conservation.undetermined(f"a database could not be read ({type(error).__name__})"), None
    except Malformed as error:
        return conservation.undetermined(f"a database could not be read: {error}"), None
    except Moved:
        return conservation.undetermined("a booking year was dropped meanwhile; the next proof starts behind it"), None
    finally:
        if eyes is None:
            await sight.close()
    return conservation.judge(usage, books, in_flight), replay


async def follow(eyes: Eyes, replay: Replay, manners: Manners) -> bool:
    """Takes in what has been sealed, slice by slice, until nothing is left (True) or the time is over."""
    while time.monotonic() < manners.until:
        started = time.monotonic()
        try:
            async with eyes.billing.snapshot() as db:
                newest = await store.blocks(db)
                parts = await _parts(db, replay, newest, manners.journals)
        except store.TooMuch:
            manners.fewer()
            continue
        await _take(eyes, replay, parts)
        if not manners.full(parts):
            for chain in _incomplete(replay, newest):
                async with eyes.billing.snapshot() as db:
                    part = await store.late_part(db, chain, _SOON)
                await _take(eyes, replay, [part])
            return True
        await manners.rest(time.monotonic() - started)
    return False


async def _parts(db: Connection, replay: Replay, newest: Mapping[str, int], limit: int) -> list[Part]:
    """The next slice of each class that has something new, and the accounts in it.

    Raises `Moved`, if the books do not begin any more where the replay did.
    """
    if replay.through is None:
        async for rows in store.accounts(db, replay.chart.known):
            replay.chart.learn(rows)
        replay.begin(await store.checkpoints(db))
    elif replay.through != await store.through(db):
        raise Moved
    chains = [replay.chain(legal_class) for legal_class in newest]
    behind = [chain for chain in chains if newest[chain.legal_class] != chain.block]
    if behind:
        async for rows in store.accounts(db, replay.chart.known):
            replay.chart.learn(rows)
    return [await store.next_part(db, chain, limit) for chain in behind]


def _incomplete(replay: Replay, newest: Mapping[str, int]) -> list[Chain]:
    """Chains of which blocks are there, and not all of their journals."""
    return [replay.chain(name) for name, block in newest.items() if replay.chain(name).block < block]


async def _take(eyes: Eyes, replay: Replay, parts: Sequence[Part]) -> None:
    """Takes in slices. Price versions are asked for after the slices were read, so whatever rated them is there."""
    if unknown := set[str]().union(*(replay.lines.unknown_versions(part.lines) for part in parts)):
        async with eyes.metering.snapshot() as db:
            replay.lines.prices |= await store.prices(db, unknown)
    for part in parts:
        replay.take(part)


async def _read_books(
    eyes: Eyes, byok: ByokTerms, replay: Replay, manners: Manners
) -> tuple[Books, dict[int, int]] | None:
    """Billing first: what it has booked by now, metering has rated before. None: it could not catch up in time."""
    attempt = 0
    while await follow(eyes, replay, manners):
        attempt += 1
        try:
            async with eyes.billing.snapshot() as db:
                newest = await store.blocks(db)
                while True:
                    parts = await _parts(db, replay, newest, manners.journals)
                    await _take(eyes, replay, parts)
                    if not manners.full(parts):
                        return await _stand_still(eyes, db, byok, replay, newest)
                    if attempt < _ATTEMPTS:
                        break  # too much has come since to be read in this one snapshot
        except store.TooMuch:
            manners.fewer()
    return None


async def _stand_still(
    eyes: Eyes, db: Connection, byok: ByokTerms, replay: Replay, newest: Mapping[str, int]
) -> tuple[Books, dict[int, int]]:
    """All that is compared with the replay at one instant: that of the snapshot in which it has taken in the rest."""
    found = Findings()
    for chain in _incomplete(replay, newest):
        await _take(eyes, replay, [await store.late_part(db, chain, _OVERTAKEN)])
    heads = await store.heads(db)
    for legal_class, block in newest.items():
        chain = replay.chain(legal_class)
        chain.finish(block, heads.get(legal_class), replay.findings)
        for what, n in (await store.beyond(db, chain)).items():
            if n:
                text = "are in none of its blocks" if what == "journals" else "name a journal that does not exist"
                found.add("beyond", f"{n} {what} of class {legal_class}, numbered above {chain.newest_journal}, {text}")
    equal = await _compare_balances(db, replay, found)
    due, wrong = byok_fees(
        byok, replay.lines.byok, await store.owners(db, {number for number, _ in replay.lines.byok}),
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
        checkpoints=replay.through or {},
    )
    return books, offsets


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


async def _read_usage(
    eyes: Eyes, kafka: KafkaSettings, books: Books, offsets: Mapping[int, int]
) -> tuple[Usage, InFlight]:
    """Metering second, and what lies between the two: no more of it than explains the difference."""
    async with eyes.metering.snapshot() as db:
        counters = await store.counters(db)
        waiting, letters = await store.quarantined(db), await store.dead_letters(db)
        missing = await store.missing(db)
        outbox = 0
        if sum(counters.get(name, 0) for name in ("rated", "reversed", "rerated_lines")) > books.lines:
            async for rows in store.outbox_usage(db):
                outbox += sum(lines_in(row["value"]) for row in rows)
    usage = Usage.of(counters, GENERATIONS.name, waiting=waiting, letters=letters, missing=missing, outbox_lines=outbox)
    wanted = conservation.unbooked(usage, books)
    if wanted <= outbox:
        return usage, InFlight(outbox)
    return usage, await _in_flight(kafka, offsets, wanted, outbox)


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
    """What this process remembers between two proofs.

    `_replay` is what the proofs go on from. `_fresh` is another one that starts from the first block, beside it, and
    takes its place once it has caught up.
    """

    def __init__(self, env: Mapping[str, str]) -> None:
        self._env = env
        self.sources: Sources
        self._eyes: Eyes
        self._replay: Replay | None = None
        self._fresh: Replay | None = None
        self._caught_up = False
        self._manners = Manners(share=_SHARE)
        self._one_at_a_time = asyncio.Lock()

    async def open(self, runtime: Any) -> None:
        """Finds its sources."""
        self.sources = Sources.from_env(self._env)
        self._eyes = Eyes(self.sources)

    async def go_on(self, now: datetime) -> tuple[str, Verdict]:
        """The next proof: of all of it, if a replay from the first block has caught up, else of what is new."""
        async with self._one_at_a_time:
            return await self._go_on(now)

    async def _go_on(self, now: datetime) -> tuple[str, Verdict]:
        kind = "increment"
        if self._replay is None or self._caught_up:
            kind, self._replay, self._fresh = "full", self._fresh, None
        self._caught_up = False
        replay, self._replay = self._replay, None
        self._manners.until = time.monotonic() + _AT_ONCE
        verdict, replay = await prove(self.sources, now, replay, eyes=self._eyes, manners=self._manners)
        if replay is None:
            self._fresh = None
        elif kind == "full" and not verdict.figures:
            kind, self._fresh = "increment", replay  # it has not caught up after all
        else:
            self._replay = replay
        return kind, verdict

    async def follow(self, now: datetime) -> None:
        """Takes in what has been sealed since; first for the proofs, then for the replay that started over."""
        async with self._one_at_a_time:
            await self._follow(now)

    async def _follow(self, now: datetime) -> None:
        self._manners.until = time.monotonic() + _AT_ONCE
        replay, fresh = self._replay, self._fresh
        self._replay = self._fresh = None
        if replay is None or now - replay.started_at >= (_RED_AGAIN if replay.findings.counts else _FULL_EVERY):
            fresh = fresh or Replay(now)
        try:
            if replay is not None:
                await follow(self._eyes, replay, self._manners)
            self._caught_up = fresh is not None and await follow(self._eyes, fresh, self._manners)
        except (OSError, TimeoutError, asyncpg.InterfaceError, asyncpg.PostgresError, Malformed, Moved) as error:
            # The next proof says so; it starts from the first block.
            log.warning("the books cannot be followed: %s", type(error).__name__)
            return
        self._replay, self._fresh = replay, fresh


def make_service(env: Mapping[str, str] = os.environ) -> Service:
    """The room's declaration; `env` names the databases that it reads."""
    room = Room(env)
    service = Service(
        "audit",
        migrations=Path(__file__).parent / "migrations",
        # One: who follows the books does so from where it stands, in memory.
        footprint=Footprint(memory_mb=176),
        rights=Rights(inspects=TOPICS, audits=HOLDERS, blobs=True),
        uses_keys=True,
        on_start=room.open,
    )

    # Jobs run one after the other, each inside a transaction of audit's database. It must be a short one: no row version
    # that is newer than a running transaction may be cleared away, in the other databases neither.
    @service.job("follow", every=_FOLLOW_EVERY)
    async def keep_following(now: datetime, tx: Transaction) -> None:
        await store.take_time(tx.db)
        await room.follow(now)

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

    residue.attach(service, env)
    drift.attach(service, env)
    attach_expiry(service, MESH_ROWS)
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
