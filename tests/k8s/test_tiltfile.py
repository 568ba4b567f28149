"""`tilt up` gives the whole mesh: the Tiltfile evaluated by Tilt's engine, and by what Tilt would refuse or warn of."""

from __future__ import annotations

import re
from functools import lru_cache
from pathlib import Path

import click
import pytest

from deploy.checkout import root
from deploy.cli import main as cli
from deploy.k8s.kubectl import kustomized
from deploy.rooms import ROOMS, load
from tests.k8s.dockerfile import parse
from tests.k8s.tilt_api import WrongCall, bind, loaded
from tests.k8s.tiltfile import Tilted, WrongTiltfile, containers, evaluate

_TREE = root()
_TEXT = (_TREE / "Tiltfile").read_text(encoding="utf-8")
_FALL_BACK = "fall_back_on(['deploy/Dockerfile', 'pyproject.toml', 'requirements-service.lock'])"
_SYNC = "sync('deploy/serve.py', '/app/deploy/serve.py')"


@lru_cache(maxsize=4)
def _rendered(folder: Path) -> str:
    return kustomized(folder)


def _tilted(text: str = _TEXT, *services: str) -> Tilted:
    return evaluate(text, _TREE, _rendered, {"services": list(services)} if services else {})


@pytest.fixture(scope="module")
def tilted() -> Tilted:
    return _tilted()


def test_tilt_takes_it_and_nothing_is_left_over(tilted: Tilted) -> None:
    assert list(tilted.faults()) == []


def test_every_service_is_a_resource_with_an_image_of_its_own(tilted: Tilted) -> None:
    dev = parse((_TREE / "deploy/Dockerfile").read_text(encoding="utf-8")).stage("dev")
    assert dev is not None
    for room in ROOMS:
        image = tilted.images[f"steward-{room}"]
        assert image["build_args"] == {"SERVICE": room} and image["target"] == "dev"
        # What is started again is what the image starts.
        assert tuple(image["entrypoint"]) == dev.all("ENTRYPOINT")[-1].words
        resource = tilted.resources[room]
        assert {"users", "topics", f"{room}-db", "keys-db"} <= set(resource.deps)
        (deployment,) = (doc for doc in resource.objects if doc["kind"] == "Deployment")
        (container,) = containers(deployment)
        # The wrapper that restarts the process becomes the command; the service's name must come from the arguments.
        assert container["args"] == [room] and "command" not in container
        # What a live update writes lands in the container's own file system.
        assert container["securityContext"]["readOnlyRootFilesystem"] is False
        assert {"ServiceAccount", "PodDisruptionBudget", "Service", "NetworkPolicy"} <= {
            d["kind"] for d in resource.objects
        }


def test_what_all_stand_on_comes_first(tilted: Tilted) -> None:
    def before(name: str) -> set[str]:
        deps = tilted.resources[name].deps
        return set(deps).union(*(before(dep) for dep in deps))

    for room in ROOMS:
        assert {"operators", "platform", "secrets", "kafka"} <= before(room)
        rights = load(room).rights
        beside = {"mail"} if "smtp" in rights.egress else set()
        beside |= {"object-store"} if rights.blobs else set()
        assert before(room) & {"mail", "object-store"} == beside


def test_files_are_where_the_mailed_links_lead(tilted: Tilted) -> None:
    (settings,) = (
        doc
        for doc in tilted.documents
        if doc["kind"] == "ConfigMap" and doc["metadata"]["name"].startswith("steward-settings")
    )
    port = int(settings["data"]["STEWARD_PUBLIC_URL"].rpartition(":")[2])
    assert (port, 8081) in tilted.resources["retention"].ports


def test_the_cluster_is_asked_for_every_operator_that_the_overlay_needs(tilted: Tilted) -> None:
    groups = {doc["apiVersion"].partition("/")[0] for doc in tilted.documents if "." in doc["apiVersion"]}
    for group in groups:
        if not group.endswith(".k8s.io"):
            assert f".{group}" in tilted.resources["operators"].command


