"""Whether each topic is read: nobody stands still unseen, nothing is lost or left aside without a word."""

from __future__ import annotations

from collections import defaultdict
from datetime import timedelta

from deploy.observe.rules import Alert, Case, Group, Recording, series, target
from shared.contract.topics import ACCOUNTS, HOLDERS, PAYMENTS, TOMBSTONES, TOPICS
from shared.mesh.consumer import DEAD_LETTER_LIFE

_STALL = "10m"
_LETTERS = "job_topic:steward_dead_letters_waiting:max"
_PAYMENTS = target("billing", topic=PAYMENTS.name)


_OLDEST = 'steward_dead_letter_oldest_seconds{namespace="steward", job="steward/billing", pod="billing-0"}'


def _unowned() -> str:
    """Declared partitions less those that somebody reads, by topic. A topic that has grown has more, never fewer.

    Of a topic that nobody reads there is no offset at all: whoever should read it has counted its assignments from 0.
    """
    rooms = {*HOLDERS, "audit"}
    counts: dict[int, list[str]] = defaultdict(list)
    for topic in TOPICS:
        if rooms.intersection(topic.readers):
            counts[topic.partitions].append(topic.name)
    parts = []
    for count, names in sorted(counts.items()):
        topics = "|".join(sorted(names)).replace(".", "[.]")
        read = f'count by (namespace, job, topic, partition) (steward_consumer_next_offset{{topic=~"{topics}"}})'
        should = f'0 * count by (namespace, job, topic) (steward_rebalances_total{{topic=~"{topics}"}})'
        parts.append(f"{count} - (count by (namespace, job, topic) ({read})\n    or {should})")
    return "(\n  " + "\n  or\n  ".join(parts) + "\n) > LIMIT"


def _stopped(name: str, reason: str, summary: str, description: str) -> Alert:
    return Alert(
        name,
        "page",
        f'sum by (namespace, job, topic) (steward_partitions_stopped{{reason="{reason}"}}) > LIMIT',
        "0",
        0,
        summary,
        description,
        fires=Case({series(_PAYMENTS, "steward_partitions_stopped", reason=reason): "0 0 1+0x10"}, 5, _PAYMENTS),
        quiet=Case({series(_PAYMENTS, "steward_partitions_stopped", reason=reason): "0+0x10"}, 5),
        past="1",
        near="-1",
    )


