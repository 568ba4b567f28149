"""`steward --help` is a table that imports nothing; each of its lines is compared with its command here."""

from __future__ import annotations

import subprocess
import sys

import click
import pytest
from click.testing import CliRunner

from deploy.cli import COMMANDS, main
from deploy.cli.errors import NotKept, Refused, Unavailable
from deploy.cli.lazy import Lazy, LazyGroup
from deploy.local.errors import LocalError, LocalRefusal
from shared.policy import PolicyError


@pytest.mark.parametrize("name", COMMANDS)
def test_the_line_in_the_help_is_the_commands_own(name: str) -> None:
    command = COMMANDS[name].load()
    assert (command.help or "").splitlines()[0] == COMMANDS[name].help


@pytest.mark.parametrize("name", COMMANDS)
def test_the_help_has_an_example(name: str) -> None:
    answer = CliRunner().invoke(main, [name, "--help"])
    assert answer.exit_code == 0
    assert "Example" in answer.output or "Commands:" in answer.output


def test_help_imports_no_client_library() -> None:
    heavy = ("aiokafka", "asyncpg", "faststream", "rich", "pydantic", "deploy.local")
    code = (
        "import sys; from deploy.cli import main\n"
        "try: main(['--help'])\n"
        f"except SystemExit: print([name for name in {heavy!r} if name in sys.modules])"
    )
    shown = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
    assert shown.splitlines()[-1] == "[]"


@pytest.mark.parametrize(
    ("error", "code"),
    [
        (Refused("no"), 1),
        (LocalRefusal("no"), 1),
        (PolicyError("no"), 1),
        (Unavailable("away"), 3),
        (LocalError("away"), 3),
        (ConnectionRefusedError("away"), 3),
        (TimeoutError(), 3),
        (NotKept("log retention 0"), 4),
    ],
)
def test_an_error_becomes_one_line_and_an_exit_code(error: Exception, code: int) -> None:
    answer = CliRunner().invoke(_group_that_raises(error), ["it"])
    assert answer.exit_code == code
    assert answer.output.startswith("Error: ")
    assert len(answer.output.splitlines()) == 1


def test_a_bug_keeps_its_traceback() -> None:
    answer = CliRunner().invoke(_group_that_raises(AssertionError("a bug")), ["it"])
    assert isinstance(answer.exception, AssertionError)


def test_wrong_usage_is_2() -> None:
    assert CliRunner().invoke(main, ["nothing-like-it"]).exit_code == 2
    assert CliRunner().invoke(main, ["wait"]).exit_code == 2


def _group_that_raises(error: Exception) -> click.Group:
    @click.command()
    def it() -> None:
        raise error

    group = LazyGroup("steward", lazy={"never": Lazy("nowhere:nothing", "Not imported.")})
    group.add_command(it, "it")
    return group
