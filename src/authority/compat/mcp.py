"""MCP for one run: servers that its policy names, clients inside it, and the worker between them.

    client in the run --48103--> worker --mcp.ask--> door (decide, record)
                                                        | perform
    server in a run of its own <--streams-- worker <----+

Rules
- No message of a server or client is read here. What the worker says it wants is checked like a
  program's request, and asked at the run's door; what it says a server answered is a value and nothing
  more.
- A server is started when something of it is first needed, once for a run; one that dies is started
  again, at most `STARTS` times. When the worker goes, its servers go.
- What a server says that its tools are is fetched at each list, when it says that they changed, and
  before a call when the last look is older than `FRESH_SECONDS`. Each text is compared with what was
  approved by its digest (`Servers.see`), and only approved tools are listed.
- A result carries the label of the server's own run beside that of its source.
- What is listed of tools was approved, word by word, so it has no label; which of them a server offers
  is its own word all the same. It is taken once: as it was when the run first looked, before the server
  was handed anything untrusted. A list that is another than then is an answer of the server, with its
  label, and so is a refusal that rests on such a change (`changed` among its facts).
"""

from __future__ import annotations

import asyncio
import hashlib
import socket
import time
from collections.abc import Mapping
from typing import Any, Literal, Protocol

import msgspec

from authority.compat.base import Door, Failed, Refused, Stream, pump
from authority.effects.base import Call, EffectFailed, Performed
from authority.effects.descriptors import pair
from authority.kernel.canonical import printable
from authority.kernel.labels import CLEAN, Label
from authority.kernel.mcp_rules import parts, split_tool
from authority.kernel.requests import EFFECTS
from authority.kernel.resources import ResourceError, parse
from authority.protocol.packets import CallError, Fds, LinkOver, Peer
from authority.protocol.parcels import ParcelBroken, Parcels

STARTS = 4
FRESH_SECONDS = 30.0
REFRESHES = 64
"""Times that a server may say that its tools changed."""
MAX_RESULT = 1024 * 1024
MAX_ITEMS = 1000
_CHANGED = {"changed": True}

_json = msgspec.json.Encoder().encode


class Connection(Protocol):
    """A server that runs. `take` gives the worker's end of its streams, once."""

    @property
    def over(self) -> str: ...
    @property
    def label(self) -> Label: ...
    def sees(self, label: Label) -> None: ...
    def take(self) -> socket.socket: ...
    def stop(self, reason: str) -> None: ...


class Servers(Protocol):
    """What the gate does for one run's servers."""

    async def start(self, name: str) -> Connection:
        """Start a server in a run of its own. Raises `Failed`."""
        ...

    async def see(self, name: str, tools: Mapping[str, str]) -> None:
        """Record definitions that were not seen before; they wait for a person, or are approved."""
        ...

    def approved(self, name: str, tool: str, digest: str) -> bool:
        """Whether a tool may be shown and called with this definition."""
        ...


class Wanted(msgspec.Struct, forbid_unknown_fields=True):
    """What the worker asks for a client."""

    effect: Literal["mcp.list", "mcp.read", "mcp.prompt", "tool.call"]
    resource: str
    arguments: dict[str, Any]


class _Told(msgspec.Struct, forbid_unknown_fields=True):
    name: str
    text: str = ""
    why: str = ""


class _Refreshed(msgspec.Struct, forbid_unknown_fields=True):
    tools: list[tuple[str, str]]
    left_out: list[tuple[str, str]]


class _Server:
    """One server's connection, and what was seen of its tools: digests by name."""

    def __init__(self, connection: Connection) -> None:
        self.connection = connection
        self.tools: dict[str, str] = {}
        self.seen = 0.0
        self.changes = 0
        self.told: set[str] = set()


