"""The dashboards: the mesh at a glance, one for each service made from its declaration, the money, the promises' clocks."""

from __future__ import annotations

from deploy.observe.alerts.freshness import ALL, FRESH_SHARE, LATE
from deploy.observe.panels import Dashboard, Panel, Section, of
from deploy.rooms import ROOMS, load
from shared.contract.topics import TOPICS
from shared.mesh import Service
from shared.mesh.metrics import FRESH_SECONDS

_ALL = 'job=~"steward/.+"'
_TOPIC = "{{job}} {{topic}}"


def _worst(metric: str, by: str, *more: str) -> str:
    """Of a state that every process reads from one table, or each has for itself: the highest."""
    return f"max by ({by}) ({of(metric, *more)})"


def _rate(metric: str, by: str, *more: str) -> str:
    return f"sum by ({by}) (rate({of(metric, *more)}[$__rate_interval]))"


def _quantile(share: str, metric: str, by: str, *more: str) -> str:
    return f"histogram_quantile({share}, {_rate(f'{metric}_bucket', f'le, {by}', *more)})"


def _stat(title: str, description: str, query: str, unit: str = "short", *, bad_from: float | None = 1,
          bad_below: float | None = None) -> Panel:  # fmt: skip
    return Panel(title, description, unit, ((query, "__auto"),), "stat", bad_from, bad_below)


def _fresh_share() -> str:
    return f"1 - sum(rate({of(LATE)}[$__rate_interval])) / sum(rate({of(ALL)}[$__rate_interval]))"


def _consumers(*topics: str) -> Section:
    named = "|".join(topics).replace(".", "[.]")
    where = (f'topic=~"{named}"',) if topics else ()
    return Section(
        "Topics that are read",
        (
            Panel(
                "Event age, p99", "From the broker's append to the commit of the effects.", "s",
                ((_quantile("0.99", "steward_event_age_seconds", "job, topic", *where), _TOPIC),), bad_from=FRESH_SECONDS,
            ),
            Panel(
                "Lag in seconds", "Age of the oldest record that is not processed; 0 when there is none.", "s",
                ((_worst("steward_consumer_lag_seconds", "job, topic", *where), _TOPIC),),
            ),
            Panel(
                "Lag in records", "Records behind the end of their partitions.", "short",
                ((f"sum by (job, topic) ({of('steward_consumer_lag_records', *where)})", _TOPIC),),
            ),
            Panel(
                "Records by outcome", "Records whose effects were committed.", "reqps",
                ((_rate("steward_records_total", "job, topic, outcome", *where), f"{_TOPIC} {{{{outcome}}}}"),),
            ),
            Panel(
                "Offsets passed", "How fast cursors move; nothing while there is lag is a stall.", "short",
                ((f"sum by (job, topic) (delta({of('steward_consumer_next_offset', *where)}[$__rate_interval]))", _TOPIC),),
            ),
            Panel(
                "Records in a batch, median", "Small batches cost nearly as much as large ones.", "short",
                ((_quantile("0.5", "steward_batch_size_records", "job, topic", *where), _TOPIC),),
            ),
            Panel(
                "Time in a batch by stage", "Mean seconds of decode, handler, write and commit.", "s",
                ((f"{_rate('steward_batch_duration_seconds_sum', 'job, topic, stage', *where)}\n"
                  f"/ {_rate('steward_batch_duration_seconds_count', 'job, topic, stage', *where)}",
                  f"{_TOPIC} {{{{stage}}}}"),),
            ),
            Panel(
                "Redone and fenced batches", "Batches rolled back, by reason, and batches of partitions that another owns.",
                "ops",
                ((_rate("steward_batch_retries_total", "job, topic, reason", *where), f"{_TOPIC} {{{{reason}}}}"),
                 (_rate("steward_fenced_total", "job, topic", *where), f"{_TOPIC} fenced")),
            ),
            Panel(
                "Assignments", "Assignments in 15 minutes, of all processes: each stops the whole group.", "short",
                ((f"sum by (job, topic) (increase({of('steward_rebalances_total', *where)}[15m]))", _TOPIC),),
            ),
            Panel(
                "Partitions that stand still", "By reason; somebody has to act.", "short",
                ((f"sum by (job, topic, reason) ({of('steward_partitions_stopped', *where)})", f"{_TOPIC} {{{{reason}}}}"),),
                bad_from=1,
            ),
            Panel(
                "Time since the loop turned", "The longest of the processes; above 30 s without a batch it is restarted.", "s",
                ((_worst("steward_loop_tick_age_seconds", "job, topic", *where), _TOPIC),), bad_from=30,
            ),
            Panel(
                "Kafka commits that failed", "Hints for lag tools and trimming; cursors are not affected.", "ops",
                ((_rate("steward_kafka_commit_failures_total", "job, topic", *where), _TOPIC),),
            ),
        ),
    )  # fmt: skip


