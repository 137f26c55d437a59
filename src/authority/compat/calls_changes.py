"""Changes of names and attributes, for a call that waits: performed by the desk of a mount.

Rules
- Both names of a rename or a link lie in one folder, or both are native; else EXDEV, as between two
  file systems.
- A directory that is renamed or removed takes its stand-in along.
- Modes, times, owners, sizes and extended attributes are set here also on the run's own files
  (`calls_targets`); of those no extended attribute can be set, and no set-id bit.
"""

from __future__ import annotations

import contextlib
import errno
import os
import stat
import struct
import time
from collections.abc import Callable
from typing import Final

from authority.compat import fuse_abi as abi
from authority.compat.calls_base import (
    AT_EMPTY_PATH,
    AT_FDCWD,
    AT_REMOVEDIR,
    AT_SYMLINK_FOLLOW,
    AT_SYMLINK_NOFOLLOW,
    GO_ON,
    Answer,
    Case,
)
from authority.compat.calls_seat import Seat
from authority.compat.calls_targets import Target, Targets
from authority.compat.calls_walk import Place, Walker
from authority.compat.fuse_wire import MAX_LINK, Link, Mkdir, Mknod, Rename, Setattr, Setxattr
from authority.effects.beneath import Untouchable

_TIMES: Final = struct.Struct("<qqqq")
_NOW, _OMIT = (1 << 30) - 1, (1 << 30) - 2
_BILLION: Final = 10**9
_NAME_MOST: Final = 256
_VALUE_MOST: Final = 64 * 1024
_NOTHING: Final = Setattr(*(0,) * 16)
_MASK: Final = (1 << 64) - 1
_SAME: Final = 0xFFFFFFFF
_AT_FLAGS: Final = AT_EMPTY_PATH | AT_SYMLINK_NOFOLLOW


def _error(number: int) -> OSError:
    return OSError(number, os.strerror(number))


def _follow(work: Callable[[], None]) -> None:
    """What stands for a folder goes along. The change itself is made; if this can't be (something of
    the run's own lies beneath), a program that stands there finds nothing any more."""
    with contextlib.suppress(OSError, Untouchable):
        work()


