"""Changing names and attributes through a mount: directories, links, renames, modes, times.

Rules
- Each change is a request of its own, by the path that its node has now; its intent is durable before
  it is performed, and it is performed on that path and no other. Where a node is concerned, the object
  at its path must still be the one that the kernel was told of.
- A directory is renamed only if everything beneath it may be renamed, by its old path and by its new
  one: it would carry everything past the rules otherwise. More than `WALK_MOST` names beneath are
  EXDEV, which makes a program copy and delete them one by one. Meanwhile nothing else changes names.
- A rename or a further name that would make something readable that is not readable now is refused.
- Devices, pipes and sockets are not made. Nobody's owner is changed, and no set-id bit is set.
"""

from __future__ import annotations

import asyncio
import errno
import os
import stat
import time
from collections.abc import Callable
from functools import partial
from typing import Any

from authority.compat import fuse_abi as abi
from authority.compat import fuse_reply as out
from authority.compat.fuse_wire import Request, Setattr
from authority.compat.mount_bench import Bench, Denied, identity_facts, state_facts
from authority.compat.mount_links import Links
from authority.compat.mount_nodes import Node, below
from authority.compat.mount_own import check_arrival, check_mode
from authority.compat.mount_view import View
from authority.effects.beneath import Untouchable
from authority.effects.file_changes import moment
from authority.effects.tree import SET_ID, Files, Identity, Times
from authority.kernel.canonical import printable
from authority.kernel.policy_persist import OWN, Kind, persistent
from authority.kernel.requests import FsAttributes, FsLink, FsMkdir, FsRename, FsSymlink, Nothing
from authority.kernel.resource_files import file_path
from authority.kernel.resources import Resource

WALK_MOST = 20_000
_YIELD_EVERY = 100
_USER = b"user."
_MAX_XATTR = 64 * 1024


