"""What the tests of the effects share: calls, policies, a server of raw bytes, a plain starter."""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from typing import Any

from authority.effects.base import Call
from authority.effects.tools import Ran
from authority.kernel import requests
from authority.kernel.policy import Policy, load
from authority.kernel.resources import parse


def policy(text: str = "", base: str = "/") -> Policy:
    """A policy from TOML; the version line is added."""

    def no_parent(name: str, _base: str) -> Any:
        raise AssertionError(f"extends {name}")

    return load(
        "version = 1\n" + text, format="toml", base=base, name="test.toml", read_parent=no_parent
    )


ALL_FILES = policy('[filesystem]\nread = ["/**"]\nwrite = ["/**"]\n')


def call(
    effect: str,
    raw: str | bytes,
    *,
    under: Policy = ALL_FILES,
    reserved: dict[str, int] | None = None,
    looked_up: Mapping[str, Any] | None = None,
    **arguments: Any,
) -> Call:
    """An admitted call; the reservation is the table's own unless one is given."""
    spec = requests.EFFECTS[effect]
    given = spec.arguments(**arguments)
    target = None
    if effect == "fs.rename":
        target = parse(effect, given.to)
    return Call(
        run="r1",
        seq=7,
        effect=effect,
        resource=parse(effect, raw),
        arguments=given,
        policy=under,
        reserved=spec.reserve(given, looked_up or {}) if reserved is None else reserved,
        target=target,
        looked_up=looked_up or {},
    )


def run(work: Awaitable[Any]) -> Any:
    async def main() -> Any:
        return await work

    return asyncio.run(main())


Handler = Callable[[asyncio.StreamReader, asyncio.StreamWriter], Awaitable[None]]


class RawServer:
    """A TCP server on the loopback interface that answers with the bytes it was given."""

    def __init__(
        self, answer: bytes | Handler, *, tls: Any = None, host: str = "127.0.0.1"
    ) -> None:
        self.answer = answer
        self.tls = tls
        self.host = host
        self.port = 0
        self.seen: list[bytes] = []
        """The requests, head and body, in order."""
        self.peers = 0

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.peers += 1
        with contextlib.suppress(ConnectionError, asyncio.IncompleteReadError):
            head = await reader.readuntil(b"\r\n\r\n")
            length = 0
            for line in head.split(b"\r\n"):
                if line.lower().startswith(b"content-length:"):
                    length = int(line.split(b":")[1])
            self.seen.append(head + await reader.readexactly(length))
            if callable(self.answer):
                await self.answer(reader, writer)
            else:
                writer.write(self.answer)
                await writer.drain()
        writer.close()

    async def __aenter__(self) -> RawServer:
        self._server = await asyncio.start_server(self._serve, self.host, 0, ssl=self.tls)
        self.port = self._server.sockets[0].getsockname()[1]
        return self

    async def __aexit__(self, *_: object) -> None:
        self._server.close()


@contextlib.asynccontextmanager
async def served(answer: bytes | Handler, **options: Any) -> AsyncIterator[RawServer]:
    async with RawServer(answer, **options) as server:
        yield server


class PlainStarter:
    """Runs a process as it is, for tests that are not about confinement."""

    def __init__(self) -> None:
        self.started: list[int] = []

    async def run(
        self,
        argv: tuple[str, ...],
        stdin: bytes,
        *,
        base: str = "/",
        env: Mapping[str, str],
        timeout_us: int,
        max_output: int,
    ) -> Ran:
        process = await asyncio.create_subprocess_exec(
            *argv,
            stdin=asyncio.subprocess.PIPE,
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.PIPE,
            env=dict(env),
            start_new_session=True,
        )
        self.started.append(process.pid)
        assert process.stdout
        assert process.stderr

        async def feed() -> None:
            assert process.stdin
            with contextlib.suppress(ConnectionError):
                process.stdin.write(stdin)
                await process.stdin.drain()
            process.stdin.close()

        async def bounded(stream: asyncio.StreamReader) -> bytes:
            data = b""
            while len(data) <= max_output:
                part = await stream.read(max_output + 1 - len(data))
                if not part:
                    return data
                data += part
            self._kill(process)
            while await stream.read(65536):  # asyncio reports an exit after the pipes have ended
                continue
            return data

        reads = [asyncio.ensure_future(bounded(s)) for s in (process.stdout, process.stderr)]
        rest = [asyncio.ensure_future(feed()), asyncio.ensure_future(process.wait())]
        try:
            _, pending = await asyncio.wait([*reads, *rest], timeout=timeout_us / 1e6)
        finally:
            self._kill(process)
        out, err = await asyncio.gather(*reads)
        await asyncio.gather(*rest)
        return Ran(await process.wait(), out, err, bool(pending))

    @staticmethod
    def _kill(process: asyncio.subprocess.Process) -> None:
        if process.returncode is None:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)
