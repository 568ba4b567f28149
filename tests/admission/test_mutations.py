"""Each kind of judgement, proved: a manifest of ours with one mistake in it is refused, and the refusal names the place.

The mistakes are made in the overlay for production, so that what passes elsewhere is what fails here.
"""

from __future__ import annotations

import copy
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import pytest

from tests.admission.cluster import Object, Refused, until
from tests.admission.conftest import NAMESPACE, Judge, account
from tests.admission.test_overlays import open_ways, pod_of, rights, services, workloads

Change = Callable[[Object], None]


@dataclass(frozen=True, slots=True)
class Mistake:
    """What is done to the first document of a kind (or to the one of a name), and what the server says of it."""

    label: str
    kind: str
    change: Change
    says: tuple[str, ...]
    name: str | None = None


def _set(path: str, value: object) -> Change:
    """Sets what stands at a dotted path; numbers are places in lists."""

    def change(document: Object) -> None:
        inner, last = _at(document, path)
        inner[last] = value

    return change


def _drop(path: str) -> Change:
    def change(document: Object) -> None:
        inner, last = _at(document, path)
        del inner[last]

    return change


def _rename(path: str, name: str) -> Change:
    def change(document: Object) -> None:
        inner, last = _at(document, path)
        inner[name] = inner.pop(last)

    return change


def _at(document: Object, path: str) -> tuple[Any, Any]:
    *way, last = (int(step) if step.isdigit() else step for step in path.split("."))
    inner: Any = document
    for step in way:
        inner = inner[step]
    return inner, last


_CONTAINER = "spec.template.spec.containers.0"

MISTAKES = (
    # Fields that nobody declared, at any depth, in kinds of Kubernetes and in kinds of operators.
    Mistake("misspelt-probe", "Deployment", _rename(f"{_CONTAINER}.livenessProbe", "livenesProbe"),
            ("spec.template.spec.containers[0].livenesProbe",)),
    Mistake("undeclared-field-of-a-topic", "KafkaTopic", _set("spec.partition", 3), ("spec.partition",)),
    Mistake("undeclared-field-deep-inside", "Cluster", _set("spec.storage.sizes", "1Gi"), ("spec.storage.sizes",)),
    Mistake("misspelt-selector", "PodDisruptionBudget", _rename("spec.selector.matchLabels", "matchLabel"),
            ("spec.selector.matchLabel",)),
    # What must be there.
    Mistake("no-scale-target", "ScaledObject", _drop("spec.scaleTargetRef"), ("spec.scaleTargetRef", "Required")),
    Mistake("no-selector", "Deployment", _drop("spec.selector"), ("spec.selector", "Required")),
    # Values out of range, out of an enumeration, of another type.
    Mistake("no-instances", "Cluster", _set("spec.instances", 0), ("spec.instances", "greater than or equal to 1")),
    Mistake("no-partitions", "KafkaTopic", _set("spec.partitions", 0), ("spec.partitions", "greater than or equal to 1")),
    Mistake("unknown-authentication", "KafkaUser", _set("spec.authentication.type", "scram-sha-256"),
            ("spec.authentication.type", "Unsupported value")),
    Mistake("a-word-for-a-number", "Deployment", _set("spec.replicas", "two"), ("spec.replicas",)),
    Mistake("probe-on-no-port", "Deployment", _set(f"{_CONTAINER}.readinessProbe.httpGet.port", 70000),
            ("readinessProbe.httpGet.port", "between 1 and 65535")),
    Mistake("unknown-protocol", "Service", _set("spec.ports.0.protocol", "HTTP"), ("spec.ports[0].protocol",)),
    # Rules between fields.
    Mistake("selects-others-pods", "Deployment", _set("spec.selector.matchLabels", {"app.kubernetes.io/name": "other"}),
            ("spec.template.metadata.labels", "`selector` does not match template `labels`")),
    Mistake("neither-surge-nor-unavailable", "Deployment", _set("spec.strategy.rollingUpdate.maxUnavailable", 0),
            ("spec.strategy.rollingUpdate.maxUnavailable", "may not be 0 when `maxSurge` is 0")),
    Mistake("request-over-limit", "Deployment", _set(f"{_CONTAINER}.resources.requests.memory", "64Gi"),
            ("containers[0].resources.requests", "must be less than or equal to memory limit")),
    # Rules in CEL, which a schema alone does not see.
    Mistake("cel-renewal-without-a-certificate", "KafkaUser", _set("spec.authentication.renewalDays", 30),
            ("spec.authentication", "renewalDays")),
    Mistake("cel-least-above-most", "ScaledObject", _set("spec.minReplicaCount", 1000),
            ("spec", "minReplicaCount must be less than or equal to maxReplicaCount")),
    Mistake("cel-two-images", "Cluster",
            _set("spec.imageCatalogRef", {"apiGroup": "postgresql.cnpg.io", "kind": "ImageCatalog", "name": "x", "major": 18}),
            ("spec", "imageName and imageCatalogRef are mutually exclusive")),
    # Defaults that contradict each other.
    Mistake("more-requested-by-default-than-allowed", "LimitRange", _set("spec.limits.0.defaultRequest.memory", "1Gi"),
            ("spec.limits[0].defaultRequest[memory]", "is greater than default limit")),
    # API versions that are gone.
    Mistake("removed-version-of-kafka", "Kafka", _set("apiVersion", "kafka.strimzi.io/v1beta2"), ("404",)),
    Mistake("removed-version-of-budgets", "PodDisruptionBudget", _set("apiVersion", "policy/v1beta1"), ("404",)),
)  # fmt: skip


