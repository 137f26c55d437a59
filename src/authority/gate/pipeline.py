"""The life of a request at the gate: decide, record, perform, record, answer.

Rules
- A decision is one synchronous step of the ledger. A denial is an entry too, answered when durable.
- A side effect is performed only after its intent (the `Admit` entry) is durable and halt and
  revocation were asked once more. What was refused then gets an `aborted` outcome and its
  reservation back.
- A read is performed, its outcome committed, and only then answered.
- An effect that fails in a way it did not foresee has spent its whole reservation, and the answer is
  `E_INTERNAL`; the gate stays up for the others.
- Bodies are where their entry says before it is written (`bodies`). What a run looked at since its
  last entry is committed right before its next (`tallies`). What came of an effect is put into words
  in `outcomes`. Effects that go on are in `going`.
- Answers that may be large wait for room (`room`), so that nobody fills the gate's memory.
- A cancelled effect writes no outcome: what it did is in doubt, and in doubt means spent.
"""

from __future__ import annotations

import asyncio
import sys
import traceback
from collections import defaultdict
from collections.abc import Awaitable, Callable, Mapping
from typing import Any, Protocol

import msgspec

from authority.audit.writer import Receipt
from authority.effects.base import Call, EffectFailed, EffectRefused, Performed
from authority.gate import clock
from authority.gate.answers import Answer, Reply, held
from authority.gate.bodies import Bodies
from authority.gate.hidden import Hidden
from authority.gate.ledger import Ledger
from authority.gate.outcomes import Outcomes, aborted
from authority.gate.reader import INLINE_LIMIT, Asked
from authority.gate.room import Room, answer_bound
from authority.gate.tallies import Tallies
from authority.gate.underway import UnderWay, stage
from authority.kernel import decide as kernel
from authority.kernel import entries, flows, relatives
from authority.kernel.canonical import printable
from authority.kernel.codes import SENTENCES, Code, Layer
from authority.kernel.denials import rendering
from authority.kernel.facts import Problem, Request
from authority.kernel.labels import CLEAN, Label
from authority.kernel.policy import Policy
from authority.kernel.requests import EFFECTS


class Performer(Protocol):
    """What carries out one effect."""

    async def perform(self, call: Call) -> Performed: ...


class Stoppable(Protocol):
    """What carries effects that go on."""

    def stop_under(self, cap: str) -> None: ...
    def stop(self, run: str) -> None: ...


LookUp = Callable[[Request], Awaitable[dict[str, Any]]]
"""Finds facts for a decision. `problem` among them is why the request can't be one."""


