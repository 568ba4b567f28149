"""Every query of rules and dashboards names metrics that exist, by labels that they have."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from deploy.observe.alerts import ALERTS, RECORDINGS
from deploy.rooms import ROOMS, load
from shared.contract.topics import BY_NAME as TOPICS
from shared.mesh import metrics
from tests.k8s import promql


def queries() -> Iterator[tuple[str, str]]:
    """(where it stands, the query)."""
    for recording in RECORDINGS:
        yield recording.name, recording.expr
    for alert in ALERTS:
        yield alert.name, alert.query()


QUERIES = list(queries())


@pytest.fixture(scope="module")
def known() -> dict[str, frozenset[str]]:
    """Series and their labels: what the services declare, and what rules record of it."""
    for room in ROOMS:
        load(room)
    found = promql.declared(metrics.REGISTRY) | {name: frozenset({"le"}) for name in promql.OWN}
    for recording in RECORDINGS:
        found[recording.name] = frozenset(promql.grouped(recording.expr))
    return found


@pytest.mark.parametrize(("where", "query"), QUERIES, ids=[where for where, _ in QUERIES])
def test_a_query_names_what_exists(where: str, query: str, known: dict[str, frozenset[str]]) -> None:
    selectors = promql.asked(query)
    assert selectors or "vector(" in query
    labels = set(promql.TARGET)
    for selector in selectors:
        assert selector.metric in known, f"there is no metric {selector.metric}"
        having = known[selector.metric] | promql.TARGET
        assert selector.labels <= having, f"{selector.metric} has no label {', '.join(selector.labels - having)}"
        for label, value in selector.values:
            assert label != "topic" or value in TOPICS or not value
        labels |= having
    assert promql.grouped(query) <= labels


def test_each_metric_of_ours_is_looked_at(known: dict[str, frozenset[str]]) -> None:
    """What nobody looks at need not be measured; and a new metric is not forgotten."""
    looked_at = {selector.metric for _, query in QUERIES for selector in promql.asked(query)}
    bases = {name.removesuffix("_bucket").removesuffix("_count").removesuffix("_sum") for name in looked_at}
    ours = {
        name.removesuffix("_total").removesuffix("_created")
        for name in known
        if name.startswith("steward_") and not name.endswith(("_created", "_bucket", "_count", "_sum"))
    }
    assert sorted(ours - {name.removesuffix("_total") for name in bases}) == []
