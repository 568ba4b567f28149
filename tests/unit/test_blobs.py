"""The blob stores: whole values under plain names, in pieces where they are large, and nothing outside of their place."""

from __future__ import annotations

import asyncio
import os
import shutil
import subprocess
import threading
from collections.abc import AsyncGenerator, Coroutine, Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
from obstore.store import LocalStore, ObjectStore

from deploy.local.ports import free_port
from shared.mesh.settings import Misconfigured
from shared.privacy import blobs as blobs_module
from shared.privacy.blobs import CHUNK, Blobs, BlobsAway, DirectoryBlobs, ObjectBlobs, Sink, open_blobs
from tests.support.ports import answers

KINDS = ("directory", "object", "s3")


@pytest.fixture(params=KINDS)
def blobs(request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Blobs]:
    """An empty store of each kind. S3 where a server for it is on the machine (versitygw serves a folder as S3 does)."""
    if request.param == "directory":
        yield DirectoryBlobs(tmp_path)
    elif request.param == "object":
        yield ObjectBlobs(LocalStore(tmp_path))
    else:
        program = shutil.which("versitygw")
        if program is None:
            pytest.skip("no S3 server on this machine: versitygw is not on PATH")
        (tmp_path / "bucket").mkdir()
        port = free_port()
        for name, value in {
            "ENDPOINT_URL": f"http://127.0.0.1:{port}", "REGION": "us-east-1", "ACCESS_KEY_ID": "access",
            "SECRET_ACCESS_KEY": "secret-of-a-test", "ALLOW_HTTP": "true",
        }.items():  # fmt: skip
            monkeypatch.setenv(f"AWS_{name}", value)
        server = subprocess.Popen(
            [program, "--access", "access", "--secret", "secret-of-a-test", "--port", f"127.0.0.1:{port}", "posix", tmp_path],
            stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
        )  # fmt: skip
        try:
            answers(port)
            yield open_blobs("s3://bucket/some/prefix")
        finally:
            server.kill()
            server.wait()


async def test_what_is_put_is_there_until_it_is_deleted(blobs: Blobs) -> None:
    assert await blobs.names() == [] and await blobs.get("a/1/x") is None
    values = (("a/1/x", b"one"), ("a/2/x", b""), ("b/1/x", b"three"), ("a/1/x", b"four"), ("ab/1/x", b"five"))
    for name, value in values:
        await blobs.put(name, value)
    assert await blobs.names() == ["a/1/x", "a/2/x", "ab/1/x", "b/1/x"] and await blobs.names("a/1") == ["a/1/x"]
    assert (await blobs.get("a/1/x"), await blobs.get("a/2/x")) == (b"four", b"")
    assert (await blobs.size("a/1/x"), await blobs.size("a/2/x"), await blobs.size("a/3/x")) == (4, 0, None)
    for _ in range(2):
        await blobs.delete("a")
    assert await blobs.names() == ["ab/1/x", "b/1/x"]


async def test_a_large_value_goes_and_comes_in_pieces(blobs: Blobs) -> None:
    piece = bytes(range(256)) * 4_096  # 1 MB

    def fill(out: Sink) -> None:
        for _ in range(20):
            out.write(piece)

    await blobs.write("a/large", fill)
    assert await blobs.size("a/large") == 20 * len(piece)
    pieces = [found async for found in blobs.read("a/large")]
    assert b"".join(pieces) == piece * 20 and max(map(len, pieces)) < 20 * CHUNK
    assert b"".join([found async for found in blobs.read("a/large", 19 * len(piece) + 7)]) == piece[7:]
    with pytest.raises(LookupError):
        _ = [found async for found in blobs.read("a/nothing")]


async def test_a_value_that_is_not_written_to_its_end_is_not_there(blobs: Blobs) -> None:
    """Neither at its name nor in a list; and what was there before stays."""

    def broken(out: Sink) -> None:
        out.write(b"x" * (20 * 1024 * 1024))
        raise KeyError("of the writer's own")

    await blobs.put("a/old", b"old")
    for name in ("a/new", "a/old"):
        with pytest.raises(KeyError):
            await blobs.write(name, broken)
    assert await blobs.names() == ["a/old"] and await blobs.get("a/old") == b"old"


