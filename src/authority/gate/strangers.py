"""Who comes to one of the gate's sockets and may not: its refusals are in the log, and can't fill it.

Rules
- Before a valid capability was shown on `attach.sock` there is no run whose budgets, limits or halt
  could bound what is refused; nor is there one for what the control API refuses. So on each of the two
  the first `EACH` refusals of a window have an entry each; the others are counted by code, whoever
  sent them.
- A window begins with its first refusal and lasts `SECONDS`. At its end the count is one entry: an
  incident that is noted and halts nothing. A window in which nothing was counted leaves none.
- What is kept is a number for each code, and codes are few. A gate that leaves in order writes it
  first. One that is killed loses the numbers of its last window, and has the entries of its first
  `EACH`.
- They are told the same and sent away in the same way, counted or not.
"""

from __future__ import annotations

import asyncio
from collections import Counter

from authority.gate.ledger import Ledger
from authority.kernel import entries

EACH = 32
SECONDS = 60.0


class Strangers:
    """All that come to one socket, whose name is `where`."""

    def __init__(self, ledger: Ledger, where: str) -> None:
        self._ledger = ledger
        self._where = where
        self._written = 0
        self._counted: Counter[str] = Counter()
        self._end: asyncio.TimerHandle | None = None

    def alone(self, code: str) -> bool:
        """Whether this refusal has an entry alone; otherwise it is counted."""
        if self._end is None:
            self._end = asyncio.get_running_loop().call_later(SECONDS, self.sum_up)
        if self._written < EACH:
            self._written += 1
            return True
        self._counted[code] += 1
        return False

    def sum_up(self) -> None:
        """End the window. Its last entry may not be durable yet. Raises `Poisoned`."""
        if self._end is not None:
            self._end.cancel()
        counted = self._counted
        self._written, self._counted, self._end = 0, Counter(), None
        if counted:
            codes = ", ".join(f"{many} {code}" for code, many in sorted(counted.items()))
            detail = f"{counted.total()} more were refused on {self._where}: {codes}"
            self._ledger.step([entries.Incident(what="strangers", detail=detail, noted=True)])
