"""A mesh that is looked at: services as processes that trace and log, beside our receiver of spans."""

from __future__ import annotations

import asyncio
import json
import secrets
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner

from deploy.cli import main
from deploy.local import spans
from deploy.local.observers import TracesSink
from deploy.local.spans import Link, Span, Ways, walk
from shared.contract import topics
from tests.integration.test_canaries import WANTED
from tests.support.canaries import CANARIES, everywhere
from tests.support.gateway import Gateway, body
from tests.support.processes import processes
from tests.support.world import Mesh

SERVICES = ("metering", "billing")
READ = (topics.GENERATIONS, topics.PAYMENTS)


def way(kept: list[Span], before: Link) -> list[tuple[str, str]]:
    """(service, span) of all that follows a span, in the tree's order."""
    ways = Ways(kept)
    return [(span.service, span.name) for span in walk(ways.steps(ways.after(before)))]


@pytest.mark.promise(9)
@pytest.mark.timeout(180)
async def test_an_event_is_followed_from_the_gateway_to_the_balance_and_nobodys_data_with_it(
    mesh: Mesh, tmp_path: Path, seed: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    gateway = Gateway(seed)
    folder = tmp_path / "traces"
    traces = TracesSink(folder, log=tmp_path / "traces.log", die_with_parent=True)
    async with processes(mesh) as run:
        try:
            await traces.start()
            served = await asyncio.gather(*(run.start(room, traces.environment()) for room in SERVICES))
            # Some of each kind: all of them, in every room, are sent elsewhere.
            bad = [record for record in everywhere(gateway) if record.topic in READ][::5]
            for n, record in enumerate(bad):
                record.headers.append(("traceparent", list(CANARIES.values())[n % len(CANARIES)].encode()))
            await gateway.send(mesh.env, [gateway.price(), gateway.payment("ws-0", 10), *bad])
            await run.idle(*served)
            event = gateway.generation("ws-0")
            trace, begun = secrets.token_hex(16), secrets.token_hex(8)
            event.headers.append(("traceparent", f"00-{trace}-{begun}-01".encode()))
            await gateway.send(mesh.env, [event])
            expected = [
                ("metering", f"process {topics.GENERATIONS.name}"),
                ("metering", f"send {topics.USAGE_RATED.name}"),
                ("billing", f"process {topics.USAGE_RATED.name}"),
                ("billing", f"send {topics.BALANCES.name}"),
            ]

            async def traced() -> bool:
                return way(spans.read(folder), Link(trace, begun)) == expected

            await mesh.until(traced, 30, "the event's way is traced")
            # By the event's id, as a person asks: its record is found in the topic, and by it the same way.
            for name, value in {**mesh.env, "STEWARD_HOME": str(tmp_path)}.items():
                monkeypatch.setenv(name, value)
            for asked in (["--event", str(body(event)["id"])], [trace]):
                answer = await asyncio.to_thread(CliRunner().invoke, main, ["trace", "--json", *asked])
                assert answer.exit_code == 0, answer.output
                assert [(span["service"], span["name"]) for span in json.loads(answer.output)] == expected
        finally:
            await traces.stop()
        logs = "".join(one.log.read_text() for one in served)
    lines: list[dict[str, Any]] = [json.loads(line) for line in logs.splitlines()]
    assert {line["service"] for line in lines} == set(SERVICES)
    text = {"logs": logs, "traces": (folder / spans.FILE).read_text()}
    assert topics.PAYMENTS.name in text["traces"], "there is nothing to look through"
    ids = [str(body(event)["id"]), "ws-0", "acc-ws-0"]
    for where, said in text.items():
        assert [name for name, found in WANTED.items() if found.search(said)] == [], where
        assert [name for name in ids if name in said] == [], where
