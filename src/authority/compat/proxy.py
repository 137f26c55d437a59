"""The gate's side of a run's proxy: connections go to the worker, and what it asks to a desk.

Rules
- Bytes of programs and servers pass through without being read. The worker reads them, and for every
  act asks: where a connection leads (`target`), whether a request may go out (`open`), to commit a
  piece before it goes on (`chunk`, `head`), to record what it had to refuse (`deny`). See `proxy_desk`.
- A worker that breaks the rules of its calls is ended with all its connections; the next connection
  starts another.
- At most `MAX_CONNECTIONS` at a time. Beyond, connections are closed; a denial says so, at most one in
  `TELL_SECONDS`.
"""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import os
import socket
import time
from collections.abc import Awaitable, Callable
from typing import Any

import msgspec

from authority.compat import proxy_calls as calls
from authority.compat.base import Door, Failed, Refused, Stream
from authority.compat.names import Names
from authority.compat.proxy_desk import Answer, Desk
from authority.compat.proxy_flows import Breach, Connection, Overgrown
from authority.effects.descriptors import pair
from authority.kernel.codes import Code, Layer
from authority.protocol import Service as Kind
from authority.protocol.packets import CallError, LinkOver, Peer

MAX_CONNECTIONS = 256
TELL_SECONDS = 1.0
DELIVER_SECONDS = 60
LEAVE_SECONDS = 2
_COPY = 64 * 1024


class Proxy:
    """One run's."""

    def __init__(self, door: Door, desk: Desk, names: Names | None = None) -> None:
        self._door = door
        self._desk = desk
        self._names = names
        self._peer: Peer | None = None
        self._numbers = itertools.count(1)
        self._connections: dict[int, Connection] = {}
        self._told = 0.0
        self._watching: set[asyncio.Task[None]] = set()

    # --- connections ---

    async def serve(self, stream: Stream) -> None:
        """Serve one connection of a program to its end."""
        place = None
        if stream.service == Kind.DIRECT:
            found = self._names.place(stream.detail) if self._names else None
            if found is None:
                await self._door.deny("net.connect", "direct", "nothing has this address")
                return
            place = (found.host, found.port)
        if len(self._connections) >= MAX_CONNECTIONS:
            await self._too_many()
            return
        number = next(self._numbers)
        ours, theirs = pair()
        ours.setblocking(False)
        try:
            peer = await self._worker()
            connection = self._connections[number] = Connection(number, peer, ours, place)
            params: dict[str, Any] = {"conn": number, "kind": "direct" if place else "proxy"}
            if place:
                params |= {"host": place[0], "port": place[1]}
            serving = asyncio.ensure_future(peer.call("serve", params, [theirs.fileno()]))
            await asyncio.sleep(0)  # the call is on its way, with a copy of the descriptor
        except Failed as failed:
            ours.close()
            self._door.trouble(failed.sentence)
            return
        finally:
            theirs.close()
        try:
            await self._carry(stream, ours, connection, serving)
        finally:
            await connection.over()
            self._connections.pop(number, None)

    async def _carry(
        self,
        stream: Stream,
        ours: socket.socket,
        connection: Connection,
        serving: asyncio.Future[Any],
    ) -> None:
        """Copy both ways until the worker is done with the connection."""
        loop = asyncio.get_running_loop()

        async def outward() -> None:
            with contextlib.suppress(OSError):
                while data := await stream.read():
                    await loop.sock_sendall(ours, data)
                ours.shutdown(socket.SHUT_WR)

        async def inward() -> None:
            try:
                while data := await loop.sock_recv(ours, _COPY):
                    await stream.write(data)
                stream.write_eof()
            except OSError:
                connection.cut()

        copying = [loop.create_task(outward()), loop.create_task(inward())]
        try:
            with contextlib.suppress(CallError, LinkOver):
                await serving
            await asyncio.wait(copying[1:], timeout=DELIVER_SECONDS)
            await asyncio.wait(copying[:1], timeout=LEAVE_SECONDS)
        finally:
            for task in (*copying, serving):
                task.cancel()
            await asyncio.wait(copying)

    async def _too_many(self) -> None:
        now = time.monotonic()
        if now - self._told >= TELL_SECONDS:
            self._told = now
            await self._door.deny(
                "net.connect",
                "proxy",
                f"more than {MAX_CONNECTIONS} connections at a time",
                code=Code.RATE_LIMIT,
                layer=Layer.POLICY,
            )

    # --- the worker ---

    async def _worker(self) -> Peer:
        peer = await self._door.worker()
        if peer is not self._peer:
            self._peer, desk = peer, self._desk
            for name, kind, handler in (
                ("target", calls.Target, desk.target),
                ("open", calls.Open, desk.open),
                ("again", calls.Again, desk.again),
                ("head", calls.Head, desk.head),
                ("chunk", calls.Chunk, desk.chunk),
                ("finish", calls.Finish, desk.finish),
                ("deny", calls.Deny, desk.deny),
                ("leaf", calls.Leaf, desk.leaf),
                ("anchors", calls.Anchors, desk.anchors),
                ("untrusted", calls.Untrusted, desk.untrusted),
            ):
                peer.on(f"net.{name}", self._checked(peer, kind, handler))
            watch = asyncio.get_running_loop().create_task(self._watch(peer))
            self._watching.add(watch)
            watch.add_done_callback(self._watching.discard)
        return peer

    async def _watch(self, peer: Peer) -> None:
        """A worker that ends takes its connections along."""
        await peer.closed.wait()
        for connection in self._connections.values():
            if connection.peer is peer:
                connection.cut()

    def _checked(
        self,
        peer: Peer,
        kind: type[msgspec.Struct],
        handler: Callable[[Connection, Any], Awaitable[Answer]],
    ) -> Callable[[Any, list[int]], Awaitable[Answer]]:
        """A handler for one call of one worker: what is no such call ends the worker."""

        async def handle(params: Any, fds: list[int]) -> Answer:
            for fd in fds:
                os.close(fd)
            try:
                call = calls.read(kind, params)
                connection = self._connections.get(call.conn)
                if connection is None or connection.peer is not peer or fds:
                    raise Breach("a connection that is not there")
                return await handler(connection, call)
            except Refused as no:
                more = {"layer": no.layer, "number": no.number, "rule": no.rule}
                raise CallError(no.code, no.sentence, more) from None
            except Overgrown:
                sentence = "The answer is made of credentials."
                raise CallError(Code.EFFECT_FAILED, sentence) from None
            except (Breach, msgspec.ValidationError) as error:
                peer.close(f"{kind.__name__}: {error}")
                raise asyncio.CancelledError from None

        return handle
