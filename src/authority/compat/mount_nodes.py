"""What the kernel knows of a mount: its nodes, and which path each of them stands for now.

Pure but for what the caller tells it. Rules
- A node is a name in a directory's node, with the identity (device, inode) and the kind (file, folder,
  link) that was found there when the kernel was told. Numbers are never given twice; those of inodes
  are, so a link may come to have a removed file's.
- A rename through the mount moves the node, and with it everything beneath. A name that vanished or
  became another object detaches its node: it has no path any more, and only what is open on it goes
  on working.
- The kernel counts what it was told (`lookups`) and forgets in the same count; forgetting more than
  that is malformed. A node goes when it is forgotten, has nothing open and no nodes beneath.
- At most `LIMIT` nodes: then a further name is ENFILE.
"""

from __future__ import annotations

import errno
import os
import stat

from authority.compat.fuse_abi import ROOT_ID
from authority.compat.fuse_wire import WireError
from authority.kernel.resource_files import MAX_PATH, decode_name, file_text, has_control
from authority.kernel.resources import Resource

LIMIT = 200_000
Identity = tuple[int, int]


class Node:
    """One name that the kernel holds. `parent` is None for the root and for what is detached."""

    __slots__ = (
        "children",
        "epoch",
        "handles",
        "id",
        "identity",
        "kind",
        "lookups",
        "name",
        "parent",
        "path",
        "resource",
    )

    def __init__(
        self, id_: int, parent: Node | None, name: bytes, identity: Identity, kind: int
    ) -> None:
        self.id = id_
        self.parent = parent
        self.name = name
        self.identity = identity
        self.kind = kind
        self.lookups = 0
        self.children: dict[bytes, Node] = {}
        self.handles: set[int] = set()
        self.epoch = -1
        self.path = b""
        self.resource: Resource | None = None

    def stands_for(self, identity: Identity, mode: int) -> bool:
        """Whether this is what the kernel was told of."""
        return self.identity == identity and self.kind == stat.S_IFMT(mode)


class Nodes:
    """All nodes of one mount. `root` is the resource that its root stands for."""

    def __init__(self, root: Resource, identity: Identity) -> None:
        self._root = Node(ROOT_ID, None, b"", identity, stat.S_IFDIR)
        self._root.resource = self.root = root
        self._by_id: dict[int, Node] = {ROOT_ID: self._root}
        self._next = ROOT_ID + 1
        self._epoch = 0

    def __len__(self) -> int:
        return len(self._by_id)

    def get(self, number: int) -> Node:
        """The node. Raises `OSError` (ESTALE)."""
        node = self._by_id.get(number)
        if node is None:
            raise OSError(errno.ESTALE, os.strerror(errno.ESTALE))
        return node

    def attached(self, node: Node) -> bool:
        """Whether the node still has a path."""
        while node.parent is not None:
            node = node.parent
        return node is self._root

    def path(self, node: Node) -> bytes:
        """Where the node is now, beneath the root. Raises `OSError` (ESTALE) when nowhere."""
        self._place(node)
        return node.path

    def resource(self, node: Node) -> Resource:
        """The resource that the node stands for now. Raises `OSError` (ESTALE)."""
        self._place(node)
        assert node.resource is not None
        return node.resource

    def child(self, parent: Node, name: bytes) -> tuple[bytes, Resource]:
        """Path and resource of a name in a directory. Raises `OSError`."""
        self._place(parent)
        return _within(parent, name)

    def _place(self, node: Node) -> None:
        moved = []
        while node is not self._root and not (
            node.epoch == self._epoch and node.parent is not None
        ):
            if node.parent is None:
                raise OSError(errno.ESTALE, os.strerror(errno.ESTALE))
            moved.append((node.parent, node))
            node = node.parent
        for parent, one in reversed(moved):  # as deep as a program likes: no call for each level
            one.path, one.resource = _within(parent, one.name)
            one.epoch = self._epoch

    def enter(self, parent: Node, name: bytes, identity: Identity, mode: int) -> Node:
        """The node of what was found under a name; the kernel is told of it once more."""
        node = parent.children.get(name)
        if node is not None and not node.stands_for(identity, mode):
            self.detach(node)
            node = None
        if node is None:
            if len(self._by_id) >= LIMIT:
                raise OSError(errno.ENFILE, os.strerror(errno.ENFILE))
            node = Node(self._next, parent, name, identity, stat.S_IFMT(mode))
            self._next += 1
            self._by_id[node.id] = node
            parent.children[name] = node
        node.lookups += 1
        return node

    def detach(self, node: Node) -> None:
        """The name is gone, or is another object's now."""
        parent = node.parent
        if parent is None:
            return
        if parent.children.get(node.name) is node:
            del parent.children[node.name]
        node.parent = None
        self._epoch += 1
        self._drop(node)
        self._drop(parent)

    def gone(self, parent: Node, name: bytes) -> None:
        """A name was removed through the mount."""
        node = parent.children.get(name)
        if node is not None:
            self.detach(node)

    def move(self, old: Node, old_name: bytes, new: Node, new_name: bytes) -> None:
        """A name was renamed through the mount; what had the new one is gone."""
        self.gone(new, new_name)
        node = old.children.pop(old_name, None)
        if node is not None:
            node.parent, node.name = new, new_name
            new.children[new_name] = node
        self._epoch += 1
        self._drop(old)

    def exchange(self, old: Node, old_name: bytes, new: Node, new_name: bytes) -> None:
        """Two names changed places."""
        first, second = old.children.pop(old_name, None), new.children.pop(new_name, None)
        for node, parent, name in ((first, new, new_name), (second, old, old_name)):
            if node is not None:
                node.parent, node.name = parent, name
                parent.children[name] = node
        self._epoch += 1

    def forget(self, number: int, count: int) -> None:
        """The kernel gave back `count` of what it was told. Raises `WireError`."""
        if number == ROOT_ID:
            return
        node = self._by_id.get(number)
        if node is None or count > node.lookups:
            raise WireError("the kernel forgets what it was not told")
        node.lookups -= count
        self._drop(node)

    def closed(self, node: Node, fh: int) -> None:
        """A handle on the node is closed."""
        node.handles.discard(fh)
        self._drop(node)

    def _drop(self, node: Node) -> None:
        while not (node.lookups or node.handles or node.children) and node is not self._root:
            if self._by_id.pop(node.id, None) is None:
                return
            parent, node.parent = node.parent, None
            if parent is None:
                return
            if parent.children.get(node.name) is node:
                del parent.children[node.name]
            node = parent


def _within(parent: Node, name: bytes) -> tuple[bytes, Resource]:
    assert parent.resource is not None
    path = parent.path + b"/" + name if parent.path else name
    return path, below(parent.resource, name)


def below(parent: Resource, name: bytes) -> Resource:
    """The resource of a name in a directory. Raises `OSError` for a name that is no resource."""
    segment = decode_name(name)
    if has_control(segment):
        raise OSError(errno.EILSEQ, os.strerror(errno.EILSEQ))
    segments = (*parent.segments, segment)
    text = file_text((segment,))[4:]
    whole = f"{parent.text}/{text}" if parent.segments else f"fs:/{text}"
    if len(whole) > MAX_PATH and len(file_text(segments)) > MAX_PATH:
        raise OSError(errno.ENAMETOOLONG, os.strerror(errno.ENAMETOOLONG))
    return Resource("fs", whole, segments)