class CallChanges:
    """The changes of one run."""

    def __init__(self, walker: Walker, targets: Targets, uid: int, gid: int) -> None:
        self._ids = uid, gid
        self._walker = walker
        self._targets = targets

    # --- names ---

    async def _new(self, case: Case, dirfd: int, at: int, *, slash: bool = False) -> Place | None:
        """A name that is to be made; None when it is native."""
        place = await self._walker.walk(case, dirfd, case.path(at), follow=False)
        if place.seat is None:
            return None
        case.links.clear()
        if place.node:
            raise _error(errno.EEXIST)
        if place.slash and not slash:
            raise _error(errno.ENOENT)
        return place

    async def _old(self, case: Case, dirfd: int, at: int) -> Place | None:
        """A name that is there; None when it is native."""
        path = case.path(at)
        if path.rstrip(b"/").rpartition(b"/")[2] in (b".", b".."):
            raise _error(errno.EINVAL)
        place = await self._walker.walk(case, dirfd, path, follow=False)
        if place.seat is None:
            return None
        case.links.clear()
        if not place.node:
            raise _error(errno.ENOENT)
        if place.root:
            raise _error(errno.EBUSY)
        return place

    async def mkdir(self, case: Case, dirfd: int, at: int, mode: int) -> Answer:
        place = await self._new(case, dirfd, at, slash=True)
        if place is None or place.seat is None:
            return GO_ON
        how = Mkdir(mode & 0o1777 & ~case.umask(), 0)
        place.seat.entry(case, await place.seat.ask(abi.MKDIR, place.parent, how, place.name))
        return 0

    async def mknod(self, case: Case, dirfd: int, at: int, mode: int) -> Answer:
        place = await self._new(case, dirfd, at)
        if place is None or place.seat is None:
            return GO_ON
        how = Mknod(mode & ~(case.umask() & 0o777), 0, 0, 0)
        place.seat.entry(case, await place.seat.ask(abi.MKNOD, place.parent, how, place.name))
        return 0

    async def symlink(self, case: Case, text: int, dirfd: int, at: int) -> Answer:
        said = case.path(text)
        place = await self._new(case, dirfd, at)
        if place is None or place.seat is None:
            return GO_ON
        if not 0 < len(said) <= MAX_LINK:
            raise _error(errno.ENOENT)
        body = await place.seat.ask(abi.SYMLINK, place.parent, None, place.name, said)
        place.seat.entry(case, body)
        return 0

    async def link(
        self, case: Case, old: tuple[int, int], new: tuple[int, int], flags: int
    ) -> Answer:
        if flags & ~AT_SYMLINK_FOLLOW:
            raise _error(errno.ENOENT if flags & AT_EMPTY_PATH else errno.EINVAL)
        follow = bool(flags & AT_SYMLINK_FOLLOW)
        source = await self._walker.walk(case, old[0], case.path(old[1]), follow=follow)
        if source.seat is not None and not source.node:
            raise _error(errno.ENOENT)
        target = await self._walker.walk(case, new[0], case.path(new[1]), follow=False)
        if source.seat is None and target.seat is None:
            return GO_ON
        case.links.clear()
        seat = self._same(source, target)
        if target.node:
            raise _error(errno.EEXIST)
        if source.directory:
            raise _error(errno.EPERM)
        seat.entry(case, await seat.ask(abi.LINK, target.parent, Link(source.node), target.name))
        return 0

    async def unlink(self, case: Case, dirfd: int, at: int, flags: int) -> Answer:
        if flags & ~AT_REMOVEDIR:
            raise _error(errno.EINVAL)
        place = await self._old(case, dirfd, at)
        if place is None or place.seat is None:
            return GO_ON
        seat = place.seat
        if not flags & AT_REMOVEDIR:
            if place.directory:
                raise _error(errno.EISDIR)
            await seat.ask(abi.UNLINK, place.parent, None, place.name)
            return 0
        if not place.directory:
            raise _error(errno.ENOTDIR)
        beneath = seat.beneath(place.node)
        await seat.ask(abi.RMDIR, place.parent, None, place.name)
        _follow(lambda: seat.stand_in.remove(beneath))
        return 0

    async def rename(
        self, case: Case, old: tuple[int, int], new: tuple[int, int], flags: int
    ) -> Answer:
        source = await self._walker.walk(case, old[0], case.path(old[1]), follow=False)
        target = await self._walker.walk(case, new[0], case.path(new[1]), follow=False)
        if source.seat is None and target.seat is None:
            return GO_ON
        case.links.clear()
        if source.seat is not None and not source.node:
            raise _error(errno.ENOENT)
        seat = self._same(source, target)
        if source.root or target.root:
            raise _error(errno.EBUSY)
        if flags & ~3 or flags == 3:
            raise _error(errno.EINVAL)
        if flags & 1 and target.node:
            raise _error(errno.EEXIST)
        if flags & 2 and not target.node:
            raise _error(errno.ENOENT)
        if target.slash and not source.directory:
            raise _error(errno.ENOTDIR)
        if (target.path + b"/").startswith(source.path + b"/") and target.path != source.path:
            raise _error(errno.EINVAL)
        before = seat.beneath(source.node)
        above = seat.beneath(target.parent)
        how = Rename(target.parent, flags)
        await seat.ask(abi.RENAME2, source.parent, how, source.name, target.name)
        if source.directory or (flags & 2 and target.directory):
            after = above + b"/" + target.name if above else target.name
            exchange = bool(flags & 2)
            if exchange and not (source.directory and target.directory):
                _follow(lambda: seat.stand_in.remove(before))
                _follow(lambda: seat.stand_in.remove(after))
            else:
                _follow(lambda: seat.stand_in.move(before, after, exchange=exchange))
        return 0

    def _same(self, source: Place, target: Place) -> Seat:
        if source.seat is None or source.seat is not target.seat:
            raise _error(errno.EXDEV)
        return source.seat

    async def chdir(self, case: Case) -> Answer:
        """Judged here, performed by the kernel: in the stand-in."""
        place = await self._walker.walk(case, AT_FDCWD, case.path(0))
        if place.seat is None:
            return GO_ON
        if not place.node:
            raise _error(errno.ENOENT)
        if not place.directory:
            raise _error(errno.ENOTDIR)
        place.seat.stand_in.directory(place.seat.beneath(place.node)).close()
        return GO_ON

    # --- attributes ---

    async def chmod(self, case: Case, target: Target, mode: int) -> Answer:
        with target:
            if target.place is None:
                os.chmod(target.path, mode & 0o1777)
                return 0
            return await self._set(target.place, _NOTHING._replace(valid=abi.SET_MODE, mode=mode))

    async def chown(self, case: Case, target: Target, uid: int, gid: int) -> Answer:
        uid, gid = uid & _SAME, gid & _SAME
        with target:
            if target.place is None:
                if uid not in (_SAME, self._ids[0]) or gid not in (_SAME, self._ids[1]):
                    raise _error(errno.EPERM)
                return 0
            valid = (abi.SET_UID if uid != _SAME else 0) | (abi.SET_GID if gid != _SAME else 0)
            return await self._set(target.place, _NOTHING._replace(valid=valid, uid=uid, gid=gid))

    async def truncate(self, case: Case) -> Answer:
        size = case.signed(1)
        if size < 0:
            raise _error(errno.EINVAL)
        with await self._targets.of_path(case, AT_FDCWD, 0, 0) as target:
            if target.place is None:
                os.truncate(target.path, size)
                return 0
            if target.place.directory:
                raise _error(errno.EISDIR)
            return await self._set(target.place, _NOTHING._replace(valid=abi.SET_SIZE, size=size))

    async def utimens(self, case: Case, target: Target, times: tuple[int, int, int, int]) -> Answer:
        """Seconds and nanoseconds of the last access and the last change."""
        both = (times[0], times[1]), (times[2], times[3])
        if any(not 0 <= ns < _BILLION and ns not in (_NOW, _OMIT) for _, ns in both):
            target.__exit__(None, None, None)
            raise _error(errno.EINVAL)
        with target:
            if target.place is None:
                return self._own_times(target, both)
            valid = 0
            for (_, ns), given, now in (
                (both[0], abi.SET_ATIME, abi.SET_ATIME_NOW),
                (both[1], abi.SET_MTIME, abi.SET_MTIME_NOW),
            ):
                valid |= 0 if ns == _OMIT else given | (now if ns == _NOW else 0)
            head = _NOTHING._replace(
                valid=valid,
                atime=both[0][0] & _MASK,
                mtime=both[1][0] & _MASK,
                atime_ns=both[0][1],
                mtime_ns=both[1][1],
            )
            return await self._set(target.place, head)

    def _own_times(self, target: Target, both: tuple[tuple[int, int], tuple[int, int]]) -> int:
        status, now = os.stat(target.path), time.time_ns()
        was = status.st_atime_ns, status.st_mtime_ns
        new = [
            before if ns == _OMIT else now if ns == _NOW else seconds * _BILLION + ns
            for (seconds, ns), before in zip(both, was, strict=True)
        ]
        os.utime(target.path, ns=(new[0], new[1]))
        return 0

    def times(self, case: Case, at: int, *, micro: bool = False) -> tuple[int, int, int, int]:
        """What an argument points to: two timespecs, or with `micro` two timevals; now, if nothing."""
        if not case.arguments[at]:
            return 0, _NOW, 0, _NOW
        first, one, second, two = _TIMES.unpack(case.memory.read(case.arguments[at], _TIMES.size))
        if not micro:
            return first, one, second, two
        if not (0 <= one < 10**6 and 0 <= two < 10**6):
            raise _error(errno.EINVAL)
        return first, one * 1000, second, two * 1000

    async def setxattr(self, case: Case, target: Target) -> Answer:
        with target:
            name = case.memory.text(case.arguments[1], _NAME_MOST)
            size = case.arguments[3]
            if size > _VALUE_MOST:
                raise _error(errno.E2BIG)
            if target.place is None or target.place.seat is None:
                raise _error(errno.EOPNOTSUPP)
            value = case.memory.read(case.arguments[2], size) if size else b""
            how = Setxattr(size, case.flags(4))
            await target.place.seat.ask(abi.SETXATTR, target.place.node, how, name, data=value)
            return 0

    async def removexattr(self, case: Case, target: Target) -> Answer:
        with target:
            name = case.memory.text(case.arguments[1], _NAME_MOST)
            if target.place is None or target.place.seat is None:
                raise _error(errno.EOPNOTSUPP)
            await target.place.seat.ask(abi.REMOVEXATTR, target.place.node, None, name)
            return 0

    async def at(self, case: Case, dirfd: int, at: int, flags: int = 0) -> Target:
        """What a call with a path is about."""
        if flags & ~_AT_FLAGS:
            raise _error(errno.EINVAL)
        return await self._targets.of_path(case, dirfd, at, flags)

    async def fd(self, case: Case) -> Target:
        """What a call with a descriptor alone is about."""
        return await self._targets.of_descriptor(case, case.number(0))

    async def _set(self, place: Place, head: Setattr) -> int:
        assert place.seat is not None
        if not head.valid:
            return 0
        if head.valid & abi.SET_MODE and stat.S_ISLNK(place.mode):
            raise _error(errno.EOPNOTSUPP)
        await place.seat.ask(abi.SETATTR, place.node, head)
        return 0
