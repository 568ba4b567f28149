"""The promise register, and what each state needs: thought through case by case."""

from __future__ import annotations

import json
import subprocess
from collections.abc import Sequence
from pathlib import Path

import pytest
from click.testing import CliRunner

from deploy import checkout
from deploy.cli import main
from shared.policy.register import (
    FIRST_DUE,
    Outcome,
    Promise,
    Proof,
    Row,
    Shown,
    dumped,
    loaded,
    merged,
    overdue,
    parse,
    register,
    rows,
)

HERE = "a" * 40
OURS = Promise(7, "At 0 days no request is logged", "books")
THEIRS = Promise(1, "Passwords", "erasure", "hashes them")
T0, T1, T2 = "2026-11-28T10:00:00Z", "2026-11-28T11:00:00Z", "2026-11-28T12:00:00Z"


def proof(*outcomes: Outcome, commit: str | None = HERE, complete: bool = True) -> Proof:
    """One test of promises 7 and 1 for each outcome, and a passed one of another promise."""
    tests = {f"t{n}": Shown((1, 7), outcome, T0) for n, outcome in enumerate(outcomes)}
    return Proof(commit, T1, complete, tests | {"other": Shown((8,), "passed", T2)})


def test_the_numbers_are_complete_and_unique() -> None:
    known = register()
    assert [promise.no for promise in known.promises] == list(range(1, 75))
    assert {promise.no for promise in known.promises if promise.platform_share} == {1, 25, 37, 61, 63, 69}
    assert all(promise.text for promise in known.promises)
    assert {promise.first_due for promise in known.promises} == set(FIRST_DUE)
    assert known.due >= {"books", "erasure"}
    books = {promise.no for promise in known.promises if promise.first_due == "books"}
    assert books == {3, 7, 8, 17, 18, 43}


GOOD = '{ no = 1, text = "a", first_due = "books" }'


@pytest.mark.parametrize(
    ("entries", "says"),
    [
        ((GOOD, GOOD), "each once"),
        ((GOOD.replace("1", "2"),), "without a gap"),
        ((GOOD, GOOD.replace("1", "3")), "without a gap"),
        ((GOOD.replace("books", "later"),), "first_due is not among"),
        ((GOOD.replace("no", "platform = true, no"),), "goes with a platform_share"),
        ((GOOD.replace("no", 'platform_share = "x", no'),), "goes with a platform_share"),
        ((GOOD.replace("no", 'proof = "x", no'),), "nothing reads proof"),
    ],
)
def test_a_register_that_cannot_be(entries: Sequence[str], says: str) -> None:
    with pytest.raises(ValueError, match=says):
        parse(f'due = ["books"]\npromises = [{", ".join(entries)}]')
    with pytest.raises(ValueError, match="due: later is not among"):
        parse(f'due = ["later"]\npromises = [{GOOD}]')


@pytest.mark.parametrize(
    ("known", "ours", "theirs"),
    [
        # Without a run on this very code nothing is known, neither of the good nor of the bad.
        (None, "not_run", "not_run"),
        (proof("passed", commit="b" * 40), "not_run", "not_run"),
        (proof("failed", commit="b" * 40), "not_run", "not_run"),
        (proof(commit="b" * 40), "not_run", "not_run"),
        (proof("passed", commit=HERE + "+dirty.0123456789ab"), "not_run", "not_run"),
        (proof("passed", commit=None), "not_run", "not_run"),
        # All of them passed.
        (proof("passed"), "proved", "platform"),
        (proof("passed", "passed"), "proved", "platform"),
        # No test.
        (proof(), "open", "open"),
        # One red test, or a skipped one, opens its numbers, whatever the others say.
        (proof("failed"), "open", "open"),
        (proof("skipped"), "open", "open"),
        (proof("passed", "failed"), "open", "open"),
        (proof("skipped", "passed"), "open", "open"),
        (proof("not_run", "failed"), "open", "open"),
        # A test that was not run might be red.
        (proof("not_run"), "not_run", "not_run"),
        (proof("passed", "not_run"), "not_run", "not_run"),
        # A run of some files: there may be tests that it never saw. What it saw red is red all the same.
        (proof("passed", complete=False), "not_run", "not_run"),
        (proof(complete=False), "not_run", "not_run"),
        (proof("not_run", complete=False), "not_run", "not_run"),
        (proof("failed", complete=False), "open", "open"),
        (proof("passed", "skipped", complete=False), "open", "open"),
    ],
)
def test_states(known: Proof | None, ours: str, theirs: str) -> None:
    found = rows([OURS, THEIRS], known, HERE)
    assert [row.state for row in found] == [ours, theirs]
    assert [row.state for row in rows([OURS, THEIRS], known, None)] == ["not_run", "not_run"]


