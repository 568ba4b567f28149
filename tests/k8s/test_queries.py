"""Every query of rules and dashboards names metrics that exist, by labels that they have."""

from __future__ import annotations

import re

import pytest

from deploy.observe.alerts import RECORDINGS
from deploy.rooms import ROOMS, load
from shared.contract.topics import BY_NAME as TOPICS
from shared.mesh import metrics
from tests.k8s import promql

QUERIES = list(promql.queries())


@pytest.fixture(scope="module")
def known() -> dict[str, frozenset[str]]:
    """Series and their labels: what the services declare, and what rules record of it."""
    for room in ROOMS:
        load(room)
    found = promql.declared(metrics.REGISTRY) | {name: frozenset({"le"}) for name in promql.OWN}
    for recording in RECORDINGS:
        found[recording.name] = frozenset(promql.grouped(recording.expr))
    return found


def wrong(query: str, known: dict[str, frozenset[str]]) -> list[str]:
    """What the query names that is not there."""
    found = []
    labels = set(promql.TARGET)
    for selector in promql.asked(query):
        if selector.metric not in known:
            found.append(f"there is no metric {selector.metric}")
            continue
        having = known[selector.metric] | promql.TARGET
        found += [f"{selector.metric} has no label {label}" for label in sorted(selector.labels - having)]
        found += [
            f"there is no topic {value}"
            for label, value in selector.values
            if label == "topic" and value
            if value not in TOPICS
        ]
        labels |= having
    return found + [f"groups by {label}, which nothing there has" for label in sorted(promql.grouped(query) - labels)]


def test_a_query_names_what_exists(known: dict[str, frozenset[str]]) -> None:
    assert [f"{where}: {said}" for where, query in QUERIES for said in wrong(query, known)] == []


def test_a_query_that_does_not_is_found(known: dict[str, frozenset[str]]) -> None:
    assert wrong("steward_records", known) == ["there is no metric steward_records"]
    assert wrong('steward_job_runs_total{outcom="done"}', known) == ["steward_job_runs_total has no label outcom"]
    # `job` is the service, `exported_job` the job of ours.
    assert wrong("sum by (job, exported_job) (steward_job_runs_total)", known) == []
    assert wrong("sum by (task) (steward_job_runs_total)", known) == ["groups by task, which nothing there has"]
    assert wrong('steward_records_total{topic="gateway.generation"}', known) == ["there is no topic gateway.generation"]


def test_each_metric_of_ours_is_looked_at(known: dict[str, frozenset[str]]) -> None:
    """What nobody looks at need not be measured; and a new metric is not forgotten."""
    looked_at = {selector.metric for _, query in QUERIES for selector in promql.asked(query)}
    families = {re.sub("_(bucket|count|sum)$", "", name) for name in looked_at}
    ours = {re.sub("_(bucket|count|sum)$", "", name) for name in known if name.startswith("steward_")}
    assert sorted(name for name in ours - families if not name.endswith("_created")) == []
