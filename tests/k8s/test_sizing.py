"""The arithmetic of the sizing page, against sums made by hand."""

from __future__ import annotations

import re

from deploy.k8s import rights, scaling, sizing
from deploy.k8s.sizing import BUSY, MEASURED, PEAK, RATES, Measured, size
from deploy.k8s.workload import footprint
from shared.contract.topics import GENERATIONS, USAGE_RATED

ROUND = Measured(
    metering_us=20.0, billing_us=6.0, audit_us=3.0, kafka_us=4.0, database_us=12.0, one_process=30_000, wal=1_000.0,
    generation=100.0, rated=20.0, metering_stored=500.0, billing_stored=200.0,
)  # fmt: skip


def test_a_rate_by_hand() -> None:
    found = size(100_000, ROUND)
    assert found.peak == 200_000
    assert found.metering_pods == 17  # 200,000 / (20,000 x 0.6) = 16.7
    assert found.billing_pods == 2  # 200,000 x 6 us / 0.6 = 2 cores
    assert found.database_cores == 4  # 200,000 x 12 us / 0.6
    assert found.wal == 200e6 and found.shards == 1  # just what one takes
    assert size(100_001, ROUND).shards == 2
    assert found.partitions == 36 and found.partitions % 12 == 0
    assert found.brokers == 3  # 200,000 x 120 B x 3 = 72 MB/s, and never fewer
    assert size(1_000_000, ROUND).brokers == 15  # 720 MB/s
    assert found.topic_bytes == 100_000 * 120 * USAGE_RATED.retention.total_seconds()
    assert found.log_bytes == 100_000 * 500 * 86_400 * 30


def test_what_is_declared_is_enough_for_the_smallest_rates() -> None:
    """Up to 15,000 a second what the manifests say as they are: partitions, brokers, one database, the most pods."""
    metering = footprint(rights.services()["metering"])
    for rate in RATES[:2]:
        needed = size(rate)
        assert needed.partitions == GENERATIONS.partitions and needed.rated_partitions == USAGE_RATED.partitions
        assert needed.shards == 1 and needed.brokers == 3
        assert needed.metering_pods <= metering.most
        assert needed.peak * BUSY <= metering.most * metering.per_second


def test_more_is_never_less() -> None:
    sizes = [size(rate) for rate in range(1_000, 1_000_000, 7_777)]
    for name in (
        "partitions",
        "metering_pods",
        "billing_pods",
        "shards",
        "database_cores",
        "brokers",
        "wal",
        "log_bytes",
    ):
        values = [getattr(one, name) for one in sizes]
        assert values == sorted(values), name


def test_a_pod_is_declared_slower_than_one_process_was_measured() -> None:
    """Its threshold is what the autoscaler believes: a promise that no pod keeps would scale too late."""
    assert footprint(rights.services()["metering"]).per_second < MEASURED.one_process
    assert PEAK >= 1.5, "the busiest minute of a real hour carried 1.54 times its mean"


def test_thresholds_are_half_of_what_freshness_allows() -> None:
    for service in rights.services().values():
        if rights.scales_on(service) is not None:
            assert scaling.threshold(service) == 5 * footprint(service).per_second


def test_the_page_shows_every_rate_and_leaves_no_place_open() -> None:
    page = sizing.page()
    assert all(f"| {rate:,} |" in page or f" {rate:,} " in page for rate in RATES)
    assert not re.search(r"\{\w+\}", page)
