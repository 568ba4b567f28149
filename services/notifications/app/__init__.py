"""Notifications: topics to handlers, the task that sends, what time ends, the operators' command, reads."""

from __future__ import annotations

from collections.abc import Mapping
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any

from prometheus_client import Gauge

from services.notifications import store
from services.notifications.app.office import SEND, Office
from services.notifications.data_map import HOLDING
from shared.contract import topics
from shared.mesh import Batch, Footprint, Received, Rights, Service, Task, Transaction, metrics
from shared.mesh.store import Connection
from shared.privacy.holder import attach

MAILS = Gauge(
    "steward_notifications_mails",
    "Mails by what became of them; unknown ones wait for a person.",
    ["outcome"],
    registry=metrics.REGISTRY,
)
_STATES = ("waiting", "sending", "accepted", "refused", "unknown")


async def observe(db: Connection, now: datetime) -> None:
    """Refreshes the room's gauges."""
    counts = await store.state_counts(db)
    for state in _STATES:
        MAILS.labels(state).set(counts.get(state, 0))


def make_service(office: Office | None = None) -> Service:
    """The room's declaration."""
    office = office or Office()
    service = Service(
        "notifications",
        migrations=Path(__file__).parents[1] / "migrations",
        footprint=Footprint(memory_mb=100, replicas=2, most=2),
        rights=Rights(egress=("smtp",)),
        on_start=office.open,
        on_observe=observe,
    )

    @service.consumes(topics.ACCOUNTS, batch=500)
    async def learn_addresses(batch: Batch, tx: Transaction) -> None:
        await office.addresses.learn(batch, tx)

    @service.consumes(topics.MESSAGES, batch=500)
    async def take_orders(batch: Batch, tx: Transaction) -> None:
        await office.take(batch, tx)

    @service.consumes(topics.PRIVACY_REQUESTS, batch=50)
    async def judge_codes(batch: Batch, tx: Transaction) -> None:
        await office.proofs.heard(batch, tx)

    @service.job("forget", every=timedelta(hours=1))
    async def forget(now: datetime, tx: Transaction) -> None:
        await office.addresses.forget(now, tx)

    # It makes no rows about anybody, and a slow mail server must not hold up whoever waits for the guard's lock.
    @service.task(SEND, guarded=False)
    async def send(task: Task, tx: Transaction) -> Any:
        return await office.send(task, tx)

    @service.command("resend")
    async def resend(received: Received, tx: Transaction) -> None:
        await office.resend(received, tx)

    @service.reads("mails")
    async def read_mails(query: Mapping[str, str], tx: Transaction) -> Any:
        """The latest mails, or those in one state: causes, and what became of them."""
        rows = await store.mails(tx.db, query.get("state") or None, min(int(query.get("limit", "100")), 1000))
        return [dict(row) for row in rows]

    book = office.addresses
    office.suppress(attach(service, HOLDING, before=book.keep_envelopes, keeps=book.kept, also=office.obey).tombstones)
    return service


service = make_service()
