"""The journal: what was accepted, on disk until the broker has it. It is the emitter's only queue.

    SPOOL/lock                      held while instances are made and taken over
    SPOOL/<source>/lock             held for as long as the instance's process lives
    SPOOL/<source>/acknowledged     up to where the broker has it
    SPOOL/<source>/00000001.log     records, each with its length and checksum; a full segment is followed by the next

One writer appends (under the emitter's lock), one reader reads behind it in another thread. A folder whose lock is
free belongs to a dead process: whoever takes the lock sends what it left. Needs a local file system with flock.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import os
import shutil
import struct
from collections.abc import Iterator
from pathlib import Path
from zlib import crc32

_HEAD = struct.Struct("<II")
HEAD_BYTES = _HEAD.size
# Read at once: some ninety events.
_BLOCK = 64 * 1024
_SUFFIX = ".log"


Position = tuple[int, int]
"""A place in a journal: the segment's number, from 1, and the byte in it."""


def framed(topic: bytes, key: bytes, sequence: bytes, event: bytes, traceparent: bytes = b"") -> bytes:
    """A record as it lies in a segment, its number put into the event (a JSON object) as well.

    No part holds a zero byte: topic, key and sequence by the contract's patterns, the event as JSON.
    """
    payload = b'%b\0%b\0%b\0%b,"sequence":"%b"}' % (topic, key, sequence, event[:-1], sequence)
    if traceparent:
        payload += b"\0" + traceparent
    return _HEAD.pack(len(payload), crc32(payload)) + payload


def parse(block: bytes) -> tuple[list[list[bytes]], int]:
    """The whole and undamaged records (topic, key, sequence, value, and a traceparent if it has one) at the start of `block`,
    and their bytes."""
    records: list[list[bytes]] = []
    at, size = 0, len(block)
    while at + HEAD_BYTES <= size:
        length, checksum = _HEAD.unpack_from(block, at)
        end = at + HEAD_BYTES + length
        payload = block[at + HEAD_BYTES : end]
        # Zeros, as a power failure leaves them, are a valid checksum of nothing.
        if length == 0 or end > size or crc32(payload) != checksum:
            break
        records.append(payload.split(b"\0", 4))
        at = end
    return records, at


