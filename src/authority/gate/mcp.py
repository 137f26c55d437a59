"""MCP servers at the gate: each started in a run of its own, its streams carried and committed.

Rules
- A server is a deputy: its rights are its own policy's (none, when `[mcp.NAME]` names no file), not the
  run's that calls it; its budgets are charged to that run as well, and it ends with it. It has a
  capability of its own, and no servers of its own.
- Its streams are one effect of its own run (`mcp.serve`). It starts with a clean label; what it is
  sent is committed before it gets it and raises its label to the caller's; what it sends is committed
  before the worker sees it.
- What a server says that its tools are is recorded and approved in `definitions`.
"""

from __future__ import annotations

import asyncio
import base64
import contextlib
import socket
from collections.abc import Callable, Coroutine, Mapping
from typing import Any

from authority import protocol
from authority.compat.base import Door, Failed, Flow, Refused
from authority.compat.mcp import Hub
from authority.effects.base import Call, EffectFailed, Performed
from authority.errors import AuthorityError
from authority.gate.definitions import Definitions
from authority.gate.ledger import Ledger
from authority.gate.pipeline import Performer
from authority.gate.policies import Policies
from authority.gate.run import Event, Run, Start
from authority.gate.runs import Runs
from authority.kernel.canonical import printable
from authority.kernel.facts import Request
from authority.kernel.labels import CLEAN, Label
from authority.kernel.mcp_rules import McpServer
from authority.kernel.policy import Policy
from authority.kernel.requests import Nothing
from authority.kernel.resources import named
from authority.kernel.state import State
from authority.protocol.packets import LinkOver

CHUNK = 64 * 1024
WIRE_WAITING = 64
"""Pieces of an attached client's bytes that wait to be read."""


class Served:
    """One server's run and its streams. See `compat.mcp.Connection`."""

    def __init__(self, state: State, parent: str) -> None:
        self.over = ""
        self._state = state
        self._parent = parent
        self._ours, self._theirs = socket.socketpair()
        self._ours.setblocking(False)
        self._printed: asyncio.Queue[bytes] = asyncio.Queue()
        self._stopping = asyncio.Event()
        self._child: Run | None = None
        self._tasks: set[asyncio.Task[Any]] = set()
        self._sent = CLEAN

    def sees(self, label: Label) -> None:
        """What is sent from now on may hold this, too: values of handles."""
        self._sent = self._sent.join(label)

    def printed(self, data: bytes) -> None:
        """What the server wrote to its standard output."""
        self._printed.put_nowait(data)

    def take(self) -> socket.socket:
        return self._theirs

    @property
    def label(self) -> Label:
        info = self._state.runs.get(self._child.id) if self._child is not None else None
        return info.label if info is not None else CLEAN

    async def carry(self, child: Run, door: Door) -> None:
        """Carry its streams from now on. Raises `Refused`."""
        self._child = child
        child.on_end(lambda: self.stop("its run ended"))
        flow = await door.open("mcp.serve", named("run", self._parent), Nothing())
        flow.on_stop(lambda: self.stop("its run was stopped"))
        carrying = [self._keep(work) for work in (self._inward(flow), self._outward(flow))]
        self._keep(self._finish(flow, carrying))

    def _keep(self, work: Coroutine[Any, Any, None]) -> asyncio.Task[None]:
        task = asyncio.get_running_loop().create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
        return task

    async def _finish(self, flow: Flow, carrying: list[asyncio.Task[None]]) -> None:
        """When one direction has ended, so has the other; then the effect has its outcome."""
        await asyncio.wait(carrying, return_when=asyncio.FIRST_COMPLETED)
        for task in carrying:
            task.cancel()
        await asyncio.wait(carrying)
        self._ours.close()
        await flow.finish("done", facts={"ended": self.over})

    def stop(self, reason: str) -> None:
        if self.over:
            return
        self.over = printable(reason, 200)
        self._theirs.close()
        if not self._tasks:
            self._ours.close()
        else:
            with contextlib.suppress(OSError):  # who reads or writes it sees its end
                self._ours.shutdown(socket.SHUT_RDWR)
        self._stopping.set()
        if self._child is not None and not self._child.over:
            self._child.stop(reason)

    async def _next(self) -> bytes:
        """What the server printed next; nothing when it is stopped."""
        waits = [asyncio.ensure_future(w) for w in (self._printed.get(), self._stopping.wait())]
        try:
            await asyncio.wait(waits, return_when=asyncio.FIRST_COMPLETED)
            found = waits[0].result() if waits[0].done() and not self.over else b""
            return found if isinstance(found, bytes) else b""
        finally:
            for each in waits:
                each.cancel()

    def _caller(self) -> Label:
        info = self._state.runs.get(self._parent)
        return self._sent.join(info.label if info is not None else CLEAN)

    async def _inward(self, flow: Flow) -> None:
        """From the worker to the server."""
        assert self._child is not None
        loop = asyncio.get_running_loop()
        try:
            while data := await loop.sock_recv(self._ours, CHUNK):
                await flow.commit("in", data, charge={}, label=self._caller())
                await self._child.give_input(data)
        except (OSError, Refused) as error:
            self.stop(f"its input ended: {error}")
            return
        self.stop("the worker ended the connection")

    async def _outward(self, flow: Flow) -> None:
        """From the server to the worker. It gets room for more when this was passed on."""
        assert self._child is not None
        loop = asyncio.get_running_loop()
        try:
            while True:
                data = await self._next()
                if not data:
                    return
                await flow.commit("out", data, charge={"output_bytes": len(data)})
                await loop.sock_sendall(self._ours, data)
                self._child.acknowledge(len(data))
        except (OSError, Refused) as error:
            self.stop(f"its output ended: {error}")


