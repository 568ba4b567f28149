"""The servers that judge: built once from their Go modules, kept in the user's cache. `python -m tests.admission.binaries`

Each folder of servers/ is a Go module of a few lines: go.mod names the versions, go.sum the sum of each source that goes in,
so that a program is what its project published. Another go.mod, go.sum or Go is another folder in the cache.
"""

from __future__ import annotations

import hashlib
import os
import re
import shutil
import subprocess
import sys
import sysconfig
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path

from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn

from deploy.local.cache import cache_folder, only_one
from deploy.local.errors import LocalError
from deploy.local.process import run

SERVERS = Path(__file__).with_name("servers")
OLDEST, NEWEST = "1.34", "1.36"
OLDEST_GO = (1, 26)
# Nothing of the machine goes into a program: no C library, no path, no version control, no settings of the user.
_SETTINGS = {"CGO_ENABLED": "0", "GOFLAGS": "-mod=readonly", "GOTOOLCHAIN": "local", "GOWORK": "off"}
_FLAGS = ("-trimpath", "-buildvcs=false")


@dataclass(frozen=True, slots=True)
class Program:
    """One program: its module is a folder of servers/, its package stands in the go.mod there as a tool."""

    name: str
    module: str
    package: str

    @property
    def folder(self) -> Path:
        """Where its go.mod is."""
        return SERVERS / self.module

    @property
    def version(self) -> str:
        """The version that go.mod asks for, like 1.36.3."""
        root = re.sub(r"/cmd/.*", "", self.package)
        line = rf"^(?:require)?\s+{re.escape(root)} v(\S+)(?: // indirect)?$"
        found = re.search(line, (self.folder / "go.mod").read_text(encoding="utf-8"), re.MULTILINE)
        assert found is not None, f"{self.folder} does not require {root}"
        return found[1]

    @property
    def linked(self) -> str:
        """The linker's flags: no symbols; Kubernetes' programs learn their version from whoever builds them."""
        if not self.package.startswith("k8s.io/kubernetes/"):
            return "-s -w"
        major, minor, _ = self.version.split(".")
        known = {"gitVersion": f"v{self.version}", "gitMajor": major, "gitMinor": minor, "gitTreeState": "clean"}
        return " ".join(["-s -w", *(f"-X k8s.io/component-base/version.{key}={value}" for key, value in known.items())])

    def __str__(self) -> str:
        return f"{self.name} {self.version}"


def _kubernetes(version: str, *names: str) -> tuple[Program, ...]:
    return tuple(Program(name, version, f"k8s.io/kubernetes/cmd/{name}") for name in names)


PROGRAMS = (
    Program("etcd", "etcd", "go.etcd.io/etcd/server/v3"),
    Program("kwok", "kwok", "sigs.k8s.io/kwok/cmd/kwok"),
    *_kubernetes(NEWEST, "kube-apiserver", "kube-controller-manager", "kube-scheduler"),
    *_kubernetes(OLDEST, "kube-apiserver"),
)


@dataclass(frozen=True, slots=True)
class Go:
    """A Go that is new enough; `version` as it names itself with the platform it builds for."""

    path: Path
    version: str


def find_go(environ: Mapping[str, str] = os.environ) -> Go:
    """The Go on PATH when new enough, else the one of requirements-go.lock. Raises LocalError without one."""
    wheel = Path(sysconfig.get_path("purelib")) / "go" / "bin" / "go"
    on_path = shutil.which("go", path=environ.get("PATH"))
    for path in (*((Path(on_path),) if on_path else ()), *((wheel,) if wheel.exists() else ())):
        answer = run([str(path), "env", "GOVERSION", "GOOS", "GOARCH"], env={**environ, **_SETTINGS})
        found = re.match(r"go(\d+)\.(\d+)", answer.stdout)
        if found is not None and (int(found[1]), int(found[2])) >= OLDEST_GO:
            return Go(path, " ".join(answer.stdout.split()))
    oldest = ".".join(map(str, OLDEST_GO))
    raise LocalError(
        f"Go {oldest} or newer is needed to build Kubernetes: install it, or run `make admission`, which does"
    )


def path(module: str, name: str) -> Path:
    """Where a program is when it has been built."""
    return _folder(module, _go()) / name


def built(console: Console) -> None:
    """Builds what is not in the cache; says on `console` what it does and for how long. Raises LocalError."""
    go = _go()
    missing = [program for program in PROGRAMS if not path(program.module, program.name).exists()]
    if not missing:
        return
    console.print(
        f"Building {', '.join(map(str, missing))} from source: minutes, once (about ten for all of them on two cores); "
        "they are kept in the cache"
    )
    with only_one(cache_folder() / "servers.lock"):
        for program in missing:
            if not path(program.module, program.name).exists():
                _build(program, go, console)


@cache
def _go() -> Go:
    return find_go()


def _folder(module: str, go: Go) -> Path:
    digest = hashlib.sha256(f"{go.version} {_SETTINGS} {_FLAGS}".encode())
    for name in ("go.mod", "go.sum"):
        digest.update((SERVERS / module / name).read_bytes())
    return cache_folder() / "servers" / f"{module}-{digest.hexdigest()[:12]}"


def _build(program: Program, go: Go, console: Console) -> None:
    target = path(program.module, program.name)
    target.parent.mkdir(parents=True, exist_ok=True)
    began = time.monotonic()
    flags = [*_FLAGS, f"-ldflags={program.linked}"]
    with _progress(console) as progress:
        task = progress.add_task(f"{program}: sources", total=None)
        # Its modules are fetched here, and each is held against go.sum.
        stale = _go_does(
            go, program, ["list", "-deps", "-f", "{{if .Stale}}{{.ImportPath}}{{end}}", *flags, program.package]
        )
        progress.update(task, description=f"{program}: packages", total=len(stale.split()) or 1)
        part = target.with_name(f".{target.name}.{os.getpid()}")
        command = [str(go.path), "build", "-v", "-o", str(part), *flags, program.package]
        words: list[str] = []
        with subprocess.Popen(
            command,
            cwd=program.folder,
            env=_environment(),
            stdout=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
            text=True,
        ) as build:
            assert build.stderr is not None
            for line in build.stderr:
                words.append(line)
                progress.advance(task)
        if build.returncode != 0:
            raise LocalError(f"{program} cannot be built:\n{''.join(words[-20:])}")
    part.replace(target)
    console.print(f"{program} built in {time.monotonic() - began:.0f} s ({target.stat().st_size / 1e6:.0f} MB)")


def _go_does(go: Go, program: Program, arguments: Sequence[str]) -> str:
    answer = run([str(go.path), *arguments], cwd=program.folder, env=_environment(), timeout=900)
    if answer.returncode != 0:
        raise LocalError(f"the sources of {program} cannot be had:\n{answer.stderr.strip()}")
    return answer.stdout


def _environment() -> dict[str, str]:
    return {**os.environ, **_SETTINGS}


def _progress(console: Console) -> Progress:
    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        TextColumn("{task.completed}/{task.total}"),
        TimeElapsedColumn(),
    )
    return Progress(*columns, console=console, transient=True, disable=not console.is_terminal)


if __name__ == "__main__":
    try:
        built(Console(stderr=True))
    except LocalError as failure:
        sys.exit(str(failure))
