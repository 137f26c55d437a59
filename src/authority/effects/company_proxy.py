"""A company's proxy, named in the policy: asked with `CONNECT`, its answer read and nothing behind it.

Rules
- The proxy resolves the name that it is asked for, and nobody here sees the address: facts say so
  (`resolved_by`). Two things stay: an address that stands in the request itself is judged, and a host
  that the policy names as private is dialled directly, since it is not the proxy's to reach.
- The proxy itself may be at any address: the policy names it. Its name is resolved here.
- Its answer is read to the end of its head, at most `MAX_HEAD` bytes, one at a time towards the end, so
  that no byte of the tunnel is read here. Nothing but a status of 200 to 299 is success, and nothing
  that it says goes into a message. It is not logged in to: a status of 407 is a failure.
"""

from __future__ import annotations

import re
from collections.abc import Awaitable, Callable
from typing import Any

from authority.effects.base import EffectFailed, EffectRefused
from authority.effects.http_dial import Resolver
from authority.kernel.addresses import host_text, is_address, judge_address, split_host_port
from authority.kernel.codes import Code
from authority.kernel.policy import Policy
from authority.kernel.resources import Resource

MAX_HEAD = 8192
_STATUS = re.compile(rb"HTTP/1\.[01] (\d{3})(?: [^\r\n]*)?\r\n")


def goes_through(policy: Policy, resource: Resource) -> bool:
    """Whether a host is reached by the company's proxy."""
    return bool(policy.network.proxy) and not policy.names_private(resource.host, resource.port)


async def proxy_addresses(
    policy: Policy, resource: Resource, resolver: Resolver
) -> tuple[list[str], int]:
    """The addresses and the port of the proxy. Raises `EffectRefused` for a resource that may not be
    reached by it either, `EffectFailed` when the proxy's name can't be resolved."""
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
        found = []
    if not found:
        raise EffectFailed("The name of the company's proxy could not be resolved.")
    return found, port


def proxy_facts(policy: Policy, address: str) -> dict[str, Any]:
    """What the log says of a connection that the proxy made. The server's address is not known: what
    asks for one (`address`) finds none."""
    return {"proxy": policy.network.proxy, "proxy_address": address, "resolved_by": "proxy"}


async def open_tunnel(
    resource: Resource,
    write: Callable[[bytes], Awaitable[None]],
    read: Callable[[int], Awaitable[bytes]],
) -> None:
    """Ask for a tunnel on a connection to the proxy. Raises `EffectFailed`, `OSError`."""
    target = f"{host_text(resource.host)}:{resource.port}"
    await write(f"CONNECT {target} HTTP/1.1\r\nHost: {target}\r\n\r\n".encode("ascii"))
    head = b""
    while not head.endswith(b"\r\n\r\n"):
        # As many bytes as are still missing from the shortest possible end.
        missing = next(n for n in range(1, 5) if head.endswith(b"\r\n\r\n"[: 4 - n]))
        piece = await read(missing)
        if not piece:
            raise ConnectionError("closed within the head")
        head += piece
        if len(head) > MAX_HEAD:
            raise ConnectionError("a head without end")
    status = _STATUS.match(head)
    if status is None:
        raise EffectFailed("The company's proxy did not answer with HTTP/1.1.")
    if not status[1].startswith(b"2"):
        raise EffectFailed(
            "The company's proxy does not open this connection.", facts={"status": int(status[1])}
        )
