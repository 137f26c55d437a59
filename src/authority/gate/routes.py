"""What the control API does, call by call.

Rules
- Starting a run: the caller sends the policy's text and those variables of its own environment that
  the policy names; the gate parses, judges and keeps what it parsed. A policy that is wider than the
  last one from that path is refused with the difference, until the caller says it was accepted.
- `halt` and `revoke` answer when everything under them is stopped; what could not be is listed.
- `resume` wants its own capability and a reason, and nothing of the halted runs comes back.
"""

from __future__ import annotations

import asyncio
import base64
import re
import secrets
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from authority import protocol
from authority.gate import clock, continuing, figures, opening
from authority.gate.control import Asking, Control, ControlRefused
from authority.gate.grants import granted
from authority.gate.houses import KINDS
from authority.gate.places import WAYS
from authority.gate.run import Run, Start
from authority.gate.typing import Typing
from authority.kernel import capabilities, entries
from authority.kernel.canonical import printable
from authority.tokens import restriction_from_plain

if TYPE_CHECKING:
    from authority.gate.server import Gate

PROGRESS_SECONDS = 0.5
GRACE_DEFAULT_US = 60 * 60 * 1_000_000
LARGEST_WINDOW = 4096
_TERM = re.compile(r"[A-Za-z0-9][A-Za-z0-9+._-]{0,63}")


