"""Dialling for tunnels and the proxy: a connected socket to a judged address, or through a company
proxy that the policy names.

Rules
- Names are resolved here, once, and every address is judged (`http_dial.judged_addresses`); what is
  dialled is the number, and the peer's address is compared afterwards. So what a name leads to later
  changes nothing.
- With `network.proxy` the company's proxy makes the connection (`company_proxy`).
- A failure's sentence is ours; addresses go into the facts, for the log, never to the agent.
"""

from __future__ import annotations

import asyncio
import errno
import ipaddress
import socket
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

from authority.effects.base import EffectFailed
from authority.effects.company_proxy import (
    goes_through,
    open_tunnel,
    proxy_addresses,
    proxy_facts,
)
from authority.effects.descriptors import kept
from authority.effects.http_dial import MAX_DIALLED, Resolver, judged_addresses, resolve
from authority.kernel.policy import Policy
from authority.kernel.resources import Resource

CONNECT_US = 10_000_000


@dataclass(slots=True)
class Dialled:
    """A connected, non-blocking socket, and what the log says of it."""

    sock: socket.socket
    facts: dict[str, Any] = field(default_factory=dict)


async def dial(
    policy: Policy,
    resource: Resource,
    *,
    resolver: Resolver = resolve,
    connect_us: int = CONNECT_US,
    before: Callable[[Sequence[str]], None] = lambda _: None,
) -> Dialled:
    """Connect to the host and port of an admitted resource.

    `connect_us` bounds each connection, the answer of a company proxy included. `before` is told the
    addresses that may be the peer's before any is dialled (none are known behind a company proxy), and
    may raise. Raises `EffectRefused` for an address that may not be reached, `EffectFailed` when
    nothing answers.
    """
    if goes_through(policy, resource):
        before(())
        return await _through(policy, resource, resolver, connect_us)
    try:
        addresses = await judged_addresses(resolver, policy, resource)
    except (OSError, UnicodeError):
        raise EffectFailed("The host's name could not be resolved.") from None
    before(addresses)
    sock, address = await _first(addresses, resource.port, connect_us)
    if sock is None:
        raise EffectFailed("The server could not be reached.", facts={"address": address})
    return Dialled(sock, {"address": address})


async def _through(
    policy: Policy, resource: Resource, resolver: Resolver, connect_us: int
) -> Dialled:
    """A tunnel of the company's proxy."""
    found, port = await proxy_addresses(policy, resource, resolver)
    sock, address = await _first(found, port, connect_us)
    facts = proxy_facts(policy, address)
    if sock is None:
        raise EffectFailed("The company's proxy could not be reached.", facts=facts)
    loop = asyncio.get_running_loop()
    try:
        async with asyncio.timeout(connect_us / 1e6):
            await open_tunnel(
                resource,
                lambda data: loop.sock_sendall(sock, data),
                lambda size: loop.sock_recv(sock, size),
            )
    except (OSError, TimeoutError):
        sock.close()
        raise EffectFailed("The company's proxy broke off.", facts=facts) from None
    except EffectFailed as failed:
        sock.close()
        raise EffectFailed(failed.sentence, facts=facts | failed.facts) from None
    except BaseException:
        sock.close()
        raise
    return Dialled(sock, facts)


async def _first(
    addresses: Sequence[str], port: int, connect_us: int
) -> tuple[socket.socket | None, str]:
    """A connection to the first of the addresses that answers; the last that was tried."""
    address = ""
    for address in addresses[:MAX_DIALLED]:
        sock = await _connected(address, port, connect_us)
        if sock is not None:
            return sock, address
    return None, address


async def _connected(address: str, port: int, connect_us: int) -> socket.socket | None:
    number = ipaddress.ip_address(address)
    family = socket.AF_INET if number.version == 4 else socket.AF_INET6
    sock = socket.socket(family, socket.SOCK_STREAM | socket.SOCK_NONBLOCK | socket.SOCK_CLOEXEC)
    try:
        if kept(sock.fileno()):
            raise OSError(errno.ENFILE, "the gate has too many open files")
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        async with asyncio.timeout(connect_us / 1e6):
            await asyncio.get_running_loop().sock_connect(sock, (address, port))
        peer = sock.getpeername()
    except (OSError, TimeoutError):
        sock.close()
        return None
    except BaseException:
        sock.close()
        raise
    if ipaddress.ip_address(peer[0]) != number or peer[1] != port:
        sock.close()
        return None
    return sock
