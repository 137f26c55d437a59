"""The model endpoint of a run: what its worker asks, and what the gate decides, dials and charges.

Rules
- A request is admitted with the demand that the worker measured, recorded as a fact. The worker gets
  a connected socket, the upstream's key and the most tokens that it may ask for; for the obedient
  model it gets none of those. Of a request no more bytes may go out than it was measured with.
- A model that nobody serves, or whose key is missing, is refused before anything is reserved.
- When a call is over it is settled by the usage that was read out of the answer. A report beyond the
  reservation is an incident, and the model is not asked again in this run.
- When the connection, the worker or the run ends, its calls are over and are charged as reserved.
"""

from __future__ import annotations

import asyncio
import os
import socket
from collections.abc import Mapping
from typing import Any, Final

import msgspec

from authority.compat.base import Door, Failed, Refused, Stream, pump
from authority.compat.model_calls import Call, Chunk, Finish, Native, Open, call_error, strictly
from authority.compat.model_upstreams import Target, Unreachable, dial, target
from authority.compat.trust import extra_certificates
from authority.dialects import json_text, routes
from authority.dialects.demand import COUNT, MESSAGES, DemandError
from authority.effects.base import Call as Admitted
from authority.effects.base import EffectFailed, Performed
from authority.effects.descriptors import pair
from authority.effects.http_dial import resolve
from authority.kernel import models
from authority.kernel.policy import Policy
from authority.kernel.policy_models import choose
from authority.kernel.requests import ModelCall
from authority.kernel.resources import Resource, ResourceError, named
from authority.protocol.packets import CallError, Fds, LinkOver, Peer

PIECE: Final = 64 * 1024
IDLE_SECONDS: Final = 300.0
LISTED: Final = 500
GRACE: Final = 5.0


def key_name(upstream: str) -> str:
    """What the key of an upstream is called among a run's secrets; no credential has such a name."""
    return f"models/{upstream}"


def environment(policy: Policy, port: int) -> dict[str, str]:
    """What the official SDKs read. The keys are placeholders: the gate puts in the real ones."""
    if not policy.models.allow:
        return {}
    base = f"http://127.0.0.1:{port}"
    ours = {
        "OPENAI_BASE_URL": f"{base}/v1",
        "OPENAI_API_KEY": "placeholder",
        "ANTHROPIC_BASE_URL": base,
        "ANTHROPIC_API_KEY": "placeholder",
    }
    return {name: value for name, value in ours.items() if name not in policy.process.env}


