"""The control API of incidents: what a person reports, and the evidence for each step.

Rules
- Evidence is derived here, not believed: a policy's digest from its text, a certificate's claims by
  deciding them again, counts by counting. Whether the attacks were really made is the person's word;
  what they printed is kept. What is kept goes to the content store first.
- Each step is judged by the kernel before it is recorded, and the refusal says what is missing.
- Closing a case wants the capability that resuming wants.
"""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING, Any

import msgspec

from authority.gate.control import Asking, Control, ControlRefused
from authority.kernel.canonical import printable
from authority.kernel.incidents import Case

if TYPE_CHECKING:
    from authority.gate.server import Gate

MOST_CERTIFICATES = 16


class IncidentRoutes:
    """The handlers, on one gate."""

    def __init__(self, gate: Gate) -> None:
        self._gate = gate
        self._ledger = gate.ledger
        self._incidents = gate.incidents

    def register(self, control: Control) -> None:
        """Put every call into the table."""
        self._control = control
        control.route("GET", "/v1/incidents", "status", self._list)
        control.route("POST", "/v1/incidents", "incident", self._report)
        control.route(
            "POST", "/v1/incidents/*/forensics", "incident", partial(self._step, "forensics")
        )
        control.route("POST", "/v1/incidents/*/cause", "incident", partial(self._step, "cause"))
        control.route("POST", "/v1/incidents/*/patched", "incident", partial(self._step, "patched"))
        control.route("POST", "/v1/incidents/*/proved", "incident", partial(self._step, "proved"))
        control.route("POST", "/v1/incidents/*/tested", "incident", partial(self._step, "tested"))
        control.route(
            "POST", "/v1/incidents/*/deployed", "incident", partial(self._step, "deployed")
        )
        control.route("POST", "/v1/incidents/*/resumed", "resume", partial(self._step, "resumed"))
        control.route("POST", "/v1/canaries", "incident", self._canary)

    async def _list(self, _asking: Asking) -> dict[str, Any]:
        state = self._ledger.state
        return {
            "incidents": [msgspec.to_builtins(case) for case in state.cases.values()],
            "canaries": dict(state.canaries),
        }

    async def _report(self, asking: Asking) -> dict[str, Any]:
        """A person, or a check that runs beside the gate, saw something."""
        what, detail = str(asking.body.get("what", "")), str(asking.body.get("detail", ""))
        run, of = str(asking.body.get("run", "")), asking.body.get("of", -1)
        if not what.isidentifier() or len(what) > 32 or type(of) is not int:
            raise ControlRefused(400, "an incident has a short name, and an entry's number at most")
        if run and run not in self._ledger.state.runs:
            raise ControlRefused(404, f"no run {printable(run, 64)} is known")
        self._control.record(asking, detail=what)
        return {"incident": self._incidents.open(what, detail, run=run, of=of)}

    async def _step(self, step: str, asking: Asking) -> dict[str, Any]:
        number = asking.path[0]
        case = self._incidents.case(int(number)) if number.isdecimal() else None
        if case is None:
            raise ControlRefused(
                404, f"there is no incident {printable(number, 20)}", "'authority incident show'"
            )
        by = f"uid {asking.uid} cap {asking.caps[0] if asking.caps else '-'}"
        given = await self._evidence(case, step, asking.body, by)
        why = self._incidents.refuses(case, step, given, by)
        if why:
            raise ControlRefused(409, why, f"'authority incident show {case.id}' says what is next")
        return {
            "incident": case.id,
            "step": step,
            "seq": self._incidents.take(case, step, given, by),
        }

    async def _evidence(
        self, case: Case, step: str, body: dict[str, Any], by: str
    ) -> dict[str, Any]:
        match step:
            case "forensics":
                return {
                    "verified": body.get("verified"),
                    "report": await self._kept(body.get("report")),
                }
            case "patched":
                if body.get("kind") == "version":
                    return {"kind": "version", "digest": self._ledger.state.version}
                policy = self._gate.policies.load(body, self._ledger.state)
                await self._gate.policies.keep(policy)
                return {"kind": "policy", "digest": policy.digest}
            case "proved":
                return {"certificates": await self._certificates(body.get("certificates"), by)}
            case "tested":
                return await self._tested(body)
            case "deployed":
                if case.patch_kind == "version":
                    return {"digest": self._ledger.state.version, "path": ""}
                policy = self._gate.policies.load(body, self._ledger.state)
                return {"digest": policy.digest, "path": str(body.get("policy_path", ""))}
            case _:  # cause, resumed: a person's words
                return {
                    key: printable(value, 2048) if isinstance(value, str) else value
                    for key, value in body.items()
                }

    async def _kept(self, text: Any) -> str:
        if not isinstance(text, str) or not text:
            raise ControlRefused(400, "the report is a text")
        return await self._gate.opened.store.put_durable(text.encode())

    async def _certificates(self, given: Any, by: str) -> list[dict[str, Any]]:
        """Each is decided again and recorded before the step rests on it."""
        if not isinstance(given, list) or not 0 < len(given) <= MOST_CERTIFICATES:
            raise ControlRefused(400, f"1 to {MOST_CERTIFICATES} certificates, as their JSON text")
        from authority.gate import proofs  # a gate that proves nothing does not load the prover

        found = []
        for text in given:
            entry = await proofs.checked(str(text), self._gate.opened.store)
            entry.by = by
            self._ledger.step([entry])
            found.append(
                {
                    "digest": entry.certificate,
                    "policies": entry.policies,
                    "claims": [[each, entry.verdict == "proved"] for each in entry.statements],
                }
            )
        return found

    async def _tested(self, body: dict[str, Any]) -> dict[str, Any]:
        results = body.get("results")
        if not isinstance(results, list) or not all(
            isinstance(r, dict) and type(r.get("ok")) is bool and isinstance(r.get("test"), str)
            for r in results
        ):
            raise ControlRefused(400, "the results are what 'authority matrix --json' prints")
        kept = await self._kept(msgspec.json.encode(results).decode())
        names = {r["test"] for r in results}
        return {
            "version": body.get("version"),
            "attacks": len(names),
            "passed": len({r["test"] for r in results if r["ok"]}),
            "tests": body.get("tests"),
            "failed": body.get("failed"),
            "digest": kept,
        }

    async def _canary(self, asking: Asking) -> dict[str, Any]:
        entry = self._gate.canaries.entry(asking.body)
        self._control.record(asking, detail=f"canary {entry.name}")
        receipt = self._ledger.step([entry])
        return {"name": entry.name, "seq": receipt.seq}
