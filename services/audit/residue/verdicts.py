"""What a hit means: by what the holder's data map says of the column in which it was found."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from datetime import datetime, timedelta
from typing import Any, NamedTuple

# From the best to the worst.
_ORDER = ("clean", "shredded", "retained", "held", "expiring", "residue", "not_scanned")


class Mapped(NamedTuple):
    """What a holder's map says of a column."""

    on_erasure: str
    ground: str
    period_days: int | None


def judge(column: Mapped | None, now: datetime) -> dict[str, Any]:
    """The verdict on a hit in a column: `expire` ends by itself, `retain` has a ground, and all else is residue."""
    if column is None:
        return {"verdict": "residue"}  # nobody has declared it
    if column.on_erasure == "expire" and column.period_days is not None:
        return {"verdict": "expiring", "not_after": now + timedelta(days=column.period_days)}
    if column.on_erasure == "retain" and column.ground != "none" and column.period_days is not None:
        return {
            "verdict": "retained", "ground": column.ground, "not_after": now + timedelta(days=column.period_days)
        }  # fmt: skip
    return {"verdict": "residue"}


def worst(verdicts: Iterable[Mapping[str, Any]]) -> dict[str, Any]:
    """The worst of several verdicts on one store; `clean` if there is none. Their ends: the latest."""
    found = list(verdicts)
    if not found:
        return {"verdict": "clean"}
    chosen = dict(max(found, key=lambda v: _ORDER.index(v["verdict"])))
    ends = [v["not_after"] for v in found if v.get("not_after") is not None]
    if ends and chosen["verdict"] in ("expiring", "retained"):
        chosen["not_after"] = max(ends)
    return chosen
