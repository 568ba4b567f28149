"""A pytest plugin: what the tests that carry `promise` marks showed goes to build/promises.json, for `steward promises`.

Each run writes, a run of one file too. It cannot turn the file into a falsehood, since what it writes is merged: on the
same commit (and the same uncommitted changes) a test keeps what it showed last until it runs again, and the file says
whether any run on it collected *all* tests. Until one has, nothing is proved and nothing is open: there may be tests
nobody looked at. On another commit the file starts afresh. A run's workers (pytest-xdist) do the same as runs: each has
collected all tests, and adds what it ran. Rejected: to write whole runs only (whoever works on one
promise would never see it), and to overwrite (one file's run would un-prove all others).
"""

from __future__ import annotations

import fcntl
from collections.abc import Iterator, Mapping
from datetime import UTC, datetime
from pathlib import Path

import pytest

from deploy import checkout
from shared.policy.register import Outcome, Proof, Shown, dumped, loaded, merged, register

# Folders whose tests make a run complete, below the root; a folder that is not there asks for nothing.
FOLDERS = ("tests/unit", "tests/integration", "tests/faults")


class Promises:
    """The plugin: one per run."""

    def __init__(self, root: Path) -> None:
        self._root = root
        self._marked: dict[str, tuple[int, ...]] = {}
        self._rough: set[str] = set()
        self._parts: dict[str, dict[str, str]] = {}
        self._ended: dict[str, str] = {}
        self._complete = False
        # What was tested is what was there when the tests were read.
        self._commit = checkout.commit(root)

    @pytest.hookimpl(tryfirst=True)
    def pytest_collection_modifyitems(self, config: pytest.Config, items: list[pytest.Item]) -> None:
        """Sees the items before -k, -m and others take theirs out."""
        known = {promise.no for promise in register().promises}
        for item in items:
            for mark in item.iter_markers("promise"):
                if not mark.args or not all(type(number) is int and number in known for number in mark.args):
                    raise pytest.UsageError(f"{item.nodeid}: promise(n) takes numbers of the register (promises.toml)")
        for item in items:
            numbers = sorted({number for mark in item.iter_markers("promise") for number in mark.args})
            if numbers:
                self._marked[item.nodeid] = tuple(numbers)
            if item.get_closest_marker("exhaustive"):
                self._rough.add(item.nodeid)
        self._complete = self._is_complete(config, items)

    def _is_complete(self, config: pytest.Config, items: list[pytest.Item]) -> bool:
        """Whether no test of ours is unknown to this run: every file gave its tests, and none was asked for by name."""
        by_name = any("::" in argument for argument in config.args)
        if by_name or config.getoption("lf", False):
            return False
        files = {path for folder in FOLDERS for path in (self._root / folder).rglob("test_*.py")}
        return bool(files) and files <= {item.path for item in items}

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        """Notes each part of a marked test: setup, call, teardown."""
        if report.nodeid in self._marked:
            self._parts.setdefault(report.nodeid, {})[report.when] = report.outcome
            self._ended[report.nodeid] = _now()

    @pytest.hookimpl(trylast=True)
    def pytest_sessionfinish(self, session: pytest.Session) -> None:
        """Writes the file in one step."""
        if session.config.getoption("collectonly", False) or not self._marked:
            return
        path = self._root / checkout.PROOF
        path.parent.mkdir(parents=True, exist_ok=True)
        beside = path.with_name(f".{path.name}.new")
        with path.with_name(f".{path.name}.lock").open("w") as lock:
            # The workers of one run end at the same time.
            fcntl.flock(lock, fcntl.LOCK_EX)
            old = loaded(path.read_text(encoding="utf-8")) if path.exists() else None
            beside.write_text(dumped(merged(old, self._proof())), encoding="utf-8")
            beside.replace(path)

    def _proof(self) -> Proof:
        return Proof(self._commit, _now(), self._complete, dict(self._tests()))

    def _tests(self) -> Iterator[tuple[str, Shown]]:
        for name, numbers in self._marked.items():
            outcome = _outcome(self._parts.get(name, {}))
            # Exhaustive tests count when they run: the usual run leaves them out on purpose.
            if outcome != "not_run" or name not in self._rough:
                yield name, Shown(numbers, outcome, self._ended.get(name))


def _outcome(parts: Mapping[str, str]) -> Outcome:
    """A test is as bad as its worst part; a skipped one, or one that is expected to fail, shows nothing, and one that
    was cut off has not been run."""
    if "failed" in parts.values():
        return "failed"
    if "skipped" in parts.values():
        return "skipped"
    return "passed" if {"setup", "call", "teardown"} <= parts.keys() else "not_run"


def _now() -> str:
    return datetime.now(UTC).isoformat(timespec="seconds").replace("+00:00", "Z")


def pytest_configure(config: pytest.Config) -> None:
    """As a plugin on its own (`-p tests.support.promises`), and from conftest.py."""
    if not config.pluginmanager.has_plugin("steward-promises"):
        config.pluginmanager.register(Promises(config.rootpath), "steward-promises")
