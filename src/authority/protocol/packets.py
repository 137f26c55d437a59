"""Calls between two processes over one SEQPACKET socket, with descriptors.

A packet is one MessagePack array of at most `MAX_PACKET` bytes:

    [0, id, method, params]     a call; `id` rises, 0 asks for no answer
    [1, id, result]             its answer
    [2, id, [code, sentence, more]]   it was refused or failed

Descriptors come with a packet by SCM_RIGHTS, at most `MAX_FDS`.

Rules
- Neither side trusts the other. What is not exactly such a packet, an answer to nothing, an unknown
  method, more calls under way than `MAX_CALLS` (or than `MAX_UNDER_WAY` bytes of them): the link is
  over, and `closed` says why. So it is when the other side does not read what it asked for, and more
  than `MAX_QUEUED` bytes or `MAX_QUEUED_FDS` descriptors wait for it.
- A handler that raises `CallError` refuses; any other exception is a defect, ends the link, and
  nothing of it goes to the other side.
- Descriptors that nobody asked for are closed. An end that takes none (`takes`) ends the link when any
  come: with a call, an answer or nothing that was asked.
"""

from __future__ import annotations

import array
import asyncio
import contextlib
import os
import socket
from collections import deque
from collections.abc import Awaitable, Callable, Coroutine, Sequence
from typing import Any

import msgspec

MAX_PACKET = 128 * 1024
MAX_FDS = 4
MAX_CALLS = 4096
MAX_UNDER_WAY = 128 * 1024 * 1024
MAX_QUEUED = 64 * 1024 * 1024
MAX_QUEUED_FDS = 1024
_FD_BYTES = array.array("i").itemsize

_encode = msgspec.msgpack.Encoder().encode
_decode = msgspec.msgpack.Decoder(list[Any]).decode

Fds = Sequence[int]
Handler = Callable[[Any, list[int]], Awaitable[tuple[Any, Fds]]]
"""Gets params and descriptors, which are its own from then on; gives a result and descriptors, which
are closed when they were sent."""


class CallError(Exception):
    """The other side refused a call, or a handler refuses one. `more` is plain data."""

    def __init__(self, code: str, sentence: str, more: Any = None) -> None:
        super().__init__(sentence)
        self.code, self.sentence, self.more = code, sentence, more


class LinkOver(Exception):
    """The link ended; no call on it will be answered."""


