"""The Merkle tree over the log's lines (RFC 6962, section 2.1), its proofs and their verification.

Pure. Rules
- Leaf i is the stored line of entry i without its newline: `SHA-256(0x00 || line)`. An inner node
  is `SHA-256(0x01 || left || right)`. The tree of no leaves is `SHA-256("")`.
- `Frontier` grows a tree leaf by leaf and keeps log2(n) hashes; `Tree` holds all leaves and makes
  proofs. Verification (RFC 9162, sections 2.1.3.2 and 2.1.4.2) needs neither.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from hashlib import sha256

EMPTY = sha256(b"").digest()
"""The root of the tree of no leaves."""


def leaf_hash(line: bytes) -> bytes:
    """The hash of a leaf; `line` is a stored line without its newline."""
    return sha256(b"\0" + line).digest()


def node_hash(left: bytes, right: bytes) -> bytes:
    """The hash of an inner node."""
    return sha256(b"\1" + left + right).digest()


class Frontier:
    """The tree's right edge: enough to add leaves and to know the root at the present size.

    `_nodes[h]` is the full subtree of 2**h leaves that the size's bit h stands for.
    """

    __slots__ = ("_nodes", "size")

    def __init__(self) -> None:
        self.size = 0
        self._nodes: list[bytes] = []

    @classmethod
    def of(cls, size: int, edge: Sequence[bytes]) -> Frontier:
        """The tree of `size` leaves with this `edge`. Raises `ValueError` for one of another form."""
        if [len(node) for node in edge] != [32 * (size >> h & 1) for h in range(size.bit_length())]:
            raise ValueError(f"not the edge of a tree of {size}")
        out = cls()
        out.size = size
        out._nodes = list(edge)
        return out

    @property
    def edge(self) -> tuple[bytes, ...]:
        """The full subtrees at the right edge by height; empty where the size has no such bit."""
        return tuple(self._nodes)

    def add(self, leaf: bytes) -> None:
        """Add one leaf hash."""
        self._add_hashes([leaf])

    def add_lines(self, lines: Iterable[bytes]) -> None:
        """Add stored lines (without newlines)."""
        self._add_hashes([sha256(b"\0" + line).digest() for line in lines])

    def _add_hashes(self, hashes: list[bytes]) -> None:
        """Level by level, which costs half of what adding leaf by leaf does."""
        nodes = self._nodes
        added = len(hashes)
        height = 0
        while hashes:
            if height == len(nodes):
                nodes.append(b"")
            if self.size >> height & 1:
                hashes.insert(0, nodes[height])
            nodes[height] = hashes.pop() if len(hashes) & 1 else b""
            pairs = zip(hashes[::2], hashes[1::2], strict=True)
            hashes = [sha256(b"\1" + left + right).digest() for left, right in pairs]
            height += 1
        self.size += added

    def root(self) -> bytes:
        """The root at this size."""
        out = b""
        for node in self._nodes:
            if node:
                out = node_hash(node, out) if out else node
        return out or EMPTY

    def copy(self) -> Frontier:
        """An independent copy."""
        other = Frontier()
        other.size = self.size
        other._nodes = list(self._nodes)
        return other


class Tree:
    """All leaves of a log, for making proofs. Memory: about 64 bytes a leaf and object overhead."""

    def __init__(self, leaves: Sequence[bytes]) -> None:
        self._levels: list[list[bytes]] = [list(leaves)]
        while len(self._levels[-1]) > 1:
            below = self._levels[-1]
            pairs = zip(below[::2], below[1::2], strict=False)
            self._levels.append([sha256(b"\1" + a + b).digest() for a, b in pairs])

    @property
    def size(self) -> int:
        """How many leaves there are."""
        return len(self._levels[0])

    def root(self, size: int | None = None) -> bytes:
        """The root of the first `size` leaves (all by default)."""
        size = self.size if size is None else size
        self._in_range(size)
        return self.range(0, size) if size else EMPTY

    def inclusion(self, index: int) -> list[bytes]:
        """The audit path of leaf `index` (RFC 6962, 2.1.1). Raises `ValueError`."""
        if not 0 <= index < self.size:
            raise ValueError(f"leaf {index} is not in a tree of {self.size}")
        path: list[bytes] = []
        low, high = 0, self.size
        while high - low > 1:
            middle = low + split(high - low)
            if index < middle:
                path.append(self.range(middle, high))
                high = middle
            else:
                path.append(self.range(low, middle))
                low = middle
        path.reverse()
        return path

    def consistency(self, old: int, new: int | None = None) -> list[bytes]:
        """The proof that the tree of `old` leaves is a prefix of that of `new` (RFC 6962)."""
        new = self.size if new is None else new
        self._in_range(new)
        if not 0 < old <= new:
            raise ValueError(f"no consistency proof from {old} to {new} leaves")
        path: list[bytes] = []
        low, high, whole = 0, new, True
        while old != high:
            middle = low + split(high - low)
            if old <= middle:
                path.append(self.range(middle, high))
                high = middle
            else:
                path.append(self.range(low, middle))
                low = middle
                whole = False
        if not whole:
            path.append(self.range(low, high))
        path.reverse()
        return path

    def _in_range(self, size: int) -> None:
        if not 0 <= size <= self.size:
            raise ValueError(f"a tree of {self.size} leaves has none of {size}")

    def range(self, low: int, high: int) -> bytes:
        """The hash of the subtree of the leaves `low` to `high` (exclusive)."""
        count = high - low
        if count & (count - 1) == 0:  # a full subtree: its hash is at hand
            level = count.bit_length() - 1
            return self._levels[level][low >> level]
        middle = low + split(count)
        return node_hash(self.range(low, middle), self.range(middle, high))


def verify_inclusion(
    index: int, size: int, leaf: bytes, path: Sequence[bytes], root: bytes
) -> bool:
    """Whether `path` proves that the leaf hash `leaf` is number `index` of the tree of `size`."""
    if not 0 <= index < size:
        return False
    at, last, out = index, size - 1, leaf
    for node in path:
        if last == 0:
            return False
        if at & 1 or at == last:
            out = node_hash(node, out)
            while at and not at & 1:
                at >>= 1
                last >>= 1
        else:
            out = node_hash(out, node)
        at >>= 1
        last >>= 1
    return last == 0 and out == root


def verify_consistency(
    old: int, new: int, old_root: bytes, new_root: bytes, path: Sequence[bytes]
) -> bool:
    """Whether `path` proves that the tree of `old` leaves is a prefix of the tree of `new`.

    From the empty tree everything is an extension and the path is empty.
    """
    if not 0 <= old <= new:
        return False
    if old == new:
        return not path and old_root == new_root
    if old == 0:
        return not path and old_root == EMPTY
    nodes = list(path)
    if old & (old - 1) == 0:
        nodes.insert(0, old_root)
    if not nodes:
        return False
    at, last = old - 1, new - 1
    while at & 1:
        at >>= 1
        last >>= 1
    first = second = nodes[0]
    for node in nodes[1:]:
        if last == 0:
            return False
        if at & 1 or at == last:
            first = node_hash(node, first)
            second = node_hash(node, second)
            while at and not at & 1:
                at >>= 1
                last >>= 1
        else:
            second = node_hash(second, node)
        at >>= 1
        last >>= 1
    return last == 0 and first == old_root and second == new_root


def split(count: int) -> int:
    """The largest power of two below `count` (which is at least 2)."""
    return 1 << ((count - 1).bit_length() - 1)
