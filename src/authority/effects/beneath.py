"""Opening files beneath a directory handle, so that what was checked is what is used.

Rules
- There is one way to a file: `openat2(2)` beneath a held handle of `/`, or of a directory that was
  itself reached so, with `RESOLVE_BENEATH | RESOLVE_NO_SYMLINKS | RESOLVE_NO_MAGICLINKS`. A link
  anywhere on the path ends the walk, also when it is put there during the walk. `..` and empty
  components are refused here too, whatever the resource parser said before.
- Look first: `look` opens with `O_PATH`, which runs no driver and wakes no peer, and reads the
  identity from that handle. Only regular files and directories go on; a FIFO, a socket or a device
  is refused without ever having been opened.
- Then use the very same object: `reopen` opens `/proc/self/fd/N` of the look handle, beneath a held
  handle of `/proc/self/fd` that was checked to be procfs, and compares device and inode again. No
  name is looked up twice, so nothing can be swapped between check and use.
- Only file systems that hold files of this machine are touched (`storage`).
- `now=True` adds `RESOLVE_CACHED` and goes on only for `QUICK` file systems: it answers from the
  kernel's caches at once or raises `WouldWait`, so it may be called where nothing may block.
- A kernel without openat2 (before 5.6, or a container that forbids it), a procfs that is missing or
  is not procfs: `BeneathUnavailable` at construction. There is no weaker way to fall back to.

Source: openat2(2), open(2) on O_PATH, statfs(2), Linux uapi `linux/openat2.h` and `linux/magic.h`.
"""

from __future__ import annotations

import ctypes
import errno
import os
import platform
import stat
from types import TracebackType

from authority.effects.storage import QUICK, STORAGE
from authority.errors import AuthorityError

RESOLVE_NO_MAGICLINKS = 0x02
RESOLVE_NO_SYMLINKS = 0x04
RESOLVE_BENEATH = 0x08
RESOLVE_CACHED = 0x20
_RESOLVE = RESOLVE_BENEATH | RESOLVE_NO_SYMLINKS | RESOLVE_NO_MAGICLINKS

_OPENAT2 = {"x86_64": 437, "aarch64": 437}
_RENAMEAT2 = {"x86_64": 316, "aarch64": 276}
RENAME_NOREPLACE = 1
RENAME_EXCHANGE = 2

_PROC = 0x9FA0
_PROC_FD = "/proc/self/fd"

_RETRIES = 16


class BeneathUnavailable(AuthorityError):
    """This system has no safe way to open files."""


class WouldWait(Exception):
    """`now=True` was asked and the kernel would have to wait."""


class Untouchable(Exception):
    """What the path leads to may not be opened. `reason` continues "it ..." for a person."""

    def __init__(self, reason: str) -> None:
        super().__init__(reason)
        self.reason = reason


class Handle:
    """An open descriptor with the identity it had when it was opened. Closes with its block."""

    __slots__ = ("fd", "kind", "status")

    def __init__(self, fd: int, status: os.stat_result, kind: int) -> None:
        self.fd = fd
        self.status = status
        self.kind = kind
        """`f_type` of the file system."""

    @property
    def is_directory(self) -> bool:
        return stat.S_ISDIR(self.status.st_mode)

    @property
    def identity(self) -> tuple[int, int]:
        """Device and inode number."""
        return self.status.st_dev, self.status.st_ino

    def close(self) -> None:
        fd, self.fd = self.fd, -1
        if fd >= 0:
            os.close(fd)

    def __enter__(self) -> Handle:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()


class _OpenHow(ctypes.Structure):
    _fields_ = (
        ("flags", ctypes.c_uint64),
        ("mode", ctypes.c_uint64),
        ("resolve", ctypes.c_uint64),
    )


def _check_path(path: bytes) -> None:
    if b"\0" in path:
        raise Untouchable("has a NUL byte in its name")
    if any(part in (b"", b".", b"..") for part in path.split(b"/")):
        raise Untouchable("has an empty, '.' or '..' component in its path")


