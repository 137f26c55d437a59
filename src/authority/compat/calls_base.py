"""What mediating call by call is made of: the waiting call, what it is answered, who hands it over.

`isolation` has the listener and hands over; this room knows it by the protocols here alone. `Case` is
one call while it is worked on: everything that is read of its process goes through it and counts only
when the call still waits afterwards, so it was that process and no other.
"""

from __future__ import annotations

import errno
import os
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final, Protocol

from authority.compat.calls_memory import Memory

if TYPE_CHECKING:
    from authority.compat.calls_seat import Seat

AT_FDCWD: Final = -100
AT_SYMLINK_NOFOLLOW: Final = 0x100
AT_REMOVEDIR: Final = 0x200
AT_EACCESS: Final = 0x200
AT_SYMLINK_FOLLOW: Final = 0x400
AT_EMPTY_PATH: Final = 0x1000
PATH_MOST: Final = 4096


class Call(Protocol):
    """A call that waits; `pid` is the thread that made it."""

    @property
    def id(self) -> int: ...
    @property
    def pid(self) -> int: ...
    @property
    def name(self) -> str: ...
    @property
    def arguments(self) -> tuple[int, ...]: ...


class Listener(Protocol):
    """Where calls come from, and how they are answered."""

    def fileno(self) -> int: ...
    def close(self) -> None: ...
    def receive(self) -> Call | None: ...
    def waits(self, id_: int, /) -> bool: ...
    def done(self, id_: int, value: int, /) -> None: ...
    def fail(self, id_: int, number: int, /) -> None: ...
    def go_on(self, id_: int, /) -> None: ...
    def inject(self, id_: int, fd: int, /, *, cloexec: bool) -> None: ...


class Handed(Protocol):
    """What the run's launcher handed over."""

    @property
    def listener(self) -> Listener: ...
    @property
    def uid(self) -> int: ...
    @property
    def gid(self) -> int: ...
    @property
    def root(self) -> int: ...
    @property
    def folders(self) -> tuple[tuple[int, int], ...]: ...


class GoOn:
    """The kernel performs the call: there is nothing of ours to be reached by it."""


GO_ON: Final = GoOn()


@dataclass(frozen=True)
class Descriptor:
    """The answer is this descriptor, which is closed here afterwards."""

    fd: int
    cloexec: bool


Answer = int | GoOn | Descriptor


class Over(Exception):
    """The call does not wait any more."""


class Case:
    """One call while it is worked on."""

    def __init__(self, call: Call, listener: Listener) -> None:
        self.name = call.name
        self.arguments = call.arguments
        self.pid = call.pid
        self.told: list[tuple[Seat, int]] = []
        """Nodes that were looked up for it, to be forgotten when it is answered."""
        self.links: list[tuple[Seat, bytes, bytes]] = []
        """Links of mediated folders that were followed: where they lie and what they say."""
        self._id = call.id
        self._listener = listener
        self._memory: Memory | None = None

    def close(self) -> None:
        if self._memory is not None:
            self._memory.close()
        for seat, node in self.told:
            seat.nodes.forget(node, 1)
        self.told.clear()

    def check(self) -> None:
        """Raises `Over` unless the call still waits."""
        if not self._listener.waits(self._id):
            raise Over

    def number(self, at: int) -> int:
        """An argument that the kernel reads as an int."""
        value = self.arguments[at] & 0xFFFFFFFF
        return value - (1 << 32) if value & 0x80000000 else value

    def flags(self, at: int) -> int:
        return self.arguments[at] & 0xFFFFFFFF

    def signed(self, at: int) -> int:
        value = self.arguments[at]
        return value - (1 << 64) if value >> 63 else value

    @property
    def memory(self) -> Memory:
        if self._memory is None:
            try:
                self._memory = Memory(self.pid)
            except OSError:
                self.check()
                raise
            self.check()
        return self._memory

    def path(self, at: int) -> bytes:
        """The path that an argument points to."""
        return self.memory.text(self.arguments[at], PATH_MOST)

    def base(self, dirfd: int) -> bytes:
        """Where a relative path begins, as the run names it."""
        place = "cwd" if dirfd == AT_FDCWD else f"fd/{dirfd}"
        if dirfd != AT_FDCWD and dirfd < 0:
            raise OSError(errno.EBADF, os.strerror(errno.EBADF))
        try:
            text = os.readlink(os.fsencode(f"/proc/{self.pid}/{place}"))
        except FileNotFoundError:
            self.check()
            raise OSError(errno.EBADF, os.strerror(errno.EBADF)) from None
        self.check()
        if not text.startswith(b"/"):
            raise NotADirectoryError(errno.ENOTDIR, os.strerror(errno.ENOTDIR))
        return text

    def hold(self, fd: int) -> int:
        """An `O_PATH` descriptor of what one of the program's descriptors is, to be closed."""
        if fd < 0:
            raise OSError(errno.EBADF, os.strerror(errno.EBADF))
        try:
            held = os.open(f"/proc/{self.pid}/fd/{fd}", os.O_PATH | os.O_CLOEXEC)
        except FileNotFoundError:
            self.check()
            raise OSError(errno.EBADF, os.strerror(errno.EBADF)) from None
        try:
            self.check()
        except BaseException:
            os.close(held)
            raise
        return held

    def umask(self) -> int:
        with open(f"/proc/{self.pid}/status", "rb") as file:
            text = file.read()
        self.check()
        at = text.index(b"\nUmask:") + 7
        return int(text[at : text.index(b"\n", at)], 8)