class Peer:
    """One end of a link. Make it inside a running loop; it owns the socket. `takes`: descriptors may
    come; then whoever registers a method, or calls one, answers for what comes with it."""

    def __init__(self, sock: socket.socket, *, takes: bool = True) -> None:
        self._takes = takes
        sock.setblocking(False)
        self._sock = sock
        self._loop = asyncio.get_running_loop()
        self._handlers: dict[str, Handler] = {}
        self._waiting: dict[int, asyncio.Future[tuple[Any, list[int]]]] = {}
        self._last = 0
        self._queue: deque[tuple[bytes, list[int]]] = deque()
        self._queued = 0
        self._queued_fds = 0
        self._tasks: set[asyncio.Task[None]] = set()
        self._under_way = 0
        self._over = ""
        self.closed = asyncio.Event()
        self._loop.add_reader(sock.fileno(), self._readable)

    @property
    def reason(self) -> str:
        """Why the link is over; empty while it is not."""
        return self._over

    def on(self, method: str, handler: Handler) -> None:
        """Answer calls of `method`."""
        self._handlers[method] = handler

    async def call(self, method: str, params: Any, fds: Fds = ()) -> tuple[Any, list[int]]:
        """The other side's answer and descriptors. `fds` are duplicated, not taken.

        Raises `CallError` when it refuses, `LinkOver` when the link ends before it answers.
        """
        if self._over:
            raise LinkOver(self._over)
        self._last += 1
        number = self._last
        future: asyncio.Future[tuple[Any, list[int]]] = self._loop.create_future()
        self._waiting[number] = future
        try:
            self._send([0, number, method, params], fds)
            return await future
        finally:
            self._waiting.pop(number, None)
            del future  # else a failure that it holds would hold this frame, and with it `params`

    def tell(self, method: str, params: Any) -> None:
        """A call that wants no answer. Lost when the link is over."""
        if not self._over:
            self._send([0, 0, method, params], ())

    def close(self, reason: str = "closed") -> None:
        """End the link: calls under way fail, handlers are cancelled."""
        if self._over:
            return
        self._over = reason
        self._loop.remove_reader(self._sock.fileno())
        self._loop.remove_writer(self._sock.fileno())
        self._sock.close()
        for _, fds in self._queue:
            _close_all(fds)
        self._queue.clear()
        for future in self._waiting.values():
            if not future.done():
                future.set_exception(LinkOver(reason))
        for task in list(self._tasks):
            task.cancel()
        self.closed.set()

    # --- writing ---

    def _send(self, message: list[Any], fds: Fds) -> None:
        data = _encode(message)
        if len(data) > MAX_PACKET:
            raise ValueError(f"a packet of {len(data)} bytes")
        if self._queued > MAX_QUEUED or self._queued_fds + len(fds) > MAX_QUEUED_FDS:
            self.close("it does not read what it asked for")
            return
        self._queue.append((data, [os.dup(fd) for fd in fds]))
        self._queued += len(data)
        self._queued_fds += len(fds)
        if len(self._queue) == 1:
            self._writable()

    def _writable(self) -> None:
        while self._queue:
            data, fds = self._queue[0]
            extra = [(socket.SOL_SOCKET, socket.SCM_RIGHTS, array.array("i", fds))] if fds else []
            try:
                self._sock.sendmsg([data], extra)
            except BlockingIOError:
                self._loop.add_writer(self._sock.fileno(), self._writable)
                return
            except OSError as error:
                self.close(f"writing failed: {error.strerror}")
                return
            self._queue.popleft()
            self._queued -= len(data)
            self._queued_fds -= len(fds)
            _close_all(fds)
        self._loop.remove_writer(self._sock.fileno())

    # --- reading ---

    def _readable(self) -> None:
        for _ in range(64):
            if self._over:
                return
            try:
                data, extra, flags, _ = self._sock.recvmsg(
                    MAX_PACKET + 1, socket.CMSG_SPACE(MAX_FDS * _FD_BYTES), socket.MSG_CMSG_CLOEXEC
                )
            except BlockingIOError:
                return
            except OSError as error:
                self.close(f"reading failed: {error.strerror}")
                return
            fds = _descriptors(extra)
            if not data:
                _close_all(fds)
                self.close("the other side ended")
                return
            if flags & (socket.MSG_TRUNC | socket.MSG_CTRUNC):
                _close_all(fds)
                self.close("a packet that is too large")
                return
            if fds and not self._takes:
                _close_all(fds)
                self.close("descriptors that nobody asked for")
                return
            try:
                self._packet(_decode(data), fds, len(data))
            except (msgspec.MsgspecError, UnicodeDecodeError):
                _close_all(fds)
                self.close("a packet that can't be read")

    def _packet(self, packet: list[Any], fds: list[int], size: int) -> None:
        match packet:
            case [0, int(number), str(method), params] if method in self._handlers:
                if len(self._tasks) >= MAX_CALLS or self._under_way + size > MAX_UNDER_WAY:
                    _close_all(fds)
                    self.close("too many calls at a time")
                    return
                self._begin(self._handle(number, method, params, fds), size)
            case [1, int(number), result] if number in self._waiting:
                self._settle(number, (result, fds))
            case [2, int(number), [str(code), str(sentence), more]] if number in self._waiting:
                _close_all(fds)
                self._settle(number, CallError(code, sentence, more))
            case [1 | 2, int(number), _] if 0 < number <= self._last:
                _close_all(fds)  # whoever asked has gone meanwhile
            case _:
                _close_all(fds)
                self.close("a packet that means nothing here")

    def _begin(self, work: Coroutine[Any, Any, None], size: int) -> None:
        task = self._loop.create_task(work)
        self._tasks.add(task)
        self._under_way += size

        def done(task: asyncio.Task[None]) -> None:
            self._tasks.discard(task)
            self._under_way -= size

        task.add_done_callback(done)

    def _settle(self, number: int, outcome: tuple[Any, list[int]] | CallError) -> None:
        future = self._waiting.pop(number)
        if future.done():
            if not isinstance(outcome, CallError):
                _close_all(outcome[1])
        elif isinstance(outcome, CallError):
            future.set_exception(outcome)
        else:
            future.set_result(outcome)

    async def _handle(self, number: int, method: str, params: Any, fds: list[int]) -> None:
        given: Fds = ()
        try:
            result, given = await self._handlers[method](params, fds)
            answer = [1, number, result]
        except CallError as error:
            answer = [2, number, [error.code, error.sentence, error.more]]
        except asyncio.CancelledError:
            raise
        except BaseException as error:
            self.close(f"{method}: {type(error).__name__}: {error}")
            raise
        try:
            if number and not self._over:
                self._send(answer, given)
        except (ValueError, OSError) as error:  # too long for a packet, or no descriptors left
            self.close(f"{method}: its answer can't be sent: {error}")
        finally:
            _close_all(given)


def _descriptors(extra: Sequence[tuple[int, int, bytes]]) -> list[int]:
    fds = array.array("i")
    for level, kind, content in extra:
        if (level, kind) == (socket.SOL_SOCKET, socket.SCM_RIGHTS):
            fds.frombytes(content[: len(content) - len(content) % _FD_BYTES])
    return list(fds)


def _close_all(fds: Fds) -> None:
    for fd in fds:
        with contextlib.suppress(OSError):
            os.close(fd)
