"""JSON as it is meant: exact numbers, no NaN, no member twice. For documents that people and providers hand over."""

from __future__ import annotations

import json
from decimal import Decimal
from typing import Any


def exact_json(raw: bytes) -> Any:
    """The document, fractions as Decimal. Raises ValueError with what is wrong and where; it repeats nothing of it."""
    try:
        return json.loads(raw, parse_float=Decimal, parse_constant=_no_number, object_pairs_hook=_once)
    except UnicodeDecodeError as error:
        raise ValueError(f"not UTF-8 at byte {error.start}") from None
    except json.JSONDecodeError as error:
        raise ValueError(f"{error.msg}: line {error.lineno}, column {error.colno}") from None
    except (ArithmeticError, RecursionError) as error:
        raise ValueError(type(error).__name__) from None


def _no_number(_: str) -> None:
    raise ValueError("NaN and Infinity are no numbers")


def _once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    members = dict(pairs)
    if len(members) != len(pairs):
        raise ValueError("a member comes twice in one object")
    return members
