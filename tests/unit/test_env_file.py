"""The env file: what is written is read back, by us and by a shell, and nobody else can read it."""

from __future__ import annotations

import subprocess
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from deploy.local import env

URL = "postgresql://steward_app:p%20w@127.0.0.1:5432/steward_x?sslmode=verify-full&sslrootcert=/a b/ca.pem"

keys = st.from_regex(r"STEWARD_[A-Z0-9_]{1,20}", fullmatch=True)
values = st.text(st.characters(codec="utf-8", exclude_categories=("C", "Zl", "Zp")), max_size=40).filter(
    lambda text: text == text.strip()
)


@given(settings=st.dictionaries(keys, values, max_size=6))
def test_what_is_written_is_read_back(tmp_path_factory: pytest.TempPathFactory, settings: dict[str, str]) -> None:
    path = tmp_path_factory.mktemp("env") / "env"
    assert env.merge(path, settings) == settings
    assert env.read(path) == settings


def test_a_shell_reads_the_same(tmp_path: Path) -> None:
    path = tmp_path / "env"
    awkward = {"STEWARD_URL": URL, "STEWARD_QUOTE": 'it\'s $HOME `id` \\ "x"', "STEWARD_EMPTY": ""}
    env.merge(path, awkward)
    names = list(awkward)
    script = f"set -a; . {path}; printf '%s\\0' " + " ".join(f'"${name}"' for name in names)
    shown = subprocess.run(["/bin/sh", "-c", script], capture_output=True, text=True, check=True).stdout
    assert dict(zip(names, shown.split("\0"), strict=False)) == awkward


def test_merge_keeps_other_lines_changes_in_place_and_takes_out(tmp_path: Path) -> None:
    path = tmp_path / "env"
    path.write_text("# mine\nMY_OWN=1\n\nSTEWARD_A=old\nSTEWARD_GONE=x\n#STEWARD_B=no\n")
    assert env.merge(path, {"STEWARD_A": "new", "STEWARD_B": "b", "STEWARD_GONE": None}) == {
        "MY_OWN": "1",
        "STEWARD_A": "new",
        "STEWARD_B": "b",
    }
    assert path.read_text() == "# mine\nMY_OWN=1\n\nSTEWARD_A=new\n#STEWARD_B=no\nSTEWARD_B=b\n"


def test_only_its_owner_can_read_it_also_when_it_was_open(tmp_path: Path) -> None:
    path = tmp_path / "env"
    path.write_text("STEWARD_A=1\n")
    path.chmod(0o644)
    env.merge(path, {"STEWARD_A": "2"})
    assert path.stat().st_mode & 0o777 == 0o600
    assert [file.name for file in tmp_path.iterdir()] == ["env"]


def test_the_environment_goes_before_the_file(tmp_path: Path) -> None:
    env.merge(env.env_file(tmp_path), {"STEWARD_A": "file", "STEWARD_B": "file"})
    assert env.load(tmp_path, {"STEWARD_A": "shell", "PATH": "/bin"}) == {
        "STEWARD_A": "shell",
        "STEWARD_B": "file",
    }


@pytest.mark.parametrize(
    ("text", "complaint"),
    [
        ("STEWARD_A=1\nnonsense\n", "line 2"),
        ("STEWARD_A='open\n", "line 1"),
        ("STEWARD_A='a' 'b'\n", "whole value"),
    ],
)
def test_a_bad_line_is_named(tmp_path: Path, text: str, complaint: str) -> None:
    path = tmp_path / "env"
    path.write_text(text)
    with pytest.raises(ValueError, match=complaint):
        env.read(path)


@pytest.mark.parametrize("settings", [{"STEWARD_A": "two\nlines"}, {"NOT A NAME": "x"}])
def test_what_would_break_the_file_is_refused(tmp_path: Path, settings: dict[str, str]) -> None:
    path = tmp_path / "env"
    with pytest.raises(ValueError, match=r"one line|no name"):
        env.merge(path, settings)
    assert not path.exists()


def test_the_home_is_absolute_and_named_by_the_environment(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert env.home({}) == tmp_path / ".steward"
    assert env.home({"STEWARD_HOME": "elsewhere"}) == tmp_path / "elsewhere"
    assert env.home({"STEWARD_HOME": "/srv/steward"}) == Path("/srv/steward")
