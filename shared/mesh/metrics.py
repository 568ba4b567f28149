"""Every metric of the runtime, a sentence each. No label ever names a tenant."""

from __future__ import annotations

from collections.abc import Iterable

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, ProcessCollector

REGISTRY = CollectorRegistry(auto_describe=True)
# When this process started, its memory, processor time and open files, under the names that everybody knows them by.
ProcessCollector(registry=REGISTRY)

_AGE = (0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60, 300, 1800, 3600, 21600, 86400)
_STAGE = (0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10)
_SIZE = (1, 2, 5, 10, 20, 50, 100, 200, 500, 1000, 2000, 5000, 10000)

CONSUMER_LAG_RECORDS = Gauge(
    "steward_consumer_lag_records",
    "Records behind the end of the partition.",
    ["topic", "partition"],
    registry=REGISTRY,
)
CONSUMER_LAG_SECONDS = Gauge(
    "steward_consumer_lag_seconds",
    "Age of the oldest record not yet processed, at most; 0 when there is none.",
    ["topic", "partition"],
    registry=REGISTRY,
)
CONSUMER_NEXT_OFFSET = Gauge(
    "steward_consumer_next_offset",
    "The offset that the partition's cursor has come to: the next record to be processed.",
    ["topic", "partition"],
    registry=REGISTRY,
)
READY = Gauge("steward_ready", "1 if this process is at work, as its /readyz has it; else 0.", registry=REGISTRY)
DATABASE_SEEN = Gauge(
    "steward_database_seen_timestamp_seconds",
    "When the gauges that are read from the service's database (letters, outbox, jobs, tasks, its own) were last true, in "
    "seconds since 1970.",
    registry=REGISTRY,
)
FRESH_SECONDS = 10
"""An event is fresh when its effects are committed so soon after the broker took it."""
LATE_RECORDS_TOTAL = Counter(
    "steward_late_records_total",
    f"Records whose effects were committed later than {FRESH_SECONDS} s after the broker's append.",
    ["topic"],
    registry=REGISTRY,
)
EVENT_AGE_SECONDS = Histogram(
    "steward_event_age_seconds",
    "From the broker's append to the commit of the effects, newest record of a partition in a batch.",
    ["topic"],
    buckets=_AGE,
    registry=REGISTRY,
)
BATCH_SIZE_RECORDS = Histogram(
    "steward_batch_size_records", "Records in a batch.", ["topic"], buckets=_SIZE, registry=REGISTRY
)
BATCH_DURATION_SECONDS = Histogram(
    "steward_batch_duration_seconds",
    "Time in one stage (decode, handler, write, commit) of a batch.",
    ["topic", "stage"],
    buckets=_STAGE,
    registry=REGISTRY,
)
RECORDS_TOTAL = Counter(
    "steward_records_total",
    "Records whose effects were committed, by outcome (handled, dead_lettered, parked).",
    ["topic", "outcome"],
    registry=REGISTRY,
)
DEAD_LETTERS_TOTAL = Counter(
    "steward_dead_letters_total", "Records that became dead letters.", ["topic", "reason"], registry=REGISTRY
)
DEAD_LETTERS_WAITING = Gauge(
    "steward_dead_letters_waiting", "Dead letters that nobody has replayed.", ["topic"], registry=REGISTRY
)
DEAD_LETTER_OLDEST_SECONDS = Gauge(
    "steward_dead_letter_oldest_seconds", "Age of the oldest waiting dead letter.", registry=REGISTRY
)
PARKED_RECORDS = Gauge(
    "steward_parked_records", "Records waiting behind a failed record of their key.", ["topic"], registry=REGISTRY
)
OUTBOX_PENDING = Gauge("steward_outbox_pending", "Outbox rows not yet acknowledged by Kafka.", registry=REGISTRY)
OUTBOX_OLDEST_SECONDS = Gauge("steward_outbox_oldest_seconds", "Age of the oldest outbox row.", registry=REGISTRY)
OUTBOX_SENT_TOTAL = Counter(
    "steward_outbox_sent_total", "Outbox rows acknowledged by Kafka.", ["topic"], registry=REGISTRY
)
FENCED_TOTAL = Counter(
    "steward_fenced_total", "Batches refused since another process owns the partition.", ["topic"], registry=REGISTRY
)
REBALANCES_TOTAL = Counter("steward_rebalances_total", "Assignments received.", ["topic"], registry=REGISTRY)
OFFSET_GAP_RECORDS_TOTAL = Counter(
    "steward_offset_gap_records_total",
    "Records lost to retention before they were read.",
    ["topic"],
    registry=REGISTRY,
)
PARTITIONS_STOPPED = Gauge(
    "steward_partitions_stopped",
    "Partitions that stand still until somebody acts, by reason (limit, newer_version, offset_reset).",
    ["topic", "reason"],
    registry=REGISTRY,
)
RETRIES_TOTAL = Counter(
    "steward_batch_retries_total",
    "Batches redone, by reason (database, handler, runtime).",
    ["topic", "reason"],
    registry=REGISTRY,
)
KAFKA_COMMIT_FAILURES_TOTAL = Counter(
    "steward_kafka_commit_failures_total",
    "Offset hints that Kafka did not take; the cursor is not affected.",
    ["topic"],
    registry=REGISTRY,
)
JOB_RUNS_TOTAL = Counter("steward_job_runs_total", "Runs of a job by outcome.", ["job", "outcome"], registry=REGISTRY)
JOB_MISSED_SLOTS_TOTAL = Counter(
    "steward_job_missed_slots_total", "Slots that passed without a run.", ["job"], registry=REGISTRY
)
JOB_SLOTS_BEHIND = Gauge(
    "steward_job_slots_behind",
    "Whole slots of a job that have passed since the one that is due; 0 when it is on time.",
    ["job"],
    registry=REGISTRY,
)
TASKS_PENDING = Gauge("steward_tasks_pending", "Tasks not yet done.", ["task"], registry=REGISTRY)
TASK_CHUNKS_TOTAL = Counter(
    "steward_task_chunks_total", "Chunks of tasks by outcome.", ["task", "outcome"], registry=REGISTRY
)
LOOP_TICK_SECONDS = Gauge(
    "steward_loop_tick_age_seconds", "Time since the consume loop last turned.", ["topic"], registry=REGISTRY
)


