"""compose.yaml, read: what Docker would only say when it runs, and what no Docker would say."""

from __future__ import annotations

import re
from functools import cache
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import pytest
import yaml

from deploy.checkout import root
from deploy.k8s.workload import environment
from deploy.local.databases import Names
from deploy.local.jars import KAFKA_VERSION
from deploy.provision import needed, prepare
from deploy.rooms import ROOMS, load
from shared.mesh.runtime import _LEAVE_SECONDS
from shared.mesh.settings import Misconfigured, ServiceSettings
from tests.k8s.dockerfile import parse

_TREE = root()
_FILE = _TREE / "deploy/compose.yaml"
# What the Compose Specification knows of a service, as far as it is used here.
_KEYS = frozenset((
    "build", "cap_drop", "command", "depends_on", "entrypoint", "environment", "healthcheck", "image", "ports", "read_only",
    "restart", "security_opt", "stop_grace_period", "tmpfs", "user", "volumes",
))  # fmt: skip
_CONDITIONS = frozenset(("service_started", "service_healthy", "service_completed_successfully"))
_VARIABLE = re.compile(r"STEWARD_[A-Z_]+")
_SERVER = re.compile(r"(?:^|@|smtp://)([a-z0-9.-]+):(\d+)(?:/|$)")
_ON_ONE_BROKER = (
    "OFFSETS_TOPIC_REPLICATION_FACTOR", "TRANSACTION_STATE_LOG_REPLICATION_FACTOR", "TRANSACTION_STATE_LOG_MIN_ISR",
)  # fmt: skip
# Where the images of others listen.
_LISTENS = {"postgres": "5432", "mail": "1025"}


def _compose() -> dict[str, Any]:
    loaded: dict[str, Any] = yaml.safe_load(_FILE.read_text(encoding="utf-8"))
    return loaded


def _seconds(text: str) -> float:
    match = re.fullmatch(r"(\d+)s", text)
    assert match, text
    return float(match[1])


@cache
def _known() -> frozenset[str]:
    """Every variable that the code of services reads by name."""
    read = {"STEWARD_POSTGRES_URL", *needed()}
    for folder in ("shared", "services"):
        for path in (_TREE / folder).rglob("*.py"):
            read |= set(_VARIABLE.findall(path.read_text(encoding="utf-8")))
    return frozenset(
        read | {f"STEWARD_{room.upper()}{suffix}" for room in ROOMS for suffix in ("_PORT", "_PUBLIC_PORT")}
    )


def faults(compose: dict[str, Any]) -> list[str]:
    """Why this would not start the mesh, a sentence each."""
    services, found, known = compose["services"], [], _known()
    volumes = set(compose["volumes"])
    taken: dict[str, str] = {}
    for name, service in services.items():
        found += [f"{name}: {key} is no key of a service" for key in service.keys() - _KEYS]
        if not re.search(r":[^:]+$|^steward-", service["image"]) or service["image"].endswith(":latest"):
            found.append(f"{name}: {service['image']} names no version")
        for variable in service.get("environment", {}):
            if variable.startswith("STEWARD_") and variable not in known:
                found.append(f"{name}: nobody reads {variable}")
        for other, how in service.get("depends_on", {}).items():
            if other not in services:
                found.append(f"{name} depends on {other}, which is no service")
            elif how["condition"] not in _CONDITIONS:
                found.append(f"{name}: {how['condition']} is no condition")
            elif how["condition"] == "service_healthy" and "healthcheck" not in services[other]:
                found.append(f"{name} waits for {other}, which says nothing of its health")
        for port in service.get("ports", ()):
            host, outside, _ = port.split(":")
            if host != "127.0.0.1":
                found.append(f"{name}: {port} is open to the network")
            if outside in taken:
                found.append(f"port {outside} is taken by {taken[outside]} and {name}")
            taken[outside] = name
        for volume in service.get("volumes", ()):
            if volume.partition(":")[0] not in volumes:
                found.append(f"{name}: there is no volume {volume}")
        found += _reached(name, service, services)
    built = [service["image"] for service in services.values() if "build" in service]
    found += [f"{image} is built twice at a time" for image in {*built} if built.count(image) > 1]
    found += _kafka(services)
    for room in ROOMS:
        found += _room(room, services.get(room), services)
    found += [f"provision does not wait for {name}" for name in ("kafka", "postgres")
              if services["provision"]["depends_on"].get(name, {}).get("condition") != "service_healthy"]  # fmt: skip
    missing = [variable for variable in needed() if variable not in services["provision"]["environment"]]
    return [*found, *(f"provision is not told {variable}" for variable in missing), *_circles(services)]


