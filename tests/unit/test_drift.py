"""What the auditor says about settings, ages and partitions; and how far a topic may be cut."""

from __future__ import annotations

from dataclasses import replace
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from services.audit.drift.judge import Database, Held, Part, Seen, judge_database, judge_topics
from shared.contract import topics
from shared.contract.topics import Topic
from shared.mesh.trim import cut, groups_of, is_trimmed

NOW = datetime(2026, 11, 28, 12, tzinfo=UTC)
DAY = timedelta(days=1)
MAX = 7 * DAY


def held(topic: Topic, *, age: timedelta | None = None, **changes: str | None) -> Held:
    settings = topic.config(hurried=False) | {n.replace("_", "."): v for n, v in changes.items() if v is not None}
    for name, value in changes.items():
        if value is None:
            del settings[name.replace("_", ".")]
    return Held(settings, {0: (0, 9)}, None if age is None else NOW - age)


def judged(topic: Topic, found: Held | None) -> Seen:
    return judge_topics([topic], {} if found is None else {topic.name: found}, NOW, MAX, hurried=False)


@pytest.mark.parametrize("topic", topics.TOPICS, ids=lambda topic: topic.name)
def test_what_the_contract_says_is_no_drift(topic: Topic) -> None:
    seen = judged(topic, held(topic, age=DAY))
    assert seen.findings == []
    transit = topic.personal and not topic.compacted
    assert seen.stores[0].slack_hours == (6 * 24 if transit else None)


@pytest.mark.parametrize(
    ("topic", "found", "says"),
    [
        (topics.GENERATIONS, None, "no such topic"),
        (topics.GENERATIONS, held(topics.GENERATIONS, retention_ms="1209600000"), "retention.ms is 1209600000"),
        (topics.GENERATIONS, held(topics.GENERATIONS, retention_ms="1209600000"), "longer than 7 days together"),
        (topics.GENERATIONS, held(topics.GENERATIONS, retention_ms="-1"), "longer than 7 days together"),
        (topics.GENERATIONS, held(topics.GENERATIONS, segment_ms=None), "segment.ms is None"),
        (
            topics.ACCESS,
            held(topics.ACCESS, message_timestamp_type="CreateTime"),
            "message.timestamp.type is CreateTime",
        ),
        (topics.ACCESS, held(topics.ACCESS, age=MAX + timedelta(hours=1)), "its oldest record is 7.04 days old"),
        (topics.BALANCES, held(topics.BALANCES, max_compaction_lag_ms=None), "without max.compaction.lag.ms"),
        (topics.BALANCES, held(topics.BALANCES, max_compaction_lag_ms=str(2**63 - 1)), "without max.compaction.lag.ms"),
        (topics.BALANCES, held(topics.BALANCES, cleanup_policy="delete"), "cleanup.policy is delete"),
    ],
)
def test_a_topic_that_drifts_is_named(topic: Topic, found: Held | None, says: str) -> None:
    findings = judged(topic, found).findings
    assert any(says in said and said.startswith(topic.name) for said in findings), findings


PART = Part("log", "log_20261201", True, False, False, True, NOW + 3 * DAY, NOW + 4 * DAY)


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"over_at": NOW - timedelta(minutes=61)}, "has been over for 1 hours"),
        ({"attached": False}, "is detached from log and still lies there"),
        ({"pending": True}, "is being detached"),
        ({"marked": False, "over_at": None}, "does not say when it is over"),
        ({"default": True}, "is a default partition"),
        ({"over_at": NOW + 90 * DAY}, "its map: 30"),
    ],
)
def test_a_partition_that_drifts_is_named(change: dict[str, Any], says: str) -> None:
    database = Database("metering", [PART], {"mesh-partitions": NOW}, {"log": 30})
    assert judge_database(database, NOW).findings == []
    (said,) = judge_database(database._replace(parts=[PART._replace(**change)]), NOW).findings
    assert said.startswith("metering: log_20261201") and says in said


def test_slack_is_that_of_the_first_to_be_over() -> None:
    parts = [PART, PART._replace(name="log_20261130", over_at=NOW + timedelta(hours=5))]
    (store,) = judge_database(Database("metering", parts), NOW).stores
    assert store.slack_hours == 6
    late = judge_database(Database("metering", [PART._replace(over_at=NOW - timedelta(hours=3))]), NOW)
    assert late.stores[0].slack_hours == -2


def test_silence_is_drift() -> None:
    for ran, findings in ((NOW - timedelta(hours=2), 0), (NOW - timedelta(hours=4), 1), (None, 0)):
        assert len(judge_database(Database("metering", (), {"mesh-expire": ran}), NOW).findings) == findings
    assert "could not be read" in judge_database(Database("metering", trouble="OSError"), NOW).findings[0]


# --- how far a topic may be cut ------------------------------------------------------------------------------------

OFFSETS = st.integers(0, 100)


@given(st.lists(st.one_of(st.none(), OFFSETS), min_size=1), st.one_of(st.none(), OFFSETS), OFFSETS, OFFSETS)
def test_never_beyond_the_slowest_reader_nor_what_is_young(
    committed: list[int | None], first_young: int | None, start: int, end: int
) -> None:
    place = cut(committed, first_young, start, end)
    if place is not None:
        assert start < place <= end
        assert all(offset is not None and place <= offset for offset in committed)
        assert first_young is None or place <= first_young
        # And it is no shorter than it may be.
        assert place in (*committed, end, first_young)
    else:
        bounds = [offset or 0 for offset in committed] + [end, end if first_young is None else first_young]
        assert min(bounds) <= start


def test_who_has_to_have_passed_a_record() -> None:
    assert groups_of(topics.GENERATIONS) == ("steward.metering.gateway.generations",)
    trimmed = {topic.name for topic in topics.TOPICS if is_trimmed(topic)}
    assert topics.GENERATIONS.name in trimmed and topics.USAGE_RATED.name in trimmed
    # Compacted, or nobody's.
    assert not trimmed & {t.name for t in (topics.BALANCES, topics.TOMBSTONES, topics.PRICES)}
    assert not is_trimmed(replace(topics.GENERATIONS, readers=("gateway", "operator")))
