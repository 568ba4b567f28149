"""A service as pods: Deployment, ServiceAccount, disruption budget, and the ports that others reach."""

from __future__ import annotations

import math

from deploy.k8s import names, rights
from deploy.k8s.names import Doc
from deploy.local.databases import AUDITOR, Names
from shared.mesh import Service
from shared.mesh.service import Footprint

_UID = 65532
_FILES = "/etc/steward"
# `Runtime.stop`: 25 s for the batch in hand, 5 to leave Kafka, 10 to close the pool; and some to spare.
DRAIN_SECONDS, GRACE_SECONDS = 25, 60
# Memory is requested, and limited, at half as much again as was ever measured.
_HEADROOM = 1.5
_STEP_MIB = 32


def footprint(service: Service) -> Footprint:
    """What was measured of the service. Raises ValueError for one of which nothing was."""
    if service.footprint is None:
        raise ValueError(
            f"{service.name} declares no footprint: measure it (make bench), then declare it in its app.py"
        )
    return service.footprint


def memory_mib(measured: Footprint) -> int:
    """Memory to request, in MiB: what was measured (MB) and half as much again, in steps of 32."""
    return math.ceil(measured.memory_mb * _HEADROOM * 1e6 / 2**20 / _STEP_MIB) * _STEP_MIB


def deployment(service: Service) -> Doc:
    """The service's Deployment: one consumer process in each pod, exchanged one by one."""
    measured = footprint(service)
    memory = f"{memory_mib(measured)}Mi"
    return {
        "apiVersion": "apps/v1",
        "kind": "Deployment",
        "metadata": names.meta(service.name, service.name),
        "spec": {
            "replicas": measured.replicas,
            "revisionHistoryLimit": 5,
            # A pod more is two rebalances more, and each stops the whole group.
            "strategy": {"type": "RollingUpdate", "rollingUpdate": {"maxSurge": 0, "maxUnavailable": 1}},
            "selector": {"matchLabels": names.selector(service.name)},
            "template": {
                "metadata": {"labels": names.labels(service.name)},
                "spec": pod(service.name, _container(service, memory), _volumes(service))
                | {"priorityClassName": "steward-books" if measured.books else "steward-rooms"},
            },
        },
    }


def pod(name: str, container: Doc, volumes: list[Doc]) -> Doc:
    """A pod that may do nothing that it need not: no root, no token, no privilege, a root file system that it cannot write."""
    return {
        "serviceAccountName": name,
        "automountServiceAccountToken": False,
        "enableServiceLinks": False,
        "terminationGracePeriodSeconds": GRACE_SECONDS,
        "securityContext": {
            "runAsNonRoot": True,
            "runAsUser": _UID,
            "runAsGroup": _UID,
            "fsGroup": _UID,
            "seccompProfile": {"type": "RuntimeDefault"},
        },
        "topologySpreadConstraints": [
            {
                "maxSkew": 1,
                "topologyKey": key,
                "whenUnsatisfiable": "ScheduleAnyway",
                "labelSelector": {"matchLabels": names.selector(name)},
            }
            for key in ("topology.kubernetes.io/zone", "kubernetes.io/hostname")
        ],
        "containers": [
            container
            | {
                "securityContext": {
                    "allowPrivilegeEscalation": False,
                    "readOnlyRootFilesystem": True,
                    "capabilities": {"drop": ["ALL"]},
                }
            }
        ],
        "volumes": [{"name": "tmp", "emptyDir": {"sizeLimit": "64Mi"}}, *volumes],
    }


def _container(service: Service, memory: str) -> Doc:
    ports = [{"name": "http", "containerPort": names.HTTP_PORT}]
    if service.file_handlers:
        ports.append({"name": "files", "containerPort": names.FILES_PORT})
    return {
        "name": service.name,
        "image": f"steward-{service.name}",
        "imagePullPolicy": "IfNotPresent",
        "args": [service.name],
        "ports": ports,
        "envFrom": [{"configMapRef": {"name": names.SETTINGS}}],
        "env": environment(service),
        # The port opens when the schema is migrated and the topics are there: until then nobody is impatient.
        "startupProbe": _probe("/livez", period=5, failures=60),
        # Progress, and neither Kafka nor PostgreSQL: an outage of theirs is no reason to restart every pod.
        "livenessProbe": _probe("/livez", period=10, failures=6),
        "readinessProbe": _probe("/readyz", period=5, failures=3),
        "resources": {"requests": {"cpu": "250m", "memory": memory}, "limits": {"memory": memory}},
        "volumeMounts": [{"name": "tmp", "mountPath": "/tmp"}, *_mounts(service)],  # noqa: S108 - the pod's own
    }


def _probe(path: str, *, period: int, failures: int) -> Doc:
    return {
        "httpGet": {"path": path, "port": "http"},
        "periodSeconds": period,
        "timeoutSeconds": 5,
        "failureThreshold": failures,
    }


def environment(service: Service) -> list[Doc]:
    """What the process is told (README.md, the table of variables), beside what all are told alike."""
    upper = service.name.upper()
    told: list[Doc] = [
        {"name": f"STEWARD_{upper}_PORT", "value": str(names.HTTP_PORT)},
        {"name": "STEWARD_DRAIN_SECONDS", "value": str(DRAIN_SECONDS)},
        *kafka_login(service.name),
        *database_logins(service),
    ]
    if service.uses_keys:
        told.append({"name": "STEWARD_MASTER_KEY_FILE", "value": f"{_FILES}/master/master.key"})
    if service.file_handlers:
        told.append({"name": f"STEWARD_{upper}_PUBLIC_PORT", "value": str(names.FILES_PORT)})
    if service.rights.signs:
        told.append({"name": "STEWARD_SIGNING_KEY_FILE", "value": f"{_FILES}/signing/signing.pem"})
    if service.rights.blobs:
        told += [_secret("AWS_ACCESS_KEY_ID", names.BLOBS, "access-key"),
                 _secret("AWS_SECRET_ACCESS_KEY", names.BLOBS, "secret-key")]  # fmt: skip
    if "smtp" in service.rights.egress:
        told += [_secret("STEWARD_SMTP_URL", names.SMTP, "url"), _secret("STEWARD_MAIL_FROM", names.SMTP, "from")]
    return told