def test_a_row_says_what_it_stands_on() -> None:
    (row,) = rows([THEIRS], proof("passed", "passed"), HERE)
    assert row.as_dict() == {
        "no": 1, "state": "platform", "tests": ["t0", "t1"], "commit": HERE, "run_at": T0, "platform_share": "hashes them",
    }  # fmt: skip
    (row,) = rows([OURS], proof("passed", commit="b" * 40), HERE)
    assert (row.state, row.tests, row.commit) == ("not_run", ("t0",), "b" * 40)
    (row,) = rows([OURS], None, HERE)
    assert row.as_dict() == {
        "no": 7, "state": "not_run", "tests": [], "commit": None, "run_at": None, "platform_share": None,
    }  # fmt: skip


def test_what_is_due_has_to_be_proved() -> None:
    known = parse(f'due = ["books"]\npromises = [{GOOD}]')
    later = Promise(2, "b", "money")
    for row in (Row(OURS, "proved"), Row(OURS, "platform")):
        assert overdue(known, [row, Row(later, "open")]) == ()
    for row in (Row(OURS, "open"), Row(OURS, "not_run")):
        assert overdue(known, [row]) == (row,)


# --- the file ----------------------------------------------------------------------------------------------------


def test_the_file_gives_back_what_was_written() -> None:
    known = proof("passed", "failed", "skipped", "not_run")
    assert loaded(dumped(known)) == known


@pytest.mark.parametrize(
    "text",
    [
        "", "[]", "{}", "7", '{"format": 1}', dumped(proof("passed"))[:-20],
        dumped(proof("passed")).replace('"format": 1', '"format": 2'),
        dumped(proof("passed")).replace('"passed"', '"fine"'),
        dumped(proof("passed")).replace('"complete": true', '"complete": "yes"'),
    ],
)  # fmt: skip
def test_half_a_file_is_none(text: str) -> None:
    assert loaded(text) is None


def test_a_run_of_a_few_tests_changes_what_they_showed_and_nothing_else() -> None:
    whole = Proof(HERE, T0, True, {"a": Shown((1,), "passed", T0), "b": Shown((2,), "failed", T0)})
    part = Proof(HERE, T1, False, {"a": Shown((1,), "not_run"), "b": Shown((2,), "passed", T1)})
    assert merged(whole, part) == Proof(
        HERE, T1, True, {"a": Shown((1,), "passed", T0), "b": Shown((2,), "passed", T1)}
    )
    # The other way round as well: a whole run completes what a part has begun.
    red = Proof(HERE, T0, False, {"b": Shown((2,), "failed", T0)})
    rest = Proof(HERE, T1, True, {"a": Shown((1,), "passed", T1), "b": Shown((2,), "not_run")})
    assert merged(red, rest).tests == {"a": Shown((1,), "passed", T1), "b": Shown((2,), "failed", T0)}
    assert merged(red, rest).complete


@pytest.mark.parametrize("commit", ["b" * 40, HERE + "+dirty.0123456789ab", None])
def test_what_another_commit_showed_is_forgotten(commit: str | None) -> None:
    part = Proof(HERE, T1, False, {"b": Shown((2,), "passed", T1)})
    assert merged(proof("passed", commit=commit), part) == part
    assert merged(None, part) == part
    unknown = Proof(None, T1, False, {})
    assert merged(Proof(None, T0, True, {}), unknown) == unknown


# --- the commit --------------------------------------------------------------------------------------------------


def git(tree: Path, *arguments: str) -> str:
    who = ("-c", "user.name=t", "-c", "user.email=t@example.org", "-c", "commit.gpgsign=false")
    done = subprocess.run(("git", *who, *arguments), cwd=tree, capture_output=True, text=True, check=True)
    return done.stdout.strip()


@pytest.fixture
def tree(tmp_path: Path) -> Path:
    """A work tree with one commit."""
    git(tmp_path, "init", "-q")
    (tmp_path / ".gitignore").write_text("build/\n", encoding="utf-8")
    (tmp_path / "code.py").write_text("one = 1\n", encoding="utf-8")
    git(tmp_path, "add", "-A")
    git(tmp_path, "commit", "-qm", "one")
    return tmp_path


