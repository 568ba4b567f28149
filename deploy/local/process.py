"""Child processes: started in a session of their own, known by pid *and* start time, ended in order.

A pid alone may have been given to a stranger since; nothing here signals a process whose start time is
another.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import shutil
import signal
import subprocess
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

from deploy.local.errors import LocalError

_POLL_SECONDS = 0.05
_PROC = Path("/proc/self/stat")
_LOG_BYTES_MAX = 20 * 1024 * 1024


@dataclass(frozen=True, slots=True)
class Identity:
    """One process, for good: its pid and when it started (in the kernel's own words)."""

    pid: int
    started: str

    @classmethod
    def of(cls, pid: int) -> Identity | None:
        """Whoever has this pid now; None when nobody has, or when it has ended and waits for its parent."""
        started = _started(pid)
        return None if started is None else cls(pid, started)

    def alive(self) -> bool:
        """Whether exactly this process still runs."""
        return _started(self.pid) == self.started

    def send(self, number: signal.Signals, *, group: bool = False) -> bool:
        """Signals the process, or its process group when it leads one. False when it is gone."""
        handle = _pidfd(self.pid)
        try:
            if not self.alive():
                return False
            if group and os.getpgid(self.pid) == self.pid:
                os.killpg(self.pid, number)
            elif handle is not None:
                signal.pidfd_send_signal(handle, number)
            else:
                os.kill(self.pid, number)
        except ProcessLookupError:
            return False
        finally:
            if handle is not None:
                os.close(handle)
        return True

    async def gone(self, timeout: float) -> bool:
        """Waits up to `timeout` seconds for the process to end; whether it did."""
        end = time.monotonic() + timeout
        while self.alive():
            if time.monotonic() >= end:
                return False
            await asyncio.sleep(_POLL_SECONDS)
        return True


class Child:
    """A process that this one started. Its output goes to a log file."""

    def __init__(self, name: str, process: subprocess.Popen[bytes], log: Path, log_start: int) -> None:
        self.name = name
        self.log = log
        self._log_start = log_start
        self._process = process
        # Between fork and here nobody has waited for the child: its pid cannot belong to anyone else.
        self.identity = Identity.of(process.pid) or Identity(process.pid, "ended")

    @classmethod
    def start(
        cls,
        name: str,
        command: Sequence[str],
        *,
        log: Path,
        env: Mapping[str, str] | None = None,
        cwd: Path | None = None,
        owner: tuple[int, int] | None = None,
        die_with_parent: signal.Signals | None = None,
    ) -> Child:
        """Starts `command` in its own session; `owner` is the (uid, gid) it runs under when not ours.

        `die_with_parent` is the signal it gets when this process dies, where the machine can do that (Linux
        with util-linux): for stacks that nobody would come back for. Raises LocalError when it cannot be
        started.
        """
        if die_with_parent is not None and (setpriv := _setpriv()) is not None:
            command = [setpriv, "--pdeathsig", die_with_parent.name.removeprefix("SIG"), "--", *command]
        _make_room(log)
        try:
            with log.open("ab") as output:
                log_start = output.tell()
                process = subprocess.Popen(
                    command,
                    stdin=subprocess.DEVNULL,
                    stdout=output,
                    stderr=subprocess.STDOUT,
                    env=dict(env) if env is not None else None,
                    cwd=cwd,
                    start_new_session=True,
                    user=owner[0] if owner is not None else None,
                    group=owner[1] if owner is not None else None,
                    extra_groups=[] if owner is not None else None,
                )
        except OSError as error:
            raise LocalError(f"{name} could not be started: {error}") from error
        return cls(name, process, log, log_start)

    @property
    def pid(self) -> int:
        """Its process id."""
        return self._process.pid

    @property
    def returncode(self) -> int | None:
        """None while it runs; negative = the number of the signal that ended it."""
        return self._process.poll()

    def send(self, number: signal.Signals) -> None:
        """Signals its whole process group; nothing when it has ended."""
        if self.returncode is None:
            self.identity.send(number, group=True)

    async def wait(self) -> int:
        """Waits for its end and returns its code."""
        handle = _pidfd(self.pid) if self.returncode is None else None
        if handle is None:
            while (code := self.returncode) is None:
                await asyncio.sleep(_POLL_SECONDS)
            return code
        loop = asyncio.get_running_loop()
        ended = asyncio.Event()
        loop.add_reader(handle, ended.set)
        try:
            await ended.wait()
        finally:
            loop.remove_reader(handle)
            os.close(handle)
        return self._process.wait()

    async def stop(self, number: signal.Signals = signal.SIGTERM, grace: float = 10.0) -> int:
        """Asks it to end with `number`, waits `grace` seconds, then kills its group. Returns its code."""
        self.send(number)
        try:
            async with asyncio.timeout(grace):
                return await self.wait()
        except TimeoutError:
            self.send(signal.SIGKILL)
            return await self.wait()

    def tail(self, lines: int = 12) -> str:
        """The last lines that it wrote to its log."""
        return tail(self.log, lines, self._log_start)


def tail(log: Path, lines: int = 12, start: int = 0) -> str:
    """The last lines of a log file, nothing before the byte `start`; empty when there is none."""
    if not log.exists():
        return ""
    with log.open("rb") as file:
        file.seek(max(start, log.stat().st_size - 16_384))
        return "\n".join(file.read().decode(errors="replace").splitlines()[-lines:])


def run(
    command: Sequence[str],
    *,
    env: Mapping[str, str] | None = None,
    cwd: Path | None = None,
    owner: tuple[int, int] | None = None,
    timeout: float = 60.0,
) -> subprocess.CompletedProcess[str]:
    """Runs a short command to its end, as `owner` (uid, gid) when given. Its code is not checked."""
    return subprocess.run(
        command,
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        errors="replace",
        env=dict(env) if env is not None else None,
        cwd=cwd,
        timeout=timeout,
        check=False,
        user=owner[0] if owner is not None else None,
        group=owner[1] if owner is not None else None,
        extra_groups=[] if owner is not None else None,
    )


def _make_room(log: Path) -> None:
    """A log that has grown large starts anew; the old one stays beside it, once."""
    log.parent.mkdir(parents=True, exist_ok=True)
    if log.exists() and log.stat().st_size > _LOG_BYTES_MAX:
        log.replace(log.with_name(log.name + ".old"))


def _started(pid: int) -> str | None:
    if _PROC.exists():
        with contextlib.suppress(OSError):  # no such process
            # The command's name may hold spaces and brackets: what follows the last bracket is state, then
            # numbers.
            fields = Path(f"/proc/{pid}/stat").read_text(errors="replace").rpartition(")")[2].split()
            return None if fields[0] in "ZX" else f"{_boot()}:{fields[19]}"
        return None
    answer = run(["ps", "-o", "stat=,lstart=", "-p", str(pid)], env={**os.environ, "LC_ALL": "C"})
    words = answer.stdout.split(None, 1)
    return None if len(words) < 2 or words[0].startswith("Z") else words[1].strip()


@lru_cache(maxsize=1)
def _boot() -> str:
    """Start times count from boot: the same number after a reboot is another process."""
    return Path("/proc/sys/kernel/random/boot_id").read_text().strip()


@lru_cache(maxsize=1)
def _setpriv() -> str | None:
    return shutil.which("setpriv")


def _pidfd(pid: int) -> int | None:
    """A handle that stays with the process, where the system has such a thing."""
    if not hasattr(os, "pidfd_open"):
        return None
    try:
        return os.pidfd_open(pid)
    except OSError:  # gone, or an old kernel: the callers look at the pid itself then
        return None
