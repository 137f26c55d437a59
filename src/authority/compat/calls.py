"""Files without FUSE: a run's calls about paths, answered one by one (`files = "calls"`).

The run's seccomp filter lets these calls wait, and the gate answers each: it reads the arguments from
the program's memory, walks the path as the kernel would, asks the same desks as a mount, and writes
the result into the program's memory or hands in a descriptor that it opened itself. No call about a
mediated file is ever continued, so nothing that a program changes after it was judged is used. What is
continued (everything native, and changing into a folder) finds only what the run's own name spaces
hold: at the place of a mediated folder that is an empty stand-in (`calls_seat`).

Rules
- A call that is not known here fails with ENOSYS; a path that can't be read with EFAULT. At most
  `AT_ONCE` calls are worked on; the others wait in the kernel.
- A halt, the loss of the capability: everything after that is EIO, and since a descriptor that was
  handed in can't be taken back, the run is ended.
- When the gate is gone, or has let the listener go, the kernel says ENOSYS.
- A defect here answers EIO, ends the run and is raised: nothing goes on half right.

Parts: `calls_base`, `calls_memory`, `calls_wire` (the call, its process, its structures), `calls_walk`
(paths), `calls_seat` (a folder), `calls_table` (which call is what), `calls_open`, `calls_looks`,
`calls_changes`, `calls_targets` (what they do), `calls_writes` (what is open for writing).
"""

from __future__ import annotations

import asyncio
import contextlib
import errno
import os
import select
import sys
import traceback
from collections.abc import Awaitable, Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Final

from authority.compat.base import Door, Flow, Folder, Places, Refused
from authority.compat.calls_base import GO_ON, Answer, Call, Case, Descriptor, Handed, Over
from authority.compat.calls_seat import Seat, StandIn
from authority.compat.calls_table import Table
from authority.compat.calls_targets import Targets
from authority.compat.calls_walk import Native, Walker
from authority.compat.calls_writes import Writes, writers
from authority.compat.mount import errno_of
from authority.compat.mount_bench import Bench
from authority.compat.mount_desk import Desk
from authority.compat.mount_handles import Handles
from authority.compat.mount_links import Links
from authority.compat.mount_locks import Stillness
from authority.compat.mount_nodes import Nodes
from authority.compat.mount_own import Own
from authority.effects.beneath import Beneath, Untouchable
from authority.effects.tree import Tree
from authority.kernel.policy_protect import PathSet, path_text
from authority.kernel.requests import Nothing
from authority.kernel.resources import parse_text

AT_ONCE: Final = 64
THREADS: Final = 4
_AGAIN: Final = 3


