"""The kernel's file messages, read strictly: one FUSE request a frame.

Pure: bytes in, named values out. Versions 7.31 to 7.41 of the protocol, little endian (the machine's
own order on both supported machines).

Rules
- Each opcode has one form here: a fixed head, then a fixed number of names or one piece of data,
  then nothing. A frame that is shorter, longer, or says another length than it has, a name that is
  empty, too long, holds a slash, or is `.` or `..`: `WireError`, and the mount ends. The kernel
  sends no such thing, so whoever sent it is not the kernel.
- An opcode that is not in the table is no error of form: it is answered with `ENOSYS`, which tells
  the kernel that this file system does not do it.
- Extensions behind a request are never negotiated (`FUSE_SECURITY_CTX` and the like stay off), so a
  request that has some is malformed.

Source: `include/uapi/linux/fuse.h` of Linux (the structures and their comments), and the kernel's
documentation of FUSE input/output.
"""

from __future__ import annotations

import struct
from typing import Any, NamedTuple

from authority.compat.fuse_abi import (
    ACCESS,
    BATCH_FORGET,
    COPY_FILE_RANGE,
    CREATE,
    DESTROY,
    FALLOCATE,
    FLUSH,
    FORGET,
    FSYNC,
    FSYNCDIR,
    GETATTR,
    GETXATTR,
    INIT,
    INTERRUPT,
    LINK,
    LISTXATTR,
    LOOKUP,
    LSEEK,
    MKDIR,
    MKNOD,
    OPEN,
    OPENDIR,
    READ,
    READDIR,
    READLINK,
    RELEASE,
    RELEASEDIR,
    REMOVEXATTR,
    RENAME,
    RENAME2,
    RMDIR,
    SETATTR,
    SETXATTR,
    STATFS,
    SYMLINK,
    UNLINK,
    WRITE,
)

MAX_WRITE = 1024 * 1024
MAX_FRAME = MAX_WRITE + 4096
"""What one frame may hold, both ways."""
MAX_NAME = 255
MAX_LINK = 4095


class WireError(Exception):
    """A frame that the kernel would not have sent."""


class Header(NamedTuple):
    length: int
    opcode: int
    unique: int
    nodeid: int
    uid: int
    gid: int
    pid: int
    extensions: int
    padding: int


class Init(NamedTuple):
    """`flags` holds both words of the kernel's capabilities."""

    major: int
    minor: int
    readahead: int
    flags: int


class Getattr(NamedTuple):
    flags: int
    dummy: int
    fh: int


class Setattr(NamedTuple):
    valid: int
    padding: int
    fh: int
    size: int
    lock_owner: int
    atime: int
    mtime: int
    ctime: int
    atime_ns: int
    mtime_ns: int
    ctime_ns: int
    mode: int
    unused: int
    uid: int
    gid: int
    unused2: int


class Mknod(NamedTuple):
    mode: int
    rdev: int
    umask: int
    padding: int


class Mkdir(NamedTuple):
    mode: int
    umask: int


class Rename(NamedTuple):
    newdir: int
    flags: int = 0
    padding: int = 0


class Link(NamedTuple):
    old: int


class Open(NamedTuple):
    flags: int
    open_flags: int


class Create(NamedTuple):
    flags: int
    mode: int
    umask: int
    open_flags: int


class Read(NamedTuple):
    """For READ and READDIR."""

    fh: int
    offset: int
    size: int
    read_flags: int
    lock_owner: int
    flags: int
    padding: int


class Write(NamedTuple):
    fh: int
    offset: int
    size: int
    write_flags: int
    lock_owner: int
    flags: int
    padding: int


class Release(NamedTuple):
    fh: int
    flags: int
    release_flags: int
    lock_owner: int


class Flush(NamedTuple):
    fh: int
    unused: int
    padding: int
    lock_owner: int


class Fsync(NamedTuple):
    fh: int
    flags: int
    padding: int


class Setxattr(NamedTuple):
    size: int
    flags: int