class Journal:
    """The segments of one instance: this process's own one, or a dead one's (then only read).

    `torn`: tails cut off because the process died while writing; `damaged_bytes`: unreadable elsewhere.
    """

    def __init__(self, folder: Path, lock: int, *, segment_bytes: int = 0, always_sync: bool = False) -> None:
        self.folder = folder
        self.source = folder.name
        self.torn = 0
        self.damaged_bytes = 0
        self._lock = lock
        self._segment_bytes, self._always_sync = segment_bytes, always_sync
        sizes = {int(path.name.removesuffix(_SUFFIX)): path.stat().st_size for path in folder.glob(f"*{_SUFFIX}")}
        self._finished: dict[int, int] = sizes
        # Two counters, since writer and reader are two threads.
        self._written, self._freed = sum(sizes.values()), 0
        self._fd: int | None = None
        self._segment, self._offset = max(sizes, default=0), 0
        self.end = (self._segment, sizes.get(self._segment, 0))
        first = (min(sizes, default=1), 0)
        self._marks = os.open(folder / "acknowledged", os.O_RDWR | os.O_CREAT, 0o600)
        self.acknowledged = max(first, self._mark())
        self._reading: tuple[int, int] | None = None
        self._synced = self.end
        self.at = self.acknowledged

    # --- the writer ------------------------------------------------------------------------------------------------

    def append(self, frame: bytes) -> None:
        """Writes one record with one write. Raises OSError, and then the record is not in the journal."""
        if self._fd is None or self._offset >= self._segment_bytes:
            self._rotate()
        assert self._fd is not None
        written = os.pwrite(self._fd, frame, self._offset)
        if written < len(frame):
            # The next record goes over this piece; whoever reads the segment before that meets a wrong checksum.
            with contextlib.suppress(OSError):
                os.ftruncate(self._fd, self._offset)
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        if self._always_sync:
            os.fsync(self._fd)
        self._offset += written
        self._written += written
        self.end = (self._segment, self._offset)

    def _rotate(self) -> None:
        fd = os.open(self._path(self._segment + 1), os.O_RDWR | os.O_CREAT | os.O_TRUNC, 0o600)
        if self._always_sync:
            _sync(self.folder)
        if self._fd is not None:
            os.close(self._fd)
            self._finished[self._segment] = self._offset
        self._fd = fd
        self._segment, self._offset = self._segment + 1, 0
        self.end = (self._segment, 0)

    @property
    def size(self) -> int:
        """Bytes on disk."""
        return self._written - self._freed

    # --- the reader ------------------------------------------------------------------------------------------------

    def read(self) -> tuple[list[list[bytes]], Position, int] | None:
        """The next records, the place behind them and their size in bytes; None when all that is written has been read."""
        while True:
            last, end = self.end
            segment, offset = self.at
            limit = end if segment >= last else self._finished[segment]
            if offset >= limit:
                if segment >= last:
                    return None
                self.at = (segment + 1, 0)
                continue
            records, used = self._block(segment, offset, limit)
            if not used:
                if segment == last:
                    self.torn += 1
                else:
                    self.damaged_bytes += limit - offset
                self.at = (segment, limit)
                continue
            self.at = (segment, offset + used)
            return records, self.at, used

    def _block(self, segment: int, offset: int, limit: int) -> tuple[list[list[bytes]], int]:
        fd = self._open(segment)
        block = os.pread(fd, min(_BLOCK, limit - offset), offset)
        records, used = parse(block)
        if not used and len(block) >= HEAD_BYTES:
            size = HEAD_BYTES + _HEAD.unpack_from(block)[0]
            if len(block) < size <= limit - offset:
                records, used = parse(os.pread(fd, size, offset))
        return records, used

    def _open(self, segment: int) -> int:
        if self._reading is None or self._reading[0] != segment:
            if self._reading is not None:
                os.close(self._reading[1])
                self._reading = None
            self._reading = (segment, os.open(self._path(segment), os.O_RDONLY))
        return self._reading[1]

    @property
    def read_all(self) -> bool:
        """Whether the reader has caught up with the writer."""
        return self.at >= self.end

    def rewind(self) -> None:
        """Reads again from what the broker is known to have."""
        self.at = self.acknowledged

    def acknowledge(self, place: Position) -> bool:
        """The broker has everything before `place`. True if that freed room."""
        self.acknowledged = place
        # On a full disk the mark may be lost, which only means sending again; what makes room comes next.
        with contextlib.suppress(OSError):
            os.pwrite(self._marks, b"%08d %012d\n" % place, 0)
        done = [segment for segment in list(self._finished) if segment < place[0]]
        for segment in done:
            self._path(segment).unlink(missing_ok=True)
            self._freed += self._finished.pop(segment)
        return bool(done)

    def _mark(self) -> Position:
        # Unreadable, it is as if nothing were acknowledged: records are sent twice, and count once.
        segment, _, offset = os.pread(self._marks, 32, 0).strip().partition(b" ")
        return (int(segment), int(offset)) if segment.isdigit() and offset.isdigit() else (0, 0)

    @property
    def synced(self) -> bool:
        """Whether all that was written was brought to the disk by `sync`."""
        return self._synced == self.end

    def sync(self) -> None:
        """Brings to the disk what was written since the last call. Raises OSError."""
        end, begin = self.end, self._synced
        if end == begin:
            return
        for segment in range(max(begin[0], 1), end[0] + 1):
            with contextlib.suppress(FileNotFoundError):  # acknowledged and deleted already
                _sync(self._path(segment))
        if end[0] != begin[0]:
            _sync(self.folder)
        self._synced = end

    def release(self) -> None:
        """Closes the files and lets go of the folder; with everything acknowledged nothing of it is left."""
        if self.acknowledged >= self.end:
            with _held(self.folder.parent):
                shutil.rmtree(self.folder)
        self.close()

    def close(self) -> None:
        """Closes the files only."""
        for fd in (self._fd, self._marks, self._reading[1] if self._reading else None, self._lock):
            if fd is not None:
                os.close(fd)
        self._fd = self._reading = None

    def _path(self, segment: int) -> Path:
        return self.folder / f"{segment:08d}{_SUFFIX}"


def create(spool: Path, source: str, *, segment_bytes: int, always_sync: bool) -> Journal:
    """The journal of a new instance. Raises OSError when the folder cannot be written."""
    spool.mkdir(parents=True, exist_ok=True, mode=0o700)
    with _held(spool):
        folder = spool / source
        folder.mkdir(mode=0o700)
        lock = _try_lock(folder)
        assert lock is not None, "a folder just made has no other owner"
        if always_sync:
            _sync(spool)
        return Journal(folder, lock, segment_bytes=segment_bytes, always_sync=always_sync)


def take_over(spool: Path) -> list[Journal]:
    """The journals of dead instances, the oldest first; nobody else gets them while this process lives."""
    with _held(spool):
        folders = [folder for folder in spool.iterdir() if (folder / "lock").exists()]
        folders.sort(key=lambda folder: (folder / "lock").stat().st_mtime_ns)
        return [Journal(folder, lock) for folder in folders if (lock := _try_lock(folder)) is not None]


@contextlib.contextmanager
def _held(spool: Path) -> Iterator[None]:
    fd = os.open(spool / "lock", os.O_RDWR | os.O_CREAT, 0o600)
    try:
        fcntl.flock(fd, fcntl.LOCK_EX)
        yield
    finally:
        os.close(fd)


def _try_lock(folder: Path) -> int | None:
    fd = os.open(folder / "lock", os.O_RDWR | os.O_CREAT, 0o600)
    try:
        fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        os.close(fd)
        return None
    return fd


def _sync(path: Path) -> None:
    """Brings a file, or a folder's entries, to the disk."""
    fd = os.open(path, os.O_RDONLY)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)
