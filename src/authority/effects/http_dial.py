"""Which addresses a name leads to, and which of them may be dialled.

Rules
- A name is resolved once a request, by the effect. Every address that it has is judged; one that
  may not be reached refuses the whole request, because an answer that mixes public and private
  addresses is how rebinding works. Then the addresses are dialled as numbers, in the order given,
  at most `MAX_DIALLED`; no resolver is asked again, and the peer's address is compared.
- What is not public is refused unless the policy names host and port as private. A *name* that is
  named so may lead to private and loopback addresses only; link-local, metadata, embedded and
  reserved ones must be named as addresses. Multicast and what is no address are never dialled.
"""

from __future__ import annotations

import asyncio
import socket
from collections.abc import Awaitable, Callable, Sequence

from authority.effects.base import EffectRefused
from authority.kernel.codes import Code
from authority.kernel.policy import Policy
from authority.kernel.resources import Resource, is_address, judge_address

MAX_ADDRESSES = 32
MAX_DIALLED = 4

Resolver = Callable[[str, int], Awaitable[Sequence[str]]]
"""Gives the addresses of a host, as text. Raises `OSError` when there are none."""


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
