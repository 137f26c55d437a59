"""A started run: start it, wait for it, stop it for a while or for good.

Rules
- `start` returns when the program has been executed, or raises `IsolationRefused` with the cause;
  in between nothing of the program's has run. It checks what the kernel says about the launcher: a
  run that root started and whose process is still uid 0 is killed and refused.
- It must be called from the main thread: the parent-death signal that kills a run when the gate
  dies follows the *thread* that started it, so a run started by a short-lived thread would end with
  that thread.
- Death goes with the gate three ways: the parent-death signal, end of file on the control socket,
  end of file on the channel. Each ends process 1, and with it, by the kernel, all of the run.
- `start` takes over `channel` (the run's end of it) and closes this process's copy; standard streams
  stay the caller's.
- A run's terminal is a pair made here. Its controlling end goes to process 1 and to nobody else; the
  other is shown inside under a name of its own, so the run can reach no terminal but this one.
- Control groups and host ids are given back when the run has ended.
"""

from __future__ import annotations

import asyncio
import contextlib
import marshal
import os
import select
import signal
import socket
import struct
import termios
import threading
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Final

from authority.isolation import cgroups, layout, leftovers, notify, processes, spawn
from authority.isolation.launcher import FIRST_FD
from authority.isolation.places import HOME, MAX_MOUNTS
from authority.isolation.plan import Plan
from authority.isolation.probe import explain
from authority.isolation.refusal import IsolationRefused, shown

START_SECONDS: Final = 30.0
WATCH_SECONDS: Final = 0.1
_FREEZE_SECONDS: Final = 2.0
_CREDENTIALS: Final = struct.Struct("=iii")
_EXIT: Final = struct.Struct(">ii")
_HANDED_BYTES: Final = 9
_HANDED_MOST: Final = 2 + 2 * MAX_MOUNTS


@dataclass(frozen=True, slots=True)
class ExitStatus:
    """How the program ended: its exit code, or -1 and the signal. `killed` when the run was ended
    from outside (by `kill`, a limit, the gate's end) and the program said nothing; `reason` then
    says what is known."""

    code: int
    signal: int
    killed: bool = False
    reason: str = ""


