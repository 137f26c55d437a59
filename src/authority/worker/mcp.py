"""MCP in the worker: servers' streams on one side, clients' connections on the other, the gate between.

Rules
- The gate hands over descriptors: `mcp.server` one to a server's standard streams, `serve` one to a
  client's connection (`http`: streamable HTTP; `lines`: plain streams). Nothing is opened here.
- What a client wants is asked at the gate (`mcp.ask`), which decides, and performs it by asking back
  (`mcp.perform`). So a client never reaches a server but through a decision.
- Arguments are checked against the tool's schema before the server gets them, and a structured result
  before anybody gets it. A tool that is not the one that was decided about is not called.
- A server that is given up is said to the gate (`mcp.over`), and so is each trouble that it makes.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import socket
from typing import Any

import anyio
import mcp_types as types
from mcp.server.lowlevel.server import NotificationOptions
from mcp.server.streamable_http_manager import StreamableHTTPASGIApp, StreamableHTTPSessionManager
from mcp.server.transport_security import TransportSecuritySettings
from mcp.shared.exceptions import MCPError
from mcp.shared.message import SessionMessage
from pydantic import ValidationError
from uvicorn import Config
from uvicorn.protocols.http.h11_impl import H11Protocol
from uvicorn.server import ServerState

from authority.protocol.packets import CallError, Fds, Peer
from authority.protocol.parcels import Parcels
from authority.worker.mcp_front import Front
from authority.worker.mcp_schema import Misfit
from authority.worker.mcp_tools import Definition
from authority.worker.mcp_upstream import Upstream, UpstreamError
from authority.worker.mcp_wire import Garbled, Lines, TooLong, read

MAX_BODY = 4 * 1024 * 1024
SESSIONS = 64
READ_SIZE = 64 * 1024
BAD_LINES = 16
HOSTS = ["127.0.0.1:48103", "localhost:48103"]
_FAILED = "E_EFFECT_FAILED"
_rooms: dict[int, Room] = {}


def prepare(peer: Peer) -> None:
    """Answer the gate's calls about MCP on this link."""
    if id(peer) not in _rooms:
        for name in ("mcp", "uvicorn"):  # what a peer sent is not for the gate's error output
            logging.getLogger(name).setLevel(logging.CRITICAL + 1)
        _rooms[id(peer)] = Room(peer)


async def serve(peer: Peer, params: dict[str, Any], sock: socket.socket) -> None:
    """A client's connection, to its end."""
    await _rooms[id(peer)].client(params, sock)


