"""A proxy under test: a real confined worker, a door that judges by a real policy, real sockets."""

from __future__ import annotations

import asyncio
import contextlib
import ssl
from collections.abc import AsyncIterator, Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import msgspec

from authority.compat.base import Refused
from authority.compat.ca import RunCA
from authority.compat.credentials import Keyring
from authority.compat.proxy import Proxy
from authority.compat.proxy_desk import Desk
from authority.gate.workers import Worker, Workers
from authority.isolation import probe
from authority.kernel.addresses import ResourceError
from authority.kernel.codes import SENTENCES, Code
from authority.kernel.policy import Policy
from authority.kernel.resources import Resource, parse
from authority.protocol import Service as Kind
from effects.test_http import Authorities

PLACEHOLDER = "0123456789abcdef"


@dataclass
class FakeFlow:
    """A flow that remembers what was committed, and refuses beyond `limit` bytes."""

    door: FakeDoor
    seq: int
    effect: str
    resource: str
    verb: str
    arguments: Any
    pieces: list[tuple[str, bytes]] = field(default_factory=list)
    outcome: tuple[str, str, dict[str, Any], dict[str, int]] | None = None
    stopped: bool = False
    callbacks: list[Callable[[], None]] = field(default_factory=list)

    def on_stop(self, callback: Callable[[], None]) -> None:
        self.callbacks.append(callback)

    def stop(self) -> None:
        self.stopped = True
        for callback in self.callbacks:
            callback()

    def moved(self, way: str) -> bytes:
        return b"".join(data for each, data in self.pieces if each == way)

    async def commit(self, way: str, data: bytes, **_: Any) -> None:
        await asyncio.sleep(self.door.commit_seconds)
        if self.door.left < len(data):
            raise self.door.refused(Code.BUDGET_EXCEEDED, "budget", self.resource)
        self.door.left -= len(data)
        self.pieces.append((way, data))

    async def finish(
        self,
        status: str,
        *,
        code: str = "",
        spent: Mapping[str, int] | None = None,
        facts: Mapping[str, Any] | None = None,
        body: bytes = b"",
    ) -> int:
        assert self.outcome is None, "a second outcome"
        self.outcome = (status, body.decode(), dict(facts or {}), dict(spent or {}))
        self.door.news.set()
        return self.seq


class FakeDoor:
    """Judges by the policy, keeps what it was asked."""

    run = "r1"
    cwd = "/"

    def __init__(self, policy: Policy, worker: Callable[[], Any]) -> None:
        self.policy = policy
        self.flows: list[FakeFlow] = []
        self.denied: list[tuple[str, str, str]] = []
        self.troubles: list[str] = []
        self.incidents: list[tuple[str, str]] = []
        self.left = 10**9
        self.commit_seconds = 0.0
        self.news = asyncio.Event()
        self._worker = worker
        self._watches: dict[Any, asyncio.Task[None]] = {}

    def refused(self, code: str, layer: str, resource: str, reason: str = "") -> Refused:
        print("denied:", code, resource, reason)
        self.denied.append((code, resource, reason))
        self.news.set()
        return Refused(code, layer, reason or SENTENCES[Code(code)], len(self.denied), None, 1)

    async def open(
        self, effect: str, resource: Resource, arguments: msgspec.Struct, verb: str = ""
    ) -> FakeFlow:
        judgement = self.policy.judge(effect, resource, verb)
        if not judgement.allowed:
            raise self.refused(Code.POLICY_DENY, "policy", f"{verb} {resource.text}".strip())
        flow = FakeFlow(self, len(self.flows), effect, resource.text, verb, arguments)
        self.flows.append(flow)
        return flow

    async def deny(
        self, effect: str, resource: str, reason: str, *, code: str = "", layer: str = ""
    ) -> Refused:
        with contextlib.suppress(ResourceError):
            resource = parse(effect, resource).text
        return self.refused(code or Code.POLICY_DENY, layer or "policy", resource, reason)

    async def incident(self, what: str, detail: str) -> None:
        self.incidents.append((what, detail))

    async def worker(self) -> Any:
        peer = (await self._worker()).peer
        if peer not in self._watches:
            self._watches[peer] = asyncio.ensure_future(self._watch(peer))
        return peer

    async def _watch(self, peer: Any) -> None:
        await peer.closed.wait()
        if peer.reason not in ("stopped", "closed"):
            await self.incident("worker", f"the run's worker ended: {peer.reason}")

    def trouble(self, text: str) -> None:
        print("trouble:", text)
        self.troubles.append(text)


class FakeStream:
    """A raw stream over a connection of the test's client."""

    number = 1

    def __init__(
        self,
        reader: asyncio.StreamReader,
        writer: asyncio.StreamWriter,
        service: int,
        detail: bytes = b"",
    ) -> None:
        self.service = service
        self.detail = detail
        self._reader, self._writer = reader, writer

    async def read(self) -> bytes:
        try:
            return await self._reader.read(65536)
        except ConnectionError:
            return b""

    async def write(self, data: bytes) -> None:
        self._writer.write(data)
        await self._writer.drain()

    def write_eof(self) -> None:
        if self._writer.can_write_eof():
            self._writer.write_eof()

    def abort(self) -> None:
        self._writer.transport.abort()


