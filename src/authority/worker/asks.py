"""What the worker asks of the gate, with types. See `docs/protocol.md`, "Worker".

A refusal carries what the program may be told; everything else that goes wrong with the gate is the
link's end, and with it the process's.
"""

from __future__ import annotations

import os
from dataclasses import dataclass
from typing import Any

from authority.protocol.packets import CallError, Peer
from authority.worker.heads import Fields, Response

FAILED = "E_EFFECT_FAILED"


class Refusal(Exception):
    """The gate said no, or tried and failed (`FAILED`)."""

    def __init__(self, code: str, sentence: str, more: Any) -> None:
        super().__init__(sentence)
        more = more if isinstance(more, dict) else {}
        self.code, self.sentence = code, sentence
        self.layer = str(more.get("layer", "effect"))
        self.number = int(more.get("number", 0))
        self.rule = more.get("rule")

    def rendering(self) -> dict[str, Any]:
        """What the program is told."""
        told: dict[str, Any] = {
            "code": self.code,
            "layer": self.layer,
            "message": self.sentence,
            "number": self.number,
        }
        if self.rule:
            told["rule"] = self.rule
        return {"error": told}


@dataclass(slots=True)
class Target:
    """Where a connection leads: a tunnel that is open (`fd`), or judged request by request."""

    judged: bool
    host: str
    port: int
    flow: int = -1
    fd: int = -1


@dataclass(slots=True)
class Granted:
    """A request that may go out, as it has to be sent. `fd` -1: on the connection that is held."""

    flow: int
    scheme: str
    host: str
    port: int
    target: str
    fields: Fields
    masked: bool
    fd: int

    @property
    def key(self) -> str:
        """What a kept connection is good for."""
        host = f"[{self.host}]" if ":" in self.host else self.host
        return f"{self.scheme}://{host}:{self.port}"


class Gate:
    """The gate, as one connection of the program sees it."""

    def __init__(self, peer: Peer, conn: int) -> None:
        self._peer = peer
        self._conn = conn

    async def _call(self, call: str, /, **params: Any) -> tuple[Any, list[int]]:
        try:
            return await self._peer.call(f"net.{call}", {"conn": self._conn, **params})
        except CallError as error:
            raise Refusal(error.code, error.sentence, error.more) from None

    async def target(self, host: str, port: int, via: str) -> Target:
        """Ask for a connection. Raises `Refusal`."""
        told, fds = await self._call("target", host=host, port=port, via=via)
        if told["judged"]:
            return Target(True, told["host"], told["port"])
        return Target(False, told["host"], told["port"], told["flow"], fds[0])

    async def open(
        self, method: str, url: str, fields: Fields, *, upgrade: bool, held: str
    ) -> Granted:
        """Ask for a request. `held` names the connection to a server that is kept. Raises `Refusal`."""
        told, fds = await self._call(
            "open", method=method, url=url, headers=fields, upgrade=upgrade, held=held
        )
        return Granted(
            flow=told["flow"],
            scheme=told["scheme"],
            host=told["host"],
            port=told["port"],
            target=told["target"],
            fields=[(name, value) for name, value in told["headers"]],
            masked=told["masked"],
            fd=fds[0] if fds else -1,
        )

    async def again(self, flow: int) -> int:
        """A fresh connection for a request whose kept one had ended. Raises `Refusal`."""
        _, fds = await self._call("again", flow=flow)
        return fds[0]

    async def commit(self, flow: int, way: str, data: bytes, *, last: bool = False) -> bytes:
        """Commit a piece; the bytes to pass on, which differ where secrets are masked. `last` also
        gives what was held back for that. Raises `Refusal`."""
        told, _ = await self._call("chunk", flow=flow, way=way, data=data, last=last)
        return data if told is None else bytes(told)

    async def head(
        self, flow: int, answer: Response, data: bytes, *, last: bool
    ) -> tuple[Fields, bytes]:
        """Commit the head of an answer and the first bytes of its body: both as they are passed on.

        Raises `Refusal`.
        """
        told, _ = await self._call(
            "head", flow=flow, status=answer.status, headers=answer.fields, data=data, last=last
        )
        return [(name, value) for name, value in told[0]], bytes(told[1])

    async def finish(self, flow: int, status: str, sentence: str = "", **facts: int) -> None:
        """Say what came of a flow."""
        try:
            await self._call("finish", flow=flow, status=status, sentence=sentence, facts=facts)
        except Refusal as no:
            raise AssertionError("the gate takes every outcome") from no

    async def deny(self, effect: str, resource: str, reason: str) -> Refusal:
        """Have a refusal recorded that was made here."""
        try:
            await self._call("deny", effect=effect, resource=resource[:2048], reason=reason)
        except Refusal as no:
            return no
        raise AssertionError("the gate refuses what it is asked to")

    async def untrusted(self, url: str) -> None:
        """Tell the operator that a client did not finish TLS with the run's own authority."""
        await self._call("untrusted", url=url[:512])

    async def leaf(self, host: str) -> bytes:
        """Certificate and key for a host whose requests are judged, as PEM. Raises `Refusal`."""
        told, _ = await self._call("leaf", host=host)
        return bytes(told)

    async def anchors(self) -> bytes:
        """The certificates by which servers are verified, one after the other."""
        told, fds = await self._call("anchors")
        parts = []
        with os.fdopen(fds[0], "rb") as file:
            file.seek(0)
            parts.append(file.read(int(told)))
        return b"".join(parts)
