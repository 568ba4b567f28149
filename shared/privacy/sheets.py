"""Rows as CSV (RFC 4180), for spreadsheets: no cell can be a formula there, and each one leads back to its value.

A cell is empty for null. Numbers, true and false stand as in JSON, and so do lists and objects, as JSON text. A text stands
as it is; one that is empty, or that a spreadsheet could take for a formula (it begins with one of `= + - @`, a tab or a line
break, also after apostrophes), gets one more apostrophe before it. So whoever reads takes one apostrophe away where a text
cell has apostrophes and then one of these, or nothing. Whether a cell is a text, the JSON Schema beside it says.
"""

from __future__ import annotations

import csv
import io
import re
from collections.abc import Iterable, Mapping, Sequence
from decimal import Decimal
from operator import itemgetter
from typing import Any

import msgspec

# The last four are what an East Asian keyboard writes: spreadsheets take them as well.
_FORMULA = "=+\\-@\t\r\n\uff1d\uff0b\uff0d\uff20"
_SIGNED = re.compile(f"'*(?:[{_FORMULA}]|\\Z)")
_UNSIGNED = re.compile(f"'+(?:[{_FORMULA}]|\\Z)")
# In JSON: a value that does not stand in its cell as it is. A text that begins with an apostrophe, an escape, or what a
# formula begins with; an empty one; true and false; a list or an object.
_DIFFICULT = re.compile(rb':[ \t]*(?:"(?:[\'=+\-@"\\\t]|\xef\xbc)|[tf{\[])')
_read = msgspec.json.Decoder(float_hook=Decimal)
_encoder = msgspec.json.Encoder(decimal_format="number")


def header(columns: Sequence[str]) -> str:
    """The first row."""
    return lines(columns, [{column: column for column in columns}])


def lines(columns: Sequence[str], rows: Iterable[Mapping[str, Any]]) -> str:
    """Rows as CSV, each with all `columns`. Raises KeyError for one that lacks a column."""
    return _written([cell(row[column]) for column in columns] for row in rows)


def of_json(columns: Sequence[str], text: bytes) -> str:
    """JSON Lines as CSV: the same as `lines` of what they say."""
    rows = _read.decode_lines(text)
    if len(columns) < 2 or _DIFFICULT.search(text) is not None:
        return lines(columns, rows)
    # Nearly always: no cell needs more than the writer does by itself.
    return _written(map(itemgetter(*columns), rows))


def _written(cells: Iterable[Iterable[Any]]) -> str:
    out = io.StringIO()
    csv.writer(out, lineterminator="\r\n").writerows(cells)
    return out.getvalue()


def cell(value: Any) -> str | int:
    """What stands for a value."""
    if isinstance(value, str):
        return f"'{value}" if _SIGNED.match(value) else value
    if value is None:
        return ""
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, int):
        return value
    if isinstance(value, Decimal):
        return str(value)
    return _encoder.encode(value).decode()


def text(cell: str) -> str | None:
    """The text that stands in a cell; None for null."""
    if cell == "":
        return None
    return cell[1:] if _UNSIGNED.match(cell) else cell
