"""The register of disclosures as it is read: by the legal role, which leaves a row for each page; and by its person."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from datetime import datetime
from typing import Any

from services.retention import store
from services.retention.app.disclosures import basis, words
from services.retention.app.room import Room
from services.retention.disclosures import store as register
from services.retention.disclosures.store import Row
from shared.mesh import Transaction
from shared.mesh.http import NotAllowed, NotFound, NotKept
from shared.mesh.store import Connection
from shared.mesh.transaction import rfc3339
from shared.policy import policy
from shared.privacy.package_contents import Disclosed
from shared.privacy.vault import Shredded, Tampered

_LIST = 1_000
_LONGEST_REASON = 300


def may(tx: Transaction) -> None:
    """Raises `NotAllowed` for a role that may not disclose."""
    why = policy().refusal("" if tx.caller is None else tx.caller.role, "disclose")
    if why is not None:
        raise NotAllowed(why)


async def disclosures_of(db: Connection, pseudonyms: Sequence[bytes], now: datetime) -> list[Disclosed]:
    """What was disclosed of these subjects and accounts (keyed hashes), as they may know it: nothing while a gag lasts."""
    return [
        Disclosed(
            date=rfc3339(row["entered_at"]), recipient=row["authority"], basis=basis(row["protects"]),
            instrument=" ".join(filter(None, (row["instrument"], row["reference"]))),
            scope=words(register.scope(row["tables"], row["since"], row["until"])),
        )
        for row in await register.visible_to(db, pseudonyms, now)
    ]  # fmt: skip


async def listed(query: Mapping[str, str], tx: Transaction) -> list[dict[str, Any]]:
    """The register, the newest first."""
    may(tx)
    return await register.entries(tx.db, min(int(query.get("limit", "100")), _LIST))


async def whole(query: Mapping[str, str], tx: Transaction) -> dict[str, Any]:
    """One entry, what was extracted, and its history."""
    may(tx)
    found = await register.entries(tx.db, 1, query.get("id", ""))
    if not found:
        raise NotFound("there is no such entry in the register of disclosures")
    extracts = await register.extracts(tx.db, found[0]["id"])
    for one in extracts:
        copied = {each["table"] for each in (one["receipt"] or {"treated": ()})["treated"]}
        # A name that its holder does not know, or of which no row has a time, when one is asked for.
        one["missing"] = [] if one["done_at"] is None else sorted(set(one["tables"][one["holder"]]) - copied)
    return found[0] | {"extracts": extracts, "history": await register.history(tx.db, found[0]["id"])}


async def page(room: Room, query: Mapping[str, str], tx: Transaction) -> dict[str, Any]:
    """A part of an extract: rows of one table, as JSON Lines. `part` counts from 0.

    Raises `NotAllowed`, `NotFound`, and `NotKept` for what nobody can read any more.
    """
    may(tx)
    caller = tx.caller
    assert caller is not None
    if not caller.reason.strip():
        raise NotAllowed("rows of a person are read for a reason: give it (x-steward-reason)")
    row = await register.lock(tx.db, query.get("id", ""))
    if row is None:
        raise NotFound("there is no such entry in the register of disclosures")
    found = await register.extract(tx.db, row.one.id, int(query["extract"]) if "extract" in query else None)
    if found is None:
        raise NotFound("nothing was extracted for this entry")
    epoch, scope = found
    await _readable(row, epoch, tx)
    names = [] if room.blobs is None else await room.blobs.names(f"{row.one.id}/{epoch}")
    # What an entry does not name is not shown, whatever a holder has copied.
    parts = [name for name in names if _part(name)[1] in scope.tables.get(_part(name)[0], ())]
    at = int(query.get("part", "0"))
    told = {"id": row.one.id, "extract": epoch, "parts": len(parts), "scope": words(scope)}
    if not 0 <= at < len(parts):
        if at == 0:
            return told | {"part": None, "lines": ""}
        raise NotFound("the extract has no such part")
    holder, table = _part(parts[at])
    lines = await _opened(room, row.one.id, parts[at])
    detail = f"{epoch} {holder}.{table} {at}"
    reason = caller.reason[:_LONGEST_REASON]
    await register.add_event(tx.db, row.one.id, "read", detail, caller.actor, caller.role, reason, tx.now)
    tx.count("disclosures_read")
    return told | {"part": f"{holder}.{table}", "lines": lines}


async def _readable(row: Row, epoch: int, tx: Transaction) -> None:
    if row.one.key_destroyed or row.one.copies_until is None or tx.now >= row.one.copies_until:
        raise NotKept("the rows of this extract are not kept any more")
    if await store.entombed(tx.db, [row.said.subject_pseudonym, row.said.owner]):
        raise NotKept("this subject is erased: nothing is left to disclose")
    waits = [each.holder for each in row.one.errands if each.epoch == epoch and each.done_at is None]
    if waits:
        raise NotFound(f"the extract is not whole yet: it waits for {', '.join(waits)}")


def _part(name: str) -> tuple[str, str]:
    """(holder, table) of a part: `entry/epoch/holder/table/part`."""
    words = name.split("/")
    return (words[2], words[3]) if len(words) == 5 else ("", "")


async def _opened(room: Room, id: str, name: str) -> str:
    raw = None if room.blobs is None else await room.blobs.get(name)
    if raw is None:
        raise NotKept("the rows of this extract are not kept any more")
    try:
        return await room.open_part(id, raw)
    except (Shredded, Tampered):
        raise NotKept("the rows of this extract cannot be opened any more") from None
