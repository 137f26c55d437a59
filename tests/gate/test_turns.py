"""Who sends without end has a turn like everybody else, and not more in flight than anybody."""

from __future__ import annotations

import asyncio
import socket
from collections.abc import Awaitable, Callable
from typing import Any

import pytest

from authority import protocol
from authority.gate import turns
from authority.gate.answers import Answer
from authority.gate.channel import AT_A_TIME, PIPELINE, Channel
from authority.gate.raw import RawStream

FLOOD = 2000


@pytest.fixture(autouse=True)
def _short(monkeypatch: pytest.MonkeyPatch) -> None:
    """A turn is one step."""
    monkeypatch.setattr(turns, "TURN_SECONDS", 0.0)


class Pipeline:
    """Keeps what it is handed; answers when it is told to."""

    def __init__(self) -> None:
        self.asked: list[tuple[Any, Any]] = []
        self.handed = 0

    def submit(self, asked: Any, reply: Any) -> None:
        self.handed += 1
        self.asked.append((asked, reply))

    def blind(self, _run: str) -> bool:
        return False

    def answer(self) -> None:
        asked, self.asked = self.asked, []
        for one, reply in asked:
            reply(Answer(one.request.n, True, 1, b"", ["E", "l", "s", 1, None]))


class Owner:
    """Writes down what a channel tells it."""

    def __init__(self) -> None:
        self.told: list[str] = []

    def on_trouble(self, text: str) -> None:
        self.told.append(text)

    def on_closed(self, reason: str) -> None:
        self.told.append(f"closed: {reason}")


class Reader:
    """Every request is as it came."""

    def read(self, _run: str, _cwd: str, _stream: int, wire: Any, *_: Any) -> Any:
        class Asked:
            request = wire

        return Asked()


Body = Callable[[Pipeline, Owner, socket.socket], Awaitable[None]]


def at_a_channel(body: Body) -> None:
    async def main() -> None:
        ours, theirs = socket.socketpair()
        for each in (ours, theirs):
            each.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 1 << 20)
            each.setblocking(False)
        pipeline, owner = Pipeline(), Owner()
        channel = Channel(pipeline, Reader(), run="r", owner=owner)  # type: ignore[arg-type]
        await asyncio.get_running_loop().create_connection(lambda: channel, sock=theirs)
        try:
            async with asyncio.timeout(60):
                await body(pipeline, owner, ours)
        finally:
            channel.close("tested")
            ours.close()

    asyncio.run(main())


async def until(wanted: Callable[[], Any]) -> int:
    """Wait for something; how often others had their turn meanwhile."""
    count = 0
    while not wanted():
        count += 1
        await asyncio.sleep(0)
    return count


def control(opcode: int, body: bytes) -> bytes:
    return protocol.encode_frame(0, bytes([opcode]) + body)


def trouble(text: str) -> bytes:
    return control(10, text.encode())


def opened(stream: int) -> bytes:
    return control(1, stream.to_bytes(4, "big"))


def test_everybody_else_has_a_turn_between_two_steps() -> None:
    async def body(_: Pipeline, owner: Owner, ours: socket.socket) -> None:
        flood = b"".join(trouble(str(n)) for n in range(FLOOD))
        await asyncio.get_running_loop().sock_sendall(ours, flood)
        assert await until(lambda: len(owner.told) == FLOOD) >= FLOOD - 1
        assert owner.told == [str(n) for n in range(FLOOD)]

    at_a_channel(body)


