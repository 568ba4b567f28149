"""Where Prometheus comes from on a machine that has none, or an old one; with programs that only say their version."""

from __future__ import annotations

from pathlib import Path

import pytest

from deploy.local.errors import LocalError
from deploy.local.prometheus_binaries import find_prometheus

_SHELL = "/usr/bin:/bin"


def program(folder: Path, name: str, *lines: str) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / name
    path.write_text("\n".join(("#!/bin/sh", *lines)) + "\n")
    path.chmod(0o755)


def says(version: str) -> str:
    return f'echo "promtool, version {version} (branch: x)"'


def both(folder: Path, version: str) -> None:
    for name in ("prometheus", "promtool"):
        program(folder, name, says(version))


@pytest.fixture
def environ(tmp_path: Path) -> dict[str, str]:
    """A machine whose own programs come first, and whose apt and Go cannot do anything."""
    own = tmp_path / "own"
    program(own, "apt-get", "echo 'E: no network' >&2", "exit 100")
    program(own, "dpkg-deb", "exit 1")
    program(own, "go", "echo 'no module' >&2", "exit 1")
    return {"PATH": f"{own}:{_SHELL}", "STEWARD_CACHE": str(tmp_path / "cache")}


def test_those_on_path_are_taken(environ: dict[str, str], tmp_path: Path) -> None:
    both(tmp_path / "own", "3.5.1")
    found = find_prometheus(environ)
    assert (found.version, found.promtool) == ("3.5.1", tmp_path / "own" / "promtool")


def test_old_ones_are_not_and_what_was_tried_is_said(environ: dict[str, str], tmp_path: Path) -> None:
    both(tmp_path / "own", "2.41.0")
    with pytest.raises(LocalError) as refused:
        find_prometheus(environ)
    for said in ("E: no network", "no module", "install `prometheus`", "both are on PATH"):
        assert said in str(refused.value)


def test_a_package_is_unpacked_once(environ: dict[str, str], tmp_path: Path) -> None:
    """The second try has lists of packages of its own; the second call finds what the first has unpacked."""
    own, calls = tmp_path / "own", tmp_path / "calls"
    program(
        own,
        "apt-get",
        f'echo "$@" >> {calls}',
        'case "$*" in *Lists*) : > prometheus_2.42_any.deb ;; *) exit 100 ;; esac',
    )
    program(own, "dpkg-deb", "mkdir -p $3/usr/bin", f"cp {tmp_path}/packed/* $3/usr/bin")
    both(tmp_path / "packed", "2.42.0+ds")
    found = find_prometheus(environ)
    assert found.version == "2.42.0+ds" and found.prometheus.is_relative_to(tmp_path / "cache")
    asked = calls.read_text().splitlines()
    assert [line.split()[-1] for line in asked] == ["prometheus", "update", "prometheus"]
    assert find_prometheus(environ) == found
    assert calls.read_text().splitlines() == asked
    assert sorted(path.name for path in (tmp_path / "cache").iterdir()) == ["prometheus", "prometheus.lock"]
