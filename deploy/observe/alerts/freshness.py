"""The mesh's promise to whoever waits for an event: its effects are there soon. Objective, burn rates, what waits."""

from __future__ import annotations

from deploy.observe.rules import Alert, Case, Group, Recording, series, target
from shared.contract.topics import GENERATIONS, PAYMENTS

FRESH_SECONDS = 10
"""An event is fresh when its effects are committed so soon after the broker took it. It is a bound of the histogram."""
FRESH_SHARE = 0.999
"""The share that has to be, over 30 days."""
BUDGET = f"{1 - FRESH_SHARE:.3f}"

# (window, the short one that lets the alert end soon, times the budget): 2 % of a month's budget in an hour, 5 % in six,
# 10 % in a day, 10 % in three. Google's SRE workbook, chapter 5.
FAST = (("1h", "5m", "14.4"), ("6h", "30m", "6"))
SLOW = (("1d", "2h", "3"), ("3d", "6h", "1"))
# So many late batches at least: on a topic with an event a day a single late one is no rate.
_LATE_BATCHES = 10

_BY = "namespace, job, topic"
_FRESH = f'steward_event_age_seconds_bucket{{le="{FRESH_SECONDS:.1f}"}}'
_ALL = "steward_event_age_seconds_count"


def late_share(window: str) -> str:
    """The recorded series of the share of batches that were late, over `window`."""
    return f"job_topic:steward_event_late:ratio_rate{window}"


def _share(window: str) -> Recording:
    fresh, total = f"sum by ({_BY}) (rate({_FRESH}[{window}]))", f"sum by ({_BY}) (rate({_ALL}[{window}]))"
    return Recording(late_share(window), f"1 - {fresh} / {total}")


def _burns(windows: tuple[tuple[str, str, str], ...]) -> str:
    parts = []
    for long, short, times in windows:
        late = f"sum by ({_BY}) (increase({_ALL}[{long}])) - sum by ({_BY}) (increase({_FRESH}[{long}]))"
        parts.append(
            f"({late_share(long)} > {times} * LIMIT\n  and {late_share(short)} > {times} * LIMIT\n"
            f"  and {late} > {_LATE_BATCHES})"
        )
    return "\nor\n".join(parts)


def _histogram(fresh: str, total: str) -> dict[str, str]:
    return {
        series(_LABELS, "steward_event_age_seconds_bucket", le=f"{FRESH_SECONDS:.1f}"): fresh,
        series(_LABELS, _ALL): total,
    }


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
            f"Of the batches of {{{{ $labels.topic }}}}, {{{{ $value | humanizePercentage }}}} had effects later than "
            f"{FRESH_SECONDS} s after the broker took them; {1 - FRESH_SHARE:.1%} of a month's may.",
            # from the start 5 % are late: 1.5 times what the fast window bears
            fires=Case(_histogram("0+95x120", "0+100x120"), 70, _LABELS),
            # 0.5 %: less than six times the budget
            quiet=Case(_histogram("0+995x400", "0+1000x400"), 390),
            past="0.01",
            near="0.0001",
            step=5,
        ),
        Alert(
            "FreshnessBurnsSlow",
            "ticket",
            _burns(SLOW),
            BUDGET,
            15,
            "{{ $labels.job }} is late on {{ $labels.topic }} again and again: the month's budget will not last",
            f"Of the batches of {{{{ $labels.topic }}}}, {{{{ $value | humanizePercentage }}}} had effects later than "
            f"{FRESH_SECONDS} s after the broker took them, for hours; {1 - FRESH_SHARE:.1%} of a month's may.",
            fires=Case(_histogram("0+996x1500", "0+1000x1500"), 1500, _LABELS),
            quiet=Case(_histogram("0+9995x1500", "0+10000x1500"), 1500),
            past="0.01",
            near="0.0001",
            step=15,
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
                16,
                _PAYMENTS,
            ),
            quiet=Case({_waits(0): "200+0x30"}, 16),
            past="100000",
            near="100",
        ),
    ),
)
