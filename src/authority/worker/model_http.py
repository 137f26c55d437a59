"""HTTP/1.1 for the model endpoint: requests of a program in, requests to an upstream out.

Rules
- One request at a time on a connection; a body is read whole, within `MAX_BODY`, and all bodies in
  hand together within `MAX_HELD`, so nobody fills this process.
- A sender who is slower than `SLOW` seconds for a piece, or a head beyond `MAX_HEAD`, loses the
  connection. Framing is h11's, which refuses what two readers could read differently.
- Upstream, redirects are not followed, compression is not asked for and refused when it comes.
"""

from __future__ import annotations

import asyncio
import re
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from dataclasses import dataclass

import h11

MAX_HEAD = 64 * 1024
MAX_BODY = 32 * 1024 * 1024
MAX_HELD = 96 * 1024 * 1024
SLOW = 120.0
PIECE = 64 * 1024
_VALUE = re.compile(rb"[\x21-\x7e](?:[\x20-\x7e]{0,1022}[\x21-\x7e])?\Z")

Headers = Sequence[tuple[str, str]]


class TooLarge(Exception):
    """A body beyond what is taken."""


class Broken(Exception):
    """The other side broke off, was too slow, or does not speak HTTP as it should."""


@dataclass(frozen=True, slots=True)
class Request:
    """One request; header names are lower case, what is given twice is joined by a comma."""

    method: str
    target: str
    headers: dict[str, str]
    body: bytes


@dataclass(frozen=True, slots=True)
class Answer:
    """A status, headers, and pieces of the body as they come."""

    status: int
    headers: list[tuple[str, str]]
    pieces: AsyncIterator[bytes]


class Held:
    """Bytes of bodies in hand, of all connections together."""

    def __init__(self) -> None:
        self.now = 0

    def take(self, count: int) -> None:
        """Raises `TooLarge`."""
        if self.now + count > MAX_HELD:
            raise TooLarge
        self.now += count

    def give(self, count: int) -> None:
        self.now -= count


class Reply:
    """Writes one answer. Nothing is sent before `begin`."""

    def __init__(self, connection: h11.Connection, writer: asyncio.StreamWriter) -> None:
        self._connection = connection
        self._writer = writer
        self.begun = False

    async def begin(self, status: int, headers: Headers, *, length: int | None = None) -> None:
        framing = ("content-length", str(length)) if length is not None else None
        given = [*headers, framing or ("transfer-encoding", "chunked")]
        self.begun = True
        await self._send(h11.Response(status_code=status, headers=given))

    async def piece(self, data: bytes) -> None:
        if data:
            await self._send(h11.Data(data=data))

    async def end(self) -> None:
        await self._send(h11.EndOfMessage())

    async def whole(self, status: int, headers: Headers, body: bytes) -> None:
        await self.begin(status, headers, length=len(body))
        await self.piece(body)
        await self.end()

    async def _send(self, event: h11.Event) -> None:
        data = self._connection.send(event)
        if data:
            self._writer.write(data)
            async with asyncio.timeout(SLOW):
                await self._writer.drain()


Handler = Callable[[Request, Reply], Awaitable[None]]


async def serve(
    reader: asyncio.StreamReader, writer: asyncio.StreamWriter, handle: Handler, held: Held
) -> None:
    """Serve a program's connection until it ends."""
    connection = h11.Connection(h11.SERVER, max_incomplete_event_size=MAX_HEAD)
    try:
        while True:
            taken = [0]
            try:
                request = await _request(connection, reader, writer, held, taken)
                if request is None:
                    return
                reply = Reply(connection, writer)
                await handle(request, reply)
            finally:
                held.give(taken[0])
            if connection.our_state is not h11.DONE or connection.their_state is not h11.DONE:
                return
            connection.start_next_cycle()
    except TooLarge:
        await _refuse(connection, writer, 413)
    except h11.RemoteProtocolError as error:
        await _refuse(connection, writer, error.error_status_hint)
    except (ConnectionError, TimeoutError, Broken, h11.LocalProtocolError):
        return  # the program went away or stopped reading: there is nobody to tell
    finally:
        writer.close()


