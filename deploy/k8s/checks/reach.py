"""Who reaches whom, by the policies as they are; and that this is exactly what the code needs.

Policies are read as Kubernetes reads them: a pod that no policy selects for a direction is open in it; rules add up; a packet
passes when the sender's side and the receiver's side both let it. A peer without a namespace selector is in the policy's own
namespace. What is outside of the namespace has no policies of ours and lets everything.
"""

from __future__ import annotations

import ipaddress
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple

from deploy.k8s import names, network, rights
from deploy.k8s.checks.objects import Overlay, Pods, matches
from deploy.k8s.names import Doc

WORLD, API_SERVER = "the world", "the API server"
# An address of each: one that nobody in a cluster has (documentation's, RFC 5737), one of a cluster's own network.
_ADDRESSES = {WORLD: "203.0.113.7", API_SERVER: "10.96.0.1"}
_PORTS = (
    25,
    53,
    80,
    443,
    465,
    587,
    1025,
    4317,
    4318,
    5432,
    6443,
    8000,
    8025,
    8080,
    8081,
    8443,
    9000,
    9090,
    9091,
    9093,
    9187,
)
_DNS = "kube-dns"


class Path(NamedTuple):
    """A way that a connection can take."""

    source: str
    target: str
    port: int


class _End(NamedTuple):
    name: str
    namespace: str
    labels: Mapping[str, str]
    address: str | None = None


def ends(overlay: Overlay) -> list[_End]:
    """Everything that packets come from and go to: pods, the neighbours' namespaces, addresses outside."""
    found = [_End(pods.name, pods.namespace, pods.labels) for pods in overlay.pods()]
    there = {(end.namespace, end.name) for end in found}
    neighbours = [
        network.MONITORING,
        network.INGRESS,
        network.OBJECTS,
        network.GATEWAY_HOME,
        *network.OPERATORS.values(),
    ]
    found += [_End(name, name, {}) for name in neighbours if (name, name) not in there]
    # A stranger: a pod in a namespace that nobody here knows.
    found.append(_End("a stranger", "stranger", {"app.kubernetes.io/name": "stranger"}))
    found.append(_End(_DNS, "kube-system", {"k8s-app": "kube-dns"}))
    return [*found, *(_End(name, "", {}, address) for name, address in _ADDRESSES.items())]


def open_paths(overlay: Overlay) -> set[Path]:
    """Every path that the policies leave open, of those that touch the mesh's namespace."""
    policies = overlay.of("NetworkPolicy")
    everything = ends(overlay)
    found = set()
    for source in everything:
        outward = _rules(policies, source, "Egress")
        for target in everything:
            if source == target or names.NAMESPACE not in (source.namespace, target.namespace):
                continue
            inward = _rules(policies, target, "Ingress")
            for port in _PORTS:
                if _passes(outward, "to", target, port) and _passes(inward, "from", source, port):
                    found.add(Path(source.name, target.name, port))
    return found


_Rules = list[tuple[str, Doc]] | None


def _rules(policies: Iterable[Doc], end: _End, direction: str) -> _Rules:
    """The rules that hold for `end`, each with its policy's namespace; None when no policy selects it (all is open)."""
    selecting = [
        policy for policy in policies
        if policy["metadata"]["namespace"] == end.namespace and direction in policy["spec"]["policyTypes"]
        and matches(policy["spec"]["podSelector"], end.labels)
    ]  # fmt: skip
    if not selecting:
        return None
    return [
        (policy["metadata"]["namespace"], rule)
        for policy in selecting
        for rule in policy["spec"].get(direction.lower()) or []
    ]


def _passes(rules: _Rules, side: str, other: _End, port: int) -> bool:
    if rules is None:
        return True
    return any(_has_port(rule, port) and _has_peer(rule.get(side), home, other) for home, rule in rules)


def _has_port(rule: Doc, port: int) -> bool:
    ports = rule.get("ports")
    return not ports or any(each.get("port") in (None, port) for each in ports)


def _has_peer(peers: Sequence[Doc] | None, home: str, other: _End) -> bool:
    return not peers or any(_is_peer(peer, home, other) for peer in peers)


