"""The gate's end of a raw stream.

Rules
- Bytes of a connection wait here until a service reads them; the supervisor may send `RAW_WINDOW`
  ahead, and is granted more as they are read. More than that is a defect of the other side, and ends
  the channel.
- Messages (the resolver, mounts) come whole. They have no window: what waits is bounded for the
  channel as a whole, which stops reading above it.
- Small pieces cost what they take here, not what they say: of a connection they are joined, and each
  message counts as `MESSAGE` bytes more.
- A service that finds more and more waiting lets everybody else have a turn in between (`turns`).
- What is written waits for room in the same way, so a program that does not read holds up only itself;
  and nothing is written while the channel as a whole takes nothing.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Awaitable, Callable

from authority import protocol
from authority.gate.turns import Turn
from authority.protocol import RAW_CHUNK, RAW_WINDOW, Service

_MESSAGES = frozenset({Service.NAMES, Service.MOUNT})
MESSAGE = 64
SMALL = 4096


class RawStream:
    """See `compat.base.Stream`. `send` writes a frame, `control` a message on stream 0. `waiting` is
    told of messages that wait for their service; `taken` returns when the channel takes more."""

    def __init__(
        self,
        number: int,
        service: int,
        detail: bytes,
        send: Callable[[bytes], None],
        control: Callable[[protocol.Control], None],
        waiting: Callable[[int], None],
        taken: Callable[[], Awaitable[object]],
    ) -> None:
        self.number, self.service, self.detail = number, service, detail
        self._send, self._control, self._waiting = send, control, waiting
        self._taken = taken
        self._messages = service in _MESSAGES
        self._queue: deque[bytes] = deque()
        self._queued = 0
        self._ended = False
        self._news = asyncio.Event()
        self._credit = RAW_WINDOW
        self._room = asyncio.Event()
        self._gone = False
        self._eof_sent = False
        self._turn = Turn()

    # --- from the supervisor ---

    def received(self, data: bytes) -> None:
        """Bytes, or one message. Raises `ProtocolError` when they exceed what was granted."""
        if self._gone:
            return
        if not self._messages and self._queue and len(self._queue[-1]) < SMALL:
            self._queue[-1] += data
        else:
            self._queue.append(data)
        self._queued += self._costs(data)
        if self._ended or (not self._messages and self._queued > RAW_WINDOW):
            raise protocol.ProtocolError(protocol.INVALID, "more on a raw stream than was granted")
        if self._messages:
            self._waiting(self._costs(data))
        self._news.set()

    def _costs(self, data: bytes) -> int:
        return len(data) + MESSAGE if self._messages else len(data)

    def eof(self) -> None:
        self._ended = True
        self._news.set()

    def granted(self, count: int) -> None:
        """Raises `ProtocolError` when more comes back than was sent."""
        self._credit += count
        if self._credit > RAW_WINDOW:
            raise protocol.ProtocolError(protocol.INVALID, "more granted than was sent")
        self._room.set()

    def closed(self) -> None:
        """The other side ended the stream, or the channel is gone."""
        self._gone = True
        self._drop()
        self._news.set()
        self._room.set()

    # --- for the service ---

    async def read(self) -> bytes:
        if self._turn.over:
            await asyncio.sleep(0)
            self._turn = Turn()
        while not self._queue:
            if self._ended or self._gone:
                return b""
            self._news.clear()
            await self._news.wait()
            self._turn = Turn()
        data = self._queue.popleft()
        self._queued -= self._costs(data)
        if self._messages:
            self._waiting(-self._costs(data))
        elif not self._gone:
            self._control(protocol.Window(self.number, len(data)))
        return data

    async def write(self, data: bytes) -> None:
        if self._messages:
            await self._taken()
            self._write(data)
            return
        view = memoryview(data)
        while view:
            await self._taken()
            while not self._credit and not self._gone:
                self._room.clear()
                await self._room.wait()
            piece = view[: min(RAW_CHUNK, self._credit)]
            self._credit -= len(piece)
            self._write(piece)
            view = view[len(piece) :]

    def _write(self, data: bytes | memoryview) -> None:
        if self._gone or self._eof_sent:
            raise ConnectionResetError("the program's side is gone")
        self._send(protocol.encode_frame(self.number, bytes(data)))

    def write_eof(self) -> None:
        if not self._gone and not self._eof_sent:
            self._eof_sent = True
            self._control(protocol.Eof(self.number))

    def abort(self) -> None:
        if not self._gone:
            self._control(protocol.Close(self.number))
            self.closed()

    def _drop(self) -> None:
        if self._messages:
            self._waiting(-self._queued)
        self._queue.clear()
        self._queued = 0
