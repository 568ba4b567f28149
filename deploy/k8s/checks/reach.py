"""Who reaches whom, by the policies as they are; and that this is exactly what the code needs.

Policies are read as Kubernetes reads them: a pod that no policy selects for a direction is open in it; rules add up; a packet
passes when the sender's side and the receiver's side both let it. A peer without a namespace selector is in the policy's own
namespace. What is outside of the namespace has no policies of ours and lets everything.

Tried is every port that a policy names (of a range: its ends), between all that there is and all that a policy speaks of:
an address of each block, a pod that a selector would find though no manifest makes it.
"""

from __future__ import annotations

import ipaddress
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple
from urllib.parse import urlsplit

from deploy.k8s import names, network, rights
from deploy.k8s.checks.objects import Overlay, home_of, jobs_of, matches
from deploy.k8s.names import Doc

WORLD, API_SERVER = "the world", "the API server"
# One that nobody in a cluster has (documentation's, RFC 5737), one of a cluster's own network.
_ADDRESSES = ("203.0.113.7", "10.96.0.1")
_CLUSTERS = tuple(
    ipaddress.ip_network(block) for block in ("10.0.0.0/8", "172.16.0.0/12", "192.168.0.0/16", "fc00::/7")
)
_DNS = "kube-dns"
# A port that no policy names: open where a rule names none.
_UNNAMED = 9
_NAME_OF_NAMESPACE = "kubernetes.io/metadata.name"


class Path(NamedTuple):
    """A way that a connection can take."""

    source: str
    target: str
    port: int
    protocol: str = "TCP"

    def __str__(self) -> str:
        return f"{self.source} reaches {self.target} on {self._port()}"

    def needed(self) -> str:
        """As what has to be."""
        return f"{self.source} has to reach {self.target} on {self._port()}"

    def _port(self) -> str:
        return str(self.port) if self.protocol == "TCP" else f"{self.port}/{self.protocol}"


class _End(NamedTuple):
    name: str
    namespace: str
    labels: Mapping[str, str]
    address: str | None = None
    ports: Mapping[str, int] = {}
    about: Mapping[str, str] = {}
    """Labels of its namespace, beside the name."""


def policies(overlay: Overlay) -> list[Doc]:
    """Every policy: of manifests, and those that Strimzi makes of listeners (its other ones follow no manifest)."""
    made = []
    for doc in overlay.of("Kafka"):
        broker = {"strimzi.io/name": f"{doc['metadata']['name']}-kafka"}
        doors = [
            {"ports": [{"protocol": "TCP", "port": listener["port"]}], "from": listener.get("networkPolicyPeers", [])}
            for listener in doc["spec"]["kafka"]["listeners"]
        ]
        spec = {"podSelector": {"matchLabels": broker}, "policyTypes": ["Ingress"], "ingress": doors}
        made.append({"metadata": {"namespace": home_of(doc)}, "spec": spec})
    return [*overlay.of("NetworkPolicy"), *made]


def ends(overlay: Overlay) -> list[_End]:
    """Everything that packets come from and go to: pods, the neighbours' namespaces, addresses outside, and whoever else a
    policy speaks of."""
    found = [_End(pods.name, pods.namespace, pods.labels, None, pods.ports()) for pods in overlay.pods()]
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
    # A newcomer: a pod in our namespace that no policy but the default knows.
    found.append(_End("a newcomer", names.NAMESPACE, {"app.kubernetes.io/name": "newcomer"}))
    found.append(_End(_DNS, "kube-system", {"k8s-app": "kube-dns"}))
    found += [_end_of_address(address) for address in _ADDRESSES]
    for policy in policies(overlay):
        home = home_of(policy)
        for rule in _all_rules(policy):
            for peer in (*(rule.get("from") or ()), *(rule.get("to") or ())):
                spoken_of = _spoken_of(peer, home)
                # Whoever has a namespace selector without a name finds pods anywhere, however well one of them is known.
                known = "ipBlock" not in peer and spoken_of.namespace != "stranger" and any(
                    _is_peer(peer, home, end) for end in found
                )  # fmt: skip
                if not known and spoken_of not in found:
                    found.append(spoken_of)
    return found


