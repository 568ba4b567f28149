"""The emitter without a broker: what it takes, refuses, numbers and keeps. Nothing listens at the port it is given."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import threading
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest

from shared.contract import events, topics
from shared.contract.base import Event
from shared.contract.codec import Codec
from shared.contract.examples import example
from shared.contract.ids import UUID7, id_ms
from shared.emitter import Closed, Emitter, Full, Refused
from shared.emitter import emitter as module
from shared.emitter.emitter import EVENTS
from shared.emitter.journal import take_over
from shared.emitter.sender import GUARANTEES

GENERATION = events.GenerationCompleted.TYPE
DATA: dict[str, Any] = example(events.GenerationCompleted)["data"]
SMALL = 2 * module.EVENT_BYTES_MAX


def emitter(spool: Path, **settings: Any) -> Emitter:
    all_settings: dict[str, Any] = {"bootstrap": "127.0.0.1:1", "spool": spool, "exit_seconds": 0.0} | settings
    return Emitter("gw", **all_settings)


def kept(spool: Path) -> list[dict[str, Any]]:
    """What a closed emitter left, in order."""
    found = []
    for journal in take_over(spool):
        while (more := journal.read()) is not None:
            found += [
                {"topic": topic.decode(), "key": key.decode(), "number": int(number), **json.loads(value)}
                for topic, key, number, value in more[0]
            ]
        journal.close()
    return found


@pytest.mark.parametrize("model", EVENTS, ids=lambda model: model.TYPE)
def test_every_event_is_kept_as_the_mesh_reads_it(tmp_path: Path, model: type[Event]) -> None:
    body = example(model)
    topic = next(topic for topic in topics.TOPICS if model in topic.events)
    with emitter(tmp_path) as e:
        made = e.emit(model.TYPE, body["data"], subject=body["subject"])
        source = e.source
    (record,) = kept(tmp_path)
    assert record.pop("topic") == topic.name and record.pop("number") == 1
    key = record.pop("key")
    event = Codec(topic).decode(json.dumps(record).encode())
    assert topic.key_of is not None and key == topic.key_of(event)
    assert (event.id, event.source, event.sequence, event.subject) == (made, source, "1", body["subject"])
    assert record["data"] == body["data"]


def test_id_and_time_are_those_of_now_or_as_given(tmp_path: Path) -> None:
    mine = "019ab7d4-1e5a-7f00-8a1b-2c3d4e5f6a7b"
    with emitter(tmp_path) as e:
        before = datetime.now(UTC)
        ids = [e.emit(GENERATION, DATA) for _ in range(200)]
        after = datetime.now(UTC)
        assert e.emit(GENERATION, DATA, id=mine, time=datetime(2026, 11, 24, 22, tzinfo=UTC)) == mine
        e.emit(GENERATION, DATA, time="2026-11-24T21:00:00+01:00", subject="other")
    *made, given, other = kept(tmp_path)
    assert len(set(ids)) == 200 and all(UUID7.fullmatch(one) for one in ids)
    assert all(int(before.timestamp() * 1000) <= id_ms(one) <= after.timestamp() * 1000 for one in ids)
    assert all(record["subject"] == DATA["workspace"] for record in made)
    assert all(before.timestamp() - 1 < datetime.fromisoformat(r["time"]).timestamp() for r in made)
    assert (given["id"], given["time"]) == (mine, "2026-11-24T22:00:00.000Z")
    assert (other["time"], other["subject"]) == ("2026-11-24T21:00:00+01:00", "other")


@pytest.mark.parametrize(
    ("kind", "changes", "options", "reason", "field"),
    [
        (GENERATION, {"prompt": "hello"}, {}, "undeclared_field", "data.prompt"),
        (GENERATION, {"generation_ref": "4111111111111111"}, {}, "card_number", "data.generation_ref"),
        (GENERATION, {"account": "acc-4111-1111-1111-1111"}, {}, "card_number", "data.account"),
        (GENERATION, {}, {"subject": "378282246310005"}, "card_number", "subject"),
        (GENERATION, {"input_tokens": 1}, {}, "invalid", "data"),
        (GENERATION, {"input_tokens": 4111111111111111}, {}, "invalid", "data.input_tokens"),
        (GENERATION, {"account": "someone@example.org"}, {}, "invalid", "data.account"),
        (GENERATION, {"tier": "secret-tier"}, {}, "invalid", "data.tier"),
        (GENERATION, {"account": {1, 2}}, {}, "invalid", "data"),
        (GENERATION, {"account": "\udc80"}, {}, "invalid", "data"),
        (GENERATION, {"workspace": None}, {}, "invalid", "subject"),
        (GENERATION, {}, {"id": "019AB7D4-1e5a-7f00-8a1b-2c3d4e5f6a7b"}, "invalid", "id"),
        (GENERATION, {}, {"time": datetime(2026, 11, 24)}, "invalid", "time"),  # noqa: DTZ001 -- what is refused
        (GENERATION, {}, {"time": "yesterday"}, "invalid", "time"),
        ("usage.rated.v1", {}, {}, "unknown_type", GENERATION),
        ("generation.completed.v2", {}, {}, "unknown_type", GENERATION),
    ],
)  # fmt: skip
def test_what_is_refused_is_named_without_its_value(
    tmp_path: Path, kind: str, changes: dict[str, Any], options: dict[str, Any], reason: str, field: str
) -> None:
    with emitter(tmp_path) as e:
        with pytest.raises(Refused) as caught:
            e.emit(kind, {**DATA, **changes}, **options)
        assert caught.value.reason == reason and field in caught.value.detail
        for value in [*changes.values(), *options.values()]:
            assert value is None or str(value) not in str(caught.value)
        assert caught.value.__cause__ is None
        e.emit(GENERATION, DATA)
        assert (e.stats().refused, e.stats().accepted) == (1, 1)
    assert [record["number"] for record in kept(tmp_path)] == [1], "what is refused uses no number"


def test_amounts_are_not_taken_for_cards(tmp_path: Path) -> None:
    payment = {"account": "a", "workspace": "w", "payment": "pay-1", "credit_pico": "4111111111111111"}
    with emitter(tmp_path) as e:
        e.emit(events.PaymentSettled.TYPE, payment)


def test_an_event_that_no_topic_takes_is_too_large(tmp_path: Path) -> None:
    tiers = [{"above_input_tokens": n, "prices": {"input": "0.000001"}} for n in range(1, 10_000)]
    with emitter(tmp_path) as e, pytest.raises(Refused, match="too_large"):
        e.emit(
            events.PricePublished.TYPE, example(events.PricePublished)["data"] | {"context_tiers": tiers}, subject="p"
        )


def test_the_same_id_again_changes_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "_IDS_REMEMBERED", 3)
    ids = [f"019ab7d4-1e5a-7f00-8a1b-2c3d4e5f6a7{n}" for n in range(4)]
    with emitter(tmp_path) as e:
        for one in ids:
            assert e.emit(GENERATION, DATA, id=one) == e.emit(GENERATION, DATA | {"tier": "flex"}, id=one) == one
        assert (e.stats().accepted, e.stats().repeated) == (4, 4)
        e.emit(GENERATION, DATA, id=ids[0])
        assert e.stats().accepted == 5, "only so many are remembered"
    assert [record["id"] for record in kept(tmp_path)] == [*ids, ids[0]]


def test_threads_share_one_gapless_sequence_for_each_topic(tmp_path: Path) -> None:
    grant = example(events.CreditGranted)["data"]
    with emitter(tmp_path) as e:

        def work() -> None:
            for n in range(500):
                e.emit(GENERATION, DATA)
                if n % 5 == 0:
                    e.emit(events.CreditGranted.TYPE, grant)

        threads = [threading.Thread(target=work) for _ in range(4)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    found = kept(tmp_path)
    for topic, n in ((topics.GENERATIONS.name, 2000), (topics.PAYMENTS.name, 400)):
        mine = [record for record in found if record["topic"] == topic]
        assert [record["number"] for record in mine] == list(range(1, n + 1))
        assert all(record["sequence"] == str(record["number"]) for record in mine)
        assert len({record["id"] for record in mine}) == n


def fill(emit: Callable[[], object]) -> int:
    taken = 0
    with pytest.raises(Full):
        while True:
            emit()
            taken += 1
    return taken


def test_a_full_spool_refuses_and_uses_no_number(tmp_path: Path) -> None:
    with emitter(tmp_path, spool_max_bytes=SMALL) as e:
        taken = fill(lambda: e.emit(GENERATION, DATA))
        for _ in range(3):
            with pytest.raises(Full):
                e.emit(GENERATION, DATA)
        stats = e.stats()
        assert (stats.accepted, stats.full, stats.pending) == (taken, 4, taken)
        assert SMALL - 2_000 < stats.spool_bytes <= SMALL
    assert sum(path.stat().st_size for path in tmp_path.rglob("*.log")) == stats.spool_bytes
    assert [record["number"] for record in kept(tmp_path)] == list(range(1, taken + 1))


def test_a_full_spool_of_a_dead_process_counts(tmp_path: Path) -> None:
    with emitter(tmp_path, spool_max_bytes=SMALL) as e:
        fill(lambda: e.emit(GENERATION, DATA))
        size = e.stats().spool_bytes
    with emitter(tmp_path, spool_max_bytes=SMALL) as e:
        assert e.stats().leftover_bytes == e.stats().spool_bytes == size
        with pytest.raises(Full):
            e.emit(GENERATION, DATA | {"generation_ref": "r" * 64, "finish_reason": "s" * 64, "model": "m" * 128})


def test_waiting_for_room_ends_in_time(tmp_path: Path) -> None:
    with emitter(tmp_path, spool_max_bytes=SMALL, when_full="wait", wait_seconds=0.05) as e:
        fill(lambda: e.emit(GENERATION, DATA))
        assert e.stats().full == 1


async def test_awaiting_room_leaves_the_loop_free(tmp_path: Path) -> None:
    async with emitter(tmp_path, spool_max_bytes=SMALL, when_full="wait", wait_seconds=30.0) as e:
        done = asyncio.Event()

        async def producer() -> None:
            with pytest.raises(Closed):
                while True:
                    await e.aemit(GENERATION, DATA)
            done.set()

        task = asyncio.create_task(producer())
        while not e._waiters:
            await asyncio.sleep(0)
        assert not done.is_set() and e.stats().full == 0
        await asyncio.to_thread(e.close)
        await asyncio.wait_for(task, 10)


def test_a_full_disk_is_a_full_spool(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with emitter(tmp_path) as e:
        e.emit(GENERATION, DATA)
        with monkeypatch.context() as patch:
            patch.setattr(os, "pwrite", lambda fd, data, at: 10)
            with pytest.raises(Full):
                e.emit(GENERATION, DATA)
        e.emit(GENERATION, DATA)
        assert (e.stats().accepted, e.stats().full) == (2, 1)
    assert [record["number"] for record in kept(tmp_path)] == [1, 2]


def test_fsync_always_is_before_the_return(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    synced: list[int] = []
    monkeypatch.setattr(os, "fsync", lambda fd: synced.append(os.fstat(fd).st_size))
    with emitter(tmp_path, fsync="always") as e:
        for _ in range(3):
            e.emit(GENERATION, DATA)
            assert synced[-1] == e.stats().spool_bytes


def test_fsync_by_the_sender(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    synced = threading.Event()
    monkeypatch.setattr(os, "fsync", lambda fd: synced.set())
    with emitter(tmp_path, fsync="never") as e:
        e.emit(GENERATION, DATA)
    assert not synced.is_set()
    with emitter(tmp_path, fsync="interval") as e:
        e.emit(GENERATION, DATA)
        assert synced.wait(5)


def test_closed_means_closed(tmp_path: Path) -> None:
    e = emitter(tmp_path)
    e.emit(GENERATION, DATA)
    assert not e.close() and not e.close()
    with pytest.raises(Closed):
        e.emit(GENERATION, DATA)
    assert len(kept(tmp_path)) == 1


def test_an_emitter_without_events_leaves_nothing(tmp_path: Path) -> None:
    with emitter(tmp_path) as e:
        assert e.flush(0)
    assert [path.name for path in tmp_path.iterdir()] == ["lock"]


@pytest.mark.filterwarnings("ignore:.*fork:DeprecationWarning")
def test_a_forked_child_is_told_and_ends(tmp_path: Path) -> None:
    with emitter(tmp_path) as e:
        e.emit(GENERATION, DATA)
        reader, writer = os.pipe()
        child = os.fork()
        if child == 0:
            signal.alarm(20)
            try:
                e.emit(GENERATION, DATA)
            except Closed as error:
                os.write(writer, str(error).encode())
                os.write(writer, b", and it ends" if not e.flush(0) and not e.close() else b"")
            finally:
                os._exit(0)
        os.close(writer)
        said = b""
        while piece := os.read(reader, 1000):
            said += piece
        os.close(reader)
        os.waitpid(child, 0)
        assert said.decode().endswith("after the fork, and it ends")
        e.emit(GENERATION, DATA)
        assert e.stats().accepted == 2


@pytest.mark.parametrize(
    "settings",
    [
        {"fsync": "sometimes"},
        {"when_full": "drop"},
        {"spool_max_bytes": 1000},
        {"kafka": {"acks": "1"}},
        {"kafka": {"message.timeout.ms": 1000}},
        {"kafka": {"linger": 3}},
    ],
)
def test_settings_that_cannot_be(tmp_path: Path, settings: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match=next(iter(settings))):
        emitter(tmp_path, **settings)


@pytest.mark.parametrize("name", ["", "a b", "x" * 49, "4111111111111111"])
def test_names_that_cannot_be(tmp_path: Path, name: str) -> None:
    with pytest.raises(ValueError, match="name"):
        Emitter(name, bootstrap="127.0.0.1:1", spool=tmp_path)


def test_what_the_guarantees_rest_on() -> None:
    wanted = {"enable.idempotence": True, "acks": "all", "message.timeout.ms": 0, "partitioner": "murmur2_random"}
    assert wanted.items() <= GUARANTEES.items()
