"""What runs write leaves a rest of the disk free.

Rules
- A run whose `file_bytes` nobody limited could take a whole disk with one call (`fallocate`), and with
  it everybody's: a gate that can't write its log halts all its runs. So the gate puts no byte of a run
  on a disk that would have less than `kept` left afterwards; the program hears ENOSPC.
- How large the rest is says `kernel/room.py`. What root alone could still use counts as taken.
- It is looked up before each write, one in the place of other bytes too: whether these lie on the disk
  already is the file system's to know. Two that look at one moment may both pass: that is at most a
  write each, and a large one is one call.
- A file system that does not say how large it is (one in memory that nobody limited) has no rest.
"""

from __future__ import annotations

import errno
import os

from authority.kernel.room import kept


def leave(fd: int, more: int) -> None:
    """Raises `OSError` (ENOSPC) when `more` bytes in this file would take what has to stay free."""
    if not more:
        return
    disk = os.fstatvfs(fd)
    if not disk.f_blocks:
        return
    free = disk.f_bavail * disk.f_frsize
    if free - more < kept(disk.f_blocks * disk.f_frsize):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
