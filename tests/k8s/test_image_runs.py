"""The images' content is enough: every service starts from its replayed image, told what compose.yaml tells it."""

from __future__ import annotations

import asyncio
import os
import re
import shutil
import signal
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest
import yaml

from deploy.checkout import root
from deploy.local.ports import free_port
from deploy.local.probe import is_ready
from deploy.local.process import Child
from deploy.rooms import ROOMS
from tests.k8s.container import Container, base, isolation
from tests.k8s.dockerfile import DockerfileError, Replay, parse
from tests.support.world import Mesh

_TREE = root()


@pytest.fixture
def folder() -> Iterator[Path]:
    """A folder that every user may pass through."""
    made = Path(tempfile.mkdtemp(prefix="steward-image-"))
    made.chmod(0o755)
    try:
        yield made
    finally:
        # Folders of the image cannot be written to, which is as it should be, until they are to go.
        for path, folders, _ in os.walk(made):
            for name in folders:
                if not Path(path, name).is_symlink():
                    Path(path, name).chmod(0o755)
        shutil.rmtree(made)


def _told(service: str, world: dict[str, str], ports: set[int]) -> dict[str, str]:
    """The environment of a service in compose.yaml, with this test's servers in place of the containers'."""
    compose = yaml.safe_load((_TREE / "deploy/compose.yaml").read_text(encoding="utf-8"))
    told: dict[str, str] = {}
    for name, text in compose["services"][service]["environment"].items():
        if name.endswith("_PORT"):
            told[name] = str(free_port(ports))
            ports.add(int(told[name]))
        elif re.search(r"DATABASE_URL$|POSTGRES_URL$|BOOTSTRAP_SERVERS$|SMTP_URL$", name):
            told[name] = world[name]
        else:
            told[name] = text
    return told | {"STEWARD_HTTP_HOST": "127.0.0.1"}


@pytest.mark.timeout(300)
async def test_every_image_holds_what_its_service_needs(mesh: Mesh, folder: Path) -> None:
    found = parse((_TREE / "deploy/Dockerfile").read_text(encoding="utf-8"))
    compose = yaml.safe_load((_TREE / "deploy/compose.yaml").read_text(encoding="utf-8"))
    replay = Replay(found, _TREE, folder / "stages")
    images = {name: replay.image(found.stages[-1], name) for name in ROOMS}
    for name, image in images.items():
        held = image.where("/app/services")
        assert {path.name for path in held.iterdir() if path.is_dir()} - {"__pycache__"} == {name, "billing"}
        assert name == "billing" or [path.name for path in (held / "billing").iterdir()] == ["billing.toml"]
    with pytest.raises(DockerfileError, match="test -n"):
        replay.image(found.stages[-1], "")
    system = base(folder / "base")
    containers = {name: Container(image, system, folder / "volumes") for name, image in images.items()}
    ports: set[int] = set()
    told = {name: _told(name, mesh.env, ports) for name in (*ROOMS, "provision")}
    # The first step of compose.yaml.
    first = compose["services"]["provision"]
    step = containers[first["build"]["args"]["SERVICE"]].run(first["entrypoint"], told["provision"])
    assert step.returncode == 0, step.stderr
    children: list[Child] = []
    try:
        for name in ROOMS:
            container, image = containers[name], images[name]
            children.append(
                Child.start(
                    name,
                    container.command(image.entrypoint),
                    log=folder / f"{name}.log",
                    env=container.environment(told[name]),
                )
            )
        async with asyncio.timeout(90):
            for name, child in zip(ROOMS, children, strict=True):
                while not await is_ready(int(told[name][f"STEWARD_{name.upper()}_PORT"])):
                    assert child.returncode is None, child.tail()
                    await asyncio.sleep(0.1)  # lint: allow sleep-in-test -- polls a port: no event tells
        port = told["metering"]["STEWARD_METERING_PORT"]
        check = [word.replace("8080", port) for word in compose["services"]["metering"]["healthcheck"]["test"][1:]]
        assert containers["metering"].run(check, {}).returncode == 0
        if isolation() is not None:
            wrote = containers["metering"].run(["python", "-c", "open('/app/here', 'w')"], {})
            assert wrote.returncode != 0 and "Read-only file system" in wrote.stderr
    finally:
        await asyncio.gather(*(child.stop(signal.SIGTERM, 45.0) for child in children))
    assert {child.name: child.returncode for child in children} == dict.fromkeys(ROOMS, 0)
    assert containers["metering"].run(check, {}).returncode != 0


@pytest.mark.timeout(300)
def test_the_toolbox_holds_what_the_command_needs(folder: Path) -> None:
    found = parse((_TREE / "deploy/Dockerfile").read_text(encoding="utf-8"))
    stage = found.stage("toolbox")
    assert stage is not None
    image = Replay(found, _TREE, folder / "stages").image(stage, "")
    system = base(folder / "base")
    (image.root / "var/lib/steward").mkdir(parents=True)
    container = Container(image, system, folder / "volumes")
    command = ["steward"] if isolation() is not None else list(image.entrypoint)
    helped = container.run([*command, "--help"], {})
    assert helped.returncode == 0 and "dead-letters" in helped.stdout, helped.stderr
    # Commands are imported when they run, and some of their libraries later still.
    tried = "import importlib, pkgutil, deploy.cli as c; import rich, yaml, confluent_kafka;"
    tried += "[importlib.import_module('deploy.cli.' + m.name) for m in pkgutil.iter_modules(c.__path__) if m.name[0] != '_']"
    ran = container.run(["python", "-c", tried], {})
    assert ran.returncode == 0, ran.stderr