_LEFT_ASIDE = Section(
    "Left aside",
    (
        Panel(
            "Dead letters waiting", "Records that nobody has replayed.", "short",
            ((_worst("steward_dead_letters_waiting", "job, topic"), _TOPIC),), bad_from=1,
        ),
        Panel(
            "Dead letters by reason", "Records that became dead letters.", "ops",
            ((_rate("steward_dead_letters_total", "job, topic, reason"), f"{_TOPIC} {{{{reason}}}}"),),
        ),
        Panel(
            "Oldest dead letter", "After a week it is gone.", "s",
            ((_worst("steward_dead_letter_oldest_seconds", "job"), "{{job}}"),), bad_from=86400,
        ),
        Panel(
            "Parked records", "Records behind a failed one of their key, in order.", "short",
            ((_worst("steward_parked_records", "job, topic"), _TOPIC),), bad_from=1,
        ),
        Panel(
            "Records lost", "Ended by retention before they were read.", "short",
            ((f"sum by (job, topic) (increase({of('steward_offset_gap_records_total')}[$__range]))", _TOPIC),), bad_from=1,
        ),
    ),
)  # fmt: skip


def _work(service: Service | None = None) -> Section:
    panels = [
        Panel(
            "Oldest outbox row", "What is to be published waits so long.", "s",
            ((_worst("steward_outbox_oldest_seconds", "job"), "{{job}}"),), bad_from=60,
        ),
        Panel(
            "Outbox rows", "Not yet acknowledged by Kafka.", "short", ((_worst("steward_outbox_pending", "job"), "{{job}}"),)
        ),
        Panel(
            "Published", "Records acknowledged by Kafka.", "ops", ((_rate("steward_outbox_sent_total", "job, topic"), _TOPIC),)
        ),
        Panel(
            "Job runs", "By outcome.", "ops",
            ((_rate("steward_job_runs_total", "job, exported_job, outcome"), "{{job}} {{exported_job}} {{outcome}}"),),
        ),
        Panel(
            "Jobs behind", "Whole slots passed since the one that is due.", "short",
            ((_worst("steward_job_slots_behind", "job, exported_job"), "{{job}} {{exported_job}}"),), bad_from=1,
        ),
        Panel(
            "Missed slots", "Slots without a run, in 15 minutes.", "short",
            ((f"sum by (job, exported_job) (increase({of('steward_job_missed_slots_total')}[15m]))",
              "{{job}} {{exported_job}}"),),
        ),
    ]  # fmt: skip
    if service is None or service.tasks:
        panels += [
            Panel(
                "Tasks not done", "Long work that is under way or waits.", "short",
                ((_worst("steward_tasks_pending", "job, task"), "{{job}} {{task}}"),),
            ),
            Panel(
                "Chunks of tasks", "By outcome.", "ops",
                ((_rate("steward_task_chunks_total", "job, task, outcome"), "{{job}} {{task}} {{outcome}}"),),
            ),
        ]  # fmt: skip
    return Section("Work", tuple(panels))