class Getxattr(NamedTuple):
    size: int
    padding: int


class Access(NamedTuple):
    mask: int
    padding: int


class Interrupt(NamedTuple):
    unique: int


class Fallocate(NamedTuple):
    fh: int
    offset: int
    length: int
    mode: int
    padding: int


class Lseek(NamedTuple):
    fh: int
    offset: int
    whence: int
    padding: int


class CopyRange(NamedTuple):
    fh_in: int
    off_in: int
    nodeid_out: int
    fh_out: int
    off_out: int
    length: int
    flags: int


class Forget(NamedTuple):
    nlookup: int


class Nothing(NamedTuple):
    """A request without a head of its own."""


class Request(NamedTuple):
    """One request: `head` is the Struct above that its opcode has, or None for an unknown opcode.

    `names` are the names behind it, `data` what follows (of WRITE, SETXATTR); `forgets` the pairs of
    BATCH_FORGET.
    """

    opcode: int
    unique: int
    nodeid: int
    uid: int
    gid: int
    pid: int
    head: Any
    names: tuple[bytes, ...] = ()
    data: memoryview = memoryview(b"")
    forgets: tuple[tuple[int, int], ...] = ()


_HEADER = struct.Struct("<IIQQIIIHH")
_FORGET_ONE = struct.Struct("<QQ")
_FILE_IO = struct.Struct("<QQIIQII")


class _Form(NamedTuple):
    head: type[Any]
    layout: struct.Struct
    names: int = 0
    tail: bool = False


_EMPTY = struct.Struct("<")
_NAME = _Form(Nothing, _EMPTY, 1)
_FORMS: dict[int, _Form] = {
    LOOKUP: _NAME,
    FORGET: _Form(Forget, struct.Struct("<Q")),
    GETATTR: _Form(Getattr, struct.Struct("<IIQ")),
    SETATTR: _Form(Setattr, struct.Struct("<IIQQQQQQIIIIIIII")),
    READLINK: _Form(Nothing, _EMPTY),
    SYMLINK: _Form(Nothing, _EMPTY, 2),
    MKNOD: _Form(Mknod, struct.Struct("<IIII"), 1),
    MKDIR: _Form(Mkdir, struct.Struct("<II"), 1),
    UNLINK: _NAME,
    RMDIR: _NAME,
    RENAME: _Form(Rename, struct.Struct("<Q"), 2),
    RENAME2: _Form(Rename, struct.Struct("<QII"), 2),
    LINK: _Form(Link, struct.Struct("<Q"), 1),
    OPEN: _Form(Open, struct.Struct("<II")),
    OPENDIR: _Form(Open, struct.Struct("<II")),
    CREATE: _Form(Create, struct.Struct("<IIII"), 1),
    READ: _Form(Read, _FILE_IO),
    READDIR: _Form(Read, _FILE_IO),
    WRITE: _Form(Write, _FILE_IO, 0, tail=True),
    STATFS: _Form(Nothing, _EMPTY),
    RELEASE: _Form(Release, struct.Struct("<QIIQ")),
    RELEASEDIR: _Form(Release, struct.Struct("<QIIQ")),
    FLUSH: _Form(Flush, struct.Struct("<QIIQ")),
    FSYNC: _Form(Fsync, struct.Struct("<QII")),
    FSYNCDIR: _Form(Fsync, struct.Struct("<QII")),
    SETXATTR: _Form(Setxattr, struct.Struct("<II"), 1, tail=True),
    GETXATTR: _Form(Getxattr, struct.Struct("<II"), 1),
    LISTXATTR: _Form(Getxattr, struct.Struct("<II")),
    REMOVEXATTR: _NAME,
    ACCESS: _Form(Access, struct.Struct("<II")),
    INTERRUPT: _Form(Interrupt, struct.Struct("<Q")),
    DESTROY: _Form(Nothing, _EMPTY),
    FALLOCATE: _Form(Fallocate, struct.Struct("<QQQII")),
    LSEEK: _Form(Lseek, struct.Struct("<QQII")),
    COPY_FILE_RANGE: _Form(CopyRange, struct.Struct("<QQQQQQQ")),
}
_LINK_TEXT = frozenset({SYMLINK})
_XATTR_NAMES = frozenset({SETXATTR, GETXATTR, REMOVEXATTR})


