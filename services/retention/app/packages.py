"""Packages: made out of what the holders wrote, fetched by whoever has the link, gone with their time or their person."""

from __future__ import annotations

import logging
from datetime import datetime, timedelta
from typing import Any

from services.retention import right, store
from services.retention.app import cases
from services.retention.app.disclosed import disclosures_of
from services.retention.app.room import Room
from services.retention.directory import store as directory_store
from services.retention.disclosures import store as register
from shared.mesh import Done, Task, Transaction
from shared.mesh.http import NotFound, NotKept
from shared.mesh.service import Served
from shared.mesh.store import stay_patient
from shared.policy import policy
from shared.privacy import package
from shared.privacy.age import Opener
from shared.privacy.blobs import BlobsAway, in_time
from shared.privacy.package_contents import Missing
from shared.privacy.vault import Shredded

log = logging.getLogger("steward.retention")

_PATIENCE = timedelta(minutes=10)
_CHUNK = 50
# After a store that did not answer: who asks it holds up other jobs for some seconds.
_PAUSE = timedelta(minutes=1)


async def pack(room: Room, task: Task, tx: Transaction) -> Any:
    """Makes the package of a case: one long step, and done again from its start by whoever comes after a death.

    It holds no lock while it works; whether the person still is one to have it is looked at under the case's lock.
    """
    case_id = task.payload["case"]
    row = await store.case(tx.db, case_id)
    if row is None or row.case.state != "packing":
        await _clear(room, case_id, tx)
        return Done()
    if row.target is None:  # restored, and its person is erased
        row = await store.lock_case(tx.db, case_id)
        assert row is not None, "a case outlives its package"
        await cases.happen(room, tx, row, right.Gone(), by=cases.CLOCK)
        await _clear(room, case_id, tx)
        return Done()
    if room.blobs is None:
        raise BlobsAway("STEWARD_BLOBS is not set")
    await stay_patient(tx.db, int(_PATIENCE.total_seconds()))
    try:
        built = await _build(room, tx, row)
    except Shredded:
        await _clear(room, case_id, tx)
        return Done()  # the person is erased meanwhile, and the case's key with them
    except package.NotWhole as error:
        log.error("a copy is asked for anew: %s", error)
        built = None
    row = await store.lock_case(tx.db, case_id)
    assert row is not None, "a case outlives its package"
    gone = await store.entombed(tx.db, [row.marks.subject, row.marks.owner])
    if built is None or row.case.state != "packing" or gone:
        await _clear(room, case_id, tx)
        if row.case.state == "packing":
            await cases.happen(room, tx, row, right.Gone() if gone else right.Torn(), by=cases.CLOCK)
        return Done()
    token, digest = room.token()
    row.link = f"{room.public_url}/packages/{token}"
    row.link_until = tx.now + timedelta(days=policy().package_days)
    await store.add_package(tx.db, case_id, digest, built.size, built.sha256, tx.now, row.link_until)
    await cases.happen(room, tx, row, right.Packed(), by=cases.CLOCK)
    tx.count("packages_made")
    return Done()


async def _clear(room: Room, case_id: str, tx: Transaction) -> None:
    """A try that died may have left a package that nobody is going to be told of."""
    if room.blobs is not None and await store.package(tx.db, case_id) is None:
        await room.blobs.delete(package.package_place(case_id))


async def _build(room: Room, tx: Transaction, row: store.Row) -> package.Built:
    case, blobs = row.case, room.blobs
    assert blobs is not None and row.target is not None
    details = await room.open_details(case.id, row.details)
    opener = Opener(None if details.recipient else details.passphrase, details.recipient)
    epoch = max(one.epoch for one in case.holders.values())  # of all but those that were waived before a second order
    return await package.build(
        blobs, case=case.id, epoch=epoch, holders=[name for name, one in case.holders.items() if one.waived_by is None],
        key=await room.case_key(case.id), opener=opener, name=package.package_name(case.id), made_at=tx.now,
        missing=await _missing(tx, row),
        disclosed=await disclosures_of(tx.db, [row.marks.subject, row.marks.owner], tx.now),
    )  # fmt: skip


