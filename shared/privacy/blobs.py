"""Where holders put what is too large for a topic: parts of a copy, each sealed under its case's key.

A directory that all services share, or an object store (S3 and what speaks like it). Both are one `Protocol`, and both show
a value whole or not at all.
"""

from __future__ import annotations

import asyncio
import os
import re
import shutil
from collections.abc import AsyncGenerator, Callable, Iterator
from contextlib import contextmanager, suppress
from datetime import timedelta
from pathlib import Path
from stat import S_ISREG
from typing import TYPE_CHECKING, Protocol, TypeAlias
from urllib.parse import urlsplit

from shared.mesh.settings import Misconfigured

if TYPE_CHECKING:
    from obstore.store import ObjectStore

CHUNK = 256 * 1024
"""Bytes that `read` gives at a time, about."""
_NAME = re.compile(r"[A-Za-z0-9_-]{1,64}(/[A-Za-z0-9_-]{1,64}){0,7}")
_BUCKET = re.compile(r"[a-z0-9][a-z0-9.-]{1,61}[a-z0-9]")
# An upload goes in parts of at least this size (S3 takes no smaller ones).
_UPLOAD = 8 * 1024 * 1024


class Sink(Protocol):
    """What a value is written to."""

    def write(self, data: bytes, /) -> object:
        """Takes the next bytes."""


Fill: TypeAlias = Callable[[Sink], None]
"""Writes a value, piece by piece. Runs in a thread of its own; what it raises ends the value."""


class BlobsAway(Exception):
    """The store cannot be used now (a full disk, a directory that is not mounted): whoever needs it comes again."""


class Blobs(Protocol):
    """Named values. A name is words with slashes between; it leads to nobody. Everything raises `BlobsAway`."""

    async def put(self, name: str, value: bytes) -> None:
        """Keeps a value, whole or not at all; the same name once more replaces it."""

    async def get(self, name: str) -> bytes | None:
        """A value, or None."""

    async def write(self, name: str, fill: Fill) -> None:
        """Keeps what `fill` writes, whole or not at all, at constant memory."""

    def read(self, name: str, start: int = 0) -> AsyncGenerator[bytes, None]:
        """A value from byte `start` on, in pieces, at constant memory. Raises `LookupError` when there is none."""

    async def size(self, name: str) -> int | None:
        """A value's bytes, or None."""

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

        def whole(out: Sink) -> None:
            out.write(value)

        await self.write(name, whole)

    async def get(self, name: str) -> bytes | None:
        """A value, or None."""
        return await asyncio.to_thread(self._get, self._path(name))

    async def write(self, name: str, fill: Fill) -> None:
        """Written beside, synced, and moved into its place."""
        await asyncio.to_thread(self._write, self._path(name), fill)

    async def read(self, name: str, start: int = 0) -> AsyncGenerator[bytes, None]:
        """A value from byte `start` on, in pieces."""
        path = self._path(name)
        with _away():
            try:
                file = await asyncio.to_thread(path.open, "rb")
            except (FileNotFoundError, IsADirectoryError):
                raise LookupError("there is no such blob") from None
            with file:
                file.seek(start)
                while piece := await asyncio.to_thread(file.read, CHUNK):
                    yield piece

    async def size(self, name: str) -> int | None:
        """A value's bytes, or None."""
        return await asyncio.to_thread(self._size, self._path(name))

    async def names(self, prefix: str = "") -> list[str]:
        """Names below a prefix (all), in order."""
        return await asyncio.to_thread(self._names, self._path(prefix) if prefix else self._root)

    async def delete(self, prefix: str) -> None:
        """Deletes everything below a prefix."""
        await asyncio.to_thread(self._delete, self._path(prefix))

    def _path(self, name: str) -> Path:
        return self._root / _named(name)

    @staticmethod
    def _write(path: Path, fill: Fill) -> None:
        beside = path.with_suffix(".new")
        with _away():
            path.parent.mkdir(parents=True, exist_ok=True)
            file = beside.open("wb")
        try:
            # What `fill` itself meets is no trouble of the store; what its writes meet is (`_File`).
            with file:
                fill(_File(file.write))
                with _away():
                    file.flush()
                    os.fsync(file.fileno())
            with _away():
                beside.replace(path)
        except BaseException:
            with suppress(OSError):
                beside.unlink()
            raise

    @staticmethod
    def _get(path: Path) -> bytes | None:
        with _away():
            try:
                return path.read_bytes()
            except (FileNotFoundError, IsADirectoryError):
                return None

    @staticmethod
    def _size(path: Path) -> int | None:
        with _away():
            try:
                found = path.stat()
                return found.st_size if S_ISREG(found.st_mode) else None
            except FileNotFoundError:
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


