"""What an open file may write before it asks again.

Rules
- A lease is reserved with its admission, what was not written is given back with the outcome, so
  nothing is overspent and nothing lost. The next one is taken when one is used up, when a program
  writes on after it closed a descriptor, and when the run's label rose since: what is written under a
  decision was decided for what the run knew.
- A lease is asked for by the name that the file has now.
"""

from __future__ import annotations

import errno
import hashlib
import os
from typing import Any

from authority.compat.mount_bench import Bench, inode_facts
from authority.compat.mount_handles import Handle
from authority.effects import room
from authority.effects.file_changes import moment
from authority.kernel.requests import FsModify
from authority.kernel.resources import Resource

FIRST = 64 * 1024
MOST = 4 * 1024 * 1024
DIGEST_MOST = 1024 * 1024
"""Files up to this size are read once more for their digest when they are closed."""
_MAX_INTEGER = 2**53 - 1


class Leases:
    """The leases of one mount's open files."""

    def __init__(self, bench: Bench) -> None:
        self._bench = bench
        self._nodes = bench.nodes
        self._handles = bench.handles

    async def take(self, handle: Handle, amount: int) -> None:
        """Take bytes from the handle's lease; when it doesn't reach, take the next one first. Raises
        `OSError` (ENOSPC) where too little of the disk would be left (`room`)."""
        with handle.use() as fd:
            room.leave(fd, amount)
        async with handle.renewing:
            fresh = handle.flow is not None and handle.label_at == self._bench.door.label_at()
            if not fresh or handle.left < amount:
                await self.renew(handle, amount)
            handle.left -= amount
            handle.used += amount

    async def renew(self, handle: Handle, amount: int, truncate: int | None = None) -> None:
        wanted = max(amount, min(2 * handle.lease, MOST), FIRST if amount else 0)
        self.settle(handle)
        lease = max(amount, self.lease(wanted))
        label_at = self._bench.door.label_at()
        arguments = FsModify(lease=lease, truncate=truncate)
        known = inode_facts(handle.node.identity)
        resource = self.resource(handle)
        flow = await self._bench.admit("fs.modify", resource, arguments, handle.verb, known)
        handle.flow, handle.label_at = flow, label_at
        handle.lease = handle.left = lease
        flow.on_stop(handle.stop)

    def lease(self, wanted: int) -> int:
        left = self._bench.door.left("file_bytes")
        return wanted if left is None else max(0, min(wanted, left))

    def settle(self, handle: Handle, facts: dict[str, Any] | None = None) -> None:
        """Append what came of the handle's lease."""
        flow, handle.flow = handle.flow, None
        if flow is None:
            return
        said = handle.facts | {"written": handle.used} | (facts or {})
        flow.settle("done", spent={"file_bytes": handle.used}, facts=said)
        handle.facts = {k: v for k, v in handle.facts.items() if k != "created"}
        handle.left = handle.used = 0

    async def content(self, handle: Handle) -> dict[str, Any]:
        """Size and digest of what the file holds now."""
        with handle.use() as fd:
            status = os.fstat(fd)
            size, now = status.st_size, moment(status)
            if handle.hasher is not None and handle.hashed == size:
                return {**now, "size": size, "sha256": handle.hasher.hexdigest()}
            if size <= DIGEST_MOST and handle.readable:
                data = await self._bench.thread(lambda: os.pread(fd, size, 0))
                return {**now, "size": size, "sha256": hashlib.sha256(data).hexdigest()}
            return {**now, "size": min(size, _MAX_INTEGER)}

    def resource(self, handle: Handle) -> Resource:
        """What the file is called now; what it was called when it has no name any more."""
        if handle.node.parent is None:
            return handle.resource
        try:
            return self._nodes.resource(handle.node)
        except OSError:
            return handle.resource

    def writable(self, fh: int) -> Handle:
        handle = self._handles.file(fh)
        if handle.stopped:
            raise OSError(errno.EIO, os.strerror(errno.EIO))
        if not handle.writable:
            raise OSError(errno.EBADF, os.strerror(errno.EBADF))
        return handle