class Wire:
    """An attached client's bytes, as a stream: in through the control API, out as events of its run."""

    number = 0
    service = int(protocol.Service.MCP)
    detail = b""

    def __init__(self, run: Run) -> None:
        self._run = run
        self._queue: asyncio.Queue[bytes] = asyncio.Queue(WIRE_WAITING)

    async def feed(self, data: bytes, *, eof: bool) -> None:
        """What the client sent. Waits while too much of it waits."""
        if data:
            await self._queue.put(data)
        if eof:
            await self._queue.put(b"")

    async def read(self) -> bytes:
        return await self._queue.get()

    async def write(self, data: bytes) -> None:
        await self._run.taken()
        self._run.emit({"event": "mcp", "data": base64.b64encode(data).decode()})

    def write_eof(self) -> None:
        self._run.emit({"event": "mcp", "data": ""})

    def abort(self) -> None:
        self._run.on_closed("the connection was cut")


class RunsServers:
    """One run's servers, for its hub. See `compat.mcp.Servers`."""

    def __init__(self, hubs: Hubs, run: Run) -> None:
        self._hubs = hubs
        self._run = run

    async def start(self, name: str) -> Served:
        return await self._hubs.start(self._run, name)

    async def see(self, name: str, tools: Mapping[str, str]) -> None:
        await self._hubs.definitions.see(self._run, name, tools)

    def approved(self, name: str, tool: str, digest: str) -> bool:
        server = self._run.spec.policy.mcp[name]
        return self._hubs.definitions.approved(server, name, tool, digest)


