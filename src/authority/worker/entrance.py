"""A connection of the program, from its first byte: what does it want, and where does it lead?

Rules
- On the proxy's port the first byte says it: 5 is SOCKS5, anything else must be HTTP (CONNECT, or
  a request with an absolute URL). On a direct connection the gate knows host and port already.
- Where the gate says that requests to the place are judged, TLS ends here and HTTP is read; otherwise
  the bytes are carried as they are. A request with an absolute URL for a place that is only a tunnel
  goes into the tunnel, made relative, and with all that follows it.
- A name that TLS, SOCKS or CONNECT gives is the host that everything after it must be for.
- A connection that fails takes nothing with it: its descriptors are closed, others go on.
"""

from __future__ import annotations

import asyncio
import contextlib
import socket
import ssl
from typing import Any

from authority.protocol.packets import LinkOver, Peer
from authority.worker import asking, heads, hello, relay, socks, trust
from authority.worker.asking import Origin
from authority.worker.asks import FAILED, Gate, Refusal, Target
from authority.worker.exchange import HEAD_SECONDS, Session, linger, next_head, status_of, tell
from authority.worker.heads import Bad, Request
from authority.worker.lines import Line, SocketLine, TlsLine


async def serve(peer: Peer, params: dict[str, Any], sock: socket.socket) -> None:
    """Serve one connection to its end."""
    client: Line = SocketLine(sock)
    connection = _Connection(Gate(peer, params["conn"]), client)
    with contextlib.suppress(OSError, LinkOver):
        try:
            if params["kind"] == "direct":
                await connection.direct(params["host"], params["port"])
            else:
                await connection.proxy()
        finally:
            client.close()


