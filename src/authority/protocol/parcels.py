"""Values that are longer than a packet, over the same link: cut up, sent in order, put together.

A call `method` with params `[key, data]` is a parcel's last piece; those before it came as calls
`parcel` with `[key, data]`. The answer is `[key, more, data]`; while `more`, the rest is asked for with
`rest` and the key. The pieces together are one MessagePack value.

Rules
- A piece holds at most `PIECE` bytes, a parcel `MAX_PARCEL`; at most `MAX_OPEN` parcels wait to be
  complete (and `MAX_WAITING` bytes of them), and as many answers to be fetched. More than that, or what
  is no such piece, ends the link.
- A handler gets and gives plain values; whoever registers it checks what it got.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import Any

import msgspec

from authority.protocol.packets import Fds, Peer

PIECE = 96 * 1024
MAX_PARCEL = 8 * 1024 * 1024
MAX_OPEN = 64
MAX_WAITING = 64 * 1024 * 1024

_encode = msgspec.msgpack.Encoder().encode
_decode = msgspec.msgpack.Decoder().decode

ParcelHandler = Callable[[Any], Awaitable[Any]]


class ParcelBroken(Exception):
    """The other side sent what is no parcel; raised in a handler, it ends the link."""


class Parcels:
    """Long calls over one end of a link. At most one for each end."""

    def __init__(self, peer: Peer) -> None:
        self._peer = peer
        self._key = 0
        self._coming: dict[int, bytearray] = {}
        self._leaving: dict[int, bytes] = {}
        peer.on("parcel", self._piece)
        peer.on("rest", self._rest)

    async def call(self, method: str, value: Any) -> Any:
        """The other side's answer. Raises `CallError`, `LinkOver`, `ParcelBroken`, `ValueError`."""
        data = _encode(value)
        if len(data) > MAX_PARCEL:
            raise ValueError(f"a parcel of {len(data)} bytes")
        self._key += 1
        key = self._key
        while len(data) > PIECE:
            await self._peer.call("parcel", [key, data[:PIECE]])
            data = data[PIECE:]
        answer, _ = await self._peer.call(method, [key, data])
        whole = bytearray()
        while True:
            their, more, piece = _answer(answer)
            whole += piece
            if len(whole) > MAX_PARCEL:
                raise ParcelBroken("an answer that is too large")
            if not more:
                return _value(bytes(whole))
            answer, _ = await self._peer.call("rest", their)

    def on(self, method: str, handler: ParcelHandler) -> None:
        """Answer long calls of `method`."""

        async def handle(params: Any, _fds: list[int]) -> tuple[Any, Fds]:
            key, piece = _pair(params)
            data = bytes(self._coming.pop(key, b"") + piece)
            if len(data) > MAX_PARCEL:
                raise ParcelBroken("a parcel that is too large")
            answer = _encode(await handler(_value(data)))
            if len(answer) > MAX_PARCEL:
                raise ValueError(f"an answer of {len(answer)} bytes")
            return self._leave(key, answer), ()

        self._peer.on(method, handle)

    def _leave(self, key: int, data: bytes) -> list[Any]:
        if len(data) > PIECE:
            self._leaving[key] = data[PIECE:]
            while (
                len(self._leaving) > MAX_OPEN or sum(map(len, self._leaving.values())) > MAX_WAITING
            ):
                self._leaving.pop(next(iter(self._leaving)))  # whoever asked has gone
        return [key, len(data) > PIECE, data[:PIECE]]

    async def _piece(self, params: Any, _fds: list[int]) -> tuple[Any, Fds]:
        key, piece = _pair(params)
        held = self._coming.setdefault(key, bytearray())
        held += piece
        waiting = sum(map(len, self._coming.values()))
        if len(self._coming) > MAX_OPEN or len(held) > MAX_PARCEL or waiting > MAX_WAITING:
            raise ParcelBroken("more than may wait")
        return None, ()

    async def _rest(self, params: Any, _fds: list[int]) -> tuple[Any, Fds]:
        if not isinstance(params, int) or params not in self._leaving:
            raise ParcelBroken("nothing waits under this key")
        return self._leave(params, self._leaving.pop(params)), ()


def _pair(params: Any) -> tuple[int, bytes]:
    match params:
        case [int(key), bytes(piece)] if len(piece) <= PIECE:
            return key, piece
    raise ParcelBroken("not a piece")


def _answer(params: Any) -> tuple[int, bool, bytes]:
    match params:
        case [int(key), bool(more), bytes(piece)] if len(piece) <= PIECE:
            return key, more, piece
    raise ParcelBroken("not an answer")


def _value(data: bytes) -> Any:
    try:
        return _decode(data)
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError) as error:
        raise ParcelBroken("not a value") from error