def parse(frame: bytes) -> Request:
    """The request in a frame. Raises `WireError`."""
    size = len(frame)
    if not _HEADER.size <= size <= MAX_FRAME:
        raise WireError(f"a frame of {size} bytes")
    header = Header._make(_HEADER.unpack_from(frame))
    if header.length != size:
        raise WireError(f"a frame of {size} bytes that says {header.length}")
    if header.extensions or header.padding:
        raise WireError("a request with extensions that were not negotiated")
    at, opcode = _HEADER.size, header.opcode
    who = header[1:7]
    if opcode == INIT:
        return Request(*who, head=_init(frame))
    if opcode == BATCH_FORGET:
        return Request(*who, head=Nothing(), forgets=_forgets(frame))
    form = _FORMS.get(opcode)
    if form is None:
        return Request(*who, head=None)
    if size < at + form.layout.size:
        raise WireError(f"opcode {opcode} with {size - at} bytes")
    head = form.head(*form.layout.unpack_from(frame, at)) if form.layout.size else form.head()
    at += form.layout.size
    names: tuple[bytes, ...] = ()
    if form.names:
        names, at = _names(frame, at, form.names, opcode)
    if form.tail:
        if head.size != size - at or head.size > MAX_WRITE:
            raise WireError(f"opcode {opcode} with {size - at} bytes of data, not {head.size}")
        return Request(*who, head=head, names=names, data=memoryview(frame)[at:])
    if at != size:
        raise WireError(f"opcode {opcode} with {size - at} bytes too many")
    return Request(*who, head=head, names=names)


def _names(frame: bytes, at: int, count: int, opcode: int) -> tuple[tuple[bytes, ...], int]:
    found = []
    for number in range(count):
        end = frame.find(b"\0", at)
        if end < 0:
            raise WireError(f"opcode {opcode} with a name that does not end")
        name = frame[at:end]
        if opcode in _LINK_TEXT and number == 1:
            if not 0 < len(name) <= MAX_LINK:
                raise WireError(f"a link's text of {len(name)} bytes")
        elif opcode in _XATTR_NAMES:
            if not 0 < len(name) <= MAX_NAME:
                raise WireError(f"an attribute's name of {len(name)} bytes")
        else:
            _check_name(name)
        found.append(name)
        at = end + 1
    return tuple(found), at


def _check_name(name: bytes) -> None:
    if not 0 < len(name) <= MAX_NAME:
        raise WireError(f"a name of {len(name)} bytes")
    if b"/" in name or name in (b".", b".."):
        raise WireError("a name that is no name")


_INIT_SHORT = struct.Struct("<IIII")
_INIT = struct.Struct("<IIIII44x")


def _init(frame: bytes) -> Init:
    rest = len(frame) - _HEADER.size
    if rest == _INIT.size:
        major, minor, readahead, flags, flags2 = _INIT.unpack_from(frame, _HEADER.size)
        return Init(major, minor, readahead, flags | flags2 << 32)
    if rest == _INIT_SHORT.size:
        return Init._make(_INIT_SHORT.unpack_from(frame, _HEADER.size))
    raise WireError(f"an INIT with {rest} bytes")


def _forgets(frame: bytes) -> tuple[tuple[int, int], ...]:
    at = _HEADER.size
    if len(frame) < at + 8:
        raise WireError("a BATCH_FORGET without its head")
    (count, _) = struct.unpack_from("<II", frame, at)
    at += 8
    if count * _FORGET_ONE.size != len(frame) - at:
        raise WireError(f"a BATCH_FORGET of {count} that holds {len(frame) - at} bytes")
    return tuple(_FORGET_ONE.iter_unpack(memoryview(frame)[at:]))
