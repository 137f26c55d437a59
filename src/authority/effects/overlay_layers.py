"""An overlay as it is read: two folders seen as one. Nothing here changes anything.

Rules
- What the upper folder has counts; then what the base has, unless the records say that it is gone, or
  lies below a directory that hides the base's. A directory that both have is the base's, with the names
  of both.
- A file keeps the identity that it was first seen by, also when it has been copied; so who holds it by
  identity finds it again.
"""

from __future__ import annotations

import errno
import os

from authority.effects.beneath import Beneath, Handle
from authority.effects.overlay_table import Table
from authority.effects.tree import Identity, Row, Tree, as_expected, check_regular


class _Seen(Handle):
    """A copied file, known by the identity of what it was copied from."""

    __slots__ = ("known",)
    known: Identity

    @property
    def identity(self) -> Identity:
        return self.known


class Layers:
    """The two folders and the records. `upper` holds what is changed; `base` is the folder itself."""

    def __init__(self, beneath: Beneath, base: bytes, upper: bytes) -> None:
        self._base = Tree(beneath, base)
        self._upper = Tree(beneath, upper)
        self._beneath = beneath
        self._known: dict[Identity, Identity] = {}
        self.table = Table(os.fsdecode(base))

    def _hidden(self, path: bytes) -> bool:
        """Whether the base's object at the path is gone here."""
        names = path.split(b"/")
        for depth in range(1, len(names) + 1):
            above = b"/".join(names[:depth]).hex()
            if above in self.table.gone or (depth < len(names) and above in self.table.opaque):
                return True
        return path.hex() in self.table.opaque

    def _in_upper(self, path: bytes) -> Handle | None:
        if not path:
            return None
        try:
            return self._upper.look(path)
        except (FileNotFoundError, NotADirectoryError):
            return None

    def _in_base(self, path: bytes) -> Handle | None:
        if path and self._hidden(path):
            return None
        try:
            return self._base.look(path)
        except (FileNotFoundError, NotADirectoryError):
            return None

    def look(self, path: bytes, *, now: bool = False) -> Handle:
        """As `Tree.look`; a directory that both have is the base's."""
        found = self._in_upper(path)
        if found is not None and found.is_directory and (base := self._in_base(path)) is not None:
            if base.is_directory:
                found.close()
                return base
            base.close()
        if found is None:
            found = self._in_base(path)
            if found is None:
                raise FileNotFoundError(errno.ENOENT, os.strerror(errno.ENOENT))
            return found
        known = self._known.get(found.identity)
        if known is None:
            return found
        seen = _Seen(found.fd, found.status, found.kind)
        seen.known = known
        found.fd = -1
        return seen

    def _expected(self, path: bytes, expect: Identity | None) -> Handle:
        return as_expected(self.look(path), expect)

    def rows(self, path: bytes) -> list[Row]:
        merged: dict[bytes, Row] = {}
        base = self._in_base(path)
        if base is not None:
            with base:
                if base.is_directory:
                    merged = {
                        row.name: row
                        for row in self._base.rows(path)
                        if not self._hidden(path + b"/" + row.name if path else row.name)
                    }
        upper = self._in_upper(path) if path else self._upper.look(b"")
        if upper is not None:
            with upper:
                for row in self._upper.rows(path):
                    merged[row.name] = merged.get(row.name, row)._replace(kind=row.kind)
        elif base is None:
            raise FileNotFoundError(errno.ENOENT, os.strerror(errno.ENOENT))
        return list(merged.values())

    def readlink(self, path: bytes) -> bytes:
        found = self._in_upper(path)
        if found is not None:
            found.close()
            return self._upper.readlink(path)
        self._expected(path, None).close()
        return self._base.readlink(path)

    def read(self, found: Handle) -> int:
        check_regular(found)
        plain = Handle(os.dup(found.fd), found.status, found.kind)
        with plain:
            return self._beneath.reopen(plain, os.O_RDONLY)

    def _in_both(self, path: bytes) -> bool:
        """Whether this is a directory of the base, whose attributes stay as they are."""
        base = self._in_base(path)
        if base is None:
            return False
        with base:
            return base.is_directory

    def getxattr(self, path: bytes, name: bytes, expect: Identity) -> bytes:
        self._expected(path, expect).close()
        if (found := self._in_upper(path)) is not None:
            with found:
                return self._upper.getxattr(path, name, found.identity)
        return self._base.getxattr(path, name, expect)

    def listxattr(self, path: bytes, expect: Identity) -> list[bytes]:
        self._expected(path, expect).close()
        if (found := self._in_upper(path)) is not None:
            with found:
                return self._upper.listxattr(path, found.identity)
        return self._base.listxattr(path, expect)

    def sync(self, path: bytes) -> None:
        self._expected(path, None).close()

    def statfs(self) -> os.statvfs_result:
        return self._base.statfs()
