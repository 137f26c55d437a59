"""What answers at a replay's endpoints: a real run's services, with recordings in place of servers.

Rules
- Nothing is dialled. Where a real service would hand a socket to the worker, it hands over one whose
  other end plays what came back then: a piece when everything that went out before it went out again.
- The worker speaks plain HTTP to that end, whatever the scheme was; the program's own TLS, with the
  run's own authority, is as it is in a run.
- An answer's framing is not recorded: it comes with its length.
"""

from __future__ import annotations

import asyncio
import contextlib
import re
import socket
from collections.abc import Mapping
from http import HTTPStatus
from typing import Any, Final

from authority.compat import proxy_calls as calls
from authority.compat.base import Service
from authority.compat.endpoints import Endpoints
from authority.compat.model_calls import Call, Open
from authority.compat.model_upstreams import Target
from authority.compat.models import ModelService, key_name
from authority.compat.mount import Mounts
from authority.compat.names import Names
from authority.compat.proxy import Proxy
from authority.compat.proxy_desk import Answer, Desk
from authority.compat.proxy_flows import Connection, Held
from authority.effects.dial import Dialled
from authority.kernel import models
from authority.kernel.codes import Code
from authority.protocol import Service as Kind
from authority.protocol.packets import CallError, Fds
from authority.recorded.errors import Diverged
from authority.replay.door import Flow, ReplayDoor
from authority.replay.files import Copies

_STATUS: Final = re.compile(rb"HTTP(?:/1\.1)? ([1-5][0-9]{2})\r\n")
_FRAMING: Final = (b"content-length:", b"transfer-encoding:", b"connection:")
_REASONS: Final = {status.value: status.phrase for status in HTTPStatus}
_NO_BODY: Final = frozenset({204, 304})


def services(ends: Endpoints, door: ReplayDoor, copies: Copies) -> Mapping[int, Service]:
    """What answers, by kind of raw stream."""
    found: dict[int, Service] = {}
    kinds = {service for service, _, _ in ends.listeners}
    if Kind.NAMES in kinds:
        names = Names(door)
        proxy = Proxy(door, ReplayDesk(door, ends.keyring, ends.ca, ends.anchors), names)
        found |= {int(Kind.NAMES): names, int(Kind.PROXY): proxy, int(Kind.DIRECT): proxy}
    if ends.listeners:
        found[int(Kind.MODEL)] = ReplayModels(door)
    if ends.places.folders:
        door.check = copies.check
        found[int(Kind.MOUNT)] = Mounts(door, ends.places, copies.open)
    return found


class ReplayDesk(Desk):
    """The desk of a run's proxy that reaches nobody."""

    async def open(self, connection: Connection, call: calls.Open) -> Answer:
        told, fds = await super().open(connection, calls_fresh(call))
        return {**told, "scheme": "http"}, fds

    async def _dialled(self, connection: Connection, held: Held) -> Dialled:
        flow = held.flow
        assert isinstance(flow, Flow)
        outcome = flow.found.outcome
        facts = dict(outcome.facts) if outcome is not None else {}
        address = {"address": str(facts.get("address", "127.0.0.1"))}
        if outcome is not None and not flow.found.chunks and outcome.status != "done":
            connection.flows.pop(flow.seq, None)
            sentence = _sentence(flow)
            raise CallError(outcome.code or Code.EFFECT_FAILED, sentence)
        return Dialled(play(flow, plain=held.effect != "http.request"), address)


def calls_fresh(call: calls.Open) -> calls.Open:
    """The call as if no connection to the server were kept: each flow has its own recording."""
    return calls.Open(
        conn=call.conn,
        method=call.method,
        url=call.url,
        headers=call.headers,
        upgrade=call.upgrade,
        held="",
    )


