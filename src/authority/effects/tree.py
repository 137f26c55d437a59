"""A folder as a file mount uses it: every operation beneath one held directory, by path.

Runs in any thread. Rules
- A path is the names below the root, joined by `/`; the empty path is the root. Each operation walks
  it anew as `beneath` says: no link is followed, nothing outside is reached. A symbolic link may be
  looked at, read, made, moved and removed; it is never followed here, whoever has the mount inside
  follows it, and what it leads to is asked for by its own path.
- What is neither a file, a directory nor a link does not exist here.
- `expect` is the identity that the caller knows the path by. Another object there is `ESTALE`: what
  was judged and what is used are the same thing.
- A file with a set-id bit is never opened for writing, and no mode that is set has one. A file
  without any write bit is not opened for writing, for root too: its owner meant that.
- What a gate that runs as root makes belongs to the owner of the folder that holds it. Its mode is
  the one that was asked for, which the program's own umask shaped, never the gate's.
- Nothing is synced here: a program that wants its bytes on the disk says so (fsync), and what a crash
  leaves in doubt is settled by looking at the file.
"""

from __future__ import annotations

import errno
import os
import stat
from typing import NamedTuple, Protocol

from authority.effects.beneath import Beneath, Handle, Untouchable

SET_ID = stat.S_ISUID | stat.S_ISGID
LIST_LIMIT = 100_000
"""Names in one directory; more are an error, since half a listing would look like a whole one."""
_MADE = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC
Identity = tuple[int, int]
_KINDS = (stat.S_IFREG, stat.S_IFDIR, stat.S_IFLNK)


class Row(NamedTuple):
    """One name in a directory. `kind` is the file type bits of its mode."""

    name: bytes
    ino: int
    kind: int


class Files(Protocol):
    """What a mount needs of the files below its root."""

    def look(self, path: bytes, *, now: bool = False) -> Handle: ...
    def rows(self, path: bytes) -> list[Row]: ...
    def readlink(self, path: bytes) -> bytes: ...
    def open(self, path: bytes, flags: int, expect: Identity | None = None) -> int: ...
    def read(self, found: Handle) -> int: ...
    def create(self, path: bytes, flags: int, mode: int) -> int: ...
    def mkdir(self, path: bytes, mode: int) -> os.stat_result: ...
    def symlink(self, path: bytes, text: bytes) -> os.stat_result: ...
    def link(self, old: bytes, new: bytes, expect: Identity) -> os.stat_result: ...
    def unlink(self, path: bytes) -> os.stat_result: ...
    def rmdir(self, path: bytes) -> os.stat_result: ...
    def rename(self, old: bytes, new: bytes, *, replace: bool, exchange: bool) -> None: ...
    def chmod(self, path: bytes, mode: int, expect: Identity) -> os.stat_result: ...
    def utime(self, path: bytes, times: Times, expect: Identity) -> os.stat_result: ...
    def truncate(self, path: bytes, size: int, expect: Identity) -> os.stat_result: ...
    def getxattr(self, path: bytes, name: bytes, expect: Identity) -> bytes: ...
    def listxattr(self, path: bytes, expect: Identity) -> list[bytes]: ...
    def setxattr(
        self, path: bytes, name: bytes, value: bytes | None, flags: int, expect: Identity
    ) -> None: ...
    def allocate(self, fd: int, mode: int, offset: int, length: int) -> None: ...
    def sync(self, path: bytes) -> None: ...
    def statfs(self) -> os.statvfs_result: ...
    def close(self) -> None: ...


Times = tuple[int | None, int | None]
"""Access and modification time in nanoseconds; None leaves one as it is."""


