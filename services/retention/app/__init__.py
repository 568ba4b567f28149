"""Retention: topics to handlers, jobs, reads, commands."""

from __future__ import annotations

import secrets
from collections.abc import Awaitable, Callable, Mapping, Sequence
from datetime import datetime, timedelta
from itertools import groupby
from pathlib import Path
from typing import Any

from services.retention import case as machine
from services.retention import store
from services.retention.app import cases, directory, disclosed, disclosures, holds, packages, requests, shown, staff
from services.retention.app.forecast import speeds
from services.retention.app.gauges import observe
from services.retention.app.rights import PACK
from services.retention.app.room import Room
from services.retention.case import Timing
from services.retention.data_map import HOLDING
from services.retention.speed import LAST
from shared.contract import events, topics
from shared.mesh import Batch, Footprint, Received, Rights, Service, Task, Transaction
from shared.mesh.http import NotFound
from shared.mesh.service import Served
from shared.mesh.store import Connection
from shared.mesh.trim import hold_of, is_trimmed, trim
from shared.privacy.holder import attach

_REPUBLISHED = 1_000
_LIST = 1_000


def make_service(
    *,
    timing: Timing | None = None,
    random_bits: Callable[[int], int] = secrets.randbits,
    holders: Sequence[str] = topics.HOLDERS,
    trims: bool = True,
) -> Service:
    """The room's declaration. `timing`, `random_bits` and `holders` are for tests; without `timing` the environment
    decides, and only a production one takes its time. `trims` off leaves topics as they are."""
    room = Room(tuple(holders), timing, random_bits)

    async def gauges(db: Connection, now: datetime) -> None:
        await observe(db, now, room.timing)

    async def start(runtime: Any) -> None:
        await room.open(runtime)
        if trims:
            # Where topics forget within seconds, somebody watches.
            every = timedelta(seconds=5) if runtime.settings.kafka.hurried else timedelta(minutes=5)
            service.jobs["trim-topics"] = (every, cut_topics)

    async def cut_topics(now: datetime, tx: Transaction) -> None:
        kafka = tx.plugged["kafka"]
        for topic, parts in (await trim(kafka, now, hold_of(kafka))).items():
            tx.count(f"trims:{topic}", len(parts))

    service = Service(
        "retention",
        migrations=Path(__file__).parents[1] / "migrations",
        # 128 MB of it for a passphrase's key (scrypt), while a package is made.
        footprint=Footprint(memory_mb=244, replicas=2, most=2),
        rights=Rights(trims=tuple(topic for topic in topics.TOPICS if is_trimmed(topic)), signs=True),
        on_start=start,
        on_observe=gauges,
    )

    @service.consumes(topics.ACCOUNTS, batch=1_000)
    async def learn(batch: Batch, tx: Transaction) -> None:
        await directory.learn(room, batch, tx)

    @service.consumes(topics.BALANCES, batch=1_000)
    async def note_credit(batch: Batch, tx: Transaction) -> None:
        await directory.credit(batch, tx)

    @service.consumes(topics.PRIVACY_REQUESTS, batch=50)
    async def take_requests(batch: Batch, tx: Transaction) -> None:
        await requests.requested(room, batch, tx)

    @service.consumes(topics.PRIVACY_RECEIPTS, batch=200)
    async def take_answers(batch: Batch, tx: Transaction) -> None:
        await cases.answered(room, batch, tx)

    @service.consumes(topics.MESSAGE_OUTCOMES, batch=200)
    async def take_outcomes(batch: Batch, tx: Transaction) -> None:
        # In their order: a code that came back after five wrong ones is worth nothing.
        for kind, group in groupby(batch.events, key=lambda received: received.event.type):
            said = [received.event for received in group]
            if kind == events.ProofJudged.TYPE:
                await requests.judged(room, said, tx)
            elif kind == events.AccountBarred.TYPE:
                await requests.barred(room, said, tx)
            else:
                await cases.mailed(room, [event.data for event in said], tx)

    @service.job("cases", every=timedelta(seconds=1))
    async def go_on(now: datetime, tx: Transaction) -> None:
        await cases.tick(room, now, tx)
        await holds.tick(room, now, tx)
        await disclosures.tick(room, now, tx)

    # Apart from the others: a store that is away holds up nothing else.
    @service.job("packages", every=timedelta(seconds=5))
    async def tidy(now: datetime, tx: Transaction) -> None:
        await packages.tidy(room, now, tx)

    @service.job("packages-unknown", every=timedelta(hours=1))
    async def sweep_packages(now: datetime, tx: Transaction) -> None:
        await packages.sweep(room, now, tx)

    @service.job("forecast", every=timedelta(seconds=30))
    async def foresee(now: datetime, tx: Transaction) -> None:
        await cases.foresee(room, now, tx)

    @service.job("ingress-keys", every=timedelta(hours=1))
    async def make_ingress_keys(now: datetime, tx: Transaction) -> None:
        await room.make_ingress_keys(now)

    # A frozen relay may have left an older state standing as the topic's last word.
    @service.job("republish-settings", every=timedelta(hours=1))
    async def republish(now: datetime, tx: Transaction) -> None:
        await directory.republish(tx, now - timedelta(days=1))

    @service.job("restrictions", every=timedelta(hours=1))
    async def end_restrictions(now: datetime, tx: Transaction) -> None:
        await directory.end_restrictions(now, tx)

    @service.job("tombstones", every=timedelta(hours=1))
    async def end_tombstones(now: datetime, tx: Transaction) -> None:
        for grave in await store.over_tombstones(tx.db, now, _REPUBLISHED):
            directory.publish_null(tx, topics.TOMBSTONES, grave.hex())

    # Not guarded: it makes nothing out of what was read, and takes as long as a million rows do. Whether its person is
    # erased meanwhile is looked at under the case's lock.
    @service.task(PACK, guarded=False)
    async def pack(task: Task, tx: Transaction) -> Any:
        return await packages.pack(room, task, tx)

    @service.serves("packages")
    async def fetch(token: str, tx: Transaction) -> Served:
        return await packages.serve(room, token, tx)

    @service.job("forget-speeds", every=timedelta(minutes=5))
    async def forget_speeds(now: datetime, tx: Transaction) -> None:
        await store.forget_taken(tx.db, LAST)

    def on_case(command: str, action: str, deed: staff.Deed) -> None:
        @service.command(command)
        async def obey(received: Received, tx: Transaction) -> None:
            await staff.act(room, received, tx, action, deed)

    on_case("triage_case", "triage", staff.triage)
    on_case("deny_case", "deny", staff.deny)
    on_case("extend_case", "extend", staff.extend)
    on_case("escalate_case", "escalate", staff.escalate)
    on_case("answer_case", "answer", staff.answer)
    on_case("decide_child", "decide_child", staff.decide_child)
    on_case("retry_case", "retry", staff.step(lambda command: machine.Retry()))
    on_case(
        "waive_holder", "waive",
        staff.step(lambda c: machine.Waive(c.arguments.get("holder", ""), c.actor, c.ticket)),
    )  # fmt: skip

    @service.command("sweep_case")
    async def sweep(received: Received, tx: Transaction) -> None:
        command = received.event.data
        if command.target != "all":
            await staff.act(room, received, tx, "sweep", staff.step(lambda command: machine.SweepNow()))
        elif staff.may("sweep", received, tx):
            by = cases.By(command.actor, command.role, command.ticket)
            for row in (await store.lock_cases(tx.db, await store.to_sweep(tx.db))).values():
                await cases.happen(room, tx, row, machine.SweepNow(), by=by)

    @service.command("place_hold")
    async def place_hold(received: Received, tx: Transaction) -> None:
        if staff.may("hold", received, tx):
            await holds.place(room, received, tx)

    @service.command("release_hold")
    async def release_hold(received: Received, tx: Transaction) -> None:
        if staff.may("hold", received, tx):
            await holds.release(room, received, tx)

    def on_disclosure(command: str, deed: Callable[[Room, Received, Transaction], Awaitable[None]]) -> None:
        @service.command(command)
        async def obey(received: Received, tx: Transaction) -> None:
            if staff.may("disclose", received, tx):
                await deed(room, received, tx)

    on_disclosure("enter_disclosure", disclosures.enter)
    on_disclosure("extract_disclosure", disclosures.extract)
    on_disclosure("end_gag", disclosures.end_gag)
    on_disclosure("settle_notice", disclosures.settle)

    @service.reads("case")
    async def read_case(query: Mapping[str, str], tx: Transaction) -> Any:
        case_id = await store.case_of_request(tx.db, query.get("id", ""))
        row = None if case_id is None else await store.case(tx.db, case_id)
        if row is None:
            raise NotFound("no such case is known here")
        return await shown.whole(tx.db, row, tx.now, room.timing, await speeds(tx.db))

    @service.reads("ingress")
    async def read_ingress(query: Mapping[str, str], tx: Transaction) -> Any:
        """Today's public key to seal to. It is no secret."""
        return await room.public_key(tx.now)

    @service.reads("certificate")
    async def read_certificate(query: Mapping[str, str], tx: Transaction) -> Any:
        case_id = await store.case_of_request(tx.db, query.get("case", ""))
        document = None if case_id is None else await store.certificate(tx.db, case_id)
        if document is None:
            raise NotFound("the case is not certified")
        return document

    @service.reads("cases")
    async def read_cases(query: Mapping[str, str], tx: Transaction) -> Any:
        limit = min(int(query.get("limit", "100")), _LIST)
        rows = await store.cases(tx.db, open_only=query.get("all") != "yes", limit=limit)
        measured = await speeds(tx.db)
        return [shown.line(row, tx.now, room.timing, measured) for row in rows.values()]

    @service.reads("holds")
    async def read_holds(query: Mapping[str, str], tx: Transaction) -> Any:
        limit = min(int(query.get("limit", "100")), _LIST)
        rows = await store.holds(tx.db, all_of_them=query.get("all") == "yes", limit=limit)
        return [dict(row) for row in rows]

    @service.reads("disclosures")
    async def read_disclosures(query: Mapping[str, str], tx: Transaction) -> Any:
        return await disclosed.listed(query, tx)

    @service.reads("disclosure")
    async def read_disclosure(query: Mapping[str, str], tx: Transaction) -> Any:
        return await disclosed.whole(query, tx)

    @service.reads("disclosure_extract")
    async def read_disclosure_extract(query: Mapping[str, str], tx: Transaction) -> Any:
        return await disclosed.page(room, query, tx)

    room.tombstones = attach(service, HOLDING).tombstones
    return service


service = make_service()
