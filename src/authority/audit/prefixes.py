"""Growing the Merkle tree while comparing it with every root that somebody vouched for.

Rules
- A `Floor` says: the first `size` entries have this root. Checkpoints and witnesses are floors.
- All floors are compared, not the largest alone: a fork may agree with one witness and not another.
- What remains in `unreached` at the log's end is the proof that entries are gone.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import NamedTuple

from authority.audit.merkle import Frontier


class Floor(NamedTuple):
    """The least that a log must hold. `source` names who vouches for it, for messages."""

    size: int
    root: bytes
    source: str = "the checkpoint"


class Prefixes:
    """A tree that grows line by line and remembers the floors that it met and contradicted."""

    def __init__(self, floors: Iterable[Floor] = (), tree: Frontier | None = None) -> None:
        """`tree` is where growing begins, if not with no leaves; floors below it are not compared."""
        self.tree = Frontier() if tree is None else tree
        self.agreed = self.tree.size
        """The largest size at which a floor had the same root."""
        self.contradicted: Floor | None = None
        """The first floor with another root."""
        self.unreached = sorted(f for f in floors if f.size >= self.tree.size)
        """Floors beyond the present size, smallest first."""
        self._pass(self.tree.root())

    @property
    def highest(self) -> int:
        """The largest size still to be reached, or 0."""
        return self.unreached[-1].size if self.unreached else 0

    def add_lines(self, lines: list[bytes]) -> None:
        """Add stored lines (without newlines)."""
        tree = self.tree
        start = 0
        while self.unreached and self.unreached[0].size <= tree.size + len(lines) - start:
            count = self.unreached[0].size - tree.size
            tree.add_lines(lines[start : start + count])
            start += count
            self._pass(tree.root())
        tree.add_lines(lines[start:] if start else lines)

    def _pass(self, root: bytes) -> None:
        while self.unreached and self.unreached[0].size <= self.tree.size:
            floor = self.unreached.pop(0)
            if floor.root != root:
                self.contradicted = self.contradicted or floor
            elif self.contradicted is None:
                self.agreed = floor.size
