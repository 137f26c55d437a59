"""Stream 0: what the supervisor of a run and the gate say to each other.

The payload of a frame is one opcode byte and a body of a form that the opcode fixes; numbers are
big endian. Whatever is not exactly that is refused.
"""

from __future__ import annotations

import struct
from enum import IntEnum
from typing import TypeAlias

import msgspec

from authority.protocol.frames import INVALID, ProtocolError

_U32 = struct.Struct(">I")
_EXIT = struct.Struct(">ii")
_TWO = struct.Struct(">II")
_ADDRESS = struct.Struct(">IH")
_SIZE = struct.Struct(">HH")

MAX_DETAIL = 64
OUTPUT_WINDOW = 256 * 1024
"""Bytes of output that may be on their way without an `OutputAck`."""
RAW_WINDOW = 256 * 1024
"""Bytes that may be on their way on a raw stream, in each direction, without a `Window`."""
RAW_CHUNK = 64 * 1024
"""The most that one frame of a raw stream carries, where a frame is not one message."""


class Service(IntEnum):
    """What a raw stream leads to."""

    PROXY = 1
    MODEL = 2
    MCP = 3
    NAMES = 4
    DIRECT = 5
    MOUNT = 6


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


class Connect(msgspec.Struct, frozen=True):
    """Something in the run reached a service of the supervisor: a raw stream begins.

    `service` is a number of `Service`; `detail` says what was reached (its form is the service's).
    """

    stream: int
    service: int
    detail: bytes


class Eof(msgspec.Struct, frozen=True):
    """The sender writes no more on this raw stream; the other direction goes on."""

    stream: int


class Window(msgspec.Struct, frozen=True):
    """So many bytes of a raw stream were taken; the other side may send as many more."""

    stream: int
    count: int


class Resize(msgspec.Struct, frozen=True):
    """The person's window has this many rows and columns now; for a run with a terminal."""

    rows: int
    columns: int


class Listen(msgspec.Struct, frozen=True):
    """Accept connections at this address of the run's own loopback: IPv4 as a number, port."""

    address: int
    port: int


class Configure(msgspec.Struct, frozen=True):
    """For a virtual machine that waits: what to start in it (`vm/init.c` reads it). The first frame."""

    order: bytes


class GuestState(IntEnum):
    """How far a virtual machine is."""

    WAITING = 0
    FAILED = 1
    OVER = 2


class Guest(msgspec.Struct, frozen=True):
    """A virtual machine's first program speaks: it waits for its order, could not start the program
    (and why), or ends because everything in it has ended."""

    state: int
    text: str


Control: TypeAlias = (
    Open
    | Close
    | Output
    | Exit
    | Input
    | InputEof
    | Started
    | InputAck
    | OutputAck
    | Trouble
    | Connect
    | Eof
    | Window
    | Listen
    | Resize
    | Configure
    | Guest
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
        case Connect(stream, service, detail):
            return b"\x0b" + _U32.pack(stream) + bytes((service,)) + detail
        case Eof(stream):
            return b"\x0c" + _U32.pack(stream)
        case Window(stream, count):
            return b"\x0d" + _TWO.pack(stream, count)
        case Listen(address, port):
            return b"\x0e" + _ADDRESS.pack(address, port)
        case Resize(rows, columns):
            return b"\x0f" + _SIZE.pack(rows, columns)
        case Configure(order):
            return b"\x10" + order
        case Guest(state, text):
            return b"\x11" + bytes((state,)) + text.encode("utf-8", "backslashreplace")[:4096]
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
    if opcode == b"\x03" and size >= 2 and body[0] in (1, 2):
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
    if opcode == b"\x0b" and 5 <= size <= 5 + MAX_DETAIL:
        return Connect(int.from_bytes(body[:4], "big"), body[4], body[5:])
    if opcode == b"\x0c" and size == 4:
        return Eof(*_U32.unpack(body))
    if opcode == b"\x0d" and size == 8:
        return Window(*_TWO.unpack(body))
    if opcode == b"\x0e" and size == 6:
        return Listen(*_ADDRESS.unpack(body))
    if opcode == b"\x0f" and size == 4:
        return Resize(*_SIZE.unpack(body))
    if opcode == b"\x10":
        return Configure(body)
    if opcode == b"\x11" and 1 <= size <= 1 + 4096 and body[0] in set(GuestState):
        return Guest(body[0], body[1:].decode("utf-8", "backslashreplace"))
    raise ProtocolError(INVALID, "A message of the supervisor's stream can't be read.")
