"""What processes cost, from /proc: CPU time, memory, how busy the machine is. Linux only."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

_TICKS = os.sysconf("SC_CLK_TCK")
_PROC = Path("/proc")


def available() -> bool:
    """Whether this system tells."""
    return (_PROC / "self/stat").exists()


def _stat(pid: int | str) -> list[str]:
    """Fields 3 and on of /proc/PID/stat: the name before them may hold anything."""
    return (_PROC / str(pid) / "stat").read_text(errors="replace").rpartition(")")[2].split()


def cpu_seconds(pid: int) -> float:
    """CPU time of a process, all threads, since its start."""
    fields = _stat(pid)
    return (int(fields[11]) + int(fields[12])) / _TICKS


def family_cpu_seconds(pid: int) -> float:
    """CPU time of a process and its children, those that have ended among them."""
    fields = _stat(pid)
    total = sum(map(int, fields[11:15]))
    for entry in _PROC.iterdir():
        if entry.name.isdigit():
            try:
                fields = _stat(entry.name)
            except OSError:  # ended since; its time goes over to the parent
                continue
            if int(fields[1]) == pid:
                total += int(fields[11]) + int(fields[12])
    return total / _TICKS


def peak_memory_mb(pid: int) -> float:
    """The most resident memory that a process has had (1 MB = 10**6 bytes)."""
    for line in (_PROC / str(pid) / "status").read_text().splitlines():
        if line.startswith("VmHWM:"):
            return int(line.split()[1]) * 1024 / 1e6
    raise LookupError(f"process {pid} has ended")


@dataclass(frozen=True, slots=True)
class Machine:
    """The machine's CPU time so far, all cores, in clock ticks."""

    idle: int
    total: int

    @classmethod
    def now(cls) -> Machine:
        """As of now."""
        # user nice system idle iowait irq softirq steal; guests are part of user.
        times = [int(word) for word in (_PROC / "stat").read_text().split("\n", 1)[0].split()[1:9]]
        return cls(times[3] + times[4], sum(times))

    def busy_since(self, before: Machine) -> float:
        """Share of the machine that was busy since `before`, 0 to 1."""
        total = self.total - before.total
        return 1 - (self.idle - before.idle) / total if total else 0.0


def spent(before: Mapping[str, float], after: Mapping[str, float]) -> dict[str, float]:
    """CPU seconds by process between two readings."""
    return {name: after[name] - seconds for name, seconds in before.items() if name in after}
