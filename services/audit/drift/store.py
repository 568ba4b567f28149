"""What a look at the clocks of data reads: the catalogue of each database, settings and ends of each topic."""

from __future__ import annotations

import re
from collections.abc import Sequence
from datetime import UTC, datetime

from aiokafka import TopicPartition

from services.audit.drift.judge import JOBS, Database, Held, Part
from shared.contract.topics import Topic
from shared.mesh.admin import end_offsets, topic_settings
from shared.mesh.settings import KafkaSettings
from shared.mesh.store import Connection
from shared.mesh.trim import at_times

_MARK = re.compile(r"partition of (\w+); over at (\S+)")
_DAY = re.compile(r".*_(\d{8})")


async def database(db: Connection, service: str) -> Database:
    """Partitions by day, attached ones and those that lie beside, as comments and catalogue tell them."""
    rows = await db.fetch(
        """SELECT c.relname AS name, p.relname AS parent, coalesce(i.inhdetachpending, false) AS pending,
                  coalesce(pg_get_expr(c.relpartbound, c.oid) = 'DEFAULT', false) AS "default",
                  obj_description(c.oid, 'pg_class') AS mark
           FROM pg_class c LEFT JOIN pg_inherits i ON i.inhrelid = c.oid LEFT JOIN pg_class p ON p.oid = i.inhparent
             LEFT JOIN pg_partitioned_table t ON t.partrelid = p.oid
           WHERE c.relnamespace = 'public'::regnamespace AND c.relkind = 'r'
             AND (t.partstrat = 'r' OR starts_with(obj_description(c.oid, 'pg_class'), 'partition of '))
           ORDER BY c.relname"""
    )
    parts = []
    for row in rows:
        mark, day = _MARK.fullmatch(row["mark"] or ""), _DAY.fullmatch(row["name"])
        if mark is None and row["parent"] is None:
            continue
        ends = None if mark is None or mark[2] == "never" else datetime.fromisoformat(mark[2])
        begins = None if day is None else datetime.strptime(day[1], "%Y%m%d").replace(tzinfo=UTC)
        parts.append(
            Part(
                row["parent"] or (mark[1] if mark else ""), row["name"], row["parent"] is not None, row["pending"],
                row["default"], mark is not None, begins, ends,
            )
        )  # fmt: skip
    ran = {
        row["name"]: row["ran_at"]
        for row in await db.fetch("SELECT name, ran_at FROM mesh_job WHERE name = ANY($1)", list(JOBS))
    }
    days = {}
    if await db.fetchval("SELECT to_regclass('mesh_data_map') IS NOT NULL"):
        found = await db.fetch("SELECT table_name, max(period_days) AS days FROM mesh_data_map GROUP BY table_name")
        days = {row["table_name"]: row["days"] for row in found if row["days"] is not None}
    return Database(service, parts, ran, days)


async def topics(kafka: KafkaSettings, wanted: Sequence[Topic]) -> dict[str, Held]:
    """What Kafka says about each topic that is there. Raises KafkaError."""
    settings = await topic_settings(kafka, wanted)
    there = [topic.name for topic in wanted if settings.get(topic.name)]
    spans = await end_offsets(kafka, there)
    filled: dict[TopicPartition, int] = {tp: 0 for tp, (begin, end) in spans.items() if end > begin}
    first = await at_times(kafka, filled)
    held = {}
    for name in there:
        ages = [place[1] for tp, place in first.items() if tp.topic == name and place is not None and place[1] >= 0]
        held[name] = Held(
            settings[name],
            {tp.partition: span for tp, span in spans.items() if tp.topic == name},
            datetime.fromtimestamp(min(ages) / 1000, UTC) if ages else None,
        )
    return held
