"""The contract from another language: the JavaScript example against the mesh."""

from __future__ import annotations

import asyncio
import json
import os
import subprocess

from aiokafka.partitioner import murmur2

from shared.contract.topics import GENERATIONS
from tests.support.books import assert_books
from tests.support.gateway import Gateway, body
from tests.support.node import example
from tests.support.platform import arrived, numbers
from tests.support.world import Mesh


async def test_generations_from_javascript_are_charged(mesh: Mesh, seed: int) -> None:
    gateway, n = Gateway(seed), 1_200
    await gateway.send(mesh.env, [gateway.price()])
    usage = [body(gateway.generation())["data"] for _ in range(n)]
    node, script = await asyncio.to_thread(example)

    def run() -> subprocess.CompletedProcess[str]:
        lines = "".join(json.dumps(one) + "\n" for one in usage)
        return subprocess.run(
            [node, script, "gateway-js"], input=lines, capture_output=True, text=True, timeout=60, check=False,
            env=os.environ | {"STEWARD_KAFKA_BOOTSTRAP_SERVERS": mesh.env["STEWARD_KAFKA_BOOTSTRAP_SERVERS"]},
        )  # fmt: skip

    done = await asyncio.to_thread(run)
    assert done.returncode == 0, done.stderr[-2000:]
    records = await arrived(mesh.env["STEWARD_KAFKA_BOOTSTRAP_SERVERS"], GENERATIONS)
    assert sorted(done.stdout.split()) == sorted(record.event.id for record in records)
    assert len({record.event.source for record in records}) == 1
    assert numbers(records, records[0].event.source) == list(range(1, n + 1))
    for record in records:
        assert record.key == record.event.id.encode() and record.partition == (murmur2(record.key) & 0x7FFFFFFF) % 12
        assert record.headers["ce_sequence"] == record.event.sequence.encode()
    await mesh.start("billing")
    await mesh.start("metering")
    await mesh.owned()
    await mesh.idle()
    gateway.records += n
    await assert_books(mesh, gateway)
    rows = await mesh.fetch("metering", "SELECT highest, seen FROM mesh_source WHERE source LIKE 'gateway-js:%'")
    assert max(row["highest"] for row in rows) == sum(row["seen"] for row in rows) == n, "missing is 0"