class Beneath:
    """The held handles of `/` and `/proc/self/fd`. Safe for several threads; not across a fork.

    `filesystems` are the `f_type` numbers that may be touched. Raises `BeneathUnavailable`.
    """

    def __init__(self, filesystems: frozenset[int] = STORAGE) -> None:
        self._filesystems = filesystems
        machine = platform.machine()
        if machine not in _OPENAT2:
            raise BeneathUnavailable(
                f"files cannot be opened safely: no openat2 number is known for {machine}",
                "x86_64 and aarch64 are supported",
            )
        self._openat2_number = _OPENAT2[machine]
        self._renameat2_number = _RENAMEAT2[machine]
        self._libc = ctypes.CDLL(None, use_errno=True)
        self._syscall = self._libc.syscall
        self._syscall.restype = ctypes.c_long
        self._pid = os.getpid()
        self._cached = True
        flags = os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC
        self.root = os.open("/", flags)
        self._proc = -1
        try:
            self._probe()
            self._proc = self._open_proc()
        except BaseException:
            self.close()
            raise

    def _probe(self) -> None:
        flags = os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC
        try:
            os.close(self._openat2(self.root, b".", flags, 0, _RESOLVE))
        except OSError as error:
            raise BeneathUnavailable(
                "files cannot be opened safely: this kernel refuses openat2"
                f" ({errno.errorcode.get(error.errno or 0, '?')})",
                "Linux 5.6 or later is needed, and a container profile that allows openat2",
            ) from error

    def _open_proc(self) -> int:
        fd = -1
        try:
            fd = os.open(_PROC_FD, os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
            if self._file_system(fd) == _PROC:
                return fd
            os.close(fd)
        except OSError:
            if fd >= 0:
                os.close(fd)
        raise BeneathUnavailable(
            "files cannot be opened safely: /proc is not mounted as procfs",
            "mount procfs on /proc",
        )

    def close(self) -> None:
        """Close both handles. The object is of no use afterwards."""
        for name in ("root", "_proc"):
            fd = getattr(self, name)
            setattr(self, name, -1)
            if fd >= 0:
                os.close(fd)

    # --- looking ---

    def look(
        self, path: bytes, at: int | None = None, *, now: bool = False, links: bool = False
    ) -> Handle:
        """An `O_PATH` handle of the regular file or directory `path`; with `links` of a symbolic
        link too, of the link itself, never of what it leads to.

        `path` is absolute, or relative to the directory handle `at`. Raises `OSError` (ENOENT,
        EACCES ...), `Untouchable` for what is neither file nor directory, leads through a link or
        lies on a file system that is not storage, and `WouldWait` with `now`.
        """
        if at is None:
            at = self.root
            path = path[1:] if path.startswith(b"/") else path
        if path:
            _check_path(path)
        flags = os.O_PATH | os.O_CLOEXEC | (os.O_NOFOLLOW if links else 0)
        fd = self._open(at, path or b".", flags, 0, now=now)
        try:
            return self._identify(fd, now=now, links=links)
        except BaseException:
            os.close(fd)
            raise

    def parent(self, path: bytes) -> tuple[Handle, bytes]:
        """The directory that holds the absolute `path`, and the last name. Errors as `look`."""
        if not path.startswith(b"/") or path == b"/":
            raise Untouchable("is the root directory")
        head, _, name = path.rpartition(b"/")
        _check_path(name)
        handle = self.look(head or b"/")
        if not handle.is_directory:
            handle.close()
            raise NotADirectoryError(errno.ENOTDIR, "")
        return handle, name

    def look_if_there(self, parent: Handle, name: bytes) -> Handle | None:
        """`look` at `name` in `parent`, None when there is nothing."""
        try:
            return self.look(name, parent.fd)
        except FileNotFoundError:
            return None

    def may_write(self, handle: Handle) -> bool:
        """Whether the system and the file's own mode allow writing to it.

        A file without any write bit counts as read-only for root too: its owner meant that.
        """
        if not handle.status.st_mode & 0o222:
            return False
        return os.access(str(handle.fd), os.W_OK, dir_fd=self._proc, effective_ids=True)

    # --- using ---

    def reopen(self, handle: Handle, flags: int) -> int:
        """A descriptor of the very object that `handle` holds. The caller closes it.

        Where the kernel allows it (for the owner), reading leaves no access time behind: which files a
        run read is nobody's to see in them.
        """
        if os.getpid() != self._pid:
            raise RuntimeError("Beneath was made before a fork and cannot be used after it")
        flags |= os.O_CLOEXEC | os.O_NOCTTY | os.O_NONBLOCK
        try:
            fd = os.open(str(handle.fd), flags | os.O_NOATIME, dir_fd=self._proc)
        except PermissionError:
            fd = os.open(str(handle.fd), flags, dir_fd=self._proc)
        found = os.fstat(fd)
        if (found.st_dev, found.st_ino) != handle.identity:
            os.close(fd)
            raise Untouchable("changed while it was opened")
        return fd

    def create(self, parent: Handle, name: bytes, mode: int, flags: int = 0) -> int:
        """Create the regular file `name` in `parent` (`O_EXCL`: a link there is an error)."""
        _check_path(name)
        if not flags & os.O_ACCMODE:
            flags |= os.O_WRONLY
        flags |= os.O_CREAT | os.O_EXCL | os.O_CLOEXEC | os.O_NOFOLLOW
        return self._open(parent.fd, name, flags, mode, now=False)

    def move(
        self,
        source: Handle,
        old: bytes,
        target: Handle,
        new: bytes,
        *,
        replace: bool,
        exchange: bool = False,
    ) -> None:
        """Rename between two held directories; without `replace` an existing target is EEXIST, with
        `exchange` both names change places.

        Where the file system has no `RENAME_NOREPLACE`, a new link and the removal of the old name
        do the same: linkat(2) never replaces.
        """
        _check_path(old)
        _check_path(new)
        result = self._syscall(
            ctypes.c_long(self._renameat2_number),
            ctypes.c_int(source.fd),
            ctypes.c_char_p(old),
            ctypes.c_int(target.fd),
            ctypes.c_char_p(new),
            ctypes.c_uint(RENAME_EXCHANGE if exchange else 0 if replace else RENAME_NOREPLACE),
        )
        if result == 0:
            return
        number = ctypes.get_errno()
        if replace or exchange or number not in (errno.EINVAL, errno.ENOSYS):
            raise OSError(number, os.strerror(number))
        os.link(old, new, src_dir_fd=source.fd, dst_dir_fd=target.fd, follow_symlinks=False)
        os.unlink(old, dir_fd=source.fd)

    def path(self, handle: Handle) -> str:
        """A path that leads to the held object, whatever happened to its name: for calls that take
        no descriptor (extended attributes). Only in this process."""
        return f"{_PROC_FD}/{handle.fd}"

    def change_mode(self, handle: Handle, mode: int) -> None:
        """chmod(2) of the very object that `handle` holds."""
        os.chmod(str(handle.fd), mode, dir_fd=self._proc)

    def change_times(self, handle: Handle, times: tuple[int, int]) -> None:
        """Access and modification time (ns) of the object that `handle` holds."""
        os.utime(str(handle.fd), ns=times, dir_fd=self._proc)

    def allocate(self, fd: int, mode: int, offset: int, length: int) -> None:
        """fallocate(2). Raises `OSError`."""
        result = self._libc.fallocate(
            ctypes.c_int(fd), ctypes.c_int(mode), ctypes.c_int64(offset), ctypes.c_int64(length)
        )
        if result != 0:
            raise OSError(ctypes.get_errno(), "")

    def sync(self, directory: Handle) -> None:
        """fsync(2) of a held directory: names made, moved or removed in it are durable after."""
        fd = self.reopen(directory, os.O_RDONLY | os.O_DIRECTORY)
        try:
            os.fsync(fd)
        finally:
            os.close(fd)

    # --- system calls ---

    def _identify(self, fd: int, *, now: bool, links: bool) -> Handle:
        kind = self._file_system(fd)
        if kind not in self._filesystems:
            raise Untouchable("lies on a file system that does not hold files of this machine")
        if now and kind not in QUICK:
            raise WouldWait
        status = os.fstat(fd)
        kinds = (stat.S_IFREG, stat.S_IFDIR, stat.S_IFLNK if links else stat.S_IFREG)
        if stat.S_IFMT(status.st_mode) not in kinds:
            raise Untouchable("is neither a regular file nor a directory")
        return Handle(fd, status, kind)

    def _open(self, at: int, path: bytes, flags: int, mode: int, *, now: bool) -> int:
        resolve = _RESOLVE
        if now:
            if not self._cached:
                raise WouldWait
            resolve |= RESOLVE_CACHED
        for _ in range(_RETRIES):
            try:
                return self._openat2(at, path, flags, mode, resolve)
            except OSError as error:
                if now and error.errno in (errno.EAGAIN, errno.EINVAL):
                    # EINVAL: before Linux 5.12 there is no RESOLVE_CACHED.
                    self._cached = error.errno == errno.EAGAIN
                    raise WouldWait from None
                if error.errno == errno.ELOOP:
                    raise Untouchable("is a symbolic link or lies behind one") from None
                if error.errno == errno.EXDEV:
                    raise Untouchable("leads out of the directory it starts from") from None
                # EAGAIN: a rename or mount raced with the walk; openat2(2) says to try again.
                if error.errno not in (errno.EAGAIN, errno.EINTR):
                    raise
        raise Untouchable("changed again and again while it was opened")

    def _openat2(self, at: int, path: bytes, flags: int, mode: int, resolve: int) -> int:
        how = _OpenHow(flags, mode, resolve)
        fd: int = self._syscall(
            ctypes.c_long(self._openat2_number),
            ctypes.c_int(at),
            ctypes.c_char_p(path),
            ctypes.byref(how),
            ctypes.c_size_t(ctypes.sizeof(how)),
        )
        if fd < 0:
            raise OSError(ctypes.get_errno(), "")
        return fd

    def _file_system(self, fd: int) -> int:
        # struct statfs begins with f_type, a long on both machines; it is below 256 bytes.
        buffer = (ctypes.c_long * 32)()
        if self._libc.fstatfs(ctypes.c_int(fd), ctypes.byref(buffer)) != 0:
            raise OSError(ctypes.get_errno(), "")
        return int(buffer[0]) & 0xFFFFFFFF
