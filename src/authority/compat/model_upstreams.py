"""Where a model is asked: the upstream of the policy, its address, its key.

Rules
- The host and port of an upstream stand in the policy, so a private or loopback address is as if
  `network.private` named it. `network.deny` holds for it too. Metadata services must be named as
  addresses, as everywhere.
- The name is resolved once for each call, every address judged, and one of those dialled as a number.
- A key leaves over TLS only, or to a loopback address. It is 8 to 8,192 printable characters.
- What a failed dial tells the program is a sentence of ours.
"""

from __future__ import annotations

import asyncio
import errno
import re
import socket
from dataclasses import dataclass
from typing import Final

from authority.dialects.routes import SUFFIXES
from authority.effects.base import EffectRefused
from authority.effects.descriptors import kept
from authority.effects.http_dial import MAX_DIALLED, Resolver, judged_addresses
from authority.kernel.policy import Policy
from authority.kernel.policy_sections import Upstream
from authority.kernel.resources import Resource, judge_address, parse_text

CONNECT_SECONDS: Final = 10.0
_USABLE: Final = re.compile(r"[\x21-\x7e](?:[\x20-\x7e]{6,8190})[\x21-\x7e]\Z")


class Unreachable(Exception):
    """No connection to an upstream: a sentence for the program."""


@dataclass(frozen=True, slots=True)
class Target:
    """One upstream, ready to be dialled; `key` may be empty."""

    name: str
    upstream: Upstream
    resource: Resource
    key: str

    @property
    def tls(self) -> bool:
        return self.resource.scheme == "https"

    def path(self, api: str) -> str:
        """The request's target for a call of `api`."""
        base = "/".join(segment for segment in self.resource.segments if segment)
        return f"/{base}{SUFFIXES[api]}" if base else SUFFIXES[api]

    @property
    def headers(self) -> list[tuple[str, str]]:
        """The headers that hold the key."""
        if not self.key:
            return []
        if self.upstream.api == "anthropic":
            return [("x-api-key", self.key)]
        return [("authorization", f"Bearer {self.key}")]


def target(policy: Policy, name: str, upstream: Upstream, key: str | None) -> Target:
    """What to dial. Raises `ValueError`, with a reason for the operator, where that can't be."""
    resource = parse_text(upstream.url)
    for layer in policy.layers:
        if rule := layer.net_deny.find(resource, "POST"):
            raise ValueError(f"{rule} forbids the upstream {name}")
    if upstream.from_env and key is None:
        raise ValueError(f"the upstream {name} wants the variable {upstream.from_env}, not set")
    if key and not _USABLE.match(key):
        raise ValueError(f"the key of the upstream {name} is not 8 to 8,192 printable characters")
    return Target(name, upstream, resource, key or "")


async def dial(resolver: Resolver, policy: Policy, where: Target) -> socket.socket:
    """A connected socket to a judged address. Raises `Unreachable`."""
    resource = where.resource
    try:
        addresses = await judged_addresses(resolver, policy, resource, named=True)
    except EffectRefused as no:
        raise Unreachable(no.sentence) from None
    except (OSError, UnicodeError):
        raise Unreachable("The name of the model's server could not be resolved.") from None
    if where.key and not where.tls and any(judge_address(a) != "loopback" for a in addresses):
        raise Unreachable("The model's key is only sent over https.")
    for address in addresses[:MAX_DIALLED]:
        family = socket.AF_INET6 if ":" in address else socket.AF_INET
        sock = socket.socket(family, socket.SOCK_STREAM)
        sock.setblocking(False)
        try:
            if kept(sock.fileno()):
                raise OSError(errno.ENFILE, "the gate has too many open files")
            async with asyncio.timeout(CONNECT_SECONDS):
                await asyncio.get_running_loop().sock_connect(sock, (address, resource.port))
            sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            return sock
        except (OSError, TimeoutError):
            sock.close()
        except BaseException:
            sock.close()
            raise
    raise Unreachable("The model's server could not be reached.")
