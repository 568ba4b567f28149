"""k8s/ is what the code says, and what the code says follows from its declarations."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from datetime import timedelta
from pathlib import Path

import pytest

from deploy.k8s import database, kafka, names, network, render, rights, scaling, workload
from deploy.k8s.checks.objects import Overlay
from deploy.rooms import ROOMS
from shared.contract.topics import ACCESS, COMMANDS, TOPICS
from shared.mesh import Footprint, Rights, Service
from shared.policy import policy


def test_what_stands_in_k8s_is_what_the_code_says() -> None:
    assert render.differences() == []


def test_the_same_code_gives_the_same_bytes() -> None:
    assert render.documents.__wrapped__() == render.documents()


def test_a_changed_missing_or_forgotten_file_is_told_and_mended(tmp_path: Path) -> None:
    assert len(render.write(tmp_path)) == len(render.documents())
    assert render.write(tmp_path) == [] and render.differences(tmp_path) == []
    deployment, topics = tmp_path / "base/billing/deployment.yaml", tmp_path / "base/contract/topics.yaml"
    deployment.write_text(deployment.read_text().replace("maxSurge: 0", "maxSurge: 1"))
    topics.unlink()
    stale = tmp_path / "base/former/deployment.yaml"
    stale.parent.mkdir()
    stale.write_text(f"{render.HEADER}kind: Deployment\n")
    (tmp_path / "base/former/notes.yaml").write_text("# by hand\n")
    (tmp_path / "components/monitoring/dashboards/steward-former.json").write_text("{}")
    assert render.differences(tmp_path) == [
        "base/contract/topics.yaml is missing",
        "base/billing/deployment.yaml is not what the code says",
        "base/former/deployment.yaml is rendered no more",
        "components/monitoring/dashboards/steward-former.json is rendered no more",
    ]
    assert len(render.write(tmp_path)) == 4
    assert render.differences(tmp_path) == []
    assert (tmp_path / "base/former/notes.yaml").exists(), "what is written by hand is left alone"


def test_every_room_is_a_whole_of_manifests() -> None:
    docs = [doc for docs in render.objects().values() for doc in docs]
    for room in ROOMS:
        kinds = {doc["kind"] for doc in docs if doc.get("metadata", {}).get("name") == room}
        assert kinds >= {
            "Deployment", "ServiceAccount", "PodDisruptionBudget", "NetworkPolicy", "PodMonitor", "KafkaUser", "Service",
        }  # fmt: skip
        assert {"Cluster", "DatabaseRole"} <= {
            doc["kind"] for doc in docs if names.cluster(room) in str(doc.get("metadata"))
        }
    assert {doc["metadata"]["name"] for doc in docs if doc["kind"] == "KafkaTopic"} == {topic.name for topic in TOPICS}


def test_a_new_service_is_a_declaration(tmp_path: Path) -> None:
    """Everything about a service that nobody has thought of yet comes from its own declaration."""
    topic = ACCESS
    made = Service(
        "security", migrations=tmp_path, footprint=Footprint(memory_mb=100, most=6, scales_on=topic, per_second=7)
    )
    made.consumes(topic)(lambda batch, tx: None)  # type: ignore[arg-type, return-value]
    assert [(g.name, g.operations) for g in rights.grants(made) if g.kind == "group"] == [
        (f"steward.security.{ACCESS.name}", ("Read",)),
        (f"steward.security.{COMMANDS.name}", ("Read",)),
    ]
    (scaled,) = scaling.scaled([made])
    assert scaled["spec"]["maxReplicaCount"] == 6
    assert scaled["spec"]["triggers"][0]["metadata"]["lagThreshold"] == str(7 * scaling.TARGET_SECONDS)
    # Neither keys nor blobs: no path and no login for them.
    assert rights.databases(made) == ("security",)
    said = str(network.of_service(made)) + str(workload.deployment(made))
    assert "keys-db" not in said and network.OBJECTS not in said and "SMTP" not in said and names.MASTER_KEY not in said
    # Its traces, Kafka's door, and that its scaler alone says how many there are.
    (into,) = network.of_traces([made])[1]["spec"]["ingress"]
    assert into["from"][0]["podSelector"]["matchExpressions"][0]["values"] == ["security"]
    assert {"podSelector": {"matchLabels": names.selector("security")}} in network.patches([made])[0][1][0]["value"]
    assert [target["name"] for target, _ in scaling.patches([made])] == ["security"]
    resources = workload.deployment(made)["spec"]["template"]["spec"]["containers"][0]["resources"]
    assert resources["requests"]["memory"] == resources["limits"]["memory"] == "160Mi"


def test_who_leaves_the_cluster_says_for_what(tmp_path: Path) -> None:
    made = Service("billing", migrations=tmp_path, rights=Rights(egress=("processor",)))
    assert [rule["ports"] for rule in network.of_service(made)["spec"]["egress"] if "ipBlock" in rule["to"][0]] == [
        [{"protocol": "TCP", "port": 443}]
    ]
    with pytest.raises(KeyError, match="anywhere"):
        network.of_service(replace(made, rights=Rights(egress=("anywhere",))))


def test_a_service_of_which_nothing_was_measured_is_not_rendered(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="declares no footprint"):
        workload.deployment(Service("security", migrations=tmp_path))


@pytest.mark.parametrize(
    "wrong", [{"replicas": 0}, {"replicas": 3, "most": 2}, {"most": 2}, {"most": 13, "per_second": 1}], ids=str
)
def test_a_footprint_that_cannot_be_is_refused(wrong: dict[str, int]) -> None:
    topic = TOPICS[0] if "per_second" in wrong else None
    with pytest.raises(ValueError, match=r"replicas|scale|busy"):
        Footprint(memory_mb=100, scales_on=topic, **wrong)  # type: ignore[arg-type]


def test_topics_that_name_people_end_within_the_policys_bound_in_the_cluster_too(
    overlay: Callable[[str], Overlay],
) -> None:
    """Of the overlays as they are applied: no patch of theirs lets a topic keep longer."""
    personal = {topic.name for topic in TOPICS if topic.personal and not topic.compacted}
    for place in ("dev", "staging", "prod"):
        seen = {name: doc["spec"]["config"] for name, doc in overlay(place).named("KafkaTopic").items()}
        for name in personal:
            life = timedelta(milliseconds=int(seen[name]["retention.ms"]) + int(seen[name]["segment.ms"]))
            assert life <= policy().topic_max, f"{place}: {name}"
            assert seen[name]["cleanup.policy"] == "delete"


def test_rights_name_one_topic_or_group_each_and_imply_what_they_imply() -> None:
    for user in kafka.users(rights.services().values()):
        for acl in user["spec"]["authorization"]["acls"]:
            assert acl["resource"]["patternType"] == "literal" and "*" not in acl["resource"]["name"]
            assert not ({"Describe"} & set(acl["operations"]) and {"Read", "Write", "Delete"} & set(acl["operations"]))


def test_memory_follows_what_was_measured() -> None:
    measured = Footprint(memory_mb=237)
    assert workload.memory_mib(measured) == 352
    assert workload.memory_mib(replace(measured, memory_mb=100)) == 160


def test_no_password_stands_in_a_manifest() -> None:
    assert all(doc["kind"] != "Secret" for docs in render.objects().values() for doc in docs)
    assert all("PASSWORD" not in str(line) for doc in database.documents("billing", busy=True) for line in doc["spec"])
