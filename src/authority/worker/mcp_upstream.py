"""One MCP server, spoken to through its standard streams: the client's side, with the official SDK.

Rules
- Everything that the server sends passes `_admit` before the SDK sees it. An answer to nothing that was
  asked, a second answer, a line that is no message, a request that the protocol does not give a server
  here: each is trouble and is counted; above `PATIENCE` the server is given up.
- Sampling, elicitation and roots are refused with a sentence that says so, whatever the server says
  that it needs; `ping` is answered. Logging and progress notifications go no further.
- Notifications are counted in windows of a second; more than `NOTIFICATIONS` in one is flooding.
- Every request ends: with an answer, an error, or at its time limit.
"""

from __future__ import annotations

import asyncio
import json
import socket
import time
from collections.abc import Callable
from typing import Any, Final

import anyio
import mcp_types as types
from mcp.client._probe import negotiate_auto
from mcp.client.session import ClientSession
from mcp.shared.exceptions import MCPError
from mcp.shared.message import SessionMessage
from pydantic import ValidationError

from authority.worker.mcp_tools import Definition, Listing, listing
from authority.worker.mcp_wire import Garbled, Lines, TooLong, read

PATIENCE: Final = 16
NOTIFICATIONS: Final = 200
PAGES: Final = 16
READ_SIZE: Final = 64 * 1024
START_SECONDS = 30.0
"""The least time that a server has to start: some fetch themselves first."""
_REFUSED: Final = {
    "sampling/createMessage": "sampling",
    "elicitation/create": "elicitation",
    "roots/list": "roots",
}
_CHANGES: Final = frozenset({"notifications/tools/list_changed"})


class UpstreamError(Exception):
    """A request that came to nothing. The sentence is our own; `said` quotes the server."""

    def __init__(self, sentence: str, said: str = "") -> None:
        super().__init__(sentence)
        self.said = said


class _Session(ClientSession):
    """Results are checked by `mcp_schema`, which is bounded, and not by the SDK as well."""

    async def validate_tool_result(self, name: str, result: types.CallToolResult) -> None:
        """Checked in `Upstream.call`."""


