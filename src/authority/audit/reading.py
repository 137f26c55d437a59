"""Reading stored lines without a lock, from a log that may be growing.

Rules
- Only complete lines are handed out. What stands behind the last one is `tail`: empty, or a line
  that is still being written, or one that a crash tore; `live` tells whether a writer lives.
- Memory is bounded by a block, however long a file is. Zeros may follow the last line of the last
  segment that holds entries, and of no other.
- A reader keeps its place: another call of `blocks` goes on where the last one ended.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from typing import NamedTuple

from authority.audit.errors import LogCorrupt, LogTampered
from authority.audit.files import is_locked, is_zero, without_zeros
from authority.audit.segments import index_of, name_of, segment_names

LOCK = "lock"
# Small enough that lines are hashed while they are still in the processor's cache, and that memory
# for a block is not asked of the kernel each time.
_BLOCK = 96 * 1024
_LONGEST = 8 * 1024 * 1024


class Block(NamedTuple):
    """Complete lines, each with its newline, of one segment."""

    segment: str
    data: bytes

    def lines(self) -> list[bytes]:
        """The lines without newlines."""
        lines = self.data.split(b"\n")
        lines.pop()
        return lines


class Reader:
    """Walks the segments of a log directory."""

    def __init__(self, directory: str | os.PathLike[str], segment: int = 1) -> None:
        """`segment` is where reading begins."""
        self._directory = os.path.abspath(os.fspath(directory))
        self._index = segment
        self._offset = 0
        self._after = 0
        self.tail = b""
        """What follows the last complete line, without trailing zeros (its first part)."""

    @property
    def live(self) -> bool:
        """Whether a writer holds the log now."""
        return is_locked(os.path.join(self._directory, LOCK))

    @property
    def segment(self) -> str:
        """The segment that is being read."""
        return name_of(self._index)

    @property
    def size(self) -> int:
        """Bytes in all segments now, zeros included; for progress bars."""
        return sum(
            os.stat(os.path.join(self._directory, name)).st_size
            for name in segment_names(os.listdir(self._directory))
        )

    def blocks(self) -> Iterator[Block]:
        """Complete lines from this place to the end. Raises `LogTampered` or `LogCorrupt`.

        The errors' `entry` is -1: what number comes next only the caller knows.
        """
        while True:
            self._check_names()
            if not os.path.exists(self._path(self._index)):
                return
            yield from self._segment()
            if not self._begun(self._index + 1):
                self._check_empty()
                return
            # The next one has entries, so this one was sealed: take what came in between.
            yield from self._segment()
            if self.tail or self._after:
                if self.tail:
                    yield Block(self.segment, self.tail + b"\n")
                raise LogCorrupt(-1, f"{self.segment} was not sealed but another follows it")
            self._index += 1
            self._offset = 0

    def _path(self, index: int) -> str:
        return os.path.join(self._directory, name_of(index))

    def _check_names(self) -> None:
        names = segment_names(os.listdir(self._directory))
        for position, name in enumerate(names):
            if index_of(name) != position + 1:
                if self._index > position:
                    raise LogTampered(-1, f"segment {name_of(position + 1)} is missing")
                return

    def _begun(self, index: int) -> bool:
        if not os.path.exists(self._path(index)):
            names = segment_names(os.listdir(self._directory))
            if names and index_of(names[-1]) > index:
                raise LogTampered(-1, f"segment {name_of(index)} is missing")
            return False
        with open(self._path(index), "rb") as file:
            return not is_zero(file.read(_BLOCK))

    def _check_empty(self) -> None:
        """Nothing may stand in segments behind an empty one."""
        names = segment_names(os.listdir(self._directory))
        for name in names:
            if index_of(name) > self._index + 1 and self._begun(index_of(name)):
                raise LogCorrupt(-1, f"{name} holds entries but the segment before it none")

    def _segment(self) -> Iterator[Block]:
        self.tail = b""
        self._after = 0
        carry = b""
        zeros = 0
        with open(self._path(self._index), "rb") as file:
            file.seek(self._offset)
            while piece := file.read(_BLOCK):
                if is_zero(piece):
                    zeros += len(piece)
                    continue
                if zeros:  # bytes behind zeros: the line that holds them is damaged
                    carry, zeros = carry + b"\0", 0
                buffer = carry + piece
                end = buffer.rfind(b"\n") + 1
                whole = buffer[:end]
                if b"\0" in whole and self.live:
                    # The writer came in between two reads. What stands before the first zero is
                    # whole; the rest is read again the next time, when it is written.
                    end = buffer.rfind(b"\n", 0, buffer.index(b"\0")) + 1
                    self._offset += end
                    if end:
                        yield Block(self.segment, buffer[:end])
                    return
                if whole:
                    self._offset += end
                    yield Block(self.segment, whole)
                carry = buffer[end:]
                if is_zero(carry):
                    zeros += len(carry)
                    carry = b""
                elif len(carry) > _LONGEST:
                    yield Block(self.segment, carry + b"\n")
                    carry = b""
        self.tail = without_zeros(carry)
        self._after = zeros + len(carry) - len(self.tail)
