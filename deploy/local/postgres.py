"""One PostgreSQL server on 127.0.0.1, with an initdb and a data folder of our own.

    server = PostgresServer(home / "postgres", log=home / "logs" / "postgres.log")
    await server.start()              # returns when the administrator can connect
    await server.stop("immediate")    # or "fast", "smart", kill(); start() again uses the same port and data

It keeps what it promises: fsync and synchronous_commit stay on. It listens on TCP only, for passwords
(scram) only.
"""

from __future__ import annotations

import asyncio
import fcntl
import json
import os
import secrets
import shutil
import signal
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Literal
from urllib.parse import quote

import asyncpg

from deploy.local.cache import cache_folder
from deploy.local.env import write_private
from deploy.local.errors import LocalError
from deploy.local.ports import HOST, free_port, is_free
from deploy.local.postgres_binaries import Account, Binaries, find_binaries, reachable, server_account
from deploy.local.process import Child, run
from deploy.local.served import Served

NAME = "postgres"
ADMIN = "steward_admin"
StopMode = Literal["fast", "immediate", "smart"]

_SIGNALS: Mapping[StopMode, signal.Signals] = {
    "fast": signal.SIGINT,
    "immediate": signal.SIGQUIT,
    "smart": signal.SIGTERM,
}
_STOP_SECONDS = 30.0
_POLL_SECONDS = 0.03
# After a SIGKILL the old backends take a moment to notice; until then a new server is refused the shared
# memory.
_STILL_THERE = "pre-existing shared memory block"

# Two cores and a shared machine: memory for one busy database, WAL enough that checkpoints do not set the
# pace.
_SETTINGS: Mapping[str, str] = {
    "listen_addresses": HOST,
    "unix_socket_directories": "",
    "max_connections": "200",
    "max_locks_per_transaction": "128",
    "shared_buffers": "512MB",
    "effective_cache_size": "2GB",
    "work_mem": "32MB",
    "maintenance_work_mem": "256MB",
    "temp_buffers": "32MB",
    "fsync": "on",
    "synchronous_commit": "on",
    "full_page_writes": "on",
    "max_wal_size": "4GB",
    "min_wal_size": "512MB",
    "checkpoint_timeout": "15min",
    "checkpoint_completion_target": "0.9",
    "random_page_cost": "1.1",
    "jit": "off",
    "timezone": "UTC",
    "log_timezone": "UTC",
    "log_line_prefix": "%m [%p] %q%u@%d ",
    "log_lock_waits": "on",
    # Without the detail of an error, which is the row that is refused.
    "log_error_verbosity": "terse",
    # A frozen consumer must not hold its partition's row for ever, and a query whose client is gone ends.
    "idle_in_transaction_session_timeout": "10s",
    "client_connection_check_interval": "2s",
    "tcp_keepalives_idle": "30",
    "tcp_keepalives_interval": "10",
    "tcp_keepalives_count": "3",
    "password_encryption": "scram-sha-256",
}


