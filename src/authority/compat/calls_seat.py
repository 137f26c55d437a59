"""One mediated folder: its real files, asked as a mount asks, and the empty one that stands for it.

The *stand-in* is a folder of the run's own memory file system at the folder's path. It holds
directories alone (and, for programs that change into a folder by way of a link, those links), made
here as a program comes by, empty of files. So a working folder, a directory's descriptor and `..` are
the kernel's own business, and lead to nothing: whatever a program does with them natively, there is no
file there. The run can't write to it.

Rules
- A question is the message that a kernel with a mount would send (`fuse_wire`), answered by the same
  desk. What a call looked up is forgotten when it is answered.
- The stand-in is walked like any foreign folder: beneath its handle, through no link.
- A directory has the device and the number of its stand-in, whichever way it is asked for; a file has
  its own.
"""

from __future__ import annotations

import contextlib
import errno
import os
import stat
import struct
from typing import Any, Final

from authority.compat import fuse_abi as abi
from authority.compat.calls_base import Case
from authority.compat.calls_wire import Status, status
from authority.compat.fuse_wire import Request
from authority.compat.mount_desk import Desk
from authority.compat.mount_nodes import Nodes
from authority.effects.beneath import Beneath, Handle, Untouchable
from authority.kernel.policy_protect import PathSet

_OUT: Final = struct.Struct("<IiQ")
_ENTRY: Final = struct.Struct("<QQQQII")
_ATTR_HEAD: Final = 16


class StandIn:
    """The empty folder at a mediated folder's path."""

    def __init__(self, beneath: Beneath, fd: int) -> None:
        self._beneath = beneath
        self.fd = fd

    def close(self) -> None:
        os.close(self.fd)

    def directory(self, path: bytes) -> Handle:
        """The directory that stands for the one at `path`, made if it is not there yet."""
        try:
            found = self._beneath.look(path, self.fd, links=True)
            if found.is_directory:
                return found
            found.close()
        except (FileNotFoundError, NotADirectoryError, Untouchable):
            pass
        head, _, name = path.rpartition(b"/")
        if not name:
            raise OSError(errno.EIO, "the stand-in of a folder is gone")
        with self.directory(head) as parent:
            try:
                os.mkdir(name, 0o755, dir_fd=parent.fd)
            except FileExistsError:
                with contextlib.suppress(OSError):
                    os.unlink(name, dir_fd=parent.fd)
                    os.mkdir(name, 0o755, dir_fd=parent.fd)
            made = self._beneath.look(name, parent.fd, links=True)
            if made.is_directory:
                self._beneath.change_mode(made, 0o755)
                return made
            made.close()
            raise NotADirectoryError(errno.ENOTDIR, os.strerror(errno.ENOTDIR))

    def opened(self, path: bytes) -> int:
        """A descriptor for the program: of nothing but names of directories."""
        with self.directory(path) as found:
            fd = self._beneath.reopen(found, os.O_RDONLY | os.O_DIRECTORY)
        os.set_blocking(fd, True)
        return fd

    def link(self, path: bytes, text: bytes) -> None:
        """The same link here: the kernel follows it for a call that goes on."""
        head, _, name = path.rpartition(b"/")
        with self.directory(head) as parent:
            try:
                if os.readlink(name, dir_fd=parent.fd) == text:
                    return
            except OSError:
                pass
            self._remove(parent.fd, name)
            os.symlink(text, name, dir_fd=parent.fd)

    def remove(self, path: bytes) -> None:
        """What stood for something that is gone."""
        head, _, name = path.rpartition(b"/")
        try:
            with self._beneath.look(head, self.fd) as parent:
                self._remove(parent.fd, name)
        except (FileNotFoundError, NotADirectoryError, Untouchable):
            return

    def _remove(self, at: int, name: bytes) -> None:
        try:
            os.unlink(name, dir_fd=at)
            return
        except FileNotFoundError:
            return
        except (IsADirectoryError, PermissionError):
            pass
        flags = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC
        fd = os.open(name, flags, dir_fd=at)
        try:
            for inner in os.listdir(fd):
                self._remove(fd, os.fsencode(inner))
        finally:
            os.close(fd)
        os.rmdir(name, dir_fd=at)

    def move(self, old: bytes, new: bytes, *, exchange: bool) -> None:
        """A directory was renamed: who stands in it goes along."""
        (above, name), (below, last) = (path.rpartition(b"/")[::2] for path in (old, new))
        try:
            with self.directory(above) as source, self.directory(below) as target:
                if exchange:
                    self.directory(old).close()
                    self.directory(new).close()
                else:
                    self._remove(target.fd, last)
                self._beneath.move(source, name, target, last, replace=True, exchange=exchange)
        except FileNotFoundError:
            return  # nobody came by the old one yet


class Seat:
    """One folder. `path` is where it lies in the run."""

    def __init__(
        self, desk: Desk, stand_in: StandIn, path: bytes, over: PathSet, uid: int, gid: int
    ) -> None:
        self.desk = desk
        self.stand_in = stand_in
        self.path = path
        self.over = over
        self.uid, self.gid = uid, gid
        self.nodes: Nodes = desk.bench.nodes

    async def ask(
        self, opcode: int, node: int, head: Any = None, *names: bytes, data: bytes = b""
    ) -> bytes:
        """The body of the answer. Raises `OSError` and `Untouchable`."""
        request = Request(
            opcode, 1, node, self.uid, self.gid, 0, head, names, memoryview(data)
        )  # fmt: skip
        answer = self.desk.handlers[opcode](request)
        found = answer if isinstance(answer, bytes) else await answer
        _, number, _ = _OUT.unpack_from(found)
        if number:
            raise OSError(-number, os.strerror(-number))
        return found[_OUT.size :]

    async def look(self, case: Case, parent: int, name: bytes) -> tuple[int, bytes] | None:
        """(node, attributes) of a name, None when it is not there."""
        try:
            return self.entry(case, await self.ask(abi.LOOKUP, parent, None, name))
        except FileNotFoundError:
            return None

    def entry(self, case: Case, body: bytes) -> tuple[int, bytes]:
        """A node that the desk told of."""
        node = _ENTRY.unpack_from(body)[0]
        case.told.append((self, node))
        return node, body[_ENTRY.size : _ENTRY.size + 88]

    def beneath(self, node: int) -> bytes:
        """Where a node lies beneath the folder. Raises `OSError` (ESTALE)."""
        return self.nodes.path(self.nodes.get(node))

    async def status(self, node: int) -> Status:
        body = await self.ask(abi.GETATTR, node, _ANY)
        one = status(body[_ATTR_HEAD:], self.nodes.get(node).identity[0])
        if stat.S_ISDIR(one.mode):
            with self.stand_in.directory(self.beneath(node)) as found:
                here = os.fstat(found.fd)
            return one._replace(dev=here.st_dev, ino=here.st_ino)
        return one

    def close(self) -> None:
        self.stand_in.close()


class _Getattr:
    flags = 0
    fh = 0


_ANY: Final = _Getattr()
