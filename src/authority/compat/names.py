"""The resolver of a run: names that its policy could allow, each at an address of its own.

A program that ignores proxy variables asks for a name, gets an address of the run's own loopback, and
connects there. The connection arrives at the gate with that address and so with the name.

Rules
- Nothing is looked up anywhere for an answer. What is not in the policy does not exist, so a name that
  carries a secret in a label goes no further than this module and the log.
- Only names count that some rule of `network.allow` or `network.http` names, exactly or by `*.`, and
  that no denial covers. The address is from 127.64.0.0/10, in order of asking, the same for the whole
  run. Before an answer with an address goes out, the gate has been told to listen at that address on
  the ports that the policy has for the name.
- Bounds: `MAX_NAMES` names and `MAX_LISTENERS` listeners a run; more is a server failure and a line
  for the operator. Queries are answered one by one, so a flood waits in its own socket.
- A question of type A gets the address, AAAA and every other type an empty answer, so that nothing
  (a service record, a key for an encrypted hello) leads around the address. An address of ours has
  its name. `localhost` is 127.0.0.1. Class IN alone.
- A name that is not there is a name error, and a denial in the log the first time; repeats are
  tallied. At most `MAX_REMEMBERED` are remembered, then each is a denial again.
- A message that is no query is answered with its error, counted, and told to the operator once.
"""

from __future__ import annotations

from collections.abc import Callable
from ipaddress import IPv4Address
from typing import Final, NamedTuple

from authority.compat import dns
from authority.compat.base import Door, Stream
from authority.kernel.addresses import ResourceError, shown
from authority.kernel.policy import Policy
from authority.kernel.resources import Resource, parse

EFFECT: Final = "net.resolve"
FIRST: Final = int(IPv4Address("127.64.0.1"))
MAX_NAMES: Final = 1024
MAX_LISTENERS: Final = 2048
MAX_REMEMBERED: Final = 1000
TTL: Final = 60
_LOCALHOST: Final = bytes((127, 0, 0, 1))
_PREFIX: Final = 6


class Place(NamedTuple):
    """What a program meant by an address of ours."""

    host: str
    port: int


class Full(Exception):
    """No more names, or no more listeners, in this run."""


class Book:
    """Which name has which address. `listen` is called for each address and port, once."""

    def __init__(
        self,
        policy: Policy,
        listen: Callable[[int, int], None],
    ) -> None:
        self._reach = policy.reach
        self._listen = listen
        self._addresses: dict[str, int] = {}
        self._hosts: list[str] = []
        self._listeners = 0

    def address(self, host: str) -> int:
        """The address of a (canonical) name that the policy could allow. Raises `Full`."""
        found = self._addresses.get(host)
        if found is not None:
            return found
        ports = self._reach.ports(host)
        if len(self._hosts) >= MAX_NAMES or self._listeners + len(ports) > MAX_LISTENERS:
            raise Full
        address = FIRST + len(self._hosts)
        self._listeners += len(ports)
        self._hosts.append(host)
        self._addresses[host] = address
        for port in ports:
            self._listen(address, port)
        return address

    def host(self, address: int) -> str | None:
        """The name that an address was given to."""
        index = address - FIRST
        return self._hosts[index] if 0 <= index < len(self._hosts) else None


class Names:
    """The resolver of one run."""

    def __init__(self, door: Door) -> None:
        self._door = door
        self._book = Book(door.policy, door.listen)
        self._refused: set[str] = set()
        self._told: set[str] = set()

    def place(self, detail: bytes) -> Place | None:
        """What a connection to one of our addresses meant: `detail` of a DIRECT stream."""
        if len(detail) != 6:
            return None
        host = self._book.host(int.from_bytes(detail[:4], "big"))
        return None if host is None else Place(host, int.from_bytes(detail[4:], "big"))

    async def serve(self, stream: Stream) -> None:
        """Answer until the stream ends."""
        while message := await stream.read():
            answer = await self.answer(message[_PREFIX:])
            if answer:
                await stream.write(message[:_PREFIX] + answer)

    async def answer(self, message: bytes) -> bytes:
        """The answer to one message; empty for silence."""
        try:
            query = dns.parse(message)
        except dns.Malformed as error:
            self._once(f"a message to the resolver is no query: {error.reason}")
            return error.answer
        if query.name is not None and _is_local(query.name):
            return dns.answer(query, [_LOCALHOST] if query.type == dns.A else [], ttl=TTL)
        if query.name is not None and (ours := self._reverse(query.name)):
            return (
                dns.pointer(query, ours, ttl=TTL)
                if query.type in (dns.PTR, dns.ANY)
                else dns.answer(query)
            )
        resource = _resource(query.name)
        if resource is None or not await self._there(resource):
            if resource is None:
                await self._refuse(_raw(query), "it is no name of a host")
            return dns.failure(query, dns.NXDOMAIN)
        try:
            address = self._book.address(resource.host)
        except Full:
            self._once(f"the run has asked for more names than it can have ({MAX_NAMES})")
            return dns.failure(query, dns.SERVFAIL)
        if query.type not in (dns.A, dns.ANY):
            return dns.answer(query)
        return dns.answer(query, [address.to_bytes(4, "big")], ttl=TTL)

    async def _there(self, resource: Resource) -> bool:
        """Whether a name exists for this run; a new one that does not is recorded."""
        if resource.text in self._refused:
            self._door.glance(EFFECT, resource)
            return False
        judgement = self._door.policy.judge(EFFECT, resource)
        if judgement.allowed:
            return self._door.glance(EFFECT, resource).allowed
        await self._refuse(resource.text, judgement.reason)
        return False

    async def _refuse(self, text: str, reason: str) -> None:
        if text in self._refused:
            return
        if len(self._refused) < MAX_REMEMBERED:
            self._refused.add(text)
        await self._door.deny(EFFECT, text, reason)

    def _reverse(self, name: str) -> str | None:
        """The name of an address of ours that is asked for backwards."""
        labels = name.removesuffix(".in-addr.arpa").split(".")
        if not name.endswith(".in-addr.arpa") or len(labels) != 4:
            return None
        try:
            address = IPv4Address(".".join(reversed(labels)))
        except ValueError:
            return None
        return "localhost" if address.packed == _LOCALHOST else self._book.host(int(address))

    def _once(self, text: str) -> None:
        if text not in self._told:
            self._told.add(text)
            self._door.trouble(text)


def _is_local(name: str) -> bool:
    return name == "localhost" or name.endswith(".localhost")


def _resource(name: str | None) -> Resource | None:
    try:
        return None if name is None else parse(EFFECT, name)
    except ResourceError:
        return None


def _raw(query: dns.Query) -> str:
    return f"dns:{shown(query.name if query.name is not None else query.question[:-4], 300)}"
