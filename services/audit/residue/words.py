"""How an id is looked for in text and bytes: as a whole word, so that `acc-7` is not found in `acc-71`."""

from __future__ import annotations

import re
from collections.abc import Collection

# What may stand in an id (the contract's `Id`): a neighbour of this kind makes it another one.
_WORD = "A-Za-z0-9_.:-"
_SPECIAL = re.compile(r"([.\\+*?\[\](){}^$|])")
_TOKEN = re.compile(rb"[A-Za-z0-9][A-Za-z0-9_.:-]{0,63}")
# The same characters as hex digits, for bytes that PostgreSQL prints.
_HEX_WORD = "(2d|2e|3[0-9a]|4[1-9a-f]|5[0-9af]|6[1-9a-f]|7[0-9a])"


def pattern(ids: Collection[str]) -> str:
    """A PostgreSQL regular expression that finds any of the ids in a row's text, in plain or as the hex of bytes."""
    plain = "|".join(sorted(_SPECIAL.sub(r"\\\1", value) for value in ids))
    coded = "|".join(sorted(value.encode().hex() for value in ids))
    return f"(?<![{_WORD}])({plain})(?![{_WORD}])|({coded})(?!{_HEX_WORD})"


def found_in(ids: Collection[str], text: bytes) -> set[str]:
    """Which of the ids stand in the bytes as whole words."""
    return {word for token in _TOKEN.findall(text) for word in _readings(token.decode()) if word in ids}


def _readings(token: str) -> set[str]:
    """A sentence's full stop, or a colon behind a name, is no part of an id."""
    stripped = token.rstrip(".:-_")
    return {token, stripped, *stripped.split(":")}