def _spoken_of(peer: Doc, home: str) -> _End:
    """Somebody whom the peer of a policy finds."""
    if "ipBlock" in peer:
        block = ipaddress.ip_network(peer["ipBlock"]["cidr"])
        shut = [ipaddress.ip_network(cidr) for cidr in peer["ipBlock"].get("except", [])]
        first = (block[0], *(each[-1] + 1 for each in shut))
        inside = (each for each in first if each in block and not any(each in other for other in shut))
        return _end_of_address(str(next(inside, block[0])))
    about = _found_by(peer["namespaceSelector"]) if "namespaceSelector" in peer else {_NAME_OF_NAMESPACE: home}
    namespace = about.pop(_NAME_OF_NAMESPACE, "stranger")
    labels = _found_by(peer.get("podSelector"))
    pod, place = (", ".join(f"{key}={value}" for key, value in each.items()) for each in (labels, about))
    name = f"{f'a pod with {pod}' if pod else 'any pod'} in {f'a namespace with {place}' if place else namespace}"
    return _End(name, namespace, labels, about=about)


def _found_by(selector: Mapping[str, Any] | None) -> dict[str, str]:
    """Labels that a selector finds."""
    selector = selector or {}
    found = dict(selector.get("matchLabels", {}))
    for expression in selector.get("matchExpressions", []):
        if expression["operator"] in ("In", "Exists"):
            found[expression["key"]] = expression.get("values", ["any"])[0]
    return found


def _end_of_address(address: str) -> _End:
    inside = any(ipaddress.ip_address(address) in block for block in _CLUSTERS)
    return _End(API_SERVER if inside else WORLD, "", {}, address)


def _all_rules(policy: Doc) -> list[Doc]:
    return [rule for direction in ("ingress", "egress") for rule in policy["spec"].get(direction) or []]


def _ports(overlay: Overlay) -> set[tuple[str, int]]:
    """(protocol, number) of every port that a policy or a pod names, and one that none does."""
    found = {(protocol, _UNNAMED) for protocol in ("TCP", "UDP", "SCTP")}
    found |= {("TCP", number) for pods in overlay.pods() for number in pods.ports().values()}
    for policy in policies(overlay):
        for rule in _all_rules(policy):
            for port in rule.get("ports") or []:
                numbers = (port.get("port", _UNNAMED), port.get("endPort", _UNNAMED))
                found |= {(port.get("protocol", "TCP"), number) for number in numbers if isinstance(number, int)}
    return found


def open_paths(overlay: Overlay) -> set[Path]:
    """Every path that the policies leave open, of those that touch the mesh's namespace."""
    given, everything = policies(overlay), ends(overlay)
    ports = _ports(overlay) | {(path.protocol, path.port) for path in needed_paths(overlay)}
    outward = [_rules(given, end, "Egress") for end in everything]
    inward = [_rules(given, end, "Ingress") for end in everything]
    found = set()
    for source, out in zip(everything, outward, strict=True):
        for target, into in zip(everything, inward, strict=True):
            if source is target or names.NAMESPACE not in (source.namespace, target.namespace):
                continue
            way_out, way_in = _open(out, "to", target, target), _open(into, "from", source, target)
            found |= {
                Path(source.name, target.name, number, protocol)
                for protocol, number in ports
                if _passes(way_out, protocol, number) and _passes(way_in, protocol, number)
            }
    return found


_Rules = list[tuple[str, Doc]] | None


def _rules(given: Iterable[Doc], end: _End, direction: str) -> _Rules:
    """The rules that hold for `end`, each with its policy's namespace; None when no policy selects it (all is open)."""
    selecting = [
        policy for policy in given
        if home_of(policy) == end.namespace and direction in _directions(policy)
        and matches(policy["spec"]["podSelector"], end.labels)
    ]  # fmt: skip
    if not selecting:
        return None
    return [(home_of(policy), rule) for policy in selecting for rule in policy["spec"].get(direction.lower()) or []]


def _directions(policy: Doc) -> Sequence[str]:
    """For what the policy holds: where it does not say, for what comes in, and for what goes out if it has rules for that."""
    spec = policy["spec"]
    said: Sequence[str] = spec.get("policyTypes") or (["Ingress", "Egress"] if spec.get("egress") else ["Ingress"])
    return said


