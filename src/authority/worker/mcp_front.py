"""What a client of MCP meets: the server's side, with the official SDK, in front of the gate.

Rules
- Each list, call, read and prompt is asked at the gate, with what the client gave, and answered with
  what the gate gave back. Nothing is answered from here alone but the handshake and `ping`.
- Tools are shown as they were approved, by the digest that the gate names. Behind an endpoint for many
  servers a tool's name is `SERVER__TOOL`; before one server it is its own.
- A refused call is a result that says so (`isError`), so that a model can read it: the code, the
  sentence and the run's number for it. A refused list, read or prompt is an error of the protocol.
- Clients' own sampling, elicitation and roots are never used.
"""

from __future__ import annotations

import json
from collections.abc import Awaitable, Callable, Mapping
from typing import Any, Final

import mcp_types as types
from mcp.server.lowlevel.server import Server
from mcp.shared.exceptions import MCPError

from authority.protocol.packets import CallError
from authority.worker.mcp_tools import Definition

Ask = Callable[[str, str, dict[str, Any]], Awaitable[Any]]
"""`(effect, resource, arguments)` to the value; raises `CallError`."""
Tools = Callable[[str], Mapping[str, Definition]]
"""A server's tools as they were last fetched."""
REFUSED: Final = -32003
_INSTRUCTIONS: Final = (
    "Every call is judged by a policy before it is performed; a refused one says so, with its code."
)


class Front:
    """One server object for all clients of a run's MCP servers (`names`)."""

    def __init__(self, names: list[str], ask: Ask, tools: Tools, *, prefixed: bool) -> None:
        self._names = names
        self._ask = ask
        self._tools = tools
        self._prefixed = prefixed
        self._uris: dict[str, str] = {}
        self._session: Any = None
        self.server: Server[Any] = Server(
            "authority",
            instructions=_INSTRUCTIONS,
            on_list_tools=self._list_tools,
            on_call_tool=self._call_tool,
            on_list_resources=self._list_resources,
            on_read_resource=self._read_resource,
            on_list_prompts=self._list_prompts,
            on_get_prompt=self._get_prompt,
        )
        self.server.middleware.clear()  # nothing is traced: the gate's log is the record

    async def changed(self) -> None:
        """Tell the client of a connection of its own that there may be other tools now."""
        if self._session is not None:
            await self._session.send_tool_list_changed()

    def _shown(self, server: str, name: str) -> str:
        return f"{server}__{name}" if self._prefixed else name

    def _meant(self, shown: str) -> tuple[str, str]:
        """Server and own name of what a client named. Raises `MCPError`."""
        if not self._prefixed:
            return self._names[0], shown
        server, mark, name = shown.partition("__")
        if not mark or server not in self._names:
            raise MCPError(code=types.INVALID_PARAMS, message="No server here has this name.")
        return server, name

    async def _each(self, kind: str) -> list[tuple[str, Any]]:
        """A list of every server that gives one; a server that fails leaves the others alone."""
        found: list[tuple[str, Any]] = []
        refused: CallError | None = None
        for name in self._names:
            try:
                found.append((name, await self._ask("mcp.list", f"mcp:{name}/{kind}", {})))
            except CallError as error:
                refused = error
        if refused is not None and not found and kind == "tools":
            raise _refusal(refused)
        return found

    async def _list_tools(self, ctx: Any, _params: Any) -> types.ListToolsResult:
        if not self._prefixed:
            self._session = ctx.session
        shown: list[types.Tool] = []
        for name, value in await self._each("tools"):
            known = self._tools(name)
            for item in value["tools"]:
                tool = known.get(item["name"])
                if tool is not None and tool.digest == item["digest"]:
                    renamed = {**tool.shown, "name": self._shown(name, tool.name)}
                    shown.append(types.Tool.model_validate(renamed, by_name=False))
        return types.ListToolsResult(tools=shown)

    async def _call_tool(
        self, _ctx: Any, params: types.CallToolRequestParams
    ) -> types.CallToolResult:
        server, name = self._meant(params.name)
        given = {"arguments": params.arguments or {}}
        try:
            value = await self._ask("tool.call", f"tool:{server}.{name}", given)
        except CallError as error:
            text = types.TextContent(type="text", text=_rendering(error))
            return types.CallToolResult(content=[text], is_error=True)
        return types.CallToolResult.model_validate(value["result"], by_name=False)

    async def _list_resources(self, _ctx: Any, _params: Any) -> types.ListResourcesResult:
        shown: list[types.Resource] = []
        for name, value in await self._each("resources"):
            for item in value["items"]:
                resource = types.Resource.model_validate(item, by_name=False)
                if self._uris.setdefault(str(resource.uri), name) == name:
                    shown.append(resource)  # the first server that lists a URI keeps it
        return types.ListResourcesResult(resources=shown)

    async def _read_resource(
        self, _ctx: Any, params: types.ReadResourceRequestParams
    ) -> types.ReadResourceResult:
        uri = str(params.uri)
        owner = self._uris.get(uri)
        if owner is None and len(self._names) > 1:
            await self._list_resources(None, None)
            owner = self._uris.get(uri)
        server = owner or self._names[0]
        value = await self._asked("mcp.read", f"mcp:{server}/resources/{uri}", {})
        return types.ReadResourceResult.model_validate(value, by_name=False)

    async def _list_prompts(self, _ctx: Any, _params: Any) -> types.ListPromptsResult:
        shown = [
            types.Prompt.model_validate(
                {**item, "name": self._shown(name, item["name"])}, by_name=False
            )
            for name, value in await self._each("prompts")
            for item in value["items"]
        ]
        return types.ListPromptsResult(prompts=shown)

    async def _get_prompt(
        self, _ctx: Any, params: types.GetPromptRequestParams
    ) -> types.GetPromptResult:
        server, name = self._meant(params.name)
        given = {"arguments": params.arguments or {}}
        value = await self._asked("mcp.prompt", f"mcp:{server}/prompts/{name}", given)
        return types.GetPromptResult.model_validate(value, by_name=False)

    async def _asked(self, effect: str, resource: str, arguments: dict[str, Any]) -> Any:
        try:
            return await self._ask(effect, resource, arguments)
        except CallError as error:
            raise _refusal(error) from None


def _rendering(error: CallError) -> str:
    more = error.more if isinstance(error.more, dict) else {}
    return json.dumps({"refused": error.code, "why": error.sentence, **more}, sort_keys=True)


def _refusal(error: CallError) -> MCPError:
    more = error.more if isinstance(error.more, dict) else {}
    return MCPError(
        code=REFUSED, message=f"{error.code}: {error.sentence}", data={"code": error.code, **more}
    )
