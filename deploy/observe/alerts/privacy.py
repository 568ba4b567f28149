"""Whether the promises of the privacy policy will be kept: clocks of cases, and data that ends in time."""

from __future__ import annotations

from deploy.observe.rules import Alert, Case, Group, series, target
from shared.contract.topics import ACCESS
from shared.policy import policy

_RETENTION = target("retention")
_AUDIT = target("audit")
_HOUR = 3600
# Topics are cut an hour behind their slowest reader: one that holds two days is not being cut.
_UNCUT_HOURS = 48
_TOPIC_HOURS = int(policy().topic_max.total_seconds()) // _HOUR


_TOPIC = {"topic": ACCESS.name, "service": "", "table": ""}
_TABLE = {"topic": "", "service": "metering", "table": "request_log"}

GROUP = Group(
    "privacy",
    alerts=(
        Alert(
            "DeadlineBreachForecast",
            "page",
            "sum by (namespace, job, reason) (max by (namespace, job, reason) (steward_deadline_breaches_forecast)) > LIMIT",
            "0",
            10,
            "{{ $value }} cases will miss the clock `{{ $labels.reason }}`",
            "At the speed that the steps of the last cases had they will be late, or are. There may still be time.",
            fires=Case(
                {series(_RETENTION, "steward_deadline_breaches_forecast", reason="erasure"): "0 0 1+0x30"},
                20,
                _RETENTION | {"reason": "erasure"},
            ),
            quiet=Case({series(_RETENTION, "steward_deadline_breaches_forecast", reason="erasure"): "0+0x30"}, 20),
            past="1",
            near="-1",
        ),
        Alert(
            "CaseLate",
            "page",
            "max by (namespace, job) (steward_cases_late) > LIMIT",
            "0",
            0,
            "A clock of the privacy policy has been missed",
            "{{ $value }} open cases are past a deadline.",
            fires=Case({series(_RETENTION, "steward_cases_late"): "0 0 1+0x20"}, 5, _RETENTION),
            quiet=Case({series(_RETENTION, "steward_cases_late"): "0+0x20"}, 5),
            past="1",
            near="-1",
        ),
        Alert(
            "CasesNeedPerson",
            "ticket",
            "max by (namespace, job) (steward_cases_needing_person) > LIMIT",
            "0",
            60,
            "{{ $value }} cases, holds or disclosures wait for a person",
            "They do not get on by themselves, and their clocks run.",
            fires=Case({series(_RETENTION, "steward_cases_needing_person"): "0 0 1+0x90"}, 80, _RETENTION),
            quiet=Case({series(_RETENTION, "steward_cases_needing_person"): "0 0 2+0x30 0+0x60"}, 80),
            past="1",
            near="-1",
        ),
        Alert(
            "RetentionBroken",
            "page",
            "min by (namespace, job, topic, service, table) (steward_retention_slack_hours) < LIMIT",
            "0",
            10,
            "{{ $labels.topic }}{{ $labels.table }} keeps data longer than it may",
            "The bound of what {{ $labels.service }} {{ $labels.topic }}{{ $labels.table }} may keep has been passed: "
            "{{ $value }} hours are left.",
            fires=Case(
                # the other auditor has looked before
                {
                    series(_AUDIT, "steward_retention_slack_hours", **_TABLE): "0.5 -0.5+0x60",
                    series(_AUDIT, "steward_retention_slack_hours", **_TABLE | {"pod": "audit-1"}): "5+0x60",
                },
                40,
                _AUDIT | _TABLE,
            ),
            quiet=Case({series(_AUDIT, "steward_retention_slack_hours", **_TABLE): "0.9+0x60"}, 40),
            past="-1",
            near="1",
        ),
        Alert(
            "TopicNotTrimmed",
            "ticket",
            'min by (namespace, job, topic) (steward_retention_slack_hours{topic!=""}) < LIMIT',
            str(_TOPIC_HOURS - _UNCUT_HOURS),
            60,
            "{{ $labels.topic }} is not cut behind its readers",
            f"Its oldest record is more than {_UNCUT_HOURS} hours old; {{{{ $value }}}} hours are left of the "
            f"{_TOPIC_HOURS} that a topic with personal data has.",
            fires=Case(
                {series(_AUDIT, "steward_retention_slack_hours", **_TOPIC): "100+0x120"},
                90,
                _AUDIT | {"topic": ACCESS.name},
            ),
            # a table's slack is small by nature
            quiet=Case(
                {
                    series(_AUDIT, "steward_retention_slack_hours", **_TOPIC): "130+0x120",
                    series(_AUDIT, "steward_retention_slack_hours", **_TABLE): "2+0x120",
                },
                90,
            ),
            past="90",
            near="140",
        ),
        Alert(
            "RetentionDrift",
            "ticket",
            "max by (namespace, job) (steward_retention_findings) > LIMIT",
            "0",
            15,
            "Kafka or a database keeps data otherwise than declared",
            "The auditor's latest look at the clocks of data found {{ $value }} things; `steward retention` names them.",
            fires=Case({series(_AUDIT, "steward_retention_findings"): "0 0 1+0x60"}, 30, _AUDIT),
            quiet=Case({series(_AUDIT, "steward_retention_findings"): "0+0x60"}, 30),
            past="1",
            near="-1",
        ),
        Alert(
            "RetentionUnwatched",
            "ticket",
            "time() - max by (namespace, job) (steward_retention_looked_timestamp_seconds) > LIMIT",
            "1800",
            10,
            "Nobody has looked for {{ $value | humanizeDuration }} whether data ends in time",
            "The auditor's job `drift` does not run: that nothing is found means nothing.",
            fires=Case({series(_AUDIT, "steward_retention_looked_timestamp_seconds"): "300+0x90"}, 60, _AUDIT),
            quiet=Case({series(_AUDIT, "steward_retention_looked_timestamp_seconds"): "-1500+60x90"}, 60),
            past="2700",
            near="1200",
        ),
    ),
)
