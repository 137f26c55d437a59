"""What came of an effect: the entry that says so, and the answer.

Rules
- What was done has spent what the effect says, and its whole reservation in every dimension that the
  effect does not name; what its answer takes in the store comes on top.
- What failed has been tried: likewise. What was aborted was never performed, and has spent nothing but
  what its arguments take in the store.
- An answer has the label of what the effect touched, and of what it says that its bytes carry. So has
  a failure, which tells something about what is there.
- The answers to requests for handles are in `hidden`.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from authority.effects.base import EffectFailed, Performed
from authority.gate.bodies import STORED, Bodies, stored
from authority.gate.ledger import Ledger
from authority.gate.reader import short_body, value_bytes
from authority.kernel import entries, flows
from authority.kernel.codes import Code, Layer
from authority.kernel.facts import Request
from authority.kernel.labels import CLEAN, Label
from authority.kernel.policy import Policy
from authority.kernel.requests import FsWrite


class Outcomes:
    """Of all requests of one gate whose answers are told."""

    def __init__(self, ledger: Ledger, bodies: Bodies) -> None:
        self._ledger = ledger
        self._bodies = bodies

    async def done(
        self, request: Request, admit: entries.Admit, policy: Policy, done: Performed
    ) -> entries.Outcome:
        """Of an effect that was performed."""
        label = self.label(request, policy, done.carried, done.facts)
        body = await self._bodies.keep(request.run, value_bytes(done.value), label)
        spent = {**admit.reserve, **done.spent}
        if body.kept in STORED:
            spent["stored_bytes"] = spent.get("stored_bytes", 0) + body.size
        return entries.Outcome(
            run=request.run,
            of=admit.seq,
            status="done",
            spent={k: v for k, v in spent.items() if v},
            sources=sorted(label.sources),
            secrets=sorted(label.secrets),
            result=body,
            facts=dict(done.facts),
        )

    def failed(
        self,
        request: Request,
        admit: entries.Admit,
        policy: Policy,
        failed: EffectFailed,
        code: Code,
    ) -> tuple[entries.Outcome, Any]:
        """Of an effect that was tried and failed, and what the program is told."""
        label = self.label(request, policy, failed.carried, flows.failed(request.target))
        outcome = entries.Outcome(
            run=request.run,
            of=admit.seq,
            status="failed",
            code=code,
            spent={k: v for k, v in {**admit.reserve, **failed.spent}.items() if v},
            sources=sorted(label.sources),
            secrets=sorted(label.secrets),
            result=short_body(failed.sentence.encode()),
            facts=failed.facts,
        )
        return outcome, [str(code), str(Layer.EFFECT), failed.sentence, 0, None]

    def label(
        self,
        request: Request,
        policy: Policy,
        carried: Label | None = None,
        facts: Mapping[str, Any] = {},
    ) -> Label:
        """What an answer tells of."""
        assert request.resource is not None
        what = (request.effect, request.resource, request.verb)
        if isinstance(request.arguments, FsWrite) and not facts.get("failed"):
            facts = {**facts, "replaces": not request.arguments.create_only}
        return flows.answer_label(self._ledger.state, policy, *what, carried or CLEAN, facts)


def aborted(
    admit: entries.Admit,
    code: Code,
    sentence: str,
    facts: Mapping[str, Any],
    layer: Layer,
    label: Label = CLEAN,
) -> tuple[entries.Outcome, Any]:
    """Of what was admitted and never performed, and what the program is told."""
    outcome = entries.Outcome(
        run=admit.run,
        of=admit.seq,
        sources=sorted(label.sources),
        secrets=sorted(label.secrets),
        status="aborted",
        code=code,
        spent=stored(admit),
        result=short_body(sentence.encode()),
        facts=dict(facts),
    )
    return outcome, [str(code), str(layer), sentence, 0, None]
