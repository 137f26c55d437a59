"""From a path in a call to what it means: a place in a mediated folder, or one that is native.

The kernel's own walk is followed name by name. Inside a mediated folder each name is looked up as a
mount's kernel would look it up (judged, counted), and links are followed by their text, inside the run
like everywhere. Elsewhere only links matter, since the program may have made one that leads into a
folder; everything else there is left to the kernel.

Rules
- What is native is continued by the kernel, whatever it turns out to be by then: in the run's own name
  spaces there is no mediated file to be reached.
- `/proc` is native as a whole. Its descriptors lead to what is open already; opening one anew is
  Landlock's to refuse, and it does, since no rule covers a file that was handed in.
- At most `LINKS_MOST` links, and names and paths as long as the kernel has them.
"""

from __future__ import annotations

import ctypes
import errno
import os
import stat
from dataclasses import dataclass
from typing import Final

from authority.compat import fuse_abi as abi
from authority.compat.calls_base import Case
from authority.compat.calls_seat import Seat
from authority.kernel.addresses import ResourceError
from authority.kernel.resource_files import file_segments

LINKS_MOST: Final = 40
NAME_MOST: Final = 255
_OPENAT2: Final = 437
_NO_MAGICLINKS, _NO_SYMLINKS, _IN_ROOT = 0x02, 0x04, 0x10
_MODE_AT: Final = 60
_PROC: Final = b"proc"


@dataclass
class Place:
    """Where a path leads. `seat` is None for what is native. In a folder, `node` is 0 for what is not
    there, then `parent` and `name` say what it would be; `mode` is the found object's."""

    path: bytes
    seat: Seat | None = None
    node: int = 0
    parent: int = 0
    name: bytes = b""
    mode: int = 0
    slash: bool = False

    @property
    def directory(self) -> bool:
        return stat.S_ISDIR(self.mode)

    @property
    def link(self) -> bool:
        return stat.S_ISLNK(self.mode)

    @property
    def root(self) -> bool:
        """The folder itself, which has no parent here."""
        return self.node == abi.ROOT_ID


class Native:
    """The run's own tree, looked at from here: links, and what is there."""

    def __init__(self, root: int) -> None:
        self._root = root
        self._syscall = ctypes.CDLL(None, use_errno=True).syscall

    def close(self) -> None:
        os.close(self._root)

    def hold(self, path: bytes) -> int:
        """An `O_PATH` descriptor of what is natively at a path that goes through no link; a link as
        itself. Raises `OSError`."""
        how = (ctypes.c_uint64 * 3)(
            os.O_PATH | os.O_NOFOLLOW | os.O_CLOEXEC, 0, _NO_MAGICLINKS | _NO_SYMLINKS | _IN_ROOT
        )
        fd = int(
            self._syscall(
                ctypes.c_long(_OPENAT2),
                ctypes.c_int(self._root),
                ctypes.c_char_p(path or b"/"),
                ctypes.byref(how),
                ctypes.c_size_t(24),
            )
        )
        if fd < 0:
            raise OSError(ctypes.get_errno(), os.strerror(ctypes.get_errno()))
        return fd

    def link(self, path: bytes) -> bytes | None:
        """The text of the link there; None for anything else, and for nothing."""
        try:
            fd = self.hold(path)
        except OSError:
            return None
        try:
            if not stat.S_ISLNK(os.fstat(fd).st_mode):
                return None
            return os.readlink(b"", dir_fd=fd)
        finally:
            os.close(fd)

    def plain(self, path: bytes) -> bool:
        """Whether something is there, with no link on the way nor at the end."""
        try:
            fd = self.hold(path)
        except OSError:
            return False
        try:
            return not stat.S_ISLNK(os.fstat(fd).st_mode)
        finally:
            os.close(fd)


class Walker:
    """The walks of one run."""

    def __init__(self, native: Native, seats: dict[bytes, Seat]) -> None:
        self._native = native
        self._seats = seats

    def seat_of(self, path: bytes) -> Seat | None:
        """The mediated folder that a path without links lies in; the innermost."""
        while path:
            if path in self._seats:
                return self._seats[path]
            path = path.rpartition(b"/")[0]
        return None

    async def walk(
        self, case: Case, dirfd: int, path: bytes, *, follow: bool = True, beneath: bool = False
    ) -> Place:
        """Where a path leads. With `beneath` nothing above where it begins. Raises `OSError`."""
        if not path:
            raise FileNotFoundError(errno.ENOENT, os.strerror(errno.ENOENT))
        walk = _Walk(self, self._native, case)
        if path.startswith(b"/"):
            if beneath:
                raise OSError(errno.EXDEV, os.strerror(errno.EXDEV))
            if b".." not in path and not self._near(path) and self._native.plain(path):
                return Place(path)
        else:
            await walk.enter(case.base(dirfd))
        return await walk.along(path, follow=follow, beneath=beneath)

    async def exact(self, case: Case, path: bytes) -> Place:
        """The place of a path that the kernel itself gave: no link is followed."""
        walk = _Walk(self, self._native, case)
        await walk.enter(path)
        return walk.place(slash=False)

    def _near(self, path: bytes) -> bool:
        return any(path == one or path.startswith(one + b"/") for one in self._seats) or any(
            one.startswith(path + b"/") for one in self._seats
        )


