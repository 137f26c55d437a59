"""A folder that keeps every change to itself: what is written goes to a private folder beside it.

Runs in any thread, one change at a time. Rules
- The *base* is never written. A file that is changed is copied to the *upper* folder first, and from
  then on that copy is the file. A name that is removed and lies in the base gets a record (`gone`); a
  directory that is made where the base had one hides the base's (`opaque`). The records are a table of
  our own, in memory, written when the folder is closed.
- What was opened for reading before keeps reading the base. How both folders are seen as one stands in
  `overlay_layers`.
- For each path that was changed or removed the base's state at that moment is recorded (`before`), so
  that whoever applies the changes sees whether the base moved on.
- A directory of the base is not renamed (EXDEV: programs copy it then); one that was made here is.
- A directory of the base keeps its mode and times: setting the mode is refused, the times are let be.
- A copy has the content, mode and times of its file, no other name and no extended attributes. It takes
  room like what is written (`room`). One that does not come to its end is none: the base's stays the
  file.
"""

from __future__ import annotations

import errno
import os
import stat
import threading
from pathlib import Path

import msgspec

from authority.effects import room
from authority.effects.beneath import Beneath, Handle
from authority.effects.overlay_layers import Layers
from authority.effects.overlay_table import before_of
from authority.effects.tree import (
    Identity,
    Times,
    check_regular,
    check_writable,
    set_size,
)

COPY_MOST = 1 << 32
_PIECE = 1 << 20


