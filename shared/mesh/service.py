"""A service as a declaration: topics to handlers, jobs, tasks, reads. Nothing here runs anything."""

from __future__ import annotations

from collections.abc import AsyncGenerator, Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import date, datetime, timedelta
from pathlib import Path
from typing import Any, NamedTuple, Protocol, TypeAlias

from aiokafka import ConsumerRecord

from shared.contract.topics import TOPICS, Topic
from shared.mesh.store import Connection
from shared.mesh.transaction import Transaction

Record: TypeAlias = ConsumerRecord  # of bytes or None, as they came


class Received(NamedTuple):
    """A decoded event and the record that carried it (topic, partition, offset, timestamp = LogAppendTime in ms)."""

    event: Any
    record: Record


@dataclass(slots=True)
class Batch:
    """The decoded events of one effect transaction, in order per partition.

    `replay`: these offsets were passed before (a rewound cursor), so counters stand still. `erased`: what the filter took
    out of `events`, because it is about somebody who is erased. `erased_subjects`: where the contract wants an erased
    subject's events handled all the same (`book`), whose they are.
    """

    topic: Topic
    events: list[Received]
    replay: bool = False
    erased: list[Received] = field(default_factory=list)
    erased_subjects: frozenset[tuple[str, str]] = frozenset()


@dataclass(slots=True)
class Task:
    """A long piece of work: `payload` says what, `position` how far it got (None at the start)."""

    id: int
    name: str
    cause: str
    payload: Any
    position: Any
    attempts: int


@dataclass(frozen=True, slots=True)
class Done:
    """A task's last chunk is in."""


@dataclass(frozen=True, slots=True)
class Later:
    """A task that has to wait for something outside of it: its next chunk is due in `seconds`, from `position`."""

    position: Any
    seconds: float


@dataclass(frozen=True, slots=True)
class Partitioned:
    """A table partitioned by day (or month) that the runtime keeps supplied with partitions, from `back` days ago to
    `ahead`, and frees of those whose time is over.

    A partition's time is over `keeps` after the end of its last day (UTC). So 0 is for tables partitioned by the day on
    which rows expire: the day has ended, all of them have. None: partitions are never dropped.
    """

    table: str
    ahead: int
    back: int = 1
    monthly: bool = False
    keeps: timedelta | None = None
    # The SQL literal of the instant at which `day` (UTC) starts; the default suits a date column.
    bound: Callable[[date], str] = lambda day: f"'{day}'"

    def spans(self, today: date) -> list[tuple[date, date]]:
        """(first day, first day after it) of each partition that there should be."""
        if not self.monthly:
            days = [today + timedelta(days=n) for n in range(-self.back, self.ahead + 1)]
            return [(day, day + timedelta(days=1)) for day in days]
        spans = []
        first = (today - timedelta(days=self.back)).replace(day=1)
        while first <= today + timedelta(days=self.ahead):
            after = (first + timedelta(days=32)).replace(day=1)
            spans.append((first, after))
            first = after
        return spans


Handler = Callable[[Batch, Transaction], Awaitable[None]]
JobHandler = Callable[[datetime, Transaction], Awaitable[None]]
TaskHandler = Callable[[Task, Transaction], Awaitable[Any]]
CommandHandler = Callable[[Received, Transaction], Awaitable[None]]
ReadHandler = Callable[[Mapping[str, str], Transaction], Awaitable[Any]]


@dataclass(frozen=True, slots=True)
class Served:
    """A file for whoever has the token: `read(start)` gives its `size` bytes from byte `start` on. `name`: what it is called
    where it is saved (letters, digits and . _ - alone)."""

    name: str
    size: int
    read: Callable[[int], AsyncGenerator[bytes, None]]


FileHandler = Callable[[str, Transaction], Awaitable[Served]]
Units = Callable[[Any], Sequence[tuple[str, Any]]]


class Filter(Protocol):
    """Called in every effect transaction before the handler: what of these events may still have effects."""

    async def __call__(self, batch: Batch, tx: Transaction) -> Batch: ...


class Guard(Protocol):
    """Called first in every transaction that makes rows out of what was read: of consumers, jobs and tasks."""

    async def __call__(self, tx: Transaction) -> None: ...


@dataclass(slots=True)
class Consumer:
    """One topic of the contract, and who handles it."""

    topic: Topic
    handler: Handler
    batch: int
    lingers: bool
    parallel: int = 1
    bulk_linger_ms: int = 0
    first: bool = False
    guarded: bool = True


@dataclass(frozen=True, slots=True)
class Footprint:
    """What a service needs where it runs, as measured; requests, limits and scaling in a cluster follow from it.

    `memory_mb`: the most resident memory of one process under its heaviest work (1 MB = 10**6 bytes). `replicas`: processes
    that run always; `most`: beyond which more do not help (partitions, or the database, are the limit). `scales_on`: the
    topic whose backlog asks for more, of which one process handles `per_second` records. `books`: keeps the books, so it is
    the last to make room for others.
    """

    memory_mb: int
    replicas: int = 1
    most: int = 1
    scales_on: Topic | None = None
    per_second: int = 0
    books: bool = False

    def __post_init__(self) -> None:
        if not 0 < self.replicas <= self.most:
            raise ValueError(f"{self.replicas} replicas of at most {self.most}")
        if self.most > self.replicas and (self.scales_on is None or self.per_second <= 0):
            raise ValueError("what scales needs a topic and a speed to scale by")
        if self.scales_on is not None and self.most > self.scales_on.partitions:
            raise ValueError(f"{self.scales_on.name} keeps {self.scales_on.partitions} processes busy, not {self.most}")


