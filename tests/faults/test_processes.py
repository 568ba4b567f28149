"""Real processes and real signals: kill -9, SIGSTOP past the session timeout, SIGTERM, under load.

The moments are exact: a proxy in front of PostgreSQL holds the process where the test wants it, and then the signal comes.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import random
import signal
import sys
from collections.abc import AsyncIterator
from urllib.parse import urlsplit

import pytest

from deploy.local.probe import get
from deploy.rooms import ROOMS
from shared.contract import topics
from tests.support.books import assert_books
from tests.support.gateway import Gateway
from tests.support.half_open import HalfOpen, at_the_commit, at_the_fence
from tests.support.processes import Load, Served, processes
from tests.support.proxy import through
from tests.support.world import SESSION_TIMEOUT_MS, Mesh

# Small batches, so that there are many of them.
BATCH = {"STEWARD_BATCH_RECORDS": "200"}
SESSION_SECONDS = SESSION_TIMEOUT_MS / 1000
# What a process may take beyond its drain before it is killed (STEWARD_DRAIN_SECONDS and a pod's grace).
GRACE_SECONDS = 10
# Longer than any wait of a test: who has to wait for a session to end does not get by.
ENDLESS_SESSION = {"STEWARD_SESSION_TIMEOUT_MS": "60000"}


@contextlib.asynccontextmanager
async def _held(mesh: Mesh, room: str) -> AsyncIterator[tuple[HalfOpen, dict[str, str]]]:
    """A proxy in front of a room's database, and the setting that leads through it."""
    url = mesh.env[f"STEWARD_{room.upper()}_DATABASE_URL"]
    async with HalfOpen("127.0.0.1", urlsplit(url).port or 0) as proxy:
        yield proxy, {f"STEWARD_{room.upper()}_DATABASE_URL": through(url, proxy.port)}


async def _reached(proxy: HalfOpen) -> None:
    async with asyncio.timeout(20):
        await proxy.held.wait()


async def _begin(mesh: Mesh, gateway: Gateway) -> None:
    await gateway.send(mesh.env, [gateway.price()])
    await gateway.send(mesh.env, [gateway.payment(f"ws-{n}", 10) for n in range(gateway.workspaces)])


async def test_stopped_past_the_session_timeout_and_woken(mesh: Mesh, seed: int) -> None:
    """Case 7: the other process takes over, the woken one is refused its batch, nothing is doubled."""
    gateway = Gateway(seed)
    async with processes(mesh) as run, _held(mesh, "metering") as (proxy, held):
        await _begin(mesh, gateway)
        billing, victim, other = await asyncio.gather(
            run.start("billing"), run.start("metering", BATCH | held), run.start("metering", BATCH)
        )
        assert await victim.metric("steward_fenced_total") == 0
        async with Load(gateway, mesh.env):
            proxy.hold_at(at_the_fence)
            await _reached(proxy)
            victim.pause()
            await run.owns_all(other, topics.GENERATIONS.name, within=SESSION_SECONDS + 14)
            proxy.release()
            victim.resume()
            await mesh.until(lambda: _fenced(victim), 20, "the woken process was fenced")
        await run.idle(billing, victim, other)
        await assert_books(mesh, gateway)
        assert victim.running, "it goes on: being fenced once is no reason to end"


async def _fenced(served: Served) -> bool:
    return await served.metric("steward_fenced_total") > 0


async def test_killed_in_mid_batch_and_restarted(mesh: Mesh, seed: int) -> None:
    """Case 5, in both rooms at once: everything of the batch is in the database but the COMMIT."""
    gateway = Gateway(seed)
    async with (
        processes(mesh) as run,
        _held(mesh, "metering") as (at_metering, held_metering),
        _held(mesh, "billing") as (at_billing, held_billing),
    ):
        await _begin(mesh, gateway)
        billing, victim, other = await asyncio.gather(
            run.start("billing", held_billing),
            run.start("metering", BATCH | held_metering),
            run.start("metering", BATCH),
        )
        async with Load(gateway, mesh.env):
            # Billing first: a metering process that is held also holds the relay, and billing would wait for work.
            for proxy in (at_billing, at_metering):
                proxy.hold_at(at_the_commit)
                await _reached(proxy)
            await asyncio.gather(victim.kill(), billing.kill())
            for proxy in (at_metering, at_billing):
                proxy.cut()
            # As a supervisor does; ready is who has claimed, and that takes the end of the dead ones' sessions.
            await asyncio.gather(billing.start(), victim.start())
        await run.idle(billing, victim, other)
        await assert_books(mesh, gateway)


