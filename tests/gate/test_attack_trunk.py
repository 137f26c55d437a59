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
from authority.compat.base import Folder, Places, Stream
from authority.compat.credentials import Keyring
from authority.compat.mount import Mounts
from authority.compat.names import Names
from authority.compat.proxy import Proxy
from authority.compat.proxy_desk import Desk
from authority.gate.channel import Channel
from authority.gate.client import Client, ensure, token_of
from authority.gate.raw import RawStream
from authority.gate.run import SERVED, TROUBLES
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


def test_small_pieces_cost_what_they_take() -> None:
    async def taken() -> None: ...

    def stream(service: Service) -> RawStream:
        return RawStream(1, service, b"", sent.append, told.append, waiting.append, taken)

    sent: list[bytes] = []
    told: list[protocol.Control] = []
    waiting: list[int] = []
    bytes_, messages = stream(Service.PROXY), stream(Service.NAMES)
    pieces = [b"%02d" % (n % 100) for n in range(20_000)]
    for piece in pieces:
        bytes_.received(piece)
        messages.received(piece)
    held = sum(sys.getsizeof(each) for each in bytes_._queue)
    assert held < 2 * 2 * len(pieces)
    assert sum(waiting) > sum(sys.getsizeof(each) for each in messages._queue)
    bytes_.eof()

    async def all_of(one: RawStream, count: int) -> list[bytes]:
        return [await one.read() for _ in range(count)]

    assert b"".join(asyncio.run(all_of(bytes_, len(bytes_._queue)))) == b"".join(pieces)
    assert asyncio.run(all_of(messages, len(pieces))) == pieces
    assert sum(waiting) == 0


def test_connections_that_end_at_once_leave_bounded_work_behind() -> None:
    async def body(rogue: Rogue) -> None:
        run = rogue.seat.run
        run.services = {1: Silent()}
        for number in range(1, SERVED + 500):
            await rogue.connect(number, 1)
            await rogue.tell(b"\x02", struct.pack(">I", number))
        await rogue.connect(100_000, 99)
        await rogue.read(lambda: (0, b"\x02" + struct.pack(">I", 100_000)) in rogue.frames)
        assert SERVED - 10 < len(run.tasks) <= SERVED
        await rogue.connect(100_001, 1)  # the control: it is bounded, not ended
        await rogue.read(lambda: (0, b"\x02" + struct.pack(">I", 100_001)) in rogue.frames)

    attack(body)


ENDS = {
    "a number that was given before": [(CONNECT, "00000001 01"), (CONNECT, "00000001 01")],
    "a number that falls": [(CONNECT, "00000005 01"), (CONNECT, "00000004 01")],
    "a client by a number of a stream": [(CONNECT, "00000001 01"), (b"\x01", "00000001")],
    "stream 0": [(CONNECT, "00000000 01")],
    "more after the end": [(CONNECT, "00000001 07"), (b"\x0c", "00000001"), (b"", "00000001 78")],
    "more than was granted": [(CONNECT, "00000001 07"), (b"", "00000001" + "78" * 262_145)],
    "more granted than was sent": [(CONNECT, "00000001 07"), (b"\x0d", "00000001 00000001")],
    "room of four billion": [(CONNECT, "00000001 07"), (b"\x0d", "00000001 ffffffff")],
    "room on a stream of messages": [(CONNECT, "00000001 04"), (b"\x0d", "00000001 00000001")],
    "a listener for the gate": [(b"\x0e", "7f000001 0050")],
    "input for the gate": [(b"\x05", "78")],
    "an acknowledgement for the gate": [(b"\x09", "00000001")],
    "a detail that is too long": [(CONNECT, "00000001 01" + "00" * 65)],
    "a stream that nobody began": [(b"", "00000009 78")],
    "an unknown opcode": [(b"\x10", "00000001")],
}


class Silent:
    """A service that reads nothing."""

    async def serve(self, stream: Stream) -> None:
        await asyncio.sleep(60)


@pytest.mark.parametrize("name", ENDS)
def test_what_no_supervisor_sends_ends_the_run(name: str) -> None:
    async def body(rogue: Rogue) -> None:
        rogue.seat.run.services = {1: Silent(), 4: Silent(), 7: Silent()}
        for opcode, text in ENDS[name]:
            data = bytes.fromhex(text)
            if opcode:
                await rogue.tell(opcode, data)
            else:
                await rogue.send(int.from_bytes(data[:4], "big"), data[4:])
        assert "malformed" in await rogue.ended()
        denied = await rogue.seat.log(kind="denied", layer="frame")
        assert len(denied) == 1

    attack(body)


def test_what_comes_late_or_leads_nowhere_ends_only_itself() -> None:
    async def body(rogue: Rogue) -> None:
        seat = rogue.seat
        places = Places((Folder(str(seat.work), str(seat.work)),))
        door = seat.gate.door(seat.run)
        names = Names(door)
        keyring = Keyring(seat.run.spec.policy, {}, lambda: "x")
        proxy = Proxy(door, Desk(door, keyring, None, b""), names)
        seat.run.services = {1: Silent(), 4: names, 5: proxy, 6: Mounts(door, places)}
        closed = [
            (99, b""),  # no such service
            (6, b"\0\1"),  # a mount that the run has not
            (6, b"\0"),
            (6, b"\0\0\0"),
            (5, b"\x7f\x40\0\1\x01\xbb"),  # an address that no name was given
            (5, b"\x0a\0\0\1\x01\xbb"),
            (5, b""),
        ]
        for number, (service, detail) in enumerate(closed, 1):
            await rogue.connect(number, service, detail)
        await rogue.read(lambda: len(rogue.frames) >= len(closed))
        assert sorted(rogue.frames) == [(0, b"\x02" + struct.pack(">I", n)) for n in range(1, 8)]
        # A mount that is there answers; a second stream for it does not.
        await rogue.connect(10, 6, b"\0\0")
        await rogue.connect(11, 6, b"\0\0")
        init = struct.pack("<IIII", 7, 41, 0, 0).ljust(64, b"\0")
        head = struct.pack("<IIQQIIIHH", 40 + len(init), 26, 1, 0, 0, 0, 1, 0, 0)
        await rogue.send(10, head + init)
        await rogue.read(lambda: {10, 0} <= {n for n, _ in rogue.frames[7:]})
        assert (0, b"\x02" + struct.pack(">I", 11)) in rogue.frames
        # Names: what is no query gets no answer, and the next one does.
        await rogue.connect(12, 4)
        for message in (b"x", b"", b"x" * 6, b"x" * 17, b"\x7f\0\0\1\0\x35" + b"\xff" * 600):
            if message:
                await rogue.send(12, message)
        query = b"\0\1\1\0\0\1\0\0\0\0\0\0\x09localhost\0\0\1\0\1"
        await rogue.send(12, b"\x7f\0\0\1\0\x35" + query)
        await rogue.read(lambda: any(n == 12 and b"localhost" in d for n, d in rogue.frames))
        # After its end nothing of a stream is listened to, and nothing of it ends the run.
        await rogue.tell(b"\x02", struct.pack(">I", 12))
        await rogue.send(12, b"late")
        await rogue.tell(b"\x0c", struct.pack(">I", 12))
        await rogue.tell(b"\x0d", struct.pack(">II", 12, 1))
        await rogue.tell(b"\x02", struct.pack(">I", 999_999))
        await rogue.tell(EXIT, struct.pack(">ii", 0, 0))  # nor does an end that is only said
        await rogue.connect(1_000_000, 99)
        await rogue.read(lambda: (0, b"\x02" + struct.pack(">I", 1_000_000)) in rogue.frames)

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
