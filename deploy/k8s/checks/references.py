"""Names that one object says and another one has to have: selectors, ports, secrets and their keys, accounts, classes, topics."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from typing import Any

from deploy.k8s import names, rights, secrets
from deploy.k8s.checks.objects import Overlay, Pods, home_of, matches
from deploy.k8s.checks.runs import variables
from deploy.k8s.names import Doc
from shared.contract.topics import BY_NAME

# What lives in no namespace.
_NOBODYS = {"Namespace", "PriorityClass", "ClusterRole", "ClusterRoleBinding", "ClusterSecretStore"}
# A host and its port, in a URL or a list of servers.
_ADDRESS = re.compile(r"(?:^|//|@|,)([a-z][a-z0-9.-]*):([0-9]+)(?=[/?,]|$)")


def check(overlay: Overlay) -> list[str]:
    """A sentence for each name that leads nowhere."""
    return [
        *_namespaces(overlay), *_selectors(overlay), *_pods(overlay), *_addresses(overlay), *_priorities(overlay),
        *_stores(overlay), *_kafka(overlay), *_postgres(overlay),
    ]  # fmt: skip


def _namespaces(overlay: Overlay) -> Iterator[str]:
    there = {doc["metadata"]["name"] for doc in overlay.of("Namespace")}
    for doc in overlay.of("Namespace"):
        if doc["metadata"].get("labels", {}).get("pod-security.kubernetes.io/enforce") != "restricted":
            yield f"Namespace {doc['metadata']['name']} does not hold its pods to the restricted standard"
    for doc in overlay.docs:
        namespace = doc["metadata"].get("namespace")
        if doc["kind"] not in _NOBODYS and namespace not in there:
            yield f"{doc['kind']} {doc['metadata']['name']}: there is no namespace {namespace}"


# --- selectors ---------------------------------------------------------------------------------------------------


def _selectors(overlay: Overlay) -> Iterator[str]:
    pods = overlay.pods()
    for doc in overlay.of("Service", "PodDisruptionBudget", "PodMonitor", "NetworkPolicy"):
        spec, where = doc["spec"], f"{doc['kind']} {doc['metadata']['name']}"
        selector = (
            {"matchLabels": spec["selector"]}
            if doc["kind"] == "Service"
            else spec.get("selector", spec.get("podSelector"))
        )
        home = home_of(doc)
        found = [each for each in pods if each.namespace == home and matches(selector, each.labels)]
        if not found:
            yield f"{where} selects no pod"
        for peer in (peer for side in ("from", "to") for peers in values_of(side, spec) for peer in peers):
            ours = "podSelector" in peer and "namespaceSelector" not in peer
            if ours and not any(each.namespace == home and matches(peer["podSelector"], each.labels) for each in pods):
                yield f"{where} speaks of pods that there are none of: {peer['podSelector']}"
        wanted = [port.get("targetPort") for port in spec.get("ports", [])] if doc["kind"] == "Service" else []
        wanted += [endpoint["port"] for endpoint in spec.get("podMetricsEndpoints", [])]
        for each in found:
            if each.spec is None:
                continue  # an operator's: its ports are in no manifest
            yield from (f"{where}: {each.name} has no port {port!r}" for port in wanted if port not in each.ports())
    budgets = [doc["spec"]["selector"] for doc in overlay.of("PodDisruptionBudget")]
    for service in rights.services():
        if not any(each.name == service for each in pods):
            yield f"{service} has no pods"
        elif not any(matches(budget, names.selector(service)) for budget in budgets):
            yield f"{service} has no PodDisruptionBudget"


# --- pods --------------------------------------------------------------------------------------------------------


def _pods(overlay: Overlay) -> Iterator[str]:
    held, maps = _secrets(overlay), _config_maps(overlay)
    for doc, pods in overlay.workloads():
        where, spec = f"{doc['kind']} {pods.name}", pods.spec or {}
        if not matches(doc["spec"]["selector"], pods.labels):
            yield f"{where} does not select its own pods"
        account = spec.get("serviceAccountName")
        if account is not None and account not in overlay.named("ServiceAccount"):
            yield f"{where}: there is no ServiceAccount {account}"
        for constraint in spec.get("topologySpreadConstraints", []):
            if not matches(constraint["labelSelector"], pods.labels):
                yield f"{where}: a spread over {constraint['topologyKey']} does not count its own pods"
        for container in spec["containers"]:
            yield from (f"{where}: {said}" for said in _container(container, pods, spec))
            yield from (f"{where}: {said}" for said in _given(container, spec, held, maps))


def _container(container: Doc, pods: Pods, spec: Doc) -> Iterator[str]:
    volumes = {volume["name"] for volume in spec.get("volumes", [])}
    for mount in container.get("volumeMounts", []):
        if mount["name"] not in volumes:
            yield f"there is no volume {mount['name']}"
    for kind in ("startupProbe", "livenessProbe", "readinessProbe"):
        probe = container.get(kind, {}).get("httpGet") or container.get(kind, {}).get("tcpSocket")
        if probe and probe["port"] not in pods.ports():
            yield f"{kind} asks a port {probe['port']!r} that it does not have"


def _given(container: Doc, spec: Doc, held: Mapping[str, set[str]], maps: Mapping[str, set[str]]) -> Iterator[str]:
    for said in _references(container, spec):
        kind, name, key = said
        known = held if kind == "secret" else maps
        if name not in known:
            yield f"nothing makes the {kind} {name}"
        elif key is not None and key not in known[name]:
            yield f"the {kind} {name} has no key {key}"


def secrets_of(workload: Doc) -> set[str]:
    """The secrets that a workload's pods are given."""
    spec = workload["spec"]["template"]["spec"]
    containers = (*spec.get("initContainers", []), *spec["containers"])
    return {name for each in containers for kind, name, _ in _references(each, spec) if kind == "secret"}


