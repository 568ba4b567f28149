"""How large a mesh has to be for so many generations a second: arithmetic from what was measured, each step shown."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from pathlib import Path

from deploy.k8s import database, rights, scaling
from deploy.k8s.lag import Group, Scaler, play
from deploy.k8s.workload import footprint
from shared.contract.topics import GENERATIONS, USAGE_RATED
from shared.policy import policy

RATES = (1_000, 15_000, 100_000, 1_000_000)
"""Generations a second, on the day's average, for which the page is written."""


@dataclass(frozen=True, slots=True)
class Keeper:
    """What one generation costs a service that keeps rows of it: CPU of its processes and of PostgreSQL (microseconds),
    write-ahead log and rows with their indexes (bytes)."""

    us: float
    database_us: float
    wal: float
    stored: float


@dataclass(frozen=True, slots=True)
class Partition:
    """What a partition costs beside the events in it: CPU of its reader and of Kafka while nothing comes (microseconds a second),
    and from a start to its being claimed (milliseconds). `many` of them at `thin` records a second in all: how many times the
    CPU that an event costs on as few as the contract has."""

    reader_us: float
    kafka_us: float
    claim_ms: float
    many: int
    thin: int
    dearer: float


@dataclass(frozen=True, slots=True)
class Measured:
    """`make bench` on two shared cores with everything on one machine: 600,000 generations from the topic to balances, metering
    for itself before (billing is the difference), and partitions. Kafka's share has the warming up of its JVM."""

    metering: Keeper = Keeper(25.4, 7.9, 756.0, 715.0)
    billing: Keeper = Keeper(7.1, 8.0, 397.0, 344.0)
    partition: Partition = Partition(241.0, 100.0, 3.7, 336, 2_000, 1.6)
    audit_us: float = 2.8
    kafka_us: float = 14.6
    one_process: int = 34_600
    one_database: int = 53_400
    generation: float = 135.0
    rated: float = 38.0
    standstill: float = 2.0
    """Seconds for which a group stands still when a pod joins or leaves."""
    startup: float = 7.0
    """Seconds from a pod's start to its joining."""


MEASURED = Measured()
PEAK = 2.0
"""How many times the day's average the busiest minutes carry: assumed. (Within one hour of a real service, of the Azure LLM
inference trace of 2023, the busiest minute carries 1.57 times the hour's mean.)"""
BUSY = 0.6
"""How busy a core, a broker, a database's log or a pod may be at the peak, so that a lost one is made good by the others."""
FULL = 0.8
"""How full a volume may be."""
WAL_A_SECOND = 250e6
"""Bytes a second that a network volume of today's clouds takes for the asking, the write-ahead log's here."""
CORES_A_DATABASE = 32
"""Beyond this a single writer's locks and its log are the limit, not its cores."""
DISK_A_DATABASE = 64e12
"""The largest volume of today's clouds (bytes)."""
BROKER_A_SECOND = 50e6
"""Bytes a second that one broker takes in, copies of others included, and still serves its readers from memory."""
COPIES = 3
"""Of each record on the brokers, and of each database."""
_DAY = 86_400.0


@dataclass(frozen=True, slots=True)
class Ends:
    """Generations a second, on the day's average, at which a service's one database ends, by each of its limits."""

    wal: float
    cores: float
    disk: float

    @property
    def first(self) -> float:
        """The lowest."""
        return min(self.wal, self.cores, self.disk)


def kept(measured: Measured = MEASURED) -> dict[str, tuple[Keeper, int]]:
    """What metering and billing keep, and for how many days: the request log's default, and a year of books."""
    return {"metering": (measured.metering, policy().request_log_default_days), "billing": (measured.billing, 365)}


def ends(keeper: Keeper, days: int) -> Ends:
    """Where one database of a keeper ends that holds its rows for `days`."""
    return Ends(
        wal=WAL_A_SECOND * BUSY / keeper.wal / PEAK,
        cores=CORES_A_DATABASE * BUSY * 1e6 / keeper.database_us / PEAK,
        disk=DISK_A_DATABASE * FULL / (keeper.stored * _DAY * days),
    )


@dataclass(frozen=True, slots=True)
class Held:
    """A service's databases for one rate: how many, and of all of them together the log a second at the peak, the cores, the
    bytes of rows (one copy)."""

    databases: int
    wal: float
    cores: float
    stored: float


