"""What the gate's benchmark drives it with: a load of clients, a bare echo server, counters of /proc.

Rules
- All clients live in one event loop. Their frames are encoded before the clock starts, and it starts
  when everybody was welcomed: what is timed is the gate, not the clients' preparation.
- Each client keeps one frame in flight: the next goes out when all its requests are answered.
- An answer counts when it was read, was not refused, and carries a receipt. Anything else, an end of
  the channel among it, ends the load with an error. So does silence of `LOAD_SECONDS`.
"""

from __future__ import annotations

import asyncio
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import uvloop

from authority import protocol

LOAD_SECONDS = 150.0
_ECHO = """
import asyncio, sys, uvloop
class Echo(asyncio.Protocol):
    def connection_made(self, transport): self.transport = transport
    def data_received(self, data): self.transport.write(data)
async def main():
    server = await asyncio.get_running_loop().create_unix_server(Echo, sys.argv[1], backlog=128)
    print("ready", flush=True)
    await server.serve_forever()
uvloop.run(main())
"""


class LoadError(Exception):
    """The gate refused a request, or ended a channel: there is nothing to measure."""


class Load:
    """`clients` closed loops, `frames` frames each, `per_frame` requests in each frame."""

    def __init__(
        self,
        path: str,
        token: bytes,
        clients: int,
        frames: int,
        *,
        per_frame: int = 1,
        effect: str = "fs.stat",
    ) -> None:
        self.per_frame = per_frame
        self.total = clients * frames * per_frame
        self.first_seq, self.last_seq = 1 << 62, -1
        self.latencies: list[float] = []
        """Seconds from sending each frame to its last answer."""
        self._path = path
        self.hello = protocol.encode_frame(1, protocol.encode_hello("bench", token))
        arguments = protocol.encode_arguments({})
        self.frames = [
            protocol.encode_frame(
                1,
                protocol.encode_requests(
                    [
                        protocol.Request(n, effect, "data/a.txt", arguments, token, 0)
                        for n in range(at * per_frame + 1, (at + 1) * per_frame + 1)
                    ]
                ),
            )
            for at in range(frames)
        ]
        self._clients = clients
        self._ready = self._ended = 0

    def rate(self) -> float:
        """Answered requests a second. Raises `LoadError`, `TimeoutError`, `OSError`."""
        return uvloop.run(self._run())

    def ready(self) -> None:
        self._ready += 1
        if self._ready == self._clients and not self._welcomed.done():
            self._welcomed.set_result(None)

    def ended(self) -> None:
        self._ended += 1
        if self._ended == self._clients and not self._done.done():
            self._done.set_result(None)

    def failed(self, why: str) -> None:
        for future in (self._welcomed, self._done):
            if not future.done():
                future.set_exception(LoadError(why))

    def client(self) -> asyncio.Protocol:
        return _Client(self)

    async def _run(self) -> float:
        loop = asyncio.get_running_loop()
        self._welcomed: asyncio.Future[None] = loop.create_future()
        self._done: asyncio.Future[None] = loop.create_future()
        self._done.add_done_callback(lambda done: done.exception())  # asked for, or not: no warning
        async with asyncio.timeout(LOAD_SECONDS):
            made: list[Any] = []
            for _ in range(self._clients):
                made.append(await loop.create_unix_connection(self.client, self._path))
            await self._welcomed
            begin = time.perf_counter()
            for _, each in made:
                each.next()
            await self._done
            seconds = time.perf_counter() - begin
        for transport, _ in made:
            transport.close()
        return self.total / seconds


class _Client(asyncio.Protocol):
    def __init__(self, load: Load) -> None:
        self._load = load
        self._decoder = protocol.FrameDecoder()
        self._at = 0
        self._missing = 0
        self._sent = 0.0

    def connection_made(self, transport: Any) -> None:
        self._transport = transport
        transport.write(self._load.hello)

    def connection_lost(self, exc: Exception | None) -> None:
        if self._at < len(self._load.frames) or self._missing:
            self._load.failed(f"the gate closed a channel: {exc}")

    def data_received(self, data: bytes) -> None:
        try:
            for _, payload in self._decoder.feed(data):
                self._message(protocol.decode_server_message(payload))
        except (protocol.ProtocolError, LoadError) as error:
            self._load.failed(str(error))

    def _message(self, message: protocol.Welcome | list[protocol.Reply] | protocol.Fatal) -> None:
        load = self._load
        if isinstance(message, protocol.Welcome):
            load.ready()
            return
        if isinstance(message, protocol.Fatal):
            raise LoadError(f"{message.code}: {message.sentence}")
        for reply in message:
            if reply.status != protocol.DONE or reply.seq is None or len(reply.hash) != 32:
                raise LoadError(f"request {reply.n} was not done: {reply.body}")
            load.first_seq = min(load.first_seq, reply.seq)
            load.last_seq = max(load.last_seq, reply.seq)
        self._missing -= len(message)
        if self._missing == 0:
            load.latencies.append(time.perf_counter() - self._sent)
            self.next()

    def next(self) -> None:
        load = self._load
        if self._at == len(load.frames):
            load.ended()
            return
        frame = load.frames[self._at]
        self._at += 1
        self._missing = load.per_frame
        self._sent = time.perf_counter()
        self._transport.write(frame)


class EchoLoad(Load):
    """The same frames to a server that only sends them back: what the sockets alone cost."""

    def client(self) -> asyncio.Protocol:
        return _Echoed(self)


class _Echoed(asyncio.Protocol):
    def __init__(self, load: Load) -> None:
        self._load = load
        self._at = 0
        self._missing = 0

    def connection_made(self, transport: Any) -> None:
        self._transport = transport
        self._load.ready()

    def data_received(self, data: bytes) -> None:
        self._missing -= len(data)
        if self._missing == 0:
            self.next()

    def next(self) -> None:
        if self._at == len(self._load.frames):
            self._load.ended()
            return
        frame = self._load.frames[self._at]
        self._at += 1
        self._missing = len(frame)
        self._transport.write(frame)


@contextmanager
def echo_server(path: Path) -> Iterator[int]:
    """A bare uvloop echo server in a process of its own; its number."""
    with subprocess.Popen(
        [sys.executable, "-I", "-c", _ECHO, str(path)], stdout=subprocess.PIPE
    ) as server:
        try:
            assert server.stdout is not None
            server.stdout.readline()
            yield server.pid
        finally:
            server.kill()


def resident_kib(pid: int) -> int:
    """Resident memory of a process, KiB."""
    for line in Path(f"/proc/{pid}/status").read_text(encoding="ascii").splitlines():
        if line.startswith("VmRSS:"):
            return int(line.split()[1])
    raise RuntimeError(f"no VmRSS for process {pid}")


def processor_seconds(pid: int) -> float:
    """Time on a processor of all the process's living threads, which count in nanoseconds."""
    total = 0
    for task in Path(f"/proc/{pid}/task").iterdir():
        total += int((task / "schedstat").read_text(encoding="ascii").split()[0])
    return total / 1e9
