"""The code that a person reads in a mail and types in."""

from __future__ import annotations

from collections.abc import Callable

ALPHABET = "23456789ABCDEFGHJKMNPQRSTUVWXYZ"
"""0-9A-Z without what looks alike: 0 and O, 1 and I and L."""
LENGTH = 8


def draw(random_bits: Callable[[int], int]) -> str:
    """A code of eight characters, each as likely as any other: 39 bits. `random_bits(n)` gives n random bits."""
    found = ""
    while len(found) < LENGTH:
        number = random_bits(5)
        if number < len(ALPHABET):
            found += ALPHABET[number]
    return found
