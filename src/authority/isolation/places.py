"""Where files of the host are in a run: mounted through the gate, bound plainly, or shown as runtime.

Rules
- A mount is a folder whose files the gate answers for (FUSE). It has the path that it has outside,
  unless `source` says otherwise. It never covers what the run itself is made of: `/`, `/proc`,
  `/sys`, `/dev`, `/etc`, `/usr`, the libraries, the private folders and those above them.
- What of the runtime lies below a mount and is executed or loaded as machine code stays a plain
  read-only bind *on* the mount (`over`). Everything else there (the program's own modules, scripts,
  packages of JavaScript) is handed to whoever answers for the mount (`shown`), so that a program
  that may write its own sources can. Below a mount that allows execution nothing is bound: it is
  filled in the run.
- A bind is a folder or file that the run reaches without anybody asking the gate. Only for who asked
  for that by name.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Final

from authority.isolation import landlock
from authority.isolation.refusal import IsolationRefused, shown
from authority.isolation.view import View

MAX_MOUNTS: Final = 16
HOME: Final = "/home/agent"
RUN: Final = "/run/authority"
PRIVATE: Final = ("/tmp", HOME, "/dev/shm")  # noqa: S108

_NOSUID, _NODEV, _NOEXEC = 2, 4, 8
_MADE_OF: Final = ("/usr/lib", "/usr/bin", "/bin", "/lib", "/lib64", "/sbin", RUN, *PRIVATE)
_OUT: Final = ("/proc", "/sys", "/dev", "/etc", RUN)
_SERVED: Final = frozenset(
    [
        "the program",
        "the program's modules",
        "the program's package",
        "named in a .pth file",
        "editable install",
        "Node modules",
        "listed script",
    ]
)
"""Reasons for which a path is in the view, and which want nothing executed."""


@dataclass(frozen=True, slots=True)
class Mount:
    """A folder of the run whose files the gate answers for. `executable`: files may be run and
    loaded from there. `source` is the folder outside, when it has another path."""

    path: str
    executable: bool = False
    source: str = ""

    @property
    def outside(self) -> str:
        return self.source or self.path


@dataclass(frozen=True, slots=True)
class Bind:
    """A file or folder that the run reaches without the gate."""

    path: str
    writable: bool = False
    executable: bool = False


@dataclass(slots=True)
class Split:
    """What became of the runtime below mounts."""

    over: list[str]
    shown: list[str]


def inside(path: str, folder: str) -> bool:
    """Whether a path is a folder or lies below it."""
    return path == folder or path.startswith(folder.rstrip("/") + "/")


def obstacle(path: str) -> str:
    """Why a run can't have a mount or a bind at this path, or nothing."""
    if not os.path.isabs(path) or os.path.normpath(path) != path or "\0" in path:
        return "is no plain absolute path"
    if path != HOME and any(inside(part, path) for part in _MADE_OF):
        return "holds what a run itself is made of; name a folder below it"
    if path == "/etc" or any(inside(path, part) for part in _OUT if part != "/etc"):
        return "is the run's own"
    return ""


def usable(mounts: Sequence[Mount], view: View) -> list[Mount]:
    """The mounts whose folders are there; the others are named in `missing`. Raises
    `IsolationRefused` for one that could never be."""
    if len(mounts) > MAX_MOUNTS:
        raise IsolationRefused(
            f"the policy names files in {len(mounts)} places, and a run has at most {MAX_MOUNTS} "
            "mounts",
            "write rules below fewer common folders",
        )
    found = []
    for mount in mounts:
        why = obstacle(mount.path)
        if mount.path == HOME and not mount.source:
            why = "is the run's own"
        if why:
            raise IsolationRefused(f"{shown(mount.path)} can't be mounted: it {why}")
        if os.path.realpath(mount.outside) != mount.outside:
            view.missing.append(f"{shown(mount.outside)} is behind a link and is not mounted")
        elif not os.path.isdir(mount.outside):
            view.missing.append(f"{shown(mount.outside)} is no folder, and is not mounted")
        else:
            found.append(mount)
    return found


def split(view: View, mounts: Sequence[Mount], executed: Iterable[str]) -> Split:
    """Takes out of the view what lies below mounts, and says where it goes."""
    runs = set(executed)
    over: list[str] = []
    given: list[str] = []
    executable = [mount.path for mount in mounts if mount.executable]

    def below(path: str) -> bool:
        return any(inside(path, mount.path) for mount in mounts)

    def served(path: str, why: str) -> bool:
        if any(inside(path, folder) for folder in executable):
            return True
        return why in _SERVED and path not in runs

    for table in (view.trees, view.files):
        for path, why in list(table.items()):
            if not below(path):
                continue
            if served(path, why):
                del table[path]
                given.append(path)
            else:
                over.append(path)
    for path in [path for path in view.copies if below(path)]:
        del view.copies[path]
        given.append(path)
    for path in [path for path in view.links if below(path)]:
        # Links inside a bound folder are there anyway; those above it the gate shows.
        del view.links[path]
        given.append(path)
    return Split(over, sorted(given))


def in_order(
    mounts: Sequence[Mount], rules: landlock.Ruleset
) -> list[tuple[int, bytes, int, int, bool]]:
    """(index, path, flags, Landlock's rights, inside another) of each mount, innermost first."""
    found = []
    for index, mount in enumerate(mounts):
        rights = landlock.WRITE | (landlock.EXECUTE if mount.executable else 0)
        inner = any(inside(mount.path, other.path) and other != mount for other in mounts)
        flags = _NOSUID | _NODEV | (0 if mount.executable else _NOEXEC)
        right = rules.grant(rights, directory=True)
        found.append((index, os.fsencode(mount.path), flags, right, inner))
    return sorted(found, key=lambda one: len(one[1]), reverse=True)


def check_binds(binds: Sequence[Bind], forbidden: Iterable[str]) -> None:
    """Raises `IsolationRefused` for a bind that must not be."""
    for bind in binds:
        why = obstacle(bind.path)
        if os.path.realpath(bind.path) != bind.path or not os.path.exists(bind.path):
            why = why or "is not there, or behind a link"
        for place in map(os.path.realpath, forbidden):
            if inside(bind.path, place) or inside(place, bind.path):
                why = f"is, lies in or holds {shown(place)}, which no run may reach"
        if why:
            raise IsolationRefused(f"{shown(bind.path)} can't be bound: it {why}")
