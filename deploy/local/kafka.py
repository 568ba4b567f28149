"""One Apache Kafka node (KRaft: broker and controller in one process) on 127.0.0.1, without a container.

node = KafkaNode(home / "kafka", log=home / "logs" / "kafka.log")
await node.start()      # returns when a group request is answered: an open port is not enough
await node.stop()       # or kill(), pause(), resume(); start() again uses the same ports and data
"""

from __future__ import annotations

import asyncio
import base64
import hashlib
import json
import os
import secrets
import shutil
import signal
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING

from deploy.local import jars
from deploy.local.cache import cache_folder
from deploy.local.env import write_private
from deploy.local.errors import LocalError
from deploy.local.java import Java, find_java
from deploy.local.kafka_ready import group_request_answered
from deploy.local.ports import HOST, answers, free_port, is_free
from deploy.local.process import Child, run
from deploy.local.served import Served

if TYPE_CHECKING:
    from rich.console import Console

NAME = "kafka"
# A stop waits this long (seconds) before it kills; a clean one takes half a second.
_STOP_SECONDS = 20.0
_POLL_SECONDS = 0.03

_SETTINGS: Mapping[str, str] = {
    "process.roles": "broker,controller",
    "node.id": "1",
    "controller.listener.names": "CONTROLLER",
    "inter.broker.listener.name": "PLAINTEXT",
    "listener.security.protocol.map": "PLAINTEXT:PLAINTEXT,CONTROLLER:PLAINTEXT",
    # Topics are made from the contract, with its partitions and settings, or not at all.
    "auto.create.topics.enable": "false",
    "num.partitions": "1",
    "default.replication.factor": "1",
    "min.insync.replicas": "1",
    # One node holds the internal topics once. Few partitions: fifty would be fifty folders for a handful of
    # groups.
    "offsets.topic.replication.factor": "1",
    "offsets.topic.num.partitions": "4",
    "transaction.state.log.replication.factor": "1",
    "transaction.state.log.min.isr": "1",
    "transaction.state.log.num.partitions": "2",
    "share.coordinator.state.topic.replication.factor": "1",
    "share.coordinator.state.topic.min.isr": "1",
    "share.coordinator.state.topic.num.partitions": "1",
    # A first member does not wait for others, and a test may use a session timeout of a few seconds.
    "group.initial.rebalance.delay.ms": "0",
    "group.min.session.timeout.ms": "2000",
    "log.message.timestamp.type": "LogAppendTime",
    "log.segment.bytes": str(128 * 1024 * 1024),
    # Trimmed and expired segments leave the disk in seconds: whoever looks for what was erased looks here
    # too.
    "log.retention.check.interval.ms": "5000",
    "log.segment.delete.delay.ms": "1000",
    "log.cleaner.backoff.ms": "1000",
    "log.cleaner.dedupe.buffer.size": str(16 * 1024 * 1024),
    # A killed broker may come back only when its old session has ended: not the usual 9 s.
    "broker.session.timeout.ms": "4000",
    "broker.heartbeat.interval.ms": "500",
    "num.network.threads": "2",
    "num.io.threads": "4",
}

_LOGGING = """\
status = warn
rootLogger.level = info
rootLogger.appenderRef.out.ref = out
appender.out.type = Console
appender.out.name = out
appender.out.layout.type = PatternLayout
appender.out.layout.pattern = %d{yyyy-MM-dd'T'HH:mm:ss.SSS'Z'}{UTC} %p %m (%c)%n
"""


