"""The page of an SRE's first hour: every command on it is one that exists, on a thing that the overlays have."""

from __future__ import annotations

import re
import shlex
from pathlib import Path

import click
import pytest

from deploy.k8s import scaling
from tests.admission import binaries
from tests.k8s.test_runbooks import blocks, check_kubectl, check_steward

ROOT = Path(__file__).parents[2]
PAGE = (ROOT / "k8s/README.md").read_text(encoding="utf-8")
IN_THE_TOOLBOX = "kubectl -n steward exec deployment/toolbox -- steward "


def check(line: str) -> None:
    """Raises for a command that nobody could run."""
    for part in line.split(" | "):
        words = shlex.split(part)
        match words:
            case ["make", target]:
                assert re.search(rf"^{target}:", (ROOT / "Makefile").read_text(), re.MULTILINE), target
            case [".venv/bin/steward", *arguments]:
                check_steward(arguments)
            case ["kubectl", "kustomize" | "apply", *rest]:
                (folder,) = (word for word in rest if not word.startswith("-"))
                assert (ROOT / folder / "kustomization.yaml").is_file(), folder
            case ["kubectl", "create", "-f", "-"]:
                pass
            case ["kubectl", "-n", room, "port-forward", service, ports]:
                name, port = service.removeprefix("svc/"), ports.partition(":")[2]
                assert f"http://{name}.{room}.svc:{port}" == scaling.PROMETHEUS
            case _ if part.startswith(IN_THE_TOOLBOX):
                check_steward(shlex.split(part.removeprefix(IN_THE_TOOLBOX)))
            case ["kubectl", *arguments]:
                check_kubectl(arguments)
            case _:
                raise AssertionError(f"nobody knows how to check {line!r}")


@pytest.mark.parametrize("line", blocks(PAGE, "sh"))
def test_it_can_be_run(line: str) -> None:
    check(line)


@pytest.mark.parametrize(
    "wrong",
    [
        "make instal",
        ".venv/bin/steward k8s verifi",
        "kubectl apply -k k8s/overlays/production --server-side",
        "kubectl -n steward scale deployment/tools --replicas=1",
        "kubectl -n steward exec deployment/toolbox -- steward dead-letters replay 1 --servise metering",
        "helm install steward",
    ],
)
def test_what_cannot_be_run_is_found(wrong: str) -> None:
    with pytest.raises((AssertionError, click.UsageError)):
        check(wrong)


def test_it_names_the_versions_that_judge_the_manifests() -> None:
    assert f"({binaries.OLDEST} to {binaries.NEWEST}," in PAGE
    judges = Path(binaries.__file__).with_name("README.md").read_text(encoding="utf-8")
    assert all(f" {program.version}" in judges for program in binaries.PROGRAMS)


def test_its_links_lead_somewhere() -> None:
    for link in re.findall(r"\]\(([^)#]+)\)", PAGE):
        assert (ROOT / "k8s" / link).exists(), link
