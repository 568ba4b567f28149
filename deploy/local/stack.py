"""The whole stack: Kafka, PostgreSQL, a mail server (or yours), databases, topics, and every room as a process; and on
request what observes them.

    async with Stack(home) as stack:    # starts everything, stops it at the end
        stack.settings                  # what any client is told: STEWARD_KAFKA_BOOTSTRAP_SERVERS, ...
        await stack.kafka.kill()        # fault tests stop, kill and start kafka, postgres and rooms

Tests that run services in their own process use `start_servers()` and `stop()`.
"""

from __future__ import annotations

import asyncio
import fcntl
import os
import secrets
import shutil
import signal
import tempfile
from collections.abc import Awaitable, Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Protocol, Self, TypeVar

from deploy.local import env, state
from deploy.local.databases import provision
from deploy.local.errors import LocalError, LocalRefusal
from deploy.local.kafka import KafkaNode
from deploy.local.mail import NOTE as MAIL_NOTE
from deploy.local.mail import MailSink
from deploy.local.observers import Prometheus, TracesSink
from deploy.local.ports import free_port, is_free
from deploy.local.postgres import PostgresServer
from deploy.local.room import DRAIN_SECONDS, SERVE, Room, room_environment
from deploy.rooms import ROOMS
from shared.privacy.certificate import new_signing_key, public_pem, signing_key
from shared.privacy.vault import MasterKeys

if TYPE_CHECKING:
    from rich.console import Console

    from deploy.local.process import Child

KAFKA_SERVERS = "STEWARD_KAFKA_BOOTSTRAP_SERVERS"
POSTGRES_URL = "STEWARD_POSTGRES_URL"
SMTP_URL = "STEWARD_SMTP_URL"
MAIL_FROM = "STEWARD_MAIL_FROM"
LOCAL_SENDER = "steward@localhost"
# Mails are sent by this room alone: without it nobody needs a mail server.
_SENDS_MAIL = "notifications"
# People fetch files from this room alone, on a port of their own.
_SERVES_FILES = "retention"
_KAFKA_SECURITY = tuple(
    f"STEWARD_KAFKA_{name}"
    for name in (
        "SECURITY_PROTOCOL",
        "SASL_MECHANISM",
        "SASL_USERNAME",
        "SASL_PASSWORD",
        "SSL_CAFILE",
        "REPLICATION",
    )
)
# Notes of our own servers: without one the server named in the env file is not ours.
_OWN_NOTES: Mapping[str, str] = {
    KAFKA_SERVERS: "kafka/node.json",
    POSTGRES_URL: "postgres/server.json",
    SMTP_URL: f"mail/{MAIL_NOTE}",
}

Say = Callable[[str], None]


class Part(Protocol):
    """What the stack starts and the supervisor watches: Kafka, PostgreSQL, the mail sink, an observer, a room."""

    @property
    def name(self) -> str: ...
    @property
    def log(self) -> Path: ...
    @property
    def port(self) -> int: ...
    @property
    def url(self) -> str: ...
    @property
    def child(self) -> Child | None: ...
    @property
    def running(self) -> bool: ...
    @property
    def stopping(self) -> bool: ...
    async def start(self) -> None: ...


