"""The Dockerfile, its lists and its locks, read: what makes an image that a cluster may run."""

from __future__ import annotations

import re
import tomllib
from pathlib import Path

import pytest

from deploy.checkout import root
from deploy.image_version import write
from deploy.rooms import ROOMS
from tests.k8s.dockerfile import DockerfileError, Ignored, faults, parse

_TREE = root()
_TEXT = (_TREE / "deploy/Dockerfile").read_text(encoding="utf-8")


def _lock(name: str) -> dict[str, str]:
    """A lock's packages, each with its whole entry: version, marker, hashes."""
    text = (_TREE / name).read_text(encoding="utf-8")
    entries = re.split(r"\n(?=[a-z0-9])", text.strip())
    return {entry.partition("==")[0]: entry for entry in entries}


def test_nothing_is_wrong_with_it() -> None:
    assert faults(_TEXT, _TREE, ROOMS) == []


@pytest.mark.parametrize(
    ("before", "after", "said"),
    [
        ("ARG BUILD_BASE=debian:13-slim", "ARG BUILD_BASE=debian", "debian names no version"),
        ("astral-sh/uv:0.13.9", "astral-sh/uv:latest", "names no version"),
        ("FROM ${RUN_BASE}\nARG", "FROM ${BUILD_BASE}\nARG", "the last stage stands on debian:13-slim, which has a shell"),
        ("WORKDIR /app\nENV PYTHONPATH=/app:/libraries PYTHONSAFEPATH=1 PYTHONDONTWRITEBYTECODE=1 PYTHONUNBUFFERED=1 \\\n"
         "    STEWARD_HTTP_HOST",
         "RUN apt-get install gcc\nENV PYTHONDONTWRITEBYTECODE=1 STEWARD_HTTP_HOST", "the last stage runs something"),
        ("USER 65532:65532\nEXPOSE", "USER nonroot\nEXPOSE", "is not a number above 0"),
        ("USER 65532:65532\nEXPOSE", "USER 0\nEXPOSE", "is not a number above 0"),
        ("USER 65532:65532\nENTRYPOINT [\"python\"", "ENTRYPOINT [\"python\"", "toolbox: USER is not a number"),
        ('ENTRYPOINT ["python", "-m", "deploy.serve"]', "ENTRYPOINT python -m deploy.serve", "no ENTRYPOINT in exec form"),
        ('ENTRYPOINT ["python", "-m", "deploy.serve"]', 'ENTRYPOINT ["python", "-m", "deploy.server"]', "starts no module"),
        ('"--require-hashes", ', "", "without --require-hashes"),
        ('"--only-binary", ":all:", ', "", "without --only-binary"),
        ("COPY shared shared", "COPY share share", "COPY share: there is no such file"),
        ("COPY shared shared", "COPY tests tests", ".dockerignore leaves it out"),
        ("COPY --from=compiled /app /app", "COPY --from=complied /app /app", "no such stage before it"),
        ("FROM libraries AS source\nARG SERVICE", "FROM libraries AS source", "uses SERVICE without ARG SERVICE"),
        ("FROM source AS dev", "FROM source AS development", "no stage dev"),
        ("STEWARD_SERVICE=${SERVICE}\nUSER 65532:65532\nEXPOSE",
         "STEWARD_SERVICE=${SERVICE} STEWARD_MASTER_KEY=x\nUSER 65532:65532\nEXPOSE", "is a secret in a layer"),
        ("USER 65532:65532\nEXPOSE",
         "ENV STEWARD_KEYS_DATABASE_URL=x\nUSER 65532:65532\nEXPOSE", "DATABASE_URL is a secret in a layer"),
        ("COPY requirements-service.lock", "ARG REGISTRY_TOKEN\nCOPY requirements-service.lock", "is a secret in a layer"),
        ("PYTHONDONTWRITEBYTECODE=1 PYTHONUNBUFFERED=1 \\\n    STEWARD_HTTP_HOST", "STEWARD_HTTP_HOST", "write bytecode"),
        ("COPY --from=compiled /app /app", "COPY --from=build /usr/bin /usr/bin", "neither libraries nor sources"),
        ("COPY --from=compiled /app /app", "COPY --from=busybox:1 /bin/sh /bin/sh", "neither libraries nor sources"),
        ("python3-debian13:nonroot", "python3-debian13:debug-nonroot", "which has a shell"),
        ("ARG SERVICE\nLABEL", "ARG SERVICE\nARG DSN=postgresql://a:b@c/d\nLABEL", "DSN is a secret in a layer"),
        ("ARG BUILD_BASE=debian:13-slim", "ARG BUILD_BASE=python:3.12-slim", "what one Python installs, another would run"),
        ("ARG BUILD_BASE=debian:13-slim", "ARG BUILD_BASE=debian:12-slim", "what one Python installs, another would run"),
        ("WORKDIR /app\nCOPY deploy/__init__", "RUN pip3 install requests\nWORKDIR /app\nCOPY deploy/__init__",
         "without --require-hashes"),
        ("FROM source AS dev", "FROM ${RUN_BASE} AS dev", "stage dev has no shell"),
        ("USER 65532:65532\nENTRYPOINT [\"/usr/bin/python3\"", "ENTRYPOINT [\"/usr/bin/python3\"", "dev: USER is not"),
        ('"/usr/bin/python3", "-m", "deploy.serve"', '"/usr/bin/python3", "-m", "deploy.server"', "dev: ENTRYPOINT"),
        ("COPY shared shared", "ADD shared shared", "ADD is no instruction of ours"),
    ],
)  # fmt: skip
def test_a_changed_one_is_found_out(before: str, after: str, said: str) -> None:
    assert before in _TEXT
    assert said in "\n".join(faults(_TEXT.replace(before, after), _TREE, ROOMS))


