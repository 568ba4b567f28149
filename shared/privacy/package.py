"""The package that a person gets of their data: one ZIP inside one age file (`age.py`), which any age tool opens.

It is made from the parts that holders have written (`errands.py`) and from what those say of themselves (`told.py`), piece by
piece: the rows are never all in memory, and in the clear on no disk. PACKAGE.md says what is in it.
"""

from __future__ import annotations

import asyncio
import hashlib
import threading
import zipfile
from collections.abc import Callable, Coroutine, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from datetime import UTC, datetime
from io import BufferedReader
from typing import Any, BinaryIO, TypeVar

import msgspec

from shared.mesh.transaction import rfc3339
from shared.policy import policy
from shared.privacy import sheets, told
from shared.privacy.age import CannotOpen, Decrypting, Encrypting, Opener
from shared.privacy.blobs import Blobs, BlobsAway, Sink
from shared.privacy.errands import WHERE
from shared.privacy.package_contents import Contents, Disclosed, Missing, Source
from shared.privacy.package_page import page
from shared.privacy.told import ToldColumn
from shared.privacy.values import Key, open_bytes

FORMAT = "steward.package.v1"
MANIFEST = "manifest.json"
PACKAGES, _PLACE = "packages", "_package"
# Beyond this a member gets the sizes of ZIP64, which some older programs cannot read: so only where it may be needed.
_LARGE = 2**30
_LEVEL = 1
# Seconds after which a part that does not come is not waited for any more.
_PATIENCE = 120.0
_A = TypeVar("_A")
_B = TypeVar("_B")


class NotWhole(LookupError):
    """A holder's part of the copy is not there, or not all of it: nothing is packed. The text names holder and table."""


@dataclass(frozen=True, slots=True)
class Built:
    """A package that is made. `size` (bytes) and `sha256` (hex) are of the age file; `rows`: of all tables; `sources`: rows
    by `holder.table`."""

    size: int
    sha256: str
    rows: int
    sources: Mapping[str, int]


def package_place(case: str) -> str:
    """Below what a case's package lies in the blob store: apart from the copies that it was made of, which go before it."""
    return f"{PACKAGES}/{case}"


def package_name(case: str) -> str:
    """The name of a case's package in the blob store."""
    return f"{package_place(case)}/{_PLACE}"


def case_of_package(name: str) -> str | None:
    """The case of a blob that is a package, which only its person can open; None for any other blob."""
    words = name.split("/")
    return words[1] if words[:1] + words[2:] == [PACKAGES, _PLACE] else None


async def build(
    blobs: Blobs,
    *,
    case: str,
    epoch: int,
    holders: Sequence[str],
    key: Key,
    opener: Opener,
    name: str,
    made_at: datetime,
    missing: Sequence[Missing] = (),
    disclosed: Sequence[Disclosed] = (),
) -> Built:
    """Packs the copies that `holders` have made for (case, epoch), and keeps the package as the blob `name`.

    `key`: the case's. `missing`: what the caller knows of that is not in it; what the copies themselves leave out is added.
    `disclosed`: what was disclosed of the person, as far as they may know it.
    Raises `NotWhole`, `Shredded` and `Tampered` for a part that is not as it was written, `BlobsAway`; then there is no
    package. Needs some 60 MB, and 128 MB for a moment at the beginning where the opener is a passphrase.
    """
    parts = _Parts(blobs, f"{case}/{epoch}", key)
    packer = _Packer(parts, case, made_at, sorted(set(holders)), tuple(missing), tuple(disclosed))
    try:
        # The packing happens in the thread of `write`; this loop only fetches the parts for it.
        await blobs.write(name, lambda out: packer.pack(out, opener))
    finally:
        parts.give_up()
    return packer.built()


@contextmanager
def opened(file: BinaryIO, *, passphrase: str | None = None, identity: str | None = None) -> Iterator[zipfile.ZipFile]:
    """The ZIP in a package, opened by its passphrase or by an age identity (`AGE-SECRET-KEY-1...`); nothing is written.

    Raises `CannotOpen` for a wrong passphrase or key, and, also later, for what is damaged.
    """
    try:
        with zipfile.ZipFile(BufferedReader(Decrypting(file, passphrase=passphrase, identity=identity))) as archive:
            yield archive
    except (zipfile.BadZipFile, EOFError):
        raise CannotOpen("the file is damaged: what is in it is no package") from None


def manifest_of(archive: zipfile.ZipFile) -> dict[str, Any]:
    """What a package says of its files. Raises `CannotOpen` for a ZIP that is none, or holds what the manifest does not."""
    try:
        found: Any = msgspec.json.decode(archive.read(MANIFEST))
        if found["format"] != FORMAT or {MANIFEST, *found["files"]} != set(archive.namelist()):
            raise ValueError
    except (KeyError, TypeError, ValueError):
        raise CannotOpen("the file is damaged: its manifest and its files differ") from None
    return dict(found)


