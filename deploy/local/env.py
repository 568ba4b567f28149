"""The folder of a stack (`STEWARD_HOME`) and its `env` file: how every command and service finds the servers.

The file holds `KEY=value` lines and can be read by a shell (`set -a; . .steward/env`). It holds passwords:
mode 0600.
"""

from __future__ import annotations

import os
import re
import shlex
from collections.abc import Mapping
from pathlib import Path

from deploy.local.errors import LocalRefusal

DEFAULT_HOME = ".steward"
_LINE = re.compile(r"^\s*(?:export\s+)?(?P<key>[A-Za-z_][A-Za-z0-9_]*)=(?P<value>.*)$")
_HEADER = "# Written by `steward up`. Holds passwords: keep it private. Lines of your own are kept."


class BadEnvFile(LocalRefusal, ValueError):
    """An env file, or a setting for it, that cannot be understood; the text names the line."""


def home(environ: Mapping[str, str] = os.environ) -> Path:
    """The absolute folder of the stack: `STEWARD_HOME`, else `.steward` in the current folder."""
    return Path(environ.get("STEWARD_HOME") or DEFAULT_HOME).expanduser().absolute()


def make_home(folder: Path) -> Path:
    """Creates the folder; one that exists keeps its mode.

    As root others may pass through (0711), because the database then runs under another user; they see no
    names and the files in it are private.
    """
    if not folder.exists():
        folder.mkdir(parents=True, mode=0o711 if os.geteuid() == 0 else 0o700)
        folder.chmod(0o711 if os.geteuid() == 0 else 0o700)
    return folder


def env_file(folder: Path) -> Path:
    """The env file of the stack in `folder`."""
    return folder / "env"


def read(path: Path) -> dict[str, str]:
    """The settings in an env file, none when it is absent. Raises BadEnvFile with the number of a bad line."""
    if not path.exists():
        return {}
    values: dict[str, str] = {}
    for number, line in enumerate(path.read_text(encoding="utf-8").splitlines(), start=1):
        if not line.strip() or line.lstrip().startswith("#"):
            continue
        match = _LINE.match(line)
        if match is None:
            raise BadEnvFile(f"{path}, line {number}: not KEY=value")
        values[match["key"]] = _unquote(match["value"].strip(), path, number)
    return values


def merge(path: Path, updates: Mapping[str, str | None]) -> dict[str, str]:
    """Sets `updates` (None takes a setting out), keeps all other lines, and returns every setting.

    The new file takes the old one's place in one step, readable by its owner alone.
    """
    lines = path.read_text(encoding="utf-8").splitlines() if path.exists() else [_HEADER]
    left = dict(updates)
    merged: list[str] = []
    for line in lines:
        match = _LINE.match(line)
        key = match["key"] if match is not None and not line.lstrip().startswith("#") else None
        if key is None or key not in updates:
            merged.append(line)
        elif (value := left.pop(key, None)) is not None:
            merged.append(_line(key, value))
    merged += [_line(key, value) for key, value in left.items() if value is not None]
    write_private(path, "\n".join(merged) + "\n")
    return read(path)


def load(folder: Path, environ: Mapping[str, str] = os.environ) -> dict[str, str]:
    """What a command has to know: the file's settings, overridden by `STEWARD_*` of the environment."""
    given = {key: value for key, value in environ.items() if key.startswith("STEWARD_")}
    return read(env_file(folder)) | given


def write_private(path: Path, text: str) -> None:
    """Writes a file of mode 0600 in one step: a reader sees the old content or the new, never a part."""
    beside = path.with_name(f".{path.name}.{os.getpid()}")
    beside.unlink(missing_ok=True)
    handle = os.open(beside, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    with os.fdopen(handle, "w", encoding="utf-8") as file:
        file.write(text)
    beside.replace(path)


def _line(key: str, value: str) -> str:
    if _LINE.match(f"{key}=") is None:
        raise BadEnvFile(f"{key!r} is no name for a setting")
    if "\n" in value or "\r" in value:
        raise BadEnvFile(f"{key}: a value is one line")
    return f"{key}={shlex.quote(value) if value else ''}"


def _unquote(value: str, path: Path, number: int) -> str:
    if not value.startswith(("'", '"')):
        return value
    try:
        words = shlex.split(value)
    except ValueError as error:
        raise BadEnvFile(f"{path}, line {number}: {error}") from error
    if len(words) != 1:
        raise BadEnvFile(f"{path}, line {number}: quote the whole value")
    return words[0]