def begin_at_zero(*, reads: Iterable[str], writes: Iterable[str], jobs: Iterable[str], tasks: Iterable[str]) -> None:
    """Exposes the counters of these topics, jobs and tasks before they count anything.

    A counter that first appears when it is 1 has not risen, for whoever asks how much it rose: the first record that is
    lost would raise no alert.
    """
    for topic in reads:
        for counter in (
            REBALANCES_TOTAL,
            FENCED_TOTAL,
            OFFSET_GAP_RECORDS_TOTAL,
            KAFKA_COMMIT_FAILURES_TOTAL,
            LATE_RECORDS_TOTAL,
        ):
            counter.labels(topic)
        for outcome in ("handled", "dead_lettered", "parked"):
            RECORDS_TOTAL.labels(topic, outcome)
        for reason in ("database", "handler", "runtime"):
            RETRIES_TOTAL.labels(topic, reason)
        EVENT_AGE_SECONDS.labels(topic)
        BATCH_SIZE_RECORDS.labels(topic)
        for stage in ("decode", "handler", "write", "commit"):
            BATCH_DURATION_SECONDS.labels(topic, stage)
    for topic in writes:
        OUTBOX_SENT_TOTAL.labels(topic)
    for job in jobs:
        JOB_MISSED_SLOTS_TOTAL.labels(job)
        for outcome in ("done", "failed"):
            JOB_RUNS_TOTAL.labels(job, outcome)
    for task in tasks:
        for outcome in ("done", "failed"):
            TASK_CHUNKS_TOTAL.labels(task, outcome)
