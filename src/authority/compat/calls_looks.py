"""Looks, for a call that waits: attributes, access, links, space, extended attributes.

What the kernel would write into the program's memory is written here. For what is native the call goes
on, but not where it asks for extended attributes: by `/proc/self/fd` that could be a file that was
handed in, so there are none.
"""

from __future__ import annotations

import errno
import os
from typing import Final

from authority.compat import fuse_abi as abi
from authority.compat.calls_base import (
    AT_EACCESS,
    AT_SYMLINK_NOFOLLOW,
    GO_ON,
    Answer,
    Case,
)
from authority.compat.calls_targets import Targets
from authority.compat.calls_walk import Place, Walker
from authority.compat.calls_wire import Status, stat_bytes, statfs_bytes, statx_bytes
from authority.compat.fuse_wire import Access, Getxattr

_NAME_MOST: Final = 256
_VALUE_MOST: Final = 64 * 1024


def _error(number: int) -> OSError:
    return OSError(number, os.strerror(number))


def there(place: Place) -> Place:
    """Raises unless something is there."""
    if place.seat is not None and not place.node:
        raise _error(errno.ENOENT)
    return place


class Looks:
    """The looks of one run."""

    def __init__(self, walker: Walker, targets: Targets) -> None:
        self._walker = walker
        self._targets = targets

    async def stat(self, case: Case, dirfd: int, at: int, buffer: int, flags: int) -> Answer:
        status = await self._status(case, dirfd, at, flags)
        if status is None:
            return GO_ON
        case.memory.write(case.arguments[buffer], stat_bytes(status))
        return 0

    async def statx(self, case: Case) -> Answer:
        status = await self._status(case, case.number(0), 1, case.flags(2))
        if status is None:
            return GO_ON
        case.memory.write(case.arguments[4], statx_bytes(status))
        return 0

    async def _status(self, case: Case, dirfd: int, at: int, flags: int) -> Status | None:
        follow = not flags & AT_SYMLINK_NOFOLLOW
        place = there(await self._walker.walk(case, dirfd, case.path(at), follow=follow))
        if place.seat is None:
            return None
        case.links.clear()
        status = await place.seat.status(place.node)
        case.check()
        return status

    async def access(self, case: Case, dirfd: int, at: int, mode: int, flags: int) -> Answer:
        if mode & ~7 or flags & ~(AT_EACCESS | AT_SYMLINK_NOFOLLOW):
            raise _error(errno.EINVAL)
        follow = not flags & AT_SYMLINK_NOFOLLOW
        place = there(await self._walker.walk(case, dirfd, case.path(at), follow=follow))
        if place.seat is None:
            return GO_ON
        case.links.clear()
        await place.seat.ask(abi.ACCESS, place.node, Access(mode, 0))
        return 0

    async def readlink(self, case: Case, dirfd: int, at: int) -> Answer:
        place = there(await self._walker.walk(case, dirfd, case.path(at), follow=False))
        if place.seat is None:
            return GO_ON
        case.links.clear()
        if not place.link:
            raise _error(errno.EINVAL)
        size = case.number(at + 2)
        if size <= 0:
            raise _error(errno.EINVAL)
        text = (await place.seat.ask(abi.READLINK, place.node))[:size]
        case.check()
        case.memory.write(case.arguments[at + 1], text)
        return len(text)

    async def statfs(self, case: Case) -> Answer:
        place = there(await self._walker.walk(case, -100, case.path(0)))
        if place.seat is None:
            return GO_ON
        case.links.clear()
        body = await place.seat.ask(abi.STATFS, abi.ROOT_ID)
        case.check()
        case.memory.write(case.arguments[1], statfs_bytes(body))
        return 0

    # --- extended attributes ---

    async def getxattr(self, case: Case, *, follow: bool = True, fd: bool = False) -> Answer:
        name = case.memory.text(case.arguments[1], _NAME_MOST)
        place = await self._attributed(case, follow=follow, fd=fd)
        if place is None or place.seat is None or place.link:
            raise _error(errno.ENODATA)
        size = min(case.arguments[3], _VALUE_MOST)
        body = await place.seat.ask(abi.GETXATTR, place.node, Getxattr(size, 0), name)
        return self._sized(case, 2, size, body)

    async def listxattr(self, case: Case, *, follow: bool = True, fd: bool = False) -> Answer:
        place = await self._attributed(case, follow=follow, fd=fd)
        if place is None or place.seat is None or place.link:
            return 0
        size = min(case.arguments[2], _VALUE_MOST)
        body = await place.seat.ask(abi.LISTXATTR, place.node, Getxattr(size, 0))
        return self._sized(case, 1, size, body)

    def _sized(self, case: Case, at: int, size: int, body: bytes) -> int:
        if not size:
            return int.from_bytes(body[:4], "little")
        case.check()
        case.memory.write(case.arguments[at], body)
        return len(body)

    async def _attributed(self, case: Case, *, follow: bool, fd: bool) -> Place | None:
        """The place of a mediated file; None for everything else."""
        if fd:
            with await self._targets.of_descriptor(case, case.number(0)) as target:
                return target.place
        place = there(await self._walker.walk(case, -100, case.path(0), follow=follow))
        case.links.clear()
        return place
