"""Each kind of check is proved by what it says of a manifest in which one thing is wrong, and says nothing of ours."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
from click.testing import CliRunner

from deploy.cli import main
from deploy.k8s import names
from deploy.k8s.checks import keda, privilege, reach, references, runs, seeing
from deploy.k8s.checks.objects import Overlay
from deploy.k8s.verify import CHECKS, overlays
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


TO_BILLINGS_DATABASE = {"to": [pods("billing-db")], "ports": [{"protocol": "TCP", "port": 5432}]}

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
        lambda o: rules(o, "kafka-clients", "ingress")[0]["from"].remove(pods("notifications")),
        "notifications has to reach steward-kafka on 9093, and no policy lets it",
    ),
    "one side alone is not enough": (
        lambda o: rules(o, "security", "egress").clear(),
        "security has to reach kube-dns on 53, and no policy lets it",
    ),
}  # fmt: skip


@pytest.mark.parametrize("case", PATHS)
def test_paths(overlay: Of, case: str) -> None:
    change, expected = PATHS[case]
    changed = overlay("prod")
    change(changed)
    assert expected in reach.check(changed)


def test_only_notifications_leaves_the_cluster_and_only_for_mail(overlay: Of) -> None:
    for name in overlays():
        out = {(path.source, path.port) for path in reach.open_paths(overlay(name)) if path.target == reach.WORLD}
        assert out == {("notifications", port) for port in (25, 465, 587)}


def test_every_pod_is_denied_by_default(overlay: Of) -> None:
    for name in overlays():
        changed = overlay(name)
        assert reach.unselected(changed) == []
        without(changed, "NetworkPolicy", "default-deny")
        without(changed, "NetworkPolicy", "audit")
        assert [pods.name for pods in reach.unselected(changed)] == ["audit"]


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
        lambda o: next(iter(d for n, d in o.named("ConfigMap").items() if n.startswith(names.SETTINGS)))["data"].update(
            STEWARD_ENV="local"),
        "only production has no shortcuts",
    ),
    "Kafka in the clear": (
        lambda o: next(iter(d for n, d in o.named("ConfigMap").items() if n.startswith(names.SETTINGS)))["data"].update(
            STEWARD_KAFKA_SECURITY_PROTOCOL="SASL_PLAINTEXT"),
        "it does not go to Kafka with TLS and a login of its own",
    ),
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
            "spec": {"groups": [{"rules": [{"alert": "NoSuchPage", "expr": "steward_no_such_metric > 0"}]}]},
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
        "board.json asks for steward_records, which nobody exposes",
    ]
