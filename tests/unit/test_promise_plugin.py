"""What runs of the tests leave behind for `steward promises`, seen on a small tree of its own with real runs of pytest."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from deploy import checkout
from shared.policy.register import loaded, register, rows

ROOT = checkout.root()

UNIT = """
import pytest
@pytest.mark.promise(3)
def test_good(): pass
@pytest.mark.promise(7, 8)
def test_bad(): assert open("flag").read() == "good"
@pytest.mark.promise(8)
@pytest.mark.parametrize("n", [1, 2])
def test_each(n): pass
def test_unmarked(): pass
"""
FAULTS = """
import pytest
pytestmark = pytest.mark.promise(17)
@pytest.fixture
def broken():
    yield
    raise OSError
@pytest.fixture
def never(): raise OSError
def test_passes(): pass
@pytest.mark.promise(18)
def test_teardown(broken): pass
@pytest.mark.promise(43)
def test_setup(never): pass
@pytest.mark.promise(44)
@pytest.mark.skip
def test_skipped(): pass
@pytest.mark.promise(45)
def test_skips_itself(): pytest.skip("not here")
@pytest.mark.promise(46)
@pytest.mark.xfail
def test_expected_to_fail(): assert False
@pytest.mark.promise(47)
@pytest.mark.exhaustive
def test_rough(): pass
"""
SETTINGS = """
[pytest]
addopts = -p no:cacheprovider -p tests.support.promises
markers =
    promise(*numbers): x
    exhaustive: x
testpaths = tests/unit tests/faults
"""


@pytest.fixture
def tree(tmp_path: Path) -> Path:
    """A small project under git, with two files of marked tests."""
    for name, text in {
        "pytest.ini": SETTINGS, "flag": "bad", ".gitignore": "build/\n__pycache__/\n",
        "tests/unit/test_one.py": UNIT, "tests/faults/test_two.py": FAULTS,
    }.items():  # fmt: skip
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(text, encoding="utf-8")
    _git(tmp_path, "init", "-q")
    _commit(tmp_path)
    return tmp_path


def _git(tree: Path, *arguments: str) -> None:
    who = ("-c", "user.name=t", "-c", "user.email=t@example.org", "-c", "commit.gpgsign=false")
    subprocess.run(("git", *who, *arguments), cwd=tree, check=True)


def _commit(tree: Path) -> None:
    _git(tree, "add", "-A")
    _git(tree, "commit", "-qm", "x")


def _run(tree: Path, *arguments: str) -> tuple[int, str]:
    # -c of Python keeps the small tree's `tests` out of the way of ours.
    code = f"import sys; sys.path.insert(0, {str(ROOT)!r}); import pytest; sys.exit(pytest.main(sys.argv[1:]))"
    command = (sys.executable, "-P", "-c", code, "-q", *arguments)
    environment = {**os.environ, "PYTEST_DISABLE_PLUGIN_AUTOLOAD": "1"}
    done = subprocess.run(command, cwd=tree, env=environment, capture_output=True, text=True, timeout=60)
    return done.returncode, done.stdout + done.stderr


def _states(tree: Path) -> dict[int, str]:
    """The state of each promise that is neither open nor not_run for want of tests."""
    path = tree / checkout.PROOF
    known = loaded(path.read_text(encoding="utf-8")) if path.exists() else None
    return {row.promise.no: row.state for row in rows(register().promises, known, checkout.commit(tree))}


def _file(tree: Path) -> dict[str, Any]:
    found: dict[str, Any] = json.loads((tree / checkout.PROOF).read_text(encoding="utf-8"))
    return found


def test_a_whole_run_and_then_parts(tree: Path) -> None:
    code, said = _run(tree, "-k", "not test_rough")
    assert code == 1, said
    states = _states(tree)
    wanted = {3: "proved", 7: "open", 8: "open", 17: "open", 18: "open", 43: "open", 44: "open", 45: "open", 46: "open"}
    assert {no: states[no] for no in wanted} == wanted
    assert states[1] == "open"
    outcomes = {name.partition("::")[2]: test["outcome"] for name, test in _file(tree)["tests"].items()}
    assert outcomes == {
        "test_good": "passed", "test_bad": "failed", "test_each[1]": "passed", "test_each[2]": "passed",
        "test_passes": "passed", "test_teardown": "failed", "test_setup": "failed", "test_skipped": "skipped",
        "test_skips_itself": "skipped", "test_expected_to_fail": "skipped",
    }  # fmt: skip
    # What the usual run leaves out for its length is no test that somebody forgot; when it runs, it counts.
    assert states[47] == "open"
    _run(tree, "-k", "test_rough")
    states = _states(tree)
    assert states[47] == "proved"

    # A part leaves everything else as it was, whether it asks by -k, by file or by name.
    whole = _file(tree)["tests"]
    for part in (("-k", "test_good"), ("tests/unit",), ("tests/unit/test_one.py::test_good",)):
        _run(tree, *part)
        assert _states(tree) == states
        assert {name: test["outcome"] for name, test in _file(tree)["tests"].items()} == {
            name: test["outcome"] for name, test in whole.items()
        }

    # Nothing of it holds for another tree, nor for the next commit.
    (tree / "flag").write_text("good", encoding="utf-8")
    assert set(_states(tree).values()) == {"not_run"}
    _commit(tree)
    assert set(_states(tree).values()) == {"not_run"}

    # On it a part proves nothing until all tests are known.
    _run(tree, "tests/unit/test_one.py")
    states = _states(tree)
    assert set(states.values()) == {"not_run"}
    assert _file(tree)["complete"] is False
    _run(tree, "-m", "promise", "-k", "not test_setup")
    states = _states(tree)
    assert (states[3], states[7], states[8], states[43], states[18]) == (
        "proved", "proved", "proved", "not_run", "open",
    )  # fmt: skip


def test_a_run_by_name_over_every_file_is_no_whole_run(tree: Path) -> None:
    _run(tree, "tests/unit/test_one.py::test_good", "tests/faults/test_two.py::test_passes")
    assert _file(tree)["complete"] is False
    assert set(_states(tree).values()) == {"not_run"}
    _run(tree, "-k", "test_good or test_passes")
    states = _states(tree)
    assert (states[3], states[8], states[17], states[44], states[1]) == (
        "proved",
        "not_run",
        "not_run",
        "not_run",
        "open",
    )


def test_a_run_that_is_cut_off_leaves_what_it_did_not_reach(tree: Path) -> None:
    _run(tree, "-x", "tests/unit", "tests/faults")
    outcomes = {name.partition("::")[2]: test["outcome"] for name, test in _file(tree)["tests"].items()}
    assert outcomes["test_setup"] in ("failed", "not_run")
    assert list(outcomes.values()).count("failed") == 1
    assert "not_run" in outcomes.values()


def test_only_looking_writes_nothing(tree: Path) -> None:
    _run(tree, "--collect-only")
    assert not (tree / checkout.PROOF).exists()


@pytest.mark.parametrize("mark", ["promise()", "promise(0)", "promise(75)", "promise('7')", "promise(True)"])
def test_a_mark_names_promises_of_the_register(tree: Path, mark: str) -> None:
    (tree / "tests" / "unit" / "test_three.py").write_text(
        f"import pytest\n@pytest.mark.{mark}\ndef test_it(): pass\n", encoding="utf-8"
    )
    code, said = _run(tree)
    assert code == 4
    assert "takes numbers of the register" in said
    assert not (tree / checkout.PROOF).exists()