class _Parts:
    """The parts of a copy, for a thread: the event loop that made this fetches them."""

    def __init__(self, blobs: Blobs, place: str, key: Key) -> None:
        self._blobs, self._place, self._key = blobs, place, key
        self._loop, self._over = asyncio.get_running_loop(), threading.Event()

    def give_up(self) -> None:
        """Nobody waits for the package any more."""
        self._over.set()

    def open(self, holder: str, table: str, number: int) -> bytes:
        """A part, opened. Raises `NotWhole` when it is not there."""
        raw = self._ask(self._blobs.get, holder, table, number)
        return open_bytes(self._key, raw.decode("ascii", "replace"), where=WHERE)

    def size(self, holder: str, table: str, number: int) -> int:
        """At least as many bytes as the part has when it is opened."""
        return self._ask(self._blobs.size, holder, table, number)

    def _ask(self, ask: Callable[[str], Coroutine[Any, Any, _A | None]], holder: str, table: str, number: int) -> _A:
        if self._over.is_set():
            raise NotWhole("the package was given up")
        name = f"{self._place}/{holder}/{table}/{number:06d}"
        try:
            found = asyncio.run_coroutine_threadsafe(ask(name), self._loop).result(_PATIENCE)
        except TimeoutError:
            raise BlobsAway("a part of a copy does not come") from None
        if found is None:
            raise NotWhole(f"{holder}: a part of {table} is not there")
        return found


class _Packer:
    """Makes one package, in one thread (and one that is a part ahead)."""

    def __init__(
        self,
        parts: _Parts,
        case: str,
        made_at: datetime,
        holders: Sequence[str],
        missing: tuple[Missing, ...],
        disclosed: tuple[Disclosed, ...],
    ) -> None:
        self._parts, self._case, self._made_at = parts, case, made_at
        self._holders, self._missing, self._disclosed = holders, missing, disclosed
        self._built: Built | None = None

    def built(self) -> Built:
        """What was made."""
        assert self._built is not None, "nothing was packed"
        return self._built

    def pack(self, out: Sink, opener: Opener) -> None:
        """Writes the package to `out`."""
        contents = self._contents()
        counted = _Counted(out)
        sealed = Encrypting(counted, opener)
        with _Zip(sealed, self._made_at) as archive, ThreadPoolExecutor(1, "steward-package") as ahead:
            archive.add("index.html", page(contents).encode())
            for source in contents.sources:
                if source.told.parts:
                    self._rows(archive, source, ahead)
                    archive.add(source.files[2], _json(schema(source)))
            archive.add(MANIFEST, _json(manifest(contents, archive.files)))
        sealed.close()
        counts = {f"{source.holder}.{source.table}": source.told.rows for source in contents.sources}
        self._built = Built(counted.size, counted.hash.hexdigest(), sum(counts.values()), counts)

    def _contents(self) -> Contents:
        sources: list[Source] = []
        missing = list(self._missing)
        spans = set()
        for holder in self._holders:
            try:
                said = told.read(self._parts.open(holder, told.MAP, 0))
            except ValueError:
                raise NotWhole(f"{holder}: what it says of its copy cannot be read") from None
            sources += [Source(holder, table, about) for table, about in sorted(said.tables.items())]
            missing += _left_out(holder, said)
            spans.add((said.since, said.until))
        if len(spans) > 1:
            raise NotWhole("the holders' copies are of different spans of time")
        since, until = spans.pop() if spans else (None, None)
        return Contents(
            self._case, self._made_at, policy(), tuple(sources), tuple(missing), since, until, self._disclosed
        )

    def _rows(self, archive: _Zip, source: Source, ahead: ThreadPoolExecutor) -> None:
        lines, sheet, _ = source.files
        place, parts = (source.holder, source.table), range(source.told.parts)
        # A cell is no longer than its value with its name in JSON: the sheet is not larger than the lines.
        large = sum(self._parts.size(*place, number) for number in parts) > _LARGE
        count = 0
        with archive.member(lines, large) as write:
            for text in _ahead(lambda number: self._parts.open(*place, number), parts, ahead):
                count += text.count(b"\n") + 1
                write(text)
                write(b"\n")
        if count != source.told.rows:
            raise NotWhole(f"{source.holder}: {source.table} has {count} rows, and should have {source.told.rows}")
        columns = source.columns

        def as_sheet(number: int) -> bytes:
            return sheets.of_json(columns, self._parts.open(*place, number)).encode()

        with archive.member(sheet, large) as write:
            write(sheets.header(columns).encode())
            for text in _ahead(as_sheet, parts, ahead):
                write(text)


def _ahead(make: Callable[[_A], _B], items: Iterable[_A], thread: ThreadPoolExecutor) -> Iterator[_B]:
    """`make` of each item, in order, while the one before is being worked with."""
    waiting = None
    for item in items:
        coming = thread.submit(make, item)
        if waiting is not None:
            yield waiting.result()
        waiting = coming
    if waiting is not None:
        yield waiting.result()


