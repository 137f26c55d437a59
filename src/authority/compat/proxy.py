"""The gate's side of a run's proxy: connections go to the worker, and what it asks is decided here.

Rules
- Bytes of programs and servers pass through without being read. The worker reads them, and for every
  act asks: where a connection leads (`target`), whether a request may go out (`open`), to commit a
  piece before it goes on (`chunk`, `head`), to record what it had to refuse (`deny`).
- A place with an http rule is judged request by request, also where a tunnel to it would be allowed.
- A head that does not fit into what is reserved for one is refused: nothing spends more than that.
- A websocket is no read: it is judged under the method `WEBSOCKET`, whatever it is asked with.
- What is judged and logged holds placeholders; the secret is put in afterwards, for its hosts alone.
- A worker that breaks the rules of its calls is ended with all its connections; the next connection
  starts another.
- At most `MAX_CONNECTIONS` at a time. Beyond, connections are closed; a denial says so, at most one in
  `TELL_SECONDS`.
"""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import os
import socket
import time
from collections.abc import Awaitable, Callable
from typing import Any

import msgspec

from authority.compat import proxy_calls as calls
from authority.compat.base import Door, Failed, Refused, Stream
from authority.compat.ca import RunCA, Unvouched
from authority.compat.credentials import Keyring
from authority.compat.names import Names
from authority.compat.proxy_flows import Breach, Connection, Held, Overgrown
from authority.effects.base import EffectFailed, EffectRefused
from authority.effects.descriptors import pair
from authority.effects.dial import Dialled, dial
from authority.effects.http_dial import Resolver, resolve
from authority.kernel.addresses import ResourceError, shown
from authority.kernel.codes import Code, Layer
from authority.kernel.requests import HTTP_OVERHEAD, Connect, HttpRequest
from authority.kernel.resources import Resource, parse
from authority.protocol import Service as Kind
from authority.protocol.packets import CallError, Fds, LinkOver, Peer

MAX_CONNECTIONS = 256
TELL_SECONDS = 1.0
DELIVER_SECONDS = 60
LEAVE_SECONDS = 2
_COPY = 64 * 1024

_Answer = tuple[Any, Fds]


