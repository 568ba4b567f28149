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
from typing import Any

import pytest

from shared.contract.topics import HOLDERS
from shared.privacy.certificate import trusted_key, verify

pytestmark = pytest.mark.timeout(260)

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
    out = tmp_path / "out"
    demo = start(
        folder,
        "--trace",
        str(played),
        "--events",
        "1000",
        "--seed",
        str(seed),
        "--report",
        str(report),
        "--out",
        str(out),
    )
    output, _ = demo.communicate(timeout=220)
    assert demo.returncode == 0, output[-6000:]
    assert left_running(folder) == []
    assert list(folder.iterdir()) == []

    said = json.loads(report.read_text(encoding="utf-8"))
    account = said["emitter"]["account"]
    assert said["ok"] is True and said["emitter"]["equal"] is True
    assert said["missing"] == 0 and said["balances_equal_replay"] is True
    assert (said["emitted"], said["rated"] + said["erased"], said["duplicates"]) == tuple(
        account[name] for name in ("emitted", "rated", "duplicates")
    )
    assert 0 < account["leaving_late"] <= said["erased"] <= account["leaving"]
    # A thousand rows, and every kind of fault on top of them.
    assert account["rated"] >= 1_000 and min(account["late"], account["corrections"], account["awaited_price"]) >= 1
    assert set(said["by_reason"]["dead_lettered"]) == set(account["dead_lettered"])
    assert int(said["charges_pico"]) == int(said["recomputed_pico"]) > 0
    for heading in ("Usage by model", "Spend by workspace", "Dead letters", "Quarantine", "The proof", "explained"):
        assert heading in output
    assert "The books balance, and who left is forgotten." in output and str(report) in output
    check_the_deletion(said, out, output)


def check_the_deletion(said: dict[str, Any], out: Path, output: str) -> None:
    """Every holder answered, nothing of who left is in any store, the ledger stands, and the certificate says so."""
    deletion = said["deletion"]
    case = deletion["case"]
    assert deletion["holds"] and case["completed_at"] is not None
    assert {one["holder"] for one in case["receipts"]} == set(HOLDERS)
    gone = {
        (one["holder"], t["table"]): t["rows"] for one in case["receipts"] for t in one["body"]["treated"] if t["rows"]
    }
    for place in (
        ("notifications", "address"),
        ("security", "access_row"),
        ("insights", "activity"),
        ("retention", "account"),
    ):
        assert gone[place] >= 1, place
    assert gone["metering", "request_log"] >= 1, "it was a customer before"
    law = [t["retained"] for one in case["receipts"] if one["holder"] == "billing" for t in one["body"]["treated"]]
    assert "legal_obligation" in {each["ground"] for each in law if each is not None}
    assert deletion["sums_before"].keys() <= deletion["sums_after"].keys() != set()
    assert not any((*deletion["sums_before"].values(), *deletion["sums_after"].values()))
    assert {one["verdict"] for one in case["scans"][-1]["stores"]} <= {
        "clean",
        "shredded",
        "retained",
        "held",
        "expiring",
    }
    assert "An account is deleted while its traffic flows" in output and "Please confirm your deletion" in output
    if deletion["certified"]:  # on a slow machine it is on its way when the demo ends
        key = trusted_key((out / "certificate.pem").read_bytes())
        assert verify((out / "certificate.json").read_bytes(), [key]).verdict == deletion["certificate"] == "valid"


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