class Calls:
    """The mediation of one run. `end` ends the run, with the reason."""

    def __init__(self, door: Door, places: Places, end: Callable[[str], None]) -> None:
        self._door = door
        self._places = places
        self._end = end
        self._handles = Handles()
        self._own = Own()
        self._links = Links()
        self._still = Stillness()
        self._threads = ThreadPoolExecutor(THREADS, "authority-calls")
        self._beneath = Beneath()
        self._writes = Writes(door, self._beneath, end)
        self._noting = False
        self._handed: Handed | None = None
        self._native: Native | None = None
        self._seats: dict[bytes, Seat] = {}
        self._trees: list[Tree] = []
        self._flows: list[Flow] = []
        self._table: Table | None = None
        self._tasks: set[asyncio.Task[None]] = set()
        self._reading = False
        self._closed = False

    def written_to_act_later(self) -> dict[str, str]:
        """As of `Mounts`: for the run's end."""
        return dict(self._own.written)

    def begin(self, handed: Handed) -> None:
        """Answer from now on; what was handed over is this object's to close."""
        self._handed = handed
        self._native = Native(handed.root)
        self._keep(self._start(handed))

    def _keep(self, work: Awaitable[None]) -> None:
        task = asyncio.ensure_future(work)
        self._tasks.add(task)
        task.add_done_callback(self._finished)

    def _finished(self, task: asyncio.Task[None]) -> None:
        self._tasks.discard(task)
        if not task.cancelled() and (error := task.exception()) is not None:
            traceback.print_exception(error, file=sys.stderr)
            self._handles.stop()
            self._door.trouble(f"the mediation of files failed: {type(error).__name__}")
            self._end("the mediation of files failed")
        elif not self._closed and self._table is not None:
            self._read(len(self._tasks) < AT_ONCE)

    async def _start(self, handed: Handed) -> None:
        folders = zip(self._places.folders, handed.folders, strict=True)
        trees: list[tuple[int, Seat]] = []
        for folder, (real, stand_in) in folders:
            seat = await self._seat(handed, folder, real, StandIn(self._beneath, stand_in))
            if seat is not None:
                self._seats[seat.path] = seat
                trees.append((real, seat))
        assert self._native is not None
        walker = Walker(self._native, self._seats)
        targets = Targets(walker, self._native, trees, self._owner())
        self._table = Table(walker, targets, self._writes, handed.uid, handed.gid)
        if not self._closed:
            self._read(True)

    def _owner(self) -> int:
        """The run's user as this machine numbers it: its home is that user's."""
        assert self._native is not None
        held = self._native.hold(b"/home/agent")
        try:
            return os.fstat(held).st_uid
        finally:
            os.close(held)

    async def _seat(
        self, handed: Handed, folder: Folder, real: int, stand_in: StandIn
    ) -> Seat | None:
        """A folder's; None when the policy does not let the run look at it: then there is nothing."""
        root = parse_text(path_text(folder.path))
        files = Tree(self._beneath, os.fsencode(folder.source), real)
        self._trees.append(files)
        with files.look(b"") as found:
            nodes = Nodes(root, found.identity)
        over = PathSet(map(path_text, self._places.over))
        bench = Bench(
            self._door,
            files,
            nodes,
            handles=self._handles,
            own=self._own,
            shown=PathSet(map(path_text, self._places.shown)),
            over=over,
            home=folder.home,
            threads=self._threads,
            still=self._still,
            writers=lambda found: writers(self._beneath, found),
        )
        try:
            flow = await self._door.open("fs.mount", root, Nothing(), bench.verb)
        except Refused:
            stand_in.close()
            return None
        self._flows.append(flow)
        flow.on_stop(self._stopped)
        desk = Desk(bench, self._links)
        return Seat(desk, stand_in, os.fsencode(folder.path), over, handed.uid, handed.gid)

    def noted(self) -> None:
        """An entry of the run was made: its label may have risen."""
        if self._writes and not self._noting and not self._closed:
            self._noting = True
            asyncio.get_running_loop().call_soon(self._look_again)

    def _look_again(self) -> None:
        self._noting = False
        if not self._closed:
            self._keep(self._writes.ask_again())

    def _stopped(self) -> None:
        self._handles.stop()
        if not self._closed:
            # A halt names itself before this comes.
            asyncio.get_running_loop().call_soon(self._end, "revoked")

    def close(self) -> None:
        """The run is over."""
        if self._closed:
            return
        self._read(False)
        self._closed = True
        self._handles.stop()
        for task in self._tasks:
            task.cancel()
        for flow in self._flows:
            flow.settle("done")
        if self._handed is not None:
            self._handed.listener.close()
            for real, _ in self._handed.folders:
                os.close(real)
        if self._native is not None:
            self._native.close()
        for seat in self._seats.values():
            seat.close()
        for tree in self._trees:
            tree.close()
        self._threads.shutdown(wait=False, cancel_futures=True)
        self._own.close()
        self._writes.close()
        self._beneath.close()

    # --- answering ---

    def _read(self, on: bool) -> None:
        if on is self._reading or self._handed is None or self._closed:
            return
        self._reading = on
        loop, fd = asyncio.get_running_loop(), self._handed.listener.fileno()
        if on:
            loop.add_reader(fd, self._readable)
        else:
            loop.remove_reader(fd)

    def _readable(self) -> None:
        assert self._handed is not None
        listener = self._handed.listener
        poll = select.poll()
        poll.register(listener.fileno(), select.POLLIN)
        found = poll.poll(0)
        if found and not found[0][1] & select.POLLIN:
            self._read(False)  # nobody is left who could ask
            return
        call = listener.receive() if found else None
        if call is not None:
            self._keep(self._answer(call))
            if len(self._tasks) >= AT_ONCE:
                self._read(False)

    async def _answer(self, call: Call) -> None:
        assert self._handed is not None
        listener = self._handed.listener
        try:
            answer = await self._worked(call)
            if isinstance(answer, Descriptor):
                try:
                    listener.inject(call.id, answer.fd, cloexec=answer.cloexec)
                finally:
                    os.close(answer.fd)
            elif isinstance(answer, int):
                listener.done(call.id, answer)
            else:
                listener.go_on(call.id)
        except Over:
            return
        except (OSError, Untouchable) as error:
            listener.fail(call.id, errno_of(error))
        except asyncio.CancelledError:
            raise
        except BaseException:
            listener.fail(call.id, errno.EIO)
            raise

    async def _worked(self, call: Call) -> Answer:
        assert self._handed is not None
        assert self._table is not None
        if self._handles.stopped:
            raise OSError(errno.EIO, os.strerror(errno.EIO))
        for left in reversed(range(_AGAIN)):
            case = Case(call, self._handed.listener)
            try:
                answer = await self._table.work(case)
                if answer is GO_ON:
                    for seat, path, text in case.links:
                        with contextlib.suppress(OSError, Untouchable):
                            seat.stand_in.link(path, text)
                return answer
            except OSError as error:
                # The name became another object while it was looked at.
                if error.errno != errno.ESTALE or not left:
                    raise
            except Untouchable:
                raise
            finally:
                case.close()
        raise AssertionError("unreachable")
