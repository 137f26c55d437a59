"""What a stopped run leaves that its end would take away: its processes, as the kernel shows them.

Read from outside, of processes that are frozen: for each its command, state, ids, limits of what it
may do, memory map, open descriptors, sockets. Bounded; what could not be read is said, not skipped.
Nothing of a process's memory is kept: it may hold secrets of the person.
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

from authority.kernel.canonical import printable

MOST_PROCESSES = 256
MOST_BYTES = 64 * 1024
MOST_DESCRIPTORS = 1024


def processes(pids: list[int]) -> list[dict[str, Any]]:
    """One plain map a process, JSON without floats, every text printable."""
    found = [_process(pid) for pid in pids[:MOST_PROCESSES]]
    if len(pids) > MOST_PROCESSES:
        found.append({"not_read": len(pids) - MOST_PROCESSES})
    return found


def _process(pid: int) -> dict[str, Any]:
    kept: dict[str, Any] = {"pid": pid}
    for name in ("cmdline", "status", "maps", "wchan", "syscall", "cgroup"):
        kept[name] = _text(f"/proc/{pid}/{name}")
    for name in ("exe", "cwd", "root"):
        kept[name] = _link(f"/proc/{pid}/{name}")
    try:
        names = sorted(os.listdir(f"/proc/{pid}/fd"), key=int)
    except OSError as error:
        kept["descriptors"] = f"not read: {error.strerror}"
    else:
        kept["descriptors"] = {n: _link(f"/proc/{pid}/fd/{n}") for n in names[:MOST_DESCRIPTORS]}
    return kept


def _text(path: str) -> str:
    try:
        with Path(path).open("rb") as file:
            data = file.read(MOST_BYTES + 1)
    except OSError as error:
        return f"not read: {error.strerror}"
    cut = " (cut)" if len(data) > MOST_BYTES else ""
    return printable(data[:MOST_BYTES].decode("utf-8", "backslashreplace"), MOST_BYTES * 2) + cut


def _link(path: str) -> str:
    try:
        return printable(os.readlink(path), 4096)
    except OSError as error:
        return f"not read: {error.strerror}"
