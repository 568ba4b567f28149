"""Whether the services are there at all: what no metric of theirs could say."""

from __future__ import annotations

from deploy.observe.rules import Alert, Case, Group, series, target
from deploy.rooms import ROOMS

_OURS = 'job=~"steward/.+"'
_WHERE = target("billing")


def _up(room: str, value: str, pod: int = 0) -> dict[str, str]:
    return {series(target(room), "up", pod=f"{room}-{pod}"): value}


def _absent() -> str:
    # Not absent(): a count of 0 can be compared, and keeps its service's name.
    parts = [
        f'(count by (job) (up{{job="steward/{room}"}} == 1)\n    or label_replace(vector(0), "job", "steward/{room}", "", ""))'
        for room in ROOMS
    ]
    return "(\n  " + "\n  or\n  ".join(parts) + "\n) < LIMIT"


_ALL_UP = {up: value for room in ROOMS for up, value in _up(room, "1+0x60").items()}
_READY, _STARTED, _SEEN = (
    series(_WHERE, metric)
    for metric in ("steward_ready", "process_start_time_seconds", "steward_database_seen_timestamp_seconds")
)

GROUP = Group(
    "processes",
    alerts=(
        Alert(
            "ServiceAbsent",
            "page",
            _absent(),
            "1",
            5,
            "{{ $labels.job }} does not run",
            "Prometheus reaches {{ $value }} processes of {{ $labels.job }}: it is down, or not scraped, and none of its other "
            "alerts can fire.",
            fires=Case(
                _ALL_UP | _up("audit", "0+0x60"),
                10,
                {"job": "steward/audit"},
            ),
            quiet=Case(_ALL_UP, 10),
            past="0",
            near="2",
        ),
        Alert(
            "TargetDown",
            "ticket",
            f"sum by (namespace, job) (1 - up{{{_OURS}}}) > LIMIT",
            "0",
            10,
            "{{ $value }} processes of {{ $labels.job }} cannot be scraped",
            "They are known to run, and do not answer on their port.",
            fires=Case(_up("billing", "1+0x60") | _up("billing", "1 0+0x60", pod=1), 20, _WHERE),
            quiet=Case(_up("billing", "1+0x60"), 20),
            past="1",
            near="-1",
        ),
        Alert(
            "ServiceNotReady",
            "ticket",
            "sum by (namespace, job) (1 - steward_ready) > LIMIT",
            "0",
            10,
            "{{ $value }} processes of {{ $labels.job }} are not at work",
            "They live, and have no partitions claimed: a roll-out would wait for them.",
            fires=Case({_READY: "1 1 0+0x60"}, 20, _WHERE),
            quiet=Case({_READY: "0 0 1+0x60"}, 20),
            past="1",
            near="-1",
        ),
        Alert(
            "DatabaseUnseen",
            "page",
            "time() - min by (namespace, job) (steward_database_seen_timestamp_seconds) > LIMIT",
            "300",
            5,
            "{{ $labels.job }} has not seen its database for {{ $value | humanizeDuration }}",
            "What is read from there (dead letters, outbox, jobs, tasks, cases, mails) stands still: that no alert on it fires "
            "means nothing.",
            # one of two processes is cut off
            fires=Case(
                {
                    _SEEN: "600+0x60",
                    series(_WHERE, "steward_database_seen_timestamp_seconds", pod="billing-1"): "0+60x60",
                },
                22,
                _WHERE,
            ),
            quiet=Case({_SEEN: "-250+60x60"}, 30),
            past="450",
            near="200",
        ),
        Alert(
            "RestartLoop",
            "page",
            f"max by (namespace, job) (changes(process_start_time_seconds{{{_OURS}}}[30m])) > LIMIT",
            "3",
            0,
            "{{ $labels.job }} starts again and again",
            "A process of {{ $labels.job }} was started {{ $value }} times in half an hour.",
            fires=Case(
                {_STARTED: "100+0x20 1300+0x3 1600+0x3 1900+0x3 2200+0x30"},
                40,
                _WHERE,
            ),
            quiet=Case({_STARTED: "100+0x20 1300+0x3 1600+0x3 1900+0x50"}, 40),
            past="4",
            near="1",
        ),
    ),
)
