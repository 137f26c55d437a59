"""The gate's part in an incident: detect, halt, revoke, keep what would be lost, then wait for people.

Rules
- Opening a case is one synchronous step: the `Incident` entry, then the `Halt` that answers it, and
  what goes on under it is cut before anything else runs. No request is admitted after that entry.
- Then, in this order: the sandboxes are frozen, their processes are described and kept, they are
  killed, the case is at `investigating`, and a checkpoint is signed over all of it. What could not
  be kept is named in the evidence; a full disk or a dead process stops none of the other steps.
- A case that the gate's own end interrupted is taken on by the next gate, which says that it was.
- One case is opened for one cause: a second exhausted budget of a halted run, or a second failed
  checkpoint, belongs to the case that is open.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from typing import Any

from authority.audit.store import ContentStore
from authority.gate import evidence
from authority.gate.ledger import Ledger
from authority.gate.run import Run
from authority.isolation import processes
from authority.kernel import canonical, entries
from authority.kernel.canonical import printable
from authority.kernel.incidents import Case, refusal
from authority.kernel.state import surroundings

FREEZE_SECONDS = 2.5


class Incidents:
    """All cases of one gate. `stop` kills the runs of a case and waits for their ends."""

    def __init__(
        self,
        ledger: Ledger,
        store: ContentStore,
        running: Callable[[str], list[Run]],
        cut: Callable[[str], None],
        stop: Callable[[str, str], Awaitable[list[str]]],
        checkpoint: Callable[[], Awaitable[None]],
    ) -> None:
        self._ledger = ledger
        self._store = store
        self._running = running
        self._cut = cut
        self._stop = stop
        self._checkpoint = checkpoint
        self._tasks: set[asyncio.Task[None]] = set()

    def open(self, what: str, detail: str, *, run: str = "", of: int = -1) -> int:
        """Open a case about `run`, or, without one, about everything; the number of the case.

        The same thing again while its case is open joins that case.
        """
        wide = not run
        for case in self._ledger.state.cases.values():
            if case.open and (case.what, case.run, case.wide) == (what, run, wide):
                return case.id
        opened = self._ledger.step(
            [entries.Incident(run=run, what=what, detail=printable(detail, 512), wide=wide, of=of)]
        ).seq
        self._halt(opened, what, run)
        task = asyncio.get_running_loop().create_task(self._answer(opened, what, run))
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
        return opened

    def _halt(self, case: int, what: str, run: str) -> None:
        self._ledger.step(
            [entries.Halt(run=run, reason=f"incident: {what}", by="gate", incident=case)]
        )
        for affected in self._running(run):
            self._cut(affected.id)

    async def _answer(self, case: int, what: str, run: str) -> None:
        runs = self._running(run)
        kept: list[Any] = list(await asyncio.gather(*(self._keep(one) for one in runs)))
        in_doubt = await self._stop(run, what)
        kept += [{"run": name, "in_doubt": True} for name in in_doubt]
        self._investigate(case, kept)
        await self._ledger.durable(self._ledger.state.seq)
        await self._checkpoint()

    def _investigate(self, case: int, kept: list[Any]) -> None:
        found = self._ledger.state.cases.get(str(case))
        if found is None or found.step != "revoked":
            return
        self._ledger.step(
            [
                entries.IncidentStep(
                    incident=case,
                    step="investigating",
                    by="gate",
                    evidence={"kept": kept, "head": self._ledger.state.seq},
                )
            ]
        )

    async def _keep(self, run: Run) -> dict[str, Any]:
        """Freeze a run and keep what its processes look like; what is missing is said."""
        kept: dict[str, Any] = {"run": run.id}
        if run.sandbox is None:
            return {**kept, "missing": "the gate did not start it"}
        try:
            async with asyncio.timeout(FREEZE_SECONDS):
                kept["frozen"] = await run.sandbox.freeze()
                pids = processes.tree(run.sandbox.pid)
                seen = await asyncio.to_thread(evidence.processes, pids)
                kept["processes"] = await self._store.put_durable(canonical.encode(seen))
        except (OSError, TimeoutError, canonical.CanonicalError) as error:
            kept["missing"] = f"{type(error).__name__}: {printable(str(error), 200)}"
        return kept

    def take_on(self) -> None:
        """What the last gate left half answered. Called before anything is served."""
        for case in list(self._ledger.state.cases.values()):
            if case.step == "detected":
                self._halt(case.id, case.what, case.run)
            if case.step == "revoked":
                self._investigate(case.id, [{"missing": "the gate ended before it was kept"}])

    def case(self, number: int) -> Case | None:
        """One case."""
        return self._ledger.state.cases.get(str(number))

    def refuses(self, case: Case, step: str, given: dict[str, Any], by: str) -> str:
        """Why a person's step may not be taken; empty when it may."""
        return refusal(case, step, given, by, surroundings(self._ledger.state))

    def take(self, case: Case, step: str, given: dict[str, Any], by: str) -> int:
        """Record a person's step, which was not refused. The last one lifts the halt that no other
        case needs any more. Its entry."""
        new: list[entries.AnyEntry] = [
            entries.IncidentStep(incident=case.id, step=step, by=by, evidence=given)
        ]
        receipt = self._ledger.step(new)
        state = self._ledger.state
        if step == "resumed" and state.halted >= 0 and case.wide:
            others = [c for c in state.cases.values() if c.wide and c.open]
            if not others:
                receipt = self._ledger.step([entries.Resume(reason=given["reason"], by=by)])
        return receipt.seq
