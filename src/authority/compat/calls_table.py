"""Which call means what: every system call that waits, with the places of its arguments.

Pure wiring. A call that does not stand here is not known, and fails with ENOSYS. The forms without a
directory's descriptor begin at the working folder. Source: the man pages of the calls, section 2.
"""

from __future__ import annotations

import errno
import os
import struct
from collections.abc import Awaitable, Callable
from typing import Final

from authority.compat.calls_base import (
    AT_EMPTY_PATH,
    AT_FDCWD,
    AT_REMOVEDIR,
    AT_SYMLINK_NOFOLLOW,
    Answer,
    Case,
)
from authority.compat.calls_changes import CallChanges
from authority.compat.calls_looks import Looks
from authority.compat.calls_open import Openings
from authority.compat.calls_targets import Targets
from authority.compat.calls_walk import Walker
from authority.compat.calls_writes import Writes

_CREAT: Final = os.O_CREAT | os.O_WRONLY | os.O_TRUNC
_UTIMBUF: Final = struct.Struct("<qq")
_CWD: Final = AT_FDCWD
Work = Callable[[Case], Awaitable[Answer]]


class Table:
    """One run's."""

    def __init__(
        self, walker: Walker, targets: Targets, writes: Writes, uid: int, gid: int
    ) -> None:
        self._opens = opens = Openings(walker, writes)
        looks = Looks(walker, targets)
        self._changes = changes = CallChanges(walker, targets, uid, gid)
        no = AT_SYMLINK_NOFOLLOW
        self._works: dict[str, Work] = {
            "open": lambda c: opens.open(c, _CWD, 0, c.flags(1), c.flags(2)),
            "openat": lambda c: opens.open(c, c.number(0), 1, c.flags(2), c.flags(3)),
            "openat2": opens.openat2,
            "creat": lambda c: opens.open(c, _CWD, 0, _CREAT, c.flags(1)),
            "getdents64": opens.getdents,
            "stat": lambda c: looks.stat(c, _CWD, 0, 1, 0),
            "lstat": lambda c: looks.stat(c, _CWD, 0, 1, no),
            "newfstatat": lambda c: looks.stat(c, c.number(0), 1, 2, c.flags(3)),
            "statx": looks.statx,
            "access": lambda c: looks.access(c, _CWD, 0, c.flags(1), 0),
            "faccessat": lambda c: looks.access(c, c.number(0), 1, c.flags(2), 0),
            "faccessat2": lambda c: looks.access(c, c.number(0), 1, c.flags(2), c.flags(3)),
            "readlink": lambda c: looks.readlink(c, _CWD, 0),
            "readlinkat": lambda c: looks.readlink(c, c.number(0), 1),
            "statfs": looks.statfs,
            "getxattr": looks.getxattr,
            "lgetxattr": lambda c: looks.getxattr(c, follow=False),
            "fgetxattr": lambda c: looks.getxattr(c, fd=True),
            "listxattr": looks.listxattr,
            "llistxattr": lambda c: looks.listxattr(c, follow=False),
            "flistxattr": lambda c: looks.listxattr(c, fd=True),
            "chdir": changes.chdir,
            "mkdir": lambda c: changes.mkdir(c, _CWD, 0, c.flags(1)),
            "mkdirat": lambda c: changes.mkdir(c, c.number(0), 1, c.flags(2)),
            "mknod": lambda c: changes.mknod(c, _CWD, 0, c.flags(1)),
            "mknodat": lambda c: changes.mknod(c, c.number(0), 1, c.flags(2)),
            "symlink": lambda c: changes.symlink(c, 0, _CWD, 1),
            "symlinkat": lambda c: changes.symlink(c, 0, c.number(1), 2),
            "link": lambda c: changes.link(c, (_CWD, 0), (_CWD, 1), 0),
            "linkat": lambda c: changes.link(c, (c.number(0), 1), (c.number(2), 3), c.flags(4)),
            "unlink": lambda c: changes.unlink(c, _CWD, 0, 0),
            "unlinkat": lambda c: changes.unlink(c, c.number(0), 1, c.flags(2)),
            "rmdir": lambda c: changes.unlink(c, _CWD, 0, AT_REMOVEDIR),
            "rename": lambda c: changes.rename(c, (_CWD, 0), (_CWD, 1), 0),
            "renameat": lambda c: changes.rename(c, (c.number(0), 1), (c.number(2), 3), 0),
            "renameat2": lambda c: changes.rename(
                c, (c.number(0), 1), (c.number(2), 3), c.flags(4)
            ),
            "truncate": changes.truncate,
            "chmod": lambda c: self._chmod(c, _CWD, 0, 1, 0),
            "fchmodat": lambda c: self._chmod(c, c.number(0), 1, 2, 0),
            "fchmodat2": lambda c: self._chmod(c, c.number(0), 1, 2, c.flags(3)),
            "fchmod": self._fchmod,
            "chown": lambda c: self._chown(c, _CWD, 0, 1, 0),
            "lchown": lambda c: self._chown(c, _CWD, 0, 1, no),
            "fchownat": lambda c: self._chown(c, c.number(0), 1, 2, c.flags(4)),
            "fchown": self._fchown,
            "utime": self._utime,
            "utimes": lambda c: self._utimes(c, _CWD, 0, 1),
            "futimesat": lambda c: self._utimes(c, c.number(0), 1, 2),
            "utimensat": self._utimensat,
            "setxattr": lambda c: self._setxattr(c, 0),
            "lsetxattr": lambda c: self._setxattr(c, no),
            "fsetxattr": self._fsetxattr,
            "removexattr": lambda c: self._removexattr(c, 0),
            "lremovexattr": lambda c: self._removexattr(c, no),
            "fremovexattr": self._fremovexattr,
        }

    async def work(self, case: Case) -> Answer:
        """What the call is answered. Raises `OSError`, `Untouchable`, `Over`."""
        work = self._works.get(case.name)
        if work is None:
            raise OSError(errno.ENOSYS, os.strerror(errno.ENOSYS))
        return await work(case)

    async def _chmod(self, case: Case, dirfd: int, at: int, mode: int, flags: int) -> Answer:
        target = await self._changes.at(case, dirfd, at, flags)
        return await self._changes.chmod(case, target, case.flags(mode) & 0o7777)

    async def _fchmod(self, case: Case) -> Answer:
        target = await self._changes.fd(case)
        return await self._changes.chmod(case, target, case.flags(1) & 0o7777)

    async def _chown(self, case: Case, dirfd: int, at: int, ids: int, flags: int) -> Answer:
        target = await self._changes.at(case, dirfd, at, flags)
        return await self._changes.chown(case, target, case.flags(ids), case.flags(ids + 1))

    async def _fchown(self, case: Case) -> Answer:
        target = await self._changes.fd(case)
        return await self._changes.chown(case, target, case.flags(1), case.flags(2))

    async def _utime(self, case: Case) -> Answer:
        times = self._changes.times(case, 1) if not case.arguments[1] else None
        if times is None:
            accessed, changed = _UTIMBUF.unpack(case.memory.read(case.arguments[1], _UTIMBUF.size))
            times = accessed, 0, changed, 0
        target = await self._changes.at(case, _CWD, 0)
        return await self._changes.utimens(case, target, times)

    async def _utimes(self, case: Case, dirfd: int, at: int, times: int) -> Answer:
        both = self._changes.times(case, times, micro=True)
        if not case.arguments[at]:
            target = await self._changes.fd(case)
        else:
            target = await self._changes.at(case, dirfd, at)
        return await self._changes.utimens(case, target, both)

    async def _utimensat(self, case: Case) -> Answer:
        both = self._changes.times(case, 2)
        flags = case.flags(3)
        if not case.arguments[1]:
            if flags & ~AT_EMPTY_PATH:
                raise OSError(errno.EINVAL, os.strerror(errno.EINVAL))
            target = await self._changes.fd(case)
        else:
            target = await self._changes.at(case, case.number(0), 1, flags)
        return await self._changes.utimens(case, target, both)

    async def _setxattr(self, case: Case, flags: int) -> Answer:
        return await self._changes.setxattr(case, await self._changes.at(case, _CWD, 0, flags))

    async def _fsetxattr(self, case: Case) -> Answer:
        return await self._changes.setxattr(case, await self._changes.fd(case))

    async def _removexattr(self, case: Case, flags: int) -> Answer:
        return await self._changes.removexattr(case, await self._changes.at(case, _CWD, 0, flags))

    async def _fremovexattr(self, case: Case) -> Answer:
        return await self._changes.removexattr(case, await self._changes.fd(case))