def _reached(name: str, service: dict[str, Any], services: dict[str, Any]) -> list[str]:
    """Servers and files that a service is told of and would not find."""
    found: list[str] = []
    mounts: dict[str, str] = {}
    for volume in service.get("volumes", ()):
        _, place, *mode = volume.split(":")
        mounts[place] = mode[0] if mode else "rw"
    for variable, text in service.get("environment", {}).items():
        server = _SERVER.search(text) if variable.startswith("STEWARD_") else None
        if server and server[1] not in services:
            found.append(f"{name}: {variable} names {server[1]}, which is no service")
        elif server and server[2] != _LISTENS.get(server[1], server[2]):
            found.append(f"{name}: {variable} names a port on which {server[1]} does not listen")
        if text.startswith("/"):
            how = next((mode for place, mode in mounts.items() if Path(text).is_relative_to(place)), None)
            if how is None:
                found.append(f"{name}: {variable} is in no volume")
            elif how == "ro" and (name == "provision" or variable == "STEWARD_BLOBS"):
                found.append(f"{name}: {variable} cannot be written")
    return found


def _kafka(services: dict[str, Any]) -> list[str]:
    """Clients are sent on to the address that the broker says of itself."""
    told = services["kafka"]["environment"]
    inside = dict(re.findall(r"([A-Z]+)://:(\d+)", told["KAFKA_LISTENERS"]))
    secured = dict(re.findall(r"([A-Z]+):([A-Z_]+)", told["KAFKA_LISTENER_SECURITY_PROTOCOL_MAP"]))
    said = re.findall(r"([A-Z]+)://([a-z]+):(\d+)", told["KAFKA_ADVERTISED_LISTENERS"])
    found = [f"kafka says {host}:{port} and listens elsewhere" for name, host, port in said if inside.get(name) != port]
    if secured.keys() != inside.keys():
        found.append("kafka has a listener without a protocol, or a protocol without a listener")
    for name in (told["KAFKA_CONTROLLER_LISTENER_NAMES"], told["KAFKA_INTER_BROKER_LISTENER_NAME"]):
        if name not in inside:
            found.append(f"kafka has no listener {name}")
    voters = re.fullmatch(r"(\d+)@localhost:(\d+)", told["KAFKA_CONTROLLER_QUORUM_VOTERS"])
    if not voters or voters.groups() != (told["KAFKA_NODE_ID"], inside.get(told["KAFKA_CONTROLLER_LISTENER_NAMES"])):
        found.append("kafka does not vote for itself")
    replicas = [told.get(f"KAFKA_{name}") for name in _ON_ONE_BROKER] + [
        text for service in services.values() for name, text in service.get("environment", {}).items()
        if name == "STEWARD_KAFKA_REPLICATION"
    ]  # fmt: skip
    if {*replicas} != {"1"}:
        found.append("kafka is one broker: its own topics and ours have one replica")
    published = services["kafka"]["ports"]
    found += [f"kafka's {port} is not published" for _, host, port in said
              if host == "localhost" and f"127.0.0.1:{port}:{port}" not in published]  # fmt: skip
    places = {f"{host}:{port}": secured.get(name) for name, host, port in said}
    for name, service in services.items():
        environment = service.get("environment", {})
        server = environment.get("STEWARD_KAFKA_BOOTSTRAP_SERVERS")
        if server and places.get(server) != environment["STEWARD_KAFKA_SECURITY_PROTOCOL"]:
            found.append(f"{name}: kafka does not say of itself that it is {server}")
    return found


