"""The control API of the gate itself: halts, capabilities, keys, approvals. (`run_routes`: of runs.)

Rules
- `halt` and `revoke` answer when everything under them is stopped; what could not be is listed.
- `resume` wants its own capability and a reason, and nothing of the halted runs comes back.
- Nobody approves what nobody can see: a request whose arguments were not kept (a run can use up the
  room for that) may be refused, and not be approved.
"""

from __future__ import annotations

import asyncio
import secrets
from typing import TYPE_CHECKING, Any

from authority.audit import query
from authority.gate import clock, opening
from authority.gate.control import Asking, Control, ControlRefused
from authority.kernel import capabilities, entries
from authority.kernel.canonical import printable
from authority.kernel.state import Pending
from authority.tokens import restriction_from_plain

if TYPE_CHECKING:
    from authority.gate.server import Gate

GRACE_DEFAULT_US = 60 * 60 * 1_000_000


class Routes:
    """The handlers, on one gate."""

    def __init__(self, gate: Gate) -> None:
        self._gate = gate
        self._ledger = gate.ledger
        self._runs = gate.runs

    def register(self, control: Control) -> None:
        """Put every call into the table."""
        self._control = control
        control.route("GET", "/v1/status", "status", self._status)
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
                    "requests": r.counts.requests,
                    "denials": r.counts.denials,
                }
                for r in self._runs.running.values()
            ],
            "keys": {kid: info.until for kid, info in state.keys.items()},
            "approvals": sum(not p.answer for p in state.approvals.values()),
            "checkpoint_error": str(self._gate.opened.checkpointer.error or ""),
            "log_trouble": self._ledger.log.trouble,
        }

    async def _halt(self, asking: Asking) -> dict[str, Any]:
        run = str(asking.body.get("run", ""))
        if run and run not in self._ledger.state.runs:
            raise ControlRefused(
                404,
                f"no run {printable(run, 64)}",
                "'authority gate status' lists those that go on",
            )
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
            raise ControlRefused(
                404,
                f"no run {printable(name, 64)} is running",
                "'authority gate status' lists those that go on",
            )
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
                raise ControlRefused(
                    404,
                    f"no definition {printable(key, 200)} is waiting",
                    "'authority approvals' lists what is",
                )
            await self._ledger.durable(seq)
            self._gate.hubs.answered()
            return {"id": key, "granted": granted, "seq": seq}
        if type(granted) is not bool:
            raise ControlRefused(400, "granted is true or false")
        pending = self._pending(key)
        if granted:
            await self._ledger.durable(pending.asked)
            if not await asyncio.to_thread(self._seen, pending.asked):
                raise ControlRefused(
                    409,
                    "the arguments were not kept, so nobody can see what would be approved",
                    "deny it; more room is 'stored_bytes' in [budgets]",
                )
            pending = self._pending(key)  # somebody else may have answered meanwhile
        receipt = self._ledger.step(
            [entries.Approval(run=pending.run, id=key, granted=granted, by=f"uid {asking.uid}")]
        )
        self._gate.pipeline.answered(key)
        return {"id": key, "granted": granted, "seq": receipt.seq}

    def _pending(self, key: str) -> Pending:
        found = self._ledger.state.approvals.get(key)
        if found is None or found.answer:
            raise ControlRefused(
                404,
                f"no approval {printable(key, 80)} is waiting",
                "'authority approvals' lists what is",
            )
        return found

    def _seen(self, asked: int) -> bool:
        """Whether the arguments of a request that waits are kept. Reads the log: not in the loop."""
        entry, _ = query.find(self._gate.opened.directory.log, asked)
        body = entry.get("filled") or entry.get("arguments") or {}
        return bool(body.get("kept", "digest") != "digest")

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
