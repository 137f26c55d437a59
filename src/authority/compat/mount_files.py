"""Open files of a mount: opening, reading, writing, and what is said when they are closed.

Rules
- Opening for reading is one request: all of the file counts (`file_bytes`), and its label joins the
  run's before the first byte is given. What comes to the file later is asked for when it is read.
- Opening for changing is one request, with a lease: so many bytes may be written before the next
  one (`mount_leases`).
- When a program closes its descriptor (FLUSH), the outcome is appended: how much was written, the
  size, and a digest where the whole content passed by in order or is short. Writing on after that
  takes a new lease.
- The descriptor is of the object that was judged. A file with a name elsewhere (`mount_links`) is not
  opened for changing.
- What the run made with this very opening it may read back without a rule that lets it read.
- Nothing is cached (`FOPEN_DIRECT_IO`), so each read and write comes here.
"""

from __future__ import annotations

import errno
import os
import stat
from collections.abc import Callable
from functools import partial

from authority.compat import fuse_abi as abi
from authority.compat import fuse_reply as out
from authority.compat.fuse_wire import MAX_WRITE, Request
from authority.compat.mount_bench import Bench, identity_facts, inode_facts, state_facts, why
from authority.compat.mount_changes import Changes
from authority.compat.mount_handles import Handle
from authority.compat.mount_leases import FIRST, Leases
from authority.compat.mount_links import Links
from authority.compat.mount_nodes import Node
from authority.compat.mount_own import check_mode, mode_for
from authority.compat.mount_view import Answer, View
from authority.effects.beneath import Handle as Looked
from authority.effects.beneath import Untouchable, WouldWait
from authority.effects.storage import QUICK
from authority.effects.tree import SET_ID, check_regular
from authority.kernel.codes import Code
from authority.kernel.policy_persist import OWN
from authority.kernel.policy_sections import keeps_all
from authority.kernel.requests import FsModify, FsOpen
from authority.kernel.resources import Resource

QUICK_READ = 128 * 1024
KEPT_MOST = 16 * 1024 * 1024
"""The largest file whose content is kept when it is opened, where the policy asks for that."""
_WRITE_CACHE = 1 << 0
_MAX_INTEGER = 2**53 - 1