def _room(room: str, service: dict[str, Any] | None, services: dict[str, Any]) -> list[str]:
    if service is None:
        return [f"there is no service {room}"]
    told = service["environment"]
    found: list[str] = []
    try:
        settings = ServiceSettings.from_env(room, told)
    except Misconfigured as error:
        return [f"{room}: {error}"]
    if service["image"] != f"steward-{room}" or service["build"]["args"] != {"SERVICE": room}:
        found.append(f"{room} does not run its own image")
    if _seconds(service["stop_grace_period"]) <= settings.drain_seconds + _LEAVE_SECONDS:
        found.append(f"{room} is killed before it has drained")
    check = " ".join(service["healthcheck"]["test"])
    if f"127.0.0.1:{settings.port}/readyz" not in check:
        found.append(f"{room}: the health check asks another port or path")
    inside = {int(port.rpartition(":")[2]) for port in service["ports"]}
    if inside != {settings.port} | ({settings.public_port} - {0}):
        found.append(f"{room}: the published ports are not those that it opens")
    if settings.host.startswith("127."):
        found.append(f"{room} listens where no published port leads")
    if settings.public_port:
        outside = urlsplit(settings.public_url or "").port
        if f"127.0.0.1:{outside}:{settings.public_port}" not in service["ports"]:
            found.append(f"{room}: mailed links lead to {settings.public_url}, which nobody answers")
    wanted = {one["name"] for one in environment(load(room)) if one["name"].startswith("STEWARD_")}
    wanted |= {"STEWARD_BLOBS"} if load(room).rights.blobs else set()
    missing = {
        name for name in wanted - told.keys() if not name.startswith(("STEWARD_KAFKA_SASL", "STEWARD_KAFKA_SSL"))
    }
    found += [f"{room} is not told {name}, as it is in the cluster" for name in sorted(missing)]
    if service["depends_on"].get("provision", {}).get("condition") != "service_completed_successfully":
        found.append(f"{room} does not wait for its database")
    if service["tmpfs"] != ["/tmp"]:
        found.append(f"{room} has no place for a moment's file")
    if not (service["read_only"] and service["cap_drop"] == ["ALL"] and service["user"].split(":")[0] != "0"):
        found.append(f"{room} may do more than it needs")
    foreign = [f"STEWARD_{other.upper()}_" for other in ROOMS if other != room] + ["STEWARD_POSTGRES_URL"]
    found += [f"{room} is told {variable}" for variable in told if variable.startswith(tuple(foreign))]
    # What provisioning gives a role is what the service logs in with.
    given = services["provision"]["environment"]
    for variable, text in told.items():
        if variable.endswith("_DATABASE_URL") and given.get(variable) != text:
            found.append(f"{room}: {variable} is not the one that provision makes")
    for names in (Names(room), *([] if room == "audit" else [Names("keys")])):
        url = urlsplit(told[names.app_variable])
        if (url.username, url.path) != (names.app, f"/{names.database}"):
            found.append(f"{room}: {names.app_variable} names another role or database")
    return found


def _circles(services: dict[str, Any]) -> list[str]:
    left = {name: set(service.get("depends_on", {})) & services.keys() for name, service in services.items()}
    while free := [name for name, deps in left.items() if not deps]:
        for name in free:
            del left[name]
        for deps in left.values():
            deps -= set(free)
    return [f"{', '.join(sorted(left))} wait for each other"] if left else []


def test_nothing_is_wrong_with_it() -> None:
    assert faults(_compose()) == []


