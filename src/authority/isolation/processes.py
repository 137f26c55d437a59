"""A run's processes as the host sees them, read from /proc.

Every process of a run descends from process 1 of its pid name space, and orphans come back to it,
so walking `children` from there finds all of them; a process that forks meanwhile is found by
walking again.
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import Final

_PAGE: Final = os.sysconf("SC_PAGE_SIZE")


def tree(first: int) -> list[int]:
    """`first` and all that descend from it, as far as they live."""
    found, waiting = [], [first]
    while waiting:
        pid = waiting.pop()
        try:
            tasks = os.listdir(f"/proc/{pid}/task")
        except OSError:
            continue
        found.append(pid)
        for task in tasks:
            try:
                text = Path(f"/proc/{pid}/task/{task}/children").read_text()
            except OSError:
                continue
            waiting += [int(word) for word in text.split()]
    return found


def status(pid: int) -> dict[str, str]:
    """The fields of /proc/PID/status; empty when the process is gone."""
    try:
        lines = Path(f"/proc/{pid}/status").read_text("utf-8", "replace").splitlines()
    except OSError:
        return {}
    return {key: value.strip() for key, _, value in (line.partition(":") for line in lines)}


def parent(pid: int) -> int:
    """Who started it, or took it in; 0 when it is gone."""
    return int(status(pid).get("PPid", "0"))


def user_ids(pids: list[int]) -> set[int]:
    """Real, effective, saved and file-system user ids of all of them, as the host knows them."""
    return {int(word) for pid in pids for word in status(pid).get("Uid", "").split()}


def resident_bytes(pids: list[int]) -> int:
    """Memory that they hold, shared pages counted for each."""
    total = 0
    for pid in pids:
        try:
            total += int(Path(f"/proc/{pid}/statm").read_text().split()[1]) * _PAGE
        except (OSError, IndexError):
            continue
    return total


def held(pids: list[int]) -> bool:
    """Whether each of their threads is where no signal wakes it: frozen, or waiting in the kernel (for
    an answer about a mounted file), from where a thread that is to be frozen does not come back."""
    states = []
    for pid in pids:
        try:
            for task in os.listdir(f"/proc/{pid}/task"):
                text = Path(f"/proc/{pid}/task/{task}/stat").read_text("utf-8", "replace")
                states.append(text.rpartition(")")[2].split()[0])
        except OSError:
            continue
    return all(state in "DTtZX" for state in states)


def stopped(pids: list[int]) -> bool:
    """Whether each of them is stopped or dead."""
    return all(status(pid).get("State", "Z")[:1] in "TtZX" for pid in pids)