class ReplayModels(ModelService):
    """A run's model endpoint that reaches nobody."""

    def __init__(self, door: ReplayDoor) -> None:
        names = door.policy.models.upstream
        super().__init__(door, {key_name(name): "replayed-key" for name in names})
        self._anchors = b""

    async def _dial(self, call: Call, where: Target) -> socket.socket:
        flow = call.flow
        assert isinstance(flow, Flow)
        return play(flow, plain=False)

    async def _start(
        self,
        call: Call,
        where: Target | None,
        api: str,
        reserved: Mapping[str, int],
        *,
        counting: bool = False,
    ) -> tuple[Any, Fds]:
        grant, fds = await super()._start(call, where, api, reserved, counting=counting)
        return {**grant, "tls": False}, fds

    def _wants_count(self, asked: Open, demand: models.Ask, where: Target | None) -> bool:
        """Whether the vendor was asked to count then."""
        door = self._door
        assert isinstance(door, ReplayDoor)
        if (asked.conn, asked.sha256) in self._counted:
            return False
        return door.waits("model.count", f"model:{asked.model}")


def play(flow: Flow, *, plain: bool) -> socket.socket:
    """A socket to somebody who says what was said then. `plain`: as it is, else as an HTTP answer."""
    ours, theirs = socket.socketpair()
    ours.setblocking(False)
    theirs.setblocking(False)
    task = asyncio.get_running_loop().create_task(_play(flow, ours, plain=plain))
    flow.on_stop(lambda: (task.cancel(), None)[1])
    return theirs


class _Ear:
    """Reads what the worker sends. It is held against the recording when it is committed; here only
    how much came counts."""

    def __init__(self, sock: socket.socket) -> None:
        self._sock = sock
        self.heard = 0
        self.over = False
        self.moved = asyncio.Event()

    async def listen(self) -> None:
        """Read to the end."""
        loop = asyncio.get_running_loop()
        with contextlib.suppress(OSError):
            while data := await loop.sock_recv(self._sock, 64 * 1024):
                self.heard += len(data)
                self.moved.set()
        self.over = True
        self.moved.set()

    async def hears(self, count: int) -> None:
        """Wait until so many bytes came, or none will."""
        while self.heard < count and not self.over:
            self.moved.clear()
            await self.moved.wait()


async def _play(flow: Flow, sock: socket.socket, *, plain: bool) -> None:
    loop = asyncio.get_running_loop()
    ear = _Ear(sock)
    listening = loop.create_task(ear.listen())
    try:
        pieces = flow.pieces()
        if not plain:
            pieces = _answer(flow, pieces)
            await ear.hears(1)
        out = 0
        for way, data in pieces:
            if way == "out":
                out += len(data)
                continue
            await flow.has_sent(out)
            await ear.hears(out)
            await loop.sock_sendall(sock, data)
        await flow.has_sent(out)
        await ear.hears(out)
        outcome = flow.found.outcome
        if outcome is not None and outcome.status == "done":
            if plain:
                sock.shutdown(socket.SHUT_WR)
            await listening
    except Diverged as other:
        flow.tell(other.divergence)
    except OSError:
        return  # the worker has ended the connection
    finally:
        listening.cancel()
        await asyncio.wait([listening])
        sock.close()


def _answer(flow: Flow, pieces: list[tuple[str, bytes]]) -> list[tuple[str, bytes]]:
    """The recorded pieces as an HTTP answer with a length: the first that came in has its head."""
    inward = [number for number, (way, _) in enumerate(pieces) if way == "in"]
    if not inward:
        return pieces
    head, separator, rest = pieces[inward[0]][1].partition(b"\r\n\r\n")
    found = _STATUS.match(head + b"\r\n")
    if found is None or not separator:
        return pieces
    status = int(found[1])
    reason = _REASONS.get(status, "Unknown")
    lines = [f"HTTP/1.1 {status} {reason}".encode()]
    lines += [line for line in head.split(b"\r\n")[1:] if not line.lower().startswith(_FRAMING)]
    total = len(rest) + sum(len(pieces[number][1]) for number in inward[1:])
    whole = flow.found.outcome is not None and flow.found.outcome.status == "done"
    bodied = status >= 200 and status not in _NO_BODY and flow.found.verdict.verb != "HEAD"
    if bodied:
        lines.append(f"Content-Length: {total if whole else total + 1}".encode())
    made = list(pieces)
    made[inward[0]] = ("in", b"\r\n".join(lines) + b"\r\n\r\n" + rest)
    return made


def _sentence(flow: Flow) -> str:
    outcome = flow.found.outcome
    if outcome is None or outcome.result is None:
        return "It failed."
    return flow.kept_text(outcome.result)
