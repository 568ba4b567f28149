"""What things are called in the cluster: one place, for what is rendered, verified and written by hand."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, TypeAlias

Doc: TypeAlias = dict[str, Any]
"""A Kubernetes object."""

NAMESPACE = "steward"
PART_OF = {"app.kubernetes.io/part-of": "steward"}
HTTP_PORT, FILES_PORT = 8080, 8081

KAFKA = "steward"
KAFKA_PORT = 9093
KAFKA_BOOTSTRAP = f"{KAFKA}-kafka-bootstrap:{KAFKA_PORT}"
KAFKA_CA = f"{KAFKA}-cluster-ca-cert"
BROKERS: Mapping[str, str] = {"strimzi.io/cluster": KAFKA, "strimzi.io/name": f"{KAFKA}-kafka"}
"""What finds Kafka's nodes, and not the entity operator, which is of the same kind to Strimzi."""
COLLECTOR = f"{KAFKA}-collector"
POSTGRES_PORT = 5432

SETTINGS = "steward-settings"
"""The ConfigMap of what every service is told alike; an overlay changes it."""
MASTER_KEY, SIGNING_KEY, SMTP, BLOBS = "steward-master-key", "steward-signing-key", "steward-smtp", "steward-blobs"
"""The secrets that nobody but the installation can make."""
AUDITOR_SECRET = "steward-auditor"  # noqa: S105 - the name of a secret

GATEWAY, OPERATOR, SCALER = "gateway", "operator", "keda"
"""Principals of Kafka that are no service: the platform, people with the toolbox, the autoscaler."""

PRIORITIES: Mapping[str, int] = {"steward-platform": 1_000_000, "steward-books": 100_000, "steward-rooms": 50_000}
"""Who stays when a node is full: what all stand on, then the books, then the rest."""


def labels(name: str, **more: str) -> dict[str, str]:
    """The labels of everything that belongs to `name`."""
    return {"app.kubernetes.io/name": name, **PART_OF, **more}


def selector(name: str) -> dict[str, str]:
    """What finds the pods of `name`, and nobody else's."""
    return {"app.kubernetes.io/name": name}


def database_selector(room: str) -> dict[str, str]:
    """What finds every pod of a database: CloudNativePG marks with it the jobs that make an instance, too, and those get none of
    the cluster's inherited labels."""
    return {"cnpg.io/cluster": cluster(room)}


def meta(name: str, of: str, **more: Any) -> Doc:
    """`metadata` of an object called `name` that belongs to `of`."""
    return {"name": name, "namespace": NAMESPACE, "labels": labels(of), **more}


def cluster(room: str) -> str:
    """The PostgreSQL cluster of a service, or of the keys."""
    return f"{room}-db"


def database_host(room: str) -> str:
    """The name under which its primary is reached."""
    return f"{cluster(room)}-rw"


def owner_secret(room: str) -> str:
    return f"{cluster(room)}-owner"


def app_secret(room: str) -> str:
    return f"{cluster(room)}-app"


def database_ca(room: str) -> str:
    """The secret in which CloudNativePG keeps the authority that signs the cluster's certificates."""
    return f"{cluster(room)}-ca"
