"""The worker's side of a model call: what is asked of the gate, and what the gate gives.

Calls (docs/protocol.md, "Worker"):
    model.list   {conn}                                        -> {models}
    model.open   {conn, effect, api, model, demand, sha256}    -> Grant, and the upstream's socket
    model.chunk  {flow, way, data}                             -> nothing; the piece is durable
    model.finish {flow, status, usage, http}                   -> nothing; the outcome is durable
A refusal comes as `CallError` with the code, the sentence and `{layer, number}`.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Protocol

import msgspec

from authority.dialects.demand import Prepared
from authority.dialects.routes import EFFECTS
from authority.dialects.usage import Usage
from authority.protocol.packets import Peer

CHUNK = 64 * 1024


class Grant(msgspec.Struct, frozen=True):
    """An admitted call: the most tokens to ask for, and where it goes.

    `builtin`: to the obedient model, here. Otherwise `host`, `port`, `tls`, `path`, `headers` with
    the key in them, and `secret`, the key itself, which is looked for in answers. `native`: the gate
    asks for a program's request through the channel, and takes the pieces. `counting`: the vendor is
    to be asked for the number of tokens first. `idle`: seconds.
    """

    flow: int
    limit: int
    builtin: bool = False
    native: bool = False
    counting: bool = False
    field: str = "max_tokens"
    host: str = ""
    port: int = 0
    tls: bool = False
    path: str = ""
    headers: list[tuple[str, str]] = []
    secret: str = ""
    idle: float = 300.0


@dataclass(frozen=True, slots=True)
class Opened:
    """A grant, the descriptor of the dialled socket (-1 for the built-in model), and certificates
    that the policy adds to the system's, as PEM."""

    grant: Grant
    fd: int
    anchors: bytes = b""


class Gate(Protocol):
    """What a call asks of the gate."""

    async def models(self) -> list[str]: ...
    async def open(self, request: Prepared, sha256: str) -> Opened: ...
    async def chunk(self, flow: int, way: str, data: bytes) -> None: ...
    async def finish(self, flow: int, status: str, usage: Usage, http: int) -> None: ...


class Link:
    """`Gate` over the worker's link. Raises `CallError`, `LinkOver`."""

    def __init__(self, peer: Peer, conn: int) -> None:
        self._peer = peer
        self._conn = conn

    async def models(self) -> list[str]:
        found, _ = await self._peer.call("model.list", {"conn": self._conn})
        return msgspec.convert(found["models"], list[str])

    async def open(self, request: Prepared, sha256: str) -> Opened:
        result, fds = await self._peer.call(
            "model.open",
            {
                "conn": self._conn,
                "effect": EFFECTS[request.api],
                "api": request.api,
                "model": request.model,
                "demand": msgspec.to_builtins(request.demand),
                "sha256": sha256,
            },
        )
        anchors = _whole(fds[1]) if len(fds) > 1 else b""
        return Opened(msgspec.convert(result, Grant), fds[0] if fds else -1, anchors)

    async def chunk(self, flow: int, way: str, data: bytes) -> None:
        view = memoryview(data)
        for start in range(0, len(view), CHUNK):
            piece: dict[str, Any] = {"flow": flow, "way": way, "data": view[start : start + CHUNK]}
            await self._peer.call("model.chunk", piece)

    async def finish(self, flow: int, status: str, usage: Usage, http: int) -> None:
        params = {"flow": flow, "status": status, "http": http}
        await self._peer.call("model.finish", {**params, "usage": msgspec.to_builtins(usage)})


def _whole(fd: int) -> bytes:
    """What a file in memory holds. It is closed."""
    with open(fd, "rb") as file:
        file.seek(0)
        return file.read()