class OpenFiles:
    """The open files of one mount."""

    def __init__(
        self, bench: Bench, view: View, changes: Changes, links: Links, leases: Leases
    ) -> None:
        self._bench = bench
        self._leases = leases
        self._view = view
        self._changes = changes
        self._links = links
        self._nodes = bench.nodes
        self._handles = bench.handles

    # --- opening ---

    async def open(self, request: Request) -> bytes:
        node = self._nodes.get(request.nodeid)
        flags = request.head.flags
        with self._handles.place():
            handle = await self._opened(node, self._nodes.resource(node), flags)
        how = abi.OPEN_DIRECT_IO | (0 if handle.writable else abi.OPEN_NO_FLUSH)
        return out.reply(request.unique, out.open_out(handle.fh, how))

    async def _opened(self, node: Node, resource: Resource, flags: int) -> Handle:
        wants = flags & os.O_ACCMODE
        changes = wants != os.O_RDONLY or bool(flags & os.O_TRUNC)
        if not changes:
            return await self._open_to_read(node, resource)
        if wants == os.O_RDWR and not flags & os.O_TRUNC:
            # Two rights, so two requests; the reading one is asked for first and holds nothing.
            reading = await self._open_to_read(node, resource)
            self.release_handle(reading.fh)
            counted = reading.counted
        else:
            counted = 0
        handle = await self._open_to_change(node, resource, flags)
        handle.readable = wants == os.O_RDWR
        handle.counted = counted
        if handle.readable and flags & os.O_TRUNC:
            handle.counted = None
        return handle

    async def _open_to_read(self, node: Node, resource: Resource) -> Handle:
        """What was looked at is held while it is asked for, and is what is opened."""
        bench, path = self._bench, self._nodes.path(node)
        try:
            found = bench.files.look(path, now=True)
        except WouldWait:
            found = await bench.thread(lambda: bench.files.look(path))
        with found:
            if not node.stands_for(found.identity, found.status.st_mode):
                raise OSError(errno.ESTALE, os.strerror(errno.ESTALE))
            check_regular(found)
            shown = self._view.shows(resource)
            size = min(found.status.st_size, _MAX_INTEGER)
            fd = await (self._opened_file(found) if shown else self._read(found, resource, size))
        handle = Handle(node, resource, fd)
        handle.readable = True
        handle.counted = None if shown else size
        self._handles.add(handle)
        return handle

    async def _opened_file(self, found: Looked) -> int:
        opening = partial(self._bench.files.read, found)
        return opening() if found.kind in QUICK else await self._bench.thread(opening)

    async def _read(self, found: Looked, resource: Resource, size: int) -> int:
        bench = self._bench
        arguments = FsOpen(size=size, **identity_facts(found.status))
        flow = await bench.admit("fs.open", resource, arguments)
        try:
            fd = await self._opened_file(found)
        except (OSError, Untouchable) as error:
            flow.settle(
                "failed", code=Code.EFFECT_FAILED, spent={"file_bytes": 0}, facts=why(error)
            )
            raise
        now = {**state_facts(os.fstat(fd)), "size": size}
        bench.door.glance("fs.open", resource, bench.verb, now)
        if size <= KEPT_MOST and keeps_all(bench.door.policy.budgets):
            try:
                await flow.keep(await bench.thread(lambda: os.pread(fd, size, 0)))
            except BaseException:
                os.close(fd)
                raise
        flow.settle("done", facts={"size": size})
        return fd

    async def _open_to_change(self, node: Node, resource: Resource, flags: int) -> Handle:
        bench, path, expect = self._bench, self._nodes.path(node), node.identity
        verb = await self._changes.verb("fs.modify", path, resource)
        truncate = bool(flags & os.O_TRUNC)
        lease = self._leases.lease(FIRST)
        how = os.O_RDWR if flags & os.O_ACCMODE == os.O_RDWR else os.O_WRONLY

        def perform() -> int:
            fd = bench.files.open(path, how, expect)
            try:
                status = os.fstat(fd)
                self._links.check_status(status)
                if verb == OWN:
                    check_mode(resource, status.st_mode)
                if truncate:
                    os.ftruncate(fd, 0)
                return fd
            except BaseException:
                os.close(fd)
                raise

        arguments = FsModify(lease=lease, truncate=0 if truncate else None)
        async with bench.still.shared():
            handle = await self._admitted(node, resource, arguments, perform, verb)
        if truncate:
            handle.begins()
        return handle

    async def _admitted(
        self,
        node: Node | None,
        resource: Resource,
        arguments: FsModify,
        perform: Callable[[], int],
        verb: str,
        created: tuple[Node, bytes] | None = None,
    ) -> Handle:
        """A handle with its first lease. The flow stays open until the handle is flushed."""
        bench = self._bench
        label_at = bench.door.label_at()
        known = inode_facts(node.identity) if node is not None else None
        flow = await bench.admit("fs.modify", resource, arguments, verb, known)
        try:
            fd = await bench.thread(perform)
        except (OSError, Untouchable) as error:
            flow.settle(
                "failed", code=Code.EFFECT_FAILED, spent={"file_bytes": 0}, facts=why(error)
            )
            raise
        if node is None:
            assert created is not None
            status = os.fstat(fd)
            node = self._nodes.enter(*created, (status.st_dev, status.st_ino), status.st_mode)
        handle = Handle(node, resource, fd)
        handle.writable = True
        handle.verb, handle.flow, handle.label_at = verb, flow, label_at
        handle.lease = handle.left = arguments.lease
        handle.facts = identity_facts(os.fstat(fd)) | ({"created": True} if created else {})
        try:
            self._handles.add(handle)
        except OSError:
            self._leases.settle(handle)
            raise
        flow.on_stop(handle.stop)
        if verb == OWN:
            bench.own.note(resource, "fs.modify")
        return handle

    async def create(self, request: Request) -> bytes:
        handle = await self._created(request, request.head.flags, request.head.mode)
        node = handle.node
        with handle.use() as fd:
            entry = self._view.entry(request, node, os.fstat(fd))
        return out.reply(request.unique, entry, out.open_out(handle.fh, abi.OPEN_DIRECT_IO))

    async def mknod(self, request: Request) -> bytes:
        """Only a regular file is made."""
        if stat.S_IFMT(request.head.mode) not in (0, stat.S_IFREG):
            raise PermissionError(errno.EPERM, os.strerror(errno.EPERM))
        handle = await self._created(request, os.O_WRONLY | os.O_EXCL, request.head.mode)
        with handle.use() as fd:
            status = os.fstat(fd)
        self._leases.settle(handle)
        self.release_handle(handle.fh)
        return out.reply(request.unique, self._view.entry(request, handle.node, status))

    async def _created(self, request: Request, flags: int, mode: int) -> Handle:
        bench = self._bench
        parent = self._nodes.get(request.nodeid)
        (name,) = request.names
        path, resource = self._nodes.child(parent, name)
        verb = await self._changes.verb("fs.modify", path, resource)
        how = os.O_RDWR if flags & os.O_ACCMODE == os.O_RDWR else os.O_WRONLY
        given = mode & 0o777 & ~SET_ID
        if verb == OWN:
            given = mode_for(resource, given)

        def perform() -> int:
            return self._bench.files.create(path, how, given)

        arguments = FsModify(lease=self._leases.lease(FIRST), create=True)
        with self._handles.place():
            try:
                async with bench.still.shared():
                    handle = await self._admitted(
                        None, resource, arguments, perform, verb, (parent, name)
                    )
            except FileExistsError:
                if flags & os.O_EXCL:
                    raise
                return await self._existing(parent, name, path, resource, flags)
        handle.readable = how == os.O_RDWR
        handle.counted = None
        handle.begins()
        return handle

    async def _existing(
        self, parent: Node, name: bytes, path: bytes, resource: Resource, flags: int
    ) -> Handle:
        """It appeared between the kernel's look and ours: open what is there."""
        if not self._view.sees(resource).allowed:
            raise PermissionError(errno.EACCES, os.strerror(errno.EACCES))
        with await self._bench.thread(lambda: self._bench.files.look(path)) as found:
            node = self._nodes.enter(parent, name, found.identity, found.status.st_mode)
        return await self._opened(node, resource, flags)

    # --- reading ---

    def read(self, request: Request) -> Answer:
        head = request.head
        handle = self._handles.file(head.fh)
        if not handle.readable:
            return out.error(request.unique, errno.EBADF)
        size = min(head.size, MAX_WRITE)
        if handle.counted is not None and head.offset + size > handle.counted:
            with handle.use() as fd:
                grown = os.fstat(fd).st_size > handle.counted
            if grown:
                return self._read_beyond(request, handle, size)
        if size > QUICK_READ:
            return self._read_waiting(request, handle, size)
        buffer = bytearray(size)
        with handle.use() as fd:
            try:
                count = os.preadv(fd, [buffer], head.offset, os.RWF_NOWAIT)
            except OSError as error:
                if error.errno not in (errno.EAGAIN, errno.EOPNOTSUPP):
                    raise
                return self._read_waiting(request, handle, size)
            if count < size and head.offset + count < os.fstat(fd).st_size:
                return self._read_waiting(request, handle, size)
        return out.reply(request.unique, memoryview(buffer)[:count])

    async def _read_waiting(self, request: Request, handle: Handle, size: int) -> bytes:
        with handle.use() as fd:
            data = await self._bench.thread(lambda: os.pread(fd, size, request.head.offset))
        return out.reply(request.unique, data)

    async def _read_beyond(self, request: Request, handle: Handle, size: int) -> bytes:
        """Past what was counted: what came to the file since is asked for."""
        async with handle.renewing:
            with handle.use() as fd:
                status = os.fstat(fd)
            assert handle.counted is not None
            end = min(request.head.offset + size, status.st_size)
            more = end - handle.counted
            if more > 0:
                resource = self._leases.resource(handle)
                arguments = FsOpen(size=min(more, _MAX_INTEGER), **identity_facts(status))
                flow = await self._bench.admit("fs.open", resource, arguments)
                now = {**state_facts(status), "size": status.st_size}
                self._bench.door.glance("fs.open", resource, self._bench.verb, now)
                flow.settle("done", facts={"size": status.st_size})
                handle.counted = end
            size = min(size, max(0, handle.counted - request.head.offset))
        return await self._read_waiting(request, handle, size)

    # --- writing ---

    async def write(self, request: Request) -> bytes:
        head, data = request.head, request.data
        handle = self._leases.writable(head.fh)
        await self._leases.take(handle, len(data))
        append = bool(head.flags & os.O_APPEND) and not head.write_flags & _WRITE_CACHE

        def perform(fd: int) -> int:
            at, done = head.offset, 0
            while done < len(data):
                if append:
                    done += os.pwritev(fd, [data[done:]], at + done, os.RWF_APPEND)
                else:
                    done += os.pwrite(fd, data[done:], at + done)
            if append:
                handle.hasher = None
            else:
                handle.wrote(at, data)
            return done

        with handle.use() as fd:
            written = await self._bench.thread(lambda: perform(fd))
        handle.used -= len(data) - written
        return out.reply(request.unique, out.write_out(written))

    # --- closing ---

    async def flush(self, request: Request) -> bytes:
        """A program closes a descriptor: settle what it wrote before close() returns."""
        handle = self._handles.file(request.head.fh)
        if handle.flow is not None and not handle.stopped:
            async with handle.renewing:
                facts = await self._leases.content(handle)
                self._leases.settle(handle, facts)
        return out.reply(request.unique)

    def release(self, request: Request) -> Answer:
        handle = self._handles.file(request.head.fh)
        if handle.flow is None:
            self.release_handle(request.head.fh)
            return out.reply(request.unique)
        return self._release_changed(request, handle)

    async def _release_changed(self, request: Request, handle: Handle) -> bytes:
        async with handle.renewing:
            facts = {} if handle.stopped else await self._leases.content(handle)
            self._leases.settle(handle, facts)
        self.release_handle(handle.fh)
        return out.reply(request.unique)

    def release_handle(self, fh: int) -> None:
        handle = self._handles.remove(fh)
        self._nodes.closed(handle.node, fh)