class Routes:
    """The handlers, on one gate."""

    def __init__(self, gate: Gate) -> None:
        self._gate = gate
        self._ledger = gate.ledger
        self._runs = gate.runs
        self._typing = Typing(gate.ledger, gate.opened.store)

    def register(self, control: Control) -> None:
        """Put every call into the table."""
        self._control = control
        control.route("GET", "/v1/status", "status", self._status)
        control.route("POST", "/v1/runs", "run", self._run)
        control.route("POST", "/v1/runs/*/input", "run", self._input)
        control.route("POST", "/v1/runs/*/resize", "run", self._resize)
        control.route("POST", "/v1/runs/*/stop", "run", self._stop_run)
        control.route("POST", "/v1/attach", "attach", self._attach)
        control.route("POST", "/v1/mcp", "attach", self._mcp)
        control.route("POST", "/v1/halt", "halt", self._halt)
        control.route("POST", "/v1/resume", "resume", self._resume)
        control.route("POST", "/v1/tokens", "mint", self._mint)
        control.route("POST", "/v1/tokens/revoke", "revoke", self._revoke)
        control.route("POST", "/v1/keys/rotate", "rotate", self._rotate)
        control.route("GET", "/v1/approvals", "status", self._approvals)
        control.route("POST", "/v1/approvals/*", "approve", self._approve)
        control.route("POST", "/v1/proofs", "prove", self._prove)
        control.route("POST", "/v1/clock", "clock", self._clock)
        control.route("POST", "/v1/stop", "stop", self._stop)

    async def _status(self, _asking: Asking) -> dict[str, Any]:
        state = self._ledger.state
        return {
            "log": state.log,
            "head": {"seq": self._ledger.last.seq, "hash": self._ledger.last.hash.hex()},
            "halted": state.halted if state.halted >= 0 else None,
            "clock_suspect": state.clock_suspect,
            "runs": [
                {
                    "run": r.id,
                    "program": [printable(a) for a in r.spec.argv],
                    "attached": r.sandbox is None,
                    "requests": r.tally.requests,
                    "denials": r.tally.denials,
                }
                for r in self._runs.running.values()
            ],
            "keys": {kid: info.until for kid, info in state.keys.items()},
            "approvals": sum(not p.answer for p in state.approvals.values()),
            "checkpoint_error": str(self._gate.opened.checkpointer.error or ""),
            "log_trouble": self._ledger.log.trouble,
        }

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
        spec = await self._runs.housed(spec)
        await self._gate.policies.keep(spec.policy)
        try:
            self._hand_over(spec, asking)
            run = await self._runs.start(spec, asking.stream)
        except BaseException:
            self._gate.release(spec.policy.digest)
            raise
        await self._follow(run, asking)

    async def _attach(self, asking: Asking) -> None:
        spec = self._spec(asking)
        self._control.record(asking, detail="attach")
        await self._gate.policies.keep(spec.policy)
        try:
            self._hand_over(spec, asking)
            run = await self._runs.attach(spec, asking.stream)
        except BaseException:
            self._gate.release(spec.policy.digest)
            raise
        await self._follow(run, asking)

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
        await self._gate.policies.keep(spec.policy)
        try:
            self._hand_over(spec, asking)
            run = await self._runs.attach(spec, asking.stream)
        except BaseException:
            self._gate.release(spec.policy.digest)
            raise
        self._gate.hubs.attach(run, name)
        await self._follow(run, asking)

    def _hand_over(self, spec: Start, asking: Asking) -> None:
        """Give the gate what the run's policy needs; nothing is awaited from here to its entry."""
        self._gate.policies.remember(spec.policy, asking.body)
        self._gate.give(spec.policy, spec.caller)

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

    async def _stop_run(self, asking: Asking) -> dict[str, Any]:
        run = self._running(asking.path[0])
        self._control.record(asking, detail=run.id)
        run.stop("stopped")
        return {"in_doubt": await self._runs.halted(run.id)}

    async def _halt(self, asking: Asking) -> dict[str, Any]:
        run = str(asking.body.get("run", ""))
        if run and run not in self._ledger.state.runs:
            raise ControlRefused(404, f"no run {printable(run, 64)}")
        reason = printable(str(asking.body.get("reason", "")), 512)
        self._control.record(asking, detail=run)
        receipt = self._ledger.step([entries.Halt(run=run, reason=reason, by=f"uid {asking.uid}")])
        self._runs.halt_started(run, "halted")
        in_doubt = await self._runs.halted(run)
        return {"seq": receipt.seq, "in_doubt": in_doubt}

    async def _resume(self, asking: Asking) -> dict[str, Any]:
        reason = printable(str(asking.body.get("reason", "")), 512)
        if not reason:
            raise ControlRefused(400, "resuming needs a reason", "give it with --reason")
        if self._ledger.state.halted < 0:
            raise ControlRefused(409, "nothing is halted")
        if cases := [c.id for c in self._ledger.state.cases.values() if c.wide and c.open]:
            raise ControlRefused(
                409,
                f"incident {cases[0]} halted everything: it has to be closed first",
                f"'authority incident show {cases[0]}' says what is next",
            )
        self._control.record(asking)
        receipt = self._ledger.step([entries.Resume(reason=reason, by=f"uid {asking.uid}")])
        return {"seq": receipt.seq}

    async def _mint(self, asking: Asking) -> dict[str, Any]:
        name = str(asking.body.get("run", ""))
        info = self._ledger.state.runs.get(name)
        if info is None or not info.running or info.halted:
            raise ControlRefused(404, f"no run {printable(name, 64)} is running")
        restriction = restriction_from_plain(asking.body.get("restriction", {}))
        self._control.record(asking, detail=name)
        token = capabilities.mint(
            self._gate.opened.minting,
            id=secrets.token_hex(16),
            run=name,
            restriction=restriction,
        )
        parsed = capabilities.parse(token)
        receipt = self._ledger.step(
            [
                entries.CapMint(
                    run=name, id=parsed.ids[0], kid=parsed.kid, restriction=restriction.plain()
                )
            ]
        )
        text = capabilities.to_text(token)
        return {"token": text, "id": parsed.ids[0], "seq": receipt.seq}

    async def _revoke(self, asking: Asking) -> dict[str, Any]:
        ids = self._ids(asking.body)
        self._control.record(asking, detail=ids[-1])
        state = self._ledger.state
        run = state.caps[ids[0]].run if ids[0] in state.caps else ""
        receipt = self._ledger.step(
            [
                entries.CapRevoke(
                    run=run,
                    id=ids[-1],
                    reason=printable(str(asking.body.get("reason", "")), 512),
                    by=f"uid {asking.uid}",
                )
            ]
        )
        in_doubt = await self._gate.pipeline.stop_under(ids[-1])
        return {"id": ids[-1], "seq": receipt.seq, "in_doubt": in_doubt}

    def _ids(self, body: dict[str, Any]) -> list[str]:
        """The chain of ids of a token, or the one id that was named."""
        text = str(body.get("token", ""))
        if text.startswith("auth1_"):
            token, ok = self._gate.reader.token(capabilities.from_text(text))
            if token is None or not ok:
                raise ControlRefused(400, "not a capability of this gate")
            return list(token.ids)
        if text in self._ledger.state.caps:
            return [text]
        raise ControlRefused(
            404, f"no capability {printable(text, 64)} is known", "name its id, or give the token"
        )

    async def _rotate(self, asking: Asking) -> dict[str, Any]:
        grace = asking.body.get("grace_us", GRACE_DEFAULT_US)
        if type(grace) is not int or not 0 <= grace <= 2**52:
            raise ControlRefused(400, "grace_us is a number of microseconds")
        self._control.record(asking)
        kid = opening.rotate(self._gate.opened, clock.wall() + grace)
        opening.renew_own(self._gate.opened)
        return {"kid": kid, "grace_us": grace}

    async def _approvals(self, _asking: Asking) -> dict[str, Any]:
        return {
            "approvals": [
                {
                    "id": key,
                    "run": p.run,
                    "effect": p.effect,
                    "resource": p.resource,
                    "asked": p.asked,
                    "answer": p.answer or "waiting",
                }
                for key, p in self._ledger.state.approvals.items()
            ],
            "definitions": await self._gate.definitions.waiting(),
        }

    async def _approve(self, asking: Asking) -> dict[str, Any]:
        key = asking.path[0]
        granted = asking.body.get("granted")
        if key.startswith("mcp.") and type(granted) is bool:
            seq = self._gate.definitions.answer(key, f"uid {asking.uid}", granted=granted)
            if seq is None:
                raise ControlRefused(404, f"no definition {printable(key, 200)} is waiting")
            await self._ledger.durable(seq)
            self._gate.hubs.answered()
            return {"id": key, "granted": granted, "seq": seq}
        pending = self._ledger.state.approvals.get(key)
        if pending is None or pending.answer:
            raise ControlRefused(404, f"no approval {printable(key, 80)} is waiting")
        if type(granted) is not bool:
            raise ControlRefused(400, "granted is true or false")
        receipt = self._ledger.step(
            [entries.Approval(run=pending.run, id=key, granted=granted, by=f"uid {asking.uid}")]
        )
        self._gate.pipeline.answered(key)
        return {"id": key, "granted": granted, "seq": receipt.seq}

    async def _prove(self, asking: Asking) -> dict[str, Any]:
        from authority.gate import proofs  # a gate that proves nothing does not load the prover

        entry = await proofs.checked(
            str(asking.body.get("certificate", "")), self._gate.opened.store
        )
        self._control.record(asking, detail=entry.certificate)
        entry.by = f"uid {asking.uid}"
        receipt = self._ledger.step([entry])
        return {"seq": receipt.seq, "certificate": entry.certificate, "verdict": entry.verdict}

    async def _clock(self, asking: Asking) -> dict[str, Any]:
        self._control.record(asking)
        receipt = self._ledger.step(
            [entries.Clock(jump=0, boot_clock=clock.boot(), confirmed=True)]
        )
        return {"seq": receipt.seq}

    async def _stop(self, asking: Asking) -> dict[str, Any]:
        if self._runs.running and not asking.body.get("force"):
            raise ControlRefused(
                409, f"{len(self._runs.running)} runs are running", "halt them, or stop with force"
            )
        self._control.record(asking)
        asyncio.get_running_loop().call_later(0.05, self._gate.leave)
        return {"stopping": True}


def _window(value: Any) -> tuple[int, int]:
    """Rows and columns of a terminal's window. Raises `ControlRefused`."""
    if isinstance(value, dict):
        rows, columns = value.get("rows"), value.get("columns")
        if isinstance(rows, int) and isinstance(columns, int):
            size = (int(rows), int(columns))
            if min(size) > 0 and max(size) <= LARGEST_WINDOW:
                return size
    raise ControlRefused(400, f"a terminal has rows and columns, 1 to {LARGEST_WINDOW}")
