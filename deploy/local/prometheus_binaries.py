"""Where `prometheus` and `promtool` are: they judge our rules, and `steward up --observe` runs one.

Those on PATH, when they are new enough; else Debian's package, unpacked into the user's cache (apt names its own mirrors
and checks its own signatures; nothing is installed and root is not needed); else, where there is no apt, both built from
their Go module, pinned and summed in the folder `prometheus` beside this file.
"""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from deploy.local.cache import cache_folder, only_one
from deploy.local.errors import LocalError
from deploy.local.process import run

OLDEST = (2, 42)
MODULE = Path(__file__).with_name("prometheus")
_NAMES = ("prometheus", "promtool")
_VERSION = re.compile(r"version (?P<text>(?P<major>\d+)\.(?P<minor>\d+)\S*)")
_BUILD_SECONDS = 3600
_FETCH_SECONDS = 300


@dataclass(frozen=True, slots=True)
class Prometheus:
    """Both programs, of one version (as promtool names it)."""

    prometheus: Path
    promtool: Path
    version: str


def find_prometheus(environ: Mapping[str, str] = os.environ) -> Prometheus:
    """The programs; the first call on a machine without them fetches 19 MB, or builds for some minutes.

    Raises LocalError with what was tried and what to do.
    """
    installed = _look(environ.get("PATH") or os.defpath)
    if installed is not None:
        return installed
    folder = cache_folder(environ) / "prometheus"
    with only_one(folder.with_name("prometheus.lock")):
        cached = _look(str(folder / "bin"))
        if cached is not None:
            return cached
        tried: list[str] = []
        for way in (_from_debian, _from_go):
            with tempfile.TemporaryDirectory(prefix="prometheus-", dir=folder.parent) as scratch:
                try:
                    made = way(Path(scratch), environ)
                except _NoWay as error:
                    tried.append(str(error))
                    continue
                shutil.rmtree(folder, ignore_errors=True)
                folder.mkdir()
                made.rename(folder / "bin")
            found = _look(str(folder / "bin"))
            if found is not None:
                return found
            tried.append(f"{way.__name__.removeprefix('_from_')}: its programs do not run, or are too old")
    oldest = ".".join(map(str, OLDEST))
    raise LocalError(
        f"there is no Prometheus {oldest} or newer, and none could be had ({'; '.join(tried)}): install `prometheus` "
        f"and `promtool` so that both are on PATH, or copy {folder} from another machine of this kind"
    )


class _NoWay(Exception):
    """This way does not lead to the programs, and why."""


def _look(path: str) -> Prometheus | None:
    """Both programs in the folders of `path`, if they run and are new enough."""
    found = [shutil.which(name, path=path) for name in _NAMES]
    if None in found:
        return None
    prometheus, promtool = (Path(name) for name in found if name is not None)
    try:
        answer = run([str(promtool), "--version"], timeout=20)
    except (OSError, subprocess.TimeoutExpired):
        return None
    match = _VERSION.search(answer.stdout + answer.stderr)
    if answer.returncode or match is None or (int(match["major"]), int(match["minor"])) < OLDEST:
        return None
    return Prometheus(prometheus, promtool, match["text"])


def _from_debian(scratch: Path, environ: Mapping[str, str]) -> Path:
    """A folder with the programs of Debian's package, by the machine's own sources of packages."""
    path = environ.get("PATH") or os.defpath
    if any(shutil.which(program, path=path) is None for program in ("apt-get", "dpkg-deb")):
        raise _NoWay("Debian's package: there is no apt here")
    # root would hand the download to another user, who cannot write here
    download = ["apt-get", "-qq", "-o", "APT::Sandbox::User=root"]
    try:
        _do([*download, "download", "prometheus"], scratch, environ, _FETCH_SECONDS)
    except _NoWay:
        # No list of packages on this machine, or an old one: lists of our own, for this once.
        lists = scratch / "apt"
        (lists / "lists" / "partial").mkdir(parents=True)
        (lists / "cache" / "archives" / "partial").mkdir(parents=True)
        download += ["-o", f"Dir::State::Lists={lists / 'lists'}", "-o", f"Dir::Cache={lists / 'cache'}"]
        _do([*download, "update"], scratch, environ, _FETCH_SECONDS)
        _do([*download, "download", "prometheus"], scratch, environ, _FETCH_SECONDS)
    packages = list(scratch.glob("prometheus_*.deb"))
    if len(packages) != 1:
        raise _NoWay(f"Debian's package: apt left {len(packages)} files")
    _do(["dpkg-deb", "-x", packages[0].name, "root"], scratch, environ, _FETCH_SECONDS)
    return scratch / "root" / "usr" / "bin"


def _from_go(scratch: Path, environ: Mapping[str, str]) -> Path:
    """A folder with the programs as built from the pinned module. Minutes of both cores."""
    beside = Path(sys.executable).parent  # where `pip install -r requirements-go.lock` puts it
    go = shutil.which("go", path=os.pathsep.join((environ.get("PATH") or os.defpath, str(beside))))
    if go is None:
        raise _NoWay("its Go module: there is no Go here (`pip install --require-hashes -r requirements-go.lock`)")
    built = scratch / "bin"
    built.mkdir()
    packages = [f"github.com/prometheus/prometheus/cmd/{name}" for name in _NAMES]
    # What is built from a module does not know its version by itself.
    named = f"-s -w -X github.com/prometheus/common/version.Version={_pinned()}"
    build = [go, "build", "-mod=readonly", "-trimpath", "-ldflags", named, "-o", f"{built}{os.sep}", *packages]
    _do(build, MODULE, {**environ, "CGO_ENABLED": "0"}, _BUILD_SECONDS)
    return built


def _pinned() -> str:
    """The version that go.mod names; a release X.Y.Z is the module's v0.XYY.Z."""
    module = re.search(r"prometheus/prometheus v0\.(\d)(\d\d)\.(\d+)", (MODULE / "go.mod").read_text(encoding="utf-8"))
    assert module is not None, "go.mod pins no release of Prometheus"
    return f"{module[1]}.{int(module[2])}.{module[3]}"


def _do(command: Sequence[str], folder: Path, environ: Mapping[str, str], seconds: float) -> None:
    """Runs one step. Raises _NoWay with the last line that the program said."""
    try:
        answer = run(command, cwd=folder, env=environ, timeout=seconds)
    except (OSError, subprocess.TimeoutExpired) as error:
        raise _NoWay(f"`{Path(command[0]).name}` {command[-1]}: {_why(error, seconds)}") from error
    if answer.returncode:
        said = (answer.stderr or answer.stdout).strip().splitlines() or ["no word"]
        raise _NoWay(f"`{Path(command[0]).name} ... {command[-1]}`: {said[-1]}")


def _why(error: OSError | subprocess.TimeoutExpired, seconds: float) -> str:
    return f"not done after {seconds:.0f} s" if isinstance(error, subprocess.TimeoutExpired) else str(error)


if __name__ == "__main__":
    programs = find_prometheus()
    print(programs.prometheus, programs.promtool, programs.version, sep="\n")