def kafka_login(principal: str) -> list[Doc]:
    """As whom the process goes to Kafka."""
    return [
        {"name": "STEWARD_KAFKA_SASL_USERNAME", "value": principal},
        _secret("STEWARD_KAFKA_SASL_PASSWORD", principal, "password"),
        {"name": "STEWARD_KAFKA_SSL_CAFILE", "value": f"{_FILES}/kafka/ca.crt"},
    ]


def database_logins(service: Service) -> list[Doc]:
    """The URL of each database that the service uses; passwords come from secrets and stand before what names them."""
    audits = bool(service.rights.audits)
    told = login(service.name, Names(service.name).owner, "OWNER", names.owner_secret(service.name))
    told += login(service.name, Names(service.name).app, "", names.app_secret(service.name))
    if audits:
        # One login for all that is read; the keys, too, are seen with it and no other.
        for room in (*service.rights.audits, rights.KEYS):
            told += login(room, AUDITOR, "AUDITOR", names.AUDITOR_SECRET)
    elif service.uses_keys:
        told += login(rights.KEYS, Names(rights.KEYS).owner, "OWNER", names.owner_secret(rights.KEYS))
        told += login(rights.KEYS, Names(rights.KEYS).app, "", names.app_secret(rights.KEYS))
    return told


def login(room: str, role: str, kind: str, secret: str) -> list[Doc]:
    """The URL of `room`'s database for `role`, and the password in it. `kind`: OWNER, AUDITOR or none."""
    upper = room.upper()
    variable = {
        "OWNER": f"STEWARD_{upper}_OWNER_DATABASE_URL",
        "AUDITOR": f"STEWARD_AUDITOR_{upper}_DATABASE_URL",
    }.get(kind, f"STEWARD_{upper}_DATABASE_URL")
    password = f"{variable.removesuffix('_URL').removeprefix('STEWARD_')}_PASSWORD"
    host = f"{names.database_host(room)}:{names.POSTGRES_PORT}"
    security = f"sslmode=verify-full&sslrootcert={_FILES}/db/{room}/ca.crt&ssl_min_protocol_version=TLSv1.3"
    url = f"postgresql://{role}:$({password})@{host}/{Names(room).database}?{security}"
    return [_secret(password, secret, "password"), {"name": variable, "value": url}]


def _secret(variable: str, secret: str, key: str) -> Doc:
    return {"name": variable, "valueFrom": {"secretKeyRef": {"name": secret, "key": key}}}


def _mounts(service: Service) -> list[Doc]:
    return [{"name": v["name"], "mountPath": f"{_FILES}/{v['name']}", "readOnly": True} for v in _volumes(service)]


def _volumes(service: Service) -> list[Doc]:
    volumes = [kafka_volume(), database_volume(rights.databases(service))]
    if service.uses_keys:
        volumes.append({"name": "master", "secret": {"secretName": names.MASTER_KEY, "defaultMode": 0o440}})
    if service.rights.signs:
        volumes.append({"name": "signing", "secret": {"secretName": names.SIGNING_KEY, "defaultMode": 0o440}})
    return volumes


def kafka_volume() -> Doc:
    """The authority that signs the brokers' certificates."""
    return {"name": "kafka", "secret": {"secretName": names.KAFKA_CA, "items": [{"key": "ca.crt", "path": "ca.crt"}]}}


def database_volume(rooms: tuple[str, ...]) -> Doc:
    """The authorities that sign the certificates of the databases of `rooms`, a folder each."""
    sources = [
        {"secret": {"name": names.database_ca(room), "items": [{"key": "ca.crt", "path": f"{room}/ca.crt"}]}}
        for room in rooms
    ]
    return {"name": "db", "projected": {"sources": sources}}


def identity(service: Service) -> Doc:
    """An account of the service's own, without a token and without rights: nobody here talks to the API server."""
    return {
        "apiVersion": "v1",
        "kind": "ServiceAccount",
        "metadata": names.meta(service.name, service.name),
        "automountServiceAccountToken": False,
    }


def disruption(service: Service) -> Doc:
    """One pod at a time may be taken away, and a broken one always."""
    return {
        "apiVersion": "policy/v1",
        "kind": "PodDisruptionBudget",
        "metadata": names.meta(service.name, service.name),
        "spec": {
            "maxUnavailable": 1,
            "unhealthyPodEvictionPolicy": "AlwaysAllow",
            "selector": {"matchLabels": names.selector(service.name)},
        },
    }


def ports(service: Service) -> list[Doc]:
    """The reads, for the toolbox; and files, for whoever has a link."""
    found = [_service(service.name, service.name, "http", names.HTTP_PORT)]
    if service.file_handlers:
        found.append(_service(f"{service.name}-files", service.name, "files", names.FILES_PORT))
    return found


def _service(name: str, of: str, port: str, number: int) -> Doc:
    return {
        "apiVersion": "v1",
        "kind": "Service",
        "metadata": names.meta(name, of),
        "spec": {
            "selector": names.selector(of),
            "ports": [{"name": port, "port": number, "targetPort": port, "protocol": "TCP"}],
        },
    }
