"""As root of a machine, on the channel: what no supervisor would send, then silence.

Its word names one kind. A flood says that it begins; the others say nothing of themselves,
because nothing would arrive. The neighbour's part is `ticks`: it goes on with what is allowed.
"""

from __future__ import annotations

import os
import struct
import sys
import time

from guest_kinds import (  # type: ignore[import-not-found]
    CONNECT,
    MALFORMED,
    OPEN,
    TROUBLE,
    WINDOW,
    control,
    framed,
    number,
)

CHANNEL = 5
SECONDS = 600


def send(data: bytes) -> None:
    view = memoryview(data)
    while view:
        view = view[os.write(CHANNEL, view[:16384]) :]


def streams() -> None:
    """Every number of streams, and of connections to every service."""
    for stream in range(1, 6000):
        send(control(OPEN, number(stream)))
    for stream in range(6000, 12000):
        send(control(CONNECT, number(stream) + bytes([1 + stream % 8]) + b"detail"))


def flood() -> None:
    """What is well-formed, as fast as it goes."""
    piece = control(WINDOW, struct.pack(">II", 1, 1)) * 1000
    while True:
        send(piece)


def troubles() -> None:
    while True:
        send(control(TROUBLE, b"\x1b[2J\x9b31m" + os.urandom(64)) * 200)


def requests() -> None:
    """A client that greets with nonsense, again and again."""
    stream = 0
    while True:
        stream += 1
        send(control(OPEN, number(stream)) + framed(stream, os.urandom(64)))


def ticks() -> None:
    """The neighbour: what a supervisor would say."""
    while True:
        print("tick", flush=True)
        time.sleep(0.05)


FLOOD = {"streams": streams, "flood": flood, "troubles": troubles, "requests": requests}

if __name__ == "__main__":
    what = sys.argv[1]
    if what == "ticks":
        ticks()
    elif what == "well-formed":
        print("said", flush=True)
        send(control(TROUBLE, b"a word for the operator"))
        sys.exit(7)
    elif what in FLOOD:
        print("begins", flush=True)
        time.sleep(0.5)  # until that is out
        FLOOD[what]()
    elif what == "split at each byte":
        for byte in MALFORMED[what]:
            send(bytes([byte]))
            time.sleep(0.01)
    else:
        send(MALFORMED[what])
    time.sleep(SECONDS)
