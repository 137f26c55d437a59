"""Numbers of the FUSE protocol, as the kernel writes them.

Source: `include/uapi/linux/fuse.h` of Linux 6.x (protocol 7.31 to 7.41).
"""

from __future__ import annotations

from typing import Final

MAJOR: Final = 7
MINOR_LEAST: Final = 31
MINOR_MOST: Final = 41
ROOT_ID: Final = 1

LOOKUP: Final = 1
FORGET: Final = 2
GETATTR: Final = 3
SETATTR: Final = 4
READLINK: Final = 5
SYMLINK: Final = 6
MKNOD: Final = 8
MKDIR: Final = 9
UNLINK: Final = 10
RMDIR: Final = 11
RENAME: Final = 12
LINK: Final = 13
OPEN: Final = 14
READ: Final = 15
WRITE: Final = 16
STATFS: Final = 17
RELEASE: Final = 18
FSYNC: Final = 20
SETXATTR: Final = 21
GETXATTR: Final = 22
LISTXATTR: Final = 23
REMOVEXATTR: Final = 24
FLUSH: Final = 25
INIT: Final = 26
OPENDIR: Final = 27
READDIR: Final = 28
RELEASEDIR: Final = 29
FSYNCDIR: Final = 30
ACCESS: Final = 34
CREATE: Final = 35
INTERRUPT: Final = 36
DESTROY: Final = 38
BATCH_FORGET: Final = 42
FALLOCATE: Final = 43
RENAME2: Final = 45
LSEEK: Final = 46
COPY_FILE_RANGE: Final = 47

# Capabilities of INIT
ASYNC_READ: Final = 1 << 0
ATOMIC_O_TRUNC: Final = 1 << 3
BIG_WRITES: Final = 1 << 5
ASYNC_DIO: Final = 1 << 15
PARALLEL_DIROPS: Final = 1 << 18
ABORT_ERROR: Final = 1 << 21
MAX_PAGES: Final = 1 << 22
HANDLE_KILLPRIV_V2: Final = 1 << 28
INIT_EXT: Final = 1 << 30
DIRECT_IO_ALLOW_MMAP: Final = 1 << 36

WANTED: Final = (
    ASYNC_READ
    | ATOMIC_O_TRUNC
    | BIG_WRITES
    | ASYNC_DIO
    | PARALLEL_DIROPS
    | ABORT_ERROR
    | MAX_PAGES
    | HANDLE_KILLPRIV_V2
    | DIRECT_IO_ALLOW_MMAP
)
"""What is used where the kernel has it. No locks (the kernel keeps them inside the run), no
caching of any kind, no READDIRPLUS, no access lists, no extensions."""

# Attributes that SETATTR sets
SET_MODE: Final = 1 << 0
SET_UID: Final = 1 << 1
SET_GID: Final = 1 << 2
SET_SIZE: Final = 1 << 3
SET_ATIME: Final = 1 << 4
SET_MTIME: Final = 1 << 5
SET_FH: Final = 1 << 6
SET_ATIME_NOW: Final = 1 << 7
SET_MTIME_NOW: Final = 1 << 8

GETATTR_FH: Final = 1 << 0
FSYNC_DATA: Final = 1 << 0

OPEN_DIRECT_IO: Final = 1 << 0
OPEN_NO_FLUSH: Final = 1 << 5
"""The kernel does not tell of close() of descriptors that only read (7.35)."""

RENAME_NOREPLACE: Final = 1 << 0
RENAME_EXCHANGE: Final = 1 << 1