def _references(container: Doc, spec: Doc) -> Iterator[tuple[str, str, str | None]]:
    """(kind, name, key) of every secret and config map that a pod needs; a whole one has no key."""
    for source in container.get("envFrom", []):
        if "configMapRef" in source:
            yield "config map", source["configMapRef"]["name"], None
        if "secretRef" in source:
            yield "secret", source["secretRef"]["name"], None
    for variable in container.get("env", []):
        source = variable.get("valueFrom", {})
        if "secretKeyRef" in source:
            yield "secret", source["secretKeyRef"]["name"], source["secretKeyRef"]["key"]
        if "configMapKeyRef" in source:
            yield "config map", source["configMapKeyRef"]["name"], source["configMapKeyRef"]["key"]
    for volume in spec.get("volumes", []):
        if "configMap" in volume:
            yield "config map", volume["configMap"]["name"], None
        sources = [volume["secret"]] if "secret" in volume else []
        sources += [source["secret"] for source in volume.get("projected", {}).get("sources", [])]
        for source in sources:
            name = source.get("secretName", source.get("name"))
            yield from (("secret", name, item["key"]) for item in source.get("items", [{"key": None}]))


def _config_maps(overlay: Overlay) -> dict[str, set[str]]:
    return {name: set(doc.get("data", {})) for name, doc in overlay.named("ConfigMap").items()}


def _secrets(overlay: Overlay) -> dict[str, set[str]]:
    """Every secret that will be there and its keys: of external-secrets or `steward k8s secrets`, and of the operators."""
    external = overlay.named("ExternalSecret")
    if external:
        held = {name: {each["secretKey"] for each in doc["spec"]["data"]} for name, doc in external.items()}
    else:
        held = {secret.name: set(secret.keys) for secret in secrets.wanted(rights.services().values())}
    if any("userOperator" in doc["spec"].get("entityOperator", {}) for doc in overlay.of("Kafka")):
        held |= {user: {"password", "sasl.jaas.config"} for user in overlay.named("KafkaUser")}
    for kafka in overlay.named("Kafka"):
        held[f"{kafka}-cluster-ca-cert"] = {"ca.crt", "ca.p12", "ca.password"}
    for cluster in overlay.named("Cluster"):
        held[f"{cluster}-ca"] = {"ca.crt", "ca.key"}
    return held


