"""Whether what has to be done is done: what is sent, jobs in their slots, tasks to their end, mails."""

from __future__ import annotations

from deploy.observe.rules import Alert, Case, Group, series, target

_PROVES = {"exported_job": "prove"}
_STAGED = target("notifications", namespace="staging")

# A job's name is the label `job` of our metrics, which Prometheus keeps as `exported_job`: `job` is the service scraped.
GROUP = Group(
    "work",
    alerts=(
        Alert(
            "OutboxStuck",
            "page",
            "max by (namespace, job) (steward_outbox_oldest_seconds) > LIMIT",
            "60",
            5,
            "What {{ $labels.job }} has to publish does not go out",
            "The oldest row of its outbox was written {{ $value | humanizeDuration }} ago; its readers are behind by as much.",
            fires=Case(
                {series(target("metering"), "steward_outbox_oldest_seconds"): "70+0x30"}, 20, target("metering")
            ),
            quiet=Case({series(target("metering"), "steward_outbox_oldest_seconds"): "50+0x30"}, 20),
            past="90",
            near="40",
        ),
        Alert(
            "JobBehind",
            "ticket",
            "max by (namespace, job, exported_job) (steward_job_slots_behind) > LIMIT",
            "0",
            30,
            "The job {{ $labels.exported_job }} of {{ $labels.job }} does not run",
            "{{ $value }} whole slots have passed since the one in which it should have run next.",
            fires=Case(
                {series(target("audit"), "steward_job_slots_behind", **_PROVES): "1+0x60"},
                45,
                target("audit", exported_job="prove"),
            ),
            quiet=Case({series(target("audit"), "steward_job_slots_behind", **_PROVES): "0+0x60"}, 45),
            past="1",
            near="-1",
        ),
        Alert(
            "JobMissesSlots",
            "ticket",
            "sum by (namespace, job, exported_job) (increase(steward_job_missed_slots_total[1h]))\n"
            "  / (sum by (namespace, job, exported_job) (increase(steward_job_missed_slots_total[1h]))\n"
            '    + sum by (namespace, job, exported_job) (increase(steward_job_runs_total{outcome="done"}[1h]))) > LIMIT',
            "0.75",
            30,
            "The job {{ $labels.exported_job }} of {{ $labels.job }} misses most of its slots",
            "{{ $value | humanizePercentage }} of the slots of the last hour passed without a run: it takes longer than a slot, "
            "or waits behind another job.",
            fires=Case(
                {
                    series(target("audit"), "steward_job_missed_slots_total", **_PROVES): "0+5x120",
                    series(target("audit"), "steward_job_runs_total", **_PROVES, outcome="done"): "0+1x120",
                },
                110,
                target("audit", exported_job="prove"),
            ),
            quiet=Case(
                {
                    series(target("audit"), "steward_job_missed_slots_total", **_PROVES): "0+2x120",
                    series(target("audit"), "steward_job_runs_total", **_PROVES, outcome="done"): "0+1x120",
                },
                110,
            ),
            past="0.9",
            near="0.6",
            step=5,
        ),
        Alert(
            "JobFails",
            "ticket",
            'sum by (namespace, job, exported_job) (increase(steward_job_runs_total{outcome="failed"}[30m])) > LIMIT',
            "3",
            10,
            "The job {{ $labels.exported_job }} of {{ $labels.job }} fails",
            "{{ $value | humanize }} runs failed in half an hour; each is tried again.",
            fires=Case(
                {
                    series(
                        target("retention"), "steward_job_runs_total", exported_job="cases", outcome="failed"
                    ): "0+0.14x60"
                },
                50,
                target("retention", exported_job="cases"),
            ),
            quiet=Case(
                {
                    series(
                        target("retention"), "steward_job_runs_total", exported_job="cases", outcome="failed"
                    ): "0+0.085x60"
                },
                50,
            ),
            past="4.5",
            near="2",
        ),
        Alert(
            "TaskStuck",
            "ticket",
            "max by (namespace, job, task) (min_over_time(steward_tasks_pending[1h])) > LIMIT\n"
            'unless sum by (namespace, job, task) (increase(steward_task_chunks_total{outcome="done"}[1h])) > 0',
            "0",
            30,
            "The task {{ $labels.task }} of {{ $labels.job }} does not get on",
            "{{ $value }} tasks have been waiting for an hour in which not one chunk was done.",
            fires=Case(
                {
                    series(target("billing"), "steward_tasks_pending", task="mesh-erase"): "1+0x120",
                    series(
                        target("billing"), "steward_task_chunks_total", task="mesh-erase", outcome="done"
                    ): "7+0x120",
                },
                110,
                target("billing", task="mesh-erase"),
            ),
            # long, and under way
            quiet=Case(
                {
                    series(target("billing"), "steward_tasks_pending", task="mesh-erase"): "2+0x120",
                    series(
                        target("billing"), "steward_task_chunks_total", task="mesh-erase", outcome="done"
                    ): "7+0.1x120",
                },
                110,
            ),
            past="1",
            near=('"done"}[1h])) > 0', '"done"}[1h])) > 1000'),
            step=5,
        ),
        Alert(
            "MailsDoNotGo",
            "page",
            'max by (namespace, job) (min_over_time(steward_notifications_mails{outcome="waiting"}[30m])) > LIMIT\n'
            "and on (namespace, job)\n"
            'max by (namespace, job) (delta(steward_notifications_mails{outcome="accepted"}[30m])) <= 0',
            "2",
            15,
            "No mail goes out",
            "At least {{ $value }} mails have been waiting for half an hour, and none was accepted meanwhile: codes and answers "
            "that people are owed, with clocks that run.",
            fires=Case(
                {
                    series(target("notifications"), "steward_notifications_mails", outcome="waiting"): "0 3+0x120",
                    series(target("notifications"), "steward_notifications_mails", outcome="accepted"): "80+0x120",
                },
                60,
                target("notifications"),
            ),
            # some wait, and others go; two wait
            quiet=Case(
                {
                    series(target("notifications"), "steward_notifications_mails", outcome="waiting"): "3+0x120",
                    series(target("notifications"), "steward_notifications_mails", outcome="accepted"): "80+0.5x120",
                    series(_STAGED, "steward_notifications_mails", outcome="waiting"): "2+0x120",
                    series(_STAGED, "steward_notifications_mails", outcome="accepted"): "80+0x120",
                },
                60,
            ),
            past="3",
            near=("<= 0", "<= 1000"),
        ),
        Alert(
            "MailsUnknown",
            "ticket",
            'max by (namespace, job) (steward_notifications_mails{outcome="unknown"}) > LIMIT',
            "0",
            30,
            "Of {{ $value }} mails nobody knows whether they went out",
            "The server's answer was lost after the text. They are not sent again by themselves.",
            fires=Case(
                {series(target("notifications"), "steward_notifications_mails", outcome="unknown"): "0 1+0x60"},
                45,
                target("notifications"),
            ),
            quiet=Case(
                {series(target("notifications"), "steward_notifications_mails", outcome="unknown"): "0+0x60"}, 45
            ),
            past="1",
            near="-1",
        ),
        Alert(
            "MailsRefused",
            "ticket",
            'max by (namespace, job) (delta(steward_notifications_mails{outcome="refused"}[1h])) > LIMIT',
            "5",
            10,
            "Mail servers refuse our mails",
            "{{ $value | humanize }} mails were refused for good in an hour.",
            fires=Case(
                {series(target("notifications"), "steward_notifications_mails", outcome="refused"): "4+0.1x120"},
                90,
                target("notifications"),
            ),
            quiet=Case(
                {series(target("notifications"), "steward_notifications_mails", outcome="refused"): "40+0.07x120"}, 90
            ),
            past="7",
            near="4",
        ),
    ),
)