class Proxy:
    """One run's. `anchors`: certificates by which servers are verified, as PEM."""

    def __init__(
        self,
        door: Door,
        keyring: Keyring,
        ca: RunCA | None,
        anchors: bytes,
        names: Names | None = None,
        *,
        resolver: Resolver = resolve,
    ) -> None:
        self._door = door
        self._keyring = keyring
        self._ca = ca
        self._anchors = anchors
        self._names = names
        self._resolver = resolver
        self._peer: Peer | None = None
        self._numbers = itertools.count(1)
        self._connections: dict[int, Connection] = {}
        self._told = 0.0
        self._untrusted: set[str] = set()
        self._watching: set[asyncio.Task[None]] = set()

    # --- connections ---

    async def serve(self, stream: Stream) -> None:
        """Serve one connection of a program to its end."""
        place = None
        if stream.service == Kind.DIRECT:
            found = self._names.place(stream.detail) if self._names else None
            if found is None:
                await self._door.deny("net.connect", "direct", "nothing has this address")
                return
            place = (found.host, found.port)
        if len(self._connections) >= MAX_CONNECTIONS:
            await self._too_many()
            return
        number = next(self._numbers)
        ours, theirs = pair()
        ours.setblocking(False)
        try:
            peer = await self._worker()
            connection = self._connections[number] = Connection(number, peer, ours, place)
            params: dict[str, Any] = {"conn": number, "kind": "direct" if place else "proxy"}
            if place:
                params |= {"host": place[0], "port": place[1]}
            serving = asyncio.ensure_future(peer.call("serve", params, [theirs.fileno()]))
            await asyncio.sleep(0)  # the call is on its way, with a copy of the descriptor
        except Failed as failed:
            ours.close()
            self._door.trouble(failed.sentence)
            return
        finally:
            theirs.close()
        try:
            await self._carry(stream, ours, connection, serving)
        finally:
            await connection.over()
            self._connections.pop(number, None)

    async def _carry(
        self,
        stream: Stream,
        ours: socket.socket,
        connection: Connection,
        serving: asyncio.Future[Any],
    ) -> None:
        """Copy both ways until the worker is done with the connection."""
        loop = asyncio.get_running_loop()

        async def outward() -> None:
            with contextlib.suppress(OSError):
                while data := await stream.read():
                    await loop.sock_sendall(ours, data)
                ours.shutdown(socket.SHUT_WR)

        async def inward() -> None:
            try:
                while data := await loop.sock_recv(ours, _COPY):
                    await stream.write(data)
                stream.write_eof()
            except OSError:
                connection.cut()

        copying = [loop.create_task(outward()), loop.create_task(inward())]
        try:
            with contextlib.suppress(CallError, LinkOver):
                await serving
            await asyncio.wait(copying[1:], timeout=DELIVER_SECONDS)
            await asyncio.wait(copying[:1], timeout=LEAVE_SECONDS)
        finally:
            for task in (*copying, serving):
                task.cancel()
            await asyncio.wait(copying)

    async def _too_many(self) -> None:
        now = time.monotonic()
        if now - self._told >= TELL_SECONDS:
            self._told = now
            await self._door.deny(
                "net.connect",
                "proxy",
                f"more than {MAX_CONNECTIONS} connections at a time",
                code=Code.RATE_LIMIT,
                layer=Layer.POLICY,
            )

    # --- the worker ---

    async def _worker(self) -> Peer:
        peer = await self._door.worker()
        if peer is not self._peer:
            self._peer = peer
            for name, kind, handler in (
                ("target", calls.Target, self._target),
                ("open", calls.Open, self._open),
                ("again", calls.Again, self._again),
                ("head", calls.Head, self._head),
                ("chunk", calls.Chunk, self._chunk),
                ("finish", calls.Finish, self._finish),
                ("deny", calls.Deny, self._deny),
                ("leaf", calls.Leaf, self._leaf),
                ("anchors", calls.Anchors, self._give_anchors),
                ("untrusted", calls.Untrusted, self._not_trusted),
            ):
                peer.on(f"net.{name}", self._checked(peer, kind, handler))
            watch = asyncio.get_running_loop().create_task(self._watch(peer))
            self._watching.add(watch)
            watch.add_done_callback(self._watching.discard)
        return peer

    async def _watch(self, peer: Peer) -> None:
        """A worker that ends takes its connections along."""
        await peer.closed.wait()
        for connection in self._connections.values():
            if connection.peer is peer:
                connection.cut()

    def _checked(
        self,
        peer: Peer,
        kind: type[msgspec.Struct],
        handler: Callable[[Connection, Any], Awaitable[_Answer]],
    ) -> Callable[[Any, list[int]], Awaitable[_Answer]]:
        """A handler for one call of one worker: what is no such call ends the worker."""

        async def handle(params: Any, fds: list[int]) -> _Answer:
            for fd in fds:
                os.close(fd)
            try:
                call = calls.read(kind, params)
                connection = self._connections.get(call.conn)
                if connection is None or connection.peer is not peer or fds:
                    raise Breach("a connection that is not there")
                return await handler(connection, call)
            except Refused as no:
                more = {"layer": no.layer, "number": no.number, "rule": no.rule}
                raise CallError(no.code, no.sentence, more) from None
            except Overgrown:
                sentence = "The answer is made of credentials."
                raise CallError(Code.EFFECT_FAILED, sentence) from None
            except (Breach, msgspec.ValidationError) as error:
                peer.close(f"{kind.__name__}: {error}")
                raise asyncio.CancelledError from None

        return handle

    # --- calls ---

    async def _target(self, connection: Connection, call: calls.Target) -> _Answer:
        if (call.via == "direct") != (connection.place is not None) or (
            connection.place is not None and connection.place != (call.host, call.port)
        ):
            raise Breach("another place than the one given")
        text = f"tcp://{_bracketed(call.host)}:{call.port}"
        try:
            resource = parse("net.connect", text)
        except ResourceError as error:
            raise await self._malformed("net.connect", text, error) from None
        reach = self._door.policy.reach
        judged = resource.port in reach.http_ports(resource.host)
        if judged or (
            call.via == "http" and resource.port not in reach.tunnel_ports(resource.host)
        ):
            connection.judged = resource.host
            return {"judged": True, "host": resource.host, "port": resource.port}, ()
        flow = await self._door.open("net.connect", resource, Connect(via=call.via))
        held = Held(flow, resource, effect="net.connect")
        connection.hold(held)
        dialled = await self._dialled(connection, held)
        connection.dialled("", dialled.sock)
        told = {"judged": False, "host": resource.host, "port": resource.port, "flow": flow.seq}
        return told, (dialled.sock.detach(),)

    async def _open(self, connection: Connection, call: calls.Open) -> _Answer:
        try:
            resource = parse("http.request", call.url)
        except ResourceError as error:
            raise await self._malformed("http.request", call.url, error) from None
        if connection.judged != resource.host:
            raise Breach("a request to another host than the connection's")
        if names := self._keyring.foreign(resource, call.headers):
            raise await self._door.deny(
                "http.request",
                resource.text,
                f"the placeholder of the credential {names[0]} goes to a host that it is not for",
            )
        clean = self._keyring.clean(resource, _plain(call))
        used = len(call.method) + len(clean.resource.text) + _size(clean.headers)
        if used > HTTP_OVERHEAD:
            raise await self._door.deny(
                "http.request",
                resource.text,
                f"the request's head is longer than {HTTP_OVERHEAD} bytes",
                code=Code.SCHEMA_INVALID,
                layer=Layer.SCHEMA,
            )
        arguments = HttpRequest(method=call.method, headers=clean.headers, max_bytes=0)
        verb = "WEBSOCKET" if call.upgrade else call.method
        flow = await self._door.open("http.request", clean.resource, arguments, verb)
        scrubber = self._keyring.scrubber()
        held = Held(
            flow,
            clean.resource,
            effect="http.request",
            used=used,
            scrubber=scrubber,
            facts={"removed": list(clean.removed)} if clean.removed else {},
        )
        connection.hold(held)
        key = _key(resource)
        fds: Fds = ()
        try:
            filled = self._keyring.fill(clean)
            if filled.names:
                held.facts["credentials"] = list(filled.names)
            if call.held and call.held == key and connection.keeps(key):
                held.kept = True
            else:
                dialled = await self._dialled(connection, held)
                connection.dialled(key, dialled.sock)
                fds = (dialled.sock.detach(),)
                address = str(dialled.facts.get("address", ""))
                self._keyring.check_transport(filled, resource, address)
        except EffectFailed as failed:
            for fd in fds:
                os.close(fd)
            connection.flows.pop(flow.seq, None)
            await held.finish("failed", failed.sentence, {})
            raise CallError(Code.EFFECT_FAILED, failed.sentence) from None
        told = {
            "flow": flow.seq,
            "scheme": resource.scheme,
            "host": resource.host,
            "port": resource.port,
            "target": filled.target,
            "headers": filled.headers,
            "masked": scrubber is not None,
        }
        return told, fds

    async def _again(self, connection: Connection, call: calls.Again) -> _Answer:
        held = connection.flow(call.flow)
        if not held.kept or held.answered:
            raise Breach("a second connection for one request")
        held.kept = False
        dialled = await self._dialled(connection, held)
        connection.dialled(_key(held.resource), dialled.sock)
        return None, (dialled.sock.detach(),)

    async def _dialled(self, connection: Connection, held: Held) -> Dialled:
        """A socket for an admitted flow. One that can't be had is the flow's outcome."""
        try:
            dialled = await dial(self._door.policy, held.resource, resolver=self._resolver)
        except EffectRefused as no:
            connection.flows.pop(held.flow.seq, None)
            await held.abort(no.code, no.sentence, no.facts)
            raise CallError(no.code, no.sentence, {"layer": str(Layer.EFFECT)}) from None
        except EffectFailed as failed:
            connection.flows.pop(held.flow.seq, None)
            held.facts |= failed.facts
            await held.finish("failed", failed.sentence, {})
            raise CallError(Code.EFFECT_FAILED, failed.sentence) from None
        held.facts |= dialled.facts
        return dialled

    async def _head(self, connection: Connection, call: calls.Head) -> _Answer:
        held = connection.flow(call.flow)
        if held.answered or held.effect != "http.request":
            raise Breach("a second answer to one request")
        held.answered = True
        raw = [(n.encode("ascii"), v.encode("latin-1")) for n, v in call.headers]
        if why := self._keyring.unacceptable(held.resource, call.status, raw):
            raise CallError(Code.EFFECT_FAILED, why)
        headers, places = self._keyring.answer_headers(held.resource, raw)
        held.facts["status"] = call.status
        if places:
            held.facts["redacted_headers"] = places
        lines = b"".join(b"%s: %s\r\n" % header for header in headers)
        head = b"HTTP/1.1 %d\r\n%s\r\n" % (call.status, lines)
        data = await held.commit("in", call.data, last=call.last, head=head)
        return [[(n.decode("latin-1"), v.decode("latin-1")) for n, v in headers], data], ()

    async def _chunk(self, connection: Connection, call: calls.Chunk) -> _Answer:
        held = connection.flow(call.flow)
        if held.effect == "http.request" and call.way == "in" and not held.answered:
            raise Breach("a body before its head")
        data = await held.commit(call.way, call.data, last=call.last)
        return None if data is call.data else data, ()

    async def _finish(self, connection: Connection, call: calls.Finish) -> _Answer:
        held = connection.flow(call.flow)
        del connection.flows[call.flow]
        if call.status == "denied":
            await self._door.deny(
                held.effect,
                held.resource.text,
                shown(call.sentence, 512),
                code=Code.SCHEMA_INVALID,
                layer=Layer.SCHEMA,
            )
        status = "done" if call.status == "done" else "failed"
        await held.finish(status, call.sentence, call.facts)
        return None, ()

    async def _deny(self, _connection: Connection, call: calls.Deny) -> _Answer:
        raise await self._door.deny(
            call.effect,
            call.resource,
            shown(call.reason, 512),
            code=Code.SCHEMA_INVALID,
            layer=Layer.SCHEMA,
        )

    async def _malformed(self, effect: str, text: str, error: ResourceError) -> Refused:
        return await self._door.deny(
            effect, text, error.message, code=Code.SCHEMA_INVALID, layer=Layer.SCHEMA
        )

    async def _leaf(self, connection: Connection, call: calls.Leaf) -> _Answer:
        if connection.judged != call.host or self._ca is None:
            raise Breach("a certificate for another host than the connection's")
        try:
            leaf = self._ca.leaf(call.host)
        except Unvouched:
            raise Breach("a certificate for a host without rules") from None
        return leaf.key_pem + leaf.cert_pem, ()

    async def _give_anchors(self, _connection: Connection, _call: calls.Anchors) -> _Answer:
        fd = os.memfd_create("anchors", os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING)
        os.write(fd, self._anchors)
        return len(self._anchors), (fd,)

    async def _not_trusted(self, _connection: Connection, call: calls.Untrusted) -> _Answer:
        if call.url not in self._untrusted and len(self._untrusted) < MAX_CONNECTIONS:
            self._untrusted.add(call.url)
            self._door.trouble(f"a program did not accept the run's certificate for {call.url}")
        return None, ()


def _bracketed(host: str) -> str:
    return f"[{host}]" if ":" in host and not host.startswith("[") else host


def _key(resource: Resource) -> str:
    """What a kept connection is good for."""
    return f"{resource.scheme}://{_bracketed(resource.host)}:{resource.port}"


def _plain(call: calls.Open) -> list[tuple[str, str]]:
    """A websocket's answer can only be looked through when it is not compressed."""
    if not call.upgrade:
        return list(call.headers)
    return [(n, v) for n, v in call.headers if n.lower() != "sec-websocket-extensions"]


def _size(headers: list[tuple[str, str]]) -> int:
    return sum(len(name) + len(value) + 4 for name, value in headers)
