"""The trunk in an attacker's hands: frames as no honest supervisor sends them, at a real channel.

A supervisor is confined as its program is, so whoever takes it over can write any frame. It must reach
nothing that the program could not, and cost the gate no more memory than an honest one.
"""

from __future__ import annotations

import asyncio
import socket
import struct
import sys
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import asynccontextmanager
from typing import Any

import pytest

from authority import protocol
from authority.compat.base import Stream
from authority.gate.channel import Channel
from authority.gate.client import Client, ensure, token_of
from authority.gate.run import TROUBLES
from authority.protocol import Service
from compat.seat import Seat, sit

from .lab import OPEN, Lab, lab_at, wait_for

CONNECT, OUTPUT, TROUBLE, EXIT = b"\x0b", b"\x03", b"\x0a", b"\x04"


class Rogue:
    """The supervisor's end of a run's channel."""

    def __init__(self, seat: Seat, channel: Channel, ours: socket.socket) -> None:
        self.seat, self.channel = seat, channel
        self._ours = ours
        self._loop = asyncio.get_running_loop()
        self._decoder = protocol.FrameDecoder(protocol.MAX_FRAME)
        self.frames: list[tuple[int, bytes]] = []

    async def send(self, stream: int, payload: bytes) -> None:
        await self._loop.sock_sendall(self._ours, protocol.encode_frame(stream, payload))

    async def tell(self, opcode: bytes, body: bytes) -> None:
        await self.send(0, opcode + body)

    async def connect(self, stream: int, service: int, detail: bytes = b"") -> None:
        await self.tell(CONNECT, struct.pack(">IB", stream, service) + detail)

    async def read(self, wanted: Callable[[], Any]) -> None:
        """Read until something holds, or the channel ends."""
        async with asyncio.timeout(20):
            while not wanted():
                try:
                    data = await self._loop.sock_recv(self._ours, 1 << 18)
                except ConnectionError:
                    data = b""
                if not data:
                    assert wanted(), f"the channel ended: {self.channel._reason}"
                    return
                self.frames += list(self._decoder.feed(data))

    async def ended(self) -> str:
        """Read to the end; why the gate ended the channel."""
        over = False

        def gone() -> bool:
            return over

        async with asyncio.timeout(20):
            while True:
                try:
                    if not await self._loop.sock_recv(self._ours, 1 << 18):
                        break
                except ConnectionError:
                    break
        return self.channel._reason


@asynccontextmanager
async def trunk(seat: Seat) -> AsyncIterator[Rogue]:
    ours, theirs = socket.socketpair()
    for each in (ours, theirs):
        each.setblocking(False)
    gate, run = seat.gate, seat.run
    channel = Channel(gate.pipeline, gate.reader, run=run.id, cwd=str(seat.work), owner=run)
    run.channel = channel
    await asyncio.get_running_loop().create_connection(lambda: channel, sock=theirs)
    try:
        yield Rogue(seat, channel, ours)
    finally:
        channel.close("tested")
        ours.close()


def attack(body: Callable[[Rogue], Awaitable[None]]) -> None:
    async def with_trunk(seat: Seat) -> None:
        async with trunk(seat) as rogue:
            await body(rogue)

    sit(with_trunk, mount=False)


def test_output_beyond_its_room_ends_the_run() -> None:
    async def body(rogue: Rogue) -> None:
        piece = b"\x01" + b"x" * (protocol.OUTPUT_WINDOW // 4)
        for _ in range(4):
            await rogue.tell(OUTPUT, piece)
        await rogue.connect(1, 99)  # the control: it is still listened to
        await rogue.read(lambda: rogue.frames)
        await rogue.tell(OUTPUT, b"\x01x")
        assert "more output than was granted" in await rogue.ended()

    attack(body)


def test_output_of_nothing_is_no_message() -> None:
    async def body(rogue: Rogue) -> None:
        await rogue.tell(OUTPUT, b"\x01")
        assert "malformed" in await rogue.ended()

    attack(body)


def test_lines_for_the_operator_are_bounded_and_harmless() -> None:
    async def body(rogue: Rogue) -> None:
        for _ in range(2 * TROUBLES):
            await rogue.tell(TROUBLE, b"\x1b]52;c;aGk=\x07 \x9b2J \xff " + "\u202e".encode())
        await rogue.connect(1, 99)
        await rogue.read(lambda: rogue.frames)
        said = [e["text"] for e in rogue.seat.events if e["event"] == "trouble"]
        assert len(said) == TROUBLES
        assert said[-1] == "more such lines are not shown"
        assert all(text.isascii() and text.isprintable() for text in said)

    attack(body)


class Large:
    """A service that answers every message with a megabyte."""

    def __init__(self) -> None:
        self.answered = 0

    async def serve(self, stream: Stream) -> None:
        while await stream.read():
            await stream.write(bytes(1 << 20))
            self.answered += 1


@pytest.mark.parametrize("service", [Service.MOUNT, Service.NAMES])
def test_answers_that_nobody_reads_are_not_made(service: Service) -> None:
    async def body(rogue: Rogue) -> None:
        large = Large()
        rogue.seat.run.services = {int(service): large}
        await rogue.connect(1, service, b"\0\0")
        for _ in range(100):
            await rogue.send(1, b"question")
        for _ in range(50):
            await asyncio.sleep(0.001)
        transport = rogue.channel._transport
        assert transport is not None
        assert transport.get_write_buffer_size() < 4 << 20
        assert large.answered < 4
        # The control: whoever reads gets all of them.
        await rogue.read(lambda: sum(stream == 1 for stream, _ in rogue.frames) == 100)

    attack(body)


PRINTS = """\
for count in range(30):
    print('x' * (1 << 20), flush=True)
    with open('out/count', 'w') as file: file.write(str(count))
"""


@pytest.fixture(scope="module")
def lab() -> Iterator[Lab]:
    with lab_at() as made:
        yield made


def test_who_does_not_read_what_a_run_prints_holds_up_the_run(lab: Lab) -> None:
    policy = OPEN.replace("[budgets]", '[budgets]\noutput_bytes = "64MB"')
    ensure(lab.directory)
    client = Client(lab.directory, token_of(lab.directory.admin_token))
    body = lab.body([sys.executable, "-I", "-c", PRINTS], policy)
    events = client.stream("POST", "/v1/runs", body)
    assert next(events)["event"] == "started"
    count = lab.work / "out" / "count"

    def printed() -> int:
        return int(count.read_text() or "0") if count.exists() else -1

    def stands() -> bool:
        before = printed()
        time.sleep(1.5)
        return printed() in (before, 29)

    wait_for(stands)
    assert printed() < 10
    # The control: whoever reads gets all of it.
    assert sum(len(e["text"]) for e in events if e["event"] == "output") > 30 << 20
    assert printed() == 29
