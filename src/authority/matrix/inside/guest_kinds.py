"""The kinds of attacks by root in the guest, for the programs inside and for who starts them.

Both sides import it, so it knows nothing of either.
"""

from __future__ import annotations

import struct


def framed(stream: int, payload: bytes) -> bytes:
    return struct.pack(">II", 4 + len(payload), stream) + payload


def control(opcode: int, body: bytes = b"") -> bytes:
    return framed(0, bytes([opcode]) + body)


def number(value: int) -> bytes:
    return struct.pack(">I", value)


MEGABYTES = 256
"""What a machine of these attacks has."""

OPEN, CLOSE, OUTPUT, EXIT, INPUT, STARTED, TROUBLE, CONNECT, WINDOW, CONFIGURE, GUEST = (
    *(1, 2, 3, 4, 5, 7, 10, 11, 13, 16, 17),
)

MALFORMED = {
    "garbage": b"\xff" * 64,
    "a length of two gigabytes": struct.pack(">II", 1 << 31, 0),
    "a length of nothing": struct.pack(">II", 0, 0) + bytes(16),
    "a frame without content": struct.pack(">II", 4, 0) + bytes(16),
    "an unknown opcode": control(99, b"nothing"),
    "the gate's own opcode": control(INPUT, b"typed"),
    "an order": control(CONFIGURE, bytes(100)),
    "an unknown stream": framed(77, b"for nobody"),
    "a stream number twice": control(OPEN, number(5)) * 2,
    "a stream number that falls": control(OPEN, number(9)) + control(OPEN, number(8)),
    "output for no stream": control(OUTPUT, b"\x07text"),
    "an end that is cut short": control(EXIT, b"\0\0"),
    "a state that there is not": control(GUEST, b"\x63words"),
    "a word too long": control(TROUBLE, b"x" * 5000),
    "split at each byte": control(99, b"\x1b]0;title\x07"),
    # In one frame: in several, what is acknowledged meanwhile is granted anew.
    "more output than was granted": control(OUTPUT, b"\x01" + b"x" * (1 << 20)),
}
"""Each of these ends its run. What is split is sent a byte at a time."""

FLOODS = ("streams", "flood", "troubles", "requests")
"""Well-formed, and without end."""

PARTS = (
    *("greedy for random", "greedy on the channel", "firmware storm", "scan", "firmware", "bus"),
    *("acpi", "nonsense for random", "nonsense for the disk", "nonsense for the channel"),
)
"""What the hypervisor is attacked by, those first that mostly wait; the disk has a test of its own."""

STAYS = (*("halt", "a hung kernel", "a sleeping kernel", "suspended", "a loop", "all processes"),)
"""Machines that go on for ever, or do nothing for ever."""

ENDS = (
    *("panic", "a triple fault", "power off", "reboot", "power off by its register"),
    *("hibernated by its register", "reset by a port", "reset by the keyboard", "all memory"),
)
"""Machines that end, or come to where they hang."""