class ObjectBlobs:
    """Blobs as objects of any store that the library obstore knows. For `s3://` that is S3; tests use its others, too.

    Every request is tried again by the library, for 30 s at most. An upload that was cut off is never seen; its parts stay
    with the store until a rule of the bucket ends them (`AbortIncompleteMultipartUpload`).
    """

    def __init__(self, store: ObjectStore) -> None:
        self._store = store

    async def put(self, name: str, value: bytes) -> None:
        """Keeps a value, whole or not at all."""
        import obstore

        with _away():
            await obstore.put_async(self._store, _named(name), value)

    async def get(self, name: str) -> bytes | None:
        """A value, or None."""
        import obstore

        with _away():
            try:
                found = await obstore.get_async(self._store, _named(name))
                return bytes(await found.bytes_async())
            except FileNotFoundError:
                return None

    async def write(self, name: str, fill: Fill) -> None:
        """Uploaded in parts; the last step makes it one object."""
        await asyncio.to_thread(self._write, _named(name), fill)

    def _write(self, name: str, fill: Fill) -> None:
        import obstore

        with _away():
            writer = obstore.open_writer(self._store, name, buffer_size=_UPLOAD)
        fill(_File(writer.write))
        with _away():
            writer.close()

    async def read(self, name: str, start: int = 0) -> AsyncGenerator[bytes, None]:
        """A value from byte `start` on, in pieces."""
        import obstore

        with _away():
            try:
                wanted = {"range": {"offset": start}} if start else {}
                found = await obstore.get_async(self._store, _named(name), options=wanted)  # type: ignore[arg-type]
            except FileNotFoundError:
                raise LookupError("there is no such blob") from None
            async for piece in found.stream(min_chunk_size=CHUNK):
                yield bytes(piece)

    async def size(self, name: str) -> int | None:
        """A value's bytes, or None."""
        import obstore

        with _away():
            try:
                return int((await obstore.head_async(self._store, _named(name)))["size"])
            except FileNotFoundError:
                return None

    async def names(self, prefix: str = "") -> list[str]:
        """Names below a prefix (all), in order."""
        import obstore

        with _away():
            listed = obstore.list(self._store, _named(prefix) if prefix else None)
            return sorted([entry["path"] async for page in listed for entry in page])

    async def delete(self, prefix: str) -> None:
        """Deletes everything below a prefix."""
        import obstore

        names = await self.names(_named(prefix))
        with _away():
            if names:
                await obstore.delete_async(self._store, names)


class _File:
    """What `fill` writes to: its trouble is the store's."""

    def __init__(self, write: Callable[[bytes], object]) -> None:
        self._write = write

    def write(self, data: bytes, /) -> int:
        """Takes the next bytes."""
        with _away():
            self._write(data)
        return len(data)


def _named(name: str) -> str:
    if _NAME.fullmatch(name) is None:
        raise ValueError("this is no name of a blob")
    return name


@contextmanager
def _away() -> Iterator[None]:
    """The store's trouble as `BlobsAway`: the kind of it, never the text, which may hold addresses and keys."""
    try:
        yield
    except OSError as error:
        raise BlobsAway(f"the blob store cannot be used: {type(error).__name__}") from None
    except Exception as error:
        # The library is loaded where an object store is used, and nowhere else.
        if not type(error).__module__.startswith("obstore"):
            raise
        raise BlobsAway(f"the blob store cannot be used: {type(error).__name__}") from None


def open_blobs(where: str | None) -> Blobs:
    """The blob store of an installation: a directory, or `s3://bucket/prefix`. Nothing is asked of it yet.

    Where S3 is, and who asks, comes from the usual variables: `AWS_ENDPOINT_URL`, `AWS_REGION`, `AWS_ACCESS_KEY_ID`,
    `AWS_SECRET_ACCESS_KEY` (or a role of the machine), `AWS_ALLOW_HTTP`. Raises `Misconfigured` for what is no store.
    """
    url = urlsplit(where or "")
    if url.scheme == "s3" and _BUCKET.fullmatch(url.netloc) and not url.query and not url.fragment:
        return ObjectBlobs(_s3(url.netloc, url.path.strip("/")))
    if not where or not Path(where).is_absolute():
        raise Misconfigured(
            "STEWARD_BLOBS must be a directory that all services share (`steward up` makes one), or s3://bucket/prefix"
        )
    return DirectoryBlobs(Path(where))


def _s3(bucket: str, prefix: str) -> ObjectStore:
    from obstore.exceptions import BaseError
    from obstore.store import S3Store

    try:
        return S3Store(
            bucket,
            prefix=prefix or None,
            client_options={
                # The library passes this variable over where it is given any option.
                "allow_http": os.environ.get("AWS_ALLOW_HTTP", "").lower() == "true",
                "timeout": timedelta(seconds=60),
                "connect_timeout": timedelta(seconds=5),
            },
            retry_config={"max_retries": 3, "retry_timeout": timedelta(seconds=30)},
        )
    except (BaseError, ValueError) as error:
        raise Misconfigured(f"the AWS_* variables do not describe an S3 store ({type(error).__name__})") from None
