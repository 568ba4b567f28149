"""Who may reach whom: one policy for each service, over a default that lets nobody reach anybody.

A policy of a service says where it may go and who may come. What is reached says the same from its side (Kafka, each
database), so that both ends have to agree before a packet passes.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence

from deploy.k8s import names, rights
from deploy.k8s.names import Doc
from shared.mesh import Service

MONITORING, INGRESS, OBJECTS, GATEWAY_HOME = "monitoring", "ingress", "object-store", "gateway"
"""Namespaces of others: who scrapes, who lets people in, where copies are stored, where the platform runs."""
OPERATORS = {"kafka": "strimzi", "postgres": "cnpg-system", "scaler": "keda"}
TOOLBOX = "toolbox"
_OBJECTS_PORT = 9000
EGRESS: Mapping[str, tuple[int, ...]] = {"smtp": (25, 465, 587), "processor": (443,)}
"""The ports outside of the cluster behind each word of `Rights.egress`."""
# What is not the cluster's, and not a private network either: the mail server's side of the world.
_OUTSIDE = {
    "ipBlock": {"cidr": "0.0.0.0/0", "except": ["10.0.0.0/8", "172.16.0.0/12", "192.168.0.0/16", "169.254.0.0/16"]}
}
_POSTGRES_STATUS = 8000
_OTLP_HTTP, _OTLP_GRPC = 4318, 4317


def policies(house: Sequence[Service]) -> list[Doc]:
    """A policy for each service, the toolbox, the brokers' door, and each database."""
    return [
        *(of_service(service) for service in house),
        of_toolbox(house),
        of_brokers(house),
        *(of_database(room, house) for room in (*(service.name for service in house), rights.KEYS)),
    ]


def of_service(service: Service) -> Doc:
    """In: scrapes, probes (from the node, which no policy stops), reads of the toolbox. Out: what it was declared to need."""
    inward = [
        _rule("from", [_namespace(MONITORING), _pods(TOOLBOX)], names.HTTP_PORT),
    ]
    if service.file_handlers:
        inward.append(_rule("from", [_namespace(INGRESS)], names.FILES_PORT))
    outward = [_dns(), _kafka(), *(_database(room) for room in rights.databases(service))]
    if service.rights.blobs:
        outward.append(_rule("to", [_namespace(OBJECTS)], _OBJECTS_PORT))
    outward += [_rule("to", [_OUTSIDE], *EGRESS[word]) for word in service.rights.egress]
    return _policy(service.name, names.selector(service.name), inward, outward)


def of_toolbox(house: Iterable[Service]) -> Doc:
    """People's hands: reads of every service, commands over Kafka, cursors in every database."""
    rooms = [service.name for service in house]
    outward = [
        _dns(),
        _kafka(),
        _rule("to", [_pods(room) for room in rooms], names.HTTP_PORT),
        *(_database(room) for room in (*rooms, rights.KEYS)),
    ]
    return _policy(TOOLBOX, names.selector(TOOLBOX), [], outward)


def of_brokers(house: Iterable[Service]) -> Doc:
    """Who may come to the brokers. What they and their operator say to each other is said by hand beside this."""
    return _policy("kafka-clients", dict(names.BROKERS), [_rule("from", clients(house), names.KAFKA_PORT)], None)


def clients(house: Iterable[Service]) -> list[Doc]:
    """Who may come to Kafka. The listener has to say it, too: Strimzi makes a policy for each, and one without peers lets in
    everybody, whatever other policies say."""
    return [
        *(_pods(service.name) for service in house),
        _pods(TOOLBOX), _namespace(GATEWAY_HOME), _namespace(OPERATORS["scaler"]),
    ]  # fmt: skip


def patches(house: Iterable[Service]) -> list[tuple[Doc, list[Doc]]]:
    """The same at Kafka's listener."""
    peers = {"op": "add", "path": "/spec/kafka/listeners/0/networkPolicyPeers", "value": clients(house)}
    return [({"kind": "Kafka", "name": names.KAFKA}, [peers])]


