"""Where holders put what is too large for a topic: parts of a copy, each sealed under its case's key.

A directory that all services share, or an object store (S3 and what speaks like it). Both are one `Protocol`, and both show
a value whole or not at all. A store that hangs (a network disk, a server that does not answer) is away: whoever asks it waits
for `PATIENCE` seconds and no longer, since a database ends a transaction that stands idle for 10.
"""

from __future__ import annotations

import asyncio
import os
import re
import secrets
import shutil
import threading
import time
from collections.abc import AsyncGenerator, AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager, contextmanager, suppress
from datetime import datetime, timedelta
from functools import partial
from pathlib import Path
from stat import S_ISREG
from typing import TYPE_CHECKING, Protocol, TypeAlias, TypeVar
from urllib.parse import urlsplit

from shared.mesh.settings import Misconfigured

if TYPE_CHECKING:
    from obstore.store import ObjectStore

CHUNK = 256 * 1024
"""Bytes that `read` gives at a time, about."""
PATIENCE = 5.0
"""Seconds that a call may take, whatever the store does. `write` and `read` may take long: this holds for no piece of them."""
PIECE_PATIENCE = 30.0
"""Seconds that one piece of `write` or `read` may take."""
HALF_WRITTEN_LIFE = timedelta(days=1)
"""What a writer that died has left behind goes after that."""
_NAME = re.compile(r"[A-Za-z0-9_-]{1,64}(/[A-Za-z0-9_-]{1,64}){0,7}")
_BUCKET = re.compile(r"[a-z0-9][a-z0-9.-]{1,61}[a-z0-9]")
# An upload goes in parts of at least this size (S3 takes no smaller ones).
_UPLOAD = 8 * 1024 * 1024
# Calls of one process that may be under way in the store, those that hang among them.
_CALLS = 64
_T = TypeVar("_T")


class Sink(Protocol):
    """What a value is written to."""

    def write(self, data: bytes, /) -> object:
        """Takes the next bytes."""


Fill: TypeAlias = Callable[[Sink], None]
"""Writes a value, piece by piece. Runs in a thread of its own; what it raises ends the value."""


class BlobsAway(Exception):
    """The store cannot be used now (a full disk, a directory that is not mounted): whoever needs it comes again."""


class Blobs(Protocol):
    """Named values. A name is words with slashes between; it leads to nobody. Everything raises `BlobsAway`, in `PATIENCE`."""

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

    async def sweep(self, now: datetime) -> None:
        """Deletes what writers that died have left half-written (no name of it is ever shown)."""


