"""Bodies of HTTP/1.1 messages: where one ends, and not a byte further.

Rules
- Each reader is fed pieces of any size and gives the content in them; `done` says that the body is
  complete, `rest` holds what came after it. Whatever the split, content and end are the same.
- Chunked: a size is 1 to 15 hexadecimal digits; extensions and trailers are read by the same strict
  line rules as heads, bounded, and dropped. A lone CR or LF anywhere in the framing is refused.
- Framing that weighs more than its content and `SLACK` bytes is refused: it would pass uncounted.
  Whoever counts every byte may allow more.
"""

from __future__ import annotations

import re

from authority.worker.heads import Bad

SLACK = 64 * 1024
MAX_SIZE_LINE = 512
MAX_TRAILERS = 8 * 1024

_SIZE = re.compile(rb"([0-9A-Fa-f]{1,15})[ \t]*(?:;[\t\x20-\x7e\x80-\xff]*)?\Z")
_TRAILER = re.compile(rb"[A-Za-z0-9!#$%&'*+.^_`|~-]{1,128}:[\t\x20-\x7e\x80-\xff]*\Z")


class Body:
    """The base: a body without content."""

    done = True
    rest = b""

    def feed(self, data: bytes) -> bytes:
        """The content in `data`. Raises `Bad`."""
        self.rest += data
        return b""

    def close(self) -> bool:
        """The sender has ended: whether the body is complete with that."""
        return self.done


class Counted(Body):
    """A body of `length` bytes."""

    def __init__(self, length: int) -> None:
        self._left = length
        self.done = not length

    def feed(self, data: bytes) -> bytes:
        content, rest = data[: self._left], data[self._left :]
        self._left -= len(content)
        self.done = not self._left
        self.rest += rest
        return content


class UntilEnd(Body):
    """A body that ends when its sender does."""

    done = False

    def feed(self, data: bytes) -> bytes:
        return data

    def close(self) -> bool:
        self.done = True
        return True


class Chunked(Body):
    """A body in chunks."""

    done = False

    def __init__(self, slack: int = SLACK) -> None:
        self._slack = slack
        self._buffer = bytearray()
        self._left = 0
        self._state = "size"
        self._content = 0
        self._framing = 0
        self._trailers = 0

    def feed(self, data: bytes) -> bytes:
        if self.done:
            self.rest += data
            return b""
        self._buffer += data
        parts: list[bytes] = []
        while not self.done and self._step(parts):
            if self._framing > self._content + self._slack:
                raise Bad("The framing of the body weighs more than its content.")
        if self.done:
            self.rest = bytes(self._buffer)
            self._buffer.clear()
        return b"".join(parts)

    def _step(self, parts: list[bytes]) -> bool:
        if self._state == "content":
            piece = bytes(self._buffer[: self._left])
            del self._buffer[: self._left]
            self._left -= len(piece)
            self._content += len(piece)
            parts.append(piece)
            if not self._left:
                self._state = "after"
            return bool(piece)
        limit = {"after": 0, "size": MAX_SIZE_LINE}.get(self._state, MAX_TRAILERS)
        line = self._line(limit)
        if line is None:
            return False
        if self._state == "size":
            self._size(line)
        elif self._state == "after":
            self._state = "size"
        elif not line:
            self.done = True
        else:
            self._trailers += len(line)
            if self._trailers > MAX_TRAILERS or not _TRAILER.match(line):
                raise Bad("The trailers of the body are malformed or too long.")
        return True

    def _size(self, line: bytes) -> None:
        found = _SIZE.match(line)
        if found is None:
            raise Bad("The size of a chunk is malformed.")
        self._left = int(found[1], 16)
        self._state = "content" if self._left else "trailers"

    def _line(self, limit: int) -> bytes | None:
        """The next line without its end, of at most `limit` bytes; None: not there yet."""
        buffer = self._buffer
        end = buffer.find(b"\n", 0, limit + 2)
        if end < 0:
            cr = buffer.find(b"\r", 0, limit + 2)
            if len(buffer) >= limit + 2 or 0 <= cr < len(buffer) - 1:
                raise Bad("A line in the framing of the body is malformed or too long.")
            return None
        if end == 0 or buffer.find(b"\r", 0, end) != end - 1:
            raise Bad("A line in the framing of the body is malformed or too long.")
        line = bytes(buffer[: end - 1])
        del buffer[: end + 1]
        self._framing += end + 1
        return line


def of_request(length: int | None) -> Body:
    """The body of a request whose head says `length` (see `heads.length`)."""
    if length == -1:
        return Chunked()
    return Counted(length or 0)


def of_response(length: int | None, status: int, method: str, slack: int = SLACK) -> Body:
    """The body of an answer to `method`."""
    if method == "HEAD" or status in (204, 304) or status < 200:
        return Body()
    if length == -1:
        return Chunked(slack)
    return UntilEnd() if length is None else Counted(length)
