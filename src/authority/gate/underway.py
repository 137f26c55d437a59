"""What requests have under way: their work, by run, entry and capability.

Rules
- What is usually answered from the system's caches (`AT_ONCE`) needs no task while it does not wait.
  All that began in one turn of the loop goes on in the next, stage by stage (`stage`), each stage of
  all of it before the next of any: code that stays in the processor's cache takes half of the time.
  What has to wait goes on in a task from there. Until then such work is in no task of its own, so
  nothing comes there that asks for one (`asyncio.timeout`, task groups).
- Work is cancelled with its run, and with any of the capabilities that it was admitted under.
- An exception that nobody took is a defect or a poisoned ledger: the gate goes down.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine, Generator
from typing import Any

import msgspec

AT_ONCE = frozenset({"fs.read", "fs.stat"})

Work = Coroutine[Any, Any, None]


class _Begun(msgspec.Struct):
    """Work of a run; with `seq` what that entry admitted under `caps`."""

    run: str
    work: Work
    guarded: Work
    seq: int
    caps: list[str]


async def stage(effect: str) -> None:
    """The end of a stage."""
    if effect in AT_ONCE:
        await asyncio.sleep(0)


class UnderWay:
    """The work of all runs of one gate."""

    def __init__(self, on_fatal: Callable[[BaseException], None]) -> None:
        self._fatal = on_fatal
        self._begun: list[_Begun] = []
        self._busy: dict[str, set[asyncio.Task[None]]] = {}
        self._tasks: dict[int, asyncio.Task[None]] = {}
        self._caps: dict[int, list[str]] = {}

    def begin(
        self, run: str, work: Work, effect: str = "", seq: int = -1, caps: list[str] | None = None
    ) -> None:
        """Carry on with work of a run; with `seq` what that entry admitted under `caps`."""
        begun = _Begun(run, work, self._guard(work), seq, caps or [])
        if effect not in AT_ONCE:
            self._in_task(begun)
            return
        if not self._begun:
            asyncio.get_running_loop().call_soon(self._turn)
        self._begun.append(begun)

    def _turn(self) -> None:
        while self._begun:
            begun, self._begun = self._begun, []
            for each in begun:
                try:
                    waits_for = each.guarded.send(None)
                except (StopIteration, asyncio.CancelledError):
                    continue  # it is over, or what it asked for was cancelled
                if waits_for is not None:
                    each.guarded = _Waiting(each.guarded, waits_for)
                    self._in_task(each)
                else:
                    self._begun.append(each)

    def _in_task(self, begun: _Begun) -> None:
        task = asyncio.get_running_loop().create_task(begun.guarded)
        busy = self._busy.setdefault(begun.run, set())
        busy.add(task)
        task.add_done_callback(busy.discard)
        if begun.seq >= 0:
            self._tasks[begun.seq], self._caps[begun.seq] = task, begun.caps
            task.add_done_callback(lambda _: self._forget(begun.seq))

    def _forget(self, seq: int) -> None:
        self._tasks.pop(seq, None)
        self._caps.pop(seq, None)

    def _drop(self, which: Callable[[_Begun], bool]) -> None:
        """Cancel what is in no task: a stage of it is still to come."""
        for each in self._begun:
            if which(each):
                each.guarded.close()
                each.work.close()
        self._begun = [each for each in self._begun if not which(each)]

    async def _guard(self, work: Work) -> None:
        try:
            await work
        except (asyncio.CancelledError, GeneratorExit):
            raise
        except BaseException as error:
            self._fatal(error)

    async def stop_under(self, cap: str) -> list[int]:
        """Cancel what is in flight under a revoked capability; entries that did not stop."""
        self._drop(lambda begun: cap in begun.caps)
        under = [seq for seq, caps in self._caps.items() if cap in caps]
        for seq in under:
            self._tasks[seq].cancel()
        if under:
            await asyncio.wait({self._tasks[seq] for seq in under}, timeout=0.5)
        return [seq for seq in under if seq in self._tasks and not self._tasks[seq].done()]

    async def stop(self, run: str, timeout: float) -> int:
        """Cancel what a run has in flight; how many did not stop in `timeout` seconds."""
        self._drop(lambda begun: begun.run == run)
        busy = set(self._busy.pop(run, ()))
        for task in busy:
            task.cancel()
        if not busy:
            return 0
        _, pending = await asyncio.wait(busy, timeout=timeout)
        return len(pending)


class _Waiting(Coroutine[Any, Any, None]):
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
