"""The Merkle log: known roots, and that every proof holds and no other does."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from shared.privacy import merkle

# Leaves and roots of the test vectors that come with Certificate Transparency's reference implementation.
LEAVES = [
    bytes.fromhex(text)
    for text in ("", "00", "10", "2021", "3031", "40414243", "5051525354555657", "606162636465666768696a6b6c6d6e6f")
]
ROOTS = {
    1: "6e340b9cffb37a989ca544e6bb780a2c78901d3fb33738768511a30617afa01d",
    2: "fac54203e7cc696cf0dfcb42c92a1d9dbaf70ad9e621f4bd8d98662f00e3c125",
    3: "aeb6bcfe274b70a14fb067a5e5578264db0fa9b51af5e0ba159158f329e06e77",
    8: "5dc9da79a70659a9ad559cb701ded9a2ab9d823aad2f4960cfe370eff4604328",
}


def grown(leaves: list[bytes]) -> dict[tuple[int, int], bytes]:
    """The nodes of a log of these leaves, appended one by one."""
    nodes: dict[tuple[int, int], bytes] = {}
    for size, data in enumerate(leaves):
        for level, position, digest in merkle.appended(size, merkle.leaf_hash(data), lambda a, b: nodes[a, b]):
            nodes[level, position] = digest
    return nodes


@pytest.mark.parametrize("size", sorted(ROOTS))
def test_known_roots(size: int) -> None:
    nodes = grown(LEAVES[:size])
    assert merkle.root(size, lambda a, b: nodes[a, b]).hex() == ROOTS[size]


def test_every_proof_of_every_size_holds() -> None:
    leaves = [bytes([n]) for n in range(40)]
    nodes = grown(leaves)

    def get(level: int, position: int) -> bytes:
        return nodes[level, position]

    for size in range(1, 41):
        top = merkle.root(size, get)
        for index in range(size):
            proof = merkle.inclusion(index, size, get)
            assert merkle.included(merkle.leaf_hash(leaves[index]), index, size, proof, top)
            assert not merkle.included(merkle.leaf_hash(b"other"), index, size, proof, top)
            assert (
                not merkle.included(merkle.leaf_hash(leaves[index]), (index + 1) % size, size, proof, top) or size == 1
            )
        for before in range(size + 1):
            proof = merkle.consistency(before, size, get)
            old = merkle.root(before, get)
            assert merkle.consistent(before, size, old, top, proof)
            if before not in (0, size):
                assert not merkle.consistent(before, size, top, top, proof)


@given(st.integers(1, 60), st.data())
def test_a_changed_proof_does_not_hold(size: int, data: st.DataObject) -> None:
    nodes = grown([bytes([n]) for n in range(size)])

    def get(level: int, position: int) -> bytes:
        return nodes[level, position]

    index = data.draw(st.integers(0, size - 1))
    proof = merkle.inclusion(index, size, get)
    if not proof:
        return
    place = data.draw(st.integers(0, len(proof) - 1))
    bit = data.draw(st.integers(0, 255))
    wrong = list(proof)
    wrong[place] = (int.from_bytes(wrong[place], "big") ^ 1 << bit).to_bytes(32, "big")
    leaf, top = merkle.leaf_hash(bytes([index])), merkle.root(size, get)
    assert not merkle.included(leaf, index, size, wrong, top)
    assert not merkle.included(leaf, index, size, proof[:-1], top)
    assert not merkle.included(leaf, index, size, [*proof, proof[0]], top)


def test_only_the_edge_is_read() -> None:
    assert merkle.needs(lambda get: merkle.root(1_000_000, get)) == merkle.needs(
        lambda get: merkle.root(1_000_000, get)
    )
    assert len(merkle.needs(lambda get: merkle.root(1_000_000, get))) < 21
    assert len(merkle.needs(lambda get: merkle.inclusion(999_998, 1_000_000, get))) < 60