class Pipeline:
    """Carries requests of all runs through the stages. One per gate."""

    def __init__(
        self,
        ledger: Ledger,
        bodies: Bodies,
        tallies: Tallies,
        policies: Mapping[str, Policy],
        performers: Mapping[str, Performer],
        look_up: Mapping[str, LookUp],
        on_fatal: Callable[[BaseException], None],
    ) -> None:
        self.ledger = ledger
        self.bodies = bodies
        self._outcomes = Outcomes(ledger, bodies)
        self._tallies = tallies
        self._policies = policies
        self._performers = performers
        self._look_up = look_up
        self._fatal = on_fatal
        self._under_way = UnderWay(on_fatal)
        self._rooms: defaultdict[str, Room] = defaultdict(Room)
        self.on_overspent: Callable[[str, int], None]  # set by what answers incidents
        self.goings: Stoppable | None = None  # set by what carries effects that go on
        self.hidden: Hidden  # set by the gate: what carries requests for handles
        self._waiting: dict[str, list[tuple[Asked, Reply]]] = {}

    def submit(self, asked: Asked, reply: Reply) -> None:
        """Take one request. `reply` is called once, when everything it rests on is durable."""
        request = asked.request
        long = len(asked.arguments) > INLINE_LIMIT
        if request.handle and asked.facts.problem is None:
            self._under_way.begin(request.run, self.hidden.carry(asked, reply))
            return
        if long or request.effect in self._look_up or self.bodies.secret(request.run):
            self._under_way.begin(request.run, self._prepared(asked, reply), request.effect)
            return
        self.judge(asked, reply)

    def answered(self, approval: str) -> None:
        """A person answered an approval: whoever waits for it asks again, facts looked up anew."""
        for asked, reply in self._waiting.pop(approval, ()):
            asked.wait = False
            asked.facts = msgspec.structs.replace(asked.facts, time=clock.wall())
            self.submit(asked, reply)

    def blind(self, run: str) -> bool:
        """Whether a run gets no receipts: it holds handles, or a relative has read what it has not."""
        return self.hidden.blind(run) or relatives.estranged(self.ledger.state, run)

    def look_up(self, effect: str) -> LookUp | None:
        """What finds facts for a decision about an effect."""
        return self._look_up.get(effect)

    def output(self, asked: Asked, reply: Reply) -> None:
        """Commit a piece of what the program printed; it may be shown when `reply` is called."""
        if self.bodies.secret(asked.request.run):
            self._under_way.begin(asked.request.run, self._sealed_output(asked, reply))
        else:
            self._commit_output(asked, reply)

    async def _sealed_output(self, asked: Asked, reply: Reply) -> None:
        body = await self.bodies.keep(asked.request.run, asked.arguments, CLEAN)
        asked.facts = msgspec.structs.replace(asked.facts, body=body)
        self._commit_output(asked, reply)

    def _commit_output(self, asked: Asked, reply: Reply) -> None:
        decided = self.decide(asked)
        receipt = self.ledger.step(decided)
        verdict = decided[-1]
        if isinstance(verdict, entries.Denied):
            self._refuse(asked, verdict, receipt, reply)
        else:
            self._answer(asked, False, receipt, None, reply)

    async def stop_under(self, cap: str) -> list[int]:
        """Cancel what is in flight under a revoked capability; entries that did not stop."""
        if self.goings is not None:
            self.goings.stop_under(cap)
        return await self._under_way.stop_under(cap)

    async def stop(self, run: str, timeout: float = 0.5) -> int:
        """Cancel what a run has in flight; how many did not stop in `timeout` seconds."""
        self._rooms.pop(run, None)
        if self.goings is not None:
            self.goings.stop(run)
        self._tallies.flush(run)
        self._tallies.forget(run)
        self.bodies.forget(run)
        self.hidden.forget(run)
        for key in [k for k, w in self._waiting.items() if w[0][0].request.run == run]:
            del self._waiting[key]
        return await self._under_way.stop(run, timeout)

    def decide(self, asked: Asked) -> list[entries.AnyEntry]:
        """The kernel's decision on the state as it is, with what the run looked at before."""
        self.looked(asked.request.run)
        state = self.ledger.state
        policy = self.policy(asked.request.run)
        trouble = self.ledger.no_room(asked.request.run)
        if trouble and asked.facts.problem is None:
            # What room the log has left is for others, or for the end: nothing more is admitted.
            problem = Problem(Code.INTERNAL, Layer.INTERNAL, printable(trouble))
            asked.facts = msgspec.structs.replace(asked.facts, problem=problem)
        return kernel.decide(state, policy, asked.request, asked.facts)

    def looked(self, run: str) -> None:
        """Commit what a run looked at: right before anything of it is decided."""
        self._tallies.flush(run)

    async def _prepared(self, asked: Asked, reply: Reply) -> None:
        """Look up facts and store long bodies, but only for what would be admitted."""
        request, facts = asked.request, asked.facts
        preview = msgspec.structs.replace(facts, preview=True)
        verdict = self.decide(msgspec.structs.replace(asked, facts=preview))[-1]
        # Without the facts the worst case is reserved, and that alone must not refuse.
        unsure = isinstance(verdict, entries.Denied) and verdict.layer == Layer.BUDGET
        if isinstance(verdict, entries.Admit) or unsure:
            look_up = self._look_up.get(request.effect)
            looked_up = await look_up(request) if look_up else {}
            problem = facts.problem
            if why := looked_up.pop("problem", ""):
                problem = Problem(Code.SCHEMA_INVALID, Layer.SCHEMA, why)
            asked.facts = msgspec.structs.replace(
                facts,
                looked_up={**facts.looked_up, **looked_up},
                time=clock.wall(),
                problem=problem,
            )
            if unsure or problem:  # what is refused is hardly stored: nobody would pay for it
                preview = msgspec.structs.replace(asked.facts, preview=True)
                verdict = self.decide(msgspec.structs.replace(asked, facts=preview))[-1]
                if isinstance(verdict, entries.Denied):
                    body = await self.bodies.keep_refused(request.run, asked.arguments)
                    asked.facts = msgspec.structs.replace(asked.facts, body=body or facts.body)
        if isinstance(verdict, entries.Admit):
            body = await self.bodies.keep(request.run, asked.arguments, Label())
            asked.facts = msgspec.structs.replace(asked.facts, body=body, time=clock.wall())
        else:
            await self.keep_for_person(asked, verdict)
        self.judge(asked, reply)

    async def keep_for_person(self, asked: Asked, verdict: entries.AnyEntry) -> None:
        """Keep the arguments of what waits for a person, who is shown them before anything is done."""
        if isinstance(verdict, entries.Denied) and verdict.approval and not asked.refs:
            body = await self.bodies.keep(asked.request.run, asked.arguments, CLEAN)
            asked.facts = msgspec.structs.replace(asked.facts, body=body)

    def judge(self, asked: Asked, reply: Reply) -> None:
        """Decide, record, and go on with what was decided."""
        decided = self.decide(asked)
        receipt = self.ledger.step(decided)
        verdict = decided[-1]
        if isinstance(verdict, entries.Denied):
            self._refuse(asked, verdict, receipt, reply)
        elif isinstance(verdict, entries.Admit):
            work = self._perform(asked, verdict, reply)
            self._under_way.begin(verdict.run, work, verdict.effect, verdict.seq, verdict.caps)

    def _refuse(self, asked: Asked, denied: entries.Denied, receipt: Receipt, reply: Reply) -> None:
        if denied.hidden:
            self._answer(asked, False, receipt, self.hidden.refused(asked, denied), reply)
            return
        if (
            asked.wait
            and denied.approval
            and not self.ledger.state.approvals[denied.approval].answer
        ):
            self._waiting.setdefault(denied.approval, []).append((asked, reply))
            return
        self._answer(asked, True, receipt, rendering(denied, self.policy(asked.request.run)), reply)

    def policy(self, run: str) -> Policy | None:
        """The policy that a run is under."""
        info = self.ledger.state.runs.get(run)
        return self._policies.get(info.policy) if info else None

    def _answer(
        self, asked: Asked, refused: bool, receipt: Receipt, body: Any, reply: Reply
    ) -> None:
        answer = Answer(asked.request.n, refused, receipt.seq, receipt.hash, body)

        def send(error: BaseException | None) -> None:
            if error is None:
                reply(answer)
            else:
                self._fatal(error)

        self.ledger.when_durable(receipt.seq, send)

    async def _perform(self, asked: Asked, admit: entries.Admit, reply: Reply) -> None:
        request, ledger = asked.request, self.ledger
        spec = EFFECTS[request.effect]
        policy = self.policy(request.run)
        assert policy is not None
        assert request.resource is not None
        if spec.side_effect:
            await ledger.durable(admit.seq)
        room = self._rooms[request.run]
        size = answer_bound(request.effect, request.arguments, admit.reserve)
        await room.take(size)
        try:
            await self._perform_in(asked, admit, policy, lambda a: reply(held(a, room, size)))
        except BaseException:
            room.give(size)
            raise

    async def _perform_in(
        self, asked: Asked, admit: entries.Admit, policy: Policy, reply: Reply
    ) -> None:
        request, ledger = asked.request, self.ledger
        assert request.resource is not None
        stopped = kernel.recheck(ledger.state, request.run, admit.caps)
        if stopped:
            outcome, body = aborted(admit, stopped, SENTENCES[stopped], {}, Layer.HALT)
            self._close(asked, admit, outcome, True, body, reply)
            return
        call = Call(
            run=request.run,
            seq=admit.seq,
            effect=request.effect,
            resource=request.resource,
            arguments=request.arguments,
            policy=policy,
            reserved=admit.reserve,
            target=request.target,
            looked_up=asked.facts.looked_up,
            capability=asked.capability,
            given=Label(frozenset(admit.sources), frozenset(admit.secrets)),
        )
        try:
            done = await self._performers[request.effect].perform(call)
        except EffectRefused as no:
            if admit.handle:
                self._keep(
                    asked, admit, self.hidden.failed(asked, admit, policy, no, no.code), reply
                )
                return
            # Being refused there tells something about what is there.
            seen = self._outcomes.label(request, policy, facts=flows.failed(request.target))
            outcome, body = aborted(admit, no.code, no.sentence, no.facts, Layer.EFFECT, seen)
            self._close(asked, admit, outcome, True, body, reply)
            return
        except EffectFailed as failed:
            self._failed(asked, admit, policy, failed, reply)
            return
        except asyncio.CancelledError:
            raise
        except Exception as error:
            traceback.print_exception(error, file=sys.stderr)
            defect = EffectFailed(SENTENCES[Code.INTERNAL], facts={"defect": type(error).__name__})
            self._failed(asked, admit, policy, defect, reply, Code.INTERNAL)
            return
        await stage(request.effect)
        await self._done(asked, admit, policy, done, reply)

    async def _done(
        self,
        asked: Asked,
        admit: entries.Admit,
        policy: Policy,
        done: Performed,
        reply: Reply,
    ) -> None:
        if admit.handle:
            self._keep(asked, admit, await self.hidden.done(asked, admit, policy, done), reply)
            return
        outcome = await self._outcomes.done(asked.request, admit, policy, done)
        self._close(asked, admit, outcome, False, done.value, reply)

    def _failed(
        self,
        asked: Asked,
        admit: entries.Admit,
        policy: Policy,
        failed: EffectFailed,
        reply: Reply,
        code: Code = Code.EFFECT_FAILED,
    ) -> None:
        if admit.handle:
            self._keep(asked, admit, self.hidden.failed(asked, admit, policy, failed, code), reply)
            return
        outcome, body = self._outcomes.failed(asked.request, admit, policy, failed, code)
        self._close(asked, admit, outcome, True, body, reply)

    def _keep(
        self, asked: Asked, admit: entries.Admit, kept: tuple[entries.Outcome, Any], reply: Reply
    ) -> None:
        outcome, body = kept
        self._close(asked, admit, outcome, False, body, reply)

    def _close(
        self,
        asked: Asked,
        admit: entries.Admit,
        outcome: entries.Outcome,
        refused: bool,
        body: Any,
        reply: Reply,
    ) -> None:
        if admit.seq not in self.ledger.state.open:
            return  # the run ended meanwhile: what it had in flight is in doubt, and so spent
        self._answer(asked, refused, self.outcome(admit, outcome), body, reply)

    def outcome(self, admit: entries.Admit, outcome: entries.Outcome) -> Receipt:
        """Append what came of an admission. More used than was reserved halts everything."""
        receipt = self.ledger.step([outcome])
        over = {k: v for k, v in outcome.spent.items() if v > admit.reserve.get(k, 0)}
        over.pop("stored_bytes", None)
        if over:
            self.on_overspent(f"{outcome.of}: {sorted(over)}", outcome.seq)
        return receipt
