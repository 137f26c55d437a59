"""One request of the gate's own: sent on the socket that it dialled, its answer handed back.

Rules
- The gate made the request, head and body; it is asked for piece by piece once the server has proved
  who it is, and goes out as it came.
- The answer goes to the gate as it was read: head first, then the body, never more than `max_bytes` of
  it. All that is read counts, framing and interim answers too, and never exceeds the given bounds.
- How it ended is one word of `ENDS`, never a text: nothing that a server wrote gets into a sentence.
"""

from __future__ import annotations

import os
import socket
import ssl
from typing import Any

from authority.protocol.packets import CallError, Peer
from authority.worker import heads
from authority.worker.heads import Bad, Response
from authority.worker.lines import Line, SocketLine
from authority.worker.upstream import Bounds, Ended, TooMuch, Unreachable, Upstream, towards

ENDS = frozenset(
    [
        "broke",  # the connection
        "certificate",  # that of the server, for the reason `verify`
        "cut",  # an answer that breaks off or is framed wrongly
        "done",
        "endless",  # headers
        "fields",  # too many of them
        "long",  # an answer beyond max_bytes
        "protocol",  # not HTTP/1.1
        "refused",  # by the gate
        "reserved",  # more than that
        "switch",  # to another protocol
        "tls",
        "unreached",
    ]
)


async def serve(peer: Peer, params: dict[str, Any], sock: socket.socket) -> dict[str, Any]:
    """Carry one request to its end, and say which."""
    return await _Fetch(_Gate(peer, params["conn"]), params).run(SocketLine(sock))


class _Gate:
    """What one request asks of the gate. Raises `CallError` when it wants no more of it."""

    def __init__(self, peer: Peer, conn: int) -> None:
        self._peer = peer
        self._conn = conn

    async def _call(self, call: str, /, **params: Any) -> tuple[Any, list[int]]:
        return await self._peer.call(f"http.{call}", {"conn": self._conn, **params})

    async def anchors(self) -> bytes:
        told, fds = await self._call("anchors")
        with os.fdopen(fds[0], "rb") as file:
            file.seek(0)
            return file.read(int(told))

    async def more(self) -> tuple[bytes, bool]:
        """The next piece of the request, and whether it is the last."""
        told, _ = await self._call("more")
        return bytes(told["data"]), bool(told["last"])

    async def head(self, answer: Response) -> None:
        await self._call("head", status=answer.status, headers=answer.fields)

    async def piece(self, data: bytes, *, last: bool) -> None:
        await self._call("piece", data=data, last=last)


class _Fetch:
    def __init__(self, gate: _Gate, params: dict[str, Any]) -> None:
        self._gate = gate
        self._host: str = params["host"]
        self._tls: bool = params["tls"]
        self._method: str = params["method"]
        self._most: int = params["max_bytes"]
        self._bounds = Bounds(params["head"], params["total"])
        self._server: Upstream | None = None

    async def run(self, line: Line) -> dict[str, Any]:
        end, verify = await self._conversation(line)
        received = self._server.received if self._server is not None else 0
        return {"end": end, "verify": verify, "received": received}

    async def _conversation(self, line: Line) -> tuple[str, int]:
        try:
            line = await towards(line, self._host, self._gate.anchors if self._tls else None)
            self._server = Upstream(line, "", self._bounds)
            return await self._exchange(self._server), 0
        except Unreachable as error:
            return _why(error.__cause__)
        except CallError:
            return "refused", 0
        finally:
            line.close()

    async def _exchange(self, server: Upstream) -> str:
        try:
            await self._send(server)
            return await self._receive(server)
        except TooMuch as error:
            return "reserved" if error.answered else "endless"
        except Ended:
            return "protocol"
        except Bad as bad:
            if bad.what in ENDS:
                return bad.what
            return "cut" if server.answered else "protocol"
        except OSError:
            return "broke"

    async def _send(self, server: Upstream) -> None:
        last = False
        while not last:
            data, last = await self._gate.more()
            try:
                await server.send(data)
            except OSError:
                return  # a server that has answered may take no more; its answer says what counts

    async def _receive(self, server: Upstream) -> str:
        answer = await server.head(self._method, upgrade=False)
        length = heads.length(answer)
        if self._method != "HEAD" and length is not None and length > self._most:
            return "long"
        await self._gate.head(answer)
        content, last = server.begun()
        size = len(content)
        while size <= self._most:
            if content or last:
                await self._gate.piece(content, last=last)
            if last:
                return "done"
            content, last = await server.piece()
            size += len(content)
        return "long"


def _why(error: BaseException | None) -> tuple[str, int]:
    """Why a server was not spoken to. Without an error it spoke, but not HTTP/1.1."""
    if isinstance(error, ssl.SSLCertVerificationError):
        return "certificate", error.verify_code
    if isinstance(error, ssl.SSLError):
        return "tls", 0
    return ("protocol" if error is None else "unreached"), 0