class _Walk:
    """One walk: where it is now."""

    def __init__(self, walker: Walker, native: Native, case: Case) -> None:
        self._walker = walker
        self._native = native
        self._case = case
        self._reset()

    def _reset(self) -> None:
        self.names: list[bytes] = []
        self.seat: Seat | None = None
        self.nodes: list[int] = []
        self.modes: list[int] = []
        self.missing = False

    @property
    def _path(self) -> bytes:
        return b"/" + b"/".join(self.names)

    async def enter(self, path: bytes) -> None:
        """Go to where the kernel says that something is."""
        self._reset()
        for name in path.split(b"/"):
            if name:
                if self.missing:
                    raise FileNotFoundError(errno.ENOENT, os.strerror(errno.ENOENT))
                await self._step(name)

    async def along(self, path: bytes, *, follow: bool, beneath: bool) -> Place:
        todo = path.split(b"/")[::-1]
        slash = todo[0] in (b"", b".", b"..")
        floor = len(self.names)
        hops = 0
        while todo:
            name = todo.pop()
            if name in (b"", b"."):
                continue
            if self.missing or (self.seat is not None and not stat.S_ISDIR(self.modes[-1])):
                number = errno.ENOENT if self.missing else errno.ENOTDIR
                raise OSError(number, os.strerror(number))
            if name == b"..":
                if beneath and len(self.names) <= floor:
                    raise OSError(errno.EXDEV, os.strerror(errno.EXDEV))
                await self._up()
                continue
            if len(name) > NAME_MOST:
                raise OSError(errno.ENAMETOOLONG, os.strerror(errno.ENAMETOOLONG))
            last = not any(one not in (b"", b".") for one in todo)
            if self.seat is None and not self.names and name == _PROC:
                return Place(b"/proc")
            text = await self._step(name, follow=follow or slash or not last)
            if text is None:
                continue
            hops += 1
            if hops > LINKS_MOST:
                raise OSError(errno.ELOOP, os.strerror(errno.ELOOP))
            if not text:
                raise FileNotFoundError(errno.ENOENT, os.strerror(errno.ENOENT))
            if text.startswith(b"/"):
                if beneath:
                    raise OSError(errno.EXDEV, os.strerror(errno.EXDEV))
                self._reset()
            slash = slash or (last and text.endswith((b"/", b"/.", b"/..")))
            todo += text.split(b"/")[::-1]
        return self.place(slash=slash)

    def place(self, *, slash: bool) -> Place:
        seat = self.seat
        if seat is None:
            return Place(self._path, slash=slash)
        if self.missing:
            return Place(self._path, seat, 0, self.nodes[-1], self.names[-1], slash=slash)
        mode = self.modes[-1]
        if slash and not stat.S_ISDIR(mode) and not stat.S_ISLNK(mode):
            raise NotADirectoryError(errno.ENOTDIR, os.strerror(errno.ENOTDIR))
        parent = self.nodes[-2] if len(self.nodes) > 1 else 0
        return Place(self._path, seat, self.nodes[-1], parent, self.names[-1], mode, slash)

    async def _step(self, name: bytes, *, follow: bool = False) -> bytes | None:
        """One name further; the text of a link that is to be followed instead."""
        path = (self._path if self.names else b"") + b"/" + name
        inner = self._walker.seat_of(path)
        if inner is not None and inner.path == path:
            self.names.append(name)
            self.seat, self.nodes, self.modes = inner, [abi.ROOT_ID], [stat.S_IFDIR]
            return None
        if self.seat is None or _over(self.seat, path):
            opaque = self.names[:1] == [_PROC]
            text = self._native.link(path) if follow and not opaque else None
            if text is None:
                self.seat = None
                self.names.append(name)
            return text
        found = await self.seat.look(self._case, self.nodes[-1], name)
        if found is None:
            self.names.append(name)
            self.missing = True
            return None
        node, attributes = found
        mode = int.from_bytes(attributes[_MODE_AT : _MODE_AT + 4], "little")
        if follow and stat.S_ISLNK(mode):
            text = await self.seat.ask(abi.READLINK, node)
            self._case.links.append((self.seat, self.seat.beneath(node), text))
            return text
        self.names.append(name)
        self.nodes.append(node)
        self.modes.append(mode)
        return None

    async def _up(self) -> None:
        if self.seat is not None and len(self.nodes) > 1:
            self.names.pop()
            self.nodes.pop()
            self.modes.pop()
        elif self.names:
            above = self._path.rpartition(b"/")[0]
            seat = self._walker.seat_of(above)
            if seat is not None:
                await self.enter(above)  # out of what lies on a folder, or out of a folder in one
            else:
                self.names.pop()
                self.seat = None


def _over(seat: Seat, path: bytes) -> bool:
    """Whether something of the run's own lies there, on the folder."""
    if not seat.over.texts:
        return False
    try:
        return seat.over.covers(file_segments(path, None))
    except ResourceError:
        return False  # no path that anything of ours could have
