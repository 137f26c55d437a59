"""The memory and the descriptors of a process whose call waits for an answer.

Rules
- What is read is what the program chose to put there; nothing is believed of it. A pointer that leads
  nowhere is EFAULT, as the kernel has it.
- A `Memory` is bound to the process that it was opened of: should that process end and its number
  become another's, nothing of the other is touched. Whoever opened it asks afterwards whether the call
  still waits; only then was it the right process.
"""

from __future__ import annotations

import ctypes
import errno
import os

_PIDFD_GETFD = 438


class MemoryGone(OSError):
    """The memory of a process can't be read or written as asked."""


class Memory:
    """The memory of a process whose call waits. It stays that process's, whatever becomes of it."""

    def __init__(self, pid: int) -> None:
        self._fd = os.open(f"/proc/{pid}/mem", os.O_RDWR | os.O_CLOEXEC)

    def close(self) -> None:
        os.close(self._fd)

    def read(self, address: int, size: int) -> bytes:
        """Exactly `size` bytes. Raises `OSError` (EFAULT)."""
        try:
            data = os.pread(self._fd, size, _signed(address))
        except (OSError, OverflowError) as error:
            raise MemoryGone(errno.EFAULT, os.strerror(errno.EFAULT)) from error
        if len(data) != size:
            raise MemoryGone(errno.EFAULT, os.strerror(errno.EFAULT))
        return data

    def text(self, address: int, most: int) -> bytes:
        """A text that ends with NUL. Raises `OSError`: EFAULT, or ENAMETOOLONG above `most`."""
        found = b""
        while len(found) < most:
            at = address + len(found)
            part = self.read_some(at, min(most - len(found), 4096 - at % 4096))
            end = part.find(b"\0")
            if end >= 0:
                return found + part[:end]
            found += part
        raise OSError(errno.ENAMETOOLONG, os.strerror(errno.ENAMETOOLONG))

    def read_some(self, address: int, size: int) -> bytes:
        try:
            data = os.pread(self._fd, size, _signed(address))
        except (OSError, OverflowError) as error:
            raise MemoryGone(errno.EFAULT, os.strerror(errno.EFAULT)) from error
        if not data:
            raise MemoryGone(errno.EFAULT, os.strerror(errno.EFAULT))
        return data

    def write(self, address: int, data: bytes) -> None:
        """Raises `OSError` (EFAULT)."""
        try:
            written = os.pwrite(self._fd, data, _signed(address))
        except (OSError, OverflowError) as error:
            raise MemoryGone(errno.EFAULT, os.strerror(errno.EFAULT)) from error
        if written != len(data):
            raise MemoryGone(errno.EFAULT, os.strerror(errno.EFAULT))


def _signed(address: int) -> int:
    if address >= 1 << 63:
        raise OverflowError
    return address


def take_descriptor(thread: int, number: int) -> int:
    """A copy of a descriptor of another process: the same open file, with the same position. Raises
    `OSError`."""
    with open(f"/proc/{thread}/status", "rb") as status:
        fields = dict(line.split(b":", 1) for line in status.read().splitlines() if b":" in line)
    process = os.pidfd_open(int(fields[b"Tgid"]))
    try:
        libc = ctypes.CDLL(None, use_errno=True)
        found = int(libc.syscall(_PIDFD_GETFD, process, ctypes.c_int(number), 0))
        if found < 0:
            raise OSError(ctypes.get_errno(), os.strerror(ctypes.get_errno()))
        return found
    finally:
        os.close(process)
