"""What opens an incident by itself, beside the checks that open one where they are made.

Rules
- What a run can cause by itself (its denial budget used up, a canary touched, a system call that kills,
  a request after its halt) concerns that run and its descendants.
- What is a failure of the gate or of its evidence (a sync that failed, a protection that is gone while
  a run goes on) concerns everything.
- The room that the log kept back is for the end, not for a run that asks on and on: one that was
  refused `WITHOUT_ROOM` times while the log had none for it is halted.
- A disk may be so large that half of it is no bound. So a run whose entries, its descendants' with
  them, take more of the log than its policy's `limits.log` is halted, by the entry that went beyond it.
  Nothing is refused for it: no verdict rests on a count of bytes, so the log is judged again and
  played again without knowing that limit. What was asked in the same turn may be decided yet. The
  program is told of a halt, as of any other, and never of a number.
- A listener only notices; the case is opened right after the step that it saw, before anything that
  waits for that step's entry.
"""

from __future__ import annotations

import asyncio
import os
import signal
from collections import Counter
from collections.abc import Mapping

from authority.gate.incidents import Incidents
from authority.gate.ledger import Ledger
from authority.gate.run import Run
from authority.isolation import processes
from authority.kernel import entries

CANARY = "canary"
"""The rule that a denial names when a canary was touched."""

WITHOUT_ROOM = 16
BEYOND = (
    "its entries take more of the log than the {:,} bytes that its policy lets them; "
    "'log' in [limits] sets how much"
)


class Detectors:
    """Watches the log's new entries and the running sandboxes."""

    def __init__(
        self,
        ledger: Ledger,
        incidents: Incidents,
        running: Mapping[str, Run],
    ) -> None:
        self._ledger = ledger
        self._incidents = incidents
        self._running = running
        self._without_room: Counter[str] = Counter()
        ledger.listen(self._seen)

    def _seen(self, entry: entries.AnyEntry) -> None:
        self._weigh(entry)
        if not isinstance(entry, entries.Denied) or not entry.run:
            return
        state = self._ledger.state
        info = state.runs.get(entry.run)
        if info is None or info.halted:
            return
        if entry.rule == CANARY:
            self._soon("canary", entry.reason, entry.run, entry.seq)
        elif state.denials_spent(info):
            self._soon("denials", "denial budget exhausted", entry.run, entry.seq)
        elif not self._ledger.no_room(entry.run):
            self._without_room.pop(entry.run, None)
        else:
            self._without_room[entry.run] += 1
            if self._without_room[entry.run] >= WITHOUT_ROOM:
                del self._without_room[entry.run]
                self._soon("denials", "it asked on without room in the log", entry.run, entry.seq)

    def _weigh(self, entry: entries.AnyEntry) -> None:
        """Whether a run, or one above it, now has more in the log than its policy lets it."""
        runs, name = self._ledger.state.runs, entry.run
        while info := runs.get(name):
            run = self._running.get(name)
            if run is not None and self._ledger.taken(name) > run.log_limit and not info.halted:
                self._soon("log", BEYOND.format(run.log_limit), name, entry.seq)
            name = info.parent

    def _soon(self, what: str, detail: str, run: str, of: int) -> None:
        asyncio.get_running_loop().call_soon(self._open, what, detail, run, of)

    def _open(self, what: str, detail: str, run: str, of: int) -> None:
        info = self._ledger.state.runs.get(run)
        if info is not None and not info.halted:
            self._incidents.open(what, detail, run=run, of=of)

    def looked(self, run: str, canary: str) -> None:
        """A look, which is no request, touched a canary."""
        self._open("canary", f"canary {canary}", run, -1)

    def exited(self, run: Run, number: int) -> None:
        """A program ended by a signal: a forbidden system call's is an attack."""
        if number == signal.SIGSYS:
            self._open("seccomp", "a forbidden system call", run.id, -1)

    def late(self, run: str) -> None:
        """A request with a capability of a run that was halted."""
        cases = self._ledger.state.cases.values()
        if any(case.run == run and case.open and case.what != "late_request" for case in cases):
            self._incidents.open("late_request", "a request after the halt", run=run)

    def synced(self, poisoned: str) -> None:
        """At the start: the last gate went down with a failed sync."""
        if poisoned:
            self._incidents.open("sync", poisoned)

    def check(self) -> None:
        """Whether what was put in force around each running sandbox still is."""
        for run in [*self._running.values()]:
            sandbox = run.sandbox
            if sandbox is None or run.over:
                continue
            missing = missing_protection(sandbox.pid, sandbox.uid, root=sandbox.plan.host.root)
            # A process may end while it is read: what counts is what a second look finds, too.
            if missing and missing == missing_protection(
                sandbox.pid, sandbox.uid, root=sandbox.plan.host.root
            ):
                self._incidents.open("protection", f"run {run.id}: {missing}")


def missing_protection(first: int, uid: int, *, root: bool) -> str:
    """What one of the processes below `first` lacks; empty when nothing is, or all have ended."""
    try:
        own_network = os.readlink("/proc/self/ns/net")
    except OSError as error:
        return f"the gate can't see its own name spaces: {error.strerror}"
    for pid in processes.tree(first):
        fields = processes.status(pid)
        if not fields or fields.get("State", "Z")[:1] in "ZX":
            continue
        if fields.get("Seccomp") != "2" or fields.get("NoNewPrivs") != "1":
            return "a process without its system call filter"
        if set(fields.get("CapEff", "0")) != {"0"}:
            return "a process with a capability"
        if root and set(fields.get("Uid", "").split()) != {str(uid)}:
            return "a process of another user"
        try:
            if os.readlink(f"/proc/{pid}/ns/net") == own_network:
                return "a process in the host's network"
        except FileNotFoundError:
            continue
        except OSError as error:
            return f"a process that can't be looked at: {error.strerror}"
    return ""
