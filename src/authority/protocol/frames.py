"""Frames: `u32 length | u32 stream | payload`, big endian; `length` counts stream and payload.

A length is judged before a byte of what it announces is kept, so memory is bounded by one frame and
what was fed at once. After the first bad frame a decoder is dead: nothing behind it can be trusted
to be a boundary. What stood whole before the bad frame is still given out, however it was cut.
"""

from __future__ import annotations

import struct
from collections.abc import Generator

from authority.errors import AuthorityError

MAX_FRAME = 9 * 1024 * 1024
"""Largest `length` of a frame, in bytes: a body of 8 MiB and room for what goes with it."""

TOO_LARGE, INVALID = "E_FRAME_TOO_LARGE", "E_SCHEMA_INVALID"

_HEADER = struct.Struct(">II")
_U32 = struct.Struct(">I")


class ProtocolError(AuthorityError):
    """What came breaks the protocol. `code` is a denial code, `sentence` says what is wrong."""

    def __init__(self, code: str, sentence: str) -> None:
        super().__init__(sentence)
        self.code = code
        self.sentence = sentence


def encode_frame(stream: int, payload: bytes) -> bytes:
    """One frame. Raises ProtocolError for an empty payload or one above `MAX_FRAME`."""
    length = len(payload) + 4
    if length > MAX_FRAME:
        raise ProtocolError(TOO_LARGE, f"A frame may have {MAX_FRAME} bytes, this has {length}.")
    if not payload:
        raise ProtocolError(INVALID, "A frame can't be empty.")
    return _HEADER.pack(length, stream) + payload


class FrameDecoder:
    """Cuts a stream of bytes into frames of at most `max_frame` bytes (the value of `length`)."""

    __slots__ = ("_buffer", "_error", "_max")

    def __init__(self, max_frame: int = MAX_FRAME) -> None:
        if not 5 <= max_frame <= MAX_FRAME:
            raise ValueError(f"max_frame is from 5 to {MAX_FRAME}")
        self._max = max_frame
        self._buffer = bytearray()
        self._error: ProtocolError | None = None

    def feed(self, data: bytes) -> Generator[tuple[int, bytes]]:
        """Take bytes in and yield each whole frame as (stream, payload). What was not asked for when
        it is closed is kept, and comes with what is fed next.

        Raises ProtocolError after the frames that stood before the bad one, and from then on.
        """
        if self._error is None:
            self._buffer += data
        return self._frames()

    def end(self) -> None:
        """The other side closed. Raises ProtocolError when it did so inside a frame."""
        if self._error is not None:
            raise self._error
        if self._buffer:
            raise self._fail(INVALID, "The channel was closed in the middle of a frame.")

    @property
    def pending(self) -> int:
        """Bytes kept of a frame that is not whole yet."""
        return len(self._buffer)

    def _frames(self) -> Generator[tuple[int, bytes]]:
        if self._error is not None:
            raise self._error
        buffer, at = self._buffer, 0
        try:
            while len(buffer) - at >= 4:
                (length,) = _U32.unpack_from(buffer, at)
                if length > self._max:
                    raise self._fail(
                        TOO_LARGE, f"A frame may have {self._max} bytes, this has {length}."
                    )
                if length < 5:
                    raise self._fail(
                        INVALID, "A frame is too short to hold a stream and a payload."
                    )
                end = at + 4 + length
                if len(buffer) < end:
                    break
                (stream,) = _U32.unpack_from(buffer, at + 4)
                payload = bytes(memoryview(buffer)[at + 8 : end])
                at = end
                yield stream, payload
        finally:
            del buffer[:at]

    def _fail(self, code: str, sentence: str) -> ProtocolError:
        self._error = ProtocolError(code, sentence)
        return self._error


def plain(text: str, limit: int = 200) -> str:
    """Text of the other side for a message: what is not printable ASCII is escaped."""
    return "".join(c if " " <= c <= "~" else f"\\u{{{ord(c):x}}}" for c in text[:limit])