class _Zip:
    """Writes a ZIP from front to back, and notes the digest of each of its files."""

    def __init__(self, out: Encrypting, made_at: datetime) -> None:
        self.files: dict[str, dict[str, Any]] = {}
        self._made_at = made_at.astimezone(UTC)
        self._zip = zipfile.ZipFile(out, "w", zipfile.ZIP_DEFLATED, compresslevel=_LEVEL)

    def __enter__(self) -> _Zip:
        return self

    def __exit__(self, kind: object, error: object, trace: object) -> None:
        if kind is None:
            self._zip.close()

    def add(self, name: str, text: bytes) -> None:
        """A file that is there as a whole."""
        with self.member(name) as write:
            write(text)

    @contextmanager
    def member(self, name: str, large: bool = False) -> Iterator[Callable[[bytes], None]]:
        """A file, piece by piece."""
        about = zipfile.ZipInfo(name, self._made_at.timetuple()[:6])
        about.compress_type, about.external_attr = zipfile.ZIP_DEFLATED, 0o600 << 16
        about._compresslevel = _LEVEL  # type: ignore[attr-defined]
        digest, size = hashlib.sha256(), 0
        with self._zip.open(about, "w", force_zip64=large) as member:

            def write(text: bytes) -> None:
                nonlocal size
                digest.update(text)
                size += len(text)
                member.write(text)

            yield write
        self.files[name] = {"sha256": digest.hexdigest(), "bytes": size}


@dataclass(slots=True)
class _Counted:
    out: Sink
    size: int = 0
    hash: Any = field(default_factory=hashlib.sha256)

    def write(self, data: bytes, /) -> int:
        self.out.write(data)
        self.hash.update(data)
        self.size += len(data)
        return len(data)


def manifest(contents: Contents, files: Mapping[str, Any]) -> dict[str, Any]:
    """What stands in manifest.json: for programs, and to see that nothing was changed."""
    said = contents.policy
    return {
        "format": FORMAT,
        "case": contents.case,
        "made_at": rfc3339(contents.made_at),
        "since": contents.since,
        "until": contents.until,
        "policy": {"version": said.version, "region": said.region},
        "recipients": [
            {"title": recipient.title, "use": recipient.use, "fields": list(recipient.fields)}
            for recipient in said.recipients.values()
        ],
        "sources": [
            {
                "holder": source.holder, "table": source.table, "rows": source.told.rows,
                "left_out": source.told.left_out, "files": source.files, "columns": list(source.told.columns),
            }
            for source in contents.sources
        ],
        "missing": [{"source": gap.source, "why": gap.why} for gap in contents.missing],
        "disclosures": [asdict(one) for one in contents.disclosed],
        "files": dict(files),
    }  # fmt: skip


_TYPES: Mapping[str, Mapping[str, Any]] = {
    "smallint": {"type": "integer"}, "integer": {"type": "integer"}, "bigint": {"type": "integer"},
    "numeric": {"type": "number"}, "real": {"type": "number"}, "double precision": {"type": "number"},
    "boolean": {"type": "boolean"}, "jsonb": {}, "json": {}, "uuid": {"type": "string", "format": "uuid"},
    "date": {"type": "string", "format": "date"},
    "timestamp with time zone": {"type": "string", "format": "date-time"},
    "bytea": {"type": "string", "pattern": r"^\\x([0-9a-f]{2})*$"},
}  # fmt: skip


def schema(source: Source) -> dict[str, Any]:
    """The JSON Schema of a line of a table."""
    return {
        "$schema": "https://json-schema.org/draft/2020-12/schema",
        "title": f"{source.holder}.{source.table}",
        "type": "object",
        "properties": {column.name: _property(column) for column in source.told.columns},
        "required": source.columns,
        "additionalProperties": False,
    }


def _property(column: ToldColumn) -> dict[str, Any]:
    if column.type.endswith("[]"):
        inner: dict[str, Any] = {"type": "array", "items": dict(_TYPES.get(column.type[:-2], {"type": "string"}))}
    else:
        inner = dict(_TYPES.get(column.type, {"type": "string"}))
    if column.nullable and "type" in inner:
        inner["type"] = [inner["type"], "null"]
    words = [column.category, column.note, "Ids of other people are null." if column.hides_others else ""]
    return inner | {"description": "; ".join(filter(None, words)), "x-postgresql": column.type}


def _left_out(holder: str, said: told.Told) -> Iterator[Missing]:
    """What a copy leaves out, by what it says of itself."""
    for table, about in sorted(said.tables.items()):
        if about.left_out is not None:
            yield Missing(
                f"{holder}.{table}", "It says how things are, not what happened when: no part of a span of time."
            )
        # A table that knows one kind of id alone has rows of its owner, and names nobody else.
        if about.rows and sum(column.hides_others for column in about.columns) > 1:
            yield Missing(
                f"{holder}.{table}", "Where a row names other people or keys, their ids are left out, for their sake."
            )
    for table in sorted(said.unlinked):
        yield Missing(
            f"{holder}.{table}", "Nothing in it leads to a person by itself, so nobody can tell which rows are yours."
        )


def _json(value: Any) -> bytes:
    return msgspec.json.format(msgspec.json.encode(value), indent=1) + b"\n"


__all__ = [
    "FORMAT", "MANIFEST", "Built", "Contents", "Missing", "NotWhole", "Opener", "Source", "build", "case_of_package", "manifest",
    "manifest_of", "opened", "package_name", "package_place", "schema",
]  # fmt: skip
