"""The control API: HTTP/1.1 over a unix socket, for the person and their tools.

Rules
- The socket is 0600 below a 0700 directory, and the peer's uid (SO_PEERCRED) must be the gate's own or
  root's. That is not authority: every call also presents a capability for its action
  (`Authorization: Bearer auth1_...`), judged by the kernel. Resuming needs another one than the rest.
- A refused call is an entry. A call that changes something is an entry before it is answered, and no
  answer leaves before everything it tells is durable. A call that fails in a way that nobody foresaw
  is answered too, and its cause stands in the gate's error output.
- An answer is one JSON object, or a stream of them, one a line, for a run. When the caller of a run
  goes away, the run is stopped: nobody would see what it does.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import socket
import struct
import sys
import traceback
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import Any, cast

import h11

from authority.errors import AuthorityError
from authority.gate import clock
from authority.gate.ledger import Ledger, Poisoned
from authority.gate.reader import Reader
from authority.kernel import capabilities, entries
from authority.kernel.canonical import printable
from authority.kernel.codes import Layer
from authority.kernel.decide_control import decide_control

MAX_BODY = 32 * 1024 * 1024
_PEER = struct.Struct("3i")


@dataclass
class Asking:
    """One authorised call. `stream` turns the answer into lines; `gone` is set when they left, `room`
    while they take what they are told."""

    action: str
    path: list[str]
    body: dict[str, Any]
    uid: int
    caps: list[str]
    stream: Callable[[dict[str, Any]], None]
    gone: asyncio.Event
    room: asyncio.Event


Handler = Callable[[Asking], Awaitable[dict[str, Any] | None]]


@dataclass(frozen=True)
class Route:
    """`action` is what the capability must cover: the resource is `gate:ACTION`."""

    method: str
    path: str
    action: str
    handler: Handler


class ControlRefused(AuthorityError):
    """A call that can't be answered: `status` is the HTTP status."""

    def __init__(self, status: int, message: str, hint: str = "", **extra: Any) -> None:
        super().__init__(message, hint)
        self.status = status
        self.extra = extra


class Control:
    """Routes, and the check that stands before each of them."""

    def __init__(
        self,
        ledger: Ledger,
        reader: Reader,
        touched: Callable[[], None],
        alone: Callable[[str], bool],
    ) -> None:
        self._ledger = ledger
        self._alone = alone
        self._reader = reader
        self._touched = touched
        self._routes: list[Route] = []
        self.open = 0

    def route(self, method: str, path: str, action: str, handler: Handler) -> None:
        """Register a handler; `*` in `path` stands for one segment."""
        self._routes.append(Route(method, path, action, handler))

    def find(self, method: str, target: str) -> tuple[Route, list[str]]:
        """The route of a request line. Raises `ControlRefused`."""
        got = target.strip("/").split("/")
        for route in self._routes:
            want = route.path.strip("/").split("/")
            if route.method == method and len(want) == len(got):
                pairs = list(zip(want, got, strict=True))
                if all(w in {"*", g} for w, g in pairs):
                    return route, [g for w, g in pairs if w == "*"]
        raise ControlRefused(404, f"no call {printable(method, 16)} {printable(target, 128)}")

    async def authorise(self, action: str, bearer: str, uid: int) -> list[str]:
        """The ids of a capability that covers `action`. Raises `ControlRefused`, with an entry, or
        counted with others (`strangers`)."""
        token, ok = None, False
        if bearer.startswith("auth1_"):
            try:
                token, ok = self._reader.token(capabilities.from_text(bearer))
            except capabilities.TokenError:
                token = None
        state = self._ledger.state
        refusal = decide_control(state, token, ok, action, clock.wall())
        caps = list(token.ids) if token and ok else []
        if refusal is None:
            return caps
        written: dict[str, int] = {}
        if self._alone(refusal.code):
            entry = entries.Denied(
                code=refusal.code,
                layer=Layer.CAPABILITY,
                number=0,
                reason=refusal.reason,
                effect=f"gate.{action}",
                resource=f"gate:{action}",
                facts={"uid": uid},
                caps=caps,
            )
            written["seq"] = self._ledger.step([entry]).seq
            await self._ledger.durable(written["seq"])
        raise ControlRefused(
            403,
            f"{refusal.code}: {refusal.reason}",
            "the capability for this stands in the keys folder of the state directory",
            **written,
        )

    def protocol(self) -> _Connection:
        """A factory for the server."""
        return _Connection(self)

    async def answer(
        self, method: str, target: str, bearer: str, raw: bytes, uid: int, connection: _Connection
    ) -> None:
        """Carry out one call and write its answer."""
        self._touched()
        self.open += 1
        try:
            route, names = self.find(method, target)
            caps = await self.authorise(route.action, bearer, uid)
            try:
                body = json.loads(raw) if raw else {}
            except ValueError as error:
                raise ControlRefused(400, "the body is not JSON") from error
            if not isinstance(body, dict):
                raise ControlRefused(400, "the body is not a JSON object")
            _check_text(body)
            asking = Asking(
                route.action,
                names,
                body,
                uid,
                caps,
                connection.line,
                connection.gone,
                connection.room,
            )
            value = await route.handler(asking)
            await self._ledger.durable(self._ledger.state.seq)
            if value is not None:
                connection.whole(200, value)
            else:
                connection.end()
        except ControlRefused as no:
            connection.whole(no.status, {"error": no.message, "hint": no.hint, **no.extra})
        except AuthorityError as no:
            connection.whole(409, {"error": no.message, "hint": no.hint})
        except Poisoned as error:
            connection.whole(500, {"error": str(error), "hint": "the gate goes down; see gate.err"})
            raise
        except Exception as error:  # a defect of ours: the caller hears of it, the gate stays up
            name = type(error).__name__
            why = error.strerror if isinstance(error, OSError) and error.strerror else name
            connection.whole(500, {"error": f"the gate failed: {why}", "hint": "see gate.err"})
            with contextlib.suppress(OSError):  # a full disk: the caller has heard of it anyway
                traceback.print_exception(error, file=sys.stderr)
        finally:
            self.open -= 1
            self._touched()

    def record(self, asking: Asking, detail: str = "") -> int:
        """The entry of a call that changes something."""
        receipt = self._ledger.step(
            [
                entries.Control(
                    action=asking.action, by=f"uid {asking.uid}", caps=asking.caps, detail=detail
                )
            ]
        )
        return receipt.seq


