"""What a run comes to, in figures: for the live line while it runs, and for the table at its end."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from authority.gate import clock
from authority.kernel import entries
from authority.kernel.state import State

if TYPE_CHECKING:
    from authority.gate.run import Run

FIRST_DENIALS = 20
"""Denials that the closing table shows."""


@dataclass
class Counts:
    """What a run did so far, by effect; `open` has those in flight, by their admitting entries."""

    done: Counter[str] = field(default_factory=Counter)
    denied: Counter[str] = field(default_factory=Counter)
    failed: Counter[str] = field(default_factory=Counter)
    open: dict[int, str] = field(default_factory=dict)
    requests: int = 0
    denials: int = 0
    first_denials: list[dict[str, Any]] = field(default_factory=list)

    def add(self, entry: entries.AnyEntry) -> None:
        """Count one entry of the run."""
        if isinstance(entry, entries.Admit):
            self.requests += 1
            if entry.final:
                self.done[entry.effect] += 1
            else:
                self.open[entry.seq] = entry.effect
        elif isinstance(entry, entries.Outcome):
            effect = self.open.pop(entry.of, "")
            (self.done if entry.status == "done" else self.failed)[effect] += 1
        elif isinstance(entry, entries.Denied):
            self.requests += 1
            self.denials += 1
            self.denied[entry.effect or "frame"] += 1
            if len(self.first_denials) < FIRST_DENIALS and not entry.again:
                self.first_denials.append(
                    {
                        "seq": entry.seq,
                        "effect": entry.effect,
                        "resource": entry.resource,
                        "code": entry.code,
                        "layer": entry.layer,
                        "reason": entry.reason,
                    }
                )


def summary(state: State, run: Run, code: int, reason: str) -> dict[str, Any]:
    """At the end: what was done and denied, what it used, what shaped it, what contained it."""
    info = state.runs.get(run.id)
    account = state.accounts.get(f"run:{run.id}")
    counts = run.counts
    wall = clock.boot() - run.started
    spent = dict(account.spent) if account else {}
    spent["wall_time"] = spent.get("wall_time", 0) + wall
    return {
        "run": run.id,
        "code": code,
        "reason": reason,
        "requests": counts.requests,
        "denials": counts.denials,
        "done": dict(counts.done),
        "denied": dict(counts.denied),
        "failed": dict(counts.failed),
        "first_denials": counts.first_denials,
        "budgets": {"limit": dict(account.limit) if account else {}, "spent": spent},
        "label": {
            "sources": sorted(info.label.sources) if info else [],
            "secrets": sorted(info.label.secrets) if info else [],
        },
        "acts_later": dict(run.persistent()),
        "protection": run.protection,
    }


def progress(state: State, run: Run) -> dict[str, Any]:
    """While it runs."""
    account = state.accounts.get(f"run:{run.id}")
    return {
        "event": "progress",
        "requests": run.counts.requests,
        "denials": run.counts.denials,
        "limit": dict(account.limit) if account else {},
        "spent": dict(account.spent) if account else {},
    }
