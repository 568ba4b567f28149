"""The arithmetic of the sizing page, against sums made by hand."""

from __future__ import annotations

import re

import pytest

from deploy.k8s import rights, scaling, sizing
from deploy.k8s.sizing import (
    BROKER_A_SECOND,
    BUSY,
    COPIES,
    DISK_A_DATABASE,
    FULL,
    MEASURED,
    PEAK,
    RATES,
    WAL_A_SECOND,
    Keeper,
    Measured,
    Partition,
    ends,
    size,
)  # fmt: skip
from deploy.k8s.workload import footprint
from shared.contract.topics import GENERATIONS, USAGE_RATED

ROUND = Measured(
    metering=Keeper(20.0, 10.0, 600.0, 500.0), billing=Keeper(6.0, 5.0, 300.0, 200.0),
    partition=Partition(200.0, 100.0, 5.0, 336, 2_000, 2.0), audit_us=3.0, kafka_us=12.0, one_process=30_000,
    generation=100.0, rated=20.0,
)  # fmt: skip


def test_a_rate_by_hand() -> None:
    found = size(100_000, ROUND)
    assert found.peak == 200_000
    assert found.metering_pods == 18  # 200,000 / (20,000 x 0.6) = 16.7; 17 do not divide 36
    assert found.partitions == 36  # 2 x 17 in twelves
    assert found.partition_cores == pytest.approx(36 * 300e-6)
    assert found.billing_pods == 2  # 200,000 x 6 us / 0.6 = 2 cores
    assert found.audit_cores == pytest.approx(0.6)  # 200,000 x 3 us
    assert found.kafka_cores == pytest.approx(4.0)  # 200,000 x 12 us / 0.6
    assert found.brokers == 3  # 200,000 x 120 B x 3 = 72 MB/s of 50 x 0.6 each, and never fewer
    assert size(1_000_000, ROUND).brokers == 24  # 720 MB/s
    assert found.topic_bytes == 100_000 * 120 * GENERATIONS.retention.total_seconds()
    metering, billing = found.held["metering"], found.held["billing"]
    assert (metering.wal, billing.wal) == (120e6, 60e6)
    assert metering.cores == pytest.approx(3.333, abs=0.001)  # 200,000 x 10 us / 0.6
    assert metering.stored == 100_000 * 500 * 86_400 * 30  # 130 TB
    assert metering.databases == 3  # of 64 x 0.8 = 51.2 TB
    assert billing.stored == 100_000 * 200 * 86_400 * 365  # 631 TB
    assert billing.databases == 13


def test_where_one_database_ends_by_hand() -> None:
    found = ends(ROUND.metering, 30)
    assert found.wal == pytest.approx(125_000)  # 250 MB/s x 0.6 / 600 B / 2
    assert found.cores == pytest.approx(960_000)  # 32 x 0.6 / 10 us / 2
    assert found.disk == pytest.approx(39_506, abs=1)  # 51.2 TB / (500 B x 30 days)
    assert found.first == found.disk
    assert ends(ROUND.metering, 1).first == found.wal


@pytest.mark.parametrize("rate", [*RATES, 7_777, 33_333, 250_000])
def test_nothing_is_busier_than_the_page_says(rate: int) -> None:
    """With the real figures: pods, brokers, databases, each with the largest part that one of them gets."""
    found = size(rate)
    metering = footprint(rights.services()["metering"])
    each = found.peak * (found.partitions // found.metering_pods) / found.partitions
    assert found.partitions % found.metering_pods == 0 and each <= metering.per_second * BUSY
    taken = found.peak * (MEASURED.generation + MEASURED.rated) * COPIES
    assert taken / found.brokers <= BROKER_A_SECOND * BUSY
    assert found.peak * MEASURED.billing.us / 1e6 / found.billing_pods <= BUSY
    for held in found.held.values():
        assert held.wal / held.databases <= WAL_A_SECOND * BUSY
        assert held.stored / held.databases <= DISK_A_DATABASE * FULL


def test_what_is_declared_is_enough_for_the_smallest_rates() -> None:
    """Up to 15,000 a second what the manifests say as they are, but for volumes: partitions, brokers, the most pods."""
    metering = footprint(rights.services()["metering"])
    for rate in RATES[:2]:
        needed = size(rate)
        assert needed.partitions == GENERATIONS.partitions and needed.rated_partitions == USAGE_RATED.partitions
        assert needed.held["metering"].databases == 1 and needed.brokers == 3
        assert needed.metering_pods <= metering.most
        assert needed.peak <= metering.most * metering.per_second * BUSY


def test_more_is_never_less() -> None:
    sizes = [size(rate) for rate in range(1_000, 1_000_000, 7_777)]
    for name in ("partitions", "metering_pods", "billing_pods", "kafka_cores", "brokers"):
        values = [getattr(one, name) for one in sizes]
        assert values == sorted(values), name
    for keeper in ("metering", "billing"):
        for name in ("databases", "wal", "cores", "stored"):
            values = [getattr(one.held[keeper], name) for one in sizes]
            assert values == sorted(values), (keeper, name)


def test_a_pod_is_declared_slower_than_one_process_was_measured() -> None:
    """Its threshold is what the autoscaler believes: a promise that no pod keeps would scale too late."""
    assert footprint(rights.services()["metering"]).per_second < MEASURED.one_process
    assert PEAK >= 1.57, "the busiest minute of a real hour carried 1.57 times its mean"


def test_thresholds_are_half_of_what_freshness_allows() -> None:
    for service in rights.services().values():
        if rights.scales_on(service) is not None:
            assert scaling.threshold(service) == 5 * footprint(service).per_second


def test_the_page_shows_every_rate_and_leaves_no_place_open() -> None:
    page = sizing.page()
    assert all(f"| {rate:,} |" in page or f" {rate:,} " in page for rate in RATES)
    assert not re.search(r"\{\w+\}", page)
