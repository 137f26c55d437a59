"""The ledger: the state and the log, changed together or not at all.

Rules
- `step` is the only way to change either: stamp, fold, append, without an await in between. What the
  state says is therefore always exactly what the log says.
- An exception in a step leaves the two apart, so it poisons the ledger: nothing is admitted or
  answered any more, and the gate goes down. A failed sync does the same.
- Nothing leaves the gate before `durable(seq)` of the entry that it rests on.
- The disk's room is shared: a run whose entries, its descendants' with them, take more of it than they
  leave to the log is let nothing more. So one that asks without end leaves half to the others.
- What a run's entries take is what their lines take, and counts for each run above it, too.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

from authority.audit.chain import TAIL
from authority.audit.writer import Log, Receipt
from authority.gate import clock
from authority.kernel import entries
from authority.kernel.entries import AnyEntry
from authority.kernel.fold import apply
from authority.kernel.state import State


class Poisoned(Exception):
    """The ledger can't be trusted to go on; the cause is chained."""


class Ledger:
    """One open log and the state that is its fold."""

    def __init__(self, log: Log, state: State) -> None:
        self.log = log
        self.state = state
        self.failure: BaseException | None = None
        self.last = Receipt(log.next_seq - 1, log.head)
        self._listeners: list[Callable[[AnyEntry], None]] = []
        self._taken: dict[str, int] = {}

    def listen(self, listener: Callable[[AnyEntry], None]) -> None:
        """Call `listener` with every entry right after it was appended (it may not be durable)."""
        self._listeners.append(listener)

    def step(self, new: Sequence[AnyEntry]) -> Receipt:
        """Fold and append `new`; the receipt of the last one. Raises `Poisoned`, for good."""
        if self.failure is not None:
            raise Poisoned("the ledger stopped") from self.failure
        try:
            now = clock.wall()
            self._watch_clock(now)
            for entry in new:
                self.last = self._append(entry, now)
        except BaseException as error:
            self.failure = error
            raise Poisoned(f"a step failed: {type(error).__name__}: {error}") from error
        return self.last

    def _append(self, entry: AnyEntry, now: int) -> Receipt:
        log = self.log
        entry.seq, entry.batch, entry.time = log.next_seq, log.next_batch, now
        apply(self.state, entry)
        line = entries.encode(entry)
        receipt = log.append(line)
        self._take(entry, len(line) + TAIL)  # a newline is more, its brace less
        for listener in self._listeners:
            listener(entry)
        return receipt

    def _take(self, entry: AnyEntry, size: int) -> None:
        runs, name = self.state.runs, entry.run
        if isinstance(entry, entries.RunEnd) and name not in runs:  # forgotten, with all below it
            self._taken = {run: taken for run, taken in self._taken.items() if run in runs}
        while name in runs:
            self._taken[name] = self._taken.get(name, 0) + size
            name = runs[name].parent

    def taken(self, run: str) -> int:
        """Bytes of the log that the entries of a run and of its descendants take."""
        return self._taken.get(run, 0)

    def no_room(self, run: str) -> str:
        """Why nothing more of this run is let into the log; empty when all is well."""
        if self.log.trouble:
            return self.log.trouble
        taken = self.taken(self.state.root(run).id) if run in self.state.runs else 0
        if taken and self.log.left(taken) < taken:
            return "the entries of this run take more of the disk than they leave"
        return ""

    def _watch_clock(self, now: int) -> None:
        state = self.state
        if not state.boot:
            return
        ahead = clock.jump(state.boot_time, state.boot_clock, now, clock.boot())
        if bool(ahead) != state.clock_suspect:
            self.last = self._append(entries.Clock(jump=ahead), now)

    async def durable(self, seq: int) -> None:
        """Wait until entry `seq` is on the disk. Raises what poisoned the log."""
        await self.log.durable(seq)

    def when_durable(self, seq: int, callback: Callable[[BaseException | None], None]) -> None:
        """Call back once entry `seq` is on the disk, or with what went wrong."""
        self.log.when_durable(seq, callback)
