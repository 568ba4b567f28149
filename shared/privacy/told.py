"""What a holder's part of a copy says of itself: its tables, column by column, so that whoever packs it needs no map.

It stands beside the rows as `case/epoch/holder/_map/000000`, sealed like them, and is written last: with it a part is whole.
"""

from __future__ import annotations

import re

import msgspec

FORMAT = "steward.copy.v1"
MAP = "_map"
"""In place of a table's name."""
_NAME = re.compile(r"[a-z_][a-z0-9_]{0,62}")


class ToldColumn(msgspec.Struct, frozen=True):
    """A column. `type`: as PostgreSQL names it, and of what is shown. `hides_others`: ids of other people are left out.

    `period`: a period that has a name (`data_map.NamedPeriod`), or None; `days`: the longest that it can be, or None.
    """

    name: str
    type: str
    nullable: bool
    hides_others: bool
    category: str
    use: str
    ground: str
    clock_start: str
    period: str | None
    days: int | None
    note: str


class ToldTable(msgspec.Struct, frozen=True):
    """A table: its rows in the copy, and in how many parts (blobs) they are. `left_out`: why there are none ("range")."""

    rows: int
    parts: int
    left_out: str | None
    columns: tuple[ToldColumn, ...]


class Told(msgspec.Struct, frozen=True):
    """All of one holder. `unlinked`: tables with something personal that leads to nobody -> its categories."""

    format: str
    holder: str
    map_version: str
    tables: dict[str, ToldTable]
    unlinked: dict[str, tuple[str, ...]]
    since: str | None = None
    until: str | None = None


def read(raw: bytes) -> Told:
    """What stands in a `_map` part. Raises ValueError for one that is not of this format."""
    try:
        told = msgspec.json.decode(raw, type=Told)
    except (msgspec.DecodeError, UnicodeDecodeError):
        raise ValueError("this is not what a copy says of itself") from None
    names = [*told.tables, *(column.name for table in told.tables.values() for column in table.columns)]
    if told.format != FORMAT or not all(map(_NAME.fullmatch, names)):
        raise ValueError("this is not what a copy says of itself")
    return told
