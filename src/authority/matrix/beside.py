"""What the host sees while a machine is attacked: a neighbour that goes on, small hypervisors.

Nothing here asks the attacked machine: the neighbour is another run of the same gate, and the
hypervisors are processes in the host's `/proc`.
"""

from __future__ import annotations

import contextlib
import os
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, Final

from authority.gate.client import Client, GateError, token_of
from authority.isolation import processes
from authority.matrix import seen
from authority.matrix.live import Live
from authority.matrix.verdict import Attempt

HYPERVISOR: Final = "qemu-system-x86"
"""What the host calls a machine's process, in the 15 characters that it keeps."""
_PAUSE: Final = 0.1
_ITS_OWN: Final = ("/memfd:", "/dev/", "/usr/share/seabios/", "/usr/share/qemu/", "/usr/lib/")


class Beside:
    """A run that goes on beside others. `count`: how often it said its word. `end`: its last event."""

    def __init__(self, live: Live, policy: str, what: str, word: str) -> None:
        self.run = ""
        self.count = 0
        self.ended = False
        self.end: dict[str, Any] = {}
        self._live = live
        self._word = word
        program = live.programs / "guest_channel.py"
        argv = [live.house.python, str(program), what]
        self._body = live.request(argv, policy)
        self._client = Client(live.directory, token_of(live.directory.admin_token))
        self._thread = threading.Thread(target=self._follow, daemon=True)
        self._thread.start()

    def _follow(self) -> None:
        with contextlib.suppress(GateError, OSError):  # the gate is gone: it has ended
            for event in self._client.stream("POST", "/v1/runs", self._body):
                if event["event"] == "started":
                    self.run = str(event["run"])
                elif event["event"] == "output":
                    self.count += str(event["text"]).count(self._word)
                elif event["event"] == "end":
                    self.end = event
        self.ended = True

    def goes_on(self, seconds: float, words: int = 3) -> bool:
        """Whether more comes than had come until now."""
        before, deadline = self.count, time.monotonic() + seconds
        while self.count < before + words:
            if self.ended or time.monotonic() > deadline:
                return False
            time.sleep(_PAUSE)
        return True

    def stop(self) -> None:
        with contextlib.suppress(GateError):  # it ended by itself
            self._live.admin("POST", f"/v1/runs/{self.run}/stop")
        self._thread.join(self._live.house.seconds)


@contextmanager
def beside(live: Live, policy: str, what: str = "ticks", word: str = "tick") -> Iterator[Beside]:
    """The neighbour, which prints without end, or a run that does something worse."""
    made = Beside(live, policy, what, word)
    try:
        yield made
    finally:
        made.stop()


class Hypervisors:
    """All that were seen below the gate: who they are, how large they became, what they started."""

    def __init__(self, live: Live) -> None:
        self._gate = live.pid()
        self.seen = seen.Seen(HYPERVISOR, lambda: self._gate)
        self.kilobytes = 0
        self.children: set[int] = set()
        self.files: set[str] = set()
        self._open: dict[int, set[str]] = {}

    def look(self) -> None:
        self.seen.look()
        for process in list(self.seen.processes):
            size = processes.status(process).get("VmHWM", "0").split()[0]
            self.kilobytes = max(self.kilobytes, int(size))
            self.children |= set(processes.tree(process)[1:])
            # At two looks in turn: its libraries open something for a moment while they are loaded.
            now = _files(process)
            self.files |= now & self._open.get(process, set())
            self._open[process] = now

    def judged(self, own_network: str) -> list[Attempt]:
        """What would be a way out: another user, a capability, a child, a file of the host."""
        by_root = os.geteuid() == 0
        found = seen.judged(self.seen, by_root=by_root, own_network=own_network)
        files = sorted(self.files)
        found.append(Attempt("start a process", bool(self.children), f"{len(self.children)}"))
        found.append(Attempt("hold a file open", bool(files), ", ".join(files) or "none"))
        return found


def _files(pid: int) -> set[str]:
    """Paths that it has open, beyond memory, devices that everybody has, and its own firmware."""
    found = set()
    with contextlib.suppress(OSError):  # it ended, or is not ours to look at
        for fd in os.listdir(f"/proc/{pid}/fd"):
            path = os.readlink(f"/proc/{pid}/fd/{fd}")
            if path.startswith("/") and not path.startswith(_ITS_OWN):
                found.add(path)
    return found


@contextmanager
def watched(live: Live) -> Iterator[Hypervisors]:
    """Look again and again while the block runs."""
    found, over = Hypervisors(live), threading.Event()

    def watch() -> None:
        while not over.wait(_PAUSE):
            found.look()

    thread = threading.Thread(target=watch, daemon=True)
    thread.start()
    try:
        yield found
    finally:
        over.set()
        thread.join()
