"""The gate's end of a run's seccomp listener: calls that wait, and what they are answered.

In a run whose files are mediated call by call (`files = "calls"`) the filter hands every call that
takes a path to a listener (`MEDIATED`). The launcher gives it to the gate as soon as the filter is in
force and keeps no copy, so when the gate is gone the kernel answers those calls with ENOSYS.

Rules
- A call is answered once: with a value, with an errno, with a descriptor that the kernel puts into the
  program's table as it answers (`inject`), or it is continued. What a continued call looks at is what
  the program left in its memory by then, so only calls are continued that can reach nothing beyond
  what the run's own name spaces hold.
- Where the run may start no program but its first, execve comes here too: the first one is continued,
  which is the launcher's own, in a process with one thread; every other gets ENOSYS.
- A call whose process died meanwhile is over; that is no error.
- Signals do not interrupt a call that was received, but those that kill (Linux 5.19).

Source: seccomp_unotify(2), Linux uapi `linux/seccomp.h`.
"""

from __future__ import annotations

import errno
import fcntl
import os
import struct
from dataclasses import dataclass
from typing import Final

from authority.isolation.syscalls import NUMBERS

_PATHS: Final = """
open openat openat2 creat stat lstat newfstatat statx access faccessat faccessat2
readlink readlinkat mkdir mkdirat rmdir unlink unlinkat rename renameat renameat2
link linkat symlink symlinkat mknod mknodat chmod fchmod fchmodat fchmodat2
chown lchown fchown fchownat utime utimes futimesat utimensat truncate statfs chdir
getdents getdents64
getxattr lgetxattr fgetxattr setxattr lsetxattr fsetxattr
listxattr llistxattr flistxattr removexattr lremovexattr fremovexattr
"""
MEDIATED: Final = frozenset(_PATHS.split())
"""Calls that take a path, list a directory, or change what an open file is besides its content.
`fstat` is not among them, and neither is `newfstatat` of a descriptor (`AT_EMPTY_PATH`)."""
AT_EMPTY_PATH: Final = 0x1000

_RECV, _SEND, _VALID, _ADDFD = 0xC0502100, 0xC0182101, 0x40082102, 0x40182103
_CONTINUE, _ADDFD_SEND = 1, 2
_NOTIFICATION: Final = struct.Struct("=QIIiIQ6Q")
_RESPONSE: Final = struct.Struct("=QqiI")
_ADD: Final = struct.Struct("=QIIII")
_GONE: Final = (errno.ENOENT, errno.EINPROGRESS, errno.ESRCH)
_IDS: Final = struct.Struct("<II")


@dataclass(frozen=True, slots=True)
class Call:
    """A call that waits. `pid` is the thread, as this process numbers it."""

    id: int
    pid: int
    name: str
    arguments: tuple[int, ...]


class Listener:
    """One run's listener."""

    def __init__(self, fd: int, architecture: str, *, exec_once: bool) -> None:
        self.fd = fd
        self._names = {number: name for name, number in NUMBERS[architecture].items()}
        self._execs_left = 1 if exec_once else 0

    def fileno(self) -> int:
        return self.fd

    def close(self) -> None:
        fd, self.fd = self.fd, -1
        if fd >= 0:
            os.close(fd)

    def receive(self) -> Call | None:
        """The next call; None when it was over before, or was dealt with here. To be called when
        `fd` can be read; it does not wait then."""
        space = bytearray(_NOTIFICATION.size)
        try:
            fcntl.ioctl(self.fd, _RECV, space)
        except OSError as error:
            if error.errno in (*_GONE, errno.EINTR):
                return None
            raise
        id_, pid, _flags, number, _arch, _pointer, *arguments = _NOTIFICATION.unpack(space)
        call = Call(id_, pid, self._names.get(number, ""), tuple(arguments))
        if call.name == "execve":
            if self._execs_left:
                self._execs_left -= 1
                self.go_on(id_)
            else:
                self.fail(id_, errno.ENOSYS)
            return None
        return call

    def waits(self, id_: int) -> bool:
        """Whether it still does: what was read of its process until now was its own."""
        try:
            fcntl.ioctl(self.fd, _VALID, id_.to_bytes(8, "little"))
        except OSError as error:
            if error.errno in _GONE:
                return False
            raise
        return True

    def done(self, id_: int, value: int) -> None:
        self._send(id_, value, 0, 0)

    def fail(self, id_: int, number: int) -> None:
        self._send(id_, 0, -number, 0)

    def go_on(self, id_: int) -> None:
        self._send(id_, 0, 0, _CONTINUE)

    def inject(self, id_: int, fd: int, *, cloexec: bool) -> None:
        """Put a copy of `fd` into the program's table and answer with its number, in one step. The
        caller keeps its own. Raises `OSError` (EMFILE), and the call still waits then."""
        flags = os.O_CLOEXEC if cloexec else 0
        try:
            fcntl.ioctl(self.fd, _ADDFD, _ADD.pack(id_, _ADDFD_SEND, fd, 0, flags))
        except OSError as error:
            if error.errno not in _GONE:
                raise

    def _send(self, id_: int, value: int, error: int, flags: int) -> None:
        try:
            fcntl.ioctl(self.fd, _SEND, bytearray(_RESPONSE.pack(id_, value, error, flags)))
        except OSError as problem:
            if problem.errno not in _GONE:
                raise


@dataclass(frozen=True, slots=True)
class Handed:
    """What a launcher hands over: the listener, the run's user as its name space numbers it, its root,
    and for each mount (its real folder, where no file may be executed; the empty one that stands for
    it in the run). Everything here is the receiver's to close."""

    listener: Listener
    uid: int
    gid: int
    root: int
    folders: tuple[tuple[int, int], ...]


def handed(
    data: bytes, fds: list[int], architecture: str, mounts: int, *, exec_once: bool
) -> Handed | None:
    """From the launcher's message; None when it is not what it must be (everything closed)."""
    if len(data) != _IDS.size or len(fds) != 2 + 2 * mounts:
        for fd in fds:
            os.close(fd)
        return None
    uid, gid = _IDS.unpack(data)
    pairs = tuple((fds[at], fds[at + 1]) for at in range(2, len(fds), 2))
    return Handed(Listener(fds[0], architecture, exec_once=exec_once), uid, gid, fds[1], pairs)


def problem(kernel: str, yama: str, *, root: bool, may_trace: bool) -> tuple[str, str]:
    """Why files can't be mediated call by call here (cause, fix), or two empty texts. `yama` is what
    its setting says; `may_trace` whether this process has CAP_SYS_PTRACE."""
    release = [int(part) for part in kernel.split(".")[:2] if part.isdigit()]
    if release < [5, 19]:
        return "this kernel can't hand descriptors in as the gate does", "use Linux 5.19 or later"
    if yama == "3":
        return (
            "kernel.yama.ptrace_scope is 3, so the gate can't read a call's arguments",
            "it can only be changed at the next start of the machine",
        )
    if root and not may_trace:
        return (
            "started by root without CAP_SYS_PTRACE, so the gate can't read a call's arguments",
            "start it as an ordinary user, or give the container that capability",
        )
    return "", ""
