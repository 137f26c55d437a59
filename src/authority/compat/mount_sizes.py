"""What else open files do: sizes, space, holes, copies, and what must be on the disk.

Rules
- A size is set through an open file under that file's lease, or by path as a change of its own.
- Space that is taken counts like bytes that are written.
- fsync(2) is a real one: it returns when the disk has the file.
"""

from __future__ import annotations

import errno
import os
from typing import Any

from authority.compat import fuse_abi as abi
from authority.compat import fuse_reply as out
from authority.compat.fuse_wire import MAX_WRITE, Request
from authority.compat.mount_bench import Bench, state_facts
from authority.compat.mount_changes import Changes
from authority.compat.mount_leases import Leases
from authority.compat.mount_links import Links
from authority.compat.mount_nodes import Node
from authority.compat.mount_view import Answer, View
from authority.kernel.requests import FsModify

_KEEP_SIZE, _PUNCH_HOLE, _ZERO_RANGE = 0x01, 0x02, 0x10
_MAX_INTEGER = 2**53 - 1


class Sizes:
    """One mount's."""

    def __init__(
        self, bench: Bench, view: View, changes: Changes, links: Links, leases: Leases
    ) -> None:
        self._bench = bench
        self._view = view
        self._changes = changes
        self._links = links
        self._leases = leases
        self._nodes = bench.nodes
        self._handles = bench.handles

    async def fsync(self, request: Request) -> bytes:
        handle = self._handles.file(request.head.fh)
        sync = os.fdatasync if request.head.flags & abi.FSYNC_DATA else os.fsync
        with handle.use() as fd:
            await self._bench.thread(lambda: sync(fd))
        return out.reply(request.unique)

    async def setattr(self, request: Request) -> bytes:
        """Sizes here, everything else in `Changes`."""
        head, node = request.head, self._nodes.get(request.nodeid)
        status = None
        if head.valid & abi.SET_SIZE:
            status = await self._resize(node, head)
        other = await self._changes.attributes(node, request)
        status = other if other is not None else status
        if status is None:
            return await _awaited(self._view.getattr(request._replace(opcode=abi.SETATTR)))
        return out.reply(request.unique, out.attr_out(self._view.attr(request, status)))

    async def _resize(self, node: Node, head: Any) -> os.stat_result:
        bench, size = self._bench, head.size
        if size > 2**63 - 1:
            raise OSError(errno.EFBIG, os.strerror(errno.EFBIG))
        if head.valid & abi.SET_FH:
            handle = self._leases.writable(head.fh)
            async with handle.renewing:
                if handle.flow is None or handle.label_at != bench.door.label_at():
                    await self._leases.renew(handle, 0, truncate=min(size, _MAX_INTEGER))
                with handle.use() as fd:
                    await bench.thread(lambda: os.ftruncate(fd, size))
                    handle.hasher = None
                    if not size:
                        handle.begins()
                    return os.fstat(fd)
        path, resource, expect = self._nodes.path(node), self._nodes.resource(node), node.identity
        verb = await self._changes.verb("fs.modify", path, resource)

        def perform() -> tuple[os.stat_result, dict[str, Any]]:
            self._links.check(bench.files, path, expect)
            status = bench.files.truncate(path, size, expect)
            return status, state_facts(status) | {"size": size}

        async with bench.still.shared():
            arguments = FsModify(truncate=min(size, _MAX_INTEGER))
            return await bench.change("fs.modify", resource, arguments, perform, verb)

    async def fallocate(self, request: Request) -> bytes:
        head = request.head
        handle = self._leases.writable(head.fh)
        if head.mode not in (
            0,
            _KEEP_SIZE,
            _KEEP_SIZE | _PUNCH_HOLE,
            _ZERO_RANGE,
            _KEEP_SIZE | _ZERO_RANGE,
        ):
            return out.error(request.unique, errno.EOPNOTSUPP)
        if max(head.offset, head.length) > _MAX_INTEGER:
            return out.error(request.unique, errno.EFBIG)
        await self._leases.take(handle, 0 if head.mode & _PUNCH_HOLE else head.length)
        handle.hasher = None
        with handle.use() as fd:
            allocate = self._bench.files.allocate
            await self._bench.thread(lambda: allocate(fd, head.mode, head.offset, head.length))
        return out.reply(request.unique)

    async def lseek(self, request: Request) -> bytes:
        head = request.head
        if head.whence not in (os.SEEK_DATA, os.SEEK_HOLE):
            return out.error(request.unique, errno.EINVAL)
        if head.offset > 2**63 - 1:  # less than nothing, as the program said it
            return out.error(request.unique, errno.ENXIO)
        handle = self._handles.file(head.fh)
        with handle.use() as fd:
            found = await self._bench.thread(lambda: os.lseek(fd, head.offset, head.whence))
        return out.reply(request.unique, out.lseek_out(found))

    async def copy(self, request: Request) -> bytes:
        """copy_file_range(2) between two open files."""
        head = request.head
        source, target = self._handles.file(head.fh_in), self._leases.writable(head.fh_out)
        if not source.readable or head.flags:
            return out.error(request.unique, errno.EBADF if not head.flags else errno.EINVAL)
        length = min(head.length, MAX_WRITE)
        with source.use() as fd:
            length = max(0, min(length, os.fstat(fd).st_size - head.off_in))
        if source.counted is not None and head.off_in + length > source.counted:
            # What came to the file since it was opened is read, and so counted, in the usual way.
            return out.error(request.unique, errno.EOPNOTSUPP)
        await self._leases.take(target, length)
        target.hasher = None
        with source.use() as fd_in, target.use() as fd_out:
            done = await self._bench.thread(
                lambda: os.copy_file_range(fd_in, fd_out, length, head.off_in, head.off_out)
            )
        return out.reply(request.unique, out.write_out(done))


async def _awaited(answer: Answer) -> bytes:
    return answer if isinstance(answer, bytes) else await answer
