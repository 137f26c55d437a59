"""Stream 0: what the supervisor of a run and the gate say to each other.

The payload of a frame is one opcode byte and a body of a form that the opcode fixes; numbers are
big endian. Whatever is not exactly that is refused.
"""

from __future__ import annotations

import struct
from typing import TypeAlias

import msgspec

from authority.protocol.frames import INVALID, ProtocolError

_U32 = struct.Struct(">I")
_EXIT = struct.Struct(">ii")


class Open(msgspec.Struct, frozen=True):
    """A local client connected; its frames have this stream."""

    stream: int


class Close(msgspec.Struct, frozen=True):
    """The stream ended, on either side."""

    stream: int


class InputAck(msgspec.Struct, frozen=True):
    """The program took so many bytes of its standard input; as many more may be sent."""

    count: int


class Output(msgspec.Struct, frozen=True):
    """The program printed: `fd` 1 or 2."""

    fd: int
    data: bytes


class Exit(msgspec.Struct, frozen=True):
    """The program ended with this code, or by this signal (0 if by none)."""

    code: int
    signal: int


class Input(msgspec.Struct, frozen=True):
    """For the program's standard input."""

    data: bytes


class InputEof(msgspec.Struct, frozen=True):
    """Nothing more comes on standard input."""


class Started(msgspec.Struct, frozen=True):
    """The program runs."""


class OutputAck(msgspec.Struct, frozen=True):
    """So many bytes of output were committed; the supervisor may send as many more."""

    count: int


class Trouble(msgspec.Struct, frozen=True):
    """The supervisor could not do what it should; one sentence."""

    text: str


Control: TypeAlias = (
    Open | Close | Output | Exit | Input | InputEof | Started | InputAck | OutputAck | Trouble
)


def encode_control(control: Control) -> bytes:
    """The payload of a frame on stream 0."""
    match control:
        case Open(stream):
            return b"\x01" + _U32.pack(stream)
        case Close(stream):
            return b"\x02" + _U32.pack(stream)
        case Output(fd, data):
            return b"\x03" + bytes((fd,)) + data
        case Exit(code, signal):
            return b"\x04" + _EXIT.pack(code, signal)
        case Input(data):
            return b"\x05" + data
        case InputEof():
            return b"\x06"
        case Started():
            return b"\x07"
        case InputAck(count):
            return b"\x08" + _U32.pack(count)
        case OutputAck(count):
            return b"\x09" + _U32.pack(count)
        case Trouble(text):
            return b"\x0a" + text.encode("utf-8", "backslashreplace")[:4096]


def decode_control(payload: bytes) -> Control:
    """Read a payload of stream 0. Raises ProtocolError for an unknown opcode or a wrong length."""
    opcode, body = payload[:1], payload[1:]
    size = len(body)
    if opcode == b"\x01" and size == 4:
        return Open(*_U32.unpack(body))
    if opcode == b"\x02" and size == 4:
        return Close(*_U32.unpack(body))
    if opcode == b"\x03" and size >= 1 and body[0] in (1, 2):
        return Output(body[0], body[1:])
    if opcode == b"\x04" and size == 8:
        return Exit(*_EXIT.unpack(body))
    if opcode == b"\x05":
        return Input(body)
    if opcode == b"\x06" and not size:
        return InputEof()
    if opcode == b"\x07" and not size:
        return Started()
    if opcode == b"\x08" and size == 4:
        return InputAck(*_U32.unpack(body))
    if opcode == b"\x09" and size == 4:
        return OutputAck(*_U32.unpack(body))
    if opcode == b"\x0a" and size <= 4096:
        return Trouble(body.decode("utf-8", "backslashreplace"))
    raise ProtocolError(INVALID, "A message of the supervisor's stream can't be read.")
