"""The books commands on a running mesh: what a person types, what it says, and how it ends."""

from __future__ import annotations

import asyncio
import json
import time
from datetime import UTC, datetime
from pathlib import Path

import pytest
from aiokafka import TopicPartition
from aiokafka.admin import AIOKafkaAdminClient
from aiokafka.admin.records_to_delete import RecordsToDelete
from click.testing import CliRunner

from deploy.cli import main
from shared.contract import topics
from shared.mesh.settings import KafkaSettings
from shared.mesh.store import pack_headers
from tests.support.gateway import Sent, body
from tests.support.hands import Hands
from tests.support.world import Mesh, World

NO_ID = "019ab7d4-1e5a-7f00-8a1b-2c3d4e5f6a7b"


@pytest.fixture
async def hands(mesh: Mesh, seed: int, tmp_path: Path) -> Hands:
    """Metering and billing with their HTTP ports, a price and some credit."""
    return await Hands.at_work(mesh, seed, tmp_path)


async def test_from_a_file_to_the_proof(hands: Hands) -> None:
    gateway = hands.gateway
    plain = gateway.generation("ws-1", generation_ref="gen-77")
    sharing = gateway.generation("ws-2", counted=False, data_sharing=True)
    no_log = gateway.generation("ws-2", log_retention_days=0)
    twice = gateway.generation("ws-1")
    said = await hands.emit(plain, b"not an event", sharing, no_log, twice, twice, b"{}", code=1)
    assert said["sent"] == 5 and said["topics"] == {topics.GENERATIONS.name: 5}
    assert [(bad["line"], bad["reason"]) for bad in said["bad"]] == [(2, "malformed"), (7, "unknown_type")]

    books = await hands.json("check")
    assert books["ok"] and (books["rated"], books["duplicates"], books["missing"]) == (4, 1, 0)
    assert "The books are right." in (await hands("check")).output

    generation = body(plain)
    for name in (generation["id"], "gen-77"):
        told = await hands.json("explain", name)
        assert told["generation_id"] == generation["id"]
    tokens = generation["data"]["tokens"]
    amount = tokens["input"] * 10**6 + tokens["output"] * 3 * 10**6
    assert told["amount_pico"] == told["exact_pico"] == str(amount)
    assert [(line["unit"], line["unit_price_usd"]) for line in told["lines"]] == [
        ("input", "0.000001"), ("output", "0.000003"),
    ]  # fmt: skip
    booked = told["booked"]
    assert booked["line"]["amount_pico"] == str(amount)
    assert sum(int(entry["amount_pico"]) for entry in booked["journal"]["entries"]) == 0
    text = (await hands("explain", generation["id"])).output
    for part in (str(amount), "half-even", "purchased", "revenue", "block", told["price_version"]):
        assert part in text, f"{part} is not in\n{text}"
    assert "sharing" in (await hands("explain", body(sharing)["id"])).output
    assert "no such generation" in (await hands("explain", NO_ID, code=1)).output
    assert "log retention 0" in (await hands("explain", body(no_log)["id"], code=4)).output

    told = await hands.json("balance", "ws-1")
    assert told["balance_pico"] == str(gateway.balance("ws-1"))
    assert "balance" in (await hands("balance", "ws-1")).output
    assert "no such workspace" in (await hands("balance", "nobody", code=1)).output

    await hands.mesh.fetch("metering", "UPDATE mesh_counter SET value = value + 1 WHERE name = 'rated' RETURNING part")
    wrong = await hands("check", code=1)
    assert "The books are WRONG." in wrong.output and "in more than one class" in wrong.output


