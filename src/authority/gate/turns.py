"""What came on a channel, handled a turn at a time.

Rules
- A turn lasts `TURN_SECONDS` and the step that is under way then; everybody else has theirs before the
  next. So whoever sends without end, or much at once, delays a neighbour by a turn and not by what it
  has sent. A step is a frame, or a part of one that holds many requests.
- Nothing is handled while the channel may not take more. While something waits here (`behind`) nothing
  is read, so what waits is what was read at once, and one frame.
- What came before the other side went away is still handled, in turns; only then is the channel told.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Iterator

from authority import protocol

TURN_SECONDS = 0.005

Steps = Iterator[None]
"""Work in steps; a turn may end after each."""


class Turn:
    """One turn, from now on."""

    __slots__ = ("_until",)

    def __init__(self) -> None:
        self._until = time.monotonic() + TURN_SECONDS

    @property
    def over(self) -> bool:
        return time.monotonic() >= self._until


class Turns:
    """`take` handles a frame, and returns the steps of one that has several. `may` says whether more
    may be handled now, `wrong` is told of a frame that is none, `over` is called after each turn."""

    def __init__(
        self,
        take: Callable[[int, bytes], Steps | None],
        may: Callable[[], bool],
        wrong: Callable[[protocol.ProtocolError], None],
        over: Callable[[], None],
    ) -> None:
        self._take, self._may, self._wrong, self._over = take, may, wrong, over
        self._decoder = protocol.FrameDecoder(protocol.MAX_FRAME)
        self._steps: Steps | None = None
        self._called = False
        self._dropped = False
        self._gone: Callable[[], None] | None = None
        self.behind = False

    def came(self, data: bytes) -> None:
        """Bytes; as much of them is handled at once as a turn allows."""
        self._turn(data)

    def go_on(self) -> None:
        """Have another turn, if anything waits for one."""
        if self.behind and not self._called:
            self._called = True
            asyncio.get_running_loop().call_soon(self._next)

    def drop(self) -> None:
        """Nothing that came is handled any more."""
        self._dropped, self._steps, self.behind = True, None, False

    def gone(self, then: Callable[[], None]) -> None:
        """The other side went away: handle what is left, then call `then`."""
        self._gone = then
        self._end()

    def _end(self) -> None:
        if self._gone is None:
            return
        if self.behind:
            self.go_on()
            return
        then, self._gone = self._gone, None
        then()

    def _next(self) -> None:
        self._called = False
        self._turn(b"")
        self._end()

    def _turn(self, data: bytes) -> None:
        if self._dropped:
            return
        turn, self.behind = Turn(), False
        frames = self._decoder.feed(data)
        try:
            while not self._dropped:
                if self._gone is None and not self._may():
                    self.behind = True
                    break
                if not self._step(frames):
                    break
                if turn.over:
                    self.behind = not self._dropped
                    break
        except protocol.ProtocolError as error:
            self.drop()
            self._wrong(error)
        finally:
            frames.close()  # what it gave out is forgotten, what it did not is kept
        self._over()

    def _step(self, frames: Iterator[tuple[int, bytes]]) -> bool:
        if self._steps is not None:
            if next(self._steps, self) is self:
                self._steps = None
            return True
        frame = next(frames, None)
        if frame is not None:
            self._steps = self._take(*frame)
        return frame is not None
