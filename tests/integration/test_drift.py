"""Topics are trimmed behind their readers, and the auditor finds whatever does not end in time."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import asyncpg
import pytest
from aiokafka.admin import AIOKafkaAdminClient
from aiokafka.admin.config_resource import ConfigResource, ConfigResourceType

from services.audit.app import make_service
from shared.contract import topics
from shared.contract.topics import Topic
from shared.mesh.admin import end_offsets
from shared.mesh.clock import FileClock
from shared.mesh.runtime import Runtime
from shared.mesh.settings import KafkaSettings
from shared.mesh.trim import hold_of, trim
from tests.support.books import assert_books
from tests.support.gateway import Gateway
from tests.support.world import Mesh

DAY, HOUR = timedelta(days=1), timedelta(hours=1)


async def spans(mesh: Mesh, topic: Topic) -> dict[int, tuple[int, int]]:
    found = await end_offsets(KafkaSettings.from_env(mesh.env), [topic.name])
    return {tp.partition: span for tp, span in found.items()}


async def test_a_topic_is_trimmed_behind_its_slowest_reader(mesh: Mesh, seed: int) -> None:
    kafka = KafkaSettings.from_env(mesh.env)
    gateway = Gateway(seed)
    await gateway.send(mesh.env, [gateway.price(), *gateway.some(200)])
    sent = await spans(mesh, topics.GENERATIONS)
    later = datetime.now(UTC) + 2 * HOUR
    assert await trim(kafka, later, HOUR) == {}, "nobody has read it"
    metering = await mesh.start("metering")
    await mesh.owned()
    await mesh.idle()
    for consumer in metering.consumers:
        await consumer.commit_hints()
    assert topics.GENERATIONS.name not in await trim(kafka, datetime.now(UTC), HOUR), "it is younger than the hold"
    trimmed = await trim(kafka, later, HOUR)
    assert trimmed[topics.GENERATIONS.name] == {part: end for part, (start, end) in sent.items() if end > start}
    assert all(start == end for start, end in (await spans(mesh, topics.GENERATIONS)).values())
    # Billing has read nothing: what waits for it stays. And what names nobody is left to its retention.
    assert topics.USAGE_RATED.name not in trimmed and topics.PRICES.name not in trimmed
    assert any(end > start for start, end in (await spans(mesh, topics.PRICES)).values())
    await mesh.start("billing")
    await mesh.owned()
    await mesh.idle()
    await assert_books(mesh, gateway)
    # A reader that starts again finds a log that begins later, and misses nothing.
    await mesh.stop(metering)
    await gateway.send(mesh.env, gateway.some(50))
    await mesh.start("metering")
    await mesh.owned()
    await mesh.idle()
    await assert_books(mesh, gateway)


def test_the_hold_is_short_where_everything_is() -> None:
    assert hold_of(KafkaSettings("k")) == HOUR
    assert hold_of(KafkaSettings("k", hurried=True)) == timedelta(seconds=5)


class Auditor:
    """Audit, on a clock of its own."""

    def __init__(self, mesh: Mesh, path: Path) -> None:
        self._mesh, self._path = mesh, path
        self.runtime: Runtime
        self.set(datetime.now(UTC))

    def set(self, at: datetime) -> None:
        FileClock.write(self._path, at)

    async def start(self) -> None:
        self.runtime = await self._mesh.start(
            "audit", service=make_service(self._mesh.env), clock=FileClock(self._path)
        )

    async def findings(self) -> list[str]:
        said = await self.runtime.answer("drift", {}, "tester", "auditor", "a test")
        assert {each["service"] for each in said["stores"]} >= {"kafka", "metering", "billing", "audit"}
        json.dumps(said, default=str)
        found: list[str] = said["findings"]
        return found

    async def slack(self, service: str, name: str) -> float:
        said = await self.runtime.answer("drift", {}, "tester", "auditor", "a test")
        (hours,) = [s["slack_hours"] for s in said["stores"] if (s["service"], s["name"]) == (service, name)]
        assert isinstance(hours, float)
        return hours


@pytest.fixture
async def auditor(mesh: Mesh, tmp_path: Path) -> AsyncIterator[Auditor]:
    made = Auditor(mesh, tmp_path / "clock")
    await made.start()
    yield made


async def configure(mesh: Mesh, topic: Topic, settings: dict[str, Any]) -> None:
    client = AIOKafkaAdminClient(**KafkaSettings.from_env(mesh.env).client())
    await client.start()
    try:
        await client.alter_configs([ConfigResource(ConfigResourceType.TOPIC, topic.name, settings)])
    finally:
        await client.close()


async def owner(mesh: Mesh, room: str, statement: str) -> None:
    db = await asyncpg.connect(mesh.env[f"STEWARD_{room.upper()}_OWNER_DATABASE_URL"])
    try:
        await db.execute(statement)
    finally:
        await db.close()


@pytest.mark.promise(36)
async def test_the_auditor_finds_what_does_not_end_in_time(mesh: Mesh, auditor: Auditor, tmp_path: Path) -> None:
    clock = tmp_path / "metering"
    now = datetime.now(UTC)
    FileClock.write(clock, now)
    metering = await mesh.start("metering", clock=FileClock(clock))
    await mesh.owned()
    assert await auditor.findings() == []
    # A detached partition, whoever detached it.
    name = f"request_log_{(now + 3 * DAY):%Y%m%d}"
    await owner(mesh, "metering", f"ALTER TABLE request_log DETACH PARTITION {name}")
    assert await auditor.findings() == [f"metering: {name} is detached from request_log and still lies there"]
    auditor.set(now + 4 * DAY + 2 * HOUR)
    findings = await auditor.findings()
    assert any(f"{name} has been over for" in said for said in findings)
    assert any("metering: mesh-partitions has not run" in said for said in findings)
    assert await auditor.slack("metering", "request_log") < 0
    # It is dropped when its time is over, like those that are attached.
    FileClock.write(clock, now + 4 * DAY + 2 * HOUR)

    async def swept() -> bool:
        return not [said for said in await auditor.findings() if said.startswith("metering")]

    await mesh.until(swept, 30, "metering has caught up")
    assert await mesh.value("metering", "SELECT count(*) FROM mesh_expiry WHERE partition = $1", name) == 1
    assert 0 < await auditor.slack("metering", "request_log") <= 25
    assert metering.troubles() == []


async def test_the_auditor_reads_kafkas_settings_back(mesh: Mesh, auditor: Auditor) -> None:
    right = topics.ACCESS.config(hurried=KafkaSettings.from_env(mesh.env).hurried)
    assert await auditor.findings() == []
    try:
        await configure(mesh, topics.ACCESS, {**right, "retention.ms": "1209600000"})
        findings = await auditor.findings()
    finally:
        await configure(mesh, topics.ACCESS, right)
    assert f"{topics.ACCESS.name}: retention.ms is 1209600000, the contract says {right['retention.ms']}" in findings
    assert any("longer than 7 days together" in said for said in findings)

    async def clean() -> bool:
        return await auditor.findings() == []

    await mesh.until(clean, 20, "the setting is back")


async def test_a_personal_record_older_than_a_week_is_found(mesh: Mesh, auditor: Auditor, seed: int) -> None:
    gateway = Gateway(seed)
    await gateway.send(mesh.env, [gateway.generation()])
    auditor.set(datetime.now(UTC) + 7 * DAY - HOUR)
    assert 0 < await auditor.slack("kafka", topics.GENERATIONS.name) <= 1.01
    auditor.set(datetime.now(UTC) + 7 * DAY + HOUR)
    said = [s for s in await auditor.findings() if s.startswith(topics.GENERATIONS.name)]
    assert len(said) == 1 and "its oldest record is 7.04 days old" in said[0]
