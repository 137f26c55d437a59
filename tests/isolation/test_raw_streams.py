"""Raw streams in real runs: connections, datagrams and listeners of the run's own loopback, with their
windows, half-closes and ends, carried by the supervisor to a trunk that stands in for the gate."""

from __future__ import annotations

import asyncio
import hashlib
from collections import defaultdict
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager

from authority import protocol
from authority.protocol import RAW_WINDOW

from .trunk import Trunk, running

PROXY, NAMES = 1, 4
PORT = 48101
LISTENERS = ((PROXY, False, PORT), (NAMES, True, 53))
CONNECT = f"import socket, hashlib; s = socket.create_connection(('127.0.0.1', {PORT}))\n"


class Raw(Trunk):
    """Sorts raw streams: what each sent, was granted, and how it ended. Grants nothing by itself."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        super().__init__(reader, writer)
        self.connected: dict[int, tuple[int, bytes]] = {}
        self.got: dict[int, bytearray] = defaultdict(bytearray)
        self.ended: list[int] = []
        self.granted: dict[int, int] = defaultdict(int)

    def say(self, message: protocol.Control) -> None:
        self.send(0, protocol.encode_control(message))

    def of(self, service: int) -> list[int]:
        return [number for number, (kind, _) in self.connected.items() if kind == service]

    async def frame(self) -> bool:
        try:
            size = int.from_bytes(await self.reader.readexactly(4), "big")
            body = await self.reader.readexactly(size)
        except (asyncio.IncompleteReadError, ConnectionResetError):
            return False
        stream, payload = int.from_bytes(body[:4], "big"), body[4:]
        if stream:
            self.got[stream] += payload
            return True
        match protocol.decode_control(payload):
            case protocol.Connect(number, service, detail):
                self.connected[number] = (service, detail)
            case protocol.Eof(number):
                self.ended.append(number)
            case protocol.Close(number):
                self.closed.append(number)
            case protocol.Window(number, count):
                self.granted[number] += count
            case protocol.Output(fd, data):
                self.output[fd] += data
            case protocol.Exit(code, signal):
                self.exit = (code, signal)
            case protocol.Trouble(text):
                self.troubles.append(text)
        return True


@asynccontextmanager
async def network(source: str) -> AsyncIterator[Raw]:
    async with running(source, loopback=True, listeners=LISTENERS) as (_, trunk):
        yield Raw(trunk.reader, trunk.writer)


def scene(source: str, play: Callable[[Raw], object]) -> None:
    async def work() -> None:
        async with network(source) as trunk:
            await play(trunk)  # type: ignore[misc]

    asyncio.run(work())


def test_a_connection_goes_both_ways_and_half_closes() -> None:
    source = CONNECT + (
        "s.sendall(b'question'); s.shutdown(socket.SHUT_WR)\n"
        "data = b''\n"
        "while part := s.recv(4096): data += part\n"
        "print(data)\n"
    )

    async def play(trunk: Raw) -> None:
        await trunk.until(lambda: trunk.ended)
        (number,) = trunk.of(PROXY)
        assert trunk.got[number] == b"question"
        trunk.send(number, b"answer")
        trunk.say(protocol.Eof(number))
        await trunk.rest()
        assert trunk.output[1] == b"b'answer'\n"
        assert trunk.closed == [number]
        assert trunk.granted[number] == len(b"answer")

    scene(source, play)


def test_what_is_not_granted_is_not_read() -> None:
    size = 3 * RAW_WINDOW
    source = CONNECT + f"s.sendall(b'x' * {size}); s.close(); print('sent')\n"

    async def play(trunk: Raw) -> None:
        await trunk.until(lambda: trunk.of(PROXY))
        (number,) = trunk.of(PROXY)
        await trunk.until(lambda: len(trunk.got[number]) >= RAW_WINDOW)
        await trunk.quiet(0.3)
        assert len(trunk.got[number]) == RAW_WINDOW
        for _ in range(2):  # the control: with room the rest comes
            trunk.say(protocol.Window(number, RAW_WINDOW))
            before = len(trunk.got[number])
            await trunk.until(lambda before=before: len(trunk.got[number]) == before + RAW_WINDOW)
        trunk.say(protocol.Window(number, 1))
        await trunk.rest()
        assert len(trunk.got[number]) == size
        assert trunk.output[1] == b"sent\n"

    scene(source, play)


def test_large_answers_arrive_whole_and_are_granted_as_they_are_taken() -> None:
    data = bytes(range(256)) * 4096
    source = CONNECT + (
        "h = hashlib.sha256()\nwhile part := s.recv(65536): h.update(part)\nprint(h.hexdigest())\n"
    )

    async def play(trunk: Raw) -> None:
        await trunk.until(lambda: trunk.of(PROXY))
        (number,) = trunk.of(PROXY)
        sent = 0
        while sent < len(data):
            room = RAW_WINDOW - (sent - trunk.granted[number])
            if not room:
                taken = trunk.granted[number]
                await trunk.until(lambda taken=taken: trunk.granted[number] > taken)
                continue
            piece = data[sent : sent + min(room, 65536)]
            trunk.send(number, piece)
            sent += len(piece)
        trunk.say(protocol.Eof(number))
        await trunk.rest()
        assert trunk.output[1].decode().strip() == hashlib.sha256(data).hexdigest()

    scene(source, play)


def test_a_gate_that_sends_more_than_was_granted_ends_the_run() -> None:
    source = CONNECT + "import time; time.sleep(30)\n"

    async def play(trunk: Raw) -> None:
        await trunk.until(lambda: trunk.of(PROXY))
        (number,) = trunk.of(PROXY)
        for _ in range(400):
            trunk.send(number, b"x" * 65536)
        await trunk.rest()
        assert trunk.exit is None

    scene(source, play)


def test_what_was_sent_before_the_program_ended_still_arrives() -> None:
    source = CONNECT + "s.sendall(b'last words')\n"

    async def play(trunk: Raw) -> None:
        await trunk.rest()
        (number,) = trunk.of(PROXY)
        assert trunk.got[number] == b"last words"
        assert number in trunk.closed
        assert trunk.exit == (0, 0)

    scene(source, play)


def test_closing_a_stream_closes_the_connection() -> None:
    source = CONNECT + (
        "try: print('got', s.recv(10))\nexcept OSError as e: print('error', e.errno)\n"
    )

    async def play(trunk: Raw) -> None:
        await trunk.until(lambda: trunk.of(PROXY))
        trunk.say(protocol.Close(trunk.of(PROXY)[0]))
        await trunk.rest()
        assert trunk.output[1] in (b"got b''\n", b"error 104\n")

    scene(source, play)


def test_a_listener_says_at_which_address_it_was_reached() -> None:
    source = (
        "import socket, sys\n"
        "sys.stdin.readline()\n"
        "s = socket.create_connection(('127.64.0.7', 443)); s.sendall(b'hello'); s.recv(1)\n"
    )

    async def play(trunk: Raw) -> None:
        await trunk.until(lambda: trunk.of(NAMES))
        trunk.say(protocol.Listen(int.from_bytes(bytes((127, 64, 0, 7)), "big"), 443))
        trunk.say(protocol.Input(b"\n"))
        await trunk.until(lambda: trunk.of(5))
        (number,) = trunk.of(5)
        assert trunk.connected[number][1] == bytes((127, 64, 0, 7)) + (443).to_bytes(2, "big")
        await trunk.until(lambda: trunk.got[number] == b"hello")

    scene(source, play)


def test_a_listener_outside_the_loopback_is_refused() -> None:
    async def play(trunk: Raw) -> None:
        await trunk.until(lambda: trunk.of(NAMES))
        trunk.say(protocol.Listen(int.from_bytes(bytes((10, 0, 0, 1)), "big"), 443))
        await trunk.until(lambda: trunk.troubles)
        assert "10.0.0.1" in trunk.troubles[0]

    scene("import sys; sys.stdin.read()", play)


def test_more_connections_than_may_be_are_closed_and_the_first_goes_on() -> None:
    source = (
        f"import socket\nfirst = socket.create_connection(('127.0.0.1', {PORT}))\n"
        "others = []\n"
        "for _ in range(1100):\n"
        f"    others.append(socket.create_connection(('127.0.0.1', {PORT})))\n"
        "first.sendall(b'still here'); print(first.recv(2))\n"
    )

    async def play(trunk: Raw) -> None:
        await trunk.until(lambda: trunk.troubles)
        assert "more than 1024" in trunk.troubles[0]
        first = min(trunk.of(PROXY))
        await trunk.until(lambda: trunk.got[first] == b"still here")
        trunk.send(first, b"ok")
        await trunk.until(lambda: trunk.output[1] == b"b'ok'\n")
        assert len(trunk.of(PROXY)) == 1024

    scene(source, play)


def test_control_without_listeners_there_is_nothing() -> None:
    source = (
        "import socket\n"
        f"try: socket.create_connection(('127.0.0.1', {PORT})); print('reached')\n"
        "except OSError as e: print(e.errno)\n"
    )

    async def work() -> None:
        async with running(source, loopback=True) as (_, trunk):
            await trunk.rest()
            assert trunk.output[1] == b"111\n"

    asyncio.run(work())