class Lab:
    """A proxy that listens on `port`; servers outside are `served` by the tests."""

    def __init__(self, policy: Policy, secrets: Mapping[str, str], anchors: bytes) -> None:
        self.workers = Workers(probe(), ())
        self.started: list[Worker] = []
        self.door = FakeDoor(policy, self._worker)
        self.keyring = Keyring(policy, secrets, lambda: PLACEHOLDER)
        import datetime

        hosts = policy.reach.judged_hosts()
        now = datetime.datetime.now(datetime.UTC)
        self.ca = RunCA(hosts, now=now, lifetime_us=3_600_000_000)
        self.places: dict[bytes, Any] = {}

        async def local(_host: str, _port: int) -> list[str]:
            return ["127.0.0.1"]

        door: Any = self.door
        desk = Desk(door, self.keyring, self.ca, anchors, resolver=local)
        self.proxy = Proxy(door, desk, self)  # type: ignore[arg-type]
        self.port = 0
        self.direct: dict[str, int] = {}

    def place(self, detail: bytes) -> Any:
        return self.places.get(detail)

    async def _worker(self) -> Worker:
        if not self.started or self.started[-1].peer.reason:
            before = self.started[-1] if self.started else None
            self.started.append(await self.workers.start(before))
        return self.started[-1]

    async def listen(self, service: int, detail: bytes = b"") -> int:
        async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            stream = FakeStream(reader, writer, service, detail)
            try:
                await self.proxy.serve(stream)
            finally:
                stream.abort()

        server = await asyncio.start_server(serve, "127.0.0.1", 0)
        return int(server.sockets[0].getsockname()[1])

    async def direct_to(self, host: str, port: int) -> int:
        """A listener that leads to host and port, as the resolver's addresses do."""
        detail = f"{host}:{port}".encode()
        self.places[detail] = type("Place", (), {"host": host, "port": port})
        return await self.listen(Kind.DIRECT, detail)

    def trusting(self) -> ssl.SSLContext:
        """A client's context that trusts the run's authority."""
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
        context.load_verify_locations(cadata=self.ca.pem.decode())
        return context

    async def until(self, holds: Callable[[], bool]) -> None:
        async with asyncio.timeout(50):
            while not holds():
                await asyncio.sleep(0.005)

    async def settled(self) -> None:
        """Every flow has its outcome."""
        await self.until(lambda: all(flow.outcome for flow in self.door.flows))


@contextlib.asynccontextmanager
async def lab(
    policy: Policy, secrets: Mapping[str, str] | None = None, anchors: bytes = b""
) -> AsyncIterator[Lab]:
    made = Lab(policy, secrets or {}, anchors)
    made.port = await made.listen(Kind.PROXY)
    try:
        yield made
    finally:
        for worker in made.started:
            print("worker:", worker.peer.reason or "alive", worker.sandbox.pid)
            worker.stop()
            await worker.sandbox.wait()


class Client:
    """A client of raw bytes."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.reader, self.writer = reader, writer

    @classmethod
    async def to(cls, port: int) -> Client:
        return cls(*await asyncio.open_connection("127.0.0.1", port))

    async def send(self, data: bytes) -> None:
        self.writer.write(data)
        await self.writer.drain()

    async def head(self) -> bytes:
        async with asyncio.timeout(50):
            return await self.reader.readuntil(b"\r\n\r\n")

    async def answer(self) -> tuple[int, bytes, bytes]:
        """Status, head and body of an answer that says how long it is."""
        head = await self.head()
        body = b""
        lower = head.lower()
        async with asyncio.timeout(50):
            if b"content-length: " in lower:
                length = int(lower.split(b"content-length: ")[1].split(b"\r\n")[0])
                body = await self.reader.readexactly(length)
            elif b"transfer-encoding: chunked" in lower:
                while size := int(await self.reader.readline(), 16):
                    body += await self.reader.readexactly(size)
                    await self.reader.readexactly(2)
                await self.reader.readexactly(2)
            elif head.split(b" ")[1] not in (b"204", b"304"):
                body = await self.reader.read()
        return int(head.split(b" ")[1]), head, body

    async def rest(self) -> bytes:
        async with asyncio.timeout(50):
            try:
                return await self.reader.read()
            except ConnectionError:
                return b"(reset)"

    async def connect(self, host: str, port: int) -> bytes:
        await self.send(f"CONNECT {host}:{port} HTTP/1.1\r\nHost: {host}:{port}\r\n\r\n".encode())
        return await self.head()

    async def tls(self, context: ssl.SSLContext, host: str) -> None:
        async with asyncio.timeout(50):
            await self.writer.start_tls(context, server_hostname=host)

    def close(self) -> None:
        self.writer.close()


def pem(authorities: Authorities) -> bytes:
    """The certificate of a test's authority, as the gate's anchors."""
    from cryptography.hazmat.primitives import serialization

    return bytes(authorities.certificate.public_bytes(serialization.Encoding.PEM))


def server_tls(authorities: Authorities, folder: Path, name: str) -> ssl.SSLContext:
    from cryptography import x509

    return authorities.server(folder, x509.DNSName(name))