async def test_terminated_under_load(mesh: Mesh, seed: int) -> None:
    """Case 17: the batch in hand is finished and the group left, whatever further signals come."""
    gateway = Gateway(seed)
    async with processes(mesh) as run, _held(mesh, "metering") as (proxy, held):
        await _begin(mesh, gateway)
        billing, leaving, other = await asyncio.gather(
            run.start("billing"),
            run.start("metering", BATCH | ENDLESS_SESSION | held),
            run.start("metering", BATCH | ENDLESS_SESSION),
        )
        async with Load(gateway, mesh.env):
            proxy.hold_at(at_the_commit)
            await _reached(proxy)
            leaving.terminate()
            # Once it answers, its loop has turned, and the first signal has been taken.
            await get(leaving.port, "/livez")
            leaving.terminate()
            await get(leaving.port, "/livez")
            assert leaving.running, "it did not wait for the batch in hand"
            proxy.release()
            assert await leaving.ended(within=25) == 0
            await run.owns_all(other, topics.GENERATIONS.name, within=15)
        await run.idle(billing, other)
        await assert_books(mesh, gateway)
        billing.terminate()
        other.terminate()
        assert [await billing.ended(within=25), await other.ended(within=25)] == [0, 0]


async def test_terminated_while_nothing_answers(mesh: Mesh, seed: int) -> None:
    """Case 12: neither database nor Kafka answers; it ends in its grace time, and its batch is read again."""
    gateway = Gateway(seed)
    host, port = mesh.env["STEWARD_KAFKA_BOOTSTRAP_SERVERS"].split(":")
    drain = 2
    async with (
        processes(mesh) as run,
        _held(mesh, "metering") as (database, held),
        HalfOpen(host, int(port), kafka=True) as kafka,
    ):
        await _begin(mesh, gateway)
        held |= {"STEWARD_KAFKA_BOOTSTRAP_SERVERS": f"127.0.0.1:{kafka.port}", "STEWARD_DRAIN_SECONDS": str(drain)}
        billing, victim = await asyncio.gather(run.start("billing"), run.start("metering", held))
        database.hold_at(at_the_commit)
        await gateway.send(mesh.env, gateway.some(300))
        await _reached(database)
        kafka.hold()
        victim.terminate()
        assert await victim.ended(within=drain + GRACE_SECONDS) == 0
        database.cut()
        await run.idle(billing, await run.start("metering"))
        await assert_books(mesh, gateway)


@pytest.mark.parametrize("room", [room for room in ROOMS if room != "audit"])
async def test_a_drain_of_zero_is_refused_at_start(mesh: Mesh, room: str) -> None:
    """A drain of 0 would cut a batch in its middle at every deployment."""
    process = await asyncio.create_subprocess_exec(
        sys.executable, "-m", "deploy.serve", room,
        env={**os.environ, **mesh.env, "STEWARD_DRAIN_SECONDS": "0"},
        stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.STDOUT,
    )  # fmt: skip
    try:
        async with asyncio.timeout(20):
            said, _ = await process.communicate()
    finally:
        if process.returncode is None:
            process.kill()
            await process.wait()
    assert process.returncode == 2
    assert said.decode().strip().splitlines() == [
        "STEWARD_DRAIN_SECONDS must be above 0: without a drain a batch is cut in its middle"
    ]


@pytest.mark.exhaustive
@pytest.mark.timeout(300)
async def test_random_signals(mesh: Mesh, seed: int) -> None:
    """Three processes, six faults each to a victim and at a moment that the seed chooses."""
    chosen = random.Random(seed)
    gateway = Gateway(seed)
    async with processes(mesh) as run:
        await _begin(mesh, gateway)
        served = list(
            await asyncio.gather(run.start("billing"), run.start("metering", BATCH), run.start("metering", BATCH))
        )
        async with Load(gateway, mesh.env):
            for n in range(6):
                victim, number = chosen.choice(served), chosen.choice((signal.SIGKILL, signal.SIGSTOP, signal.SIGTERM))
                moment, frozen = chosen.uniform(0, 3), chosen.uniform(1, 1.6 * SESSION_SECONDS)
                print(
                    f"seed {seed}, fault {n}: {number.name} to {victim.log.name} after {moment:.2f} s", file=sys.stderr
                )
                await asyncio.sleep(moment)
                if number is signal.SIGSTOP:
                    victim.pause()
                    await asyncio.sleep(frozen)
                    victim.resume()
                    continue
                await (victim.kill() if number is signal.SIGKILL else victim.stop())
                await victim.start()
        await run.idle(*served, within=90)
        await assert_books(mesh, gateway)
