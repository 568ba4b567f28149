"""What the manifests do once they are taken: controllers, a scheduler and simulated nodes in three zones make the pods."""

from __future__ import annotations

from collections import Counter

from tests.admission.cluster import Object, Refused, condition, until
from tests.admission.conftest import NAMESPACE, Judge
from tests.admission.test_overlays import nobody_may_anything, services, tokens, workloads

_ROLLED_SECONDS = 120.0


def _pods(judge: Judge, workload: Object) -> list[Object]:
    """The pods of a workload that are not about to end."""
    selector = ",".join(f"{key}={value}" for key, value in workload["spec"]["selector"]["matchLabels"].items())
    found = judge.api.items(f"/api/v1/namespaces/{_room(workload)}/pods", labelSelector=selector)
    return [pod for pod in found if "deletionTimestamp" not in pod["metadata"]]


def _room(workload: Object) -> str:
    return str(workload["metadata"]["namespace"])


def _replicas(workload: Object) -> int:
    return int(workload["spec"].get("replicas", 1))


def _is_out(judge: Judge, workload: Object) -> bool:
    """Whether a Deployment is what it asks to be: all replicas of the newest template, all available, no other."""
    stored, wanted = judge.api.get(workload), _replicas(workload)
    status = stored.get("status", {})
    counts = [status.get(key, 0) for key in ("replicas", "updatedReplicas", "availableReplicas")]
    return status.get("observedGeneration") == stored["metadata"]["generation"] and counts == [wanted] * 3


def _out(judge: Judge, workload: Object) -> None:
    """Waits until a Deployment is out; when it does not come, its events say why."""

    def why() -> str:
        events = judge.cluster.kubectl("-n", _room(workload), "get", "events", "--sort-by=.lastTimestamp")
        return f"{workload['metadata']['name']} rolls out\n{events.stdout[-4000:]}"

    until(lambda: _is_out(judge, workload), why, _ROLLED_SECONDS)


def _rolled_out(judge: Judge) -> None:
    judge.controlled()
    for workload in workloads(judge):
        _out(judge, workload)


def _replicated(judge: Judge) -> list[Object]:
    """The Deployments with at least two replicas and a budget."""
    return [workload for workload in services(judge) if _replicas(workload) >= 2]


def test_every_workload_rolls_out(newest: Judge) -> None:
    _rolled_out(newest)
    for workload in workloads(newest):
        pods = _pods(newest, workload)
        assert len(pods) == _replicas(workload)
        assert all(condition(pod, "Ready") for pod in pods)


def test_pods_carry_priority_and_account_and_no_token(newest: Judge) -> None:
    _rolled_out(newest)
    classes = {each["metadata"]["name"]: each["value"] for each in newest.of("PriorityClass")}
    for workload in services(newest):
        for pod in _pods(newest, workload):
            spec = pod["spec"]
            assert spec["priority"] == classes[spec["priorityClassName"]] > 0
            assert spec["serviceAccountName"] == workload["metadata"]["name"]
            assert spec["automountServiceAccountToken"] is False
            assert not tokens(spec)


def test_service_accounts_still_may_do_nothing(newest: Judge) -> None:
    """Once controllers have filled in the roles that everybody knows (`view`, `edit`): until then they allow nothing."""
    newest.controlled()
    view = {"apiVersion": "rbac.authorization.k8s.io/v1", "kind": "ClusterRole", "metadata": {"name": "view"}}
    until(lambda: bool(newest.api.get(view)["rules"]), "the well-known roles have rules")
    nobody_may_anything(newest)


def test_the_books_go_before_the_rest(newest: Judge) -> None:
    _rolled_out(newest)
    priorities = {
        workload["metadata"]["name"]: pod["spec"]["priority"]
        for workload in services(newest)
        for pod in _pods(newest, workload)
    }
    books = {priorities.pop("metering"), priorities.pop("billing")}
    assert len(books) == 1
    assert all(priority < min(books) for priority in priorities.values())


def test_the_quota_counts_them_and_has_room(newest: Judge) -> None:
    _rolled_out(newest)
    (quota,) = newest.of("ResourceQuota")
    wanted = sum(_replicas(workload) for workload in workloads(newest) if _room(workload) == NAMESPACE)

    def used() -> str:
        return str(newest.api.get(quota)["status"].get("used", {}).get("pods"))

    until(lambda: used() == str(wanted), lambda: f"the quota counts {wanted} pods, and not {used()}", 60)


def test_replicas_stand_in_several_zones_and_on_several_nodes(deepest: Judge) -> None:
    _rolled_out(deepest)
    nodes = {node["metadata"]["name"]: node["metadata"]["labels"] for node in deepest.api.items("/api/v1/nodes")}
    zone = "topology.kubernetes.io/zone"
    for workload in _replicated(deepest):
        hosts = [pod["spec"]["nodeName"] for pod in _pods(deepest, workload)]
        zones = Counter(nodes[host][zone] for host in hosts)
        name = workload["metadata"]["name"]
        # Said by the pod, and not left to the scheduler's own settings, which spread here as well.
        said = workload["spec"]["template"]["spec"]["topologySpreadConstraints"]
        assert {constraint["topologyKey"] for constraint in said} == {zone, "kubernetes.io/hostname"}, name
        assert len(set(hosts)) == len(hosts), f"{name}: {hosts}"
        assert len(zones) == min(len(hosts), 3), f"{name}: {zones}"
        assert max(zones.values()) - min(zones.values()) <= 1, f"{name}: {zones}"


