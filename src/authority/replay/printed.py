"""What the program prints, held against what it printed then, byte by byte and stream by stream.

Pieces may be cut in other places: they depend on when the supervisor read them. A piece that is not
kept is compared by its size alone, and said. What was withheld then is withheld now.
"""

from __future__ import annotations

import msgspec

from authority.kernel import entries
from authority.kernel.canonical import printable
from authority.recorded.bodies import Kept, Missing
from authority.recorded.errors import Divergence
from authority.recorded.recording import Printed

_AROUND = 60


class _Piece(msgspec.Struct):
    seq: int
    size: int
    data: bytes | None


class Output:
    """One replay's two streams. `unknown` counts bytes that could not be compared."""

    def __init__(self, printed: list[Printed], kept: Kept) -> None:
        self.compared = 0
        self.unknown = 0
        self._pieces: dict[int, list[_Piece]] = {1: [], 2: []}
        self._place: dict[int, tuple[int, int]] = {1: (0, 0), 2: (0, 0)}
        for each in printed:
            body = each.verdict.arguments
            data: bytes | None = None
            if body is not None:
                try:
                    data = kept.read(body)
                except Missing:
                    self.unknown += body.size
            size = body.size if body is not None and data is None else len(data or b"")
            if isinstance(each.verdict, entries.Denied):
                data = None
            self._pieces[each.descriptor].append(_Piece(each.verdict.seq, size, data))

    def feed(self, fd: int, data: bytes) -> Divergence | None:
        """What it printed next."""
        pieces = self._pieces[fd]
        at, offset = self._place[fd]
        while data:
            if at >= len(pieces):
                last = pieces[-1].seq if pieces else -1
                return Divergence(last, f"more {_name(fd)}", "nothing", printable(data[:_AROUND]))
            piece = pieces[at]
            count = min(len(data), piece.size - offset)
            mine, data = data[:count], data[count:]
            if piece.data is not None:
                then = piece.data[offset : offset + count]
                if then != mine:
                    wrong = next(i for i in range(count) if then[i] != mine[i])
                    begin = max(0, wrong - 20)
                    return Divergence(
                        piece.seq,
                        f"another {_name(fd)}",
                        printable(then[begin : wrong + _AROUND]),
                        printable(mine[begin : wrong + _AROUND]),
                    )
                self.compared += count
            offset += count
            if offset >= piece.size:
                at, offset = at + 1, 0
        self._place[fd] = (at, offset)
        return None

    @property
    def frontier(self) -> int:
        """The entry of the oldest piece that was not printed yet; beyond all when there is none."""
        found = [
            pieces[self._place[fd][0]].seq
            for fd, pieces in self._pieces.items()
            if self._place[fd][0] < len(pieces)
        ]
        return min(found, default=2**53)

    def left(self) -> Divergence | None:
        """What was printed then and was not now."""
        for fd, pieces in self._pieces.items():
            at, offset = self._place[fd]
            while at < len(pieces) and not pieces[at].size:
                at += 1
            if at < len(pieces):
                data = (pieces[at].data or b"")[offset : offset + _AROUND]
                return Divergence(pieces[at].seq, f"less {_name(fd)}", printable(data), "nothing")
        return None


def _name(fd: int) -> str:
    return "standard error" if fd == 2 else "standard output"
