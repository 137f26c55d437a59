"""Room for large answers: how many bytes a run may have under way towards it.

Rules
- Before an effect is performed whose answer may be large, its bound is taken from the run's room, and
  given back when the answer was taken by the other side, or will never be.
- Who does not read its answers therefore holds up its own large requests, and costs the gate no more
  than `ROOM` bytes and what one request may bring beyond that.
- A request that is larger than the whole room is let in alone.
"""

from __future__ import annotations

import asyncio
from typing import Any

from authority.effects.tools import MAX_OUTPUT
from authority.kernel.requests import HttpRequest

ROOM = 64 * 1024 * 1024
SMALL = 64 * 1024
"""Answers up to this many bytes are bounded by the number of requests in flight."""


class Room:
    """One run's room."""

    def __init__(self) -> None:
        self._held = 0
        self._freed = asyncio.Event()

    async def take(self, size: int) -> None:
        """Wait until `size` bytes fit."""
        while size and self._held and self._held + size > ROOM:
            self._freed.clear()
            await self._freed.wait()
        self._held += size

    def give(self, size: int) -> None:
        """Give back what was taken."""
        self._held -= size
        self._freed.set()


def answer_bound(effect: str, arguments: Any, reserved: dict[str, int]) -> int:
    """The most bytes that an answer may have; 0 when they are few."""
    size = 0
    if effect == "fs.read":
        size = reserved.get("file_bytes", 0)
    elif isinstance(arguments, HttpRequest):
        size = arguments.max_bytes
    elif effect in {"tool.call", "fs.list", "mcp.list", "mcp.read", "mcp.prompt"}:
        size = MAX_OUTPUT
    return size if size > SMALL else 0
