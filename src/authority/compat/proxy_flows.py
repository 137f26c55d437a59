"""A connection of a program, and what is under way on it: sockets that can be cut, flows that end.

Rules
- The gate keeps a copy of every socket that it hands to the worker. To stop a flow is to shut the copy
  down, which ends it for the worker too, whatever the worker does.
- Pieces of one way of a flow are committed one after the other, in the order in which they came.
- A flow has exactly one outcome. What the worker leaves without one ends as failed.
- A kept server connection is known by what was dialled for it, not by what the worker says.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import socket
from collections.abc import Mapping
from typing import Any

from authority.compat.base import Flow, Refused
from authority.effects.secret_forms import Scrubber
from authority.kernel.canonical import printable
from authority.kernel.codes import Code
from authority.kernel.resources import Resource
from authority.protocol.packets import MAX_PACKET, Peer

MASKED_LIMIT = MAX_PACKET - 32 * 1024


class Breach(Exception):
    """The worker did what no honest one does."""


class Overgrown(Exception):
    """A piece that holds secrets so often that it grows beyond what one packet carries."""


class Held:
    """A flow as the gate holds it. `kept`: it goes over a connection of an earlier request."""

    def __init__(
        self,
        flow: Flow,
        resource: Resource,
        *,
        effect: str,
        used: int = 0,
        scrubber: Scrubber | None = None,
        facts: Mapping[str, Any] | None = None,
    ) -> None:
        self.flow = flow
        self.resource = resource
        self.effect = effect
        self.facts = dict(facts or {})
        self.kept = False
        self.answered = False
        self._used = used
        self._scrubber = scrubber
        self._order = {"in": asyncio.Lock(), "out": asyncio.Lock()}

    async def commit(self, way: str, data: bytes, *, last: bool, head: bytes = b"") -> bytes:
        """Commit a piece; what may be passed on of it. Raises `Refused`."""
        async with self._order[way]:
            if way == "in" and self._scrubber is not None:
                data = self._scrubber.feed(data) + (self._scrubber.end() if last else b"")
                if len(data) > MASKED_LIMIT:
                    raise Overgrown
            if head or data:
                await self.flow.commit(way, head + data)
            return data

    async def finish(self, status: str, sentence: str, facts: Mapping[str, int]) -> None:
        """The one outcome."""
        if self._scrubber is not None and self._scrubber.places:
            self.facts["redacted"] = self._scrubber.places
        # What the worker counted stands beside what we know, under a name that says so.
        told = {f"worker_{name}": value for name, value in facts.items()}
        await self.flow.finish(
            status,
            code="" if status == "done" else Code.EFFECT_FAILED,
            spent={"requests": 1, "network_bytes": self._used} if self._used else {"requests": 1},
            facts={**told, **self.facts},
            body=printable(sentence, 512).encode() if sentence else b"",
        )

    async def abort(self, code: str, sentence: str, facts: Mapping[str, Any]) -> None:
        """Nothing was performed."""
        await self.flow.finish(
            "aborted", code=code, facts={**self.facts, **facts}, body=sentence.encode()
        )


class Connection:
    """One connection of a program. `place`: host and port that are known beforehand (DIRECT)."""

    def __init__(
        self, number: int, peer: Peer, ours: socket.socket, place: tuple[str, int] | None
    ) -> None:
        self.number = number
        self.peer = peer
        self.place = place
        self.judged: str | None = None
        self.flows: dict[int, Held] = {}
        self._ours = ours
        self._server: socket.socket | None = None
        self._server_key = ""

    def flow(self, seq: int) -> Held:
        """A flow of this connection. Raises `Breach`."""
        held = self.flows.get(seq)
        if held is None:
            raise Breach("a flow that is not there")
        return held

    def hold(self, held: Held) -> None:
        self.flows[held.flow.seq] = held
        held.flow.on_stop(self.cut)

    def keeps(self, key: str) -> bool:
        """Whether the last socket that was handed over for this connection leads there."""
        return self._server is not None and self._server_key == key

    def dialled(self, key: str, sock: socket.socket) -> None:
        """A socket is handed over: keep a copy, to cut it. The one before it is ended."""
        self._end_server()
        self._server, self._server_key = socket.socket(fileno=os.dup(sock.fileno())), key

    def _end_server(self) -> None:
        if self._server is not None:
            _shut(self._server)
            self._server.close()
            self._server = None

    def cut(self) -> None:
        """End everything that this connection leads to, at once."""
        if self._server is not None:
            _shut(self._server)
        _shut(self._ours)

    async def over(self) -> None:
        """The connection is gone: whatever it left is ended."""
        self._end_server()
        self._ours.close()
        while self.flows:
            _, held = self.flows.popitem()
            with contextlib.suppress(Refused):
                await held.finish("failed", "The connection ended.", {})


def _shut(sock: socket.socket) -> None:
    with contextlib.suppress(OSError):
        sock.shutdown(socket.SHUT_RDWR)