class Hubs:
    """The hubs of all runs; performs `tool.call` on servers' tools, and `mcp.*`."""

    def __init__(
        self,
        runs: Runs,
        ledger: Ledger,
        definitions: Definitions,
        policies: Policies,
        door: Callable[[Run], Door],
        give: Callable[[Policy, Mapping[str, str]], None],
        release: Callable[[str], None],
    ) -> None:
        self.state = ledger.state
        self._runs = runs
        self.definitions = definitions
        self._policies = policies
        self._door = door
        self._give = give
        self._release = release
        self._hubs: dict[str, Hub] = {}
        self.wires: dict[str, Wire] = {}

    def service(self, door: Door) -> Hub:
        """A run's hub, made when it starts."""
        run = self._runs.running[door.run]
        hub = self._hubs[run.id] = Hub(door, RunsServers(self, run))
        run.on_end(lambda: self._forget(run.id))
        return hub

    def _forget(self, run_id: str) -> None:
        self._hubs.pop(run_id, None)
        self.wires.pop(run_id, None)

    def attach(self, run: Run, name: str) -> None:
        """Serve an attached client that speaks MCP through the control API."""
        hub = self.of(run.id)
        assert hub is not None
        wire = self.wires[run.id] = Wire(run)

        async def serve() -> None:
            try:
                await hub.client(wire, "lines", [name])
            except (Failed, LinkOver, OSError) as error:
                run.on_trouble(f"the connection ended: {error}")
            finally:
                run.on_closed("the client is gone")

        task = asyncio.get_running_loop().create_task(serve())
        run.tasks.add(task)
        task.add_done_callback(run.tasks.discard)

    def of(self, run_id: str) -> Hub | None:
        """The hub of a run; None for a run that may have none."""
        run = self._runs.running.get(run_id)
        if run is None or run.spec.own or not run.spec.policy.mcp:
            return None
        return self._hubs.get(run_id) or self.service(self._door(run))

    def answered(self) -> None:
        """A person answered what waited."""
        for hub in self._hubs.values():
            hub.answered()

    async def look_up(self, request: Request) -> dict[str, Any]:
        """What a call of a server's tool has to know: the tool's definition as it is now."""
        run = self._runs.running.get(request.run)
        found = run.spec.policy.mcp_tool(request.resource) if run and request.resource else None
        if found is None:
            return {}
        hub = self.of(request.run)
        if hub is None:
            return {"definition": "", "missing": "a server has no servers of its own"}
        return await hub.definition(found[1], found[2])

    async def perform(self, call: Call) -> Performed:
        hub = self.of(call.run)
        if hub is None:
            raise EffectFailed("A server has no servers of its own.")
        return await hub.perform(call)

    async def start(self, run: Run, name: str) -> Served:
        """Start a server for a run. Raises `Failed`."""
        server = run.spec.policy.mcp[name]
        command = server.command or run.spec.serves
        if not command:
            raise Failed(f"The policy names no command for the server {name}.")
        served = Served(self.state, run.id)
        try:
            attached = run.spec.serves and not server.policy
            policy = (
                run.spec.policy if attached else self._policies.for_server(run.spec.policy, name)
            )
            await self._policies.keep(policy)
            self._give(policy, run.spec.caller)
            try:
                child = await self._runs.start(
                    _start(run, name, server, command, policy, served.printed), _events(run, name)
                )
            except BaseException:
                self._release(policy.digest)
                raise
            await served.carry(child, self._door(child))
        except (AuthorityError, OSError, Refused) as error:
            served.stop("not started")
            raise Failed(
                f"The server {name} could not be started: {printable(str(error), 300)}"
            ) from error
        return served


class ToolRouter:
    """`tool.call`: a server's tool to its hub, the rest to the tools' own performer."""

    def __init__(self, tools: Performer, hubs: Hubs) -> None:
        self._tools = tools
        self._hubs = hubs

    async def perform(self, call: Call) -> Performed:
        if call.policy.mcp_tool(call.resource) is not None:
            return await self._hubs.perform(call)
        return await self._tools.perform(call)


def _start(
    run: Run,
    name: str,
    server: McpServer,
    command: tuple[str, ...],
    policy: Policy,
    printed: Callable[[bytes], None],
) -> Start:
    caller = run.spec.caller
    passed = {
        key: caller[key] for key in (*server.pass_env, *policy.process.pass_env) if key in caller
    }
    return Start(
        argv=command,
        cwd=server.base if server.command else run.spec.cwd,
        policy=policy,
        environment={**policy.process.env, **passed, **server.env},
        parent=run.id,
        agent=f"mcp:{name}",
        budgets=dict(policy.budgets),
        policy_path=policy.name if server.policy else "",
        caller=caller,
        own=True,
        printed=printed,
        room=run.spec.room,
    )


def _events(run: Run, name: str) -> Callable[[Event], None]:
    """What happens in a server's run is told to whoever watches the run that it serves."""

    def forward(event: Event) -> None:
        run.emit({**event, "child": f"mcp:{name}"})

    return forward
