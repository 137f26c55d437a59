"""Who may change names meanwhile: many at once, or one that needs the tree to hold still.

A rename of a directory judges everything beneath it first, and a configuration is read before it gets
its name. Between that and the rename nothing else may change a name or a mode. Changes of one name
take `shared`, those take `alone`. Waiting is in order, so neither starves the other.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager


class Stillness:
    """Many shared holders, or a single one."""

    def __init__(self) -> None:
        self._turn = asyncio.Lock()
        self._shared = 0
        self._none = asyncio.Event()
        self._none.set()

    @asynccontextmanager
    async def shared(self) -> AsyncIterator[None]:
        async with self._turn:
            self._shared += 1
            self._none.clear()
        try:
            yield
        finally:
            self._shared -= 1
            if not self._shared:
                self._none.set()

    @asynccontextmanager
    async def alone(self) -> AsyncIterator[None]:
        async with self._turn:
            await self._none.wait()
            yield
