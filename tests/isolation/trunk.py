"""The gate's end of a channel, as small as a test can have it."""

from __future__ import annotations

import asyncio
import os
import socket
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

from authority.isolation import Sandbox, SandboxSpec, plan, probe, processes, start

OPEN, CLOSE, OUTPUT, EXIT, INPUT, INPUT_EOF, STARTED, INPUT_ACK, OUTPUT_ACK, TROUBLE = range(1, 11)


def supervisor_bytes(sandbox: Sandbox) -> int:
    """The memory of process 1, which holds whatever it has read and not yet passed on."""
    return processes.resident_bytes([sandbox.pid])


class Trunk:
    """Reads frames and sorts them; answers nothing by itself."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.reader, self.writer = reader, writer
        self.opened: list[int] = []
        self.closed: list[int] = []
        self.output = {1: b"", 2: b""}
        self.unacknowledged = 0
        self.messages: list[tuple[int, bytes]] = []
        self.troubles: list[str] = []
        self.input_acknowledged = 0
        self.exit: tuple[int, int] | None = None
        self.order: list[str] = []

    def send(self, stream: int, payload: bytes) -> None:
        head = (4 + len(payload)).to_bytes(4, "big") + stream.to_bytes(4, "big")
        self.writer.write(head + payload)

    def tell(self, opcode: int, body: bytes = b"") -> None:
        self.send(0, bytes((opcode,)) + body)

    def acknowledge(self) -> None:
        self.tell(OUTPUT_ACK, self.unacknowledged.to_bytes(4, "big"))
        self.unacknowledged = 0

    async def frame(self) -> bool:
        """Takes one frame; False at the end of the channel."""
        try:
            size = int.from_bytes(await self.reader.readexactly(4), "big")
            body = await self.reader.readexactly(size)
        except (asyncio.IncompleteReadError, ConnectionResetError):
            return False
        stream, payload = int.from_bytes(body[:4], "big"), body[4:]
        if stream:
            self.messages.append((stream, payload))
            self.order.append("message")
            return True
        opcode, rest = payload[0], payload[1:]
        number = int.from_bytes(rest[:4], "big")
        self.order.append(
            {
                1: "open",
                2: "close",
                3: "output",
                4: "exit",
                7: "started",
                8: "input",
                10: "trouble",
            }[opcode]
        )
        if opcode == OPEN:
            self.opened.append(number)
        elif opcode == CLOSE:
            self.closed.append(number)
        elif opcode == OUTPUT:
            self.output[rest[0]] += rest[1:]
            self.unacknowledged += len(rest) - 1
        elif opcode == EXIT:
            self.exit = (
                int.from_bytes(rest[:4], "big", signed=True),
                int.from_bytes(rest[4:8], "big", signed=True),
            )
        elif opcode == INPUT_ACK:
            self.input_acknowledged += number
        elif opcode == TROUBLE:
            self.troubles.append(rest.decode())
        return True

    async def until(self, condition: Any, *, acknowledge: bool = True) -> None:
        """Takes frames until the condition holds."""
        async with asyncio.timeout(20):
            while not condition():
                assert await self.frame(), (self.order[-5:], self.output, self.troubles)
                if acknowledge and self.unacknowledged > 1 << 16:
                    self.acknowledge()

    async def rest(self) -> None:
        """Everything up to the end of the channel."""
        async with asyncio.timeout(20):
            while await self.frame():
                if self.unacknowledged > 1 << 16:
                    self.acknowledge()
        self.writer.close()

    async def quiet(self, seconds: float) -> int:
        """Takes frames until none comes for a while; how many came."""
        count = 0
        while True:
            try:
                async with asyncio.timeout(seconds):
                    if not await self.frame():
                        return count
            except TimeoutError:
                return count
            count += 1


@asynccontextmanager
async def running(source: str, **spec: Any) -> AsyncIterator[tuple[Sandbox, Trunk]]:
    """A real run of a Python program, or of `argv`, with `trunk` as its gate."""
    fields = {"cwd": os.path.realpath("/var/tmp"), "memory": 1 << 30, "processes": 64, **spec}
    fields.setdefault("argv", (sys.executable, "-I", "-c", source))
    prepared = plan(SandboxSpec(**fields), probe())
    gate, run = socket.socketpair()
    sandbox = await start(prepared, run)
    gate.setblocking(False)
    reader, writer = await asyncio.open_connection(sock=gate)
    try:
        yield sandbox, Trunk(reader, writer)
    finally:
        sandbox.kill()
        writer.close()
        await sandbox.wait()


CLIENT = """
import os, socket, struct, sys, time
def connect():
    s = socket.socket(socket.AF_UNIX)
    s.connect(os.environ['AUTHORITY_CHANNEL'])
    return s
def send(s, payload, stream=1):
    s.sendall(struct.pack('>II', 4 + len(payload), stream) + payload)
def exactly(s, n):
    data = bytearray()
    while len(data) < n:
        part = s.recv(n - len(data))
        if not part: raise EOFError
        data += part
    return bytes(data)
def receive(s):
    size, stream = struct.unpack('>II', exactly(s, 8))
    return stream, exactly(s, size - 4)
"""
