"""Every overlay is taken by Kubernetes itself, the oldest and the newest that we support, with nothing left out."""

from __future__ import annotations

from typing import Any

import pytest

from tests.admission.cluster import Object, Refused
from tests.admission.conftest import NAMESPACE, OVERLAYS, Judge

WORKLOADS = ("Deployment", "StatefulSet", "DaemonSet", "Job")


def test_there_are_overlays() -> None:
    assert set(OVERLAYS) >= {"dev", "staging", "prod"}


def test_a_dry_run_takes_everything(judge: Judge) -> None:
    # In a dry run nothing is made, and what is to live in a namespace needs it to be there.
    for namespace in judge.of("Namespace"):
        judge.api.apply(namespace)
    said = judge.apply("--dry-run=server")
    assert said.count("serverside-applied (server dry run)") == len(judge.documents)
    assert "Warning" not in said


def test_it_is_taken_for_real_without_a_warning(judge: Judge) -> None:
    said = judge.installed()
    assert said.count("serverside-applied") == len(judge.documents)
    assert "Warning" not in said  # deprecated versions, Pod Security's view of templates, fields that do nothing


def test_what_is_stored_is_what_was_written(judge: Judge) -> None:
    """Defaults are added and nothing of ours is dropped or changed: a tool that compares finds no drift for ever."""
    judge.installed()
    drift = [
        f"{document['kind']} {document['metadata']['name']}: {path}"
        for document in judge.documents
        for path in _missing(document, judge.api.get(document))
    ]
    assert drift == []


def test_applying_again_changes_nothing(judge: Judge) -> None:
    """Not even the version of an object: nobody who watches is woken."""
    judge.installed()
    before = [judge.api.get(document) for document in judge.documents]
    judge.apply()
    after = [judge.api.get(document) for document in judge.documents]
    changed = [then for then, now in zip(before, after, strict=True) if then != now]
    assert [f"{each['kind']} {each['metadata']['name']}" for each in changed] == []


def test_every_pod_is_taken(judge: Judge) -> None:
    """Pod Security, limits, quotas, priorities and service accounts are judged when a pod is made, not before."""
    judge.installed()
    classes = {each["metadata"]["name"]: each["value"] for each in judge.of("PriorityClass")}
    for workload in workloads(judge):
        spec = judge.api.create(pod_of(workload), dry_run=True)["spec"]
        name, written = workload["metadata"]["name"], workload["spec"]["template"]["spec"]
        assert spec["serviceAccountName"] == written.get("serviceAccountName", "default")
        assert not tokens(spec), name
        assert spec["priority"] == classes.get(written.get("priorityClassName"), 0), name
        for container in spec["containers"]:
            resources = container["resources"]
            assert resources["requests"]["memory"] == resources["limits"]["memory"], name
            assert "cpu" in resources["requests"], name
            assert "cpu" not in resources["limits"], name


def test_a_pod_that_says_nothing_gets_limits(judge: Judge) -> None:
    """The limit range fills in what a pod does not say, so that the quota can count it."""
    judge.installed()
    pod = pod_of(services(judge)[0])
    for container in pod["spec"]["containers"]:
        del container["resources"]
    made = judge.api.create(pod, dry_run=True)
    for container in made["spec"]["containers"]:
        assert "memory" in container["resources"]["limits"]
        assert {"cpu", "memory"} <= container["resources"]["requests"].keys()


def test_service_accounts_may_do_nothing(judge: Judge) -> None:
    """Each of them asks the API server itself: of all rules that hold for it, none is about anything but itself."""
    judge.installed()
    nobody_may_anything(judge)


def nobody_may_anything(judge: Judge) -> None:
    """Of every service account."""
    for account in judge.of("ServiceAccount"):
        assert rights(judge, account) == [], account["metadata"]["name"]


def test_nobody_reaches_anybody_unless_a_policy_says_so(judge: Judge) -> None:
    """In our namespace one policy denies everything both ways, and every pod has one of its own."""
    judge.installed()
    stored = [judge.api.get(policy) for policy in judge.of("NetworkPolicy")]
    assert open_ways(stored, workloads(judge)) == []