class PostgresServer(Served):
    """A server whose notes are in `folder`, and whose data are too if the user it runs under can reach that.

    Port, administrator's password and place of the data are chosen once and kept, also by a later object on
    this folder. `settings` override ours. `lasting` = False lets the data live in the system's folder for
    temporary files.
    """

    name = NAME

    def __init__(
        self,
        folder: Path,
        *,
        log: Path,
        port: int | None = None,
        settings: Mapping[str, str] | None = None,
        lasting: bool = True,
        die_with_parent: bool = False,
    ) -> None:
        super().__init__()
        self.folder = folder
        self.log = log
        self._port = port
        self._settings = dict(settings or {})
        self._lasting = lasting
        self._die_with_parent = die_with_parent
        self._account: Account | None = None
        self._binaries: Binaries | None = None
        self._place: Path | None = None
        self._password = ""
        self._held: list[int] = []
        self._wal_compression = "off"

    @property
    def port(self) -> int:
        """The server's port; known once started."""
        if not self._port:
            raise LocalError("PostgreSQL has not been started: it has no port yet")
        return self._port

    @property
    def admin_url(self) -> str:
        """The administrator's URL, with its password."""
        return f"postgresql://{ADMIN}:{quote(self._password, safe='')}@{HOST}:{self.port}/postgres"

    @property
    def url(self) -> str:
        """Where it is, for people."""
        return f"postgresql://{HOST}:{self.port}"

    @property
    def data(self) -> Path:
        """The data folder; known once started."""
        if self._place is None:
            raise LocalError("PostgreSQL has not been started: its data folder is not known yet")
        return self._place / "data"

    @property
    def version(self) -> str:
        """The server's version; known once started."""
        return self._binaries.version if self._binaries is not None else ""

    async def start(self, timeout: float = 60.0) -> None:
        """Starts the server and waits until the administrator can connect. Raises LocalError."""
        if self.running:
            return
        self.stopping = False
        if self._binaries is None:
            await asyncio.to_thread(self._prepare)
        self._hold()
        try:
            async with asyncio.timeout(timeout):
                await self._answer()
        except BaseException as error:
            if self._child is not None:
                await self._child.stop(signal.SIGQUIT, grace=5.0)
            if isinstance(error, TimeoutError):
                raise LocalError(f"PostgreSQL gave no answer within {timeout:.0f} s: see {self.log}") from None
            raise

    async def stop(self, mode: StopMode = "fast", grace: float = _STOP_SECONDS) -> None:
        """Stops it: `fast` ends sessions and writes a checkpoint, `immediate` is as good as a crash."""
        self.stopping = True
        if self._child is None:
            return
        self._child.send(_SIGNALS[mode])
        try:
            async with asyncio.timeout(grace):
                await self._child.wait()
        except TimeoutError:
            await self._child.stop(signal.SIGQUIT, grace=5.0)
        self._release()

    async def kill(self) -> None:
        """SIGKILL of the server process; its backends end as soon as they notice."""
        await super().kill()
        self._release()

    async def restart(self, mode: StopMode = "fast") -> None:
        """Stop and start."""
        await self.stop(mode)
        await self.start()

    def remove(self) -> None:
        """Deletes data and notes of a server that is not running."""
        if self.running:
            raise LocalError("PostgreSQL still runs: stop it first")
        if self._place is not None and self._place != self.folder:
            shutil.rmtree(self._place, ignore_errors=True)
        shutil.rmtree(self.folder, ignore_errors=True)

    @property
    def _owner(self) -> tuple[int, int] | None:
        return self._account.owner if self._account is not None else None

    def _prepare(self) -> None:
        """Programs, account, place, port, password and, the first time, the data folder."""
        self.folder.mkdir(parents=True, exist_ok=True, mode=0o700)
        self._account = server_account()
        binaries = reachable(find_binaries(), self._account, cache_folder())
        note = self.folder / "server.json"
        known = json.loads(note.read_text(encoding="utf-8")) if note.exists() else {}
        wanted = self._port or known.get("port")
        self._port = wanted if wanted and is_free(wanted) else free_port()
        self._password = known.get("password") or secrets.token_urlsafe(24)
        self._place = self._find_place(known.get("place"))
        noted = {"port": self._port, "password": self._password, "place": str(self._place)}
        write_private(note, json.dumps(noted))
        if not (self.data / "PG_VERSION").exists():
            self._initdb(binaries)
        self._same_major(binaries)
        compressed = [binaries.program("postgres"), "-D", str(self.data), "-c", "wal_compression=lz4"]
        answer = run([*compressed, "-C", "wal_compression"], cwd=self._place, owner=self._owner)
        self._wal_compression = "lz4" if answer.returncode == 0 else "off"
        self._binaries = binaries

    def _find_place(self, known: str | None) -> Path:
        """What holds the data folder: our folder, where the server's user gets in, else one made for it."""
        if known and Path(known, "data", "PG_VERSION").exists():
            return Path(known)
        if self._account is None:
            return self.folder
        if self.folder.stat().st_uid == os.geteuid():
            self.folder.chmod(0o711)  # ours; its parents stay as they are
        if self._account.reaches(self.folder):
            return self.folder
        base = "/var/tmp" if self._lasting and Path("/var/tmp").is_dir() else None  # noqa: S108 -- mkdtemp's parent
        place = Path(tempfile.mkdtemp(prefix="steward-data-", dir=base))
        place.chmod(0o711)
        return place

    def _initdb(self, binaries: Binaries) -> None:
        """Makes the data folder under another name first: half a cluster is never taken for a whole one."""
        data = self.data.with_name("data.new")
        if data.exists():
            shutil.rmtree(data)
        data.mkdir(mode=0o700)
        secret = data.with_name(f"password-{secrets.token_hex(8)}")
        write_private(secret, self._password + "\n")
        if self._owner is not None:
            os.chown(data, *self._owner)
            os.chown(secret, *self._owner)
        locale = (
            ["--locale-provider=builtin", "--builtin-locale=C.UTF-8", "--locale=C"]
            if binaries.major >= 17
            else ["--locale=C"]
        )
        options = ["--auth=scram-sha-256", f"--pwfile={secret}", "--encoding=UTF8", "--data-checksums"]
        options += [*locale, "--no-instructions", *([] if self._lasting else ["--no-sync"])]
        command = [binaries.program("initdb"), f"--pgdata={data}", f"--username={ADMIN}", *options]
        try:
            done = run(command, cwd=data.parent, owner=self._owner, timeout=120, env=_plain_environment())
        finally:
            secret.unlink()
        if done.returncode != 0:
            said = (done.stderr or done.stdout).strip().splitlines()
            raise LocalError(f"initdb failed in {data}: {said[-1] if said else f'code {done.returncode}'}")
        data.rename(self.data)

    def _same_major(self, binaries: Binaries) -> None:
        made_by = (self.data / "PG_VERSION").read_text(encoding="utf-8").strip()
        if made_by != str(binaries.major):
            raise LocalError(
                f"{self.data} was made by PostgreSQL {made_by} and this is {binaries.version}: "
                "move it away (or run pg_upgrade) and start again"
            )

    async def _answer(self) -> None:
        """Until the administrator is in. Raises LocalError when the server has ended instead."""
        self._child = self._spawn()
        while not await self._connects():
            if self._child.returncode is not None:
                if _STILL_THERE not in self._child.tail():
                    raise LocalError(f"PostgreSQL ended while starting, {self.log}:\n{self._child.tail()}")
                self._child = self._spawn()
            await asyncio.sleep(_POLL_SECONDS)

    async def _connects(self) -> bool:
        try:
            connection = await asyncpg.connect(self.admin_url, timeout=5)
        except asyncpg.InvalidPasswordError:
            raise LocalError(f"the password noted in {self.folder} is not that of {self.data}") from None
        except (OSError, TimeoutError, asyncpg.PostgresError, asyncpg.InterfaceError):
            return False  # starting or recovering; the caller asks again until its limit
        await connection.close()
        return True

    def _spawn(self) -> Child:
        assert self._binaries is not None
        settings = {**_SETTINGS, "port": str(self.port), "wal_compression": self._wal_compression}
        settings |= self._settings
        if not Path("/proc").is_dir():
            settings.pop("client_connection_check_interval")  # the system cannot tell
        options = [word for key, value in settings.items() for word in ("-c", f"{key}={value}")]
        return Child.start(
            self.name,
            [self._binaries.program("postgres"), "-D", str(self.data), *options],
            log=self.log,
            env=_plain_environment(),
            cwd=self._place,
            owner=self._owner,
            die_with_parent=signal.SIGINT if self._die_with_parent else None,
        )

    def _hold(self) -> None:
        """Locks our folders among the temporary files: what empties those leaves a locked folder alone."""
        assert self._place is not None and self._binaries is not None
        folders = (self._place if self._place != self.folder else None, self._binaries.copy)
        for folder in folders if not self._held else ():
            if folder is not None:
                handle = os.open(folder, os.O_RDONLY)
                fcntl.flock(handle, fcntl.LOCK_SH)
                self._held.append(handle)

    def _release(self) -> None:
        while self._held:
            os.close(self._held.pop())


def _plain_environment() -> dict[str, str]:
    """Nothing of the caller's: no PG* variable, no locale, no library path may change the server."""
    return {"PATH": os.environ.get("PATH", os.defpath), "LC_ALL": "C", "TZ": "UTC"}
