"""The certificate of a case: what was found, done, kept and seen, signed and chained."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from datetime import datetime
from typing import Any, TypeVar

from services.retention import store
from services.retention.app.room import Room
from services.retention.case import GOOD
from shared.mesh import Transaction
from shared.mesh.store import Connection
from shared.mesh.transaction import rfc3339
from shared.policy import policy
from shared.privacy import certificate as certificates
from shared.privacy import merkle

_T = TypeVar("_T")


class Untrue(Exception):
    """What the certificate would say is not true; the text says what."""


async def certify(room: Room, tx: Transaction, row: store.Row) -> None:
    """Writes the certificate of a case whose sweep was clean. Raises `Untrue` rather than signing what is not."""
    document = await _document(tx, row)
    size = await store.lock_log(tx.db)
    leaf = certificates.leaf(document)
    made = await _computed(tx.db, lambda get: merkle.appended(size, leaf, get), ())

    async def of(compute: Callable[[merkle.Get], _T]) -> _T:
        return await _computed(tx.db, compute, made)

    document["log"] = {
        "index": size,
        "head": {"size": size + 1, "root": (await of(lambda get: merkle.root(size + 1, get))).hex()},
        "inclusion": [step.hex() for step in await of(lambda get: merkle.inclusion(size, size + 1, get))],
        "previous": {"size": size, "root": (await of(lambda get: merkle.root(size, get))).hex()},
        "consistency": [step.hex() for step in await of(lambda get: merkle.consistency(size, size + 1, get))],
    }
    try:
        signed = certificates.sign(document, room.signing_key)
    except ValueError as error:
        # Its sentences name holders and tables, nobody.
        raise Untrue(str(error) if type(error) is ValueError else "the document has another shape") from None
    await store.add_certificate(tx.db, row.case.id, size, signed, made, tx.now)


async def _computed(db: Connection, compute: Callable[[merkle.Get], _T], made: Iterable[tuple[int, int, bytes]]) -> _T:
    """What `compute` gives over the log's nodes and those that are about to be added."""
    known = {(level, position): digest for level, position, digest in made}
    known |= await store.nodes(db, merkle.needs(compute) - set(known))
    return compute(lambda level, position: known[level, position])


async def _document(tx: Transaction, row: store.Row) -> dict[str, Any]:
    """All but the place in the log and the signature. Nothing in it leads to anybody without the mesh's own key."""
    case = row.case
    assert case.confirmed_at is not None and case.completed_at is not None and case.ended_at is not None
    receipts = {
        (one["holder"], one["epoch"]): one["body"]
        for one in await store.receipts(tx.db, case.id)
        if one["action"] == "erase"
    }
    scan = next(one for one in reversed(await store.scans(tx.db, case.id)) if one["epoch"] == case.auditor.done)
    return {
        "type": certificates.TYPE,
        "case": case.id,
        "scope": case.scope,
        "subject": row.marks.subject.hex(),
        "policy": {"version": policy().version, "digest": policy().digest},
        "requested_at": rfc3339(min(case.requested_at, case.confirmed_at)),
        "confirmed_at": rfc3339(case.confirmed_at),
        "completed_at": rfc3339(case.completed_at),
        "certified_at": rfc3339(case.ended_at),
        "expected": sorted(case.holders),
        "holders": [
            _holder(name, one.done, receipts[name, one.done])
            for name, one in sorted(case.holders.items())
            if one.done and (one.done == one.epoch or one.waived_by is None)
        ],
        "waived": [
            {"holder": name, "by": one.waived_by, "ticket": one.ticket, "at": _at(one.waived_at)}
            for name, one in sorted(case.holders.items())
            if one.waived_by is not None
        ],
        "held": [
            {
                "holder": one["holder"], "table": one["table"], "rows": one["rows"] or 0, "ground": one["ground"],
                "until": rfc3339(one["until"]),
            }
            for one in await store.holds_on(tx.db, case.id)
            if one["ended_at"] is None
        ],
        "scanned_at": rfc3339(scan["arrived_at"]),
        # Of a holder that is gone nobody can see anything: its waiver speaks for it.
        "scan": [one for one in scan["stores"] if one["verdict"] in GOOD],
    }  # fmt: skip


def _at(instant: datetime | None) -> str | None:
    return None if instant is None else rfc3339(instant)


def _holder(name: str, epoch: int, body: dict[str, Any]) -> dict[str, Any]:
    return {
        "holder": name, "epoch": epoch, "map_version": body["map_version"], "code_version": body["code_version"],
        "tables": body["treated"],
    }  # fmt: skip