@pytest.mark.parametrize("mistake", MISTAKES, ids=lambda mistake: mistake.label)
def test_a_mistake_is_refused(strictest: Judge, mistake: Mistake) -> None:
    strictest.installed()
    document = strictest.of(mistake.kind, mistake.name)[0]
    strictest.api.apply(document, dry_run=True)  # as it is, it is taken
    wrong = copy.deepcopy(document)
    mistake.change(wrong)
    with pytest.raises(Refused) as refusal:
        # Under a name of its own it is judged as new: nothing that is stored fills in what is missing.
        wrong["metadata"]["name"] += "-wrong"
        strictest.api.create(wrong, dry_run=True)
    for words in mistake.says:
        assert words in str(refusal.value)


def test_what_must_not_change_cannot(strictest: Judge) -> None:
    """A rule that compares with what is stored, which no file alone can break."""
    strictest.installed()
    role = copy.deepcopy(strictest.of("DatabaseRole")[0])
    role["spec"]["name"] = "another"
    with pytest.raises(Refused, match="name is immutable"):
        strictest.api.apply(role, dry_run=True)


def _root(spec: Object) -> None:
    spec["securityContext"]["runAsUser"] = 0


def _perhaps_root(spec: Object) -> None:
    spec["securityContext"].pop("runAsNonRoot")
    for container in spec["containers"]:
        container.get("securityContext", {}).pop("runAsNonRoot", None)


def _without_seccomp(spec: Object) -> None:
    spec["securityContext"].pop("seccompProfile")
    for container in spec["containers"]:
        container.get("securityContext", {}).pop("seccompProfile", None)


def _of_container(key: str, value: object) -> Change:
    return _set(f"containers.0.securityContext.{key}", value)


POD_MISTAKES: tuple[tuple[str, Change, str], ...] = (
    ("privileged", _of_container("privileged", True), "privileged"),
    ("escalation", _of_container("allowPrivilegeEscalation", True), "allowPrivilegeEscalation != false"),
    ("capabilities", _drop("containers.0.securityContext.capabilities"), "unrestricted capabilities"),
    ("root", _root, "runAsUser=0"),
    ("perhaps-root", _perhaps_root, "runAsNonRoot != true"),
    ("no-seccomp", _without_seccomp, "seccompProfile"),
    ("host-path", lambda spec: spec["volumes"].append({"name": "node", "hostPath": {"path": "/"}}), "hostPath"),
    ("host-network", _set("hostNetwork", True), "host namespaces"),
    ("host-port", _set("containers.0.ports.0.hostPort", 8080), "hostPort"),
    ("no-such-account", _set("serviceAccountName", "nobody"), "nobody"),
    ("no-such-priority", _set("priorityClassName", "nothing"), "nothing"),
    ("over-the-quota", _set("containers.0.resources", {"requests": {"cpu": "10000"}}), "exceeded quota"),
    (
        "a-volume-that-is-not-there",
        _set("containers.0.volumeMounts.0.name", "nowhere"),
        "volumeMounts[0].name: Not found",
    ),
)


@pytest.mark.parametrize(
    ("change", "says"), [mistake[1:] for mistake in POD_MISTAKES], ids=[m[0] for m in POD_MISTAKES]
)
def test_a_wrong_pod_is_refused(strictest: Judge, change: Change, says: str) -> None:
    strictest.installed()
    pod = pod_of(copy.deepcopy(services(strictest)[0]))
    strictest.api.create(pod, dry_run=True)  # as it is, it is taken
    change(pod["spec"])
    with pytest.raises(Refused) as refusal:
        strictest.api.create(pod, dry_run=True)
    assert refusal.value.code in (400, 403, 422)
    assert says in refusal.value.message


