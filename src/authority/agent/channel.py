"""The agent's end of the channel: one blocking socket that several threads may share.

Rules
- Numbers rise strictly: they are given and sent under one lock, in one order.
- Never more requests under way than the gate said in its welcome, and no frame larger.
- Whoever waits for an answer reads for all: one thread holds the reading lock and hands out what
  comes, the others sleep until their answer is there or the lock is free.
- Whoever sends and finds the socket full reads meanwhile, so two full buffers never wait for each
  other.
- After the end of the stream, a malformed message or half a frame sent, the channel is broken for
  good: every call, waiting or new, gets the same error. Nothing is sent twice.
- A socket does not survive a fork: the child has to connect by itself.

`_socket` is the C half of `socket`: all that is needed here, at a third of its import time.
"""

from __future__ import annotations

import _socket as socket
import contextlib
import os
import select
import threading
from collections.abc import Sequence

import msgspec

from authority import protocol
from authority.agent.errors import BadReply, BadRequest, GateError, GateGone, NoChannel

READ_BYTES = 256 * 1024
STREAM = 1
_OVERHEAD = 64
_LOOK_AGAIN_MS = 100


class Draft:
    """A request without its number."""

    __slots__ = ("arguments", "capability", "effect", "flags", "resource")

    def __init__(
        self,
        effect: str,
        resource: str | bytes,
        arguments: msgspec.Raw,
        capability: bytes | None,
        flags: int,
    ) -> None:
        self.effect = effect
        self.resource = resource
        self.arguments = arguments
        self.capability = capability
        self.flags = flags


class Pending:
    """An answer that is awaited: `reply` or `error` is set once `done`."""

    __slots__ = ("done", "error", "reply")

    def __init__(self) -> None:
        self.done = False
        self.reply: protocol.Reply | None = None
        self.error: GateError | None = None