_Way = list[tuple[str, int, int]]
"""Open ports: protocol, first, last."""


def _open(rules: _Rules, side: str, other: _End, target: _End) -> _Way:
    """What the rules leave open between an end and the `other`; named ports are the target's."""
    if rules is None:
        return [(protocol, 1, 65_535) for protocol in ("TCP", "UDP", "SCTP")]
    way: _Way = []
    for home, rule in rules:
        if not _has_peer(rule.get(side), home, other):
            continue
        for port in rule.get("ports") or [{"protocol": protocol} for protocol in ("TCP", "UDP", "SCTP")]:
            first = port.get("port", 1)
            if isinstance(first, str):
                first = target.ports.get(first, 0)
            last = port.get("endPort", first if "port" in port else 65_535)
            way.append((port.get("protocol", "TCP"), first, last))
    return way


def _passes(way: _Way, protocol: str, number: int) -> bool:
    return any(each == protocol and first <= number <= last for each, first, last in way)


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
        if not matches(peer["namespaceSelector"], {_NAME_OF_NAMESPACE: other.namespace, **other.about}):
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
            yield Path(name, *_store(overlay))
        yield from (Path(name, WORLD, port) for word in service.rights.egress for port in network.EGRESS[word])
        if "smtp" in service.rights.egress and "mail" in there:
            yield Path(name, "mail", 1025)
        if names.COLLECTOR in there:
            yield Path(name, names.COLLECTOR, 4318)
        if network.TOOLBOX in there:
            yield Path(network.TOOLBOX, name, names.HTTP_PORT)
    for who in (network.GATEWAY_HOME, network.OPERATORS["scaler"]):
        yield Path(who, broker, names.KAFKA_PORT)
    if network.TOOLBOX in there:
        yield Path(network.TOOLBOX, broker, names.KAFKA_PORT)
        yield from (Path(network.TOOLBOX, database, names.POSTGRES_PORT) for database in databases)
    operator = f"{names.KAFKA}-entity-operator"
    yield Path(operator, broker, 9091)
    yield from (Path(network.OPERATORS["kafka"], broker, port) for port in (8443, 9090, 9091))
    for database in databases:
        yield from (Path(network.OPERATORS["postgres"], database, port) for port in (names.POSTGRES_PORT, 8000))
        yield Path(network.MONITORING, database, 9187)
        yield Path(jobs_of(database), database, names.POSTGRES_PORT)
    for part in (broker, operator, *databases, *map(jobs_of, databases)):
        yield from (Path(part, API_SERVER, port) for port in (443, 6443))
    if names.COLLECTOR in there:
        yield Path(names.COLLECTOR, network.MONITORING, 4317)
    yield from (Path(name, _DNS, 53, protocol) for name in there if name != "mail" for protocol in ("UDP", "TCP"))


def _store(overlay: Overlay) -> tuple[str, int]:
    """Where copies are kept, as the services are told (without a word: at Amazon), and its port."""
    settings = [doc["data"] for name, doc in overlay.named("ConfigMap").items() if name.startswith(names.SETTINGS)]
    told = urlsplit(next((data["AWS_ENDPOINT_URL"] for data in settings if "AWS_ENDPOINT_URL" in data), ""))
    inside = (told.hostname or "").split(".")[1:2] == [network.OBJECTS]
    return network.OBJECTS if inside else WORLD, told.port or 443


def check(overlay: Overlay) -> list[str]:
    """A sentence for each path that is open and that nobody needs, and for each that somebody needs and that is shut."""
    opened, needed = open_paths(overlay), needed_paths(overlay)
    # Jobs are their database's pods for a while: they may do what it may, and go to it.
    databases = {jobs_of(doc["metadata"]["name"]): doc["metadata"]["name"] for doc in overlay.of("Cluster")}
    taken = {
        path._replace(source=databases.get(path.source, path.source), target=databases.get(path.target, path.target))
        for path in opened
    }
    return [
        *(f"{path}, and nothing needs it" for path in sorted(taken - needed) if path.source != path.target),
        *(f"{path.needed()}, and no policy lets it" for path in sorted(needed - opened)),
    ]
