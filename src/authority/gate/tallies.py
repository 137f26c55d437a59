"""Looks: what a run's programs ask about and only see the answer of (a name, a size, a listing).

Rules
- A look is judged like a request and leaves no entry of its own: hundreds come before anything
  happens. It is counted, and the count is committed in the same step as the run's next entry, before
  it, so the label of what was seen joins the run's before the next decision is made.
- A look that is refused counts here and not as a denial: a probe tells nothing, and costs nothing.
- What was refused is remembered by name, bounded, for whoever writes a policy (`--suggest`).
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping
from typing import Any

import msgspec

from authority.gate.ledger import Ledger
from authority.kernel import entries, flows
from authority.kernel.labels import CLEAN, Label
from authority.kernel.policy import Policy
from authority.kernel.policy_sections import Judgement
from authority.kernel.resources import Resource

UNSEEN_LIMIT = 1000


class _Pending(msgspec.Struct):
    counts: Counter[str]
    label: Label = CLEAN


class Tallies:
    """The looks of all runs of one gate."""

    def __init__(self, ledger: Ledger) -> None:
        self._ledger = ledger
        self._pending: dict[str, _Pending] = {}
        self._unseen: dict[str, Counter[tuple[str, str]]] = {}
        self.on_canary: Callable[[str, str], None] = lambda _run, _name: None

    def look(
        self,
        run: str,
        policy: Policy,
        effect: str,
        resource: Resource,
        verb: str = "",
        facts: Mapping[str, Any] = {},
    ) -> Judgement:
        """Judge a look and count it."""
        state = self._ledger.state
        info = state.runs.get(run)
        if info is None or not info.running or info.halted or state.halted >= 0:
            return Judgement(False, "", "the run is halted or over")
        trap = state.canary(resource)
        if trap:
            self.on_canary(run, trap)
            return Judgement(False, "canary", f"canary {trap}")
        judgement = policy.judge(effect, resource, verb)
        pending = self._pending.get(run)
        if pending is None:
            pending = self._pending[run] = _Pending(Counter())
        if judgement.allowed:
            pending.counts[effect] += 1
            seen = flows.answer_label(state, policy, effect, resource, verb, facts=facts)
            pending.label = pending.label.join(seen)
        else:
            pending.counts[f"!{effect}"] += 1
            unseen = self._unseen.setdefault(run, Counter())
            if len(unseen) < UNSEEN_LIMIT or (effect, resource.text) in unseen:
                unseen[effect, resource.text] += 1
        return judgement

    def flush(self, run: str, *, unless_known: bool = False) -> None:
        """Commit what was counted; called right before the run's next entry. With `unless_known` only
        when it raises the run's label."""
        info = self._ledger.state.runs.get(run)
        waiting = self._pending.get(run)
        if unless_known and info and waiting and waiting.label <= info.label:
            return
        pending = self._pending.pop(run, None)
        if pending is None or info is None or not info.running:
            return
        new = not pending.label <= info.label
        self._ledger.step(
            [
                entries.Tally(
                    run=run,
                    counts=dict(pending.counts),
                    sources=sorted(pending.label.sources) if new else [],
                    secrets=sorted(pending.label.secrets) if new else [],
                )
            ]
        )

    def unseen(self, run: str) -> dict[tuple[str, str], int]:
        """What the run looked for and may not see: (effect, resource) and how often."""
        return dict(self._unseen.get(run, ()))

    def names(self, run: str) -> list[list[str | int]]:
        """The same as a list of [effect, resource, times]."""
        return [[effect, name, times] for (effect, name), times in self.unseen(run).items()]

    def forget(self, run: str) -> None:
        """The run is over."""
        self._pending.pop(run, None)
        self._unseen.pop(run, None)
