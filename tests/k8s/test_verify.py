"""Each kind of check is proved by what it says of a manifest in which one thing is wrong, and says nothing of ours."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
from click.testing import CliRunner

from deploy.cli import main
from deploy.k8s import names
from deploy.k8s.checks import drift, keda, privilege, reach, references, runs, seeing
from deploy.k8s.checks.objects import Overlay
from deploy.k8s.verify import CHECKS, judged, overlays
from shared.contract.topics import BALANCES, MESSAGES, PAYMENTS

Of = Callable[[str], Overlay]
Change = Callable[[Overlay], Any]


def one(overlay: Overlay, kind: str, name: str) -> dict[str, Any]:
    """The object, to be changed."""
    return overlay.named(kind)[name]


def container(overlay: Overlay, name: str) -> dict[str, Any]:
    """The container of a Deployment."""
    found: dict[str, Any] = one(overlay, "Deployment", name)["spec"]["template"]["spec"]["containers"][0]
    return found


def rules(overlay: Overlay, name: str, side: str) -> list[Any]:
    found: list[Any] = one(overlay, "NetworkPolicy", name)["spec"][side]
    return found


def env(overlay: Overlay, name: str, variable: str) -> dict[str, Any]:
    return next(each for each in container(overlay, name)["env"] if each["name"] == variable)


def trigger(overlay: Overlay, name: str, number: int = 0) -> dict[str, Any]:
    found: dict[str, Any] = one(overlay, "ScaledObject", name)["spec"]["triggers"][number]
    return found


def settings(overlay: Overlay) -> dict[str, Any]:
    """What every service is told alike."""
    maps = overlay.named("ConfigMap").items()
    found: dict[str, Any] = next(doc["data"] for name, doc in maps if name.startswith(names.SETTINGS))
    return found


def acls(overlay: Overlay, name: str) -> list[Any]:
    found: list[Any] = one(overlay, "KafkaUser", name)["spec"]["authorization"]["acls"]
    return found


def without(overlay: Overlay, kind: str, *gone: str) -> None:
    overlay.docs = [doc for doc in overlay.docs if doc["kind"] != kind or doc["metadata"]["name"] not in gone]


def both(outward: list[Any], rule: Any, inward: list[Any], peer: Any) -> None:
    """Opens a path at its two ends."""
    outward.append(rule)
    inward.append(peer)


def pods(name: str) -> dict[str, Any]:
    return {"podSelector": {"matchLabels": names.selector(name)}}


@pytest.mark.parametrize("name", ["dev", "staging", "prod"])
@pytest.mark.parametrize("about", CHECKS)
def test_ours_are_clean(overlay: Of, name: str, about: str) -> None:
    assert CHECKS[about](overlay(name)) == []


def test_the_command_says_it_of_every_overlay() -> None:
    said = CliRunner().invoke(main, ["k8s", "verify"])
    assert said.exit_code == 0, said.output
    assert (
        {line.partition(":")[0] for line in said.output.splitlines()} == set(overlays()) == {"dev", "prod", "staging"}
    )
    unknown = CliRunner().invoke(main, ["k8s", "verify", "produktion"])
    assert unknown.exit_code == 2 and "dev, prod, staging" in unknown.output


TO_BILLINGS_DATABASE = {
    "to": [{"podSelector": {"matchLabels": {"cnpg.io/cluster": "billing-db"}}}],
    "ports": [{"protocol": "TCP", "port": 5432}],
}


def listener(overlay: Overlay) -> dict[str, Any]:
    found: dict[str, Any] = one(overlay, "Kafka", "steward")["spec"]["kafka"]["listeners"][0]
    return found


def out(overlay: Overlay, name: str, block: str, **port: Any) -> None:
    """Lets a service out to a block of addresses."""
    rules(overlay, name, "egress").append(
        {"to": [{"ipBlock": {"cidr": block}}], "ports": [{"protocol": "TCP", **port}]}
    )


PATHS: dict[str, tuple[Change, str]] = {
    "both ends let insights into billing's database": (
        lambda o: both(rules(o, "insights", "egress"), TO_BILLINGS_DATABASE,
                       rules(o, "billing-db", "ingress")[0]["from"], pods("insights")),
        "insights reaches billing-db on 5432, and nothing needs it",
    ),
    "a service leaves the cluster": (
        lambda o: rules(o, "metering", "egress").append({"to": [{"ipBlock": {"cidr": "0.0.0.0/0"}}]}),
        "metering reaches the world on 443, and nothing needs it",
    ),
    "an empty rule opens everything": (
        lambda o: rules(o, "audit", "egress").append({}),
        "audit reaches the world on 443, and nothing needs it",
    ),
    "the default is gone": (
        lambda o: without(o, "NetworkPolicy", "default-deny", "security"),
        "a stranger reaches security on 8080, and nothing needs it",
    ),
    "a database is open to the namespace": (
        lambda o: rules(o, "keys-db", "ingress")[0].pop("from"),
        "gateway reaches keys-db on 5432, and nothing needs it",
    ),
    "a stranger's namespace may read": (
        lambda o: rules(o, "retention", "ingress")[0]["from"].append({"namespaceSelector": {}}),
        "a stranger reaches retention on 8080, and nothing needs it",
    ),
    "a needed path is shut": (
        lambda o: rules(o, "billing-db", "ingress").pop(0),
        "billing has to reach billing-db on 5432, and no policy lets it",
    ),
    "the brokers' door does not know a service": (
        lambda o: [peers.remove(pods("notifications")) for peers in (
            rules(o, "kafka-clients", "ingress")[0]["from"], listener(o)["networkPolicyPeers"])],
        "notifications has to reach steward-kafka on 9093, and no policy lets it",
    ),
    "one side alone is not enough": (
        lambda o: rules(o, "security", "egress").clear(),
        "security has to reach kube-dns on 53, and no policy lets it",
    ),
    "Kafka's operator lets in everybody": (
        lambda o: listener(o).pop("networkPolicyPeers"),
        "a stranger reaches steward-kafka on 9093, and nothing needs it",
    ),
    "a selector that finds more than the brokers": (
        lambda o: one(o, "NetworkPolicy", "kafka-clients")["spec"]["podSelector"].update(
            matchLabels={"strimzi.io/cluster": "steward", "strimzi.io/kind": "Kafka"}),
        "gateway reaches steward-entity-operator on 9093, and nothing needs it",
    ),
    "a database whose first job is shut in": (
        lambda o: one(o, "NetworkPolicy", "billing-db")["spec"]["podSelector"].update(
            matchLabels={"cnpg.io/podRole": "instance"}),
        "billing-db's jobs has to reach the API server on 443, and no policy lets it",
    ),
    "a store of copies on another port": (
        lambda o: settings(o).update(AWS_ENDPOINT_URL="https://object-store.object-store.svc:9001"),
        "billing has to reach object-store on 9001, and no policy lets it",
    ),
    "a store of copies outside": (
        lambda o: settings(o).pop("AWS_ENDPOINT_URL"),
        "billing has to reach the world on 443, and no policy lets it",
    ),
    "a port that nobody else names": (
        lambda o: out(o, "metering", "0.0.0.0/0", port=8883),
        "metering reaches the world on 8883, and nothing needs it",
    ),
    "a range of ports": (
        lambda o: out(o, "metering", "0.0.0.0/0", port=30_000, endPort=40_000),
        "metering reaches the world on 40000, and nothing needs it",
    ),
    "a few addresses": (
        lambda o: out(o, "metering", "198.51.100.0/24", port=443),
        "metering reaches the world on 443, and nothing needs it",
    ),
    "the other addresses": (
        lambda o: out(o, "metering", "::/0", port=443),
        "metering reaches the world on 443, and nothing needs it",
    ),
    "the cloud's own service of credentials": (
        lambda o: out(o, "notifications", "169.254.169.254/32", port=80),
        "notifications reaches the world on 80, and nothing needs it",
    ),
    "another protocol": (
        lambda o: out(o, "audit", "0.0.0.0/0", protocol="UDP", port=443),
        "audit reaches the world on 443/UDP, and nothing needs it",
    ),
    "the wrong protocol": (
        lambda o: rules(o, "billing-db", "ingress")[0]["ports"][0].update(protocol="UDP"),
        "billing has to reach billing-db on 5432, and no policy lets it",
    ),
    "DNS over TCP alone": (
        lambda o: rules(o, "security", "egress")[0]["ports"].pop(0),
        "security has to reach kube-dns on 53/UDP, and no policy lets it",
    ),
    "a port by its name": (
        lambda o: rules(o, "retention", "ingress").append(
            {"from": [{"namespaceSelector": {"matchLabels": {"kubernetes.io/metadata.name": "gateway"}}}],
             "ports": [{"port": "files"}]}),
        "gateway reaches retention on 8081, and nothing needs it",
    ),
    "a namespace that nobody knows": (
        lambda o: rules(o, "keys-db", "ingress")[0]["from"].append(
            {"namespaceSelector": {"matchLabels": {"kubernetes.io/metadata.name": "default"}}}),
        "any pod in default reaches keys-db on 5432, and nothing needs it",
    ),
    "namespaces by a label": (
        lambda o: rules(o, "keys-db", "ingress")[0]["from"].append({"namespaceSelector": {"matchLabels": {"team": "data"}}}),
        "any pod in a namespace with team=data reaches keys-db on 5432, and nothing needs it",
    ),
    "pods of that name anywhere": (
        lambda o: rules(o, "billing-db", "ingress")[0]["from"][0].update(namespaceSelector={}),
        "a pod with app.kubernetes.io/name=billing in stranger reaches billing-db on 5432, and nothing needs it",
    ),
}  # fmt: skip


@pytest.mark.parametrize("case", PATHS)
def test_paths(overlay: Of, case: str) -> None:
    change, expected = PATHS[case]
    changed = overlay("prod")
    change(changed)
    assert expected in reach.check(changed)


def test_a_store_outside_is_reached_by_who_stores_copies(overlay: Of) -> None:
    """The services are told of another store, and their policies let them go there, on whatever port."""
    changed = overlay("prod")
    settings(changed).update(AWS_ENDPOINT_URL="https://copies.example.org:9443")
    assert "billing has to reach the world on 9443, and no policy lets it" in reach.check(changed)
    rules(changed, "billing", "egress").append({"to": [{"ipBlock": {"cidr": "0.0.0.0/0"}}]})
    assert "billing has to reach the world on 9443, and no policy lets it" not in reach.check(changed)


def test_only_notifications_leaves_the_cluster_and_only_for_mail(overlay: Of) -> None:
    for name in overlays():
        out = {(path.source, path.port) for path in reach.open_paths(overlay(name)) if path.target == reach.WORLD}
        assert out == {("notifications", port) for port in (25, 465, 587)}


def test_every_pod_is_denied_by_default(overlay: Of) -> None:
    for name in overlays():
        changed = overlay(name)
        without(changed, "NetworkPolicy", "default-deny")
        said = reach.check(changed)
        assert "a newcomer reaches the world on 443, and nothing needs it" in said
        assert "a stranger reaches a newcomer on 8080, and nothing needs it" in said


NAMES: dict[str, tuple[Change, str]] = {
    "a service's selector": (
        lambda o: one(o, "Service", "retention-files")["spec"]["selector"].update({"app.kubernetes.io/name": "retain"}),
        "Service retention-files selects no pod",
    ),
    "a service's port": (
        lambda o: one(o, "Service", "billing")["spec"]["ports"][0].update(targetPort="https"),
        "Service billing: billing has no port 'https'",
    ),
    "a monitor's port": (
        lambda o: one(o, "PodMonitor", "audit")["spec"]["podMetricsEndpoints"][0].update(port="metrics"),
        "PodMonitor audit: audit has no port 'metrics'",
    ),
    "a policy for nobody": (
        lambda o: one(o, "NetworkPolicy", "insights")["spec"]["podSelector"]["matchLabels"].update(
            {"app.kubernetes.io/name": "insight"}),
        "NetworkPolicy insights selects no pod",
    ),
    "a budget is missing": (
        lambda o: without(o, "PodDisruptionBudget", "billing"),
        "billing has no PodDisruptionBudget",
    ),
    "a service has no pods": (lambda o: without(o, "Deployment", "security"), "security has no pods"),
    "pods of other labels": (
        lambda o: one(o, "Deployment", "audit")["spec"]["selector"]["matchLabels"].update({"app.kubernetes.io/name": "a"}),
        "Deployment audit does not select its own pods",
    ),
    "an account": (
        lambda o: without(o, "ServiceAccount", "metering"),
        "Deployment metering: there is no ServiceAccount metering",
    ),
    "a priority": (
        lambda o: without(o, "PriorityClass", "steward-books"),
        "Deployment billing: there is no PriorityClass steward-books",
    ),
    "a spread over others": (
        lambda o: one(o, "Deployment", "metering")["spec"]["template"]["spec"]["topologySpreadConstraints"][0][
            "labelSelector"]["matchLabels"].update({"app.kubernetes.io/name": "billing"}),
        "Deployment metering: a spread over topology.kubernetes.io/zone does not count its own pods",
    ),
    "a probe's port": (
        lambda o: container(o, "billing")["livenessProbe"]["httpGet"].update(port="health"),
        "Deployment billing: livenessProbe asks a port 'health' that it does not have",
    ),
    "a volume": (
        lambda o: container(o, "billing")["volumeMounts"].append({"name": "cache", "mountPath": "/cache"}),
        "Deployment billing: there is no volume cache",
    ),
    "a secret": (
        lambda o: without(o, "ExternalSecret", "billing-db-app"),
        "Deployment billing: nothing makes the secret billing-db-app",
    ),
    "a secret's key": (
        lambda o: env(o, "notifications", "STEWARD_SMTP_URL")["valueFrom"]["secretKeyRef"].update(key="uri"),
        "Deployment notifications: the secret steward-smtp has no key uri",
    ),
    "a user's secret": (
        lambda o: without(o, "KafkaUser", "insights"),
        "Deployment insights: nothing makes the secret insights",
    ),
    "nobody makes users": (
        lambda o: one(o, "Kafka", "steward")["spec"]["entityOperator"].pop("userOperator"),
        "Deployment insights: nothing makes the secret insights",
    ),
    "a config map": (
        lambda o: container(o, "audit")["envFrom"][0]["configMapRef"].update(name="settings"),
        "Deployment audit: nothing makes the config map settings",
    ),
    "another Kafka": (
        lambda o: one(o, "KafkaTopic", BALANCES.name)["metadata"]["labels"].update({"strimzi.io/cluster": "other"}),
        "KafkaTopic mesh.balances belongs to no Kafka that is here",
    ),
    "more replicas than brokers": (
        lambda o: one(o, "KafkaTopic", BALANCES.name)["spec"].update(replicas=4),
        "KafkaTopic mesh.balances: 2 in sync of 4 replicas on 3 brokers",
    ),
    "a broker away stops the writers": (
        lambda o: one(o, "KafkaTopic", BALANCES.name)["spec"]["config"].update({"min.insync.replicas": "3"}),
        "KafkaTopic mesh.balances: with all 3 replicas in sync, one broker away stops its writers",
    ),
    "a priority of an operator's part": (
        lambda o: one(o, "KafkaNodePool", "brokers")["spec"]["template"]["pod"].update(priorityClassName="steward-brokers"),
        "KafkaNodePool brokers: there is no PriorityClass steward-brokers",
    ),
    "the books behind the rest": (
        lambda o: one(o, "PriorityClass", "steward-books").update(value=10),
        "the PriorityClasses are {'steward-books': 10, 'steward-platform': 1000000, 'steward-rooms': 50000}, and the code says "
        "{'steward-platform': 1000000, 'steward-books': 100000, 'steward-rooms': 50000}",
    ),
    "a peer that is nobody": (
        lambda o: rules(o, "billing-db", "ingress")[0]["from"].append({"podSelector": {"matchLabels": {"app": "psql"}}}),
        "NetworkPolicy billing-db speaks of pods that there are none of: {'matchLabels': {'app': 'psql'}}",
    ),
    "a namespace": (
        lambda o: one(o, "Service", "billing")["metadata"].update(namespace="stewart"),
        "Service billing: there is no namespace stewart",
    ),
    "a namespace for everything": (
        lambda o: one(o, "Namespace", "steward")["metadata"]["labels"].pop("pod-security.kubernetes.io/enforce"),
        "Namespace steward does not hold its pods to the restricted standard",
    ),
    "no namespace": (
        lambda o: one(o, "NetworkPolicy", "billing")["metadata"].pop("namespace"),
        "NetworkPolicy billing: there is no namespace None",
    ),
    "an address": (
        lambda o: env(o, "billing", "OTEL_EXPORTER_OTLP_ENDPOINT").update(value="http://steward-colector:4318"),
        "Deployment billing: OTEL_EXPORTER_OTLP_ENDPOINT leads to steward-colector:4318, and nothing listens there",
    ),
    "an address's port": (
        lambda o: listener(o).update(port=9094),
        "Deployment billing: STEWARD_KAFKA_BOOTSTRAP_SERVERS leads to steward-kafka-bootstrap:9093, and nothing listens there",
    ),
    "a database's address": (
        lambda o: env(o, "billing", "STEWARD_BILLING_DATABASE_URL").update(value="postgresql://me@bill-db-rw:5432/steward"),
        "Deployment billing: STEWARD_BILLING_DATABASE_URL leads to bill-db-rw:5432, and nothing listens there",
    ),
    "a store": (
        lambda o: without(o, "SecretStore", "steward"),
        "ExternalSecret billing-db-app: there is no SecretStore steward",
    ),
    "a store's account": (
        lambda o: without(o, "ServiceAccount", "secrets-reader"),
        "SecretStore steward: there is no ServiceAccount secrets-reader",
    ),
    "a scaler's secret": (
        lambda o: one(o, "TriggerAuthentication", "kafka-scaler")["spec"]["secretTargetRef"][0].update(name="kedaa"),
        "TriggerAuthentication kafka-scaler: no secret kedaa with a key password",
    ),
    "a door without a login": (
        lambda o: listener(o).pop("authentication"),
        "Kafka steward: its listener tls has to ask for TLS and a login",
    ),
    "volumes that nobody may write to": (
        lambda o: one(o, "KafkaNodePool", "brokers")["spec"]["template"]["pod"].update(securityContext={"runAsNonRoot": True}),
        "KafkaNodePool brokers: its security context takes the operator's place, and with it the group that may write to volumes",
    ),
    "rights that do not count": (
        lambda o: one(o, "Kafka", "steward")["spec"]["kafka"]["authorization"].update(superUsers=["me"]),
        "Kafka steward: rights count only with simple authorization, and without super users",
    ),
    "offsets on more brokers than there are": (
        lambda o: one(o, "Kafka", "steward")["spec"]["kafka"]["config"].update({"offsets.topic.replication.factor": 5}),
        "Kafka steward: offsets.topic.replication.factor is 5 on 3 brokers",
    ),
    "nobody is left to have what is committed": (
        lambda o: one(o, "Cluster", "billing-db")["spec"].update(instances=1),
        "Cluster billing-db: with 1 instances, 1 others never have what is committed",
    ),
    "a topic of nobody": (
        lambda o: one(o, "KafkaTopic", BALANCES.name)["metadata"].update(name=f"{BALANCES.name}s"),
        "KafkaTopic mesh.balancess: the contract has no such topic",
    ),
    "a right on no topic": (
        lambda o: without(o, "KafkaTopic", MESSAGES.name),
        "KafkaUser notifications: there is no topic mesh.messages",
    ),
    "a role in no cluster": (
        lambda o: one(o, "DatabaseRole", "keys-db-app")["spec"]["cluster"].update(name="key-db"),
        "DatabaseRole keys-db-app: there is no Cluster key-db",
    ),
    "an owner without a secret": (
        lambda o: without(o, "ExternalSecret", "keys-db-owner"),
        "Cluster keys-db: nothing makes the secret of its owner",
    ),
}  # fmt: skip


@pytest.mark.parametrize("case", NAMES)
def test_names(overlay: Of, case: str) -> None:
    change, expected = NAMES[case]
    changed = overlay("prod")
    change(changed)
    assert expected in references.check(changed)


CHANGES: dict[str, tuple[Change, str]] = {
    "a service's pods": (
        lambda o: one(o, "Service", "billing")["spec"]["selector"].update({"app.kubernetes.io/name": "metering"}),
        "Service billing: spec.selector.app.kubernetes.io/name is 'metering', and the code says 'billing'",
    ),
    "a budget that lets nobody go": (
        lambda o: one(o, "PodDisruptionBudget", "billing")["spec"].update(maxUnavailable=0),
        "PodDisruptionBudget billing: spec.maxUnavailable is 0, and the code says 1",
    ),
    "nobody scrapes": (lambda o: without(o, "PodMonitor", "billing"), "PodMonitor billing is missing"),
    "another's account": (
        lambda o: one(o, "Deployment", "billing")["spec"]["template"]["spec"].update(serviceAccountName="metering"),
        "Deployment billing: spec.template.spec.serviceAccountName is 'metering', and the code says 'billing'",
    ),
    "a token": (
        lambda o: one(o, "Deployment", "billing")["spec"]["template"]["spec"].update(automountServiceAccountToken=True),
        "Deployment billing: spec.template.spec.automountServiceAccountToken is True, and the code says False",
    ),
    "another's name in Kafka": (
        lambda o: env(o, "billing", "STEWARD_KAFKA_SASL_USERNAME").update(value="metering"),
        "Deployment billing: spec.template.spec.containers.billing.env.STEWARD_KAFKA_SASL_USERNAME.value is 'metering', and "
        "the code says 'billing'",
    ),
    "another's password": (
        lambda o: env(o, "billing", "BILLING_DATABASE_PASSWORD")["valueFrom"]["secretKeyRef"].update(name="metering-db-app"),
        "Deployment billing: spec.template.spec.containers.billing.env.BILLING_DATABASE_PASSWORD.valueFrom.secretKeyRef.name is "
        "'metering-db-app', and the code says 'billing-db-app'",
    ),
    "a secret of others": (
        lambda o: container(o, "insights")["env"].append(
            {"name": "PGPASSWORD", "valueFrom": {"secretKeyRef": {"name": "billing-db-app", "key": "password"}}}),
        "Deployment insights: it is given the secret billing-db-app, and no code needs it",
    ),
    "a mount": (
        lambda o: container(o, "billing")["volumeMounts"].pop(1),
        "Deployment billing: spec.template.spec.containers.billing.volumeMounts.kafka is missing, and the code says "
        "{'name': 'kafka', 'mountPath': '/etc/steward/kafka', 'readOnly': True}",
    ),
    "a root that can be written": (
        lambda o: container(o, "audit")["securityContext"].update(readOnlyRootFilesystem=False),
        "Deployment audit: spec.template.spec.containers.audit.securityContext.readOnlyRootFilesystem is False, and the code "
        "says True",
    ),
    "the books among the rest": (
        lambda o: one(o, "Deployment", "metering")["spec"]["template"]["spec"].update(priorityClassName="steward-rooms"),
        "Deployment metering: spec.template.spec.priorityClassName is 'steward-rooms', and the code says 'steward-books'",
    ),
    "a topic's partitions": (
        lambda o: one(o, "KafkaTopic", PAYMENTS.name)["spec"].update(partitions=12),
        "KafkaTopic gateway.payments: spec.partitions is 12, and the code says 6",
    ),
    "a topic that keeps longer": (
        lambda o: one(o, "KafkaTopic", PAYMENTS.name)["spec"]["config"].update({"retention.bytes": "-1"}),
        "KafkaTopic gateway.payments: config.retention.bytes is '-1', which the code does not say",
    ),
    "a login of another kind": (
        lambda o: one(o, "KafkaUser", "billing")["spec"].update(authentication={"type": "tls"}),
        "KafkaUser billing: spec.authentication.type is 'tls', and the code says 'scram-sha-512'",
    ),
    "a role that may do everything": (
        lambda o: one(o, "DatabaseRole", "billing-db-app")["spec"].update(superuser=True),
        "DatabaseRole billing-db-app: superuser is True, which the code does not say",
    ),
    "a trigger that counts otherwise": (
        lambda o: trigger(o, "metering")["metadata"].update(allowIdleConsumers="true"),
        "ScaledObject metering: triggers.0.metadata.allowIdleConsumers is 'true', which the code does not say",
    ),
    "a trigger in the open": (
        lambda o: trigger(o, "metering")["metadata"].update(tls="disable"),
        "ScaledObject metering: spec.triggers.0.metadata.tls is 'disable', and the code says 'enable'",
    ),
}  # fmt: skip


@pytest.mark.parametrize("case", CHANGES)
def test_an_overlay_changes_only_what_depends_on_the_place(overlay: Of, case: str) -> None:
    change, expected = CHANGES[case]
    changed = overlay("prod")
    change(changed)
    assert expected in drift.check(changed)


def test_what_cannot_be_judged_is_wrong(overlay: Of) -> None:
    changed = overlay("prod")
    one(changed, "Service", "billing").pop("spec")
    assert judged(references.check, changed) == [
        "an object is not what its kind has to be, and cannot be judged: KeyError 'spec'"
    ]


SCALERS: dict[str, tuple[Change, str]] = {
    "a misspelt parameter": (
        lambda o: trigger(o, "metering")["metadata"].update(lagTreshold="10"),
        "the kafka trigger has no parameter 'lagTreshold'",
    ),
    "a number": (
        lambda o: trigger(o, "metering")["metadata"].update(lagThreshold=200000),
        "lagThreshold: 200000 is no text, and every parameter is one",
    ),
    "a value that there is not": (
        lambda o: trigger(o, "metering")["metadata"].update(offsetResetPolicy="earlier"),
        "offsetResetPolicy: 'earlier' is none of latest, earliest",
    ),
    "a flag that is none": (
        lambda o: trigger(o, "metering")["metadata"].update(excludePersistentLag="yes"),
        "excludePersistentLag: 'yes' is none of true, false",
    ),
    "a login in the open": (
        lambda o: trigger(o, "billing")["metadata"].update(username="keda"),
        "username comes by authentication alone",
    ),
    "no servers": (lambda o: trigger(o, "billing")["metadata"].pop("bootstrapServers"), "bootstrapServers is missing"),
    "no authentication": (
        lambda o: without(o, "TriggerAuthentication", "kafka-scaler"),
        "its authentication is not there",
    ),
    "authentication of another kind": (
        lambda o: one(o, "TriggerAuthentication", "kafka-scaler")["spec"]["secretTargetRef"][0].update(parameter="passwort"),
        "its authentication gives 'passwort', which the kafka trigger does not know",
    ),
    "another trigger": (
        lambda o: trigger(o, "security").update(type="cron"),
        "'cron' is a trigger that nobody here knows: add its parameters to the check",
    ),
    "a target that is not there": (
        lambda o: one(o, "ScaledObject", "billing")["spec"]["scaleTargetRef"].update(name="bills"),
        "there is no Deployment bills to scale",
    ),
    "more than partitions": (
        lambda o: one(o, "ScaledObject", "billing")["spec"].update(maxReplicaCount=7),
        "more replicas than mesh.usage-rated has partitions",
    ),
    "another group's backlog": (
        lambda o: trigger(o, "billing")["metadata"].update(consumerGroup="steward.metering.gateway.generations"),
        "steward.metering.gateway.generations on mesh.usage-rated is not what billing scales by",
    ),
    "a guessed threshold": (
        lambda o: trigger(o, "metering")["metadata"].update(lagThreshold="10"),
        "lagThreshold 10 is not what was measured (100000)",
    ),
    "another service's load": (
        lambda o: trigger(o, "metering", 1)["metadata"].update(query="sum(rate(steward_records_total[2m]))"),
        "its query is not what metering handles of gateway.generations",
    ),
    "a guessed load": (
        lambda o: trigger(o, "metering", 1)["metadata"].update(threshold="100"),
        "threshold 100 is not the share of a pod's time (1.4)",
    ),
    "a query that is missing": (lambda o: trigger(o, "billing", 1)["metadata"].pop("query"), "query is missing"),
    "a name that KEDA's namespace does not know": (
        lambda o: trigger(o, "metering")["metadata"].update(bootstrapServers="steward-kafka-bootstrap:9093"),
        "steward-kafka-bootstrap:9093 is not reached from KEDA's namespace",
    ),
    "steps of half the pods": (
        lambda o: one(o, "ScaledObject", "metering")["spec"]["advanced"]["horizontalPodAutoscalerConfig"]["behavior"][
            "scaleDown"]["policies"][0].update(type="Percent", value=50),
        "scales down too fast: each step stops the whole group (at least 300 s of calm, one pod at a time)",
    ),
    "no word of the way down": (
        lambda o: one(o, "ScaledObject", "metering")["spec"].pop("advanced"),
        "scales down too fast: each step stops the whole group (at least 300 s of calm, one pod at a time)",
    ),
    "none at times": (lambda o: one(o, "ScaledObject", "metering")["spec"].pop("minReplicaCount"), "replicas from 0 to 4"),
    "two who say how many": (
        lambda o: one(o, "Deployment", "metering")["spec"].update(replicas=2),
        "the Deployment says a number of replicas, too: each apply would put it back",
    ),
    "two scalers": (
        lambda o: one(o, "ScaledObject", "billing")["spec"]["scaleTargetRef"].update(name="metering"),
        "it is not the only one that scales metering",
    ),
    "a fast way down": (
        lambda o: one(o, "ScaledObject", "metering")["spec"]["advanced"]["horizontalPodAutoscalerConfig"]["behavior"][
            "scaleDown"].update(stabilizationWindowSeconds=30),
        "scales down too fast: each step stops the whole group (at least 300 s of calm, one pod at a time)",
    ),
}  # fmt: skip


@pytest.mark.parametrize("case", SCALERS)
def test_scalers(overlay: Of, case: str) -> None:
    change, expected = SCALERS[case]
    changed = overlay("prod")
    change(changed)
    assert any(said.endswith(f": {expected}") for said in keda.check(changed)), keda.check(changed)


RIGHTS: dict[str, tuple[Change, str]] = {
    "a topic that is not its own": (
        lambda o: acls(o, "insights").append(
            {"resource": {"type": "topic", "name": PAYMENTS.name, "patternType": "literal"}, "operations": ["Read"]}),
        "KafkaUser insights: Read on topic gateway.payments, and no code needs it",
    ),
    "a right too many on its own": (
        lambda o: acls(o, "metering")[-1]["operations"].append("Alter"),
        "and no code needs it",
    ),
    "a right too few": (
        lambda o: acls(o, "billing").pop(),
        "is needed and not given",
    ),
    "rights at the API server": (
        lambda o: o.docs.append({"kind": "RoleBinding", "metadata": {"name": "reader", "namespace": names.NAMESPACE}}),
        "RoleBinding reader: rights at the API server, and no pod of ours goes there",
    ),
    "no rights at all": (
        lambda o: one(o, "KafkaUser", "billing")["spec"].pop("authorization"),
        "KafkaUser billing: Read on topic gateway.payments is needed and not given",
    ),
    "another group": (
        lambda o: acls(o, "billing")[0]["resource"].update(name="steward.billing.payments"),
        "KafkaUser billing: Read on group steward.billing.payments, and no code needs it",
    ),
    "a prefix": (
        lambda o: acls(o, "security")[0]["resource"].update(patternType="prefix"),
        "that is not by one exact name",
    ),
    "everything": (
        lambda o: acls(o, "security")[0]["resource"].update(name="*"),
        "KafkaUser security: a right on '*' that is not by one exact name",
    ),
    "a stranger": (
        lambda o: one(o, "KafkaUser", "operator")["metadata"].update(name="oper"),
        "KafkaUser oper: nobody goes to Kafka as oper",
    ),
}  # fmt: skip


@pytest.mark.parametrize("case", RIGHTS)
def test_rights(overlay: Of, case: str) -> None:
    change, expected = RIGHTS[case]
    changed = overlay("prod")
    change(changed)
    assert any(expected in said for said in privilege.check(changed)), privilege.check(changed)


def strategy(overlay: Overlay, name: str) -> dict[str, Any]:
    found: dict[str, Any] = one(overlay, "Deployment", name)["spec"]["strategy"]["rollingUpdate"]
    return found


PODS: dict[str, tuple[Change, str]] = {
    "pods beside the old ones": (lambda o: strategy(o, "metering").update(maxSurge=1), "stops the group twice as often"),
    "a database that it is not told of": (
        lambda o: container(o, "billing")["env"].remove(env(o, "billing", "STEWARD_BILLING_DATABASE_URL")),
        "its settings are refused: STEWARD_BILLING_DATABASE_URL is not set",
    ),
    "a password after its URL": (
        lambda o: container(o, "billing")["env"].append(container(o, "billing")["env"].pop(
            container(o, "billing")["env"].index(env(o, "billing", "BILLING_DATABASE_PASSWORD")))),
        "STEWARD_BILLING_DATABASE_URL refers to BILLING_DATABASE_PASSWORD, which is not said before it",
    ),
    "a wrong number": (
        lambda o: env(o, "security", "STEWARD_DRAIN_SECONDS").update(value="0"),
        "its settings are refused: STEWARD_DRAIN_SECONDS must be above 0",
    ),
    "no drain before the end": (
        lambda o: one(o, "Deployment", "audit")["spec"]["template"]["spec"].update(terminationGracePeriodSeconds=30),
        "a grace of 30 s cuts a drain of 25 s",
    ),
    "liveness by readiness": (
        lambda o: container(o, "audit")["livenessProbe"]["httpGet"].update(path="/readyz"),
        "livenessProbe has to ask /livez on the port http",
    ),
    "less memory than measured": (
        lambda o: [each.update(memory="128Mi") for each in container(o, "metering")["resources"].values()],
        "memory 128Mi is not what was measured",
    ),
    "memory that is only hoped for": (
        lambda o: container(o, "metering")["resources"]["requests"].update(memory="64Mi"),
        "requests and limits of memory differ",
    ),
    "throttled": (
        lambda o: container(o, "metering")["resources"]["limits"].update(cpu="1"),
        "a limit of CPU looks like lag",
    ),
    "shortcuts": (
        lambda o: settings(o).update(STEWARD_ENV="local"),
        "only production has no shortcuts",
    ),
    "Kafka in the clear": (
        lambda o: settings(o).update(
            STEWARD_KAFKA_SECURITY_PROTOCOL="SASL_PLAINTEXT"),
        "it does not go to Kafka with TLS and a login of its own",
    ),
    "another login to Kafka": (
        lambda o: settings(o).update(
            STEWARD_KAFKA_SASL_MECHANISM="PLAIN"),
        "it does not go to Kafka with TLS and a login of its own",
    ),
    "a setting that nobody reads": (
        lambda o: settings(o).update(
            STEWARD_BATCH_RECORD="1"),
        "STEWARD_BATCH_RECORD is told, and nobody asks for it",
    ),
    "links that lead nowhere": (
        lambda o: settings(o).pop(
            "STEWARD_PUBLIC_URL"),
        "it gives out links and is not told where they lead",
    ),
    "traces that go nowhere": (
        lambda o: container(o, "audit")["env"].remove(env(o, "audit", "OTEL_EXPORTER_OTLP_ENDPOINT")),
        "there is a collector, and it is not told where its traces go",
    ),
    "a clock of its own": (
        lambda o: container(o, "audit")["env"].append({"name": "STEWARD_CLOCK", "value": "file:/tmp/now"}),
        "STEWARD_CLOCK moves time",
    ),
    "no pods": (lambda o: one(o, "Deployment", "audit")["spec"].update(replicas=0), "no pod of it runs"),
    "an auditor who does not see everybody": (
        lambda o: container(o, "audit")["env"].remove(env(o, "audit", "STEWARD_AUDITOR_SECURITY_DATABASE_URL")),
        "it audits security and is not told where that is",
    ),
}  # fmt: skip


@pytest.mark.parametrize("case", PODS)
def test_pods(overlay: Of, case: str) -> None:
    change, expected = PODS[case]
    changed = overlay("prod")
    change(changed)
    assert any(expected in said for said in runs.check(changed)), runs.check(changed)


def test_rules_and_dashboards_name_what_there_is(overlay: Of) -> None:
    changed = overlay("prod")
    changed.docs.append(
        {
            "kind": "PrometheusRule",
            "metadata": {"name": "mine", "namespace": names.NAMESPACE},
            "spec": {
                "groups": [
                    {
                        "rules": [
                            {"alert": "NoSuchPage", "expr": "steward_no_such_metric > 0"},
                            {
                                "alert": "ConsumerStalled",
                                "expr": "up",
                                "annotations": {"runbook_url": "runbooks/JobFails.md"},
                            },
                            {
                                "alert": "ConsumerStalled",
                                "expr": "up",
                                "annotations": {"runbook_url": "runbooks/JobFails.md"},
                            },
                            {
                                "record": "mine",
                                "expr": 'max by (job) (rate(stewrad_records_total{topic="a"}[5m] offset 1h)) or job:none:max',
                            },
                            {
                                "record": "yours",
                                "expr": 'mine + up{job="steward/meter"} + steward_ready{topci="x"} > bool 1e3',
                            },
                        ]
                    }
                ]
            },
        }
    )
    changed.docs.append(
        {
            "kind": "ConfigMap",
            "metadata": {"name": "board", "namespace": names.NAMESPACE, "labels": {"grafana_dashboard": "1"}},
            "data": {"board.json": '{"panels": [{"targets": [{"expr": "rate(steward_records[5m])"}]}]}'},
        }
    )
    assert seeing.check(changed) == [
        "NoSuchPage asks for steward_no_such_metric, which nobody exposes",
        "NoSuchPage has no runbook",
        "ConsumerStalled leads to another's runbook",
        "ConsumerStalled leads to another's runbook",
        "mine asks for job:none:max, which nobody exposes",
        "mine asks for stewrad_records_total, which nobody exposes",
        "mine asks for the topic a, which is none",
        "yours asks for steward_ready by topci, which it has not",
        "yours asks for the job steward/meter, which is none",
        "board.json asks for steward_records, which nobody exposes",
    ]
