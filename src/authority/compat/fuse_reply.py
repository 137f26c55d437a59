"""Replies to the kernel's file messages, built from the protocol's own tables.

Pure. Rules
- An error is a positive errno here and negative on the wire.
- A name that is there is valid for `NAME_SECONDS`: the kernel goes through it without asking, and what
  it then does with the node is asked for, by the node. Attributes, and names that are not there, are
  valid for no time at all.

Source: `include/uapi/linux/fuse.h` of Linux.
"""

from __future__ import annotations

import struct
from collections.abc import Iterable
from typing import NamedTuple

from authority.compat.fuse_abi import INIT_EXT
from authority.compat.fuse_wire import MAX_NAME, MAX_WRITE

NAME_SECONDS = 1

_OUT = struct.Struct("<IiQ")


def reply(unique: int, *parts: bytes | memoryview) -> bytes:
    """A successful reply."""
    return b"".join((_OUT.pack(_OUT.size + sum(map(len, parts)), 0, unique), *parts))


def error(unique: int, number: int) -> bytes:
    """A reply that says an errno."""
    return _OUT.pack(_OUT.size, -number, unique)


_INIT_OUT = struct.Struct("<IIIIHHIIHHI28x")


def init_out(minor: int, readahead: int, flags: int, *, background: int, max_pages: int) -> bytes:
    """The body of INIT's reply: our minor version, and the capabilities that both sides use."""
    low, high = (flags | INIT_EXT) & 0xFFFFFFFF, flags >> 32
    return _INIT_OUT.pack(
        7, minor, readahead, low, background, background * 3 // 4, MAX_WRITE, 1, max_pages, 0, high
    )


class Attr(NamedTuple):
    """`fuse_attr`; times in seconds and nanoseconds."""

    ino: int
    size: int
    blocks: int
    atime: int
    mtime: int
    ctime: int
    atime_ns: int
    mtime_ns: int
    ctime_ns: int
    mode: int
    nlink: int
    uid: int
    gid: int
    rdev: int = 0
    blksize: int = 4096
    flags: int = 0


_ATTR = struct.Struct("<QQQQQQIIIIIIIIII")
_ENTRY_HEAD = struct.Struct("<QQQQII")
_ATTR_HEAD = struct.Struct("<QII")
_DIRENT = struct.Struct("<QQII")


def attr_out(attr: Attr) -> bytes:
    """Attributes that are valid for no time at all."""
    return _ATTR_HEAD.pack(0, 0, 0) + _ATTR.pack(*attr)


def entry_out(nodeid: int, generation: int, attr: Attr) -> bytes:
    """A name's node, valid for `NAME_SECONDS`; its attributes for no time at all."""
    return _ENTRY_HEAD.pack(nodeid, generation, NAME_SECONDS, 0, 0, 0) + _ATTR.pack(*attr)


def open_out(fh: int, flags: int) -> bytes:
    """The handle of an opened file or directory, and `FOPEN_` flags."""
    return struct.pack("<QII", fh, flags, 0)


def write_out(size: int) -> bytes:
    """How many bytes were taken."""
    return struct.pack("<II", size, 0)


def lseek_out(offset: int) -> bytes:
    """The offset of the data or the hole, in bytes."""
    return struct.pack("<Q", offset)


def xattr_size_out(size: int) -> bytes:
    """How many bytes the extended attributes would need."""
    return struct.pack("<II", size, 0)


def statfs_out(
    blocks: int, free: int, available: int, files: int, ffree: int, bsize: int, frsize: int
) -> bytes:
    """Space in blocks of `frsize` bytes, and nodes; names have at most `MAX_NAME` bytes."""
    return struct.pack(
        "<QQQQQIIII24x", blocks, free, available, files, ffree, bsize, MAX_NAME, frsize, 0
    )


def dirents(rows: Iterable[tuple[int, int, int, bytes]], room: int) -> bytes:
    """Directory entries (inode, next offset, type, name) as far as they fit into `room` bytes."""
    out, used = [], 0
    for ino, following, kind, name in rows:
        one = _DIRENT.pack(ino, following, len(name), kind) + name
        one += bytes(-len(one) % 8)
        if used + len(one) > room:
            break
        used += len(one)
        out.append(one)
    return b"".join(out)