class Sandbox:
    """One run. `pid` is process 1 of the run as the host numbers it; `uid` its host user."""

    def __init__(self, plan: Plan, outer: int, control: socket.socket, diagnostics: int) -> None:
        self.plan = plan
        self.pid = 0
        self.uid = plan.host.uid
        self._outer = outer
        self._control = control
        self._diagnostics = diagnostics
        self._group: cgroups.Group | None = None
        self._claim: socket.socket | None = None
        self._received = b""
        self._ended: asyncio.Future[ExitStatus] = asyncio.get_running_loop().create_future()
        self._outer_fd = os.pidfd_open(outer)
        self._first_fd = -1
        self._watcher: asyncio.Task[None] | None = None
        self._reason = ""
        self._hands: Callable[[notify.Handed], None] | None = None

    # --- starting ---

    async def _begin(self, configuration: bytes) -> None:
        loop = asyncio.get_running_loop()
        self._control.setblocking(False)
        with contextlib.suppress(BrokenPipeError, ConnectionResetError):
            # A bubblewrap that ended at once says why; that is read below.
            await loop.sock_sendall(self._control, configuration)
        readable = asyncio.Event()
        loop.add_reader(self._control.fileno(), readable.set)
        loop.add_reader(self._outer_fd, readable.set)
        try:
            while True:
                await readable.wait()
                readable.clear()
                if self._receive():
                    break
        finally:
            loop.remove_reader(self._control.fileno())
            loop.remove_reader(self._outer_fd)

    def _receive(self) -> bool:
        """Reads the control socket; True once the program runs. Raises when it won't."""
        try:
            data, extra, _, _ = self._control.recvmsg(
                _HANDED_BYTES if self._hands else 8192,
                socket.CMSG_SPACE(_CREDENTIALS.size) + socket.CMSG_SPACE(4 * _HANDED_MOST),
                socket.MSG_CMSG_CLOEXEC,
            )
        except BlockingIOError:
            if not _is_readable(self._outer_fd):
                return False
            data, extra = b"", []
        except ConnectionResetError:
            # It went away with our configuration unread; what it said before comes next.
            return False
        if data[:1] == b"L" and self._hands is not None:
            self._take(data[1:], extra)
            return False
        if data[:1] == b"S":
            credentials = [
                _CREDENTIALS.unpack(content)
                for level, kind, content in extra
                if (level, kind) == (socket.SOL_SOCKET, socket.SCM_CREDENTIALS)
            ]
            self._accept(credentials)
            self._received = data[1:]
            return True
        if data and self._hands is not None:
            with contextlib.suppress(BlockingIOError):
                data += self._control.recv(8192)
        raise self._refusal(data)

    def _take(self, data: bytes, extra: list[tuple[int, int, bytes]]) -> None:
        """The listener and the folders: for whoever answers calls about files."""
        fds = [
            int.from_bytes(content[at : at + 4], "little")
            for level, kind, content in extra
            if (level, kind) == (socket.SOL_SOCKET, socket.SCM_RIGHTS)
            for at in range(0, len(content) - 3, 4)
        ]
        hands, self._hands = self._hands, None
        found = notify.handed(
            data,
            fds,
            self.plan.host.architecture,
            len(self.plan.mounts),
            exec_once=bool(self.plan.configuration["exec_once"]),
        )
        if found is None or hands is None:
            raise IsolationRefused("the launcher handed over something else than what was planned")
        hands(found)

    def _accept(self, credentials: list[tuple[int, int, int]]) -> None:
        """What the kernel, not the launcher, says about the process on the other side."""
        if not credentials:
            raise IsolationRefused("the kernel named no sender for the launcher's message")
        self.pid, uid, gid = credentials[0]
        wanted = self.uid
        if uid != wanted or (self.plan.host.root and 0 in (uid, gid)):
            raise IsolationRefused(
                f"the run would have had the host user {uid} instead of {wanted}",
                "this is a fault of Authority; please report it",
            )
        # A short program may have ended by now: then its number is nobody's, or somebody else's.
        with contextlib.suppress(ProcessLookupError):
            self._first_fd = os.pidfd_open(self.pid)
        if processes.parent(self.pid) != self._outer:
            if self._first_fd >= 0:
                os.close(self._first_fd)
            self.pid, self._first_fd = 0, -1

    def _refusal(self, data: bytes) -> IsolationRefused:
        if data[:1] == b"E":
            return IsolationRefused(shown(data[1:]))
        # Give bubblewrap the moment that it needs to say why.
        with contextlib.suppress(ProcessLookupError):
            os.kill(self._outer, signal.SIGKILL)
        printed = shown(spawn.diagnostics(self._diagnostics).strip())
        cause, fix = explain(self.plan.host, printed)
        return IsolationRefused(f"{cause}: {printed or 'it said nothing'}", fix)

    def _watch(self) -> None:
        loop = asyncio.get_running_loop()
        loop.add_reader(self._outer_fd, self._on_end)
        memory = self.plan.spec.memory
        if memory and "memory" not in self.plan.cgroup.controllers:
            self._watcher = loop.create_task(self._watch_memory(memory))

    async def _watch_memory(self, limit: int) -> None:
        while True:
            await asyncio.sleep(WATCH_SECONDS)
            if processes.resident_bytes(processes.tree(self.pid)) > limit:
                self._reason = "the run used more memory than it may"
                self.kill()
                return

    # --- the end ---

    def _on_end(self) -> None:
        loop = asyncio.get_running_loop()
        loop.remove_reader(self._outer_fd)
        self._release()
        if not self._ended.done():
            self._ended.set_result(self._exit_status())

    def _exit_status(self) -> ExitStatus:
        data = self._received
        with contextlib.suppress(OSError):
            while part := self._control.recv(8192):
                data += part
        self._control.close()
        if data[:1] == b"X" and len(data) >= 1 + _EXIT.size:
            code, number = _EXIT.unpack_from(data, 1)
            return ExitStatus(code, number)
        reason = self._reason or (shown(data[1:]) if data[:1] == b"E" else "the run was killed")
        return ExitStatus(-1, signal.SIGKILL, True, reason)

    def _release(self) -> None:
        """Gives back what the run held; process 1 is dead, so nothing of it lives."""
        if self._watcher is not None:
            self._watcher.cancel()
        self._kill_first()
        with contextlib.suppress(ChildProcessError):
            os.waitpid(self._outer, 0)
        for fd in (self._outer_fd, self._first_fd, self._diagnostics):
            if fd >= 0:
                os.close(fd)
        self._outer_fd = self._first_fd = self._diagnostics = -1
        if self._claim is not None:
            self._claim.close()
        if self._group is not None and not self._group.remove():
            leftovers.take(self._group)

    def _abandon(self) -> None:
        """A start that failed: nothing may be left of it."""
        spawn.end(self._outer)
        self._release()
        self._control.close()

    def _kill_first(self) -> None:
        if self._first_fd >= 0:
            with contextlib.suppress(ProcessLookupError):
                signal.pidfd_send_signal(self._first_fd, signal.SIGKILL)

    # --- what the gate does with it ---

    async def wait(self) -> ExitStatus:
        """Until the run has ended and nothing of it lives. May be awaited by several."""
        return await asyncio.shield(self._ended)

    def kill(self) -> None:
        """Kills process 1; the kernel then kills everything in the run. Idempotent."""
        self._reason = self._reason or "the run was killed"
        if self._first_fd >= 0:
            # A frozen group would die only when it is thawed.
            self._kill_first()
            with contextlib.suppress(OSError):
                if self._group is not None:
                    self._group.set_frozen(False)

    async def freeze(self) -> bool:
        """Stops everything in the run; True when the kernel confirms that all of it has stopped."""
        deadline = time.monotonic() + _FREEZE_SECONDS
        by_group = False
        if self._group is not None:
            with contextlib.suppress(OSError):
                by_group = self._group.set_frozen(True)
        while self._first_fd >= 0 and time.monotonic() < deadline:
            if by_group and self._group is not None:
                if self._group.is_frozen():
                    return True
                # Process 1 stands still too, so who waits for an answer about a file waits on.
                if self._group.version == 1 and processes.held(processes.tree(self.pid)):
                    return True
            else:
                # What was forked meanwhile is found on the next round; the stopped fork no more.
                members = processes.tree(self.pid)
                _signal_all(members, signal.SIGSTOP)
                if processes.stopped(members) and set(members) == set(processes.tree(self.pid)):
                    return True
            await asyncio.sleep(0.005)
        return False


