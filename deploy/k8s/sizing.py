"""How large a mesh has to be for so many generations a second: arithmetic from what was measured, each step shown."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path

from deploy.k8s import rights, scaling
from deploy.k8s.lag import Group, Scaler, play
from deploy.k8s.workload import footprint
from shared.contract.topics import GENERATIONS, USAGE_RATED
from shared.policy import policy

RATES = (1_000, 15_000, 100_000, 1_000_000)
"""Generations a second, on the day's average, for which the page is written."""


@dataclass(frozen=True, slots=True)
class Measured:
    """What one generation costs: `make bench` on two shared cores with everything on one machine, 600,000 generations from the
    topic to balances (Kafka's share with the warming up of its JVM).

    CPU in microseconds, the rest in bytes. `database_us` is PostgreSQL's for both services; `stored` is with indexes, for as
    long as a row lives.
    """

    metering_us: float = 24.7
    billing_us: float = 7.1
    audit_us: float = 2.9
    kafka_us: float = 15.9
    database_us: float = 16.0
    one_process: int = 33_800
    wal: float = 1_152.0
    generation: float = 135.0
    rated: float = 38.0
    metering_stored: float = 715.0
    billing_stored: float = 346.0
    standstill: float = 2.0
    """Seconds for which a group stands still when a pod joins or leaves."""
    startup: float = 7.0
    """Seconds from a pod's start to its joining."""


MEASURED = Measured()
PEAK = 2.0
"""The busiest minutes carry twice the day's average: the shape of a real service's hour (Azure LLM inference trace, 2023)."""
BUSY = 0.6
"""How busy a core, a volume or a pod may be at the peak, so that a lost one is made good by the others."""
WAL_A_SECOND = 200e6
"""WAL that one PostgreSQL writes without its volume or its replicas setting the pace (bytes a second; a network volume of
today's clouds gives 250 MB/s for the asking)."""
CORES_A_DATABASE = 32
"""Beyond this a single writer's locks and its WAL are the limit, not its cores."""
BROKER_A_SECOND = 50e6
"""Bytes a second that one broker takes in, copies of others included, and still serves its readers from memory."""


@dataclass(frozen=True, slots=True)
class Size:
    """The mesh for `rate` generations a second."""

    rate: int
    partitions: int
    rated_partitions: int
    metering_pods: int
    billing_pods: int
    shards: int
    database_cores: int
    wal: float
    log_bytes: float
    ledger_bytes: float
    brokers: int
    topic_bytes: float

    @property
    def peak(self) -> float:
        return self.rate * PEAK


def size(rate: int, measured: Measured = MEASURED) -> Size:
    """The arithmetic of the page for one rate."""
    peak = rate * PEAK
    speed = footprint(rights.services()["metering"]).per_second
    pods = max(2, math.ceil(peak / (speed * BUSY)))
    wal = peak * measured.wal
    cores = peak * measured.database_us / 1e6 / BUSY
    shards = max(1, math.ceil(wal / WAL_A_SECOND), math.ceil(cores / CORES_A_DATABASE))
    # Twice the pods of the peak, so that partitions divide evenly while there are more of them; by 12, which many numbers divide.
    partitions = max(GENERATIONS.partitions, 12 * math.ceil(2 * pods / 12))
    billing = max(2, math.ceil(peak * measured.billing_us / 1e6 / BUSY))
    days = policy().request_log_default_days
    kept = USAGE_RATED.retention.total_seconds()
    # As long as a trimmed topic holds a record, and at most as long as one that nobody trims.
    topic = rate * (measured.generation + measured.rated)
    taken = peak * (measured.generation + measured.rated) * 3
    return Size(
        rate=rate,
        partitions=partitions,
        rated_partitions=max(USAGE_RATED.partitions, 6 * math.ceil(billing / 6)),
        metering_pods=pods,
        billing_pods=billing,
        shards=shards,
        database_cores=math.ceil(cores),
        wal=wal,
        log_bytes=rate * measured.metering_stored * 86_400 * days,
        ledger_bytes=rate * measured.billing_stored * 86_400 * 365,
        brokers=max(3, math.ceil(taken / BROKER_A_SECOND)),
        topic_bytes=topic * kept,
    )


def _bytes(value: float) -> str:
    for unit in ("B", "kB", "MB", "GB", "TB"):
        if value < 1000:
            return f"{value:,.0f} {unit}"
        value /= 1000
    return f"{value:,.1f} PB"


def _table(head: Iterable[str], rows: Iterable[Iterable[object]]) -> str:
    titles = list(head)
    lines = ["| " + " | ".join(titles) + " |", "|" + "---|" * len(titles)]
    lines += ["| " + " | ".join(str(cell) for cell in row) + " |" for row in rows]
    return "\n".join(lines)