class Changes:
    """The changes of names and attributes of one mount."""

    def __init__(self, bench: Bench, view: View, links: Links) -> None:
        self._bench = bench
        self._view = view
        self._links = links
        self._nodes = bench.nodes

    async def verb(self, effect: str, path: bytes, resource: Resource) -> str:
        """`OWN` for a path that is closed elsewhere and may be open in what the run made."""
        if persistent(effect, resource.segments) is None:
            return ""
        bench = self._bench
        return await bench.thread(lambda: bench.own.verb(bench.files, effect, path, resource))

    # --- making ---

    async def mkdir(self, request: Request) -> bytes:
        bench, parent = self._bench, self._nodes.get(request.nodeid)
        (name,) = request.names
        path, resource = self._nodes.child(parent, name)
        verb = await self.verb("fs.mkdir", path, resource)

        def perform() -> tuple[os.stat_result, dict[str, Any]]:
            status = bench.files.mkdir(path, request.head.mode & ~SET_ID)
            bench.own.made(
                bench.files, path, resource, inside=bench.own.in_folder(bench.files, path)
            )
            return status, state_facts(status) | {"created": True}

        async with bench.still.shared():
            status = await bench.change("fs.mkdir", resource, FsMkdir(), perform, verb)
        return self._told(request, parent, name, status, resource, "fs.mkdir", verb)

    async def symlink(self, request: Request) -> bytes:
        bench, parent = self._bench, self._nodes.get(request.nodeid)
        name, text = request.names
        path, resource = self._nodes.child(parent, name)
        shown = printable(text, 4096)

        def perform() -> tuple[os.stat_result, dict[str, Any]]:
            status = bench.files.symlink(path, text)
            return status, identity_facts(status) | {"created": True}

        async with bench.still.shared():
            status = await bench.change("fs.symlink", resource, FsSymlink(shown), perform)
        return self._told(request, parent, name, status, resource, "fs.symlink", "")

    async def link(self, request: Request) -> bytes:
        bench, parent = self._bench, self._nodes.get(request.nodeid)
        old = self._nodes.get(request.head.old)
        old_path, old_resource = self._nodes.path(old), self._nodes.resource(old)
        (name,) = request.names
        path, resource = self._nodes.child(parent, name)
        await self._gains("fs.link", old_resource, resource)
        expect = old.identity

        def perform() -> tuple[os.stat_result, dict[str, Any]]:
            self._links.check(bench.files, old_path, expect)
            status = bench.files.link(old_path, path, expect)
            return status, state_facts(status)

        async with bench.still.alone():
            status = await bench.change("fs.link", old_resource, FsLink(to=resource.text), perform)
            self._links.made(expect)
        return self._told(request, parent, name, status, resource, "fs.link", "")

    def _told(
        self,
        request: Request,
        parent: Node,
        name: bytes,
        status: os.stat_result,
        resource: Resource,
        effect: str,
        verb: str,
    ) -> bytes:
        """Note what was made, and tell the kernel of its node."""
        if verb == OWN:
            self._bench.own.note(resource, effect)
        node = self._nodes.enter(parent, name, (status.st_dev, status.st_ino), status.st_mode)
        return out.reply(request.unique, self._view.entry(request, node, status))

    # --- removing ---

    async def unlink(self, request: Request) -> bytes:
        return await self._remove(request, self._bench.files.unlink, "file")

    async def rmdir(self, request: Request) -> bytes:
        return await self._remove(request, self._bench.files.rmdir, "directory")

    async def _remove(
        self, request: Request, remove: Callable[[bytes], os.stat_result], kind: str
    ) -> bytes:
        bench, parent = self._bench, self._nodes.get(request.nodeid)
        (name,) = request.names
        path, resource = self._nodes.child(parent, name)
        verb = await self.verb("fs.delete", path, resource)

        def perform() -> tuple[os.stat_result, dict[str, Any]]:
            bench.own.leave(bench.files, (path, resource))
            status = remove(path)
            return status, state_facts(status) | {"type": kind, "size": status.st_size}

        async with bench.still.shared():
            status = await bench.change("fs.delete", resource, Nothing(), perform, verb)
            self._links.removed(status)
            self._nodes.gone(parent, name)
        return out.reply(request.unique)

    # --- renaming ---

    async def rename(self, request: Request) -> bytes:
        bench, head = self._bench, request.head
        if head.flags & ~(abi.RENAME_NOREPLACE | abi.RENAME_EXCHANGE) or head.flags == 3:
            return out.error(request.unique, errno.EINVAL)
        exchange = bool(head.flags & abi.RENAME_EXCHANGE)
        old_parent, new_parent = self._nodes.get(request.nodeid), self._nodes.get(head.newdir)
        old_name, new_name = request.names
        async with bench.still.alone():
            # The paths are taken and used while nothing else changes a name.
            old, old_resource = self._nodes.child(old_parent, old_name)
            new, new_resource = self._nodes.child(new_parent, new_name)
            await self._gains("fs.rename", old_resource, new_resource)
            if exchange:
                await self._gains("fs.rename", new_resource, old_resource)
            await bench.thread(
                lambda: bench.own.leave(bench.files, (old, old_resource), (new, new_resource))
            )
            verb = await self._rename_verb((old, old_resource), (new, new_resource))
            facts: dict[str, Any] = {}

            async def check() -> None:
                facts.update(await self._movable(old, old_resource, new_resource))
                if exchange:
                    await self._movable(new, new_resource, old_resource)

            def perform() -> tuple[None, dict[str, Any]]:
                bench.own.renamed(bench.files, old, new_resource)
                if exchange:
                    bench.own.renamed(bench.files, new, old_resource)
                replace = not head.flags & abi.RENAME_NOREPLACE
                replaced = _links(bench.files, new)
                bench.files.rename(old, new, replace=replace, exchange=exchange)
                with bench.files.look(new) as arrived:
                    now = moment(arrived.status)
                return None, facts | now | {"exchanged": exchange, "replaced_links": replaced}

            arguments = FsRename(to=new_resource.text)
            await bench.change("fs.rename", old_resource, arguments, perform, verb, check)
            if exchange:
                self._nodes.exchange(old_parent, old_name, new_parent, new_name)
            else:
                self._nodes.move(old_parent, old_name, new_parent, new_name)
        if verb == OWN:
            bench.own.note(new_resource, "fs.rename")
        return out.reply(request.unique)

    async def _rename_verb(self, *ends: tuple[bytes, Resource]) -> str:
        """`OWN` when every end that is closed elsewhere is the run's own."""
        verbs = [
            await self.verb("fs.rename", path, resource)
            for path, resource in ends
            if persistent("fs.rename", resource.segments) is not None
        ]
        return OWN if verbs and all(verb == OWN for verb in verbs) else ""

    async def _movable(self, path: bytes, old: Resource, new: Resource) -> dict[str, Any]:
        """Judge what is moved: a file that becomes a configuration, or all of a directory."""
        bench = self._bench
        with await bench.thread(lambda: bench.files.look(path)) as found:
            status, directory = found.status, found.is_directory
            kept = persistent("fs.rename", new.segments)
            closed = kept is not None and kept.kind == Kind.REPOSITORY and not self._named(new)
            writers = closed and not directory and bench.writers(found)
        if directory:
            if closed and new.segments[-1] == ".git" and not bench.own.repository(found.identity):
                raise Denied(errno.EACCES, "a directory would become a repository")
            await self._movable_beneath(path, old, new, found.identity)
            return identity_facts(status) | {"type": "directory"}
        if closed:
            await bench.thread(
                lambda: check_arrival(bench.files, path, new, status, writers=writers)
            )
        return identity_facts(status) | {"size": status.st_size}

    def _named(self, resource: Resource) -> bool:
        return self._bench.judge("fs.rename", resource).allowed

    async def _movable_beneath(
        self, path: bytes, old: Resource, new: Resource, identity: Identity
    ) -> None:
        """Raises unless everything beneath may be renamed along."""
        bench = self._bench
        own = bench.own.folder(identity) or await bench.thread(
            lambda: all(bench.own.in_folder(bench.files, end) for end in (path, self._beneath(new)))
        )
        waiting = [(path, old, new, own, bench.own.repository(identity))]
        count = 0
        while waiting:
            at, at_old, at_new, own, repository = waiting.pop()
            for row in await bench.thread(partial(bench.files.rows, at)):
                count += 1
                if count > WALK_MOST:
                    raise Denied(errno.EXDEV, "too much lies beneath to judge it at once")
                if not count % _YIELD_EVERY:
                    await asyncio.sleep(0)
                child = at + b"/" + row.name
                ends = below(at_old, row.name), below(at_new, row.name)
                mine, its_repository = own, repository
                if row.name == b".git" and row.kind == stat.S_IFDIR:
                    with await bench.thread(partial(bench.files.look, child)) as found:
                        its_repository = bench.own.repository(found.identity)
                self._check_moved(ends, mine, its_repository)
                if row.kind == stat.S_IFDIR:
                    waiting.append((child, *ends, mine, its_repository))

    def _beneath(self, resource: Resource) -> bytes:
        """The path of a resource beneath the mount's root."""
        names = resource.segments[len(self._nodes.root.segments) :]
        return file_path(names)[1:]

    def _check_moved(self, ends: tuple[Resource, Resource], mine: bool, repository: bool) -> None:
        for resource in ends:
            kept = persistent("fs.rename", resource.segments)
            own = kept is not None and (
                (kept.kind == Kind.REPOSITORY and repository)
                or (kept.kind == Kind.FOLDER and mine and not self._bench.own.theirs(resource))
            )
            judgement = self._bench.judge("fs.rename", resource, OWN if own else "")
            if not judgement.allowed:
                raise Denied(errno.EACCES, f"beneath it: {judgement.reason}")
        if not self._reads(ends[0]) and self._reads(ends[1]):
            raise Denied(errno.EACCES, "something beneath it would become readable")

    def _reads(self, resource: Resource) -> bool:
        return self._bench.judge("fs.open", resource).allowed

    async def _gains(self, effect: str, old: Resource, new: Resource) -> None:
        """Refuse what would become readable by its new name."""
        if not self._reads(old) and self._reads(new):
            reason = f"{new.text} may be read and {old.text} may not"
            no = await self._bench.door.deny(effect, old.text, reason)
            raise Denied(errno.EACCES, no.sentence)

    # --- attributes ---

    async def attributes(self, node: Node, request: Request) -> os.stat_result | None:
        """Modes, times and owners of a SETATTR; None when it asks for none. Raises `OSError`."""
        bench, head = self._bench, request.head
        valid, uid, gid = head.valid, request.uid, request.gid
        if (valid & abi.SET_UID and head.uid != uid) or (valid & abi.SET_GID and head.gid != gid):
            raise PermissionError(errno.EPERM, os.strerror(errno.EPERM))
        mode = head.mode & 0o7777 if valid & abi.SET_MODE else None
        times = _times(head)
        if mode is None and times == (None, None):
            return None
        if mode is not None and mode & SET_ID:
            raise PermissionError(errno.EPERM, os.strerror(errno.EPERM))
        handle = bench.handles.of(node)
        if node.parent is None and node.id != abi.ROOT_ID and handle is not None:
            return self._attributes_of_unnamed(handle.use, mode, times)
        path, resource, expect = self._nodes.path(node), self._nodes.resource(node), node.identity
        verb = await self.verb("fs.attributes", path, resource)
        arguments = FsAttributes(mode=mode, accessed=_micro(times[0]), modified=_micro(times[1]))

        def perform() -> tuple[os.stat_result, dict[str, Any]]:
            self._links.check(bench.files, path, expect)
            if mode is not None:
                if verb == OWN:
                    check_mode(resource, mode)
                status = bench.files.chmod(path, mode, expect)
            if times != (None, None):
                status = bench.files.utime(path, times, expect)
            return status, state_facts(status)

        async with bench.still.shared():
            return await bench.change("fs.attributes", resource, arguments, perform, verb)

    def _attributes_of_unnamed(
        self, use: Callable[[], Any], mode: int | None, times: Times
    ) -> os.stat_result:
        """What has no name at all is the run's alone: nobody else meets its mode or times."""
        with use() as fd:
            if os.fstat(fd).st_nlink:
                raise Untouchable("has another name, so its attributes are never changed here")
            if mode is not None:
                os.fchmod(fd, mode)
            if times != (None, None):
                was = os.fstat(fd)
                both = (
                    was.st_atime_ns if times[0] is None else times[0],
                    was.st_mtime_ns if times[1] is None else times[1],
                )
                os.utime(fd, ns=both)
            return os.fstat(fd)

    async def setxattr(self, request: Request) -> bytes:
        if request.head.flags & ~(os.XATTR_CREATE | os.XATTR_REPLACE):
            raise OSError(errno.EINVAL, os.strerror(errno.EINVAL))
        await self._xattr(request, bytes(request.data), request.head.flags)
        return out.reply(request.unique)

    async def removexattr(self, request: Request) -> bytes:
        await self._xattr(request, None, 0)
        return out.reply(request.unique)

    async def _xattr(self, request: Request, value: bytes | None, flags: int) -> None:
        bench, node = self._bench, self._nodes.get(request.nodeid)
        (name,) = request.names
        if not name.startswith(_USER):
            raise OSError(errno.EOPNOTSUPP, os.strerror(errno.EOPNOTSUPP))
        if len(value or b"") > _MAX_XATTR:
            raise OSError(errno.E2BIG, os.strerror(errno.E2BIG))
        path, resource, expect = self._nodes.path(node), self._nodes.resource(node), node.identity
        arguments = FsAttributes(attribute=printable(name, 255), size=len(value or b""))

        def perform() -> tuple[None, dict[str, Any]]:
            self._links.check(bench.files, path, expect)
            bench.files.setxattr(path, name, value, flags, expect)
            return None, {}

        async with bench.still.shared():
            await bench.change("fs.attributes", resource, arguments, perform)


def _links(files: Files, path: bytes) -> int:
    """How many names the file has that is about to be replaced."""
    try:
        with files.look(path) as found:
            return found.status.st_nlink
    except (OSError, Untouchable):
        return 1


def _times(head: Setattr) -> Times:
    now = time.time_ns() if head.valid & (abi.SET_ATIME_NOW | abi.SET_MTIME_NOW) else 0
    return (
        _time(head, abi.SET_ATIME, abi.SET_ATIME_NOW, head.atime, head.atime_ns, now),
        _time(head, abi.SET_MTIME, abi.SET_MTIME_NOW, head.mtime, head.mtime_ns, now),
    )


def _time(head: Setattr, given: int, now_bit: int, seconds: int, ns: int, now: int) -> int | None:
    if not head.valid & given:
        return None
    if head.valid & now_bit:
        return now
    if seconds >= 2**63:
        seconds -= 2**64
    return seconds * 10**9 + min(ns, 10**9 - 1)


def _micro(ns: int | None) -> int | None:
    if ns is None:
        return None
    return max(-(2**53) + 1, min(ns // 1000, 2**53 - 1))
