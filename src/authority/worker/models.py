"""The model endpoint of a run, as the official SDKs know it: requests in, judged calls out.

Rules
- A request is read whole and strictly, measured (`dialects`), and asked at the gate with its demand.
  What is forwarded is written anew from what was measured, with the gate's limit and the gate's key;
  of the program's own headers only the API's version and its features are passed on.
- Every piece is committed before it goes either way: the request before it is sent, the answer before
  it is delivered. Pieces that come while a commit is under way wait and are committed together.
- An answer in one piece is settled before it is delivered, a stream before its end is.
- A refusal is an answer in the vendor's own form, with a status that no SDK repeats.
"""

from __future__ import annotations

import asyncio
import hashlib
import os
import socket
from typing import Any, Final

from authority.dialects import json_text, refusal, routes
from authority.dialects.demand import COUNT, DemandError, Prepared
from authority.dialects.usage import Meter
from authority.protocol.packets import CallError, LinkOver, Peer
from authority.worker import model_http as http
from authority.worker.model_gate import Gate, Link, Opened
from authority.worker.model_relay import Cut, Relay
from authority.worker.model_upstream import answer_of

_HELD: Final = http.Held()
_JSON: Final = [("content-type", "application/json"), ("x-should-retry", "false")]
_COUNTED: Final = ("model", "messages", "system", "tools", "tool_choice", "thinking")
MAX_COUNT: Final = 64 * 1024
_AGAIN: Final = [("content-type", "application/json")]


async def serve(peer: Peer, params: dict[str, Any], sock: socket.socket) -> None:
    """Serve one connection of a program."""
    reader, writer = await asyncio.open_connection(sock=sock)
    front = Front(Link(peer, int(params["conn"])))
    await http.serve(reader, writer, front.handle, _HELD)


class Front:
    """Answers requests, asking `gate` for everything."""

    def __init__(self, gate: Gate) -> None:
        self._gate = gate

    async def handle(self, request: http.Request, reply: http.Reply) -> None:
        """Answer one request."""
        path = routes.split(request.target)
        api = routes.PATHS.get(path, "")
        anthropic = api.startswith("anthropic") or "anthropic-version" in request.headers
        if path == routes.MODELS or path.startswith(routes.MODELS + "/"):
            await self._models(request, reply, path[len(routes.MODELS) + 1 :], anthropic=anthropic)
            return
        if not api:
            await _refuse(reply, anthropic, 404, "This endpoint has no such address.")
            return
        if request.method != "POST":
            await _refuse(reply, anthropic, 405, "This address takes POST.")
            return
        try:
            prepared = routes.read(api, request.headers, request.body)
            headers = routes.forwarded(api, request.headers, stream=prepared.demand.stream)
        except (DemandError, json_text.JsonError) as error:
            await _refuse(reply, anthropic, 400, str(error))
            return
        await self._call(prepared, headers, reply, anthropic)

    async def _call(
        self, prepared: Prepared, headers: list[tuple[str, str]], reply: http.Reply, anthropic: bool
    ) -> None:
        sha256 = hashlib.sha256(json_text.encode(prepared.tree)).hexdigest()
        try:
            opened = await self._gate.open(prepared, sha256)
            if opened.grant.counting:
                await self._count(opened, prepared, headers)
                opened = await self._gate.open(prepared, sha256)
        except CallError as error:
            await _denied(reply, anthropic, error)
            return
        relay = Relay(self._gate, opened.grant, prepared, reply)
        try:
            await self._exchange(opened, prepared, headers, relay)
        except (http.Broken, Cut) as error:
            sentence = (
                str(error) or "The model's server broke off, or does not answer as it should."
            )
            await relay.finish("failed")
            await relay.broken(anthropic, sentence)
        except CallError as error:
            await relay.finish("failed")
            if reply.begun:
                await relay.broken(anthropic, error.sentence, error.code)
            else:
                await _denied(reply, anthropic, error)
        except LinkOver:
            raise
        except BaseException:
            await relay.finish("failed")
            raise

    async def _exchange(
        self, opened: Opened, prepared: Prepared, headers: list[tuple[str, str]], relay: Relay
    ) -> None:
        grant = opened.grant
        body = prepared.body(grant.limit, grant.field)
        try:
            await self._gate.chunk(grant.flow, "out", body)
        except BaseException:
            if opened.fd >= 0:
                os.close(opened.fd)
            raise
        async with answer_of(opened, prepared, headers, body) as answer:
            await relay.pass_on(answer)

    async def _count(
        self, opened: Opened, prepared: Prepared, headers: list[tuple[str, str]]
    ) -> None:
        """Ask the vendor how many tokens a request has; the gate keeps the number that comes."""
        question: dict[str, Any] = {k: v for k, v in prepared.tree.items() if k in _COUNTED}
        asked = routes.prepare(COUNT, question, dict(headers))
        body, flow = asked.body(0, ""), opened.grant.flow
        meter, http_status, status = Meter(COUNT), 0, "failed"
        try:
            await self._gate.chunk(flow, "out", body)
            async with answer_of(opened, asked, headers, body) as answer:
                parts = bytearray()
                async for piece in answer.pieces:
                    parts += piece
                    if len(parts) > MAX_COUNT:
                        raise http.Broken
                http_status = answer.status
                await self._gate.chunk(flow, "in", bytes(parts))
                meter.whole(json_text.decode(bytes(parts)))
                status = "done" if http_status < 300 else "failed"
        except (http.Broken, json_text.JsonError):
            status = "failed"  # then the bytes are the bound, and most likely refuse
        finally:
            await self._gate.finish(flow, status, meter.usage(), http_status)

    async def _models(
        self, request: http.Request, reply: http.Reply, name: str, *, anthropic: bool
    ) -> None:
        if request.method != "GET":
            await _refuse(reply, anthropic, 405, "This address takes GET.")
            return
        known = await self._gate.models()
        if name and name not in known:
            await _refuse(reply, anthropic, 404, "The policy lists no model of this name.")
            return
        if anthropic:
            entries: list[dict[str, Any]] = [
                {
                    "type": "model",
                    "id": one,
                    "display_name": one,
                    "created_at": "1970-01-01T00:00:00Z",
                }
                for one in known
            ]
            more: dict[str, Any] = {"has_more": False, "first_id": None, "last_id": None}
        else:
            entries = [
                {"id": one, "object": "model", "created": 0, "owned_by": "authority"}
                for one in known
            ]
            more = {"object": "list"}
        found = entries[known.index(name)] if name else {"data": entries, **more}
        await reply.whole(200, _JSON, json_text.encode(found))


async def _refuse(reply: http.Reply, anthropic: bool, status: int, sentence: str) -> None:
    await reply.whole(status, _JSON, refusal.body(anthropic, status, sentence))


async def _denied(reply: http.Reply, anthropic: bool, error: CallError) -> None:
    """A refusal of the gate's, or an upstream that it could not reach (which may be asked again)."""
    more = error.more if isinstance(error.more, dict) else {}
    failed = error.code == "E_EFFECT_FAILED"
    status = 502 if failed else 400 if error.code == "E_SCHEMA_INVALID" else 403
    body = refusal.body(
        anthropic,
        status,
        error.sentence,
        code=error.code,
        layer=str(more.get("layer", "")),
        number=int(more.get("number", 0)),
    )
    await reply.whole(status, _AGAIN if failed else _JSON, body)
