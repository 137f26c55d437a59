"""Long values over a link, both ways, and what is no parcel."""

from __future__ import annotations

import asyncio
import os
import socket
from collections.abc import Awaitable, Callable
from typing import Any

import pytest

from authority.protocol.packets import CallError, LinkOver, Peer
from authority.protocol.parcels import MAX_OPEN, MAX_PARCEL, PIECE, ParcelBroken, Parcels


def linked(body: Callable[[Peer, Parcels, Parcels], Awaitable[None]]) -> None:
    async def work() -> None:
        left, right = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        one, two = Peer(left), Peer(right)
        ours, theirs = Parcels(one), Parcels(two)

        async def echo(value: Any) -> Any:
            if value == "refuse":
                raise CallError("E_X", "no", {"n": 1})
            return value

        theirs.on("echo", echo)
        try:
            async with asyncio.timeout(20):
                await body(one, ours, theirs)
        finally:
            one.close()
            two.close()

    asyncio.run(work())


@pytest.mark.parametrize("size", [0, 1, PIECE - 10, PIECE, PIECE + 1, 3 * PIECE, 1_000_000])
def test_a_value_of_any_size_comes_back(size: int) -> None:
    async def body(_peer: Peer, ours: Parcels, _theirs: Parcels) -> None:
        value = {"a": os.urandom(size), "b": [1, "x", None, 1.5]}
        assert await ours.call("echo", value) == value

    linked(body)


def test_many_at_a_time_and_a_refusal_among_them() -> None:
    async def body(_peer: Peer, ours: Parcels, _theirs: Parcels) -> None:
        values = [bytes([n]) * (n * 10_000) for n in range(40)]
        got = await asyncio.gather(*(ours.call("echo", value) for value in values))
        assert got == values
        with pytest.raises(CallError) as refused:
            await ours.call("echo", "refuse")
        assert (refused.value.code, refused.value.more) == ("E_X", {"n": 1})

    linked(body)


def test_a_value_that_is_too_large_is_not_sent() -> None:
    async def body(_peer: Peer, ours: Parcels, _theirs: Parcels) -> None:
        with pytest.raises(ValueError, match="a parcel of"):
            await ours.call("echo", b"x" * (MAX_PARCEL + 1))
        assert await ours.call("echo", 1) == 1

    linked(body)


async def flood(peer: Peer) -> None:
    for key in range(MAX_OPEN + 2):
        await peer.call("parcel", [key, b"x"])


async def heap(peer: Peer) -> None:
    for _ in range(MAX_PARCEL // PIECE + 2):
        await peer.call("parcel", [1, b"x" * PIECE])


@pytest.mark.parametrize(
    "attack",
    [
        flood,
        heap,
        lambda peer: peer.call("rest", 7),
        lambda peer: peer.call("rest", "x"),
        lambda peer: peer.call("parcel", [1]),
        lambda peer: peer.call("parcel", ["x", b""]),
        lambda peer: peer.call("parcel", [1, b"x" * (PIECE + 1)]),
        lambda peer: peer.call("echo", [1, b"\xc1"]),
        lambda peer: peer.call("echo", [1, b"\x91" * 5000]),
        lambda peer: peer.call("echo", {"a": 1}),
    ],
    ids=["flood", "heap", "no rest", "key", "short", "key type", "piece", "bytes", "deep", "form"],
)
def test_what_is_no_parcel_ends_the_link(
    attack: Callable[[Peer], Awaitable[Any]], monkeypatch: pytest.MonkeyPatch
) -> None:
    async def body(peer: Peer, _ours: Parcels, _theirs: Parcels) -> None:
        asyncio.get_running_loop().set_exception_handler(lambda *_: None)  # the defect is raised
        with pytest.raises(LinkOver):
            await attack(peer)

    linked(body)


def test_an_answer_that_is_no_parcel() -> None:
    async def body(_peer: Peer, ours: Parcels, theirs: Parcels) -> None:
        async def lie(_params: Any, _fds: list[int]) -> tuple[Any, list[int]]:
            return ["x"], []

        theirs._peer.on("lie", lie)
        with pytest.raises(ParcelBroken):
            await ours.call("lie", 1)

    linked(body)
