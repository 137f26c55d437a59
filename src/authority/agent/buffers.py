"""Bytes on their way: what waits to be written, and what was read, cut into frames.

Both are plain queues without a limit of their own; the supervisor decides what may enter them.
"""

import posix
from _collections import deque  # type: ignore[import-not-found]

_VECTORS = 64
_FLUSH_BYTES = 1 << 20
_HEADER_BYTES = 8


class Outbox:
    """Bytes that wait to be written to one descriptor, in order."""

    def __init__(self) -> None:
        self._parts: deque[memoryview] = deque()
        self.size = 0

    def add(self, data: "bytes | bytearray") -> None:
        if data:
            self._parts.append(memoryview(data))
            self.size += len(data)

    def clear(self) -> None:
        self._parts.clear()
        self.size = 0

    def flush(self, fd: int) -> int:
        """Writes what the descriptor takes now; how many bytes. OSError when the peer is gone."""
        total = 0
        while self._parts and total < _FLUSH_BYTES:
            batch = [self._parts[place] for place in range(min(_VECTORS, len(self._parts)))]
            try:
                written = posix.writev(fd, batch)
            except BlockingIOError:
                break
            total += written
            self.size -= written
            while written:
                first = self._parts[0]
                if written < len(first):
                    self._parts[0] = first[written:]
                    break
                written -= len(first)
                self._parts.popleft()
        return total


class Inbox:
    """Bytes read from one descriptor, cut into frames."""

    def __init__(self) -> None:
        self._data = bytearray()

    def add(self, data: bytes) -> None:
        self._data += data

    @property
    def announced(self) -> int:
        """Length of the frame that is being received, 0 while even that is not known."""
        return int.from_bytes(self._data[:4], "big") if len(self._data) >= 4 else 0

    def next(self) -> "bytearray | None":
        """The next whole frame, its length field included."""
        end = 4 + self.announced
        if len(self._data) < max(end, _HEADER_BYTES):
            return None
        frame = self._data[:end]
        del self._data[:end]
        return frame
