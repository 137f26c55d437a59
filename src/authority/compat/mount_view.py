"""What a run sees of a mount: names, attributes, listings, links, extended attributes.

Rules
- Every look is judged and tallied (`door.glance`). A name that the run may not see does not exist for
  it: ENOENT, and no listing has it. What may be read or written may be looked at, and so may the
  directories and links on the way there.
- What a look answers is about a name that the program chose: it raises the run's label by secrets, and
  by what is recorded of the file, since its size and times are its writer's words. The names of a
  listing, the text of a link and an attribute's value are words that somebody else may have written
  (`fs.show`), and count as read.
- What is shown because the run's own program needs it (`shown`) may be looked at and read although no
  rule says so; a rule that denies it still holds.
- What something else is put upon inside (`over`), and the way there, may be looked at and no more.
- Owner and group are those of whoever asks, whoever owns the file outside. Modes, sizes and times are
  true.
- Extended attributes: those of the `user.` space alone.
"""

from __future__ import annotations

import asyncio
import errno
import os
import stat
from collections.abc import Coroutine

from authority.compat import fuse_abi as abi
from authority.compat import fuse_reply as out
from authority.compat.fuse_wire import Request
from authority.compat.mount_bench import Bench, state_facts
from authority.compat.mount_handles import Directory
from authority.compat.mount_nodes import Node, below
from authority.effects.beneath import Handle, Untouchable, WouldWait
from authority.effects.tree import Row
from authority.kernel.policy_sections import Judgement
from authority.kernel.resources import Resource

Answer = bytes | Coroutine[None, None, bytes]
_ALLOWED = Judgement(True, "shown")
_USER = b"user."
_YIELD_EVERY = 200
_MASK = 2**64 - 1
_FOLDER_SIZE = 4096