def _check_text(body: dict[str, Any]) -> None:
    """No entry holds a text that is not Unicode (half a surrogate pair, which stands for a byte that
    was not UTF-8). Raises `ControlRefused`."""
    try:
        json.dumps(body, ensure_ascii=False).encode()
    except UnicodeEncodeError:
        raise ControlRefused(
            400, "a name or an argument is not UTF-8", "rename what has it, or pass it on otherwise"
        ) from None


class _Connection(asyncio.Protocol):
    """One connection of the control socket: one call at a time, as HTTP/1.1 has it."""

    def __init__(self, control: Control) -> None:
        self._control = control
        self._h11 = h11.Connection(h11.SERVER, max_incomplete_event_size=64 * 1024)
        self._transport: asyncio.Transport | None = None
        self._uid = -1
        self._request: h11.Request | None = None
        self._body = bytearray()
        self._streaming = False
        self._answering: asyncio.Task[None] | None = None
        self.gone = asyncio.Event()
        self.room = asyncio.Event()
        self.room.set()

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast(asyncio.Transport, transport)  # uvloop's is no subclass
        sock = self._transport.get_extra_info("socket")
        raw = sock.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, _PEER.size)
        self._uid = _PEER.unpack(raw)[1]
        if self._uid not in {0, os.geteuid()}:
            self._transport.abort()

    def connection_lost(self, exc: Exception | None) -> None:
        self._transport = None
        self.gone.set()
        self.room.set()

    def pause_writing(self) -> None:
        self.room.clear()

    def resume_writing(self) -> None:
        self.room.set()

    def eof_received(self) -> bool:
        self.gone.set()
        return False

    def data_received(self, data: bytes) -> None:
        try:
            self._h11.receive_data(data)
            self._events()
        except h11.RemoteProtocolError as error:
            self.whole(400, {"error": f"not HTTP: {printable(str(error), 200)}", "hint": ""})
            if self._transport is not None:
                self._transport.close()

    def _events(self) -> None:
        while True:
            event = self._h11.next_event()
            if event is h11.NEED_DATA or event is h11.PAUSED:
                return
            if isinstance(event, h11.Request):
                self._request, self._body = event, bytearray()
            elif isinstance(event, h11.Data):
                self._body += event.data
                if len(self._body) > MAX_BODY:
                    raise h11.RemoteProtocolError("the body is too large")
            elif isinstance(event, h11.EndOfMessage):
                self._call()
            elif isinstance(event, h11.ConnectionClosed):
                return

    def _call(self) -> None:
        assert self._request is not None
        headers = {bytes(k): bytes(v) for k, v in self._request.headers}
        bearer = headers.get(b"authorization", b"").decode("ascii", "replace")
        self._answering = asyncio.get_running_loop().create_task(
            self._control.answer(
                self._request.method.decode("ascii", "replace"),
                self._request.target.decode("ascii", "replace"),
                bearer.removeprefix("Bearer "),
                bytes(self._body),
                self._uid,
                self,
            )
        )

    def _send(self, event: Any) -> None:
        if self._transport is not None and (data := self._h11.send(event)):
            self._transport.write(data)

    def line(self, value: dict[str, Any]) -> None:
        """One line of a streamed answer."""
        if self._transport is None:
            return
        if not self._streaming:
            self._streaming = True
            self._send(
                h11.Response(
                    status_code=200,
                    headers=[
                        (b"content-type", b"application/x-ndjson"),
                        (b"transfer-encoding", b"chunked"),
                    ],
                )
            )
        self._send(h11.Data(data=json.dumps(value).encode() + b"\n"))

    def end(self) -> None:
        """The end of a streamed answer."""
        if not self._streaming:
            self.whole(200, {})
            return
        self._send(h11.EndOfMessage())
        self._next()

    def whole(self, status: int, value: dict[str, Any]) -> None:
        """A whole answer, or the last line of a stream that had begun."""
        if self._transport is None:
            return
        if self._streaming:
            self.line({"event": "refused", "status": status, **value})
            self.end()
            return
        if self._h11.our_state not in {h11.IDLE, h11.SEND_RESPONSE}:
            return
        body = json.dumps(value).encode()
        self._send(
            h11.Response(
                status_code=status,
                headers=[
                    (b"content-type", b"application/json"),
                    (b"content-length", str(len(body)).encode()),
                ],
            )
        )
        self._send(h11.Data(data=body))
        self._send(h11.EndOfMessage())
        self._next()

    def _next(self) -> None:
        self._streaming = False
        if self._h11.our_state is h11.MUST_CLOSE and self._transport is not None:
            self._transport.close()
        elif self._h11.our_state is h11.DONE and self._h11.their_state is h11.DONE:
            self._h11.start_next_cycle()
            self._events()
