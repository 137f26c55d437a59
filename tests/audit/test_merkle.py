"""RFC 6962 trees: known answers, and proofs that hold for what is true and nothing else."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from authority.audit.merkle import (
    EMPTY,
    Frontier,
    Tree,
    leaf_hash,
    verify_consistency,
    verify_inclusion,
)

# The leaves and roots of the Certificate Transparency test vectors.
LEAVES = [
    bytes.fromhex(text)
    for text in (
        "",
        "00",
        "10",
        "2021",
        "3031",
        "40414243",
        "5051525354555657",
        "606162636465666768696a6b6c6d6e6f",
    )
]
ROOTS = {
    1: "6e340b9cffb37a989ca544e6bb780a2c78901d3fb33738768511a30617afa01d",
    2: "fac54203e7cc696cf0dfcb42c92a1d9dbaf70ad9e621f4bd8d98662f00e3c125",
    3: "aeb6bcfe274b70a14fb067a5e5578264db0fa9b51af5e0ba159158f329e06e77",
    8: "5dc9da79a70659a9ad559cb701ded9a2ab9d823aad2f4960cfe370eff4604328",
}


def hashes(count: int) -> list[bytes]:
    return [leaf_hash(b"%d" % number) for number in range(count)]


def test_known_roots() -> None:
    tree = Tree([leaf_hash(leaf) for leaf in LEAVES])
    assert Tree([]).root() == EMPTY
    for size, root in ROOTS.items():
        assert tree.root(size).hex() == root


def naive(leaves: list[bytes]) -> bytes:
    from hashlib import sha256

    if len(leaves) == 1:
        return leaves[0]
    split = 1
    while split * 2 < len(leaves):
        split *= 2
    return sha256(b"\1" + naive(leaves[:split]) + naive(leaves[split:])).digest()


@given(st.integers(1, 70), st.data())
@settings(max_examples=60, deadline=None)
def test_proofs_hold_and_changed_ones_do_not(size: int, data: st.DataObject) -> None:
    leaves = hashes(size)
    tree = Tree(leaves)
    frontier = Frontier()
    for leaf in leaves:
        frontier.add(leaf)
    root = tree.root()
    assert root == naive(leaves) == frontier.root()

    index = data.draw(st.integers(0, size - 1))
    path = tree.inclusion(index)
    assert verify_inclusion(index, size, leaves[index], path, root)
    assert not verify_inclusion(index, size, leaf_hash(b"other"), path, root)
    assert not verify_inclusion(index, size, leaves[index], [*path, bytes(32)], root)
    assert not verify_inclusion(size, size, leaves[index], path, root)
    for other in range(size):
        if other != index:
            assert not verify_inclusion(other, size, leaves[index], path, root)
    if path:
        assert not verify_inclusion(index, size, leaves[index], path[:-1], root)

    old = data.draw(st.integers(1, size))
    proof = tree.consistency(old)
    before = tree.root(old)
    assert verify_consistency(old, size, before, root, proof)
    assert not verify_consistency(old, size, bytes(32), root, proof)
    if old != size:
        assert not verify_consistency(old, size, before, bytes(32), proof)
        assert not verify_consistency(old, size, before, root, proof[:-1])
        assert not verify_consistency(old, size, before, root, [*proof, bytes(32)])
        forked = Tree([*leaves[: old - 1], leaf_hash(b"forked"), *leaves[old:]])
        assert not verify_consistency(old, size, before, forked.root(), forked.consistency(old))


def test_no_proof_beyond_the_tree() -> None:
    tree = Tree(hashes(3))
    for wrong in (-1, 3):
        with pytest.raises(ValueError, match="leaf"):
            tree.inclusion(wrong)
    with pytest.raises(ValueError, match="consistency"):
        tree.consistency(0)
    assert not verify_consistency(3, 2, tree.root(), tree.root(2), [])
    assert verify_consistency(0, 3, EMPTY, tree.root(), [])
