"""Every metric of the runtime, a sentence each. No label ever names a tenant."""

from __future__ import annotations

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram

REGISTRY = CollectorRegistry(auto_describe=True)

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
EVENT_AGE_SECONDS = Histogram(
    "steward_event_age_seconds",
    "From the broker's append to the commit of the effects, newest record of a batch.",
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
    "Batches redone, by reason (database, handler).",
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
TASKS_PENDING = Gauge("steward_tasks_pending", "Tasks not yet done.", ["task"], registry=REGISTRY)
TASK_CHUNKS_TOTAL = Counter(
    "steward_task_chunks_total", "Chunks of tasks by outcome.", ["task", "outcome"], registry=REGISTRY
)
LOOP_TICK_SECONDS = Gauge(
    "steward_loop_tick_age_seconds", "Time since the consume loop last turned.", ["topic"], registry=REGISTRY
)
