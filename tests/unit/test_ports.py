"""Ports are given once, whoever asks."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from deploy.local import ports

_OTHER = """
import sys
from deploy.local import ports
ports._FIRST, ports._LAST = int(sys.argv[1]), int(sys.argv[2])
try:
    print(ports.free_port(), flush=True)
except OSError:
    print("none", flush=True)
sys.stdin.read()
"""


def _other(first: int, last: int) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-c", _OTHER, str(first), str(last)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        cwd=Path(__file__).resolve().parents[2],
    )


def test_no_process_is_given_a_port_that_another_one_has(monkeypatch: pytest.MonkeyPatch) -> None:
    mine = ports.free_port()
    monkeypatch.setattr(ports, "_FIRST", mine)
    monkeypatch.setattr(ports, "_LAST", mine + 1)
    with pytest.raises(OSError, match="no free port"):
        ports.free_port()
    with _other(mine, mine + 1) as other:
        said, _ = other.communicate()
    assert said.strip() == "none", "nobody listens there yet, but it was given"


def test_a_port_comes_back_when_its_process_has_ended(monkeypatch: pytest.MonkeyPatch) -> None:
    first = ports.free_port()
    monkeypatch.setattr(ports, "_FIRST", first)
    monkeypatch.setattr(ports, "_LAST", first + 8)
    with _other(first, first + 8) as other:
        assert other.stdout is not None
        theirs = int(other.stdout.readline())
        monkeypatch.setattr(ports, "_FIRST", theirs)
        monkeypatch.setattr(ports, "_LAST", theirs + 1)
        with pytest.raises(OSError, match="no free port"):
            ports.free_port()
        other.kill()
    assert ports.free_port() == theirs
