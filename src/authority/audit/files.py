"""The few file operations that durability rests on, so that a simulated disk can stand in.

Rules
- Every byte of the log, its checkpoints and its bodies is written through a `FileLayer`. Tests
  replace it with a disk that forgets what was not synced, fails, or writes short; nothing else.
- A write is durable after `fdatasync` of the file, a new size after `fsync`, a name after
  `sync_directory` of its folder.
- `pwrite` may write less than asked (POSIX); `write_all` is how callers write.
- `OsLayer` creates files 0600 and directories 0700, and follows no link in the last component.
"""

from __future__ import annotations

import contextlib
import fcntl
import mmap
import os
import time
from typing import Protocol

from authority.audit.errors import LogLocked
from authority.kernel.room import UNLIMITED, Space

SECTOR = 512
"""The unit in bytes that a disk writes whole or not at all. No disk promises more."""

_BLOCK = 4096
_NAMES = 64
"""A disk that can take no more files than this has no room."""
_ZEROS = bytes(64 * 1024)
_LOCK_TRIES = 30
_LOCK_PAUSE_S = 0.01


class FileLayer(Protocol):
    """File operations as the log uses them. All raise `OSError`; paths are absolute strings."""

    def open(self, path: str, *, create: bool = False) -> int:
        """A descriptor for reading and writing; `create` makes a new file and refuses an old one"""

    def pwrite(self, fd: int, data: bytes, offset: int) -> int:
        """Write at `offset`; returns how many bytes were taken."""

    def fdatasync(self, fd: int) -> None:
        """Return once the file's bytes, and the size needed to read them, are on the disk."""

    def fsync(self, fd: int) -> None:
        """Return once the file's bytes and all about it, a smaller size too, are on the disk."""

    def truncate(self, fd: int, size: int) -> None:
        """Cut or extend to `size` bytes."""

    def size(self, fd: int) -> int:
        """The file's size in bytes."""

    def close(self, fd: int) -> None: ...

    def read(self, path: str) -> bytes:
        """The whole file."""

    def read_back(self, path: str) -> tuple[bytes, str]:
        """The whole file as the disk has it, and how sure that is: `direct` or `uncached`."""

    def rename(self, old: str, new: str) -> None: ...

    def link(self, old: str, new: str) -> None: ...

    def unlink(self, path: str) -> None: ...

    def mkdir(self, path: str) -> None:
        """Make the directory; an existing one is fine."""

    def listdir(self, path: str) -> list[str]: ...

    def exists(self, path: str) -> bool: ...

    def space(self, path: str) -> Space:
        """How much room the disk of a folder has."""

    def sync_directory(self, path: str) -> None:
        """Return once the names in the directory are on the disk."""

    def lock(self, path: str) -> int:
        """Take the one writer's lock, or raise `LogLocked`. It goes when the result is closed."""


