"""`python -m tests.support.third_party`: keeps the notes of workspaces, and erases them when it is told to."""

from __future__ import annotations

import asyncio
import hashlib
import json
import os
import shutil
from collections.abc import Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import asyncpg
from aiokafka import AIOKafkaConsumer, AIOKafkaProducer, TopicPartition

from shared.contract import events, topics
from shared.contract.codec import Codec, build, validated
from shared.contract.ids import derived_id, id_ms
from tests.support.third_party.keys import Keys, subject_hash

NAME = "supportnotes"
# Tombstones first: what they say holds for everything that is read after them.
READS = (topics.TOMBSTONES, topics.PRIVACY_COMMANDS, topics.PAYMENTS)
_NOTE = ("user.content.private", "essential.service.operations.support", "delete_row", "contract", 60)
_PLAIN = ("system.operations", "none", "none", "none", None)
_HASH = ("user.unique_id.pseudonymous", "essential.legal_obligation", "retain", "legal_obligation", 731)
MAP: Sequence[tuple[Any, ...]] = (
    *(("support_note", column, *_NOTE) for column in ("note", "workspace", "account", "text")),
    ("suppressed", "hash", *_HASH),
    *(("answer", column, *_PLAIN) for column in ("case_id", "epoch", "body", "sent")),
    *(("place", column, *_PLAIN) for column in ("topic", "part", "next_offset")),
)
MAP_VERSION = hashlib.sha256(repr(MAP).encode()).hexdigest()[:16]


