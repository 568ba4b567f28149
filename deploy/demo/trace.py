"""Traces: files of arrivals with token counts, read row by row.

Columns `TIMESTAMP,ContextTokens,GeneratedTokens`, in any order, further ones are passed over. A time without a
zone is UTC; digits beyond the microsecond are cut off. CRLF, a byte order mark and a missing last line feed are
fine. A file is looked through once before anything starts, so that a bad row is refused with its line number.
"""

from __future__ import annotations

import csv
import re
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from itertools import islice
from pathlib import Path
from typing import NamedTuple

COLUMNS = ("TIMESTAMP", "ContextTokens", "GeneratedTokens")
TOKENS_MAX = 10**9
"""More than any model reads; a row above it is a broken file, not a large request."""

_TIME = re.compile(
    r"(\d{4}-\d\d-\d\d)[T ](\d\d:\d\d:\d\d)(?:\.(\d{1,6})\d*)?\s?(Z|[+-]\d\d:?\d\d)?",
    re.ASCII | re.IGNORECASE,
)
_COUNT = re.compile(r"\d{1,12}", re.ASCII)


class BadTrace(Exception):
    """A file that is no trace; the text names file and line and says what is wrong there."""


class Row(NamedTuple):
    """One generation: when it came, what it read and wrote."""

    at: datetime
    context_tokens: int
    generated_tokens: int


@dataclass(frozen=True, slots=True)
class Trace:
    """A file that was looked through: how many rows will be played, and from when to when they reach."""

    path: Path
    rows: int
    first: datetime
    last: datetime

    @property
    def span(self) -> timedelta:
        """From the earliest row to the latest."""
        return self.last - self.first

    def played(self, last_at: datetime) -> Iterator[Row]:
        """The rows with their distances kept, so that the latest lies at `last_at`."""
        shift = last_at - self.last
        for row in islice(read(self.path), self.rows):
            yield Row(row.at + shift, row.context_tokens, row.generated_tokens)


def examine(path: Path, limit: int | None = None) -> Trace:
    """Looks through a whole file, and notes its first `limit` rows (all). Raises BadTrace."""
    rows = 0
    first = last = None
    for row in read(path):
        if limit is not None and rows >= limit:
            continue  # it is not played, but a file with a bad row is refused as a whole
        rows += 1
        first = row.at if first is None else min(first, row.at)
        last = row.at if last is None else max(last, row.at)
    if first is None or last is None:
        raise BadTrace(f"{path}: there is no row in it")
    return Trace(path, rows, first, last)


def read(path: Path) -> Iterator[Row]:
    """The rows of a file, in its order. Raises BadTrace."""
    try:
        # Bytes that are not UTF-8 come through as what no column accepts, so that the line number is exact.
        file = path.open(encoding="utf-8-sig", errors="surrogateescape", newline="")
    except OSError as error:
        raise BadTrace(f"{path}: cannot be read ({error.strerror})") from error
    with file:
        lines = csv.reader(file, strict=True)
        where = _columns(path, lines)
        try:
            for cells in lines:
                if cells:
                    yield _row(cells, where)
        except (csv.Error, ValueError) as error:
            raise BadTrace(f"{path}, line {lines.line_num}: {error}") from error


def _columns(path: Path, lines: Iterator[list[str]]) -> tuple[int, int, int]:
    try:
        header = [name.strip() for name in next(lines, [])]
    except csv.Error as error:
        raise BadTrace(f"{path}, line 1: {error}") from error
    missing = [name for name in COLUMNS if name not in header]
    if missing:
        raise BadTrace(f"{path}, line 1: no column {', '.join(missing)}; a trace begins with {','.join(COLUMNS)}")
    time, context, generated = (header.index(name) for name in COLUMNS)
    return time, context, generated


def _row(cells: list[str], where: tuple[int, int, int]) -> Row:
    if len(cells) <= max(where):
        raise ValueError(f"{len(cells)} columns, {max(where) + 1} are needed")
    time, context, generated = (cells[n].strip() for n in where)
    return Row(_instant(time), _tokens("ContextTokens", context), _tokens("GeneratedTokens", generated))


def _instant(text: str) -> datetime:
    match = _TIME.fullmatch(text)
    if match is None:
        raise ValueError(f"TIMESTAMP is no time such as 2023-11-16 18:17:03.9799600: {text[:40]!r}")
    day, clock, fraction, zone = match.groups()
    whole = f"{day}T{clock}.{(fraction or '0').ljust(6, '0')}"
    try:
        if zone is None:
            return datetime.fromisoformat(whole).replace(tzinfo=UTC)
        return datetime.fromisoformat(whole + zone.upper()).astimezone(UTC)
    except (ValueError, OverflowError) as error:
        raise ValueError(f"TIMESTAMP is no time ({error}): {text[:40]!r}") from error


def _tokens(column: str, text: str) -> int:
    if not _COUNT.fullmatch(text):
        raise ValueError(f"{column} is not a whole number: {text[:40]!r}")
    if int(text) > TOKENS_MAX:
        raise ValueError(f"{column} is above {TOKENS_MAX:,}: {text[:40]!r}")
    return int(text)
