"""Texts of a shape that the contract demands; what does not fit is never sent."""

from __future__ import annotations

import re
from datetime import UTC, datetime
from typing import Any

import click


class Shape(click.ParamType):  # type: ignore[type-arg]
    """A text that matches `pattern`; `name` is what it is called."""

    def __init__(self, name: str, pattern: str) -> None:
        self.name, self.pattern = name, pattern

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> str:
        """The text, or the end of the command."""
        if not re.fullmatch(self.pattern, str(value)):
            self.fail(f"this is no {self.name} of the contract", param, ctx)
        return str(value)


ID = Shape("id", r"[A-Za-z0-9][A-Za-z0-9_.:-]{0,63}")
CASE = Shape("case", r"[0-9a-f]{8}-[0-9a-f]{4}-7[0-9a-f]{3}-[89ab][0-9a-f]{3}-[0-9a-f]{12}")
CODE = Shape("code", r"[0-9A-Z]{8}")
RECIPIENT = Shape("recipient", r"age1[02-9ac-hj-np-z]{58}")


def instant(option: str, text: str) -> str:
    """`text`, what was said with `option`, as the contract writes an instant; a day is its midnight, and no zone is UTC."""
    try:
        found = datetime.fromisoformat(text)
    except ValueError:
        raise click.UsageError(f"{option}: a day (2027-03-01) or an instant (2027-03-01T12:00:00Z)") from None
    found = found.replace(tzinfo=UTC) if found.tzinfo is None else found.astimezone(UTC)
    return found.strftime("%Y-%m-%dT%H:%M:%SZ")
