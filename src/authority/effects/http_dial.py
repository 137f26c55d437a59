"""Dialling: the address that was judged is the one that is connected, and every byte is counted.

Rules
- A name is resolved once a request, by the effect. Every address that it has is judged; one that
  may not be reached refuses the whole request, because an answer that mixes public and private
  addresses is how rebinding works. Then the addresses are dialled as numbers, in the order given,
  at most `MAX_DIALLED`; no resolver is asked again, and the peer's address is compared.
- What is not public is refused unless the policy names host and port as private. A *name* that is
  named so may lead to private and loopback addresses only; link-local, metadata, embedded and
  reserved ones must be named as addresses. Multicast and what is no address are never dialled.
- TLS speaks to the name: SNI and certificate check use the host of the URL, never the address.
- `Meter` counts the bytes of the HTTP/1.1 conversation itself, after decryption and before
  encryption: request and response lines, headers, chunk framing, bodies. TCP, the TLS handshake
  and DNS are not counted. It stops reading at what was reserved, and at `HEAD_LIMIT` bytes while
  the final response head has not ended (interim 1xx responses included).
"""

from __future__ import annotations

import asyncio
import ipaddress
import socket
from collections.abc import Awaitable, Callable, Iterable, Sequence
from dataclasses import dataclass
from ssl import SSLContext
from typing import Any

import httpcore

from authority.effects.base import EffectRefused
from authority.kernel.codes import Code
from authority.kernel.policy import Policy
from authority.kernel.resources import Resource, is_address, judge_address

HEAD_LIMIT = 32 * 1024
MAX_ADDRESSES = 32
MAX_DIALLED = 4

Resolver = Callable[[str, int], Awaitable[Sequence[str]]]
"""Gives the addresses of a host, as text. Raises `OSError` when there are none."""


class TooMuch(Exception):
    """The peer sent more than was reserved, or a head without end."""


async def resolve(host: str, port: int) -> Sequence[str]:
    """The system's resolver, in a thread of the event loop."""
    loop = asyncio.get_running_loop()
    found = await loop.getaddrinfo(host, port, type=socket.SOCK_STREAM, proto=socket.IPPROTO_TCP)
    return [str(entry[4][0]) for entry in found]


async def judged_addresses(
    resolver: Resolver, policy: Policy, resource: Resource, *, named: bool = False
) -> list[str]:
    """The addresses to dial. Raises `EffectRefused` for one that may not be, `OSError`.

    `named`: the policy itself gives this host and port, as if `private` named it.
    """
    literal = is_address(resource.host)
    if literal:
        found: Sequence[str] = [resource.host]
    else:
        found = list(dict.fromkeys(await resolver(resource.host, resource.port)))
    if not found:
        raise OSError("no address")
    private = named or policy.names_private(resource.host, resource.port)
    for address in found[:MAX_ADDRESSES]:
        why = judge_address(address)
        if why is None or (private and _nameable(why, literal=literal)):
            continue
        raise EffectRefused(
            Code.POLICY_DENY,
            "The host leads to an address that this run may not reach.",
            facts={"address": address[:64], "why": why},
        )
    return list(found[:MAX_ADDRESSES])


def _nameable(why: str, *, literal: bool) -> bool:
    if literal:
        return not why.startswith(("multicast", "not an address"))
    return why.startswith(("loopback", "private"))


@dataclass(slots=True)
class Meter:
    """Bytes used by one exchange, and the most that may be."""

    limit: int
    bytes_in: int = 0
    bytes_out: int = 0
    address: str = ""
    proxy: str = ""
    head_done: bool = False

    @property
    def total(self) -> int:
        return self.bytes_in + self.bytes_out

    def room(self) -> int:
        """How many bytes may be read now. Raises `TooMuch` when none."""
        room = self.limit - self.total
        if not self.head_done:
            room = min(room, HEAD_LIMIT - self.bytes_in)
        if room <= 0:
            raise TooMuch
        return room