def test_buttons_wait_to_be_pressed_and_name_commands_that_exist(tilted: Tilted) -> None:
    buttons = [resource for resource in tilted.resources.values() if "buttons" in resource.labels]
    assert {"test", "demo"} <= {button.name for button in buttons}
    assert not any(button.automatic for button in buttons)
    targets = set(re.findall(r"^([a-z]+):", (_TREE / "Makefile").read_text(encoding="utf-8"), re.MULTILINE))
    commands = [resource.command for resource in tilted.resources.values() if resource.command]
    asked = [target for command in commands for target in re.findall(r"\bmake ([a-z]+)", command)]
    assert asked and set(asked) <= targets
    calls = [call for command in commands for call in re.findall(r"\.venv/bin/steward ([a-z0-9 -]+[a-z0-9])", command)]
    assert calls and all(_exists(call.split()) for call in calls)


def _exists(words: list[str]) -> bool:
    command: click.Command | None = cli
    options: set[str] = set()
    for word in words:
        if word.startswith("--"):
            options.add(word)
        else:
            assert isinstance(command, click.Group)
            command = command.get_command(click.Context(command), word)
    return command is not None and options <= {name for parameter in command.params for name in parameter.opts}


@pytest.mark.parametrize("room", ROOMS)
def test_a_choice_runs_with_what_it_stands_on(room: str) -> None:
    tilted = _tilted(_TEXT, room)
    assert list(tilted.faults()) == []
    assert {room, f"{room}-db", "keys-db", "kafka", "secrets"} <= tilted.enabled
    assert not (set(ROOMS) - {room}) & tilted.enabled


def test_what_does_not_exist_cannot_be_chosen() -> None:
    with pytest.raises(WrongTiltfile, match="there is no service meterring"):
        _tilted(_TEXT, "meterring")
    with pytest.raises(WrongTiltfile, match="there is no buttons"):
        _tilted(_changed("chosen + BUTTONS.keys()", "chosen + ['buttons']"), "metering")


def _changed(before: str, after: str) -> str:
    assert before in _TEXT
    return _TEXT.replace(before, after, 1)


@pytest.mark.parametrize(
    ("before", "after", "said"),
    [
        ("version_settings(constraint=", "version_settings(contraint=", "no parameter contraint"),
        ("version_settings(constraint=", "versions_settings(constraint=", "undefined: versions_settings"),
        ("'docker_build_with_restart')", "'docker_build_restarting')", "has no docker_build_restarting"),
        ("pod_readiness='wait',\n    resource_deps", "pod_readyness='wait',\n    resource_deps", "no parameter pod_readyness"),
        ("pod_readiness='wait',\n    resource_deps", "pod_readiness='yes',\n    resource_deps", "pod_readiness is"),
        ("build_args={'SERVICE'", "build_arg={'SERVICE'", "no parameter build_arg"),
        ("build_args={'SERVICE'", "build_args={'ROOM'", "has no ARG ROOM"),
        ("target='dev'", "target='development'", "has no stage development"),
        ("kustomize('k8s/overlays/dev')", "kustomize('k8s/overlays/development')", "there is no k8s/overlays/development"),
        ("dockerfile='deploy/Dockerfile'", "dockerfile='Dockerfile'", "there is no Dockerfile"),
        ("sync('shared', '/app/shared')", "sync('share', '/app/shared')", "there is no share"),
        ("sync('shared', '/app/shared')", "sync('shared', 'app/shared')", "is not absolute"),
        ("sync('shared', '/app/shared')", "sync('tests', '/app/tests')", "not below what the image is built from"),
        ("sync('shared', '/app/shared')", "sync('shared', '/app/share')", "is not /app/share in the image"),
        ("sync('services/' + name, '/app/services/' + name)", "sync('services/' + name, '/app/services')", "in the image"),
        (" 'shared', 'services/__init__.py'", " 'services/__init__.py'", "COPY shared is not in `only`"),
        (" 'deploy/rooms.py',\n", "\n", "COPY deploy/rooms.py is not in `only`"),
        ("pyproject.toml', 'deploy', 'shared', 'services']", "pyproject.toml', 'deploy', 'services']", "COPY shared is not"),
        (f"{_FALL_BACK},\n            {_SYNC}", f"{_SYNC},\n            {_FALL_BACK}", "fall_back_on must precede sync"),
        (
            "live_update=[\n",
            "live_update=[\n            run('true', trigger=['requirements-service.lock']),\n",
            "fall_back_on must precede run",
        ),
        (
            "'/app/services/' + name),\n",
            "'/app/services/' + name), run('true', trigger=['pyproject.toml']),\n",
            "so it never does",
        ),
        ("restart_file='/app/.restart'", "restart_file='/tmp/.restart'", "restart_file lies in /tmp"),
        ("restart_file='/app/.restart'", "restart_file='/.restart'", "/.restart is not the user's own to write"),
        ("k8s_resource(\n        name,", "k8s_resource(\n        name + 's',", "there is no workload"),
        ("objects=members['topics']", "objects=['steward:kafkatopic']", "no object is steward:kafkatopic"),
        ("objects=members['topics']", "objects=['steward']", "are several"),
        ("objects=members['topics']", "objects=members['kafka']", "belongs to a resource already"),
        ("new_name='topics'", "new_name='users'", "two resources are called users"),
        ("args=True", "arguments=True", "no parameter arguments"),
        ("build_args={'SERVICE': name}", "build_args={}", "SERVICE is not declared"),
    ],
)  # fmt: skip
def test_what_tilt_would_refuse_is_refused(before: str, after: str, said: str) -> None:
    with pytest.raises(WrongTiltfile, match=re.escape(said)):
        _tilted(_changed(before, after))