def open_ways(policies: list[Object], pods: list[Object]) -> list[str]:
    """What the policies of our namespace leave open: a direction that nobody denies, a workload that no policy is about."""
    specs = [policy["spec"] for policy in policies if policy["metadata"]["namespace"] == NAMESPACE]
    closed = [spec for spec in specs if not spec["podSelector"] and not spec.get("ingress") and not spec.get("egress")]
    found = sorted({"Ingress", "Egress"} - {direction for spec in closed for direction in spec["policyTypes"]})
    for workload in pods:
        if workload["metadata"]["namespace"] != NAMESPACE:
            continue  # stands in for what is not ours
        # By its own name: what is for all of ours (tracing) says nothing of what one of them needs.
        name = workload["spec"]["template"]["metadata"]["labels"]["app.kubernetes.io/name"]
        if {"matchLabels": {"app.kubernetes.io/name": name}} not in [spec["podSelector"] for spec in specs]:
            found.append(name)
    return found


def workloads(judge: Judge) -> list[Object]:
    """What makes pods."""
    return [document for kind in WORKLOADS for document in judge.of(kind)]


def services(judge: Judge) -> list[Object]:
    """The workloads that are services of ours: whoever has a budget."""
    budgets = {document["metadata"]["name"] for document in judge.of("PodDisruptionBudget")}
    return [workload for workload in workloads(judge) if workload["metadata"]["name"] in budgets]


def tokens(spec: Object) -> list[Object]:
    """The volumes of a pod by which it could speak to the API server."""
    return [
        volume
        for volume in spec.get("volumes", ())
        if any("serviceAccountToken" in source for source in volume.get("projected", {}).get("sources", ()))
    ]


def pod_of(workload: Object) -> Object:
    """The pod that a controller would make of a template."""
    template = workload["spec"]["template"]
    metadata = {
        "name": f"{workload['metadata']['name']}-0",
        "namespace": workload["metadata"]["namespace"],
        "labels": template["metadata"]["labels"],
    }
    spec = dict(template["spec"], containers=[dict(container) for container in template["spec"]["containers"]])
    return {"apiVersion": "v1", "kind": "Pod", "metadata": metadata, "spec": spec}


def rights(judge: Judge, account: Object) -> list[Object]:
    """The rules by which a service account may do something in its namespace, but for asking who it is and what it may."""
    namespace, name = account["metadata"]["namespace"], account["metadata"]["name"]
    review = {
        "apiVersion": "authorization.k8s.io/v1",
        "kind": "SelfSubjectRulesReview",
        "spec": {"namespace": namespace},
    }
    path = "/apis/authorization.k8s.io/v1/selfsubjectrulesreviews"
    status = judge.cluster.account(namespace, name)("POST", path, review)["status"]
    assert not status["incomplete"]
    asking = {"authorization.k8s.io", "authentication.k8s.io"}
    return [rule for rule in status["resourceRules"] if not set(rule.get("apiGroups", ())) <= asking]


def _missing(written: Any, stored: Any, path: str = "") -> list[str]:
    """The paths of `written` that `stored` does not have just so."""
    if isinstance(written, dict) and isinstance(stored, dict):
        found = []
        for key, value in written.items():
            if key not in stored and value not in ({}, [], None):
                found.append(f"{path}.{key} is gone")
            elif key in stored:
                found += _missing(value, stored[key], f"{path}.{key}")
        return found
    if isinstance(written, list) and isinstance(stored, list):
        if len(written) != len(stored):
            return [f"{path} has {len(stored)} entries, not {len(written)}"]
        pairs = enumerate(zip(written, stored, strict=True))
        return [missing for number, (ours, theirs) in pairs for missing in _missing(ours, theirs, f"{path}[{number}]")]
    return [] if written == stored else [f"{path} is {stored!r}, not {written!r}"]


def test_what_is_gone_or_changed_is_seen() -> None:
    """The comparison above can fail."""
    written = {"spec": {"a": [1, {"b": "1000m"}], "c": {}, "d": 1}}
    assert _missing(written, {"spec": {"a": [1, {"b": "1", "more": 0}], "d": 1}}) == [
        ".spec.a[1].b is '1', not '1000m'"
    ]
    assert _missing(written, {"spec": {"a": [1]}}) == [".spec.a has 1 entries, not 2", ".spec.d is gone"]


def test_a_refusal_has_the_servers_words(judge: Judge) -> None:
    with pytest.raises(Refused, match="404"):
        judge.api("GET", "/api/v1/namespaces/nowhere")