class DirectoryBlobs:
    """Blobs as files below a directory that all services share."""

    def __init__(self, root: Path) -> None:
        self._root = root
        self._aside = _Aside()

    async def put(self, name: str, value: bytes) -> None:
        """Written beside, synced, and moved into its place."""

        def whole(out: Sink) -> None:
            out.write(value)

        async with in_time():
            await self.write(name, whole)

    async def get(self, name: str) -> bytes | None:
        """A value, or None."""
        path = self._path(name)
        async with in_time():
            return await self._aside.run(lambda: self._get(path))

    async def write(self, name: str, fill: Fill) -> None:
        """Written beside, synced, and moved into its place."""
        path = self._path(name)
        await _watched(self._aside, lambda watch: self._write(path, fill, watch))

    async def read(self, name: str, start: int = 0) -> AsyncGenerator[bytes, None]:
        """A value from byte `start` on, in pieces."""
        path = self._path(name)
        with _away():
            try:
                async with asyncio.timeout(PIECE_PATIENCE):
                    file = await self._aside.run(lambda: path.open("rb"))
            except (FileNotFoundError, IsADirectoryError):
                raise LookupError("there is no such blob") from None
            with file:
                file.seek(start)
                while True:
                    async with asyncio.timeout(PIECE_PATIENCE):
                        piece = await self._aside.run(lambda: file.read(CHUNK))
                    if not piece:
                        return
                    yield piece

    async def size(self, name: str) -> int | None:
        """A value's bytes, or None."""
        path = self._path(name)
        async with in_time():
            return await self._aside.run(lambda: self._size(path))

    async def names(self, prefix: str = "") -> list[str]:
        """Names below a prefix (all), in order."""
        below = self._path(prefix) if prefix else self._root
        async with in_time():
            return await self._aside.run(lambda: self._names(below))

    async def delete(self, prefix: str) -> None:
        """Deletes everything below a prefix."""
        path = self._path(prefix)
        async with in_time():
            await self._aside.run(lambda: self._delete(path))

    async def sweep(self, now: datetime) -> None:
        """Deletes half-written files that nobody has written to for a day."""
        before = (now - HALF_WRITTEN_LIFE).timestamp()
        async with in_time():
            await self._aside.run(lambda: self._sweep(before))

    def _path(self, name: str) -> Path:
        return self._root / _named(name)

    @staticmethod
    def _write(path: Path, fill: Fill, watch: _Watch) -> None:
        # A name of its own: one that hung and one that came after it must not write into each other.
        beside = path.with_name(f"{path.name}.{secrets.token_hex(8)}.new")
        with watch.asks():
            path.parent.mkdir(parents=True, exist_ok=True)
            file = beside.open("wb")
        try:
            # What `fill` itself meets is no trouble of the store; what its writes meet is (`_File`).
            with file:
                fill(_File(file.write, watch))
                with watch.asks():
                    file.flush()
                    os.fsync(file.fileno())
            with watch.asks():
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

    def _sweep(self, before: float) -> None:
        with _away():
            for folder, _, names in os.walk(self._root):
                for path in (Path(folder, name) for name in names if name.endswith(".new")):
                    with suppress(FileNotFoundError):
                        if path.stat().st_mtime < before:
                            path.unlink()

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

    Every request is tried again by the library, for as long as whoever asks has patience. An upload that was cut off is never
    seen; its parts stay with the store until a rule of the bucket ends them (`AbortIncompleteMultipartUpload`).
    """

    def __init__(self, store: ObjectStore) -> None:
        self._store = store
        self._aside = _Aside()

    async def put(self, name: str, value: bytes) -> None:
        """Keeps a value, whole or not at all."""
        import obstore

        async with in_time():
            await obstore.put_async(self._store, _named(name), value)

    async def get(self, name: str) -> bytes | None:
        """A value, or None."""
        import obstore

        async with in_time():
            try:
                found = await obstore.get_async(self._store, _named(name))
                return bytes(await found.bytes_async())
            except FileNotFoundError:
                return None

    async def write(self, name: str, fill: Fill) -> None:
        """Uploaded in parts; the last step makes it one object."""
        _named(name)
        await _watched(self._aside, lambda watch: self._write(name, fill, watch))

    def _write(self, name: str, fill: Fill, watch: _Watch) -> None:
        import obstore

        with watch.asks():
            writer = obstore.open_writer(self._store, name, buffer_size=_UPLOAD)
        fill(_File(writer.write, watch))
        with watch.asks():
            writer.close()

    async def read(self, name: str, start: int = 0) -> AsyncGenerator[bytes, None]:
        """A value from byte `start` on, in pieces."""
        import obstore

        with _away():
            try:
                wanted = {"range": {"offset": start}} if start else {}
                async with asyncio.timeout(PIECE_PATIENCE):
                    found = await obstore.get_async(self._store, _named(name), options=wanted)  # type: ignore[arg-type]
            except FileNotFoundError:
                raise LookupError("there is no such blob") from None
            pieces = aiter(found.stream(min_chunk_size=CHUNK))
            while True:
                async with asyncio.timeout(PIECE_PATIENCE):
                    piece = await anext(pieces, None)
                if piece is None:
                    return
                yield bytes(piece)

    async def size(self, name: str) -> int | None:
        """A value's bytes, or None."""
        import obstore

        async with in_time():
            try:
                return int((await obstore.head_async(self._store, _named(name)))["size"])
            except FileNotFoundError:
                return None

    async def names(self, prefix: str = "") -> list[str]:
        """Names below a prefix (all), in order."""
        import obstore

        async with in_time():
            listed = obstore.list(self._store, _named(prefix) if prefix else None)
            return sorted([entry["path"] async for page in listed for entry in page])

    async def delete(self, prefix: str) -> None:
        """Deletes everything below a prefix."""
        import obstore

        async with in_time():
            if names := await self.names(_named(prefix)):
                await obstore.delete_async(self._store, names)

    async def sweep(self, now: datetime) -> None:
        """Nothing: the bucket has a rule for that."""


