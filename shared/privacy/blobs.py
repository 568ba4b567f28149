"""Where holders put what is too large for a topic: parts of a copy, each sealed under its case's key. A directory here."""

from __future__ import annotations

import asyncio
import os
import re
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Protocol

from shared.mesh.settings import Misconfigured

_NAME = re.compile(r"[A-Za-z0-9_-]{1,64}(/[A-Za-z0-9_-]{1,64}){0,7}")


class BlobsAway(Exception):
    """The store cannot be used now (a full disk, a directory that is not mounted): whoever needs it comes again."""


class Blobs(Protocol):
    """Named values. A name is words with slashes between; it leads to nobody. Everything raises `BlobsAway`."""

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
        return await asyncio.to_thread(self._get, self._path(name))

    async def names(self, prefix: str = "") -> list[str]:
        """Names below a prefix (all), in order."""
        return await asyncio.to_thread(self._names, self._path(prefix) if prefix else self._root)

    async def delete(self, prefix: str) -> None:
        """Deletes everything below a prefix."""
        await asyncio.to_thread(self._delete, self._path(prefix))

    def _path(self, name: str) -> Path:
        if _NAME.fullmatch(name) is None:
            raise ValueError("this is no name of a blob")
        return self._root / name

    @staticmethod
    def _put(path: Path, value: bytes) -> None:
        with _away():
            path.parent.mkdir(parents=True, exist_ok=True)
            beside = path.with_suffix(".new")
            with beside.open("wb") as file:
                file.write(value)
                file.flush()
                os.fsync(file.fileno())
            beside.replace(path)

    @staticmethod
    def _get(path: Path) -> bytes | None:
        with _away():
            try:
                return path.read_bytes()
            except (FileNotFoundError, IsADirectoryError):
                return None

    def _names(self, below: Path) -> list[str]:
        def refuse(error: OSError) -> None:
            # What goes meanwhile is gone; a store that is not there is not empty.
            if not isinstance(error, FileNotFoundError) or not self._root.is_dir():
                raise error

        with _away():
            found = [
                Path(folder, name).relative_to(self._root)
                for folder, _, names in os.walk(below, onerror=refuse)
                for name in names
            ]
        return sorted(str(path) for path in found if path.suffix == "")

    def _delete(self, path: Path) -> None:
        with _away():
            # A store that is not there has not lost what was in it.
            self._root.stat()
            if not self._root.is_dir():
                raise NotADirectoryError
            while path.exists():
                try:
                    shutil.rmtree(path)
                except FileNotFoundError:
                    continue  # somebody else deletes it, too


@contextmanager
def _away() -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise BlobsAway(f"the blob store cannot be used: {type(error).__name__}") from None


def open_blobs(where: str | None) -> Blobs:
    """The blob store of an installation. Raises `Misconfigured` for one that is not known here."""
    if not where or not Path(where).is_absolute():
        raise Misconfigured("STEWARD_BLOBS must be a directory that all services share (`steward up` makes one)")
    return DirectoryBlobs(Path(where))
