"""One conversation with a server: TLS, a request as it was judged, its answer piece by piece.

Rules
- Nothing is followed, decoded or retried here. Interim answers are read and dropped, at most
  `MAX_INTERIM`.
- What a server sends beyond its answer is nobody's: the connection is not used again.
- A body that breaks off, or that runs to the end of a TLS session which nobody closed, is a cut one.
- With `Bounds` every byte of the conversation counts, framing too, and nothing is read beyond them.
"""

from __future__ import annotations

import asyncio
import ssl
from collections.abc import Awaitable, Callable
from dataclasses import dataclass

from authority.worker import bodies, heads, trust
from authority.worker.asks import Gate, Granted
from authority.worker.heads import Bad
from authority.worker.lines import CHUNK, Line, SocketLine, TlsLine

MAX_INTERIM = 16
HANDSHAKE_SECONDS = 20
ANSWER_SECONDS = 600
"""How long a server may take until its next byte. Models think for minutes."""


class Unreachable(Exception):
    """The server could not be spoken to; nothing of the request was sent. The sentence is ours."""

    def __init__(self, sentence: str) -> None:
        super().__init__(sentence)
        self.sentence = sentence


class Ended(Exception):
    """The server closed the connection before a byte of its answer."""


class Switching(Bad):
    """A server that would change the protocol, and may not."""

    what = "switch"


class TooMuch(Exception):
    """More than may be read. `answered`: the head was there, and whole."""

    def __init__(self, *, answered: bool) -> None:
        super().__init__("more than may be read")
        self.answered = answered


@dataclass(frozen=True, slots=True)
class Bounds:
    """The most bytes to read: until the final head has ended, and in all."""

    head: int
    total: int


class Upstream:
    """A connection to one server; `key` says to which."""

    def __init__(self, line: Line, key: str, bounds: Bounds | None = None) -> None:
        self.line = line
        self.key = key
        self.reusable = False
        self.received = 0
        self.answered = False
        self._bounds = bounds
        self._body: bodies.Body = bodies.Body()
        self._rest = b""

    async def send(self, data: bytes) -> None:
        await self.line.write(data)

    async def head(self, method: str, *, upgrade: bool) -> heads.Response:
        """The head of the final answer. Raises `Bad`, `Ended`, `TooMuch`,
        `OSError`."""
        for _ in range(MAX_INTERIM):
            head = heads.Head()
            found = head.feed(self._rest)
            while found is None:
                data = await self._more()
                if not data:
                    if head.begun:
                        raise Bad("The server broke off its answer.")
                    raise Ended
                found = head.feed(data)
            answer = heads.response(found[0])
            self._rest = found[1]
            if answer.status == 101:
                if not upgrade or heads.tokens(answer.fields, "upgrade") != ["websocket"]:
                    raise Switching("The server wants to change the protocol.")
                return answer
            if answer.status >= 200:
                self._frame(answer, method)
                return answer
        raise Bad("The server's interim answers have no end.")

    def _frame(self, answer: heads.Response, method: str) -> None:
        length = heads.length(answer)
        slack = bodies.SLACK if self._bounds is None else self._bounds.total
        self._body = bodies.of_response(length, answer.status, method, slack)
        self.answered = True
        closing = "close" in heads.tokens(answer.fields, "connection")
        self.reusable = bool(answer.minor) and not closing

    def _room(self) -> int:
        bounds = self._bounds
        if bounds is None:
            return CHUNK
        room = bounds.total - self.received
        if not self.answered:
            room = min(room, bounds.head - self.received)
        if room <= 0:
            raise TooMuch(answered=self.answered or self.received >= bounds.total)
        return min(room, CHUNK)

    async def _more(self) -> bytes:
        size = self._room()
        async with asyncio.timeout(ANSWER_SECONDS):
            data = await self.line.read(size)
        self.received += len(data)
        return data

    def begun(self) -> tuple[bytes, bool]:
        """What of the body came together with its head, and whether that is all. Raises `Bad`."""
        data, self._rest = self._rest, b""
        return self._piece(data)

    async def piece(self) -> tuple[bytes, bool]:
        """The next piece of the body, and whether it is the last.

        Raises `Bad`, `TooMuch`, `OSError`.
        """
        data = await self._more()
        if data:
            return self._piece(data)
        if self.line.ragged or not self._body.close():
            raise Bad("The server broke off its answer.")
        self.reusable = False
        return b"", True

    def _piece(self, data: bytes) -> tuple[bytes, bool]:
        content = self._body.feed(data)
        if self._body.done and self._body.rest:
            self.reusable = False
        return content, self._body.done

    def leftover(self) -> bytes:
        """What came behind a 101."""
        data, self._rest = self._rest, b""
        return data


async def connect(gate: Gate, granted: Granted) -> Upstream:
    """Speak to the server at the other end of the socket that was granted. Raises `Unreachable`."""
    line = SocketLine.adopt(granted.fd)
    tls = granted.scheme == "https"
    return Upstream(await towards(line, granted.host, gate.anchors if tls else None), granted.key)


async def towards(line: Line, host: str, anchors_of: Callable[[], Awaitable[bytes]] | None) -> Line:
    """A line to a server as `host`: TLS where `anchors_of` gives what it is verified by.

    It owns `line`, which is closed when this fails. Raises `Unreachable`, caused by what went wrong.
    """
    try:
        if anchors_of is not None:
            tls = TlsLine(line, await trust.towards_server(anchors_of), server=False, host=host)
            async with asyncio.timeout(HANDSHAKE_SECONDS):
                await tls.handshake()
            if tls.protocol not in (None, trust.PROTOCOL):
                raise Unreachable("The server does not speak HTTP/1.1.")
            line = tls
    except (ssl.SSLError, OSError) as error:
        line.close()
        raise Unreachable(trust.why(error)) from error
    except BaseException:
        line.close()
        raise
    return line


def request_head(granted: Granted, method: str, framing: heads.Fields) -> bytes:
    """The head of a request as the gate judged it."""
    host = f"[{granted.host}]" if ":" in granted.host else granted.host
    if granted.port != {"http": 80, "https": 443}[granted.scheme]:
        host += f":{granted.port}"
    fields = [("Host", host), *granted.fields, *framing]
    return heads.render(f"{method} {granted.target} HTTP/1.1", fields)
