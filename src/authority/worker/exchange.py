"""HTTP/1.1 towards the program: every request judged, every piece of both bodies committed.

Rules
- One request is under way at a time; what a client sends ahead waits. The connection is kept when both
  sides may and nothing was left unread.
- A request body goes out piece by piece while its answer is awaited. An answer that comes earlier is
  passed on, and the connection ends after it.
- A kept server connection that turns out to have ended is replaced once, for a request without body
  that may be repeated.
- What fails before the answer began is told as an answer of our own; afterwards the connection is cut,
  so that nobody takes a part for the whole.
- Limits: a head in `HEAD_SECONDS`, the next request in `IDLE_SECONDS`, each piece of a body in
  `PIECE_SECONDS`.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
from collections.abc import Coroutine
from typing import Any

from authority.worker import asking, bodies, heads, relay
from authority.worker.asking import Asking, Origin
from authority.worker.asks import FAILED, Gate, Granted, Refusal
from authority.worker.heads import Bad, Fields, Request, Response
from authority.worker.lines import Line
from authority.worker.upstream import Ended, Unreachable, Upstream, connect, request_head

HEAD_SECONDS = 30
IDLE_SECONDS = 300
PIECE_SECONDS = 120
LINGER_SECONDS = 2
LINGER_BYTES = 1024 * 1024
REPEATABLE = frozenset({"GET", "HEAD", "OPTIONS", "PUT", "DELETE"})
_SENTENCES = {400: "Bad Request", 403: "Forbidden", 408: "Request Timeout", 502: "Bad Gateway"}


async def next_head(client: Line, *, first: bool) -> Request | None:
    """The next request head; None when the client has ended, or has sent nothing for too long: an
    idle connection is no offence. Raises `Bad`, `TimeoutError` for a head that does not go on."""
    head = heads.Head()
    try:
        async with asyncio.timeout(HEAD_SECONDS if first else IDLE_SECONDS):
            data = await client.read()
    except TimeoutError:
        return None
    if not data:
        return None
    async with asyncio.timeout(HEAD_SECONDS):
        while (found := head.feed(data)) is None:
            data = await client.read()
            if not data:
                raise Bad("The head breaks off.")
    client.unread(found[1])
    return heads.request(found[0])


async def tell(client: Line, status: int, no: Refusal, *, head: bool = False, close: bool) -> None:
    """An answer of our own: what was refused, as JSON."""
    body = json.dumps(no.rendering()).encode("ascii") + b"\n"
    fields = [("Content-Type", "application/json"), ("Content-Length", str(len(body)))]
    if close:
        fields.append(("Connection", "close"))
    answer = heads.render(f"HTTP/1.1 {status} {_SENTENCES[status]}", fields)
    await client.write(answer if head else answer + body)


async def linger(client: Line) -> None:
    """Let the client take our last words before the connection goes, though it is still sending."""
    await client.finish()
    left = LINGER_BYTES
    with contextlib.suppress(OSError):
        async with asyncio.timeout(LINGER_SECONDS):
            while left > 0 and (data := await client.read()):
                left -= len(data)


def status_of(no: Refusal) -> int:
    """The status under which a refusal is told."""
    return 502 if no.code == FAILED else 403


class Session:
    """A client connection whose requests are judged one by one. `place`: see `asking.Origin`."""

    def __init__(self, gate: Gate, client: Line, place: Origin) -> None:
        self._gate = gate
        self._client = client
        self._place = place
        self._server: Upstream | None = None
        self._finishing: set[asyncio.Task[None]] = set()

    async def serve(self, request: Request | None = None) -> None:
        """Serve until either side ends; `request` is a first one that was read already."""
        try:
            first = True
            while True:
                if request is None:
                    request = await self._next(first)
                if request is None or not await self.exchange(request):
                    return
                request, first = None, False
        finally:
            await self.over()

    async def over(self) -> None:
        """Let go of the server, and wait for what is still to be told to the gate."""
        self._drop()
        for task in list(self._finishing):
            await task

    def _drop(self) -> None:
        if self._server is not None:
            self._server.line.close()
            self._server = None

    async def _next(self, first: bool) -> Request | None:
        try:
            return await next_head(self._client, first=first)
        except Bad as bad:
            await self._refuse(400, bad.sentence)
        except TimeoutError:
            await self._refuse(408, "The head of the request took too long.")
        return None

    async def _refuse(self, status: int, reason: str) -> None:
        no = await self._gate.deny("http.request", self._place.url + "/", reason)
        await tell(self._client, status, no, close=True)
        await linger(self._client)

    async def exchange(self, request: Request, place: Origin | None = None) -> bool:
        """Carry one request; whether the connection goes on."""
        self._place = place or self._place
        try:
            ask = asking.asking(request, self._place)
        except Bad as bad:
            await self._refuse(400, bad.sentence)
            return False
        try:
            granted = await self._gate.open(
                ask.method,
                ask.url,
                ask.fields,
                upgrade=ask.upgrade,
                held=self._server.key if self._server else "",
            )
        except Refusal as no:
            keep = ask.keeps and ask.length in (None, 0)
            await tell(self._client, status_of(no), no, head=ask.method == "HEAD", close=not keep)
            if not keep:
                await linger(self._client)
            return keep
        return await _Exchange(self, ask, granted).run()

    # --- what one exchange needs of its connection ---

    @property
    def client(self) -> Line:
        return self._client

    @property
    def gate(self) -> Gate:
        return self._gate

    async def server(self, granted: Granted) -> Upstream:
        """The connection for a request: the kept one, or a new one. Raises `Unreachable`."""
        if granted.fd < 0 and self._server is not None:
            return self._server
        self._drop()
        self._server = await connect(self._gate, granted)
        return self._server

    def release(self, *, reusable: bool) -> None:
        """The exchange is over: keep its connection or not."""
        if not reusable:
            self._drop()

    def yield_server(self) -> None:
        """Somebody else owns the server's connection from now on."""
        self._server = None

    def later(self, work: Coroutine[Any, Any, None]) -> None:
        """Do something that the program needs not wait for, before the connection is forgotten."""
        task = asyncio.get_running_loop().create_task(work)
        self._finishing.add(task)
        task.add_done_callback(self._finishing.discard)