@dataclass(frozen=True, slots=True)
class Size:
    """The mesh for `rate` generations a second. `topic_bytes`: on the brokers at worst, one copy."""

    rate: int
    partitions: int
    rated_partitions: int
    metering_pods: int
    billing_pods: int
    audit_cores: float
    partition_cores: float
    brokers: int
    kafka_cores: float
    topic_bytes: float
    held: dict[str, Held] = field(default_factory=dict)

    @property
    def peak(self) -> float:
        return self.rate * PEAK


def size(rate: int, measured: Measured = MEASURED) -> Size:
    """The arithmetic of the page for one rate."""
    peak = rate * PEAK
    needed = max(2, math.ceil(peak / (footprint(rights.services()["metering"]).per_second * BUSY)))
    partitions = max(GENERATIONS.partitions, 12 * math.ceil(2 * needed / 12))
    billing = max(2, math.ceil(peak * measured.billing.us / 1e6 / BUSY))
    bytes_each = measured.generation + measured.rated
    part = measured.partition
    return Size(
        rate=rate,
        partitions=partitions,
        rated_partitions=max(USAGE_RATED.partitions, 6 * math.ceil(billing / 6)),
        # As many as divide the partitions, or some pods would have half as much again as others.
        metering_pods=next(pods for pods in range(needed, partitions + 1) if partitions % pods == 0),
        billing_pods=billing,
        audit_cores=peak * measured.audit_us / 1e6,
        partition_cores=partitions * (part.reader_us + part.kafka_us) / 1e6,
        brokers=max(COPIES, math.ceil(peak * bytes_each * COPIES / (BROKER_A_SECOND * BUSY))),
        kafka_cores=peak * measured.kafka_us / 1e6 / BUSY,
        # A trimmed topic holds about an hour; this is what stands there when nobody trims.
        topic_bytes=rate * bytes_each * GENERATIONS.retention.total_seconds(),
        held={name: _held(rate, keeper, days) for name, (keeper, days) in kept(measured).items()},
    )


def _held(rate: int, keeper: Keeper, days: int) -> Held:
    return Held(
        databases=math.ceil(rate / ends(keeper, days).first),
        wal=rate * PEAK * keeper.wal,
        cores=rate * PEAK * keeper.database_us / 1e6 / BUSY,
        stored=rate * keeper.stored * _DAY * days,
    )


def _bytes(value: float) -> str:
    for unit in ("B", "kB", "MB", "GB", "TB"):
        if value < 1000:
            return f"{_number(value)} {unit}"
        value /= 1000
    return f"{_number(value)} PB"


def _number(value: float) -> str:
    """With the digits that were measured."""
    return f"{value:,.0f}" if value >= 10 else f"{value:.2g}"


def _about(rate: float) -> str:
    """A rate with the two digits that its inputs have."""
    return f"{round(rate, 1 - math.floor(math.log10(rate))):,.0f}"


def _table(head: Iterable[str], rows: Iterable[Iterable[object]]) -> str:
    titles = list(head)
    lines = ["| " + " | ".join(titles) + " |", "|" + "---|" * len(titles)]
    lines += ["| " + " | ".join(str(cell) for cell in row) + " |" for row in rows]
    return "\n".join(lines)


