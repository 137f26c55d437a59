"""What the worker asks about a connection of a run's proxy, and what it is answered.

Rules
- A place with an http rule is judged request by request, also where a tunnel to it would be allowed.
- A head that does not fit into what is reserved for one is refused: nothing spends more than that.
- A websocket is no read: it is judged under the method `WEBSOCKET`, whatever it is asked with.
- What is judged and logged holds placeholders; the secret is put in afterwards, for its hosts alone.
- What no honest worker asks is a `Breach`, and not answered: the proxy ends the worker for it.
"""

from __future__ import annotations

import os
from typing import Any

from authority.compat import proxy_calls as calls
from authority.compat.base import Door, Refused
from authority.compat.ca import RunCA, Unvouched
from authority.compat.credentials import Keyring
from authority.compat.proxy_flows import Breach, Connection, Held
from authority.effects.base import EffectFailed, EffectRefused
from authority.effects.dial import Dialled, dial
from authority.effects.http_dial import Resolver, resolve
from authority.kernel.addresses import ResourceError, shown
from authority.kernel.codes import Code, Layer
from authority.kernel.requests import HTTP_OVERHEAD, Connect, HttpRequest
from authority.kernel.resources import Resource, parse
from authority.protocol.packets import CallError, Fds

MAX_UNTRUSTED = 256
"""Addresses of which a person is told that a program took no certificate of the run's."""

Answer = tuple[Any, Fds]


class Desk:
    """One run's. `anchors`: certificates by which servers are verified, as PEM."""

    def __init__(
        self,
        door: Door,
        keyring: Keyring,
        ca: RunCA | None,
        anchors: bytes,
        *,
        resolver: Resolver = resolve,
    ) -> None:
        self._door = door
        self._keyring = keyring
        self._ca = ca
        self._anchors = anchors
        self._resolver = resolver
        self._untrusted: set[str] = set()

    async def target(self, connection: Connection, call: calls.Target) -> Answer:
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

    async def open(self, connection: Connection, call: calls.Open) -> Answer:
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

    async def again(self, connection: Connection, call: calls.Again) -> Answer:
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

    async def head(self, connection: Connection, call: calls.Head) -> Answer:
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

    async def chunk(self, connection: Connection, call: calls.Chunk) -> Answer:
        held = connection.flow(call.flow)
        if held.effect == "http.request" and call.way == "in" and not held.answered:
            raise Breach("a body before its head")
        data = await held.commit(call.way, call.data, last=call.last)
        return None if data is call.data else data, ()

    async def finish(self, connection: Connection, call: calls.Finish) -> Answer:
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

    async def deny(self, _connection: Connection, call: calls.Deny) -> Answer:
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

    async def leaf(self, connection: Connection, call: calls.Leaf) -> Answer:
        if connection.judged != call.host or self._ca is None:
            raise Breach("a certificate for another host than the connection's")
        try:
            leaf = self._ca.leaf(call.host)
        except Unvouched:
            raise Breach("a certificate for a host without rules") from None
        return leaf.key_pem + leaf.cert_pem, ()

    async def anchors(self, _connection: Connection, _call: calls.Anchors) -> Answer:
        fd = os.memfd_create("anchors", os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING)
        os.write(fd, self._anchors)
        return len(self._anchors), (fd,)

    async def untrusted(self, _connection: Connection, call: calls.Untrusted) -> Answer:
        if call.url not in self._untrusted and len(self._untrusted) < MAX_UNTRUSTED:
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
