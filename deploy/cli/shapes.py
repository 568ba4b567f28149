"""Texts of a shape that the contract demands; what does not fit is never sent."""

from __future__ import annotations

import re
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