def test_broken_text_is_refused() -> None:
    for text in ("", "RUN true", "FROM a AS", 'FROM a\nCMD ["x"', "FROM a\nRUN x \\"):
        with pytest.raises(DockerfileError):
            parse(text)


def test_the_context_holds_no_data_of_a_stack_and_no_compiled_file() -> None:
    ignored = Ignored.read(_TREE)
    for path in (
        ".steward/env",
        ".git/config",
        ".venv/bin/python",
        "tests/conftest.py",
        "build/promises.json",
        "Tiltfile",
    ):
        assert ignored(path), path
    assert ignored("shared/mesh/__pycache__/store.cpython-313.pyc") and ignored("deploy/.steward/__pycache__")
    assert not ignored("shared/policy/policy.toml") and not ignored("services/metering/migrations/0001_metering.sql")


def test_images_hold_what_was_tested() -> None:
    tested = _lock("requirements.lock")
    service, toolbox = _lock("requirements-service.lock"), _lock("requirements-toolbox.lock")
    for lock in (service, toolbox):
        for name, entry in lock.items():
            assert tested[name] == entry, f"{name} differs: compile the locks again (deploy/README.md)"
    assert service.items() <= toolbox.items()


def test_a_service_needs_what_the_project_declares_and_nothing_else_is_shipped() -> None:
    project = tomllib.loads((_TREE / "pyproject.toml").read_text(encoding="utf-8"))["project"]

    def declared(requirements: list[str]) -> set[str]:
        named = (re.match(r"[A-Za-z0-9-]+", line) for line in requirements)
        return {match[0] for match in named if match and match[0] != project["name"]}

    service, toolbox = _lock("requirements-service.lock"), _lock("requirements-toolbox.lock")
    extras = project["optional-dependencies"]
    assert declared(project["dependencies"]) <= service.keys()
    assert declared(extras["cli"]) <= toolbox.keys() and not declared(extras["cli"]) & service.keys()
    for extra in ("local", "dev"):
        assert not declared(extras[extra]) & toolbox.keys()
    for lock in (service, toolbox):
        assert not {"pip", "uv", "setuptools", "wheel"} & lock.keys()


def test_the_version_is_found_where_the_project_is_copied(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from importlib.metadata import Distribution

    pyproject = tmp_path / "pyproject.toml"
    pyproject.write_text('[project]\nname = "copied-here"\nversion = "3.4.5"\n', encoding="utf-8")
    write(pyproject, tmp_path)
    monkeypatch.syspath_prepend(str(tmp_path))
    assert Distribution.from_name("copied-here").version == "3.4.5"