async def test_a_value_that_a_crash_cut_off_is_not_there(tmp_path: Path) -> None:
    (tmp_path / "a").mkdir()
    (tmp_path / "a" / "x.new").write_bytes(b"half")
    blobs = DirectoryBlobs(tmp_path)
    assert await blobs.names() == [] and await blobs.get("a/x") is None and await blobs.get("a") is None


@pytest.mark.parametrize("name", ["", "/etc", "../x", "a/../../x", "a//b", "a/b.c", "a\0b", "a/" * 9 + "x"])
@pytest.mark.parametrize("kind", KINDS[:2])
async def test_a_name_leads_nowhere_else(tmp_path: Path, kind: str, name: str) -> None:
    blobs: Blobs = DirectoryBlobs(tmp_path) if kind == "directory" else ObjectBlobs(LocalStore(tmp_path))
    for asked in (blobs.get(name), blobs.put(name, b""), blobs.size(name), blobs.write(name, lambda out: None)):
        with pytest.raises(ValueError, match="no name of a blob"):
            await asked
    with pytest.raises(ValueError, match="no name of a blob"):
        _ = [piece async for piece in blobs.read(name)]


async def test_a_store_that_is_away_is_not_empty_and_says_so(tmp_path: Path) -> None:
    away = DirectoryBlobs(tmp_path / "not-mounted")
    for asked_of in (away.names(), away.delete("a")):
        with pytest.raises(BlobsAway):
            await asked_of
    (tmp_path / "full").write_bytes(b"")  # nothing can be made below a file
    full = DirectoryBlobs(tmp_path / "full")
    for asked in (full.put("a/x", b""), full.get("a/x"), full.size("a/x"), full.write("a/x", lambda out: None)):
        with pytest.raises(BlobsAway):
            await asked
    assert not issubclass(BlobsAway, OSError), "or whoever waits for a database would wait for it, too"


async def test_an_object_store_that_is_away_says_so_without_its_text(monkeypatch: pytest.MonkeyPatch) -> None:
    """Nobody listens there. The library's text has the address and the request: it goes nowhere."""
    from obstore.store import S3Store

    store: ObjectStore = S3Store(
        "bucket", endpoint=f"http://127.0.0.1:{free_port()}", access_key_id="a", secret_access_key="b", region="us-east-1",
        client_options={"allow_http": True}, retry_config={"max_retries": 0},
    )  # fmt: skip
    blobs = ObjectBlobs(store)

    def fill(out: Sink) -> None:
        out.write(b"x" * (20 * 1024 * 1024))

    for asked in (
        blobs.put("a/x", b""), blobs.get("a/x"), blobs.size("a/x"), blobs.names(), blobs.delete("a"), blobs.write("a/x", fill)
    ):  # fmt: skip
        with pytest.raises(BlobsAway) as told:
            await asked
        assert "127.0.0.1" not in str(told.value) and told.value.__cause__ is None


@pytest.mark.parametrize(
    "where", [None, "", "relative/path", "s3://", "s3://Bucket_/x", "s3://bucket?x=1", "gs://bucket", "file:///tmp"]
)
def test_without_a_place_there_is_no_store(where: str | None) -> None:
    with pytest.raises(Misconfigured, match="STEWARD_BLOBS"):
        open_blobs(where)