class Hub:
    """One run's."""

    def __init__(self, door: Door, servers: Servers) -> None:
        self._door = door
        self._gate = servers
        self._peer: Peer | None = None
        self._parcels: Parcels | None = None
        self._running: dict[str, _Server] = {}
        self._starts: dict[str, int] = {}
        self._first: dict[str, dict[str, str] | None] = {}
        self._handed: set[str] = set()
        self._locks: dict[str, asyncio.Lock] = {}
        self._connecting = asyncio.Lock()

    # --- the worker ---

    async def _link(self) -> Parcels:
        async with self._connecting:
            peer = await self._door.worker()
            if peer is self._peer and self._parcels is not None:
                return self._parcels
            for name in list(self._running):
                self._drop(name, "the worker was replaced")
            peer.on("mcp.trouble", self._trouble)
            peer.on("mcp.changed", self._changed)
            peer.on("mcp.over", self._over)
            parcels = Parcels(peer)
            parcels.on("mcp.ask", self._ask)
            await peer.call("prepare", {"kind": "mcp"})
            self._peer, self._parcels = peer, parcels
            return parcels

    async def _ask(self, params: Any) -> Any:
        wanted = msgspec.convert(params, Wanted)
        try:
            arguments = msgspec.convert(wanted.arguments, EFFECTS[wanted.effect].arguments)
        except msgspec.ValidationError:
            raise CallError("E_SCHEMA_INVALID", "The arguments do not have this form.") from None
        try:
            return await self._door.ask(wanted.effect, wanted.resource, arguments)
        except Refused as no:
            more: dict[str, Any] = {"layer": no.layer, "denial": no.number}
            if no.rule is not None:
                more["rule"] = no.rule
            raise CallError(no.code, no.sentence, more) from None
        except Failed as failed:
            raise CallError("E_EFFECT_FAILED", failed.sentence) from None

    async def _trouble(self, params: Any, _fds: list[int]) -> tuple[Any, Fds]:
        told = msgspec.convert(params, _Told)
        self._door.trouble(f"mcp.{told.name}: {told.text}")
        return None, ()

    async def _changed(self, params: Any, _fds: list[int]) -> tuple[Any, Fds]:
        server = self._running.get(msgspec.convert(params, _Told).name)
        if server is not None:
            server.seen = 0.0
            server.changes += 1
            if server.changes > REFRESHES:
                server.connection.stop("its tools changed too often")
        return None, ()

    async def _over(self, params: Any, _fds: list[int]) -> tuple[Any, Fds]:
        told = msgspec.convert(params, _Told)
        server = self._running.get(told.name)
        if server is not None and not server.connection.over:
            self._door.trouble(f"mcp.{told.name}: the server is over: {told.why}")
        self._drop(told.name, "given up")
        return None, ()

    def _drop(self, name: str, reason: str) -> None:
        server = self._running.pop(name, None)
        if server is not None:
            server.connection.stop(reason)

    def answered(self) -> None:
        """A person approved or refused a definition: clients may list anew."""
        if self._peer is not None:
            self._peer.tell("mcp.answered", {})

    # --- clients in the run ---

    async def serve(self, stream: Stream) -> None:
        """A connection to the run's endpoint."""
        await self.client(stream, "http")

    async def client(self, stream: Stream, form: str, names: list[str] | None = None) -> None:
        """A client's connection: `http`, or `lines` on plain streams."""
        await self._link()
        assert self._peer is not None
        ours, theirs = pair()
        ours.setblocking(False)
        params = {"kind": "mcp", "form": form, "names": names or sorted(self._door.policy.mcp)}
        serving = asyncio.ensure_future(self._serve(self._peer, params, theirs))
        serving.add_done_callback(self._served)
        try:
            await pump(stream, ours)
        finally:
            serving.cancel()

    async def _serve(self, peer: Peer, params: Any, theirs: socket.socket) -> None:
        with theirs:
            await peer.call("serve", params, [theirs.fileno()])

    def _served(self, serving: asyncio.Future[Any]) -> None:
        if not serving.cancelled() and (error := serving.exception()) is not None:
            self._door.trouble(f"a client of MCP was cut off: {type(error).__name__}: {error}")

    # --- servers ---

    async def _server(self, name: str) -> _Server:
        lock = self._locks.setdefault(name, asyncio.Lock())
        async with lock:
            await self._link()
            found = self._running.get(name)
            if found is not None and not found.connection.over:
                return found
            self._running.pop(name, None)
            self._starts[name] = self._starts.get(name, 0) + 1
            if self._starts[name] > STARTS:
                raise Failed(f"The server {name} ended too often.")
            connection = await self._gate.start(name)
            self._running[name] = server = _Server(connection)
            try:
                await self._introduce(name, connection)
            except Failed:
                self._drop(name, "it can't be spoken to")
                raise
            return server

    async def _introduce(self, name: str, connection: Connection) -> None:
        assert self._peer is not None
        timeout = self._door.policy.mcp[name].timeout
        with connection.take() as sock:
            try:
                params = {"name": name, "timeout": timeout}
                await self._peer.call("mcp.server", params, [sock.fileno()])
            except CallError as error:
                raise Failed(printable(error.sentence, 500)) from None
            except LinkOver:
                raise Failed("The run's worker ended.") from None

    async def _refresh(self, name: str, older_than: float = 0.0) -> _Server:
        server = await self._server(name)
        if server.seen and time.monotonic() - server.seen < older_than:
            return server
        server.seen = time.monotonic()
        found = msgspec.convert(await self._call("mcp.refresh", {"name": name}), _Refreshed)
        texts = {tool: text for tool, text in found.tools if _is_plain(text)}
        allowed = {tool: text for tool, text in texts.items() if self._allows(name, tool)}
        await self._gate.see(name, allowed)
        server.tools = {tool: _digest(text) for tool, text in texts.items()}
        if name not in self._handed:
            self._first.setdefault(name, server.tools)
        for tool, why in found.left_out:
            line = f"mcp.{name}: the tool {printable(tool, 128)} is left out: {printable(why, 200)}"
            if line not in server.told and len(server.told) < MAX_ITEMS:
                server.told.add(line)
                self._door.trouble(line)
        return server

    def _allows(self, name: str, tool: str) -> bool:
        try:
            resource = parse("tool.call", f"tool:{name}.{tool}")
        except ResourceError:
            return False
        return self._door.policy.judge("tool.call", resource).allowed

    async def _call(self, method: str, params: Any) -> Any:
        assert self._parcels is not None
        try:
            return await self._parcels.call(method, params)
        except (LinkOver, ParcelBroken) as error:
            raise Failed("The run's worker ended.") from error

    async def definition(self, name: str, tool: str) -> dict[str, Any]:
        """The facts for a decision about a call: the digest of what the tool is now, or why none."""
        found: dict[str, Any]
        try:
            server = await self._refresh(name, FRESH_SECONDS)
            found = {"definition": server.tools.get(tool, "")}
        except Failed as failed:
            found = {"definition": "", "missing": failed.sentence}
        except CallError as error:
            found = {"definition": "", "missing": printable(error.sentence, 500)}
        first = self._first.get(name) or {}
        known = name not in self._handed or name in self._first
        return found if known and first.get(tool, "") == found["definition"] else found | _CHANGED

    # --- performing what was admitted ---

    async def perform(self, call: Call) -> Performed:
        """Perform an admitted effect. Raises `EffectFailed`."""
        try:
            if call.effect == "tool.call":
                return await self._tool(call)
            name, kind, item = parts(call.resource)
            if call.effect == "mcp.list":
                return await self._list(call, name, kind)
            what = {"mcp.read": "read", "mcp.prompt": "prompt"}[call.effect]
            params: dict[str, Any] = {"name": name, "what": what, "item": item}
            if what == "prompt":
                params["arguments"] = call.arguments.arguments
            server = await self._server(name)
            self._hand(name, server, call)
            return self._performed(await self._call("mcp.perform", params), server)
        except Failed as failed:
            raise EffectFailed(failed.sentence) from None
        except CallError as error:
            facts = {"said": printable(str(error.more), 500)} if error.more else {}
            raise EffectFailed(printable(error.sentence, 500), facts=facts) from None

    async def _tool(self, call: Call) -> Performed:
        name, tool = split_tool(call.resource.name)
        server = await self._server(name)
        self._hand(name, server, call)
        params = {
            "name": name,
            "what": "tool",
            "item": tool,
            "digest": call.looked_up.get("definition", ""),
            "arguments": call.arguments.arguments,
        }
        try:
            value = await self._call("mcp.perform", params)
        except CallError as error:
            if not isinstance(error.more, str):
                raise
            # What the server says is its answer, with its label: not a sentence of ours.
            said = {"type": "text", "text": printable(error.more, 2000)}
            value = {"content": [said], "isError": True}
        return self._performed({"result": value}, server)

    async def _list(self, call: Call, name: str, kind: str) -> Performed:
        if kind == "tools":
            try:
                server = await self._refresh(name, 1.0)
            except Failed as failed:
                raise EffectFailed(
                    failed.sentence, carried=self._not_as_first(call, name)
                ) from None
            except CallError as error:
                carried = self._not_as_first(call, name)
                raise EffectFailed(printable(error.sentence, 500), carried=carried) from None
            shown = [
                {"name": tool, "digest": digest}
                for tool, digest in sorted(server.tools.items())
                if self._allows(name, tool) and self._gate.approved(name, tool, digest)
            ]
            carried = self._not_as_first(call, name, server)
            return Performed({"tools": shown}, facts={"tools": len(shown)}, carried=carried)
        server = await self._server(name)
        value = await self._call("mcp.perform", {"name": name, "what": "list", "item": kind})
        items = value.get("items") if isinstance(value, dict) else None
        kept = [i for i in items or () if isinstance(i, dict) and self._shows(name, kind, i)]
        return self._performed({"items": kept[:MAX_ITEMS]}, server)

    def _hand(self, name: str, server: _Server, call: Call) -> None:
        """It sees what a call is made with."""
        server.connection.sees(call.given)
        if not call.given.clean:
            self._handed.add(name)

    def _not_as_first(self, call: Call, name: str, server: _Server | None = None) -> Label:
        """The label of a list of tools: none as long as it is what it was at first."""
        tools = server.tools if server is not None else None
        running = server or self._running.get(name)
        if name not in self._handed:
            self._first.setdefault(name, tools)
        if name in self._first and tools == self._first[name]:
            return CLEAN
        own = running.connection.label if running is not None else CLEAN
        trusted = call.policy.trusted(call.resource, "")
        return own if trusted else own.join(Label(frozenset({f"mcp:{name}"})))

    def _shows(self, name: str, kind: str, item: Mapping[str, Any]) -> bool:
        effect, key = ("mcp.read", "uri") if kind == "resources" else ("mcp.prompt", "name")
        try:
            resource = parse(effect, f"mcp:{name}/{kind}/{item.get(key)}")
        except ResourceError:
            return False
        return self._door.policy.judge(effect, resource).allowed

    def _performed(self, value: Any, server: _Server) -> Performed:
        size = len(_json(value))
        if size > MAX_RESULT:
            raise EffectFailed(f"The answer is larger than {MAX_RESULT} bytes.")
        return Performed(value, facts={"size": size}, carried=server.connection.label)


def _is_plain(text: str) -> bool:
    """Printable ASCII and newlines: what can be shown to a person as it is."""
    return text.isascii() and text.replace("\n", "").isprintable()


def _digest(text: str) -> str:
    return hashlib.sha256(text.encode("ascii")).hexdigest()
