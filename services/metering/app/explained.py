"""How a generation came to its amount, for people."""

from __future__ import annotations

from typing import Any

import msgspec

from services.metering import store
from services.metering.app.room import Room
from services.metering.identity import identities
from services.metering.pricing import explain
from shared.contract import events
from shared.contract.ids import UUID7
from shared.mesh import Transaction
from shared.mesh.http import NotFound, NotKept


async def explained(room: Room, wanted: str, tx: Transaction) -> Any:
    """How a generation came to its amount. Raises NotFound and NotKept."""
    is_id = UUID7.fullmatch(wanted) is not None
    row = await store.logged(tx.db, wanted, tx.now) if is_id else None
    row = row or await store.logged_by_ref(tx.db, wanted, tx.now)
    if row is None and is_id:
        held = await store.quarantined_event(tx.db, wanted)
        if held is not None:
            return {"generation_id": wanted, "quarantined": dict(held)}
        (who,) = identities([wanted], room.keys.by_ordinal)
        if who.key and await store.known(tx.db, [who.key]):
            raise NotKept("not kept: log retention 0, or its retention is over")
    if row is None:
        # Whether there ever was one cannot be told: at log retention 0 no row says so, and `seen` ends.
        raise NotFound(
            "no such generation is kept here: it never came, its workspace, or who made its key, keeps no request log (log "
            "retention 0), or its time is over"
        )
    version = room.book.version(row["price_version"])
    if version is None:
        raise NotFound("the price version of this generation is not known here")
    reported = msgspec.json.decode(row["quantities"])
    tokens = {u: n for u, n in reported.items() if u in events.BUCKETS}
    counts = {u: n for u, n in reported.items() if u in events.COUNTS}
    outcome, _, finish = row["ended"].partition("/")
    how = explain(
        version, tokens, counts, "error" if outcome == "failed" else finish or None, outcome == "cancelled",
        outcome == "cache_hit", row["rule"] == "byok", row["rule"] == "data_sharing",
    )  # fmt: skip
    return {
        "generation_id": str(row["generation_id"]),
        "generation_ref": row["generation_ref"],
        "occurred_at": row["occurred_at"],
        "workspace": row["workspace"],
        "key": row["key_id"],
        "provider": row["provider"],
        "model": row["model"],
        "outcome": outcome,
        "finish_reason": finish or None,
        "tier": row["tier"],
        "rule": row["rule"],
        "buckets": tokens,
        "counts": counts,
        "price_version": version.version,
        "price_source": version.source,
        "price_valid_from": version.valid_from,
        "lines": [part.shown() for part in how.units],
        "exact_list_pico": str(how.exact_list_pico),
        "exact_pico": str(how.exact_pico),
        "rounding": "half-even, once, to whole pico-dollars",
        "amount_pico": str(row["amount_pico"]),
        "record": str(row["record"]),
        "line": row["line"],
    }