def test_without_defaults_a_pod_has_to_say_what_it_takes(strictest: Judge) -> None:
    """The test of the limit range fails without it: the quota takes no pod of which it does not know what it counts."""
    strictest.installed()
    (limits,) = strictest.of("LimitRange")
    pod = pod_of(copy.deepcopy(services(strictest)[0]))
    for container in pod["spec"]["containers"]:
        del container["resources"]
    strictest.api("DELETE", strictest.api.path(limits))

    def refused() -> bool:
        try:
            strictest.api.create(pod, dry_run=True)
        except Refused as refusal:
            return "must specify limits.memory" in refusal.message
        return False

    try:
        until(refused, "the limit range is forgotten")
    finally:
        strictest.api.apply(limits)
    until(lambda: not refused(), "the limit range is there again")


def test_a_namespace_without_labels_lets_them_all_in(strictest: Judge) -> None:
    """It is our namespace's label that judges, not the cluster: without it the same pod passes."""
    strictest.installed()
    pod = pod_of(copy.deepcopy(services(strictest)[0]))
    pod["metadata"]["namespace"] = "default"
    for key in ("priorityClassName", "serviceAccountName"):
        pod["spec"].pop(key)
    pod["spec"]["containers"][0]["securityContext"]["privileged"] = True
    pod["spec"]["containers"][0]["securityContext"].pop("allowPrivilegeEscalation")
    strictest.api.apply(account("default", "default"))
    strictest.api.create(pod, dry_run=True)


@pytest.mark.parametrize("everywhere", [False, True], ids=["in-our-namespace", "everywhere"])
def test_a_right_that_somebody_gave_is_seen(strictest: Judge, everywhere: bool) -> None:
    """The test that service accounts may do nothing fails when one may, wherever it may and whoever else may."""
    strictest.installed()
    somebody = strictest.of("ServiceAccount")[0]
    group = "rbac.authorization.k8s.io"
    name = "ClusterRole" if everywhere else "Role"
    metadata = {"name": "too-much"} | ({} if everywhere else {"namespace": NAMESPACE})
    account = {"kind": "ServiceAccount", **{key: somebody["metadata"][key] for key in ("name", "namespace")}}
    rule = {"apiGroups": [""], "resources": ["configmaps"], "verbs": ["watch"]}
    role = {"apiVersion": f"{group}/v1", "kind": name, "metadata": metadata, "rules": [rule]}
    binding = {
        "apiVersion": f"{group}/v1",
        "kind": f"{name}Binding",
        "metadata": metadata,
        "roleRef": {"apiGroup": group, "kind": name, "name": "too-much"},
        "subjects": [{"kind": "Group", "apiGroup": group, "name": "system:serviceaccounts"} if everywhere else account],
    }
    for given in (role, binding):
        strictest.api.create(given)
    try:
        # The authorizer reads what is stored through a watch of its own.
        until(lambda: rights(strictest, somebody) == [rule], "the right is known")
    finally:
        for given in (role, binding):
            strictest.api("DELETE", strictest.api.path(given))
    until(lambda: rights(strictest, somebody) == [], "the right is gone")


def test_a_way_that_is_left_open_is_seen(strictest: Judge) -> None:
    """The test of the network policies fails without the one that denies, with half of it, and for a pod without its own."""
    policies, pods = strictest.of("NetworkPolicy"), workloads(strictest)
    (deny,) = (policy for policy in policies if not policy["spec"]["podSelector"] and len(policy["spec"]) == 2)
    others = [policy for policy in policies if policy is not deny]
    assert open_ways(others, pods) == ["Egress", "Ingress"]
    half = copy.deepcopy(deny)
    half["spec"]["policyTypes"] = ["Ingress"]
    assert open_ways([*others, half], pods) == ["Egress"]
    everything = copy.deepcopy(deny)
    everything["spec"]["ingress"] = [{}]
    assert open_ways([*others, everything], pods) == ["Egress", "Ingress"]
    without = [policy for policy in policies if policy["metadata"]["name"] != "metering"]
    assert open_ways(without, pods) == ["metering"]


def test_the_command_that_applies_fails_with_the_path(strictest: Judge) -> None:
    """What the API says, `kubectl apply` says, with an exit code: a pipeline stops there."""
    strictest.installed()
    text = strictest.text.replace("livenessProbe:", "livenesProbe:")
    assert text != strictest.text
    answer = strictest.cluster.kubectl(
        "apply", "--server-side", "--validate=strict", "--dry-run=server", "-f", "-", stdin=text
    )
    assert answer.returncode != 0
    assert ".livenesProbe" in answer.stderr
