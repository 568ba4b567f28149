"""Errors for logs: what and where, never with which values."""

from __future__ import annotations

import traceback
from pathlib import Path

_ROOT = Path(__file__).resolve().parents[2]


def where(error: BaseException) -> str:
    """`error` as its type and its innermost frames of this project.

    Texts of errors carry field values (a database names the row that it refuses), so none goes into a log.
    """
    frames = traceback.extract_tb(error.__traceback__)
    ours = [f for f in frames if f.filename.startswith(str(_ROOT)) and ".venv" not in f.filename][-3:]
    way = " < ".join(f"{Path(f.filename).relative_to(_ROOT)}:{f.lineno}" for f in reversed(ours))
    return f"{type(error).__name__} at {way or 'unknown'}"
