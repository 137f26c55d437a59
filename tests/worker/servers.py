"""MCP servers for the tests: one of the SDK's own kind, and scripted ones that misbehave."""

from __future__ import annotations

import asyncio
import json
import socket
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from typing import Any

import anyio
import mcp_types as types
from mcp.server.mcpserver import MCPServer
from mcp.shared.message import SessionMessage

from authority.worker.mcp_upstream import Upstream

Script = Callable[["Wire"], Awaitable[None]]


class Wire:
    """The server's end of the streams, line by line."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._reader, self._writer = reader, writer

    async def receive(self) -> dict[str, Any]:
        line = await self._reader.readline()
        if not line:
            raise EOFError
        return json.loads(line)

    async def send(self, value: Any) -> None:
        await self.raw(json.dumps(value).encode() + b"\n")

    async def raw(self, data: bytes) -> None:
        self._writer.write(data)
        await self._writer.drain()

    async def answer(self, to: dict[str, Any], result: Any) -> None:
        await self.send({"jsonrpc": "2.0", "id": to["id"], "result": result})

    async def handshake(self) -> None:
        """As a server of the 2025 protocol does it."""
        while True:
            message = await self.receive()
            if message.get("method") == "initialize":
                await self.answer(message, {
                    "protocolVersion": "2025-11-25", "capabilities": {"tools": {}},
                    "serverInfo": {"name": "scripted", "version": "1"},
                })  # fmt: skip
            elif message.get("method") == "notifications/initialized":
                return
            else:
                await self.send({"jsonrpc": "2.0", "id": message["id"],
                                 "error": {"code": -32601, "message": "no"}})  # fmt: skip

    async def asked(self, method: str) -> dict[str, Any]:
        while (message := await self.receive()).get("method") != method:
            pass
        return message


class Seen:
    """What an upstream reported."""

    def __init__(self) -> None:
        self.trouble: list[str] = []
        self.changes = 0

    def changed(self) -> None:
        self.changes += 1


@asynccontextmanager
async def scripted(script: Script, timeout: float = 5) -> AsyncIterator[tuple[Upstream, Seen]]:
    """An upstream whose server does what the script says."""
    ours, theirs = socket.socketpair()
    for sock in (ours, theirs):
        sock.setblocking(False)
    seen = Seen()
    upstream = Upstream("s", ours, seen.trouble.append, seen.changed, timeout)

    async def serve() -> None:
        wire = Wire(*await asyncio.open_connection(sock=theirs))
        try:
            await script(wire)
            await asyncio.sleep(60)
        except (EOFError, OSError):
            return

    tasks = [asyncio.ensure_future(serve()), asyncio.ensure_future(upstream.run())]
    try:
        yield upstream, seen
    finally:
        upstream.close("test over")
        await asyncio.wait({tasks[1]}, timeout=5)
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        theirs.close()


@asynccontextmanager
async def real(server: MCPServer, timeout: float = 5) -> AsyncIterator[tuple[Upstream, Seen]]:
    """An upstream whose server is the SDK's."""

    async def script(wire: Wire) -> None:
        into, read = anyio.create_memory_object_stream[SessionMessage | Exception](8)
        write, out = anyio.create_memory_object_stream[SessionMessage](8)

        async def inward() -> None:
            while True:
                value = await wire.receive()
                await into.send(
                    SessionMessage(types.jsonrpc_message_adapter.validate_python(value))
                )

        async def outward() -> None:
            async for item in out:
                data = item.message.model_dump(by_alias=True, mode="json", exclude_unset=True)
                await wire.send(data)

        low = server._lowlevel_server
        async with anyio.create_task_group() as group:
            group.start_soon(inward)
            group.start_soon(outward)
            await low.run(read, write, low.create_initialization_options())

    async with scripted(script, timeout) as made:
        yield made


def sample() -> MCPServer:
    """A server with tools, a resource and a prompt."""
    server = MCPServer("sample")

    @server.tool()
    def add(a: int, b: int) -> int:
        """Add two numbers."""
        return a + b

    @server.tool()
    def echo(text: str) -> str:
        """Say it again."""
        return text

    @server.tool()
    def fail() -> str:
        """Fail."""
        raise ValueError("no luck")

    @server.resource("memo://today")
    def today() -> str:
        """Today's memo."""
        return "buy milk"

    @server.prompt()
    def review(code: str) -> str:
        """Review code."""
        return f"Review: {code}"

    return server