@dataclass(frozen=True, slots=True)
class Rights:
    """What a service does beyond reading the topics that it consumes and writing those that the contract gives it.

    `inspects`: topics whose records and settings it reads without a group. `trims`: topics that it cuts, behind the readers
    of each. `audits`: services whose databases it reads with the auditor's login. `egress`: what it reaches outside of the
    cluster (`smtp`, a payment `processor`). `blobs`: it reads or writes the store of copies. `signs`: it has the key that
    signs certificates.
    """

    inspects: tuple[Topic, ...] = ()
    trims: tuple[Topic, ...] = ()
    audits: tuple[str, ...] = ()
    egress: tuple[str, ...] = ()
    blobs: bool = False
    signs: bool = False


@dataclass(slots=True)
class Service:
    """One room of the house. `publishes` is checked against the contract when a record is published."""

    name: str
    migrations: Path
    footprint: Footprint | None = None
    partitioned: tuple[Partitioned, ...] = ()
    rights: Rights = Rights()
    uses_keys: bool = False
    filter: Filter | None = None
    guard: Guard | None = None
    # Schemas that come with what is plugged in: (name, folder), applied before the service's own.
    schemas: tuple[tuple[str, Path], ...] = ()
    # Opens what the handlers need once, before anything is consumed (key ring, price book, ...).
    on_start: Callable[[Any], Awaitable[None]] | None = None
    # When the topics that are read first have been read to their end, before any other record is handled.
    on_caught_up: Callable[[Any], Awaitable[None]] | None = None
    # Extra gauges, refreshed every few seconds: reads the database, sets metrics.
    on_observe: Callable[[Connection, datetime], Awaitable[None]] | None = None
    # How much work waits in the service's own tables (beside outbox and tasks).
    on_idle: Callable[[Connection], Awaitable[int]] | None = None
    # With the owner's role, after each sweep of partitions: ends what is over by a rule of the service's own. Gives the names
    # of what somebody reads and that has to wait.
    on_sweep: Callable[[Connection, datetime], Awaitable[list[str]]] | None = None
    consumers: list[Consumer] = field(default_factory=list)
    jobs: dict[str, tuple[timedelta, JobHandler]] = field(default_factory=dict)
    tasks: dict[str, TaskHandler] = field(default_factory=dict)
    unguarded: set[str] = field(default_factory=set)
    read_handlers: dict[str, ReadHandler] = field(default_factory=dict)
    file_handlers: dict[str, FileHandler] = field(default_factory=dict)
    commands: dict[str, CommandHandler] = field(default_factory=dict)

    @property
    def topics(self) -> tuple[Topic, ...]:
        """Every topic that this service has to do with."""
        rights = (*self.rights.inspects, *self.rights.trims)
        return tuple(t for t in TOPICS if self.name in t.readers or self.name in t.writers or t in rights)

    def consumes(
        self,
        topic: Topic,
        *,
        batch: int = 5_000,
        lingers: bool = False,
        parallel: int = 1,
        bulk_linger_ms: int = 0,
        first: bool = False,
        guarded: bool = True,
    ) -> Callable[[Handler], Handler]:
        """The decorated handler reads `topic`, up to `batch` records at a time.

        `lingers`: the broker gathers records for some milliseconds (a setting) before it answers, since small batches
        cost nearly as much as large ones; for topics that are never quiet.
        `parallel`: full batches of different partitions that may be under way at once; order per partition holds.
        `bulk_linger_ms`: how long to wait for more after records so large that their writer must be working off a
        backlog, and nobody waits for the next one.
        `first`: the topic is read to its end before the service handles a record of any other.
        `guarded`: its transactions begin with the service's guard.
        Raises ValueError if the contract does not let this service read the topic.
        """
        if self.name not in topic.readers:
            raise ValueError(f"the contract does not let {self.name} read {topic.name}")

        def register(handler: Handler) -> Handler:
            self.consumers.append(Consumer(topic, handler, batch, lingers, parallel, bulk_linger_ms, first, guarded))
            return handler

        return register

    def job(self, name: str, *, every: timedelta) -> Callable[[JobHandler], JobHandler]:
        """The decorated handler runs once per slot of length `every`, whatever the number of replicas."""

        def register(handler: JobHandler) -> JobHandler:
            self.jobs[name] = (every, handler)
            return handler

        return register

    def task(self, name: str, *, guarded: bool = True) -> Callable[[TaskHandler], TaskHandler]:
        """The decorated handler does one chunk of a task and returns its new position, `Later(...)`, or `Done()`.

        `guarded=False`: it makes no rows out of what was read, and may wait for others while its transaction is open.
        """

        def register(handler: TaskHandler) -> TaskHandler:
            self.tasks[name] = handler
            if not guarded:
                self.unguarded.add(name)
            return handler

        return register

    def command(self, action: str) -> Callable[[CommandHandler], CommandHandler]:
        """The decorated handler does what an operator asks for with `action`; it is given the command and its record."""

        def register(handler: CommandHandler) -> CommandHandler:
            self.commands[action] = handler
            return handler

        return register

    def reads(self, name: str) -> Callable[[ReadHandler], ReadHandler]:
        """The decorated handler answers `GET /reads/<name>`; actor, role and reason of the caller are logged."""

        def register(handler: ReadHandler) -> ReadHandler:
            self.read_handlers[name] = handler
            return handler

        return register

    def serves(self, name: str) -> Callable[[FileHandler], FileHandler]:
        """The decorated handler answers `GET /<name>/<token>` with a file, on the service's public port.

        The token is the right to it: nobody is asked who they are, and it stands in no log. The handler decides in a
        transaction; the bytes go out after it. Raises `NotFound` for a token that is none, `NotKept` for what has ended.
        """

        def register(handler: FileHandler) -> FileHandler:
            self.file_handlers[name] = handler
            return handler

        return register
