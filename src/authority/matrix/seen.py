"""What the host sees of a sandboxed program: its processes, by the name that they gave themselves.

The command line would not do: that of the sandbox's own wrapper holds the same words.
"""

from __future__ import annotations

import contextlib
import os
import pwd
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field

from authority.isolation.processes import tree
from authority.matrix.verdict import Attempt

FIND_SECONDS = 10.0
_STATUS = ("Uid", "Gid", "CapEff", "CapPrm", "CapBnd", "NoNewPrivs", "Seccomp")


@dataclass(frozen=True)
class Process:
    """One process as the host's /proc shows it. Ids: real, effective, saved, file system."""

    pid: int
    uids: tuple[int, ...]
    gids: tuple[int, ...]
    capabilities: int
    no_new_privileges: bool
    filtered: bool
    network: str


def find(mark: str, below: int = 0) -> list[Process]:
    """The processes that are named `mark` (15 characters at most), all or those below one."""
    found = []
    for name in map(str, tree(below)) if below else os.listdir("/proc"):
        if not name.isdigit():
            continue
        with contextlib.suppress(OSError, KeyError, ValueError):  # it ended meanwhile
            with open(f"/proc/{name}/comm", "rb") as f:
                if f.read().rstrip(b"\n") != mark.encode():
                    continue
            found.append(_read(int(name)))
    return found


def _read(pid: int) -> Process:
    status = {}
    with open(f"/proc/{pid}/status", encoding="utf-8", errors="replace") as f:
        for line in f:
            name, _, value = line.partition(":")
            if name in _STATUS:
                status[name] = value.split()
    network = ""
    with contextlib.suppress(OSError):  # an ordinary user may not be allowed to look
        network = os.readlink(f"/proc/{pid}/ns/net")
    return Process(
        pid,
        tuple(map(int, status["Uid"])),
        tuple(map(int, status["Gid"])),
        int(status["CapEff"][0], 16) | int(status["CapPrm"][0], 16),
        status["NoNewPrivs"] == ["1"],
        status["Seccomp"] == ["2"],
        network,
    )


@dataclass
class Seen:
    """All processes that were seen, by pid: the last look at each."""

    mark: str
    below: Callable[[], int] = lambda: 0
    processes: dict[int, Process] = field(default_factory=dict)

    def look(self) -> bool:
        """One look; whether anything was there."""
        found = find(self.mark, self.below())
        self.processes.update({p.pid: p for p in found})
        return bool(found)

    def wait(self) -> None:
        """Look until something is there, then twice more, so that its children are seen too."""
        deadline = time.monotonic() + FIND_SECONDS
        while not self.look():
            if time.monotonic() > deadline:
                return
            time.sleep(0.02)
        for _ in range(2):
            time.sleep(0.05)
            self.look()


@contextmanager
def watching(mark: str) -> Iterator[Seen]:
    """Look again and again while the block runs."""
    seen, over = Seen(mark), threading.Event()

    def look() -> None:
        while not over.wait(0.05):
            seen.look()

    thread = threading.Thread(target=look, daemon=True)
    thread.start()
    try:
        yield seen
    finally:
        over.set()
        thread.join()


def is_account(uid: int) -> bool:
    """Whether somebody of this host has this id."""
    try:
        pwd.getpwuid(uid)
    except KeyError:
        return False
    return True


def judged(seen: Seen, *, by_root: bool, own_network: str) -> list[Attempt]:
    """What the host's view says about containment: an attempt works where something is not held.

    Started by root, the run must have an unprivileged user that nobody on the host is; started by
    somebody else it has that user's id.
    """
    attempts = []
    for p in sorted(seen.processes.values(), key=lambda p: p.pid):
        ids = f"uid {p.uids[0]}, gid {p.gids[0]} on the host"
        root = 0 in p.uids + p.gids
        somebody = by_root and any(is_account(u) for u in p.uids)
        attempts += [
            Attempt("be root on the host", root, ids),
            Attempt("be a user of the host", somebody, ids),
            Attempt("hold a capability", p.capabilities != 0, f"CapEff|CapPrm {p.capabilities:x}"),
            Attempt("gain privileges by exec", not p.no_new_privileges, "no_new_privs"),
            Attempt("call without a filter", not p.filtered, "seccomp"),
        ]
        if p.network:
            attempts.append(
                Attempt("share the host's network", p.network == own_network, p.network)
            )
    return attempts