class _File:
    """What `fill` writes to: its trouble is the store's."""

    def __init__(self, write: Callable[[bytes], object], watch: _Watch) -> None:
        self._write, self._watch = write, watch

    def write(self, data: bytes, /) -> int:
        """Takes the next bytes."""
        with self._watch.asks():
            self._write(data)
        return len(data)


class _Watch:
    """Of a value that is being written: since when the store has had its piece, and whether somebody still waits for it."""

    def __init__(self) -> None:
        self._since: float | None = None
        self._over = False

    @contextmanager
    def asks(self) -> Iterator[None]:
        """The store is busy with a piece."""
        if self._over:
            raise BlobsAway("nobody waits for this value any more")
        self._since = time.monotonic()
        try:
            with _away():
                yield
        finally:
            self._since = None

    @property
    def hangs(self) -> bool:
        """Whether the store takes too long."""
        since = self._since
        return since is not None and time.monotonic() - since > PIECE_PATIENCE

    def give_up(self) -> None:
        """Nobody waits for it: no next piece is taken, and the value never appears."""
        self._over = True


async def _watched(aside: _Aside, write: Callable[[_Watch], None]) -> None:
    watch = _Watch()
    writing = asyncio.ensure_future(aside.run(lambda: write(watch)))
    try:
        while not writing.done():
            await asyncio.wait((writing,), timeout=min(1.0, PIECE_PATIENCE / 4))
            if watch.hangs and not writing.done():
                raise BlobsAway("the blob store does not answer")
        writing.result()
    finally:
        watch.give_up()
        writing.cancel()


class _Aside:
    """Calls that may never return, each in a thread that nobody has to wait for: neither other calls nor the process's end."""

    def __init__(self) -> None:
        self._free = threading.BoundedSemaphore(_CALLS)

    async def run(self, call: Callable[[], _T]) -> _T:
        """What `call` gives, or raises."""
        if not self._free.acquire(blocking=False):
            raise BlobsAway("the blob store does not answer: too many calls of it hang")
        loop = asyncio.get_running_loop()
        done: asyncio.Future[_T] = loop.create_future()

        def settle(tell: Callable[[], None]) -> None:
            if not done.done():
                tell()

        def work() -> None:
            tell: Callable[[], None]
            try:
                tell = partial(done.set_result, call())
            except BaseException as error:
                tell = partial(done.set_exception, error)
            finally:
                self._free.release()
            with suppress(RuntimeError):  # the loop is closed: nobody waits
                loop.call_soon_threadsafe(settle, tell)

        threading.Thread(target=work, name="blobs", daemon=True).start()
        return await done


@asynccontextmanager
async def in_time() -> AsyncIterator[None]:
    """What is asked of a store, one call or several: its trouble is `BlobsAway`, and so is it when that takes longer than
    `PATIENCE`."""
    with _away():
        async with asyncio.timeout(PATIENCE):
            yield


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
                "timeout": timedelta(seconds=PIECE_PATIENCE),
                "connect_timeout": timedelta(seconds=5),
            },
            retry_config={"max_retries": 3, "retry_timeout": timedelta(seconds=PIECE_PATIENCE)},
        )
    except (BaseError, ValueError) as error:
        raise Misconfigured(f"the AWS_* variables do not describe an S3 store ({type(error).__name__})") from None
