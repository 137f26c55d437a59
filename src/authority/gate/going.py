"""Effects that go on: a tunnel, a streamed exchange. Admitted once, asked about again piece by piece.

Rules
- The intent is durable, and halt and revocation were asked once more, before a flow is given out.
- A piece is decided on for what the run has looked at by then (`tallies`), as a request is.
- A piece is committed and durable before `commit` returns; then halt and revocation are asked once
  more. A piece that is refused ends nothing by itself: whoever holds the flow closes what it holds,
  and `finish` commits the outcome.
- No piece goes into a log that has no room for its run; how it ended does.
- A person approved what the request said, and no piece was there to be seen: nothing goes out after an
  approval.
- A flow that is stopped from outside calls back at once, in the same step as the stop.
- A flow whose run ended is in doubt, and in doubt means spent.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, Unpack

import msgspec

from authority.compat.base import Ending, Refused, Stops
from authority.gate.answers import refused
from authority.gate.bodies import STORED, stored
from authority.gate.pipeline import Pipeline
from authority.gate.reader import Asked, short_body
from authority.kernel import decide as kernel
from authority.kernel import entries, flows
from authority.kernel.canonical import MAX_INTEGER, printable
from authority.kernel.codes import SENTENCES, Code, Layer
from authority.kernel.facts import Problem
from authority.kernel.labels import CLEAN, Label
from authority.kernel.policy_sections import keeps_all
from authority.kernel.requests import EFFECTS

KEPT_OF_A_FLOW = 1024 * 1024
"""Bytes of one flow's pieces that are kept in the content store; then digests alone. A policy with more
than the usual `stored_bytes` keeps all, as far as that goes."""

UNSEEN = "a person approved the request without what would be sent with it"


class Going(Stops):
    """See `compat.base.Flow`."""

    def __init__(self, goings: Goings, asked: Asked, admit: entries.Admit) -> None:
        super().__init__()
        self.seq = admit.seq
        self.run = admit.run
        self.caps = admit.caps
        self.reserved: Mapping[str, int] = admit.reserve
        self._goings = goings
        self._asked = asked
        self._admit = admit
        self._kept = 0
        self._result: entries.Body | None = None

    async def commit(
        self,
        way: str,
        data: bytes,
        *,
        charge: Mapping[str, int] | None = None,
        label: Label | None = None,
        keep: bool = True,
    ) -> None:
        pipeline, request = self._goings.pipeline, self._asked.request
        if way == "out" and data and self._admit.approval:
            raise await self._not_let(Code.POLICY_DENY, Layer.POLICY, UNSEEN)
        if why := pipeline.ledger.no_room(self.run):
            raise await self._not_let(Code.INTERNAL, Layer.INTERNAL, printable(why))
        policy = pipeline.policy(self.run)
        spec = EFFECTS[request.effect]
        amounts = dict(charge) if charge is not None else {spec.flow: len(data)}
        carried = CLEAN
        if way == "in" and policy is not None and request.resource is not None:
            carried = (
                label
                if label is not None
                else flows.answer_label(
                    pipeline.ledger.state, policy, request.effect, request.resource, request.verb
                )
            )
        whole = policy is not None and keeps_all(policy.budgets)
        if keep and (whole or self._kept + len(data) <= KEPT_OF_A_FLOW):
            self._kept += len(data)
            body = await pipeline.bodies.keep(self.run, data, carried)
        else:
            body = short_body(data)
        if body.kept in STORED:
            amounts["stored_bytes"] = amounts.get("stored_bytes", 0) + body.size
        pipeline.looked(self.run)
        entry = kernel.chunk(
            pipeline.ledger.state,
            policy,
            request,
            self.seq,
            way,
            amounts,
            body,
            carried,
            self._goings.find_canary(data) if way == "out" else "",
        )
        receipt = pipeline.ledger.step([entry])
        await pipeline.ledger.durable(receipt.seq)
        if isinstance(entry, entries.Denied):
            raise refused(entry, policy)
        stopped = kernel.recheck(pipeline.ledger.state, self.run, self.caps)
        if stopped:
            raise Refused(stopped, Layer.HALT, SENTENCES[stopped], 0, None, receipt.seq)

    async def keep(self, data: bytes) -> None:
        request = self._asked.request
        policy = self._goings.pipeline.policy(self.run)
        label = CLEAN
        if policy is not None and request.resource is not None:
            label = flows.result_label(policy, request.effect, request.resource, request.verb)
        self._result = await self._goings.pipeline.bodies.keep(self.run, data, label)

    async def _not_let(self, code: Code, layer: Layer, reason: str) -> Refused:
        """The refusal of a piece, for a reason that the kernel does not know."""
        ledger = self._goings.pipeline.ledger
        problem = Problem(code, layer, reason)
        facts = msgspec.structs.replace(self._asked.facts, problem=problem)
        asked = Asked(self._asked.request, facts, b"")
        denied = self._goings.pipeline.decide(asked)[-1]
        assert isinstance(denied, entries.Denied)
        await ledger.durable(ledger.step([denied]).seq)
        return refused(denied, self._goings.pipeline.policy(self.run))

    async def finish(self, status: str, **ending: Unpack[Ending]) -> int:
        seq = self.settle(status, **ending)
        if seq >= 0:
            await self._goings.pipeline.ledger.durable(seq)
        return seq

    def settle(self, status: str, **ending: Unpack[Ending]) -> int:
        ledger, admit = self._goings.pipeline.ledger, self._admit
        self._goings.over(self)
        if self.seq not in ledger.state.open:
            return -1  # the run ended meanwhile: in doubt, and so spent
        used = stored(admit)
        if status != "aborted":
            used = {**admit.reserve, **ending.get("spent", {})}
        if self._result is not None and self._result.kept in STORED:
            used["stored_bytes"] = used.get("stored_bytes", 0) + self._result.size
        outcome = entries.Outcome(
            run=self.run,
            of=self.seq,
            status=status,
            code=ending.get("code", ""),
            spent={k: v for k, v in used.items() if v},
            result=short_body(body) if (body := ending.get("body")) else self._result,
            facts={name: _told(value) for name, value in ending.get("facts", {}).items()},
        )
        return self._goings.pipeline.outcome(admit, outcome).seq


def _told(value: Any) -> Any:
    """A fact as an entry can hold it: a file may be larger than its numbers."""
    return max(-MAX_INTEGER, min(value, MAX_INTEGER)) if isinstance(value, int) else value


class Goings:
    """All flows of one gate."""

    def __init__(self, pipeline: Pipeline, find_canary: Callable[[bytes], str]) -> None:
        self.pipeline = pipeline
        self.find_canary = find_canary
        self._open: dict[int, Going] = {}
        pipeline.goings = self

    async def admit(self, asked: Asked) -> Going:
        """Admit an effect that goes on. Raises `Refused`."""
        pipeline = self.pipeline
        decided = pipeline.decide(asked)
        receipt = pipeline.ledger.step(decided)
        verdict = decided[-1]
        if isinstance(verdict, entries.Denied):
            await pipeline.ledger.durable(receipt.seq)
            raise refused(verdict, pipeline.policy(verdict.run))
        assert isinstance(verdict, entries.Admit)
        going = self._open[verdict.seq] = Going(self, asked, verdict)
        await pipeline.ledger.durable(receipt.seq)
        stopped = kernel.recheck(pipeline.ledger.state, going.run, going.caps)
        if stopped:
            seq = await going.finish("aborted", code=stopped)
            raise Refused(stopped, Layer.HALT, SENTENCES[stopped], 0, None, seq)
        return going

    def over(self, going: Going) -> None:
        """A flow has its outcome."""
        self._open.pop(going.seq, None)

    def stop_under(self, cap: str) -> None:
        """Stop what goes on under a revoked capability."""
        for going in list(self._open.values()):
            if cap in going.caps:
                going.stop()

    def stop(self, run: str) -> None:
        """Stop what a run has going on, and forget it."""
        for going in [g for g in self._open.values() if g.run == run]:
            going.stop()
            self.over(going)