def test_a_commit_names_what_is_in_the_tree(tree: Path) -> None:
    clean = checkout.commit(tree)
    assert clean == git(tree, "rev-parse", "HEAD")
    (tree / "build").mkdir()
    (tree / "build" / "left.txt").write_text("ignored", encoding="utf-8")
    assert checkout.commit(tree) == clean
    seen: list[str | None] = [clean]
    for name, text in (("code.py", "one = 2\n"), ("code.py", "one = 3\n"), ("new.py", "a"), ("new.py", "b")):
        (tree / name).write_text(text, encoding="utf-8")
        seen.append(checkout.commit(tree))
    assert all(commit is not None and commit.startswith(f"{clean}+dirty.") for commit in seen[1:])
    assert len(set(seen)) == 5
    git(tree, "add", "-A")
    assert checkout.commit(tree) == seen[-1]
    git(tree, "commit", "-qm", "two")
    assert checkout.commit(tree) == git(tree, "rev-parse", "HEAD") != clean


def test_no_repository_has_no_commit(tree: Path, tmp_path_factory: pytest.TempPathFactory) -> None:
    assert checkout.commit(tmp_path_factory.mktemp("plain")) is None
    inside = tree / "below"
    inside.mkdir()
    assert checkout.commit(inside) is None


# --- the command -------------------------------------------------------------------------------------------------


def _asked(monkeypatch: pytest.MonkeyPatch, tree: Path, known: Proof | str | None, *options: str) -> tuple[int, str]:
    monkeypatch.setattr(checkout, "root", lambda: tree)
    if known is not None:
        (tree / "build").mkdir(exist_ok=True)
        (tree / checkout.PROOF).write_text(known if isinstance(known, str) else dumped(known), encoding="utf-8")
    answer = CliRunner().invoke(main, ["promises", *options])
    assert answer.exception is None or isinstance(answer.exception, SystemExit)
    return answer.exit_code, answer.stdout


def _whole(commit: str | None, leave_out: frozenset[int] = frozenset()) -> Proof:
    due = {promise.no for promise in register().promises if promise.first_due in register().due}
    return Proof(commit, T1, True, {f"t{no}": Shown((no,), "passed", T0) for no in due - leave_out})


def test_the_command_without_a_file_or_with_another_commits(monkeypatch: pytest.MonkeyPatch, tree: Path) -> None:
    for known in (None, "{", _whole("b" * 40), _whole(None)):
        code, said = _asked(monkeypatch, tree, known, "--json")
        listed = json.loads(said)["promises"]
        assert code == 1
        assert [row["no"] for row in listed] == list(range(1, 75))
        assert {row["state"] for row in listed} == {"not_run"}
        assert set(listed[0]) == {"no", "state", "tests", "commit", "run_at", "platform_share"}


def test_the_command_is_content_when_all_that_is_due_is_proved(monkeypatch: pytest.MonkeyPatch, tree: Path) -> None:
    here = checkout.commit(tree)
    code, said = _asked(monkeypatch, tree, _whole(here), "--json")
    states = {row["no"]: row["state"] for row in json.loads(said)["promises"]}
    assert (code, states[7], states[1], states[19]) == (0, "proved", "platform", "open")
    code, said = _asked(monkeypatch, tree, _whole(here, frozenset({7})), "--json")
    assert code == 1
    assert json.loads(said)["promises"][6]["state"] == "open"


def test_people_are_told_what_is_missing(monkeypatch: pytest.MonkeyPatch, tree: Path) -> None:
    monkeypatch.setenv("COLUMNS", "120")
    code, said = _asked(monkeypatch, tree, None)
    assert code == 1
    assert "No run of the tests is on record" in said
    code, said = _asked(monkeypatch, tree, _whole("b" * 40))
    assert "The last run was of bbbbbbbbbb, and this is" in said
    code, said = _asked(monkeypatch, tree, _whole(checkout.commit(tree), frozenset({7, 45})))
    assert code == 1
    assert "Due by now (books, erasure, rights) and not proved: 7, 45." in said
    assert "The platform hashes passwords" in said
    code, said = _asked(monkeypatch, tree, _whole(checkout.commit(tree)))
    assert code == 0
    assert "Everything that is due by now (books, erasure, rights) is proved" in said
