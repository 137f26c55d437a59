"""`http.request`: one HTTP/1.1 exchange with a judged address, bounded in every direction.

Rules
- No byte of a server is parsed here. The gate makes the request (`http_rules`), resolves, judges and
  dials, and hands the socket to the run's worker, which speaks TLS and HTTP/1.1; `http_exchange` says
  what it is given and what is taken from it. A worker that can't be had: the call fails, and nothing
  is dialled.
- A redirect is an answer like any other; the next hop is a request of the run. Cookies, netrc, proxies
  from the environment and decoding do not exist.
- One connection a request, closed after it. A pool would let the rest of one answer be taken for
  the beginning of the next; the price is a handshake each time.
- Bounds: response head 32 KiB and 128 lines, body `max_bytes`, conversation what was reserved,
  time `timeout_us` in all, from the name's resolution on. Beyond one of them the connection is cut and
  the call fails.
- What counts are the bytes of the HTTP/1.1 conversation itself, outside TLS: request and response
  lines, headers, chunk framing, bodies. Where the worker can no longer say how many came, the whole
  reservation is spent.
- Secrets are put in before the request is handed over, and taken out of what comes back.
"""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
import socket
from collections.abc import Awaitable, Callable, Mapping, Sequence
from typing import Any, Protocol

from authority.effects.base import Call, EffectFailed, EffectRefused, Performed
from authority.effects.dial import Dialled, dial
from authority.effects.http_dial import Resolver, resolve
from authority.effects.http_exchange import Ended, Exchange
from authority.effects.http_rules import request_bytes
from authority.effects.http_secrets import Injection, injections, known_secrets
from authority.effects.secret_forms import redact
from authority.kernel.codes import Code
from authority.kernel.resources import Resource, judge_address

GRACE_SECONDS = 5
"""How long a worker whose connection was cut has to say what it had read."""


class Lost(Exception):
    """There is no worker, or there is none any more; `reason` is for the log."""

    def __init__(self, reason: str) -> None:
        super().__init__(reason)
        self.reason = reason


class Link(Protocol):
    """A run's worker."""

    async def converse(self, exchange: Exchange, sock: socket.socket) -> Ended:
        """Have it carry the exchange on a copy of the socket. Raises `Lost`."""
        ...


LinkOf = Callable[[str], Awaitable[Link]]
"""The worker of a run, started when first needed. Raises `Lost`."""