class Tree:
    """The files below one directory of this machine. Raises `OSError` and `Untouchable`."""

    def __init__(self, beneath: Beneath, root: bytes, at: int | None = None) -> None:
        """`root` is absolute; with `at` the directory that this descriptor holds is taken instead."""
        self.beneath = beneath
        self.path = root
        self._root = beneath.look(root) if at is None else beneath.look(b"", at)
        if not self._root.is_directory:
            self._root.close()
            raise NotADirectoryError(errno.ENOTDIR, os.strerror(errno.ENOTDIR))

    def close(self) -> None:
        self._root.close()

    def look(self, path: bytes, *, now: bool = False) -> Handle:
        """The object at `path`, a link as itself. With `now` raises `WouldWait`."""
        return self.beneath.look(path, self._root.fd, now=now, links=True)

    def expected(self, path: bytes, expect: Identity | None) -> Handle:
        """`look`, and it is what the caller knows."""
        return as_expected(self.look(path), expect)

    def rows(self, path: bytes) -> list[Row]:
        """What a directory holds, without what does not exist here."""
        with self.look(path) as found:
            fd = self.beneath.reopen(found, os.O_RDONLY | os.O_DIRECTORY)
        try:
            rows = []
            with os.scandir(fd) as entries:
                for entry in entries:
                    kind = _kind(entry)
                    if kind in _KINDS:
                        rows.append(Row(os.fsencode(entry.name), entry.inode(), kind))
                        if len(rows) > LIST_LIMIT:
                            raise OSError(errno.EOVERFLOW, os.strerror(errno.EOVERFLOW))
            return rows
        finally:
            os.close(fd)

    def readlink(self, path: bytes) -> bytes:
        parent, name = self.parent(path)
        with parent:
            return os.readlink(name, dir_fd=parent.fd)

    # --- files ---

    def open(self, path: bytes, flags: int, expect: Identity | None = None) -> int:
        """A descriptor of the regular file at `path`."""
        with self.expected(path, expect) as found:
            check_regular(found)
            if flags & os.O_ACCMODE != os.O_RDONLY:
                check_writable(self.beneath, found)
            return self.beneath.reopen(found, flags)

    def read(self, found: Handle) -> int:
        """A descriptor for reading of the regular file that was looked at, whatever its name is now."""
        check_regular(found)
        return self.beneath.reopen(found, os.O_RDONLY)

    def create(self, path: bytes, flags: int, mode: int) -> int:
        """A new regular file; `EEXIST` when something has the name."""
        parent, name = self.parent(path)
        with parent:
            fd = self.beneath.create(parent, name, mode & 0o777, flags)
            try:
                self._give(fd, parent.status)
                os.fchmod(fd, mode & 0o777)
            except BaseException:
                os.close(fd)
                os.unlink(name, dir_fd=parent.fd)
                raise
            return fd

    def truncate(self, path: bytes, size: int, expect: Identity) -> os.stat_result:
        return set_size(self.open(path, os.O_WRONLY, expect), size)

    def allocate(self, fd: int, mode: int, offset: int, length: int) -> None:
        """fallocate(2) of an open file."""
        self.beneath.allocate(fd, mode, offset, length)

    # --- names ---

    def mkdir(self, path: bytes, mode: int) -> os.stat_result:
        parent, name = self.parent(path)
        with parent:
            os.mkdir(name, 0o700, dir_fd=parent.fd)
            fd = os.open(name, _MADE, dir_fd=parent.fd)
            try:
                if os.fstat(fd).st_uid != os.geteuid():
                    # Somebody put another one in its place: nothing of that is changed.
                    raise OSError(errno.ESTALE, os.strerror(errno.ESTALE))
                self._give(fd, parent.status)
                os.fchmod(fd, mode & 0o777)
                return os.fstat(fd)
            finally:
                os.close(fd)

    def symlink(self, path: bytes, text: bytes) -> os.stat_result:
        parent, name = self.parent(path)
        with parent:
            os.symlink(text, name, dir_fd=parent.fd)
            return self._made(parent, name)

    def link(self, old: bytes, new: bytes, expect: Identity) -> os.stat_result:
        """A further name for a regular file."""
        old_parent, old_name = self.parent(old)
        with old_parent:
            new_parent, new_name = self.parent(new)
            with new_parent:
                with self.beneath.look(old_name, old_parent.fd) as found:
                    if found.identity != expect:
                        raise OSError(errno.ESTALE, os.strerror(errno.ESTALE))
                    if found.is_directory:
                        raise PermissionError(errno.EPERM, os.strerror(errno.EPERM))
                os.link(
                    old_name,
                    new_name,
                    src_dir_fd=old_parent.fd,
                    dst_dir_fd=new_parent.fd,
                    follow_symlinks=False,
                )
                status = os.stat(new_name, dir_fd=new_parent.fd, follow_symlinks=False)
                if (status.st_dev, status.st_ino) != expect:
                    # Another program swapped the old name at that moment: what got linked is
                    # something that nobody judged.
                    os.unlink(new_name, dir_fd=new_parent.fd)
                    raise OSError(errno.ESTALE, os.strerror(errno.ESTALE))
                return status

    def unlink(self, path: bytes) -> os.stat_result:
        """Remove a name; the status of what it led to."""
        parent, name = self.parent(path)
        with parent, self.beneath.look(name, parent.fd, links=True) as found:
            os.unlink(name, dir_fd=parent.fd)
            return found.status

    def rmdir(self, path: bytes) -> os.stat_result:
        parent, name = self.parent(path)
        with parent, self.beneath.look(name, parent.fd, links=True) as found:
            os.rmdir(name, dir_fd=parent.fd)
            return found.status

    def rename(self, old: bytes, new: bytes, *, replace: bool, exchange: bool) -> None:
        old_parent, old_name = self.parent(old)
        with old_parent:
            new_parent, new_name = self.parent(new)
            with new_parent:
                self.beneath.move(
                    old_parent, old_name, new_parent, new_name, replace=replace, exchange=exchange
                )

    # --- attributes ---

    def chmod(self, path: bytes, mode: int, expect: Identity) -> os.stat_result:
        with self.expected(path, expect) as found:
            if stat.S_ISLNK(found.status.st_mode):
                raise OSError(errno.EOPNOTSUPP, os.strerror(errno.EOPNOTSUPP))
            self.beneath.change_mode(found, mode & 0o777)
            return os.fstat(found.fd)

    def utime(self, path: bytes, times: Times, expect: Identity) -> os.stat_result:
        with self.expected(path, expect) as found:
            was = found.status
            both = (
                was.st_atime_ns if times[0] is None else times[0],
                was.st_mtime_ns if times[1] is None else times[1],
            )
            if stat.S_ISLNK(was.st_mode):
                parent, name = self.parent(path)
                with parent:
                    os.utime(name, ns=both, dir_fd=parent.fd, follow_symlinks=False)
            else:
                self.beneath.change_times(found, both)
            return os.fstat(found.fd)

    def getxattr(self, path: bytes, name: bytes, expect: Identity) -> bytes:
        with self._attributed(path, expect) as found:
            return os.getxattr(self.beneath.path(found), name)

    def listxattr(self, path: bytes, expect: Identity) -> list[bytes]:
        with self._attributed(path, expect) as found:
            return [os.fsencode(name) for name in os.listxattr(self.beneath.path(found))]

    def setxattr(
        self, path: bytes, name: bytes, value: bytes | None, flags: int, expect: Identity
    ) -> None:
        """Set an extended attribute; remove it when `value` is None."""
        with self._attributed(path, expect) as found:
            if value is None:
                os.removexattr(self.beneath.path(found), name)
            else:
                os.setxattr(self.beneath.path(found), name, value, flags)

    def sync(self, path: bytes) -> None:
        """fsync(2) of a directory."""
        with self.look(path) as found:
            self.beneath.sync(found)

    def statfs(self) -> os.statvfs_result:
        return os.statvfs(self.beneath.path(self._root))

    # --- parts ---

    def parent(self, path: bytes) -> tuple[Handle, bytes]:
        """The directory that holds the last name, and that name."""
        head, _, name = path.rpartition(b"/")
        if not name:
            raise OSError(errno.EBUSY, os.strerror(errno.EBUSY))
        found = self.look(head)
        if not found.is_directory:
            found.close()
            raise NotADirectoryError(errno.ENOTDIR, os.strerror(errno.ENOTDIR))
        return found, name

    def _attributed(self, path: bytes, expect: Identity) -> Handle:
        found = self.expected(path, expect)
        if stat.S_ISLNK(found.status.st_mode):
            found.close()
            raise OSError(errno.EOPNOTSUPP, os.strerror(errno.EOPNOTSUPP))
        return found

    def _made(self, parent: Handle, name: bytes) -> os.stat_result:
        status = os.stat(name, dir_fd=parent.fd, follow_symlinks=False)
        owner = parent.status
        if os.geteuid() == 0 and (status.st_uid, status.st_gid) != (owner.st_uid, owner.st_gid):
            os.chown(name, owner.st_uid, owner.st_gid, dir_fd=parent.fd, follow_symlinks=False)
            status = os.stat(name, dir_fd=parent.fd, follow_symlinks=False)
        return status

    def _give(self, fd: int, owner: os.stat_result) -> None:
        if os.geteuid() == 0:
            status = os.fstat(fd)
            if (status.st_uid, status.st_gid) != (owner.st_uid, owner.st_gid):
                os.fchown(fd, owner.st_uid, owner.st_gid)


