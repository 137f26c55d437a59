"""The structures that system calls fill, as the C library and the kernel lay them out.

Pure. x86-64 and arm64, little endian. Source: `asm/stat.h` of each, `linux/stat.h`, `asm/statfs.h`,
`linux/dirent.h` of Linux, and stat(2), statx(2), getdents(2).
"""

from __future__ import annotations

import errno
import os
import platform
import struct
from collections.abc import Iterable
from typing import Final, NamedTuple

_ARM: Final = platform.machine() in ("aarch64", "arm64")
_STAT_X86: Final = struct.Struct("<QQQIIIIQqqqQQQQQQ24x")
_STAT_ARM: Final = struct.Struct("<QQIIIIQQqiiqQQQQQQ8x")
_STATX: Final = struct.Struct("<IIQIIIHHQQQQqIiqIiqIiqIiIIIIQ104x")
_STATX_BASIC: Final = 0x7FF
_STATFS: Final = struct.Struct("<12q24x")
_DIRENT: Final = struct.Struct("<QqHB")
_FUSE_MAGIC: Final = 0x65735546
_ATTR: Final = struct.Struct("<QQQQQQIIIIIIIIII")
_FUSE_STATFS: Final = struct.Struct("<QQQQQIIII")


class Status(NamedTuple):
    """What a stat says; times in seconds and nanoseconds."""

    dev: int
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
    blksize: int = 4096


def status(attributes: bytes, dev: int) -> Status:
    """From a `fuse_attr`."""
    ino, *rest = _ATTR.unpack(attributes)
    return Status._make((dev, ino, *rest[:12], rest[13]))


def stat_bytes(one: Status) -> bytes:
    """`struct stat`."""
    times = (one.atime, one.atime_ns, one.mtime, one.mtime_ns, one.ctime, one.ctime_ns)
    dev = _kernel_dev(one.dev)
    if _ARM:
        return _STAT_ARM.pack(
            dev, one.ino, one.mode, one.nlink, one.uid, one.gid, 0, 0,
            one.size, one.blksize, 0, one.blocks, *times,
        )  # fmt: skip
    return _STAT_X86.pack(
        dev, one.ino, one.nlink, one.mode, one.uid, one.gid, 0, 0,
        one.size, one.blksize, one.blocks, *times,
    )  # fmt: skip


def statx_bytes(one: Status) -> bytes:
    """`struct statx` with the basic members."""
    return _STATX.pack(
        _STATX_BASIC, one.blksize, 0, one.nlink, one.uid, one.gid, one.mode, 0,
        one.ino, one.size, one.blocks, 0,
        _seconds(one.atime), one.atime_ns, 0, 0, 0, 0,
        _seconds(one.ctime), one.ctime_ns, 0, _seconds(one.mtime), one.mtime_ns, 0,
        0, 0, os.major(one.dev), os.minor(one.dev), 0,
    )  # fmt: skip


def _seconds(value: int) -> int:
    return value - (1 << 64) if value >> 63 else value


def _kernel_dev(dev: int) -> int:
    return dev & 0xFFFFFFFFFFFFFFFF


def statfs_bytes(body: bytes) -> bytes:
    """`struct statfs`, from the body of FUSE's answer."""
    blocks, free, available, files, ffree, bsize, namelen, frsize, _ = _FUSE_STATFS.unpack_from(
        body
    )
    return _STATFS.pack(
        _FUSE_MAGIC, bsize, blocks, free, available, files, ffree, 0, namelen, frsize, 0, 0
    )


def dirents(rows: Iterable[tuple[int, int, int, bytes]], room: int) -> tuple[bytes, int]:
    """`linux_dirent64` records of (inode, position behind it, type, name) as far as they fit, and the
    position behind the last (-1: none). Raises `OSError` (EINVAL) when not even one fits."""
    out: list[bytes] = []
    used, last = 0, -1
    for ino, following, kind, name in rows:
        size = (_DIRENT.size + len(name) + 1 + 7) & ~7
        if used + size > room:
            if not out:
                raise OSError(errno.EINVAL, os.strerror(errno.EINVAL))
            break
        out.append((_DIRENT.pack(ino, following, size, kind) + name).ljust(size, b"\0"))
        used += size
        last = following
    return b"".join(out), last
