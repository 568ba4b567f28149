"""The objects of an overlay, and what the operators will make of them."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from deploy.k8s import names
from deploy.k8s.names import Doc

_WORKLOADS = ("Deployment", "StatefulSet", "DaemonSet")


@dataclass(frozen=True, slots=True)
class Pods:
    """Pods that run alike: who made them, their namespace and labels, and their spec where a manifest has it."""

    name: str
    namespace: str
    labels: Mapping[str, str]
    spec: Doc | None = None

    def ports(self) -> dict[str, int]:
        """The named ports of its containers."""
        containers = (self.spec or {}).get("containers", [])
        return {
            port["name"]: port["containerPort"] for c in containers for port in c.get("ports", []) if "name" in port
        }


class Overlay:
    """What `kubectl kustomize` gives of an overlay, to be asked."""

    def __init__(self, docs: Sequence[Doc]) -> None:
        self.docs = list(docs)

    def of(self, *kinds: str) -> list[Doc]:
        """The objects of these kinds."""
        return [doc for doc in self.docs if doc["kind"] in kinds]

    def named(self, kind: str) -> dict[str, Doc]:
        """The objects of a kind by name (in the mesh's namespace, or in none)."""
        home = (None, names.NAMESPACE)
        return {doc["metadata"]["name"]: doc for doc in self.of(kind) if doc["metadata"].get("namespace") in home}

    def workloads(self) -> Iterator[tuple[Doc, Pods]]:
        """Every workload that a manifest describes, and its pods."""
        for doc in self.of(*_WORKLOADS):
            template = doc["spec"]["template"]
            meta = doc["metadata"]
            yield doc, Pods(meta["name"], home_of(doc), template["metadata"].get("labels", {}), template["spec"])

    def pods(self) -> list[Pods]:
        """All pods: those of workloads, and those that the operators of Kafka, PostgreSQL and the collector make."""
        made = [pods for _, pods in self.workloads()]
        for doc in self.of("Kafka"):
            name = doc["metadata"]["name"]
            # The labels by which Strimzi, CloudNativePG and the OpenTelemetry operator mark their pods (their documentation).
            parts = ("kafka", "entity-operator") if "entityOperator" in doc["spec"] else ("kafka",)
            for part in (f"{name}-{part}" for part in parts):
                labels = {"strimzi.io/cluster": name, "strimzi.io/kind": "Kafka", "strimzi.io/name": part}
                made.append(_made(doc, part, labels))
        for doc in self.of("Cluster"):
            inherited = doc["spec"].get("inheritedMetadata", {}).get("labels", {})
            name = doc["metadata"]["name"]
            made.append(_made(doc, name, inherited | {"cnpg.io/cluster": name, "cnpg.io/podRole": "instance"}))
            # Jobs make each instance (its source: specs/jobs.go); their pods inherit nothing.
            job = {"cnpg.io/cluster": name, "cnpg.io/jobRole": "initdb", "app.kubernetes.io/name": "postgresql"}
            made.append(_made(doc, jobs_of(name), job))
        for doc in self.of("OpenTelemetryCollector"):
            name = f"{doc['metadata']['name']}-collector"
            made.append(_made(doc, name, {"app.kubernetes.io/name": name}))
        return made


def home_of(doc: Doc) -> str:
    """The namespace in which `kubectl` puts the object."""
    namespace: str = doc["metadata"].get("namespace", "default")
    return namespace


def jobs_of(cluster: str) -> str:
    """What the pods are called here that make a database's instances."""
    return f"{cluster}'s jobs"


def _made(doc: Doc, name: str, labels: Mapping[str, str]) -> Pods:
    return Pods(name, home_of(doc), labels)


def matches(selector: Mapping[str, Any] | None, labels: Mapping[str, str]) -> bool:
    """Whether a label selector (matchLabels, matchExpressions) finds `labels`; the empty one finds everything."""
    selector = selector or {}
    if any(labels.get(key) != value for key, value in selector.get("matchLabels", {}).items()):
        return False
    return all(_holds(expression, labels) for expression in selector.get("matchExpressions", []))


def _holds(expression: Mapping[str, Any], labels: Mapping[str, str]) -> bool:
    has, values = labels.get(expression["key"]), expression.get("values", [])
    match expression["operator"]:
        case "In":
            return has in values
        case "NotIn":
            return has not in values
        case "Exists":
            return has is not None
        case "DoesNotExist":
            return has is None
        case other:
            raise ValueError(f"no such operator of a selector: {other}")
