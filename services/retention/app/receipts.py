"""Receipts as they are kept: numbers and names of tables and columns, nobody's id."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from shared.mesh.transaction import rfc3339


def kept(data: Any) -> dict[str, Any]:
    """A receipt as it is kept: numbers and names of tables and columns."""
    return {
        "treated": [
            {
                "table": one.table, "action": one.action, "columns": list(one.columns), "rows": one.rows,
                "remaining": one.remaining,
                "retained": None
                if one.retained is None
                else {"ground": one.retained.ground, "until": rfc3339(one.retained.until)},
                "not_after": None if one.not_after is None else rfc3339(one.not_after),
            }
            for one in data.treated
        ],
        "map_version": data.map_version,
        "code_version": data.code_version,
        "offsets": plain(data.offsets),
    }  # fmt: skip


def plain(offsets: Mapping[str, Mapping[str, int]]) -> dict[str, dict[str, int]]:
    """Offsets as JSON has them."""
    return {topic: dict(parts) for topic, parts in offsets.items()}
