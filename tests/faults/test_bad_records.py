"""What comes from outside and is no event: it has a reason, its neighbours go on, nothing is lost."""

from __future__ import annotations

import json
import re

import asyncpg
from aiokafka.admin import AIOKafkaAdminClient
from aiokafka.admin.config_resource import ConfigResource, ConfigResourceType

from shared.contract import topics
from shared.mesh import metrics
from tests.support.books import assert_books
from tests.support.gateway import Gateway, Sent, body
from tests.support.world import Mesh

LETTERS = "SELECT id, reason, detail, payload, headers, source, sequence FROM mesh_dead_letter ORDER BY id"


def _bytes(value: bytes | None, headers: list[tuple[str, bytes | None]] | None = None) -> Sent:
    return Sent(topics.GENERATIONS, b"bad", value, headers or [])


async def test_every_kind_of_bad_record(mesh: Mesh, seed: int) -> None:
    gateway = Gateway(seed)
    good = gateway.some(50)
    odd_headers = gateway.generation()
    odd_headers.headers += [("x-null", None), ("x-latin", b"\xff\xfe\xe9")]
    prompt = gateway.generation(counted=False)
    document = body(prompt)
    document["data"]["prompt"] = "canary-of-a-person"
    prompt.value = json.dumps(document).encode()
    wrong_sum = gateway.generation(counted=False, input_tokens=1)
    unknown = gateway.generation(counted=False)
    unknown.value = (unknown.value or b"").replace(b"generation.completed.v1", b"generation.imagined.v1")
    bad = [_bytes(b"\xff\x00 not json"), _bytes(b""), _bytes(None), _bytes(b"[" * 5000), _bytes(b'{"type": 3}')]
    await gateway.send(
        mesh.env, [gateway.price(), *good[:25], *bad, odd_headers, prompt, wrong_sum, unknown, *good[25:]]
    )
    metering = await mesh.start("metering")
    await mesh.start("billing")
    await mesh.owned()
    await mesh.idle()
    await assert_books(mesh, gateway)
    letters = await mesh.fetch("metering", LETTERS)
    assert sorted(row["reason"] for row in letters) == sorted(
        [
            "malformed",
            "malformed",
            "empty",
            "unknown_type",
            "unknown_type",
            "undeclared_field",
            "invalid",
            "unknown_type",
        ]
    )
    counters = await mesh.counters()
    assert counters["dead_lettered:gateway.generations"] == len(letters)
    assert counters["records:gateway.generations"] == counters["rated"] + counters["duplicates"] + len(letters)
    kept = next(row for row in letters if row["reason"] == "undeclared_field")
    assert b"canary" not in kept["payload"] and "data.prompt (20 bytes)" in kept["detail"]
    # Nobody knows what it holds: it stands sealed, and is shown to whoever says why.
    unread = next(row for row in letters if row["reason"] == "malformed")
    assert b"not json" not in unread["payload"]
    shown = await metering.answer("dead-letter", {"id": str(unread["id"])}, "tester", "operator", "a test")
    assert shown["payload"] == "\\xff\x00 not json"
    # What is missing is what the source numbered and nobody has seen: nothing, since dead letters are seen too.
    missing = "SELECT max(highest) - sum(seen) FROM mesh_source WHERE topic = 'gateway.generations'"
    assert await mesh.value("metering", missing) == 0


async def test_a_record_of_ten_megabytes(mesh: Mesh, seed: int) -> None:
    client = AIOKafkaAdminClient(bootstrap_servers=mesh.env["STEWARD_KAFKA_BOOTSTRAP_SERVERS"])
    await client.start()
    resource = ConfigResource(
        ConfigResourceType.TOPIC, topics.GENERATIONS.name,
        configs=topics.GENERATIONS.config() | {"max.message.bytes": "20000000"},
    )  # fmt: skip
    try:
        await client.alter_configs([resource])
    finally:
        await client.close()
    gateway = Gateway(seed)
    large = _bytes(b'{"type":"generation.completed.v1","data":"' + b"x" * 10_000_000 + b'"}')
    await gateway.send(mesh.env, [gateway.price(), *gateway.some(20), large, *gateway.some(20)])
    await mesh.start("metering")
    await mesh.start("billing")
    await mesh.owned()
    await mesh.idle()
    await assert_books(mesh, gateway)
    letters = await mesh.fetch("metering", "SELECT reason, payload FROM mesh_dead_letter")
    assert [row["reason"] for row in letters] == ["invalid"]
    assert json.loads(letters[0]["payload"])["data"] == "(10000002 bytes)", "what breaks its rule is kept as its length"