class Overlay(Layers):
    """`effects.tree.Files` over a folder that stays as it is. `store` is the private folder."""

    def __init__(self, beneath: Beneath, base: bytes, store: Path) -> None:
        upper = store / "upper"
        upper.mkdir(mode=0o700, parents=True, exist_ok=True)
        super().__init__(beneath, base, os.fsencode(upper))
        self._store = store
        self._lock = threading.RLock()

    def close(self) -> None:
        """Write the records down and let go of both folders."""
        data = msgspec.json.encode(self.table, order="sorted")
        temporary = self._store / "table.new"
        with temporary.open("wb") as file:
            file.write(data)
            os.fsync(file.fileno())
        temporary.rename(self._store / "table.json")
        self._base.close()
        self._upper.close()

    # --- copying ---

    def _note(self, path: bytes) -> None:
        """Record what the base has at a path that is changed now for the first time."""
        key = path.hex()
        if key in self.table.before:
            return
        base = self._in_base(path)
        if base is not None:
            with base:
                self.table.before[key] = before_of(base.status)

    def _parents(self, path: bytes) -> None:
        """Make the directories that lead to a path in the upper folder, as they are in the base."""
        names = path.split(b"/")[:-1]
        for depth in range(1, len(names) + 1):
            above = b"/".join(names[:depth])
            if (found := self._in_upper(above)) is not None:
                found.close()
                continue
            with self._expected(above, None) as base:
                if not base.is_directory:
                    raise NotADirectoryError(errno.ENOTDIR, os.strerror(errno.ENOTDIR))
                self._upper.mkdir(above, 0o700)
                self.table.along.add(above.hex())

    def _copied(self, path: bytes, expect: Identity | None) -> None:
        """Have the file or link in the upper folder."""
        with self._expected(path, expect) as found:
            here = self._in_upper(path)
            if here is not None:
                here.close()
                return
            self._note(path)
            self._parents(path)
            if found.is_directory:
                self._upper.mkdir(path, 0o700)
                self.table.along.add(path.hex())
                return
            if stat.S_ISLNK(found.status.st_mode):
                self._upper.symlink(path, self._base.readlink(path))
            else:
                self._copy_file(path, found)
            with self._upper.look(path) as copy:
                self._known[copy.identity] = found.identity

    def _copy_file(self, path: bytes, found: Handle) -> None:
        check_regular(found)
        check_writable(self._beneath, found)
        if found.status.st_size > COPY_MOST:
            raise OSError(errno.EFBIG, os.strerror(errno.EFBIG))
        source = self._beneath.reopen(found, os.O_RDONLY)
        try:
            target = self._upper.create(path, os.O_WRONLY, found.status.st_mode & 0o777)
            try:
                room.leave(target, found.status.st_size)
                while data := os.read(source, _PIECE):
                    room.leave(target, len(data))
                    view = memoryview(data)
                    while view:
                        view = view[os.write(target, view) :]
                os.fchmod(target, found.status.st_mode & 0o777)
                os.utime(target, ns=(found.status.st_atime_ns, found.status.st_mtime_ns))
            except BaseException:
                self._upper.unlink(path)
                raise
            finally:
                os.close(target)
        finally:
            os.close(source)

    # --- files ---

    def open(self, path: bytes, flags: int, expect: Identity | None = None) -> int:
        with self._lock:
            if flags & os.O_ACCMODE != os.O_RDONLY:
                with self._expected(path, expect) as found:
                    check_regular(found)
                self._copied(path, expect)
                return self._upper.open(path, flags)
            with self._expected(path, expect) as found:
                return self.read(found)

    def create(self, path: bytes, flags: int, mode: int) -> int:
        with self._lock:
            self._free(path)
            return self._upper.create(path, flags, mode)

    def _free(self, path: bytes) -> None:
        """Nothing has the name, and there is a directory for it."""
        try:
            self.look(path).close()
        except FileNotFoundError:
            self._note(path)
            self._parents(path)
            return
        raise FileExistsError(errno.EEXIST, os.strerror(errno.EEXIST))

    def truncate(self, path: bytes, size: int, expect: Identity) -> os.stat_result:
        return set_size(self.open(path, os.O_WRONLY, expect), size)

    def allocate(self, fd: int, mode: int, offset: int, length: int) -> None:
        self._beneath.allocate(fd, mode, offset, length)

    # --- names ---

    def mkdir(self, path: bytes, mode: int) -> os.stat_result:
        with self._lock:
            self._free(path)
            status = self._upper.mkdir(path, mode)
            if path.hex() in self.table.gone:
                self.table.gone.discard(path.hex())
                self.table.opaque.add(path.hex())
            return status

    def symlink(self, path: bytes, text: bytes) -> os.stat_result:
        with self._lock:
            self._free(path)
            return self._upper.symlink(path, text)

    def link(self, old: bytes, new: bytes, expect: Identity) -> os.stat_result:
        with self._lock:
            self._free(new)
            self._copied(old, expect)
            with self._upper.look(old) as found:
                identity = found.identity
            return self._upper.link(old, new, identity)

    def unlink(self, path: bytes) -> os.stat_result:
        with self._lock, self._expected(path, None) as found:
            if found.is_directory:
                raise IsADirectoryError(errno.EISDIR, os.strerror(errno.EISDIR))
            self._remove(path)
            return found.status

    def rmdir(self, path: bytes) -> os.stat_result:
        with self._lock, self._expected(path, None) as found:
            if not found.is_directory:
                raise NotADirectoryError(errno.ENOTDIR, os.strerror(errno.ENOTDIR))
            if self.rows(path):
                raise OSError(errno.ENOTEMPTY, os.strerror(errno.ENOTEMPTY))
            self._remove(path)
            return found.status

    def _remove(self, path: bytes) -> None:
        self._note(path)
        upper = self._in_upper(path)
        if upper is not None:
            with upper:
                (self._upper.rmdir if upper.is_directory else self._upper.unlink)(path)
        self.table.opaque.discard(path.hex())
        self._hide(path)

    def _hide(self, path: bytes) -> None:
        """What the base has at this path, if anything, is gone here."""
        base = self._in_base(path)
        if base is not None or path.hex() in self.table.before:
            self.table.gone.add(path.hex())
        if base is not None:
            base.close()

    def rename(self, old: bytes, new: bytes, *, replace: bool, exchange: bool) -> None:
        with self._lock:
            if exchange:
                raise OSError(errno.EINVAL, os.strerror(errno.EINVAL))
            with self._expected(old, None) as found:
                directory = found.is_directory
            if directory and (base := self._in_base(old)) is not None:
                base.close()
                raise OSError(errno.EXDEV, os.strerror(errno.EXDEV))
            target = self._there(new)
            if target is not None:
                with target:
                    self._check_replaced(new, target, directory=directory, replace=replace)
            self._note(new)
            self._copied(old, None)
            self._parents(new)
            if target is not None and target.is_directory:
                self._remove(new)
            hides = new.hex() in self.table.gone or target is not None
            self._upper.rename(old, new, replace=True, exchange=False)
            self._hide(old)
            if directory:
                self._moved_records(old, new)
                if hides and new.hex() in self.table.before:
                    self.table.gone.discard(new.hex())
                    self.table.opaque.add(new.hex())

    def _there(self, path: bytes) -> Handle | None:
        try:
            return self.look(path)
        except FileNotFoundError:
            return None

    def _check_replaced(
        self, path: bytes, target: Handle, *, directory: bool, replace: bool
    ) -> None:
        if not replace:
            raise FileExistsError(errno.EEXIST, os.strerror(errno.EEXIST))
        if target.is_directory:
            if not directory:
                raise IsADirectoryError(errno.EISDIR, os.strerror(errno.EISDIR))
            if self.rows(path):
                raise OSError(errno.ENOTEMPTY, os.strerror(errno.ENOTEMPTY))
        elif directory:
            raise NotADirectoryError(errno.ENOTDIR, os.strerror(errno.ENOTDIR))

    def _moved_records(self, old: bytes, new: bytes) -> None:
        """A directory that was made here: what it hides beneath goes with it."""
        for records in (self.table.gone, self.table.opaque):
            prefix = (old + b"/").hex()
            for key in [key for key in records if key.startswith(prefix)]:
                records.discard(key)
        self.table.opaque.discard(old.hex())

    # --- attributes ---

    def chmod(self, path: bytes, mode: int, expect: Identity) -> os.stat_result:
        with self._lock:
            if self._in_both(path):
                raise OSError(errno.EOPNOTSUPP, os.strerror(errno.EOPNOTSUPP))
            self._copied(path, expect)
            return self._upper.chmod(path, mode, self._raw(path))

    def utime(self, path: bytes, times: Times, expect: Identity) -> os.stat_result:
        with self._lock:
            if self._in_both(path):
                with self._expected(path, expect) as found:
                    return found.status
            self._copied(path, expect)
            return self._upper.utime(path, times, self._raw(path))

    def _raw(self, path: bytes) -> Identity:
        with self._upper.look(path) as found:
            return found.identity

    def setxattr(
        self, path: bytes, name: bytes, value: bytes | None, flags: int, expect: Identity
    ) -> None:
        with self._lock:
            self._copied(path, expect)
            self._upper.setxattr(path, name, value, flags, self._raw(path))
