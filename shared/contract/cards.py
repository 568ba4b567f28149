"""Numbers shaped like a payment card's: nothing that looks like one may leave the platform in an event, or be kept.

A card number has 13 to 19 digits, an issuer's first digits with that issuer's length, and a last digit that makes the
Luhn sum a multiple of ten (ISO/IEC 7812-1). Single blanks, dashes and other separators between its digits do not hide
it, nor does a number before it. What merely has the shape is refused as well, which one in ten numbers of the right
length and first digits does: ids should not be bare decimal numbers of 13 digits or more.
"""

from __future__ import annotations

import re

_SEPARATOR = r"[ ._:/+~@-]"
# First digits and the number of digits after them, by issuer.
_CARD = re.compile(
    r"4(?:[0-9]{12}|[0-9]{15}|[0-9]{18})"  # Visa
    r"|(?:5[1-5][0-9]{2}|222[1-9]|22[3-9][0-9]|2[3-6][0-9]{2}|27[01][0-9]|2720)[0-9]{12}"  # Mastercard
    r"|3[47][0-9]{13}"  # American Express
    r"|(?:30[0-5]|309|36[0-9]|3[89][0-9])[0-9]{11,16}"  # Diners Club
    r"|(?:6011|64[4-9][0-9]|65[0-9]{2}|62[0-9]{2}|35(?:2[89]|[3-8][0-9])|220[0-4])[0-9]{12,15}"  # Discover, UnionPay, JCB, Mir
    r"|(?:50|5[6-8]|6[0-9])[0-9]{11,17}"  # Maestro
)
_QUICK = re.compile(rf"(?<![0-9])(?:2[2-7]|3[04-9]|4[0-9]|5[0-8]|6[0-9])(?:{_SEPARATOR}?[0-9]){{11}}")
_RUN = re.compile(rf"[0-9](?:{_SEPARATOR}?[0-9]){{12,}}")
_WORD = re.compile(r"[0-9A-Za-z]+")
_HASH = re.compile(r"(?=[0-9]*[A-Fa-f])(?:[0-9a-f]{8,}|[0-9A-F]{8,})")
_UUID = re.compile(r"[0-9A-Fa-f]{8}(?:-[0-9A-Fa-f]{4}){3}-[0-9A-Fa-f]{12}")

may_hold_card = _QUICK.search
"""A quick look, at several texts joined by line feeds if need be: what it passes over holds no card number."""


def holds_card(text: str) -> bool:
    """Whether a value has a card-shaped number in it.

    Digits of a UUID, and of a hexadecimal hash (8 characters or more in one case, letters among them), are none: chance
    alone would refuse a few of those in every hundred thousand.
    """
    if _QUICK.search(text) is None or _UUID.fullmatch(text):
        return False
    shown = _WORD.sub(lambda word: "x" if _HASH.fullmatch(word[0]) else word[0], text)
    return any(_in_groups(re.split(_SEPARATOR, run[0])) for run in _RUN.finditer(shown))


def masked(raw: bytes) -> bytes:
    """`raw` with an asterisk for each digit of what has a card's shape: what was no event and is kept for a person.

    An asterisk is no part of a number, an id or JSON, so what was masked is never read as something else. Digits of a
    UUID and of a hexadecimal hash stay, as in `holds_card`.
    """
    text = raw.decode("latin-1")
    if _QUICK.search(text) is None:
        return raw
    shown = _UUID.sub(_crossed_out, text)
    shown = _WORD.sub(lambda word: _crossed_out(word) if _HASH.fullmatch(word[0]) else word[0], shown)
    for run in _RUN.finditer(shown):
        if _in_groups(re.split(_SEPARATOR, run[0])):
            text = text[: run.start()] + re.sub("[0-9]", "*", run[0]) + text[run.end() :]
    return text.encode("latin-1")


def _crossed_out(found: re.Match[str]) -> str:
    return "x" * len(found[0])


def _in_groups(groups: list[str]) -> bool:
    """Whether some groups of digits in a row make a card number."""
    for first in range(len(groups)):
        digits = ""
        for group in groups[first:]:
            digits += group
            if len(digits) > 19:
                break
            if _CARD.fullmatch(digits) and _luhn(digits):
                return True
    return False


def _luhn(digits: str) -> bool:
    total = 0
    for place, digit in enumerate(map(int, reversed(digits))):
        doubled = digit * 2 if place % 2 else digit
        total += doubled - 9 if doubled > 9 else doubled
    return total % 10 == 0