async def test_a_newer_version_waits_for_its_reader(mesh: Mesh, seed: int) -> None:
    gateway = Gateway(seed)
    newer = gateway.generation(counted=False)
    newer.value = (newer.value or b"").replace(b"generation.completed.v1", b"generation.completed.v2")
    before = [gateway.generation() for _ in range(5)]
    after = [gateway.generation(counted=False) for _ in range(5)]
    for record in (*before, newer, *after):
        record.key = b"same-partition"
    await gateway.send(mesh.env, [gateway.price(), *before, newer, *after])
    metering = await mesh.start("metering")
    await mesh.owned()

    async def stopped() -> bool:
        return any(p.stopped == "newer_version" for c in metering.consumers for p in c.partitions.values())

    await mesh.until(stopped, 20, "the partition stands")

    async def rated() -> bool:  # what came before the newer record is committed a moment later
        return (await mesh.counters()).get("rated") == 5

    await mesh.until(rated, 20, "the five generations before it are rated")
    assert "dead_lettered:gateway.generations" not in await mesh.counters()
    # Alive (a restart would not help), not idle (there is work), and the cursor stands before the newer record.
    said = await metering.idle()
    assert metering.troubles() == [] and not said["idle"]
    (place,) = said["stopped"]
    assert re.fullmatch(r"gateway\.generations-\d+ stopped at offset \d+: newer_version", place)


async def test_a_dead_letter_is_replayed_as_the_record_that_it_was(mesh: Mesh, seed: int) -> None:
    gateway = Gateway(seed)
    record = gateway.generation()
    document = body(record)
    document["data"]["prompt"] = "hello"
    record.value = json.dumps(document).encode()
    await gateway.send(mesh.env, [gateway.price(), record, *gateway.some(10, duplicates=0)])
    metering = await mesh.start("metering")
    await mesh.start("billing")
    await mesh.owned()
    await mesh.idle()
    letter = await mesh.value("metering", "SELECT id FROM mesh_dead_letter")
    await gateway.send(mesh.env, [gateway.command("metering", "replay_dead_letter", str(letter))])
    rated = gateway.generations

    async def replayed() -> bool:
        return (await mesh.counters()).get("rated", 0) == rated

    await mesh.until(replayed, 20, "the dead letter was replayed")
    await mesh.idle()
    await assert_books(mesh, gateway)
    counters = await mesh.counters()
    assert counters["dead_lettered:gateway.generations"] == 0
    assert await mesh.value("metering", "SELECT state FROM mesh_dead_letter") == "replayed"
    assert metering.troubles() == []


async def test_letters_of_a_day_without_a_partition_wait_for_it(mesh: Mesh, seed: int) -> None:
    """A machine that slept for days has made none; the reason that a record came with is not lost over it."""
    gateway = Gateway(seed)
    metering = await mesh.start("metering")
    await mesh.owned()
    owner = await asyncpg.connect(mesh.env["STEWARD_METERING_OWNER_DATABASE_URL"])
    parts = "SELECT inhrelid::regclass::text AS name FROM pg_inherits WHERE inhparent = 'mesh_dead_letter'::regclass"
    for row in await owner.fetch(parts):
        await owner.execute(f"DROP TABLE {row['name']}")
    await owner.close()
    again = metrics.RETRIES_TOTAL.labels(topics.GENERATIONS.name, "database")._value.get()
    await gateway.send(mesh.env, [_bytes(b"no event")])

    async def waits() -> bool:
        return bool(metrics.RETRIES_TOTAL.labels(topics.GENERATIONS.name, "database")._value.get() > again)

    await mesh.until(waits, 20, "the batch is redone")
    assert await mesh.fetch("metering", LETTERS) == []
    await metering.make_partitions()
    await mesh.idle()
    assert [row["reason"] for row in await mesh.fetch("metering", LETTERS)] == ["malformed"]