def set_size(fd: int, size: int) -> os.stat_result:
    """Cut or lengthen an open file to `size` bytes; what it is then. Closes the descriptor."""
    try:
        os.ftruncate(fd, size)
        return os.fstat(fd)
    finally:
        os.close(fd)


def as_expected(found: Handle, expect: Identity | None) -> Handle:
    """What was found, if the caller knows it, or names nothing that it knows. Otherwise it is closed,
    and that is `ESTALE`."""
    if expect is not None and found.identity != expect:
        found.close()
        raise OSError(errno.ESTALE, os.strerror(errno.ESTALE))
    return found


def check_regular(found: Handle) -> None:
    """Raises when it is a directory or a link."""
    if found.is_directory:
        raise IsADirectoryError(errno.EISDIR, os.strerror(errno.EISDIR))
    if stat.S_ISLNK(found.status.st_mode):
        raise OSError(errno.ELOOP, os.strerror(errno.ELOOP))


def check_writable(beneath: Beneath, found: Handle) -> None:
    """Raises when the object is a file whose content may not be changed."""
    if found.status.st_mode & SET_ID:
        raise Untouchable("has a set-id bit, so it is never changed")
    if not beneath.may_write(found):
        raise PermissionError(errno.EACCES, os.strerror(errno.EACCES))


def _kind(entry: os.DirEntry[str]) -> int:
    if entry.is_symlink():
        return stat.S_IFLNK
    if entry.is_dir(follow_symlinks=False):
        return stat.S_IFDIR
    return stat.S_IFREG if entry.is_file(follow_symlinks=False) else 0
