"""A run request by request, for somebody who walks through it: labels and budget as they grew."""

from __future__ import annotations

from collections import Counter

from authority.kernel import entries
from authority.kernel.canonical import printable
from authority.recorded.diff import described
from authority.recorded.recording import Asked


class Steps:
    """What to show of each request, in the order in which they come."""

    def __init__(self) -> None:
        self._sources: set[str] = set()
        self._secrets: set[str] = set()
        self._spent: Counter[str] = Counter()

    def lines(self, asked: Asked) -> list[str]:
        """The request, its verdict, and what the run carried and had spent when it had its answer."""
        verdict, outcome = asked.verdict, asked.outcome
        if isinstance(verdict, entries.Denied):
            said = f"refused {verdict.code}: {printable(verdict.reason, 200)}"
        else:
            said = f"{outcome.status if outcome else 'no answer'} by {printable(verdict.rule, 100)}"
            used = outcome.spent if outcome is not None else verdict.reserve
            self._spent.update(used)
        for each in (outcome, *asked.chunks):
            if each is not None:
                self._sources.update(each.sources)
                self._secrets.update(each.secrets)
        for piece in asked.chunks:
            self._spent.update(piece.charge)
        spent = ", ".join(f"{name} {amount}" for name, amount in sorted(self._spent.items()))
        carries = sorted(self._sources) + [f"secret {name}" for name in sorted(self._secrets)]
        return [
            f"entry {verdict.seq}  {described(verdict)}",
            f"  {said}",
            f"  label: {printable(', '.join(carries) or 'clean', 300)}",
            f"  spent: {spent or 'nothing'}",
        ]
