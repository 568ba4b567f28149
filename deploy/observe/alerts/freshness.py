"""The mesh's promise to whoever waits for an event: its effects are there soon. Objective, burn rates, what waits."""

from __future__ import annotations

from deploy.observe.rules import Alert, Case, Group, Recording, series, target
from shared.contract.topics import ACCOUNTS, GENERATIONS, PAYMENTS, PRICES, Topic
from shared.mesh.metrics import FRESH_SECONDS

FRESH_SHARE = 0.999
"""The share of records that has to be fresh, over 30 days."""
BUDGET = f"{1 - FRESH_SHARE:.3f}"

# (window, the short one that lets the alert end soon, times the budget): 2 % of a month's budget in an hour, 5 % in six,
# 10 % in a day, 10 % in three. Google's SRE workbook, chapter 5.
FAST = (("1h", "5m", "14.4"), ("6h", "30m", "6"))
SLOW = (("1d", "2h", "3"), ("3d", "6h", "1"))
# So many late records at least: on a topic with an event a day a single late one is no rate.
_LATE_RECORDS = 10

_BY = "namespace, job, topic"
# By records: a backlog goes in few large batches, and is late all the same.
LATE, ALL = "steward_late_records_total", "steward_batch_size_records_sum"


def late_share(window: str) -> str:
    """The recorded series of the share of records that were late, over `window`."""
    return f"job_topic:steward_event_late:ratio_rate{window}"


def _share(window: str) -> Recording:
    late, total = (f"sum by ({_BY}) (rate({metric}[{window}]))" for metric in (LATE, ALL))
    return Recording(late_share(window), f"{late} / {total}")


def _burns(windows: tuple[tuple[str, str, str], ...]) -> str:
    parts = []
    for long, short, times in windows:
        late = f"sum by ({_BY}) (increase({LATE}[{long}]))"
        parts.append(
            f"({late_share(long)} > {times} * LIMIT\n  and {late_share(short)} > {times} * LIMIT\n"
            f"  and {late} > {_LATE_RECORDS})"
        )
    return "\nor\n".join(parts)


def _records(late: str, total: str, topic: Topic = GENERATIONS) -> dict[str, str]:
    labels = _LABELS | {"topic": topic.name}
    return {series(labels, LATE): late, series(labels, ALL): total}


def _waits(partition: int) -> str:
    return series(_PAYMENTS, "steward_consumer_lag_seconds", partition=str(partition))


_LABELS = target("metering", topic=GENERATIONS.name)
_PAYMENTS = target("billing", topic=PAYMENTS.name)

GROUP = Group(
    "freshness",
    tuple(map(_share, dict.fromkeys(window for pair in (*FAST, *SLOW) for window in pair[:2]))),
    (
        Alert(
            "FreshnessBurnsFast",
            "page",
            _burns(FAST),
            BUDGET,
            2,
            "{{ $labels.job }} is late on {{ $labels.topic }}: the month's budget goes in days",
            f"Of the records of {{{{ $labels.topic }}}}, {{{{ $value | humanizePercentage }}}} had effects later than "
            f"{FRESH_SECONDS} s after the broker took them; {1 - FRESH_SHARE:.1%} of a month's may.",
            # 2 % for an hour, after five that were well; 0.8 % for hours
            fires=Case(
                _records("0x300 0+20x80", "0+1000x380") | _records("0+8x380", "0+1000x380", PAYMENTS),
                370,
                _LABELS,
                alerts=2,
            ),
            # 0.5 % for hours; 5 % that is over; all, but of hardly any; 2.7 % for half an hour
            quiet=Case(
                _records("0+5x400", "0+1000x400")
                | _records("0x250 0+50x100 5000x60", "0+1000x410", PAYMENTS)
                | _records("0+0.025x400", "0+0.025x400", PRICES)
                | _records("0x360 0+27x40", "0+1000x400", ACCOUNTS),
                390,
            ),
            past="0.0015",
            near="0.0008",
            step=5,
        ),
        Alert(
            "FreshnessBurnsSlow",
            "ticket",
            _burns(SLOW),
            BUDGET,
            15,
            "{{ $labels.job }} is late on {{ $labels.topic }} again and again: the month's budget will not last",
            f"Of the records of {{{{ $labels.topic }}}}, {{{{ $value | humanizePercentage }}}} had effects later than "
            f"{FRESH_SECONDS} s after the broker took them, for hours; {1 - FRESH_SHARE:.1%} of a month's may.",
            # 0.4 % of a quiet day after two busy ones; 0.13 % of three days
            fires=Case(
                _records("0x96 0+36x50", "0+30000x96 2889000+9000x50") | _records("0+39x150", "0+30000x150", PAYMENTS),
                4350,
                _LABELS,
                alerts=2,
                every=30,
            ),
            # 0.08 %; 5 % for hours, until seven hours ago; all, but of hardly any; 2.2 % for three hours
            quiet=Case(
                _records("0+24x150", "0+30000x150")
                | _records("0x117 0+1500x13 19500x30", "0+30000x150", PAYMENTS)
                | _records("0+0.06x150", "0+0.06x150", PRICES)
                | _records("0x138 0+660x10", "0+30000x150", ACCOUNTS),
                4350,
                every=30,
            ),
            past="0.0015",
            near="0.0007",
            step=30,
        ),
        Alert(
            "EventsWait",
            "page",
            "max by (namespace, job, topic) (steward_consumer_lag_seconds) > LIMIT",
            "300",
            5,
            "Events of {{ $labels.topic }} wait for {{ $labels.job }}",
            "The oldest event of {{ $labels.topic }} that {{ $labels.job }} has not processed came "
            "{{ $value | humanizeDuration }} ago.",
            fires=Case(
                {_waits(0): "0+60x30", _waits(1): "0+0x30"},
                12,
                _PAYMENTS,
            ),
            quiet=Case({_waits(0): "250+0x30"}, 16),
            past="450",
            near="200",
        ),
    ),
)