def test_a_bucket_is_a_place(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AWS_REGION", "us-east-1")
    assert isinstance(open_blobs("s3://bucket"), ObjectBlobs) and isinstance(open_blobs("s3://bucket/a/b"), ObjectBlobs)


async def hung(call: Coroutine[Any, Any, Any]) -> None:
    """It ends in time, and says that the store is away."""
    async with asyncio.timeout(3):
        with pytest.raises(BlobsAway):
            await call


async def all_of(pieces: AsyncGenerator[bytes, None]) -> list[bytes]:
    return [piece async for piece in pieces]


def large(out: Sink) -> None:
    for _ in range(3):
        out.write(b"x" * 9_000_000)


@pytest.fixture
def little_patience(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(blobs_module, "PATIENCE", 0.2)
    monkeypatch.setattr(blobs_module, "PIECE_PATIENCE", 0.3)


@pytest.mark.usefixtures("little_patience")
async def test_an_object_store_that_hangs_is_away(monkeypatch: pytest.MonkeyPatch) -> None:
    """A server that takes every request, and answers none."""
    silent = await asyncio.start_server(lambda reader, writer: None, "127.0.0.1", 0)
    async with silent:
        url = f"http://127.0.0.1:{silent.sockets[0].getsockname()[1]}"
        for name, value in {
            "ENDPOINT_URL": url, "REGION": "r", "ACCESS_KEY_ID": "a", "SECRET_ACCESS_KEY": "b", "ALLOW_HTTP": "true",
        }.items():  # fmt: skip
            monkeypatch.setenv(f"AWS_{name}", value)
        blobs = open_blobs("s3://bucket")
        for call in (
            blobs.put("a/x", b"x"), blobs.get("a/x"), blobs.size("a/x"), blobs.names(), blobs.delete("a"),
            blobs.write("a/x", large),
            all_of(blobs.read("a/x")),
        ):  # fmt: skip
            await hung(call)


@pytest.mark.usefixtures("little_patience")
async def test_a_directory_that_hangs_is_away_and_what_comes_late_is_never_seen(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As a network disk does: a call that does not return, until it does."""
    goes_on = threading.Event()
    blobs = DirectoryBlobs(tmp_path)
    (tmp_path / "a").mkdir()
    os.mkfifo(tmp_path / "a" / "silent")  # whoever opens it waits for its other end
    await hung(blobs.get("a/silent"))
    await hung(all_of(blobs.read("a/silent")))
    assert await blobs.names() == ["a/silent"], "others are not kept waiting"
    sync = os.fsync
    monkeypatch.setattr(os, "fsync", lambda file: (goes_on.wait(30), sync(file)))
    await hung(blobs.put("b/x", b"x"))
    await hung(blobs.write("b/y", large))
    writers = [thread for thread in threading.enumerate() if thread.name == "blobs"]
    goes_on.set()
    (tmp_path / "a" / "silent").open("wb").close()
    for thread in writers:
        await asyncio.to_thread(thread.join, 5)
    assert await blobs.names("b") == [], "nobody waited for it any more"
    assert not list((tmp_path / "b").iterdir())


@pytest.mark.usefixtures("little_patience")
async def test_what_hangs_does_not_pile_up(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(blobs_module, "_CALLS", 2)
    blobs = DirectoryBlobs(tmp_path)
    os.mkfifo(tmp_path / "silent")
    known = set(threading.enumerate())
    for _ in range(4):
        await hung(blobs.get("silent"))
    hanging = set(threading.enumerate()) - known
    assert len(hanging) == 2
    (tmp_path / "silent").open("wb").close()


async def test_what_a_dead_writer_left_goes_after_a_day(tmp_path: Path) -> None:
    blobs = DirectoryBlobs(tmp_path)
    await blobs.put("a/x", b"x")
    now = datetime(2026, 5, 1, tzinfo=UTC)
    for name, age in (
        ("a/y.1.new", timedelta(hours=25)),
        ("a/z.2.new", timedelta(hours=23)),
        ("a/x", timedelta(hours=99)),
    ):
        (tmp_path / name).write_bytes(b"half")
        os.utime(tmp_path / name, ((now - age).timestamp(),) * 2)
    await blobs.sweep(now)
    assert sorted(path.name for path in (tmp_path / "a").iterdir()) == ["x", "z.2.new"] and await blobs.names() == [
        "a/x"
    ]