class ModelService:
    """One run's."""

    def __init__(self, door: Door, secrets: Mapping[str, str]) -> None:
        self._door = door
        self._secrets = secrets
        self._anchors = extra_certificates(door.policy.network.ca)
        self._peer: Peer | None = None
        self._conns: dict[int, Native | None] = {}
        self._calls: dict[int, Call] = {}
        self._counted: dict[tuple[int, str], int] = {}
        self._last = 0
        self._distrusted: set[str] = set()

    # --- connections ---

    async def serve(self, stream: Stream) -> None:
        """Serve a program's connection through the worker."""
        peer = await self._linked()
        ours, theirs = pair()
        ours.setblocking(False)
        pumping = asyncio.create_task(pump(stream, ours))
        try:
            await self._connection(peer, theirs, None)
            await asyncio.wait([pumping], timeout=GRACE)
        finally:
            pumping.cancel()
            await asyncio.wait([pumping])
            ours.close()

    async def _connection(self, peer: Peer, theirs: socket.socket, native: Native | None) -> None:
        self._last += 1
        conn = self._last
        self._conns[conn] = native
        try:
            with theirs:
                serving = peer.call("serve", {"kind": "model", "conn": conn}, [theirs.fileno()])
                await serving
        finally:
            del self._conns[conn]
            for key in [key for key in self._counted if key[0] == conn]:
                del self._counted[key]
            for number in [n for n, call in self._calls.items() if call.conn == conn]:
                await self._settle(number, models.Usage(), "failed", 0)

    async def _linked(self) -> Peer:
        peer = await self._door.worker()
        if peer is not self._peer:
            self._peer = peer
            peer.on("model.list", self._list)
            peer.on("model.open", self._open)
            peer.on("model.chunk", self._chunk)
            peer.on("model.finish", self._finish)
        return peer

    # --- what the worker asks ---

    async def _list(self, _params: Any, fds: list[int]) -> tuple[Any, Fds]:
        _none(fds)
        return {"models": self.names()}, ()

    def names(self) -> list[str]:
        """The models that the policy names in full, and those of its prices that it allows."""
        policy = self._door.policy
        found = {text for text in policy.models.allow if "*" not in text} | set(models.BUILTIN)
        for layer in policy.layers:
            found |= layer.models.names
        return sorted(name for name in found if _allowed(policy, name))[:LISTED]

    async def _open(self, params: Any, fds: list[int]) -> tuple[Any, Fds]:
        _none(fds)
        asked = strictly(params, Open)
        native = self._conns.get(asked.conn, _UNKNOWN)
        if native is _UNKNOWN or routes.EFFECTS.get(asked.api) != asked.effect:
            raise CallError("E_SCHEMA_INVALID", "There is no such connection or call.")
        if isinstance(native, Native):
            return await self._open_native(asked, native)
        try:
            return await self._admit(asked)
        except Refused as no:
            raise call_error(no) from None

    async def _admit(self, asked: Open) -> tuple[Any, Fds]:
        resource = f"model:{asked.model}"
        where = await self._where(resource, asked.model, asked.api, asked.effect)
        demand = models.ask({"demand": msgspec.to_builtins(asked.demand)})
        if demand is None:
            raise CallError("E_SCHEMA_INVALID", "The request's numbers make no sense.")
        facts = self._facts_of(asked)
        effect, api = asked.effect, asked.api
        counting = self._wants_count(asked, demand, where)
        if counting:
            effect, api = "model.count", COUNT
        elif (asked.conn, asked.sha256) in self._counted:
            facts["counted"] = self._counted.pop((asked.conn, asked.sha256))
        arguments = ModelCall(api=api, sha256=asked.sha256, size=demand.size)
        flow = await self._door.open(effect, resource, arguments, "", facts)
        call = Call(asked.conn, asked.sha256, effect, asked.model, demand, flow=flow)
        return await self._start(call, where, api, flow.reserved, counting=counting)

    async def _start(
        self,
        call: Call,
        where: Target | None,
        api: str,
        reserved: Mapping[str, int],
        *,
        counting: bool = False,
    ) -> tuple[Any, Fds]:
        """Dial, and say what the worker needs. The call is known from here on."""
        number = call.flow.seq if call.flow is not None else -call.conn
        call.reserved = reserved
        self._calls[number] = call
        limit = reserved.get("output_tokens", 0) // call.demand.choices
        grant: dict[str, Any] = {"flow": number, "limit": limit, "counting": counting}
        grant["native"] = call.native is not None
        if where is None:
            return {**grant, "builtin": True}, ()
        try:
            sock = await self._dial(call, where)
        except Unreachable as error:
            await self._settle(number, models.Usage(), "failed", 0, free=True)
            raise CallError("E_EFFECT_FAILED", str(error)) from None
        call.sock = sock
        if call.flow is not None:
            call.flow.on_stop(call.cut)
        grant |= {
            "field": where.upstream.limit,
            "host": where.resource.host,
            "port": where.resource.port,
            "tls": where.tls,
            "path": where.path(api),
            "headers": where.headers,
            "secret": where.key,
            "idle": IDLE_SECONDS,
        }
        fds = [os.dup(sock.fileno())]
        if where.tls and self._anchors:
            fds.append(_in_memory(self._anchors))
        return grant, fds

    async def _dial(self, _call: Call, where: Target) -> socket.socket:
        return await dial(resolve, self._door.policy, where)

    async def _chunk(self, params: Any, fds: list[int]) -> tuple[Any, Fds]:
        _none(fds)
        piece = strictly(params, Chunk)
        call = self._calls.get(piece.flow)
        if call is None:
            raise CallError("E_HALTED", "This call is over.")
        if piece.way == "out":
            call.out += len(piece.data)
            if call.out > call.demand.size:
                raise CallError("E_BUDGET_EXCEEDED", "The request is longer than was measured.")
        if call.native is not None:
            call.native.take(piece.way, piece.data)
            return None, ()
        assert call.flow is not None
        try:
            charge: dict[str, int] | None = None if call.sock is not None else {}
            await call.flow.commit(piece.way, piece.data, charge=charge)
        except Refused as no:
            raise call_error(no) from None
        return None, ()

    async def _finish(self, params: Any, fds: list[int]) -> tuple[Any, Fds]:
        _none(fds)
        end = strictly(params, Finish)
        call = self._calls.get(end.flow)
        if call is None:
            return None, ()  # it was stopped from outside, and is settled
        usage = models.Usage(**msgspec.structs.asdict(end.usage))
        if call.effect == "model.count" and end.status == "done" and usage.input >= 0:
            self._counted[call.conn, call.sha256] = usage.input
        await self._settle(end.flow, usage, end.status, end.http)
        return None, ()

    async def _settle(
        self, number: int, usage: models.Usage, status: str, http: int, *, free: bool = False
    ) -> None:
        call = self._calls.pop(number)
        call.cut()
        terms = self._door.policy.model(call.model)
        free = free or http >= 400
        settled = models.settle(call.effect, call.reserved, call.demand, terms, usage, free=free)
        facts = {**settled.facts, "status": http} if http else settled.facts
        spent = {**dict.fromkeys(models.TOKENS, 0), **settled.spent}
        if call.native is not None:
            call.native.end(status, http, spent, facts)
        else:
            assert call.flow is not None
            code = "" if status == "done" else "E_EFFECT_FAILED"
            await call.flow.finish(status, code=code, spent=spent, facts=facts)
        if settled.over:
            self._distrusted.add(call.model)
            await self._door.incident(
                "usage", f"model:{call.model} reported more than was reserved: {settled.facts}"
            )
            self._door.trouble(f"{call.model} reported more tokens than can be: not asked again")

    # --- where a model is, and what it may cost ---

    async def _where(self, resource: str, model: str, api: str, effect: str) -> Target | None:
        """The upstream; None for the obedient model. Raises `Refused` for one that nobody serves.

        What the policy does not allow is left to the decision, which says so better.
        """
        policy = self._door.policy
        if models.is_builtin(model) or not _allowed(policy, model):
            return None
        try:
            return self.target_of(model, api)
        except ValueError as error:
            self._door.trouble(str(error))
            raise await self._door.deny(effect, resource, str(error)) from None

    def target_of(self, model: str, api: str) -> Target:
        """Raises `ValueError` with the reason why a model can't be asked."""
        vendor = routes.VENDORS[api]
        found = choose(self._door.policy.models, model, vendor)
        if found is None:
            raise ValueError(f"no upstream of the policy speaks {vendor} and has {model}")
        name, upstream = found
        return target(self._door.policy, name, upstream, self._secrets.get(key_name(name)))

    def _facts_of(self, asked: Open) -> dict[str, Any]:
        facts: dict[str, Any] = {"demand": msgspec.to_builtins(asked.demand)}
        if asked.model in self._distrusted:
            facts["distrusted"] = True
        return facts

    def _wants_count(self, asked: Open, demand: models.Ask, where: Target | None) -> bool:
        """Whether the bytes alone would refuse, and the vendor may be asked to count."""
        terms = self._door.policy.model(asked.model)
        if where is None or not terms.count or asked.api != MESSAGES:
            return False
        if (asked.conn, asked.sha256) in self._counted:
            return False
        worst = models.reserve(asked.effect, demand, terms, self._door.left)
        lefts = ((self._door.left(name), worst.get(name, 0)) for name in models.TOKENS)
        return any(left is not None and wanted > left for left, wanted in lefts)

    # --- through the channel ---

    def facts(self, effect: str, resource: Resource, arguments: ModelCall) -> dict[str, Any]:
        """What a request that came through the channel may cost, or why it is none."""
        try:
            if routes.EFFECTS.get(arguments.api) != effect or not arguments.request:
                raise DemandError("The request or its api is missing, or is another effect's.")
            prepared = routes.prepare(arguments.api, dict(arguments.request), {})
            if prepared.demand.stream:
                raise DemandError("An answer through the channel comes in one piece.")
            if prepared.model != resource.name:
                raise DemandError("The request names another model than the resource.")
            json_text.decode(json_text.encode(arguments.request))
        except (DemandError, ValueError, RecursionError) as error:
            return {"problem": str(error)[:200]}
        demand = msgspec.to_builtins(prepared.demand)
        found: dict[str, Any] = {"demand": demand, "whole": True}
        if resource.name in self._distrusted:
            found["distrusted"] = True
        return found

    async def native(self, call: Admitted) -> Performed:
        """Perform an admitted request that came through the channel. Raises `EffectFailed`."""
        arguments: ModelCall = call.arguments
        native = Native(dict(call.reserved), call.effect, call.resource.name)
        body = json_text.encode(arguments.request)
        path = next(path for path, api in routes.PATHS.items() if api == arguments.api)
        head = (
            f"POST {path} HTTP/1.1\r\nhost: gate\r\ncontent-type: application/json\r\n"
            f"content-length: {len(body)}\r\nconnection: close\r\n\r\n"
        )
        ours, theirs = pair()
        ours.setblocking(False)
        loop = asyncio.get_running_loop()
        draining = None
        try:
            peer = await self._linked()
            serving = asyncio.ensure_future(self._connection(peer, theirs, native))
            draining = asyncio.ensure_future(_drain(ours))
            await loop.sock_sendall(ours, head.encode() + body)
            await serving
        except (Failed, LinkOver, OSError, CallError):
            raise EffectFailed("The request could not be made.", spent=native.spent) from None
        finally:
            native.cut()
            if draining is not None:
                draining.cancel()
                await asyncio.wait([draining])
            ours.close()
        if native.status != "done":
            sentence = native.sentence or "The model's server broke off its answer."
            raise EffectFailed(sentence, spent=native.spent, facts=native.facts)
        value = {"status": native.http, "body": bytes(native.body)}
        return Performed(value, spent=native.spent, facts=native.facts)

    async def _open_native(self, asked: Open, native: Native) -> tuple[Any, Fds]:
        demand = models.ask({"demand": msgspec.to_builtins(asked.demand)})
        same = (asked.model, asked.effect) == (native.model, native.effect)
        if demand is None or native.begun or not same:
            raise CallError("E_SCHEMA_INVALID", "This is not the request that was admitted.")
        native.begun = True
        call = Call(asked.conn, asked.sha256, asked.effect, asked.model, demand, native=native)
        native.call = call
        where = None
        if not models.is_builtin(asked.model):
            try:
                where = self.target_of(asked.model, asked.api)
            except ValueError as error:
                native.sentence = "The gate has no server for this model."
                native.spent = {**dict.fromkeys(native.reserved, 0), "requests": 1}
                self._door.trouble(str(error))
                raise CallError("E_EFFECT_FAILED", native.sentence) from None
        return await self._start(call, where, asked.api, native.reserved)


_UNKNOWN: Final = object()


def _allowed(policy: Policy, name: str) -> bool:
    try:
        return policy.judge("model.chat", named("model", name)).allowed
    except ResourceError:
        return False


def _in_memory(data: bytes) -> int:
    fd = os.memfd_create("certificates", os.MFD_CLOEXEC)
    with open(fd, "wb", closefd=False) as file:
        file.write(data)
    return fd


def _none(fds: list[int]) -> None:
    for fd in fds:
        os.close(fd)


async def _drain(sock: socket.socket) -> None:
    loop = asyncio.get_running_loop()
    while await loop.sock_recv(sock, PIECE):
        pass
