"""A run's door: how the services behind its endpoints reach the gate. See `compat.base.Door`.

Rules
- A service asks with the run's own capability, as the program could. Nothing else comes through.
- What a service asks is read as strictly as what a program asks: a resource without a canonical form
  is a denial, not an error.
"""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from typing import Any

import msgspec

from authority import protocol
from authority.compat.base import Failed, Refused
from authority.gate.answers import Answer, refused, why_not
from authority.gate.going import Going, Goings
from authority.gate.reader import Own, Reader
from authority.gate.run import Run
from authority.gate.tallies import Tallies
from authority.gate.workers import Worker, Workers
from authority.kernel import entries
from authority.kernel.canonical import printable
from authority.kernel.codes import Code, Layer
from authority.kernel.facts import Problem
from authority.kernel.policy import Policy
from authority.kernel.policy_sections import Judgement
from authority.kernel.resources import Resource
from authority.protocol.packets import Peer


class Doorway:
    """One run's."""

    def __init__(
        self,
        run: Run,
        reader: Reader,
        goings: Goings,
        tallies: Tallies,
        workers: Workers,
    ) -> None:
        self.run = run.id
        self.policy: Policy = run.spec.policy
        self.cwd = run.spec.cwd
        self._run = run
        self._own = Own(reader, run.id, run.spec.cwd, run.token)
        self._goings = goings
        self._pipeline = goings.pipeline
        self._tallies = tallies
        self._workers = workers
        self._worker: Worker | None = None
        self._starting = asyncio.Lock()

    async def ask(
        self,
        effect: str,
        resource: str | bytes | Resource,
        arguments: msgspec.Struct,
        verb: str = "",
    ) -> Any:
        future: asyncio.Future[Answer] = asyncio.get_running_loop().create_future()

        def reply(answer: Answer) -> None:
            if not future.done():
                future.set_result(answer)
            if answer.taken is not None:
                answer.taken()

        self._pipeline.submit(self._own.asked(effect, resource, arguments, verb), reply)
        answer = await future
        if not answer.refused:
            return answer.body
        raise why_not(answer.body, answer.seq)

    async def open(
        self,
        effect: str,
        resource: str | bytes | Resource,
        arguments: msgspec.Struct,
        verb: str = "",
        facts: Mapping[str, Any] | None = None,
    ) -> Going:
        asked = self._own.asked(effect, resource, arguments, verb)
        if facts:
            asked.facts = msgspec.structs.replace(
                asked.facts, looked_up={**asked.facts.looked_up, **facts}
            )
        return await self._goings.admit(asked)

    async def deny(
        self,
        effect: str,
        resource: str,
        reason: str,
        *,
        code: str = Code.POLICY_DENY,
        layer: str = Layer.POLICY,
    ) -> Refused:
        problem = Problem(Code(code), Layer(layer), reason)
        asked = self._own.asked(effect, resource, None, problem=problem)
        ledger = self._pipeline.ledger
        denied = self._pipeline.decide(asked)[-1]
        assert isinstance(denied, entries.Denied)
        receipt = ledger.step([denied])
        await ledger.durable(receipt.seq)
        return refused(denied, self._pipeline.policy(self.run))

    def glance(
        self,
        effect: str,
        resource: Resource,
        verb: str = "",
        facts: Mapping[str, Any] | None = None,
    ) -> Judgement:
        return self._tallies.look(self.run, self.policy, effect, resource, verb, facts or {})

    def label_at(self) -> int:
        self._tallies.flush(self.run, unless_known=True)
        info = self._pipeline.ledger.state.runs.get(self.run)
        return info.label_at if info else -1

    async def worker(self) -> Peer:
        async with self._starting:
            if self._worker is None or self._worker.peer.reason:
                if self._run.over:
                    raise Failed("The run is over.")
                if self._worker is not None:
                    self._worker.stop()  # its link is over; it keeps nothing that it was handed
                self._worker = await self._workers.start(self._worker)
                self._run.on_end(self._worker.stop)
                self._run.keep(self._watch(self._worker.peer))
            return self._worker.peer

    async def _watch(self, peer: Peer) -> None:
        await peer.closed.wait()
        if peer.reason not in ("stopped", "closed"):
            await self.incident("worker", f"the run's worker ended: {peer.reason}")

    def listen(self, address: int, port: int) -> None:
        if self._run.channel is not None:
            self._run.channel.send_control(protocol.Listen(address, port))

    def left(self, dimension: str) -> int | None:
        state = self._pipeline.ledger.state
        run = state.runs.get(self.run)
        if run is None:
            return 0
        found = (state.accounts[name].left(dimension) for name in run.accounts)
        return min((left for left in found if left is not None), default=None)

    async def incident(self, what: str, detail: str) -> None:
        ledger = self._pipeline.ledger
        entry = entries.Incident(run=self.run, what=what, detail=printable(detail, 512), noted=True)
        await ledger.durable(ledger.step([entry]).seq)

    def trouble(self, text: str) -> None:
        self._run.on_trouble(text)
