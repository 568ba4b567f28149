"""Content never enters: a prompt that a platform sends by mistake is in no file that the mesh writes."""

from __future__ import annotations

import asyncio
import json
from typing import Any

import pytest

from shared.contract import topics
from tests.support.gateway import Gateway, Sent, body
from tests.support.raw_files import holding, raw_folders
from tests.support.world import Mesh

PROMPT = "canary-prompt: why does Anna never answer"
GATEWAY_TOPICS = {topic.name for topic in topics.TOPICS if set(topic.writers) & {"gateway", "operator"}}


def with_content(record: Sent, way: tuple[str, ...], value: Any) -> Sent:
    """The record with a field more that nobody declared."""
    event = body(record)
    place = event
    for name in way[:-1]:
        place = place.setdefault(name, {})
    place[way[-1]] = value
    return Sent(record.topic, record.key, json.dumps(event).encode(), record.headers)


@pytest.mark.promise(28)
async def test_a_prompt_is_in_no_file_of_the_mesh(mesh: Mesh, seed: int) -> None:
    gateway = Gateway(seed)
    await asyncio.gather(mesh.start("metering"), mesh.start("billing"))
    await mesh.owned()
    ways: list[tuple[tuple[str, ...], Any]] = [
        (("prompt",), PROMPT),
        (("data", "prompt"), PROMPT),
        (("data", "messages"), [{"role": "user", "content": PROMPT}]),
        (("data", "tokens", PROMPT), 7),
        (("data", "finish_reason"), PROMPT),
    ]
    bad = [with_content(gateway.generation("ws-1", counted=False), way, value) for way, value in ways]
    bad += [with_content(gateway.payment("ws-1", 1), ("data", "memo"), PROMPT)]
    good = gateway.generation("ws-control")
    good.headers.append(("x-prompt", PROMPT.encode()))
    await gateway.send(mesh.env, [gateway.price(), *bad, good])
    await mesh.idle()
    refused = "SELECT count(*) FROM mesh_dead_letter"
    assert [await mesh.value(room, refused) for room in ("metering", "billing")] == [5, 1]
    folders = await raw_folders(mesh)
    assert not holding(folders["postgres"], PROMPT) and not holding(folders["logs"], PROMPT)
    # What a platform puts on its own topics is there until they are trimmed; the mesh's own never have it.
    found = {path.parent.name.rpartition("-")[0] for path in holding(folders["kafka"], PROMPT)}
    assert found and found <= GATEWAY_TOPICS, found - GATEWAY_TOPICS
    # The search finds what is there, also in the mesh's own.
    assert holding(folders["postgres"], "ws-control")
    assert {path.parent.name.rpartition("-")[0] for path in holding(folders["kafka"], "ws-control")} - GATEWAY_TOPICS