def page() -> str:
    """The page k8s/SIZING.md."""
    m, house, example = MEASURED, rights.services(), size(100_000)
    text = Path(__file__).with_name("sizing.template.md").read_text(encoding="utf-8")
    return text.format(
        one_process=f"{m.one_process:,}",
        costs=_costs(),
        peak=f"{PEAK:g}",
        busy=f"{BUSY:.0%}",
        sizes=_sizes(),
        rate=f"{example.rate:,}",
        at_peak=f"{example.peak:,.0f}",
        pod=f"{footprint(house['metering']).per_second:,}",
        metering_pods=example.metering_pods,
        billing_us=m.billing_us,
        billing_pods=example.billing_pods,
        wal_each=f"{m.wal:,.0f}",
        wal=_bytes(example.wal),
        database_us=m.database_us,
        database_cores=example.database_cores,
        generation=_bytes(m.generation),
        rated=_bytes(m.rated),
        broker=_bytes(BROKER_A_SECOND),
        brokers=example.brokers,
        kept=USAGE_RATED.retention.days,
        wal_limit=_bytes(WAL_A_SECOND),
        cores_limit=CORES_A_DATABASE,
        one_database=f"{one_database():,.0f}",
        standstill=f"{m.standstill:g}",
        target=scaling.TARGET_SECONDS,
        share=f"{scaling.SHARE:.0%}",
        window=scaling.RATE_SECONDS,
        thresholds=_thresholds(),
        played=_played(),
    )


def one_database() -> float:
    """Generations a second, on the day's average, at which one PostgreSQL for everything ends."""
    m = MEASURED
    return min(WAL_A_SECOND / m.wal, CORES_A_DATABASE * BUSY * 1e6 / m.database_us) / PEAK


def _costs() -> str:
    m = MEASURED
    return _table(
        ("what", "measured"),
        [
            ("CPU of metering, billing, audit", f"{m.metering_us}, {m.billing_us}, {m.audit_us} us"),
            ("CPU of Kafka, PostgreSQL (all databases)", f"{m.kafka_us}, {m.database_us} us"),
            ("WAL, all databases", f"{m.wal:,.0f} B"),
            ("on `gateway.generations`, on `mesh.usage-rated`, compressed", f"{m.generation:,.0f}, {m.rated:,.0f} B"),
            (
                "in metering's database (log row, `seen`, sums), in billing's",
                f"{m.metering_stored:,.0f}, {m.billing_stored:,.0f} B",
            ),
            ("a group stands still when a pod joins or leaves", f"{m.standstill:g} s"),
            ("a pod's start to its joining", f"{m.startup:g} s"),
        ],
    )


def _sizes() -> str:
    sizes = [size(rate) for rate in RATES]
    days = policy().request_log_default_days
    lines: list[tuple[str, Callable[[Size], object]]] = [
        ("peak/s", lambda s: f"{s.peak:,.0f}"),
        ("metering pods", lambda s: s.metering_pods),
        ("billing pods", lambda s: s.billing_pods),
        ("partitions of `gateway.generations`", lambda s: s.partitions),
        ("partitions of `mesh.usage-rated`", lambda s: s.rated_partitions),
        ("brokers (3 copies of each record)", lambda s: s.brokers),
        ("on the brokers at worst, a copy", lambda s: _bytes(s.topic_bytes)),
        ("WAL a second at the peak", lambda s: _bytes(s.wal)),
        ("PostgreSQL cores, all databases", lambda s: s.database_cores),
        ("databases of metering", lambda s: s.shards),
        (f"request log, {days} days", lambda s: _bytes(s.log_bytes)),
        ("ledger, a year", lambda s: _bytes(s.ledger_bytes)),
    ]
    head = ("generations/s", *(f"{s.rate:,}" for s in sizes))
    return _table(head, [(title, *(of(s) for s in sizes)) for title, of in lines])


def _thresholds() -> str:
    rows = []
    for service in rights.services().values():
        topic = rights.scales_on(service)
        if topic is not None:
            pods = f"{footprint(service).replicas} to {footprint(service).most}"
            load = f"{scaling.load_threshold(service, topic):g} s/s"
            rows.append((service.name, f"`{topic.name}`", pods, f"{scaling.threshold(service):,}", load))
    return _table(("service", "topic", "pods", "backlog of a pod", "load of a pod"), rows)


def _played() -> str:
    """What the rules do with a few courses of load."""
    (scaled,) = (doc for doc in scaling.scaled(rights.services().values()) if doc["metadata"]["name"] == "metering")
    speed = footprint(rights.services()["metering"]).per_second
    group = Group(speed=lambda pods: float(speed * pods), standstill=MEASURED.standstill, startup=MEASURED.startup)
    courses = {
        "a steady 30,000/s, an hour": [30_000.0] * 3600,
        "from 10,000/s to 62,000/s, for half an hour, then 5,000/s": [10_000.0] * 600
        + [62_000.0] * 1800
        + [5_000.0] * 3600,
        "bursts of 50,000/s for 20 s every two minutes over 10,000/s, an hour": ([50_000.0] * 20 + [10_000.0] * 100)
        * 30,
        "an outage of the database for five minutes at 20,000/s (6,000,000 wait)": [6_000_000.0] + [20_000.0] * 3599,
    }
    rows = []
    for title, arrivals in courses.items():
        course = play(arrivals, Scaler.of(scaled, speed), group)
        rows.append(
            (title, f"{min(course.pods)} to {max(course.pods)}", course.steps, f"{course.stood_still:g} s",
             f"{course.age_at(0.5):g} s", f"{course.age_at(0.99):g} s", f"{max(course.age):g} s")
        )  # fmt: skip
    return _table(("load", "pods", "steps", "stood still", "age p50", "p99", "highest"), rows)
