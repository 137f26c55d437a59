"""Workers: confined processes that parse what came from remote places and from programs.

Rules
- A worker belongs to one run. It gets a sandbox without network, files, channel, keys or log; what it
  works on is handed to it, descriptor by descriptor, over one socket.
- It is not trusted: whatever it says is checked like a program's request, and nothing that it holds is
  taken. One that breaks the rules of
  the link, or dies, loses its connections; the next need starts another, at most `RESTARTS` in a run.
- It ends with its run.
- What it prints (a defect's traceback) comes through a pipe, not to a file of the gate's: the first
  `PRINTED` bytes are passed on, made printable; the rest is read and dropped.
"""

from __future__ import annotations

import asyncio
import os
import socket
import sys

from authority.compat.base import Failed
from authority.errors import AuthorityError
from authority.isolation import Host, Sandbox, SandboxSpec, plan, start
from authority.isolation.plan import Plan
from authority.kernel.canonical import printable
from authority.protocol.packets import Peer

RESTARTS = 8
PRINTED = 16 * 1024
MEMORY = 512 * 1024 * 1024


class Worker:
    """One running worker and the link to it."""

    def __init__(self, sandbox: Sandbox, peer: Peer, number: int) -> None:
        self.sandbox, self.peer, self.number = sandbox, peer, number

    def stop(self) -> None:
        """Kill it; its connections end."""
        self.peer.close("stopped")
        self.sandbox.kill()


class Workers:
    """Starts workers."""

    def __init__(self, host: Host, forbidden: tuple[str, ...]) -> None:
        self._host = host
        self._forbidden = forbidden
        self._plan: Plan | None = None

    def _planned(self) -> Plan:
        if self._plan is None:
            self._plan = plan(
                SandboxSpec(
                    argv=(sys.executable, "-I", "-m", "authority.worker"),
                    cwd="/",
                    memory=MEMORY,
                    processes=8,
                    tmp_bytes=16 * 1024 * 1024,
                    channel=False,
                    forbidden=self._forbidden,
                ),
                self._host,
            )
        return self._plan

    async def start(self, before: Worker | None) -> Worker:
        """A fresh worker, after `before` if there was one. Raises `Failed`."""
        number = before.number + 1 if before is not None else 0
        if number > RESTARTS:
            raise Failed("The run's worker failed too often.")
        ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        printed, printing = os.pipe2(os.O_CLOEXEC)
        try:
            sandbox = await start(self._planned(), stdin=theirs.fileno(), stderr=printing)
        except (AuthorityError, OSError) as error:
            ours.close()
            os.close(printed)
            raise Failed(f"The run's worker could not be started: {error}") from error
        except BaseException:
            ours.close()
            os.close(printed)
            raise
        finally:
            theirs.close()
            os.close(printing)
        _pass_on(printed)
        return Worker(sandbox, Peer(ours, takes=False), number)


def _pass_on(fd: int) -> None:
    """Pass on what a worker prints, until it has ended."""
    loop = asyncio.get_running_loop()
    os.set_blocking(fd, False)
    left = PRINTED

    def readable() -> None:
        nonlocal left
        try:
            data = os.read(fd, 4096)
        except BlockingIOError:
            return
        if not data:
            loop.remove_reader(fd)
            os.close(fd)
            return
        for line in data[:left].splitlines():
            print(f"worker: {printable(line, 1024)}", file=sys.stderr)
        left = max(0, left - len(data))

    loop.add_reader(fd, readable)
