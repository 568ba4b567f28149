"""Topics and users, as Strimzi makes them."""

from __future__ import annotations

from collections.abc import Iterable

from deploy.k8s import names, rights
from deploy.k8s.names import Doc
from deploy.k8s.rights import Grant
from shared.contract.topics import TOPICS, Topic
from shared.mesh import Service
from shared.mesh.admin import created_with

_API = "kafka.strimzi.io/v1"
# Strimzi's own label: which of its clusters a resource is for.
_CLUSTER = {"strimzi.io/cluster": names.KAFKA}
_REPLICAS, _IN_SYNC = 3, 2


def topics() -> list[Doc]:
    """Every topic of the contract."""
    return [_topic(topic) for topic in TOPICS]


def _topic(topic: Topic) -> Doc:
    return {
        "apiVersion": _API,
        "kind": "KafkaTopic",
        "metadata": {
            "name": topic.name,
            "namespace": names.NAMESPACE,
            "labels": names.PART_OF | _CLUSTER,
            "annotations": {"steward.dev/about": topic.title},
        },
        "spec": {
            "partitions": topic.partitions,
            "replicas": _REPLICAS,
            "config": created_with(topic) | {"min.insync.replicas": str(_IN_SYNC)},
        },
    }


def users(house: Iterable[Service]) -> list[Doc]:
    """A principal for each service, the platform, people and the autoscaler, each with what it needs and no more."""
    services = list(house)
    return [
        *(_user(service.name, rights.grants(service)) for service in services),
        _user(names.GATEWAY, rights.gateway_grants()),
        _user(names.OPERATOR, rights.operator_grants()),
        _user(names.SCALER, rights.scaler_grants(services)),
    ]


def _user(name: str, grants: Iterable[Grant]) -> Doc:
    return {
        "apiVersion": _API,
        "kind": "KafkaUser",
        "metadata": {"name": name, "namespace": names.NAMESPACE, "labels": names.labels(name) | _CLUSTER},
        "spec": {
            "authentication": {"type": "scram-sha-512"},
            "authorization": {
                "type": "simple",
                "acls": [
                    {
                        "resource": {"type": grant.kind, "name": grant.name, "patternType": "literal"},
                        "operations": list(grant.operations),
                    }
                    for grant in grants
                ],
            },
        },
    }
