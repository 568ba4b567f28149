"""A Merkle log (RFC 6962, section 2): an append-only list whose root commits to every leaf, with short proofs.

Pure: the nodes of complete subtrees are read through `get(level, position)`; level 0 are the leaves. `needs` tells which
nodes a computation reads, so that a store can fetch them at once.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Sequence
from typing import TypeVar

Get = Callable[[int, int], bytes]
_T = TypeVar("_T")


def leaf_hash(data: bytes) -> bytes:
    """The hash of a leaf; its prefix keeps it apart from a node's."""
    return hashlib.sha256(b"\0" + data).digest()


def node_hash(left: bytes, right: bytes) -> bytes:
    """The hash of an inner node."""
    return hashlib.sha256(b"\1" + left + right).digest()


def root(size: int, get: Get) -> bytes:
    """The root over the first `size` leaves."""
    return _range(0, size, get) if size else hashlib.sha256(b"").digest()


def appended(size: int, leaf: bytes, get: Get) -> list[tuple[int, int, bytes]]:
    """(level, position, hash) of the complete subtrees that `leaf` (its hash) completes, as number `size`."""
    made = [(0, size, leaf)]
    level, position = 0, size
    while position % 2:
        leaf = node_hash(get(level, position - 1), leaf)
        level, position = level + 1, position // 2
        made.append((level, position, leaf))
    return made


def inclusion(index: int, size: int, get: Get) -> list[bytes]:
    """The proof that leaf `index` is among the first `size`."""
    return _inclusion(index, 0, size, get)


def included(leaf: bytes, index: int, size: int, proof: Sequence[bytes], expected: bytes) -> bool:
    """Whether `proof` shows that `leaf` (its hash) is number `index` under the root `expected` of `size` leaves."""
    if not 0 <= index < size:
        return False
    position, last, found = index, size - 1, leaf
    for step in proof:
        if last == 0:
            return False
        if position % 2 or position == last:
            found = node_hash(step, found)
            while position % 2 == 0 and position:
                position, last = position // 2, last // 2
        else:
            found = node_hash(found, step)
        position, last = position // 2, last // 2
    return last == 0 and found == expected


def consistency(before: int, size: int, get: Get) -> list[bytes]:
    """The proof that the first `before` leaves are still the first ones of `size`; empty when nothing came, or was there."""
    return [] if before in (0, size) else _consistency(before, 0, size, True, get)


def consistent(before: int, size: int, first: bytes, second: bytes, proof: Sequence[bytes]) -> bool:
    """Whether `proof` shows that root `first` of `before` leaves grew into root `second` of `size` leaves."""
    if not 0 <= before <= size:
        return False
    if before in (0, size):
        return not proof and (before == 0 or first == second)
    steps = list(proof)
    if before & (before - 1) == 0:
        steps.insert(0, first)
    if not steps:
        return False
    position, last = before - 1, size - 1
    while position % 2:
        position, last = position // 2, last // 2
    old = new = steps[0]
    for step in steps[1:]:
        if last == 0:
            return False
        if position % 2 or position == last:
            old, new = node_hash(step, old), node_hash(step, new)
            while position % 2 == 0 and position:
                position, last = position // 2, last // 2
        else:
            new = node_hash(new, step)
        position, last = position // 2, last // 2
    return last == 0 and old == first and new == second


def needs(compute: Callable[[Get], object]) -> set[tuple[int, int]]:
    """The nodes that `compute` would read."""
    asked: set[tuple[int, int]] = set()

    def note(level: int, position: int) -> bytes:
        asked.add((level, position))
        return bytes(32)

    compute(note)
    return asked


def _split(size: int) -> int:
    """The largest power of two below `size`."""
    return 1 << (size - 1).bit_length() - 1


def _range(start: int, end: int, get: Get) -> bytes:
    size = end - start
    if size & (size - 1) == 0 and start % size == 0:
        level = size.bit_length() - 1
        return get(level, start >> level)
    middle = start + _split(size)
    return node_hash(_range(start, middle, get), _range(middle, end, get))


def _inclusion(index: int, start: int, end: int, get: Get) -> list[bytes]:
    if end - start == 1:
        return []
    middle = start + _split(end - start)
    if index < middle:
        return [*_inclusion(index, start, middle, get), _range(middle, end, get)]
    return [*_inclusion(index, middle, end, get), _range(start, middle, get)]


def _consistency(before: int, start: int, end: int, known: bool, get: Get) -> list[bytes]:
    if before == end - start:
        return [] if known else [_range(start, end, get)]
    middle = start + _split(end - start)
    if before <= middle - start:
        return [*_consistency(before, start, middle, known, get), _range(middle, end, get)]
    return [*_consistency(before - (middle - start), middle, end, False, get), _range(start, middle, get)]
