"""A pod as the runtime needs it: its environment is read by the code itself, and its pace leaves time to drain."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from typing import Any

from deploy.k8s import names, rights
from deploy.k8s.checks.objects import Overlay
from deploy.k8s.names import Doc
from deploy.k8s.workload import memory_mib
from services.audit.app import Sources
from shared.mesh import Service
from shared.mesh.clock import clock_from
from shared.mesh.settings import KafkaSettings, Misconfigured, ServiceSettings

_VARIABLE = re.compile(r"\$\(([A-Za-z_][A-Za-z0-9_]*)\)")
# Beyond the drain: leaving Kafka, closing the pool (`Runtime.stop`).
_AFTER_DRAIN_SECONDS = 20
_PATHS = {"startupProbe": "/livez", "livenessProbe": "/livez", "readinessProbe": "/readyz"}


def check(overlay: Overlay) -> list[str]:
    """A sentence for each pod of a service that would not start, be judged, drained or limited as the runtime needs it."""
    house = rights.services()
    said = []
    for doc, pods in overlay.workloads():
        if pods.namespace == names.NAMESPACE and pods.name in house:
            service = house[pods.name]
            said += [f"Deployment {pods.name}: {each}" for each in _deployment(overlay, doc, service)]
    return said


def _deployment(overlay: Overlay, doc: Doc, service: Service) -> Iterator[str]:
    spec = doc["spec"]["template"]["spec"]
    container = spec["containers"][0]
    if doc["spec"]["strategy"].get("rollingUpdate") != {"maxSurge": 0, "maxUnavailable": 1}:
        yield "a roll-out that starts pods beside the old ones stops the group twice as often (maxSurge 0, maxUnavailable 1)"
    if doc["spec"].get("replicas", 1) < 1:
        yield "no pod of it runs"
    told, wrong = variables(overlay, container)
    yield from wrong
    environment = _Heard(told)
    for sentence in (_settings(environment, service), _kafka(environment), _audit(environment, service)):
        if sentence:
            yield sentence
    unread = {name for name in told if name.startswith("STEWARD_")} - environment.asked - {"STEWARD_LOG_FORMAT"}
    yield from (f"{name} is told, and nobody asks for it" for name in sorted(unread))
    if names.COLLECTOR in {pods.name for pods in overlay.pods()} and "OTEL_EXPORTER_OTLP_ENDPOINT" not in told:
        yield "there is a collector, and it is not told where its traces go"
    for kind, path in _PATHS.items():
        probe = container.get(kind, {}).get("httpGet", {})
        if probe.get("path") != path or probe.get("port") != "http":
            yield f"{kind} has to ask {path} on the port http"
    drain = float(environment.get("STEWARD_DRAIN_SECONDS", "25"))
    if spec["terminationGracePeriodSeconds"] < drain + _AFTER_DRAIN_SECONDS:
        yield f"a grace of {spec['terminationGracePeriodSeconds']} s cuts a drain of {drain:.0f} s and what comes after it"
    resources = container["resources"]
    memory = resources["requests"]["memory"]
    if memory != resources["limits"]["memory"]:
        yield "requests and limits of memory differ"
    if service.footprint is not None and memory != f"{memory_mib(service.footprint)}Mi":
        yield f"memory {memory} is not what was measured ({memory_mib(service.footprint)}Mi)"
    if "cpu" in resources["limits"]:
        yield "a limit of CPU looks like lag"


class _Heard(dict[str, str]):
    """An environment that knows what it was asked for."""

    def __init__(self, told: Mapping[str, str]) -> None:
        super().__init__(told)
        self.asked: set[str] = set()

    def get(self, name: str, default: Any = None) -> Any:
        self.asked.add(name)
        return super().get(name, default)


def variables(overlay: Overlay, container: Doc) -> tuple[dict[str, str], list[str]]:
    """The container's environment as the kubelet makes it, secrets as a stand-in, and what is wrong with it."""
    found: dict[str, str] = {}
    wrong = []
    for source in container.get("envFrom", []):
        found |= overlay.named("ConfigMap").get(source["configMapRef"]["name"], {}).get("data", {})
    for variable in container.get("env", []):
        name, value = variable["name"], variable.get("value", "a-secret")
        # A reference to what is said later, or nowhere, stays as it is: no error, and no password.
        missing = [each for each in _VARIABLE.findall(value) if each not in found]
        wrong += [f"{name} refers to {each}, which is not said before it" for each in missing]
        found[name] = _VARIABLE.sub(lambda match: found.get(match[1], match[0]), value)
    return found, wrong


def _settings(environment: Mapping[str, str], service: Service) -> str | None:
    try:
        settings = ServiceSettings.from_env(service.name, environment)
        clock_from(settings.clock, settings.environment)
    except (Misconfigured, ValueError) as error:
        return f"its settings are refused: {error}"
    if settings.environment != "production":
        return f"STEWARD_ENV is {settings.environment}: only production has no shortcuts"
    if settings.port != names.HTTP_PORT or settings.host != "0.0.0.0":  # noqa: S104 - inside a pod
        return "it listens where nobody looks"
    if service.uses_keys and not settings.keys_database_url:
        return "it uses keys and is not told where they are"
    if service.rights.blobs and not settings.blobs:
        return "it stores copies and is not told where"
    if service.rights.signs and not settings.signing_key_file:
        return "it signs and is not told with what"
    if service.file_handlers and not settings.public_url:
        return "it gives out links and is not told where they lead"
    if "smtp" in service.rights.egress and not (settings.smtp_url and settings.mail_from):
        return "it sends mail and is not told how"
    return None


def _kafka(environment: Mapping[str, str]) -> str | None:
    kafka = KafkaSettings.from_env(environment)
    login = (kafka.security_protocol, kafka.sasl_mechanism) == ("SASL_SSL", "SCRAM-SHA-512")
    if not (login and kafka.sasl_username and kafka.sasl_password and kafka.ssl_cafile):
        return "it does not go to Kafka with TLS and a login of its own"
    if kafka.bootstrap_servers != names.KAFKA_BOOTSTRAP:
        return f"{kafka.bootstrap_servers} is not the mesh's Kafka"
    return None


def _audit(environment: Mapping[str, str], service: Service) -> str | None:
    if not service.rights.audits:
        return None
    try:
        Sources.from_env(environment)
    except Misconfigured as error:
        return str(error)
    missing = [
        room for room in (*service.rights.audits, rights.KEYS)
        if environment.get(f"STEWARD_AUDITOR_{room.upper()}_DATABASE_URL") is None
    ]  # fmt: skip
    return f"it audits {', '.join(missing)} and is not told where that is" if missing else None
