"""Dialling for tunnels and the proxy: a connected socket to a judged address, or through a company
proxy that the policy names.

Rules
- Names are resolved here, once, and every address is judged (`http_dial.judged_addresses`); what is
  dialled is the number, and the peer's address is compared afterwards. So what a name leads to later
  changes nothing.
- With `network.proxy` the company's proxy is asked with `CONNECT`. Then *it* resolves the name and
  nobody here sees the address: the facts say so (`resolved_by`). Two things stay: an address that
  stands in the request itself is judged, and a host that the policy names as private is dialled
  directly, since it is not the proxy's to reach.
- The company's proxy may be at any address that can be dialled at all: the policy names it.
- Its answer is read to the end of its head, at most `MAX_HEAD` bytes, one at a time towards the end,
  so that no byte of the tunnel is read here. Nothing but a status of 200 to 299 is success, and
  nothing that it says goes into a message.
- A failure's sentence is ours; addresses go into the facts, for the log, never to the agent.
"""

from __future__ import annotations

import asyncio
import ipaddress
import re
import socket
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from authority.effects.base import EffectFailed, EffectRefused
from authority.effects.http_dial import MAX_DIALLED, Resolver, judged_addresses, resolve
from authority.kernel.addresses import host_text, is_address, judge_address, split_host_port
from authority.kernel.codes import Code
from authority.kernel.policy import Policy
from authority.kernel.resources import Resource

CONNECT_US = 10_000_000
MAX_HEAD = 8192
_STATUS = re.compile(rb"HTTP/1\.[01] (\d{3})(?: [^\r\n]*)?\r\n")


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
) -> Dialled:
    """Connect to the host and port of an admitted resource.

    `connect_us` bounds each connection, the answer of a company proxy included. Raises
    `EffectRefused` for an address that may not be reached, `EffectFailed` when nothing answers.
    """
    if policy.network.proxy and not policy.names_private(resource.host, resource.port):
        return await _through(policy, resource, resolver, connect_us)
    try:
        addresses = await judged_addresses(resolver, policy, resource)
    except (OSError, UnicodeError):
        raise EffectFailed("The host's name could not be resolved.") from None
    sock, address = await _first(addresses, resource.port, connect_us)
    return Dialled(sock, {"address": address})


async def _through(
    policy: Policy, resource: Resource, resolver: Resolver, connect_us: int
) -> Dialled:
    """A tunnel of the company's proxy."""
    why = judge_address(resource.host) if is_address(resource.host) else None
    if why is not None:
        raise EffectRefused(
            Code.POLICY_DENY,
            "The host leads to an address that this run may not reach.",
            facts={"address": resource.host[:64], "why": why},
        )
    host, port = split_host_port(policy.network.proxy.removeprefix("http://"))
    if port is None:
        raise EffectFailed("The company's proxy has no port.")
    try:
        found = [host] if is_address(host) else list(await resolver(host, port))
    except (OSError, UnicodeError):
        raise EffectFailed("The name of the company's proxy could not be resolved.") from None
    sock, address = await _first(found, port, connect_us, what="The company's proxy")
    facts: dict[str, Any] = {"proxy": policy.network.proxy, "address": address}
    facts["resolved_by"] = "proxy"
    target = f"{host_text(resource.host)}:{resource.port}"
    try:
        async with asyncio.timeout(connect_us / 1e6):
            loop = asyncio.get_running_loop()
            asked = f"CONNECT {target} HTTP/1.1\r\nHost: {target}\r\n\r\n"
            await loop.sock_sendall(sock, asked.encode("ascii"))
            head = await _head(sock)
        status = _STATUS.match(head)
        if status is None:
            raise EffectFailed("The company's proxy did not answer with HTTP/1.1.", facts=facts)
        if not status[1].startswith(b"2"):
            facts["status"] = int(status[1])
            raise EffectFailed("The company's proxy does not open this connection.", facts=facts)
    except (OSError, TimeoutError):
        sock.close()
        raise EffectFailed("The company's proxy broke off.", facts=facts) from None
    except BaseException:
        sock.close()
        raise
    return Dialled(sock, facts)


async def _head(sock: socket.socket) -> bytes:
    """Up to the empty line and not one byte further. Raises `OSError`."""
    loop = asyncio.get_running_loop()
    head = b""
    while not head.endswith(b"\r\n\r\n"):
        # As many bytes as are still missing from the shortest possible end.
        missing = next(n for n in range(1, 5) if head.endswith(b"\r\n\r\n"[: 4 - n]))
        piece = await loop.sock_recv(sock, missing)
        if not piece:
            raise ConnectionError("closed within the head")
        head += piece
        if len(head) > MAX_HEAD:
            raise ConnectionError("a head without end")
    return head


async def _first(
    addresses: Sequence[str], port: int, connect_us: int, what: str = "The server"
) -> tuple[socket.socket, str]:
    """The first of the addresses that answers."""
    for address in addresses[:MAX_DIALLED]:
        sock = await _connected(address, port, connect_us)
        if sock is not None:
            return sock, address
    raise EffectFailed(f"{what} could not be reached.")


async def _connected(address: str, port: int, connect_us: int) -> socket.socket | None:
    number = ipaddress.ip_address(address)
    family = socket.AF_INET if number.version == 4 else socket.AF_INET6
    sock = socket.socket(family, socket.SOCK_STREAM | socket.SOCK_NONBLOCK | socket.SOCK_CLOEXEC)
    try:
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
