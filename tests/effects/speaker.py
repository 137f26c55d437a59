"""A worker in the test's own process: the very code of the real one, over a link like the real one."""

from __future__ import annotations

import asyncio
import socket
from typing import Any

from authority.compat.fetching import Fetches
from authority.effects.http import HttpEffect
from authority.protocol.packets import Peer
from authority.worker import main, trust


class _Door:
    def __init__(self, peer: Peer) -> None:
        self._peer = peer

    async def worker(self) -> Peer:
        return self._peer


def http_effect(*, secrets: dict[str, str], anchors: bytes = b"", **options: Any) -> HttpEffect:
    """The effect under test, with a fresh worker behind it."""
    links: list[Fetches] = []

    async def link_of(_run: str) -> Fetches:
        if not links:
            trust._clients.clear()  # a worker keeps what it verifies by, and this one is new
            ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
            working = asyncio.ensure_future(main.work(theirs))
            links.append(Fetches(_Door(Peer(ours))))  # type: ignore[arg-type]
            links[0].working = working  # type: ignore[attr-defined]
        return await links[0].linked()

    return HttpEffect(link_of, secrets=secrets, anchors=anchors, **options)