def test_one_pod_may_be_evicted_and_not_a_second(deepest: Judge) -> None:
    _rolled_out(deepest)
    assert _replicated(deepest)
    for workload in _replicated(deepest):
        assert _evicted(deepest, workload) == 1, workload["metadata"]["name"]


def test_a_budget_that_lets_two_go_is_seen(deepest: Judge) -> None:
    """The same question to a budget of two, and to one that is about nobody, is answered otherwise."""
    _rolled_out(deepest)
    workload = _replicated(deepest)[0]
    (budget,) = deepest.of("PodDisruptionBudget", workload["metadata"]["name"])
    try:
        for wrong in ({"maxUnavailable": 2}, {"selector": {"matchLabels": {"app.kubernetes.io/name": "nobody"}}}):
            deepest.api.apply(budget | {"spec": budget["spec"] | wrong})
            # Not at the first time: who judges an eviction may still know the budget of before.
            until(lambda: _evicted(deepest, workload) >= 2, f"two pods go under a budget with {wrong}", 60)
    finally:
        deepest.api.apply(budget)


def _evicted(judge: Judge, workload: Object) -> int:
    """How many pods of a workload may be evicted at once; it is out again afterwards."""
    (budget,) = judge.of("PodDisruptionBudget", workload["metadata"]["name"])

    def counted() -> bool:
        stored = judge.api.get(budget)
        status = stored.get("status", {})
        if status.get("observedGeneration") != stored["metadata"]["generation"]:
            return False
        healthy = status["currentHealthy"]
        return bool(
            healthy == status["expectedPods"] and status["disruptionsAllowed"] == healthy - status["desiredHealthy"]
        )

    until(counted, f"the budget of {workload['metadata']['name']} has been looked at")
    gone = 0
    # The nodes stand still: whoever takes the evicted pod's place does not become ready meanwhile.
    judge.cluster.pause("kwok")
    try:
        for pod in _pods(judge, workload):
            try:
                _evict(judge, pod)
            except Refused as refusal:
                assert refusal.code == 429
                assert "disruption budget" in refusal.message
                break
            gone += 1
    finally:
        judge.cluster.resume("kwok")
    _out(judge, workload)
    return gone


def _evict(judge: Judge, pod: Object) -> None:
    name, namespace = pod["metadata"]["name"], pod["metadata"]["namespace"]
    eviction = {"apiVersion": "policy/v1", "kind": "Eviction", "metadata": {"name": name, "namespace": namespace}}
    judge.api("POST", f"/api/v1/namespaces/{namespace}/pods/{name}/eviction", eviction)


def test_a_rolling_update_takes_one_away_before_it_adds_one(deepest: Judge) -> None:
    """maxSurge 0, maxUnavailable 1, seen from outside: never one pod at work too many, never two missing. (A pod may be made a
    moment before the one that goes is marked: two controllers do that.)"""
    _rolled_out(deepest)
    workload = _replicated(deepest)[0]
    seen = _during_update(deepest, workload)
    wanted = _replicas(workload)
    assert (min(seen), max(seen)) == (wanted - 1, wanted)
    assert _is_out(deepest, workload)


def test_a_surge_would_be_seen(deepest: Judge) -> None:
    """The same watch over a Deployment that adds before it takes away counts one pod at work too many."""
    _rolled_out(deepest)
    workload = _replicated(deepest)[0]
    path = deepest.api.path(workload)
    merge = "application/merge-patch+json"
    before = deepest.api.get(workload)["spec"]["strategy"]
    surging = {"rollingUpdate": {"maxSurge": 1, "maxUnavailable": 0}}
    deepest.api("PATCH", path, {"spec": {"strategy": surging}}, content=merge)
    try:
        seen = _during_update(deepest, workload)
    finally:
        deepest.api("PATCH", path, {"spec": {"strategy": before}}, content=merge)
    assert max(seen) == _replicas(workload) + 1


def _during_update(judge: Judge, workload: Object) -> list[int]:
    """How many pods are at work (ready and not ending) after each change of a rolling update."""
    selector = ",".join(f"{key}={value}" for key, value in workload["spec"]["selector"]["matchLabels"].items())
    collection = f"/api/v1/namespaces/{NAMESPACE}/pods"
    listed = judge.api("GET", collection, labelSelector=selector)
    pods: dict[str, Object] = {pod["metadata"]["uid"]: pod for pod in listed["items"]}
    old = set(pods)
    start = {"labelSelector": selector, "resourceVersion": listed["metadata"]["resourceVersion"]}
    template = {"metadata": {"annotations": {"tests/round": start["resourceVersion"]}}}
    seen = []
    with judge.api.watch(collection, _ROLLED_SECONDS, **start) as events:
        judge.api(
            "PATCH", judge.api.path(workload), {"spec": {"template": template}}, content="application/merge-patch+json"
        )
        for what, pod in events:
            uid = pod["metadata"]["uid"]
            if what == "DELETED":
                pods.pop(uid, None)
            else:
                pods[uid] = pod
            at_work = sum(
                "deletionTimestamp" not in each["metadata"] and condition(each, "Ready") for each in pods.values()
            )
            seen.append(at_work)
            if not old & pods.keys() and at_work == _replicas(workload):
                break
    _out(judge, workload)
    return seen