def _signal_all(pids: Iterable[int], number: int) -> None:
    for pid in pids:
        with contextlib.suppress(ProcessLookupError, PermissionError):
            os.kill(pid, number)


def _is_readable(fd: int) -> bool:
    poll = select.poll()
    poll.register(fd, select.POLLIN)
    return bool(poll.poll(0))


async def start(
    plan: Plan,
    channel: socket.socket | None = None,
    *,
    stdin: int | None = None,
    stdout: int | None = None,
    stderr: int | None = None,
    calls: Callable[[notify.Handed], None] | None = None,
) -> Sandbox:
    """Starts a run and returns when its program has been executed.

    With a plan for a channel, `channel` is the run's end of a stream socket pair, taken over and
    closed here. Otherwise `stdin`, `stdout` and `stderr` are descriptors for the program's streams;
    what is left out is /dev/null. `calls` takes what a launcher hands over where files are mediated
    call by call, and has to answer from then on: the program's start waits for it. Raises
    `IsolationRefused`; nothing of the run is left then.
    """
    try:
        if threading.current_thread() is not threading.main_thread():
            raise IsolationRefused(
                "a run must be started from the main thread, or it would end with its thread",
                "start it from the main thread or from a process of its own",
            )
        if (channel is None) is plan.spec.channel:
            raise IsolationRefused("the plan and the start disagree about the channel")
        if bool(plan.configuration["calls"]) is (calls is None):
            raise IsolationRefused("the plan and the start disagree about who answers calls")
        return await _start(plan, channel, (stdin, stdout, stderr), calls)
    finally:
        if channel is not None:
            channel.close()