def of_database(room: str, house: Iterable[Service]) -> Doc:
    """Who may come to a database: whoever declares it, its own members, and the operator; and whom they need."""
    users = [_pods(service.name) for service in house if room in rights.databases(service)]
    peers = [_database_pods(room)]
    inward = [
        _rule("from", [*users, _pods(TOOLBOX)], names.POSTGRES_PORT),
        # Both ports for the operator, too: CloudNativePG's page on networking asks for them.
        _rule("from", [*peers, _namespace(OPERATORS["postgres"])], names.POSTGRES_PORT, _POSTGRES_STATUS),
        _rule("from", [_namespace(MONITORING)], 9187),
    ]
    outward = [_dns(), _rule("to", peers, names.POSTGRES_PORT, _POSTGRES_STATUS), api_server()]
    return _policy(names.cluster(room), names.database_selector(room), inward, outward)


def of_traces(house: Iterable[Service]) -> list[Doc]:
    """From each service to the collector, and from there to where traces are kept."""
    rooms = [service.name for service in house]
    senders = {"matchExpressions": [{"key": "app.kubernetes.io/name", "operator": "In", "values": rooms}]}
    collector = names.selector(names.COLLECTOR)
    outward = _rule("to", [{"podSelector": {"matchLabels": collector}}], _OTLP_HTTP)
    kept = _rule("to", [_namespace(MONITORING)], _OTLP_GRPC)
    return [
        _document("traces-out", {"podSelector": senders, "policyTypes": ["Egress"], "egress": [outward]}),
        _policy(names.COLLECTOR, collector, [_rule("from", [{"podSelector": senders}], _OTLP_HTTP)], [_dns(), kept]),
    ]


def api_server() -> Doc:
    """To the API server, which no selector finds: on its ports, within the cluster's own networks."""
    private = [{"ipBlock": {"cidr": cidr}} for cidr in ("10.0.0.0/8", "172.16.0.0/12", "192.168.0.0/16")]
    return _rule("to", private, 443, 6443)


def _policy(name: str, who: Doc, inward: list[Doc], outward: list[Doc] | None) -> Doc:
    spec: Doc = {"podSelector": {"matchLabels": who}, "policyTypes": ["Ingress"]}
    # The API server keeps no empty list: what would be written anew with each apply is left out.
    spec |= {"ingress": inward} if inward else {}
    if outward is not None:
        spec |= {"policyTypes": ["Ingress", "Egress"], "egress": outward}
    return _document(name, spec)


def _document(name: str, spec: Doc) -> Doc:
    return {
        "apiVersion": "networking.k8s.io/v1",
        "kind": "NetworkPolicy",
        "metadata": names.meta(name, name),
        "spec": spec,
    }


def _rule(side: str, peers: list[Doc], *numbers: int) -> Doc:
    return {side: peers, "ports": [{"protocol": "TCP", "port": number} for number in numbers]}


def _dns() -> Doc:
    peer = _namespace("kube-system") | {"podSelector": {"matchLabels": {"k8s-app": "kube-dns"}}}
    return {"to": [peer], "ports": [{"protocol": protocol, "port": 53} for protocol in ("UDP", "TCP")]}


def _kafka() -> Doc:
    return _rule("to", [{"podSelector": {"matchLabels": dict(names.BROKERS)}}], names.KAFKA_PORT)


def _database(room: str) -> Doc:
    return _rule("to", [_database_pods(room)], names.POSTGRES_PORT)


def _database_pods(room: str) -> Doc:
    return {"podSelector": {"matchLabels": names.database_selector(room)}}


def _pods(name: str) -> Doc:
    return {"podSelector": {"matchLabels": names.selector(name)}}


def _namespace(name: str) -> Doc:
    return {"namespaceSelector": {"matchLabels": {"kubernetes.io/metadata.name": name}}}
