"""The one source of time. Everything that needs the time is given a clock; nothing else reads one."""

from __future__ import annotations

import json
import time
from datetime import UTC, datetime
from pathlib import Path
from typing import Protocol


class Clock(Protocol):
    """Tells the time in UTC."""

    def now(self) -> datetime: ...


class SystemClock:
    """The machine's clock."""

    def now(self) -> datetime:
        return datetime.now(UTC)


class FileClock:
    """A test clock shared by processes: a JSON file `{"at": RFC 3339, "rate": 1.0, "set": unix seconds}`.

    The time is `at` plus the real seconds since `set`, times `rate`; rewriting the file moves every reader.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        self._stamp: tuple[int, int] | None = None
        self._at, self._rate, self._set = 0.0, 1.0, 0.0

    def now(self) -> datetime:
        status = self._path.stat()
        if (stamp := (status.st_mtime_ns, status.st_ino)) != self._stamp:
            content = json.loads(self._path.read_text(encoding="utf-8"))
            self._at = datetime.fromisoformat(content["at"]).timestamp()
            self._rate, self._set, self._stamp = float(content["rate"]), float(content["set"]), stamp
        return datetime.fromtimestamp(self._at + (time.time() - self._set) * self._rate, UTC)

    @staticmethod
    def write(path: Path, at: datetime, rate: float = 1.0) -> None:
        """Sets the clock at `path` to `at`, running `rate` times as fast as real time (0 stands still)."""
        content = json.dumps({"at": at.isoformat(), "rate": rate, "set": time.time()})
        beside = path.with_name(path.name + ".new")
        beside.write_text(content, encoding="utf-8")
        beside.replace(path)


def clock_from(setting: str | None, environment: str) -> Clock:
    """The clock that `STEWARD_CLOCK` asks for: none = the machine's, `file:PATH` = a test clock.

    Raises ValueError for a test clock in production: money and deadlines depend on the time.
    """
    if not setting:
        return SystemClock()
    if environment == "production":
        raise ValueError("STEWARD_CLOCK moves time and is refused when STEWARD_ENV=production")
    kind, _, path = setting.partition(":")
    if kind != "file" or not path:
        raise ValueError("STEWARD_CLOCK must be file:PATH")
    return FileClock(Path(path))