class _Connection:
    def __init__(self, gate: Gate, client: Line) -> None:
        self._gate = gate
        self._client = client

    async def direct(self, host: str, port: int) -> None:
        with contextlib.suppress(Refusal):  # it is in the log, and this client speaks no tongue yet
            await self._lead(await self._gate.target(host, port, "direct"))

    async def proxy(self) -> None:
        async with asyncio.timeout(HEAD_SECONDS):
            data = await self._client.read()
        if not data:
            return
        self._client.unread(data)
        if data[0] == socks.VERSION:
            await self._socks()
        else:
            await self._http()

    # --- SOCKS ---

    async def _socks(self) -> None:
        try:
            async with asyncio.timeout(HEAD_SECONDS):
                wanted = await self._negotiate()
        except Bad as bad:
            await self._gate.deny("net.connect", "socks", bad.sentence)
            return
        except TimeoutError:
            await self._gate.deny("net.connect", "socks", "The SOCKS request took too long.")
            return
        if wanted is None:
            return
        if wanted.problem:
            await self._gate.deny("net.connect", "socks", "Only CONNECT is spoken here.")
            await self._client.write(socks.reply(wanted.problem))
            return
        try:
            target = await self._gate.target(wanted.host, wanted.port, "socks")
        except Refusal as no:
            code = socks.UNREACHABLE if no.code == FAILED else socks.NOT_ALLOWED
            await self._client.write(socks.reply(code))
            return
        await self._client.write(socks.reply(socks.GRANTED))
        await self._lead(target)

    async def _negotiate(self) -> socks.Wanted | None:
        data = b""
        while (answer := socks.greeting(data)) is None:
            more = await self._client.read()
            if not more:
                return None
            data += more
        await self._client.write(answer)
        if answer == socks.NO_METHOD:
            raise Bad("The client wants to log in.")
        data = b""
        while (wanted := socks.request(data)) is None:
            more = await self._client.read()
            if not more:
                return None
            data += more
        return wanted

    # --- HTTP on the proxy's port ---

    async def _http(self) -> None:
        session: Session | None = None
        try:
            while True:
                request = await self._request(first=session is None)
                if request is None:
                    return
                if request.method == "CONNECT":
                    await self._connect(request)
                    return
                try:
                    place = asking.origin(request)
                except Bad as bad:
                    await self._refuse(400, "http.request", bad.sentence)
                    return
                target = await self._target(place.host, place.port, "http", request)
                if target is None:
                    return
                if not target.judged:
                    await self._into_tunnel(request, place, target)
                    return
                session = session or Session(self._gate, self._client, place)
                if not await session.exchange(request, place):
                    return
        finally:
            if session is not None:
                await session.over()

    async def _request(self, *, first: bool) -> Request | None:
        try:
            return await next_head(self._client, first=first)
        except Bad as bad:
            await self._refuse(400, "http.request", bad.sentence)
        except TimeoutError:
            await self._refuse(408, "http.request", "The head of the request took too long.")
        return None

    async def _refuse(self, status: int, effect: str, reason: str) -> None:
        no = await self._gate.deny(effect, "proxy", reason)
        await tell(self._client, status, no, close=True)
        await linger(self._client)

    async def _target(self, host: str, port: int, via: str, request: Request) -> Target | None:
        try:
            return await self._gate.target(host, port, via)
        except Refusal as no:
            await tell(self._client, status_of(no), no, head=request.method == "HEAD", close=True)
            await linger(self._client)
        return None

    async def _connect(self, request: Request) -> None:
        try:
            host, port = asking.connect(request)
        except Bad as bad:
            await self._refuse(400, "net.connect", bad.sentence)
            return
        target = await self._target(host, port, "connect", request)
        if target is not None:
            await self._client.write(b"HTTP/1.1 200 Connection established\r\n\r\n")
            await self._lead(target)

    async def _into_tunnel(self, request: Request, place: Origin, target: Target) -> None:
        server = SocketLine.adopt(target.fd)
        try:
            ask = asking.asking(request, place)
        except Bad as bad:
            server.close()
            await self._gate.finish(target.flow, "denied", bad.sentence)
            await self._refuse(400, "http.request", bad.sentence)
            return
        path = ask.url[len(place.url) :] if ask.url.startswith(place.url) else "/"
        host = heads.values(request.fields, "host") or [f"{place.host}:{place.port}"]
        framing: heads.Fields = [("Connection", "close")]
        if ask.length == -1:
            framing.append(("Transfer-Encoding", "chunked"))
        elif ask.length is not None:
            framing.append(("Content-Length", str(ask.length)))
        if ask.expects:
            framing.append(("Expect", "100-continue"))
        fields = [("Host", host[0]), *ask.fields, *framing]
        head = heads.render(f"{request.method} {path} HTTP/1.1", fields)
        self._client.unread(head)
        await relay.relay(self._gate, target.flow, self._client, server, look=None)

    # --- behind the entrance ---

    async def _lead(self, target: Target) -> None:
        """Carry what follows, now that the client was told that it may go on."""
        if not target.judged:
            server = SocketLine.adopt(target.fd)
            await relay.relay(self._gate, target.flow, self._client, server, look=target)
            return
        async with asyncio.timeout(HEAD_SECONDS):
            data = await self._client.read()
        if not data:
            return
        if not hello.is_tls(data[0]):
            self._client.unread(data)
            await self._judged(self._client, Origin("http", target.host, target.port))
            return
        place = Origin("https", target.host, target.port)
        try:
            async with asyncio.timeout(HEAD_SECONDS):
                self._client.unread(await relay.tls_flight(self._client, data, target.host))
                context = await trust.towards_program(self._gate, target.host)
                line = TlsLine(self._client, context, server=True)
                await line.handshake()
        except Bad as bad:
            await self._gate.deny("http.request", place.url + "/", bad.sentence)
        except Refusal:
            return
        except (ssl.SSLError, TimeoutError):
            await self._gate.untrusted(place.url)
        else:
            await self._judged(line, place)

    async def _judged(self, client: Line, place: Origin) -> None:
        await Session(self._gate, client, place).serve()
