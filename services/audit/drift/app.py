"""The wiring of the look at retention: every few minutes, and whenever somebody asks."""

from __future__ import annotations

import asyncio
import logging
import os
from collections.abc import Mapping
from datetime import datetime, timedelta
from typing import Any

import asyncpg
from aiokafka.errors import KafkaError
from prometheus_client import Gauge

from services.audit.drift import store
from services.audit.drift.judge import Database, Seen, judge_database, judge_topics
from services.audit.store import Source, take_time
from shared.contract.topics import TOPICS
from shared.mesh import Service, Transaction, metrics
from shared.mesh.settings import KafkaSettings
from shared.policy import policy

log = logging.getLogger("steward.audit")

_EVERY = timedelta(minutes=5)
# A partition is detached for some milliseconds before it is dropped: what is still so after this long is left lying.
_AGAIN_SECONDS = 1.0

SLACK = Gauge(
    "steward_retention_slack_hours",
    "Hours until a topic, or a table of a service, breaks the bound of what it may keep; below 0 it has.",
    ["topic", "service", "table"],
    registry=metrics.REGISTRY,
)
FINDINGS = Gauge(
    "steward_retention_findings", "What the latest look at the clocks of data found wrong.", registry=metrics.REGISTRY
)
LOOKED = Gauge(
    "steward_retention_looked_timestamp_seconds",
    "When the clocks of data were last looked at, in seconds since 1970; 0 before the first look.",
    registry=metrics.REGISTRY,
)


class Drift:
    """What a process of audit needs to look."""

    def __init__(self, env: Mapping[str, str]) -> None:
        self._env = env
        self._kafka: KafkaSettings
        self._sources: dict[str, Source] = {}
        self._one_at_a_time = asyncio.Lock()

    async def open(self, runtime: Any) -> None:
        """Finds every database that the auditor may read."""
        self._kafka = runtime.settings.kafka
        prefix, suffix = "STEWARD_AUDITOR_", "_DATABASE_URL"
        for name, url in sorted(self._env.items()):
            service = name.removeprefix(prefix).removesuffix(suffix).lower()
            if name.startswith(prefix) and name.endswith(suffix) and service != "keys":
                self._sources[service] = Source(url)
                runtime.on_close(self._sources[service].close)

    async def look(self, now: datetime) -> Seen:
        """Reads everything back and judges it. What looks like a sweep in its middle is looked at twice."""
        async with self._one_at_a_time:
            seen = await self._look(now)
            if any("detached" in said for said in seen.findings):
                await asyncio.sleep(_AGAIN_SECONDS)
                again = await self._look(now)
                seen = Seen(again.stores, [said for said in again.findings if said in seen.findings])
            return seen

    async def _look(self, now: datetime) -> Seen:
        seen = Seen([], [])
        try:
            held = await store.topics(self._kafka, TOPICS)
        except (KafkaError, OSError, TimeoutError) as error:
            seen.findings.append(f"kafka: could not be read ({type(error).__name__})")
        else:
            _add(seen, judge_topics(TOPICS, held, now, policy().topic_max, hurried=self._kafka.hurried))
        for service, source in self._sources.items():
            try:
                async with source.snapshot() as db:
                    found = await store.database(db, service)
            except (OSError, TimeoutError, asyncpg.InterfaceError, asyncpg.PostgresError) as error:
                found = Database(service, trouble=type(error).__name__)
            _add(seen, judge_database(found, now))
        return seen


def _add(seen: Seen, more: Seen) -> None:
    seen.stores.extend(more.stores)
    seen.findings.extend(more.findings)


def expose(seen: Seen, now: datetime) -> None:
    """Metrics and log lines of a look."""
    LOOKED.set(now.timestamp())
    SLACK.clear()
    for each in seen.stores:
        if each.slack_hours is not None:
            kafka = each.service == "kafka"
            SLACK.labels(each.name if kafka else "", "" if kafka else each.service, "" if kafka else each.name).set(
                each.slack_hours
            )
    FINDINGS.set(len(seen.findings))
    for said in seen.findings:
        log.warning("retention: %s", said)


def attach(service: Service, env: Mapping[str, str] = os.environ) -> Drift:
    """Makes audit look whether data ends when it should."""
    drift = Drift(env)
    started = service.on_start

    async def start(runtime: Any) -> None:
        if started is not None:
            await started(runtime)
        await drift.open(runtime)

    service.on_start = start

    @service.job("drift", every=_EVERY)
    async def look(now: datetime, tx: Transaction) -> None:
        await take_time(tx.db)
        expose(await drift.look(now), now)

    @service.reads("drift")
    async def read(query: Mapping[str, str], tx: Transaction) -> Any:
        await take_time(tx.db)
        seen = await drift.look(tx.now)
        return {
            "looked_at": tx.now,
            "policy_version": policy().version,
            "stores": [each._asdict() for each in seen.stores],
            "findings": seen.findings,
        }

    return drift