@pytest.mark.parametrize(
    ("before", "after", "said"),
    [
        ("resource_deps=['platform']", "resource_deps=['platforms']", "secrets waits for platforms, which is no resource"),
        ("new_name='platform', objects=members['platform'], resource_deps=['operators']",
         "new_name='platform', objects=members['platform'], resource_deps=['secrets']", "waits for"),
        ("port_forward(8081, 8081", "port_forward(8025, 8081", "port 8025 is forwarded to"),
        ("port_forward(8081, 8081", "port_forward(8081, 8082", "retention has no port 8082"),
        ("labels=['databases']", "labels=['data bases']", "data bases is no label"),
        ("[{'cnpg.io/cluster': name}]", "[{'cnpg.io/name': name}]", "no network policy knows pods"),
        ("{'strimzi.io/cluster': 'steward'}", "{'strimzi.io/cluster': 'kafka'}", "no network policy knows pods"),
        ("return 'topics'", "return None", "KafkaTopic gateway.access belongs to no resource"),
        ("'steward-toolbox',\n", "'steward-tools',\n", "image steward-toolbox is used and not built"),
        ("'steward-toolbox',\n", "'steward-tools',\n", "image steward-tools is built and not used"),
    ],
)  # fmt: skip
def test_what_tilt_would_only_warn_of_is_found(before: str, after: str, said: str) -> None:
    text = _changed(before, after)
    if "return None" in after:  # nobody may ask for what is no longer there
        text = text.replace("objects=members['topics']", "objects=['gateway.prices:kafkatopic']")
    assert said in "\n".join(_tilted(text).faults())


def test_calls_are_bound_as_tilt_does() -> None:
    assert bind("sync", ["a"], {"remote_path": "/a"}) == {"local_path": "a", "remote_path": "/a"}
    wrapper = loaded("ext://restart_process", "docker_build_with_restart")
    assert bind(wrapper, ["r", ".", ["x"], []], {"only": []})["only"] == []
    for positional, keywords in ((["a"], {}), (["a", "/a", "b"], {}), (["a", "/a"], {"local_path": "a"})):
        with pytest.raises(WrongCall):
            bind("sync", positional, keywords)
