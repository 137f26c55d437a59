"""What requests have under way: their tasks, by run, entry and capability.

Rules
- What is usually answered from the system's caches (`AT_ONCE`) takes its first step at once, and most
  often that is all: a task is made only for what has to wait, which goes on in it from where it
  stopped. In its first step such work is in no task of its own, so nothing comes there that asks for
  one (`asyncio.timeout`, task groups).
- Work is cancelled with its run, and with any of the capabilities that it was admitted under.
- An exception that nobody took is a defect or a poisoned ledger: the gate goes down.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine, Generator
from typing import Any

AT_ONCE = frozenset({"fs.read", "fs.stat"})

Work = Coroutine[Any, Any, None]


class UnderWay:
    """The work of all runs of one gate."""

    def __init__(self, on_fatal: Callable[[BaseException], None]) -> None:
        self._fatal = on_fatal
        self._busy: dict[str, set[asyncio.Task[None]]] = {}
        self._tasks: dict[int, asyncio.Task[None]] = {}
        self._caps: dict[int, list[str]] = {}

    def begin(self, run: str, work: Work, effect: str = "") -> asyncio.Task[None] | None:
        """Carry on with work of a run; the task of what is left, if anything is."""
        guarded = self._guard(work)
        left = _stepped(guarded) if effect in AT_ONCE else guarded
        if left is None:
            return None
        task = asyncio.get_running_loop().create_task(left)
        busy = self._busy.setdefault(run, set())
        busy.add(task)
        task.add_done_callback(busy.discard)
        return task

    def perform(self, run: str, work: Work, effect: str, seq: int, caps: list[str]) -> None:
        """Carry on with what entry `seq` admitted under `caps`."""
        task = self.begin(run, work, effect)
        if task is not None:
            self._tasks[seq], self._caps[seq] = task, caps
            task.add_done_callback(lambda _: self._forget(seq))

    def _forget(self, seq: int) -> None:
        self._tasks.pop(seq, None)
        self._caps.pop(seq, None)

    async def _guard(self, work: Work) -> None:
        try:
            await work
        except asyncio.CancelledError:
            raise
        except BaseException as error:
            self._fatal(error)

    async def stop_under(self, cap: str) -> list[int]:
        """Cancel what is in flight under a revoked capability; entries that did not stop."""
        under = [seq for seq, caps in self._caps.items() if cap in caps]
        for seq in under:
            self._tasks[seq].cancel()
        if under:
            await asyncio.wait({self._tasks[seq] for seq in under}, timeout=0.5)
        return [seq for seq in under if seq in self._tasks and not self._tasks[seq].done()]

    async def stop(self, run: str, timeout: float) -> int:
        """Cancel what a run has in flight; how many did not stop in `timeout` seconds."""
        busy = set(self._busy.pop(run, ()))
        for task in busy:
            task.cancel()
        if not busy:
            return 0
        _, pending = await asyncio.wait(busy, timeout=timeout)
        return len(pending)


def _stepped(work: Work) -> Work | None:
    """The work after its first step; None when that was all."""
    try:
        return _Stepped(work, work.send(None))
    except StopIteration:
        return None


class _Stepped(Coroutine[Any, Any, None]):
    """Work that waits for something already, which is handed over first."""

    __slots__ = ("_waits_for", "_work")

    def __init__(self, work: Work, waits_for: Any) -> None:
        self._work = work
        self._waits_for = [waits_for]

    def send(self, value: Any) -> Any:
        return self._waits_for.pop() if self._waits_for else self._work.send(value)

    def throw(self, *error: Any) -> Any:
        self._waits_for.clear()
        return self._work.throw(*error)

    def close(self) -> None:
        self._work.close()

    def __await__(self) -> Generator[Any, Any, None]:
        raise TypeError("work is awaited as a task")