async def test_the_quarantine_is_seen_and_released(hands: Hands) -> None:
    gateway = hands.gateway
    waiting = [gateway.generation("ws-1", model="next-model", counted=False) for _ in range(3)]
    await hands.emit(*waiting)
    told = await hands.json("quarantine", "list")
    assert [(row["reason"], row["model"], row["n"]) for row in told["counts"]] == [("unknown_model", "next-model", 3)]
    numbers = [row["id"] for row in told["rows"]]
    assert {row["event_id"] for row in told["rows"]} == {body(event)["id"] for event in waiting}
    assert "next-model" in (await hands("quarantine", "list")).output
    assert "unknown_model" in (await hands("explain", body(waiting[0])["id"])).output

    assert "waits still: unknown_model" in (await hands("quarantine", "release", str(numbers[0]), code=1)).output
    assert "nothing in the quarantine" in (await hands("quarantine", "release", "999", code=1)).output
    told = await hands.json("quarantine", "release", "--all", "--ticket", "T-1", code=1)
    assert told == {"released": 0, "waiting": 3}

    # The price comes, and all of it is released by itself.
    await hands.emit(gateway.price("next-model"))
    assert (await hands.json("quarantine", "list"))["counts"] == []
    # What is too old waits for a person, who may release it.
    old = gateway.generation("ws-1", at_ms=int(time.time() - 12 * 86_400) * 1000)
    await hands.emit(old)
    (row,) = (await hands.json("quarantine", "list"))["rows"]
    assert row["reason"] == "stale"
    assert await hands.json("quarantine", "release", "--all", code=1) == {"released": 0, "waiting": 1}
    told = await hands.json("quarantine", "release", str(row["id"]))
    assert told == {"id": row["id"], "released": True, "waiting": None}
    await hands.mesh.idle()
    assert (await hands.json("check"))["ok"]
    commands = await hands.mesh.fetch(
        "metering", "SELECT next_offset FROM mesh_cursor WHERE topic = $1", topics.COMMANDS.name
    )
    assert commands[0]["next_offset"] >= 4


async def test_dead_letters_are_seen_and_sent_again(hands: Hands) -> None:
    gateway, mesh = hands.gateway, hands.mesh
    good = gateway.generation("ws-1")
    undeclared = json.dumps(body(good) | {"prompt": "what a person wrote"}).encode()
    await gateway.send(mesh.env, [
        Sent(topics.GENERATIONS, b"a", b"not an event", []), Sent(topics.GENERATIONS, good.key, undeclared, good.headers),
    ])  # fmt: skip
    await mesh.idle()
    rows = {row["reason"]: row for row in await hands.json("dead-letters", "list")}
    assert set(rows) == {"malformed", "undeclared_field"}
    assert {row["service"] for row in rows.values()} == {"metering"}
    assert await hands.json("dead-letters", "list", "--service", "billing") == []
    assert await hands.json("dead-letters", "list", "--topic", topics.PRICES.name) == []
    assert len(await hands.json("dead-letters", "list", "--limit", "1")) == 1
    assert "undeclared_field" in (await hands("dead-letters", "list")).output

    number = str(rows["undeclared_field"]["id"])
    told = await hands.json("dead-letters", "show", number)
    assert "prompt (" in told["detail"] and "a person wrote" not in json.dumps(told)
    assert json.loads(told["payload"])["id"] == body(good)["id"]
    assert "ce_source" in (await hands("dead-letters", "show", number)).output

    told = await hands.json("dead-letters", "replay", number, "--ticket", "T-7")
    assert (told["ordered"], told["replayed"]) == (1, 1)
    assert "is replayed" in (await hands("dead-letters", "replay", number, code=1)).output
    again = await hands("dead-letters", "replay", "--all", code=1)
    assert "0 of 1 dead letters are handled now." in again.output
    assert "failed again: malformed" in again.output
    assert "no dead letter 999" in (await hands("dead-letters", "show", "999", code=1)).output
    await mesh.idle()
    books = await hands.json("check")
    assert books["ok"] and (books["rated"], books["dead_lettered"]) == (1, 1)


async def test_parked_records_are_released(hands: Hands) -> None:
    """By the operator's command, once what made them fail is mended: here, a payment that nothing is wrong with."""
    gateway, mesh = hands.gateway, hands.mesh
    payment = gateway.payment("ws-parked", 7)
    await mesh.fetch(
        "billing",
        """INSERT INTO mesh_parked (grp, topic, key, part, record_offset, record_ms, headers, payload, reason, parked_at)
           VALUES ($1, $2, $3, 0, 0, 0, $4, $5, 'handler_error', $6) RETURNING id""",
        f"steward.billing.{topics.PAYMENTS.name}", topics.PAYMENTS.name, payment.key, pack_headers([]), payment.value,
        datetime.now(UTC),
    )  # fmt: skip
    assert (
        "gateway.payments, mesh.commands only"
        in (await hands("dead-letters", "release", topics.ACCESS.name, "--service", "billing", code=2)).output
    )
    await hands("dead-letters", "release", topics.PAYMENTS.name, "--service", "billing", "--ticket", "T-8")

    async def released() -> bool:
        return not await mesh.value("billing", "SELECT count(*) FROM mesh_parked")

    await mesh.until(released, 20, "the parked payment is handled")
    assert (await hands.json("balance", "ws-parked"))["balance_pico"] == str(7 * 10**12)


