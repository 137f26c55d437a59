"""What a run comes to, in figures: for the live line while it runs, and for the table at its end."""

from __future__ import annotations

from typing import Any

from authority.gate import clock
from authority.gate.run import Run
from authority.kernel.state import State


def summary(state: State, run: Run, code: int, reason: str) -> dict[str, Any]:
    """At the end: what was done and denied, what it used, what shaped it, what contained it."""
    info = state.runs.get(run.id)
    account = state.accounts.get(f"run:{run.id}")
    tally = run.tally
    wall = clock.boot() - run.started
    spent = dict(account.spent) if account else {}
    spent["wall_time"] = spent.get("wall_time", 0) + wall
    return {
        "run": run.id,
        "code": code,
        "reason": reason,
        "requests": tally.requests,
        "denials": tally.denials,
        "done": dict(tally.done),
        "denied": dict(tally.denied),
        "failed": dict(tally.failed),
        "first_denials": tally.first_denials,
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
        "requests": run.tally.requests,
        "denials": run.tally.denials,
        "limit": dict(account.limit) if account else {},
        "spent": dict(account.spent) if account else {},
    }
