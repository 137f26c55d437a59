"""What a start in a machine waits for the first time, told to who waits for it.

Rules
- A step is told where its work begins, and only when there is work: a start that finds everything
  tells nothing.
- It is a word, not a sentence: the gate passes it on, and whoever shows it says what it means.
- Images are built on threads, and who listens lives in an event loop: `to_loop` carries a step over.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Literal

Step = Literal["kernel", "acceleration", "image", "state"]
"""A kernel fetched and unpacked; a guest booted to see whether KVM works; a root image made; a machine
booted and its state saved."""
Tell = Callable[[Step], None]


def nobody(step: Step) -> None:
    """For who does not want to know."""


def to_loop(tell: Tell) -> Tell:
    """The same, to be called from any thread: `tell` is called in the event loop that runs now."""
    loop = asyncio.get_running_loop()

    def carried(step: Step) -> None:
        loop.call_soon_threadsafe(tell, step)

    return carried
