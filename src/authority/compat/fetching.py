"""Requests of a run that came through the channel: its worker carries them, and this is its link.

Rules
- An exchange is known to the worker by a number while it goes on. A call about another number is
  refused: the exchange may just have been given up.
- What the worker says is read strictly. One that breaks the rules is ended with all its connections;
  the outcome of the exchange says so.
- The worker's own words end in the log. What the program is told is made by `effects.http_exchange`.
"""

from __future__ import annotations

import asyncio
import os
import socket
from collections.abc import Callable
from typing import Annotated, Any

import msgspec

from authority.compat.base import Door, Failed
from authority.compat.proxy_calls import Headers, Number, Piece, read
from authority.effects.http import Lost
from authority.effects.http_exchange import HEAD_LIMIT, Breach, Declined, Ended, Exchange
from authority.kernel.addresses import shown
from authority.protocol.packets import CallError, Fds, LinkOver, Peer


class _About(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """What all calls have: the exchange that they are about."""

    conn: Number


class _Head(_About, frozen=True):
    """The head of the final answer."""

    status: Annotated[int, msgspec.Meta(ge=200, le=599)]
    headers: Headers


class _Body(_About, frozen=True):
    """A piece of its body."""

    data: Piece
    last: bool


class Fetches:
    """One run's: see `effects.http.Link`."""

    def __init__(self, door: Door) -> None:
        self._door = door
        self._peer: Peer | None = None
        self._last = 0
        self._open: dict[int, Exchange] = {}

    async def linked(self) -> Fetches:
        """With a worker that runs. Raises `Lost`."""
        try:
            peer = await self._door.worker()
        except Failed as failed:
            raise Lost(shown(failed.sentence, 256)) from None
        if peer is not self._peer:
            self._peer = peer
            peer.on("http.more", self._checked(peer, _About, self._more))
            peer.on("http.anchors", self._checked(peer, _About, self._anchors))
            peer.on("http.head", self._checked(peer, _Head, self._head))
            peer.on("http.piece", self._checked(peer, _Body, self._piece))
        return self

    async def converse(self, exchange: Exchange, sock: socket.socket) -> Ended:
        peer = self._peer
        assert peer is not None
        self._last += 1
        number = self._last
        self._open[number] = exchange
        params: dict[str, Any] = {
            "kind": "http",
            "conn": number,
            "host": exchange.host,
            "tls": exchange.tls,
            "method": exchange.method,
            "max_bytes": exchange.max_bytes,
            "head": HEAD_LIMIT,
            "total": exchange.room,
        }
        try:
            told, fds = await peer.call("serve", params, [sock.fileno()])
            _close(fds)
            ended: Ended = read(Ended, told)
            exchange.over(ended)
            return ended
        except (Breach, msgspec.ValidationError) as error:
            peer.close(f"the end of a request: {error}")
        except CallError as error:
            peer.close(f"a request that it refused: {error.code}")
        except LinkOver:
            pass
        finally:
            del self._open[number]
        raise Lost(shown(peer.reason, 256))

    def _checked(
        self,
        peer: Peer,
        kind: type[msgspec.Struct],
        handler: Callable[[Exchange, Any], tuple[Any, Fds]],
    ) -> Callable[[Any, list[int]], Any]:
        """A handler for one call of one worker: what is no such call ends the worker."""

        async def handle(params: Any, fds: list[int]) -> tuple[Any, Fds]:
            _close(fds)
            try:
                call = read(kind, params)
                exchange = self._open.get(call.conn)
                if exchange is None:
                    raise Declined
                return handler(exchange, call)
            except Declined:
                raise CallError("E_EFFECT_FAILED", "Nothing more is taken.") from None
            except (Breach, msgspec.ValidationError) as error:
                peer.close(f"{kind.__name__}: {error}")
                raise asyncio.CancelledError from None

        return handle

    def _more(self, exchange: Exchange, _call: _About) -> tuple[Any, Fds]:
        data, last = exchange.more()
        return {"data": data, "last": last}, ()

    def _anchors(self, exchange: Exchange, _call: _About) -> tuple[Any, Fds]:
        fd = os.memfd_create("anchors", os.MFD_CLOEXEC)
        with open(fd, "wb", closefd=False) as file:
            file.write(exchange.anchors)
        return len(exchange.anchors), (fd,)

    def _head(self, exchange: Exchange, call: _Head) -> tuple[Any, Fds]:
        exchange.head(call.status, call.headers)
        return None, ()

    def _piece(self, exchange: Exchange, call: _Body) -> tuple[Any, Fds]:
        exchange.piece(call.data, last=call.last)
        return None, ()


def _close(fds: list[int]) -> None:
    for fd in fds:
        os.close(fd)