class View:
    """The looks of one mount."""

    def __init__(self, bench: Bench) -> None:
        self._bench = bench
        self._nodes = bench.nodes

    # --- judging ---

    def sees(self, resource: Resource, effect: str = "fs.look") -> Judgement:
        """Whether the run may look at this; counted. `fs.show`: words that stand there are shown."""
        bench = self._bench
        if bench.handles.stopped:
            raise OSError(errno.EIO, os.strerror(errno.EIO))
        if self.shows(resource):
            return _ALLOWED
        segments = resource.segments
        if bench.over.covers(segments) or bench.over.above(segments):
            return _ALLOWED
        judgement = bench.door.glance(effect, resource, bench.verb)
        if judgement.allowed or judgement.rule:
            return judgement
        if bench.shown.above(segments):
            return Judgement(True, "shown", partial=True)
        return judgement

    def shows(self, resource: Resource) -> bool:
        """Whether it is shown though no rule covers it."""
        if not self._bench.shown.covers(resource.segments):
            return False
        judgement = self._bench.judge("fs.look", resource)
        return judgement.allowed or not judgement.rule

    def _listed(self, resource: Resource, kind: int) -> bool:
        """Whether a directory's row is shown; not counted by itself."""
        shown = self._bench.shown
        judgement = self._bench.judge("fs.look", resource)
        if judgement.allowed:
            return not judgement.partial or kind != stat.S_IFREG
        if judgement.rule:
            return False
        return shown.covers(resource.segments) or (
            kind != stat.S_IFREG and shown.above(resource.segments)
        )

    def _visible(self, node: Node, effect: str = "fs.look") -> Resource:
        resource = self._nodes.resource(node)
        if not self.sees(resource, effect).allowed:
            raise OSError(errno.ENOENT, os.strerror(errno.ENOENT))
        return resource

    # --- names and attributes ---

    def lookup(self, request: Request) -> Answer:
        parent = self._nodes.get(request.nodeid)
        (name,) = request.names
        path, resource = self._nodes.child(parent, name)
        judgement = self.sees(resource)
        if not judgement.allowed:
            return out.error(request.unique, errno.ENOENT)
        try:
            with self._bench.files.look(path, now=True) as found:
                return self._entered(request, parent, name, found, judgement)
        except WouldWait:
            return self._lookup_waiting(request, parent, name, path, judgement)
        except Untouchable:
            return self._untouchable(request)

    async def _lookup_waiting(
        self, request: Request, parent: Node, name: bytes, path: bytes, judgement: Judgement
    ) -> bytes:
        try:
            found = await self._bench.thread(lambda: self._bench.files.look(path))
        except Untouchable:
            return self._untouchable(request)
        with found:
            return self._entered(request, parent, name, found, judgement)

    def _untouchable(self, request: Request) -> bytes:
        """What is neither file nor folder does not exist; what lies behind a link is asked for anew."""
        there = self.there(request.nodeid)
        return out.error(request.unique, errno.ENOENT if there else errno.ESTALE)

    def there(self, nodeid: int) -> bool:
        """Whether a node that has a name is still what the kernel was told of, as far as that can be
        said at once."""
        try:
            node = self._nodes.get(nodeid)
            if not self._nodes.attached(node):
                return True
            with self._bench.files.look(self._nodes.path(node), now=True) as found:
                return node.stands_for(found.identity, found.status.st_mode)
        except WouldWait:
            return True
        except (OSError, Untouchable):
            return False

    def _entered(
        self, request: Request, parent: Node, name: bytes, found: Handle, judgement: Judgement
    ) -> bytes:
        if judgement.partial and stat.S_ISREG(found.status.st_mode):
            return out.error(request.unique, errno.ENOENT)
        node = self._nodes.enter(parent, name, found.identity, found.status.st_mode)
        self._several(node, found.status)
        return out.reply(request.unique, self.entry(request, node, found.status))

    def entry(self, request: Request, node: Node, status: os.stat_result) -> bytes:
        """The body that tells the kernel of a node."""
        return out.entry_out(node.id, 0, self.attr(request, status))

    def attr(self, request: Request, status: os.stat_result) -> out.Attr:
        """The attributes as the run sees them. How much is in a folder shows when it is listed."""
        folder = stat.S_ISDIR(status.st_mode)
        atime, atime_ns = divmod(status.st_atime_ns, 10**9)
        mtime, mtime_ns = divmod(status.st_mtime_ns, 10**9)
        ctime, ctime_ns = divmod(status.st_ctime_ns, 10**9)
        return out.Attr(
            ino=status.st_ino,
            size=_FOLDER_SIZE if folder else status.st_size,
            blocks=_FOLDER_SIZE // 512 if folder else status.st_blocks,
            atime=atime & _MASK,
            mtime=mtime & _MASK,
            ctime=ctime & _MASK,
            atime_ns=atime_ns,
            mtime_ns=mtime_ns,
            ctime_ns=ctime_ns,
            mode=status.st_mode,
            nlink=1 if folder else status.st_nlink,
            uid=request.uid,
            gid=request.gid,
        )

    def getattr(self, request: Request) -> Answer:
        node = self._nodes.get(request.nodeid)
        if (status := self.open_status(node, request)) is not None:
            return out.reply(request.unique, out.attr_out(self.attr(request, status)))
        self._visible(node)
        path = self._nodes.path(node)
        try:
            with self._bench.files.look(path, now=True) as found:
                return self._attributes(request, node, found)
        except WouldWait:
            return self._getattr_waiting(request, node, path)

    async def _getattr_waiting(self, request: Request, node: Node, path: bytes) -> bytes:
        found = await self._bench.thread(lambda: self._bench.files.look(path))
        with found:
            return self._attributes(request, node, found)

    def open_status(self, node: Node, request: Request) -> os.stat_result | None:
        """The status by an open file: of the one that is named, or of what has lost its name."""
        handles = self._bench.handles
        if request.opcode == abi.GETATTR and request.head.flags & abi.GETATTR_FH:
            handle = handles.file(request.head.fh)
        elif node.parent is None and request.nodeid != abi.ROOT_ID:
            found = handles.of(node)
            if found is None:
                return None
            handle = found
        else:
            return None
        with handle.use() as fd:
            return os.fstat(fd)

    def _attributes(self, request: Request, node: Node, found: Handle) -> bytes:
        if not node.stands_for(found.identity, found.status.st_mode):
            raise OSError(errno.ESTALE, os.strerror(errno.ESTALE))
        self._several(node, found.status)
        return out.reply(request.unique, out.attr_out(self.attr(request, found.status)))

    def _several(self, node: Node, status: os.stat_result) -> None:
        """A file with several names has the label of what was written under any of them."""
        if stat.S_ISREG(status.st_mode) and status.st_nlink > 1:
            resource = self._nodes.resource(node)
            if self._bench.judge("fs.look", resource).allowed:
                facts = {**state_facts(status), "size": status.st_size}
                self._bench.door.glance("fs.look", resource, self._bench.verb, facts)

    async def readlink(self, request: Request) -> bytes:
        node = self._nodes.get(request.nodeid)
        self._visible(node, "fs.show")
        path = self._nodes.path(node)
        text = await self._bench.thread(lambda: self._bench.files.readlink(path))
        return out.reply(request.unique, text)

    async def access(self, request: Request) -> bytes:
        node = self._nodes.get(request.nodeid)
        resource = self._visible(node)
        judge, mask = self._bench.judge, request.head.mask
        path = self._nodes.path(node)
        found = await self._bench.thread(lambda: self._bench.files.look(path))
        with found:
            mode, directory = found.status.st_mode, found.is_directory
        reads = (
            self.shows(resource) or judge("fs.list" if directory else "fs.open", resource).allowed
        )
        writes = judge("fs.modify", resource).allowed and bool(mode & 0o222)
        if (
            (mask & os.R_OK and not reads and not directory)
            or (mask & os.W_OK and not writes)
            or (mask & os.X_OK and not directory and not mode & 0o111)
        ):
            return out.error(request.unique, errno.EACCES)
        return out.reply(request.unique)

    # --- directories ---

    async def opendir(self, request: Request) -> bytes:
        bench = self._bench
        node = self._nodes.get(request.nodeid)
        resource = self._visible(node, "fs.show")
        with bench.handles.place():
            directory = Directory(node, resource)
            fh = bench.handles.add(directory)
        try:
            await self._fill(directory)
        except OSError:
            self.close(fh)
            raise
        return out.reply(request.unique, out.open_out(fh, 0))

    async def readdir(self, request: Request) -> bytes:
        head = request.head
        directory = self._bench.handles.directory(head.fh)
        if not head.offset:
            await self._fill(directory)  # from the beginning: what is there now
        rows = directory.rows or []
        some = (
            (row.ino, at, row.kind >> 12, row.name)
            for at, row in enumerate(rows[head.offset :], head.offset + 1)
        )
        return out.reply(request.unique, out.dirents(some, min(head.size, 1 << 20)))

    async def _fill(self, directory: Directory) -> None:
        async with self._bench.handles.listing:
            await self._fill_alone(directory)

    async def _fill_alone(self, directory: Directory) -> None:
        bench, node = self._bench, directory.node
        path = self._nodes.path(node)
        found = await bench.thread(lambda: bench.files.rows(path))
        here = Row(b".", node.identity[1], stat.S_IFDIR)
        rows = [here, Row(b"..", here.ino, stat.S_IFDIR)]
        for number, row in enumerate(found, 1):
            try:
                child = below(directory.resource, row.name)
            except OSError:
                continue  # a name that no resource can have
            if self._listed(child, row.kind):
                rows.append(row)
            if not number % _YIELD_EVERY:
                await asyncio.sleep(0)
        bench.handles.fill(directory, rows)

    def close(self, fh: int) -> None:
        """A directory is closed."""
        directory = self._bench.handles.remove(fh)
        self._nodes.closed(directory.node, fh)

    # --- what else there is to see ---

    async def statfs(self, request: Request) -> bytes:
        bench = self._bench
        self._visible(self._nodes.get(abi.ROOT_ID))
        found = await bench.thread(bench.files.statfs)
        body = out.statfs_out(
            found.f_blocks,
            found.f_bfree,
            found.f_bavail,
            found.f_files,
            found.f_ffree,
            found.f_bsize,
            found.f_frsize,
        )
        return out.reply(request.unique, body)

    async def getxattr(self, request: Request) -> bytes:
        bench, node = self._bench, self._nodes.get(request.nodeid)
        (name,) = request.names
        if not name.startswith(_USER):
            return out.error(request.unique, errno.ENODATA)
        self._visible(node, "fs.show")
        path, expect = self._nodes.path(node), node.identity
        value = await bench.thread(lambda: bench.files.getxattr(path, name, expect))
        return _sized(request, value)

    async def listxattr(self, request: Request) -> bytes:
        bench, node = self._bench, self._nodes.get(request.nodeid)
        self._visible(node, "fs.show")
        path, expect = self._nodes.path(node), node.identity
        names = await bench.thread(lambda: bench.files.listxattr(path, expect))
        return _sized(request, b"".join(n + b"\0" for n in names if n.startswith(_USER)))


def _sized(request: Request, value: bytes) -> bytes:
    if not request.head.size:
        return out.reply(request.unique, out.xattr_size_out(len(value)))
    if len(value) > request.head.size:
        return out.error(request.unique, errno.ERANGE)
    return out.reply(request.unique, value)