class Stack:
    """One stack in one folder. Not started twice; `stop` is always allowed. `owns_home`: it holds the folder.

    `use_existing`: servers named in the environment are used instead of our own. `fast_start` trades Kafka's
    throughput for a quick start. `throw_away`: everything is deleted at the end, and the processes end with
    this one. `settings` are added to the env file and reach every service. `take_over` gives roles of an
    existing server that belong to another stack new passwords. `observe`: beside it a Prometheus, and a receiver to
    which every room sends its spans.
    """

    def __init__(
        self,
        home: Path,
        *,
        environ: Mapping[str, str] = os.environ,
        rooms: Sequence[str] = ROOMS,
        settings: Mapping[str, str] | None = None,
        kafka_settings: Mapping[str, str] | None = None,
        postgres_settings: Mapping[str, str] | None = None,
        use_existing: bool = True,
        fast_start: bool = False,
        throw_away: bool = False,
        take_over: bool = False,
        observe: bool = False,
        serve: Sequence[str] = SERVE,
        say: Say | None = None,
        console: Console | None = None,
    ) -> None:
        self.home = home.absolute()
        self.settings: dict[str, str] = {}
        self.kafka: KafkaNode | None = None
        self.postgres: PostgresServer | None = None
        self.mail: MailSink | None = None
        self.traces: TracesSink | None = None
        self.prometheus: Prometheus | None = None
        self.rooms: dict[str, Room] = {}
        self._environ = dict(environ)
        self._room_names = tuple(rooms)
        self._extra = dict(settings or {})
        self._throw_away = throw_away
        self._take_over = take_over
        self._serve = tuple(serve)
        self.say: Say = say or (lambda text: None)
        self.owns_home = False
        self._lock: int | None = None
        logs = self.home / "logs"
        if not (use_existing and self._given(KAFKA_SERVERS)):
            self.kafka = KafkaNode(
                self.home / "kafka",
                log=logs / "kafka.log",
                fast_start=fast_start,
                settings=kafka_settings,
                die_with_parent=throw_away,
                console=console,
            )
        if not (use_existing and self._given(POSTGRES_URL)):
            self.postgres = PostgresServer(
                self.home / "postgres",
                log=logs / "postgres.log",
                settings=postgres_settings,
                lasting=not throw_away,
                die_with_parent=throw_away,
            )
        if _SENDS_MAIL in self._room_names and not (use_existing and self._given(SMTP_URL)):
            self.mail = MailSink(self.home / "mail", log=logs / "mail.log", die_with_parent=throw_away)
        if observe:
            from deploy.observe.alerts import GROUPS
            from deploy.observe.rules import groups_of, to_yaml

            self.traces = TracesSink(self.home / "traces", log=logs / "traces.log", die_with_parent=throw_away)
            self.prometheus = Prometheus(
                self.home / "prometheus",
                log=logs / "prometheus.log",
                rules=to_yaml(groups_of(GROUPS)),
                seconds=1 if fast_start else 5,
                die_with_parent=throw_away,
            )

    @classmethod
    def throw_away(
        cls,
        *,
        rooms: Sequence[str] = ROOMS,
        settings: Mapping[str, str] | None = None,
        postgres_settings: Mapping[str, str] | None = None,
        observe: bool = False,
        serve: Sequence[str] = SERVE,
        fast_start: bool = True,
        within: Path | None = None,
        say: Say | None = None,
        console: Console | None = None,
    ) -> Stack:
        """A stack in a temporary folder (`within` another one) that leaves nothing behind and never touches existing servers."""
        folder = Path(tempfile.mkdtemp(prefix="steward-", dir=within))
        # As root the database runs under another user, which must get through (and sees no names).
        folder.chmod(0o711 if os.geteuid() == 0 else 0o700)
        return cls(
            folder,
            rooms=rooms,
            settings=settings,
            postgres_settings=postgres_settings,
            use_existing=False,
            fast_start=fast_start,
            throw_away=True,
            observe=observe,
            serve=serve,
            say=say,
            console=console,
        )

    @property
    def parts(self) -> list[Part]:
        """Everything that this stack runs, in the order of its start."""
        servers: list[Part] = [
            part for part in (self.kafka, self.postgres, self.mail, self.traces, self.prometheus) if part is not None
        ]
        return [*servers, *self.rooms.values()]

    @property
    def env_file(self) -> Path:
        """Where the settings are written."""
        return env.env_file(self.home)

    async def start(self) -> None:
        """Servers, databases, topics, rooms; returns when all are ready. A failed start leaves nothing running."""
        try:
            await self.start_servers()
            await self.start_rooms()
        except BaseException:
            await self.stop(grace=5.0)
            raise

    async def start_servers(self) -> None:
        """All but the rooms. Raises LocalError; `stop` cleans up then."""
        env.make_home(self.home)
        (self.home / "logs").mkdir(exist_ok=True, mode=0o700)
        self._take_lock()
        await self._end_leftovers()
        known = env.read(self.env_file)
        own = (("Kafka", self.kafka), ("PostgreSQL", self.postgres), ("a mail sink", self.mail))
        servers = [name for name, part in own if part is not None]
        self.say(f"starting {' and '.join(servers)}" if servers else "looking at the servers that you have")
        updates: dict[str, str | None] = {}
        for found in await _both(self._start_kafka(), self._start_postgres(known), self._start_mail(known)):
            updates |= found
        updates["STEWARD_ENV"] = self._environ.get("STEWARD_ENV") or known.get("STEWARD_ENV") or "local"
        updates |= self._ports(known) | self._extra
        updates["STEWARD_MASTER_KEY_FILE"] = self._master_key()
        updates["STEWARD_SIGNING_KEY_FILE"] = str(self._signing_key())
        (self.home / "blobs").mkdir(exist_ok=True, mode=0o700)
        updates["STEWARD_BLOBS"] = self._environ.get("STEWARD_BLOBS") or str(self.home.resolve() / "blobs")
        merged = env.merge(self.env_file, updates)
        self.settings = merged | {"STEWARD_HOME": str(self.home)}
        await self._start_observers()
        self.say("making the topics")
        await self._make_topics()

    async def start_rooms(self, names: Iterable[str] | None = None) -> None:
        """Starts the named rooms (all), together, and waits until each is ready."""
        wanted = tuple(names) if names is not None else self._room_names
        self.say(f"starting {', '.join(wanted)}")
        for name in wanted:
            self.rooms.setdefault(name, self._room(name))
        await _both(*(self.rooms[name].start() for name in wanted))

    async def stop(self, grace: float = DRAIN_SECONDS) -> None:
        """Rooms first, with `grace` seconds to finish their batches, then Kafka, PostgreSQL and what stands beside."""
        try:
            await asyncio.gather(*(room.stop(grace) for room in self.rooms.values()))
            if self.kafka is not None:
                await self.kafka.stop()
            if self.postgres is not None:
                await self.postgres.stop()
            for part in (self.mail, self.traces, self.prometheus):
                if part is not None:
                    await part.stop()
        finally:
            self._release_lock()
        if self._throw_away:
            if self.postgres is not None:
                self.postgres.remove()
            shutil.rmtree(self.home, ignore_errors=True)

    def hurry(self) -> None:
        """Kills the rooms now: a person has asked twice."""
        for room in self.rooms.values():
            if room.child is not None:
                room.child.send(signal.SIGKILL)

    async def __aenter__(self) -> Self:
        await self.start()
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.stop()

    def _given(self, variable: str) -> bool:
        """Whether the environment names a server that is not the one that this stack itself runs."""
        value = self._environ.get(variable)
        if not value:
            return False
        # A shell that has read this stack's own env file names the stack's own servers.
        return value != env.read(self.env_file).get(variable) or not (self.home / _OWN_NOTES[variable]).exists()

    async def _start_kafka(self) -> dict[str, str | None]:
        if self.kafka is None:
            given = {name: self._environ.get(name) for name in _KAFKA_SECURITY}
            return {KAFKA_SERVERS: self._environ[KAFKA_SERVERS], **given}
        await self.kafka.start()
        unused: dict[str, str | None] = dict.fromkeys(_KAFKA_SECURITY)
        local = {
            "STEWARD_KAFKA_SECURITY_PROTOCOL": "PLAINTEXT",
            "STEWARD_KAFKA_REPLICATION": "1",
            "STEWARD_KAFKA_HURRIED": "1",
        }
        return {**unused, **local, KAFKA_SERVERS: self.kafka.bootstrap_servers}

    async def _start_postgres(self, known: Mapping[str, str]) -> dict[str, str | None]:
        if self.postgres is None:
            admin = self._environ[POSTGRES_URL]
        else:
            await self.postgres.start()
            admin = self.postgres.admin_url
        urls = await provision(
            admin,
            self._room_names,
            known,
            # Nobody else uses a server of our own: roles without a known password are ours, too.
            take_over=self._take_over or self.postgres is not None,
            remember=lambda urls: env.merge(self.env_file, urls),
        )
        return {POSTGRES_URL: admin, **urls}

    async def _start_mail(self, known: Mapping[str, str]) -> dict[str, str | None]:
        if _SENDS_MAIL not in self._room_names:
            return {}
        if self.mail is not None:
            await self.mail.start()
        sender = self._environ.get(MAIL_FROM) or known.get(MAIL_FROM) or LOCAL_SENDER
        return {SMTP_URL: self._environ[SMTP_URL] if self.mail is None else self.mail.url, MAIL_FROM: sender}

    async def _start_observers(self) -> None:
        if self.traces is None or self.prometheus is None:
            return
        self.say("starting Prometheus and a receiver of traces")
        self.prometheus.ports = {name: self._port(name) for name in self._room_names}
        await _both(self.traces.start(), self.prometheus.start())

    def _port(self, room: str) -> int:
        return int(self.settings[f"STEWARD_{room.upper()}_PORT"])

    def _master_key(self) -> str | None:
        """The file with the key that wraps all others; made once. Whoever loses it has shredded what is sealed.

        None when the environment has the key itself. The env file has the file's name alone.
        """
        given = self._environ.get("STEWARD_MASTER_KEY_FILE")
        if given or self._environ.get("STEWARD_MASTER_KEY"):
            return given
        file = self.home / "master.key"
        if not file.exists():
            env.write_private(file, MasterKeys.new(f"local-{secrets.token_hex(3)}") + "\n")
        return str(file)

    def _signing_key(self) -> Path:
        """The file with the key that signs certificates; made once, with what others verify by beside it."""
        given = self._environ.get("STEWARD_SIGNING_KEY_FILE")
        if given:
            return Path(given)
        file = self.home / "signing.pem"
        if not file.exists():
            env.write_private(file, new_signing_key().decode("ascii"))
        (self.home / "certificate.pem").write_bytes(public_pem(signing_key(file.read_bytes())))
        return file

    async def _make_topics(self) -> None:
        from aiokafka.errors import KafkaError

        from shared.mesh.admin import WrongTopic, ensure_topics
        from shared.mesh.settings import KafkaSettings

        kafka = KafkaSettings.from_env(self.settings)
        try:
            await ensure_topics(kafka)
        except WrongTopic as error:
            raise LocalRefusal(str(error)) from error
        except (KafkaError, OSError, TimeoutError) as error:
            raise LocalError(
                f"Kafka at {kafka.bootstrap_servers} cannot be used ({str(error) or type(error).__name__}): "
                f"start it, or correct {KAFKA_SERVERS}; `steward doctor` shows more"
            ) from error

    def _ports(self, known: Mapping[str, str]) -> dict[str, str]:
        """The HTTP ports of each room: those of last time while they are free."""
        ports: dict[str, str] = {}
        taken: set[int] = set()
        variables = [f"STEWARD_{name.upper()}_PORT" for name in self._room_names]
        variables += [f"STEWARD_{name.upper()}_PUBLIC_PORT" for name in self._room_names if name == _SERVES_FILES]
        for variable in variables:
            given = self._environ.get(variable)
            port = int(given or known.get(variable) or 0)
            if not port or port in taken or not is_free(port):
                if given:
                    raise LocalRefusal(f"port {given} is taken: set {variable} to a free one, or leave it out")
                port = free_port(taken)
            taken.add(port)
            ports[variable] = str(port)
        return ports

    def _room(self, name: str) -> Room:
        return Room(
            name,
            port=self._port(name),
            log=self.home / "logs" / f"{name}.log",
            environment=room_environment(name, self._room_names, self.settings, self._environ)
            | ({"STEWARD_LOGS": str(self.home / "logs")} if name == "audit" else {})
            | (self.traces.environment() if self.traces is not None else {}),
            serve=self._serve,
            die_with_parent=self._throw_away,
        )

    def _take_lock(self) -> None:
        handle = os.open(self.home / "lock", os.O_RDWR | os.O_CREAT, 0o600)
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            os.close(handle)
            raise LocalRefusal(
                f"a stack already runs in {self.home}: see `steward status`, stop it with `steward down`"
            ) from None
        self._lock, self.owns_home = handle, True

    def _release_lock(self) -> None:
        if self._lock is not None:
            os.close(self._lock)
            self._lock = None

    async def _end_leftovers(self) -> None:
        """A supervisor that was killed leaves its parts running; they hold the ports and the data."""
        left = state.leftovers(state.read(self.home))
        if left:
            self.say(f"stopping what an earlier stack left running: {', '.join(part.name for part in left)}")
            await state.end_leftovers(left)


_T = TypeVar("_T")


async def _both(*steps: Awaitable[_T]) -> list[_T]:
    """Runs steps together and lets each come to its end before the first failure is raised."""
    results = await asyncio.gather(*steps, return_exceptions=True)
    done: list[_T] = []
    for result in results:
        if isinstance(result, BaseException):
            raise result
        done.append(result)
    return done
