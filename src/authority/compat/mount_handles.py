"""Open files and directories of the mounts of a run, bounded, and closed at once when it is stopped.

Rules
- A number is given once. Whoever uses a descriptor in a thread says so (`use`); a handle that is
  stopped meanwhile is closed by the last user, so a descriptor's number is never another file's
  while somebody works with it.
- A stopped handle refuses everything (EIO), and what is opened after the stop is closed at once.
- `counted` is how much of a file's content was counted when it was opened for reading.
- `left` is what may be written before the next admission; `used` what was written since the last.
  `hasher` follows what is written from the file's beginning without a gap; None once there was one.
"""

from __future__ import annotations

import asyncio
import errno
import hashlib
import os
import resource as limits
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from authority.compat.base import Flow
from authority.compat.mount_nodes import Node
from authority.effects.descriptors import kept, scarce
from authority.effects.tree import Row
from authority.kernel.resources import Resource

MOST = 10_000
"""Handles of one run, all its mounts together."""
ROWS_MOST = 1_000_000
"""Names that the open directories of one run hold, together."""
LISTED_AT_ONCE = 4
"""Directories of one run that are read at the same time: what is read counts only when it is judged."""
_SPARE = 256


class Handle:
    """One open file."""

    def __init__(self, node: Node, resource: Resource, fd: int) -> None:
        self.node = node
        self.resource = resource
        self.fd = fd
        self.fh = 0
        self.readable = False
        self.writable = False
        self.append = False
        self.counted: int | None = 0
        """None: nothing counts, since the run made the file or it is shown to it."""
        self.verb = ""
        self.flow: Flow | None = None
        self.label_at = -1
        self.left = 0
        self.used = 0
        self.lease = 0
        self.hasher: Any = None
        self.hashed = 0
        self.facts: dict[str, Any] = {}
        self.renewing = asyncio.Lock()
        self.stopped = False
        self._users = 0

    @contextmanager
    def use(self) -> Iterator[int]:
        """The descriptor, which stays this file's until the block ends. Raises `OSError`."""
        if self.stopped or self.fd < 0:
            raise OSError(errno.EIO, os.strerror(errno.EIO))
        self._users += 1
        try:
            yield self.fd
        finally:
            self._users -= 1
            if self.stopped and not self._users:
                self._close()

    def stop(self) -> None:
        """Nothing goes through it any more."""
        self.stopped = True
        if not self._users:
            self._close()

    def _close(self) -> None:
        fd, self.fd = self.fd, -1
        if fd >= 0:
            os.close(fd)

    def wrote(self, offset: int, data: memoryview) -> None:
        """Follow the content while it is written in order."""
        if self.hasher is not None:
            if offset == self.hashed:
                self.hasher.update(data)
                self.hashed += len(data)
            else:
                self.hasher = None

    def begins(self) -> None:
        """The file is empty now: what is written from here on is all of it."""
        self.hasher, self.hashed = hashlib.sha256(), 0


class Directory:
    """One open directory: what it held when it was read, as far as the run sees it."""

    def __init__(self, node: Node, resource: Resource) -> None:
        self.node = node
        self.resource = resource
        self.fh = 0
        self.rows: list[Row] | None = None


class Handles:
    """What a run has open, over all its mounts."""

    def __init__(self) -> None:
        self.most = min(MOST, room())
        self.stopped = False
        self._next = 1
        self._files: dict[int, Handle] = {}
        self._directories: dict[int, Directory] = {}
        self._rows = 0
        self._promised = 0
        self.listing = asyncio.Semaphore(LISTED_AT_ONCE)

    def __len__(self) -> int:
        return len(self._files) + len(self._directories) + self._promised

    @contextmanager
    def place(self) -> Iterator[None]:
        """Keep a place while something is opened. Raises `OSError` (ENFILE) when none is left."""
        if self.stopped:
            raise OSError(errno.EIO, os.strerror(errno.EIO))
        if len(self) >= self.most or scarce():
            raise OSError(errno.ENFILE, os.strerror(errno.ENFILE))
        self._promised += 1
        try:
            yield
        finally:
            self._promised -= 1

    def add(self, opened: Handle | Directory) -> int:
        """Take it in; its number. Raises `OSError` when everything was stopped meanwhile (EIO), or what
        is open is one too many (ENFILE)."""
        number = errno.EIO if self.stopped else 0
        if isinstance(opened, Handle) and kept(opened.fd):
            number = errno.ENFILE
        if number:
            if isinstance(opened, Handle):
                opened.stop()
            raise OSError(number, os.strerror(number))
        opened.fh = self._next
        self._next += 1
        if isinstance(opened, Handle):
            self._files[opened.fh] = opened
        else:
            self._directories[opened.fh] = opened
        opened.node.handles.add(opened.fh)
        return opened.fh

    def file(self, fh: int) -> Handle:
        """Raises `OSError` (EBADF)."""
        found = self._files.get(fh)
        if found is None:
            raise OSError(errno.EIO if self.stopped else errno.EBADF, "")
        return found

    def directory(self, fh: int) -> Directory:
        found = self._directories.get(fh)
        if found is None:
            raise OSError(errno.EIO if self.stopped else errno.EBADF, "")
        return found

    def fill(self, directory: Directory, rows: list[Row]) -> None:
        """Give a directory its rows. Raises `OSError` (ENFILE) when that were too many."""
        before = len(directory.rows or ())
        if self._rows - before + len(rows) > ROWS_MOST:
            raise OSError(errno.ENFILE, os.strerror(errno.ENFILE))
        self._rows += len(rows) - before
        directory.rows = rows

    def of(self, node: Node) -> Handle | None:
        """Some open file of the node."""
        return next((self._files[fh] for fh in node.handles if fh in self._files), None)

    def writers(self, identity: tuple[int, int]) -> bool:
        """Whether some handle of the run may still write to this file."""
        return any(
            handle.writable and handle.node.identity == identity for handle in self._files.values()
        )

    def remove(self, fh: int) -> Handle | Directory:
        """It is closed. Raises `OSError` (EBADF)."""
        directory = self._directories.pop(fh, None)
        if directory is not None:
            self._rows -= len(directory.rows or ())
            return directory
        handle = self.file(fh)
        del self._files[fh]
        handle.stop()
        return handle

    def stop(self) -> None:
        """Close everything, for good."""
        self.stopped = True
        for handle in self._files.values():
            handle.stop()
        self._files.clear()
        self._directories.clear()
        self._rows = 0


def room() -> int:
    """How many files this process may hold for one run: a quarter of what the system lets it have."""
    soft, _ = limits.getrlimit(limits.RLIMIT_NOFILE)
    return max(16, (soft - _SPARE) // 4)
