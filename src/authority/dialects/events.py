"""Server-sent events out of bytes, in whatever pieces they come.

Pure. An event ends at an empty line; lines end in LF, CR or CRLF. `Splitter` gives each event's own
bytes, ending included, so that what is passed on is what came, and reads the `data` lines out of it.
An event longer than `MAX_EVENT` ends the stream: nobody could commit to it before it is passed on.
"""

from __future__ import annotations

import re
from typing import Final

MAX_EVENT: Final = 8 * 1024 * 1024
_END: Final = re.compile(rb"\r\n\r\n|\n\n|\r\r(?!\n)|\n\r\n|\r\n\n")


class EventTooLong(Exception):
    """The upstream sends an event without end."""


class Splitter:
    """Takes bytes, gives whole events."""

    def __init__(self) -> None:
        self._rest = bytearray()

    def feed(self, data: bytes) -> list[bytes]:
        """The events that are whole now. Raises `EventTooLong`."""
        start = max(0, len(self._rest) - 3)
        self._rest += data
        found, begin = [], 0
        while (end := _END.search(self._rest, max(start, begin))) is not None:
            found.append(bytes(self._rest[begin : end.end()]))
            begin = end.end()
        del self._rest[:begin]
        if len(self._rest) > MAX_EVENT:
            raise EventTooLong
        return found

    def rest(self) -> bytes:
        """What came after the last whole event."""
        return bytes(self._rest)


def data_of(event: bytes) -> bytes:
    """The text of an event's data lines."""
    lines = []
    for line in re.split(rb"\r\n|\n|\r", event):
        if line.startswith(b"data:"):
            lines.append(line[6:] if line[5:6] == b" " else line[5:])
    return b"\n".join(lines)