async def _request(
    connection: h11.Connection,
    reader: asyncio.StreamReader,
    writer: asyncio.StreamWriter,
    held: Held,
    taken: list[int],
) -> Request | None:
    head: h11.Request | None = None
    parts: list[bytes] = []
    while True:
        event = connection.next_event()
        if event is h11.NEED_DATA:
            if connection.they_are_waiting_for_100_continue:
                go_on = connection.send(h11.InformationalResponse(status_code=100, headers=[]))
                writer.write(go_on or b"")
            begun = head is not None or connection.trailing_data[0]
            async with asyncio.timeout(SLOW if begun else None):
                connection.receive_data(await reader.read(PIECE))
        elif isinstance(event, h11.Request):
            head = event
            length = dict(event.headers).get(b"content-length", b"0")
            if int(length) > MAX_BODY:
                raise TooLarge
        elif isinstance(event, h11.Data):
            held.take(len(event.data))
            taken[0] += len(event.data)
            if taken[0] > MAX_BODY:
                raise TooLarge
            parts.append(bytes(event.data))
        elif isinstance(event, h11.EndOfMessage) and head is not None:
            return _as_request(head, b"".join(parts))
        else:  # the connection is closed
            return None


def _as_request(head: h11.Request, body: bytes) -> Request:
    headers: dict[str, str] = {}
    for name, value in head.headers:
        key = name.decode("latin-1").lower()
        if key in headers:
            headers[key] += "," + value.decode("latin-1")
        else:
            headers[key] = value.decode("latin-1")
    return Request(head.method.decode("latin-1"), head.target.decode("latin-1"), headers, body)


async def _refuse(connection: h11.Connection, writer: asyncio.StreamWriter, status: int) -> None:
    if connection.our_state not in (h11.IDLE, h11.SEND_RESPONSE):
        return
    reply = Reply(connection, writer)
    try:
        await reply.whole(status, [("connection", "close")], b"")
    except (ConnectionError, TimeoutError):
        return


async def ask(
    reader: asyncio.StreamReader,
    writer: asyncio.StreamWriter,
    host: str,
    target: str,
    headers: Headers,
    body: bytes,
    idle: float,
) -> Answer:
    """Send a POST and read the head of its answer. Raises `Broken`."""
    connection = h11.Connection(h11.CLIENT, max_incomplete_event_size=MAX_HEAD)
    given = [("host", host), ("connection", "close"), ("content-length", str(len(body))), *headers]
    try:
        request = h11.Request(method="POST", target=target, headers=given)
        writer.write(connection.send(request) or b"")
        writer.write(connection.send(h11.Data(data=body)) or b"")
        connection.send(h11.EndOfMessage())
        async with asyncio.timeout(idle):
            await writer.drain()
        while True:
            event = await _next(connection, reader, idle)
            if isinstance(event, h11.Response):
                break
            if not isinstance(event, h11.InformationalResponse):
                raise Broken
    except (h11.ProtocolError, OSError, TimeoutError) as error:
        raise Broken from error
    kept = []
    for name, value in event.headers:
        if name == b"content-encoding" and value.strip().lower() != b"identity":
            raise Broken
        if _VALUE.match(value):
            kept.append((name.decode("latin-1").lower(), value.decode("ascii")))
    return Answer(event.status_code, kept, _pieces(connection, reader, idle))


async def _pieces(
    connection: h11.Connection, reader: asyncio.StreamReader, idle: float
) -> AsyncIterator[bytes]:
    try:
        while True:
            event = await _next(connection, reader, idle)
            if isinstance(event, h11.Data):
                yield bytes(event.data)
            elif isinstance(event, h11.EndOfMessage):
                return
            else:
                raise Broken
    except (h11.ProtocolError, OSError, TimeoutError) as error:
        raise Broken from error


async def _next(connection: h11.Connection, reader: asyncio.StreamReader, idle: float) -> object:
    while True:
        event = connection.next_event()
        if event is not h11.NEED_DATA:
            return event
        async with asyncio.timeout(idle):
            connection.receive_data(await reader.read(PIECE))
