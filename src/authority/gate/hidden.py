"""Requests that ask for a handle: carried like all others, and answered without a word about values.

Rules (why they are these: `kernel.handles`)
- The values of the handles in its arguments are put in their places before the decision. If that can't
  be done the decision is made with nothing in their places, and the last stage refuses it, hidden.
- Whatever comes of an admitted call (a value, a failure, a refusal at the last moment, a defect) is
  kept under its handle, and costs the whole reservation. Only a halt is answered as what it is.
- A file's size is not looked up: it would be in the reservation.
- From its first handle on a run, its parents and children get no receipts.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any

import msgspec

from authority.effects.base import EffectFailed, EffectRefused, Performed
from authority.gate import clock, filling
from authority.gate.answers import Reply
from authority.gate.reader import Asked, filled, short_body, value_bytes
from authority.gate.vault import Vault, value_of
from authority.kernel import entries, flows, shapes, value_types
from authority.kernel.codes import SENTENCES, Code, Layer
from authority.kernel.entries import Body
from authority.kernel.facts import Facts, Problem, Request
from authority.kernel.labels import CLEAN, Label
from authority.kernel.pointers import Unfit
from authority.kernel.policy import Policy
from authority.kernel.resources import Resource
from authority.kernel.state import State

if TYPE_CHECKING:
    from authority.gate.pipeline import Pipeline

SIZES = frozenset({"fs.read"})
"""Effects of which only the size would be looked up."""


class Hidden:
    """The requests for handles of one gate."""

    def __init__(
        self, pipeline: Pipeline, vault: Vault, find_canary: Callable[[bytes], str]
    ) -> None:
        self._pipeline = pipeline
        self._find_canary = find_canary
        self.vault = vault
        self._blind: set[str] = set()

    def blind(self, run: str) -> bool:
        """Whether a run gets no receipts."""
        return bool(self._blind) and _root(self._pipeline.ledger.state, run) in self._blind

    async def fill(self, asked: Asked) -> None:
        """Put the values of handles into a request, in place."""
        run = asked.request.run
        if not asked.refs:
            return
        state, policy = self._pipeline.ledger.state, self._pipeline.policy(run)
        found = await filling.found(self.vault, state, policy, run, asked.refs)
        parts = []
        for ref, part in zip(asked.refs, asked.request.parts, strict=True):
            value = found[ref.at]
            fits = () if isinstance(value, Unfit) else value_types.kinds(value)
            parts.append(msgspec.structs.replace(part, fits=fits))
        asked.request = msgspec.structs.replace(asked.request, parts=tuple(parts))
        try:
            arguments = filled(asked.request.effect, asked.tree, found)
        except Unfit as no:
            asked.facts = msgspec.structs.replace(asked.facts, unfit=str(no)[:200])
            return
        data = value_bytes(arguments)
        asked.request = msgspec.structs.replace(asked.request, arguments=arguments)
        looked_up = dict(asked.facts.looked_up)
        if behind := self._find_canary(data):
            looked_up["canary_behind"] = behind
        label = _given(self._pipeline.ledger.state, asked)
        body = await self.vault.keep_body(run, data, short_body(data), label)
        asked.facts = msgspec.structs.replace(asked.facts, filled=body, looked_up=looked_up)

    async def carry(self, asked: Asked, reply: Reply) -> None:
        """Carry one request through the stages up to its verdict."""
        pipeline, state = self._pipeline, self._pipeline.ledger.state
        self._blind.add(_root(state, asked.request.run))
        await self.fill(asked)
        preview = msgspec.structs.replace(asked.facts, preview=True)
        verdict = pipeline.decide(msgspec.structs.replace(asked, facts=preview))[-1]
        unsure = isinstance(verdict, entries.Denied) and verdict.layer == Layer.BUDGET
        if isinstance(verdict, entries.Admit) or unsure:
            asked.facts = await self._looked_up(asked)
        else:
            await pipeline.keep_for_person(asked, verdict)
        pipeline.judge(asked, reply)

    async def _looked_up(self, asked: Asked) -> Facts:
        request, facts = asked.request, asked.facts
        problem = facts.problem
        found: dict[str, Any] = {}
        look_up = self._pipeline.look_up(request.effect)
        if look_up is not None and request.effect not in SIZES:
            found = await look_up(request)
            if (why := found.pop("problem", "")) and not asked.refs:
                problem = Problem(Code.SCHEMA_INVALID, Layer.SCHEMA, why)
            elif why:
                facts = msgspec.structs.replace(facts, unfit=facts.unfit or why)
        return msgspec.structs.replace(
            facts,
            looked_up={**facts.looked_up, **found},
            time=clock.wall(),
            problem=problem,
            body=facts.body,
        )

    def refused(self, asked: Asked, denied: entries.Denied) -> Any:
        """The answer to a refusal that nobody is told of."""
        self.vault.fail(asked.request.run, denied.handle, denied.code)
        return {"handle": denied.handle}

    async def done(
        self, asked: Asked, admit: entries.Admit, policy: Policy, done: Performed
    ) -> tuple[entries.Outcome, Any]:
        """The outcome of a call whose answer is kept, and what is said of it."""
        request = asked.request
        assert request.resource is not None
        label = self._label(request, admit, policy, done.carried or CLEAN, done.facts)
        data = value_bytes(done.value)
        body = await self.vault.keep_body(request.run, data, short_body(data), label)
        value = value_of(request.effect, done.value)
        fields = shapes.patterns(policy, request.effect, request.resource)
        await self.vault.put(request.run, admit.handle, value, label, fields)
        outcome = self._outcome(admit, "done", label, body, done.facts)
        return outcome, {"handle": admit.handle}

    def failed(
        self,
        asked: Asked,
        admit: entries.Admit,
        policy: Policy,
        why: EffectFailed | EffectRefused,
        code: Code,
    ) -> tuple[entries.Outcome, Any]:
        """The same for a call that failed, or was refused at the last moment."""
        request = asked.request
        label = self._label(request, admit, policy, CLEAN, flows.FAILED)
        if isinstance(why, EffectFailed) and why.carried is not None:
            label = label.join(why.carried)
        self.vault.fail(request.run, admit.handle, f"{code}: {why.sentence}")
        sentence = why.sentence if not label.secrets else SENTENCES[code]
        body = short_body(sentence.encode())
        outcome = self._outcome(admit, "failed", label, body, why.facts)
        outcome.code = code
        return outcome, {"handle": admit.handle}

    def _anyhow(self, admit: entries.Admit, resource: Resource) -> Label:
        """The label that the answer has whatever comes of the call: the program sees what it steers."""
        state = self._pipeline.ledger.state
        given = Label(frozenset(admit.sources), frozenset(admit.secrets))
        run = state.runs.get(admit.run)
        return given.join(flows.missing(state, run, admit.effect, resource)) if run else given

    def _label(
        self,
        request: Request,
        admit: entries.Admit,
        policy: Policy,
        carried: Label,
        facts: Mapping[str, Any],
    ) -> Label:
        """What the answer is shaped by: what it has anyhow, and who answers."""
        assert request.resource is not None
        state, effect, verb = self._pipeline.ledger.state, request.effect, request.verb
        answer = flows.answer_label(state, policy, effect, request.resource, verb, carried, facts)
        return self._anyhow(admit, request.resource).join(answer)

    def _outcome(
        self,
        admit: entries.Admit,
        status: str,
        label: Label,
        body: Body,
        facts: Mapping[str, Any],
    ) -> entries.Outcome:
        return entries.Outcome(
            run=admit.run,
            of=admit.seq,
            status=status,
            spent=dict(admit.reserve),
            sources=sorted(label.sources),
            secrets=sorted(label.secrets),
            result=body,
            facts=dict(facts),
        )

    def forget(self, run: str) -> None:
        """The run is over."""
        self.vault.forget(run)
        self._blind.discard(run)


def _given(state: State, asked: Asked) -> Label:
    """The label of what a request was filled with."""
    run = state.runs.get(asked.request.run)
    label = run.label if run is not None else Label()
    for part in asked.request.parts:
        held = run.handles.get(part.handle) if run is not None else None
        label = label.join(held.label) if held is not None else label
    return label


def _root(state: State, run: str) -> str:
    return [run, *state.ancestry(run)][-1]