# --- addresses, priorities, stores ---------------------------------------------------------------------------------


def _addresses(overlay: Overlay) -> Iterator[str]:
    """Of what a pod is told: hosts of this cluster that there are, on a port that they have."""
    served, there = _served(overlay), {doc["metadata"]["name"] for doc in overlay.of("Namespace")}
    for doc, pods in overlay.workloads():
        for container in (pods.spec or {})["containers"] if pods.namespace == names.NAMESPACE else ():
            for variable, value in variables(overlay, container)[0].items():
                for host, port in _ADDRESS.findall(value):
                    name, *rest = host.split(".")
                    namespace = rest[0] if rest[1:2] == ["svc"] else pods.namespace
                    elsewhere = (rest and rest[1:2] != ["svc"]) or namespace not in there or host == "localhost"
                    if not elsewhere and int(port) not in served.get((namespace, name), ()):
                        where = f"{doc['kind']} {pods.name}: {variable}"
                        yield f"{where} leads to {host}:{port}, and nothing listens there"


def _served(overlay: Overlay) -> dict[tuple[str, str], set[int]]:
    """The ports by which a name (in a namespace) is reached: of Services, and of those that operators make."""
    found = {}

    def add(doc: Doc, name: str, ports: set[int]) -> None:
        found[home_of(doc), name] = ports

    for doc in overlay.of("Service", "Cluster", "Kafka", "OpenTelemetryCollector"):
        name, spec = doc["metadata"]["name"], doc["spec"]
        match doc["kind"]:
            case "Service":
                add(doc, name, {port["port"] for port in spec["ports"]})
            case "Cluster":
                for way in ("rw", "ro", "r"):
                    add(doc, f"{name}-{way}", {names.POSTGRES_PORT})
            case "Kafka":
                add(doc, f"{name}-kafka-bootstrap", {listener["port"] for listener in spec["kafka"]["listeners"]})
            case _:
                ends = (text.rpartition(":")[2] for text in names_in(spec["config"]["receivers"]))
                add(doc, f"{name}-collector", {int(end) for end in ends if end.isdigit()})
    return found


def _priorities(overlay: Overlay) -> Iterator[str]:
    values = {name: doc["value"] for name, doc in overlay.named("PriorityClass").items()}
    if values != dict(names.PRIORITIES):
        yield f"the PriorityClasses are {values}, and the code says {dict(names.PRIORITIES)}"
    for doc in overlay.docs:
        for name in sorted(set(values_of("priorityClassName", doc)) - values.keys()):
            yield f"{doc['kind']} {doc['metadata']['name']}: there is no PriorityClass {name}"


def _stores(overlay: Overlay) -> Iterator[str]:
    stores = overlay.named("SecretStore")
    for doc in overlay.of("ExternalSecret"):
        store = doc["spec"]["secretStoreRef"]
        if store.get("kind", "SecretStore") == "SecretStore" and store["name"] not in stores:
            yield f"ExternalSecret {doc['metadata']['name']}: there is no SecretStore {store['name']}"
    for name, doc in stores.items():
        for account in values_of("serviceAccountRef", doc):
            if account["name"] not in overlay.named("ServiceAccount"):
                yield f"SecretStore {name}: there is no ServiceAccount {account['name']}"
    held, maps = _secrets(overlay), _config_maps(overlay)
    for doc in overlay.of("TriggerAuthentication"):
        for kind, field, known in (("secret", "secretTargetRef", held), ("config map", "configMapTargetRef", maps)):
            for said in doc["spec"].get(field, []):
                if said["key"] not in known.get(said["name"], ()):
                    where = f"TriggerAuthentication {doc['metadata']['name']}"
                    yield f"{where}: no {kind} {said['name']} with a key {said['key']}"


# --- Kafka and PostgreSQL ----------------------------------------------------------------------------------------


