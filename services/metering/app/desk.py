"""Prices as they become known: judged by the guard, kept, held, released and rejected."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import datetime
from typing import Any

import msgspec

from services.metering import store
from services.metering.app import rerate
from services.metering.app.meter import FOR_PRICES
from services.metering.app.room import Room
from services.metering.price_desk import Statement, agrees, decide, enter, name_of, shown
from services.metering.price_version import (
    PriceVersion,
    event_version_id,
    from_json,
    released_at,
    to_json,
)
from services.metering.usage import instant
from shared.contract import events
from shared.mesh import Received, Transaction


async def learn(room: Room, received: Received, tx: Transaction) -> None:
    """Takes in one event of the prices topic: what it states, all of it judged together."""
    event, record = received.event, received.record
    known_from = instant(record.timestamp)
    batch, lists = None, [event.data]
    if event.type == events.PricesImported.TYPE:
        batch, lists = event.data.batch, event.data.lists
    try:
        statements = [
            _statement(price_list, known_from, event.id if batch is None else f"{event.id}/{n}")
            for n, price_list in enumerate(lists)
        ]
    except ValueError as error:
        tx.refuse(record, "invalid_price", str(error))
        return
    if await store.known_prices(tx.db, [one.version.version for one in statements]):
        return  # read before: what was decided then holds
    market = await room.market(tx.db, known_from)
    source = statements[0].version.source
    names = [name_of(one.version) for one in statements]
    spoken = await store.spoken(tx.db, source, names)
    decisions = decide(room.book, market, statements, known_from, spoken)
    revision = await store.raise_revision(tx.db)
    await store.supersede_held(tx.db, source, names, known_from, revision)
    rows = []
    for name, decision in zip(names, decisions, strict=True):
        units = decision.statement.units
        row = {
            "body": to_json(decision.version), "known_from": known_from, "name": name, "batch": batch,
            "spoken": None if units is None else sorted(units), "reasons": decision.reasons,
            "held_since": known_from if decision.reasons else None,
        }  # fmt: skip
        rows.append(row)
    await store.add_prices(tx.db, rows, revision)
    accepted = [decision.version for decision in decisions if not decision.reasons]
    agreed = await _release_agreed(tx, accepted, known_from, revision)
    if accepted:
        await tx.enqueue("release", event.id, {"reasons": FOR_PRICES})

    def entered() -> None:
        for version in (*(decision.version for decision in decisions), *agreed):
            enter(market, version)
        room.entered(revision)

    tx.after_commit(entered)


async def _release_agreed(
    tx: Transaction, accepted: Sequence[PriceVersion], at: datetime, revision: int
) -> list[PriceVersion]:
    """Releases what was held and is now said by a second source too."""
    by_name = {name_of(version): version for version in accepted}
    released = []
    for row in await store.held_prices(tx.db, list(by_name)) if by_name else ():
        held, second = from_json(row["body"]), by_name[row["name"]]
        if agrees(second, held, row["reasons"]):
            free = released_at(held, at)
            await store.decide_price(tx.db, to_json(free), "agreed", at, second.version, None, revision)
            released.append(free)
    return released


async def release(ordered: Received, tx: Transaction) -> None:
    """A person vouches for a held price. What it would have rated meanwhile is rated again, unless told otherwise."""
    command, at = ordered.event.data, instant(ordered.record.timestamp)
    # The revision first, as `learn` does: two orders of locks would be a deadlock.
    revision = await store.raise_revision(tx.db)
    row = await store.held_price(tx.db, command.target)
    if row is None:
        return  # decided before
    version = from_json(row["body"])
    since = max(version.valid_from, row["held_since"])
    free = to_json(released_at(version, at))
    await store.decide_price(tx.db, free, "released", at, command.actor, command.ticket, revision)
    await tx.enqueue("release", ordered.event.id, {"reasons": FOR_PRICES})
    if "keep_past" not in command.arguments and since < at:
        asked = {
            "start": since.isoformat(), "end": at.isoformat(), "provider": version.provider,
            "version": version.version,
        }  # fmt: skip
        await rerate.begin(tx, ordered.event.id, at, asked)


async def reject(ordered: Received, tx: Transaction) -> None:
    """A person says that a held price is wrong: it stays held for ever, and speaks for nobody."""
    command, at = ordered.event.data, instant(ordered.record.timestamp)
    revision = await store.raise_revision(tx.db)
    row = await store.held_price(tx.db, command.target)
    if row is not None:
        await store.decide_price(tx.db, row["body"], "rejected", at, command.actor, command.ticket, revision)


def read(row: Any) -> dict[str, Any]:
    """A kept version, as the read API tells it."""
    kept = ("batch", "known_from", "held_since", "decision", "decided_at")
    return shown(row["body"], row["reasons"]) | {name: row[name] for name in kept}


def _statement(price_list: Any, known_from: datetime, cause: str) -> Statement:
    # The twin leaves defaults out; here they are part of what was stated.
    data = msgspec.to_builtins(price_list) | {"tier": price_list.tier, "source": price_list.source}
    return Statement.of(data, known_from, event_version_id(cause))