GROUP = Group(
    "consumers",
    (Recording(_LETTERS, "max by (namespace, job, topic) (steward_dead_letters_waiting)"),),
    (
        Alert(
            "ConsumerStalled",
            "page",
            # Burrow's rule: the offset does not move while lag is there and does not shrink. No threshold of lag.
            "count by (namespace, job, topic) (\n"
            f"  changes(steward_consumer_next_offset[{_STALL}]) == 0\n"
            f"  and min_over_time(steward_consumer_lag_records[{_STALL}]) > 0\n"
            f"  and delta(steward_consumer_lag_records[{_STALL}]) >= 0\n"
            ") > LIMIT",
            "0",
            5,
            "{{ $labels.job }} stands still on {{ $labels.topic }}",
            "{{ $value }} partitions of {{ $labels.topic }} have records that {{ $labels.job }} does not read: their "
            f"offsets have not moved for {_STALL}.",
            fires=Case(
                {
                    series(_PAYMENTS, "steward_consumer_next_offset", partition="0"): "700+0x40",
                    series(_PAYMENTS, "steward_consumer_lag_records", partition="0"): "0+5x40",
                    series(_PAYMENTS, "steward_consumer_next_offset", partition="1"): "700+9x40",
                    series(_PAYMENTS, "steward_consumer_lag_records", partition="1"): "0+5x40",
                },
                20,
                _PAYMENTS,
            ),
            # one at rest, one that cannot keep up but moves, one that works a backlog off
            quiet=Case(
                {
                    series(_PAYMENTS, "steward_consumer_next_offset", partition="0"): "700+0x40",
                    series(_PAYMENTS, "steward_consumer_lag_records", partition="0"): "0+0x40",
                    series(_PAYMENTS, "steward_consumer_next_offset", partition="1"): "700+9x40",
                    series(_PAYMENTS, "steward_consumer_lag_records", partition="1"): "0+5x40",
                    series(_PAYMENTS, "steward_consumer_next_offset", partition="2"): "700+9x40",
                    series(_PAYMENTS, "steward_consumer_lag_records", partition="2"): "900-9x40",
                },
                20,
            ),
            past="1",
            near=("_records[10m]) > 0", "_records[10m]) >= 0"),
        ),
        Alert(
            "PartitionsUnread",
            "page",
            _unowned(),
            "0",
            10,
            "Nobody reads {{ $value }} partitions of {{ $labels.topic }}",
            "{{ $labels.job }} reads {{ $value }} partitions of {{ $labels.topic }} fewer than the contract declares.",
            # of one topic all are read but one, of another none
            fires=Case(
                {series(_PAYMENTS, "steward_consumer_next_offset", partition=str(n)): "5+1x30" for n in range(5)}
                | {series(_PAYMENTS, "steward_rebalances_total"): "1+0x30"}
                | {series(_PAYMENTS, "steward_rebalances_total", topic=TOMBSTONES.name): "0+0x30"},
                15,
                _PAYMENTS,
                alerts=2,
            ),
            quiet=Case(
                {series(_PAYMENTS, "steward_consumer_next_offset", partition=str(n)): "5+1x30" for n in range(6)}
                | {series(_PAYMENTS, "steward_rebalances_total"): "1+0x30"},
                15,
            ),
            past="1",
            near="-1",
        ),
        _stopped(
            "ConsumerStoppedAtLimit",
            "limit",
            "{{ $labels.job }} has stopped on {{ $labels.topic }}: too many of its own failures",
            "{{ $value }} partitions stand still, so that a fault of ours does not empty the topic into the dead letters. "
            "They go on when the service is started again.",
        ),
        _stopped(
            "NewerVersionWaits",
            "newer_version",
            "{{ $labels.topic }} has events newer than {{ $labels.job }}",
            "{{ $value }} partitions stand still before an event of a version that this release cannot read.",
        ),
        _stopped(
            "OffsetsReset",
            "offset_reset",
            "{{ $labels.topic }} ends before the cursors of {{ $labels.job }}",
            "{{ $value }} partitions stand still: the topic was made anew, or moved, and offsets do not mean what they did.",
        ),
        Alert(
            "RecordsLost",
            "page",
            "sum by (namespace, job, topic) (increase(steward_offset_gap_records_total[1h])) > LIMIT",
            "0",
            0,
            "Records of {{ $labels.topic }} are lost to {{ $labels.job }}",
            "About {{ $value | humanize }} records ended by retention before {{ $labels.job }} had read them.",
            fires=Case({series(_PAYMENTS, "steward_offset_gap_records_total"): "0+0x10 1+0x50"}, 30, _PAYMENTS),
            quiet=Case({series(_PAYMENTS, "steward_offset_gap_records_total"): "40+0x120"}, 90),
            past="2",
            near="-1",
        ),
        Alert(
            "ConsumerFenced",
            "ticket",
            "sum by (namespace, job, topic) (increase(steward_fenced_total[15m])) > LIMIT",
            "10",
            5,
            "Processes of {{ $labels.job }} fight for {{ $labels.topic }}",
            "{{ $value | humanize }} batches in 15 minutes were refused, because another process owned the partition.",
            fires=Case({series(_PAYMENTS, "steward_fenced_total"): "0+0.8x40"}, 30, _PAYMENTS),
            quiet=Case({series(_PAYMENTS, "steward_fenced_total"): "0+0.55x40"}, 30),
            past="15",
            near="7",
        ),
        Alert(
            "RebalancesRepeat",
            "ticket",
            "max by (namespace, job, topic) (increase(steward_rebalances_total[30m])) > LIMIT",
            "6",
            5,
            "The group of {{ $labels.job }} on {{ $labels.topic }} does not come to rest",
            "A process was assigned partitions {{ $value | humanize }} times in half an hour; each time all of them stop.",
            fires=Case({series(_PAYMENTS, "steward_rebalances_total"): "1+0.25x60"}, 50, _PAYMENTS),
            quiet=Case({series(_PAYMENTS, "steward_rebalances_total"): "1+0.17x60"}, 50),
            past="9",
            near="4",
        ),
        Alert(
            "BatchesRedone",
            "ticket",
            "sum by (namespace, job, topic, reason) (increase(steward_batch_retries_total[10m])) > LIMIT",
            "20",
            10,
            "{{ $labels.job }} redoes batches of {{ $labels.topic }} ({{ $labels.reason }})",
            "{{ $value | humanize }} batches in 10 minutes were rolled back and done again.",
            fires=Case(
                {series(_PAYMENTS, "steward_batch_retries_total", reason="database"): "0+2.5x40"},
                30,
                _PAYMENTS | {"reason": "database"},
            ),
            quiet=Case({series(_PAYMENTS, "steward_batch_retries_total", reason="database"): "0+1.7x40"}, 30),
            past="30",
            near="15",
        ),
        Alert(
            "KafkaCommitsFail",
            "ticket",
            "sum by (namespace, job, topic) (increase(steward_kafka_commit_failures_total[30m])) > LIMIT",
            "30",
            10,
            "Kafka does not take the offsets of {{ $labels.job }} on {{ $labels.topic }}",
            "{{ $value | humanize }} commits failed in half an hour. Nothing is lost (cursors are in PostgreSQL), but scaling "
            "and trimming go by what Kafka has.",
            fires=Case({series(_PAYMENTS, "steward_kafka_commit_failures_total"): "0+1.2x60"}, 50, _PAYMENTS),
            quiet=Case({series(_PAYMENTS, "steward_kafka_commit_failures_total"): "0+0.8x60"}, 50),
            past="45",
            near="21",
        ),
        Alert(
            "KeysParked",
            "page",
            "max by (namespace, job, topic) (steward_parked_records) > LIMIT",
            "0",
            5,
            "Records of {{ $labels.topic }} wait behind a failed one of their key",
            "{{ $value }} records are parked by {{ $labels.job }}: nothing more happens for their accounts or workspaces "
            "until what made it fail is mended and they are released.",
            # both replicas say the same of one table
            fires=Case(
                {
                    series(_PAYMENTS, "steward_parked_records"): "0 0 1+0x20",
                    series(_PAYMENTS, "steward_parked_records", pod="billing-1"): "0 0 1+0x20",
                },
                10,
                _PAYMENTS,
            ),
            quiet=Case({series(_PAYMENTS, "steward_parked_records"): "0+0x20"}, 10),
            past="1",
            near="-1",
        ),
        Alert(
            "DeadLettersShare",
            "page",
            'sum by (namespace, job, topic) (rate(steward_records_total{outcome="dead_lettered"}[15m]))\n'
            "  / sum by (namespace, job, topic) (rate(steward_records_total[15m])) > LIMIT\n"
            'and sum by (namespace, job, topic) (increase(steward_records_total{outcome="dead_lettered"}[15m])) > 10',
            "0.05",
            5,
            "{{ $value | humanizePercentage }} of {{ $labels.topic }} becomes dead letters",
            "{{ $labels.job }} could not handle {{ $value | humanizePercentage }} of the records of the last 15 minutes.",
            fires=Case(
                {
                    series(_PAYMENTS, "steward_records_total", outcome="handled"): "0+14.1x40",
                    series(_PAYMENTS, "steward_records_total", outcome="dead_lettered"): "0+0.9x40",
                },
                30,
                _PAYMENTS,
            ),
            # 4 %; all, but of hardly any
            quiet=Case(
                {
                    series(_PAYMENTS, "steward_records_total", outcome="handled"): "0+96x40",
                    series(_PAYMENTS, "steward_records_total", outcome="dead_lettered"): "0+4x40",
                    series(
                        _PAYMENTS, "steward_records_total", topic=ACCOUNTS.name, outcome="dead_lettered"
                    ): "0+0.5x40",
                },
                30,
            ),
            past="0.07",
            near="0.03",
        ),
        Alert(
            "DeadLettersGrow",
            "ticket",
            f"{_LETTERS} - ({_LETTERS} offset 1h or 0 * {_LETTERS}) > LIMIT",
            "10",
            10,
            "Dead letters of {{ $labels.topic }} pile up",
            "{{ $value }} more records than an hour ago wait in the dead letters of {{ $labels.job }}.",
            fires=Case({series(_PAYMENTS, "steward_dead_letters_waiting"): "5+0.2x120"}, 100, _PAYMENTS),
            quiet=Case({series(_PAYMENTS, "steward_dead_letters_waiting"): "50+0.14x120"}, 100),
            past="15",
            near="7",
            step=5,
        ),
        Alert(
            "DeadLettersAge",
            "ticket",
            "max by (namespace, job) (steward_dead_letter_oldest_seconds) > LIMIT",
            "86400",
            30,
            "Nobody has looked at a dead letter of {{ $labels.job }} for a day",
            "The oldest dead letter that waits is {{ $value | humanizeDuration }} old.",
            fires=Case(
                {_OLDEST: "86000+60x60"},
                45,
                target("billing"),
            ),
            quiet=Case({_OLDEST: "80000+60x60"}, 45),
            past="90000",
            near="70000",
        ),
        Alert(
            "DeadLettersEnd",
            "page",
            "max by (namespace, job) (steward_dead_letter_oldest_seconds) > LIMIT",
            f"{(DEAD_LETTER_LIFE - timedelta(days=2)).total_seconds():.0f}",
            10,
            "Dead letters of {{ $labels.job }} are about to end for good",
            "The oldest that waits is {{ $value | humanizeDuration }} old. Dead letters live a week at most; what nobody "
            "replays by then is lost.",
            fires=Case(
                {_OLDEST: "432000+60x60"},
                20,
                target("billing"),
            ),
            quiet=Case(
                {_OLDEST: "420000+60x60"},
                20,
            ),
            past="450000",
            near="400000",
        ),
    ),
)
