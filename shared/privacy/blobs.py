"""Where holders put what is too large for a topic: parts of a copy, each sealed under its case's key. A directory here."""

from __future__ import annotations

import asyncio
import os
import re
import shutil
from pathlib import Path
from typing import Protocol

from shared.mesh.settings import Misconfigured

_NAME = re.compile(r"[A-Za-z0-9_-]{1,64}(/[A-Za-z0-9_-]{1,64}){0,7}")


class Blobs(Protocol):
    """Named values. A name is words with slashes between; it leads to nobody."""

    async def put(self, name: str, value: bytes) -> None:
        """Keeps a value, whole or not at all; the same name once more replaces it."""

    async def get(self, name: str) -> bytes | None:
        """A value, or None."""

    async def names(self, prefix: str = "") -> list[str]:
        """Names below a prefix (all), in order."""

    async def delete(self, prefix: str) -> None:
        """Deletes everything below a prefix. Again and again is once."""


class DirectoryBlobs:
    """Blobs as files below a directory that all services share."""

    def __init__(self, root: Path) -> None:
        self._root = root

    async def put(self, name: str, value: bytes) -> None:
        """Written beside, synced, and moved into its place."""
        await asyncio.to_thread(self._put, self._path(name), value)

    async def get(self, name: str) -> bytes | None:
        """A value, or None."""
        path = self._path(name)
        return await asyncio.to_thread(lambda: path.read_bytes() if path.is_file() else None)

    async def names(self, prefix: str = "") -> list[str]:
        """Names below a prefix (all), in order."""
        below = self._path(prefix) if prefix else self._root
        return await asyncio.to_thread(
            lambda: sorted(str(p.relative_to(self._root)) for p in below.rglob("*") if p.is_file() and p.suffix == "")
        )

    async def delete(self, prefix: str) -> None:
        """Deletes everything below a prefix."""
        await asyncio.to_thread(shutil.rmtree, self._path(prefix), True)

    def _path(self, name: str) -> Path:
        if _NAME.fullmatch(name) is None:
            raise ValueError("this is no name of a blob")
        return self._root / name

    @staticmethod
    def _put(path: Path, value: bytes) -> None:
        path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
        beside = path.with_suffix(".new")
        with beside.open("wb") as file:
            file.write(value)
            file.flush()
            os.fsync(file.fileno())
        beside.replace(path)


def open_blobs(where: str | None) -> Blobs:
    """The blob store of an installation. Raises `Misconfigured` for one that is not known here."""
    if not where or not Path(where).is_absolute():
        raise Misconfigured("STEWARD_BLOBS must be a directory that all services share (`steward up` makes one)")
    return DirectoryBlobs(Path(where))