def page() -> str:
    """The page k8s/SIZING.md."""
    m, house, example = MEASURED, rights.services(), size(100_000)
    metering, pod = example.held["metering"], footprint(house["metering"])
    limits = {name: ends(keeper, days) for name, (keeper, days) in kept().items()}
    text = Path(__file__).with_name("sizing.template.md").read_text(encoding="utf-8")
    return text.format(
        one_process=f"{m.one_process:,}",
        one_database=f"{m.one_database:,}",
        two=f"{m.one_database / m.one_process:.1f}",
        costs=_costs(),
        partition=_partition(),
        many=m.partition.many,
        few=GENERATIONS.partitions,
        thin=f"{m.partition.thin:,}",
        dearer=f"{m.partition.dearer:g}",
        peak=f"{PEAK:g}",
        busy=f"{BUSY:.0%}",
        full=f"{FULL:.0%}",
        copies=COPIES,
        sizes=_sizes(),
        rate=f"{example.rate:,}",
        at_peak=f"{example.peak:,.0f}",
        pod=f"{pod.per_second:,}",
        needed=math.ceil(example.peak / (pod.per_second * BUSY)),
        metering_pods=example.metering_pods,
        partitions=example.partitions,
        billing_us=m.billing.us,
        billing_pods=example.billing_pods,
        wal_each=f"{m.metering.wal:,.0f}",
        wal=_bytes(metering.wal),
        database_us=m.metering.database_us,
        database_cores=_number(metering.cores),
        stored_each=f"{m.metering.stored:,.0f}",
        log_days=policy().request_log_default_days,
        stored=_bytes(metering.stored),
        first=_about(limits["metering"].first),
        databases=metering.databases,
        generation=_bytes(m.generation),
        rated=_bytes(m.rated),
        broker=_bytes(BROKER_A_SECOND),
        brokers=example.brokers,
        kept=GENERATIONS.retention.days,
        wal_limit=_bytes(WAL_A_SECOND),
        cores_limit=CORES_A_DATABASE,
        disk_limit=_bytes(DISK_A_DATABASE),
        ends=_ends(limits),
        metering_works=_about(min(limits["metering"].wal, limits["metering"].cores)),
        audit=_about(BUSY * 1e6 / m.audit_us / PEAK),
        volumes=_volumes(),
        declared=_about(pod.most * pod.per_second * BUSY / PEAK),
        standstill=f"{m.standstill:g}",
        target=scaling.TARGET_SECONDS,
        share=f"{scaling.SHARE:.0%}",
        window=scaling.RATE_SECONDS,
        thresholds=_thresholds(),
        played=_played(),
    )


def _costs() -> str:
    m = MEASURED
    return _table(
        ("what", "metering", "billing"),
        [
            ("CPU of its processes", f"{m.metering.us} us", f"{m.billing.us} us"),
            ("CPU of PostgreSQL", f"{m.metering.database_us} us", f"{m.billing.database_us} us"),
            ("write-ahead log", f"{m.metering.wal:,.0f} B", f"{m.billing.wal:,.0f} B"),
            ("rows with their indexes", f"{m.metering.stored:,.0f} B", f"{m.billing.stored:,.0f} B"),
            ("its topic, compressed", f"{m.generation:,.0f} B", f"{m.rated:,.0f} B"),
        ],
    )


def _partition() -> str:
    part = MEASURED.partition
    return _table(
        ("what", "measured"),
        [
            ("CPU while nothing comes: its reader, Kafka", f"{part.reader_us:.0f}, {part.kafka_us:.0f} us a second"),
            ("longer from a start to ready", f"{part.claim_ms:g} ms"),
        ],
    )


def _sizes() -> str:
    sizes = [size(rate) for rate in RATES]
    days = policy().request_log_default_days
    lines: list[tuple[str, Callable[[Size], object]]] = [
        ("peak/s", lambda s: f"{s.peak:,.0f}"),
        ("metering pods", lambda s: s.metering_pods),
        ("billing pods", lambda s: s.billing_pods),
        ("audit, cores of its one process", lambda s: _number(s.audit_cores)),
        ("partitions of `gateway.generations`", lambda s: s.partitions),
        ("cores that they cost by themselves", lambda s: _number(s.partition_cores)),
        ("partitions of `mesh.usage-rated`", lambda s: s.rated_partitions),
        (f"brokers ({COPIES} copies of each record)", lambda s: s.brokers),
        ("Kafka cores, all brokers", lambda s: _number(s.kafka_cores)),
        ("disk of a broker, at worst", lambda s: _bytes(s.topic_bytes * COPIES / s.brokers)),
        ("metering: databases", lambda s: s.held["metering"].databases),
        ("metering: log a second at the peak", lambda s: _bytes(s.held["metering"].wal)),
        ("metering: PostgreSQL cores", lambda s: _number(s.held["metering"].cores)),
        (f"metering: rows of {days} days", lambda s: _bytes(s.held["metering"].stored)),
        ("billing: databases, for each year of books", lambda s: s.held["billing"].databases),
        ("billing: log a second at the peak", lambda s: _bytes(s.held["billing"].wal)),
        ("billing: PostgreSQL cores", lambda s: _number(s.held["billing"].cores)),
        ("billing: rows of a year", lambda s: _bytes(s.held["billing"].stored)),
    ]
    head = ("generations/s", *(f"{s.rate:,}" for s in sizes))
    return _table(head, [(title, *(of(s) for s in sizes)) for title, of in lines])


