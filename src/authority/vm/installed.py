"""Of the system's large folders, what the installed programs of a run need: dpkg's files, read.

Rules
- Nothing is started to find it out: `/var/lib/dpkg` is read, in a third of a second.
- A selection is kept in memory, and used again while dpkg's record and every folder that was looked
  into are as they were.
- Manuals and the like are left out whoever they belong to, and so is a folder that the run's user could
  not look into.
- Where there is no such record (another distribution) there is no selection.
"""

from __future__ import annotations

import os
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from authority.vm.packages import Paths, Unneeded, needed, parse

RECORD: Final = Path("/var/lib/dpkg")
_ALIASED: Final = ("/bin", "/sbin", "/lib", "/lib32", "/lib64", "/libx32")
_NOT_READ: Final = frozenset(
    f"/usr/share/{name}" for name in ("doc", "doc-base", "info", "lintian", "man")
)
_KEPT: Final = 16


@dataclass(frozen=True, slots=True)
class Selection:
    """Folders that are needed as a whole, single files, links with their targets. `looked_into` are the
    folders of which a part is needed, with their times."""

    trees: tuple[str, ...]
    files: tuple[str, ...]
    links: tuple[tuple[str, str], ...]
    looked_into: tuple[tuple[str, int], ...]


_selections: dict[tuple[object, ...], Selection] = {}


def known() -> bool:
    """Whether it is recorded which package a file belongs to."""
    return (RECORD / "status").is_file()


def select(
    folders: Iterable[str], programs: Iterable[str], libraries: Iterable[str]
) -> Selection | None:
    """What of `folders` is needed by these programs (files, or folders of programs) and libraries;
    None where nobody knows. Raises `OSError`."""
    if not known():
        return None
    found = os.stat(RECORD / "status")
    wanted = tuple(tuple(sorted(set(paths))) for paths in (folders, programs, libraries))
    key = (str(RECORD), found.st_mtime_ns, found.st_ino, found.st_size, *wanted)
    kept = _selections.pop(key, None)
    if kept is None or any(_time(path) != time for path, time in kept.looked_into):
        kept = _select(*wanted)
    _selections[key] = kept
    while len(_selections) > _KEPT:
        del _selections[next(iter(_selections))]
    return kept


def _time(path: str) -> int:
    try:
        return os.stat(path).st_mtime_ns
    except OSError:
        return -1


def _select(
    folders: tuple[str, ...], programs: tuple[str, ...], libraries: tuple[str, ...]
) -> Selection:
    packages = parse((RECORD / "status").read_text("utf-8", "replace"))
    paths = Paths({one: os.path.realpath(one) for one in _ALIASED if os.path.islink(one)})
    for listing in (RECORD / "info").glob("*.list"):
        paths.add(listing.stem.partition(":")[0], listing.read_bytes())
    owners = {one for path in programs for one in paths.owners(path)}
    for folder in programs:
        if os.path.isdir(folder):
            owners |= paths.below(folder)
    others = {one for path in libraries for one in paths.owners(path)}
    walk = _Walk(paths.without(needed(packages, owners, others)))
    for folder in folders:
        walk.folder(folder)
    return Selection(
        tuple(walk.trees), tuple(walk.files), tuple(walk.links), tuple(walk.looked_into)
    )


def _may_be_entered(folder: str) -> bool:
    """Whether the run's user could look into it: started by root, everybody has to be able to."""
    if os.geteuid():
        return os.access(folder, os.R_OK | os.X_OK)
    return os.stat(folder).st_mode & 0o005 == 0o005


class _Walk:
    """Collects a selection."""

    def __init__(self, unneeded: Unneeded) -> None:
        self._unneeded = unneeded
        self.trees: list[str] = []
        self.files: list[str] = []
        self.links: list[tuple[str, str]] = []
        self.looked_into: list[tuple[str, int]] = []

    def folder(self, path: str) -> None:
        """A folder that is shown: as a whole where nothing in it is left out."""
        if not _may_be_entered(path):
            return
        inner = any(one.startswith(path + "/") for one in _NOT_READ)
        if not inner and not self._unneeded.lie_below(path):
            self.trees.append(path)
            return
        self.looked_into.append((path, _time(path)))
        with os.scandir(path) as entries:
            for entry in sorted(entries, key=lambda one: one.name):
                if entry.path in self._unneeded or entry.path in _NOT_READ:
                    continue
                if entry.is_symlink():
                    self.links.append((entry.path, os.readlink(entry.path)))
                elif entry.is_dir():
                    self.folder(entry.path)
                elif entry.is_file():
                    self.files.append(entry.path)