async def _missing(tx: Transaction, row: store.Row) -> list[Missing]:
    """What is not in the package, as far as the directory knows why."""
    assert row.target is not None
    gaps = [
        Missing(name, "This holder is gone; a person answers for that.")
        for name, one in row.case.holders.items()
        if one.waived_by is not None
    ]
    known = await directory_store.known_around(tx.db, row.case.scope, row.target)
    for settings in await directory_store.settings_of(tx.db, sorted(known.workspaces)):
        name, days = settings["workspace"], settings["log_retention_days"]
        if days == 0:
            gaps.append(
                Missing(
                    "metering.request_log",
                    f"Logging is switched off in workspace {name}: no request of it is kept, by your own setting.",
                )
            )
        if settings["activity_opt_out"]:
            gaps.append(Missing("insights.activity", f"Workspace {name} has opted out: its activity is not kept."))
    restricted = await directory_store.restricted_keys(tx.db, sorted(known.keys))
    if off := sum(1 for one in restricted if one["log_retention_days"] == 0):
        gaps.append(
            Missing(
                "metering.request_log",
                f"Members have switched logging off for themselves: no request made with {off} of the keys is kept.",
            )
        )
    return gaps


async def serve(room: Room, token: str, tx: Transaction) -> Served:
    """What a link leads to. Raises NotFound for a link that was never given, NotKept for one that is over."""
    found = await store.package_of(tx.db, room.token_hash(token))
    if found is None:
        raise NotFound("there is nothing under this link")
    if found["gone_at"] is not None or found["not_after"] <= tx.now or room.blobs is None:
        raise NotKept("this package is not kept any more: ask for another one, if you need it")
    await store.note_fetch(tx.db, found["case_id"])
    blobs, name = room.blobs, package.package_name(found["case_id"])
    return Served(f"your-data-{found['case_id'][:8]}.zip.age", found["size"], lambda start: blobs.read(name, start))


async def tidy(room: Room, now: datetime, tx: Transaction) -> None:
    """Ends packages whose time is over, and takes out of the store what nobody needs any more."""
    over = await store.over_packages(tx.db, now, _CHUNK)
    parts = await store.over_parts(tx.db, _CHUNK)
    entries = await register.over_parts(tx.db, _CHUNK)
    places = [*map(package.package_place, over), *parts, *entries]
    if room.blobs is None or not places or now < room.blobs_again:
        return
    gone: set[str] = set()
    try:
        # Together: the database does not wait for long, and what is gone is noted whatever becomes of the rest.
        async with in_time():
            for place in places:
                await room.blobs.delete(place)
                gone.add(place)
    except BlobsAway as error:
        log.error("copies that nobody needs stay for now: %s", error)
        room.blobs_again = now + _PAUSE
    for case_id in over:
        if package.package_place(case_id) in gone:
            await store.dropped_package(tx.db, case_id, now)
    for case_id in gone.intersection(parts):
        await store.note_parts(tx.db, case_id, there=False)
    for entry in gone.intersection(entries):
        await register.note_parts(tx.db, entry, there=False)


async def sweep(room: Room, now: datetime, tx: Transaction) -> None:
    """Takes out of the store what nobody knows of: packages of tries that died, of databases that were restored, and files
    that were never written to their end."""
    if room.blobs is None:
        return
    try:
        names = await room.blobs.names(package.PACKAGES)
        there = sorted({case for name in names if (case := package.case_of_package(name)) is not None})
        wanted = await store.wanted_packages(tx.db, there)
        async with in_time():
            for case_id in there:
                if case_id not in wanted:
                    await room.blobs.delete(package.package_place(case_id))
                    tx.count("packages_swept")
            await room.blobs.sweep(now)
    except BlobsAway as error:
        log.error("files that nobody knows of are looked for later: %s", error)


def shown(row: Any) -> dict[str, Any] | None:
    """A package as the read API shows it: never its link."""
    if row is None:
        return None
    return {
        name: row[name] for name in ("size", "sha256", "made_at", "not_after", "fetched", "gone_at", "dropped_at")
    }  # fmt: skip
