"""What a link holds for a side that does not read, or that asks without end."""

from __future__ import annotations

import asyncio
import os
import socket
from collections.abc import Awaitable, Callable
from typing import Any

import msgspec
import pytest

from authority.protocol import packets, parcels
from authority.protocol.packets import LinkOver, Peer
from authority.protocol.parcels import Parcels


class Hostile:
    """The other end: packets as they are written here, and no reading but by `read`."""

    def __init__(self, sock: socket.socket) -> None:
        self._sock = sock
        self._loop = asyncio.get_running_loop()
        sock.setblocking(False)

    async def call(self, number: int, method: str, params: Any = None) -> None:
        data = msgspec.msgpack.encode([0, number, method, params])
        while True:
            try:
                self._sock.send(data)
                return
            except BlockingIOError:
                await asyncio.sleep(0)
            except OSError:
                return  # it was sent away

    def descriptors(self, packet: list[Any]) -> None:
        """Send two descriptors along."""
        fds = [0, 1]
        socket.send_fds(self._sock, [msgspec.msgpack.encode(packet)], fds)

    def read(self) -> int:
        """How many answers are there."""
        count = 0
        while True:
            try:
                data, fds, _, _ = socket.recv_fds(self._sock, packets.MAX_PACKET, packets.MAX_FDS)
            except BlockingIOError:
                return count
            for fd in fds:
                os.close(fd)
            if not data:
                return count
            count += 1


def linked(body: Callable[[Peer, Hostile], Awaitable[None]], *, takes: bool = True) -> None:
    async def work() -> None:
        ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        peer = Peer(ours, takes=takes)
        with theirs:
            try:
                async with asyncio.timeout(20):
                    await body(peer, Hostile(theirs))
            finally:
                peer.close()

    asyncio.run(work())


async def _descriptor(_params: Any, _fds: list[int]) -> tuple[Any, list[int]]:
    return None, [os.open("/dev/null", os.O_RDONLY | os.O_CLOEXEC)]


async def _large(_params: Any, _fds: list[int]) -> tuple[Any, list[int]]:
    return bytes(100_000), []


@pytest.mark.parametrize(("handler", "most"), [(_descriptor, 1100), (_large, 1000)])
def test_answers_that_nobody_reads_end_the_link(handler: Any, most: int) -> None:
    async def body(peer: Peer, hostile: Hostile) -> None:
        peer.on("give", handler)
        before = len(os.listdir("/proc/self/fd"))
        got = 0
        for number in range(1, 301):  # the control: whoever reads is answered
            await hostile.call(number, "give")
            got += hostile.read()
        while got < 300:
            await asyncio.sleep(0)
            got += hostile.read()
        assert not peer.reason
        for number in range(301, 6000):
            await hostile.call(number, "give")
            if peer.reason:
                break
            assert len(os.listdir("/proc/self/fd")) - before < most
        assert peer.reason == "it does not read what it asked for"
        assert len(os.listdir("/proc/self/fd")) <= before

    linked(body)


def test_calls_that_wait_are_bounded_in_bytes() -> None:
    async def body(peer: Peer, hostile: Hostile) -> None:
        async def waits(_params: Any, _fds: list[int]) -> tuple[Any, list[int]]:
            await asyncio.sleep(60)
            return None, []

        peer.on("wait", waits)
        piece = bytes(120_000)
        sent = 0
        while not peer.reason and sent < 2 * packets.MAX_UNDER_WAY:
            sent += len(piece)
            await hostile.call(sent, "wait", piece)
            await asyncio.sleep(0)
        assert peer.reason == "too many calls at a time"
        assert sent > packets.MAX_UNDER_WAY // 2

    linked(body)


@pytest.mark.parametrize(
    "packet", [[0, 1, "give", None], [0, 0, "give", None], [1, 1, None], [2, 1, ["E", "", None]]]
)
def test_an_end_that_takes_no_descriptors_ends_the_link_when_some_come(packet: list[Any]) -> None:
    async def body(peer: Peer, hostile: Hostile) -> None:
        peer.on("give", _descriptor)
        await hostile.call(1, "give")
        while not hostile.read():  # the control: without any it goes on
            await asyncio.sleep(0)
        asking = asyncio.ensure_future(peer.call("ask", None))
        before = len(os.listdir("/proc/self/fd"))
        hostile.descriptors(packet)
        await peer.closed.wait()
        assert peer.reason == "descriptors that nobody asked for"
        assert len(os.listdir("/proc/self/fd")) < before
        with pytest.raises(LinkOver):
            await asking

    linked(body, takes=False)


async def _take(value: Any) -> Any:
    return len(value)


def test_parcels_that_are_never_complete_are_bounded() -> None:
    async def body(peer: Peer, hostile: Hostile) -> None:
        Parcels(peer).on("take", _take)
        piece = bytes(parcels.PIECE)
        sent = number = 0
        while not peer.reason and sent < 2 * parcels.MAX_WAITING:
            for key in range(60):
                number += 1
                sent += len(piece)
                await hostile.call(number, "parcel", [key, piece])
            await asyncio.sleep(0)
            hostile.read()
        assert "more than may wait" in peer.reason
        assert parcels.MAX_WAITING / 2 < sent < parcels.MAX_WAITING * 1.2

    linked(body)


def test_an_answer_that_is_too_long_ends_the_link() -> None:
    async def body(peer: Peer, hostile: Hostile) -> None:
        async def long(_params: Any, _fds: list[int]) -> tuple[Any, list[int]]:
            return bytes(packets.MAX_PACKET), []

        peer.on("long", long)
        await hostile.call(1, "long")
        await peer.closed.wait()
        assert "can't be sent" in peer.reason

    linked(body)
