"""Opening and listing, for a call that waits: the gate opens, and hands the descriptor in.

Rules
- A file is opened by the same request as in a mount, and what was opened is what the program gets: no
  path is looked at again. The mount it was opened through allows no execution, so it can't be mapped
  as code either.
- What is handed in can't be taken back, and what goes through it is not seen. So:
  - where `file_bytes` is limited nothing is opened for writing;
  - once a file was opened for writing, no file with a secret is opened that was not read before;
  - what is open for writing is asked for again when the label rises (`calls_writes`), before a file
    that raises it is handed in;
  - the outcome of an opening says that what is written is not counted.
- A directory's descriptor is of its stand-in. What it lists is judged and given here; the position is
  the descriptor's own, so it is shared and moved as usual. A position is a name's own number, so what
  is removed or made meanwhile hides nothing else.
- Not to be had: `O_PATH` of a file, `O_TMPFILE`, and of openat2's ways to resolve `RESOLVE_IN_ROOT` and
  `RESOLVE_NO_XDEV`.
"""

from __future__ import annotations

import errno
import fcntl
import hashlib
import os
import secrets
import stat
import struct
from collections import OrderedDict
from typing import Final

from authority.compat import fuse_abi as abi
from authority.compat.calls_base import GO_ON, Answer, Case, Descriptor
from authority.compat.calls_memory import take_descriptor
from authority.compat.calls_seat import Seat
from authority.compat.calls_walk import Place, Walker
from authority.compat.calls_wire import dirents
from authority.compat.calls_writes import Writes
from authority.compat.fuse_wire import Create, Open
from authority.compat.mount_handles import Directory, Handle
from authority.effects.tree import Row

_HOW: Final = struct.Struct("<QQQ")
_NO_XDEV, _NO_MAGICLINKS, _NO_SYMLINKS, _BENEATH, _IN_ROOT, _CACHED = 1, 2, 4, 8, 16, 32
_RESOLVES: Final = 63
_CREATED_AT: Final = 128
_KEPT: Final = os.O_APPEND | os.O_NONBLOCK
_LISTS: Final = 16
_SYNCS: Final = os.O_SYNC | os.O_DSYNC
_MOST: Final = 1 << 20
_TMPFILE: Final = os.O_TMPFILE & ~os.O_DIRECTORY


def _error(number: int) -> OSError:
    return OSError(number, os.strerror(number))


