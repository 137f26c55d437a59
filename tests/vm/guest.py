"""A machine whose one order is an attacker's: a program as root of the guest, with every capability.

As if everything inside had been overcome (seccomp, Landlock, ids, name spaces): what is left is the
machine itself. The program has the channel on descriptor 5 and nobody between it and the host.
"""

from __future__ import annotations

import asyncio
import json
import os
import secrets
import socket
import struct
import sys
import time
from typing import Any

from authority import protocol
from authority.isolation import SandboxSpec, probe
from authority.vm import Images, Machine, prepare
from authority.vm.machine import come_up

SPEC = SandboxSpec((os.path.realpath(sys.executable), "-c", "pass"), "/")
"""Like most runs of these tests, so that one saved state is enough for all."""

BEGIN = """
import os, sys, struct, json
def frame(stream, payload):
    data = struct.pack(">II", 4 + len(payload), stream) + payload
    view = memoryview(data)
    while view:
        view = view[os.write(5, view):]
def tell(found):
    frame(0, b"\\x03\\x01" + json.dumps(found).encode())
"""


def order(program: str) -> protocol.Configure:
    """Root's own order: the interpreter in place of the sandbox."""
    words = [os.path.realpath(sys.executable), "-I", "-S", "-B", "-c", BEGIN + program]
    command = b"".join(os.fsencode(word) + b"\0" for word in words)
    return protocol.Configure(
        struct.pack(">QHH", time.time_ns(), 0, 0)
        + secrets.token_bytes(64)
        + struct.pack(">I", len(command))
        + command
        + struct.pack(">I", 0)
    )


async def booted(found: Images) -> tuple[Machine, socket.socket]:
    """A machine that waits, continued from its saved state, and our end of its channel."""
    prepared = prepare(SPEC, probe(), found)
    ours, theirs = socket.socketpair()
    try:
        machine = await come_up(prepared, theirs)
    finally:
        theirs.close()
    ours.setblocking(False)
    return machine, ours


async def attack(found: Images, program: str, seconds: float = 150) -> dict[str, Any]:
    """What the program told of its attempts."""
    machine, ours = await booted(found)
    loop = asyncio.get_running_loop()
    decoder = protocol.FrameDecoder()
    try:
        async with asyncio.timeout(seconds):
            await loop.sock_sendall(
                ours, protocol.encode_frame(0, protocol.encode_control(order(program)))
            )
            while True:
                data = await loop.sock_recv(ours, 65536)
                assert data, "the machine ended and told nothing"
                for _, payload in decoder.feed(data):
                    message = protocol.decode_control(payload)
                    if isinstance(message, protocol.Output):
                        return dict(json.loads(message.data))
                    assert message == protocol.Guest(protocol.GuestState.WAITING, ""), message
    finally:
        machine.kill()
        await machine.wait()
        ours.close()