class Upstream:
    """A server. `run` keeps the connection until `close`; the rest asks it something."""

    def __init__(
        self,
        name: str,
        sock: socket.socket,
        trouble: Callable[[str], None],
        changed: Callable[[], None],
        timeout: float,
    ) -> None:
        self.name = name
        self.over = ""
        self.tools = Listing()
        self.version = ""
        self._sock = sock
        self._trouble = trouble
        self._changed = changed
        self._timeout = timeout
        self._ready = asyncio.Event()
        self._ended = asyncio.Event()
        self._asked: set[Any] = set()
        self._given_up: set[Any] = set()
        self._bad = 0
        self._window = (0.0, 0)
        self._session: _Session | None = None
        self._writer: asyncio.StreamWriter | None = None

    async def run(self) -> None:
        """Connect, and serve what is asked until the server or `close` ends it."""
        reader, writer = await asyncio.open_connection(sock=self._sock, limit=READ_SIZE)
        self._writer = writer
        inward_send, inward = anyio.create_memory_object_stream[SessionMessage | Exception](64)
        outward, outward_read = anyio.create_memory_object_stream[SessionMessage](0)
        tasks = [
            asyncio.ensure_future(self._read(reader, inward_send)),
            asyncio.ensure_future(self._write(outward_read)),
        ]
        try:
            async with _Session(inward, outward) as session:
                await self._greet(session)
                await self._ended.wait()
        except ExceptionGroup as group:
            self._trouble(f"the connection failed: {quoted(group.exceptions[0])}")
            self.close("the connection failed")
        finally:
            self.close("closed")
            for task in tasks:
                task.cancel()
            inward_send.close()
            outward.close()
            writer.close()

    async def _greet(self, session: _Session) -> None:
        try:
            async with asyncio.timeout(max(START_SECONDS, self._timeout)):
                await negotiate_auto(session)
        except TimeoutError:
            self.close("it did not answer the handshake in time")
        except (MCPError, ValidationError, RuntimeError, OSError) as error:
            self._trouble(f"the handshake failed: {quoted(error)}")
            self.close("the handshake failed")
        else:
            self.version = session.protocol_version or ""
            self._session = session
            self._ready.set()

    def close(self, reason: str) -> None:
        """Give the server up; what is under way fails."""
        if not self.over:
            self.over = reason
        self._ended.set()
        self._ready.set()

    async def ready(self) -> _Session:
        """The session, when the handshake is done. Raises `UpstreamError`."""
        await self._ready.wait()
        if self.over or self._session is None:
            raise UpstreamError(f"The server {self.name} is not there: {self.over}.")
        return self._session

    # --- what comes and goes ---

    async def _read(self, reader: asyncio.StreamReader, send: Any) -> None:
        lines = Lines()
        try:
            while data := await reader.read(READ_SIZE):
                for line in lines.feed(data):
                    message = self._admit(line)
                    if message is not None:
                        await send.send(message)
                    if self.over:
                        return
            self.close("it ended its output")
        except TooLong:
            self._trouble("a line is longer than a message may be")
            self.close("a line was longer than a message may be")
        except (OSError, anyio.BrokenResourceError, anyio.ClosedResourceError) as error:
            self.close(f"its output broke: {type(error).__name__}")

    async def _write(self, messages: Any) -> None:
        try:
            async for item in messages:
                message = item.message
                if isinstance(message, types.JSONRPCRequest):
                    self._asked.add(message.id)
                elif isinstance(message, types.JSONRPCNotification):
                    self._cancelled(message)
                await self._send(message.model_dump(by_alias=True, mode="json", exclude_unset=True))
        except OSError as error:
            self.close(f"its input broke: {type(error).__name__}")

    def _cancelled(self, message: types.JSONRPCNotification) -> None:
        """What we gave up may be answered all the same, once."""
        if message.method == "notifications/cancelled" and message.params:
            number = message.params.get("requestId")
            if number in self._asked and len(self._given_up) < 1024:
                self._given_up.add(number)

    async def _send(self, message: dict[str, Any]) -> None:
        assert self._writer is not None
        self._writer.write(json.dumps(message, ensure_ascii=True).encode() + b"\n")
        await self._writer.drain()

    def _admit(self, line: bytes) -> SessionMessage | None:
        try:
            value = read(line)
            message = types.jsonrpc_message_adapter.validate_python(value, by_name=False)
        except (Garbled, ValidationError):
            self._misbehaved("a line that is no message")
            return None
        match message:
            case types.JSONRPCResponse(id=number) | types.JSONRPCError(id=number):
                if number not in self._asked:
                    self._misbehaved("an answer to nothing that was asked")
                    return None
                self._asked.discard(number)
                if number in self._given_up:
                    self._given_up.discard(number)
                    return None
            case types.JSONRPCRequest(id=number, method=method):
                if method != "ping":
                    self._refuse(number, method)
                    return None
            case types.JSONRPCNotification(method=method):
                if not self._may_notify():
                    return None
                if method in _CHANGES:
                    self._changed()
                    return None
        return SessionMessage(message)

    def _refuse(self, number: Any, method: str) -> None:
        what = _REFUSED.get(method, "this request")
        self._misbehaved(f"it asked for {what}, which is refused")
        error = {"code": -32601, "message": f"Refused: this client gives a server no {what}."}
        answer = {"jsonrpc": "2.0", "id": number, "error": error}
        sending = asyncio.ensure_future(self._send(answer))
        sending.add_done_callback(lambda done: done.cancelled() or done.exception())

    def _may_notify(self) -> bool:
        began, count = self._window
        now = time.monotonic()
        if now - began > 1:
            began, count = now, 0
        self._window = (began, count + 1)
        if count >= NOTIFICATIONS:
            if count == NOTIFICATIONS:
                self._trouble("it floods with notifications")
            self.close("it flooded with notifications")
            return False
        return True

    def _misbehaved(self, what: str) -> None:
        self._bad += 1
        if self._bad <= PATIENCE:
            self._trouble(what)
        else:
            self.close(f"it misbehaved more than {PATIENCE} times, at last with {what}")

    # --- requests ---

    async def _ask(self, request: Any, result: Any, timeout: float | None = None) -> Any:
        session = await self.ready()
        limit = self._timeout if timeout is None else timeout
        ended = asyncio.ensure_future(self._ended.wait())
        asking = asyncio.ensure_future(
            session.send_request(request, result, request_read_timeout_seconds=limit)
        )
        try:
            await asyncio.wait({asking, ended}, return_when=asyncio.FIRST_COMPLETED)
            if not asking.done():
                raise UpstreamError(f"The server {self.name} was given up: {self.over}.")
            return asking.result()
        except MCPError as error:
            said = quoted(error)
            if error.code == types.REQUEST_TIMEOUT:
                raise UpstreamError(f"The server {self.name} did not answer in time.") from None
            raise UpstreamError(f"The server {self.name} answered with an error.", said) from None
        except ValidationError:
            raise UpstreamError(f"The server {self.name} sent no valid result.") from None
        except (
            OSError,
            RuntimeError,
            anyio.ClosedResourceError,
            anyio.BrokenResourceError,
        ) as error:
            raise UpstreamError(f"The server {self.name} failed.", quoted(error)) from None
        finally:
            ended.cancel()
            asking.cancel()

    async def refresh(self) -> Listing:
        """Fetch the list of tools anew. Raises `UpstreamError`."""
        tools: list[dict[str, Any]] = []
        cursor: str | None = None
        for _ in range(PAGES):
            request = types.ListToolsRequest(params=types.PaginatedRequestParams(cursor=cursor))
            page = await self._ask(request, types.ListToolsResult)
            tools += [_plain(tool) for tool in page.tools]
            cursor = page.next_cursor
            if cursor is None:
                break
        else:
            raise UpstreamError(f"The server {self.name} lists without an end.")
        self.tools = listing(tools)
        return self.tools

    async def call(self, tool: Definition, arguments: dict[str, Any]) -> dict[str, Any]:
        """Call a tool; its result as a client gets it, without what the server says of itself."""
        params = types.CallToolRequestParams(name=tool.name, arguments=arguments)
        request = types.CallToolRequest(params=params)
        result = await self._ask(request, types.CallToolResult)
        self._complete(result)
        out: dict[str, Any] = {
            "content": [_bare(_plain(block)) for block in result.content],
            "isError": bool(result.is_error),
        }
        if result.structured_content is not None:
            out["structuredContent"] = result.structured_content
        return out

    async def list(self, kind: str) -> dict[str, Any]:
        """`resources`, `templates` or `prompts`, page after page."""
        wanted: dict[str, tuple[Any, Any, str]] = {
            "resources": (types.ListResourcesRequest, types.ListResourcesResult, "resources"),
            "templates": (
                types.ListResourceTemplatesRequest,
                types.ListResourceTemplatesResult,
                "resource_templates",
            ),
            "prompts": (types.ListPromptsRequest, types.ListPromptsResult, "prompts"),
        }
        make, result, name = wanted[kind]
        items: list[dict[str, Any]] = []
        cursor: str | None = None
        for _ in range(PAGES):
            page = await self._ask(make(params=types.PaginatedRequestParams(cursor=cursor)), result)
            items += [_bare(_plain(item)) for item in getattr(page, name)]
            cursor = page.next_cursor
            if cursor is None:
                return {"items": items}
        raise UpstreamError(f"The server {self.name} lists without an end.")

    async def read(self, uri: str) -> dict[str, Any]:
        """A resource's contents."""
        params = types.ReadResourceRequestParams(uri=uri)
        result = await self._ask(types.ReadResourceRequest(params=params), types.ReadResourceResult)
        self._complete(result)
        return {"contents": [_bare(_plain(part)) for part in result.contents]}

    async def prompt(self, name: str, arguments: dict[str, str]) -> dict[str, Any]:
        """A prompt's messages."""
        params = types.GetPromptRequestParams(name=name, arguments=arguments)
        result = await self._ask(types.GetPromptRequest(params=params), types.GetPromptResult)
        self._complete(result)
        found: dict[str, Any] = {"messages": [_bare(_plain(m)) for m in result.messages]}
        if result.description is not None:
            found["description"] = result.description
        return found

    def _complete(self, result: Any) -> None:
        """A result that wants input first (elicitation in another form) is no result."""
        if getattr(result, "result_type", "complete") != "complete":
            self._misbehaved("it wants input from the client, which is refused")
            raise UpstreamError(
                f"The server {self.name} wants input (sampling, elicitation or roots): refused."
            )


def quoted(error: object) -> str:
    """What a server said, in printable ASCII and short."""
    text = str(error)[:300]
    return json.dumps(text)[1:-1].replace("\x7f", "\\u007f")


def _plain(model: Any) -> dict[str, Any]:
    found: dict[str, Any] = model.model_dump(by_alias=True, mode="json", exclude_none=True)
    return found


def _bare(value: dict[str, Any]) -> dict[str, Any]:
    """Without `_meta`, annotations and icons: what a server says about itself decides nothing."""
    return {
        key: _bare(part) if isinstance(part, dict) else part
        for key, part in value.items()
        if key not in {"_meta", "annotations", "icons"}
    }