class Room:
    """All servers and clients of one run."""

    def __init__(self, peer: Peer) -> None:
        self._peer = peer
        self._parcels = Parcels(peer)
        self._servers: dict[str, Upstream] = {}
        self._tasks: set[asyncio.Task[None]] = set()
        self._http: asyncio.Future[H11Factory] | None = None
        self._fronts: set[Front] = set()
        peer.on("mcp.server", self._server)
        peer.on("mcp.answered", self._answered)
        self._parcels.on("mcp.refresh", self._refresh)
        self._parcels.on("mcp.perform", self._perform)

    async def _answered(self, _params: Any, _fds: list[int]) -> tuple[Any, Fds]:
        """A person answered: clients may list anew."""
        self._tell_clients()
        return None, ()

    def _tell_clients(self) -> None:
        for front in self._fronts:
            self._keep(_told(front))

    def _keep(self, work: Any) -> asyncio.Task[None]:
        task: asyncio.Task[None] = asyncio.get_running_loop().create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
        return task

    # --- servers ---

    async def _server(self, params: Any, fds: list[int]) -> tuple[Any, Fds]:
        name, timeout = str(params["name"]), float(params["timeout"]) / 1_000_000
        sock = socket.socket(fileno=fds[0])
        sock.setblocking(False)
        before = self._servers.get(name)
        if before is not None:
            before.close("another took its place")

        def trouble(text: str) -> None:
            self._peer.tell("mcp.trouble", {"name": name, "text": text})

        def changed() -> None:
            self._peer.tell("mcp.changed", {"name": name})
            self._tell_clients()

        upstream = self._servers[name] = Upstream(name, sock, trouble, changed, timeout)

        async def run() -> None:
            await upstream.run()
            if self._servers.get(name) is upstream:
                self._peer.tell("mcp.over", {"name": name, "why": upstream.over})

        self._keep(run())
        try:
            await upstream.ready()
        except UpstreamError as error:
            raise CallError(_FAILED, str(error)) from None
        return {"version": upstream.version}, ()

    def _named(self, name: str) -> Upstream:
        found = self._servers.get(name)
        if found is None:
            raise CallError(_FAILED, f"The server {name} is not there.")
        return found

    def tools(self, name: str) -> dict[str, Definition]:
        """A server's tools as they were last fetched."""
        found = self._servers.get(name)
        return found.tools.tools if found is not None else {}

    async def _refresh(self, params: Any) -> Any:
        try:
            found = await self._named(params["name"]).refresh()
        except UpstreamError as error:
            raise CallError(_FAILED, str(error)) from None
        return {
            "tools": [[tool.name, tool.text] for tool in found.tools.values()],
            "left_out": [[name, why] for name, why in found.left_out],
        }

    async def _perform(self, params: Any) -> Any:
        server = self._named(params["name"])
        try:
            match params["what"]:
                case "tool":
                    return await self._call(server, params)
                case "list":
                    return await server.list(params["item"])
                case "read":
                    return await server.read(params["item"])
                case "prompt":
                    return await server.prompt(params["item"], params["arguments"])
        except UpstreamError as error:
            raise CallError(_FAILED, str(error), error.said or None) from None
        raise CallError("E_SCHEMA_INVALID", "nothing of this kind is performed")

    async def _call(self, server: Upstream, params: Any) -> dict[str, Any]:
        tool = server.tools.tools.get(params["item"])
        if tool is None or tool.digest != params["digest"]:
            raise CallError(_FAILED, "The tool is no longer the one that was approved.")
        try:
            tool.arguments.check(params["arguments"])
        except Misfit as error:
            why = f"The arguments do not fit the tool's schema: {error}"
            raise CallError("E_SCHEMA_INVALID", why) from None
        result = await server.call(tool, params["arguments"])
        if tool.result is not None and not result["isError"]:
            try:
                tool.result.check(result.get("structuredContent"))
            except Misfit as error:
                raise CallError(
                    _FAILED, f"The tool's result does not fit its own schema: {error}"
                ) from None
        return result

    # --- clients ---

    async def _ask(self, effect: str, resource: str, arguments: dict[str, Any]) -> Any:
        asked = {"effect": effect, "resource": resource, "arguments": arguments}
        try:
            return await self._parcels.call("mcp.ask", asked)
        except (ValueError, OverflowError, TypeError):
            raise CallError("E_SCHEMA_INVALID", "The arguments are larger than allowed.") from None

    async def client(self, params: dict[str, Any], sock: socket.socket) -> None:
        """Serve one connection."""
        names = [str(name) for name in params["names"]]
        if params.get("form") == "lines":
            front = Front(names, self._ask, self.tools, prefixed=False)
            self._fronts.add(front)
            try:
                await self._lines(front, sock)
            finally:
                self._fronts.discard(front)
            return
        if self._http is None:
            self._http = asyncio.get_running_loop().create_future()
            self._keep(self._manage(Front(names, self._ask, self.tools, prefixed=True)))
        factory = await self._http
        await factory.serve(sock)

    async def _manage(self, front: Front) -> None:
        manager = StreamableHTTPSessionManager(
            app=front.server,
            security_settings=TransportSecuritySettings(
                allowed_hosts=HOSTS, allowed_origins=[f"http://{host}" for host in HOSTS]
            ),
            max_request_body_size=MAX_BODY,
            max_sessions=SESSIONS,
        )
        async with manager.run():
            assert self._http is not None
            self._http.set_result(H11Factory(StreamableHTTPASGIApp(manager)))
            await self._peer.closed.wait()

    async def _lines(self, front: Front, sock: socket.socket) -> None:
        reader, writer = await asyncio.open_connection(sock=sock)
        into, inward = anyio.create_memory_object_stream[SessionMessage | Exception](8)
        outward, out = anyio.create_memory_object_stream[SessionMessage](8)
        server = front.server

        async def receive() -> None:
            lines, bad = Lines(), 0
            async with into:
                with contextlib.suppress(TooLong, OSError, anyio.BrokenResourceError):
                    while bad <= BAD_LINES and (data := await reader.read(READ_SIZE)):
                        for line in lines.feed(data):
                            try:
                                message = types.jsonrpc_message_adapter.validate_python(
                                    read(line), by_name=False
                                )
                            except (Garbled, ValidationError) as error:
                                bad += 1
                                await into.send(error)
                            else:
                                await into.send(SessionMessage(message))

        async def send() -> None:
            with contextlib.suppress(OSError):
                async for item in out:
                    text = item.message.model_dump_json(by_alias=True, exclude_unset=True)
                    writer.write(text.encode() + b"\n")
                    await writer.drain()

        tasks = [self._keep(receive()), self._keep(send())]
        try:
            told = NotificationOptions(tools_changed=True)
            await server.run(inward, outward, server.create_initialization_options(told))
        finally:
            outward.close()
            await asyncio.wait({tasks[1]}, timeout=1)
            for task in tasks:
                task.cancel()
            writer.close()


async def _told(front: Front) -> None:
    with contextlib.suppress(
        MCPError, OSError, anyio.BrokenResourceError, anyio.ClosedResourceError
    ):
        await front.changed()


class H11Factory:
    """HTTP/1.1 connections to one application, each on a socket that was handed over."""

    def __init__(self, app: Any) -> None:
        self._config = Config(
            _only_path(app),
            http="h11",
            ws="none",
            lifespan="off",
            log_config=None,
            access_log=False,
            proxy_headers=False,
            server_header=False,
            timeout_keep_alive=600,
            h11_max_incomplete_event_size=64 * 1024,
        )
        self._config.load()
        self._state = ServerState()

    async def serve(self, sock: socket.socket) -> None:
        """One connection, to its end."""
        over = asyncio.Event()

        class Connection(H11Protocol):
            def connection_lost(self, exc: Exception | None) -> None:
                super().connection_lost(exc)
                over.set()

        loop = asyncio.get_running_loop()
        await loop.connect_accepted_socket(
            lambda: Connection(self._config, self._state, {}), sock=sock
        )
        await over.wait()


def _only_path(app: Any) -> Any:
    async def routed(scope: Any, receive: Any, send: Any) -> None:
        if scope["type"] == "http" and scope["path"] not in ("/mcp", "/mcp/"):
            await send({"type": "http.response.start", "status": 404, "headers": []})
            await send({"type": "http.response.body", "body": b"Only /mcp is here.\n"})
            return
        await app(scope, receive, send)

    return routed