class Channel:
    """A connection to the gate. Raises NoChannel, GateGone or BadReply while it is made."""

    def __init__(self, path: str, *, client: str, capability: bytes | None = None) -> None:
        self._sending = threading.Lock()
        self._reading = threading.Lock()
        self._changed = threading.Condition()
        self._pending: dict[int, Pending] = {}
        self._n = 0
        self._error: GateError | None = None
        self._pid = os.getpid()
        self._decoder = protocol.FrameDecoder()
        self._welcome: protocol.WelcomeOptions | None = None
        self._socket = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        try:
            self._connect(path)
            welcome = self._greet(protocol.encode_hello(client, capability))
        except BaseException:
            self._socket.close()
            raise
        self.run: str = welcome.run
        self.cwd: str = welcome.cwd
        self._pipeline: int = welcome.pipeline
        self._frame: int = min(welcome.frame, protocol.MAX_FRAME)

    def _connect(self, path: str) -> None:
        try:
            self._socket.connect(path)
        except (OSError, ValueError) as error:
            reason = getattr(error, "strerror", None) or str(error)
            raise NoChannel(
                f"no gate answers at {path!r}: {reason}",
                "start the program with `authority run`, or check the path",
            ) from error

    def _greet(self, hello: bytes) -> protocol.WelcomeOptions:
        with self._sending:
            self._send(protocol.encode_frame(STREAM, hello))
            while True:
                self._receive()
                if self._welcome is not None:
                    return self._welcome
                if self._error is not None:
                    raise self._error

    def submit(self, drafts: Sequence[Draft]) -> list[Pending]:
        """Send the requests, several in a frame where they fit. Answers are not awaited."""
        if os.getpid() != self._pid:
            raise GateError(
                "this process was forked after it had connected", "call connect() again"
            )
        for draft in drafts:
            if _size(draft) + _OVERHEAD > self._frame:
                raise BadRequest(
                    f"the request for {draft.effect} is larger than a frame ({self._frame} bytes)"
                )
        waiting: list[Pending] = []
        with self._sending:
            at = 0
            while at < len(drafts):
                while len(self._pending) >= self._pipeline:
                    self._progress()
                room = min(self._pipeline - len(self._pending), protocol.MAX_REQUESTS)
                end, size = at, _OVERHEAD
                while end < len(drafts) and end - at < room:
                    size += _size(drafts[end])
                    if size > self._frame and end > at:
                        break
                    end += 1
                waiting += self._send_some(drafts[at:end])
                at = end
        return waiting

    def _send_some(self, drafts: Sequence[Draft]) -> list[Pending]:
        """One frame. The sending lock is held."""
        if self._error is not None:
            raise self._error
        requests = [
            protocol.Request(self._n + i, d.effect, d.resource, d.arguments, d.capability, d.flags)
            for i, d in enumerate(drafts, 1)
        ]
        try:
            frame = protocol.encode_frame(STREAM, protocol.encode_requests(requests))
        except (UnicodeError, TypeError) as error:
            raise BadRequest(f"the request can't be encoded: {error}") from error
        pending = [Pending() for _ in requests]
        for request, each in zip(requests, pending, strict=True):
            self._pending[request.n] = each
        self._n = requests[-1].n
        self._send(frame)
        return pending

    def wait(self, pending: Pending) -> protocol.Reply:
        """The answer. Raises GateGone or BadReply."""
        while not pending.done:
            if self._reading.acquire(blocking=False):
                try:
                    if not pending.done:
                        self._receive()
                finally:
                    self._free()
            else:
                with self._changed:
                    if not pending.done and self._reading.locked():
                        self._changed.wait()
        if pending.reply is None:
            raise pending.error or BadReply("the gate gave no answer")
        return pending.reply

    def close(self) -> None:
        """End the connection. Calls under way get GateGone."""
        self._break(GateGone("the channel was closed by this program"))
        with self._sending, self._reading:
            self._socket.close()

    def _free(self) -> None:
        self._reading.release()
        with self._changed:
            self._changed.notify_all()

    def _progress(self) -> None:
        """Read once, or wait until the thread that reads has got something."""
        if self._error is not None:
            raise self._error
        if self._reading.acquire(blocking=False):
            try:
                if len(self._pending) >= self._pipeline:
                    self._receive()
            finally:
                self._free()
        else:
            with self._changed:
                if self._reading.locked():
                    self._changed.wait()

    def _send(self, frame: bytes) -> None:
        rest = memoryview(frame)
        try:
            while rest:
                try:
                    rest = rest[self._socket.send(rest, socket.MSG_DONTWAIT) :]
                except BlockingIOError:
                    self._make_room()
        except OSError as error:
            if self._error is None:
                self._last_words()
            raise self._error or self._gone() from error
        except BaseException:
            # How much of the frame left is not certain, so nothing may follow it.
            self._break(GateGone("a call was interrupted while it was being sent"))
            raise

    def _make_room(self) -> None:
        """The socket is full: take in what the gate has to say until it reads again."""
        waiter = select.poll()
        if not self._reading.acquire(blocking=False):
            # Somebody else reads. They may stop when they have their answer, so look again soon.
            waiter.register(self._socket, select.POLLOUT)
            waiter.poll(_LOOK_AGAIN_MS)
            return
        try:
            waiter.register(self._socket, select.POLLIN | select.POLLOUT)
            if waiter.poll()[0][1] & ~select.POLLOUT:
                self._receive()
                if self._error is not None:
                    raise self._error
        finally:
            self._free()

    def _last_words(self) -> None:
        """The gate closed while we sent: it may have said why."""
        if self._reading.acquire(blocking=False):
            try:
                while self._error is None:
                    self._receive()
            finally:
                self._free()

    def _receive(self) -> None:
        """Read once and hand out what came. The reading lock is held, or nobody else is there."""
        if self._error is not None:
            self._break(self._error)
            return
        try:
            data = self._socket.recv(READ_BYTES)
        except OSError as error:
            self._break(self._gone(error.strerror or ""))
            return
        if not data:
            self._break(self._gone())
            return
        try:
            for stream, payload in self._decoder.feed(data):
                if stream != STREAM:
                    raise protocol.ProtocolError(
                        protocol.INVALID, f"It used stream {stream} of the channel."
                    )
                self._message(protocol.decode_server_message(payload))
        except protocol.ProtocolError as error:
            self._break(BadReply(f"the gate can't be understood: {error.sentence}"))

    def _message(self, message: protocol.Welcome | list[protocol.Reply] | protocol.Fatal) -> None:
        if isinstance(message, list):
            for reply in message:
                pending = self._pending.pop(reply.n, None)
                if pending is None:
                    raise protocol.ProtocolError(
                        protocol.INVALID, f"It answered request {reply.n}, which is not open."
                    )
                pending.reply = reply
                pending.done = True
        elif isinstance(message, protocol.Fatal):
            why = f"{protocol.plain(message.code)}: {protocol.plain(message.sentence)}"
            self._break(GateGone(f"the gate ended the channel: {why}"))
        elif self._welcome is None:
            self._welcome = message.options
        else:
            raise protocol.ProtocolError(protocol.INVALID, "It sent a second welcome.")

    def _gone(self, detail: str = "") -> GateGone:
        return GateGone(
            "the gate closed the channel" + (f" ({detail})" if detail else ""),
            "its log says why, and what of the last requests was done",
        )

    def _break(self, error: GateError) -> None:
        if self._error is None:
            self._error = error
            # Wakes whoever reads, and tells the gate. It may not be connected any more: as well.
            with contextlib.suppress(OSError):
                self._socket.shutdown(socket.SHUT_RDWR)
        for n in list(self._pending):
            pending = self._pending.pop(n, None)
            if pending is not None:
                pending.error = self._error
                pending.done = True
        with self._changed:
            self._changed.notify_all()


def _size(draft: Draft) -> int:
    """At least the bytes of one encoded request (a character has at most four)."""
    resource = draft.resource
    return (
        memoryview(draft.arguments).nbytes
        + (4 * len(resource) if isinstance(resource, str) else len(resource))
        + len(draft.capability or b"")
        + 4 * len(draft.effect)
        + 48
    )