class Notes:
    """The program: one loop that reads, changes its database, and answers."""

    def __init__(self, db: Any, keys: Keys, kafka: str, blobs: Path) -> None:
        self._db, self._keys, self._kafka, self._blobs = db, keys, kafka, blobs
        self._codecs = {topic.name: Codec(topic) for topic in READS}
        self._hash_key = b""
        # (folder, of whom) of the copies that were made; a real holder would keep that beside its notes.
        self._copies: list[tuple[Path, set[str]]] = []

    async def run(self) -> None:
        """Works until it is ended; may be ended at any point."""
        await self._db.execute(Path(__file__).with_name("schema.sql").read_text(encoding="utf-8"))
        async with self._db.transaction():
            await self._db.execute("DELETE FROM mesh_data_map")
            await self._db.executemany(
                "INSERT INTO mesh_data_map VALUES ($1, $2, $3, $4, $5, $6, $7, $8)",
                [(*column, MAP_VERSION) for column in MAP],
            )
        self._hash_key = await self._keys.hash_key()
        consumer = AIOKafkaConsumer(
            bootstrap_servers=self._kafka, enable_auto_commit=False, auto_offset_reset="earliest"
        )
        producer = AIOKafkaProducer(bootstrap_servers=self._kafka, enable_idempotence=True)
        await consumer.start()
        await producer.start()
        try:
            await self._work(consumer, producer)
        finally:
            await consumer.stop()
            await producer.stop()

    async def _work(self, consumer: Any, producer: Any) -> None:
        places = [TopicPartition(topic.name, part) for topic in READS for part in range(topic.partitions)]
        consumer.assign(places)
        for tp in places:
            offset = await self._db.fetchval(
                "SELECT next_offset FROM place WHERE topic = $1 AND part = $2", tp.topic, tp.partition
            )
            await (consumer.seek_to_beginning(tp) if offset is None else _seek(consumer, tp, offset))
        stones = TopicPartition(topics.TOMBSTONES.name, 0)
        (end,) = (await consumer.end_offsets([stones])).values()
        while await consumer.position(stones) < end:
            await self._take(stones, (await consumer.getmany(stones, timeout_ms=200)).get(stones, ()))
        # An older copy of the database may be in place: what it does not know to be erased goes now.
        await self._forget_suppressed()
        while True:
            await self._answer(producer)
            found = await consumer.getmany(timeout_ms=200)
            for tp in sorted(found, key=lambda tp: [topic.name for topic in READS].index(tp.topic)):
                await self._take(tp, found[tp])

    async def _take(self, tp: TopicPartition, records: Sequence[Any]) -> None:
        """One batch: its effects and its place, in one transaction."""
        if not records:
            return
        async with self._db.transaction():
            for record in records:
                if record.value is not None:
                    await self._handle(self._codecs[tp.topic].decode(record.value))
            await self._db.execute(
                """INSERT INTO place VALUES ($1, $2, $3) ON CONFLICT (topic, part)
                   DO UPDATE SET next_offset = excluded.next_offset""",
                tp.topic, tp.partition, records[-1].offset + 1,
            )  # fmt: skip

    async def _handle(self, event: Any) -> None:
        data = event.data
        if event.type == events.SubjectErased.TYPE:
            await self._suppress([data.hash])
        elif event.type == events.PrivacyOrdered.TYPE and NAME in data.holders and data.action == "erase":
            await self._erase(data)
        elif (
            event.type == events.PrivacyOrdered.TYPE and NAME in data.holders and data.action in ("discover", "export")
        ):
            await self._tell(data)
        elif event.type == events.NoteAdded.TYPE and not await self._suppressed(data):
            await self._db.execute(
                "INSERT INTO support_note VALUES ($1, $2, $3, $4) ON CONFLICT DO NOTHING",
                data.note, data.workspace, data.account, data.text,
            )  # fmt: skip

    async def _erase(self, order: Any) -> None:
        known = "UPDATE answer SET sent = false WHERE case_id = $1 AND epoch = $2 RETURNING true"
        if await self._db.fetchval(known, order.case, order.epoch):
            return  # answered before: the same answer goes out once more
        subjects = await self._keys.subjects(order.case, order.sealed)
        if subjects is None:
            return
        # The command can overtake the topic of tombstones: whom it names is erased from here on.
        await self._suppress([subject_hash(self._hash_key, *subject) for subject in subjects])
        for folder, of_whom in self._copies:
            if not of_whom.isdisjoint(subject_hash(self._hash_key, *subject) for subject in subjects):
                shutil.rmtree(folder, ignore_errors=True)
        ids = [value for kind, value in subjects if kind in ("workspace", "account")]
        gone = await self._db.fetch(
            "DELETE FROM support_note WHERE workspace = ANY($1) OR account = ANY($1) RETURNING note", ids
        )
        columns = [column for table, column, *_ in MAP if table == "support_note"]
        treated = [{"table": "support_note", "action": "delete_row", "columns": columns, "rows": len(gone)}]
        body = {
            "case": order.case, "epoch": order.epoch, "holder": NAME, "action": "erase", "treated": treated,
            "map_version": MAP_VERSION, "code_version": "1",
        }  # fmt: skip
        await self._db.execute("INSERT INTO answer VALUES ($1, $2, $3)", order.case, order.epoch, json.dumps(body))

    async def _tell(self, order: Any) -> None:
        """What there is of somebody; for an export a copy, in the blob store."""
        known = "UPDATE answer SET sent = false WHERE case_id = $1 AND epoch = $2 RETURNING true"
        subjects = await self._keys.subjects(order.case, order.sealed)
        if await self._db.fetchval(known, order.case, order.epoch) or subjects is None:
            return
        hashes = [subject_hash(self._hash_key, *subject) for subject in subjects]
        gone = await self._db.fetchval("SELECT EXISTS (SELECT FROM suppressed WHERE hash = ANY($1))", hashes)
        ids = [value for kind, value in subjects if kind in ("workspace", "account")]
        found = await self._db.fetch(
            "SELECT note, workspace, account, text FROM support_note WHERE workspace = ANY($1) OR account = ANY($1)",
            ids,
        )
        if order.action == "export" and found and not gone:
            text = "\n".join(json.dumps({**dict(row), "text": None}) for row in found)
            folder = self._blobs / order.case / str(order.epoch) / NAME
            for table, said in (("support_note", text), ("_map", json.dumps(_described(len(found))))):
                part = folder / table / "000000"
                part.parent.mkdir(parents=True, exist_ok=True)
                part.write_bytes(await self._keys.sealed_copy(order.case, said))
            self._copies += [(folder, set(hashes))]
        did = {"discover": "found", "export": "exported"}[order.action]
        columns = [column for table, column, *_ in MAP if table == "support_note"]
        treated = [{"table": "support_note", "action": did, "columns": columns, "rows": len(found)}]
        body = {
            "case": order.case, "epoch": order.epoch, "holder": NAME, "action": order.action,
            "treated": [] if gone else treated, "map_version": MAP_VERSION, "code_version": "1",
        }  # fmt: skip
        await self._db.execute("INSERT INTO answer VALUES ($1, $2, $3)", order.case, order.epoch, json.dumps(body))

    async def _answer(self, producer: Any) -> None:
        """Publishes what Kafka has not got: at least once, always under the same id."""
        for row in await self._db.fetch("SELECT * FROM answer WHERE NOT sent ORDER BY case_id, epoch"):
            case, epoch = row["case_id"], row["epoch"]
            at = datetime.now(UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z")
            event_id = derived_id(id_ms(case), "receipt", case, str(epoch), NAME)
            raw = build(
                events.PrivacyDone, id=event_id, source=NAME, subject=case, time=at, data=json.loads(row["body"])
            )
            await producer.send_and_wait(
                topics.PRIVACY_RECEIPTS.name, validated(events.PrivacyDone, raw), key=case.encode()
            )
            await self._db.execute("UPDATE answer SET sent = true WHERE case_id = $1 AND epoch = $2", case, epoch)

    async def _suppress(self, hashes: Sequence[str]) -> None:
        await self._db.executemany("INSERT INTO suppressed VALUES ($1) ON CONFLICT DO NOTHING", [(h,) for h in hashes])

    async def _suppressed(self, data: Any) -> bool:
        hashes = [
            subject_hash(self._hash_key, kind, value)
            for kind, value in (("workspace", data.workspace), ("account", data.account))
        ]
        return bool(await self._db.fetchval("SELECT EXISTS (SELECT FROM suppressed WHERE hash = ANY($1))", hashes))

    async def _forget_suppressed(self) -> None:
        erased = {row[0] for row in await self._db.fetch("SELECT hash FROM suppressed")}
        for row in await self._db.fetch("SELECT note, workspace, account FROM support_note"):
            if {
                subject_hash(self._hash_key, "workspace", row["workspace"]),
                subject_hash(self._hash_key, "account", row["account"]),
            } & erased:
                await self._db.execute("DELETE FROM support_note WHERE note = $1", row["note"])


def _described(rows: int) -> dict[str, Any]:
    """What the copy says of itself."""
    columns = [
        {
            "name": column, "type": "text", "nullable": True, "hides_others": False, "category": category, "use": use,
            "ground": ground, "clock_start": "event", "period": None, "days": days, "note": "",
        }
        for table, column, category, use, _, ground, days in MAP if table == "support_note"
    ]  # fmt: skip
    table = {"rows": rows, "parts": 1, "left_out": None, "columns": columns}
    return {
        "format": "steward.copy.v1", "holder": NAME, "map_version": MAP_VERSION, "since": None, "until": None,
        "tables": {"support_note": table}, "unlinked": {},
    }  # fmt: skip


async def _seek(consumer: Any, tp: TopicPartition, offset: int) -> None:
    consumer.seek(tp, offset)


async def main() -> None:
    """Runs with what the environment says."""
    db = await asyncpg.connect(os.environ["SUPPORTNOTES_DATABASE_URL"])
    keys = await asyncpg.connect(os.environ["STEWARD_KEYS_DATABASE_URL"])
    try:
        master = Path(os.environ["STEWARD_MASTER_KEY_FILE"]).read_text(encoding="ascii")
        blobs = Path(os.environ["STEWARD_BLOBS"])
        await Notes(db, Keys(keys, master), os.environ["STEWARD_KAFKA_BOOTSTRAP_SERVERS"], blobs).run()
    finally:
        await db.close()
        await keys.close()


if __name__ == "__main__":
    asyncio.run(main())
