"""The demo as a person runs it: real servers, every service a process, and nothing left behind."""

from __future__ import annotations

import json
import os
import random
import shutil
import signal
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

pytestmark = pytest.mark.timeout(240)

_MARK = "STEWARD_TEST_DEMO"


@pytest.fixture
def folder() -> Iterator[Path]:
    """Where the demo makes its folder; the database, under another user, must get through."""
    made = Path(tempfile.mkdtemp(prefix="steward-test-"))
    made.chmod(0o711)
    yield made
    shutil.rmtree(made)


def start(folder: Path, *arguments: str) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-m", "deploy.cli", "demo", *arguments],
        env=os.environ | {"TMPDIR": str(folder), _MARK: folder.name, "PYTHONUNBUFFERED": "1", "COLUMNS": "100"},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        encoding="utf-8",
    )


def left_running(folder: Path) -> list[str]:
    """Processes that the demo started and that still live: all inherit its environment."""
    mark = f"{_MARK}={folder.name}".encode()
    found = []
    for process in Path("/proc").glob("[0-9]*"):
        try:
            if mark in (process / "environ").read_bytes().split(b"\0"):
                found.append((process / "cmdline").read_text(encoding="utf-8", errors="replace"))
        except OSError:
            continue  # it has ended, or is somebody else's
    return found


def trace(path: Path, rows: int, seed: int) -> Path:
    """A trace of about ten minutes, as the real ones are written: seven digits, CRLF, no last line end."""
    chance = random.Random(seed)
    lines = ["TIMESTAMP,ContextTokens,GeneratedTokens"]
    second = 0.0
    for _ in range(rows):
        second += chance.expovariate(rows / 600)
        minute, rest = divmod(second, 60)
        read, generated = int(chance.lognormvariate(7, 1)), int(chance.lognormvariate(4, 1.5))
        lines.append(f"2023-11-16 18:{int(minute):02}:{rest:010.7f},{read},{generated}")
    path.write_bytes("\r\n".join(lines).encode())
    return path


def test_the_demo_proves_the_books_and_leaves_nothing(folder: Path, tmp_path: Path, seed: int) -> None:
    report = tmp_path / "report.json"
    played = trace(tmp_path / "trace.csv", 1_200, seed)
    demo = start(folder, "--trace", str(played), "--events", "1000", "--seed", str(seed), "--report", str(report))
    output, _ = demo.communicate(timeout=200)
    assert demo.returncode == 0, output[-6000:]
    assert left_running(folder) == []
    assert list(folder.iterdir()) == []

    said = json.loads(report.read_text(encoding="utf-8"))
    account = said["emitter"]["account"]
    assert said["ok"] is True and said["emitter"]["equal"] is True
    assert said["missing"] == 0 and said["balances_equal_replay"] is True
    assert (said["emitted"], said["rated"], said["duplicates"]) == tuple(
        account[name] for name in ("emitted", "rated", "duplicates")
    )
    # A thousand rows, and every kind of fault on top of them.
    assert said["rated"] >= 1_000 and min(account["late"], account["corrections"], account["awaited_price"]) >= 1
    assert set(said["by_reason"]["dead_lettered"]) == set(account["dead_lettered"])
    assert int(said["charges_pico"]) == int(said["recomputed_pico"]) > 0
    for heading in ("Usage by model", "Spend by workspace", "Dead letters", "Quarantine", "The proof", "explained"):
        assert heading in output
    assert "The books balance." in output and str(report) in output


def test_an_interrupted_demo_stops_what_it_has_started(folder: Path) -> None:
    demo = start(folder)
    assert demo.stdout is not None
    for line in demo.stdout:
        if "making the topics" in line:
            break
    demo.send_signal(signal.SIGINT)
    output, _ = demo.communicate(timeout=60)
    assert demo.returncode == 1, output
    assert left_running(folder) == []
    assert list(folder.iterdir()) == []


def test_a_bad_trace_is_refused_before_anything_starts(folder: Path, tmp_path: Path) -> None:
    path = tmp_path / "trace.csv"
    path.write_text("TIMESTAMP,ContextTokens,GeneratedTokens\n2023-11-16 18:17:03.9,1,1\nnever,1,1\n", encoding="utf-8")
    demo = start(folder, "--trace", str(path))
    output, _ = demo.communicate(timeout=60)
    assert demo.returncode == 2
    assert "trace.csv, line 3: TIMESTAMP" in output
    assert list(folder.iterdir()) == []