class Openings:
    """The openings and listings of one run."""

    def __init__(self, walker: Walker, writes: Writes) -> None:
        self._walker = walker
        self._open_writes = writes
        self._key = secrets.token_bytes(16)
        self._lists: OrderedDict[tuple[bytes, bytes], list[tuple[int, Row]]] = OrderedDict()
        self._writes = False
        self._secrets: set[str] = set()

    async def open(self, case: Case, dirfd: int, at: int, flags: int, mode: int) -> Answer:
        return await self._open(case, dirfd, case.path(at), flags, mode, 0)

    async def openat2(self, case: Case) -> Answer:
        size = case.arguments[3]
        if size < _HOW.size:
            raise _error(errno.EINVAL)
        if size > 4096 or any(case.memory.read(case.arguments[2], size)[_HOW.size :]):
            raise _error(errno.E2BIG)
        flags, mode, resolve = _HOW.unpack(case.memory.read(case.arguments[2], _HOW.size))
        if resolve & ~_RESOLVES or flags >> 32 or mode & ~0o7777:
            raise _error(errno.EINVAL)
        return await self._open(case, case.number(0), case.path(1), flags, mode, resolve)

    async def _open(
        self, case: Case, dirfd: int, path: bytes, flags: int, mode: int, resolve: int
    ) -> Answer:
        making = bool(flags & os.O_CREAT)
        alone = making and bool(flags & os.O_EXCL)
        follow = not flags & os.O_NOFOLLOW and not alone
        place = await self._walker.walk(
            case, dirfd, path, follow=follow, beneath=bool(resolve & _BENEATH)
        )
        seat = place.seat
        if seat is None:
            return GO_ON
        if resolve & (_IN_ROOT | _NO_XDEV):
            raise _error(errno.ENOSYS)
        if resolve & _CACHED:
            raise _error(errno.EAGAIN)
        if resolve & _NO_SYMLINKS and case.links:
            raise _error(errno.ELOOP)
        case.links.clear()  # nothing goes on from here
        if flags & _TMPFILE:
            raise _error(errno.EOPNOTSUPP)
        if not place.node:
            if not making:
                raise _error(errno.ENOENT)
            return await self._create(case, seat, place, flags, mode)
        if alone:
            raise _error(errno.EEXIST)
        writes = flags & os.O_ACCMODE != os.O_RDONLY or bool(flags & os.O_TRUNC)
        if place.directory:
            if making or (writes and not flags & os.O_PATH):
                raise _error(errno.EISDIR)
            fd = seat.stand_in.opened(seat.beneath(place.node))
            return Descriptor(fd, bool(flags & os.O_CLOEXEC))
        if flags & os.O_DIRECTORY:
            raise _error(errno.ENOTDIR)
        if flags & os.O_PATH:
            raise _error(errno.EOPNOTSUPP)
        if place.link:
            raise _error(errno.ELOOP)
        await self._may(seat, place, flags, writes)
        body = await seat.ask(abi.OPEN, place.node, Open(flags & ~(os.O_CREAT | os.O_EXCL), 0))
        return await self._given(seat, body, flags)

    async def _create(self, case: Case, seat: Seat, place: Place, flags: int, mode: int) -> Answer:
        if place.slash:
            raise _error(errno.EISDIR)
        if flags & os.O_DIRECTORY:
            raise _error(errno.EINVAL)
        await self._may(seat, place, flags, writes=True)
        mode &= ~case.umask()
        how = Create(flags, stat.S_IFREG | mode & 0o7777, 0, 0)
        body = await seat.ask(abi.CREATE, place.parent, how, place.name)
        seat.entry(case, body)
        return await self._given(seat, body[_CREATED_AT:], flags, made=True)

    async def _may(self, seat: Seat, place: Place, flags: int, writes: bool) -> None:
        """What this way of mediation can't do is refused, and recorded."""
        bench = seat.desk.bench
        if place.node:
            resource = seat.nodes.resource(seat.nodes.get(place.node))
        else:
            resource = seat.nodes.child(seat.nodes.get(place.parent), place.name)[1]
        if writes and bench.door.left("file_bytes") is not None:
            reason = "without a mount what is written can't be counted, and file_bytes is limited"
            await bench.door.deny("fs.modify", resource.text, reason)
            raise _error(errno.EACCES)
        if writes:
            self._open_writes.room()
        if not writes or flags & os.O_ACCMODE == os.O_RDWR:
            self._open_writes.forget_closed()
            found = bench.door.policy.secrets(resource)
            if self._writes and not found <= self._secrets:
                reason = (
                    "it may reveal a secret, and files that are open for writing since before could "
                    "carry it out unseen"
                )
                await bench.door.deny("fs.open", resource.text, reason)
                raise _error(errno.EACCES)
            self._secrets |= found
        self._writes = self._writes or writes

    async def _given(self, seat: Seat, body: bytes, flags: int, *, made: bool = False) -> Answer:
        """The descriptor of what the desk opened, for the program; the desk's own is let go."""
        desk, fh = seat.desk, int.from_bytes(body[:8], "little")
        handle = desk.bench.handles.file(fh)
        try:
            if handle.flow is not None:
                with handle.use() as fd:
                    self._open_writes.opened(seat, fd, handle.verb, handle.label_at)
            # Reading it may have raised the label: first for what is open for writing already.
            await self._open_writes.ask_again()
            anew = made and flags & os.O_ACCMODE == os.O_RDONLY
            return Descriptor(_copy(handle, flags, anew=anew), bool(flags & os.O_CLOEXEC))
        finally:
            if handle.flow is not None:
                desk.leases.settle(handle, {"written": "not counted"})
            desk.files.release_handle(fh)

    # --- listing ---

    async def getdents(self, case: Case) -> Answer:
        fd, room = case.number(0), min(case.flags(2), _MOST)
        place = await self.directory(case, fd)
        if place is None:
            return GO_ON
        assert place.seat is not None
        ours = take_descriptor(case.pid, fd)
        try:
            case.check()
            position = os.lseek(ours, 0, os.SEEK_CUR)
            rows = await self._rows(place.seat, place.node, fresh=not position)
            some = (
                (row.ino, number, row.kind >> 12, row.name)
                for number, row in rows
                if number > position
            )
            data, last = dirents(some, room)
            if data:
                case.memory.write(case.arguments[1], data)
                os.lseek(ours, last, os.SEEK_SET)
            return len(data)
        finally:
            os.close(ours)

    async def directory(self, case: Case, fd: int) -> Place | None:
        """The mediated directory that a descriptor stands for; None for everything else."""
        held = case.hold(fd)
        try:
            if not stat.S_ISDIR(os.fstat(held).st_mode):
                return None
            path = os.readlink(os.fsencode(f"/proc/self/fd/{held}"))
        finally:
            os.close(held)
        if self._walker.seat_of(path) is None:
            return None
        place = await self._walker.exact(case, path)
        if place.seat is None:
            return None
        if not place.node:
            raise _error(errno.ENOENT)
        return place

    async def _rows(self, seat: Seat, node: int, *, fresh: bool) -> list[tuple[int, Row]]:
        key = seat.path, seat.beneath(node)
        if fresh or key not in self._lists:
            fh = int.from_bytes((await seat.ask(abi.OPENDIR, node))[:8], "little")
            opened = seat.desk.bench.handles.directory(fh)
            assert isinstance(opened, Directory)
            rows = opened.rows or []
            seat.desk.view.close(fh)
            self._lists[key] = sorted((self._number(row.name), row) for row in rows)
            while len(self._lists) > _LISTS:
                self._lists.popitem(last=False)
        self._lists.move_to_end(key)
        return self._lists[key]

    def _number(self, name: bytes) -> int:
        if name in (b".", b".."):
            return len(name)
        digest = hashlib.blake2b(name, digest_size=8, key=self._key).digest()
        return (int.from_bytes(digest, "big") >> 2) + 3


def _copy(handle: Handle, flags: int, *, anew: bool) -> int:
    """The open file for the program, with the flags that it asked for. `anew`: made by it, and asked
    for reading alone, while the desk makes files for writing."""
    with handle.use() as fd:
        if anew or flags & _SYNCS:
            kept = flags & (os.O_ACCMODE | _SYNCS) | os.O_CLOEXEC
            copy = os.open(f"/proc/self/fd/{fd}", kept)
        else:
            copy = fcntl.fcntl(fd, fcntl.F_DUPFD_CLOEXEC, 0)
    fcntl.fcntl(copy, fcntl.F_SETFL, flags & _KEPT)
    return copy
