"""What a kernel was told of a mount, as deep as a program makes it."""

from __future__ import annotations

import stat

import pytest

from authority.compat.mount_nodes import Nodes
from authority.kernel.resources import parse


@pytest.mark.parametrize("depth", [10, 2000])
def test_a_tree_as_deep_as_a_path_can_be_is_placed_anew_after_a_rename(depth: int) -> None:
    nodes = Nodes(parse("fs.read", "fs:/d"), (1, 1))
    top = nodes.get(1)
    leaf = top
    for number in range(depth):
        leaf = nodes.enter(leaf, b"a", (1, 2 + number), stat.S_IFDIR)
    assert nodes.path(leaf) == b"/".join([b"a"] * depth)
    nodes.move(top, b"a", top, b"b")
    assert nodes.path(leaf) == b"/".join([b"b"] + [b"a"] * (depth - 1))
    assert nodes.resource(leaf).text == "fs:/d/b" + "/a" * (depth - 1)
    nodes.gone(top, b"b")
    assert not nodes.attached(leaf)
    with pytest.raises(OSError, match="Stale"):
        nodes.path(leaf)