def _is_peer(peer: Mapping[str, Any], home: str, other: _End) -> bool:
    if "ipBlock" in peer:
        if other.address is None:
            return False
        address, block = ipaddress.ip_address(other.address), peer["ipBlock"]
        inside = address in ipaddress.ip_network(block["cidr"])
        return inside and not any(address in ipaddress.ip_network(cidr) for cidr in block.get("except", []))
    if other.address is not None:
        return False
    if "namespaceSelector" in peer:
        if not matches(peer["namespaceSelector"], {"kubernetes.io/metadata.name": other.namespace}):
            return False
    elif other.namespace != home:
        return False
    return "podSelector" not in peer or matches(peer["podSelector"], other.labels)


def needed_paths(overlay: Overlay) -> set[Path]:
    """Every path that something needs, by the declarations of the services and what each operator's parts say to each other."""
    return set(_needed(overlay))


def _needed(overlay: Overlay) -> Iterator[Path]:
    there = {pods.name for pods in overlay.pods() if pods.namespace == names.NAMESPACE}
    house = rights.services()
    broker = f"{names.KAFKA}-kafka"
    databases = {names.cluster(room): room for room in (*house, rights.KEYS)}
    for name, service in house.items():
        yield Path(network.MONITORING, name, names.HTTP_PORT)
        yield Path(name, broker, names.KAFKA_PORT)
        for room in rights.databases(service):
            yield Path(name, names.cluster(room), names.POSTGRES_PORT)
        if service.file_handlers:
            yield Path(network.INGRESS, name, names.FILES_PORT)
        if service.rights.blobs:
            yield Path(name, network.OBJECTS, 9000)
        if "smtp" in service.rights.egress:
            yield from (Path(name, WORLD, port) for port in (25, 465, 587))
            if "mail" in there:
                yield Path(name, "mail", 1025)
        if f"{names.KAFKA}-collector" in there:
            yield Path(name, f"{names.KAFKA}-collector", 4318)
        if network.TOOLBOX in there:
            yield Path(network.TOOLBOX, name, names.HTTP_PORT)
    for who in (network.GATEWAY_HOME, network.OPERATORS["scaler"]):
        yield Path(who, broker, names.KAFKA_PORT)
    if network.TOOLBOX in there:
        yield Path(network.TOOLBOX, broker, names.KAFKA_PORT)
        yield from (Path(network.TOOLBOX, database, names.POSTGRES_PORT) for database in databases)
    for database in databases:
        yield Path(network.OPERATORS["postgres"], database, 8000)
        yield Path(network.MONITORING, database, 9187)
    operator = f"{names.KAFKA}-entity-operator"
    yield Path(operator, broker, 9091)
    yield from (Path(network.OPERATORS["kafka"], broker, port) for port in (8443, 9090, 9091))
    for part in (broker, operator, *databases):
        yield from (Path(part, API_SERVER, port) for port in (443, 6443))
    if f"{names.KAFKA}-collector" in there:
        yield Path(f"{names.KAFKA}-collector", network.MONITORING, 4317)
    yield from (Path(name, _DNS, 53) for name in there if name != "mail")


def check(overlay: Overlay) -> list[str]:
    """A sentence for each path that is open and that nobody needs, and for each that somebody needs and that is shut."""
    opened, needed = open_paths(overlay), needed_paths(overlay)
    return [
        *(f"{p.source} reaches {p.target} on {p.port}, and nothing needs it" for p in sorted(opened - needed)),
        *(f"{p.source} has to reach {p.target} on {p.port}, and no policy lets it" for p in sorted(needed - opened)),
    ]


def unselected(overlay: Overlay) -> list[Pods]:
    """Pods of the namespace that no policy of both directions selects."""
    denied = [doc for doc in overlay.of("NetworkPolicy") if set(doc["spec"]["policyTypes"]) == {"Ingress", "Egress"}]
    return [
        pods
        for pods in overlay.pods()
        if pods.namespace == names.NAMESPACE
        and not any(matches(doc["spec"]["podSelector"], pods.labels) for doc in denied)
    ]
