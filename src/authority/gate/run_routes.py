"""The control API of runs: starting one, what is typed into it, and its end.

Rules
- The caller sends the policy's text and those variables of its own environment that the policy names;
  the gate parses, judges and keeps what it parsed. A policy that is wider than the last one from that
  path is refused with the difference, until the caller says it was accepted.
- Whoever started a run stays with it: when the caller goes away, the run ends.
"""

from __future__ import annotations

import asyncio
import base64
import re
from collections.abc import Awaitable, Callable
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from authority import protocol
from authority.gate import continuing, figures
from authority.gate.control import Asking, Control, ControlRefused
from authority.gate.grants import granted
from authority.gate.houses import KINDS
from authority.gate.places import WAYS
from authority.gate.run import Listener, Run, Start
from authority.gate.typing import Typing
from authority.kernel.canonical import printable

if TYPE_CHECKING:
    from authority.gate.server import Gate

PROGRESS_SECONDS = 0.5
LARGEST_WINDOW = 4096
_TERM = re.compile(r"[A-Za-z0-9][A-Za-z0-9+._-]{0,63}")


class RunRoutes:
    """The handlers, on one gate."""

    def __init__(self, gate: Gate) -> None:
        self._gate = gate
        self._ledger = gate.ledger
        self._runs = gate.runs
        self._typing = Typing(gate.ledger, gate.opened.store)

    def register(self, control: Control) -> None:
        """Put every call into the table."""
        self._control = control
        control.route("POST", "/v1/runs", "run", self._run)
        control.route("POST", "/v1/runs/*/input", "run", self._input)
        control.route("POST", "/v1/runs/*/resize", "run", self._resize)
        control.route("POST", "/v1/runs/*/stop", "run", self._stop)
        control.route("POST", "/v1/attach", "attach", self._attach)
        control.route("POST", "/v1/mcp", "attach", self._mcp)

    def _spec(self, asking: Asking) -> Start:
        body = asking.body
        argv, cwd = body.get("argv", []), body.get("cwd", "")
        environment = body.get("environment", {})
        if (
            not isinstance(argv, list)
            or not all(isinstance(a, str) and "\0" not in a for a in argv)
            or not isinstance(cwd, str)
            or not cwd.startswith("/")
            or not isinstance(environment, dict)
            or not all(isinstance(v, str) for v in environment.values())
        ):
            raise ControlRefused(400, "a run needs argv, cwd and environment as text")
        policy = self._gate.policies.load(body, self._ledger.state)
        caller = {**environment, "PATH": str(body.get("path", ""))}
        files = body.get("files", "")
        if files and files not in WAYS:
            raise ControlRefused(400, f"files are reached by {', '.join(WAYS)}")
        isolation = body.get("isolation", "auto")
        if isolation not in KINDS:
            raise ControlRefused(400, f"a run is isolated by {', '.join(KINDS)}")
        passed = {
            **policy.process.env,
            **{k: environment[k] for k in policy.process.pass_env if k in environment},
        }
        terminal = _window(body["terminal"]) if "terminal" in body else None
        kind = environment.get("TERM", "")
        if terminal is not None:
            passed.setdefault("TERM", kind if _TERM.fullmatch(kind) else "xterm-256color")
        return Start(
            argv=tuple(argv),
            cwd=cwd,
            policy=policy,
            environment=passed,
            budgets=dict(policy.budgets),
            restriction=granted(body.get("grant")),
            policy_path=str(body.get("policy_path", "")),
            caller=caller,
            terminal=terminal,
            watch=body.get("suggest") is True,
            dry=body.get("dry_run") is True,
            files=files,
            room=asking.room,
            isolation=isolation,
            emulate=body.get("emulate") is True,
        )

    async def _continued(self, asking: Asking, spec: Start) -> Start:
        """A run that goes on with a recorded one. Raises `ReplayRefused`, `ControlRefused`."""
        wanted = asking.body["continues"]
        if not isinstance(wanted, dict) or type(wanted.get("after")) is not int:
            raise ControlRefused(400, "continues names a run and the entry after which it goes on")
        opened = self._gate.opened
        run = str(wanted.get("run", ""))
        if run in self._runs.running:
            raise ControlRefused(409, "the run is still going on", "wait for its end, or stop it")
        recording = await asyncio.to_thread(continuing.read, opened.directory.log, run)
        return continuing.started(spec, recording, opened.store, wanted["after"])

    async def _run(self, asking: Asking) -> None:
        spec = self._spec(asking)
        if "continues" in asking.body:
            spec = await self._continued(asking, spec)
        if not spec.argv:
            raise ControlRefused(400, "no program to run")
        self._control.record(asking, detail=printable(" ".join(spec.argv), 512))
        spec = await self._runs.housed(spec, asking.stream)
        await self._follow(await self._begun(spec, asking, self._runs.start), asking)

    async def _attach(self, asking: Asking) -> None:
        spec = self._spec(asking)
        self._control.record(asking, detail="attach")
        await self._follow(await self._begun(spec, asking, self._runs.attach), asking)

    async def _mcp(self, asking: Asking) -> None:
        """A client of MCP that somebody else started, and the server that it wants to reach."""
        spec = self._spec(asking)
        name = str(asking.body.get("name", ""))
        if name not in spec.policy.mcp:
            raise ControlRefused(
                409,
                f"the policy has no section [mcp.{printable(name, 64)}]",
                "add one that says which tools are allowed, or name another with --name",
            )
        if not spec.argv:
            raise ControlRefused(400, "no server to run")
        spec = replace(spec, argv=(), serves=spec.argv)
        self._control.record(asking, detail=printable(" ".join(spec.serves), 512))
        run = await self._begun(spec, asking, self._runs.attach)
        self._gate.hubs.attach(run, name)
        await self._follow(run, asking)

    async def _begun(
        self, spec: Start, asking: Asking, begin: Callable[[Start, Listener], Awaitable[Run]]
    ) -> Run:
        """The run, once the gate holds what its policy needs; without one nothing is kept of that."""
        await self._gate.policies.keep(spec.policy)
        try:  # nothing is awaited from here to the run's first entry
            self._gate.policies.remember(spec.policy, asking.body)
            self._gate.give(spec.policy, spec.caller)
            return await begin(spec, asking.stream)
        except BaseException:
            self._gate.release(spec.policy.digest)
            raise

    async def _follow(self, run: Run, asking: Asking) -> None:
        """Stay with a run until it ends, and end it when the caller goes away."""
        ended = asyncio.ensure_future(run.ended.wait())
        gone = asyncio.ensure_future(asking.gone.wait())
        try:
            while not ended.done():
                await asyncio.wait(
                    {ended, gone}, timeout=PROGRESS_SECONDS, return_when=asyncio.FIRST_COMPLETED
                )
                if gone.done() and not ended.done():
                    run.stop("disconnected")
                    await ended
                elif not ended.done() and asking.room.is_set():
                    asking.stream(figures.progress(self._ledger.state, run))
        finally:
            ended.cancel()
            gone.cancel()

    def _running(self, name: str) -> Run:
        run = self._runs.running.get(name)
        if run is None:
            raise ControlRefused(404, f"no run {printable(name, 64)} is running")
        return run

    async def _input(self, asking: Asking) -> dict[str, Any]:
        run = self._running(asking.path[0])
        wire = self._gate.hubs.wires.get(run.id)
        if not run.spec.argv and wire is None:
            raise ControlRefused(409, "the run takes no input from here")
        try:
            data = base64.b64decode(asking.body.get("data", ""), validate=True)
        except (ValueError, TypeError) as error:
            raise ControlRefused(400, "data is not base64") from error
        if wire is not None:
            await wire.feed(data, eof=bool(asking.body.get("eof")))
            return {}
        if not await run.connected() or run.channel is None:
            raise ControlRefused(409, "the run has ended")
        if data:
            await self._typing.give(run, data)
        if asking.body.get("eof"):
            run.channel.send_control(protocol.InputEof())
        return {}

    async def _resize(self, asking: Asking) -> dict[str, Any]:
        run = self._running(asking.path[0])
        rows, columns = _window(asking.body)
        if run.spec.terminal is None:
            raise ControlRefused(409, "the run has no terminal")
        if await run.connected() and run.channel is not None:
            run.channel.send_control(protocol.Resize(rows, columns))
        return {}

    async def _stop(self, asking: Asking) -> dict[str, Any]:
        run = self._running(asking.path[0])
        self._control.record(asking, detail=run.id)
        run.stop("stopped")
        return {"in_doubt": await self._runs.halted(run.id)}


def _window(value: Any) -> tuple[int, int]:
    """Rows and columns of a terminal's window. Raises `ControlRefused`."""
    if isinstance(value, dict):
        rows, columns = value.get("rows"), value.get("columns")
        if isinstance(rows, int) and isinstance(columns, int):
            size = (int(rows), int(columns))
            if min(size) > 0 and max(size) <= LARGEST_WINDOW:
                return size
    raise ControlRefused(400, f"a terminal has rows and columns, 1 to {LARGEST_WINDOW}")
