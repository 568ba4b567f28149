"""The custom resource definitions that judge are the published ones, without what only explains."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.admission import crds

# Where the originals are kept, when they are.
ORIGINALS = Path(__file__).resolve().parents[3] / "shared" / "crds"


def test_all_that_are_wanted_are_here_and_no_other() -> None:
    assert sorted(file.stem for file in crds.HERE.glob("*.yaml")) == sorted(crds.WANTED)


@pytest.mark.parametrize("name", crds.WANTED)
def test_it_judges_as_the_original(name: str) -> None:
    if not ORIGINALS.is_dir():
        pytest.skip("the originals are not beside this tree")
    assert crds.read(crds.HERE / f"{name}.yaml") == crds.bare(crds.read(ORIGINALS / f"{name}.yaml"))


def test_what_explains_goes_and_what_judges_stays() -> None:
    rule = {"rule": "self.a > 0", "message": "a is positive"}
    text = {"type": "string", "description": "what it is", "default": "x", "enum": ["description"]}
    spec = {
        "type": "object",
        "description": "all of it",
        "properties": {
            "description": text,
            "many": {"type": "array", "items": {"description": "one", "type": "integer"}},
        },
        "required": ["description"],
        "default": {"description": "a value of ours"},
        "x-kubernetes-validations": [rule],
    }
    versions = [
        {"name": "v1", "served": True, "storage": True, "schema": {"openAPIV3Schema": spec}},
        {"name": "v1beta1", "served": False, "storage": False, "schema": {"openAPIV3Schema": spec}},
    ]
    given = {
        "apiVersion": "apiextensions.k8s.io/v1",
        "kind": "CustomResourceDefinition",
        "metadata": {"name": "things.example.org", "labels": {"app": "x"}},
        "spec": {"group": "example.org", "versions": versions},
    }
    (version,) = crds.bare(given)["spec"]["versions"]
    assert version["schema"]["openAPIV3Schema"] == {
        "type": "object",
        "properties": {
            "description": {"type": "string", "default": "x", "enum": ["description"]},
            "many": {"type": "array", "items": {"type": "integer"}},
        },
        "required": ["description"],
        "default": {"description": "a value of ours"},
        "x-kubernetes-validations": [rule],
    }