async def _start(
    plan: Plan,
    channel: socket.socket | None,
    streams: tuple[int | None, ...],
    calls: Callable[[notify.Handed], None] | None,
) -> Sandbox:
    ours, theirs = socket.socketpair()
    theirs.setblocking(True)  # the launcher waits on it, whatever this process's default timeout
    ours.setsockopt(socket.SOL_SOCKET, socket.SO_PASSCRED, 1)
    group: cgroups.Group | None = None
    claim: socket.socket | None = None
    sandbox: Sandbox | None = None
    null = os.open(os.devnull, os.O_RDWR | os.O_CLOEXEC)
    entrances: list[int] = []
    pair: tuple[int, ...] = ()
    diagnostics = spawn.diagnostics_file()
    try:
        host_id = plan.host.uid
        if plan.host.root:
            host_id, claim = spawn.take_host_id()
        group = leftovers.group_for(plan)
        entrances = group.open_entrances() if group is not None else []
        own = (
            [channel.fileno()]
            if channel is not None
            else [null if fd is None else fd for fd in streams]
        )
        command = plan.command
        if plan.spec.terminal is not None:
            pair, name = _terminal(*plan.spec.terminal)
            own.append(pair[0])
            command = tuple(name if word == layout.OUTER_TERMINAL else word for word in command)
        outer = spawn.spawn(command, diagnostics, theirs.fileno(), own, entrances)
        sandbox = Sandbox(plan, outer, ours, diagnostics)
        sandbox.uid = host_id
        sandbox._group, sandbox._claim = group, claim
        sandbox._hands = calls
        theirs.close()
        first_entrance = FIRST_FD + len(own)
        unused = first_entrance + len(entrances)
        body = marshal.dumps(
            {
                **plan.configuration,
                "cgroups": list(range(first_entrance, unused)),
                "first_unused_fd": unused,
                "host_ids": (host_id, host_id) if plan.host.root else None,
                "owners": [
                    (path.encode(), host_id, host_id)
                    for path in (HOME, *([layout.TERMINAL] if pair else []))
                    if plan.host.root
                ],
            }
        )
        async with asyncio.timeout(START_SECONDS):
            await sandbox._begin(len(body).to_bytes(4, "big") + body)
        sandbox._watch()
    except BaseException as error:
        if sandbox is not None:
            sandbox._abandon()
        else:
            ours.close()
            os.close(diagnostics)
            if claim is not None:
                claim.close()
            if group is not None:
                group.remove()
        if isinstance(error, TimeoutError):
            raise IsolationRefused(
                "the run did not start in time", "is the machine very busy?"
            ) from error
        raise
    finally:
        theirs.close()
        os.close(null)
        for fd in (*entrances, *pair):
            os.close(fd)
    return sandbox


def _terminal(rows: int, columns: int) -> tuple[tuple[int, int], str]:
    """(controlling end, program's end) and the latter's name. Raises `IsolationRefused`."""
    pair: tuple[int, ...] = ()
    try:
        ours, theirs = pair = os.openpty()
        termios.tcsetwinsize(ours, (rows, columns))
        return (ours, theirs), os.ttyname(theirs)
    except OSError as error:
        for fd in pair:
            os.close(fd)
        raise IsolationRefused(
            f"no terminal could be made: {error.strerror}", "--no-tty runs without one"
        ) from error
