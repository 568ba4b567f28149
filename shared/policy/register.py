"""The promise register joined with what the last run of the tests showed. Pure but for reading promises.toml.

A proof is a run on the code at hand that would have failed if the promise were broken; everything short of that gets
another word. `open` is said only by a run that can know it: one that collected every test.
"""

from __future__ import annotations

import json
import tomllib
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from importlib.resources import files
from typing import Any, Literal, get_args

FIRST_DUE = ("books", "erasure", "rights", "security", "notifications", "insights", "money", "operations")
Outcome = Literal["passed", "failed", "skipped", "not_run"]
OUTCOMES = get_args(Outcome)
State = Literal["proved", "platform", "open", "not_run"]
FORMAT = 1


@dataclass(frozen=True, slots=True)
class Promise:
    """One line of the register. `platform_share`: what the platform has to do for it, where that decides."""

    no: int
    text: str
    first_due: str
    platform_share: str | None = None


@dataclass(frozen=True, slots=True)
class Register:
    """The promises by number, and the parts of the house (`first_due`) that are done."""

    promises: tuple[Promise, ...]
    due: frozenset[str]


@dataclass(frozen=True, slots=True)
class Shown:
    """What one marked test showed when it last ran on the commit of the proof."""

    promises: tuple[int, ...]
    outcome: Outcome
    run_at: str | None = None


@dataclass(frozen=True, slots=True)
class Proof:
    """What the tests showed on one commit. `complete`: one run collected all tests, so no marked one is unknown.

    `commit` is None where no one can tell what the code was; such a proof is never of the commit at hand.
    """

    commit: str | None
    run_at: str
    complete: bool
    tests: Mapping[str, Shown]


@dataclass(frozen=True, slots=True)
class Row:
    """The state of one promise. `tests`, `commit`, `run_at`: which tests said so, on what, when the last of them ran."""

    promise: Promise
    state: State
    tests: tuple[str, ...] = ()
    commit: str | None = None
    run_at: str | None = None

    def as_dict(self) -> dict[str, Any]:
        """For programs."""
        return {
            "no": self.promise.no,
            "state": self.state,
            "tests": list(self.tests),
            "commit": self.commit,
            "run_at": self.run_at,
            "platform_share": self.promise.platform_share,
        }


@lru_cache(maxsize=1)
def register() -> Register:
    """The register of this tree."""
    return parse(files(__package__).joinpath("promises.toml").read_text(encoding="utf-8"))


def parse(text: str) -> Register:
    """A register from TOML. Raises ValueError when numbers are missing or double, or a line is half."""
    raw = tomllib.loads(text)
    promises = tuple(_promise(entry) for entry in raw["promises"])
    numbers = [promise.no for promise in promises]
    if numbers != list(range(1, len(numbers) + 1)):
        raise ValueError("promises.toml: numbers run from 1 without a gap, in order, each once")
    due = frozenset(raw["due"])
    if unknown := due - set(FIRST_DUE):
        raise ValueError(f"promises.toml: due: {', '.join(sorted(unknown))} is not among {', '.join(FIRST_DUE)}")
    return Register(promises, due)


def _promise(entry: Mapping[str, Any]) -> Promise:
    where = f"promises.toml: {entry.get('no')}"
    if unknown := set(entry) - {"no", "text", "first_due", "platform", "platform_share"}:
        raise ValueError(f"{where}: nothing reads {', '.join(sorted(unknown))}")
    if entry["first_due"] not in FIRST_DUE:
        raise ValueError(f"{where}: first_due is not among {', '.join(FIRST_DUE)}")
    if bool(entry.get("platform", False)) != bool(entry.get("platform_share")):
        raise ValueError(f"{where}: platform = true goes with a platform_share, and the other way round")
    return Promise(entry["no"], entry["text"], entry["first_due"], entry.get("platform_share"))


def rows(promises: Iterable[Promise], proof: Proof | None, commit: str | None) -> tuple[Row, ...]:
    """The state of each promise for the code at `commit`."""
    if proof is None:
        return tuple(Row(promise, "not_run") for promise in promises)
    here = commit is not None and proof.commit == commit
    return tuple(_row(promise, proof, here) for promise in promises)


def _row(promise: Promise, proof: Proof, here: bool) -> Row:
    shown = {name: test for name, test in sorted(proof.tests.items()) if promise.no in test.promises}
    state = _state(promise, [test.outcome for test in shown.values()], proof.complete) if here else "not_run"
    if not shown:
        return Row(promise, state)
    last = max((test.run_at for test in shown.values() if test.run_at), default=None)
    return Row(promise, state, tuple(shown), proof.commit, last)


def _state(promise: Promise, outcomes: Sequence[Outcome], complete: bool) -> State:
    """By the worst that is known, then by what is not known, and only then the good news."""
    if any(outcome in ("failed", "skipped") for outcome in outcomes):
        return "open"
    if not complete or any(outcome != "passed" for outcome in outcomes):
        return "not_run"
    if not outcomes:
        return "open"
    return "platform" if promise.platform_share else "proved"


def overdue(known: Register, found: Iterable[Row]) -> tuple[Row, ...]:
    """The rows that have to be proved by now, and are not."""
    return tuple(row for row in found if row.promise.first_due in known.due and row.state not in ("proved", "platform"))


# --- the file --------------------------------------------------------------------------------------------------


def merged(old: Proof | None, new: Proof) -> Proof:
    """What is known after `new`, which may be a run of a few tests only.

    On the same commit the tests are the same, so what each showed last holds until it runs again; a test that `new`
    merely collected changes nothing. What was shown on another commit is worth nothing here, and goes.
    """
    if old is None or old.commit is None or old.commit != new.commit:
        return new
    ran = {name: test for name, test in new.tests.items() if test.outcome != "not_run"}
    return Proof(new.commit, new.run_at, old.complete or new.complete, {**new.tests, **old.tests, **ran})


def dumped(proof: Proof) -> str:
    """The proof as JSON."""
    return json.dumps(
        {
            "format": FORMAT,
            "commit": proof.commit,
            "run_at": proof.run_at,
            "complete": proof.complete,
            "tests": {
                name: {"promises": list(test.promises), "outcome": test.outcome, "run_at": test.run_at}
                for name, test in sorted(proof.tests.items())
            },
        },
        indent=1,
    )


def loaded(text: str) -> Proof | None:
    """The proof in `text`; None when it is not one (cut off, or of another format): then nothing is known."""
    try:
        raw = json.loads(text)
        if raw["format"] != FORMAT:
            return None
        tests = {
            name: Shown(tuple(test["promises"]), test["outcome"], test["run_at"]) for name, test in raw["tests"].items()
        }
        if raw["complete"] not in (True, False) or any(test.outcome not in OUTCOMES for test in tests.values()):
            return None
        return Proof(raw["commit"], raw["run_at"], raw["complete"], tests)
    except (ValueError, KeyError, TypeError, AttributeError):
        return None