_PROCESSES = Section(
    "Processes",
    (
        Panel("Ready", "1 for each process that is at work.", "short", ((of("steward_ready"), "{{instance}}"),)),
        Panel(
            "Database seen", "Since the gauges that are read from the service's database were last true.", "s",
            ((f"time() - {of('steward_database_seen_timestamp_seconds')}", "{{job}} {{instance}}"),), bad_from=300,
        ),
        Panel("Memory", "Resident.", "bytes", ((of("process_resident_memory_bytes"), "{{job}} {{instance}}"),)),
        Panel(
            "Processor", "Cores in use.", "short",
            ((f"rate({of('process_cpu_seconds_total')}[$__rate_interval])", "{{job}} {{instance}}"),),
        ),
        Panel("Open files", "Sockets included.", "short", ((of("process_open_fds"), "{{job}} {{instance}}"),)),
        Panel(
            "Age", "Since the process started.", "s",
            ((f"time() - {of('process_start_time_seconds')}", "{{job}} {{instance}}"),),
        ),
    ),
)  # fmt: skip

_USAGE = Section(
    "Usage",
    (
        Panel(
            "Usage that waits", "By reason: for a price, for an original, for a person.", "short",
            ((_worst("steward_metering_quarantined", "job, reason"), "{{reason}}"),), stacked=True,
        ),
        Panel(
            "Answers that did not add up", "Generations whose provider's figures contradict each other, by flag.", "short",
            ((_worst("steward_metering_flagged", "job, reason"), "{{reason}}"),),
        ),
        Panel(
            "Reported cost", "What providers say they charged, yesterday and today, in dollars.", "currencyUSD",
            ((f"sum by (provider) ({_worst('steward_metering_cost_reported_pico', 'job, provider, reason')}) / 1e12",
              "{{provider}}"),),
        ),
        Panel(
            "Cost that differs", "The same less what we rated, in dollars, where nothing explains it.", "currencyUSD",
            ((_worst("steward_metering_cost_drift_pico", "job, provider", 'reason="open"') + " / 1e12", "{{provider}}"),),
        ),
        Panel(
            "Sums that wait", "Batches that the rollups have not taken.", "short",
            ((_worst("steward_metering_pending_rollups", "job"), "{{job}}"),),
        ),
    ),
)  # fmt: skip
_PAYMENTS = Section(
    "Payments",
    (
        Panel(
            "Payments that wait", "Refunds and disputes without their purchase, and suspense.", "short",
            ((_worst("steward_billing_waiting_payments", "job, outcome"), "{{outcome}}"),),
        ),
    ),
)  # fmt: skip
_MAILS = Section(
    "Mails",
    (
        Panel(
            "Mails by state", "Unknown ones wait for a person.", "short",
            ((_worst("steward_notifications_mails", "job, outcome"), "{{outcome}}"),),
        ),
    ),
)  # fmt: skip
_CASES = Section(
    "Cases",
    (
        _stat("Late", "Open cases that have missed a clock.", f"max({of('steward_cases_late')})"),
        _stat("At risk", "Open cases that will miss a clock as things go.", f"max({of('steward_cases_at_risk')})"),
        _stat("For a person", "Cases, holds, disclosures that wait for one.", f"max({of('steward_cases_needing_person')})"),
        Panel(
            "Open cases", "By state.", "short", ((_worst("steward_cases_open", "job, outcome"), "{{outcome}}"),), stacked=True
        ),
        Panel(
            "Clocks that will be missed", "Open deadlines, by clock, at the speed of the last cases.", "short",
            ((_worst("steward_deadline_breaches_forecast", "job, reason"), "{{reason}}"),), bad_from=1,
        ),
    ),
)  # fmt: skip
_CLOCKS = Section(
    "Data that ends",
    (
        _stat("Drift", "What the latest look found wrong.", f"max({of('steward_retention_findings')})"),
        _stat(
            "Looked", "Since the clocks of data were last looked at.",
            f"time() - max({of('steward_retention_looked_timestamp_seconds')})", "s", bad_from=1800,
        ),
        Panel(
            "Hours left: topics", "Until a topic holds a record for longer than it may; cut an hour behind its readers.", "h",
            (("min by (topic) (" + of("steward_retention_slack_hours", 'topic!=""') + ")", "{{topic}}"),), bad_below=0,
        ),
        Panel(
            "Hours left: tables", "Until a partition is there for longer than it may.", "h",
            (("min by (service, table) (" + of("steward_retention_slack_hours", 'table!=""') + ")", "{{service}} {{table}}"),),
            bad_below=0,
        ),
    ),
)  # fmt: skip
_PROOF = Section(
    "The proof of the books",
    (
        _stat("Holds", "1 if the latest proof held.", f"min({of('steward_audit_ok')})", bad_from=None, bad_below=1),
        _stat(
            "Verdict", "1 if the latest proof came to one.", f"min({of('steward_audit_determined')})", bad_from=None, bad_below=1
        ),
        _stat("Findings", "What it found wrong.", f"max({of('steward_audit_findings')})"),
        _stat(
            "Since it held", "Age of the latest proof that held.",
            f"time() - max({of('steward_audit_last_success_timestamp_seconds')})", "s", bad_from=1800,
        ),
        _stat("Takes", "The latest proof.", f"max({of('steward_audit_proof_seconds')})", "s", bad_from=None),
        Panel(
            "Generations", "By what became of them, as of the latest proof.", "short",
            ((_worst("steward_audit_records", "job, outcome"), "{{outcome}}"),),
        ),
        Panel(
            "Rated lines", "Rated, booked, on their way, refused.", "short",
            ((_worst("steward_audit_lines", "job, outcome"), "{{outcome}}"),),
        ),
        Panel(
            "Differences", "0, or the books are wrong (pico-dollars; records).", "short",
            ((_worst("steward_audit_difference", "job, reason"), "{{reason}}"),), bad_from=1,
        ),
    ),
)  # fmt: skip