class _Exchange:
    """One admitted request and its answer."""

    def __init__(self, session: Session, ask: Asking, granted: Granted) -> None:
        self._session = session
        self._client, self._gate = session.client, session.gate
        self._ask, self._granted = ask, granted
        self._begun = False
        self._out = 0
        self._in = 0
        self._status = 0

    async def run(self) -> bool:
        upload: asyncio.Task[None] | None = None
        try:
            server = await self._session.server(self._granted)
            await self._send_head(server)
            if self._has_body:
                upload = asyncio.get_running_loop().create_task(self._upload(server))
            server, answer = await self._answer(server, upload)
            if answer.status == 101:
                return await self._upgraded(server, answer)
            keep = await self._deliver(server, answer, upload)
        except Refusal as no:
            return await self._broke("refused", no, upload)
        except Unreachable as error:
            return await self._broke("failed", relay.failed(error.sentence), upload)
        except Ended:
            sentence = "The server closed the connection without an answer."
            return await self._broke("failed", relay.failed(sentence), upload)
        except Bad as bad:
            return await self._broke("failed", relay.failed(bad.sentence), upload)
        except TimeoutError:
            return await self._broke("failed", relay.failed("It took too long."), upload)
        except OSError:
            return await self._broke("failed", relay.failed("The connection broke."), upload)
        except BaseException:
            await _cancel(upload)
            raise
        await _cancel(upload)
        self._session.later(self._finish("done"))
        return keep

    @property
    def _has_body(self) -> bool:
        return self._ask.length not in (None, 0)

    async def _finish(self, status: str, sentence: str = "") -> None:
        await self._gate.finish(
            self._granted.flow,
            status,
            sentence,
            status_code=self._status,
            bytes_in=self._in,
            bytes_out=self._out,
        )

    async def _broke(self, status: str, no: Refusal, upload: asyncio.Task[None] | None) -> bool:
        await _cancel(upload)
        self._session.release(reusable=False)
        await self._finish(status, no.sentence)
        if self._begun:
            return False
        with contextlib.suppress(OSError):
            code = 400 if isinstance(no, _Malformed) else status_of(no)
            await tell(self._client, code, no, head=self._ask.method == "HEAD", close=True)
            await linger(self._client)
        return False

    # --- the request ---

    async def _send_head(self, server: Upstream) -> None:
        ask = self._ask
        framing: Fields = []
        if ask.upgrade:
            framing = [("Connection", "Upgrade"), ("Upgrade", "websocket")]
        elif ask.length == -1:
            framing = [("Transfer-Encoding", "chunked")]
        elif ask.length is not None or ask.method in ("POST", "PUT", "PATCH"):
            framing = [("Content-Length", str(ask.length or 0))]
        await server.send(request_head(self._granted, ask.method, framing))

    async def _upload(self, server: Upstream) -> None:
        """Send the body. Raises `Refusal` when it may not go on, `OSError` when the client is gone."""
        body = bodies.of_request(self._ask.length)
        chunked = self._ask.length == -1
        if self._ask.expects:
            await self._client.write(b"HTTP/1.1 100 Continue\r\n\r\n")
        while not body.done:
            async with asyncio.timeout(PIECE_SECONDS):
                data = await self._client.read()
            if not data:
                raise ConnectionResetError("the client ended within its request")
            try:
                piece = body.feed(data)
            except Bad as bad:
                no = await self._gate.deny("http.request", self._ask.url, bad.sentence)
                raise _Malformed(no) from None
            if piece:
                await self._gate.commit(self._granted.flow, "out", piece)
                self._out += len(piece)
            framed = _framed(piece, chunked=chunked, last=body.done)
            try:
                await server.send(framed)
            except OSError:
                return  # a server that has answered may take no more; its answer says what counts
        self._client.unread(body.rest)

    # --- the answer ---

    async def _answer(
        self, server: Upstream, upload: asyncio.Task[None] | None
    ) -> tuple[Upstream, Response]:
        try:
            return server, await self._head_of(server, upload)
        except (Ended, ConnectionError):
            again = self._granted.fd < 0 and upload is None
            if not again or self._ask.method not in REPEATABLE or self._ask.upgrade:
                raise
        self._granted.fd = await self._gate.again(self._granted.flow)
        server = await self._session.server(self._granted)
        await self._send_head(server)
        return server, await self._head_of(server, None)

    async def _head_of(self, server: Upstream, upload: asyncio.Task[None] | None) -> Response:
        waiting = server.head(self._ask.method, upgrade=self._ask.upgrade)
        if upload is None:
            return await waiting
        reading = asyncio.get_running_loop().create_task(waiting)
        try:
            await asyncio.wait({reading, upload}, return_when=asyncio.FIRST_COMPLETED)
            if upload.done():
                upload.result()
            return await reading
        finally:
            await _cancel(reading)

    async def _deliver(
        self, server: Upstream, answer: Response, upload: asyncio.Task[None] | None
    ) -> bool:
        self._status = answer.status
        content, last = server.begun()
        own = heads.end_to_end(answer.fields)
        shown = Response(answer.status, answer.reason, answer.minor, own)
        raw = len(content)
        fields, content = await self._gate.head(self._granted.flow, shown, content, last=last)
        keep = self._ask.keeps and (upload is None or upload.done())
        framing, chunked = self._framing(answer, content, last)
        keep = keep and (bool(framing) or not _bodied(answer.status, self._ask.method))
        if not keep:
            framing.append(("Connection", "close"))
        head = heads.render(f"HTTP/1.1 {answer.status} {answer.reason}", [*fields, *framing])
        self._begun = True
        self._in += raw
        await self._client.write(head + _framed(content, chunked=chunked, last=last))
        while not last:
            content, last = await server.piece()
            self._in += len(content)
            if content or last:
                content = await self._gate.commit(self._granted.flow, "in", content, last=last)
            if framed := _framed(content, chunked=chunked, last=last):
                await self._client.write(framed)
        unread = upload is not None and not upload.done()
        self._session.release(reusable=server.reusable and not unread)
        if not keep:
            await linger(self._client)
        return keep and not unread

    def _framing(self, answer: Response, content: bytes, last: bool) -> tuple[Fields, bool]:
        """The fields that frame the answer, and whether it goes in chunks."""
        length = heads.length(answer)
        if not _bodied(answer.status, self._ask.method):
            known = length is not None and length >= 0 and answer.status != 204
            return ([("Content-Length", str(length))] if known else []), False
        if last:
            return [("Content-Length", str(len(content)))], False
        if length is not None and length >= 0 and not self._granted.masked:
            return [("Content-Length", str(length))], False
        if self._ask.minor:
            return [("Transfer-Encoding", "chunked")], True
        return [], False

    async def _upgraded(self, server: Upstream, answer: Response) -> bool:
        self._status = 101
        own = heads.end_to_end(answer.fields)
        shown = Response(101, answer.reason, answer.minor, own)
        fields, _ = await self._gate.head(self._granted.flow, shown, b"", last=False)
        fields += [("Connection", "Upgrade"), ("Upgrade", "websocket")]
        self._begun = True
        await self._client.write(heads.render("HTTP/1.1 101 Switching Protocols", fields))
        server.line.unread(server.leftover())
        self._session.yield_server()
        await relay.relay(self._gate, self._granted.flow, self._client, server.line, look=None)
        return False


class _Malformed(Refusal):
    """A body that is refused for its framing: the entry is written, the program is told 400."""

    def __init__(self, no: Refusal) -> None:
        more = {"layer": no.layer, "number": no.number, "rule": no.rule}
        super().__init__(no.code, no.sentence, more)


def _bodied(status: int, method: str) -> bool:
    return method != "HEAD" and status not in (204, 304)


def _framed(content: bytes, *, chunked: bool, last: bool) -> bytes:
    if not chunked:
        return content
    piece = b"%x\r\n%s\r\n" % (len(content), content) if content else b""
    return piece + b"0\r\n\r\n" if last else piece


async def _cancel(task: asyncio.Task[Any] | None) -> None:
    """End a task and forget what came of it."""
    if task is None:
        return
    task.cancel()
    await asyncio.wait({task})
    if not task.cancelled():
        task.exception()