@pytest.mark.parametrize("seconds", [0.0, 60.0])
def test_denials_in_flight_are_bounded_as_requests_are(
    seconds: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Greetings of nonsense: each is an entry, and none is read before those in flight are durable."""
    monkeypatch.setattr(turns, "TURN_SECONDS", seconds)

    async def body(pipeline: Pipeline, owner: Owner, ours: socket.socket) -> None:
        flood = b"".join(
            opened(n) + protocol.encode_frame(n, b"\xc1 garbage") for n in range(1, FLOOD)
        )
        loop = asyncio.get_running_loop()
        drain = loop.create_task(draining(ours))
        send = loop.create_task(loop.sock_sendall(ours, flood + trouble("behind")))
        await until(lambda: pipeline.handed == PIPELINE)
        for _ in range(100):
            await asyncio.sleep(0)
        assert pipeline.handed == PIPELINE
        while not owner.told:
            assert len(pipeline.asked) <= PIPELINE
            pipeline.answer()
            await asyncio.sleep(0)
        assert pipeline.handed == FLOOD - 1
        await send
        drain.cancel()

    at_a_channel(body)


def test_many_requests_in_one_frame_are_handled_in_parts() -> None:
    async def body(pipeline: Pipeline, owner: Owner, ours: socket.socket) -> None:
        asked = [
            protocol.Request(n, "fs.read", "/a", protocol.encode_arguments({}), None, 0)
            for n in range(1, protocol.MAX_REQUESTS + 1)
        ]
        loop = asyncio.get_running_loop()
        hello = protocol.encode_frame(1, protocol.encode_hello("test"))
        frame = protocol.encode_frame(1, protocol.encode_requests(asked))
        drain = loop.create_task(draining(ours))
        send = loop.create_task(
            loop.sock_sendall(ours, opened(1) + hello + frame + trouble("behind"))
        )
        seen: set[int] = set()
        while not owner.told:
            seen.add(pipeline.handed)
            assert len(pipeline.asked) <= PIPELINE
            if len(pipeline.asked) == PIPELINE:
                pipeline.answer()
            await asyncio.sleep(0)
        assert seen >= set(range(0, len(asked), AT_A_TIME))
        assert pipeline.handed == len(asked)
        await send
        drain.cancel()

    at_a_channel(body)


def test_what_came_before_the_other_side_went_is_handled_first() -> None:
    async def body(_: Pipeline, owner: Owner, ours: socket.socket) -> None:
        words = [str(n) for n in range(FLOOD)]
        await asyncio.get_running_loop().sock_sendall(ours, b"".join(map(trouble, words)))
        ours.close()
        await until(lambda: owner.told[-1:] == ["closed: closed"])
        assert owner.told[:-1] == words

    at_a_channel(body)


def test_nothing_behind_a_malformed_frame_is_handled() -> None:
    async def body(pipeline: Pipeline, owner: Owner, ours: socket.socket) -> None:
        flood = trouble("before") + control(99, b"x") + trouble("behind")
        await asyncio.get_running_loop().sock_sendall(ours, flood)
        await until(lambda: len(owner.told) == 2)
        assert owner.told[0] == "before"
        assert owner.told[1].startswith("closed: malformed frame")
        assert pipeline.handed == 1

    at_a_channel(body)


def test_a_service_with_a_backlog_lets_others_have_their_turn() -> None:
    async def main() -> None:
        stream = RawStream(
            *(1, protocol.Service.MOUNT, b"", lambda _: None, lambda _: None, lambda _: None),
            asyncio.Event().wait,
        )
        for n in range(FLOOD):
            stream.received(b"%d" % n)
        read: list[bytes] = []

        async def serve() -> None:
            while len(read) < FLOOD:
                read.append(await stream.read())

        task = asyncio.get_running_loop().create_task(serve())
        assert await until(task.done) >= FLOOD
        assert read == [b"%d" % n for n in range(FLOOD)]

    asyncio.run(main())


async def draining(sock: socket.socket) -> None:
    while await asyncio.get_running_loop().sock_recv(sock, 1 << 16):
        continue


@pytest.mark.parametrize("first", ["closed", "open"])
def test_a_channel_that_is_closed_before_it_is_open_does_not_open(first: str) -> None:
    """A halt may come between the two; the supervisor on the other side would wait for ever."""

    async def main() -> None:
        ours, theirs = socket.socketpair()
        for each in (ours, theirs):
            each.setblocking(False)
        channel = Channel(Pipeline(), Reader(), run="r", owner=Owner())  # type: ignore[arg-type]
        loop = asyncio.get_running_loop()
        if first == "closed":
            channel.close("halted")
        await loop.create_connection(lambda: channel, sock=theirs)
        with ours:
            if first == "open":
                await asyncio.sleep(0.1)
                with pytest.raises(BlockingIOError):
                    ours.recv(1)
                channel.close("halted")
            async with asyncio.timeout(60):
                assert await loop.sock_recv(ours, 1) == b""

    asyncio.run(main())
