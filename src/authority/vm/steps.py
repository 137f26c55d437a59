"""What a start in a machine waits for the first time, told to who waits for it.

Rules
- A step is told where its work begins, and only when there is work: a start that finds everything
  tells nothing.
- It is a word, not a sentence: the gate passes it on, and whoever shows it says what it means.
- Who stands in line is told what the one in front makes, as soon as it does, and nothing while that one
  finds everything too.
- Images are built on threads, and who listens lives in an event loop: `to_loop` carries a step over.
"""

from __future__ import annotations

import asyncio
import contextlib
import threading
from collections.abc import Callable, Iterator
from typing import Final, Literal

Step = Literal[
    "kernel",
    "acceleration",
    "image",
    "state",
    "waiting",
    "waiting-kernel",
    "waiting-acceleration",
    "waiting-image",
    "waiting-state",
]
"""A kernel fetched and unpacked; a guest booted to see whether KVM works; a root image made; a machine
booted and its state saved. `waiting` for another process that builds; or for another start here, which
makes what is named."""
Tell = Callable[[Step], None]

_FOR_OTHERS: Final[dict[Step, Step]] = {
    "kernel": "waiting-kernel",
    "acceleration": "waiting-acceleration",
    "image": "waiting-image",
    "state": "waiting-state",
    "waiting": "waiting",
}


def nobody(step: Step) -> None:
    """For who does not want to know."""


def to_loop(tell: Tell) -> Tell:
    """The same, to be called from any thread: `tell` is called in the event loop that runs now."""
    loop = asyncio.get_running_loop()

    def carried(step: Step) -> None:
        loop.call_soon_threadsafe(tell, step)

    return carried


class Line:
    """Starts of which one at a time makes something: who waits hears of it. For threads and loops; the
    lock that makes them wait is the caller's."""

    def __init__(self) -> None:
        self._guard = threading.Lock()
        self._waiting: list[Tell] = []
        self._making: Step | None = None

    @contextlib.contextmanager
    def waits(self, tell: Tell) -> Iterator[None]:
        """While `tell`'s start waits for its turn."""
        with self._guard:
            self._waiting.append(tell)
            if self._making is not None:
                tell(_FOR_OTHERS[self._making])
        try:
            yield
        finally:
            with self._guard:
                self._waiting.remove(tell)

    @contextlib.contextmanager
    def makes(self, tell: Tell) -> Iterator[Tell]:
        """While it has its turn; what it tells the others are told too."""

        def told(step: Step) -> None:
            tell(step)
            with self._guard:
                self._making = step
                for other in self._waiting:
                    other(_FOR_OTHERS[step])

        try:
            yield told
        finally:
            with self._guard:
                self._making = None

    @contextlib.contextmanager
    def turn(self, lock: threading.Lock, tell: Tell) -> Iterator[Tell]:
        """Both, around a lock of threads."""
        with self.waits(tell):
            lock.acquire()
        try:
            with self.makes(tell) as told:
                yield told
        finally:
            lock.release()