Opening = Callable[[Callable[[bytes], Awaitable[None]], Callable[[int], Awaitable[bytes]]], Any]
"""What is done on a new connection before it is used (asking a proxy): it gets write and read."""


class Dialler(httpcore.AsyncNetworkBackend):
    """A network that leads to the judged addresses only, whatever host it is asked for.

    With `via` the addresses are those of a proxy, at that port, and `opening` asks it.
    """

    def __init__(
        self,
        addresses: Sequence[str],
        port: int,
        meter: Meter,
        connect_us: int,
        *,
        via: int = 0,
        opening: Opening | None = None,
    ) -> None:
        self._addresses = addresses
        self._port = port
        self._via = via or port
        self._opening = opening
        self._meter = meter
        self._connect = connect_us / 1e6
        self._inner = httpcore.AnyIOBackend()

    async def connect_tcp(
        self,
        host: str,
        port: int,
        timeout: float | None = None,
        local_address: str | None = None,
        socket_options: Iterable[Any] | None = None,
    ) -> httpcore.AsyncNetworkStream:
        """Connect to the first judged address that answers."""
        if port != self._port:
            raise httpcore.ConnectError("another port than the judged one")
        failed: Exception = httpcore.ConnectError("no address")
        for address in self._addresses[:MAX_DIALLED]:
            self._meter.address = address
            try:
                stream = await self._inner.connect_tcp(address, self._via, timeout=self._connect)
            except (httpcore.ConnectError, httpcore.ConnectTimeout) as error:
                failed = error
                continue
            peer = stream.get_extra_info("server_addr")
            if not peer or not _same(str(peer[0]), address) or peer[1] != self._via:
                await stream.aclose()
                raise httpcore.ConnectError("another peer than the judged one")
            if self._opening is not None:
                await self._open(stream)
            return _Metered(stream, self._meter)
        raise failed

    async def _open(self, stream: httpcore.AsyncNetworkStream) -> None:
        assert self._opening is not None
        try:
            await self._opening(
                lambda data: stream.write(data, self._connect),
                lambda size: stream.read(size, self._connect),
            )
        except OSError as error:
            await stream.aclose()
            raise httpcore.ConnectError("the proxy broke off") from error
        except BaseException:
            await stream.aclose()
            raise

    async def connect_unix_socket(
        self,
        path: str,
        timeout: float | None = None,
        socket_options: Iterable[Any] | None = None,
    ) -> httpcore.AsyncNetworkStream:
        """Never: an effect has no way to a unix socket."""
        raise httpcore.ConnectError("unix sockets are not dialled")

    async def sleep(self, seconds: float) -> None:
        """As httpcore asks for it between retries; we never retry."""
        await asyncio.sleep(seconds)


def _same(one: str, other: str) -> bool:
    return ipaddress.ip_address(one) == ipaddress.ip_address(other)


class _Metered(httpcore.AsyncNetworkStream):
    """A stream that counts. Made anew around the TLS stream, so that it counts plain bytes."""

    def __init__(self, inner: httpcore.AsyncNetworkStream, meter: Meter) -> None:
        self._inner = inner
        self._meter = meter

    async def read(self, max_bytes: int, timeout: float | None = None) -> bytes:
        data = await self._inner.read(min(max_bytes, self._meter.room()), timeout)
        self._meter.bytes_in += len(data)
        return data

    async def write(self, buffer: bytes, timeout: float | None = None) -> None:
        if len(buffer) > self._meter.limit - self._meter.total:
            raise TooMuch
        # Counted first: what was handed over may have left, whatever happens next.
        self._meter.bytes_out += len(buffer)
        await self._inner.write(buffer, timeout)

    async def aclose(self) -> None:
        await self._inner.aclose()

    async def start_tls(
        self,
        ssl_context: SSLContext,
        server_hostname: str | None = None,
        timeout: float | None = None,
    ) -> httpcore.AsyncNetworkStream:
        inner = await self._inner.start_tls(ssl_context, server_hostname, timeout)
        return _Metered(inner, self._meter)

    def get_extra_info(self, info: str) -> Any:
        return self._inner.get_extra_info(info)