class OsLayer:
    """The operating system's own files."""

    def open(self, path: str, *, create: bool = False) -> int:
        flags = os.O_RDWR | os.O_CLOEXEC | os.O_NOFOLLOW
        if create:
            flags |= os.O_CREAT | os.O_EXCL
        return os.open(path, flags, 0o600)

    def pwrite(self, fd: int, data: bytes, offset: int) -> int:
        return os.pwrite(fd, data, offset)

    def fdatasync(self, fd: int) -> None:
        os.fdatasync(fd)

    def fsync(self, fd: int) -> None:
        os.fsync(fd)

    def truncate(self, fd: int, size: int) -> None:
        os.ftruncate(fd, size)

    def size(self, fd: int) -> int:
        return os.fstat(fd).st_size

    def close(self, fd: int) -> None:
        os.close(fd)

    def read(self, path: str) -> bytes:
        fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW)
        with open(fd, "rb") as file:
            return file.read()

    def read_back(self, path: str) -> tuple[bytes, str]:
        """O_DIRECT where the file system has it; otherwise the cache is asked to forget the file.

        `direct` went past the page cache (a disk's own cache is beyond us). `uncached` is a
        request that the kernel may decline, so it proves less.
        """
        fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW)
        try:
            os.posix_fadvise(fd, 0, 0, os.POSIX_FADV_DONTNEED)
        finally:
            os.close(fd)
        with contextlib.suppress(OSError):
            return self._read_direct(path), "direct"
        return self.read(path), "uncached"

    @staticmethod
    def _read_direct(path: str) -> bytes:
        fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW | os.O_DIRECT)
        try:
            size = os.fstat(fd).st_size
            with mmap.mmap(-1, max(_BLOCK, -(-size // _BLOCK) * _BLOCK)) as buffer:
                done = 0
                while done < size:
                    with memoryview(buffer)[done:] as rest:
                        count = os.preadv(fd, [rest], done)
                    if count == 0:
                        break
                    done += count
                return buffer[:size]
        finally:
            os.close(fd)

    def rename(self, old: str, new: str) -> None:
        os.rename(old, new)

    def link(self, old: str, new: str) -> None:
        os.link(old, new)

    def unlink(self, path: str) -> None:
        os.unlink(path)

    def mkdir(self, path: str) -> None:
        with contextlib.suppress(FileExistsError):
            os.mkdir(path, 0o700)

    def listdir(self, path: str) -> list[str]:
        return os.listdir(path)

    def exists(self, path: str) -> bool:
        return os.path.lexists(path)

    def space(self, path: str) -> Space:
        disk = os.statvfs(path)
        if not disk.f_blocks:  # one in memory that nobody limited does not say how large it is
            return UNLIMITED
        names = not disk.f_files or disk.f_favail > _NAMES  # some file systems count no names
        return Space(disk.f_bavail * disk.f_frsize if names else 0, disk.f_blocks * disk.f_frsize)

    def sync_directory(self, path: str) -> None:
        fd = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        try:
            os.fsync(fd)
        finally:
            os.close(fd)

    def lock(self, path: str) -> int:
        fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600)
        for left in range(_LOCK_TRIES, 0, -1):
            try:
                fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                # A reader that looks whether a writer lives holds the lock for an instant.
                if left > 1:
                    time.sleep(_LOCK_PAUSE_S)
            except BaseException:
                os.close(fd)
                raise
            else:
                return fd
        os.close(fd)
        raise LogLocked("another process is writing this log", "stop the other gate first")


def is_locked(path: str) -> bool:
    """Whether a writer holds the lock at `path` right now. Takes nothing for longer than that."""
    try:
        fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    except FileNotFoundError:
        return False
    try:
        fcntl.flock(fd, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except BlockingIOError:
        return True
    finally:
        os.close(fd)
    return False


def is_zero(data: bytes) -> bool:
    """Whether there are only zero bytes. By comparison of blocks: `strip` would look at each."""
    block = len(_ZEROS)
    return not data[:1].strip(b"\0") and all(
        data[at : at + block] == _ZEROS[: len(data) - at] for at in range(0, len(data), block)
    )


def without_zeros(data: bytes) -> bytes:
    """`data` without the zero bytes at its end."""
    end = len(data)
    block = len(_ZEROS)
    while end >= block and data[end - block : end] == _ZEROS:
        end -= block
    return data[:end].rstrip(b"\0")


def write_all(layer: FileLayer, fd: int, data: bytes, offset: int) -> None:
    """Write all of `data` at `offset`. Raises `OSError` when the layer stops taking bytes."""
    count = layer.pwrite(fd, data, offset)
    while count < len(data):
        more = layer.pwrite(fd, data[count:], offset + count)
        if more <= 0:
            raise OSError(5, "the file takes no more bytes")
        count += more


def write_new(layer: FileLayer, path: str, data: bytes) -> None:
    """Put a file with exactly `data` at `path`, durable on return, never seen half-written.

    Replaces an old one. The folder must exist.
    """
    folder = os.path.dirname(path)
    temporary = f"{path}.{os.urandom(6).hex()}.tmp"
    fd = layer.open(temporary, create=True)
    try:
        try:
            write_all(layer, fd, data, 0)
            layer.fsync(fd)
        finally:
            layer.close(fd)
        layer.rename(temporary, path)
    except BaseException:
        with contextlib.suppress(OSError):
            layer.unlink(temporary)
        raise
    layer.sync_directory(folder)
