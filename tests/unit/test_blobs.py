"""The blob store: whole values under plain names, and nothing outside of its directory."""

from __future__ import annotations

from pathlib import Path

import pytest

from shared.mesh.settings import Misconfigured
from shared.privacy.blobs import BlobsAway, DirectoryBlobs, open_blobs


async def test_what_is_put_is_there_until_it_is_deleted(tmp_path: Path) -> None:
    blobs = DirectoryBlobs(tmp_path)
    assert await blobs.names() == [] and await blobs.get("a/1/x") is None
    for name, value in (("a/1/x", b"one"), ("a/2/x", b""), ("b/1/x", b"three"), ("a/1/x", b"four")):
        await blobs.put(name, value)
    assert await blobs.names() == ["a/1/x", "a/2/x", "b/1/x"] and await blobs.names("a/1") == ["a/1/x"]
    assert (await blobs.get("a/1/x"), await blobs.get("a/2/x"), await blobs.get("a/1")) == (b"four", b"", None)
    for _ in range(2):
        await blobs.delete("a")
    assert await blobs.names() == ["b/1/x"]


async def test_a_value_that_was_not_written_whole_is_not_there(tmp_path: Path) -> None:
    blobs = DirectoryBlobs(tmp_path)
    (tmp_path / "a").mkdir()
    (tmp_path / "a" / "x.new").write_bytes(b"half")
    assert await blobs.names() == [] and await blobs.get("a/x") is None


@pytest.mark.parametrize("name", ["", "/etc", "../x", "a/../../x", "a//b", "a/b.c", "a\0b", "a/" * 9 + "x"])
async def test_a_name_leads_nowhere_else(tmp_path: Path, name: str) -> None:
    for asked in (DirectoryBlobs(tmp_path).get(name), DirectoryBlobs(tmp_path).put(name, b"")):
        with pytest.raises(ValueError, match="no name of a blob"):
            await asked


async def test_a_store_that_is_away_is_not_empty_and_says_so(tmp_path: Path) -> None:
    away = DirectoryBlobs(tmp_path / "not-mounted")
    for asked_of in (away.names(), away.delete("a")):
        with pytest.raises(BlobsAway):
            await asked_of
    (tmp_path / "full").write_bytes(b"")  # nothing can be made below a file
    for asked in (DirectoryBlobs(tmp_path / "full").put("a/x", b""), DirectoryBlobs(tmp_path / "full").get("a/x")):
        with pytest.raises(BlobsAway):
            await asked
    assert not issubclass(BlobsAway, OSError), "or whoever waits for a database would wait for it, too"


def test_without_a_place_there_is_no_store() -> None:
    for where in (None, "", "relative/path", "s3://bucket"):
        with pytest.raises(Misconfigured, match="STEWARD_BLOBS"):
            open_blobs(where)