_OWN = {
    "metering": (_USAGE,), "billing": (_PAYMENTS,), "notifications": (_MAILS,), "retention": (_CASES,),
    "audit": (_PROOF, _CLOCKS),
}  # fmt: skip


def _mesh() -> Dashboard:
    glance = Section(
        "At a glance",
        (
            _stat(
                "Fresh", f"Share of records with effects within {FRESH_SECONDS} s; {FRESH_SHARE} is promised.", _fresh_share(),
                "percentunit", bad_from=None, bad_below=FRESH_SHARE,
            ),
            _stat("Not ready", "Processes that are not at work.", f"sum(1 - {of('steward_ready')})"),
            _stat("Standing still", "Partitions that wait for somebody.", f"sum({of('steward_partitions_stopped')})"),
            _stat(
                "Oldest event", "Of all topics.", f"max({of('steward_consumer_lag_seconds')})", "s", bad_from=300
            ),
            _stat(
                "Dead letters", "That nobody has replayed.",
                f"sum({_worst('steward_dead_letters_waiting', 'job, topic')})",
            ),
            _stat("Parked", "Records behind a failed one.", f"sum({_worst('steward_parked_records', 'job, topic')})"),
        ),
    )  # fmt: skip
    sections = (glance, _consumers(), _LEFT_ASIDE, _work(), _PROCESSES)
    return Dashboard(
        "steward-mesh", "Steward: the mesh", "All services: is everything read, soon, and whole?", _ALL, sections
    )


def _service(room: str) -> Dashboard:
    service = load(room)
    topics = {consumer.topic.name for consumer in service.consumers}
    topics |= {topic.name for topic in TOPICS if room in topic.readers}
    writes = sorted(topic.name for topic in TOPICS if room in topic.writers)
    return Dashboard(
        f"steward-{room}",
        f"Steward: {room}",
        f"Reads {', '.join(sorted(topics))}; publishes {', '.join(writes) or 'nothing'}.",
        f'job="steward/{room}"',
        (*_OWN.get(room, ()), _consumers(*sorted(topics)), _LEFT_ASIDE, _work(service), _PROCESSES),
    )


def _money() -> Dashboard:
    return Dashboard(
        "steward-money",
        "Steward: money",
        "Are the books right, is that still being proved, and what is not in them yet?",
        'job=~"steward/(audit|billing|metering)"',
        (_PROOF, _USAGE, _PAYMENTS),
    )


def _privacy() -> Dashboard:
    return Dashboard(
        "steward-privacy",
        "Steward: promises and their clocks",
        "Will every request be answered in time, does data end when it should, and do the mails go out?",
        'job=~"steward/(audit|notifications|retention)"',
        (_CASES, _CLOCKS, _MAILS),
    )


def dashboards() -> tuple[Dashboard, ...]:
    """All of them."""
    return (_mesh(), _money(), _privacy(), *map(_service, ROOMS))
