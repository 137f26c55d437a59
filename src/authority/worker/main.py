"""The worker's process: one link to the gate on descriptor 0, a handler for each kind of connection.

Rules
- It has no network, no files and no rights of its own: every act is asked at the gate, and what it may
  touch is handed over as a descriptor.
- Each connection is a task of its own; one that fails closes its descriptors and nobody else's. The
  end of the link ends the process.
- What a kind needs is imported when the first connection of that kind comes.

Source of the calls: `docs/protocol.md`, "Worker".
"""

from __future__ import annotations

import asyncio
import importlib
import socket
from typing import Any, Protocol

from authority.protocol.packets import CallError, Fds, Peer

KINDS: dict[str, str] = {
    "direct": "entrance",
    "http": "fetch",
    "mcp": "mcp",
    "model": "models",
    "proxy": "entrance",
}
"""Module by kind of connection; each has `async def serve(peer, params, sock)`, whose result the gate
gets, and one that the gate calls in its own words has `prepare(peer)`, which answers them."""


class Handler(Protocol):
    """What a kind's module is."""

    async def serve(self, peer: Peer, params: dict[str, Any], sock: socket.socket) -> Any: ...


async def work(link: socket.socket) -> None:
    """Serve until the link is over."""
    peer = Peer(link)

    async def prepare(params: Any, _fds: list[int]) -> tuple[Any, Fds]:
        importlib.import_module(f"authority.worker.{KINDS[params['kind']]}").prepare(peer)
        return None, ()

    async def serve(params: Any, fds: list[int]) -> tuple[Any, Fds]:
        sock = socket.socket(fileno=fds[0])
        sock.setblocking(False)
        name = KINDS.get(params["kind"])
        if name is None:
            sock.close()
            raise CallError("E_SCHEMA_INVALID", "no such kind of connection")
        handler: Handler = importlib.import_module(f"authority.worker.{name}")
        return await handler.serve(peer, params, sock), ()

    peer.on("prepare", prepare)
    peer.on("serve", serve)
    await peer.closed.wait()


def main() -> None:
    """Run the worker. A defect ends it, and the gate starts another."""
    asyncio.run(work(socket.socket(fileno=0)))