@pytest.mark.parametrize(
    ("path", "value", "said"),
    [
        ("billing.environment.STEWARD_BATCH_RECORD", "5", "nobody reads STEWARD_BATCH_RECORD"),
        ("billing.environment.STEWARD_METERING_DATABASE_URL", "x", "billing is told STEWARD_METERING_DATABASE_URL"),
        ("billing.environment.STEWARD_BILLING_DATABASE_URL", None, "STEWARD_BILLING_DATABASE_URL is not set"),
        ("billing.environment.STEWARD_BILLING_DATABASE_URL",
         "postgresql://steward_billing_app:other@postgres:5432/steward_billing", "not the one that provision makes"),
        ("billing.environment.STEWARD_BILLING_DATABASE_URL",
         "postgresql://steward_billing_owner:local-only@postgres:5432/steward_billing", "names another role or database"),
        ("billing.environment.STEWARD_BILLING_PORT", "8090", "asks another port or path"),
        ("billing.stop_grace_period", "30s", "killed before it has drained"),
        ("billing.environment.STEWARD_DRAIN_SECONDS", "41", "killed before it has drained"),
        ("billing.image", "steward-metering", "does not run its own image"),
        ("billing.ports", ["127.0.0.1:8082:8081"], "not those that it opens"),
        ("billing.ports", ["127.0.0.1:8081:8080"], "port 8081 is taken"),
        ("billing.ports", ["0.0.0.0:8082:8080"], "open to the network"),
        ("billing.read_only", False, "may do more than it needs"),
        ("billing.user", "0:0", "may do more than it needs"),
        ("billing.depends_on", {"provisions": {"condition": "service_started"}}, "which is no service"),
        ("billing.depends_on", {"provision": {"condition": "service_healthy"}}, "says nothing of its health"),
        ("kafka.depends_on", {"metering": {"condition": "service_started"}}, "wait for each other"),
        ("kafka.image", "apache/kafka", "names no version"),
        ("kafka.volume", [], "volume is no key of a service"),
        ("kafka.volumes", ["kafkas:/var/lib/kafka/data"], "there is no volume kafkas"),
        ("kafka.environment.KAFKA_ADVERTISED_LISTENERS", "MESH://kafka:9095,HOST://localhost:9094", "listens elsewhere"),
        ("kafka.environment.KAFKA_ADVERTISED_LISTENERS", "MESH://localhost:9092,HOST://localhost:9094",
         "kafka does not say of itself that it is kafka:9092"),
        ("kafka.environment.KAFKA_LISTENER_SECURITY_PROTOCOL_MAP", "MESH:PLAINTEXT,HOST:PLAINTEXT", "without a protocol"),
        ("kafka.environment.KAFKA_INTER_BROKER_LISTENER_NAME", "PLAINTEXT", "kafka has no listener PLAINTEXT"),
        ("kafka.environment.KAFKA_CONTROLLER_QUORUM_VOTERS", "1@localhost:9094", "kafka does not vote for itself"),
        ("kafka.ports", ["127.0.0.1:9092:9092"], "kafka's 9094 is not published"),
        ("billing.environment.STEWARD_KAFKA_BOOTSTRAP_SERVERS", "broker:9092", "names broker, which is no service"),
        ("billing.environment.STEWARD_KAFKA_BOOTSTRAP_SERVERS", "kafka:9094", "say of itself that it is kafka:9094"),
        ("billing.environment.STEWARD_KEYS_DATABASE_URL",
         "postgresql://steward_keys_app:local-only@db:5432/steward_keys", "names db, which is no service"),
        ("notifications.environment.STEWARD_SMTP_URL", "smtp://mailpit:1025", "names mailpit, which is no service"),
        ("billing.environment.STEWARD_BLOBS", "/blobs", "STEWARD_BLOBS is in no volume"),
        ("provision.volumes", ["keys:/var/lib/steward/keys:ro", "blobs:/var/lib/steward/blobs"], "cannot be written"),
        ("billing.environment.STEWARD_HTTP_HOST", "127.0.0.1", "listens where no published port leads"),
        ("retention.environment.STEWARD_PUBLIC_URL", "http://localhost:8091", "which nobody answers"),
        ("retention.environment.STEWARD_PUBLIC_PORT", "8081", "nobody reads STEWARD_PUBLIC_PORT"),
        ("notifications.environment.STEWARD_SMTP_URL", None, "notifications is not told STEWARD_SMTP_URL"),
        ("billing.environment.STEWARD_MASTER_KEY_FILE", None, "billing is not told STEWARD_MASTER_KEY_FILE"),
        ("retention.environment.STEWARD_BLOBS", None, "retention is not told STEWARD_BLOBS"),
        ("audit.environment.STEWARD_AUDITOR_KEYS_DATABASE_URL", None, "audit is not told STEWARD_AUDITOR_KEYS"),
        ("notifications.environment.STEWARD_SMTP_URL", "smtp://mail:25", "a port on which mail does not listen"),
        ("billing.depends_on", {"provision": {"condition": "service_started"}}, "billing does not wait for its database"),
        ("billing.tmpfs", [], "no place for a moment's file"),
        ("provision.depends_on", {"postgres": {"condition": "service_healthy"}}, "provision does not wait for kafka"),
        ("kafka.environment.KAFKA_OFFSETS_TOPIC_REPLICATION_FACTOR", "3", "kafka is one broker"),
        ("provision.environment.STEWARD_KAFKA_REPLICATION", "3", "kafka is one broker"),
        ("provision.image", "steward-metering", "steward-metering is built twice at a time"),
        ("provision.environment.STEWARD_AUDITOR_KEYS_DATABASE_URL", None, "provision is not told"),
        ("security", None, "there is no service security"),
    ],
)  # fmt: skip
def test_a_changed_one_is_found_out(path: str, value: Any, said: str) -> None:
    compose = _compose()
    *folders, name = path.split(".")
    place = compose["services"]
    for folder in folders:
        # Merged mappings are shared between services.
        place[folder] = dict(place[folder])
        place = place[folder]
    if value is None:
        del place[name]
    else:
        place[name] = value
    assert said in "\n".join(faults(compose))


def test_the_servers_are_those_that_the_tests_run() -> None:
    services = _compose()["services"]
    assert services["kafka"]["image"] == f"apache/kafka:{KAFKA_VERSION}"
    assert services["postgres"]["image"] == "postgres:18"


def test_every_build_names_the_dockerfile_and_its_service() -> None:
    found = parse((_TREE / "deploy/Dockerfile").read_text(encoding="utf-8"))
    arguments = {step.text for stage in found.stages for step in stage.all("ARG")}
    exposed = {int(port) for step in found.stages[-1].all("EXPOSE") for port in step.words}
    opened: set[int] = set()
    for name, service in _compose()["services"].items():
        if service["image"].startswith("steward-"):
            build = service["build"]
            file = Path(_FILE.parent, build["context"], build["dockerfile"])
            assert file.resolve() == _TREE / "deploy/Dockerfile", name
            assert build["args"].keys() <= arguments
            opened |= {int(port.rpartition(":")[2]) for port in service.get("ports", ())}
    assert opened == exposed


async def test_no_password_is_made_up_that_nobody_would_know() -> None:
    told = dict(_compose()["services"]["provision"]["environment"])
    del told["STEWARD_KEYS_OWNER_DATABASE_URL"]
    with pytest.raises(Misconfigured, match="STEWARD_KEYS_OWNER_DATABASE_URL not set"):
        await prepare(told)
