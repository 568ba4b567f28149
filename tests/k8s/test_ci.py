"""What a continuous-integration machine runs: the tests, then the API servers' judgement, whatever the first one says."""

from __future__ import annotations

import os
import subprocess
from pathlib import Path

import pytest

RUN = Path(__file__).parents[2] / ".ci" / "run"


@pytest.mark.parametrize("red", ["nothing", "test", "admission"])
def test_both_are_run_and_either_is_enough_to_fail(tmp_path: Path, red: str) -> None:
    make = tmp_path / "make"
    make.write_text(f'#!/bin/sh\nfor word; do :; done\necho "$word" >> {tmp_path}/asked\n[ "$word" != {red} ]\n')
    make.chmod(0o755)
    path = os.pathsep.join((str(tmp_path), os.environ["PATH"]))
    code = subprocess.run([str(RUN)], env={**os.environ, "PATH": path}, timeout=30, check=False).returncode
    assert (tmp_path / "asked").read_text().split() == ["test", "admission"]
    assert (code == 0) == (red == "nothing")