def _kafka(overlay: Overlay) -> Iterator[str]:
    kafkas, topics = overlay.named("Kafka"), overlay.named("KafkaTopic")
    brokers = sum(pool["spec"]["replicas"] for pool in overlay.of("KafkaNodePool") if "broker" in pool["spec"]["roles"])
    for name, doc in kafkas.items():
        spec = doc["spec"]["kafka"]
        if spec.get("authorization") != {"type": "simple"}:
            yield f"Kafka {name}: rights count only with simple authorization, and without super users"
        for listener in spec["listeners"]:
            if not listener["tls"] or listener.get("authentication") != {"type": "scram-sha-512"}:
                yield f"Kafka {name}: its listener {listener['name']} has to ask for TLS and a login"
        for setting, value in spec.get("config", {}).items():
            if setting.endswith("replication.factor") and int(value) > brokers:
                yield f"Kafka {name}: {setting} is {value} on {brokers} brokers"
    for doc in overlay.of("KafkaNodePool"):
        for context in values_of("securityContext", doc):
            if "fsGroup" not in context:
                where = f"KafkaNodePool {doc['metadata']['name']}"
                yield f"{where}: its security context takes the operator's place, and with it the group that may write to volumes"
    for doc in overlay.of("KafkaTopic", "KafkaUser", "KafkaNodePool"):
        if doc["metadata"]["labels"].get("strimzi.io/cluster") not in kafkas:
            yield f"{doc['kind']} {doc['metadata']['name']} belongs to no Kafka that is here"
    for name, topic in topics.items():
        if name not in BY_NAME:
            yield f"KafkaTopic {name}: the contract has no such topic"
        replicas, in_sync = topic["spec"]["replicas"], int(topic["spec"]["config"]["min.insync.replicas"])
        if not in_sync <= replicas <= brokers:
            yield f"KafkaTopic {name}: {in_sync} in sync of {replicas} replicas on {brokers} brokers"
        if replicas > 1 and in_sync == replicas:
            yield f"KafkaTopic {name}: with all {replicas} replicas in sync, one broker away stops its writers"
    for user in overlay.of("KafkaUser"):
        for acl in user["spec"].get("authorization", {}).get("acls", []):
            resource = acl["resource"]
            if resource["type"] == "topic" and resource["name"] not in topics:
                yield f"KafkaUser {user['metadata']['name']}: there is no topic {resource['name']}"


def _postgres(overlay: Overlay) -> Iterator[str]:
    clusters, held = overlay.named("Cluster"), _secrets(overlay)
    for doc in overlay.of("DatabaseRole"):
        spec, where = doc["spec"], f"DatabaseRole {doc['metadata']['name']}"
        if spec["cluster"]["name"] not in clusters:
            yield f"{where}: there is no Cluster {spec['cluster']['name']}"
        if spec["passwordSecret"]["name"] not in held:
            yield f"{where}: nothing makes the secret {spec['passwordSecret']['name']}"
    for name, cluster in clusters.items():
        if cluster["spec"]["bootstrap"]["initdb"]["secret"]["name"] not in held:
            yield f"Cluster {name}: nothing makes the secret of its owner"
        number = cluster["spec"].get("postgresql", {}).get("synchronous", {}).get("number", 0)
        if number >= cluster["spec"]["instances"]:
            yield f"Cluster {name}: with {cluster['spec']['instances']} instances, {number} others never have what is committed"


def values_of(key: str, value: Any) -> Iterator[Any]:
    """What stands under `key`, wherever it is in a nested value."""
    if isinstance(value, Mapping):
        if key in value:
            yield value[key]
        value = list(value.values())
    for each in value if isinstance(value, list) else ():
        yield from values_of(key, each)


def names_in(value: Any) -> Iterator[str]:
    """Every text in a nested value."""
    if isinstance(value, str):
        yield value
    elif isinstance(value, Mapping):
        for each in value.values():
            yield from names_in(each)
    elif isinstance(value, list):
        for each in value:
            yield from names_in(each)