def _ends(limits: dict[str, Ends]) -> str:
    rows = [(name, *map(_about, (end.wal, end.cores, end.disk))) for name, end in limits.items()]
    return _table(("one database of", "by its log", "by its cores", "by its disk"), rows)


def _volumes() -> str:
    """The volumes that the base declares, and how long they take to fill at the lowest rate of the page."""
    rows = []
    for name, (keeper, days) in kept().items():
        (cluster,) = (doc for doc in database.documents(name, busy=True) if doc["kind"] == "Cluster")
        declared = cluster["spec"]["storage"]["size"]
        room = int(declared.removesuffix("Gi")) * 2**30 * FULL / keeper.stored / _DAY
        rows.append((f"{name}-db", declared, f"{room / RATES[0]:.1f} days", f"{_about(room / days)}/s"))
    return _table(("volume", "declared", f"{FULL:.0%} full at {RATES[0]:,}/s after", "enough for good up to"), rows)


def _thresholds() -> str:
    rows = []
    for service in rights.services().values():
        topic = rights.scales_on(service)
        if topic is not None:
            pods = f"{footprint(service).replicas} to {footprint(service).most}"
            load = f"{scaling.load_threshold(service, topic):g} s/s"
            rows.append((service.name, f"`{topic.name}`", pods, f"{scaling.threshold(service):,} records", load))
    return _table(("service", "topic", "pods", "backlog of a pod", "load of a pod"), rows)


def metering_scaler() -> Scaler:
    """The rules of metering's ScaledObject as it is rendered."""
    (scaled,) = (doc for doc in scaling.scaled(rights.services().values()) if doc["metadata"]["name"] == "metering")
    return Scaler.of(scaled, footprint(rights.services()["metering"]).per_second)


def metering_group() -> Group:
    """Metering's pods as they were measured."""
    speed = footprint(rights.services()["metering"]).per_second
    return Group(speed=lambda pods: float(speed * pods), standstill=MEASURED.standstill, startup=MEASURED.startup)


@dataclass(frozen=True, slots=True)
class Played:
    """A course of load, played: pods, steps, seconds stood still; and how old the oldest waiting event was, of all seconds the
    middle one, the 99th of 100, the highest."""

    pods: str
    steps: int
    stood_still: float
    ages: tuple[float, float, float]


def played(arrivals: list[float], scaler: Scaler | None = None, out: range = range(0)) -> Played:
    """What metering's rules (or others) make of a course of load."""
    course = play(arrivals, scaler or metering_scaler(), metering_group(), out)
    ages = (course.age_at(0.5), course.age_at(0.99), max(course.age))
    return Played(f"{min(course.pods)} to {max(course.pods)}", course.steps, course.stood_still, ages)


REAL_HOUR = Played("2 to 4", 3, 6.0, (0.0, 0.0, 3.0))
"""An hour of a real service (Azure LLM inference trace 2023, conversations, CC BY 4.0; it is not part of this tree, and a test
that has it plays it), with 120,000 a second in its busiest second."""


def _played() -> str:
    courses = {
        "a steady 30,000/s, an hour": played([30_000.0] * 3600),
        "from 10,000/s to 62,000/s, for half an hour, then 5,000/s": played(
            [10_000.0] * 600 + [62_000.0] * 1800 + [5_000.0] * 3600
        ),
        "bursts of 50,000/s for 20 s every two minutes over 10,000/s, an hour": played(
            ([50_000.0] * 20 + [10_000.0] * 100) * 30
        ),
        "20,000/s, with the database away for five minutes": played([20_000.0] * 4200, out=range(600, 900)),
        "an hour of a real service, up to 120,000/s": REAL_HOUR,
    }
    rows = [
        (title, one.pods, one.steps, f"{one.stood_still:g} s", *(f"{age:g} s" for age in one.ages))
        for title, one in courses.items()
    ]
    return _table(("load", "pods", "steps", "stood still", "oldest waiting p50", "p99", "highest"), rows)
