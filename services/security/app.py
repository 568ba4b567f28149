"""Security: topics to handlers, jobs, reads."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

from services.security import store
from services.security.access import (
    IP_LIFE,
    ROW_LIFE,
    address,
    first_day,
    judged,
    keeps_address,
    last_day,
    place,
    row,
)
from services.security.data_map import HOLDING
from shared.contract import topics
from shared.mesh import Batch, Footprint, Partitioned, Received, Service, Transaction
from shared.privacy.holder import attach
from shared.privacy.vault import Shredded, Tampered, Vault, day_hmac, seal_value, vault_of

IP_KEYS = "ip"
"""Purpose of the keys of days under which addresses are sealed."""


def make_service() -> Service:
    """The room's declaration."""
    service = Service(
        "security",
        migrations=Path(__file__).parent / "migrations",
        footprint=Footprint(memory_mb=100, replicas=2, most=3, scales_on=topics.ACCESS, per_second=2_000),
        partitioned=(
            Partitioned("access_row", back=0, ahead=ROW_LIFE.days + 3, keeps=timedelta(0)),
            Partitioned("access_ip", back=0, ahead=IP_LIFE.days + 3, keeps=timedelta(0)),
        ),
    )

    # Opening an address costs some 200 us: batches are small, so that nothing waits long for one.
    @service.consumes(topics.ACCESS, batch=500, lingers=True)
    async def watch(batch: Batch, tx: Transaction) -> None:
        """Keeps connections, each once; what is too old leaves nothing, what is ahead of the clock is refused."""
        arrived = []
        for received in batch.events:
            match judged(received.event.time, tx.now):
                case "kept":
                    arrived.append(received)
                case "future":
                    tx.refuse(received.record, "future", "time: further ahead than the policy allows")
                case "expired":
                    tx.count("access_expired")
        opened = await _open(vault_of(tx), arrived, tx)
        if not opened:
            return
        new = await store.add(tx.db, [row(event) for event, _ in opened])
        tx.count("access_kept", len(new))
        tx.count("access_duplicates", len(opened) - len(new))
        with_address = {event.id: (event, text) for event, text in opened if event.id in new and text is not None}
        if with_address:
            await store.add_addresses(tx.db, await _sealed(vault_of(tx), with_address, tx.now))

    @service.job("ip-keys", every=timedelta(minutes=10))
    async def end_ip_keys(now: datetime, tx: Transaction) -> None:
        """Destroys the keys of days whose addresses are over, whatever copy of them there is."""
        await vault_of(tx).destroy_days(IP_KEYS, first_day(now.astimezone(UTC).date(), IP_LIFE))

    @service.reads("access")
    async def read_access(query: Mapping[str, str], tx: Transaction) -> Any:
        """How many connections there were in the last hours (24), by kind and outcome. Whose, nobody reads."""
        hours = min(max(int(query.get("hours", "24")), 1), 24 * ROW_LIFE.days)
        after = tx.now - timedelta(hours=hours)
        return await store.counts(tx.db, last_day(after, ROW_LIFE), after)

    attach(service, HOLDING, shows=False)
    return service


async def _open(vault: Vault, arrived: Sequence[Received], tx: Transaction) -> list[tuple[Any, str | None]]:
    """(event, its address); None where its time is over, or the key to which it was sealed is destroyed.

    What cannot be opened, or is no address, is refused.
    """
    values = [r.event.data.ip if keeps_address(r.event.time, tx.now) else None for r in arrived]
    found: list[tuple[Any, str | None]] = []
    for received, text in zip(arrived, await _unsealed(vault, values), strict=True):
        try:
            if isinstance(text, Exception):
                raise text
            found.append((received.event, None if text is None else address(text)))
        except Shredded:
            tx.count("access_without_address")
            found.append((received.event, None))
        except ValueError:
            tx.refuse(received.record, "unreadable", "ip: cannot be opened, or is no address")
    return found


async def _unsealed(vault: Vault, values: Sequence[str | None]) -> list[str | Exception | None]:
    """The texts of sealed values, together; one by one where one cannot be opened, and then why."""
    try:
        return list(await vault.unseal(values))
    except (Shredded, Tampered) as error:
        if len(values) == 1:
            return [error]
    return [text for value in values for text in await _unsealed(vault, [value])]


async def _sealed(vault: Vault, events: Mapping[str, tuple[Any, str]], now: datetime) -> list[store.Address]:
    """The addresses under the keys of their days, which are made when first needed."""
    days = {event_id: event.time.astimezone(UTC).date().isoformat() for event_id, (event, _) in events.items()}
    keys = await vault.keys(IP_KEYS, set(days.values()), at=now)
    return [
        store.Address(
            last_day(event.time, IP_LIFE), event_id,
            seal_value(keys[days[event_id]], text, where=place(event_id)), day_hmac(keys[days[event_id]], text),
        )
        for event_id, (event, text) in events.items()
    ]  # fmt: skip


service = make_service()