async def test_cursors_are_seen_and_moved(hands: Hands) -> None:
    gateway, mesh = hands.gateway, hands.mesh
    await hands.emit(*(gateway.generation() for _ in range(40)))
    topic = topics.GENERATIONS.name
    to = ("--service", "metering", "--topic", topic)
    places = [row for row in await hands.json("cursors", "list", "--service", "metering") if row["topic"] == topic]
    assert len(places) == topics.GENERATIONS.partitions
    assert all(row["lag"] == 0 and row["log_start"] <= row["next_offset"] == row["log_end"] for row in places)
    assert topic in (await hands("cursors", "list")).output

    told = await hands.json("cursors", "rewind", *to, "--to", "start", "--dry-run")
    assert told["dry_run"] and [c["moved_to"] for c in told["cursors"]] == [p["log_start"] for p in places]
    unmoved = [row for row in await hands.json("cursors", "list", "--service", "metering") if row["topic"] == topic]
    assert unmoved == places, "a dry run moves nothing"
    shown = await hands("cursors", "rewind", *to, "--to", "start")
    assert "again" in shown.output and "Moved" in shown.output
    moved = [row for row in await hands.json("cursors", "list", "--service", "metering") if row["topic"] == topic]
    assert sum(row["lag"] for row in moved) == 40
    assert {row["owner"] for row in moved} == {"operator:tester"}
    await hands.restart_metering()
    await mesh.idle()
    books = await hands.json("check")
    assert books["ok"] and (books["emitted"], books["duplicates"]) == (40, 0), "what was read again had no effect"
    moved = [row for row in await hands.json("cursors", "list", "--service", "metering") if row["topic"] == topic]
    assert sum(row["lag"] for row in moved) == 0

    place = max(places, key=lambda p: p["log_end"] - p["log_start"])  # one with records of this test
    one = (*to, "--partition", str(place["partition"]))
    end, start = place["log_end"], place["log_start"]
    ahead = await hands("cursors", "rewind", *one, "--to", str(end + 1), code=1)
    assert f"ends at {end}" in ahead.output
    assert f"reads on at {end}" in (await hands("cursors", "skip", *one, "--to", str(start), code=1)).output
    told = await hands.json("cursors", "rewind", *one, "--to-time", "2020-01-01T00:00:00Z", "--dry-run")
    assert [c["moved_to"] for c in told["cursors"]] == [start]
    told = await hands.json("cursors", "rewind", *one, "--to-time", "2099-01-01T00:00:00Z", "--dry-run")
    assert [c["moved_to"] for c in told["cursors"]] == [end]
    told = await hands.json("cursors", "skip", *one, "--to", "end")
    assert [c["moved_to"] for c in told["cursors"]] == [end]
    assert (
        "has no such cursor" in (await hands("cursors", "rewind", *to, "--partition", "99", "--to", "1", code=1)).output
    )
    assert "stays" in (await hands("cursors", "rebase", *one, "--to", "end", "--dry-run")).output

    # The log's start moves on: what lies below is gone, and an offset there is refused.
    client = AIOKafkaAdminClient(**KafkaSettings.from_env(mesh.env).client())
    await client.start()
    try:
        await client.delete_records({TopicPartition(topic, place["partition"]): RecordsToDelete(end)})
    finally:
        await client.close()
    low = await hands("cursors", "rewind", *one, "--to", str(start), code=1)
    assert f"starts at {end}: records below it are gone" in low.output


async def test_a_database_that_is_away_is_no_verdict(world: World, tmp_path: Path) -> None:
    away = "postgresql://nobody@127.0.0.1:1/none"
    env = {**world.env, "STEWARD_HOME": str(tmp_path), "STEWARD_AUDITOR_BILLING_DATABASE_URL": away}
    answer = await asyncio.to_thread(CliRunner().invoke, main, ["check", "--json"], env=env)
    assert answer.exit_code == 2
    said = json.loads(answer.stdout)
    assert not said["ok"] and "could not be reached" in said["undetermined"][0]