class KafkaNode(Served):
    """A broker with its data in `folder`, which also keeps its ports for later objects on that folder.

    `fast_start` trades throughput for a start in about a second (only the first compiler, a class archive
    made at the first stop): for tests and demos. `settings` override server.properties. `die_with_parent`
    ends the broker with this process. `console` shows the first download.
    """

    name = NAME

    def __init__(
        self,
        folder: Path,
        *,
        log: Path,
        port: int | None = None,
        heap: str = "512m",
        fast_start: bool = False,
        settings: Mapping[str, str] | None = None,
        die_with_parent: bool = False,
        console: Console | None = None,
    ) -> None:
        super().__init__()
        self.folder = folder
        self.log = log
        self._port = port
        self._controller_port = 0
        self._heap = heap
        self._fast_start = fast_start
        self._settings = dict(settings or {})
        self._die_with_parent = die_with_parent
        self._console = console
        self._command: list[str] = []
        self._archive: Path | None = None

    @property
    def port(self) -> int:
        """The broker's port; known once started."""
        if not self._port:
            raise LocalError("Kafka has not been started: it has no port yet")
        return self._port

    @property
    def bootstrap_servers(self) -> str:
        """What a client is given."""
        return f"{HOST}:{self.port}"

    @property
    def url(self) -> str:
        """Where it is, for people."""
        return self.bootstrap_servers

    async def start(self, timeout: float = 60.0) -> None:
        """Starts the broker and waits until it serves groups. Raises LocalError with the end of its log."""
        if self.running:
            return
        self.stopping = False
        if not self._command:
            await self._prepare()
        self._child = Child.start(
            self.name,
            [
                *self._command,
                *self._archiving(),
                self._class_path,
                "kafka.Kafka",
                str(self._properties),
            ],
            log=self.log,
            cwd=self.folder,
            die_with_parent=signal.SIGKILL if self._die_with_parent else None,
        )
        try:
            async with asyncio.timeout(timeout):
                await self._ready(self._child)
        except BaseException as error:
            await self._child.stop(signal.SIGKILL)
            if isinstance(error, TimeoutError):
                raise LocalError(f"Kafka gave no answer within {timeout:.0f} s: see {self.log}") from None
            raise

    async def stop(self, grace: float = _STOP_SECONDS) -> None:
        """A clean stop; killed after `grace` seconds."""
        self.stopping = True
        if self._child is None:
            return
        self._child.send(signal.SIGCONT)
        await self._child.stop(signal.SIGTERM, grace)
        self._keep_archive()

    @property
    def _properties(self) -> Path:
        return self.folder / "server.properties"

    @property
    def _class_path(self) -> str:
        return f"@{self.folder / 'class-path'}"

    async def _prepare(self) -> None:
        """Jars, Java, ports, settings and, the first time, the formatted data folder."""
        self.folder.mkdir(parents=True, exist_ok=True, mode=0o700)
        (self.folder / "tmp").mkdir(exist_ok=True)
        cache = cache_folder()
        class_path = await asyncio.to_thread(jars.ensure, cache, self._console)
        java = await asyncio.to_thread(find_java)
        cluster = self._identify()
        (self.folder / "log4j2.properties").write_text(_LOGGING, encoding="utf-8")
        self._properties.write_text(self._server_properties(), encoding="utf-8")
        # In a file: as an argument it would fill every list of processes.
        joined = ":".join(str(path) for path in class_path).replace("\\", "\\\\")
        (self.folder / "class-path").write_text(f'-cp "{joined}"\n', encoding="utf-8")
        self._command = [str(java.path), *self._flags(java, jars.folder(cache))]
        if not (self.folder / "data" / "meta.properties").exists():
            await asyncio.to_thread(self._format, cluster)

    def _identify(self) -> str:
        """Takes ports and cluster id from the folder, or chooses and notes them. Returns the cluster id."""
        note = self.folder / "node.json"
        known = json.loads(note.read_text(encoding="utf-8")) if note.exists() else {}
        taken: set[int] = set()
        self._port = _usable(self._port or known.get("port"), taken)
        self._controller_port = _usable(known.get("controller_port"), taken)
        cluster = str(known.get("cluster") or _cluster_id())
        noted = {"port": self._port, "controller_port": self._controller_port, "cluster": cluster}
        write_private(note, json.dumps(noted))
        return cluster

    def _server_properties(self) -> str:
        controller = f"{HOST}:{self._controller_port}"
        settings = {
            **_SETTINGS,
            "listeners": f"PLAINTEXT://{HOST}:{self._port},CONTROLLER://{controller}",
            "advertised.listeners": f"PLAINTEXT://{HOST}:{self._port}",
            # Static voters, not a voter set kept in the log: the ports may change while the data stays.
            "controller.quorum.voters": f"1@{controller}",
            "log.dirs": str(self.folder / "data"),
            **self._settings,
        }
        return "".join(f"{key}={value}\n" for key, value in settings.items())

    def _flags(self, java: Java, kept: Path) -> list[str]:
        flags = [
            f"-Xmx{self._heap}",
            "-XX:-UsePerfData",
            "-Djava.awt.headless=true",
            f"-Djava.io.tmpdir={self.folder / 'tmp'}",
            f"-Dlog4j2.configurationFile={self.folder / 'log4j2.properties'}",
        ]
        flags += ["-XX:+UseSerialGC", *(["-XX:TieredStopAtLevel=1"] if self._fast_start else [])]
        name = hashlib.sha256(f"{java.path.resolve()} {java.version}".encode()).hexdigest()[:12]
        archive = kept / f"classes-{name}.jsa"
        if archive.exists():
            flags += [f"-XX:SharedArchiveFile={archive}", "-Xlog:cds=off", "-Xlog:cds+dynamic=off"]
        elif self._fast_start:
            self._archive = archive
        return flags

    def _format(self, cluster: str) -> None:
        tool = ["kafka.tools.StorageTool", "format", "--ignore-formatted"]
        java = [*self._command, self._class_path]
        done = run([*java, *tool, "-t", cluster, "-c", str(self._properties)], cwd=self.folder)
        if done.returncode != 0:
            said = (done.stderr or done.stdout).strip().splitlines()
            raise LocalError(f"Kafka's storage could not be made in {self.folder}: {said[-1] if said else '?'}")

    async def _ready(self, child: Child) -> None:
        while not await answers(self.port):
            self._still_there(child)
            await asyncio.sleep(_POLL_SECONDS)
        while not await group_request_answered(self.bootstrap_servers):
            self._still_there(child)
            await asyncio.sleep(_POLL_SECONDS)

    def _still_there(self, child: Child) -> None:
        if child.returncode is not None:
            raise LocalError(f"Kafka ended while starting (code {child.returncode}), {self.log}:\n{child.tail()}")

    def _archiving(self) -> list[str]:
        """Without a class archive the first clean stop writes one (3 s, once): it halves later starts."""
        if self._archive is None or self._archive.exists():
            return []
        return [f"-XX:ArchiveClassesAtExit={self._half_archive}", "-Xlog:cds=off", "-Xlog:cds+dynamic=off"]

    @property
    def _half_archive(self) -> Path:
        return self.folder / "tmp" / "classes.jsa"

    def _keep_archive(self) -> None:
        """Puts the archive in its place, in one step."""
        if self._archive is not None and self._half_archive.exists():
            beside = self._archive.with_name(f".{self._archive.name}.{os.getpid()}")
            shutil.move(self._half_archive, beside)
            beside.replace(self._archive)


def _usable(port: int | None, taken: set[int]) -> int:
    """The port if it can be used, else another."""
    if port and port not in taken and is_free(port):
        taken.add(port)
        return port
    return free_port(taken)


def _cluster_id() -> str:
    """A random id in the form that Kafka uses; one that begins with `-` would read as an option."""
    while (text := base64.urlsafe_b64encode(secrets.token_bytes(16)).decode().rstrip("=")).startswith("-"):
        pass
    return text