class HttpEffect:
    """Performs `http.request`.

    `secrets` maps a credential's name to its value; `anchors` (PEM) verify servers. `timeout_us` bounds
    a whole exchange, DNS and handshake included, `connect_us` each dial. `resolver` stands in for the
    system's.
    """

    def __init__(
        self,
        link_of: LinkOf,
        *,
        secrets: Mapping[str, str],
        anchors: bytes,
        timeout_us: int = 60_000_000,
        connect_us: int = 10_000_000,
        resolver: Resolver = resolve,
    ) -> None:
        self._link_of = link_of
        self._secrets = secrets
        self._anchors = anchors
        self._timeout_us = timeout_us
        self._connect_us = connect_us
        self._resolver = resolver

    async def perform(self, call: Call) -> Performed:
        """Perform an admitted `http.request`. Raises `EffectFailed` or `EffectRefused`."""
        put_in = injections(call.policy, call.resource, self._secrets)
        exchange = Exchange(
            host=call.resource.host,
            tls=call.resource.scheme == "https",
            method=call.arguments.method,
            request=request_bytes(call, put_in),
            max_bytes=call.arguments.max_bytes,
            reserved=call.reserved.get("network_bytes", 0),
            anchors=self._anchors,
            secret=bool(put_in),
        )
        facts: dict[str, Any] = {"credentials": [one.name for one in put_in]} if put_in else {}
        if exchange.room <= 0:
            sentence = "The request is longer than what was reserved for this call."
            raise _failed(sentence, exchange, 0, facts)
        try:
            link = await self._link_of(call.run)
        except Lost as lost:
            facts["worker"] = lost.reason
            raise _failed("The request could not be made.", exchange, 0, facts) from None
        until = asyncio.get_running_loop().time() + self._timeout_us / 1e6
        try:
            async with asyncio.timeout_at(until):
                dialled = await self._dialled(call, put_in)
        except TimeoutError:
            raise _failed(self._late, exchange, 0, facts) from None
        except EffectFailed as failed:
            raise _failed(failed.sentence, exchange, 0, facts | failed.facts) from None
        facts |= dialled.facts
        ended = await self._conversation(link, exchange, dialled.sock, until, facts)
        if exchange.problem or ended.end != "done":
            sentence = exchange.problem or ended.sentence
            raise _failed(sentence, exchange, ended.received, facts) from None
        return self._answer(call, exchange, ended.received, facts)

    @property
    def _late(self) -> str:
        return f"The exchange took longer than {self._timeout_us // 1_000_000} s."

    async def _dialled(self, call: Call, put_in: tuple[Injection, ...]) -> Dialled:
        return await dial(
            call.policy,
            call.resource,
            resolver=self._resolver,
            connect_us=self._connect_us,
            before=lambda addresses: _check_transport(call.resource, addresses, put_in),
        )

    async def _conversation(
        self,
        link: Link,
        exchange: Exchange,
        sock: socket.socket,
        until: float,
        facts: Mapping[str, Any],
    ) -> Ended:
        """What the worker says in the end, in time. The connection is cut in any case."""
        loop = asyncio.get_running_loop()
        talking = asyncio.ensure_future(link.converse(exchange, sock))
        try:
            await asyncio.wait({talking}, timeout=max(0.0, until - loop.time()))
            if not talking.done():
                exchange.decline(self._late)
                _cut(sock)
                await asyncio.wait({talking}, timeout=GRACE_SECONDS)
            if talking.done():
                return talking.result()
        except Lost as lost:
            sentence = exchange.problem or "The connection broke."
            spent = {"requests": 1}  # and all that was reserved: nobody can say what came
            more = {"bytes_out": exchange.sent, "worker": lost.reason}
            raise EffectFailed(sentence, spent=spent, facts={**facts, **more}) from None
        finally:
            talking.cancel()
            del talking  # else a failure that it holds would hold this frame, and all that came
            _cut(sock)
            sock.close()
        more = {"bytes_out": exchange.sent, "worker": "did not end"}
        raise EffectFailed(self._late, spent={"requests": 1}, facts={**facts, **more})

    def _answer(
        self, call: Call, exchange: Exchange, received: int, facts: Mapping[str, Any]
    ) -> Performed:
        known = known_secrets(call.policy, self._secrets)
        body, places = redact(bytes(exchange.body), known)
        headers = []
        for raw_name, raw_value in exchange.headers:
            name, in_name = redact(raw_name.encode("latin-1"), known)
            value, in_value = redact(raw_value.encode("latin-1"), known)
            places += in_name + in_value
            if not (exchange.secret and raw_name.lower() in ("set-cookie", "set-cookie2")):
                headers.append([name.decode("latin-1"), value.decode("latin-1")])
        found = {
            **facts,
            **_counted(exchange, received),
            "status": exchange.status,
            "size": len(body),
            "sha256": hashlib.sha256(body).hexdigest(),
        }
        if places:
            found["redacted"] = places
        answer = {
            "status": exchange.status,
            "headers": headers,
            "body": body,
            "url": call.resource.text,
        }
        return Performed(answer, spent=_spent(exchange, received), facts=found)


def _cut(sock: socket.socket) -> None:
    """End the connection for everybody who has it."""
    with contextlib.suppress(OSError):
        sock.shutdown(socket.SHUT_RDWR)


def _check_transport(
    resource: Resource, addresses: Sequence[str], put_in: tuple[Injection, ...]
) -> None:
    """A secret leaves over TLS, or to a loopback address; none is known behind a company's proxy."""
    if not put_in or resource.scheme == "https":
        return
    if not addresses or any(judge_address(address) != "loopback" for address in addresses):
        raise EffectRefused(
            Code.POLICY_DENY, f"The credential {put_in[0].name} is only sent over https."
        )


def _failed(
    sentence: str, exchange: Exchange, received: int, facts: Mapping[str, Any]
) -> EffectFailed:
    counted = _counted(exchange, received)
    return EffectFailed(sentence, spent=_spent(exchange, received), facts={**facts, **counted})


def _spent(exchange: Exchange, received: int) -> dict[str, int]:
    return {"requests": 1, "network_bytes": exchange.sent + received}


def _counted(exchange: Exchange, received: int) -> dict[str, int]:
    return {"bytes_in": received, "bytes_out": exchange.sent}
